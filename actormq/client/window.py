"""The messages of one queue that are in hand: pulled, and not yet dealt with.

The offset to commit is the lowest one in hand, so a crash repeats messages and never skips one.
Source of the limits: RocketMQ ProcessQueue.java; client.md §4.2, §4.3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from actormq.client.messages import ReceivedMessage
from actormq.message import QueueOffset


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLimits:
    """When to stop pulling until the listener has caught up."""

    messages_max: int = 1_000
    bytes_max: int = 100 * 1024 * 1024
    span_max: int | None = 2_000
    """Highest minus lowest offset in hand: one stuck message must not let thousands pile up behind it."""


class Window:
    """Messages in hand, in the order of their offsets."""

    def __init__(self, start: QueueOffset) -> None:
        """
        Args:
            start: where pulling begins; what lies before it is already committed.
        """
        self._next = start
        self._order: deque[QueueOffset] = deque()
        self._in_hand: dict[QueueOffset, ReceivedMessage] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._in_hand)

    def put(self, messages: Iterable[ReceivedMessage]) -> list[ReceivedMessage]:
        """Take messages in hand; return those that were new (a repeated pull repeats its answer)."""
        new = []
        for message in messages:
            if message.queue_offset >= self._next:
                self._next = QueueOffset(message.queue_offset + 1)
                self._order.append(message.queue_offset)
                self._in_hand[message.queue_offset] = message
                self.bytes += message.stored_bytes
                new.append(message)
        return new

    def skip_to(self, queue_offset: QueueOffset) -> None:
        """Note that there is nothing for us before `queue_offset` (filtered out by the broker)."""
        self._next = max(self._next, queue_offset)

    def done(self, message: ReceivedMessage) -> bool:
        """Let go of a message that was consumed or given back; False when it was not in hand."""
        if self._in_hand.get(message.queue_offset) is not message:
            return False
        del self._in_hand[message.queue_offset]
        self.bytes -= message.stored_bytes
        while self._order and self._order[0] not in self._in_hand:
            self._order.popleft()
        return True

    def holds(self, message: ReceivedMessage) -> bool:
        return self._in_hand.get(message.queue_offset) is message

    @property
    def commit_offset(self) -> QueueOffset:
        """Everything before it was dealt with."""
        return self._order[0] if self._order else self._next

    @property
    def span(self) -> int:
        """Highest minus lowest offset in hand."""
        return self._next - 1 - self._order[0] if self._order else 0

    def first(self) -> ReceivedMessage | None:
        """Return the message that holds the commit offset back."""
        return self._in_hand[self._order[0]] if self._order else None

    def all(self) -> list[ReceivedMessage]:
        """Return what is in hand, lowest offset first."""
        return [self._in_hand[offset] for offset in self._order if offset in self._in_hand]

    def is_full(self, limits: WindowLimits) -> bool:
        """Return whether no more should be pulled for now."""
        return (
            len(self._in_hand) >= limits.messages_max
            or self.bytes >= limits.bytes_max
            or (limits.span_max is not None and self.span > limits.span_max)
        )
