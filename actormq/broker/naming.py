"""naming: the name server's request codes, spoken over `actormq.broker.routes`: command in, command out.

Pure: the role (`actormq.actors.nameserver`) owns sockets, clock and the KV file.  Bodies have fastjson's
field order and no blanks: the Go client splits the text at commas and colons.

Source: RocketMQ namesrv/processor/{ClientRequest,Default}Processor.java, kvconfig/KVConfigManager.java.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from actormq.broker.routes import (
    BrokerGroup,
    BrokerIdentity,
    Connection,
    QueueData,
    Registration,
    Route,
    RouteTable,
)
from actormq.config import NameServerConfig
from actormq.errors import PeerError, RequestError, ResponseCode
from actormq.wire import headers, json
from actormq.wire.command import RemotingCommand
from actormq.wire.headers import RequestCode, bool_field, int_field
from actormq.wire.properties import format_properties, parse_properties
from actormq.wire.registration import DataVersion, as_array, as_object, decode_registration

FAQ: Final = "\nSee https://rocketmq.apache.org/docs/bestPractice/06FAQ for further details."
ORDER_NAMESPACE: Final = "ORDER_TOPIC_CONFIG"
VERSION_STANDARD_JSON: Final = 401
"""4.9.4: from here on clients read quoted map keys; the Go client (317) needs them bare."""
KV_ENTRIES_MAX: Final = 100_000
BODY_BYTES_MAX: Final = 1024 * 1024
"""Of any request but a broker's registration: to read more takes seconds, and everybody waits."""
UNIT: Final = 1
UNIT_SUBSCRIBED: Final = 2

CHANGEABLE: Final = {
    "deleteTopicWithBrokerRegistration": "delete_topic_with_broker_registration",
    "enableAllTopicList": "enable_all_topic_list",
    "enableTopicList": "enable_topic_list",
    "orderMessageEnable": "order_message_enable",
    "returnOrderTopicConfigToBroker": "return_order_topic_config",
    "supportActingMaster": "support_acting_master",
}
"""What UPDATE_NAMESRV_CONFIG may change, all booleans, until the next start.

An allow-list: RocketMQ's deny-list let anyone on the network write files (CVE-2023-33246, CVE-2023-37582)."""


@dataclass(frozen=True, slots=True)
class _Request:
    command: RemotingCommand
    connection: Connection
    now_ms: int

    @property
    def fields(self) -> dict[str, str]:
        return self.command.fields

    def answer(self, body: bytes = b"", fields: dict[str, str] | None = None) -> RemotingCommand:
        return RemotingCommand.response_to(self.command, ResponseCode.SUCCESS, fields=fields, body=body)


