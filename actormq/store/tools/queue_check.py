"""Queues against the log: what the log makes of itself, run by run, and what the files have.

Entries that no record of the log stands behind are looked for at the end, where no run was.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from actormq.kernels import queues
from actormq.kernels.queues import ENTRY, ENTRY_BYTES
from actormq.message import SCHEDULE_TOPIC
from actormq.store import queue_ext, tables
from actormq.store.consume_queue import first_at_or_after
from actormq.store.queue_ext import QueueExtensions
from actormq.store.tools.entry_files import EntryFiles
from actormq.store.tools.report import Finding, Report
from actormq.store.tools.trust import EVERYTHING, Trust
from actormq.store.tools.walking import Queue, is_deleted

LOG_OFFSET: Final = struct.Struct(">q")
"""With which every entry begins; the record's size comes next."""
_NO_LIMIT: Final = 1 << 62
_MULTI_PREFIX: Final = "%LMQ%"
"""Queues of messages whose own topic is another (RocketMQ's light queues)."""
_KINDS: Final = {
    "queue.hole": "there is no entry for this record",
    "queue.entry": "the entry points at another place than the record",
    "queue.tags": "the entry has another tags code than the record",
    "queue.unit": "its unit of the extension is missing, or has another tags code than the record",
}


@dataclass(slots=True)
class _Seen:
    """One queue while the log goes by."""

    runs: list[tuple[int, int]] = field(default_factory=list)
    """(first, end) of what the log has, ascending, neighbours joined."""
    records: int = 0
    findings: list[Finding] = field(default_factory=list)
    end: int = 0


