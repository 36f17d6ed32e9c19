"""Sends as whole frames, for who writes them to a socket himself: binary headers, written from templates.

All that stays the same from one message to the next (group, topic, queue, …) is laid out once per queue.
Source: RocketMQ RocketMQSerializable.java, SendMessageRequestHeaderV2.java; wire.md §2.2, §6.1.
"""

from __future__ import annotations

import struct
from typing import Final

from actormq.client import requests
from actormq.client.requests import Outgoing, Stored
from actormq.client.results import MessageQueue
from actormq.errors import ConnectionLost, FrameError
from actormq.kernels.singles import read_stored, write_send
from actormq.message import TEMPLATE_TOPIC, QueueOffset, SendStatus
from actormq.wire import frame
from actormq.wire.codes import RequestCode
from actormq.wire.command import BROKER_VERSION, FLAG_ONEWAY, Language
from actormq.wire.headers import SendHeader, encode_send_v2

_KIND: Final = struct.Struct(">hBh")
"""A header's code, language and version."""
_SINGLE: Final = _KIND.pack(RequestCode.SEND_MESSAGE_V2, Language.PYTHON, BROKER_VERSION)
_BATCH: Final = _KIND.pack(RequestCode.SEND_BATCH_MESSAGE, Language.PYTHON, BROKER_VERSION)
_STATUS: Final = {int(status): status for status in SendStatus}
_I32: Final = struct.Struct(">i")
_LENGTH_BYTES: Final = 4
_QUEUES_REMEMBERED_MAX: Final = 10_000


class SendFrames:
    """Writes the sends of one producer.  Any thread: what is kept is only ever added."""

    def __init__(self, group: str, queues_wanted: int) -> None:
        """
        Args:
            queues_wanted: how many queues a topic gets if the broker has to create it.
        """
        self._group = group
        self._queues_wanted = queues_wanted
        self._plain: dict[MessageQueue, bytes] = {}

    def encode(
        self, queue: MessageQueue, message: Outgoing, born_ms: int, opaque: int, oneway: bool = False
    ) -> bytes:
        """Return the frame that stores `message` in `queue`."""
        if message.sys_flag or message.flag or message.batch or message.is_redelivery:
            fixed = self._fields(queue, message)
        else:
            fixed = self._plain.get(queue) or self._remember(queue, message)
        properties = message.properties
        if not properties.isascii():
            # As in a JSON header: a lone surrogate is no UTF-8, Java writes "?" for it.
            properties = properties.decode("utf-8", "surrogatepass").encode("utf-8", "replace")
        body = message.body if type(message.body) is bytes else bytes(message.body)
        kind = _BATCH if message.batch else _SINGLE
        flag = FLAG_ONEWAY if oneway else 0
        return write_send(kind, opaque, flag, fixed, born_ms, properties, body)

    def _remember(self, queue: MessageQueue, message: Outgoing) -> bytes:
        if len(self._plain) >= _QUEUES_REMEMBERED_MAX:
            self._plain = {}
        fields = self._plain[queue] = self._fields(queue, message)
        return fields

    def _fields(self, queue: MessageQueue, message: Outgoing) -> bytes:
        """Return all fields but those of every single message: when it was made, its properties."""
        header = SendHeader(
            producer_group=self._group,
            topic=queue.topic,
            default_topic=TEMPLATE_TOPIC,
            default_topic_queues=self._queues_wanted,
            queue_id=queue.queue_id,
            sys_flag=message.sys_flag,
            born_timestamp_ms=0,
            flag=message.flag,
            properties="",
            reconsume_times=message.reconsume_times,
            unit_mode=False,
            max_reconsume_times=message.max_reconsume_times,
            batch=message.batch,
        )
        fields = encode_send_v2(header, queue.broker_name)
        del fields["g"], fields["i"]
        return b"".join(map(_field, fields, fields.values()))


def _field(key: str, value: str) -> bytes:
    key_bytes, value_bytes = key.encode(), value.encode("utf-8", "replace")
    return b"%b%b%b%b" % (
        len(key_bytes).to_bytes(2, "big"),
        key_bytes,
        _I32.pack(len(value_bytes)),
        value_bytes,
    )


def parse_stored(answer: bytes, queue: MessageQueue, address: str) -> Stored:
    """Return what became of a send, from the whole frame of its answer.

    Raises:
        RequestRefused: it was not stored.
        ConnectionLost, PeerError: it is no answer to a send.
    """
    found = read_stored(answer)
    if found is not None and (status := _STATUS.get(found[0])) is not None:
        _, queue_id, queue_offset, ids, transaction_id, region = found
        if queue_id != queue.queue_id:
            queue = queue._replace(queue_id=queue_id)
        return Stored(status, queue, QueueOffset(queue_offset), ids, transaction_id, region)
    try:
        return requests.parse_stored(frame.decode(answer[_LENGTH_BYTES:]), queue, address)
    except FrameError as error:
        raise ConnectionLost(f"{address} sent something that is no frame: {error}") from error
