"""What may be pulled, from where, and what the consumer is told: the rules of 11 and 361, pure.

The gateway reads queue and log between `locate` and `outcome`; nothing here touches memory or files.
Source: RocketMQ PullMessageProcessor.java, DefaultMessageStore.getMessage, FilterAPI.java.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import Final

from actormq.broker.sending import FAQ, group_missing
from actormq.broker.tables import GroupEntry, SubscriptionEntry, Tables, TopicEntry
from actormq.errors import RequestError, ResponseCode
from actormq.message import Permission, java_hash
from actormq.wire.headers import PullHeader

EXAMINED_MIN: Final = 800
"""Queue entries that a pull looks at, however few it wants: 16,000 bytes of them."""
BYTES_WANTED_MIN: Final = 100
MEMORY_PART: Final = 0.4
"""Of the machine's memory: what is nearer to the log's end than this is taken to be in memory."""
_TAG: Final = "TAG"
_ALL: Final = "*"


class PullFlag(IntFlag):
    """Bits of a pull's ``sysFlag``."""

    COMMIT_OFFSET = 1
    SUSPEND = 2
    SUBSCRIPTION = 4
    CLASS_FILTER = 8
    LITE_PULL = 16


class Forbidden(IntEnum):
    """What refused a pull with NO_PERMISSION; the answer's ``forbiddenType``."""

    BROKER = 1
    GROUP = 2
    TOPIC = 3
    BROADCASTING = 4
    SUBSCRIPTION = 5


class PullRefused(RequestError):
    """A pull that is not served; NO_PERMISSION says what forbids it."""

    def __init__(self, response_code: int, remark: str, forbidden: Forbidden | None = None) -> None:
        super().__init__(response_code, remark)
        self.forbidden = forbidden


class PullStatus(Enum):
    """What the store has to say; the names are the answers' remarks."""

    FOUND = "FOUND"
    NO_MATCHED_MESSAGE = "NO_MATCHED_MESSAGE"
    MESSAGE_WAS_REMOVING = "MESSAGE_WAS_REMOVING"
    OFFSET_FOUND_NULL = "OFFSET_FOUND_NULL"
    OFFSET_OVERFLOW_BADLY = "OFFSET_OVERFLOW_BADLY"
    OFFSET_OVERFLOW_ONE = "OFFSET_OVERFLOW_ONE"
    OFFSET_TOO_SMALL = "OFFSET_TOO_SMALL"
    OFFSET_RESET = "OFFSET_RESET"
    NO_MATCHED_LOGIC_QUEUE = "NO_MATCHED_LOGIC_QUEUE"
    NO_MESSAGE_IN_QUEUE = "NO_MESSAGE_IN_QUEUE"


_CODES: Final = {
    PullStatus.FOUND: ResponseCode.SUCCESS,
    PullStatus.NO_MATCHED_MESSAGE: ResponseCode.PULL_RETRY_IMMEDIATELY,
    PullStatus.MESSAGE_WAS_REMOVING: ResponseCode.PULL_RETRY_IMMEDIATELY,
    PullStatus.OFFSET_FOUND_NULL: ResponseCode.PULL_NOT_FOUND,
    PullStatus.OFFSET_OVERFLOW_ONE: ResponseCode.PULL_NOT_FOUND,
    PullStatus.OFFSET_OVERFLOW_BADLY: ResponseCode.PULL_OFFSET_MOVED,
    PullStatus.OFFSET_TOO_SMALL: ResponseCode.PULL_OFFSET_MOVED,
    PullStatus.OFFSET_RESET: ResponseCode.PULL_OFFSET_MOVED,
    PullStatus.NO_MATCHED_LOGIC_QUEUE: ResponseCode.PULL_OFFSET_MOVED,
    PullStatus.NO_MESSAGE_IN_QUEUE: ResponseCode.PULL_OFFSET_MOVED,
}
assert set(_CODES) == set(PullStatus)


def response_code(status: PullStatus, queue_offset: int) -> ResponseCode:
    """Return the code that answers `status`; an empty queue is no surprise to who asks from 0."""
    if queue_offset == 0 and status in (PullStatus.NO_MATCHED_LOGIC_QUEUE, PullStatus.NO_MESSAGE_IN_QUEUE):
        return ResponseCode.PULL_NOT_FOUND
    return _CODES[status]


