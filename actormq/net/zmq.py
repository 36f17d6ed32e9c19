"""ZeroMQ for native clients: a ROUTER that never drops a reply silently.

A message of a client's DEALER is ``header, body…``; ours to it ``header, body…`` behind its identity.
The header part is a TCP frame's bytes from byte 4 up to the body.  A ROUTER cannot see a peer go: a
client holds a lease instead, which anything that it sends renews.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import zmq

from actormq.net.joining import Joiner
from actormq.net.tcp import Buffer, Timer
from actormq.wire.frame import FRAME_BYTES_MAX, HEADER_BYTES_MAX

_MESSAGES_A_TURN: Final = 256
_PIPE_MESSAGES: Final = 1_000
"""What libzmq itself queues for a peer; our own queue comes behind it."""
_COPIED_MAX: Final = 4_096
"""A longer part is handed on where it lies."""
# Plain numbers: to combine enums takes longer than to send.
_AT_ONCE: Final = int(zmq.DONTWAIT)
_READABLE: Final = int(zmq.POLLIN)
_MORE_FOLLOWS: Final = int(zmq.DONTWAIT | zmq.SNDMORE)
_RETRY_MS: Final = 5
_BACKLOG: Final = 1_024
_HANDSHAKE_MS: Final = 10_000
_PINGS: Final = 2
"""In an idle time-out: one that a busy peer misses is not its end."""


class ZmqReactor(Protocol):
    """What a ZeroMQ socket needs of its loop (`actormq.actors.loop.Loop`)."""

    def watch_zmq(self, socket: Any, callback: Callable[[int], None]) -> None: ...

    def unwatch_zmq(self, socket: Any) -> None: ...

    def call_later_ms(self, delay_ms: float, callback: Callable[[], None]) -> Timer: ...

    def used(self, socket: zmq.Socket[bytes]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterLimits:
    """What native clients may use."""

    frame_bytes_max: int = FRAME_BYTES_MAX
    clients_max: int = 10_000
    lease_ms: int = 5_000
    reply_bytes_max: int = 64 * 1024 * 1024
    """A client for which more than this is queued is dropped: it does not read."""
    idle_timeout_ms: int = 120_000
    """A connection that does not finish its handshake, or answers no ping for so long, is closed."""


class RouterClient:
    """One native client.

    Attributes:
        peer: its address; the port is not known.
        user: whatever the handler wants to keep with it.
    """

    __slots__ = (
        "_queue",
        "active_ns",
        "closed",
        "host",
        "identity",
        "peer",
        "queued_bytes",
        "server",
        "user",
    )

    def __init__(self, identity: bytes, address: str, server: RouterServer) -> None:
        self.identity = identity
        self.host = (address, 0)
        self.peer = f"[{address}]:0" if ":" in address else f"{address}:0"
        self.server = server
        self.user: object = None
        self.active_ns = 0
        self.closed = False
        self.queued_bytes = 0
        self._queue: deque[tuple[Buffer, ...]] = deque()

    def send(self, *parts: Buffer) -> None:
        """Queue one message: the header part and the parts of its body.  A closed client gets nothing.

        The client would join the parts, having received one after the other: here it is done once for both.
        """
        if not self.closed:
            if len(parts) > 2:
                parts = (parts[0], self.server.joiner.join(parts[1:]))
            self._queue.append(parts)
            self.queued_bytes += sum(map(len, parts))
            self.server.dirty.add(self)

    def flush(self, socket: zmq.Socket[bytes]) -> bool:
        """Send what the client's pipe takes; say whether all of it.

        Raises:
            zmq.ZMQError: EHOSTUNREACH: there is no such client any more.
        """
        while self._queue:
            parts = self._queue[0]
            try:
                socket.send(self.identity, _MORE_FOLLOWS)
            except zmq.Again:
                return False
            for part in parts[:-1]:
                socket.send(part, _MORE_FOLLOWS, copy=len(part) < _COPIED_MAX)
            socket.send(parts[-1], _AT_ONCE, copy=len(parts[-1]) < _COPIED_MAX)
            self.queued_bytes -= sum(map(len, parts))
            self._queue.popleft()
        return True

    def forget(self) -> None:
        """Drop what is queued."""
        self.closed = True
        self.queued_bytes = 0
        self._queue.clear()


class RouterHandler(Protocol):
    """Who serves the clients of a `RouterServer`."""

    def client_opened(self, client: RouterClient) -> None:
        """The first message of a client has come; it follows."""

    def message(self, client: RouterClient, header: bytes, body: bytes | memoryview) -> None:
        """One message; several body parts are joined.  Keep no view of the body: its memory is ZeroMQ's."""

    def client_closed(self, client: RouterClient, reason: str) -> None:
        """The client is gone; called once for each that was opened."""


