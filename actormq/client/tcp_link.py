"""A RocketMQ connection over TCP."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import deque
from itertools import islice
from typing import Any, Final

from actormq.client.links import READS_PER_TURN, Link, LinkContext, host_and_port
from actormq.client.procedures import Address
from actormq.errors import ConnectFailed, ConnectionLost, FrameError
from actormq.wire import frame
from actormq.wire.command import RemotingCommand

_READ_BYTES: Final = 256 * 1024
_PIECES_A_WRITE: Final = 64
_READ_BYTES_LITTLE: Final = 32 * 1024
"""When there is probably not more: the other size is memory from the system, given back each time."""


class TcpLink(Link):
    """A RocketMQ connection.  Frames are written by whoever sends, as long as the socket takes them."""

    def __init__(self, address: Address, context: LinkContext) -> None:
        super().__init__(address, context)
        self._cutter = frame.FrameCutter(context.frame_bytes_max)
        self._outgoing: deque[bytes | memoryview] = deque()
        self._waiting_bytes = 0
        self._socket: socket.socket | None = None
        self._may_write = False
        self._read_bytes = _READ_BYTES_LITTLE

    def _outgoing_bytes(self) -> int:
        return self._waiting_bytes

    # -- connecting

    def open(self) -> None:
        self._expect_connection()
        host, port = host_and_port(self.address)
        try:
            self._connect(
                socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
            )
        except socket.gaierror:
            # A name, not a number: resolving may take seconds, which the loop does not have.
            threading.Thread(
                target=self._resolve, args=(host, port), name="actormq-resolve", daemon=True
            ).start()

    def _resolve(self, host: str, port: int) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            self._fail_soon(ConnectFailed(f"{self.address}: the name {host} cannot be resolved ({error})"))
        else:
            self._context.loop.call_soon(lambda: self._connect(found))

    def _connect(self, target: tuple[Any, ...]) -> None:
        if self._broken is not None:
            return
        family, kind, protocol, _, where = target
        connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        error = connection.connect_ex(where)
        if error in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            self._context.loop.watch(connection.fileno(), self._on_connect, self._on_connect)
        else:
            self._fail_soon(ConnectFailed(f"cannot connect to {self.address}: {os.strerror(error)}"))

    def _on_connect(self) -> None:
        if self._broken is not None or self._socket is None or self.is_open:
            return
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.fail(ConnectFailed(f"cannot connect to {self.address}: {os.strerror(error)}"))
            return
        self._context.loop.watch(self._socket.fileno(), self._on_readable)
        self._opened()
        with self._lock:
            self._may_write = True
            self._write()

    def _shut(self) -> None:
        if self._socket is not None:
            self._context.loop.unwatch(self._socket.fileno())
            with self._lock:
                self._may_write = False
                self._socket.close()

    # -- writing

    def send(self, command: RemotingCommand) -> None:
        self._send_frame(frame.encode(command))

    def _send_frame(self, data: bytes) -> None:
        with self._lock:
            if self._broken is not None:
                return
            self._outgoing.append(data)
            self._waiting_bytes += len(data)
            if self._may_write:
                self._write()

    def _send_parts(self, head: bytes, body: memoryview) -> None:
        with self._lock:
            if self._broken is not None:
                return
            self._outgoing += (head, body)
            self._waiting_bytes += len(head) + len(body)
            if self._may_write:
                self._write()

    def _write(self) -> None:
        """Write what the socket takes; the lock is held."""
        assert self._socket is not None
        while self._outgoing:
            pieces = list(islice(self._outgoing, _PIECES_A_WRITE))
            try:
                written = self._socket.sendmsg(pieces)
            except BlockingIOError:
                self._may_write = False
                self._context.loop.call_soon(self._watch_writable)
                return
            except OSError as error:
                self._may_write = False
                self._fail_soon(ConnectionLost(f"the connection to {self.address} broke: {error}"))
                return
            self._waiting_bytes -= written
            for piece in pieces:
                if written < len(piece):
                    self._outgoing[0] = memoryview(piece)[written:]
                    break
                written -= len(self._outgoing.popleft())

    def _watch_writable(self) -> None:
        if self._broken is None and self._socket is not None:
            self._context.loop.watch(self._socket.fileno(), self._on_readable, self._on_writable)

    def _on_writable(self) -> None:
        if self._broken is not None or self._socket is None:
            return
        self._context.loop.watch(self._socket.fileno(), self._on_readable)
        with self._lock:
            self._may_write = True
            self._write()

    # -- reading

    def _on_readable(self) -> None:
        for _ in range(READS_PER_TURN):
            if self._broken is not None or self._socket is None:
                return
            try:
                data = self._socket.recv(self._read_bytes)
            except BlockingIOError:
                return
            except OSError as error:
                self.fail(ConnectionLost(f"the connection to {self.address} broke: {error}"))
                return
            if not data:
                self.fail(ConnectionLost(f"{self.address} closed the connection"))
                return
            self._last_read_ns = self._context.clock.monotonic_ns()
            try:
                for one in self._cutter.feed(data):
                    self._received_parts(*frame.split(one))
            except FrameError as error:
                self.fail(ConnectionLost(f"{self.address} sent something that is no frame: {error}"))
                return
            if len(data) < self._read_bytes:
                self._read_bytes = _READ_BYTES_LITTLE
                return
            self._read_bytes = _READ_BYTES
