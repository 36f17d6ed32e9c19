"""Topics and the rows of their queues: what exists, what may be created, which row each queue has.

The coordinator owns one `Topics`; recovery builds the first one from the files that it finds.
A change is a value (`TopicChange`): rows to open in the extents table first, then the entry to publish.
Source: RocketMQ TopicConfigManager.java, TopicConfig.java, AdminBrokerProcessor.java, TopicAttributes.java.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from actormq.broker.bodies import read_body
from actormq.broker.deleting import Deletions, NotYet
from actormq.broker.sending import check_topic_name, topic_missing
from actormq.broker.tables import TopicEntry, TopicGone
from actormq.config import BrokerConfig
from actormq.errors import RequestError, ResponseCode
from actormq.message import (
    DLQ_PREFIX,
    HALF_TOPIC,
    OP_HALF_TOPIC,
    RETRY_PREFIX,
    SCHEDULE_TOPIC,
    SYSTEM_TOPIC_PREFIX,
    SYSTEM_TOPICS,
    TEMPLATE_TOPIC,
    Permission,
)
from actormq.store.tables import Members, member_text

SINGLE_TAG: Final = "SINGLE_TAG"
MULTI_TAG: Final = "MULTI_TAG"
FILTER_TYPES: Final = (SINGLE_TAG, MULTI_TAG)
QUEUES_DEFAULT: Final = 16
"""Read and write queues of a TopicConfig that says nothing."""
SCHEDULE_QUEUES: Final = 18
BENCHMARK_QUEUES: Final = 1024
BENCHMARK_SHARE: Final = 8
"""BenchmarkTest is left out where it alone would take more than a row in eight."""
REVIVE_QUEUES: Final = 8
INCARNATION_MAX: Final = (1 << 32) - 1

ATTRIBUTE_VALUES: Final[dict[str, tuple[str, ...] | None]] = {
    "queue.type": ("SimpleCQ", "BatchCQ"),
    "cleanup.policy": ("DELETE", "COMPACTION"),
    "message.type": ("UNSPECIFIED", "NORMAL", "FIFO", "DELAY", "TRANSACTION", "MIXED"),
    "reserve.time": None,
}
"""Known attributes; None: any whole number."""


class Rows:
    """Which rows of the extents table are free, as sorted, disjoint, non-adjacent ranges."""

    def __init__(self, rows_max: int, used: Iterable[int] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        first = 0
        for row in sorted(used):
            assert first <= row < rows_max, f"row {row} is used twice or out of range"
            self._add(first, row)
            first = row + 1
        self._add(first, rows_max)

    def _add(self, start: int, end: int) -> None:
        if start < end:
            self._starts.append(start)
            self._ends.append(end)

    @property
    def free(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def take(self, count: int) -> range | None:
        """Return the first `count` contiguous rows, now used; None when there are not so many."""
        for index, start in enumerate(self._starts):
            if self._ends[index] - start >= count:
                self._starts[index] = start + count
                if self._starts[index] == self._ends[index]:
                    del self._starts[index], self._ends[index]
                return range(start, start + count)
        return None

    def give_back(self, row: int) -> None:
        """Make one used row free again."""
        index = bisect_left(self._starts, row)
        assert index == 0 or self._ends[index - 1] <= row, f"row {row} was free"
        assert index == len(self._starts) or row < self._starts[index], f"row {row} was free"
        joins_left = index > 0 and self._ends[index - 1] == row
        joins_right = index < len(self._starts) and self._starts[index] == row + 1
        if joins_left and joins_right:
            self._ends[index - 1] = self._ends[index]
            del self._starts[index], self._ends[index]
        elif joins_left:
            self._ends[index - 1] = row + 1
        elif joins_right:
            self._starts[index] = row
        else:
            self._starts.insert(index, row)
            self._ends.insert(index, row + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSettings:
    """What the rules depend on."""

    cluster: str
    broker: str
    auto_create: bool = True
    default_queues: int = 8
    rows_max: int = 100_000

    @classmethod
    def of(cls, config: BrokerConfig) -> TopicSettings:
        """Return what a broker's configuration says."""
        return cls(
            cluster=config.cluster,
            broker=config.name,
            auto_create=config.coordinator.auto_create_topics,
            default_queues=config.coordinator.default_topic_queues,
            rows_max=config.memory.queue_rows_max,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfig:
    """A topic as administrators and files describe it: without rows."""

    name: str
    read_queues: int = QUEUES_DEFAULT
    write_queues: int = QUEUES_DEFAULT
    perm: int = int(Permission.READ_WRITE)
    filter_type: str = SINGLE_TAG
    sys_flag: int = 0
    order: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A row to open, with the bounds of the queue that it stands for."""

    topic: str
    queue_id: int
    row: int
    incarnation: int
    min_offset: int = 0
    max_offset: int = 0
    log_start: int = 0
    """Records that begin before this log offset belong to a deleted topic of the same name."""


@dataclass(frozen=True, slots=True)
class TopicChange:
    """Open `opened`, close `closed`, then publish `entry`."""

    entry: TopicEntry | TopicGone
    opened: tuple[QueueRow, ...] = ()
    closed: tuple[int, ...] = ()


def config_of(entry: TopicEntry) -> TopicConfig:
    """Return `entry` without its rows."""
    return TopicConfig(
        name=entry.name,
        read_queues=entry.read_queues,
        write_queues=entry.write_queues,
        perm=entry.perm,
        filter_type=entry.filter_type,
        sys_flag=entry.sys_flag,
        order=entry.order,
        attributes=entry.attributes,
    )


def topic_to_json(config: TopicConfig | TopicEntry) -> dict[str, Any]:
    """Return RocketMQ's TopicConfig."""
    return {
        "attributes": dict(config.attributes),
        "order": config.order,
        "perm": config.perm,
        "readQueueNums": config.read_queues,
        "topicFilterType": config.filter_type,
        "topicName": config.name,
        "topicSysFlag": config.sys_flag,
        "writeQueueNums": config.write_queues,
    }


class TopicTexts:
    """The texts of all topics, for a file that is written whole at each change: made once for each."""

    def __init__(self) -> None:
        self._texts = Members()
        self._changed: set[str] = set()

    def changed(self, names: Iterable[str]) -> None:
        """Some topics were made, changed or deleted."""
        self._changed.update(names)

    def of(self, table: Mapping[str, TopicEntry]) -> Members:
        """Return what stands for `topic_to_json` of every topic of `table`; not to be changed."""
        for name in self._changed if self._texts else table:
            if name in table:
                self._texts[name] = member_text(topic_to_json(table[name]))
            else:
                self._texts.pop(name, None)
        self._changed.clear()
        assert len(self._texts) == len(table), "a topic came or went that nobody named"
        return self._texts


class _TopicJson(msgspec.Struct, rename="camel"):
    topic_name: str
    read_queue_nums: int = QUEUES_DEFAULT
    write_queue_nums: int = QUEUES_DEFAULT
    perm: int = int(Permission.READ_WRITE)
    topic_filter_type: str = SINGLE_TAG
    topic_sys_flag: int = 0
    order: bool = False
    attributes: dict[str, str] = {}


def topic_from_json(value: Any) -> TopicConfig:
    """Return the topic in RocketMQ's TopicConfig; absent fields have its defaults.

    Raises: RequestError(INVALID_PARAMETER): no object, or a field of the wrong type.
    """
    read = read_body(value, _TopicJson, "topic configuration")
    return TopicConfig(
        name=read.topic_name,
        read_queues=read.read_queue_nums,
        write_queues=read.write_queue_nums,
        perm=read.perm,
        filter_type=read.topic_filter_type,
        sys_flag=read.topic_sys_flag,
        order=read.order,
        attributes=read.attributes,
    )


def system_topics(settings: TopicSettings) -> dict[str, TopicConfig]:
    """Return the topics that every broker has (wire.md 2.6); BenchmarkTest only where rows are plenty."""
    template = int(Permission.READ_WRITE | Permission.INHERIT)
    plain = int(Permission.READ_WRITE)
    shapes = [
        ("SELF_TEST_TOPIC", 1, plain),
        ("OFFSET_MOVED_EVENT", 1, plain),
        (settings.cluster, QUEUES_DEFAULT, template),
        (settings.broker, 1, template),
        (SCHEDULE_TOPIC, SCHEDULE_QUEUES, plain),
        (f"{settings.cluster}_REPLY_TOPIC", 1, plain),
        (f"rmq_sys_REVIVE_LOG_{settings.cluster}", REVIVE_QUEUES, plain),
        (f"rmq_sys_SYNC_BROKER_MEMBER_{settings.broker}", 1, int(Permission.INHERIT)),
        (HALF_TOPIC, 1, plain),
        (OP_HALF_TOPIC, 1, plain),
    ]
    if settings.auto_create:
        shapes.insert(2, (TEMPLATE_TOPIC, settings.default_queues, template))
    if settings.rows_max >= BENCHMARK_QUEUES * BENCHMARK_SHARE:
        shapes.insert(3, ("BenchmarkTest", BENCHMARK_QUEUES, plain))
    return {
        name: TopicConfig(name=name, read_queues=queues, write_queues=queues, perm=perm)
        for name, queues, perm in shapes
    }


def parse_attributes(text: str | None, current: Mapping[str, str]) -> dict[str, str]:
    """Return `current` changed by ``+key=value,-key``.

    Raises: RequestError(SYSTEM_ERROR), as RocketMQ does, for an unknown key, a bad value, a missing sign.
    """
    result = dict(current)
    seen = set()
    for item in filter(None, (part.strip() for part in (text or "").split(","))):
        sign, (key, _, value) = item[0], item[1:].partition("=")
        if sign not in "+-" or key not in ATTRIBUTE_VALUES or key in seen:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"attribute format is wrong: {item}")
        seen.add(key)
        if sign == "-":
            result.pop(key, None)
        else:
            result[key] = _attribute_value(key, value)
    return result


