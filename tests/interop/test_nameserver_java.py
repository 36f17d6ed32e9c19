"""Our name server among RocketMQ's own: Java brokers and clients use it, and cannot tell it from theirs."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from interop import rocketmq
from server_process import running, running_namesrv

from actormq.cli.remote import Remote
from actormq.errors import RequestRefused
from actormq.wire import json as fastjson
from actormq.wire.registration import DataVersion, RegistrationBody, TopicConfig, encode_registration

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]


@pytest.fixture
def namesrv(tmp_path: Path) -> Iterator[str]:
    rocketmq.require_java()
    with running_namesrv(tmp_path) as server:
        yield server.words["namesrv"]


def test_a_java_broker_lives_with_our_name_server(namesrv: str) -> None:
    """It registers; mqadmin sees it; official clients send and consume; it leaves when it stops."""
    with rocketmq.java_broker(namesrv) as broker, Remote() as remote:
        listed = rocketmq.mqadmin("clusterList", "-n", namesrv)
        assert "java-broker" in listed
        assert broker in listed
        created = rocketmq.mqadmin(
            "updateTopic", "-n", namesrv, "-c", "DefaultCluster", "-t", "Made", "-r", "3"
        )
        assert "success" in created, created
        assert '"readQueueNums":3' in _squeezed(rocketmq.mqadmin("topicRoute", "-n", namesrv, "-t", "Made"))
        assert "Made" in rocketmq.mqadmin("topicList", "-n", namesrv).split()
        for version in ("5", "4"):
            _send_and_consume(namesrv, version)
        assert "java-broker" in rocketmq.mqadmin("wipeWritePerm", "-n", namesrv, "-b", "java-broker")
        route = fastjson.loads(remote.ask(namesrv, 105, {"topic": "Made"}).body)
        assert route["queueDatas"][0]["perm"] == 4
    with Remote() as remote:
        assert remote.ask(namesrv, 106).body == b'{"brokerAddrTable":{},"clusterAddrTable":{}}'


def test_our_broker_lives_with_a_java_name_server(tmp_path: Path) -> None:
    """It registers, official clients of both lines find it there, and it leaves by word when it stops."""
    rocketmq.require_java()
    with rocketmq.java_name_server() as java, Remote() as remote:
        conf = tmp_path / "broker.conf"
        conf.write_text(
            f"brokerName=ours\nlistenPort={rocketmq.free_port(-2)}\nnamesrvAddr={java}\n"
            f"storePathRootDir={tmp_path}/store\nmappedFileSizeCommitLog=67108864\n"
            "maxHashSlotNum=10000\nmaxIndexNum=40000\n"
        )
        with running(tmp_path, "broker", "-c", str(conf)) as server:
            rocketmq.wait_registered(java, server.words["broker"])
            for version in ("5", "4"):
                _send_and_consume(java, version)
        assert b"ours" not in bytes(remote.ask(java, 106).body)


def _send_and_consume(namesrv: str, version: str) -> None:
    """Twenty messages to a topic that the broker makes on demand.

    A producer that waited too long for an answer (a busy machine) sends again: then one may come twice.
    """
    topic = f"OnDemand{version}"
    sent = rocketmq.run_client(version, "send", namesrv, topic, "sync", 20, "red", 64)
    bodies = [line.fields[0] for line in sent if line.kind == "SENT"]
    assert len(set(bodies)) == 20, sent
    got = rocketmq.run_client(version, "consume", namesrv, topic, f"g{version}", "*", 20, 60, "plain")
    places = {tuple(line.fields[3:5]): line.fields[0] for line in got if line.kind == "GOT"}
    assert len(places) >= 20, got
    assert set(places.values()) <= set(bodies), got


def _squeezed(text: str) -> str:
    return "".join(text.split())


@dataclass
class Step:
    """One request, sent to both name servers."""

    code: int
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def _identity(name: str, broker_id: int, port: int) -> dict[str, str]:
    return {
        "brokerName": name,
        "brokerAddr": f"10.0.0.1:{port}",
        "clusterName": "C",
        "brokerId": str(broker_id),
        "haServerAddr": f"10.0.0.1:{port + 1}",
    }


def _topics(counter: int, *names: str, state_version: int = 0, sys_flag: int = 0) -> bytes:
    topics = tuple(TopicConfig(name=name, read_queues=4, write_queues=3, sys_flag=sys_flag) for name in names)
    return encode_registration(
        RegistrationBody(version=DataVersion(state_version, 7, counter), topics=topics)
    )


def _compressed(*names: str) -> bytes:
    items = [b'{"counter":9,"stateVersion":0,"timestamp":7}']
    texts = [f"{name} 2 2 6 SINGLE_TAG {{}}".encode() for name in names]
    sized = [len(item).to_bytes(4, "big") + item for item in (*items, *texts, b"[]")]
    plain = sized[0] + len(texts).to_bytes(4, "big") + b"".join(sized[1:]) + (0).to_bytes(4, "big")
    return zlib.compress(plain, 9)


A, B, SLAVE = _identity("a", 0, 10), _identity("b", 0, 20), _identity("a", 1, 30)
VERSION = {"counter": 1, "stateVersion": 0, "timestamp": 7}
LOOKS = [
    Step(105, {"topic": "T"}),
    Step(105, {"topic": "U"}),
    Step(105, {"topic": "Absent"}),
    Step(106),
    Step(206),
    Step(224, {"cluster": "C"}),
    Step(224, {"cluster": "Absent"}),
    Step(304),
    Step(311),
    Step(312),
    Step(313),
    Step(322, A, json.dumps(VERSION).encode()),
    Step(322, B, json.dumps(VERSION).encode()),
    Step(901, A),
]
STEPS = [
    *LOOKS,
    Step(103, A, _topics(1, "T", "U", sys_flag=3)),
    Step(103, SLAVE, _topics(1, "T")),  # one topic: an increment of a stranger, refused
    Step(103, {**B, "enableActingMaster": "true", "__ZONE_NAME": "z"}, _topics(1, "U", "V", sys_flag=2)),
    *LOOKS,
    Step(103, SLAVE, _topics(1, "T", "W")),
    Step(103, {**SLAVE, "enableActingMaster": "true"}, _topics(2, "T", "X")),
    *LOOKS,
    Step(103, A, _topics(1, "T", "Same")),
    Step(103, A, _topics(2, "T", "New")),
    Step(103, {**A, "bodyCrc32": "5"}, _topics(3, "T", "Unseen")),
    Step(103, {**B, "compressed": "true"}, _compressed("P", "Q")),
    *LOOKS,
    Step(103, {**A, "brokerAddr": "10.0.0.9:1"}, _topics(1, "T", "Y", state_version=5)),
    Step(103, A, _topics(9, "T", "Z", state_version=4)),
    *LOOKS,
    Step(205, {"brokerName": "b"}),
    Step(105, {"topic": "V"}),
    Step(327, {"brokerName": "b"}),
    Step(105, {"topic": "V"}),
    Step(216, {"topic": "V", "clusterName": "C"}),
    Step(105, {"topic": "V"}),
    Step(100, {"namespace": "N", "key": "k", "value": "v"}),
    Step(101, {"namespace": "N", "key": "k"}),
    Step(101, {"namespace": "N", "key": "absent"}),
    Step(219, {"namespace": "N"}),
    Step(219, {"namespace": "Absent"}),
    Step(102, {"namespace": "N", "key": "k"}),
    Step(101, {"namespace": "N", "key": "k"}),
    Step(100, {"namespace": "ORDER_TOPIC_CONFIG", "key": "T", "value": "a:4"}),
    Step(103, B, _topics(4, "U", "V")),
    Step(318, body=b"configStorePath=/tmp/x\n"),
    Step(318, body=b"orderMessageEnable=true\n"),
    Step(105, {"topic": "T"}),
    Step(104, SLAVE),
    Step(104, B),
    *LOOKS,
    Step(9_999),
]


def test_our_answers_are_those_of_the_java_name_server(namesrv: str) -> None:
    """Code, header fields and body of every answer, over a broker's whole life."""
    with rocketmq.java_name_server() as java, Remote() as remote:
        for number, step in enumerate(STEPS):
            theirs, ours = _answer(remote, java, step), _answer(remote, namesrv, step)
            assert ours == theirs, f"step {number}: {step}"


def _answer(remote: Remote, address: str, step: Step) -> Any:
    """Return what can be compared: lists of sets without order, remarks' first lines."""
    try:
        answer = remote.ask(address, step.code, step.fields, step.body)
    except RequestRefused as error:
        return error.response_code, error.peer_remark
    body = bytes(answer.body)
    return answer.code, answer.fields, _sorted(fastjson.loads(body)) if body else None


def _sorted(value: Any) -> Any:
    """Java's sets have no order that means anything."""
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in value.items()}
    if isinstance(value, list):
        return sorted((_sorted(item) for item in value), key=str)
    return value


@pytest.mark.parametrize("version", [317, 479])
def test_our_routes_are_written_like_theirs(namesrv: str, version: int) -> None:
    """Byte for byte, for old and new readers."""
    with rocketmq.java_name_server() as java, Remote() as remote:
        bodies = []
        for address in (java, namesrv):
            remote.ask(address, 103, A, _topics(1, "T", "U"))
            bodies.append(bytes(remote.ask(address, 105, {"topic": "T"}, version=version).body))
            bodies.append(bytes(remote.ask(address, 106, version=version).body))
        assert bodies[:2] == bodies[2:]
