"""Roles run in the test's own process here and die by exceptions: their files are closed as a kernel would."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

THEY_DIE_IN = {
    "test_cleaner",
    "test_dispatcher",
    "test_flusher",
    "test_recovery",
    "test_scheduler",
    "test_writer",
}
"""Modules whose roles die without closing anything; the others close what they opened."""


def _open_files() -> dict[int, str]:
    files = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            files[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return files


@pytest.fixture(autouse=True)
def files_of_the_dead(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Close what a test has left open below its temporary folder."""
    if request.path.stem not in THEY_DIE_IN:
        yield
        return
    before = _open_files()
    yield
    for fd, target in _open_files().items():
        if before.get(fd) != target and target.startswith(str(tmp_path)):
            os.close(fd)
