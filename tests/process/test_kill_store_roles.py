"""`kill -9` of writer, flusher, dispatcher and cleaner, between any two of their steps, under load."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
from itertools import zip_longest
from pathlib import Path

import pytest
from process.demo import PROJECT, wait_until
from process.store_broker import FILE_BYTES, PATIENCE_S, StoreBroker

from actormq.config import FlushMode
from actormq.shm.positions import Position, RoleCell, RoleState, slot_of

ROLES = ("writer", "flusher", "dispatcher", "cleaner")
SELDOM = {
    "writer.blank-written",
    "cleaner.file-made",
    "flusher.queue-synced",
    "flusher.index-synced",
    "flusher.checkpoint-written",
}
"""Points that are reached only when a log file is full, or some time has passed."""
NOT_UNDER_LOAD = {
    "writer.recovered",
    "flusher.marked-clean",
    "flusher.pool-committed",
    "flusher.pool-published",
    "dispatcher.queue-removed",
    "dispatcher.units-written",
    "dispatcher.holder-unrung",
    "cleaner.log-hidden",
    "cleaner.queues-hidden",
    "cleaner.log-file-removed",
    "cleaner.queue-files-removed",
    "cleaner.index-files-removed",
}
"""Points of starting, stopping, of the store pool, of queues' extensions, of removing old files and of waking
consumers: tested elsewhere."""


def points(role: str) -> list[str]:
    """Return the fault points in the source of a role."""
    source = (PROJECT / "actormq" / "actors" / f"{role}.py").read_text()
    names = re.findall(r'faults\.point\("([^"]+)"\)', source)
    return [name for name in dict.fromkeys(names) if name not in NOT_UNDER_LOAD]


COLUMNS = list(zip_longest(*(points(role) for role in ROLES)))


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_points_enough(role: str) -> None:
    source = (PROJECT / "actormq" / "actors" / f"{role}.py").read_text()
    assert len(set(re.findall(r'faults\.point\("([^"]+)"\)', source))) >= 6


def run_to_the_end(broker: StoreBroker, messages: int) -> None:
    """Let the pumps finish, stop cleanly, and have the checker judge."""
    broker.wait_acknowledged(messages)
    broker.wait_dispatched()
    assert broker.stop() == 0, broker.log
    verdict = broker.check()
    assert verdict.clean, f"{verdict}\n{broker.log}"


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column[0]))
def test_death_of_every_role_at_a_point(tmp_path: Path, column: tuple[str | None, ...]) -> None:
    """Nothing acknowledged is lost, nothing is stored twice, queues have no holes; the broker goes on."""
    chance = random.Random(str(column))
    armed = [name for name in column if name is not None]
    spec = ",".join(f"{name}:{1 if name in SELDOM else chance.randrange(2, 9)}" for name in armed)
    flush = chance.choice(list(FlushMode))
    with StoreBroker(tmp_path, flush=flush, messages=100_000, body_bytes=600, faults=spec).start() as broker:
        for name in armed:
            role = name.partition(".")[0]
            wait_until(
                lambda role=role: broker.role(role, RoleCell.INCARNATION) == 2,
                f"{role} died: {broker.log}",
                PATIENCE_S,
            )
            broker.wait_running(role, 2)
        broker.wait_flow(broker.positions.get(Position.APPENDED))
        assert broker.stop() == 0, broker.log
        verdict = broker.check()
        assert verdict.clean, f"{verdict}\n{broker.log}"


def test_death_at_the_points_of_the_store_pool(tmp_path: Path) -> None:
    """What was acknowledged from memory is found there by whoever comes next."""
    faults = "writer.appended:7,flusher.pool-committed:5"
    options = {"pooled": True, "messages": 100_000, "body_bytes": 600, "faults": faults}
    with StoreBroker(tmp_path, **options).start() as broker:  # type: ignore[arg-type]
        for role in ("writer", "flusher"):
            broker.wait_running(role, 2)
        broker.wait_flow(broker.positions.get(Position.APPENDED) + FILE_BYTES)
        assert broker.stop() == 0, broker.log
        verdict = broker.check()
        assert verdict.clean, f"{verdict}\n{broker.log}"


def test_death_between_an_extension_and_its_queue(tmp_path: Path) -> None:
    """The next dispatcher writes the same units again, and the entries that lead to them."""
    options = {"extended": True, "messages": 100_000, "faults": "dispatcher.units-written:5"}
    with StoreBroker(tmp_path, **options).start() as broker:  # type: ignore[arg-type]
        broker.wait_running("dispatcher", 2)
        broker.wait_flow(broker.positions.get(Position.APPENDED))
        assert broker.stop() == 0, broker.log
        assert any((broker.store / "consumequeue_ext").rglob("0" * 20))
        verdict = broker.check()
        assert verdict.clean, f"{verdict}\n{broker.log}"


def test_a_clean_stop_empties_the_store_pool(tmp_path: Path) -> None:
    """At once, however long the little in it might have waited for more."""
    with StoreBroker(tmp_path, pooled=True, messages=5).start() as broker:
        broker.wait_acknowledged(5)
        assert broker.positions.get(Position.WRITTEN) == 0
        assert broker.stop() == 0, broker.log
        verdict = broker.check()
        assert verdict.clean, f"{verdict}\n{broker.log}"
        assert verdict.acknowledged == verdict.received == 10


def test_sync_mode_has_no_store_pool(tmp_path: Path) -> None:
    """As in RocketMQ; it is said, and what is acknowledged is synced."""
    with StoreBroker(tmp_path, flush=FlushMode.SYNC, pooled=True, messages=5).start() as broker:
        assert "the store pool stays off" in broker.log
        broker.wait_acknowledged(5)
        assert broker.positions.get(Position.FLUSHED) == broker.positions.get(Position.APPENDED)
        broker.kill_all()
        assert broker.check().acknowledged == 10


def test_store_pool_goes_with_the_supervisor_and_nobody_had_seen_it(tmp_path: Path) -> None:
    """RocketMQ's trade, said at the start: a tail that was acknowledged is lost, never a middle."""
    with StoreBroker(tmp_path, pooled=True, messages=100_000).start() as broker:
        assert "the store pool is on" in broker.log
        broker.wait_acknowledged(300)
        broker.wait_flow(FILE_BYTES)
        broker.kill_all()
        written = broker.positions.get(Position.WRITTEN)
        assert broker.positions.get(Position.DISPATCHED) <= written
    with StoreBroker(tmp_path, pooled=True, messages=0).start() as broker:
        assert broker.positions.get(Position.APPENDED) >= written
        assert broker.stop() == 0
        verdict = broker.check(expect_all=False)
        assert verdict.clean, f"{verdict}\n{broker.log}"


