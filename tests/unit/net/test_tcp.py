"""The TCP server and client on a real loop and loopback sockets."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from listening import dead_port

from actormq.actors.loop import Loop
from actormq.net.tcp import Connection, Limits, RemotingClient, RemotingFailed, Server, split_address
from actormq.wire import frame
from actormq.wire.command import RemotingCommand

DEADLINE_S = 60


class Recorder:
    """A handler that writes down what happens, and answers as `answer` says."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.connections: list[Connection] = []
        self.got: list[bytes] = []
        self.reasons: list[str] = []
        self.answer: Callable[[Connection, bytes], None] = lambda connection, data: None

    def opened(self, connection: Connection) -> None:
        self.connections.append(connection)

    def frames(self, connection: Connection, frames: Sequence[memoryview]) -> None:
        for data in frames:
            self.got.append(bytes(data))
            self.answer(connection, bytes(data))

    def closed(self, connection: Connection, reason: str) -> None:
        self.reasons.append(reason)


class Bench:
    """A loop with one server on it."""

    def __init__(self, **limits: int) -> None:
        self.loop = Loop()
        self.handler = Recorder()
        listener = socket.create_server(("127.0.0.1", 0))
        self.server = Server(self.loop, listener, self.handler, Limits(**limits), logging.getLogger("test"))

    def turn(self, condition: Callable[[], object]) -> None:
        """Run the loop until `condition` holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come"
            self.loop.run_once(time.monotonic_ns() + 10_000_000)
            self.server.flush()

    def dial(self) -> socket.socket:
        count = len(self.handler.connections)
        peer = socket.create_connection(self.server.address)
        peer.setblocking(False)
        self.turn(lambda: len(self.handler.connections) > count)
        return peer

    def read(self, peer: socket.socket, size: int) -> bytes:
        data = bytearray()

        def enough() -> bool:
            try:
                data.extend(peer.recv(1 << 20))
            except BlockingIOError:
                return False
            return len(data) >= size

        self.turn(enough)
        return bytes(data)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.server.close()


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def test_frames_arrive_and_replies_leave(bench: Bench) -> None:
    """Several frames in one write, each answered, all in order."""
    bench.handler.answer = lambda connection, data: connection.send(framed(data), b"", b"!")
    with bench.dial() as peer:
        peer.sendall(framed(b"first") + framed(b"second"))
        assert bench.read(peer, 21) == framed(b"first") + b"!" + framed(b"second") + b"!"
    bench.turn(lambda: bench.handler.reasons == ["closed by the peer"])


@pytest.mark.parametrize("size", [5, 4096, 256 * 1024 - 4, 256 * 1024 - 3, 256 * 1024 + 1, 3_000_000])
def test_frames_of_any_size_in_small_pieces(bench: Bench, size: int) -> None:
    """A frame larger than the shared buffer, and its neighbours, arrive whole."""
    data = bytes(range(251)) * (size // 251 + 1)
    frames = [b"left" * 2, data[:size], b"right"]
    with bench.dial() as peer:
        stream = memoryview(b"".join(map(framed, frames)))
        at = 0

        def pushed() -> bool:
            nonlocal at
            with contextlib.suppress(BlockingIOError):
                at += peer.send(stream[at : at + 50_001])
            return at == len(stream)

        bench.turn(pushed)
        bench.turn(lambda: len(bench.handler.got) == 3)
    assert bench.handler.got == frames


def test_a_bad_length_closes_that_connection_only(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The good frame before it is served, one line is logged, the neighbour goes on."""
    with bench.dial() as good, bench.dial() as bad:
        with caplog.at_level(logging.WARNING):
            bad.sendall(framed(b"fine") + b"GET / HTTP/1.1\r\n")
            bench.turn(lambda: bench.handler.reasons)
        assert bench.handler.got == [b"fine"]
        assert len(caplog.records) == 1
        assert "127.0.0.1" in caplog.records[0].getMessage()
        good.sendall(framed(b"still here"))
        bench.turn(lambda: len(bench.handler.got) == 2)
        assert len(bench.server.connections) == 1


