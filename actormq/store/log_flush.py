"""When the log is synced, and up to where: the plan, without clock or file.

Source: RocketMQ CommitLog.java, GroupCommitService and FlushRealTimeService.
"""

from __future__ import annotations

from typing import Final

from actormq.config import FlushMode, StoreConfig

PAGE_BYTES: Final = 4096
_NS_PER_MS: Final = 1_000_000


class LogFlush:
    """When the log is synced, and up to where.

    Sync mode: whenever something is unsynced.  Async mode: an interval after the first unsynced byte if
    some pages are there by then, else after the thorough interval.  That somebody asks for a sync before
    its time is seen by the flusher, not here.
    """

    def __init__(self, config: StoreConfig, flushed: int) -> None:
        self.sync_mode = config.flush is FlushMode.SYNC
        self.flushed = flushed
        self._least_bytes = config.flush_least_pages * PAGE_BYTES
        self._interval_ns = config.flush_interval_ms * _NS_PER_MS
        self._thorough_ns = config.flush_thorough_interval_ms * _NS_PER_MS
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
    def due_ns(self) -> int | None:
        """When to sync, by what is known; None: nothing is unsynced."""
        if self._dirty_since_ns is None:
            return None
        if self.sync_mode:
            return self._dirty_since_ns
        enough = self._appended - self.flushed >= self._least_bytes
        return self._dirty_since_ns + (self._interval_ns if enough else self._thorough_ns)

    @property
    def wanted_appended(self) -> int:
        """The `appended` that changes the plan; 0 when only time does."""
        if self._dirty_since_ns is None:
            return self.flushed + 1
        enough = self.flushed + self._least_bytes
        return enough if not self.sync_mode and self._appended < enough else 0
