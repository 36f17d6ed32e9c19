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
    starts = []
    while memory.positions.get(Position.APPENDED) < FILE_BYTES + 10_000:
        starts.append(store.put(row=0, queue_id=0, body=bytes(30_000)).log_offset)
        store.put(row=1, queue_id=1)
        store.put(row=1, queue_id=1, sys_flag=0x4)
    store.put(topic=b"other", row=other)
    end = memory.positions.get(Position.APPENDED)
    reader = LogReader(memory.disk, memory.root / FOLDER, FILE_BYTES)
    count = len(starts)
    everything = {(b"topic", 0): count, (b"topic", 1): count, (b"other", 0): 1}
    for start in (0, starts[3], starts[-1]):
        assert queue_ends(reader, start, end, 1 << 20) == everything
    assert queue_ends(reader, 0, starts[3], 1 << 20) == {(b"topic", 0): 3, (b"topic", 1): 3}
    assert queue_ends(reader, end, end, 1 << 20) == {}
