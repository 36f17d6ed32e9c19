"""Queues and index made anew: as they were, whatever had become of them, and whenever it is interrupted."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from faults.disks import CHANGES, FailingDisk
from faults.small_store import DELAYS, Message, check_index, check_queues, read_log
from unit.store.tools.whole_store import (
    MESSAGES,
    contents,
    copied,
    filled,
    let_go,
    look,
    poke,
    started,
)

from actormq.errors import StoreForeign
from actormq.kernels.queues import ENTRY
from actormq.store.disk import RealDisk
from actormq.store.tools.layout import Sizes, find_layout
from actormq.store.tools.rebuilding import Rebuilt, rebuild, remove_tree

SIZES = Sizes(log_file_bytes=1 << 20, queue_file_entries=100, index_slots=50, index_entries=40)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    filled(root)
    return root


def rebuilt(root: Path, disk: Any = None, **options: Any) -> Rebuilt:
    disk = disk or RealDisk()
    layout = find_layout(disk, root, SIZES)
    return rebuild(disk, layout, delay_ms=DELAYS, wall_ms=1_700_000_000_000, pid=7, **options)


def derived(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(root).items() if name.startswith(("consumequeue", "index"))}


def lose_all(root: Path) -> None:
    for name in ("consumequeue", "index"):
        remove_tree(RealDisk(), root / name)


def spoil(root: Path) -> None:
    """Holes, wrong and stray entries, a strange queue, broken chains."""
    poke(root / "consumequeue/a/0" / f"{0:020d}", 40, bytes(60))
    poke(root / "consumequeue/a/1" / f"{0:020d}", 20 * 50, ENTRY.pack(1, 2, 3))
    (root / "consumequeue/strange/3").mkdir(parents=True)
    (root / "consumequeue/strange/3" / f"{0:020d}").write_bytes(bytes(2000))
    poke(min((root / "index").iterdir()), 40, bytes(100))


@pytest.mark.parametrize("harm", [lambda root: None, lose_all, spoil], ids=["none", "lost", "spoiled"])
def test_queues_and_index_are_as_they_were(whole: Path, tmp_path: Path, harm: Any) -> None:
    """Byte for byte, but for the index files' names; the store is whole, and starts."""
    root = copied(whole, tmp_path)
    harm(root)
    done = rebuilt(root)
    assert (done.messages, done.keys, done.passed_over) == (MESSAGES, MESSAGES, [])
    was, now = derived(whole), derived(root)
    queues = {name for name in was if name.startswith("consumequeue")}
    assert {name: now[name] for name in now if name.startswith("consumequeue")} == {
        name: was[name] for name in queues
    }
    assert not (root / "rebuilding").exists()
    verdict = look(root)
    assert verdict.whole, verdict.report.findings
    assert not any(verdict.waiting.values())
    store = started(root)
    log = read_log(store.disk, store.found, store.config)
    check_queues(store.disk, store.found, store.config, log)
    check_index(store.disk, store.config, log)
    let_go(store)


def test_without_an_index(whole: Path, tmp_path: Path) -> None:
    root = copied(whole, tmp_path)
    rebuilt(root, with_index=False)
    assert list((root / "index").iterdir()) == []


def test_offsets_are_not_given_twice(whole: Path, tmp_path: Path) -> None:
    """Queues begin with what the log still has; one of which it has nothing goes on where it ended."""
    root = copied(whole, tmp_path)
    for base in range(3):
        (root / f"commitlog/{base << 20:020d}").unlink()
    (root / "consumequeue/old/2").mkdir(parents=True)
    (root / "consumequeue/old/2" / f"{2000:020d}").write_bytes(ENTRY.pack(7, 91, 0) * 30 + bytes(1400))
    done = rebuilt(root, ends={("older", 1): 5, ("a", 0): 3})
    assert {queue: end for queue, end in done.queues.items() if end != 10} == {
        ("old", 2): 130,
        ("older", 1): 5,
    }
    verdict = look(root)
    assert verdict.whole, verdict.report.findings
    store = started(root)
    found = store.found.queues
    assert {queue: extent.max for queue, extent in found.items()} == done.queues
    assert found["old", 2].min == 130
    store.append([Message(100, "old", 2), Message(101, "a", 0)])
    assert (store.next_offset["old", 2], store.next_offset["a", 0]) == (131, 11)
    let_go(store)


