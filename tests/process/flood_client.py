"""One process that sends as fast as it can at both fronts, and notes what becomes of each send.

python flood_client.py TCP ZMQ TOPIC CONNECTIONS WINDOW BODY_BYTES     until SIGTERM

Half of the connections are RocketMQ's TCP, half ZeroMQ; each has up to WINDOW sends without an answer.  One
more at each front is a careful client: one send at a time, given up after a second.  At the end one line of
JSON: ``answers``: [who, sent at, answered at, code, remark up to its first "]"], and ``open``: [who, sent at]
of what was not answered.  Who is "tcp", "zmq", "tcp careful" or "zmq careful"; times are monotonic
nanoseconds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from typing import Any, Protocol

import zmq
from gateway_rig import send_request

from actormq.wire import frame
from actormq.wire.command import RemotingCommand
from actormq.wire.frame import FrameCutter

TURN_MS = 20
GIVE_UP_NS = 1_000_000_000
BUSY = 2
REST_NS = 500_000_000
"""After a SYSTEM_BUSY a connection rests: else this process and the refusals alone fill a small machine."""


class Front(Protocol):
    """One connection."""

    name: str
    handle: Any

    def tell(self, command: RemotingCommand) -> bool: ...

    def heard(self) -> list[RemotingCommand]: ...


class Tcp:
    """RocketMQ's."""

    name = "tcp"

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.handle = socket.create_connection((host, int(port)))
        self.handle.setblocking(False)
        self._cutter = FrameCutter()
        self._unsent = b""

    def tell(self, command: RemotingCommand) -> bool:
        """Take a request; False while the socket has no room for one more."""
        if not self._flush():
            return False
        self._unsent = frame.encode(command)
        self._flush()
        return True

    def _flush(self) -> bool:
        try:
            while self._unsent:
                self._unsent = self._unsent[self.handle.send(self._unsent) :]
        except BlockingIOError:
            return False
        return True

    def heard(self) -> list[RemotingCommand]:
        self._flush()
        try:
            data = self.handle.recv(1 << 20)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionError("the broker closed a connection that did nothing wrong")
        return [frame.decode(one) for one in self._cutter.feed(data)]


class Zmq:
    """The native one."""

    name = "zmq"

    def __init__(self, address: str) -> None:
        self.handle = zmq.Context.instance().socket(zmq.DEALER)
        self.handle.setsockopt(zmq.LINGER, 0)
        self.handle.connect(f"tcp://{address}")

    def tell(self, command: RemotingCommand) -> bool:
        try:
            self.handle.send_multipart([frame.encode_head(command)[4:], command.body], zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def heard(self) -> list[RemotingCommand]:
        found = []
        try:
            while len(found) < 256:
                head, *body = self.handle.recv_multipart(zmq.DONTWAIT)
                found.append(frame.decode_parts(head, b"".join(body)))
        except zmq.Again:
            pass
        return found


Answer = tuple[str, int, int, int, str]


class Sender:
    """One connection and its window."""

    rest_ns = REST_NS

    def __init__(self, front: Front, topic: str, window: int, body: bytes) -> None:
        self.front = front
        self.who = front.name
        self.topic = topic
        self.window = window
        self.body = body
        self.open: dict[int, int] = {}
        self.number = 0
        self.rests_until_ns = 0

    def fill(self) -> None:
        """Send as much as the window has room for."""
        if time.monotonic_ns() < self.rests_until_ns:
            return
        while len(self.open) < self.window:
            self.number += 1
            command = send_request(self.topic, self.body, queue_id=self.number % 4)
            if not self.front.tell(command):
                return
            self.open[command.opaque] = time.monotonic_ns()

    def take(self, answers: list[Answer]) -> None:
        """Note the answers that have come."""
        for answer in self.front.heard():
            sent_ns = self.open.pop(answer.opaque, None)
            if sent_ns is not None:
                word = (answer.remark or "").partition("]")[0]
                answers.append((self.who, sent_ns, time.monotonic_ns(), answer.code, word))
                if answer.code == BUSY:
                    self.rests_until_ns = time.monotonic_ns() + self.rest_ns

    def left(self) -> list[tuple[str, int]]:
        return [(self.who, sent_ns) for sent_ns in self.open.values()]


class Careful(Sender):
    """One send at a time; what was not answered in a second is given up."""

    rest_ns = 0

    def __init__(self, front: Front, topic: str) -> None:
        super().__init__(front, topic, 1, b"careful")
        self.who += " careful"
        self.given_up: list[tuple[str, int]] = []

    def fill(self) -> None:
        for opaque, sent_ns in list(self.open.items()):
            if time.monotonic_ns() - sent_ns > GIVE_UP_NS:
                self.given_up.append((self.who, sent_ns))
                del self.open[opaque]
        super().fill()

    def left(self) -> list[tuple[str, int]]:
        return self.given_up + super().left()


def main() -> None:
    """Run until SIGTERM."""
    tcp, native, topic, connections, window, body_bytes = sys.argv[1:]
    over = False

    def end(*_: object) -> None:
        nonlocal over
        over = True

    signal.signal(signal.SIGTERM, end)
    os.nice(10)
    fronts: list[Front] = [Zmq(native) if number % 2 else Tcp(tcp) for number in range(int(connections))]
    senders = [Sender(front, topic, int(window), bytes(int(body_bytes))) for front in fronts]
    senders += [Careful(Tcp(tcp), topic), Careful(Zmq(native), topic)]
    poller = zmq.Poller()
    for sender in senders:
        poller.register(sender.front.handle, zmq.POLLIN)
    answers: list[Answer] = []
    print("running", flush=True)
    while not over:
        for sender in senders:
            sender.fill()
        poller.poll(TURN_MS)
        for sender in senders:
            sender.take(answers)
    left = [one for sender in senders for one in sender.left()]
    print(json.dumps({"answers": answers, "open": left}), flush=True)


if __name__ == "__main__":
    main()
