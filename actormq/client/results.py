"""What producers and consumers are handed: queues, send results, and what a listener may answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from actormq.message import QueueOffset, SendStatus


class MessageQueue(NamedTuple):
    """One queue of one topic on one broker."""

    topic: str
    broker_name: str
    queue_id: int


def queue_order(queue: MessageQueue) -> tuple[bytes, bytes, int]:
    """Return the sort key that every client of a group must share: Java's, by UTF-16 code units."""
    return text_order(queue.topic), text_order(queue.broker_name), queue.queue_id


def text_order(text: str) -> bytes:
    """Return the sort key of Java's ``String.compareTo``."""
    return text.encode("utf-16-be", "surrogatepass")


@dataclass(frozen=True, slots=True)
class SendResult:
    """A stored message.

    Attributes:
        status: SEND_OK, or what the broker could not yet guarantee (flushed, replicated).
        message_id: the key that the producer made (``UNIQ_KEY``).
        offset_message_id: the broker's own id: address and log offset; of a collected message perhaps empty,
            see `ProducerSettings.offset_message_ids`.
        queue_offset: its number in the queue.
    """

    status: SendStatus
    message_id: str
    offset_message_id: str
    queue: MessageQueue
    queue_offset: QueueOffset
    transaction_id: str = ""
    region: str = ""


class ConsumeResult(Enum):
    """What a listener says of a message; returning nothing means SUCCESS, raising means RETRY."""

    SUCCESS = "success"
    RETRY = "retry"


class RetryLater(Exception):
    """Raised by a listener: deliver this message again later.

    Attributes:
        delay_level: 1 to 18 of the broker's delays; 0 = the broker's choice (10 s, 30 s, 1 m, …);
            -1 = to the dead-letter topic now.
    """

    def __init__(self, delay_level: int = 0) -> None:
        super().__init__(f"deliver again (delay level {delay_level})")
        self.delay_level = delay_level


class MessageModel(Enum):
    """Who of a group receives a message; the values are RocketMQ's names."""

    CLUSTERING = "CLUSTERING"
    """One consumer of the group."""
    BROADCASTING = "BROADCASTING"
    """Every consumer of the group; offsets are kept in a local file, failures are not retried."""


class StartFrom(Enum):
    """Where a group begins in a queue for which it has no offset yet; the values are RocketMQ's names."""

    LAST = "CONSUME_FROM_LAST_OFFSET"
    FIRST = "CONSUME_FROM_FIRST_OFFSET"
    TIMESTAMP = "CONSUME_FROM_TIMESTAMP"
