"""options: the options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from actormq.cli.remote import DEFAULT_NAMESRV

Namesrv: TypeAlias = Annotated[
    str,
    typer.Option(
        "--namesrv", "-n", envvar="NAMESRV_ADDR", metavar="HOST:PORT", help="Name servers, separated by ';'."
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

NAMESRV_DEFAULT = DEFAULT_NAMESRV


def client_url(namesrv: str) -> str:
    """Return the client's URL for ``host:port;host:port``; what is a URL already stays as it is."""
    return namesrv if "://" in namesrv else f"rocketmq://{namesrv.replace(';', ',')}"
