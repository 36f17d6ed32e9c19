"""Checkpoint, marks, JSON tables, identifiers, single records."""

from __future__ import annotations

import errno
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from faults.disks import FailingDisk, MemoryDisk
from hypothesis import given
from hypothesis import strategies as st

from actormq.errors import RequestError, StoreFailed, StoreForeign
from actormq.kernels import records
from actormq.store import checkpoint, marks, record, tables
from actormq.store.checkpoint import Checkpoint
from actormq.store.identifiers import (
    UniqueKeys,
    month_bounds_ms,
    offset_message_id,
    pack_host,
    parse_offset_message_id,
    unique_key_time_ms,
    unpack_host,
)
from actormq.store.marks import Mark, QueueExtent

ROOT = Path("/store")
NUMBERS = st.integers(0, 2**62)


# Checkpoint.


@given(st.lists(NUMBERS, min_size=10, max_size=10))
def test_checkpoint_keeps_theirs_and_ours(numbers: list[int]) -> None:
    kept = Checkpoint(
        log_timestamp=numbers[0],
        queues_timestamp=numbers[1],
        index_timestamp=numbers[2],
        master_flushed_offset=numbers[3],
        confirm_offset=numbers[4],
        ours=True,
        log_flushed=numbers[5],
        queues_flushed=numbers[6],
        index_flushed=numbers[7],
        index_file=numbers[8],
        index_next=numbers[9],
    )
    data = checkpoint.encode(kept)
    assert len(data) == 4096
    assert struct.unpack_from(">qqqqq", data) == tuple(numbers[:5])
    assert checkpoint.decode(data) == kept


def test_ours_is_void_when_rocketmq_has_written_since() -> None:
    data = bytearray(checkpoint.encode(Checkpoint(log_timestamp=5, log_flushed=7)))
    assert checkpoint.decode(bytes(data)).log_flushed == 7
    struct.pack_into(">q", data, 0, 6)
    found = checkpoint.decode(bytes(data))
    assert (found.log_timestamp, found.log_flushed, found.ours) == (6, 0, False)
    assert checkpoint.decode(struct.pack(">qqq", 1, 2, 3)).index_timestamp == 3
    assert checkpoint.decode(b"") == Checkpoint()


def test_replay_begins_three_seconds_before_the_older_time() -> None:
    assert Checkpoint(log_timestamp=9000, queues_timestamp=8000).replay_from_ms == 5000
    assert Checkpoint(log_timestamp=2000, queues_timestamp=8000).replay_from_ms == 0


def test_checkpoint_file() -> None:
    disk = MemoryDisk()
    disk.mkdir(ROOT)
    path = ROOT / checkpoint.NAME
    assert checkpoint.read(disk, path) == Checkpoint()
    checkpoint.write(disk, path, Checkpoint(log_timestamp=1, log_flushed=2))
    assert checkpoint.read(disk, path).log_flushed == 2
    disk.extend(disk.open(path), 5000)
    with pytest.raises(StoreForeign, match="5000 bytes"):
        checkpoint.read(disk, path)


# Marks.

MARK = Mark(
    log_min=10,
    log_end=20,
    last_store_timestamp=30,
    queues={
        ("t", 0): QueueExtent(min=1, max=5, first_file_entry=0),
        ("ü", 3): QueueExtent(min=0, max=0, first_file_entry=0),
    },
)


def closed_store() -> MemoryDisk:
    disk = MemoryDisk()
    marks.create_abort(disk, ROOT, 42)
    marks.close_store(disk, ROOT, MARK, Checkpoint(log_flushed=20))
    return disk


def test_a_clean_stop_leaves_a_mark_and_no_abort() -> None:
    disk = MemoryDisk()
    assert not marks.has_abort(disk, ROOT)
    marks.create_abort(disk, ROOT, 42)
    assert bytes(disk.names[ROOT / "abort"].data) == b"42"
    disk = closed_store()
    assert not marks.has_abort(disk, ROOT)
    found = marks.read_clean(disk, ROOT)
    assert found is not None
    assert (found.log_min, found.log_end, found.queues) == (10, 20, MARK.queues)
    marks.remove_clean(disk, ROOT)
    assert marks.read_clean(disk, ROOT) is None


def test_the_mark_counts_only_while_nobody_has_written_since() -> None:
    """RocketMQ writes the checkpoint every second that it runs."""
    disk = closed_store()
    disk.names[ROOT / checkpoint.NAME].changed += 1
    assert marks.read_clean(disk, ROOT) is None
    disk = closed_store()
    disk.names[ROOT / marks.CLEAN].data[30] ^= 1
    assert marks.read_clean(disk, ROOT) is None
    disk = closed_store()
    disk.unlink(ROOT / checkpoint.NAME)
    assert marks.read_clean(disk, ROOT) is None


