"""cold: parts of the log that may have left the page cache, read without making the gateway wait for a disk.

One of a few threads reads them and the answer follows: one group that reads last week must not slow anyone's
sends.  Nobody asks first whether they are in memory: to ask costs the gateway as much as to read them.
While others send, what comes from the disk is paced (`Pace`).
"""

from __future__ import annotations

import os
import resource
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from actormq.actors.gateway.threads import ReadThreads
from actormq.kernels.queues import gather
from actormq.store.commit_log import file_name

OLD_BYTES: Final = 256 * 1024 * 1024
"""What is this near to the log's end was written or read a moment ago: it is read through the map."""
JOBS_MAX: Final = 64
GAP_BYTES_MAX: Final = 4_096
"""Ranges that are nearer to each other are read as one: the disk gives whole pages anyway."""
_DESCRIPTORS_MAX: Final = 16
PACED_NS: Final = 1_000_000_000
"""So long after the last message that was sent reads are paced."""
PACED_SHARE_MIN: Final = 0.1
"""Reads of which less comes from the disk are not paced."""
WINDOW_BYTES: Final = 64 * 1024 * 1024
"""Over so much that share is taken; several times what a kernel reads ahead at once."""
_NS: Final = 1_000_000_000
_BLOCK_BYTES: Final = 512
"""In which the kernel counts what it reads from disks."""
_OURS: Final = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
"""Whose use of the disk a thread looks at."""

Ranges = list[tuple[int, int]]
Then = Callable[["bytes | bytearray | None"], None]


class Stretch(NamedTuple):
    """Ranges that are read at once."""

    log_offset: int
    size: int
    ranges: Ranges
    wanted: int
    """Bytes of the ranges."""


def stretches(ranges: Ranges, file_bytes: int) -> list[Stretch]:
    """Return what to read for `ranges`: those that are near to each other in one file together."""
    found: list[Stretch] = []
    begin = end = wanted = 0
    some: Ranges = []
    for at, size in ranges:
        if some and 0 <= at - end <= GAP_BYTES_MAX and begin // file_bytes == at // file_bytes:
            some.append((at, size))
            wanted += size
        else:
            if some:
                found.append(Stretch(begin, end - begin, some, wanted))
            begin, wanted, some = at, size, [(at, size)]
        end = at + size
    if some:
        found.append(Stretch(begin, end - begin, some, wanted))
    return found


class Place(NamedTuple):
    """Where a stretch lies."""

    fd: int
    at: int
    stretch: Stretch


class Pace:
    """When the next read may begin, so that who sends meanwhile feels little of it.

    Old messages cost processor time here, in the kernel and at their consumer; as fast as they can be had
    they take all of it.  A rate bounds them, but only while the log grows, and only what the disk gives:
    a consumer whose messages are in memory must be able to catch up with any producer.

    Args:
        bytes_per_second: the rate; 0: nothing is ever paced.
        log_end: where the log ends now.
    """

    def __init__(self, bytes_per_second: int, log_end: Callable[[], int], now_ns: Callable[[], int]) -> None:
        self._bytes_per_second = bytes_per_second
        self._log_end = log_end
        self._now_ns = now_ns
        self._end = log_end()
        self._grew_ns = now_ns() - PACED_NS
        self._free_ns = 0
        self._read_bytes = self._disk_bytes = 0

    def has_read(self, read_bytes: int, disk_bytes: int) -> None:
        """Count a read, and what the disk gave for it: reading ahead, it gives more now and nothing later."""
        self._read_bytes += read_bytes
        self._disk_bytes = min(self._disk_bytes + disk_bytes, WINDOW_BYTES)
        if self._read_bytes > WINDOW_BYTES:
            self._read_bytes //= 2
            self._disk_bytes //= 2

    @property
    def _share(self) -> float:
        """How much of what is read comes from the disk."""
        return min(1.0, self._disk_bytes / max(1, self._read_bytes))

    @property
    def holds(self) -> bool:
        """Whether reads wait for their time now."""
        now_ns, end = self._now_ns(), self._log_end()
        if end != self._end:
            self._end, self._grew_ns = end, now_ns
        grows = now_ns - self._grew_ns < PACED_NS
        return grows and self._bytes_per_second > 0 and self._share >= PACED_SHARE_MIN

    def due_ns(self, size: int) -> int:
        """Return when a read of so many bytes may begin, and count it; 0 = now."""
        if not self.holds:
            return 0
        due_ns = max(self._free_ns, self._now_ns())
        self._free_ns = due_ns + int(size * self._share * _NS / self._bytes_per_second)
        return due_ns


