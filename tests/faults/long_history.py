"""A long history, and what the checker takes for it.

As a program: ``python -m faults.long_history [MESSAGES]`` (in ``tests``) writes one of ten million messages,
2 GB, and prints what judging it took; writing does not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

MESSAGES = 10_000_000
PROCESSES = 2
"""Producers, and consumers."""
KEYS = 16
"""Each sends to a queue of its own, one message after the other."""
GROUP = "group"
STEP_NS = 1000
ACK_STEPS, RECV_STEPS = 5, 9
"""A message is acknowledged, and received, when so many more have been sent."""
COMMIT_EVERY = 32
FILE_BUFFER_BYTES = 1 << 20


def events(messages: int) -> Iterator[tuple[str, list[Any]]]:
    """Yield the name of a process and what it writes: a good history, in the order of time."""
    for number in range(KEYS):
        yield f"consumer-{number % PROCESSES}", [0, "session", GROUP, f"queue-{number}"]
    for step in range(messages + RECV_STEPS):
        at_ns = (step + 1) * STEP_NS
        if step < messages:
            key, name, digest = _message(step)
            process = f"producer-{step % PROCESSES}"
            yield process, [at_ns, "send", name, f"key-{key}", step // KEYS, digest]
        if 0 <= (number := step - ACK_STEPS) < messages:
            key, name, _ = _message(number)
            yield f"producer-{number % PROCESSES}", [at_ns + 1, "ack", name, f"queue-{key}", number // KEYS]
        if 0 <= (number := step - RECV_STEPS) < messages:
            key, name, digest = _message(number)
            process, offset = f"consumer-{number % PROCESSES}", number // KEYS
            yield process, [at_ns + 2, "recv", GROUP, f"queue-{key}", offset, name, digest]
            if offset % COMMIT_EVERY == 0:
                yield "watcher", [at_ns + 3, "commit", GROUP, f"queue-{key}", offset + 1]
    yield "watcher", [at_ns + 4, "expect", GROUP]


def _message(number: int) -> tuple[int, str, str]:
    """Return the key, name and digest of a message."""
    key = number % KEYS
    return key, f"key-{key}-{number // KEYS}", f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def write(folder: Path, messages: int) -> list[Path]:
    """Write a long history's files and return them."""
    names = [f"{kind}-{number}" for kind in ("producer", "consumer") for number in range(PROCESSES)]
    paths = {name: folder / name for name in (*names, "watcher")}
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(open(path, "wb", FILE_BUFFER_BYTES)) for name, path in paths.items()
        }
        for name, event in events(messages):
            files[name].write(orjson.dumps(event) + b"\n")
    return list(paths.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the checker said of a history, and what that took."""

    clean: bool
    said: str
    seconds: float
    cpu_seconds: float
    memory_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.said}{self.seconds:.1f} s, {self.cpu_seconds:.1f} s CPU, {self.memory_bytes / 1e9:.2f} GB"
        )


def measure(paths: list[Path]) -> Cost:
    """Run the checker as a process of its own."""
    command = [sys.executable, "-m", "faults.checker", *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return Cost(
        clean=process.returncode == 0,
        said=said,
        seconds=time.monotonic() - began,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        memory_bytes=usage.ru_maxrss * 1024,
    )


def main() -> int:
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else MESSAGES
    with tempfile.TemporaryDirectory(prefix="actormq-history-") as folder:
        cost = measure(write(Path(folder), messages))
    print(cost)
    return 0 if cost.clean else 1


if __name__ == "__main__":
    sys.exit(main())
