"""Sphinx: `make docs` makes build/docs of these pages, and fails where a link leads nowhere."""

from __future__ import annotations

from actormq import __version__

project = "ActorMQ"
author = "the ActorMQ contributors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"ActorMQ {__version__}"
