"""Time, handed in: nobody else in the pure rooms asks the operating system what time it is.

Intervals, leases and time-outs use the monotonic clock; store timestamps use the wall clock.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What a role needs to know about time."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 UTC; may jump."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds that never go back, the same in every process of the machine."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    monotonic_ns = staticmethod(time.monotonic_ns)


class ManualClock:
    """A clock that tests move."""

    def __init__(self, wall_ms: int = 1_700_000_000_000, monotonic_ns: int = 0) -> None:
        self._wall_ms = wall_ms
        self._monotonic_ns = monotonic_ns

    def wall_ms(self) -> int:
        return self._wall_ms

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def advance_ms(self, interval_ms: int) -> None:
        """Move both clocks forward by `interval_ms`."""
        self._wall_ms += interval_ms
        self._monotonic_ns += interval_ms * 1_000_000
