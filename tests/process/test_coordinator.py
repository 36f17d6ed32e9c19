"""Coordinator and scheduler as processes: what their deaths may and may not change for clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from actormq_process import Dev, dev_in
from gateway_process import Peer, ask_anew, heartbeat, kill, until
from gateway_rig import pull_request, send_request

from actormq.store.record import Record, decode
from actormq.wire import json
from actormq.wire.command import RemotingCommand

FAULTS = (
    "coordinator.rows-opened:4",
    "coordinator.ledger-written:6",
    "coordinator.persisted:5",
    "coordinator.published:7",
    "scheduler.looked:2",
    "scheduler.taken:2",
    "scheduler.pushed:3",
    "scheduler.stored:2",
    "scheduler.ledger-written:1",
)
"""Each is armed for the first life of its role only."""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with dev_in(tmp_path_factory.mktemp("dev"), gateways=3) as started:
        yield started
        assert started.stop() == 0, "".join(started.errors)


@pytest.fixture
def peer(dev: Dev) -> Iterator[Peer]:
    made = Peer(dev)
    yield made
    made.close()


def request(code: int, **fields: object) -> RemotingCommand:
    return RemotingCommand.request(code, {name: str(value) for name, value in fields.items()})


def create(peer: Peer, topic: str, queues: int = 1) -> None:
    fields = {"topic": topic, "defaultTopic": "TBW102", "perm": 6, "topicFilterType": "SINGLE_TAG"}
    answer = peer.ask(request(17, readQueueNums=queues, writeQueueNums=queues, **fields))
    assert answer.code == 0, answer.remark


def join(peer: Peer, client_id: str, group: str, topic: str) -> None:
    assert peer.ask(heartbeat(client_id, group, topic)).code == 0


def lock(group: str, client_id: str, topic: str, *queues: int) -> RemotingCommand:
    wanted = [{"topic": topic, "brokerName": "broker-a", "queueId": queue} for queue in queues]
    body = {"consumerGroup": group, "clientId": client_id, "mqSet": wanted}
    return RemotingCommand.request(41, body=json.dumps(body))


def pulled(peer: Peer, topic: str, group: str, offset: int = 0, queue_id: int = 0) -> list[Record]:
    """Return what lies in a queue from `offset` on; waits up to 5 s for something."""
    answer = peer.ask(pull_request(topic, group, offset, queue_id=queue_id, suspend_ms=5_000))
    assert answer.code in (0, 19), answer.remark
    found = []
    at = 0
    while answer.code == 0 and at < len(answer.body):
        record = decode(memoryview(bytes(answer.body)), at)
        found.append(record)
        at += record.size
    return found


def all_of(peer: Peer, topic: str, group: str, count: int) -> list[Record]:
    """Return at least `count` messages of queue 0."""
    found: list[Record] = []
    deadline = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} came"
        found += pulled(peer, topic, group, len(found))
    return found


def test_members_offsets_and_locks_outlive_the_coordinator(dev: Dev, peer: Peer) -> None:
    """Killed again and again: no list is ever shorter, no offset older, no lock another's."""
    topic, group = "lasting", "g-lasting"
    create(peer, topic, 4)
    members = [Peer(dev) for _ in range(4)]
    for number, member in enumerate(members):
        join(member, f"c{number}", group, topic)
    everybody = [f"c{number}" for number in range(4)]
    for life in range(4):
        for queue in range(4):
            fields = {"consumerGroup": group, "topic": topic, "queueId": queue}
            assert peer.ask(request(15, commitOffset=life * 10 + queue, **fields)).code == 0
        granted = peer.ask(lock(group, "c1", topic, 0, 1))
        assert len(json.loads(granted.body)["lockOKMQSet"]) == 2
        kill(dev, "coordinator")

        def listed() -> bool:
            answer = peer.ask(request(38, consumerGroup=group))
            if answer.code == 0:
                assert sorted(json.loads(answer.body)["consumerIdList"]) == everybody
            return answer.code == 0

        stolen = peer.ask(lock(group, "c2", topic, 0, 1))
        assert json.loads(stolen.body)["lockOKMQSet"] == []
        until("the whole list", listed)
        for queue in range(4):
            answer = peer.ask(request(14, consumerGroup=group, topic=topic, queueId=queue))
            assert answer.fields["offset"] == str(life * 10 + queue)
    for member in members:
        member.close()
    until("an empty group", lambda: peer.ask(request(38, consumerGroup=group)).code == 1)


def test_a_delayed_message_comes_in_time_and_never_early(dev: Dev, peer: Peer) -> None:
    """Levels 1 and 2, though the scheduler is killed meanwhile; what was under way may come twice."""
    topic, group = "delayed", "g-delayed"
    create(peer, topic)
    join(peer, "c", group, topic)
    sent = {}
    for number in range(60):
        level = 1 if number % 3 else 2
        body = b"%d after %d s" % (number, {1: 1, 2: 5}[level])
        sent[body] = time.time_ns() // 1_000_000
        answer = peer.ask(send_request(topic, body, f"DELAY\x01{level}\x02KEYS\x01k{number}\x02"))
        assert answer.code == 0
    kill(dev, "scheduler")
    came = all_of(peer, topic, group, 60)
    while len({bytes(record.body) for record in came}) < 60:
        came += pulled(peer, topic, group, len(came))
    for record in came:
        body = bytes(record.body)
        seconds = int(body.split()[2])
        late_ms = record.store_timestamp - sent[body] - seconds * 1000
        assert late_ms >= 0, f"{body!r} came {-late_ms} ms early"
        assert record.properties["KEYS"].startswith("k")
        assert "DELAY" not in record.properties
    assert {bytes(record.body) for record in came} == sent.keys()


