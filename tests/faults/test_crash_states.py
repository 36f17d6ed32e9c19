"""Loss of power at any moment: the store always starts, keeps what was acknowledged, invents nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faults.disks import MemoryDisk, WatchedDisk
from faults.small_store import Message, SmallStore, check_index, check_queues, read_log, small_config
from faults.store_life import GROUP, ROOT, TOPIC, Broker

from actormq.config import FlushMode
from actormq.shm.positions import Position
from actormq.store import tables
from actormq.store.disk import RealDisk

LIVES = 5


def numbers_in(store: SmallStore) -> list[int]:
    """Return the messages in the log, in order; checks queues, index and that bodies are whole."""
    log = read_log(store.disk, store.found, store.config)
    check_queues(store.disk, store.found, store.config, log)
    check_index(store.disk, store.config, log)
    return [int(header.properties[6:14]) for header in log]


def live(store: SmallStore, chance: random.Random, first_number: int) -> tuple[list[int], int]:
    """Work for a while; return the messages sent, and how many of them were acknowledged (sync flush)."""
    sent: list[int] = []
    acknowledged = 0
    for _ in range(chance.randint(0, 12)):
        step = chance.random()
        if step < 0.5:
            batch = [
                Message(first_number + len(sent) + number, "t", chance.randrange(store.queue_count))
                for number in range(chance.randint(1, 6))
            ]
            # Sent counts from the first byte on: a crash may keep it, acknowledged or not.
            sent += [message.number for message in batch]
            store.append(batch)
        elif step < 0.75:
            store.sync()
            acknowledged = len(sent)
        elif step < 0.9:
            store.dispatch()
        else:
            store.checkpoint()
            acknowledged = len(sent)
    return sent, acknowledged


@pytest.mark.parametrize("body_bytes", [50, 90_000, 300_000])
@pytest.mark.parametrize("seed", range(30))
def test_crashes_lose_nothing_acknowledged_and_bring_nothing_back(seed: int, body_bytes: int) -> None:
    """Append, crash, recover, append, crash, recover, with records of one size.

    After each recovery the log is what was there after the last one, then a beginning of what was sent
    since, with all that was acknowledged; never a record that an earlier recovery had cut.  Where only
    the processes are killed, the page cache keeps everything; recovery must not take it for durable.
    """
    chance = random.Random(seed)
    disk = MemoryDisk()
    kept: list[int] = []
    sent: list[int] = []
    acknowledged = 0
    first_number = 0
    for _ in range(LIVES):
        store = SmallStore(disk, small_config(), body_bytes, asynchronous=seed % 2 == 1)
        now = numbers_in(store)
        assert now == (kept + sent)[: len(now)], f"seed {seed}"
        assert len(now) >= len(kept) + acknowledged, f"seed {seed}"
        kept = now
        sent, acknowledged = live(store, chance, first_number)
        first_number += len(sent)
        ending = chance.random()
        if ending < 0.2:
            acknowledged = len(sent)
        elif ending < 0.35:
            store.stop()
            acknowledged = len(sent)
            if chance.random() < 0.5:
                disk = disk.crash(chance)
        else:
            disk = disk.crash(chance)


@pytest.mark.parametrize("seed", range(30))
def test_a_crash_during_recovery_changes_nothing(seed: int) -> None:
    """Recovery itself may lose power; the next one comes to an end that fits as well."""
    chance = random.Random(seed)
    disk = MemoryDisk()
    store = SmallStore(disk, small_config(), 90_000, asynchronous=seed % 2 == 1)
    sent, acknowledged = live(store, chance, 0)
    more, now_acknowledged = live(store, chance, len(sent))
    acknowledged = len(sent) + now_acknowledged if now_acknowledged else acknowledged
    sent += more
    disk = disk.crash(chance)
    for _ in range(3):
        SmallStore(disk, small_config(), 90_000)
        disk = disk.crash(chance)
    store = SmallStore(disk, small_config(), 90_000)
    now = numbers_in(store)
    assert now == sent[: len(now)]
    assert len(now) >= acknowledged


def test_kill_and_stop_on_a_real_disk(tmp_path: Path) -> None:
    """The same over the operating system's files: killed, started, stopped, started."""
    config = small_config(tmp_path / "store")
    sent = 0
    for life in range(4):
        store = SmallStore(RealDisk(), config, 200_000)
        assert numbers_in(store) == list(range(sent))
        assert store.found.clean == (life in (0, 3))
        store.append([Message(sent + number, "t", number % 3) for number in range(7)])
        sent += 7
        if life == 1:
            store.sync()
            store.dispatch()
        elif life == 2:
            store.stop()


