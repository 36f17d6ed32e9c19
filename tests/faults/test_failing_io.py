"""Every n-th call to the disk fails: the outcome is right, or a clean stop with nothing lost."""

from __future__ import annotations

import errno
import random
from collections import Counter
from typing import Any

import pytest
from faults.disks import CHANGES, FailingDisk, MemoryDisk, RecordingDisk
from faults.small_store import Message, SmallStore, check_index, check_queues, read_log, small_config
from faults.store_life import GROUP, ROOT, TOPIC, Broker

from actormq.config import FlushMode
from actormq.errors import StoreFailed
from actormq.store import tables

CONFIG_PATH = small_config().root / "config" / "consumerOffset.json"


def work(disk: Any, done: list[int]) -> None:
    """One life over rolls, dispatch, checkpoints, config and a clean stop; `done`: what is acknowledged."""
    store = SmallStore(disk, small_config(), 200_000)
    number = len(done)
    for round_number in range(4):
        batch = [Message(number + each, "t", each % 2) for each in range(3)]
        number += len(batch)
        store.append(batch)
        store.sync()
        done += [message.number for message in batch]
        store.dispatch()
        if round_number % 2:
            store.checkpoint()
            tables.save(disk, CONFIG_PATH, {"offsetTable": {"t@g": {"0": round_number}}})
    store.stop()


def calls_of_one_life() -> int:
    disk = FailingDisk(MemoryDisk())
    work(disk, [])
    return disk.calls


CALLS = calls_of_one_life()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_any_call_may_fail(number: int) -> None:
    """Stop at the first failure (never try again), start again: all that was acknowledged is there."""
    for fail_at in range(1, CALLS + 1):
        memory = MemoryDisk()
        disk = FailingDisk(memory, fail_at, number, short=True)
        done: list[int] = []
        with pytest.raises((OSError, StoreFailed), match="injected"):
            work(disk, done)
        store = SmallStore(memory, small_config(), 200_000)
        log = read_log(memory, store.found, store.config)
        numbers = [int(header.properties[6:14]) for header in log]
        assert numbers[: len(done)] == done, (fail_at, disk.failed)
        assert numbers == list(range(len(numbers)))
        check_queues(memory, store.found, store.config, log)
        check_index(memory, store.config, log)
        saved = tables.load(memory, CONFIG_PATH)
        assert saved is None or saved["offsetTable"]["t@g"]["0"] in (1, 3)


def test_a_second_life_may_fail_anywhere_in_recovery() -> None:
    """Recovery after a crash, failing at every call, then once more with a sound disk."""
    fail_at = 0
    while True:
        fail_at += 1
        memory = MemoryDisk()
        done: list[int] = []
        store = SmallStore(memory, small_config(), 200_000)
        batch = [Message(number, "t", 0) for number in range(7)]
        store.append(batch)
        store.sync()
        done += [message.number for message in batch]
        disk = FailingDisk(memory, fail_at)
        try:
            SmallStore(disk, small_config(), 200_000)
        except OSError:
            pass
        else:
            break
        store = SmallStore(memory, small_config(), 200_000)
        log = read_log(memory, store.found, store.config)
        assert [int(header.properties[6:14]) for header in log] == done, fail_at
        check_queues(memory, store.found, store.config, log)
    assert fail_at > 10


def test_the_order_of_calls_when_a_file_is_made_and_cut() -> None:
    """A file has its name only when it is whole and durable; a cut is durable before recovery ends."""
    disk = RecordingDisk(MemoryDisk())
    store = SmallStore(disk, small_config(), 50)
    disk.calls.clear()
    store.append([Message(0, "t", 0)])
    assert [name for name, _ in disk.calls] == [
        "mkdir",
        "open",
        "allocate",
        "fdatasync",
        "rename",
        "fsync_dir",
        "pwritev",
    ]
    disk.calls.clear()
    SmallStore(disk, small_config(), 50)
    names = [name for name, _ in disk.calls]
    assert names.index("zero_range") < names.index("fdatasync", names.index("zero_range"))
    assert set(names) <= set(CHANGES)


ROLES = ("client", "writer", "flusher", "dispatcher", "maker", "coordinator", "flusher", "dispatcher")


def role_life(broker: Broker) -> None:
    """A life of all roles: recovery, sends over two rolls, checkpoints, tables, the end of old files."""
    broker.sizes = (40_000, 60_000)
    broker.start()
    for number in range(120):
        broker.work(ROLES[number % len(ROLES)], 300_000_000)
        broker.take_answers()
    broker.work("remover", 0)


def new_broker(disk: Any, former: Broker | None = None) -> Broker:
    broker = Broker(FlushMode.SYNC, random.Random(1), disk=disk, peaceful=True)
    if former is not None:
        broker.sent, broker.durable = former.sent, former.durable
    return broker


def killed_broker() -> Broker:
    """A broker that was killed."""
    broker = new_broker(MemoryDisk())
    role_life(broker)
    return broker


def fail_role_life(fail_at: int, number: int, after: bool) -> str:
    """Fail one call of a second life, or (`after`) that and all that follow; return which one it was.

    The role that meets it dies, and with it the broker; then power fails, too.
    """
    former = killed_broker()
    memory = former.disk
    disk = FailingDisk(memory, fail_at, number, short=True, after=after)
    broker = new_broker(disk, former)
    try:
        role_life(broker)
    except (OSError, StoreFailed) as error:
        if "injected" not in str(error):
            raise
    seen = broker.ends() if hasattr(broker, "maker") else {}
    chance = random.Random(fail_at)
    again = new_broker(memory.crash(chance), broker)
    again.start()
    again.check({})
    ends = again.ends()
    assert all(ends[queue_id] >= end for queue_id, end in seen.items()), (fail_at, disk.failed)
    table = tables.load(again.disk, ROOT / tables.FOLDER / tables.CONSUMER_OFFSETS)
    assert table is not None
    for queue, offset in table["offsetTable"][f"{TOPIC}@{GROUP}"].items():
        assert offset <= ends[int(queue)], (fail_at, disk.failed)
    return disk.failed


def calls_of_second_life() -> int:
    former = killed_broker()
    disk = FailingDisk(former.disk)
    role_life(new_broker(disk, former))
    return disk.calls


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("after", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_any_call_of_any_role_may_fail(number: int, after: bool, every: int) -> None:
    """Recovery, append, roll, flush, checkpoint, dispatch, tables, removal: it goes well, or a clean stop."""
    calls = calls_of_second_life()
    failed = Counter(fail_role_life(at, number, after) for at in range(1, calls + 1, every))
    print(f"{sum(failed.values())} of {calls} calls failed: {dict(failed)}")
    assert "" not in failed
    if every == 1:
        assert set(failed) >= {"open", "pwritev", "fdatasync", "fsync_dir", "allocate", "rename", "unlink"}
