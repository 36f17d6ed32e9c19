"""Real writer, flusher, dispatcher and cleaner around a store: messages in, queues out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from process.demo import alive, wait_until
from process.store_broker import FILE_BYTES, StoreBroker

from actormq.actors.status import EXIT_STORE_FAILED
from actormq.config import FlushMode
from actormq.kernels import COMPILED
from actormq.shm.positions import Position, RoleCell
from actormq.store import checkpoint
from actormq.store.disk import RealDisk


@pytest.mark.parametrize("flush", list(FlushMode))
def test_messages_of_two_clients_end_up_in_the_queues(tmp_path: Path, flush: FlushMode) -> None:
    """Every message once, in its place; a clean stop leaves all of it synced and no abort file."""
    with StoreBroker(tmp_path, flush=flush, messages=2000, body_bytes=600).start() as broker:
        broker.wait_acknowledged(2000)
        broker.wait_dispatched()
        assert broker.positions.get(Position.APPENDED) > 2 * FILE_BYTES
        assert broker.stop() == 0, broker.log
        assert not (broker.store / "abort").exists(), broker.log
        assert (broker.store / "actormq.clean").exists()
        verdict = broker.check()
        assert verdict.clean, verdict
        assert verdict.acknowledged == verdict.received == 4000


@pytest.mark.parametrize(
    ("role", "name", "sentence"),
    [
        ("flusher", "BrokenFlusher", "cannot sync"),
        ("writer", "BrokenWriter", "cannot write"),
    ],
)
def test_failed_write_or_sync_stops_the_broker(tmp_path: Path, role: str, name: str, sentence: str) -> None:
    """Nobody is restarted: that would be the retry that succeeds over lost data.  The next start recovers."""
    options = {"flush": FlushMode.SYNC, "messages": 0}
    with StoreBroker(tmp_path, classes={role: name}, **options).start() as broker:  # type: ignore[arg-type]
        pids = broker.pids()
        broker.send(100_000)
        assert broker.wait() == EXIT_STORE_FAILED
        assert not any(alive(pid) for pid in pids)
        assert re.search(rf"{sentence} {broker.store}/commitlog/\d{{20}} .*log offset \d+: ", broker.log)
        assert (broker.store / "abort").exists()
    with StoreBroker(tmp_path, flush=FlushMode.SYNC, messages=10).start() as broker:
        broker.wait_acknowledged(10)
        broker.wait_dispatched()
        assert broker.stop() == 0
        verdict = broker.check()
        assert verdict.clean, f"{verdict}\n{broker.log}"


def test_full_disk_refuses_until_there_is_room(tmp_path: Path) -> None:
    """Refused sends are told so, nothing is damaged, and it goes on by itself."""
    with StoreBroker(tmp_path, messages=3000, body_bytes=600, classes={"cleaner": "FullCleaner"}) as broker:
        (broker.histories / "full").touch()
        broker.start()
        wait_until(
            lambda: broker.role("gateway-0", RoleCell.COUNTER_1) > 0, f"sends are refused: {broker.log}"
        )
        assert broker.positions.get(Position.APPENDED) < FILE_BYTES
        sentence = "sends will be refused: [Errno 28] No space left on device"
        wait_until(lambda: sentence in broker.log, "the line in the log")
        (broker.histories / "full").unlink()
        broker.wait_acknowledged(3000)
        assert broker.positions.get(Position.APPENDED) > 2 * FILE_BYTES
        wait_until(lambda: "there is room for log files again" in broker.log, "the line in the log")
        broker.wait_dispatched()
        assert broker.stop() == 0
        verdict = broker.check()
        assert verdict.clean, f"{verdict}\n{broker.log}"


@pytest.mark.skipif(not COMPILED, reason="without fences a role that waits looks by itself")
def test_idle_roles_sleep(tmp_path: Path) -> None:
    """With nothing to do, a role wakes for its heartbeat only."""
    with StoreBroker(tmp_path, messages=50).start() as broker:
        broker.wait_acknowledged(50)
        broker.wait_dispatched()
        wait_until(lambda: _syncs_done(broker), "everything is synced")
        roles = ("writer", "flusher", "dispatcher", "cleaner")
        beats = {role: broker.heartbeat(role) for role in roles}
        before = {role: _sleeps(broker.pid_of(role)) for role in roles}
        wait_until(
            lambda: all(broker.heartbeat(role) > beats[role] + 2_000_000_000 for role in roles), "beats"
        )
        for role in roles:
            seconds = (broker.heartbeat(role) - beats[role]) / 1e9
            assert _sleeps(broker.pid_of(role)) - before[role] <= 2 * seconds + 2, role


def _syncs_done(broker: StoreBroker) -> bool:
    appended = broker.positions.get(Position.APPENDED)
    saved = checkpoint.read(RealDisk(), broker.store / checkpoint.NAME)
    return saved.log_flushed == saved.queues_flushed == appended


def _sleeps(pid: int) -> int:
    """Return how often a process has given up its core by itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])
