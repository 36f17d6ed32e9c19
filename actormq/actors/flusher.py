"""flusher: makes durable what others wrote: the log for everyone who waits, queues and index now and then.

From: writer and dispatcher (ring when a position is reached), whoever wants a flush (WANTED_FLUSHED).
To: whoever waits for `flushed`, or, with a store pool, for `written`.
Owns: the cells FLUSHED and WRITTEN, the checkpoint file.  The only role that syncs the log; with a store
pool (async mode) it also writes the log, from the pool into the files.
Dies with it: nothing; its successor syncs again what may not have been synced.  A *failed* sync is
another matter: the kernel reports a lost write once, so the broker stops (design-failure §3).

One sync serves everyone who waits: what was appended while it ran goes with the next.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from actormq import faults
from actormq.actors.runtime import ProcessActor, RoleContext
from actormq.broker.queue_rows import QueueRow, QueueRows
from actormq.config import StoreConfig
from actormq.errors import StoreFailed
from actormq.kernels.queues import ENTRY_BYTES
from actormq.shm.extents import ROW_BYTES, Column, Extents
from actormq.shm.intent import IntentPage
from actormq.shm.positions import Position, Positions, RoleCell, RoleState, role_of, slot_of
from actormq.shm.tables import TablesReader
from actormq.store import checkpoint, index, marks
from actormq.store.checkpoint import Checkpoint
from actormq.store.commit_log import FOLDER, LogFiles, file_name
from actormq.store.consume_queue import FOLDER as QUEUES_FOLDER
from actormq.store.consume_queue import MANY_FILES, queue_folder, sync_files
from actormq.store.disk import NO_SPACE, Disk, RealDisk
from actormq.store.log_buffer import LogBuffer
from actormq.store.log_flush import PAGE_BYTES, LogFlush, Pace
from actormq.store.queue_ext import newest_files

QUEUES_TIMESTAMP: Final = RoleCell.COUNTER_0
"""The dispatcher's cell: store timestamp of the last record whose queue entry is written."""
INDEX_TIMESTAMP: Final = RoleCell.COUNTER_1
"""The dispatcher's cell: store timestamp of the last key in the last index file that is full, and synced."""

_T = TypeVar("_T")
_NS_PER_MS: Final = 1_000_000
_WORDS: Final = ROW_BYTES // 8
_ROWS_AT_ONCE: Final = 1024
"""So many rows are compared at once: in most rounds most of them have nothing new."""
ROUND_PAUSE: Final = 9
"""So many times the duration of a round over the queues passes before the next: it takes a tenth at most."""


QueueFile = tuple[int, int]
"""One file of a queue: the queue's row, the file's first entry."""


