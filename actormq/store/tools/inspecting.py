"""What a store has, by its files: little of the log is read, so that it takes a moment whatever the size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from actormq.errors import StoreForeign
from actormq.kernels import records
from actormq.store import checkpoint as checkpoints
from actormq.store import commit_log, consume_queue, index, marks, tables
from actormq.store.checkpoint import Checkpoint
from actormq.store.consume_queue import QueueFiles
from actormq.store.disk import Disk
from actormq.store.marks import Mark
from actormq.store.queue_bounds import Bounds, find_bounds, queues_on_disk
from actormq.store.tools.layout import Layout
from actormq.store.tools.trust import first_record
from actormq.store.tools.walking import Log, Piece, Queue, again

_OURS: Final = (
    commit_log.FOLDER,
    consume_queue.FOLDER,
    index.FOLDER,
    tables.FOLDER,
    checkpoints.NAME,
    marks.ABORT,
    marks.CLEAN,
    marks.LOCK,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    files: int
    bytes: int
    min: int
    end: int
    """One past the last good record that was found."""
    first_store_timestamp: int
    last_store_timestamp: int
    complaints: list[str]
    """Files that are none, of another size, or missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFacts:
    topic: str
    queue_id: int
    min: int
    max: int
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFacts:
    name: str
    entries: int
    slots_used: int
    first_store_timestamp: int
    last_store_timestamp: int
    first_log_offset: int
    last_log_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    name: str
    bytes: int
    entries: int | None
    """Of its main table; None where that cannot be read, or is none of ours."""
    version: dict[str, Any] | None
    """RocketMQ's `dataVersion`."""
    trouble: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that `inspect` tells."""

    layout: Layout
    log: LogFacts
    queues: list[QueueFacts]
    index: list[IndexFacts]
    tables: list[TableFacts]
    checkpoint: Checkpoint
    abort: str | None
    """What the file has in it: a process id."""
    mark: Mark | None
    others: list[str]
    """Names in the store's folder that we do not look at."""


def inspect(disk: Disk, layout: Layout) -> Facts:
    """Look at everything but the messages.

    Raises:
        StoreForeign: a file that must be whole to be read at all is not.
    """
    return again(lambda: _inspect(disk, layout))


def _inspect(disk: Disk, layout: Layout) -> Facts:
    log = Log(disk, layout)
    mark = None if marks.has_abort(disk, layout.root) else marks.read_clean(disk, layout.root)
    known = checkpoints.read(disk, layout.root / checkpoints.NAME)
    bounds = queue_bounds(disk, layout, log)
    return Facts(
        layout=layout,
        log=_log_facts(log, known, bounds),
        queues=[
            QueueFacts(topic=topic, queue_id=queue_id, min=found.min, max=found.max, files=files)
            for (topic, queue_id), found, files in bounds
        ],
        index=list(_index_facts(disk, layout)),
        tables=list(_table_facts(disk, layout.root / tables.FOLDER)),
        checkpoint=known,
        abort=_abort(disk, layout.root),
        mark=mark,
        others=[name for name in disk.listdir(layout.root) if name not in _OURS],
    )


def queue_bounds(
    disk: Disk, layout: Layout, log: Log, bound: int | None = None
) -> list[tuple[Queue, Bounds, int]]:
    """Return which entries each queue has of records that end at or before `bound`, and how many files.

    Raises:
        StoreForeign: a file of another size among a queue's.
    """
    found = []
    bound = log.top if bound is None else bound
    with closing(QueueFiles(disk, layout.queues, layout.queue_file_entries)) as files:
        for topic, queue_id in queues_on_disk(disk, layout.queues):
            bounds = find_bounds(files, log.reader, topic, queue_id, log.min, bound)
            found.append(((topic, queue_id), bounds, len(files.bases(topic, queue_id))))
    return sorted(found, key=lambda each: each[0])


def log_end(log: Log, from_offset: int) -> tuple[int, int]:
    """Return (end of the log, store time of the last record) as seen from where a record begins or ends."""
    timestamp = 0
    for found in log.walk(from_offset, log.top):
        if isinstance(found, Piece):
            timestamp = found.last_store_timestamp
    return log.reached, timestamp


def _log_facts(log: Log, known: Checkpoint, bounds: list[tuple[Queue, Bounds, int]]) -> LogFacts:
    reached = max((found.log_end for _, found, _ in bounds if found.sound), default=0)
    reached = max(reached, log.min, known.log_flushed if known.ours and known.log_flushed <= log.top else 0)
    end, last = log_end(log, reached)
    first = first_record(log, log.min) if log.bases else None
    return LogFacts(
        files=len(log.bases),
        bytes=len(log.bases) * log.layout.log_file_bytes,
        min=log.min,
        end=end,
        first_store_timestamp=first.store_timestamp if first else 0,
        last_store_timestamp=last or _last_timestamp(log, bounds, known),
        complaints=[f"{path} {what}" for path, what in log.complaints],
    )


def _last_timestamp(log: Log, bounds: list[tuple[Queue, Bounds, int]], known: Checkpoint) -> int:
    """Return when the last record that a queue knows was stored."""
    reached = max((found.log_end for _, found, _ in bounds if found.sound), default=0)
    for (topic, queue_id), found, _ in bounds:
        if found.sound and found.log_end == reached and reached > log.min:
            return _timestamp_of_entry(log, topic, queue_id, found.max - 1)
    return known.log_timestamp


def _timestamp_of_entry(log: Log, topic: str, queue_id: int, number: int) -> int:
    layout = log.layout
    reader = consume_queue.QueueReader(log.disk, layout.queues, layout.queue_file_entries, maps_max=1)
    log_offset, size, _ = reader.entry(topic, queue_id, number)
    return records.decode(log.reader.view(log_offset, size), 0).store_timestamp


def _index_facts(disk: Disk, layout: Layout) -> Iterator[IndexFacts]:
    for name in index.list_files(disk, layout.index, layout.index_file_bytes):
        fd = disk.open(layout.index / name, write=False)
        try:
            header = index.read_header(disk.pread(fd, index.HEADER.size, 0))
        finally:
            disk.close(fd)
        yield IndexFacts(
            name=name,
            entries=header.next_number - 1,
            slots_used=header.slots_used,
            first_store_timestamp=header.begin_timestamp,
            last_store_timestamp=header.end_timestamp,
            first_log_offset=header.begin_offset,
            last_log_offset=header.end_offset,
        )


def _table_facts(disk: Disk, folder: Path) -> Iterator[TableFacts]:
    for name in disk.listdir(folder):
        path = folder / name
        if disk.is_folder(path):
            continue
        table, trouble = None, None
        if name in tables.FILES:
            try:
                table = tables.load(disk, path) or {}
            except StoreForeign as error:
                trouble = error.remark
        sizes = [
            len(value)
            for key, value in (table or {}).items()
            if key != "dataVersion" and isinstance(value, dict)
        ]
        yield TableFacts(
            name=name,
            bytes=disk.size(path),
            entries=max(sizes, default=0) if table is not None else None,
            version=(table or {}).get("dataVersion"),
            trouble=trouble,
        )


def _abort(disk: Disk, root: Path) -> str | None:
    if not marks.has_abort(disk, root):
        return None
    fd = disk.open(root / marks.ABORT, write=False)
    try:
        return disk.pread(fd, 64, 0).decode("ascii", "replace").strip("\0 \n")
    finally:
        disk.close(fd)
