"""Reading back notices every message that is lost, moved or changed."""

from __future__ import annotations

import struct
import zlib

import pytest

from loadtest.remote import bodies_of

MAGIC_V1 = -626843481
IPV4 = bytes([127, 0, 0, 1]) + struct.pack(">i", 10911)
IPV6 = bytes(16) + struct.pack(">i", 10911)


def record(
    body: bytes, offset: int, *, queue_id: int = 3, hosts: tuple[bytes, bytes] = (IPV4, IPV4)
) -> bytes:
    """One record as storage.md §2.1 says, with topic ``t`` and no properties."""
    born_host, store_host = hosts
    sys_flag = 0x10 * (len(born_host) == 20) + 0x20 * (len(store_host) == 20)
    crc = zlib.crc32(body) & 0x7FFF_FFFF
    head = struct.pack(">iIiiqqiq", MAGIC_V1, crc, queue_id, 0, offset, 4711, sys_flag, 1)
    rest = born_host + struct.pack(">q", 2) + store_host + struct.pack(">iqi", 0, 0, len(body)) + body
    tail = b"\x01t" + struct.pack(">h", 0)
    return struct.pack(">i", 4 + len(head) + len(rest) + len(tail)) + head + rest + tail


def test_consecutive_records() -> None:
    data = record(b"one", 7) + record(b"", 8) + record(b"three", 9)
    assert bodies_of(memoryview(data), 3, 7) == [b"one", b"", b"three"]


@pytest.mark.parametrize("hosts", [(IPV6, IPV4), (IPV4, IPV6), (IPV6, IPV6)])
def test_long_hosts(hosts: tuple[bytes, bytes]) -> None:
    """A host of 20 bytes moves the body."""
    assert bodies_of(memoryview(record(b"body", 0, hosts=hosts)), 3, 0) == [b"body"]


@pytest.mark.parametrize(
    "data",
    [
        record(b"one", 7) + record(b"three", 9),
        record(b"one", 7) + record(b"one", 7),
        record(b"one", 7, queue_id=4),
        record(b"one", 7).replace(b"one", b"two"),
        bytes(100),
    ],
    ids=["hole", "twice", "other queue", "changed", "zeros"],
)
def test_damage_is_noticed(data: bytes) -> None:
    with pytest.raises(ValueError, match="queue 3"):
        bodies_of(memoryview(data), 3, 7)
