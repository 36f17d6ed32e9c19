"""Start `actormq` commands as a user would, and wait for their one ready line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actormq.actors.rundir import prefix_of

READY = re.compile(
    r"ready in (?P<seconds>[\d.]+) s namesrv=(?P<namesrv>\S+) namesrv-zmq=(?P<namesrv_zmq>\S+) "
    r"broker=(?P<broker>\S+) zmq=(?P<zmq>\S+) pid=(?P<pid>\d+) kernels=(?P<kernels>\w+)"
)

PATIENCE_S = 60.0
"""On a machine that others use, too, a second's work may take a minute."""


@dataclass
class Dev:
    """One running `actormq dev`."""

    process: subprocess.Popen[str]
    data_dir: Path
    seconds: float
    namesrv: str
    namesrv_zmq: str
    broker: str
    zmq: str
    kernels: str
    errors: list[str] = field(default_factory=list)
    _listener: threading.Thread | None = None

    def stop(self, *, by: signal.Signals = signal.SIGTERM, seconds: float = PATIENCE_S) -> int:
        """End it and return its exit code; by then all that it has said is in `errors`."""
        if self.process.poll() is None:
            self.process.send_signal(by)
        code = self.process.wait(seconds)
        if self._listener is not None:
            self._listener.join(seconds)
        return code

    def end(self) -> None:
        """End it whatever has become of it."""
        try:
            self.stop()
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout
            self.process.stdout.close()


def start_dev(
    data_dir: Path,
    *,
    flush: str = "async",
    gateways: int = 1,
    env: dict[str, str] | None = None,
    like: Dev | None = None,
    before: Sequence[str] = (),
) -> Dev:
    """Start `actormq dev` on free ports (those of `like`, when given) and return once it is ready.

    Args:
        before: words of a program that runs it, and becomes it.
    """
    ports = {"--namesrv-port": "0", "--namesrv-zmq-port": "0", "--port": "0", "--zmq-port": "0"}
    if like is not None:
        taken = (like.namesrv, like.namesrv_zmq, like.broker, like.zmq)
        ports = {flag: at.rpartition(":")[2] for flag, at in zip(ports, taken, strict=True)}
    command = [
        *before, sys.executable, "-m", "actormq.cli.main", "dev", "--data-dir", str(data_dir),
        "--flush", flush, "--gateways", str(gateways), *(word for pair in ports.items() for word in pair),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    assert process.stdout
    assert process.stderr
    errors: list[str] = []
    stderr = process.stderr
    listener = threading.Thread(target=lambda: errors.extend(stderr), daemon=True)
    listener.start()
    line = process.stdout.readline()
    found = READY.fullmatch(line.strip())
    if found is None:
        process.kill()
        process.wait()
        listener.join(PATIENCE_S)
        raise AssertionError(f"not ready: {line!r} {''.join(errors)}")
    return Dev(
        process, data_dir, float(found["seconds"]), found["namesrv"], found["namesrv_zmq"], found["broker"],
        found["zmq"], found["kernels"], errors, listener,
    )  # fmt: skip


@contextmanager
def dev_in(data_dir: Path, **options: Any) -> Iterator[Dev]:
    """Run `actormq dev`, as `start_dev` does, for the length of a block."""
    dev = start_dev(data_dir, **options)
    try:
        yield dev
    finally:
        dev.end()


def leavings(store: Path) -> list[Path]:
    """Return the segments and run folders of the broker on this folder."""
    places = [Path("/dev/shm"), Path("/run"), Path("/tmp")]
    places += [Path(os.environ[name]) for name in ("XDG_RUNTIME_DIR", "TMPDIR") if name in os.environ]
    return [path for place in places if place.is_dir() for path in place.glob(f"*{prefix_of(store)}*")]


@contextmanager
def running_dev(**options: Any) -> Iterator[Dev]:
    """Run it in a temporary folder."""
    with (
        tempfile.TemporaryDirectory(prefix="actormq-test-") as folder,
        dev_in(Path(folder) / "data", **options) as dev,
    ):
        yield dev
