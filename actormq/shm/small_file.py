"""Small files replaced as a whole: after a crash a reader finds the old bytes or the new ones."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace(path: Path | str, data: bytes) -> None:
    """Make `path` hold `data`, durably; the folder must exist.

    Raises OSError; then the file is as it was.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        _write(temporary, data)
        os.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the new name durable: without it a power cut may bring the old file back."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
