"""TCP without blocking: a server whose connections cut frames and queue replies, and a client for a reactor.

Reading goes into one buffer that all connections of a server share: frames are views of it, valid until
the handler returns.  Writing is a bounded queue for each connection, emptied by one `sendmsg` for all that
came together; queued views (slices of the mapped log) are sent from where they lie.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, Protocol

from actormq.errors import ActorMQError, FrameError
from actormq.kernels.frames import cut_frames
from actormq.wire import frame
from actormq.wire.command import RemotingCommand

READ: Final = select.POLLIN
WRITE: Final = select.POLLOUT

Buffer = bytes | bytearray | memoryview
Places = tuple[list[tuple[int, int]], int, int]
"""What `actormq.kernels.frames.cut_frames` returns."""

_READ_BUFFER_BYTES: Final = 256 * 1024
_PARTS_A_CALL: Final = 256
"""Buffers for one `sendmsg`; Linux allows 1,024."""
_ACCEPTS_A_TURN: Final = 64
_ACCEPT_PAUSE_MS: Final = 1_000
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_LENGTH_BYTES: Final = 4
_FRAMES_A_TURN: Final = 128
"""Of one connection: thousands of small requests in one read would keep everybody else waiting."""


class Timer(Protocol):
    """A call in the future."""

    def cancel(self) -> None: ...


class Reactor(Protocol):
    """What sockets need of the loop that they live in (`actormq.actors.loop.Loop`)."""

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...

    def call_later_ms(self, delay_ms: float, callback: Callable[[], None]) -> Timer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server lets its peers use."""

    frame_bytes_max: int = frame.FRAME_BYTES_MAX
    connections_max: int = 10_000
    idle_timeout_ms: int = 120_000
    reply_bytes_max: int = 64 * 1024 * 1024
    """Beyond this many queued bytes a connection is not read until half of them are gone."""
    unfinished_bytes_max: int = 256 * 1024 * 1024
    """Of all frames that have not come whole; beyond it the one that is silent for longest is closed."""


