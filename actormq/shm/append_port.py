"""How a role hands messages to the writer: append requests one way, completions the other.

Client side for gateway, coordinator, scheduler and checker; the writer's side is `actormq.kernels.batches`,
which reads the same bytes.  A port belongs to one incarnation of its client, so a ticket is answered at most
once and never for another incarnation's message.

Request = 72-byte header, little-endian, then born host, topic, properties, body.  A completions entry of the
ring holds one or more 48-byte completions: the writer publishes those of a whole batch together.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from actormq.shm.ring import RingConsumer, RingProducer

if TYPE_CHECKING:
    from actormq.shm.doorbell import Doorbell
    from actormq.shm.ring import Port

REQUEST: Final = struct.Struct("<QIIiHHiiiIqqqHHBBH")
assert REQUEST.size == 72
COMPLETION: Final = struct.Struct("<QiIqqqq")
assert COMPLETION.size == 48

KIND_SINGLE: Final = 1
KIND_BATCH: Final = 2
"""The body is a sequence of RocketMQ batch items, each with its own flag, body and properties."""
KIND_COPY: Final = 3
"""The body is copied from the commit log at `body_ref`: a message that moves to another topic."""

_ENTRY_HEADER_BYTES: Final = 8
_LINE_CELLS: Final = 8
_CAPACITY_LINE: Final = 2


class Completion(NamedTuple):
    """What became of one request.  Offsets are those of its first record; -1 where nothing was stored."""

    ticket: int
    status: int
    """A `actormq.broker.sending.PutStatus`."""
    count: int  # type: ignore[assignment]  # hides tuple.count
    log_offset: int
    log_end: int
    """One past the last byte: what the positions must pass before the send is acknowledged."""
    queue_offset: int
    store_timestamp: int


class Request(NamedTuple):
    """One append request as it lies in the ring; the byte fields are views of the ring."""

    ticket: int
    row: int
    row_incarnation: int
    queue_id: int
    kind: int
    count: int  # type: ignore[assignment]  # hides tuple.count
    flag: int
    sys_flag: int
    reconsume_times: int
    born_timestamp: int
    prepared_offset: int
    body_ref: int
    body_bytes: int
    born_host: memoryview
    topic: memoryview
    properties: memoryview
    body: memoryview


def unpack_request(entry: memoryview) -> Request:
    """Return the request in one ring entry (the writer's kernel does the same over whole rings)."""
    (
        ticket, row, row_incarnation, queue_id, kind, count, flag, sys_flag, reconsume_times, body_bytes,
        born_timestamp, prepared_offset, body_ref, topic_bytes, properties_bytes, born_host_bytes, _, _,
    ) = REQUEST.unpack_from(entry)  # fmt: skip
    topic_at = REQUEST.size + born_host_bytes
    properties_at = topic_at + topic_bytes
    body_at = properties_at + properties_bytes
    return Request(
        ticket, row, row_incarnation, queue_id, kind, count, flag, sys_flag, reconsume_times,
        born_timestamp, prepared_offset, body_ref, body_bytes,
        born_host=entry[REQUEST.size : topic_at],
        topic=entry[topic_at:properties_at],
        properties=entry[properties_at:body_at],
        body=entry[body_at:],
    )  # fmt: skip


def outstanding_max(completion_capacity: int) -> int:
    """Return how many requests may be unanswered so that their completions always fit into the ring.

    Worst case: one ring entry for each, and the end of the lap wasted once.
    """
    entry_bytes = _ENTRY_HEADER_BYTES + COMPLETION.size
    return max(1, completion_capacity // entry_bytes - 2)


class AppendPort:
    """The client's end of one port to the writer; used by one role, from its one thread."""

    def __init__(self, port: Port, writer_doorbell: Doorbell) -> None:
        self.request_ring = port.requests
        self._requests = RingProducer(port.requests)
        self._completions = RingConsumer(port.completions)
        self._doorbell = writer_doorbell
        self._pushed = False
        self._outstanding = 0
        capacity = port.completions.cast("Q")[_CAPACITY_LINE * _LINE_CELLS]
        self._outstanding_max = outstanding_max(capacity)

    @property
    def outstanding(self) -> int:
        """Requests that have no completion yet."""
        return self._outstanding

    @property
    def room(self) -> int:
        """How many more requests may be unanswered."""
        return self._outstanding_max - self._outstanding

    @property
    def outstanding_max(self) -> int:
        """How many requests may be unanswered at most."""
        return self._outstanding_max

    def appended(self, count: int) -> None:
        """Say that so many requests were written to `request_ring` by a kernel (`actormq.kernels.sends`)."""
        self._outstanding += count
        self._pushed = True

    def try_append(
        self,
        ticket: int,
        *,
        row: int,
        row_incarnation: int,
        queue_id: int,
        topic: bytes | memoryview,
        properties: bytes | memoryview,
        body: bytes | bytearray | memoryview,
        flag: int,
        sys_flag: int,
        reconsume_times: int,
        born_timestamp: int,
        born_host: bytes,
        count: int = 1,
        kind: int = KIND_SINGLE,
        prepared_offset: int = 0,
        body_ref: int = 0,
        body_bytes: int | None = None,
    ) -> bool:
        """Put one request into the ring; call `flush` once after a batch of them.

        Args:
            ticket: comes back in the completion; not used twice in this port's life.
            row: the queue's row in the extents table, with that row's incarnation.
            born_host: 4 or 16 address bytes and the port as a big-endian i32.
            count: messages in a batch body (kind 2), else 1.
            body_bytes: kind 3 only, where `body` is empty: how many bytes to copy from `body_ref`.

        Returns:
            False when the ring is full, or as many requests are unanswered as the completion ring can hold:
            try again after the next completions.
        """
        if self._outstanding >= self._outstanding_max:
            return False
        header = REQUEST.pack(
            ticket, row, row_incarnation, queue_id, kind, count, flag, sys_flag, reconsume_times,
            len(body) if body_bytes is None else body_bytes,
            born_timestamp, prepared_offset, body_ref, len(topic), len(properties), len(born_host), 0, 0,
        )  # fmt: skip
        if not self._requests.try_push(header, born_host, topic, properties, body):
            self._pushed = True  # a full ring is news for the writer, too
            return False
        self._outstanding += 1
        self._pushed = True
        return True

    def flush(self) -> None:
        """Wake the writer if it sleeps and something was pushed since the last call."""
        if self._pushed:
            self._pushed = False
            self._doorbell.ring()

    def completions(self) -> list[Completion]:
        """Take every completion that has arrived."""
        done: list[Completion] = []
        entries = self.take_completions()
        for entry in entries:
            done.extend(map(Completion._make, COMPLETION.iter_unpack(entry)))
        self.release_completions(entries)
        return done

    @property
    def has_completions(self) -> bool:
        """Whether `take_completions` has something."""
        return not self._completions.empty()

    def take_completions(self) -> list[memoryview]:
        """Return what has arrived, completions one behind the other, valid until `release_completions`."""
        return self._completions.take()

    def release_completions(self, entries: list[memoryview]) -> None:
        """Give back what `take_completions` returned."""
        if entries:
            self._completions.release()
            self._outstanding -= sum(map(len, entries)) // COMPLETION.size
