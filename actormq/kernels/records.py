# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False
"""Commit-log records: encode one, check one, walk many.

Plain Python that runs as it stands; compiled, `records.pxd` gives the C types.  What is called `data`
is a memoryview here and a pointer there, made by `pointer` and moved by `advance`; every reader is
told how many bytes it may touch.  Other kernels cimport these functions.

Source: RocketMQ MessageDecoder.java, MessageExtEncoder.java, CommitLog.checkMessageAndReturnSize;
big-endian, signed.  Beyond RocketMQ, a record whose stored physicalOffset is not its place is
refused: with records of one size, stale bytes behind a cut look right in every other way.
"""

from __future__ import annotations

import re
import struct
import zlib
from enum import IntEnum
from typing import Any, Final, NamedTuple

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

MAGIC_V1: Final = -626843481
MAGIC_V2: Final = -626843477
MAGIC_BLANK: Final = -875286124
BLANK_BYTES: Final = 8
"""A file keeps at least this much room for the record that ends it."""
TOPIC_V1_MAX: Final = 127
"""A longer topic needs a V2 record: V1 has one signed byte for the length."""
RECORD_BYTES_MIN: Final = 91
CRC_NOT: Final = 0
CRC_CHECK: Final = 1
"""Compare a record with the CRC that is its last property; without one, its body with the body's."""
CRC_DEMAND: Final = 2
"""The same, and a record without that property is damaged."""
_RECORD_CRC_ITEM: Final = re.compile(rb"(?:(?<=\x02)|\A)__CRC32#\x01[^\x02]*(?:\x02|\Z)")

_I16 = struct.Struct(">h")
_I32 = struct.Struct(">i")
_I64 = struct.Struct(">q")
_HEAD = struct.Struct(">iiiiiqqiq")
assert _HEAD.size == 48

if not cython.compiled:
    _V1: Final = MAGIC_V1
    _V2: Final = MAGIC_V2
    _BLANK: Final = MAGIC_BLANK
    _TOPIC_V1_MAX: Final = TOPIC_V1_MAX
    _BORN_HOST_V6: Final = 0x10
    _STORE_HOST_V6: Final = 0x20
    RECORD_CRC_BYTES: Final = 20
    _RECORD_CRC_KEY: Final = int.from_bytes(b"__CRC32#", "big")
    _HASH_SIGN: Final = 0x23
    _CRC_DEMAND: Final = CRC_DEMAND

    def pointer(view: memoryview) -> memoryview:
        """Return where the writable `view` starts; compiled, a C pointer."""
        return view

    def pointer_const(view: memoryview | bytes) -> memoryview:
        """Return where `view` starts, for reading only."""
        return view  # type: ignore[return-value]  # bytes read alike

    def bytes_pointer(data: bytes) -> memoryview:
        """Return where `data` lies."""
        return memoryview(data)

    def text_at(data: memoryview, at: int, size: int) -> bytes:
        """Return a copy of some bytes."""
        return bytes(data[at : at + size])

    def advance(data: memoryview, at: int) -> memoryview:
        """Return what lies `at` bytes further; for reading."""
        return data[at:]

    def bytes_view(data: memoryview, size: int) -> memoryview:
        """Return the first `size` bytes as an object that Python functions take."""
        return data[:size]

    def copy_bytes(out: memoryview, at: int, source: memoryview, size: int) -> None:
        """Copy the first `size` bytes of `source` to position `at` of `out`."""
        out[at : at + size] = source[:size]

    def find_byte(data: memoryview, at: int, end: int, value: int) -> int:
        """Return where in `data[at:end]` the first byte `value` is; -1: nowhere."""
        found = bytes(data[at:end]).find(value)
        return at + found if found >= 0 else -1

    def equal_bytes(data: memoryview, at: int, other: memoryview, other_at: int, size: int) -> bool:
        """Say whether `size` bytes are the same."""
        return data[at : at + size] == other[other_at : other_at + size]

    def load_i16(data: memoryview, at: int) -> int:
        value: int = _I16.unpack_from(data, at)[0]
        return value

    def load_i32(data: memoryview, at: int) -> int:
        value: int = _I32.unpack_from(data, at)[0]
        return value

    def load_i64(data: memoryview, at: int) -> int:
        value: int = _I64.unpack_from(data, at)[0]
        return value

    def store_i16(out: memoryview, at: int, value: int) -> None:
        _I16.pack_into(out, at, value)

    def store_i32(out: memoryview, at: int, value: int) -> None:
        _I32.pack_into(out, at, value)

    def store_i64(out: memoryview, at: int, value: int) -> None:
        _I64.pack_into(out, at, value)

    def amq_has_crc32() -> bool:
        """Say whether `crc32.h` knows a way on this processor."""
        return False

    def amq_crc32(data: memoryview, size: int) -> int:
        """Return the CRC-32 of the first `size` bytes; only where `amq_has_crc32`."""
        raise NotImplementedError


