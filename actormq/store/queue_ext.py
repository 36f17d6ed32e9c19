"""The extension of consume queues (RocketMQ's `enableConsumeQueueExt`): tags code and store time, once more.

``<store>/consumequeue_ext/<topic>/<queue id>/<20 digits>``: units of i16 size, i64 tags code, i64 store time,
i16 bytes of a bitmap, bitmap.  A queue entry has a unit's address, offset − 2⁶³, in place of its tags code.
A unit lies in one file; where the next one does not fit, −1 stands in the place of its size.

dispatcher: `ExtensionFiles.put`.  gateways: `QueueExtensions.resolve`.

Source: RocketMQ ConsumeQueueExt.java, ConsumeQueue.java.  RocketMQ writes a bitmap where a topic
has SQL filters; ours have none, and without one it looks at the message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from actormq.config import StoreConfig
from actormq.kernels.queues import ENTRY, ENTRY_BYTES, find_units_end, make_units
from actormq.store import consume_queue
from actormq.store.commit_log import file_name
from actormq.store.consume_queue import QueueFiles, queue_folder, sync_files
from actormq.store.disk import BytesLike, Disk

FOLDER: Final = "consumequeue_ext"
UNIT: Final = struct.Struct(">hqqh")
assert UNIT.size == 20
ADDRESS_MAX: Final = -(1 << 31) - 1
"""A tags code up to here is an address."""
_ADDRESS_ZERO: Final = -(1 << 63)
_FULL: Final = struct.pack(">h", -1)
_KEPT_BYTES: Final = 4
"""At the end of a file, for `_FULL`."""
_QUEUES_MAX: Final = 4096


class Unit(NamedTuple):
    """One unit, without its bitmap."""

    tags_code: int
    end: int
    """The offset behind it."""


class QueueExtensions:
    """Tags codes of queue entries that have an address instead."""

    def __init__(self, disk: Disk, store_root: Path) -> None:
        self._disk = disk
        self._root = store_root / FOLDER

    @classmethod
    def of(cls, disk: Disk, store_root: Path) -> QueueExtensions | None:
        """Return those of a store that has some."""
        return cls(disk, store_root) if disk.is_folder(store_root / FOLDER) else None

    def has(self, topic: str) -> bool:
        """Say whether some queue of the topic has an extension."""
        return self._disk.is_folder(queue_folder(self._root, topic, 0).parent)

    def resolve(self, topic: str, queue_id: int, entries: BytesLike) -> bytearray:
        """Return `entries` with tags codes in place of addresses, where the extension has them."""
        resolved = bytearray(entries)
        files = _Files(self._disk, queue_folder(self._root, topic, queue_id))
        try:
            for at in range(0, len(resolved), ENTRY_BYTES):
                log_offset, size, code = ENTRY.unpack_from(resolved, at)
                if code <= ADDRESS_MAX and (unit := files.unit(code)) is not None:
                    ENTRY.pack_into(resolved, at, log_offset, size, unit.tags_code)
        finally:
            files.close()
        return resolved


class _Files:
    """The files of one queue, whatever their size; keeps one open."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk = disk
        self._folder = folder
        names = [
            name for name in disk.listdir(folder) if len(name) == 20 and name.isascii() and name.isdigit()
        ]
        self.names = set(names)
        self.file_bytes = disk.size(folder / names[-1]) if names else 0
        self._fd = -1
        self._open = ""

    def close(self) -> None:
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd, self._open = -1, ""

    def unit(self, address: int) -> Unit | None:
        """Return the unit at an address; None when there is none."""
        if self.file_bytes < UNIT.size:
            return None
        offset = address - _ADDRESS_ZERO
        at = offset % self.file_bytes
        name = file_name(offset - at)
        if name not in self.names:
            return None
        if name != self._open:
            self.close()
            try:
                self._fd = self._disk.open(self._folder / name, write=False)
            except FileNotFoundError:
                return None  # the cleaner has just removed it
            self._open = name
        data = self._disk.pread(self._fd, UNIT.size, at)
        if len(data) < UNIT.size:
            return None
        size, code, _, bitmap_bytes = UNIT.unpack(data)
        return Unit(int(code), offset + size) if size == UNIT.size + bitmap_bytes else None


