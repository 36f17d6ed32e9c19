"""Messages as users see them: one to send, one received (decoded only where it is looked at).

Source: RocketMQ MessageDecoder.java, Validators.java; client.md §2.2, wire.md §5.
"""

from __future__ import annotations

import ipaddress
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from actormq.client.identifiers import format_offset_message_id
from actormq.client.results import MessageQueue
from actormq.errors import MessageRejected, PeerError
from actormq.message import (
    BODY_BYTES_MAX,
    NOT_SENDABLE_TOPICS,
    PROPERTIES_BYTES_MAX,
    RETRY_PREFIX,
    TOPIC_LENGTH_MAX,
    LogOffset,
    PropertyKey,
    QueueOffset,
    SysFlag,
    decode_properties,
    encode_properties,
)

_TOPIC: Final = re.compile(r"[%|a-zA-Z0-9_-]+")
_OWN_KEYS: Final = frozenset(
    {
        PropertyKey.KEYS,
        PropertyKey.TAGS,
        PropertyKey.WAIT,
        PropertyKey.DELAY,
        PropertyKey.UNIQ_KEY,
        PropertyKey.TRANSACTION_PREPARED,
    }
)


@dataclass(frozen=True, slots=True)
class Message:
    """A message to send.

    Attributes:
        body: what is sent; at least one byte, at most 4 MiB.
        tags: one word that consumers may filter by.
        keys: words by which the message can be found again.
        properties: texts of your own; the names that RocketMQ uses itself are refused.
        delay_level: 1 to 18 of the broker's delays (1s 5s 10s 30s 1m … 2h); 0 = now.
        wait_stored: whether the answer waits for the disk or the replicas as the broker is set up to.
        flag: a number of your own, stored with the message.
    """

    body: bytes
    tags: str | None = None
    keys: str | Iterable[str] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    delay_level: int = 0
    wait_stored: bool = True
    flag: int = 0


class MessageOptions(TypedDict, total=False):
    """What may be said of a message besides its body; the attributes of `Message`."""

    tags: str | None
    keys: str | Iterable[str]
    properties: Mapping[str, str]
    delay_level: int
    wait_stored: bool
    flag: int


def as_message(body: bytes | Message, options: MessageOptions) -> Message:
    """Return the message that the arguments of a send describe.

    Raises:
        MessageRejected: a `Message` together with options.
    """
    if not isinstance(body, Message):
        return Message(body, **options)
    if options:
        raise MessageRejected(f"a Message already says everything; drop {', '.join(options)}")
    return body


def check_topic(topic: str) -> None:
    """Refuse a topic name that no broker would accept.

    Raises:
        MessageRejected: empty, too long, illegal characters, or one of the broker's own.
    """
    if not topic or len(topic) > TOPIC_LENGTH_MAX:
        raise MessageRejected(f"a topic name has 1 to {TOPIC_LENGTH_MAX} characters, not {len(topic)}")
    if not _TOPIC.fullmatch(topic):
        raise MessageRejected(f"topic {topic!r}: only letters, digits, %, |, _ and - are allowed")
    if topic in NOT_SENDABLE_TOPICS:
        raise MessageRejected(f"topic {topic} is the broker's own; choose another name")


def check_body(body: bytes, bytes_max: int = BODY_BYTES_MAX) -> None:
    """Refuse a body that no broker would accept.

    Raises:
        MessageRejected: not bytes, empty, or longer than `bytes_max`.
    """
    if not isinstance(body, bytes | bytearray | memoryview):
        raise MessageRejected(f"a body is bytes, not {type(body).__name__}; encode text first")
    if not body:
        raise MessageRejected("a body has at least one byte")
    if len(body) > bytes_max:
        raise MessageRejected(f"the body has {len(body)} bytes; at most {bytes_max} are allowed")


def encode_user_properties(
    tags: str | None = None,
    keys: str | Iterable[str] = (),
    properties: Mapping[str, str] | None = None,
    delay_level: int = 0,
    wait_stored: bool = True,
) -> bytes:
    """Return the property string of a message, without its unique key.

    Raises:
        MessageRejected: a separator inside a text, a name that RocketMQ uses itself, or too long.
    """
    if tags is None and not keys and not properties and not delay_level and wait_stored:
        return b""
    pairs: dict[str, str] = {}
    for name, value in (properties or {}).items():
        if name in _OWN_KEYS:
            raise MessageRejected(f"property {name} is RocketMQ's own; use the argument for it")
        pairs[name] = value
    if keys:
        pairs[PropertyKey.KEYS] = keys if isinstance(keys, str) else " ".join(keys)
    if tags:
        pairs[PropertyKey.TAGS] = tags.strip()
    if delay_level:
        pairs[PropertyKey.DELAY] = str(delay_level)
    if not wait_stored:
        pairs[PropertyKey.WAIT] = "false"
    for name, value in pairs.items():
        if not isinstance(value, str) or any(mark in name + value for mark in "\x01\x02"):
            raise MessageRejected(f"property {name!r} must be text without the characters 0x01 and 0x02")
    return _limited(encode_properties(pairs))


