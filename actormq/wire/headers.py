"""Every request code, described once: name, number, typed fields, permission it needs, role that serves it.

The gateway's table, the authorisation check, the admin client and the documentation come from here.
Below the table: the two headers of the hot path, decoded to typed values.

Source: RocketMQ RequestCode.java, protocol/header/**, DefaultAuthorizationContextBuilder.java.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from actormq.errors import RequestError, ResponseCode
from actormq.wire.codes import RequestCode

__all__ = [
    "Action",
    "DESCRIPTIONS",
    "Description",
    "Field",
    "Need",
    "PullHeader",
    "RequestCode",
    "Resource",
    "Role",
    "SendHeader",
    "bool_field",
    "check",
    "decode_pull",
    "decode_send",
    "decode_send_v2",
    "encode_send_v2",
    "int_field",
    "not_supported",
]


class Role(Enum):
    """Who serves a request code (design-failure 10)."""

    GATEWAY = "gateway"
    COORDINATOR = "coordinator"
    CHECKER = "checker"
    REPLICATOR = "replicator"
    NAMESERVER = "nameserver"
    CLIENT = "client"
    """The broker asks, the client answers."""
    NOBODY = "nobody"
    """Reserved, removed or not ours: answered REQUEST_CODE_NOT_SUPPORTED."""


class Resource(Enum):
    """What a permission is about."""

    TOPIC = "Topic"
    GROUP = "Group"
    CLUSTER = "Cluster"


class Action(Enum):
    """What a permission allows; names as in RocketMQ's access lists."""

    PUB = "Pub"
    SUB = "Sub"
    CREATE = "Create"
    UPDATE = "Update"
    DELETE = "Delete"
    GET = "Get"
    LIST = "List"


@dataclass(frozen=True, slots=True)
class Need:
    """One permission: any of `actions` on the resource that the request names in `field`.

    `field` is "body" when the names are in the body, "*" for all of the kind, "" for the cluster.
    """

    resource: Resource
    actions: tuple[Action, ...]
    field: str


@dataclass(frozen=True, slots=True)
class Field:
    """One header field: kind is "s", "i" (32 bits), "l" (64 bits) or "b"."""

    name: str
    kind: str
    required: bool


@dataclass(frozen=True, slots=True)
class Description:
    """What we know of one request code."""

    code: RequestCode
    role: Role
    needs: tuple[Need, ...]
    """All of them; empty only where nobody is served."""
    fields: tuple[Field, ...]

    @property
    def name(self) -> str:
        return self.code.name


SEND_FIELDS: Final = (
    "producerGroup:s* topic:s* defaultTopic:s* defaultTopicQueueNums:i* queueId:i* sysFlag:i* "
    "bornTimestamp:l* flag:i* properties:s reconsumeTimes:i unitMode:b batch:b maxReconsumeTimes:i"
)
SEND_V2_FIELDS: Final = "a:s* b:s* c:s* d:i* e:i* f:i* g:l* h:i* i:s j:i k:b l:i m:b n:s"
PULL_FIELDS: Final = (
    "consumerGroup:s* topic:s* queueId:i* queueOffset:l* maxMsgNums:i* sysFlag:i* commitOffset:l* "
    "suspendTimeoutMillis:l* subscription:s subVersion:l* expressionType:s maxMsgBytes:i requestSource:i "
    "proxyFrowardClientId:s"
)
TOPIC_FIELDS: Final = (
    "topic:s* defaultTopic:s* readQueueNums:i* writeQueueNums:i* perm:i* topicFilterType:s* topicSysFlag:i "
    "order:b attributes:s force:b"
)

