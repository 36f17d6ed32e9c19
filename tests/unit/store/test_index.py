"""Index files: keys found by time and number, files rolled, RocketMQ's layout byte for byte."""

from __future__ import annotations

import errno
import random
import struct
from pathlib import Path

import pytest
from faults.disks import FailingDisk, MemoryDisk

from actormq.errors import StoreForeign
from actormq.message import java_hash
from actormq.store import index
from actormq.store.index import (
    IndexReader,
    IndexWriter,
    file_bytes,
    key_hash,
    new_name,
    pack_key,
    read_header,
)

FOLDER = Path("/store/index")
SLOTS, ENTRIES = 10, 20
NOW = 1_700_000_000_000


def new(disk: MemoryDisk) -> tuple[IndexWriter, IndexReader]:
    disk.mkdir(FOLDER)
    return IndexWriter(disk, FOLDER, SLOTS, ENTRIES), IndexReader(disk, FOLDER, SLOTS, ENTRIES)


def put(writer: IndexWriter, keys: list[str], start: int = 0) -> int | None:
    units = b"".join(
        pack_key("t", key, 1000 + 100 * number, NOW + 1000 * number) for number, key in enumerate(keys, start)
    )
    return writer.put(units, NOW)


def test_the_bytes_of_a_file() -> None:
    """Header, slot and entry as storage reference §6 has them; entries are counted from 1."""
    disk = MemoryDisk()
    writer, _ = new(disk)
    put(writer, ["a", "b"])
    (name,) = disk.listdir(FOLDER)
    data = bytes(disk.names[FOLDER / name].data)
    assert len(data) == 40 + 4 * SLOTS + 20 * ENTRIES == file_bytes(SLOTS, ENTRIES)
    assert struct.unpack(">qqqqii", data[:40]) == (NOW, NOW + 1000, 1000, 1100, 2, 3)
    hashes = [abs(java_hash(f"t#{key}")) for key in "ab"]
    for number, value in enumerate(hashes, 1):
        assert struct.unpack_from(">i", data, 40 + value % SLOTS * 4) == (number,)
        entry = struct.unpack_from(">iqii", data, 40 + 4 * SLOTS + 20 * number)
        assert entry == (value, 900 + 100 * number, number - 1, 0)
    assert not any(data[40 + 4 * SLOTS : 40 + 4 * SLOTS + 20])


def test_the_hash_without_an_absolute_value_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_hash("x", "y") == abs(java_hash("x#y"))
    monkeypatch.setattr(index, "java_hash", lambda text: -(2**31))
    assert key_hash("x", "y") == 0


def test_query_finds_every_key_over_many_files() -> None:
    """The newest first, over rolls; a new file begins where the one before it ended."""
    disk = MemoryDisk()
    writer, reader = new(disk)
    keys = [f"k{number % 25}" for number in range(90)]
    for start in range(0, 90, 7):
        put(writer, keys[start : start + 7], start)
    names = disk.listdir(FOLDER)
    assert len(names) == 5
    for wanted in range(25):
        expected = [1000 + 100 * number for number in range(90) if number % 25 == wanted]
        found = reader.query("t", f"k{wanted}", 0, 1 << 60, 64)
        assert [offset for offset in found if offset in expected] == expected[::-1]
        assert reader.query("t", f"k{wanted}", 0, 1 << 60, 2) == found[:2]
    headers = [read_header(disk.names[FOLDER / name].data) for name in names]
    assert all(each.next_number == ENTRIES for each in headers[:-1])


def test_query_by_time() -> None:
    disk = MemoryDisk()
    writer, reader = new(disk)
    put(writer, ["k"] * 60)
    for begin, end in ((0, 10), (5, 17), (17, 59), (58, 100), (70, 80)):
        found = reader.query("t", "k", NOW + begin * 1000, NOW + end * 1000, 64)
        assert found == [1000 + 100 * n for n in range(59, -1, -1) if begin <= n <= end]


def test_a_full_file_is_durable_and_gives_its_time() -> None:
    disk = MemoryDisk()
    writer, _ = new(disk)
    assert put(writer, ["k"] * 19) is None
    assert put(writer, ["k"], 19) == NOW + 18_000
    after = disk.crash(random.Random(1))
    name = after.listdir(FOLDER)[0]
    assert read_header(after.names[FOLDER / name].data).next_number == 20


