"""relay: everything that this gateway says to the coordinator, in one order, over the coordinator's deaths.

What was asked is kept until it is answered.  A new coordinator first hears the last heartbeat of every
connected client, then the requests that may be repeated; the others are answered SYSTEM_BUSY.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from actormq.actors.coordinator import (
    CallClient,
    ClientAnswered,
    CommitOffsets,
    ConnectionClosed,
    Needed,
    NeedGroup,
    NeedTopic,
    ReplayDone,
    Serve,
    Served,
)
from actormq.actors.gateway.clients import ZMQ, Client
from actormq.broker.admission import TopicNeeded
from actormq.errors import FrameError, ResponseCode
from actormq.wire import frame, json
from actormq.wire.command import RemotingCommand
from actormq.wire.headers import DESCRIPTIONS, Action, RequestCode

ASKED_MAX: Final = 10_000
ASKED_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of all frames that have no answer yet: they are kept for the next coordinator."""
BODY_BYTES_MAX: Final = 1024 * 1024
"""Of one request: ten thousand queue locks take 600 KB; sixteen times as much takes seconds to read."""
ANSWER_TIMEOUT_NS: Final = 30_000_000_000
NEED_TIMEOUT_NS: Final = 3_000_000_000
"""RocketMQ waits as long for the lock under which topics are made."""
CALL_TIMEOUT_NS: Final = 15_000_000_000
COMMITS_MAX: Final = 10_000
COMMITS_KEPT_NS: Final = 50_000_000
"""How long offsets that pulls carried are gathered: of one queue only the last counts.  Clients repeat them
every few seconds anyway; whatever else is said takes them along, so that the order holds."""
BEATS_KEPT_NS: Final = 30_000_000_000
"""How long the same heartbeat of a native producer is answered here: we see when it goes, and it has no lock
to renew.  Each of a consumer goes on."""
OVERLOAD: Final = "[OVERLOAD]system busy, start flow control for a while"
_NS_PER_MS: Final = 1_000_000
_GONE: Final = "the coordinator was replaced before it answered, please try again"

_ASSIGNMENTS: Final = {
    RequestCode.HEART_BEAT,
    RequestCode.UNREGISTER_CLIENT,
    RequestCode.UPDATE_CONSUMER_OFFSET,
    RequestCode.QUERY_CONSUMER_OFFSET,
    RequestCode.GET_CONSUMER_LIST_BY_GROUP,
    RequestCode.LOCK_BATCH_MQ,
    RequestCode.UNLOCK_BATCH_MQ,
    RequestCode.CHECK_CLIENT_CONFIG,
    RequestCode.QUERY_ASSIGNMENT,
    RequestCode.UPDATE_AND_CREATE_TOPIC,
    RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
}
"""They set or read a state: twice is as good as once."""

Question = tuple[str, str]
"""("topic" or "group", its name)."""
OnNeeded = Callable[[int, str], None]
"""Called with a response code (0: it is in the tables now) and a remark."""


def is_idempotent(code: int) -> bool:
    """Whether a request may be repeated when nobody knows whether it was carried out."""
    description = DESCRIPTIONS[code]
    reads = all(set(need.actions) <= {Action.GET, Action.LIST} for need in description.needs)
    return code in _ASSIGNMENTS or reads


def _is_producers(body: bytes | memoryview) -> bool:
    """Whether a heartbeat names no consumer; what is no heartbeat is for the coordinator to refuse."""
    try:
        value = json.loads(body)
    except FrameError:
        return False
    return isinstance(value, dict) and not value.get("consumerDataSet")


@dataclass(slots=True)
class _Asked:
    """One question that has no answer yet."""

    message: Serve | NeedTopic | NeedGroup
    deadline_ns: int
    client: Client | None = None
    command: RemotingCommand | None = None
    question: Question | None = None
    sent: bool = False

    @property
    def frame_bytes(self) -> int:
        return len(self.message.command) if isinstance(self.message, Serve) else 0

    @property
    def repeatable(self) -> bool:
        return self.command is None or is_idempotent(self.command.code)


