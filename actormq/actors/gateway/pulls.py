"""pulls: answered in place from the mapped queue and log; one that comes too early is parked with the holder.

What is parked stays here, too, with its deadline: the holder only says when to look again, and a new
holder is told everything again.  A pull that is woken and finds nothing for its tags is parked again
behind what it has looked at.

What is sent has been looked at: it is undamaged and the message that its queue entry promises (`damage`).

Common pulls go through a kernel (`actormq.kernels.pulls`), from the read buffer to the answer; it gives back
what is rare, also when it has waited there already.  What follows here are the rules for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from actormq.actors.gateway import batches
from actormq.actors.gateway.clients import Client, is_native
from actormq.actors.gateway.damage import Damage, sizes
from actormq.actors.gateway.lost_tails import LostTails, Reader
from actormq.actors.gateway.relay import OVERLOAD, OnNeeded
from actormq.actors.gateway.replies import Replies
from actormq.broker.pulling import (
    BYTES_WANTED_MIN,
    EXAMINED_MIN,
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
from actormq.kernels.parks import PARK_BYTES
from actormq.kernels.pulls import PullPath, PullTarget, target_key
from actormq.kernels.queues import ENTRY, ENTRY_BYTES, count_whole, select
from actormq.net.tcp import Buffer
from actormq.shm.extents import Extent, Extents
from actormq.store.batch_queue import BatchEntry, BatchQueues, is_batch_topic
from actormq.store.commit_log import LogReader, LogRemoved
from actormq.store.consume_queue import QueueReader, QueueRemoved
from actormq.store.queue_ext import QueueExtensions
from actormq.wire import frame
from actormq.wire.command import BROKER_VERSION, RemotingCommand
from actormq.wire.headers import PullHeader, decode_pull, int_field

PARKED_MAX: Final = 65_536
SUSPEND_MS_MAX: Final = 300_000
_MAPS_MAX: Final = 512
"""Files of queues that common pulls hold; they share them with `QueueReader`."""
_TARGETS_MAX: Final = 10_000
"""Groups and topics whose pulls are common; beyond it all are forgotten, and come again as they pull."""
_ANY_VERSION: Final = (1 << 63) - 1
_ROUNDS_MAX: Final = 3
"""Reading begins anew when the queue's row changes under it; after so many times the client tries again."""
_NS_PER_MS: Final = 1_000_000


class HolderPort(Protocol):
    """What pulls need of `actormq.actors.holder.ParkPort`."""

    entry_bytes_max: int

    def say_waiting(self, count: int) -> None: ...

    def try_park(self, parks: bytearray) -> bool: ...

    def flush(self) -> None: ...

    @property
    def has_woken(self) -> bool: ...

    def woken(self) -> list[memoryview]: ...

    def release(self) -> None: ...


class PullRelay(Protocol):
    """What pulls need of the relay."""

    def need_group(self, group: str, on_needed: OnNeeded, now_ns: int) -> None: ...

    def commit(self, group: str, topic: str, queue_id: int, offset: int, now_ns: int) -> None: ...

    def commit_all(self, commits: dict[tuple[str, str, int], int], now_ns: int) -> None: ...


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


Spots = list[tuple[int, int]]
"""(start, end) of frames in a read buffer."""


class ColdRanges(Protocol):
    """What pulls need of `actormq.actors.gateway.cold.ColdReader`."""

    old_bytes: int
    """How far behind the log's end something is old."""

    def is_old(self, distance: int) -> bool:
        """Whether what lies so far behind the log's end may be out of memory."""
        ...

    @property
    def is_paced(self) -> bool:
        """Whether old messages are read slowly now, so as to disturb nobody."""
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


@dataclass(slots=True)
class PullCounts:
    """What happened since the counts were last taken."""

    messages: int = 0
    bytes: int = 0
    pulls: int = 0
    damaged: int = 0


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
    entries: Buffer = b""
    """The queue from the pull's offset on."""
    places: list[int] = field(default_factory=list)
    """Which of these entries the messages are of."""
    doubtful: bool = False
    """The entry at the pull's offset leads nowhere."""
    batches: list[BatchEntry] = field(default_factory=list)
    """Instead of entries and places, where the queue is one of batches: whose records were read."""


