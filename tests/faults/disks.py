"""Disks that record, fail and crash, behind the store's one interface (`actormq.store.disk.Disk`).

`MemoryDisk` keeps files in memory, and apart from what they hold now what is durable: `crash` returns the
disk as a loss of power may leave it.  Data that was not synced is kept, dropped or torn, write by write, at
512-byte sectors, in any combination; names and lengths are kept up to some moment (a journaling file system
writes them in order), but at least up to the last sync that covers them.
`RecordingDisk` and `FailingDisk` stand before any disk, a real one too.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actormq.store.disk import BytesLike, Entry, OnlyFile

SECTOR_BYTES = 512
CHANGES = (
    "open",
    "pwritev",
    "fdatasync",
    "fsync_dir",
    "sync_volume",
    "allocate",
    "extend",
    "zero_range",
    "punch",
    "rename",
    "unlink",
    "remove_folder",
    "mkdir",
)
"""The calls that change a disk (open: when it makes a file), or promise something."""


@dataclass(eq=False)
class Inode:
    """One file: what it holds now, what is durable, and what was written in between."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    changed: int = 0

    def resize(self, length: int) -> None:
        if length > len(self.data):
            try:
                self.data.extend(bytes(length - len(self.data)))
            except BufferError:
                # Somebody has mapped it at its old length; maps do not grow.
                self.data = bytearray(self.data) + bytes(length - len(self.data))

    def write(self, offset: int, data: bytes) -> None:
        self.resize(offset + len(data))
        self.data[offset : offset + len(data)] = data
        self.writes.append((offset, data))
        self.changed += 1

    def sync(self) -> None:
        self.durable = bytes(self.data)
        self.writes.clear()


@dataclass
class NameChange:
    """One step of the journal: a name, or a file's length."""

    apply: Callable[[MemoryDisk], None]
    folder: Path | None
    inode: Inode | None


