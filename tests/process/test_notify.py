"""What a service manager hears of us, by a socket of the test's own in systemd's place."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from process import demo_roles as roles
from process.demo import DEADLINE_S, Demo, wait_until

from actormq.actors.supervisor import Supervisor
from actormq.shm.positions import RoleCell, RoleState

BROKER = {"recovery": "Recovery", "writer": "PortServer", "holder": "Echo", "flusher": "Flusher"}
LIVELY = {"heartbeat_interval_ms": 50, "silence_ms": 2_000}
"""A machine that is busy may let a role wait for a while: that is no silence yet."""
WATCHDOG_S = 2.0


class Ear:
    """Hears one datagram after the other."""

    def __init__(self, address: str) -> None:
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(DEADLINE_S)

    def next(self) -> list[str]:
        """Return the lines of the next datagram, once it is there."""
        lines = self._socket.recv(4096).decode().split("\n")
        self.heard += lines
        return lines

    def until(self, *words: str) -> str:
        """Return the next line with all of `words` in it, once it is there."""
        while True:
            for line in self.next():
                if all(word in line for word in words):
                    return line

    def waiting(self) -> list[str]:
        """Return the lines of what has come, without waiting."""
        before = len(self.heard)
        while select.select([self._socket], [], [], 0)[0]:
            self.next()
        return self.heard[before:]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def address(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@actormq-{secrets.token_hex(8)}"


@pytest.fixture
def ear(address: str) -> Iterator[Ear]:
    ear = Ear(address)
    yield ear
    ear.close()


def watched(tmp_path: Path, address: str, names: dict[str, str] | None = None, **variables: str) -> Demo:
    """A broker that a watchdog looks at."""
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)), **variables}
    return Demo(tmp_path / "store", names or BROKER, settings=LIVELY, environment=environment)


def let_ticks_pass(demo: Demo, ticks: int) -> None:
    """Return when the supervisor has looked after its roles so many times more."""
    for _ in range(ticks):
        before = demo.heartbeat("supervisor")
        wait_until(lambda before=before: demo.heartbeat("supervisor") != before, "a tick")  # type: ignore[misc]


def test_the_whole_life(tmp_path: Path, address: str, ear: Ear) -> None:
    """A word while it recovers, READY with its addresses, WATCHDOG again and again, STOPPING, exit 0."""
    with watched(tmp_path, address).begin() as demo:
        assert ear.next() == ["STATUS=recovering the store"]
        ear.until("READY=1")
        assert ear.heard[-1].startswith("STATUS=serving ")
        for _ in range(3):
            ear.until("WATCHDOG=1")
        demo.process.send_signal(signal.SIGTERM)
        ear.until("STOPPING=1")
        assert demo.wait() == 0
        assert "WATCHDOG=1" not in ear.waiting()


def test_ready_means_that_it_serves(tmp_path: Path, address: str, ear: Ear) -> None:
    """As long as one role is not there yet, nobody is told READY; systemd waits longer for a recovery."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    names = BROKER | {"recovery": "GatedRecovery", "holder": "GatedEcho"}
    with watched(tmp_path, address, names, DEMO_GATE=str(gate)).begin() as demo:
        ear.until("EXTEND_TIMEOUT_USEC=30000000")
        gate.write_text("go on\n")
        wait_until(lambda: "INFO flusher" in demo.log and "INFO writer" in demo.log, "the others")
        wait_until(lambda: demo.log.count("waits at the gate") == 2, "the last one")
        assert not any(line.startswith("READY") for line in (*ear.heard, *ear.waiting()))
        gate.write_text("go on\n")
        ear.until("READY=1")


@pytest.mark.parametrize("role", ["writer", pytest.param("holder", marks=pytest.mark.soak)])
def test_a_role_that_hangs_starves_the_watchdog(tmp_path: Path, address: str, ear: Ear, role: str) -> None:
    """SIGSTOP: WATCHDOG stops, the status names the role; SIGCONT: all is well again."""
    with watched(tmp_path, address).start() as demo:
        ear.until("WATCHDOG=1")
        demo.kill(role, signal.SIGSTOP)
        ear.until("STATUS=no sign of life from", role)
        ear.waiting()
        let_ticks_pass(demo, 6)
        assert "WATCHDOG=1" not in ear.waiting()
        demo.kill(role, signal.SIGCONT)
        ear.until("STATUS=serving")
        ear.until("WATCHDOG=1")
        assert demo.stop() == 0


