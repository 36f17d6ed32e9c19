"""Administrators' questions that tables, extents and offsets answer; nothing here changes anything.

Bodies have standard JSON keys, a queue as key is its object's text: every Java peer reads that (wire.md 8).
Source: RocketMQ AdminBrokerProcessor.java, ConsumerManageProcessor.java; bodies in remoting/protocol/body.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from actormq.broker.bodies import read_body
from actormq.broker.coordinating import Coordinator, Handler
from actormq.broker.groups import group_to_json
from actormq.broker.members import Client, ConsumerGroup, SubscriptionData
from actormq.broker.offsets import OffsetKey
from actormq.broker.outbox import Caller, Now
from actormq.broker.registration import topics_wrapper
from actormq.broker.sending import group_missing
from actormq.broker.tables import TopicEntry
from actormq.broker.topics import topic_to_json
from actormq.config import BrokerConfig, FlushMode
from actormq.errors import RequestError, ResponseCode
from actormq.message import RETRY_PREFIX
from actormq.wire import json
from actormq.wire.codes import RequestCode
from actormq.wire.command import BROKER_VERSION, RemotingCommand
from actormq.wire.headers import text_field
from actormq.wire.properties import format_properties

VERSION_DESCRIPTION: Final = "V5_3_3"
_IDLE_TPS: Final = "0.0 0.0 0.0"
POOLS: Final = ("send", "pull", "query", "litePull", "ack")
"""RocketMQ's thread pools; tools ask for their queues and take a missing number for an error."""


