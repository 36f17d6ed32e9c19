"""The holder: nothing that has arrived stays parked, whatever the order in which it is told."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_twins import each_of, twins

from actormq.actors.dispatcher import DispatcherActor
from actormq.actors.holder import ARRIVED, ARRIVED_OVERFLOW, WAITING, HolderActor, ParkPort
from actormq.clock import ManualClock
from actormq.config import GatewayConfig
from actormq.kernels.parks import PARK
from actormq.kernels.rings import FENCED
from actormq.shm.extents import Extents
from actormq.shm.positions import Positions, slot_of
from actormq.shm.ring import RingProducer, ring_bytes, ring_init

KERNELS = twins("parks")
each_kernel = each_of(KERNELS)


def park(number: int, row: int = 0, wanted: int = 0, incarnation: int = 1) -> bytearray:
    return bytearray(PARK.pack(number, row, incarnation, wanted))


class Table:
    """A table of one gateway's parks, over four rows that grow."""

    def __init__(self, kernel: ModuleType) -> None:
        memory = memoryview(bytearray(Extents.payload_bytes(4)))
        self.extents = Extents(memory)
        for row in range(4):
            self.extents.open_row(row, 1, 0, 0)
        self.table = kernel.ParkTable(memory)

    def grow(self, row: int, by: int = 1) -> None:
        self.extents.set_max(row, self.extents.read(row).max + by)

    def park(self, *parks: bytearray) -> list[int]:
        """Park in one entry of the ring; return what is woken at once."""
        self.table.park([memoryview(b"".join(parks))])
        return self.woken()

    def arrived(self, rows: Iterable[int]) -> list[int]:
        self.table.arrived([memoryview(ARRIVED.pack(row)) for row in rows])
        return self.woken()

    def woken(self) -> list[int]:
        numbers = [number for (number,) in struct.iter_unpack("<Q", bytes(self.table.woken))]
        self.table.woken.clear()
        return numbers


@each_kernel
def test_a_pull_waits_until_its_row_grows(kernel: ModuleType) -> None:
    """Parked at the end, woken once by the first entry, and then forgotten."""
    holder = Table(kernel)
    assert holder.park(park(1)) == []
    assert holder.arrived([0]) == []
    holder.grow(0)
    assert holder.arrived([1, 2]) == []
    assert holder.arrived([0]) == [1]
    assert holder.arrived([0]) == []
    assert len(holder.table) == 0


@each_kernel
def test_a_pull_that_is_late_already_is_woken_at_once(kernel: ModuleType) -> None:
    """The row grew between the gateway's look and the park."""
    holder = Table(kernel)
    holder.grow(0, by=5)
    assert holder.park(park(1, wanted=4), park(2, wanted=5)) == [1]


@each_kernel
def test_only_wishes_that_are_passed_are_woken(kernel: ModuleType) -> None:
    """Others of the same row go on waiting."""
    holder = Table(kernel)
    holder.park(park(1, wanted=0), park(2, wanted=3))
    holder.grow(0, by=3)
    assert holder.arrived([0]) == [1]
    holder.grow(0)
    assert holder.arrived([0]) == [2]


@each_kernel
def test_a_row_of_another_incarnation_wakes(kernel: ModuleType) -> None:
    """The topic was deleted: its gateway must say so instead of waiting."""
    holder = Table(kernel)
    holder.park(park(1))
    holder.extents.close_row(0)
    holder.table.look_at_all()
    assert holder.woken() == [1]


@each_kernel
def test_a_park_that_is_repeated_is_one_park(kernel: ModuleType) -> None:
    """A gateway that repeats itself is not woken twice."""
    holder = Table(kernel)
    holder.park(park(1))
    holder.park(park(1, row=1))
    holder.grow(0)
    holder.grow(1)
    assert holder.arrived([0, 1]) == [1]


@each_kernel
def test_the_next_wait_takes_the_place_of_the_last(kernel: ModuleType) -> None:
    """What a gateway has ended by itself goes when it uses the place again: no clock, and a bound."""
    holder = Table(kernel)
    for turn in range(100):
        holder.park(*(park(turn << 20 | place, row=(turn + place) % 4) for place in range(5)))
        assert len(holder.table) == 5
    for row in range(4):
        holder.grow(row)
    assert sorted(holder.arrived(range(4))) == [99 << 20 | place for place in range(5)]


