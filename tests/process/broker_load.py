"""A broker under load: producers with keyed order, two groups of consumers, faults in between, a verdict.

Half of the clients talk ZeroMQ, half RocketMQ's TCP.  Besides the keyed messages some are delayed, so that
the scheduler works, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from actormq_process import Dev, start_dev
from faults import checker
from process.load_client import queue_name
from process.load_story import Fault, Look, Result, Story, cost_of

from actormq.wire.command import RemotingCommand
from actormq.wire.frame import decode, encode

HERE = Path(__file__).parent
ROLES = (
    "writer", "flusher", "dispatcher", "holder", "coordinator", "scheduler", "cleaner", "nameserver",
    "gateway-0", "gateway-1",
)  # fmt: skip
TOPIC = "load"
GATEWAYS = 3
QUEUES = 16
GROUPS = ("first", "second")
PRODUCERS = 2
KEYS_EACH = 4
CONSUMERS_EACH = 2
DELAYED_A_SECOND = 10
"""Of each producer."""
LOG_LINE = re.compile(r"(?P<at>\S+ \S+) \w+ supervisor\S* (?P<role>\S+) (?P<what>was killed by|runs again)")
PATIENCE_S = 60.0
ANSWER_S = 20.0
OFFSETS_EVERY_S = 0.25
CANARY_EVERY_NS = 50_000_000
QUERY_OFFSET = 14
CREATE_TOPIC = 17
MAX_OFFSET = 30
DELETE_TOPIC = 215
GET_ROLES = 300_001


def _monotonic_ns(wall: str) -> int:
    """Return the time of a log line on the histories' clock."""
    at = datetime.fromisoformat(wall).timestamp()
    return int((at - time.time() + time.monotonic()) * 1e9)


def await_true(what: str, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Return when `condition()` holds; AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


class Peer:
    """A blocking connection to the broker."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), ANSWER_S)
        self._stream = self._socket.makefile("rb")

    def ask(self, code: int, fields: dict[str, str] | None = None) -> RemotingCommand:
        """Raises: OSError: no answer."""
        self._socket.sendall(encode(RemotingCommand.request(code, fields or {})))
        head = self._stream.read(4)
        if len(head) < 4:
            raise ConnectionError("the broker closed the connection")
        return decode(self._stream.read(int.from_bytes(head, "big")))

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


def call(address: str, code: int, fields: dict[str, str] | None = None) -> RemotingCommand:
    """Ask the broker one question on a connection of its own."""
    peer = Peer(address)
    try:
        return peer.ask(code, fields)
    finally:
        peer.close()


class OffsetWatcher:
    """Reads all committed offsets again and again, and notes them: none may go back."""

    def __init__(self, load: Load, path: Path) -> None:
        self._load = load
        self._history = checker.History(path)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(2 * ANSWER_S)
        assert not self._thread.is_alive()
        self._history.close()

    def _run(self) -> None:
        peer: Peer | None = None
        while not self._over.wait(OFFSETS_EVERY_S):
            try:
                peer = peer or Peer(self._load.dev.broker)
                self._look(peer)
            except OSError:  # its gateway was killed, or stopped
                if peer is not None:
                    peer.close()
                peer = None
        if peer is not None:
            peer.close()

    def _look(self, peer: Peer) -> None:
        for group in GROUPS:
            for queue in range(QUEUES):
                fields = {"consumerGroup": group, "topic": TOPIC, "queueId": str(queue)}
                answer = peer.ask(QUERY_OFFSET, fields)
                if answer.code == 0:
                    self._history.commit(group, queue_name(queue), int(answer.fields["offset"]))


class Canary:
    """Sees how slow the machine itself is: a gap that it shares is not the broker's."""

    def __init__(self, path: Path) -> None:
        self.looks: list[Look] = []
        self._path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT)
        due_ns = time.monotonic_ns()
        while not self._over.wait(max(0, due_ns - time.monotonic_ns()) / 1e9):
            began_ns = time.monotonic_ns()
            os.pwrite(fd, b"%20d" % began_ns, 0)
            os.fdatasync(fd)
            ended_ns = time.monotonic_ns()
            self.looks.append(Look(began_ns, ended_ns, began_ns - due_ns))
            due_ns = ended_ns + CANARY_EVERY_NS
        os.close(fd)


