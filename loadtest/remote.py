"""What is asked of a running RocketMQ-speaking broker, ours or the real one, around a measurement."""

from __future__ import annotations

import struct
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from actormq.cli.remote import Remote
from actormq.errors import RequestRefused, ResponseCode
from actormq.message import TEMPLATE_TOPIC
from actormq.wire import json
from actormq.wire.headers import RequestCode

GROUP: Final = "bench-reader"
PULL_MESSAGES: Final = 1_024
PULL_BYTES: Final = 4 << 20
_HAS_SUBSCRIPTION: Final = 4
_HEAD: Final = struct.Struct(">iiIiiqqi")
assert _HEAD.size == 40
_MAGICS: Final = frozenset({-626843481, -626843477})
_BORN_HOST_V6: Final = 0x10
_STORE_HOST_V6: Final = 0x20
DISPATCH_WAIT_S: Final = 60.0


@dataclass
class Stored:
    """What a topic holds, read back message by message."""

    count: int = 0
    bodies: Counter[bytes] = field(default_factory=Counter)
    """How often each body is stored: two of these are equal only if nothing is lost, changed or doubled."""


class Broker:
    """Asks one broker by RocketMQ's own requests, so that both kinds answer the same questions."""

    def __init__(self, address: str, queues: int = 8) -> None:
        self.address = address
        self.queues = queues
        self._remote = Remote(timeout_s=30.0)

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self._remote.__exit__()

    def create_topic(self, topic: str) -> None:
        """Make a topic of `queues` queues."""
        fields = {
            "topic": topic,
            "defaultTopic": TEMPLATE_TOPIC,
            "readQueueNums": str(self.queues),
            "writeQueueNums": str(self.queues),
            "perm": "6",
            "topicFilterType": "SINGLE_TAG",
            "topicSysFlag": "0",
            "order": "false",
        }
        self._remote.ask(self.address, RequestCode.UPDATE_AND_CREATE_TOPIC, fields)

    def readable(self, topic: str) -> int:
        """Return how many messages of the topic can be consumed: appended and dispatched."""
        return sum(self._end(topic, queue_id) for queue_id in range(self.queues))

    def _end(self, topic: str, queue_id: int) -> int:
        fields = {"topic": topic, "queueId": str(queue_id)}
        return int(self._remote.ask(self.address, RequestCode.GET_MAX_OFFSET, fields).fields["offset"])

    def committed(self, group: str, topic: str) -> int:
        """Return the sum of the group's offsets."""
        total = 0
        for queue_id in range(self.queues):
            fields = {"consumerGroup": group, "topic": topic, "queueId": str(queue_id)}
            answer = self._remote.ask(self.address, RequestCode.QUERY_CONSUMER_OFFSET, fields)
            total += int(answer.fields["offset"])
        return total

    def dispatch_s(self) -> float:
        """Return how long it takes from now until everything appended is dispatched.

        Raises:
            TimeoutError: it still was not after a minute.
        """
        began = time.monotonic()
        while self._behind_bytes() > 0:
            if time.monotonic() - began > DISPATCH_WAIT_S:
                raise TimeoutError(f"{self.address} has not dispatched everything after {DISPATCH_WAIT_S} s")
            time.sleep(0.01)
        return time.monotonic() - began

    def _behind_bytes(self) -> int:
        try:
            body = self._remote.ask(self.address, RequestCode.GET_ROLES).body
        except RequestRefused as refusal:
            if refusal.response_code != ResponseCode.REQUEST_CODE_NOT_SUPPORTED:
                raise
            table = self._remote.ask(self.address, RequestCode.GET_BROKER_RUNTIME_INFO).body
            return int(json.loads(table)["table"]["dispatchBehindBytes"])
        positions = json.loads(body)["positions"]
        return int(positions["appended"]) - int(positions["dispatched"])

    def read_back(self, topic: str) -> Stored:
        """Return everything that the topic holds.

        Raises:
            ValueError: a hole in a queue, a message in the wrong place, or one whose checksum is wrong.
        """
        stored = Stored()
        for queue_id in range(self.queues):
            self._read_queue(topic, queue_id, stored)
        return stored

    def _read_queue(self, topic: str, queue_id: int, stored: Stored) -> None:
        offset, end = 0, self._end(topic, queue_id)
        while offset < end:
            bodies = bodies_of(self._pull(topic, queue_id, offset), queue_id, offset)
            stored.bodies.update(bodies)
            stored.count += len(bodies)
            offset += len(bodies)

    def _pull(self, topic: str, queue_id: int, offset: int) -> memoryview:
        fields = {
            "consumerGroup": GROUP,
            "topic": topic,
            "queueId": str(queue_id),
            "queueOffset": str(offset),
            "maxMsgNums": str(PULL_MESSAGES),
            "maxMsgBytes": str(PULL_BYTES),
            "sysFlag": str(_HAS_SUBSCRIPTION),
            "commitOffset": "0",
            "suspendTimeoutMillis": "0",
            "subscription": "*",
            "subVersion": "0",
            "expressionType": "TAG",
        }
        answer = self._remote.ask(self.address, RequestCode.PULL_MESSAGE, fields)
        return memoryview(answer.body)


def bodies_of(records: memoryview, queue_id: int, offset: int) -> list[bytes]:
    """Return the bodies of consecutive stored messages, the first at `offset` of its queue.

    Reads by itself, not through the kernels that are being measured.

    Raises:
        ValueError: they are not consecutive, or a checksum is wrong.
    Source: storage.md §2.1 (RocketMQ MessageDecoder.java).
    """
    bodies: list[bytes] = []
    at = 0
    while at < len(records):
        size, magic, crc, stored_queue, _, stored_offset, _, sys_flag = _HEAD.unpack_from(records, at)
        place = (stored_queue, stored_offset)
        if magic not in _MAGICS or place != (queue_id, offset + len(bodies)):
            raise ValueError(f"queue {queue_id} has {place} where {offset + len(bodies)} should be")
        hosts = (20 if sys_flag & _BORN_HOST_V6 else 8) + (20 if sys_flag & _STORE_HOST_V6 else 8)
        body_at = at + 72 + hosts
        body = bytes(records[body_at : body_at + int.from_bytes(records[body_at - 4 : body_at], "big")])
        if zlib.crc32(body) & 0x7FFF_FFFF != crc:
            raise ValueError(f"queue {queue_id}, offset {stored_offset}: the checksum is wrong")
        bodies.append(body)
        at += size
    return bodies
