"""The pool of threads that run listeners."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from unit.client.fakes import encode_record

from actormq.client.held import Delivery, Finished, HeldQueue
from actormq.client.received import ReceivedMessage
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
        self.calls = 0
        self._changed = threading.Condition()

    def __call__(self, delivery: Delivery, finished: list[Finished], is_last: bool) -> None:
        with self._changed:
            self.finished += finished
            self.last += is_last
            self.calls += 1
            self._changed.notify_all()

    def wait(self, count: int) -> list[Finished]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.finished) >= count, SECONDS)
            return list(self.finished)

    def wait_last(self) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.last > 0, SECONDS)

    def wait_until_done(self, *deliveries: Delivery) -> None:
        """Wait until the windows of all have nothing in hand: only marks say so."""
        for one in deliveries:
            one.window.gate.report_after = 1
        with self._changed:
            assert self._changed.wait_for(lambda: not any(len(one.window) for one in deliveries), SECONDS)


def delivery(listener: Callable[[ReceivedMessage], Any], count: int, *, in_order: bool = False) -> Delivery:
    data = b"".join(encode_record("t", b"%d" % index, queue_offset=index) for index in range(count))
    held = HeldQueue(QUEUE, QueueOffset(0), persisted=None)
    return Delivery(held, held.window.put(data, QUEUE), listener, in_order=in_order)


def pool(reports: Any, workers: int = 4) -> WorkerPool:
    return WorkerPool(workers, reports, SystemClock(), "test-pool")


def test_every_message_is_run_once_by_however_many_workers() -> None:
    reports, lock, seen = Reports(), threading.Lock(), []

    def listener(message: ReceivedMessage) -> None:
        with lock:
            seen.append(message.queue_offset)

    crew = pool(reports, workers=8)
    deliveries = [delivery(listener, 32) for _ in range(50)]
    for one in deliveries:
        crew.submit(one)
    reports.wait_until_done(*deliveries)
    assert crew.stop(SECONDS)
    assert sorted(seen) == sorted(list(range(32)) * 50)
    assert reports.finished == [], "what is consumed is marked, not reported"
    assert {one.window.commit_offset for one in deliveries} == {32}


def test_nobody_is_told_of_what_nobody_waits_for() -> None:
    """A report wakes the client's thread: once when room is wanted, not for each pull."""
    reports, ended = Reports(), threading.Event()
    crew = pool(reports, workers=1)
    for _ in range(5):
        crew.submit(delivery(lambda message: None, 32))
    crew.submit(delivery(lambda message: ended.set(), 1))
    assert ended.wait(SECONDS)
    assert crew.stop(SECONDS)
    assert reports.calls == 0


def test_who_waits_for_room_hears_of_it_while_the_work_goes_on() -> None:
    """After as many messages as asked for, and once more at the end."""
    reports = Reports()
    crew = pool(reports, workers=1)
    waited_for = delivery(lambda message: None, 32)
    waited_for.window.gate.report_after = 10
    crew.submit(waited_for)
    assert reports.wait_last()
    assert crew.stop(SECONDS)
    assert (reports.calls, reports.last, len(waited_for.window)) == (4, 1, 0)


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
    submitted = delivery(listener, 6)
    crew.submit(submitted)
    levels = {int(message.body): level for message, level in reports.wait(4)}
    assert levels == {2: 0, 3: 7, 4: -1, 5: 0}
    assert crew.stop(SECONDS)
    assert (submitted.window.commit_offset, len(submitted.window)) == (2, 4)


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
        dead.held.stop()
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
    reports.wait_until_done(alive)
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


def test_who_waits_for_room_is_told_by_a_loop_that_settles_one_by_one() -> None:
    """After as many as asked for, and after each once all were taken: the last may be any of them."""
    taken = delivery(lambda message: None, 10)
    assert [taken.must_report() for _ in range(3)] == [False] * 3, "nobody waits"
    taken.window.gate.report_after = 3
    messages = [taken.take_any() for _ in range(9)]
    assert all(messages)
    assert [taken.must_report() for _ in range(5)] == [True, False, False, True, False]
    assert taken.take_any()
    assert not taken.take_any()
    assert [taken.must_report() for _ in range(2)] == [True, True]
