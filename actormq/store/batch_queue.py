"""Batch consume queues: one entry for many messages, which lie in one record.

``<store>/batchconsumequeue/<topic>/<queue id>/``, for topics whose attribute ``queue.type`` is ``BatchCQ``.
RocketMQ fills them; we serve what it has stored and take no sends to such topics.  Only recovery writes (what
the log has and the queue lacks, because RocketMQ was killed), and `actormq store rebuild`.  The entries are
dense: where a message is, is found by its queue offset, not by its place.

Source: RocketMQ BatchConsumeQueue.java.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple

from actormq.kernels import queues, records
from actormq.message import PropertyKey, decode_properties
from actormq.store.commit_log import file_name
from actormq.store.consume_queue import first_at_or_after, queue_folder
from actormq.store.disk import BytesLike, Disk
from actormq.store.queue_bounds import queues_on_disk

FOLDER: Final = "batchconsumequeue"
ENTRY: Final = struct.Struct(">qiqqqhii")
ENTRY_BYTES: Final = 46
assert ENTRY.size == ENTRY_BYTES


class BatchEntry(NamedTuple):
    """One record, and which messages it has."""

    log_offset: int
    size: int
    tags_code: int
    store_timestamp: int
    first: int
    """Queue offset of its first message."""
    messages: int
    compacted: int
    reserved: int

    @property
    def is_valid(self) -> bool:
        return self.log_offset >= 0 and self.size > 0 and self.first >= 0 and self.messages > 0

    @property
    def end(self) -> int:
        """One past the queue offset of its last message."""
        return self.first + self.messages


def entries_of(entries: BytesLike, view: memoryview, base: int) -> bytearray:
    """Return the entries of the records at which ordinary queue entries point.

    Args:
        view: the log file in which they lie, and `base` its first byte's log offset.
    """
    made = bytearray()
    for log_offset, _, tags_code in queues.ENTRY.iter_unpack(entries):
        made += entry_of(records.decode(view, log_offset - base), tags_code)
    return made


def entry_of(header: records.Header, tags_code: int) -> bytes:
    """Return the entry of a record: an inner batch says itself which messages it has."""
    properties = decode_properties(header.properties)
    first, messages = header.queue_offset, 1
    with contextlib.suppress(KeyError, ValueError):
        first, messages = int(properties[PropertyKey.INNER_BASE]), int(properties[PropertyKey.INNER_NUM])
    return ENTRY.pack(
        header.physical_offset, header.total_size, tags_code, header.store_timestamp, first, messages, -1, 0
    )


def is_batch_topic(attributes: Mapping[str, Any] | None) -> bool:
    """Say whether a topic with these attributes has batch consume queues."""
    return str((attributes or {}).get("queue.type", "")).lower() == "batchcq"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchBounds:
    """What a batch queue's files have of the log."""

    min: int
    max: int
    log_end: int
    """Where the last entry's record ends; 0 without one."""


class BatchQueue:
    """The entries of one queue, numbered from that of its first file on; keeps one file open.

    Args:
        read: how entries are read: like `Disk.pread`.
    """

    def __init__(self, disk: Disk, folder: Path, read: Callable[[int, int, int], bytes]) -> None:
        self._disk = disk
        self._folder = folder
        self._read = read
        self._fd = -1
        self._open = -1
        names = [name for name in disk.listdir(folder) if name.isascii() and name.isdigit()]
        bases = sorted(int(name) for name in names if len(name) == 20)
        size = disk.size(folder / file_name(bases[0])) if bases else 0
        self._file_bytes = size - size % ENTRY_BYTES
        # Only the newest files without a gap count.
        step = max(self._file_bytes, ENTRY_BYTES)
        run = list(takewhile(lambda base: base in bases, range(bases[-1], -1, -step))) if bases else []
        self._start = run[-1] if run else 0
        self._room = len(run) * self._file_bytes // ENTRY_BYTES

    def close(self) -> None:
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = self._open = -1

    def entry(self, number: int) -> BatchEntry:
        files, at = divmod(number * ENTRY_BYTES, self._file_bytes)
        base = self._start + files * self._file_bytes
        if base != self._open:
            self.close()
            self._fd = self._disk.open(self._folder / file_name(base), write=False)
            self._open = base
        stored = self._read(self._fd, ENTRY_BYTES, at)
        return BatchEntry._make(ENTRY.unpack(stored.ljust(ENTRY_BYTES, b"\0")))  # a half copied file is short

    def bounds(self, log_min: int, log_end: int) -> BatchBounds:
        """Return which messages are in records between these log offsets."""
        end = self._end(log_end)
        first = first_at_or_after(0, end, log_min, lambda number: self.entry(number).log_offset)
        if end == 0:
            return BatchBounds(min=0, max=0, log_end=0)
        last = self.entry(end - 1)
        lowest = self.entry(first).first if first < end else last.end
        return BatchBounds(min=lowest, max=last.end, log_end=last.log_offset + last.size)

    def last(self, log_end: int) -> BatchEntry | None:
        """Return the last entry of a record that ends at or before `log_end`; None without one."""
        end = self._end(log_end)
        return self.entry(end - 1) if end else None

    def place_behind(self, log_offset: int) -> int:
        """Return the place, in entries, of the first that is of no record before `log_offset`."""
        return self._start // ENTRY_BYTES + self._end(log_offset)

    def _end(self, log_end: int) -> int:
        """Return the number of the first entry that is none, or of a record that ends behind `log_end`."""

        def is_behind(number: int) -> int:
            entry = self.entry(number)
            return not entry.is_valid or entry.log_offset + entry.size > log_end

        return first_at_or_after(0, self._room, 1, is_behind)

    def since(self, queue_offset: int, log_end: int) -> Iterator[BatchEntry]:
        """Yield the entries from the one that has the message of `queue_offset` on."""
        end = self._end(log_end)
        number = first_at_or_after(0, end, queue_offset + 1, lambda number: self.entry(number).end)
        while number < end:
            yield self.entry(number)
            number += 1


class BatchQueues:
    """All batch queues of a store."""

    def __init__(self, disk: Disk, store_root: Path) -> None:
        self.disk = disk
        self.root = store_root / FOLDER

    def has(self, topic: str, queue_id: int) -> bool:
        return self.disk.is_folder(queue_folder(self.root, topic, queue_id))

    def names(self) -> list[tuple[str, int]]:
        """Return (topic, queue id) of each."""
        return queues_on_disk(self.disk, self.root)

    def bounds(self, topic: str, queue_id: int, log_min: int, log_end: int) -> BatchBounds:
        with self.queue(topic, queue_id) as queue:
            return queue.bounds(log_min, log_end)

    @contextmanager
    def queue(
        self, topic: str, queue_id: int, read: Callable[[int, int, int], bytes] | None = None
    ) -> Iterator[BatchQueue]:
        """Open one queue for as long as the block takes; `read`: instead of `Disk.pread`."""
        queue = BatchQueue(self.disk, queue_folder(self.root, topic, queue_id), read or self.disk.pread)
        try:
            yield queue
        finally:
            queue.close()
