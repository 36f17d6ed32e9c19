"""Published tables between two processes: never a torn or mixed entry, however fast they change."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actormq.kernels.rings import FENCED
from actormq.shm.positions import Positions
from actormq.shm.segment import Segment, sweep

WORKER = Path(__file__).with_name("ring_worker.py")
VARIANTS = [pytest.param("1", id="python")]
if FENCED:
    VARIANTS.append(pytest.param("", id="compiled"))


@pytest.fixture
def prefix() -> Iterator[str]:
    name = f"amqt{secrets.token_hex(4)}"
    yield name
    sweep(name)


@pytest.mark.parametrize("pure", VARIANTS)
def test_reader_never_sees_a_torn_entry(prefix: str, pure: str) -> None:
    """The publisher flips without asking, so it overwrites what the reader is copying, again and again."""
    page = Segment.create(prefix, "positions", Positions.payload_bytes())
    memory = Segment.create(prefix, "tables", 128 + 2 * (1 << 17))
    fds = {"positions": page.fd, "cells": memory.fd}
    children = [
        subprocess.Popen(
            [sys.executable, str(WORKER), role, json.dumps(fds | {"resets": 4_000})],
            pass_fds=list(fds.values()),
            env=os.environ | {"ACTORMQ_PURE": pure},
        )
        for role in ("read-tables", "publish-tables")
    ]
    try:
        for child in children:
            assert child.wait(100) == 0
    finally:
        for child in children:
            child.kill()
            child.wait()
        page.close()
        memory.close()
