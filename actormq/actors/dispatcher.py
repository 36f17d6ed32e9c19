"""dispatcher: turns the log into what readers need: queues and index.

From: writer or flusher (ring at the safe point), coordinator (published tables: which queue has which row),
gateways (Mend: an entry does not lead to its message).
To: holder (rows that have grown), whoever waits for `dispatched`.
Owns: consume-queue files, their extension, the newest index file, the extents' `max` column, the cell
DISPATCHED.
Dies with it: nothing.  Its successor begins at `dispatched` and writes the same entries to the same places.

It follows `appended` in async mode and `flushed` in sync mode: nothing becomes readable that a crash
could take back.
"""

from __future__ import annotations

import struct
from typing import Any, ClassVar, Final

import msgspec

from actormq import faults
from actormq.actors.flusher import INDEX_TIMESTAMP, QUEUES_TIMESTAMP
from actormq.actors.holder import ARRIVED_OVERFLOW, WAITING
from actormq.actors.mailbox import Sender
from actormq.actors.runtime import ProcessActor, RoleContext
from actormq.broker.delay import DelayLevels
from actormq.broker.queue_rows import QueueRows
from actormq.config import StoreConfig
from actormq.errors import StoreFailed
from actormq.kernels import queues, records
from actormq.kernels.rings import FENCED
from actormq.shm.extents import Extents
from actormq.shm.positions import WANTED, Position, Positions, RoleCell, readable, slot_of
from actormq.shm.ring import RingProducer
from actormq.shm.tables import TablesReader
from actormq.store import index
from actormq.store.commit_log import FOLDER, LogReader, LogRemoved
from actormq.store.consume_queue import FOLDER as QUEUES_FOLDER
from actormq.store.consume_queue import QueueFiles
from actormq.store.disk import NO_SPACE, Disk, RealDisk
from actormq.store.index import IndexWriter
from actormq.store.queue_bounds import queues_on_disk
from actormq.store.queue_ext import ExtensionFiles

STEP_BYTES: Final = 4 * 1024 * 1024
"""How much of the log is dispatched at once, before others hear of it."""
FORGET_BYTES: Final = 16 * 1024 * 1024
"""Maps of what is done are given back in pieces of this size: a role needs no memory for the past."""
SPACING_NS: Final = 1_000_000
"""Under load, the time from the beginning of a batch to that of the next (RocketMQ's, too)."""
CROWD: Final = 4
"""So many records in a batch mean load,"""
CROWD_NS: Final = 300_000
"""and so does one that begins so soon after the last one."""
BEHIND_BYTES: Final = 256 * 1024
"""With so much still to do there is no resting."""
NO_SPACE_RETRY_NS: Final = 1_000_000_000
ROWS_AN_ENTRY_MAX: Final = 4096
_DEAD_ROW: Final = 0xFFFFFFFF
"""Stands for the row of a queue whose topic is gone: its entries are dropped."""


class Mend(msgspec.Struct, frozen=True, tag=True):
    """The queue entry of a record is damaged."""

    log_offset: int


