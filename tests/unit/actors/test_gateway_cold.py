"""Cold reads: the same bytes, at once or later, and never more at a time than the bound."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actormq.actors.gateway import cold
from actormq.actors.gateway.cold import ColdReader
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


def test_what_is_in_memory_is_answered_at_once(folder: Path) -> None:
    """No thread, no waiting."""
    thread = Thread()
    got: list[bytes | None] = []
    assert ColdReader(folder, FILE_BYTES, thread.call_soon).read(RANGES, got.append)
    if not got:  # a file system that cannot tell
        thread.run_one()
    assert got == [expected(folder, RANGES)]


def test_what_is_not_is_read_by_a_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes through the gateway's own thread; the file may be unlinked meanwhile."""
    monkeypatch.setattr(cold, "_read_now", lambda places: None)
    thread = Thread()
    got: list[bytes | None] = []
    want = expected(folder, RANGES)
    assert ColdReader(folder, FILE_BYTES, thread.call_soon).read(RANGES, got.append)
    for path in folder.iterdir():
        path.unlink()
    assert got == []
    thread.run_one()
    assert got == [want]


def test_a_range_that_is_gone(folder: Path) -> None:
    """None, not an error: the consumer goes on behind it."""
    got: list[bytes | None] = []
    assert ColdReader(folder, FILE_BYTES, Thread().call_soon).read([(99 * FILE_BYTES, 10)], got.append)
    assert got == [None]


def test_no_more_jobs_than_the_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the pull is refused; when one is done there is room again."""
    monkeypatch.setattr(cold, "_read_now", lambda places: None)
    monkeypatch.setattr(cold, "JOBS_MAX", 3)
    thread = Thread()
    reader = ColdReader(folder, FILE_BYTES, thread.call_soon)
    got: list[bytes | None] = []
    assert [reader.read(RANGES, got.append) for _ in range(4)] == [True, True, True, False]
    thread.run_one()
    assert reader.read(RANGES, got.append)
    for _ in range(3):
        thread.run_one()
    assert got == [expected(folder, RANGES)] * 4


def test_only_old_ranges_are_asked_for() -> None:
    """What was written a moment ago is read through the map."""
    reader = ColdReader(Path("/nowhere"), FILE_BYTES, Thread().call_soon, old_bytes=1000)
    assert not reader.is_old(1000)
    assert reader.is_old(1001)


def test_descriptors_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file used last stays open, the others are closed."""
    monkeypatch.setattr(cold, "_DESCRIPTORS_MAX", 1)
    reader = ColdReader(folder, FILE_BYTES, Thread().call_soon)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    got: list[bytes | None] = []
    for turn in range(10):
        reader.read([(turn % 2 * FILE_BYTES, 10)], got.append)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1
