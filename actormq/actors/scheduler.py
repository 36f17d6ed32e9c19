"""scheduler: delivers delayed messages when their time has come.

From: dispatcher (ring when something was dispatched).  To: the writer, through a port of its own.
Reads: the queues of SCHEDULE_TOPIC_XXXX (their entries carry the due time), the log, the tables.
Owns: ``config/delayOffset.json``, and a ledger of the same offsets in the run folder.
Dies with it: deliveries whose completion it had not seen: its successor makes them again (at least once).

It sleeps until the next message is due.  A message that arrives later cannot be due before the shortest
level's delay: so while others work it looks at the queues' ends twice in that time, and when nobody does,
not at all: the dispatcher rings.  The decisions are in `actormq.broker.delay`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from actormq import faults
from actormq.actors.copying import push
from actormq.actors.progress import LedgerFile, SafeSave, Table
from actormq.actors.runtime import ProcessActor, RoleContext
from actormq.actors.storeview import StoreReader
from actormq.broker.delay import DelayLevels, DueEntry, Schedule, restore
from actormq.broker.ledger import Row
from actormq.broker.outbox import Append, copy_of
from actormq.broker.sending import PutStatus
from actormq.broker.tables import Tables, TopicEntry
from actormq.message import SCHEDULE_TOPIC
from actormq.shm.append_port import AppendPort, Completion
from actormq.shm.extents import Extents
from actormq.shm.positions import Position, RoleCell, RoleState
from actormq.shm.tables import TablesReader
from actormq.store import tables as files
from actormq.store.disk import RealDisk
from actormq.store.record import Record
from actormq.wire.registration import DataVersion

SAVE_INTERVAL_MS: Final = 10_000
RETRY_MS: Final = 100
"""RocketMQ's DELAY_FOR_A_WHILE: how long a delivery that failed waits."""
ENTRIES_A_TURN: Final = 64
STOP_MS_MAX: Final = 3_000
LEDGER_NAME: Final = "scheduler.ledger"
_PERMANENT: Final = (PutStatus.MESSAGE_ILLEGAL, PutStatus.PROPERTIES_SIZE_EXCEEDED)
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class _Delivery:
    """One entry on its way."""

    level: int
    queue_offset: int


def delivery(ticket: int, record: Record, tables: Tables) -> Append | str:
    """Return the message as it is stored in its own queue, or why it cannot be.

    Args:
        record: as it waits in the level's queue.
    """
    place = restore(record.properties)
    if place is None:
        return "it has no place to go to"
    entry = tables.topic(place.topic)
    if entry is None or not entry.rows:
        return f"its topic {place.topic} is gone"
    # A topic that was deleted and made again may have fewer queues.
    queue_id = place.queue_id % len(entry.rows)
    return copy_of(record, ticket, entry, queue_id, place.properties, record.reconsume_times)


