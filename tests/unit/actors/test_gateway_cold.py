"""Cold reads: the same bytes, at once or later, and never more at a time than the bound."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, pairwise, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.actors.gateway import cold
from actormq.actors.gateway.cold import PACED_NS, WINDOW_BYTES, ColdReader, Pace, stretches
from actormq.actors.gateway.threads import ReadThreads
from actormq.store.commit_log import file_name

FILE_BYTES = 4096


class Thread:
    """The gateway's own thread: calls wait here until the test runs them."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.came = threading.Event()

    def call_soon(self, call: Callable[[], None]) -> None:
        self.calls.append(call)
        self.came.set()

    def run_one(self) -> None:
        assert self.came.wait(20), "the read never ended"
        deadline = time.monotonic() + 20
        while not self.calls:
            assert time.monotonic() < deadline
        self.calls.pop(0)()


class World:
    """The clock, the log's end and the timers of a gateway."""

    def __init__(self, bytes_per_second: int = 0) -> None:
        self.now_ns = 5 * PACED_NS
        self.log_end = 1_000
        self.timers: list[tuple[int, Callable[[], None]]] = []
        self.thread = Thread()
        self.pace = Pace(bytes_per_second, lambda: self.log_end, lambda: self.now_ns)

    def reader(self, folder: Path, old_bytes: int = cold.OLD_BYTES) -> ColdReader:
        threads = ReadThreads(self.thread.call_soon)
        return ColdReader(folder, FILE_BYTES, threads, self.pace, self._call_at, old_bytes)

    def _call_at(self, due_ns: int, call: Callable[[], None]) -> None:
        self.timers.append((due_ns, call))

    def is_sent_to(self) -> None:
        """Let the log grow, and all come from the disk."""
        self.log_end += 1
        self.pace.has_read(1000, 1000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        data = bytes((number * 7 + position) % 251 for position in range(FILE_BYTES))
        (tmp_path / file_name(number * FILE_BYTES)).write_bytes(data)
    return tmp_path


def expected(folder: Path, ranges: list[tuple[int, int]]) -> bytes:
    whole = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    return b"".join(whole[at : at + size] for at, size in ranges)


RANGES = [(10, 100), (4000, 96), (FILE_BYTES, 500)]


def test_a_thread_reads(folder: Path) -> None:
    """The answer comes through the gateway's own thread; the file may be unlinked meanwhile."""
    world = World()
    got: list[bytes | bytearray | None] = []
    want = expected(folder, RANGES)
    assert world.reader(folder).read(RANGES, got.append)
    for path in folder.iterdir():
        path.unlink()
    assert got == []
    world.thread.run_one()
    assert got == [want]


def test_a_range_that_is_gone(folder: Path) -> None:
    """None, not an error: the consumer goes on behind it."""
    got: list[bytes | bytearray | None] = []
    assert World().reader(folder).read([(99 * FILE_BYTES, 10)], got.append)
    assert got == [None]


def test_no_more_jobs_than_the_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the pull is refused; when one is done there is room again."""
    monkeypatch.setattr(cold, "JOBS_MAX", 3)
    world = World()
    thread, reader = world.thread, world.reader(folder)
    got: list[bytes | bytearray | None] = []
    assert [reader.read(RANGES, got.append) for _ in range(4)] == [True, True, True, False]
    thread.run_one()
    assert reader.read(RANGES, got.append)
    for _ in range(3):
        thread.run_one()
    assert got == [expected(folder, RANGES)] * 4


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), min_size=1, max_size=12), st.integers(0, 50)
)
def test_ranges_near_each_other_are_read_at_once(steps: list[tuple[int, int]], gap: int) -> None:
    """Nothing is lost or moved; one read never reaches over a file's end, or over a gap that is too long."""
    ranges, at = [], 0
    for skipped, size in steps:
        at += skipped
        if at % 1000 + size > 1000:  # no record reaches over the end of a file
            at += 1000 - at % 1000
        ranges.append((at, size))
        at += size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold, "GAP_BYTES_MAX", gap)
        found = stretches(ranges, 1000)
    assert [one for stretch in found for one in stretch.ranges] == ranges
    for stretch in found:
        assert stretch.wanted == sum(size for _, size in stretch.ranges)
        assert stretch.log_offset == stretch.ranges[0][0]
        assert stretch.log_offset + stretch.size == sum(stretch.ranges[-1])
        assert stretch.log_offset // 1000 == (stretch.log_offset + stretch.size - 1) // 1000
        assert all(b[0] - sum(a) <= gap for a, b in pairwise(stretch.ranges))
    for before, after in pairwise(found):
        is_far = after.log_offset - before.log_offset - before.size > gap
        assert is_far or before.log_offset // 1000 != after.log_offset // 1000


def test_what_lies_between_ranges_is_left_out(folder: Path) -> None:
    """Read with them, and not sent."""
    world = World()
    got: list[bytes | bytearray | None] = []
    ranges = [(0, 10), (20, 10), (1000, 50), (FILE_BYTES + 5, 5), (FILE_BYTES + 11, 5)]
    assert world.reader(folder).read(ranges, got.append)
    world.thread.run_one()
    assert got == [expected(folder, ranges)]


