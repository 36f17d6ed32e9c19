"""One client connection as the rest of the gateway sees it, whatever front it came through."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, Protocol

from actormq.kernels.sends import SendTopic
from actormq.net.tcp import Buffer
from actormq.net.zmq import message_parts
from actormq.wire.command import Language, RemotingCommand
from actormq.wire.frame import encode_head

TCP: Final = "tcp"
VIP: Final = "vip"
ZMQ: Final = "zmq"

_LENGTH: Final = struct.Struct(">I")
_REPLAYED_MAX: Final = 16
_REPLAYED_BYTES_MAX: Final = 256 * 1024
"""A longer heartbeat (some thousand subscriptions) is not kept: the client's next one has to do."""


class Link(Protocol):
    """What a front's connection is to us (`net.tcp.Connection`, `net.zmq.RouterClient`)."""

    peer: str
    host: tuple[str, int]
    closed: bool
    queued_bytes: int

    def send(self, *parts: Buffer) -> None: ...


class Client:
    """A connection.

    Attributes:
        id: unique in this gateway's life, never used again.
        born_host: the peer's address as records keep it.
        introduced: the coordinator has heard of it, and must hear that it is gone.
        memory: the heartbeat, and what was unregistered since, to repeat to a new coordinator.
        beat, beat_until_ns: the last heartbeat of a native producer, and how long we answer the same one
            ourselves (`relay.Relay`).
        calls: the coordinator's questions to this client, by the opaque that we gave them.
        topics: what this client's common sends may go to, as of `topics_version` (`sends.Sends`).
        waiting_requests, waiting_bytes: sends that wait for room or for their topic.
    """

    __slots__ = (
        "_next_opaque",
        "beat",
        "beat_until_ns",
        "born_host",
        "born_v6",
        "calls",
        "front",
        "id",
        "introduced",
        "link",
        "memory",
        "parked",
        "topics",
        "topics_version",
        "waiting_bytes",
        "waiting_requests",
    )

    def __init__(self, client_id: int, front: str, link: Link) -> None:
        self.id = client_id
        self.front = front
        self.link = link
        self.born_host, self.born_v6 = pack_peer(*link.host)
        self.introduced = False
        self.beat = b""
        self.beat_until_ns = 0
        self.memory: list[bytes] = []
        self.calls: dict[int, int] = {}
        self.parked: set[int] = set()
        self.topics: dict[bytes, SendTopic] = {}
        self.topics_version = -1
        self.waiting_requests = 0
        self.waiting_bytes = 0
        self._next_opaque = 0

    @property
    def peer(self) -> str:
        return self.link.peer

    @property
    def closed(self) -> bool:
        return self.link.closed

    # -- answering

    def reply(self, *parts: Buffer) -> None:
        """Send a frame: its head with the length prefix, then its body from where it lies."""
        if self.front == ZMQ:
            self.link.send(*message_parts(parts))
        else:
            self.link.send(*parts)

    def reply_frames(self, data: bytearray) -> None:
        """Send whole frames that lie one behind the other."""
        if self.front != ZMQ:
            self.link.send(data)
            return
        view, at = memoryview(data), 0
        while at < len(view):
            end = at + 4 + _LENGTH.unpack_from(view, at)[0]
            body_at = at + 8 + (_LENGTH.unpack_from(view, at + 4)[0] & 0xFF_FFFF)
            if body_at < end:
                self.link.send(view[at + 4 : body_at], view[body_at:end])
            else:
                self.link.send(view[at + 4 : end])
            at = end

    def answer(self, command: RemotingCommand) -> None:
        """Send a command."""
        if len(command.body):
            self.reply(encode_head(command), command.body)
        else:
            self.reply(encode_head(command))

    def forward(self, data: bytes) -> None:
        """Send a frame that somebody else has encoded, without its length prefix."""
        head_bytes = 4 + (_LENGTH.unpack_from(data)[0] & 0xFF_FFFF)
        if self.front != ZMQ:
            self.link.send(_LENGTH.pack(len(data)), data)
        elif head_bytes < len(data):
            self.link.send(memoryview(data)[:head_bytes], memoryview(data)[head_bytes:])
        else:
            self.link.send(data)

    def refuse(
        self, request: RemotingCommand, code: int, remark: str, fields: dict[str, str] | None = None
    ) -> None:
        """Answer `request` with an error; a one-way request hears nothing."""
        if not request.is_oneway:
            self.answer(RemotingCommand.response_to(request, code, remark, fields))

    def call_opaque(self) -> int:
        """Return the opaque for a question of ours to this client."""
        self._next_opaque = (self._next_opaque + 1) & 0x7FFF_FFFF
        return self._next_opaque

    # -- memory

    def remember(self, frame: bytes, *, heartbeat: bool) -> None:
        """Keep what a new coordinator must hear: the last heartbeat and the unregistrations since."""
        if heartbeat:
            self.memory = [frame] if len(frame) <= _REPLAYED_BYTES_MAX else []
        elif self.memory and len(self.memory) < _REPLAYED_MAX:
            self.memory.append(frame)


def pack_peer(host: str, port: int) -> tuple[bytes, bool]:
    """Return an address as records keep it (address bytes, port as i32), and whether it is IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.packed + struct.pack(">i", port), address.version == 6


def is_native(command: RemotingCommand) -> bool:
    """Whether our own client asks."""
    return command.language is Language.PYTHON
