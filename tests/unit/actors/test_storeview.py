"""What single reads of the store may return: whole records at their own place, entries of the right queue."""

from __future__ import annotations

from pathlib import Path

import pytest
from broker_rig import Broker, sync_mode

from actormq.actors.storeview import StoreReader
from actormq.broker.tables import Tables, TopicEntry
from actormq.shm.positions import Position
from actormq.shm.tables import TablesReader
from actormq.store.disk import RealDisk


class Rig:
    """A broker with two messages in one queue."""

    def __init__(self, tmp_path: Path, *, sync: bool = False) -> None:
        self.broker = Broker(tmp_path / "store", tmp_path / "run")
        if sync:
            self.broker.config = sync_mode(self.broker.config)
        memory = self.broker.memory
        tables = Tables()
        for data in TablesReader(memory.tables_view, memory.positions, 63).poll()[1]:
            tables.apply(data)
        found = tables.topic("TBW102")
        assert found is not None
        self.entry: TopicEntry = found
        self.first = self.broker.put(self.entry, 1, body=b"first", properties={"TAGS": "a"})
        self.second = self.broker.put(self.entry, 1, body=b"second")
        self.reader = StoreReader(self.broker.config, RealDisk(), memory.positions, memory.extents)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_record_is_found_at_its_own_place_only(rig: Rig) -> None:
    """Not beside it, not behind the end, not below what was cleaned."""
    record = rig.reader.record(rig.second.log_offset)
    assert record is not None
    assert (bytes(record.body), record.queue_offset) == (b"second", 1)
    for wrong in (-1, 1, rig.second.log_offset + 1, rig.second.log_end, 1 << 50):
        assert rig.reader.record(wrong) is None
    rig.broker.memory.positions.set(Position.CLEANED, rig.second.log_offset)
    assert rig.reader.record(rig.first.log_offset) is None


def test_bytes_of_a_body_are_no_record(rig: Rig) -> None:
    """A peer may send a body that looks like a record, and name its place: it does not say that place."""
    whole = rig.reader.record(rig.first.log_offset)
    assert whole is not None
    log = rig.reader._log.view(rig.first.log_offset, whole.size)
    lure = rig.broker.put(rig.entry, 1, body=bytes(log))
    assert rig.reader.record(lure.log_offset + 88) is None


def test_what_is_not_safe_yet_is_not_read(tmp_path: Path) -> None:
    """In sync mode a record exists once it is flushed."""
    rig = Rig(tmp_path, sync=True)
    positions = rig.broker.memory.positions
    positions.set(Position.FLUSHED, rig.second.log_offset)
    assert rig.reader.record(rig.first.log_offset) is not None
    assert rig.reader.record(rig.second.log_offset) is None


def test_entries_end_with_the_queue(rig: Rig) -> None:
    """As many as there are, with their places; the code is the due time or tag code as stored."""
    found = rig.reader.entries(rig.entry, 1, 0, 10)
    assert [(e.queue_offset, e.log_offset) for e in found] == [
        (0, rig.first.log_offset),
        (1, rig.second.log_offset),
    ]
    assert found[0].due_ms == ord("a")
    assert rig.reader.entries(rig.entry, 1, 2, 10) == []
    assert rig.reader.entries(rig.entry, 0, 0, 10) == []
    assert rig.reader.entries(rig.entry, 99, 0, 10) == []
    assert rig.reader.extent(rig.entry, 1) == (0, 2)


def test_a_row_with_another_queue_shows_nothing(rig: Rig) -> None:
    """The topic was deleted and its row given away: the old entry's readers see an empty queue."""
    row = rig.entry.rows[1]
    rig.broker.memory.extents.open_row(row, 99, 0, 2)
    assert rig.reader.extent(rig.entry, 1) == (0, 0)
    assert rig.reader.entries(rig.entry, 1, 0, 10) == []


def test_young_and_old_messages(rig: Rig) -> None:
    """Near = less far back than a share of the memory."""
    assert rig.reader.is_near(rig.entry, 1, 0)
    assert not rig.reader.is_near(rig.entry, 1, 5)
    rig.reader._near_bytes = rig.second.log_end - rig.second.log_offset
    assert not rig.reader.is_near(rig.entry, 1, 0)
    assert rig.reader.is_near(rig.entry, 1, 1)


def test_what_the_positions_tell(rig: Rig) -> None:
    """Store times and runtime keys."""
    assert rig.reader.store_time(rig.entry, 1, 0) == rig.first.store_timestamp
    assert rig.reader.store_time(rig.entry, 1, 7) == 0
    runtime = rig.reader.runtime()
    assert runtime["earliestMessageTimeStamp"] == str(rig.first.store_timestamp)
    assert (runtime["commitLogMaxOffset"], runtime["dispatchBehindBytes"]) == (str(rig.second.log_end), "0")


def test_a_damaged_record_is_not_stored_again(rig: Rig) -> None:
    """Delayed and retried messages are copies: under a CRC of its own the damage would be right."""
    path = rig.broker.memory.root / "commitlog" / "00000000000000000000"
    with open(path, "r+b") as log:
        log.seek(rig.second.log_offset + 88)
        log.write(b"S")
    assert rig.reader.record(rig.second.log_offset) is None
    assert rig.reader.record(rig.first.log_offset) is not None
