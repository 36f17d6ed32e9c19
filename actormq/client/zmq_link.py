"""A connection to a broker or name server of ours over ZeroMQ.

A message is the header (a TCP frame's bytes from its header type on, without the body), then the body.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections import deque
from functools import partial
from typing import Any, Final

import zmq

from actormq.client.links import READS_PER_TURN, Link, LinkContext, host_and_port
from actormq.client.procedures import Address
from actormq.errors import ConnectFailed, ConnectionLost, FrameError
from actormq.wire import frame
from actormq.wire.command import RemotingCommand

_TURNS_OF_A_CALLER: Final = 4
"""Of looking at the socket, before the rest is left to the loop's thread."""
_MONITOR_EVENT: Final = struct.Struct("=hi")
_HANDSHAKES_OK: Final = zmq.EVENT_HANDSHAKE_SUCCEEDED
_REFUSALS: Final = (
    zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
_LARGE_BYTES: Final = 32 * 1024
"""A body of this size is read where ZeroMQ has received it; copying a small one costs less."""
_CAN_RECEIVE: Final = int(zmq.POLLIN)
_CAN_SEND: Final = int(zmq.POLLOUT)
"""As plain numbers: an operation with pyzmq's flags takes longer than what it decides on."""
_WATCHED: Final = _HANDSHAKES_OK | _REFUSALS | zmq.EVENT_DISCONNECTED


def _fd(one: zmq.Socket[bytes]) -> int:
    fd: Any = one.getsockopt(zmq.FD)
    return int(fd)


def _events(one: zmq.Socket[bytes]) -> int:
    events: Any = one.getsockopt(zmq.EVENTS)
    return int(events)


def _receive_body(dealer: zmq.Socket[bytes]) -> bytes | memoryview:
    """Return the rest of a message: a large body of one part stays where ZeroMQ has received it."""
    parts = []
    while dealer.getsockopt(zmq.RCVMORE):
        parts.append(dealer.recv(zmq.NOBLOCK, copy=False))
    if len(parts) == 1:
        return parts[0].buffer if len(parts[0]) >= _LARGE_BYTES else parts[0].bytes
    return b"".join(part.buffer for part in parts)


class ZmqLink(Link):
    """A DEALER.  One thread at a time uses the socket: the loop's, or one that posts a request.

    Who finds it in use leaves frames for whoever uses it.  ``zmq.FD`` only tells of changes, so events are
    read again after everything that is done to the socket, and what has come is read, too.
    """

    def __init__(self, address: Address, context: LinkContext) -> None:
        super().__init__(address, context)
        self._outgoing: deque[tuple[bytes | memoryview, ...]] = deque()
        self._in_use = threading.Lock()
        """Only `_shut` waits for it."""
        self._is_blocked = False
        self._incoming: deque[tuple[bytes, bytes | memoryview]] = deque()
        self._is_delivering = threading.Lock()
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
        with self._in_use:
            for one in (self._monitor, self._socket):
                self._context.loop.unwatch(_fd(one))
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=0)
            self._socket = None
            self._outgoing.clear()

    def _on_monitor(self) -> None:
        while self._broken is None and self._monitor is not None and _events(self._monitor) & _CAN_RECEIVE:
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
        self._leave((header, bytes(command.body)) if len(command.body) else (header,))

    def _send_frame(self, data: bytes) -> None:
        self._leave((data[4:],))

    def _leave(self, parts: tuple[bytes, ...]) -> None:
        """Send in the loop's thread: at once where this is it."""
        with self._lock:
            if self._broken is not None:
                return
            self._outgoing.append(parts)
            self._waiting_bytes += sum(map(len, parts))
            if self._is_pumping:
                return
            is_here = self._context.loop.is_here()
            self._is_pumping = not is_here
        if is_here:
            self._use()
        else:
            self._context.loop.call_soon(self._pump)

    def _send_parts(self, head: bytes, body: memoryview) -> None:
        parts = (head[4:], body)
        with self._lock:
            if self._broken is not None:
                return
            self._outgoing.append(parts)
            self._waiting_bytes += len(parts[0]) + len(body)
        self._use(turns_max=_TURNS_OF_A_CALLER)

    def _pump(self) -> None:
        """Send and receive until neither goes on; the loop's thread."""
        self._is_pumping = False
        self._use()

    def _use(self, turns_max: int = sys.maxsize) -> None:
        """Send and receive until neither goes on, unless another thread is at it; then deliver what came.

        Args:
            turns_max: how often this thread looks again before it leaves the rest to the loop's.
        """
        while self._in_use.acquire(blocking=False):
            try:
                goes_on = self._take_turns(turns_max)
            finally:
                self._in_use.release()
            if goes_on:
                self._context.loop.call_soon(self._pump)
                break
            # Whoever came meanwhile found the socket in use and went away: look once more.
            if not self._outgoing or self._is_blocked:
                break
        # What is delivered often leads to the next request, and so to this place again: who is already here
        # delivers that, too.
        while self._incoming and self._is_delivering.acquire(blocking=False):
            try:
                self._deliver()
            finally:
                self._is_delivering.release()

    def _take_turns(self, turns_max: int) -> bool:
        """Use the socket; return whether there was still something to do when the turns were over."""
        self._is_blocked = False
        events = 0  # not known
        for _ in range(turns_max):
            if self._broken is not None or self._socket is None:
                return False
            if not events:
                events = _events(self._socket)
            can_send = bool(self._outgoing) and events & _CAN_SEND
            if not can_send and not events & _CAN_RECEIVE:
                self._is_blocked = bool(self._outgoing)
                return False
            if can_send:
                self._send_some(self._socket)
            events = self._receive_some(self._socket) if events & _CAN_RECEIVE else 0
        return True

    def _send_some(self, dealer: zmq.Socket[bytes]) -> None:
        try:
            while self._outgoing:
                parts = self._outgoing[0]
                dealer.send_multipart(parts, zmq.NOBLOCK, copy=True)
                self._outgoing.popleft()
                with self._lock:
                    self._waiting_bytes -= sum(map(len, parts))
        except zmq.Again:
            return

    def _receive_some(self, dealer: zmq.Socket[bytes]) -> int:
        """Receive, and return the socket's events of the last look, 0 when nobody has looked since."""
        events = 0
        try:
            for _ in range(READS_PER_TURN):
                self._incoming.append((dealer.recv(zmq.NOBLOCK), _receive_body(dealer)))
                events = _events(dealer)
                if not events & _CAN_RECEIVE:
                    break
        except zmq.Again:
            events = 0
        self._last_read_ns = self._context.clock.monotonic_ns()
        return events

    def _deliver(self) -> None:
        while self._incoming:
            header, body = self._incoming.popleft()
            try:
                self._received_parts(header, body)
            except FrameError as error:
                lost = ConnectionLost(f"{self.address} sent something that is no frame: {error}")
                self._in_loop(partial(self.fail, lost))
                return
