"""Queues and index made anew from the log, beside the old ones; then they change places.

Killed at any moment, the store is what it was, or the next start makes it so: before the old ones go, the
checkpoint says that nothing of queues and index is to be trusted.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from actormq.errors import StoreForeign
from actormq.kernels.queues import ENTRY, ENTRY_BYTES
from actormq.kernels.records import ScanEnd
from actormq.store import batch_queue, consume_queue, index, marks, queue_ext, tables
from actormq.store import checkpoint as checkpoints
from actormq.store.batch_queue import BatchQueues
from actormq.store.checkpoint import Checkpoint
from actormq.store.commit_log import file_name
from actormq.store.consume_queue import FILLER, QueueFiles, queue_folder
from actormq.store.disk import Disk
from actormq.store.index import IndexWriter
from actormq.store.queue_bounds import find_bounds, queues_on_disk
from actormq.store.tools.batch_rebuilding import BatchRebuild, check_ordinary, check_tables
from actormq.store.tools.layout import Layout
from actormq.store.tools.trust import Trust, index_timestamp, read_trust
from actormq.store.tools.walking import (
    BadPlace,
    Dispatching,
    Log,
    Piece,
    Progress,
    Queue,
    batch_topics,
    is_deleted,
    no_progress,
    sound_files,
)

FOLDER: Final = "rebuilding"
"""In the store's root; what a killed rebuild left there goes with the next one."""


@dataclass(slots=True, kw_only=True)
class Rebuilt:
    """What was made."""

    log_end: int = 0
    queues: dict[Queue, int] = field(default_factory=dict)
    """One past the last entry of each."""
    messages: int = 0
    keys: int = 0
    passed_over: list[tuple[int, int]] = field(default_factory=list)
    """Damaged stretches of the log."""


def rebuild(
    disk: Disk,
    layout: Layout,
    *,
    delay_ms: list[int],
    wall_ms: int,
    pid: int,
    with_index: bool = True,
    ends: dict[Queue, int] | None = None,
    by_rocketmq: bool | None = None,
    progress: Progress = no_progress,
) -> Rebuilt:
    """Make queues (batch queues, too) and index anew; the caller holds the store's lock.

    A queue goes on where its records end or, when the log has none of it any more, its old files: an offset
    is never given twice.

    Args:
        delay_ms: of delay levels 1, 2, … (the schedule topic's entries keep the delivery time).
        wall_ms: now, to name the index file.
        pid: who works here, for `abort`, which stays: the next start looks at everything once more.
        ends: where queues end that have no files here.
        by_rocketmq: topics that have neither a folder nor a line in topics.json were deleted; ours are saved
            a moment after their first message, and say what was deleted.  None: as the checkpoint tells.

    Raises:
        StoreForeign: the log is not whole enough to be read from end to end, or which topics have batch
            queues cannot be told; nothing was changed.
        OSError: the disk is full, or failed.
    """
    work = _Rebuild(disk, layout, delay_ms, wall_ms, with_index)
    if by_rocketmq is not None:
        work.by_rocketmq = by_rocketmq
    return work.run(pid, ends or {}, progress)


