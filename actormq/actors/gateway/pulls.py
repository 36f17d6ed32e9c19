"""pulls: answered in place from the mapped queue and log; one that comes too early is parked with the holder.

What is parked stays here, too, with its deadline: the holder only says when to look again, and a new
holder is told everything again.  A pull that is woken and finds nothing for its tags is parked again
behind what it has looked at.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from actormq.actors.gateway.clients import Client, is_native
from actormq.actors.gateway.relay import OVERLOAD, OnNeeded
from actormq.actors.gateway.replies import Replies
from actormq.actors.holder import Park
from actormq.broker.pulling import (
    GroupNeeded,
    Place,
    PullFlag,
    PullPlan,
    PullRefused,
    PullStatus,
    TransferLimits,
    locate,
    may_wait,
    no_group,
    plan,
    refusal_fields,
    response_code,
    share,
)
from actormq.broker.tables import Tables
from actormq.errors import RequestError, ResponseCode
from actormq.kernels.queues import ENTRY, ENTRY_BYTES, select
from actormq.net.tcp import Buffer
from actormq.shm.extents import Extent, Extents
from actormq.store.commit_log import LogReader, LogRemoved
from actormq.store.consume_queue import QueueReader, QueueRemoved
from actormq.wire.command import RemotingCommand
from actormq.wire.headers import PullHeader, decode_pull

PARKED_MAX: Final = 65_536
SUSPEND_MS_MAX: Final = 300_000
_ROUNDS_MAX: Final = 3
"""Reading begins anew when the queue's row changes under it; after so many times the client tries again."""
_NS_PER_MS: Final = 1_000_000


class HolderPort(Protocol):
    """What pulls need of `actormq.actors.holder.ParkPort`."""

    def try_park(self, park: Park) -> bool: ...

    def flush(self) -> None: ...

    @property
    def has_woken(self) -> bool: ...

    def woken(self) -> list[int]: ...


class PullRelay(Protocol):
    """What pulls need of the relay."""

    def need_group(self, group: str, on_needed: OnNeeded, now_ns: int) -> None: ...

    def commit(self, group: str, topic: str, queue_id: int, offset: int, now_ns: int) -> None: ...


class Marks(Protocol):
    """The positions that pulls look at, and the cell that says what is being read."""

    def log_range(self) -> tuple[int, int]:
        """The log offsets between which messages are readable."""
        ...

    def reading(self, log_offset: int) -> None:
        """Say that the log may be read from here on until `done_reading`."""
        ...

    def done_reading(self) -> None: ...


Ranges = list[tuple[int, int]]
"""(log offset, bytes)."""


class ColdRanges(Protocol):
    """What pulls need of `actormq.actors.gateway.cold.ColdReader`."""

    def is_old(self, distance: int) -> bool:
        """Whether what lies so far behind the log's end may be out of memory."""
        ...

    def in_memory(self, ranges: Ranges) -> bool:
        """Whether they can be read without waiting."""
        ...

    def read(self, ranges: Ranges, then: Callable[[bytes | bytearray | None], None]) -> bool:
        """Read elsewhere, and call `then` (None: it is gone); False: too busy."""
        ...


@dataclass(slots=True)
class _Pull:
    """One request, for as long as it is not answered."""

    client: Client
    command: RemotingCommand
    header: PullHeader
    deadline_ns: int = 0
    """Until when it may wait; 0 = it has not waited yet."""
    park: Park | None = None


@dataclass(slots=True)
class PullCounts:
    """What happened since the counts were last taken."""

    messages: int = 0
    bytes: int = 0
    pulls: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """What was read for a pull."""

    status: PullStatus
    next_offset: int
    extent: Extent
    parts: tuple[Buffer, ...] = ()
    messages: int = 0
    bytes: int = 0
    cold: Ranges | None = None
    """To be read elsewhere instead of `parts`."""