def test_a_message_that_is_sent_back_comes_again(dev: Dev, peer: Peer) -> None:
    """To the group's retry topic after its delay; and at the end to the dead letters."""
    topic, group = "failing", "g-failing"
    create(peer, topic)
    join(peer, "c", group, topic)
    assert peer.ask(send_request(topic, b"fails", "TAGS\x01a\x02")).code == 0
    (first,) = all_of(peer, topic, group, 1)
    assert peer.ask(request(36, offset=first.log_offset, group=group, delayLevel=1)).code == 0
    join(peer, "c", group, f"%RETRY%{group}")
    (again,) = all_of(peer, f"%RETRY%{group}", group, 1)
    assert (bytes(again.body), again.reconsume_times, again.properties["TAGS"]) == (b"fails", 1, "a")
    assert (again.properties["RETRY_TOPIC"], again.properties["ORIGIN_MESSAGE_ID"]) == (
        topic,
        first.message_id,
    )
    last = request(36, offset=again.log_offset, group=group, delayLevel=0, maxReconsumeTimes=1)
    assert peer.ask(last).code == 0
    join(peer, "c", group, f"%DLQ%{group}")
    (dead,) = all_of(peer, f"%DLQ%{group}", group, 1)
    assert (bytes(dead.body), dead.properties["ORIGIN_MESSAGE_ID"]) == (b"fails", first.message_id)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_death_between_two_steps_loses_nothing(fault: str, tmp_path: Path) -> None:
    """Killed between rows, ledger, files, tables, pushes and completions, while clients go on."""
    with dev_in(tmp_path / "data", env={"ACTORMQ_FAULT": fault}) as dev:
        names = [f"topic-{number}" for number in range(4)]
        for name in names:
            until(name, lambda name=name: (ask_anew(dev, send_request(name)) or _FAILED).code == 0)
        peer = Peer(dev)
        until("a member", lambda: peer.ask(heartbeat("c", "g", "topic-0")).code == 0)
        for number, name in enumerate(names):
            committed = request(15, consumerGroup="g", topic=name, queueId=0, commitOffset=number)
            until("the commit", lambda committed=committed: peer.ask(committed).code == 0)
            assert peer.ask(send_request(name, b"late", "DELAY\x011\x02")).code == 0
        for number, name in enumerate(names):
            until("a member", lambda name=name: peer.ask(heartbeat("c", "g", name)).code == 0)
            assert b"late" in {bytes(record.body) for record in all_of(peer, name, "g", 2)}
            offset = request(14, consumerGroup="g", topic=name, queueId=0)
            assert until("the offset", lambda offset=offset: _offset(peer, offset)) == str(number)
        role = fault.partition(".")[0]
        more = count()

        def is_reached() -> bool:
            if incarnation(peer, role) == 1:  # one go did what several were meant for: give it another
                assert peer.ask(send_request(names[0], b"more", "DELAY\x011\x02")).code == 0
                # A topic and an offset for the coordinator, which may die of them.
                peer.ask(send_request(f"more-{next(more)}"))
                peer.ask(request(15, consumerGroup="g", topic=names[0], queueId=1, commitOffset=next(more)))
            return incarnation(peer, role) == 2

        until("the fault point is reached", is_reached)
        until("the successor works", lambda: state(peer, role) == "RUNNING")
        peer.close()
        assert dev.stop() == 0, "".join(dev.errors)


def test_offsets_are_there_after_a_clean_stop(tmp_path: Path) -> None:
    """The last commit too, however short before the stop."""
    with dev_in(tmp_path / "data") as dev:
        peer = Peer(dev)
        create(peer, "kept")
        join(peer, "c", "g", "kept")
        assert peer.ask(request(15, consumerGroup="g", topic="kept", queueId=0, commitOffset=7)).code == 0
        peer.close()
        assert dev.stop() == 0
    with dev_in(dev.data_dir, like=dev) as again:
        peer = Peer(again)
        assert _offset(peer, request(14, consumerGroup="g", topic="kept", queueId=0)) == "7"
        peer.close()
        assert again.stop() == 0


def incarnation(peer: Peer, role: str) -> int:
    return int(_role(peer, role)["incarnation"])


def state(peer: Peer, role: str) -> str:
    return str(_role(peer, role)["state"])


def _role(peer: Peer, role: str) -> dict[str, Any]:
    answer = peer.ask(RemotingCommand.request(300001))
    return next(each for each in json.loads(answer.body)["roles"] if each["role"] == role)


def _offset(peer: Peer, query: RemotingCommand) -> str | None:
    answer = peer.ask(query)
    return answer.fields["offset"] if answer.code == 0 else None


_FAILED = RemotingCommand(code=1)
