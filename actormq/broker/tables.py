"""The tables every gateway reads: topics, groups, subscriptions; one small entry per change.

The coordinator publishes entries (`actormq.shm.tables`); whoever needs the tables (gateway, dispatcher,
cleaner, scheduler) applies them in order to a `Tables` of its own.  Applying an entry twice does no harm,
so a snapshot is nothing but one entry per live thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import msgspec

from actormq.message import Permission


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    """What all entries share: fixed, and packed by position (a field may only be added at the end)."""


class TopicEntry(_Entry, frozen=True, array_like=True, tag="T"):
    """A topic as it is now; ``rows[queue_id]`` is the queue's row in the extents table.

    `rows` counts ``max(read_queues, write_queues)`` and never shrinks: a queue that is no longer offered
    keeps its row, its messages and its offsets.
    """

    name: str
    perm: int
    read_queues: int
    write_queues: int
    sys_flag: int
    order: bool
    filter_type: str
    attributes: dict[str, str]
    rows: list[int]
    row_incarnations: list[int]

    @property
    def readable(self) -> bool:
        return bool(self.perm & Permission.READ)

    @property
    def writable(self) -> bool:
        return bool(self.perm & Permission.WRITE)


class TopicGone(_Entry, frozen=True, array_like=True, tag="t"):
    """The topic was deleted; its rows may be reused under another incarnation."""

    name: str


class GroupEntry(_Entry, frozen=True, array_like=True, tag="G"):
    """What send and pull need to know of a consumer group's configuration."""

    name: str
    consume_enable: bool = True
    broadcast_enable: bool = True
    retry_max_times: int = 16
    retry_queues: int = 1
    broker_id: int = 0
    which_broker_when_slow: int = 1
    orderly_locked: bool = False
    """Whether some queue is locked: a failed message then goes to the dead letters, not to a retry."""
    sys_flag: int = 0


class GroupGone(_Entry, frozen=True, array_like=True, tag="g"):
    """The group's configuration was deleted."""

    name: str


class SubscriptionEntry(_Entry, frozen=True, array_like=True, tag="S"):
    """What an online group wants of one topic; `tag_codes` empty = everything (or not a tag expression)."""

    group: str
    topic: str
    model: str
    expression_type: str
    expression: str
    tag_codes: list[int]
    sub_version: int


class SubscriptionGone(_Entry, frozen=True, array_like=True, tag="s"):
    """The group no longer subscribes to the topic."""

    group: str
    topic: str


class ConsumerGroupOnline(_Entry, frozen=True, array_like=True, tag="C"):
    """At least one member of the group is connected."""

    group: str
    model: str = "CLUSTERING"


class ConsumerGroupOffline(_Entry, frozen=True, array_like=True, tag="c"):
    """The group's last member is gone, and with it its subscriptions."""

    group: str


class BrokerEntry(_Entry, frozen=True, array_like=True, tag="B"):
    """The broker as a whole.

    `row_incarnation_next` is larger than the incarnation of any row ever given to a topic that is gone: a
    restarted coordinator must not give out an incarnation again that some port still holds a request for.
    """

    permission: int = 6
    row_incarnation_next: int = 1


Entry: TypeAlias = (
    TopicEntry
    | TopicGone
    | GroupEntry
    | GroupGone
    | SubscriptionEntry
    | SubscriptionGone
    | ConsumerGroupOnline
    | ConsumerGroupOffline
    | BrokerEntry
)

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Entry]] = msgspec.msgpack.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    """Return the bytes that are published."""
    return _ENCODER.encode(entry)


def decode_entry(data: bytes | memoryview) -> Entry:
    """Return the entry in `data`; msgspec.DecodeError is a broken invariant: only our own side wrote it."""
    return _DECODER.decode(data)