def test_names_rise_even_when_the_clock_does_not() -> None:
    assert len(new_name(NOW)) == 17
    disk = MemoryDisk()
    writer, _ = new(disk)
    for number in range(4):
        put(writer, ["k"] * 19, 19 * number)
    names = disk.listdir(FOLDER)
    assert names == sorted(set(names))
    assert len(names) == 4
    reopened = IndexWriter(disk, FOLDER, SLOTS, ENTRIES)
    assert reopened.name == names[-1]
    assert reopened.header.next_number == ENTRIES


def test_no_space_stores_nothing_and_may_be_tried_again() -> None:
    memory = MemoryDisk()
    memory.mkdir(FOLDER)
    disk = FailingDisk(memory, 2, errno.ENOSPC, kinds=["allocate"])
    writer = IndexWriter(disk, FOLDER, SLOTS, ENTRIES)
    with pytest.raises(OSError, match="injected"):
        put(writer, ["a", "b"])
    put(writer, ["a", "b"])
    assert writer.header.next_number == 3


def test_memory_is_given_back_as_the_file_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry's once, that of the slots, which all keys use, more seldom."""
    monkeypatch.setattr(index, "_ENTRIES_A_STEP", 4)
    monkeypatch.setattr(index, "_STEPS_A_ROUND", 3)
    given: list[tuple[int, int]] = []

    class Forgetting(MemoryDisk):
        def forget(self, view: memoryview, offset: int, length: int) -> None:
            given.append((offset, offset + length))

    writer, _ = new(Forgetting())
    for number in range(19):
        put(writer, [f"k{number}"], number)
    entries_at = 40 + 4 * SLOTS
    ends = [entries_at + 20 * number for number in (5, 9, 13, 17)]
    assert [end for _, end in given] == ends
    assert [start for start, _ in given] == [entries_at + 20, ends[0], 0, ends[2]]


def test_sync_newest_and_cut() -> None:
    disk = MemoryDisk()
    writer, reader = new(disk)
    assert index.sync_newest(disk, FOLDER, writer.size) == (0, 1)
    put(writer, ["a", "b"])
    name, following = index.sync_newest(disk, FOLDER, writer.size)
    assert (f"{name:017d}", following) == (writer.name, 3)
    put(writer, ["c", "d"], 2)
    index.cut(disk, FOLDER, writer.name, SLOTS, ENTRIES, following)
    assert [reader.query("t", key, 0, 1 << 60, 9) for key in "abcd"] == [[1000], [1100], [], []]


def test_damaged_chains_end() -> None:
    """A link forward, to itself or out of the file ends the walk; so does an impossible number in a slot."""
    disk = MemoryDisk()
    writer, reader = new(disk)
    put(writer, ["k"] * 10)
    data = disk.names[FOLDER / writer.name].data
    slot = 40 + key_hash("t", "k") % SLOTS * 4
    for previous in (5, 6, 1 << 30, -1):
        struct.pack_into(">i", data, 40 + 4 * SLOTS + 5 * 20 + 16, previous)
        assert reader.query("t", "k", 0, 1 << 60, 64) == [1900, 1800, 1700, 1600, 1500, 1400]
    for number in (0, -5, 11, 1 << 30):
        struct.pack_into(">i", data, slot, number)
        assert reader.query("t", "k", 0, 1 << 60, 64) == []


def test_foreign_files_are_refused() -> None:
    disk = MemoryDisk()
    disk.mkdir(FOLDER)
    disk.extend(disk.open(FOLDER / new_name(NOW), create=True), 100)
    with pytest.raises(StoreForeign, match="100 bytes"):
        IndexWriter(disk, FOLDER, SLOTS, ENTRIES)
    disk.unlink(FOLDER / new_name(NOW))
    disk.open(FOLDER / "x", create=True)
    with pytest.raises(StoreForeign, match="17 digits"):
        IndexReader(disk, FOLDER, SLOTS, ENTRIES).query("t", "k", 0, 1, 1)
