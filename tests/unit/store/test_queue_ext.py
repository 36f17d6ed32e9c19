"""The extension of queues: a unit for each entry, whatever dies when, and none for which nothing is left."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults.disks import FailingDisk, MemoryDisk
from faults.small_store import BASE_MS, DELAYS, ROOT, Message, SmallStore, read_log, small_config
from store_rig import FILE_BYTES, Died, Memory, StoreWriter, killing

from actormq.actors.cleaner import Remover
from actormq.actors.dispatcher import Dispatcher
from actormq.broker.queue_rows import QueueRows
from actormq.broker.tables import TopicGone, encode_entry
from actormq.errors import StoreFailed, StoreForeign
from actormq.kernels.queues import ENTRY
from actormq.message import tags_code
from actormq.shm.positions import Position, slot_of
from actormq.shm.tables import TablesReader
from actormq.store import consume_queue, queue_ext
from actormq.store.commit_log import file_name
from actormq.store.consume_queue import QueueReader
from actormq.store.disk import RealDisk
from actormq.store.queue_ext import UNIT, QueueExtensions
from actormq.store.recovery import RecoveredStore, recover

NOW_MS = 1_700_000_000_000
EXT_BYTES = 1000
A_FILE = 49
"""So many units are in one file: 980 bytes, then the mark."""
TAGS = [f"t{number}" for number in range(3)]


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    made = Memory(tmp_path)
    made.config = replace(made.config, queue_ext=True, queue_ext_file_bytes=EXT_BYTES)
    made.log_files().create(0)
    made.add_topic("topic", 2)
    return made


class Rig:
    """Messages with the tags t0, t1, t2, t0, … and a dispatcher."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.store = StoreWriter(memory)
        self.written: dict[int, int] = {0: 0, 1: 0}
        self.start()

    def start(self, disk: Any = None) -> None:
        memory = self.memory
        tables = TablesReader(memory.tables_view, memory.positions, slot_of("dispatcher"))
        self.dispatcher = Dispatcher(
            memory.config, disk or RealDisk(), memory.positions, memory.extents, tables, [1000]
        )

    def put(self, count: int, row: int = 0, **message: Any) -> None:
        for number in range(self.written[row], self.written[row] + count):
            tags = b"TAGS\x01%s\x02" % TAGS[number % 3].encode()
            self.store.put(row=row, queue_id=row, properties=tags, wall_ms=NOW_MS + number, **message)
        self.written[row] += count

    def run(self) -> None:
        while self.dispatcher.run(NOW_MS, 0) is not None:
            pass

    def entries(self, row: int = 0) -> memoryview:
        config = self.memory.config
        reader = QueueReader(RealDisk(), self.memory.root / consume_queue.FOLDER, config.queue_file_entries)
        extent = self.memory.extents.read(row)
        return memoryview(
            b"".join(reader.view("topic", row, number, 1) for number in range(extent.min, extent.max))
        )

    def codes(self, row: int = 0) -> list[int]:
        """Return what the entries of a queue have where the tags code is."""
        return [code for _, _, code in ENTRY.iter_unpack(self.entries(row))]

    def resolved(self, row: int = 0) -> list[int]:
        """Return the tags codes as a pull finds them."""
        found = QueueExtensions(RealDisk(), self.memory.root).resolve("topic", row, self.entries(row))
        return [code for _, _, code in ENTRY.iter_unpack(found)]

    def files(self, row: int = 0) -> dict[int, bytes]:
        folder = self.memory.root / queue_ext.FOLDER / "topic" / str(row)
        return {int(path.name): path.read_bytes() for path in sorted(folder.glob("*"))}


def wanted(count: int, first: int = 0) -> list[int]:
    return [tags_code(TAGS[number % 3]) for number in range(first, first + count)]


def units(first: int, end: int) -> bytes:
    return b"".join(
        UNIT.pack(20, tags_code(TAGS[number % 3]), NOW_MS + number, 0) for number in range(first, end)
    )


def file_of(first: int, end: int, *, full: bool) -> bytes:
    return (units(first, end) + (b"\xff\xff" if full else b"")).ljust(EXT_BYTES, b"\0")


def test_a_unit_for_each_entry(memory: Memory) -> None:
    """In files that end with a mark; the entries lead there."""
    rig = Rig(memory)
    rig.put(2 * A_FILE + 1)
    rig.run()
    assert rig.files() == {
        0: file_of(0, A_FILE, full=True),
        1000: file_of(A_FILE, 2 * A_FILE, full=True),
        2000: file_of(2 * A_FILE, 2 * A_FILE + 1, full=False),
    }
    assert rig.codes()[A_FILE - 1 : A_FILE + 1] == [-(1 << 63) + 960, -(1 << 63) + 1000]
    assert rig.resolved() == wanted(2 * A_FILE + 1)


def test_off_there_is_none(memory: Memory) -> None:
    memory.config = replace(memory.config, queue_ext=False)
    rig = Rig(memory)
    rig.put(5)
    rig.run()
    assert rig.codes() == wanted(5)
    assert not (memory.root / queue_ext.FOLDER).exists()


