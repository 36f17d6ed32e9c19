"""Requests that clients make, and what their answers say.

Source: wire.md §4, §6; RocketMQ protocol/header/**.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from actormq.client.messages import encode_user_properties
from actormq.client.results import MessageQueue, SendResult
from actormq.errors import PeerError, RequestRefused, ResponseCode
from actormq.message import TEMPLATE_TOPIC, QueueOffset, SendStatus
from actormq.wire import frame, json
from actormq.wire.codes import RequestCode
from actormq.wire.command import Language, RemotingCommand
from actormq.wire.headers import SendHeader, encode_send_v2

STORED: Final = frozenset(int(status) for status in SendStatus)
_PULL_COMMITS: Final = 1
_PULL_MAY_WAIT: Final = 2
_PULL_HAS_EXPRESSION: Final = 4


def request(
    code: RequestCode,
    fields: dict[str, str] | None = None,
    body: bytes | memoryview = b"",
    oneway: bool = False,
) -> RemotingCommand:
    """Return a request that says it comes from Python."""
    command = RemotingCommand.request(code, fields, body, oneway)
    command.language = Language.PYTHON
    return command


def require_success(answer: RemotingCommand, address: str) -> RemotingCommand:
    """Return `answer`.

    Raises:
        RequestRefused: its code is not 0.
    """
    if answer.code != ResponseCode.SUCCESS:
        raise RequestRefused(answer.code, answer.remark, address)
    return answer


def _number(answer: RemotingCommand, name: str) -> int:
    text = answer.fields.get(name)
    try:
        return int(text or "")
    except ValueError:
        raise PeerError(f"an answer without the number {name}: {answer.fields!r:.200}") from None


# --- name server, endpoints, membership --------------------------------------------------------------


def route(topic: str) -> RemotingCommand:
    return request(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": topic, "acceptStandardJsonOnly": "true"})


def endpoints() -> RemotingCommand:
    """Ask a broker for its other doors; a RocketMQ broker answers REQUEST_CODE_NOT_SUPPORTED."""
    return request(RequestCode.GET_ENDPOINTS)


def heartbeat(data: dict[str, Any]) -> RemotingCommand:
    return request(RequestCode.HEART_BEAT, body=json.dumps(data))


def goodbye(
    client_id: str, *, producer_group: str | None = None, consumer_group: str | None = None
) -> RemotingCommand:
    """Return the request that ends a membership (UNREGISTER_CLIENT)."""
    fields = {"clientID": client_id}
    if producer_group:
        fields["producerGroup"] = producer_group
    if consumer_group:
        fields["consumerGroup"] = consumer_group
    return request(RequestCode.UNREGISTER_CLIENT, fields)


def consumer_list(group: str) -> RemotingCommand:
    return request(RequestCode.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": group})


def parse_consumer_list(answer: RemotingCommand) -> list[str]:
    value = json.loads(answer.body) if len(answer.body) else {}
    ids = value.get("consumerIdList") if isinstance(value, dict) else None
    return [str(item) for item in ids or ()]


# --- sending -----------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Outgoing:
    """A message or a batch, ready for a request but for its queue.

    Not frozen, nor is `Stored`: that takes a microsecond per field and send, and nobody changes them.
    """

    body: bytes | memoryview
    properties: bytes
    message_ids: list[str]
    sys_flag: int = 0
    flag: int = 0
    batch: bool = False
    reconsume_times: int = 0
    max_reconsume_times: int | None = None

    @property
    def is_redelivery(self) -> bool:
        return self.reconsume_times > 0 or self.max_reconsume_times is not None


def send(
    group: str,
    queue: MessageQueue,
    message: Outgoing,
    born_ms: int,
    *,
    queues_wanted: int,
    oneway: bool = False,
    no_ids: bool = False,
) -> RemotingCommand:
    """Return the request that stores `message` in `queue`.

    Args:
        queues_wanted: how many queues the topic gets if the broker has to create it.
        no_ids: the answer need not have the offset message ids; a RocketMQ broker sends them all the same.
    """
    header = SendHeader(
        producer_group=group,
        topic=queue.topic,
        default_topic=TEMPLATE_TOPIC,
        default_topic_queues=queues_wanted,
        queue_id=queue.queue_id,
        sys_flag=message.sys_flag,
        born_timestamp_ms=born_ms,
        flag=message.flag,
        properties=message.properties.decode("utf-8", "surrogatepass"),
        reconsume_times=message.reconsume_times,
        unit_mode=False,
        max_reconsume_times=message.max_reconsume_times,
        batch=message.batch,
        no_ids=no_ids,
    )
    code = RequestCode.SEND_BATCH_MESSAGE if message.batch else RequestCode.SEND_MESSAGE_V2
    return request(code, encode_send_v2(header, queue.broker_name), message.body, oneway)


class BatchHead:
    """The frame's bytes before a batch's body, but for what differs from batch to batch.

    Args:
        queue: where to.
        wait_stored: of all its messages.
        no_ids: as for `send`.
    """

    _OPAQUE: Final = 1_123_456_789
    _BORN_MS: Final = 1_987_654_321_012

    def __init__(
        self, group: str, queue: MessageQueue, wait_stored: bool, queues_wanted: int, no_ids: bool
    ) -> None:
        properties = encode_user_properties(wait_stored=wait_stored)
        message = Outgoing(body=b"", properties=properties, message_ids=[], batch=True)
        command = send(group, queue, message, self._BORN_MS, queues_wanted=queues_wanted, no_ids=no_ids)
        command.opaque = self._OPAQUE
        header = frame.encode_header(command)
        self._type = command.serialize << 24
        # Cut where the two numbers are: inside a text the quotes would be escaped.
        self._before, rest = header.split(b'"opaque":%d,' % self._OPAQUE)
        self._between, self._behind = rest.split(b'"g":"%d"' % self._BORN_MS)

    def encode(self, opaque: int, born_ms: int, body_bytes: int) -> bytes:
        """Return the frame up to its body."""
        header = b'%b"opaque":%d,%b"g":"%d"%b' % (self._before, opaque, self._between, born_ms, self._behind)
        return _HEAD.pack(4 + len(header) + body_bytes, self._type | len(header)) + header


_HEAD: Final = struct.Struct(">II")


@dataclass(slots=True)
class Stored:
    """A broker's answer to a send that it stored."""

    status: SendStatus
    queue: MessageQueue
    queue_offset: QueueOffset
    offset_message_ids: str
    """Joined by commas; a batch's are as many as its messages, and cut apart only where one is asked for."""
    transaction_id: str
    region: str

    def result(self, message_id: str) -> SendResult:
        """Return it for a send of one message."""
        return SendResult(
            self.status,
            message_id,
            self._offset_message_id(0),
            self.queue,
            self.queue_offset,
            self.transaction_id or message_id,
            self.region,
        )

    def result_in_batch(self, message_id: str, index: int) -> SendResult:
        """Return what became of the message at `index` of a batch."""
        return SendResult(
            self.status,
            message_id,
            self._offset_message_id(index),
            self.queue,
            QueueOffset(self.queue_offset + index),
            message_id,
            self.region,
        )

    def _offset_message_id(self, index: int) -> str:
        """Return one id; all of a broker's are equally long, and one that is not there is empty."""
        size = self.offset_message_ids.find(",")
        if size < 0:
            return "" if index else self.offset_message_ids
        return self.offset_message_ids[index * (size + 1) : index * (size + 1) + size]


