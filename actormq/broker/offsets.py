"""How far each group has consumed each queue.

A commit may go back: it is the consumer's word (RocketMQ only logs a warning).  The JSON file has the shape
``{"topic@group": {queue id: offset}}``.
Source: RocketMQ ConsumerOffsetManager.java, ConsumerManageProcessor.java.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from actormq.errors import RequestError, ResponseCode
from actormq.wire.registration import DataVersion

SEPARATOR: Final = "@"
COMMITS_PER_VERSION: Final = 500
"""The data version grows once per so many commits, as RocketMQ's does."""
OFFSETS_MAX: Final = 2_000_000
FORGOTTEN: Final = -1 << 63
"""In the ledger: the topic was deleted, and with it this offset."""


class OffsetKey(NamedTuple):
    """One queue of a topic as one group sees it."""

    topic: str
    group: str
    queue_id: int


class QueueStart(NamedTuple):
    """What decides where a group without an offset begins."""

    min_offset: int
    max_offset: int
    first_is_near: bool
    """Whether message 0 is recent enough to be in memory still."""


def first_offset(start: QueueStart | None, set_zero_if_not_found: bool) -> int:
    """Return where a group that never committed begins, as code 14 answers.

    Zero for a young queue: the group wants everything.  An empty one counts as young (so did RocketMQ
    4.9): the client would ask for the end next, and skip what arrives between the two questions.
    Args:
        start: None = there is no such queue.
    Raises: RequestError(QUERY_NOT_FOUND): the client decides by its own setting.
    """
    if start is not None and set_zero_if_not_found and _is_young(start):
        return 0
    raise RequestError(
        ResponseCode.QUERY_NOT_FOUND, "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first"
    )


def _is_young(start: QueueStart) -> bool:
    return start.min_offset <= 0 and (start.max_offset <= 0 or start.first_is_near)


class Offsets:
    """All committed offsets."""

    def __init__(self, *, offsets_max: int = OFFSETS_MAX, version: DataVersion | None = None) -> None:
        self.offsets_max = offsets_max
        self.version = version or DataVersion()
        self.changed = False
        """Whether something was committed since `saved` was called."""
        self._table: dict[tuple[str, str], dict[int, int]] = {}
        self._read: dict[tuple[str, str], dict[int, int]] = {}
        """When the commit that counts was read, where that is known."""
        self._count = 0
        self._commits = 0

    def restore(self, key: OffsetKey, offset: int) -> None:
        """Take over what a file says; later files win, `FORGOTTEN` takes away what an earlier one said."""
        if offset == FORGOTTEN:
            if self._table.get((key.topic, key.group), {}).pop(key.queue_id, None) is not None:
                self._count -= 1
            return
        queues = self._table.setdefault((key.topic, key.group), {})
        self._count += key.queue_id not in queues
        queues[key.queue_id] = offset

    def commit(self, key: OffsetKey, offset: int, now_ms: int, read_ms: int = 0) -> bool:
        """Note an offset; False when there are too many already.

        Args:
            now_ms: wall clock, for the data version.
            read_ms: when a gateway read it; monotonic, 0 = not known.
        """
        if read_ms:
            self._read.setdefault((key.topic, key.group), {})[key.queue_id] = read_ms
        queues = self._table.setdefault((key.topic, key.group), {})
        if key.queue_id not in queues:
            if self._count >= self.offsets_max:
                return False
            self._count += 1
        elif queues[key.queue_id] == offset:
            return True
        queues[key.queue_id] = offset
        self.changed = True
        self._commits += 1
        if self._commits % COMMITS_PER_VERSION == 0:
            self.version = DataVersion(self.version.state_version, now_ms, self.version.counter + 1)
        return True

    def is_late(self, key: OffsetKey, read_ms: int) -> bool:
        """Say whether a gateway read this commit before the one that counts, and hands it over only now.

        It stood still meanwhile, and the group has gone on elsewhere.
        """
        return 0 < read_ms < self._read.get((key.topic, key.group), {}).get(key.queue_id, 0)

    def get(self, key: OffsetKey) -> int | None:
        """Return the committed offset, None when there is none."""
        offset = self._table.get((key.topic, key.group), {}).get(key.queue_id)
        return offset if offset is not None and offset >= 0 else None

    def groups_of(self, topic: str) -> list[str]:
        """Return the groups that have committed something of `topic`."""
        return [group for name, group in self._table if name == topic]

    def topics_of(self, group: str) -> list[str]:
        """Return the topics of which `group` has committed something."""
        return [topic for topic, name in self._table if name == group]

    def forget_topic(self, topic: str) -> list[OffsetKey]:
        """Forget what was committed of `topic`; return which queues that were."""
        gone = [
            OffsetKey(topic, group, queue_id)
            for group in self.groups_of(topic)
            for queue_id in self._table.pop((topic, group))
        ]
        self._forgotten(gone)
        return gone

    def forget_group(self, group: str) -> list[OffsetKey]:
        """Forget what `group` has committed; return which queues that were."""
        gone = [
            OffsetKey(topic, group, queue_id)
            for topic in self.topics_of(group)
            for queue_id in self._table.pop((topic, group))
        ]
        self._forgotten(gone)
        return gone

    def _forgotten(self, gone: list[OffsetKey]) -> None:
        for key in gone:
            self._read.pop((key.topic, key.group), None)
        self._count -= len(gone)
        self.changed |= bool(gone)

    def rows(self) -> Iterator[tuple[OffsetKey, int]]:
        """Yield every committed offset."""
        for (topic, group), queues in self._table.items():
            for queue_id, offset in queues.items():
                yield OffsetKey(topic, group, queue_id), offset

    def table(self) -> dict[str, dict[int, int]]:
        """Return a copy in the shape of consumerOffset.json's ``offsetTable``."""
        return {
            topic + SEPARATOR + group: dict(queues)
            for (topic, group), queues in self._table.items()
            if queues
        }


def parse_table(table: Iterable[tuple[str, dict[int, int]]]) -> Iterator[tuple[OffsetKey, int]]:
    """Yield what ``offsetTable`` says; keys that are no ``topic@group`` are left out."""
    for name, queues in table:
        topic, separator, group = name.partition(SEPARATOR)
        if separator and topic and group:
            for queue_id, offset in queues.items():
                yield OffsetKey(topic, group, queue_id), offset