class RouterServer:
    """A ROUTER socket and the clients known on it.

    Args:
        listener: a listening TCP socket's descriptor; owned (by libzmq) from now on.
        endpoint: where that socket is bound: ``tcp://host:port``.
    """

    def __init__(
        self,
        loop: ZmqReactor,
        context: zmq.Context[zmq.Socket[bytes]],
        listener: int,
        endpoint: str,
        handler: RouterHandler,
        limits: RouterLimits,
        log: logging.Logger,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._loop = loop
        self._handler = handler
        self._limits = limits
        self._log = log
        self._now_ns = now_ns
        self._retry: Timer | None = None
        self._lease_timer: Timer | None = None
        self.endpoint = endpoint
        self.clients: dict[bytes, RouterClient] = {}
        self.dirty: set[RouterClient] = set()
        self.joiner = Joiner()
        self._refused = False
        self._leases_seen_ns = now_ns()
        self._socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.ROUTER_HANDOVER, 1),
            (zmq.LINGER, 0),
            (zmq.SNDHWM, _PIPE_MESSAGES),
            (zmq.RCVHWM, _PIPE_MESSAGES),
            (zmq.MAXMSGSIZE, limits.frame_bytes_max),
            (zmq.BACKLOG, _BACKLOG),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.HANDSHAKE_IVL, min(_HANDSHAKE_MS, limits.idle_timeout_ms)),
            (zmq.HEARTBEAT_IVL, max(1, limits.idle_timeout_ms // _PINGS)),
            (zmq.HEARTBEAT_TIMEOUT, limits.idle_timeout_ms),
            (zmq.IPV6, 1 if "[" in endpoint else 0),
            (zmq.USE_FD, listener),
        ):
            self._socket.setsockopt(option, value)
        self._socket.bind(endpoint)
        loop.watch_zmq(self._socket, self._on_ready)

    # -- receiving

    def _on_ready(self, _events: int) -> None:
        for number in range(_MESSAGES_A_TURN):
            # Most often there is one; to be told so costs less than to be refused the next.
            if number == 1 and not int(self._socket.getsockopt(zmq.EVENTS)) & _READABLE:
                return
            try:
                identity = self._socket.recv(_AT_ONCE)
            except zmq.Again:
                return
            # A frame knows whether more follows (to ask the socket takes longer), and its bytes stay where
            # ZeroMQ has received them.
            header = self._socket.recv(copy=False)
            self._on_message(identity, header, self._body() if header.more else b"")

    def _body(self) -> bytes | memoryview:
        """Receive the rest of a message."""
        first = self._socket.recv(copy=False)
        if not first.more:
            return first.buffer if len(first) > _COPIED_MAX else first.bytes
        parts = [first]
        while parts[-1].more:
            parts.append(self._socket.recv(copy=False))
        return b"".join([part.bytes for part in parts])

    def _on_message(self, identity: bytes, header: zmq.Frame, body: bytes | memoryview) -> None:
        client = self.clients.get(identity)
        if client is None:
            client = self._open(identity, str(header.get("Peer-Address") or ""))
            if client is None:
                return
        client.active_ns = self._now_ns()
        if len(header) > HEADER_BYTES_MAX or len(header) + len(body) > self._limits.frame_bytes_max:
            self.close_client(client, f"a message of {len(header)} + {len(body)} bytes", warn=True)
            return
        self._handler.message(client, header.bytes, body)

    def _open(self, identity: bytes, address: str) -> RouterClient | None:
        if len(self.clients) >= self._limits.clients_max:
            if not self._refused:
                self._log.warning("refused native clients: %d are connected", len(self.clients))
            self._refused = True
            return None
        self._refused = False
        client = self.clients[identity] = RouterClient(identity, address or "127.0.0.1", self)
        self._handler.client_opened(client)
        if self._lease_timer is None:
            self._leases_seen_ns = self._now_ns()
            self._watch_leases()
        return client

    # -- sending

    def flush(self) -> None:
        """Send all that was queued since the last call: once per batch."""
        if not self.dirty:
            return
        blocked = set()
        while self.dirty:
            client = self.dirty.pop()
            if not client.closed and not self._flush_client(client):
                blocked.add(client)
        self.dirty |= blocked
        self._loop.used(self._socket)
        if blocked and self._retry is None:
            self._retry = self._loop.call_later_ms(_RETRY_MS, self._on_retry)

    def _flush_client(self, client: RouterClient) -> bool:
        """Send to one client; say whether nothing of it has to wait (or will ever be sent)."""
        try:
            if client.flush(self._socket):
                return True
        except zmq.ZMQError as trouble:
            if trouble.errno != zmq.EHOSTUNREACH:
                raise
            self.close_client(client, "unreachable")
            return True
        if client.queued_bytes > self._limits.reply_bytes_max:
            self.close_client(client, f"does not read: {client.queued_bytes} bytes are queued", warn=True)
            return True
        return False

    def _on_retry(self) -> None:
        self._retry = None
        self.flush()

    # -- closing

    def close_client(self, client: RouterClient, reason: str, warn: bool = False) -> None:
        """Forget a client; its next message makes it a new one.

        Args:
            warn: it misbehaved: one log line says so.
        """
        if client.closed:
            return
        if warn:
            self._log.warning("dropped the native client %s: %s", client.peer, reason)
        client.forget()
        self.dirty.discard(client)
        if self.clients.get(client.identity) is client:
            del self.clients[client.identity]
        self._handler.client_closed(client, reason)

    def _watch_leases(self) -> None:
        """Look at the leases now and then while there are clients: an idle broker sleeps."""
        self._lease_timer = None
        if self.clients:
            self._lease_timer = self._loop.call_later_ms(max(self._limits.lease_ms / 10, 10), self._on_leases)

    def _on_leases(self) -> None:
        self.close_silent(self._now_ns())
        self._watch_leases()

    def close_silent(self, now_ns: int) -> None:
        """Close the clients whose lease is over.

        After a sleep of our own (a stopped process) all leases begin anew: what the clients sent
        meanwhile may still be unread.
        """
        lease_ns = self._limits.lease_ms * 1_000_000
        slept = now_ns - self._leases_seen_ns > lease_ns // 2
        self._leases_seen_ns = now_ns
        if slept:
            for client in self.clients.values():
                client.active_ns = now_ns
        oldest_ns = now_ns - lease_ns
        for client in [one for one in self.clients.values() if one.active_ns < oldest_ns]:
            self.close_client(client, "its lease is over")

    def close(self) -> None:
        """Close the socket and every client."""
        for timer in (self._retry, self._lease_timer):
            if timer is not None:
                timer.cancel()
        self._loop.unwatch_zmq(self._socket)
        for client in list(self.clients.values()):
            self.close_client(client, "the server stops")
        self._socket.close(0)


def message_parts(parts: Sequence[Buffer]) -> tuple[Buffer, ...]:
    """Return the parts of a ZeroMQ message for a TCP frame's parts: the length prefix is left out."""
    head = memoryview(parts[0])[4:]
    return (head, *parts[1:])
