"""Who is connected: producers and consumers, what their groups subscribe to, who must be told of a change.

A member is keyed (gateway, incarnation, connection) → client id: a close removes only its own key, so a
client that reconnected before its old connection was seen to close stays a member.
Source: RocketMQ ConsumerManager.java, ConsumerGroupInfo.java, ProducerManager.java,
ClientManageProcessor.java.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from actormq.broker.bodies import read_body
from actormq.broker.tables import (
    ConsumerGroupOffline,
    ConsumerGroupOnline,
    SubscriptionEntry,
    SubscriptionGone,
)
from actormq.errors import ResponseCode

BROADCASTING: Final = "BROADCASTING"
CLUSTERING: Final = "CLUSTERING"
PASSIVE: Final = "CONSUME_PASSIVELY"
LAST_OFFSET: Final = "CONSUME_FROM_LAST_OFFSET"
LATE_MS: Final = 1_000
"""Whoever calls `expire` wakes when the first lease ends; if later than this, it was stopped itself."""
_CONSUME_TYPES: Final = ("CONSUME_ACTIVELY", "CONSUME_PASSIVELY", "CONSUME_POP")
_MODELS: Final = (BROADCASTING, CLUSTERING)
_WHERES: Final = (
    LAST_OFFSET,
    "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST",
    "CONSUME_FROM_MIN_OFFSET",
    "CONSUME_FROM_MAX_OFFSET",
    "CONSUME_FROM_FIRST_OFFSET",
    "CONSUME_FROM_TIMESTAMP",
)


class ConnectionKey(NamedTuple):
    """One client connection of one life of one gateway."""

    gateway: str
    incarnation: int
    connection_id: int


@dataclass(slots=True)
class Client:
    """A client as its last heartbeat on one connection described it."""

    key: ConnectionKey
    client_id: str
    peer: str
    language: str
    version: int
    expires_ms: int
    """When silence ends it; monotonic."""
    lease_ms: int
    seen_wall_ms: int
    producer_groups: set[str] = field(default_factory=set)
    consumer_groups: set[str] = field(default_factory=set)


class SubscriptionData(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a consumer wants of one topic."""

    topic: str
    sub_string: str = "*"
    sub_version: int = 0
    expression_type: str | None = "TAG"
    tags_set: list[str] = []
    code_set: list[int] = []
    class_filter_mode: bool = False


class _Producer(msgspec.Struct, rename="camel"):
    group_name: str


class _Consumer(msgspec.Struct, rename="camel"):
    group_name: str
    consume_type: str | int | None = PASSIVE
    message_model: str | int | None = CLUSTERING
    consume_from_where: str | int | None = LAST_OFFSET
    unit_mode: bool = False
    subscription_data_set: list[SubscriptionData] = []


class Heartbeat(msgspec.Struct, rename="camel"):
    """HeartbeatData: the body of code 34."""

    client_id: str = msgspec.field(name="clientID")
    producer_data_set: list[_Producer] = []
    consumer_data_set: list[_Consumer] = []


def heartbeat_from_json(value: Any) -> Heartbeat:
    """Return the heartbeat in a parsed body.  Raises: RequestError(SYSTEM_ERROR): it is none."""
    return read_body(value, Heartbeat, "heartbeat", ResponseCode.SYSTEM_ERROR)


def _named(value: str | int | None, names: tuple[str, ...], default: str) -> str:
    """Read an enum as fastjson does: its name, or its ordinal."""
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else default
    return value if value in names else default


@dataclass(slots=True)
class ConsumerGroup:
    """One online group: its members and what it subscribes to."""

    name: str
    consume_type: str
    model: str
    consume_from_where: str
    members: dict[ConnectionKey, Client] = field(default_factory=dict)
    subscriptions: dict[str, SubscriptionData] = field(default_factory=dict)

    def client_ids(self) -> list[str]:
        """Return each member's client id once, in the order in which they came."""
        return list(dict.fromkeys(client.client_id for client in self.members.values()))


TableEntry: TypeAlias = ConsumerGroupOnline | ConsumerGroupOffline | SubscriptionEntry | SubscriptionGone


@dataclass(slots=True)
class MembersChange:
    """Entries to publish, in order, and groups whose members must be told that something changed."""

    entries: list[TableEntry] = field(default_factory=list)
    changed_groups: list[str] = field(default_factory=list)

    def add(self, other: MembersChange) -> None:
        self.entries += other.entries
        self.changed_groups += [g for g in other.changed_groups if g not in self.changed_groups]


