"""Small files: the old bytes or the new ones, whatever fails on the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actormq.shm.small_file import replace


def test_replaces_and_creates(tmp_path: Path) -> None:
    """The new bytes, and nothing else in the folder."""
    path = tmp_path / "checkpoint"
    replace(path, b"one")
    replace(str(path), b"two, longer")
    assert path.read_bytes() == b"two, longer"
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_order_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Synced before it is renamed, and the folder synced after: else a power cut shows an empty file."""
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(fd: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{fd}"))
        steps.append("sync folder" if target == tmp_path else f"sync {target.read_bytes().decode()}")
        fsync(fd)

    def watched_rename(source: Path, target: Path) -> None:
        steps.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    replace(tmp_path / "x", b"data")
    assert steps == ["sync data", "rename", "sync folder"]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """The error is the caller's; the temporary file is gone."""
    path = tmp_path / "x"
    replace(path, b"old")

    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="Input/output error"):
        replace(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_missing_folder(tmp_path: Path) -> None:
    """The folder is not made here: a typing error must not grow trees."""
    with pytest.raises(FileNotFoundError):
        replace(tmp_path / "absent" / "x", b"")
