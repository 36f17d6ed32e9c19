"""The cleaner: the next file is there before it is needed; nothing is removed under a reader."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from faults.disks import FailingDisk, RecordingDisk
from store_rig import FILE_BYTES, Died, Memory, StoreWriter, killing

from actormq.actors.cleaner import RETRY_NS, Remover, Retention, SegmentMaker, used_percent
from actormq.actors.dispatcher import Dispatcher
from actormq.broker.queue_rows import QueueRows
from actormq.config import StoreConfig
from actormq.errors import StoreFailed
from actormq.shm.positions import Position, RoleCell, RoleState, slot_of
from actormq.shm.tables import TablesReader
from actormq.store import checkpoint, index
from actormq.store.checkpoint import Checkpoint
from actormq.store.commit_log import LogFiles
from actormq.store.disk import RealDisk

HALF = FILE_BYTES // 2
HOUR_NS = 3_600_000_000_000


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    made = Memory(tmp_path)
    made.add_topic("topic", 2)
    return made


class TestMaking:
    def test_first_file_is_due_at_once(self, memory: Memory) -> None:
        maker = SegmentMaker(memory.log_files(), 0)
        assert maker.make(0, 0)
        assert memory.log_files().bases() == [0]
        assert maker.due_from == HALF

    def test_next_file_is_made_when_the_last_is_half_full(self, memory: Memory) -> None:
        memory.log_files().create(0)
        maker = SegmentMaker(memory.log_files(), 100)
        assert not maker.make(HALF - 1, 0)
        assert maker.make(HALF, 0)
        assert memory.log_files().bases() == [0, FILE_BYTES]
        assert not maker.make(FILE_BYTES + HALF - 1, 0)

    def test_files_have_all_their_blocks_and_are_zero(self, memory: Memory) -> None:
        """A write into the log can never meet a full disk."""
        SegmentMaker(memory.log_files(), 0).make(0, 0)
        path = memory.root / "commitlog" / ("0" * 20)
        assert os.stat(path).st_blocks * 512 >= FILE_BYTES
        assert path.read_bytes() == bytes(FILE_BYTES)

    def test_warm_files_are_written_and_synced_in_steps(self, memory: Memory) -> None:
        """Full of zeros, the last step shorter where it must be."""
        disk = RecordingDisk(RealDisk())
        step = 300_000
        files = LogFiles(disk, memory.root / "commitlog", FILE_BYTES, warm_bytes=step)
        files.create(0)
        assert (memory.root / "commitlog" / ("0" * 20)).read_bytes() == bytes(FILE_BYTES)
        kinds = [name for name, _ in disk.calls]
        assert kinds.count("pwritev") == 4
        assert kinds.count("fdatasync") == 5

    def test_full_disk_is_tried_again_by_time(self, memory: Memory) -> None:
        files = memory.log_files()
        files.disk = FailingDisk(RealDisk(), 1, errno.ENOSPC, kinds=["allocate"])
        maker = SegmentMaker(files, 0)
        assert not maker.make(0, 5)
        assert maker.error is not None
        assert maker.retry_at_ns == 5 + RETRY_NS
        assert os.listdir(memory.root / "commitlog") == []
        assert not maker.make(0, 5 + RETRY_NS - 1)
        assert maker.make(0, 5 + RETRY_NS)
        assert maker.error is None
        assert maker.retry_at_ns is None

    @pytest.mark.parametrize("kind", ["allocate", "fdatasync", "rename", "fsync_dir"])
    def test_a_disk_that_fails_is_not_asked_again(self, memory: Memory, kind: str) -> None:
        """The file may have its name already, and the name may be lost: the broker stops."""
        files = memory.log_files()
        files.disk = FailingDisk(RealDisk(), 1, errno.EIO, kinds=[kind])
        with pytest.raises(StoreFailed, match=r"cannot make .*/commitlog/0{20}: .*injected"):
            SegmentMaker(files, 0).make(0, 5)

    def test_death_between_file_and_note_is_nothing(self, memory: Memory) -> None:
        with killing("cleaner.file-made"), pytest.raises(Died):
            SegmentMaker(memory.log_files(), 0).make(0, 0)
        maker = SegmentMaker(memory.log_files(), 0)
        assert not maker.make(0, 0)
        assert maker.end == FILE_BYTES


class TestRetention:
    RULE = Retention(
        reserved_ns=10 * HOUR_NS, hours=frozenset({4}), expire_percent=75, force_percent=85,
        warning_percent=90, may_force=True, files_max=10,
    )  # fmt: skip
    FILES = ((0, 1 * HOUR_NS), (100, 2 * HOUR_NS), (200, 3 * HOUR_NS))

    @pytest.mark.parametrize(
        ("now_hours", "hour", "used_percent", "below", "expected"),
        [
            (12, 4, 10, 1000, [0, 100]),
            (12, 5, 10, 1000, []),
            (12, 5, 75, 1000, []),
            (12, 5, 76, 1000, [0, 100]),
            (12, 4, 10, 100, [0]),
            (10, 4, 10, 1000, []),
            (0, 5, 85, 1000, []),
            (0, 5, 86, 1000, [0, 100, 200]),
            (0, 5, 91, 1000, [0, 100, 200]),
            (0, 5, 91, 0, []),
        ],
    )
    def test_old_files_at_the_hour_or_when_the_disk_fills(
        self, now_hours: int, hour: int, used_percent: int, below: int, expected: list[int]
    ) -> None:
        assert self.RULE.choose(self.FILES, now_hours * HOUR_NS, hour, used_percent, below) == expected

    def test_what_is_asked_for_goes_at_any_hour_if_it_is_old_enough(self) -> None:
        assert self.RULE.choose(self.FILES, 12 * HOUR_NS, 5, 10, 1000) == []
        assert self.RULE.choose(self.FILES, 12 * HOUR_NS, 5, 10, 1000, asked=True) == [0, 100]

    def test_young_files_stay_on_a_full_disk_where_that_is_wished(self) -> None:
        gentle = replace(self.RULE, may_force=False)
        assert gentle.choose(self.FILES, 0, 5, 99, 1000) == []
        assert gentle.choose(self.FILES, 12 * HOUR_NS, 5, 99, 1000) == [0, 100]

    def test_a_disk_is_full_above_the_warning_level(self) -> None:
        assert not self.RULE.is_full(90)
        assert self.RULE.is_full(91)

    def test_oldest_first_up_to_the_first_that_stays(self) -> None:
        files = ((0, 5 * HOUR_NS), (100, 1))
        assert self.RULE.choose(files, 12 * HOUR_NS, 4, 0, 1000) == []

    def test_few_at_a_time(self) -> None:
        files = tuple((base, 0) for base in range(0, 3000, 100))
        assert self.RULE.choose(files, 12 * HOUR_NS, 4, 0, 10_000) == list(range(0, 1000, 100))

    def test_hours_come_from_the_settings(self) -> None:
        config = StoreConfig(root=Path("/nowhere"), delete_when="04;16", retention_hours=48)
        rule = Retention.of(config)
        assert rule.hours == {4, 16}
        assert rule.reserved_ns == 48 * HOUR_NS

    def test_disk_use_is_rounded_up(self, tmp_path: Path) -> None:
        assert 0 < used_percent(tmp_path) <= 100


class Rig:
    """A store of four log files, all flushed and dispatched."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        memory.log_files().create(0)
        store = StoreWriter(memory)
        self.offsets: dict[int, list[int]] = {0: [], 1: []}
        while memory.positions.get(Position.APPENDED) < 3 * FILE_BYTES:
            for row in (0, 1):
                done = store.put(row=row, queue_id=row, body=bytes(5000), properties=b"KEYS\x01k\x02")
                self.offsets[row].append(done.log_offset)
        tables = TablesReader(memory.tables_view, memory.positions, slot_of("dispatcher"))
        dispatcher = Dispatcher(memory.config, memory.disk, memory.positions, memory.extents, tables, [])
        while dispatcher.run(0, 0) is not None:
            pass
        memory.positions.set(Position.FLUSHED, memory.positions.get(Position.APPENDED))
        self.note_durable_queues(memory.positions.get(Position.APPENDED))
        self.rows = QueueRows()
        self.rows.apply(*TablesReader(memory.tables_view, memory.positions, slot_of("cleaner")).poll())
        self.remover = Remover(memory.config, memory.disk, memory.positions, memory.extents)

    def note_durable_queues(self, log_offset: int) -> None:
        """As the flusher."""
        known = Checkpoint(ours=True, log_flushed=log_offset, queues_flushed=log_offset)
        checkpoint.write(self.memory.disk, self.memory.root / checkpoint.NAME, known)

    @property
    def queues(self) -> list[object]:
        return list(self.rows)

    def unlink(self, log_min: int) -> None:
        while self.remover.unlink_log_file(log_min):
            pass
        self.remover.unlink_derived(log_min, self.queues)  # type: ignore[arg-type]

    def names(self, folder: str) -> list[int]:
        return sorted(int(name) for name in os.listdir(self.memory.root / folder))


