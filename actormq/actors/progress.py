"""How roles keep their progress: for their successor at once, on the disk only behind its cause.

A `LedgerFile` is in the run folder: it survives its role's death, not the broker's.  JSON files in the
store survive everything, and so must never say more than the log can prove (`SafeSave`).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from actormq.broker.ledger import Ledger, LedgerFull, Row, needed_bytes

LEDGER_BYTES: Final = 64 * 1024
HURRY_INTERVAL_MS: Final = 100
"""How often a role that ends may save: it waits for its last progress, but a full disk is not hammered."""
Table = dict[str, Any]


class LedgerFile:
    """A ledger in a mapped file, which grows by being replaced.

    Args:
        live: what counts now; a new file is made of it.
    """

    def __init__(self, path: Path, live: Callable[[], Iterable[Row]]) -> None:
        self._path = path
        self._live = live
        self._map(LEDGER_BYTES)
        if self._ledger.foreign:
            path.unlink()
            self._map(LEDGER_BYTES)

    def _map(self, least_bytes: int) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = max(os.fstat(fd).st_size, least_bytes)
            # Allocated, not sparse: a store into a hole on a full file system kills by SIGBUS.
            os.posix_fallocate(fd, 0, size)
            self._ledger = Ledger(memoryview(mmap.mmap(fd, size)))
        finally:
            os.close(fd)

    def found(self) -> list[Row]:
        """Return what the former life left."""
        return self._ledger.found()

    def put(self, row: Row) -> None:
        """Set one value."""
        try:
            self._ledger.put(*row)
        except LedgerFull:
            self._replace()
            self._ledger.put(*row)

    def _replace(self) -> None:
        rows = list(self._live())
        ours = self._path
        self._path = ours.with_name(ours.name + ".new")
        self._path.unlink(missing_ok=True)
        self._map(needed_bytes(rows))
        for row in rows:
            self._ledger.put(*row)
        # The new file has everything before it has the name: a death in between leaves the old one.
        self._path.rename(ours)
        self._path = ours


@dataclass(slots=True)
class _Snapshot:
    table: Table
    appended: int


class SafeSave:
    """Saves a table only once the log is durable up to where it ended when the table was taken.

    Progress must not overtake its cause: an offset saved before the retry message that allowed it would
    lose that message with the power.  Times are monotonic.
    """

    def __init__(self, interval_ms: int, now_ms: int) -> None:
        self.interval_ms = interval_ms
        self._due_ms = now_ms + interval_ms
        self._snapshot: _Snapshot | None = None

    def hurry(self) -> None:
        """The next look takes a snapshot at once, and what ends after it soon follows: the broker stops."""
        self._due_ms = 0
        self.interval_ms = min(self.interval_ms, HURRY_INTERVAL_MS)

    def look(
        self, now_ms: int, appended: int, flushed: int, take: Callable[[], Table | None]
    ) -> Table | None:
        """Return the table to save now, if any.

        Args:
            take: returns a copy of the progress, None when nothing has changed since the last copy.
        """
        if self._snapshot is None and now_ms >= self._due_ms:
            self._due_ms = now_ms + self.interval_ms
            table = take()
            self._snapshot = _Snapshot(table, appended) if table is not None else None
        if self._snapshot is None or flushed < self._snapshot.appended:
            return None
        table, self._snapshot = self._snapshot.table, None
        return table

    @property
    def wanted_flushed(self) -> int:
        """The log offset that must become durable first, 0 for none."""
        return self._snapshot.appended if self._snapshot is not None else 0

    @property
    def table(self) -> Table | None:
        """The table that waits for the log, to be changed in place."""
        return self._snapshot.table if self._snapshot is not None else None

    @property
    def pending(self) -> bool:
        """Whether a table waits for the log."""
        return self._snapshot is not None

    def wake_ms(self) -> int | None:
        """Return when to look again by the clock; None while the log is waited for."""
        return None if self._snapshot is not None else self._due_ms