class QueueFlush:
    """Which queue files are to be synced: found by comparing the extents with those of the last round.

    What it knows of each row lies in arrays: there may be 100,000.

    Args:
        extents: the memory of the extents table.
        everything: begin with every file there is (a predecessor may have died before it synced them).
    """

    def __init__(
        self, config: StoreConfig, disk: Disk, extents: memoryview, rows: QueueRows, everything: bool
    ) -> None:
        self._config = config
        self._disk = disk
        self._entries = config.queue_file_entries
        self._cells = extents.cast("Q")
        self._rows = rows
        self._incarnations = array("Q")
        self._ends = array("Q")
        """Up to where the files of that incarnation's queue are synced."""
        self._named = array("Q")
        """The names of its files that begin before this entry are durable."""
        self._extensions: set[Path] = set()
        """Extension files whose names are durable."""
        if not everything:
            self._make_room()
            self._incarnations = self._column(Column.INCARNATION, 0, rows.end)
            self._ends = self._column(Column.MAX, 0, rows.end)

    def forget(self, queues: Iterable[QueueRow]) -> None:
        """These queues are no more: what comes in the place of their extensions has new names."""
        gone = {(queue.topic, str(queue.queue_id)) for queue in queues} if self._extensions else ()
        self._extensions = {
            path for path in self._extensions if (path.parent.parent.name, path.parent.name) not in gone
        }

    def _make_room(self) -> None:
        more = bytes(8 * max(self._rows.end - len(self._ends), 0))
        for column in (self._incarnations, self._ends, self._named):
            column.frombytes(more)

    def _column(self, column: Column, first: int, end: int) -> array[int]:
        return array("Q", self._cells[first * _WORDS + column : end * _WORDS : _WORDS].tolist())

    def dirty(self, least_entries: int = 0) -> list[QueueFile]:
        """Return the files with new entries, and count them as synced from here on.

        Args:
            least_entries: queues with fewer new entries are left for another time.
        """
        self._make_room()
        files: list[QueueFile] = []
        for first in range(0, self._rows.end, _ROWS_AT_ONCE):
            end = min(first + _ROWS_AT_ONCE, self._rows.end)
            # The maximum first: with a newer incarnation it is at worst too small, and synced the next time.
            maxima = self._column(Column.MAX, first, end)
            incarnations = self._column(Column.INCARNATION, first, end)
            if maxima != self._ends[first:end] or incarnations != self._incarnations[first:end]:
                for row, (incarnation, highest) in enumerate(zip(incarnations, maxima, strict=True), first):
                    files += self._news(row, incarnation, highest, least_entries)
        return files

    def _news(self, row: int, incarnation: int, highest: int, least_entries: int) -> list[QueueFile]:
        """Return the files of one row that have new entries."""
        same = incarnation == self._incarnations[row]
        start = self._ends[row] if same else 0
        if (same and highest == start) or highest - start < least_entries:
            return []
        queue = self._rows.queue(row)
        if queue is None or queue.incarnation != incarnation:
            return []
        if not same:
            self._incarnations[row] = incarnation
            self._named[row] = 0
        self._ends[row] = highest
        start = max(start, self._cells[row * _WORDS + Column.MIN])
        return [(row, entry) for entry in range(start - start % self._entries, highest, self._entries)]

    def path(self, file: QueueFile) -> Path | None:
        """Return where a file is; None when the queue is no more."""
        row, first = file
        queue = self._rows.queue(row)
        if queue is None:
            return None
        folder = queue_folder(self._config.root / QUEUES_FOLDER, queue.topic, queue.queue_id)
        return folder / file_name(first * ENTRY_BYTES)

    def synced(self, files: Iterable[QueueFile]) -> None:
        """Files and names are durable by other means."""
        for row, first in files:
            self._named[row] = max(self._named[row], first + self._entries)

    def sync(self, file: QueueFile) -> None:
        """Make one file durable, its extension, and names the first time; what is gone is passed over."""
        row, first = file
        path = self.path(file)
        if path is None:
            return
        self._sync(path, first < self._named[row])
        self.synced([file])
        if self._config.queue_ext:
            for extension in newest_files(self._disk, self._config.root, [path]):
                self._sync(extension, extension in self._extensions)
                self._extensions.add(extension)

    def _sync(self, path: Path, is_named: bool) -> None:
        if not is_named:
            sync_files(self._disk, path.parents[2], [path])
            return
        try:
            fd = self._disk.open(path)
        except FileNotFoundError:
            return
        try:
            self._disk.fdatasync(fd)
        finally:
            self._disk.close(fd)


COMMIT_BYTES: Final = 8 * 1024 * 1024
"""So much of the store pool is written before anything else gets its turn."""


