"""cleaner: makes the next log file before it is needed, and removes files that are too old.

From: writer (rings when `appended` is past the middle of the last file, or when it waits for the next).
To: writer (rings when there is a file).
Owns: which segment files exist, the extents' `min` column, the cell CLEANED.
Dies with it: a half-made file, which has no name that anyone opens, and a removal half done, which the
next round does again.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from actormq import faults
from actormq.actors.mailbox import Sender
from actormq.actors.runtime import ProcessActor, RoleContext
from actormq.actors.writer import DISK_USED, ROOM, Room
from actormq.broker.queue_rows import QueueRow, QueueRows
from actormq.config import StoreConfig
from actormq.errors import StoreFailed
from actormq.kernels.rings import full_fence
from actormq.shm.extents import Extents
from actormq.shm.positions import GATEWAY_SLOT, SLOTS, Position, Positions, RoleCell, RoleState
from actormq.shm.tables import TablesReader
from actormq.store import checkpoint, index
from actormq.store.batch_queue import BatchQueues
from actormq.store.commit_log import FOLDER, LogFiles
from actormq.store.consume_queue import FOLDER as QUEUES_FOLDER
from actormq.store.consume_queue import QueueFiles, QueueReader, QueueRemoved, first_at_or_after
from actormq.store.disk import NOT_THE_DISK, Disk, RealDisk
from actormq.store.log_flush import PAGE_BYTES
from actormq.store.queue_ext import ExtensionFiles

REMOVED_FILES: Final = RoleCell.COUNTER_1

RETRY_NS: Final = 1_000_000_000
FIRST_ROUND_INTERVALS: Final = 6
"""RocketMQ waits a minute before the first round."""
READERS_LOOK_NS: Final = 100_000_000
ASKED_ROUNDS: Final = 20
"""So many rounds an administrator's request lasts, as in RocketMQ."""
_NS_PER_MS: Final = 1_000_000
_HOUR_NS: Final = 3_600_000_000_000
_FOR_EVER: Final = 1 << 62