def parse_stored(answer: RemotingCommand, queue: MessageQueue, address: str) -> Stored:
    """Return what became of a send.

    Raises:
        RequestRefused: it was not stored.
    """
    if answer.code not in STORED:
        raise RequestRefused(answer.code, answer.remark, address)
    return Stored(
        SendStatus(answer.code),
        queue._replace(queue_id=_number(answer, "queueId")),
        QueueOffset(_number(answer, "queueOffset")),
        answer.fields.get("msgId", ""),
        answer.fields.get("transactionId", ""),
        answer.fields.get("MSG_REGION", ""),
    )


# --- pulling -----------------------------------------------------------------------------------------


class PullStatus(Enum):
    """What a pull brought."""

    FOUND = "found"
    NOTHING_NEW = "nothing new"
    NONE_MATCHED = "none matched"
    OFFSET_MOVED = "offset moved"


PULL_STATUS: Final = {
    int(ResponseCode.SUCCESS): PullStatus.FOUND,
    int(ResponseCode.PULL_NOT_FOUND): PullStatus.NOTHING_NEW,
    int(ResponseCode.PULL_RETRY_IMMEDIATELY): PullStatus.NONE_MATCHED,
    int(ResponseCode.PULL_OFFSET_MOVED): PullStatus.OFFSET_MOVED,
}


@dataclass(slots=True)
class PullAnswer:
    """A broker's answer to a pull; `body` holds stored messages one behind the other."""

    status: PullStatus
    next_offset: QueueOffset
    min_offset: QueueOffset
    max_offset: QueueOffset
    suggested_broker_id: int
    body: bytes | memoryview


def pull(
    group: str,
    queue: MessageQueue,
    queue_offset: QueueOffset,
    *,
    messages_max: int,
    bytes_max: int,
    suspend_ms: int,
    sub_version: int,
    commit_offset: QueueOffset | None,
    expression: str | None = None,
) -> RemotingCommand:
    """Return a pull that may wait for messages.

    Args:
        commit_offset: stored as the group's offset before the broker looks; None = store nothing.
        expression: sent along only where the broker does not know the subscription from a heartbeat.
    """
    flags = _PULL_MAY_WAIT
    if commit_offset is not None:
        flags |= _PULL_COMMITS
    fields = {
        "consumerGroup": group,
        "topic": queue.topic,
        "queueId": str(queue.queue_id),
        "queueOffset": str(queue_offset),
        "maxMsgNums": str(messages_max),
        "maxMsgBytes": str(bytes_max),
        "commitOffset": str(commit_offset or 0),
        "suspendTimeoutMillis": str(suspend_ms),
        "subVersion": str(sub_version),
        "expressionType": "TAG",
        "bname": queue.broker_name,
    }
    if expression is not None:
        flags |= _PULL_HAS_EXPRESSION
        fields["subscription"] = expression
    fields["sysFlag"] = str(flags)
    return request(RequestCode.PULL_MESSAGE, fields)