class Relay:
    """The gateway's side of its one FIFO to the coordinator.

    Args:
        tell: hands a message over; False when it could not be (now).
        coordinator: the coordinator's living incarnation, 0 when it is gone.
        clients: the connected clients by id, to be read only.
    """

    def __init__(
        self,
        gateway: str,
        incarnation: int,
        tell: Callable[[msgspec.Struct], bool],
        coordinator: Callable[[], int],
        clients: dict[int, Client],
    ) -> None:
        self._gateway = gateway
        self._incarnation = incarnation
        self._tell = tell
        self._coordinator = coordinator
        self._clients = clients
        self.known = 0
        """The coordinator's incarnation that was told what its predecessor knew."""
        self._next_id = 0
        self.outgoing: deque[msgspec.Struct] = deque()
        """What waits to be handed over."""
        self._asked: dict[int, _Asked] = {}
        self._asked_bytes = 0
        self._deadlines: list[tuple[int, int]] = []
        self._questions: dict[Question, list[OnNeeded]] = {}
        self._commits: dict[tuple[str, str, int], int] = {}
        self._commits_since_ns: int | None = None
        self._calls: deque[tuple[int, int, int]] = deque()
        """(deadline, client id, opaque), in order."""

    @property
    def unanswered(self) -> int:
        return len(self._asked)

    # -- from clients

    def serve(self, client: Client, command: RemotingCommand, data: bytes | memoryview, now_ns: int) -> None:
        """Have the coordinator serve a request.

        Args:
            data: the frame that `command` was decoded from; perhaps gone when this returns.
        """
        beats = command.code == RequestCode.HEART_BEAT and client.front == ZMQ
        if beats and now_ns < client.beat_until_ns and command.body == client.beat:
            if not command.is_oneway:
                client.answer(RemotingCommand.response_to(command, ResponseCode.SUCCESS))
            return
        if len(command.body) > BODY_BYTES_MAX:
            remark = f"a body of {len(command.body)} bytes: this request may have {BODY_BYTES_MAX}, split it"
            client.refuse(command, ResponseCode.SYSTEM_ERROR, remark)
            return
        if len(self._asked) >= ASKED_MAX or self._asked_bytes >= ASKED_BYTES_MAX:
            client.refuse(command, ResponseCode.SYSTEM_BUSY, OVERLOAD)
            return
        kept = bytes(data)
        if command.code in (RequestCode.HEART_BEAT, RequestCode.UNREGISTER_CLIENT):
            client.remember(kept, heartbeat=command.code == RequestCode.HEART_BEAT)
            client.beat = bytes(command.body) if beats and _is_producers(command.body) else b""
            client.beat_until_ns = 0
        client.introduced = True
        command.body = b""
        asked_id = self._new_id()
        message = self._serve_message(client, asked_id, kept, read_ms=now_ns // _NS_PER_MS)
        self._ask(asked_id, _Asked(message, now_ns + ANSWER_TIMEOUT_NS, client, command), now_ns)

    def _serve_message(
        self, client: Client, asked_id: int, data: bytes, *, replay: bool = False, read_ms: int = 0
    ) -> Serve:
        return Serve(
            gateway=self._gateway,
            incarnation=self._incarnation,
            connection_id=client.id,
            request_id=asked_id,
            peer=client.peer,
            command=data,
            front=client.front,
            replay=replay,
            read_ms=read_ms,
        )

    def need_topic(self, needed: TopicNeeded, on_needed: OnNeeded, now_ns: int) -> None:
        """Ask for a topic; one question for each name at a time."""
        if self._joins(("topic", needed.topic), on_needed):
            return
        asked_id = self._new_id()
        message = NeedTopic(
            gateway=self._gateway,
            incarnation=self._incarnation,
            request_id=asked_id,
            topic=needed.topic,
            default_topic=needed.default_topic,
            default_queues=needed.default_queues,
            sys_flag=needed.sys_flag,
        )
        asked = _Asked(message, now_ns + NEED_TIMEOUT_NS, question=("topic", needed.topic))
        self._ask(asked_id, asked, now_ns)

    def need_group(self, group: str, on_needed: OnNeeded, now_ns: int) -> None:
        """Ask for a group; one question for each name at a time."""
        if self._joins(("group", group), on_needed):
            return
        asked_id = self._new_id()
        message = NeedGroup(self._gateway, self._incarnation, asked_id, group)
        self._ask(asked_id, _Asked(message, now_ns + NEED_TIMEOUT_NS, question=("group", group)), now_ns)

    def _joins(self, question: Question, on_needed: OnNeeded) -> bool:
        waiting = self._questions.setdefault(question, [])
        waiting.append(on_needed)
        return len(waiting) > 1

    def commit(self, group: str, topic: str, queue_id: int, offset: int, now_ns: int) -> None:
        """Note an offset that a pull carried; it goes before anything that is said later."""
        if self._commits_since_ns is None:
            self._commits_since_ns = now_ns
        self._commits[group, topic, queue_id] = offset
        if len(self._commits) >= COMMITS_MAX:
            self.flush_commits()

    def commit_all(self, commits: dict[tuple[str, str, int], int], now_ns: int) -> None:
        """As `commit`, for several queues: (group, topic, queue id) to offset."""
        if self._commits_since_ns is None:
            self._commits_since_ns = now_ns
        self._commits.update(commits)
        if len(self._commits) >= COMMITS_MAX:
            self.flush_commits()

    def closed(self, client: Client) -> None:
        """A client is gone: its memberships end, and nobody will answer the questions to it."""
        if not client.introduced:
            return
        self._say(ConnectionClosed(self._gateway, self._incarnation, client.id))
        for call_id in client.calls.values():
            self._say(ClientAnswered(self._gateway, self._incarnation, call_id, None))
        client.calls.clear()

    def client_answered(self, client: Client, opaque: int, data: bytes) -> None:
        """A client has answered; what nobody asked (any more) is dropped."""
        call_id = client.calls.pop(opaque, None)
        if call_id is not None:
            self._say(ClientAnswered(self._gateway, self._incarnation, call_id, data))

    # -- from the coordinator

    def served(self, message: Served) -> None:
        """Give a client its answer."""
        asked = self._forget(message.request_id)
        if asked is None or asked.client is None or asked.command is None:
            return
        if message.command is not None and not asked.command.is_oneway:
            asked.client.forward(message.command)
            if asked.command.code == RequestCode.HEART_BEAT and asked.client.beat:
                self._took_beat(asked.client, frame.decode(message.command).code, asked)

    def _took_beat(self, client: Client, code: int, asked: _Asked) -> None:
        """A native producer is known: its heartbeats of every second need not go on."""
        if code == ResponseCode.SUCCESS:
            client.beat_until_ns = asked.deadline_ns - ANSWER_TIMEOUT_NS + BEATS_KEPT_NS

    def needed(self, message: Needed) -> None:
        """A question about a name is answered; the tables must have been read before."""
        asked = self._forget(message.request_id)
        if asked is not None and asked.question is not None:
            self._answer_question(asked.question, message.code, message.remark or "")

    def _answer_question(self, question: Question, code: int, remark: str) -> None:
        for on_needed in self._questions.pop(question, ()):
            on_needed(code, remark)

    def call(self, message: CallClient, now_ns: int) -> None:
        """Pass on what the coordinator has to say to a client, under an opaque of our own.

        Raises:
            FrameError: the command is none (the coordinator's fault).
        """
        client = self._clients.get(message.connection_id)
        if client is None or client.closed:
            if message.call_id:
                self._say(ClientAnswered(self._gateway, self._incarnation, message.call_id, None))
            return
        if not message.call_id:
            client.forward(message.command)
            return
        command = frame.decode(message.command)
        command.opaque = client.call_opaque()
        client.calls[command.opaque] = message.call_id
        self._calls.append((now_ns + CALL_TIMEOUT_NS, client.id, command.opaque))
        client.answer(command)

    # -- one order

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _ask(self, asked_id: int, asked: _Asked, now_ns: int) -> None:
        self._asked[asked_id] = asked
        self._asked_bytes += asked.frame_bytes
        heapq.heappush(self._deadlines, (asked.deadline_ns, asked_id))
        self._say(asked.message)

    def _forget(self, asked_id: int) -> _Asked | None:
        """Take out a question that is answered, or will never be."""
        asked = self._asked.pop(asked_id, None)
        if asked is not None:
            self._asked_bytes -= asked.frame_bytes
        return asked

    def _say(self, message: msgspec.Struct) -> None:
        self.flush_commits()
        self.outgoing.append(message)

    def flush_commits(self) -> None:
        """Let the offsets that were gathered go with the next `pump`."""
        if self._commits:
            commits = [(*queue, offset) for queue, offset in self._commits.items()]
            assert self._commits_since_ns is not None
            self.outgoing.append(
                CommitOffsets(self._gateway, self._incarnation, commits, self._commits_since_ns // _NS_PER_MS)
            )
            self._commits = {}
            self._commits_since_ns = None

    def pump(self) -> bool:
        """Hand over what waits, as far as it goes; True when something went."""
        living = self._coordinator()
        if living != self.known and living != 0:
            self._take_over(living)
        if living == 0:
            return False
        went = False
        while self.outgoing and self._tell(self.outgoing[0]):
            message = self.outgoing.popleft()
            went = True
            if isinstance(message, Serve | NeedTopic | NeedGroup):
                asked = self._asked.get(message.request_id)
                if asked is not None:
                    asked.sent = True
        return went

    def _take_over(self, incarnation: int) -> None:
        """Tell a new coordinator what its predecessor knew; decide on what that has not answered."""
        self.known = incarnation
        unsent = list(self.outgoing)
        self.outgoing.clear()
        for client in self._clients.values():
            self.outgoing.extend(self._serve_message(client, 0, data, replay=True) for data in client.memory)
        self.outgoing.append(ReplayDone(self._gateway, self._incarnation))
        for asked_id, asked in [item for item in self._asked.items() if item[1].sent]:
            if asked.repeatable:
                asked.sent = False
                self.outgoing.append(asked.message)
            else:
                self._forget(asked_id)
                self._give_up(asked, _GONE)
        self.outgoing.extend(unsent)

    def _give_up(self, asked: _Asked, remark: str) -> None:
        if asked.client is not None and asked.command is not None:
            asked.client.refuse(asked.command, ResponseCode.SYSTEM_BUSY, remark)

    # -- time

    def wake_at_ns(self) -> int | None:
        """When `expire` next has work."""
        while self._deadlines and self._deadlines[0][1] not in self._asked:
            heapq.heappop(self._deadlines)
        if not (self._deadlines or self._calls or self._commits_since_ns is not None):
            return None
        times = [self._deadlines[0][0]] if self._deadlines else []
        if self._commits_since_ns is not None:
            times.append(self._commits_since_ns + COMMITS_KEPT_NS)
        if self._calls:
            times.append(self._calls[0][0])
        return min(times, default=None)

    def expire(self, now_ns: int) -> None:
        """Answer SYSTEM_BUSY to who has waited too long; let gathered offsets go."""
        if self._commits_since_ns is not None and now_ns - self._commits_since_ns >= COMMITS_KEPT_NS:
            self.flush_commits()
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, asked_id = heapq.heappop(self._deadlines)
            asked = self._forget(asked_id)
            if asked is None:
                continue
            if asked.question is not None:
                self._answer_question(asked.question, ResponseCode.SYSTEM_BUSY, OVERLOAD)
            else:
                self._give_up(asked, OVERLOAD)
        while self._calls and self._calls[0][0] <= now_ns:
            _, client_id, opaque = self._calls.popleft()
            self._end_call(client_id, opaque)

    def _end_call(self, client_id: int, opaque: int) -> None:
        client = self._clients.get(client_id)
        call_id = client.calls.pop(opaque, None) if client is not None else None
        if call_id is not None:
            self._say(ClientAnswered(self._gateway, self._incarnation, call_id, None))
