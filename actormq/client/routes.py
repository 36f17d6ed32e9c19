"""Which queues a topic has, and which addresses its brokers have: what name servers say, kept and read.

Source: RocketMQ TopicRouteData.java, MQClientInstance.java; client.md §1.3, §1.4.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from actormq.client.procedures import Address
from actormq.client.results import MessageQueue, queue_order
from actormq.errors import PeerError
from actormq.message import Permission
from actormq.wire import json

MASTER_ID: Final = 0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class QueueData:
    """A topic's queues on one broker."""

    broker_name: str
    read_queues: int
    write_queues: int
    permission: int


@dataclass(frozen=True, slots=True)
class BrokerData:
    """A broker's addresses by id (0 = master); ZeroMQ ones where the name server knows them (ours does)."""

    name: str
    cluster: str
    addresses: dict[int, str]
    zmq_addresses: dict[int, str]


@dataclass(frozen=True, slots=True)
class TopicRoute:
    """A name server's answer for one topic, in an order that makes equal answers compare equal."""

    queues: tuple[QueueData, ...]
    brokers: tuple[BrokerData, ...]
    order_config: str | None = None


def parse_route(body: bytes | memoryview) -> TopicRoute:
    """Return the route in the body of an answer to GET_ROUTEINFO_BY_TOPIC.

    Raises:
        PeerError: it is no route.
    """
    value = json.loads(body)
    try:
        queues = [
            QueueData(
                str(item["brokerName"]),
                int(item["readQueueNums"]),
                int(item["writeQueueNums"]),
                int(item["perm"]),
            )
            for item in value.get("queueDatas") or ()
        ]
        brokers = [_broker(item) for item in value.get("brokerDatas") or ()]
        order = value.get("orderTopicConf") or None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PeerError(f"the name server's route cannot be read: {error!r}") from error
    return TopicRoute(
        tuple(sorted(queues, key=lambda queue: queue.broker_name)),
        tuple(sorted(brokers, key=lambda broker: broker.name)),
        order,
    )


def _broker(item: dict[str, Any]) -> BrokerData:
    return BrokerData(
        str(item["brokerName"]),
        str(item.get("cluster") or ""),
        {int(key): str(address) for key, address in (item.get("brokerAddrs") or {}).items()},
        {int(key): str(address) for key, address in (item.get("zmqAddrs") or {}).items()},
    )


def borrowed_from_template(route: TopicRoute, queues_max: int) -> TopicRoute:
    """Return the route that a new topic will have: the template's (TBW102), with few queues."""
    return replace(
        route,
        queues=tuple(
            replace(data, read_queues=count, write_queues=count)
            for data in route.queues
            for count in (min(queues_max, data.read_queues),)
        ),
    )


def publish_queues(topic: str, route: TopicRoute) -> tuple[MessageQueue, ...]:
    """Return the queues to send to: on brokers that are writable and have a master.

    Raises:
        PeerError: the order configuration is not ``broker:queues;…``.
    """
    if route.order_config:
        return tuple(_ordered_queues(topic, route.order_config))
    masters = {broker.name for broker in route.brokers if MASTER_ID in broker.addresses}
    return tuple(
        MessageQueue(topic, data.broker_name, queue_id)
        for data in route.queues
        if data.permission & Permission.WRITE and data.broker_name in masters
        for queue_id in range(data.write_queues)
    )


def _ordered_queues(topic: str, order_config: str) -> Iterable[MessageQueue]:
    for part in filter(None, order_config.split(";")):
        broker_name, _, count = part.partition(":")
        if not count.isdigit():
            raise PeerError(f"the order configuration of {topic} has {part!r} where broker:queues should be")
        for queue_id in range(int(count)):
            yield MessageQueue(topic, broker_name, queue_id)


def subscribe_queues(topic: str, route: TopicRoute) -> tuple[MessageQueue, ...]:
    """Return the queues to consume from, in the order that all clients share."""
    return tuple(
        sorted(
            (
                MessageQueue(topic, data.broker_name, queue_id)
                for data in route.queues
                if data.permission & Permission.READ
                for queue_id in range(data.read_queues)
            ),
            key=queue_order,
        )
    )


class RouteTable:
    """The routes of all topics of interest.

    Safe for threads: the tables are replaced whole, by one thread at a time; readers take what is there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._routes: dict[str, TopicRoute] = {}
        self._publish: dict[str, tuple[MessageQueue, ...]] = {}
        self._brokers: dict[str, BrokerData] = {}
        self._masters: dict[str, Address] = {}

    def update(self, topic: str, route: TopicRoute) -> bool:
        """Keep a route; return whether it differs from the one before."""
        queues = publish_queues(topic, route)
        with self._lock:
            if self._routes.get(topic) == route:
                return False
            self._replace({**self._routes, topic: route}, {**self._publish, topic: queues})
        return True

    def forget(self, topic: str) -> None:
        """Drop a topic's route, and the brokers that only it named."""
        with self._lock:
            self._replace(_without(self._routes, topic), _without(self._publish, topic))

    def _replace(self, routes: dict[str, TopicRoute], publish: dict[str, tuple[MessageQueue, ...]]) -> None:
        # Brokers first: whoever finds a queue finds its broker's address, too.
        self._brokers = {broker.name: broker for route in routes.values() for broker in route.brokers}
        self._masters = {
            broker.name: Address(f"tcp://{address}")
            for broker in self._brokers.values()
            if (address := master_address(broker)) is not None
        }
        self._routes = routes
        self._publish = publish

    def topics(self) -> list[str]:
        return list(self._routes)

    def route(self, topic: str) -> TopicRoute | None:
        return self._routes.get(topic)

    def publish_queues(self, topic: str) -> tuple[MessageQueue, ...]:
        """Return the queues to send to; empty when the topic is unknown or not writable anywhere."""
        return self._publish.get(topic, ())

    def subscribe_queues(self, topic: str) -> tuple[MessageQueue, ...]:
        route = self._routes.get(topic)
        return subscribe_queues(topic, route) if route else ()

    def brokers(self) -> list[BrokerData]:
        return list(self._brokers.values())

    def broker(self, broker_name: str) -> BrokerData | None:
        return self._brokers.get(broker_name)

    def tcp_master(self, broker_name: str) -> Address | None:
        """Return the TCP address of a broker's master, whatever else it may be talked to by."""
        return self._masters.get(broker_name)

    def brokers_of(self, topic: str) -> list[BrokerData]:
        route = self._routes.get(topic)
        return list(route.brokers) if route else []


def _without(table: dict[str, T], key: str) -> dict[str, T]:
    return {name: value for name, value in table.items() if name != key}


def master_address(broker: BrokerData) -> str | None:
    return broker.addresses.get(MASTER_ID)


def reading_address(broker: BrokerData, broker_id: int) -> tuple[int, str] | None:
    """Return id and address to read from: the wanted one, the next slave, or any."""
    for wanted in (broker_id, broker_id + 1) if broker_id != MASTER_ID else (broker_id,):
        if wanted in broker.addresses:
            return wanted, broker.addresses[wanted]
    return next(iter(broker.addresses.items()), None)
