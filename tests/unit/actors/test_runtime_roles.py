"""A role class in a thread, and the same loop by hand: order of calls, batches, stop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from pykka import ActorDeadError

from actormq.actors.mailbox import Sender
from actormq.actors.runtime import ProcessActor, RoleContext, ThreadedRole
from actormq.clock import ManualClock
from actormq.config import BrokerConfig, StoreConfig
from actormq.shm.doorbell import Doorbell, doorbell_fd
from actormq.shm.positions import Positions, RoleCell, RoleState, slot_of


class Add(msgspec.Struct):
    number: int


class Total(msgspec.Struct):
    pass


class Sum:
    """The state: everything worth testing."""

    def __init__(self) -> None:
        self.total = 0
        self.queued: list[int] = []

    def on_message(self, message: Add | Total) -> int | None:
        if isinstance(message, Add):
            self.queued.append(message.number)
            return None
        return self.total


class SumActor(ProcessActor):
    messages = (Add, Total)

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self.state = Sum()
        self.calls: list[str] = []
        self.due_ns: int | None = None
        self.finished = True

    def on_start(self) -> None:
        self.calls.append("start")

    def on_batch(self) -> bool:
        if not self.state.queued:
            return False
        self.state.total += self.state.queued.pop(0)
        return True

    def on_message(self, message: Any, sender: Sender) -> Any:
        return self.state.on_message(message)

    def wake_at_ns(self) -> int | None:
        return self.due_ns

    def on_tick(self, now_ns: int) -> None:
        self.calls.append("tick")
        self.due_ns = None

    def on_stop(self) -> None:
        self.calls.append("stop")

    def drained(self) -> bool:
        return self.finished


@pytest.fixture
def context(tmp_path: Path) -> Iterator[RoleContext]:
    positions = Positions(memoryview(bytearray(Positions.payload_bytes())))
    fd = doorbell_fd()
    yield RoleContext(
        role="holder",
        slot=slot_of("holder"),
        incarnation=1,
        config=BrokerConfig(store=StoreConfig(root=tmp_path)),
        positions=positions,
        doorbells={"holder": Doorbell(fd, positions, slot_of("holder"))},
        segments={},
        run_dir=tmp_path,
        clock=ManualClock(monotonic_ns=5_000_000_000),
    )
    os.close(fd)


def state_of(context: RoleContext) -> int:
    return context.positions.role(context.slot, RoleCell.STATE)


def test_role_class_runs_in_a_thread(context: RoleContext) -> None:
    """pykka's own ThreadingActor hosts the same class: ask, tell, batches, stop."""
    ref = ThreadedRole.start(SumActor, context)
    for number in range(10):
        ref.tell(Add(number))
    assert ref.ask(Total()) == 45
    ref.stop()
    with pytest.raises(ActorDeadError):
        ref.ask(Total())


def test_local_reference_is_pykkas(context: RoleContext) -> None:
    """`actor_ref` of pykka works inside the process: tell, ask (answered by the loop), stop."""
    actor = SumActor(context)
    actor.actor_ref.tell(Add(2))
    actor.actor_ref.tell(Add(3))
    answer = actor.actor_ref.ask(Total(), block=False)
    actor.actor_ref.stop(block=False)
    actor._start_actor_loop()
    assert actor.calls == ["start", "stop"]
    assert actor.state.total == 5
    assert answer.get() in (0, 2, 5)
    assert state_of(context) == RoleState.STOPPED


def test_states_are_published(context: RoleContext) -> None:
    """RUNNING once on_start is through, STOPPING while it drains, STOPPED at the end."""
    actor = SumActor(context)
    actor._actor_loop_setup()
    assert state_of(context) == RoleState.RUNNING
    actor.finished = False
    actor.stop()
    assert actor._turn()
    assert state_of(context) == RoleState.STOPPING
    assert not actor._turn()
    assert not actor.actor_stopped.is_set()
    actor.finished = True
    actor._turn()
    assert actor.actor_stopped.is_set()
    actor._actor_loop_teardown()
    assert state_of(context) == RoleState.STOPPED
    assert actor.calls == ["start", "stop"]


def test_stop_waits_for_the_last_batch(context: RoleContext) -> None:
    """What was queued before the stop is done before the role ends."""
    actor = SumActor(context)
    actor.state.queued = [1, 2, 3]
    actor.stop()
    actor._start_actor_loop()
    assert actor.state.total == 6


def test_a_time_that_has_passed_does_not_keep_a_role_from_its_end(context: RoleContext) -> None:
    """The time by which it wants to be drained stays due once it has come."""

    class Overdue(SumActor):
        def wake_at_ns(self) -> int | None:
            return context.clock.monotonic_ns()

    actor = Overdue(context)
    actor.stop()
    actor._turn()
    actor._turn()
    assert actor.calls == ["stop", "tick", "tick"]
    assert actor.actor_stopped.is_set()


def test_heartbeat_is_written_once_a_second(context: RoleContext) -> None:
    """The first turn beats, then at most one a second, whatever goes on."""
    actor = SumActor(context)
    clock = context.clock
    assert isinstance(clock, ManualClock)
    seen = set()
    for _ in range(30):
        actor._turn()
        seen.add(context.positions.role(context.slot, RoleCell.HEARTBEAT_NS))
        clock.advance_ms(100)
    assert sorted(seen) == [5_000_000_000, 6_000_000_000, 7_000_000_000]


