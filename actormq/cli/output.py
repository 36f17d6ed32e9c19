"""output: what commands print: one JSON value for programs, or a table for people."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actormq.wire import json

if TYPE_CHECKING:
    from actormq.client.received import ReceivedMessage


def print_json(value: object) -> None:
    """Print `value` as one line of JSON."""
    sys.stdout.write(json.dumps(value).decode() + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Print `rows` under `columns`, numbers at the right: fitted to a terminal, whole into a pipe."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    right = [all(isinstance(row[index], int | float | None) for row in rows) for index in range(len(columns))]
    if title is not None:
        print(title)
    if sys.stdout.isatty():
        _print_rich(columns, cells, right)
    else:
        _print_plain(columns, cells, right)


def _print_rich(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, is_number in zip(columns, right, strict=True):
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    Console(highlight=False, markup=False).print(table)


def _print_plain(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (columns, *cells):
        words = zip(row, widths, right, strict=True)
        line = "  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in words)
        print(line.rstrip())


def say(sentence: str) -> None:
    """Tell the person something that is no result."""
    print(sentence, file=sys.stderr, flush=True)


def message_json(message: ReceivedMessage) -> dict[str, Any]:
    """Return everything of a message; a body that is no UTF-8 text is given in base64."""
    value: dict[str, Any] = {
        "topic": message.topic,
        "broker": message.queue.broker_name,
        "queue": message.queue.queue_id,
        "offset": message.queue_offset,
        "message_id": message.message_id,
        "tags": message.tags,
        "keys": message.keys,
        "properties": message.properties,
        "born_timestamp_ms": message.born_timestamp_ms,
        "store_timestamp_ms": message.store_timestamp_ms,
        "reconsume_times": message.reconsume_times,
    }
    try:
        value["body"] = message.body.decode()
    except UnicodeDecodeError:
        value["body_base64"] = base64.b64encode(message.body).decode()
    return value