def test_a_slow_disk_is_no_reason_to_kill(tmp_path: Path, address: str, ear: Ear) -> None:
    """A role inside a sync is silent, and named; the watchdog is fed: the next one would wait, too.

    One that was stopped there (SIGSTOP) does not wait for the disk.
    """
    gate = tmp_path / "gate"  # nobody opens it
    os.mkfifo(gate)
    with watched(tmp_path, address, DEMO_GATE=str(gate)).start() as demo:
        demo.ref("flusher").tell(roles.Block())
        ear.until("STATUS=no sign of life from", "flusher")
        wait_until(lambda: "flusher: disk slow since" in demo.log, "the line in the log")
        for _ in range(2):
            ear.until("WATCHDOG=1")
        demo.kill("flusher", signal.SIGSTOP)
        let_ticks_pass(demo, 2)
        ear.waiting()
        let_ticks_pass(demo, 6)
        assert "WATCHDOG=1" not in ear.waiting()
        demo.kill("flusher")
        ear.until("WATCHDOG=1")


def test_why_it_gave_up(tmp_path: Path, address: str, ear: Ear) -> None:
    """`systemctl status` shows the last sentence of the log."""
    with watched(tmp_path, address).start() as demo:
        demo.ref("writer").tell(roles.FailStore())
        assert demo.wait() == 74
        last = [line for line in ear.waiting() if line.startswith("STATUS=")][-1]
        assert last.startswith("STATUS=the store failed: /log/00000 at offset 17")


@pytest.mark.parametrize("variables", [{"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_PID": "1"}])
def test_unwatched(tmp_path: Path, variables: dict[str, str]) -> None:
    """Without a watchdog, or with one for another process, the rest is told all the same."""
    address = str(tmp_path / "notify")
    ear = Ear(address)
    with watched(tmp_path, address, **variables).start() as demo:
        let_ticks_pass(demo, 2)
        assert demo.stop() == 0
    heard = ear.waiting()
    ear.close()
    assert {"READY=1", "STOPPING=1"} < set(heard)
    assert "WATCHDOG=1" not in heard


@pytest.mark.parametrize("name", ["", "/nowhere/notify", "@nobody-listens", "vsock:2:1", "relative"])
def test_without_systemd(tmp_path: Path, name: str) -> None:
    """No socket, or none that anybody listens at: it serves and stops as ever."""
    with watched(tmp_path, name).start() as demo:
        let_ticks_pass(demo, 2)
        assert demo.role("holder", RoleCell.STATE) == RoleState.RUNNING
        assert demo.stop() == 0


def test_systemd_that_does_not_read(tmp_path: Path) -> None:
    """Its socket is full while the broker becomes ready: READY is told as soon as there is room."""
    address = str(tmp_path / "notify")
    ear = Ear(address)
    sent = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as chatter:
        chatter.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                chatter.sendto(b"noise", address)
                sent += 1
    with watched(tmp_path, address).start() as demo:
        let_ticks_pass(demo, 2)
        # One place that becomes free is enough for it.
        assert [ear.next() for _ in range(sent)] == [["noise"]] * sent
        ear.until("READY=1")
        assert demo.stop() == 0
    ear.close()


def test_an_embedded_broker_is_no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread of a program that is a service itself, it does not speak for that program."""
    address = str(tmp_path / "notify")
    ear = Ear(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "100000")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1])]))
    status = _run_in_thread(tmp_path)
    heard = ear.waiting()
    ear.close()
    assert (status, heard) == ([0], [])


def _run_in_thread(tmp_path: Path) -> list[int]:
    """Run a supervisor until it is ready, then stop it; return its exit status."""
    from process.demo import _specs

    from actormq.config import BrokerConfig, StoreConfig

    request = {"roles": {"holder": "Echo"}, "ports": (), "fronts": {}}
    config = BrokerConfig(store=StoreConfig(root=tmp_path / "store"))
    status: list[int] = []

    def life() -> None:
        with (tmp_path / "log").open("w") as log:
            supervisor = Supervisor(
                config, _specs(json.loads(json.dumps(request))), store_root=None, log_stream=log,
                on_ready=lambda ready: ready.request_stop(),
            )  # fmt: skip
            status.append(supervisor.run())

    thread = threading.Thread(target=life)
    thread.start()
    thread.join(DEADLINE_S)
    return status
