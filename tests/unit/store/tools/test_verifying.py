"""Damage is found, named and counted; a whole store is whole, also beside the broker that writes it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.small_store import DELAYS, Message, SmallStore, small_config
from unit.store.tools.whole_store import MESSAGES, contents, copied, filled, let_go, look, poke

from actormq.kernels.queues import ENTRY
from actormq.store import checkpoint
from actormq.store.disk import RealDisk
from actormq.store.tools.inspecting import inspect
from actormq.store.tools.layout import Layout, Sizes, find_layout
from actormq.store.tools.verifying import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    filled(root)
    return root


def test_sizes_are_found_in_the_files(whole: Path) -> None:
    """Also of an index with no usual number of entries to a slot; what is said wins."""
    found = find_layout(RealDisk(), whole)
    assert found == Layout(
        root=whole,
        log_file_bytes=1 << 20,
        queue_file_entries=100,
        batch_queue_file_entries=300_000,
        index_slots=50,
        index_entries=40,
    )
    given = find_layout(RealDisk(), whole, Sizes(queue_file_entries=300))
    assert (given.queue_file_entries, given.log_file_bytes) == (300, 1 << 20)


def test_a_whole_store(whole: Path) -> None:
    """Everything is counted, nothing waits, nothing is wrong, nothing is changed."""
    before = contents(whole)
    told: list[tuple[int, int]] = []
    disk = RealDisk()
    verdict = verify(
        disk,
        find_layout(disk, whole),
        delay_ms=DELAYS,
        progress=lambda done, total: told.append((done, total)),
    )
    assert verdict.whole, verdict.report.findings
    assert (verdict.records, verdict.log_files, verdict.index_entries) == (MESSAGES, 4, MESSAGES)
    assert verdict.queues == {(topic, queue): 10 for topic in "ab" for queue in range(3)}
    assert not any(verdict.waiting.values())
    assert told[-1] == (4 << 20, 4 << 20)
    assert contents(whole) == before


@pytest.mark.parametrize("synced", [0, 20, 60])
def test_what_a_killed_broker_had_not_promised_is_no_damage(tmp_path: Path, synced: int) -> None:
    """What its checkpoint does not name waits for the next start: entries, keys, and a torn tail."""
    store = filled(tmp_path, stop=False, messages=synced)
    store.sync()
    store.dispatch()
    store.checkpoint()
    for number in range(synced, MESSAGES):
        store.append([Message(number, "ab"[number % 2], number % 3)])
    end = store.end
    store.log.append(end, [b"torn" * 10])
    verdict = look(tmp_path)
    assert verdict.whole, verdict.report.findings
    assert not verdict.trust.clean
    assert (verdict.records, verdict.log_end) == (MESSAGES, end)
    assert dict(verdict.waiting) == {
        "torn tails": 1, "queue entries": MESSAGES - synced, "index keys": MESSAGES - synced if synced else 0,
    }  # fmt: skip


def body_byte(root: Path) -> None:
    poke(root / "commitlog" / f"{1 << 20:020d}", 1000, b"?")


def header(at: int) -> Callable[[Path], None]:
    return lambda root: poke(root / "commitlog" / f"{0:020d}", at, b"\x77")


def queue_entry(number: int, data: bytes, at: int = 0) -> Callable[[Path], None]:
    return lambda root: poke(root / "consumequeue/a/0" / f"{0:020d}", number * 20 + at, data)


def index_bytes(at: int, data: bytes) -> Callable[[Path], None]:
    return lambda root: poke(min((root / "index").iterdir()), at, data)


def gone(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def short(name: str) -> Callable[[Path], None]:
    return lambda root: os.truncate(root / name, 100)


def ahead_of_its_log(root: Path) -> None:
    """The last file is lost: its records are in queues and index."""
    gone(f"commitlog/{3 << 20:020d}")(root)


def committed_too_far(root: Path) -> None:
    (root / "config/consumerOffset.json").write_text('{"offsetTable":{"a@g":{0:10,1:11}}}')


def broken_table(root: Path) -> None:
    (root / "config/delayOffset.json").write_text("{")


def swapped_records(root: Path) -> None:
    """Two records of one size have changed places: right in every way but that."""
    path = root / "commitlog" / f"{0:020d}"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:4], "big")
    data[: 2 * size] = data[size : 2 * size] + data[:size]
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], None], dict[str, int]]] = {
    "a body": (body_byte, {"log.record": 1, "queue.stray": 1, "index.stray": 1}),
    "a magic number": (header(4), {"log.record": 1, "queue.stray": 1, "index.stray": 1}),
    "a stored position": (header(30), {"log.record": 1, "queue.stray": 1, "index.stray": 1}),
    "records that changed places": (swapped_records, {"log.record": 1, "queue.stray": 2, "index.stray": 2}),
    "a hole in a queue": (queue_entry(3, bytes(40)), {"queue.hole": 2}),
    "an entry that points elsewhere": (queue_entry(3, b"\1", 2), {"queue.entry": 1}),
    "an entry of another size": (queue_entry(3, b"\1", 8), {"queue.entry": 1}),
    "an entry of another tag": (queue_entry(3, b"\1", 19), {"queue.tags": 1}),
    "an entry too much": (queue_entry(10, ENTRY.pack(300_000, 91, 0)), {"queue.stray": 1}),
    "an entry behind the log": (queue_entry(10, ENTRY.pack(1 << 40, 91, 0)), {"queue.beyond": 1}),
    "emptied slots": (index_bytes(40, bytes(200)), {"index.chain": 30}),
    "an index's count": (index_bytes(36, b"\x7f\xff\xff\xff"), {"index.header": 1, "index.hole": 39}),
    "an address where there is no extension": (queue_entry(3, b"\x80", 12), {"queue.tags": 1}),
    "an entry's time": (index_bytes(40 + 200 + 20 + 13, b"\1"), {"index.time": 1}),
    "an index's first time": (index_bytes(2, b"\0"), {"index.time": 39}),
    "a key's hash": (
        index_bytes(40 + 200 + 20, b"\x12\x34\x56\x78"),
        {"index.stray": 1, "index.hole": 1, "index.chain": 2},
    ),
    "a lost log file": (
        gone(f"commitlog/{1 << 20:020d}"), {"log.file": 1, "queue.stray": 17, "index.stray": 17},
    ),
    "a half copied log file": (
        short(f"commitlog/{1 << 20:020d}"), {"log.file": 2, "queue.stray": 17, "index.stray": 17},
    ),
    "a half copied queue file": (
        short(f"consumequeue/a/0/{0:020d}"), {"queue.file": 1, "queue.hole": 5},
    ),
    "a lost queue": (gone(f"consumequeue/a/0/{0:020d}"), {"queue.hole": 10}),
    "the end of the log": (
        ahead_of_its_log, {"queue.beyond": 9, "index.stray": 9, "checkpoint": 3, "end-mark": 1},
    ),
    "an offset": (committed_too_far, {"offset": 1}),
    "a table": (broken_table, {"config.unreadable": 1}),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "kinds"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage(whole: Path, tmp_path: Path, spoil: Callable[[Path], None], kinds: dict[str, int]) -> None:
    """Each is found, counted and named, and nothing else is."""
    root = copied(whole, tmp_path)
    spoil(root)
    verdict = look(root)
    assert dict(verdict.report.counts) == kinds
    for finding in verdict.report.findings:
        assert str(root) in finding.file
        assert finding.what


def test_the_damaged_record_is_named(whole: Path, tmp_path: Path) -> None:
    """By file, place, reason, and what it says of itself."""
    root = copied(whole, tmp_path)
    body_byte(root)
    first = look(root).report.findings[0]
    assert (first.kind, first.file) == ("log.record", str(root / "commitlog" / f"{1 << 20:020d}"))
    assert (first.log_offset, first.topic, first.queue_id, first.queue_offset) == (1 << 20, "b", 2, 2)
    assert first.what.startswith("its content does not fit its CRC; the log goes on at 1")


def test_only_so_many_are_described(whole: Path, tmp_path: Path) -> None:
    root = copied(whole, tmp_path)
    for number in (1, 3, 5):
        queue_entry(number, bytes(20))(root)
    disk = RealDisk()
    verdict = verify(disk, find_layout(disk, root), delay_ms=DELAYS, findings_max=2)
    assert (len(verdict.report.findings), dict(verdict.report.counts)) == (2, {"queue.hole": 3})


def test_a_deleted_topics_records_are_in_no_queue(whole: Path, tmp_path: Path) -> None:
    """RocketMQ removes folder and name; ours says up to where they are dead, and may begin anew at 0."""
    root = copied(whole, tmp_path)
    for path in (root / "consumequeue/a").rglob("*"):
        if path.is_file():
            path.unlink()
    for queue in range(3):
        (root / f"consumequeue/a/{queue}").rmdir()
    (root / "consumequeue/a").rmdir()
    assert look(root).report.counts["queue.hole"] == 30
    (root / "config/topics.json").write_text('{"topicConfigTable":{"b":{"topicName":"b"}}}')
    assert look(root).whole
    (root / "config/topics.json").unlink()
    (root / "config/deletedTopics.json").write_text(json.dumps({"deletedTopics": {"a": 4 << 20}}))
    assert look(root).whole


def test_a_topic_that_was_made_again(tmp_path: Path) -> None:
    """Its offsets begin at 0 again: what the old one had there is nobody's."""
    store = SmallStore(RealDisk(), small_config(tmp_path), body_bytes=100)
    store.append([Message(number, "a", 0) for number in range(10)])
    store.next_offset["a", 0] = 0
    store.append([Message(number, "a", 0) for number in range(10, 14)])
    store.stop()
    store.queue_files.cut("a", 0, 4)
    verdict = look(tmp_path)
    assert verdict.whole, verdict.report.findings
    let_go(store)


