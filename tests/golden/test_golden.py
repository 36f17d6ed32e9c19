"""What the official broker wrote is what we read, and what we would have written."""

from __future__ import annotations

import base64
import shutil
from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from golden.stores import NAMES, Golden, body_of, host_of, unpack
from store_rig import MemoryPort

from actormq.kernels import records
from actormq.kernels.batches import BatchEncoder, Stop
from actormq.kernels.queues import ENTRY
from actormq.kernels.rings import HEAD, TAIL, RingProducer
from actormq.message import PropertyKey, decode_properties, tags_code
from actormq.shm.append_port import REQUEST
from actormq.shm.extents import Extents
from actormq.store import checkpoint, index, marks, record, tables
from actormq.store.batch_queue import BatchQueues
from actormq.store.consume_queue import Boundary, QueueReader
from actormq.store.disk import RealDisk
from actormq.store.finding import NO_TIME, Finder
from actormq.store.identifiers import pack_host
from actormq.store.index import IndexReader
from actormq.store.log_scan import find_end
from actormq.store.queue_ext import QueueExtensions
from actormq.store.recovery import recover
from actormq.store.tools.backup import backup, restore
from actormq.store.tools.inspecting import inspect
from actormq.store.tools.layout import find_layout
from actormq.store.tools.rebuilding import rebuild as made_anew
from actormq.store.tools.verifying import verify
from actormq.wire import json

DISK = RealDisk()
LEVEL_18_MS = 7_200_000
DELAY_MS = [1000] * 17 + [LEVEL_18_MS]
FOREVER_MS = 1 << 60
PLAIN = [name for name in NAMES if name.endswith(("plain", "crc"))]


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    """Each of the stores."""
    return unpack(request.param, tmp_path)


@pytest.fixture(params=PLAIN)
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    """Each of the stores that have ordinary queues only."""
    return unpack(request.param, tmp_path)


def test_there_is_one_of_each_kind() -> None:
    assert NAMES == [
        "rocketmq-4-plain",
        "rocketmq-5-batch",
        "rocketmq-5-crc",
        "rocketmq-5-ext",
        "rocketmq-5-plain",
    ]


def test_every_field_of_every_record(golden: Golden) -> None:
    """As Java's MessageDecoder and DispatchRequest give them, from the first record to the last."""
    reader = golden.log
    found = find_end(reader, sorted(files(golden)), 0, 0, records.CRC_CHECK)
    assert not found.damages
    at = 0
    for java in golden.said["records"]:
        base = java["logOffset"] - java["logOffset"] % reader.file_bytes
        assert java["logOffset"] in (at, base), "a record, or a blank one and then a record"
        ours = record.decode(reader.file(base), java["logOffset"] - base, check_crc=True)
        assert fields(ours) == {key: java[key] for key in fields(ours)}
        assert (ours.born_host, ours.store_host) == (host_of(java["bornHost"]), host_of(java["storeHost"]))
        assert ours.properties == java["properties"]
        assert bytes(ours.body) == body_of(java)
        assert ours.properties.get("KEYS") == (java.get("keys") or None)
        assert ours.properties.get("UNIQ_KEY") == java.get("uniqKey")
        if not is_delayed(ours.topic):
            assert tags_code(ours.properties.get("TAGS")) == java["tagsCode"]
        at = ours.log_offset + ours.size
    assert found.end == at


def files(golden: Golden) -> list[int]:
    return [int(path.name) for path in (golden.root / "commitlog").iterdir()]


def fields(ours: record.Record) -> dict[str, Any]:
    return {
        "topic": ours.topic,
        "queueId": ours.queue_id,
        "queueOffset": ours.queue_offset,
        "logOffset": ours.log_offset,
        "size": ours.size,
        "flag": ours.flag,
        "sysFlag": ours.sys_flag,
        "bornTimestamp": ours.born_timestamp,
        "storeTimestamp": ours.store_timestamp,
        "reconsumeTimes": ours.reconsume_times,
        "preparedOffset": ours.prepared_offset,
        "bodyCrc": ours.body_crc,
        "messageId": ours.message_id,
    }


def is_delayed(topic: str) -> bool:
    return topic == "SCHEDULE_TOPIC_XXXX"


