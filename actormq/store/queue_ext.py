"""The extension of consume queues, as RocketMQ writes it with `enableConsumeQueueExt`.  Only read.

``<store>/consumequeue_ext/<topic>/<queue id>/``: units of i16 size, i64 tags code, i64 store time, i16 bytes
of a bitmap, bitmap.  A queue entry has a unit's address, offset − 2⁶³, in place of its tags code.

Source: RocketMQ ConsumeQueueExt.java.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from actormq.kernels.queues import ENTRY, ENTRY_BYTES
from actormq.store.commit_log import file_name
from actormq.store.consume_queue import queue_folder
from actormq.store.disk import BytesLike, Disk

FOLDER: Final = "consumequeue_ext"
UNIT: Final = struct.Struct(">hqqh")
assert UNIT.size == 20
_ADDRESS_MAX: Final = -(1 << 31) - 1
_ADDRESS_ZERO: Final = -(1 << 63)


class QueueExtensions:
    """Tags codes of queue entries that have an address instead."""

    def __init__(self, disk: Disk, store_root: Path) -> None:
        self._disk = disk
        self._root = store_root / FOLDER

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
                if code <= _ADDRESS_MAX:
                    ENTRY.pack_into(resolved, at, log_offset, size, files.tags_code(code))
        finally:
            files.close()
        return resolved


class _Files:
    """The files of one queue; keeps one open."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk = disk
        self._folder = folder
        names = [
            name for name in disk.listdir(folder) if len(name) == 20 and name.isascii() and name.isdigit()
        ]
        self._names = set(names)
        self._file_bytes = disk.size(folder / names[0]) if names else 0
        self._fd = -1
        self._open = ""

    def close(self) -> None:
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1

    def tags_code(self, address: int) -> int:
        """Return the code of the unit at an address; the address itself when there is no unit."""
        if self._file_bytes < UNIT.size:
            return address
        offset = address - _ADDRESS_ZERO
        at = offset % self._file_bytes
        name = file_name(offset - at)
        if name not in self._names:
            return address
        if name != self._open:
            self.close()
            self._fd, self._open = self._disk.open(self._folder / name, write=False), name
        data = self._disk.pread(self._fd, UNIT.size, at)
        if len(data) < UNIT.size:
            return address
        size, code, _, bitmap_bytes = UNIT.unpack(data)
        return int(code) if size == UNIT.size + bitmap_bytes else address