class Tables:
    """What the published entries add up to.  Lookups are dictionary lookups; nothing negative is kept."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: a snapshot follows."""
        self.broker = BrokerEntry()
        self.topics: dict[str, TopicEntry] = {}
        self.groups: dict[str, GroupEntry] = {}
        self.consumer_groups: dict[str, ConsumerGroupOnline] = {}
        self.subscriptions: dict[str, dict[str, SubscriptionEntry]] = {}

    def apply(self, data: bytes | memoryview) -> Entry:
        """Take over one published entry and return it decoded."""
        entry = decode_entry(data)
        self.put(entry)
        return entry

    def put(self, entry: Entry) -> None:
        """Take over one entry."""
        match entry:
            case TopicEntry():
                self.topics[entry.name] = entry
            case TopicGone():
                self.topics.pop(entry.name, None)
            case GroupEntry():
                self.groups[entry.name] = entry
            case GroupGone():
                self.groups.pop(entry.name, None)
            case SubscriptionEntry():
                self.subscriptions.setdefault(entry.group, {})[entry.topic] = entry
            case SubscriptionGone():
                self.subscriptions.get(entry.group, {}).pop(entry.topic, None)
            case ConsumerGroupOnline():
                self.consumer_groups[entry.group] = entry
            case ConsumerGroupOffline():
                self.consumer_groups.pop(entry.group, None)
                self.subscriptions.pop(entry.group, None)
            case BrokerEntry():
                self.broker = entry

    def topic(self, name: str) -> TopicEntry | None:
        return self.topics.get(name)

    def group(self, name: str) -> GroupEntry | None:
        return self.groups.get(name)

    def subscription(self, group: str, topic: str) -> SubscriptionEntry | None:
        of_group = self.subscriptions.get(group)
        return of_group.get(topic) if of_group else None

    def consumer_group(self, name: str) -> ConsumerGroupOnline | None:
        """Return the group if it is online."""
        return self.consumer_groups.get(name)

    def entries(self) -> Iterator[Entry]:
        """Yield a snapshot: the entries that make an empty `Tables` equal to this one."""
        yield self.broker
        yield from self.topics.values()
        yield from self.groups.values()
        yield from self.consumer_groups.values()
        for of_group in self.subscriptions.values():
            yield from of_group.values()


class OwnTables(Tables):
    """The publisher's own tables: they also know what is news, and how large a snapshot would be."""

    def reset(self) -> None:
        super().reset()
        self.size_bytes = _entry_bytes(self.broker)

    def put(self, entry: Entry) -> None:
        self.size_bytes += self._bytes_stored(entry) - sum(map(_entry_bytes, self._replaced(entry)))
        super().put(entry)

    def change(self, entry: Entry) -> bool:
        """Take over one entry; False when it says nothing new, and need not be published."""
        replaced = self._replaced(entry)
        if replaced == [entry] or (isinstance(entry, _REMOVALS) and not replaced):
            return False
        self.put(entry)
        return True

    def _bytes_stored(self, entry: Entry) -> int:
        return 0 if isinstance(entry, _REMOVALS) else _entry_bytes(entry)

    def _replaced(self, entry: Entry) -> list[Entry]:
        """Return the entries that `entry` takes the place of, or removes."""
        found: list[Entry | None]
        match entry:
            case TopicEntry() | TopicGone():
                found = [self.topics.get(entry.name)]
            case GroupEntry() | GroupGone():
                found = [self.groups.get(entry.name)]
            case SubscriptionEntry() | SubscriptionGone():
                found = [self.subscription(entry.group, entry.topic)]
            case ConsumerGroupOnline():
                found = [self.consumer_groups.get(entry.group)]
            case ConsumerGroupOffline():
                subscriptions = self.subscriptions.get(entry.group, {})
                found = [self.consumer_groups.get(entry.group), *subscriptions.values()]
            case BrokerEntry():
                found = [self.broker]
        return [each for each in found if each is not None]


_REMOVALS: Final = (TopicGone, GroupGone, SubscriptionGone, ConsumerGroupOffline)


def _entry_bytes(entry: Entry) -> int:
    """Return what one entry takes in a snapshot, its length included."""
    return 4 + len(encode_entry(entry))