steps = st.lists(
    st.tuples(st.just("park"), st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))
    | st.tuples(st.just("grow"), st.integers(0, 3))
    | st.tuples(st.just("look"))
)


@each_kernel
@given(steps)
@settings(max_examples=200, deadline=None)
def test_nothing_arrived_stays_parked(kernel: ModuleType, sequence: list[tuple[Any, ...]]) -> None:
    """Against a plain model: after every notice, who is parked is exactly who must wait."""
    holder = Table(kernel)
    waiting: dict[int, tuple[int, int, int]] = {}
    grown: set[int] = set()
    for count, step in enumerate(sequence):
        woken = []
        if step[0] == "park":
            place, row, wanted = step[1:]
            waiting[place] = (count << 20 | place, row, wanted)
            woken = holder.park(park(count << 20 | place, row=row, wanted=wanted))
        elif step[0] == "grow":
            holder.grow(step[1])
            grown.add(step[1])
        else:
            woken = holder.arrived(grown)
            grown = set()
        for number in woken:
            expected, row, wanted = waiting.pop(number & 0xFFFFF)
            assert number == expected
            assert holder.extents.read(row).max > wanted
        for _, row, wanted in waiting.values():
            assert row in grown or holder.extents.read(row).max <= wanted
        assert len(holder.table) == len(waiting)


# --- the role, over real rings -----------------------------------------------------------------------


class Bell:
    def __init__(self) -> None:
        self.rung = 0

    def ring(self) -> None:
        self.rung += 1


class MemoryPort:
    """A port in private memory."""

    def __init__(self, capacity: int = 1024) -> None:
        self.requests = memoryview(bytearray(ring_bytes(capacity)))
        self.completions = memoryview(bytearray(ring_bytes(capacity)))
        ring_init(self.requests)
        ring_init(self.completions)


class Rig:
    def __init__(self) -> None:
        self.positions = Positions(memoryview(bytearray(Positions.payload_bytes())))
        extents = memoryview(bytearray(Extents.payload_bytes(8)))
        self.extents = Extents(extents)
        for row in range(8):
            self.extents.open_row(row, 1, 0, 0)
        self.bells = {"gateway-0": Bell(), "gateway-1": Bell(), "holder": Bell()}
        self.context: Any = SimpleNamespace(
            role="holder",
            slot=slot_of("holder"),
            config=SimpleNamespace(gateway=GatewayConfig(count=2)),
            positions=self.positions,
            doorbells=self.bells,
            segments={"extents": SimpleNamespace(view=extents)},
            clock=ManualClock(),
            log=None,
        )
        self.ports: dict[str, MemoryPort] = {}
        self.role = HolderActor(self.context)

    def gateway(self, name: str, incarnation: int = 1, capacity: int = 1024) -> ParkPort:
        self.ports[name] = MemoryPort(capacity)
        self.role.on_port_opened("park", name, incarnation, self.ports[name])  # type: ignore[arg-type]
        holder: Any = self.bells["holder"]
        return ParkPort(self.ports[name], holder, self.positions, slot_of(name))  # type: ignore[arg-type]

    def dispatcher(self) -> RingProducer:
        port = MemoryPort()
        self.role.on_port_opened("arrived", "dispatcher", 1, port)  # type: ignore[arg-type]
        return RingProducer(port.requests)


@pytest.fixture
def role() -> Rig:
    return Rig()


def woken(port: ParkPort) -> list[int]:
    """Return what a gateway finds in its ring."""
    numbers = [number for entry in port.woken() for (number,) in struct.iter_unpack("<Q", entry)]
    port.release()
    return numbers


def drain(rig: Rig) -> None:
    while rig.role.on_batch():
        pass


def test_parks_and_wakes_travel_through_rings(role: Rig) -> None:
    """Park, arrive, wake; one bell for each side's batch."""
    gateway, dispatcher = role.gateway("gateway-0"), role.dispatcher()
    assert gateway.try_park(park(7))
    assert gateway.try_park(park(8, row=1))
    gateway.flush()
    gateway.flush()
    assert role.bells["holder"].rung == (0 if FENCED else 1), "who tells of growth wakes the holder"
    drain(role)
    assert woken(gateway) == []
    role.extents.set_max(0, 1)
    role.extents.set_max(1, 1)
    dispatcher.try_push(ARRIVED.pack(0) + ARRIVED.pack(1))
    drain(role)
    assert sorted(woken(gateway)) == [7, 8]
    assert role.bells["gateway-0"].rung == 1


