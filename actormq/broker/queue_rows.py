"""Which queue has which row of the extents table, as the published tables say.

For the roles that go from records to rows (dispatcher) or from rows to files (flusher, cleaner).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from actormq.broker.tables import TopicEntry, TopicGone, decode_entry

_ROW_BITS: Final = 32


class QueueRow(NamedTuple):
    """One queue that has a row."""

    topic: str
    queue_id: int
    row: int
    incarnation: int


class QueueRows:
    """Kept up to date by `apply`; numbers lie in arrays: every role that has one may have 100,000 queues.

    A topic that was made again under a deleted one's name gets its `rows` only when the log has been followed
    (`reach`) to where its own records begin: those before are the dead topic's.

    Args:
        log_start: of a row; None for who does not go from records to rows: `rows` stays empty.

    Attributes:
        rows: the row of each queue, by (topic in UTF-8, queue id), as the dispatch kernel wants it.
    """

    def __init__(self, log_start: Callable[[int], int] | None = None) -> None:
        self.rows: dict[tuple[bytes, int], int] = {}
        self._of_topic: dict[str, array[int]] = {}
        """The rows of its queues, each with its incarnation above the 32 bits of the row."""
        self._topics: list[str | None] = []
        """The topic of each row; None: no queue has it."""
        self._queue_ids = array("I")
        self._incarnations = array("Q")
        self._log_start = log_start
        self._reached = 0
        self._early: dict[str, int] = {}
        """Topics that begin further on in the log."""

    def __iter__(self) -> Iterator[QueueRow]:
        """Yield every queue, by row."""
        return (queue for queue in map(self.queue, range(self.end)) if queue is not None)

    @property
    def end(self) -> int:
        """One past the highest row that a queue has, or had."""
        return len(self._topics)

    def queue(self, row: int) -> QueueRow | None:
        """Return the queue that has a row."""
        topic = self._topics[row] if row < len(self._topics) else None
        return (
            QueueRow(topic, self._queue_ids[row], row, self._incarnations[row]) if topic is not None else None
        )

    def reach(self, log_offset: int) -> None:
        """The log has been followed up to here: topics that begin here, or began before, get their rows."""
        self._reached = log_offset
        for topic in [topic for topic, start in self._early.items() if start <= log_offset]:
            del self._early[topic]
            self._enter(topic)

    def next_start(self) -> int | None:
        """Return the log offset at which to stop and call `reach`; None = there is none."""
        return min(self._early.values(), default=None)

    def apply(self, reset: bool, entries: Iterable[bytes]) -> list[QueueRow]:
        """Take over published entries; return the queues that are no more (`reset`: these are all there is).

        A topic that was deleted and made again has new incarnations: its old queues are returned, too.
        """
        before = [queue for topic in self._of_topic for queue in self._queues_of(topic)] if reset else []
        if reset:
            self.rows.clear()
            self._of_topic.clear()
            self._topics.clear()
            del self._queue_ids[:], self._incarnations[:]
            self._early.clear()
        for data in entries:
            entry = decode_entry(data)
            if isinstance(entry, TopicEntry | TopicGone):
                before += self._queues_of(entry.name)
                self._forget(entry.name)
                if isinstance(entry, TopicEntry):
                    self._add(entry)
        return [queue for queue in before if self.queue(queue.row) != queue]

    def _queues_of(self, topic: str) -> list[QueueRow]:
        return [
            QueueRow(topic, queue_id, each & ((1 << _ROW_BITS) - 1), each >> _ROW_BITS)
            for queue_id, each in enumerate(self._of_topic.get(topic, ()))
        ]

    def _add(self, entry: TopicEntry) -> None:
        rows = zip(entry.rows, entry.row_incarnations, strict=True)
        self._of_topic[entry.name] = array("Q", [row | incarnation << _ROW_BITS for row, incarnation in rows])
        self._make_room(max(entry.rows, default=-1) + 1)
        for queue in self._queues_of(entry.name):
            self._topics[queue.row] = entry.name
            self._queue_ids[queue.row] = queue.queue_id
            self._incarnations[queue.row] = queue.incarnation
        if self._log_start is None:
            return
        start = max(map(self._log_start, entry.rows), default=0)
        if start > self._reached:
            self._early[entry.name] = start
        else:
            self._enter(entry.name)

    def _make_room(self, end: int) -> None:
        more = max(end - self.end, 0)
        self._topics += [None] * more
        self._queue_ids.extend([0] * more)
        self._incarnations.extend([0] * more)

    def _enter(self, topic: str) -> None:
        name = topic.encode("utf-8", "surrogatepass")
        for queue in self._queues_of(topic):
            self.rows[name, queue.queue_id] = queue.row

    def _forget(self, topic: str) -> None:
        name = topic.encode("utf-8", "surrogatepass")
        self._early.pop(topic, None)
        for queue in self._queues_of(topic):
            self.rows.pop((name, queue.queue_id), None)
            # The row may belong to another queue already.
            if self.queue(queue.row) == queue:
                self._topics[queue.row] = None
        self._of_topic.pop(topic, None)