# Needs are "Resource(field):Action|Action", joined by "&"; fields are "name:kind", "*" = required.
_TABLE: Final[tuple[tuple[RequestCode, Role, str, str], ...]] = (
    (RequestCode.SEND_MESSAGE, Role.GATEWAY, "Topic:Pub", SEND_FIELDS),
    (RequestCode.PULL_MESSAGE, Role.GATEWAY, "Topic:Sub & Group:Sub", PULL_FIELDS),
    (
        RequestCode.QUERY_MESSAGE,
        Role.GATEWAY,
        "Topic:Sub|Get",
        "topic:s* key:s* maxNum:i* beginTimestamp:l* endTimestamp:l* indexType:s lastKey:s",
    ),
    (
        RequestCode.SEARCH_OFFSET_BY_TIMESTAMP,
        Role.GATEWAY,
        "Topic:Sub|Get",
        "topic:s* queueId:i* timestamp:l* boundaryType:s",
    ),
    (RequestCode.GET_MAX_OFFSET, Role.GATEWAY, "Topic:Sub|Get", "topic:s* queueId:i* committed:b"),
    (RequestCode.GET_MIN_OFFSET, Role.GATEWAY, "Topic:Sub|Get", "topic:s* queueId:i*"),
    (RequestCode.GET_EARLIEST_MSG_STORETIME, Role.GATEWAY, "Topic:Sub|Get", "topic:s* queueId:i*"),
    (RequestCode.VIEW_MESSAGE_BY_ID, Role.GATEWAY, "Topic:Sub|Get", "topic:s offset:l*"),
    (RequestCode.SEND_MESSAGE_V2, Role.GATEWAY, "Topic(b):Pub", SEND_V2_FIELDS),
    (RequestCode.SEND_BATCH_MESSAGE, Role.GATEWAY, "Topic(b):Pub", SEND_V2_FIELDS),
    (
        RequestCode.QUERY_CONSUME_QUEUE,
        Role.GATEWAY,
        "Topic:Get",
        "topic:s queueId:i index:l count:i consumerGroup:s",
    ),
    (RequestCode.LITE_PULL_MESSAGE, Role.GATEWAY, "Topic:Sub & Group:Sub", PULL_FIELDS),
    (RequestCode.GET_ENDPOINTS, Role.GATEWAY, "Cluster:Get", ""),
    (RequestCode.GET_ROLES, Role.GATEWAY, "Cluster:Get", ""),
    # One-way: a native client lives (anything else that it sends says so, too), or goes.
    (RequestCode.KEEP_ALIVE, Role.GATEWAY, "Cluster:Get", ""),
    (RequestCode.BYE, Role.GATEWAY, "Cluster:Get", ""),
    (
        RequestCode.QUERY_CONSUMER_OFFSET,
        Role.COORDINATOR,
        "Topic:Sub|Get & Group:Sub|Get",
        "consumerGroup:s* topic:s* queueId:i* setZeroIfNotFound:b",
    ),
    (
        RequestCode.UPDATE_CONSUMER_OFFSET,
        Role.COORDINATOR,
        "Topic:Sub|Update & Group:Sub|Update",
        "consumerGroup:s* topic:s* queueId:i commitOffset:l",  # what is missing is answered in its order
    ),
    (RequestCode.UPDATE_AND_CREATE_TOPIC, Role.COORDINATOR, "Topic:Create", TOPIC_FIELDS),
    (RequestCode.UPDATE_AND_CREATE_TOPIC_LIST, Role.COORDINATOR, "Topic(body):Create", ""),
    (
        RequestCode.GET_ALL_TOPIC_CONFIG,
        Role.COORDINATOR,
        "Topic(*):List",
        "topicSeq:i* dataVersion:s maxTopicNum:i",
    ),
    (RequestCode.UPDATE_BROKER_CONFIG, Role.COORDINATOR, "Cluster:Update", ""),
    (RequestCode.GET_BROKER_CONFIG, Role.COORDINATOR, "Cluster:Get", ""),
    (RequestCode.GET_BROKER_RUNTIME_INFO, Role.COORDINATOR, "Cluster:Get", ""),
    (RequestCode.HEART_BEAT, Role.COORDINATOR, "Topic(body):Sub & Group(body):Sub", ""),
    (
        RequestCode.UNREGISTER_CLIENT,
        Role.COORDINATOR,
        "Group:Sub",
        "clientID:s* producerGroup:s consumerGroup:s",
    ),
    (
        RequestCode.CONSUMER_SEND_MSG_BACK,
        Role.COORDINATOR,
        "Group(group):Sub",
        "offset:l* group:s* delayLevel:i* originMsgId:s originTopic:s unitMode:b maxReconsumeTimes:i",
    ),
    (RequestCode.GET_CONSUMER_LIST_BY_GROUP, Role.COORDINATOR, "Group:Sub|Get", "consumerGroup:s*"),
    (RequestCode.LOCK_BATCH_MQ, Role.COORDINATOR, "Topic(body):Sub & Group(body):Sub", ""),
    (RequestCode.UNLOCK_BATCH_MQ, Role.COORDINATOR, "Topic(body):Sub & Group(body):Sub", ""),
    (RequestCode.GET_ALL_CONSUMER_OFFSET, Role.COORDINATOR, "Cluster:Get", ""),
    (RequestCode.GET_ALL_DELAY_OFFSET, Role.COORDINATOR, "Cluster:Get", ""),
    (RequestCode.CHECK_CLIENT_CONFIG, Role.COORDINATOR, "Group(body):Sub", ""),
    (RequestCode.GET_TIMER_CHECK_POINT, Role.COORDINATOR, "Cluster:Get", ""),
    (RequestCode.GET_TIMER_METRICS, Role.COORDINATOR, "Cluster:Get", ""),
    (RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, Role.COORDINATOR, "Group(body):Create", ""),
    (
        RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG,
        Role.COORDINATOR,
        "Group(*):List",
        "groupSeq:i* dataVersion:s maxGroupNum:i",
    ),
    (RequestCode.GET_TOPIC_STATS_INFO, Role.COORDINATOR, "Topic:Get", "topic:s*"),
    (RequestCode.GET_CONSUMER_CONNECTION_LIST, Role.COORDINATOR, "Group:Get", "consumerGroup:s*"),
    (RequestCode.GET_PRODUCER_CONNECTION_LIST, Role.COORDINATOR, "Cluster:Get", "producerGroup:s*"),
    (
        RequestCode.DELETE_SUBSCRIPTIONGROUP,
        Role.COORDINATOR,
        "Group(groupName):Delete",
        "groupName:s* cleanOffset:b",
    ),
    (RequestCode.GET_CONSUME_STATS, Role.COORDINATOR, "Group:Get", "consumerGroup:s* topic:s topicList:s"),
    (RequestCode.DELETE_TOPIC_IN_BROKER, Role.COORDINATOR, "Topic:Delete", "topic:s*"),
    (
        RequestCode.INVOKE_BROKER_TO_RESET_OFFSET,
        Role.COORDINATOR,
        "Topic:Update & Group(group):Update",
        "group:s* topic:s* queueId:i offset:l timestamp:l* isForce:b*",
    ),
    (
        RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS,
        Role.COORDINATOR,
        "Topic:Get & Group(group):Get",
        "topic:s* group:s* clientAddr:s",
    ),
    (RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, Role.COORDINATOR, "Group(body):Create", ""),
    (RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, Role.COORDINATOR, "Topic:Get", "topic:s*"),
    (
        RequestCode.QUERY_CONSUME_TIME_SPAN,
        Role.COORDINATOR,
        "Topic:Get & Group(group):Get",
        "topic:s* group:s*",
    ),
    (RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER, Role.COORDINATOR, "Cluster:List", ""),
    (RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE, Role.COORDINATOR, "Cluster:Update", ""),
    (
        RequestCode.GET_CONSUMER_RUNNING_INFO,
        Role.COORDINATOR,
        "Group:Get",
        "consumerGroup:s* clientId:s* jstackEnable:b",
    ),
    (
        RequestCode.QUERY_CORRECTION_OFFSET,
        Role.COORDINATOR,
        "Topic:Get & Group(compareGroup):Get",
        "filterGroups:s compareGroup:s* topic:s*",
    ),
    (
        RequestCode.CONSUME_MESSAGE_DIRECTLY,
        Role.COORDINATOR,
        "Group:Update & Topic:Sub",
        "consumerGroup:s* clientId:s msgId:s brokerName:s topic:s topicSysFlag:i groupSysFlag:i",
    ),
    (
        RequestCode.CLONE_GROUP_OFFSET,
        Role.COORDINATOR,
        "Group(srcGroup):Get & Group(destGroup):Update",
        "srcGroup:s* destGroup:s* topic:s offline:b",
    ),
    (RequestCode.VIEW_BROKER_STATS_DATA, Role.COORDINATOR, "Cluster:Get", "statsName:s* statsKey:s*"),
    (RequestCode.CLEAN_UNUSED_TOPIC, Role.COORDINATOR, "Cluster:Update", ""),
    (RequestCode.GET_BROKER_CONSUME_STATS, Role.COORDINATOR, "Cluster:Get", "isOrder:b*"),
    (RequestCode.SEND_REPLY_MESSAGE, Role.COORDINATOR, "Topic:Pub", SEND_FIELDS),
    (RequestCode.SEND_REPLY_MESSAGE_V2, Role.COORDINATOR, "Topic(b):Pub", SEND_V2_FIELDS),
    (RequestCode.GET_ALL_PRODUCER_INFO, Role.COORDINATOR, "Cluster:Get", ""),
    (RequestCode.DELETE_EXPIRED_COMMITLOG, Role.COORDINATOR, "Cluster:Update", ""),
    (RequestCode.QUERY_TOPICS_BY_CONSUMER, Role.COORDINATOR, "Group(group):Get", "group:s*"),
    (RequestCode.QUERY_SUBSCRIPTION_BY_CONSUMER, Role.COORDINATOR, "Group(group):Get", "group:s* topic:s"),
    (RequestCode.GET_TOPIC_CONFIG, Role.COORDINATOR, "Topic:Get", "topic:s*"),
    (RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, Role.COORDINATOR, "Group(group):Get", "group:s*"),
    (
        RequestCode.UPDATE_AND_GET_GROUP_FORBIDDEN,
        Role.COORDINATOR,
        "Group(group):Update",
        "group:s* topic:s* readable:b",
    ),
    (RequestCode.CHECK_ROCKSDB_CQ_WRITE_PROGRESS, Role.COORDINATOR, "Topic:Get", "topic:s* checkStoreTime:l"),
    (RequestCode.EXPORT_ROCKSDB_CONFIG_TO_JSON, Role.COORDINATOR, "Cluster:Get", "configType:s*"),
    (RequestCode.RECALL_MESSAGE, Role.COORDINATOR, "Topic:Pub", "producerGroup:s topic:s* recallHandle:s*"),
    (RequestCode.QUERY_ASSIGNMENT, Role.COORDINATOR, "Topic(body):Sub & Group(body):Sub", ""),
    (RequestCode.SET_MESSAGE_REQUEST_MODE, Role.COORDINATOR, "Group(body):Update", ""),
    (RequestCode.GET_ALL_MESSAGE_REQUEST_MODE, Role.COORDINATOR, "Cluster:Get", ""),
    (RequestCode.UPDATE_AND_CREATE_STATIC_TOPIC, Role.COORDINATOR, "Topic:Create", TOPIC_FIELDS),
    (RequestCode.AUTH_CREATE_USER, Role.COORDINATOR, "Cluster:Update", "username:s"),
    (RequestCode.AUTH_UPDATE_USER, Role.COORDINATOR, "Cluster:Update", "username:s"),
    (RequestCode.AUTH_DELETE_USER, Role.COORDINATOR, "Cluster:Update", "username:s"),
    (RequestCode.AUTH_GET_USER, Role.COORDINATOR, "Cluster:Get", "username:s"),
    (RequestCode.AUTH_LIST_USER, Role.COORDINATOR, "Cluster:Get", "filter:s"),
    (RequestCode.AUTH_CREATE_ACL, Role.COORDINATOR, "Cluster:Update", "subject:s"),
    (RequestCode.AUTH_UPDATE_ACL, Role.COORDINATOR, "Cluster:Update", "subject:s"),
    (RequestCode.AUTH_DELETE_ACL, Role.COORDINATOR, "Cluster:Update", "subject:s policyType:s resource:s"),
    (RequestCode.AUTH_GET_ACL, Role.COORDINATOR, "Cluster:Get", "subject:s"),
    (RequestCode.AUTH_LIST_ACL, Role.COORDINATOR, "Cluster:Get", "subjectFilter:s resourceFilter:s"),
    (
        RequestCode.POP_MESSAGE,
        Role.COORDINATOR,
        "Topic:Sub & Group:Sub",
        "consumerGroup:s* topic:s* queueId:i* maxMsgNums:i* invisibleTime:l* pollTime:l* bornTime:l* "
        "initMode:i* expType:s exp:s order:b attemptId:s",
    ),
    (
        RequestCode.ACK_MESSAGE,
        Role.COORDINATOR,
        "Topic:Sub & Group:Sub",
        "consumerGroup:s* topic:s* queueId:i* extraInfo:s* offset:l*",
    ),
    (
        RequestCode.PEEK_MESSAGE,
        Role.COORDINATOR,
        "Topic:Sub & Group:Sub",
        "topic:s* queueId:i* maxMsgNums:i* consumerGroup:s*",
    ),
    (
        RequestCode.CHANGE_MESSAGE_INVISIBLETIME,
        Role.COORDINATOR,
        "Topic:Sub & Group:Sub",
        "consumerGroup:s* topic:s* queueId:i* extraInfo:s* offset:l* invisibleTime:l*",
    ),
    (
        RequestCode.NOTIFICATION,
        Role.COORDINATOR,
        "Topic:Sub & Group:Sub",
        "consumerGroup:s* topic:s* queueId:i* pollTime:l* bornTime:l* order:b attemptId:s",
    ),
    (
        RequestCode.POLLING_INFO,
        Role.COORDINATOR,
        "Topic:Get & Group:Get",
        "consumerGroup:s* topic:s* queueId:i*",
    ),
    (RequestCode.POP_ROLLBACK, Role.COORDINATOR, "Cluster:Update", ""),
    (RequestCode.BATCH_ACK_MESSAGE, Role.COORDINATOR, "Topic(body):Sub & Group(body):Sub", ""),
    (
        RequestCode.END_TRANSACTION,
        Role.CHECKER,
        "Topic:Pub",
        "topic:s producerGroup:s* tranStateTableOffset:l* commitLogOffset:l* commitOrRollback:i* "
        "fromTransactionCheck:b msgId:s* transactionId:s",
    ),
    (RequestCode.RESUME_CHECK_HALF_MESSAGE, Role.CHECKER, "Topic:Update", "topic:s msgId:s"),
    (
        RequestCode.NOTIFY_MIN_BROKER_ID_CHANGE,
        Role.REPLICATOR,
        "Cluster:Update",
        "minBrokerId:l brokerName:s minBrokerAddr:s offlineBrokerAddr:s haBrokerAddr:s",
    ),
    (
        RequestCode.EXCHANGE_BROKER_HA_INFO,
        Role.REPLICATOR,
        "Cluster:Update",
        "masterHaAddress:s masterFlushOffset:l masterAddress:s",
    ),
    (RequestCode.GET_BROKER_HA_STATUS, Role.REPLICATOR, "Cluster:Get", ""),
    (RequestCode.RESET_MASTER_FLUSH_OFFSET, Role.REPLICATOR, "Cluster:Update", "masterFlushOffset:l*"),
    (RequestCode.GET_BROKER_EPOCH_CACHE, Role.REPLICATOR, "Cluster:Get", ""),
    (
        RequestCode.NOTIFY_BROKER_ROLE_CHANGED,
        Role.REPLICATOR,
        "Cluster:Update",
        "masterAddress:s masterEpoch:i syncStateSetEpoch:i masterBrokerId:l",
    ),
    (RequestCode.PUT_KV_CONFIG, Role.NAMESERVER, "Cluster:Update", "namespace:s* key:s* value:s*"),
    (RequestCode.GET_KV_CONFIG, Role.NAMESERVER, "Cluster:Get", "namespace:s* key:s*"),
    (RequestCode.DELETE_KV_CONFIG, Role.NAMESERVER, "Cluster:Update", "namespace:s* key:s*"),
    (
        RequestCode.REGISTER_BROKER,
        Role.NAMESERVER,
        "Cluster:Update",
        "brokerName:s* brokerAddr:s* clusterName:s* haServerAddr:s* brokerId:l* "
        "heartbeatTimeoutMillis:l enableActingMaster:b compressed:b bodyCrc32:i",
    ),
    (
        RequestCode.UNREGISTER_BROKER,
        Role.NAMESERVER,
        "Cluster:Update",
        "brokerName:s* brokerAddr:s* clusterName:s* brokerId:l*",
    ),
    (
        RequestCode.GET_ROUTEINFO_BY_TOPIC,
        Role.NAMESERVER,
        "Topic:Pub|Sub|Get",
        "topic:s* acceptStandardJsonOnly:b",
    ),
    (RequestCode.GET_BROKER_CLUSTER_INFO, Role.NAMESERVER, "Cluster:Get", ""),
    (RequestCode.WIPE_WRITE_PERM_OF_BROKER, Role.NAMESERVER, "Cluster:Update", "brokerName:s*"),
    (RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER, Role.NAMESERVER, "Cluster:List", ""),
    (RequestCode.DELETE_TOPIC_IN_NAMESRV, Role.NAMESERVER, "Topic:Delete", "topic:s* clusterName:s"),
    (RequestCode.REGISTER_TOPIC_IN_NAMESRV, Role.NAMESERVER, "Cluster:Update", "topic:s*"),
    (RequestCode.GET_KVLIST_BY_NAMESPACE, Role.NAMESERVER, "Cluster:Get", "namespace:s*"),
    (RequestCode.GET_TOPICS_BY_CLUSTER, Role.NAMESERVER, "Cluster:List", "cluster:s*"),
    (RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS, Role.NAMESERVER, "Cluster:List", ""),
    (RequestCode.GET_UNIT_TOPIC_LIST, Role.NAMESERVER, "Cluster:List", ""),
    (RequestCode.GET_HAS_UNIT_SUB_TOPIC_LIST, Role.NAMESERVER, "Cluster:List", ""),
    (RequestCode.GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST, Role.NAMESERVER, "Cluster:List", ""),
    (RequestCode.UPDATE_NAMESRV_CONFIG, Role.NAMESERVER, "Cluster:Update", ""),
    (RequestCode.GET_NAMESRV_CONFIG, Role.NAMESERVER, "Cluster:Get", ""),
    (
        RequestCode.QUERY_DATA_VERSION,
        Role.NAMESERVER,
        "Cluster:Get",
        "brokerName:s* brokerAddr:s* clusterName:s* brokerId:l*",
    ),
    (RequestCode.ADD_WRITE_PERM_OF_BROKER, Role.NAMESERVER, "Cluster:Update", "brokerName:s*"),
    (RequestCode.GET_BROKER_MEMBER_GROUP, Role.NAMESERVER, "Cluster:Get", "clusterName:s* brokerName:s*"),
    (
        RequestCode.BROKER_HEARTBEAT,
        Role.NAMESERVER,
        "Cluster:Update",
        "clusterName:s* brokerAddr:s* brokerName:s* brokerId:l epoch:i maxOffset:l confirmOffset:l "
        "heartbeatTimeoutMills:l electionPriority:i",
    ),
    (
        RequestCode.CHECK_TRANSACTION_STATE,
        Role.CLIENT,
        "",
        "topic:s tranStateTableOffset:l* commitLogOffset:l* msgId:s transactionId:s offsetMsgId:s",
    ),
    (RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, Role.CLIENT, "", "consumerGroup:s*"),
    (
        RequestCode.RESET_CONSUMER_CLIENT_OFFSET,
        Role.CLIENT,
        "",
        "group:s* topic:s* queueId:i offset:l timestamp:l* isForce:b*",
    ),
    (RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, Role.CLIENT, "", "topic:s* group:s* clientAddr:s"),
    (
        RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT,
        Role.CLIENT,
        "",
        SEND_FIELDS + " bornHost:s* storeHost:s* storeTimestamp:l*",
    ),
)


