"""batches: pulls of topics with batch consume queues, in whose records lie many messages each.

RocketMQ wrote them; nothing comes any more, and nobody is in a hurry: entries are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from actormq.broker.pulling import Share
from actormq.errors import StoreError
from actormq.kernels import records
from actormq.store.batch_queue import BatchEntry
from actormq.store.commit_log import LogReader


@dataclass(slots=True)
class Batches:
    """What a pull gets."""

    next_offset: int
    parts: list[memoryview] = field(default_factory=list)
    messages: int = 0
    bytes: int = 0


def choose(
    entries: Iterable[BatchEntry],
    log: LogReader,
    queue_offset: int,
    share: Share,
    tag_codes: frozenset[int] | None,
) -> Batches:
    """Return whole records up to a limit, the first whatever its size; a damaged one is passed over.

    Args:
        entries: of the queue, from the one that has the message of `queue_offset` on.
        tag_codes: as for `actormq.kernels.queues.select`: of the whole batches.
    """
    found = Batches(queue_offset)
    for examined, entry in enumerate(entries):
        if examined >= share.entries:
            break
        if tag_codes is None or entry.tags_code in tag_codes:
            full = found.messages >= share.messages or found.bytes + entry.size > share.bytes
            if found.messages and full:
                break
            part = _record(log, entry)
            if part is not None:
                found.parts.append(part)
                found.messages += entry.messages
                found.bytes += entry.size
        found.next_offset = entry.end
    return found


def _record(log: LogReader, entry: BatchEntry) -> memoryview | None:
    """Return the record that an entry promises; None when it is damaged, another one, or gone."""
    try:
        record = log.view(entry.log_offset, entry.size)
        header = records.decode(record, 0, records.CRC_CHECK)
    except (StoreError, ValueError):
        return None
    promised = (entry.size, entry.log_offset, entry.first)
    return record if (header.total_size, header.physical_offset, header.queue_offset) == promised else None
