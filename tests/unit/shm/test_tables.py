"""Published tables: every reader comes to the same tables, and never reads a torn entry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.shm.positions import Position, Positions, RoleCell
from actormq.shm.tables import TablesFull, TablesPublisher, TablesReader, behind, epoch_of

SLOT = 16


class Tables:
    """A publisher and a reader over 512-byte halves."""

    def __init__(self) -> None:
        self.positions = Positions(memoryview(bytearray(Positions.payload_bytes())))
        self.memory = memoryview(bytearray(128 + 2 * 512))
        self.publisher = TablesPublisher(self.memory, self.positions)
        self.reader = self.new_reader()

    def new_reader(self, slot: int = SLOT) -> TablesReader:
        return TablesReader(self.memory, self.positions, slot)

    def may_flip(self) -> bool:
        return not behind(self.positions, self.publisher.epoch_start, [SLOT])


@pytest.fixture
def tables() -> Tables:
    return Tables()


def yes() -> bool:
    return True


def test_reader_gets_each_entry_once(tables: Tables) -> None:
    """The first poll starts from nothing; later ones bring what is new."""
    assert tables.reader.poll() == (True, [])
    tables.publisher.publish(b"one")
    tables.publisher.publish(b"", b"three")
    assert tables.reader.stale
    assert tables.reader.poll() == (False, [b"one", b"", b"three"])
    assert not tables.reader.stale
    assert tables.reader.poll() == (False, [])
    assert tables.new_reader().poll() == (True, [b"one", b"", b"three"])


def test_snapshot_starts_readers_again(tables: Tables) -> None:
    """After a compaction every reader is told to forget, and gets the snapshot and what followed."""
    tables.publisher.publish(b"old")
    tables.reader.poll()
    tables.reader.mark_seen()
    assert tables.publisher.compact([b"a", b"b"], tables.may_flip)
    tables.publisher.publish(b"c")
    assert tables.reader.poll() == (True, [b"a", b"b", b"c"])
    assert tables.new_reader().poll() == (True, [b"a", b"b", b"c"])


def test_seen_is_what_was_polled(tables: Tables) -> None:
    """TABLES_SEEN is stored on `mark_seen`, not before, and tells who is behind."""
    version = tables.publisher.publish(b"x")
    assert behind(tables.positions, version, [SLOT, 17]) == [SLOT, 17]
    tables.reader.poll()
    assert behind(tables.positions, version, [SLOT]) == [SLOT]
    tables.reader.mark_seen()
    assert tables.positions.role(SLOT, RoleCell.TABLES_SEEN) == version == tables.publisher.version
    assert behind(tables.positions, version, [SLOT, 17]) == [17]


def test_half_is_reused_only_when_everyone_has_left_it(tables: Tables) -> None:
    """A reader still in the other half keeps it from being overwritten."""
    tables.publisher.publish(b"0")
    assert tables.publisher.compact([b"1"], tables.may_flip)
    assert not tables.publisher.compact([b"2"], tables.may_flip)
    assert tables.reader.poll() == (True, [b"1"])
    tables.reader.mark_seen()
    assert tables.publisher.compact([b"2"], tables.may_flip)


def test_full_half_is_refused_whole(tables: Tables) -> None:
    """What does not fit is not published in part; a snapshot makes room; a too long one changes nothing."""
    while tables.publisher.free_bytes >= 100:
        tables.publisher.publish(bytes(96))
    before = tables.publisher.version
    with pytest.raises(TablesFull):
        tables.publisher.publish(b"small", bytes(96))
    assert tables.positions.get(Position.TABLES) == before
    with pytest.raises(TablesFull):
        tables.publisher.compact([bytes(509)], yes)
    assert tables.positions.get(Position.TABLES) == before
    assert tables.publisher.compact([bytes(508)], yes)
    assert tables.publisher.free_bytes == 0
    assert tables.new_reader().poll() == (True, [bytes(508)])


def test_publisher_after_death_goes_on(tables: Tables) -> None:
    """Bytes that were never published are overwritten by the successor's."""
    tables.publisher.publish(b"kept")
    end = tables.publisher.version
    tables.memory[128 + end : 128 + end + 20] = b"\xff" * 20
    successor = TablesPublisher(tables.memory, tables.positions)
    assert tables.new_reader().poll() == (True, [b"kept"])
    successor.publish(b"more")
    assert tables.new_reader().poll() == (True, [b"kept", b"more"])


