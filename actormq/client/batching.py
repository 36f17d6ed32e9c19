"""Collecting messages into batches under a bounded window; what became of each is read from its batch.

A *lane* is what may share a request: one topic, and one queue where the caller named one.  A lane with a
named queue has one request in flight, so its messages stay in order even when a request is repeated.  While
requests are in flight the next batch grows: batches become large by themselves when the broker is busy.
How a message gets into a batch: `actormq.kernels.collecting`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final

from actormq.client.futures import SendFuture
from actormq.client.identifiers import KEYS_A_MILLISECOND, KeyRun, UniqueKeys
from actormq.client.messages import UNIQUE_KEY_BYTES
from actormq.client.requests import Stored
from actormq.client.results import MessageQueue, SendResult
from actormq.errors import ClientError, ConfigError, RequestTimeout
from actormq.kernels import collecting as kernel
from actormq.message import BODY_BYTES_MAX

log = logging.getLogger("actormq.client")

ITEM_OVERHEAD_BYTES: Final = 22 + UNIQUE_KEY_BYTES
"""What a batch adds to a message's body and properties (wire.md §5.3), its unique key included."""

_LANES_KEPT: Final = 1_024
"""Lanes that are not used are let go when there are more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Bounds of the window; a single message may exceed `batch_bytes`, not `window_bytes` (unless alone)."""

    batch_bytes: int = 256 * 1024
    batch_messages: int = 4_096
    window_bytes: int = 32 * 1024 * 1024
    window_messages: int = 100_000
    in_flight_per_topic: int = 16
    """Requests under way for a topic.  Only full batches take the last three quarters of them."""
    linger_ms: int = 0
    """How long a batch that is not full waits for more; 0 = until the sender next looks."""

    def __post_init__(self) -> None:
        if min(self.batch_bytes, self.batch_messages, self.in_flight_per_topic) < 1 or self.linger_ms < 0:
            raise ConfigError(
                "batch_bytes, batch_messages and in_flight_per_topic are at least 1, linger_ms 0"
            )
        if self.batch_messages >= KEYS_A_MILLISECOND or self.batch_bytes > BODY_BYTES_MAX:
            raise ConfigError(f"a batch has at most 65,535 messages and {BODY_BYTES_MAX} bytes")
        if self.window_bytes < self.batch_bytes or self.window_messages < self.batch_messages:
            raise ConfigError(
                "the window must hold at least one batch: raise window_bytes or window_messages"
            )


