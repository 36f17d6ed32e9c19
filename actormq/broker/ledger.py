"""A ledger: small values by key in memory that outlives its writer (a mapped file), checked when read again.

Record: u32 key length, u32 CRC of the key, key, padded to 8; then two cells of 32 bytes: u64 number,
i64 value, i64 stamp, u32 CRC of these three, u32 0.  A value is written into the older of its two cells, so
a writer killed half-way leaves the former value; the valid cell with the higher number counts.
Records are only added; when no room is left the owner makes a new ledger from what lives and replaces the
file.  One writer; nobody else maps it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple
from zlib import crc32

MAGIC: Final = b"ActorMQ\x01"
_KEY: Final = struct.Struct("<II")
_VALUES: Final = struct.Struct("<Qqq")
_CELL: Final = struct.Struct("<QqqII")
assert _CELL.size == 32
KEY_BYTES_MAX: Final = 8192


class Row(NamedTuple):
    """What one key is worth."""

    key: bytes
    value: int
    stamp: int


class LedgerFull(Exception):
    """No room for another key: compact into a larger or emptier one."""


def record_bytes(key: bytes) -> int:
    """Return how much room a key takes."""
    return -(-(_KEY.size + len(key)) // 8) * 8 + 2 * _CELL.size


class Ledger:
    """Keys and values over `view`, which was zero when it was first used."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at: dict[bytes, int] = {}
        self._numbers: dict[bytes, int] = {}
        self._end = len(MAGIC)
        if bytes(view[: len(MAGIC)]) == bytes(len(MAGIC)):
            view[: len(MAGIC)] = MAGIC
        self.foreign = bytes(view[: len(MAGIC)]) != MAGIC
        self._found = [] if self.foreign else list(self._scan())

    def found(self) -> list[Row]:
        """Return what the memory held when this ledger was opened."""
        return self._found

    @property
    def free_bytes(self) -> int:
        return len(self._view) - self._end

    def _scan(self) -> Iterator[Row]:
        while self._end + _KEY.size <= len(self._view):
            length, crc = _KEY.unpack_from(self._view, self._end)
            key = bytes(self._view[self._end + _KEY.size : self._end + _KEY.size + length])
            if not 0 < length <= KEY_BYTES_MAX or len(key) != length or crc32(key) != crc:
                return  # the end, or a record that its writer did not finish: nothing follows it
            if self._end + record_bytes(key) > len(self._view):
                return
            cells = self._end + record_bytes(key) - 2 * _CELL.size
            self._at[key] = cells
            self._end += record_bytes(key)
            valid = filter(None, (self._cell(cells, which) for which in (0, 1)))
            number, value, stamp = max(valid, default=(0, 0, 0))
            self._numbers[key] = number
            if number:
                yield Row(key, value, stamp)

    def _cell(self, cells: int, which: int) -> tuple[int, int, int] | None:
        at = cells + which * _CELL.size
        number, value, stamp, crc, _ = _CELL.unpack_from(self._view, at)
        valid = number and crc == crc32(self._view[at : at + _VALUES.size])
        return (number, value, stamp) if valid else None

    def put(self, key: bytes, value: int, stamp: int = 0) -> None:
        """Set one value.  Raises: LedgerFull: the key is new and there is no room."""
        cells = self._at.get(key)
        if cells is None:
            cells = self._add(key)
        number = self._numbers[key] + 1
        values = _VALUES.pack(number, value, stamp)
        at = cells + number % 2 * _CELL.size
        self._view[at : at + _CELL.size] = values + struct.pack("<II", crc32(values), 0)
        self._numbers[key] = number

    def _add(self, key: bytes) -> int:
        assert 0 < len(key) <= KEY_BYTES_MAX
        if record_bytes(key) > self.free_bytes:
            raise LedgerFull
        cells = self._end + record_bytes(key) - 2 * _CELL.size
        start = self._end + _KEY.size
        # The head comes last: it makes the record count, and what is behind an unfinished one is anything.
        self._view[cells : cells + 2 * _CELL.size] = bytes(2 * _CELL.size)
        self._view[start : start + len(key)] = key
        _KEY.pack_into(self._view, self._end, len(key), crc32(key))
        self._at[key] = cells
        self._numbers[key] = 0
        self._end += record_bytes(key)
        return cells


def needed_bytes(rows: Iterable[Row]) -> int:
    """Return how large a ledger must be that holds `rows` and as much again."""
    return max(64 * 1024, 2 * (len(MAGIC) + sum(record_bytes(row.key) for row in rows)))
