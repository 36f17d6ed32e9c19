"""Delayed delivery by level: where a delayed message waits, when it is due, what it is when it comes back.

A message of level n waits in queue n − 1 of SCHEDULE_TOPIC_XXXX; its queue entry carries the due time in
place of the tag code, so the scheduler knows when to wake without reading the message.
Source: RocketMQ ScheduleMessageService.java, HookUtils.java, MessageStoreConfig.java (messageDelayLevel).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from actormq.errors import ConfigError
from actormq.message import HALF_TOPIC, SCHEDULE_TOPIC, PropertyKey
from actormq.wire.registration import DataVersion

_UNIT_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LEVEL: Final = re.compile(r"(\d+)([smhd])")
UNKNOWN_LEVEL_MS: Final = 1_000
"""RocketMQ's due time for a level that the table does not have."""
UPDATES_PER_VERSION: Final = 200


class DelayLevels:
    """The table of delays; levels count from 1."""

    def __init__(self, text: str) -> None:
        """Read ``1s 5s 10s …``.  Raises: ConfigError."""
        delays = []
        for word in text.split():
            match = _LEVEL.fullmatch(word)
            if match is None:
                raise ConfigError(f"messageDelayLevel: {word!r} is no delay: a number and one of s, m, h, d")
            delays.append(int(match[1]) * _UNIT_MS[match[2]])
        if not delays:
            raise ConfigError("messageDelayLevel is empty")
        self.delays_ms = tuple(delays)

    @property
    def highest(self) -> int:
        return len(self.delays_ms)

    def clamp(self, level: int) -> int:
        """Return the level that a message of this level really waits in."""
        return min(level, self.highest)

    def delay_ms(self, level: int) -> int:
        """Return how long a level waits."""
        level = self.clamp(level)
        return self.delays_ms[level - 1] if level >= 1 else UNKNOWN_LEVEL_MS

    def due_ms(self, level: int, store_timestamp_ms: int) -> int:
        """Return when a message of `level` is delivered: what its queue entry carries for a tag code."""
        return store_timestamp_ms + self.delay_ms(level)

    def level_of_queue(self, queue_id: int) -> int:
        return queue_id + 1


class Placed(NamedTuple):
    """Where a message is stored, and with which properties."""

    topic: str
    queue_id: int
    properties: dict[str, str]


def level_of(properties: Mapping[str, str]) -> int:
    """Return a message's delay level; 0 = it is not delayed."""
    try:
        return max(0, int(properties.get(PropertyKey.DELAY, "0")))
    except ValueError:
        return 0


def park(topic: str, queue_id: int, properties: Mapping[str, str], levels: DelayLevels) -> Placed:
    """Return where a message is stored: as it is, or in its level's queue with its own place kept aside.

    Only for messages outside transactions and for committed ones, never for half messages.
    """
    level = levels.clamp(level_of(properties))
    if level <= 0:
        return Placed(topic, queue_id, dict(properties))
    kept = {
        **properties,
        PropertyKey.DELAY: str(level),
        PropertyKey.REAL_TOPIC: topic,
        PropertyKey.REAL_QUEUE_ID: str(queue_id),
    }
    return Placed(SCHEDULE_TOPIC, level - 1, kept)


def restore(properties: Mapping[str, str]) -> Placed | None:
    """Return a due message's own place and properties; None: it has none, or must not go there."""
    topic = properties.get(PropertyKey.REAL_TOPIC)
    queue_id = properties.get(PropertyKey.REAL_QUEUE_ID, "")
    if not topic or topic == HALF_TOPIC or not queue_id.isdecimal():
        return None
    gone = (PropertyKey.DELAY, PropertyKey.TIMER_DELIVER_MS, PropertyKey.TIMER_DELAY_SEC)
    kept = {key: value for key, value in properties.items() if key not in gone}
    kept[PropertyKey.WAIT] = "false"
    return Placed(topic, int(queue_id), kept)


class DueEntry(NamedTuple):
    """One entry of a level's queue."""

    queue_offset: int
    log_offset: int
    record_bytes: int
    due_ms: int


@dataclass(slots=True)
class _Level:
    """How far one level has come.

    Entries from `pending[0]` up to `next` have been handed out; `finished` are those that were delivered out
    of turn, `failed` those to be handed out again.
    """

    number: int
    delay_ms: int
    next: int = 0
    pending: deque[int] = field(default_factory=deque)
    finished: set[int] = field(default_factory=set)
    failed: list[int] = field(default_factory=list)
    wake_ms: int | None = 0
    """When the entry at `next` is due; None = there is none yet."""
    retry_ms: int = 0
    """When the failed ones are handed out again."""

    @property
    def done(self) -> int:
        return self.pending[0] if self.pending else self.next