class Batch(kernel.Batch):
    """Messages that travel and end together."""

    __slots__ = ("_callbacks", "born_ms", "keys", "lane", "outcome")

    def __init__(self, lane: Lane, size: int, keys: KeyRun, born_ms: int) -> None:
        super().__init__(size, b"UNIQ_KEY\x01" + keys.prefix.encode(), keys.first)
        self.lane = lane
        self.keys = keys
        self.born_ms = born_ms
        self.outcome: Stored | ClientError | None = None
        self._callbacks: deque[Callable[[], None]] = deque()

    def complete(self, outcome: Stored | ClientError) -> bool:
        """Make the outcome known; return whether somebody wants to be called back."""
        self.outcome = outcome
        self.settle(None if isinstance(outcome, Stored) else outcome)
        return bool(self._callbacks)

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the outcome is known; at once when it is."""
        self._callbacks.append(callback)
        if self.is_done:
            self.call_all_back()

    def call_all_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            callback()

    # -- for the futures

    def wait(self, timeout_s: float | None) -> None:
        """Return when the outcome is known.

        Raises:
            RequestTimeout: `timeout_s` passed.
        """
        if self.is_done:
            return
        known = threading.Event()
        self.add_done_callback(known.set)
        if not known.wait(timeout_s):
            raise RequestTimeout(f"the message is still on its way after {timeout_s} s")

    def result_of(self, index: int, timeout_s: float | None) -> SendResult:
        """Return what became of the message at `index`.

        Raises:
            ClientError: what went wrong.
            RequestTimeout: `timeout_s` passed.
        """
        self.wait(timeout_s)
        if isinstance(self.outcome, Stored):
            return self.outcome.result_in_batch(self.unique_key(index), index)
        assert self.outcome is not None
        raise self.outcome

    def call_back(self, callback: Callable[[SendFuture], None], future: SendFuture) -> None:
        """Call `callback` with `future` once the outcome is known; what it raises is logged."""

        def call() -> None:
            try:
                callback(future)
            except Exception:
                # The user's code, not ours: it must not end the client's thread.
                log.exception("a send callback raised")

        self.add_done_callback(call)

    def awaited(self) -> Generator[None, None, None]:
        """Wait on asyncio until the outcome is known."""
        if not self.is_done:
            yield from _outcome_known(self).__await__()


async def _outcome_known(batch: Batch) -> None:
    import asyncio  # only whoever awaits a future needs it

    loop = asyncio.get_running_loop()
    known = asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(known.set)

    batch.add_done_callback(tell)
    await known.wait()


LaneKey = tuple[str, MessageQueue | None, bool]


class Lane(kernel.Lane):
    """Where the messages for one topic (and perhaps one queue) wait."""

    __slots__ = (
        "full",
        "in_flight",
        "in_flight_max",
        "key",
        "queue",
        "topic",
        "wait_stored",
        "was_begun",
        "young_max",
    )

    open: Batch | None

    def __init__(self, key: LaneKey, in_flight_max: int) -> None:
        super().__init__()
        self.key = key
        self.topic, self.queue, self.wait_stored = key
        self.in_flight_max = in_flight_max
        self.young_max = max(1, in_flight_max // 4)
        self.in_flight = 0
        self.full: deque[Batch] = deque()
        self.was_begun = False


class Accumulator(kernel.Window):
    """The window: everything appended whose outcome is not known yet.

    Its lock is held by whoever calls, but for the quick ways in.
    """

    def __init__(self, limits: BatchLimits, keys: UniqueKeys, body_bytes_max: int = BODY_BYTES_MAX) -> None:
        """
        Args:
            body_bytes_max: of bodies that take the quick way in.
        """
        super().__init__(
            messages_max=limits.window_messages,
            bytes_max=limits.window_bytes,
            batch_messages=limits.batch_messages,
            batch_bytes=limits.batch_bytes,
            body_bytes_max=body_bytes_max,
        )
        self.limits = limits
        self._keys = keys
        self._by_key: dict[LaneKey, Lane] = {}
        self._waiting: dict[LaneKey, Lane] = {}

    def lane(self, key: LaneKey) -> Lane:
        """Return the lane of such messages."""
        lane = self._by_key.get(key)
        if lane is None:
            topic, queue, wait_stored = key
            lane = Lane(key, 1 if queue is not None else self.limits.in_flight_per_topic)
            self._by_key[key] = lane
            if wait_stored and queue is None:
                self.know(topic, lane)
            elif wait_stored:
                self.know_queue(topic, queue, lane)
        return lane

    def append(
        self,
        lane: Lane,
        flag: int,
        body: bytes,
        properties: bytes,
        now_ms: int,
        wall_ms: int,
        *,
        alone: bool = False,
    ) -> SendFuture | None:
        """Add a message; return its future, or None when the window is full.

        Args:
            now_ms, wall_ms: on the monotonic clock, and on the wall's.
            alone: the message cannot share a batch (it is delayed).
        """
        size = len(body) + len(properties) + ITEM_OVERHEAD_BYTES
        if alone:
            self._close(lane)
        future: SendFuture | None = self.add(lane, flag, body, properties)
        while future is None:
            # The quick way in may have filled what was empty a moment ago.
            if not self.has_room(size):
                return None
            self._begin(lane, size, alone, now_ms, wall_ms)
            future = self.add(lane, flag, body, properties)
        if alone or (lane.open is not None and self.is_full(lane.open)):
            self._close(lane)
        return future

    def _begin(self, lane: Lane, size: int, alone: bool, now_ms: int, wall_ms: int) -> None:
        self._close(lane)
        limits = self.limits
        keys = self._keys.reserve(wall_ms, 1 if alone else limits.batch_messages)
        lane.open = Batch(lane, size if alone else max(limits.batch_bytes, size), keys, now_ms)
        lane.was_begun = True
        self._waiting[lane.key] = lane

    def _close(self, lane: Lane) -> None:
        batch, lane.open = lane.open, None
        if batch is not None and batch.count:
            lane.full.append(batch)
            self._waiting[lane.key] = lane
            self._keys.give_back(batch.keys, batch.count)

    def take_full(self, lane: Lane) -> Batch | None:
        """Take out a batch that is full, if one of this lane may be sent now."""
        if not lane.full or lane.in_flight >= lane.in_flight_max:
            return None
        lane.in_flight += 1
        return lane.full.popleft()

    def is_first(self, lane: Lane) -> bool:
        """Return whether what was appended has found its lane idle: it need not wait for anything."""
        return (
            not lane.in_flight
            and not lane.full
            and not self.limits.linger_ms
            and lane.open is not None
            and lane.open.count == 1
        )

    def take_first(self, lane: Lane) -> Batch:
        """Take out the message that found its lane idle."""
        self._close(lane)
        lane.in_flight += 1
        return lane.full.popleft()

    def ready(self, now_ms: int, *, flush: bool = False) -> list[Batch]:
        """Take out the batches that may be sent now: full or old enough, and their lane not too busy.

        Args:
            flush: take batches that are neither full nor old, too.
        """
        batches = []
        for key, lane in list(self._waiting.items()):
            while (batch := self.take_full(lane)) is not None:
                batches.append(batch)
            if not lane.full and self._may_leave(lane, now_ms, flush):
                self._close(lane)
                batches.append(lane.full.popleft())
                lane.in_flight += 1
            if not lane.full and lane.open is None:
                del self._waiting[key]
        return batches

    def _may_leave(self, lane: Lane, now_ms: int, flush: bool) -> bool:
        batch = lane.open
        if batch is None or not batch.count:
            return False
        if flush:
            return lane.in_flight < lane.in_flight_max
        return lane.in_flight < lane.young_max and now_ms - batch.born_ms >= self.limits.linger_ms

    def due_at_ms(self) -> int | None:
        """Return when `ready` next has something that only time must bring; None when nothing waits so."""
        times = [
            lane.open.born_ms + self.limits.linger_ms
            for lane in self._waiting.values()
            if lane.open is not None and lane.in_flight < lane.young_max
        ]
        return min(times, default=None)

    def is_news(self, lane: Lane) -> bool:
        """Return whether what was appended gave `ready` something new to look at; asked once."""
        was_begun, lane.was_begun = lane.was_begun, False
        return (was_begun or bool(lane.full)) and self.is_waiting(lane)

    @staticmethod
    def is_waiting(lane: Lane) -> bool:
        """Return whether `ready` may find something in a lane, now or when it is old enough."""
        if lane.full:
            return lane.in_flight < lane.in_flight_max
        return lane.open is not None and lane.open.count > 0 and lane.in_flight < lane.young_max

    def finished(self, batch: Batch) -> None:
        """Give back the room of a batch that was taken and now has its outcome."""
        lane = batch.lane
        lane.in_flight -= 1
        self.leave(batch)
        if len(self._by_key) > _LANES_KEPT and not lane.in_flight and not lane.full and lane.open is None:
            del self._by_key[lane.key]
            if lane.wait_stored:
                self.forget(lane.topic, lane.queue)

    def has_ease(self) -> bool:
        """Return whether there is room for more than a few: whoever had to wait goes on for a while."""
        limits = self.limits
        return not self.messages or (
            self.messages <= limits.window_messages - limits.window_messages // 8 - 1
            and self.held_bytes <= limits.window_bytes - limits.window_bytes // 8
        )

    def is_empty(self) -> bool:
        return not self.messages

    def abandon(self) -> list[Batch]:
        """Take out everything that waits and was not taken; refuse the quick way in from now on."""
        self.forget()
        batches: list[Batch] = []
        for lane in self._waiting.values():
            self._close(lane)
            batches += lane.full
            lane.full.clear()
        for batch in batches:
            self.leave(batch)
        self._waiting.clear()
        return batches
