"""The positions page: how far everyone has come, readable by any process even when its writer is dead.

Cells are 64 bits, one to a cache line, each written by one role.  First the broker's own positions,
then a block of cells for every role's slot.  New in each supervisor's life, all zero at first.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from actormq.config import FlushMode, StoreConfig
from actormq.kernels.rings import CellPage

CELL_BYTES: Final = 64
GLOBAL_CELLS: Final = 32
SLOT_CELLS: Final = 24
SLOTS: Final = 64
GATEWAY_SLOT: Final = 16


class Position(IntEnum):
    """The broker's own cells; the one who writes each is named behind it."""

    APPENDED = 0
    """Log offset up to which records are in the log (writer)."""
    FLUSHED = 1
    """Log offset up to which a sync has returned success (flusher)."""
    REPLICATED = 2
    """Log offset that enough slaves have (replicator)."""
    COMMITTED = 3
    """Log offset fsynced on a majority (replicator)."""
    DISPATCHED = 4
    """Log offset up to which queues and index are written (dispatcher)."""
    CLEANED = 5
    """First log offset that still exists (cleaner)."""
    STORE_FAILED = 6
    """Not 0 after a failed write or sync of the log (whoever saw it): the broker stops."""
    TABLES = 7
    """Version of the published tables: epoch << 40 | end (coordinator; see tables.py)."""
    STORE_TIMESTAMP = 8
    """Store timestamp of the last appended record, ms (writer)."""
    WRITTEN = 9
    """Log offset up to which the log is in its files (flusher; moves only with a store pool)."""


class RoleCell(IntEnum):
    """The cells of one role's slot, written by that role unless said otherwise."""

    INCARNATION = 0
    """Which life of the role this is, from 1 (supervisor)."""
    PID = 1
    STATE = 2
    """A `RoleState` (the role; ABSENT and STARTING by the supervisor)."""
    HEARTBEAT_NS = 3
    SLEEPING = 4
    """1 while the role is in its poll or about to be (see doorbell.py)."""
    WANTED_APPENDED = 5
    """The position that the role waits for, 0 for none; likewise the next three."""
    WANTED_FLUSHED = 6
    WANTED_DISPATCHED = 7
    WANTED_TABLES = 8
    TABLES_SEEN = 9
    """The version of the tables that the role has read."""
    READING_FROM = 10
    """The lowest log offset that the role may still read; 0 = none."""
    BUSY_SINCE_NS = 11
    """When the write or sync began that the role is inside of, 0 = in none."""
    COUNTER_0 = 12
    COUNTER_1 = 13
    COUNTER_2 = 14
    COUNTER_3 = 15
    COUNTER_4 = 16
    COUNTER_5 = 17
    COUNTER_6 = 18
    COUNTER_7 = 19
    COUNTER_8 = 20
    WANTED_WRITTEN = 21


class RoleState(IntEnum):
    """What a role says that it is doing."""

    ABSENT = 0
    STARTING = 1
    RUNNING = 2
    STOPPING = 3
    STOPPED = 4
    WRITING = 5
    SYNCING = 6


assert len(Position) <= GLOBAL_CELLS
assert len(RoleCell) <= SLOT_CELLS

SLOT_OF: Final[dict[str, int]] = {
    "supervisor": 0,
    "writer": 1,
    "flusher": 2,
    "dispatcher": 3,
    "holder": 4,
    "coordinator": 5,
    "scheduler": 6,
    "checker": 7,
    "replicator": 8,
    "cleaner": 9,
    "exporter": 10,
    "nameserver": 11,
    "recovery": 12,
}
"""Slots of the roles there is one of; gateways follow from `GATEWAY_SLOT`."""

WANTED: Final = {
    Position.APPENDED: RoleCell.WANTED_APPENDED,
    Position.FLUSHED: RoleCell.WANTED_FLUSHED,
    Position.WRITTEN: RoleCell.WANTED_WRITTEN,
}
"""Where the wish for a position is written."""


def readable(config: StoreConfig) -> Position:
    """Return the position up to which the log is in its files, and nothing that it says can be taken back
    in this broker's mode: dispatching and reading go as far."""
    if config.flush is FlushMode.SYNC:
        return Position.FLUSHED
    return Position.WRITTEN if config.pooled else Position.APPENDED


_ROLE_OF = {slot: role for role, slot in SLOT_OF.items()}


def slot_of(role: str) -> int:
    """Return the slot of `role` ("writer", "gateway-2"); raises KeyError for a name that has none."""
    kind, _, number = role.partition("-")
    if kind == "gateway" and number.isdecimal() and int(number) < SLOTS - GATEWAY_SLOT:
        return GATEWAY_SLOT + int(number)
    return SLOT_OF[role]


def role_of(slot: int) -> str:
    """Return the role whose slot this is; raises KeyError when it is nobody's."""
    if GATEWAY_SLOT <= slot < SLOTS:
        return f"gateway-{slot - GATEWAY_SLOT}"
    return _ROLE_OF[slot]


class Positions(CellPage):
    """Reads and writes the page: everybody's cells by `Position`, a role's by its slot and `RoleCell`."""

    def __init__(self, view: memoryview) -> None:
        """`view`: at least `payload_bytes()` of shared memory."""
        super().__init__(view, GLOBAL_CELLS, SLOTS, SLOT_CELLS)

    @staticmethod
    def payload_bytes() -> int:
        """The bytes that the page needs."""
        return (GLOBAL_CELLS + SLOTS * SLOT_CELLS) * CELL_BYTES
