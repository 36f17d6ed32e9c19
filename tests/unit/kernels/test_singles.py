"""A client's single send: written as by the general encoder, its answer read as by the general decoder."""

from __future__ import annotations

import struct
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_twins import each_of, twins

from actormq.wire import frame
from actormq.wire.codes import RequestCode
from actormq.wire.command import BROKER_VERSION, FLAG_ONEWAY, Language, RemotingCommand, Serialize

KERNELS = twins("singles")
PURE = KERNELS[0]
both = each_of(KERNELS)

KIND = struct.pack(">hBh", RequestCode.SEND_MESSAGE_V2, Language.PYTHON, BROKER_VERSION)
texts = st.text(max_size=40)
fields = st.dictionaries(st.text(min_size=1, max_size=14), st.text(min_size=1, max_size=40), max_size=6)


def field(key: str, value: str) -> bytes:
    key_bytes, value_bytes = key.encode("utf-8", "replace"), value.encode("utf-8", "replace")
    return struct.pack(">H", len(key_bytes)) + key_bytes + struct.pack(">i", len(value_bytes)) + value_bytes


def binary(fields: dict[str, str], *, code: int = 0, opaque: int = 7, flag: int = 1, **more: object) -> bytes:
    answer = RemotingCommand(
        code=code, flag=flag, opaque=opaque, fields=fields, serialize=Serialize.BINARY, **more
    )  # type: ignore[arg-type]
    return frame.encode(answer)


@both
@given(
    st.integers(0, 0x7FFF_FFFF),
    st.booleans(),
    st.binary(max_size=60),
    st.integers(0, 10**15),
    texts,
    st.binary(max_size=200),
)
def test_a_send_is_written_as_the_general_encoder_writes_it(
    kernel: ModuleType, opaque: int, oneway: bool, tail: bytes, born_ms: int, properties: str, body: bytes
) -> None:
    topic = f"t{tail.hex()}"
    command = RemotingCommand(
        code=RequestCode.SEND_MESSAGE_V2,
        flag=FLAG_ONEWAY if oneway else 0,
        opaque=opaque,
        fields={"b": topic, "g": str(born_ms), **({"i": properties} if properties else {})},
        body=body,
        language=Language.PYTHON,
        serialize=Serialize.BINARY,
    )
    written = kernel.write_send(
        KIND,
        opaque,
        command.flag,
        field("b", topic),
        born_ms,
        properties.encode("utf-8", "replace"),
        body,
    )
    assert written == frame.encode(command)


STORED = {
    "MSG_REGION": "DefaultRegion",
    "TRACE_ON": "true",
    "msgId": "7F00000100002A9F0000000000000010",
    "queueId": "3",
    "queueOffset": "123456789012",
    "transactionId": "A" * 32,
}


@both
def test_an_answer_is_read(kernel: ModuleType) -> None:
    assert kernel.read_stored(binary(STORED, code=10)) == (
        10,
        3,
        123_456_789_012,
        STORED["msgId"],
        STORED["transactionId"],
        "DefaultRegion",
    )
    few = {"queueOffset": "0", "queueId": "0"}
    assert kernel.read_stored(binary(few)) == (0, 0, 0, "", "", "")


@both
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 28,
        binary(STORED, remark="why not"),
        binary({**STORED, "queueId": "x"}),
        binary({**STORED, "queueId": "-1"}),
        binary({**STORED, "queueOffset": "1" * 19}),
        binary({"queueId": "1"}),
        binary({}),
        frame.encode(RemotingCommand(code=0, flag=1, fields=STORED)),
        binary(STORED)[:-1],
        binary(STORED)[:60],
    ],
)
def test_what_is_uncommon_is_left_to_the_general_decoder(kernel: ModuleType, data: bytes) -> None:
    assert kernel.read_stored(data) is None


@both
@given(st.binary(max_size=80), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_are_too_odd(kernel: ModuleType, tail: bytes, place: int, byte: int) -> None:
    """Damaged answers are read within their bounds: the same in both modes, a tuple or None."""
    data = bytearray(binary(STORED) + tail)
    data[place % len(data)] = byte
    assert kernel.read_stored(bytes(data)) == PURE.read_stored(bytes(data))
    assert kernel.is_answer(bytes(data), 7) == PURE.is_answer(bytes(data), 7)


@both
@given(fields)
def test_fields_are_read_as_the_general_decoder_reads_them(kernel: ModuleType, more: dict[str, str]) -> None:
    data = binary({**more, **STORED})
    assert kernel.read_stored(data)[3:] == (STORED["msgId"], STORED["transactionId"], "DefaultRegion")
    assert frame.decode(data[4:]).fields["msgId"] == STORED["msgId"]


@both
def test_what_answers_a_request(kernel: ModuleType) -> None:
    whole = binary(STORED, opaque=7)
    assert kernel.is_answer(whole, 7)
    assert kernel.is_answer(binary(STORED, opaque=7, code=1, remark="no"), 7)
    for other in (
        whole[:-1],
        whole + b"x",
        whole + whole,
        binary(STORED, opaque=8),
        binary(STORED, opaque=7, flag=0),
        frame.encode(RemotingCommand(code=0, flag=1, opaque=7, fields=STORED)),
        b"",
    ):
        assert not kernel.is_answer(other, 7)
