"""The ring between two processes: nothing lost, nothing changed, whoever is killed on the way."""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actormq.kernels.rings import FENCED
from actormq.shm.doorbell import doorbell_fd
from actormq.shm.positions import Positions, RoleCell
from actormq.shm.ring import Port
from actormq.shm.segment import Segment, sweep

WORKER = Path(__file__).with_name("ring_worker.py")
PRODUCER, CONSUMER = 16, 1
DEADLINE_S = 110
VARIANTS = [pytest.param("1", id="python")]
if FENCED:
    VARIANTS.append(pytest.param("", id="compiled"))


class Bench:
    """The memory, and the processes that share it."""

    def __init__(self, prefix: str, pure: str) -> None:
        self.port = Port.create(prefix, "append", 1 << 16, 64)
        self.page = Segment.create(prefix, "positions", Positions.payload_bytes())
        self.positions = Positions(self.page.view)
        self.kill_asked, self.kill = os.pipe()
        self.fds = {
            "port": self.port.segment.fd,
            "positions": self.page.fd,
            "kill": self.kill,
            f"bell-{PRODUCER}": doorbell_fd(),
            f"bell-{CONSUMER}": doorbell_fd(),
        }
        self.pure = pure
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, role: str, **given: int) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, str(WORKER), role, json.dumps(self.fds | given)],
            pass_fds=list(self.fds.values()),
            env=os.environ | {"ACTORMQ_PURE": self.pure},
        )
        self.children.append(child)
        return child

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
        self.port.close()
        self.page.close()
        for name in ("kill", f"bell-{PRODUCER}", f"bell-{CONSUMER}"):
            os.close(self.fds[name])
        os.close(self.kill_asked)


@pytest.fixture
def prefix() -> Iterator[str]:
    name = f"amqt{secrets.token_hex(4)}"
    yield name
    sweep(name)


def wait_for_progress(bench: Bench, consumer: subprocess.Popen[bytes]) -> None:
    """Return when the consumer has come so far that it may be killed."""
    gone = os.pidfd_open(consumer.pid)
    try:
        ready = select.select([bench.kill_asked, gone], [], [], DEADLINE_S)[0]
        assert bench.kill_asked in ready, "the consumer died of itself" if ready else "the consumer hangs"
        os.read(bench.kill_asked, 1)
    finally:
        os.close(gone)


def stress(bench: Bench, records: int, kills: int) -> None:
    """Run a producer against one consumer after the other; each dies by SIGKILL but the last."""
    every = records // (kills + 1)
    given = {"records": records, "size_max": (1 << 16) - 8, "kill_every": every}
    producer = bench.start("produce", **given)
    for _ in range(kills):
        consumer = bench.start("consume", **given)
        wait_for_progress(bench, consumer)
        consumer.kill()
        assert consumer.wait() == -9
    assert bench.start("consume", **given).wait(DEADLINE_S) == 0
    assert producer.wait(DEADLINE_S) == 0
    assert bench.positions.role(CONSUMER, RoleCell.COUNTER_1) == records


@pytest.mark.parametrize("pure", VARIANTS)
def test_nothing_is_lost_when_consumers_are_killed(prefix: str, pure: str) -> None:
    """Random sizes up to the whole ring, full and empty and wrapping; checksummed and numbered."""
    bench = Bench(prefix, pure)
    try:
        stress(bench, records=100_000 if pure else 1_000_000, kills=4)
    finally:
        bench.close()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.skipif(not FENCED, reason="kernels are not compiled")
def test_ten_million_records(prefix: str) -> None:
    """The same, longer, with more deaths."""
    bench = Bench(prefix, "")
    try:
        stress(bench, records=10_000_000, kills=20)
    finally:
        bench.close()
