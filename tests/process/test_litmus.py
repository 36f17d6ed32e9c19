"""The handshake of going to sleep, between two processes: no wake-up is lost.

`litmus` plays its core millions of times; with the fence removed it must find losses, or it proves
nothing.  `hand_off` plays the whole of it, descriptors and polls included, without any timer.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actormq.kernels.rings import FENCED
from actormq.shm.doorbell import doorbell_fd
from actormq.shm.positions import Positions
from actormq.shm.segment import Segment, sweep

WORKER = Path(__file__).with_name("ring_worker.py")
SLOTS = (16, 1)
DEADLINE_S = 110
compiled_only = pytest.mark.skipif(not FENCED, reason="uncompiled code has no fence: there bells always ring")


@pytest.fixture
def prefix() -> Iterator[str]:
    name = f"amqt{secrets.token_hex(4)}"
    yield name
    sweep(name)


def run_pair(
    roles: tuple[str, str], fds: dict[str, int], given: dict[str, int], deadline_s: float
) -> list[str]:
    """Run two workers to their ends and return what they printed."""
    children = [
        subprocess.Popen(
            [sys.executable, str(WORKER), role, json.dumps(fds | given)],
            pass_fds=list(fds.values()),
            stdout=subprocess.PIPE,
            text=True,
        )
        for role in roles
    ]
    try:
        printed = [child.communicate(timeout=deadline_s)[0] for child in children]
        assert [child.returncode for child in children] == [0, 0]
        return printed
    finally:
        for child in children:
            child.kill()
            child.wait()


def lost_wake_ups(prefix: str, rounds: int, fenced: bool) -> int:
    """Return in how many rounds both sides missed each other."""
    page = Segment.create(prefix, "positions", Positions.payload_bytes())
    cells = Segment.create(prefix, "cells", 64 * 8)
    try:
        fds = {"positions": page.fd, "cells": cells.fd}
        first, second = run_pair(
            ("litmus-first", "litmus-second"), fds, {"rounds": rounds, "fenced": fenced}, DEADLINE_S
        )
        assert first == second
        return int(first)
    finally:
        page.close()
        cells.close()


def hand_off(prefix: str, rounds: int, deadline_s: float) -> None:
    """Two roles wake each other in turn; a lost wake-up is two sleepers and a missed deadline."""
    page = Segment.create(prefix, "positions", Positions.payload_bytes())
    fds = {"positions": page.fd} | {f"bell-{slot}": doorbell_fd() for slot in SLOTS}
    try:
        run_pair(("hand-off-first", "hand-off-second"), fds, {"rounds": rounds}, deadline_s)
    finally:
        page.close()
        for slot in SLOTS:
            os.close(fds[f"bell-{slot}"])


@compiled_only
def test_fenced_handshake_loses_nothing(prefix: str) -> None:
    """At least one side always sees the other."""
    assert lost_wake_ups(prefix, 50_000, fenced=True) == 0


@compiled_only
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="aarch64 orders a load-acquire after a store-release"
)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor sees its own stores")
def test_litmus_detects_a_missing_fence(prefix: str) -> None:
    """Release and acquire alone lose wake-ups, and this test can see it."""
    deadline = time.monotonic() + DEADLINE_S
    while not lost_wake_ups(prefix, 20_000, fenced=False):
        assert time.monotonic() < deadline, "no loss without the fence: the litmus test is blind"


def test_sleepers_wake_each_other(prefix: str) -> None:
    """Doorbells, compiled or not: every hand-off arrives."""
    hand_off(prefix, 20_000 if FENCED else 5_000, DEADLINE_S)


@compiled_only
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_million_hand_offs(prefix: str) -> None:
    """The same, as often as the design asks for."""
    assert lost_wake_ups(prefix, 5_000_000, fenced=True) == 0
    hand_off(prefix, 1_000_000, 500)
