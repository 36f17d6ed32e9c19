"""Trouble, typed: every exception says which RocketMQ response code answers it.

Expected outcomes are values, not exceptions; a broken invariant is an ``assert``.
The peer's fault (`PeerError` and below) and ours (`BrokerError` and below) are different classes.
"""

from __future__ import annotations

from enum import IntEnum


class ResponseCode(IntEnum):
    """RocketMQ's answers.  Source: RemotingSysResponseCode.java, ResponseCode.java."""

    SUCCESS = 0
    SYSTEM_ERROR = 1
    SYSTEM_BUSY = 2
    REQUEST_CODE_NOT_SUPPORTED = 3
    TRANSACTION_FAILED = 4
    FLUSH_DISK_TIMEOUT = 10
    SLAVE_NOT_AVAILABLE = 11
    FLUSH_SLAVE_TIMEOUT = 12
    MESSAGE_ILLEGAL = 13
    SERVICE_NOT_AVAILABLE = 14
    VERSION_NOT_SUPPORTED = 15
    NO_PERMISSION = 16
    TOPIC_NOT_EXIST = 17
    TOPIC_EXIST_ALREADY = 18
    PULL_NOT_FOUND = 19
    PULL_RETRY_IMMEDIATELY = 20
    PULL_OFFSET_MOVED = 21
    QUERY_NOT_FOUND = 22
    SUBSCRIPTION_PARSE_FAILED = 23
    SUBSCRIPTION_NOT_EXIST = 24
    SUBSCRIPTION_NOT_LATEST = 25
    SUBSCRIPTION_GROUP_NOT_EXIST = 26
    FILTER_DATA_NOT_EXIST = 27
    FILTER_DATA_NOT_LATEST = 28
    INVALID_PARAMETER = 29
    TRANSACTION_SHOULD_COMMIT = 200
    TRANSACTION_SHOULD_ROLLBACK = 201
    TRANSACTION_STATE_UNKNOW = 202
    TRANSACTION_STATE_GROUP_WRONG = 203
    NO_BUYER_ID = 204
    NOT_IN_CURRENT_UNIT = 205
    CONSUMER_NOT_ONLINE = 206
    CONSUME_MSG_TIMEOUT = 207
    NO_MESSAGE = 208
    POLLING_FULL = 209
    POLLING_TIMEOUT = 210
    BROKER_NOT_EXIST = 211
    BROKER_DISPATCH_NOT_COMPLETE = 212
    BROADCAST_CONSUMPTION = 213
    FLOW_CONTROL = 215
    NOT_LEADER_FOR_QUEUE = 501
    ILLEGAL_OPERATION = 604
    GO_AWAY = 1500


class ActorMQError(Exception):
    """The root of everything ActorMQ raises on purpose.

    Attributes:
        remark: one sentence for a person: what is wrong and what to do.
        response_code: what a RocketMQ client is answered.
        retryable: whether the same request may succeed later.
    """

    response_code: int = ResponseCode.SYSTEM_ERROR
    retryable: bool = False

    def __init__(self, remark: str, *, response_code: int | None = None) -> None:
        super().__init__(remark)
        self.remark = remark
        if response_code is not None:
            self.response_code = response_code


class ConfigError(ActorMQError):
    """A setting is missing or wrong; the command prints the sentence and exits with 2."""


class PeerError(ActorMQError):
    """The other side sent something that it should not have sent."""


class FrameError(PeerError):
    """Bytes that are no frame: the connection they came on is closed."""


class RequestError(PeerError):
    """A well-formed request that cannot be served; answered with its code and remark."""

    def __init__(self, response_code: int, remark: str) -> None:
        super().__init__(remark, response_code=response_code)


class BrokerError(ActorMQError):
    """Trouble on our side of the wire."""


class StoreError(BrokerError):
    """The store cannot do what was asked; nothing already stored is harmed."""

    response_code = ResponseCode.SERVICE_NOT_AVAILABLE


class StoreFull(StoreError):
    """No room for another segment; sends are refused until there is."""

    retryable = True


class StoreFailed(StoreError):
    """A write or sync of the store failed: the broker stops, and never tries it again."""


class StoreForeign(StoreError):
    """The folder holds something that is not (or not wholly) a store that we know."""


class StoreLocked(StoreError):
    """Another broker, or what is left of one, works on this folder."""


class ClientError(ActorMQError):
    """What a producer or consumer could not do; the broker may be fine."""


class MessageRejected(ClientError):
    """The client's own checks refused the message: nothing was sent."""

    response_code = ResponseCode.MESSAGE_ILLEGAL


class ConnectFailed(ClientError):
    """No connection could be made to an address."""

    response_code = 10_001
    retryable = True


class ConnectionLost(ClientError):
    """A connection ended with the request unanswered: it may or may not have been served."""

    response_code = 10_001
    retryable = True


class RequestTimeout(ClientError):
    """No answer came in time: the request may or may not have been served."""

    response_code = 10_002
    retryable = True


class BrokerUnknown(ClientError):
    """The route names no address for the broker that is needed (no master, or it is gone)."""

    response_code = 10_003
    retryable = True


class NameServerUnavailable(ClientError):
    """None of the name servers answered."""

    response_code = 10_004
    retryable = True


class RouteNotFound(ClientError):
    """No name server knows the topic, and it cannot be created on demand."""

    response_code = 10_005
    retryable = True


class RequestRefused(ClientError):
    """The other side answered with an error; its code and remark are kept."""

    def __init__(self, response_code: int, remark: str | None, address: str) -> None:
        super().__init__(
            f"{address} answered {response_code}: {remark or 'no remark'}", response_code=response_code
        )
        self.peer_remark = remark
        self.address = address


class SendFailed(ClientError):
    """Every attempt to send failed; the last failure is the cause, all of them are in `failures`."""

    def __init__(self, remark: str, failures: list[ClientError]) -> None:
        super().__init__(remark, response_code=failures[-1].response_code if failures else None)
        self.failures = failures
        self.retryable = bool(failures) and failures[-1].retryable


class WindowFull(ClientError):
    """Too much is waiting to be sent: the broker is slower than the caller, who should wait and try again."""

    response_code = ResponseCode.SYSTEM_BUSY
    retryable = True


class ClientClosed(ClientError):
    """The producer or consumer was closed (or never started)."""
