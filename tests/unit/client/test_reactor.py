"""The client's own thread: calls, timers, and what it forgets."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from actormq.client.reactor import Reactor
from actormq.clock import SystemClock

SECONDS = 30.0


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    one = Reactor(SystemClock())
    one.start()
    yield one
    one.stop()


def test_calls_of_its_own_thread_run_without_being_woken_for(reactor: Reactor) -> None:
    """In order, and before it sleeps."""
    said: list[int] = []
    ended = threading.Event()

    def again(number: int) -> None:
        said.append(number)
        if number < 5:
            reactor.call_soon(lambda: again(number + 1))
        else:
            ended.set()

    reactor.call_soon(lambda: again(0))
    assert ended.wait(SECONDS)
    assert said == [0, 1, 2, 3, 4, 5]


def test_time_outs_that_were_cancelled_are_forgotten(reactor: Reactor) -> None:
    """Each answered request leaves one, due long after; the others stay."""
    ended = threading.Event()
    sizes: list[int] = []

    def fill() -> None:
        for _ in range(10_000):
            reactor.call_later(1_000_000, ended.set).cancel()
        sizes.append(len(reactor._timers))
        reactor.call_later(1, ended.set)
        for _ in range(1_000):
            reactor.call_later(1_000_000, ended.set).cancel()

    reactor.call_soon(fill)
    assert ended.wait(SECONDS)
    assert sizes[0] < 1_000
