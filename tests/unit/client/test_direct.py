"""Connections of calling threads, against a peer whose every answer the test decides."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from listening import dead_port

from actormq.client.direct import Direct, Reply
from actormq.client.procedures import Address
from actormq.client.settings import ClientSettings
from actormq.clock import SystemClock
from actormq.errors import ClientClosed, ClientError, ConnectFailed, ConnectionLost, RequestTimeout
from actormq.wire import frame
from actormq.wire.command import RemotingCommand, Serialize

SECONDS = 30.0
PATIENT_MS = 30_000


class MovableClock(SystemClock):
    """The machine's clock, which a test may put forward."""

    def __init__(self) -> None:
        self.forward_ns = 0
        self.monotonic_ns = lambda: SystemClock.monotonic_ns() + self.forward_ns  # type: ignore[method-assign, assignment]


def request(opaque: int, body: bytes = b"", code: int = 310) -> bytes:
    return frame.encode(RemotingCommand(code=code, opaque=opaque, body=body, serialize=Serialize.BINARY))


def answer(opaque: int, body: bytes = b"", serialize: Serialize = Serialize.BINARY) -> bytes:
    return frame.encode(RemotingCommand(code=0, flag=1, opaque=opaque, body=body, serialize=serialize))


def body_of(data: bytes) -> bytes:
    """Return the body of a whole frame."""
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    return bytes(frame.decode(data[4:]).body)


Serve = Callable[[socket.socket, RemotingCommand], None]


def echo(connection: socket.socket, command: RemotingCommand) -> None:
    connection.sendall(answer(command.opaque, bytes(command.body)))


class Peer:
    """A server; `serve` is called with every request, in its connection's thread."""

    def __init__(self, serve: Serve = echo) -> None:
        self.serve = serve
        self.came: list[RemotingCommand] = []
        self.opened = 0
        self.most_open = 0
        self._open: list[socket.socket] = []
        self.changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(f"tcp://127.0.0.1:{self._listener.getsockname()[1]}")
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self.changed:
                self.opened += 1
                self._open.append(connection)
                self.most_open = max(self.most_open, len(self._open))
                self.changed.notify_all()
            thread = threading.Thread(target=self._talk, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        cutter = frame.FrameCutter()
        with connection, suppress(OSError):
            while data := connection.recv(65_536):
                for one in cutter.feed(data):
                    command = frame.decode(one)
                    with self.changed:
                        self.came.append(command)
                        self.changed.notify_all()
                    if not command.is_response:
                        self.serve(connection, command)
        with self.changed:
            if connection in self._open:
                self._open.remove(connection)
            self.changed.notify_all()

    def wait(self, condition: Callable[[Peer], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self), SECONDS)

    @property
    def open(self) -> int:
        return len(self._open)

    def hang_up(self) -> None:
        """Close every connection; return when our side is closed."""
        with self.changed:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.wait(lambda peer: not peer.open)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(SECONDS)


@pytest.fixture
def peer() -> Iterator[Peer]:
    one = Peer()
    yield one
    one.close()


class Caller:
    """A `Direct` and what it said."""

    def __init__(self, **settings: int) -> None:
        self.clock = MovableClock()
        self.asked: list[tuple[RemotingCommand, Reply]] = []
        self.opened = 0
        self.direct = Direct(
            ClientSettings(**settings),  # type: ignore[arg-type]
            self.clock,
            lambda command, reply: self.asked.append((command, reply)),
            self._count,
        )

    def _count(self) -> None:
        self.opened += 1

    def call(self, peer: Peer, opaque: int, body: bytes = b"", timeout_ms: int = PATIENT_MS) -> bytes:
        return body_of(self.direct.call(peer.address, request(opaque, body), opaque, timeout_ms))

    def let_pass(self, ms: int) -> None:
        self.clock.forward_ns += ms * 1_000_000


@pytest.fixture
def caller() -> Iterator[Caller]:
    one = Caller()
    yield one
    one.direct.close()


class Calling(threading.Thread):
    """One call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.outcome: object = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._call()
        except ClientError as error:
            self.outcome = error

    def end(self) -> object:
        self.join(SECONDS)
        assert not self.is_alive()
        return self.outcome


def test_one_thread_keeps_one_connection(peer: Peer, caller: Caller) -> None:
    for opaque in range(1, 20):
        assert caller.call(peer, opaque, b"%d" % opaque) == b"%d" % opaque
    assert (peer.opened, caller.opened) == (1, 1)


def test_many_threads_share_a_bounded_number_of_connections(peer: Peer) -> None:
    """Those beyond it wait for a free one; everybody gets his own answer."""
    caller = Caller(direct_connections_max=3)
    together = threading.Barrier(3)

    def serve(connection: socket.socket, command: RemotingCommand) -> None:
        if command.opaque % 10 == 0:
            together.wait(SECONDS)  # three are under way at the same time
        echo(connection, command)

    peer.serve = serve

    def calls(base: int) -> list[bytes]:
        return [caller.call(peer, base + index, b"%d" % (base + index)) for index in range(10)]

    threads = [Calling(lambda base=base: calls(base)) for base in range(10, 130, 10)]  # type: ignore[misc]
    outcomes = [thread.end() for thread in threads]
    assert outcomes == [[b"%d" % (base + index) for index in range(10)] for base in range(10, 130, 10)]
    assert peer.most_open == 3
    caller.direct.close()


def test_who_waits_too_long_for_a_connection(peer: Peer) -> None:
    caller = Caller(direct_connections_max=1)
    may_answer = threading.Event()

    def serve(connection: socket.socket, command: RemotingCommand) -> None:
        assert may_answer.wait(SECONDS)
        echo(connection, command)

    peer.serve = serve
    first = Calling(lambda: caller.call(peer, 1, b"first"))
    peer.wait(lambda peer: len(peer.came) == 1)
    with pytest.raises(RequestTimeout, match="became free within 20 ms"):
        caller.call(peer, 2, timeout_ms=20)
    second = Calling(lambda: caller.call(peer, 3, b"second"))
    may_answer.set()
    assert (first.end(), second.end()) == (b"first", b"second")
    caller.direct.close()


def test_a_late_answer_is_nobodys(peer: Peer, caller: Caller) -> None:
    """Its connection is closed with the time-out: the next request cannot meet it."""
    peer.serve = lambda connection, command: None if command.opaque == 1 else echo(connection, command)
    assert caller.call(peer, 3, b"three") == b"three"  # connected: that takes no time from what follows
    with pytest.raises(RequestTimeout, match="did not answer within 50 ms"):
        caller.call(peer, 1, timeout_ms=50)
    assert caller.call(peer, 2, b"two") == b"two"
    assert peer.opened == 2


def test_a_connection_closed_while_idle_is_replaced_unnoticed(peer: Peer, caller: Caller) -> None:
    caller.call(peer, 1)
    peer.hang_up()
    caller.let_pass(ms=1_000)
    assert caller.call(peer, 2, b"two") == b"two"
    assert peer.opened == 2


def test_a_connection_that_breaks_makes_the_others_suspect(peer: Peer, caller: Caller) -> None:
    """One gateway's death breaks all connections to it: only one caller has to notice."""
    together = threading.Barrier(3)

    def serve(connection: socket.socket, command: RemotingCommand) -> None:
        together.wait(SECONDS)
        echo(connection, command)

    peer.serve = serve
    for thread in [Calling(lambda n=n: caller.call(peer, n)) for n in range(3)]:  # type: ignore[misc]
        assert thread.end() == b""
    peer.serve = echo
    peer.hang_up()
    with pytest.raises(ConnectionLost):
        caller.call(peer, 4)
    assert caller.call(peer, 5, b"five") == b"five"
    assert caller.call(peer, 6, b"six") == b"six"


def test_the_peer_hangs_up_instead_of_answering(peer: Peer, caller: Caller) -> None:
    peer.serve = lambda connection, _: connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionLost, match=r"closed the connection|broke"):
        caller.call(peer, 1)


