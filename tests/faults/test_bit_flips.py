"""One bit of a store is another one: it is named, or it changes nothing; nobody gets a wrong message.

The store is made by the roles themselves, in the sync profile: records have a CRC of their own.  Then a bit
flips, a broker starts on it, and a consumer reads everything.  Not covered by anything are the tags codes of
queue entries (ADR 40): they matter to consumers with tags only.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.consuming import Consumer
from faults.disks import MemoryDisk
from faults.store_life import QUEUES, ROOT, TOPIC, Broker
from store_rig import FILE_BYTES

from actormq.config import FlushMode
from actormq.errors import StoreForeign
from actormq.kernels import records
from actormq.shm.positions import Position
from actormq.store import checkpoint, commit_log, consume_queue, index, marks, tables
from actormq.store.commit_log import LogReader

Place = tuple[int, int]
"""Queue id, queue offset."""
LOG_FILES = 3


@dataclass
class Store:
    """A store at rest, and what is in it."""

    disk: MemoryDisk
    messages: dict[Place, bytes]
    where: dict[Place, tuple[int, int]]
    """Log offset and size of each message."""
    log_end: int
    config: dict[str, tables.Table]
    durable: int
    """Up to here the checkpoint calls the log durable."""

    @property
    def files(self) -> dict[Path, int]:
        return {path: len(inode.data) for path, inode in self.disk.names.items()}


def make_store(clean: bool) -> Store:
    broker = Broker(FlushMode.SYNC, random.Random(1), peaceful=True)
    broker.start()
    while broker.memory.positions.get(Position.APPENDED) < (LOG_FILES - 1) * FILE_BYTES + FILE_BYTES // 2:
        broker.step()
    broker.settle()
    first_end = min(sent.log_end for sent in broker.acknowledged)
    config = {**CONFIG, tables.DELETED_TOPICS: {"deletedTopics": {"old": first_end}}}
    for name, table in config.items():
        for _ in range(2):  # the second makes the .bak
            tables.save(broker.disk, ROOT / tables.FOLDER / name, table)
    if clean:
        broker.flusher.stopping = True
        broker.settle()
        assert broker.flusher.leave(broker.memory.positions.get(Position.CLEANED))
    else:
        broker.busy_queues = 3  # in the others the checkpoint is after the last entry
        for _ in range(40):
            for who in ("client", "writer", "flusher", "dispatcher", "maker"):
                broker.work(who, 0)
        while broker.dispatcher.has_news:
            broker.work("dispatcher", 0)
    messages = Consumer(broker).everything()
    where = {}
    end = broker.memory.positions.get(Position.DISPATCHED)
    for place, data in messages.items():
        header = records.decode(data, 0)
        where[place] = header.physical_offset, header.total_size
    image = broker.disk.image()
    known = checkpoint.read(image, ROOT / checkpoint.NAME)
    assert known.ours
    return Store(image, messages, where, end, config, known.log_flushed)


CONFIG: dict[str, tables.Table] = {
    tables.TOPICS: {
        "topicConfigTable": {
            "orders": {
                "topicName": "orders", "readQueueNums": 4, "writeQueueNums": 4, "perm": 6, "topicSysFlag": 0,
                "topicFilterType": "SINGLE_TAG", "order": False, "attributes": {},
            }
        },
        "dataVersion": {"counter": 3, "stateVersion": 0, "timestamp": 1_700_000_000_000},
    },
    tables.GROUPS: {"subscriptionGroupTable": {"g": {"groupName": "g", "retryMaxTimes": 16}}},
    tables.CONSUMER_OFFSETS: {"offsetTable": {f"{TOPIC}@g": {"0": 12, "1": 40, "3": 7}}},
    tables.DELAY_OFFSETS: {"offsetTable": {"1": 3, "2": 4}},
}  # fmt: skip
"""And deletedTopics.json, which names a place in the log."""


@pytest.fixture(scope="module")
def clean_store() -> Store:
    return make_store(True)


@pytest.fixture(scope="module")
def killed_store() -> Store:
    return make_store(False)


# --- where


def flip_log(store: Store, chance: random.Random) -> tuple[Path, int]:
    """Any byte of a record: the first hundred (all fields), or the whole; seldom of what is no record."""
    offset, size = store.where[chance.choice(list(store.where))]
    at = offset + chance.choice(
        [chance.randrange(100), chance.randrange(size), size - 1 - chance.randrange(60)]
    )
    if chance.random() < 0.05:
        at = chance.choice([store.log_end, FILE_BYTES - 1, FILE_BYTES - 20, LOG_FILES * FILE_BYTES - 1])
    return ROOT / commit_log.FOLDER / commit_log.file_name(at // FILE_BYTES * FILE_BYTES), at % FILE_BYTES


def flip_blank(store: Store, chance: random.Random) -> tuple[Path, int]:
    """The record that ends a file."""
    base = FILE_BYTES * chance.randrange(LOG_FILES - 1)
    ends = [offset + size for offset, size in store.where.values() if offset < base + FILE_BYTES]
    return ROOT / commit_log.FOLDER / commit_log.file_name(base), max(ends) % FILE_BYTES + chance.randrange(8)


def flip_queue(store: Store, chance: random.Random) -> tuple[Path, int]:
    """Log offset or size of an entry; now and then its tags code, or behind the end."""
    queue_id, number = chance.choice(list(store.where))
    if chance.random() < 0.3:
        number = max(each for where, each in store.where if where == queue_id)
    at = number * 20 + chance.choice([chance.randrange(12), chance.randrange(12), chance.randrange(20)])
    file_bytes = 100 * 20
    folder = ROOT / consume_queue.FOLDER / TOPIC / str(queue_id)
    return folder / commit_log.file_name(at // file_bytes * file_bytes), at % file_bytes


def flip_index(store: Store, chance: random.Random) -> tuple[Path, int]:
    """Header, slots or entries."""
    path = chance.choice([path for path in store.files if path.parent == ROOT / index.FOLDER])
    return path, chance.choice(
        [chance.randrange(40), chance.randrange(40, 240), chance.randrange(store.files[path])]
    )


def flip_checkpoint(store: Store, chance: random.Random) -> tuple[Path, int]:
    return ROOT / checkpoint.NAME, chance.choice([chance.randrange(40), 256 + chance.randrange(60), 4095])


def flip_mark(store: Store, chance: random.Random) -> tuple[Path, int]:
    path = chance.choice([path for path in store.files if path.name in (marks.ABORT, marks.CLEAN)])
    return path, chance.randrange(store.files[path])


def flip_config(store: Store, chance: random.Random) -> tuple[Path, int]:
    path = ROOT / tables.FOLDER / chance.choice(list(store.config))
    return path, chance.randrange(store.files[path])


KINDS: dict[str, Callable[[Store, random.Random], tuple[Path, int]]] = {
    "log": flip_log,
    "blank": flip_blank,
    "queue": flip_queue,
    "index": flip_index,
    "checkpoint": flip_checkpoint,
    "mark": flip_mark,
    "config": flip_config,
}
SHARES = {"log": 8, "queue": 6, "index": 2, "checkpoint": 2, "blank": 1, "mark": 1, "config": 4}
assert SHARES.keys() == KINDS.keys()

# --- what comes of it


def judge(store: Store, kind: str, path: Path, at: int, bit: int, said: pytest.LogCaptureFixture) -> str:
    """Flip a bit, start, read everything; return how it went (fails when it went wrong)."""
    disk = store.disk.image()
    disk.names[path].data[at] ^= 1 << bit
    said.clear()
    broker = Broker(FlushMode.SYNC, random.Random(1), disk=disk, peaceful=True)
    try:
        broker.start()
    except StoreForeign as error:
        if kind != "config" or str(path) not in str(error):
            raise
        return "refused"
    found = Consumer(broker).everything()
    for place, data in found.items():
        assert data == store.messages[place], f"a wrong message at {place}"
    lines = [record.getMessage() for record in said.records if record.levelno >= logging.WARNING]
    missing = store.messages.keys() - found.keys()
    if kind == "config":
        for name, table in store.config.items():
            loaded = tables.load(disk, ROOT / tables.FOLDER / name)
            assert loaded is not None
            assert {key: loaded[key] for key in table} == table, f"another {name}"
    if kind == "index":
        reader = index.IndexReader(disk, ROOT / index.FOLDER, 50, 200)
        for key in range(9):  # comes to an end, whatever links say; what it names is compared by who asked
            reader.query(TOPIC, str(key), 0, 1 << 60, 64)
    if not missing:
        return "named" if lines else "harmless"
    damaged = log_offset_of(path, at) if kind in ("log", "blank") else -1
    assert damaged >= 0, f"{len(missing)} messages are gone: {sorted(missing)[:5]} {lines}"
    cut = damaged >= store.durable
    for place in missing:
        offset, size = store.where[place]
        own = offset <= damaged < offset + size
        assert own or (cut and offset > damaged), f"{place} is gone, too"
    starts = [start for start, size in store.where.values() if start <= damaged < start + size] or [damaged]
    assert any(str(starts[0]) in line and path.name in line for line in lines), lines
    return "cut" if cut else "passed over"


def log_offset_of(path: Path, at: int) -> int:
    return int(path.name) + at


def flips(store: Store, count: int, seed: int, said: pytest.LogCaptureFixture) -> dict[tuple[str, str], int]:
    chance = random.Random(seed)
    outcomes: dict[tuple[str, str], int] = {}
    for number in range(count):
        kind = chance.choice([kind for kind, share in SHARES.items() for _ in range(share)])
        path, at = KINDS[kind](store, chance)
        bit = chance.randrange(8)
        try:
            outcome = judge(store, kind, path, at, bit, said)
        except BaseException as error:
            error.add_note(f"flip {number} of seed {seed}: bit {bit} of byte {at} of {path} ({kind})")
            raise
        outcomes[kind, outcome] = outcomes.get((kind, outcome), 0) + 1
    return outcomes


COUNTS = [60, pytest.param(1500, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]


@pytest.mark.parametrize("count", COUNTS)
def test_after_a_clean_stop(clean_store: Store, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """The start looks at nothing: what reads must see it."""
    outcomes = flips(clean_store, count, 1, caplog)
    print(count, outcomes)
    assert outcomes["log", "passed over"] > 0
    assert outcomes["queue", "named"] > 0


@pytest.mark.parametrize("count", COUNTS)
def test_after_a_kill(killed_store: Store, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """Recovery believes what is in front of the checkpoint, looks through what is behind."""
    outcomes = flips(killed_store, count, 2, caplog)
    print(count, outcomes)
    assert outcomes["log", "passed over"] > 0


def test_the_stores_are_worth_it(clean_store: Store, killed_store: Store) -> None:
    """Several files, every queue, a tail behind the checkpoint."""
    for store in (clean_store, killed_store):
        assert store.log_end > (LOG_FILES - 1) * FILE_BYTES
        assert {queue_id for queue_id, _ in store.messages} == set(range(QUEUES))
        assert len(store.messages) > 100
        assert LogReader(store.disk, ROOT / commit_log.FOLDER, FILE_BYTES).file(0)[4:8] == b"\xda\xa3\x20\xa7"
    assert clean_store.durable == clean_store.log_end
    assert killed_store.durable < killed_store.log_end
