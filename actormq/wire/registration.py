"""The body of REGISTER_BROKER (103), a broker's topics: plain JSON or RocketMQ's compressed form.

Compressed (zlib), all lengths big-endian 32-bit: DataVersion JSON, topic count, each topic as
``name readQueues writeQueues perm filterType [attributes]``, filter servers' JSON array, and from
5.0.0 on a count of static-topic mappings, each JSON.

Source: RocketMQ RegisterBrokerBody.java, TopicConfig.java, DataVersion.java.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, Final

from actormq.errors import FrameError
from actormq.wire import json

BODY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Decompressed; 200,000 topics take about 20 MB."""
VERSION_5_0_0: Final = 413

_ZLIB_MARK: Final = 0x78
_LENGTH: Final = struct.Struct(">i")
_QUEUES_DEFAULT: Final = 16
_PERMISSION_DEFAULT: Final = 6


@dataclass(frozen=True, slots=True)
class DataVersion:
    """Which state of its topics a broker speaks of; only equality counts, and `state_version`'s order."""

    state_version: int = 0
    timestamp: int = 0
    counter: int = 0

    @classmethod
    def from_json(cls, value: Any) -> DataVersion:
        """Return the version in `value`; what is missing is 0 (4.9 knows no state version)."""
        value = as_object(value)
        return cls(_int(value, "stateVersion"), _int(value, "timestamp"), _int(value, "counter"))

    def to_json(self) -> dict[str, int]:
        return {"counter": self.counter, "stateVersion": self.state_version, "timestamp": self.timestamp}


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfig:
    """What a name server keeps of a topic."""

    name: str
    read_queues: int = _QUEUES_DEFAULT
    write_queues: int = _QUEUES_DEFAULT
    permission: int = _PERMISSION_DEFAULT
    sys_flag: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationBody:
    """What a broker registers, besides who it is."""

    version: DataVersion = field(default_factory=DataVersion)
    topics: tuple[TopicConfig, ...] = ()
    filter_servers: tuple[str, ...] = ()
    mappings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Static topics: the broker's TopicQueueMappingInfo by topic, passed on as it came."""


def encode_registration(body: RegistrationBody) -> bytes:
    """Return the plain JSON form, as a 5.x broker sends it."""
    topics = {
        topic.name: {
            "order": False,
            "perm": topic.permission,
            "readQueueNums": topic.read_queues,
            "topicFilterType": "SINGLE_TAG",
            "topicName": topic.name,
            "topicSysFlag": topic.sys_flag,
            "writeQueueNums": topic.write_queues,
        }
        for topic in body.topics
    }
    wrapper = {
        "dataVersion": body.version.to_json(),
        "mappingDataVersion": DataVersion().to_json(),
        "topicConfigTable": topics,
        "topicQueueMappingDetailMap": {},
        "topicQueueMappingInfoMap": body.mappings,
    }
    return json.dumps({"filterServerList": list(body.filter_servers), "topicConfigSerializeWrapper": wrapper})


def decode_registration(
    body: bytes | memoryview, sender_version: int, *, compressed: bool = False
) -> RegistrationBody:
    """Return what `body` registers; an empty body is a registration without topics.

    Args:
        compressed: what the header says; 5.x brokers always say false: zlib's first byte counts, too.
    Raises:
        FrameError: the body cannot be read.
    """
    if not body:
        return RegistrationBody()
    if compressed or body[0] == _ZLIB_MARK:
        return _decode_compressed(body, sender_version)
    value = as_object(json.loads(body))
    # Brokers before 3.0.11 send the wrapper alone.
    wrapper = as_object(value.get("topicConfigSerializeWrapper", value))
    return _from_json(wrapper, as_array(value.get("filterServerList")))


def _from_json(wrapper: dict[str, Any], filter_servers: list[Any]) -> RegistrationBody:
    table = as_object(wrapper.get("topicConfigTable"))
    mappings = as_object(wrapper.get("topicQueueMappingInfoMap"))
    return RegistrationBody(
        version=DataVersion.from_json(wrapper.get("dataVersion")),
        topics=tuple(_topic(name, as_object(item)) for name, item in table.items()),
        filter_servers=tuple(map(str, filter_servers)),
        mappings={topic: as_object(item) for topic, item in mappings.items()},
    )


def as_object(value: Any) -> dict[str, Any]:
    """Return the object `value`, the empty one for null.

    Raises:
        FrameError: something else is there.
    """
    if value is not None and not isinstance(value, dict):
        raise FrameError(f"expected an object, not {str(value)[:40]!r}")
    return value or {}


def as_array(value: Any) -> list[Any]:
    """Return the list `value`, the empty one for null.

    Raises:
        FrameError: something else is there.
    """
    if value is not None and not isinstance(value, list):
        raise FrameError(f"expected an array, not {str(value)[:40]!r}")
    return value or []


def _topic(name: str, value: dict[str, Any]) -> TopicConfig:
    return TopicConfig(
        name=str(value.get("topicName") or name),
        read_queues=_int(value, "readQueueNums", _QUEUES_DEFAULT),
        write_queues=_int(value, "writeQueueNums", _QUEUES_DEFAULT),
        permission=_int(value, "perm", _PERMISSION_DEFAULT),
        sys_flag=_int(value, "topicSysFlag"),
    )


def _int(value: dict[str, Any], key: str, default: int = 0) -> int:
    number = value.get(key, default)
    if type(number) is not int:
        raise FrameError(f"{key} is no integer")
    return number


class _Items:
    """Reads the length-prefixed items of the compressed form."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def count(self) -> int:
        if self.at + 4 > len(self.data):
            raise FrameError("a compressed registration that ends early")
        (number,) = _LENGTH.unpack_from(self.data, self.at)
        self.at += 4
        if number < 0:
            raise FrameError(f"a length of {number} in a compressed registration")
        return int(number)

    def item(self) -> bytes:
        length = self.count()
        if self.at + length > len(self.data):
            raise FrameError("a compressed registration that ends early")
        self.at += length
        return self.data[self.at - length : self.at]


def _decode_compressed(body: bytes | memoryview, sender_version: int) -> RegistrationBody:
    items = _Items(_inflate(body))
    version = DataVersion.from_json(json.loads(items.item()))
    topics = tuple(_topic_text(items.item()) for _ in range(items.count()))
    filter_servers = as_array(json.loads(items.item() or b"[]"))
    mappings = {}
    if sender_version >= VERSION_5_0_0 and items.at < len(items.data):
        for _ in range(items.count()):
            mapping = as_object(json.loads(items.item()))
            mappings[str(mapping.get("topic"))] = mapping
    return RegistrationBody(
        version=version,
        topics=topics,
        filter_servers=tuple(map(str, filter_servers)),
        mappings=mappings,
    )


def _inflate(body: bytes | memoryview) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(body, BODY_BYTES_MAX)
    except zlib.error as error:
        raise FrameError(f"a compressed registration that zlib refuses: {error}") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise FrameError("a compressed registration that is too big or cut off")
    return data


def _topic_text(text: bytes) -> TopicConfig:
    """Read ``name readQueues writeQueues perm filterType [attributes]``."""
    parts = text.decode("utf-8", "replace").split(" ", 5)
    try:
        read_queues, write_queues, permission = (int(part) for part in parts[1:4])
    except ValueError:
        raise FrameError(f"a topic that cannot be read: {text[:80]!r}") from None
    return TopicConfig(
        name=parts[0], read_queues=read_queues, write_queues=write_queues, permission=permission
    )