class PoolCommit:
    """Writes the store pool into the log's files; readers go as far as that has come.

    Args:
        written: up to where it is done.
    """

    def __init__(self, config: StoreConfig, files: LogFiles, pool: memoryview, written: int) -> None:
        self.plan = LogFlush(Pace.of_commit(config), written)
        self.timestamp: int | None = None
        """Store timestamp up to which records are written, once it is known."""
        self._files = files
        self._buffer = LogBuffer(pool, written)
        self._half = len(pool) // 2

    @property
    def written(self) -> int:
        return self.plan.flushed

    def is_half_full(self, appended: int) -> bool:
        """Say whether not to wait any longer, whatever the plan says: appends are soon to wait for us."""
        return appended - self.written >= self._half

    def commit(self, appended: int, timestamp: int, now_ns: int) -> None:
        """Write the next piece.

        Args:
            timestamp: a store timestamp such that records with it are surely below `appended`.
        Raises:
            OSError: never to be tried again.
        """
        end = min(appended, self.written + COMMIT_BYTES)
        self._buffer.commit(self._files, self.written, end)
        faults.point("flusher.pool-committed")
        self.plan.done(end, now_ns)
        if end == appended:
            self.timestamp = timestamp

    @property
    def wanted_appended(self) -> int:
        """The `appended` that makes something due."""
        return self.plan.wanted_appended or self.written + self._half