class Pulls:
    """The pull path of one gateway.

    Args:
        memory_bytes: what is nearer to the log's end than this is taken to be in memory.
        address: this broker's, for a remark.
        cold: reads what may not be in memory; None: everything is read through the maps.
    """

    def __init__(
        self,
        *,
        holder: HolderPort,
        relay: PullRelay,
        tables: Tables,
        extents: Extents,
        queues: QueueReader,
        log: LogReader,
        marks: Marks,
        replies: Replies,
        limits: TransferLimits,
        memory_bytes: int,
        address: str,
        now_ns: Callable[[], int],
        cold: ColdRanges | None = None,
    ) -> None:
        self._holder = holder
        self._relay = relay
        self._tables = tables
        self._extents = extents
        self._queues = queues
        self._log = log
        self._marks = marks
        self._replies = replies
        self._limits = limits
        self._memory_bytes = memory_bytes
        self._address = address
        self._now_ns = now_ns
        self._cold = cold
        self._next_id = 0
        self._parked: dict[int, _Pull] = {}
        self._unsent: dict[int, None] = {}
        """Parked pulls that the holder has not been told of."""
        self._deadlines: list[tuple[int, int]] = []
        self.counts = PullCounts()

    @property
    def parked(self) -> int:
        return len(self._parked)

    # -- in

    def submit(self, client: Client, command: RemotingCommand, now_ns: int) -> None:
        """Answer a pull, or park it."""
        try:
            header = decode_pull(command.fields)
        except RequestError as error:
            client.refuse(command, error.response_code, error.remark)
            return
        self._start(_Pull(client, command, header), now_ns)

    def _start(self, pull: _Pull, now_ns: int, asked: bool = False) -> None:
        header = pull.header
        planned = self._plan(pull)
        if isinstance(planned, GroupNeeded):
            if asked:
                self._refuse(pull, no_group(planned.group))
            else:
                self._relay.need_group(
                    planned.group, lambda code, remark: self._on_group(pull, code, remark), now_ns
                )
        elif planned is not None:
            if header.sys_flag & PullFlag.COMMIT_OFFSET:
                self._relay.commit(header.group, header.topic, header.queue_id, header.commit_offset, now_ns)
            self._serve(pull, planned, now_ns)

    def _on_group(self, pull: _Pull, code: int, remark: str) -> None:
        if code != 0:
            self._refuse(pull, PullRefused(code, remark))
        else:
            self._start(pull, self._now_ns(), asked=True)

    def _plan(self, pull: _Pull) -> PullPlan | GroupNeeded | None:
        """Check a pull against the tables as they are now; None: it was refused."""
        try:
            return plan(pull.header, self._tables, self._address)
        except PullRefused as refusal:
            self._refuse(pull, refusal)
            return None

    def _refuse(self, pull: _Pull, refusal: PullRefused) -> None:
        pull.client.refuse(pull.command, refusal.response_code, refusal.remark, refusal_fields(refusal))

    # -- reading

    def _serve(self, pull: _Pull, planned: PullPlan, now_ns: int) -> None:
        """Answer what is there, or park what may wait."""
        header = pull.header
        first_offset = header.queue_offset
        found = self._read(pull, planned)
        waits = may_wait(Place(found.status, found.next_offset), header.queue_offset, found.extent.max)
        if found.status is PullStatus.NO_MATCHED_MESSAGE and pull.deadline_ns:
            # Woken by messages that others wanted: go on behind them, and wait again at the end.
            header.queue_offset = found.next_offset
            waits = found.next_offset == found.extent.max
        if waits and self._may_park(pull, now_ns):
            self._park(pull, planned, now_ns)
            return
        if waits and header.queue_offset != first_offset:
            found = Found(PullStatus.OFFSET_OVERFLOW_ONE, found.next_offset, found.extent)
        if found.cold is not None:
            self._fetch(pull, planned, found, found.cold)
        else:
            self._answer(pull, planned, found)

    def _fetch(self, pull: _Pull, planned: PullPlan, found: Found, ranges: Ranges) -> None:
        """Answer when the ranges have been read, here or by a thread that may wait for the disk."""

        def then(data: bytes | bytearray | None) -> None:
            if data is None:
                gone = Found(PullStatus.MESSAGE_WAS_REMOVING, found.next_offset, found.extent)
                self._answer(pull, planned, gone)
            else:
                self._answer(pull, planned, replace(found, parts=(data,), cold=None))

        assert self._cold is not None
        if not self._cold.read(ranges, then):
            self._refuse(pull, PullRefused(ResponseCode.SYSTEM_BUSY, OVERLOAD))

    def _read(self, pull: _Pull, planned: PullPlan) -> Found:
        """Look into the queue until what was read was certainly this queue's."""
        for _ in range(_ROUNDS_MAX):
            extent = self._extents.read(planned.row)
            if extent.incarnation != planned.row_incarnation:
                # The topic was deleted under us; the tables say so in a moment.  Nothing that resets offsets.
                break
            place = locate(pull.header.queue_offset, extent.min, extent.max)
            if place.status is not PullStatus.FOUND:
                return Found(place.status, place.next_offset, extent)
            found = self._read_at(pull, planned, extent)
            if self._extents.still_holds(planned.row, extent, pull.header.queue_offset):
                return found
        return Found(PullStatus.MESSAGE_WAS_REMOVING, pull.header.queue_offset, extent)

    def _read_at(self, pull: _Pull, planned: PullPlan, extent: Extent) -> Found:
        header = pull.header
        log_min, log_end = self._marks.log_range()
        self._marks.reading(log_min)
        offset = header.queue_offset
        try:
            first = self._queues.view(header.topic, header.queue_id, offset, 1, extent.incarnation)
        except QueueRemoved:
            return Found(PullStatus.OFFSET_FOUND_NULL, self._next_file(offset, extent), extent)
        (log_offset, _, _) = ENTRY.unpack(first)
        in_memory = log_end - log_offset <= self._memory_bytes
        taken = share(header, self._limits, in_memory=in_memory, native=is_native(pull.command))
        count = min(taken.entries, extent.max - offset)
        entries = self._queues.view(header.topic, header.queue_id, offset, count, extent.incarnation)
        chosen = select(entries, offset, taken.messages, taken.bytes, planned.tag_codes, log_min)
        if not chosen.messages:
            return Found(PullStatus.NO_MATCHED_MESSAGE, chosen.next_queue_offset, extent)
        if self._waits_for_disk(log_end - log_offset, chosen.ranges):
            return Found(
                PullStatus.FOUND,
                chosen.next_queue_offset,
                extent,
                (),
                chosen.messages,
                chosen.bytes,
                chosen.ranges,
            )
        try:
            parts = self._log.parts(chosen.ranges, chosen.bytes)
        except LogRemoved:
            return Found(PullStatus.MESSAGE_WAS_REMOVING, chosen.next_queue_offset, extent)
        return Found(PullStatus.FOUND, chosen.next_queue_offset, extent, parts, chosen.messages, chosen.bytes)

    def _waits_for_disk(self, distance: int, ranges: Ranges) -> bool:
        """Whether what lies so far behind the log's end may have to come from a disk."""
        cold = self._cold
        return cold is not None and cold.is_old(distance) and not cold.in_memory(ranges)

    def _next_file(self, offset: int, extent: Extent) -> int:
        """Return where the queue goes on behind a file that is missing."""
        per_file = self._queues.file_bytes // ENTRY_BYTES
        return min(offset - offset % per_file + per_file, extent.max)

    def _answer(self, pull: _Pull, planned: PullPlan, found: Found) -> None:
        self.counts.pulls += 1
        self.counts.messages += found.messages
        self.counts.bytes += found.bytes
        if pull.command.is_oneway or pull.client.closed:
            return
        code = response_code(found.status, pull.header.queue_offset)
        offsets = (found.next_offset, found.extent.min, found.extent.max)
        head = self._replies.pulled(pull.command, code, found.status.value, planned, offsets, found.bytes)
        pull.client.reply(head, *found.parts)

    def finish_batch(self) -> None:
        """All views are taken: say that nothing is being read, and tell the holder of new parks."""
        self._marks.done_reading()
        self._tell_holder()

    # -- waiting

    def _may_park(self, pull: _Pull, now_ns: int) -> bool:
        if pull.client.closed or pull.command.is_oneway:
            return False
        if pull.deadline_ns:
            return now_ns < pull.deadline_ns
        wanted = pull.header.sys_flag & PullFlag.SUSPEND and pull.header.suspend_ms > 0
        return bool(wanted) and len(self._parked) < PARKED_MAX

    def _park(self, pull: _Pull, planned: PullPlan, now_ns: int) -> None:
        header = pull.header
        if not pull.deadline_ns:
            pull.command.body = b""
            pull.deadline_ns = now_ns + min(header.suspend_ms, SUSPEND_MS_MAX) * _NS_PER_MS
        # A number of its own each time: a late wake of the last one must not end this one.
        self._next_id += 1
        park_id = self._next_id
        pull.park = Park(park_id, planned.row, planned.row_incarnation, header.queue_offset, pull.deadline_ns)
        self._parked[park_id] = pull
        pull.client.parked.add(park_id)
        self._unsent[park_id] = None
        heapq.heappush(self._deadlines, (pull.deadline_ns, park_id))

    def _unpark(self, park_id: int) -> _Pull | None:
        pull = self._parked.pop(park_id, None)
        if pull is not None:
            pull.client.parked.discard(park_id)
            self._unsent.pop(park_id, None)
        return pull

    def _tell_holder(self) -> None:
        while self._unsent:
            park_id = next(iter(self._unsent))
            park = self._parked[park_id].park
            assert park is not None
            if not self._holder.try_park(park):
                break
            del self._unsent[park_id]
        self._holder.flush()

    @property
    def blocked(self) -> bool:
        """Whether the holder's ring had no room for some park."""
        return bool(self._unsent)

    @property
    def has_woken(self) -> bool:
        """Whether `collect` has something to do."""
        return self._holder.has_woken

    def collect(self, now_ns: int) -> bool:
        """Look again for the pulls that the holder has woken; True when it had."""
        woken = self._holder.woken()
        for park_id in woken:
            self._again(park_id, now_ns)
        return bool(woken)

    def _again(self, park_id: int, now_ns: int) -> None:
        pull = self._unpark(park_id)
        if pull is None or pull.client.closed:
            return
        planned = self._plan(pull)
        if isinstance(planned, GroupNeeded):
            self._refuse(pull, no_group(planned.group))
        elif planned is not None:
            self._serve(pull, planned, now_ns)

    def park_all_again(self) -> None:
        """The holder is a new one: tell it everything."""
        self._unsent = dict.fromkeys(self._parked)

    def client_closed(self, client: Client) -> None:
        """Forget the parked pulls of a client that is gone."""
        for park_id in list(client.parked):
            self._unpark(park_id)

    def expire(self, now_ns: int) -> None:
        """Answer the pulls that have waited long enough: with what is there now, most often nothing."""
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, park_id = heapq.heappop(self._deadlines)
            self._again(park_id, now_ns)

    def wake_at_ns(self) -> int | None:
        """When `expire` next has work."""
        while self._deadlines and self._deadlines[0][1] not in self._parked:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def end_all(self) -> None:
        """Answer every parked pull now: the gateway stops."""
        for park_id in list(self._parked):
            pull = self._parked[park_id]
            pull.deadline_ns = 1
            self._again(park_id, 2)