def test_every_entry_of_every_queue(plain: Golden) -> None:
    reader = QueueReader(DISK, plain.root / "consumequeue", plain.config.queue_file_entries)
    for queue in plain.said["queues"]:
        assert queue["entries"]
        for entry in queue["entries"]:
            found = reader.entry(queue["topic"], queue["queueId"], entry["queueOffset"])
            assert found == (entry["logOffset"], entry["size"], entry["tagsCode"])


def test_every_unit_of_every_extension(tmp_path: Path) -> None:
    """Codes as Java reads them through its queues; a lost file leaves the addresses, which say nothing."""
    golden = unpack("rocketmq-5-ext", tmp_path)
    reader = QueueReader(DISK, golden.root / "consumequeue", golden.config.queue_file_entries)
    extensions = QueueExtensions(DISK, golden.root)
    for queue in golden.said["queues"]:
        name = queue["topic"], queue["queueId"]
        assert extensions.has(queue["topic"])
        stored = reader.view(*name, 0, len(queue["entries"]))
        assert all(code < -(1 << 31) for _, _, code in ENTRY.iter_unpack(stored))
        assert list(ENTRY.iter_unpack(extensions.resolve(*name, stored))) == [
            (entry["logOffset"], entry["size"], entry["tagsCode"]) for entry in queue["entries"]
        ]
        shutil.rmtree(golden.root / "consumequeue_ext" / queue["topic"] / str(queue["queueId"]))
        assert extensions.resolve(*name, stored) == stored
    assert not extensions.has("without")


def test_the_index_answers_as_javas(golden: Golden) -> None:
    """Every key, and one that nobody has; newest first, and a hash that another key shares is no hit."""
    config = golden.config
    reader = IndexReader(DISK, golden.root / index.FOLDER, config.index_slots, config.index_entries)
    assert golden.said["keys"]
    for asked in golden.said["keys"]:
        found = reader.query(asked["topic"], asked["key"], 0, FOREVER_MS, 64)
        assert sorted(found) == sorted(asked["logOffsets"]), asked


def test_the_checkpoint(golden: Golden) -> None:
    known = checkpoint.read(DISK, golden.root / checkpoint.NAME)
    java = golden.said["checkpoint"]
    assert not known.ours
    assert (known.log_timestamp, known.queues_timestamp, known.index_timestamp) == (
        java["log"],
        java["queues"],
        java["index"],
    )
    if "confirmed" in java:
        assert (known.master_flushed_offset, known.confirm_offset) == (
            java["masterFlushed"],
            java["confirmed"],
        )


def test_our_records_are_javas(golden: Golden) -> None:
    """Every byte of the log, from what was handed to Java: messages, times, hosts."""
    writer = Rewriter(golden)
    for sent in golden.said["sent"]:
        if sent["sysFlag"] & 0x80 == 0 and sent["topic"] != "batched":
            writer.append(sent)


