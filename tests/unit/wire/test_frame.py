"""Frames: both header forms, both ways, however chunked; garbage raises FrameError and nothing else."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.errors import FrameError
from actormq.wire import frame
from actormq.wire.command import FLAG_RESPONSE, Language, RemotingCommand, Serialize
from actormq.wire.frame import FrameCutter

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
int32 = st.integers(-(1 << 31), (1 << 31) - 1)


@st.composite
def commands(draw: st.DrawFn) -> RemotingCommand:
    return RemotingCommand(
        code=draw(st.integers(-2000, 3010)),
        flag=draw(st.integers(0, 3)),
        opaque=draw(int32),
        remark=draw(st.none() | texts.filter(bool)),
        fields=draw(st.dictionaries(texts.filter(bool), texts.filter(bool), max_size=6)),
        body=draw(st.binary(max_size=200)),
        language=draw(st.sampled_from(Language)),
        version=draw(st.integers(0, 700)),
        serialize=draw(st.sampled_from(Serialize)),
    )


@given(commands())
def test_a_command_survives_the_wire(command: RemotingCommand) -> None:
    """Encoding and decoding changes nothing, in either header form."""
    encoded = frame.encode(command)
    assert struct.unpack(">I", encoded[:4]) == (len(encoded) - 4,)
    assert frame.decode(encoded[4:]) == command


@given(commands())
def test_the_head_alone_is_the_frame_without_its_body(command: RemotingCommand) -> None:
    """A body that is sent from where it lies gives the same bytes."""
    assert frame.encode_head(command) + bytes(command.body) == frame.encode(command)


@given(st.lists(commands(), max_size=5), st.lists(st.integers(1, 60), max_size=60))
def test_frames_read_alike_however_chunked(batch: list[RemotingCommand], sizes: list[int]) -> None:
    """The cutter finds the same frames in any cut of the stream."""
    stream = b"".join(frame.encode(command) for command in batch)
    cutter = FrameCutter()
    frames: list[bytes] = []
    at = 0
    for size in [*sizes, len(stream)]:
        frames += cutter.feed(stream[at : at + size])
        at += size
    assert [frame.decode(one) for one in frames] == batch
    assert cutter.pending_bytes == 0


@given(st.binary(max_size=300))
def test_garbage_is_a_frame_error(garbage: bytes) -> None:
    """Whatever the bytes: a command, or FrameError."""
    for marked in (garbage, _marked(0, garbage), _marked(1, garbage)):
        with contextlib.suppress(FrameError):
            frame.decode(marked)


@given(commands(), st.data())
def test_a_flipped_byte_is_a_command_or_a_frame_error(command: RemotingCommand, data: st.DataObject) -> None:
    """Damage inside a well-formed frame never raises anything else."""
    encoded = bytearray(frame.encode(command)[4:])
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FrameError):
        frame.decode(encoded)


def _marked(kind: int, header: bytes) -> bytes:
    return struct.pack(">I", kind << 24 | len(header)) + header


def test_a_length_beyond_the_limit_breaks_the_stream_at_once() -> None:
    """16 MiB is the limit, prefix included: the error comes with the four bytes, not with the frame."""
    cutter = FrameCutter(max_bytes=1024)
    assert cutter.feed(struct.pack(">I", 1021)[:3]) == []
    with pytest.raises(FrameError):
        cutter.feed(struct.pack(">I", 1021)[3:])


def test_good_frames_before_a_bad_length_are_still_served() -> None:
    """The frames that came whole are returned; the error comes with the next bytes."""
    good = frame.encode(RemotingCommand(code=1))
    cutter = FrameCutter()
    assert cutter.feed(good + struct.pack(">I", 0xFFFFFFFF)) == [good[4:]]
    assert cutter.broken is not None
    with pytest.raises(FrameError):
        cutter.feed(b"more")


def test_a_frame_of_exactly_the_limit_passes() -> None:
    """1,020 bytes behind the prefix are 1,024 with it."""
    body = struct.pack(">I", 1020) + bytes(1020)
    assert FrameCutter(max_bytes=1024).feed(body) == [bytes(1020)]


@pytest.mark.parametrize("number", [3442, 3443, 3444, 3445, 3446, 3447, 3448, 3543])
def test_binary_requests_mean_the_pop_codes_that_16_bits_cut(number: int) -> None:
    """A binary header truncates 200050…: requests get the whole number back, responses are left alone."""
    request = RemotingCommand(code=number, serialize=Serialize.BINARY)
    assert frame.decode(frame.encode(request)[4:]).code == number - 3442 + 200050
    request.flag = FLAG_RESPONSE
    assert frame.decode(frame.encode(request)[4:]).code == number
    whole = RemotingCommand(code=number - 3442 + 200050, serialize=Serialize.BINARY)
    assert frame.decode(frame.encode(whole)[4:]) == whole


def test_json_values_that_are_no_strings_are_coerced_as_java_does() -> None:
    """Numbers and booleans in extFields become Java's texts; null disappears; language may be a number."""
    header = json.dumps(
        {"code": "10", "language": 9, "extFields": {"a": 1, "b": True, "c": None, "d": "x"}, "new": [1]}
    ).encode()
    command = frame.decode(_marked(0, header))
    assert command.code == 10
    assert command.language is Language.GO
    assert command.fields == {"a": "1", "b": "true", "d": "x"}


