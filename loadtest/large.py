"""The rows of a store that is large: starting with many topics, or with a long log, and reading what is old.

A case gets a folder and starts brokers in it itself: after a clean stop, and after the supervisor was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from actormq import Producer
from actormq.cli.remote import split_address
from actormq.client.futures import SendFuture
from actormq.wire import frame
from actormq.wire.command import RemotingCommand
from actormq.wire.headers import RequestCode
from loadtest.compare import Figures
from loadtest.machine import CpuMeter, CpuUse, memory_mb, tree
from loadtest.remote import Broker
from loadtest.servers import Server, life

QUEUES: Final = 8
BODY_BYTES: Final = 1_024
_ROWS: Final = {"ACTORMQ_MEMORY_QUEUE_ROWS_MAX": 100_000, "ACTORMQ_MEMORY_TABLES_BYTES": 4 << 20}
"""A broker's own defaults instead of dev's."""
_RATE: Final = 500.0
_UNDER_WAY: Final = 256
_KEPT: Final = 50_000
"""So many outcomes are looked at later."""
_LENGTH: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How much; files of which sizes (settings of the broker)."""

    topics: int
    log_bytes: int
    seconds: float
    sizes: Mapping[str, int]


@contextmanager
def _started(folder: Path, sizes: Mapping[str, int]) -> Iterator[tuple[float, Server, subprocess.Popen[str]]]:
    """Start a broker; give the seconds until it was ready, too."""
    began = time.monotonic()
    with life(folder, "async", sizes) as (server, process):
        yield time.monotonic() - began, server, process


def _stop(process: subprocess.Popen[str], how: signal.Signals) -> None:
    """End a broker and see all its processes gone: killed, its roles find out by themselves."""
    processes = tree([process.pid])
    process.send_signal(how)
    deadline = time.monotonic() + 60
    while any(one.is_running() for one in processes):
        if time.monotonic() > deadline:
            raise TimeoutError("the broker did not end")
        process.poll()
        time.sleep(0.01)


