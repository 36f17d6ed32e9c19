"""sends: from a decoded request to the writer's ring, and from its completion to the producer's answer.

An acknowledgement is a comparison: a ticket knows the end of its records in the log and what it waits
for, both fixed; it is answered when that position has passed the end.
Sends that find no room wait in a bounded line, those whose topic is unknown wait for the coordinator's
answer; nobody else waits behind either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from actormq.actors.gateway.clients import Client
from actormq.actors.gateway.relay import OVERLOAD, OnNeeded
from actormq.actors.gateway.replies import Replies
from actormq.broker.admission import (
    Admitted,
    RetryGroupNeeded,
    SendSettings,
    TopicNeeded,
    admit,
    common_topic,
)
from actormq.broker.sending import PutStatus, group_missing, put_response, topic_missing
from actormq.broker.tables import Tables
from actormq.errors import RequestError, ResponseCode
from actormq.kernels.frames import cut_frames
from actormq.kernels.sends import SendPath
from actormq.message import SysFlag
from actormq.net.tcp import Places
from actormq.shm.append_port import COMPLETION, KIND_BATCH, KIND_SINGLE, Completion
from actormq.wire.command import RemotingCommand, Serialize
from actormq.wire.headers import RequestCode, SendHeader, decode_send

TICKET_BITS: Final = 40
"""A ticket is incarnation << 40 | sequence: a dead gateway's number never answers for us."""
_SEQUENCE_MASK: Final = (1 << TICKET_BITS) - 1
_QUESTIONS_MAX: Final = 4
"""For one send: its topic, its retry group, its dead-letter topic; one to spare."""
_NS_PER_MS: Final = 1_000_000
STALL_NS: Final = 1_000_000_000
"""A writer that completes nothing for so long is taken to be stuck: sends that come then are refused at once
instead of vanishing into its ring.  RocketMQ's osPageCacheBusyTimeOutMills; a dead writer is back sooner."""
_BORN_HOST_V6: Final = int(SysFlag.BORN_HOST_V6)


class WriterPort(Protocol):
    """What sends need of `actormq.shm.append_port.AppendPort`."""

    def try_append(
        self,
        ticket: int,
        *,
        row: int,
        row_incarnation: int,
        queue_id: int,
        topic: bytes,
        properties: bytes,
        body: bytes | memoryview,
        flag: int,
        sys_flag: int,
        reconsume_times: int,
        born_timestamp: int,
        born_host: bytes,
        count: int = 1,
        kind: int = KIND_SINGLE,
    ) -> bool: ...

    def flush(self) -> None: ...

    @property
    def room(self) -> int: ...

    @property
    def outstanding(self) -> int: ...

    def appended(self, count: int) -> None: ...

    @property
    def has_completions(self) -> bool: ...

    def take_completions(self) -> list[memoryview]: ...

    def release_completions(self, entries: list[memoryview]) -> None: ...


