"""Queues against the log: what the log makes of itself, run by run, and what the files have.

Entries that no record of the log stands behind are looked for at the end, where no run was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from actormq.kernels import queues
from actormq.kernels.queues import ENTRY, ENTRY_BYTES
from actormq.message import SCHEDULE_TOPIC
from actormq.store import queue_ext, tables
from actormq.store.commit_log import file_name
from actormq.store.consume_queue import first_at_or_after, queue_folder
from actormq.store.disk import Disk
from actormq.store.tools.layout import Layout
from actormq.store.tools.report import Finding, Report
from actormq.store.tools.trust import EVERYTHING, Trust
from actormq.store.tools.walking import Queue, is_deleted, sound_files

_CHUNK_BYTES: Final = 50_000 * ENTRY_BYTES
_NO_LIMIT: Final = 1 << 62
_MULTI_PREFIX: Final = "%LMQ%"
"""Queues of messages whose own topic is another (RocketMQ's light queues)."""
_KINDS: Final = {
    "queue.hole": "there is no entry for this record",
    "queue.entry": "the entry points at another place than the record",
    "queue.tags": "the entry has another tags code than the record",
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
        topics: what topics.json says; None without one.
        found: the queues that have a folder.
        deleted: by topic, the log offset before which its records are dead.
        unchecked: topics whose entries lie elsewhere.
    """

    def __init__(
        self,
        disk: Disk,
        layout: Layout,
        trust: Trust,
        report: Report,
        topics: tables.Table | None,
        found: Collection[Queue],
        deleted: Mapping[str, int],
        unchecked: Collection[str],
    ) -> None:
        self._with_ext = disk.is_folder(layout.root / queue_ext.FOLDER)
        self._trust = trust
        self._report = report
        self._topics = topics
        self._found = set(found)
        self._deleted = deleted
        self._unchecked = unchecked
        self._seen: dict[Queue, _Seen] = {}
        self._entries = _Entries(disk, layout)
        self.waiting = 0
        """Entries that the dispatcher, or the next start, has still to write."""

    def compare(self, queue: Queue, first: int, entries: bytearray) -> None:
        """Compare consecutive entries, as the log makes them, with the queue's files."""
        if not entries:
            return
        seen = self._seen.setdefault(queue, _Seen())
        count = len(entries) // ENTRY_BYTES
        seen.records += count
        if queue[0] in self._unchecked:
            return
        self._note_run(queue, seen, first, count, entries)
        stored = self._entries.read(queue, first, count)
        if stored != entries:
            seen.findings += self._differences(queue, first, bytes(entries), stored)

    def _note_run(self, queue: Queue, seen: _Seen, first: int, count: int, entries: bytearray) -> None:
        if first == 0 and seen.runs:
            # The topic was deleted and made again: what was before is nobody's.
            seen.runs.clear()
            seen.findings.clear()
        if seen.runs and first < seen.runs[-1][1]:
            what = f"queue offset {first} has been taken by an earlier record"
            seen.findings.append(
                self._finding("queue.double", queue, first, ENTRY.unpack_from(entries)[0], what)
            )
        if seen.runs and seen.runs[-1][1] == first:
            seen.runs[-1] = (seen.runs[-1][0], first + count)
        else:
            seen.runs.append((first, first + count))

    def _differences(self, queue: Queue, first: int, wanted: bytes, stored: bytes) -> list[Finding]:
        """Return the entries that differ, neighbours with the same trouble as one."""
        if not stored.strip(b"\0"):
            return self._hole(queue, first, wanted)
        found: list[Finding] = []
        kind_before, start, length, log_offset = "", 0, 0, 0
        for at in range(0, len(wanted) + 1, ENTRY_BYTES):
            kind = self._difference(queue[0], wanted[at : at + ENTRY_BYTES], stored[at : at + ENTRY_BYTES])
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
                start, log_offset = first + at // ENTRY_BYTES, ENTRY.unpack_from(wanted, at)[0]
        return found

    def _difference(self, topic: str, wanted: bytes, stored: bytes) -> str:
        """Return what is wrong with one stored entry; nothing for an end or when all is well."""
        if not wanted or wanted == stored:
            return ""
        if not any(stored):
            return "queue.hole"
        if stored[:12] != wanted[:12]:
            return "queue.entry"
        is_address = self._with_ext and ENTRY.unpack(stored)[2] <= queue_ext.ADDRESS_MAX
        return "" if topic == SCHEDULE_TOPIC or is_address else "queue.tags"

    def _hole(self, queue: Queue, first: int, wanted: bytes) -> list[Finding]:
        """Return what is missing of a run of which nothing is there: all but what is still to be written."""
        count = len(wanted) // ENTRY_BYTES
        due = first_at_or_after(
            0, count, self._trust.queues, lambda number: ENTRY.unpack_from(wanted, number * ENTRY_BYTES)[0]
        )
        self.waiting += count - due
        log_offset = ENTRY.unpack_from(wanted)[0]
        hole = self._finding("queue.hole", queue, first, log_offset, _KINDS["queue.hole"], due)
        return [hole] if due else []

    def _is_waiting(self, wanted: bytes, at: int) -> bool:
        return bool(ENTRY.unpack_from(wanted, at)[0] >= self._trust.queues)

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
            if topic in self._unchecked or topic.startswith(_MULTI_PREFIX):
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
            at = 0
            while at < len(chunk):
                found = queues.select(chunk[at:], 0, 1, _NO_LIMIT, None, log_min)
                at += found.examined * ENTRY_BYTES
                number = first + at // ENTRY_BYTES
                if not found.messages:
                    break
                log_offset = found.ranges[0][0]
                if log_offset < log_end:
                    what = "the log has no record of this queue offset where the entry points"
                    self._report.add(self._finding("queue.stray", queue, number - 1, log_offset, what))
                elif self._trust.queues == EVERYTHING:
                    what = f"the entry points behind the end of the log ({log_end})"
                    self._report.add(self._finding("queue.beyond", queue, number - 1, log_offset, what))
            seen.end = max(seen.end, self._entries.last_filled(first, chunk))

    def counts(self) -> dict[Queue, int]:
        """Return how many records each queue has in the log."""
        return {queue: seen.records for queue, seen in self._seen.items() if seen.records}

    def ends(self) -> dict[Queue, int]:
        """Return one past the last entry of each queue that has a folder."""
        return {queue: self._seen[queue].end for queue in self._found if queue in self._seen}

    def close(self) -> None:
        self._entries.close()


class _Entries:
    """The files of all queues, read by descriptors: a map of a sparse file takes memory for its holes."""

    def __init__(self, disk: Disk, layout: Layout, descriptors_max: int = 256) -> None:
        self._disk = disk
        self._root = layout.queues
        self._file_bytes = layout.queue_file_entries * ENTRY_BYTES
        self._descriptors: OrderedDict[Path, int] = OrderedDict()
        self._descriptors_max = descriptors_max

    def path(self, queue: Queue, number: int) -> Path:
        """Return the file in which an entry stands."""
        at = number * ENTRY_BYTES
        return queue_folder(self._root, *queue) / file_name(at - at % self._file_bytes)

    def complaints(self, queue: Queue) -> list[tuple[Path, str]]:
        """Return what is wrong with the files of a queue."""
        return sound_files(self._disk, queue_folder(self._root, *queue), self._file_bytes)[1]

    def read(self, queue: Queue, first: int, count: int) -> bytes:
        """Return entries; zeros where there is no file."""
        parts = []
        while count:
            path = self.path(queue, first)
            at = first * ENTRY_BYTES % self._file_bytes
            size = min(count * ENTRY_BYTES, self._file_bytes - at)
            fd = self._descriptor(path)
            parts.append((self._disk.pread(fd, size, at) if fd >= 0 else b"").ljust(size, b"\0"))
            first += size // ENTRY_BYTES
            count -= size // ENTRY_BYTES
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _descriptor(self, path: Path) -> int:
        fd = self._descriptors.get(path)
        if fd is None:
            try:
                fd = self._disk.open(path, write=False)
            except (FileNotFoundError, NotADirectoryError):
                return -1
            self._descriptors[path] = fd
            if len(self._descriptors) > self._descriptors_max:
                self._disk.close(self._descriptors.popitem(last=False)[1])
        self._descriptors.move_to_end(path)
        return fd

    def outside(self, queue: Queue, runs: list[tuple[int, int]]) -> list[tuple[int, bytes]]:
        """Return (number of the first, entries) of every stretch with data that is in none of `runs`."""
        found: list[tuple[int, bytes]] = []
        entries = self._file_bytes // ENTRY_BYTES
        for base in sound_files(self._disk, queue_folder(self._root, *queue), self._file_bytes)[0]:
            first = base // ENTRY_BYTES
            at = first
            for start, end in [*sorted(runs), (first + entries, first + entries)]:
                if at < (stop := min(start, first + entries)):
                    found += self._with_data(queue, at, stop)
                at = max(at, min(end, first + entries))
        return found

    def _with_data(self, queue: Queue, first: int, end: int) -> list[tuple[int, bytes]]:
        found = []
        while first < end:
            fd = self._descriptor(self.path(queue, first))
            if fd < 0 or not self._disk.has_data(fd, first * ENTRY_BYTES % self._file_bytes):
                break
            count = min(end - first, _CHUNK_BYTES // ENTRY_BYTES)
            found.append((first, self.read(queue, first, count)))
            first += count
        return found

    @staticmethod
    def last_filled(first: int, chunk: bytes) -> int:
        """Return one past the last entry in `chunk` that is not all zeros."""
        return first + -(-len(chunk.rstrip(b"\0")) // ENTRY_BYTES)

    def close(self) -> None:
        for fd in self._descriptors.values():
            self._disk.close(fd)
        self._descriptors.clear()
