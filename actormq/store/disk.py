"""The one small interface through which the store reaches files, and the real disk behind it.

Every write, sync, rename and unlink of the store is a call of a `Disk`: tests hand in one that
records, fails or crashes instead.  Failures are `OSError`; a write is whole or an error.  No method
ever shortens a file: a cut under a live map kills its readers by SIGBUS.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Thread
from typing import Final, NamedTuple, Protocol

from actormq.kernels.ahead import read_ahead

_SYNCFS_TELLS: Final = sys.platform == "linux" and [
    int(part) for part in os.uname().release.split("-")[0].split(".")[:2]
] >= [5, 8]
"""Before Linux 5.8 syncfs succeeds whatever happened to the data."""

BytesLike = bytes | bytearray | memoryview
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_FALLOC_FL_ZERO_RANGE = 0x10
_FICLONE: Final = 0x40049409
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_BLOCK_BYTES: Final = 4096
_BUFFERS_PER_CALL: Final = 1024
"""IOV_MAX on Linux."""
_ZEROS: Final = bytes(1024 * 1024)
_AHEAD_THREADS: Final = 16
"""So many reads wait for the disk side by side: one behind the other, 80,000 queues take 12 s of waiting."""
_AHEAD_AT_ONCE: Final = 32
AHEAD_THREAD: Final = "read-ahead"
AHEAD_MIN: Final = 256
"""Fewer files are not worth the threads."""
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
"""The numbers of an OSError that says that the disk is full: trouble that passes, nothing is lost."""
NOT_THE_DISK: Final = (
    *NO_SPACE,
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
"""Trouble that a person removes; the disk is none the worse for it, and so is what lies there."""


class Entry(NamedTuple):
    """One name in a folder, and what has it."""

    name: str
    is_folder: bool
    """Or a link that leads to one."""
    is_link: bool


class OnlyFile(NamedTuple):
    """The one file in a folder."""

    name: str
    length: int
    start: bytes
    """As many bytes as were asked for, or all."""
    more: bool
    """Behind them may be anything other than zeros."""


class Disk(Protocol):
    """What the store needs of files."""

    def open(self, path: Path, *, create: bool = False, exclusive: bool = False, write: bool = True) -> int:
        """Return a descriptor; `create` makes a missing file, `exclusive` insists that it was missing."""
        ...

    def close(self, fd: int) -> None: ...

    def pwritev(self, fd: int, buffers: Sequence[BytesLike], offset: int) -> int:
        """Write all of `buffers` at `offset` and return their length; if it raises, any part may be there."""
        ...

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Return up to `size` bytes; fewer only at the end of the file."""
        ...

    def fdatasync(self, fd: int) -> None:
        """Make the file's bytes and size durable, whoever wrote them, through a map or not."""
        ...

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a folder durable."""
        ...

    def open_volume(self, path: Path) -> int:
        """Return a descriptor of the file system on which a folder lies, for `sync_volume`.

        It answers for what is written from now on.
        """
        ...

    def sync_volume(self, fd: int) -> bool:
        """Make everything on that file system durable, names included; False: not here, nothing was done."""
        ...

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Reserve blocks, which read as zeros: writing there cannot run out of space.  Grows the file."""
        ...

    def extend(self, fd: int, length: int) -> None:
        """Make a shorter file `length` bytes long, sparse."""
        ...

    def zero_range(self, fd: int, offset: int, length: int) -> None:
        """Make a range inside the file read as zeros; its size stays."""
        ...

    def punch(self, fd: int, offset: int, length: int) -> None:
        """The same for a sparse file: the blocks are given back where the file system can."""
        ...

    def has_data(self, fd: int, offset: int) -> bool:
        """Say whether anything at or behind `offset` may be other than zero; False is certain."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Give the file at `old` the name `new`, in place of what had it."""
        ...

    def share(self, source: Path, target: Path) -> bool:
        """Make `target` the same file without copying it, a clone or a second name; False: this cannot be."""
        ...

    def exchange(self, one: Path, other: Path) -> None:
        """Have two files, or two folders, change names: at once, where the system can."""
        ...

    def unlink(self, path: Path) -> None: ...

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        ...

    def listdir(self, path: Path) -> list[str]:
        """Return the names in a folder, sorted; none when there is no folder."""
        ...

    def scan(self, path: Path) -> list[Entry]:
        """Return what is in a folder, sorted by name; nothing when there is no folder."""
        ...

    def files(self, path: Path) -> list[tuple[str, int]]:
        """Return name and length of all that is no folder in a folder, sorted; as `scan` else.

        What vanishes meanwhile is not named.
        """
        ...

    def only_file(self, path: Path, size: int) -> OnlyFile | None:
        """Return the file in a folder in which nothing else is, with its first `size` bytes; else None."""
        ...

    def exists(self, path: Path) -> bool: ...

    def is_folder(self, path: Path) -> bool: ...

    def is_link(self, path: Path) -> bool:
        """Say whether it is a symbolic link, wherever that leads."""
        ...

    def size(self, path: Path) -> int:
        """Return the file's length in bytes."""
        ...

    def modified_ns(self, path: Path) -> int:
        """Return when the file's bytes were last changed; only compared with itself."""
        ...

    def mkdir(self, path: Path) -> None:
        """Make a folder and those above it; existing ones are fine."""
        ...

    def map_read(self, fd: int, length: int) -> memoryview:
        """Return the file's first `length` bytes, read-only; unmapped when the last reference goes."""
        ...

    def map_write(self, fd: int, length: int) -> memoryview:
        """Return the file's first `length` bytes, writable; map only what is allocated, or written."""
        ...

    def forget(self, view: memoryview, offset: int, length: int) -> None:
        """Say that this part of a map is not needed for now: it need not stay in memory."""
        ...

    def ahead(self, folder: Path, names: Sequence[str], size: int) -> AbstractContextManager[None]:
        """Say that the first `size` bytes of these files below `folder` are going to be read, in this order.

        They need not all be there.  Meanwhile the disk may read them, and the folders that lead to them.
        """
        ...