class ExtensionFiles:
    """Writes units, and removes those to which no entry leads any more.

    Where the next unit goes is told by the entry before: after a kill the same entries get the same units at
    the same addresses.  Only where that entry has none, because the extension was just switched on, the units
    that a dead predecessor wrote stay, and nothing leads there (RocketMQ leaves such ones, too).
    """

    def __init__(self, disk: Disk, config: StoreConfig) -> None:
        self.root = config.root / FOLDER
        self._disk = disk
        self._file_bytes = config.queue_ext_file_bytes
        self._files = QueueFiles(disk, self.root, self._file_bytes, entry_bytes=1)
        self._queues = config.root / consume_queue.FOLDER
        self._queue_file_bytes = config.queue_file_entries * ENTRY_BYTES
        self._next: dict[tuple[str, int], tuple[int, int]] = {}
        """Of each queue: the next entry, and where its unit goes."""

    def put(
        self, topic: str, queue_id: int, first: int, entries: bytearray, log: memoryview, base: int
    ) -> None:
        """Write a unit for each of consecutive entries, and have the entries lead there.

        Args:
            first: the queue offset of the first entry; those before it have been written.
            log: the log file in which the records lie, and `base` its first byte's log offset.

        Raises:
            OSError: what was written is harmless, the call may be repeated with entries made anew.
        """
        at = self._place_of(topic, queue_id, first)
        count = len(entries) // ENTRY_BYTES
        done = 0
        while done < count:
            left = self._file_bytes - at % self._file_bytes
            fit = min((left - _KEPT_BYTES) // UNIT.size, count - done)
            if fit > 0:
                units = make_units(log, base, entries, done, fit, _ADDRESS_ZERO + at)
                self._files.write(topic, queue_id, at, units)
                at += len(units)
                done += fit
            else:
                self._end_file(topic, queue_id, at, left)
                at += left
        if len(self._next) >= _QUEUES_MAX:
            self._next.clear()
        self._next[topic, queue_id] = first + count, at

    def _place_of(self, topic: str, queue_id: int, first: int) -> int:
        following, at = self._next.get((topic, queue_id), (-1, 0))
        if following == first:
            return at
        if first == 0:
            return 0
        code = self._code_at(topic, queue_id, first - 1)
        if code > ADDRESS_MAX:
            return self._end(topic, queue_id)
        unit = self._unit(topic, queue_id, code)
        if unit is not None:
            return unit.end
        # Units were lost: what comes must not lie where entries lead that mean others.
        lost = code - _ADDRESS_ZERO
        return max(self._end(topic, queue_id), lost - lost % self._file_bytes + self._file_bytes)

    def _end_file(self, topic: str, queue_id: int, at: int, left: int) -> None:
        """Mark a file as full, durably: after this the flusher syncs the next one."""
        if left >= len(_FULL):
            self._files.write(topic, queue_id, at, _FULL)
        folder = queue_folder(self.root, topic, queue_id)
        sync_files(self._disk, self.root, [folder / file_name(at + left - self._file_bytes)])

    def _code_at(self, topic: str, queue_id: int, queue_offset: int) -> int:
        """Return the tags code, or address, of a queue's entry; 0 when there is no such entry."""
        at = queue_offset * ENTRY_BYTES
        base = at - at % self._queue_file_bytes
        try:
            fd = self._disk.open(queue_folder(self._queues, topic, queue_id) / file_name(base), write=False)
        except FileNotFoundError:
            return 0
        try:
            entry = self._disk.pread(fd, ENTRY_BYTES, at - base)
        finally:
            self._disk.close(fd)
        return int(ENTRY.unpack(entry)[2]) if len(entry) == ENTRY_BYTES else 0

    def _unit(self, topic: str, queue_id: int, address: int) -> Unit | None:
        files = _Files(self._disk, queue_folder(self.root, topic, queue_id))
        try:
            return files.unit(address)
        finally:
            files.close()

    def _end(self, topic: str, queue_id: int) -> int:
        """Return the offset behind the last unit, whoever leads there."""
        bases = self._files.bases(topic, queue_id)
        if not bases:
            return 0
        path = queue_folder(self.root, topic, queue_id) / file_name(bases[-1])
        fd = self._disk.open(path, write=False)
        try:
            return bases[-1] + find_units_end(self._disk.map_read(fd, self._file_bytes))
        finally:
            self._disk.close(fd)

    def check(self, queues: Iterable[tuple[str, int]]) -> None:
        """Look whether the files of these queues can be gone on with.

        Raises:
            StoreForeign: the first that has another size than the setting.
        """
        for topic, queue_id in queues:
            self._files.bases(topic, queue_id)

    def cut(self, topic: str, queue_id: int, queue_offset: int) -> None:
        """Take away, durably, the units behind that of the last entry of a queue that ends at `queue_offset`.

        Where that entry has none all stays: some entry before it may lead anywhere.
        """
        end = 0
        if queue_offset > 0:
            code = self._code_at(topic, queue_id, queue_offset - 1)
            unit = self._unit(topic, queue_id, code) if code <= ADDRESS_MAX else None
            if unit is None:
                return
            end = unit.end
        self._next.pop((topic, queue_id), None)
        self._files.cut(topic, queue_id, end)

    def remove_before(self, topic: str, queue_id: int, queue_offset: int) -> None:
        """Unlink the files that end at or before the unit of entry `queue_offset`; the last one stays."""
        folder = queue_folder(self.root, topic, queue_id)
        files = _Files(self._disk, folder)
        code = self._code_at(topic, queue_id, queue_offset) if len(files.names) > 1 else 0
        if code <= ADDRESS_MAX:
            for name in sorted(files.names)[:-1]:
                if int(name) + files.file_bytes <= code - _ADDRESS_ZERO:
                    self._files.close(folder / name)
                    self._disk.unlink(folder / name)

    def remove_queue(self, topic: str, queue_id: int) -> None:
        """Unlink the extension of a queue, whoever wrote it, and the topic's folder with the last one."""
        self._next.pop((topic, queue_id), None)
        folder = self.root / topic
        if self._disk.exists(folder):
            self._files.remove_queue(topic, queue_id)
            if not self._disk.listdir(folder):
                self._disk.remove_folder(folder)

    def sync(self) -> None:
        """Make everything written so far durable, names included."""
        self._files.sync()

    def forget_dirty(self) -> None:
        """Somebody else finds what to sync (`newest_files`)."""
        self._files.dirty()

    def close(self) -> None:
        self._files.close()


def newest_files(disk: Disk, store_root: Path, queue_files: Iterable[Path]) -> list[Path]:
    """Return the newest extension file of each queue that has one of these files; full ones are durable."""
    found = []
    for topic, queue_id in dict.fromkeys((path.parent.parent.name, path.parent.name) for path in queue_files):
        folder = store_root / FOLDER / topic / queue_id
        names = [name for name in disk.listdir(folder) if name.isdigit()]
        if names:
            found.append(folder / max(names))
    return found
