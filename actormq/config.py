"""Settings, typed and checked: one section per role, handed down; nothing else reads files or environment.

RocketMQ's key names (``broker.conf``) are mapped in `actormq.cli.settings`; here are the values and bounds.
Sizes are bytes, times milliseconds unless the name says otherwise.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from actormq.errors import ConfigError

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_GIB: Final = 1024 * _MIB
_DAY_MS: Final = 86_400_000
_COUNT_MAX: Final = 1_000_000
_NAME: Final = re.compile(r"[^\x00-\x20\x7f/\\:;,@#]{1,127}")
"""Of brokers and clusters: system topics, and so folders, have these names."""


class FlushMode(str, Enum):
    """When a send is acknowledged: once appended, or once synced."""

    ASYNC = "async"
    SYNC = "sync"


class RecordCrc(str, Enum):
    """Which records end with a CRC of all of them: topic and properties, too, not the body alone."""

    AUTO = "auto"
    """With `FlushMode.SYNC`: who pays for the disk pays for this, too."""
    ON = "on"
    OFF = "off"


class BadValue(ConfigError):
    """A setting has a value that cannot work; whoever knows where it was written may say so."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field} {what}")
        self.field = field


def _check(condition: bool, sentence: str) -> None:
    if not condition:
        raise ConfigError(sentence)


def _check_bounds(section: object, **bounds: tuple[int, int]) -> None:
    """Check integers: what is out of all reason would show later, as a crash or as no memory left."""
    for name, (least, most) in bounds.items():
        value = getattr(section, name)
        if not least <= value <= most:
            raise BadValue(name, f"must be between {least:,} and {most:,}, not {value:,}")


def _check_port(section: object, name: str) -> None:
    port = getattr(section, name)
    if port is not None and not 0 <= port <= 65_535:
        raise BadValue(name, f"cannot be {port}: no port has that number")


