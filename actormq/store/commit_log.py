"""The commit log's files: their names, making, writing, syncing, cutting and reading.

A file is named by the log offset of its first byte and has its full size from the moment it has its
name: it is made under a temporary name, allocated, synced, then renamed.  No file is ever shortened.

writer: `LogFiles.append`.  flusher: `LogFiles.sync`.  cleaner: `LogFiles.create`, `remove`.
recovery: `LogFiles.cut`.  Everyone who reads: `LogReader.view`.
"""

from __future__ import annotations

import errno
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from actormq.errors import ResponseCode, StoreError, StoreForeign
from actormq.kernels.queues import gather
from actormq.message import LogOffset
from actormq.store.disk import BytesLike, Disk

FOLDER: Final = "commitlog"
MAKING_PREFIX: Final = "making-"
"""Of files that are being made, in the store's root: RocketMQ would refuse a folder with one of them."""
MAKING_SUFFIX: Final = ".making"
"""Of the same, when the folder is on another file system than the root."""
SLICE_BYTES_MIN: Final = 16 * 1024
"""A slice that is sent as a part of its own costs some microseconds on either side: no less than a copy."""
_NAME = re.compile(r"\d{20}")


class LogRemoved(StoreError):
    """That part of the log is not there: removed by age, or never written."""

    response_code = ResponseCode.PULL_OFFSET_MOVED


def file_name(base: int) -> str:
    """Return the name of the file that begins at log (or queue) byte `base`: 20 digits."""
    return f"{base:020d}"


def is_name(name: str) -> bool:
    """Say whether a file's name is a position."""
    return _NAME.fullmatch(name) is not None


def list_bases(disk: Disk, folder: Path, file_bytes: int) -> list[int]:
    """Return the first byte of each file in `folder`, ascending.

    A last file without bytes (RocketMQ died while making it) does not count.

    Raises:
        StoreForeign: a name that is no position, a file of another size, or a gap between two files.
    """
    bases = list_some_bases(disk, folder, file_bytes)
    for before, after in pairwise(bases):
        if after != before + file_bytes:
            missing = file_name(before + file_bytes)
            raise StoreForeign(f"{folder} has no file {missing} before {file_name(after)}")
    return bases


def list_some_bases(disk: Disk, folder: Path, file_bytes: int, empty_are_fine: bool = False) -> list[int]:
    """As `list_bases`, but gaps are fine; with `empty_are_fine`, files without bytes never count."""
    bases = []
    files = [file for file in disk.files(folder) if not file[0].endswith(MAKING_SUFFIX)]
    for name, size in files:
        if not is_name(name):
            raise StoreForeign(f"{folder / name} is no file of a store: its name is not 20 digits")
        if size == 0 and (empty_are_fine or name == files[-1][0]):
            continue
        if size != file_bytes:
            raise StoreForeign(
                f"{folder / name} has {size} bytes, not {file_bytes}: another file size, or half copied"
            )
        if int(name) % file_bytes:
            raise StoreForeign(f"{folder / name} does not begin at a multiple of {file_bytes}")
        bases.append(int(name))
    return bases


def make_file(disk: Disk, path: Path, staging: Path, prepare: Callable[[int], None]) -> int:
    """Make the file at `path`, which has that name only once `prepare(fd)` is through; return its descriptor.

    Args:
        staging: where it is made; what a crash left there goes.

    Raises:
        OSError: as from `prepare`; nothing is left behind.
    """
    disk.mkdir(path.parent)
    if disk.exists(staging):
        disk.unlink(staging)
    fd = disk.open(staging, exclusive=True)
    try:
        prepare(fd)
        disk.rename(staging, path)
    except OSError as error:
        disk.close(fd)
        disk.unlink(staging)
        beside = path.with_name(path.name + MAKING_SUFFIX)
        if error.errno == errno.EXDEV and staging != beside:
            return make_file(disk, path, beside, prepare)
        raise
    return fd


