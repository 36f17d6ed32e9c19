"""writer: merges every append port into one log, batch by batch.

From: gateways, coordinator, scheduler, checker (append ports).  To: the same (completions), and whoever
waits for `appended`.
Owns: the tail of the commit log, the next queue offsets, the cells APPENDED and STORE_TIMESTAMP.
Dies with it: nothing.  A batch is announced on the intent page before the log is touched; the successor
finishes it or undoes it (`Writer.recover`), and finds the queue offsets in the extents and in the log
behind them.

Order: intent → record bytes → `appended` → completions → ring heads → intent cleared → doorbells.  The
completions themselves are written with the records' encoding, behind the tail of their ring, so that
publishing them is one store, as often as needed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from actormq import faults
from actormq.actors.listeners import resolve
from actormq.actors.runtime import ProcessActor, RoleContext
from actormq.broker.sending import PutStatus
from actormq.config import StoreConfig
from actormq.errors import StoreFailed
from actormq.kernels import records
from actormq.kernels.batches import BatchEncoder, Stop
from actormq.kernels.rings import HEAD, TAIL, Cells
from actormq.shm.intent import PORTS_MAX, Intent, IntentPage, PortMove
from actormq.shm.positions import Position, Positions, RoleCell, RoleState, slot_of
from actormq.shm.ring import Port
from actormq.store.commit_log import FOLDER, LogFiles, LogReader, LogRemoved
from actormq.store.disk import Disk, RealDisk
from actormq.store.identifiers import pack_host
from actormq.store.log_buffer import LogBuffer
from actormq.store.log_tail import queue_ends

CLEANER: Final = slot_of("cleaner")
ROOM: Final = RoleCell.COUNTER_0
"""The cleaner's cell: a `Room`."""
DISK_USED: Final = RoleCell.COUNTER_2
"""The cleaner's cell: how full the disk was when it last looked, in percent."""

BATCH_BYTES: Final = 1024 * 1024
SHARE_BYTES_MIN: Final = 64 * 1024
"""What a port may add to a batch however many others have something, too."""
TIMESTAMP_AHEAD_MS: Final = 1_000
"""After the clock was set back, store timestamps stay this little ahead of it."""
NEXT_FILE_WAIT_NS: Final = 1_000_000_000
"""How long sends wait for the cleaner (which may be restarting) before they are refused."""
COMPLETIONS_WAIT_NS: Final = 10_000_000
"""How soon to look again at a client that does not take its completions."""


class Room(IntEnum):
    """What the cleaner says of the disk."""

    ENOUGH = 0
    NO_FILE = 1
    """Its last attempt to make a log file has failed: sends do not wait for the next file."""
    DISK_FULL = 2
    """More of the disk is used than RocketMQ's warning level allows: nothing is stored."""


def store_host(host: str, port: int) -> bytes:
    """Return how records and offset message ids name this broker: address, then the port as i32."""
    return pack_host(resolve(host), port)


@dataclass(slots=True)
class Source:
    """One append port: a client's incarnation."""

    slot: int
    incarnation: int
    port: Port
    requests: Cells
    completions: Cells
    head: int
    """Where the next request will be taken; the ring's own head follows when it is answered."""
    tail: int
    """Where the next completion will be written."""
    closed: bool = False
    """The client is dead: what it has pushed is still stored, nobody reads the answers."""


@dataclass(slots=True)
class Batch:
    """What one round has gathered, not yet written."""

    start: int
    records_start: int
    """Where the records go: `start`, or the beginning of the next file."""
    moved: list[Source]
    file_full: bool = False
    """Some request needs the next file."""


