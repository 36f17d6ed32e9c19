"""One client: its identity, connections and routes, and the heartbeats that keep it a member.

Producers and consumers hang on a session; several may share one.  All of it runs in the loop's thread,
except where it says otherwise.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from itertools import count
from random import Random
from typing import Any, Protocol, TypeVar

from actormq.client import requests
from actormq.client.direct import Direct, Reply
from actormq.client.directory import Directory
from actormq.client.identifiers import UniqueKeys, client_id
from actormq.client.links import host_and_port
from actormq.client.network import Network
from actormq.client.procedures import Address, Ask, Procedure, Signal, Together, Wait
from actormq.client.routes import BrokerData
from actormq.client.settings import ClientSettings, parse_endpoint
from actormq.client.tasks import Loop, Task
from actormq.clock import Clock, SystemClock
from actormq.errors import (
    ActorMQError,
    ClientClosed,
    ClientError,
    ConfigError,
    ConnectFailed,
    PeerError,
    ResponseCode,
    RouteNotFound,
)
from actormq.wire.codes import RequestCode
from actormq.wire.command import Language, RemotingCommand
from actormq.wire.headers import not_supported

T = TypeVar("T")
log = logging.getLogger("actormq.client")


class Member(Protocol):
    """A consumer, as its session sees it."""

    group: str

    def heartbeat_data(self) -> dict[str, Any]: ...

    def topics(self) -> list[str]: ...

    def on_route_changed(self, topic: str) -> None: ...

    def on_members_changed(self) -> None: ...

    def on_connected(self, broker_name: str) -> None:
        """There is a new connection to a broker, perhaps because it was started anew."""
        ...

    def on_lease_renewed(self, broker_name: str, until_ms: int) -> None:
        """A native broker has heard us: our locks there are good until `until_ms`."""
        ...

    def on_request(self, command: RemotingCommand, reply: Callable[[RemotingCommand], None]) -> bool:
        """Serve a broker's request for this group; False = not one of ours."""
        ...


