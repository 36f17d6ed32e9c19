"""Actors in processes: ask, tell and death as seen from other processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from process import demo_roles as roles
from process.demo import Demo, wait_until

from actormq.actors.mailbox import ActorDeadError, MailboxFull, Timeout
from actormq.errors import PeerError, RequestError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    store = tmp_path_factory.mktemp("actors") / "store"
    names = {
        "holder": "Echo",
        "coordinator": "PortClient",
        "writer": "PortServer",
        "scheduler": "Ticker",
    }
    with Demo(store, names, ports=("coordinator",), keeps_store=False) as demo:
        yield demo.start()


def test_ask_answers_across_processes(demo: Demo) -> None:
    """An ask is answered by the other process, with the type that was asked for."""
    said = demo.ref("holder").ask(roles.Say("hello"), block=True, reply_type=roles.Said)
    assert said == roles.Said("hello", demo.pid_of("holder"), 1)
    assert said.pid not in (os.getpid(), demo.pid)


def test_answers_find_their_questions(demo: Demo) -> None:
    """Many questions at once to several roles: each future gets its own answer."""
    asked = [
        (f"{role} {number}", demo.ref(role).ask(roles.Say(f"{role} {number}"), reply_type=roles.Said))
        for number in range(200)
        for role in ("holder", "writer", "coordinator")
    ]
    for text, future in asked:
        assert future.get().text == text


def test_ask_times_out(demo: Demo) -> None:
    """A question that is never answered ends in Timeout, and a late get says so again."""
    future = demo.ref("holder").ask(roles.Keep(), timeout=0.05)
    with pytest.raises(Timeout):
        future.get()
    with pytest.raises(Timeout):
        future.get()


def test_get_may_give_up_earlier_than_the_question(demo: Demo) -> None:
    """`get(timeout=…)` raises Timeout but leaves the question open, as in pykka."""
    future = demo.ref("holder").ask(roles.Keep(), timeout=30)
    with pytest.raises(Timeout):
        future.get(timeout=0.02)
    assert not future.done


def test_refusal_reaches_who_asked(demo: Demo) -> None:
    """A PeerError of the role becomes a RequestError with its code and remark; the role lives on."""
    with pytest.raises(RequestError, match="not like this") as caught:
        demo.ref("holder").ask(roles.Refuse(), block=True)
    assert caught.value.response_code == 13
    assert demo.ref("holder").ask(roles.Say("still here"), block=True)["text"] == "still here"


def test_wrong_reply_type_is_the_peers_fault(demo: Demo) -> None:
    """An answer that is not what was asked for raises PeerError instead of handing on junk."""
    with pytest.raises(PeerError):
        demo.ref("holder").ask(roles.Say("text"), block=True, reply_type=int)


def test_unknown_message_is_dropped(demo: Demo) -> None:
    """A message that the role does not list is no reason to die; who asked sees a time-out."""
    with pytest.raises(Timeout):
        demo.ref("holder").ask(roles.Said("I am an answer", 0, 0), block=True, timeout=0.1)
    assert demo.ref("holder").ask(roles.Say("still here"), block=True)["text"] == "still here"


@pytest.mark.parametrize("block", [True, False])
def test_roles_ask_each_other(demo: Demo, block: bool) -> None:
    """A role asks another one, waiting inside its loop or with a callback."""
    answer = demo.ref("coordinator").ask(roles.Forward("holder", "around", block), block=True)
    assert answer["text"] == "around"
    assert answer["pid"] == demo.pid_of("holder")


def test_messages_wait_while_a_role_waits_for_an_answer(demo: Demo) -> None:
    """What comes in while a role blocks in an ask is handled afterwards, in order."""
    coordinator = demo.ref("coordinator")
    first = coordinator.ask(roles.Forward("holder", "first", block=True))
    others = [coordinator.ask(roles.Say(str(number))) for number in range(20)]
    assert first.get()["text"] == "first"
    assert [future.get()["text"] for future in others] == [str(number) for number in range(20)]


def test_ports_carry_bytes_both_ways(demo: Demo) -> None:
    """A port's two rings and the doorbells connect client and server."""
    futures = [demo.ref("coordinator").ask(roles.Ring(f"text {number}")) for number in range(100)]
    assert [future.get() for future in futures] == [f"TEXT {number}" for number in range(100)]


def test_ticks_come_and_never_early(demo: Demo) -> None:
    """`on_tick` runs at `wake_at_ns`, without any message to wake the role (the role asserts: not early)."""
    history = wait_until(
        lambda: (got := demo.ref("scheduler").ask(roles.History(), block=True))[-1] == "tick 5" and got,
        "five ticks",
    )
    assert history == ["start", *(f"tick {number}" for number in range(1, 6))]


