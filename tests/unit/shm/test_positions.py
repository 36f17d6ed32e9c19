"""The positions page: cells of their own, fixed slots, wishes."""

from __future__ import annotations

import pytest

from actormq.shm.positions import (
    CELL_BYTES,
    GATEWAY_SLOT,
    SLOT_OF,
    SLOTS,
    Position,
    Positions,
    RoleCell,
    role_of,
    slot_of,
)


@pytest.fixture
def memory() -> memoryview:
    return memoryview(bytearray(Positions.payload_bytes()))


def test_every_cell_has_a_line_of_its_own(memory: memoryview) -> None:
    """No two cells share a cache line, and none is another's."""
    positions = Positions(memory)
    value = 0
    for position in Position:
        value += 1
        positions.set(position, value)
    for slot in range(SLOTS):
        for cell in RoleCell:
            value += 1
            positions.set_role(slot, cell, value)
    words = memory.cast("Q")
    used = [index for index in range(len(words)) if words[index]]
    assert len(used) == value
    assert all(index % (CELL_BYTES // 8) == 0 for index in used)
    assert sorted(words[index] for index in used) == list(range(1, value + 1))
    assert positions.get(Position.APPENDED) == 1
    assert words[Position.FLUSHED * 8] == 2
    assert positions.role(SLOTS - 1, list(RoleCell)[-1]) == value


def test_page_is_read_through_any_map(memory: memoryview) -> None:
    """Another process's object sees the same cells."""
    Positions(memory).set(Position.STORE_FAILED, 2**64 - 1)
    assert Positions(memory).get(Position.STORE_FAILED) == 2**64 - 1


def test_counters_wrap(memory: memoryview) -> None:
    """A counter is modulo 2**64, never an error."""
    positions = Positions(memory)
    positions.set_role(3, RoleCell.COUNTER_0, 2**64 - 1)
    positions.add_role(3, RoleCell.COUNTER_0, 2)
    assert positions.role(3, RoleCell.COUNTER_0) == 1


def test_waiters_are_slots_whose_wish_is_reached(memory: memoryview) -> None:
    """Only the wish asked about counts, 0 is none, equal is reached, the last slot belongs to it."""
    positions = Positions(memory)
    positions.set_role(1, RoleCell.WANTED_FLUSHED, 100)
    positions.set_role(2, RoleCell.WANTED_APPENDED, 1)
    positions.set_role(17, RoleCell.WANTED_FLUSHED, 101)
    positions.set_role(63, RoleCell.WANTED_FLUSHED, 7)
    assert positions.waiters(RoleCell.WANTED_FLUSHED, 6) == []
    assert positions.waiters(RoleCell.WANTED_FLUSHED, 100) == [1, 63]
    assert positions.waiters(RoleCell.WANTED_FLUSHED, 101) == [1, 17, 63]


def test_slots_and_names_agree() -> None:
    """Every role has one slot, every slot one role, and unknown names have none."""
    names = [*SLOT_OF, *(f"gateway-{number}" for number in range(SLOTS - GATEWAY_SLOT))]
    slots = [slot_of(name) for name in names]
    assert len(set(slots)) == len(slots)
    assert [role_of(slot) for slot in slots] == names
    for name in ("gateway", "gateway-", "gateway-48", "gateway--1", "pope"):
        with pytest.raises(KeyError):
            slot_of(name)
    with pytest.raises(KeyError):
        role_of(15)