class MemoryDisk:
    """Files in memory that can lose power."""

    def __init__(self) -> None:
        self.names: dict[Path, Inode] = {}
        self.folders: set[Path] = set()
        self._durable_names: dict[Path, Inode] = {}
        self._durable_folders: set[Path] = set()
        self._lengths: dict[Inode, int] = {}
        self._journal: list[NameChange] = []
        self._descriptors: dict[int, Inode] = {}
        self._next_fd = 100

    # What the store calls.

    def open(self, path: Path, *, create: bool = False, exclusive: bool = False, write: bool = True) -> int:
        if path not in self.names:
            if not (create or exclusive):
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
            self._need_folder(path.parent)
            inode = Inode()
            self._name(lambda disk: disk.names.__setitem__(path, inode), path.parent, inode)
        elif exclusive:
            raise FileExistsError(errno.EEXIST, "file exists", str(path))
        self._next_fd += 1
        self._descriptors[self._next_fd] = self.names[path]
        return self._next_fd

    def close(self, fd: int) -> None:
        del self._descriptors[fd]

    def pwritev(self, fd: int, buffers: Sequence[BytesLike], offset: int) -> int:
        data = b"".join(bytes(buffer) for buffer in buffers)
        self._descriptors[fd].write(offset, data)
        return len(data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return bytes(self._descriptors[fd].data[offset : offset + size])

    def fdatasync(self, fd: int) -> None:
        inode = self._descriptors[fd]
        inode.sync()
        self._commit(lambda change: change.inode is inode and change.folder is None)
        self._lengths[inode] = len(inode.data)

    def fsync_dir(self, path: Path) -> None:
        self._need_folder(path)
        self._commit(lambda change: change.folder == path)

    def open_volume(self, path: Path) -> int:
        self._need_folder(path)
        self._next_fd += 1
        self._descriptors[self._next_fd] = Inode()
        return self._next_fd

    def sync_volume(self, fd: int) -> bool:
        assert fd in self._descriptors
        for inode in self.names.values():
            inode.sync()
        self._commit(lambda change: True)
        return True

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self.extend(fd, offset + length)

    def extend(self, fd: int, length: int) -> None:
        inode = self._descriptors[fd]
        if length > len(inode.data):
            inode.resize(length)
            self._name(lambda disk: disk._lengths.__setitem__(inode, length), None, inode)

    def zero_range(self, fd: int, offset: int, length: int) -> None:
        self._descriptors[fd].write(offset, bytes(length))

    punch = zero_range

    def has_data(self, fd: int, offset: int) -> bool:
        return bool(self._descriptors[fd].data[offset:].strip(b"\0"))

    def rename(self, old: Path, new: Path) -> None:
        self._need_folder(new.parent)
        if old not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(old))
        self._name(lambda disk: disk.names.__setitem__(new, disk.names.pop(old)), new.parent, None)

    def unlink(self, path: Path) -> None:
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self._name(lambda disk: disk.names.__delitem__(path), path.parent, None)

    def remove_folder(self, path: Path) -> None:
        if self.listdir(path):
            raise OSError(errno.ENOTEMPTY, "folder is not empty", str(path))
        self._name(lambda disk: disk.folders.remove(path), path.parent, None)

    def listdir(self, path: Path) -> list[str]:
        return sorted(each.name for each in {*self.names, *self.folders} if each.parent == path)

    def scan(self, path: Path) -> list[Entry]:
        return [Entry(name, self.is_folder(path / name), False) for name in self.listdir(path)]

    def files(self, path: Path) -> list[tuple[str, int]]:
        return sorted((one.name, len(inode.data)) for one, inode in self.names.items() if one.parent == path)

    def only_file(self, path: Path, size: int) -> OnlyFile | None:
        files = [(one.name, bytes(inode.data)) for one, inode in self.names.items() if one.parent == path]
        if len(files) != 1 or any(folder.parent == path for folder in self.folders):
            return None
        ((name, data),) = files
        return OnlyFile(name, len(data), data[:size], any(data[size:]))

    def ahead(self, folder: Path, names: Sequence[str], size: int) -> AbstractContextManager[None]:
        return nullcontext()

    def exists(self, path: Path) -> bool:
        return path in self.names or path in self.folders

    def is_folder(self, path: Path) -> bool:
        return path in self.folders

    def is_link(self, path: Path) -> bool:
        return False

    def size(self, path: Path) -> int:
        return len(self.names[path].data)

    def modified_ns(self, path: Path) -> int:
        return self.names[path].changed

    def mkdir(self, path: Path) -> None:
        for folder in [*reversed(path.parents), path]:
            if folder not in self.folders:
                self._name(lambda disk, folder=folder: disk.folders.add(folder), folder.parent, None)

    def map_read(self, fd: int, length: int) -> memoryview:
        return memoryview(self._descriptors[fd].data)[:length].toreadonly()

    def map_write(self, fd: int, length: int) -> memoryview:
        return memoryview(self._descriptors[fd].data)[:length]

    def forget(self, view: memoryview, offset: int, length: int) -> None:
        pass

    # Power.

    def _need_folder(self, path: Path) -> None:
        if path not in self.folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))

    def _name(self, apply: Callable[[Any], None], folder: Path | None, inode: Inode | None) -> None:
        apply(self)
        self._journal.append(NameChange(apply, folder, inode))

    def _commit(self, covered: Callable[[NameChange], bool]) -> None:
        """Make durable everything in the journal up to the last change that is covered."""
        last = max((number for number, change in enumerate(self._journal) if covered(change)), default=-1)
        self._apply_journal(last + 1)

    def _apply_journal(self, count: int) -> None:
        shadow = MemoryDisk()
        shadow.names, shadow.folders, shadow._lengths = (
            self._durable_names,
            self._durable_folders,
            self._lengths,
        )
        for change in self._journal[:count]:
            change.apply(shadow)
        del self._journal[:count]

    def fork(self) -> MemoryDisk:
        """Return what `crash` may be called on while this disk goes on: nothing else."""
        twin = MemoryDisk()
        twin.names, twin.folders = dict(self.names), set(self.folders)
        twin._durable_names, twin._durable_folders = dict(self._durable_names), set(self._durable_folders)
        twin._lengths, twin._journal = dict(self._lengths), list(self._journal)
        return twin

    def image(self) -> MemoryDisk:
        """Return a disk of its own with everything that this one holds now, all of it durable."""
        after = MemoryDisk()
        after.folders = set(self.folders)
        for path, inode in self.names.items():
            data = bytes(inode.data)
            after.names[path] = Inode(data=bytearray(data), durable=data, changed=inode.changed)
        after._durable_names = dict(after.names)
        after._durable_folders = set(after.folders)
        after._lengths = {inode: len(inode.data) for inode in after.names.values()}
        return after

    def crash(self, chance: random.Random) -> MemoryDisk:
        """Return this disk after a loss of power; this object is of no use afterwards."""
        self._apply_journal(chance.choice((0, len(self._journal), chance.randint(0, len(self._journal)))))
        keep = chance.choice((_none, _all, _prefix, _subset, _subset))
        after = MemoryDisk()
        after.folders = set(self._durable_folders)
        renewed: dict[Inode, Inode] = {}
        for path, inode in self._durable_names.items():
            if inode not in renewed:
                renewed[inode] = self._after_crash(inode, keep, chance)
            after.names[path] = renewed[inode]
        after._durable_names = dict(after.names)
        after._durable_folders = set(after.folders)
        after._lengths = {inode: len(inode.data) for inode in after.names.values()}
        return after

    def _after_crash(self, inode: Inode, keep: Keep, chance: random.Random) -> Inode:
        data = bytearray(inode.durable)
        data.extend(bytes(max(self._lengths.get(inode, 0) - len(data), 0)))
        mapped = bytearray(inode.durable)
        for offset, written in inode.writes:
            _put(mapped, offset, written)
        for offset, piece in keep(inode.writes, chance):
            _put(data, offset, piece)
        # Stores through a map leave no trace but the difference.
        mapped.extend(bytes(max(len(inode.data) - len(mapped), 0)))
        if mapped != inode.data:
            for at in range(0, len(mapped), SECTOR_BYTES):
                sector = inode.data[at : at + SECTOR_BYTES]
                if sector != mapped[at : at + SECTOR_BYTES] and at < len(data) and chance.random() < 0.5:
                    data[at : at + SECTOR_BYTES] = sector[: len(data) - at]
        return Inode(data=data, durable=bytes(data), changed=inode.changed)


