"""The official Java clients, 5.5.0 and 4.9.8, against `actormq dev`: sends, tags, order, retry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from actormq_process import Dev, running_dev
from interop import rocketmq

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    rocketmq.require_java()
    with running_dev(gateways=3) as broker:
        yield broker


@pytest.mark.parametrize("version", ["5", "4"])
@pytest.mark.parametrize("mode", ["sync", "async", "oneway", "batch"])
def test_every_kind_of_send_reaches_a_push_consumer(dev: Dev, version: str, mode: str) -> None:
    """What the official producer sends in each mode, the official push consumer gets: all of it, once."""
    topic = f"Interop{version}{mode}"
    sent = rocketmq.run_client(version, "send", dev.namesrv, topic, mode, 100, "red", 200)
    assert not [line for line in sent if line.kind == "FAILED"], sent
    got = rocketmq.run_client(
        version, "consume", dev.namesrv, topic, f"g{version}{mode}", "*", 100, 60, "plain"
    )
    bodies = [line.fields[0] for line in got if line.kind == "GOT"]
    assert sorted(bodies) == [f"{mode}-{index:06d}" for index in range(100)]


@pytest.mark.parametrize("version", ["5", "4"])
def test_a_tag_filter_lets_only_its_tags_through(dev: Dev, version: str) -> None:
    """A consumer of `red || green` sees no blue message."""
    topic = f"Tags{version}"
    for tag in ("red", "blue", "green"):
        rocketmq.run_client(version, "send", dev.namesrv, topic, "sync", 20, tag, 30)
    got = rocketmq.run_client(
        version, "consume", dev.namesrv, topic, f"tags{version}", "red || green", 40, 60, "plain"
    )
    tags = [line.fields[1] for line in got if line.kind == "GOT"]
    assert sorted(tags) == ["green"] * 20 + ["red"] * 20


@pytest.mark.parametrize("version", ["5", "4"])
def test_an_orderly_consumer_sees_each_queue_in_order(dev: Dev, version: str) -> None:
    """Queue locks are granted, and offsets rise within each queue."""
    topic = f"Orderly{version}"
    rocketmq.run_client(version, "send", dev.namesrv, topic, "sync", 60, "a", 30)
    got = rocketmq.run_client(
        version, "consume", dev.namesrv, topic, f"orderly{version}", "*", 60, 90, "orderly"
    )
    by_queue: dict[str, list[int]] = {}
    for line in got:
        if line.kind == "GOT":
            by_queue.setdefault(line.fields[3], []).append(int(line.fields[4]))
    assert sum(map(len, by_queue.values())) == 60
    assert all(offsets == sorted(offsets) for offsets in by_queue.values())


def test_a_refused_message_comes_back_through_the_retry_topic(dev: Dev) -> None:
    """RECONSUME_LATER sends back (36); the message returns with reconsumeTimes 1 after its delay level."""
    rocketmq.run_client("5", "send", dev.namesrv, "Refused", "sync", 5, "a", 30)
    got = rocketmq.run_client("5", "consume", dev.namesrv, "Refused", "refusers", "*", 5, 90, "fail-once")
    returned = [line.fields for line in got if line.kind == "GOT"]
    assert sorted(fields[0] for fields in returned) == [f"sync-{index:06d}" for index in range(5)]
    assert {fields[5] for fields in returned} == {"1"}


def test_mqadmin_sees_the_cluster(dev: Dev) -> None:
    """The official tool finds our broker through our name server."""
    assert dev.broker in rocketmq.mqadmin("clusterList", "-n", dev.namesrv)


def test_mqadmin_deletes_topics_and_groups(dev: Dev) -> None:
    """From brokers and name servers; a system topic stays."""
    created = rocketmq.mqadmin("updateTopic", "-n", dev.namesrv, "-c", "DefaultCluster", "-t", "Doomed")
    assert "success" in created
    rocketmq.run_client("5", "send", dev.namesrv, "Doomed", "sync", 5, "a", 30)
    rocketmq.run_client("5", "consume", dev.namesrv, "Doomed", "doomed-group", "*", 5, 90)
    words = ("-n", dev.namesrv, "-c", "DefaultCluster")
    assert "delete topic [Doomed] from NameServer success" in rocketmq.mqadmin(
        "deleteTopic", *words, "-t", "Doomed"
    )
    assert "Doomed" not in rocketmq.mqadmin("topicList", "-n", dev.namesrv).split()
    assert "delete" in rocketmq.mqadmin("deleteSubGroup", *words, "-g", "doomed-group", "-r", "true")
    assert "doomed-group" not in rocketmq.mqadmin("topicList", "-n", dev.namesrv)
    assert "conflict with system topic" in rocketmq.mqadmin("deleteTopic", *words, "-t", "TBW102")
