"""The rows of the native clients: workers are processes of their own; what they sent is counted."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from subprocess import Popen
from typing import Any, Final

from loadtest.compare import Figures
from loadtest.machine import CpuMeter, CpuUse
from loadtest.processes import talking
from loadtest.remote import Broker
from loadtest.servers import Server
from loadtest.worker import pool

DISPATCH_FREE_S: Final = 0.2
MANY_CONNECTIONS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How much of what; see `worker.py`."""

    size: int
    pool: int
    seconds: float = 0.0
    rounds: int = 1
    count: int = 0
    rate: float = 1_000.0


class Worker:
    """A worker's side that we hold: its lines."""

    def __init__(self, process: Popen[str], work: str) -> None:
        assert process.stdout
        self.pid = process.pid
        self._lines = process.stdout
        self._work = work

    def began(self) -> None:
        """Return when the measured part begins."""
        self._line("begin")

    def result(self) -> dict[str, Any]:
        """Return the result, once it has ended."""
        found = self._line(None)
        assert isinstance(found, dict)
        return found

    def _line(self, wanted: str | None) -> Any:
        line = self._lines.readline()
        if not line or (wanted and json.loads(line) != wanted):
            raise RuntimeError(f"the worker that was to {self._work} ended: {line!r}")
        return json.loads(line)


@contextmanager
def working(server: Server, work: str, topic: str, options: Work, **more: str) -> Iterator[Worker]:
    """Run one worker."""
    words = {
        "warm-topic": f"{topic}_warm",
        "size": options.size,
        "pool": options.pool,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "count": options.count,
        "rate": options.rate,
        **more,
    }
    command = [sys.executable, "-m", "loadtest.worker", server.kind, work, server.url, topic]
    command += [text for name, value in words.items() for text in (f"--{name}", str(value))]
    with talking(command) as process:
        yield Worker(process, work)


def create(server: Server, *topics: str) -> None:
    """Make the topics; Kafka's are made by its worker, whose client can."""
    if server.kind != "kafka":
        with Broker(server.broker) as broker:
            for topic in topics:
                broker.create_topic(topic)


# --- the rows ------------------------------------------------------------------------------------------


def produce(server: Server, work: Work, number: int) -> tuple[Figures, CpuUse]:
    """Acknowledged messages a second, one call per message."""
    topic = f"produce_{work.size}_{number}"
    create(server, topic, f"{topic}_warm")
    with working(server, "produce", topic, work) as worker:
        found, cpu = _measured(server, worker)
        late_s = _dispatched_late_s(server)
    found["rate"] *= found["seconds"] / (found["seconds"] + late_s)
    _check(server, topic, work, found["count"], found.pop("rounds"))
    return _with_cpu(found | {"dispatched_late_s": late_s}, cpu), cpu


def sync(server: Server, work: Work, number: int) -> tuple[Figures, CpuUse]:
    """One at a time."""
    topic = f"sync_{work.size}_{number}"
    create(server, topic, f"{topic}_warm")
    with working(server, "sync", topic, work) as worker:
        found, cpu = _measured(server, worker)
    _check(server, topic, work, found["count"], None)
    return _with_cpu(found, cpu), cpu


def consume(server: Server, work: Work, number: int) -> tuple[Figures, CpuUse]:
    """A backlog, taken by one process that commits its offsets."""
    topic, group = f"consume_{work.size}_{number}", f"g_consume_{work.size}_{number}"
    create(server, topic, f"{topic}_warm")
    with working(server, "produce", topic, work) as worker:
        worker.began()
        filled = int(worker.result()["count"])
    _dispatched_late_s(server)
    backlog = Work(size=work.size, pool=work.pool, count=filled)
    with working(server, "consume", topic, backlog, group=group) as worker:
        found, cpu = _measured(server, worker)
    if found["wrong"] or found["count"] != filled:
        raise RuntimeError(
            f"{server.kind}: {found['wrong']:.0f} of {filled} messages lost, changed or doubled"
        )
    if server.kind != "kafka":
        with Broker(server.broker) as broker:
            committed = broker.committed(group, topic)
        if committed != filled:
            raise RuntimeError(f"{server.kind}: {committed} of {filled} offsets are committed")
    return _with_cpu(found, cpu), cpu


