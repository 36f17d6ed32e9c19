"""The intent page: what the writer is about to publish, for the writer that comes after its death.

Written before the log is touched, valid flag last; cleared when all of it is done.  A successor that
finds a valid intent whose bytes are in the log (`appended` has reached their end) only has to move the
same cells again; otherwise it zeroes the range, and nothing has happened.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from actormq.kernels.rings import Cells

PORTS_MAX: Final = 120
"""Ports in one batch; more wait for the next one."""

_VALID, _LOG_START, _LOG_END, _STORE_TIMESTAMP, _PORTS = range(5)
_FIRST_MOVE: Final = 8
_MOVE_WORDS: Final = 4


class PortMove(NamedTuple):
    """Where one port's rings stand after the batch."""

    slot: int
    incarnation: int
    """Of the client: another incarnation's port in the same slot must not be moved."""
    head: int
    """Of the request ring."""
    tail: int
    """Of the completion ring; the completions behind the present tail are written already."""


class Intent(NamedTuple):
    """One batch."""

    log_start: int
    log_end: int
    store_timestamp: int
    moves: list[PortMove]


class IntentPage:
    """The page; only the writer uses it."""

    def __init__(self, view: memoryview) -> None:
        """`view`: at least `payload_bytes()` of memory that survives the writer."""
        self._cells = Cells(view[: self.payload_bytes()])

    @staticmethod
    def payload_bytes() -> int:
        """Return the bytes that the page needs."""
        return (_FIRST_MOVE + _MOVE_WORDS * PORTS_MAX) * 8

    def write(self, intent: Intent) -> None:
        """Say what is about to happen."""
        assert len(intent.moves) <= PORTS_MAX
        cells = self._cells
        cells.store(_LOG_START, intent.log_start)
        cells.store(_LOG_END, intent.log_end)
        cells.store(_STORE_TIMESTAMP, intent.store_timestamp)
        cells.store(_PORTS, len(intent.moves))
        at = _FIRST_MOVE
        for move in intent.moves:
            for word in move:
                cells.store(at, word)
                at += 1
        # Last: whoever sees it sees the whole intent.
        cells.store(_VALID, 1)

    def read(self) -> Intent | None:
        """Return what a dead writer was about to do; None when it had finished."""
        load = self._cells.load
        if not load(_VALID):
            return None
        starts = range(_FIRST_MOVE, _FIRST_MOVE + _MOVE_WORDS * load(_PORTS), _MOVE_WORDS)
        moves = [PortMove(*(load(start + word) for word in range(_MOVE_WORDS))) for start in starts]
        return Intent(load(_LOG_START), load(_LOG_END), load(_STORE_TIMESTAMP), moves)

    def clear(self) -> None:
        """Say that all of it is done, or undone."""
        self._cells.store(_VALID, 0)
