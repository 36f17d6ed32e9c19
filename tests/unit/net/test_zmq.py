"""The ROUTER front: nothing is dropped silently, clients hold leases, limits are kept."""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from actormq.actors.loop import Loop
from actormq.net.joining import BUFFERS_MAX
from actormq.net.zmq import RouterClient, RouterLimits, RouterServer, message_parts

DEADLINE_S = 60


class Recorder:
    """A handler that writes down what happens, and answers as `answer` says."""

    def __init__(self) -> None:
        self.clients: list[RouterClient] = []
        self.got: list[tuple[bytes, bytes]] = []
        self.reasons: list[str] = []
        self.answer: Callable[[RouterClient, bytes, bytes | memoryview], None] = lambda *_: None

    def client_opened(self, client: RouterClient) -> None:
        self.clients.append(client)

    def message(self, client: RouterClient, header: bytes, body: bytes | memoryview) -> None:
        self.got.append((header, bytes(body)))
        self.answer(client, header, body)

    def client_closed(self, client: RouterClient, reason: str) -> None:
        self.reasons.append(reason)


class Bench:
    """A loop with one ROUTER on it; the clients are DEALERs of another context."""

    def __init__(self, **limits: int) -> None:
        self.loop = Loop()
        self.handler = Recorder()
        self.theirs: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.ours: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        listener = socket.create_server(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        self.server = RouterServer(
            self.loop,
            self.ours,
            listener.detach(),
            endpoint,
            self.handler,
            RouterLimits(**limits),
            logging.getLogger("test"),
        )

    def turn(self, condition: Callable[[], object]) -> None:
        """Run the loop until `condition` holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come"
            self.loop.run_once(time.monotonic_ns() + 10_000_000)
            self.server.flush()

    def dial(self, identity: bytes, hwm: int = 1000, reconnect_ms: int = 100) -> zmq.Socket[bytes]:
        dealer = self.theirs.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RECONNECT_IVL, reconnect_ms)
        dealer.setsockopt(zmq.ROUTING_ID, identity)
        dealer.setsockopt(zmq.RCVHWM, hwm)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(self.server.endpoint)
        return dealer

    def close(self) -> None:
        self.server.close()
        self.ours.destroy(0)
        self.theirs.destroy(0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def receive(bench: Bench, dealer: zmq.Socket[bytes]) -> list[bytes]:
    bench.turn(lambda: dealer.poll(0))
    return dealer.recv_multipart()


def test_messages_arrive_and_answers_leave(bench: Bench) -> None:
    """Header and body both ways; several body parts are one body, on the way out, too."""
    bench.handler.answer = lambda client, header, body: client.send(header, memoryview(body), b"end")
    dealer = bench.dial(b"me")
    dealer.send_multipart([b"h1", b"b1"])
    dealer.send_multipart([b"h2", b"b", b"2"])
    dealer.send_multipart([b"h3"])
    answers = [receive(bench, dealer) for _ in range(3)]
    assert answers == [[b"h1", b"b1end"], [b"h2", b"b2end"], [b"h3", b"end"]]
    assert bench.handler.clients[0].peer == "127.0.0.1:0"
    assert len(bench.handler.clients) == 1


def test_bodies_of_any_size_arrive_whole(bench: Bench) -> None:
    """Long ones are handed on where ZeroMQ has them; in one part or many, other messages behind them."""
    bench.handler.answer = lambda client, header, body: client.send(header, bytes(body))
    dealer = bench.dial(b"me")
    source = random.Random(1).randbytes(300_000)
    bodies = [source[:size] for size in (1, 4096, 4097, 65_536, 300_000)]
    for body in bodies:
        dealer.send_multipart([b"h", body])
        dealer.send_multipart([b"h", body[:5000], body[5000:]])
    for body in bodies:
        assert receive(bench, dealer) == [b"h", body]
        assert receive(bench, dealer) == [b"h", body]


def test_bodies_that_were_joined_arrive_as_they_were(bench: Bench) -> None:
    """More of them than there are buffers to join them in, each another, sent before the first is read."""
    source = random.Random(2).randbytes(100_000)
    count = 3 * BUFFERS_MAX

    def answer(client: RouterClient, header: bytes, body: object) -> None:
        number = int(header)
        client.send(header, source[number:], source[:number])

    bench.handler.answer = answer
    dealer = bench.dial(b"me")
    for number in range(count):
        dealer.send(b"%d" % number)
    for number in range(count):
        assert receive(bench, dealer) == [b"%d" % number, source[number:] + source[:number]]


def test_no_reply_is_lost_when_a_client_reads_slowly(bench: Bench) -> None:
    """More replies than libzmq's own queues hold: they wait with us and all arrive, in order."""
    count = 5_000
    dealer = bench.dial(b"slow", hwm=10)

    def burst(client: RouterClient, header: bytes, body: bytes) -> None:
        for number in range(count):
            client.send(b"%d" % number, bytes(1000))

    bench.handler.answer = burst
    dealer.send_multipart([b"go"])
    bench.turn(lambda: bench.handler.got)
    bench.turn(lambda: bench.server.dirty)
    got: list[bytes] = []

    def drained() -> bool:
        while dealer.poll(0):
            got.append(dealer.recv_multipart()[0])
        return len(got) == count

    bench.turn(drained)
    assert got == [b"%d" % number for number in range(count)]
    assert bench.handler.clients[0].queued_bytes == 0


def test_a_client_that_does_not_read_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Beyond the bound: one log line, and its memory is given back."""
    bench = Bench(reply_bytes_max=2_000_000)
    dealer = bench.dial(b"deaf", hwm=1)
    block = bytes(100_000)

    def burst(client: RouterClient, header: bytes, body: bytes) -> None:
        for _ in range(3_000):
            client.send(block)

    bench.handler.answer = burst
    with caplog.at_level(logging.WARNING):
        dealer.send_multipart([b"go"])
        bench.turn(lambda: bench.handler.reasons)
    assert "does not read" in bench.handler.reasons[0]
    assert len(caplog.records) == 1
    assert bench.handler.clients[0].queued_bytes == 0
    bench.close()


def test_a_reply_to_a_client_that_is_gone_closes_it(bench: Bench) -> None:
    """ROUTER_MANDATORY: an unreachable client is noticed when it is answered."""
    dealer = bench.dial(b"gone")
    dealer.send_multipart([b"h"])
    bench.turn(lambda: bench.handler.got)
    dealer.close(0)
    (client,) = bench.handler.clients

    def noticed() -> bool:
        client.send(b"anyone?")
        bench.server.flush()
        return client.closed

    bench.turn(noticed)
    assert bench.handler.reasons == ["unreachable"]
    assert bench.server.clients == {}


def test_a_lease_ends(bench: Bench) -> None:
    """Five silent seconds close a client; its next message makes it a new one."""
    quiet, lively = bench.dial(b"quiet"), bench.dial(b"lively")
    quiet.send_multipart([b"h"])
    lively.send_multipart([b"h"])
    bench.turn(lambda: len(bench.handler.got) == 2)
    now_ns = time.monotonic_ns()
    bench.server.clients[b"quiet"].active_ns = now_ns - 5_000_000_001
    bench.server.clients[b"lively"].active_ns = now_ns - 4_999_000_000
    bench.server.close_silent(now_ns)
    assert bench.handler.reasons == ["its lease is over"]
    assert list(bench.server.clients) == [b"lively"]
    quiet.send_multipart([b"again"])
    bench.turn(lambda: len(bench.handler.clients) == 3)


def test_leases_begin_anew_after_a_sleep_of_our_own(bench: Bench) -> None:
    """A gateway that was stopped for ten seconds must not blame its clients for them."""
    dealer = bench.dial(b"me")
    dealer.send_multipart([b"h"])
    bench.turn(lambda: bench.handler.got)
    later_ns = time.monotonic_ns() + 10_000_000_000
    bench.server.close_silent(later_ns)
    assert bench.handler.reasons == []
    for second in range(1, 6):
        bench.server.close_silent(later_ns + second * 1_000_000_000 + 1)
    assert bench.handler.reasons == ["its lease is over"]


def test_a_message_beyond_the_limit_drops_its_client(caplog: pytest.LogCaptureFixture) -> None:
    """Parts that are each small enough, together too large."""
    bench = Bench(frame_bytes_max=1000)
    dealer = bench.dial(b"big")
    with caplog.at_level(logging.WARNING):
        dealer.send_multipart([b"h", bytes(600), bytes(600)])
        bench.turn(lambda: bench.handler.reasons)
    assert bench.handler.got == []
    assert len(caplog.records) == 1
    bench.close()


def test_clients_beyond_the_limit_are_not_served(caplog: pytest.LogCaptureFixture) -> None:
    """The bound on clients holds; the first one goes on."""
    bench = Bench(clients_max=1)
    first, second = bench.dial(b"1"), bench.dial(b"2")
    first.send_multipart([b"h1"])
    bench.turn(lambda: bench.handler.got)
    with caplog.at_level(logging.WARNING):
        second.send_multipart([b"h2"])
        bench.turn(lambda: caplog.records)
    first.send_multipart([b"h3"])
    bench.turn(lambda: len(bench.handler.got) == 2)
    assert [header for header, _ in bench.handler.got] == [b"h1", b"h3"]
    bench.close()


def test_the_same_identity_again_takes_over(bench: Bench) -> None:
    """A client whose connection broke comes back before we noticed."""
    bench.handler.answer = lambda client, header, body: client.send(b"for " + header)
    old = bench.dial(b"me", reconnect_ms=-1)
    old.send_multipart([b"old"])
    assert receive(bench, old) == [b"for old"]
    new = bench.dial(b"me")
    new.send_multipart([b"new"])
    assert receive(bench, new) == [b"for new"]
    assert len(bench.handler.clients) == 1


def test_a_tcp_frame_becomes_a_message() -> None:
    """The header part begins behind the length prefix."""
    assert [bytes(part) for part in message_parts([b"\0\0\0\x09\0\0\0\x02{}", b"abc"])] == [
        b"\0\0\0\x02{}",
        b"abc",
    ]