@pytest.mark.parametrize("seed", [1, 2, pytest.param(3, marks=pytest.mark.soak)])
@pytest.mark.parametrize("pooled", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_death_at_random_moments(tmp_path: Path, seed: int, pooled: bool) -> None:
    """Roles and their clients die again and again while messages flow."""
    chance = random.Random(seed)
    flush = FlushMode.ASYNC if pooled else chance.choice(list(FlushMode))
    with StoreBroker(tmp_path, flush=flush, pooled=pooled, messages=100_000, pumps=3).start() as broker:
        for _ in range(12):
            role = chance.choice([*ROLES, *ROLES, "holder", *broker.pumps])
            incarnation = broker.role(role, RoleCell.INCARNATION)
            appended = broker.positions.get(Position.APPENDED)
            broker.kill(role)
            broker.wait_running(role, incarnation + 1)
            broker.wait_flow(appended)
        assert broker.stop() == 0, broker.log
        verdict = broker.check()
        assert verdict.clean, f"{verdict}\n{broker.log}"
        assert verdict.acknowledged > 100


@pytest.mark.parametrize("flush", list(FlushMode))
@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_kill_of_the_supervisor_loses_nothing(tmp_path: Path, flush: FlushMode, kills: int) -> None:
    """Every role goes with it; the next broker has all that was acknowledged, and goes on behind it."""
    chance = random.Random(str(flush))
    for _ in range(kills):
        with StoreBroker(tmp_path, flush=flush, messages=100_000).start() as broker:
            broker.wait_acknowledged(300 if kills == 1 else chance.randrange(1, 300))
            broker.kill_all()
    with StoreBroker(tmp_path, flush=flush, messages=0).start() as broker:
        assert "after=crash" in broker.log
        assert broker.stop() == 0
        verdict = broker.check()
        assert verdict.clean, f"{verdict}\n{broker.log}"
        assert verdict.acknowledged >= 600 or kills > 1
    with StoreBroker(tmp_path, flush=flush, messages=200).start() as broker:
        assert broker.log.count("after=clean stop") == 2
        run_to_the_end(broker, 200)


def test_death_of_recovery_is_a_failed_start_and_nothing_else(tmp_path: Path) -> None:
    """Whatever it had changed by then, the next recovery begins from there."""
    with StoreBroker(tmp_path, messages=100_000).start() as broker:
        broker.wait_acknowledged(300)
        broker.kill_all()
    source = (PROJECT / "actormq/actors/recovery.py").read_text()
    names = re.findall(r'faults\.point\("([^"]+)"\)', source)
    names.remove("recovery.deletions-saved")  # never reached here: nobody has deleted a topic
    assert len(names) >= 6
    for name in names:
        with StoreBroker(tmp_path, messages=0, faults=name).begin() as broker:
            assert broker.wait() != 0, name
            assert "recovery was killed by SIGKILL" in broker.log
            assert (broker.store / "abort").exists() or name == "recovery.begun"
    with StoreBroker(tmp_path, messages=100).start() as broker:
        run_to_the_end(broker, 100)


def test_stopped_writer_loses_nothing_and_is_not_replaced(tmp_path: Path) -> None:
    """A process that only sleeps (SIGSTOP) is waited for; a second writer beside it would be the end."""
    with StoreBroker(tmp_path, messages=100_000).start() as broker:
        broker.wait_acknowledged(100)
        pid = broker.pid_of("writer")
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: "writer is silent" in broker.log, "the supervisor notices")
            assert broker.pid_of("writer") == pid
            before = broker.acknowledged("gateway-0")
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: broker.acknowledged("gateway-0") > before, "messages flow again")
        assert broker.role("writer", RoleCell.INCARNATION) == 1
        assert broker.stop() == 0
        verdict = broker.check()
        assert verdict.clean, verdict


