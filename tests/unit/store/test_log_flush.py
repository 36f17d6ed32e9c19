"""The plan of syncing the log; the flusher's tests go through it with real files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actormq.config import FlushMode, StoreConfig
from actormq.store.log_flush import PAGE_BYTES, LogFlush, Pace

MS = 1_000_000


def config(**settings: object) -> StoreConfig:
    return StoreConfig(root=Path("/nowhere"), **settings)  # type: ignore[arg-type]


def plan(**settings: object) -> LogFlush:
    return LogFlush(Pace.of_flush(config(**settings)), 100)


def test_plan_follows_the_clock_only_while_something_is_unsynced() -> None:
    """Any order of appends, syncs and looks: due never lies behind both intervals, and never without need."""
    chance = random.Random(3)
    log = plan()
    appended, now_ns = 100, 0
    for _ in range(500):
        now_ns += chance.randrange(300) * MS
        appended += chance.choice([0, 0, 100, 20_000])
        log.look(appended, now_ns)
        due_ns = log.due_ns
        assert (due_ns is None) == (appended == log.flushed)
        if due_ns is not None and now_ns >= due_ns:
            log.done(appended, now_ns)
            assert log.due_ns is None
            assert log.wanted_appended == appended + 1


def test_interval_counts_from_the_first_unsynced_byte() -> None:
    log = plan()
    log.look(100 + 5 * PAGE_BYTES, 7 * MS)
    log.look(100 + 9 * PAGE_BYTES, 300 * MS)
    assert log.due_ns == 507 * MS


def test_what_comes_during_a_sync_waits_an_interval_of_its_own() -> None:
    log = plan()
    log.look(100 + 9 * PAGE_BYTES, 0)
    log.done(100 + 4 * PAGE_BYTES, 600 * MS)
    assert log.due_ns == 1_100 * MS


@pytest.mark.parametrize(
    ("appended", "wanted"), [(100, 101), (101, 100 + 4 * PAGE_BYTES), (100 + 4 * PAGE_BYTES, 0)]
)
def test_wish_is_what_changes_the_plan(appended: int, wanted: int) -> None:
    log = plan()
    log.look(appended, 0)
    assert log.wanted_appended == wanted


def test_sync_mode_is_always_due() -> None:
    log = plan(flush=FlushMode.SYNC)
    assert log.due_ns is None
    log.look(101, 5 * MS)
    assert log.due_ns == 5 * MS


@pytest.mark.parametrize(
    ("timed", "on_append", "due_ms"),
    [(True, False, 500), (True, True, 500), (False, False, 500), (False, True, 0)],
)
def test_appends_end_the_interval_only_where_both_settings_say_so(
    timed: bool, on_append: bool, due_ms: int
) -> None:
    """As in RocketMQ: a plain sleep cannot be ended, and otherwise somebody must end it."""
    log = plan(flush_timed=timed, flush_on_append=on_append)
    log.look(100 + 4 * PAGE_BYTES, 0)
    assert log.due_ns == due_ms * MS


def test_pool_is_committed_once_there_are_pages_or_after_its_interval() -> None:
    commit = LogFlush(Pace.of_commit(config()), 0)
    commit.look(1, 0)
    assert commit.due_ns == 200 * MS
    commit.look(4 * PAGE_BYTES, 7 * MS)
    assert commit.due_ns == 0
    waiting = LogFlush(Pace.of_commit(config(pool_commit_on_append=False, pool_commit_interval_ms=50)), 0)
    waiting.look(4 * PAGE_BYTES, 0)
    assert waiting.due_ns == 50 * MS