def test_the_dispatcher_is_silent_while_nobody_waits(role: Rig) -> None:
    """Every gateway says how many of its pulls wait; uncompiled nobody may rely on it."""
    gateway, other = role.gateway("gateway-0"), role.gateway("gateway-1")
    for port in (gateway, other):
        port.say_waiting(0)
    dispatcher = DispatcherActor(role.context)
    dispatcher._arrived = role.dispatcher()
    drain(role)
    rung = role.bells["holder"].rung
    dispatcher._tell_holder([0])
    assert role.bells["holder"].rung == rung + (0 if FENCED else 1)
    other.say_waiting(1)
    assert role.positions.role(slot_of("gateway-1"), WAITING) == 1
    other.try_park(park(1))
    role.extents.set_max(0, 1)
    dispatcher._tell_holder([0])
    drain(role)
    assert woken(other) == [1]


def test_a_ring_that_is_full_wakes_the_holder(role: Rig) -> None:
    """Only it can make room."""
    gateway = role.gateway("gateway-0", capacity=64)
    assert gateway.try_park(park(1) + park(2))
    assert not gateway.try_park(park(3))
    gateway.flush()
    assert role.bells["holder"].rung == 1


def test_the_rings_of_parks_are_read_behind_those_of_growth(
    role: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A park that a gateway has compared in vain is in its ring before anybody is told of the growth."""
    gateway, dispatcher = role.gateway("gateway-0"), role.dispatcher()
    role.extents.set_max(0, 1)
    dispatcher.try_push(ARRIVED.pack(0))
    monkeypatch.setattr("actormq.actors.holder.full_fence", lambda: gateway.try_park(park(1)))
    role.role.on_batch()
    assert woken(gateway) == [1]


def test_an_overflow_means_to_look_at_all(role: Rig) -> None:
    """The dispatcher could not name a row: nothing may sleep on because of that."""
    gateway = role.gateway("gateway-0")
    role.dispatcher()
    gateway.try_park(park(1))
    drain(role)
    role.extents.set_max(0, 1)
    role.positions.add_role(slot_of("dispatcher"), ARRIVED_OVERFLOW)
    drain(role)
    assert woken(gateway) == [1]


def test_a_new_dispatcher_means_to_look_at_all(role: Rig) -> None:
    """What its predecessor did not say any more."""
    gateway = role.gateway("gateway-0")
    gateway.try_park(park(1))
    drain(role)
    role.extents.set_max(0, 1)
    role.dispatcher()
    drain(role)
    assert woken(gateway) == [1]


def test_wakes_that_find_no_room_come_later(role: Rig) -> None:
    """A gateway that does not take its wakes loses none."""
    gateway = role.gateway("gateway-0", capacity=64)
    dispatcher = role.dispatcher()
    ids: list[int] = []
    for park_id in range(40):
        assert gateway.try_park(park(park_id, row=park_id % 8, wanted=park_id // 8))
        drain(role)
        role.extents.set_max(park_id % 8, park_id // 8 + 1)
        dispatcher.try_push(struct.pack("<I", park_id % 8))
        drain(role)
        assert role.role.wake_at_ns() is not None or park_id < 4
    while len(ids) < 40:
        got = woken(gateway)
        assert got, "a wake was lost"
        ids += got
        drain(role)
    assert sorted(ids) == list(range(40))


def test_a_replaced_gateway_starts_from_nothing(role: Rig) -> None:
    """The dead one's parks go with its port; closing the old port late does not harm the new one."""
    old = role.gateway("gateway-0", incarnation=1)
    old.try_park(park(1))
    drain(role)
    new = role.gateway("gateway-0", incarnation=2)
    new.try_park(park(2))
    drain(role)
    role.role.on_port_closed("park", "gateway-0", 1)
    role.extents.set_max(0, 1)
    role.dispatcher()
    drain(role)
    assert woken(new) == [2]
    role.role.on_port_closed("park", "gateway-0", 2)
    assert role.role.parked == 0


def test_a_full_ring_is_said(role: Rig) -> None:
    """The gateway keeps what did not fit."""
    gateway = role.gateway("gateway-0", capacity=64)
    assert gateway.try_park(park(1) + park(2))
    assert not gateway.try_park(park(3))
    drain(role)
    assert gateway.try_park(park(3))
