"""A gateway that is killed between any two of its steps: what it acknowledged is there, where it said."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from actormq_process import Dev, dev_in
from gateway_process import PATIENCE_S, Peer, ask_anew, heartbeat, roles, until
from gateway_rig import pull_request, send_request

from actormq.store import record
from actormq.wire import json
from actormq.wire.command import RemotingCommand

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
