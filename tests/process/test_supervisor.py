"""The supervisor: restarts, crash loops, clean and unclean ends, leftovers, locks."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from process import demo_roles as roles
from process.demo import DEADLINE_S, Demo, alive, wait_until

from actormq.actors.mailbox import ActorDeadError
from actormq.actors.rundir import prefix_of
from actormq.actors.storelock import StoreLock
from actormq.errors import StoreLocked
from actormq.shm.positions import Position, RoleCell, RoleState
from actormq.shm.segment import Segment

BROKER = {
    "recovery": "Recovery",
    "writer": "PortServer",
    "flusher": "Flusher",
    "holder": "Echo",
    "coordinator": "PortClient",
}


def broker(tmp_path: Path, names: dict[str, str] | None = None, **options: object) -> Demo:
    return Demo(tmp_path / "store", names or BROKER, ports=("coordinator",), **options)  # type: ignore[arg-type]


def segments(store: Path) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"{prefix_of(store)}*")]


# -- clean ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_clean_stop_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    """SIGTERM or SIGINT: exit 0, no process, no segment, no run folder, no abort file, lock free."""
    with broker(tmp_path).start() as demo:
        pids = [demo.pid, demo.forkserver, *demo.pids()]
        assert (tmp_path / "store/abort").exists()
        assert demo.run_dir.stat().st_mode & 0o777 == 0o700
        assert demo.stop(number) == 0
        assert not any(alive(pid) for pid in pids)
        assert not demo.run_dir.exists()
        assert segments(tmp_path / "store") == []
        assert not (tmp_path / "store/abort").exists()
        lock = StoreLock(tmp_path / "store")
        lock.own(wait_ms=0)
        lock.close()


def test_stop_goes_in_order(tmp_path: Path) -> None:
    """Services end before the writer is asked to."""
    with broker(tmp_path).start() as demo:
        demo.stop()
        ends = re.findall(r"INFO (\S+)\[\d+\] demo role stops", demo.log)
        assert ends[0] == "recovery"
        assert ends[-1] == "writer"
        assert sorted(ends[1:-1]) == ["coordinator", "flusher", "holder"]


def test_abort_stays_while_the_store_is_behind(tmp_path: Path) -> None:
    """A stop that leaves bytes undispatched or unflushed says so, exits with 1, leaves abort to recovery."""
    with broker(tmp_path).start() as demo:
        demo.positions.set(Position.APPENDED, 4711)
        demo.positions.set(Position.FLUSHED, 4711)
        assert demo.stop() == 1
        assert (tmp_path / "store/abort").exists()
        assert "dispatched=4711" in demo.log


def test_role_that_never_finishes_is_killed(tmp_path: Path) -> None:
    """The stop's time-out is per stage; then SIGKILL, a non-zero exit, and abort stays."""
    names = BROKER | {"holder": "Stubborn"}
    with broker(tmp_path, names, settings={"stop_timeout_ms": 300}).start() as demo:
        assert demo.stop() == 1
        assert "holder does not stop" in demo.log
        assert not demo.run_dir.exists()


def test_sigterm_to_everyone_is_a_clean_stop(tmp_path: Path) -> None:
    """systemd and containers may signal every process: still in order, nothing killed, exit 0."""
    with broker(tmp_path).start() as demo:
        for pid in [*demo.pids(), demo.forkserver, demo.pid]:
            os.kill(pid, signal.SIGTERM)
        assert demo.wait() == 0
        assert not (tmp_path / "store/abort").exists()
        assert re.findall(r"INFO (\S+)\[\d+\] demo role stops", demo.log)[-1] == "writer"


def test_sigterm_to_one_role_replaces_it(tmp_path: Path) -> None:
    """It drains, ends, and the next incarnation serves."""
    with broker(tmp_path).start() as demo:
        demo.kill("holder", signal.SIGTERM)
        demo.wait_running("holder", 2)
        assert "holder was asked to stop, replacing it" in demo.log
        ended = r"INFO (\S+)\[\d+\] demo role stops"
        wait_until(lambda: re.findall(ended, demo.log) == ["recovery", "holder"], "its last line")
        assert demo.stop() == 0


def test_processes_are_named_after_their_roles(tmp_path: Path) -> None:
    """One name in ps, short and long, and in the log."""
    with broker(tmp_path).start() as demo:
        for name, pid in {"holder": demo.pid_of("holder"), "forkserver": demo.forkserver}.items():
            assert Path(f"/proc/{pid}/comm").read_text() == f"amq:{name}\n"
            assert Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") == f"actormq: {name}".encode()


