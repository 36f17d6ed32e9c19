"""Index files: from a message key to the places in the log where messages with that key lie.

``index/<yyyyMMddHHmmssSSS>``: header (40 bytes), hash slots (i32 each, the newest entry's number),
entries (20 bytes each, chained by the number of the previous one).  Only hashes are kept: whoever
asks looks at the message itself.  The entries are stored by `actormq.kernels.queues.put_index`, through
a map, over extents that were allocated before; everything here can be rebuilt from the log.

Source: RocketMQ IndexFile.java, IndexHeader.java, IndexService.java.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from actormq.errors import StoreForeign
from actormq.kernels.queues import (
    INDEX_ENTRY_BYTES,
    INDEX_HEADER_BYTES,
    INDEX_SLOT_BYTES,
    KEY,
    KEY_BYTES,
    cut_index,
    put_index,
    relink_index,
)
from actormq.message import java_hash
from actormq.store.commit_log import MAKING_PREFIX, make_file
from actormq.store.disk import BytesLike, Disk

FOLDER: Final = "index"
HEADER: Final = struct.Struct(">qqqqii")
assert HEADER.size == INDEX_HEADER_BYTES
_ENTRY: Final = struct.Struct(">iqii")
assert _ENTRY.size == INDEX_ENTRY_BYTES
EXTENT_BYTES: Final = 4 * 1024 * 1024
"""Entries get their blocks in steps of this size."""
_ENTRIES_A_STEP: Final = 500_000
"""After so many entries their memory is given back: no role needs any in proportion to the index."""
_STEPS_A_ROUND: Final = 16
"""After so many steps the slots are given back, too.  Each page of them costs two faults when it comes again,
and keys touch all of them soon: given back in each step this was a fifth of the cost of a key."""
_NUMBER: Final = struct.Struct(">i")
_NEXT_NUMBER_AT: Final = 36
CHAIN_STEPS_MAX: Final = 100_000
"""A longer chain is not walked to its end: millions of messages with one key, or damage."""


@dataclass(frozen=True, slots=True)
class IndexHeader:
    """The first 40 bytes of an index file."""

    begin_timestamp: int
    end_timestamp: int
    begin_offset: int
    end_offset: int
    slots_used: int
    next_number: int
    """Number of the next entry; entries are counted from 1."""


EMPTY: Final = IndexHeader(0, 0, 0, 0, 0, 1)


def file_bytes(slots: int, entries_max: int) -> int:
    """Return the size of an index file."""
    return INDEX_HEADER_BYTES + slots * INDEX_SLOT_BYTES + entries_max * INDEX_ENTRY_BYTES


def read_header(view: BytesLike) -> IndexHeader:
    """Return the header; a file without entries has 1 as its next number, as RocketMQ reads it."""
    header = IndexHeader(*HEADER.unpack_from(view))
    return header if header.next_number > 0 else replace(header, next_number=1)


def key_hash(topic: str, key: str) -> int:
    """Return the hash that an entry keeps of ``topic#key``: never negative; 0 where Java has no absolute."""
    value = abs(java_hash(f"{topic}#{key}"))
    return 0 if value == 1 << 31 else value