@pytest.mark.parametrize("hit", range(1, 8))
@pytest.mark.parametrize(
    "name",
    ["dispatcher.begun", "dispatcher.units-written", "dispatcher.entries-written", "dispatcher.readable"],
)
def test_death_at_each_point_changes_no_byte(memory: Memory, name: str, hit: int) -> None:
    """The same units at the same places, over the end of a file, too."""
    rig = Rig(memory)

    def load() -> None:
        for count in (1, A_FILE - 2, 3, 1, A_FILE) * 2:
            rig.put(count)
            rig.put(1, row=1)
            rig.run()

    with killing(name, hit), pytest.raises(Died):
        load()
    rig.start()
    rig.run()
    load()
    for row in (0, 1):
        assert rig.resolved(row) == wanted(rig.written[row])
        assert rig.codes(row) == addresses(rig.written[row])


@pytest.mark.parametrize("kind", ["extend", "rename", "pwritev", "fdatasync", "fsync_dir"])
def test_a_disk_that_fails_stops_the_broker(memory: Memory, kind: str) -> None:
    """At any call for the extension, which comes first; after the next start all is there."""
    rig = Rig(memory)
    rig.put(A_FILE + 1)
    rig.start(FailingDisk(RealDisk(), 1, kinds=[kind]))
    with pytest.raises(StoreFailed):
        rig.run()
    assert memory.positions.get(Position.STORE_FAILED)
    assert not (memory.root / consume_queue.FOLDER / "topic" / "0").exists()
    rig.start()
    rig.run()
    assert rig.files()[0] == file_of(0, A_FILE, full=True)
    assert rig.resolved() == wanted(A_FILE + 1)


def test_a_full_disk_is_waited_for(memory: Memory) -> None:
    """What was written of a stretch is written again, to the same places."""
    rig = Rig(memory)
    for fail_at in range(1, 5):
        rig.put(A_FILE + 1)
        rig.put(5, row=1)
        rig.start(FailingDisk(RealDisk(), fail_at, errno.ENOSPC, kinds=["pwritev", "extend"]))
        assert rig.dispatcher.run(NOW_MS, 0) is None
        assert rig.dispatcher.run(NOW_MS, 10**9) == [0, 1]
    for row in (0, 1):
        assert rig.resolved(row) == wanted(rig.written[row])
        assert rig.codes(row) == addresses(rig.written[row])


