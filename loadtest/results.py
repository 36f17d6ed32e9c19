"""Results as a table for people and as JSON for later; no figure goes without what it was measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from loadtest.compare import Row

FOLDER: Final = Path(__file__).parent / "results"
COLUMNS: Final = ("case", "bytes", "unit", "ours", "theirs", "ratio", "spread", "to reach", "", "others")


def document(context: dict[str, Any], rows: Sequence[Row], *, runs: bool) -> dict[str, Any]:
    """Return what is written down.

    Args:
        context: machine, versions, commit, options.
        runs: every single run as well as what follows from them.
    """
    lines = [{**line, "sides": row.sides} for row in rows for line in row.lines()]
    whole = {**context, "results": lines}
    return whole | {"rows": [asdict(row) for row in rows]} if runs else whole


def write(path: Path, value: dict[str, Any]) -> None:
    """Write it, readable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def table(rows: Sequence[Row]) -> str:
    """Return the figures as a Markdown table that also reads well in a terminal."""
    cells = [list(COLUMNS), *(_cells(line) for row in rows for line in row.lines())]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(line: dict[str, Any]) -> list[str]:
    reached = {True: "reached", False: "MISSED", None: ""}[line["reached"]]
    return [
        line["case"],
        str(line["bytes"]),
        line["unit"],
        number(line["ours"]),
        "skipped" if line["skipped"] else number(line["theirs"]),
        "" if line["ratio"] is None else f"{line['ratio']:.2f}",
        f"{line['spread']:.0%}",
        line["to reach"],
        " ".join([reached, *([f"({line['failed']:.0f} sends failed)"] if line["failed"] else [])]),
        f"{line['others_percent']:.0f} %" + ("" if line["quiet"] else " DISTURBED"),
    ]


def number(value: float | None) -> str:
    """Return a figure with the digits that mean something."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def heading(context: dict[str, Any]) -> str:
    """Return the lines that stand above the table."""
    machine, ours = context["machine"], context["actormq"]
    changed = " with changes" if ours["changed"] else ""
    return (
        f"{context['date']}, {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GiB, "
        f"{machine['kernel']}, Python {machine['python']}\n"
        f"ActorMQ {ours['version']}, commit {ours['commit']}{changed}, kernels {ours['kernels']}; "
        f"{context['flush']} flush; medians of {context['rounds']} round(s), A B A B; "
        "others = CPU of everybody else, percent of one core, the worst run"
    )
