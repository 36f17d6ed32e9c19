"""batches: pulls of topics with batch consume queues, in whose records lie many messages each.

RocketMQ wrote them; nothing comes any more, and nobody is in a hurry: entries are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from actormq.broker.pulling import Share
from actormq.kernels import records
from actormq.store.batch_queue import BatchEntry
from actormq.store.commit_log import LogReader, LogRemoved

RECORD_BYTES_MAX: Final = 16 * 1024 * 1024
"""No client takes a longer frame: an entry that promises more is damaged."""


@dataclass(slots=True)
class Chosen:
    """Which records a pull gets if they are sound."""

    next_offset: int
    entries: list[BatchEntry] = field(default_factory=list)


def choose(
    entries: Iterable[BatchEntry],
    queue_offset: int,
    share: Share,
    tag_codes: frozenset[int] | None,
    log_range: tuple[int, int],
    file_bytes: int,
) -> Chosen:
    """Return whole records up to a limit, the first whatever its size; impossible ones are passed over.

    Args:
        entries: of the queue, from the one that has the message of `queue_offset` on.
        tag_codes: as for `actormq.kernels.queues.select`: of the whole batches.
        log_range: the log offsets between which records are readable, in files of `file_bytes`.
    """
    chosen = Chosen(queue_offset)
    messages = size = 0
    for examined, entry in enumerate(entries):
        if examined >= share.entries:
            break
        wanted = tag_codes is None or entry.tags_code in tag_codes
        if wanted and _is_possible(entry, log_range, file_bytes):
            full = messages >= share.messages or size + entry.size > share.bytes
            if messages and full:
                break
            chosen.entries.append(entry)
            messages += entry.messages
            size += entry.size
        chosen.next_offset = entry.end
    return chosen


def _is_possible(entry: BatchEntry, log_range: tuple[int, int], file_bytes: int) -> bool:
    log_min, log_end = log_range
    in_one_file = entry.log_offset % file_bytes + entry.size <= file_bytes
    in_log = log_min <= entry.log_offset <= log_end - entry.size
    return in_log and in_one_file and entry.size <= RECORD_BYTES_MAX


def read(entries: Iterable[BatchEntry], log: LogReader) -> bytes:
    """Return the bytes of all records joined, zeros for one that is gone."""
    return b"".join([_stored(entry, log) for entry in entries])


def _stored(entry: BatchEntry, log: LogReader) -> memoryview | bytes:
    try:
        return log.view(entry.log_offset, entry.size)
    except LogRemoved:
        return bytes(entry.size)


def sound(
    entries: Sequence[BatchEntry], data: bytes | bytearray
) -> tuple[list[BatchEntry], list[memoryview]]:
    """Return those entries whose records, joined in `data`, are undamaged and theirs; and these records.

    Without data, none is.
    """
    found: list[BatchEntry] = []
    parts: list[memoryview] = []
    at = 0
    for entry in entries:
        part = memoryview(data)[at : at + entry.size]
        at += entry.size
        if _is_sound(entry, part):
            found.append(entry)
            parts.append(part)
    return found, parts


def _is_sound(entry: BatchEntry, record: memoryview) -> bool:
    if len(record) < entry.size:
        return False
    try:
        header = records.decode(record, 0, records.CRC_CHECK)
    except ValueError:
        return False
    promised = (entry.size, entry.log_offset, entry.first)
    return (header.total_size, header.physical_offset, header.queue_offset) == promised
