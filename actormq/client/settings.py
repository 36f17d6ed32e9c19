"""Settings of clients, producers and consumers, checked when they are made.

Times are milliseconds, sizes bytes.  Defaults are RocketMQ's (client.md §15) unless the line says why not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from actormq.client.balance import Average, Strategy
from actormq.client.batching import BatchLimits
from actormq.client.procedures import Address
from actormq.client.results import MessageModel, StartFrom
from actormq.client.window import WindowLimits
from actormq.errors import ConfigError, ResponseCode
from actormq.message import BODY_BYTES_MAX, GROUP_LENGTH_MAX

TCP: Final = "tcp"
ZMQ: Final = "zmq"
_DEFAULT_PORTS: Final = {TCP: 9876, ZMQ: 9877}
_SCHEMES: Final = {"rocketmq": TCP, "zmq": ZMQ}


def _check(condition: bool, sentence: str) -> None:
    if not condition:
        raise ConfigError(sentence)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a client begins: its name servers, and whether brokers may be talked to over ZeroMQ."""

    name_servers: tuple[Address, ...]
    allows_zmq: bool


def parse_endpoint(url: str) -> Endpoint:
    """Return what ``rocketmq://host:port[,host:port]`` or ``zmq://…`` means; no scheme means ``rocketmq``.

    Raises:
        ConfigError: another scheme, no host, or no port number.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "rocketmq", url
    _check(scheme in _SCHEMES, f"{url!r}: the scheme is rocketmq:// or zmq://, not {scheme}://")
    kind = _SCHEMES[scheme]
    hosts = [part.strip() for part in rest.rstrip("/").replace(";", ",").split(",") if part.strip()]
    _check(
        bool(hosts),
        f"{url!r} names no name server; write for example {scheme}://127.0.0.1:{_DEFAULT_PORTS[kind]}",
    )
    return Endpoint(tuple(_address(kind, host) for host in hosts), kind == ZMQ)


def _address(kind: str, text: str) -> Address:
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        host, port = text, str(_DEFAULT_PORTS[kind])
    _check(bool(host) and port.isdigit() and 0 < int(port) < 65_536, f"{text!r} is no host:port")
    return Address(f"{kind}://{host}:{port}")


def check_group(group: str) -> None:
    """Refuse a group name that no broker would accept.

    Raises:
        ConfigError: empty, too long, or illegal characters.
    """
    legal = all(character.isalnum() or character in "%|_-" for character in group) and group.isascii()
    _check(
        bool(group) and len(group) <= GROUP_LENGTH_MAX and legal,
        f"group {group!r}: 1 to {GROUP_LENGTH_MAX} letters, digits, %, |, _ or -",
    )
    _check(group not in ("DEFAULT_PRODUCER", "DEFAULT_CONSUMER"), f"group {group} is reserved; choose a name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What all producers and consumers of one client share."""

    instance: str | None = None
    """Second half of the client id; default: process id and start time.  Give one to broadcasting consumers
    that shall find their offsets again."""
    connect_timeout_ms: int = 3_000
    request_timeout_ms: int = 3_000
    route_interval_ms: int = 30_000
    unknown_route_interval_ms: int = 1_000
    """How often a topic that does not exist yet is asked for (RocketMQ: 30 s; then a consumer that started
    before the first send stays silent for half a minute)."""
    heartbeat_interval_ms: int = 30_000
    lease_interval_ms: int = 1_000
    """Heartbeats to brokers over ZeroMQ, where the broker cannot see a client die (its lease is 5 s)."""
    lease_valid_ms: int = 4_000
    """How long a native client believes in its queue locks without an answer to a heartbeat: less than the
    broker's lease, so that it has stopped before somebody else begins."""
    frame_bytes_max: int = 16 * 1024 * 1024
    outgoing_bytes_max: int = 64 * 1024 * 1024
    """What may wait unsent on one connection."""
    direct_connections_max: int = 64
    """To one broker, for threads that send and wait; more threads wait for each other."""
    direct_idle_ms: int = 30_000
    """When such a connection that nobody needs is closed; sooner than brokers do it (120 s)."""

    def __post_init__(self) -> None:
        _check(
            min(self.connect_timeout_ms, self.request_timeout_ms, self.route_interval_ms) > 0
            and min(self.unknown_route_interval_ms, self.heartbeat_interval_ms, self.lease_interval_ms) > 0
            and self.direct_idle_ms > 0,
            "times are at least 1 ms",
        )
        _check(self.direct_connections_max > 0, "direct_connections_max is at least 1")


