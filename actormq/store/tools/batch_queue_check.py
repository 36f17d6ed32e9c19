"""Batch queues against the log.  Their entries are dense: an entry stands right behind the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from actormq.store import batch_queue, tables
from actormq.store.batch_queue import ENTRY, ENTRY_BYTES, BatchEntry, BatchQueues
from actormq.store.tools.entry_files import EntryFiles
from actormq.store.tools.queue_check import LOG_OFFSET, QueueCheck
from actormq.store.tools.report import Finding, Report
from actormq.store.tools.trust import Trust
from actormq.store.tools.walking import Queue

_SAID: Final = slice(20, 38)
"""Store time, first queue offset and messages; nobody reads what comes behind."""


class BatchQueueCheck(QueueCheck):
    """Compares batch queues.  Findings have no queue offset: an entry's place does not tell it."""

    entry_bytes = ENTRY_BYTES

    def __init__(
        self,
        batches: BatchQueues,
        file_entries: int,
        trust: Trust,
        report: Report,
        topics: tables.Table | None,
        deleted: Mapping[str, int],
    ) -> None:
        files = EntryFiles(batches.disk, batches.root, file_entries * ENTRY_BYTES, ENTRY_BYTES)
        super().__init__(files, trust, report, topics, batches.names(), deleted)
        self._next: dict[Queue, int] = {}
        """The place behind the last entry compared."""
        self._ends: dict[Queue, int] = {}

    def compare_records(
        self, queue: Queue, first: int, entries: bytearray, view: memoryview, base: int
    ) -> None:
        """Compare what the log makes of some records with the queue's files.

        Args:
            first: queue offset of the first message.
            entries: ordinary queue entries of the records.
            view: the log file in which they lie, and `base` its first byte's log offset.
        """
        if not entries:
            return
        wanted = batch_queue.entries_of(entries, view, base)
        place = 0  # also where the topic was deleted and made again
        if first:
            known = self._next.get(queue)
            place = self._place_of(queue, wanted) if known is None else known
        self._next[queue] = place + len(wanted) // ENTRY_BYTES
        self._ends[queue] = BatchEntry._make(ENTRY.unpack(wanted[-ENTRY_BYTES:])).end
        self.compare(queue, place, wanted)

    def _place_of(self, queue: Queue, wanted: bytearray) -> int:
        """Return the place of the first record that the log has: those before may still have entries."""
        (log_offset,) = LOG_OFFSET.unpack_from(wanted)
        behind, is_before = 0, True
        for first, chunk in self._entries.outside(queue, []):
            for number, entry in enumerate(map(BatchEntry._make, ENTRY.iter_unpack(chunk)), first):
                if entry.log_offset == log_offset and entry.is_valid:
                    return number
                is_before = is_before and entry.is_valid and entry.log_offset < log_offset
                if is_before:
                    behind = number + 1
        return behind

    def _difference(self, topic: str, wanted: bytes, stored: bytes, resolved: bytes) -> str:
        if any(stored) and stored[_SAID] != wanted[_SAID]:
            return "queue.entry"
        return super()._difference(topic, wanted[: _SAID.stop], stored[: _SAID.stop], resolved[: _SAID.stop])

    def _pointing(self, chunk: bytes, log_min: int) -> Iterator[tuple[int, int]]:
        for number, entry in enumerate(map(BatchEntry._make, ENTRY.iter_unpack(chunk))):
            if entry.is_valid and entry.log_offset >= log_min:
                yield number, entry.log_offset

    def _finding(
        self, kind: str, queue: Queue, queue_offset: int, log_offset: int, what: str, count: int = 1
    ) -> Finding:
        finding = super()._finding(kind, queue, queue_offset, log_offset, what, count)
        return replace(finding, queue_offset=None)

    def ends(self) -> dict[Queue, int]:
        """Return one past the last message of each queue."""
        return self._ends
