"""Maps: read-only, bounded, alive as long as somebody reads through them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actormq.shm.mapped_file import MappedFiles


def maps_of(path: Path) -> int:
    """Return how many maps of the file this process has."""
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number:020d}" for number in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 4096)
    return paths


def test_bytes_written_later_are_seen(files: list[Path]) -> None:
    """The writer's `pwrite` shows through a map made before."""
    view = MappedFiles().view(files[0])
    with open(files[0], "r+b") as file:
        os.pwrite(file.fileno(), b"later", 100)
    assert bytes(view[100:105]) == b"later"
    assert view.readonly


def test_same_map_is_used_again(files: list[Path]) -> None:
    """One map per file and incarnation."""
    maps = MappedFiles()
    assert maps.view(files[0]) is maps.view(str(files[0]))
    assert maps_of(files[0]) == 1


def test_new_incarnation_is_a_new_map(files: list[Path]) -> None:
    """Delete + create of a topic never serves the dead file; who still reads that one may."""
    maps = MappedFiles()
    old = maps.view(files[1], 1)
    files[1].unlink()
    files[1].write_bytes(b"new" + bytes(4093))
    assert bytes(maps.view(files[1], 2)[:3]) == b"new"
    assert bytes(old[:3]) == b"\1\1\1"


def test_least_recently_used_goes_first(files: list[Path]) -> None:
    """Never more maps than allowed, unless slices of them are in use."""
    maps = MappedFiles(maps_max=2)
    maps.view(files[0])
    held = maps.view(files[1])[10:20]
    maps.view(files[0])
    maps.view(files[2])
    maps.view(files[3])
    assert len(maps) == 2
    assert [maps_of(path) for path in files] == [0, 1, 1, 1]
    assert bytes(held) == bytes([1]) * 10
    held.release()
    del held
    assert maps_of(files[1]) == 0


def test_forget_a_file_or_a_folder(files: list[Path]) -> None:
    """Forgotten maps go; a name that merely begins alike stays."""
    maps = MappedFiles()
    twin = files[0].parent.with_name(files[0].parent.name + "-twin")
    twin.mkdir()
    (twin / "x").write_bytes(b"x")
    for path in (*files, twin / "x"):
        maps.view(path)
    maps.forget(files[0])
    assert len(maps) == 4
    maps.forget(files[0].parent)
    assert len(maps) == 1
    maps.clear()
    assert len(maps) == 0
    assert maps_of(files[2]) == 0


def test_empty_and_missing_files(tmp_path: Path) -> None:
    """Nothing to map is no bytes; no file is the caller's to handle."""
    (tmp_path / "empty").touch()
    maps = MappedFiles()
    assert len(maps.view(tmp_path / "empty")) == 0
    with pytest.raises(FileNotFoundError):
        maps.view(tmp_path / "missing")
    assert len(maps) == 1