class Schedule:
    """Which entry of which level is delivered next; wall-clock times.

    An entry is handed out once it is due (`offer`); the saved offset moves when it and all entries before it
    are delivered (`finish`).  What was handed out and not finished is handed out again after a restart: at
    least once.
    """

    def __init__(
        self,
        levels: DelayLevels,
        offsets: Mapping[int, int],
        version: DataVersion | None = None,
        under_way_max: int = 256,
    ) -> None:
        """`offsets`: level → next queue offset, as delayOffset.json has them."""
        self.levels = levels
        self.under_way_max = under_way_max
        self.version = version or DataVersion()
        self.changed = False
        self._updates = 0
        self._levels = {
            number: _Level(number, delay_ms, max(0, offsets.get(number, 0)))
            for number, delay_ms in enumerate(levels.delays_ms, 1)
        }

    def position(self, level: int) -> int:
        """Return the next queue offset to look at."""
        return self._levels[level].next

    def clamp(self, level: int, queue_min: int, queue_max: int) -> int | None:
        """Bring the level's position into its queue; returns the old position if it had to move."""
        state = self._levels[level]
        old = state.next
        inside = min(max(old, queue_min), queue_max)
        if inside == old:
            return None
        state.next = inside
        state.wake_ms = 0
        self.changed = True
        return old

    def offer(self, level: int, entries: Iterable[DueEntry], now_ms: int) -> list[DueEntry]:
        """Return those of the level's next entries that are due; remember when the first other one is.

        Args:
            entries: the queue's entries from `position(level)` on; empty = the queue ends there.
        """
        state = self._levels[level]
        due: list[DueEntry] = []
        state.wake_ms = None
        for entry in entries:
            assert entry.queue_offset == state.next, f"level {level}: {entry.queue_offset}, not {state.next}"
            # A due time further away than the level's delay comes from a changed table or a clock set back.
            at = entry.due_ms if entry.due_ms <= now_ms + state.delay_ms else now_ms
            if at > now_ms:
                state.wake_ms = at
                return due
            due.append(entry)
            state.next += 1
            state.pending.append(entry.queue_offset)
        state.wake_ms = now_ms if due else None
        return due

    def fail(self, level: int, queue_offset: int, retry_ms: int) -> None:
        """A delivery failed: hand it out again at `retry_ms`."""
        state = self._levels[level]
        assert queue_offset in state.pending
        state.failed.append(queue_offset)
        state.retry_ms = retry_ms

    def retries(self, level: int, now_ms: int) -> list[int]:
        """Return the queue offsets of failed deliveries whose time has come, in order."""
        state = self._levels[level]
        if not state.failed or state.retry_ms > now_ms:
            return []
        failed, state.failed = sorted(state.failed), []
        return failed

    def finish(self, level: int, queue_offset: int, now_ms: int) -> None:
        """An entry was delivered, or dropped for good."""
        state = self._levels[level]
        state.finished.add(queue_offset)
        while state.pending and state.pending[0] in state.finished:
            state.finished.discard(state.pending.popleft())
            self.changed = True
            self._updates += 1
            if self._updates % UPDATES_PER_VERSION == 0:
                self.version = DataVersion(self.version.state_version, now_ms, self.version.counter + 1)

    def room(self, level: int) -> int:
        """Return how many entries of the level may be handed out now."""
        return max(0, self.under_way_max - len(self._levels[level].pending))

    def grown(self, level: int) -> None:
        """The level's queue has entries that were not offered yet."""
        state = self._levels[level]
        if state.wake_ms is None:
            state.wake_ms = 0

    def wake_ms(self) -> int | None:
        """Return when some level has work by the clock; None = only when a queue grows."""
        levels = self._levels.values()
        times = [level.wake_ms for level in levels if level.wake_ms is not None and self.room(level.number)]
        times += [level.retry_ms for level in levels if level.failed]
        return min(times, default=None)

    def due_levels(self, now_ms: int) -> list[int]:
        """Return the levels whose next entry's time has come, as far as known, and that have room."""
        timed = [(level.number, level.wake_ms) for level in self._levels.values()]
        return [n for n, wake_ms in timed if wake_ms is not None and wake_ms <= now_ms and self.room(n)]

    def saved(self) -> dict[int, int]:
        """Return level → offset below which everything is delivered."""
        return {number: level.done for number, level in self._levels.items()}
