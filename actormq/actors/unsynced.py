"""The supervisor's own descriptors of log files with unsynced data.

When a sync fails, the kernel tells each open description once, and then calls the pages clean.  A
flusher that dies before it could say so must not be replaced by one whose sync of a new descriptor
succeeds over lost data: these descriptors were open before, and are asked first.
"""

from __future__ import annotations

import os
from pathlib import Path

from actormq.errors import StoreFailed


class UnsyncedFiles:
    """The log files from what is flushed to what is appended, and the next one."""

    def __init__(self, log_root: Path, file_bytes: int) -> None:
        self._root = log_root
        self._file_bytes = file_bytes
        self._fds: dict[int, int] = {}
        self._seen = (-1, -1)

    def follow(self, flushed: int, appended: int) -> None:
        """Open what holds unsynced data now, close what is synced; no system call when nothing moved."""
        if (flushed, appended) == self._seen:
            return
        self._seen = (flushed, appended)
        first = flushed // self._file_bytes * self._file_bytes
        last = appended // self._file_bytes * self._file_bytes + self._file_bytes
        for start in [start for start in self._fds if start < first]:
            os.close(self._fds.pop(start))
        for start in range(first, last + 1, self._file_bytes):
            if start not in self._fds and (fd := self._open(start)) is not None:
                self._fds[start] = fd

    def _open(self, start: int) -> int | None:
        try:
            return os.open(self._root / f"{start:020d}", os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):  # recovery may not have refused it so far
            return None  # not made yet: the next time

    def sync(self) -> None:
        """Sync all of them.

        Raises:
            StoreFailed: the disk has lost data, now or before.
        """
        for start, fd in sorted(self._fds.items()):
            try:
                getattr(os, "fdatasync", os.fsync)(fd)
            except OSError as error:
                path = self._root / f"{start:020d}"
                raise StoreFailed(
                    f"the flusher died, and {path} (from log offset {start}) cannot be synced: "
                    f"{error.strerror}"
                ) from error

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