def test_abort_goes_last() -> None:
    """A stop that dies in between is an unclean stop."""
    for fail_at in range(1, 30):
        memory = MemoryDisk()
        marks.create_abort(memory, ROOT, 42)
        disk = FailingDisk(memory, fail_at)
        try:
            marks.close_store(disk, ROOT, MARK, Checkpoint())
        except OSError:
            assert marks.has_abort(memory, ROOT) or disk.failed == "fsync_dir"
        else:
            assert fail_at > 5
            return


# Tables.

PATH = ROOT / "config" / "topics.json"


def write(disk: MemoryDisk, path: Path, text: bytes) -> None:
    disk.mkdir(path.parent)
    if disk.exists(path):
        disk.unlink(path)
    disk.pwritev(disk.open(path, create=True), [text], 0)


def test_save_and_load() -> None:
    """The old table becomes the .bak; integer keys are quoted, which RocketMQ reads, too."""
    disk = MemoryDisk()
    assert tables.load(disk, PATH) is None
    tables.save(disk, PATH, {"a": 1})
    tables.save(disk, PATH, {"offsetTable": {"t@g": {0: 12}}})
    assert tables.load(disk, PATH) == {"offsetTable": {"t@g": {"0": 12}}}
    stored = json.loads(bytes(disk.names[PATH].data))
    del stored[tables.CHECKSUM]
    assert stored == {"offsetTable": {"t@g": {"0": 12}}}
    assert disk.listdir(PATH.parent) == ["topics.json", "topics.json.bak"]
    assert json.loads(bytes(disk.names[PATH.with_name("topics.json.bak")].data))["a"] == 1


@pytest.mark.parametrize("name", tables.FILES)
def test_a_digit_that_is_another_one_is_noticed(name: str) -> None:
    """It is JSON as good as before; only the checksum tells.  Without one nothing is compared."""
    disk = MemoryDisk()
    path = PATH.with_name(name)
    tables.save(disk, path, {"offsetTable": {"t@g": {0: 12, 1: 7}, "a": {10: 1}}})
    text = bytes(disk.names[path].data)
    write(disk, path, text.replace(b" 12", b" 16"))
    with pytest.raises(StoreForeign, match=f"{name}: its checksum is not that of its content"):
        tables.load(disk, path)
    write(disk, path, text.replace(b" 12", b" 12 "))
    assert tables.load(disk, path) == {"offsetTable": {"t@g": {"0": 12, "1": 7}, "a": {"10": 1}}}
    write(disk, path, b'{"offsetTable": {"t@g": {"0": 16}}}')
    assert tables.load(disk, path) == {"offsetTable": {"t@g": {"0": 16}}}


@given(
    st.dictionaries(st.text(max_size=8), st.dictionaries(st.text(max_size=4), st.integers(0, 9), max_size=3))
)
def test_members_by_their_texts_make_the_same_file(topics: dict[str, dict[str, int]]) -> None:
    """A table of 10,000 topics is not made anew for each one that is added: no byte of it may differ."""
    disk, version = MemoryDisk(), {"counter": 3, "timestamp": 4, "stateVersion": 0}
    whole, by_texts = ROOT / "whole" / tables.TOPICS, ROOT / "texts" / tables.TOPICS
    values: dict[str, Any] = {
        name: {"perm": 6, "topicName": name, "attributes": value} for name, value in topics.items()
    }
    texts = tables.Members({name: tables.member_text(value) for name, value in values.items()})
    tables.save(disk, whole, {"dataVersion": version, "topicConfigTable": values})
    tables.save(disk, by_texts, {"dataVersion": version, "topicConfigTable": texts})
    assert disk.names[by_texts].data == disk.names[whole].data
    assert tables.load(disk, by_texts) == {"dataVersion": version, "topicConfigTable": values}


def test_fastjson_is_understood() -> None:
    disk = MemoryDisk()
    write(disk, PATH, b'{\n\t"offsetTable":{"t@g":{0:12,1:7}\n\t}\n}')
    assert tables.load(disk, PATH) == {"offsetTable": {"t@g": {"0": 12, "1": 7}}}


@pytest.mark.parametrize(
    "text", [b"", b"\0\0\0", b"{", b"[1]", b'"x"', b"{" * 5000, b'{"a":' * 2000, b"\xff\xfe"]
)
@pytest.mark.parametrize("name", tables.FILES)
def test_bad_text_falls_back_to_the_bak_or_is_refused(name: str, text: bytes) -> None:
    """Never deleted, never a traceback; and what is wrong is said."""
    disk = MemoryDisk()
    path = PATH.with_name(name)
    write(disk, path, text)
    if text.strip(b"\0"):
        with pytest.raises(StoreForeign, match=name):
            tables.load(disk, path)
    else:
        assert tables.load(disk, path) is None
    assert disk.exists(path)
    write(disk, path.with_name(name + ".bak"), b'{"dataVersion":{"counter":1}}')
    found = tables.look(disk, path)
    assert found.table == {"dataVersion": {"counter": 1}}
    assert str(path) in found.trouble


