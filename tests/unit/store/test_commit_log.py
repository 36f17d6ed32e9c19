"""The log's files: made whole, cut by zeroing, read by offset."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.disks import FailingDisk, MemoryDisk

from actormq.errors import StoreForeign
from actormq.store.commit_log import LogFiles, LogReader, LogRemoved, file_name, list_bases, next_file
from actormq.store.disk import RealDisk

FILE = 1 << 20
FOLDER = Path("/store/commitlog")


def files(disk: MemoryDisk, count: int = 0) -> LogFiles:
    log = LogFiles(disk, FOLDER, FILE)
    for number in range(count):
        log.create(number * FILE)
    return log


def test_append_and_read_by_log_offset() -> None:
    disk = MemoryDisk()
    log = files(disk, 2)
    assert log.append(FILE + 10, [b"hello ", b"world"]) == FILE + 21
    reader = LogReader(disk, FOLDER, FILE)
    assert bytes(reader.view(FILE + 10, 11)) == b"hello world"
    assert log.base_of(FILE + 10) == FILE == next_file(5, FILE)
    log.zero(FILE + 10, FILE + 15)
    assert bytes(reader.view(FILE + 10, 11)) == b"\0\0\0\0\0 world"
    with pytest.raises(FileNotFoundError):
        log.append(5 * FILE, [b"x"])
    with pytest.raises(AssertionError):
        log.append(FILE - 1, [b"xx"])


def test_a_reader_says_what_is_not_there() -> None:
    """A file that was removed, a range over the end of a file, a file that is just being made."""
    disk = MemoryDisk()
    log = files(disk, 1)
    reader = LogReader(disk, FOLDER, FILE)
    held = reader.view(0, 100)
    for log_offset, size in ((FILE, 1), (FILE - 1, 2), (-1, 1)):
        with pytest.raises(LogRemoved):
            reader.view(log_offset, size)
    disk.open(log.path(FILE), create=True)
    with pytest.raises(LogRemoved, match="being made"):
        reader.view(FILE, 1)
    log.remove(0)
    assert bytes(reader.view(0, 1)) == b"\0"
    reader.forget(below=FILE)
    with pytest.raises(LogRemoved):
        reader.view(0, 1)
    assert len(held) == 100


def test_maps_and_descriptors_are_bounded() -> None:
    disk = MemoryDisk()
    log = LogFiles(disk, FOLDER, FILE, descriptors_max=2)
    for number in range(6):
        log.create(number * FILE)
        log.append(number * FILE, [b"%d" % number])
    assert len(disk._descriptors) == 2
    reader = LogReader(disk, FOLDER, FILE, maps_max=2)
    assert [bytes(reader.view(number * FILE, 1)) for number in range(6)] == [b"%d" % n for n in range(6)]
    assert len(reader._maps) == 2
    log.close()
    assert not disk._descriptors


def test_a_file_is_made_whole_or_not_at_all() -> None:
    memory = MemoryDisk()
    disk = FailingDisk(memory, 1, kinds=["allocate"])
    log = LogFiles(disk, FOLDER, FILE)
    with pytest.raises(OSError, match="injected"):
        log.create(0)
    assert [name for name in memory.names if name.name] == []
    log.create(0)
    log.create(0)
    assert log.bases() == [0]


def test_cut_zeroes_the_rest_and_removes_what_is_later() -> None:
    disk = MemoryDisk()
    log = files(disk, 3)
    for number in range(3):
        log.append(number * FILE, [b"x" * FILE])
    log.cut(FILE + 100)
    assert log.bases() == [0, FILE]
    view = LogReader(disk, FOLDER, FILE).file(FILE)
    assert bytes(view) == b"x" * 100 + bytes(FILE - 100)
    log.cut(FILE)
    assert log.bases() == [0, FILE]
    log.cut(2 * FILE)
    assert log.bases() == [0, FILE]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["notes.txt"], "not 20 digits"),
        ([file_name(0) + "x"], "not 20 digits"),
        ([file_name(0), file_name(2 * FILE)], "has no file"),
        ([file_name(10)], "multiple"),
    ],
)
def test_a_foreign_folder_is_refused(names: list[str], sentence: str) -> None:
    disk = MemoryDisk()
    disk.mkdir(FOLDER)
    for name in names:
        disk.extend(disk.open(FOLDER / name, create=True), FILE)
    with pytest.raises(StoreForeign, match=sentence):
        list_bases(disk, FOLDER, FILE)


def test_file_sizes_are_checked() -> None:
    """A file of another size names itself; a last file without bytes is one that RocketMQ was making."""
    disk = MemoryDisk()
    files(disk, 2)
    disk.mkdir(FOLDER / "folder")
    fd = disk.open(FOLDER / file_name(2 * FILE), create=True)
    assert list_bases(disk, FOLDER, FILE) == [0, FILE]
    disk.extend(fd, FILE - 1)
    with pytest.raises(StoreForeign, match=rf"{2 * FILE} has {FILE - 1} bytes"):
        list_bases(disk, FOLDER, FILE)


def test_on_a_real_disk(tmp_path: Path) -> None:
    disk = RealDisk()
    log = LogFiles(disk, tmp_path / "commitlog", FILE)
    log.create(0)
    assert (tmp_path / "commitlog" / file_name(0)).stat().st_blocks * 512 >= FILE
    log.append(0, [b"a" * 1000])
    log.sync(0, 1000)
    reader = LogReader(disk, tmp_path / "commitlog", FILE)
    held = reader.view(0, 1000)
    log.cut(10)
    assert bytes(held) == b"a" * 10 + bytes(990)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [file_name(0)]
    log.close()


def test_short_ranges_are_copied_long_ones_are_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way, the same bytes; ranges of two files are slices."""
    monkeypatch.setattr("actormq.store.commit_log.SLICE_BYTES_MIN", 16)
    disk = MemoryDisk()
    files = LogFiles(disk, FOLDER, FILE)
    for base in (0, FILE):
        files.create(base)
        files.append(base, [bytes((base // FILE * 7 + at) % 251 for at in range(FILE))])
    reader = LogReader(disk, FOLDER, FILE)

    def joined(ranges: list[tuple[int, int]]) -> bytes:
        return b"".join(bytes(reader.view(at, size)) for at, size in ranges)

    for ranges, count in [
        ([(0, 10)], 1),
        ([(0, 10), (20, 10), (50, 10)], 1),
        ([(0, 30), (50, 30)], 2),
        ([(FILE - 10, 10), (FILE, 10)], 2),
    ]:
        parts = reader.parts(ranges, sum(size for _, size in ranges))
        assert (len(parts), b"".join(parts)) == (count, joined(ranges))
    with pytest.raises(LogRemoved):
        reader.parts([(2 * FILE, 10), (2 * FILE + 20, 10)], 20)
    with pytest.raises(LogRemoved):
        reader.parts([(0, 10), (FILE - 5, 10)], 20)
