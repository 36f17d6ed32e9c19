"""Deleting topics: what must have happened before a name, its rows and its answer are free again.

A deletion is noted as pending before anything else happens, and it is noted where in the log the topic's
last message ends before the name may be used again.  So the records of a dead topic and those of one that
was made again under its name lie on two sides of a known log offset, whoever dies in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from actormq.message import RETRY_PREFIX
from actormq.store.tables import PENDING

NOTES_MAX: Final = 100_000
"""Names of deleted topics that are kept while the log may hold their messages; beyond it the oldest go."""
WAITING_MAX: Final = 10_000
"""Requests that wait until a deletion has gone further."""


class NotYet(Exception):
    """The request needs a name or rows of a topic that is just being deleted: serve it again later."""


class Deletions:
    """Where the messages of deleted topics end, by name.

    A deletion takes three steps: `begin`, then the writer's answer (`fenced`), then this table is on the
    disk (`saved`): only then the name may be used again.

    Attributes:
        log_ends: records of the topic that begin before this log offset are dead.
    """

    def __init__(self, log_ends: Mapping[str, int] | None = None) -> None:
        self.log_ends = dict(log_ends or {})
        self._taken = {name for name, end in self.log_ends.items() if end == PENDING}
        self._fences: dict[int, list[str]] = {}
        self._ended: dict[int, list[str]] = {}

    @property
    def pending(self) -> list[str]:
        """The names that are not free yet."""
        return sorted(self._taken)

    def is_pending(self, name: str) -> bool:
        return name in self._taken

    def log_start(self, name: str) -> int:
        """Return the log offset from which on records may belong to a topic of this name."""
        assert not self.is_pending(name), f"{name} is being deleted"
        return self.log_ends.get(name, 0)

    def begin(self, names: Iterable[str], ticket: int) -> None:
        """Take the names; the append of that ticket tells when no record of theirs can follow."""
        self._fences[ticket] = list(names)
        self._taken.update(self._fences[ticket])
        self.log_ends.update(dict.fromkeys(self._fences[ticket], PENDING))

    def is_fence(self, ticket: int) -> bool:
        return ticket in self._fences

    def fenced(self, ticket: int, log_end: int) -> None:
        """Note where the log ended when the writer had seen the ticket."""
        self._ended[ticket] = self._fences.pop(ticket)
        self.log_ends.update(dict.fromkeys(self._ended[ticket], log_end))

    @property
    def ended(self) -> bool:
        """Whether something waits for `saved`."""
        return bool(self._ended)

    def saved(self) -> list[int]:
        """What `fenced` noted is durable: the names are free; return the tickets."""
        tickets = list(self._ended)
        for names in self._ended.values():
            self._taken.difference_update(names)
        self._ended.clear()
        return tickets

    def forget(self, log_min: int) -> bool:
        """Forget what the log does not hold any more, and what is too much; True when something went."""
        done = [name for name, end in self.log_ends.items() if PENDING < end <= log_min]
        too_many = len(self.log_ends) - len(done) - NOTES_MAX
        if too_many > 0:
            kept = [name for name, end in self.log_ends.items() if end > log_min]
            done += sorted(kept, key=self.log_ends.__getitem__)[:too_many]
        for name in done:
            del self.log_ends[name]
        return bool(done)


def pop_retry_topics(topic: str, groups: Iterable[str]) -> list[str]:
    """Return the names that the retry topics of POP have, which go with their topic.

    Source: RocketMQ KeyBuilder.java (both versions), BrokerConfig.clearRetryTopicWhenDeleteTopic.
    """
    return [f"{RETRY_PREFIX}{group}{mark}{topic}" for group in groups for mark in "_+"]