def test_sleep_ends_at_whatever_comes_first(context: RoleContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next heartbeat, or the role's own time."""
    monkeypatch.setattr("actormq.actors.runtime.ALWAYS_RINGS", False)
    actor = SumActor(context)
    actor._turn()
    assert actor._sleep_until_ns() == 6_000_000_000
    actor.due_ns = 5_200_000_000
    assert actor._sleep_until_ns() == 5_200_000_000


def test_without_fences_a_role_looks_again_once(
    context: RoleContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncompiled: the first sleep after work ends after 1 ms, the next ones at the heartbeat as always."""
    monkeypatch.setattr("actormq.actors.runtime.ALWAYS_RINGS", True)
    actor = SumActor(context)
    actor._turn()
    assert actor._sleep_until_ns() == 5_001_000_000
    assert actor._sleep_until_ns() == 6_000_000_000


def test_tick_comes_when_due_and_not_before(context: RoleContext) -> None:
    actor = SumActor(context)
    clock = context.clock
    assert isinstance(clock, ManualClock)
    actor.due_ns = clock.monotonic_ns() + 1_000_000
    assert not actor._turn()
    clock.advance_ms(1)
    assert actor._turn()
    assert actor.calls == ["tick"]


def test_call_soon_wakes_the_loop(context: RoleContext) -> None:
    """A call from another thread runs in the loop, which sleeps otherwise."""
    import threading

    context.clock = type("Real", (), {"monotonic_ns": staticmethod(__import__("time").monotonic_ns)})()
    actor = SumActor(context)
    ran_in: list[int] = []

    def call() -> None:
        ran_in.append(threading.get_ident())
        actor.stop()

    thread = threading.Timer(0.01, lambda: actor.call_soon(call))
    thread.start()
    actor._start_actor_loop()
    thread.join()
    assert ran_in == [threading.get_ident()]


@pytest.fixture
def pipe() -> Iterator[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]]:
    """A PUSH and the PULL that it feeds."""
    sockets: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pull, push = sockets.socket(zmq.PULL), sockets.socket(zmq.PUSH)
    push.connect(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
    yield push, pull
    sockets.destroy(0)


def test_what_zeromq_brings_is_handed_on_by_the_same_turn(
    context: RoleContext, pipe: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    """Not by the next one, perhaps after a rest."""
    push, pull = pipe
    actor = SumActor(context)
    actor.loop.watch_zmq(pull, lambda events: actor.state.queued.append(int(pull.recv())))
    push.send(b"7")
    assert pull.poll(60_000)
    actor.loop.used(pull)
    actor._turn()
    assert actor.state.total == 7


def test_no_sleep_over_a_message_that_a_batch_has_made_silent(
    context: RoleContext, pipe: tuple[zmq.Socket[bytes], zmq.Socket[bytes]]
) -> None:
    """A socket used by `on_batch` may be ready with its descriptor at rest: it is asked before the poll."""
    push, pull = pipe

    class Using(SumActor):
        def on_batch(self) -> bool:
            if not self.calls:
                self.calls.append("used")
                for number in (b"1", b"2"):
                    push.send(number)
                assert pull.poll(60_000) and pull.recv() == b"1" and pull.poll(60_000)
                self.loop.used(pull)
            return False

    def wait(until_ns: int | None) -> bool:
        assert not pull.getsockopt(zmq.EVENTS) & zmq.POLLIN, "asleep while a message waits"
        if not stops:
            stops.append(actor.stop())
        return False

    actor = Using(context)
    got: list[bytes] = []
    stops: list[bool] = []
    actor.loop.watch_zmq(pull, lambda events: got.append(pull.recv()))
    actor.loop.dispatch_zmq()
    actor.loop.wait = wait  # type: ignore[method-assign]
    actor._actor_loop_running()
    assert got == [b"2"]


def test_busy_says_since_when(context: RoleContext) -> None:
    """Inside `busy` the state and the time are on the page, afterwards they are gone."""
    actor = SumActor(context)
    actor._actor_loop_setup()
    with actor.busy(RoleState.SYNCING):
        assert state_of(context) == RoleState.SYNCING
        assert context.positions.role(context.slot, RoleCell.BUSY_SINCE_NS) == 5_000_000_000
    assert state_of(context) == RoleState.RUNNING
    assert context.positions.role(context.slot, RoleCell.BUSY_SINCE_NS) == 0


def test_fakes_stand_in_for_other_roles(context: RoleContext) -> None:
    """A test hands in what `ref` returns."""

    class Fake:
        def __init__(self) -> None:
            self.told: list[msgspec.Struct] = []

        def tell(self, message: msgspec.Struct) -> bool:
            self.told.append(message)
            return True

        def ask(self, message: msgspec.Struct, **options: Any) -> Any:
            raise NotImplementedError

        def is_alive(self) -> bool:
            return True

    fake = Fake()
    context.refs["coordinator"] = fake
    context.ref("coordinator").tell(Add(1))
    assert fake.told == [Add(1)]
