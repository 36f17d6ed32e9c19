"""The scheduler's role: each delayed message once its time has come, never early, whatever dies."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from broker_rig import Broker, sync_mode
from faults.disks import FailingDisk
from store_rig import Died, killing, log_records

from actormq.actors.progress import HURRY_INTERVAL_MS
from actormq.actors.scheduler import SAVE_INTERVAL_MS, SchedulerActor
from actormq.broker.delay import DelayLevels, park
from actormq.broker.sending import PutStatus
from actormq.broker.tables import Tables, TopicEntry, TopicGone, encode_entry
from actormq.errors import StoreFailed
from actormq.kernels.queues import ENTRY
from actormq.message import SCHEDULE_TOPIC, decode_properties
from actormq.shm.append_port import Completion
from actormq.shm.positions import Position, RoleCell, slot_of
from actormq.shm.tables import TablesPublisher, TablesReader
from actormq.store.commit_log import file_name
from actormq.store.disk import RealDisk

LEVELS = DelayLevels("1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h")


class Rig:
    """A scheduler on a small broker."""

    def __init__(self, tmp_path: Path, *, sync: bool = False) -> None:
        self.broker = Broker(tmp_path / "store", tmp_path / "run")
        if sync:
            self.broker.config = sync_mode(self.broker.config)
        self.scheduler: SchedulerActor = self.start()
        self.cell = slot_of("scheduler")

    def start(self) -> SchedulerActor:
        self.scheduler = self.broker.start("scheduler", SchedulerActor)
        self.turn()
        return self.scheduler

    def topic(self, name: str) -> TopicEntry:
        memory = self.broker.memory
        tables = Tables()
        for entry in TablesReader(memory.tables_view, memory.positions, 63).poll()[1]:
            tables.apply(entry)
        found = tables.topic(name)
        assert found is not None
        return found

    def delay(self, level: int, body: bytes = b"body", target: str = "TBW102", **properties: str) -> None:
        """Send one delayed message, as a gateway does."""
        placed = park(target, 1, {**properties, "DELAY": str(level)}, LEVELS)
        self.broker.put(self.topic(placed.topic), placed.queue_id, properties=placed.properties, body=body)

    def turn(self) -> None:
        """Let scheduler, writer, flusher and dispatcher work until they rest."""
        for _ in range(20):
            before = self.broker.memory.positions.get(Position.APPENDED)
            self.broker.turn(self.scheduler)
            self.broker.write()
            self.broker.flush()
            self.broker.turn(self.scheduler)
            if self.broker.memory.positions.get(Position.APPENDED) == before:
                return
        raise AssertionError("never at rest")

    def wait_ms(self, ms: int) -> None:
        self.broker.clock.advance_ms(ms)
        self.turn()

    def wake_ms(self) -> int | None:
        """In how many milliseconds the role wakes by itself."""
        wake_ns = self.scheduler.wake_at_ns()
        return None if wake_ns is None else (wake_ns - self.broker.clock.monotonic_ns()) // 1_000_000

    def delivered(self, topic: str = "TBW102") -> list[bytes]:
        """Return the bodies that have come to a topic."""
        end = self.broker.memory.positions.get(Position.APPENDED)
        found = log_records(self.broker.memory, end)
        return [body for _, header, body in found if header.topic == topic.encode()]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_message_comes_when_its_time_has_come(rig: Rig) -> None:
    """Not a millisecond early; the role sleeps exactly until then."""
    rig.delay(2, b"five seconds", KEYS="k")
    rig.turn()
    for _ in range(2):
        assert rig.wake_ms() == 500, "the next look at the queues"
        rig.wait_ms(500)
    assert rig.wake_ms() == 4_000
    rig.wait_ms(3_999)
    assert rig.delivered() == []
    rig.wait_ms(1)
    assert rig.delivered() == [b"five seconds"]
    end = rig.broker.memory.positions.get(Position.APPENDED)
    _, header, _ = log_records(rig.broker.memory, end)[-1]
    assert header.queue_id == 1
    properties = decode_properties(header.properties)
    assert "DELAY" not in properties
    assert (properties["KEYS"], properties["REAL_TOPIC"]) == ("k", "TBW102")


def test_an_entry_that_does_not_say_when_is_not_early(rig: Rig) -> None:
    """With enableConsumeQueueExt RocketMQ puts an address there: then the store time tells."""
    rig.delay(2, b"five seconds")
    rig.turn()
    queue = rig.broker.memory.root / "consumequeue" / SCHEDULE_TOPIC / "1" / file_name(0)
    data = bytearray(queue.read_bytes())
    log_offset, size, due_ms = ENTRY.unpack_from(data)
    assert due_ms > 0
    with queue.open("r+b") as file:
        file.write(ENTRY.pack(log_offset, size, -(1 << 63)))
    for _ in range(3):
        rig.wait_ms(1_000)
    rig.wait_ms(1_999)
    assert rig.delivered() == []
    rig.wait_ms(1)
    assert rig.delivered() == [b"five seconds"]


def test_an_idle_scheduler_sleeps_until_it_is_rung(rig: Rig) -> None:
    """No timer at all: the wish for `dispatched` is there; a new message cancels it."""
    positions = rig.broker.memory.positions
    rig.wait_ms(500)
    assert rig.wake_ms() is None
    assert positions.role(rig.cell, RoleCell.WANTED_DISPATCHED) == positions.get(Position.DISPATCHED) + 1
    rig.delay(1)
    assert positions.get(Position.DISPATCHED) >= positions.role(rig.cell, RoleCell.WANTED_DISPATCHED)
    rig.turn()
    assert positions.role(rig.cell, RoleCell.WANTED_DISPATCHED) == 0
    rig.wait_ms(500)
    assert positions.role(rig.cell, RoleCell.WANTED_DISPATCHED) != 0
    assert rig.wake_ms() == 500


def test_while_others_are_busy_it_looks_twice_in_the_shortest_delay(rig: Rig) -> None:
    """Not at every dispatch; and still in time."""
    rig.wait_ms(500)
    other = rig.topic("TBW102")
    rig.broker.put(other)
    rig.turn()
    assert rig.broker.memory.positions.role(rig.cell, RoleCell.WANTED_DISPATCHED) == 0
    rig.delay(1, b"meanwhile")
    rig.turn()
    rig.wait_ms(999)
    assert rig.delivered() == [b"body"]
    rig.wait_ms(1)
    assert rig.delivered() == [b"body", b"meanwhile"]


def test_each_level_on_its_own(rig: Rig) -> None:
    """A short delay passes a long one; within a level the order is kept."""
    rig.delay(3, b"ten")
    for number in range(150):
        rig.delay(1, b"one %d" % number)
    rig.wait_ms(1_000)
    assert rig.delivered() == [b"one %d" % number for number in range(150)]
    rig.wait_ms(9_000)
    assert rig.delivered()[-1] == b"ten"


def test_progress_waits_for_the_log(rig: Rig) -> None:
    """delayOffset.json follows `flushed`; what is under way is not in it."""
    path = rig.broker.config.store.root / "config" / "delayOffset.json"
    rig.delay(1)
    rig.wait_ms(1_000)
    rig.broker.clock.advance_ms(10_000)
    positions = rig.broker.memory.positions
    flushed = positions.get(Position.FLUSHED)
    positions.set(Position.FLUSHED, 0)
    rig.broker.turn(rig.scheduler)
    assert not path.exists()
    assert positions.role(rig.cell, RoleCell.WANTED_FLUSHED) == positions.get(Position.APPENDED)
    positions.set(Position.FLUSHED, flushed)
    rig.broker.turn(rig.scheduler)
    assert json.loads(path.read_text())["offsetTable"]["1"] == 1


def test_in_sync_mode_a_delivery_counts_when_it_is_synced(tmp_path: Path) -> None:
    """Until then a successor would make it again."""
    rig = Rig(tmp_path, sync=True)
    rig.delay(1)
    rig.broker.clock.advance_ms(1_000)
    rig.broker.turn(rig.scheduler)
    rig.broker.write()
    rig.broker.turn(rig.scheduler)
    assert rig.scheduler.schedule.saved()[1] == 0
    positions = rig.broker.memory.positions
    assert positions.role(rig.cell, RoleCell.WANTED_FLUSHED) == positions.get(Position.APPENDED)
    rig.broker.flush()
    rig.broker.turn(rig.scheduler)
    assert rig.scheduler.schedule.saved()[1] == 1


POINTS = ("looked", "taken", "pushed", "stored", "ledger-written", "offsets-unsaved", "offsets-saved")


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("hit", [1, 2, 5])
def test_a_death_loses_nothing_and_repeats_little(rig: Rig, name: str, hit: int) -> None:
    """Killed at every point between two steps: each message comes, only those under way may come twice."""
    bodies = [b"message %d" % number for number in range(12)]
    for body in bodies:
        rig.delay(1, body)
    for body in bodies[:3]:
        rig.delay(2, b"later " + body)
    try:
        with killing(f"scheduler.{name}", hit):
            for _ in range(4):
                rig.wait_ms(1_000)
            rig.wait_ms(10_000)
    except Died:
        # What the dead one had put into its ring, the writer still takes; its completions reach nobody.
        rig.broker.write()
        rig.start()
    for _ in range(20):
        rig.wait_ms(1_000)
    came = rig.delivered()
    assert set(came) == {*bodies, *(b"later " + body for body in bodies[:3])}
    assert len(came) <= 15 + 12
    assert rig.scheduler.schedule.saved()[1] == 12


def test_a_successor_goes_on_where_the_ledger_says(rig: Rig) -> None:
    """Nothing that was finished is delivered again, without any file in the store."""
    rig.delay(1, b"first")
    rig.wait_ms(1_000)
    rig.delay(1, b"second")
    assert not (rig.broker.config.store.root / "config" / "delayOffset.json").exists()
    rig.start()
    rig.wait_ms(1_000)
    assert rig.delivered() == [b"first", b"second"]


def test_a_new_broker_goes_on_where_the_file_says(rig: Rig, tmp_path: Path) -> None:
    """RocketMQ's shape, integer keys without quotes; the run folder is another one."""
    rig.delay(1, b"first")
    rig.wait_ms(1_000)
    rig.delay(1, b"second")
    path = rig.broker.config.store.root / "config" / "delayOffset.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"dataVersion":{"counter":3,"stateVersion":0,"timestamp":5},"offsetTable":{1:1,2:"x"}}')
    rig.broker.run_dir = tmp_path / "another"
    rig.broker.run_dir.mkdir()
    rig.start()
    rig.wait_ms(1_000)
    assert rig.delivered() == [b"first", b"second"]
    assert rig.scheduler.schedule.version.counter == 3


