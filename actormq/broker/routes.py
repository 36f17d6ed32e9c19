"""routes: which broker serves which topic; the name server's tables and RocketMQ's rules for them.

Pure: times are milliseconds of one steady clock, handed in; a connection is whatever the caller
tells connections apart by.  `actormq.broker.naming` speaks the request codes over these tables.

Source: RocketMQ namesrv/routeinfo/RouteInfoManager.java.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from actormq.config import NameServerConfig
from actormq.message import Permission
from actormq.wire.registration import DataVersion, RegistrationBody, TopicConfig

Connection: TypeAlias = Hashable

MASTER_ID: Final = 0
MEMBER_TOPIC_PREFIX: Final = "rmq_sys_SYNC_BROKER_MEMBER_"
"""Routes of these topics never show a slave as master."""


@dataclass(slots=True, kw_only=True)
class QueueData:
    """One topic's queues on one broker group."""

    broker: str
    read_queues: int
    write_queues: int
    permission: int
    sys_flag: int


@dataclass(slots=True, kw_only=True)
class BrokerGroup:
    """A master and its slaves: one broker name."""

    cluster: str
    name: str
    addresses: dict[int, str] = field(default_factory=dict)
    zmq_addresses: dict[int, str] = field(default_factory=dict)
    """Where ActorMQ brokers take native clients; RocketMQ's clients never look."""
    zone: str | None = None
    acting_master: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerIdentity:
    """Who registers or leaves."""

    cluster: str
    name: str
    address: str
    broker_id: int


@dataclass(slots=True, kw_only=True)
class Live:
    """One registered broker process."""

    broker: BrokerIdentity
    seen_ms: int
    expiry_ms: int
    version: DataVersion
    connection: Connection
    ha_address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """One REGISTER_BROKER request."""

    broker: BrokerIdentity
    ha_address: str
    body: RegistrationBody
    expiry_ms: int | None = None
    zone: str | None = None
    acting_master: bool | None = None
    """None from brokers before 5.0: their slaves never speak for a group."""
    zmq_address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What a slave learns of its master; empty for a master."""

    master_address: str | None = None
    ha_address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Everything a client needs to send to or read from one topic."""

    queues: list[QueueData]
    groups: list[BrokerGroup]
    filter_servers: dict[str, tuple[str, ...]]
    mappings: dict[str, dict[str, Any]] | None