@dataclass
class Crashes:
    """Power fails between any two calls of a broker in sync mode, in several ways each; counts the states.

    Attributes:
        every: so many moments pass for one at which it fails.
    """

    seed: int
    states_max: int
    every: int
    ways: int = 5
    states: int = 0
    moments: int = 0
    broker: Broker = field(init=False)

    def run(self) -> None:
        chance = random.Random(self.seed)
        disk = MemoryDisk()
        self.broker = Broker(FlushMode.SYNC, chance, disk=disk, peaceful=True)
        # Records of one size, as large as a log file holds a few dozen of: what lies behind a cut is at
        # exactly the places where the next ones come.
        self.broker.sizes = chance.choice([(20,), (3_000,), (40_000,), (1, 300, 40_000)])
        self.broker.workers = (*self.broker.workers, "flusher", "coordinator", "remover")
        self.broker.start()
        self.broker.disk = WatchedDisk(disk, self.moment)
        self.broker.start()
        while self.states < self.states_max:
            self.broker.step()

    def moment(self) -> None:
        """The power may fail here."""
        if self.states >= self.states_max or not hasattr(self.broker, "maker"):
            return
        self.moments += 1
        if self.moments % self.every:
            return
        disk = self.broker.disk._disk
        chance = random.Random(self.seed * 1_000_003 + self.moments)
        for _ in range(self.ways):
            self.states += 1
            self.judge(disk.fork().crash(chance), chance)

    def judge(self, disk: MemoryDisk, chance: random.Random) -> None:
        """Start on what is left, and once more after a message and another failure."""
        saved = tables.load(disk, ROOT / tables.FOLDER / tables.CONSUMER_OFFSETS)
        after = Broker(FlushMode.SYNC, chance, disk=disk, peaceful=True)
        after.sent, after.durable = self.broker.sent, dict(self.broker.durable)
        after.start()
        after.check({})
        self.check_progress(after, saved)
        if chance.random() < 0.2:
            kept = after.readable()
            while not after.unanswered:
                after.send()
            after.writer.run(after.wall_ms, after.now_ns)
            sent = len(self.broker.sent)
            after.disk = after.disk.crash(chance)
            after.start()
            after.check(kept)
            del self.broker.sent[sent:]

    def check_progress(self, after: Broker, saved: tables.Table | None) -> None:
        """What consumers could see is there, what a group has had is not ahead of it."""
        ends = after.ends()
        for queue_id, end in self.broker.ends().items():
            assert ends[queue_id] >= end, f"queue {queue_id}: seen to {end}, now it ends at {ends[queue_id]}"
        progress = (saved or {"offsetTable": {}})["offsetTable"].get(f"{TOPIC}@{GROUP}", {})
        for queue, offset in progress.items():
            assert offset <= ends[int(queue)], f"the group is ahead of queue {queue}"


@pytest.mark.parametrize(
    ("seed", "states", "every"),
    [
        (1, 300, 17),
        (2, 300, 17),
        *(
            pytest.param(seed, 2_500, 1 + seed % 3, marks=[pytest.mark.soak, pytest.mark.timeout(600)])
            for seed in range(10, 19)
        ),
    ],
)
def test_power_fails_between_any_two_calls(seed: int, states: int, every: int) -> None:
    """Always starts; nothing acknowledged is lost, nothing readable is taken back, no group is ahead."""
    crashes = Crashes(seed, states, every)
    crashes.run()
    positions = crashes.broker.memory.positions
    print(
        f"{crashes.states} crash states at {crashes.moments} moments, {len(crashes.broker.durable)} messages "
        f"acknowledged in {positions.get(Position.FLUSHED) - positions.get(Position.CLEANED)} bytes of log"
    )
    assert crashes.states >= states
    assert crashes.broker.durable
