"""What the coordinator decided, for the world to carry out: rows, files, tables, messages, answers.

`actormq.broker.coordinating` fills an `Outbox` while it serves a batch; the role empties it field by field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from actormq.broker.locks import LockRow
from actormq.broker.members import ConnectionKey
from actormq.broker.offsets import OffsetKey
from actormq.broker.tables import Entry, TopicEntry
from actormq.broker.topics import QueueRow
from actormq.kernels.records import host_sizes
from actormq.message import SysFlag, encode_properties
from actormq.store.identifiers import pack_host
from actormq.store.record import Record
from actormq.wire.command import RemotingCommand

_BODY_BEHIND_HOSTS: Final = 72
"""Where a record's body begins, without the two addresses before it (storage.md 2.1)."""
_NO_ROW: Final = 0xFFFFFFFF


class Now(NamedTuple):
    """Both clocks at one moment."""

    wall_ms: int
    monotonic_ms: int


class Caller(NamedTuple):
    """Who asked, and where its answer goes."""

    key: ConnectionKey
    request_id: int
    peer: str
    lease_ms: int
    read_ms: int = 0
    """When its gateway read the request; monotonic, 0 = not known."""


@dataclass(slots=True)
class Reply:
    """An answer, and what must have happened before it is sent."""

    key: ConnectionKey
    request_id: int
    command: RemotingCommand | None
    """None: to a one-way request."""
    needed: tuple[int, str | None] | None = None
    """(code, remark) of the answer to a gateway's own question."""
    tables: bool = False
    """Wait until every live gateway has the tables published so far."""
    log_end: int = 0
    """Wait until the log is safe up to here."""
    registration: bool = False
    """Wait until the name servers know the topics as they are now."""


@dataclass(slots=True, kw_only=True)
class Append:
    """A message to store: its body is that of the record at `body_ref`."""

    ticket: int
    row: int
    row_incarnation: int
    queue_id: int
    topic: bytes
    properties: bytes
    flag: int
    sys_flag: int
    reconsume_times: int
    born_timestamp: int
    born_host: bytes
    body_ref: int
    body_bytes: int


def fence(ticket: int) -> Append:
    """Return what the writer refuses, as no queue has that row: its answer tells how far the writer is."""
    return Append(
        ticket=ticket,
        row=_NO_ROW,
        row_incarnation=0,
        queue_id=0,
        topic=b"fence",
        properties=b"",
        flag=0,
        sys_flag=0,
        reconsume_times=0,
        born_timestamp=0,
        born_host=bytes(8),
        body_ref=0,
        body_bytes=0,
    )


def copy_of(
    record: Record,
    ticket: int,
    entry: TopicEntry,
    queue_id: int,
    properties: dict[str, str],
    reconsume_times: int,
) -> Append:
    """Return `record` as it is stored again in another queue, its body by reference."""
    return Append(
        ticket=ticket,
        row=entry.rows[queue_id],
        row_incarnation=entry.row_incarnations[queue_id],
        queue_id=queue_id,
        topic=entry.name.encode(),
        properties=encode_properties(properties),
        flag=record.flag,
        sys_flag=record.sys_flag & ~SysFlag.STORE_HOST_V6,
        reconsume_times=reconsume_times,
        born_timestamp=record.born_timestamp,
        born_host=pack_host(*record.born_host),
        body_ref=record.log_offset + _BODY_BEHIND_HOSTS + sum(host_sizes(record.sys_flag)),
        body_bytes=len(record.body),
    )


@dataclass(slots=True)
class Outbox:
    """What must be done, field by field in this order."""

    opened: list[QueueRow] = field(default_factory=list)
    lock_rows: list[LockRow] = field(default_factory=list)
    offset_rows: list[tuple[OffsetKey, int]] = field(default_factory=list)
    deleted_changed: bool = False
    """Persist deletedTopics.json, before topics.json."""
    unsaved_offsets: set[str] = field(default_factory=set)
    """Deleted topics whose offsets must go from consumerOffset.json before anything is answered."""
    topics_changed: bool = False
    """Persist topics.json and register."""
    groups_changed: bool = False
    """Persist subscriptionGroup.json."""
    closed: list[int] = field(default_factory=list)
    """Rows of deleted topics to close: whoever waits at one is sent away, and asks the tables again."""
    entries: list[Entry] = field(default_factory=list)
    """Publish."""
    appends: list[Append] = field(default_factory=list)
    calls: list[tuple[ConnectionKey, RemotingCommand]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return self == Outbox()
