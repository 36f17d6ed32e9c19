"""What a store's last broker promised: up to where everything must be there, and what may still be missing.

After a clean stop everything must be there.  A broker that was killed, or still works, has promised what its
checkpoint says; the rest it, or the next start, will bring into order by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actormq.kernels import records
from actormq.kernels.records import ScanEnd
from actormq.store import checkpoint as checkpoints
from actormq.store import index, marks
from actormq.store.checkpoint import Checkpoint
from actormq.store.commit_log import LogRemoved
from actormq.store.disk import Disk
from actormq.store.marks import Mark
from actormq.store.tools.layout import Layout
from actormq.store.tools.walking import BadPlace, Log

EVERYTHING: Final = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Log offsets before which records, queue entries and index keys must be there."""

    clean: bool
    """No broker works here, and the last one stopped cleanly."""
    checkpoint: Checkpoint
    mark: Mark | None
    """Our end mark, if it still holds."""
    log: int
    queues: int
    index: int
    index_files: list[tuple[str, int]]
    """The index files that count: name, and the number before which their entries do."""

    def is_end(self, bad: BadPlace) -> bool:
        """Say whether the log simply ends there: nothing follows, or nothing that anybody has promised."""
        if bad.start < self.log:
            return False
        if bad.end is None and bad.reason == ScanEnd.EMPTY:
            return True
        # RocketMQ leaves what lay behind a cut; it is no record, or the log would go on with it.
        return not self.clean or (not self.checkpoint.ours and bad.end is None)


def read_trust(disk: Disk, layout: Layout, log: Log) -> Trust:
    """Return what may be expected of the store.

    Raises:
        StoreForeign: the checkpoint or an index file is none.
    """
    clean = not marks.has_abort(disk, layout.root)
    known = checkpoints.read(disk, layout.root / checkpoints.NAME)
    names = index.list_files(disk, layout.index, layout.index_file_bytes)
    mark = marks.read_clean(disk, layout.root) if clean else None
    if clean:
        files = [(name, index_header(disk, layout, name).next_number) for name in names]
        return Trust(
            clean=True,
            checkpoint=known,
            mark=mark,
            log=mark.log_end if mark is not None else 0,
            queues=EVERYTHING,
            index=EVERYTHING,
            index_files=files,
        )
    if known.ours:
        newest = f"{known.index_file:017d}"
        files = [(name, index_header(disk, layout, name).next_number) for name in names if name < newest]
        if newest in names:
            files.append((newest, known.index_next))
        log_to, queues_to, index_to = known.log_flushed, known.queues_flushed, known.index_flushed
    else:
        headers = [(name, index_header(disk, layout, name)) for name in names]
        full = [(name, each) for name, each in headers if each.end_timestamp <= known.index_timestamp]
        files = [(name, each.next_number) for name, each in full]
        index_to = full[-1][1].end_offset if full else 0
        queues_to = file_at(log, known.replay_from_ms)
        log_to = file_at(log, known.log_timestamp)
    return Trust(
        clean=False,
        checkpoint=known,
        mark=None,
        log=log_to,
        queues=queues_to,
        index=index_to,
        index_files=files,
    )


def index_header(disk: Disk, layout: Layout, name: str) -> index.IndexHeader:
    """Return the header of one index file."""
    fd = disk.open(layout.index / name, write=False)
    try:
        return index.read_header(disk.pread(fd, index.HEADER.size, 0))
    finally:
        disk.close(fd)


def file_at(log: Log, store_ms: int) -> int:
    """Return the last log file whose first record was stored by then; else the first."""
    for base in reversed(log.bases):
        first = first_record(log, base)
        if first is not None and first.store_timestamp <= store_ms:
            return base
    return log.min


def first_record(log: Log, base: int) -> records.Header | None:
    """Return the record with which a log file begins."""
    try:
        view = log.reader.file(base)
        return records.decode(view, 0) if records.scan(view, 0, base, False, 1).records else None
    except LogRemoved:
        return None


def index_timestamp(disk: Disk, layout: Layout) -> int:
    """Return the last store time in the index; by a checkpoint with it RocketMQ keeps all of its files."""
    names = index.list_files(disk, layout.index, layout.index_file_bytes)
    return index_header(disk, layout, names[-1]).end_timestamp if names else 0
