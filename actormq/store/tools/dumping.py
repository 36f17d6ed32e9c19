"""Messages out of a log: all, or those of a topic, a queue, a key, a part of the log, a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from actormq.kernels import queues
from actormq.kernels.queues import KEY, KEY_BYTES
from actormq.kernels.records import ScanEnd
from actormq.store import record
from actormq.store.disk import Disk
from actormq.store.index import key_hash
from actormq.store.log_scan import next_record
from actormq.store.record import Record
from actormq.store.tools.layout import Layout
from actormq.store.tools.trust import file_at
from actormq.store.tools.walking import BadPlace, Dispatching, Log, Piece, Progress, no_progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which records; None: no matter."""

    first_offset: int | None = None
    end_offset: int | None = None
    first_ms: int | None = None
    """Store times, both included."""
    last_ms: int | None = None
    topic: str | None = None
    queue_id: int | None = None
    key: str | None = None
    """A word of KEYS, or the unique key; needs `topic`."""

    def __post_init__(self) -> None:
        assert self.topic is not None or (self.queue_id is None and self.key is None)


def dump(
    disk: Disk, layout: Layout, wanted: Wanted, progress: Progress = no_progress
) -> Iterator[Record | BadPlace]:
    """Yield the records in the log's order, and the places where one should be and none is.

    Of a topic, those that are in its queues: what was prepared and never committed is not.
    """
    log = Log(disk, layout)
    start, end = _range(log, wanted)
    choose = _Chooser(wanted)
    for found in log.walk(start, end):
        if isinstance(found, BadPlace):
            if found.end is not None or found.reason != ScanEnd.EMPTY:
                yield found
            continue
        progress(found.start - start, end - start)
        if wanted.first_ms is not None and found.last_store_timestamp < wanted.first_ms:
            continue
        for at in choose.places(found):
            one = record.decode(found.view, at)
            if wanted.last_ms is not None and one.store_timestamp > wanted.last_ms:
                return
            if choose.fits(one):
                yield one
    progress(end - start, end - start)


def _range(log: Log, wanted: Wanted) -> tuple[int, int]:
    """Return from where and up to where to look; a record or a file begins at the first."""
    start = log.min
    if wanted.first_ms is not None:
        start = file_at(log, wanted.first_ms - 1)
    if wanted.first_offset is not None and wanted.first_offset > start:
        found = next_record(log.reader, log.bases, wanted.first_offset)
        start = log.top if found is None else found
    end = log.top if wanted.end_offset is None else min(wanted.end_offset, log.top)
    return start, max(start, end)


class _Chooser:
    """Finds the wanted records of a piece without looking at each."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._dispatching = Dispatching([], {})
        self._hash = None
        if wanted.key is not None and wanted.topic is not None:
            self._hash = KEY.pack(key_hash(wanted.topic, wanted.key), 0, 0)[:4]

    def places(self, piece: Piece) -> list[int]:
        """Return the positions of records that may be wanted, ascending."""
        if self._wanted.topic is None:
            return _all_places(piece)
        found = []
        for made in self._dispatching.pieces(piece):
            found += self._in_queues(made) if self._hash is None else _with_hash(made.keys, self._hash)
        return sorted({log_offset - piece.base for log_offset in found})

    def _in_queues(self, made: queues.Dispatch) -> list[int]:
        found = []
        for row, _, entries in made.runs:
            queue = self._dispatching.queues[row]
            if queue is not None and queue[0] == self._wanted.topic and self._is_queue(queue[1]):
                found += [log_offset for log_offset, _, _ in queues.ENTRY.iter_unpack(entries)]
        return found

    def _is_queue(self, queue_id: int) -> bool:
        return self._wanted.queue_id in (None, queue_id)

    def fits(self, one: Record) -> bool:
        """Say whether a record that may be wanted is: hashes are not unique."""
        wanted = self._wanted
        if wanted.first_ms is not None and one.store_timestamp < wanted.first_ms:
            return False
        if wanted.topic is not None and (one.topic != wanted.topic or not self._is_queue(one.queue_id)):
            return False
        keys = (*one.properties.get("KEYS", "").split(" "), one.properties.get("UNIQ_KEY"))
        return wanted.key is None or wanted.key in keys


def _all_places(piece: Piece) -> list[int]:
    found = []
    at, end = piece.start - piece.base, piece.end - piece.base
    while at < end:
        found.append(at)
        at += int.from_bytes(piece.view[at : at + 4], "big")
    return found


def _with_hash(keys: bytearray, wanted: bytes) -> list[int]:
    """Return the log offsets of the key units that begin with this hash."""
    found = []
    at = keys.find(wanted)
    while at >= 0:
        if at % KEY_BYTES == 0:
            found.append(KEY.unpack_from(keys, at)[1])
        at = keys.find(wanted, at + 1)
    return found