def with_unique_key(properties: bytes, unique_key: str) -> bytes:
    """Return `properties` with ``UNIQ_KEY`` in front."""
    return b"UNIQ_KEY\x01" + unique_key.encode() + b"\x02" + properties


UNIQUE_KEY_BYTES: Final = len(with_unique_key(b"", "0" * 32))


def _limited(properties: bytes) -> bytes:
    if len(properties) + UNIQUE_KEY_BYTES > PROPERTIES_BYTES_MAX:
        raise MessageRejected(f"the properties take {len(properties)} bytes; at most {PROPERTIES_BYTES_MAX}")
    return properties


# --- received ----------------------------------------------------------------------------------------

_V1: Final = -626_843_481
_V2: Final = -626_843_477
_HEAD: Final = struct.Struct(">iiiiiqqiq")
assert _HEAD.size == 48
_SIZE_MAGIC: Final = struct.Struct(">ii")
_QUEUE_OFFSET: Final = struct.Struct(">q")
_I32: Final = struct.Struct(">i")
_I64: Final = struct.Struct(">q")
_U16: Final = struct.Struct(">H")
_RECORD_BYTES_MIN: Final = 91


class ReceivedMessage:
    """A stored message, read from the bytes in which it came.

    Nothing but its size and queue offset is decoded before it is asked for.
    """

    __slots__ = (
        "_body",
        "_body_at",
        "_data",
        "_end",
        "_local_attempts",
        "_properties",
        "_start",
        "queue",
        "queue_offset",
        "started_ms",
    )

    def __init__(self, data: bytes, start: int, end: int, queue: MessageQueue) -> None:
        self._data = data
        self._start = start
        self._end = end
        self._body_at = 0
        self._body: bytes | None = None
        self._properties: dict[str, str] | None = None
        self._local_attempts = 0
        self.started_ms = 0
        """When a listener was given it (monotonic clock); 0 = not yet."""
        self.queue = queue
        """The queue that it was pulled from."""
        self.queue_offset = QueueOffset(_QUEUE_OFFSET.unpack_from(data, start + 20)[0])

    # -- numbers at fixed places

    def _i32(self, at: int) -> int:
        value: int = _I32.unpack_from(self._data, self._start + at)[0]
        return value

    def _i64(self, at: int) -> int:
        value: int = _I64.unpack_from(self._data, self._start + at)[0]
        return value

    @property
    def stored_bytes(self) -> int:
        """Size of the whole record."""
        return self._end - self._start

    @property
    def flag(self) -> int:
        """The sender's own number."""
        return self._i32(16)

    @property
    def log_offset(self) -> LogOffset:
        return LogOffset(self._i64(28))

    @property
    def sys_flag(self) -> int:
        return self._i32(36)

    @property
    def born_timestamp_ms(self) -> int:
        """When the producer made it (wall clock there)."""
        return self._i64(40)

    @property
    def store_timestamp_ms(self) -> int:
        """When the broker stored it (wall clock there)."""
        return self._i64(48 + self._born_host_bytes)

    @property
    def _born_host_bytes(self) -> int:
        return 20 if self.sys_flag & SysFlag.BORN_HOST_V6 else 8

    @property
    def _store_host(self) -> bytes:
        start = self._start + 56 + self._born_host_bytes
        return self._data[start : start + (20 if self.sys_flag & SysFlag.STORE_HOST_V6 else 8)]

    @property
    def born_host(self) -> str:
        """``address:port`` of the producer."""
        start = self._start + 48
        return _host_text(self._data[start : start + self._born_host_bytes])

    @property
    def store_host(self) -> str:
        """``address:port`` of the broker."""
        return _host_text(self._store_host)

    @property
    def _hosts_bytes(self) -> int:
        return self._born_host_bytes + len(self._store_host)

    @property
    def reconsume_times(self) -> int:
        """How many times it was delivered and given back before."""
        return self._i32(56 + self._hosts_bytes) + self._local_attempts

    def count_attempt(self) -> None:
        """Note one more delivery that this client itself will repeat."""
        self._local_attempts += 1

    @property
    def prepared_transaction_offset(self) -> int:
        return self._i64(60 + self._hosts_bytes)

    # -- what lies behind the body

    def _find_body(self) -> int:
        """Return where the body's length is, in `_data`."""
        if not self._body_at:
            at = self._start + 68 + self._hosts_bytes
            if at + 4 > self._end:
                raise PeerError(f"a record of {self.stored_bytes} bytes that ends before its body")
            self._body_at = at
        return self._body_at

    def _find_topic(self) -> tuple[int, int]:
        """Return begin and end of the topic in `_data`."""
        at = self._find_body()
        body_bytes = int(_I32.unpack_from(self._data, at)[0])
        at += 4 + body_bytes
        if body_bytes < 0 or at + 3 > self._end:
            raise PeerError(f"a record of {self.stored_bytes} bytes with a body of {body_bytes}")
        if self._i32(4) == _V2:
            begin, end = at + 2, at + 2 + int(_U16.unpack_from(self._data, at)[0])
        else:
            begin, end = at + 1, at + 1 + self._data[at]
        if end + 2 > self._end:
            raise PeerError(f"a record of {self.stored_bytes} bytes whose topic ends outside it")
        return begin, end

    @property
    def stored_body(self) -> bytes:
        """The body as stored, perhaps compressed."""
        at = self._find_body()
        return self._data[at + 4 : at + 4 + int(_I32.unpack_from(self._data, at)[0])]

    @property
    def body(self) -> bytes:
        """What was sent.

        Raises:
            PeerError: compressed in a way that this Python cannot undo, or damaged.
        """
        if self._body is None:
            sys_flag = self.sys_flag
            stored = self.stored_body
            self._body = decompress(stored, sys_flag) if sys_flag & SysFlag.COMPRESSED else stored
        return self._body

    @property
    def stored_topic(self) -> str:
        """The topic that it lies in; for a retried message ``%RETRY%group``."""
        begin, end = self._find_topic()
        return self._data[begin:end].decode("utf-8", "replace")

    @property
    def topic(self) -> str:
        """The topic that it was sent to."""
        stored = self.stored_topic
        if stored.startswith(RETRY_PREFIX):
            return self.properties.get(PropertyKey.RETRY_TOPIC, stored)
        return stored

    @property
    def properties(self) -> dict[str, str]:
        """All properties, RocketMQ's own included."""
        if self._properties is None:
            at = self._find_topic()[1]
            size = int(_U16.unpack_from(self._data, at)[0])
            if at + 2 + size > self._end:
                raise PeerError(f"a record of {self.stored_bytes} bytes with {size} bytes of properties")
            self._properties = decode_properties(self._data[at + 2 : at + 2 + size])
        return self._properties

    @property
    def tags(self) -> str | None:
        return self.properties.get(PropertyKey.TAGS)

    @property
    def keys(self) -> list[str]:
        return self.properties.get(PropertyKey.KEYS, "").split()

    @property
    def message_id(self) -> str:
        """The producer's unique key; the broker's id where there is none."""
        return self.properties.get(PropertyKey.UNIQ_KEY) or self.offset_message_id

    @property
    def offset_message_id(self) -> str:
        return format_offset_message_id(self._store_host, self.log_offset)

    def __repr__(self) -> str:
        return (
            f"<ReceivedMessage {self.topic} {self.message_id} at {self.queue.broker_name}/"
            f"{self.queue.queue_id}/{self.queue_offset}, {self.stored_bytes} bytes>"
        )


