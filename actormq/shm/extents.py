"""Extents: one row per queue, how readers see which entries there are.

A row is a line of 64 bytes, eight u64 cells.  The dispatcher writes `max`, the cleaner `min`; the
coordinator opens and closes rows (before it, recovery).  Deleting and creating a topic again gives the
row a new incarnation, so that nobody is served the dead queue's file.

A reader takes an `Extent`, reads the queue's file, then asks `still_holds`; if not, what it read is
thrown away.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from actormq.kernels.rings import Cells

ROW_BYTES: Final = 64
_WORDS = ROW_BYTES // 8


class Column(IntEnum):
    """The cells of a row; one more is reserved."""

    INCARNATION = 0
    """Which queue has had this row, from 1; 0 = the row is free."""
    MIN = 1
    """First entry that may be read."""
    MAX = 2
    """One past the last entry that may be read."""
    FIRST_FILE_ENTRY = 3
    """First entry of the first file."""
    ENTRIES_PER_FILE = 4
    LOG_START = 5
    """Records of this name that begin before this log offset belong to a deleted topic."""
    LOST_FROM = 6
    """One more than where the queue ended after a start that may have lost its tail; 0: nothing was lost."""


class Extent(NamedTuple):
    """What a row said at one moment."""

    incarnation: int
    min: int
    max: int


class Extents:
    """All rows of a broker.

    Attributes:
        rows_max: how many there are; beyond it no queue can be created.
        view: their memory, for kernels.
    """

    def __init__(self, view: memoryview) -> None:
        """`view`: a whole segment's payload, `payload_bytes(rows_max)` long."""
        self.rows_max = len(view) // ROW_BYTES
        self.view = view
        self._cells = Cells(view)

    @staticmethod
    def payload_bytes(rows_max: int) -> int:
        """Return the bytes that so many rows need."""
        return rows_max * ROW_BYTES

    def read(self, row: int) -> Extent:
        """Return the row's extent, of one incarnation; incarnation 0 = no queue has this row."""
        while True:
            incarnation = self._cells.load(row * _WORDS)
            highest = self._cells.load(row * _WORDS + Column.MAX)
            lowest = self._cells.load(row * _WORDS + Column.MIN)
            if self._cells.load(row * _WORDS) == incarnation:
                return Extent(incarnation, lowest, highest)

    def still_holds(self, row: int, extent: Extent, first_entry: int) -> bool:
        """Whether what was read since taking `extent`, from `first_entry` on, was that queue's and alive.

        Fenced: the reading is over before the row is looked at again.
        """
        return (
            self._cells.fence_then_load(row * _WORDS) == extent.incarnation
            and self._cells.load(row * _WORDS + Column.MIN) <= first_entry
        )

    def files(self, row: int) -> tuple[int, int]:
        """Return the first entry of the row's first file and the entries per file."""
        return (
            self._cells.load(row * _WORDS + Column.FIRST_FILE_ENTRY),
            self._cells.load(row * _WORDS + Column.ENTRIES_PER_FILE),
        )

    def log_start(self, row: int) -> int:
        """Return the log offset from which on records of the row's topic belong to this queue."""
        return self._cells.load(row * _WORDS + Column.LOG_START)

    def lost_from(self, row: int) -> int | None:
        """Return the entry from which on others may have stood there in the former broker's life."""
        stored = self._cells.load(row * _WORDS + Column.LOST_FROM)
        return stored - 1 if stored else None

    def set_max(self, row: int, entries: int) -> None:
        """Make the entries before `entries` readable, after their bytes are written (dispatcher)."""
        self._cells.store(row * _WORDS + Column.MAX, entries)

    def set_min(self, row: int, entry: int) -> None:
        """Make the entries before `entry` unreadable, before their file goes (cleaner)."""
        self._cells.store(row * _WORDS + Column.MIN, entry)

    def set_files(self, row: int, first_entry: int, entries_per_file: int) -> None:
        """Say which files the queue has (cleaner, dispatcher)."""
        self._cells.store(row * _WORDS + Column.FIRST_FILE_ENTRY, first_entry)
        self._cells.store(row * _WORDS + Column.ENTRIES_PER_FILE, entries_per_file)

    def open_row(
        self,
        row: int,
        incarnation: int,
        min: int,
        max: int,
        first_file_entry: int = 0,
        entries_per_file: int = 0,
        log_start: int = 0,
        lost_from: int | None = None,
    ) -> None:
        """Give the row to a queue; `incarnation` must be one that the row has never had."""
        assert incarnation > 0, "incarnation 0 means a free row"
        self.close_row(row)
        self.set_files(row, first_file_entry, entries_per_file)
        self.set_min(row, min)
        self.set_max(row, max)
        self._cells.store(row * _WORDS + Column.LOG_START, log_start)
        self._cells.store(row * _WORDS + Column.LOST_FROM, 0 if lost_from is None else lost_from + 1)
        # Last: a reader that saw it early would take the dead queue's numbers for this one's.
        self._cells.store(row * _WORDS, incarnation)

    def close_row(self, row: int) -> None:
        """Take the row from its queue: readers discard what they are reading."""
        self._cells.store(row * _WORDS, 0)
