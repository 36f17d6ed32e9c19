"""Small files in the store's root that say how the last broker left it.

``abort``: a broker works here, or did until it was killed (RocketMQ's file, with its pid).
``actormq.clean``: our own end mark, written last at a clean stop: where log and queues end, so that the next
start need not look.  It counts only while nobody else has touched the store: `Mark.checkpoint_ns` is the
checkpoint's change time, and RocketMQ writes the checkpoint every second that it runs.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from actormq.errors import StoreForeign
from actormq.store import checkpoint
from actormq.store.checkpoint import Checkpoint
from actormq.store.disk import Disk

ABORT: Final = "abort"
CLEAN: Final = "actormq.clean"
LOCK: Final = "lock"
LOCK_TEXT: Final = b"lock"
"""What RocketMQ writes into its lock file; the lock itself is on the first byte."""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueExtent:
    """Which entries a queue has."""

    min: int
    """The first whose message is still in the log."""
    max: int
    """One past the last."""
    first_file_entry: int
    """The entry with which its first file begins."""


Queues = dict[tuple[str, int], QueueExtent]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The end of a store that was stopped cleanly."""

    log_min: int
    log_end: int
    last_store_timestamp: int
    queues: Queues
    checkpoint_ns: int = 0


def has_abort(disk: Disk, root: Path) -> bool:
    """Say whether the last broker here was killed."""
    return disk.exists(root / ABORT)


def create_abort(disk: Disk, root: Path, pid: int) -> None:
    """Say durably that a broker works here."""
    disk.mkdir(root)
    fd = disk.open(root / ABORT, create=True)
    try:
        disk.pwritev(fd, [str(pid).encode()], 0)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)
    disk.fsync_dir(root)


def read_clean(disk: Disk, root: Path) -> Mark | None:
    """Return our end mark; None when there is none, it is damaged, or somebody has written since.

    Raises:
        StoreForeign: a later version of us wrote it.
    """
    path = root / CLEAN
    if not disk.exists(path) or not disk.exists(root / checkpoint.NAME):
        return None
    fd = disk.open(path, write=False)
    try:
        data = disk.pread(fd, disk.size(path), 0)
    finally:
        disk.close(fd)
    crc, _, text = data.partition(b"\n")
    if crc != b"%08x" % zlib.crc32(text):
        return None
    value = orjson.loads(text)
    if value["version"] != _VERSION:
        raise StoreForeign(f"{path} is of version {value['version']}; this program knows {_VERSION}")
    if value["checkpoint_ns"] != disk.modified_ns(root / checkpoint.NAME):
        return None
    return Mark(
        log_min=value["log_min"],
        log_end=value["log_end"],
        last_store_timestamp=value["last_store_timestamp"],
        queues={
            (topic, queue_id): QueueExtent(min=low, max=high, first_file_entry=first)
            for topic, queue_id, low, high, first in value["queues"]
        },
        checkpoint_ns=value["checkpoint_ns"],
    )


def remove_clean(disk: Disk, root: Path) -> None:
    """Take our end mark back, durably, before anything changes."""
    if disk.exists(root / CLEAN):
        disk.unlink(root / CLEAN)
        disk.fsync_dir(root)


def close_store(disk: Disk, root: Path, mark: Mark, last: Checkpoint) -> None:
    """Leave the store cleanly: checkpoint, end mark, and no `abort`, in this order.

    The caller has stopped everyone who writes, and synced log, queues and index up to `mark`.
    """
    checkpoint.write(disk, root / checkpoint.NAME, last)
    value = {
        "version": _VERSION,
        "log_min": mark.log_min,
        "log_end": mark.log_end,
        "last_store_timestamp": mark.last_store_timestamp,
        "checkpoint_ns": disk.modified_ns(root / checkpoint.NAME),
        "queues": [
            [topic, queue_id, extent.min, extent.max, extent.first_file_entry]
            for (topic, queue_id), extent in mark.queues.items()
        ],
    }
    text = orjson.dumps(value)
    remove_clean(disk, root)
    fd = disk.open(root / CLEAN, exclusive=True)
    try:
        disk.pwritev(fd, [b"%08x\n" % zlib.crc32(text), text], 0)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)
    disk.fsync_dir(root)
    if disk.exists(root / ABORT):
        disk.unlink(root / ABORT)
    disk.fsync_dir(root)
