"""Who has nothing to do sleeps, and is woken when there is something: calls counted, no lost wake-up."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from actormq_process import Dev, running_dev
from gateway_process import Peer, heartbeat, roles, until
from gateway_rig import pull_request, send_request
from process.odd_clients import NativePeer

from actormq.client import Producer, connect_sync
from actormq.store import record as records

IDLE_CALLS_A_SECOND = 2.0
COORDINATOR_CALLS_A_SECOND = 10.0
WINDOW_S = 4.0
SENDS = 100_000
"""Two seconds at 50,000 a second."""
TOTAL = re.compile(r"^100\.00 .* total$")


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    with running_dev(gateways=3) as broker:
        yield broker
        assert broker.stop() == 0


class Traced:
    """Counts the system calls of processes from now on."""

    def __init__(self, folder: Path, pids: dict[str, int]) -> None:
        strace = shutil.which("strace")
        if strace is None:
            pytest.skip("needs strace: it counts system calls")
        self._files = {name: folder / f"{name}.calls" for name in pids}
        self._began = time.monotonic()
        self._tracers = [
            subprocess.Popen(
                [strace, "-c", "-f", "-o", str(self._files[name]), "-p", str(pid)], stderr=subprocess.PIPE
            )
            for name, pid in pids.items()
        ]
        for tracer in self._tracers:
            assert tracer.stderr
            said = tracer.stderr.readline().decode()
            if "attached" not in said:
                self.a_second()
                pytest.skip(f"strace may not look at processes here: {said}")

    def a_second(self) -> dict[str, float]:
        """Return how many calls each process made a second, until now."""
        seconds = time.monotonic() - self._began
        for tracer in self._tracers:
            tracer.send_signal(signal.SIGINT)
        for tracer in self._tracers:
            tracer.wait()
            assert tracer.stderr
            tracer.stderr.close()
        return {name: calls_in(path) / seconds for name, path in self._files.items()}


def calls_in(path: Path) -> int:
    """Return the total of strace's table; an empty one is no call at all."""
    total = [line.split() for line in path.read_text().splitlines() if TOTAL.match(line.strip())]
    return int(total[0][3]) if total else 0


def test_idle_roles_sleep(dev: Dev, tmp_path: Path) -> None:
    """At most two system calls a second each: no polling.

    A role may be busy in one window (a registration, a flush that was due): not in three.
    """
    restless = roles(dev)
    assert len(restless) >= 12
    for _ in range(3):
        traced = Traced(tmp_path, restless)
        time.sleep(WINDOW_S)  # its length is what calls are counted over
        rates = traced.a_second()
        print({name: round(rate, 1) for name, rate in rates.items()})
        restless = {name: restless[name] for name, rate in rates.items() if rate > IDLE_CALLS_A_SECOND}
        if not restless:
            return
    pytest.fail(f"not idle: {rates}")


def test_the_coordinator_rests_under_load(dev: Dev, tmp_path: Path) -> None:
    """At most ten system calls a second while others send as fast as they can."""
    with connect_sync(f"zmq://{dev.namesrv_zmq}") as client, client.producer() as producer:
        send(producer, 1_000)
        traced = Traced(tmp_path, {"coordinator": roles(dev)["coordinator"]})
        began = time.monotonic()
        send(producer, SENDS)
        while time.monotonic() - began < WINDOW_S / 2:
            send(producer, SENDS // 10)
        rate = traced.a_second()["coordinator"]
        print(f"{SENDS / (time.monotonic() - began):.0f} sends/s or more, {rate:.1f} calls/s")
        assert rate <= COORDINATOR_CALLS_A_SECOND


def send(producer: Producer, count: int) -> None:
    """Send, and see that each was stored."""
    futures = [producer.send_async("load", b"x" * 128) for _ in range(count)]
    for future in futures:
        assert future.result(60).queue_offset >= 0


# --- wake-ups ----------------------------------------------------------------------------------------------

SUSPEND_MS = 50_000
BEAT_S = 1.0
"""As native clients do: their lease is short."""
LATE_MS = 50.0


def wake_ups(dev: Dev, front: str, count: int) -> list[float]:
    """Let a consumer wait for one message after the other; return how long each took, in milliseconds.

    Each is sent at a random moment around that at which the pull for it is parked, and nobody else does
    anything: a wake-up that gets lost is not made up for by the next one.
    """
    topic, group = f"wake-{front}", f"g-wake-{front}"
    consumer: Any = Peer(dev) if front == "tcp" else NativePeer(dev)
    producer: Any = Peer(dev) if front == "tcp" else NativePeer(dev)
    stored = producer.ask(send_request(topic))
    assert stored.code == 0
    offset = int(stored.fields["queueOffset"]) + 1
    chance, times, beat_at = random.Random(count), [], 0.0
    for number in range(count):
        if time.monotonic() > beat_at + BEAT_S:
            beat_at = time.monotonic()
            assert consumer.ask(heartbeat(f"c-{front}", group, topic)).code == 0
            until("its subscription is known", partial(pull_is_empty, consumer, topic, group, offset))
        pull = pull_request(topic, group, offset, suspend_ms=SUSPEND_MS)
        message = send_request(topic, b"%d" % number)
        # Mostly the message arrives while the pull is on its way to the holder; now and then all sleep fast.
        ahead_s = 0.005 if number % 50 == 0 else chance.uniform(-0.0008, 0.0004)
        first, second = ((consumer, pull), (producer, message))[:: 1 if ahead_s > 0 else -1]
        first[0].tell(first[1])
        wait_until = time.monotonic() + abs(ahead_s)
        while time.monotonic() < wait_until:
            pass
        began = time.monotonic()
        second[0].tell(second[1])
        answer = consumer.answer_to(pull)
        times.append((time.monotonic() - began) * 1e3)
        assert answer.code == 0, answer.remark
        # At its end a pull is looked at once more: what nobody was woken for comes then.
        assert times[-1] < SUSPEND_MS / 2, f"message {number} stayed where it was for {times[-1]:.0f} ms"
        assert bytes(records.decode(memoryview(bytes(answer.body))).body) == b"%d" % number
        assert producer.answer_to(message).code == 0
        offset += 1
    consumer.close()
    producer.close()
    return times


def pull_is_empty(consumer: Any, topic: str, group: str, offset: int) -> bool:
    return bool(consumer.ask(pull_request(topic, group, offset, flags=0)).code == 19)


def say(times: list[float]) -> None:
    times.sort()
    parts = {
        name: times[int(len(times) * part)] for name, part in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    }
    late = sum(one > LATE_MS for one in times)
    shown = ", ".join(f"{name} {value:.2f} ms" for name, value in parts.items())
    print(f"{len(times)} wake-ups: {shown}, longest {times[-1]:.1f} ms, {late} later than {LATE_MS:.0f} ms")


def test_no_wake_up_is_lost(dev: Dev) -> None:
    """6,000 messages, each alone: none stays undelivered until the next one, or until the pull's end."""
    times = wake_ups(dev, "tcp", 3_000) + wake_ups(dev, "zmq", 3_000)
    say(times)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_no_wake_up_is_late_in_a_million(dev: Dev) -> None:
    """And all but one of ten thousand within 50 ms, on a machine that clients and broker share."""
    times = wake_ups(dev, "tcp", 500_000) + wake_ups(dev, "zmq", 500_000)
    say(times)
    assert times[int(len(times) * 0.9999)] <= LATE_MS
