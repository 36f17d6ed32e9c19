"""One role as the supervisor sees it: its process now, its ports, and how often it died."""

from __future__ import annotations

import contextlib
import os
import signal
from enum import Enum
from pathlib import Path

from actormq.actors.control import Line
from actormq.actors.loop import Timer
from actormq.actors.roles import RoleSpec
from actormq.config import SupervisorConfig
from actormq.shm.ring import Port

_NS_PER_MS = 1_000_000
SHORT_LIFE_NS = 200 * _NS_PER_MS
"""Who dies sooner after it began to serve has not recovered: the next restart waits longer."""


KILLED_EARLY_NS = 50 * _NS_PER_MS
"""A SIGKILL sooner than this may be the system's answer to what the role does (no memory)."""


class Phase(Enum):
    """Where a role's process is."""

    NONE = "none"
    FORKING = "forking"
    HELD = "held"
    """Forked; waits for its Start until recovery is done."""
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
    """Its end was wanted: recovery is done, or the broker stops."""


ALIVE = frozenset({Phase.HELD, Phase.STARTING, Phase.RUNNING})
GIVEN = frozenset({Phase.STARTING, Phase.RUNNING})
"""Those that were told who they are and what there is."""


class Deaths:
    """How often somebody died, and what follows from it."""

    def __init__(self) -> None:
        self._deaths_ns: list[int] = []
        self._short_lives = 0

    def count(
        self, lived_ns: int, now_ns: int, limits: SupervisorConfig, *, from_outside: bool
    ) -> int | None:
        """Return how many ms to wait before the next start, None when it dies too often.

        Too often: so many times within the window, or so many times in a row without having recovered.

        Args:
            lived_ns: how long it served.
            from_outside: somebody killed it; unless that hits it as soon as it serves, it says nothing of it.
        """
        if from_outside and lived_ns >= KILLED_EARLY_NS:
            self._short_lives = 0
            return 0
        self._short_lives = self._short_lives + 1 if lived_ns < SHORT_LIFE_NS else 0
        window_ns = limits.crash_loop_window_ms * _NS_PER_MS
        self._deaths_ns = [death for death in self._deaths_ns if now_ns - death < window_ns] + [now_ns]
        if max(len(self._deaths_ns), self._short_lives) >= limits.crash_loop_restarts:
            return None
        if self._short_lives <= 1:
            return 0
        doubled = limits.restart_backoff_ms << min(self._short_lives - 2, 16)
        return min(doubled, limits.restart_backoff_max_ms)


class Child:
    """One role."""

    def __init__(self, spec: RoleSpec, slot: int) -> None:
        self.spec = spec
        self.slot = slot
        self.phase = Phase.NONE
        self.incarnation = 0
        self.pid = 0
        self.pidfd = -1
        self.is_orphan = False
        """Its forkserver is dead: nobody reports how it ends."""
        self.line: Line | None = None
        self.status: int | None = None
        """As of waitpid; None while it is not known."""
        self.ports: dict[str, Port] = {}
        """Ports that this incarnation is the client of."""
        self.closing: list[tuple[str, str, int, Port]] = []
        """Ports of dead clients (kind, client, incarnation) that our next incarnation must still drain."""
        self.given_ns = 0
        """When this incarnation was told who it is."""
        self.running_since_ns = 0
        self.dropped = False
        """Killed on purpose: how it ends says nothing."""
        self.silent = False
        self.timer: Timer | None = None
        self.deaths = Deaths()

    @property
    def role(self) -> str:
        return self.spec.role

    @property
    def mailbox_name(self) -> str:
        """The file in the run folder that this incarnation's mailbox is bound to."""
        return f"{self.role}.{self.incarnation}"

    @property
    def alive(self) -> bool:
        return self.phase in ALIVE

    def kill(self) -> None:
        """SIGKILL, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            elif self.pid and self.alive:
                os.kill(self.pid, signal.SIGKILL)

    def is_stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP, a debugger); False where the system cannot tell."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_bytes()
        except OSError:
            return False
        return stat.rpartition(b")")[2].split()[0] in (b"T", b"t")

    def ending(self) -> str:
        """How it ended, in words."""
        if self.status is None:
            return "ended (its exit status is unknown)"
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
            return f"was killed by {name}"
        return f"exited with status {os.WEXITSTATUS(self.status)}"

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it: that comes from outside."""
        return self.status is not None and os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == 9

    @property
    def exit_status(self) -> int | None:
        """The exit status; None when it was killed or is not known."""
        if self.status is None or not os.WIFEXITED(self.status):
            return None
        return os.WEXITSTATUS(self.status)

    def forget_process(self) -> None:
        """Close what belonged to the dead process."""
        if self.line is not None:
            self.line.close()
            self.line = None
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        self.pid = 0
