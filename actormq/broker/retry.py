"""Send-back: a message that a consumer could not process goes to its group's retry topic or dead letters.

The body is never copied here: the append request names where it lies in the log.
Source: RocketMQ AbstractSendMessageProcessor.java (code 36), ConsumerSendMsgBackRequestHeader.java.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from actormq.broker.delay import DelayLevels, Placed, park
from actormq.broker.groups import GroupConfig
from actormq.broker.sending import QUEUE_CHOICE_BELOW
from actormq.errors import RequestError, ResponseCode
from actormq.message import DLQ_PREFIX, RETRY_PREFIX, PropertyKey
from actormq.wire.headers import bool_field, int_field, text_field

VERSION_3_4_9: Final = 121
"""Clients from here on send maxReconsumeTimes in earnest.  Source: MQVersion.java, ordinal of V3_4_9."""
FIRST_RETRY_LEVEL: Final = 3
DLQ_QUEUES: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SendBack:
    """Code 36, decoded."""

    log_offset: int
    group: str
    delay_level: int
    unit_mode: bool = False
    max_reconsume_times: int | None = None


def decode_send_back(fields: dict[str, str], version: int) -> SendBack:
    """Return the request.  Raises: RequestError as `actormq.wire.headers` does."""
    honoured = version >= VERSION_3_4_9 and "maxReconsumeTimes" in fields
    return SendBack(
        log_offset=int_field(fields, "offset"),
        group=text_field(fields, "group"),
        delay_level=int_field(fields, "delayLevel", bits=32),
        unit_mode=bool_field(fields, "unitMode"),
        max_reconsume_times=int_field(fields, "maxReconsumeTimes", bits=32) if honoured else None,
    )


class Original(NamedTuple):
    """What send-back needs of the stored message."""

    topic: str
    properties: Mapping[str, str]
    reconsume_times: int
    message_id: str
    """Offset message id of the record."""


class Target(NamedTuple):
    """Where the message goes before delays are considered."""

    topic: str
    queues: int
    dead: bool


def target(request: SendBack, config: GroupConfig, original: Original) -> Target:
    """Decide between another try and the dead letters: reaching the maximum is the end here."""
    limit = config.retry_max_times if request.max_reconsume_times is None else request.max_reconsume_times
    if original.reconsume_times >= limit or request.delay_level < 0:
        return Target(DLQ_PREFIX + request.group, DLQ_QUEUES, dead=True)
    return Target(RETRY_PREFIX + request.group, config.retry_queue_nums, dead=False)


def place(request: SendBack, goal: Target, original: Original, levels: DelayLevels, random: Random) -> Placed:
    """Return where the message is stored and its properties.

    The dead letter is stored at once; a retry waits in the level of its delay.
    """
    queue_id = random.randrange(QUEUE_CHOICE_BELOW) % max(1, goal.queues)
    properties = dict(original.properties)
    properties.pop(PropertyKey.DELAY, None)
    properties.setdefault(PropertyKey.RETRY_TOPIC, original.topic)
    properties.setdefault(PropertyKey.ORIGIN_MESSAGE_ID, original.message_id)
    properties[PropertyKey.WAIT] = "false"
    if not goal.dead:
        level = request.delay_level or FIRST_RETRY_LEVEL + original.reconsume_times
        properties[PropertyKey.DELAY] = str(levels.clamp(level))
    return park(goal.topic, queue_id, properties, levels)


def not_found(log_offset: int) -> RequestError:
    """Return the answer when the message is not (any more) where the consumer says."""
    return RequestError(ResponseCode.SYSTEM_ERROR, f"look message by offset failed, {log_offset}")
