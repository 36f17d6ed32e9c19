"""Clients that come in masses, say nothing, stop half-way or never read: bounded, and others are served.

Small limits, so that every bound is reached; a canary sends and consumes at both fronts all the while.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import zmq
from actormq_process import Dev
from gateway_process import PATIENCE_S, Peer, heartbeat, until
from gateway_rig import pull_request, send_request
from process.odd_clients import MEGABYTE, NativePeer, broker, roles_of

from actormq.wire import frame
from actormq.wire.command import FLAG_ONEWAY, RemotingCommand

CONNECTIONS_MAX = 40
IDLE_MS = 5_000
"""Who is silent for so long is closed: longer than the canary waits for a processor, one hopes."""
REPLY_BYTES_MAX = 2 * MEGABYTE
UNFINISHED_BYTES_MAX = 24 * MEGABYTE
LIMITS = {
    "ACTORMQ_GATEWAY_CONNECTIONS_MAX": str(CONNECTIONS_MAX),
    "ACTORMQ_GATEWAY_IDLE_TIMEOUT_MS": str(IDLE_MS),
    "ACTORMQ_COORDINATOR_NATIVE_LEASE_MS": str(IDLE_MS),
    "ACTORMQ_GATEWAY_REPLY_BYTES_MAX": str(REPLY_BYTES_MAX),
    "ACTORMQ_GATEWAY_UNFINISHED_BYTES_MAX": str(UNFINISHED_BYTES_MAX),
}
BEAT_S = 1.0
TOPIC, GROUP = "canary", "g-canary"
GET_ROLES = RemotingCommand.request(300_001)


class Canary:
    """Sends and consumes at both fronts, over connections that it keeps."""

    def __init__(self, dev: Dev) -> None:
        self._over = threading.Event()
        self.rounds = {"tcp": 0, "zmq": 0}
        self._lives: list[threading.Thread] = []
        for front, peer in (("tcp", Peer(dev)), ("zmq", NativePeer(dev))):
            thread = threading.Thread(target=self._live, args=(front, peer), daemon=True)
            self._lives.append(thread)
            thread.start()

    def _live(self, front: str, peer: Peer | NativePeer) -> None:
        topic, group = f"{TOPIC}-{front}", f"{GROUP}-{front}"
        member = heartbeat(f"c-{front}", group, topic)
        member.flag |= FLAG_ONEWAY
        while not self._over.wait(0.01):
            stored = ask_patiently(peer, send_request(topic, b"%d" % self.rounds[front]), member)
            assert stored.code == 0, stored.remark
            if not self.rounds[front] % 50:
                assert ask_patiently(peer, heartbeat(f"c-{front}", group, topic), member).code == 0
            offset = int(stored.fields["queueOffset"])
            pull = pull_request(topic, group, offset, flags=6, messages=1, subscription="*")
            pulled = ask_patiently(peer, pull, member)
            assert pulled.code == 0, pulled.remark
            self.rounds[front] += 1
        peer.close()

    def sings(self) -> None:
        """Return when it has come on at both fronts; an error in one ends its thread, and this."""
        begun = dict(self.rounds)
        until(
            "the canary sings",
            lambda: all(self.rounds[front] > begun[front] + 3 for front in begun) or not self.lives(),
        )
        assert self.lives(), "the canary is dead"

    def lives(self) -> bool:
        return all(thread.is_alive() for thread in self._lives)

    def close(self) -> None:
        self._over.set()
        for thread in self._lives:
            thread.join(PATIENCE_S)


def ask_patiently(
    peer: Peer | NativePeer, request: RemotingCommand, member: RemotingCommand
) -> RemotingCommand:
    """Ask, and go on saying that we live while the answer is not there: the machine may be slow."""
    peer.tell(request)
    while not peer.hears(BEAT_S):
        peer.tell(member)
    return peer.answer_to(request)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with broker(tmp_path_factory.mktemp("floods"), env=LIMITS) as started:
        yield started
        assert started.stop() == 0, "".join(started.errors)
        assert "Traceback" not in "".join(started.errors)


@pytest.fixture(scope="module")
def canary(dev: Dev) -> Iterator[Canary]:
    made = Canary(dev)
    made.sings()
    yield made
    made.close()


class Gateway:
    """What is seen of the one gateway from outside."""

    def __init__(self, dev: Dev) -> None:
        keeper = Peer(dev)
        self.pid = roles_of(keeper)["gateway-0"][0]
        keeper.close()
        self._process = psutil.Process(self.pid)

    def own_bytes(self) -> int:
        """Its memory without what it shares with others."""
        memory = self._process.memory_info()
        return int(memory.rss - memory.shared)

    def descriptors(self) -> int:
        return int(self._process.num_fds())


@pytest.fixture
def gateway(dev: Dev, canary: Canary) -> Iterator[Gateway]:
    """A test runs beside the canary, and the gateway is the same afterwards."""
    found = Gateway(dev)
    canary.sings()
    yield found
    canary.sings()
    assert Gateway(dev).pid == found.pid


def dial(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host, int(port)), PATIENCE_S)
    made.setblocking(False)
    return made


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side has closed; what it has said is thrown away."""
    try:
        while data := sock.recv(1 << 20):
            del data
        return True
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def closed_of(socks: Sequence[socket.socket]) -> int:
    return sum(map(is_closed, socks))