def test_an_answer_in_pieces_and_large_ones(peer: Peer, caller: Caller) -> None:
    def serve(connection: socket.socket, command: RemotingCommand) -> None:
        data = answer(command.opaque, bytes(command.body))
        for at in range(len(data)) if len(data) < 1_000 else range(0, len(data), 40_000):
            connection.sendall(data[at : at + (1 if len(data) < 1_000 else 40_000)])

    peer.serve = serve
    assert caller.call(peer, 1, b"small") == b"small"
    large = bytes(range(256)) * 8_000
    assert caller.call(peer, 2, large) == large
    assert peer.opened == 1


def test_an_answer_with_a_json_header(peer: Peer, caller: Caller) -> None:
    peer.serve = lambda connection, command: connection.sendall(answer(command.opaque, b"x", Serialize.JSON))
    assert caller.call(peer, 1) == b"x"
    assert caller.call(peer, 2) == b"x"
    assert peer.opened == 1


def test_a_brokers_own_request_is_handed_on_and_answered(peer: Peer, caller: Caller) -> None:
    """It may come before the answer, in one piece with it, or while nobody waits."""
    pushed = request(900, b"who are you", code=307)
    peer.serve = lambda connection, command: connection.sendall(pushed + answer(command.opaque, b"own"))
    assert caller.call(peer, 1) == b"own"
    [(command, reply)] = caller.asked
    assert (command.code, command.opaque, command.body) == (307, 900, b"who are you")
    reply(RemotingCommand.response_to(command, 0, body=b"me"))
    peer.wait(lambda peer: len(peer.came) == 2)
    assert (peer.came[1].is_response, peer.came[1].opaque, peer.came[1].body) == (True, 900, b"me")
    peer.serve = echo
    with peer.changed:
        peer._open[0].sendall(pushed)
    caller.let_pass(ms=1_000)
    # Whether it is there already when the connection is looked at, or comes before the answer.
    assert caller.call(peer, 2, b"two") == b"two"
    assert len(caller.asked) == 2
    assert peer.opened == 1


