# cython: language_level=3, annotation_typing=False
"""Have the system read the beginnings of many files, so that who needs them soon need not wait for each.

The one kernel that touches files: it changes nothing and says nothing of what is in them.  Compiled, other
threads run meanwhile: a few of these wait for the disk side by side (`ahead.h` has the loop).
"""

from __future__ import annotations

import contextlib
import os

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if not cython.compiled:
    _BLOCK_BYTES = 4096

    def read_all(folder: int, paths: bytes, file_bytes: int) -> int:
        """As `read_ahead`."""
        there = 0
        for path in paths.split(b"\0")[:-1]:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
            except OSError:
                continue
            there += 1
            with contextlib.suppress(OSError):
                _begin_reading(fd, file_bytes)
            os.close(fd)
        return there

    def _begin_reading(fd: int, file_bytes: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, file_bytes, os.POSIX_FADV_WILLNEED)
            return
        at = 0
        while at < file_bytes and os.pread(fd, _BLOCK_BYTES, at):
            at += _BLOCK_BYTES


def read_ahead(folder: int, paths: bytes, file_bytes: int) -> int:
    """Begin to read `file_bytes` of each file; return how many files there are.

    Args:
        folder: a descriptor; paths begin there.
        paths: each ended by a zero byte.
    """
    return read_all(folder, paths, file_bytes)