class NameService:
    """Answers every request that a name server is sent.

    Args:
        kv: what the KV file held, empty for none.
        zmq_endpoint: ``host:port`` for native clients that came by TCP and ask.
    Raises:
        FrameError: `kv` cannot be read.
    """

    def __init__(self, config: NameServerConfig, *, kv: bytes = b"", zmq_endpoint: str | None = None) -> None:
        self.routes = RouteTable(config)
        self.zmq_endpoint = zmq_endpoint
        self._kv = _load_kv(kv)
        self._kv_changed = False
        self._served = self._table()

    def handle(self, command: RemotingCommand, connection: Connection, now_ms: int) -> RemotingCommand | None:
        """Return the answer to `command`; None when it is one-way or itself an answer."""
        if command.is_response:
            return None
        answer = self._answer(_Request(command, connection, now_ms))
        return None if command.is_oneway else answer

    def _answer(self, request: _Request) -> RemotingCommand:
        command = request.command
        serve = self._served.get(command.code)
        if serve is None:
            code, remark = ResponseCode.REQUEST_CODE_NOT_SUPPORTED, headers.not_supported(command.code)
            return RemotingCommand.response_to(command, code, remark)
        try:
            headers.check(command.code, command.fields)
            if len(command.body) > BODY_BYTES_MAX and command.code != RequestCode.REGISTER_BROKER:
                raise RequestError(
                    ResponseCode.SYSTEM_ERROR, f"a body of {len(command.body)} bytes is too large"
                )
            return serve(request)
        except PeerError as error:
            return RemotingCommand.response_to(command, error.response_code, error.remark)

    def on_connection_closed(self, connection: Connection) -> None:
        """Forget the brokers that registered over `connection`, at once."""
        self.routes.disconnected(connection)

    def expire(self, now_ms: int) -> list[Connection]:
        """Forget silent brokers; return their connections, to be closed."""
        return self.routes.expire(now_ms)

    def take_kv(self) -> bytes | None:
        """Return the KV file's new text when it has changed since the last call."""
        if not self._kv_changed:
            return None
        self._kv_changed = False
        return json.dumps({"configTable": self._kv})

    def _table(self) -> dict[int, Callable[[_Request], RemotingCommand]]:
        code = RequestCode
        return {
            code.PUT_KV_CONFIG: self._put_kv,
            code.GET_KV_CONFIG: self._get_kv,
            code.DELETE_KV_CONFIG: self._delete_kv,
            code.GET_KVLIST_BY_NAMESPACE: self._list_kv,
            code.REGISTER_BROKER: self._register,
            code.UNREGISTER_BROKER: self._unregister,
            code.QUERY_DATA_VERSION: self._query_version,
            code.BROKER_HEARTBEAT: self._heartbeat,
            code.GET_ROUTEINFO_BY_TOPIC: self._route,
            code.GET_BROKER_CLUSTER_INFO: self._clusters,
            code.GET_BROKER_MEMBER_GROUP: self._members,
            code.GET_ALL_TOPIC_LIST_FROM_NAMESERVER: self._all_topics,
            code.GET_TOPICS_BY_CLUSTER: self._topics_of_cluster,
            code.GET_SYSTEM_TOPIC_LIST_FROM_NS: self._system_topics,
            code.GET_UNIT_TOPIC_LIST: lambda request: self._flagged(request, UNIT),
            code.GET_HAS_UNIT_SUB_TOPIC_LIST: lambda request: self._flagged(request, UNIT_SUBSCRIBED),
            code.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST: lambda request: self._flagged(
                request, UNIT_SUBSCRIBED, UNIT
            ),
            code.DELETE_TOPIC_IN_NAMESRV: self._delete_topic,
            code.REGISTER_TOPIC_IN_NAMESRV: self._register_topic,
            code.WIPE_WRITE_PERM_OF_BROKER: self._wipe_permission,
            code.ADD_WRITE_PERM_OF_BROKER: self._add_permission,
            code.UPDATE_NAMESRV_CONFIG: self._update_config,
            code.GET_NAMESRV_CONFIG: self._get_config,
            code.GET_ENDPOINTS: self._endpoints,
        }

    # --- brokers ---------------------------------------------------------------------------------------

    def _register(self, request: _Request) -> RemotingCommand:
        fields, body = request.fields, request.command.body
        crc = int_field(fields, "bodyCrc32", 0)
        if crc and zlib.crc32(body) & 0x7FFF_FFFF != crc:
            raise RequestError(ResponseCode.SYSTEM_ERROR, "crc32 not match")
        registered = self.routes.register(_registration(request.command), request.connection, request.now_ms)
        if registered is None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, "register broker failed")
        answer = {"haServerAddr": registered.ha_address, "masterAddr": registered.master_address}
        orders = self._kv.get(ORDER_NAMESPACE) if self.routes.config.return_order_topic_config else None
        return request.answer(
            json.dumps({"table": orders}) if orders else b"",
            {key: value for key, value in answer.items() if value is not None},
        )

    def _unregister(self, request: _Request) -> RemotingCommand:
        self.routes.unregister([_identity(request.fields)])
        return request.answer()

    def _query_version(self, request: _Request) -> RemotingCommand:
        who = _identity(request.fields)
        asked = DataVersion.from_json(json.loads(request.command.body or b"{}"))
        known = self.routes.version(who)
        changed = self.routes.changed(who, asked)
        self.routes.seen(who.cluster, who.address, request.now_ms)
        return request.answer(json.dumps(known.to_json()) if known else b"", {"changed": _java(changed)})

    def _heartbeat(self, request: _Request) -> RemotingCommand:
        self.routes.seen(request.fields["clusterName"], request.fields["brokerAddr"], request.now_ms)
        return request.answer()

    # --- routes and lists ------------------------------------------------------------------------------

    def _route(self, request: _Request) -> RemotingCommand:
        topic = request.fields["topic"]
        route = self.routes.route(topic)
        if route is None:
            remark = f"No topic route info in name server for the topic: {topic}{FAQ}"
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, remark)
        orders = self._kv.get(ORDER_NAMESPACE, {}) if self.routes.config.order_message_enable else {}
        standard = request.command.version >= VERSION_STANDARD_JSON or bool_field(
            request.fields, "acceptStandardJsonOnly"
        )
        write = json.dumps if standard else json.dumps_fastjson
        return request.answer(write(_route_json(route, orders.get(topic))))

    def _clusters(self, request: _Request) -> RemotingCommand:
        info = {
            "brokerAddrTable": {name: _group_json(group) for name, group in self.routes.groups.items()},
            "clusterAddrTable": {name: sorted(members) for name, members in self.routes.clusters.items()},
        }
        return request.answer(json.dumps_fastjson(info))

    def _members(self, request: _Request) -> RemotingCommand:
        cluster, name = request.fields["clusterName"], request.fields["brokerName"]
        group = self.routes.groups.get(name)
        members = {
            "brokerAddrs": dict(sorted(group.addresses.items())) if group else {},
            "brokerName": name,
            "cluster": cluster,
        }
        return request.answer(json.dumps_fastjson({"brokerMemberGroup": members}))

    def _all_topics(self, request: _Request) -> RemotingCommand:
        self._enabled(self.routes.config.enable_all_topic_list)
        return _topic_list(request, self.routes.topics)

    def _topics_of_cluster(self, request: _Request) -> RemotingCommand:
        self._enabled(self.routes.config.enable_topic_list)
        return _topic_list(request, self.routes.topics_of_cluster(request.fields["cluster"]))

    def _flagged(self, request: _Request, flag: int, without: int = 0) -> RemotingCommand:
        self._enabled(self.routes.config.enable_topic_list)
        return _topic_list(request, self.routes.topics_with_flag(flag, without))

    def _enabled(self, switch: bool) -> None:
        if not switch:
            raise RequestError(ResponseCode.SYSTEM_ERROR, "disable")

    def _system_topics(self, request: _Request) -> RemotingCommand:
        names: list[str] = []
        for cluster, members in self.routes.clusters.items():
            names += (cluster, *sorted(members))
        addresses = (group.addresses.values() for group in self.routes.groups.values() if group.addresses)
        return _topic_list(request, names, next((next(iter(group)) for group in addresses), None))

    # --- topics and permissions ------------------------------------------------------------------------

    def _delete_topic(self, request: _Request) -> RemotingCommand:
        self.routes.delete_topic(request.fields["topic"], request.fields.get("clusterName"))
        return request.answer()

    def _register_topic(self, request: _Request) -> RemotingCommand:
        route = as_object(json.loads(request.command.body or b"{}"))
        items = as_array(route.get("queueDatas"))
        self.routes.register_topic(request.fields["topic"], [_queues(item) for item in items])
        return request.answer()

    def _wipe_permission(self, request: _Request) -> RemotingCommand:
        touched = self.routes.wipe_write_permission(request.fields["brokerName"])
        return request.answer(fields={"wipeTopicCount": str(touched)})

    def _add_permission(self, request: _Request) -> RemotingCommand:
        touched = self.routes.add_write_permission(request.fields["brokerName"])
        return request.answer(fields={"addTopicCount": str(touched)})

    # --- KV and configuration --------------------------------------------------------------------------

    def _put_kv(self, request: _Request) -> RemotingCommand:
        fields = request.fields
        if sum(map(len, self._kv.values())) >= KV_ENTRIES_MAX:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"more than {KV_ENTRIES_MAX} KV entries")
        self._kv.setdefault(fields["namespace"], {})[fields["key"]] = fields["value"]
        self._kv_changed = True
        return request.answer()

    def _get_kv(self, request: _Request) -> RemotingCommand:
        namespace, key = request.fields["namespace"], request.fields["key"]
        value = self._kv.get(namespace, {}).get(key)
        if value is None:
            remark = f"No config item, Namespace: {namespace} Key: {key}"
            raise RequestError(ResponseCode.QUERY_NOT_FOUND, remark)
        return request.answer(fields={"value": value})

    def _delete_kv(self, request: _Request) -> RemotingCommand:
        entries = self._kv.get(request.fields["namespace"], {})
        self._kv_changed |= entries.pop(request.fields["key"], None) is not None
        return request.answer()

    def _list_kv(self, request: _Request) -> RemotingCommand:
        namespace = request.fields["namespace"]
        if namespace not in self._kv:
            raise RequestError(ResponseCode.QUERY_NOT_FOUND, f"No config item, Namespace: {namespace}")
        return request.answer(json.dumps({"table": self._kv[namespace]}))

    def _update_config(self, request: _Request) -> RemotingCommand:
        text = bytes(request.command.body).decode("utf-8", "replace")
        wanted = parse_properties(text)
        if not wanted.keys() <= CHANGEABLE.keys():
            raise RequestError(ResponseCode.NO_PERMISSION, "Can not update config in black list.")
        changes = {CHANGEABLE[key]: value.lower() == "true" for key, value in wanted.items()}
        self.routes.config = replace(self.routes.config, **changes)  # type: ignore[arg-type]  # all booleans
        return request.answer()

    def _get_config(self, request: _Request) -> RemotingCommand:
        config = self.routes.config
        shown = {key: _java(getattr(config, name)) for key, name in CHANGEABLE.items()}
        shown |= {"listenPort": str(config.port), "scanNotActiveBrokerInterval": str(config.scan_interval_ms)}
        return request.answer(format_properties(dict(sorted(shown.items()))).encode())

    def _endpoints(self, request: _Request) -> RemotingCommand:
        return request.answer(fields={"zmq": self.zmq_endpoint} if self.zmq_endpoint else {})