class QueueCheck:
    """Compares; `finish` says what is left.

    Args:
        files: of the queues.
        topics: what topics.json says; None without one.
        found: the queues that have a folder.
        deleted: by topic, the log offset before which its records are dead.
        extensions: where entries may lead; None where there is no extension.
    """

    entry_bytes = ENTRY_BYTES

    def __init__(
        self,
        files: EntryFiles,
        trust: Trust,
        report: Report,
        topics: tables.Table | None,
        found: Collection[Queue],
        deleted: Mapping[str, int],
        extensions: QueueExtensions | None = None,
    ) -> None:
        self._entries = files
        self._extensions = extensions
        self._trust = trust
        self._report = report
        self._topics = topics
        self._found = set(found)
        self._deleted = deleted
        self._seen: dict[Queue, _Seen] = {}
        self.waiting = 0
        """Entries that the dispatcher, or the next start, has still to write."""

    def compare(self, queue: Queue, first: int, entries: bytearray) -> None:
        """Compare consecutive entries, as the log makes them, with the queue's files."""
        if not entries:
            return
        seen = self._seen.setdefault(queue, _Seen())
        count = len(entries) // self.entry_bytes
        seen.records += count
        self._note_run(queue, seen, first, count, entries)
        stored = self._entries.read(queue, first, count)
        if stored == entries:
            return
        resolved = stored if self._extensions is None else self._extensions.resolve(*queue, stored)
        if resolved != entries:
            seen.findings += self._differences(queue, first, bytes(entries), stored, bytes(resolved))

    def _note_run(self, queue: Queue, seen: _Seen, first: int, count: int, entries: bytearray) -> None:
        if first == 0 and seen.runs:
            # The topic was deleted and made again: what was before is nobody's.
            seen.runs.clear()
            seen.findings.clear()
        if seen.runs and first < seen.runs[-1][1]:
            what = f"queue offset {first} has been taken by an earlier record"
            seen.findings.append(
                self._finding("queue.double", queue, first, LOG_OFFSET.unpack_from(entries)[0], what)
            )
        if seen.runs and seen.runs[-1][1] == first:
            seen.runs[-1] = (seen.runs[-1][0], first + count)
        else:
            seen.runs.append((first, first + count))

    def _differences(
        self, queue: Queue, first: int, wanted: bytes, stored: bytes, resolved: bytes
    ) -> list[Finding]:
        """Return the entries that differ, neighbours with the same trouble as one.

        Args:
            resolved: what is stored, with the extension's tags codes.
        """
        if not stored.strip(b"\0"):
            return self._hole(queue, first, wanted)
        found: list[Finding] = []
        kind_before, start, length, log_offset = "", 0, 0, 0
        for at in range(0, len(wanted) + 1, self.entry_bytes):
            one = slice(at, at + self.entry_bytes)
            kind = self._difference(queue[0], wanted[one], stored[one], resolved[one])
            if kind and self._is_waiting(wanted, at):
                self.waiting += 1
                kind = ""
            if kind and kind == kind_before:
                length += 1
                continue
            if kind_before:
                what = _KINDS[kind_before]
                found.append(self._finding(kind_before, queue, start, log_offset, what, length))
            kind_before, length = kind, 1
            if kind:
                start, log_offset = first + at // self.entry_bytes, LOG_OFFSET.unpack_from(wanted, at)[0]
        return found

    def _difference(self, topic: str, wanted: bytes, stored: bytes, resolved: bytes) -> str:
        """Return what is wrong with one stored entry; nothing for an end or when all is well."""
        if not wanted or wanted == resolved:
            return ""
        if not any(stored):
            return "queue.hole"
        if stored[:12] != wanted[:12]:
            return "queue.entry"
        if self._extensions is not None and ENTRY.unpack(stored)[2] <= queue_ext.ADDRESS_MAX:
            is_lost = ENTRY.unpack(resolved)[2] <= queue_ext.ADDRESS_MAX
            return "queue.unit" if is_lost or topic != SCHEDULE_TOPIC else ""
        return "" if topic == SCHEDULE_TOPIC else "queue.tags"

    def _hole(self, queue: Queue, first: int, wanted: bytes) -> list[Finding]:
        """Return what is missing of a run of which nothing is there: all but what is still to be written."""
        count = len(wanted) // self.entry_bytes
        due = first_at_or_after(
            0,
            count,
            self._trust.queues,
            lambda number: LOG_OFFSET.unpack_from(wanted, number * self.entry_bytes)[0],
        )
        self.waiting += count - due
        log_offset = LOG_OFFSET.unpack_from(wanted)[0]
        hole = self._finding("queue.hole", queue, first, log_offset, _KINDS["queue.hole"], due)
        return [hole] if due else []

    def _is_waiting(self, wanted: bytes, at: int) -> bool:
        return bool(LOG_OFFSET.unpack_from(wanted, at)[0] >= self._trust.queues)

    def _finding(
        self, kind: str, queue: Queue, queue_offset: int, log_offset: int, what: str, count: int = 1
    ) -> Finding:
        return Finding(
            kind=kind,
            file=str(self._entries.path(queue, queue_offset)),
            what=what,
            log_offset=log_offset,
            topic=queue[0],
            queue_id=queue[1],
            queue_offset=queue_offset,
            count=count,
        )

    def finish(self, log_min: int, log_end: int) -> None:
        """Report; look for entries without a record, those that are not yet in the log left out."""
        for queue, seen in self._seen.items():
            if is_deleted(queue, self._topics, self._found):
                continue
            for finding in seen.findings:
                if finding.log_offset is None or finding.log_offset >= log_min:
                    self._report.add(finding)
        for queue in sorted(self._found):
            topic = queue[0]
            if topic.startswith(_MULTI_PREFIX):
                continue
            for path, what in self._entries.complaints(queue):
                self._report.add(
                    Finding(kind="queue.file", file=str(path), what=what, topic=topic, queue_id=queue[1])
                )
            dead = self._deleted.get(topic, 0)
            lowest = _NO_LIMIT if dead == tables.PENDING else max(log_min, dead)
            self._look_for_strays(queue, lowest, log_end)

    def _look_for_strays(self, queue: Queue, log_min: int, log_end: int) -> None:
        seen = self._seen.setdefault(queue, _Seen())
        seen.end = seen.runs[-1][1] if seen.runs else 0
        for first, chunk in self._entries.outside(queue, seen.runs):
            for number, log_offset in self._pointing(chunk, log_min):
                if log_offset < log_end:
                    what = "the log has no record of this queue offset where the entry points"
                    self._report.add(self._finding("queue.stray", queue, first + number, log_offset, what))
                elif self._trust.queues == EVERYTHING:
                    what = f"the entry points behind the end of the log ({log_end})"
                    self._report.add(self._finding("queue.beyond", queue, first + number, log_offset, what))
            seen.end = max(seen.end, self._entries.last_filled(first, chunk))

    def _pointing(self, chunk: bytes, log_min: int) -> Iterator[tuple[int, int]]:
        """Yield number and log offset of the entries that point into the log, or behind it."""
        at = 0
        while at < len(chunk):
            found = queues.select(chunk[at:], 0, 1, _NO_LIMIT, None, log_min)
            at += found.examined * ENTRY_BYTES
            if not found.messages:
                return
            yield at // ENTRY_BYTES - 1, found.ranges[0][0]

    def counts(self) -> dict[Queue, int]:
        """Return how many records each queue has in the log."""
        return {queue: seen.records for queue, seen in self._seen.items() if seen.records}

    def ends(self) -> dict[Queue, int]:
        """Return one past the last entry of each queue that has a folder."""
        return {queue: self._seen[queue].end for queue in self._found if queue in self._seen}

    def close(self) -> None:
        self._entries.close()
