"""Nothing outlives the tests: no process, no descriptor, no folder, no shared memory.

Every process that a test starts carries a word in its environment, and puts its folders into ours; what
is still there when the last test is over fails the run, by name.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

MARK = "TESTS_OF_ACTORMQ"
DESCRIPTORS_MAX = 1_000
"""Of the tests' own process: a shell's usual limit is 1,024."""
PATIENCE_S = 60.0
SHARED = Path("/dev/shm")

# The default suite says the same of the same code, however busy the machine is; the long tests look further.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("exploring", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("exploring" if os.environ.get("ACTORMQ_SOAK") else "repeatable")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Look for what the tests forgot."""
    word = secrets.token_hex(8)
    base = tmp_path_factory.getbasetemp()
    folders = {"TMPDIR": base / "tmp", "XDG_RUNTIME_DIR": base / "run"}
    for folder in folders.values():
        folder.mkdir(mode=0o700)
    began = time.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, word)
        patch.setattr("tempfile.tempdir", None)
        for name, folder in folders.items():
            patch.setenv(name, str(folder))
        yield
    forgotten = {
        "processes": lambda: [f"{process.pid} {command}" for process, command in _started_by(word)],
        "temporary files": lambda: [str(path) for path in folders["TMPDIR"].iterdir()],
        "run folders": lambda: _living(folders["XDG_RUNTIME_DIR"]),
        "shared memory": lambda: _segments(began),
    }
    left = {what: found for what, look in forgotten.items() if (found := _still(look))}
    for process, _ in _started_by(word):
        process.kill()
    assert not left, f"the tests left behind: {left}"


@pytest.fixture(scope="module", autouse=True)
def descriptors_are_few() -> Iterator[None]:
    """Say which file opens more than a shell allows."""
    yield
    count = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert count < DESCRIPTORS_MAX, f"{count} files are open"


def _still(look: Callable[[], list[str]]) -> list[str]:
    """Return what `look` finds again and again; what is there for a moment is another worker's."""
    deadline = time.monotonic() + PATIENCE_S
    found = set(look())
    while found and time.monotonic() < deadline:
        time.sleep(0.05)
        found &= set(look())
    return sorted(found)


def _started_by(word: str) -> list[tuple[psutil.Process, str]]:
    """Return the living processes that the tests started, however far down, and their commands."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get(MARK) == word
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, " ".join(process.cmdline())))
        except psutil.Error:  # gone meanwhile, or somebody else's
            continue
    return found


def _living(folder: Path) -> list[str]:
    """Return the run folders whose broker lives, and what is no run folder.  Killed brokers leave theirs."""
    from actormq.actors.rundir import _is_dead

    return [str(path) for path in folder.iterdir() if not _is_dead(path)]


def _segments(began: float) -> list[str]:
    """Return shared memory that is younger than the tests and that nobody has open."""
    names = {f"/dev/shm/{path.name}" for path in SHARED.glob("amq*") if _is_younger(path, began)}
    if names:
        for process in psutil.process_iter():
            try:
                names -= {entry.path for entry in process.memory_maps(grouped=False)}
            except psutil.Error:
                continue
    return sorted(names)


def _is_younger(path: Path, began: float) -> bool:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    return stat.st_uid == os.getuid() and stat.st_ctime >= began
