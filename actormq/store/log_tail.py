"""What the end of the log says that the queues do not know yet: where each queue goes on.

For a writer that takes over while the dispatcher is behind.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from actormq.kernels import queues, records
from actormq.store.commit_log import LogReader

_STEP_BYTES: Final = 8 * 1024 * 1024
"""Entries are made for so much of the log at once, to be thrown away again."""


class QueueEnd(NamedTuple):
    """Where a queue goes on."""

    next_queue_offset: int
    last_record: int
    """Log offset of its last record: a queue that was made after it begins at 0."""


def queue_ends(
    reader: LogReader, start: int, end: int, record_bytes_max: int
) -> dict[tuple[bytes, int], QueueEnd]:
    """Return (topic, queue id) → end of every queue with a record in [start, end).

    Args:
        start: where a record or a file begins.
        end: everything before it is whole records: a broken one is a broken invariant.
    """
    rows: dict[tuple[bytes, int], int] = {}
    ends: dict[int, QueueEnd] = {}
    step_bytes = max(_STEP_BYTES, record_bytes_max)
    while start < end:
        base = start - start % reader.file_bytes
        view = reader.file(base)
        limit = min(start - base + step_bytes, end - base)
        found = queues.dispatch(view, start - base, limit, base, rows, [], index=False)
        for row, first, entries in found.runs:
            # The last in the log counts: a topic that was made again counts from 0.
            last = queues.ENTRY.unpack(entries[-queues.ENTRY_BYTES :])
            ends[row] = QueueEnd(first + len(entries) // queues.ENTRY_BYTES, last[0])
        if found.reason == records.ScanEnd.BLANK:
            start = base + reader.file_bytes
            continue
        if found.reason == queues.UNKNOWN_QUEUE:
            header = records.decode(view, found.end)
            rows[header.topic, header.queue_id] = len(rows)
        else:
            assert found.reason == records.ScanEnd.STOP, f"{found.reason} at log offset {base + found.end}"
            assert found.records > 0, "an appended record is cut off"
        start = base + found.end
    return {queue: ends[row] for queue, row in rows.items() if row in ends}