@dataclass
class Load:
    """Everything that runs in one test, and the history files it leaves."""

    dev: Dev
    folder: Path
    flush: str
    delayed_a_second: int = DELAYED_A_SECOND
    story: Story = field(default_factory=Story)
    clients: list[subprocess.Popen[str]] = field(default_factory=list)
    producers: list[subprocess.Popen[str]] = field(default_factory=list)
    histories: list[Path] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ended_ns: int = 0
    watcher: OffsetWatcher | None = None
    canary: Canary | None = None

    # -- clients

    def _new_history(self) -> Path:
        path = self.folder / f"history-{len(self.histories)}.jsonl"
        self.histories.append(path)
        return path

    def start_client(self, kind: str, *arguments: str) -> subprocess.Popen[str]:
        """Start one client process."""
        history = self._new_history()
        self.story.follow(history)
        native = len(self.clients) % 2 == 0
        url = f"zmq://{self.dev.namesrv_zmq}" if native else f"rocketmq://{self.dev.namesrv}"
        command = [sys.executable, str(HERE / "load_client.py"), kind, url, TOPIC]
        command += [str(history), *arguments] if kind == "produce" else [*arguments, str(history)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.clients.append(process)
        return process

    def start_clients(self) -> None:
        """Start consumers and producers; return when all queues are shared and messages flow."""
        for group in GROUPS:
            for _ in range(CONSUMERS_EACH):
                self.start_client("consume", group)
        for number in range(PRODUCERS):
            keys = ",".join(f"p{number}k{key}" for key in range(KEYS_EACH))
            self.producers.append(self.start_client("produce", keys, str(self.delayed_a_second)))
        for process in self.clients:
            assert process.stdout
            assert process.stdout.readline().strip() == "running"
        self.watcher = OffsetWatcher(self, self._new_history())
        self.canary = Canary(self.folder / "canary")
        await_true("fair shares of all queues", self._is_shared)
        self.await_flow(time.monotonic_ns())

    def _is_shared(self) -> bool:
        self.story.read()
        fair = [QUEUES // CONSUMERS_EACH] * CONSUMERS_EACH
        return all(self.story.shares(group) == fair for group in GROUPS)

    def await_flow(self, since_ns: int, messages: int = 10) -> None:
        """Return once every producer thread has had so many acknowledgements since, and groups receive."""

        def flows() -> bool:
            self.story.read()
            return self.story.flows_since(since_ns, messages, PRODUCERS * KEYS_EACH, len(GROUPS))

        await_true("every key flows to every group", flows)

    # -- roles and what is done to them

    def roles(self) -> dict[str, dict[str, Any]]:
        """Return what the broker says of each role; nothing when the gateway that we asked died."""
        try:
            answer = call(self.dev.broker, GET_ROLES)
        except OSError:
            return {}
        return {role["role"]: role for role in json.loads(bytes(answer.body))["roles"]}

    def pid_of(self, role: str) -> int:
        """Return the process id of a running role, 0 while it does not run."""
        row = self.roles().get(role, {})
        return int(row["pid"]) if row.get("state") in ("RUNNING", "WRITING", "SYNCING") else 0

    def kill(self, *roles: str) -> None:
        """Kill roles, all at once, and return when their successors run."""
        before = {role: self.pid_of(role) for role in roles}
        assert all(before.values()), f"they do not all run: {before}"
        fault = Fault("kill", "+".join(roles), time.monotonic_ns())
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        self.faults.append(fault)
        for role, pid in before.items():
            self._await_other(role, pid)
        fault.back_ns = time.monotonic_ns()

    def _await_other(self, role: str, pid: int) -> None:
        await_true(f"a new {role}", lambda: self.pid_of(role) not in (0, pid))

    def kill_supervisor(self, *, gone_s: float = PATIENCE_S) -> None:
        """Kill the supervisor and return when everybody is gone; `restart` comes next.

        Args:
            gone_s: how long the others may take.
        """
        self._end_watch()
        family = processes_of(self.dev)
        self._kill_family(family[:1])
        self._await_end(family, gone_s)

    def cut_power(self, meanwhile: Callable[[], None]) -> None:
        """Kill every process at once and return when they are gone; `restart` comes next.

        Args:
            meanwhile: done when none of them can do anything any more.  Who is inside a call of a frozen disk
                is not gone yet, but does not come back from it.
        """
        self._end_watch()
        family = processes_of(self.dev)
        self._kill_family(family)
        meanwhile()
        self._await_end(family)

    def _kill_family(self, family: list[psutil.Process]) -> None:
        self.faults.append(Fault("kill", "supervisor", time.monotonic_ns()))
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _await_end(self, family: list[psutil.Process], seconds: float = PATIENCE_S) -> None:
        await_true("every process is gone", lambda: not any(map(runs, family)), seconds)
        self.dev.process.wait()

    def end_broker(self) -> int:
        """Ask the broker to stop, under load, and return its exit status; `restart` comes next."""
        self._end_watch()
        self.faults.append(Fault("end", "supervisor", time.monotonic_ns()))
        return self.dev.stop()

    def _end_watch(self) -> None:
        """A new broker has the offsets that were saved last, and no locks (nor has RocketMQ): not judged."""
        if self.watcher is not None:
            self.watcher.stop()
        self.watcher = None

    def hold(self, role: str, seconds: float) -> None:
        """Stop a role for some time; it must be the same process afterwards."""
        pid = self.pid_of(role)
        fault = Fault("stop", role, time.monotonic_ns())
        os.kill(pid, signal.SIGSTOP)
        self.faults.append(fault)
        try:
            time.sleep(seconds)  # the length is what is tested
        finally:
            os.kill(pid, signal.SIGCONT)
        fault.back_ns = time.monotonic_ns()
        heard_of = 0

        def is_heard_of() -> bool:
            nonlocal heard_of
            heard_of = self.pid_of(role)  # none where we ask a gateway that closes all connections
            return heard_of > 0

        await_true(f"{role} is heard of", is_heard_of)
        assert heard_of == pid, f"{role} was replaced although it lived"

    def await_incarnation(self, role: str, incarnation: int) -> None:
        """Return when a role has been replaced so often."""

        def replaced() -> bool:
            row = self.roles().get(role, {})
            return bool(row.get("incarnation", 0) >= incarnation and row["state"] != "STARTING")

        await_true(f"incarnation {incarnation} of {role}", replaced)

    def note_deaths(self, count: int = 1) -> None:
        """Take so many faults from the broker's log, as soon as it has them."""
        await_true("deaths in the log", lambda: len(self._deaths()) >= count)
        self.faults += self._deaths()

    def _deaths(self) -> list[Fault]:
        """Return, by the log, when who died and when his successor ran."""
        died: dict[str, Fault] = {}
        ended = []
        for found in filter(None, map(LOG_LINE.match, list(self.dev.errors))):
            at_ns = _monotonic_ns(found["at"])
            if found["what"].startswith("was killed"):
                died[found["role"]] = Fault("point", found["role"], at_ns)
            elif found["role"] in died:
                fault = died.pop(found["role"])
                fault.back_ns = at_ns
                ended.append(fault)
        return ended

    def incarnations(self) -> dict[str, int]:
        """Return how often each role has begun."""
        await_true("an answer about roles", lambda: bool(self.roles()))
        found = self.roles()
        return {role: found[role]["incarnation"] for role in (*ROLES, "gateway-2")}

    def restart(self, env: dict[str, str] | None = None) -> None:
        """Start the dead broker again, on the same ports."""
        self.dev = start_dev(self.dev.data_dir, flush=self.flush, gateways=GATEWAYS, like=self.dev, env=env)
        if self.faults:
            self.faults[-1].back_ns = time.monotonic_ns()
        self._note_restart()

    def _note_restart(self) -> None:
        """Note every queue's end: nobody may have received more."""
        history = checker.History(self._new_history())
        for queue in range(QUEUES):
            asked_ns = time.monotonic_ns()
            answer = call(self.dev.broker, MAX_OFFSET, {"topic": TOPIC, "queueId": str(queue)})
            history.end(queue_name(queue), int(answer.fields["offset"]), asked_ns)
        history.close()

    # -- the end

    def finish(self, **options: Any) -> checker.Verdict:
        """Stop the producers, let every group catch up, stop the consumers, and judge (`checker.judge`)."""
        self.ended_ns = time.monotonic_ns()
        for process in self.producers:
            process.send_signal(signal.SIGTERM)
        for process in self.producers:
            assert process.wait(PATIENCE_S) == 0
        # Whoever never catches up has lost messages: the checker says which, better than a time-out would.
        with contextlib.suppress(AssertionError):
            await_true("everything is received", self._all_received)
        for process in self.clients:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.clients:
            process.wait(PATIENCE_S)
        for helper in (self.watcher, self.canary):
            if helper is not None:
                helper.stop()
        self.story.read()
        history = checker.History(self._new_history())
        for group in GROUPS:
            history.expect(group)
        history.close()
        return checker.check(self.histories, **options)

    def _all_received(self) -> bool:
        self.story.read()
        return not self.story.missing(GROUPS)

    def result(self, name: str, verdict: checker.Verdict) -> Result:
        """Return what this run is to the table."""
        ends = [*(fault.at_ns for fault in self.faults[1:]), self.ended_ns]
        looks = self.canary.looks if self.canary is not None else []
        return Result(
            name,
            verdict,
            [cost_of(self.story, fault, end, looks) for fault, end in zip(self.faults, ends, strict=True)],
            round(os.getloadavg()[0], 1),
            Counter(text for _, text in self.story.warned),
        )


@contextmanager
def broker_under_load(
    *,
    flush: str = "async",
    clients: bool = True,
    env: dict[str, str] | None = None,
    delayed_a_second: int = DELAYED_A_SECOND,
    data: Path | None = None,
) -> Iterator[Load]:
    """Run `actormq dev` with clients for the length of a block; end whatever is left.

    Args:
        data: where the store lies; None = in a temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix="actormq-load-") as name:
        folder = Path(name)
        dev = start_dev(data or folder / "data", flush=flush, gateways=GATEWAYS, env=env)
        load = Load(dev, folder, flush, delayed_a_second)
        try:
            fields = {
                "topic": TOPIC, "defaultTopic": "TBW102", "readQueueNums": str(QUEUES),
                "writeQueueNums": str(QUEUES), "perm": "6", "topicFilterType": "SINGLE_TAG", "order": "false",
            }  # fmt: skip
            assert call(dev.broker, CREATE_TOPIC, fields).code == 0
            if clients:
                load.start_clients()
            yield load
        finally:
            for process in load.clients:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            load.dev.stop()
            kept = os.environ.get("ACTORMQ_KEEP_HISTORIES")
            if kept:
                keep(load, Path(kept))


def keep(load: Load, folder: Path) -> None:
    """Copy what a run left behind, to be looked at."""
    folder = folder / time.strftime("%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    for path in load.histories:
        if path.exists():
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broker.log").write_text("".join(load.dev.errors))
    (folder / "faults.json").write_text(
        json.dumps([[f.kind, f.role, f.at_ns, f.back_ns] for f in load.faults])
    )


def runs(process: psutil.Process) -> bool:
    """Whether a process still does anything; one that nobody has reaped yet (a container's init) does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def processes_of(dev: Dev) -> list[psutil.Process]:
    """Return the supervisor and everything it started."""
    root = psutil.Process(dev.process.pid)
    return [root, *root.children(recursive=True)]