class Admin:
    """Answers from a coordinator's state.

    Args:
        config: RocketMQ's configuration keys and their present values.
    """

    def __init__(self, state: Coordinator, config: dict[str, str], boot_wall_ms: int) -> None:
        self.state = state
        self.config = config
        self.boot_wall_ms = boot_wall_ms

    def handlers(self) -> dict[int, Handler]:
        """Return what `Coordinator.add_handlers` takes."""
        return {
            RequestCode.GET_ALL_TOPIC_CONFIG: self._all_topics,
            RequestCode.GET_TOPIC_CONFIG: self._topic,
            RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER: self._system_topics,
            RequestCode.GET_TOPIC_STATS_INFO: self._topic_stats,
            RequestCode.GET_BROKER_CONFIG: self._config,
            RequestCode.GET_BROKER_RUNTIME_INFO: self._runtime,
            RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG: self._all_groups,
            RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG: self._group,
            RequestCode.GET_ALL_CONSUMER_OFFSET: self._all_offsets,
            RequestCode.GET_CONSUMER_CONNECTION_LIST: self._consumers,
            RequestCode.GET_PRODUCER_CONNECTION_LIST: self._producers,
            RequestCode.GET_ALL_PRODUCER_INFO: self._all_producers,
            RequestCode.GET_CONSUME_STATS: self._consume_stats,
            RequestCode.QUERY_TOPIC_CONSUME_BY_WHO: self._consumers_of_topic,
            RequestCode.QUERY_TOPICS_BY_CONSUMER: self._topics_of_group,
            RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER: self._subscription,
            RequestCode.CHECK_CLIENT_CONFIG: self._check_client,
        }

    # --- topics --------------------------------------------------------------------------------------

    def _all_topics(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        topics = self.state.topics.table
        wrapper = topics_wrapper(topics.values(), self.state.topic_version)
        return _answer(request, wrapper, {"totalTopicNum": str(len(topics))})

    def _topic(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        return _answer(request, topic_to_json(self._existing(text_field(request.fields, "topic"))))

    def _existing(self, name: str) -> TopicEntry:
        entry = self.state.topics.get(name)
        if entry is None:
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, f"topic[{name}] not exist")
        return entry

    def _system_topics(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        names = [name for name in self.state.topics.table if self.state.topics.is_system(name)]
        return _answer(request, {"topicList": names})

    def _topic_stats(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        entry = self._existing(text_field(request.fields, "topic"))
        table = {}
        for queue_id in range(max(entry.read_queues, entry.write_queues)):
            low, high = self.state.view.extent(entry, queue_id)
            last_ms = self.state.view.store_time(entry, queue_id, high - 1) if high > low else 0
            table[self._queue_key(entry.name, queue_id)] = {
                "lastUpdateTimestamp": last_ms,
                "maxOffset": high,
                "minOffset": low,
            }
        return _answer(request, {"offsetTable": table, "topicPutTps": 0.0})

    def _queue_key(self, topic: str, queue_id: int) -> str:
        return json.ObjectKey.of(
            {"brokerName": self.state.settings.broker, "queueId": queue_id, "topic": topic}
        )

    # --- the broker ----------------------------------------------------------------------------------

    def _config(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        version = json.dumps({"counter": 0, "stateVersion": 0, "timestamp": self.boot_wall_ms}).decode()
        return RemotingCommand.response_to(
            request,
            ResponseCode.SUCCESS,
            fields={"version": version},
            body=format_properties(self.config).encode(),
        )

    def _runtime(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        messages = sum(
            self.state.view.extent(entry, queue_id)[1]
            for entry in self.state.topics.table.values()
            for queue_id in range(len(entry.rows))
        )
        seconds = max(0, now.wall_ms - self.boot_wall_ms) // 1000
        days, hours, minutes = seconds // 86_400, seconds // 3_600 % 24, seconds // 60 % 60
        table = {
            "bootTimestamp": str(self.boot_wall_ms),
            "brokerActive": "true",
            "brokerVersion": str(BROKER_VERSION),
            "brokerVersionDesc": VERSION_DESCRIPTION,
            "runtime": f"[ {days} days, {hours} hours, {minutes} minutes, {seconds % 60} seconds ]",
            "putTps": _IDLE_TPS,
            "getFoundTps": _IDLE_TPS,
            "getMissTps": _IDLE_TPS,
            "getTotalTps": _IDLE_TPS,
            "getTransferredTps": _IDLE_TPS,
            "getTransferedTps": _IDLE_TPS,
            "msgPutTotalTodayMorning": "0",
            "msgPutTotalYesterdayMorning": "0",
            "msgPutTotalTodayNow": str(messages),
            "msgGetTotalTodayMorning": "0",
            "msgGetTotalYesterdayMorning": "0",
            "msgGetTotalTodayNow": "0",
            "startAcceptSendRequestTimeStamp": "0",
            "pageCacheLockTimeMills": "0",
            "timerReadBehind": "0",
            "timerOffsetBehind": "0",
            "timerCongestNum": "0",
            "timerEnqueueTps": "0.0",
            "timerDequeueTps": "0.0",
        }
        for pool in POOLS:
            table[f"{pool}ThreadPoolQueueSize"] = "0"
            table[f"{pool}ThreadPoolQueueCapacity"] = "10000"
            table[f"{pool}ThreadPoolQueueHeadWaitTimeMills"] = "0"
        table["EndTransactionQueueSize"] = "0"
        table["EndTransactionThreadPoolQueueCapacity"] = "10000"
        table |= self.state.view.runtime()
        return _answer(request, {"table": table})

    # --- groups --------------------------------------------------------------------------------------

    def _all_groups(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        groups = self.state.groups.table
        wrapper = {
            "dataVersion": self.state.group_version.to_json(),
            "forbiddenTable": {},
            "subscriptionGroupTable": {name: group_to_json(config) for name, config in groups.items()},
        }
        return _answer(request, wrapper, {"totalGroupNum": str(len(groups))})

    def _group(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        name = text_field(request.fields, "group")
        config = self.state.groups.get(name)
        if config is None:
            raise group_missing(name)
        return _answer(request, group_to_json(config))

    def _all_offsets(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        offsets = self.state.offsets
        return _answer(request, {"dataVersion": offsets.version.to_json(), "offsetTable": offsets.table()})

    # --- clients -------------------------------------------------------------------------------------

    def _consumers(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        name = text_field(request.fields, "consumerGroup")
        group = self.state.members.groups.get(name)
        if group is None:
            raise RequestError(ResponseCode.CONSUMER_NOT_ONLINE, f"the consumer group[{name}] not online")
        return _answer(request, _connections(group))

    def _producers(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        name = text_field(request.fields, "producerGroup")
        members = self.state.members.producers.get(name)
        if not members:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"the producer group[{name}] not exist")
        return _answer(request, {"connectionSet": [_connection(client) for client in members.values()]})

    def _all_producers(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        producers = self.state.members.producers
        data = {
            name: [
                {**_producer(client), "lastUpdateTimestamp": client.seen_wall_ms}
                for client in members.values()
            ]
            for name, members in producers.items()
        }
        return _answer(request, {"data": data})

    def _consume_stats(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        group = text_field(request.fields, "consumerGroup")
        table: dict[str, Any] = {}
        for topic in self._stats_topics(group, request.fields):
            entry = self.state.topics.get(topic)
            if entry is not None:
                table |= {
                    self._queue_key(topic, queue_id): self._consumed(entry, group, queue_id)
                    for queue_id in range(entry.read_queues)
                }
        return _answer(request, {"consumeTps": 0.0, "offsetTable": table})

    def _stats_topics(self, group: str, fields: dict[str, str]) -> Iterable[str]:
        """Return the topics asked for: a list, one, or all with offsets that the online group still wants."""
        if fields.get("topicList"):
            return fields["topicList"].split(";")
        topics = [fields["topic"]] if fields.get("topic") else self.state.offsets.topics_of(group)
        online = self.state.members.groups.get(group)
        return [topic for topic in topics if online is None or topic in online.subscriptions]

    def _consumed(self, entry: TopicEntry, group: str, queue_id: int) -> dict[str, int]:
        low, high = self.state.view.extent(entry, queue_id)
        offset = self.state.offsets.get(OffsetKey(entry.name, group, queue_id)) or 0
        last_ms = self.state.view.store_time(entry, queue_id, offset - 1) if offset > low else 0
        return {
            "brokerOffset": high,
            "consumerOffset": offset,
            "lastTimestamp": last_ms,
            "pullOffset": offset,
        }

    def _consumers_of_topic(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        topic = text_field(request.fields, "topic")
        online = (g.name for g in self.state.members.groups.values() if topic in g.subscriptions)
        groups = dict.fromkeys([*online, *self.state.offsets.groups_of(topic)])
        return _answer(request, {"groupList": list(groups)})

    def _topics_of_group(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        group = text_field(request.fields, "group")
        return _answer(request, {"topicList": self.state.offsets.topics_of(group)})

    def _subscription(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        group = text_field(request.fields, "group")
        topic = request.fields.get("topic") or RETRY_PREFIX + group
        online = self.state.members.groups.get(group)
        if online is None:
            raise RequestError(ResponseCode.CONSUMER_NOT_ONLINE, f"the consumer group[{group}] not online")
        data = online.subscriptions.get(topic)
        body: dict[str, Any] = {"group": group, "topic": topic}
        if data is not None:
            body["subscriptionData"] = _subscription(data)
        return _answer(request, body)

    def _check_client(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        """Tags need no check; property filters are not enabled."""
        data = read_body(json.loads(request.body), dict, "client configuration").get("subscriptionData")
        expression_type = data.get("expressionType") if isinstance(data, dict) else None
        if expression_type not in (None, "", "TAG"):
            raise RequestError(
                ResponseCode.SYSTEM_ERROR,
                f"The broker does not support consumer to filter message by {expression_type}",
            )
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)


def _answer(
    request: RemotingCommand, body: dict[str, Any], fields: dict[str, str] | None = None
) -> RemotingCommand:
    return RemotingCommand.response_to(
        request, ResponseCode.SUCCESS, fields=fields, body=json.dumps_fastjson(body)
    )


def _connection(client: Client) -> dict[str, Any]:
    return {
        "clientAddr": client.peer,
        "clientId": client.client_id,
        "language": client.language,
        "version": client.version,
    }


def _producer(client: Client) -> dict[str, Any]:
    return {
        "clientId": client.client_id,
        "language": client.language,
        "remoteIP": client.peer,
        "version": client.version,
    }


def _subscription(data: SubscriptionData) -> dict[str, Any]:
    return {
        "classFilterMode": data.class_filter_mode,
        "codeSet": data.code_set,
        "expressionType": data.expression_type or "TAG",
        "subString": data.sub_string,
        "subVersion": data.sub_version,
        "tagsSet": data.tags_set,
        "topic": data.topic,
    }


def _connections(group: ConsumerGroup) -> dict[str, Any]:
    return {
        "connectionSet": [_connection(client) for client in group.members.values()],
        "consumeFromWhere": group.consume_from_where,
        "consumeType": group.consume_type,
        "messageModel": group.model,
        "subscriptionTable": {topic: _subscription(data) for topic, data in group.subscriptions.items()},
    }


def broker_properties(config: BrokerConfig) -> dict[str, str]:
    """Return RocketMQ's configuration keys and their values here (code 26)."""
    store, coordinator = config.store, config.coordinator
    flag = {True: "true", False: "false"}
    return {
        **config.other_keys,
        "autoCreateSubscriptionGroup": flag[coordinator.auto_create_groups],
        "autoCreateTopicEnable": flag[coordinator.auto_create_topics],
        "brokerClusterName": config.cluster,
        "brokerIP1": config.advertised_host,
        "brokerId": str(config.broker_id),
        "brokerName": config.name,
        "brokerPermission": str(config.permission),
        "brokerRole": "ASYNC_MASTER",
        "cleanFileForciblyEnable": flag[store.force_clean],
        "cleanResourceInterval": str(store.clean_interval_ms),
        "defaultTopicQueueNums": str(coordinator.default_topic_queues),
        "deleteFileBatchMax": str(store.delete_batch_max),
        "deleteWhen": store.delete_when,
        "diskMaxUsedSpaceRatio": str(store.disk_expire_percent),
        "diskSpaceCleanForciblyRatio": str(store.disk_force_percent),
        "diskSpaceWarningLevelRatio": str(store.disk_warning_percent),
        "fileReservedTime": str(store.retention_hours),
        "flushDiskType": "SYNC_FLUSH" if store.flush is FlushMode.SYNC else "ASYNC_FLUSH",
        "flushIntervalCommitLog": str(store.flush_interval_ms),
        "listenPort": str(config.gateway.port),
        "mappedFileSizeCommitLog": str(store.log_file_bytes),
        "mappedFileSizeConsumeQueue": str(store.queue_file_entries * 20),
        "maxMessageSize": str(store.body_bytes_max),
        "messageDelayLevel": coordinator.delay_levels,
        "namesrvAddr": ";".join(config.namesrv_addrs),
        "regionId": config.region,
        "storePathRootDir": str(store.root),
        "syncFlushTimeout": str(store.sync_flush_timeout_ms),
        "traceOn": flag[config.trace_on],
        "transientStorePoolEnable": flag[store.pool_enabled],
        "warmMapedFileEnable": flag[store.warm_files],
    }
