"""The checkpoint: up to which store time log, queues and index are surely on the disk.

``<store>/checkpoint``, 4096 bytes: RocketMQ's five numbers, and behind them, where RocketMQ neither reads
nor writes, ours: log offsets instead of times, with a CRC.  After a crash they say from where the log
must be looked through; times lead to the same place less exactly.  Never ahead of what is durable.

Source: RocketMQ StoreCheckpoint.java.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from actormq.errors import StoreForeign
from actormq.store.disk import Disk

NAME: Final = "checkpoint"
FILE_BYTES: Final = 4096
_THEIRS: Final = struct.Struct(">qqqqq")
assert _THEIRS.size == 40
_OURS_AT: Final = 256
_OURS: Final = struct.Struct(">8sqqqqqI")
_MAGIC_PREFIX: Final = b"ActorMQ"
_MAGIC: Final = _MAGIC_PREFIX + b"1"
"""Its last byte is the version; whatever a later one changes, the CRC stays where it is."""
SAFETY_MS: Final = 3000
"""RocketMQ goes back this much further than the older of two store times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is known to be durable.  Times are store timestamps of the last message of which it is true."""

    log_timestamp: int = 0
    queues_timestamp: int = 0
    index_timestamp: int = 0
    """End of the last *full* index file."""
    master_flushed_offset: int = 0
    confirm_offset: int = 0
    ours: bool = False
    """Read: our part is there and nobody else has written since.  The fields below mean nothing otherwise."""
    log_flushed: int = 0
    """Ours: every byte of the log before it is durable, and a record (or file) begins there."""
    queues_flushed: int = 0
    """Ours: the queue entries of every record before it are durable."""
    index_flushed: int = 0
    """Ours: the index keys of every record before it are durable, …"""
    index_file: int = 0
    """… in this file (its name as a number) and those before it, …"""
    index_next: int = 1
    """… there in entries before this one."""

    @property
    def replay_from_ms(self) -> int:
        """The store time from which RocketMQ dispatches again after a crash."""
        return max(min(self.log_timestamp, self.queues_timestamp) - SAFETY_MS, 0)


def encode(checkpoint: Checkpoint) -> bytes:
    """Return the file's bytes."""
    theirs = _THEIRS.pack(
        checkpoint.log_timestamp,
        checkpoint.queues_timestamp,
        checkpoint.index_timestamp,
        checkpoint.master_flushed_offset,
        checkpoint.confirm_offset,
    )
    ours = _OURS.pack(
        _MAGIC,
        checkpoint.log_flushed,
        checkpoint.queues_flushed,
        checkpoint.index_flushed,
        checkpoint.index_file,
        checkpoint.index_next,
        0,
    )
    # The times are under the CRC, too: when RocketMQ has written since, ours are void.
    crc = zlib.crc32(theirs + ours[:-4])
    return (theirs.ljust(_OURS_AT, b"\0") + ours[:-4] + crc.to_bytes(4, "big")).ljust(FILE_BYTES, b"\0")


def decode(data: bytes) -> Checkpoint:
    """Return what the file says; our own part only where its CRC fits.

    Raises:
        StoreForeign: a later version of us wrote it.
    """
    data = data.ljust(FILE_BYTES, b"\0")
    log, queues, index, master_flushed, confirm = _THEIRS.unpack_from(data)
    theirs = Checkpoint(
        log_timestamp=log,
        queues_timestamp=queues,
        index_timestamp=index,
        master_flushed_offset=master_flushed,
        confirm_offset=confirm,
    )
    magic, log_flushed, queues_flushed, index_flushed, index_file, index_next, crc = _OURS.unpack_from(
        data, _OURS_AT
    )
    covered = data[: _THEIRS.size] + data[_OURS_AT : _OURS_AT + _OURS.size - 4]
    if not magic.startswith(_MAGIC_PREFIX) or zlib.crc32(covered) != crc:
        return theirs
    if magic != _MAGIC:
        raise StoreForeign(f"it is of version {magic[-1:]!r}; this program knows {_MAGIC[-1:]!r}")
    return replace(
        theirs,
        ours=True,
        log_flushed=log_flushed,
        queues_flushed=queues_flushed,
        index_flushed=index_flushed,
        index_file=index_file,
        index_next=index_next,
    )


def read(disk: Disk, path: Path) -> Checkpoint:
    """Return the checkpoint at `path`; all zeros when there is none.

    Raises:
        StoreForeign: the file is longer than a checkpoint, or a later version of us wrote it.
    """
    if not disk.exists(path):
        return Checkpoint()
    if disk.size(path) > FILE_BYTES:
        raise StoreForeign(f"{path} has {disk.size(path)} bytes, not {FILE_BYTES}: this is no checkpoint")
    fd = disk.open(path, write=False)
    try:
        return decode(disk.pread(fd, FILE_BYTES, 0))
    except StoreForeign as error:
        raise StoreForeign(f"{path}: {error.remark}") from None
    finally:
        disk.close(fd)


def write(disk: Disk, path: Path, checkpoint: Checkpoint) -> None:
    """Store the checkpoint durably, in place: the bytes that matter lie in one disk sector, so never half.

    Raises:
        OSError: the old checkpoint may stand; it is never ahead, so nothing is lost.
    """
    made = not disk.exists(path)
    fd = disk.open(path, create=True)
    try:
        disk.pwritev(fd, [encode(checkpoint)], 0)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)
    if made:
        disk.fsync_dir(path.parent)