def _needs(text: str) -> tuple[Need, ...]:
    needs = []
    for part in filter(None, text.split(" & ")):
        target, _, actions = part.partition(":")
        kind, _, named = target.rstrip(")").partition("(")
        resource = Resource(kind)
        default = {Resource.TOPIC: "topic", Resource.GROUP: "consumerGroup", Resource.CLUSTER: ""}[resource]
        needs.append(Need(resource, tuple(Action(action) for action in actions.split("|")), named or default))
    return tuple(needs)


def _fields(text: str) -> tuple[Field, ...]:
    fields = []
    for part in text.split():
        name, _, kind = part.partition(":")
        fields.append(Field(name, kind[0], kind.endswith("*")))
    return tuple(fields)


def _descriptions() -> dict[int, Description]:
    table: dict[int, Description] = {code: Description(code, Role.NOBODY, (), ()) for code in RequestCode}
    for code, role, needs, fields in _TABLE:
        assert table[code].role is Role.NOBODY, f"{code.name} is described twice"
        table[code] = Description(code, role, _needs(needs), _fields(fields))
    return table


DESCRIPTIONS: Final[dict[int, Description]] = _descriptions()
"""Request code to description."""


def not_supported(code: int) -> str:
    """Return RocketMQ's remark for a request code that nobody serves (the blank in front is theirs)."""
    return f" request type {code} not supported"


