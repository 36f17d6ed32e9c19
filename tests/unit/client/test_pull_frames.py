"""Pulls written from templates say what the general request says; answers are read alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.client import requests
from actormq.client.procedures import JsonFrame
from actormq.client.pull_frames import PullFrames, parse_pull
from actormq.client.requests import PullStatus
from actormq.client.results import MessageQueue
from actormq.errors import PeerError, RequestRefused
from actormq.message import QueueOffset
from actormq.wire import frame, json
from actormq.wire.command import RemotingCommand

LIMITS = {"messages_max": 32, "bytes_max": 262_144, "suspend_ms": 15_000}
offsets = st.integers(0, 2**62).map(QueueOffset)
names = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=20)
queues = st.builds(MessageQueue, names | st.just("%RETRY%g"), names, st.integers(0, 2**31 - 1))


@given(
    names,
    st.lists(st.tuples(queues, offsets, st.integers(0, 2**60), st.none() | offsets), min_size=1, max_size=4),
)
def test_a_frame_says_what_the_general_request_says(
    group: str, pulls: list[tuple[MessageQueue, QueueOffset, int, QueueOffset | None]]
) -> None:
    """Whatever was pulled before: nothing of one pull stays in the next one's frame."""
    frames = PullFrames(group, **LIMITS)
    for opaque, (queue, offset, version, commit) in enumerate(pulls * 2, 1):
        data = frames.encode(queue, offset, version, commit, opaque)
        asked = requests.pull(group, queue, offset, sub_version=version, commit_offset=commit, **LIMITS)
        asked.opaque = opaque
        assert int.from_bytes(data[:4], "big") == len(data) - 4
        assert frame.decode(data[4:]) == asked


FIELDS = {
    "nextBeginOffset": "17",
    "minOffset": "3",
    "maxOffset": "20",
    "suggestWhichBrokerId": "1",
    "topicSysFlag": "0",
}


def as_frame(command: RemotingCommand) -> JsonFrame:
    head, body = frame.split(frame.encode(command)[4:])
    return JsonFrame(json.loads(head[4:]), body)


@pytest.mark.parametrize("code", [0, 19, 20, 21])
def test_an_answer_is_read_as_the_general_one(code: int) -> None:
    command = RemotingCommand(code=code, flag=1, fields=FIELDS, body=b"records", remark="FOUND")
    found = parse_pull(as_frame(command), "there")
    assert found == parse_pull(command, "there")
    assert (found.next_offset, found.min_offset, found.max_offset) == (17, 3, 20)
    assert (found.suggested_broker_id, found.body) == (1, b"records")
    assert found.status is list(PullStatus)[[0, 19, 20, 21].index(code)]


def test_a_refusal_is_raised_with_its_code_and_remark() -> None:
    with pytest.raises(RequestRefused) as caught:
        parse_pull(as_frame(RemotingCommand(code=24, flag=1, remark="who are you?")), "there")
    assert (caught.value.response_code, caught.value.peer_remark) == (24, "who are you?")


@pytest.mark.parametrize(
    "header",
    [
        {"code": 0},
        {"code": 0, "extFields": None},
        {"code": 0, "extFields": {**FIELDS, "maxOffset": "x"}},
        {"code": 0, "extFields": []},
        {"code": [], "extFields": FIELDS},
    ],
)
def test_an_answer_that_says_nothing(header: object) -> None:
    with pytest.raises(PeerError):
        parse_pull(JsonFrame(header, b""), "there")  # type: ignore[arg-type]


def test_numbers_that_a_general_decoder_coerces() -> None:
    fields = {**FIELDS, "maxOffset": 20, "suggestWhichBrokerId": 1}
    found = parse_pull(JsonFrame({"code": 0, "extFields": fields}, b""), "there")
    assert (found.max_offset, found.suggested_broker_id) == (20, 1)
