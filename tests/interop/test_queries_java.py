"""The official mqadmin (5.5.0) and Java client ask us for single messages."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from actormq_process import Dev, running_dev
from interop import rocketmq

from actormq import Producer
from actormq.client.results import SendResult
from actormq.message import java_hash

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    rocketmq.require_java()
    with running_dev(gateways=3) as broker:
        yield broker


@pytest.fixture(scope="module")
def sent(dev: Dev) -> list[SendResult]:
    """Three messages of one key, one with a key of the same hash."""
    assert java_hash("Queried#Aa") == java_hash("Queried#BB")
    with Producer(f"rocketmq://{dev.namesrv}", group="asked") as producer:
        keys = [["Aa", f"single-{number}"] for number in range(3)] + [["BB"]]
        return [
            producer.send("Queried", b"body %d" % number, keys=names, tags="red")
            for number, names in enumerate(keys)
        ]


def ids(printed: str) -> list[str]:
    """Return the first word of each line of a table, where it is an id."""
    return re.findall(r"^([0-9A-F]{32})\s", printed, re.MULTILINE)


def test_by_key(dev: Dev, sent: list[SendResult]) -> None:
    """All that have it, none of those that only hash alike."""
    printed = rocketmq.mqadmin("queryMsgByKey", "-n", dev.namesrv, "-t", "Queried", "-k", "Aa")
    assert sorted(ids(printed)) == sorted(one.message_id for one in sent[:3]), printed
    printed = rocketmq.mqadmin("queryMsgByKey", "-n", dev.namesrv, "-t", "Queried", "-k", "single-1")
    assert ids(printed) == [sent[1].message_id], printed


@pytest.mark.parametrize("command", ["queryMsgByUniqueKey", "queryMsgById"])
def test_by_id(dev: Dev, sent: list[SendResult], command: str) -> None:
    """The producer's id and the broker's lead to the same message with all its fields."""
    one = sent[2]
    name = one.message_id if command == "queryMsgByUniqueKey" else one.offset_message_id
    printed = rocketmq.mqadmin(command, "-n", dev.namesrv, "-t", "Queried", "-i", name or "")
    fields = dict(re.findall(r"^([\w ]+?):\s+(.*?)\s*$", printed, re.MULTILINE))
    assert fields["Topic"] == "Queried", printed
    assert fields["Keys"] == "[Aa single-2]"
    assert (fields["Queue ID"], fields["Queue Offset"]) == (str(one.queue.queue_id), str(one.queue_offset))


def test_by_queue_offset(dev: Dev, sent: list[SendResult]) -> None:
    """Through a pull of RocketMQ's tools."""
    one = sent[0]
    printed = rocketmq.mqadmin(
        "queryMsgByOffset", "-n", dev.namesrv, "-t", "Queried", "-b", one.queue.broker_name,
        "-i", str(one.queue.queue_id), "-o", str(one.queue_offset),
    )  # fmt: skip
    assert one.message_id in printed, printed