class SchedulerActor(ProcessActor):
    """The scheduler's process: extents and log in, its port out."""

    writes_store: ClassVar[bool] = True

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self._ticket = context.incarnation << 32
        self._under_way: dict[int, _Delivery] = {}
        self._unsent: deque[Append] = deque()
        self._unsafe: deque[tuple[int, _Delivery]] = deque()
        """(log end, delivery): stored, but the log is not safe up to there."""
        self._looked_at = -1
        self._look_ms: int | None = 0
        self._stop_ms: int | None = None
        self._told: dict[int, int] = {}
        self._dropped = 0

    def on_start(self) -> None:
        config, context = self.config, self.context
        levels = DelayLevels(config.coordinator.delay_levels)
        self._look_interval_ms = max(1, min(levels.delays_ms) // 2)
        self._disk = RealDisk()
        self._tables = Tables()
        self._tables_reader = TablesReader(context.segments["tables"].view, self.positions, context.slot)
        self._follow_tables()
        extents = Extents(context.segments["extents"].view)
        self._store = StoreReader(config, self._disk, self.positions, extents)
        self._port = AppendPort(self.ports["append"], context.doorbells["writer"])
        self._path = config.store.root / files.FOLDER / files.DELAY_OFFSETS
        self._ledger = LedgerFile(context.run_dir / LEDGER_NAME, self._ledger_rows)
        self.schedule = self._restore(levels)
        self._save = SafeSave(SAVE_INTERVAL_MS, self._monotonic_ms())

    def _restore(self, levels: DelayLevels) -> Schedule:
        """Begin where the file says, or where the ledger of this broker's life knows better."""
        table = files.load(self._disk, self._path) or {}
        stored = table.get("offsetTable")
        offsets = {
            int(level): offset
            for level, offset in (stored.items() if isinstance(stored, dict) else ())
            if str(level).isdecimal() and type(offset) is int
        }
        for row in self._ledger.found():
            offsets[int(row.key)] = row.value
        return Schedule(levels, offsets, DataVersion.from_json(table.get("dataVersion")))

    def _monotonic_ms(self) -> int:
        return self.context.clock.monotonic_ns() // _NS_PER_MS

    # --- one turn ------------------------------------------------------------------------------------

    def on_batch(self) -> bool:
        now_ms = self.context.clock.wall_ms()
        busy = self._follow_tables()
        busy |= self._take_completions(now_ms)
        busy |= self._finish_safe(now_ms)
        busy |= self._look()
        if self._stop_ms is None:
            busy |= self._deliver(now_ms)
        busy |= self._send()
        busy |= self._keep_progress()
        return busy | self._set_wishes()

    def _follow_tables(self) -> bool:
        if not self._tables_reader.stale:
            return False
        reset, entries = self._tables_reader.poll()
        if reset:
            self._tables.reset()
        for entry in entries:
            self._tables.apply(entry)
        self._tables_reader.mark_seen()
        return True

    def _topic(self) -> TopicEntry | None:
        return self._tables.topic(SCHEDULE_TOPIC)

    # --- looking -------------------------------------------------------------------------------------

    def _look(self) -> bool:
        """Notice which levels' queues have grown, if that is due."""
        now_ms = self._monotonic_ms()
        dispatched = self.positions.get(Position.DISPATCHED)
        if self._look_ms is not None and now_ms < self._look_ms:
            return False
        if dispatched == self._looked_at:
            self._look_ms = None  # nobody works: the dispatcher will ring
            return False
        self._looked_at = dispatched
        self._look_ms = now_ms + self._look_interval_ms
        entry = self._topic()
        if entry is not None:
            for level in range(1, self.schedule.levels.highest + 1):
                self._look_at(entry, level)
        faults.point("scheduler.looked")
        return True

    def _look_at(self, entry: TopicEntry, level: int) -> None:
        self._bring_in(entry, level)
        if self._store.extent(entry, level - 1)[1] > self.schedule.position(level):
            self.schedule.grown(level)

    def _bring_in(self, entry: TopicEntry, level: int) -> None:
        """Correct a position outside the level's queue: below what was cleaned, beyond what was cut."""
        low, high = self._store.extent(entry, level - 1)
        former = self.schedule.clamp(level, low, high)
        if former is not None:
            text = "delay level %d had come to %d, but its queue has entries %d to %d"
            self.log.warning(text, level, former, low, high)

    # --- delivering ----------------------------------------------------------------------------------

    def _deliver(self, now_ms: int) -> bool:
        """Hand out what is due; True when there was something."""
        entry = self._topic()
        if entry is None:
            return False
        handed = False
        for level in range(1, self.schedule.levels.highest + 1):
            for queue_offset in self.schedule.retries(level, now_ms):
                handed = True
                self._take(level, queue_offset, self._entries(entry, level, queue_offset, 1), now_ms)
        for level in self.schedule.due_levels(now_ms):
            handed = True
            count = min(ENTRIES_A_TURN, self.schedule.room(level))
            found = self._entries(entry, level, self.schedule.position(level), count)
            if not found:
                self._bring_in(entry, level)
            for due in self.schedule.offer(level, found, now_ms):
                self._take(level, due.queue_offset, [due], now_ms)
        return handed

    def _entries(self, entry: TopicEntry, level: int, first: int, count: int) -> list[DueEntry]:
        """Return entries of a level's queue.  One of RocketMQ's that has an address in its extension, where
        its due time would be: the message says when it was stored."""
        found = self._store.entries(entry, level - 1, first, count)
        return [self._dated(each, level) if each.due_ms < 0 else each for each in found]

    def _dated(self, entry: DueEntry, level: int) -> DueEntry:
        record = self._store.record(entry.log_offset)
        if record is None:
            return entry
        return entry._replace(due_ms=self.schedule.levels.due_ms(level, record.store_timestamp))

    def _take(self, level: int, queue_offset: int, found: list[DueEntry], now_ms: int) -> None:
        """Begin the delivery of one entry; what cannot be delivered is dropped, with a line in the log."""
        record = self._store.record(found[0].log_offset) if found else None
        self._ticket += 1
        append: Append | str = "the log does not have it any more"
        if record is not None:
            append = delivery(self._ticket, record, self._tables)
        if isinstance(append, str):
            self._drop(_Delivery(level, queue_offset), append, now_ms)
            return
        faults.point("scheduler.taken")
        self._under_way[self._ticket] = _Delivery(level, queue_offset)
        self._unsent.append(append)

    def _send(self) -> bool:
        sent = False
        while self._unsent and push(self._port, self._unsent[0]):
            self._unsent.popleft()
            sent = True
            faults.point("scheduler.pushed")
        self._port.flush()
        return sent

    def _take_completions(self, now_ms: int) -> bool:
        done = self._port.completions()
        for completion in done:
            self._completed(completion, now_ms)
        return bool(done)

    def _completed(self, completion: Completion, now_ms: int) -> None:
        on_the_way = self._under_way.pop(completion.ticket)
        if completion.status == PutStatus.PUT_OK:
            self._unsafe.append((completion.log_end, on_the_way))
            faults.point("scheduler.stored")
        elif completion.status in _PERMANENT:
            self._drop(on_the_way, PutStatus(completion.status).name, now_ms)
        else:
            self.schedule.fail(on_the_way.level, on_the_way.queue_offset, now_ms + RETRY_MS)

    def _drop(self, entry: _Delivery, why: str, now_ms: int) -> None:
        """Give one entry up; the log hears of the 1st, 2nd, 4th, 8th …: there may be millions."""
        self.schedule.finish(entry.level, entry.queue_offset, now_ms)
        self._dropped += 1
        if self._dropped & (self._dropped - 1) == 0:
            text = "dropped entry %d of delay level %d: %s (%d so far)"
            self.log.warning(text, entry.queue_offset, entry.level, why, self._dropped)

    def _finish_safe(self, now_ms: int) -> bool:
        """Count as delivered what the log cannot lose any more in this broker's mode."""
        safe = self._store.safe
        finished = False
        while self._unsafe and self._unsafe[0][0] <= safe:
            _, done = self._unsafe.popleft()
            self.schedule.finish(done.level, done.queue_offset, now_ms)
            finished = True
        return finished

    # --- progress ------------------------------------------------------------------------------------

    def _ledger_rows(self) -> Iterator[Row]:
        for level, offset in self.schedule.saved().items():
            yield Row(b"%d" % level, offset, 0)

    def _keep_progress(self) -> bool:
        for row in self._ledger_rows():
            if self._told.get(int(row.key)) != row.value:
                self._told[int(row.key)] = row.value
                self._ledger.put(row)
                faults.point("scheduler.ledger-written")
        appended, flushed = self.positions.get(Position.APPENDED), self.positions.get(Position.FLUSHED)
        table = self._save.look(self._monotonic_ms(), appended, flushed, self._take_offsets)
        if table is None:
            return False
        faults.point("scheduler.offsets-unsaved")
        self._write(table)
        faults.point("scheduler.offsets-saved")
        return True

    def _take_offsets(self) -> Table | None:
        if not self.schedule.changed:
            return None
        self.schedule.changed = False
        return {"dataVersion": self.schedule.version.to_json(), "offsetTable": self.schedule.saved()}

    def _write(self, table: Table) -> None:
        try:
            with self.busy(RoleState.SYNCING):
                files.save(self._disk, self._path, table)
        except OSError as error:
            self.schedule.changed = True
            self.log.error("cannot write %s: %s", self._path.name, error)

    # --- waiting -------------------------------------------------------------------------------------

    def _set_wishes(self) -> bool:
        """Say which positions we wait for; True when a wish is new: it must be looked at once more."""
        log_ends = [self._unsafe[0][0]] if self._unsafe else []
        if self._save.pending:
            log_ends.append(self._save.wanted_flushed)
        asked = self.wish(RoleCell.WANTED_FLUSHED, min(log_ends, default=0))
        if asked:
            self.context.doorbells["flusher"].ring()
        # While a look is planned nobody needs to ring.
        wanted = self._looked_at + 1 if self._look_ms is None else 0
        return asked | self.wish(RoleCell.WANTED_DISPATCHED, wanted)

    def wake_at_ns(self) -> int | None:
        now_ns = self.context.clock.monotonic_ns()
        times = []
        due_ms = self.schedule.wake_ms() if self._stop_ms is None else None
        if due_ms is not None:
            # The wall clock's milliseconds are rounded down: this is never early.
            times.append(now_ns + (due_ms - self.context.clock.wall_ms()) * _NS_PER_MS)
        if self._look_ms is not None:
            times.append(self._look_ms * _NS_PER_MS)
        save_ms = self._save.wake_ms() if self.schedule.changed else None
        if save_ms is not None:
            times.append(save_ms * _NS_PER_MS)
        if self._stop_ms is not None:
            times.append(self._stop_ms * _NS_PER_MS)
        return min(times, default=None)

    def on_tick(self, now_ns: int) -> None:
        """All work is in `on_batch`, which comes before and after."""

    # --- the end -------------------------------------------------------------------------------------

    def on_stop(self) -> None:
        self._stop_ms = self._monotonic_ms() + STOP_MS_MAX
        self._save.hurry()

    def drained(self) -> bool:
        assert self._stop_ms is not None
        if self._monotonic_ms() >= self._stop_ms:
            return True
        busy = self._under_way or self._unsafe or self._unsent or self._save.pending
        return not busy and not self.schedule.changed
