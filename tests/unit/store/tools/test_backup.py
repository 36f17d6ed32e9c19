"""Copies of a store, and stores from them: whole, or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.small_store import DELAYS, Message, check_index, check_queues, read_log
from unit.store.tools.whole_store import MESSAGES, contents, copied, filled, let_go, look, poke, started

from actormq.errors import StoreForeign
from actormq.kernels.queues import ENTRY
from actormq.store.disk import RealDisk
from actormq.store.tools.backup import MANIFEST, Manifest, backup, restore
from actormq.store.tools.layout import find_layout
from actormq.store.tools.rebuilding import Rebuilt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    filled(root)
    return root


def back_up(root: Path, target: Path, disk: Any = None, **options: Any) -> Manifest:
    disk = disk or RealDisk()
    return backup(disk, find_layout(disk, root), target, **options)


def bring_back(source: Path, target: Path) -> Rebuilt:
    return restore(RealDisk(), source, target, delay_ms=DELAYS, wall_ms=1_700_000_000_000, pid=7)


@pytest.mark.parametrize("share", [True, False])
def test_a_store_comes_back(whole: Path, tmp_path: Path, share: bool) -> None:
    """Log, queues, index, tables; by links or copies alike; it starts and goes on."""
    made = back_up(whole, tmp_path / "backup", share=share)
    assert (made.log_min, made.log_end, made.left_out) == (0, look(whole).log_end, [])
    done = bring_back(tmp_path / "backup", tmp_path / "store")
    assert (done.messages, done.keys, done.log_end) == (MESSAGES, MESSAGES, made.log_end)
    root = tmp_path / "store"
    verdict = look(root)
    assert verdict.whole, verdict.report.findings
    was, now = contents(whole), contents(root)
    for name in was:
        if name.startswith(("commitlog", "consumequeue", "config")):
            assert now[name] == was[name], name
    store = started(root)
    log = read_log(store.disk, store.found, store.config)
    check_queues(store.disk, store.found, store.config, log)
    check_index(store.disk, store.config, log)
    store.append([Message(100, "a", 0)])
    assert store.next_offset["a", 0] == 11
    let_go(store)
    assert (tmp_path / "backup" / MANIFEST).exists()
    assert not (tmp_path / "store.restoring").exists()


def test_full_files_are_shared_where_that_can_be_done(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the last, which grows; what comes back shares nothing; a disk that cannot share copies."""
    back_up(whole, tmp_path / "shared")
    back_up(whole, tmp_path / "copied", share=False)
    bring_back(tmp_path / "shared", tmp_path / "store")
    names = [f"{base << 20:020d}" for base in range(4)]

    def is_same(folder: str, name: str) -> bool:
        return os.path.samefile(tmp_path / folder / "commitlog" / name, whole / "commitlog" / name)

    monkeypatch.setattr("actormq.store.disk._clone", lambda *paths: False)
    back_up(whole, tmp_path / "linked")
    assert [is_same("linked", name) for name in names] == [True, True, True, False]
    assert [is_same("copied", name) for name in names] == [False] * 4
    assert [is_same("store", name) for name in names] == [False] * 4

    def refused(*paths: Any) -> None:
        raise OSError(18, "another file system")

    monkeypatch.setattr("os.link", refused)
    made = back_up(whole, tmp_path / "elsewhere")
    assert [is_same("elsewhere", name) for name in names] == [False] * 4
    assert {one.path: one.crc for one in made.files} == {
        one.path: one.crc for one in back_up(whole, tmp_path / "again").files
    }


def test_only_what_is_new_is_read(whole: Path, tmp_path: Path) -> None:
    """With an earlier backup: of full files that have not changed its copies serve."""
    first = back_up(whole, tmp_path / "first", share=False)
    opened: list[str] = []

    class Disk(RealDisk):
        def open(self, path: Path, **options: Any) -> int:
            opened.append(str(path))
            return super().open(path, **options)

    second = back_up(whole, tmp_path / "second", Disk(), since=tmp_path / "first")
    assert second == first
    read = {path for path in opened if "/commitlog/" in path and str(tmp_path) in path}
    assert read == {str(tmp_path / "second" / LAST)}
    os.utime(whole / "commitlog" / ("0" * 20), ns=(1, 1))
    third = back_up(whole, tmp_path / "third", since=tmp_path / "first")
    assert {one.path: one.crc for one in third.files} == {one.path: one.crc for one in first.files}
    with pytest.raises(StoreForeign, match="is no backup"):
        back_up(whole, tmp_path / "fourth", since=tmp_path / "nothing")


