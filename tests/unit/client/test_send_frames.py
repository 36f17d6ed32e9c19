"""Sends written from templates say what the general request says; answers are read alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.client import requests
from actormq.client.requests import Outgoing
from actormq.client.results import MessageQueue
from actormq.client.send_frames import SendFrames, parse_stored
from actormq.errors import ConnectionLost, PeerError, RequestRefused
from actormq.message import SendStatus
from actormq.wire import frame
from actormq.wire.command import RemotingCommand, Serialize

QUEUE = MessageQueue("orders", "broker-a", 2)
surrogates = st.text(max_size=30) | st.just("name\x01\ud800 alone\x02")
outgoing = st.builds(
    Outgoing,
    body=st.binary(min_size=1, max_size=100),
    properties=surrogates.map(lambda text: text.encode("utf-8", "surrogatepass")),
    message_ids=st.just(["ID"]),
    sys_flag=st.sampled_from([0, 0, 1, 0x301]),
    flag=st.sampled_from([0, 0, 7]),
    batch=st.booleans(),
    reconsume_times=st.sampled_from([0, 0, 3]),
    max_reconsume_times=st.sampled_from([None, None, 16]),
)


@given(st.lists(outgoing, min_size=1, max_size=4), st.integers(0, 2**41), st.booleans())
def test_a_frame_says_what_the_general_request_says(
    messages: list[Outgoing], born_ms: int, oneway: bool
) -> None:
    """Whatever was sent to the queue before: nothing of one message stays in the next one's frame."""
    frames = SendFrames("shop", 4)
    for opaque, message in enumerate(messages, 1):
        data = frames.encode(QUEUE, message, born_ms, opaque, oneway)
        found = frame.decode(data[4:])
        asked = requests.send("shop", QUEUE, message, born_ms, queues_wanted=4, oneway=oneway)
        expected = {
            name: value.encode("utf-8", "replace").decode() for name, value in asked.fields.items() if value
        }
        assert len(data) == 4 + int.from_bytes(data[:4], "big")
        assert found.fields == expected
        assert (found.code, found.flag, found.opaque) == (asked.code, asked.flag, opaque)
        assert (found.language, found.version) == (asked.language, asked.version)
        assert (bytes(found.body), found.serialize) == (message.body, Serialize.BINARY)


def test_other_kinds_of_bytes_are_bodies_too() -> None:
    for body in (bytearray(b"body"), memoryview(b"body")):
        message = Outgoing(body=body, properties=b"", message_ids=["ID"])  # type: ignore[arg-type]
        data = SendFrames("shop", 4).encode(QUEUE, message, 0, 1)
        assert frame.decode(data[4:]).body == b"body"


def answer(fields: dict[str, str], serialize: Serialize, code: int = 0, remark: str | None = None) -> bytes:
    return frame.encode(
        RemotingCommand(code=code, flag=1, opaque=1, fields=fields, serialize=serialize, remark=remark)
    )


@pytest.mark.parametrize("serialize", list(Serialize))
def test_an_answer_is_read_whatever_its_header(serialize: Serialize) -> None:
    fields = {"msgId": "A,B", "queueId": "3", "queueOffset": "17", "MSG_REGION": "here"}
    stored = parse_stored(answer(fields, serialize, 10), QUEUE, "there")
    assert stored == requests.Stored(
        SendStatus.FLUSH_DISK_TIMEOUT, QUEUE._replace(queue_id=3), stored.queue_offset, "A,B", "", "here"
    )
    assert stored.queue_offset == 17


@pytest.mark.parametrize("serialize", list(Serialize))
def test_a_refusal_is_raised_with_its_code_and_remark(serialize: Serialize) -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_stored(answer({}, serialize, 17, "no such topic"), QUEUE, "there")
    assert (caught.value.response_code, caught.value.peer_remark) == (17, "no such topic")
    odd = {"queueId": "1", "queueOffset": "1"}
    with pytest.raises(RequestRefused):
        parse_stored(answer(odd, serialize, 1), QUEUE, "there")


def test_an_answer_that_says_nothing() -> None:
    with pytest.raises(PeerError):
        parse_stored(answer({"queueId": "1"}, Serialize.BINARY), QUEUE, "there")
    with pytest.raises(ConnectionLost, match="no frame"):
        parse_stored(b"\0\0\0\4\7\0\0\0", QUEUE, "there")