# --- commands to rules and back --------------------------------------------------------------------------


def _load_kv(text: bytes) -> dict[str, dict[str, str]]:
    table = as_object(as_object(json.loads(text or b"{}")).get("configTable"))
    return {
        namespace: {key: str(item) for key, item in as_object(entries).items()}
        for namespace, entries in table.items()
    }


def _identity(fields: dict[str, str]) -> BrokerIdentity:
    return BrokerIdentity(
        cluster=fields["clusterName"],
        name=fields["brokerName"],
        address=fields["brokerAddr"],
        broker_id=int_field(fields, "brokerId"),
    )


def _registration(command: RemotingCommand) -> Registration:
    fields = command.fields
    body = decode_registration(command.body, command.version, compressed=bool_field(fields, "compressed"))
    acting = bool_field(fields, "enableActingMaster") if "enableActingMaster" in fields else None
    return Registration(
        broker=_identity(fields),
        ha_address=fields["haServerAddr"],
        body=body,
        expiry_ms=max(int_field(fields, "heartbeatTimeoutMillis", 0), 0) or None,
        zone=fields.get("__ZONE_NAME"),
        acting_master=acting,
        zmq_address=fields.get("zmqAddr"),
    )


def _queues(item: Any) -> QueueData:
    value = as_object(item)
    # The Go client writes topicSynFlag.
    flag = value.get("topicSysFlag", value.get("topicSynFlag", 0))
    numbers = [value.get(key, 0) for key in ("readQueueNums", "writeQueueNums", "perm")] + [flag]
    if any(type(number) is not int for number in numbers) or not isinstance(value.get("brokerName"), str):
        raise RequestError(ResponseCode.SYSTEM_ERROR, "queueDatas cannot be read")
    read_queues, write_queues, permission, sys_flag = numbers
    return QueueData(
        broker=value["brokerName"],
        read_queues=read_queues,
        write_queues=write_queues,
        permission=permission,
        sys_flag=sys_flag,
    )