class Rewriter:
    """Our encoder, at the place and time of each of Java's appends."""

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        self.config = golden.config
        self.next: dict[tuple[str, int], int] = defaultdict(int)

    def append(self, sent: dict[str, Any]) -> None:
        """Encode one request and compare the records, and the blank one before them, if there is one."""
        base = sent["logOffset"] - sent["logOffset"] % self.config.log_file_bytes
        if sent["logOffset"] == base > 0:
            before = self.golden.log.file(base - self.config.log_file_bytes)
            blank_at = records.scan(before, 0, base - self.config.log_file_bytes).end
            assert self.encode(sent, base - self.config.log_file_bytes + blank_at) == Stop.FILE_FULL
            left = self.config.log_file_bytes - blank_at
            blank = bytearray(8)
            records.encode_blank(blank, 0, left)
            assert before[blank_at : blank_at + 8] == blank
        assert self.encode(sent, sent["logOffset"]) == self.golden.stored(sent["logOffset"], sent["bytes"])

    def encode(self, sent: dict[str, Any], log_offset: int) -> bytes | Stop:
        port = MemoryPort(request_capacity=1 << 20)
        rows = memoryview(bytearray(Extents.payload_bytes(1)))
        queue = (sent["topic"], sent["queueId"])
        Extents(rows).open_row(0, 1, 0, self.next[queue])
        encoder = BatchEncoder(
            rows,
            store_host=pack_host(*host_of(sent["storeHost"])),
            body_bytes_max=self.config.body_bytes_max,
            file_bytes=self.config.log_file_bytes,
            batch_bytes=1 << 20,
            read_log=lambda offset, size: None,
            record_crc=self.golden.said["kind"] == "crc",
        )
        file_end = (log_offset // self.config.log_file_bytes + 1) * self.config.log_file_bytes
        encoder.begin(log_offset, file_end, log_offset, sent["storeTimestamp"], False)
        assert RingProducer(port.requests).try_push(self.request(sent))
        cells = port.requests.cast("Q"), port.completions.cast("Q")
        *_, answered, stop = encoder.take(
            port.requests, cells[0][HEAD], port.completions, cells[1][TAIL], 1 << 20
        )
        if not answered:
            return Stop(stop)
        self.next[queue] = encoder.next_queue_offset(0)[1]
        return bytes(encoder.records)

    def request(self, sent: dict[str, Any]) -> bytes:
        topic, body = sent["topic"].encode(), body_of(sent)
        properties = base64.b64decode(sent["properties"])
        is_batch = sent.get("batch", False)
        if is_batch and self.golden.said["version"].startswith("5"):
            properties = b""  # release line 5 forgets those of the batch itself
        born_host = pack_host(*host_of(sent["bornHost"]))
        header = REQUEST.pack(
            1, 0, 1, sent["queueId"], 2 if is_batch else 1, 1, sent["flag"], sent["sysFlag"],
            sent["reconsumeTimes"], len(body), sent["bornTimestamp"], sent["preparedOffset"], 0,
            len(topic), len(properties), len(born_host), 0, 0,
        )  # fmt: skip
        return header + born_host + topic + properties + body


def test_recovery_opens_it_and_changes_nothing(plain: Golden) -> None:
    """As after a clean stop: queues and ends as Java says, no byte of log, queues and index another one."""
    before = contents(plain.root)
    found = recover(DISK, plain.config, wall_ms=1, pid=1, delay_ms=DELAY_MS)
    assert found.clean
    assert found.log_end == plain.said["records"][-1]["logOffset"] + plain.said["records"][-1]["size"]
    assert {key: (extent.min, extent.max) for key, extent in found.queues.items()} == {
        (queue["topic"], queue["queueId"]): (queue["min"], queue["max"]) for queue in plain.said["queues"]
    }
    assert contents(plain.root) == before


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in ("commitlog", "consumequeue", "index")
        for path in (root / folder).rglob("*")
        if path.is_file()
    }


def test_our_queues_and_index_are_javas(plain: Golden) -> None:
    """Made anew from Java's log alone, they have Java's bytes (release line 4 does not index tags)."""
    before = contents(plain.root)
    shutil.rmtree(plain.root / "consumequeue")
    (index_file,) = (plain.root / "index").iterdir()
    index_bytes = index_file.read_bytes()
    shutil.rmtree(plain.root / "index")
    recover(DISK, plain.config, wall_ms=1, pid=1, delay_ms=DELAY_MS, rebuild=True)
    (made,) = (plain.root / "index").iterdir()
    if plain.said["version"].startswith("5"):
        assert made.read_bytes() == index_bytes
    made.unlink()
    index_file.write_bytes(index_bytes)
    assert contents(plain.root) == before


@pytest.mark.parametrize("kept", [True, False])
def test_our_extensions_are_javas(tmp_path: Path, kept: bool) -> None:
    """Made anew from Java's log alone, or in place, units, marks and addresses have Java's bytes.

    In topics without SQL filters: where there are some, Java's units have a bitmap.
    """
    golden = unpack("rocketmq-5-ext", tmp_path)
    folders = [golden.root / name for name in ("consumequeue", "consumequeue_ext")]
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    config = replace(golden.config, queue_ext=True, queue_ext_file_bytes=1000)
    if not kept:
        for folder in folders:
            shutil.rmtree(folder)
    recover(DISK, config, wall_ms=1, pid=1, delay_ms=DELAY_MS, rebuild=True)
    same = {path for path in before if path.exists() and path.read_bytes() == before[path]}
    assert {path.parent.parent.name for path in same} == {"unfiltered", "SCHEDULE_TOPIC_XXXX"}
    assert {path for path in before if "filtered" not in path.parts} == same
    reader = QueueReader(DISK, folders[0], config.queue_file_entries)
    for queue in golden.said["queues"]:
        name = queue["topic"], queue["queueId"]
        found = QueueExtensions(DISK, golden.root).resolve(
            *name, reader.view(*name, 0, len(queue["entries"]))
        )
        assert [code for _, _, code in ENTRY.iter_unpack(found)] == [
            entry["tagsCode"] for entry in queue["entries"]
        ]
    assert verify(DISK, find_layout(DISK, golden.root), delay_ms=DELAY_MS).whole


