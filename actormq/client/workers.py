"""Running listeners: threads that take messages out of deliveries, one by one."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from actormq.client.held import Delivery, Finished
from actormq.client.results import ConsumeResult, RetryLater
from actormq.clock import Clock

log = logging.getLogger("actormq.client")

Report = Callable[[Delivery, list[Finished], bool], None]
REPORT_INTERVAL_NS: Final = 20_000_000
"""In order, quick listeners report once for many messages, slow ones after each."""


def level_of(result: ConsumeResult | None) -> int | None:
    """Return the delay level that a listener's return value means; None = consumed."""
    return 0 if result is ConsumeResult.RETRY else None


def level_of_outcome(delivery: Delivery, outcome: Any) -> int | None:
    """Return the delay level that what a listener returned, or the exception that it raised, means."""
    if isinstance(outcome, Exception):
        return level_of_failure(delivery, outcome)
    return level_of(outcome)


def level_of_failure(delivery: Delivery, error: Exception) -> int:
    """Return the delay level that what a listener raised means."""
    if isinstance(error, RetryLater):
        return error.delay_level
    log.error("a listener of %s raised; the message comes again", delivery.held.queue.topic, exc_info=error)
    return 0


class WorkerPool:
    """At most `workers` threads; one starts only when all the others are busy."""

    def __init__(self, workers: int, report: Report, clock: Clock, name: str) -> None:
        self._max = workers
        self._report = report
        self._clock = clock
        self._name = name
        self._waiting: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._lock = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._starting = 0
        self._free = 0
        """Workers without work, minus deliveries that wait for one."""
        self._is_stopped = False

    def submit(self, delivery: Delivery) -> None:
        """Have a delivery worked on; never blocks.  Any thread."""
        with self._lock:
            if self._is_stopped:
                return
            self._free -= 1
            must_start = self._free < 0 and self._has_room()
            if must_start:
                self._starting += 1
                self._free += 1
        if must_start:
            self._start_worker()
        self._waiting.put(delivery)

    def _has_room(self) -> bool:
        return len(self._threads) + self._starting < self._max

    def _start_worker(self) -> None:
        """Start a thread without holding the lock: starting waits for the thread to run."""
        thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        thread.start()
        with self._lock:
            self._threads.append(thread)
            self._starting -= 1
            self._lock.notify_all()

    def stop(self, timeout_s: float) -> bool:
        """End the threads after the message that each has in hand; False = some listener still runs."""
        with self._lock:
            self._is_stopped = True
            self._lock.wait_for(lambda: not self._starting)
            threads = list(self._threads)
        for _ in threads:
            self._waiting.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _work(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            if delivery.can_be_shared:
                self._invite(delivery)
            self._run(delivery)
            with self._lock:
                self._free += 1

    def _invite(self, delivery: Delivery) -> None:
        """Have one more worker look at a delivery, if one is to be had: listeners may be slow.

        Each helper invites the next one, as long as there are messages left.
        """
        with self._lock:
            has_help = self._free > 0 or self._has_room()
        if has_help and delivery.has_more:
            self.submit(delivery)

    def _run(self, delivery: Delivery) -> None:
        """Work on a delivery until nothing is left of it; what is done is marked there."""
        if delivery.in_order:
            self._run_in_order(delivery)
            return
        while (stopped := delivery.work()) is not None:
            message, outcome = stopped
            failed = [] if message is None else [(message, level_of_outcome(delivery, outcome))]
            self._report(delivery, failed, False)
        if delivery.is_awaited:
            self._report(delivery, [], True)

    def _run_in_order(self, delivery: Delivery) -> None:
        """Look at the lock before each message: it may run out."""
        finished: list[Finished] = []
        reported_ns = self._clock.monotonic_ns()
        while True:
            now_ns = self._clock.monotonic_ns()
            if finished and now_ns - reported_ns > REPORT_INTERVAL_NS:
                self._report(delivery, finished, False)
                finished, reported_ns = [], now_ns
            message = delivery.take(now_ns // 1_000_000)
            if message is None:
                break
            try:
                level = level_of(delivery.listener(message))
            except Exception as error:
                # The user's code: whatever it raises means "deliver again", and is logged.
                level = level_of_failure(delivery, error)
            finished.append((message, level))
            if level is not None:
                break
        self._report(delivery, finished, True)