def test_stuck_forkserver_is_reported_and_no_hindrance_to_a_stop(tmp_path: Path) -> None:
    """A role that cannot be forked is named; the broker still stops in order."""
    with broker(tmp_path, settings={"silence_ms": 500}).start() as demo:
        os.kill(demo.forkserver, signal.SIGSTOP)
        demo.kill("holder")
        wait_until(lambda: "holder waits for the forkserver" in demo.log, "the report")
        assert demo.stop() == 0


def test_unwritable_log_is_refused(tmp_path: Path) -> None:
    """One sentence, exit 2."""
    (tmp_path / "file").touch()
    with broker(tmp_path, log_path=tmp_path / "file/broker.log").begin() as demo:
        assert demo.wait() == 2
        assert "cannot write the log" in demo.log
        assert "Traceback" not in demo.log


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    """Who asks twice does not wait for a drain."""
    with broker(tmp_path, BROKER | {"holder": "Stubborn"}).start() as demo:
        demo.process.send_signal(signal.SIGINT)
        wait_until(lambda: demo.role("holder", RoleCell.STATE) == RoleState.STOPPING, "stopping")
        assert demo.stop(signal.SIGINT) == 1
        assert not demo.run_dir.exists()


def test_stop_while_recovering(tmp_path: Path) -> None:
    """SIGTERM before anyone serves: everyone ends, exit 0, and the store is as recovery left it."""
    with broker(tmp_path, BROKER | {"recovery": "SlowRecovery"}).begin() as demo:
        wait_until(lambda: "recovering slowly" in demo.log, "recovery")
        assert demo.stop() == 0
        assert not (tmp_path / "store/abort").exists()


def test_restart_after_a_clean_stop(tmp_path: Path) -> None:
    """The same folder again: nothing to sweep."""
    for _ in range(2):
        with broker(tmp_path).start() as demo:
            assert demo.stop() == 0
    assert "swept" not in demo.log


# -- deaths of roles


@pytest.mark.parametrize("role", ["holder", "flusher"])
def test_killed_role_is_replaced(tmp_path: Path, role: str) -> None:
    """kill -9: a log line with the signal, a new process and incarnation, everyone told."""
    with broker(tmp_path).start() as demo:
        before = demo.pid_of(role)
        demo.kill(role)
        demo.wait_running(role, 2)
        assert demo.pid_of(role) != before
        assert demo.ref(role).ask(roles.Say("hello"), block=True, reply_type=roles.Said).incarnation == 2
        assert f"{role} was killed by SIGKILL" in demo.log
        changes = wait_until(
            lambda: [
                line
                for line in demo.ref("writer").ask(roles.History(), block=True)
                if line.startswith("changed")
            ][1:],
            "the news",
        )
        assert changes == [f"changed {role} 2"]
        assert demo.stop() == 0


def test_dead_client_gets_a_new_port(tmp_path: Path) -> None:
    """The old port is closed at the server, the new incarnation's opened; nothing of the old is answered."""
    with broker(tmp_path).start() as demo:
        assert demo.ref("coordinator").ask(roles.Ring("a"), block=True) == "A"
        demo.kill("writer", signal.SIGSTOP)
        lost = demo.ref("coordinator").ask(roles.Ring("old incarnation"))
        wait_until(lambda: not lost.done, "sent")
        demo.kill("coordinator")
        demo.kill("writer", signal.SIGCONT)
        demo.wait_running("coordinator", 2)
        assert demo.ref("coordinator").ask(roles.Ring("b"), block=True) == "B"
        history = demo.ref("writer").ask(roles.History(), block=True)
        assert [line for line in history if "append" in line] == [
            "opened append coordinator 1",
            "closed append coordinator 1",
            "opened append coordinator 2",
        ]


def test_port_survives_the_server(tmp_path: Path) -> None:
    """A request that lies in the ring when the server dies is answered by its successor."""
    with broker(tmp_path).start() as demo:
        demo.kill("writer", signal.SIGSTOP)
        answer = demo.ref("coordinator").ask(roles.Ring("waits"))
        wait_until(lambda: demo.ref("coordinator").ask(roles.Say("pushed"), block=True), "pushed")
        demo.kill("writer")
        demo.wait_running("writer", 2)
        assert answer.get() == "WAITS"
        history = demo.ref("writer").ask(roles.History(), block=True)
        assert history[:2] == ["opened append coordinator 1", "start"]