# --- field values ------------------------------------------------------------------------------------

_I32: Final = 1 << 31
_I64: Final = 1 << 63
_BOUNDS: Final = {"i": _I32, "l": _I64}
_INTEGER: Final = re.compile(r"[+-]?\d+")
"""Java's rule; Python's own would take "1_000" and " 7 ", too."""


def _missing(name: str) -> RequestError:
    return RequestError(ResponseCode.SYSTEM_ERROR, f"the custom field <{name}> is null")


def int_field(fields: dict[str, str], name: str, default: int | None = None, *, bits: int = 64) -> int:
    """Return the integer in field `name`.

    Raises:
        RequestError: absent without a default, no integer, or outside `bits`.
    """
    text = fields.get(name)
    if text is None:
        if default is None:
            raise _missing(name)
        return default
    try:
        value = int(text) if _INTEGER.fullmatch(text) else 1 << bits
    except ValueError:  # thousands of digits
        value = 1 << bits
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise RequestError(ResponseCode.SYSTEM_ERROR, f"the custom field <{name}> is no number: {text[:40]}")
    return value


def bool_field(fields: dict[str, str], name: str, default: bool = False) -> bool:
    """Return the boolean in field `name`, read as Java does: "true" in any case, else false."""
    text = fields.get(name)
    return default if text is None else text.lower() == "true"