def test_one_of_two_is_whole_whatever_fails() -> None:
    for fail_at in range(1, 40):
        memory = MemoryDisk()
        tables.save(memory, PATH, {"n": 1})
        tables.save(memory, PATH, {"n": 2})
        disk = FailingDisk(memory, fail_at, short=True)
        try:
            tables.save(disk, PATH, {"n": 3})
        except StoreFailed:
            table = tables.load(memory, PATH)
            assert table is not None
            assert table["n"] in (2, 3)
        else:
            return


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failed_save_may_be_tried_again_or_stops_the_broker(number: int) -> None:
    """Again where there was no room: with a new file.  Never after a failed sync of the folder."""
    for fail_at in range(1, 40):
        memory = MemoryDisk()
        tables.save(memory, PATH, {"n": 1})
        disk = FailingDisk(memory, fail_at, number)
        try:
            tables.save(disk, PATH, {"n": 2})
        except StoreFailed:
            assert number == errno.EIO or disk.failed == "fsync_dir"
        except OSError:
            assert number != errno.EIO
            assert disk.failed != "fsync_dir"
            tables.save(disk, PATH, {"n": 3})
            for seed in range(10):
                assert tables.load(memory.crash(random.Random(seed)), PATH) == {"n": 3}
        else:
            assert fail_at > 5
            return


def test_progress_beyond_a_queues_end_is_clamped() -> None:
    """A queue that is gone ends at 0; numbers that are none stay."""
    table: dict[str, Any] = {
        "offsetTable": {"t@g": {"0": 12, "1": 7, "x": 3}, "gone@g": {"0": 5}, "t@h": {"0": 10}, "bad": 3}
    }
    clamped = tables.clamp_consumer_offsets(table, {("t", 0): 10, ("t", 1): 7})
    assert table["offsetTable"]["t@g"] == {"0": 10, "1": 7, "x": 3}
    assert table["offsetTable"]["gone@g"] == {"0": 0}
    assert [(each.whose, each.topic, each.queue_id, each.stored, each.end) for each in clamped] == [
        ("g", "t", 0, 12, 10),
        ("g", "gone", 0, 5, 0),
    ]
    delays: dict[str, Any] = {"offsetTable": {"1": 100, "18": 3}}
    found = tables.clamp_delay_offsets(delays, "S", {("S", 0): 40, ("S", 17): 3})
    assert delays == {"offsetTable": {"1": 40, "18": 3}}
    assert [(each.whose, each.queue_id) for each in found] == [("level 1", 0)]
    assert tables.clamp_consumer_offsets({}, {}) == []


# Identifiers.


def test_offset_message_ids() -> None:
    """Address, port and log offset in upper-case hex, 32 or 56 characters."""
    host = pack_host("127.0.0.1", 10911)
    assert offset_message_id(host, 1234) == "7F00000100002A9F00000000000004D2"
    assert parse_offset_message_id("7F00000100002A9F00000000000004D2") == ("127.0.0.1", 10911, 1234)
    host = pack_host("::1", 10911)
    assert len(offset_message_id(host, 1)) == 56
    assert parse_offset_message_id(offset_message_id(host, 1)) == ("::1", 10911, 1)
    assert unpack_host(host) == ("::1", 10911)


@pytest.mark.parametrize("text", ["", "7F", "Z" * 32, "0" * 31, "0" * 40, " " * 32])
def test_other_ids_are_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse_offset_message_id(text)


@given(st.integers(0, 4_000_000_000_000), st.sampled_from((bytes(4), bytes(16))))
def test_unique_keys_tell_their_time(wall_ms: int, address: bytes) -> None:
    keys = UniqueKeys(address, 70_000, -5)
    made = [keys.new(wall_ms) for _ in range(3)]
    assert len(set(made)) == 3
    assert {len(key) for key in made} == {32 if len(address) == 4 else 56}
    assert made[0].upper() == made[0]
    # RocketMQ takes the last month in which the time has passed.
    assert unique_key_time_ms(made[0], wall_ms + 1) == wall_ms
    begin, end = month_bounds_ms(wall_ms)
    assert begin <= wall_ms < end


# Records.


def test_a_record_is_decoded_with_names_and_types() -> None:
    out = bytearray(400)
    records.encode(
        out,
        10,
        queue_id=3,
        queue_offset=4,
        physical_offset=5,
        store_timestamp=6,
        store_host=pack_host("10.0.0.1", 10911),
        born_host=pack_host("::1", 7),
        topic=b"topic",
        body=b"body",
        properties=b"TAGS\1a\2KEYS\1k l\2",
        flag=8,
    )
    found = record.decode(memoryview(out), 10, check_crc=True)
    assert (found.topic, found.queue_id, found.queue_offset, found.log_offset) == ("topic", 3, 4, 5)
    assert (found.born_host, found.store_host) == (("::1", 7), ("10.0.0.1", 10911))
    assert found.properties == {"TAGS": "a", "KEYS": "k l"}
    assert bytes(found.body) == b"body"
    assert found.body_crc == zlib.crc32(b"body") & 0x7FFFFFFF
    assert found.message_id == "0A00000100002A9F0000000000000005"
    with pytest.raises(record.BadRecord, match="no record"):
        record.decode(memoryview(out), 11)
