"""Collecting messages into batches under a bounded window; what became of each is read from its batch.

A *lane* is what may share a request: one topic, and one queue where the caller named one.  A lane with a
named queue has one request in flight, so its messages stay in order even when a request is repeated.  While
requests are in flight the next batch grows: batches become large by themselves when the broker is busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from actormq.client.messages import UNIQUE_KEY_BYTES
from actormq.client.results import MessageQueue, SendResult
from actormq.errors import ClientError, ConfigError
from actormq.message import QueueOffset, SendStatus

ITEM_OVERHEAD_BYTES = 22 + UNIQUE_KEY_BYTES
"""What a batch adds to a message's body and properties (wire.md §5.3), its unique key included."""

Item = tuple[int, bytes, bytes]
"""Flag, body, property string without the unique key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Bounds of the window; a single message may exceed `batch_bytes`, not `window_bytes` (unless alone)."""

    batch_bytes: int = 64 * 1024
    batch_messages: int = 1_000
    window_bytes: int = 32 * 1024 * 1024
    window_messages: int = 100_000
    in_flight_per_topic: int = 4
    linger_ms: int = 0
    """How long a batch that is not full waits for more; 0 = until the sender next looks."""

    def __post_init__(self) -> None:
        if min(self.batch_bytes, self.batch_messages, self.in_flight_per_topic) < 1 or self.linger_ms < 0:
            raise ConfigError(
                "batch_bytes, batch_messages and in_flight_per_topic are at least 1, linger_ms 0"
            )
        if self.window_bytes < self.batch_bytes or self.window_messages < self.batch_messages:
            raise ConfigError(
                "the window must hold at least one batch: raise window_bytes or window_messages"
            )


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """A stored batch: one status for all, consecutive queue offsets."""

    status: SendStatus
    queue: MessageQueue
    first_queue_offset: QueueOffset
    offset_message_ids: list[str]
    message_ids: list[str]
    region: str = ""

    def result(self, index: int) -> SendResult:
        """Return what became of the message at `index`."""
        ids = self.offset_message_ids
        return SendResult(
            self.status,
            self.message_ids[index],
            ids[index] if index < len(ids) else "",
            self.queue,
            QueueOffset(self.first_queue_offset + index),
            self.message_ids[index],
            self.region,
        )


