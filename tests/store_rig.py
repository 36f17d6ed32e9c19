"""The roles around the store in one process: their shared memory in plain memory, deaths by exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from actormq import faults
from actormq.actors.writer import Writer
from actormq.broker.tables import TopicEntry, encode_entry
from actormq.config import BrokerConfig, CoordinatorConfig, MemoryConfig, StoreConfig
from actormq.kernels import records
from actormq.kernels.rings import DATA, ring_init
from actormq.shm.append_port import AppendPort, Completion
from actormq.shm.extents import Extents
from actormq.shm.intent import IntentPage
from actormq.shm.positions import Positions
from actormq.shm.tables import TablesPublisher
from actormq.store.commit_log import FOLDER, LogFiles, LogReader
from actormq.store.disk import BytesLike, RealDisk

HOST = bytes([127, 0, 0, 1, 0, 0, 42, 159])
FILE_BYTES = 1 << 20
ROWS = 64


class Died(BaseException):
    """The role was killed here."""


@contextmanager
def killing(name: str | None, hit: int = 1) -> Iterator[Callable[[], int]]:
    """Die at the `hit`-th time that a fault point (of this name; None: any) is reached.

    Yields a function that says how many points have been reached.
    """
    reached = 0

    def point(at: str) -> None:
        nonlocal reached
        if name is None or at == name:
            reached += 1
            if reached == hit:
                raise Died(at)

    before, faults.point = faults.point, point
    try:
        yield lambda: reached
    finally:
        faults.point = before


class TornDisk(RealDisk):
    """Dies in the middle of the n-th write."""

    def __init__(self, writes: int) -> None:
        self.writes = writes

    def pwritev(self, fd: int, buffers: Sequence[BytesLike], offset: int) -> int:
        self.writes -= 1
        if self.writes == 0:
            whole = b"".join(bytes(buffer) for buffer in buffers)
            super().pwritev(fd, [whole[: len(whole) // 2]], offset)
            raise Died("pwritev")
        return super().pwritev(fd, buffers, offset)


def new_ring(capacity: int) -> memoryview:
    ring = memoryview(bytearray(DATA + capacity))
    ring_init(ring)
    return ring


@dataclass
class MemoryPort:
    """A port's two rings, without a segment."""

    request_capacity: int = 1 << 18
    completion_capacity: int = 1 << 14
    requests: memoryview = field(init=False)
    completions: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self.requests = new_ring(self.request_capacity)
        self.completions = new_ring(self.completion_capacity)


class SilentDoorbell:
    """Nobody sleeps here."""

    def __init__(self) -> None:
        self.rung = 0

    def ring(self) -> None:
        self.rung += 1


@dataclass
class Memory:
    """What the supervisor would share out; survives every role."""

    root: Path
    disk: Any = field(default_factory=RealDisk)
    config: StoreConfig = field(init=False)
    positions: Positions = field(init=False)
    extents_view: memoryview = field(init=False)
    extents: Extents = field(init=False)
    intent: memoryview = field(init=False)
    tables_view: memoryview = field(init=False)
    publisher: TablesPublisher = field(init=False)
    pool: memoryview | None = None
    """The memory of a store pool; see `with_pool`."""

    def __post_init__(self) -> None:
        self.config = StoreConfig(
            root=self.root,
            log_file_bytes=FILE_BYTES,
            queue_file_entries=100,
            index_slots=50,
            index_entries=200,
            body_bytes_max=64 * 1024,
        )
        self.positions = Positions(memoryview(bytearray(Positions.payload_bytes())))
        self.extents_view = memoryview(bytearray(Extents.payload_bytes(ROWS)))
        self.extents = Extents(self.extents_view)
        self.intent = memoryview(bytearray(IntentPage.payload_bytes()))
        self.tables_view = memoryview(bytearray(1 << 16))
        self.publisher = TablesPublisher(self.tables_view, self.positions)
        self.disk.mkdir(self.root)

    def with_pool(self, size: int = 2 << 20) -> Self:
        """Turn the store pool on, smaller than settings allow."""
        self.config = replace(self.config, pool_enabled=True)
        self.pool = memoryview(bytearray(size))
        return self

    def log_files(self) -> LogFiles:
        return LogFiles(self.disk, self.root / FOLDER, FILE_BYTES)

    def broker_config(self) -> BrokerConfig:
        return BrokerConfig(
            store=self.config,
            memory=MemoryConfig(queue_rows_max=ROWS),
            coordinator=CoordinatorConfig(default_topic_queues=2),
        )

    def add_topic(self, name: str, queues: int = 1) -> list[int]:
        """Open rows for a topic and publish it; return them."""
        free = [row for row in range(ROWS) if self.extents.read(row).incarnation == 0][:queues]
        for row in free:
            self.extents.open_row(row, row + 1, 0, 0)
        entry = TopicEntry(
            name, 6, queues, queues, 0, False, "SINGLE_TAG", {}, free, [row + 1 for row in free]
        )
        self.publisher.publish(encode_entry(entry))
        return free


