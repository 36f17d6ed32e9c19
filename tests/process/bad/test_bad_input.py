"""Whatever clients ask a running broker: answered with RocketMQ's code and a remark, alike at every front."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from actormq_process import Dev
from gateway_process import Peer
from gateway_rig import send_request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from process.bad_requests import CASES, Request, ask, item, offset_of, pull, send, topic_of
from process.odd_clients import FRONTS, TOPIC, Clients, broker

from actormq.wire import json
from actormq.wire.command import RemotingCommand
from actormq.wire.headers import DESCRIPTIONS, Description, RequestCode, Role


@pytest.fixture(scope="module")
def clients(dev: Dev) -> Iterator[Clients]:
    made = Clients(dev)
    yield made
    made.close()


def test_the_cases_have_names_of_their_own() -> None:
    names = [name for name, *_ in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("request_", "code", "remark"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_bad_request_is_answered(clients: Clients, request_: Request, code: int, remark: str) -> None:
    """With RocketMQ's code and a remark that says what is wrong, alike at every front."""
    for front in FRONTS:
        request = request_()
        if "binary" in front and "" in [text for name, text in request.fields.items() if name != "i"]:
            continue  # an empty text is an absent one there (wire.md 1.2)
        answer = clients.ask(front, request)
        assert (front, answer.code) == (front, code), answer.remark
        assert re.search(remark, answer.remark or "", re.DOTALL), (front, answer.remark)


def test_a_group_that_commits_absurd_offsets_is_told_where_its_queue_ends(clients: Clients) -> None:
    """Offsets are the consumers' word, as in RocketMQ; a pull from there is set right."""
    for offset in (2**63 - 1, 2**40):
        assert clients.ask("tcp json", offset_of(consumerGroup="g-far", queueId=1)()).code in (0, 26)
        assert clients.ask("tcp json", pull(0, "g-far")()).code == 0
        assert clients.ask("tcp json", offset_of(consumerGroup="g-far", commitOffset=offset)()).code == 0
        told = clients.ask("tcp json", ask(14, topic=TOPIC, consumerGroup="g-far", queueId=0)())
        assert told.fields["offset"] == str(offset)
        moved = clients.ask("tcp json", pull(offset, "g-far")())
        assert (moved.code, moved.fields["nextBeginOffset"]) == (21, moved.fields["maxOffset"])
        assert clients.ask("tcp json", ask(208, consumerGroup="g-far")()).code == 0


