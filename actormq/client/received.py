"""Received messages: what the kernel that reads them needs of the client.

Source: RocketMQ MessageDecoder.java; client.md §2.2, wire.md §5.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from actormq.client.identifiers import format_offset_message_id
from actormq.client.messages import decompress
from actormq.client.results import MessageQueue
from actormq.errors import PeerError
from actormq.kernels.received import Gate, ReceivedMessage, Rules, cut
from actormq.message import LogOffset

__all__ = ["RULES", "ReceivedMessage", "decode_messages"]


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


RULES: Final = Rules(
    error=PeerError,
    decompress=decompress,
    host=_host_text,
    message_id=lambda host, log_offset: format_offset_message_id(host, LogOffset(log_offset)),
    rebuild=_rebuild,
)
