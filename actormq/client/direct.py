"""Connections that calling threads use themselves: a send that waits passes through no other thread.

A thread takes a connection, writes its request, waits for the answer in `recv` and puts the connection back:
one wake-up instead of five.  One request is under way per connection, so a broken or late one concerns its
caller alone.  RocketMQ's TCP protocol, plain blocking sockets: works under gevent's patches, too.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

from actormq.client.links import host_and_port
from actormq.client.procedures import Address
from actormq.client.settings import ClientSettings
from actormq.clock import Clock
from actormq.errors import (
    ClientClosed,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    FrameError,
    RequestTimeout,
)
from actormq.kernels.singles import is_answer
from actormq.wire import frame
from actormq.wire.command import RemotingCommand

log = logging.getLogger("actormq.client")
Reply = Callable[[RemotingCommand], None]
OnRequest = Callable[[RemotingCommand, Reply], None]

_READ_BYTES: Final = 16 * 1024
_LARGE_BYTES: Final = 64 * 1024
"""A request that may take a while to be written: its time is looked at again before the answer's."""
_PROBE_INTERVAL_NS: Final = 5_000_000_000
"""How often an address that could not be connected to is tried again."""
_FRESH_NS: Final = 100_000_000
"""A connection that was idle for longer may have been closed by the broker: it is looked at first."""


class _Connection:
    """One socket and who may write to it."""

    __slots__ = ("cutter", "idle_since_ns", "lock", "socket", "timeout_ms")

    def __init__(self, connected: socket.socket, frame_bytes_max: int) -> None:
        self.socket = connected
        self.cutter = frame.FrameCutter(frame_bytes_max)
        self.lock = threading.Lock()
        """For writing: the answer to a broker's own request comes from the client's thread."""
        self.idle_since_ns = 0
        self.timeout_ms = -1
        """What the socket's time-out is set to; -1 = something else."""

    def set_timeout(self, timeout_ms: int) -> None:
        if self.timeout_ms != timeout_ms:
            self.socket.settimeout(timeout_ms / 1000)
            self.timeout_ms = timeout_ms

    def write(self, data: bytes) -> None:
        with self.lock:
            self.socket.sendall(data)


class _Pool:
    """The connections to one address."""

    __slots__ = ("all", "freed", "idle", "opening", "waiting")

    def __init__(self, lock: threading.Lock) -> None:
        self.all: set[_Connection] = set()
        self.idle: list[_Connection] = []
        """The last one put back is the next one taken: the others get old and are closed."""
        self.opening = 0
        self.waiting = 0
        self.freed = threading.Condition(lock)


