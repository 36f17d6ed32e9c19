"""Published tables: what every gateway must know, as a log of entries that one role writes.

A segment has two halves.  The half in use holds a snapshot and the changes since, each entry a u32
length and its bytes; the cell `Position.TABLES` says how far it may be read: ``epoch << 40 | end``,
in half ``epoch & 1``.  When a half is full the publisher writes a new snapshot into the other one and
steps to the next epoch (`compact`), once every live reader has come to the present one.

Nothing torn is ever returned: a half names the epoch it holds in a cell of its own, which is
overwritten before its bytes are, and readers compare it after they have copied.
What an entry means is for `actormq.broker.tables`; bytes to this file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Final

from actormq.errors import BrokerError
from actormq.kernels.rings import Cells
from actormq.shm.positions import Position, Positions, RoleCell

_LENGTH = struct.Struct("<I")
_LINE = 64
_HALVES_START = 2 * _LINE
_EPOCH_SHIFT: Final = 40
_END_MASK: Final = (1 << _EPOCH_SHIFT) - 1
_BEING_WRITTEN: Final = (1 << 64) - 1


class TablesFull(BrokerError):
    """The half has no room: compact, and if the snapshot itself is too long, raise `tables_bytes`."""


class _Halves:
    """The memory: two cells, then two halves."""

    def __init__(self, view: memoryview) -> None:
        self.half_bytes = (len(view) - _HALVES_START) // 2 // _LINE * _LINE
        self._view = view
        self.cells = Cells(view[:_HALVES_START])

    def epoch(self, half: int) -> int:
        return self.cells.load(half * _LINE // 8)

    def set_epoch(self, half: int, epoch: int) -> None:
        self.cells.store_then_fence(half * _LINE // 8, epoch)

    def bytes(self, half: int) -> memoryview:
        start = _HALVES_START + half * self.half_bytes
        return self._view[start : start + self.half_bytes]


def epoch_of(version: int) -> int:
    """Return the epoch of a version: readers start again from nothing when it changes."""
    return version >> _EPOCH_SHIFT


def behind(positions: Positions, version: int, slots: Iterable[int]) -> list[int]:
    """Return those of the readers in `slots` that have not come to `version` yet."""
    return [slot for slot in slots if positions.role(slot, RoleCell.TABLES_SEEN) < version]


class TablesPublisher:
    """The one who writes.  A new one goes on where a dead one published last."""

    def __init__(self, view: memoryview, positions: Positions) -> None:
        self._halves = _Halves(view)
        self._positions = positions
        self.version = positions.get(Position.TABLES)

    @property
    def half_bytes(self) -> int:
        """How long a snapshot and the changes since may be."""
        return self._halves.half_bytes

    @property
    def free_bytes(self) -> int:
        """What is left of the half in use; an entry takes 4 bytes and its length."""
        return self._halves.half_bytes - (self.version & _END_MASK)

    def publish(self, *entries: bytes) -> int:
        """Add entries, seen by a reader all or none, and return the version that has them.

        Raises TablesFull, having published nothing.
        """
        added = _framed(entries)
        if len(added) > self.free_bytes:
            raise TablesFull(
                f"the published tables have {self.free_bytes} bytes left, {len(added)} are needed"
            )
        end = self.version & _END_MASK
        self._halves.bytes(epoch_of(self.version) & 1)[end : end + len(added)] = added
        return self._set_version(self.version + len(added))

    def compact(self, entries: Iterable[bytes], may_flip: Callable[[], bool]) -> bool:
        """Replace everything published by the snapshot `entries`, in the other half.

        Returns False, having done nothing, when `may_flip` does: some reader may still be reading
        that half (`behind(positions, epoch_start, live)` is not empty).
        Raises TablesFull when the snapshot does not fit.
        """
        if not may_flip():
            return False
        snapshot = _framed(entries)
        if len(snapshot) > self._halves.half_bytes:
            raise TablesFull(f"{len(snapshot)} bytes of tables in {self._halves.half_bytes} bytes of memory")
        epoch = epoch_of(self.version) + 1
        self._halves.set_epoch(epoch & 1, _BEING_WRITTEN)
        self._halves.bytes(epoch & 1)[: len(snapshot)] = snapshot
        self._halves.set_epoch(epoch & 1, epoch)
        self._set_version(epoch << _EPOCH_SHIFT | len(snapshot))
        return True

    @property
    def epoch_start(self) -> int:
        """The first version of the present epoch: who has seen it no longer reads the other half."""
        return epoch_of(self.version) << _EPOCH_SHIFT

    def _set_version(self, version: int) -> int:
        # The version moves last: a reader that saw it early would read the bytes of two epochs ago.
        self.version = version
        self._positions.set(Position.TABLES, version)
        return version


class TablesReader:
    """One role's way through the tables."""

    def __init__(self, view: memoryview, positions: Positions, slot: int) -> None:
        """`slot`: whose TABLES_SEEN cell says how far it has come."""
        self._halves = _Halves(view)
        self._positions = positions
        self._slot = slot
        self._version: int | None = None

    @property
    def stale(self) -> bool:
        """Whether `poll` would return something: one load, for once per batch."""
        return self._version != self._positions.get(Position.TABLES)

    def poll(self) -> tuple[bool, list[bytes]]:
        """Return what was published since the last call.

        The flag says that the entries are everything: forget what came before (always so the first
        time).  Call `mark_seen` when they have been applied.
        """
        while True:
            version = self._positions.get(Position.TABLES)
            reset = self._version is None or epoch_of(self._version) != epoch_of(version)
            start = 0 if reset else (self._version or 0) & _END_MASK
            copied = self._copy(version, start)
            if copied is not None:
                self._version = version
                return reset, _entries(copied)

    def _copy(self, version: int, start: int) -> bytes | None:
        """Return the bytes up to `version`, or None when they have been overwritten meanwhile."""
        epoch = epoch_of(version)
        if self._halves.epoch(epoch & 1) != epoch:
            return None
        copied = bytes(self._halves.bytes(epoch & 1)[start : version & _END_MASK])
        # Fenced: no byte above may have been read after the epoch is compared again.
        return copied if self._halves.cells.fence_then_load((epoch & 1) * _LINE // 8) == epoch else None

    def mark_seen(self) -> None:
        """Say in TABLES_SEEN that all that `poll` returned has been applied."""
        self._positions.set_role(self._slot, RoleCell.TABLES_SEEN, self._version or 0)


def _framed(entries: Iterable[bytes]) -> bytes:
    parts: list[bytes] = []
    for entry in entries:
        parts += (_LENGTH.pack(len(entry)), entry)
    return b"".join(parts)


def _entries(framed: bytes) -> list[bytes]:
    entries = []
    at = 0
    while at < len(framed):
        (length,) = _LENGTH.unpack_from(framed, at)
        at += _LENGTH.size
        assert at + length <= len(framed), "a published entry beyond the published end"
        entries.append(framed[at : at + length])
        at += length
    return entries