def test_a_file_that_is_too_short(folder: Path) -> None:
    """Gone, as far as anyone can tell; nothing is answered with half of it."""
    world = World()
    got: list[bytes | bytearray | None] = []
    os.truncate(folder / file_name(0), 50)
    assert world.reader(folder).read([(0, 100)], got.append)
    world.thread.run_one()
    assert got == [None]


def test_only_old_ranges_are_asked_for() -> None:
    """What was written a moment ago is read through the map."""
    reader = World().reader(Path("/nowhere"), old_bytes=1000)
    assert not reader.is_old(1000)
    assert reader.is_old(1001)


def test_descriptors_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file used last stays open, the others are closed."""
    monkeypatch.setattr(cold, "_DESCRIPTORS_MAX", 1)
    world = World()
    thread, reader = world.thread, world.reader(folder)
    got: list[bytes | bytearray | None] = []
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for turn in range(10):
        reader.read([(turn % 2 * FILE_BYTES, 10)], got.append)
        thread.run_one()
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1


# --- pacing ----------------------------------------------------------------------------------------------


def test_reads_are_paced_while_others_send_and_the_disk_is_read() -> None:
    """Either alone disturbs nobody, or must be able to catch up with a producer."""
    world = World(1_000)
    assert not world.pace.holds
    world.log_end += 1
    assert not world.pace.holds, "nothing was read"
    world.pace.has_read(1_000, 0)
    assert not world.pace.holds, "all was in memory"
    world.now_ns += PACED_NS
    world.pace.has_read(1_000, 8_000)
    assert not world.pace.holds, "nobody sends"
    world.log_end += 1
    assert world.pace.holds
    world.now_ns += PACED_NS - 1
    assert world.pace.holds
    world.now_ns += 1
    assert not world.pace.holds, "long ago"


def test_what_is_in_memory_does_not_count() -> None:
    """Half of it, and reads follow each other twice as fast; what is read ahead counts later, too."""
    world = World(1_000)
    world.is_sent_to()
    world.pace.has_read(7_000, 3_000)
    start_ns = world.now_ns
    assert [world.pace.due_ns(100) - start_ns for _ in range(3)] == [0, 5 * 10**7, 10**8]
    world.pace.has_read(32_000, 0)
    assert world.pace.holds
    world.pace.has_read(1_000, 0)
    assert not world.pace.holds, "hardly anything comes from the disk"


def test_a_disk_that_was_read_long_ago_is_forgotten() -> None:
    """However much it gave then."""
    world = World(1_000)
    world.log_end += 1
    world.pace.has_read(1_000, 1 << 40)
    assert world.pace.holds
    for _ in range(4):
        assert world.pace.holds
        world.pace.has_read(WINDOW_BYTES + 1, 0)
    assert not world.pace.holds


def test_paced_reads_follow_each_other_at_the_rate() -> None:
    """A read counts from its turn on; who was silent has not saved anything up."""
    world = World(1_000)
    world.is_sent_to()
    start_ns = world.now_ns
    assert [world.pace.due_ns(size) - start_ns for size in (100, 50, 50)] == [0, 10**8, 10**8 + 5 * 10**7]
    world.now_ns += 9 * 10**8
    world.is_sent_to()
    assert world.pace.due_ns(100) == world.now_ns


def test_without_a_rate_nothing_is_paced() -> None:
    world = World(0)
    world.is_sent_to()
    assert not world.pace.holds
    assert world.pace.due_ns(1 << 30) == 0


def test_a_paced_read_begins_when_it_is_due(folder: Path) -> None:
    """Not before, and the file may be unlinked meanwhile; it counts among those under way."""
    world = World(1_000)
    reader = world.reader(folder)
    got: list[bytes | bytearray | None] = []
    want = expected(folder, RANGES)
    world.is_sent_to()
    assert reader.is_paced
    assert reader.read(RANGES, got.append)
    assert reader.read(RANGES, got.append)
    read_bytes = sum(size for _, size in RANGES)
    (first_ns, first), (second_ns, _) = world.timers
    assert second_ns - first_ns == read_bytes * 10**9 // 1_000
    for path in folder.iterdir():
        path.unlink()
    assert not world.thread.came.is_set()
    first()
    world.thread.run_one()
    assert got == [want]


@pytest.mark.parametrize("blocks", [0, 8], ids=["memory", "disk"])
def test_a_read_that_takes_the_disk_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    """By what the kernel counts for the thread; one that finds all in memory is not."""
    used: Iterator[int] = count(100, blocks) if blocks else repeat(100)
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_inblock=next(used)))
    world = World(1_000)
    reader = world.reader(folder)
    world.log_end += 1
    assert not reader.is_paced
    assert reader.read(RANGES, lambda data: None)
    world.thread.run_one()
    assert reader.is_paced == bool(blocks)
