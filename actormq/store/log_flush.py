"""When the log is synced, or committed from the store pool, and up to where: the plan, without clock or file.

Source: RocketMQ CommitLog.java, GroupCommitService, FlushRealTimeService and CommitRealTimeService.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from actormq.config import FlushMode, StoreConfig

PAGE_BYTES: Final = 4096
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the first byte that is to be done waits: an interval if many are, else the thorough one."""

    interval_ns: int
    least_bytes: int
    thorough_ns: int

    @classmethod
    def of_flush(cls, config: StoreConfig) -> Self:
        """How the log is synced.  Sync mode: whatever is unsynced, at once."""
        if config.flush is FlushMode.SYNC:
            return cls(interval_ns=0, least_bytes=0, thorough_ns=0)
        at_once = config.flush_on_append and not config.flush_timed
        return cls(
            interval_ns=0 if at_once else config.flush_interval_ms * _NS_PER_MS,
            least_bytes=config.flush_least_pages * PAGE_BYTES,
            thorough_ns=config.flush_thorough_interval_ms * _NS_PER_MS,
        )

    @classmethod
    def of_commit(cls, config: StoreConfig) -> Self:
        """How the store pool is written into the log's files."""
        at_once = config.pool_commit_on_append
        return cls(
            interval_ns=0 if at_once else config.pool_commit_interval_ms * _NS_PER_MS,
            least_bytes=config.pool_commit_least_pages * PAGE_BYTES,
            thorough_ns=config.pool_commit_thorough_interval_ms * _NS_PER_MS,
        )


class LogFlush:
    """What is done of the log (synced, or committed), and when the rest is due.

    That somebody asks for it before its time is seen by the flusher, not here.

    Args:
        flushed: up to where it is done already.
    """

    def __init__(self, pace: Pace, flushed: int) -> None:
        self.flushed = flushed
        self._pace = pace
        self._appended = flushed
        self._dirty_since_ns: int | None = None

    def look(self, appended: int, now_ns: int) -> None:
        """Take note of how far the log goes."""
        self._appended = appended
        if appended > self.flushed and self._dirty_since_ns is None:
            self._dirty_since_ns = now_ns

    def done(self, flushed: int, now_ns: int) -> None:
        """A sync up to `flushed` has returned success."""
        self.flushed = flushed
        self._dirty_since_ns = now_ns if self._appended > flushed else None

    @property
    def _is_enough(self) -> bool:
        return self._appended - self.flushed >= self._pace.least_bytes

    @property
    def due_ns(self) -> int | None:
        """When to do the rest, by what is known; None: there is none."""
        if self._dirty_since_ns is None:
            return None
        wait_ns = self._pace.interval_ns if self._is_enough else self._pace.thorough_ns
        return self._dirty_since_ns + wait_ns

    @property
    def wanted_appended(self) -> int:
        """The `appended` that changes the plan; 0 when only time does."""
        if self._dirty_since_ns is None:
            return self.flushed + 1
        return 0 if self._is_enough else self.flushed + self._pace.least_bytes