class RouteTable:
    """Topics, broker groups, clusters and who is alive."""

    def __init__(self, config: NameServerConfig) -> None:
        self.config = config
        self.topics: dict[str, dict[str, QueueData]] = {}
        self.groups: dict[str, BrokerGroup] = {}
        self.clusters: dict[str, set[str]] = {}
        self.live: dict[tuple[str, str], Live] = {}
        self.filter_servers: dict[tuple[str, str], tuple[str, ...]] = {}
        self.mappings: dict[str, dict[str, dict[str, Any]]] = {}

    # --- brokers come ----------------------------------------------------------------------------------

    def register(self, request: Registration, connection: Connection, now_ms: int) -> Registered | None:
        """Take up a broker and its topics; return None when the registration is refused.

        A broker that is not known yet and brings exactly one topic is refused: that is the increment of
        a broker which expired meanwhile, and would wipe the group's other topics from its clients' sight.
        """
        who = request.broker
        known = self.groups.get(who.name)
        if len(request.body.topics) == 1 and (known is None or who.broker_id not in known.addresses):
            return None
        if known is not None and self._older_than_holder(request, known):
            self._remove_address(known, who.address)
            self.live.pop((who.cluster, who.address), None)
            return Registered()
        group = known or BrokerGroup(cluster=who.cluster, name=who.name)
        first = not group.addresses.get(who.broker_id)
        self.groups[who.name] = group
        self.clusters.setdefault(who.cluster, set()).add(who.name)
        group.acting_master = bool(request.acting_master)
        group.zone = request.zone
        # A slave that became master keeps its address: one address has one id.
        self._remove_address(group, who.address, but=who.broker_id)
        group.addresses[who.broker_id] = who.address
        group.zmq_addresses.pop(who.broker_id, None)
        if request.zmq_address:
            group.zmq_addresses[who.broker_id] = request.zmq_address
        self._take_topics(request, group, first)
        self._take_life(request, connection, now_ms)
        return self._master_of(group, who)

    def _older_than_holder(self, request: Registration, group: BrokerGroup) -> bool:
        """Another address with the same id and a newer state version keeps its place."""
        who = request.broker
        held = group.addresses.get(who.broker_id)
        if held is None or held == who.address:
            return False
        holder = self.live.get((who.cluster, held))
        return holder is not None and holder.version.state_version > request.body.version.state_version

    def _take_topics(self, request: Registration, group: BrokerGroup, first: bool) -> None:
        """Only the master speaks for the topics, or the lowest slave of a 5.x group without one."""
        who, body = request.broker, request.body
        is_master = who.broker_id == MASTER_ID
        speaks_for_group = request.acting_master is not None and who.broker_id == min(group.addresses)
        if not is_master and not speaks_for_group:
            return
        changed = first or self.changed(who, body.version)
        if self.config.delete_topic_with_broker_registration and not body.mappings:
            self._forget_topics(who.name, self.topics_of(who.name) - {topic.name for topic in body.topics})
        read_only = not is_master and group.acting_master
        for topic in body.topics:
            if changed or who.name not in self.topics.get(topic.name, {}):
                queues = _queue_data(who.name, topic)
                if read_only:
                    queues.permission &= ~Permission.WRITE
                self.topics.setdefault(topic.name, {})[who.name] = queues
        if changed:
            for name, mapping in body.mappings.items():
                self.mappings.setdefault(name, {})[str(mapping.get("bname", who.name))] = mapping

    def _take_life(self, request: Registration, connection: Connection, now_ms: int) -> None:
        who = request.broker
        key = (who.cluster, who.address)
        self.live[key] = Live(
            broker=who,
            seen_ms=now_ms,
            expiry_ms=request.expiry_ms or self.config.broker_expiry_ms,
            version=request.body.version,
            connection=connection,
            ha_address=request.ha_address,
        )
        self.filter_servers.pop(key, None)
        if request.body.filter_servers:
            self.filter_servers[key] = request.body.filter_servers

    def _master_of(self, group: BrokerGroup, who: BrokerIdentity) -> Registered:
        address = group.addresses.get(MASTER_ID)
        if who.broker_id == MASTER_ID or address is None:
            return Registered()
        master = self.live.get((who.cluster, address))
        if master is None:
            return Registered()
        return Registered(master_address=address, ha_address=master.ha_address)

    def changed(self, who: BrokerIdentity, version: DataVersion) -> bool:
        """Whether `version` is another state of the broker's topics than the one we have."""
        known = self.version(who)
        return known is None or known != version

    def version(self, who: BrokerIdentity) -> DataVersion | None:
        """Return the state of the broker's topics that we have, None for an unknown broker."""
        live = self.live.get((who.cluster, who.address))
        return live.version if live else None

    def seen(self, cluster: str, address: str, now_ms: int) -> None:
        """Note that a registered broker is alive."""
        live = self.live.get((cluster, address))
        if live is not None:
            live.seen_ms = now_ms

    # --- brokers leave ---------------------------------------------------------------------------------

    def unregister(self, brokers: Iterable[BrokerIdentity]) -> None:
        """Forget brokers, then what only they served."""
        gone: set[str] = set()
        for who in brokers:
            self.live.pop((who.cluster, who.address), None)
            self.filter_servers.pop((who.cluster, who.address), None)
            group = self.groups.get(who.name)
            if group is None:
                gone.add(who.name)
                continue
            self._remove_address(group, who.address)
            if not group.addresses:
                gone.add(who.name)
                self._remove_group(group)
            elif group.acting_master and MASTER_ID not in group.addresses:
                self._change_permission(who.name, clear=Permission.WRITE)
        for name in gone:
            self._forget_topics(name, self.topics_of(name))

    def disconnected(self, connection: Connection) -> None:
        """Forget every broker that registered over `connection`: it closed."""
        self.unregister([live.broker for live in self.live.values() if live.connection == connection])

    def expire(self, now_ms: int) -> list[Connection]:
        """Forget brokers that were silent for too long; return their connections, to be closed."""
        silent = [live for live in self.live.values() if live.seen_ms + live.expiry_ms < now_ms]
        self.unregister([live.broker for live in silent])
        return [live.connection for live in silent]

    def _remove_address(self, group: BrokerGroup, address: str, but: int | None = None) -> None:
        for broker_id in [i for i, held in group.addresses.items() if held == address and i != but]:
            del group.addresses[broker_id]
            group.zmq_addresses.pop(broker_id, None)

    def _remove_group(self, group: BrokerGroup) -> None:
        self.groups.pop(group.name, None)
        for cluster in [name for name, members in self.clusters.items() if group.name in members]:
            self.clusters[cluster].discard(group.name)
            if not self.clusters[cluster]:
                del self.clusters[cluster]

    # --- topics ----------------------------------------------------------------------------------------

    def route(self, topic: str) -> Route | None:
        """Return where `topic` is served, None when no live broker does."""
        by_broker = self.topics.get(topic)
        groups = [self.groups[name] for name in sorted(by_broker or ()) if name in self.groups]
        if not by_broker or not groups:
            return None
        copies = [_copy(group) for group in groups]
        if self.config.support_acting_master and not topic.startswith(MEMBER_TOPIC_PREFIX):
            for group in copies:
                _promote_lowest_slave(group, by_broker[group.name])
        return Route(
            queues=[by_broker[name] for name in sorted(by_broker)],
            groups=copies,
            filter_servers=self._filters_of(groups),
            mappings=self.mappings.get(topic),
        )

    def _filters_of(self, groups: list[BrokerGroup]) -> dict[str, tuple[str, ...]]:
        if not self.filter_servers:
            return {}
        keys = [(group.cluster, address) for group in groups for address in group.addresses.values()]
        return {key[1]: self.filter_servers[key] for key in keys if key in self.filter_servers}

    def topics_of(self, broker: str) -> set[str]:
        """Return the topics that the broker group serves."""
        return {topic for topic, by_broker in self.topics.items() if broker in by_broker}

    def topics_of_cluster(self, cluster: str) -> list[str]:
        """Return the topics that any broker of `cluster` serves."""
        members = self.clusters.get(cluster, set())
        return [topic for topic, by_broker in self.topics.items() if not members.isdisjoint(by_broker)]

    def topics_with_flag(self, flag: int, without: int = 0) -> list[str]:
        """Return the topics whose system flag (as any of their brokers says) has `flag` but not `without`."""
        flags = {topic: next(iter(by_broker.values())).sys_flag for topic, by_broker in self.topics.items()}
        return [topic for topic, value in flags.items() if value & flag and not value & without]

    def register_topic(self, topic: str, queues: Iterable[QueueData]) -> None:
        """Take up one topic; brokers that we do not know end it."""
        for item in queues:
            if item.broker not in self.groups:
                return
            self.topics.setdefault(topic, {})[item.broker] = item

    def delete_topic(self, topic: str, cluster: str | None = None) -> None:
        """Forget `topic`, on the brokers of `cluster` or on all."""
        names = set(self.topics.get(topic, ())) if not cluster else self.clusters.get(cluster, set())
        for name in names:
            self._forget_topics(name, {topic})

    def _forget_topics(self, broker: str, topics: Iterable[str]) -> None:
        for topic in topics:
            by_broker = self.topics.get(topic, {})
            by_broker.pop(broker, None)
            if not by_broker:
                self.topics.pop(topic, None)
            mappings = self.mappings.get(topic, {})
            mappings.pop(broker, None)
            if not mappings:
                self.mappings.pop(topic, None)

    def wipe_write_permission(self, broker: str) -> int:
        """Stop sends to the broker through its routes; return how many topics that touched."""
        return self._change_permission(broker, clear=Permission.WRITE)

    def add_write_permission(self, broker: str) -> int:
        """Allow sends and reads through the broker's routes; return how many topics that touched."""
        return self._change_permission(broker, to=Permission.READ_WRITE)

    def _change_permission(self, broker: str, *, clear: int = 0, to: int | None = None) -> int:
        touched = [by_broker[broker] for by_broker in self.topics.values() if broker in by_broker]
        for queues in touched:
            queues.permission = (queues.permission if to is None else int(to)) & ~clear
        return len(touched)


def _queue_data(broker: str, topic: TopicConfig) -> QueueData:
    return QueueData(
        broker=broker,
        read_queues=topic.read_queues,
        write_queues=topic.write_queues,
        permission=topic.permission,
        sys_flag=topic.sys_flag,
    )


def _copy(group: BrokerGroup) -> BrokerGroup:
    return BrokerGroup(
        cluster=group.cluster,
        name=group.name,
        addresses=dict(group.addresses),
        zmq_addresses=dict(group.zmq_addresses),
        zone=group.zone,
        acting_master=group.acting_master,
    )


def _promote_lowest_slave(group: BrokerGroup, queues: QueueData) -> None:
    """Show the lowest slave of a group without master as master, for reading only."""
    if MASTER_ID in group.addresses or not group.addresses or not group.acting_master:
        return
    if not queues.permission & Permission.WRITE:
        lowest = min(group.addresses)
        for addresses in (group.addresses, group.zmq_addresses):
            if lowest in addresses:
                addresses[MASTER_ID] = addresses.pop(lowest)