@pytest.fixture
def rig(memory: Memory) -> Rig:
    return Rig(memory)


class TestRemoving:
    def test_last_file_and_what_is_not_dispatched_stay(self, rig: Rig) -> None:
        far = 1 << 62
        assert rig.remover.choose(far, 4, 0) == [0, FILE_BYTES, 2 * FILE_BYTES]
        rig.memory.positions.set(Position.DISPATCHED, FILE_BYTES + 5)
        assert rig.remover.choose(far, 4, 0) == [0]
        rig.memory.positions.set(Position.FLUSHED, FILE_BYTES - 1)
        assert rig.remover.choose(far, 4, 0) == []

    def test_what_queues_may_still_need_stays(self, rig: Rig) -> None:
        """A loss of power would take their entries, and with them the numbers that were used."""
        rig.note_durable_queues(FILE_BYTES + 5)
        assert rig.remover.choose(1 << 62, 4, 0) == [0]
        (rig.memory.root / checkpoint.NAME).unlink()
        assert rig.remover.choose(1 << 62, 4, 0) == []

    def test_readers_lose_it_before_the_disk_does(self, rig: Rig) -> None:
        """Each queue begins at its first message that stays."""
        log_min = 2 * FILE_BYTES
        rig.remover.hide(log_min, rig.queues)  # type: ignore[arg-type]
        assert rig.memory.positions.get(Position.CLEANED) == log_min
        for row, offsets in rig.offsets.items():
            lowest = rig.memory.extents.read(row).min
            assert offsets[lowest] >= log_min > offsets[lowest - 1]
        assert rig.names("commitlog") == [number * FILE_BYTES for number in range(4)]

    def test_gateways_that_still_read_are_waited_for(self, rig: Rig) -> None:
        positions = rig.memory.positions
        reading = slot_of("gateway-1")
        positions.set_role(reading, RoleCell.STATE, RoleState.RUNNING)
        positions.set_role(reading, RoleCell.READING_FROM, FILE_BYTES)
        assert rig.remover.read_by(2 * FILE_BYTES) == [reading]
        assert rig.remover.read_by(FILE_BYTES) == []
        positions.set_role(reading, RoleCell.READING_FROM, 0)
        assert rig.remover.read_by(2 * FILE_BYTES) == []
        positions.set_role(reading, RoleCell.READING_FROM, 5)
        positions.set_role(reading, RoleCell.STATE, RoleState.ABSENT)
        assert rig.remover.read_by(2 * FILE_BYTES) == [], "a dead gateway reads nothing"

    def test_unlinks_log_queues_and_index(self, rig: Rig) -> None:
        log_min = 2 * FILE_BYTES
        rig.remover.hide(log_min, rig.queues)  # type: ignore[arg-type]
        index_before = rig.names("index")
        rig.unlink(log_min)
        assert rig.names("commitlog") == [2 * FILE_BYTES, 3 * FILE_BYTES]
        for row in (0, 1):
            lowest = rig.memory.extents.read(row).min
            assert rig.names(f"consumequeue/topic/{row}")[0] == lowest // 100 * 2000
            assert rig.memory.extents.files(row) == (lowest // 100 * 100, 100)
        kept = rig.names("index")
        assert kept == index_before[-len(kept) :]
        assert len(kept) < len(index_before)
        assert self._index_end(rig, kept[0]) >= log_min
        gone = index_before[: -len(kept)]
        assert gone

    @staticmethod
    def _index_end(rig: Rig, name: int) -> int:
        data = (rig.memory.root / "index" / f"{name:017d}").read_bytes()
        return index.read_header(data).end_offset

    @pytest.mark.parametrize(
        "name",
        [
            "cleaner.log-hidden",
            "cleaner.queues-hidden",
            "cleaner.log-file-removed",
            "cleaner.queue-files-removed",
            "cleaner.index-files-removed",
        ],
    )
    def test_death_halfway_is_finished_by_the_next_round(self, rig: Rig, name: str) -> None:
        log_min = 2 * FILE_BYTES

        def whole_round() -> None:
            rig.remover.hide(log_min, rig.queues)  # type: ignore[arg-type]
            rig.unlink(log_min)

        with killing(name), pytest.raises(Died):
            whole_round()
        memory = rig.memory
        rig.remover = Remover(memory.config, memory.disk, memory.positions, memory.extents)
        whole_round()
        assert rig.names("commitlog") == [2 * FILE_BYTES, 3 * FILE_BYTES]

    def test_deleted_topics_rows_are_left_alone(self, rig: Rig) -> None:
        rig.memory.extents.open_row(0, 1000, 0, 0)
        rig.remover.hide(2 * FILE_BYTES, rig.queues)  # type: ignore[arg-type]
        assert rig.memory.extents.read(0).min == 0