class Dispatcher:
    """The dispatcher's state over memory and a `Disk`; `run` does one step.

    Args:
        delay_ms: of delay levels 1, 2, …
    """

    def __init__(
        self,
        config: StoreConfig,
        disk: Disk,
        positions: Positions,
        extents: Extents,
        tables: TablesReader,
        delay_ms: list[int],
    ) -> None:
        self.config = config
        self.disk = disk
        self.positions = positions
        self.extents = extents
        self.dispatched = positions.get(Position.DISPATCHED)
        self.retry_at_ns: int | None = None
        """When to try again after the disk was full."""
        self._safe = readable(config)
        self._slot = slot_of("dispatcher")
        self._tables = tables
        self._rows = QueueRows(extents.log_start)
        self._removed: list[int] = []
        self._delay_ms = delay_ms
        self._step_bytes = max(STEP_BYTES, 2 * config.body_bytes_max)
        self._reader = LogReader(disk, config.root / FOLDER, config.log_file_bytes, maps_max=2)
        self._files = QueueFiles(disk, config.root / QUEUES_FOLDER, config.queue_file_entries)
        self._extensions = ExtensionFiles(disk, config)
        self._index = (
            IndexWriter(disk, config.root / index.FOLDER, config.index_slots, config.index_entries)
            if config.index_enabled
            else None
        )
        self._forgotten = self.dispatched
        self._began_ns = 0
        self._crowded = False
        self._rows.reach(self.dispatched)
        self.follow_tables()

    def follow_tables(self) -> None:
        """Take over what was published; remove the files of queues that are no more.

        Only here they can go without a race: nobody else writes entries, and those of a topic that was
        made again under the same name come after this.
        """
        if not self._tables.stale:
            return
        for queue in self._rows.apply(*self._tables.poll()):
            self._remove(queue.topic, queue.queue_id)
            self._removed.append(queue.row)
        self._tables.mark_seen()

    def take_removed(self) -> list[int]:
        """Return the rows of queues that are no more, once: pulls may be waiting at them."""
        removed, self._removed = self._removed, []
        return removed

    def remove_stale(self) -> None:
        """Remove the files of queues that were deleted while no dispatcher lived to see it."""
        root = self.config.root / QUEUES_FOLDER
        for topic, queue_id in queues_on_disk(self.disk, root):
            row = self._rows.rows.get((topic.encode("utf-8", "surrogatepass"), queue_id))
            if row is None or self.extents.read(row).max == 0:
                self._remove(topic, queue_id)

    def _remove(self, topic: str, queue_id: int) -> None:
        # Also its descriptors: they must not be taken for those of the files that come after.
        # The extension first: what is left after a kill is found by the queue's folder.
        self._extensions.remove_queue(topic, queue_id)
        self._files.remove_queue(topic, queue_id)
        folder = self.config.root / QUEUES_FOLDER / topic
        if self.disk.exists(folder) and not self.disk.listdir(folder):
            self.disk.remove_folder(folder)
        faults.point("dispatcher.queue-removed")

    @property
    def safe(self) -> int:
        """The log offset up to which entries may be readable."""
        return self.positions.get(self._safe)

    @property
    def wanted(self) -> RoleCell:
        """Where the wish for more is written."""
        return WANTED[self._safe]

    @property
    def has_news(self) -> bool:
        """Whether `run` would find something (on a full disk only time brings it)."""
        return self._tables.stale or (self.retry_at_ns is None and self.dispatched < self.safe)

    def run(self, wall_ms: int, now_ns: int) -> list[int] | None:
        """Dispatch the next stretch; return the rows that have grown, None when there is nothing to do.

        Raises:
            StoreFailed: the disk failed in another way than by being full: a successor's sync of a file could
                succeed over what this one has lost.
        """
        safe = self.safe
        if self.dispatched >= safe or (self.retry_at_ns is not None and now_ns < self.retry_at_ns):
            self._crowded = False
            return None
        self._crowded = now_ns - self._began_ns < CROWD_NS
        self._began_ns = now_ns
        self.follow_tables()
        faults.point("dispatcher.begun")
        try:
            grown = self._step(safe, wall_ms)
        except OSError as error:
            self.stop_unless_full(error, self.dispatched)
            self.retry_at_ns = now_ns + NO_SPACE_RETRY_NS
            return None
        self.retry_at_ns = None
        return grown

    def stop_unless_full(self, error: OSError, log_offset: int) -> None:
        """A full disk passes; whatever else a disk says of a write or sync is not asked twice."""
        if error.errno not in NO_SPACE:
            self.positions.set(Position.STORE_FAILED, 1)
            sentence = f"cannot write queues or index from log offset {log_offset}: {error}"
            raise StoreFailed(sentence) from error

    def rest_ns(self, now_ns: int) -> int:
        """How long to look away after a `run`: under load what comes meanwhile costs little more than one.

        The first message after a pause never waits, nor does anything while much is left to do.
        """
        if not self._crowded or self.safe - self.dispatched > BEHIND_BYTES:
            return 0
        return max(0, self._began_ns + SPACING_NS - now_ns)

    def mend(self, log_offset: int) -> bool:
        """Write the queue entry of one dispatched record again; False when there is no such record or queue.

        With the tags code, never an address: where its unit was nobody knows any more.

        Raises:
            OSError: the disk failed.
        """
        base = log_offset - log_offset % self.config.log_file_bytes
        if not self.positions.get(Position.CLEANED) <= log_offset < self.dispatched:
            return False
        try:
            view = self._reader.file(base)
        except LogRemoved:
            return False
        start = log_offset - base
        one = records.scan(view, start, base, True, start + 1)
        found = queues.dispatch(view, start, one.end, base, self._rows.rows, self._delay_ms, False)
        mended = False
        for row, first, entries in found.runs:
            queue = self._rows.queue(row)
            extent = self.extents.read(row) if queue is not None else None
            if queue is None or extent is None or extent.incarnation != queue.incarnation:
                continue
            if extent.min <= first < extent.max and log_offset >= self.extents.log_start(row):
                self._files.write(queue.topic, queue.queue_id, first, entries)
                mended = True
        self._files.dirty()
        return mended

    def _step(self, safe: int, wall_ms: int) -> list[int]:
        file_bytes = self.config.log_file_bytes
        base = self.dispatched - self.dispatched % file_bytes
        start = self.dispatched - base
        limit = min(start + self._step_bytes, safe - base, file_bytes)
        self._rows.reach(self.dispatched)
        next_start = self._rows.next_start()
        if next_start is not None:
            # A topic that was made again: up to there, records of its name are the dead one's.
            limit = min(limit, next_start - base)
        found = queues.dispatch(
            self._reader.file(base), start, limit, base, self._rows.rows, self._delay_ms,
            self._index is not None,
        )  # fmt: skip
        self._crowded |= found.records >= CROWD
        if self.config.queue_ext:
            self._extend(found, base)
        grown = self._write(found)
        faults.point("dispatcher.readable")
        self._put_index(found, wall_ms)
        faults.point("dispatcher.index-written")
        self._publish(self._next(found, base, start), found.last_store_timestamp)
        faults.point("dispatcher.published")
        return grown

    def _extend(self, found: queues.Dispatch, base: int) -> None:
        """Write the units of all entries; the entries then lead there."""
        log = self._reader.file(base)
        for row, first, entries in found.runs:
            queue = self._rows.queue(row)
            if queue is not None:
                self._extensions.put(queue.topic, queue.queue_id, first, entries, log, base)
        self._extensions.forget_dirty()
        faults.point("dispatcher.units-written")

    def _write(self, found: queues.Dispatch) -> list[int]:
        """Write the entries of every queue, then make them readable."""
        written = []
        for row, first, entries in found.runs:
            queue = self._rows.queue(row)
            if queue is not None:
                self._files.write(queue.topic, queue.queue_id, first, entries)
                written.append((queue, first + len(entries) // queues.ENTRY_BYTES))
                faults.point("dispatcher.entries-written")
        self._files.dirty()  # the flusher finds by the extents what to sync
        grown: dict[int, None] = {}
        for queue, end in written:
            extent = self.extents.read(queue.row)
            if extent.incarnation != queue.incarnation:
                continue
            if end > extent.max:
                # After the bytes: a reader that saw it early would read zeros.
                self.extents.set_max(queue.row, end)
            grown[queue.row] = None
        return list(grown)

    def _put_index(self, found: queues.Dispatch, wall_ms: int) -> None:
        if self._index is None or not found.keys:
            return
        full_timestamp = self._index.put(found.keys, wall_ms)
        if full_timestamp is not None:
            self.positions.set_role(self._slot, INDEX_TIMESTAMP, full_timestamp)

    def _next(self, found: queues.Dispatch, base: int, start: int) -> int:
        """Return the log offset at which the next step begins."""
        if found.reason == records.ScanEnd.BLANK:
            return base + self.config.log_file_bytes
        if found.reason == queues.UNKNOWN_QUEUE:
            # Tables are published before anyone may send to a topic: this one is gone.
            header = records.decode(self._reader.file(base), found.end)
            self._rows.rows[header.topic, header.queue_id] = _DEAD_ROW
        else:
            assert found.reason == records.ScanEnd.STOP, f"{found.reason} at log offset {base + found.end}"
            assert found.end > start, "an appended record is cut off"
        return base + found.end

    def _publish(self, dispatched: int, timestamp: int) -> None:
        if timestamp:
            self.positions.set_role(self._slot, QUEUES_TIMESTAMP, timestamp)
        self.positions.set(Position.DISPATCHED, dispatched)
        self.dispatched = dispatched
        self._forget_maps()

    def _forget_maps(self) -> None:
        file_bytes = self.config.log_file_bytes
        base = self._forgotten - self._forgotten % file_bytes
        end = min(self.dispatched, base + file_bytes)
        if end - self._forgotten >= FORGET_BYTES or end == base + file_bytes:
            if base + file_bytes > self.dispatched:
                start = self._forgotten - base
                self._reader.disk.forget(self._reader.file(base), start, end - self._forgotten)
            self._forgotten = end


class DispatcherActor(ProcessActor):
    """The wiring: wishes out, doorbells in, grown rows to the holder."""

    writes_store: ClassVar[bool] = True
    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = (Mend,)

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self._arrived: RingProducer | None = None
        self._gateways = [slot_of(f"gateway-{number}") for number in range(self.config.gateway.count)]

    def on_start(self) -> None:
        context = self.context
        levels = DelayLevels(self.config.coordinator.delay_levels)
        self.state = Dispatcher(
            self.config.store,
            RealDisk(),
            self.positions,
            Extents(context.segments["extents"].view),
            TablesReader(context.segments["tables"].view, self.positions, context.slot),
            [levels.delay_ms(level) for level in range(1, levels.highest + 1)],
        )
        if context.incarnation > 1:
            self.state.remove_stale()
        if "arrived" in self.ports:
            self._arrived = RingProducer(self.ports["arrived"].requests)
            # What the dead one made readable and did not say is not known: all rows.
            self._overflow()
        self._ring_waiters()

    def on_batch(self) -> bool:
        grown = self.state.run(self.context.clock.wall_ms(), self.context.clock.monotonic_ns())
        if grown is None:
            self.state.follow_tables()
        told = self.state.take_removed() + (grown or [])
        if told:
            self._tell_holder(told)
        if grown is not None:
            self._ring_waiters()
        self.positions.set_role(self.context.slot, self.state.wanted, self.state.dispatched + 1)
        return grown is not None

    def on_message(self, message: Any, sender: Sender) -> None:
        try:
            self.state.mend(message.log_offset)
        except OSError as error:
            self.state.stop_unless_full(error, message.log_offset)

    def has_news(self) -> bool:
        return self.state.has_news

    def rest_ns(self) -> int:
        return self.state.rest_ns(self.context.clock.monotonic_ns())

    def _somebody_waits(self) -> bool:
        """Whether a gateway has pulls that wait, read after what has grown is visible."""
        return any(self.positions.role_after_fence(slot, WAITING) for slot in self._gateways)

    def _tell_holder(self, grown: list[int]) -> None:
        """Name the rows that have grown, unless nobody waits for any."""
        if self._arrived is None:
            return
        if FENCED and not self._somebody_waits():
            return
        for start in range(0, len(grown), ROWS_AN_ENTRY_MAX):
            rows = grown[start : start + ROWS_AN_ENTRY_MAX]
            if not self._arrived.try_push(struct.pack(f"<{len(rows)}I", *rows)):
                self._overflow()
                return
        faults.point("dispatcher.holder-unrung")
        self.context.doorbells["holder"].ring()

    def _overflow(self) -> None:
        """Have the holder look at every row."""
        self.positions.add_role(self.context.slot, ARRIVED_OVERFLOW)
        self.context.doorbells["holder"].ring()

    def _ring_waiters(self) -> None:
        for slot in self.positions.waiters(RoleCell.WANTED_DISPATCHED, self.state.dispatched):
            self.context.doorbell_of(slot).ring()

    def wake_at_ns(self) -> int | None:
        return self.state.retry_at_ns

    def on_stop(self) -> None:
        if self.config.store.pooled:
            # The writer is gone: what is left in the pool need not wait for more.
            self.wish(RoleCell.WANTED_FLUSHED, self.positions.get(Position.APPENDED))
            self.context.doorbells["flusher"].ring()

    def drained(self) -> bool:
        # On a full disk the rest is left to the next start, which dispatches it again.
        full = self.state.retry_at_ns is not None
        return full or self.state.dispatched == self.positions.get(Position.APPENDED)