class Batch:
    """Messages that travel and end together.

    `complete` and `add_done_callback` may meet on two threads: every callback runs exactly once,
    because taking it out of the deque is atomic and both sides take.
    """

    __slots__ = ("_callbacks", "born_ms", "bytes", "items", "lane", "outcome")

    def __init__(self, lane: Lane, born_ms: int) -> None:
        self.lane = lane
        self.items: list[Item] = []
        self.bytes = 0
        self.born_ms = born_ms
        self.outcome: BatchOutcome | ClientError | None = None
        self._callbacks: deque[Callable[[], None]] = deque()

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the outcome is known; at once when it is."""
        self._callbacks.append(callback)
        if self.outcome is not None:
            self._call_back()

    def complete(self, outcome: BatchOutcome | ClientError) -> None:
        self.outcome = outcome
        self._call_back()

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:
                return
            callback()


class Lane:
    """Where the messages for one topic (and perhaps one queue) wait."""

    __slots__ = ("full", "in_flight", "in_flight_max", "key", "open", "queue", "topic", "wait_stored")

    def __init__(self, key: LaneKey, in_flight_max: int) -> None:
        self.key = key
        self.topic, self.queue, self.wait_stored = key
        self.in_flight_max = in_flight_max
        self.in_flight = 0
        self.open: Batch | None = None
        self.full: deque[Batch] = deque()


LaneKey = tuple[str, MessageQueue | None, bool]


class Accumulator:
    """The window: everything appended whose outcome is not known yet."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self.messages = 0
        self.bytes = 0
        self._lanes: dict[LaneKey, Lane] = {}
        self._waiting: dict[LaneKey, Lane] = {}

    def append(
        self, key: LaneKey, flag: int, body: bytes, properties: bytes, now_ms: int, *, alone: bool = False
    ) -> tuple[Batch, int] | None:
        """Add a message; return its batch and its place in it, or None when the window is full.

        Args:
            alone: the message cannot share a batch (it is delayed).
        """
        limits = self.limits
        size = len(body) + len(properties) + ITEM_OVERHEAD_BYTES
        if not self.has_room(size):
            return None
        lane = self._lanes.get(key) or self._new_lane(key)
        batch = lane.open
        if batch is not None and (alone or batch.bytes + size > limits.batch_bytes):
            lane.full.append(batch)
            batch = None
        if batch is None:
            batch = lane.open = Batch(lane, now_ms)
            self._waiting[key] = lane
        batch.items.append((flag, body, properties))
        batch.bytes += size
        self.messages += 1
        self.bytes += size
        place = len(batch.items) - 1
        if alone or place + 1 >= limits.batch_messages or batch.bytes >= limits.batch_bytes:
            lane.full.append(batch)
            lane.open = None
        return batch, place

    @staticmethod
    def is_news(batch: Batch, place: int) -> bool:
        """Return whether the message just appended at `place` gave `ready` something new to look at."""
        lane = batch.lane
        return lane.in_flight < lane.in_flight_max and (place == 0 or lane.open is not batch)

    def _new_lane(self, key: LaneKey) -> Lane:
        lane = Lane(key, 1 if key[1] is not None else self.limits.in_flight_per_topic)
        self._lanes[key] = lane
        return lane

    def ready(self, now_ms: int, *, flush: bool = False) -> list[Batch]:
        """Take out the batches that may be sent now: full or old enough, and their lane not too busy.

        Args:
            flush: take batches that are neither full nor old, too.
        """
        batches = []
        for key, lane in list(self._waiting.items()):
            while lane.in_flight < lane.in_flight_max:
                batch = self._next(lane, now_ms, flush)
                if batch is None:
                    break
                lane.in_flight += 1
                batches.append(batch)
            if not lane.full and lane.open is None:
                del self._waiting[key]
        return batches

    def _next(self, lane: Lane, now_ms: int, flush: bool) -> Batch | None:
        if lane.full:
            return lane.full.popleft()
        batch = lane.open
        if batch is None or not (flush or now_ms - batch.born_ms >= self.limits.linger_ms):
            return None
        lane.open = None
        return batch

    def due_at_ms(self) -> int | None:
        """Return when `ready` next has something that only time must bring; None when nothing waits so."""
        times = [
            lane.open.born_ms + self.limits.linger_ms
            for lane in self._waiting.values()
            if lane.open is not None and lane.in_flight < lane.in_flight_max
        ]
        return min(times, default=None)

    def finished(self, batch: Batch) -> None:
        """Give back the room of a batch that was taken by `ready` and now has its outcome."""
        lane = batch.lane
        lane.in_flight -= 1
        self.messages -= len(batch.items)
        self.bytes -= batch.bytes
        if not lane.in_flight and not lane.full and lane.open is None:
            self._lanes.pop(lane.key, None)

    def has_room(self, size: int) -> bool:
        """Return whether a message of `size` bytes fits; one that is alone always does."""
        if not self.messages:
            return True
        limits = self.limits
        return self.messages < limits.window_messages and self.bytes + size <= limits.window_bytes

    def is_empty(self) -> bool:
        return not self.messages

    def abandon(self, error: ClientError) -> None:
        """Let go of everything that waits and was not taken by `ready`; its outcome is `error`."""
        for lane in self._waiting.values():
            for batch in (*lane.full, *([lane.open] if lane.open else [])):
                self.messages -= len(batch.items)
                self.bytes -= batch.bytes
                batch.complete(error)
            lane.full.clear()
            lane.open = None
        self._waiting.clear()