def test_somebody_who_does_not_speak_the_protocol(peer: Peer, caller: Caller) -> None:
    peer.serve = lambda connection, _: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ConnectionLost, match="no frame"):
        caller.call(peer, 1)
    peer.serve = lambda connection, command: connection.sendall(answer(command.opaque) + b"\0\0")
    assert caller.call(peer, 2) == b""
    peer.serve = echo
    assert caller.call(peer, 3, b"three") == b"three"
    assert peer.opened == 3, "a connection with something left on it is not used again"


def test_a_one_way_request_waits_for_nothing(peer: Peer, caller: Caller) -> None:
    peer.serve = lambda connection, command: None
    assert caller.direct.call(peer.address, request(1), None, PATIENT_MS) == b""
    peer.wait(lambda peer: len(peer.came) == 1)


def test_nobody_listens(caller: Caller) -> None:
    with dead_port() as port, pytest.raises(ConnectFailed, match="Connection refused"):
        caller.direct.call(Address(f"tcp://127.0.0.1:{port}"), request(1), 1, PATIENT_MS)
    with pytest.raises(ConnectFailed, match="cannot be resolved"):
        caller.direct.call(Address("tcp://no-such-host.invalid:1"), request(1), 1, PATIENT_MS)


def test_a_name_instead_of_an_address(peer: Peer, caller: Caller) -> None:
    address = Address(peer.address.replace("127.0.0.1", "localhost"))
    assert body_of(caller.direct.call(address, request(1, b"x"), 1, PATIENT_MS)) == b"x"


def test_closing_ends_what_waits(peer: Peer) -> None:
    """For an answer, or for a connection; afterwards nothing is sent any more."""
    caller = Caller(direct_connections_max=1)
    peer.serve = lambda connection, command: None
    waits = Calling(lambda: caller.call(peer, 1))
    peer.wait(lambda peer: len(peer.came) == 1)
    queues = Calling(lambda: caller.call(peer, 2))
    while not caller.direct._pools[peer.address].waiting:
        assert queues.is_alive()
    caller.direct.close()
    assert isinstance(waits.end(), ClientClosed)
    assert isinstance(queues.end(), ClientClosed)
    with pytest.raises(ClientClosed):
        caller.call(peer, 3)
    peer.wait(lambda peer: not peer.open)
    assert len(peer.came) == 1


def test_what_ends_a_call_from_outside_ends_its_connection(peer: Peer) -> None:
    """As Ctrl-C does: the answer that is still to come must not be the next caller's."""

    class Interrupted(BaseException):
        pass

    def interrupt(command: RemotingCommand, reply: Reply) -> None:
        raise Interrupted

    direct = Direct(ClientSettings(), SystemClock(), interrupt, lambda: None)
    peer.serve = lambda connection, _: connection.sendall(request(900))
    with pytest.raises(Interrupted):
        direct.call(peer.address, request(1), 1, PATIENT_MS)
    peer.serve = echo
    assert body_of(direct.call(peer.address, request(2, b"two"), 2, PATIENT_MS)) == b"two"
    assert peer.opened == 2
    direct.close()


def test_idle_connections_are_closed(peer: Peer) -> None:
    caller = Caller(direct_idle_ms=10_000)
    together = threading.Barrier(2)

    def serve(connection: socket.socket, command: RemotingCommand) -> None:
        together.wait(SECONDS)
        echo(connection, command)

    peer.serve = serve
    for thread in [Calling(lambda n=n: caller.call(peer, n)) for n in range(2)]:  # type: ignore[misc]
        thread.end()
    peer.serve = echo
    caller.let_pass(ms=9_000)
    caller.call(peer, 3)
    caller.let_pass(ms=2_000)
    assert caller.direct.close_idle(), "one was used two seconds ago"
    peer.wait(lambda peer: peer.open == 1)
    caller.let_pass(ms=10_000)
    assert not caller.direct.close_idle()
    peer.wait(lambda peer: peer.open == 0)
    assert caller.call(peer, 4, b"four") == b"four"


def test_where_it_leads_is_found_out_by_nobody_who_waits(peer: Peer, caller: Caller) -> None:
    """The first question only begins to find out; an address that leads nowhere is tried now and then."""
    assert not caller.direct.is_reachable(peer.address)
    peer.wait(lambda peer: peer.opened == 1)
    while not caller.direct.is_reachable(peer.address):
        pass
    assert caller.call(peer, 1, b"one") == b"one"
    assert peer.opened == 1, "by the connection that found out"
    with dead_port() as port:
        address = Address(f"tcp://127.0.0.1:{port}")
        assert not caller.direct.is_reachable(address)
        with pytest.raises(ConnectFailed):
            caller.direct.call(address, request(1), 1, PATIENT_MS)
        assert not caller.direct.is_reachable(address)


def test_an_address_that_stops_leading_anywhere(caller: Caller) -> None:
    peer = Peer()
    assert caller.call(peer, 1, b"one") == b"one"
    assert caller.direct.is_reachable(peer.address)
    peer.close()
    with pytest.raises(ConnectionLost):
        caller.call(peer, 2)
    with pytest.raises(ConnectFailed):
        caller.call(peer, 3)
    assert not caller.direct.is_reachable(peer.address)
