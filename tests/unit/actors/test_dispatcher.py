"""The dispatcher: every record's entry at its place, readable only when it is there, whatever dies when."""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from faults.disks import FailingDisk
from store_rig import FILE_BYTES, Died, Memory, StoreWriter, killing

from actormq.actors import dispatcher
from actormq.actors.dispatcher import CROWD, CROWD_NS, SPACING_NS, Dispatcher
from actormq.actors.flusher import INDEX_TIMESTAMP, QUEUES_TIMESTAMP
from actormq.broker.tables import TopicEntry, TopicGone, encode_entry
from actormq.config import FlushMode
from actormq.errors import StoreFailed
from actormq.message import tags_code
from actormq.shm.append_port import Completion
from actormq.shm.positions import Position, RoleCell, slot_of
from actormq.shm.tables import TablesReader
from actormq.store import consume_queue, index
from actormq.store.consume_queue import QueueReader
from actormq.store.disk import BytesLike, RealDisk
from actormq.store.index import IndexReader

NOW_MS = 1_700_000_000_000
SLOT = slot_of("dispatcher")


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    made = Memory(tmp_path)
    made.log_files().create(0)
    made.add_topic("topic", 4)
    return made


class Rig:
    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.store = StoreWriter(memory)
        self.now_ns = 0
        self.start()

    def start(self, disk: RealDisk | None = None) -> Dispatcher:
        memory = self.memory
        tables = TablesReader(memory.tables_view, memory.positions, SLOT)
        self.dispatcher = Dispatcher(
            memory.config, disk or RealDisk(), memory.positions, memory.extents, tables, [1000, 5000]
        )
        return self.dispatcher

    def run(self) -> set[int]:
        """Dispatch all there is; return the rows that have grown."""
        grown: set[int] = set()
        while (rows := self.dispatcher.run(NOW_MS, 0)) is not None:
            grown |= set(rows)
        return grown

    def entries(self, row: int, topic: str = "topic") -> list[tuple[int, int, int]]:
        """Return what readers see of a queue."""
        reader = QueueReader(
            RealDisk(), self.memory.root / consume_queue.FOLDER, self.memory.config.queue_file_entries
        )
        extent = self.memory.extents.read(row)
        return [reader.entry(topic, row, number) for number in range(extent.min, extent.max)]


def test_entries_point_at_their_records(memory: Memory) -> None:
    rig = Rig(memory)
    done = [rig.store.put(row=n % 2, queue_id=n % 2, properties=b"TAGS\x01a\x02") for n in range(6)]
    assert rig.run() == {0, 1}
    for row in (0, 1):
        expected = [(put.log_offset, put.log_end - put.log_offset, tags_code("a")) for put in done[row::2]]
        assert rig.entries(row) == expected
    assert memory.positions.get(Position.DISPATCHED) == memory.positions.get(Position.APPENDED)
    assert memory.positions.role(SLOT, QUEUES_TIMESTAMP) == NOW_MS


def test_under_load_it_rests_between_batches(memory: Memory) -> None:
    """Many at once, or one soon after the other: the next ones wait a little.  Single ones never do."""
    rig = Rig(memory)
    rests = []
    for after_ns, count in ((10**9, 1), (CROWD_NS - 1, 1), (SPACING_NS, CROWD), (SPACING_NS, 1), (10**9, 1)):
        rig.now_ns += after_ns
        for _ in range(count):
            rig.store.put()
        assert rig.dispatcher.run(NOW_MS, rig.now_ns) == [0]
        rests.append(rig.dispatcher.rest_ns(rig.now_ns + 50_000))
    assert rests == [0, SPACING_NS - 50_000, SPACING_NS - 50_000, 0, 0]