class Pulls:
    """The pull path of one gateway.

    Args:
        memory_bytes: what is nearer to the log's end than this is taken to be in memory.
        address: this broker's, for a remark.
        extensions: of queues that RocketMQ wrote with them.
        batch_queues: of topics whose records have many messages each.
        damage: finds the messages of entries that lead nowhere.
        lost_tails: who may be beyond an end that was lost.
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
        extensions: QueueExtensions,
        batch_queues: BatchQueues,
        log: LogReader,
        marks: Marks,
        replies: Replies,
        limits: TransferLimits,
        memory_bytes: int,
        address: str,
        now_ns: Callable[[], int],
        damage: Damage,
        lost_tails: LostTails,
        cold: ColdRanges | None = None,
        path_class: type[PullPath] = PullPath,
    ) -> None:
        self._holder = holder
        self._relay = relay
        self._tables = tables
        self._extents = extents
        self._queues = queues
        self._extensions = extensions
        self._batches = batch_queues
        self._log = log
        self._marks = marks
        self._replies = replies
        self._limits = limits
        self._memory_bytes = memory_bytes
        self._address = address
        self._now_ns = now_ns
        self._damage = damage
        self._lost_tails = lost_tails
        self._cold = cold
        self._path = self._make_path(path_class)
        self._targets: dict[bytes, PullTarget] = {}
        self._answers: dict[object, bytearray] = {}
        self._counts = PullCounts()

    def _make_path(self, path_class: type[PullPath]) -> PullPath:
        limits = self._limits
        asked_from_0 = (
            PullStatus.FOUND,
            PullStatus.NO_MATCHED_MESSAGE,
            PullStatus.OFFSET_OVERFLOW_ONE,
            PullStatus.NO_MESSAGE_IN_QUEUE,
        )
        return path_class(
            self._extents.view,
            waiting_max=PARKED_MAX,
            limits=(
                limits.memory_messages,
                limits.memory_bytes,
                limits.native_messages,
                limits.native_bytes,
            ),
            examined_min=EXAMINED_MIN,
            bytes_wanted_min=BYTES_WANTED_MIN,
            suspend_ms_max=SUSPEND_MS_MAX,
            warm_bytes=min(self._memory_bytes, self._cold.old_bytes if self._cold else self._memory_bytes),
            queue_file_entries=self._queues.file_bytes // ENTRY_BYTES,
            log_file_bytes=self._log.file_bytes,
            maps_max=_MAPS_MAX,
            json_pieces=self._replies.pulled_pieces,
            binary_pieces=self._replies.pulled_fields,
            outcomes=[(response_code(status, 0), status.value.encode()) for status in asked_from_0],
            version=BROKER_VERSION,
            map_queue=self._map_queue,
            map_log=self._map_log,
            log_parts=self._log.parts,
        )

    def _map_queue(self, topic: str, queue_id: int, offset: int, incarnation: int) -> memoryview | None:
        try:
            return self._queues.file(topic, queue_id, offset, incarnation)
        except QueueRemoved:
            return None

    def _map_log(self, base: int) -> memoryview | None:
        try:
            return self._log.file(base)
        except LogRemoved:
            return None

    @property
    def parked(self) -> int:
        waiting: int = self._path.waiting
        return waiting

    @property
    def counts(self) -> PullCounts:
        """What was counted; set its numbers back to 0 when they are taken."""
        path, counts = self._path, self._counts
        if path.pulls:
            counts.pulls += path.pulls
            counts.messages += path.messages
            counts.bytes += path.body_bytes
            path.pulls = path.messages = path.body_bytes = 0
        counts.damaged += self._damage.count
        self._damage.count = 0
        return counts

    # -- the common way

    def take(self, client: Client, view: memoryview, spots: Spots, now_ns: int) -> Spots:
        """Serve the common pulls among the frames of a read; return where the others are."""
        self._begin(now_ns)
        left = self._path.take(view, spots, client, client.parked, self._targets, self._answers)
        self._took(now_ns)
        return left

    def take_header(self, client: Client, header: bytes, now_ns: int) -> bool:
        """Serve one pull, a header without a body, if it is a common one."""
        self._begin(now_ns)
        taken: bool = self._path.take_header(
            memoryview(header), client, client.parked, self._targets, self._answers
        )
        self._took(now_ns)
        return taken

    def _begin(self, now_ns: int) -> None:
        """Tell the kernel what is true now."""
        log_min, log_end = self._marks.log_range()
        self._marks.reading(log_min)
        self._path.begin(now_ns, log_min, log_end)

    def _took(self, now_ns: int) -> None:
        """Take over what the kernel has left: offsets to commit, and answers."""
        path = self._path
        if path.commits:
            self._relay.commit_all(path.commits, now_ns)
            path.commits.clear()
        if self._answers:
            for client, frames in self._answers.items():
                assert isinstance(client, Client)
                client.reply_frames(frames)
            self._answers.clear()
        if path.large:
            for client, head, parts in path.large:
                assert isinstance(client, Client)
                client.reply(head, *parts)
            path.large.clear()

    def tables_changed(self) -> None:
        """Forget what was prepared from the tables."""
        self._path.version += 1
        self._path.forget_maps()
        self._targets.clear()

    def _prepare(self, header: PullHeader, planned: PullPlan) -> None:
        """Let the next pulls like this one be taken at once: it has passed every check."""
        expression = None
        if header.sys_flag & PullFlag.SUBSCRIPTION:
            expression = ((header.subscription or "").encode(), header.expression_type.encode())
            sub_version = _ANY_VERSION
        else:
            entry = self._tables.subscription(header.group, header.topic)
            assert entry is not None, "a pull of nothing that the group has subscribed to"
            sub_version = entry.sub_version
        key = target_key(header.group.encode(), header.topic.encode(), expression)
        if key not in self._targets and len(self._targets) >= _TARGETS_MAX:
            self.tables_changed()
        self._path.learn(
            self._targets,
            key,
            group_flags=planned.group.sys_flag,
            topic_flags=planned.topic.sys_flag,
            sub_version=sub_version,
            tag_codes=planned.tag_codes,
            commit_key=(header.group, header.topic, header.queue_id),
            row=planned.row,
            row_incarnation=planned.row_incarnation,
        )

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
        planned = self._plan(pull)
        if isinstance(planned, GroupNeeded):
            if asked:
                self._refuse(pull, no_group(planned.group))
            else:
                self._relay.need_group(
                    planned.group, lambda code, remark: self._on_group(pull, code, remark), now_ns
                )
        elif planned is not None:
            self._take(pull, planned, now_ns)

    def _take(self, pull: _Pull, planned: PullPlan, now_ns: int) -> None:
        header = pull.header
        end = self._lost_tails.end(planned.row)
        if end is not None and self._lost_tails.is_ahead(end, self._reader(pull), header.queue_offset):
            extent = self._extents.read(planned.row)
            self._answer(pull, planned, Found(PullStatus.OFFSET_RESET, end, extent))
            return
        if header.sys_flag & PullFlag.COMMIT_OFFSET:
            self._relay.commit(header.group, header.topic, header.queue_id, header.commit_offset, now_ns)
        is_common = not is_batch_topic(planned.topic.attributes) and not self._is_extended(planned)
        if is_common and end is None:
            self._prepare(header, planned)
        self._serve(pull, planned, now_ns)

    def _reader(self, pull: _Pull) -> Reader:
        header = pull.header
        return self._lost_tails.reader(header.group, header.topic, header.queue_id, pull.client.id)

    def is_commit_ahead(self, client: Client, command: RemotingCommand) -> bool:
        """Whether an offset to be committed can only be of the broker's former life, as a pull's may be.

        Raises:
            RequestError: a number is none.
        """
        fields = command.fields
        group, name = fields.get("consumerGroup", ""), fields.get("topic", "")
        queue_id, offset = int_field(fields, "queueId", 0, bits=32), int_field(fields, "commitOffset", 0)
        topic = self._tables.topic(name)
        if topic is None or not 0 <= queue_id < len(topic.rows):
            return False
        end = self._lost_tails.end(topic.rows[queue_id])
        reader = self._lost_tails.reader(group, name, queue_id, client.id)
        return end is not None and self._lost_tails.is_ahead(end, reader, offset)

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
        """Answer when a thread that may wait for the disk has read the ranges."""

        def then(data: bytes | bytearray | None) -> None:
            parts = () if data is None else (data,)
            self._answer(pull, planned, self._whole(pull, replace(found, parts=parts, cold=None)))

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
                return self._whole(pull, found) if found.cold is None else found
        return Found(PullStatus.MESSAGE_WAS_REMOVING, pull.header.queue_offset, extent)

    def _read_at(self, pull: _Pull, planned: PullPlan, extent: Extent) -> Found:
        header = pull.header
        log_min, log_end = self._marks.log_range()
        self._marks.reading(log_min)
        offset = header.queue_offset
        if is_batch_topic(planned.topic.attributes):
            return self._read_batches(pull, planned, extent, (log_min, log_end))
        try:
            first = self._queues.view(header.topic, header.queue_id, offset, 1, extent.incarnation)
        except QueueRemoved:
            return Found(PullStatus.OFFSET_FOUND_NULL, self._next_file(offset, extent), extent)
        (log_offset, _, _) = ENTRY.unpack(first)
        distance = log_end - log_offset
        native = is_native(pull.command)
        # RocketMQ's own clients are never given more at once than is little.
        in_memory = distance <= self._memory_bytes and not (native and self._is_paced(distance))
        taken = share(header, self._limits, in_memory=in_memory, native=native)
        count = min(taken.entries, extent.max - offset)
        entries: Buffer = self._queues.view(header.topic, header.queue_id, offset, count, extent.incarnation)
        if self._is_extended(planned):
            entries = self._extensions.resolve(header.topic, header.queue_id, entries)
        chosen = select(entries, offset, taken.messages, taken.bytes, planned.tag_codes, log_min)
        if not chosen.messages:
            return Found(
                PullStatus.NO_MATCHED_MESSAGE,
                chosen.next_queue_offset,
                extent,
                doubtful=chosen.examined == 0,
            )
        found = Found(
            PullStatus.FOUND,
            chosen.next_queue_offset,
            extent,
            messages=chosen.messages,
            bytes=chosen.bytes,
            entries=entries,
            places=chosen.places,
        )
        if self._waits_for_disk(distance):
            return replace(found, cold=chosen.ranges)
        try:
            return replace(found, parts=self._log.parts(chosen.ranges, chosen.bytes))
        except LogRemoved:
            return found

    def _is_extended(self, planned: PullPlan) -> bool:
        """Say whether a tags code that this pull looks at may be in its queue's extension."""
        return planned.tag_codes is not None and self._extensions.has(planned.topic.name)

    def _read_batches(
        self, pull: _Pull, planned: PullPlan, extent: Extent, log_range: tuple[int, int]
    ) -> Found:
        header = pull.header
        taken = share(header, self._limits, in_memory=True, native=is_native(pull.command))
        with self._batches.queue(header.topic, header.queue_id) as queue:
            entries = queue.since(header.queue_offset, log_range[1])
            chosen = batches.choose(
                entries, header.queue_offset, taken, planned.tag_codes, log_range, self._log.file_bytes
            )
        if not chosen.entries:
            return Found(PullStatus.NO_MATCHED_MESSAGE, chosen.next_offset, extent)
        found = Found(PullStatus.FOUND, chosen.next_offset, extent, batches=chosen.entries)
        if self._waits_for_disk(log_range[1] - chosen.entries[0].log_offset):
            return replace(found, cold=[(entry.log_offset, entry.size) for entry in chosen.entries])
        return replace(found, parts=(batches.read(chosen.entries, self._log),))

    def _sound(self, found: Found) -> Found:
        """Return what is sound of the batches that were read."""
        entries, parts = batches.sound(found.batches, b"".join(found.parts))
        return replace(
            found,
            status=PullStatus.FOUND if entries else PullStatus.NO_MATCHED_MESSAGE,
            parts=tuple(parts),
            messages=sum(entry.messages for entry in entries),
            bytes=sum(entry.size for entry in entries),
        )

    def _whole(self, pull: _Pull, found: Found) -> Found:
        """Return as many of the messages that were read as are undamaged and what their entries promise.

        Without one, the message of the first entry is looked for; when it cannot be read any more the
        consumer goes on behind it.
        """
        if found.batches:
            return self._sound(found)
        header = pull.header
        first = header.queue_offset
        if found.places:
            places = found.places if found.parts else []
            whole = count_whole(
                found.entries, places, first, found.parts, header.topic.encode(), header.queue_id
            )
            if whole == len(found.places):
                return found
            if whole:
                size = sum(sizes(found.entries, places[:whole]))
                parts = (b"".join(found.parts)[:size],)
                return replace(
                    found, next_offset=first + places[whole], messages=whole, bytes=size, parts=parts
                )
        elif not found.doubtful:
            return found
        doubtful = first + found.places[0] if found.places else first
        return self._doubt(header, doubtful, found.extent)

    def _doubt(self, header: PullHeader, queue_offset: int, extent: Extent) -> Found:
        """Return one message whose entry is not believed, wherever it is."""
        place = self._damage.find(header.topic, header.queue_id, queue_offset, extent)
        if place is None:
            return Found(PullStatus.NO_MATCHED_MESSAGE, queue_offset + 1, extent)
        log_offset, size = place
        try:
            part = self._log.view(log_offset, size)
        except LogRemoved:
            return Found(PullStatus.MESSAGE_WAS_REMOVING, queue_offset, extent)
        return Found(PullStatus.FOUND, queue_offset + 1, extent, (part,), 1, size)

    def _waits_for_disk(self, distance: int) -> bool:
        """Whether what lies so far behind the log's end may have to come from a disk."""
        return self._cold is not None and self._cold.is_old(distance)

    def _is_paced(self, distance: int) -> bool:
        """Whether what lies so far behind the log's end is read slowly, so as to disturb nobody."""
        return self._cold is not None and self._cold.is_old(distance) and self._cold.is_paced

    def _next_file(self, offset: int, extent: Extent) -> int:
        """Return where the queue goes on behind a file that is missing."""
        per_file = self._queues.file_bytes // ENTRY_BYTES
        return min(offset - offset % per_file + per_file, extent.max)

    def _answer(self, pull: _Pull, planned: PullPlan, found: Found) -> None:
        self._counts.pulls += 1
        self._counts.messages += found.messages
        self._counts.bytes += found.bytes
        if pull.command.is_oneway or pull.client.closed:
            return
        if self._lost_tails.may_be:
            self._lost_tails.has_come(self._reader(pull), found.next_offset)
        code = response_code(found.status, pull.header.queue_offset)
        offsets = (found.next_offset, found.extent.min, found.extent.max)
        head = self._replies.pulled(pull.command, code, found.status.value, planned, offsets, found.bytes)
        pull.client.reply(head, *found.parts)

    def finish_batch(self, now_ns: int) -> None:
        """Tell the holder of new parks; then all views are taken: say that nothing is being read."""
        self._tell_holder(now_ns)
        self._marks.done_reading()

    # -- waiting

    def _may_park(self, pull: _Pull, now_ns: int) -> bool:
        if pull.client.closed or pull.command.is_oneway:
            return False
        if pull.deadline_ns:
            return now_ns < pull.deadline_ns
        wanted = pull.header.sys_flag & PullFlag.SUSPEND and pull.header.suspend_ms > 0
        return bool(wanted) and self.parked < PARKED_MAX

    def _park(self, pull: _Pull, planned: PullPlan, now_ns: int) -> None:
        header = pull.header
        if not pull.deadline_ns:
            pull.command.body = b""
            pull.deadline_ns = now_ns + min(header.suspend_ms, SUSPEND_MS_MAX) * _NS_PER_MS
        self._path.wait(
            pull,
            pull.client,
            pull.client.parked,
            planned.row,
            planned.row_incarnation,
            header.queue_offset,
            pull.deadline_ns,
        )

    def _unpark(self, number: int) -> _Pull | None:
        """End a wait; a pull of the kernel's becomes one of ours."""
        ended = self._path.end(number)
        if ended is None:
            return None
        client, data, offset, deadline_ns, pull = ended
        if isinstance(pull, _Pull):
            return pull
        assert isinstance(client, Client)
        command = frame.decode(data)
        header = decode_pull(command.fields)
        header.queue_offset = offset
        return _Pull(client, command, header, deadline_ns)

    def _tell_holder(self, now_ns: int) -> None:
        """Hand over all new parks; what has grown meanwhile is answered here."""
        path = self._path
        while path.has_untold:
            self._holder.say_waiting(path.waiting)
            parks = path.untold(self._holder.entry_bytes_max // PARK_BYTES)
            if parks and not self._holder.try_park(parks):
                break
            self._begin(now_ns)
            self._go_on(path.told(self._answers), now_ns)
        self._holder.say_waiting(path.waiting)
        self._holder.flush()

    @property
    def blocked(self) -> bool:
        """Whether the holder's ring had no room for some park."""
        untold: bool = self._path.has_untold
        return untold

    @property
    def has_woken(self) -> bool:
        """Whether `collect` has something to do."""
        return self._holder.has_woken

    def collect(self, now_ns: int) -> bool:
        """Look again for the pulls that the holder has woken; True when it had."""
        entries = self._holder.woken()
        if not entries:
            return False
        self._begin(now_ns)
        for entry in entries:
            self._go_on(self._path.wake(entry, self._answers), now_ns)
        self._holder.release()
        return True

    def _go_on(self, others: Sequence[int], now_ns: int) -> None:
        """After a call that ends waits: give the kernel's answers, and look at what it has left."""
        self._took(now_ns)
        for number in others:
            self._again(number, now_ns)

    def _again(self, number: int, now_ns: int) -> None:
        pull = self._unpark(number)
        if pull is not None:
            self._resume(pull, now_ns)

    def _resume(self, pull: _Pull, now_ns: int) -> None:
        if pull.client.closed:
            return
        planned = self._plan(pull)
        if isinstance(planned, GroupNeeded):
            self._refuse(pull, no_group(planned.group))
        elif planned is not None:
            self._serve(pull, planned, now_ns)

    def park_all_again(self) -> None:
        """The holder is a new one: it is told everything with the next `finish_batch`."""
        self._path.tell_all()

    def client_closed(self, client: Client) -> None:
        """Forget the parked pulls of a client that is gone."""
        for number in list(client.parked):
            self._path.end(number)

    def expire(self, now_ns: int) -> None:
        """Answer the pulls that have waited long enough: with what is there now, most often nothing."""
        deadline_ns = self._path.deadline_ns
        if deadline_ns and deadline_ns <= now_ns:
            self._begin(now_ns)
            self._go_on(self._path.expire(now_ns, self._answers), now_ns)

    def wake_at_ns(self) -> int | None:
        """When `expire` next has work."""
        return self._path.deadline_ns or None

    def end_all(self) -> None:
        """Answer every parked pull now: the gateway stops."""
        for number in self._path.waits():
            pull = self._unpark(number)
            if pull is not None:
                pull.deadline_ns = 1
                self._resume(pull, 2)