# --- may it? -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GroupNeeded:
    """The group is not in the tables: the coordinator must be asked, who may create it."""

    group: str


@dataclass(frozen=True, slots=True)
class PullPlan:
    """A pull that is allowed."""

    topic: TopicEntry
    group: GroupEntry
    row: int
    row_incarnation: int
    tag_codes: frozenset[int] | None
    """Codes of the wanted tags; None = every message."""


def plan(header: PullHeader, tables: Tables, address: str) -> PullPlan | GroupNeeded:
    """Check a pull in RocketMQ's order (reference broker.md 5.2).

    Args:
        address: this broker's, for a remark.

    Raises:
        PullRefused: with code, remark and what forbids it.
    """
    if not tables.broker.permission & Permission.READ:
        raise PullRefused(
            ResponseCode.NO_PERMISSION,
            f"the broker[{address}] pulling message is forbidden",
            Forbidden.BROKER,
        )
    group = tables.group(header.group)
    if group is None:
        return GroupNeeded(header.group)
    if not group.consume_enable:
        raise PullRefused(
            ResponseCode.NO_PERMISSION, f"subscription group no permission, {header.group}", Forbidden.GROUP
        )
    topic = _readable_topic(header, tables)
    return PullPlan(
        topic=topic,
        group=group,
        row=topic.rows[header.queue_id],
        row_incarnation=topic.row_incarnations[header.queue_id],
        tag_codes=_wanted_tags(header, tables, group),
    )


def _readable_topic(header: PullHeader, tables: Tables) -> TopicEntry:
    topic = tables.topic(header.topic)
    if topic is None:
        raise PullRefused(
            ResponseCode.TOPIC_NOT_EXIST,
            f"topic[{header.topic}] not exist, apply first please!\nSee {FAQ} for further details.",
        )
    if not topic.readable:
        raise PullRefused(
            ResponseCode.NO_PERMISSION,
            f"the topic[{header.topic}] pulling message is forbidden",
            Forbidden.TOPIC,
        )
    if not 0 <= header.queue_id < topic.read_queues:
        raise PullRefused(
            ResponseCode.INVALID_PARAMETER,
            f"queueId[{header.queue_id}] is illegal, topic:[{header.topic}] "
            f"topicConfig.readQueueNums:[{topic.read_queues}] consumer:[{header.group}]",
        )
    return topic


def _wanted_tags(header: PullHeader, tables: Tables, group: GroupEntry) -> frozenset[int] | None:
    if header.sys_flag & PullFlag.SUBSCRIPTION:
        expression_type, expression = header.expression_type, header.subscription or ""
        codes = tag_codes(expression) if expression_type == _TAG else None
    else:
        entry = _registered(header, tables, group)
        expression_type = entry.expression_type
        codes = frozenset(entry.tag_codes) or None
    if expression_type != _TAG:
        raise PullRefused(
            ResponseCode.SYSTEM_ERROR,
            f"The broker does not support consumer to filter message by {expression_type}",
        )
    return codes


def _registered(header: PullHeader, tables: Tables, group: GroupEntry) -> SubscriptionEntry:
    """Return what the group's heartbeats said of the topic."""
    online = tables.consumer_group(header.group)
    if online is None:
        raise PullRefused(
            ResponseCode.SUBSCRIPTION_NOT_EXIST,
            f"the consumer's group info not exist\nSee {FAQ} for further details.",
        )
    if not group.broadcast_enable and online.model == "BROADCASTING":
        raise PullRefused(
            ResponseCode.NO_PERMISSION,
            f"the consumer group[{header.group}] can not consume by broadcast way",
            Forbidden.BROADCASTING,
        )
    entry = tables.subscription(header.group, header.topic)
    if entry is None:
        raise PullRefused(
            ResponseCode.SUBSCRIPTION_NOT_EXIST,
            f"the consumer's subscription not exist\nSee {FAQ} for further details.",
        )
    if entry.sub_version < header.sub_version:
        raise PullRefused(ResponseCode.SUBSCRIPTION_NOT_LATEST, "the consumer's subscription not latest")
    return entry


