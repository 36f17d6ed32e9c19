"""Which queue has which row of the extents table, as the published tables say.

For the roles that go from records to rows (dispatcher) or from rows to files (flusher, cleaner).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from actormq.broker.tables import TopicEntry, TopicGone, decode_entry


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue that has a row."""

    topic: str
    queue_id: int
    row: int
    incarnation: int


class QueueRows:
    """Kept up to date by `apply`.

    A topic that was made again under a deleted one's name gets its `rows` only when the log has been followed
    (`reach`) to where its own records begin: those before are the dead topic's.

    Args:
        log_start: of a row; None: where records begin is of no interest.

    Attributes:
        rows: the row of each queue, by (topic in UTF-8, queue id), as the dispatch kernel wants it.
        queues: the queue of each row.
    """

    def __init__(self, log_start: Callable[[int], int] | None = None) -> None:
        self.rows: dict[tuple[bytes, int], int] = {}
        self.queues: dict[int, QueueRow] = {}
        self._of_topic: dict[str, list[QueueRow]] = {}
        self._log_start = log_start
        self._reached = 0
        self._early: dict[str, int] = {}
        """Topics that begin further on in the log."""

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
        before = list(self._of_topic.values()) if reset else []
        if reset:
            self.rows.clear()
            self.queues.clear()
            self._early.clear()
            self._of_topic.clear()
        for data in entries:
            entry = decode_entry(data)
            if isinstance(entry, TopicEntry | TopicGone):
                before.append(self._forget(entry.name))
                if isinstance(entry, TopicEntry):
                    self._add(entry)
        return [queue for of_topic in before for queue in of_topic if self.queues.get(queue.row) != queue]

    def _add(self, entry: TopicEntry) -> None:
        of_topic = [
            QueueRow(entry.name, queue_id, row, incarnation)
            for queue_id, (row, incarnation) in enumerate(
                zip(entry.rows, entry.row_incarnations, strict=True)
            )
        ]
        for queue in of_topic:
            self.queues[queue.row] = queue
        self._of_topic[entry.name] = of_topic
        start = max(map(self._log_start, entry.rows), default=0) if self._log_start is not None else 0
        if start > self._reached:
            self._early[entry.name] = start
        else:
            self._enter(entry.name)

    def _enter(self, topic: str) -> None:
        name = topic.encode("utf-8", "surrogatepass")
        for queue in self._of_topic[topic]:
            self.rows[name, queue.queue_id] = queue.row

    def _forget(self, topic: str) -> list[QueueRow]:
        name = topic.encode("utf-8", "surrogatepass")
        self._early.pop(topic, None)
        of_topic = self._of_topic.pop(topic, [])
        for queue in of_topic:
            self.rows.pop((name, queue.queue_id), None)
            # The row may belong to another queue already.
            if self.queues.get(queue.row) is queue:
                del self.queues[queue.row]
        return of_topic