class ScanEnd(IntEnum):
    """Why a scan stopped."""

    STOP = 0
    """The position asked for is reached, or fewer than 8 bytes of the file are left."""
    BLANK = 1
    """A blank record: the log goes on in the next file."""
    EMPTY = 2
    """Zeros: nothing was ever written here."""
    BAD_SIZE = 3
    """The size is impossible, or larger than what is left of the file."""
    BAD_MAGIC = 4
    BAD_LENGTH = 5
    """Body, topic and properties do not add up to the size."""
    BAD_PLACE = 6
    """The record says that it belongs to another place in the log."""
    BAD_CRC = 7


class Scan(NamedTuple):
    """What `scan` found."""

    end: int
    """Position in the view behind the last good record."""
    reason: int
    """A `ScanEnd`."""
    last_store_timestamp: int
    """Of the last good record; 0 without one."""
    records: int
    last_start: int
    """Position of the last good record; -1 without one."""


class Header(NamedTuple):
    """One record without its body: numbers as stored, texts as bytes, body as a place in the view."""

    total_size: int
    magic: int
    body_crc: int
    queue_id: int
    flag: int
    queue_offset: int
    physical_offset: int
    sys_flag: int
    born_timestamp: int
    born_host: bytes
    store_timestamp: int
    store_host: bytes
    reconsume_times: int
    prepared_offset: int
    body_at: int
    body_size: int
    topic: bytes
    properties: bytes


def checksum(data: memoryview, size: int) -> int:
    """Return CRC-32 of the first `size` bytes without its sign bit, as RocketMQ stores it."""
    if amq_has_crc32():
        return amq_crc32(data, size) & 0x7FFFFFFF
    return zlib.crc32(bytes_view(data, size)) & 0x7FFFFFFF


def record_crc_key(properties: memoryview, at: int, size: int) -> int:
    """Return where in properties the key of a record's CRC is, the first one; -1 without one."""
    end = at + size
    mark = find_byte(properties, at, end, _HASH_SIGN)
    while mark >= 0:
        key = mark - 7
        if (
            key >= at
            and mark + 1 < end
            and properties[mark + 1] == 1
            and load_i64(properties, key) == _RECORD_CRC_KEY
            and (key == at or properties[key - 1] == 2)
        ):
            return key
        mark = find_byte(properties, mark + 1, end, _HASH_SIGN)
    return -1


def without_record_crc(properties: memoryview | bytes) -> bytes:
    """Return properties without those that claim to be a record's CRC."""
    return _RECORD_CRC_ITEM.sub(b"", bytes(properties))


def append_record_crc(out: memoryview, start: int, end: int) -> None:
    """Write the property that is the CRC of the record `out[start:end]` behind it.

    The record's sizes, which are under the CRC, count these 20 bytes already.  The ten digits begin with the
    lowest.  Source: RocketMQ MessageDecoder.createCrc32.
    """
    crc = checksum(advance(out, start), end - start)
    store_i64(out, end, _RECORD_CRC_KEY)
    out[end + 8] = 1
    for digit in range(10):
        out[end + 9 + digit] = 48 + crc % 10
        crc //= 10
    out[end + 19] = 2


def _record_crc_at(data: memoryview, at: int) -> int:
    """Return the CRC that the property at `at` says; -1 when the property is another one."""
    if load_i64(data, at) != _RECORD_CRC_KEY or data[at + 8] != 1 or data[at + 19] != 2:
        return -1
    crc = 0
    digit = 9
    while digit >= 0:
        crc = crc * 10 + data[at + 9 + digit] - 48
        digit -= 1
    return crc


