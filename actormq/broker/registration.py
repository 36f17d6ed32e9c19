"""Registering with name servers: the request's bytes, and when which name server is asked.

A broker registers at once when its topics change and every 30 s anyway; a name server that did not answer is
tried again sooner.  Requests to one name server never overlap: what changed meanwhile goes with the next.
Source: RocketMQ BrokerOuterAPI.java, BrokerController.java, RegisterBrokerBody.java.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

from actormq.broker.tables import TopicEntry
from actormq.broker.topics import topic_to_json
from actormq.config import BrokerConfig
from actormq.wire import json
from actormq.wire.codes import RequestCode
from actormq.wire.command import RemotingCommand
from actormq.wire.registration import DataVersion

RETRY_MS: Final = 1_000
RETRY_MS_MAX: Final = 10_000
LOST_MS: Final = 200
"""A name server forgets who registered over a connection that ended (RocketMQ's and ours)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerIdentity:
    """Who registers."""

    name: str
    cluster: str
    broker_id: int
    address: str
    """Where clients find us: ``host:port`` of the TCP front."""
    ha_address: str
    zmq_address: str | None = None
    """Where native clients find us; other name servers than ours ignore it."""

    @classmethod
    def of(cls, config: BrokerConfig) -> BrokerIdentity:
        """Return who a broker is, by the ports that it really has."""
        host, port, zmq_port = config.advertised_host, config.gateway.port, config.gateway.zmq_port
        return cls(
            name=config.name,
            cluster=config.cluster,
            broker_id=config.broker_id,
            address=f"{host}:{port}",
            ha_address=f"{host}:{port + 1}",
            zmq_address=f"{host}:{zmq_port}" if zmq_port else None,
        )


def topics_wrapper(entries: Iterable[TopicEntry], version: DataVersion) -> dict[str, Any]:
    """Return TopicConfigAndMappingSerializeWrapper: the body of 21, and a part of 103's."""
    return {
        "dataVersion": version.to_json(),
        "mappingDataVersion": DataVersion().to_json(),
        "topicConfigTable": {entry.name: topic_to_json(entry) for entry in entries},
        "topicQueueMappingDetailMap": {},
        "topicQueueMappingInfoMap": {},
    }


def registration_body(entries: Iterable[TopicEntry], version: DataVersion, broker_permission: int) -> bytes:
    """Return the body of 103: a broker that is not readable or writable takes that from all its topics."""
    wrapper = topics_wrapper(entries, version)
    for topic in wrapper["topicConfigTable"].values():
        if broker_permission & 6 != 6:
            topic["perm"] &= broker_permission
    return json.dumps({"filterServerList": [], "topicConfigSerializeWrapper": wrapper})


def register_request(who: BrokerIdentity, body: bytes) -> RemotingCommand:
    """Return REGISTER_BROKER."""
    fields = {
        "brokerName": who.name,
        "brokerAddr": who.address,
        "clusterName": who.cluster,
        "haServerAddr": who.ha_address,
        "brokerId": str(who.broker_id),
        "enableActingMaster": "false",
        "compressed": "false",
        "bodyCrc32": str(crc32(body) & 0x7FFFFFFF),
    }
    if who.zmq_address:
        fields["zmqAddr"] = who.zmq_address
    return RemotingCommand.request(RequestCode.REGISTER_BROKER, fields, body)


def unregister_request(who: BrokerIdentity) -> RemotingCommand:
    """Return UNREGISTER_BROKER."""
    fields = {
        "brokerName": who.name,
        "brokerAddr": who.address,
        "clusterName": who.cluster,
        "brokerId": str(who.broker_id),
    }
    return RemotingCommand.request(RequestCode.UNREGISTER_BROKER, fields)


@dataclass(slots=True)
class _NameServer:
    address: str
    due_ms: int = 0
    asked: int = -1
    """The change number that the request under way carries; -1 = none is."""
    known: int = -1
    """The last change number that it has acknowledged."""
    failures: int = 0


class Registrar:
    """When which name server is asked; monotonic times.  Changes of the topics are counted."""

    def __init__(self, addresses: Iterable[str], interval_ms: int) -> None:
        self.interval_ms = interval_ms
        self.change = 0
        self._servers = {address: _NameServer(address) for address in dict.fromkeys(addresses)}

    def changed(self) -> int:
        """The topics have changed: everybody is asked at once.  Returns the number of this change."""
        self.change += 1
        for server in self._servers.values():
            server.due_ms = 0
        return self.change

    def due(self, now_ms: int) -> list[str]:
        """Return the name servers to ask now; each must end in `answered` or `failed`."""
        due = [s for s in self._servers.values() if s.asked < 0 and s.due_ms <= now_ms]
        for server in due:
            server.asked = self.change
        return [server.address for server in due]

    def answered(self, address: str, now_ms: int) -> bool:
        """It has registered us.  True when it had not before, or its last answer was a failure."""
        server = self._servers[address]
        news = server.known < 0 or server.failures > 0
        server.known, server.asked, server.failures = server.asked, -1, 0
        server.due_ms = now_ms + self.interval_ms if server.known == self.change else now_ms
        return news

    def failed(self, address: str, now_ms: int) -> bool:
        """It did not answer, or refused.  True the first time in a row."""
        server = self._servers[address]
        server.asked = -1
        server.failures += 1
        server.due_ms = now_ms + min(RETRY_MS * 2 ** min(server.failures - 1, 10), RETRY_MS_MAX)
        return server.failures == 1

    def lost(self, address: str, now_ms: int) -> None:
        """Its connection ended, and our registration with it: ask again soon, not at the next interval."""
        server = self._servers[address]
        server.known = -1
        if server.failures < 2:  # else it ends every connection, and the back-off of `failed` holds
            server.due_ms = now_ms + LOST_MS

    def settled(self, change: int) -> bool:
        """Whether every name server has that change, or has failed to answer since it was made."""
        return all(server.known >= change or server.failures for server in self._servers.values())

    def wake_ms(self) -> int | None:
        """Return when somebody is due."""
        return min((s.due_ms for s in self._servers.values() if s.asked < 0), default=None)

    @property
    def addresses(self) -> list[str]:
        return list(self._servers)
