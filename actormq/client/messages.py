"""Messages to send, as users see them; and compression.

Source: RocketMQ Validators.java; client.md §2.2.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from actormq.errors import MessageRejected, PeerError
from actormq.message import (
    BODY_BYTES_MAX,
    NOT_SENDABLE_TOPICS,
    PROPERTIES_BYTES_MAX,
    TOPIC_LENGTH_MAX,
    PropertyKey,
    SysFlag,
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


def check_flag(flag: int) -> None:
    """Refuse a flag for which a message has no room.

    Raises:
        MessageRejected: not 32 bits, signed.
    """
    if not -0x8000_0000 <= flag <= 0x7FFF_FFFF:
        raise MessageRejected(f"flag {flag} does not fit into 32 bits, signed")


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