def addresses(count: int) -> list[int]:
    """Of as many units, none left out."""
    return [-(1 << 63) + number // A_FILE * EXT_BYTES + number % A_FILE * 20 for number in range(count)]


def test_switched_on_and_off(memory: Memory) -> None:
    """Entries of both kinds beside each other; what comes later goes behind the last unit."""
    rig = Rig(memory)
    for number in range(6):
        memory.config = replace(memory.config, queue_ext=number % 2 == 1)
        rig.start()
        rig.put(10)
        rig.run()
    assert rig.resolved() == wanted(60)
    assert [code < -(1 << 31) for code in rig.codes()] == ([False] * 10 + [True] * 10) * 3
    assert sorted(rig.codes())[:30] == [-(1 << 63) + number * 20 for number in range(30)]


def test_lost_units_are_not_replaced_by_others(memory: Memory) -> None:
    """Entries that lead nowhere keep their addresses; those that come lead elsewhere."""
    rig = Rig(memory)
    rig.put(A_FILE + 5)
    rig.run()
    for path in (memory.root / queue_ext.FOLDER / "topic" / "0").iterdir():
        path.unlink()
    before = rig.codes()
    assert rig.resolved() == before
    rig.start()
    rig.put(3)
    rig.run()
    assert rig.resolved() == before + wanted(3, A_FILE + 5)
    assert list(rig.files()) == [2000]


def test_it_goes_with_its_topic(memory: Memory) -> None:
    """Whoever wrote it: with the setting off, too."""
    rig = Rig(memory)
    rig.put(5)
    rig.put(5, row=1)
    rig.run()
    memory.config = replace(memory.config, queue_ext=False)
    rig.start()
    memory.publisher.publish(encode_entry(TopicGone(name="topic")))
    rig.dispatcher.follow_tables()
    assert not (memory.root / consume_queue.FOLDER / "topic").exists()
    assert list((memory.root / queue_ext.FOLDER).iterdir()) == []


def test_old_files_go_with_the_log(memory: Memory) -> None:
    """Those before the unit of the first entry that is left; others, in queues without any left, stay."""
    rig = Rig(memory)
    while memory.positions.get(Position.APPENDED) < 3 * FILE_BYTES:
        rig.put(20, body=bytes(5000))
    rig.run()
    memory.positions.set(Position.FLUSHED, memory.positions.get(Position.APPENDED))
    rows = QueueRows()
    rows.apply(*TablesReader(memory.tables_view, memory.positions, slot_of("cleaner")).poll())
    memory.config = replace(memory.config, queue_ext=False)
    remover = Remover(memory.config, RealDisk(), memory.positions, memory.extents)
    before = list(rig.files())
    remover.hide(2 * FILE_BYTES, rows)
    remover.unlink_derived(2 * FILE_BYTES, rows)
    lowest = memory.extents.read(0).min
    assert list(rig.files()) == [base for base in before if base >= lowest // A_FILE * EXT_BYTES]
    assert 0 < len(rig.files()) < len(before)
    assert rig.resolved() == wanted(rig.written[0] - lowest, lowest)


def test_a_file_that_goes_while_it_is_looked_for(memory: Memory) -> None:
    """The cleaner was faster: as where it has long been gone; the last file always stays."""

    class Racing(RealDisk):
        def listdir(self, path: Path) -> list[str]:
            found = super().listdir(path)
            for name in found[:1]:
                self.unlink(path / name)
            return found

    rig = Rig(memory)
    rig.put(A_FILE + 2)
    rig.run()
    found = QueueExtensions(Racing(), memory.root).resolve("topic", 0, rig.entries())
    codes = [code for _, _, code in ENTRY.iter_unpack(found)]
    assert codes == rig.codes()[:A_FILE] + wanted(2, A_FILE)


def stores(disk: Any, **options: Any) -> SmallStore:
    return SmallStore(disk, small_config(queue_ext=True, queue_ext_file_bytes=EXT_BYTES, **options), 2_000)


def recovered(disk: Any, **options: Any) -> RecoveredStore:
    config = small_config(queue_ext=True, queue_ext_file_bytes=EXT_BYTES)
    return recover(disk, config, wall_ms=BASE_MS, pid=1, delay_ms=DELAYS, **options)


def check(disk: Any, found: RecoveredStore) -> None:
    """Compare every unit with the log: of each entry one, none behind, in order and without gaps."""
    config = small_config(queue_ext=True, queue_ext_file_bytes=EXT_BYTES)
    times: dict[tuple[str, int], list[int]] = {queue: [] for queue in found.queues}
    for header in read_log(disk, found, config):
        times[header.topic.decode(), header.queue_id].append(header.store_timestamp)
    reader = QueueReader(disk, config.root / consume_queue.FOLDER, config.queue_file_entries)
    for (topic, queue_id), stamps in times.items():
        folder = config.root / queue_ext.FOLDER / topic / str(queue_id)
        made = [UNIT.pack(20, 0, stamp, 0) for stamp in stamps]
        assert files_of(disk, folder) == list(packed(made))
        found_at = [reader.entry(topic, queue_id, number)[2] for number in range(len(stamps))]
        assert found_at == addresses(len(stamps))


def packed(made: list[bytes]) -> Iterator[bytes]:
    for first in range(0, len(made), A_FILE):
        mark = b"\xff\xff" if first + A_FILE < len(made) else b""
        yield b"".join(made[first : first + A_FILE]) + mark


def files_of(disk: Any, folder: Path) -> list[bytes]:
    found = []
    for name in disk.listdir(folder):
        fd = disk.open(folder / name, write=False)
        found.append(disk.pread(fd, EXT_BYTES, 0).rstrip(b"\0"))
        disk.close(fd)
    return [data + bytes(-len(data) % 20 if not data.endswith(b"\xff\xff") else 0) for data in found]


@pytest.mark.parametrize("seed", range(12))
def test_after_a_crash_there_is_a_unit_for_each_entry(seed: int) -> None:
    """Whatever of files and names the loss of power has taken, life after life; none is left behind."""
    chance = random.Random(seed)
    disk = MemoryDisk()
    number = 0
    for _ in range(4):
        store = stores(disk)
        check(disk, store.found)
        for _ in range(chance.randrange(1, 6)):
            count = chance.randrange(1, 80)
            store.append([Message(number + each, "t", chance.randrange(2)) for each in range(count)])
            number += count
            if chance.random() < 0.7:
                store.sync()
                store.dispatch()
            if chance.random() < 0.4:
                store.checkpoint()
        disk = disk.crash(chance)
    check(disk, recovered(disk))


def test_a_clean_stop_and_a_rebuild_change_no_unit() -> None:
    disk = MemoryDisk()
    store = stores(disk)
    store.append([Message(number, "t", number % 2) for number in range(150)])
    store.stop()
    for rebuild in (False, True):
        check(disk, recovered(disk, rebuild=rebuild))


def test_files_of_another_size_are_refused() -> None:
    disk = MemoryDisk()
    store = stores(disk)
    store.append([Message(0, "t", 0)])
    store.stop()
    config = small_config(queue_ext=True, queue_ext_file_bytes=2 * EXT_BYTES)
    with pytest.raises(StoreForeign, match="1000 bytes, not 2000"):
        recover(disk, config, wall_ms=BASE_MS, pid=1, delay_ms=DELAYS)
    assert ROOT / queue_ext.FOLDER / "t" / "0" / file_name(0) in disk.names
