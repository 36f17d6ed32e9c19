"""Consumers who run on from a broker whose last messages a loss of power took (ADR 43).

What they had seen behind a queue's new end is gone, and other messages take those places: with an offset of
the former life they would pass over them.  So for a minute an offset is believed only up to where the same
reader has come in this life.
"""

from __future__ import annotations

from collections.abc import Callable

from actormq.broker.members import BROADCASTING
from actormq.broker.tables import Tables
from actormq.shm.extents import Extents

Reader = tuple[str, str, int, int]
"""Group, topic, queue id; and the client, where each client of a group reads for itself (0 elsewhere)."""


class LostTails:
    """How far each reader has come through this gateway, while that matters.

    Args:
        until_ns: until when offsets may be of the former life; 0: there was none.
    """

    def __init__(self, extents: Extents, tables: Tables, until_ns: int, now_ns: Callable[[], int]) -> None:
        self._extents = extents
        self._tables = tables
        self._until_ns = until_ns
        self._now_ns = now_ns
        self._reached: dict[Reader, int] = {}

    @property
    def may_be(self) -> bool:
        """Whether some offset may still be of the former life."""
        return self._until_ns > 0

    def end(self, row: int) -> int | None:
        """Return where the queue of this row ended after the loss; None: nothing is doubted (any more)."""
        if self.may_be and self._now_ns() >= self._until_ns:
            self._until_ns = 0
            self._reached.clear()
        return self._extents.lost_from(row) if self.may_be else None

    def is_ahead(self, end: int, reader: Reader, offset: int) -> bool:
        """Whether an offset for a queue with this `end` can only be of the former life."""
        return offset > max(end, self._reached.get(reader, 0))

    def has_come(self, reader: Reader, offset: int) -> None:
        """Note up to where a reader has been answered."""
        self._reached[reader] = max(offset, self._reached.get(reader, 0))

    def reader(self, group: str, topic: str, queue_id: int, client_id: int) -> Reader:
        """Return who reads when this client pulls or commits."""
        subscription = self._tables.subscription(group, topic)
        alone = subscription is not None and subscription.model == BROADCASTING
        return group, topic, queue_id, client_id if alone else 0
