"""A connection to a broker or name server of ours over ZeroMQ.

A message is the header (a TCP frame's bytes from its header type on, without the body), then the body.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, Final

import zmq

from actormq.client.links import READS_PER_TURN, Link, LinkContext, host_and_port
from actormq.client.procedures import Address
from actormq.errors import ConnectFailed, ConnectionLost, FrameError
from actormq.wire import frame
from actormq.wire.command import RemotingCommand

_MONITOR_EVENT: Final = struct.Struct("=hi")
_HANDSHAKES_OK: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED
_REFUSALS: Final = (
    zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_WATCHED: Final = _HANDSHAKES_OK | _REFUSALS | zmq.EVENT_DISCONNECTED


def _fd(one: zmq.Socket[bytes]) -> int:
    fd: Any = one.getsockopt(zmq.FD)
    return int(fd)


def _events(one: zmq.Socket[bytes]) -> int:
    events: Any = one.getsockopt(zmq.EVENTS)
    return int(events)


class ZmqLink(Link):
    """A DEALER.  The socket belongs to the loop's thread; others leave frames for it.

    ``zmq.FD`` only tells of changes, so events are read again after everything that is done to the socket.
    """

    def __init__(self, address: Address, context: LinkContext) -> None:
        super().__init__(address, context)
        self._outgoing: deque[tuple[bytes, ...]] = deque()
        self._waiting_bytes = 0
        self._is_pumping = False
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None

    def _outgoing_bytes(self) -> int:
        return self._waiting_bytes

    def open(self) -> None:
        self._expect_connection()
        dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, self._context.identity())
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IMMEDIATE, 1)
        dealer.setsockopt(zmq.MAXMSGSIZE, self._context.frame_bytes_max)
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, self._context.connect_timeout_ms)
        dealer.setsockopt(zmq.TCP_KEEPALIVE, 1)
        if ":" in host_and_port(self.address)[0]:
            dealer.setsockopt(zmq.IPV6, 1)
        self._socket = dealer
        self._monitor = dealer.get_monitor_socket(_WATCHED)
        self._context.loop.watch(_fd(self._monitor), self._on_monitor)
        self._context.loop.watch(_fd(dealer), self._pump)
        try:
            dealer.connect(f"tcp://{self.address.partition('://')[2]}")
        except zmq.ZMQError as error:
            self._fail_soon(ConnectFailed(f"cannot connect to {self.address}: {error}"))
        self._context.loop.call_soon(self._on_monitor)

    def _shut(self) -> None:
        if self._socket is None or self._monitor is None:
            return
        for one in (self._monitor, self._socket):
            self._context.loop.unwatch(_fd(one))
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._outgoing.clear()

    def _on_monitor(self) -> None:
        while self._broken is None and self._monitor is not None and _events(self._monitor) & zmq.POLLIN:
            event = _MONITOR_EVENT.unpack(self._monitor.recv_multipart(zmq.NOBLOCK)[0])[0]
            if event == zmq.EVENT_DISCONNECTED:
                self.fail(ConnectionLost(f"the connection to {self.address} broke"))
            elif event & _REFUSALS:
                self.fail(
                    ConnectFailed(f"cannot connect to {self.address}: nobody listens, or it is no ActorMQ")
                )
            elif event & _HANDSHAKES_OK:
                self._opened()
                self._pump()

    def send(self, command: RemotingCommand) -> None:
        header = frame.encode_head(command)[4:]
        parts = (header, bytes(command.body)) if len(command.body) else (header,)
        with self._lock:
            if self._broken is not None:
                return
            self._outgoing.append(parts)
            self._waiting_bytes += sum(map(len, parts))
            if self._is_pumping:
                return
            self._is_pumping = True
        self._context.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send and receive until neither goes on."""
        self._is_pumping = False
        while self._broken is None and self._socket is not None:
            events = _events(self._socket)
            can_send = bool(self._outgoing) and events & zmq.POLLOUT
            if not can_send and not events & zmq.POLLIN:
                return
            if can_send:
                self._send_some(self._socket)
            if events & zmq.POLLIN:
                self._receive_some(self._socket)

    def _send_some(self, dealer: zmq.Socket[bytes]) -> None:
        try:
            while self._outgoing:
                dealer.send_multipart(self._outgoing[0], zmq.NOBLOCK, copy=True)
                with self._lock:
                    self._waiting_bytes -= sum(map(len, self._outgoing.popleft()))
        except zmq.Again:
            return

    def _receive_some(self, dealer: zmq.Socket[bytes]) -> None:
        try:
            for _ in range(READS_PER_TURN):
                parts = dealer.recv_multipart(zmq.NOBLOCK)
                self._last_read_ns = self._context.clock.monotonic_ns()
                body = parts[1] if len(parts) == 2 else b"".join(parts[1:])
                self._received(frame.decode_parts(parts[0], body))
                if self._broken is not None:
                    return
        except zmq.Again:
            return
        except FrameError as error:
            self.fail(ConnectionLost(f"{self.address} sent something that is no frame: {error}"))