def test_port_of_a_dead_client_reaches_the_servers_successor(tmp_path: Path) -> None:
    """Both die: the new server sees the old port once more (opened before its start, then closed)."""
    with broker(tmp_path, BROKER | {"writer": "SlowServer"}).start() as demo:
        demo.kill("writer")
        wait_until(lambda: demo.role("writer", RoleCell.STATE) != RoleState.RUNNING, "the writer's death")
        demo.kill("coordinator")
        demo.wait_running("coordinator", 2)
        demo.wait_running("writer", 2)

        def appends() -> list[str]:
            history = demo.ref("writer").ask(roles.History(), block=True)
            return [line for line in history if "append" in line]

        wait_until(lambda: "opened append coordinator 2" in appends(), "the new port")
        assert appends()[0] == "opened append coordinator 1"
        assert "closed append coordinator 1" in appends()


def test_stopped_role_is_reported_not_killed(tmp_path: Path) -> None:
    """SIGSTOP beyond the heartbeat's limit: one line when it is silent, one when it is back, same process."""
    with broker(tmp_path, settings={"silence_ms": 1_200}).start() as demo:
        pid = demo.pid_of("holder")
        demo.kill("holder", signal.SIGSTOP)
        wait_until(lambda: "holder is silent" in demo.log, "the report")
        assert demo.pid_of("holder") == pid
        demo.kill("holder", signal.SIGCONT)
        wait_until(lambda: "holder is back" in demo.log, "the second report")
        assert demo.pid_of("holder") == pid
        assert demo.log.count("holder is silent") == 1
        assert demo.stop() == 0


def test_role_inside_a_sync_is_a_slow_disk(tmp_path: Path) -> None:
    """A role that said that it is inside a sync is reported as such."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    options = {"settings": {"silence_ms": 1_200}, "environment": {"DEMO_GATE": str(gate)}}
    with broker(tmp_path, **options).start() as demo:
        demo.ref("flusher").tell(roles.Block())
        wait_until(lambda: "flusher: disk slow since" in demo.log, "the report")
        gate.write_text("go on\n")
        wait_until(lambda: "flusher is back" in demo.log, "the end")
        assert demo.role("flusher", RoleCell.INCARNATION) == 1
        assert demo.role("flusher", RoleCell.BUSY_SINCE_NS) == 0


def test_crash_loop_stops_the_broker(tmp_path: Path) -> None:
    """A role that dies at every start: restarts with growing pauses, then one clear last line, exit 71."""
    settings = {"crash_loop_restarts": 4, "restart_backoff_ms": 5}
    with broker(tmp_path, BROKER | {"holder": "BrokenAtStart"}, settings=settings).begin() as demo:
        assert demo.wait() == 71
        assert demo.log.count("ZeroDivisionError: broken from birth") == 4
        last = demo.log.splitlines()[-1]
        assert "holder died 4 times in a row, at last it exited with status 70: giving up" in last
        assert re.findall(r"restart_in_ms=(\d+)", demo.log) == ["0", "5", "10"]


def test_refused_start_is_one_sentence(tmp_path: Path) -> None:
    """A role that refuses to start (a setting, a folder): its sentence, no traceback, exit 78."""
    with broker(tmp_path, BROKER | {"recovery": "RefusedRecovery"}).begin() as demo:
        assert demo.wait() == 78
        assert "this folder is not ours" in demo.log
        assert "Traceback" not in demo.log
        assert not (tmp_path / "store/abort").exists()


def test_failed_store_ends_everything(tmp_path: Path) -> None:
    """store_failed: every role killed, nobody restarted, file and offset in the last line, abort stays."""
    with broker(tmp_path).start() as demo:
        pids = demo.pids()
        demo.ref("flusher").tell(roles.FailStore())
        assert demo.wait() == 74
        assert not any(alive(pid) for pid in pids)
        assert "/log/00000 at offset 17: Input/output error" in demo.log.splitlines()[-1]
        assert (tmp_path / "store/abort").exists()
        assert "runs again" not in demo.log


def test_store_failed_cell_alone_is_enough(tmp_path: Path) -> None:
    """Whoever sets the cell and rings the supervisor ends the broker."""
    with broker(tmp_path).start() as demo:
        demo.positions.set(Position.STORE_FAILED, 1)
        assert demo.wait() == 74


@pytest.mark.parametrize("broken", [False, True])
def test_dead_flushers_data_is_synced_first(tmp_path: Path, broken: bool) -> None:
    """A flusher dies with unsynced data: the supervisor's own descriptors decide whether it is replaced."""
    log = tmp_path / "store/commitlog"
    log.mkdir(parents=True)
    (log / f"{0:020d}").write_bytes(b"unsynced")
    with broker(tmp_path, broken_sync=broken).start() as demo:
        demo.positions.set(Position.APPENDED, 8)
        links = Path(f"/proc/{demo.pid}/fd")
        wait_until(
            lambda: any(os.path.realpath(link).startswith(str(log)) for link in links.iterdir()),
            "the supervisor follows the log",
        )
        demo.kill("flusher")
        if broken:
            assert demo.wait() == 74
            last = demo.log.splitlines()[-1]
            assert f"{log}/{0:020d} (from log offset 0) cannot be synced: Input/output error" in last
            assert demo.role("flusher", RoleCell.INCARNATION) == 1
        else:
            demo.wait_running("flusher", 2)


