"""Queue files: entries at their place, fillers before the first, cuts that keep the offsets used up."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from faults.disks import MemoryDisk
from hypothesis import given
from hypothesis import strategies as st

from actormq.kernels.queues import BLANK_ENTRY_SIZE, ENTRY, ENTRY_BYTES
from actormq.store import consume_queue, queue_bounds
from actormq.store.commit_log import LogReader, file_name
from actormq.store.consume_queue import (
    BadName,
    Boundary,
    QueueFiles,
    QueueReader,
    QueueRemoved,
    offset_by_time,
    queue_folder,
)

ROOT = Path("/store/consumequeue")
PER_FILE = 100


def entries(first: int, count: int) -> bytes:
    return b"".join(ENTRY.pack(1000 + number, 50, number) for number in range(first, first + count))


def queue(disk: MemoryDisk) -> tuple[QueueFiles, QueueReader]:
    disk.mkdir(ROOT)
    return QueueFiles(disk, ROOT, PER_FILE), QueueReader(disk, ROOT, PER_FILE)


@given(
    st.lists(st.tuples(st.integers(0, 350), st.integers(1, 130)), min_size=1, max_size=6),
)
def test_entries_are_found_by_their_offset(runs: list[tuple[int, int]]) -> None:
    """Whatever the order and however often, over the borders of files; a view ends with its file."""
    disk = MemoryDisk()
    files, reader = queue(disk)
    written = set()
    for first, count in runs:
        files.write("t", 1, first, entries(first, count))
        written |= set(range(first, first + count))
    for number in written:
        view = reader.view("t", 1, number, 1000)
        assert len(view) == (PER_FILE - number % PER_FILE) * 20
        assert ENTRY.unpack(view[:20]) == (1000 + number, 50, number)
        assert reader.entry("t", 1, number) == (1000 + number, 50, number)
    first_file = min(written) // PER_FILE * PER_FILE
    if (runs[0][0] // PER_FILE * PER_FILE) == first_file:
        for number in range(first_file, min(runs[0][0], min(written))):
            assert reader.entry("t", 1, number) == (0, BLANK_ENTRY_SIZE, 0)


def test_a_removed_queue_is_not_served() -> None:
    disk = MemoryDisk()
    files, reader = queue(disk)
    with pytest.raises(QueueRemoved):
        reader.view("t", 0, 0, 1)
    files.write("t", 0, 0, entries(0, 3))
    assert reader.entry("t", 0, 2, incarnation=1)[2] == 2
    files.remove_queue("t", 0)
    files.write("t", 0, 0, entries(7, 1))
    assert reader.entry("t", 0, 0, incarnation=2)[2] == 7
    reader.forget("t", 0)
    assert reader.entry("t", 0, 0, incarnation=1)[2] == 7


def test_cut_zeroes_and_unlinks_but_keeps_the_first_file() -> None:
    """The first file's name says that the offsets before it are used up."""
    disk = MemoryDisk()
    files, reader = queue(disk)
    files.write("t", 0, 0, entries(0, 350))
    files.cut("t", 0, 150)
    assert files.bases("t", 0) == [0, 2000]
    assert ENTRY.unpack(reader.view("t", 0, 149, 1))[2] == 149
    assert not any(reader.view("t", 0, 150, 100))
    files.cut("t", 0, 100)
    assert files.bases("t", 0) == [0]
    files.write("t", 0, 100, entries(100, 150))
    files.remove_before("t", 0, 199)
    assert files.bases("t", 0) == [2000, 4000]
    files.cut("t", 0, 50)
    assert files.bases("t", 0) == [2000]
    assert not any(QueueReader(disk, ROOT, PER_FILE).view("t", 0, 100, 100))


def test_remove_before_keeps_the_last_file() -> None:
    disk = MemoryDisk()
    files, _ = queue(disk)
    files.write("t", 0, 0, entries(0, 250))
    files.remove_before("t", 0, 100_000)
    assert files.bases("t", 0) == [4000]


def test_sync_makes_entries_and_names_durable() -> None:
    disk = MemoryDisk()
    files, _ = queue(disk)
    files.write("t", 0, 0, entries(0, 150))
    assert len(files._dirty) == 2
    files.sync()
    assert files.dirty() == []
    for seed in range(10):
        after = disk.crash(random.Random(seed))
        reader = QueueReader(after, ROOT, PER_FILE)
        assert [reader.entry("t", 0, number)[2] for number in range(150)] == list(range(150))