def test_what_cannot_be_delivered_does_not_stop_the_level(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """No such topic: dropped with a line in the log; the next one comes."""
    rig.delay(1, b"lost", target="nowhere")
    rig.delay(1, b"found")
    with caplog.at_level(logging.WARNING):
        rig.wait_ms(1_000)
    assert rig.delivered() == [b"found"]
    assert "nowhere is gone" in caplog.text


def test_a_topic_that_is_deleted_meanwhile(rig: Rig) -> None:
    """The writer refuses the row; the next try sees the new tables and gives up."""
    rig.delay(1, b"lost")
    rig.broker.clock.advance_ms(1_000)
    row = rig.topic("TBW102").rows[1]
    rig.broker.turn(rig.scheduler)
    rig.broker.memory.extents.close_row(row)
    rig.broker.write()
    rig.broker.turn(rig.scheduler)
    memory = rig.broker.memory
    TablesPublisher(memory.tables_view, memory.positions).publish(encode_entry(TopicGone("TBW102")))
    rig.wait_ms(100)
    assert rig.delivered() == []
    assert rig.scheduler.schedule.saved()[1] == 1


def test_a_store_that_is_full_only_makes_messages_late(rig: Rig) -> None:
    """Tried again until there is room."""
    rig.delay(1, b"late")
    rig.broker.clock.advance_ms(1_000)
    rig.broker.turn(rig.scheduler)
    ticket = next(iter(rig.scheduler._under_way))
    refused = Completion(ticket, PutStatus.SERVICE_NOT_AVAILABLE, 1, -1, -1, -1, 0)
    rig.scheduler._completed(refused, rig.broker.wall_ms)
    assert rig.scheduler.schedule.saved()[1] == 0
    assert rig.wake_ms() == 100


def test_a_position_that_was_cut_or_cleaned_is_brought_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond the end: the end; below the start: the start. Said in the log."""
    rig = Rig(tmp_path)
    for body in (b"one", b"two", b"three"):
        rig.delay(1, body)
    schedule = rig.topic(SCHEDULE_TOPIC)
    rig.broker.memory.extents.set_min(schedule.rows[0], 2)
    path = rig.broker.config.store.root / "config" / "delayOffset.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"offsetTable":{"1":0,"2":9}}')
    rig.broker.run_dir = tmp_path / "another"
    rig.broker.run_dir.mkdir()
    with caplog.at_level(logging.WARNING):
        rig.start()
        rig.wait_ms(1_000)
    assert rig.delivered() == [b"three"]
    assert rig.scheduler.schedule.saved()[2] == 0
    assert "had come to 9" in caplog.text


def test_a_stop_finishes_what_was_begun_and_saves(rig: Rig) -> None:
    """Nothing new is handed out; the offsets are on the disk when the process ends."""
    rig.delay(1, b"begun")
    rig.broker.clock.advance_ms(1_000)
    rig.broker.turn(rig.scheduler)
    rig.scheduler.on_stop()
    assert not rig.scheduler.drained()
    rig.delay(1, b"not begun")
    rig.wait_ms(1_000)
    assert rig.scheduler.drained()
    assert rig.delivered() == [b"begun"]
    path = rig.broker.config.store.root / "config" / "delayOffset.json"
    assert json.loads(path.read_text())["offsetTable"]["1"] == 1


def test_a_stop_saves_what_ends_after_it(rig: Rig) -> None:
    """A delivery under way at the stop is in the file soon, not when the next save would be due."""
    rig.delay(1, b"begun")
    rig.turn()
    rig.broker.clock.advance_ms(1_000)
    rig.broker.turn(rig.scheduler)
    rig.scheduler.on_stop()
    rig.scheduler.on_batch()  # nothing has ended yet
    rig.turn()
    assert not rig.scheduler.drained()
    rig.wait_ms(HURRY_INTERVAL_MS)
    assert rig.scheduler.drained()
    path = rig.broker.config.store.root / "config" / "delayOffset.json"
    assert json.loads(path.read_text())["offsetTable"]["1"] == 1


def test_other_levels_than_rocketmqs(tmp_path: Path) -> None:
    """A table of one's own: as many levels, looked at as often as the shortest needs."""
    rig = Rig(tmp_path)
    settings = replace(rig.broker.config.coordinator, delay_levels="2s 4s")
    rig.broker.config = replace(rig.broker.config, coordinator=settings)
    rig.start()
    rig.delay(1, b"two")
    rig.turn()
    assert rig.wake_ms() == 1_000
    rig.wait_ms(1_999)
    assert rig.delivered() == []
    rig.wait_ms(1)
    assert rig.delivered() == [b"two"]


def test_a_disk_that_fails_stops_the_broker(rig: Rig) -> None:
    """Progress that could not be synced is not written again."""
    rig.scheduler._disk = FailingDisk(RealDisk(), 1, kinds=("fsync_dir",))
    rig.delay(1)
    rig.wait_ms(1_000)
    with pytest.raises(StoreFailed, match=r"cannot sync .*config"):
        rig.wait_ms(SAVE_INTERVAL_MS)
