"""A blocking client, and what process tests ask of a running broker."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from actormq_process import Dev

from actormq.wire import frame, json
from actormq.wire.command import RemotingCommand
from actormq.wire.frame import FrameCutter

PATIENCE_S = 60.0


class Peer:
    """A blocking client."""

    def __init__(self, dev: Dev) -> None:
        host, _, port = dev.broker.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), PATIENCE_S)
        self.cutter = FrameCutter()
        self.came: list[RemotingCommand] = []

    def tell(self, command: RemotingCommand) -> RemotingCommand:
        self.sock.sendall(frame.encode(command))
        return command

    def answer_to(self, command: RemotingCommand) -> RemotingCommand:
        while True:
            for one in self.came:
                if one.is_response and one.opaque == command.opaque:
                    self.came.remove(one)
                    return one
            data = self.sock.recv(1 << 20)
            if not data:
                raise ConnectionError("closed by the broker")
            self.came += map(frame.decode, self.cutter.feed(data))

    def hears(self, seconds: float) -> bool:
        """Whether something comes within that time."""
        return bool(select.select([self.sock], [], [], seconds)[0])

    def ask(self, command: RemotingCommand) -> RemotingCommand:
        return self.answer_to(self.tell(command))

    def is_closed(self) -> bool:
        """Wait for the broker to close this connection."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()


def until(what: str, condition: Callable[[], Any]) -> Any:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return result


def ask_anew(dev: Dev, command: RemotingCommand) -> RemotingCommand | None:
    """Ask on a connection of its own; None where that breaks (its gateway has just been killed)."""
    try:
        peer = Peer(dev)
        try:
            return peer.ask(command)
        finally:
            peer.close()
    except OSError:
        return None


def roles(dev: Dev) -> dict[str, int]:
    answer = ask_anew(dev, RemotingCommand.request(300001))
    if answer is None:
        return {}
    return {
        role["role"]: role["pid"] for role in json.loads(answer.body)["roles"] if role["state"] == "RUNNING"
    }


def kill(dev: Dev, role: str) -> None:
    """Kill a role and wait until another process is it."""
    pid = until(f"{role} runs", lambda: roles(dev).get(role))
    os.kill(pid, signal.SIGKILL)
    until(f"a new {role}", lambda: roles(dev).get(role, pid) != pid)


def heartbeat(client_id: str, group: str, topic: str) -> RemotingCommand:
    data = {
        "clientID": client_id,
        "producerDataSet": [{"groupName": "p"}],
        "consumerDataSet": [
            {
                "groupName": group,
                "consumeType": "CONSUME_PASSIVELY",
                "messageModel": "CLUSTERING",
                "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
                "unitMode": False,
                "subscriptionDataSet": [
                    {
                        "topic": topic,
                        "subString": "*",
                        "subVersion": 1,
                        "expressionType": "TAG",
                        "tagsSet": [],
                        "codeSet": [],
                        "classFilterMode": False,
                    }
                ],
            }
        ],
    }
    return RemotingCommand.request(34, body=json.dumps(data))
