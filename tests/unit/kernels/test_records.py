"""The record kernel against records packed by hand, compiled and uncompiled."""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_twins import each_of, twins

KERNELS = twins("records")
PURE = KERNELS[0]
COMPILED = KERNELS[-1]
both = each_of(KERNELS, "records")

V4 = bytes([127, 0, 0, 1, 0, 0, 42, 159])
V6 = bytes(range(16)) + bytes([0, 0, 42, 159])
I32 = st.integers(-(2**31), 2**31 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
FIELDS = st.fixed_dictionaries(
    {
        "queue_id": I32,
        "queue_offset": I64,
        "physical_offset": I64,
        "store_timestamp": I64,
        "store_host": st.sampled_from((V4, V6)),
        "topic": st.binary(min_size=1, max_size=300),
        "body": st.binary(max_size=300),
        "properties": st.binary(max_size=300),
        "flag": I32,
        "sys_flag": st.integers(0, 2**31 - 1),
        "born_timestamp": I64,
        "born_host": st.sampled_from((V4, V6)),
        "reconsume_times": I32,
        "prepared_offset": I64,
    }
)


def packed(fields: dict[str, Any]) -> bytes:
    """The record as storage reference §2.1 has it, field by field."""
    topic, body, properties = fields["topic"], fields["body"], fields["properties"]
    sys_flag = fields["sys_flag"] & ~0x30
    sys_flag |= (len(fields["born_host"]) == 20) * 0x10 | (len(fields["store_host"]) == 20) * 0x20
    long_topic = len(topic) > 127
    rest = b"".join(
        (
            struct.pack(">i", 0xDAA320AB - 2**32 if long_topic else 0xDAA320A7 - 2**32),
            struct.pack(">i", zlib.crc32(body) & 0x7FFFFFFF if body else 0),
            struct.pack(">ii", fields["queue_id"], fields["flag"]),
            struct.pack(">qq", fields["queue_offset"], fields["physical_offset"]),
            struct.pack(">iq", sys_flag, fields["born_timestamp"]),
            fields["born_host"],
            struct.pack(">q", fields["store_timestamp"]),
            fields["store_host"],
            struct.pack(">iq", fields["reconsume_times"], fields["prepared_offset"]),
            struct.pack(">i", len(body)) + body,
            struct.pack(">h" if long_topic else ">b", len(topic)) + topic,
            struct.pack(">h", len(properties)) + properties,
        )
    )
    return struct.pack(">i", len(rest) + 4) + rest


def write_log(
    records: Any, file_bytes: int = 1000, count: int = 100, **fields: Any
) -> tuple[bytearray, list[int]]:
    """Return a file of small records, ended by a blank, and where each begins; `count` at most."""
    out = bytearray(file_bytes)
    at = 0
    starts = []
    for number in range(count):
        given_fields = {
            "queue_id": 0,
            "queue_offset": number,
            "physical_offset": at,
            "store_timestamp": 1000 + number,
            "store_host": V4,
            "topic": b"t",
            "body": b"body %d" % (number % 10),
        } | fields
        size = records.record_size(
            8, len(given_fields["store_host"]), len(given_fields["topic"]), 0, len(given_fields["body"])
        )
        if at + size + 8 > file_bytes:
            records.encode_blank(out, at, file_bytes - at)
            break
        starts.append(at)
        at = records.encode(out, at, **given_fields)
    return out, starts


@both
@given(fields=FIELDS, at=st.integers(0, 50))
def test_encode_gives_the_bytes_of_the_format(records: Any, fields: dict[str, Any], at: int) -> None:
    """V1 and V2, IPv4 and IPv6: every field at its place, nothing beside the record is touched."""
    expected = packed(fields)
    out = bytearray(b"\xee" * (at + len(expected) + 9))
    end = records.encode(out, at, **fields)
    assert end == at + len(expected)
    assert bytes(out) == b"\xee" * at + expected + b"\xee" * 9
    sizes = (len(fields[name]) for name in ("born_host", "store_host", "topic", "properties", "body"))
    assert records.record_size(*sizes) == len(expected)


@both
def test_crc_is_that_of_zlib(records: Any) -> None:
    """Of bodies of every length, wherever they lie: the way with the processor's help goes by blocks."""
    source = random.Random(3).randbytes(70_000)
    out = bytearray(71_000)
    sizes = [*range(0, 1_000), 1023, 1024, 4097, 65_536, 69_999]
    places = [(start, size) for start in range(1, 40) for size in (200, 1_000)]
    for at, size in [(0, size) for size in sizes] + places:
        body = memoryview(source)[at : at + size]
        records.encode(
            out, at, queue_id=0, queue_offset=0, physical_offset=0, store_timestamp=0, store_host=V4,
            topic=b"t", body=body,
        )  # fmt: skip
        assert struct.unpack_from(">i", out, at + 8)[0] == (zlib.crc32(body) & 0x7FFFFFFF if size else 0)


@both
@given(fields=FIELDS, at=st.integers(0, 50))
def test_decode_gives_back_what_was_encoded(records: Any, fields: dict[str, Any], at: int) -> None:
    out = bytearray(at) + packed(fields) + b"behind"
    header = records.decode(out, at, True)
    body = bytes(out[header.body_at : header.body_at + header.body_size])
    assert body == fields["body"]
    for name in set(fields) - {"body", "sys_flag"}:
        assert getattr(header, name) == fields[name], name
    assert header.sys_flag & ~0x30 == fields["sys_flag"] & ~0x30
    assert header.total_size == len(packed(fields))


@both
def test_encode_refuses_what_does_not_fit(records: Any) -> None:
    fields: dict[str, Any] = {
        "queue_id": 0,
        "queue_offset": 0,
        "physical_offset": 0,
        "store_timestamp": 0,
        "store_host": V4,
        "topic": b"t",
        "body": b"",
    }
    for out, at, more in (
        (bytearray(91), 0, {}),
        (bytearray(200), 150, {}),
        (bytearray(200), -1, {}),
        (bytearray(200), 0, {"topic": b""}),
        (bytearray(200), 0, {"store_host": b"1234"}),
        (bytearray(40_000), 0, {"properties": bytes(32_768)}),
        (bytearray(40_000), 0, {"topic": bytes(32_768)}),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            records.encode(out, at, **(fields | more))
    with pytest.raises(ValueError, match="blank"):
        records.encode_blank(bytearray(7), 0, 7)
    assert records.encode(bytearray(92), 0, **fields) == 92


@both
def test_scan_walks_to_the_blank(records: Any) -> None:
    """All records of a file, then the record that ends it, which must reach exactly to the end."""
    log, starts = write_log(records)
    found = records.scan(log, 0, 0)
    assert (found.reason, found.records, found.last_start) == (records.ScanEnd.BLANK, len(starts), starts[-1])
    assert found.last_store_timestamp == 1000 + len(starts) - 1
    wrong = bytearray(log)
    struct.pack_into(">i", wrong, found.end, 1000 - found.end - 1)
    assert records.scan(wrong, 0, 0).reason == records.ScanEnd.BAD_SIZE


@both
def test_scan_goes_on_in_the_middle_and_stops_when_asked(records: Any) -> None:
    log, starts = write_log(records)
    found = records.scan(log, starts[2], 0, True, starts[4])
    assert (found.end, found.reason, found.records) == (starts[4], records.ScanEnd.STOP, 2)
    assert records.scan(log, starts[2], 0, True, starts[4] + 1).end == starts[5]
    assert records.scan(log, starts[2], 0, True, starts[2])._replace(last_store_timestamp=0) == (
        starts[2],
        records.ScanEnd.STOP,
        0,
        0,
        -1,
    )


@both
def test_scan_ends_at_zeros(records: Any) -> None:
    log, _ = write_log(records, count=3)
    found = records.scan(log, 0, 0)
    assert (found.reason, found.records) == (records.ScanEnd.EMPTY, 3)
    assert records.scan(bytearray(7), 0, 0).reason == records.ScanEnd.STOP


@both
def test_scan_refuses_a_record_of_another_place(records: Any) -> None:
    """With records of one size, stale bytes behind a cut look right in every other way."""
    log, starts = write_log(records)
    assert records.scan(log, 0, 1000).reason == records.ScanEnd.BAD_PLACE
    size = starts[1]
    log[starts[3] : starts[4]] = log[starts[2] : starts[3]]
    found = records.scan(log, 0, 0)
    assert (found.end, found.reason) == (3 * size, records.ScanEnd.BAD_PLACE)


@both
def test_scan_compares_the_crc_when_asked(records: Any) -> None:
    log, starts = write_log(records)
    log[starts[1] + 88] ^= 1
    assert records.scan(log, 0, 0)[:2] == (starts[1], records.ScanEnd.BAD_CRC)
    assert records.scan(log, 0, 0, False).reason == records.ScanEnd.BLANK


def with_crc(**fields: Any) -> bytes:
    """A record with the property that is its own CRC (storage reference §2.4)."""
    whole = {
        "queue_id": 1, "queue_offset": 2, "physical_offset": 0, "store_timestamp": 4, "store_host": V4,
        "topic": b"topic", "body": b"body", "properties": b"A\x01b\x02", "flag": 0, "sys_flag": 0,
        "born_timestamp": 5, "born_host": V6, "reconsume_times": 0, "prepared_offset": 0,
    } | fields  # fmt: skip
    record = packed(whole | {"properties": whole["properties"] + bytes(20)})[:-20]
    return record + b"__CRC32#\x01" + (b"%010d" % (zlib.crc32(record) & 0x7FFFFFFF))[::-1] + b"\x02"


@both
def test_a_record_is_compared_with_its_own_crc(records: Any) -> None:
    """No bit of it may be another one, not even in the name that says that it is a CRC."""
    whole = bytearray(with_crc())
    assert records.scan(whole, 0, 0).records == 1
    for at in range(len(whole)):
        for bit in range(8):
            whole[at] ^= 1 << bit
            assert records.scan(whole, 0, 0).records == 0, at
            assert records.scan(whole, 0, 0, records.CRC_DEMAND).records == 0, at
            whole[at] ^= 1 << bit
    assert records.scan(whole, 0, 0, records.CRC_DEMAND).records == 1


@both
@given(fields=FIELDS)
def test_the_crc_of_any_record(records: Any, fields: dict[str, Any]) -> None:
    """Whatever it has; a record without is as good as its body, unless one is demanded."""
    place = fields["physical_offset"]
    assert records.scan(with_crc(**fields), 0, place, records.CRC_DEMAND).records == 1
    assert records.scan(packed(fields), 0, place).records == 1
    assert records.scan(packed(fields), 0, place, records.CRC_DEMAND).reason == records.ScanEnd.BAD_CRC


@both
def test_decode_refuses_what_is_no_record(records: Any) -> None:
    log, _ = write_log(records, count=1)
    for view, at in ((log, 1), (log[:50], 0), (log, 990), (log, -1), (bytearray(100), 0)):
        with pytest.raises(ValueError, match="no record"):
            records.decode(view, at)
    log[88] ^= 1
    assert records.decode(log, 0).body_size == 6
    with pytest.raises(ValueError, match="CRC"):
        records.decode(log, 0, True)


@both
@given(data=st.data())
def test_scan_survives_any_bytes(records: Any, data: Any) -> None:
    """Damage anywhere never leads out of the view, and never to a record that was not written."""
    log, starts = write_log(records, 600)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(log) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8))
        log[at : at + len(piece)] = piece[: len(log) - at]
    found = records.scan(log, 0, 0)
    assert found.end in [*starts, found.end]
    assert 0 <= found.end <= len(log)
    assert found.records <= len(starts) + 1


@pytest.mark.skipif(len(KERNELS) < 2, reason="the kernels are not compiled here")
@given(noise=st.binary(max_size=400), fields=FIELDS, data=st.data())
def test_compiled_and_uncompiled_agree(noise: bytes, fields: dict[str, Any], data: Any) -> None:
    """On whole records, on damaged ones and on noise."""
    log = bytearray(packed(fields | {"physical_offset": 0}) + noise)
    for _ in range(data.draw(st.integers(0, 2))):
        log[data.draw(st.integers(0, len(log) - 1))] = data.draw(st.integers(0, 255))
    view = memoryview(log).toreadonly()
    for check_crc in (PURE.CRC_NOT, PURE.CRC_CHECK, PURE.CRC_DEMAND):
        assert COMPILED.scan(view, 0, 0, check_crc) == PURE.scan(view, 0, 0, check_crc)
    answers = []
    for records in KERNELS:
        try:
            answers.append(tuple(records.decode(view, 0)))
        except ValueError as error:
            answers.append(str(error))
    assert answers[0] == answers[1]
