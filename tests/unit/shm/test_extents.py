"""Extents: a reader never takes one queue's numbers for another's."""

from __future__ import annotations

import pytest

from actormq.shm.extents import Column, Extent, Extents


@pytest.fixture
def extents() -> Extents:
    return Extents(memoryview(bytearray(Extents.payload_bytes(5))))


def test_row_says_what_can_be_read(extents: Extents) -> None:
    """Opened, grown, cleaned, closed."""
    assert extents.rows_max == 5
    assert extents.read(4) == Extent(0, 0, 0)
    extents.open_row(4, 3, 10, 20, 0, 1000)
    assert extents.read(4) == Extent(3, 10, 20)
    assert extents.files(4) == (0, 1000)
    extents.set_max(4, 25)
    extents.set_min(4, 12)
    extents.set_files(4, 10, 1000)
    assert extents.read(4) == Extent(3, 12, 25)
    assert extents.files(4) == (10, 1000)
    extents.close_row(4)
    assert extents.read(4).incarnation == 0
    assert extents.read(3) == Extent(0, 0, 0)


def test_no_row_beyond_the_last(extents: Extents) -> None:
    """A row number that does not exist is an error, not another's memory."""
    with pytest.raises(IndexError):
        extents.read(5)
    with pytest.raises(IndexError):
        extents.set_max(5, 1)


def test_reading_holds_only_while_the_queue_lives(extents: Extents) -> None:
    """Cleaned past what was read, deleted, or created again: the reader must throw it away."""
    extents.open_row(0, 1, 0, 100)
    extent = extents.read(0)
    assert extents.still_holds(0, extent, 0)
    extents.set_min(0, 50)
    assert not extents.still_holds(0, extent, 49)
    assert extents.still_holds(0, extent, 50)
    extents.close_row(0)
    assert not extents.still_holds(0, extent, 50)
    extents.open_row(0, 2, 0, 100)
    assert not extents.still_holds(0, extent, 50)


class _Interrupted:
    """Cells under which something happens before the n-th load."""

    def __init__(self, extents: Extents, number: int) -> None:
        self._inner = extents._cells
        self._extents = extents
        self._left = number

    def load(self, index: int) -> int:
        self._left -= 1
        if self._left == 0:
            self._extents._cells = self._inner
            self._extents.open_row(1, 8, 700, 800)
            self._extents._cells = self  # type: ignore[assignment]
        return self._inner.load(index)


@pytest.mark.parametrize("number", range(1, 5))
def test_extent_is_of_one_incarnation(extents: Extents, number: int) -> None:
    """A queue deleted and created between any two loads of a reader: the old row or the new one."""
    extents.open_row(1, 7, 1, 2)
    extents._cells = _Interrupted(extents, number)  # type: ignore[assignment]
    assert extents.read(1) in (Extent(7, 1, 2), Extent(8, 700, 800))


def test_incarnation_appears_last() -> None:
    """While a row is opened it is free, whatever else can be seen of it."""
    memory = memoryview(bytearray(64))
    extents = Extents(memory)
    seen: list[tuple[int, int]] = []
    inner = extents._cells

    class Watching:
        def store(self, index: int, value: int) -> None:
            inner.store(index, value)
            seen.append((index, inner.load(Column.INCARNATION)))

    extents.open_row(0, 1, 5, 6)
    extents._cells = Watching()  # type: ignore[assignment]
    extents.open_row(0, 2, 7, 8)
    assert seen[0] == (Column.INCARNATION, 0)
    assert seen[-1] == (Column.INCARNATION, 2)
    assert {incarnation for _, incarnation in seen[:-1]} == {0}