def test_a_broker_that_writes_and_removes(tmp_path: Path) -> None:
    """What comes back has everything up to the point that was reached, and where empty queues ended."""
    root = tmp_path / "store"
    store = filled(root, stop=False)
    store.sync()
    store.checkpoint()
    store.dispatch()
    (root / "consumequeue/old/2").mkdir(parents=True)
    (root / "consumequeue/old/2" / f"{0:020d}").write_bytes(ENTRY.pack(7, 91, 0) * 30 + bytes(1400))
    appended = 0

    class Disk(RealDisk):
        """At each log file that is copied: more is written, the oldest file goes."""

        def share(self, source: Path, target: Path) -> bool:
            nonlocal appended
            store.append([Message(MESSAGES + appended, "a", 0)])
            appended += 1
            if appended == 2:
                (root / "commitlog" / f"{0:020d}").unlink()
            return super().share(source, target)

    end = store.end
    made = back_up(root, tmp_path / "backup", Disk())
    let_go(store)
    assert (made.log_min, made.log_end) == (1 << 20, end)
    assert appended == 2
    done = bring_back(tmp_path / "backup", tmp_path / "back")
    assert done.queues["old", 2] == 30
    verdict = look(tmp_path / "back")
    assert verdict.whole, verdict.report.findings
    assert (verdict.log_min, verdict.log_end, verdict.records) == (1 << 20, end, MESSAGES - 17)


def test_a_topic_that_is_not_saved_yet(tmp_path: Path) -> None:
    """Its messages come back, though no table names it and no queue was made."""
    store = filled(tmp_path / "store", stop=False)
    store.sync()
    store.checkpoint()
    (tmp_path / "store/config").mkdir()
    (tmp_path / "store/config/topics.json").write_text('{"topicConfigTable":{}}')
    back_up(tmp_path / "store", tmp_path / "backup")
    let_go(store)
    assert bring_back(tmp_path / "backup", tmp_path / "back").messages == MESSAGES


def edited(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        value = json.loads((root / MANIFEST).read_text())
        change(value)
        (root / MANIFEST).write_text(json.dumps(value))

    return edit


LAST = f"commitlog/{3 << 20:020d}"
HALF: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (lambda root: (root / MANIFEST).unlink(), "is no backup, or half of one"),
    "half a manifest": (lambda root: os.truncate(root / MANIFEST, 100), "cannot be read"),
    "no JSON object": (lambda root: (root / MANIFEST).write_text("[]"), "cannot be read"),
    "a later version": (edited(lambda value: value.update(version=2)), "is of version 2"),
    "an unknown field": (edited(lambda value: value.update(more=2)), "cannot be read"),
    "a file that is missing": (lambda root: (root / LAST).unlink(), f"{LAST} is missing: this is half"),
    "a short file": (lambda root: os.truncate(root / LAST, 100), "has 100 bytes, not 1048576"),
    "a changed byte": (lambda root: poke(root / LAST, 99, b"?"), f"{LAST} is damaged"),
    "a changed table": (lambda root: poke(root / "config/topics.json", 5, b"?"), "topics.json is damaged"),
    "a path that leads away": (
        edited(lambda value: value["files"][0].update(path="config/../../x")), "is no file of a backup",
    ),
    "a path of its own": (edited(lambda value: value["files"][0].update(path="/etc/passwd")), "is no file"),
    "a folder's name": (edited(lambda value: value["files"][0].update(path="config/..")), "is no file"),
    "another end": (edited(lambda value: value.update(log_end=value["log_end"] + 1)), "ends at log offset"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "sentence"), HALF.values(), ids=HALF.keys())
def test_half_a_backup_is_refused(
    whole: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    """In one sentence; there is no store."""
    back_up(whole, tmp_path / "backup", share=False)
    spoil(tmp_path / "backup")
    with pytest.raises(StoreForeign, match=sentence):
        bring_back(tmp_path / "backup", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_nothing_is_overwritten(whole: Path, tmp_path: Path) -> None:
    """A folder with something in it, a file, what an earlier restore left."""
    back_up(whole, tmp_path / "backup")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file", "backup"):
        with pytest.raises(StoreForeign, match="is not empty"):
            back_up(whole, tmp_path / name)
        with pytest.raises(StoreForeign, match="is not empty"):
            bring_back(tmp_path / "backup", tmp_path / name)
    (tmp_path / "left.restoring").mkdir()
    with pytest.raises(StoreForeign, match=r"left\.restoring is what an earlier restore left"):
        bring_back(tmp_path / "backup", tmp_path / "left")
    assert bring_back(tmp_path / "backup", tmp_path / "empty").messages == MESSAGES


def test_a_log_with_a_gap_is_not_backed_up(whole: Path, tmp_path: Path) -> None:
    root = copied(whole, tmp_path / "store")
    (root / "commitlog" / f"{1 << 20:020d}").unlink()
    with pytest.raises(StoreForeign, match="is missing"):
        back_up(root, tmp_path / "backup")
