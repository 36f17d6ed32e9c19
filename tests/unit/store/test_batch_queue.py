"""Batch consume queues: entries by queue offset, over files, as far as the log bears them out."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.disks import MemoryDisk

from actormq.store.batch_queue import ENTRY, ENTRY_BYTES, BatchQueues, is_batch_topic
from actormq.store.commit_log import file_name

ROOT = Path("/store")
PER_FILE = 4


def entry(number: int) -> bytes:
    """Record `number` has `number % 3 + 1` messages and lies at 100 × number."""
    first = sum(before % 3 + 1 for before in range(number))
    return ENTRY.pack(100 * number, 100, number % 2, 1000 + number, first, number % 3 + 1, -1, 0)


def queues(count: int, *, first_file: int = 0) -> BatchQueues:
    """A queue of `count` entries in files of four, those before `first_file` removed."""
    disk = MemoryDisk()
    folder = ROOT / "batchconsumequeue" / "t" / "0"
    disk.mkdir(folder)
    data = b"".join(map(entry, range(count)))
    file_bytes = PER_FILE * ENTRY_BYTES
    for base in range(first_file * file_bytes, max(len(data), 1), file_bytes):
        fd = disk.open(folder / file_name(base), exclusive=True)
        disk.pwritev(fd, [data[base : base + file_bytes].ljust(file_bytes, b"\0")], 0)
        disk.close(fd)
    return BatchQueues(disk, ROOT)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11, 12])
def test_bounds_are_those_of_the_messages(count: int) -> None:
    found = queues(count).bounds("t", 0, 0, 1 << 60)
    messages = sum(number % 3 + 1 for number in range(count))
    assert (found.min, found.max, found.log_end) == (0, messages, 100 * count)


def test_only_what_lies_in_the_log_counts() -> None:
    """Entries of removed log files, and of records behind the log's end, are none."""
    found = queues(10).bounds("t", 0, 350, 849)
    assert (found.min, found.max, found.log_end) == (7, 15, 800)
    assert queues(10).bounds("t", 0, 5000, 1 << 60).min == 19
    assert queues(10).bounds("t", 0, 0, 50).max == 0


def test_a_queue_whose_first_files_are_gone() -> None:
    found = queues(10, first_file=1).bounds("t", 0, 0, 1 << 60)
    assert (found.min, found.max) == (7, 19)


def test_half_copied_files_have_what_they_have() -> None:
    """A file that is shorter than others, the first or the last, and ends within an entry."""
    for number in (0, 2):
        stored = queues(10)
        folder = ROOT / "batchconsumequeue" / "t" / "0"
        path = folder / file_name(number * PER_FILE * ENTRY_BYTES)
        fd = stored.disk.open(path, write=False)
        half = stored.disk.pread(fd, 7 * ENTRY_BYTES // 2, 0)
        stored.disk.unlink(path)
        fd = stored.disk.open(path, exclusive=True)
        stored.disk.pwritev(fd, [half], 0)
        assert stored.bounds("t", 0, 0, 1 << 60).max == 19


def test_each_message_is_found_in_its_record() -> None:
    stored = queues(10)
    with stored.queue("t", 0) as queue:
        for number in range(10):
            first = ENTRY.unpack(entry(number))[4]
            for offset in range(first, first + number % 3 + 1):
                rest = list(queue.since(offset, 1 << 60))
                assert [each.log_offset for each in rest] == [100 * later for later in range(number, 10)]
        assert list(queue.since(19, 1 << 60)) == []


def test_no_files_are_an_empty_queue() -> None:
    found = BatchQueues(MemoryDisk(), ROOT).bounds("t", 0, 0, 1)
    assert (found.min, found.max, found.log_end) == (0, 0, 0)


def test_the_attribute_says_which_topics_have_them() -> None:
    assert is_batch_topic({"queue.type": "BatchCQ"})
    assert not is_batch_topic({"queue.type": "SimpleCQ"})
    assert not is_batch_topic({})
    assert not is_batch_topic(None)