class Flusher:
    """The flusher's state over memory and a `Disk`; `run` does at most one sync.

    Args:
        extents: the memory of the extents table.
        intent: the memory of the writer's intent page.
        pool: the memory of the store pool, where there is one.
        fresh: recovery has just synced everything; otherwise a predecessor died.
        busy: entered around syncs.
        follow_tables: brings `rows` up to date.
    """

    def __init__(
        self,
        config: StoreConfig,
        disk: Disk,
        positions: Positions,
        extents: memoryview,
        intent: memoryview,
        rows: QueueRows,
        fresh: bool,
        busy: Callable[[RoleState], AbstractContextManager[None]] = lambda state: nullcontext(),
        pool: memoryview | None = None,
        follow_tables: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.disk = disk
        self.positions = positions
        self.files = LogFiles(disk, config.root / FOLDER, config.log_file_bytes)
        self._extents = Extents(extents)
        self._intent = IntentPage(intent)
        self._rows = rows
        self.log = LogFlush(Pace.of_flush(config), positions.get(Position.FLUSHED))
        self.pool = (
            PoolCommit(config, self.files, pool, positions.get(Position.WRITTEN))
            if pool is not None
            else None
        )
        self.queues = QueueFlush(config, disk, extents, rows, everything=not fresh)
        disk.mkdir(config.root / QUEUES_FOLDER)
        self._volume = disk.open_volume(config.root / QUEUES_FOLDER)
        self._written = checkpoint.read(disk, config.root / checkpoint.NAME)
        self.checkpoint = replace(self._written, ours=True, log_flushed=self.log.flushed)
        self.stopping = False
        self._busy = busy
        self._follow_tables = follow_tables
        self._round: deque[QueueFile] | None = None
        self._round_started_ns = 0
        self._round_dispatched = 0
        self._round_checkpoint = self.checkpoint
        self._round_is_thorough = True
        self._round_due_ns: int | None = None
        self._round_earliest_ns = 0
        self._thorough_due_ns = 0
        self._least_entries = config.flush_queue_least_pages * PAGE_BYTES // ENTRY_BYTES
        self._queues_synced = 0 if not fresh else positions.get(Position.DISPATCHED)
        self._queues_seen = self._queues_synced
        """The `dispatched` of the last round, which may have left queues with few new entries."""
        self._index_due_ns = 0

    def run(self, now_ns: int) -> bool:
        """Do what is most urgent: the log, then one file of a round over the queues; True: look again.

        Raises:
            StoreFailed: a sync failed; the cell STORE_FAILED says so already.
        """
        # The timestamp first: its records are then surely below `appended`.
        timestamp = self.positions.get(Position.STORE_TIMESTAMP)
        appended = self.positions.get(Position.APPENDED)
        if self.pool is not None:
            if self._is_due(self.pool.plan, appended, now_ns) or self.pool.is_half_full(appended):
                self._commit(self.pool, appended, timestamp, now_ns)
                return True
            appended, timestamp = self.pool.written, self.pool.timestamp or self.checkpoint.log_timestamp
        if self._is_due(self.log, appended, now_ns):
            self._sync_log(appended, timestamp, now_ns)
            return True
        return self._round_step(now_ns)

    def _is_due(self, plan: LogFlush, end: int, now_ns: int) -> bool:
        """Say whether what there is up to `end` is to be done now: by the plan, or because somebody waits."""
        plan.look(end, now_ns)
        due_ns = plan.due_ns
        return due_ns is not None and (now_ns >= due_ns or self._asked(end) > plan.flushed)

    def _asked(self, end: int) -> int:
        """Return up to where somebody waits for a sync, of what there is; everything at a stop."""
        if self.stopping:
            return end
        slots = self.positions.waiters(RoleCell.WANTED_FLUSHED, end)
        return max((self.positions.role(slot, RoleCell.WANTED_FLUSHED) for slot in slots), default=0)

    def _commit(self, pool: PoolCommit, appended: int, timestamp: int, now_ns: int) -> None:
        start = pool.written
        path = self.files.path(self.files.base_of(start))
        self._guarded(
            lambda: pool.commit(appended, timestamp, now_ns),
            f"write {path} from log offset {start}",
            RoleState.WRITING,
        )
        self.positions.set(Position.WRITTEN, pool.written)
        faults.point("flusher.pool-published")

    def _sync_log(self, appended: int, timestamp: int, now_ns: int) -> None:
        faults.point("flusher.log-unsynced")
        start = self.log.flushed
        path = self.files.path(self.files.base_of(start))
        self._guarded(lambda: self.files.sync(start, appended), f"sync {path} from log offset {start}")
        faults.point("flusher.log-synced")
        self.positions.set(Position.FLUSHED, appended)
        faults.point("flusher.log-published")
        self.log.done(appended, now_ns)
        self.checkpoint = replace(self.checkpoint, log_timestamp=timestamp, log_flushed=appended)

    def _guarded(self, work: Callable[[], _T], what: str, state: RoleState = RoleState.SYNCING) -> _T:
        """Sync, or write, once, never again after a failure: the kernel would call the lost pages clean."""
        try:
            with self._busy(state):
                return work()
        except OSError as error:
            self.positions.set(Position.STORE_FAILED, 1)
            raise StoreFailed(f"cannot {what}: {error}") from error

    # -- queues, index, checkpoint

    def _round_step(self, now_ns: int) -> bool:
        if self._round is None and not self._begin_round(now_ns):
            return False
        assert self._round is not None
        if len(self._round) > MANY_FILES and self._sync_volume():
            self.queues.synced(self._round)
            self._round.clear()
            faults.point("flusher.queue-synced")
            return True
        if self._round:
            file = self._round.popleft()
            self._guarded(lambda: self.queues.sync(file), f"sync {self.queues.path(file)}")
            faults.point("flusher.queue-synced")
            return True
        self._end_round(now_ns)
        return True

    def _sync_volume(self) -> bool:
        return self._guarded(
            lambda: self.disk.sync_volume(self._volume), f"sync the file system of {self.config.root}"
        )

    def _begin_round(self, now_ns: int) -> bool:
        dispatcher = slot_of("dispatcher")
        # These before the extents: what they speak of is then surely among the files that are synced.
        timestamp = self.positions.role(dispatcher, QUEUES_TIMESTAMP)
        index_timestamp = self.positions.role(dispatcher, INDEX_TIMESTAMP)
        dispatched = self.positions.get(Position.DISPATCHED)
        self._plan_round(dispatched, now_ns)
        if self._round_due_ns is None or (now_ns < self._round_due_ns and not self.stopping):
            return False
        self._round_is_thorough = not self._least_entries or self.stopping or now_ns >= self._thorough_due_ns
        # After `dispatched`: a queue of which it speaks is published.
        self._follow_tables()
        self._round = deque(self.queues.dirty(0 if self._round_is_thorough else self._least_entries))
        self._round_started_ns = now_ns
        self._round_dispatched = dispatched
        self._round_checkpoint = replace(
            self.checkpoint,
            queues_timestamp=max(timestamp, self.checkpoint.queues_timestamp),
            index_timestamp=max(index_timestamp, self.checkpoint.index_timestamp),
        )
        return True

    def _plan_round(self, dispatched: int, now_ns: int) -> None:
        """Set when the next round begins: soon when there are news, or when what was left is to be synced."""
        if dispatched == self._queues_synced and self._written == self.checkpoint:
            self._round_due_ns = None
            return
        due_ns = self._thorough_due_ns
        if self._round_has_news(dispatched):
            due_ns = now_ns + self.config.flush_queue_interval_ms * _NS_PER_MS
        if self._round_due_ns is None or due_ns < self._round_due_ns:
            self._round_due_ns = max(due_ns, self._round_earliest_ns)

    def _round_has_news(self, dispatched: int) -> bool:
        return dispatched != self._queues_seen or self._written != self.checkpoint

    def _end_round(self, now_ns: int) -> None:
        """Write the checkpoint: queues and index count as far as the log itself is durable."""
        self._queues_seen = self._round_dispatched
        if self._round_is_thorough:
            self._thorough_due_ns = now_ns + self.config.flush_queue_thorough_interval_ms * _NS_PER_MS
            self._write_checkpoint(self._after_thorough_round(now_ns))
            self._queues_synced = self._round_dispatched
        else:
            self._write_checkpoint(self._written)
        faults.point("flusher.checkpoint-written")
        self._round = None
        self._round_due_ns = None
        self._round_earliest_ns = now_ns + ROUND_PAUSE * (now_ns - self._round_started_ns)

    def _after_thorough_round(self, now_ns: int) -> Checkpoint:
        """Return what is durable of queues and index, now and then after a sync of the index."""
        finished = self._round_checkpoint
        if self.stopping or now_ns >= self._index_due_ns:
            if self.log.flushed < self._round_dispatched:
                self._sync_log(self._round_dispatched, self.checkpoint.log_timestamp, now_ns)
            finished = self._guarded(lambda: self._sync_index(finished), "sync the newest index file")
            self._index_due_ns = now_ns + self.config.flush_thorough_interval_ms * _NS_PER_MS
            faults.point("flusher.index-synced")
        return replace(finished, queues_flushed=min(self._round_dispatched, self.checkpoint.log_flushed))

    def _write_checkpoint(self, finished: Checkpoint) -> None:
        """Write what is durable: the log as far as it is by now."""
        finished = replace(
            finished,
            ours=True,
            log_timestamp=self.checkpoint.log_timestamp,
            log_flushed=self.checkpoint.log_flushed,
        )
        path = self.config.root / checkpoint.NAME
        self._guarded(lambda: checkpoint.write(self.disk, path, finished), f"write {path}")
        self.checkpoint = self._written = finished

    def _sync_index(self, finished: Checkpoint) -> Checkpoint:
        """Make the newest index file durable (full ones are); return what the checkpoint says then."""
        config = self.config
        size = index.file_bytes(config.index_slots, config.index_entries)
        name, next_number = index.sync_newest(self.disk, config.root / index.FOLDER, size)
        return replace(
            finished, index_flushed=self._round_dispatched, index_file=name, index_next=next_number
        )

    @property
    def clean(self) -> bool:
        """Whether everything written so far is durable and the checkpoint says so."""
        return (
            self._round is None
            and self.log.flushed == self.positions.get(Position.APPENDED)
            and self._queues_synced == self.positions.get(Position.DISPATCHED)
            and self._written == self.checkpoint
        )

    def leave(self, log_min: int) -> bool:
        """Mark the store as stopped cleanly, if it is: the caller has seen that nobody writes any more."""
        appended = self.positions.get(Position.APPENDED)
        if (
            not self.clean
            or self._queues_synced != appended
            or self._intent.read() is not None
            or self.positions.get(Position.STORE_FAILED)
        ):
            return False
        mark = marks.Mark(
            log_min=log_min,
            log_end=appended,
            last_store_timestamp=self.positions.get(Position.STORE_TIMESTAMP),
            queues={
                (queue.topic, queue.queue_id): self._extent(queue)
                for queue in self._rows
                if self._extents.read(queue.row).incarnation == queue.incarnation
            },
        )
        marks.close_store(self.disk, self.config.root, mark, self.checkpoint)
        faults.point("flusher.marked-clean")
        return True

    def _extent(self, queue: QueueRow) -> marks.QueueExtent:
        extent = self._extents.read(queue.row)
        first_file_entry, _ = self._extents.files(queue.row)
        return marks.QueueExtent(min=extent.min, max=extent.max, first_file_entry=first_file_entry)

    @property
    def wake_at_ns(self) -> int | None:
        """When time alone makes something due."""
        commit_ns = self.pool.plan.due_ns if self.pool is not None else None
        due = [at for at in (commit_ns, self.log.due_ns, self._round_due_ns) if at is not None]
        return min(due, default=None)

    @property
    def wanted_appended(self) -> int:
        """The `appended` that makes something due; 0 when only time does."""
        return self.log.wanted_appended if self.pool is None else self.pool.wanted_appended

    @property
    def wanted_dispatched(self) -> int:
        """The `dispatched` that makes a round necessary, or an earlier one; 0 when one is planned already."""
        waits = self._round_due_ns is None or (
            self._round_due_ns == self._thorough_due_ns
            and not self._round_has_news(self.positions.get(Position.DISPATCHED))
        )
        return self._queues_seen + 1 if self._round is None and waits else 0


class FlusherActor(ProcessActor):
    """The wiring: wishes out, doorbells in, waiters rung."""

    writes_store: ClassVar[bool] = True

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self._tables = TablesReader(context.segments["tables"].view, self.positions, context.slot)
        self._rows = QueueRows()

    def on_start(self) -> None:
        self._rows.apply(*self._tables.poll())
        self._tables.mark_seen()
        self.state = Flusher(
            self.config.store,
            RealDisk(),
            self.positions,
            self.context.segments["extents"].view,
            self.context.segments["intent"].view,
            self._rows,
            fresh=self.context.incarnation == 1,
            busy=self.busy,
            pool=self.context.segments["pool"].view if self.config.store.pooled else None,
            follow_tables=self._follow_tables,
        )
        self._ring_waiters()

    def _follow_tables(self) -> None:
        if self._tables.stale:
            self.state.queues.forget(self._rows.apply(*self._tables.poll()))
            self._tables.mark_seen()

    def on_batch(self) -> bool:
        self._follow_tables()
        before = self._reached()
        try:
            busy = self.state.run(self.context.clock.monotonic_ns())
        except StoreFailed as error:
            self.context.store_failed(error.remark)
        if self._reached() != before:
            self._ring_waiters()
        self.positions.set_role(self.context.slot, RoleCell.WANTED_APPENDED, self.state.wanted_appended)
        self.positions.set_role(self.context.slot, RoleCell.WANTED_DISPATCHED, self.state.wanted_dispatched)
        return busy

    def _reached(self) -> tuple[int, int]:
        """Return `flushed` and `written` (which without a pool nobody waits for)."""
        pool = self.state.pool
        return self.state.log.flushed, pool.written if pool is not None else 0

    def _ring_waiters(self) -> None:
        flushed, written = self._reached()
        slots = {
            *self.positions.waiters(RoleCell.WANTED_FLUSHED, flushed),
            *self.positions.waiters(RoleCell.WANTED_WRITTEN, written),
        }
        for slot in slots:
            self.context.doorbells[role_of(slot)].ring()

    def wake_at_ns(self) -> int | None:
        return self.state.wake_at_ns

    def on_stop(self) -> None:
        self.state.stopping = True

    def drained(self) -> bool:
        if not self.state.clean:
            return False
        if all(self._is_gone(role) for role in ("writer", "dispatcher")):
            self._leave()
        return True

    def _leave(self) -> None:
        """Mark the store as left clean; where there is no room for the mark, it stays marked as not."""
        try:
            self.state.leave(self.positions.get(Position.CLEANED))
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self.log.error("no room for the mark of a clean stop: %s", error)

    def _is_gone(self, role: str) -> bool:
        state = self.positions.role(slot_of(role), RoleCell.STATE)
        return state in (RoleState.ABSENT, RoleState.STOPPED)