def _route_json(route: Route, order: str | None) -> dict[str, Any]:
    value: dict[str, Any] = {
        "brokerDatas": [_group_json(group) for group in route.groups],
        "filterServerTable": route.filter_servers,
    }
    if order is not None:
        value["orderTopicConf"] = order
    value["queueDatas"] = [
        {
            "brokerName": queues.broker,
            "perm": queues.permission,
            "readQueueNums": queues.read_queues,
            "topicSysFlag": queues.sys_flag,
            "writeQueueNums": queues.write_queues,
        }
        for queues in route.queues
    ]
    if route.mappings is not None:
        value["topicQueueMappingByBroker"] = route.mappings
    return value


def _group_json(group: BrokerGroup) -> dict[str, Any]:
    value: dict[str, Any] = {
        "brokerAddrs": dict(sorted(group.addresses.items())),
        "brokerName": group.name,
        "cluster": group.cluster,
        "enableActingMaster": group.acting_master,
    }
    if group.zmq_addresses:
        # Text keys in every encoding: fastjson2 (5.5.0) cannot skip a field it does not know over bare ones.
        value["zmqAddrs"] = {str(key): address for key, address in sorted(group.zmq_addresses.items())}
    if group.zone is not None:
        value["zoneName"] = group.zone
    return value


def _topic_list(request: _Request, topics: Any, address: str | None = None) -> RemotingCommand:
    value: dict[str, Any] = {} if address is None else {"brokerAddr": address}
    return request.answer(json.dumps({**value, "topicList": list(topics)}))


def _java(value: bool) -> str:
    return "true" if value else "false"