class RealDisk:
    """The operating system's files."""

    def open(self, path: Path, *, create: bool = False, exclusive: bool = False, write: bool = True) -> int:
        flags = os.O_CLOEXEC | (os.O_RDWR if write else os.O_RDONLY)
        if create:
            flags |= os.O_CREAT
        if exclusive:
            flags |= os.O_CREAT | os.O_EXCL
        return os.open(path, flags, 0o644)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pwritev(self, fd: int, buffers: Sequence[BytesLike], offset: int) -> int:
        written = os.pwritev(fd, buffers[:_BUFFERS_PER_CALL], offset)
        if written == sum(map(len, buffers)):
            return written
        left = _behind([memoryview(buffer).cast("B") for buffer in buffers], written)
        start, offset = offset, offset + written
        while left:
            if written == 0:
                raise OSError(errno.EIO, "a write wrote nothing")
            written = os.pwritev(fd, left[:_BUFFERS_PER_CALL], offset)
            offset += written
            left = _behind(left, written)
        return offset - start

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        data = os.pread(fd, size, offset)
        while 0 < len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def fdatasync(self, fd: int) -> None:
        getattr(os, "fdatasync", os.fsync)(fd)

    def fsync_dir(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def open_volume(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync_volume(self, fd: int) -> bool:
        libc = ctypes.CDLL(None, use_errno=True)
        if not (_SYNCFS_TELLS and hasattr(libc, "syncfs")):
            return False
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return True

    def allocate(self, fd: int, offset: int, length: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, offset, length)
        else:
            self.extend(fd, offset + length)

    def extend(self, fd: int, length: int) -> None:
        if os.fstat(fd).st_size < length:
            os.ftruncate(fd, length)

    def zero_range(self, fd: int, offset: int, length: int) -> None:
        if not _fallocate(fd, _FALLOC_FL_ZERO_RANGE, offset, length):
            self._write_zeros(fd, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        if not _fallocate(fd, _FALLOC_FL_PUNCH_HOLE, offset, length):
            self._write_zeros(fd, offset, length)

    def _write_zeros(self, fd: int, offset: int, length: int) -> None:
        while length > 0:
            part = memoryview(_ZEROS)[:length]
            self.pwritev(fd, [part], offset)
            offset += len(part)
            length -= len(part)

    def has_data(self, fd: int, offset: int) -> bool:
        # The block in which `offset` lies is looked at; of those behind it the file system knows.
        block_end = offset - offset % _BLOCK_BYTES + _BLOCK_BYTES
        return any(self.pread(fd, block_end - offset, offset)) or self._has_blocks(fd, block_end)

    def _has_blocks(self, fd: int, block_end: int) -> bool:
        try:
            os.lseek(fd, block_end, getattr(os, "SEEK_DATA", os.SEEK_SET))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return False
            raise
        return True

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def share(self, source: Path, target: Path) -> bool:
        if _clone(source, target):
            return True
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                return False
            raise
        return True

    def exchange(self, one: Path, other: Path) -> None:
        if not _exchange(one, other):
            aside = one.with_name(one.name + ".aside")
            os.rename(one, aside)
            os.rename(other, one)
            os.rename(aside, other)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def remove_folder(self, path: Path) -> None:
        os.rmdir(path)

    def listdir(self, path: Path) -> list[str]:
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []

    def scan(self, path: Path) -> list[Entry]:
        try:
            with os.scandir(path) as found:
                return sorted(Entry(one.name, one.is_dir(), one.is_symlink()) for one in found)
        except FileNotFoundError:
            return []

    def files(self, path: Path) -> list[tuple[str, int]]:
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(path) as there:
            for one in there:
                if not one.is_dir():
                    with contextlib.suppress(FileNotFoundError):
                        found.append((one.name, one.stat().st_size))
        return sorted(found)

    def only_file(self, path: Path, size: int) -> OnlyFile | None:
        try:
            names = os.listdir(path)
            if len(names) != 1:
                return None
            fd = os.open(f"{path}/{names[0]}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return None
            block_end = size - size % -_BLOCK_BYTES
            blocks = self.pread(fd, block_end, 0)
            more = any(blocks[size:]) or self._has_blocks(fd, block_end)
            return OnlyFile(names[0], found.st_size, blocks[:size], more)
        finally:
            os.close(fd)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def is_folder(self, path: Path) -> bool:
        return path.is_dir()

    def is_link(self, path: Path) -> bool:
        return os.path.islink(path)

    def size(self, path: Path) -> int:
        return os.stat(path).st_size

    def modified_ns(self, path: Path) -> int:
        return os.stat(path).st_mtime_ns

    def mkdir(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def map_read(self, fd: int, length: int) -> memoryview:
        return memoryview(mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ))

    def map_write(self, fd: int, length: int) -> memoryview:
        return memoryview(mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))

    def forget(self, view: memoryview, offset: int, length: int) -> None:
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        if isinstance(view.obj, mmap.mmap) and length > 0:
            with contextlib.suppress(OSError):
                view.obj.madvise(mmap.MADV_DONTNEED, start, offset + length - start)

    @contextmanager
    def ahead(self, folder: Path, names: Sequence[str], size: int) -> Iterator[None]:
        if len(names) < AHEAD_MIN or not folder.is_dir():
            yield
            return
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        starts = deque(range(0, len(names), _AHEAD_AT_ONCE))
        arguments = (fd, starts, names, size)
        threads: list[Thread] = []
        try:
            for _ in range(_AHEAD_THREADS):
                thread = Thread(target=_read_ahead, args=arguments, name=AHEAD_THREAD, daemon=True)
                thread.start()
                threads.append(thread)
            yield
        finally:
            starts.clear()
            for thread in threads:
                thread.join()
            os.close(fd)


def _read_ahead(fd: int, starts: deque[int], names: Sequence[str], size: int) -> None:
    """Take part after part of `names`, until there is no more; one of several threads."""
    with contextlib.suppress(IndexError):
        while True:
            start = starts.popleft()
            paths = "\0".join(names[start : start + _AHEAD_AT_ONCE]) + "\0"
            read_ahead(fd, os.fsencode(paths), size)


def _behind(views: list[memoryview], written: int) -> list[memoryview]:
    """Return what is left of `views` behind their first `written` bytes."""
    for number, view in enumerate(views):
        if written < len(view):
            return [view[written:], *views[number + 1 :]]
        written -= len(view)
    return []


def _clone(source: Path, target: Path) -> bool:
    """Make `target` a copy that shares its blocks with `source` until one of them is written to."""
    if not sys.platform.startswith("linux"):
        return False
    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write, _FICLONE, read.fileno())
            return True
        except OSError:  # this file system, or these two, cannot
            os.unlink(target)
            return False


def _exchange(one: Path, other: Path) -> bool:
    """Have two names change places by renameat2; False where the system or the file system has none.

    Raises:
        OSError: one of them is not there, they are on two file systems, …
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number), str(one))


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """Zero a range by fallocate; False where the file system or the machine has no such thing.

    Raises:
        OSError: the disk refused (EIO, ENOSPC, …).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return False
    if length <= 0:
        return True
    if libc.fallocate(fd, mode | _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number))