class Direct:
    """All such connections of one client.  Any thread."""

    def __init__(
        self,
        settings: ClientSettings,
        clock: Clock,
        on_request: OnRequest,
        on_opened: Callable[[], None],
    ) -> None:
        """
        Args:
            on_request: takes what a broker asks on such a connection, and how to answer; must not block.
            on_opened: told of each new connection: somebody has to call `close_idle` from then on.
        """
        self._settings = settings
        self._clock = clock
        self._on_request = on_request
        self._on_opened = on_opened
        self._lock = threading.Lock()
        self._pools: dict[Address, _Pool] = {}
        self._reached: set[Address] = set()
        self._probed_ns: dict[Address, int] = {}
        self._is_closed = False

    # -- where it leads

    def is_reachable(self, address: Address) -> bool:
        """Whether a connection to `address` could be made lately; begins to make one when nobody has tried.

        For those who have another way to the broker: a port behind a firewall that swallows packets is found
        out by a thread of our own, not by a caller's time-out.
        """
        if address in self._reached:
            return True
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            if (
                self._is_closed
                or now_ns - self._probed_ns.get(address, -_PROBE_INTERVAL_NS) < _PROBE_INTERVAL_NS
            ):
                return False
            self._probed_ns[address] = now_ns
        threading.Thread(target=self._probe, args=(address,), name="actormq-connect", daemon=True).start()
        return False

    def _probe(self, address: Address) -> None:
        timeout_ms = self._settings.connect_timeout_ms
        try:
            pool, connection = self._take(
                address, self._clock.monotonic_ns() + timeout_ms * 1_000_000, timeout_ms
            )
        except ClientError as error:
            log.info("sends go another way", extra={"address": address, "reason": str(error)})
        else:
            self._put_back(pool, connection)
            self._reached.add(address)  # last: who sees it finds the connection

    # -- requests

    def call(self, address: Address, data: bytes, opaque: int | None, timeout_ms: int) -> bytes:
        """Send a request's frame; block until its answer's is there, and return that.

        Args:
            opaque: the request's; None = it is one-way: return b"" when it is written.
        Raises:
            ConnectFailed, ConnectionLost, RequestTimeout, ClientClosed.
        """
        now_ns = self._clock.monotonic_ns()
        deadline_ns = now_ns + timeout_ms * 1_000_000
        with self._lock:
            pool = self._pools.get(address)
            connection = pool.idle.pop() if pool is not None and pool.idle else None
        if pool is None or connection is None or now_ns - connection.idle_since_ns > _FRESH_NS:
            pool, connection = self._take(address, deadline_ns, timeout_ms, connection)
            self._reached.add(address)
        is_good = False
        try:
            connection.set_timeout(timeout_ms)
            connection.write(data)
            answer = b""
            if opaque is not None:
                if len(data) >= _LARGE_BYTES:
                    connection.set_timeout(self._left_ms(deadline_ns))
                answer = self._read(connection, opaque, deadline_ns)
            is_good = True
            return answer
        except TimeoutError as late:
            raise RequestTimeout(f"{address} did not answer within {timeout_ms} ms") from late
        except FrameError as error:
            raise ConnectionLost(f"{address} sent something that is no frame: {error}") from error
        except OSError as error:
            raise self._lost(address, f"the connection to {address} broke: {error}") from error
        except EOFError:
            raise self._lost(address, f"{address} closed the connection") from None
        finally:
            # Whatever else ends the wait (Ctrl-C, a greenlet's end): an answer may still come on this one.
            if is_good:
                self._put_back(pool, connection)
            else:
                self._drop(pool, connection)

    def _lost(self, address: Address, what: str) -> ClientError:
        return _closed() if self._is_closed else ConnectionLost(what)

    def _left_ms(self, deadline_ns: int) -> int:
        left_ms = (deadline_ns - self._clock.monotonic_ns()) // 1_000_000
        if left_ms <= 0:
            raise TimeoutError
        return left_ms

    def _read(self, connection: _Connection, opaque: int, deadline_ns: int) -> bytes:
        """Return the answer; what else comes is served.

        Raises:
            TimeoutError, OSError, EOFError, FrameError.
        """
        data = connection.socket.recv(_READ_BYTES)
        if is_answer(data, opaque):
            return data
        while True:
            if not data:
                raise EOFError
            answer = self._cut(connection, data, opaque)
            if answer is not None:
                return answer
            connection.set_timeout(self._left_ms(deadline_ns))
            data = connection.socket.recv(_READ_BYTES)

    def _cut(self, connection: _Connection, data: bytes, opaque: int | None) -> bytes | None:
        """Take in what has come; return the answer if it is among it."""
        answer = None
        for one in connection.cutter.feed(data):
            command = frame.decode(one)
            if not command.is_response:
                self._on_request(command, lambda reply: _reply(connection, reply))
            elif command.opaque == opaque:
                answer = len(one).to_bytes(4, "big") + one
        return answer

    # -- connections

    def _take(
        self, address: Address, deadline_ns: int, timeout_ms: int, connection: _Connection | None = None
    ) -> tuple[_Pool, _Connection]:
        """Return a connection of the pool, or a new one; wait when there are too many.

        Args:
            connection: one that was idle for a while and has been taken out of the pool already.
        Raises:
            ConnectFailed, RequestTimeout, ClientClosed.
        """
        while True:
            with self._lock:
                pool = self._pools.get(address)
                if pool is None:
                    pool = self._pools[address] = _Pool(self._lock)
                if connection is None:
                    connection = self._wait_for_one(pool, address, deadline_ns, timeout_ms)
            if connection is None:
                return pool, self._open(pool, address, deadline_ns, timeout_ms)
            if self._is_usable(connection):
                return pool, connection
            self._drop(pool, connection)
            connection = None

    def _wait_for_one(
        self, pool: _Pool, address: Address, deadline_ns: int, timeout_ms: int
    ) -> _Connection | None:
        """Return an idle connection, or None: one may be opened.  The lock is held."""
        while True:
            if self._is_closed:
                raise _closed()
            if pool.idle:
                return pool.idle.pop()
            if len(pool.all) + pool.opening < self._settings.direct_connections_max:
                pool.opening += 1
                return None
            pool.waiting += 1
            left_s = (deadline_ns - self._clock.monotonic_ns()) / 1e9
            in_time = left_s > 0 and pool.freed.wait(left_s)
            pool.waiting -= 1
            if not in_time:
                raise RequestTimeout(
                    f"no connection to {address} became free within {timeout_ms} ms: "
                    f"all {self._settings.direct_connections_max} wait for answers"
                )

    def _is_usable(self, connection: _Connection) -> bool:
        """Whether a connection that was idle for a while still stands; what has come meanwhile is served."""
        if self._clock.monotonic_ns() - connection.idle_since_ns < _FRESH_NS:
            return True
        try:
            connection.set_timeout(0)
            while data := connection.socket.recv(_READ_BYTES):
                self._cut(connection, data, None)
        except BlockingIOError:
            return connection.cutter.pending_bytes == 0
        except (OSError, FrameError):
            return False
        return False

    def _put_back(self, pool: _Pool, connection: _Connection) -> None:
        if connection.cutter.pending_bytes:
            self._drop(pool, connection)  # half a frame behind the answer: nothing that we asked for
            return
        connection.idle_since_ns = self._clock.monotonic_ns()
        with self._lock:
            if not self._is_closed:
                pool.idle.append(connection)
                if pool.waiting:
                    pool.freed.notify()
                return
        connection.socket.close()

    def _drop(self, pool: _Pool, connection: _Connection) -> None:
        """Close a connection; the others to this address are looked at before they are used again."""
        with self._lock:
            pool.all.discard(connection)
            for other in pool.idle:
                other.idle_since_ns = 0
            if pool.waiting:
                pool.freed.notify()
        connection.socket.close()

    def _open(self, pool: _Pool, address: Address, deadline_ns: int, timeout_ms: int) -> _Connection:
        connection = None
        try:
            connection = _Connection(
                self._connect(address, deadline_ns, timeout_ms), self._settings.frame_bytes_max
            )
        except ConnectFailed:
            self._reached.discard(address)
            raise
        finally:
            with self._lock:
                pool.opening -= 1
                if connection is not None and not self._is_closed:
                    pool.all.add(connection)
                elif pool.waiting:
                    pool.freed.notify()
        if self._is_closed:
            connection.socket.close()
            raise _closed()
        self._on_opened()
        return connection

    def _connect(self, address: Address, deadline_ns: int, timeout_ms: int) -> socket.socket:
        host, port = host_and_port(address)
        left_ms = max(1, (deadline_ns - self._clock.monotonic_ns()) // 1_000_000)
        patience_ms = min(left_ms, self._settings.connect_timeout_ms)
        family, kind, protocol, _, where = _resolve(address, host, port, patience_ms / 1000)
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(patience_ms / 1000)
            connection.connect(where)
        except TimeoutError:
            connection.close()
            if patience_ms < self._settings.connect_timeout_ms:
                raise RequestTimeout(f"no connection to {address} within {timeout_ms} ms") from None
            raise ConnectFailed(f"no connection to {address} within {patience_ms} ms") from None
        except OSError as error:
            connection.close()
            raise ConnectFailed(
                f"cannot connect to {address}: {os.strerror(error.errno) if error.errno else error}"
            ) from error
        except BaseException:
            connection.close()
            raise
        return connection

    # -- ending

    def close_idle(self) -> bool:
        """Close what nobody has used for a while; return whether any connection is left."""
        oldest_ns = self._clock.monotonic_ns() - self._settings.direct_idle_ms * 1_000_000
        with self._lock:
            old = []
            for pool in self._pools.values():
                too_old = [one for one in pool.idle if one.idle_since_ns <= oldest_ns]
                pool.idle = [one for one in pool.idle if one.idle_since_ns > oldest_ns]
                pool.all.difference_update(too_old)
                old += too_old
            is_any_left = any(pool.all or pool.opening for pool in self._pools.values())
        for connection in old:
            connection.socket.close()
        return is_any_left

    def close(self) -> None:
        """End all connections; requests under way, and later ones, are refused with ClientClosed."""
        with self._lock:
            self._is_closed = True
            for pool in self._pools.values():
                for connection in pool.all:
                    _shut(connection.socket)
                for connection in pool.idle:
                    connection.socket.close()
                pool.all.difference_update(pool.idle)
                pool.idle.clear()
                pool.freed.notify_all()


def _closed() -> ClientClosed:
    return ClientClosed("the client is closed")


def _shut(connection: socket.socket) -> None:
    """Wake the thread that waits in `recv`: closing alone would leave it there."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the peer was first


def _reply(connection: _Connection, answer: RemotingCommand) -> None:
    try:
        connection.write(frame.encode(answer))
    except OSError:
        return  # whoever uses the connection next finds out


def _resolve(address: Address, host: str, port: int, timeout_s: float) -> tuple[Any, ...]:
    """Return the first address of a host; a name may take long, so a thread of its own asks.

    Raises:
        ConnectFailed: there is none, or it took too long.
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
    except socket.gaierror:
        pass
    found: list[tuple[Any, ...] | OSError] = []
    known = threading.Event()

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0])
        except OSError as error:
            found.append(error)
        known.set()

    threading.Thread(target=ask, name="actormq-resolve", daemon=True).start()
    if not known.wait(timeout_s):
        raise ConnectFailed(f"{address}: the name {host} was not resolved within {timeout_s:.1f} s")
    if isinstance(found[0], OSError):
        raise ConnectFailed(f"{address}: the name {host} cannot be resolved ({found[0]})")
    return found[0]