class Questions(Protocol):
    """What sends need of the relay."""

    def need_topic(self, needed: TopicNeeded, on_needed: OnNeeded, now_ns: int) -> None: ...

    def need_group(self, group: str, on_needed: OnNeeded, now_ns: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingLimits:
    """What may wait.  One client gets a quarter of it."""

    requests_max: int
    bytes_max: int
    wait_ns: int


@dataclass(slots=True)
class _Send:
    """A request that has not reached the ring yet."""

    client: Client
    command: RemotingCommand
    header: SendHeader
    since_ns: int
    questions: int = 0
    charged: int = 0
    """Bytes that it is counted with while it waits; 0 = it does not."""


@dataclass(slots=True)
class _Ticket:
    """A request that the writer has, or whose records wait to be synced."""

    client: Client
    opaque: int
    serialize: Serialize
    oneway: bool
    queue_id: int
    unique_key: str
    wait_flush: bool
    batch: bool
    no_ids: bool = False
    done: Completion | None = None
    deadline_ns: int = 0


@dataclass(slots=True)
class SendCounts:
    """What happened since the counts were last taken."""

    messages: int = 0
    bytes: int = 0
    refused: int = 0


class Sends:
    """The send path of one gateway.

    Args:
        incarnation: the gateway's.
        path: takes the common sends to the same port.
        sync: whether a message that says nothing else waits for the sync.
        record_starts: the log offsets of the records in a range of the log; for the ids of a batch.
        now_ns: the monotonic clock, for answers that come through a question.
    """

    def __init__(
        self,
        *,
        incarnation: int,
        port: WriterPort,
        path: SendPath,
        questions: Questions,
        tables: Tables,
        settings: SendSettings,
        replies: Replies,
        limits: WaitingLimits,
        store_host: bytes,
        sync: bool,
        sync_timeout_ns: int,
        record_starts: Callable[[int, int], list[int]],
        disk_percent: Callable[[], int],
        new_key: Callable[[], str],
        now_ns: Callable[[], int],
        random: Random,
    ) -> None:
        self._port = port
        self._path = path
        self._answers: dict[object, bytearray] = {}
        self.arrived = 0
        """Requests that came since somebody last set it to 0."""
        self._topics_version = 0
        self._questions = questions
        self._tables = tables
        self._settings = settings
        self._replies = replies
        self._limits = limits
        self._id_prefix = store_host.hex().upper()
        self._sync = sync
        self._sync_timeout_ns = sync_timeout_ns
        self._record_starts = record_starts
        self._disk_percent = disk_percent
        self._new_key = new_key
        self._now_ns = now_ns
        self._random = random
        self._ticket_base = incarnation << TICKET_BITS
        self._tickets: dict[int, _Ticket] = {}
        self._syncing: deque[_Ticket] = deque()
        self._line: deque[_Send] = deque()
        self._named: dict[str, deque[_Send]] = {}
        self._waiting_requests = 0
        self._waiting_bytes = 0
        self._moved_ns: int | None = None
        """Since when the writer owes us completions without having sent one; None: it owes none."""
        self._stuck = False
        self.counts = SendCounts()

    # -- in

    def take(self, client: Client, view: memoryview, end: int, frame_bytes_max: int) -> Places:
        """Take the common sends among the frames of a read; return where the others are.

        None is taken while others wait for room, nor to a topic that others wait for: they came first.
        """
        if self._line or self._stuck or client.topics_version != self._topics_version:
            return cut_frames(view, end, frame_bytes_max)
        path = self._path
        places = path.take(
            view, end, frame_bytes_max, client, client.born_host, client.topics, self._port.room
        )
        self._took()
        return places

    def take_parts(self, client: Client, header: bytes, body: bytes | memoryview) -> bool:
        """Take one send if it is a common one."""
        if self._line or self._stuck or client.topics_version != self._topics_version:
            return False
        room = self._port.room
        taken: bool = self._path.take_parts(
            memoryview(header), memoryview(body), client, client.born_host, client.topics, room
        )
        self._took()
        return taken

    def _took(self) -> None:
        if self._path.taken:
            self.arrived += self._path.taken
            self._port.appended(self._path.taken)
            self.counts.bytes += self._path.taken_bytes

    def tables_changed(self) -> None:
        """Forget what was prepared from the tables."""
        self._topics_version += 1

    def _prepare(self, client: Client, name: str) -> None:
        """Let the next sends of a client to a topic be taken at once: this one has passed every check."""
        if client.topics_version != self._topics_version:
            client.topics_version = self._topics_version
            client.topics.clear()
        entry = self._tables.topic(name)
        if entry is None or name in self._named or name.encode() in client.topics:
            return
        topic = common_topic(entry, self._tables)
        if topic is not None:
            client.topics[name.encode()] = topic

    def submit(self, client: Client, command: RemotingCommand, now_ns: int) -> None:
        """Take one send; its body may be a view that is gone when this returns."""
        self.arrived += 1
        try:
            header = decode_send(command.code, command.fields)
        except RequestError as error:
            self._refuse(client, command, error.response_code, error.remark)
            return
        if command.code == RequestCode.SEND_BATCH_MESSAGE:
            header.batch = True
        send = _Send(client, command, header, now_ns)
        if header.topic in self._named:
            self._wait(send, self._named[header.topic])
        elif self._line or not self._try(send, now_ns):
            self._wait(send, self._line)

    def _try(self, send: _Send, now_ns: int) -> bool:
        """Bring a send on its way: refused, asked about, or into the ring; False when that is full."""
        command, header = send.command, send.header
        try:
            if self._stuck:
                raise _put_error(PutStatus.OS_PAGE_CACHE_BUSY)
            admitted = admit(
                header,
                len(command.body),
                command.version,
                self._tables,
                self._settings,
                self._random,
                self._new_key,
            )
            if isinstance(admitted, TopicNeeded | RetryGroupNeeded):
                self._ask(send, admitted, now_ns)
                return True
            return self._append(send, admitted)
        except RequestError as error:
            self._settle(send)
            self._refuse(send.client, command, error.response_code, error.remark)
            return True

    def _append(self, send: _Send, admitted: Admitted) -> bool:
        client, command, header = send.client, send.command, send.header
        if len(self._syncing) >= self._limits.requests_max:
            return False  # the disk is far behind: more would only wait longer for their sync
        ticket = self._ticket_base | self._path.sequence
        try:
            room = self._port.try_append(
                ticket,
                row=admitted.row,
                row_incarnation=admitted.row_incarnation,
                queue_id=admitted.queue_id,
                topic=admitted.topic.encode(),
                properties=admitted.properties,
                body=command.body,
                flag=header.flag,
                sys_flag=admitted.sys_flag | _BORN_HOST_V6 if client.born_v6 else admitted.sys_flag,
                reconsume_times=header.reconsume_times,
                born_timestamp=header.born_timestamp_ms,
                born_host=client.born_host,
                kind=KIND_BATCH if admitted.batch else KIND_SINGLE,
            )
        except ValueError:  # longer than the whole ring, which no waiting helps
            raise _put_error(PutStatus.MESSAGE_ILLEGAL) from None
        if not room:
            return False
        self._settle(send)
        self._path.sequence = (self._path.sequence + 1) & _SEQUENCE_MASK
        self._tickets[ticket] = _Ticket(
            client,
            command.opaque,
            command.serialize,
            command.is_oneway,
            admitted.queue_id,
            admitted.unique_key,
            self._sync and admitted.wait_flush,
            admitted.batch,
            header.no_ids,
        )
        self.counts.bytes += len(command.body)
        self._prepare(client, header.topic)
        return True

    def flush(self) -> None:
        """Wake the writer for what was put into its ring: once per batch."""
        self._port.flush()

    # -- waiting

    def _wait(self, send: _Send, line: deque[_Send]) -> None:
        """Let a send wait at the end of `line`, or refuse it when too much waits."""
        client, limits = send.client, self._limits
        if not send.charged:
            size = len(send.command.body) + len(send.header.properties) + 256
            if (
                self._waiting_requests >= limits.requests_max
                or self._waiting_bytes + size > limits.bytes_max
                or client.waiting_requests >= limits.requests_max // 4
                or client.waiting_bytes + size > limits.bytes_max // 4
            ):
                self._refuse(client, send.command, ResponseCode.SYSTEM_BUSY, OVERLOAD)
                return
            send.command.body = bytes(send.command.body)
            send.charged = size
            self._charge(client, 1, size)
        line.append(send)

    def _settle(self, send: _Send) -> None:
        """Stop counting a send that no longer waits."""
        if send.charged:
            self._charge(send.client, -1, -send.charged)
            send.charged = 0

    def _charge(self, client: Client, requests: int, size: int) -> None:
        self._waiting_requests += requests
        self._waiting_bytes += size
        client.waiting_requests += requests
        client.waiting_bytes += size

    def _ask(self, send: _Send, needed: TopicNeeded | RetryGroupNeeded, now_ns: int) -> None:
        """Let a send wait for a name, and ask for it."""
        name = send.header.topic
        send.questions += 1
        if send.questions > _QUESTIONS_MAX:
            raise (
                topic_missing(needed.topic)
                if isinstance(needed, TopicNeeded)
                else group_missing(needed.group)
            )
        line = self._named.setdefault(name, deque())
        self._topics_version += 1
        self._wait(send, line)
        if not line:
            del self._named[name]  # it was refused, and nobody else waits
        elif len(line) == 1:
            if isinstance(needed, TopicNeeded):
                self._questions.need_topic(
                    needed, lambda code, remark: self._on_needed(name, code, remark), now_ns
                )
            else:
                self._questions.need_group(
                    needed.group, lambda code, remark: self._on_needed(name, code, remark), now_ns
                )

    def _on_needed(self, name: str, code: int, remark: str) -> None:
        """The coordinator has answered: the sends that wait for the name go on, in their order."""
        line = self._named.pop(name, deque())
        while line:
            send = line.popleft()
            send.since_ns = self._now_ns()
            if code != 0:
                self._settle(send)
                self._refuse(send.client, send.command, code, remark)
            elif name in self._named:  # one before it had to ask again
                self._wait(send, self._named[name])
            elif self._line or not self._try(send, send.since_ns):
                self._wait(send, self._line)

    def forget_waiting(self) -> None:
        """Drop what waits: its clients have long given up."""
        for line in (self._line, *self._named.values()):
            for send in line:
                self._settle(send)
            line.clear()
        self._named.clear()

    def retry_line(self, now_ns: int) -> bool:
        """Bring sends from the line into the ring as far as there is room; True when one moved."""
        moved = False
        while self._line:
            send = self._line.popleft()
            if send.header.topic in self._named:
                self._wait(send, self._named[send.header.topic])
            elif not self._try(send, now_ns):
                self._line.appendleft(send)
                break
            moved = True
        return moved

    def expire(self, now_ns: int) -> None:
        """Refuse what has waited too long; answer FLUSH_DISK_TIMEOUT to what is stored but not synced."""
        while self._line and now_ns - self._line[0].since_ns >= self._limits.wait_ns:
            send = self._line.popleft()
            self._settle(send)
            waited_ms = (now_ns - send.since_ns) // _NS_PER_MS
            remark = (
                "[TIMEOUT_CLEAN_QUEUE]broker busy, start flow control for a while, "
                f"period in queue: {waited_ms}ms, size of queue: {len(self._line)}"
            )
            self._refuse(send.client, send.command, ResponseCode.SYSTEM_BUSY, remark)
        while self._syncing and self._syncing[0].deadline_ns <= now_ns:
            self._reply(self._syncing.popleft(), ResponseCode.FLUSH_DISK_TIMEOUT)
        self._path.expire(now_ns, ResponseCode.FLUSH_DISK_TIMEOUT, self._answers)
        self._give_answers()

    def wake_at_ns(self) -> int | None:
        """When `expire` next has work.  (Questions about names end by themselves, in the relay.)"""
        if not (self._line or self._syncing or self._path.deadline_ns):
            return None
        times = []
        if self._line:
            times.append(self._line[0].since_ns + self._limits.wait_ns)
        if self._syncing:
            times.append(self._syncing[0].deadline_ns)
        if self._path.deadline_ns:
            times.append(self._path.deadline_ns)
        return min(times)

    # -- out

    def has_news(self, flushed: int) -> bool:
        """Whether `collect`, or `acknowledge` up to log offset `flushed`, has something to do."""
        return self._port.has_completions or 0 < self.wanted_flushed <= flushed

    def collect(self, now_ns: int) -> bool:
        """Take what the writer has completed: answer it, or let it wait for the sync."""
        entries = self._port.take_completions()
        self._watch_writer(now_ns, moved=bool(entries))
        if not entries:
            return False
        deadline_ns = now_ns + self._sync_timeout_ns
        for entry in entries:
            for at in self._path.complete(entry, self._answers, deadline_ns):
                self._complete(Completion._make(COMPLETION.unpack_from(entry, at)), deadline_ns)
        self._port.release_completions(entries)
        self.counts.messages += self._path.messages
        self._path.messages = 0
        self._give_answers()
        return True

    def _watch_writer(self, now_ns: int, *, moved: bool) -> None:
        """Notice that the writer is stuck, or no longer: a stopped process, a disk that hangs."""
        if moved or not self._port.outstanding:
            self._moved_ns, self._stuck = None, False
        elif self._moved_ns is None:
            self._moved_ns = now_ns
        else:
            self._stuck = now_ns - self._moved_ns >= STALL_NS

    def _complete(self, done: Completion, deadline_ns: int) -> None:
        """Take one completion that the kernel has left."""
        ticket = self._tickets.pop(done.ticket, None) or self._failed(done.ticket)
        if ticket is None:
            return  # of another incarnation of this gateway
        ticket.done = done
        self.counts.messages += max(0, done.count)
        if done.status != PutStatus.PUT_OK:
            self._reply_failure(ticket, PutStatus(done.status))
        elif ticket.wait_flush:
            ticket.deadline_ns = deadline_ns
            self._syncing.append(ticket)
        else:
            self._reply(ticket, ResponseCode.SUCCESS)

    def _failed(self, number: int) -> _Ticket | None:
        """Return the ticket of a common send that was not stored."""
        failed = self._path.failed(number)
        if failed is None:
            return None
        client, opaque, serialize, oneway = failed
        assert isinstance(client, Client)
        return _Ticket(client, opaque, Serialize(serialize), oneway, 0, "", False, False)

    def _give_answers(self) -> None:
        """Queue what the kernel has written, one piece for each client."""
        if self._answers:
            for client, frames in self._answers.items():
                assert isinstance(client, Client)
                client.reply_frames(frames)
            self._answers.clear()

    def acknowledge(self, flushed: int) -> bool:
        """Answer what has been synced up to log offset `flushed`; True when there was something."""
        some = False
        while self._syncing and self._end_of(self._syncing[0]) <= flushed:
            self._reply(self._syncing.popleft(), ResponseCode.SUCCESS)
            some = True
        some |= self._path.acknowledge(flushed, self._answers)
        self._give_answers()
        return some

    @staticmethod
    def _end_of(ticket: _Ticket) -> int:
        assert ticket.done is not None
        return ticket.done.log_end

    @property
    def wanted_flushed(self) -> int:
        """The log offset whose sync is waited for; 0 = none."""
        wanted: int = self._path.wanted_end
        if not self._syncing:
            return wanted
        slow = self._end_of(self._syncing[0])
        return min(wanted, slow) if wanted else slow

    @property
    def idle(self) -> bool:
        """Whether every send that was taken is answered."""
        return not (self._tickets or self._syncing or self._line or self._named or self._path.unanswered)

    def _reply(self, ticket: _Ticket, code: int) -> None:
        done = ticket.done
        assert done is not None
        if ticket.oneway or ticket.client.closed:
            return
        ticket.client.reply(
            self._replies.stored(
                ticket.serialize,
                ticket.opaque,
                code,
                None if ticket.no_ids else self._message_id(ticket, done),
                ticket.queue_id,
                done.queue_offset,
                ticket.unique_key,
            )
        )

    def _message_id(self, ticket: _Ticket, done: Completion) -> str:
        """Return the offset message id; of a batch all, joined by commas."""
        if not ticket.batch or done.count == 1:
            return f"{self._id_prefix}{done.log_offset:016X}"
        starts = self._record_starts(done.log_offset, done.log_end)
        return ",".join([f"{self._id_prefix}{start:016X}" for start in starts])

    def _reply_failure(self, ticket: _Ticket, status: PutStatus) -> None:
        code, remark = put_response(status, self._disk_percent())
        self.counts.refused += 1
        if not ticket.oneway:
            request = RemotingCommand(code=0, opaque=ticket.opaque, serialize=ticket.serialize)
            ticket.client.refuse(request, code, remark or "", self._replies.send_fields)

    def _refuse(self, client: Client, command: RemotingCommand, code: int, remark: str) -> None:
        self.counts.refused += 1
        client.refuse(command, code, remark, self._replies.send_fields)


def _put_error(status: PutStatus) -> RequestError:
    code, remark = put_response(status)
    return RequestError(code, remark or "")