def test_tables_are_written_back_whole(golden: Golden) -> None:
    """Every `config/*.json` is read, and what is written again says the same, unknown members included."""
    names = sorted(path.name for path in (golden.root / "config").glob("*.json"))
    assert {"topics.json", "subscriptionGroup.json", "consumerOffset.json", "delayOffset.json"} <= set(names)
    for name in names:
        path = golden.root / "config" / name
        before = json.loads(path.read_bytes())
        table = tables.load(DISK, path)
        assert table == before
        tables.save(DISK, path, table)
        assert tables.load(DISK, path) == before


@pytest.mark.parametrize("lost", ["some", "all", "none"])
def test_our_batch_queues_are_javas(tmp_path: Path, lost: str) -> None:
    """RocketMQ was killed before it had written them: they get Java's bytes, and nothing is left over."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    queue = golden.root / "batchconsumequeue" / "batched"
    before = {path: path.read_bytes() for path in sorted(queue.rglob("*")) if path.is_file()}
    assert len(before) == 4
    (golden.root / "abort").write_text("1")
    # Nothing says what was durable: all is dispatched again.
    (golden.root / checkpoint.NAME).write_bytes(bytes(4096))
    if lost == "all":
        shutil.rmtree(queue)
    elif lost == "some":
        last = max(before)
        last.write_bytes(before[last][: 3 * 46].ljust(len(before[last]), b"\0"))
    found = recover(DISK, golden.config, wall_ms=1, pid=1, delay_ms=DELAY_MS)
    assert {path: path.read_bytes() for path in sorted(queue.rglob("*")) if path.is_file()} == before
    assert {key: (extent.min, extent.max) for key, extent in found.queues.items()} == {
        (said["topic"], said["queueId"]): (said["min"], said["max"]) for said in golden.said["queues"]
    }
    assert not (golden.root / "consumequeue" / "batched").exists()


def test_batch_entries_of_a_lost_tail_are_cut(tmp_path: Path) -> None:
    golden = unpack("rocketmq-5-batch", tmp_path)
    (golden.root / "abort").write_text("1")
    (golden.root / checkpoint.NAME).write_bytes(bytes(4096))
    *kept, lost = [one for one in golden.said["records"] if one["queueId"] == 0]
    log = golden.root / "commitlog" / f"{0:020d}"
    data = bytearray(log.read_bytes())
    data[lost["logOffset"] :] = bytes(len(data) - lost["logOffset"])
    log.write_bytes(data)
    found = recover(DISK, golden.config, wall_ms=1, pid=1, delay_ms=DELAY_MS)
    assert found.queues["batched", 0].max == lost["queueOffset"]
    with BatchQueues(DISK, golden.root).queue("batched", 0) as queue:
        assert len(list(queue.since(0, FOREVER_MS))) == len(kept)


def test_unknown_items_of_properties_are_read_as_java_does() -> None:
    """Without a key, without a value, without the last separator, twice."""
    text = b"A\x01\x02\x01b\x02\x02TAGS\x01one\x02TAGS\x01two"
    assert decode_properties(text) == {PropertyKey.TAGS: "two"}


def test_every_entry_of_every_batch_queue(tmp_path: Path) -> None:
    """As Java's iterator gives them (of the first file), and one for each record."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    batches = BatchQueues(DISK, golden.root)
    assert sorted(batches.names()) == [("batched", 0), ("batched", 1)]
    for said in golden.said["queues"]:
        with batches.queue(said["topic"], said["queueId"]) as queue:
            found = list(queue.since(0, FOREVER_MS))
            bounds = queue.bounds(0, FOREVER_MS)
        assert (bounds.min, bounds.max) == (said["min"], said["max"])
        as_java_says = [
            {
                "queueOffset": entry.first,
                "logOffset": entry.log_offset,
                "size": entry.size,
                "tagsCode": entry.tags_code,
                "count": entry.messages,
            }
            for entry in found
        ]
        assert as_java_says[: len(said["entries"])] == said["entries"]
        stored = [java for java in golden.said["records"] if java["queueId"] == said["queueId"]]
        assert [
            (entry.log_offset, entry.first, entry.messages, entry.store_timestamp) for entry in found
        ] == [
            (
                java["logOffset"],
                java["queueOffset"],
                int(java["properties"].get("INNER_NUM", 1)),
                java["storeTimestamp"],
            )
            for java in stored
        ]


