"""Start `actormq namesrv` or `actormq broker` as a user would, and wait for the ready line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE_S = 60.0


@dataclass
class Server:
    """One running command.

    Attributes:
        words: the ready line's ``word=value`` pairs: ``namesrv``, ``broker``, ``zmq``, ``pid``, ``kernels`` …
        log: the file that holds its stderr.
    """

    process: subprocess.Popen[str]
    words: dict[str, str]
    log: Path

    def role(self, name: str) -> psutil.Process:
        """One role's process, somewhere below the supervisor."""
        names = {child.name(): child for child in psutil.Process(self.process.pid).children(recursive=True)}
        return names[f"amq:{name}"]


@contextmanager
def running(folder: Path, *arguments: str, **environ: str) -> Iterator[Server]:
    """Run ``actormq ARGUMENTS`` for the length of a block; stderr goes to a file in `folder`."""
    log = folder / "stderr"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "actormq.cli.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environ},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready in "), log.read_text()
        yield Server(process, dict(word.split("=", 1) for word in line.split() if "=" in word), log)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@contextmanager
def running_namesrv(folder: Path, *arguments: str, **environ: str) -> Iterator[Server]:
    """Run a name server on free ports, its data in `folder`."""
    words = ("namesrv", "--port", "0", "--zmq-port", "0", "--data-dir", str(folder), *arguments)
    with running(folder, *words, **environ) as server:
        yield server
