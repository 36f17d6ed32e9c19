"""Queue locks: which client of a group may consume a queue in order.

A lock lives 60 s beyond its last renewal, also when its owner's connection closes: two members that both
believe to own a queue would break its order.  A native client's lock lives as long as its lease (5 s), which
its heartbeats renew: it stops consuming by itself when it has not been heard for 4 s.
Source: RocketMQ RebalanceLockManager.java.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

LOCKS_MAX: Final = 1_000_000
LATE_MS: Final = 2_000
"""A renewal and the request after it may be served in the same moment; this much apart they are not."""


class QueueKey(NamedTuple):
    """One queue of this broker."""

    topic: str
    queue_id: int


class Held(NamedTuple):
    """One lock."""

    client_id: str
    renewed_ms: int
    lives_ms: int


class LockRow(NamedTuple):
    """One lock that changed: what the coordinator's own file must know; `renewed_ms` 0 = let go."""

    group: str
    queue: QueueKey
    client_id: str
    renewed_ms: int


@dataclass(slots=True)
class LockAnswer:
    """What `lock` decided."""

    granted: list[QueueKey] = field(default_factory=list)
    rows: list[LockRow] = field(default_factory=list)


class Locks:
    """All queue locks.  Times are monotonic milliseconds."""

    def __init__(self, *, expiry_ms: int = 60_000, locks_max: int = LOCKS_MAX) -> None:
        self.expiry_ms = expiry_ms
        self.locks_max = locks_max
        self._groups: dict[str, dict[QueueKey, Held]] = {}
        self._count = 0

    def restore(self, row: LockRow) -> None:
        """Take over one lock of the coordinator's former life."""
        queues = self._groups.setdefault(row.group, {})
        known = queues.get(row.queue)
        if row.renewed_ms == 0 or (known is not None and known.renewed_ms > row.renewed_ms):
            return
        self._count += known is None
        queues[row.queue] = Held(row.client_id, row.renewed_ms, self.expiry_ms)

    def owner(self, group: str, queue: QueueKey, now_ms: int) -> str | None:
        """Return who holds the lock."""
        held = self._groups.get(group, {}).get(queue)
        return held.client_id if held is not None and self._lives(held, now_ms) else None

    @staticmethod
    def _lives(held: Held, now_ms: int) -> bool:
        return now_ms - held.renewed_ms <= held.lives_ms

    def keep(self, client_id: str, groups: Iterable[str], now_ms: int, lease_ms: int) -> list[LockRow]:
        """Renew what a native client holds in `groups`: it has been heard."""
        rows = []
        for group in groups:
            locks = self._groups.get(group, {})
            for queue, held in locks.items():
                if held.client_id == client_id and self._lives(held, now_ms):
                    locks[queue] = Held(client_id, now_ms, min(lease_ms, self.expiry_ms))
                    rows.append(LockRow(group, queue, client_id, now_ms))
        return rows

    def lock(
        self,
        group: str,
        client_id: str,
        queues: Iterable[QueueKey],
        now_ms: int,
        *,
        lease_ms: int | None = None,
        present_owner_only: bool = False,
    ) -> LockAnswer:
        """Serve 41: grant what is free, expired or already the client's.

        Args:
            lease_ms: how long the lock lives without a renewal, when that is less than `expiry_ms`.
            present_owner_only: renew, but give nothing to anyone new (until all members are known again).
        """
        answer = LockAnswer()
        lives_ms = self.expiry_ms if lease_ms is None else min(lease_ms, self.expiry_ms)
        locks = self._groups.setdefault(group, {})
        for queue in dict.fromkeys(queues):
            held = locks.get(queue)
            mine = held is not None and held.client_id == client_id and self._lives(held, now_ms)
            free = held is None or not self._lives(held, now_ms)
            if not mine and (present_owner_only or not free):
                continue
            if held is None and self._count >= self.locks_max:
                continue
            self._count += held is None
            if held is not None and held.client_id != client_id:
                answer.rows.append(LockRow(group, queue, held.client_id, 0))
            locks[queue] = Held(client_id, now_ms, lives_ms)
            answer.rows.append(LockRow(group, queue, client_id, now_ms))
            answer.granted.append(queue)
        if not locks:
            del self._groups[group]
        return answer

    def unlock(
        self, group: str, client_id: str, queues: Iterable[QueueKey], read_ms: int = 0
    ) -> list[LockRow]:
        """Serve 42: let go of what the client holds; others' locks stay.

        Args:
            read_ms: when its gateway read the request; 0 = now.  A lock that was renewed well after that was
                taken anew, through another gateway: it stays.
        """
        rows = []
        locks = self._groups.get(group, {})
        for queue in queues:
            held = locks.get(queue)
            if held is not None and held.client_id == client_id and not _is_older(read_ms, held):
                del locks[queue]
                self._count -= 1
                rows.append(LockRow(group, queue, client_id, 0))
        if not locks:
            self._groups.pop(group, None)
        return rows

    def ordered(self, group: str, now_ms: int) -> bool:
        """Return whether the group holds any lock: its failed messages then go to the dead letters."""
        return any(self._lives(held, now_ms) for held in self._groups.get(group, {}).values())

    def expire(self, now_ms: int) -> list[LockRow]:
        """Forget dead locks."""
        rows = []
        for group in list(self._groups):
            locks = self._groups[group]
            for queue in [queue for queue, held in locks.items() if not self._lives(held, now_ms)]:
                rows.append(LockRow(group, queue, locks.pop(queue).client_id, 0))
                self._count -= 1
            if not locks:
                del self._groups[group]
        return rows

    def groups(self) -> list[str]:
        """Return the groups that have a lock, dead ones included."""
        return list(self._groups)

    def rows(self) -> Iterable[LockRow]:
        """Yield every lock."""
        for group, locks in self._groups.items():
            for queue, held in locks.items():
                yield LockRow(group, queue, held.client_id, held.renewed_ms)


def _is_older(read_ms: int, held: Held) -> bool:
    return 0 < read_ms < held.renewed_ms - LATE_MS