def no_group(group: str) -> PullRefused:
    """Return the answer to a pull whose group does not exist and may not be created."""
    refusal = group_missing(group)
    return PullRefused(refusal.response_code, refusal.remark)


def tag_codes(expression: str) -> frozenset[int] | None:
    """Return the hash codes of a tag expression (``TagA || TagB``); None = everything.

    Raises:
        PullRefused: nothing but separators.
    """
    if not expression.strip() or expression.strip() == _ALL:
        return None
    tags = {tag.strip() for tag in expression.split("||")} - {""}
    if not tags:
        raise PullRefused(ResponseCode.SUBSCRIPTION_PARSE_FAILED, "parse the consumer's subscription failed")
    return frozenset(map(java_hash, tags))


# --- where? ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """What an offset is to a queue; `status` FOUND means: look there."""

    status: PullStatus
    next_offset: int


def locate(queue_offset: int, queue_min: int, queue_max: int) -> Place:
    """Say what lies at `queue_offset` of a queue with entries [queue_min, queue_max)."""
    if queue_max == 0:
        return Place(PullStatus.NO_MESSAGE_IN_QUEUE, 0)
    if queue_offset < queue_min:
        return Place(PullStatus.OFFSET_TOO_SMALL, queue_min)
    if queue_offset == queue_max:
        return Place(PullStatus.OFFSET_OVERFLOW_ONE, queue_offset)
    if queue_offset > queue_max:
        return Place(PullStatus.OFFSET_OVERFLOW_BADLY, queue_max)
    return Place(PullStatus.FOUND, queue_offset)


def may_wait(place: Place, queue_offset: int, queue_max: int) -> bool:
    """Whether a pull is early rather than wrong: something may come at exactly its offset."""
    return queue_offset == queue_max and place.status in (
        PullStatus.OFFSET_OVERFLOW_ONE,
        PullStatus.NO_MESSAGE_IN_QUEUE,
    )


# --- how much? ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLimits:
    """How much one answer carries.  Source of the defaults: MessageStoreConfig.java."""

    memory_messages: int = 32
    memory_bytes: int = 256 * 1024
    disk_messages: int = 8
    disk_bytes: int = 64 * 1024
    native_messages: int = 8_192
    """Our own client says how much it wants; this is the most that it gets."""
    native_bytes: int = 1024 * 1024
    native_disk_bytes: int = 128 * 1024


@dataclass(frozen=True, slots=True)
class Share:
    """The limits of one pull."""

    messages: int
    bytes: int
    entries: int
    """Queue entries that are looked at."""


def share(header: PullHeader, limits: TransferLimits, *, in_memory: bool, native: bool) -> Share:
    """Return what one pull may take.

    Args:
        in_memory: where the first message lies (`MEMORY_PART`).
        native: asked by our own client, whose buffers we know.
    """
    if native:
        messages = limits.native_messages
        size = limits.native_bytes if in_memory else limits.native_disk_bytes
    elif in_memory:
        messages, size = limits.memory_messages, limits.memory_bytes
    else:
        messages, size = limits.disk_messages, limits.disk_bytes
    wanted_bytes = size if header.bytes_max is None else max(header.bytes_max, BYTES_WANTED_MIN)
    return Share(
        messages=max(1, min(header.messages_max, messages)),
        bytes=min(size, wanted_bytes),
        entries=max(EXAMINED_MIN, min(header.messages_max, messages)),
    )


# --- the answer --------------------------------------------------------------------------------------


def answer_fields(plan: PullPlan, next_offset: int, queue_min: int, queue_max: int) -> dict[str, str]:
    """Return the header of an answer; clients insist on the four offsets even when nothing was found."""
    return {
        "groupSysFlag": str(plan.group.sys_flag),
        "maxOffset": str(queue_max),
        "minOffset": str(queue_min),
        "nextBeginOffset": str(next_offset),
        "suggestWhichBrokerId": "0",
        "topicSysFlag": str(plan.topic.sys_flag),
    }


def refusal_fields(refusal: PullRefused) -> dict[str, str]:
    """Return the header of a refusal."""
    if refusal.forbidden is None:
        return {}
    return {"forbiddenType": str(int(refusal.forbidden))}