def _attribute_value(key: str, value: str) -> str:
    allowed = ATTRIBUTE_VALUES[key]
    if value not in allowed if allowed is not None else not value.isdecimal():
        raise RequestError(ResponseCode.SYSTEM_ERROR, f"value of attribute {key} is not supported: {value}")
    if value == "MIXED":
        raise RequestError(ResponseCode.SYSTEM_ERROR, "MIXED message type is not supported.")
    return value


class Topics:
    """Every topic of this broker, and the free rows.

    Attributes:
        deletions: which names were deleted, and what of the log is theirs.
    """

    def __init__(
        self,
        settings: TopicSettings,
        entries: Iterable[TopicEntry] = (),
        row_incarnation_next: int = 1,
        deletions: Deletions | None = None,
    ) -> None:
        self.settings = settings
        self.deletions = deletions or Deletions()
        self.table: dict[str, TopicEntry] = {entry.name: entry for entry in entries}
        self.system = system_topics(settings)
        self._rows = Rows(settings.rows_max, (row for entry in self.table.values() for row in entry.rows))
        highest = max((max(e.row_incarnations, default=0) for e in self.table.values()), default=0)
        self._incarnation_next = max(row_incarnation_next, highest + 1)
        self._settling: list[int] = []
        self._all_settle = False

    def get(self, name: str) -> TopicEntry | None:
        return self.table.get(name)

    @property
    def rows_free(self) -> int:
        return self._rows.free

    @property
    def settling(self) -> bool:
        """Whether rows wait for `settle`."""
        return self._all_settle or bool(self._settling)

    def hold_rows(self) -> None:
        """Give out no row before `settle`: who came before us may have freed any of them a moment ago."""
        self._all_settle = True

    def settle(self) -> None:
        """Everyone who writes into rows knows which queues are gone: their rows may be used again."""
        for row in self._settling:
            self._rows.give_back(row)
        self._settling.clear()
        self._all_settle = False

    def is_system(self, name: str) -> bool:
        """Whether administrators may not create or delete this topic."""
        return name in self.system or name in SYSTEM_TOPICS or name.startswith(SYSTEM_TOPIC_PREFIX)

    def create_missing_system_topics(self) -> list[TopicChange]:
        """Create what every broker has and this one does not have yet."""
        return [self.put(config) for name, config in self.system.items() if name not in self.table]

    def put(self, config: TopicConfig, rows_min: int = 0) -> TopicChange:
        """Create or change a topic; its queues keep their rows, new ones get contiguous rows.

        Args:
            rows_min: give rows to so many queues even if fewer are offered: they hold messages.
        Raises: RequestError(SYSTEM_ERROR) when the rows do not suffice, `NotYet` when the name or the rows
            are still a deleted topic's; nothing is changed then.
        """
        if self.deletions.is_pending(config.name):
            raise NotYet
        old = self.table.get(config.name)
        rows = list(old.rows) if old else []
        incarnations = list(old.row_incarnations) if old else []
        opened = self._open(config.name, len(rows), max(config.read_queues, config.write_queues, rows_min))
        entry = TopicEntry(
            config.name,
            config.perm,
            config.read_queues,
            config.write_queues,
            config.sys_flag,
            config.order,
            config.filter_type,
            dict(config.attributes),
            rows + [row.row for row in opened],
            incarnations + [row.incarnation for row in opened],
        )
        self.table[entry.name] = entry
        return TopicChange(entry, opened)

    def _open(self, topic: str, first: int, end: int) -> tuple[QueueRow, ...]:
        if end <= first:
            return ()
        taken = None if self._all_settle else self._rows.take(end - first)
        if taken is None and self.settling:
            raise NotYet
        if taken is None or self._incarnation_next > INCARNATION_MAX:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR,
                f"topic[{topic}] needs {end - first} more queues, but only {self._rows.free} of "
                f"{self.settings.rows_max} are free: raise memory.queue_rows_max or delete topics",
            )
        incarnation = self._incarnation_next
        self._incarnation_next += 1
        log_start = self.deletions.log_start(topic)
        return tuple(
            QueueRow(topic, first + i, row, incarnation, log_start=log_start) for i, row in enumerate(taken)
        )

    def update(self, config: TopicConfig, attributes: str | None = None) -> TopicChange | None:
        """Serve an administrator's creation or change (17, 18); None = it is so already.

        Args:
            attributes: ``+key=value,-key`` applied to what the topic has; None = take the config's own.
        Raises: RequestError with INVALID_PARAMETER (names, numbers) or SYSTEM_ERROR (attributes, rows).
        """
        check_topic_name(config.name)
        if self.is_system(config.name):
            raise RequestError(
                ResponseCode.INVALID_PARAMETER, f"The topic[{config.name}] is conflict with system topic."
            )
        _check_shape(config)
        old = self.table.get(config.name)
        if attributes is not None:
            config = replace(config, attributes=parse_attributes(attributes, old.attributes if old else {}))
        if old is not None and config_of(old) == config:
            return None
        return self.put(config)

    def auto_create(
        self, name: str, template_name: str, queues: int, sys_flag: int = 0
    ) -> TopicChange | None:
        """Create a topic because someone sends to it; None = it exists.

        Args:
            template_name: the producer's template, usually TBW102.
            queues: how many the producer would like; the template's number is the limit.
        Raises: RequestError(TOPIC_NOT_EXIST) when it may not be created; INVALID_PARAMETER for its name.
        """
        if name in self.table:
            return None
        check_topic_name(name)
        template = self._template(template_name)
        if template is None and name.startswith(RETRY_PREFIX):
            return self.put(TopicConfig(name=name, read_queues=1, write_queues=1, sys_flag=sys_flag))
        if template is None:
            raise topic_missing(name)
        count = self.auto_queues(template_name, queues)
        return self.put(
            TopicConfig(
                name=name,
                read_queues=count,
                write_queues=count,
                perm=template.perm & ~Permission.INHERIT,
                filter_type=template.filter_type,
                sys_flag=sys_flag,
            )
        )

    def auto_queues(self, template_name: str, queues: int) -> int:
        """Return how many queues `auto_create` would give a topic from this template; 0 when it cannot."""
        template = self._template(template_name)
        return max(0, min(queues, template.write_queues)) if template is not None else 0

    def _template(self, name: str) -> TopicEntry | None:
        template = self.table.get(name)
        if template is None or not template.perm & Permission.INHERIT:
            return None
        return None if name == TEMPLATE_TOPIC and not self.settings.auto_create else template

    def ensure(self, name: str, queues: int, perm: int, sys_flag: int = 0) -> TopicChange | None:
        """Create a retry or dead-letter topic on demand; None = it exists."""
        assert name.startswith((RETRY_PREFIX, DLQ_PREFIX))
        if name in self.table:
            return None
        return self.put(
            TopicConfig(name=name, read_queues=queues, write_queues=queues, perm=perm, sys_flag=sys_flag)
        )

    def delete(self, name: str) -> TopicChange | None:
        """Remove a topic; None = there is none.  Its rows are free after the next `settle`.

        Publish `row_incarnation_next` with it: a restarted coordinator must not give a row the same
        incarnation again.
        """
        entry = self.table.pop(name, None)
        if entry is None:
            return None
        self._settling += entry.rows
        return TopicChange(TopicGone(name), closed=tuple(entry.rows))

    @property
    def row_incarnation_next(self) -> int:
        return self._incarnation_next


