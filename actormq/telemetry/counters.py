"""Counters that any process can read: nine cells of each role's slot, named by the role.

A role adds to its own cells, so a counter needs no lock and survives its process: they count over
all incarnations.  `snapshot` is what ``actormq status`` and the exporter show of the roles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from actormq.shm.positions import Positions, RoleCell, RoleState, slot_of

COUNTERS_MAX: Final = 9


class Counters:
    """The counters of one role: ``counters.add("appended")``."""

    def __init__(self, positions: Positions, slot: int, names: Sequence[str]) -> None:
        assert len(names) <= COUNTERS_MAX, names
        self._positions = positions
        self._slot = slot
        self._cells = {name: RoleCell(RoleCell.COUNTER_0 + index) for index, name in enumerate(names)}

    def add(self, name: str, value: int = 1) -> None:
        """Count `value` more; by the role itself only."""
        self._positions.add_role(self._slot, self._cells[name], value)

    def read(self) -> dict[str, int]:
        """Return all of them."""
        return {name: self._positions.role(self._slot, cell) for name, cell in self._cells.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleStatus:
    """What the positions page says of one role."""

    role: str
    pid: int
    incarnation: int
    state: str
    heartbeat_age_ms: int
    busy_ms: int
    counters: tuple[int, ...]


def snapshot(positions: Positions, roles: Iterable[str], now_ns: int) -> list[RoleStatus]:
    """Return the status of `roles` at monotonic time `now_ns`."""
    return [_status(positions, role, now_ns) for role in roles]


def _status(positions: Positions, role: str, now_ns: int) -> RoleStatus:
    slot = slot_of(role)
    cells = {cell: positions.role(slot, cell) for cell in RoleCell}
    return RoleStatus(
        role=role,
        pid=cells[RoleCell.PID],
        incarnation=cells[RoleCell.INCARNATION],
        state=RoleState(cells[RoleCell.STATE]).name,
        heartbeat_age_ms=_age_ms(cells[RoleCell.HEARTBEAT_NS], now_ns),
        busy_ms=_age_ms(cells[RoleCell.BUSY_SINCE_NS], now_ns),
        counters=tuple(cells[RoleCell(RoleCell.COUNTER_0 + index)] for index in range(COUNTERS_MAX)),
    )


def _age_ms(since_ns: int, now_ns: int) -> int:
    return max(0, now_ns - since_ns) // 1_000_000 if since_ns else 0