class _Rebuild:
    def __init__(
        self, disk: Disk, layout: Layout, delay_ms: list[int], wall_ms: int, with_index: bool
    ) -> None:
        self.disk = disk
        self.layout = layout
        self.wall_ms = wall_ms
        self.with_index = with_index
        self.work = layout.at(layout.root / FOLDER)
        self.log = Log(disk, layout)
        for path, what in self.log.complaints:
            raise StoreForeign(f"{path} {what}")
        self.trust: Trust = read_trust(disk, layout, self.log)
        stored = {name: tables.load(disk, layout.root / tables.FOLDER / name) for name in tables.FILES}
        self.topics = stored[tables.TOPICS]
        self.old_batches = BatchQueues(disk, layout.root)
        check_tables(self.old_batches, self.topics)
        self.batch_topics = batch_topics(disk, layout, self.topics)
        self.batches = BatchRebuild(disk, self.work.root, layout.batch_queue_file_entries, self.old_batches)
        self.by_rocketmq = not self.trust.checkpoint.ours
        self.old = set(queues_on_disk(disk, layout.queues))
        self.known = self.old | set(self.old_batches.names())
        self.dispatching = Dispatching(delay_ms, tables.deleted_topics(stored[tables.DELETED_TOPICS]))
        self.result = Rebuilt()
        self.last_store_timestamp = 0

    def run(self, pid: int, ends: dict[Queue, int], progress: Progress) -> Rebuilt:
        self.known |= ends.keys()
        remove_tree(self.disk, self.work.root)
        for name in self._folders():
            self.disk.mkdir(self.work.root / name)
        files = QueueFiles(self.disk, self.work.queues, self.layout.queue_file_entries)
        writer = IndexWriter(self.disk, self.work.index, self.layout.index_slots, self.layout.index_entries)
        with closing(files), closing(writer), closing(self.batches):
            self._make(files, writer, progress)
            self._keep_ends(files, ends)
            files.sync()
            self.batches.sync()
            writer.sync()
        self.disk.fsync_dir(self.work.queues)
        self.disk.fsync_dir(self.work.root)
        self._exchange(pid)
        remove_tree(self.disk, self.work.root)
        self.disk.fsync_dir(self.layout.root)
        self.result.queues |= self.batches.ends
        return self.result

    def _folders(self) -> list[str]:
        """Return the names of the folders that are made anew."""
        has_batches = self.batch_topics or self.disk.exists(self.old_batches.root)
        return [consume_queue.FOLDER, index.FOLDER, *([batch_queue.FOLDER] if has_batches else [])]

    def _make(self, files: QueueFiles, writer: IndexWriter, progress: Progress) -> None:
        begin = self.log.min
        for found in self.log.walk(begin, self.log.top):
            progress(self.log.reached - begin, self.log.top - begin)
            if isinstance(found, Piece):
                self._dispatch(found, files, writer)
                self.last_store_timestamp = found.last_store_timestamp
                continue
            if self.trust.is_end(found):
                break
            self.result.passed_over.append((found.start, self._pass_over(found)))
        self.result.log_end = self.log.reached
        if self.result.passed_over:
            self.result.log_end = max(self.result.log_end, self.result.passed_over[-1][1])
        progress(self.log.top - begin, self.log.top - begin)

    def _pass_over(self, bad: BadPlace) -> int:
        """Return where the log goes on."""
        if bad.end is not None:
            return bad.end
        if bad.reason == ScanEnd.EMPTY:
            raise StoreForeign(
                f"log file {bad.file} ends at log offset {bad.start}, but the log was whole up to "
                f"{self.trust.log}: bring the rest back, or truncate it there"
            )
        return self.trust.log

    def _dispatch(self, piece: Piece, files: QueueFiles, writer: IndexWriter) -> None:
        for made in self.dispatching.pieces(piece):
            for row, first, entries in made.runs:
                queue = self.dispatching.queues[row]
                if queue is not None and first >= 0 and not self._is_passed_over(queue):
                    self._write(files, queue, *self.dispatching.living(queue, first, entries), piece)
            if self.with_index and made.keys:
                writer.put(made.keys, self.wall_ms)
                self.result.keys += len(made.keys) // ENTRY_BYTES

    def _is_passed_over(self, queue: Queue) -> bool:
        return self.by_rocketmq and is_deleted(queue, self.topics, self.known)

    def _write(self, files: QueueFiles, queue: Queue, first: int, entries: bytearray, piece: Piece) -> None:
        if not entries:
            return
        if queue[0] in self.batch_topics:
            self.result.messages += self.batches.write(queue, first, entries, piece)
            return
        check_ordinary(queue, entries, piece)
        if first == 0 and queue in self.result.queues:
            # The topic was deleted and made again.
            files.remove_queue(*queue)
        high = self.result.queues.get(queue, first)
        if first > high:
            # As recovery does it: a search for the queue's end would stop at a hole.
            before = ENTRY.unpack_from(entries)[0] - 1
            files.write(*queue, high, ENTRY.pack(before, 0, 0) * (first - high))
        files.write(*queue, first, entries)
        self.result.queues[queue] = first + len(entries) // ENTRY_BYTES
        self.result.messages += len(entries) // ENTRY_BYTES

    def _keep_ends(self, files: QueueFiles, ends: dict[Queue, int]) -> None:
        """Make the queues that have no record in the log any more begin where they ended."""
        old = QueueFiles(self.disk, self.layout.queues, self.layout.queue_file_entries)
        found = {queue: self._old_end(old, queue) for queue in self.old}
        for queue, end in (ends | found).items():
            is_gone = queue[0] in self.batch_topics or self.dispatching.is_dead(queue[0])
            if end > 0 and queue not in self.result.queues and not is_gone:
                files.write(*queue, end - 1, FILLER)
                self.result.queues[queue] = end
        for queue in self.old_batches.names():
            if not self.dispatching.is_dead(queue[0]):
                self.batches.keep_end(queue, self.log.min)

    def _old_end(self, old: QueueFiles, queue: Queue) -> int:
        try:
            return find_bounds(old, self.log.reader, *queue, self.log.min, self.result.log_end).max
        except StoreForeign:
            folder = queue_folder(self.layout.queues, *queue)
            bases, _ = sound_files(self.disk, folder, self.layout.queue_file_entries * ENTRY_BYTES)
            return max(bases, default=0) // ENTRY_BYTES

    def _exchange(self, pid: int) -> None:
        """Have the new folders take the old ones' places."""
        for base in self.log.bases:
            fd = self.disk.open(self.layout.log / file_name(base))
            try:
                self.disk.fdatasync(fd)
            finally:
                self.disk.close(fd)
        marks.create_abort(self.disk, self.layout.root, pid)
        marks.remove_clean(self.disk, self.layout.root)
        path = self.layout.root / checkpoints.NAME
        nothing = Checkpoint(
            log_timestamp=self.last_store_timestamp,
            master_flushed_offset=self.trust.checkpoint.master_flushed_offset,
            confirm_offset=self.trust.checkpoint.confirm_offset,
            log_flushed=self.result.log_end,
            queues_flushed=self.log.min,
            index_flushed=self.log.min,
        )
        checkpoints.write(self.disk, path, nothing)
        for name in self._folders():
            self.disk.mkdir(self.layout.root / name)
            self.disk.exchange(self.work.root / name, self.layout.root / name)
            self.disk.fsync_dir(self.layout.root)
        remove_tree(self.disk, self.layout.root / queue_ext.FOLDER)  # no entry leads there any more
        newest, next_number = index.sync_newest(self.disk, self.layout.index, self.layout.index_file_bytes)
        everything = replace(
            nothing,
            queues_timestamp=self.last_store_timestamp,
            index_timestamp=index_timestamp(self.disk, self.layout),
            queues_flushed=self.result.log_end,
            index_flushed=self.result.log_end,
            index_file=newest,
            index_next=next_number,
        )
        checkpoints.write(self.disk, path, everything)


def remove_tree(disk: Disk, path: Path) -> None:
    """Remove a folder and all below it; what is linked from there stays."""
    if not disk.exists(path):
        return
    try:
        disk.unlink(path)
    except (IsADirectoryError, PermissionError):
        for name in disk.listdir(path):
            remove_tree(disk, path / name)
        disk.remove_folder(path)
