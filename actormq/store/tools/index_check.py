"""The index against the log: every key of every record, every entry, every chain."""

from __future__ import annotations

import struct
from collections.abc import Callable

from actormq.kernels import checks
from actormq.kernels.queues import INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, INDEX_SLOT_BYTES, KEY
from actormq.store import index
from actormq.store.disk import Disk
from actormq.store.tools.layout import Layout
from actormq.store.tools.report import Finding, Report
from actormq.store.tools.trust import Trust


class IndexCheck:
    """Follows the index files while the log goes by; entries stand in the log's order.

    Args:
        log_min: entries of what came before it count for nothing.
    """

    def __init__(self, disk: Disk, layout: Layout, trust: Trust, report: Report, log_min: int) -> None:
        self._layout = layout
        self._trust = trust
        self._report = report
        self._entries_at = INDEX_HEADER_BYTES + layout.index_slots * INDEX_SLOT_BYTES
        self._disk = disk
        self._files = [
            (name, number, _map(disk, layout, name))
            for name, number in trust.index_files
            if self._has_room(name, number)
        ]
        self._file = 0
        self._at = self._entries_at + INDEX_ENTRY_BYTES
        self._there = disk.is_folder(layout.index) and bool(disk.listdir(layout.index))
        """Without any file there is no index, by the settings."""
        self.entries = sum(number - 1 for _, number, _ in self._files)
        self.waiting = 0
        """Keys that the dispatcher, or the next start, has still to store."""
        self._take(log_min)

    def _has_room(self, name: str, next_number: int) -> bool:
        """Say whether the file can have so many entries; with a damaged count nothing can be compared."""
        if 1 <= next_number <= self._layout.index_entries:
            return True
        what = f"it says that its next entry is number {next_number}, but it has room for less"
        self._add("index.header", name, what, 1)
        return False

    def compare(self, keys: bytearray, log_end: int, without_tags: Callable[[], bytearray]) -> None:
        """Compare the keys of the next stretch of log, which ends at `log_end`, with the entries.

        Args:
            without_tags: the keys that every RocketMQ has made entries of: before 5.4 tags had none.
        """
        places = self._take(log_end)
        entries = b"".join(bytes(view[start:end]) for _, view, start, end in places)
        found = checks.match_keys(entries, keys)
        if found.missing and self._there:
            keys = without_tags()
            old = checks.match_keys(entries, keys)
            if old.missing:
                self._missing(old.missing, KEY.unpack_from(keys, old.first_missing)[1])
        self._check_times(places, keys)
        if found.strays:
            name, number, log_offset = self._entry(places, found.first_stray)
            what = f"entry {number}: no record at that log offset has this key"
            self._add("index.stray", name, what, found.strays, log_offset)

    def _check_times(self, places: list[tuple[str, memoryview, int, int]], keys: bytearray) -> None:
        for name, view, start, end in places:
            begin_ms = index.read_header(view).begin_timestamp
            count, first = checks.wrong_times(view[start:end], keys, begin_ms)
            if count:
                number = (start + first - self._entries_at) // INDEX_ENTRY_BYTES
                what = f"entry {number} has another time than its message: a search by time passes it over"
                log_offset = struct.unpack_from(">q", view, start + first + 4)[0]
                self._add("index.time", name, what, count, log_offset)

    def _missing(self, count: int, log_offset: int) -> None:
        if log_offset >= self._trust.index:
            self.waiting += count
        else:
            name = self._files[min(self._file, len(self._files) - 1)][0] if self._files else ""
            self._add("index.hole", name, "a key of this record has no entry", count, log_offset)

    def _take(self, log_end: int) -> list[tuple[str, memoryview, int, int]]:
        """Return where entries before `log_end` stand that were not taken yet: (file, view, start, end)."""
        taken = []
        while self._file < len(self._files):
            name, number, view = self._files[self._file]
            stop = self._entries_at + number * INDEX_ENTRY_BYTES
            end = checks.units_before(view, self._at, stop, log_end)
            if end > self._at:
                taken.append((name, view, self._at, end))
            self._at = end
            if end < stop:
                break
            self._file += 1
            self._at = self._entries_at + INDEX_ENTRY_BYTES
        return taken

    def _entry(self, places: list[tuple[str, memoryview, int, int]], at: int) -> tuple[str, int, int]:
        """Return (file, number, log offset) of the entry at byte `at` of what was taken."""
        for name, view, start, end in places:
            if at < end - start:
                number = (start + at - self._entries_at) // INDEX_ENTRY_BYTES
                return name, number, struct.unpack_from(">q", view, start + at + 4)[0]
            at -= end - start
        raise AssertionError("behind what was taken")

    def finish(self, log_end: int) -> None:
        """Look at what is left behind the log's end, and at every chain."""
        if self._trust.clean:
            for name, view, start, end in self._take(1 << 62):
                what = f"entries of records behind the end of the log ({log_end})"
                log_offset = struct.unpack_from(">q", view, start + 4)[0]
                self._add("index.stray", name, what, (end - start) // INDEX_ENTRY_BYTES, log_offset)
        for number, (name, next_number, view) in enumerate(self._files):
            newest = number == len(self._files) - 1
            self._check_links(name, view, next_number, newest and not self._trust.clean)
            self._disk.forget(view, 0, len(view))

    def _check_links(self, name: str, view: memoryview, next_number: int, growing: bool) -> None:
        links = checks.check_links(view, self._layout.index_slots, next_number, growing)
        found = (
            (links.bad_slots, f"slot {links.first_bad_slot} leads to no entry of its own"),
            (links.bad_links, f"entry {links.first_bad_link} is linked to no older entry of its slot"),
            (links.unreached, f"entry {links.first_unreached} is not reached from its slot"),
        )
        for count, what in found:
            if count:
                self._add("index.chain", name, what, count)

    def _add(self, kind: str, name: str, what: str, count: int, log_offset: int | None = None) -> None:
        file = str(self._layout.index / name)
        self._report.add(Finding(kind=kind, file=file, what=what, count=count, log_offset=log_offset))


def _map(disk: Disk, layout: Layout, name: str) -> memoryview:
    fd = disk.open(layout.index / name, write=False)
    try:
        return disk.map_read(fd, layout.index_file_bytes)
    finally:
        disk.close(fd)
