"""Named fault points kill in the life and at the time that the environment says."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from actormq import faults


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The signals that would have been sent."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    yield sent
    faults.arm("")


def test_nothing_is_armed_without_being_told(killed: list[tuple[int, int]]) -> None:
    faults.point("writer.appended")
    assert not killed


def test_the_nth_time_kills(killed: list[tuple[int, int]]) -> None:
    faults.arm("writer.appended:3,flusher.log-synced")
    for _ in range(2):
        faults.point("writer.appended")
    assert not killed
    faults.point("writer.appended")
    faults.point("flusher.log-synced")
    assert killed == [(os.getpid(), signal.SIGKILL)] * 2


def test_a_point_is_armed_for_one_life(killed: list[tuple[int, int]]) -> None:
    """Without a number for the first: its successor must recover."""
    spec = "writer.appended,2@writer.recovered"
    faults.arm(spec, life=1)
    faults.point("writer.recovered")
    assert not killed
    faults.arm(spec, life=2)
    faults.point("writer.appended")
    assert not killed
    faults.point("writer.recovered")
    assert killed
    faults.arm(spec, life=3)
    faults.point("writer.appended")
    faults.point("writer.recovered")
    assert len(killed) == 1
