"""The run folder: where the mailboxes' sockets live, private, short, gone after the broker.

Its name starts with a prefix that the store's path decides, and so do the shared-memory segments of
that broker.  A file in it is locked by its supervisor for life: a folder whose lock is free belongs to
a dead one, and the next supervisor of this user removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from actormq.errors import ConfigError

IPC_PATH_BYTES_MAX: Final = 107
"""A unix socket's path must be shorter."""
_FAMILY: Final = "amq"
_OWNER: Final = "owner"
_LONGEST_NAME: Final = "/coordinator.4294967295"


def prefix_of(store_root: Path | None) -> str:
    """Return what names of this broker start with: by its store, random where there is none."""
    if store_root is None:
        return _FAMILY + os.urandom(4).hex()
    # hashlib would bring OpenSSL: 5 MB that a start has to read.
    return f"{_FAMILY}{zlib.crc32(os.fsencode(store_root.resolve())):08x}"


class RunDir:
    """A new private folder."""

    def __init__(self, prefix: str) -> None:
        """Make it, and remove those of dead brokers.

        Raises:
            ConfigError: there is no folder that is writable and has a short path.
        """
        self.swept = _sweep()
        for base in _bases():
            name = f"{prefix}-{os.urandom(3).hex()}"
            if len(os.fsencode(str(base / name))) + len(_LONGEST_NAME) < IPC_PATH_BYTES_MAX:
                with contextlib.suppress(OSError):
                    self._make(base, name)
                    return
        raise ConfigError("no writable folder with a short path for sockets: set XDG_RUNTIME_DIR")

    def _make(self, base: Path, name: str) -> None:
        new = base / f".{name}"  # invisible to a sweeper until it is locked
        new.mkdir(mode=0o700)
        self._owner_fd = os.open(new / _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._owner_fd, fcntl.LOCK_EX)
        os.write(self._owner_fd, b"%d\n" % os.getpid())
        new.rename(base / name)
        self.path = base / name

    def remove(self) -> None:
        _remove(self.path)
        os.close(self._owner_fd)


def _bases() -> Iterator[Path]:
    candidates = [os.environ.get("XDG_RUNTIME_DIR"), "/run", os.environ.get("TMPDIR"), "/tmp"]  # noqa: S108
    for candidate in candidates:
        if candidate and os.access(candidate, os.W_OK | os.X_OK):
            yield Path(candidate)


def _sweep() -> list[str]:
    swept = []
    for base in set(_bases()):
        for folder in base.glob(f"{_FAMILY}????????-*"):
            if _is_dead(folder):
                _remove(folder)
                swept.append(str(folder))
    return swept


def _remove(folder: Path) -> None:
    """Remove a run folder: it has no folders in it.  What cannot be removed stays."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                os.unlink(folder / name)
        os.rmdir(folder)


def _is_dead(folder: Path) -> bool:
    try:
        fd = os.open(folder / _OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False  # another user's, or not ours at all
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(fd).st_uid == os.getuid()
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
