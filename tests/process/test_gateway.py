"""Gateways as processes: limits at the socket, deaths around them, three on one port."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from actormq_process import Dev, dev_in
from gateway_process import Peer, ask_anew, heartbeat, kill, roles, until
from gateway_rig import pull_request, send_request

from actormq.wire import frame, json
from actormq.wire.command import RemotingCommand

SUSPEND_MS = 50_000
"""Longer than a busy machine lets anybody wait."""


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


def test_connections_are_spread_over_three_gateways(dev: Dev) -> None:
    """One port, three processes: each counts connections of its own."""

    def counted() -> bool:
        for _ in range(10):
            ask_anew(dev, send_request("spread"))
        answer = ask_anew(dev, RemotingCommand.request(300001))
        assert answer is not None
        gateways = [role for role in json.loads(answer.body)["roles"] if role["role"].startswith("gateway")]
        return len(gateways) == 3 and all(role["counters"][6] > 0 for role in gateways)

    until("three gateways with connections", counted)


def test_a_topic_made_through_one_gateway_is_known_to_all(dev: Dev) -> None:
    """An answer comes only when every gateway has the new topic in its tables."""
    for number in range(5):
        topic = f"known-{number}"
        answer = ask_anew(dev, send_request(topic))
        assert answer is not None
        assert answer.code == 0
        for _ in range(8):
            answer = ask_anew(dev, RemotingCommand.request(30, {"topic": topic, "queueId": "0"}))
            assert answer is not None
            until("the message is readable everywhere", lambda topic=topic: _max_offset(dev, topic) == "1")


def _max_offset(dev: Dev, topic: str) -> str | None:
    answer = ask_anew(dev, RemotingCommand.request(30, {"topic": topic, "queueId": "0"}))
    return None if answer is None else answer.fields["offset"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack(">I", 16 * 1024 * 1024 + 1),
        struct.pack(">I", 3) + b"abc",
        struct.pack(">II", 8, 0x02000004) + b"{}{}",
        struct.pack(">II", 8, 0x00FFFFFF) + b"{}{}",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
    ],
    ids=["http", "too long", "too short", "unknown type", "header too long", "TLS"],
)
def test_garbage_closes_its_connection_only(dev: Dev, peer: Peer, garbage: bytes) -> None:
    """Frames that are none; the neighbour goes on."""
    victim = Peer(dev)
    victim.sock.sendall(garbage)
    assert victim.is_closed()
    victim.close()
    assert peer.ask(send_request("neighbour")).code == 0


def test_the_largest_message_and_one_byte_more(dev: Dev, peer: Peer) -> None:
    """4 MiB is stored and comes back whole; more is MESSAGE_ILLEGAL, and the connection goes on."""
    body = os.urandom(4 * 1024 * 1024)
    assert peer.ask(send_request("large", body)).code == 0
    refused = peer.ask(send_request("large", body + b"!"))
    assert refused.code == 13
    assert peer.ask(heartbeat("c@large", "g-large", "large")).code == 0
    pulled = peer.ask(pull_request("large", "g-large"))
    assert pulled.code == 0
    assert body in bytes(pulled.body)


def test_a_killed_gateway_takes_only_its_own_connections(dev: Dev) -> None:
    """Its clients are disconnected and served anew; those of the others notice nothing."""
    peers = [Peer(dev) for _ in range(12)]
    for peer in peers:
        assert peer.ask(send_request("killed")).code == 0
    kill(dev, "gateway-1")
    closed = 0
    for peer in peers:
        try:
            assert peer.ask(send_request("killed")).code == 0
        except OSError:
            closed += 1
            answer = until("a new connection serves", lambda: ask_anew(dev, send_request("killed")))
            assert answer.code == 0
        peer.close()
    assert closed < 12, "gateways that live have closed connections"


def test_a_parked_pull_outlives_the_holder_and_the_dispatcher(dev: Dev, peer: Peer) -> None:
    """It is parked again, and its message comes."""
    topic, group = "parked", "g-parked"
    assert peer.ask(send_request(topic)).code == 0
    assert peer.ask(heartbeat("c@parked", group, topic)).code == 0
    for role in ("holder", "dispatcher"):
        offset = int(peer.ask(RemotingCommand.request(30, {"topic": topic, "queueId": "0"})).fields["offset"])
        found = until(
            "everything is readable",
            lambda offset=offset: peer.ask(pull_request(topic, group, offset, flags=0)).code == 19,
        )
        assert found
        waiting = peer.tell(pull_request(topic, group, offset, suspend_ms=SUSPEND_MS))
        kill(dev, role)
        other = Peer(dev)
        began = time.monotonic()
        assert other.ask(send_request(topic, b"wake")).code == 0
        answer = peer.answer_to(waiting)
        assert answer.code == 0
        assert b"wake" in bytes(answer.body)
        assert time.monotonic() - began < SUSPEND_MS / 1e3 - 10, (
            "it was answered by its deadline, not by the message"
        )
        other.close()


def test_a_new_coordinator_knows_the_connected_clients(dev: Dev, peer: Peer) -> None:
    """No client has to heartbeat again: its gateway repeats it; offsets that were committed are there."""
    topic, group = "members", "g-members"
    assert peer.ask(send_request(topic)).code == 0
    members = [Peer(dev) for _ in range(2)]
    for number, member in enumerate(members):
        assert member.ask(heartbeat(f"c{number}@members", group, topic)).code == 0
    fields = {"consumerGroup": group, "topic": topic, "queueId": "0"}
    assert peer.ask(RemotingCommand.request(15, {**fields, "commitOffset": "1"})).code == 0
    kill(dev, "coordinator")

    def listed() -> list[str]:
        answer = peer.ask(RemotingCommand.request(38, {"consumerGroup": group}))
        return sorted(json.loads(answer.body)["consumerIdList"]) if answer.code == 0 else []

    assert until("a list of members", listed) == ["c0@members", "c1@members"]
    assert peer.ask(RemotingCommand.request(14, fields)).fields["offset"] == "1"
    for member in members:
        member.close()


def test_sync_mode_answers_after_the_sync(tmp_path: Path) -> None:
    """SEND_OK in sync mode means that `flushed` has passed the message."""
    with dev_in(tmp_path, flush="sync") as dev:
        peer = Peer(dev)
        requests = [send_request("synced", b"%d" % number) for number in range(200)]
        peer.sock.sendall(b"".join(map(frame.encode, requests)))
        end = 0
        for request in requests:
            answer = peer.answer_to(request)
            assert answer.code == 0
            end = max(end, int(answer.fields["msgId"][16:], 16))
        positions = json.loads(peer.ask(RemotingCommand.request(300001)).body)["positions"]
        assert positions["flushed"] > end
        peer.close()
        assert dev.stop() == 0


def test_a_disk_that_does_not_answer(tmp_path: Path) -> None:
    """FLUSH_DISK_TIMEOUT to who waits for it, SEND_OK to who does not, and no consumer sees either before
    it is synced."""
    with dev_in(tmp_path, flush="sync", env={"ACTORMQ_STORE_SYNC_FLUSH_TIMEOUT_MS": "300"}) as dev:
        peer = Peer(dev)
        assert peer.ask(send_request("slow")).code in (0, 10)  # this disk may be slow indeed
        asked = RemotingCommand.request(30, {"topic": "slow", "queueId": "0"})
        until("the first is readable", lambda: peer.ask(asked).fields["offset"] == "1")
        flusher = until("the flusher rests", lambda: roles(dev).get("flusher"))
        os.kill(flusher, signal.SIGSTOP)
        try:
            late = peer.ask(send_request("slow"))
            assert (late.code, late.fields["queueOffset"]) == (10, "1")
            assert peer.ask(send_request("slow", properties="WAIT\x01false\x02")).code == 0
            assert peer.ask(asked).fields["offset"] == "1"
        finally:
            os.kill(flusher, signal.SIGCONT)
        until("all are readable", lambda: peer.ask(asked).fields["offset"] == "3")
        peer.close()
        assert dev.stop() == 0


def test_a_gateway_that_stood_still_sets_no_offset_back(dev: Dev, peer: Peer) -> None:
    """What it had read before it was stopped comes late: the group has gone on through another gateway.

    Nor does anybody wait for it: what changes the tables meanwhile is answered.
    """
    topic, group = "still", "g-still"
    assert peer.ask(send_request(topic)).code == 0
    pids = {name: pid for name, pid in roles(dev).items() if name.startswith("gateway")}
    ours = {name: peer_of(dev, pid) for name, pid in pids.items()}
    stopped, other = ours["gateway-0"], ours["gateway-1"]
    fields = {"consumerGroup": group, "topic": topic, "queueId": "0"}
    for one, name in ((stopped, "c0"), (other, "c1")):
        assert one.ask(heartbeat(f"{name}@still", group, topic)).code == 0
    until("the message is readable", lambda: _max_offset(dev, topic) == "1")
    for commit in range(1, 6):
        # Offsets that pulls carry are gathered for some time before they go on.
        assert stopped.ask(pull_request(topic, group, 0, flags=1, commit_offset=commit)).code == 0
    os.kill(pids["gateway-0"], signal.SIGSTOP)
    try:
        assert other.ask(RemotingCommand.request(15, {**fields, "commitOffset": "90"})).code == 0
        assert other.ask(heartbeat("c1@still", group, topic)).code == 0
        made = {"topic": "made-meanwhile", "defaultTopic": "TBW102", "readQueueNums": "1", "perm": "6"}
        more = {"writeQueueNums": "1", "topicFilterType": "SINGLE_TAG", "order": "false"}
        assert other.ask(RemotingCommand.request(17, {**made, **more})).code == 0
    finally:
        os.kill(pids["gateway-0"], signal.SIGCONT)
    assert stopped.is_closed()
    until("it serves", lambda: roles(dev).get("gateway-0") == pids["gateway-0"])
    assert other.ask(RemotingCommand.request(14, fields)).fields["offset"] == "90"
    for one in ours.values():
        one.close()


def peer_of(dev: Dev, pid: int) -> Peer:
    """Return a client that this gateway has accepted."""
    while True:
        made = Peer(dev)
        assert made.ask(RemotingCommand.request(300001)).code == 0
        ours = made.sock.getsockname()[1]
        if any(one.raddr and one.raddr.port == ours for one in psutil.Process(pid).net_connections("tcp")):
            return made
        made.close()