def new_name(wall_ms: int) -> str:
    """Return the name of a file made now: local time to the millisecond, 17 digits."""
    return time.strftime("%Y%m%d%H%M%S", time.localtime(wall_ms // 1000)) + f"{wall_ms % 1000:03d}"


def list_files(disk: Disk, folder: Path, size: int) -> list[str]:
    """Return the index files' names, oldest first.

    Raises:
        StoreForeign: a file of another size, or with a name that is no time.
    """
    names = []
    for name in disk.listdir(folder):
        path = folder / name
        if not (len(name) == 17 and name.isascii() and name.isdigit()):
            raise StoreForeign(f"{path} is no index file: its name is not 17 digits")
        if disk.size(path) == 0:
            continue
        if disk.size(path) != size:
            raise StoreForeign(f"{path} has {disk.size(path)} bytes, not {size}: other slots or entries")
        names.append(name)
    return names


class IndexWriter:
    """Stores keys in the newest index file and makes the next one when that is full.

    One object at a time writes (the dispatcher's; during recovery, recovery's).

    Args:
        folder: ``<store>/index``.
        slots, entries_max: per file, 5,000,000 and 20,000,000 in a default store.
    """

    def __init__(self, disk: Disk, folder: Path, slots: int, entries_max: int) -> None:
        self.disk = disk
        self.folder = folder
        self.slots = slots
        self.entries_max = entries_max
        self.size = file_bytes(slots, entries_max)
        self._fd = -1
        self._view = memoryview(b"")
        self._allocated = 0
        self._forgotten = 0
        self._steps = 0
        names = list_files(disk, folder, self.size)
        if names:
            self._open(names[-1])

    def _open(self, name: str) -> None:
        self.name = name
        self._attach(self.disk.open(self.folder / name))

    def _attach(self, fd: int) -> None:
        self.close()
        self._fd = fd
        self._view = self.disk.map_write(fd, self.size)
        # How far blocks reach is not known of a file found: asking again for what is there costs nothing.
        self._allocated = 0
        self._forgotten = read_header(self._view).next_number

    def _create(self, wall_ms: int) -> None:
        before = read_header(self._view) if len(self._view) else None
        newest = self.disk.listdir(self.folder)[-1:]
        name = new_name(wall_ms)
        if newest and name <= newest[0]:
            name = f"{int(newest[0]) + 1:017d}"

        def prepare(fd: int) -> None:
            self.disk.extend(fd, self.size)
            self.disk.allocate(fd, 0, INDEX_HEADER_BYTES + self.slots * INDEX_SLOT_BYTES)
            end, offset = (before.end_timestamp, before.end_offset) if before else (0, 0)
            self.disk.pwritev(fd, [HEADER.pack(end, end, offset, offset, 0, 1)], 0)

        self._attach(
            make_file(self.disk, self.folder / name, self.folder.parent / (MAKING_PREFIX + FOLDER), prepare)
        )
        self.name = name

    def put(self, keys: BytesLike, wall_ms: int) -> int | None:
        """Store `keys` (`KEY` units as the dispatch kernel makes them); keys already there change nothing.

        Returns:
            The end timestamp of a file that became full and was synced on the way, for the checkpoint;
            None when none did.

        Raises:
            OSError: no space for the entries; all of `keys` may be put again later.
        """
        full: int | None = None
        at = 0
        while at < len(keys):
            if not len(self._view) or self._next_number() >= self.entries_max:
                if len(self._view):
                    self.sync()
                    full = read_header(self._view).end_timestamp
                self._create(wall_ms)
            next_number = self._next_number()
            self._reserve(next_number, (len(keys) - at) // KEY_BYTES)
            before = at
            at = put_index(self._view, self.slots, self.entries_max, keys, at)
            assert at > before, "an index file with room took no key"
            if next_number - self._forgotten >= _ENTRIES_A_STEP:
                self._forget(next_number)
        return full

    def _next_number(self) -> int:
        """As in the header, which takes longer to read as a whole."""
        (number,) = _NUMBER.unpack_from(self._view, _NEXT_NUMBER_AT)
        return max(1, int(number))

    def _forget(self, next_number: int) -> None:
        """Let go of the memory of the entries before `next_number`, and now and then of the slots."""
        entries_at = INDEX_HEADER_BYTES + self.slots * INDEX_SLOT_BYTES
        start = entries_at + self._forgotten * INDEX_ENTRY_BYTES
        self._steps += 1
        if self._steps % _STEPS_A_ROUND == 0:
            start = 0
        self.disk.forget(self._view, start, entries_at + next_number * INDEX_ENTRY_BYTES - start)
        self._forgotten = next_number

    def _reserve(self, next_number: int, wanted: int) -> None:
        """Allocate blocks for up to `wanted` more entries."""
        last = min(next_number + wanted, self.entries_max)
        needed = INDEX_HEADER_BYTES + self.slots * INDEX_SLOT_BYTES + last * INDEX_ENTRY_BYTES
        if needed > self._allocated:
            start = self._allocated
            end = min(needed + EXTENT_BYTES, self.size)
            self.disk.allocate(self._fd, start, end - start)
            self._allocated = end

    @property
    def header(self) -> IndexHeader:
        """The newest file's header; all zeros (next number 1) without a file."""
        return read_header(self._view) if len(self._view) else EMPTY

    def sync(self) -> None:
        """Make the newest file durable."""
        if self._fd >= 0:
            self.disk.fdatasync(self._fd)
            self.disk.fsync_dir(self.folder)

    def close(self) -> None:
        """Let go of the newest file."""
        self._view = memoryview(b"")
        if self._fd >= 0:
            self.disk.close(self._fd)
            self._fd = -1


class IndexReader:
    """Looks keys up in all index files, while others may be writing the newest.

    Args:
        folder, slots, entries_max: as for `IndexWriter`.
        read: how (descriptor, bytes, position) is read; what it raises, a query raises.
    """

    def __init__(
        self,
        disk: Disk,
        folder: Path,
        slots: int,
        entries_max: int,
        read: Callable[[int, int, int], bytes] | None = None,
    ) -> None:
        self.disk = disk
        self.folder = folder
        self.slots = slots
        self.entries_max = entries_max
        self.size = file_bytes(slots, entries_max)
        self._read = read or disk.pread

    def _names(self) -> list[str]:
        """Return the files' names, newest first."""
        while True:
            try:
                return list_files(self.disk, self.folder, self.size)[::-1]
            except FileNotFoundError:  # the cleaner removes the oldest ones meanwhile
                continue

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[int, IndexHeader]]:
        """Open a file; without entries where it is gone: the cleaner was here."""
        try:
            fd = self.disk.open(self.folder / name, write=False)
        except FileNotFoundError:
            yield -1, EMPTY
            return
        try:
            yield fd, read_header(self._read(fd, HEADER.size, 0))
        finally:
            self.disk.close(fd)

    def reached(self) -> tuple[int, int]:
        """Return (store time, log offset) of the last message that has a key here; zeros without one."""
        for name in self._names()[:1]:
            with self._opened(name) as (_, header):
                return header.end_timestamp, header.end_offset
        return 0, 0

    def query(self, topic: str, key: str, begin_ms: int, end_ms: int, messages_max: int) -> list[int]:
        """Return the first `messages_max` of `candidates`."""
        return list(islice(self.candidates(topic, key, begin_ms, end_ms), messages_max))

    def candidates(self, topic: str, key: str, begin_ms: int, end_ms: int) -> Iterator[int]:
        """Yield log offsets of messages that may have this key, newest first, without repetition.

        Args:
            begin_ms, end_ms: store times, both included (to the second: entries keep no more).
        """
        wanted = key_hash(topic, key)
        seen: set[int] = set()
        for name in self._names():
            with self._opened(name) as (fd, header):
                if (
                    header.next_number > 1
                    and header.begin_timestamp <= end_ms
                    and header.end_timestamp >= begin_ms
                ):
                    for log_offset in self._walk(fd, header.begin_timestamp, wanted, begin_ms, end_ms):
                        if log_offset not in seen:
                            seen.add(log_offset)
                            yield log_offset
            if header.begin_timestamp < begin_ms and fd >= 0:
                return

    def _walk(self, fd: int, file_begin_ms: int, wanted: int, begin_ms: int, end_ms: int) -> Iterator[int]:
        """Follow the chain of `wanted` in one file; a link that does not lead to an older entry ends it."""
        slot_at = INDEX_HEADER_BYTES + wanted % self.slots * INDEX_SLOT_BYTES
        entries_at = INDEX_HEADER_BYTES + self.slots * INDEX_SLOT_BYTES
        (number,) = _NUMBER.unpack(self._read(fd, _NUMBER.size, slot_at))
        # Not the header's number: a slot may be newer than the header that was read.
        bound = self.entries_max
        for _ in range(CHAIN_STEPS_MAX):
            if not 0 < number < bound:
                return
            data = self._read(fd, INDEX_ENTRY_BYTES, entries_at + number * INDEX_ENTRY_BYTES)
            hashed, log_offset, seconds, previous = _ENTRY.unpack(data)
            stored_ms = file_begin_ms + seconds * 1000
            # An entry's time is cut to the second: the message may be up to 999 ms younger.
            if stored_ms + 999 < begin_ms:
                return
            if hashed == wanted and stored_ms <= end_ms:
                yield log_offset
            bound = number
            number = previous


def sync_newest(disk: Disk, folder: Path, size: int) -> tuple[int, int]:
    """Make the newest index file durable, whoever wrote it; files before it already are.

    Returns:
        (the file's name as a number, the next entry's number before the sync), as the checkpoint keeps
        them; (0, 1) without a file.
    """
    names = list_files(disk, folder, size)
    if not names:
        return 0, 1
    fd = disk.open(folder / names[-1])
    try:
        next_number = read_header(disk.pread(fd, HEADER.size, 0)).next_number
        disk.fdatasync(fd)
    finally:
        disk.close(fd)
    return int(names[-1]), next_number


def cut(disk: Disk, folder: Path, name: str, slots: int, entries_max: int, next_number: int) -> None:
    """End one index file before entry `next_number`: what lies behind may be half written."""
    fd = disk.open(folder / name)
    try:
        view = disk.map_write(fd, file_bytes(slots, entries_max))
        emptied = cut_index(view, slots, entries_max, next_number)
        if emptied is not None:
            entries_at = INDEX_HEADER_BYTES + slots * INDEX_SLOT_BYTES
            for first in range(1, next_number, _ENTRIES_A_STEP):
                end = min(first + _ENTRIES_A_STEP, next_number)
                relink_index(view, slots, emptied, first, end)
                disk.forget(view, entries_at + first * INDEX_ENTRY_BYTES, (end - first) * INDEX_ENTRY_BYTES)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)


def pack_key(topic: str, key: str, log_offset: int, store_timestamp: int) -> bytes:
    """Return the unit that `IndexWriter.put` stores for one key of one message."""
    return KEY.pack(key_hash(topic, key), log_offset, store_timestamp)
