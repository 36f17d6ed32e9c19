"""The roles around the store in one thread, over any disk; who works and who dies comes from one seed."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from faults.disks import MemoryDisk
from store_rig import (
    FILE_BYTES,
    HOST,
    Died,
    Memory,
    MemoryPort,
    SilentDoorbell,
    append,
    killing,
    log_records,
)

from actormq.actors.cleaner import Remover, SegmentMaker
from actormq.actors.dispatcher import Dispatcher
from actormq.actors.flusher import Flusher
from actormq.actors.progress import SafeSave
from actormq.actors.recovery import prepare
from actormq.actors.writer import Writer
from actormq.broker.queue_rows import QueueRows
from actormq.config import FlushMode
from actormq.shm.append_port import AppendPort
from actormq.shm.positions import Position, readable, slot_of
from actormq.shm.tables import TablesReader
from actormq.store import consume_queue, tables
from actormq.store.consume_queue import QueueReader

LOG = logging.getLogger("test")
ROOT = Path("/store")
TOPIC = "SCHEDULE_TOPIC_XXXX"  # recovery opens its queues by itself
QUEUES = 5
CLIENTS = 2
GROUP = "group"
POOL_BYTES = 3 << 19
"""Hardly more than a batch may need: it is full again and again."""


@dataclass
class Sent:
    queue_id: int
    body: bytes
    log_offset: int = -1
    log_end: int = -1
    queue_offset: int = -1


@dataclass
class Broker:
    """A broker whose roles are objects; `chance` decides who works, and who dies when."""

    mode: FlushMode
    chance: random.Random
    disk: Any = field(default_factory=MemoryDisk)
    now_ns: int = 0
    wall_ms: int = 1_700_000_000_000
    sent: list[Sent] = field(default_factory=list)
    durable: dict[int, Sent] = field(default_factory=dict)
    """What a client was told is stored and synced, by log offset."""
    deaths: int = 0
    peaceful: bool = False
    """Nobody dies."""
    busy_queues: int = QUEUES
    """To so many queues messages are sent."""
    sizes: Sequence[int] = (1, 20, 300, 3_000, 40_000)
    """Of bodies."""
    workers: Sequence[str] = ("client", "client", "writer", "writer", "dispatcher", "flusher", "maker")
    """Who may have the next step, some more often; coordinator and remover work only where they are named."""
    pooled: bool = False
    """With a store pool, which a loss of power or of everything takes along."""

    def start(self, power: bool = False) -> None:
        """Begin a supervisor's life: new shared memory, recovery, all roles.

        Args:
            power: there is no lack of it while recovery dies again and again.
        """
        while True:
            self.memory = Memory(ROOT, self.disk)
            self.memory.config = replace(self.memory.config, flush=self.mode)
            if self.pooled:
                self.memory.with_pool(POOL_BYTES)
            try:
                with self.dying():
                    self.store = prepare(
                        self.memory.broker_config(), self.disk, self.memory.positions, self.memory.extents,
                        self.memory.tables_view, LOG, self.wall_ms,
                    )  # fmt: skip
                break
            except Died:
                self.deaths += 1
                if not power and self.chance.random() < 0.5:
                    self.disk = self.disk.crash(self.chance)
        tables = self.reader("gateway-0")
        self.rows = QueueRows(lambda row: 0)
        self.rows.apply(*tables.poll())
        self.ports = [MemoryPort() for _ in range(CLIENTS)]
        self.clients = [AppendPort(port, SilentDoorbell()) for port in self.ports]  # type: ignore[arg-type]
        self.unanswered: dict[tuple[int, int], Sent] = {}
        self.acknowledged: list[Sent] = []
        self.ticket = 0
        self.start_writer()
        self.start_dispatcher()
        self.start_flusher(fresh=True)
        self.start_maker()
        self.start_coordinator()

    def dying(self) -> Any:
        """Die at one of the next fault points, perhaps."""
        hit = self.chance.choice([1, 2, 3, 5, 8, 13, 30, 100, 1000])
        return killing(None, 0 if self.peaceful else hit)

    def reader(self, role: str) -> TablesReader:
        return TablesReader(self.memory.tables_view, self.memory.positions, slot_of(role))

    def start_writer(self) -> None:
        memory = self.memory
        self.writer = Writer(
            memory.config, self.disk, memory.positions, memory.extents_view, memory.intent, HOST,
            pool=memory.pool,
        )  # fmt: skip
        for number, port in enumerate(self.ports):
            self.writer.open_port(16 + number, 1, port)  # type: ignore[arg-type]
        self.writer.recover()

    def start_dispatcher(self) -> None:
        memory = self.memory
        self.dispatcher = Dispatcher(
            memory.config, self.disk, memory.positions, memory.extents, self.reader("dispatcher"), [1000]
        )

    def start_flusher(self, fresh: bool = False) -> None:
        memory = self.memory
        rows = QueueRows()
        rows.apply(*self.reader("flusher").poll())
        self.flusher = Flusher(
            memory.config, self.disk, memory.positions, memory.extents_view, memory.intent, rows, fresh,
            pool=memory.pool,
        )  # fmt: skip

    def start_maker(self) -> None:
        self.maker = SegmentMaker(self.memory.log_files(), self.memory.positions.get(Position.APPENDED))

    def start_coordinator(self) -> None:
        self.progress = SafeSave(1_000, self.now_ns // 1_000_000)

    # -- one step each

    def send(self) -> None:
        for number in range(CLIENTS):
            for _ in range(self.chance.randrange(3)):
                queue_id = self.chance.randrange(self.busy_queues)
                size = self.chance.choice(self.sizes)
                sent = Sent(queue_id, b"%d." % len(self.sent) + self.chance.randbytes(size))
                row = self.rows.rows[TOPIC.encode(), queue_id]
                queue = self.rows.queue(row)
                assert queue is not None
                self.ticket += 1
                if append(
                    self.clients[number], self.ticket, row=row, queue_id=queue_id, topic=TOPIC.encode(),
                    body=sent.body, properties=b"KEYS\x01%d\x02" % self.chance.randrange(9),
                    incarnation=queue.incarnation,
                ):  # fmt: skip
                    self.sent.append(sent)
                    self.unanswered[number, self.ticket] = sent

    def take_answers(self) -> None:
        for number, client in enumerate(self.clients):
            for done in client.completions():
                sent = self.unanswered.pop((number, done.ticket))
                if done.status == 0:
                    sent.log_offset, sent.log_end = done.log_offset, done.log_end
                    sent.queue_offset = done.queue_offset
                    self.acknowledged.append(sent)
        flushed = self.memory.positions.get(Position.FLUSHED)
        for sent in self.acknowledged:
            if sent.log_end <= flushed:
                self.durable[sent.log_offset] = sent

    def step(self) -> None:
        who = self.chance.choice(self.workers)
        try:
            with self.dying():
                self.work(who)
        except Died:
            self.deaths += 1
            getattr(self, f"start_{who}", lambda: None)()
        self.take_answers()

    def work(self, who: str, later_ns: int | None = None) -> None:
        """Let somebody work, `later_ns` after the one before him; None = by chance."""
        if later_ns is None:
            later_ns = self.chance.choice([0, 0, 1_000_000, 600_000_000, 2_000_000_000])
        self.now_ns += later_ns
        self.wall_ms += self.chance.choice([0, 1, 700])
        match who:
            case "client":
                self.send()
            case "writer":
                self.writer.run(self.wall_ms, self.now_ns)
            case "dispatcher":
                self.dispatcher.run(self.wall_ms, self.now_ns)
            case "flusher":
                self.flusher.run(self.now_ns)
            case "maker":
                self.maker.make(self.memory.positions.get(Position.APPENDED), self.now_ns)
            case "coordinator":
                self.save_offsets()
            case "remover":
                self.remove_oldest()

    def save_offsets(self) -> None:
        """A group has consumed all that is readable; it is saved when the log is durable up to now."""
        positions = self.memory.positions
        table = self.progress.look(
            self.now_ns // 1_000_000,
            positions.get(Position.APPENDED),
            positions.get(Position.FLUSHED),
            lambda: {"offsetTable": {f"{TOPIC}@{GROUP}": {str(at): end for at, end in self.ends().items()}}},
        )
        if table is not None:
            tables.save(self.disk, ROOT / tables.FOLDER / tables.CONSUMER_OFFSETS, table)

    def remove_oldest(self) -> None:
        """Remove the oldest log file, if it may go, and what points there."""
        memory = self.memory
        remover = Remover(memory.config, self.disk, memory.positions, memory.extents)
        chosen = remover.choose(1 << 62, 0, 100)[:1]
        if chosen:
            log_min = chosen[0] + FILE_BYTES
            queues = list(self.rows)
            remover.hide(log_min, queues)
            while remover.unlink_log_file(log_min):
                pass
            remover.unlink_derived(log_min, queues)

    def ends(self) -> dict[int, int]:
        """Return of each queue one past the last entry that consumers may see."""
        extents = self.memory.extents
        return {at: extents.read(self.rows.rows[TOPIC.encode(), at]).max for at in range(QUEUES)}

    def readable(self) -> dict[tuple[int, int], tuple[int, bytes]]:
        """Return (queue id, queue offset) → (log offset, body) of everything that consumers may see."""
        memory = self.memory
        end = memory.positions.get(readable(memory.config))
        start = memory.positions.get(Position.CLEANED)
        bodies = {offset: (header, body) for offset, header, body in log_records(memory, end, start)}
        reader = QueueReader(self.disk, ROOT / consume_queue.FOLDER, memory.config.queue_file_entries)
        seen = {}
        for queue_id in range(QUEUES):
            extent = memory.extents.read(self.rows.rows[TOPIC.encode(), queue_id])
            for number in range(extent.min, extent.max):
                log_offset, size, _ = reader.entry(TOPIC, queue_id, number)
                header, body = bodies[log_offset]
                assert (header.queue_id, header.queue_offset, header.total_size) == (queue_id, number, size)
                seen[queue_id, number] = (log_offset, body)
        return seen

    def settle(self) -> None:
        """Let everyone work in peace until nothing is left to do."""
        while True:
            self.now_ns += 20_000_000_000
            busy = self.maker.make(self.memory.positions.get(Position.APPENDED), self.now_ns)
            busy |= bool(self.writer.run(self.wall_ms, self.now_ns))
            self.take_answers()
            busy |= self.flusher.run(self.now_ns)
            busy |= self.dispatcher.run(self.wall_ms, self.now_ns) is not None
            if not busy and self.flusher.clean and self.writer.idle:
                return

    def check(self, before: dict[tuple[int, int], tuple[int, bytes]]) -> None:
        """Nothing durable is lost, nothing that was readable has changed, and queues have no holes."""
        seen = self.readable()
        log_min = self.memory.positions.get(Position.CLEANED)
        before = {place: message for place, message in before.items() if message[0] >= log_min}
        for sent in (sent for sent in self.durable.values() if sent.log_offset >= log_min):
            assert seen[sent.queue_id, sent.queue_offset] == (sent.log_offset, sent.body)
        for place, message in before.items():
            assert seen[place] == message
        end = self.memory.positions.get(Position.APPENDED)
        for offset, header, _ in log_records(self.memory, end, log_min):
            assert seen[header.queue_id, header.queue_offset][0] == offset, "in the log, but in no queue"
        stored = sorted(body for _, body in seen.values())
        assert len(set(stored)) == len(stored), "a message is stored twice"
        assert set(stored) <= {sent.body for sent in self.sent}
