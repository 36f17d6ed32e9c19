"""The official broker on its own stores after we have worked on them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from golden.stores import unpack
from interop import rocketmq
from interop.test_store_java import java_broker
from process.broker_load import await_true
from process.test_golden_stores import EXT, KEYS, broker_on, pull_all

from actormq.store import checkpoint
from actormq.store.disk import RealDisk
from actormq.store.tools.layout import find_layout
from actormq.store.tools.rebuilding import rebuild

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]


@pytest.mark.parametrize("more", [{}, EXT], ids=["codes", "units"])
def test_queues_with_addresses_and_codes(tmp_path: Path, more: dict[str, object]) -> None:
    """We append codes, or units, to queues whose entries have addresses: it serves all, and goes on."""
    rocketmq.require_java()
    golden = unpack("rocketmq-5-ext", tmp_path)
    expected = [one for one in golden.said["records"] if (one["topic"], one["queueId"]) == ("filtered", 0)]
    bodies = len(expected)
    tagged = sum(one["properties"].get("TAGS") == "t1" for one in expected)
    for _ in range(2):
        with broker_on(golden, **more) as ours:
            assert len(pull_all(ours, "filtered", 0)) == bodies
            assert len(pull_all(ours, "filtered", 0, tags="t1")) == tagged
            for number in range(20):
                ours.send("filtered", 0, b"ours %d" % number, f"TAGS\1t{number % 3}\2")
            bodies, tagged = bodies + 20, tagged + 7
        with java_broker(golden.root, signal.SIGTERM, **KEYS, **EXT) as java:
            assert len(pull_all(java, "filtered", 0)) == bodies
            assert len(pull_all(java, "filtered", 0, tags="t1")) == tagged
            for number in range(20):
                java.send("filtered", 0, b"java %d" % number, f"TAGS\1t{number % 3}\2")
            bodies, tagged = bodies + 20, tagged + 7


def test_a_last_key_changes_nothing(tmp_path: Path) -> None:
    """Only its index in RocksDB pages by one: with index files both answer the newest, whatever it says."""
    rocketmq.require_java()
    golden = unpack("rocketmq-5-plain", tmp_path)
    fields = {"topic": "t", "maxNum": 2, "beginTimestamp": 0, "endTimestamp": 1 << 60}
    asked = [
        fields | {"key": "paged"} | kind | last
        for kind in ({}, {"indexType": "T"}, {"indexType": "K"})
        for last in ({}, {"lastKey": ""}, {"lastKey": "paged"}, {"lastKey": "U3"}, {"lastKey": "0"})
    ]
    asked += [fields | {"key": "U1", "_UNIQUE_KEY_QUERY": "true", "indexType": kind} for kind in "TKU"]
    with java_broker(golden.root, signal.SIGTERM, **KEYS) as java:
        for number in range(5):
            java.send("t", 0, b"paged %d" % number, f"KEYS\1paged\2TAGS\1paged\2UNIQ_KEY\1U{number}\2")
        await_true("the last one is found", lambda: java.call(12, fields | {"key": "U4"}).code == 0)
        theirs = [java.call(12, each) for each in asked]
    assert [answer.code for answer in theirs] == [0] * len(asked)
    found = [bytes(answer.body or b"") for answer in theirs]
    assert (len(set(found[:15])), len(set(found[15:]))) == (1, 1)
    with broker_on(golden) as ours:
        assert [bytes(ours.call(12, each).body or b"") for each in asked] == found


@pytest.mark.parametrize("made_anew", [False, True])
def test_batch_queues_that_we_have_completed(tmp_path: Path, made_anew: bool) -> None:
    """As recovery does it, and `store rebuild`."""
    rocketmq.require_java()
    golden = unpack("rocketmq-5-batch", tmp_path)
    newest = max((golden.root / "batchconsumequeue" / "batched" / "0").iterdir())
    newest.write_bytes(bytes(newest.stat().st_size))
    if made_anew:
        disk = RealDisk()
        rebuild(disk, find_layout(disk, golden.root), delay_ms=[1000], wall_ms=1_700_000_000_000, pid=7)
    else:
        (golden.root / "abort").write_text("1")
        (golden.root / checkpoint.NAME).write_bytes(bytes(4096))
    stored = [one["logOffset"] for one in golden.said["records"] if one["queueId"] == 0]
    with broker_on(golden) as ours:
        assert [header.physical_offset for header in pull_all(ours, "batched", 0)] == stored
    with java_broker(golden.root, signal.SIGTERM, **KEYS) as java:
        assert [header.physical_offset for header in pull_all(java, "batched", 0)] == stored
