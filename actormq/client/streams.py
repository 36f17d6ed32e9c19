"""Taking messages in a loop instead of by a listener: each is acknowledged by whoever took it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from actormq.client.handing import Handing
from actormq.client.held import Delivery
from actormq.client.received import ReceivedMessage
from actormq.client.results import MessageQueue, RetryLater
from actormq.message import QueueOffset


class Delivered:
    """A message taken from a stream.

    ``with message.process(): …`` (or ``async with``) acknowledges it at the end; when the block raises, the
    message is delivered again later and the exception goes on, except `RetryLater`, which ends here.
    """

    __slots__ = ("_delivery", "_handing", "_is_settled", "message")

    def __init__(self, handing: Handing, delivery: Delivery, message: ReceivedMessage) -> None:
        self._handing = handing
        self._delivery = delivery
        self._is_settled = False
        self.message = message

    @property
    def body(self) -> bytes:
        return self.message.body

    @property
    def topic(self) -> str:
        return self.message.topic

    @property
    def tags(self) -> str | None:
        return self.message.tags

    @property
    def keys(self) -> list[str]:
        return self.message.keys

    @property
    def message_id(self) -> str:
        return self.message.message_id

    @property
    def queue(self) -> MessageQueue:
        queue: MessageQueue = self.message.queue
        return queue

    @property
    def queue_offset(self) -> QueueOffset:
        return QueueOffset(self.message.queue_offset)

    def ack(self) -> None:
        """Say that the message was dealt with; the second word on a message is ignored."""
        self._settle(None)

    def retry(self, delay_level: int = 0) -> None:
        """Ask for the message again later; see `RetryLater`."""
        self._settle(delay_level)

    def _settle(self, level: int | None) -> None:
        if not self._is_settled:
            self._is_settled = True
            self._handing.settle(self._delivery, self.message, level)

    def process(self) -> Self:
        """Return the context manager that settles this message."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self._settle(None)
            return False
        self._settle(error.delay_level if isinstance(error, RetryLater) else 0)
        return isinstance(error, RetryLater)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<Delivered {self.message!r}>"