def drop_cache() -> bool:
    """Have the kernel forget the pages of all files; False where we may not."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


# --- many topics -----------------------------------------------------------------------------------------


def many_topics(server: Server, work: Work, number: int) -> tuple[Figures, CpuUse]:
    """Topics made one by one, a message in every queue; starts after a clean stop and after a kill."""
    folder, sizes = Path(server.url) / str(number), {**work.sizes, **_ROWS}
    folder.mkdir()
    meter = CpuMeter([], [])
    with _started(folder, sizes) as (_, broker, process):
        began = time.monotonic()
        names = [f"Topic{number}_{index:05d}" for index in range(work.topics)]
        with Broker(broker.broker, QUEUES) as remote:
            for name in names:
                remote.create_topic(name)
            create_s = time.monotonic() - began
            _send_to_each(broker.broker, names)
            remote.dispatch_s()
        figures = {"create_s": create_s, "fresh_memory_mb": memory_mb([process.pid])}
        _stop(process, signal.SIGTERM)
    with _started(folder, sizes) as (seconds, broker, process):
        figures |= {"clean_start_s": seconds, "memory_mb": memory_mb([process.pid])}
        _send_to_each(broker.broker, names)
        with Broker(broker.broker, QUEUES) as remote:
            remote.dispatch_s()
            found = remote.readable(names[-1])
        if found != 2 * QUEUES:
            raise ValueError(f"{names[-1]} has {found} messages, not {2 * QUEUES}")
        figures["descriptors"] = float(sum(one.num_fds() for one in tree([process.pid])))
        _stop(process, signal.SIGKILL)
    with _started(folder, sizes) as (seconds, broker, process):
        figures |= {"killed_start_s": seconds, "killed_memory_mb": memory_mb([process.pid])}
        _stop(process, signal.SIGTERM)
    shutil.rmtree(folder)
    return figures, meter.stop()


def _send_to_each(address: str, names: list[str]) -> None:
    """Store a message in every queue of the topics, many under way at once.

    Raises:
        RuntimeError: one was refused.
    """
    queues = [(name, queue_id) for name in names for queue_id in range(QUEUES)]
    with socket.create_connection(split_address(address), 60) as sock:
        cutter = frame.FrameCutter()
        for start in range(0, len(queues), _UNDER_WAY):
            some = queues[start : start + _UNDER_WAY]
            sock.sendall(b"".join(frame.encode(_send(*queue)) for queue in some))
            answered = 0
            while answered < len(some):
                for data in cutter.feed(sock.recv(1 << 20)):
                    answer = frame.decode(data)
                    if answer.code:
                        raise RuntimeError(f"a message was refused: {answer.code} {answer.remark}")
                    answered += 1


def _send(topic: str, queue_id: int) -> RemotingCommand:
    fields = {
        "a": "bench", "b": topic, "c": "TBW102", "d": "4", "e": str(queue_id), "f": "0",
        "g": str(int(time.time() * 1000)), "h": "0", "i": "", "j": "0", "k": "false",
    }  # fmt: skip
    return RemotingCommand.request(RequestCode.SEND_MESSAGE_V2, fields, b"x" * 100)


# --- a long log ------------------------------------------------------------------------------------------


def long_log(server: Server, work: Work, number: int) -> tuple[Figures, CpuUse]:
    """Starts on a log of `work.log_bytes`, nothing of it in memory: after a clean stop and after a kill."""
    folder, topic, log_bytes = Path(server.url) / str(number), f"Long{number}", work.log_bytes
    folder.mkdir()
    meter = CpuMeter([], [])
    with _started(folder, work.sizes) as (_, broker, process):
        fill(broker, topic, log_bytes)
        _stop(process, signal.SIGTERM)
    dropped = drop_cache()
    with _started(folder, work.sizes) as (seconds, broker, process):
        figures = {"log_gb": log_bytes / 1e9, "cache_dropped": float(dropped), "clean_start_s": seconds}
        figures["clean_memory_mb"] = memory_mb([process.pid])
        fill(broker, topic, log_bytes // 20)
        _stop(process, signal.SIGKILL)
    drop_cache()
    with _started(folder, work.sizes) as (seconds, broker, process):
        figures |= {"killed_start_s": seconds, "killed_memory_mb": memory_mb([process.pid])}
        with Broker(broker.broker, QUEUES) as remote:
            figures["messages"] = float(remote.readable(topic))
        _stop(process, signal.SIGTERM)
    shutil.rmtree(folder)
    return figures, meter.stop()


def fill(broker: Server, topic: str, log_bytes: int) -> None:
    """Send messages of a kilobyte until they are `log_bytes` long, and wait until they can be read."""
    with Broker(broker.broker, QUEUES) as remote:
        remote.create_topic(topic)
        body = os.urandom(BODY_BYTES)
        with Producer(broker.url, group="bench") as producer:
            outcomes: deque[SendFuture] = deque()
            for _ in range(log_bytes // BODY_BYTES):
                outcomes.append(producer.send_async(topic, body))
                if len(outcomes) > _KEPT:
                    outcomes.popleft().result()
            for outcome in outcomes:
                outcome.result()
        remote.dispatch_s()


# --- somebody else's backlog -----------------------------------------------------------------------------


def drain(server: Server, work: Work, number: int) -> tuple[Figures, CpuUse]:
    """What one sender and one reader of the newest feel while a group reads old messages from the disk.

    In turn, without and with it; a drain that ends before the measurement does would flatter it.

    Raises:
        RuntimeError: something was lost, or the drain was too short.
    """
    folder = Path(server.url) / str(number)
    folder.mkdir()
    messages = work.log_bytes // BODY_BYTES
    meter = CpuMeter([], [])
    with _started(folder, work.sizes) as (_, broker, _process):
        fill(broker, "Backlog", work.log_bytes)
        quiet = _latency(broker, work.seconds)
        dropped = drop_cache()
        reading = _bench(broker, "consume", "Backlog", "--from", "earliest", "--count", str(messages))
        disturbed = _latency(broker, work.seconds)
        drained = _said(reading)
        quiet_again = _latency(broker, work.seconds)
    shutil.rmtree(folder)
    if drained["messages"] < messages:
        raise RuntimeError(f"only {drained['messages']} of {messages} old messages were read")
    figures = {
        "drained_gb": work.log_bytes / 1e9,
        "drain_s": drained["seconds"],
        "measured_s": work.seconds,
        "cache_dropped": float(dropped),
    }
    for name, latencies in (("quiet", quiet), ("drain", disturbed), ("after", quiet_again)):
        figures |= {f"{name}_{who}_p99_ms": value for who, value in latencies.items()}
    for who in ("send", "tail"):
        without = (figures[f"quiet_{who}_p99_ms"] + figures[f"after_{who}_p99_ms"]) / 2
        figures[f"{who}_ratio"] = figures[f"drain_{who}_p99_ms"] / without
    return figures, meter.stop()


def _latency(broker: Server, seconds: float) -> Figures:
    """Return the 99th percentiles to the acknowledgement and to the listener, at a rate that costs little."""
    words = ("--seconds", str(seconds), "--rate", str(_RATE))
    said = _said(_bench(broker, "latency", "Tail", *words))
    count = int(_RATE * seconds)
    if said["sent"]["messages"] != count or said["received"]["messages"] != count:
        raise RuntimeError(f"not all of {count} messages were sent and received: {said}")
    return {"send": said["sent"]["latency_ms"]["p99"], "tail": said["received"]["latency_ms"]["p99"]}


def _bench(broker: Server, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "actormq.cli.main", "bench", *words, "--json", "-n", broker.namesrv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _said(process: subprocess.Popen[str]) -> Any:
    printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
    return json.loads(printed)