def test_it_does_not_rest_while_idle_or_far_behind(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing found ends the load; a backlog is worked off."""
    rig = Rig(memory)
    for at_ns in (10**9, 10**9 + 1):
        rig.store.put()
        rig.dispatcher.run(NOW_MS, at_ns)
    assert rig.dispatcher.rest_ns(10**9 + 2) > 0
    assert rig.dispatcher.run(NOW_MS, 10**9 + 3) is None
    assert rig.dispatcher.rest_ns(10**9 + 4) == 0
    for at_ns in (2 * 10**9, 2 * 10**9 + 1):
        rig.store.put()
        rig.dispatcher.run(NOW_MS, at_ns)
    monkeypatch.setattr(dispatcher, "BEHIND_BYTES", 0)
    rig.store.put()
    assert rig.dispatcher.rest_ns(2 * 10**9 + 2) == 0


def test_goes_on_in_the_next_file(memory: Memory) -> None:
    rig = Rig(memory)
    done: list[Completion] = []
    while not done or done[-1].log_offset < FILE_BYTES:
        done.append(rig.store.put(body=bytes(30_000)))
    rig.run()
    assert [entry[0] for entry in rig.entries(0)] == [put.log_offset for put in done]


def test_queue_goes_on_in_its_next_file(memory: Memory) -> None:
    """A queue file of the rig holds 100 entries."""
    rig = Rig(memory)
    done = [rig.store.put() for _ in range(250)]
    rig.run()
    assert [entry[0] for entry in rig.entries(0)] == [put.log_offset for put in done]
    folder = memory.root / consume_queue.FOLDER / "topic" / "0"
    assert [int(path.name) for path in sorted(folder.iterdir())] == [0, 2000, 4000]


def test_follows_what_is_flushed_in_sync_mode(memory: Memory) -> None:
    """Nothing is readable that a crash could take back."""
    memory.config = replace(memory.config, flush=FlushMode.SYNC)
    rig = Rig(memory)
    first = rig.store.put()
    rig.store.put()
    assert rig.run() == set()
    assert rig.dispatcher.wanted is RoleCell.WANTED_FLUSHED
    memory.positions.set(Position.FLUSHED, first.log_end)
    assert rig.run() == {0}
    assert len(rig.entries(0)) == 1


def test_prepared_messages_have_no_entry(memory: Memory) -> None:
    rig = Rig(memory)
    rig.store.put(sys_flag=0x4)
    kept = rig.store.put()
    rig.run()
    assert [entry[0] for entry in rig.entries(0)] == [kept.log_offset]


def test_keys_are_found_in_the_index(memory: Memory) -> None:
    rig = Rig(memory)
    done = rig.store.put(properties=b"KEYS\x01one two\x02")
    rig.run()
    config = memory.config
    reader = IndexReader(RealDisk(), memory.root / index.FOLDER, config.index_slots, config.index_entries)
    assert reader.query("topic", "two", 0, 1 << 60, 10) == [done.log_offset]


def test_full_index_file_is_said_to_the_flusher(memory: Memory) -> None:
    rig = Rig(memory)
    for number in range(memory.config.index_entries + 1):
        rig.store.put(properties=b"KEYS\x01k%d\x02" % number, wall_ms=NOW_MS + number)
    rig.run()
    assert memory.positions.role(SLOT, INDEX_TIMESTAMP) == NOW_MS + memory.config.index_entries - 2


def test_topic_published_later_is_found(memory: Memory) -> None:
    rig = Rig(memory)
    (row,) = memory.add_topic("later")
    rig.store.put(topic=b"later", row=row)
    assert rig.run() == {row}


def test_messages_of_a_deleted_topic_are_passed_over(memory: Memory) -> None:
    """What was on its way when the topic went does not stop the others."""
    rig = Rig(memory)
    (row,) = memory.add_topic("dead")
    rig.store.put(topic=b"dead", row=row)
    rig.store.put()
    rig.store.put(topic=b"dead", row=row)
    memory.extents.close_row(row)
    memory.publisher.publish(encode_entry(TopicGone("dead")))
    assert rig.run() == {0}
    assert len(rig.entries(0)) == 1
    assert not (memory.root / consume_queue.FOLDER / "dead").exists()


def delete(memory: Memory, topic: str, row: int) -> None:
    memory.extents.close_row(row)
    memory.publisher.publish(encode_entry(TopicGone(topic)))


def make_again(memory: Memory, topic: str, row: int, incarnation: int, log_start: int = 0) -> None:
    memory.extents.open_row(row, incarnation, 0, 0, log_start=log_start)
    entry = TopicEntry(topic, 6, 1, 1, 0, False, "SINGLE_TAG", {}, [row], [incarnation])
    memory.publisher.publish(encode_entry(entry))


@pytest.mark.parametrize("seen_between", [True, False])
@pytest.mark.parametrize("died", [True, False])
def test_topic_made_again_begins_with_nothing(memory: Memory, seen_between: bool, died: bool) -> None:
    """The deleted queue's files are gone before the new queue's first entry is written."""
    rig = Rig(memory)
    (row,) = memory.add_topic("again")
    for _ in range(150):
        rig.store.put(topic=b"again", row=row)
    rig.run()
    folder = memory.root / consume_queue.FOLDER / "again"
    assert len(list((folder / "0").iterdir())) == 2
    delete(memory, "again", row)
    if seen_between and not died:
        rig.dispatcher.follow_tables()
        assert not folder.exists()
    make_again(memory, "again", row, 1000)
    if died:
        rig.start().remove_stale()
    done = rig.store.put(topic=b"again", row=row, incarnation=1000)
    assert done.queue_offset == 0
    rig.run()
    assert len(list((folder / "0").iterdir())) == 1
    reader = QueueReader(RealDisk(), memory.root / consume_queue.FOLDER, memory.config.queue_file_entries)
    assert reader.entry("again", 0, 0)[0] == done.log_offset
    assert reader.entry("again", 0, 1) == (0, 0, 0)


@pytest.mark.parametrize("died", [True, False])
@pytest.mark.parametrize("between", [True, False])
def test_late_messages_of_the_dead_are_not_the_new_topics(memory: Memory, died: bool, between: bool) -> None:
    """Deleted and made again while the dispatcher was behind, in sync mode by as much as a sync takes."""
    memory.config = replace(memory.config, flush=FlushMode.SYNC)
    rig = Rig(memory)
    (row,) = memory.add_topic("again")
    dead = [rig.store.put(topic=b"again", row=row) for _ in range(30)]
    memory.positions.set(Position.FLUSHED, dead[9].log_end)
    assert rig.run() == {row}
    delete(memory, "again", row)
    log_start = memory.positions.get(Position.APPENDED)
    make_again(memory, "again", row, 1000, log_start)
    if died:
        rig.start().remove_stale()
    memory.positions.set(Position.FLUSHED, dead[19].log_end)
    assert rig.run() == set()
    assert rig.dispatcher.take_removed() == [row]
    if between:
        memory.positions.set(Position.FLUSHED, log_start)
        assert rig.run() == set()
    done = [rig.store.put(topic=b"again", row=row, incarnation=1000) for _ in range(3)]
    assert [put.queue_offset for put in done] == [0, 1, 2]
    memory.positions.set(Position.FLUSHED, memory.positions.get(Position.APPENDED))
    assert rig.run() == {row}
    assert memory.extents.read(row) == (1000, 0, 3)
    reader = QueueReader(RealDisk(), memory.root / consume_queue.FOLDER, memory.config.queue_file_entries)
    assert [reader.entry("again", 0, n)[0] for n in range(3)] == [put.log_offset for put in done]
    assert reader.entry("again", 0, 5) == (0, 0, 0)


def test_topic_deleted_while_nobody_looked_is_removed_later(memory: Memory) -> None:
    rig = Rig(memory)
    (row,) = memory.add_topic("dead")
    rig.store.put(topic=b"dead", row=row)
    kept = rig.store.put()
    rig.run()
    delete(memory, "dead", row)
    rig.start().remove_stale()
    assert not (memory.root / consume_queue.FOLDER / "dead").exists()
    assert [entry[0] for entry in rig.entries(0)] == [kept.log_offset]


class FullDisk(RealDisk):
    """Has no room for the next `times` writes."""

    def __init__(self, times: int) -> None:
        self.times = times

    def pwritev(self, fd: int, buffers: Sequence[BytesLike], offset: int) -> int:
        if self.times > 0:
            self.times -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().pwritev(fd, buffers, offset)


def test_any_other_failure_stops_the_broker(tmp_path: Path) -> None:
    """Each call that writes or syncs, that of a full index file too: a successor would not see it fail."""
    failed: list[str] = []
    while not failed or failed[-1]:
        fail_at = len(failed) + 1
        memory = Memory(tmp_path / str(fail_at))
        memory.log_files().create(0)
        memory.add_topic("topic", 1)
        rig = Rig(memory)
        for _ in range(memory.config.index_entries + 10):
            rig.store.put(properties=b"KEYS\x01k\x02")
        disk = FailingDisk(RealDisk(), fail_at)
        rig.start(disk)
        with contextlib.suppress(StoreFailed):
            rig.run()
        assert bool(disk.failed) == bool(memory.positions.get(Position.STORE_FAILED))
        failed.append(disk.failed)
    assert {"pwritev", "fdatasync", "rename", "allocate"} <= set(failed)


def test_full_disk_is_waited_for(memory: Memory) -> None:
    """Messages stay in the log and become readable when there is room again."""
    rig = Rig(memory)
    rig.store.put()
    dispatcher = rig.start(FullDisk(2))
    for due_ns in (0, 1_000_000_000):
        assert dispatcher.run(NOW_MS, due_ns) is None
        assert dispatcher.retry_at_ns == due_ns + 1_000_000_000
        assert dispatcher.run(NOW_MS, due_ns + 1) is None
        assert rig.entries(0) == []
    assert dispatcher.run(NOW_MS, 2_000_000_000) == [0]
    assert dispatcher.retry_at_ns is None
    assert len(rig.entries(0)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "dispatcher.begun",
        "dispatcher.entries-written",
        "dispatcher.readable",
        "dispatcher.index-written",
        "dispatcher.published",
    ],
)
@pytest.mark.parametrize("hit", [1, 2])
def test_death_at_each_point_changes_nothing(memory: Memory, name: str, hit: int) -> None:
    rig = Rig(memory)
    done = [rig.store.put(row=n % 3, queue_id=n % 3, properties=b"KEYS\x01key\x02") for n in range(5)]

    def go_on() -> None:
        while True:
            rig.run()
            done.extend(rig.store.put(row=n, queue_id=n, properties=b"KEYS\x01key\x02") for n in range(3))

    with killing(name, hit), pytest.raises(Died):
        go_on()
    rig.start()
    rig.run()
    for row in range(3):
        reader_sees = [entry[0] for entry in rig.entries(row)]
        assert len(set(reader_sees)) == len(reader_sees)
    everything = sorted(entry[0] for row in range(3) for entry in rig.entries(row))
    assert everything == sorted(put.log_offset for put in done)
    config = memory.config
    reader = IndexReader(RealDisk(), memory.root / index.FOLDER, config.index_slots, config.index_entries)
    assert sorted(reader.query("topic", "key", 0, 1 << 60, 100)) == everything


@pytest.mark.parametrize("seed", range(10))
def test_any_deaths_leave_queues_as_if_nobody_had_died(memory: Memory, seed: int) -> None:
    """Readers see whole entries only, at every moment; at the end all of them."""
    chance = random.Random(seed)
    rig = Rig(memory)
    expected: dict[int, list[int]] = {row: [] for row in range(4)}
    for _ in range(30):
        for _ in range(chance.randrange(12)):
            row = chance.randrange(4)
            put = rig.store.put(
                row=row,
                queue_id=row,
                body=bytes(chance.choice([1, 5_000])),
                properties=b"UNIQ_KEY\x01%d\x02" % chance.randrange(50),
            )
            expected[row].append(put.log_offset)
        try:
            with killing(None, chance.randrange(1, 12)):
                rig.run()
        except Died:
            rig.start()
        for row in range(4):
            seen = [entry[0] for entry in rig.entries(row)]
            assert seen == expected[row][: len(seen)]
    rig.run()
    assert {row: [entry[0] for entry in rig.entries(row)] for row in range(4)} == expected


def test_an_entry_is_made_again_from_its_record(memory: Memory) -> None:
    """Only of a dispatched record, and only where the queue has the entry."""
    rig = Rig(memory)
    done = [rig.store.put(row=1, queue_id=1, properties=b"TAGS\x01a\x02") for _ in range(3)]
    assert not rig.dispatcher.mend(done[1].log_offset), "not dispatched yet"
    rig.run()
    whole = rig.entries(1)
    files = rig.dispatcher._files
    for at in range(3):
        files.write("topic", 1, at, bytes(20))
    assert [rig.dispatcher.mend(each) for each in (done[1].log_offset, done[1].log_offset + 1, -5)] == [
        True, False, False,
    ]  # fmt: skip
    assert rig.entries(1) == [(0, 0, 0), whole[1], (0, 0, 0)]
    memory.extents.set_min(1, 2)
    assert not rig.dispatcher.mend(done[0].log_offset), "its file may be gone"
    assert rig.dispatcher.mend(done[2].log_offset)
