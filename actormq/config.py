"""Settings, typed and checked: one section per role, handed down; nothing else reads files or environment.

RocketMQ's key names (``broker.conf``) are mapped in `actormq.cli.settings`; here are the values and bounds.
Sizes are bytes, times milliseconds unless the name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from actormq.errors import ConfigError


class FlushMode(str, Enum):
    """When a send is acknowledged: once appended, or once synced."""

    ASYNC = "async"
    SYNC = "sync"


def _check(condition: bool, sentence: str) -> None:
    if not condition:
        raise ConfigError(sentence)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Files and their sizes.  Source of the defaults: MessageStoreConfig.java."""

    root: Path
    log_file_bytes: int = 1024 * 1024 * 1024
    queue_file_entries: int = 300_000
    index_slots: int = 5_000_000
    index_entries: int = 20_000_000
    index_enabled: bool = True
    flush: FlushMode = FlushMode.ASYNC
    flush_interval_ms: int = 500
    flush_least_pages: int = 4
    flush_thorough_interval_ms: int = 10_000
    flush_queue_interval_ms: int = 1_000
    sync_flush_timeout_ms: int = 5_000
    body_bytes_max: int = 4 * 1024 * 1024
    retention_hours: int = 72
    delete_when: str = "04"
    clean_interval_ms: int = 10_000
    """How often old files are looked for."""
    disk_warning_percent: int = 90
    check_crc_on_recover: bool = True

    def __post_init__(self) -> None:
        _check(self.log_file_bytes >= 1024 * 1024, "mappedFileSizeCommitLog must be at least 1 MiB")
        _check(
            self.body_bytes_max + 128 * 1024 <= self.log_file_bytes or self.log_file_bytes >= 8 << 20,
            "maxMessageSize plus 128 KiB must fit into one commit log file",
        )
        _check(self.queue_file_entries >= 100, "mappedFileSizeConsumeQueue must hold at least 100 entries")
        _check(self.clean_interval_ms >= 1, "cleanResourceInterval must be at least 1 ms")
        _check(self.index_slots >= 1 and self.index_entries >= 2, "an index file needs slots and entries")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Fronts and their limits."""

    count: int = 1
    host: str = "127.0.0.1"
    port: int = 10911
    zmq_port: int | None = None
    vip_port: bool = True
    frame_bytes_max: int = 16 * 1024 * 1024
    connections_max: int = 10_000
    idle_timeout_ms: int = 120_000
    waiting_requests_max: int = 10_000
    waiting_bytes_max: int = 64 * 1024 * 1024
    waiting_ms_max: int = 200
    reply_bytes_max: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        _check(1 <= self.count <= 32, "gateways must be between 1 and 32")
        for port in (self.port, self.zmq_port or 0):
            _check(0 <= port <= 65_535, f"{port} is no port number")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """Shared memory: the sizes of rings and tables."""

    append_ring_bytes: int = 4 * 1024 * 1024 + 1024 * 1024
    internal_ring_bytes: int = 256 * 1024
    completion_ring_bytes: int = 256 * 1024
    park_ring_bytes: int = 64 * 1024
    tables_bytes: int = 4 * 1024 * 1024
    queue_rows_max: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """Topics, groups, members, offsets and locks."""

    auto_create_topics: bool = True
    auto_create_groups: bool = True
    default_topic_queues: int = 8
    client_expiry_ms: int = 120_000
    native_lease_ms: int = 5_000
    lock_expiry_ms: int = 60_000
    offsets_interval_ms: int = 5_000
    register_interval_ms: int = 30_000
    delay_levels: str = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorConfig:
    """How roles are watched."""

    heartbeat_interval_ms: int = 1_000
    silence_ms: int = 3_000
    """A role that did not beat for so long is reported (never killed for it)."""
    restart_backoff_ms: int = 20
    restart_backoff_max_ms: int = 2_000
    crash_loop_restarts: int = 20
    crash_loop_window_ms: int = 10_000
    stop_timeout_ms: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NameServerConfig:
    """The name server's fronts and timers.  Source: NamesrvConfig.java."""

    host: str = "127.0.0.1"
    port: int = 9876
    zmq_port: int | None = 9877
    scan_interval_ms: int = 5_000
    broker_expiry_ms: int = 120_000
    kv_path: Path | None = None
    """Where the KV configuration is kept; None keeps it in memory only."""
    order_message_enable: bool = False
    return_order_topic_config: bool = True
    enable_all_topic_list: bool = True
    enable_topic_list: bool = True
    support_acting_master: bool = False
    delete_topic_with_broker_registration: bool = False
    connections_max: int = 10_000
    idle_timeout_ms: int = 120_000
    log_path: Path | None = None
    other_keys: dict[str, str] = field(default_factory=dict)
    """RocketMQ keys that we do not use."""

    def __post_init__(self) -> None:
        for port in (self.port, self.zmq_port or 0):
            _check(0 <= port <= 65_535, f"{port} is no port number")
        _check(self.scan_interval_ms >= 100, "scanNotActiveBrokerInterval must be at least 100 ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """Everything one broker is told at start."""

    store: StoreConfig
    name: str = "broker-a"
    cluster: str = "DefaultCluster"
    broker_id: int = 0
    advertised_host: str = "127.0.0.1"
    namesrv_addrs: tuple[str, ...] = ()
    permission: int = 6
    region: str = "DefaultRegion"
    trace_on: bool = True
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    coordinator: CoordinatorConfig = field(default_factory=CoordinatorConfig)
    supervisor: SupervisorConfig = field(default_factory=SupervisorConfig)
    namesrv: NameServerConfig | None = None
    log_path: Path | None = None
    other_keys: dict[str, str] = field(default_factory=dict)
    """RocketMQ keys that we do not use; kept for GET_BROKER_CONFIG."""
