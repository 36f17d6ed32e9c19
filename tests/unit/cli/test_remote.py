"""One question at a time: what comes back when servers answer, refuse, stay silent or go."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from listening import SECONDS, dead_port

from actormq.cli.remote import Broker, Cluster, Remote
from actormq.errors import ConfigError, ConnectFailed, ConnectionLost, RequestRefused, RequestTimeout
from actormq.wire import frame
from actormq.wire.command import RemotingCommand

Serve = Callable[[socket.socket], None]


@pytest.fixture
def serving() -> Iterator[Callable[[Serve], str]]:
    """Start servers that give each connection to a function; return their addresses."""
    listeners = []

    def start(serve: Serve) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    serve(sock)

        threading.Thread(target=accept, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def answering(*answers: Callable[[RemotingCommand], bytes]) -> Serve:
    """Answer the requests of a connection one by one."""

    def serve(sock: socket.socket) -> None:
        for answer in answers:
            length = int.from_bytes(sock.recv(4, socket.MSG_WAITALL), "big")
            if length:
                sock.sendall(answer(frame.decode(sock.recv(length, socket.MSG_WAITALL))))
        sock.recv(1)

    return serve


def _listen_only(sock: socket.socket) -> None:
    while sock.recv(1_000):
        pass


def success(body: bytes) -> Callable[[RemotingCommand], bytes]:
    return lambda request: frame.encode(RemotingCommand.response_to(request, 0, body=body))


def test_an_answer_is_found_among_other_frames(serving: Callable[[Serve], str]) -> None:
    """Requests of the server and answers to others are skipped; the connection is used again."""

    def noisy(request: RemotingCommand) -> bytes:
        other = RemotingCommand.response_to(request, 0, body=b"other")
        other.opaque += 1
        return frame.encode(RemotingCommand.request(40)) + frame.encode(other) + success(b"1")(request)

    address = serving(answering(noisy, success(b"2")))
    with Remote() as remote:
        assert remote.ask(address, 105, {"topic": "T"}).body == b"1"
        assert remote.ask(address, 105).body == b"2"


def test_a_refusal_keeps_code_and_remark(serving: Callable[[Serve], str]) -> None:
    """The first line of what the server said, and who said it."""
    refusal = "No topic route info: T\nSee https://…"
    address = serving(
        answering(lambda request: frame.encode(RemotingCommand.response_to(request, 17, refusal)))
    )
    with Remote() as remote, pytest.raises(RequestRefused) as caught:
        remote.ask(address, 105)
    assert caught.value.response_code == 17
    assert caught.value.remark == f"{address} answered 17: No topic route info: T"


def test_servers_that_do_not_answer_are_named(serving: Callable[[Serve], str]) -> None:
    """Closed, silent, talking nonsense, or not there at all."""
    closing = serving(lambda sock: None)
    silent = serving(_listen_only)
    nonsense = serving(answering(lambda request: b"\xff" * 100))
    with dead_port() as port:
        for address, error, timeout_s in (
            (closing, ConnectionLost, SECONDS),
            (silent, RequestTimeout, 0.2),
            (nonsense, ConnectionLost, SECONDS),
            (f"127.0.0.1:{port}", ConnectFailed, SECONDS),
        ):
            with Remote(timeout_s) as remote, pytest.raises(error, match=address):
                remote.ask(address, 105)
    with Remote() as remote, pytest.raises(ConfigError, match="'nowhere' is no HOST:PORT"):
        remote.ask("nowhere", 105)


def test_a_broken_connection_is_not_used_again(serving: Callable[[Serve], str]) -> None:
    """The next question makes a new one."""
    address = serving(answering(success(b"1")))
    with Remote(SECONDS) as remote:
        remote.ask(address, 105)
        with pytest.raises(ConnectionLost):
            remote.ask(address, 105)
        assert remote.ask(address, 105).body == b"1"


def test_the_first_name_server_that_answers_is_asked(serving: Callable[[Serve], str]) -> None:
    """One of several may be down; when all are, the last one's trouble is told."""
    info = (
        b'{"brokerAddrTable":{"b":{"brokerAddrs":{1:"h:2",0:"h:1"},"brokerName":"b","cluster":"C"},'
        b'"a":{"brokerAddrs":{0:"h:3"},"brokerName":"a","cluster":"C"}},"clusterAddrTable":{"C":["a","b"]}}'
    )
    down = serving(lambda sock: None)
    up = serving(answering(success(info), success(info)))
    with Remote() as remote:
        cluster = Cluster(remote, f"{down}; {up}")
        assert cluster.brokers() == [
            Broker("C", "a", 0, "h:3"),
            Broker("C", "b", 0, "h:1"),
            Broker("C", "b", 1, "h:2"),
        ]
        assert [broker.address for broker in cluster.brokers(masters_only=True)] == ["h:3", "h:1"]
        with pytest.raises(ConnectionLost, match=down):
            Cluster(remote, down).brokers()
        with pytest.raises(ConfigError, match="--namesrv"):
            Cluster(remote, " ; ")


def test_a_name_server_that_does_not_answer_is_asked_once(serving: Callable[[Serve], str]) -> None:
    """A command has many questions: none but the first waits for it."""
    calls = []
    down = serving(lambda sock: calls.append(sock))
    up = serving(answering(success(b"1"), success(b"2")))
    with Remote() as remote:
        cluster = Cluster(remote, f"{down};{up}")
        assert [cluster.ask(105), cluster.ask(105)] == [1, 2]
    assert len(calls) == 1


def test_a_change_is_told_to_every_name_server(serving: Callable[[Serve], str]) -> None:
    """Also when one of them does not do it: then that is said."""
    told = []

    def note(request: RemotingCommand) -> bytes:
        told.append(request.fields["topic"])
        return frame.encode(RemotingCommand.response_to(request, 0))

    down = serving(lambda sock: None)
    addresses = [serving(answering(note)) for _ in range(2)]
    with Remote() as remote:
        Cluster(remote, ",".join(addresses)).tell_all(216, {"topic": "a"})
        with pytest.raises(ConnectionLost, match=down):
            Cluster(remote, f"{down};{serving(answering(note))}").tell_all(216, {"topic": "b"})
    assert told == ["a", "a", "b"]


def test_masters_are_found_by_name() -> None:
    """All of them, one, or a sentence."""
    info = {
        "brokerAddrTable": {
            "a": {"brokerAddrs": {"0": "h:1", "1": "h:2"}, "brokerName": "a", "cluster": "C"},
            "b": {"brokerAddrs": {"0": "h:3"}, "brokerName": "b", "cluster": "C"},
        }
    }
    cluster = Cluster(Remote(), "h:0")
    cluster.ask = lambda code, fields=None: info  # type: ignore[method-assign]
    assert [broker.address for broker in cluster.masters()] == ["h:1", "h:3"]
    assert [broker.address for broker in cluster.masters("b")] == ["h:3"]
    with pytest.raises(ConfigError, match="no broker c is registered"):
        cluster.masters("c")
    info["brokerAddrTable"] = {}
    with pytest.raises(ConfigError, match="no broker is registered"):
        cluster.masters()
