"""Coordinator and scheduler in one process: the store rig's plain memory, a writer, a dispatcher, letters."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from store_rig import FILE_BYTES, HOST, Memory, MemoryPort, SilentDoorbell, StoreWriter

from actormq.actors.dispatcher import Dispatcher
from actormq.actors.recovery import prepare
from actormq.actors.runtime import RoleContext
from actormq.broker.delay import DelayLevels
from actormq.clock import ManualClock
from actormq.config import BrokerConfig, FlushMode
from actormq.message import encode_properties
from actormq.shm.append_port import Completion
from actormq.shm.positions import Position, RoleCell, RoleState, slot_of
from actormq.shm.tables import TablesReader
from actormq.store.disk import RealDisk

LOG = logging.getLogger("test")


class Letters:
    """A role's mailbox as the sender sees it."""

    def __init__(self) -> None:
        self.came: list[msgspec.Struct] = []

    def tell(self, message: msgspec.Struct) -> bool:
        self.came.append(message)
        return True

    def take(self, kind: type[Any]) -> list[Any]:
        """Return the messages of one kind, and forget them."""
        found = [message for message in self.came if isinstance(message, kind)]
        self.came = [message for message in self.came if not isinstance(message, kind)]
        return found


class Broker:
    """The store, its memory, and everybody's letters; roles come and go on it."""

    def __init__(self, root: Path, run_dir: Path, *, tables_bytes: int = 1 << 16, **changes: Any) -> None:
        self.memory = Memory(root)
        self.memory.tables_view = self.memory.tables_view[:tables_bytes]
        self.config: BrokerConfig = replace(self.memory.broker_config(), namesrv_addrs=(), **changes)
        self.memory.config = self.config.store
        self.run_dir = run_dir
        run_dir.mkdir(exist_ok=True)
        self.clock = ManualClock(monotonic_ns=10**12)
        self.letters: dict[str, Letters] = defaultdict(Letters)
        self.bells: dict[str, SilentDoorbell] = defaultdict(SilentDoorbell)
        memory = self.memory
        prepare(
            self.config, RealDisk(), memory.positions, memory.extents, memory.tables_view, LOG, self.wall_ms
        )
        self.writer = StoreWriter(memory)
        self.lives: dict[str, int] = defaultdict(int)
        self.ports: dict[str, MemoryPort] = {}
        self._port_slot = 40

    @property
    def wall_ms(self) -> int:
        return self.clock.wall_ms()

    def gateway(self, name: str, incarnation: int = 1, state: RoleState = RoleState.RUNNING) -> None:
        """Have a gateway run (or not)."""
        _ = self.letters[name]
        self.memory.positions.set_role(slot_of(name), RoleCell.INCARNATION, incarnation)
        self.memory.positions.set_role(slot_of(name), RoleCell.STATE, state)
        self.memory.positions.set_role(slot_of(name), RoleCell.HEARTBEAT_NS, self.clock.monotonic_ns())

    def start(self, role: str, role_class: Any) -> Any:
        """Start the next life of a role, with a port of its own."""
        self.lives[role] += 1
        port = self.ports[role] = MemoryPort()
        self._port_slot += 1
        self.writer.writer.open_port(self._port_slot, 1, port)  # type: ignore[arg-type]
        views = {"extents": self.memory.extents_view, "tables": self.memory.tables_view}
        context = RoleContext(
            role=role,
            slot=slot_of(role),
            incarnation=self.lives[role],
            config=self.config,
            positions=self.memory.positions,
            doorbells=self.bells,  # type: ignore[arg-type]
            segments={name: SimpleNamespace(view=view) for name, view in views.items()},  # type: ignore[misc]
            run_dir=self.run_dir,
            clock=self.clock,
            log=LOG,
            refs=self.letters,  # type: ignore[arg-type]
        )
        actor = role_class(context)
        actor.ports["append"] = port
        actor.on_start()
        return actor

    def turn(self, actor: Any) -> None:
        """Let a role work until it has nothing more to do at this moment."""
        for _ in range(1_000):
            due_ns = actor.wake_at_ns()
            busy = actor.on_batch()
            if due_ns is not None and due_ns <= self.clock.monotonic_ns():
                actor.on_tick(self.clock.monotonic_ns())
                busy = True
            busy |= actor.loop.run_once(0)
            if not busy:
                return
        raise AssertionError("the role never comes to rest")

    # --- the writer's, flusher's and dispatcher's part -------------------------------------------------

    def write(self) -> None:
        """Store what waits in the ports; make files as they are needed."""
        while self.writer.writer.run(self.wall_ms, 0) or self.writer.writer.file_is_missing:
            if self.writer.writer.file_is_missing:
                files = self.memory.log_files()
                files.create(files.bases()[-1] + FILE_BYTES)

    def flush(self) -> None:
        positions = self.memory.positions
        positions.set(Position.FLUSHED, positions.get(Position.APPENDED))

    def dispatch(self) -> None:
        """Make what is safe readable."""
        memory = self.memory
        levels = DelayLevels(self.config.coordinator.delay_levels)
        tables = TablesReader(memory.tables_view, memory.positions, slot_of("dispatcher"))
        dispatcher = Dispatcher(
            self.config.store, RealDisk(), memory.positions, memory.extents, tables, list(levels.delays_ms)
        )
        while dispatcher.run(self.wall_ms, 0) is not None:
            pass

    def put(self, topic: Any, queue_id: int = 0, **message: Any) -> Completion:
        """Store one message in a topic (its entry), flush and dispatch."""
        properties = encode_properties(message.pop("properties", {}))
        done = self.writer.put(
            wall_ms=self.wall_ms,
            row=topic.rows[queue_id],
            incarnation=topic.row_incarnations[queue_id],
            queue_id=queue_id,
            topic=topic.name.encode(),
            properties=properties,
            **message,
        )
        self.flush()
        self.dispatch()
        return done


def sync_mode(config: BrokerConfig) -> BrokerConfig:
    """Return the same broker with sync flush."""
    return replace(config, store=replace(config.store, flush=FlushMode.SYNC))


__all__ = ["HOST", "Broker", "Letters", "sync_mode"]
