"""What may be sent, where it goes and what the producer is told: rules shared by all who append.

The writer answers each request with a `PutStatus`; flush and replica waits are the gateway's comparison
with the positions page, so they are no put status here.
Source: RocketMQ AbstractSendMessageProcessor.java, SendMessageProcessor.java, HookUtils.java,
TopicValidator.java.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from random import Random
from typing import Final

from actormq.broker.tables import GroupEntry, TopicEntry
from actormq.errors import RequestError, ResponseCode
from actormq.message import (
    DLQ_PREFIX,
    GROUP_LENGTH_MAX,
    NOT_SENDABLE_TOPICS,
    PROPERTIES_BYTES_MAX,
    RETRY_PREFIX,
    RETRY_TOPIC_LENGTH_MAX,
    TOPIC_LENGTH_MAX,
    Permission,
)

FAQ: Final = "https://rocketmq.apache.org/docs/bestPractice/06FAQ"
_ILLEGAL: Final = re.compile(r"[^%|a-zA-Z0-9_-]")
_SHOWN_MAX: Final = 300
"""Of an illegal name in a remark: any legal one is shorter."""
QUEUE_CHOICE_BELOW: Final = 99_999_999
"""RocketMQ draws below this number before it takes the remainder; kept so that spreads compare."""


class PutStatus(IntEnum):
    """What the writer says of one append request."""

    PUT_OK = 0
    MESSAGE_ILLEGAL = 1
    PROPERTIES_SIZE_EXCEEDED = 2
    SERVICE_NOT_AVAILABLE = 3
    CREATE_MAPPED_FILE_FAILED = 4
    TOPIC_GONE = 5
    """The row's incarnation is another one: the topic was deleted (and perhaps made again) meanwhile."""
    OS_PAGE_CACHE_BUSY = 6


PUT_RESPONSES: Final[dict[PutStatus, tuple[ResponseCode, str | None]]] = {
    PutStatus.PUT_OK: (ResponseCode.SUCCESS, None),
    PutStatus.MESSAGE_ILLEGAL: (
        ResponseCode.MESSAGE_ILLEGAL,
        "the message is illegal, maybe msg body or properties length not matched. "
        "msg body length limit 4194304B.",
    ),
    PutStatus.PROPERTIES_SIZE_EXCEEDED: (
        ResponseCode.MESSAGE_ILLEGAL,
        "the message is illegal, maybe msg properties length limit 32KB.",
    ),
    PutStatus.SERVICE_NOT_AVAILABLE: (
        ResponseCode.SERVICE_NOT_AVAILABLE,
        "service not available now. It may be caused by one of the following reasons: "
        "the broker's disk is full [{disk}], messages are put to the slave, "
        "message store has been shut down, etc.",
    ),
    PutStatus.CREATE_MAPPED_FILE_FAILED: (
        ResponseCode.SYSTEM_ERROR,
        "create mapped file failed, server is busy or broken.",
    ),
    PutStatus.TOPIC_GONE: (ResponseCode.TOPIC_NOT_EXIST, "the topic was deleted while the message waited"),
    PutStatus.OS_PAGE_CACHE_BUSY: (
        ResponseCode.SYSTEM_BUSY,
        "[PC_SYNCHRONIZED]broker busy, start flow control for a while",
    ),
}
assert set(PUT_RESPONSES) == set(PutStatus)


def put_response(status: PutStatus, disk_percent: int = 0) -> tuple[ResponseCode, str | None]:
    """Return the response code and remark that answer `status`.

    Args:
        disk_percent: how full the disk is; log, queues and index lie on one.
    """
    code, remark = PUT_RESPONSES[status]
    if status is PutStatus.SERVICE_NOT_AVAILABLE and remark is not None:
        disk = " ".join(f"{part}: {disk_percent / 100:5.2f}" for part in ("CL", "CQ", "INDEX"))
        remark = remark.format(disk=disk)
    return code, remark


def name_fault(kind: str, name: str, length_max: int) -> str | None:
    """Return what is wrong with the name of a `kind` ("topic" or "group"), or None; RocketMQ's words."""
    if not name or name.isspace():
        return f"The specified {kind} is blank."
    shown = name[:_SHOWN_MAX]
    if _ILLEGAL.search(name):
        return f"The specified {kind}: {shown}, contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$"
    if len(name) > length_max:
        return f"The specified {kind}: {shown}, is longer than {kind} max length: {length_max}"
    return None


def topic_length_max(topic: str) -> int:
    """Return how long the name may be: retry and dead-letter topics carry a group's name."""
    return RETRY_TOPIC_LENGTH_MAX if topic.startswith((RETRY_PREFIX, DLQ_PREFIX)) else TOPIC_LENGTH_MAX


