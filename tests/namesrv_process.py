"""Start `actormq namesrv` as a user would, on free ports, and wait for its ready line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

READY = re.compile(r"ready in [\d.]+ s namesrv=(\S+) namesrv-zmq=(\S+) pid=(\d+) kernels=\w+\n")


@dataclass
class NameServer:
    """One running name server."""

    process: subprocess.Popen[str]
    tcp: str
    zmq: str
    log: Path

    def role(self) -> psutil.Process:
        """The role's process; the supervisor is its parent's parent."""
        names = {child.name(): child for child in psutil.Process(self.process.pid).children(recursive=True)}
        return names["amq:nameserver"]


@contextmanager
def running(folder: Path, *arguments: str, **environ: str) -> Iterator[NameServer]:
    command = [sys.executable, "-m", "actormq.cli.main", "namesrv", "--port", "0", "--zmq-port", "0"]
    log = folder / "stderr"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--data-dir", str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environ},
        )
    assert process.stdout is not None
    try:
        ready = READY.fullmatch(process.stdout.readline())
        assert ready is not None, log.read_text()
        yield NameServer(process, ready[1], ready[2], log)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
