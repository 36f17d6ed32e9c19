"""The log from one end to the other, piece by piece: what is good, what is not, and what queues it makes.

Beside a living broker the log grows while it is read: what was no record a moment ago is looked at again
before it is called damage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar

from actormq.kernels import queues, records
from actormq.kernels.records import ScanEnd
from actormq.message import SYSTEM_TOPIC_PREFIX, SYSTEM_TOPICS
from actormq.store import tables
from actormq.store.batch_queue import BatchQueues, is_batch_topic
from actormq.store.commit_log import MAKING_SUFFIX, LogReader, LogRemoved, file_name
from actormq.store.consume_queue import BadName, first_at_or_after, queue_folder
from actormq.store.disk import Disk
from actormq.store.log_scan import next_record
from actormq.store.tools.layout import Layout

STEP_BYTES: Final = 32 * 1024 * 1024
"""So much is mapped in, checked and let go of at once."""

_TRIES: Final = 20
"""Names come and go while a broker works: what was listed and is gone is listed again, so often."""

Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all) now and then."""


def no_progress(_done: int, _total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of good records, all of one file."""

    start: int
    end: int
    base: int
    view: memoryview
    """The whole file."""
    records: int
    last_store_timestamp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BadPlace:
    """Where a record should begin, and none does."""

    start: int
    end: int | None
    """Where the log goes on; None: nowhere."""
    reason: ScanEnd
    file: str


def again(look: Callable[[], Result]) -> Result:
    """Return what `look` returns; files that go while it looks make it look again."""
    for _ in range(_TRIES - 1):
        try:
            return look()
        except FileNotFoundError:
            continue
    return look()


def sound_files(disk: Disk, folder: Path, file_bytes: int) -> tuple[list[int], list[tuple[Path, str]]]:
    """Return where the files of a log or queue begin, and what is wrong with others in that folder."""
    bases: list[int] = []
    complaints: list[tuple[Path, str]] = []
    names = [name for name in disk.listdir(folder) if not name.endswith(MAKING_SUFFIX)]
    for name in names:
        path = folder / name
        try:
            if disk.is_folder(path) or ((size := disk.size(path)) == 0 and name == names[-1]):
                continue
        except FileNotFoundError:  # retention was here
            continue
        if not (len(name) == 20 and name.isascii() and name.isdigit()):
            complaints.append((path, "is no file of a store: its name is not 20 digits"))
        elif size != file_bytes:
            complaints.append((path, f"has {size} bytes, not {file_bytes}: half copied?"))
        elif int(name) % file_bytes:
            complaints.append((path, f"does not begin at a multiple of {file_bytes}"))
        else:
            bases.append(int(name))
    return bases, complaints


class Log:
    """The files of a log, and a reader of them."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self.disk = disk
        self.layout = layout
        self.reader = LogReader(disk, layout.log, layout.log_file_bytes, maps_max=4)
        self.reached = 0
        """How far the last walk has come; behind a blank record, the next file."""
        self.refresh()

    @property
    def min(self) -> int:
        """The first log offset that is still there."""
        return self.bases[0] if self.bases else 0

    @property
    def top(self) -> int:
        """Where the last file ends."""
        return self.bases[-1] + self.layout.log_file_bytes if self.bases else 0

    def refresh(self) -> None:
        """Look again which files there are: retention may have removed some."""
        self.bases, self.complaints = sound_files(self.disk, self.layout.log, self.layout.log_file_bytes)
        for before, after in pairwise(self.bases):
            if after != before + self.layout.log_file_bytes:
                missing = self.layout.log / file_name(before + self.layout.log_file_bytes)
                self.complaints.append((missing, f"is missing: the next file is {file_name(after)}"))

    def walk(self, start: int, end: int, *, check_crc: bool = True) -> Iterator[Piece | BadPlace]:
        """Yield what is in the log from `start`, where a record or a file begins, up to `end`.

        A place that no good record follows is yielded last.
        """
        at = self.reached = start
        while at < end:
            self.reached = at
            base = at - at % self.layout.log_file_bytes
            if base not in self.bases:
                at = self._next_base(at)
                continue
            try:
                view = self.reader.file(base)
            except LogRemoved:
                self.refresh()
                continue
            found = self._scan(view, base, at, end, check_crc)
            if found.records:
                yield Piece(
                    start=at,
                    end=base + found.end,
                    base=base,
                    view=view,
                    records=found.records,
                    last_store_timestamp=found.last_store_timestamp,
                )
                self.disk.forget(view, at - base, base + found.end - at)
            at = base + found.end
            if found.reason == ScanEnd.BLANK or len(view) - found.end < records.BLANK_BYTES:
                at = base + len(view)
            elif found.reason != ScanEnd.STOP:
                self.reached = at
                bad = self._bad_place(view, base, at, ScanEnd(found.reason), check_crc)
                if bad is None:
                    continue
                yield bad
                if bad.end is None:
                    return
                at = bad.end
        self.reached = at

    def _next_base(self, at: int) -> int:
        return next((base for base in self.bases if base > at), self.top)

    def _scan(self, view: memoryview, base: int, at: int, end: int, check_crc: bool) -> records.Scan:
        stop = min(at - base + STEP_BYTES, end - base)
        return records.scan(view, at - base, base, check_crc, stop)

    def _bad_place(
        self, view: memoryview, base: int, at: int, reason: ScanEnd, check_crc: bool
    ) -> BadPlace | None:
        """Return what is at `at`; None when it has become a record meanwhile."""
        good = self._next_good(base, at, reason)
        if records.scan(view, at - base, base, check_crc, at - base + 1).reason != reason:
            return None
        return BadPlace(start=at, end=good, reason=reason, file=file_name(base))

    def _next_good(self, base: int, at: int, reason: ScanEnd) -> int | None:
        if reason == ScanEnd.EMPTY and base == self.bases[-1]:
            fd = self.disk.open(self.layout.log / file_name(base), write=False)
            try:
                if not self.disk.has_data(fd, at - base):
                    return None
            finally:
                self.disk.close(fd)
        while True:
            try:
                return next_record(self.reader, self.bases, at + 1)
            except LogRemoved:
                self.refresh()


Queue = tuple[str, int]


def is_deleted(queue: Queue, topics: tables.Table | None, found: Collection[Queue]) -> bool:
    """Say whether a queue that the log has records of was deleted, folder and all, as RocketMQ does it.

    Args:
        topics: what topics.json says; None without one.
        found: the queues that have a folder.
    """
    topic = queue[0]
    known = topics is None or topic in (topics.get("topicConfigTable") or {})
    return not (known or queue in found or topic in SYSTEM_TOPICS or topic.startswith(SYSTEM_TOPIC_PREFIX))


def batch_topics(disk: Disk, layout: Layout, topics: tables.Table | None) -> set[str]:
    """Return the topics whose messages are in batch queues."""
    there = {topic for topic, _ in BatchQueues(disk, layout.root).names()}
    return there | tables.topics_with(topics, is_batch_topic)


class Dispatching:
    """Turns pieces of log into queue entries and index keys, whatever queues come.

    Args:
        deleted: by topic, the log offset before which its records are dead (`tables.PENDING`: all are).
    """

    def __init__(self, delay_ms: list[int], deleted: Mapping[str, int]) -> None:
        self._delay_ms = delay_ms
        self._deleted = {name: 1 << 62 if end == tables.PENDING else end for name, end in deleted.items()}
        self._rows: dict[tuple[bytes, int], int] = {}
        self.queues: list[Queue | None] = []
        """By row; None: of a name that cannot be a folder's."""
        self.bad_names: list[str] = []

    def pieces(self, piece: Piece) -> Iterator[queues.Dispatch]:
        """Yield what a piece makes; `Dispatch.end` is a position in its file."""
        at = piece.start - piece.base
        end = piece.end - piece.base
        while at < end:
            made = queues.dispatch(piece.view, at, end, piece.base, self._rows, self._delay_ms)
            at = made.end
            yield made
            if made.reason == queues.UNKNOWN_QUEUE:
                self._add_row(piece.view, at)
            else:
                assert made.reason == ScanEnd.STOP, (made.reason, piece.base + at)
                assert at == end, piece.base + at

    def keys_without_tags(self, piece: Piece, start: int, end: int) -> bytearray:
        """Return the index keys, but for those of tags, of what `pieces` has gone over: `start` to `end`."""
        made = queues.dispatch(
            piece.view, start, end, piece.base, self._rows, self._delay_ms, with_tags=False
        )
        assert made.end == end, (made.reason, piece.base + made.end)
        return made.keys

    def _add_row(self, view: memoryview, at: int) -> None:
        header = records.decode(view, at)
        self._rows[header.topic, header.queue_id] = len(self.queues)
        try:
            topic = header.topic.decode()
            queue_folder(Path(), topic, header.queue_id)
        except (UnicodeDecodeError, BadName) as error:
            self.bad_names.append(str(error))
            self.queues.append(None)
        else:
            self.queues.append((topic, header.queue_id))

    def is_dead(self, topic: str) -> bool:
        """Say whether a deleted topic of that name has records in the log, which count for nothing."""
        return topic in self._deleted

    def living(self, queue: Queue, first: int, entries: bytearray) -> tuple[int, bytearray]:
        """Return the entries of a run without those at its beginning that are of a deleted topic."""
        dead = self._deleted.get(queue[0], 0)
        if not dead:
            return first, entries

        def log_offset_at(number: int) -> int:
            return int(queues.ENTRY.unpack_from(entries, number * queues.ENTRY_BYTES)[0])

        keep = first_at_or_after(0, len(entries) // queues.ENTRY_BYTES, dead, log_offset_at)
        return first + keep, entries[keep * queues.ENTRY_BYTES :]
