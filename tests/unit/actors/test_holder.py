"""The holder: nothing that has arrived stays parked, whatever the order in which it is told."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actormq.actors.dispatcher import DispatcherActor
from actormq.actors.holder import ARRIVED, ARRIVED_OVERFLOW, PARKED, Holder, HolderActor, Park, ParkPort
from actormq.clock import ManualClock
from actormq.kernels.rings import FENCED
from actormq.shm.extents import Extent, Extents
from actormq.shm.positions import Positions, slot_of
from actormq.shm.ring import RingProducer, ring_bytes, ring_init

LATER = 10**12


class Queues:
    """Rows that grow."""

    def __init__(self, rows: int = 4) -> None:
        self.extents = [Extent(1, 0, 0) for _ in range(rows)]

    def grow(self, row: int, by: int = 1) -> None:
        self.extents[row] = self.extents[row]._replace(max=self.extents[row].max + by)

    def read(self, row: int) -> Extent:
        return self.extents[row]


def park(park_id: int, row: int = 0, wanted: int = 0, deadline_ns: int = LATER, incarnation: int = 1) -> Park:
    return Park(park_id, row, incarnation, wanted, deadline_ns)


@pytest.fixture
def queues() -> Queues:
    return Queues()


@pytest.fixture
def holder(queues: Queues) -> Holder:
    return Holder(queues.read)


def test_a_pull_waits_until_its_row_grows(queues: Queues, holder: Holder) -> None:
    """Parked at the end, woken once by the first entry, and then forgotten."""
    assert holder.park("g", [park(1)]) == []
    assert holder.arrived([0]) == []
    queues.grow(0)
    assert holder.arrived([1, 2]) == []
    assert holder.arrived([0]) == [("g", 1)]
    assert holder.arrived([0]) == []
    assert len(holder) == 0


def test_a_pull_that_is_late_already_is_woken_at_once(queues: Queues, holder: Holder) -> None:
    """The row grew between the gateway's look and the park."""
    queues.grow(0, by=5)
    assert holder.park("g", [park(1, wanted=4), park(2, wanted=5)]) == [("g", 1)]


def test_only_wishes_that_are_passed_are_woken(queues: Queues, holder: Holder) -> None:
    """Others of the same row go on waiting."""
    holder.park("g", [park(1, wanted=0), park(2, wanted=3)])
    queues.grow(0, by=3)
    assert holder.arrived([0]) == [("g", 1)]
    queues.grow(0)
    assert holder.arrived([0]) == [("g", 2)]


def test_a_row_of_another_incarnation_wakes(queues: Queues, holder: Holder) -> None:
    """The topic was deleted: its gateway must say so instead of waiting."""
    holder.park("g", [park(1)])
    queues.extents[0] = Extent(0, 0, 0)
    assert holder.look_at_all() == [("g", 1)]


def test_a_park_that_is_repeated_is_one_park(queues: Queues, holder: Holder) -> None:
    """A gateway that repeats itself is not woken twice."""
    holder.park("g", [park(1)])
    holder.park("g", [park(1, row=1)])
    queues.grow(0)
    queues.grow(1)
    assert holder.arrived([0, 1]) == [("g", 1)]


def test_gateways_use_the_same_numbers(queues: Queues, holder: Holder) -> None:
    """A park id means something to its own gateway only."""
    holder.park("gateway-0", [park(1)])
    holder.park("gateway-1", [park(1)])
    holder.drop("gateway-0")
    queues.grow(0)
    assert holder.arrived([0]) == [("gateway-1", 1)]


def test_what_is_over_is_forgotten(holder: Holder) -> None:
    """The gateway answers its own deadline; a park that was replaced keeps the new one."""
    holder.park("g", [park(1, deadline_ns=10), park(2, deadline_ns=20)])
    holder.park("g", [park(1, deadline_ns=30)])
    assert holder.wake_at_ns() == 10
    holder.on_tick(10)
    assert len(holder) == 2
    holder.on_tick(20)
    assert len(holder) == 1
    holder.on_tick(30)
    assert len(holder) == 0
    assert holder.wake_at_ns() is None


steps = st.lists(
    st.tuples(st.just("park"), st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))
    | st.tuples(st.just("grow"), st.integers(0, 3))
    | st.tuples(st.just("look"))
)