class Members:
    """Every connected client, by connection and by group."""

    def __init__(self) -> None:
        self.clients: dict[ConnectionKey, Client] = {}
        self.groups: dict[str, ConsumerGroup] = {}
        self.producers: dict[str, dict[ConnectionKey, Client]] = {}
        self._look_at_ms: int | None = None

    def heartbeat(self, client: Client, beat: Heartbeat) -> MembersChange:
        """Take over what `client` says; a group it no longer names keeps it until 35, close or expiry.

        Raises: nothing: groups and names were checked before.
        """
        change = MembersChange()
        known = self.clients.get(client.key)
        if known is not None and known.client_id != client.client_id:
            change.add(self.close(client.key))
            known = None
        if known is not None:
            known.expires_ms, known.lease_ms = client.expires_ms, client.lease_ms
            known.seen_wall_ms = client.seen_wall_ms
            known.language, known.version = client.language, client.version
            client = known
        self.clients[client.key] = client
        if self._look_at_ms is None or client.expires_ms < self._look_at_ms:
            self._look_at_ms = client.expires_ms
        for producer in beat.producer_data_set:
            client.producer_groups.add(producer.group_name)
            self.producers.setdefault(producer.group_name, {})[client.key] = client
        for consumer in beat.consumer_data_set:
            change.add(self._consume(client, consumer))
        return change

    def _consume(self, client: Client, data: _Consumer) -> MembersChange:
        change = MembersChange()
        model = _named(data.message_model, _MODELS, CLUSTERING)
        group = self.groups.get(data.group_name)
        if group is None:
            group = ConsumerGroup(data.group_name, PASSIVE, model, LAST_OFFSET)
            self.groups[group.name] = group
            change.entries.append(ConsumerGroupOnline(group.name, model))
        elif group.model != model:
            change.entries.append(ConsumerGroupOnline(group.name, model))
        group.model = model
        group.consume_type = _named(data.consume_type, _CONSUME_TYPES, PASSIVE)
        group.consume_from_where = _named(data.consume_from_where, _WHERES, LAST_OFFSET)
        joined = client.key not in group.members
        group.members[client.key] = client
        client.consumer_groups.add(group.name)
        differs = self._subscribe(group, data.subscription_data_set, change)
        if joined or differs:
            change.changed_groups.append(group.name)
        return change

    def _subscribe(self, group: ConsumerGroup, wanted: list[SubscriptionData], change: MembersChange) -> bool:
        """Merge subscriptions by highest version; True when a topic was added or removed."""
        differs = False
        for data in wanted:
            known = group.subscriptions.get(data.topic)
            differs |= known is None
            if known is None or data.sub_version > known.sub_version:
                group.subscriptions[data.topic] = data
                change.entries.append(subscription_entry(group, data))
        topics = {data.topic for data in wanted}
        for topic in [topic for topic in group.subscriptions if topic not in topics]:
            del group.subscriptions[topic]
            change.entries.append(SubscriptionGone(group.name, topic))
            differs = True
        return differs

    def unregister(
        self, key: ConnectionKey, client_id: str, producer_group: str | None, consumer_group: str | None
    ) -> MembersChange:
        """Serve code 35: the client leaves the groups named, on this connection."""
        change = MembersChange()
        client = self.clients.get(key)
        if client is None or client.client_id != client_id:
            return change
        if producer_group in client.producer_groups:
            self._leave_producers(client, producer_group)
        if consumer_group in client.consumer_groups:
            change = self._leave(client, consumer_group)
        return change

    def close(self, key: ConnectionKey) -> MembersChange:
        """Remove the client of one connection from all its groups; an unknown key is no error."""
        change = MembersChange()
        client = self.clients.pop(key, None)
        if client is None:
            return change
        for group in sorted(client.producer_groups):
            self._leave_producers(client, group)
        for group in sorted(client.consumer_groups):
            change.add(self._leave(client, group))
        return change

    def close_gateway(self, gateway: str, living_incarnation: int) -> MembersChange:
        """Remove every client of `gateway` but those of its living incarnation (0 = none lives)."""
        change = MembersChange()
        for key in list(self.clients):
            if key.gateway == gateway and key.incarnation != living_incarnation:
                change.add(self.close(key))
        return change

    def expire(self, now_ms: int) -> MembersChange:
        """Remove clients that have been silent for too long.

        A process that was stopped finds every lease over, while the heartbeats wait in its mailbox: then the
        leases begin anew.
        """
        change = MembersChange()
        silent = [client for client in self.clients.values() if client.expires_ms <= now_ms]
        late = any(client.expires_ms < now_ms - LATE_MS for client in silent)
        for client in silent:
            if late:
                client.expires_ms = now_ms + client.lease_ms
            else:
                change.add(self.close(client.key))
        self._look_at_ms = min((client.expires_ms for client in self.clients.values()), default=None)
        return change

    def look_at_ms(self) -> int | None:
        """Return when `expire` has to be called next: never after the first lease ends."""
        return self._look_at_ms

    def _leave_producers(self, client: Client, group: str) -> None:
        client.producer_groups.discard(group)
        members = self.producers.get(group, {})
        members.pop(client.key, None)
        if not members:
            self.producers.pop(group, None)

    def _leave(self, client: Client, name: str) -> MembersChange:
        client.consumer_groups.discard(name)
        group = self.groups.get(name)
        if group is None or group.members.pop(client.key, None) is None:
            return MembersChange()
        if group.members:
            return MembersChange(changed_groups=[name])
        del self.groups[name]
        return MembersChange([ConsumerGroupOffline(name)])

    def notices(self, group: str) -> Iterator[ConnectionKey]:
        """Yield the connections that are told of a change in `group`: all members, none when broadcasting."""
        found = self.groups.get(group)
        if found is not None and found.model != BROADCASTING:
            yield from found.members

    def find(self, group: str, client_id: str) -> Client | None:
        """Return the member of a consumer group that has this client id; the latest connection wins."""
        found = self.groups.get(group)
        members = list(found.members.values()) if found else []
        return next((client for client in reversed(members) if client.client_id == client_id), None)


def subscription_entry(group: ConsumerGroup, data: SubscriptionData) -> SubscriptionEntry:
    """Return what the tables say of one subscription; tag codes only for plain tag expressions."""
    expression_type = data.expression_type or "TAG"
    return SubscriptionEntry(
        group=group.name,
        topic=data.topic,
        model=group.model,
        expression_type=expression_type,
        expression=data.sub_string,
        tag_codes=list(data.code_set) if expression_type == "TAG" and data.sub_string != "*" else [],
        sub_version=data.sub_version,
    )