class LogFiles:
    """The log's files as one long array of bytes; keeps the descriptors of the last few that it used.

    Args:
        folder: where the files lie (``<store>/commitlog``).
        file_bytes: the size of each.
        warm_bytes: new ones are written full of zeros, in steps that are synced each; 0: only allocated.
    """

    def __init__(
        self, disk: Disk, folder: Path, file_bytes: int, descriptors_max: int = 4, warm_bytes: int = 0
    ) -> None:
        self.disk = disk
        self.folder = folder
        self.file_bytes = file_bytes
        self._warm_bytes = warm_bytes
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._descriptors_max = descriptors_max

    def bases(self) -> list[int]:
        """Return where each file begins; checks names, sizes and gaps (`list_bases`)."""
        return list_bases(self.disk, self.folder, self.file_bytes)

    def base_of(self, log_offset: int) -> int:
        """Return the beginning of the file in which `log_offset` lies."""
        return log_offset - log_offset % self.file_bytes

    def path(self, base: int) -> Path:
        return self.folder / file_name(base)

    def exists(self, base: int) -> bool:
        return self.disk.exists(self.path(base)) and self.disk.size(self.path(base)) == self.file_bytes

    def create(self, base: int) -> None:
        """Make the file at `base` with all its blocks, durably; nothing to do when it is there.

        Raises:
            OSError: ENOSPC and the like; nothing is left behind.
        """
        if self.exists(base):
            return
        staging = self.folder.parent / (MAKING_PREFIX + FOLDER)
        self.disk.close(make_file(self.disk, self.path(base), staging, self._allocate))
        self.disk.fsync_dir(self.folder)

    def _allocate(self, fd: int) -> None:
        self.disk.allocate(fd, 0, self.file_bytes)
        if self._warm_bytes:
            self._warm(fd)
        self.disk.fdatasync(fd)

    def _warm(self, fd: int) -> None:
        zeros = bytes(min(self._warm_bytes, self.file_bytes))
        for start in range(0, self.file_bytes, len(zeros)):
            self.disk.pwritev(fd, [memoryview(zeros)[: self.file_bytes - start]], start)
            self.disk.fdatasync(fd)

    def descriptor(self, base: int) -> int:
        """Return a descriptor of the file at `base`, open for reading and writing; it stays this object's.

        Raises:
            FileNotFoundError: the cleaner has not made it yet, or has removed it.
        """
        fd = self._descriptors.get(base)
        if fd is None:
            fd = self.disk.open(self.path(base))
            self._descriptors[base] = fd
            if len(self._descriptors) > self._descriptors_max:
                self.disk.close(self._descriptors.popitem(last=False)[1])
        self._descriptors.move_to_end(base)
        return fd

    def append(self, log_offset: int, buffers: Sequence[BytesLike]) -> int:
        """Write `buffers` at `log_offset`, all inside one file; return the offset behind them.

        Raises:
            OSError: nothing can be said of the bytes in that range: the broker stops (StoreFailed).
        """
        base = self.base_of(log_offset)
        size = sum(map(len, buffers))
        assert log_offset + size <= base + self.file_bytes, (log_offset, size)
        self.disk.pwritev(self.descriptor(base), buffers, log_offset - base)
        return log_offset + size

    def sync(self, start: int, end: int) -> None:
        """Make the log's bytes in [start, end) durable.

        Raises:
            OSError: never to be tried again: the kernel reports a lost write only once.
        """
        base = self.base_of(start)
        while base < end:
            self.disk.fdatasync(self.descriptor(base))
            base += self.file_bytes

    def zero(self, start: int, end: int) -> None:
        """Make [start, end), all inside one file, read as zeros (a restarted writer undoes a batch so)."""
        base = self.base_of(start)
        assert end <= base + self.file_bytes, (start, end)
        self.disk.zero_range(self.descriptor(base), start - base, end - start)

    def cut(self, log_offset: int) -> None:
        """End the log at `log_offset`, durably: nothing behind it will ever be read as a record.

        Later files go, last one first, so that a crash in between leaves no gap; then the rest of the
        file of the cut is zeroed.
        """
        later = [base for base in self.bases() if base >= log_offset]
        keep = self.base_of(log_offset)
        for base in reversed(later):
            if base == keep:
                continue
            self.close(base)
            self.disk.unlink(self.path(base))
            self.disk.fsync_dir(self.folder)
        if self.exists(keep):
            self.zero(log_offset, keep + self.file_bytes)
            self.disk.fdatasync(self.descriptor(keep))

    def remove(self, base: int) -> None:
        """Unlink the file at `base` (the oldest one), durably; maps of it stay readable."""
        self.close(base)
        self.disk.unlink(self.path(base))
        self.disk.fsync_dir(self.folder)

    def close(self, base: int | None = None) -> None:
        """Close the descriptor of one file, or all."""
        for each in [base] if base is not None else list(self._descriptors):
            fd = self._descriptors.pop(each, None)
            if fd is not None:
                self.disk.close(fd)