def test_publisher_killed_while_compacting(tables: Tables) -> None:
    """The half in use was not touched; the successor compacts again."""
    tables.publisher.publish(b"kept")

    class Killed(Exception):
        pass

    def entries() -> object:
        yield b"half"
        raise Killed

    with pytest.raises(Killed):
        tables.publisher.compact(entries(), yes)  # type: ignore[arg-type]
    tables.publisher._halves.set_epoch(1, (1 << 64) - 1)
    tables.memory[128 + 512 : 128 + 1024] = b"\xff" * 512
    successor = TablesPublisher(tables.memory, tables.positions)
    assert tables.new_reader().poll() == (True, [b"kept"])
    assert successor.compact([b"new"], yes)
    assert tables.reader.poll() == (True, [b"new"])


@pytest.mark.parametrize("flips", [1, 2, 3, 4])
@pytest.mark.parametrize("step", ["epoch", "bytes"])
def test_torn_read_is_thrown_away(tables: Tables, flips: int, step: str) -> None:
    """The publisher overtakes a reader between any two of its steps, by any number of epochs."""
    tables.publisher.publish(b"\x01" * 40)
    halves = tables.reader._halves
    plain: Callable[[int], object] = getattr(halves, step)
    left = [1]

    def interrupted(half: int) -> object:
        found = plain(half)
        if left.pop() if left else 0:
            for number in range(flips):
                tables.publisher.compact([bytes([2 + number]) * (33 + number)], yes)
        return found

    setattr(halves, step, interrupted)
    reset, entries = tables.reader.poll()
    assert reset
    complete = [[b"\x01" * 40], *([bytes([2 + number]) * (33 + number)] for number in range(flips))]
    assert entries in complete
    # One flip leaves the half that is being read alone; two have written into it.
    assert flips == 1 or entries == complete[-1]


def test_half_being_written_is_never_read(tables: Tables) -> None:
    """In the middle of the second flip the version still says the epoch before: that half is whole."""
    tables.publisher.publish(b"first")
    assert tables.publisher.compact([b"second"], yes)
    seen: list[tuple[bool, list[bytes]]] = []
    stale = tables.new_reader(17)
    version = tables.positions.get(Position.TABLES)
    halves = tables.publisher._halves
    plain = halves.set_epoch

    def watched(half: int, epoch: int) -> None:
        plain(half, epoch)
        seen.append(tables.new_reader(18).poll())
        assert stale._copy(version - (1 << 40), 0) is None

    halves.set_epoch = watched  # type: ignore[method-assign]
    assert tables.publisher.compact([b"third"], yes)
    assert seen == [(True, [b"second"])] * 2
    assert tables.new_reader().poll() == (True, [b"third"])


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("publish"), st.lists(st.binary(max_size=30), max_size=4)),
            st.tuples(st.just("compact"), st.lists(st.binary(max_size=30), max_size=4)),
            st.tuples(st.just("poll"), st.just([])),
            st.tuples(st.just("restart"), st.just([])),
        ),
        max_size=40,
    )
)
def test_reader_comes_to_what_was_published(steps: list[tuple[str, list[bytes]]]) -> None:
    """Whatever is published, compacted and polled, in whatever order: reset + entries = the log."""
    tables = Tables()
    log: list[bytes] = []
    known: list[bytes] = []
    for step, entries in [*steps, ("poll", [])]:
        if step == "publish":
            try:
                tables.publisher.publish(*entries)
            except TablesFull:
                continue
            log += entries
        elif step == "compact":
            if tables.publisher.compact(entries, tables.may_flip):
                log = list(entries)
        elif step == "restart":
            tables.publisher = TablesPublisher(tables.memory, tables.positions)
        else:
            reset, new = tables.reader.poll()
            known = new if reset else known + new
            tables.reader.mark_seen()
            assert known == log
            assert epoch_of(tables.positions.role(SLOT, RoleCell.TABLES_SEEN)) == epoch_of(
                tables.publisher.version
            )
