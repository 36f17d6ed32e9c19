"""Where does the log end, and what is wrong before that?

A crash leaves a torn tail; it is cut.  Damage before the point that is known to be durable is no torn tail:
cutting there would throw away what was acknowledged.  It is passed over, named, and what follows is kept.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Final

from actormq.errors import StoreForeign
from actormq.kernels import records
from actormq.kernels.records import ScanEnd
from actormq.store.commit_log import LogReader, file_name

_STEP_BYTES: Final = 32 * 1024 * 1024
"""So much is mapped in at once: a start must not need memory in proportion to the log."""
_BLOCK_BYTES: Final = 4096
_SEARCH_BYTES: Final = 1024 * 1024
_NO_END: Final = 1 << 62
_MAGICS: Final = (
    records.MAGIC_V1.to_bytes(4, "big", signed=True),
    records.MAGIC_V2.to_bytes(4, "big", signed=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A stretch of the log that should hold records, and does not."""

    start: int
    end: int
    reason: ScanEnd
    file: str

    def __str__(self) -> str:
        return (
            f"log file {self.file} is damaged at log offset {self.start} ({self.reason.name}): "
            f"{self.end - self.start} bytes are passed over"
        )


@dataclass(slots=True, kw_only=True)
class LogScan:
    """What `find_end` saw."""

    end: int = 0
    """The log's end: one past the last good record."""
    stretches: list[tuple[int, int]] = field(default_factory=list)
    """(start, end) in the log, ascending: only good records, each stretch inside one file."""
    damages: list[Damage] = field(default_factory=list)
    torn: ScanEnd = ScanEnd.EMPTY
    """Why what lies behind the end is no record."""
    last_store_timestamp: int = 0
    scanned_bytes: int = 0


def find_end(reader: LogReader, bases: list[int], start: int, durable_to: int, check_crc: int) -> LogScan:
    """Walk the log from `start`, where a record or a file begins, to its end.

    Args:
        bases: where the files begin; no gaps.
        durable_to: everything before this offset was once on the disk.
        check_crc: as in `records.check_record`.

    Raises:
        StoreForeign: zeros stand where there must be records: a store that was copied in part.
    """
    result = LogScan()
    at = start
    while True:
        base = at - at % reader.file_bytes
        if base not in bases:
            break
        view = reader.file(base)
        position = at - base
        found = records.scan(view, position, base, check_crc, position + _STEP_BYTES)
        if found.records:
            result.stretches.append((at, base + found.end))
            result.last_store_timestamp = found.last_store_timestamp
        result.scanned_bytes += found.end - position
        reader.disk.forget(view, position, found.end - position)
        at = base + found.end
        if found.reason == ScanEnd.BLANK or reader.file_bytes - found.end < records.BLANK_BYTES:
            at = base + reader.file_bytes
        elif found.reason != ScanEnd.STOP:
            if at >= durable_to:
                result.torn = ScanEnd(found.reason)
                break
            at = _pass_over(reader, bases, at, durable_to, ScanEnd(found.reason), result)
    result.end = at
    return result


def _pass_over(
    reader: LogReader, bases: list[int], at: int, durable_to: int, reason: ScanEnd, result: LogScan
) -> int:
    """Note the damage at `at` and return where the log goes on."""
    name = file_name(at - at % reader.file_bytes)
    good = next_record(reader, bases, at + 1)
    if good is None:
        if reason == ScanEnd.EMPTY or (
            not _is_one_record(reader, at, durable_to) and _has_zeros(reader, at, durable_to)
        ):
            raise StoreForeign(
                f"log file {name} ends at position {at % reader.file_bytes}, but the log was whole up to "
                f"offset {durable_to}: it was copied in part"
            )
        good = durable_to
    result.damages.append(Damage(start=at, end=good, reason=reason, file=name))
    return good


def _is_one_record(reader: LogReader, start: int, end: int) -> bool:
    """Say whether [start, end) is what the record at `start` says of itself: its body alone is damaged."""
    view = reader.file(start - start % reader.file_bytes)
    at = start % reader.file_bytes
    found = records.scan(view, at, start - at, records.CRC_NOT, at + 1)
    return found.records == 1 and found.end == end - start + at


def _has_zeros(reader: LogReader, start: int, end: int) -> bool:
    """Say whether a whole block in [start, end) is zeros, or the range leaves the file."""
    base = start - start % reader.file_bytes
    if end > base + reader.file_bytes:
        return True
    view = reader.file(base)
    first = -(-(start - base) // _BLOCK_BYTES) * _BLOCK_BYTES
    return any(
        not any(view[at : at + _BLOCK_BYTES]) for at in range(first, end - base - _BLOCK_BYTES, _BLOCK_BYTES)
    )


def next_record(reader: LogReader, bases: Container[int], start: int, end: int = _NO_END) -> int | None:
    """Return the log offset of the first good record in [start, end); None without one.

    A record says itself where it belongs, so bytes inside another's body are not taken for one.
    """
    at = start
    while (base := at - at % reader.file_bytes) in bases:
        view = reader.file(base)
        position = at - base
        while position < reader.file_bytes and base + position < end:
            # A magic number may lie across the border of two pieces.
            piece = bytes(view[position : position + _SEARCH_BYTES + 7])
            for candidate in _candidates(piece):
                if (
                    candidate < _SEARCH_BYTES
                    and records.scan(
                        view, position + candidate, base, records.CRC_CHECK, position + candidate + 1
                    ).records
                ):
                    found = base + position + candidate
                    return found if found < end else None
            position += _SEARCH_BYTES
        at = base + reader.file_bytes
    return None


def _candidates(piece: bytes) -> list[int]:
    """Return the places in `piece` that a record may begin at: four bytes before each magic number."""
    places = []
    for magic in _MAGICS:
        found = piece.find(magic, 4)
        while found >= 0:
            places.append(found - 4)
            found = piece.find(magic, found + 1)
    return sorted(places)