class LogReader:
    """Read-only views of the log; keeps the maps of the last few files that were asked for.

    A view stays valid as long as somebody holds it, even when its file is unlinked or leaves the cache.
    """

    def __init__(self, disk: Disk, folder: Path, file_bytes: int, maps_max: int = 16) -> None:
        self.disk = disk
        self.folder = folder
        self.file_bytes = file_bytes
        self._maps: OrderedDict[int, memoryview] = OrderedDict()
        self._maps_max = maps_max

    def file(self, base: int) -> memoryview:
        """Return the whole file that begins at `base`.

        Raises:
            LogRemoved: there is no such file.
        """
        view = self._maps.get(base)
        if view is None:
            view = self._map(base)
            self._maps[base] = view
            if len(self._maps) > self._maps_max:
                self._maps.popitem(last=False)
        self._maps.move_to_end(base)
        return view

    def _map(self, base: int) -> memoryview:
        path = self.folder / file_name(base)
        try:
            fd = self.disk.open(path, write=False)
        except FileNotFoundError:
            raise LogRemoved(f"the log has no file {path.name}") from None
        try:
            # A map that reaches behind the end of a file would kill us by SIGBUS when it is read.
            if self.disk.size(path) < self.file_bytes:
                raise LogRemoved(f"the log's file {path.name} is being made")
            return self.disk.map_read(fd, self.file_bytes)
        finally:
            self.disk.close(fd)

    def view(self, log_offset: int, size: int) -> memoryview:
        """Return `size` bytes at `log_offset`; a record, or neighbours, never reach over the end of a file.

        Raises:
            LogRemoved: no such file, or the range leaves it.
        """
        at = log_offset % self.file_bytes
        if log_offset < 0 or at + size > self.file_bytes:
            raise LogRemoved(f"no {size} bytes at log offset {log_offset} lie in one file")
        return self.file(log_offset - at)[at : at + size]

    def parts(self, ranges: list[tuple[int, int]], size: int) -> tuple[BytesLike, ...]:
        """Return the bytes of log ranges: slices of the maps, or one copy where the ranges are short.

        Args:
            ranges: (log offset, bytes).
            size: bytes of all ranges together.
        Raises:
            LogRemoved: as `view`.
        """
        if len(ranges) > 1 and size < len(ranges) * SLICE_BYTES_MIN:
            base = ranges[0][0] - ranges[0][0] % self.file_bytes
            copied = gather(self.file(base), base, ranges, size)
            if copied is not None:
                return (copied,)
        return tuple(self.view(at, count) for at, count in ranges)

    def forget(self, below: int) -> None:
        """Drop the maps of files that end at or before log offset `below` (the cleaner removes them)."""
        for base in [base for base in self._maps if base + self.file_bytes <= below]:
            del self._maps[base]


def next_file(log_offset: LogOffset, file_bytes: int) -> LogOffset:
    """Return where the file after that of `log_offset` begins: there the log goes on behind a blank."""
    return LogOffset(log_offset - log_offset % file_bytes + file_bytes)