def test_slow_start_is_reported(tmp_path: Path) -> None:
    """A role that takes long before it serves is named once; nothing is killed."""
    names = BROKER | {"recovery": "SlowRecovery"}
    with broker(tmp_path, names, settings={"silence_ms": 500}).begin() as demo:
        wait_until(lambda: "recovery is still starting" in demo.log, "the report")
        assert demo.stop() == 0


def test_fault_point_kills_once(tmp_path: Path) -> None:
    """An armed fault kills the first incarnation; its successor passes the same point."""
    with broker(tmp_path, environment={"ACTORMQ_FAULT": "demo.say:2"}).start() as demo:
        writer = demo.ref("holder")
        assert writer.ask(roles.Say("1"), block=True)["incarnation"] == 1
        with pytest.raises(ActorDeadError):
            writer.ask(roles.Say("2"), block=True)
        demo.wait_running("holder", 2)
        for text in ("3", "4", "5"):
            assert writer.ask(roles.Say(text), block=True)["incarnation"] == 2


def test_dead_incarnations_leave_no_sockets(tmp_path: Path) -> None:
    """The run folder holds one mailbox per living role, however often they died."""
    with broker(tmp_path).start() as demo:
        for incarnation in (2, 3, 4):
            demo.kill("holder")
            demo.wait_running("holder", incarnation)
        names = {path.name for path in demo.run_dir.iterdir()}
        assert names == {"owner", "holder.4", "writer.1", "flusher.1", "coordinator.1"}


def test_forkserver_that_is_busy_is_waited_for(tmp_path: Path) -> None:
    """It reports late how a role ended: that is not taken for an end that nobody knows of."""
    with broker(tmp_path).start() as demo:
        os.kill(demo.forkserver, signal.SIGSTOP)
        demo.kill("holder")
        beat = demo.heartbeat("writer")
        wait_until(lambda: demo.heartbeat("writer") != beat, "some time has passed")
        os.kill(demo.forkserver, signal.SIGCONT)
        demo.wait_running("holder", 2)
        assert "holder was killed by SIGKILL" in demo.log
        assert "exit status is unknown" not in demo.log


def test_forkserver_is_replaced(tmp_path: Path) -> None:
    """Its death ends no role; the next role comes from a new one."""
    with broker(tmp_path).start() as demo:
        pids = demo.pids()
        os.kill(demo.forkserver, signal.SIGKILL)
        wait_until(lambda: "the forkserver died" in demo.log, "the log line")
        assert demo.pids() == pids
        demo.kill("holder")  # an orphan by now: nobody can say how it ended
        demo.wait_running("holder", 2)
        demo.kill("holder")
        demo.wait_running("holder", 3)
        assert "holder ended (its exit status is unknown)" in demo.log
        assert "holder was killed by SIGKILL" in demo.log
        assert demo.stop() == 0


# -- death of the supervisor


def test_supervisors_death_ends_everyone(tmp_path: Path) -> None:
    """kill -9 of the supervisor: every process ends by itself; the next start sweeps and works."""
    with broker(tmp_path).start() as demo:
        pids = [demo.forkserver, *demo.pids()]
        demo.process.kill()
        demo.process.wait()
        wait_until(lambda: not any(alive(pid) for pid in pids), "everyone is gone")
        left = demo.run_dir
    # As a broker that was killed while starting:
    orphan = Segment.create(prefix_of(tmp_path / "store"), "positions", 64)
    orphan.close()
    assert segments(tmp_path / "store")
    with broker(tmp_path).start() as demo:
        assert not left.exists()
        assert segments(tmp_path / "store") == []
        assert "swept what a dead broker left" in demo.log
        assert demo.stop() == 0


