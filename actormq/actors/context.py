"""What a role is given: its name, shared memory, sockets, the way to other roles.  Tests make one by hand."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

import msgspec

from actormq.actors import control
from actormq.actors.mailbox import Mailbox, ProcessRef
from actormq.actors.status import EXIT_STORE_FAILED
from actormq.clock import Clock, SystemClock
from actormq.config import BrokerConfig
from actormq.shm.doorbell import Doorbell
from actormq.shm.positions import Position, Positions, RoleCell, RoleState, role_of, slot_of
from actormq.shm.segment import Segment

Letters = list[tuple[control.ToRole, list[int]]]
"""Messages of the supervisor, each with its descriptors."""


class Ref(Protocol):
    """What a role may do with another one; `ProcessRef`, or a fake in tests."""

    def tell(self, message: msgspec.Struct) -> bool: ...

    def ask(
        self,
        message: msgspec.Struct,
        *,
        block: bool = False,
        timeout: float | None = None,
        reply_type: Any = Any,
    ) -> Any: ...

    def is_alive(self) -> bool: ...


class PositionsDirectory:
    """Who is alive, by the positions page."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions

    def incarnation_of(self, role: str) -> int:
        slot = slot_of(role)
        if self._positions.role(slot, RoleCell.STATE) in (RoleState.ABSENT, RoleState.STOPPED):
            return 0
        return self._positions.role(slot, RoleCell.INCARNATION)

    def pid_of(self, role: str) -> int:
        return self._positions.role(slot_of(role), RoleCell.PID)


@dataclass
class RoleContext:
    """Everything that a role is given; tests make one by hand."""

    role: str
    slot: int
    incarnation: int
    config: BrokerConfig
    positions: Positions
    doorbells: Mapping[str, Doorbell]
    segments: dict[str, Segment]
    run_dir: Path
    listeners: dict[str, int] = field(default_factory=dict)
    clock: Clock = field(default_factory=SystemClock)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("actormq"))
    refs: dict[str, Ref] = field(default_factory=dict)
    mailbox: Mailbox | None = None
    line: control.Line | None = None
    one_shot: bool = False
    letters_before: Letters = field(default_factory=list)
    letters_after: Letters = field(default_factory=list)
    _by_slot: dict[int, Doorbell] = field(default_factory=dict)

    @property
    def doorbell(self) -> Doorbell:
        """Our own."""
        return self.doorbells[self.role]

    def doorbell_of(self, slot: int) -> Doorbell:
        """Return the doorbell of the role in `slot`."""
        bell = self._by_slot.get(slot)
        if bell is None:
            bell = self._by_slot[slot] = self.doorbells[role_of(slot)]
        return bell

    def ref(self, role: str) -> Ref:
        """Return the way to another role: always its living incarnation."""
        if role not in self.refs:
            assert self.mailbox is not None, f"no mailbox and no reference to {role} was handed in"
            self.refs[role] = ProcessRef(self.mailbox, PositionsDirectory(self.positions), role)
        return self.refs[role]

    def store_failed(self, sentence: str) -> NoReturn:
        """Say that a write or sync of the store failed, and die: the supervisor stops the broker."""
        self.positions.set(Position.STORE_FAILED, 1)
        self.log.critical(sentence)
        if self.line is not None:
            self.line.send(control.StoreBroken(sentence=sentence))
        os._exit(EXIT_STORE_FAILED)