def check_topic_name(topic: str) -> None:
    """Raise RequestError(INVALID_PARAMETER) if `topic` is no legal name."""
    if fault := name_fault("topic", topic, topic_length_max(topic)):
        raise RequestError(ResponseCode.INVALID_PARAMETER, fault)


def check_group_name(group: str) -> None:
    """Raise RequestError(INVALID_PARAMETER) if `group` is no legal name."""
    if fault := group_fault(group):
        raise RequestError(ResponseCode.INVALID_PARAMETER, fault)


def group_fault(group: str) -> str | None:
    """Return what is wrong with a group's name, or None."""
    return name_fault("group", group, GROUP_LENGTH_MAX)


def check_send_topic(topic: str, entry: TopicEntry | None, broker_permission: int) -> None:
    """Refuse what no topic configuration can allow; the order of the checks is RocketMQ's.

    Raises: RequestError with NO_PERMISSION or INVALID_PARAMETER.
    """
    if entry is not None and entry.order and not broker_permission & Permission.WRITE:
        raise RequestError(ResponseCode.NO_PERMISSION, "the broker sending message is forbidden")
    if entry is None:
        check_topic_name(topic)
    if topic in NOT_SENDABLE_TOPICS:
        raise RequestError(ResponseCode.NO_PERMISSION, f"Sending message to topic[{topic}] is forbidden.")


def topic_missing(topic: str) -> RequestError:
    """Return the answer to a send whose topic neither exists nor may be created."""
    return RequestError(
        ResponseCode.TOPIC_NOT_EXIST,
        f"topic[{topic}] not exist, apply first please!\nSee {FAQ} for further details.",
    )


def group_missing(group: str) -> RequestError:
    """Return the answer to a request whose consumer group does not exist."""
    return RequestError(
        ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
        f"subscription group [{group}] does not exist, See {FAQ} for further details.",
    )


def choose_queue(entry: TopicEntry, queue_id: int, random: Random) -> int:
    """Return the queue that a send goes to; a negative `queue_id` leaves the choice to the broker.

    Raises: RequestError(INVALID_PARAMETER) for a queue that the topic does not have.
    """
    if queue_id >= max(entry.read_queues, entry.write_queues):
        raise RequestError(
            ResponseCode.INVALID_PARAMETER,
            f"request queueId[{queue_id}] is illegal, topic[{entry.name}] has {entry.read_queues} "
            f"read queues and {entry.write_queues} write queues",
        )
    if queue_id >= 0:
        return queue_id
    if entry.write_queues < 1:
        raise RequestError(ResponseCode.INVALID_PARAMETER, f"topic[{entry.name}] has no write queue")
    return random.randrange(QUEUE_CHOICE_BELOW) % entry.write_queues


def message_status(topic: str, body_bytes: int, properties_bytes: int, body_bytes_max: int) -> PutStatus:
    """Return PUT_OK, or why the store would refuse a message of these sizes."""
    topic_bytes = len(topic.encode())
    if topic_bytes > TOPIC_LENGTH_MAX and not topic.startswith(RETRY_PREFIX):
        return PutStatus.MESSAGE_ILLEGAL
    if topic_bytes > RETRY_TOPIC_LENGTH_MAX or body_bytes < 1:
        return PutStatus.MESSAGE_ILLEGAL
    if properties_bytes > PROPERTIES_BYTES_MAX:
        return PutStatus.PROPERTIES_SIZE_EXCEEDED
    return PutStatus.MESSAGE_ILLEGAL if body_bytes > body_bytes_max else PutStatus.PUT_OK


@dataclass(frozen=True, slots=True)
class RetrySend:
    """Where a message that its consumer sends to ``%RETRY%<group>`` itself really goes."""

    topic: str
    dead: bool


def retry_send(
    topic: str, group: GroupEntry | None, reconsume_times: int, times_max: int | None
) -> RetrySend:
    """Decide on a direct send to a retry topic (the client's way when send-back failed).

    Args:
        topic: starts with ``%RETRY%``.
        times_max: the header's maxReconsumeTimes, None when absent or the client is older than 3.4.9.
    Raises: RequestError(SUBSCRIPTION_GROUP_NOT_EXIST).
    Note: more than the maximum is dead here; in send-back (`actormq.broker.retry`) reaching it is.
    """
    name = topic[len(RETRY_PREFIX) :]
    if group is None:
        raise group_missing(name)
    limit = group.retry_max_times if times_max is None else times_max
    if group.orderly_locked or reconsume_times > limit:
        return RetrySend(DLQ_PREFIX + name, dead=True)
    return RetrySend(topic, dead=False)