def end_to_end(server: Server, work: Work, number: int) -> tuple[Figures, CpuUse]:
    """Age of messages on arrival at a gentle rate; two processes."""
    topic, group = f"paced_{work.size}_{number}", f"g_paced_{work.size}_{number}"
    create(server, topic, f"{topic}_warm")
    with ExitStack() as stack:
        consumer = stack.enter_context(working(server, "arrive", topic, work, group=group))
        consumer.began()
        producer = stack.enter_context(working(server, "paced", topic, work))
        producer.began()
        meter = CpuMeter(server.pids, [consumer.pid, producer.pid])
        sent, found = producer.result(), consumer.result()
        cpu = meter.stop()
    if found["count"] != work.count:
        raise RuntimeError(f"{server.kind}: {found['count']} of {work.count} messages arrived")
    return _with_cpu(found | {"behind_p99_us": sent["behind_p99_us"]}, cpu), cpu


def server_us(cpu: CpuUse, count: float) -> float:
    """Return the server's microseconds for one message; less than one step of its clock is one."""
    return max(cpu.server_s, 1 / os.sysconf("SC_CLK_TCK")) / count * 1e6


def connections(server: Server, work: Work, number: int) -> tuple[Figures, CpuUse]:
    """What a message costs the server when many connections send one at a time, and when one does."""
    topic = f"connections_{work.size}_{number}"
    create(server, topic)
    figures: Figures = {"count": 0.0}
    for count in (1, MANY_CONNECTIONS):
        words = ["--connections", count, "--size", work.size, "--seconds", max(work.seconds, 0.2)]
        command = [sys.executable, "-m", "loadtest.connections", server.broker, topic, *map(str, words)]
        with talking(command) as process:
            found, cpu = _measured(server, Worker(process, "send on many connections"))
        figures["count"] += found["count"]
        figures[f"rate_{count}"] = found["count"] / cpu.seconds
        figures[f"server_cpu_us_{count}"] = server_us(cpu, found["count"])
    figures["cpu_ratio"] = figures[f"server_cpu_us_{MANY_CONNECTIONS}"] / figures["server_cpu_us_1"]
    _dispatched_late_s(server)
    with Broker(server.broker) as broker:
        if broker.readable(topic) != figures["count"]:
            raise RuntimeError(f"{broker.readable(topic)} of {figures['count']} messages are there")
    return figures, cpu


# --- their parts ---------------------------------------------------------------------------------------


def _measured(server: Server, worker: Worker) -> tuple[dict[str, Any], CpuUse]:
    worker.began()
    meter = CpuMeter(server.pids, [worker.pid])
    found = worker.result()
    return found, meter.stop()


def _with_cpu(found: dict[str, Any], cpu: CpuUse) -> Figures:
    costs = {
        "server_cpu_us": cpu.server_s / found["count"] * 1e6,
        "client_cpu_us": cpu.clients_s / found["count"] * 1e6,
    }
    return {name: float(value) for name, value in (found | costs).items()}


def _dispatched_late_s(server: Server) -> float:
    if server.kind == "kafka":
        return 0.0
    with Broker(server.broker) as broker:
        return max(broker.dispatch_s() - DISPATCH_FREE_S, 0.0)


def _check(server: Server, topic: str, work: Work, acknowledged: int, rounds: int | None) -> None:
    """Read everything back, and compare it with what was sent.

    Raises:
        RuntimeError: a message is missing, changed or there twice.
    """
    bodies = pool(work.size, work.pool)
    if rounds is None:
        sent = Counter(bodies[number % len(bodies)] for number in range(acknowledged))
    else:
        sent = Counter(dict.fromkeys(bodies, rounds))
    if server.kind == "kafka":
        _check_by_consumer(server, topic, work, acknowledged)
        return
    with Broker(server.broker) as broker:
        require_same(sent, broker.read_back(topic).bodies)


def require_same(sent: Counter[bytes], stored: Counter[bytes]) -> None:
    """Refuse the run when a body is there more or less often than it was sent.

    Raises:
        RuntimeError: how many are missing, and how many too many.
    """
    missing, extra = (sent - stored).total(), (stored - sent).total()
    if missing or extra:
        raise RuntimeError(f"of {sent.total()} messages {missing} are missing, {extra} are too many")


def _check_by_consumer(server: Server, topic: str, work: Work, count: int) -> None:
    check = Work(size=work.size, pool=work.pool, count=count)
    with working(server, "consume", topic, check, group=f"g_check_{topic}") as worker:
        worker.began()
        found = worker.result()
    if found["count"] != count or (count % work.pool == 0 and found["wrong"]):
        raise RuntimeError(f"{server.kind}: {found['count']} of {count} messages, {found['wrong']} wrong")