def test_living_run_folder_is_not_swept(tmp_path: Path) -> None:
    """Two brokers on different stores do not touch each other's folders."""
    with broker(tmp_path).start() as first, Demo(tmp_path / "other", {"holder": "Echo"}).start() as second:
        assert first.run_dir.exists()
        assert second.run_dir.exists()
        assert first.ref("holder").ask(roles.Say("1"), block=True)["text"] == "1"


def test_second_broker_on_the_same_store_is_refused(tmp_path: Path) -> None:
    """One sentence with the first one's pid, exit 2; the first is not disturbed."""
    with broker(tmp_path).start() as first:
        second = Demo(tmp_path / "store", BROKER)
        second.log_file = tmp_path / "second.log"
        with second.begin():
            assert second.wait() == 2
            assert f"another broker (process {first.pid}) works on" in second.log
            assert "Traceback" not in second.log
        assert first.ref("holder").ask(roles.Say("hello"), block=True)["text"] == "hello"


def test_survivors_of_a_dead_broker_are_named(tmp_path: Path) -> None:
    """A role that outlives its supervisor (SIGSTOP) holds the folder: 2 s, then a refusal with its pid."""
    with broker(tmp_path).start() as demo:
        survivor = demo.pid_of("flusher")
        others = {*demo.pids()} - {survivor}
        os.kill(survivor, signal.SIGSTOP)
        demo.process.kill()
        demo.process.wait()
        try:
            wait_until(lambda: not any(map(alive, others)), "the others are gone")
            lock = StoreLock(tmp_path / "store")
            started = time.monotonic()
            with pytest.raises(StoreLocked, match=rf"process {survivor}\b"):
                lock.own(wait_ms=200)
            assert time.monotonic() - started >= 0.2
        finally:
            os.kill(survivor, signal.SIGCONT)
        lock = StoreLock(tmp_path / "store")
        lock.own(wait_ms=int(DEADLINE_S * 1000))
        wait_until(lambda: not alive(survivor), "its end, which lets go of the lock a moment earlier")
        lock.close()


# -- sockets, log, systemd


def test_listening_sockets_outlive_roles(tmp_path: Path) -> None:
    """Gateways share one port; a connection made while one is dead waits for its successor."""
    names = {"gateway-0": "Greeter", "gateway-1": "Greeter"}
    fronts = {"tcp": 0}
    with Demo(tmp_path / "store", names, fronts=fronts, keeps_store=False).start() as demo:
        host, port = demo.addresses["gateway.tcp"]
        seen = set()

        def greet() -> int:
            with socket.create_connection((host, port), timeout=DEADLINE_S) as client:
                return int(client.makefile().readline())

        wait_until(lambda: seen.add(greet()) or len(seen) == 2, "both gateways")
        assert seen == set(demo.pids())
        demo.kill("gateway-0")
        demo.kill("gateway-1")
        assert greet() not in seen


def test_port_in_use_is_refused(tmp_path: Path) -> None:
    """An explicit port that somebody listens on: one sentence, exit 2 (SO_REUSEPORT would join it)."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        names = {"gateway-0": "Greeter"}
        with Demo(tmp_path / "store", names, fronts={"tcp": port}, keeps_store=False).begin() as demo:
            assert demo.wait() == 2
            assert f"cannot listen on 127.0.0.1:{port}" in demo.log
            assert "Traceback" not in demo.log


def test_log_goes_to_the_file(tmp_path: Path) -> None:
    """With a log path everything is in that file: the supervisor's lines and the roles', each with a pid."""
    path = tmp_path / "logs/broker.log"
    with broker(tmp_path, log_path=path).start() as demo:
        pid = demo.pid_of("holder")
        demo.stop()
        text = path.read_text()
        assert re.search(rf"INFO holder\[{pid}\] demo role starts", text)
        assert re.search(rf"INFO supervisor\[{demo.pid}\] ready seconds=", text)
        assert demo.log == ""


def test_supervisor_imports_no_role_and_nothing_big() -> None:
    """Its process stays small: no ZeroMQ, pykka, asyncio, multiprocessing, typer."""
    program = "import sys, actormq.actors.supervisor; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    heavy = {"zmq", "pykka", "asyncio", "multiprocessing", "typer", "rich", "ctypes", "subprocess", "pickle"}
    heavy |= {"hashlib", "shutil", "tempfile"}
    assert not heavy & set(modules.stdout.split())