class Session:
    """See the module."""

    def __init__(
        self, loop: Loop, url: str, settings: ClientSettings | None = None, clock: Clock | None = None
    ) -> None:
        self.loop = loop
        self.settings = settings or ClientSettings()
        self.clock = clock or SystemClock()
        self.random = Random()  # noqa: S311 - spreads load, guards nothing
        endpoint = parse_endpoint(url)
        own_address = _own_address(endpoint.name_servers[0])
        self.client_id = client_id(
            own_address, os.getpid(), self.clock.monotonic_ns(), self.settings.instance
        )
        self.keys = UniqueKeys(socket.inet_aton(own_address), os.getpid(), self.random.getrandbits(32))
        self.directory = Directory(
            endpoint.name_servers, allows_zmq=endpoint.allows_zmq, timeout_ms=self.settings.request_timeout_ms
        )
        # A producer, too, is a member of the brokers that it has just learnt of: over ZeroMQ a client that is
        # silent while it waits for an answer would be forgotten, and its answer with it.
        self.directory.on_changed = lambda: loop.call_soon(self._keep_hearts)
        self._incarnation = self.random.getrandbits(32)
        self._link_numbers = count(1)
        self.network = Network(loop, self, self.clock, self.settings, self._identity)
        self.direct = Direct(
            self.settings, self.clock, self._on_direct_request, lambda: loop.call_soon(self._watch_direct)
        )
        self._watches_direct = False
        self._producers: dict[str, int] = {}
        self._members: dict[str, Member] = {}
        self._tasks: set[Task[Any]] = set()
        self._hearts: dict[str, _Heart] = {}
        self._look_at_routes = Signal()
        self._is_started = False
        self.is_closed = False
        self.at_close: list[Callable[[], None]] = []
        """Called when the session closes, also when its thread dies: nothing may wait for ever."""

    def _identity(self) -> bytes:
        """Return an identity for one ZeroMQ connection; never used twice, so no dead one is in its way."""
        return f"{self.client_id}#{self._incarnation:08x}.{next(self._link_numbers)}".encode()[:255]

    # -- running procedures

    def spawn(
        self, procedure: Procedure[T], on_done: Callable[[T | None, BaseException | None], None] | None = None
    ) -> Task[T]:
        """Run a procedure beside others; it is abandoned when the session closes."""

        def done(value: T | None, error: BaseException | None) -> None:
            self._tasks.discard(task)
            if on_done is not None:
                on_done(value, error)
            elif error is not None and not isinstance(error, ClientClosed):
                log.error("a client procedure ended with an error", exc_info=error)

        task: Task[T] = Task(self.loop, self.network, procedure, done)
        if self.is_closed:
            procedure.close()
            done(None, ClientClosed("the client is closed"))
            return task
        self._tasks.add(task)
        return task.start()

    def start(self) -> None:
        """Begin to keep routes and memberships; a second call does nothing."""
        if not self._is_started:
            self._is_started = True
            self.spawn(self._keep_routes())

    def close(self) -> None:
        """Abandon all procedures and connections.  Members have said good-bye before."""
        self.is_closed = True
        for task in list(self._tasks):
            task.cancel()
        self.network.close()
        self.direct.close()
        for call in list(self.at_close):
            call()

    def now_ms(self) -> int:
        """Milliseconds of the monotonic clock."""
        return self.clock.monotonic_ns() // 1_000_000

    # -- members

    def add_producer(self, group: str) -> None:
        """Count a producer in; its group is named in heartbeats from now on."""
        self._producers[group] = self._producers.get(group, 0) + 1
        self.beat_now()

    async def remove_producer(self, group: str) -> None:
        """Count a producer out; the last one of its group says good-bye to the brokers."""
        self._producers[group] -= 1
        if not self._producers[group]:
            del self._producers[group]
            await self._say_goodbye(producer_group=group)

    def add_member(self, member: Member) -> None:
        """Take a consumer in.

        Raises:
            ConfigError: the group has one in this client already: brokers tell members by client id.
        """
        if member.group in self._members:
            raise ConfigError(f"this client already has a consumer of group {member.group}")
        self._members[member.group] = member

    async def remove_member(self, member: Member) -> None:
        """Let a consumer go; brokers are told, so that others take its queues at once."""
        self._members.pop(member.group, None)
        await self._say_goodbye(consumer_group=member.group)

    async def _say_goodbye(
        self, *, producer_group: str | None = None, consumer_group: str | None = None
    ) -> None:
        command = partial(
            requests.goodbye, self.client_id, producer_group=producer_group, consumer_group=consumer_group
        )
        connected = set(self.network.open_addresses())
        await Together(
            [
                _quietly(Ask(heart.door, command(), self.settings.request_timeout_ms))
                for heart in self._hearts.values()
                if heart.door in connected
            ]
        )

    # -- routes

    def look_at_routes(self) -> None:
        """Ask now for the topics that have no route yet."""
        self._look_at_routes.set()

    async def _keep_routes(self) -> None:
        refresh_all_at_ms = self.now_ms() + self.settings.route_interval_ms
        while True:
            is_due = self.now_ms() >= refresh_all_at_ms
            if is_due:
                refresh_all_at_ms = self.now_ms() + self.settings.route_interval_ms
            wanted = {topic for member in self._members.values() for topic in member.topics()}
            table = self.directory.table
            for topic in sorted(wanted.union(table.topics()) if is_due else wanted):
                if is_due or table.route(topic) is None:
                    await self.refresh_route(topic)
            self._keep_hearts()
            patience_ms = max(1, refresh_all_at_ms - self.now_ms())
            if any(table.route(topic) is None for topic in wanted):
                patience_ms = min(patience_ms, self.settings.unknown_route_interval_ms)
            await Wait(self._look_at_routes, patience_ms)

    async def refresh_route(self, topic: str) -> None:
        """Ask for a topic's route and tell the consumers if it changed; a route that is gone is kept."""
        try:
            has_changed = await self.directory.refresh(topic)
        except RouteNotFound:
            return
        except (ClientError, PeerError) as error:
            log.warning("no route for %s: %s", topic, error)
            return
        if has_changed:
            self._keep_hearts()
            for member in list(self._members.values()):
                member.on_route_changed(topic)

    # -- heartbeats

    def _keep_hearts(self) -> None:
        """Have one heart beating for every broker address that the routes name."""
        targets = {
            address: (broker, broker_id)
            for broker, broker_id, address in self.directory.all_brokers(masters_only=not self._members)
        }
        for address in set(self._hearts) - set(targets):
            self._hearts.pop(address).task.cancel()
        if not self._members and not self._producers:
            return
        for address, (broker, broker_id) in targets.items():
            heart = self._hearts.get(address)
            if heart is None:
                heart = self._hearts[address] = _Heart(address, broker, broker_id)
                heart.task = self.spawn(self._beat(heart))
            heart.broker, heart.broker_id = broker, broker_id

    async def _beat(self, heart: _Heart) -> None:
        while True:
            try:
                await self.beat_once(heart)
                interval_ms = (
                    self.settings.lease_interval_ms
                    if heart.is_native
                    else self.settings.heartbeat_interval_ms
                )
            except (ClientError, PeerError) as error:
                log.warning("no heartbeat to %s: %s", heart.address, error)
                interval_ms = self.settings.lease_interval_ms
            await Wait(heart.wanted, interval_ms)

    async def beat_once(self, heart: _Heart) -> None:
        """Tell one broker who we are and what we want.

        Raises:
            ClientError: it did not hear it.
        """
        if not self._producers and not self._members:
            return
        heart.is_beating = True
        asked_ms = self.now_ms()
        try:
            heart.door = await self.directory.door(heart.broker, heart.broker_id, heart.address)
            answer = await Ask(
                heart.door, requests.heartbeat(self._heartbeat_data()), self.settings.request_timeout_ms
            )
        finally:
            heart.is_beating = False
        requests.require_success(answer, heart.door)
        if heart.is_native:
            for member in list(self._members.values()):
                member.on_lease_renewed(heart.broker.name, asked_ms + self.settings.lease_valid_ms)

    def lock_valid_ms(self, broker_name: str, lock_valid_ms: int) -> int:
        """Return how long a lock of this broker may be believed in: natively, no longer than our lease."""
        native = any(heart.broker.name == broker_name and heart.is_native for heart in self._hearts.values())
        return min(lock_valid_ms, self.settings.lease_valid_ms) if native else lock_valid_ms

    def _heartbeat_data(self) -> dict[str, Any]:
        return {
            "clientID": self.client_id,
            "producerDataSet": [{"groupName": group} for group in sorted(self._producers)],
            "consumerDataSet": [member.heartbeat_data() for member in self._members.values()],
            "heartbeatFingerprint": 0,
            "withoutSub": False,
        }

    def beat_now(self) -> None:
        """Send heartbeats to all brokers at once: something changed."""
        self._keep_hearts()
        for heart in self._hearts.values():
            heart.wanted.set()

    async def beat_and_wait(self) -> None:
        """Send heartbeats to all brokers; return when each has answered, failed or been given up."""
        self._keep_hearts()
        await Together([_quietly(self.beat_once(heart)) for heart in list(self._hearts.values())])

    # -- connections of calling threads

    def _watch_direct(self) -> None:
        """Close what no thread needs any more, now and then for as long as there is anything."""
        if not self._watches_direct and not self.is_closed:
            self._watches_direct = True
            self.loop.call_later(self.settings.direct_idle_ms / 2, self._close_idle)

    def _close_idle(self) -> None:
        self._watches_direct = False
        if self.direct.close_idle():
            self._watch_direct()

    def _on_direct_request(self, command: RemotingCommand, reply: Reply) -> None:
        """From any thread."""
        self.loop.call_soon(lambda: self.on_request(command, reply))

    # -- what the network says

    def on_link_open(self, address: Address) -> None:
        """A new connection is a new membership: introduce ourselves before the broker misses us."""
        self._beat_at(address)
        for heart in self._hearts.values():
            if heart.door == address:
                for member in list(self._members.values()):
                    member.on_connected(heart.broker.name)

    def on_link_closed(self, address: Address, error: ActorMQError) -> None:
        if isinstance(error, ConnectFailed):
            self.directory.forget_door(address)
        self._beat_at(address)

    def _beat_at(self, address: Address) -> None:
        for heart in self._hearts.values():
            if heart.door == address and not heart.is_beating:
                heart.wanted.set()

    def on_request(self, command: RemotingCommand, reply: Callable[[RemotingCommand], None]) -> None:
        """Serve a broker's request."""
        if command.code == RequestCode.NOTIFY_CONSUMER_IDS_CHANGED:
            member = self._members.get(command.fields.get("consumerGroup", ""))
            if member is not None:
                member.on_members_changed()
            return
        group = command.fields.get("consumerGroup") or command.fields.get("group") or ""
        member = self._members.get(group)
        if member is not None and member.on_request(command, reply):
            return
        if not command.is_oneway:
            known = command.code in _FOR_GROUPS
            code = ResponseCode.SYSTEM_ERROR if known else ResponseCode.REQUEST_CODE_NOT_SUPPORTED
            remark = f"this client has no consumer of group {group}" if known else not_supported(command.code)
            reply(answer_to(command, code, remark))


