"""Administrators' questions: the bodies that RocketMQ's tools read."""

import pytest
from unit.broker.coordinator_parts import NOW, Bench

from actormq.broker.offsets import OffsetKey
from actormq.wire import json


def bench() -> Bench:
    made = Bench()
    fields = {
        "topic": "orders",
        "defaultTopic": "TBW102",
        "readQueueNums": "2",
        "writeQueueNums": "1",
        "perm": "6",
        "topicFilterType": "SINGLE_TAG",
    }
    made.good(17, fields)
    made.beat("c1", connection=1)
    made.state.commit([("g", "orders", 0, 3)], NOW)
    made.view.extents = {("orders", 0): (1, 7)}
    return made


def test_topics() -> None:
    """21, 351 and 305."""
    made = bench()
    everything = made.good(21)
    assert everything["topicConfigTable"]["orders"] == made.good(351, {"topic": "orders"})
    assert everything["topicConfigTable"]["orders"]["readQueueNums"] == 2
    assert everything["dataVersion"]["counter"] == made.state.topic_version.counter
    system = made.good(305)["topicList"]
    assert "TBW102" in system
    assert "orders" not in system
    answer = made.ask(351, {"topic": "unknown"})
    assert answer is not None
    assert answer.code == 17


def test_topic_stats() -> None:
    """202: every queue with its bounds, keyed by the text of the queue."""
    table = bench().good(202, {"topic": "orders"})["offsetTable"]
    by_queue = {json.key_object(key)["queueId"]: value for key, value in table.items()}
    assert by_queue[0] == {"minOffset": 1, "maxOffset": 7, "lastUpdateTimestamp": 1_006}
    assert by_queue[1] == {"minOffset": 0, "maxOffset": 0, "lastUpdateTimestamp": 0}
    assert json.key_object(next(iter(table))) == {"brokerName": "broker-a", "queueId": 0, "topic": "orders"}


def test_groups() -> None:
    """201, 352."""
    made = bench()
    assert made.good(201)["subscriptionGroupTable"]["g"] == made.good(352, {"group": "g"})
    answer = made.ask(352, {"group": "unknown"})
    assert answer is not None
    assert answer.code == 26


def test_consume_stats() -> None:
    """208: of the topics with offsets that the online group wants; by list, by one."""
    made = bench()
    table = made.good(208, {"consumerGroup": "g"})["offsetTable"]
    assert [json.key_object(key)["queueId"] for key in table] == [0, 1]
    assert next(iter(table.values())) == {
        "brokerOffset": 7,
        "consumerOffset": 3,
        "lastTimestamp": 1_002,
        "pullOffset": 3,
    }
    made.state.offsets.commit(OffsetKey("TBW102", "g", 0), 1, 1)
    assert len(made.good(208, {"consumerGroup": "g"})["offsetTable"]) == 2
    assert len(made.good(208, {"consumerGroup": "g", "topicList": "TBW102;gone"})["offsetTable"]) == 8
    assert made.good(208, {"consumerGroup": "g", "topic": "TBW102"})["offsetTable"] == {}
    assert made.good(208, {"consumerGroup": "unknown"})["offsetTable"] == {}


def test_connections() -> None:
    """203, 204, 328, and what is answered when nobody is there."""
    made = bench()
    consumers = made.good(203, {"consumerGroup": "g"})
    assert consumers["connectionSet"] == [
        {"clientAddr": "10.0.0.1:5", "clientId": "c1", "language": "JAVA", "version": 479}
    ]
    assert consumers["subscriptionTable"]["orders"]["subString"] == "*"
    assert (consumers["consumeType"], consumers["messageModel"]) == ("CONSUME_PASSIVELY", "CLUSTERING")
    assert len(made.good(204, {"producerGroup": "p"})["connectionSet"]) == 1
    assert made.good(328)["data"]["p"][0]["lastUpdateTimestamp"] == NOW.wall_ms
    for code, fields, expected in (
        (203, {"consumerGroup": "unknown"}, 206),
        (204, {"producerGroup": "unknown"}, 1),
        (345, {"group": "unknown", "topic": "orders"}, 206),
    ):
        answer = made.ask(code, fields)
        assert answer is not None
        assert answer.code == expected


def test_who_consumes_what() -> None:
    """300: online or with offsets; 343: from the offsets; 345: one subscription."""
    made = bench()
    made.state.groups.ensure("offline")
    made.state.commit([("offline", "orders", 1, 5)], NOW)
    assert made.good(300, {"topic": "orders"}) == {"groupList": ["g", "offline"]}
    assert made.good(343, {"group": "offline"}) == {"topicList": ["orders"]}
    assert made.good(345, {"group": "g", "topic": "orders"})["subscriptionData"]["topic"] == "orders"
    assert "subscriptionData" not in made.good(345, {"group": "g", "topic": "returns"})


def test_offsets_as_a_slave_reads_them() -> None:
    """43: the whole table."""
    assert bench().good(43)["offsetTable"] == {"orders@g": {"0": 3}}


def test_the_broker_itself() -> None:
    """26 is properties text with a version; 28 has the keys that mqadmin parses."""
    made = bench()
    answer = made.ask(26)
    assert answer is not None
    assert bytes(answer.body) == b"brokerName=broker-a\n"
    assert set(json.loads(answer.fields["version"])) == {"counter", "stateVersion", "timestamp"}
    table = made.good(28)["table"]
    assert table["runtime"] == "[ 1 days, 1 hours, 1 minutes, 1 seconds ]"
    assert (table["msgPutTotalTodayNow"], table["commitLogMaxOffset"]) == ("7", "77")
    assert table["sendThreadPoolQueueHeadWaitTimeMills"] == "0"


@pytest.mark.parametrize(("kind", "code"), [("TAG", 0), (None, 0), ("SQL92", 1)])
def test_filters_that_the_broker_would_not_apply(kind: str | None, code: int) -> None:
    """46: tags always, properties not here."""
    body = {"clientId": "c", "group": "g", "subscriptionData": {"topic": "t", "expressionType": kind}}
    answer = bench().ask(46, None, body)
    assert answer is not None
    assert answer.code == code