def test_batch_queues_are_searched_by_time(tmp_path: Path) -> None:
    """By the store times of their records; all messages of a batch are as old as it."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    with Finder(DISK, golden.config, 0, FOREVER_MS) as finder:
        for said in golden.said["queues"]:
            topic, queue_id, low, high = said["topic"], said["queueId"], said["min"], said["max"]
            times: list[int] = []
            for java in golden.said["records"]:
                if java["queueId"] == queue_id:
                    times += [java["storeTimestamp"]] * int(java["properties"].get("INNER_NUM", 1))
            assert len(times) == high - low
            for offset, time in enumerate(times, low):
                assert finder.store_time(topic, queue_id, offset, is_batch=True) == time
            assert finder.store_time(topic, queue_id, high, is_batch=True) == NO_TIME
            for time in sorted({at + near for at in times for near in (-1, 0, 1)}):
                search = partial(finder.offset_at, topic, queue_id, low, high, time, is_batch=True)
                assert search(boundary=Boundary.LOWER) == low + bisect_left(times, time)
                assert search(boundary=Boundary.UPPER) == max(low, low + bisect_right(times, time) - 1)


def test_recovery_opens_batch_queues_and_makes_no_others(tmp_path: Path) -> None:
    """Ordinary queues of such a topic would keep RocketMQ from starting; nor does a rebuild make them."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    for rebuild in (False, True):
        found = recover(DISK, golden.config, wall_ms=1, pid=1, delay_ms=DELAY_MS, rebuild=rebuild)
        assert {key: (extent.min, extent.max) for key, extent in found.queues.items()} == {
            (queue["topic"], queue["queueId"]): (queue["min"], queue["max"])
            for queue in golden.said["queues"]
        }
        assert not (golden.root / "consumequeue" / "batched").exists()


def test_batch_queues_after_our_clean_stop(tmp_path: Path) -> None:
    """They are trusted; one that has gone meanwhile is made anew."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    queue = golden.root / "batchconsumequeue/batched/1"
    before = {path: path.read_bytes() for path in queue.iterdir()}
    for is_lost in (False, True):
        found = recover(DISK, golden.config, wall_ms=1, pid=1, delay_ms=DELAY_MS)
        mark = marks.Mark(
            log_min=found.log_min,
            log_end=found.log_end,
            last_store_timestamp=found.last_store_timestamp,
            queues=found.queues,
        )
        marks.close_store(DISK, golden.root, mark, found.checkpoint)
        if is_lost:
            shutil.rmtree(queue)
        found = recover(DISK, golden.config, wall_ms=1, pid=1, delay_ms=DELAY_MS)
        assert any("made anew" in note for note in found.notes) == is_lost
        assert {path: path.read_bytes() for path in queue.iterdir()} == before


def test_the_tools_find_nothing_wrong(golden: Golden, tmp_path: Path) -> None:
    """What Java left is whole, its sizes are found; made anew, or backed up and restored, it is the same."""
    layout = find_layout(DISK, golden.root)
    sizes = golden.config
    assert layout.log_file_bytes == sizes.log_file_bytes
    if "batch" not in golden.name:
        assert layout.queue_file_entries == sizes.queue_file_entries
    assert (layout.index_slots, layout.index_entries) == (sizes.index_slots, sizes.index_entries)
    verdict = verify(DISK, layout, delay_ms=DELAY_MS)
    assert verdict.whole, verdict.report.findings
    facts = inspect(DISK, layout)
    assert facts.log.end == verdict.log_end
    backup(DISK, layout, tmp_path / "backup", share=False)
    options = {"delay_ms": DELAY_MS, "wall_ms": 1_700_000_000_000, "pid": 7}
    restore(DISK, tmp_path / "backup", tmp_path / "back", **options)
    made_anew(DISK, layout, **options)
    assert not (golden.root / "consumequeue_ext").exists()
    for root in (golden.root, tmp_path / "back"):
        again = verify(DISK, layout.at(root), delay_ms=DELAY_MS)
        assert again.whole, again.report.findings
        assert (again.records, again.queues) == (verdict.records, verdict.queues)
        assert again.index_entries == verdict.index_entries or "4" in golden.name  # which has no keys of tags
        assert inspect(DISK, layout.at(root)).queues == facts.queues
