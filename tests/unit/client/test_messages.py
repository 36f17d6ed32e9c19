"""Messages to send are checked; received ones are read lazily and say what was stored."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.client.fakes import encode_record

from actormq.client.messages import (
    Message,
    as_message,
    check_body,
    check_topic,
    compress,
    encode_user_properties,
)
from actormq.client.received import decode_messages
from actormq.client.results import MessageQueue
from actormq.errors import MessageRejected, PeerError
from actormq.message import SysFlag, decode_properties

QUEUE = MessageQueue("orders", "broker-a", 3)
TEXT = st.text(
    st.characters(exclude_characters="\x01\x02", exclude_categories=["Cs"]), min_size=1, max_size=40
)


@given(
    st.binary(min_size=1, max_size=300),
    st.dictionaries(TEXT, TEXT, max_size=5),
    st.integers(0, 2**60),
    st.integers(-(2**31), 2**31 - 1),
)
def test_a_stored_message_is_read_as_it_was_written(
    body: bytes, properties: dict[str, str], queue_offset: int, flag: int
) -> None:
    """Every field comes back, whatever the lengths around it."""
    data = encode_record(
        "orders", body, properties, queue_id=3, queue_offset=queue_offset, log_offset=77, flag=flag
    )
    [message] = decode_messages(data, QUEUE)
    assert message.queue_offset == queue_offset
    assert (message.topic, message.body, message.properties) == ("orders", body, properties)
    assert (message.flag, message.log_offset, message.stored_bytes) == (flag, 77, len(data))
    assert (message.born_timestamp_ms, message.store_timestamp_ms) == (1_000, 2_000)
    assert message.store_host == "127.0.0.1:10911"


def test_several_messages_lie_one_behind_the_other() -> None:
    data = b"".join(encode_record("orders", b"%d" % index, queue_offset=index) for index in range(5))
    messages = decode_messages(data, QUEUE)
    assert [message.body for message in messages] == [b"0", b"1", b"2", b"3", b"4"]
    assert [message.queue_offset for message in messages] == [0, 1, 2, 3, 4]


def test_a_long_topic_has_a_two_byte_length() -> None:
    """Records of the second version, which retry topics of long groups need."""
    topic = "%RETRY%" + "g" * 200
    [message] = decode_messages(encode_record(topic, b"x", {"RETRY_TOPIC": "orders"}), QUEUE)
    assert (message.stored_topic, message.topic) == (topic, "orders")


def test_a_producer_with_an_ipv6_address() -> None:
    host = bytes(15) + b"\1" + (4321).to_bytes(4, "big")
    [message] = decode_messages(
        encode_record("orders", b"x", {"TAGS": "a"}, born_host=host, reconsume_times=2), QUEUE
    )
    assert (message.born_host, message.tags, message.reconsume_times) == ("[::1]:4321", "a", 2)
    assert message.offset_message_id == "7F00000100002A9F" + "0" * 16


def test_a_compressed_body_comes_out_as_it_went_in() -> None:
    body, bits = compress(b"abc" * 5_000, 4_096)
    assert len(body) < 200
    assert bits == SysFlag.COMPRESSED | 0x300
    [message] = decode_messages(encode_record("orders", body, sys_flag=bits), QUEUE)
    assert message.body == b"abc" * 5_000
    assert message.stored_body == body


def test_small_bodies_are_not_compressed() -> None:
    assert compress(b"abc", 4_096) == (b"abc", 0)


def test_old_clients_mark_zlib_by_one_bit() -> None:
    data = encode_record("orders", zlib.compress(b"old"), sys_flag=1)
    assert decode_messages(data, QUEUE)[0].body == b"old"


def test_a_body_that_cannot_be_decompressed_says_what_to_do() -> None:
    data = encode_record("orders", b"???", sys_flag=0x201)
    with pytest.raises(PeerError, match="pip install zstandard"):
        _ = decode_messages(data, QUEUE)[0].body
    with pytest.raises(PeerError, match="zlib"):
        _ = decode_messages(encode_record("orders", b"???", sys_flag=1), QUEUE)[0].body


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 255))
def test_damaged_records_raise_peer_error_and_nothing_else(body: bytes, at: int, value: int) -> None:
    """A broker that sends garbage cannot end the client's thread."""
    data = bytearray(encode_record("orders", body or b"x", {"TAGS": "a"}))
    data[at % len(data)] = value
    try:
        for message in decode_messages(bytes(data), QUEUE):
            _ = message.tags, message.topic, message.stored_body
    except PeerError:
        pass


@pytest.mark.parametrize("data", [b"\0" * 91, b"x" * 200, encode_record("orders", b"x")[:-1]])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode_messages(data, QUEUE)


def test_user_properties() -> None:
    text = encode_user_properties("paid", ["1", "2"], {"color": "red"}, delay_level=3, wait_stored=False)
    assert decode_properties(text) == {
        "color": "red", "KEYS": "1 2", "TAGS": "paid", "DELAY": "3", "WAIT": "false",
    }  # fmt: skip
    assert encode_user_properties() == b""


@pytest.mark.parametrize(
    "arguments",
    [
        {"tags": "a\x01b"},
        {"keys": "a\x02"},
        {"properties": {"TAGS": "x"}},
        {"properties": {"a": 1}},
        {"properties": {"a": "b" * 32_767}},
    ],
)
def test_properties_that_would_break_the_property_string_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(MessageRejected):
        encode_user_properties(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("topic", ["", "a" * 128, "a b", "ä", "SCHEDULE_TOPIC_XXXX"])
def test_illegal_topics_are_refused(topic: str) -> None:
    with pytest.raises(MessageRejected):
        check_topic(topic)


def test_legal_topics_pass() -> None:
    for topic in ("a", "%RETRY%g", "a|b_c-9", "a" * 127):
        check_topic(topic)


def test_bodies_are_bytes_of_at_least_one_and_at_most_the_limit() -> None:
    check_body(b"x" * 10, 10)
    for body in (b"", b"x" * 11, "text"):
        with pytest.raises(MessageRejected):
            check_body(body, 10)  # type: ignore[arg-type]


def test_a_message_object_excludes_options() -> None:
    assert as_message(b"x", {"tags": "a"}) == Message(b"x", tags="a")
    with pytest.raises(MessageRejected, match="tags"):
        as_message(Message(b"x"), {"tags": "a"})