class SegmentMaker:
    """Makes log files ahead of the writer."""

    def __init__(self, files: LogFiles, appended: int) -> None:
        self.files = files
        self.retry_at_ns: int | None = None
        """When to try again after a failure."""
        self.error: OSError | None = None
        bases = files.bases()
        self.begin = bases[0] if bases else files.base_of(appended)
        """Where the oldest file begins."""
        self.end = bases[-1] + files.file_bytes if bases else files.base_of(appended)

    @property
    def due_from(self) -> int:
        """The log offset from which on the next file is wanted: the middle of the last one."""
        return max(self.end - self.files.file_bytes // 2, 1)

    def make(self, appended: int, now_ns: int) -> bool:
        """Make what is due; True when there is a new file.  A failure sets `error` and `retry_at_ns`.

        Raises:
            StoreFailed: the disk failed in a way that no room and no person mends.
        """
        if self.retry_at_ns is not None and now_ns < self.retry_at_ns:
            return False
        made = False
        try:
            # Without any file, the first is due although nothing was appended.
            while appended >= self.due_from or self.end == self.files.base_of(appended):
                self.files.create(self.end)
                faults.point("cleaner.file-made")
                self.end += self.files.file_bytes
                made = True
        except OSError as error:
            if error.errno not in NOT_THE_DISK:
                raise StoreFailed(f"cannot make {self.files.path(self.end)}: {error}") from error
            self.error = error
            self.retry_at_ns = now_ns + RETRY_NS
            return made
        self.error = None
        self.retry_at_ns = None
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """When a log file goes.  Source: MessageStoreConfig.java, CleanCommitLogService."""

    reserved_ns: int
    hours: frozenset[int]
    expire_percent: int
    force_percent: int
    warning_percent: int
    may_force: bool
    files_max: int

    @classmethod
    def of(cls, config: StoreConfig) -> Retention:
        hours = (part.strip() for part in config.delete_when.split(";"))
        return cls(
            reserved_ns=config.retention_hours * _HOUR_NS,
            hours=frozenset(int(hour) for hour in hours if hour.isdecimal()),
            expire_percent=config.disk_expire_percent,
            force_percent=config.disk_force_percent,
            warning_percent=config.disk_warning_percent,
            may_force=config.force_clean,
            files_max=config.delete_batch_max,
        )

    def is_full(self, used_percent: int) -> bool:
        """Whether nothing more may be stored."""
        return used_percent > self.warning_percent

    def choose(
        self,
        files: Iterable[tuple[int, int]],
        wall_ns: int,
        hour: int,
        used_percent: int,
        below: int,
        asked: bool = False,
    ) -> list[int]:
        """Return the beginnings of the files to remove: the oldest, up to the first that must stay.

        Args:
            files: beginning and time of the last change (ns) of each file but the last, oldest first.
            hour: local hour of the day.
            used_percent: how full the disk is.
            below: a file that begins here or later stays: it is not yet flushed, or not dispatched.
            asked: an administrator wants what is old enough to go now.
        """
        forced = self.may_force and used_percent > min(self.force_percent, self.warning_percent)
        if not (forced or asked or used_percent > self.expire_percent or hour in self.hours):
            return []
        chosen: list[int] = []
        for base, changed_ns in files:
            expired = wall_ns >= changed_ns + self.reserved_ns
            if base >= below or not (expired or forced) or len(chosen) == self.files_max:
                break
            chosen.append(base)
        return chosen


class Remover:
    """Takes the oldest part of the store away from its readers, then from the disk."""

    def __init__(self, config: StoreConfig, disk: Disk, positions: Positions, extents: Extents) -> None:
        self.config = config
        self.disk = disk
        self.positions = positions
        self.extents = extents
        self.files = LogFiles(disk, config.root / FOLDER, config.log_file_bytes)
        self.queue_files = QueueFiles(disk, config.root / QUEUES_FOLDER, config.queue_file_entries)
        self.extensions = ExtensionFiles(disk, config)
        self.batches = BatchQueues(disk, config.root)
        self.retention = Retention.of(config)

    def choose(self, wall_ns: int, hour: int, used_percent: int, asked: bool = False) -> list[int]:
        """Return the log files to remove now."""
        # Behind the checkpoint a loss of power takes queue entries, which only the log can give back: without
        # it the queue would end earlier, and use its numbers again.
        known = checkpoint.read(self.disk, self.config.root / checkpoint.NAME)
        durable = min(self.positions.get(Position.FLUSHED), known.queues_flushed if known.ours else 0)
        below = self.files.base_of(min(durable, self.positions.get(Position.DISPATCHED)))
        files = ((base, self.disk.modified_ns(self.files.path(base))) for base in self.files.bases()[:-1])
        return self.retention.choose(files, wall_ns, hour, used_percent, below, asked)

    def hide(self, log_min: int, queues: Iterable[QueueRow]) -> None:
        """Tell every reader that the log begins at `log_min`, and each queue where that leaves it."""
        self.positions.set(Position.CLEANED, log_min)
        # A gateway says where it reads, then looks at CLEANED; we do it the other way round.
        full_fence()
        faults.point("cleaner.log-hidden")
        reader = QueueReader(self.disk, self.config.root / QUEUES_FOLDER, self.config.queue_file_entries)
        for queue in queues:
            extent = self.extents.read(queue.row)
            if extent.incarnation != queue.incarnation or extent.min >= extent.max:
                continue
            if self.batches.has(queue.topic, queue.queue_id):
                log_end = self.positions.get(Position.DISPATCHED)
                lowest = self.batches.bounds(queue.topic, queue.queue_id, log_min, log_end).min
            else:
                lowest = first_at_or_after(extent.min, extent.max, log_min, _log_offset_of(reader, queue))
            if lowest > extent.min:
                self.extents.set_min(queue.row, lowest)
        faults.point("cleaner.queues-hidden")

    def read_by(self, log_min: int) -> list[int]:
        """Return the slots of gateways that may still read before `log_min`."""
        slots = range(GATEWAY_SLOT, SLOTS)
        return [slot for slot in slots if self._reads(slot, log_min)]

    def _reads(self, slot: int, log_min: int) -> bool:
        state = self.positions.role(slot, RoleCell.STATE)
        reading = self.positions.role(slot, RoleCell.READING_FROM)
        return state not in (RoleState.ABSENT, RoleState.STOPPED) and 0 < reading < log_min

    def unlink_log_file(self, log_min: int) -> bool:
        """Remove the oldest log file, if it lies before `log_min`; say whether there was one."""
        bases = self.files.bases()[:-1]
        if not bases or bases[0] >= log_min:
            return False
        self.files.remove(bases[0])
        faults.point("cleaner.log-file-removed")
        return True

    def unlink_derived(self, log_min: int, queues: Iterable[QueueRow]) -> None:
        """Remove the files of queues and index that point only before `log_min`."""
        for queue in queues:
            extent = self.extents.read(queue.row)
            if extent.incarnation == queue.incarnation and extent.min > 0:
                self.extensions.remove_before(queue.topic, queue.queue_id, extent.min)
                self.queue_files.remove_before(queue.topic, queue.queue_id, extent.min)
                self._note_files(queue, extent.min)
        faults.point("cleaner.queue-files-removed")
        self._remove_index_before(log_min)
        faults.point("cleaner.index-files-removed")

    def _note_files(self, queue: QueueRow, lowest: int) -> None:
        entries = self.config.queue_file_entries
        self.extents.set_files(queue.row, lowest - lowest % entries, entries)

    def _remove_index_before(self, log_min: int) -> None:
        folder = self.config.root / index.FOLDER
        size = index.file_bytes(self.config.index_slots, self.config.index_entries)
        for name in index.list_files(self.disk, folder, size)[:-1]:
            if _index_end(self.disk, folder / name) >= log_min:
                break
            self.disk.unlink(folder / name)


def _log_offset_of(reader: QueueReader, queue: QueueRow) -> Callable[[int], int]:
    def log_offset(entry: int) -> int:
        try:
            return reader.entry(queue.topic, queue.queue_id, entry, queue.incarnation)[0]
        except QueueRemoved:
            return -1

    return log_offset


def _index_end(disk: Disk, path: Path) -> int:
    fd = disk.open(path, write=False)
    try:
        (end_offset,) = struct.unpack(">q", disk.pread(fd, 8, 24))
    finally:
        disk.close(fd)
    return int(end_offset)


class CleanNow(msgspec.Struct):
    """An administrator asks: what is old enough goes now, whatever the hour (codes 329 and 306)."""


class CleanerActor(ProcessActor):
    """The wiring: when to look, and what the disk says of itself."""

    writes_store: ClassVar[bool] = True
    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = (CleanNow,)

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        disk = RealDisk()
        store = self.config.store
        self._files = LogFiles(
            disk,
            store.root / FOLDER,
            store.log_file_bytes,
            warm_bytes=store.warm_flush_pages * PAGE_BYTES if store.warm_files else 0,
        )
        self._remover = Remover(store, disk, self.positions, Extents(context.segments["extents"].view))
        self._tables = TablesReader(context.segments["tables"].view, self.positions, context.slot)
        self._rows = QueueRows()
        self._round_at_ns = 0
        self._asked_rounds = 0
        self._disk_is_full = False
        self._look_at_ns = _FOR_EVER
        """When to look at a full disk again, between rounds."""
        self._removing_before: int | None = None
        self._waiting_until_ns = 0
        self._removed = 0

    def on_start(self) -> None:
        self._maker = SegmentMaker(self._files, self.positions.get(Position.APPENDED))
        now_ns = self.context.clock.monotonic_ns()
        self._round_at_ns = now_ns + FIRST_ROUND_INTERVALS * self._interval_ns
        self._follow_tables()
        self._look_at_disk()
        self._make()
        log_min = self.positions.get(Position.CLEANED)
        if self._maker.begin < log_min:
            # A dead predecessor had taken these files from the readers, and not yet from the disk.
            self._begin_removal(log_min, now_ns)

    def on_message(self, message: CleanNow, sender: Sender) -> None:
        self._asked_rounds = ASKED_ROUNDS
        self._round_at_ns = 0

    def on_batch(self) -> bool:
        self._follow_tables()
        return self._make()

    def _follow_tables(self) -> None:
        if self._tables.stale:
            self._rows.apply(*self._tables.poll())
            self._tables.mark_seen()

    def _make(self) -> bool:
        appended = self.positions.get(Position.APPENDED)
        before = self._maker.error
        made = False
        if appended >= self._maker.due_from or self._maker.end == self._files.base_of(appended):
            with self.busy(RoleState.SYNCING):
                made = self._maker.make(appended, self.context.clock.monotonic_ns())
        error = self._maker.error
        self._say_room()
        # While there is no room the timer looks, not every append.
        self.positions.set_role(
            self.context.slot, RoleCell.WANTED_APPENDED, 0 if error else self._maker.due_from
        )
        if made or (error and not before):
            self.context.doorbells["writer"].ring()
        if error and not before:
            self._look_at_disk()
            self.log.error("cannot make a log file, sends will be refused: %s", error)
        elif before and not error:
            self.log.info("there is room for log files again")
        return made

    def _say_room(self) -> None:
        room = Room.DISK_FULL if self._disk_is_full else Room.NO_FILE if self._maker.error else Room.ENOUGH
        self.positions.set_role(self.context.slot, ROOM, room)

    def _look_at_disk(self) -> int:
        """Publish how full the disk is, and whether sends are refused for that; return the percentage."""
        used = used_percent(self.config.store.root)
        self.positions.set_role(self.context.slot, DISK_USED, used)
        full = self._remover.retention.is_full(used)
        self._look_at_ns = self.context.clock.monotonic_ns() + RETRY_NS if full else _FOR_EVER
        if full != self._disk_is_full:
            self._disk_is_full = full
            if full:
                self.log.error("physic disk maybe full soon %d%%, so mark disk full, sends are refused", used)
            else:
                self.log.info("physic disk space OK %d%%, so mark disk ok", used)
                self._maker.retry_at_ns = None  # there may be room for the next file: not in a second, now
        return used

    @property
    def _interval_ns(self) -> int:
        return self.config.store.clean_interval_ms * _NS_PER_MS

    def wake_at_ns(self) -> int | None:
        return min(self._maker.retry_at_ns or _FOR_EVER, self._look_at_ns, self._round_at_ns)

    def on_tick(self, now_ns: int) -> None:
        if self._maker.retry_at_ns is not None and now_ns >= self._maker.retry_at_ns:
            self._make()
        if now_ns >= min(self._look_at_ns, self._round_at_ns):
            used = self._look_at_disk()
            self._make()
            if now_ns >= self._round_at_ns:
                self._round(used, now_ns)

    def _round(self, used: int, now_ns: int) -> None:
        """Remove what is too old, step by step."""
        self._round_at_ns = now_ns + self._interval_ns
        if self._removing_before is None:
            self._choose(used, now_ns)
        if self._removing_before is not None:
            self._remove(self._removing_before, now_ns)

    def _choose(self, used: int, now_ns: int) -> None:
        wall_ms = self.context.clock.wall_ms()
        hour = time.localtime(wall_ms / 1000).tm_hour
        asked = self._asked_rounds > 0
        chosen = self._remover.choose(wall_ms * _NS_PER_MS, hour, used, asked)
        if chosen:
            self._begin_removal(chosen[-1] + self._files.file_bytes, now_ns)
        elif asked:
            # Nothing old is left of the log: only what may point to nothing is looked for.
            self._begin_removal(self.positions.get(Position.CLEANED), now_ns)
            self._asked_rounds = 1
        self._asked_rounds = max(0, self._asked_rounds - 1)

    def _begin_removal(self, log_min: int, now_ns: int) -> None:
        self._removing_before = log_min
        self._removed = 0
        self._waiting_until_ns = now_ns + self.config.store.delete_wait_ms * _NS_PER_MS
        self._round_at_ns = now_ns
        self._remover.hide(log_min, self._rows)

    def _remove(self, log_min: int, now_ns: int) -> None:
        """Take the next step: one log file, or at the end all files of queues and index."""
        if self._remover.read_by(log_min) and now_ns < self._waiting_until_ns:
            self._round_at_ns = now_ns + READERS_LOOK_NS
            return
        try:
            with self.busy(RoleState.WRITING):
                if self._remover.unlink_log_file(log_min):
                    self._removed += 1
                    self._round_at_ns = now_ns + self.config.store.delete_interval_ms * _NS_PER_MS
                    return
                self._remover.unlink_derived(log_min, self._rows)
        except OSError as error:
            raise StoreFailed(f"cannot remove files before log offset {log_min}: {error}") from error
        self._removing_before = None
        self._round_at_ns = now_ns + (0 if self._asked_rounds else self._interval_ns)
        self.positions.add_role(self.context.slot, REMOVED_FILES, self._removed)
        if self._removed:
            self.log.info("removed %d log files, the log begins at %d", self._removed, log_min)


def used_percent(root: Path) -> int:
    """Return how full the disk under `root` is, rounded up as RocketMQ does."""
    stat = os.statvfs(root)
    used = stat.f_blocks - stat.f_bfree
    usable = used + stat.f_bavail
    return -(-used * 100 // usable) if usable else 100
