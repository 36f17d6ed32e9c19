"""Our broker on stores that the official one has left: what it stored is pulled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from golden.stores import Golden, unpack
from interop.wire_client import WireClient
from process.broker_load import await_true
from server_process import running

from actormq.kernels import records
from actormq.kernels.queues import ENTRY
from actormq.message import tags_code
from actormq.store.commit_log import file_name
from actormq.store.disk import RealDisk
from actormq.store.queue_ext import ADDRESS_MAX
from actormq.store.tools.layout import find_layout
from actormq.store.tools.verifying import verify
from actormq.wire import json

KEYS = {
    "mappedFileSizeCommitLog": 1 << 20,
    "mappedFileSizeConsumeQueue": 100 * 20,
    "mapperFileSizeBatchConsumeQueue": 50 * 46,
    "maxHashSlotNum": 50,
    "maxIndexNum": 400,
    "maxMessageSize": 700_000,
    "brokerIP1": "127.0.0.1",
}


EXT = {"enableConsumeQueueExt": "true", "mappedFileSizeConsumeQueueExt": 1000}


@contextmanager
def broker_on(golden: Golden, **more: object) -> Iterator[WireClient]:
    conf = golden.root.parent / "broker.conf"
    keys = KEYS | {"brokerName": "golden", "storePathRootDir": golden.root} | more
    conf.write_text("".join(f"{key}={value}\n" for key, value in keys.items()))
    with running(golden.root.parent, "broker", "-c", str(conf), "--port", "0") as server:
        client = WireClient(int(server.words["broker"].rpartition(":")[2]))
        yield client
        client.close()


def pull_all(
    client: WireClient, topic: str, queue_id: int, offset: int = 0, tags: str = "*"
) -> list[records.Header]:
    """Return what is in a queue from `offset` on, in the order in which it comes."""
    found = []
    while True:
        data, offset = client.pull(topic, queue_id, offset, tags)
        if not data:
            return found
        at = 0
        while at < len(data):
            header = records.decode(data, at, True)
            found.append(header)
            at += header.total_size


@pytest.mark.parametrize("name", ["rocketmq-5-plain", "rocketmq-4-plain"])
def test_every_message_is_pulled(tmp_path: Path, name: str) -> None:
    """Of every queue, with hosts of IPv6, long topics, and what was delayed."""
    golden = unpack(name, tmp_path)
    with broker_on(golden) as client:
        for queue in golden.said["queues"]:
            if queue["topic"] == "SCHEDULE_TOPIC_XXXX":
                continue
            found = pull_all(client, queue["topic"], queue["queueId"])
            assert [header.physical_offset for header in found] == [
                one["logOffset"]
                for one in golden.said["records"]
                if (one["topic"], one["queueId"]) == (queue["topic"], queue["queueId"])
                and one["sysFlag"] & 0xC in (0, 8)
            ]


def test_messages_are_found_by_tag(tmp_path: Path) -> None:
    """In the index that RocketMQ 5.5.0 has written; a key of the same letters is none."""
    golden = unpack("rocketmq-5-plain", tmp_path)
    wanted = [
        one["logOffset"]
        for one in golden.said["records"]
        if one["topic"] == "t" and one["properties"].get("TAGS") == "all"
    ]
    fields = {"topic": "t", "maxNum": 32, "beginTimestamp": 0, "endTimestamp": 1 << 60}
    with broker_on(golden) as client:
        answer = client.call(12, fields | {"key": "all", "indexType": "T"})
        assert [records.decode(bytes(answer.body or b""), 0).physical_offset] == wanted
        assert client.call(12, fields | {"key": "empty-body", "indexType": "T"}).code == 22
        assert client.call(12, fields | {"key": "empty-body"}).code == 0


def test_batch_queues_are_pulled(tmp_path: Path) -> None:
    """Whole batches, from the one that has the offset that was asked for; their ends are the messages'."""
    golden = unpack("rocketmq-5-batch", tmp_path)
    with broker_on(golden) as client:
        for queue in golden.said["queues"]:
            topic, queue_id = queue["topic"], queue["queueId"]
            stored = [one for one in golden.said["records"] if one["queueId"] == queue_id]
            found = pull_all(client, topic, queue_id)
            assert [header.physical_offset for header in found] == [one["logOffset"] for one in stored]
            for code, end in ((30, "max"), (31, "min")):
                answer = client.call(code, {"topic": topic, "queueId": queue_id})
                assert answer.fields["offset"] == str(queue[end])
            last = stored[-1]
            time = {"topic": topic, "queueId": queue_id, "timestamp": str(last["storeTimestamp"])}
            first_then = next(one for one in stored if one["storeTimestamp"] == last["storeTimestamp"])
            assert client.call(29, time).fields["offset"] == str(first_then["queueOffset"])
            earliest = client.call(32, {"topic": topic, "queueId": queue_id})
            assert earliest.fields["timestamp"] == str(stored[0]["storeTimestamp"])
            inside = queue["max"] - 1
            assert [each.physical_offset for each in pull_all(client, topic, queue_id, inside)] == [
                last["logOffset"]
            ]
            tagged = [one["logOffset"] for one in stored if one["tagsCode"] == tags_code("single")]
            assert tagged
            got = pull_all(client, topic, queue_id, tags="single")
            assert [header.physical_offset for header in got] == tagged
    assert not (golden.root / "consumequeue" / "batched").exists()


