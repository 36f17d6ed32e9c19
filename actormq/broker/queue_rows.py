"""Which queue has which row of the extents table, as the published tables say.

For the roles that go from records to rows (dispatcher) or from rows to files (flusher, cleaner).
"""

from __future__ import annotations

from collections.abc import Iterable
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

    Attributes:
        rows: the row of each queue, by (topic in UTF-8, queue id), as the dispatch kernel wants it.
        queues: the queue of each row.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[bytes, int], int] = {}
        self.queues: dict[int, QueueRow] = {}
        self._of_topic: dict[str, list[QueueRow]] = {}

    def apply(self, reset: bool, entries: Iterable[bytes]) -> list[QueueRow]:
        """Take over published entries; return the queues that are no more (`reset`: these are all there is).

        A topic that was deleted and made again has new incarnations: its old queues are returned, too.
        """
        before = list(self._of_topic.values()) if reset else []
        if reset:
            self.rows.clear()
            self.queues.clear()
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
        name = entry.name.encode("utf-8", "surrogatepass")
        for queue in of_topic:
            self.rows[name, queue.queue_id] = queue.row
            self.queues[queue.row] = queue
        self._of_topic[entry.name] = of_topic

    def _forget(self, topic: str) -> list[QueueRow]:
        name = topic.encode("utf-8", "surrogatepass")
        of_topic = self._of_topic.pop(topic, [])
        for queue in of_topic:
            del self.rows[name, queue.queue_id]
            # The row may belong to another queue already.
            if self.queues.get(queue.row) is queue:
                del self.queues[queue.row]
        return of_topic