RETRYABLE_CODES: Final = frozenset(
    {
        int(ResponseCode.TOPIC_NOT_EXIST),
        int(ResponseCode.SERVICE_NOT_AVAILABLE),
        int(ResponseCode.SYSTEM_ERROR),
        int(ResponseCode.SYSTEM_BUSY),
        int(ResponseCode.NO_PERMISSION),
        int(ResponseCode.NO_BUYER_ID),
        int(ResponseCode.NOT_IN_CURRENT_UNIT),
        int(ResponseCode.GO_AWAY),
    }
)
"""Answers after which another queue is tried.  Source: client.md §2.3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerSettings:
    """How one producer sends."""

    send_timeout_ms: int = 3_000
    """For all attempts together."""
    retries: int = 5
    retry_pause_ms: int = 50
    """Before the second attempt, doubled each time.  RocketMQ: 2 retries without a pause; ours last 1.5 s,
    longer than a broker takes to replace a process that died."""
    retry_other_broker_when_not_ok: bool = False
    retry_codes: frozenset[int] = RETRYABLE_CODES
    compress_from_bytes: int = 4_096
    body_bytes_max: int = BODY_BYTES_MAX
    window_timeout_ms: int = 3_000
    """How long `send_async` waits for room in the window."""
    queues_wanted: int = 4
    """For topics that the broker creates on demand."""
    offset_message_ids: bool = False
    """Whether results of `send_async` have the broker's ids: 32 digits a message in each answer.  Without,
    `offset_message_id` may be empty; unique key, or queue and offset, name the message as well."""
    batch: BatchLimits = field(default_factory=BatchLimits)

    def __post_init__(self) -> None:
        _check(min(self.send_timeout_ms, self.window_timeout_ms) > 0, "time-outs are at least 1 ms")
        _check(0 <= self.retries <= 100 and self.retry_pause_ms >= 0, "retries are 0 to 100")
        _check(self.compress_from_bytes > 0, "compress_from_bytes is at least 1")
        _check(1 <= self.queues_wanted <= 1_024, "queues_wanted is 1 to 1024")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """How one consumer group member consumes."""

    model: MessageModel = MessageModel.CLUSTERING
    orderly: bool = False
    """Each queue by one consumer and one worker at a time, in order; failures are repeated in place."""
    start_from: StartFrom = StartFrom.LAST
    start_timestamp_ms: int | None = None
    """For StartFrom.TIMESTAMP; wall clock."""
    strategy: Strategy = field(default_factory=Average)
    workers: int = 20
    """Threads (or asyncio tasks) that run listeners."""
    window: WindowLimits = field(default_factory=WindowLimits)
    pull_messages: int = 8_192
    """RocketMQ: 32, and its brokers never give more; a broker of ours gives what is asked for (see
    docs/performance.md)."""
    pull_bytes: int = 1024 * 1024
    suspend_ms: int = 15_000
    """How long the broker may hold a pull that finds nothing."""
    pull_timeout_ms: int = 30_000
    pause_after_error_ms: int = 1_000
    """How long a queue rests at most after pulls that failed (RocketMQ: always 3 s)."""
    commit_interval_ms: int = 5_000
    rebalance_interval_ms: int = 20_000
    rebalance_soon_ms: int = 1_000
    """When the last rebalance could not finish."""
    reconsume_max: int = -1
    """-1: 16 deliveries, then the dead-letter topic; orderly: without end."""
    suspend_queue_ms: int = 1_000
    """Orderly: how long a queue rests after a failure."""
    lock_renew_ms: int = 20_000
    lock_valid_ms: int = 30_000
    send_back_timeout_ms: int = 5_000
    send_back_retry_ms: int = 5_000
    listener_timeout_ms: int = 15 * 60_000
    """Concurrent: a message that its listener has held for longer is given back for others."""
    close_wait_ms: int = 10_000
    """How long `close` waits for listeners that are running."""
    offsets_folder: Path = Path("~/.actormq/offsets")
    """Broadcasting: where offsets are kept."""

    def __post_init__(self) -> None:
        _check(1 <= self.workers <= 1_000, "workers are 1 to 1000")
        _check(1 <= self.pull_messages <= 32_768, "pull_messages is 1 to 32768")
        _check(self.pull_timeout_ms > self.suspend_ms > 0, "pull_timeout_ms must be longer than suspend_ms")
        _check(self.lock_valid_ms > self.lock_renew_ms > 0, "lock_valid_ms must be longer than lock_renew_ms")
        _check(
            (self.start_from is StartFrom.TIMESTAMP) == (self.start_timestamp_ms is not None),
            "start_timestamp_ms belongs to StartFrom.TIMESTAMP, and it needs one",
        )
