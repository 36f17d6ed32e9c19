"""The tolerant JSON reader: standard JSON as it is, fastjson's shapes besides, FrameError for the rest."""

from __future__ import annotations

import contextlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.errors import FrameError
from actormq.wire import json

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_the_tolerant_parser_reads_standard_json(value: object) -> None:
    """Both readers agree on what is standard."""
    text = orjson.dumps(value)
    assert json.loads(text) == value
    assert json._Parser(text.decode(), len(text)).document() == value


@given(values)
def test_fastjson_writing_reads_back(value: object) -> None:
    """What we write in the old shape, we read."""
    assert json.loads(json.dumps_fastjson(value)) == value


@given(st.text(max_size=60) | st.text(alphabet="{}[]:,'\"\\u0a1.-+eEtrue null", max_size=40))
def test_any_text_is_a_value_or_a_frame_error(text: str) -> None:
    """Garbage raises FrameError and nothing else."""
    with contextlib.suppress(FrameError):
        json.loads(text)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_a_frame_error(data: bytes) -> None:
    """Also bytes that are no UTF-8."""
    with contextlib.suppress(FrameError):
        json.loads(data)


def test_integer_keys_without_quotes() -> None:
    """Routes of brokers before 4.9.4."""
    assert json.loads(b'{"brokerAddrs":{0:"a:1",1:"b:2"}}') == {"brokerAddrs": {"0": "a:1", "1": "b:2"}}


def test_objects_as_keys() -> None:
    """offsetTable: the key reads alike in both forms."""
    old = json.loads('{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"t"}:5}}')
    new = json.loads('{"offsetTable":{"{\\"brokerName\\":\\"b\\",\\"queueId\\":0,\\"topic\\":\\"t\\"}":5}}')
    assert old == new
    (key,) = old["offsetTable"]
    assert json.key_object(key) == {"brokerName": "b", "queueId": 0, "topic": "t"}


def test_object_keys_are_written_in_either_shape() -> None:
    """Standard: a string; fastjson: the object itself, integer keys bare; no blanks in either."""
    value = {"t": {json.ObjectKey.of({"topic": "t", "queueId": 0}): {0: "x"}}}
    assert json.dumps(value) == b'{"t":{"{\\"queueId\\":0,\\"topic\\":\\"t\\"}":{"0":"x"}}}'
    assert json.dumps_fastjson(value) == b'{"t":{{"queueId":0,"topic":"t"}:{0:"x"}}}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a':'b\\'c'}", {"a": "b'c"}),
        ("{a:1,,}", {"a": 1}),
        ("[1,,2,]", [1, 2]),
        ("{a:'\\u0041\\x42'}", {"a": "AB"}),
        ("{a:.5,b:+2}", {"a": 0.5, "b": 2}),
        ("{a:NaN}", {"a": None}),
        ("{a:123456789012345678901234567890}", {"a": 1.2345678901234568e29}),
        ("{a:'\\ud83d\\ude00'}", {"a": "\U0001f600"}),
        ("{a:'\\ud83d'}", {"a": "\ufffd"}),
    ],
)
def test_quirks(text: str, value: object) -> None:
    """One line per quirk that fastjson takes."""
    assert json.loads(text) == value


@pytest.mark.parametrize(
    "text", ["", "{", "[1", "{a}", "{a:}", "'x", "{a:1}}", "{1 2}", "tru", "'\\", "'\\u12"]
)
def test_broken_text_is_refused(text: str) -> None:
    """No guess where the meaning is not clear."""
    with pytest.raises(FrameError):
        json.loads(text)


@pytest.mark.parametrize("text", ["[" * 64 + "]" * 64, "[" * 64 + "1,," + "]" * 64])
def test_the_deepest_nesting_that_is_read(text: str) -> None:
    """64 levels, by either reader."""
    json.loads(text)


@pytest.mark.parametrize("text", ["[" * 66 + "]" * 66, "{a:" * 65 + "1" + "}" * 65, "[" * 100_000])
def test_deeper_nesting_is_refused(text: str) -> None:
    """A bomb of brackets costs a FrameError, not the stack."""
    with pytest.raises(FrameError):
        json.loads(text)


@pytest.mark.parametrize("text", ["[1,,2,3,4]", "{a:1,b:[2,3]}", "'\\n\\n\\n\\n'"])
def test_what_is_not_standard_has_a_price(text: str) -> None:
    """Values and escapes are counted: a peer cannot buy seconds of our time with one message."""
    with pytest.raises(FrameError, match="too many"):
        json.loads(text, 4)
    json.loads(text, 5)
    json.loads(text)


def test_commas_and_plain_text_cost_nothing() -> None:
    """A megabyte of either is read at once."""
    assert json.loads(b"[" + b"," * (1 << 20) + b"]", 1) == []
    assert json.loads(b"'" + b"x" * (1 << 20) + b"'", 1) == "x" * (1 << 20)