def _is_intact(
    data: memoryview, at: int, size: int, properties_size: int, body_at: int, body_size: int, check_crc: int
) -> bool:
    """Say whether the record at `data[at:at + size]` is what its CRCs say."""
    own_at = at + size - RECORD_CRC_BYTES
    if properties_size >= RECORD_CRC_BYTES:
        unlike = (load_i64(data, own_at) ^ _RECORD_CRC_KEY) & 0xFFFFFFFFFFFFFFFF
        if unlike == 0:
            return _record_crc_at(data, own_at) == checksum(advance(data, at), size - RECORD_CRC_BYTES)
        if unlike & (unlike - 1) == 0:
            return False  # one flipped bit in its name must not turn the check off
    if check_crc == _CRC_DEMAND:
        return False
    return body_size == 0 or checksum(advance(data, body_at), body_size) == load_i32(data, at + 8)


def record_size(
    born_host_size: int, store_host_size: int, topic_size: int, properties_size: int, body_size: int
) -> int:
    """Return how long the record of these parts is; host sizes are 8 (IPv4) or 20 (IPv6)."""
    topic_length_size = 1 if topic_size <= _TOPIC_V1_MAX else 2
    return (
        74 + born_host_size + store_host_size + topic_length_size + topic_size + properties_size + body_size
    )


def encode_parts(
    out: memoryview,
    at: int,
    queue_id: int,
    flag: int,
    queue_offset: int,
    physical_offset: int,
    sys_flag: int,
    born_timestamp: int,
    store_timestamp: int,
    reconsume_times: int,
    prepared_offset: int,
    born_host: memoryview,
    born_host_size: int,
    store_host: memoryview,
    store_host_size: int,
    topic: memoryview,
    topic_size: int,
    properties: memoryview,
    properties_size: int,
    body: memoryview,
    body_size: int,
) -> int:
    """Write one record at `out[at:]` and return the position behind it.

    The caller has made sure of the room (`record_size`); each part is given by where it starts and
    its size.  The host bits of `sys_flag` are set from the host sizes.
    """
    total = record_size(born_host_size, store_host_size, topic_size, properties_size, body_size)
    magic = _V1 if topic_size <= _TOPIC_V1_MAX else _V2
    sys_flag &= ~(_BORN_HOST_V6 | _STORE_HOST_V6)
    if born_host_size == 20:
        sys_flag |= _BORN_HOST_V6
    if store_host_size == 20:
        sys_flag |= _STORE_HOST_V6
    crc = checksum(body, body_size) if body_size > 0 else 0
    if cython.compiled:
        store_i32(out, at, total)
        store_i32(out, at + 4, magic)
        store_i32(out, at + 8, crc)
        store_i32(out, at + 12, queue_id)
        store_i32(out, at + 16, flag)
        store_i64(out, at + 20, queue_offset)
        store_i64(out, at + 28, physical_offset)
        store_i32(out, at + 36, sys_flag)
        store_i64(out, at + 40, born_timestamp)
    else:
        _HEAD.pack_into(
            out,
            at,
            total,
            magic,
            crc,
            queue_id,
            flag,
            queue_offset,
            physical_offset,
            sys_flag,
            born_timestamp,
        )
    at += 48
    copy_bytes(out, at, born_host, born_host_size)
    at += born_host_size
    store_i64(out, at, store_timestamp)
    at += 8
    copy_bytes(out, at, store_host, store_host_size)
    at += store_host_size
    store_i32(out, at, reconsume_times)
    store_i64(out, at + 4, prepared_offset)
    store_i32(out, at + 12, body_size)
    at += 16
    copy_bytes(out, at, body, body_size)
    at += body_size
    if topic_size <= _TOPIC_V1_MAX:
        out[at] = topic_size
        at += 1
    else:
        store_i16(out, at, topic_size)
        at += 2
    copy_bytes(out, at, topic, topic_size)
    at += topic_size
    store_i16(out, at, properties_size)
    at += 2
    copy_bytes(out, at, properties, properties_size)
    return at + properties_size


