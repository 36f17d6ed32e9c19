"""Queue ends from the log alone."""

from __future__ import annotations

from pathlib import Path

from store_rig import FILE_BYTES, Memory, StoreWriter

from actormq.shm.positions import Position
from actormq.store.commit_log import FOLDER, LogReader
from actormq.store.log_tail import queue_ends


def test_ends_of_all_queues_from_any_record_on(tmp_path: Path) -> None:
    """Over the end of a file, several topics, prepared messages without a place."""
    memory = Memory(tmp_path)
    memory.log_files().create(0)
    memory.add_topic("topic", 2)
    (other,) = memory.add_topic("other")
    store = StoreWriter(memory)
    starts, seconds = [], []
    while memory.positions.get(Position.APPENDED) < FILE_BYTES + 10_000:
        starts.append(store.put(row=0, queue_id=0, body=bytes(30_000)).log_offset)
        seconds.append(store.put(row=1, queue_id=1).log_offset)
        store.put(row=1, queue_id=1, sys_flag=0x4)
    last = store.put(topic=b"other", row=other).log_offset
    end = memory.positions.get(Position.APPENDED)
    reader = LogReader(memory.disk, memory.root / FOLDER, FILE_BYTES)
    count = len(starts)
    everything = {
        (b"topic", 0): (count, starts[-1]),
        (b"topic", 1): (count, seconds[-1]),
        (b"other", 0): (1, last),
    }
    for start in (0, starts[3], starts[-1]):
        assert queue_ends(reader, start, end, 1 << 20) == everything
    assert queue_ends(reader, 0, starts[3], 1 << 20) == {
        (b"topic", 0): (3, starts[2]),
        (b"topic", 1): (3, seconds[2]),
    }
    assert queue_ends(reader, end, end, 1 << 20) == {}


def test_a_topic_made_again_counts_from_its_own_first_record(tmp_path: Path) -> None:
    """The last record of a queue says where it goes on, not the one with the highest number."""
    memory = Memory(tmp_path)
    memory.log_files().create(0)
    (row,) = memory.add_topic("again")
    store = StoreWriter(memory)
    for _ in range(5):
        store.put(topic=b"again", row=row)
    memory.extents.open_row(row, 1000, 0, 0)
    done = store.put(topic=b"again", row=row, incarnation=1000)
    reader = LogReader(memory.disk, memory.root / FOLDER, FILE_BYTES)
    assert queue_ends(reader, 0, done.log_end, 1 << 20) == {(b"again", 0): (1, done.log_offset)}
