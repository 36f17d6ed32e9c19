"""Names that clients make: client ids, unique message keys, and what offset message ids mean.

Source: RocketMQ ClientConfig.java, MessageClientIDSetter.java, MessageDecoder.java (message ids).
"""

from __future__ import annotations

import ipaddress
import struct
import threading
from datetime import UTC, datetime
from typing import Final, NamedTuple

from actormq.errors import PeerError
from actormq.message import LogOffset

UNIQUE_KEY_LENGTH: Final = 32
KEYS_A_MILLISECOND: Final = 65_536
_KEY_PREFIX: Final = struct.Struct(">4sHI")
assert _KEY_PREFIX.size == 10
_PORT_AND_OFFSET: Final = struct.Struct(">iq")


def client_id(address: str, pid: int, start_ns: int, instance: str | None = None) -> str:
    """Return ``address@instance``; without an instance name a client is ``address@pid#start_ns``."""
    return f"{address}@{instance or f'{pid}#{start_ns}'}"


class KeyRun(NamedTuple):
    """Unique keys that differ in their last four digits, which count up from `first`."""

    prefix: str
    first: int
    size: int
    at_ms: int


class UniqueKeys:
    """Makes message keys that no other client makes (``UNIQ_KEY``): 32 hexadecimal digits.

    Address, process and a random number, then milliseconds since the month began, then a number that counts
    within the millisecond.  Safe for threads.  Who needs more than 65,536 in a millisecond, or whose clock
    was set back, gets keys of the milliseconds to come: none is ever made twice.
    """

    def __init__(self, address: bytes, pid: int, salt: int) -> None:
        """
        Args:
            address: 4 bytes (IPv4) of this host.
            salt: 32 random bits, in place of Java's class loader hash.
        """
        assert len(address) == 4
        self._prefix = _KEY_PREFIX.pack(address, pid & 0xFFFF, salt & 0xFFFFFFFF).hex().upper()
        self._lock = threading.Lock()
        self._at_ms = 0
        self._made = 0
        self._month: tuple[int, int] = (0, 0)

    def next(self, now_ms: int) -> str:
        """Return a new key."""
        run = self.reserve(now_ms, 1)
        return f"{run.prefix}{run.first:04X}"

    def reserve(self, now_ms: int, count: int) -> KeyRun:
        """Return `count` (at most 65,536) keys that follow each other."""
        assert 0 < count <= KEYS_A_MILLISECOND
        with self._lock:
            if now_ms > self._at_ms:
                self._at_ms, self._made = now_ms, 0
            elif self._made + count > KEYS_A_MILLISECOND:
                self._at_ms, self._made = self._at_ms + 1, 0
            first, at_ms = self._made, self._at_ms
            self._made += count
            begin, end = self._month
            if not begin <= at_ms < end:
                self._month = begin, end = _month_around(at_ms)
        return KeyRun(f"{self._prefix}{at_ms - begin & 0xFFFFFFFF:08X}", first, count, at_ms)

    def give_back(self, run: KeyRun, used: int) -> None:
        """Let others have the keys of `run` behind the first `used`, if none were made since."""
        with self._lock:
            if run.at_ms == self._at_ms and run.first + run.size == self._made:
                self._made = run.first + used


def _month_around(now_ms: int) -> tuple[int, int]:
    """Return the first millisecond of the UTC month of `now_ms`, and of the next one."""
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    begin = datetime(now.year, now.month, 1, tzinfo=UTC)
    after = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    return int(begin.timestamp() * 1000), int(after.timestamp() * 1000)


class StoredPlace(NamedTuple):
    """Where a broker stored a message: what an offset message id says."""

    host: str
    port: int
    log_offset: LogOffset


def parse_offset_message_id(text: str) -> StoredPlace:
    """Return the place that an offset message id names (32 hexadecimal digits, 56 for IPv6).

    Raises:
        PeerError: it is none.
    """
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) not in (16, 28):
        raise PeerError(f"{text[:80]!r} is no offset message id")
    port, log_offset = _PORT_AND_OFFSET.unpack_from(data, len(data) - 12)
    return StoredPlace(str(ipaddress.ip_address(data[:-12])), port, LogOffset(log_offset))


def format_offset_message_id(host: bytes, log_offset: LogOffset) -> str:
    """Return the id of the message at `log_offset`; `host` is address and port as stored (8 or 20 bytes)."""
    return (host + log_offset.to_bytes(8, "big", signed=True)).hex().upper()