Writes = list[tuple[int, bytes]]
Keep = Callable[[Writes, random.Random], Iterable[tuple[int, bytes]]]


def _put(data: bytearray, offset: int, piece: bytes) -> None:
    data.extend(bytes(max(offset + len(piece) - len(data), 0)))
    data[offset : offset + len(piece)] = piece


def _none(writes: Writes, chance: random.Random) -> Writes:
    return []


def _all(writes: Writes, chance: random.Random) -> Writes:
    return writes


def _prefix(writes: Writes, chance: random.Random) -> Writes:
    """The writes up to some moment, the last of them torn."""
    count = chance.randint(0, len(writes))
    kept = writes[:count]
    if count < len(writes):
        kept = [*kept, *_torn(*writes[count], chance)]
    return kept


def _subset(writes: Writes, chance: random.Random) -> Writes:
    """Each write is kept, dropped or torn by itself."""
    kept: Writes = []
    for offset, data in writes:
        kept += chance.choice(([], [(offset, data)], _torn(offset, data, chance)))
    return kept


def _torn(offset: int, data: bytes, chance: random.Random) -> Writes:
    """Some of the sectors that a write touches."""
    pieces = []
    at = 0
    while at < len(data):
        end = min(at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES, len(data))
        if chance.random() < 0.5:
            pieces.append((offset + at, data[at:end]))
        at = end
    return pieces


class RecordingDisk:
    """Writes down every call that changes the disk before it; `calls` is [(name, arguments), …]."""

    def __init__(self, disk: Any) -> None:
        self._disk = disk
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._paths: dict[int, Path] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._disk, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            if name == "open":
                self._paths[result] = arguments[0]
            if name in CHANGES and (name != "open" or options.get("create") or options.get("exclusive")):
                self.calls.append((name, self._readable(name, arguments)))
            return result

        return call

    def _readable(self, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments with paths for descriptors, and bytes copied."""
        if name == "pwritev":
            fd, buffers, offset = arguments
            return self._paths[fd], b"".join(bytes(buffer) for buffer in buffers), offset
        if arguments and isinstance(arguments[0], int):
            return (self._paths[arguments[0]], *arguments[1:])
        return arguments


class WatchedDisk:
    """Calls `watch` before every call that changes the disk before it: between any two of them."""

    def __init__(self, disk: Any, watch: Callable[[], None]) -> None:
        self._disk = disk
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._disk, name)
        if name not in CHANGES:
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            self._watch()
            return method(*arguments, **options)

        return call


class FailingDisk:
    """Fails one call: the n-th of those that change the disk (1 = the first; 0 = none).

    Args:
        number: the errno; with `short`, half of a write is done first.
        kinds: which calls count.
        after: every later call of these kinds fails, too (a full disk stays full).
    """

    def __init__(
        self,
        disk: Any,
        fail_at: int = 0,
        number: int = errno.EIO,
        *,
        short: bool = False,
        kinds: Sequence[str] = CHANGES,
        after: bool = False,
    ) -> None:
        self._disk = disk
        self._fail_at = fail_at
        self._number = number
        self._short = short
        self._kinds = frozenset(kinds)
        self._after = after
        self.calls = 0
        self.failed = ""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._disk, name)
        if name not in self._kinds:
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self._fail_at or (self._after and 0 < self._fail_at < self.calls):
                self.failed = self.failed or name
                if self._short and name == "pwritev":
                    fd, buffers, offset = arguments
                    data = b"".join(bytes(buffer) for buffer in buffers)
                    method(fd, [data[: len(data) // 2]], offset)
                raise OSError(self._number, f"injected into {name}")
            return method(*arguments, **options)

        return call