def test_what_was_deleted_stays_deleted(whole: Path, tmp_path: Path) -> None:
    """By name, as ours say it; or, after RocketMQ, when neither a folder nor topics.json knows it."""
    for name, table, options, gone in (
        ("deletedTopics.json", {"deletedTopics": {"a": 4 << 20}}, {}, True),
        ("topics.json", {"topicConfigTable": {"b": {}}}, {"by_rocketmq": True}, True),
        ("topics.json", {"topicConfigTable": {"b": {}}}, {}, False),
    ):
        root = copied(whole, tmp_path / f"{name}{gone}")
        remove_tree(RealDisk(), root / "consumequeue/a")
        (root / "config" / name).write_text(json.dumps(table))
        assert ("a" not in {topic for topic, _ in rebuilt(root, **options).queues}) == gone
    remove_tree(RealDisk(), root / "consumequeue/a")
    (root / "config/topics.json").unlink()
    assert "a" in {topic for topic, _ in rebuilt(root, by_rocketmq=True).queues}


def test_damage_is_passed_over(whole: Path, tmp_path: Path) -> None:
    """And a log whose end is missing is nothing to rebuild from."""
    for base, number in ((0, 0), (2, 2)):
        root = copied(whole, tmp_path / f"one-{base}")
        path = root / "commitlog" / f"{base << 20:020d}"
        size = int.from_bytes(path.read_bytes()[:4], "big")
        poke(path, number * size + 1000, b"?")  # messages 0 and 6 of queue 0 of a
        done = rebuilt(root)
        assert (done.messages, len(done.passed_over)) == (MESSAGES - 1, 1)
        assert dict(look(root).report.counts) == {"log.record": 1}
        store = started(root)
        assert store.found.queues["a", 0].max == 10
        let_go(store)
    root = copied(whole, tmp_path / "two")
    poke(root / "commitlog" / f"{3 << 20:020d}", 0, bytes(1 << 20))
    before = contents(root)
    with pytest.raises(StoreForeign, match="ends at log offset 3145728, but the log was whole up to"):
        rebuilt(root)
    assert {name: data for name, data in contents(root).items() if "rebuilding" not in name} == before
    root = copied(whole, tmp_path / "three")
    (root / "commitlog" / f"{1 << 20:020d}").unlink()
    with pytest.raises(StoreForeign, match=f"{1 << 20:020d} is missing"):
        rebuilt(root)


def test_links_are_not_followed(tmp_path: Path) -> None:
    """What is removed is removed here, not where a link leads."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (tmp_path / "old/deep").mkdir(parents=True)
    (tmp_path / "old/deep/link").symlink_to(outside)
    (tmp_path / "old/link").symlink_to(outside / "precious")
    remove_tree(RealDisk(), tmp_path / "old")
    assert (outside / "precious").read_text() == "x"
    assert not (tmp_path / "old").exists()


@pytest.mark.parametrize("step", [61, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_interrupted_anywhere(whole: Path, tmp_path: Path, step: int) -> None:
    """The next start has every queue to its end, those too of which the log has nothing; so has a rebuild."""
    for number in itertools.count(1, step):
        root = copied(whole, tmp_path / str(number))
        (root / "consumequeue/old/2").mkdir(parents=True)
        (root / "consumequeue/old/2" / f"{0:020d}").write_bytes(bytes(2000))
        poke(root / "consumequeue/old/2" / f"{0:020d}", 0, ENTRY.pack(0, 0x7FFFFFFF, 0) * 30)
        (root / "actormq.clean").unlink()  # it does not know that queue
        disk = FailingDisk(RealDisk(), number, kinds=(*CHANGES, "exchange"))
        ended = False
        try:
            rebuilt(root, disk)
            ended = True
        except OSError:
            pass
        store = started(copied(root, tmp_path / f"{number}-started"))
        log = read_log(store.disk, store.found, store.config)
        assert len(log) == MESSAGES
        check_queues(store.disk, store.found, store.config, log)
        check_index(store.disk, store.config, log)
        assert store.found.queues["old", 2].max == 30, number
        let_go(store)
        assert rebuilt(root).queues["old", 2] == 30
        assert look(root).whole
        remove_tree(RealDisk(), tmp_path / str(number))
        remove_tree(RealDisk(), tmp_path / f"{number}-started")
        if ended:
            assert number > 50
            return


def test_names_change_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of folders; also where the system cannot do it at once."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    RealDisk().exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one/file").read_text() == "other"
    monkeypatch.setattr("actormq.store.disk._exchange", lambda *paths: False)
    RealDisk().exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one/file").read_text() == "one"
    assert sorted(os.listdir(tmp_path)) == ["one", "other"]
