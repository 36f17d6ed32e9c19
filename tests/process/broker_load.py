"""A broker under load: producers with keyed order, two groups of consumers, faults in between, a verdict."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from actormq_process import Dev, start_dev
from faults import checker

from actormq.wire.command import RemotingCommand
from actormq.wire.frame import decode, encode

HERE = Path(__file__).parent
TOPIC = "load"
QUEUES = 16
GROUPS = ("first", "second")
PATIENCE_S = 60.0
GET_ROLES = 300_001
CREATE_TOPIC = 17


def await_true(what: str, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Return when `condition()` holds; AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def call(address: str, code: int, fields: dict[str, str] | None = None) -> RemotingCommand:
    """Ask the broker one question on a connection of its own."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(encode(RemotingCommand.request(code, fields or {})))
        stream = connection.makefile("rb")
        return decode(stream.read(int.from_bytes(stream.read(4), "big")))


@dataclass
class Load:
    """Everything that runs in one test, and the history files it leaves."""

    dev: Dev
    folder: Path
    clients: list[subprocess.Popen[str]] = field(default_factory=list)
    producers: list[subprocess.Popen[str]] = field(default_factory=list)
    histories: list[Path] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"zmq://{self.dev.namesrv_zmq}"

    def start_client(self, kind: str, *arguments: str) -> subprocess.Popen[str]:
        """Start one client process; returns when it runs."""
        history = self.folder / f"history-{len(self.histories)}.jsonl"
        self.histories.append(history)
        command = [sys.executable, str(HERE / "load_client.py"), kind, self.url, TOPIC]
        command += [str(history), *arguments] if kind == "produce" else [*arguments, str(history)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout
        assert process.stdout.readline().strip() == "running"
        self.clients.append(process)
        return process

    def start_clients(self, producers: int = 2, keys_each: int = 4, consumers_each: int = 2) -> None:
        """Start consumers of both groups, then producers."""
        for group in GROUPS:
            for _ in range(consumers_each):
                self.start_client("consume", group)
        for number in range(producers):
            keys = ",".join(f"p{number}k{key}" for key in range(keys_each))
            self.producers.append(self.start_client("produce", keys))

    def roles(self) -> dict[str, int]:
        """Return the process id of each role, as the broker itself tells."""
        answer = call(self.dev.broker, GET_ROLES)
        return {role["role"]: role["pid"] for role in json.loads(bytes(answer.body))["roles"]}

    def acknowledged(self) -> int:
        """Return how many messages have been acknowledged so far."""
        return sum(history.read_bytes().count(b',"ack",') for history in self.histories if history.exists())

    def await_progress(self, messages: int = 200) -> float:
        """Return once `messages` more have been acknowledged, and how many seconds that took."""
        began, target = time.monotonic(), self.acknowledged() + messages
        await_true(f"{messages} more acknowledgements", lambda: self.acknowledged() >= target)
        return time.monotonic() - began

    def finish(self) -> checker.Verdict:
        """Stop the producers, let every group catch up, stop the consumers, and judge."""
        for process in self.producers:
            process.send_signal(signal.SIGTERM)
        for process in self.producers:
            assert process.wait(PATIENCE_S) == 0
        self._await_consumed()
        for process in self.clients:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE_S)
        end = self.folder / "end.jsonl"
        history = checker.History(end)
        for group in GROUPS:
            history.expect(group)
        return checker.check([*self.histories, end])

    def _await_consumed(self) -> None:
        acknowledged = set()
        received: dict[str, set[str]] = {group: set() for group in GROUPS}
        done = dict.fromkeys(self.histories, 0)

        def caught_up() -> bool:
            for path in self.histories:
                with path.open("rb") as stream:
                    stream.seek(done[path])
                    data = stream.read()
                data = data[: data.rfind(b"\n") + 1]
                done[path] += len(data)
                for line in data.splitlines():
                    event = json.loads(line)
                    if event[1] == "ack":
                        acknowledged.add(event[2])
                    elif event[1] == "recv":
                        received[event[2]].add(event[5])
            return all(acknowledged <= got for got in received.values())

        # Whoever never catches up has lost messages: the checker says which, better than a time-out would.
        deadline = time.monotonic() + PATIENCE_S
        while not caught_up() and time.monotonic() < deadline:
            time.sleep(0.05)


@contextmanager
def broker_under_load(*, flush: str = "async", gateways: int = 3, clients: bool = True) -> Iterator[Load]:
    """Run `actormq dev` with clients for the length of a block; end whatever is left."""
    with tempfile.TemporaryDirectory(prefix="actormq-load-") as name:
        folder = Path(name)
        dev = start_dev(folder / "data", flush=flush, gateways=gateways)
        load = Load(dev, folder)
        try:
            fields = {
                "topic": TOPIC, "defaultTopic": "TBW102", "readQueueNums": str(QUEUES),
                "writeQueueNums": str(QUEUES), "perm": "6", "topicFilterType": "SINGLE_TAG", "order": "false",
            }  # fmt: skip
            assert call(dev.broker, CREATE_TOPIC, fields).code == 0
            if clients:
                load.start_clients()
                load.await_progress()
            yield load
        finally:
            for process in load.clients:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            dev.stop()


def processes_of(dev: Dev) -> list[psutil.Process]:
    """Return the supervisor and everything it started."""
    root = psutil.Process(dev.process.pid)
    return [root, *root.children(recursive=True)]
