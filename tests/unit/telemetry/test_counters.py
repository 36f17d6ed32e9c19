"""Counters and statuses on the positions page."""

from __future__ import annotations

import pytest

from actormq.shm.positions import Positions, RoleCell, RoleState, slot_of
from actormq.telemetry.counters import Counters, snapshot


@pytest.fixture
def positions() -> Positions:
    return Positions(memoryview(bytearray(Positions.payload_bytes())))


def test_counters_are_seen_by_others(positions: Positions) -> None:
    """Two objects on the same cells, as in two processes or two incarnations: they count on."""
    first = Counters(positions, slot_of("writer"), ("appended", "rolled"))
    first.add("appended", 10)
    second = Counters(positions, slot_of("writer"), ("appended", "rolled"))
    second.add("appended")
    second.add("rolled")
    assert first.read() == {"appended": 11, "rolled": 1}
    assert Counters(positions, slot_of("flusher"), ("synced",)).read() == {"synced": 0}


def test_snapshot_shows_each_role(positions: Positions) -> None:
    """Ages in ms, 0 where there is nothing to measure from."""
    slot = slot_of("gateway-1")
    for cell, value in {
        RoleCell.PID: 4711,
        RoleCell.INCARNATION: 2,
        RoleCell.STATE: RoleState.SYNCING,
        RoleCell.HEARTBEAT_NS: 1_000_000_000,
        RoleCell.BUSY_SINCE_NS: 1_500_000_000,
        RoleCell.COUNTER_8: 9,
    }.items():
        positions.set_role(slot, cell, value)
    gateway, holder = snapshot(positions, ("gateway-1", "holder"), 2_000_000_000)
    assert (gateway.role, gateway.pid, gateway.incarnation, gateway.state) == (
        "gateway-1",
        4711,
        2,
        "SYNCING",
    )
    assert (gateway.heartbeat_age_ms, gateway.busy_ms) == (1000, 500)
    assert gateway.counters == (0, 0, 0, 0, 0, 0, 0, 0, 9)
    assert (holder.state, holder.heartbeat_age_ms, holder.pid) == ("ABSENT", 0, 0)
