"""`actormq store` on stores of the official broker, at work, killed, stopped; what it made of them starts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from interop.test_store_java import DELAY_MS, Told, java_broker, java_finds_keys, java_writes

from actormq.store.disk import RealDisk
from actormq.store.record import Record
from actormq.store.tools.backup import backup, restore
from actormq.store.tools.cutting import truncate
from actormq.store.tools.dumping import Wanted, dump
from actormq.store.tools.inspecting import inspect
from actormq.store.tools.layout import Layout, find_layout
from actormq.store.tools.rebuilding import rebuild
from actormq.store.tools.verifying import Verdict, verify

pytestmark = pytest.mark.interop

DISK = RealDisk()
WALL_MS = 1_700_000_000_000


def looked_at(root: Path) -> tuple[Layout, Verdict]:
    layout = find_layout(DISK, root)
    verdict = verify(DISK, layout, delay_ms=DELAY_MS)
    assert verdict.whole, verdict.report.findings
    return layout, verdict


def counts(told: Told) -> dict[tuple[str, int], int]:
    return {queue: len(bodies) for queue, bodies in told.queues.items()}


def test_tools_on_a_store_of_the_official_broker(tmp_path: Path) -> None:
    """Whole at any moment; rebuilt, restored and truncated stores start, and have what they must have."""
    root = tmp_path / "store"
    told = Told()
    with java_broker(root, signal.SIGKILL) as java:
        java_writes(java, told, 0, 200)
        _, verdict = looked_at(root)
        assert verdict.queues == counts(told)
        layout = find_layout(DISK, root)
        backup(DISK, layout, tmp_path / "backup")
        at_backup = counts(told)
        java_writes(java, told, 200, 100)
    _, verdict = looked_at(root)
    assert (verdict.trust.clean, verdict.queues) == (False, counts(told))
    with java_broker(root, signal.SIGTERM) as java:
        java_writes(java, told, 300, 100)
    layout, verdict = looked_at(root)
    assert (verdict.trust.clean, verdict.queues, verdict.waiting.total()) == (True, counts(told), 0)
    facts = inspect(DISK, layout)
    assert {(queue.topic, queue.queue_id): queue.max for queue in facts.queues if queue.max} == counts(told)

    restore(DISK, tmp_path / "backup", tmp_path / "back", delay_ms=DELAY_MS, wall_ms=WALL_MS, pid=7)
    assert looked_at(tmp_path / "back")[1].queues == at_backup
    with java_broker(tmp_path / "back", signal.SIGTERM) as java:
        for (topic, queue_id), count in at_backup.items():
            answer = java.call(30, {"topic": topic, "queueId": queue_id})
            assert int(answer.fields["offset"]) == count

    rebuild(DISK, layout, delay_ms=DELAY_MS, wall_ms=WALL_MS, pid=7)
    assert looked_at(root)[1].queues == counts(told)
    with java_broker(root, signal.SIGTERM) as java:
        java_finds_keys(java, told)
        java_writes(java, told, 400, 50)
    looked_at(root)

    places = [one.log_offset for one in dump(DISK, layout, Wanted()) if isinstance(one, Record)]
    cut = truncate(DISK, layout, places[-60], pid=7, kept=root / "truncated-test")
    assert cut.records == 60
    left = {queue: count - cut.queues[queue] for queue, count in counts(told).items()}
    assert looked_at(root)[1].queues == left
    with java_broker(root, signal.SIGTERM) as java:
        for (topic, queue_id), count in left.items():
            answer = java.call(30, {"topic": topic, "queueId": queue_id})
            assert int(answer.fields["offset"]) == count
    looked_at(root)
