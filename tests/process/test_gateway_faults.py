"""A gateway that is killed between any two of its steps: what it acknowledged is there, where it said."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from actormq_process import Dev, dev_in
from gateway_process import PATIENCE_S, Peer, ask_anew, heartbeat, roles, until
from gateway_rig import pull_request, send_request

from actormq.store import record
from actormq.wire import json
from actormq.wire.command import RemotingCommand

ACTORS = Path(__file__).parent.parent.parent / "actormq" / "actors"
POINTS = (
    "gateway.received",
    "gateway.completed",
    "gateway.appended",
    "gateway.parked",
    "gateway.relayed",
    "gateway.replied",
)
MESSAGES = 150
HITS = 70
"""Each life of the gateway ends at its 70th arrival at the point: every few dozen messages."""


class Sender:
    """Sends numbers one by one; connects again and repeats until each is acknowledged."""

    def __init__(self, dev: Dev) -> None:
        self.dev = dev
        self.peer: Peer | None = None
        self.breaks = 0

    def send(self, number: int) -> int:
        """Return the queue offset that the acknowledgement names."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < deadline, f"message {number} was never acknowledged"
            try:
                self.peer = self.peer or Peer(self.dev)
                answer = self.peer.ask(send_request("faults", b"%d" % number))
            except OSError:
                self.peer = None
                self.breaks += 1
                continue
            assert answer.code == 0, answer
            return int(answer.fields["queueOffset"])


def stored(dev: Dev, end: int) -> dict[int, bytes]:
    """Pull everything up to `end`, whatever dies meanwhile."""
    found: dict[int, bytes] = {}
    while len(found) < end:
        until("the heartbeat is taken", lambda: _is_ok(ask_anew(dev, heartbeat("c@f", "g-faults", "faults"))))
        request = pull_request("faults", "g-faults", len(found), flags=4, subscription="*")
        answer = ask_anew(dev, request)
        if answer is None or answer.code != 0:
            continue
        view, at = memoryview(answer.body), 0
        while at < len(view):
            one = record.decode(view, at, check_crc=True)
            assert one.queue_offset == len(found)
            found[one.queue_offset] = bytes(one.body)
            at += one.size
    return found


def _is_ok(answer: RemotingCommand | None) -> bool:
    return answer is not None and answer.code == 0


@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_any_point_loses_nothing_acknowledged(tmp_path: Path, point: str) -> None:
    """At each acknowledged offset is what was acknowledged; repeats only after a break."""
    with dev_in(tmp_path, env={"ACTORMQ_FAULT": f"{point}:{HITS}"}) as dev:
        sender = Sender(dev)
        acknowledged = {number: sender.send(number) for number in range(MESSAGES)}
        assert sender.breaks > 0, "the gateway never died"
        assert len(set(acknowledged.values())) == MESSAGES
        found = stored(dev, max(acknowledged.values()) + 1)
        for number, offset in acknowledged.items():
            assert found[offset] == b"%d" % number
        assert len(found) - MESSAGES <= sender.breaks
        until("a gateway runs", lambda: roles(dev).get("gateway-0"))
        answer = until("the roles", lambda: ask_anew(dev, RemotingCommand.request(300001)))
        lives = {role["role"]: role["incarnation"] for role in json.loads(answer.body)["roles"]}
        assert lives["gateway-0"] > 1
        assert lives["writer"] == lives["dispatcher"] == lives["coordinator"] == lives["holder"]


# --- the roles beside it -----------------------------------------------------------------------------------


def armed_one_after_the_other(role: str, hits: int) -> tuple[dict[str, str], int]:
    """Return the environment in which each life of a role ends at another of its points; and how many."""
    path = ACTORS / f"{role}.py"
    points = list(dict.fromkeys(re.findall(r'faults\.point\("([^"]+)"\)', path.read_text())))
    assert len(points) >= 6
    armed = ",".join(f"{life}@{point}:{hits}" for life, point in enumerate(points, 1))
    return {"ACTORMQ_FAULT": armed}, len(points)


def life_of(dev: Dev, role: str) -> int:
    answer = ask_anew(dev, RemotingCommand.request(300001))
    assert answer is not None
    return next(one["incarnation"] for one in json.loads(answer.body)["roles"] if one["role"] == role)


def test_a_holder_that_dies_at_any_point_keeps_no_pull_waiting(tmp_path: Path) -> None:
    """Its gateway parks again what is parked: each message wakes its pull, whatever was lost on the way."""
    env, deaths = armed_one_after_the_other("holder", 3)
    topic, group = "held", "g-held"
    with dev_in(tmp_path, env=env) as dev:
        consumer, producer = Peer(dev), Peer(dev)
        assert producer.ask(send_request(topic)).code == 0
        assert consumer.ask(heartbeat("c@held", group, topic)).code == 0
        offset = 1
        until("it is readable", lambda: consumer.ask(pull_request(topic, group, 1, flags=0)).code == 19)
        while life_of(dev, "holder") <= deaths:
            waiting = consumer.tell(pull_request(topic, group, offset, suspend_ms=60_000))
            assert producer.ask(send_request(topic, b"%d" % offset)).code == 0
            answer = consumer.answer_to(waiting)
            assert answer.code == 0, "it was answered by its deadline"
            assert bytes(record.decode(memoryview(bytes(answer.body))).body) == b"%d" % offset
            offset += 1
        assert life_of(dev, "gateway-0") == life_of(dev, "dispatcher") == 1
        for peer in (consumer, producer):
            peer.close()


def test_a_name_server_that_dies_at_any_point_knows_its_broker_again(tmp_path: Path) -> None:
    """The broker registers with each successor by itself; clients ask again."""
    env, deaths = armed_one_after_the_other("nameserver", 2)
    with dev_in(tmp_path, env={**env, "ACTORMQ_NAMESRV_SCAN_INTERVAL_MS": "200"}) as dev:
        peer = Peer(dev)
        assert peer.ask(send_request("routed")).code == 0

        def has_a_route() -> bool:
            try:
                asker = Peer(replace(dev, broker=dev.namesrv))
                try:
                    return asker.ask(RemotingCommand.request(105, {"topic": "routed"})).code == 0
                finally:
                    asker.close()
            except OSError:
                return False

        while life_of(dev, "nameserver") <= deaths:
            has_a_route()
        until("a route", has_a_route)
        assert life_of(dev, "gateway-0") == life_of(dev, "coordinator") == 1
        peer.close()