def text_field(fields: dict[str, str], name: str) -> str:
    """Return the text in the required field `name`.

    Raises:
        RequestError: absent.
    """
    text = fields.get(name)
    if text is None:
        raise _missing(name)
    return text


def check(code: int, fields: dict[str, str]) -> None:
    """Check required fields and number ranges of a request.

    Raises:
        RequestError: with RocketMQ's remark, naming the field.
    """
    for field in DESCRIPTIONS[code].fields:
        if field.name not in fields:
            if field.required:
                raise _missing(field.name)
        elif field.kind in _BOUNDS:
            int_field(fields, field.name, bits=32 if field.kind == "i" else 64)


# --- the hot headers ---------------------------------------------------------------------------------


@dataclass(slots=True)
class SendHeader:
    """What a send says besides its body, from either form."""

    producer_group: str
    topic: str
    default_topic: str
    default_topic_queues: int
    queue_id: int
    sys_flag: int
    born_timestamp_ms: int
    flag: int
    properties: str
    reconsume_times: int
    unit_mode: bool
    max_reconsume_times: int | None
    batch: bool
    no_ids: bool = False
    """Ours: the answer need not name the offset message ids."""


NO_IDS: Final = "noIds"
"""The private field that says so, in every send code."""
_V2: Final = ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m")
_LONG: Final = (
    "producerGroup",
    "topic",
    "defaultTopic",
    "defaultTopicQueueNums",
    "queueId",
    "sysFlag",
    "bornTimestamp",
    "flag",
    "properties",
    "reconsumeTimes",
    "unitMode",
    "maxReconsumeTimes",
    "batch",
)