def test_dead_role_is_dead_to_who_asks(tmp_path: Path) -> None:
    """Killed while it owes answers: each ask ends in ActorDeadError, long before its time-out."""
    with Demo(tmp_path / "store", {"holder": "Echo", "writer": "Echo"}, keeps_store=False) as demo:
        demo.start()
        holder = demo.ref("holder")
        futures = [holder.ask(roles.Keep(), timeout=60) for _ in range(3)]
        demo.kill("holder")
        for future in futures:
            with pytest.raises(ActorDeadError):
                future.get()
        demo.wait_running("holder", 2)
        assert holder.ask(roles.Say("again"), block=True, reply_type=roles.Said).incarnation == 2


def test_dead_role_is_dead_to_a_role_that_asked(tmp_path: Path) -> None:
    """A role's own pending question fails, too: its callback runs, and here kills it with a traceback."""
    with Demo(tmp_path / "store", {"holder": "Echo", "writer": "Echo"}, keeps_store=False) as demo:
        demo.start()
        os.kill(demo.pid_of("holder"), signal.SIGSTOP)  # it cannot answer
        future = demo.ref("writer").ask(roles.Forward("holder", "lost"), timeout=60)
        demo.ref("writer").ask(roles.Say("it has asked"), block=True)
        demo.kill("holder")
        with pytest.raises(ActorDeadError):
            future.get()
        wait_until(lambda: "ActorDeadError: holder died before it answered" in demo.log, "the writer's end")


def test_asking_nobody_fails_at_once(demo: Demo) -> None:
    """A role that does not run: ask fails, tell says that it was dropped."""
    with pytest.raises(ActorDeadError):
        demo.ref("checker").ask(roles.Say("?"), block=True)
    assert demo.ref("checker").tell(roles.Say("?")) is False
    assert not demo.ref("checker").is_alive()


def test_mailbox_of_a_stopped_role_is_bounded(tmp_path: Path) -> None:
    """SIGSTOP: who tells is never blocked; beyond the bound messages are dropped and asks say why."""
    with Demo(tmp_path / "store", {"holder": "Echo"}, keeps_store=False) as demo:
        demo.start()
        holder = demo.ref("holder")
        demo.kill("holder", signal.SIGSTOP)
        told = 0
        while holder.tell(roles.Say("x" * 100)):
            told += 1
            assert told < 100_000
        assert told >= 10_000
        with pytest.raises(MailboxFull):
            holder.ask(roles.Say("x"), block=True)
        demo.kill("holder", signal.SIGCONT)
        wait_until(lambda: holder.tell(roles.Say("y")), "room again")


def test_unknown_error_is_death_with_a_traceback(tmp_path: Path) -> None:
    """There is no catch-all: the role exits with 70, its traceback is in the log, a new one serves."""
    with Demo(tmp_path / "store", {"holder": "Echo"}, keeps_store=False) as demo:
        demo.start()
        with pytest.raises(ActorDeadError):
            demo.ref("holder").ask(roles.Die(), block=True)
        demo.wait_running("holder", 2)
        wait_until(lambda: "ZeroDivisionError: a bug in the demo role" in demo.log, "the traceback")
        wait_until(lambda: "holder exited with status 70" in demo.log, "the supervisor's word")


def test_idle_role_makes_at_most_two_system_calls_a_second(tmp_path: Path) -> None:
    """No polling: an idle role wakes once a second for its heartbeat (every thread of it counted)."""
    import shutil
    import subprocess

    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    names = {"holder": "Echo", "coordinator": "PortClient", "writer": "PortServer"}
    with Demo(tmp_path / "store", names, ports=("coordinator",), keeps_store=False) as demo:
        demo.start()
        demo.ref("coordinator").ask(roles.Ring("a round"), block=True)
        pids = {role: demo.pid_of(role) for role in names}
        pids |= {"supervisor": demo.pid, "forkserver": demo.forkserver}
        # Where the machine is busy, a thread may have been made and never run so far.
        wait_until(lambda: all(map(_is_asleep, pids.values())), "everybody sleeps")
        traces = {role: tmp_path / role for role in pids}
        commands = [["strace", "-f", "-p", str(pids[role]), "-o", str(traces[role])] for role in traces]
        tracers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
        beats = {role: [demo.heartbeat(role)] for role in names}

        def seen_beats() -> bool:
            for role, seen in beats.items():
                if demo.heartbeat(role) != seen[-1]:
                    seen.append(demo.heartbeat(role))
            return all(len(seen) > 4 for seen in beats.values())

        wait_until(seen_beats, "four heartbeats")
        for tracer in tracers:
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
        for role, trace in traces.items():
            calls = [line for line in trace.read_text().splitlines() if " resumed>" not in line]
            seconds = len(beats.get(role, beats["holder"]))
            in_progress = 3  # one interrupted poll per thread
            assert len(calls) <= 2 * seconds + in_progress, f"{role} made {len(calls)} in {seconds} s"


def _is_asleep(pid: int) -> bool:
    """Whether each thread of a process waits for something."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "S" for task in tasks)


def test_time_out_wakes_a_sleeping_role(demo: Demo) -> None:
    """A role's own question times out by itself, with nothing else going on."""
    started = time.monotonic()
    future = demo.ref("coordinator").ask(roles.ForwardKeep("holder", 0.05))
    assert future.get() == "Timeout"
    assert time.monotonic() - started >= 0.05
