"""output: what commands print: one JSON value for programs, or a table for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from actormq.wire import json


def print_json(value: object) -> None:
    """Print `value` as one line of JSON."""
    sys.stdout.write(json.dumps(value).decode() + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Print `rows` under `columns`; numbers stand at the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if rows and numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=200)
    console.print(table)


def say(sentence: str) -> None:
    """Tell the person something that is no result."""
    print(sentence, file=sys.stderr, flush=True)
