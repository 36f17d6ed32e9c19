"""The load test runs: two users for 3 s, where locust is installed (`make loadtest` installs it)."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def is_installed(name: str) -> bool:
    """Look without importing: locust patches the process that imports it."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_locust = pytest.mark.skipif(
    not is_installed("locust"), reason="no locust here: make loadtest installs it"
)


def locust(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary"]
    return subprocess.run(
        [*command, *words], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


@needs_locust
@pytest.mark.parametrize("transport", ["zmq", "rocketmq"])
def test_two_users(transport: str) -> None:
    """One sends, one receives, for 3 s: every message is counted, none is lost, locust's table has both."""
    done = locust("-u", "2", "-r", "2", "-t", "3s", "--stop-timeout", "10", "--transport", transport)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) acknowledged, (\d+) received, 0 lost, 0 changed", done.stdout)
    assert found, done.stdout
    assert 0 < int(found[1]) <= int(found[2])
    rows = dict(re.findall(r"^(SEND|RECEIVE) +locust +(\d+) +0\(", done.stdout + done.stderr, re.MULTILINE))
    assert rows["SEND"] == found[1]
    assert int(rows["RECEIVE"]) >= int(found[2]), "repeated ones are in the table, too"


@needs_locust
def test_failed_sends_fail_the_test() -> None:
    """Nobody listens there: the exit code says it."""
    done = locust("-u", "1", "-t", "1s", "--host", "rocketmq://127.0.0.1:1", "ProducerUser")
    assert done.returncode == 1
    assert "FAILED: nothing was sent" in done.stdout


@needs_locust
def test_several_processes_are_refused() -> None:
    """One sentence: nobody would know what was lost."""
    done = locust("-u", "1", "-t", "1s", "--master")
    assert done.returncode == 1
    assert "this test counts in one process" in done.stdout + done.stderr