def decode_messages(data: bytes, queue: MessageQueue) -> list[ReceivedMessage]:
    """Return the messages that lie in `data` one behind the other (a pull's body).

    Raises:
        PeerError: a size or magic that no record has.
    """
    messages = []
    at = 0
    while at < len(data):
        if len(data) - at < _RECORD_BYTES_MIN:
            raise PeerError(f"a record cut off after {len(data) - at} bytes")
        size, magic = _SIZE_MAGIC.unpack_from(data, at)
        if magic not in (_V1, _V2) or not _RECORD_BYTES_MIN <= size <= len(data) - at:
            raise PeerError(f"no record at byte {at} of {len(data)}: size {size}, magic {magic}")
        messages.append(ReceivedMessage(data, at, at + size, queue))
        at += size
    return messages


def _host_text(stored: bytes) -> str:
    address = ipaddress.ip_address(stored[:-4])
    text = f"[{address}]" if address.version == 6 else str(address)
    return f"{text}:{int.from_bytes(stored[-4:], 'big')}"


# --- compression -------------------------------------------------------------------------------------

_ZLIB_TYPE: Final = 0x300
_LEVEL: Final = 5


def compress(body: bytes, threshold_bytes: int) -> tuple[bytes, int]:
    """Return the body to send and the bits it adds to the sysFlag: zlib from `threshold_bytes` on."""
    if len(body) < threshold_bytes:
        return body, 0
    return zlib.compress(body, _LEVEL), SysFlag.COMPRESSED | _ZLIB_TYPE


def decompress(body: bytes, sys_flag: int) -> bytes:
    """Return the original of a compressed body.

    Raises:
        PeerError: LZ4 or Zstandard without the package for it, or damaged.
    """
    kind = sys_flag & SysFlag.COMPRESSION_MASK
    if kind == 0x100:
        return _by_package("lz4.frame", "lz4", body)
    if kind == 0x200:
        return _by_package("zstandard", "zstandard", body)
    try:
        return zlib.decompress(body)
    except zlib.error as error:
        raise PeerError(f"a body marked as zlib is none: {error}") from error


def _by_package(module: str, package: str, body: bytes) -> bytes:
    import importlib

    try:
        codec: Any = importlib.import_module(module)
    except ImportError as error:
        raise PeerError(f"this body is compressed by {package}: pip install {package}") from error
    return bytes(codec.decompress(body))
