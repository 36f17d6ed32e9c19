"""cold: parts of the log that may have left the page cache, read without making the gateway wait for a disk.

One of a few threads reads them and the answer follows: one group that reads last week must not slow anyone's
sends.  Nobody asks first whether they are in memory: to ask costs the gateway as much as to read them.
"""

from __future__ import annotations

import os
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


class ColdReader:
    """Reads ranges of the log by descriptor.

    Args:
        folder: the commit log's.
        threads: who reads what is not in memory.
        old_bytes: how far behind the log's end a range counts as old.
    """

    def __init__(
        self,
        folder: Path,
        file_bytes: int,
        threads: ReadThreads,
        old_bytes: int = OLD_BYTES,
    ) -> None:
        self._folder = folder
        self._file_bytes = file_bytes
        self._threads = threads
        self.old_bytes = old_bytes
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._under_way = 0

    def is_old(self, distance: int) -> bool:
        """Whether what lies `distance` bytes behind the log's end may be out of memory."""
        return distance > self.old_bytes

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
        self._threads.run(lambda: partial(self._done, then, _read_and_close(own)))
        return True

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

    def _done(self, then: Then, data: bytes | bytearray | None) -> None:
        self._under_way -= 1
        then(data)


def _read_and_close(places: list[Place]) -> bytes | bytearray | None:
    try:
        return _read(places)
    except OSError:
        return None
    finally:
        for place in places:
            os.close(place.fd)


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
