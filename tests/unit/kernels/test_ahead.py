"""Reading the beginnings of files ahead, compiled and uncompiled: nothing changes, nothing stays open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from kernel_twins import each_of, twins

KERNELS = twins("ahead")
both = each_of(KERNELS, "ahead")


def joined(*paths: str) -> bytes:
    return b"".join(path.encode() + b"\0" for path in paths)


@both
def test_those_that_are_there_are_counted(ahead: Any, tmp_path: Path) -> None:
    """Missing ones, folders that are not there and what is no file are passed over."""
    (tmp_path / "t" / "0").mkdir(parents=True)
    (tmp_path / "t" / "0" / "one").write_bytes(b"x" * 10_000)
    (tmp_path / "two é").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    folder = os.open(tmp_path, os.O_RDONLY)
    free = os.dup(folder)
    os.close(free)
    try:
        wanted = joined("t/0/one", "t/1/one", "none", "two é", "t/0", "pipe")
        assert ahead.read_ahead(folder, wanted, 4096) == 4
        assert ahead.read_ahead(folder, b"", 4096) == 0
        assert os.dup(folder) == free, "something stayed open"
        os.close(free)
    finally:
        os.close(folder)
    assert (tmp_path / "t" / "0" / "one").read_bytes() == b"x" * 10_000


def test_where_the_system_takes_no_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled, the bytes are read instead: as many as were asked for, or as there are."""
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    (tmp_path / "f").write_bytes(b"x" * 6_000)
    read, real = [], os.pread

    def pread(fd: int, size: int, at: int) -> bytes:
        read.append(at)
        return real(fd, size, at)

    monkeypatch.setattr(os, "pread", pread)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert KERNELS[0].read_ahead(folder, b"f\0", 4_000) == 1
        assert read == [0]
        assert KERNELS[0].read_ahead(folder, b"f\0", 1 << 20) == 1
        assert read == [0, 0, 4096, 8192]
    finally:
        os.close(folder)
