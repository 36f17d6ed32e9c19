# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False
"""What one gateway's pulls wait for, as the holder knows it: by row, and by place.

Plain Python that runs as it stands; compiled, `parks.pxd` gives the C types.  A gateway uses a place again
when its wait is over, whoever ended it: the next wait in that place takes the last one's, so the
table never holds more than the gateway has places, and needs no clock.
"""

from __future__ import annotations

import struct
from typing import Final

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

PARK: Final = struct.Struct("<QIIq")
"""number, row, row incarnation, wanted (wake when the queue's max is above it)."""
PARK_BYTES: Final = 24
assert PARK.size == PARK_BYTES

if not cython.compiled:
    from actormq.kernels.pulls import cell, load_number
    from actormq.kernels.records import pointer_const

    _PARK_BYTES: Final = 24
    PLACE_BITS: Final = 20
    ROW_CELLS: Final = 8
    MAX: Final = 2

    def load_row(data: memoryview, at: int) -> int:
        """Return an unsigned number of 32 bits, little-endian."""
        return int.from_bytes(data[at : at + 4], "little")

    def append_number(out: bytearray, number: int) -> None:
        """Add a number to `out`."""
        out += number.to_bytes(8, "little")


class Parked:
    """One place, and the wait that it has."""

    def __init__(self) -> None:
        self.number = 0
        self.used = False
        self.row = self.row_incarnation = 0
        self.wanted = 0
        self.before: Parked | None = None
        self.behind: Parked | None = None


class ParkTable:
    """The waits of one gateway.

    Args:
        extents: the extents table's memory.

    Attributes:
        woken: the numbers of waits that are over, u64 each; the caller takes them out.
    """

    def __init__(self, extents: memoryview) -> None:
        self._cells = extents.cast("Q")
        self._places: list[Parked] = []
        self._rows: dict[int, Parked] = {}
        self._count = 0
        self.woken = bytearray()

    def __len__(self) -> int:
        return self._count

    def park(self, entries: list[memoryview]) -> None:
        """Take waits over (`PARK` units); those whose row has grown already are woken at once."""
        for entry in entries:
            self._park(entry)

    def _park(self, entry: memoryview) -> None:
        data = pointer_const(entry)
        for at in range(0, len(entry), _PARK_BYTES):
            number = load_number(data, at)
            place = number & ((1 << PLACE_BITS) - 1)
            while place >= len(self._places):
                self._places.append(Parked())
            parked = self._places[place]
            if parked.used:
                self._unlink(parked)
            parked.number = number
            parked.row = load_row(data, at + 8)
            parked.row_incarnation = load_row(data, at + 12)
            parked.wanted = load_number(data, at + 16)
            if self._is_due(parked):
                append_number(self.woken, number)
            else:
                self._link(parked)

    def arrived(self, entries: list[memoryview]) -> None:
        """Wake who waits for rows that have grown: u32 each."""
        for entry in entries:
            self._arrived(entry)

    def _arrived(self, entry: memoryview) -> None:
        data = pointer_const(entry)
        for at in range(0, len(entry), 4):
            self._look(load_row(data, at))

    def look_at_all(self) -> None:
        """As `arrived`, for every row: nobody knows which have grown."""
        for row in list(self._rows):
            self._look(row)

    def _look(self, row: int) -> None:
        parked = self._rows.get(row)
        while parked is not None:
            following = parked.behind
            if self._is_due(parked):
                append_number(self.woken, parked.number)
                self._unlink(parked)
            parked = following

    def _is_due(self, parked: Parked) -> bool:
        # Another incarnation: the topic is gone, which the gateway has to tell its client.
        at = parked.row * ROW_CELLS
        return cell(self._cells, at) != parked.row_incarnation or cell(self._cells, at + MAX) > parked.wanted

    def _link(self, parked: Parked) -> None:
        first = self._rows.get(parked.row)
        parked.used = True
        parked.before = None
        parked.behind = first
        if first is not None:
            first.before = parked
        self._rows[parked.row] = parked
        self._count += 1

    def _unlink(self, parked: Parked) -> None:
        before, behind = parked.before, parked.behind
        parked.used = False
        if behind is not None:
            behind.before = before
        if before is not None:
            before.behind = behind
        elif behind is not None:
            self._rows[parked.row] = behind
        else:
            del self._rows[parked.row]
        parked.before = parked.behind = None
        self._count -= 1