def lines(dev: Dev, since: int, *words: str) -> list[str]:
    """Return the log's lines since then that have all these words."""
    return [line for line in dev.errors[since:] if all(word in line for word in words)]


def close_all(socks: Sequence[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def test_a_flood_of_connections(dev: Dev, canary: Canary, gateway: Gateway) -> None:
    """Beyond the limit they are closed at once; one line says so, and one when it is over."""
    before, descriptors = len(dev.errors), gateway.descriptors()
    flood = [dial(dev.broker) for _ in range(10 * CONNECTIONS_MAX)]
    until("most are closed", lambda: closed_of(flood) >= 9 * CONNECTIONS_MAX)
    canary.sings()
    assert gateway.descriptors() <= descriptors + CONNECTIONS_MAX
    close_all(flood)
    until("there is room again", lambda: lines(dev, before, "while all were taken"))
    said = lines(dev, before, "refused 127.0.0.1", "connections are open")
    # Where dialling takes longer than a silent peer may stay, there is room in between.
    assert 1 <= len(said) <= len(lines(dev, before, "while all were taken"))
    peer = Peer(dev)
    assert peer.ask(GET_ROLES).code == 0
    peer.close()


def test_a_flood_of_native_clients(dev: Dev, canary: Canary, gateway: Gateway) -> None:
    """Beyond the limit they get no answer; one line says so; when others leave, there is room."""
    before, began = len(dev.errors), time.monotonic()
    flood = []
    for _ in range(2 * CONNECTIONS_MAX):
        flood.append(NativePeer(dev))
        flood[-1].socket.send_multipart([frame.encode_head(RemotingCommand.request(9999))[4:]])
    until(
        "as many are served as may be",
        lambda: sum(bool(one.socket.poll(1) & zmq.POLLIN) for one in flood) >= CONNECTIONS_MAX - 1,
    )
    canary.sings()
    for one in flood:
        one.socket.send_multipart([frame.encode_head(RemotingCommand.request(9999))[4:]])
    canary.sings()
    leases = 1 + int((time.monotonic() - began) * 1e3 / IDLE_MS)  # after each others are served, and refused
    assert 1 <= len(lines(dev, before, "refused native clients")) <= leases
    for one in flood:
        one.close()
    # Their leases are over in time.
    peer = NativePeer(dev)
    peer.socket.setsockopt(zmq.RCVTIMEO, 200)

    def is_served() -> bool:
        with contextlib.suppress(zmq.Again):
            return peer.ask(GET_ROLES).code == 0
        return False

    until("a new client is served", is_served)
    peer.close()


def test_peers_that_say_nothing_more(dev: Dev, canary: Canary, gateway: Gateway) -> None:
    """They are closed in time, without a line each, wherever they have stopped."""
    before, descriptors = len(dev.errors), gateway.descriptors()
    begun = (
        (dev.broker, b""),
        (dev.broker, b"\x00"),
        (dev.zmq, b""),
        (dev.zmq, b"\xff\x00"),
        (dev.zmq, b"\xff" * 12),
    )
    silent = []
    for address, says in begun * 5:
        silent.append(dial(address))
        silent[-1].sendall(says)
    canary.sings()
    until("all are closed", lambda: closed_of(silent) == len(silent))
    close_all(silent)
    until("their descriptors are free", lambda: gateway.descriptors() <= descriptors + 2)
    assert not lines(dev, before, " gateway-0[")


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Dev]:
    """A broker that closes nobody for being silent."""
    with broker(tmp_path, env={**LIMITS, "ACTORMQ_GATEWAY_IDLE_TIMEOUT_MS": "3600000"}) as started:
        yield started
        assert started.stop() == 0, "".join(started.errors)


def test_clients_that_stop_in_the_middle_of_a_frame(patient: Dev) -> None:
    """Together they may hold so much and no more: the most silent is closed, with one line each."""
    dev, canary, gateway = patient, Canary(patient), Gateway(patient)
    before, memory = len(dev.errors), gateway.own_bytes()
    half = struct.pack(">II", 15 * MEGABYTE, 8) + bytes(8 * MEGABYTE)
    stopped = []
    for _ in range(12):
        sock = dial(dev.broker)
        sock.setblocking(True)
        sock.sendall(half)
        sock.setblocking(False)
        stopped.append(sock)
    until("the most silent are closed", lambda: closed_of(stopped) >= 9)
    assert gateway.own_bytes() - memory < 2 * UNFINISHED_BYTES_MAX, "of 96 MB"
    unfinished = "bytes of unfinished frames are too many"
    until("a line each", lambda: len(lines(dev, before, unfinished)) >= 9)
    assert len(lines(dev, before, unfinished)) <= 10
    canary.sings()
    canary.close()
    close_all(stopped)
    assert gateway.own_bytes() - memory < 2 * UNFINISHED_BYTES_MAX  # the allocator may keep it for the next
    peer = Peer(dev)
    assert peer.ask(send_request("halves", bytes(3 * MEGABYTE))).code == 0
    peer.close()


def test_a_native_client_that_stops_in_the_middle_of_a_message(
    dev: Dev, canary: Canary, gateway: Gateway
) -> None:
    """It answers no ping: its connection is closed, and what it holds is free."""
    memory = gateway.own_bytes()
    stopped = [half_a_message(dev, 8 * MEGABYTE) for _ in range(4)]
    canary.sings()
    for sock in stopped:
        sock.setblocking(False)
    until("they are closed", lambda: closed_of(stopped) == len(stopped))
    close_all(stopped)
    until("it is free", lambda: gateway.own_bytes() - memory < 8 * MEGABYTE)


def half_a_message(dev: Dev, size: int) -> socket.socket:
    """Shake hands as a DEALER does (ZMTP 3.0, NULL), then begin a message that never ends."""
    sock = dial(dev.zmq)
    sock.setblocking(True)
    sock.settimeout(PATIENCE_S)
    sock.sendall(b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    stream = sock.makefile("rb", buffering=0)
    greeting = b""
    while len(greeting) < 64:
        greeting += stream.read(64 - len(greeting)) or b""
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    sock.sendall(bytes((4, len(ready))) + ready)
    sock.sendall(b"\x02" + struct.pack(">Q", 15 * MEGABYTE) + bytes(size))
    return sock


# --- readers that never read -------------------------------------------------------------------------------


class Deaf:
    """Asks for the roles for ever and never reads an answer."""

    def __init__(self, dev: Dev) -> None:
        self.sock = dial(dev.broker)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._requests = memoryview(frame.encode(GET_ROLES) * 1000)
        self._at = 0

    def ask(self) -> None:
        """Ask as often as the socket takes it."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                self._at = (self._at + self.sock.send(self._requests[self._at :])) % len(self._requests)


def test_a_client_that_never_reads(dev: Dev, canary: Canary, gateway: Gateway) -> None:
    """Beyond the bound it is not read either, one line says so, and in time it is closed as idle."""
    before, memory = len(dev.errors), gateway.own_bytes()
    deaf = [Deaf(dev) for _ in range(2)]
    words = ("does not read", "it is not read either")

    def are_not_read() -> bool:
        for one in deaf:
            one.ask()
        return len(lines(dev, before, *words)) == len(deaf)

    until("they are not read", are_not_read)
    assert gateway.own_bytes() - memory < 2 * len(deaf) * REPLY_BYTES_MAX + 16 * MEGABYTE
    canary.sings()
    until("they are closed", lambda: all(hangs_up(one.sock) for one in deaf))
    close_all([one.sock for one in deaf])
    assert len(lines(dev, before, *words)) == len(deaf), "more than one line each"


def hangs_up(sock: socket.socket) -> bool:
    """Whether the other side has hung up, seen without reading."""
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    return bool(poller.poll(0))


def test_a_native_client_that_never_reads(dev: Dev, canary: Canary, gateway: Gateway) -> None:
    """What is queued for it is bounded; then it is dropped, with one line each time."""
    before, memory = len(dev.errors), gateway.own_bytes()
    deaf = NativePeer(dev)
    deaf.socket.setsockopt(zmq.RCVHWM, 1)
    deaf.socket.setsockopt(zmq.SNDTIMEO, 100)
    head = frame.encode_head(GET_ROLES)[4:]

    def is_dropped() -> bool:
        with contextlib.suppress(zmq.Again):
            for _ in range(500):
                deaf.socket.send(head)
        return bool(lines(dev, before, "dropped the native client", "does not read"))

    until("it is dropped", is_dropped)
    assert gateway.own_bytes() - memory < 64 * MEGABYTE
    canary.sings()
    deaf.close()
