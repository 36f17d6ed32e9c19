"""The messages of one queue that are in hand: pulled, and not yet dealt with.

The offset to commit is the lowest one in hand, so a crash repeats messages and never skips one.  What was
dealt with is a mark that whoever ran the listener has set (`actormq.kernels.received`): nothing is moved or
counted for a single message, and the marks are looked at where somebody wants to know.
Source of the limits: RocketMQ ProcessQueue.java; client.md §4.2, §4.3.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from actormq.client.received import RULES
from actormq.client.results import MessageQueue
from actormq.kernels.received import Batch, Gate, ReceivedMessage, cut, finish, gate_of, is_done
from actormq.message import QueueOffset

_REPORTS: Final = 8
"""Who waits for room hears of it about so often while what is in hand is worked off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLimits:
    """When to stop pulling until the listener has caught up.

    RocketMQ stops at 1,000 messages: a millisecond's work for a listener in a hurry, who would wait for every
    pull.  librdkafka, which such listeners know, keeps 100,000.
    """

    messages_max: int = 16_384
    bytes_max: int = 100 * 1024 * 1024
    """Of memory: a pull counts whole as long as one message of it is in hand."""
    span_max: int | None = 32_768
    """Highest minus lowest offset in hand: one stuck message must not let ever more pile up behind it."""


class Window:
    """Messages in hand, in the order of their offsets.  Loop thread."""

    def __init__(self, start: QueueOffset) -> None:
        """
        Args:
            start: where pulling begins; what lies before it is already committed.
        """
        self.gate = Gate()
        """What those who work on these messages are told."""
        self._next = start
        self._batches: deque[Batch] = deque()
        self._watched: tuple[Batch, int] | None = None
        self._watched_since_ms = 0

    def put(self, data: Any, queue: MessageQueue, tags: frozenset[str] | None = None) -> Batch:
        """Take the messages of a pull in hand.

        Args:
            data: its body.
            tags: only messages with one of these, letter by letter; None or empty: all.
        Returns:
            Those that were new (a repeated pull repeats its answer).
        Raises:
            PeerError: there is something else in `data`.
        """
        batch = cut(data, queue, RULES, self.gate, self._next, tags)
        self._next = QueueOffset(batch.next_offset)
        if batch.count:
            self._batches.append(batch)
        return batch

    def skip_to(self, queue_offset: QueueOffset) -> None:
        """Note that there is nothing for us before `queue_offset` (filtered out by the broker)."""
        self._next = max(self._next, queue_offset)

    # -- what became of messages

    def done(self, message: ReceivedMessage) -> bool:
        """Let go of a message that was consumed or given back; False when it was not in hand."""
        return gate_of(message) is self.gate and finish(message)

    def holds(self, message: ReceivedMessage) -> bool:
        return gate_of(message) is self.gate and not is_done(message)

    def _first(self) -> Batch | None:
        """Return the pull that holds the lowest message in hand; forget those before it."""
        while self._batches:
            batch = self._batches[0]
            if batch.first() < batch.count:
                return batch
            self._batches.popleft()
        return None

    @property
    def lowest(self) -> QueueOffset | None:
        """The lowest offset in hand."""
        batch = self._first()
        return None if batch is None else QueueOffset(batch.offset_of(batch.first()))

    @property
    def commit_offset(self) -> QueueOffset:
        """Everything before it was dealt with."""
        lowest = self.lowest
        return self._next if lowest is None else lowest

    def stuck(self, now_ms: int) -> tuple[ReceivedMessage, int] | None:
        """Return the message that holds the commit offset back, and for how long it has been seen with its
        listener; None when no listener has it.

        A message counts from the first look that found it there: nobody reads a clock for each message.
        """
        batch = self._first()
        place = None if batch is None else (batch, batch.first())
        if place is None or not place[0].is_taken(place[1]):
            self._watched = None
            return None
        if place != self._watched:
            self._watched, self._watched_since_ms = place, now_ms
        return place[0].message(place[1]), now_ms - self._watched_since_ms

    def watch_anew(self, now_ms: int) -> None:
        """Begin to count anew for the message that `stuck` returned."""
        self._watched_since_ms = now_ms

    # -- how much there is

    def __len__(self) -> int:
        """Return the number of messages in hand."""
        self._first()
        return sum(batch.left() for batch in self._batches)

    @property
    def bytes(self) -> int:
        """What the messages in hand take in memory."""
        self._first()
        return sum(batch.size for batch in self._batches if batch.first() < batch.count)

    @property
    def span(self) -> int:
        """Highest minus lowest offset in hand."""
        lowest = self.lowest
        return 0 if lowest is None else self._next - 1 - lowest

    def is_full(self, limits: WindowLimits) -> bool:
        """Return whether no more should be pulled for now."""
        return (
            len(self) >= limits.messages_max
            or self.bytes >= limits.bytes_max
            or (limits.span_max is not None and self.span > limits.span_max)
        )

    def has_room(self, limits: WindowLimits, workers: int) -> bool:
        """Return whether more may be pulled; if not, have the workers report when they have come further.

        A worker that has just finished the last message may not have seen the wish: it is looked once more.
        """
        self.gate.report_after = 0
        if not self.is_full(limits):
            return True
        self.gate.report_after = len(self) // (_REPORTS * workers) + 1
        return not self.is_full(limits)
