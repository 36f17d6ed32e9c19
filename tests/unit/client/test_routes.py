"""Routes: what name servers answer, as queues and addresses."""

from __future__ import annotations

import threading

import pytest

from actormq.client.results import MessageQueue
from actormq.client.routes import (
    RouteTable,
    TopicRoute,
    borrowed_from_template,
    parse_route,
    publish_queues,
    reading_address,
    subscribe_queues,
)
from actormq.errors import PeerError
from actormq.wire import json


def route(*brokers: tuple[str, int, int, int], **more: object) -> TopicRoute:
    """Return a route of (name, read queues, write queues, permission)."""
    value = {
        "queueDatas": [
            {"brokerName": name, "readQueueNums": read, "writeQueueNums": write, "perm": permission}
            for name, read, write, permission in brokers
        ],
        "brokerDatas": [
            {"brokerName": name, "cluster": "c", "brokerAddrs": {"0": f"{name}:1", "1": f"{name}:2"}}
            for name, *_ in brokers
        ],
        **more,
    }
    return parse_route(json.dumps(value))


def queues(*places: tuple[str, int]) -> tuple[MessageQueue, ...]:
    return tuple(MessageQueue("t", name, queue) for name, queue in places)


def test_publish_queues_are_those_of_writable_brokers_with_a_master() -> None:
    found = publish_queues("t", route(("b", 4, 1, 6), ("a", 1, 2, 2), ("c", 9, 9, 4)))
    assert found == queues(("a", 0), ("a", 1), ("b", 0))


def test_a_broker_without_master_cannot_be_sent_to() -> None:
    only_slave = parse_route(
        b'{"queueDatas":[{"brokerName":"a","readQueueNums":1,"writeQueueNums":1,"perm":6}],'
        b'"brokerDatas":[{"brokerName":"a","cluster":"c","brokerAddrs":{1:"a:2"}}]}'
    )
    assert publish_queues("t", only_slave) == ()
    assert subscribe_queues("t", only_slave) == queues(("a", 0))


def test_subscribe_queues_are_those_of_readable_brokers() -> None:
    found = subscribe_queues("t", route(("b", 2, 1, 6), ("a", 1, 2, 2), ("c", 1, 9, 4)))
    assert found == queues(("b", 0), ("b", 1), ("c", 0))


def test_an_order_configuration_decides_alone() -> None:
    ordered = route(("a", 8, 8, 6), orderTopicConf="b:1;a:2")
    assert publish_queues("t", ordered) == queues(("b", 0), ("a", 0), ("a", 1))
    with pytest.raises(PeerError, match="order configuration"):
        publish_queues("t", route(("a", 8, 8, 6), orderTopicConf="nonsense"))


def test_a_new_topic_gets_few_queues_of_the_template() -> None:
    """client.md §1.3: min(wanted, template's read queues)."""
    borrowed = borrowed_from_template(route(("a", 8, 8, 7), ("b", 2, 2, 7)), 4)
    assert [len(publish_queues("t", borrowed)), borrowed.queues[1].write_queues] == [6, 2]


def test_equal_answers_in_another_order_change_nothing() -> None:
    table = RouteTable()
    assert table.update("t", route(("a", 1, 1, 6), ("b", 1, 1, 6)))
    assert not table.update("t", route(("b", 1, 1, 6), ("a", 1, 1, 6)))
    assert table.update("t", route(("a", 2, 2, 6)))


def test_brokers_that_no_route_names_are_forgotten() -> None:
    table = RouteTable()
    table.update("t", route(("a", 1, 1, 6)))
    table.update("u", route(("b", 1, 1, 6)))
    table.update("t", route(("b", 1, 1, 6)))
    assert table.broker("a") is None
    assert [broker.name for broker in table.brokers()] == ["b"]
    table.forget("u")
    table.forget("t")
    assert table.brokers() == []
    assert table.publish_queues("t") == ()


def test_the_name_server_of_ours_tells_zeromq_addresses() -> None:
    body = (
        b'{"queueDatas":[],"brokerDatas":[{"brokerName":"a","cluster":"c","brokerAddrs":{"0":"h:1"},'
        b'"zmqAddrs":{"0":"h:2"}}]}'
    )
    assert parse_route(body).brokers[0].zmq_addresses == {0: "h:2"}


def test_where_to_read() -> None:
    """client.md §1.4: the exact id, else the next slave, else any."""
    [broker] = route(("a", 1, 1, 6)).brokers
    assert reading_address(broker, 0) == (0, "a:1")
    assert reading_address(broker, 1) == (1, "a:2")
    assert reading_address(broker, 7) == (0, "a:1")


@pytest.mark.parametrize("body", [b"[]", b'{"queueDatas":[{}]}', b'{"brokerDatas":[3]}', b"nope"])
def test_what_is_no_route_is_refused(body: bytes) -> None:
    with pytest.raises(PeerError):
        parse_route(body)


def test_threads_may_update_different_topics_at_the_same_time() -> None:
    """No update is lost, and a reader that finds a queue finds its broker."""
    table = RouteTable()
    begin = threading.Barrier(8)

    def update(number: int) -> None:
        begin.wait(30)
        for index in range(200):
            topic = f"t{number}-{index}"
            table.update(topic, route((f"b{number}", 1, 1, 6)))
            assert all(table.broker(queue.broker_name) for queue in table.publish_queues(topic))

    threads = [threading.Thread(target=update, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(table.topics()) == 1_600
    assert len(table.brokers()) == 8