@pytest.mark.parametrize("can", [True, False])
def test_many_files_are_synced_at_once(monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    """By one call, where the system has it; one by one elsewhere.  Durable they are in both cases."""
    monkeypatch.setattr(consume_queue, "MANY_FILES", 5)
    calls: list[str] = []

    class Volume(MemoryDisk):
        def sync_volume(self, fd: int) -> bool:
            calls.append("volume")
            return can and super().sync_volume(fd)

        def fdatasync(self, fd: int) -> None:
            calls.append("file")
            super().fdatasync(fd)

    disk = Volume()
    files = QueueFiles(disk, ROOT, PER_FILE)
    files.open_volume()
    for count in (5, 6):
        for queue_id in range(count):
            files.write("t", queue_id, 0, entries(count, 10))
        calls.clear()
        files.sync()
        assert set(calls) == ({"file"} if count == 5 else {"volume"} if can else {"volume", "file"})
        for seed in range(5):
            reader = QueueReader(disk.crash(random.Random(seed)), ROOT, PER_FILE)
            for queue_id in range(count):
                assert reader.entry("t", queue_id, 9)[2] == count + 9
    files.close()
    assert not disk._descriptors


@given(
    st.integers(0, 3 * PER_FILE),
    st.integers(0, 3 * PER_FILE),
    st.integers(-50, 60 * PER_FILE * 3),
    st.integers(1, 40),
    st.booleans(),
)
def test_the_end_of_a_queue_is_found(first: int, count: int, bound: int, block: int, stale: bool) -> None:
    """However many entries it has and wherever the blocks end; and where there is nothing any more."""
    disk = MemoryDisk()
    files, _ = queue(disk)
    data = b"".join(ENTRY.pack(50 * number, 50, number) for number in range(count))
    if data:
        files.write("t", 0, first, data)
    else:
        files.write("t", 0, first, ENTRY.pack(-1, 0, 0))
    expected = first + min(count, max(0, bound // 50))
    if stale:
        files.write("t", 0, first + count, ENTRY.pack(-1, 1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue_bounds, "_BLOCK_ENTRIES", block)
        patch.setattr(queue_bounds, "_BLOCK_BYTES", block * ENTRY_BYTES)
        log = LogReader(disk, Path("/store/commitlog"), 1 << 20)
        found = queue_bounds.find_bounds(files, log, "t", 0, 0, bound)
        patch.setattr(disk, "only_file", lambda path, size: None)
        assert queue_bounds.find_bounds(files, log, "t", 0, 0, bound) == found
    assert found.max == expected
    written_end = first + max(count + stale, 1)
    assert found.data_end == written_end or (found.data_end > written_end > found.max)


def test_descriptors_and_maps_are_bounded() -> None:
    disk = MemoryDisk()
    disk.mkdir(ROOT)
    files = QueueFiles(disk, ROOT, PER_FILE, descriptors_max=3)
    reader = QueueReader(disk, ROOT, PER_FILE, maps_max=3)
    for number in range(8):
        files.write("t", number, 0, entries(number, 1))
        assert reader.entry("t", number, 0)[2] == number
    assert len(disk._descriptors) == 3
    assert len(reader._maps) == 3


def test_known_paths_are_bounded_and_never_another_queues() -> None:
    """However many queues take turns, and whichever of their files comes next."""
    disk = MemoryDisk()
    disk.mkdir(ROOT)
    files = QueueFiles(disk, ROOT, PER_FILE, descriptors_max=3)
    queues = [(topic, number) for topic in ("t", "u") for number in range(8)]
    for first in range(0, 3 * PER_FILE, PER_FILE // 2):
        for place, (topic, number) in enumerate(queues):
            files.write(topic, number, first, entries(1000 * place + first, PER_FILE // 2))
    assert len(files._newest) <= 6
    reader = QueueReader(disk, ROOT, PER_FILE)
    for place, (topic, number) in enumerate(queues):
        found = [reader.entry(topic, number, entry)[2] for entry in range(3 * PER_FILE)]
        assert found == [1000 * place + entry for entry in range(3 * PER_FILE)]


@pytest.mark.parametrize("topic", ["", ".", "..", "a/b", "../x", "a\0b", "ü" * 128])
def test_names_never_lead_out_of_the_store(topic: str) -> None:
    with pytest.raises(BadName):
        queue_folder(ROOT, topic, 0)


def test_negative_queue_ids_are_refused() -> None:
    with pytest.raises(BadName):
        queue_folder(ROOT, "t", -1)
    assert queue_folder(ROOT, "%RETRY%g", 3) == ROOT / "%RETRY%g" / "3"


def test_a_file_of_size_zero_is_made_anew() -> None:
    """A loss of power may leave a name without bytes."""
    disk = MemoryDisk()
    files, reader = queue(disk)
    disk.mkdir(ROOT / "t" / "0")
    disk.open(ROOT / "t" / "0" / file_name(0), create=True)
    assert files.bases("t", 0) == []
    with pytest.raises(QueueRemoved, match="being made"):
        reader.entry("t", 0, 0)
    files.write("t", 0, 0, entries(0, 1))
    assert reader.entry("t", 0, 0)[0] == 1000


@given(
    st.lists(st.integers(0, 20), min_size=0, max_size=30).map(sorted),
    st.integers(0, 10),
    st.integers(-1, 21),
    st.sampled_from(Boundary),
)
def test_offset_by_time_is_the_linear_search(
    times: list[int], low: int, wanted: int, boundary: Boundary
) -> None:
    high = low + len(times)
    found = offset_by_time(low, high, wanted, boundary, lambda offset: times[offset - low])
    if boundary is Boundary.LOWER:
        expected = next((low + n for n, at in enumerate(times) if at >= wanted), high)
    else:
        expected = max((low + n for n, at in enumerate(times) if at <= wanted), default=low)
    assert found == expected


@pytest.mark.parametrize(
    ("name", "length", "base"),
    [
        (file_name(0), PER_FILE * ENTRY_BYTES, 0),
        (file_name(PER_FILE * ENTRY_BYTES), PER_FILE * ENTRY_BYTES, PER_FILE * ENTRY_BYTES),
        (file_name(1), PER_FILE * ENTRY_BYTES, None),
        (file_name(0), 20, None),
        ("0", PER_FILE * ENTRY_BYTES, None),
    ],
)
def test_the_only_file_of_a_queue(name: str, length: int, base: int | None) -> None:
    """Where it begins; one that is no file of a store is left to who says what is wrong with it."""
    disk = MemoryDisk()
    disk.mkdir(ROOT / "t" / "0")
    disk.pwritev(disk.open(ROOT / "t" / "0" / name, create=True), [b"abc".ljust(length, b"\0")], 0)
    found = QueueFiles(disk, ROOT, PER_FILE).only_file("t", 0, 2)
    assert found == (None if base is None else (base, (name, length, b"ab", True)))
