"""Request codes: one description each, and the two hot headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.errors import RequestError
from actormq.wire import headers
from actormq.wire.headers import (
    DESCRIPTIONS,
    Action,
    Need,
    PullHeader,
    RequestCode,
    Resource,
    Role,
    SendHeader,
    decode_pull,
    decode_send,
    decode_send_v2,
    encode_send_v2,
)

SERVED = [code for code in RequestCode if DESCRIPTIONS[code].role not in (Role.NOBODY, Role.CLIENT)]


@pytest.mark.parametrize("code", SERVED)
def test_every_code_that_we_serve_needs_a_permission(code: RequestCode) -> None:
    """A new code without a permission would be open to everybody."""
    assert DESCRIPTIONS[code].needs, f"{code.name} has no permission"


@pytest.mark.parametrize("code", SERVED)
def test_a_permission_names_a_field_of_the_request(code: RequestCode) -> None:
    """What the check looks up must be there: a header field, the body, all, or the cluster."""
    description = DESCRIPTIONS[code]
    names = {field.name for field in description.fields} | {"body", "*"}
    for need in description.needs:
        assert need.field in names or need == Need(Resource.CLUSTER, need.actions, ""), need


def test_the_codes_of_a_send_and_a_pull() -> None:
    """Spot checks against the reference table."""
    send = DESCRIPTIONS[310]
    assert send.name == "SEND_MESSAGE_V2"
    assert send.role is Role.GATEWAY
    assert send.needs == (Need(Resource.TOPIC, (Action.PUB,), "b"),)
    assert [field.name for field in send.fields if not field.required] == ["i", "j", "k", "l", "m", "n"]
    assert DESCRIPTIONS[34].role is Role.COORDINATOR
    assert DESCRIPTIONS[300000].name == "GET_ENDPOINTS"


int32 = st.integers(-(1 << 31), (1 << 31) - 1)
send_headers = st.builds(
    SendHeader,
    producer_group=st.text(),
    topic=st.text(),
    default_topic=st.text(),
    default_topic_queues=int32,
    queue_id=int32,
    sys_flag=int32,
    born_timestamp_ms=st.integers(-(1 << 63), (1 << 63) - 1),
    flag=int32,
    properties=st.text(),
    reconsume_times=int32,
    unit_mode=st.booleans(),
    max_reconsume_times=st.none() | int32,
    batch=st.booleans(),
    no_ids=st.booleans(),
)


@given(send_headers)
def test_a_send_header_reads_back(header: SendHeader) -> None:
    """Letters out, letters in."""
    assert decode_send_v2(encode_send_v2(header)) == header


@given(send_headers)
def test_the_long_form_says_the_same(header: SendHeader) -> None:
    """10 carries the same values under their long names."""
    letters = encode_send_v2(header)
    fields = {
        long: letters[short]
        for long, short in zip(headers._LONG, headers._V2, strict=True)
        if short in letters
    }
    if headers.NO_IDS in letters:  # ours: the same name in every form
        fields[headers.NO_IDS] = letters[headers.NO_IDS]
    assert decode_send(10, fields) == header
    assert decode_send(310, letters) == header


@pytest.mark.parametrize("name", list("abcdefgh"))
def test_a_missing_required_field_is_answered(name: str) -> None:
    """SYSTEM_ERROR with the field's name, not a dead role."""
    fields = dict.fromkeys("abcdefgh", "1")
    del fields[name]
    with pytest.raises(RequestError) as caught:
        decode_send_v2(fields)
    assert caught.value.response_code == 1
    assert f"<{name}>" in caught.value.remark


@pytest.mark.parametrize("name", list("defghjl"))
@pytest.mark.parametrize("value", ["", "x", "1.5", "1_0", " 1", "1\n", "9223372036854775808", "9" * 5000])
def test_a_number_that_is_none_is_answered(name: str, value: str) -> None:
    """What Java calls no number is none, and is named."""
    with pytest.raises(RequestError, match=f"<{name}>"):
        decode_send_v2({**dict.fromkeys("abcdefgh", "1"), name: value})


@pytest.mark.parametrize("value", ["2147483648", "-2147483649"])
def test_a_number_out_of_its_range_is_answered(value: str) -> None:
    """Nothing out of 32 bits reaches the store."""
    with pytest.raises(RequestError):
        decode_send_v2({**dict.fromkeys("abcdefgh", "1"), "e": value})


@pytest.mark.parametrize(("value", "number"), [("+7", 7), ("-7", -7), ("007", 7), ("\u0667", 7)])
def test_a_number_that_java_reads_is_read(value: str, number: int) -> None:
    """Signs, leading zeros, any script's digits."""
    assert decode_send_v2({**dict.fromkeys("abcdefgh", "1"), "e": value}).queue_id == number
    assert headers.int_field({"queueId": value}, "queueId") == number


def test_a_pull_header() -> None:
    """All fields, and the defaults of those that may be absent."""
    fields = {
        "consumerGroup": "g",
        "topic": "t",
        "queueId": "3",
        "queueOffset": "5000000000",
        "maxMsgNums": "32",
        "sysFlag": "3",
        "commitOffset": "9",
        "suspendTimeoutMillis": "15000",
        "subVersion": "7",
    }
    assert decode_pull(fields) == PullHeader(
        "g", "t", 3, 5_000_000_000, 32, 3, 9, 15_000, None, 7, "TAG", None
    )
    more = {**fields, "subscription": "*", "expressionType": "SQL92", "maxMsgBytes": "1000"}
    assert decode_pull(more).bytes_max == 1000
    with pytest.raises(RequestError):
        decode_pull({**fields, "queueId": "4294967296"})


def test_check_names_what_is_wrong() -> None:
    """The general check that other codes use."""
    headers.check(30, {"topic": "t", "queueId": "0"})
    with pytest.raises(RequestError, match="queueId"):
        headers.check(30, {"topic": "t"})
    with pytest.raises(RequestError, match="queueId"):
        headers.check(30, {"topic": "t", "queueId": "zero"})
