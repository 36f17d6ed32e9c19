"""Finding things: routes from name servers, the address at which to talk to a broker.  Procedures only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actormq.client import requests
from actormq.client.procedures import Address, Ask, Procedure
from actormq.client.results import MessageQueue
from actormq.client.routes import (
    BrokerData,
    RouteTable,
    TopicRoute,
    borrowed_from_template,
    master_address,
    parse_route,
    reading_address,
)
from actormq.errors import BrokerUnknown, ClientError, NameServerUnavailable, ResponseCode, RouteNotFound
from actormq.message import TEMPLATE_TOPIC


def _nothing() -> None:
    pass


class Directory:
    """What a client knows of the world, and how it asks for more.

    Lives as long as the client; read by any thread (see `RouteTable`).
    """

    def __init__(self, name_servers: Sequence[Address], *, allows_zmq: bool, timeout_ms: int) -> None:
        self.table = RouteTable()
        self._name_servers = list(name_servers)
        self._good = 0
        self.allows_zmq = allows_zmq
        self._timeout_ms = timeout_ms
        self._doors: dict[str, Address] = {}
        self.on_changed: Callable[[], None] = _nothing
        """Called when routes have changed; by the thread that asked."""

    # -- routes

    async def _ask_name_servers(self, topic: str) -> TopicRoute:
        """Return the route of a topic from the name server that answered last, or the next one that does."""
        failures: list[ClientError] = []
        for step in range(len(self._name_servers)):
            index = (self._good + step) % len(self._name_servers)
            address = self._name_servers[index]
            try:
                answer = await Ask(address, requests.route(topic), self._timeout_ms)
            except ClientError as error:
                failures.append(error)
                continue
            self._good = index
            if answer.code == ResponseCode.TOPIC_NOT_EXIST:
                raise RouteNotFound(f"no name server knows topic {topic}: create it, or check its name")
            return parse_route(requests.require_success(answer, address).body)
        reasons = "; ".join(str(failure) for failure in failures)
        raise NameServerUnavailable(f"no name server answered: is one running there? ({reasons})")

    async def refresh(self, topic: str) -> bool:
        """Ask for a topic's route; return whether it changed.

        Raises:
            RouteNotFound, NameServerUnavailable, RequestRefused, PeerError.
        """
        return self._learn(topic, await self._ask_name_servers(topic))

    def _learn(self, topic: str, route: TopicRoute) -> bool:
        has_changed = self.table.update(topic, route)
        if has_changed:
            self.on_changed()
        return has_changed

    async def publish_queues(self, topic: str, queues_wanted: int) -> tuple[MessageQueue, ...]:
        """Return the queues to send to, asking when unknown; a new topic gets the template's brokers.

        Raises:
            RouteNotFound: the topic is unknown and cannot be created on demand, or nothing is writable.
            NameServerUnavailable, RequestRefused, PeerError.
        """
        if not self.table.publish_queues(topic):
            try:
                await self.refresh(topic)
            except RouteNotFound:
                await self._borrow_template(topic, queues_wanted)
        queues = self.table.publish_queues(topic)
        if not queues:
            raise RouteNotFound(f"topic {topic} has no writable queue: is its broker's master running?")
        return queues

    async def _borrow_template(self, topic: str, queues_wanted: int) -> None:
        try:
            template = await self._ask_name_servers(TEMPLATE_TOPIC)
        except RouteNotFound:
            raise RouteNotFound(
                f"topic {topic} does not exist and brokers do not create topics on demand: create it first"
            ) from None
        self._learn(topic, borrowed_from_template(template, queues_wanted))

    # -- brokers

    async def master_of(self, broker_name: str) -> Address:
        """Return where to talk to a broker's master.

        Raises:
            BrokerUnknown: no route names it.
        """
        broker = self.table.broker(broker_name)
        address = master_address(broker) if broker else None
        if broker is None or address is None:
            raise BrokerUnknown(f"no route names a master of broker {broker_name}")
        return await self.door(broker, 0, address)

    def known_master(self, broker_name: str) -> Address | None:
        """Return what `master_of` does, or None where it would have to ask, or raise."""
        broker = self.table.broker(broker_name)
        address = master_address(broker) if broker else None
        if broker is None or address is None:
            return None
        if not self.allows_zmq:
            return Address(f"tcp://{address}")
        if 0 in broker.zmq_addresses:
            return Address(f"zmq://{broker.zmq_addresses[0]}")
        return self._doors.get(address)

    async def reader_of(self, broker_name: str, broker_id: int) -> tuple[int, Address]:
        """Return which of a broker's addresses to read from, preferably that of `broker_id`.

        Raises:
            BrokerUnknown: no route names it.
        """
        broker = self.table.broker(broker_name)
        found = reading_address(broker, broker_id) if broker else None
        if broker is None or found is None:
            raise BrokerUnknown(f"no route names an address of broker {broker_name}")
        return found[0], await self.door(broker, *found)

    async def door(self, broker: BrokerData, broker_id: int, address: str) -> Address:
        """Return the connection to use for a broker's TCP address.

        Over ZeroMQ where this client may and the broker does: the route says so, or the broker is asked once.
        A RocketMQ broker does not know the question: it is talked to over TCP.
        """
        tcp = Address(f"tcp://{address}")
        if not self.allows_zmq:
            return tcp
        if broker_id in broker.zmq_addresses:
            return Address(f"zmq://{broker.zmq_addresses[broker_id]}")
        known = self._doors.get(address)
        if known is None:
            known = self._doors[address] = await self._ask_for_door(tcp)
        return known

    async def _ask_for_door(self, tcp: Address) -> Address:
        answer = await Ask(tcp, requests.endpoints(), self._timeout_ms)
        zmq = answer.fields.get("zmq")
        return Address(f"zmq://{zmq}") if answer.code == ResponseCode.SUCCESS and zmq else tcp

    def forget_door(self, address: Address) -> None:
        """Ask again next time: the broker at `address` may have come back with another endpoint."""
        for tcp, door in list(self._doors.items()):
            if door == address:
                del self._doors[tcp]

    def all_brokers(self, *, masters_only: bool) -> list[tuple[BrokerData, int, str]]:
        """Return every address that the routes name, or the masters' alone."""
        return [
            (broker, broker_id, address)
            for broker in self.table.brokers()
            for broker_id, address in broker.addresses.items()
            if broker_id == 0 or not masters_only
        ]

    def any_broker_of(self, topic: str, choice: int) -> Procedure[tuple[int, Address]]:
        """Return a procedure that gives one address of a broker of `topic`.

        Raises (in the procedure):
            BrokerUnknown: the topic has no route.
        """
        brokers = self.table.brokers_of(topic)
        return self.reader_of(brokers[choice % len(brokers)].name if brokers else "(none)", 0)