class ColdReader:
    """Reads ranges of the log by descriptor.

    Args:
        folder: the commit log's.
        threads: who reads what is not in memory.
        old_bytes: how far behind the log's end a range counts as old.
        pace: says when a read may begin.
        call_at: runs a function at a time (`Loop.call_at`).
    """

    def __init__(
        self,
        folder: Path,
        file_bytes: int,
        threads: ReadThreads,
        pace: Pace,
        call_at: Callable[[int, Callable[[], None]], object],
        old_bytes: int = OLD_BYTES,
    ) -> None:
        self._folder = folder
        self._file_bytes = file_bytes
        self._threads = threads
        self._pace = pace
        self._call_at = call_at
        self.old_bytes = old_bytes
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._under_way = 0

    def is_old(self, distance: int) -> bool:
        """Whether what lies `distance` bytes behind the log's end may be out of memory."""
        return distance > self.old_bytes

    @property
    def is_paced(self) -> bool:
        """Whether reads wait for their time now."""
        return self._pace.holds

    def _places(self, ranges: Ranges) -> list[Place]:
        return [
            Place(self._descriptor(one.log_offset), one.log_offset % self._file_bytes, one)
            for one in stretches(ranges, self._file_bytes)
        ]

    def read(self, ranges: Ranges, then: Then) -> bool:
        """Have a thread read `ranges`; then call `then` with their bytes joined, None when they are gone.

        Returns False, having done nothing, when too much is being read already.
        """
        try:
            places = self._places(ranges)
        except FileNotFoundError:
            then(None)
            return True
        if self._under_way >= JOBS_MAX:
            return False
        self._under_way += 1
        # Descriptors of the job's own: ours may be closed before it is done.
        own = [place._replace(fd=os.dup(place.fd)) for place in places]
        # Without what lies between: messages of other queues, in memory when their turn comes.
        due_ns = self._pace.due_ns(sum(place.stretch.wanted for place in own))
        if due_ns:
            self._call_at(due_ns, partial(self._run, own, then))
        else:
            self._run(own, then)
        return True

    def _run(self, places: list[Place], then: Then) -> None:
        self._threads.run(lambda: partial(self._done, then, *_read_and_close(places)))

    def _descriptor(self, log_offset: int) -> int:
        base = log_offset - log_offset % self._file_bytes
        fd = self._descriptors.get(base)
        if fd is None:
            fd = os.open(self._folder / file_name(base), os.O_RDONLY | os.O_CLOEXEC)
            self._descriptors[base] = fd
            if len(self._descriptors) > _DESCRIPTORS_MAX:
                os.close(self._descriptors.popitem(last=False)[1])
        self._descriptors.move_to_end(base)
        return fd

    def _done(self, then: Then, data: bytes | bytearray | None, disk_bytes: int) -> None:
        self._under_way -= 1
        self._pace.has_read(0 if data is None else len(data), disk_bytes)
        then(data)


def _read_and_close(places: list[Place]) -> tuple[bytes | bytearray | None, int]:
    """Return the bytes, None when they are gone, and how many the disk gave."""
    before = resource.getrusage(_OURS).ru_inblock
    try:
        data = _read(places)
    except OSError:
        data = None
    finally:
        for place in places:
            os.close(place.fd)
    return data, (resource.getrusage(_OURS).ru_inblock - before) * _BLOCK_BYTES


def _read(places: list[Place]) -> bytes | bytearray | None:
    """Return the bytes of all ranges joined; None when a file ends before."""
    parts = []
    for place in places:
        stretch = place.stretch
        part = bytearray(stretch.size)
        if os.preadv(place.fd, [part], place.at) != stretch.size:
            return None
        if stretch.wanted < stretch.size:
            picked = gather(part, stretch.log_offset, stretch.ranges, stretch.wanted)
            assert picked is not None
            part = picked
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