@pytest.mark.parametrize("point", [None, *(name for name in sorted(NOT_UNDER_LOAD) if name[0] == "c")])
def test_old_files_go_whoever_dies(tmp_path: Path, point: str | None) -> None:
    """The store shrinks from its old end while it grows at the other, and is whole in between."""
    classes = {"cleaner": "EagerCleaner"}
    options = {"messages": 2500, "body_bytes": 600, "faults": point or "", "classes": classes}
    with StoreBroker(tmp_path, **options).start() as broker:  # type: ignore[arg-type]
        broker.wait_acknowledged(2500)
        broker.wait_dispatched()
        last = broker.positions.get(Position.APPENDED) // FILE_BYTES * FILE_BYTES
        wait_until(lambda: broker.log_min == last, f"all but the last file are gone: {broker.log}")
        broker.wait_running("cleaner", 2 if point else 1)
        assert broker.positions.get(Position.CLEANED) == last
        assert broker.stop() == 0, broker.log
        verdict = broker.check(expect_all=False)
        assert verdict.clean, f"{verdict}\n{broker.log}"
        assert verdict.received > 0
    with StoreBroker(tmp_path, messages=50).start() as broker:
        assert broker.positions.get(Position.CLEANED) == last
        broker.wait_acknowledged(50)
        broker.wait_dispatched()
        assert broker.stop() == 0, broker.log
        assert broker.check(expect_all=False).clean


@pytest.mark.soak
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("flush", list(FlushMode))
@pytest.mark.parametrize("seed", range(5))
def test_twenty_deaths_of_each_role(tmp_path: Path, role: str, flush: FlushMode, seed: int) -> None:
    """The issue's table: each role, two hundred times in all, under load; service back within a second."""
    chance = random.Random(f"{role} {flush} {seed}")
    with StoreBroker(tmp_path, flush=flush, messages=1_000_000, pumps=3).start() as broker:
        for incarnation in range(1, 21):
            appended = broker.positions.get(Position.APPENDED)
            broker.wait_flow(appended + chance.randrange(100_000))
            with contextlib.suppress(ProcessLookupError):
                broker.kill(role)
            broker.wait_running(role, incarnation + 1)
            broker.wait_flow(appended)
            assert broker.positions.role(slot_of(role), RoleCell.STATE) != RoleState.ABSENT
        assert broker.stop() == 0, broker.log
        verdict = broker.check()
        assert verdict.clean, f"{verdict}\n{broker.log}"
        assert verdict.unavailable_ms < 1000