def test_without_auto_creation_an_unknown_topic_stays_unknown(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """17, and what to do; one that an administrator makes is there."""
    settings = {"ACTORMQ_COORDINATOR_AUTO_CREATE_TOPICS": "false"}
    with broker(tmp_path_factory.mktemp("closed"), env=settings) as closed:
        peer = Peer(closed)
        for _ in range(2):
            refused = peer.ask(send_request("unknown"))
            assert (refused.code, (refused.remark or "").split("!")[0]) == (
                17,
                "topic[unknown] not exist, apply first please",
            )
        assert peer.ask(topic_of("unknown")()).code == 0
        assert peer.ask(send_request("unknown")).code == 0
        peer.close()
        assert closed.stop() == 0


# --- anything --------------------------------------------------------------------------------------------

NUMBERS = [
    "0",
    "1",
    "-1",
    "7",
    "2147483647",
    "-2147483648",
    "2147483648",
    str(2**63 - 1),
    str(-(2**63)),
    str(2**63),
]
WORDS = [
    "",
    "fuzz",
    "g-fuzz",
    "x",
    "null",
    "true",
    "TAG",
    "*",
    "a||b",
    "../x",
    "\0",
    "k\x01v\x02",
    "\ud800",
    "é" * 90,
]
GOOD_FIELDS = {
    "a": "p", "b": "fuzz", "c": "TBW102", "d": "2", "g": "1700000000000", "topic": "fuzz",
    "consumerGroup": "g-fuzz", "group": "g-fuzz", "producerGroup": "p", "perm": "6",
    "defaultTopic": "TBW102", "defaultTopicQueueNums": "2",
    "readQueueNums": "2", "writeQueueNums": "2", "topicFilterType": "SINGLE_TAG", "clientID": "c@fuzz",
    "suspendTimeoutMillis": "0", "maxMsgNums": "9",
}  # fmt: skip
SERVED = [
    description
    for code, description in DESCRIPTIONS.items()
    if description.role in (Role.GATEWAY, Role.COORDINATOR)
    and code != RequestCode.BYE  # nobody waits for an answer to that
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["clientID", "clientId", "consumerGroup", "mqSet", "topic", "queueId", "groupName",
                 "consumerDataSet", "producerDataSet", "subscriptionDataSet", "subVersion", "codeSet",
                 "topicConfigList", "groupConfigList", "topicName", "retryQueueNums", "subscriptionData"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)  # fmt: skip


@dataclass(frozen=True)
class Mischief:
    """What is wrong with one request of every code."""

    place: int
    """Which of its fields, counted around."""
    text: str | None
    """What that field says; None: it is not there."""
    body: bytes
    version: int

    def request(self, description: Description) -> RemotingCommand:
        """Return a request with sound fields, but for one."""
        fields = {}
        for number, field in enumerate(description.fields):
            sound = GOOD_FIELDS.get(field.name, {"i": "0", "l": "0", "b": "false", "s": "fuzz"}[field.kind])
            if number != self.place % len(description.fields):
                fields[field.name] = sound
            elif self.text is not None:
                # A pull may well wait for as long as it asks to.
                fields[field.name] = "-1" if field.name == "suspendTimeoutMillis" else self.text
        command = RemotingCommand.request(description.code, fields, self.body)
        command.version = self.version
        return command


mischief = st.builds(
    Mischief,
    place=st.integers(0, 20),
    text=st.none() | st.sampled_from(NUMBERS + WORDS) | st.text(max_size=9),
    body=st.just(b"")
    | st.binary(max_size=60)
    | json_values.map(json.dumps)
    | st.lists(st.binary(max_size=9).map(item), max_size=3).map(b"".join),
    version=st.sampled_from([479, 0, -1]),
)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(mischief=mischief, front=st.sampled_from(FRONTS))
def test_anything_is_answered(clients: Clients, mischief: Mischief, front: str) -> None:
    """One request of every code that a broker serves, with a field and a body that hypothesis makes up."""
    for description in SERVED:
        answer = clients.ask(front, mischief.request(description))
        assert answer.code == 0 or answer.remark, (description.name, answer)


PIECES = ["..", ".", "/", "\\", "\0", "~", "%", "a", "ü", "\U0001f600", "\n", "%RETRY%", "%DLQ%"]
LONG = ["x" * 128, "x" * 255, "x" * 256, "ü" * 128]
NAMES = st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.sampled_from(
    ["../../x", "/etc/x", "%RETRY%../x", *LONG]
)
FOLDER = re.compile(r"[%|a-zA-Z0-9_-]{1,255}")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, front=st.sampled_from(FRONTS))
def test_names_never_become_paths(clients: Clients, name: str, front: str) -> None:
    """However a topic or group is named, in whatever request: a code, and no reset of the connection."""
    for request in (
        topic_of(name),
        send(name),
        ask(36, group=name, offset=0, delayLevel=0, originTopic=name),
        ask(36, group="g-good", offset=0, delayLevel=0, originTopic=name, originMsgId=name),
        offset_of(topic=name),
        offset_of(consumerGroup=name),
        pull(0, "g-good", name),
        pull(0, name),
        ask(14, topic=name, consumerGroup=name, queueId=0),
        ask(200, json.dumps({"groupName": name, "retryQueueNums": 1})),
        ask(215, topic=name),
        ask(207, groupName=name, cleanOffset="true"),
    ):
        clients.ask(front, request())


def test_all_that_was_made_is_inside(dev: Dev, clients: Clients) -> None:
    """After all of the above: folders of the store have legal names, and there is nothing beside it."""
    assert not any((dev.data_dir.parent / name).exists() for name in ("a", "x", "~", "%", "consumequeue"))
    for topic in (dev.data_dir / "consumequeue").iterdir():
        assert FOLDER.fullmatch(topic.name)
        assert all(queue.name.isdigit() for queue in topic.iterdir())
    known = {"commitlog", "config", "consumequeue", "index", "abort", "checkpoint", "lock"}
    assert {path.name for path in dev.data_dir.iterdir()} <= known
