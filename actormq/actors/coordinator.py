"""coordinator: topics, groups, members, offsets and queue locks: everything that one role must decide alone.

From: gateways (Serve, ConnectionClosed, NeedTopic, NeedGroup, CommitOffsets, ReplayDone, ClientAnswered).
To: gateways (Served, Needed, CallClient); the tables for every reader; name servers.
All that one gateway sends travels in one FIFO, so a commit is applied before the lock is released after it.
"""

from __future__ import annotations

import msgspec


class Serve(msgspec.Struct, frozen=True, tag=True):
    """A client's request for this role; answered by `Served` with the same `request_id`.

    Attributes:
        connection_id: unique in one incarnation of the gateway, never reused in it.
        peer: the client's address as ``host:port``.
        command: an encoded frame without its length prefix.
        front: "tcp" or "zmq"; a ZeroMQ client holds a lease, as it cannot be seen to disconnect.
        replay: the gateway repeats a client's last heartbeat to a new coordinator; it is not answered.
    """

    gateway: str
    incarnation: int
    connection_id: int
    request_id: int
    peer: str
    command: bytes
    front: str = "tcp"
    replay: bool = False


class Served(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Serve`: an encoded frame without its length prefix; None to a one-way request."""

    request_id: int
    command: bytes | None


class ConnectionClosed(msgspec.Struct, frozen=True, tag=True):
    """A client's connection is gone, and its memberships with it."""

    gateway: str
    incarnation: int
    connection_id: int


class ReplayDone(msgspec.Struct, frozen=True, tag=True):
    """The gateway has repeated the heartbeats of all its clients to this coordinator (perhaps none)."""

    gateway: str
    incarnation: int


class NeedTopic(msgspec.Struct, frozen=True, tag=True):
    """A send met an unknown topic: create it from its template if that is allowed; answered by `Needed`."""

    gateway: str
    incarnation: int
    request_id: int
    topic: str
    default_topic: str
    default_queues: int
    sys_flag: int = 0


class NeedGroup(msgspec.Struct, frozen=True, tag=True):
    """A pull or a send met an unknown group: create it if that is allowed; answered by `Needed`."""

    gateway: str
    incarnation: int
    request_id: int
    group: str


class Needed(msgspec.Struct, frozen=True, tag=True):
    """The answer to `NeedTopic` and `NeedGroup`.

    With `code` 0 the entry is in the tables of every live gateway; else that is the response code to give.
    """

    request_id: int
    code: int
    remark: str | None = None


class CommitOffsets(msgspec.Struct, frozen=True, tag=True):
    """Offsets that pulls carried, in the order of the pulls; not answered."""

    gateway: str
    incarnation: int
    commits: list[tuple[str, str, int, int]]
    """Each: group, topic, queue id, offset."""


class CallClient(msgspec.Struct, frozen=True, tag=True):
    """A command for a client of that gateway; with a `call_id` its answer comes back as `ClientAnswered`."""

    connection_id: int
    command: bytes
    call_id: int = 0


class ClientAnswered(msgspec.Struct, frozen=True, tag=True):
    """What a client said to a `CallClient`; None: its connection is gone or the gateway gave up."""

    gateway: str
    incarnation: int
    call_id: int
    command: bytes | None