@given(steps)
@settings(max_examples=200)
def test_nothing_arrived_stays_parked(sequence: list[tuple[Any, ...]]) -> None:
    """Against a plain model: after every notice, who is parked is exactly who must wait."""
    queues = Queues()
    holder = Holder(queues.read)
    waiting: dict[int, Park] = {}
    grown: set[int] = set()
    for step in sequence:
        woken = []
        if step[0] == "park":
            one = park(step[1], row=step[2], wanted=step[3])
            waiting[one.park_id] = one
            woken = holder.park("g", [one])
        elif step[0] == "grow":
            queues.grow(step[1])
            grown.add(step[1])
        else:
            woken = holder.arrived(grown)
            grown = set()
        for _, park_id in woken:
            one = waiting.pop(park_id)
            assert queues.read(one.row).max > one.wanted
        for one in waiting.values():
            assert one.row in grown or queues.read(one.row).max <= one.wanted
    assert len(holder) == len(waiting)


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
            config=None,
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
        return ParkPort(self.ports[name], self.bells["holder"])  # type: ignore[arg-type]

    def dispatcher(self) -> RingProducer:
        port = MemoryPort()
        self.role.on_port_opened("arrived", "dispatcher", 1, port)  # type: ignore[arg-type]
        return RingProducer(port.requests)


@pytest.fixture
def role() -> Rig:
    return Rig()


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
    assert role.bells["holder"].rung == 1
    drain(role)
    assert gateway.woken() == []
    role.extents.set_max(0, 1)
    role.extents.set_max(1, 1)
    dispatcher.try_push(ARRIVED.pack(0) + ARRIVED.pack(1))
    drain(role)
    assert sorted(gateway.woken()) == [7, 8]
    assert role.bells["gateway-0"].rung == 1


def test_the_dispatcher_is_silent_while_nobody_waits(role: Rig) -> None:
    """The holder says how many wait before it looks at their queues; uncompiled nobody may rely on it."""
    gateway = role.gateway("gateway-0")
    dispatcher = DispatcherActor(role.context)
    dispatcher._arrived = role.dispatcher()
    drain(role)
    rung = role.bells["holder"].rung
    dispatcher._tell_holder([0])
    assert role.bells["holder"].rung == rung + (0 if FENCED else 1)
    gateway.try_park(park(1))
    drain(role)
    assert role.positions.role(role.context.slot, PARKED) == 1
    role.extents.set_max(0, 1)
    dispatcher._tell_holder([0])
    drain(role)
    assert gateway.woken() == [1]
    assert role.positions.role(role.context.slot, PARKED) == 0


def test_a_queue_that_grows_while_its_pull_is_parked_is_seen(
    role: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number is there when the queue is looked at: whoever lets it grow later reads it."""
    gateway = role.gateway("gateway-0")
    seen = []
    read = role.role.state._read
    monkeypatch.setattr(
        role.role.state,
        "_read",
        lambda row: (seen.append(role.positions.role(role.context.slot, PARKED)), read(row))[1],
    )
    gateway.try_park(park(1))
    drain(role)
    assert seen == [1]


def test_an_overflow_means_to_look_at_all(role: Rig) -> None:
    """The dispatcher could not name a row: nothing may sleep on because of that."""
    gateway = role.gateway("gateway-0")
    role.dispatcher()
    gateway.try_park(park(1))
    drain(role)
    role.extents.set_max(0, 1)
    role.positions.add_role(slot_of("dispatcher"), ARRIVED_OVERFLOW)
    drain(role)
    assert gateway.woken() == [1]


def test_a_new_dispatcher_means_to_look_at_all(role: Rig) -> None:
    """What its predecessor did not say any more."""
    gateway = role.gateway("gateway-0")
    gateway.try_park(park(1))
    drain(role)
    role.extents.set_max(0, 1)
    role.dispatcher()
    drain(role)
    assert gateway.woken() == [1]


def test_wakes_that_find_no_room_come_later(role: Rig) -> None:
    """A gateway that does not take its wakes loses none."""
    gateway = role.gateway("gateway-0", capacity=64)
    dispatcher = role.dispatcher()
    woken: list[int] = []
    for park_id in range(40):
        assert gateway.try_park(park(park_id, row=park_id % 8, wanted=park_id // 8))
        drain(role)
        role.extents.set_max(park_id % 8, park_id // 8 + 1)
        dispatcher.try_push(struct.pack("<I", park_id % 8))
        drain(role)
        assert role.role.wake_at_ns() is not None or park_id < 4
    while len(woken) < 40:
        got = gateway.woken()
        assert got, "a wake was lost"
        woken += got
        drain(role)
    assert sorted(woken) == list(range(40))


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
    assert new.woken() == [2]
    role.role.on_port_closed("park", "gateway-0", 2)
    assert len(role.role.state) == 0


def test_a_full_ring_is_said(role: Rig) -> None:
    """The gateway keeps what did not fit."""
    gateway = role.gateway("gateway-0", capacity=64)
    assert gateway.try_park(park(1))
    assert not gateway.try_park(park(2))
    drain(role)
    assert gateway.try_park(park(2))
