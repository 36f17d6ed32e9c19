"""From whatever the last broker left to a store that may be appended to.

Three ways to the end of the log:
 - our own end mark is there and nobody has written since: it says everything, nothing is looked through;
 - a clean stop without it (RocketMQ was here): RocketMQ's rule, the log from the last file that the queues
   have reached;
 - `abort` is there: the log from the point that the checkpoint calls durable (our offsets if they are valid,
   else RocketMQ's times), every record with its CRC; the tail behind the last good record is cut.
Then what the log has and the queues or the index lack is dispatched again, what they have and the log lacks
is cut, and everything is synced.  Nothing that looks foreign is repaired by deleting it.

Source: RocketMQ DefaultMessageStore.recover, CommitLog.recoverNormally, recoverAbnormally.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from actormq.config import StoreConfig
from actormq.errors import StoreForeign
from actormq.kernels import queues, records
from actormq.kernels.records import ScanEnd
from actormq.store import batch_queue, commit_log, consume_queue, index, marks, tables
from actormq.store import checkpoint as checkpoints
from actormq.store.batch_queue import BatchQueues, is_batch_topic
from actormq.store.checkpoint import Checkpoint
from actormq.store.commit_log import MAKING_PREFIX, MAKING_SUFFIX, LogFiles, LogReader, file_name
from actormq.store.consume_queue import BadName, QueueFiles, queue_folder
from actormq.store.disk import Disk
from actormq.store.index import IndexWriter
from actormq.store.log_scan import find_end
from actormq.store.marks import Mark, QueueExtent, Queues
from actormq.store.queue_bounds import (
    Bounds,
    check_no_queues_without_log,
    find_bounds,
    queues_on_disk,
    reading_ahead,
    topics_on_disk,
)
from actormq.store.queue_ext import FOLDER as EXTENSIONS_FOLDER
from actormq.store.queue_ext import ExtensionFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredStore:
    """What the broker starts with.  Everything named here is durable."""

    clean: bool
    """The last broker stopped cleanly."""
    log_min: int
    log_end: int
    """Where the next record goes; also the end of what is dispatched."""
    last_store_timestamp: int
    """0 when it is not known: no record was looked at."""
    queues: Queues
    topics: list[str]
    """Named in topics.json, or having queues."""
    checkpoint: Checkpoint
    scanned_bytes: int
    deleted: dict[str, int] = field(default_factory=dict)
    """By topic: records that begin before this log offset are of a deleted topic of that name."""
    notes: list[str] = field(default_factory=list)
    """What was found and done, for the log: one sentence each."""


def recover(
    disk: Disk,
    config: StoreConfig,
    *,
    wall_ms: int,
    pid: int,
    delay_ms: list[int],
    deleted: Mapping[str, int] | None = None,
    rebuild: bool = False,
) -> RecoveredStore:
    """Bring the store below ``config.root`` into order and say what is in it.

    From here on `abort` is there, until `marks.close_store`.

    Args:
        wall_ms: now, to name a new index file.
        pid: who works here, for `abort`.
        delay_ms: of delay levels 1, 2, … (the schedule topic's entries keep the delivery time).
        deleted: by topic, the log offset before which its records are dead; `tables.PENDING`: all are.
        rebuild: make all queues and the index anew from the log.

    Raises:
        StoreForeign: the folder holds something else than a whole store; nothing was changed.
        OSError: the disk failed; the next recovery starts from the same place.
    """
    return _Recovery(disk, config, wall_ms, delay_ms, deleted or {}).run(pid, rebuild)


def check_shape(disk: Disk, root: Path) -> None:
    """Look whether files are files and folders are folders.

    Raises:
        StoreForeign: the first that is not.
    """
    folders = (
        commit_log.FOLDER,
        consume_queue.FOLDER,
        EXTENSIONS_FOLDER,
        batch_queue.FOLDER,
        index.FOLDER,
        tables.FOLDER,
    )
    for name in folders:
        if disk.exists(root / name) and not disk.is_folder(root / name):
            raise StoreForeign(f"{root / name} is a file, but a store has a folder there")
    config = (f"{tables.FOLDER}/{name}" for name in tables.FILES)
    for name in (checkpoints.NAME, marks.ABORT, marks.CLEAN, *config):
        if disk.is_folder(root / name):
            raise StoreForeign(f"{root / name} is a folder, but a store has a file there")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """From where to look."""

    scan: int
    """Records are looked at from here on; a record or a file begins here."""
    queues: int
    """Queue entries of records that end at or before here are trusted, those behind are made again."""
    index: int
    """The same for the index keys."""
    durable: int
    """Every byte of the log before it was once on the disk: what is wrong there is damage, no torn tail."""


_NO_END: Final = 1 << 62


class _Recovery:
    def __init__(
        self,
        disk: Disk,
        config: StoreConfig,
        wall_ms: int,
        delay_ms: list[int],
        deleted: Mapping[str, int],
    ) -> None:
        self.disk = disk
        self.config = config
        self.root = config.root
        self.wall_ms = wall_ms
        self.delay_ms = delay_ms
        self.log = LogFiles(disk, self.root / commit_log.FOLDER, config.log_file_bytes)
        self.reader = LogReader(disk, self.root / commit_log.FOLDER, config.log_file_bytes, maps_max=4)
        self.queue_files = QueueFiles(disk, self.root / consume_queue.FOLDER, config.queue_file_entries)
        self.extensions = ExtensionFiles(disk, config)
        self.batches = BatchQueues(disk, self.root)
        self.batch_files = QueueFiles(
            disk,
            self.batches.root,
            config.batch_queue_file_entries,
            entry_bytes=batch_queue.ENTRY_BYTES,
        )
        self.index = _IndexRecovery(disk, config)
        self.notes: list[str] = []
        self.deleted = {name: _NO_END if end == tables.PENDING else end for name, end in deleted.items()}
        """Where the records of deleted topics end; `_NO_END` until the log's end is known."""

    def run(self, pid: int, rebuild: bool) -> RecoveredStore:
        try:
            return self._run(pid, rebuild)
        finally:
            self.log.close()
            self.queue_files.close()
            self.extensions.close()
            self.batch_files.close()
            self.index.close()

    def _run(self, pid: int, rebuild: bool) -> RecoveredStore:
        clean = not marks.has_abort(self.disk, self.root)
        self.bases = self.log.bases()
        if not self.bases:
            check_no_queues_without_log(self.queue_files)
        if self.config.queue_ext:
            self.extensions.check(queues_on_disk(self.disk, self.extensions.root))
        self.log_min = self.bases[0] if self.bases else 0
        self.topics = self._topics()
        self.on_disk = queues_on_disk(self.disk, self.queue_files.root)
        known = checkpoints.read(self.disk, self.root / checkpoints.NAME)
        mark = marks.read_clean(self.disk, self.root) if clean and not rebuild else None
        if mark is not None and self.bases and mark.log_min < self.log_min:
            missing = self.log.path(self.log.base_of(mark.log_min))
            raise StoreForeign(
                f"{missing} is missing: the log began there when it was stopped. Bring it back, or remove "
                f"{self.root / marks.CLEAN} to go on without it"
            )
        lost = self._has_lost_queues(mark, known)
        if lost:
            self.notes.append("queues are missing: all are made anew from the log")
            mark, rebuild = None, True
        if mark is not None and self._is_end(mark):
            self._begin(pid)
            self._remove_dead()
            self._sync_log(self.bases[-1:])
            return self._recovered(clean, mark, known, 0)
        # Only looked at so far: what is foreign is refused before anything changes.
        bounds, plan = self._plan(clean, rebuild, known)
        found = find_end(self.reader, self.bases, plan.scan, plan.durable, self._check_crc())
        self.notes += [str(damage) for damage in found.damages]
        if found.torn != ScanEnd.EMPTY:
            name = file_name(self.log.base_of(found.end))
            self.notes.append(
                f"log file {name} has no whole record at log offset {found.end} ({found.torn.name}): "
                "from there on it was not known to be durable, and is cut"
            )
        if lost:
            # A crash from here on must not end in trust: what tells of the loss is about to go.
            known = replace(known, ours=True, queues_flushed=0, index_flushed=0)
            checkpoints.write(self.disk, self.root / checkpoints.NAME, known)
        self._begin(pid)
        self._remove_dead()
        end = found.end
        self.log.cut(end)
        self.index.cut(clean, rebuild, known)
        queues_now = self._replay(plan, bounds, found.stretches, rebuild)
        if queues_now is None:
            self.notes.append("the queues do not fit the log: they are made anew from all of it")
            queues_now = self._replay_all(end)
        self.extensions.sync()
        self.queue_files.sync()
        self.batch_files.sync()
        self._sync_log(self.log.bases())
        stamp = found.last_store_timestamp
        last = replace(
            known,
            log_timestamp=stamp or known.log_timestamp,
            queues_timestamp=stamp or known.queues_timestamp,
            ours=True,
            log_flushed=end,
            queues_flushed=end,
        )
        last = self.index.sync(last)
        checkpoints.write(self.disk, self.root / checkpoints.NAME, last)
        mark = Mark(
            log_min=self.log_min,
            log_end=end,
            last_store_timestamp=stamp or known.log_timestamp,
            queues=queues_now,
        )
        return self._recovered(clean, mark, last, found.scanned_bytes)

    def _recovered(self, clean: bool, mark: Mark, last: Checkpoint, scanned: int) -> RecoveredStore:
        queues_now = mark.queues | self._batch_extents(mark.log_end)
        topics = dict.fromkeys(self.topics) | dict.fromkeys(topic for topic, _ in queues_now)
        # Nothing of a deleted topic lies behind the log's end; what comes next belongs to a new one.
        deleted = {name: min(dead, mark.log_end) for name, dead in self.deleted.items()}
        return RecoveredStore(
            clean=clean,
            log_min=mark.log_min,
            log_end=mark.log_end,
            last_store_timestamp=mark.last_store_timestamp,
            queues=queues_now,
            topics=list(topics),
            checkpoint=last,
            scanned_bytes=scanned,
            deleted={name: dead for name, dead in deleted.items() if dead > mark.log_min},
            notes=self.notes,
        )

    def _check_crc(self) -> int:
        if not self.config.check_crc_on_recover:
            return records.CRC_NOT
        return records.CRC_DEMAND if self.config.demand_record_crc else records.CRC_CHECK

    def _begin(self, pid: int) -> None:
        """From here on things change: a crash must find `abort`, and no end mark."""
        if self.config.queue_ext:
            self.disk.mkdir(self.extensions.root)  # its name becomes durable with that of `abort`
        marks.create_abort(self.disk, self.root, pid)
        marks.remove_clean(self.disk, self.root)
        self.queue_files.open_volume()
        for folder in (self.root, self.log.folder):
            for name in self.disk.listdir(folder):
                if name.startswith(MAKING_PREFIX) or name.endswith(MAKING_SUFFIX):
                    self.disk.unlink(folder / name)

    def _topics(self) -> list[str]:
        table = tables.load(self.disk, self.root / tables.FOLDER / tables.TOPICS)
        folders = topics_on_disk(self.disk, self.queue_files.root)
        self.batch_topics = tables.topics_with(table, is_batch_topic) | {
            topic for topic, _ in self.batches.names()
        }
        return list(dict.fromkeys(tables.topic_names(table) + folders))

    def _batch_extents(self, log_end: int) -> Queues:
        """Return which messages the batch queues have."""
        found = {}
        for topic, queue_id in self.batches.names():
            bounds = self.batches.bounds(topic, queue_id, self.log_min, log_end)
            found[topic, queue_id] = QueueExtent(min=bounds.min, max=bounds.max, first_file_entry=0)
        return found

    def _has_lost_queues(self, mark: Mark | None, known: Checkpoint) -> bool:
        """Say whether the folder of a queue that the end mark names is gone, or the one that all lie in.

        The messages of such a queue would not be found any more, and its offsets be used again.
        """
        if mark is not None:
            named = {queue for queue, extent in mark.queues.items() if extent.min < extent.max}
            there = {*self.on_disk, *self.batches.names()}
            return any(topic not in self.deleted for topic, _ in named - there)
        return (
            known.ours and known.queues_flushed > self.log_min and not self.disk.exists(self.queue_files.root)
        )

    def _is_end(self, mark: Mark) -> bool:
        """Say whether the log still ends where the mark says: zeros there, and in the file after it."""
        if not self.bases:
            return mark.log_end == 0
        if mark.log_min != self.log_min:
            return False
        for offset in (mark.log_end, self.log.base_of(mark.log_end) + self.log.file_bytes):
            base = self.log.base_of(offset)
            if base in self.bases:
                found = records.scan(
                    self.reader.file(base), offset - base, base, records.CRC_CHECK, offset - base + 1
                )
                if found.reason not in (ScanEnd.EMPTY, ScanEnd.STOP) or found.records:
                    return False
        return self.log_min <= mark.log_end <= self.bases[-1] + self.log.file_bytes

    # Where to begin.

    def _plan(
        self, clean: bool, rebuild: bool, known: Checkpoint
    ) -> tuple[dict[tuple[str, int], Bounds], _Plan]:
        """Decide from where to look, and say what the queues have up to there."""
        if not self.bases:
            return {}, _Plan(scan=0, queues=0, index=0, durable=0)
        top = self.bases[-1] + self.log.file_bytes
        if known.ours and known.log_flushed > top:
            raise StoreForeign(
                f"the log was whole up to offset {known.log_flushed}, but its last file "
                f"{file_name(self.bases[-1])} ends at {top}: it was copied in part"
            )
        if clean and not rebuild and not (known.ours and known.queues_flushed == 0):
            return self._plan_clean(top)
        if known.ours:
            plan = _Plan(
                scan=known.log_flushed,
                queues=known.queues_flushed,
                index=self.index.trusted(known, self.log_min),
                durable=known.log_flushed,
            )
        else:
            plan = self._plan_by_time(known)
        if rebuild:
            plan = replace(plan, queues=self.log_min, index=self.log_min)
        plan = self._from_log_min(plan)
        bounds = self._bounds(plan.queues)
        certain = min((each.replay_from for each in bounds.values()), default=plan.queues)
        if certain < plan.queues:
            self.notes.append(f"some queue does not fit the log: all go on from log offset {certain} again")
            plan = self._from_log_min(replace(plan, queues=certain))
            bounds = self._bounds(plan.queues)
        return bounds, plan

    def _from_log_min(self, plan: _Plan) -> _Plan:
        """Return `plan` inside the log, its scan early enough for queues and index."""
        queues_from = max(plan.queues, self.log_min)
        index_from = max(plan.index, self.log_min)
        scan = max(min(plan.scan, queues_from, index_from), self.log_min)
        return replace(plan, scan=scan, queues=queues_from, index=index_from)

    def _plan_clean(self, top: int) -> tuple[dict[tuple[str, int], Bounds], _Plan]:
        """RocketMQ stopped cleanly: look from the last file that the queues have reached."""
        bounds = self._bounds(top)
        ends = [each.log_end for each in bounds.values() if each.sound]
        ends += [self.batches.bounds(*queue, self.log_min, top).log_end for queue in self.batches.names()]
        reached = max(ends, default=self.log_min)
        if not all(each.sound for each in bounds.values()):
            self.notes.append("some queues do not fit the log: all are made anew from it")
            plan = _Plan(scan=self.log_min, queues=self.log_min, index=reached, durable=reached)
            return self._bounds(self.log_min), plan
        scan = self._last_file(lambda header: header.physical_offset <= reached)
        return bounds, self._from_log_min(_Plan(scan=scan, queues=reached, index=reached, durable=reached))

    def _plan_by_time(self, known: Checkpoint) -> _Plan:
        """RocketMQ was killed: look from the last file that begins in what the checkpoint calls durable."""
        scan = self._last_file(lambda header: header.store_timestamp <= known.replay_from_ms)
        durable = self._last_file(lambda header: header.store_timestamp <= known.log_timestamp)
        return _Plan(scan=scan, queues=scan, index=self.index.trusted(known, scan), durable=durable)

    def _last_file(self, fits: Callable[[records.Header], bool]) -> int:
        """Return the last file whose first record is whole, has a store time and fits; else the first."""
        for base in reversed(self.bases):
            view = self.reader.file(base)
            if records.scan(view, 0, base, records.CRC_NOT, 1).records:
                header = records.decode(view, 0)
                if header.store_timestamp and fits(header):
                    return base
        return self.log_min

    def _bounds(self, bound: int) -> dict[tuple[str, int], Bounds]:
        with reading_ahead(self.disk, self.queue_files.root, self.on_disk):
            return {
                (topic, queue_id): find_bounds(
                    self.queue_files,
                    self.reader,
                    topic,
                    queue_id,
                    max(self.log_min, self.deleted.get(topic, 0)),
                    bound,
                )
                for topic, queue_id in self.on_disk
                if not self._is_dead(topic, queue_id)
            }

    def _is_dead(self, topic: str, queue_id: int) -> bool:
        """Say whether all entries of a queue's files point at records of a deleted topic."""
        dead = self.deleted.get(topic)
        if dead is None:
            return False
        bounds = find_bounds(self.queue_files, self.reader, topic, queue_id, dead, _NO_END)
        return bounds.min == bounds.max

    def _remove_dead(self) -> None:
        """Remove the queues of deleted topics whose dispatcher did not come to it."""
        for topic, queue_id in self.on_disk:
            if self._is_dead(topic, queue_id):
                self.extensions.remove_queue(topic, queue_id)
                self.queue_files.remove_queue(topic, queue_id)
                folder = self.queue_files.root / topic
                if not self.disk.listdir(folder):
                    self.disk.remove_folder(folder)
                self.notes.append(f"removed queue {queue_id} of the deleted topic {topic}")

    # What the log has and the queues lack.

    def _replay_all(self, end: int) -> Queues:
        """Make all queues anew from all of the log."""
        # With CRCs: a damaged topic or queue id must not make a queue.
        found = find_end(self.reader, self.log.bases(), self.log_min, end, self._check_crc())
        known = set(self.notes)
        self.notes += [str(damage) for damage in found.damages if str(damage) not in known]
        plan = _Plan(scan=self.log_min, queues=self.log_min, index=end, durable=end)
        result = self._replay(plan, self._bounds(self.log_min), found.stretches, True)
        assert result is not None
        return result

    def _replay(
        self,
        plan: _Plan,
        bounds: dict[tuple[str, int], Bounds],
        stretches: list[tuple[int, int]],
        rebuild: bool,
    ) -> Queues | None:
        """Dispatch again from `plan` on, and cut what the queues have beyond the log.

        Returns:
            None when an entry would not follow the trusted ones (never when `rebuild` is on: then it may).
        """
        replay = _Replay(self, bounds, plan.queues, rebuild)
        for start, end in _split(stretches, (plan.queues, plan.index, *self.deleted.values())):
            if start >= min(plan.queues, plan.index):
                replay.dispatch(start, end, start >= plan.queues, start >= plan.index)
        if not replay.fits:
            return None
        return replay.finish()

    def _sync_log(self, bases: list[int]) -> None:
        """Make the log durable: `flushed` begins with a sync that succeeded, never with what was read."""
        for base in bases:
            self.disk.fdatasync(self.log.descriptor(base))
        if bases:
            self.disk.fsync_dir(self.log.folder)


def _split(stretches: list[tuple[int, int]], at: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the stretches, cut in two wherever one of the offsets `at` lies inside."""
    result: list[tuple[int, int]] = []
    for start, end in stretches:
        borders = [start, *sorted(offset for offset in set(at) if start < offset < end), end]
        result += pairwise(borders)
    return result


class _Replay:
    """Dispatches stretches of log into the queues (and the index), and keeps count of each queue."""

    def __init__(
        self, recovery: _Recovery, bounds: dict[tuple[str, int], Bounds], trusted: int, rebuild: bool
    ) -> None:
        self._recovery = recovery
        self._rebuild = rebuild
        self.fits = True
        self._bounds = bounds
        self._extents = {key: (each.min, each.max) for key, each in bounds.items()}
        self._rows: dict[tuple[bytes, int], int] = {}
        self._queues: list[tuple[str, int] | None] = []
        self._batch_places = dict.fromkeys(recovery.batches.names(), 0)
        """Of each batch queue: the number of its next entry."""
        for topic, queue_id in self._batch_places:
            with recovery.batches.queue(topic, queue_id) as queue:
                self._batch_places[topic, queue_id] = queue.place_behind(trusted)
        self._dead: dict[tuple[bytes, int], int] = {}
        """Queues of deleted topics, and the log offset at which they end."""

    def dispatch(self, start: int, end: int, want_queues: bool, want_index: bool) -> None:
        """Dispatch the good records in [start, end), all of one file, no deleted topic ending inside."""
        recovery = self._recovery
        for queue in [queue for queue, dead in self._dead.items() if dead <= start]:
            del self._dead[queue], self._rows[queue]
        base = recovery.log.base_of(start)
        view = recovery.reader.file(base)
        at = start - base
        while at < end - base:
            made = queues.dispatch(view, at, end - base, base, self._rows, recovery.delay_ms, want_index)
            for row, first, entries in made.runs if want_queues else []:
                self._write(self._queues[row], first, entries, view, base)
            if want_index:
                recovery.index.put(made.keys, recovery.wall_ms)
            stuck = made.end == at
            at = made.end
            if made.reason == queues.UNKNOWN_QUEUE:
                self._add_row(view, at)
            elif made.reason != ScanEnd.STOP or stuck:
                # The offset at which trust ends was no record's: nothing that begins there can be right.
                self.fits = False
                return
        recovery.disk.forget(view, start - base, end - start)

    def _add_row(self, view: memoryview, at: int) -> None:
        header = records.decode(view, at)
        self._rows[header.topic, header.queue_id] = len(self._queues)
        dead = self._recovery.deleted.get(header.topic.decode("utf-8", "surrogateescape"), 0)
        if header.physical_offset < dead:
            self._dead[header.topic, header.queue_id] = dead
            self._queues.append(None)
            return
        try:
            topic = header.topic.decode()
            queue_folder(self._recovery.queue_files.root, topic, header.queue_id)
        except (UnicodeDecodeError, BadName) as error:
            self._recovery.notes.append(f"messages of one topic are in no queue: {error}")
            self._queues.append(None)
        else:
            self._queues.append((topic, header.queue_id))

    def _write(
        self, queue: tuple[str, int] | None, first: int, entries: bytearray, view: memoryview, base: int
    ) -> None:
        if queue is None or first < 0:
            return
        if queue[0] in self._recovery.batch_topics:
            # RocketMQ refuses a store in which such a topic has ordinary queues.
            self._write_batches(queue, batch_queue.entries_of(entries, view, base))
            return
        low, high = self._extents.get(queue, (0, 0))
        if first != high:
            # 0: the topic was deleted and made again.  Unknown: deleted, and its last messages come after.
            known = queue in self._bounds or queue[0] in self._recovery.topics
            if known and first != 0 and not self._rebuild:
                self.fits = False
            if first > high:
                self._bridge(queue, high, first, queues.ENTRY.unpack_from(entries)[0] if low < high else 0)
            if first < high or low == high:
                low = first
            # Else damaged records are missing in between; what is in front of them stays readable.
        if self._recovery.config.queue_ext:
            self._recovery.extensions.put(*queue, first, entries, view, base)
        self._recovery.queue_files.write(*queue, first, entries)
        self._extents[queue] = (low, first + len(entries) // queues.ENTRY_BYTES)

    def _bridge(self, queue: tuple[str, int], start: int, end: int, following: int) -> None:
        """Have entries without a message lead over a gap: a search among holes would end at the first.

        Args:
            following: the log offset of the message behind the gap; 0: those of the gap have left the log.
        """
        log_offset = (following or self._recovery.log_min) - 1
        if log_offset < 0:
            return  # the queue begins here: fillers are in front of it
        files = self._recovery.queue_files
        for base in files.bases(*queue):
            first = base // queues.ENTRY_BYTES
            low, high = max(start, first), min(end, first + files.entries_per_file)
            if low < high:
                files.write(*queue, low, queues.ENTRY.pack(log_offset, 0, 0) * (high - low))

    def _write_batches(self, queue: tuple[str, int], entries: bytearray) -> None:
        place = self._batch_places.get(queue, 0)
        self._recovery.batch_files.write(*queue, place, entries)
        self._batch_places[queue] = place + len(entries) // batch_queue.ENTRY_BYTES

    def finish(self) -> Queues:
        """Cut every queue where it ends now, and return what each has."""
        for queue, place in self._batch_places.items():
            self._recovery.batch_files.cut(*queue, place)
        result = {}
        files = self._recovery.queue_files
        for (topic, queue_id), (low, high) in self._extents.items():
            known = self._bounds.get((topic, queue_id))
            if known is None or known.data_end > high:
                files.cut(topic, queue_id, high)
            if self._recovery.config.queue_ext:
                self._recovery.extensions.cut(topic, queue_id, high)
            # Entries may have been written before what was its first file.
            bases = files.bases(topic, queue_id) if known is None or self._rebuild else []
            first = bases[0] // queues.ENTRY_BYTES if bases else known.first_file_entry if known else 0
            result[topic, queue_id] = QueueExtent(min=low, max=high, first_file_entry=first)
        return result


class _IndexRecovery:
    """What of the index may be trusted, and the writer that goes on behind it."""

    def __init__(self, disk: Disk, config: StoreConfig) -> None:
        self._disk = disk
        self._config = config
        self._folder = config.root / index.FOLDER
        self._names = index.list_files(
            disk, self._folder, index.file_bytes(config.index_slots, config.index_entries)
        )
        self._writer: IndexWriter | None = None

    def trusted(self, known: Checkpoint, otherwise: int) -> int:
        """Return up to which log offset the index may be trusted after a crash."""
        if not self._config.index_enabled:
            return 1 << 62
        if known.ours:
            whole = known.index_file == 0 or self._name(known) in self._names
            return known.index_flushed if whole else 0
        kept = self._full(known)
        if kept:
            return self._header(kept[-1]).end_offset
        return 0 if self._names else otherwise

    def _name(self, known: Checkpoint) -> str:
        return f"{known.index_file:017d}"

    def _header(self, name: str) -> index.IndexHeader:
        fd = self._disk.open(self._folder / name, write=False)
        try:
            return index.read_header(self._disk.pread(fd, index.HEADER.size, 0))
        finally:
            self._disk.close(fd)

    def _full(self, known: Checkpoint) -> list[str]:
        """Return the files that RocketMQ's checkpoint calls durable."""
        return [name for name in self._names if self._header(name).end_timestamp <= known.index_timestamp]

    def cut(self, clean: bool, rebuild: bool, known: Checkpoint) -> None:
        """Take away what may be half written; the index can be made again, and is."""
        if not self._config.index_enabled or (clean and not rebuild):
            return
        if rebuild:
            keep = []
        elif known.ours:
            keep = [name for name in self._names if name <= self._name(known)]
        else:
            keep = self._full(known)
        for name in set(self._names) - set(keep):
            self._disk.unlink(self._folder / name)
        if known.ours and not rebuild and self._name(known) in keep:
            slots, entries = self._config.index_slots, self._config.index_entries
            index.cut(self._disk, self._folder, self._name(known), slots, entries, known.index_next)
        if len(keep) < len(self._names):
            self._disk.fsync_dir(self._folder)

    def put(self, keys: bytearray, wall_ms: int) -> None:
        if not keys or not self._config.index_enabled:
            return
        if self._writer is None:
            config = self._config
            self._writer = IndexWriter(self._disk, self._folder, config.index_slots, config.index_entries)
        self._writer.put(keys, wall_ms)

    def sync(self, last: Checkpoint) -> Checkpoint:
        """Make the index durable; return `last` with what the checkpoint says of it."""
        size = index.file_bytes(self._config.index_slots, self._config.index_entries)
        name, next_number = index.sync_newest(self._disk, self._folder, size)
        return replace(last, index_flushed=last.log_flushed, index_file=name, index_next=next_number)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
