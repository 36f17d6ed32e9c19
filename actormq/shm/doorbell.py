"""Doorbells: how a role that sleeps in its poll learns that there is something in shared memory.

To sleep: `prepare_sleep`, look at everything again, poll the descriptor, `woke`.
To wake: publish, `ring`.  Both put a full fence between their store and their load, so at least one
sees the other: release and acquire alone lost 68,272 of 10**6 wake-ups.  Uncompiled kernels have no
fence; then every ring writes, whoever sleeps or not.

A process may die after publishing and before ringing.  So who takes over a role looks at everything
as if it had been rung, and rings everyone whom the dead one may have owed a ring.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from actormq.kernels.rings import FENCED
from actormq.shm.positions import Positions, RoleCell

ALWAYS_RINGS: Final = not FENCED
"""Uncompiled there is no fence to tell whether the owner sleeps (ADR 0026: its loop looks once more, too)."""

_SLEEPING: Final = RoleCell.SLEEPING
_ONE = (1).to_bytes(8, "little")


def doorbell_fd() -> int:
    """Return a new descriptor to ring by, non-blocking: an eventfd, elsewhere a nameless FIFO."""
    if hasattr(os, "eventfd"):
        return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    return fifo_fd()


def fifo_fd() -> int:
    """Return a FIFO open at both ends by one descriptor, which a pipe cannot be."""
    import tempfile  # only here: with what it imports it takes 10 ms of a start

    with tempfile.TemporaryDirectory(prefix="actormq-") as folder:
        path = Path(folder) / "bell"
        os.mkfifo(path, 0o600)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class Doorbell:
    """The bell of one slot, the same for who rings it and who owns it; it outlives the role's processes."""

    def __init__(self, fd: int, positions: Positions, slot: int) -> None:
        self.fd = fd
        self.slot = slot
        self._positions = positions

    def ring(self) -> None:
        """Wake the owner if it sleeps.  Call it after publishing, once per batch."""
        if ALWAYS_RINGS or self._positions.role_after_fence(self.slot, _SLEEPING):
            try:
                os.write(self.fd, _ONE)
            except BlockingIOError:
                return  # a full FIFO has been rung often enough

    def prepare_sleep(self) -> None:
        """Owner: say that the next thing is a poll.  Then look at everything again before it."""
        self._positions.set_role_then_fence(self.slot, _SLEEPING, 1)

    def woke(self, rung: bool = True) -> None:
        """Owner: say that it looks by itself again, and silence the bell if the poll said that it rang."""
        self._positions.set_role(self.slot, _SLEEPING, 0)
        if not rung:
            return
        try:
            while len(os.read(self.fd, 4096)) == 4096:
                pass
        except BlockingIOError:
            return  # somebody else's spurious wake-up
