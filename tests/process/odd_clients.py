"""Clients that may say anything at any front, and a witness that nothing good is harmed by it."""

from __future__ import annotations

import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq
from actormq_process import Dev, start_dev
from gateway_process import PATIENCE_S, Peer, heartbeat, until
from gateway_rig import pull_request, send_request

from actormq.errors import ResponseCode
from actormq.store import record as records
from actormq.wire import frame, json
from actormq.wire.command import RemotingCommand, Serialize

TOPIC, GROUP = "good", "g-good"
FRONTS = ("tcp json", "tcp binary", "zmq json", "zmq binary")
MEGABYTE = 1 << 20
DEEP = b'{"a":' * 500 + b"1" + b"}" * 500
"""JSON that nests too deeply."""


@contextmanager
def broker(folder: Path, *, flush: str = "async", env: dict[str, str] | None = None) -> Iterator[Dev]:
    """Run `actormq dev` for the length of a block; what the block has not stopped is killed."""
    dev = start_dev(folder, flush=flush, env=env)
    try:
        yield dev
    finally:
        dev.stop(by=signal.SIGKILL)


class NativePeer:
    """A blocking client at the ZeroMQ front."""

    def __init__(self, dev: Dev) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
        self.socket.connect(f"tcp://{dev.zmq}")

    def tell(self, command: RemotingCommand) -> RemotingCommand:
        self.socket.send_multipart([frame.encode_head(command)[4:], command.body])
        return command

    def answer_to(self, command: RemotingCommand) -> RemotingCommand:
        while True:
            head, *body = self.socket.recv_multipart()
            answer = frame.decode_parts(head, b"".join(body))
            if answer.is_response and answer.opaque == command.opaque:
                return answer

    def hears(self, seconds: float) -> bool:
        """Whether something comes within that time."""
        return bool(self.socket.poll(int(seconds * 1000)))

    def ask(self, command: RemotingCommand) -> RemotingCommand:
        return self.answer_to(self.tell(command))

    def close(self) -> None:
        self.socket.close()


class Clients:
    """One client at each front, made when it is first needed; one that broke is made anew."""

    def __init__(self, dev: Dev) -> None:
        self.dev = dev
        self.peers: dict[str, Peer | NativePeer] = {}

    def ask(self, front: str, command: RemotingCommand) -> RemotingCommand:
        command.serialize = Serialize.BINARY if "binary" in front else Serialize.JSON
        if front not in self.peers:
            self.peers[front] = Peer(self.dev) if front.startswith("tcp") else NativePeer(self.dev)
        peer = self.peers.pop(front)
        answer = peer.ask(command)
        self.peers[front] = peer
        return answer

    def close(self) -> None:
        for peer in self.peers.values():
            peer.close()


class Witness:
    """Sees that a broker is none the worse for what others do to it."""

    def __init__(self, dev: Dev) -> None:
        self.dev = dev
        # A group lasts as long as the connection that said its heartbeat.
        self.keeper = Peer(dev)
        assert self.keeper.ask(send_request(TOPIC)).code == 0
        assert self.keeper.ask(heartbeat("keeper", GROUP, TOPIC)).code == 0
        self.first_roles = roles_of(self.keeper)

    def send(self, body: bytes) -> int:
        """Store a good message over a connection of its own; return its queue offset."""
        peer = Peer(self.dev)
        answer = peer.ask(send_request(TOPIC, body))
        peer.close()
        assert answer.code == 0, answer.remark
        return int(answer.fields["queueOffset"])

    def consume(self, offset: int) -> bytes:
        """Return the body at an offset of the good topic, once it is readable."""
        peer = Peer(self.dev)
        # Long polling, with the subscription in the request: 2 + 4.
        request = pull_request(TOPIC, GROUP, offset, flags=6, messages=1, subscription="*")
        # While even the message before it is not readable, a pull is told that it is beyond the end.
        until("it is near the end", lambda: peer.ask(request).code != ResponseCode.PULL_OFFSET_MOVED)
        answer = peer.ask(request)
        peer.close()
        assert answer.code == 0, answer.remark
        return bytes(records.decode(memoryview(bytes(answer.body))).body)

    def check_roles(self) -> None:
        """Every role is still the process that began."""
        assert roles_of(self.keeper) == self.first_roles

    def close(self) -> None:
        self.keeper.close()


def roles_of(peer: Peer) -> dict[str, tuple[int, int]]:
    """Return process and incarnation of each role."""
    roles = json.loads(peer.ask(RemotingCommand.request(300001)).body)["roles"]
    return {role["role"]: (role["pid"], role["incarnation"]) for role in roles}


def framed(
    header: bytes, kind: int = 0, *, header_bytes: int | None = None, length: int | None = None
) -> bytes:
    """Return a frame without body, which may lie about its lengths."""
    said = len(header) if header_bytes is None else header_bytes
    whole = 4 + len(header) if length is None else length
    return struct.pack(">II", whole & 0xFFFF_FFFF, kind << 24 | said) + header