def decode_send_v2(fields: dict[str, str]) -> SendHeader:
    """Return the header of 310, 320 and 325 (one-letter fields).

    Raises:
        RequestError: a required field is missing, or a number is none.
    """
    return _decode_send(fields, _V2)


def decode_send(code: int, fields: dict[str, str]) -> SendHeader:
    """Return the header of any send code.

    Raises:
        RequestError: as `decode_send_v2`.
    """
    long_form = code in (RequestCode.SEND_MESSAGE, RequestCode.SEND_REPLY_MESSAGE)
    return _decode_send(fields, _LONG if long_form else _V2)


def _decode_send(fields: dict[str, str], names: tuple[str, ...]) -> SendHeader:
    """Return the header; everything at once, and field by field only to name the one that is wrong."""
    a, b, c, d, e, f, g, h, i, j, k, l, m = names  # noqa: E741
    get = fields.get
    try:
        most = get(l)
        header = SendHeader(
            fields[a],
            fields[b],
            fields[c],
            int(fields[d]),
            int(fields[e]),
            int(fields[f]),
            int(fields[g]),
            int(fields[h]),
            get(i, ""),
            int(get(j, "0")),
            get(k, "false").lower() == "true",
            None if most is None else int(most),
            get(m, "false").lower() == "true",
            get(NO_IDS, "false").lower() == "true",
        )
    except (KeyError, ValueError):
        return _decode_send_by_field(fields, names)
    if not f"{fields[d]}{fields[e]}{fields[f]}{fields[g]}{fields[h]}{get(j, '')}{most or ''}".isdecimal():
        return _decode_send_by_field(fields, names)  # something negative, or what only Python calls a number
    small = (
        header.default_topic_queues,
        header.queue_id,
        header.sys_flag,
        header.flag,
        header.reconsume_times,
        header.max_reconsume_times or 0,
    )
    if min(small) < -_I32 or max(small) >= _I32 or not -_I64 <= header.born_timestamp_ms < _I64:
        return _decode_send_by_field(fields, names)
    return header