def encode(
    out: Any,
    at: int,
    *,
    queue_id: int,
    queue_offset: int,
    physical_offset: int,
    store_timestamp: int,
    store_host: bytes,
    topic: bytes,
    body: Any,
    properties: bytes = b"",
    flag: int = 0,
    sys_flag: int = 0,
    born_timestamp: int = 0,
    born_host: bytes = bytes(8),
    reconsume_times: int = 0,
    prepared_offset: int = 0,
) -> int:
    """Write one record into `out` (a writable buffer of bytes) at `at`; return the position behind it.

    Raises:
        ValueError: the record does not fit, or a part is longer than its length field can say.
    """
    if len(born_host) not in (8, 20) or len(store_host) not in (8, 20):
        raise ValueError("a host is 8 bytes (IPv4) or 20 (IPv6): address, then port")
    if not 0 < len(topic) <= 32_767 or len(properties) > 32_767:
        raise ValueError("topic and properties have 15 bits for their length, and a topic has a name")
    size = record_size(len(born_host), len(store_host), len(topic), len(properties), len(body))
    if at < 0 or at + size > len(out):
        raise ValueError(f"a record of {size} bytes does not fit at {at} of {len(out)}")
    return encode_parts(
        pointer(memoryview(out)),
        at,
        queue_id,
        flag,
        queue_offset,
        physical_offset,
        sys_flag,
        born_timestamp,
        store_timestamp,
        reconsume_times,
        prepared_offset,
        pointer_const(memoryview(born_host)),
        len(born_host),
        pointer_const(memoryview(store_host)),
        len(store_host),
        pointer_const(memoryview(topic)),
        len(topic),
        pointer_const(memoryview(properties)),
        len(properties),
        pointer_const(memoryview(body)),
        len(body),
    )


def encode_blank(out: Any, at: int, file_bytes_left: int) -> int:
    """Write the 8 bytes that end a file with `file_bytes_left` bytes unused; return the position behind.

    What follows them in the file is never read.
    """
    if at < 0 or at + BLANK_BYTES > len(out):
        raise ValueError(f"a blank record does not fit at {at} of {len(out)}")
    data = pointer(memoryview(out))
    store_i32(data, at, file_bytes_left)
    store_i32(data, at + 4, _BLANK)
    return at + BLANK_BYTES


def host_sizes(sys_flag: int) -> tuple[int, int]:
    """Return the sizes of born host and store host that `sys_flag` announces."""
    return 20 if sys_flag & _BORN_HOST_V6 else 8, 20 if sys_flag & _STORE_HOST_V6 else 8


def check_record(data: memoryview, at: int, end: int, physical_offset: int, check_crc: int) -> int:
    """Return the size of the record at `data[at:end]`, or minus the `ScanEnd` that says why there is none.

    Args:
        data: where the file's bytes start; nothing at or behind `end` is touched.
        physical_offset: the place in the log that the record must name as its own.
        check_crc: `CRC_NOT`, `CRC_CHECK` or `CRC_DEMAND`.
    """
    left = end - at
    if left < 8:
        return -ScanEnd.STOP
    size = load_i32(data, at)
    magic = load_i32(data, at + 4)
    if magic == _BLANK:
        return -ScanEnd.BLANK if size == left else -ScanEnd.BAD_SIZE
    if magic == 0 and size == 0:
        return -ScanEnd.EMPTY
    if magic != _V1 and magic != _V2:
        return -ScanEnd.BAD_MAGIC
    if size < 91 or size > left:
        return -ScanEnd.BAD_SIZE
    if load_i64(data, at + 28) != physical_offset:
        return -ScanEnd.BAD_PLACE
    sys_flag = load_i32(data, at + 36)
    body_at = at + 72
    if sys_flag & _BORN_HOST_V6:
        body_at += 12
    if sys_flag & _STORE_HOST_V6:
        body_at += 12
    body_at += 16
    record_end = at + size
    if body_at + 4 > record_end:
        return -ScanEnd.BAD_LENGTH
    body_size = load_i32(data, body_at - 4)
    if body_size < 0 or body_size > record_end - body_at - 4:
        return -ScanEnd.BAD_LENGTH
    topic_at = body_at + body_size
    if magic == _V1:
        topic_size = data[topic_at]
        if topic_size > _TOPIC_V1_MAX:
            return -ScanEnd.BAD_LENGTH
        topic_at += 1
    else:
        topic_size = load_i16(data, topic_at)
        topic_at += 2
    if topic_size <= 0 or topic_at + topic_size + 2 > record_end:
        return -ScanEnd.BAD_LENGTH
    properties_size = load_i16(data, topic_at + topic_size)
    if properties_size < 0 or topic_at + topic_size + 2 + properties_size != record_end:
        return -ScanEnd.BAD_LENGTH
    if check_crc and not _is_intact(data, at, size, properties_size, body_at, body_size, check_crc):
        return -ScanEnd.BAD_CRC
    return size


