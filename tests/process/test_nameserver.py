"""`actormq namesrv`, a real process: both fronts, brokers that vanish, the KV file, a killed role."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import zmq
from actormq_process import Dev, running_dev
from server_process import PATIENCE_S, Server, running_namesrv

from actormq.cli.remote import UNREACHABLE, Remote, split_address
from actormq.errors import ClientError, RequestRefused
from actormq.wire import frame
from actormq.wire.command import RemotingCommand, Serialize
from actormq.wire.registration import DataVersion, RegistrationBody, TopicConfig, encode_registration

WHO = {"brokerName": "a", "brokerAddr": "10.0.0.1:1", "clusterName": "C", "brokerId": "0", "haServerAddr": ""}
BODY = encode_registration(
    RegistrationBody(version=DataVersion(0, 1, 1), topics=(TopicConfig(name="T"), TopicConfig(name="U")))
)


def until(what: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("namesrv")
    with running_namesrv(folder, ACTORMQ_NAMESRV_SCAN_INTERVAL_MS="100") as server:
        yield server


@pytest.fixture
def remote() -> Iterator[Remote]:
    with Remote(PATIENCE_S) as remote:
        yield remote


def test_a_registered_broker_is_found_over_both_fronts(server: Server, remote: Remote) -> None:
    """TCP with either header, and ZeroMQ, answer the same route."""
    remote.ask(server.words["namesrv"], 103, {**WHO, "zmqAddr": "10.0.0.1:2"}, BODY)
    request = RemotingCommand.request(105, {"topic": "T"})
    answers = [bytes(remote.ask(server.words["namesrv"], 105, {"topic": "T"}).body)]
    request.serialize = Serialize.BINARY
    with socket.create_connection(split_address(server.words["namesrv"]), PATIENCE_S) as sock:
        sock.sendall(frame.encode(request))
        length = int.from_bytes(sock.recv(4, socket.MSG_WAITALL), "big")
        answer = frame.decode(sock.recv(length, socket.MSG_WAITALL))
        assert (answer.serialize, answer.opaque) == (Serialize.BINARY, request.opaque)
        answers.append(bytes(answer.body))
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(f"tcp://{server.words['namesrv-zmq']}")
        dealer.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.send_multipart([frame.encode(request)[4:]])
        answers.append(bytes(frame.decode_parts(*dealer.recv_multipart()).body))
    assert len(set(answers)) == 1
    assert json.loads(answers[0])["brokerDatas"][0]["zmqAddrs"] == {"0": "10.0.0.1:2"}


def test_a_closed_connection_takes_its_broker_along_at_once(server: Server, remote: Remote) -> None:
    """Nobody waits for the expiry of a broker whose process died."""
    with Remote(PATIENCE_S) as broker:
        broker.ask(server.words["namesrv"], 103, {**WHO, "brokerName": "b", "brokerAddr": "10.0.0.2:1"}, BODY)
        assert b'"b"' in bytes(remote.ask(server.words["namesrv"], 106).body)
    until(lambda: b'"b"' not in bytes(remote.ask(server.words["namesrv"], 106).body))
    until(lambda: "broker gone" in server.log.read_text())


def test_a_silent_broker_expires_and_is_disconnected(server: Server, remote: Remote) -> None:
    """After the time that the broker itself asked for."""
    with Remote(PATIENCE_S) as broker:
        fields = {**WHO, "brokerName": "c", "brokerAddr": "10.0.0.3:1", "heartbeatTimeoutMillis": "200"}
        broker.ask(server.words["namesrv"], 103, fields, BODY)
        until(lambda: b'"c"' not in bytes(remote.ask(server.words["namesrv"], 106).body))
        with pytest.raises(UNREACHABLE):
            broker.ask(server.words["namesrv"], 106)


def test_a_malformed_frame_costs_only_its_connection(server: Server, remote: Remote) -> None:
    """It is closed with one line in the log; everyone else is served."""
    for junk in (b"\x00\x00\x00\x08\x05\x00\x00\x00junk", b"\xff" * 8):
        with socket.create_connection(split_address(server.words["namesrv"]), PATIENCE_S) as sock:
            sock.sendall(junk)
            assert sock.recv(100) == b""
    remote.ask(server.words["namesrv"], 106)
    until(lambda: server.log.read_text().count("closed the connection of 127.0.0.1") == 2)


def test_kv_entries_survive_restarts(tmp_path: Path) -> None:
    """They are on the disk when they are acknowledged."""
    fields = {"namespace": "N", "key": "k", "value": "v"}
    with running_namesrv(tmp_path) as server, Remote(PATIENCE_S) as remote:
        remote.ask(server.words["namesrv"], 100, fields)
        saved = tmp_path / "namesrv" / "kvConfig.json"
        assert json.loads(saved.read_text()) == {"configTable": {"N": {"k": "v"}}}
    with running_namesrv(tmp_path) as server, Remote(PATIENCE_S) as remote:
        assert remote.ask(server.words["namesrv"], 101, fields).fields == {"value": "v"}


def test_a_kv_entry_that_cannot_be_saved_is_no_success(tmp_path: Path) -> None:
    """A KV path below a file."""
    (tmp_path / "namesrv").write_text("in the way")
    with running_namesrv(tmp_path) as server, Remote(PATIENCE_S) as remote:
        with pytest.raises(RequestRefused, match="could not be saved"):
            remote.ask(server.words["namesrv"], 100, {"namespace": "N", "key": "k", "value": "v"})
        remote.ask(server.words["namesrv"], 106)


def test_a_killed_role_is_replaced_on_the_same_ports(tmp_path: Path) -> None:
    """Brokers and clients come back to the addresses that they know; KV entries are still there."""
    with running_namesrv(tmp_path) as server, Remote(PATIENCE_S) as remote:
        remote.ask(server.words["namesrv"], 100, {"namespace": "N", "key": "k", "value": "v"})
        server.role("nameserver").send_signal(signal.SIGKILL)
        until(lambda: _answers(server))
        with Remote(PATIENCE_S) as again:
            again.ask(server.words["namesrv"], 103, WHO, BODY)
            again.ask(server.words["namesrv"], 105, {"topic": "T"})
            assert again.ask(server.words["namesrv"], 101, {"namespace": "N", "key": "k"}).fields == {
                "value": "v"
            }


def _answers(server: Server) -> bool:
    try:
        with Remote(timeout_s=1) as remote:
            remote.ask(server.words["namesrv"], 106)
    except ClientError:
        return False
    return True


def test_a_name_server_ends_cleanly(tmp_path: Path) -> None:
    """Exit code 0, and no process of it is left."""
    with running_namesrv(tmp_path) as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
        psutil.wait_procs(children, PATIENCE_S)
        assert not [child for child in children if child.is_running()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "{taken}"], "cannot listen on 127.0.0.1:{taken}"),
        (["--port", "x"], "actormq: --port must be an integer, not 'x'"),
        (["-c", "/nowhere/namesrv.conf"], "actormq: /nowhere/namesrv.conf cannot be read: No such file"),
    ],
)
def test_what_cannot_start_says_why(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    """Exit code 2 and one sentence, no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = [word.format(taken=port) for word in arguments]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "actormq.cli.main",
                "namesrv",
                "--zmq-port",
                "0",
                "--data-dir",
                str(tmp_path),
                *words,
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 2
    assert sentence.format(taken=port) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_kv_file_is_named(tmp_path: Path) -> None:
    """A file that is no JSON is not overwritten: the start is refused."""
    (tmp_path / "kv.json").write_text("{nonsense")
    (tmp_path / "n.toml").write_text(f"[namesrv]\nzmq_port = 0\nkv_path = '{tmp_path}/kv.json'\n")
    done = subprocess.run(
        [sys.executable, "-m", "actormq.cli.main", "namesrv", "-c", str(tmp_path / "n.toml"), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert f"the KV configuration {tmp_path}/kv.json cannot be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "kv.json").read_text() == "{nonsense"


def test_a_dev_broker_is_found_again_soon_after_its_name_server_died() -> None:
    """The broker notices the end of its connection; nobody waits for the next registration (30 s)."""
    with running_dev() as dev:
        for _ in range(2):
            names = {
                child.name(): child for child in psutil.Process(dev.process.pid).children(recursive=True)
            }
            names["amq:nameserver"].send_signal(signal.SIGKILL)
            names["amq:nameserver"].wait(PATIENCE_S)
            until(lambda: _is_found(dev))


def _is_found(dev: Dev) -> bool:
    try:
        with Remote(timeout_s=1) as remote:
            remote.ask(dev.namesrv, 105, {"topic": "TBW102"})
    except ClientError:
        return False
    return True
