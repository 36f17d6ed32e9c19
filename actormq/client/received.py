"""Received messages: what the kernel that reads them needs of the client.

Source: RocketMQ MessageDecoder.java; client.md §2.2, wire.md §5.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any, Final

from actormq.client.identifiers import format_offset_message_id
from actormq.client.messages import decompress
from actormq.client.results import MessageQueue
from actormq.errors import PeerError
from actormq.kernels import records
from actormq.kernels.received import Gate, ReceivedMessage, Rules, cut
from actormq.message import LogOffset, SysFlag
from actormq.wire import batch

__all__ = ["RULES", "ReceivedMessage", "decode_messages"]

_WRAPPED: Final = SysFlag.INNER_BATCH | SysFlag.NEED_UNWRAP


def decode_messages(data: Any, queue: MessageQueue) -> list[ReceivedMessage]:
    """Return the messages that lie in `data` one behind the other (a pull's body).

    Raises:
        PeerError: a size or magic that no record has.
    """
    return cut(data, queue, RULES, Gate()).messages()


def _rebuild(record: bytes, queue: MessageQueue, attempts: int) -> ReceivedMessage:
    """Return the message that was pickled."""
    [message] = decode_messages(record, queue)
    for _ in range(attempts):
        message.count_attempt()
    return message


def _host_text(stored: bytes) -> str:
    if len(stored) == 8:
        return f"{stored[0]}.{stored[1]}.{stored[2]}.{stored[3]}:{int.from_bytes(stored[4:], 'big')}"
    return f"[{ipaddress.IPv6Address(stored[:-4])}]:{int.from_bytes(stored[-4:], 'big')}"


def _unwrap(data: memoryview) -> bytes:
    """Return records of which none is an inner batch: its messages stand one behind the other instead.

    They have the batch's times and hosts, and queue offsets that go on from the batch's; their flags, bodies
    and properties are their own.  Source: RocketMQ MessageDecoder.decodeMessage.

    Raises:
        PeerError: a body that is no batch.
    """
    parts: list[bytes | memoryview] = []
    at = 0
    while at < len(data):
        try:
            outer = records.decode(data, at)
        except ValueError as error:
            raise PeerError(str(error)) from None
        parts += (
            _inner(outer, data) if outer.sys_flag & _WRAPPED == _WRAPPED else [data[at:][: outer.total_size]]
        )
        at += outer.total_size
    return b"".join(parts)


def _inner(outer: records.Header, data: memoryview) -> Iterator[bytes]:
    body: bytes | memoryview = data[outer.body_at : outer.body_at + outer.body_size]
    if outer.sys_flag & SysFlag.COMPRESSED:
        body = decompress(bytes(body), outer.sys_flag)
    cleared = _WRAPPED | SysFlag.COMPRESSED | SysFlag.COMPRESSION_MASK
    for number, item in enumerate(batch.iterate(body)):
        sizes = (len(outer.born_host), len(outer.store_host), len(outer.topic))
        out = bytearray(records.record_size(*sizes, len(item.properties), len(item.body)))
        records.encode(
            out,
            0,
            queue_id=outer.queue_id,
            queue_offset=outer.queue_offset + number,
            physical_offset=outer.physical_offset,
            store_timestamp=outer.store_timestamp,
            store_host=outer.store_host,
            topic=outer.topic,
            body=item.body,
            properties=bytes(item.properties),
            flag=item.flag,
            sys_flag=outer.sys_flag & ~cleared,
            born_timestamp=outer.born_timestamp,
            born_host=outer.born_host,
            reconsume_times=outer.reconsume_times,
        )
        yield bytes(out)


RULES: Final = Rules(
    error=PeerError,
    decompress=decompress,
    host=_host_text,
    message_id=lambda host, log_offset: format_offset_message_id(host, LogOffset(log_offset)),
    unwrap=_unwrap,
    rebuild=_rebuild,
)
