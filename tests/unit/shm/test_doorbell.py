"""Doorbells: rung when the owner sleeps, silent while it works, silenced when it wakes."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator

import pytest

from actormq.shm import doorbell
from actormq.shm.doorbell import Doorbell, doorbell_fd, fifo_fd
from actormq.shm.positions import Positions, RoleCell

SLOT = 4


@pytest.fixture
def positions() -> Positions:
    return Positions(memoryview(bytearray(Positions.payload_bytes())))


@pytest.fixture(params=[doorbell_fd, fifo_fd], ids=["native", "fifo"])
def bell(request: pytest.FixtureRequest, positions: Positions) -> Iterator[Doorbell]:
    make: Callable[[], int] = request.param
    fd = make()
    yield Doorbell(fd, positions, SLOT)
    os.close(fd)


def rung(bell: Doorbell) -> bool:
    poll = select.poll()
    poll.register(bell.fd, select.POLLIN)
    return bool(poll.poll(0))


def test_sleeping_owner_is_woken(bell: Doorbell, positions: Positions) -> None:
    """From `prepare_sleep` on a ring makes the descriptor readable, until `woke`."""
    bell.prepare_sleep()
    assert positions.role(SLOT, RoleCell.SLEEPING) == 1
    assert not rung(bell)
    bell.ring()
    bell.ring()
    assert rung(bell)
    bell.woke()
    assert positions.role(SLOT, RoleCell.SLEEPING) == 0
    assert not rung(bell)


def test_working_owner_is_not_disturbed(bell: Doorbell, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the owner looks by itself a ring costs no system call; uncompiled it always rings."""
    monkeypatch.setattr(doorbell, "ALWAYS_RINGS", True)
    bell.ring()
    assert rung(bell)
    bell.woke()
    monkeypatch.setattr(doorbell, "ALWAYS_RINGS", False)
    bell.ring()
    assert not rung(bell)


def test_waking_without_a_ring_does_not_block(bell: Doorbell) -> None:
    """A timer or a socket may end the poll, too."""
    bell.prepare_sleep()
    bell.woke()
    bell.woke()
    assert not rung(bell)


def test_bell_that_nobody_answers_never_blocks_who_rings(bell: Doorbell) -> None:
    """A dead owner's bell may be rung forever, and its successor is woken once."""
    bell.prepare_sleep()
    for _ in range(20_000):
        bell.ring()
    assert rung(bell)
    bell.woke()
    assert not rung(bell)


def test_descriptor_is_not_inherited(bell: Doorbell) -> None:
    """Roles get it handed over, other programs never."""
    assert not os.get_inheritable(bell.fd)
    assert not os.get_blocking(bell.fd)