def test_what_fastjson_would_read_is_read() -> None:
    """Unquoted keys and single quotes in a header."""
    command = frame.decode(_marked(0, b"{code:34,opaque:-7,extFields:{'k':'v',},}"))
    assert (command.code, command.opaque, command.fields) == (34, -7, {"k": "v"})


def test_every_json_key_that_java_writes_is_there() -> None:
    """The header names what Java and Go read; null is left out, not written."""
    header = json.loads(frame.encode(RemotingCommand(code=1, opaque=2))[8:])
    assert header == {
        "code": 1,
        "flag": 0,
        "language": "JAVA",
        "opaque": 2,
        "serializeTypeCurrentRPC": "JSON",
        "version": 479,
    }


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x00" * 20,
        struct.pack(">hBhiii", 1, 0, 0, 0, 0, 5) + b"\x00" * 4,
        struct.pack(">hBhiii", 1, 0, 0, 0, 0, -1) + b"\x00" * 4,
        struct.pack(">hBhiiii", 1, 0, 0, 0, 0, 0, 7) + b"\x00\x01k\x00\x00",
        struct.pack(">hBhiiii", 1, 0, 0, 0, 0, 0, 8) + b"\x00\x01k\x00\x00\x00\x09v",
    ],
)
def test_a_binary_header_whose_lengths_lie_is_refused(header: bytes) -> None:
    """Remark, field map and field lengths are checked against what is there."""
    with pytest.raises(FrameError):
        frame.decode(_marked(1, header))


@pytest.mark.parametrize(
    "header",
    [
        b"{'code':1,'remark':[" + b"[]," * 40_000 + b"]}",
        b'{"code":1,"extFields":{' + b",".join(b'"%d":""' % number for number in range(1025)) + b"}}",
    ],
)
def test_a_json_header_of_too_many_values_is_refused(header: bytes) -> None:
    """A header that takes seconds to read would make every other client wait."""
    with pytest.raises(FrameError, match="too many"):
        frame.decode(_marked(0, header))


@pytest.mark.parametrize("pair", [struct.pack(">Hi", 0, 0), struct.pack(">H1si1s", 1, b"k", 1, b"v")])
def test_a_binary_header_of_too_many_fields_is_refused(pair: bytes) -> None:
    """Also when they are empty, or all the same."""
    fixed = struct.pack(">hBhiiii", 1, 0, 0, 0, 0, 0, 1025 * len(pair))
    with pytest.raises(FrameError, match="more than"):
        frame.decode(_marked(1, fixed + pair * 1025))


def test_a_header_longer_than_the_frame_is_refused() -> None:
    """The three length bytes may not point behind the end."""
    with pytest.raises(FrameError):
        frame.decode(struct.pack(">I", 3) + b"{}")


def test_the_body_of_a_memoryview_is_not_copied() -> None:
    """Large bodies go on from the read buffer."""
    encoded = frame.encode(RemotingCommand(code=1, body=b"payload"))
    body = frame.decode(memoryview(encoded)[4:]).body
    assert isinstance(body, memoryview)
    assert body == b"payload"


def test_a_lone_surrogate_is_sent_as_a_question_mark() -> None:
    """Java writes "?"; orjson alone would refuse."""
    decoded = frame.decode(frame.encode(RemotingCommand(code=1, fields={"k": "a\ud800"}))[4:])
    assert decoded.fields == {"k": "a?"}
