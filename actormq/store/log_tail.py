"""What the end of the log says that the queues do not know yet: where each queue goes on.

For a writer that takes over while the dispatcher is behind.
"""

from __future__ import annotations

from typing import Final

from actormq.kernels import queues, records
from actormq.store.commit_log import LogReader

_STEP_BYTES: Final = 8 * 1024 * 1024
"""Entries are made for so much of the log at once, to be thrown away again."""


def queue_ends(
    reader: LogReader, start: int, end: int, record_bytes_max: int
) -> dict[tuple[bytes, int], int]:
    """Return (topic, queue id) → next queue offset of every queue with a record in [start, end).

    Args:
        start: where a record or a file begins.
        end: everything before it is whole records: a broken one is a broken invariant.
    """
    rows: dict[tuple[bytes, int], int] = {}
    ends: dict[int, int] = {}
    step_bytes = max(_STEP_BYTES, record_bytes_max)
    while start < end:
        base = start - start % reader.file_bytes
        view = reader.file(base)
        limit = min(start - base + step_bytes, end - base)
        found = queues.dispatch(view, start - base, limit, base, rows, [], index=False)
        for row, first, entries in found.runs:
            ends[row] = max(ends.get(row, 0), first + len(entries) // queues.ENTRY_BYTES)
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
