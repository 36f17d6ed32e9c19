"""How a store was made: the sizes of its files, found in the files themselves.

Nothing in a store says how large its files are meant to be; RocketMQ and we take it from the settings.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from actormq.config import StoreConfig
from actormq.errors import StoreForeign
from actormq.kernels import checks
from actormq.kernels.queues import ENTRY_BYTES, INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, INDEX_SLOT_BYTES
from actormq.store import batch_queue, commit_log, consume_queue, index
from actormq.store.disk import Disk
from actormq.store.queue_bounds import queues_on_disk

_SEARCH_BYTES: Final = 4 * 1024 * 1024
_RATIO: Final = INDEX_SLOT_BYTES + 4 * INDEX_ENTRY_BYTES
"""Bytes a slot where there are four entries to each, as in every default."""
_DEFAULT: Final = StoreConfig(root=Path())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What `Layout` is told instead of looking; 0: look."""

    log_file_bytes: int = 0
    queue_file_entries: int = 0
    batch_queue_file_entries: int = 0
    index_slots: int = 0
    index_entries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a store is, and the sizes of its files (RocketMQ's defaults where it has none yet)."""

    root: Path
    log_file_bytes: int
    queue_file_entries: int
    batch_queue_file_entries: int
    index_slots: int
    index_entries: int

    @property
    def log(self) -> Path:
        return self.root / commit_log.FOLDER

    @property
    def queues(self) -> Path:
        return self.root / consume_queue.FOLDER

    @property
    def index(self) -> Path:
        return self.root / index.FOLDER

    @property
    def index_file_bytes(self) -> int:
        return index.file_bytes(self.index_slots, self.index_entries)

    def at(self, root: Path) -> Layout:
        """Return the same sizes in another folder."""
        return replace(self, root=root)


def find_layout(disk: Disk, root: Path, given: Sizes | None = None) -> Layout:
    """Return how the store in `root` was made.

    Raises:
        StoreForeign: there is no store, or the sizes of its index cannot be told from its files.
    """
    given = given or Sizes()
    if not any(disk.is_folder(root / name) for name in (commit_log.FOLDER, consume_queue.FOLDER)):
        raise StoreForeign(
            f"{root} is no store: it has neither {commit_log.FOLDER} nor {consume_queue.FOLDER}"
        )
    slots, entries = given.index_slots, given.index_entries
    if not (slots and entries):
        slots, entries = _index_sizes(disk, root / index.FOLDER)
    return Layout(
        root=root,
        log_file_bytes=given.log_file_bytes
        or _most_common(_sizes(disk, root / commit_log.FOLDER))
        or _DEFAULT.log_file_bytes,
        queue_file_entries=given.queue_file_entries
        or queue_file_bytes(disk, root / consume_queue.FOLDER) // ENTRY_BYTES
        or _DEFAULT.queue_file_entries,
        batch_queue_file_entries=given.batch_queue_file_entries
        or queue_file_bytes(disk, root / batch_queue.FOLDER) // batch_queue.ENTRY_BYTES
        or _DEFAULT.batch_queue_file_entries,
        index_slots=slots,
        index_entries=entries,
    )


def _sizes(disk: Disk, folder: Path) -> list[int]:
    paths = [folder / name for name in disk.listdir(folder) if len(name) == 20 and name.isdigit()]
    return [disk.size(path) for path in paths if not disk.is_folder(path)]


def queue_file_bytes(disk: Disk, root: Path) -> int:
    """Return the size that most files of all queues in a folder have; 0 without any."""
    return _most_common(_queue_sizes(disk, root))


def _queue_sizes(disk: Disk, root: Path) -> Iterable[int]:
    for topic, queue_id in queues_on_disk(disk, root):
        yield from _sizes(disk, consume_queue.queue_folder(root, topic, queue_id))


def _most_common(sizes: Iterable[int]) -> int:
    """Return the size that most files have, the largest of several; 0 without any."""
    counts = Counter(size for size in sizes if size)
    return max(counts, key=lambda size: (counts[size], size), default=0)


def _index_sizes(disk: Disk, folder: Path) -> tuple[int, int]:
    """Return slots and entries of the index files; a default's where there are none."""
    names = [name for name in disk.listdir(folder) if len(name) == 17 and name.isdigit()]
    size = _most_common(disk.size(folder / name) for name in names)
    if not size:
        return _DEFAULT.index_slots, _DEFAULT.index_entries
    usual = (size - INDEX_HEADER_BYTES) // _RATIO
    for name in reversed(names):
        if disk.size(folder / name) == size:
            fd = disk.open(folder / name, write=False)
            try:
                view = disk.map_read(fd, size)
            finally:
                disk.close(fd)
            slots = _slots_by_entries(view, usual)
            if slots:
                return slots, _entries(size, slots)
    if INDEX_HEADER_BYTES + usual * _RATIO == size:
        return usual, 4 * usual
    raise StoreForeign(
        f"{folder}: files of {size} bytes, of how many slots and entries cannot be told: say --index-slots"
    )


def _entries(size: int, slots: int) -> int:
    return (size - INDEX_HEADER_BYTES - slots * INDEX_SLOT_BYTES) // INDEX_ENTRY_BYTES


def _slots_by_entries(view: memoryview, usual: int) -> int:
    """Return how many slots an index file has, by where its last entry stands; 0 when it has no entries.

    The entry has the header's last offset, and the slot of its hash has the entry's number.
    """
    header = index.read_header(view)
    number = header.next_number - 1
    if number < 1:
        return 0
    if _is_last_entry(view, usual, number, header.end_offset):
        return usual
    weak = 0
    pattern = struct.pack(">q", header.end_offset)
    for at in range(0, len(view), _SEARCH_BYTES):
        piece = bytes(view[at : at + _SEARCH_BYTES + len(pattern) - 1])
        found = piece.find(pattern)
        while found >= 0:
            entries_at = at + found - 4 - number * INDEX_ENTRY_BYTES
            slots, rest = divmod(entries_at - INDEX_HEADER_BYTES, INDEX_SLOT_BYTES)
            if rest == 0 and slots > 0 and _is_last_entry(view, slots, number, header.end_offset):
                # One message may have several keys: only with the right slots all its links are right.
                if not any(checks.check_links(view, slots, number + 1, True)[::2]):
                    return slots
                weak = weak or slots
            found = piece.find(pattern, found + 1)
    return weak


def _is_last_entry(view: memoryview, slots: int, number: int, log_offset: int) -> bool:
    at = INDEX_HEADER_BYTES + slots * INDEX_SLOT_BYTES + number * INDEX_ENTRY_BYTES
    if slots < 1 or at + INDEX_ENTRY_BYTES > len(view) or (len(view) - at) % INDEX_ENTRY_BYTES:
        return False
    hashed, offset = struct.unpack_from(">iq", view, at)
    if hashed < 0 or offset != log_offset:
        return False
    (newest,) = struct.unpack_from(">i", view, INDEX_HEADER_BYTES + hashed % slots * INDEX_SLOT_BYTES)
    return bool(newest == number)