class Connection:
    """One peer of a server.

    Attributes:
        peer: its address as ``host:port``.
        host: its address bytes and port, as getpeername gives them.
        user: whatever the handler wants to keep with it.
    """

    __slots__ = (
        "_pending",
        "_queue",
        "active_ns",
        "backlog",
        "broken",
        "closed",
        "ended",
        "host",
        "limits",
        "paused",
        "peer",
        "queued_bytes",
        "server",
        "sock",
        "unfinished_bytes",
        "user",
        "warned",
        "watched",
    )

    def __init__(
        self, sock: socket.socket, host: tuple[str, int], limits: Limits, server: Server | None
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.host = host
        self.peer = format_address(*host)
        self.limits = limits
        self.server = server
        self.user: object = None
        self.active_ns = 0
        self.closed = False
        self.ended = False
        self.broken: FrameError | None = None
        self.paused = False
        self.watched = 0
        self.queued_bytes = 0
        self.backlog: deque[bytes] = deque()
        """Frames that have come and wait for the next turn; until they are served, nothing more is read."""
        self.unfinished_bytes = 0
        self.warned = False
        self._queue: deque[memoryview] = deque()
        self._pending = bytearray()

    # -- reading

    def receive(self, buffer: memoryview, cut: Cut | None = None) -> list[memoryview]:
        """Read once, and return the frames that are whole, without their length prefixes.

        Args:
            cut: serves some frames by itself, and returns where the others are.

        They are views of `buffer` (or of a large frame's own memory), valid until the next `receive`.
        Sets `ended` when the peer is gone, `broken` when what came is no frame.
        """
        kept = len(self._pending)
        large = self._large_bytes(len(buffer)) if kept else 0
        start = 0 if large else kept
        if not large:
            buffer[:kept] = self._pending
        try:
            count = self.sock.recv_into(buffer[start:])
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            count = 0
        if count == 0:
            self.ended = True
            return []
        if large:
            return self._continue_large(buffer[:count], large)
        return self._cut(buffer, 0, kept + count, cut)

    def _large_bytes(self, buffer_bytes: int) -> int:
        """Return the whole length of the frame under way when it does not fit into the buffer, else 0."""
        if len(self._pending) < _LENGTH_BYTES:
            return 0
        total = _LENGTH_BYTES + int.from_bytes(self._pending[:_LENGTH_BYTES], "big")
        return total if total > buffer_bytes else 0

    def _continue_large(self, came: memoryview, total: int) -> list[memoryview]:
        missing = total - len(self._pending)
        self._pending += came[:missing]
        if len(self._pending) < total:
            self.unfinished_bytes = len(self._pending)
            return []
        whole = memoryview(self._pending)[_LENGTH_BYTES:]
        self._pending = bytearray()
        return [whole, *self._cut(came, missing, len(came))]

    def _cut(self, buffer: memoryview, start: int, end: int, cut: Cut | None = None) -> list[memoryview]:
        view = buffer[start:end]
        if cut is None:
            places, used, bad = cut_frames(view, end - start, self.limits.frame_bytes_max)
        else:
            places, used, bad = cut(self, view, end - start)
        self._pending = bytearray(view[used:])
        self.unfinished_bytes = end - start - used
        if bad >= 0:
            self.broken = FrameError(f"a frame of {bad} bytes")
        return [view[first:last] for first, last in places]

    # -- writing

    def send(self, *parts: Buffer) -> None:
        """Queue `parts`; they leave with the server's next `flush`.  A closed connection drops them."""
        if self.closed:
            return
        for part in parts:
            if len(part):
                self._queue.append(memoryview(part))
                self.queued_bytes += len(part)
        if self.server is not None:
            self.server.dirty.add(self)

    def flush(self) -> None:
        """Send what the socket takes; sets `ended` when the peer is gone."""
        queue = self._queue
        try:
            while queue:
                parts = list(islice(queue, _PARTS_A_CALL))
                self._sent(self.sock.sendmsg(parts))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.ended = True

    def _sent(self, count: int) -> None:
        self.queued_bytes -= count
        while count:
            first = self._queue[0]
            if len(first) > count:
                self._queue[0] = first[count:]
                return
            count -= len(first)
            self._queue.popleft()

    def wanted_events(self) -> int:
        """Return what the loop should wait for: no reading while too many replies wait."""
        limit = self.limits.reply_bytes_max
        self.paused = self.queued_bytes > (limit // 2 if self.paused else limit)
        return (0 if self.paused or self.backlog else READ) | (WRITE if self._queue else 0)

    def forget(self) -> None:
        """Close the socket and drop what is queued, or has come in part: who knows us may live on."""
        self.closed = True
        self._queue.clear()
        self.backlog.clear()
        self._pending = bytearray()
        self.queued_bytes = 0
        self.sock.close()


def format_address(host: str, port: int) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``.

    Raises:
        RemotingFailed: it is none.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise RemotingFailed(f"{address!r} is no host:port")
    return host.strip("[]"), int(port)


Cut = Callable[[Connection, memoryview, int], Places]
"""Cuts frames out of the first so many bytes of a view, and may serve some of them at once."""


class Handler(Protocol):
    """Who serves a server's connections."""

    def opened(self, connection: Connection) -> None:
        """A peer has connected."""

    def frames(self, connection: Connection, frames: Sequence[memoryview]) -> None:
        """Frames without their length prefix; views that are valid until this returns."""

    def closed(self, connection: Connection, reason: str) -> None:
        """The connection is gone; called once for each that was opened."""


class Server:
    """Listening socket and connections of one front.

    Args:
        listener: bound and listening; owned from now on.
        now_ns: the monotonic clock.
        cut: takes frames before the handler sees them; it gets the others.
    """

    def __init__(
        self,
        loop: Reactor,
        listener: socket.socket,
        handler: Handler,
        limits: Limits,
        log: logging.Logger,
        now_ns: Callable[[], int] = time.monotonic_ns,
        cut: Cut | None = None,
    ) -> None:
        listener.setblocking(False)
        self._loop = loop
        self._listener = listener
        self._handler = handler
        self._limits = limits
        self._log = log
        self._now_ns = now_ns
        self._cut = cut
        self._buffer = memoryview(bytearray(min(_READ_BUFFER_BYTES, max(limits.frame_bytes_max, 4096))))
        self._refused = 0
        self._unfinished_bytes = 0
        self._idle_timer: Timer | None = None
        self.connections: set[Connection] = set()
        self.dirty: set[Connection] = set()
        self._accept_on()
        self._watch_idle()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        name = self._listener.getsockname()
        return name[0], name[1]

    # -- accepting

    def _accept_on(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), READ, self._on_accept)

    def _on_accept(self, _events: int) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, name = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as trouble:
                if trouble.errno not in _NO_DESCRIPTORS:
                    raise
                self._log.warning("cannot accept connections for a while: %s", trouble)
                self._loop.unwatch(self._listener.fileno())
                self._loop.call_later_ms(_ACCEPT_PAUSE_MS, self._accept_on)
                return
            self._open(sock, (name[0], name[1]))

    def _open(self, sock: socket.socket, host: tuple[str, int]) -> None:
        if len(self.connections) >= self._limits.connections_max:
            sock.close()
            if self._refused == 0:
                self._log.warning("refused %s: %d connections are open", host[0], len(self.connections))
            self._refused += 1
            return
        with contextlib.suppress(OSError):  # the peer may be gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection = Connection(sock, host, self._limits, self)
        connection.active_ns = self._now_ns()
        self.connections.add(connection)
        self._handler.opened(connection)
        self._watch(connection)

    # -- traffic

    def _watch(self, connection: Connection) -> None:
        events = connection.wanted_events()
        if events != connection.watched and not connection.closed:
            connection.watched = events
            self._loop.watch(connection.sock.fileno(), events, partial(self._on_ready, connection))
        if connection.paused and not connection.warned:
            connection.warned = True
            text = "%s does not read: %d bytes are queued, it is not read either"
            self._log.warning(text, connection.peer, connection.queued_bytes)

    def _on_ready(self, connection: Connection, events: int) -> None:
        if events & WRITE:
            connection.active_ns = self._now_ns()
            self.dirty.add(connection)
        if events & ~WRITE and not connection.paused and not connection.backlog:
            self._read(connection)
        elif events & ~(READ | WRITE):
            connection.ended = True  # hung up while it was not read
            self.dirty.add(connection)

    def _read(self, connection: Connection) -> None:
        connection.active_ns = self._now_ns()
        unfinished_bytes = connection.unfinished_bytes
        frames = connection.receive(self._buffer, self._cut)
        if connection.unfinished_bytes != unfinished_bytes:
            self._unfinished(connection.unfinished_bytes - unfinished_bytes)
        if len(frames) > _FRAMES_A_TURN:
            connection.backlog.extend(map(bytes, frames[_FRAMES_A_TURN:]))
            del frames[_FRAMES_A_TURN:]
        if frames and not connection.closed:
            self._handler.frames(connection, frames)
        self._end_read(connection)

    def _end_read(self, connection: Connection) -> None:
        """Close a connection that is over; one with a backlog goes on with the next `flush`."""
        if connection.closed:
            return
        if connection.backlog:
            self.dirty.add(connection)
            return
        if connection.broken is not None:
            self.close_connection(connection, connection.broken.remark, warn=True)
        elif connection.ended:
            self.close_connection(connection, "closed by the peer")

    def _unfinished(self, more_bytes: int) -> None:
        """Count what frames hold that have not come whole; too much of it is some silent clients' fault."""
        self._unfinished_bytes += more_bytes
        while self._unfinished_bytes > self._limits.unfinished_bytes_max:
            holders = [one for one in self.connections if one.unfinished_bytes]
            silent = min(holders, key=lambda one: one.active_ns)
            self.close_connection(
                silent, f"{self._unfinished_bytes} bytes of unfinished frames are too many", warn=True
            )

    def flush(self) -> None:
        """Send all that was queued since the last call: once per batch."""
        while self.dirty:
            connection = self.dirty.pop()
            if connection.closed:
                continue
            connection.flush()
            if connection.ended:
                self.close_connection(connection, "closed by the peer")
                continue
            self._watch(connection)
            if connection.backlog and not connection.paused:
                self._loop.call_later_ms(0, partial(self._serve_backlog, connection))

    def _serve_backlog(self, connection: Connection) -> None:
        """Serve the next frames of a connection that sent very many at once."""
        backlog = connection.backlog
        frames = [memoryview(backlog.popleft()) for _ in range(min(_FRAMES_A_TURN, len(backlog)))]
        if frames:
            connection.active_ns = self._now_ns()
            self._handler.frames(connection, frames)
            self._end_read(connection)
            self.dirty.add(connection)

    # -- closing

    def close_connection(self, connection: Connection, reason: str, warn: bool = False) -> None:
        """Close one connection; what was queued for it is dropped.

        Args:
            warn: the peer misbehaved: one log line says so.
        """
        if connection.closed:
            return
        if warn:
            self._log.warning("closed the connection of %s: %s", connection.peer, reason)
        self._loop.unwatch(connection.sock.fileno())
        self._unfinished_bytes -= connection.unfinished_bytes
        connection.forget()
        self.connections.discard(connection)
        self.dirty.discard(connection)
        if self._refused and len(self.connections) < self._limits.connections_max:
            self._log.warning("refused %d connections while all were taken", self._refused)
            self._refused = 0
        self._handler.closed(connection, reason)

    def _watch_idle(self) -> None:
        interval_ms = max(self._limits.idle_timeout_ms / 12, 10)
        self._idle_timer = self._loop.call_later_ms(interval_ms, self._on_idle)

    def _on_idle(self) -> None:
        self.close_idle(self._now_ns())
        self._watch_idle()

    def close_idle(self, now_ns: int) -> None:
        """Close connections on which nothing was read or written for the idle timeout."""
        oldest_ns = now_ns - self._limits.idle_timeout_ms * 1_000_000
        for connection in [one for one in self.connections if one.active_ns < oldest_ns]:
            self.close_connection(connection, "idle")

    def start_afresh(self, reason: str) -> None:
        """Close every connection, and those that wait to be accepted: what they have sent is too old."""
        for connection in list(self.connections):
            self.close_connection(connection, reason)
        for _ in range(self._limits.connections_max):
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.close()

    def stop_accepting(self) -> None:
        """Take no new connections; those that are open go on.  The listening socket stays bound."""
        self._loop.unwatch(self._listener.fileno())

    def close(self) -> None:
        """Close the listener and every connection."""
        self.stop_accepting()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._listener.close()
        for connection in list(self.connections):
            self.close_connection(connection, "the server stops")


# --- a client that lives in a reactor ----------------------------------------------------------------


class RemotingFailed(ActorMQError):
    """A request got no answer: no connection, a time-out, or bytes that are no frame."""

    retryable = True


Answer = Callable[[RemotingCommand | RemotingFailed], None]
"""Called once for each request, from the loop or from `request` itself."""


@dataclass(slots=True)
class _Waiting:
    answer: Answer
    timer: Timer


class _Link:
    """One outgoing connection, being made or made."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.connected = False
        self.unsent: list[bytes] = []
        self.waiting: dict[int, _Waiting] = {}
        self.timer: Timer | None = None
        self.resolved: Callable[[], None] | None = None


class RemotingClient:
    """Requests to other brokers' and name servers' TCP ports: non-blocking, one connection an address.

    For a role with a loop of its own (the coordinator registers by it).  Use from the loop's thread only.
    """

    def __init__(
        self,
        loop: Reactor,
        *,
        connect_timeout_ms: int = 3_000,
        request_timeout_ms: int = 3_000,
        limits: Limits | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """`on_lost` is told the address of a connection that was made and has ended without our doing."""
        self._on_lost = on_lost
        self._loop = loop
        self._connect_timeout_ms = connect_timeout_ms
        self._request_timeout_ms = request_timeout_ms
        self._limits = limits or Limits()
        self._buffer = memoryview(bytearray(64 * 1024))
        self._links: dict[str, _Link] = {}

    def request(
        self, address: str, command: RemotingCommand, answer: Answer, timeout_ms: int | None = None
    ) -> None:
        """Send `command` to ``host:port``; `answer` gets the response or a `RemotingFailed`."""
        try:
            link = self._link(address)
        except RemotingFailed as failure:
            answer(failure)
            return
        opaque = command.opaque
        timer = self._loop.call_later_ms(
            self._request_timeout_ms if timeout_ms is None else timeout_ms,
            lambda: self._timed_out(link, opaque),
        )
        link.waiting[opaque] = _Waiting(answer, timer)
        self._send(link, frame.encode(command))

    def oneway(self, address: str, command: RemotingCommand) -> None:
        """Send `command` and hear nothing of it, whatever happens."""
        with contextlib.suppress(RemotingFailed):
            self._send(self._link(address), frame.encode(command))

    def close(self) -> None:
        """Close every connection; requests without an answer fail."""
        self._on_lost = None
        for link in list(self._links.values()):
            self._drop(link, "the client was closed")

    # -- connecting

    def _link(self, address: str) -> _Link:
        link = self._links.get(address)
        if link is None:
            host, port = split_address(address)
            link = self._links[address] = _Link(address)
            link.timer = self._loop.call_later_ms(
                self._connect_timeout_ms, lambda: self._drop(link, "no connection within the time-out")
            )
            if _is_numeric(host):
                self._connect(link, host, port)
            else:
                self._resolve(link, host, port)
        return link

    def _resolve(self, link: _Link, host: str, port: int) -> None:
        """Look the name up in a thread of its own: a dead DNS server must not stop the role."""
        read_fd, write_fd = os.pipe()
        found: list[str] = []

        def look_up() -> None:
            with contextlib.suppress(OSError):
                found.append(str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]))
            os.close(write_fd)

        def resolved(_events: int) -> None:
            self._loop.unwatch(read_fd)
            os.close(read_fd)
            if self._links.get(link.address) is not link:
                return
            if found:
                self._connect(link, found[0], port)
            else:
                self._drop(link, f"the name {host} is not known")

        self._loop.watch(read_fd, READ, resolved)
        threading.Thread(target=look_up, name="resolver", daemon=True).start()

    def _connect(self, link: _Link, host: str, port: int) -> None:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.connection = Connection(sock, (host, port), self._limits, None)
        error = sock.connect_ex((host, port))
        if error not in (0, errno.EINPROGRESS):
            # Not at once: the caller of `request` expects its answer after `request` has returned or within
            # it, but never while it is still filling in who waits.
            self._loop.call_later_ms(0, lambda: self._drop(link, os.strerror(error)))
            return
        self._loop.watch(sock.fileno(), READ | WRITE, lambda events: self._on_ready(link, events))

    def _on_connected(self, link: _Link) -> bool:
        assert link.connection is not None
        error = link.connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._drop(link, os.strerror(error))
            return False
        link.connected = True
        if link.timer is not None:
            link.timer.cancel()
        for data in link.unsent:
            link.connection.send(data)
        link.unsent.clear()
        return True

    # -- traffic

    def _send(self, link: _Link, data: bytes) -> None:
        if link.connection is None or not link.connected:
            link.unsent.append(data)
            return
        link.connection.send(data)
        self._flush(link)

    def _flush(self, link: _Link) -> None:
        connection = link.connection
        assert connection is not None
        connection.flush()
        if connection.ended:
            self._drop(link, "closed by the peer")
            return
        events = connection.wanted_events() | READ
        if events != connection.watched:
            connection.watched = events
            self._loop.watch(connection.sock.fileno(), events, lambda ready: self._on_ready(link, ready))

    def _on_ready(self, link: _Link, events: int) -> None:
        connection = link.connection
        assert connection is not None
        if not link.connected and not self._on_connected(link):
            return
        if events & ~WRITE:
            for data in connection.receive(self._buffer):
                self._on_frame(link, data)
                if connection.closed:
                    return
        if connection.broken is not None:
            self._drop(link, connection.broken.remark)
        elif connection.ended:
            self._drop(link, "closed by the peer")
        else:
            self._flush(link)

    def _on_frame(self, link: _Link, data: memoryview) -> None:
        try:
            command = frame.decode(bytes(data))
        except FrameError as error:
            self._drop(link, error.remark)
            return
        waiting = link.waiting.pop(command.opaque, None) if command.is_response else None
        if waiting is not None:
            waiting.timer.cancel()
            waiting.answer(command)

    def _timed_out(self, link: _Link, opaque: int) -> None:
        waiting = link.waiting.pop(opaque, None)
        if waiting is not None:
            waiting.answer(RemotingFailed(f"{link.address} did not answer in time"))

    def _drop(self, link: _Link, reason: str) -> None:
        """Give up a connection; everybody who waits on it is told."""
        if self._links.get(link.address) is link:
            del self._links[link.address]
        if link.timer is not None:
            link.timer.cancel()
        if link.connection is not None and not link.connection.closed:
            self._loop.unwatch(link.connection.sock.fileno())
            link.connection.forget()
        waiting, link.waiting = link.waiting, {}
        for one in waiting.values():
            one.timer.cancel()
            one.answer(RemotingFailed(f"{link.address}: {reason}"))
        if link.connected and self._on_lost is not None:
            self._on_lost(link.address)


def _is_numeric(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return False
