"""The documentation is kept true where a program can see it: links, names of files, settings, numbers."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

from actormq.broker.admin import Admin
from actormq.broker.naming import NameService
from actormq.cli.app import NOUNS
from actormq.cli.settings import load_broker
from actormq.config import BrokerConfig, NameServerConfig
from actormq.wire.codes import RequestCode

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = {
    path.relative_to(ROOT) for top in ("actormq", "tests", "loadtest") for path in (ROOT / top).rglob("*.py")
}
GENERATED = {"example.py"}


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return what a link may name behind `#`: the headings, as code hosts spell them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page: Path) -> None:
    """To files of the project, and to headings in them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(file), f"{target} is no heading of {file.name}"


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_files_that_are_named_exist(page: Path) -> None:
    """`store/recovery.py`, below any folder of sources; of a bare `recovery.py` some file has that name."""
    for name in re.findall(r"`([\w/.-]+\.py)[:`]", page.read_text()):
        if name not in GENERATED:
            assert any(
                path == Path(name) or str(path).endswith("/" + name) for path in SOURCES | _others()
            ), f"there is no {name}"


def _others() -> set[Path]:
    return {path.relative_to(ROOT) for path in (*ROOT.glob("*.py"), *(ROOT / "docs").glob("*.py"))}


def test_decisions_have_one_number_each() -> None:
    """In the name and in the title."""
    pages = sorted((ROOT / "docs" / "adr").glob("0*.md"))
    numbers = [page.name[:4] for page in pages]
    assert len(set(numbers)) == len(numbers)
    for page in pages:
        assert page.read_text().startswith(f"# {page.name[:4]} "), page.name


def test_every_setting_is_described() -> None:
    """In docs/operating.md, by its name in a TOML file."""
    text = (ROOT / "docs" / "operating.md").read_text()
    for kind in (BrokerConfig, NameServerConfig, *_sections()):
        for field in dataclasses.fields(kind):
            if field.name not in get_type_hints(BrokerConfig) or field.default is not dataclasses.MISSING:
                assert f"`{field.name}`" in text or field.name in ("other_keys", "namesrv"), field.name


def _sections() -> list[type]:
    hints = get_type_hints(BrokerConfig).values()
    return [kind for kind in hints if isinstance(kind, type) and dataclasses.is_dataclass(kind)]


def test_the_readmes_settings_are_read(tmp_path: Path) -> None:
    """Its TOML file is one, and every key in it is known."""
    (text,) = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert tomllib.loads(text)
    file = tmp_path / "broker.toml"
    file.write_text(text)
    assert load_broker(file, {}, {}).warnings == ()


def test_request_codes_that_are_served_are_listed() -> None:
    """Those of the name server, and those that only read."""
    text = (ROOT / "docs" / "compatibility.md").read_text()
    served = text[: text.index("Not served")]
    listed = {int(number) for number in re.findall(r"\b\d{2,6}\b", served)}
    for first, last in re.findall(r"\b(\d{3,6})–(\d{3,6})\b", served):
        listed |= set(range(int(first), int(last) + 1))
    codes = {*Admin.__new__(Admin).handlers(), *NameService.__new__(NameService)._table()}
    missing = {RequestCode(code) for code in codes if int(code) not in listed}
    assert not missing


def test_every_command_and_option_is_described() -> None:
    """In docs/cli.md, by its name."""
    text = (ROOT / "docs" / "cli.md").read_text()
    for noun in NOUNS:
        module = import_module(f"actormq.cli.{noun}")
        found = [getattr(module, noun)] if not hasattr(module, "app") else []
        if not found:
            for info in module.app.registered_commands:
                found.append(info.callback)
                name = info.name or info.callback.__name__
                assert re.search(rf"`{noun} {name}\b", text), f"{noun} {name}"
        for function in found:
            for hint in get_type_hints(function, include_extras=True).values():
                for option in getattr(hint, "__metadata__", ()):
                    flags = [flag for flag in getattr(option, "param_decls", None) or () if flag[:2] == "--"]
                    assert not flags or any(f"{flag}" in text for flag in flags), f"{noun}: {flags}"


def test_tests_that_are_named_exist() -> None:
    """The table of rules in docs/testing.md names tests that are there."""
    text = (ROOT / "docs" / "testing.md").read_text()
    named = re.findall(r"`([a-z_/]+\.py)::(test_\w+)`", text)
    assert len(named) > 50
    missing = [
        (file, name)
        for file, name in named
        if not re.search(rf"def {name}\b", (ROOT / "tests" / file).read_text())
    ]
    assert not missing
