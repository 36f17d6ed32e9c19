"""Whether a send is taken, and as what it is stored: the rules of 10, 310 and 320 before the writer, pure.

Names, sizes and queues are checked by `actormq.broker.sending`; here is their order, and what the broker
makes of a message's properties.  Source: RocketMQ SendMessageProcessor.java, HookUtils.java.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from actormq.broker.delay import DelayLevels, level_of, park
from actormq.broker.retry import VERSION_3_4_9
from actormq.broker.sending import (
    PutStatus,
    check_send_topic,
    choose_queue,
    message_status,
    put_response,
    retry_send,
    topic_missing,
)
from actormq.broker.tables import Tables, TopicEntry
from actormq.broker.topics import MULTI_TAG
from actormq.errors import RequestError, ResponseCode
from actormq.kernels.sends import SendTopic
from actormq.message import (
    NOT_SENDABLE_TOPICS,
    PROPERTIES_BYTES_MAX,
    RETRY_PREFIX,
    TOPIC_LENGTH_MAX,
    Permission,
    PropertyKey,
    SysFlag,
)
from actormq.wire.headers import SendHeader

_TRANSIENT_PREFIX: Final = "__RMQ.TRANSIENT."
_LEVEL: Final = re.compile(r"[+-]?\d{1,10}")
_TIMER_KEYS: Final = frozenset(
    {PropertyKey.TIMER_DELAY_SEC, PropertyKey.TIMER_DELAY_MS, PropertyKey.TIMER_DELIVER_MS}
)
_OF_THE_BATCH_ONLY: Final = (PropertyKey.WAIT, PropertyKey.UNIQ_KEY)
"""A batch's own properties that are not given to each of its messages: they have their own."""
# Plain integers: the operators of enum flags take longer than all the rest of a check.
_CLIENTS_BITS: Final = ~int(
    SysFlag.BORN_HOST_V6 | SysFlag.STORE_HOST_V6 | SysFlag.TRANSACTION_MASK | SysFlag.NEED_UNWRAP
)
_TRANSACTION_MASK: Final = int(SysFlag.TRANSACTION_MASK)
_INNER_BATCH: Final = int(SysFlag.INNER_BATCH)
_MULTI_TAGS: Final = int(SysFlag.MULTI_TAGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSettings:
    """What the rules depend on."""

    cluster: str
    region: str
    trace_on: bool
    address: str
    body_bytes_max: int
    levels: DelayLevels


@dataclass(frozen=True, slots=True)
class TopicNeeded:
    """The topic is not in the tables: the coordinator must be asked, who may create it."""

    topic: str
    default_topic: str
    default_queues: int
    sys_flag: int


@dataclass(frozen=True, slots=True)
class RetryGroupNeeded:
    """A send to a retry topic whose group is not in the tables."""

    group: str


@dataclass(slots=True)
class Admitted:
    """What goes to the writer, and what the answer will need."""

    topic: str
    row: int
    row_incarnation: int
    queue_id: int
    properties: bytes
    sys_flag: int
    wait_flush: bool
    """WAIT is not "false": in sync mode the answer comes after the sync."""
    unique_key: str
    batch: bool


def admit(
    header: SendHeader,
    body_bytes: int,
    version: int,
    tables: Tables,
    settings: SendSettings,
    random: Random,
    new_key: Callable[[], str],
) -> Admitted | TopicNeeded | RetryGroupNeeded:
    """Decide on one send or batch.

    Args:
        version: the client's; before 3.4.9 its maxReconsumeTimes does not count.
        new_key: makes a unique key for a message that came without one.

    Raises:
        RequestError: refused, with RocketMQ's code and remark.
    """
    properties = parse_properties(header.properties)
    entry = tables.topic(header.topic)
    check_send_topic(header.topic, entry, tables.broker.permission)
    if entry is None:
        return TopicNeeded(
            header.topic, header.default_topic, header.default_topic_queues, int(header.unit_mode)
        )
    queue_id = choose_queue(entry, header.queue_id, random)
    if header.batch:
        return _admit_batch(header, body_bytes, properties, entry, queue_id, settings)
    target = entry
    if header.topic.startswith(RETRY_PREFIX):
        moved = _retry(header, version, properties, tables)
        if isinstance(moved, TopicNeeded | RetryGroupNeeded):
            return moved
        if moved is not None:
            target, queue_id = moved, choose_queue(moved, -1, random)
    return _admit_single(header, body_bytes, properties, target, queue_id, tables, settings, new_key)


def parse_properties(text: str) -> dict[str, str]:
    """Return the properties that are kept of `text`: the last duplicate wins, transient ones go."""
    properties = {}
    for item in text.split("\x02"):
        key, _, value = item.partition("\x01")
        if key and value and not key.startswith(_TRANSIENT_PREFIX):
            properties[key] = value
    properties.pop(PropertyKey.POP_CK, None)
    return properties


def _retry(
    header: SendHeader, version: int, properties: dict[str, str], tables: Tables
) -> TopicEntry | TopicNeeded | RetryGroupNeeded | None:
    """Return the dead-letter topic if the message must go there, None to leave it."""
    name = header.topic[len(RETRY_PREFIX) :]
    group = tables.group(name)
    if group is None:
        return RetryGroupNeeded(name)
    times_max = header.max_reconsume_times if version >= VERSION_3_4_9 else None
    decided = retry_send(header.topic, group, header.reconsume_times, times_max)
    if not decided.dead:
        return None
    properties[PropertyKey.DELAY] = "-1"
    return tables.topic(decided.topic) or TopicNeeded(decided.topic, "", 1, 0)


def _admit_single(
    header: SendHeader,
    body_bytes: int,
    properties: dict[str, str],
    entry: TopicEntry,
    queue_id: int,
    tables: Tables,
    settings: SendSettings,
    new_key: Callable[[], str],
) -> Admitted:
    level = _wanted_level(properties)
    _refuse_unsupported(header, properties, entry, level, settings)
    unique_key = properties.get(PropertyKey.UNIQ_KEY) or new_key()
    properties[PropertyKey.UNIQ_KEY] = unique_key
    wait_flush = _waits(properties)
    _add_broker_properties(properties, settings)
    if level > 0:
        placed = park(entry.name, queue_id, properties, settings.levels)
        queue_id, properties = placed.queue_id, placed.properties
        delayed = tables.topic(placed.topic)
        if delayed is None:
            raise topic_missing(placed.topic)
        entry = delayed
    encoded = encode_properties(properties)
    _check_sizes(entry.name, body_bytes, len(encoded), settings)
    return _admitted(header, entry, queue_id, encoded, unique_key, wait_flush)


def _admit_batch(
    header: SendHeader,
    body_bytes: int,
    properties: dict[str, str],
    entry: TopicEntry,
    queue_id: int,
    settings: SendSettings,
) -> Admitted:
    if len(header.topic) > TOPIC_LENGTH_MAX:
        raise _illegal(f"message topic length too long {len(header.topic)}")
    if header.topic.startswith(RETRY_PREFIX):
        raise _illegal(f"batch request does not support retry group {header.topic}")
    if header.sys_flag & _TRANSACTION_MASK or level_of(properties) > 0:
        raise _illegal(put_response(PutStatus.MESSAGE_ILLEGAL)[1] or "")
    _refuse_unsupported(header, properties, entry, 0, settings)
    unique_key = properties.get(PropertyKey.UNIQ_KEY, "")
    wait_flush = _waits(properties)
    for key in _OF_THE_BATCH_ONLY:
        properties.pop(key, None)
    _add_broker_properties(properties, settings)
    encoded = encode_properties(properties)
    _check_sizes(entry.name, body_bytes, len(encoded), settings)
    return _admitted(header, entry, queue_id, encoded, unique_key, wait_flush)


def _admitted(
    header: SendHeader, entry: TopicEntry, queue_id: int, properties: bytes, unique_key: str, wait_flush: bool
) -> Admitted:
    return Admitted(
        topic=entry.name,
        row=entry.rows[queue_id],
        row_incarnation=entry.row_incarnations[queue_id],
        queue_id=queue_id,
        properties=properties,
        sys_flag=_stored_sys_flag(header, entry),
        wait_flush=wait_flush,
        unique_key=unique_key,
        batch=header.batch,
    )


def _refuse_unsupported(
    header: SendHeader, properties: dict[str, str], entry: TopicEntry, level: int, settings: SendSettings
) -> None:
    """Refuse what is not (or not yet) served, rather than store it as something else."""
    if header.sys_flag & _INNER_BATCH or entry.attributes.get("queue.type") == "BatchCQ":
        raise _illegal("topics with queue.type=BatchCQ and inner batches are not supported")
    if entry.attributes.get("cleanup.policy") == "COMPACTION" and PropertyKey.KEYS not in properties:
        raise _illegal("Required message key is missing")
    half = properties.get(PropertyKey.TRANSACTION_PREPARED)
    if half is not None and half.lower() == "true" and not (header.reconsume_times > 0 and level > 0):
        raise RequestError(
            ResponseCode.NO_PERMISSION,
            f"the broker[{settings.address}] sending transaction message is forbidden",
        )
    if level == 0 and not _TIMER_KEYS.isdisjoint(properties):
        raise RequestError(
            ResponseCode.SYSTEM_ERROR, "accurate timer message is not enabled, timerWheelEnable is false"
        )


def _wanted_level(properties: dict[str, str]) -> int:
    """Return the delay level that the producer wants; what is none must not be delivered at once."""
    text = properties.get(PropertyKey.DELAY)
    if text is None:
        return 0
    if not _LEVEL.fullmatch(text):
        raise _illegal(f"the property DELAY must be the number of a delay level, not {text[:40]!r}")
    return level_of(properties)


def _illegal(remark: str) -> RequestError:
    return RequestError(ResponseCode.MESSAGE_ILLEGAL, remark)


def _waits(properties: dict[str, str]) -> bool:
    """Take WAIT out of what is stored (as RocketMQ does) and return what it says."""
    return properties.pop(PropertyKey.WAIT, "true").lower() == "true"


def _add_broker_properties(properties: dict[str, str], settings: SendSettings) -> None:
    properties[PropertyKey.MSG_REGION] = settings.region
    properties[PropertyKey.TRACE_ON] = "true" if settings.trace_on else "false"
    properties[PropertyKey.CLUSTER] = settings.cluster


def encode_properties(properties: dict[str, str]) -> bytes:
    """Return the stored form; what cannot be written as UTF-8 is written as Java does, "?"."""
    return "".join([f"{key}\x01{value}\x02" for key, value in properties.items()]).encode("utf-8", "replace")


def broker_properties(settings: SendSettings) -> bytes:
    """Return the stored form of what every message gets."""
    properties: dict[str, str] = {}
    _add_broker_properties(properties, settings)
    return encode_properties(properties)


def common_topic(entry: TopicEntry, tables: Tables) -> SendTopic | None:
    """Return a topic in the form in which `actormq.kernels.sends` takes sends to it.

    None: the rules above say more about sends to it than that a queue must exist.
    """
    if (
        (entry.order and not tables.broker.permission & Permission.WRITE)
        or entry.name in NOT_SENDABLE_TOPICS
        or entry.name.startswith(RETRY_PREFIX)
        or len(entry.name.encode()) > TOPIC_LENGTH_MAX
        or entry.attributes.get("queue.type") == "BatchCQ"
        or entry.attributes.get("cleanup.policy") == "COMPACTION"
    ):
        return None
    rows = zip(entry.rows, entry.row_incarnations, strict=True)
    queues = max(entry.read_queues, entry.write_queues)
    return SendTopic(list(rows)[:queues], _MULTI_TAGS if entry.filter_type == MULTI_TAG else 0)


def _check_sizes(topic: str, body_bytes: int, properties_bytes: int, settings: SendSettings) -> None:
    assert PROPERTIES_BYTES_MAX < 1 << 16, "the append request counts them in 16 bits"
    status = message_status(topic, body_bytes, properties_bytes, settings.body_bytes_max)
    if status is not PutStatus.PUT_OK:
        code, remark = put_response(status)
        raise RequestError(code, remark or "")


def _stored_sys_flag(header: SendHeader, entry: TopicEntry) -> int:
    """Return the client's bits without those that only the broker sets."""
    flag = header.sys_flag & _CLIENTS_BITS
    return flag | _MULTI_TAGS if entry.filter_type == MULTI_TAG else flag