class Writer:
    """The writer's state over memory and a `Disk`; `run` does one batch.

    Args:
        extents: the memory of the extents table.
        intent: the memory of the intent page.
        host: as `store_host` makes it.
        busy: entered around writes.
        pool: the memory of the store pool, where there is one.
    """

    def __init__(
        self,
        config: StoreConfig,
        disk: Disk,
        positions: Positions,
        extents: memoryview,
        intent: memoryview,
        host: bytes,
        busy: Callable[[RoleState], AbstractContextManager[None]] = lambda state: nullcontext(),
        pool: memoryview | None = None,
    ) -> None:
        self.config = config
        self.positions = positions
        self._record_bytes_max = config.body_bytes_max + 65_536
        self._busy = busy
        self.page = IntentPage(intent)
        self.files = LogFiles(disk, config.root / FOLDER, config.log_file_bytes)
        self._pool = LogBuffer(pool, positions.get(Position.APPENDED)) if pool is not None else None
        self._sink = self._pool or self.files
        self.reader = LogReader(disk, config.root / FOLDER, config.log_file_bytes)
        self.encoder = BatchEncoder(
            extents,
            store_host=host,
            body_bytes_max=config.body_bytes_max,
            file_bytes=config.log_file_bytes,
            batch_bytes=BATCH_BYTES,
            read_log=self._read_log,
            record_crc=config.writes_record_crc,
        )
        self.sources: dict[tuple[int, int], Source] = {}
        self.appended = 0
        self.timestamp = 0
        self.wake_at_ns: int | None = None
        """When to look again although nobody rings."""
        self._scan_end = 0
        self._missing_since_ns: int | None = None
        self.wanted_written = 0
        """The `written` at which the store pool has room for a batch; 0: it has."""
        self._turn = 0

    # -- ports

    def open_port(self, slot: int, incarnation: int, port: Port) -> None:
        """Serve a port from where its rings stand."""
        requests, completions = Cells(port.requests), Cells(port.completions)
        source = Source(
            slot, incarnation, port, requests, completions, requests.load(HEAD), completions.load(TAIL)
        )
        self.sources[slot, incarnation] = source

    def close_port(self, slot: int, incarnation: int) -> None:
        """The client is dead: store what it had pushed completely, then forget its port."""
        source = self.sources.get((slot, incarnation))
        if source is not None:
            source.closed = True
            self._forget_drained()

    def _forget_drained(self) -> None:
        for key, one in [item for item in self.sources.items() if item[1].closed]:
            if one.requests.load(TAIL) == one.head:
                del self.sources[key]

    @property
    def idle(self) -> bool:
        """Whether no port has a request left."""
        return not [one for one in self.sources.values() if one.requests.load(TAIL) != one.head]

    # -- starting

    def recover(self) -> None:
        """Finish or undo the batch of a dead predecessor; find out where log and queues go on.

        Raises:
            StoreFailed: the log could not be written; the cell STORE_FAILED says so already.
        """
        self.appended = self.positions.get(Position.APPENDED)
        self.timestamp = self.positions.get(Position.STORE_TIMESTAMP)
        intent = self.page.read()
        if intent is not None:
            if self.appended >= intent.log_end:
                self._publish(intent)
            elif self._pool is None:
                self._guarded(lambda: self._undo(intent), intent.log_start)
            faults.point("writer.recovered")
            self.page.clear()
        self._scan_end = self.appended
        dispatched = self.positions.get(Position.DISPATCHED)
        if (pool := self._pool) is not None:
            # The flusher will write the same bytes; before it does, we read them in the files.
            written = self.positions.get(Position.WRITTEN)
            self._guarded(lambda: pool.commit(self.files, written, self.appended), written)
        self.encoder.resume(queue_ends(self.reader, dispatched, self.appended, self._record_bytes_max))

    def _undo(self, intent: Intent) -> None:
        """Zero what was written of a batch: behind a shorter one, its records would look like the log's."""
        start = intent.log_start
        while start < intent.log_end:
            end = min(intent.log_end, self.files.base_of(start) + self.files.file_bytes)
            self.files.zero(start, end)
            start = end

    # -- one batch

    def run(self, wall_ms: int, now_ns: int) -> list[Source]:
        """Store one batch of what the ports have; return the sources whose clients are to be rung.

        Raises:
            StoreFailed: the log could not be written; the cell STORE_FAILED says so already.
        """
        self.wake_at_ns = None
        active = self._active()
        if not active:
            return []
        if self._pool is not None and not self._pool_has_room(self._pool) and not self.config.pool_fail_fast:
            return []
        self.timestamp = min(max(wall_ms, self.timestamp), wall_ms + TIMESTAMP_AHEAD_MS)
        if self.encoder.resuming and self.positions.get(Position.DISPATCHED) >= self._scan_end:
            # The extents know all of it by now, and know better when a topic was made again.
            self.encoder.resume({})
        batch = self._gather(active, now_ns)
        if batch.moved:
            self._commit(batch)
            self._forget_drained()
        return batch.moved

    def _active(self) -> list[Source]:
        """Return the ports with requests, another one first each time."""
        active = [one for one in self.sources.values() if one.requests.load(TAIL) != one.head]
        if not active:
            return []
        self._turn = (self._turn + 1) % len(active)
        return (active[self._turn :] + active[: self._turn])[:PORTS_MAX]

    def _gather(self, active: list[Source], now_ns: int) -> Batch:
        """Encode one batch: in the present file, or, when its first request needs that, in the next."""
        if refusal := self._refusal():
            return self._fill(active, self.appended, self.appended, now_ns, refusal)
        base = self.files.base_of(self.appended)
        file_end = base + self.files.file_bytes
        if self._has_file(base):
            batch = self._fill(active, self.appended, file_end, now_ns)
            if batch.moved or not batch.file_full:
                return batch
            base = file_end
        if self._has_file(base):
            self._missing_since_ns = None
            return self._fill(active, base, base + self.files.file_bytes, now_ns)
        if self._waits_for_file(now_ns):
            return Batch(self.appended, self.appended, [])
        late = self._room == Room.ENOUGH
        refusal = PutStatus.CREATE_MAPPED_FILE_FAILED if late else PutStatus.SERVICE_NOT_AVAILABLE
        return self._fill(active, self.appended, base, now_ns, refusal)

    def _refusal(self) -> PutStatus:
        """Return how everything is refused now; PUT_OK: it is not.

        A pool without room is told like RocketMQ's: its next file, which takes a buffer, cannot be made.
        """
        if self._room == Room.DISK_FULL:
            return PutStatus.SERVICE_NOT_AVAILABLE
        return PutStatus.CREATE_MAPPED_FILE_FAILED if self.wanted_written else PutStatus.PUT_OK

    def _pool_has_room(self, pool: LogBuffer) -> bool:
        """Say whether the largest batch, and a blank before it, fit; otherwise wish for that."""
        largest = self._record_bytes_max + max(BATCH_BYTES, self._record_bytes_max)
        wanted = self.appended + largest - pool.capacity
        self.wanted_written = wanted if self.positions.get(Position.WRITTEN) < wanted else 0
        return not self.wanted_written

    @property
    def _room(self) -> int:
        return self.positions.role(CLEANER, ROOM)

    def _has_file(self, base: int) -> bool:
        try:
            self.files.descriptor(base)
        except FileNotFoundError:
            return False
        return True

    def _waits_for_file(self, now_ns: int) -> bool:
        """Say whether the next file may still come soon: its maker is not late and has met no full disk."""
        if self._missing_since_ns is None:
            self._missing_since_ns = now_ns
        deadline_ns = self._missing_since_ns + NEXT_FILE_WAIT_NS
        if now_ns >= deadline_ns or self._room != Room.ENOUGH:
            return False
        self.wake_at_ns = deadline_ns
        return True

    @property
    def is_stuck(self) -> bool:
        """Whether some port has requests that the last `run` could not take."""
        return self.wake_at_ns is not None or self.file_is_missing or self.wanted_written > 0

    @property
    def file_is_missing(self) -> bool:
        """Whether sends wait for the cleaner, or are refused."""
        return self._missing_since_ns is not None

    def _fill(
        self,
        active: list[Source],
        records_start: int,
        file_end: int,
        now_ns: int,
        refusal: PutStatus = PutStatus.PUT_OK,
    ) -> Batch:
        batch = Batch(self.appended, records_start, [])
        self.encoder.begin(records_start, file_end, self.appended, self.timestamp, refusal)
        share = max(SHARE_BYTES_MIN, BATCH_BYTES // len(active))
        for source in active:
            port = source.port
            head, tail, _, stop = self.encoder.take(
                port.requests, source.head, port.completions, source.tail, share, source.closed
            )
            if head != source.head:
                source.head, source.tail = head, tail
                batch.moved.append(source)
            if stop == Stop.BUFFER_FULL:
                break
            if stop == Stop.FILE_FULL:
                batch.file_full = True
            elif stop == Stop.COMPLETIONS_FULL:
                self.wake_at_ns = now_ns + COMPLETIONS_WAIT_NS
        return batch

    def _commit(self, batch: Batch) -> None:
        """Announce, write, publish: see the order at the top of this file."""
        end = batch.records_start + self.encoder.size if self.encoder.count else batch.start
        moves = [
            PortMove(source.slot, source.incarnation, source.head, source.tail) for source in batch.moved
        ]
        intent = Intent(batch.start, end, self.timestamp, moves)
        faults.point("writer.encoded")
        self.page.write(intent)
        faults.point("writer.intent-written")
        if self.encoder.count:
            self._guarded(lambda: self._write(batch), batch.start)
            faults.point("writer.records-written")
            # The position moves last: a reader that saw it early would read zeros.
            self.positions.set(Position.APPENDED, end)
            self.appended = end
            faults.point("writer.appended")
        self._publish(intent)
        faults.point("writer.heads-moved")
        self.page.clear()
        faults.point("writer.intent-cleared")

    def _write(self, batch: Batch) -> None:
        if batch.records_start != batch.start:
            blank = bytearray(records.BLANK_BYTES)
            records.encode_blank(blank, 0, batch.records_start - batch.start)
            self._sink.append(batch.start, [blank])
            faults.point("writer.blank-written")
        self._sink.append(batch.records_start, [self.encoder.records])

    def _guarded(self, write: Callable[[], object], log_offset: int) -> None:
        """Write once.  After a failure nothing can be said of what is there, so the broker stops."""
        try:
            with self._busy(RoleState.WRITING):
                write()
        except OSError as error:
            self.positions.set(Position.STORE_FAILED, 1)
            path = self.files.path(self.files.base_of(log_offset))
            raise StoreFailed(f"cannot write {path} at log offset {log_offset}: {error}") from error

    def _publish(self, intent: Intent) -> None:
        """Give the completions out and the requests back; may be done twice."""
        if intent.log_end > intent.log_start:
            self.timestamp = intent.store_timestamp
            self.positions.set(Position.STORE_TIMESTAMP, intent.store_timestamp)
        moves = [(self.sources.get((move.slot, move.incarnation)), move) for move in intent.moves]
        for source, move in moves:
            if source is not None:
                source.tail = move.tail
                source.completions.store(TAIL, move.tail)
                faults.point("writer.completions-published")
        for source, move in moves:
            if source is not None:
                source.head = move.head
                source.requests.store(HEAD, move.head)

    def _read_log(self, log_offset: int, size: int) -> memoryview | None:
        try:
            return self.reader.view(log_offset, size)
        except LogRemoved:
            return None


class WriterActor(ProcessActor):
    """The wiring: ports in, doorbells out."""

    writes_store: ClassVar[bool] = True

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self._pooled = self.config.store.pooled
        self.state = Writer(
            self.config.store,
            RealDisk(),
            self.positions,
            context.segments["extents"].view,
            context.segments["intent"].view,
            store_host(self.config.advertised_host, self.config.gateway.port),
            self.busy,
            context.segments["pool"].view if self._pooled else None,
        )

    def on_port_opened(self, kind: str, client: str, incarnation: int, port: Port) -> None:
        if kind == "append":
            self.state.open_port(slot_of(client), incarnation, port)

    def on_port_closed(self, kind: str, client: str, incarnation: int) -> None:
        if kind == "append":
            self.state.close_port(slot_of(client), incarnation)

    def on_start(self) -> None:
        try:
            self.state.recover()
        except StoreFailed as error:
            self.context.store_failed(error.remark)
        # Whoever waited for what the dead writer had published and not yet rung for.
        for source in self.state.sources.values():
            self._ring(source.slot)
        self._ring_waiters()

    def on_batch(self) -> bool:
        try:
            moved = self.state.run(self.context.clock.wall_ms(), self.context.clock.monotonic_ns())
        except StoreFailed as error:
            self.context.store_failed(error.remark)
        if moved:
            # After the heads: a client that is told earlier finds its ring still full and sleeps again.
            for source in moved:
                self._ring(source.slot)
            self._ring_waiters()
        if self.state.file_is_missing:
            self.context.doorbells["cleaner"].ring()
        if self._pooled:
            self.wish(RoleCell.WANTED_WRITTEN, self.state.wanted_written)
        return bool(moved)

    def has_news(self) -> bool:
        # A port that cannot go on does not keep us awake; but then only a whole look finds another one's.
        return self.on_batch() if self.state.is_stuck else not self.state.idle

    def _ring_waiters(self) -> None:
        for slot in self.positions.waiters(RoleCell.WANTED_APPENDED, self.state.appended):
            self._ring(slot)

    def _ring(self, slot: int) -> None:
        self.context.doorbell_of(slot).ring()

    def wake_at_ns(self) -> int | None:
        return self.state.wake_at_ns

    def drained(self) -> bool:
        return self.state.idle
