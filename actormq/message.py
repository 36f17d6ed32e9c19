"""The nouns that everyone shares: names, property keys, flag bits, offsets, and the property string.

Source: RocketMQ MessageConst.java, MessageSysFlag.java, TopicValidator.java, MixAll.java.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NewType

LogOffset = NewType("LogOffset", int)
"""Bytes from the start of the commit log, counted over all its files."""
QueueOffset = NewType("QueueOffset", int)
"""Entries from the start of one queue."""

BODY_BYTES_MAX: Final = 4 * 1024 * 1024
PROPERTIES_BYTES_MAX: Final = 32_767
TOPIC_LENGTH_MAX: Final = 127
RETRY_TOPIC_LENGTH_MAX: Final = 255
GROUP_LENGTH_MAX: Final = 120

RETRY_PREFIX: Final = "%RETRY%"
DLQ_PREFIX: Final = "%DLQ%"
TEMPLATE_TOPIC: Final = "TBW102"
SCHEDULE_TOPIC: Final = "SCHEDULE_TOPIC_XXXX"
SYSTEM_GROUPS: Final = (
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    "CID_RMQ_SYS_TRANS",
)
"""Groups that every broker has from the start."""
HALF_TOPIC: Final = "RMQ_SYS_TRANS_HALF_TOPIC"
OP_HALF_TOPIC: Final = "RMQ_SYS_TRANS_OP_HALF_TOPIC"
TRACE_TOPIC: Final = "RMQ_SYS_TRACE_TOPIC"
TIMER_TOPIC: Final = "rmq_sys_wheel_timer"
SYSTEM_TOPIC_PREFIX: Final = "rmq_sys_"
SYSTEM_GROUP_PREFIX: Final = "CID_RMQ_SYS_"

NOT_SENDABLE_TOPICS: Final = frozenset(
    {
        SCHEDULE_TOPIC,
        HALF_TOPIC,
        OP_HALF_TOPIC,
        "TRANS_CHECK_MAX_TIME_TOPIC",
        "SELF_TEST_TOPIC",
        "OFFSET_MOVED_EVENT",
    }
)
SYSTEM_TOPICS: Final = NOT_SENDABLE_TOPICS | {
    TEMPLATE_TOPIC,
    "BenchmarkTest",
    TRACE_TOPIC,
    "CHECKPOINT_TOPIC",
}


class Permission(IntFlag):
    """What may be done with a topic or a broker."""

    INHERIT = 1
    WRITE = 2
    READ = 4
    READ_WRITE = 6


class SysFlag(IntFlag):
    """Bits of a stored message's ``sysFlag``."""

    COMPRESSED = 0x1
    MULTI_TAGS = 0x2
    TRANSACTION_PREPARED = 0x4
    TRANSACTION_COMMIT = 0x8
    TRANSACTION_MASK = 0xC
    BORN_HOST_V6 = 0x10
    STORE_HOST_V6 = 0x20
    NEED_UNWRAP = 0x40
    INNER_BATCH = 0x80
    COMPRESSION_MASK = 0x700


class SendStatus(IntEnum):
    """What a producer is told of a stored message; the values are the response codes."""

    SEND_OK = 0
    FLUSH_DISK_TIMEOUT = 10
    SLAVE_NOT_AVAILABLE = 11
    FLUSH_SLAVE_TIMEOUT = 12


class PropertyKey:
    """Keys of message properties that the system itself reads or writes."""

    KEYS: Final = "KEYS"
    TAGS: Final = "TAGS"
    WAIT: Final = "WAIT"
    DELAY: Final = "DELAY"
    UNIQ_KEY: Final = "UNIQ_KEY"
    CLUSTER: Final = "CLUSTER"
    MSG_REGION: Final = "MSG_REGION"
    TRACE_ON: Final = "TRACE_ON"
    RETRY_TOPIC: Final = "RETRY_TOPIC"
    ORIGIN_MESSAGE_ID: Final = "ORIGIN_MESSAGE_ID"
    RECONSUME_TIME: Final = "RECONSUME_TIME"
    MAX_RECONSUME_TIMES: Final = "MAX_RECONSUME_TIMES"
    REAL_TOPIC: Final = "REAL_TOPIC"
    REAL_QUEUE_ID: Final = "REAL_QID"
    TRANSACTION_PREPARED: Final = "TRAN_MSG"
    PRODUCER_GROUP: Final = "PGROUP"
    SHARDING_KEY: Final = "__SHARDINGKEY"
    MIN_OFFSET: Final = "MIN_OFFSET"
    MAX_OFFSET: Final = "MAX_OFFSET"
    CONSUME_START_TIME: Final = "CONSUME_START_TIME"
    INNER_NUM: Final = "INNER_NUM"
    INNER_BASE: Final = "INNER_BASE"
    POP_CK: Final = "POP_CK"
    TIMER_DELAY_SEC: Final = "TIMER_DELAY_SEC"
    TIMER_DELAY_MS: Final = "TIMER_DELAY_MS"
    TIMER_DELIVER_MS: Final = "TIMER_DELIVER_MS"
    RECORD_CRC: Final = "__CRC32#"


_KEY_END = "\x01"
_ITEM_END = "\x02"


def encode_properties(properties: dict[str, str]) -> bytes:
    """Return RocketMQ's property string: ``key 0x01 value 0x02`` repeated, UTF-8.

    Items with an empty key or value are left out: no reader would accept them.
    """
    return "".join(
        f"{key}{_KEY_END}{value}{_ITEM_END}" for key, value in properties.items() if key and value
    ).encode("utf-8", "surrogatepass")


def decode_properties(text: bytes | memoryview) -> dict[str, str]:
    """Return the properties in `text`; the last duplicate wins, a missing last 0x02 is tolerated."""
    properties = {}
    for item in bytes(text).decode("utf-8", "replace").split(_ITEM_END):
        key, separator, value = item.partition(_KEY_END)
        if separator and key and value:
            properties[key] = value
    return properties


def java_hash(text: str) -> int:
    """Return Java's ``String.hashCode``: signed 32 bits over UTF-16 code units."""
    value = 0
    units = text.encode("utf-16-be", "surrogatepass")
    for position in range(0, len(units), 2):
        value = (31 * value + (units[position] << 8 | units[position + 1])) & 0xFFFFFFFF
    return value - 0x1_0000_0000 if value & 0x8000_0000 else value


def tags_code(tags: str | None) -> int:
    """Return the number that a queue entry keeps of `tags`: the hash, 0 for none."""
    return java_hash(tags) if tags else 0
