"""One big store goes from us to the official broker and back: nothing lost, added or reordered.

Each broker in its turn reads every queue from its beginning, finds messages by key, by unique key and by id,
knows the offsets that the other one was told, and writes more.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest
from faults.small_store import FOREVER_MS
from interop import rocketmq
from interop.test_store_java import java_broker
from interop.wire_client import WireClient
from server_process import running

from actormq.kernels import records
from actormq.store.identifiers import parse_offset_message_id
from actormq.wire import batch

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1800)]

TOPICS, QUEUES, ROUNDS = 50, 8, 3
SIZES = {
    "mappedFileSizeCommitLog": 16 << 20,
    "mappedFileSizeConsumeQueue": 300 * 20,
    "maxHashSlotNum": 50_000,
    "maxIndexNum": 200_000,
    "flushDiskType": "ASYNC_FLUSH",
    "defaultTopicQueueNums": QUEUES,
    "maxMessageSize": 1 << 20,
}
BATCHES, ITEMS, SINGLES = 2, 41, 2
SAMPLE = 500
"""One of so many messages is asked for by its key and its id."""

Queue = tuple[str, int]
ALL = list(product((f"topic-{number}" for number in range(TOPICS)), range(QUEUES)))


@dataclass
class Told:
    """What was acknowledged, by either."""

    bodies: dict[Queue, list[bytes]] = field(default_factory=lambda: {queue: [] for queue in ALL})
    ids: list[tuple[str, bytes]] = field(default_factory=list)
    keys: list[tuple[str, str, str, bytes]] = field(default_factory=list)
    """Topic, key, unique key and body."""
    committed: dict[Queue, int] = field(default_factory=dict)
    count: int = 0

    def message(self, queue: Queue) -> tuple[bytes, str]:
        """Make the next message of a queue: its body and properties."""
        self.count += 1
        body = f"{queue} {self.count} ".encode() + b"x" * (self.count % 90)
        key, unique = f"key-{self.count}", f"7F000001000018B4AAC2{self.count:012X}"
        if self.count % SAMPLE == 0:
            self.keys.append((queue[0], key, unique, body))
        self.bodies[queue].append(body)
        return body, f"TAGS\1tag-{self.count % 5}\2KEYS\1{key}\2UNIQ_KEY\1{unique}\2"


def write(client: WireClient, told: Told) -> None:
    """To every queue batches and single messages in turn."""
    for queue in ALL:
        for _ in range(BATCHES):
            items = [told.message(queue) for _ in range(ITEMS)]
            encoded = batch.encode([(0, body, properties.encode()) for body, properties in items])
            client.send(*queue, encoded, "", is_batch=True, queues=QUEUES)
        for _ in range(SINGLES):
            body, properties = told.message(queue)
            answer = client.send(*queue, body, properties, queues=QUEUES)
            assert int(answer.fields["queueOffset"]) == len(told.bodies[queue]) - 1
            told.ids.append((answer.fields["msgId"], body))


def read(client: WireClient, told: Told) -> None:
    """Every queue has what was told, in order, from offset 0 to its end."""
    for (topic, queue_id), expected in told.bodies.items():
        got: list[bytes] = []
        while data := client.pull(topic, queue_id, len(got))[0]:
            at = 0
            while at < len(data):
                header = records.decode(data, at, True)
                assert header.queue_offset == len(got)
                got.append(data[header.body_at : header.body_at + header.body_size])
                at += header.total_size
        assert got == expected, (topic, queue_id)


def ask(client: WireClient, told: Told) -> None:
    """By key, by unique key, by the broker's id, by tag."""
    for topic, key, unique, body in told.keys:
        for name, is_unique in ((key, "false"), (unique, "true")):
            fields = {
                "topic": topic, "key": name, "maxNum": 32, "beginTimestamp": 0, "endTimestamp": FOREVER_MS,
                "_UNIQUE_KEY_QUERY": is_unique,
            }  # fmt: skip
            assert only_body(client.call(12, fields).body) == body, name
    for message_id, body in told.ids[:: SAMPLE // 10]:
        _, _, log_offset = parse_offset_message_id(message_id)
        assert only_body(client.call(33, {"offset": log_offset}).body) == body, message_id

    for number in range(0, TOPICS, 7):
        fields = {
            "topic": f"topic-{number}", "key": "tag-3", "indexType": "T", "maxNum": 32, "beginTimestamp": 0,
            "endTimestamp": FOREVER_MS,
        }  # fmt: skip
        found = bytes(client.call(12, fields).body or b"")
        at = messages = 0
        while at < len(found):
            header = records.decode(found, at, True)
            assert (header.topic, b"TAGS\1tag-3\2" in header.properties) == (f"topic-{number}".encode(), True)
            at += header.total_size
            messages += 1
        assert messages == 32


def only_body(data: bytes | memoryview | None) -> bytes:
    found = bytes(data or b"")
    header = records.decode(found, 0, True)
    assert header.total_size == len(found), "one message"
    return found[header.body_at : header.body_at + header.body_size]


def commit(client: WireClient, told: Told) -> None:
    """The group's offsets are those that the other broker was told; then they go on."""
    for number, queue in enumerate(ALL):
        fields: dict[str, object] = {"consumerGroup": "reader", "topic": queue[0], "queueId": queue[1]}
        if queue in told.committed:
            answer = client.call(14, fields)
            assert (answer.code, answer.fields["offset"]) == (0, str(told.committed[queue])), queue
        told.committed[queue] = len(told.bodies[queue]) - number % 7
        assert client.call(15, fields | {"commitOffset": told.committed[queue]}).code == 0


@contextmanager
def our_broker(root: Path) -> Iterator[WireClient]:
    """Ours, by a broker.conf with the same sizes."""
    conf = root.parent / "broker.conf"
    keys = SIZES | {"brokerName": "java-broker", "storePathRootDir": root, "brokerIP1": "127.0.0.1"}
    conf.write_text("".join(f"{key}={value}\n" for key, value in keys.items()))
    with running(root.parent, "broker", "-c", str(conf), "--port", "0") as server:
        client = WireClient(int(server.words["broker"].rpartition(":")[2]))
        yield client
        client.close()
    assert server.process.returncode == 0, server.log.read_text()


def turn(client: WireClient, told: Told) -> None:
    """What was there before is there; more comes; all of it is there."""
    if told.count:
        read(client, told)
        ask(client, told)
        commit(client, told)
    write(client, told)


def test_three_rounds(tmp_path: Path) -> None:
    """200,000 messages in 400 queues; at the end both have read all of them."""
    rocketmq.require_java()
    root = tmp_path / "store"
    told = Told()
    for _ in range(ROUNDS):
        with our_broker(root) as ours:
            turn(ours, told)
        with java_broker(root, signal.SIGTERM, **SIZES) as java:
            turn(java, told)
    with our_broker(root) as ours:
        read(ours, told)
        ask(ours, told)
        commit(ours, told)
    assert sum(map(len, told.bodies.values())) >= 200_000
