"""The entries of queues, of whatever size, read and looked for by their numbers."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Final

from actormq.store.commit_log import file_name
from actormq.store.consume_queue import queue_folder
from actormq.store.disk import Disk
from actormq.store.tools.walking import Queue, sound_files

_CHUNK_ENTRIES: Final = 50_000


class EntryFiles:
    """The files of all queues in a folder.

    They are read by descriptors: a map of a sparse file takes memory for its holes.

    Args:
        file_bytes: of each file, a multiple of `entry_bytes`.
    """

    def __init__(
        self, disk: Disk, root: Path, file_bytes: int, entry_bytes: int, descriptors_max: int = 256
    ) -> None:
        self._disk = disk
        self._root = root
        self._file_bytes = file_bytes
        self._entry_bytes = entry_bytes
        self._descriptors: OrderedDict[Path, int] = OrderedDict()
        self._descriptors_max = descriptors_max

    def path(self, queue: Queue, number: int) -> Path:
        """Return the file in which an entry stands."""
        at = number * self._entry_bytes
        return queue_folder(self._root, *queue) / file_name(at - at % self._file_bytes)

    def complaints(self, queue: Queue) -> list[tuple[Path, str]]:
        """Return what is wrong with the files of a queue."""
        return sound_files(self._disk, queue_folder(self._root, *queue), self._file_bytes)[1]

    def read(self, queue: Queue, first: int, count: int) -> bytes:
        """Return entries; zeros where there is no file."""
        parts = []
        while count:
            path = self.path(queue, first)
            at = first * self._entry_bytes % self._file_bytes
            size = min(count * self._entry_bytes, self._file_bytes - at)
            fd = self._descriptor(path)
            parts.append((self._disk.pread(fd, size, at) if fd >= 0 else b"").ljust(size, b"\0"))
            first += size // self._entry_bytes
            count -= size // self._entry_bytes
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _descriptor(self, path: Path) -> int:
        fd = self._descriptors.get(path)
        if fd is None:
            try:
                fd = self._disk.open(path, write=False)
            except (FileNotFoundError, NotADirectoryError):
                return -1
            self._descriptors[path] = fd
            if len(self._descriptors) > self._descriptors_max:
                self._disk.close(self._descriptors.popitem(last=False)[1])
        self._descriptors.move_to_end(path)
        return fd

    def outside(self, queue: Queue, runs: list[tuple[int, int]]) -> list[tuple[int, bytes]]:
        """Return (number of the first, entries) of every stretch with data that is in none of `runs`."""
        found: list[tuple[int, bytes]] = []
        entries = self._file_bytes // self._entry_bytes
        for base in sound_files(self._disk, queue_folder(self._root, *queue), self._file_bytes)[0]:
            first = base // self._entry_bytes
            at = first
            for start, end in [*sorted(runs), (first + entries, first + entries)]:
                if at < (stop := min(start, first + entries)):
                    found += self._with_data(queue, at, stop)
                at = max(at, min(end, first + entries))
        return found

    def _with_data(self, queue: Queue, first: int, end: int) -> list[tuple[int, bytes]]:
        found = []
        while first < end:
            fd = self._descriptor(self.path(queue, first))
            if fd < 0 or not self._disk.has_data(fd, first * self._entry_bytes % self._file_bytes):
                break
            count = min(end - first, _CHUNK_ENTRIES)
            found.append((first, self.read(queue, first, count)))
            first += count
        return found

    def last_filled(self, first: int, chunk: bytes) -> int:
        """Return one past the last entry in `chunk` that is not all zeros."""
        return first + -(-len(chunk.rstrip(b"\0")) // self._entry_bytes)

    def close(self) -> None:
        for fd in self._descriptors.values():
            self._disk.close(fd)
        self._descriptors.clear()
