"""A log that is ended earlier: between records only, queues and index with it; what is cut is kept."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from faults.disks import CHANGES, FailingDisk
from faults.small_store import Message, check_index, check_queues, read_log
from unit.store.tools.whole_store import MESSAGES, contents, copied, filled, let_go, look, poke, started

from actormq.store.disk import RealDisk
from actormq.store.record import Record
from actormq.store.tools.cutting import Cut, NoBoundary, plan, truncate
from actormq.store.tools.dumping import Wanted, dump
from actormq.store.tools.layout import find_layout
from actormq.store.tools.rebuilding import remove_tree


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    filled(root)
    return root


def places(root: Path) -> list[int]:
    """Return where records begin, and where the last one ends."""
    disk = RealDisk()
    found = [one for one in dump(disk, find_layout(disk, root), Wanted()) if isinstance(one, Record)]
    return [*(one.log_offset for one in found), found[-1].log_offset + found[-1].size]


def cut(root: Path, at: int, disk: Any = None, keep: bool = True) -> Cut:
    disk = disk or RealDisk()
    return truncate(disk, find_layout(disk, root), at, pid=7, kept=root / "truncated-x", keep=keep)


@pytest.mark.parametrize("number", [0, 1, 17, 30, 41, 59, 60])
def test_a_cut(whole: Path, tmp_path: Path, number: int) -> None:
    """All before it is there, nothing behind it, in log, queues and index; and it goes on from there."""
    root = copied(whole, tmp_path)
    at = places(root)[number]
    done = cut(root, at)
    assert (done.log_offset, done.records, sum(done.queues.values())) == (
        at,
        MESSAGES - number,
        MESSAGES - number,
    )
    verdict = look(root)
    assert verdict.whole, verdict.report.findings
    assert (verdict.log_end, verdict.records) == (at, number)
    assert verdict.index_entries == number
    store = started(root)
    log = read_log(store.disk, store.found, store.config)
    check_queues(store.disk, store.found, store.config, log)
    check_index(store.disk, store.config, log)
    assert store.found.log_end == at
    store.append([Message(100, "a", 0)])
    store.stop()
    let_go(store)
    assert look(root).records == number + 1


def test_at_the_beginning_of_a_file(whole: Path, tmp_path: Path) -> None:
    """Whole files are moved aside, and can be brought back as they were."""
    root = copied(whole, tmp_path)
    before = contents(root)
    done = cut(root, 2 << 20)
    assert [path.name for path in done.files] == [f"{2 << 20:020d}", f"{3 << 20:020d}"]
    for path in done.files:
        kept = root / "truncated-x/commitlog" / path.name
        assert kept.read_bytes() == before[f"commitlog/{path.name}"]
        assert not path.exists()
    assert look(root).whole


def test_what_is_cut_is_kept_or_not(whole: Path, tmp_path: Path) -> None:
    """The file of the cut as it was; and no file that others may have open or linked is written to."""
    for keep in (True, False):
        root = copied(whole, tmp_path / str(keep))
        before = contents(root)
        link = tmp_path / f"link-{keep}"
        link.hardlink_to(root / "commitlog" / f"{1 << 20:020d}")
        cut(root, places(root)[20], keep=keep)
        assert link.read_bytes() == before[f"commitlog/{1 << 20:020d}"]
        assert (root / "truncated-x").exists() == keep
        if keep:
            kept = root / "truncated-x/commitlog" / f"{1 << 20:020d}"
            assert kept.read_bytes() == link.read_bytes()


def test_only_between_records(whole: Path, tmp_path: Path) -> None:
    """The sentence names both ends; nothing is changed.  A damaged record has two ends as well."""
    root = copied(whole, tmp_path)
    found = places(root)
    before = contents(root)
    for wrong in (found[20] + 1, found[21] - 1):
        with pytest.raises(NoBoundary, match=f"from {found[20]} to {found[21]}"):
            cut(root, wrong)
    for outside in (-1, (4 << 20) + 1):
        with pytest.raises(NoBoundary, match="is not in the log"):
            cut(root, outside)
    assert contents(root) == before
    poke(root / "commitlog" / f"{1 << 20:020d}", found[20] - (1 << 20) + 500, b"?")
    with pytest.raises(NoBoundary, match=f"from {found[20]} to {found[21]}"):
        plan(RealDisk(), find_layout(RealDisk(), root), found[20] + 7)
    cut(root, found[20])
    assert look(root).whole


def test_a_plan_changes_nothing(whole: Path) -> None:
    before = contents(whole)
    found = plan(RealDisk(), find_layout(RealDisk(), whole), places(whole)[50])
    assert (found.records, found.queues["a", 2]) == (10, 2)
    assert found.first_store_timestamp < found.last_store_timestamp
    assert contents(whole) == before


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.soak)])
def test_interrupted_anywhere(whole: Path, tmp_path: Path, step: int) -> None:
    """The next start finds a log that ends at the cut or later, and queues and index that fit."""
    at = places(whole)[20]
    for number in itertools.count(1, step):
        root = copied(whole, tmp_path / str(number))
        ended = False
        try:
            cut(root, at, FailingDisk(RealDisk(), number, kinds=(*CHANGES, "exchange")))
            ended = True
        except OSError:
            pass
        store = started(root)
        log = read_log(store.disk, store.found, store.config)
        assert 20 <= len(log) <= MESSAGES
        check_queues(store.disk, store.found, store.config, log)
        check_index(store.disk, store.config, log)
        store.stop()
        let_go(store)
        assert look(root).whole
        remove_tree(RealDisk(), root)
        if ended:
            assert number > 20
            return