def is_message(
    data: memoryview,
    at: int,
    size: int,
    physical_offset: int,
    queue_id: int,
    queue_offset: int,
    topic: memoryview,
    topic_size: int,
) -> bool:
    """Say whether `data[at:at + size]` is, undamaged, the message that the entry of a queue promises.

    Args:
        physical_offset, queue_offset: its places in the log and in the queue.
        topic: where the name of the queue's topic starts.
    """
    if check_record(data, at, at + size, physical_offset, 1) != size:
        return False
    if load_i32(data, at + 12) != queue_id or load_i64(data, at + 20) != queue_offset:
        return False
    sys_flag = load_i32(data, at + 36)
    body_at = at + 88
    if sys_flag & _BORN_HOST_V6:
        body_at += 12
    if sys_flag & _STORE_HOST_V6:
        body_at += 12
    topic_at = body_at + load_i32(data, body_at - 4)
    if load_i32(data, at + 4) == _V1:
        found_size = data[topic_at]
        topic_at += 1
    else:
        found_size = load_i16(data, topic_at)
        topic_at += 2
    return found_size == topic_size and equal_bytes(data, topic_at, topic, 0, topic_size)


def store_timestamp_at(data: memoryview, at: int) -> int:
    """Return the store timestamp of the record at `at`."""
    if load_i32(data, at + 36) & _BORN_HOST_V6:
        return load_i64(data, at + 68)
    return load_i64(data, at + 56)


def scan(view: Any, start: int, base_log_offset: int, check_crc: int = CRC_CHECK, stop: int = -1) -> Scan:
    """Walk the records of one file and say how far they are good.

    Args:
        view: one log file from its first byte to its last (the blank record must reach exactly to the end).
        start: position in `view` at which a record begins.
        base_log_offset: the log offset of the first byte of `view`.
        check_crc: as in `check_record`.
        stop: end (with `ScanEnd.STOP`) at the first record that begins here or later; -1 = never.
    """
    data = pointer_const(memoryview(view))
    size_of_view = len(view)
    if stop < 0 or stop > size_of_view:
        stop = size_of_view
    at = start
    last_start = -1
    last_timestamp = 0
    records = 0
    reason = 0
    while at < stop:
        size = check_record(data, at, size_of_view, base_log_offset + at, check_crc)
        if size <= 0:
            reason = -size
            break
        last_timestamp = store_timestamp_at(data, at)
        last_start = at
        records += 1
        at += size
    return Scan(at, reason, last_timestamp, records, last_start)


def decode(view: Any, at: int, check_crc: int = CRC_NOT) -> Header:
    """Return the record at `view[at:]`; its body is `view[body_at:body_at + body_size]`.

    Raises:
        ValueError: there is no whole, consistent record (its place in the log is not looked at).
    """
    data = pointer_const(memoryview(view))
    end = len(view)
    if at < 0 or end - at < 36:
        raise ValueError(f"no record fits into the {end - at} bytes at {at}")
    size = check_record(data, at, end, load_i64(data, at + 28), check_crc)
    if size <= 0:
        raise ValueError(f"no record at {at}: {ScanEnd(-size).name}")
    sys_flag = load_i32(data, at + 36)
    born_size, store_size = host_sizes(sys_flag)
    store_at = at + 56 + born_size
    body_at = store_at + store_size + 16
    body_size = load_i32(data, body_at - 4)
    topic_at = body_at + body_size
    if load_i32(data, at + 4) == _V1:
        topic_size = data[topic_at]
        topic_at += 1
    else:
        topic_size = load_i16(data, topic_at)
        topic_at += 2
    return Header(
        size,
        load_i32(data, at + 4),
        load_i32(data, at + 8),
        load_i32(data, at + 12),
        load_i32(data, at + 16),
        load_i64(data, at + 20),
        load_i64(data, at + 28),
        sys_flag,
        load_i64(data, at + 40),
        bytes(view[at + 48 : at + 48 + born_size]),
        load_i64(data, at + 48 + born_size),
        bytes(view[store_at : store_at + store_size]),
        load_i32(data, store_at + store_size),
        load_i64(data, store_at + store_size + 4),
        body_at,
        body_size,
        bytes(view[topic_at : topic_at + topic_size]),
        bytes(view[topic_at + topic_size + 2 : at + size]),
    )
