"""The reactor: descriptors, timers and ZeroMQ sockets in one wait."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import zmq

from actormq.actors.loop import HANGUP, READ, WRITE, Loop
from actormq.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(monotonic_ns=1_000_000_000)


@pytest.fixture
def loop(clock: ManualClock) -> Iterator[Loop]:
    loop = Loop(clock.monotonic_ns)
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_callback_gets_the_events(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    """READ when there is data, WRITE when there is room, HANGUP at the end."""
    left, right = pair
    seen: list[int] = []
    loop.watch(left.fileno(), READ, seen.append)
    assert not loop.wait(0)
    right.send(b"x")
    assert loop.wait(0)
    loop.watch(left.fileno(), READ | WRITE, seen.append)
    right.close()
    loop.wait(0)
    assert seen[0] == READ
    assert seen[1] & (READ | WRITE | HANGUP) == READ | WRITE | HANGUP


def test_unwatched_is_silent(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    """After `unwatch` nothing is called, and unwatching twice is no error."""
    left, right = pair
    loop.watch(left.fileno(), READ, lambda events: pytest.fail("called"))
    right.send(b"x")
    loop.unwatch(left.fileno())
    loop.unwatch(left.fileno())
    assert not loop.wait(0)


def test_stale_event_never_reaches_a_reused_descriptor(loop: Loop) -> None:
    """A callback closes another ready descriptor, whose number is taken at once: its watcher waits."""
    (a, b), (c, d) = os.pipe(), os.pipe()
    os.write(b, b"x")
    os.write(d, b"x")
    called: list[str] = []
    opened: list[int] = []

    def replace(own: int, other: int) -> None:
        called.append("first")
        loop.unwatch(own)
        loop.unwatch(other)
        os.close(other)
        fresh, writer = os.pipe()
        opened.extend((fresh, writer))
        assert other in opened
        loop.watch(other, READ, lambda events: called.append("stale"))

    loop.watch(a, READ, lambda events: replace(a, c))
    loop.watch(c, READ, lambda events: replace(c, a))
    loop.wait(0)
    assert called == ["first"]
    for fd in {a, b, c, d, *opened}:
        os.close(fd)


def test_timers_run_in_order_and_only_when_due(loop: Loop, clock: ManualClock) -> None:
    """By due time, ties in the order of their making; a cancelled one is forgotten."""
    seen: list[str] = []
    loop.call_later_ms(20, lambda: seen.append("late"))
    loop.call_later_ms(10, lambda: seen.append("a"))
    loop.call_later_ms(10, lambda: seen.append("b"))
    loop.call_later_ms(5, lambda: seen.append("never")).cancel()
    assert loop.next_due_ns() == clock.monotonic_ns() + 10_000_000
    assert not loop.dispatch_timers()
    clock.advance_ms(10)
    assert loop.dispatch_timers()
    assert seen == ["a", "b"]
    clock.advance_ms(10)
    loop.dispatch_timers()
    assert seen == ["a", "b", "late"]
    assert loop.next_due_ns() is None


def test_timer_may_set_another(loop: Loop, clock: ManualClock) -> None:
    """A timer set for now by a timer runs in the same dispatch; one for later waits."""
    seen: list[int] = []

    def again() -> None:
        seen.append(len(seen))
        if len(seen) < 3:
            loop.call_later_ms(0, again)
        else:
            loop.call_later_ms(1, again)

    loop.call_later_ms(0, again)
    loop.dispatch_timers()
    assert seen == [0, 1, 2]


def test_wait_ends_at_the_next_timer() -> None:
    """With nothing else to wait for, the wait ends when a timer is due, not when its own limit is."""
    loop = Loop()
    ran: list[bool] = []
    loop.call_later_ms(1, lambda: ran.append(True))
    while not ran:
        loop.run_once(None)
    loop.close()


def test_zmq_messages_left_by_a_callback_are_not_forgotten(loop: Loop) -> None:
    """The descriptor is edge-triggered: a callback that takes one message a time is called for each."""
    context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    pull.bind("inproc://loop")
    push.connect("inproc://loop")
    for number in range(10):
        push.send(b"%d" % number)
    seen: list[bytes] = []
    loop.watch_zmq(pull, lambda events: seen.append(pull.recv(zmq.NOBLOCK)))
    while len(seen) < 10:
        assert loop.run_once(0) or len(seen) == 10
    assert seen == [b"%d" % number for number in range(10)]
    loop.unwatch_zmq(pull)
    context.destroy(0)


def test_zmq_receive_elsewhere_does_not_lose_the_wake_up(loop: Loop) -> None:
    """A callback of one socket receives on another: that one's remaining messages still wake the loop."""
    context = zmq.Context()
    first, first_in = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    second, second_in = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for receiver, sender, name in ((first, first_in, "first"), (second, second_in, "second")):
        receiver.bind(f"inproc://{name}")
        sender.connect(f"inproc://{name}")
    for _ in range(2):
        second_in.send(b"x")
    first_in.send(b"go")
    seen: list[str] = []

    def on_first(events: int) -> None:
        first.recv(zmq.NOBLOCK)
        second.recv(zmq.NOBLOCK)  # swallows the signal of the second socket's descriptor
        loop.used(second)
        seen.append("first")

    def on_second(events: int) -> None:
        second.recv(zmq.NOBLOCK)
        seen.append("second")

    loop.watch_zmq(second, on_second)
    loop.watch_zmq(first, on_first)
    for _ in range(10):
        loop.run_once(0)
    assert sorted(seen) in (["first", "second"], ["first", "second", "second"])
    with pytest.raises(zmq.Again):
        second.recv(zmq.NOBLOCK)
    context.destroy(0)
