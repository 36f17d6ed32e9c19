"""Damage in what only RocketMQ's stores have: `verify` finds, counts and names it, and changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from golden.stores import Golden, unpack
from unit.store.tools.whole_store import contents, poke

from actormq.kernels.queues import ENTRY_BYTES
from actormq.store import batch_queue
from actormq.store.batch_queue import BatchQueues
from actormq.store.disk import RealDisk
from actormq.store.queue_ext import UNIT
from actormq.store.tools.layout import find_layout
from actormq.store.tools.verifying import Verdict, verify

DELAY_MS = [1000]
FILE = f"{0:020d}"
BATCHES = f"batchconsumequeue/batched/0/{FILE}"
LAST_BATCHES = f"batchconsumequeue/batched/0/{4600:020d}"
UNITS = f"consumequeue_ext/unfiltered/0/{FILE}"
Spoil = Callable[[Path], None]


def looked_at(golden: Golden) -> Verdict:
    disk = RealDisk()
    before = contents(golden.root)
    verdict = verify(disk, find_layout(disk, golden.root), delay_ms=DELAY_MS)
    assert contents(golden.root) == before
    return verdict


def batch(number: int, at: int, data: bytes) -> Spoil:
    """Overwrite some of one entry of a batch queue."""
    return lambda root: poke(root / BATCHES, number * batch_queue.ENTRY_BYTES + at, data)


def one_more(log_offset: int) -> Spoil:
    """Add an entry to a batch queue: 117 are there, 17 of them in the last file."""
    entry = batch_queue.ENTRY.pack(log_offset, 244, 0, 1, 300, 1, -1, 0)
    return lambda root: poke(root / LAST_BATCHES, 17 * batch_queue.ENTRY_BYTES, entry)


def gone(name: str) -> Spoil:
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def short(root: Path) -> None:
    path = root / BATCHES
    path.write_bytes(path.read_bytes()[: 2 * batch_queue.ENTRY_BYTES])


def committed(offset: int) -> Spoil:
    """A group has committed in the queue that ends at 259."""
    table = {"offsetTable": {"batched@g": {"0": offset}}}
    return lambda root: (root / "config/consumerOffset.json").write_text(json.dumps(table)) and None


def unit(number: int, at: int, data: bytes) -> Spoil:
    return lambda root: poke(root / UNITS, number * UNIT.size + at, data)


def code(data: bytes) -> Spoil:
    """Give an entry that leads to a unit another code, or address."""
    return lambda root: poke(root / "consumequeue/unfiltered/0" / FILE, 3 * ENTRY_BYTES + 12, data)


IN_BATCHES: dict[str, tuple[Spoil, dict[str, int]]] = {
    "an entry of another tag": (batch(3, 19, b"\1"), {"queue.tags": 1}),
    "an entry that points elsewhere": (batch(3, 6, b"\1"), {"queue.entry": 1}),
    "an entry of another size": (batch(3, 8, b"\1"), {"queue.entry": 1}),
    "an entry of another time": (batch(3, 27, b"\1"), {"queue.entry": 1}),
    "an entry of other messages": (batch(3, 35, b"\7"), {"queue.entry": 1}),
    "an entry of more messages": (batch(3, 37, b"\7"), {"queue.entry": 1}),
    "bytes that nobody reads": (batch(3, 40, b"\7"), {}),
    "two holes": (batch(3, 0, bytes(92)), {"queue.hole": 2}),
    "an entry too much": (one_more(300), {"queue.stray": 1}),
    "an entry behind the log": (one_more(1 << 30), {"queue.beyond": 1}),
    "a lost file": (gone(BATCHES), {"queue.hole": 50}),
    "a half copied file": (short, {"queue.file": 1, "queue.hole": 48}),
    "a lost queue": (gone("batchconsumequeue/batched/1"), {"queue.hole": 13}),
    "an offset at its end": (committed(259), {}),
    "an offset": (committed(260), {"offset": 1}),
}


@pytest.mark.parametrize(("spoil", "kinds"), IN_BATCHES.values(), ids=IN_BATCHES.keys())
def test_damaged_batch_queues(tmp_path: Path, spoil: Spoil, kinds: dict[str, int]) -> None:
    golden = unpack("rocketmq-5-batch", tmp_path)
    spoil(golden.root)
    verdict = looked_at(golden)
    assert dict(verdict.report.counts) == kinds
    assert verdict.queues == {("batched", 0): 117, ("batched", 1): 13}
    for finding in verdict.report.findings:
        assert str(golden.root) in finding.file
        assert (finding.topic, finding.queue_offset) == ("batched", None)


@pytest.mark.parametrize("holes", [0, 2])
def test_batch_entries_whose_records_are_gone(tmp_path: Path, holes: int) -> None:
    """The entries of the records that are left are found behind them, also where the first are damaged."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    with BatchQueues(RealDisk(), golden.root).queue("batched", 0) as queue:
        sixth = queue.entry(5)
    poke(golden.root / "commitlog" / FILE, 0, bytes(sixth.log_offset))
    poke(golden.root / BATCHES, 5 * batch_queue.ENTRY_BYTES, bytes(holes * batch_queue.ENTRY_BYTES))
    counts = looked_at(golden).report.counts
    assert {kind: count for kind, count in counts.items() if kind.startswith("queue")} == {
        "queue.stray": 5,
        **({"queue.hole": holes} if holes else {}),
    }


def test_batch_entries_that_rocketmq_had_still_to_write(tmp_path: Path) -> None:
    """It was killed: what its checkpoint does not promise is no damage."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    (golden.root / "abort").write_text("1")
    (golden.root / "checkpoint").write_bytes(bytes(4096))
    gone("batchconsumequeue/batched/1")(golden.root)
    verdict = looked_at(golden)
    assert verdict.whole, verdict.report.findings
    assert verdict.waiting["queue entries"] == 13


IN_UNITS: dict[str, tuple[Spoil, dict[str, int]]] = {
    "another tag": (unit(3, 9, b"\1"), {"queue.unit": 1}),
    "another size": (unit(3, 0, b"\7"), {"queue.unit": 1}),
    "a lost file": (gone(UNITS), {"queue.unit": 49}),
    "a lost queue of messages to come": (
        gone("consumequeue_ext/SCHEDULE_TOPIC_XXXX/17"), {"queue.unit": 1},
    ),
    "an entry that leads to another unit": (code(b"\x80" + bytes(7)), {"queue.unit": 1}),
    "an entry with another tag": (code(bytes(7) + b"\1"), {"queue.tags": 1}),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "kinds"), IN_UNITS.values(), ids=IN_UNITS.keys())
def test_damaged_extensions(tmp_path: Path, spoil: Spoil, kinds: dict[str, int]) -> None:
    golden = unpack("rocketmq-5-ext", tmp_path)
    spoil(golden.root)
    verdict = looked_at(golden)
    assert dict(verdict.report.counts) == kinds, verdict.report.findings
    for finding in verdict.report.findings:
        assert finding.what
