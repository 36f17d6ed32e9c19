"""Batch bodies (SEND_BATCH_MESSAGE): messages of one topic, one behind the other.

    i32 total size | i32 magic | i32 crc | i32 flag | i32 body size | body | i16 properties size | properties

Magic and CRC are zero on the wire; the broker computes its own.
Source: RocketMQ MessageDecoder.java (encodeMessages, decodeMessages).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from actormq.errors import FrameError
from actormq.message import PROPERTIES_BYTES_MAX

_ITEM: Final = struct.Struct(">iiiii")
assert _ITEM.size == 20
_PROPERTIES: Final = struct.Struct(">H")
_OVERHEAD: Final = _ITEM.size + _PROPERTIES.size
ITEMS_MAX: Final = 65_535
"""Messages in one batch: the append request counts them in 16 bits."""


class BatchItem(NamedTuple):
    """One message of a batch, its bytes not copied."""

    flag: int
    body: memoryview
    properties: memoryview


def encode(items: Iterable[tuple[int, bytes | memoryview, bytes]]) -> bytes:
    """Return the batch body of ``(flag, body, properties)`` items."""
    parts: list[bytes | memoryview] = []
    for flag, body, properties in items:
        size = _OVERHEAD + len(body) + len(properties)
        parts += (
            _ITEM.pack(size, 0, 0, flag, len(body)),
            body,
            _PROPERTIES.pack(len(properties)),
            properties,
        )
    return b"".join(parts)


def iterate(data: bytes | memoryview) -> Iterator[BatchItem]:
    """Yield the messages in `data`.

    Raises:
        FrameError: a size does not fit: nothing behind it can be believed.
    """
    view = memoryview(data)
    at = 0
    while at < len(view):
        if len(view) - at < _OVERHEAD:
            raise FrameError("a batch item cut off in its sizes")
        size, _, _, flag, body_bytes = _ITEM.unpack_from(view, at)
        if not _OVERHEAD <= size <= len(view) - at or not 0 <= body_bytes <= size - _OVERHEAD:
            raise FrameError(f"a batch item of {size} bytes with a body of {body_bytes}")
        body_at = at + _ITEM.size
        properties_at = body_at + body_bytes + _PROPERTIES.size
        (properties_bytes,) = _PROPERTIES.unpack_from(view, body_at + body_bytes)
        if properties_bytes > PROPERTIES_BYTES_MAX or properties_at + properties_bytes != at + size:
            raise FrameError(f"a batch item with {properties_bytes} bytes of properties")
        yield BatchItem(flag, view[body_at : body_at + body_bytes], view[properties_at : at + size])
        at += size


def count(data: bytes | memoryview) -> int:
    """Return how many messages `data` holds.

    Raises:
        FrameError: as `iterate`, or more than `ITEMS_MAX`.
    """
    items = sum(1 for _ in iterate(data))
    if items > ITEMS_MAX:
        raise FrameError(f"a batch of {items} messages")
    return items
