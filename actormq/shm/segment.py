"""Segments: named pieces of shared memory, found again by descriptor and swept by name.

The supervisor creates and unlinks them and hands descriptors to the roles; names exist only so that
the leftovers of a killed broker can be found.  Every segment begins with one line that says what it
is, and a reader that finds anything else refuses it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import struct
from pathlib import Path
from typing import Final, Self

import posix_ipc

from actormq.errors import BrokerError

_log = logging.getLogger(__name__)

MAGIC: Final = b"ActorMQ\x00"
VERSION: Final = 1
HEADER = struct.Struct("<8sIIQ40s")
HEADER_BYTES: Final = 64
assert HEADER.size == HEADER_BYTES
_FOLDER = Path("/dev/shm")  # noqa: S108  (where Linux keeps them; only listed here)
_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG)


class SegmentError(BrokerError):
    """Memory that cannot be had, or is not what it should be."""


class Segment:
    """One piece of shared memory: a 64-byte header, then the payload.

    Attributes:
        fd: the descriptor, close-on-exec; pass it on to attach elsewhere.
        name: the POSIX name, "" when it has none (attached, or a memfd).
        purpose: what it was created for.
        view: the payload, writable, aligned to 64 bytes.
    """

    def __init__(self, fd: int, name: str, purpose: str, memory: mmap.mmap, payload_bytes: int) -> None:
        self.fd = fd
        self.name = name
        self.purpose = purpose
        self._memory = memory
        self.view = memoryview(memory)[HEADER_BYTES : HEADER_BYTES + payload_bytes]

    @classmethod
    def create(cls, prefix: str, purpose: str, payload_bytes: int) -> Self:
        """Return a new segment of zeros, mode 0600, its memory reserved.

        Raises SegmentError when neither /dev/shm nor anonymous memory has the room.
        """
        size = HEADER_BYTES + payload_bytes
        fd, name = _allocate(prefix, purpose, size)
        memory = mmap.mmap(fd, size)
        memory[:HEADER_BYTES] = HEADER.pack(
            MAGIC, VERSION, HEADER_BYTES, payload_bytes, purpose.encode()[:40]
        )
        return cls(fd, name, purpose, memory, payload_bytes)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Return the segment behind `fd`, which it owns from now on; SegmentError when it is none of ours."""
        size = os.fstat(fd).st_size
        if size < HEADER_BYTES:
            raise SegmentError(f"a shared segment of {size} bytes is shorter than its header")
        memory = mmap.mmap(fd, size)
        magic, version, header_bytes, payload_bytes, purpose = HEADER.unpack(memory[:HEADER_BYTES])
        if magic != MAGIC:
            raise SegmentError("the shared memory handed over is not ActorMQ's")
        if (version, header_bytes) != (VERSION, HEADER_BYTES):
            raise SegmentError(f"the shared segment has layout {version}, this program knows {VERSION}")
        if HEADER_BYTES + payload_bytes > size:
            raise SegmentError(f"a shared segment of {size} bytes claims {payload_bytes} bytes of payload")
        return cls(fd, "", purpose.rstrip(b"\0").decode(), memory, payload_bytes)

    def close(self) -> None:
        """Give up descriptor and map; views still in use elsewhere keep the map until they are gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            with contextlib.suppress(BufferError):
                self.view.release()
                self._memory.close()

    def lock(self) -> bool:
        """Keep the payload in memory as long as this map lives; False where the system does not allow it."""
        import ctypes  # the supervisor needs it for a store pool only

        payload = (ctypes.c_char * len(self.view)).from_buffer(self.view)
        return bool(ctypes.CDLL(None).mlock(payload, ctypes.c_size_t(len(payload))) == 0)

    def unlink(self) -> None:
        """Remove the name; the memory goes with its last user."""
        if self.name:
            with contextlib.suppress(posix_ipc.ExistentialError):
                posix_ipc.unlink_shared_memory(self.name)
            self.name = ""


def _allocate(prefix: str, purpose: str, size: int) -> tuple[int, str]:
    try:
        return _allocate_named(prefix, purpose, size)
    except OSError as trouble:
        if trouble.errno not in _NO_ROOM or not hasattr(os, "memfd_create"):
            raise SegmentError(
                f"no shared memory for {purpose} ({size} bytes): {trouble.strerror}"
            ) from trouble
    _log.warning(
        "shared memory folder too small, using anonymous memory", extra={"purpose": purpose, "bytes": size}
    )
    return _allocate_anonymous(purpose, size), ""


def _allocate_named(prefix: str, purpose: str, size: int) -> tuple[int, str]:
    # macOS allows 31 characters.
    name = f"/{prefix}.{purpose[:8]}.{os.urandom(4).hex()}"
    memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    try:
        _reserve(memory.fd, size)
    except OSError:
        memory.unlink()
        memory.close_fd()
        raise
    os.set_inheritable(memory.fd, False)
    return memory.fd, name


def _allocate_anonymous(purpose: str, size: int) -> int:
    fd = os.memfd_create(f"actormq-{purpose}", os.MFD_CLOEXEC)
    try:
        _reserve(fd, size)
    except OSError as trouble:
        os.close(fd)
        raise SegmentError(
            f"no shared memory for {purpose} ({size} bytes): {trouble.strerror}; "
            "enlarge /dev/shm or the memory limit"
        ) from trouble
    return fd


def _reserve(fd: int, size: int) -> None:
    """Reserve every byte now: a store into memory that the system cannot give is a SIGBUS later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)


def sweep(prefix: str) -> list[str]:
    """Unlink what a dead broker with `prefix` left behind and return the names.

    Only where names can be listed (Linux); the caller makes sure that the broker is dead.
    """
    if not _FOLDER.is_dir():
        return []
    swept = []
    for path in sorted(_FOLDER.glob(f"{prefix}.*")):
        with contextlib.suppress(posix_ipc.ExistentialError, posix_ipc.PermissionsError):
            posix_ipc.unlink_shared_memory(f"/{path.name}")
            swept.append(f"/{path.name}")
    return swept