_FOR_GROUPS = frozenset(
    {
        RequestCode.RESET_CONSUMER_CLIENT_OFFSET,
        RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT,
        RequestCode.GET_CONSUMER_RUNNING_INFO,
        RequestCode.CONSUME_MESSAGE_DIRECTLY,
    }
)


class _Heart:
    """The membership at one broker address."""

    __slots__ = ("address", "broker", "broker_id", "door", "is_beating", "task", "wanted")

    def __init__(self, address: str, broker: BrokerData, broker_id: int) -> None:
        self.address = address
        self.broker = broker
        self.broker_id = broker_id
        self.door = Address("")
        self.is_beating = False
        self.wanted = Signal()
        self.task: Task[None]

    @property
    def is_native(self) -> bool:
        """Whether it beats over ZeroMQ, where membership is a lease."""
        return self.door.startswith("zmq://")


def answer_to(
    command: RemotingCommand, code: int, remark: str | None = None, body: bytes = b""
) -> RemotingCommand:
    """Return an answer to a broker's request."""
    answer = RemotingCommand.response_to(command, code, remark, body=body)
    answer.language = Language.PYTHON
    return answer


async def _quietly(procedure: Any) -> None:
    """Await; trouble in the world does not matter here."""
    try:
        await procedure
    except (ClientError, PeerError) as error:
        log.debug("ignored: %s", error)


def _own_address(name_server: Address) -> str:
    """Return this host's IPv4 address on the way to the name server; nothing is sent."""
    host, port = host_and_port(name_server)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"