def test_a_peer_that_does_not_read_is_not_read(caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the bound of queued replies the connection pauses, and goes on when half is gone.

    However often that happens, one line in the log says so.
    """
    bench = Bench(reply_bytes_max=1_000_000)
    block = bytes(500_000)
    bench.handler.answer = lambda connection, data: connection.send(block)
    with bench.dial() as peer:
        (connection,) = bench.handler.connections
        sent = 0

        def paused() -> bool:
            nonlocal sent
            peer.sendall(framed(b"more"))
            sent += 1
            return connection.paused

        bench.turn(paused)
        assert connection.queued_bytes > 1_000_000
        served = len(bench.handler.got)
        peer.sendall(framed(b"more"))
        sent += 1
        bench.turn(lambda: True)
        assert len(bench.handler.got) == served, "a paused connection was read"
        taken = 0

        def all_answers() -> bool:
            nonlocal taken
            with contextlib.suppress(BlockingIOError):
                taken += len(peer.recv(1 << 20))
            return taken == sent * len(block)

        bench.turn(all_answers)
        assert not connection.paused
        assert connection.queued_bytes == 0
        sent = taken = 0
        bench.turn(paused)
        bench.turn(all_answers)
        assert not connection.paused
    said = [one.getMessage() for one in caplog.records if "does not read" in one.getMessage()]
    assert len(said) == 1
    bench.server.close()


def test_a_client_that_asks_for_much_at_once_keeps_nobody_waiting(bench: Bench) -> None:
    """Its frames are served in order, a few a turn; another's come between them; all are answered."""
    bench.handler.answer = lambda connection, data: connection.send(framed(data))
    greedy, modest = bench.dial(), bench.dial()
    requests = [b"%05d" % number for number in range(2_000)]
    greedy.sendall(b"".join(map(framed, requests)))
    bench.turn(lambda: bench.handler.got)
    assert len(bench.handler.got) < 1_000, "all were served at once"
    modest.sendall(framed(b"modest"))
    assert bench.read(modest, 10) == framed(b"modest")
    assert bench.handler.got.index(b"modest") < 1_000
    assert bench.read(greedy, 9 * len(requests)) == b"".join(map(framed, requests))
    bench.handler.got.remove(b"modest")
    assert bench.handler.got == requests


def test_what_came_before_a_bad_frame_or_the_end_is_served(bench: Bench) -> None:
    """However much that was."""
    requests = [b"%05d" % number for number in range(500)]
    for last in (struct.pack(">I", 1), b""):
        bench.handler.got.clear()
        closed = len(bench.handler.reasons)
        peer = bench.dial()
        peer.sendall(b"".join(map(framed, requests)) + last)
        peer.shutdown(socket.SHUT_WR)
        bench.turn(lambda closed=closed: len(bench.handler.reasons) > closed)
        assert bench.handler.got == requests
        peer.close()


def test_a_backlog_waits_while_its_answers_are_not_read() -> None:
    """The bound of queued replies holds within one read, too."""
    bench = Bench(reply_bytes_max=1_000_000)
    bench.handler.answer = lambda connection, data: connection.send(bytes(10_000))
    peer = bench.dial()
    (connection,) = bench.handler.connections
    peer.sendall(framed(b"more") * 5_000)
    bench.turn(lambda: connection.paused and not bench.loop.run_once(time.monotonic_ns() + 50_000_000))
    assert connection.queued_bytes < 3_000_000, "of 50 MB"
    assert connection.backlog
    assert len(bench.read(peer, 50_000_000)) == 50_000_000
    peer.close()


def test_unfinished_frames_are_bounded_together(caplog: pytest.LogCaptureFixture) -> None:
    """Who has been silent for longest in the middle of a frame is closed; the others may finish theirs."""
    bench = Bench(unfinished_bytes_max=1_050_000)
    whole = framed(bytes(400_000))
    peers = [bench.dial() for _ in range(4)]
    for number, peer in enumerate(peers):
        part, bench_connection = memoryview(whole)[:300_000], bench.handler.connections[number]
        at = 0

        def there(
            peer: socket.socket = peer, part: memoryview = part, connection: Connection = bench_connection
        ) -> bool:
            nonlocal at
            with contextlib.suppress(BlockingIOError):
                at += peer.send(part[at:])
            return connection.unfinished_bytes == len(part)

        bench.turn(there)
    assert [one.closed for one in bench.handler.connections] == [True, False, False, False]
    (line,) = [one.getMessage() for one in caplog.records]
    assert "bytes of unfinished frames are too many" in line
    for peer in peers[1:]:
        at, count = 300_000, len(bench.handler.got) + 1

        def served(peer: socket.socket = peer, count: int = count) -> bool:
            nonlocal at
            with contextlib.suppress(BlockingIOError):
                at += peer.send(memoryview(whole)[at:])
            return len(bench.handler.got) == count

        bench.turn(served)
    assert bench.handler.got == [bytes(400_000)] * 3
    assert bench.server._unfinished_bytes == 0
    for peer in peers:
        peer.close()


def test_views_are_sent_from_where_they_lie(bench: Bench) -> None:
    """A queued view is not copied: what changes before the flush is what leaves."""
    memory = bytearray(b"before")
    with bench.dial() as peer:
        bench.handler.connections[0].send(memoryview(memory))
        memory[:] = b"after!"
        assert bench.read(peer, 6) == b"after!"


def test_connections_beyond_the_limit_are_closed_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """The limit holds, says so once, and a place that becomes free is given away again."""
    bench = Bench(connections_max=2)
    first, second = bench.dial(), bench.dial()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            third = socket.create_connection(bench.server.address)
            third.settimeout(0)

            def refused(third: socket.socket = third) -> bool:
                try:
                    return third.recv(1) == b""
                except BlockingIOError:
                    return False
                except ConnectionResetError:
                    return True

            bench.turn(refused)
            third.close()
    assert len(caplog.records) == 1
    second.close()
    bench.turn(lambda: len(bench.server.connections) == 1)
    bench.dial().close()
    first.close()
    bench.server.close()


def test_silent_connections_are_closed(bench: Bench) -> None:
    """120 s without a byte in either direction; one that spoke since stays."""
    with bench.dial(), bench.dial():
        silent, speaking = bench.handler.connections
        now_ns = time.monotonic_ns()
        speaking.active_ns = now_ns + 1_000_000
        silent.active_ns = now_ns
        bench.server.close_idle(now_ns + 120_000 * 1_000_000 + 1)
        assert silent.closed
        assert not speaking.closed
        assert bench.handler.reasons == ["idle"]


def test_sending_to_a_closed_connection_is_nothing(bench: Bench) -> None:
    """Replies that come too late are dropped."""
    peer = bench.dial()
    (connection,) = bench.handler.connections
    peer.close()
    bench.turn(lambda: connection.closed)
    connection.send(b"late")
    assert connection.queued_bytes == 0
    bench.server.flush()


# --- the client ----------------------------------------------------------------------------------------


class Asker:
    """A client on the bench's loop, and what it was answered."""

    def __init__(self, bench: Bench, **timeouts: int) -> None:
        self.client = RemotingClient(bench.loop, **timeouts)  # type: ignore[arg-type]
        self.answers: list[RemotingCommand | RemotingFailed] = []
        self.address = f"127.0.0.1:{bench.server.address[1]}"

    def ask(self, code: int = 1, timeout_ms: int | None = None) -> RemotingCommand:
        request = RemotingCommand.request(code, {"k": "v"}, b"body")
        self.client.request(self.address, request, self.answers.append, timeout_ms)
        return request


def _echo(connection: Connection, data: bytes) -> None:
    request = frame.decode(data)
    connection.send(frame.encode(RemotingCommand.response_to(request, 0, fields=request.fields)))


def test_the_client_asks_over_one_connection(bench: Bench) -> None:
    """Requests before and after the connection stands; each gets its own answer."""
    bench.handler.answer = _echo
    asker = Asker(bench)
    asked = [asker.ask(), asker.ask()]
    bench.turn(lambda: len(asker.answers) == 2)
    asked.append(asker.ask())
    bench.turn(lambda: len(asker.answers) == 3)
    assert [one.opaque for one in asker.answers if isinstance(one, RemotingCommand)] == [
        one.opaque for one in asked
    ]
    assert len(bench.handler.connections) == 1


def test_a_name_is_looked_up_without_blocking(bench: Bench) -> None:
    """localhost:port works like 127.0.0.1:port."""
    bench.handler.answer = _echo
    asker = Asker(bench)
    asker.address = f"localhost:{bench.server.address[1]}"
    asker.ask()
    bench.turn(lambda: asker.answers)
    assert isinstance(asker.answers[0], RemotingCommand) or "refused" in asker.answers[0].remark


def test_an_unanswered_request_fails_in_time(bench: Bench) -> None:
    """The time-out is the request's own; a late answer is dropped; the connection goes on."""
    held: list[Callable[[], None]] = []
    bench.handler.answer = _echo
    asker = Asker(bench)
    asker.ask()
    bench.turn(lambda: asker.answers)  # connected: that takes no time from what follows
    bench.handler.answer = lambda connection, data: held.append(lambda: _echo(connection, data))
    asker.ask(timeout_ms=20)
    bench.turn(lambda: len(asker.answers) == 2 and held)
    assert isinstance(asker.answers[1], RemotingFailed)
    held[0]()
    bench.handler.answer = _echo
    asker.ask()
    bench.turn(lambda: len(asker.answers) == 3)
    assert isinstance(asker.answers[2], RemotingCommand)
    assert len(bench.handler.connections) == 1


def test_a_refused_connection_fails_the_request(bench: Bench) -> None:
    """Nobody listens: the answer is a failure, and the next request tries again."""
    asker = Asker(bench)
    with dead_port() as port:
        asker.address = f"127.0.0.1:{port}"
        asker.ask()
        bench.turn(lambda: len(asker.answers) == 1)
        asker.ask()
        bench.turn(lambda: len(asker.answers) == 2)
    assert all(isinstance(answer, RemotingFailed) for answer in asker.answers)


def test_a_broken_connection_fails_what_waits_on_it(bench: Bench) -> None:
    """The server closes: the request fails at once, and the next one connects anew."""
    bench.handler.answer = lambda connection, data: bench.server.close_connection(connection, "test")
    asker = Asker(bench)
    asker.ask()
    bench.turn(lambda: asker.answers)
    assert isinstance(asker.answers[0], RemotingFailed)
    bench.handler.answer = _echo
    asker.ask()
    bench.turn(lambda: len(asker.answers) == 2)
    assert isinstance(asker.answers[1], RemotingCommand)


def test_garbage_from_a_server_fails_the_request(bench: Bench) -> None:
    """What is no frame breaks the connection, not the client."""
    bench.handler.answer = lambda connection, data: connection.send(b"\xff" * 8)
    asker = Asker(bench)
    asker.ask()
    bench.turn(lambda: asker.answers)
    assert isinstance(asker.answers[0], RemotingFailed)


def test_closing_the_client_fails_what_waits(bench: Bench) -> None:
    """Nobody is left without an answer."""
    asker = Asker(bench)
    asker.ask()
    asker.client.close()
    assert isinstance(asker.answers[0], RemotingFailed)


@pytest.mark.parametrize("address", ["", "host", ":1", "host:", "host:x", "host:70000"])
def test_an_address_that_is_none_fails_at_once(bench: Bench, address: str) -> None:
    """The failure says which address."""
    asker = Asker(bench)
    asker.address = address
    asker.ask()
    assert isinstance(asker.answers[0], RemotingFailed)


def test_addresses() -> None:
    """IPv6 has brackets."""
    assert split_address("[::1]:9876") == ("::1", 9876)
    assert split_address("broker-a:10911") == ("broker-a", 10911)
