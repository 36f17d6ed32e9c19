"""The real disk does what its protocol says."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from pathlib import Path

import pytest
from faults.disks import MemoryDisk

from actormq.store import disk as disk_module
from actormq.store.disk import AHEAD_MIN, AHEAD_THREAD, RealDisk


@pytest.fixture
def disk() -> RealDisk:
    return RealDisk()


def test_a_write_is_whole_however_the_kernel_cuts_it(
    disk: RealDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short writes go on where they stopped, over more buffers than one call takes."""
    real = os.pwritev

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real(fd, [buffers[0][: max(1, len(buffers[0]) // 2)]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    fd = disk.open(tmp_path / "f", exclusive=True)
    assert disk.pwritev(fd, [b"hello", b"", bytearray(b" wide"), memoryview(b" world")], 3) == 16
    assert disk.pread(fd, 100, 0) == b"\0\0\0hello wide world"
    monkeypatch.setattr(os, "pwritev", real)
    assert disk.pwritev(fd, [b"x"] * 3000, 0) == 3000
    assert disk.pread(fd, 4000, 0) == b"x" * 3000
    disk.close(fd)


def test_a_full_disk_raises_in_the_middle_of_a_write(
    disk: RealDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def full(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "full")
        return 2

    monkeypatch.setattr(os, "pwritev", full)
    fd = disk.open(tmp_path / "f", create=True)
    with pytest.raises(OSError, match="full"):
        disk.pwritev(fd, [b"hello"], 10)
    assert calls == [10, 12]


def test_allocate_extend_and_zero(disk: RealDisk, tmp_path: Path) -> None:
    """Nothing shortens; a zeroed range reads as zeros and keeps the size, blocks or not."""
    path = tmp_path / "f"
    fd = disk.open(path, exclusive=True)
    disk.allocate(fd, 0, 10_000)
    assert disk.size(path) == 10_000
    disk.extend(fd, 50_000)
    disk.extend(fd, 100)
    assert disk.size(path) == 50_000
    disk.pwritev(fd, [b"y" * 50_000], 0)
    disk.zero_range(fd, 100, 300)
    disk.punch(fd, 8192, 50_000 - 8192)
    disk.zero_range(fd, 10, 0)
    assert disk.size(path) == 50_000
    data = disk.pread(fd, 50_000, 0)
    assert data == b"y" * 100 + bytes(300) + b"y" * (8192 - 400) + bytes(50_000 - 8192)


def test_zeroing_works_without_fallocate(
    disk: RealDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "_fallocate", lambda *arguments: False)
    fd = disk.open(tmp_path / "f", exclusive=True)
    disk.pwritev(fd, [b"z" * 3_000_000], 0)
    disk.zero_range(fd, 1, 2_999_998)
    disk.punch(fd, 2_999_999, 1)
    assert disk.pread(fd, 3_000_000, 0) == b"z" + bytes(2_999_999)


def test_has_data_sees_every_byte_and_no_hole(disk: RealDisk, tmp_path: Path) -> None:
    fd = disk.open(tmp_path / "f", exclusive=True)
    disk.extend(fd, 1 << 20)
    assert not disk.has_data(fd, 0)
    disk.pwritev(fd, [b"x"], 5000)
    assert disk.has_data(fd, 0)
    assert disk.has_data(fd, 5000)
    assert not disk.has_data(fd, 5001)
    disk.pwritev(fd, [b"x"], 900_000)
    assert disk.has_data(fd, 5001)


def test_maps_share_the_file_and_outlive_its_name(disk: RealDisk, tmp_path: Path) -> None:
    path = tmp_path / "f"
    fd = disk.open(path, exclusive=True)
    disk.extend(fd, 8192)
    writable, readable = disk.map_write(fd, 8192), disk.map_read(fd, 8192)
    disk.close(fd)
    writable[7] = 9
    assert readable[7] == 9
    assert readable.readonly
    disk.forget(readable, 100, 5000)
    disk.unlink(path)
    assert readable[7] == 9


def test_names(disk: RealDisk, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    disk.mkdir(folder)
    disk.mkdir(folder)
    assert disk.is_folder(folder)
    assert disk.listdir(tmp_path / "nothing") == []
    disk.close(disk.open(folder / "2", create=True))
    disk.close(disk.open(folder / "1", exclusive=True))
    with pytest.raises(FileExistsError):
        disk.open(folder / "1", exclusive=True)
    with pytest.raises(FileNotFoundError):
        disk.open(folder / "3")
    assert disk.listdir(folder) == ["1", "2"]
    disk.rename(folder / "1", folder / "2")
    assert disk.listdir(folder) == ["2"]
    fd = disk.open(folder / "2", write=False)
    with pytest.raises(OSError, match="descriptor"):
        disk.pwritev(fd, [b"x"], 0)
    before = disk.modified_ns(folder / "2")
    os.utime(folder / "2", ns=(1, before + 5))
    assert disk.modified_ns(folder / "2") == before + 5
    disk.fsync_dir(folder)
    disk.unlink(folder / "2")
    disk.remove_folder(folder)
    assert not disk.exists(folder)


def test_a_read_is_whole_however_the_kernel_cuts_it(
    disk: RealDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"hello wide world")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: real(fd, min(size, 3), offset))
    fd = disk.open(tmp_path / "f", write=False)
    assert disk.pread(fd, 10, 3) == b"lo wide wo"
    assert disk.pread(fd, 100, 6) == b"wide world"
    assert disk.pread(fd, 100, 16) == disk.pread(fd, 0, 0) == b""
    disk.close(fd)


def test_files_are_named_with_their_lengths(
    disk: RealDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders are none, and neither is what vanishes while one looks; links are what they lead to."""
    assert disk.files(tmp_path / "none") == []
    (tmp_path / "b").write_bytes(b"xyz")
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("b")
    assert disk.files(tmp_path) == [("a", 0), ("b", 3), ("link", 3)]


class TestOnlyFile:
    """The one file of a folder, looked at in one go."""

    @pytest.mark.parametrize(
        ("content", "size", "start", "more"),
        [
            (b"", 10, b"", False),
            (b"abc", 10, b"abc", False),
            (b"abcdef", 3, b"abc", True),
            (b"abc" + bytes(50_000), 3, b"abc", False),
            (b"abc" + bytes(4_092) + b"x", 4_080, b"abc" + bytes(4_077), True),
            (b"abc" + bytes(50_000) + b"x", 4_080, b"abc" + bytes(4_077), True),
            (b"y" * 4_096 + bytes(50_000), 4_096, b"y" * 4_096, False),
        ],
    )
    def test_its_beginning(
        self, disk: RealDisk, tmp_path: Path, content: bytes, size: int, start: bytes, more: bool
    ) -> None:
        """With its length, and whether anything but zeros may follow; in memory alike."""
        fd = disk.open(tmp_path / "f", exclusive=True)
        disk.extend(fd, len(content))
        for at in range(0, len(content), 4096):
            if any(content[at : at + 4096]):
                disk.pwritev(fd, [content[at : at + 4096]], at)
        disk.close(fd)
        free = lowest_free_descriptor()
        found = disk.only_file(tmp_path, size)
        assert found == ("f", len(content), start, more)
        assert lowest_free_descriptor() == free
        memory = MemoryDisk()
        memory.mkdir(tmp_path)
        memory.pwritev(memory.open(tmp_path / "f", exclusive=True), [content], 0)
        assert memory.only_file(tmp_path, size) == found

    def test_where_there_is_another_thing_or_none(self, disk: RealDisk, tmp_path: Path) -> None:
        assert disk.only_file(tmp_path / "none", 10) is None
        assert disk.only_file(tmp_path, 10) is None
        (tmp_path / "folder").mkdir()
        assert disk.only_file(tmp_path, 10) is None
        os.mkfifo(tmp_path / "folder" / "pipe")
        assert disk.only_file(tmp_path / "folder", 10) is None
        (tmp_path / "f").write_bytes(b"abc")
        assert disk.only_file(tmp_path, 10) is None
        (tmp_path / "gone").mkdir()
        (tmp_path / "gone" / "link").symlink_to("nowhere")
        assert disk.only_file(tmp_path / "gone", 10) is None


def lowest_free_descriptor() -> int:
    fd = os.dup(0)
    os.close(fd)
    return fd


class TestAhead:
    """Many files are read ahead by threads that end with the block."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Every name that a thread asked for."""
        names: list[str] = []

        def read_ahead(folder: int, paths: bytes, size: int) -> int:
            assert size == 4080
            assert os.path.samestat(os.fstat(folder), os.stat(self.folder))
            names.extend(paths.decode().split("\0")[:-1])
            return 0

        monkeypatch.setattr(disk_module, "read_ahead", read_ahead)
        return names

    def test_each_name_once(self, disk: RealDisk, tmp_path: Path, asked: list[str]) -> None:
        self.folder = tmp_path
        names = [f"t/{number}" for number in range(AHEAD_MIN * 3 + 1)]
        with disk.ahead(tmp_path, names, 4080):
            while len(asked) < len(names):
                time.sleep(0)  # let them run
        assert sorted(asked) == sorted(names)

    def test_who_has_finished_waits_for_no_more(
        self, disk: RealDisk, tmp_path: Path, asked: list[str]
    ) -> None:
        """The threads and the descriptor are gone behind the block, however it ends."""
        self.folder = tmp_path
        free = lowest_free_descriptor()
        with pytest.raises(OSError, match="broken"), disk.ahead(tmp_path, ["t"] * AHEAD_MIN, 4080):
            raise OSError("broken")
        assert lowest_free_descriptor() == free
        assert AHEAD_THREAD not in [thread.name for thread in threading.enumerate()]

    def test_a_thread_ends_when_nothing_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What nobody has taken when the block ends is not read."""
        starts, asked = deque([0, 32, 64]), []

        def read_ahead(folder: int, paths: bytes, size: int) -> int:
            asked.append(paths)
            starts.clear()
            return 0

        monkeypatch.setattr(disk_module, "read_ahead", read_ahead)
        disk_module._read_ahead(-1, starts, ["a", "b"], 10)
        assert asked == [b"a\0b\0"]

    def test_few_need_no_thread(self, disk: RealDisk, tmp_path: Path, asked: list[str]) -> None:
        for names in (["t"] * (AHEAD_MIN - 1), []):
            with disk.ahead(tmp_path, names, 4080):
                pass
        with disk.ahead(tmp_path / "none", ["t"] * AHEAD_MIN, 4080):
            pass
        assert asked == []
