"""The log ended earlier, queues and index with it; what was cut is kept aside.

No file is shortened or overwritten: the one in which the cut lies is made anew and takes the old one's place.
Killed at any moment, the log ends at the cut or later, and the next start brings the rest into order.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from actormq.errors import StoreError, StoreForeign
from actormq.kernels import checks, records
from actormq.kernels.queues import ENTRY_BYTES, INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, INDEX_SLOT_BYTES
from actormq.store import checkpoint as checkpoints
from actormq.store import commit_log, index, marks
from actormq.store.checkpoint import Checkpoint
from actormq.store.commit_log import file_name
from actormq.store.consume_queue import QueueFiles
from actormq.store.disk import Disk
from actormq.store.queue_bounds import find_bounds, queues_on_disk
from actormq.store.tools.layout import Layout
from actormq.store.tools.rebuilding import remove_tree
from actormq.store.tools.trust import index_timestamp, read_trust
from actormq.store.tools.walking import BadPlace, Dispatching, Log, Piece

KEPT_PREFIX: Final = "truncated-"
_COPY_BYTES: Final = 8 * 1024 * 1024


class NoBoundary(StoreError):
    """No record ends, and none begins, at that log offset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What lies behind a log offset."""

    log_offset: int
    log_end: int
    """Where the last good record ends now."""
    records: int
    queues: Counter[tuple[str, int]]
    first_store_timestamp: int
    last_store_timestamp: int
    files: list[Path] = field(default_factory=list)
    """Those that go whole."""
    bad_places: list[BadPlace] = field(default_factory=list)


def plan(disk: Disk, layout: Layout, log_offset: int) -> Cut:
    """Say what a truncation would take away.

    Raises:
        NoBoundary: it would cut a record in two.
        StoreForeign: the log is not whole enough to be read.
    """
    log = Log(disk, layout)
    for path, what in log.complaints:
        raise StoreForeign(f"{path} {what}")
    if not log.min <= log_offset <= log.top:
        raise NoBoundary(f"{log_offset} is not in the log, which has offsets {log.min} to {log.top}")
    _check_boundary(log, log_offset)
    counts: Counter[tuple[str, int]] = Counter()
    dispatching = Dispatching([], {})
    bad_places, number, first, last = [], 0, 0, 0
    for found in log.walk(log_offset, log.top):
        if isinstance(found, BadPlace):
            bad_places.append(found)
            continue
        first = first or records.decode(found.view, found.start - found.base).store_timestamp
        last, number = found.last_store_timestamp, number + found.records
        _count(dispatching, found, counts)
    return Cut(
        log_offset=log_offset,
        log_end=log.reached,
        records=number,
        queues=counts,
        first_store_timestamp=first,
        last_store_timestamp=last,
        files=[layout.log / file_name(base) for base in log.bases[1:] if base >= log_offset],
        bad_places=bad_places,
    )


def _count(dispatching: Dispatching, piece: Piece, counts: Counter[tuple[str, int]]) -> None:
    for made in dispatching.pieces(piece):
        for row, _, entries in made.runs:
            queue = dispatching.queues[row]
            if queue is not None:
                counts[queue] += len(entries) // ENTRY_BYTES


def _check_boundary(log: Log, log_offset: int) -> None:
    base = log_offset - log_offset % log.layout.log_file_bytes
    if base not in log.bases:
        return
    reached = base
    for found in log.walk(base, log_offset):
        if isinstance(found, Piece):
            last = records.scan(found.view, found.start - base, base, records.CRC_NOT, log_offset - base)
            reached, inside = found.end, base + last.last_start
        else:
            # Of what is damaged nobody knows where records begin: only its two ends are boundaries.
            reached, inside = (log.top if found.end is None else found.end), found.start
            if found.start == log_offset:
                return
        if reached > log_offset:
            raise NoBoundary(
                f"{log_offset} is inside what reaches from {inside} to {reached}: cut at one of these"
            )


def truncate(disk: Disk, layout: Layout, log_offset: int, *, pid: int, kept: Path, keep: bool = True) -> Cut:
    """End the log at `log_offset`; the caller holds the store's lock.

    Args:
        pid: who works here, for `abort`, which stays: the next start looks at everything once more.
        kept: a new folder for what is cut, on the same file system.
        keep: leave it there.

    Raises:
        NoBoundary, StoreForeign: as `plan`; nothing was changed.
    """
    cut = plan(disk, layout, log_offset)
    log = Log(disk, layout)
    trust = read_trust(disk, layout, log)
    disk.mkdir(kept)
    marks.create_abort(disk, layout.root, pid)
    marks.remove_clean(disk, layout.root)
    name, next_number = _index_end(disk, layout, trust.index_files, log_offset)
    stamp = _timestamp_before(log, log_offset)
    last = Checkpoint(
        log_timestamp=stamp,
        queues_timestamp=stamp,
        master_flushed_offset=trust.checkpoint.master_flushed_offset,
        confirm_offset=min(trust.checkpoint.confirm_offset, log_offset),
        log_flushed=log_offset,
        queues_flushed=max(log.min, min(trust.queues, log_offset)),
        index_flushed=max(log.min, min(trust.index, log_offset)),
        index_file=int(name) if name else 0,
        index_next=next_number,
    )
    _sync_before(disk, log, log_offset)
    # Before anything goes: from here on nobody misses what lies behind.
    checkpoints.write(disk, layout.root / checkpoints.NAME, last)
    _cut_log(disk, layout, log, log_offset, kept)
    _cut_queues(disk, layout, log_offset)
    _cut_index(disk, layout, name, next_number)
    last = replace(last, index_timestamp=index_timestamp(disk, layout))
    checkpoints.write(disk, layout.root / checkpoints.NAME, last)
    if not keep:
        remove_tree(disk, kept)
    disk.fsync_dir(layout.root)
    return cut


def _timestamp_before(log: Log, log_offset: int) -> int:
    """Return the store time of the last record before the cut; 0 without one."""
    inside = [base for base in log.bases if base < log_offset]
    for base in reversed(inside):
        pieces = [found for found in log.walk(base, min(log_offset, base + log.layout.log_file_bytes))
                  if isinstance(found, Piece)]  # fmt: skip
        if pieces:
            return pieces[-1].last_store_timestamp
    return 0


def _sync_before(disk: Disk, log: Log, log_offset: int) -> None:
    for base in log.bases:
        if base < log_offset:
            fd = disk.open(log.layout.log / file_name(base))
            try:
                disk.fdatasync(fd)
            finally:
                disk.close(fd)


def _cut_log(disk: Disk, layout: Layout, log: Log, log_offset: int, kept: Path) -> None:
    folder = kept / commit_log.FOLDER
    disk.mkdir(folder)
    for base in reversed(log.bases):
        name = file_name(base)
        if base >= log_offset and base != log.min:
            disk.rename(layout.log / name, folder / name)
            disk.fsync_dir(layout.log)
        elif base + layout.log_file_bytes > log_offset:  # without any file it would be no store
            _copy_beginning(disk, layout, layout.log / name, folder / name, log_offset - base)
            disk.exchange(folder / name, layout.log / name)
            disk.fsync_dir(layout.log)
    disk.fsync_dir(folder)
    disk.fsync_dir(kept)


def _copy_beginning(disk: Disk, layout: Layout, source: Path, target: Path, size: int) -> None:
    """Make a log file that has the first `size` bytes of another one, and zeros."""
    read, write = disk.open(source, write=False), disk.open(target, exclusive=True)
    try:
        disk.allocate(write, 0, layout.log_file_bytes)
        for at in range(0, size, _COPY_BYTES):
            disk.pwritev(write, [disk.pread(read, min(_COPY_BYTES, size - at), at)], at)
        disk.fdatasync(write)
    finally:
        disk.close(read)
        disk.close(write)


def _cut_queues(disk: Disk, layout: Layout, log_offset: int) -> None:
    log = Log(disk, layout)
    with closing(QueueFiles(disk, layout.queues, layout.queue_file_entries)) as files:
        for topic, queue_id in queues_on_disk(disk, layout.queues):
            found = find_bounds(files, log.reader, topic, queue_id, log.min, log_offset)
            if files.bases(topic, queue_id):
                files.cut(topic, queue_id, found.max)


def _index_end(disk: Disk, layout: Layout, files: list[tuple[str, int]], log_offset: int) -> tuple[str, int]:
    """Return the last index file with entries before `log_offset`, and where those behind them begin."""
    entries_at = INDEX_HEADER_BYTES + layout.index_slots * INDEX_SLOT_BYTES
    for name, following in reversed(files):
        fd = disk.open(layout.index / name, write=False)
        try:
            view = disk.map_read(fd, layout.index_file_bytes)
        finally:
            disk.close(fd)
        first = entries_at + INDEX_ENTRY_BYTES
        end = checks.units_before(view, first, entries_at + following * INDEX_ENTRY_BYTES, log_offset)
        if end > first:
            return name, (end - entries_at) // INDEX_ENTRY_BYTES
    return "", 1


def _cut_index(disk: Disk, layout: Layout, last: str, next_number: int) -> None:
    for name in reversed(index.list_files(disk, layout.index, layout.index_file_bytes)):
        if name > last:
            disk.unlink(layout.index / name)
    if last:
        index.cut(disk, layout.index, last, layout.index_slots, layout.index_entries, next_number)
    if disk.exists(layout.index):
        disk.fsync_dir(layout.index)