def _decode_send_by_field(fields: dict[str, str], names: tuple[str, ...]) -> SendHeader:
    a, b, c, d, e, f, g, h, i, j, k, l, m = names  # noqa: E741
    return SendHeader(
        producer_group=text_field(fields, a),
        topic=text_field(fields, b),
        default_topic=text_field(fields, c),
        default_topic_queues=int_field(fields, d, bits=32),
        queue_id=int_field(fields, e, bits=32),
        sys_flag=int_field(fields, f, bits=32),
        born_timestamp_ms=int_field(fields, g),
        flag=int_field(fields, h, bits=32),
        properties=fields.get(i, ""),
        reconsume_times=int_field(fields, j, 0, bits=32),
        unit_mode=bool_field(fields, k),
        max_reconsume_times=int_field(fields, l, bits=32) if l in fields else None,
        batch=bool_field(fields, m),
        no_ids=bool_field(fields, NO_IDS),
    )


def encode_send_v2(header: SendHeader, broker_name: str | None = None) -> dict[str, str]:
    """Return the one-letter fields of `header`, as the Java client writes them."""
    fields = {
        "a": header.producer_group,
        "b": header.topic,
        "c": header.default_topic,
        "d": str(header.default_topic_queues),
        "e": str(header.queue_id),
        "f": str(header.sys_flag),
        "g": str(header.born_timestamp_ms),
        "h": str(header.flag),
        "i": header.properties,
        "j": str(header.reconsume_times),
        "k": "true" if header.unit_mode else "false",
        "m": "true" if header.batch else "false",
    }
    if header.max_reconsume_times is not None:
        fields["l"] = str(header.max_reconsume_times)
    if broker_name is not None:
        fields["n"] = broker_name
    if header.no_ids:
        fields[NO_IDS] = "true"
    return fields


