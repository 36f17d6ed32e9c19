"""Start programs, read what they say, end them: by id, and always."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
END_S: Final = 30.0
"""How long a program that was asked to end may take."""


def _die_with_parent() -> None:
    """In the child: a client whose harness was killed must not go on loading the machine."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end(process: subprocess.Popen[str]) -> None:
    """Ask it to end, and make it when it does not."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@contextmanager
def talking(
    command: Sequence[str], *, environment: dict[str, str] | None = None, log: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a program that is talked to by lines; what it logs goes to a file, or to our standard error."""
    errors = log.open("w") if log else None
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        bufsize=1,
        env={**os.environ, **(environment or {})},
        preexec_fn=_die_with_parent,
    )
    if errors:
        errors.close()
    try:
        yield process
    finally:
        end(process)


@contextmanager
def writing(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program whose output goes to a file."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_die_with_parent,
        )
    try:
        yield process
    finally:
        end(process)


@contextmanager
def told_on_failure(log: Path) -> Iterator[None]:
    """Show the end of a server's log when the block fails; the log itself goes with its folder."""
    try:
        yield
    except BaseException:
        if log.exists():
            print(f"the end of {log.name}:", *log.read_text().splitlines()[-40:], sep="\n", file=sys.stderr)
        raise


@contextmanager
def folder(purpose: str) -> Iterator[Path]:
    """Give a folder for the length of a block."""
    with tempfile.TemporaryDirectory(prefix=f"actormq-bench-{purpose}-", ignore_cleanup_errors=True) as name:
        yield Path(name)