def _check_shape(config: TopicConfig) -> None:
    if config.read_queues < 0 or config.write_queues < 0:
        raise RequestError(ResponseCode.INVALID_PARAMETER, "the number of queues is negative")
    if not 0 <= config.perm <= int(Permission.READ_WRITE | Permission.INHERIT):
        raise RequestError(ResponseCode.INVALID_PARAMETER, f"the perm {config.perm} is illegal")
    if config.filter_type not in FILTER_TYPES:
        raise RequestError(ResponseCode.INVALID_PARAMETER, f"unknown topicFilterType {config.filter_type}")


@dataclass(frozen=True, slots=True)
class Recovered:
    """The first topics of a supervisor's life: entries to publish and rows to fill."""

    topics: Topics
    rows: tuple[QueueRow, ...]


def recover(
    settings: TopicSettings,
    stored: Iterable[TopicConfig],
    queues: Mapping[tuple[str, int], tuple[int, int]],
    deletions: Deletions | None = None,
) -> Recovered:
    """Give rows to every topic of the files and to every queue that has entries, and the system topics.

    Args:
        stored: what topics.json says; perhaps older than the queues.
        queues: (topic, queue id) → (min, max) of the queues found under ``consumequeue/``.
        deletions: which names were deleted; none of them is pending.
    Raises: RequestError(SYSTEM_ERROR) when the configured rows do not suffice.
    """
    topics = Topics(settings, deletions=deletions)
    found: dict[str, int] = {}
    for topic, queue_id in queues:
        found[topic] = max(found.get(topic, 0), queue_id + 1)
    changes = [topics.put(config) for config in stored]
    changes += topics.create_missing_system_topics()
    for topic, count in sorted(found.items()):
        entry = topics.get(topic)
        if entry is None:
            changes.append(topics.put(TopicConfig(name=topic, read_queues=count, write_queues=count)))
        elif len(entry.rows) < count:
            changes.append(topics.put(config_of(entry), rows_min=count))
    rows = [_bounded(row, queues) for change in changes for row in change.opened]
    return Recovered(topics, tuple(rows))


def _bounded(row: QueueRow, queues: Mapping[tuple[str, int], tuple[int, int]]) -> QueueRow:
    low, high = queues.get((row.topic, row.queue_id), (0, 0))
    # 80,000 of them: `replace` takes three times as long.
    return QueueRow(row.topic, row.queue_id, row.row, row.incarnation, low, high, row.log_start)
