"""Registering with name servers: the request's bytes, and when which name server is asked.

A broker registers every 30 s; a name server that did not answer is tried again sooner.  When a few topics
change, they alone are told at once: of 10,000 topics the whole registration is 1.6 MB, too much for each
one that is created.  Requests to one name server never overlap: what changed meanwhile goes with the next.
Source: RocketMQ BrokerOuterAPI.java (registerTopic, too), BrokerController.java, RegisterBrokerBody.java.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

SINGLE_TOPICS_MAX: Final = 16
"""Of more changed topics a name server is told with all others."""
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
        topic["perm"] = _permission(topic["perm"], broker_permission)
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


def topic_request(who: BrokerIdentity, topic: TopicEntry, broker_permission: int) -> RemotingCommand:
    """Return REGISTER_TOPIC_IN_NAMESRV for a new or changed topic."""
    queues = {
        "brokerName": who.name,
        "readQueueNums": topic.read_queues,
        "writeQueueNums": topic.write_queues,
        "perm": _permission(topic.perm, broker_permission),
        "topicSysFlag": topic.sys_flag,
    }
    body = json.dumps({"queueDatas": [queues], "brokerDatas": [], "filterServerTable": {}})
    return RemotingCommand.request(RequestCode.REGISTER_TOPIC_IN_NAMESRV, {"topic": topic.name}, body)


def _permission(topic: int, broker: int) -> int:
    """Return what a topic allows on a broker that is perhaps not readable or writable itself."""
    return topic if broker & 6 == 6 else topic & broker


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
    whole_due_ms: int = 0
    """When it is to hear of all topics again, whether they have changed or not."""
    asked: int = -1
    """The change number that the request under way carries; -1 = none is."""
    news: list[TopicEntry] | None = None
    """The topics that the request under way is about; None = all."""
    known: int = -1
    """The last change number that it has acknowledged."""
    failures: int = 0
    takes_single: bool = True
    """Older ones of RocketMQ (4.9) know no single topics."""


class Registrar:
    """When which name server is asked; monotonic times.  Changes of the topics are counted."""

    def __init__(self, addresses: Iterable[str], interval_ms: int) -> None:
        self.interval_ms = interval_ms
        self.change = 0
        self._news: dict[int, Sequence[TopicEntry]] = {}
        """The topics of the last changes, where these were all."""
        self._servers = {address: _NameServer(address) for address in dict.fromkeys(addresses)}

    def changed(self, topics: Sequence[TopicEntry] = ()) -> int:
        """The topics have changed: everybody is asked at once.  Returns the number of this change.

        Args:
            topics: all that is new; none when something else has changed, too.
        """
        self.change += 1
        if topics:
            self._news[self.change] = topics
        self._news.pop(self.change - SINGLE_TOPICS_MAX, None)
        for server in self._servers.values():
            server.due_ms = 0
        return self.change

    def due(self, now_ms: int) -> list[str]:
        """Return the name servers to ask now; each must end in `answered`, `failed` or `takes_all_only`."""
        due = [s for s in self._servers.values() if s.asked < 0 and s.due_ms <= now_ms]
        for server in due:
            server.asked = self.change
            server.news = self._news_for(server, now_ms)
        return [server.address for server in due]

    def _news_for(self, server: _NameServer, now_ms: int) -> list[TopicEntry] | None:
        if server.known < 0 or server.failures or not server.takes_single or now_ms >= server.whole_due_ms:
            return None
        latest: dict[str, TopicEntry] = {}
        for change in range(server.known + 1, self.change + 1):
            topics = self._news.get(change)
            if topics is None:
                return None
            latest.update((topic.name, topic) for topic in topics)
        return list(latest.values()) if 0 < len(latest) <= SINGLE_TOPICS_MAX else None

    def news(self, address: str) -> list[TopicEntry] | None:
        """Return what a name server that is due must hear; None: everything."""
        return self._servers[address].news

    def answered(self, address: str, now_ms: int) -> bool:
        """It has registered us.  True when it had not before, or its last answer was a failure."""
        server = self._servers[address]
        news = server.known < 0 or server.failures > 0
        if server.news is None:
            server.whole_due_ms = now_ms + self.interval_ms
        server.known, server.asked, server.failures = server.asked, -1, 0
        server.due_ms = server.whole_due_ms if server.known == self.change else now_ms
        return news

    def takes_all_only(self, address: str, now_ms: int) -> None:
        """It knows no single topics: it is due again at once."""
        server = self._servers[address]
        server.takes_single = False
        server.asked = -1
        server.due_ms = now_ms

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
