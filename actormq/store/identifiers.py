"""Names of single messages: where one lies (offset message id), and what its producer called it (unique key).

Source: RocketMQ MessageDecoder.createMessageId, MessageClientIDSetter.java; storage reference §3.
"""

from __future__ import annotations

import ipaddress
import struct
import time
from typing import Final

from actormq.errors import RequestError, ResponseCode

_PORT_AND_OFFSET: Final = struct.Struct(">iq")
_ID_LENGTHS: Final = (32, 56)


def pack_host(host: str, port: int) -> bytes:
    """Return an address as records keep it: 4 or 16 bytes, then the port as i32."""
    return ipaddress.ip_address(host).packed + struct.pack(">i", port)


def unpack_host(data: bytes) -> tuple[str, int]:
    """Return (address, port) of 8 or 20 stored bytes."""
    return str(ipaddress.ip_address(data[:-4])), struct.unpack(">i", data[-4:])[0]


def offset_message_id(store_host: bytes, log_offset: int) -> str:
    """Return the id by which any client can ask this broker for the message.

    Args:
        store_host: as stored in the record (`pack_host`).
    """
    return (store_host + struct.pack(">q", log_offset)).hex().upper()


def parse_offset_message_id(text: str) -> tuple[str, int, int]:
    """Return (address, port, log offset) of an offset message id.

    Raises:
        RequestError: it is none.
    """
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(text) not in _ID_LENGTHS or len(data) * 2 != len(text):
        raise RequestError(ResponseCode.INVALID_PARAMETER, f"{text[:80]!r} is no offset message id")
    port, log_offset = _PORT_AND_OFFSET.unpack(data[-_PORT_AND_OFFSET.size :])
    return str(ipaddress.ip_address(data[: -_PORT_AND_OFFSET.size])), port, log_offset


class UniqueKeys:
    """Makes unique keys: address, process, month's milliseconds, a counter; 32 digits (IPv4) or 56.

    Args:
        address: 4 or 16 bytes that tell this machine from others.
        pid: of this process; its low 16 bits count.
        salt: any 32 bits of this process's own (RocketMQ takes its class loader's hash).
    """

    def __init__(self, address: bytes, pid: int, salt: int) -> None:
        self._prefix = (address + struct.pack(">Hi", pid & 0xFFFF, salt)).hex().upper()
        self._start_ms = 0
        self._next_start_ms = 0
        self._counter = 0

    def new(self, wall_ms: int) -> str:
        """Return the next key."""
        if not self._start_ms <= wall_ms < self._next_start_ms:
            self._start_ms, self._next_start_ms = month_bounds_ms(wall_ms)
        self._counter = (self._counter + 1) & 0xFFFF
        return f"{self._prefix}{wall_ms - self._start_ms & 0xFFFFFFFF:08X}{self._counter:04X}"


def month_bounds_ms(wall_ms: int) -> tuple[int, int]:
    """Return when the month of `wall_ms` began and when the next begins, local time."""
    now = time.localtime(wall_ms // 1000)
    begin = time.mktime((now.tm_year, now.tm_mon, 1, 0, 0, 0, 0, 0, -1))
    end = time.mktime((now.tm_year, now.tm_mon + 1, 1, 0, 0, 0, 0, 0, -1))
    return int(begin) * 1000, int(end) * 1000


def unique_key_time_ms(key: str, wall_ms: int) -> int:
    """Return when a unique key was made; keys name no month: the last one that fits is taken."""
    since_month = int(key[-12:-4], 16)
    begin, _ = month_bounds_ms(wall_ms)
    if begin + since_month >= wall_ms:
        begin, _ = month_bounds_ms(begin - 1)
    return begin + since_month
