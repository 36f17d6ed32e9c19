"""What is measured: each case with its two sides, its goals, and how much work a run is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from loadtest import large, native, official, servers, storage
from loadtest.clients import CLIENTS
from loadtest.compare import Figures, Goal
from loadtest.machine import CpuUse
from loadtest.servers import Server
from loadtest.worker import POOL

Measure = Callable[[Server, int], tuple[Figures, CpuUse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the comparison.

    Attributes:
        key: its name on the command line, with the size behind a colon.
        sides: kinds of servers; the first is ours.
        measure: one run against a running server; the number makes its topic a new one.
        settings: by side, what was asked of its client.
    """

    key: str
    name: str
    size: int
    goals: tuple[Goal, ...]
    sides: tuple[str, ...]
    measure: Measure
    settings: dict[str, str]

    @property
    def group(self) -> str:
        return self.key.partition("-")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How much work one run is."""

    seconds: float = 20.0
    """Of the official programs, after their warm-up."""
    warm_s: float = 12.0
    produce_s: float = 4.0
    sync_count: int = 10_000
    backlog: int = 500_000
    paced_s: float = 10.0
    pool: int = POOL
    store_bytes: int = 1 << 30
    topics: int = 10_000
    long_bytes: int = 10_000_000_000
    backlog_bytes: int = 4_300_000_000
    drain_s: float = 8.0
    file_sizes: Mapping[str, int] = field(default_factory=lambda: servers.SIZES)


FULL: Final = Amounts()
QUICK: Final = Amounts(
    produce_s=0.0,
    sync_count=100,
    backlog=1_000,
    paced_s=0.2,
    pool=200,
    store_bytes=16 << 20,
    topics=5,
    long_bytes=1_000_000,
    backlog_bytes=1_000_000,
    drain_s=0.2,
    file_sizes=servers.SMALL_SIZES,
)
PACED_PER_SECOND: Final = 1_000.0
SIZES: Final = (128, 1024)


def official_cases(amounts: Amounts, sizes: Sequence[int] = SIZES) -> list[Case]:
    """Return the rows of RocketMQ's own benchmark programs."""
    cases = []
    for size in sizes:
        cases.append(_producer(amounts, size, 64, 1.4, 0.25))
        cases.append(_producer(amounts, size, 1, 0.9, None))
        cases.append(_producer_and_consumer(amounts, size))
    if SYNC_SIZE in sizes:
        cases.append(_sync_producer(amounts))
    return cases


def _sync_producer(amounts: Amounts) -> Case:
    """Return the row in which both sides acknowledge what their disk has."""
    plain = _producer(amounts, SYNC_SIZE, 64, 1.2, None)
    return replace(
        plain,
        key="official-sync-64",
        name="official Producer, 64 threads, sync flush",
        sides=("actormq-sync", "rocketmq-sync"),
    )


def _producer(amounts: Amounts, size: int, threads: int, rate: float, cpu: float | None) -> Case:
    work = official.Work(
        size=size, threads=threads, consume=False, warm_s=amounts.warm_s, seconds=amounts.seconds
    )
    return Case(
        key=f"official-producer-{threads}",
        name=f"official Producer, {threads} thread{'s' * (threads > 1)}",
        size=size,
        goals=(
            _rate(rate),
            _server_cpu(cpu),
            Goal(figure="round_trip_ms", unit="ms mean"),
        ),
        sides=("actormq", "rocketmq"),
        measure=lambda server, number: official.measure(server, work, number),
        settings={},
    )


def _producer_and_consumer(amounts: Amounts, size: int) -> Case:
    work = official.Work(size=size, threads=8, consume=True, warm_s=amounts.warm_s, seconds=amounts.seconds)
    return Case(
        key="official-both-8",
        name="official Producer (8 threads) + Consumer",
        size=size,
        goals=(
            _rate(1.3),
            Goal(figure="consume_rate", unit="consumed/s", at_least=1.3),
            Goal(figure="born_to_consume_ms", unit="ms mean", at_most=1.0),
            _server_cpu(),
        ),
        sides=("actormq", "rocketmq"),
        measure=lambda server, number: official.measure(server, work, number),
        settings={},
    )


STORE_SIZE: Final = 1024
SYNC_SIZE: Final = 1024
_FILE_BYTES_MIN: Final = 8 << 20


