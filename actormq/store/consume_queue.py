"""Consume-queue files: one entry of 20 bytes per message, found by multiplication.

``consumequeue/<topic>/<queue id>/<20 digits>``: entry n is at byte n × 20 of the queue, so writing one
twice changes nothing.  Files are sparse and have their full size from the start.  In the first file of
a queue that does not begin at 0, fillers (log offset 0, size 0x7FFFFFFF) stand before the first entry.

dispatcher: `QueueFiles.write`.  gateways, holder, scheduler: `QueueReader.view`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Final

from actormq.errors import ResponseCode, StoreError
from actormq.kernels.queues import BLANK_ENTRY_SIZE, ENTRY, ENTRY_BYTES
from actormq.store.commit_log import MAKING_PREFIX, file_name, is_name, list_some_bases, make_file
from actormq.store.disk import BytesLike, Disk, OnlyFile

FOLDER: Final = "consumequeue"
FILLER: Final = ENTRY.pack(0, BLANK_ENTRY_SIZE, 0)
_FILLERS_PER_WRITE: Final = 4096


class QueueRemoved(StoreError):
    """That part of the queue is not there."""

    response_code = ResponseCode.PULL_OFFSET_MOVED


class BadName(StoreError):
    """A topic or queue id that must not become a path."""

    response_code = ResponseCode.MESSAGE_ILLEGAL


@lru_cache(maxsize=256)
def queue_folder(root: Path, topic: str, queue_id: int) -> Path:
    """Return the folder of one queue below `root` (``<store>/consumequeue``).

    Raises:
        BadName: the name would leave `root`, or no file system takes it.
    """
    if (
        topic in ("", ".", "..")
        or "/" in topic
        or "\0" in topic
        or len(topic.encode("utf-8", "surrogatepass")) > 255
    ):
        raise BadName(f"{topic[:64]!r} cannot be the name of a folder")
    if queue_id < 0:
        raise BadName(f"a queue id of {queue_id} cannot be the name of a folder")
    return root.joinpath(topic, str(queue_id))


MANY_FILES: Final = 256
"""So many are not synced one by one, four calls for each new one, but with all that the file system has."""


class QueueFiles:
    """Writes queues; keeps the descriptors of those that it used last.

    Args:
        root: ``<store>/consumequeue``.
        entries_per_file: 300,000 in a default store.
        entry_bytes: of another kind of queue.
    """

    def __init__(
        self,
        disk: Disk,
        root: Path,
        entries_per_file: int,
        descriptors_max: int = 512,
        entry_bytes: int = ENTRY_BYTES,
    ) -> None:
        self.disk = disk
        self.root = root
        self.entries_per_file = entries_per_file
        self.entry_bytes = entry_bytes
        self.file_bytes = entries_per_file * entry_bytes
        self._descriptors: OrderedDict[Path, int] = OrderedDict()
        self._descriptors_max = descriptors_max
        self._dirty: dict[Path, None] = {}
        self._volume = -1
        self._newest: dict[tuple[str, int], tuple[int, Path]] = {}
        """Where the file begins to which a queue was last written, and its path: to make one takes longer
        than the write."""

    def write(self, topic: str, queue_id: int, queue_offset: int, entries: BytesLike) -> None:
        """Write consecutive entries, the first of them at `queue_offset`.

        A first file is filled up to the first entry; a file that is not there yet is made.

        Raises:
            OSError: ENOSPC and the like; what was written is harmless, the whole call may be repeated.
        """
        assert len(entries) % self.entry_bytes == 0, len(entries)
        assert queue_offset >= 0, queue_offset
        view = memoryview(entries)
        at = queue_offset * self.entry_bytes
        while len(view):
            base = at - at % self.file_bytes
            part = view[: base + self.file_bytes - at]
            path = self._path(topic, queue_id, base)
            fd = self._open(path, at - base)
            self.disk.pwritev(fd, [part], at - base)
            self._dirty[path] = None
            view = view[len(part) :]
            at += len(part)

    def _path(self, topic: str, queue_id: int, base: int) -> Path:
        newest = self._newest.get((topic, queue_id))
        if newest is not None and newest[0] == base:
            return newest[1]
        path = queue_folder(self.root, topic, queue_id) / file_name(base)
        if len(self._newest) >= 2 * self._descriptors_max:
            self._newest.clear()
        self._newest[topic, queue_id] = base, path
        return path

    def _open(self, path: Path, first_at: int) -> int:
        fd = self._descriptors.get(path)
        if fd is None:
            fd = self.disk.open(path) if self._is_whole(path) else self._create(path, first_at)
            self._descriptors[path] = fd
            if len(self._descriptors) > self._descriptors_max:
                self.disk.close(self._descriptors.popitem(last=False)[1])
        self._descriptors.move_to_end(path)
        return fd

    def _is_whole(self, path: Path) -> bool:
        return self.disk.exists(path) and self.disk.size(path) == self.file_bytes

    def _create(self, path: Path, first_at: int) -> int:
        """Make a queue file whose first entry will be at byte `first_at`; return its descriptor."""

        def prepare(fd: int) -> None:
            self.disk.extend(fd, self.file_bytes)
            self._fill(fd, first_at)

        return make_file(self.disk, path, self.root.parent / (MAKING_PREFIX + FOLDER), prepare)

    def _fill(self, fd: int, end: int) -> None:
        fillers = FILLER * min(_FILLERS_PER_WRITE, end // ENTRY_BYTES)
        at = 0
        while at < end:
            part = memoryview(fillers)[: end - at]
            self.disk.pwritev(fd, [part], at)
            at += len(part)

    def cut(self, topic: str, queue_id: int, queue_offset: int) -> None:
        """End the queue before entry `queue_offset`, durably: later files go, the rest reads as zeros.

        The first file always stays: its name says that the queue's offsets were used up to there.
        """
        folder = queue_folder(self.root, topic, queue_id)
        end = queue_offset * self.entry_bytes
        bases = self.bases(topic, queue_id)
        for base in reversed(bases):
            path = folder / file_name(base)
            if base >= end and base != bases[0]:
                self.close(path)
                self.disk.unlink(path)
                self.disk.fsync_dir(folder)
            elif base + self.file_bytes > end:
                fd = self._open(path, 0)
                at = max(end - base, 0)
                if self.disk.has_data(fd, at):
                    self.disk.punch(fd, at, self.file_bytes - at)
                    self.disk.fdatasync(fd)

    def bases(self, topic: str, queue_id: int) -> list[int]:
        """Return where each file of the queue begins, in bytes; there may be gaps."""
        folder = queue_folder(self.root, topic, queue_id)
        return list_some_bases(self.disk, folder, self.file_bytes, empty_are_fine=True)

    def only_file(self, topic: str, queue_id: int, size: int) -> tuple[int, OnlyFile] | None:
        """Return where the queue's one file begins, and its first `size` bytes; None: `bases` says more.

        It takes half as long: most queues have one file.
        """
        found = self.disk.only_file(queue_folder(self.root, topic, queue_id), size)
        if found is None or found.length != self.file_bytes or not is_name(found.name):
            return None
        base = int(found.name)
        return None if base % self.file_bytes else (base, found)

    def remove_before(self, topic: str, queue_id: int, queue_offset: int) -> None:
        """Unlink the files that end at or before entry `queue_offset`; the last file always stays."""
        folder = queue_folder(self.root, topic, queue_id)
        for base in self.bases(topic, queue_id)[:-1]:
            if base + self.file_bytes <= queue_offset * self.entry_bytes:
                self.close(folder / file_name(base))
                self.disk.unlink(folder / file_name(base))

    def remove_queue(self, topic: str, queue_id: int) -> None:
        """Unlink the whole queue."""
        folder = queue_folder(self.root, topic, queue_id)
        for name in self.disk.listdir(folder):
            self.close(folder / name)
            self.disk.unlink(folder / name)
        if self.disk.exists(folder):
            self.disk.remove_folder(folder)

    def open_volume(self) -> None:
        """Have `sync` make many files durable at once; before the first write."""
        self.disk.mkdir(self.root)
        self._volume = self.disk.open_volume(self.root)

    def dirty(self) -> list[Path]:
        """Return the files written since the last call: who asks makes them durable (`sync_files`)."""
        paths = list(self._dirty)
        self._dirty.clear()
        return paths

    def sync(self) -> None:
        """Make everything written so far durable, names included."""
        paths = self.dirty()
        many = len(paths) > MANY_FILES and self._volume >= 0
        if not (many and self.disk.sync_volume(self._volume)):
            sync_files(self.disk, self.root, paths)

    def close(self, path: Path | None = None) -> None:
        """Close the descriptor of one file, or all."""
        if path is None and self._volume >= 0:
            self.disk.close(self._volume)
            self._volume = -1
        for each in [path] if path is not None else list(self._descriptors):
            fd = self._descriptors.pop(each, None)
            if fd is not None:
                self.disk.close(fd)


def sync_files(disk: Disk, root: Path, paths: list[Path]) -> None:
    """Make queue files durable, and their names: the folders up to `root`.  Removed ones are passed over."""
    folders: dict[Path, None] = {}
    for path in paths:
        try:
            fd = disk.open(path)
        except FileNotFoundError:
            continue
        try:
            disk.fdatasync(fd)
        finally:
            disk.close(fd)
        folders[path.parent] = None
        folders[path.parent.parent] = None
    for folder in folders:
        if disk.exists(folder):
            disk.fsync_dir(folder)
    if folders and disk.exists(root):
        disk.fsync_dir(root)


class QueueReader:
    """Read-only views of queue files; keeps the maps of those that were asked for last.

    Maps are known by (topic, queue id, incarnation): when a topic is deleted and made again, the
    extents' incarnation changes, and the dead file is not served.
    """

    def __init__(self, disk: Disk, root: Path, entries_per_file: int, maps_max: int = 512) -> None:
        self.disk = disk
        self.root = root
        self.file_bytes = entries_per_file * ENTRY_BYTES
        self._maps: OrderedDict[tuple[str, int, int, int], memoryview] = OrderedDict()
        self._maps_max = maps_max

    def view(
        self, topic: str, queue_id: int, queue_offset: int, count: int, incarnation: int = 0
    ) -> memoryview:
        """Return up to `count` entries from `queue_offset` on: fewer where the file ends, at least one.

        The caller keeps below the queue's published end: what lies behind it reads as zeros or worse.

        Raises:
            QueueRemoved: there is no file with that entry.
        """
        at = queue_offset * ENTRY_BYTES % self.file_bytes
        return self.file(topic, queue_id, queue_offset, incarnation)[at : at + count * ENTRY_BYTES]

    def file(self, topic: str, queue_id: int, queue_offset: int, incarnation: int = 0) -> memoryview:
        """Return the whole file that has an entry.

        Raises:
            QueueRemoved: there is none.
        """
        base = queue_offset * ENTRY_BYTES // self.file_bytes * self.file_bytes
        key = (topic, queue_id, incarnation, base)
        view = self._maps.get(key)
        if view is None:
            view = self._map(topic, queue_id, base)
            self._maps[key] = view
            if len(self._maps) > self._maps_max:
                self._maps.popitem(last=False)
        self._maps.move_to_end(key)
        return view

    def _map(self, topic: str, queue_id: int, base: int) -> memoryview:
        path = queue_folder(self.root, topic, queue_id) / file_name(base)
        try:
            fd = self.disk.open(path, write=False)
        except FileNotFoundError:
            raise QueueRemoved(f"queue {queue_id} of {topic} has no file {path.name}") from None
        try:
            if self.disk.size(path) < self.file_bytes:
                raise QueueRemoved(f"file {path.name} of queue {queue_id} of {topic} is being made")
            return self.disk.map_read(fd, self.file_bytes)
        finally:
            self.disk.close(fd)

    def entry(
        self, topic: str, queue_id: int, queue_offset: int, incarnation: int = 0
    ) -> tuple[int, int, int]:
        """Return (log offset, record size, tags code) of one entry."""
        log_offset, size, code = ENTRY.unpack(self.view(topic, queue_id, queue_offset, 1, incarnation))
        return log_offset, size, code

    def forget(self, topic: str, queue_id: int) -> None:
        """Drop the maps of one queue."""
        for key in [key for key in self._maps if key[:2] == (topic, queue_id)]:
            del self._maps[key]


class Boundary(Enum):
    """Which of several messages of one store time a search by time means."""

    LOWER = "lower"
    """The first with this time or later."""
    UPPER = "upper"
    """The last with this time or earlier."""


def first_at_or_after(first: int, end: int, value: int, value_at: Callable[[int], int]) -> int:
    """Return the first n in [first, end) with ``value_at(n) >= value``, else `end`; values never fall."""
    while first < end:
        middle = (first + end) // 2
        if value_at(middle) >= value:
            end = middle
        else:
            first = middle + 1
    return first


def offset_by_time(
    queue_min: int, queue_max: int, timestamp: int, boundary: Boundary, timestamp_at: Callable[[int], int]
) -> int:
    """Return the queue offset that RocketMQ answers for a store time, inside [queue_min, queue_max].

    Args:
        timestamp_at: the store timestamp of the message at a queue offset.
    """
    if queue_max <= queue_min:
        return queue_min
    if boundary is Boundary.LOWER:
        return first_at_or_after(queue_min, queue_max, timestamp, timestamp_at)
    later = first_at_or_after(queue_min, queue_max, timestamp + 1, timestamp_at)
    return max(later - 1, queue_min)