def parse_pull(answer: RemotingCommand, address: str) -> PullAnswer:
    """Return what a pull brought.

    Raises:
        RequestRefused: an error, not an outcome.
    """
    status = PULL_STATUS.get(answer.code)
    if status is None:
        raise RequestRefused(answer.code, answer.remark, address)
    return PullAnswer(
        status,
        QueueOffset(_number(answer, "nextBeginOffset")),
        QueueOffset(_number(answer, "minOffset")),
        QueueOffset(_number(answer, "maxOffset")),
        _number(answer, "suggestWhichBrokerId"),
        answer.body,
    )


def send_back(
    group: str, log_offset: int, delay_level: int, message_id: str, topic: str, reconsume_max: int
) -> RemotingCommand:
    """Return the request that puts a message into the group's retry topic."""
    fields = {
        "offset": str(log_offset),
        "group": group,
        "delayLevel": str(delay_level),
        "originMsgId": message_id,
        "originTopic": topic,
        "unitMode": "false",
        "maxReconsumeTimes": str(reconsume_max),
    }
    return request(RequestCode.CONSUMER_SEND_MSG_BACK, fields)


# --- offsets and locks -------------------------------------------------------------------------------


def query_offset(group: str, queue: MessageQueue) -> RemotingCommand:
    return request(RequestCode.QUERY_CONSUMER_OFFSET, {"consumerGroup": group, **_queue_fields(queue)})


def commit(
    group: str, queue: MessageQueue, queue_offset: QueueOffset, oneway: bool = False
) -> RemotingCommand:
    fields = {"consumerGroup": group, **_queue_fields(queue), "commitOffset": str(queue_offset)}
    return request(RequestCode.UPDATE_CONSUMER_OFFSET, fields, oneway=oneway)


def max_offset(queue: MessageQueue) -> RemotingCommand:
    return request(RequestCode.GET_MAX_OFFSET, _queue_fields(queue))


def min_offset(queue: MessageQueue) -> RemotingCommand:
    return request(RequestCode.GET_MIN_OFFSET, _queue_fields(queue))


def search_offset(queue: MessageQueue, timestamp_ms: int) -> RemotingCommand:
    fields = {**_queue_fields(queue), "timestamp": str(timestamp_ms), "boundaryType": "LOWER"}
    return request(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, fields)


def parse_offset(answer: RemotingCommand, address: str) -> QueueOffset:
    """Return the offset in an answer to any of the requests above.

    Raises:
        RequestRefused: there is none (22: the group has no offset yet).
    """
    return QueueOffset(_number(require_success(answer, address), "offset"))


def _queue_fields(queue: MessageQueue) -> dict[str, str]:
    return {"topic": queue.topic, "queueId": str(queue.queue_id), "bname": queue.broker_name}


def lock(group: str, client_id: str, queues: Iterable[MessageQueue]) -> RemotingCommand:
    return request(RequestCode.LOCK_BATCH_MQ, body=_lock_body(group, client_id, queues))


def unlock(
    group: str, client_id: str, queues: Iterable[MessageQueue], oneway: bool = False
) -> RemotingCommand:
    return request(RequestCode.UNLOCK_BATCH_MQ, body=_lock_body(group, client_id, queues), oneway=oneway)


def _lock_body(group: str, client_id: str, queues: Iterable[MessageQueue]) -> bytes:
    return json.dumps(
        {
            "consumerGroup": group,
            "clientId": client_id,
            "onlyThisBroker": False,
            "mqSet": [queue_json(queue) for queue in queues],
        }
    )


def parse_locked(answer: RemotingCommand) -> set[MessageQueue]:
    """Return the queues that the client now holds."""
    value = json.loads(answer.body) if len(answer.body) else {}
    items: Sequence[Any] = value.get("lockOKMQSet") or () if isinstance(value, dict) else ()
    return {queue_of_json(item) for item in items}


def queue_json(queue: MessageQueue) -> dict[str, Any]:
    return {"topic": queue.topic, "brokerName": queue.broker_name, "queueId": queue.queue_id}


def queue_of_json(item: Any) -> MessageQueue:
    """Return the queue that a JSON object names.

    Raises:
        PeerError: it names none.
    """
    try:
        return MessageQueue(str(item["topic"]), str(item["brokerName"]), int(item["queueId"]))
    except (KeyError, TypeError, ValueError) as error:
        raise PeerError(f"no message queue: {item!r:.200}") from error
