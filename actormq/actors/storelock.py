"""Who may work on a store's folder: record locks on the file ``lock``.

Byte 0 exclusively: the supervisor (the same lock as RocketMQ's Java takes, so neither starts on the
other's folder).  Byte 1 shared: every role that writes, so that a new supervisor sees whether roles of
a dead one still live.  POSIX locks: the kernel drops them with the process, and names who holds them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import sys
import time
from pathlib import Path
from typing import Final

from actormq.errors import StoreLocked

LOCK_NAME: Final = "lock"
_CONTENT: Final = b"lock"
_SUPERVISOR_BYTE: Final = 0
_ROLES_BYTE: Final = 1
SURVIVORS_WAIT_MS: Final = 2_000


def owners(root: Path) -> list[int]:
    """Return the processes that hold a store, as far as the system tells; its lock is not touched."""
    try:
        status = os.stat(root / LOCK_NAME)
    except OSError:
        return []
    return _pids_from_proc(status, _SUPERVISOR_BYTE)


class StoreLock:
    """The lock file of one folder, opened once: closing any descriptor of it would drop our locks.

    Raises:
        StoreLocked: the folder cannot be used at all.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if os.fstat(self._fd).st_size == 0:
                os.pwrite(self._fd, _CONTENT, 0)
        except OSError as error:
            raise StoreLocked(f"cannot use the store folder {root}: {error.strerror}") from error

    def own(self, wait_ms: int = SURVIVORS_WAIT_MS) -> None:
        """Take the folder for a supervisor.

        Roles that a killed supervisor left behind have `wait_ms` to notice.
        Raises:
            StoreLocked: another broker works here, or roles of a dead one still live.
        """
        if not self._try(fcntl.LOCK_EX, _SUPERVISOR_BYTE):
            raise StoreLocked(f"another broker ({self._holders(_SUPERVISOR_BYTE)}) works on {self._root}")
        deadline_ns = time.monotonic_ns() + wait_ms * 1_000_000
        while not self._try(fcntl.LOCK_EX, _ROLES_BYTE):
            left_ms = (deadline_ns - time.monotonic_ns()) // 1_000_000
            if left_ms <= 0:
                survivors = self._holders(_ROLES_BYTE)
                self.close()
                raise StoreLocked(
                    f"roles of a broker that died still live on {self._root} ({survivors}): end them first"
                )
            _wait_for_exit(self._pids(_ROLES_BYTE), left_ms)
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _ROLES_BYTE, os.SEEK_SET)

    def share(self) -> None:
        """Take the share of a role that writes, for the rest of this process's life.

        Raises:
            StoreLocked: a new supervisor has just taken the folder.
        """
        if not self._try(fcntl.LOCK_SH, _ROLES_BYTE):
            raise StoreLocked(f"{self._root} belongs to another broker by now")

    def close(self) -> None:
        """Give up every lock."""
        os.close(self._fd)

    def _try(self, kind: int, byte: int) -> bool:
        try:
            fcntl.lockf(self._fd, kind | fcntl.LOCK_NB, 1, byte, os.SEEK_SET)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _holders(self, byte: int) -> str:
        pids = self._pids(byte)
        return "process " + ", ".join(map(str, pids)) if pids else "an unknown process"

    def _pids(self, byte: int) -> list[int]:
        """Who holds `byte`: all of them where /proc/locks tells, else the one that the kernel names."""
        pids = _pids_from_proc(os.fstat(self._fd), byte)
        if not pids and (pid := self._blocker(byte)):
            pids = [pid]
        return pids

    def _blocker(self, byte: int) -> int:
        if not sys.platform.startswith("linux"):
            return 0
        flock = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
        asked = flock.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind, _, _, _, pid = flock.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, asked))
        return pid if kind != fcntl.F_UNLCK else 0


def _pids_from_proc(status: os.stat_result, byte: int) -> list[int]:
    wanted = f":{status.st_ino}"
    pids = set()
    with contextlib.suppress(FileNotFoundError, PermissionError), open("/proc/locks") as locks:
        for line in locks:
            words = line.split()  # 1: POSIX ADVISORY WRITE 4711 fe:00:1234 0 0
            if len(words) == 8 and words[1] == "POSIX" and words[5].endswith(wanted):
                last = sys.maxsize if words[7] == "EOF" else int(words[7])
                if int(words[6]) <= byte <= last:
                    pids.add(int(words[4]))
    return sorted(pids - {os.getpid()})


def _wait_for_exit(pids: list[int], limit_ms: int) -> None:
    """Return once one of `pids` is gone, or after `limit_ms`."""
    poller = select.poll()
    pidfds = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, AttributeError):
            pidfds.append(os.pidfd_open(pid))
    for pidfd in pidfds:
        poller.register(pidfd, select.POLLIN)
    poller.poll(limit_ms if pidfds else min(limit_ms, 50))
    for pidfd in pidfds:
        os.close(pidfd)
