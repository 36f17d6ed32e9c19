"""dumped: one stored message as a line of JSON, and what `store dump` understands as a place or a time."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any, Final

from actormq.errors import ConfigError
from actormq.store.record import Record
from actormq.wire import json

BODIES: Final = ("text", "base64", "hex", "none")


def line_of(one: Record, body: str) -> str:
    """Return the message as JSON; bytes that are no UTF-8 are replaced in a text."""
    value: dict[str, Any] = {
        "log_offset": one.log_offset,
        "size": one.size,
        "topic": one.topic,
        "queue": one.queue_id,
        "queue_offset": one.queue_offset,
        "store_timestamp": one.store_timestamp,
        "store_host": _address(one.store_host),
        "born_timestamp": one.born_timestamp,
        "born_host": _address(one.born_host),
        "message_id": one.message_id,
        "flag": one.flag,
        "sys_flag": one.sys_flag,
        "reconsume_times": one.reconsume_times,
        "prepared_offset": one.prepared_offset,
        "properties": one.properties,
        "body_bytes": len(one.body),
    }
    if body == "text":
        value["body"] = bytes(one.body).decode("utf-8", "replace")
    elif body == "base64":
        value["body"] = base64.b64encode(one.body).decode()
    elif body == "hex":
        value["body"] = one.body.hex()
    return json.dumps(value).decode()


def _address(host: tuple[str, int]) -> str:
    return f"[{host[0]}]:{host[1]}" if ":" in host[0] else f"{host[0]}:{host[1]}"


def bounds_of(begin: str, end: str) -> dict[str, int | None]:
    """Return what ``--from`` and ``--to`` mean: log offsets, or store times in ms."""
    first, last = _place(begin, "--from"), _place(end, "--to")
    return {
        "first_offset": first if begin.isdigit() else None,
        "end_offset": last if end.isdigit() else None,
        "first_ms": None if begin.isdigit() else first,
        "last_ms": None if end.isdigit() else last,
    }


def _place(text: str, option: str) -> int | None:
    if not text:
        return None
    if text.isdigit():
        return int(text)
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise ConfigError(f"{option} {text!r} must be a log offset, or like 2026-11-22T14:30:00") from None