class StoreWriter:
    """Puts messages into the store of a `Memory`, as the writer does."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.raw = MemoryPort(request_capacity=1 << 20, completion_capacity=1 << 17)
        self.client = AppendPort(self.raw, SilentDoorbell())  # type: ignore[arg-type]
        self.writer = Writer(
            memory.config, memory.disk, memory.positions, memory.extents_view, memory.intent, HOST,
            pool=memory.pool,
        )  # fmt: skip
        self.writer.open_port(16, 1, self.raw)  # type: ignore[arg-type]
        self.writer.recover()

    def put(self, *, wall_ms: int = 1_700_000_000_000, **message: Any) -> Completion:
        """Store one message and make the next file when it is needed."""
        assert append(self.client, 1, **message)
        while not (done := self.client.completions()):
            self.writer.run(wall_ms, 0)
            if self.writer.file_is_missing:
                files = self.memory.log_files()
                files.create(files.bases()[-1] + FILE_BYTES)
        return done[0]


def append(
    port: AppendPort,
    ticket: int,
    *,
    row: int = 0,
    queue_id: int = 0,
    topic: bytes = b"topic",
    body: bytes = b"body",
    properties: bytes = b"",
    kind: int = 1,
    sys_flag: int = 0,
    incarnation: int | None = None,
) -> bool:
    return port.try_append(
        ticket, row=row, row_incarnation=row + 1 if incarnation is None else incarnation, queue_id=queue_id,
        topic=topic, properties=properties, body=body, flag=0, sys_flag=sys_flag, reconsume_times=0,
        born_timestamp=1, born_host=HOST, kind=kind,
    )  # fmt: skip


def log_records(memory: Memory, end: int, start: int = 0) -> list[tuple[int, records.Header, bytes]]:
    """Return (log offset, record, body) of the log from `start` on; fail if it does not reach to `end`."""
    reader = LogReader(memory.disk, memory.root / FOLDER, FILE_BYTES)
    found = []
    at = start
    while at < end:
        base = at - at % FILE_BYTES
        view = reader.file(base)
        scanned = records.scan(view, at - base, base, stop=at - base + 1)
        if scanned.reason == records.ScanEnd.BLANK:
            at = base + FILE_BYTES
            continue
        assert scanned.records == 1, (at, records.ScanEnd(scanned.reason))
        header = records.decode(view, at - base, check_crc=True)
        body = bytes(view[header.body_at : header.body_at + header.body_size])
        found.append((at, header, body))
        at = base + scanned.end
    assert at == end
    return found


def assert_matches(
    completions: Sequence[Completion], stored: list[tuple[int, records.Header, bytes]]
) -> None:
    """Every stored record was acknowledged exactly once, at its own place, and nothing else was."""
    acknowledged = sorted(done for done in completions if done.status == 0)
    at_log = sorted((done.log_offset, done.queue_offset, done.log_end) for done in acknowledged)
    in_log = sorted((offset, header.queue_offset, offset + header.total_size) for offset, header, _ in stored)
    assert at_log == in_log