def _check_name(section: object, name: str) -> None:
    value = getattr(section, name)
    if not _NAME.fullmatch(value) or not value.strip("."):
        raise BadValue(
            name, f"cannot be {value!r}: 1 to 127 characters without blanks and any of / \\ : ; , @ #"
        )


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdecimal() and int(port) <= 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Files and their sizes.  Source of the defaults: MessageStoreConfig.java."""

    root: Path
    log_file_bytes: int = 1024 * 1024 * 1024
    queue_file_entries: int = 300_000
    batch_queue_file_entries: int = 300_000
    queue_ext: bool = False
    """Queue entries lead to tags code and store time in `consumequeue_ext` (RocketMQ's consume queue ext)."""
    queue_ext_file_bytes: int = 48 * _MIB
    index_slots: int = 5_000_000
    index_entries: int = 20_000_000
    index_enabled: bool = True
    flush: FlushMode = FlushMode.ASYNC
    flush_interval_ms: int = 500
    flush_least_pages: int = 4
    flush_thorough_interval_ms: int = 10_000
    flush_timed: bool = True
    """Async mode: the interval passes even when `flush_on_append` would end it."""
    flush_on_append: bool = False
    """Async mode: with enough pages there is no waiting for the interval (only without `flush_timed`)."""
    flush_queue_interval_ms: int = 1_000
    flush_queue_least_pages: int = 0
    """Queues with fewer new pages wait for the thorough interval.  RocketMQ's default is 2; but a crash makes
    recovery dispatch again what was not synced, and that is to be a second's work, not a minute's."""
    flush_queue_thorough_interval_ms: int = 60_000
    sync_flush_timeout_ms: int = 5_000
    pool_enabled: bool = False
    """The store pool (RocketMQ's transient store pool): async mode acknowledges from memory."""
    pool_bytes: int = 5 * 64 * _MIB
    pool_commit_interval_ms: int = 200
    pool_commit_least_pages: int = 4
    pool_commit_thorough_interval_ms: int = 200
    pool_commit_on_append: bool = True
    """With enough pages there is no waiting for the interval."""
    pool_fail_fast: bool = False
    """Refuse sends while the pool is full, instead of letting them wait."""
    body_bytes_max: int = 4 * 1024 * 1024
    retention_hours: int = 72
    delete_when: str = "04"
    clean_interval_ms: int = 10_000
    """How often old files are looked for."""
    disk_expire_percent: int = 75
    """Of the disk: with more, files that are old enough go at any hour."""
    disk_force_percent: int = 85
    """With more, the oldest files go whatever their age (with `force_clean`)."""
    disk_warning_percent: int = 90
    """With more, sends are refused."""
    force_clean: bool = True
    delete_batch_max: int = 10
    """Log files that go in one round; more rounds follow."""
    delete_interval_ms: int = 100
    """Between two of them: removing a large file keeps the disk busy."""
    delete_wait_ms: int = 120_000
    """How long readers that are still inside a file are waited for."""
    warm_files: bool = False
    """Write log files full of zeros when they are made: the first write into them finds them in memory."""
    warm_flush_pages: int = 4_096
    check_crc_on_recover: bool = True
    record_crc: RecordCrc = RecordCrc.AUTO
    demand_record_crc: bool = False
    """Recovery calls a record without such a CRC damaged."""

    def __post_init__(self) -> None:
        _check_bounds(
            self,
            log_file_bytes=(_MIB, 2 * _GIB - 1),
            queue_file_entries=(100, 50_000_000),
            batch_queue_file_entries=(1, 20_000_000),
            queue_ext_file_bytes=(100, 2 * _GIB - 1),
            index_slots=(1, 100_000_000),
            index_entries=(2, 100_000_000),
            flush_interval_ms=(1, _DAY_MS),
            flush_least_pages=(0, _COUNT_MAX),
            flush_thorough_interval_ms=(1, _DAY_MS),
            flush_queue_interval_ms=(1, _DAY_MS),
            flush_queue_least_pages=(0, _COUNT_MAX),
            flush_queue_thorough_interval_ms=(1, _DAY_MS),
            pool_bytes=(_MIB, 64 * _GIB),
            pool_commit_interval_ms=(1, _DAY_MS),
            pool_commit_least_pages=(0, _COUNT_MAX),
            pool_commit_thorough_interval_ms=(1, _DAY_MS),
            sync_flush_timeout_ms=(1, _DAY_MS),
            body_bytes_max=(1, 16 * _MIB),
            retention_hours=(0, _COUNT_MAX),
            clean_interval_ms=(1, _DAY_MS),
            disk_expire_percent=(1, 100),
            disk_force_percent=(1, 100),
            disk_warning_percent=(1, 100),
            delete_batch_max=(1, _COUNT_MAX),
            delete_interval_ms=(0, _DAY_MS),
            delete_wait_ms=(0, _DAY_MS),
            warm_flush_pages=(1, _COUNT_MAX),
        )
        _check(
            self.body_bytes_max + 128 * 1024 <= self.log_file_bytes or self.log_file_bytes >= 8 << 20,
            "maxMessageSize plus 128 KiB must fit into one commit log file",
        )
        _check(
            not self.pooled or self.pool_bytes >= 4 * (self.body_bytes_max + _MIB),
            f"pool_bytes must be at least {4 * (self.body_bytes_max + _MIB):,}: four of the largest messages",
        )
        hours = [part.strip() for part in self.delete_when.split(";")]
        if not all(hour.isascii() and hour.isdecimal() and int(hour) < 24 for hour in hours):
            raise BadValue("delete_when", f"must be hours like 04 or 04;16, not {self.delete_when!r}")

    @property
    def writes_record_crc(self) -> bool:
        """Whether new records get a CRC of their own."""
        if self.record_crc == RecordCrc.AUTO:
            return self.flush == FlushMode.SYNC
        return self.record_crc == RecordCrc.ON

    @property
    def pooled(self) -> bool:
        """Whether the store pool is in use: never in sync mode, as in RocketMQ."""
        return self.pool_enabled and self.flush is FlushMode.ASYNC


def gateways_for(cores: int) -> int:
    """Return how many gateways a broker on so many cores starts unless it is told: below four, one is more
    than the other roles leave room for; beyond three the one writer is the limit."""
    return 1 if cores < 4 else min(cores // 2, 3)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Fronts and their limits."""

    count: int = field(default_factory=lambda: gateways_for(_cores()))
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
    unfinished_bytes_max: int = 256 * 1024 * 1024
    cold_bytes_per_second: int = 64 * 1024 * 1024
    """Of old messages from the disk, each gateway, while others send; 0: without limit."""

    def __post_init__(self) -> None:
        _check(1 <= self.count <= 32, "gateways must be between 1 and 32")
        _check_port(self, "port")
        _check_port(self, "zmq_port")
        _check_bounds(
            self,
            frame_bytes_max=(64 * _KIB, _GIB),
            connections_max=(1, _COUNT_MAX),
            idle_timeout_ms=(1, 365 * _DAY_MS),
            waiting_requests_max=(1, _COUNT_MAX),
            waiting_bytes_max=(64 * _KIB, 16 * _GIB),
            waiting_ms_max=(0, _DAY_MS),
            reply_bytes_max=(64 * _KIB, 16 * _GIB),
            unfinished_bytes_max=(64 * _KIB, 64 * _GIB),
            cold_bytes_per_second=(0, 1024 * _GIB),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """Shared memory: the sizes of rings and tables."""

    append_ring_bytes: int = 4 * 1024 * 1024 + 1024 * 1024
    internal_ring_bytes: int = 256 * 1024
    completion_ring_bytes: int = 256 * 1024
    park_ring_bytes: int = 64 * 1024
    tables_bytes: int = 4 * 1024 * 1024
    queue_rows_max: int = 100_000

    def __post_init__(self) -> None:
        _check_bounds(
            self,
            append_ring_bytes=(256 * _KIB, _GIB),
            internal_ring_bytes=(64 * _KIB, _GIB),
            completion_ring_bytes=(16 * _KIB, _GIB),
            park_ring_bytes=(16 * _KIB, _GIB),
            tables_bytes=(128 * _KIB, _GIB),
            queue_rows_max=(64, 16_000_000),
        )


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

    def __post_init__(self) -> None:
        _check_bounds(
            self,
            default_topic_queues=(1, _COUNT_MAX),
            client_expiry_ms=(1, 365 * _DAY_MS),
            native_lease_ms=(1, 365 * _DAY_MS),
            lock_expiry_ms=(1, 365 * _DAY_MS),
            offsets_interval_ms=(1, _DAY_MS),
            register_interval_ms=(1, _DAY_MS),
        )


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

    def __post_init__(self) -> None:
        _check_bounds(
            self,
            heartbeat_interval_ms=(1, _DAY_MS),
            silence_ms=(1, _DAY_MS),
            restart_backoff_ms=(0, _DAY_MS),
            restart_backoff_max_ms=(0, _DAY_MS),
            crash_loop_restarts=(1, _COUNT_MAX),
            crash_loop_window_ms=(1, _DAY_MS),
            stop_timeout_ms=(1, _DAY_MS),
        )


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
        _check_port(self, "port")
        _check_port(self, "zmq_port")
        _check_bounds(
            self,
            scan_interval_ms=(100, _DAY_MS),
            broker_expiry_ms=(1, 365 * _DAY_MS),
            connections_max=(1, _COUNT_MAX),
            idle_timeout_ms=(1, 365 * _DAY_MS),
        )


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

    def __post_init__(self) -> None:
        _check_name(self, "name")
        _check_name(self, "cluster")
        _check_bounds(self, permission=(0, 7))
        if self.broker_id != 0:
            raise BadValue("broker_id", "must be 0: a broker that is a slave is not there yet")
        for address in self.namesrv_addrs:
            if not _is_address(address):
                raise BadValue("namesrv_addrs", f"must be HOST:PORT each, and {address!r} is not")
