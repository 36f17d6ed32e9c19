"""The flusher: nothing is called durable before a sync has returned, and one sync serves everyone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faults.disks import FailingDisk
from store_rig import FILE_BYTES, Died, Memory, StoreWriter, append, killing

from actormq.actors import flusher
from actormq.actors.dispatcher import Dispatcher
from actormq.actors.flusher import ROUND_PAUSE, Flusher
from actormq.broker.queue_rows import QueueRows
from actormq.broker.tables import TopicEntry, TopicGone, encode_entry
from actormq.config import FlushMode
from actormq.errors import StoreFailed
from actormq.shm.positions import Position, RoleCell, slot_of
from actormq.shm.tables import TablesReader
from actormq.store import checkpoint, marks
from actormq.store.disk import RealDisk
from actormq.store.log_flush import PAGE_BYTES

NOW_MS = 1_700_000_000_000
MS = 1_000_000


class WatchingDisk(RealDisk):
    """Remembers what was synced; fails for paths that contain `bad`."""

    def __init__(self) -> None:
        self.synced: list[str] = []
        self.bad: str | None = None

    def fdatasync(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if self.bad is not None and self.bad in path:
            raise OSError(5, "Input/output error", path)
        super().fdatasync(fd)
        self.synced.append(path)

    def fsync_dir(self, path: Path) -> None:
        super().fsync_dir(path)
        self.synced.append(str(path))

    def names(self, part: str) -> list[str]:
        """Return the last components of synced paths with `part` in them, and forget all."""
        found = [Path(path).name for path in self.synced if f"/{part}" in path]
        self.synced.clear()
        return found


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    made = Memory(tmp_path)
    made.log_files().create(0)
    made.add_topic("topic", 4)
    return made


class Rig:
    def __init__(self, memory: Memory, mode: FlushMode = FlushMode.SYNC) -> None:
        memory.config = replace(memory.config, flush=mode)
        self.memory = memory
        self.disk = WatchingDisk()
        self.store = StoreWriter(memory)
        checkpoint.write(RealDisk(), memory.root / checkpoint.NAME, checkpoint.Checkpoint(ours=True))
        self.start(fresh=True)

    def start(self, fresh: bool = False) -> Flusher:
        memory = self.memory
        tables = TablesReader(memory.tables_view, memory.positions, slot_of("flusher"))
        rows = QueueRows()
        rows.apply(*tables.poll())
        self.flusher = Flusher(
            memory.config, self.disk, memory.positions, memory.extents_view, memory.intent, rows, fresh,
            pool=memory.pool, follow_tables=lambda: self.flusher.queues.forget(rows.apply(*tables.poll())),
        )  # fmt: skip
        return self.flusher

    def dispatch(self) -> None:
        memory = self.memory
        tables = TablesReader(memory.tables_view, memory.positions, slot_of("dispatcher"))
        dispatcher = Dispatcher(memory.config, RealDisk(), memory.positions, memory.extents, tables, [])
        while dispatcher.run(NOW_MS, 0) is not None:
            pass

    def run(self, now_ns: int) -> None:
        while self.flusher.run(now_ns):
            pass

    def round(self, now_ns: int) -> int:
        """Run until the round over the queues that is now planned is over; return the time then."""
        self.run(now_ns)
        due_ns = self.flusher.wake_at_ns
        assert due_ns is not None
        self.run(due_ns)
        return due_ns

    @property
    def flushed(self) -> int:
        return self.memory.positions.get(Position.FLUSHED)

    def on_disk(self) -> checkpoint.Checkpoint:
        return checkpoint.read(RealDisk(), self.memory.root / checkpoint.NAME)


def test_the_newest_extension_file_is_synced_with_its_queue(memory: Memory) -> None:
    """Full ones are durable; names, too.  A failure stops the broker, as for a queue."""
    memory.config = replace(memory.config, queue_ext=True, queue_ext_file_bytes=100)
    rig = Rig(memory)
    for _ in range(6):
        rig.store.put()
    rig.run(0)
    rig.dispatch()
    now_ns = rig.round(0)
    synced = rig.disk.synced
    folder = str(memory.root / "consumequeue_ext")
    newest = f"{folder}/topic/0/{100:020d}"
    assert [path for path in synced if path.startswith(folder)] == [
        newest, f"{folder}/topic/0", f"{folder}/topic", folder,
    ]  # fmt: skip
    assert rig.on_disk().queues_flushed == memory.positions.get(Position.DISPATCHED)
    rig.store.put()
    rig.run(now_ns)
    rig.dispatch()
    rig.disk.bad = "consumequeue_ext"
    with pytest.raises(StoreFailed, match="consumequeue_ext"):
        rig.round(now_ns)


class TestSyncMode:
    def test_syncs_at_once_and_once_for_all(self, memory: Memory) -> None:
        rig = Rig(memory)
        for _ in range(5):
            done = rig.store.put()
        rig.run(0)
        assert rig.flushed == done.log_end
        assert rig.disk.names("commitlog") == ["0".zfill(20)]

    def test_both_files_when_the_log_has_rolled(self, memory: Memory) -> None:
        rig = Rig(memory)
        while rig.store.put(body=bytes(60_000)).log_offset < FILE_BYTES:
            pass
        rig.run(0)
        assert rig.disk.names("commitlog") == ["0".zfill(20), str(FILE_BYTES).zfill(20)]

    def test_wants_to_be_rung_for_the_next_byte(self, memory: Memory) -> None:
        rig = Rig(memory)
        assert rig.flusher.log.wanted_appended == 1
        done = rig.store.put()
        rig.run(0)
        assert rig.flusher.log.wanted_appended == done.log_end + 1

    def test_position_moves_after_the_sync(self, memory: Memory) -> None:
        rig = Rig(memory)
        rig.store.put()
        with killing("flusher.log-unsynced"), pytest.raises(Died):
            rig.run(0)
        assert rig.flushed == 0
        with killing("flusher.log-synced"), pytest.raises(Died):
            rig.start().run(0)
        assert rig.flushed == 0
        rig.disk.synced.clear()
        rig.start()
        rig.run(0)
        assert rig.flushed > 0
        assert rig.disk.names("commitlog")


class TestAsyncMode:
    def test_waits_for_interval_and_pages(self, memory: Memory) -> None:
        """Half a second after the first unsynced byte, if there are four pages by then."""
        rig = Rig(memory, FlushMode.ASYNC)
        assert rig.flusher.wake_at_ns is None
        done = rig.store.put(body=bytes(4 * PAGE_BYTES))
        rig.run(7 * MS)
        assert rig.flushed == 0
        assert rig.flusher.log.due_ns == 507 * MS
        rig.run(507 * MS - 1)
        assert rig.flushed == 0
        rig.run(507 * MS)
        assert rig.flushed == done.log_end
        assert rig.flusher.log.due_ns is None

    def test_little_waits_for_more_or_for_the_thorough_interval(self, memory: Memory) -> None:
        rig = Rig(memory, FlushMode.ASYNC)
        rig.store.put()
        rig.run(0)
        assert rig.flusher.log.due_ns == 10_000 * MS
        assert rig.flusher.log.wanted_appended == 4 * PAGE_BYTES
        rig.run(10_000 * MS)
        assert rig.flushed > 0

    def test_idle_needs_no_timer(self, memory: Memory) -> None:
        rig = Rig(memory, FlushMode.ASYNC)
        rig.run(0)
        assert rig.flusher.wake_at_ns is None
        assert rig.flusher.log.wanted_appended == 1
        assert rig.flusher.wanted_dispatched == 1

    def test_who_asks_is_served_at_once(self, memory: Memory) -> None:
        """Progress is saved only behind `flushed`, so whoever saves asks for a flush, in every mode."""
        rig = Rig(memory, FlushMode.ASYNC)
        done = rig.store.put()
        rig.run(0)
        assert rig.flushed == 0
        memory.positions.set_role(slot_of("coordinator"), RoleCell.WANTED_FLUSHED, done.log_end)
        rig.run(1)
        assert rig.flushed == done.log_end

    def test_wish_beyond_the_log_or_long_fulfilled_asks_for_nothing(self, memory: Memory) -> None:
        rig = Rig(memory, FlushMode.ASYNC)
        first = rig.store.put()
        memory.positions.set_role(slot_of("scheduler"), RoleCell.WANTED_FLUSHED, first.log_end)
        rig.run(0)
        second = rig.store.put()
        memory.positions.set_role(slot_of("coordinator"), RoleCell.WANTED_FLUSHED, second.log_end + 1)
        rig.run(1)
        assert rig.flushed == first.log_end


class TestStorePool:
    """First into the files, where readers see it; then as in async mode."""

    @pytest.fixture
    def rig(self, memory: Memory) -> Rig:
        return Rig(memory.with_pool(), FlushMode.ASYNC)

    def written(self, rig: Rig) -> int:
        return rig.memory.positions.get(Position.WRITTEN)

    def test_pages_are_written_at_once_a_little_after_its_interval(self, rig: Rig) -> None:
        little = rig.store.put()
        rig.run(0)
        assert self.written(rig) == 0
        assert rig.flusher.wake_at_ns == 200 * MS
        assert rig.flusher.wanted_appended == 4 * PAGE_BYTES
        rig.run(200 * MS)
        assert self.written(rig) == little.log_end
        much = rig.store.put(body=bytes(4 * PAGE_BYTES))
        rig.run(200 * MS)
        assert self.written(rig) == much.log_end
        assert rig.flushed == 0
        assert rig.flusher.log.due_ns == 700 * MS, "an interval after the first byte came into the files"
        rig.run(700 * MS)
        assert rig.flushed == much.log_end

    def test_dispatched_is_what_is_in_the_files(self, rig: Rig) -> None:
        rig.store.put()
        rig.run(0)
        rig.dispatch()
        assert rig.memory.extents.read(0).max == 0
        rig.run(200 * MS)
        rig.dispatch()
        assert rig.memory.extents.read(0).max == 1

    def test_who_asks_for_a_sync_is_served_at_once(self, rig: Rig) -> None:
        done = rig.store.put()
        rig.memory.positions.set_role(slot_of("coordinator"), RoleCell.WANTED_FLUSHED, done.log_end)
        rig.run(0)
        assert (self.written(rig), rig.flushed) == (done.log_end, done.log_end)

    def test_half_full_is_due_whatever_the_settings(self, memory: Memory) -> None:
        memory.config = replace(
            memory.config, pool_commit_on_append=False, pool_commit_interval_ms=10_000,
            pool_commit_thorough_interval_ms=10_000,
        )  # fmt: skip
        rig = Rig(memory.with_pool(4 << 20), FlushMode.ASYNC)
        half = 2 << 20
        while memory.positions.get(Position.APPENDED) < half:
            assert self.written(rig) == 0
            rig.store.put(body=bytes(60_000))
            rig.run(0)
        assert self.written(rig) == memory.positions.get(Position.APPENDED)
        rig.store.put(body=bytes(4 * PAGE_BYTES))
        rig.run(0)
        assert rig.flusher.wanted_appended == self.written(rig) + half

    def test_checkpoint_speaks_of_what_is_synced(self, rig: Rig) -> None:
        rig.store.put(wall_ms=NOW_MS, body=bytes(4 * PAGE_BYTES))
        rig.run(0)
        rig.store.put(wall_ms=NOW_MS + 1)
        rig.run(500 * MS - 1)
        rig.flusher.stopping = True
        rig.dispatch()
        rig.run(500 * MS)
        assert rig.on_disk().log_timestamp == NOW_MS + 1
        assert rig.flushed == self.written(rig) == rig.memory.positions.get(Position.APPENDED)

    def test_failed_write_stops_the_broker(self, rig: Rig) -> None:
        rig.store.put()
        rig.run(0)
        rig.flusher.files.disk = FailingDisk(RealDisk(), 1, kinds=["pwritev"], short=True)
        with pytest.raises(StoreFailed, match=r"cannot write .*/commitlog/0{20} from log offset 0"):
            rig.run(200 * MS)
        assert rig.memory.positions.get(Position.STORE_FAILED) == 1
        assert self.written(rig) == 0


class TestFailedSync:
    @pytest.mark.parametrize("bad", ["commitlog", "consumequeue", "checkpoint", "index"])
    def test_stops_the_broker_and_is_never_tried_again(self, memory: Memory, bad: str) -> None:
        rig = Rig(memory)
        rig.store.put(properties=b"KEYS\x01k\x02")
        if bad != "commitlog":
            rig.run(0)
            rig.dispatch()
        flushed = rig.flushed
        rig.disk.bad = f"/{bad}"
        with pytest.raises(StoreFailed, match=bad):
            rig.run(3_600_000 * MS if bad == "commitlog" else rig.round(0))
        assert memory.positions.get(Position.STORE_FAILED) == 1
        assert rig.flushed == flushed


class TestQueuesAndCheckpoint:
    def test_round_syncs_what_was_written_then_says_so(self, memory: Memory) -> None:
        rig = Rig(memory)
        done = [rig.store.put(row=row, queue_id=row, wall_ms=NOW_MS + row) for row in range(3)]
        rig.run(0)
        rig.dispatch()
        rig.disk.synced.clear()
        assert rig.on_disk() == checkpoint.Checkpoint(ours=True)
        due_ns = rig.round(0)
        assert due_ns == 1_000 * MS
        synced = [path for path in rig.disk.synced if "consumequeue" in path]
        root = memory.root / "consumequeue"
        assert [path for path in synced if path.endswith("0" * 20)] == [
            str(root / "topic" / str(row) / ("0" * 20)) for row in range(3)
        ]
        assert {str(root), str(root / "topic"), str(root / "topic" / "2")} <= set(synced)
        on_disk = rig.on_disk()
        assert on_disk.log_flushed == on_disk.queues_flushed == on_disk.index_flushed == done[-1].log_end
        assert on_disk.log_timestamp == on_disk.queues_timestamp == NOW_MS + 2
        assert rig.flusher.clean

    @pytest.mark.parametrize("fails", [False, True])
    def test_many_files_are_synced_at_once(
        self, memory: Memory, monkeypatch: pytest.MonkeyPatch, fails: bool
    ) -> None:
        """By one call for all that the file system has; like any other sync it fails once and for all."""
        monkeypatch.setattr(flusher, "MANY_FILES", 2)
        rig = Rig(memory)
        done = [rig.store.put(row=row, queue_id=row) for row in range(3)]
        rig.run(0)
        rig.dispatch()
        calls: list[int] = []

        def sync_volume(fd: int) -> bool:
            calls.append(fd)
            if fails:
                raise OSError(5, "Input/output error")
            return True

        monkeypatch.setattr(rig.disk, "sync_volume", sync_volume)
        rig.disk.synced.clear()
        if fails:
            with pytest.raises(StoreFailed, match="sync the file system"):
                rig.round(0)
            assert memory.positions.get(Position.STORE_FAILED)
        else:
            rig.round(0)
            assert rig.on_disk().queues_flushed == done[-1].log_end
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in calls] == [str(memory.root / "consumequeue")]
        assert not [path for path in rig.disk.synced if "consumequeue" in path]

    def test_only_files_with_news_are_synced(self, memory: Memory) -> None:
        rig = Rig(memory)
        for row in (0, 1):
            rig.store.put(row=row, queue_id=row)
        rig.run(0)
        rig.dispatch()
        now_ns = rig.round(0)
        rig.disk.synced.clear()
        rig.store.put(row=1, queue_id=1)
        rig.run(now_ns)
        rig.dispatch()
        rig.round(now_ns)
        assert [path for path in rig.disk.synced if "consumequeue" in path] == [
            str(memory.root / "consumequeue" / "topic" / "1" / ("0" * 20))
        ]

    def test_queues_with_little_news_wait_for_the_thorough_round(self, memory: Memory) -> None:
        """Meanwhile the checkpoint speaks of the log only: what it says of queues must hold for all."""
        memory.config = replace(memory.config, flush_queue_least_pages=1)
        rig = Rig(memory)
        rig.store.put()
        rig.run(0)
        rig.dispatch()
        now_ns = rig.round(0)
        assert rig.on_disk().queues_flushed == rig.flushed, "the first round is thorough"
        rig.disk.synced.clear()
        before = rig.flushed
        done = [rig.store.put(row=1, queue_id=1) for _ in range(PAGE_BYTES // 20)][-1]
        done = rig.store.put()
        rig.run(now_ns)
        rig.dispatch()
        assert rig.round(now_ns) == now_ns + 1_000 * MS
        queue_files = [path.split("/")[-2] for path in rig.disk.synced if path.endswith("/" + "0" * 20)]
        assert queue_files == ["commitlog", "1"]
        on_disk = rig.on_disk()
        assert (on_disk.log_flushed, on_disk.queues_flushed) == (done.log_end, before)
        assert not rig.flusher.clean
        assert rig.flusher.wake_at_ns == now_ns + 60_000 * MS
        assert rig.flusher.wanted_dispatched == done.log_end + 1
        rig.disk.synced.clear()
        assert rig.round(now_ns + 2_000 * MS) == now_ns + 60_000 * MS
        assert [path.split("/")[-2] for path in rig.disk.synced if path.endswith("/" + "0" * 20)] == ["0"]
        assert rig.on_disk().queues_flushed == done.log_end
        assert rig.flusher.clean

    def test_every_file_that_new_entries_lie_in(self, memory: Memory) -> None:
        rig = Rig(memory)
        for _ in range(150):
            rig.store.put()
        rig.run(0)
        rig.dispatch()
        rig.round(0)
        assert {"0" * 20, "2000".zfill(20)} <= set(rig.disk.names("consumequeue"))

    def test_log_goes_first(self, memory: Memory) -> None:
        """Sends wait for one queue file at most, not for all of them."""
        rig = Rig(memory)
        for row in range(4):
            rig.store.put(row=row, queue_id=row)
        rig.run(0)
        rig.dispatch()
        rig.run(0)
        due_ns = rig.flusher.wake_at_ns
        assert due_ns is not None
        assert rig.flusher.run(due_ns)
        done = rig.store.put()
        assert rig.flusher.run(due_ns)
        assert rig.flushed == done.log_end

    def test_successor_of_a_dead_flusher_syncs_every_queue_file(self, memory: Memory) -> None:
        """It does not know what the dead one had left undone."""
        rig = Rig(memory)
        for _ in range(150):
            rig.store.put()
        rig.run(0)
        rig.dispatch()
        rig.round(0)
        rig.disk.synced.clear()
        rig.store.put(row=1, queue_id=1)
        rig.run(0)
        rig.dispatch()
        rig.start()
        rig.round(0)
        synced = [path for path in rig.disk.synced if path.endswith("0")]
        assert (
            len([path for path in synced if "/consumequeue/topic/" in path and len(Path(path).name) == 20])
            == 3
        )

    @pytest.mark.parametrize(
        "name",
        ["flusher.queue-synced", "flusher.index-synced", "flusher.checkpoint-written"],
    )
    def test_checkpoint_is_never_ahead_whoever_dies(self, memory: Memory, name: str) -> None:
        rig = Rig(memory)
        done = rig.store.put()
        rig.run(0)
        rig.dispatch()
        with killing(name), pytest.raises(Died):
            rig.round(0)
        if name != "flusher.checkpoint-written":
            assert rig.on_disk().queues_flushed == 0
        rig.disk.synced.clear()
        rig.start()
        rig.round(0)
        assert rig.disk.names("consumequeue")
        assert rig.on_disk().queues_flushed == done.log_end

    def test_rounds_take_a_tenth_of_the_time_at_most(self, memory: Memory) -> None:
        """With very many queues a round is long; the log must not suffer from rounds without end."""
        rig = Rig(memory)
        rig.store.put()
        rig.run(0)
        rig.dispatch()
        rig.run(0)
        due_ns = rig.flusher.wake_at_ns
        assert due_ns is not None
        *_, end_ns = self._slow_steps(rig.flusher, due_ns)
        rig.store.put()
        rig.run(end_ns)
        rig.dispatch()
        rig.run(end_ns)
        next_ns = rig.flusher.wake_at_ns
        assert next_ns is not None
        assert next_ns - end_ns == ROUND_PAUSE * (end_ns - due_ns)

    @staticmethod
    def _slow_steps(flusher: Flusher, now_ns: int) -> Iterator[int]:
        """Every step takes ten seconds."""
        while not flusher.clean:
            flusher.run(now_ns)
            yield now_ns
            now_ns += 10_000 * MS

    def test_queues_never_count_further_than_the_log(self, memory: Memory) -> None:
        """In async mode readers are ahead of the disk; after a power cut entries without record must go."""
        rig = Rig(memory, FlushMode.ASYNC)
        index_round = rig.store.put()
        rig.dispatch()
        now_ns = rig.round(0)
        assert rig.on_disk().log_flushed == rig.on_disk().index_flushed == index_round.log_end
        rig.store.put()
        rig.dispatch()
        rig.round(now_ns)
        on_disk = rig.on_disk()
        assert on_disk.queues_flushed == on_disk.log_flushed == index_round.log_end == rig.flushed

    def test_deleted_queues_are_passed_over(self, memory: Memory) -> None:
        rig = Rig(memory)
        done = rig.store.put()
        rig.run(0)
        rig.dispatch()
        (memory.root / "consumequeue" / "topic" / "0" / ("0" * 20)).unlink()
        rig.round(0)
        assert rig.on_disk().queues_flushed == done.log_end

    def test_names_of_a_queue_made_again_are_synced_again(self, memory: Memory) -> None:
        """Its file is another one, in a folder that may be another one; a topic that was published while the
        round was planned is known by then."""
        rig = Rig(memory)
        rig.store.put()
        rig.run(0)
        rig.dispatch()
        now_ns = rig.round(0)
        memory.extents.open_row(0, 100, 0, 0)
        again = TopicEntry("topic", 6, 1, 1, 0, False, "SINGLE_TAG", {}, [0], [100])
        memory.publisher.publish(encode_entry(TopicGone("topic")), encode_entry(again))
        rig.store.put(incarnation=100)
        rig.run(now_ns)
        rig.dispatch()
        rig.disk.synced.clear()
        rig.round(now_ns)
        folder = memory.root / "consumequeue"
        queue = folder / "topic" / "0"
        synced = [path for path in rig.disk.synced if path.startswith(str(folder))]
        assert synced == list(map(str, (queue / ("0" * 20), queue, queue.parent, folder)))

    def test_stopping_leaves_nothing_undone(self, memory: Memory) -> None:
        rig = Rig(memory, FlushMode.ASYNC)
        done = rig.store.put(properties=b"KEYS\x01k\x02")
        rig.dispatch()
        rig.run(0)
        assert not rig.flusher.clean
        rig.flusher.stopping = True
        rig.run(0)
        assert rig.flusher.clean
        assert rig.flushed == done.log_end
        assert rig.on_disk().index_flushed == done.log_end

    def test_clean_stop_leaves_an_end_mark(self, memory: Memory) -> None:
        """The next start believes the mark instead of looking through the log."""
        rig = Rig(memory)
        marks.create_abort(RealDisk(), memory.root, 1)
        done = [rig.store.put() for _ in range(3)]
        rig.run(0)
        rig.dispatch()
        rig.flusher.leave(log_min=0)
        assert marks.has_abort(RealDisk(), memory.root), "not everything was synced"
        rig.flusher.stopping = True
        rig.run(0)
        rig.flusher.leave(log_min=0)
        assert not marks.has_abort(RealDisk(), memory.root)
        mark = marks.read_clean(RealDisk(), memory.root)
        assert mark is not None
        assert mark.log_end == done[-1].log_end
        assert mark.queues["topic", 0] == marks.QueueExtent(min=0, max=3, first_file_entry=0)

    def test_store_with_an_open_intent_is_not_left_clean(self, memory: Memory) -> None:
        rig = Rig(memory)
        marks.create_abort(RealDisk(), memory.root, 1)
        rig.store.put()
        rig.run(0)
        rig.dispatch()
        assert append(rig.store.client, 2)
        with killing("writer.intent-written"), pytest.raises(Died):
            rig.store.writer.run(NOW_MS, 0)
        rig.flusher.stopping = True
        rig.run(0)
        rig.flusher.leave(log_min=0)
        assert marks.has_abort(RealDisk(), memory.root)
