"""The pool of threads that run listeners."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from unit.client.fakes import encode_record

from actormq.client.held import Delivery, Finished, HeldQueue
from actormq.client.messages import ReceivedMessage, decode_messages
from actormq.client.results import ConsumeResult, MessageQueue, RetryLater
from actormq.client.workers import WorkerPool
from actormq.clock import SystemClock
from actormq.message import QueueOffset

SECONDS = 30.0
QUEUE = MessageQueue("t", "a", 0)


class Reports:
    """What workers said, and when they were through."""

    def __init__(self) -> None:
        self.finished: list[Finished] = []
        self.last = 0
        self._changed = threading.Condition()

    def __call__(self, delivery: Delivery, finished: list[Finished], is_last: bool) -> None:
        with self._changed:
            self.finished += finished
            self.last += is_last
            self._changed.notify_all()

    def wait(self, count: int) -> list[Finished]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.finished) >= count, SECONDS)
            return list(self.finished)


def delivery(listener: Callable[[ReceivedMessage], Any], count: int, *, in_order: bool = False) -> Delivery:
    data = b"".join(encode_record("t", b"%d" % index, queue_offset=index) for index in range(count))
    held = HeldQueue(QUEUE, QueueOffset(0), persisted=None)
    return Delivery(held, held.window.put(decode_messages(data, QUEUE)), listener, in_order=in_order)


def pool(reports: Any, workers: int = 4) -> WorkerPool:
    return WorkerPool(workers, reports, SystemClock(), "test-pool")


def test_every_message_is_run_once_by_however_many_workers() -> None:
    reports, lock, seen = Reports(), threading.Lock(), []

    def listener(message: ReceivedMessage) -> None:
        with lock:
            seen.append(message.queue_offset)

    crew = pool(reports, workers=8)
    for _ in range(50):
        crew.submit(delivery(listener, 32))
    reports.wait(50 * 32)
    assert crew.stop(SECONDS)
    assert sorted(seen) == sorted(list(range(32)) * 50)


def test_what_listeners_answer() -> None:
    """Nothing, SUCCESS and anything else are success; RETRY and every exception mean again."""

    def listener(message: ReceivedMessage) -> Any:
        match int(message.body):
            case 0:
                return None
            case 1:
                return ConsumeResult.SUCCESS
            case 2:
                return ConsumeResult.RETRY
            case 3:
                raise RetryLater(7)
            case 4:
                raise RetryLater(-1)
            case _:
                raise ValueError("no")

    reports = Reports()
    crew = pool(reports)
    crew.submit(delivery(listener, 6))
    levels = {int(message.body): level for message, level in reports.wait(6)}
    assert levels == {0: None, 1: None, 2: 0, 3: 7, 4: -1, 5: 0}
    assert crew.stop(SECONDS)


def test_in_order_a_failure_ends_the_run_and_it_says_so_once() -> None:
    def listener(message: ReceivedMessage) -> None:
        if message.body == b"2":
            raise ValueError("no")

    reports = Reports()
    crew = pool(reports)
    crew.submit(delivery(listener, 6, in_order=True))
    reports.wait(3)
    assert crew.stop(SECONDS)
    assert [(int(message.body), level) for message, level in reports.finished] == [
        (0, None),
        (1, None),
        (2, 0),
    ]
    assert reports.last == 1


@pytest.mark.parametrize("how", ["stopped", "restarted"])
def test_a_delivery_of_a_queue_that_is_gone_is_dropped_not_passed_around(how: str) -> None:
    """Workers invite each other to a delivery; they must not do so for ever when nobody may take from it."""
    called: list[bytes] = []
    dead = delivery(lambda message: called.append(message.body), 32)
    if how == "stopped":
        dead.held.is_stopped = True
    else:
        dead.held.restart(QueueOffset(100))
    reports = Reports()
    crew = pool(reports)
    submitted = []
    submit = crew.submit
    crew.submit = lambda one: (submitted.append(one), submit(one))[1]  # type: ignore[method-assign]
    crew.submit(dead)
    alive = delivery(lambda message: None, 5)
    crew.submit(alive)
    reports.wait(5)
    assert crew.stop(SECONDS)
    assert called == []
    assert submitted.count(dead) <= 6, "at most one invitation for each worker"


def test_stopping_waits_for_listeners_but_not_for_ever() -> None:
    began, may_end = threading.Event(), threading.Event()

    def listener(message: ReceivedMessage) -> None:
        began.set()
        may_end.wait(SECONDS)

    crew = pool(Reports())
    crew.submit(delivery(listener, 1))
    assert began.wait(SECONDS)
    assert not crew.stop(0.01)
    may_end.set()
    assert crew.stop(SECONDS)
    crew.submit(delivery(listener, 1))  # nobody is there; nothing happens