def test_offsets_that_two_records_have(tmp_path: Path) -> None:
    """Both are told: one of them is in no queue."""
    store = SmallStore(RealDisk(), small_config(tmp_path), body_bytes=100)
    store.append([Message(number, "a", 0) for number in range(10)])
    store.next_offset["a", 0] = 7
    store.append([Message(10, "a", 0)])
    store.stop()
    assert dict(look(tmp_path).report.counts) == {"queue.double": 1, "queue.entry": 1}
    let_go(store)


def test_after_retention(whole: Path, tmp_path: Path) -> None:
    """Entries of what is too old to be in the log are no damage, in queues and index."""
    root = copied(whole, tmp_path)
    gone(f"commitlog/{0:020d}")(root)
    verdict = look(root)
    assert verdict.whole, verdict.report.findings
    assert verdict.log_min == 1 << 20


def test_beside_a_broker_that_writes(tmp_path: Path) -> None:
    """Between any two of its steps, nothing that it does is taken for damage."""
    chance = random.Random(7)
    store = SmallStore(RealDisk(), small_config(tmp_path, index_entries=40), body_bytes=20_000)
    store.append([Message(0, "a", 0)])
    number = 1
    for _ in range(60):
        step = chance.choice((store.sync, store.dispatch, store.checkpoint, None))
        if step is None:
            store.append([Message(number + each, "ab"[each % 2], each % 3) for each in range(4)])
            number += 4
        else:
            step()
        verdict = look(tmp_path)
        assert verdict.whole, verdict.report.findings
        assert verdict.records == number
    assert number > 40
    assert checkpoint.read(RealDisk(), tmp_path / "checkpoint").ours
    let_go(store)


def test_what_retention_takes_meanwhile_is_no_damage(whole: Path, tmp_path: Path) -> None:
    """An index file that is gone when it is opened, log files that go while they are read."""
    root = copied(whole, tmp_path)

    class Disk(RealDisk):
        removed = 0

        def open(self, path: Path, **options: Any) -> int:
            if path.parent.name in ("index", "commitlog") and self.removed < 2:
                names = sorted(path.parent.iterdir())
                if path == names[0] and len(names) > 1:
                    self.removed += 1
                    path.unlink()
            return super().open(path, **options)

    disk = Disk()
    verdict = verify(disk, find_layout(RealDisk(), root), delay_ms=DELAYS)
    assert disk.removed == 2
    assert set(verdict.report.counts) <= {"index.hole"}, verdict.report.findings
    assert inspect(Disk(), find_layout(RealDisk(), root)).log.files == 3