@dataclass(slots=True)
class PullHeader:
    """What a pull asks for."""

    group: str
    topic: str
    queue_id: int
    queue_offset: int
    messages_max: int
    sys_flag: int
    commit_offset: int
    suspend_ms: int
    subscription: str | None
    sub_version: int
    expression_type: str
    bytes_max: int | None


def decode_pull(fields: dict[str, str]) -> PullHeader:
    """Return the header of 11 and 361.

    Raises:
        RequestError: a required field is missing, or a number is none.
    """
    return PullHeader(
        group=text_field(fields, "consumerGroup"),
        topic=text_field(fields, "topic"),
        queue_id=int_field(fields, "queueId", bits=32),
        queue_offset=int_field(fields, "queueOffset"),
        messages_max=int_field(fields, "maxMsgNums", bits=32),
        sys_flag=int_field(fields, "sysFlag", bits=32),
        commit_offset=int_field(fields, "commitOffset"),
        suspend_ms=int_field(fields, "suspendTimeoutMillis"),
        subscription=fields.get("subscription"),
        sub_version=int_field(fields, "subVersion"),
        expression_type=fields.get("expressionType") or "TAG",
        bytes_max=int_field(fields, "maxMsgBytes", bits=32) if "maxMsgBytes" in fields else None,
    )
