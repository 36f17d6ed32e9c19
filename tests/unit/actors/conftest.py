"""Roles that live in the test process die by exceptions here: their files are closed as a kernel would."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from actormq.store.disk import RealDisk


@pytest.fixture(autouse=True)
def files_of_the_dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what roles have opened in a test and nobody closed."""
    opened: set[int] = set()
    disk_open, disk_close = RealDisk.open, RealDisk.close

    def tracked_open(self: RealDisk, *arguments: Any, **options: Any) -> int:
        fd = disk_open(self, *arguments, **options)
        opened.add(fd)
        return fd

    def tracked_close(self: RealDisk, fd: int) -> None:
        opened.discard(fd)
        disk_close(self, fd)

    monkeypatch.setattr(RealDisk, "open", tracked_open)
    monkeypatch.setattr(RealDisk, "close", tracked_close)
    yield
    for fd in opened:
        os.close(fd)