def store_cases(amounts: Amounts) -> list[Case]:
    """Return the row of the store without a broker around it."""
    file_bytes = max(amounts.store_bytes // 4, _FILE_BYTES_MIN)
    work = storage.Work(size=STORE_SIZE, total_bytes=amounts.store_bytes, file_bytes=file_bytes)
    return [
        Case(
            key="store-append",
            name="the store alone, one process, async",
            size=STORE_SIZE,
            goals=(Goal(figure="mib_per_s", unit="MiB/s", at_least=0.5),),
            sides=("store", "write"),
            measure=lambda server, number: storage.measure(server, work),
            settings={},
        )
    ]


def large_cases(amounts: Amounts) -> list[Case]:
    """Return the rows of a store that is large."""
    long_log = large.Work(
        topics=amounts.topics,
        log_bytes=amounts.long_bytes,
        seconds=amounts.drain_s,
        sizes=amounts.file_sizes,
    )
    backlog = replace(long_log, log_bytes=amounts.backlog_bytes)
    topics = (
        _bound("create_s", "s for all, one by one", 60),
        _bound("clean_start_s", "s to start", 10),
        _bound("killed_start_s", "s to start after a kill"),
        _bound("memory_mb", "MB", 300),
        _bound("descriptors", "descriptors"),
    )
    starts = (
        _bound("clean_start_s", "s to start", 1),
        _bound("killed_start_s", "s to start after a kill", 5),
        _bound("killed_memory_mb", "MB", 150),
    )
    drain = (
        _bound("send_ratio", "send p99 ÷ without", 2),
        _bound("tail_ratio", "newest message p99 ÷ without", 2),
        _bound("drain_s", "s to drain"),
    )
    return [
        _large("topics", f"{amounts.topics:,} topics × 8 queues", topics, long_log, large.many_topics),
        _large(
            "start",
            f"{amounts.long_bytes / 1e9:g} GB of log, not in memory",
            starts,
            long_log,
            large.long_log,
        ),
        _large(
            "drain",
            f"beside a group that reads {amounts.backlog_bytes / 1e9:g} GB",
            drain,
            backlog,
            large.drain,
        ),
    ]


def _large(
    key: str,
    name: str,
    goals: tuple[Goal, ...],
    work: large.Work,
    measure: Callable[[Server, large.Work, int], tuple[Figures, CpuUse]],
) -> Case:
    return Case(
        key=f"large-{key}",
        name=name,
        size=large.BODY_BYTES,
        goals=goals,
        sides=("folder",),
        measure=lambda server, number: measure(server, work, number),
        settings={},
    )


def _bound(figure: str, unit: str, at_most: float | None = None) -> Goal:
    return Goal(figure=figure, unit=unit, of="ours", at_most=at_most)


def native_cases(amounts: Amounts, sizes: Sequence[int] = SIZES) -> list[Case]:
    """Return the rows of the native Python clients; the other side is confluent-kafka."""
    cases = []
    for size in sizes:
        produce = native.Work(size=size, pool=amounts.pool, seconds=amounts.produce_s)
        sync = native.Work(size=size, pool=amounts.pool, count=amounts.sync_count)
        backlog = native.Work(size=size, pool=amounts.pool, rounds=-(-amounts.backlog // amounts.pool))
        paced = native.Work(
            size=size,
            pool=amounts.pool,
            count=int(amounts.paced_s * PACED_PER_SECOND),
            rate=PACED_PER_SECOND,
        )
        costs = (_server_cpu(), Goal(figure="client_cpu_us", unit="µs client CPU/msg"))
        cases += [
            _native(
                "produce",
                "produce, acknowledged",
                size,
                produce,
                native.produce,
                _rate(1.2),
                *costs,
            ),
            _native("sync", "send, one at a time", size, sync, native.sync, _p50(70), _p99()),
            _native("paced", "end to end at 1,000/s", size, paced, native.end_to_end, _p50(150), _p99()),
            _native(
                "consume",
                "consume a backlog",
                size,
                backlog,
                native.consume,
                _rate(1.2),
                *costs,
            ),
            _connections(size, produce),
        ]
    return cases


def _connections(size: int, work: native.Work) -> Case:
    return Case(
        key="native-connections",
        name="64 connections and one, each one at a time",
        size=size,
        goals=(
            Goal(figure="cpu_ratio", unit="server CPU/msg, of one's", of="ours", at_most=0.6),
            Goal(figure="server_cpu_us_64", unit="µs server CPU/msg", of="ours"),
            Goal(figure="rate_64", unit="msg/s", of="ours"),
        ),
        sides=("actormq",),
        measure=lambda server, number: native.connections(server, work, number),
        settings={},
    )


def _rate(at_least: float) -> Goal:
    return Goal(figure="rate", unit="msg/s", at_least=at_least)


def _server_cpu(at_most: float | None = None) -> Goal:
    return Goal(figure="server_cpu_us", unit="µs server CPU/msg", at_most=at_most)


def _p50(at_most: float) -> Goal:
    return Goal(figure="p50_us", unit="µs p50", of="ours", at_most=at_most)


def _p99() -> Goal:
    return Goal(figure="p99_us", unit="µs p99")


def _native(
    key: str,
    name: str,
    size: int,
    work: native.Work,
    measure: Callable[[Server, native.Work, int], tuple[Figures, CpuUse]],
    *goals: Goal,
) -> Case:
    kind = {"paced": "sync"}.get(key, key)
    return Case(
        key=f"native-{key}",
        name=f"Python client: {name}",
        size=size,
        goals=goals,
        sides=("actormq", "kafka"),
        measure=lambda server, number: measure(server, work, number),
        settings={side: client.settings[kind] for side, client in CLIENTS.items()},
    )