def test_nothing_is_sent_to_a_batch_queue(tmp_path: Path) -> None:
    with broker_on(unpack("rocketmq-5-batch", tmp_path)) as client:
        answer = client.try_send("batched", 0, b"body", "")
        assert (answer.code, "BatchCQ" in (answer.remark or "")) == (13, True)


def test_tags_are_found_in_the_extension(tmp_path: Path) -> None:
    """Of queue entries that have an address instead of a tags code."""
    golden = unpack("rocketmq-5-ext", tmp_path)
    with broker_on(golden) as client:
        for queue in golden.said["queues"]:
            if queue["topic"] == "SCHEDULE_TOPIC_XXXX":
                continue
            found = pull_all(client, queue["topic"], queue["queueId"], tags="t1")
            wanted = [
                one["logOffset"]
                for one in golden.said["records"]
                if (one["topic"], one["queueId"]) == (queue["topic"], queue["queueId"])
                and one["properties"].get("TAGS") == "t1"
            ]
            assert wanted
            assert [header.physical_offset for header in found] == wanted


def test_the_extension_is_gone_on_with(tmp_path: Path) -> None:
    """What is sent to queues that have one gets units, also delayed messages; all are found by their tags."""
    golden = unpack("rocketmq-5-ext", tmp_path)
    stored = [one for one in golden.said["records"] if (one["topic"], one["queueId"]) == ("filtered", 0)]
    tagged = sum(one["properties"].get("TAGS") == "t1" for one in stored)
    with broker_on(golden, **EXT) as client:
        for number in range(60):
            client.send("filtered", 0, b"%d" % number, f"TAGS\1t{number % 3}\2")
        client.send("unfiltered", 0, b"delayed", "TAGS\1late\2DELAY\0011\2")
        await_true("all can be read", lambda: len(pull_all(client, "filtered", 0)) >= len(stored) + 60)
        assert len(pull_all(client, "filtered", 0)) == len(stored) + 60
        assert len(pull_all(client, "filtered", 0, tags="t1")) == tagged + 20
        await_true("the delayed message", lambda: bool(pull_all(client, "unfiltered", 0, tags="late")))
    entries = (golden.root / "consumequeue" / "filtered" / "0" / file_name(0)).read_bytes()
    codes = [code for _, _, code in ENTRY.iter_unpack(entries[: (len(stored) + 60) * 20])]
    assert all(code <= ADDRESS_MAX for code in codes)
    assert codes == sorted(set(codes))
    assert verify(RealDisk(), find_layout(RealDisk(), golden.root), delay_ms=[1000] * 17 + [7_200_000]).whole
    with broker_on(golden) as client:
        assert len(pull_all(client, "filtered", 0, tags="t1")) == tagged + 20


@pytest.mark.parametrize("name", ["rocketmq-5-plain", "rocketmq-4-plain"])
def test_tables_keep_what_we_do_not_use(tmp_path: Path, name: str) -> None:
    """Changed here and there and written again, every member of `config/*.json` is still there."""
    golden = unpack(name, tmp_path)
    folder = golden.root / "config"
    before = {path.name: json.loads(path.read_bytes()) for path in folder.iterdir()}
    with broker_on(golden) as client:
        fields = {
            "topic": "new", "defaultTopic": "TBW102", "readQueueNums": 1, "writeQueueNums": 1, "perm": 6,
            "topicFilterType": "SINGLE_TAG", "order": "false",
        }  # fmt: skip
        assert client.call(17, fields).code == 0
        group = b'{"groupName":"new","consumeEnable":true,"retryQueueNums":1,"retryMaxTimes":3}'
        assert client.call(200, {}, group).code == 0
        offset = {"consumerGroup": "new", "topic": "t", "queueId": 0, "commitOffset": 1}
        assert client.call(15, offset).code == 0
    after = {path.name: json.loads(path.read_bytes()) for path in folder.iterdir() if path.name in before}
    assert set(after) == set(before)
    for file, table in before.items():
        assert missing(table, after[file], file) == []
    assert after["topics.json"]["topicConfigTable"]["new"]["readQueueNums"] == 1
    assert after["subscriptionGroup.json"]["subscriptionGroupTable"]["new"]["retryMaxTimes"] == 3


def missing(before: object, after: object, where: str) -> list[str]:
    """Return where a member of `before` is not in `after`, or another one; versions move on."""
    if where.endswith("dataVersion"):
        return [] if isinstance(after, dict) else [where]
    if where.startswith("delayOffset.json: offsetTable: "):
        return [] if int(str(after)) >= int(str(before)) else [where]  # what was due meanwhile was delivered
    if where.endswith("groupTopicMap"):
        return []  # RocketMQ does not read it: it is what the offsets say, the other way round
    if isinstance(before, dict) and isinstance(after, dict):
        places = ((before[key], after.get(key), f"{where}: {key}") for key in before)
        return [one for inner in places for one in missing(*inner)]
    return [] if before == after else [f"{where}: {before!r} is now {after!r}"]
