"""Damage in what only RocketMQ's stores have: `verify` finds, counts and names it, and changes nothing.

What `rebuild` can make anew it makes as RocketMQ had it.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.disks import CHANGES, FailingDisk
from golden.stores import Golden, unpack
from unit.store.tools.whole_store import contents, poke

from actormq.errors import StoreForeign
from actormq.kernels.queues import ENTRY_BYTES
from actormq.store import batch_queue
from actormq.store.batch_queue import ENTRY, BatchQueues
from actormq.store.disk import Disk, RealDisk
from actormq.store.queue_ext import UNIT
from actormq.store.recovery import recover
from actormq.store.tools.layout import Sizes, find_layout
from actormq.store.tools.rebuilding import Rebuilt, rebuild
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


def rebuilt(golden: Golden, disk: Disk | None = None) -> Rebuilt:
    disk = disk or RealDisk()
    sizes = Sizes(batch_queue_file_entries=golden.config.batch_queue_file_entries)
    layout = find_layout(disk, golden.root, sizes)
    return rebuild(disk, layout, delay_ms=DELAY_MS, wall_ms=1_700_000_000_000, pid=7)


def batch_files(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(root).items() if name.startswith("batchconsumequeue")}


MORE_DAMAGE: dict[str, Spoil] = {
    "nothing": lambda root: None,
    "no batch queue": gone("batchconsumequeue"),
    "a queue of nobody": lambda root: (root / "batchconsumequeue/batched/7").mkdir(),
    "ordinary queues, too": lambda root: (root / "consumequeue/batched/0").mkdir(parents=True),
}


@pytest.mark.parametrize(
    "spoil",
    [*(spoil for spoil, _ in IN_BATCHES.values()), *MORE_DAMAGE.values()],
    ids=[*IN_BATCHES.keys(), *MORE_DAMAGE.keys()],
)
def test_batch_queues_are_made_anew(tmp_path: Path, spoil: Spoil) -> None:
    """Byte for byte as RocketMQ wrote them, whatever had become of them."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    before = batch_files(golden.root)
    spoil(golden.root)
    done = rebuilt(golden)
    assert batch_files(golden.root) == before
    assert {path.name for path in (golden.root / "batchconsumequeue/batched").iterdir()} == {"0", "1"}
    assert {queue: done.queues[queue] for queue in (("batched", 0), ("batched", 1))} == {
        (queue["topic"], queue["queueId"]): queue["max"] for queue in golden.said["queues"]
    }
    assert not (golden.root / "consumequeue/batched").exists()
    assert not (golden.root / "rebuilding").exists()
    assert not [kind for kind in looked_at(golden).report.counts if kind != "offset"]


def test_batch_queues_whose_first_records_are_gone(tmp_path: Path) -> None:
    """The rest is found as before; a queue with no record at all ends where it did."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    batches = BatchQueues(RealDisk(), golden.root)
    # One log file, of a size that makes it the second: retention has removed the first.
    log = golden.root / "commitlog" / FILE
    data = log.read_bytes().rstrip(b"\0")
    log_min = min(one["logOffset"] for one in golden.said["records"] if one["logOffset"] >= len(data) // 2)
    (log.parent / f"{log_min:020d}").write_bytes(data[log_min:].ljust(log_min, b"\0"))
    log.unlink()
    with batches.queue("batched", 1) as queue:
        removed = ENTRY.pack(*queue.entry(0))
    lonely = golden.root / "batchconsumequeue/batched/2"
    lonely.mkdir()
    (lonely / FILE).write_bytes(removed.ljust(50 * ENTRY.size, b"\0"))
    before = {queue: batches.bounds(*queue, log_min, 1 << 60) for queue in batches.names()}
    assert before["batched", 2].min == before["batched", 2].max > 0
    with batches.queue("batched", 0) as queue:
        entries = list(queue.since(before["batched", 0].min, 1 << 60))
    done = rebuilt(golden)
    assert {queue: batches.bounds(*queue, log_min, 1 << 60) for queue in batches.names()} == before
    assert done.queues == {queue: bounds.max for queue, bounds in before.items()}
    with batches.queue("batched", 0) as queue:
        assert list(queue.since(0, 1 << 60)) == entries
    assert looked_at(golden).whole


def test_which_topics_have_batch_queues_is_not_guessed(tmp_path: Path) -> None:
    """Where the tables contradict the folders or the log, nothing is changed."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    topics = golden.root / "config/topics.json"
    table = json.loads(topics.read_bytes())
    del table["topicConfigTable"]["batched"]["attributes"]
    topics.write_text(json.dumps(table))
    before = contents(golden.root)
    with pytest.raises(StoreForeign, match=r"has batch queues, but topics\.json does not say"):
        rebuilt(golden)
    assert contents(golden.root) == before
    shutil.rmtree(golden.root / "batchconsumequeue")
    before = contents(golden.root)
    with pytest.raises(StoreForeign, match="many messages, so topic batched has batch queues, but neither"):
        rebuilt(golden)
    after = contents(golden.root)
    assert {name: after[name] for name in after if not name.startswith("rebuilding")} == before


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_a_rebuild_of_batch_queues_that_is_interrupted(tmp_path: Path, step: int) -> None:
    """The next start, or the next rebuild, has them whole."""
    whole = unpack("rocketmq-5-batch", tmp_path / "whole")
    before = batch_files(whole.root)
    for number in itertools.count(1, step):
        golden = unpack("rocketmq-5-batch", tmp_path / str(number))
        gone("batchconsumequeue/batched/1")(golden.root)
        disk = FailingDisk(RealDisk(), number, kinds=(*CHANGES, "exchange"))
        try:
            rebuilt(golden, disk)
            ended = True
        except OSError:
            ended = False
        started = Golden(tmp_path / f"{number}-started", golden.name)
        shutil.copytree(golden.root, started.root)
        if ended or (started.root / "abort").exists():
            found = recover(RealDisk(), started.config, wall_ms=1, pid=1, delay_ms=DELAY_MS)
            assert {queue: extent.max for queue, extent in found.queues.items()} == {
                (queue["topic"], queue["queueId"]): queue["max"] for queue in golden.said["queues"]
            }
            assert batch_files(started.root) == before, number
        rebuilt(golden)
        assert batch_files(golden.root) == before, number
        if ended:
            assert number > 20
            return


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
