"""One store, two brokers: what the official broker (5.5.0) writes we read, and the other way round.

Several rounds on the same folder, clean stops and kills on both sides; after each one everything that was
ever stored is there, in order, found by queue, by offset id and by key, and our bytes for it are Java's.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults.small_store import FOREVER_MS, Message, SmallStore, read_log, small_config
from interop import rocketmq
from interop.wire_client import WireClient

from actormq.kernels import records
from actormq.message import java_hash
from actormq.store import checkpoint, index, tables
from actormq.store.commit_log import LogReader
from actormq.store.consume_queue import QueueReader
from actormq.store.disk import RealDisk
from actormq.store.identifiers import parse_offset_message_id
from actormq.store.index import IndexReader
from actormq.store.recovery import RecoveredStore
from actormq.wire import batch

pytestmark = pytest.mark.interop

LOG_FILE = 1 << 20
QUEUE_ENTRIES = 200
SLOTS, ENTRIES = 500, 2000
LEVELS = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"
DELAY_MS = [
    1000,
    5000,
    10_000,
    30_000,
    *(60_000 * n for n in range(1, 11)),
    1_200_000,
    1_800_000,
    3_600_000,
    7_200_000,
]


@contextmanager
def java_broker(root: Path, end: signal.Signals, **sizes: object) -> Iterator[WireClient]:
    """The official broker on this store; `end` is how it ends."""
    port = rocketmq.free_port(-2, 1)
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder) / "broker.conf"
        keys: dict[str, object] = {
            "brokerClusterName": "DefaultCluster",
            "brokerName": "java-broker",
            "brokerId": 0,
            "brokerIP1": "127.0.0.1",
            "listenPort": port,
            "haListenPort": port + 1,
            "storePathRootDir": root,
            "storePathCommitLog": root / "commitlog",
            "mappedFileSizeCommitLog": LOG_FILE,
            "mappedFileSizeConsumeQueue": QUEUE_ENTRIES * 20,
            "maxHashSlotNum": SLOTS,
            "maxIndexNum": ENTRIES,
            "maxMessageSize": 300_000,
            "timerWheelEnable": "false",
            "flushDiskType": "SYNC_FLUSH",
            "autoCreateTopicEnable": "true",
            "namesrvAddr": "127.0.0.1:1",
            **sizes,
        }
        conf.write_text("".join(f"{key}={value}\n" for key, value in keys.items()))
        log = Path(folder) / "broker.out"
        process = rocketmq._serve("org.apache.rocketmq.broker.BrokerStartup", "384m", conf, log=log)
        try:
            try:
                rocketmq.wait_port(port, 60)
            except TimeoutError:
                raise AssertionError(log.read_text()[-3000:]) from None
            yield WireClient(port)
        finally:
            process.send_signal(end)
            process.wait(60)


class Told:
    """What was stored, by either side: queue → bodies in order; and by key."""

    def __init__(self) -> None:
        self.queues: dict[tuple[str, int], list[bytes]] = {}
        self.ids: list[tuple[str, bytes]] = []
        self.keys: list[tuple[str, str, bytes]] = []

    def add(self, topic: str, queue_id: int, body: bytes) -> int:
        bodies = self.queues.setdefault((topic, queue_id), [])
        bodies.append(body)
        return len(bodies) - 1


def java_writes(java: WireClient, told: Told, start: int, count: int) -> None:
    """Single messages with tags and keys, batches, delayed ones."""
    for number in range(start, start + count):
        topic, queue_id = f"J{number % 3}", number % 2
        body = f"java {number} ".encode() + b"x" * (number % 50 * 200)
        unique = f"7F000001000018B4AAC2{number:012X}"
        properties = (
            f"TAGS\1tag-{number % 5}-ü\2KEYS\1key-{number} k{number % 7}\2UNIQ_KEY\1{unique}\2WAIT\1true"
        )
        if number % 11 == 10:
            items = [
                (5, b"item %d %d" % (number, item), f"KEYS\1b{number}-{item}\2".encode()) for item in range(3)
            ]
            java.send(topic, queue_id, batch.encode(items), "", is_batch=True)
            for _, item_body, _ in items:
                told.add(topic, queue_id, item_body)
        elif number % 13 == 12:
            java.send(topic, queue_id, body, properties + "\2DELAY\x0118\2")
            told.add("SCHEDULE_TOPIC_XXXX", 17, body)
        else:
            answer = java.send(topic, queue_id, body, properties)
            assert int(answer.fields["queueOffset"]) == told.add(topic, queue_id, body)
            told.ids.append((answer.fields["msgId"], body))
            told.keys.append((topic, f"key-{number}", body))


def java_finds_keys(java: WireClient, told: Told) -> None:
    """By key, in index files that both have written."""
    for topic, key, body in told.keys[:: len(told.keys) // 20]:
        fields = {"topic": topic, "key": key, "maxNum": 32, "beginTimestamp": 0, "endTimestamp": FOREVER_MS}
        answer = java.call(12, fields)
        assert answer.code == 0, key
        found = bytes(answer.body)
        assert body in found, key


def java_reads(java: WireClient, told: Told) -> None:
    """Every queue from its beginning, bodies in order; the last messages by id."""
    for (topic, queue_id), bodies in told.queues.items():
        got: list[bytes] = []
        offset = 0
        while len(got) < len(bodies):
            data, offset = java.pull(topic, queue_id, offset)
            assert data, f"{topic} {queue_id}: {len(got)} of {len(bodies)}"
            at = 0
            while at < len(data):
                header = records.decode(data, at, True)
                assert header.queue_offset == len(got)
                got.append(data[header.body_at : header.body_at + header.body_size])
                at += header.total_size
        assert got == bodies
    for message_id, body in told.ids[-5:]:
        _, _, log_offset = parse_offset_message_id(message_id)
        answer = java.call(33, {"offset": log_offset})
        header = records.decode(bytes(answer.body), 0)
        assert bytes(answer.body)[header.body_at : header.body_at + header.body_size] == body


def we_read(config: Any, found: RecoveredStore, told: Told) -> None:
    """Log, queues and index say what was told, and every byte is the one that we would have written."""
    disk = RealDisk()
    log = read_log(disk, found, config)
    reader = LogReader(disk, config.root / "commitlog", LOG_FILE)
    bodies: dict[tuple[str, int], dict[int, bytes]] = {}
    index_reader = IndexReader(disk, config.root / index.FOLDER, SLOTS, ENTRIES)
    queue_reader = QueueReader(disk, config.root / "consumequeue", QUEUE_ENTRIES)
    for header in log:
        stored = bytes(reader.view(header.physical_offset, header.total_size))
        body = stored[header.body_at - header.physical_offset % LOG_FILE :][: header.body_size]
        assert encoded_by_us(header, body) == stored
        queue = (header.topic.decode(), header.queue_id)
        bodies.setdefault(queue, {})[header.queue_offset] = body
        log_offset, size, code = queue_reader.entry(*queue, header.queue_offset)
        assert (log_offset, size) == (header.physical_offset, header.total_size)
        properties = dict(item.split("\1") for item in header.properties.decode().split("\2") if item)
        if queue[0] == "SCHEDULE_TOPIC_XXXX":
            assert code == header.store_timestamp + DELAY_MS[17]
        else:
            assert code == (java_hash(properties["TAGS"]) if "TAGS" in properties else 0)
        keys = [properties[key] for key in ("UNIQ_KEY",) if key in properties] + properties.get(
            "KEYS", ""
        ).split()
        for key in keys:
            if key.startswith("k") and len(key) == 2:
                continue
            assert header.physical_offset in index_reader.query(queue[0], key, 0, FOREVER_MS, 64), key
    for queue, expected in told.queues.items():
        assert bodies[queue] == dict(enumerate(expected)), queue
        assert found.queues[queue].max == len(expected)


def encoded_by_us(header: records.Header, body: bytes) -> bytes:
    out = bytearray(header.total_size)
    records.encode(
        out,
        0,
        queue_id=header.queue_id,
        queue_offset=header.queue_offset,
        physical_offset=header.physical_offset,
        store_timestamp=header.store_timestamp,
        store_host=header.store_host,
        topic=header.topic,
        body=body,
        properties=header.properties,
        flag=header.flag,
        sys_flag=header.sys_flag,
        born_timestamp=header.born_timestamp,
        born_host=header.born_host,
        reconsume_times=header.reconsume_times,
        prepared_offset=header.prepared_offset,
    )
    return bytes(out)


def our_life(
    config: Any, told: Told, first_number: int, count: int, *, stop: bool, rebuild: bool = False
) -> SmallStore:
    """Recover, compare, write more; stop cleanly or just let go."""
    store = SmallStore(RealDisk(), config, 3000, delay_ms=DELAY_MS, rebuild=rebuild)
    we_read(config, store.found, told)
    store.last_timestamp = store.now_ms = int(time.time() * 1000)
    messages = [
        Message(number, f"J{number % 3}", number % 2) for number in range(first_number, first_number + count)
    ]
    for message in messages:
        store.append([message])
        told.add(message.topic, message.queue_id, message.body(3000))
        told.keys.append((message.topic, message.key, message.body(3000)))
    if stop:
        store.stop()
    else:
        store.sync()
        store.dispatch()
    store.log.close()
    store.queue_files.close()
    store.index.close()
    return store


def test_one_store_for_both_brokers(tmp_path: Path) -> None:
    """Java, we, Java (killed), we (killed), Java, we."""
    rocketmq.require_java()
    root = tmp_path / "store"
    config = small_config(
        root,
        log_file_bytes=LOG_FILE,
        queue_file_entries=QUEUE_ENTRIES,
        index_slots=SLOTS,
        index_entries=ENTRIES,
    )
    told = Told()
    with java_broker(root, signal.SIGTERM) as java:
        java_writes(java, told, 0, 400)
        java_reads(java, told)
        java_finds_keys(java, told)
    topics = tables.load(RealDisk(), root / "config" / tables.TOPICS)
    assert {"J0", "J1", "J2"} <= set(tables.topic_names(topics))
    assert checkpoint.read(RealDisk(), root / checkpoint.NAME).log_timestamp > 0
    store = our_life(config, told, 1000, 600, stop=True)
    assert store.found.clean
    with java_broker(root, signal.SIGKILL) as java:
        java_reads(java, told)
        java_finds_keys(java, told)
        java_writes(java, told, 2000, 300)
        java_reads(java, told)
    store = our_life(config, told, 3000, 500, stop=False)
    assert not store.found.clean
    with java_broker(root, signal.SIGTERM) as java:
        java_reads(java, told)
        java_writes(java, told, 4000, 200)
    # After our kill RocketMQ has thrown away the index file that was being written.
    store = our_life(config, told, 5000, 10, stop=True, rebuild=True)
    with java_broker(root, signal.SIGTERM) as java:
        java_reads(java, told)
        java_finds_keys(java, told)
    store = our_life(config, told, 6000, 10, stop=True)
    assert store.found.clean
    store = our_life(config, told, 7000, 0, stop=True)
    assert store.found.scanned_bytes == 0
