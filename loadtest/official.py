"""RocketMQ's own benchmark programs (rocketmq-example), unmodified, against whichever broker.

They print, every second, the mean of their last ten seconds, so a run whose figures are theirs measures at
least ten; what the broker holds is counted by itself over the same stretch of time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest.compare import Figures
from loadtest.machine import CpuMeter, CpuUse
from loadtest.processes import folder, writing
from loadtest.remote import Broker
from loadtest.rocketmq import java
from loadtest.servers import Server

PACKAGE: Final = "org.apache.rocketmq.example.benchmark"
HEAP: Final = ("-Xms1g", "-Xmx1g", "-XX:+UseG1GC")
REPORT_COVERS_S: Final = 10.0
DISPATCH_FREE_S: Final = 0.2
"""Until so long after the last acknowledgement dispatching may go on without counting."""
START_S: Final = 30.0
_NUMBER: Final = r":\s*([\d.]+)"


class Stalled(RuntimeError):
    """A program did not get going: a client that finds its name server too slow once never sends at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the programs are to do, and for how long."""

    size: int
    threads: int
    consume: bool
    warm_s: float
    seconds: float


def fields_of(line: str, names: dict[str, str]) -> Figures:
    """Return the figures of one report, under our names.

    Args:
        names: what the report calls a figure, and what we do.
    """
    found = {ours: re.search(re.escape(theirs) + _NUMBER, line) for theirs, ours in names.items()}
    return {ours: float(match[1]) for ours, match in found.items() if match}


PRODUCER_FIGURES: Final = {
    "Send TPS": "reported_rate",
    "Average RT(ms)": "round_trip_ms",
    "Max RT(ms)": "round_trip_max_ms",
    "Send Failed": "send_failed",
    "Response Failed": "response_failed",
}
CONSUMER_FIGURES: Final = {
    "Consume TPS": "consume_rate",
    "AVG(B2C) RT(ms)": "born_to_consume_ms",
    "MAX(B2C) RT(ms)": "born_to_consume_max_ms",
}


def last_report(output: str, names: dict[str, str]) -> Figures:
    """Return the newest report in what a program printed; empty without one."""
    reports = [line for line in output.splitlines() if next(iter(names)) in line]
    return fields_of(reports[-1], names) if reports else {}


def measure(server: Server, work: Work, number: int) -> tuple[Figures, CpuUse]:
    """Run the producer, and the consumer beside it where asked for, against a topic of their own.

    Raises:
        Stalled: a program does not get going.
        RuntimeError: messages are lost or changed.
    """
    topic = f"bench_{work.size}_{work.threads}_{'both' if work.consume else 'prod'}_{number}"
    with Broker(server.broker) as broker, folder("official") as home:
        broker.create_topic(topic)
        with _programs(server, work, topic, home) as pids:
            _wait_for_messages(broker, topic, home)
            time.sleep(work.warm_s)
            figures, cpu = _sample(server, pids, broker, topic, work.seconds)
            figures |= last_report((home / "producer.out").read_text(), PRODUCER_FIGURES)
            if work.consume:
                figures |= last_report((home / "consumer.out").read_text(), CONSUMER_FIGURES)
        return _after(broker, topic, figures, work.seconds), cpu


@contextmanager
def _programs(server: Server, work: Work, topic: str, home: Path) -> Iterator[list[int]]:
    common = ("-n", server.namesrv, "-t", topic, "-ri", 1_000)
    produce = java(f"{PACKAGE}.Producer", *common, "-s", work.size, "-w", work.threads, heap=HEAP, home=home)
    if not work.consume:
        with writing(produce, home / "producer.out") as producer:
            yield [producer.pid]
        return
    consume = java(f"{PACKAGE}.Consumer", *common, "-g", f"g_{topic}", heap=HEAP, home=home)
    with writing(consume, home / "consumer.out") as consumer:
        time.sleep(4)  # it joins its group before there is anything to read
        with writing(produce, home / "producer.out") as producer:
            yield [producer.pid, consumer.pid]


def _wait_for_messages(broker: Broker, topic: str, home: Path) -> None:
    deadline = time.monotonic() + START_S
    while broker.readable(topic) == 0:
        if time.monotonic() > deadline:
            output = (home / "producer.out").read_text()[-2_000:]
            raise Stalled(f"the official producer sent nothing in {START_S} s: {output}")
        time.sleep(0.05)


def _sample(
    server: Server, pids: list[int], broker: Broker, topic: str, seconds: float
) -> tuple[Figures, CpuUse]:
    """Count what becomes readable in so many seconds, and what that costs."""
    meter, before, began = CpuMeter(server.pids, pids), broker.readable(topic), time.monotonic()
    time.sleep(seconds)
    count, took = broker.readable(topic) - before, time.monotonic() - began
    cpu = meter.stop()
    figures = {
        "rate": count / took,
        "count": float(count),
        "server_cpu_us": cpu.server_s / count * 1e6,
        "client_cpu_us": cpu.clients_s / count * 1e6,
        "server_cores": cpu.server_s / cpu.seconds,
    }
    return figures, cpu


def _after(broker: Broker, topic: str, figures: Figures, seconds: float) -> Figures:
    """Add what shows only when nobody sends any more: dispatch, and every message read back."""
    late_s = max(broker.dispatch_s() - DISPATCH_FREE_S, 0.0)
    readable, stored = broker.readable(topic), broker.read_back(topic)
    if stored.count != readable or len(stored.bodies) != 1:
        raise RuntimeError(f"{readable} messages, {stored.count} read, {len(stored.bodies)} different bodies")
    figures = figures | {"read_back": float(stored.count), "dispatched_late_s": late_s}
    figures["rate"] *= seconds / (seconds + late_s)
    # Their own figure where there is one: it is what this benchmark is known by.
    if seconds >= REPORT_COVERS_S and "reported_rate" in figures:
        figures["counted_rate"] = figures["rate"]
        figures["rate"] = figures["reported_rate"]
    return figures
