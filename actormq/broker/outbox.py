"""What the coordinator decided, for the world to carry out: rows, files, tables, messages, answers.

`actormq.broker.coordinating` fills an `Outbox` while it serves a batch; the role empties it field by field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from actormq.broker.locks import LockRow
from actormq.broker.members import ConnectionKey
from actormq.broker.offsets import OffsetKey
from actormq.broker.tables import Entry
from actormq.broker.topics import QueueRow
from actormq.wire.command import RemotingCommand


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


@dataclass(slots=True)
class Outbox:
    """What must be done, field by field in this order."""

    opened: list[QueueRow] = field(default_factory=list)
    lock_rows: list[LockRow] = field(default_factory=list)
    offset_rows: list[tuple[OffsetKey, int]] = field(default_factory=list)
    topics_changed: bool = False
    """Persist topics.json and register."""
    groups_changed: bool = False
    """Persist subscriptionGroup.json."""
    entries: list[Entry] = field(default_factory=list)
    """Publish."""
    closed: list[int] = field(default_factory=list)
    """Rows to close once their topic is gone from the tables."""
    appends: list[Append] = field(default_factory=list)
    calls: list[tuple[ConnectionKey, RemotingCommand]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return self == Outbox()
