"""The coordinator's state: what one role alone decides of topics, groups, members, offsets and locks.

Pure: requests and times go in; what the world must do comes out in an `Outbox`, to be carried out in the
order of its fields.  Administrators' questions are answered in `actormq.broker.admin`.
Source: RocketMQ ClientManageProcessor.java, ConsumerManageProcessor.java, AdminBrokerProcessor.java.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

import msgspec

from actormq.broker import retry
from actormq.broker.bodies import read_body
from actormq.broker.delay import DelayLevels
from actormq.broker.deleting import WAITING_MAX, NotYet, pop_retry_topics
from actormq.broker.groups import GroupConfig, Groups, group_from_json
from actormq.broker.locks import Locks, QueueKey
from actormq.broker.members import (
    Client,
    ConnectionKey,
    Heartbeat,
    Members,
    MembersChange,
    heartbeat_from_json,
)
from actormq.broker.offsets import FORGOTTEN, OffsetKey, Offsets, QueueStart, first_offset
from actormq.broker.outbox import Caller, Now, Outbox, Reply, copy_of, fence
from actormq.broker.sending import PutStatus
from actormq.broker.tables import (
    BrokerEntry,
    ConsumerGroupOffline,
    Entry,
    GroupEntry,
    OwnTables,
    SubscriptionGone,
    TopicEntry,
)
from actormq.broker.topics import TopicChange, TopicConfig, Topics, topic_from_json
from actormq.errors import FrameError, RequestError, ResponseCode
from actormq.message import DLQ_PREFIX, RETRY_PREFIX, Permission
from actormq.store.record import Record
from actormq.wire import json
from actormq.wire.codes import RequestCode
from actormq.wire.command import RemotingCommand
from actormq.wire.headers import bool_field, check, int_field, not_supported, text_field
from actormq.wire.registration import DataVersion

HEARTBEAT_BYTES_MAX: Final = 256 * 1024
"""A consumer of a thousand topics needs about this; the tables could not hold much more of one client."""
LOCK_QUEUES_MAX: Final = 10_000
LOCK_NAME_LENGTH_MAX: Final = 512
"""Of group, client and topic: together they are the key of a row in the coordinator's ledger."""
APPENDING_MAX: Final = 10_000
TOPIC_BYTES: Final = 512
"""Room in the tables for one topic without its rows, generously."""
ROW_BYTES: Final = 10
"""Room in the tables for one row number and its incarnation."""
LOCK_LOOK_MS: Final = 10_000
PRODUCER_LEASE_MS: Final = 120_000
"""Of a native client without consumers: its gateway says when it goes, and passes few heartbeats on."""
GIVEN_UP_MS: Final = 3_000
"""Clients wait for at most so long for a lock."""
OVERLOAD: Final = "[OVERLOAD]system busy, start flow control for a while"
TABLE_CODES: Final = frozenset(
    {
        RequestCode.UPDATE_AND_CREATE_TOPIC,
        RequestCode.UPDATE_AND_CREATE_TOPIC_LIST,
        RequestCode.DELETE_TOPIC_IN_BROKER,
        RequestCode.HEART_BEAT,
        RequestCode.UNREGISTER_CLIENT,
        RequestCode.CONSUMER_SEND_MSG_BACK,
        RequestCode.LOCK_BATCH_MQ,
        RequestCode.UNLOCK_BATCH_MQ,
        RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP,
        RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST,
        RequestCode.DELETE_SUBSCRIPTIONGROUP,
    }
)
"""Codes that may change the tables: answered when every live gateway knows them."""
RENEWALS: Final = frozenset(
    {
        RequestCode.HEART_BEAT,
        RequestCode.UNREGISTER_CLIENT,
        RequestCode.CONSUMER_SEND_MSG_BACK,
        RequestCode.LOCK_BATCH_MQ,
        RequestCode.UNLOCK_BATCH_MQ,
    }
)
"""Of these, what changes nothing waits for nobody: leases and locks must not hang on another's change."""
REGISTERED_CODES: Final = frozenset(
    {
        RequestCode.UPDATE_AND_CREATE_TOPIC,
        RequestCode.UPDATE_AND_CREATE_TOPIC_LIST,
        RequestCode.DELETE_TOPIC_IN_BROKER,
    }
)
"""Codes that are answered when the name servers know the topics, too."""


class StoreView(Protocol):
    """What the coordinator reads of log and queues; never waits for the disk longer than a page."""

    def extent(self, entry: TopicEntry, queue_id: int) -> tuple[int, int]:
        """Return (min, max) of a queue; (0, 0) when there is none."""
        ...

    def is_near(self, entry: TopicEntry, queue_id: int, queue_offset: int) -> bool:
        """Return whether a message is recent enough to be in memory still."""
        ...

    def record(self, log_offset: int) -> Record | None:
        """Return the record that begins at `log_offset`, None when none does."""
        ...

    def store_time(self, entry: TopicEntry, queue_id: int, queue_offset: int) -> int:
        """Return a message's store timestamp, 0 when it is not there."""
        ...

    def runtime(self) -> dict[str, str]:
        """Return what the positions say, by RocketMQ's runtime keys."""
        ...

    def log_end(self) -> int:
        """Return the log offset behind the last record that was stored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the rules depend on."""

    broker: str
    permission: int = 6
    tables_bytes_max: int = 1 << 20
    """How large a snapshot of the tables may become."""
    ticket_base: int = 0
    """Tickets count from here: no two incarnations share one."""


@dataclass(slots=True)
class _Asked:
    """A request that is answered later."""

    caller: Caller
    request: RemotingCommand


Handler = Callable[[Caller, RemotingCommand, Now], RemotingCommand | None]
"""Returns the answer; None: it comes later."""


class Coordinator:
    """Everything that the coordinator knows, and what follows from each thing that it is told."""

    def __init__(
        self,
        settings: Settings,
        *,
        tables: OwnTables,
        topics: Topics,
        groups: Groups,
        offsets: Offsets,
        locks: Locks,
        levels: DelayLevels,
        view: StoreView,
        random: Random,
        topic_version: DataVersion | None = None,
        group_version: DataVersion | None = None,
        awaited: Iterable[str] = (),
    ) -> None:
        """`tables`: as published, by us or by those before us; `awaited`: gateways that must replay."""
        self.settings = settings
        self.tables = tables
        self.topics = topics
        self.groups = groups
        self.offsets = offsets
        self.locks = locks
        self.levels = levels
        self.view = view
        self.random = random
        self.members = Members()
        self.topic_version = topic_version or DataVersion()
        self.group_version = group_version or DataVersion()
        self.outbox = Outbox()
        self.awaited = set(awaited)
        """Gateways that have not repeated their clients' heartbeats yet; until all have, nothing moves."""
        self._appending: dict[int, _Asked] = {}
        self._ticket = settings.ticket_base
        self._lock_look_ms: int | None = None
        self._deleting: dict[int, list[_Asked]] = {}
        """Who waits for the deletion with that ticket."""
        self._waiting: list[Callable[[Now], None]] = []
        """Requests to serve again when a deletion has gone further."""
        self._handlers: dict[int, Handler] = {
            RequestCode.HEART_BEAT: self._heartbeat,
            RequestCode.UNREGISTER_CLIENT: self._unregister,
            RequestCode.CONSUMER_SEND_MSG_BACK: self._send_back,
            RequestCode.GET_CONSUMER_LIST_BY_GROUP: self._consumer_list,
            RequestCode.QUERY_ASSIGNMENT: self._assignment,
            RequestCode.QUERY_CONSUMER_OFFSET: self._query_offset,
            RequestCode.UPDATE_CONSUMER_OFFSET: self._update_offset,
            RequestCode.LOCK_BATCH_MQ: self._lock,
            RequestCode.UNLOCK_BATCH_MQ: self._unlock,
            RequestCode.UPDATE_AND_CREATE_TOPIC: self._update_topic,
            RequestCode.UPDATE_AND_CREATE_TOPIC_LIST: self._update_topics,
            RequestCode.DELETE_TOPIC_IN_BROKER: self._delete_topic,
            RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP: self._update_group,
            RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST: self._update_groups,
            RequestCode.DELETE_SUBSCRIPTIONGROUP: self._delete_group,
        }

    # --- beginning and time --------------------------------------------------------------------------

    def begin(self, now: Now) -> None:
        """Create what is missing, end what was begun, and make tables, files and former locks agree."""
        pending = self.topics.deletions.pending
        if pending:
            self._delete(pending, now)
        for change in self.topics.create_missing_system_topics():
            self._topic_changed(change, now)
        for entry in self.topics.table.values():
            self.publish(entry)
        self.groups.create_missing_system_groups()
        for group in self.locks.groups():
            self.groups.set_locked(group, self.locks.ordered(group, now.monotonic_ms))
        for name in self.groups.table:
            self.publish(self.groups.entry(name))
        self.publish(BrokerEntry(self.settings.permission, self.tables.broker.row_incarnation_next))
        self._bump_topics(now)
        self._bump_groups(now)
        if self.locks.groups():
            self._lock_look_ms = now.monotonic_ms + LOCK_LOOK_MS
        if not self.awaited:
            self._replayed()

    def tick(self, now: Now) -> None:
        """Let silent clients and old locks go."""
        if not self.awaited:
            self._members_changed(self.members.expire(now.monotonic_ms))
        if self._lock_look_ms is not None and now.monotonic_ms >= self._lock_look_ms:
            before = self.locks.groups()
            self.outbox.lock_rows += self.locks.expire(now.monotonic_ms)
            for group in before:
                self._note_locks(group, now)

    def wake_ms(self) -> int | None:
        """Return when `tick` next has work, monotonic."""
        expiry_ms = None if self.awaited else self.members.look_at_ms()
        return min((at for at in (expiry_ms, self._lock_look_ms) if at is not None), default=None)

    def take(self) -> Outbox:
        """Return what must be done, and begin a new outbox."""
        box, self.outbox = self.outbox, Outbox()
        return box

    # --- requests ------------------------------------------------------------------------------------

    def add_handlers(self, handlers: dict[int, Handler]) -> None:
        """Serve more request codes."""
        assert not handlers.keys() & self._handlers.keys()
        self._handlers |= handlers

    def serve(self, caller: Caller, request: RemotingCommand, now: Now, *, replay: bool = False) -> None:
        """Serve one client request; the answer goes to the outbox, now or later."""
        handler = self._handlers.get(request.code)
        published = len(self.outbox.entries)
        try:
            if handler is None:
                answer: RemotingCommand | None = RemotingCommand.response_to(
                    request, ResponseCode.REQUEST_CODE_NOT_SUPPORTED, not_supported(request.code)
                )
            else:
                if request.fields:
                    check(request.code, request.fields)
                answer = handler(caller, request, now)
        except NotYet:
            answer = self._wait(lambda now: self.serve(caller, request, now, replay=replay), request)
        except RequestError as error:
            answer = RemotingCommand.response_to(request, error.response_code, error.remark)
        except FrameError as error:
            answer = RemotingCommand.response_to(request, ResponseCode.SYSTEM_ERROR, error.remark)
        if answer is not None and not replay:
            self._reply(caller, request, answer, changed=len(self.outbox.entries) > published)

    def _reply(
        self, caller: Caller, request: RemotingCommand, answer: RemotingCommand, *, changed: bool = True
    ) -> None:
        success = answer.code == ResponseCode.SUCCESS
        waits = request.code in TABLE_CODES and (changed or request.code not in RENEWALS)
        self.outbox.replies.append(
            Reply(
                caller.key,
                caller.request_id,
                None if request.is_oneway else answer,
                tables=success and waits,
                registration=success and request.code in REGISTERED_CODES,
            )
        )

    def _wait(self, again: Callable[[Now], None], request: RemotingCommand) -> RemotingCommand | None:
        """Keep a request until a deletion has gone further; return a refusal when too many wait."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting.append(again)
            return None
        return RemotingCommand.response_to(request, ResponseCode.SYSTEM_BUSY, OVERLOAD)

    def _again(self, now: Now) -> None:
        """A deletion has gone further: serve what waited."""
        waiting, self._waiting = self._waiting, []
        for serve in waiting:
            serve(now)

    @property
    def waiting(self) -> bool:
        """Whether requests wait for a deletion."""
        return bool(self._waiting)

    @property
    def deleting(self) -> bool:
        """Whether a deletion waits for the writer."""
        return bool(self._deleting)

    # --- clients -------------------------------------------------------------------------------------

    def _heartbeat(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        if len(request.body) > HEARTBEAT_BYTES_MAX:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR, f"a heartbeat of more than {HEARTBEAT_BYTES_MAX} bytes"
            )
        beat = heartbeat_from_json(json.loads(request.body))
        lease_ms = caller.lease_ms if beat.consumer_data_set else max(caller.lease_ms, PRODUCER_LEASE_MS)
        self._check_room(len(request.body))
        self._prepare_groups(beat, now)
        client = Client(
            caller.key,
            beat.client_id,
            caller.peer,
            request.language.name,
            request.version,
            now.monotonic_ms + lease_ms,
            lease_ms,
            now.wall_ms,
        )
        self._members_changed(self.members.heartbeat(client, beat))
        if caller.lease_ms < self.locks.expiry_ms:
            groups = [consumer.group_name for consumer in beat.consumer_data_set]
            kept = self.locks.keep(beat.client_id, groups, now.monotonic_ms, caller.lease_ms)
            self.outbox.lock_rows += kept
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)

    def _prepare_groups(self, beat: Heartbeat, now: Now) -> None:
        """Create groups and retry topics; a group that may not exist is passed over, as RocketMQ does."""
        accepted = []
        for consumer in beat.consumer_data_set:
            try:
                config = self._group(consumer.group_name, now)
            except RequestError as error:
                if error.response_code != ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST:
                    raise
                continue
            flags = int(consumer.unit_mode)
            self._topic_changed(
                self.topics.ensure(
                    RETRY_PREFIX + config.group_name, config.retry_queue_nums, Permission.READ_WRITE, flags
                ),
                now,
            )
            accepted.append(consumer)
        beat.consumer_data_set = accepted

    def _unregister(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        fields = request.fields
        change = self.members.unregister(
            caller.key,
            text_field(fields, "clientID"),
            fields.get("producerGroup"),
            fields.get("consumerGroup"),
        )
        self._members_changed(change)
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)

    def closed(self, key: ConnectionKey) -> None:
        """A connection is gone."""
        self._members_changed(self.members.close(key))

    def gateway_changed(self, gateway: str, incarnation: int) -> None:
        """A gateway has died (0), or runs again: all connections of its other lives are gone."""
        self._members_changed(self.members.close_gateway(gateway, incarnation))
        self.replay_done(gateway)

    def replay_done(self, gateway: str) -> None:
        """The gateway has repeated all its clients' heartbeats, or has none any more."""
        if gateway in self.awaited:
            self.awaited.discard(gateway)
            if not self.awaited:
                self._replayed()

    def _replayed(self) -> None:
        """All members are known again: correct the tables, and have every group look at its members."""
        for group in list(self.tables.consumer_groups):
            if group not in self.members.groups:
                self.publish(ConsumerGroupOffline(group))
        for group, topics in list(self.tables.subscriptions.items()):
            known = self.members.groups.get(group)
            for topic in [t for t in topics if known is None or t not in known.subscriptions]:
                self.publish(SubscriptionGone(group, topic))
        for group in self.members.groups:
            self._notify(group)

    def _members_changed(self, change: MembersChange) -> None:
        for entry in change.entries:
            self.publish(entry)
        for group in change.changed_groups:
            self._notify(group)

    def _notify(self, group: str) -> None:
        config = self.groups.get(group)
        if self.awaited or (config is not None and not config.notify_consumer_ids_changed_enable):
            return
        for key in self.members.notices(group):
            notice = RemotingCommand.request(
                RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": group}, oneway=True
            )
            self.outbox.calls.append((key, notice))

    def _consumer_list(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        self._check_replayed()
        name = text_field(request.fields, "consumerGroup")
        group = self.members.groups.get(name)
        if group is None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"no consumer for this group, {name}")
        body = json.dumps({"consumerIdList": group.client_ids()})
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS, body=body)

    def _assignment(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        """Broker-side assignment comes with POP; its askers share the rule for incomplete knowledge."""
        self._check_replayed()
        raise RequestError(ResponseCode.REQUEST_CODE_NOT_SUPPORTED, not_supported(request.code))

    def _check_replayed(self) -> None:
        if self.awaited:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR,
                "the broker is learning again who its consumers are: keep your queues",
            )

    # --- offsets -------------------------------------------------------------------------------------

    def _query_offset(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        fields = request.fields
        key = OffsetKey(
            text_field(fields, "topic"),
            text_field(fields, "consumerGroup"),
            int_field(fields, "queueId", bits=32),
        )
        offset = self.offsets.get(key)
        if offset is None:
            offset = first_offset(self._queue_start(key), bool_field(fields, "setZeroIfNotFound", True))
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS, fields={"offset": str(offset)})

    def _queue_start(self, key: OffsetKey) -> QueueStart | None:
        entry = self.topics.get(key.topic)
        if entry is None or not 0 <= key.queue_id < len(entry.rows):
            return None
        low, high = self.view.extent(entry, key.queue_id)
        near = low <= 0 < high and self.view.is_near(entry, key.queue_id, 0)
        return QueueStart(low, high, near)

    def _update_offset(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        fields = request.fields
        group, topic = text_field(fields, "consumerGroup"), text_field(fields, "topic")
        if self.groups.get(group) is None:
            raise RequestError(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"Group {group} not exist!")
        if self.topics.get(topic) is None:
            raise RequestError(ResponseCode.TOPIC_NOT_EXIST, f"Topic {topic} not exist!")
        for name, shown in (("queueId", "QueueId"), ("commitOffset", "Offset")):
            if name not in fields:
                raise RequestError(ResponseCode.INVALID_PARAMETER, f"{shown} is null, topic is {topic}")
        queue_id, offset = int_field(fields, "queueId", bits=32), int_field(fields, "commitOffset")
        if not self._commit(OffsetKey(topic, group, queue_id), offset, now, caller.read_ms):
            raise RequestError(ResponseCode.SYSTEM_ERROR, "there are too many committed offsets")
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)

    def commit(self, commits: Iterable[tuple[str, str, int, int]], now: Now, read_ms: int = 0) -> None:
        """Note offsets that pulls carried: group, topic, queue id, offset.

        Args:
            read_ms: when their gateway read the first of them; monotonic.
        """
        for group, topic, queue_id, offset in commits:
            if self.topics.get(topic) is not None and self.groups.get(group) is not None:
                self._commit(OffsetKey(topic, group, queue_id), offset, now, read_ms)

    def _commit(self, key: OffsetKey, offset: int, now: Now, read_ms: int) -> bool:
        if self._is_of_the_dead(key, offset) or self.offsets.is_late(key, read_ms):
            return True
        known = self.offsets.commit(key, offset, now.wall_ms, read_ms)
        if known:
            self.outbox.offset_rows.append((key, offset))
        return known

    def _is_of_the_dead(self, key: OffsetKey, offset: int) -> bool:
        """Say whether a commit is older than its topic: of the one of that name that was deleted.

        Clients repeat what they know every few seconds.  Taken over, the group would pass over as much of
        the new topic as it had consumed of the old one.
        """
        if key.topic not in self.topics.deletions.log_ends:
            return False
        entry = self.topics.table[key.topic]
        return 0 <= key.queue_id < len(entry.rows) and offset > self.view.extent(entry, key.queue_id)[1]

    # --- locks ---------------------------------------------------------------------------------------

    def _lock(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        if caller.read_ms and now.monotonic_ms - caller.read_ms > GIVEN_UP_MS:
            # It would hold queues that it does not know of, and no one could have them.
            raise RequestError(ResponseCode.SYSTEM_BUSY, "the request is so old that its client has given up")
        asked = _lock_body(request.body)
        queues = asked.queues()
        answer = self.locks.lock(
            asked.consumer_group,
            asked.client_id,
            queues,
            now.monotonic_ms,
            lease_ms=caller.lease_ms,
            present_owner_only=bool(self.awaited),
        )
        self.outbox.lock_rows += answer.rows
        self._note_locks(asked.consumer_group, now)
        granted = [msgspec.to_builtins(queues[queue]) for queue in answer.granted]
        body = json.dumps({"lockOKMQSet": granted})
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS, body=body)

    def _unlock(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        asked = _lock_body(request.body)
        self.outbox.lock_rows += self.locks.unlock(
            asked.consumer_group, asked.client_id, asked.queues(), caller.read_ms
        )
        self._note_locks(asked.consumer_group, now)
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)

    def _note_locks(self, group: str, now: Now) -> None:
        entry = self.groups.set_locked(group, self.locks.ordered(group, now.monotonic_ms))
        if entry is not None:
            self.publish(entry)
        self._lock_look_ms = now.monotonic_ms + LOCK_LOOK_MS if self.locks.groups() else None

    # --- topics and groups ---------------------------------------------------------------------------

    def need_topic(
        self, caller: Caller, topic: str, template: str, queues: int, sys_flag: int, now: Now
    ) -> None:
        """A send met an unknown topic; dead letters need no template."""

        def create() -> None:
            if topic.startswith(DLQ_PREFIX):
                self._ensure_topic(topic, retry.DLQ_QUEUES, now)
                return
            self._check_room(TOPIC_BYTES + ROW_BYTES * self.topics.auto_queues(template, queues))
            self._topic_changed(self.topics.auto_create(topic, template, queues, sys_flag), now)

        self._needed(caller, create)

    def need_group(self, caller: Caller, group: str, now: Now) -> None:
        """A pull or a send to a retry topic met an unknown group."""

        self._needed(caller, lambda: self._group(group, now))

    def _needed(self, caller: Caller, create: Callable[[], object]) -> None:
        try:
            create()
            answer: tuple[int, str | None] = (ResponseCode.SUCCESS, None)
        except NotYet:
            if len(self._waiting) < WAITING_MAX:
                self._waiting.append(lambda _: self._needed(caller, create))
                return
            answer = (ResponseCode.SYSTEM_BUSY, OVERLOAD)
        except RequestError as error:
            answer = (error.response_code, error.remark)
        success = answer[0] == ResponseCode.SUCCESS
        self.outbox.replies.append(Reply(caller.key, caller.request_id, None, needed=answer, tables=success))

    def _update_topic(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        fields = request.fields
        config = TopicConfig(
            name=text_field(fields, "topic"),
            read_queues=int_field(fields, "readQueueNums", bits=32),
            write_queues=int_field(fields, "writeQueueNums", bits=32),
            perm=int_field(fields, "perm", bits=32),
            filter_type=text_field(fields, "topicFilterType"),
            sys_flag=int_field(fields, "topicSysFlag", 0, bits=32),
            order=bool_field(fields, "order"),
        )
        self._check_room(_topic_bytes(config))
        self._topic_changed(self.topics.update(config, fields.get("attributes") or ""), now)
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)

    def _update_topics(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        body = read_body(json.loads(request.body), _TopicsBody, "list of topics")
        configs = [topic_from_json(item) for item in body.topic_config_list]
        for config in configs:
            self._check_room(_topic_bytes(config))
            self._topic_changed(self.topics.update(config, _signed(config.attributes)), now)
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)

    def _delete_topic(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand | None:
        """Delete a topic; also one that is not there, as RocketMQ does: its offsets may be."""
        name = text_field(request.fields, "topic")
        if not name.strip():
            raise RequestError(ResponseCode.INVALID_PARAMETER, "The specified topic is blank.")
        if self.topics.is_system(name):
            raise RequestError(
                ResponseCode.INVALID_PARAMETER, f"The topic[{name}] is conflict with system topic."
            )
        if self.topics.deletions.is_pending(name):
            raise NotYet
        retries = pop_retry_topics(name, self.offsets.groups_of(name))
        known = [topic for topic in (name, *retries) if topic in self.topics.table]
        if not known:
            self._forget_offsets(name)
            return RemotingCommand.response_to(request, ResponseCode.SUCCESS)
        ticket = self._delete(known, now)
        self._deleting[ticket].append(_Asked(caller, request))
        return None

    def _delete(self, names: list[str], now: Now) -> int:
        """Begin to delete topics; return the ticket of the append that will tell that it can be ended."""
        self._ticket += 1
        self._deleting[self._ticket] = []
        self.topics.deletions.begin(names, self._ticket)
        self.outbox.deleted_changed = True
        for name in names:
            self._topic_changed(self.topics.delete(name), now)
            self._forget_offsets(name)
        self.outbox.appends.append(fence(self._ticket))
        return self._ticket

    def _forget_offsets(self, topic: str) -> None:
        gone = self.offsets.forget_topic(topic)
        self.outbox.offset_rows += [(key, FORGOTTEN) for key in gone]
        if gone:
            self.outbox.unsaved_offsets.add(topic)

    def deletions_saved(self, now: Now) -> None:
        """It is durable where the messages of deleted topics end: free their names, and answer."""
        for ticket in self.topics.deletions.saved():
            self._answer_deletion(ticket, ResponseCode.SUCCESS)
        self._again(now)

    def deletions_unsaved(self, remark: str) -> None:
        """It cannot be written: who asked hears so, the names stay taken."""
        for ticket in self._deleting:
            self._answer_deletion(ticket, ResponseCode.SYSTEM_ERROR, remark)
            self._deleting[ticket] = []

    def _answer_deletion(self, ticket: int, code: ResponseCode, remark: str | None = None) -> None:
        asked = self._deleting[ticket]
        if code == ResponseCode.SUCCESS:
            del self._deleting[ticket]
        for each in asked:
            answer = RemotingCommand.response_to(each.request, code, remark)
            self._reply(each.caller, each.request, answer)

    def settle(self, now: Now) -> None:
        """Everyone who writes into rows knows which topics are gone: use their rows again."""
        self.topics.settle()
        self._again(now)

    def _update_group(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        self._put_group(group_from_json(json.loads(request.body)), now)
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)

    def _update_groups(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        body = read_body(json.loads(request.body), _GroupsBody, "list of groups")
        for config in [group_from_json(item) for item in body.group_config_list]:
            self._put_group(config, now)
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)

    def _delete_group(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        """Delete a group's configuration, its offsets only when asked to; one that is not there, too."""
        name = text_field(request.fields, "groupName")
        gone = self.groups.delete(name)
        if gone is not None:
            self.publish(gone)
            self._bump_groups(now)
        if bool_field(request.fields, "cleanOffset", False):
            self.outbox.offset_rows += [(key, FORGOTTEN) for key in self.offsets.forget_group(name)]
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)

    def _put_group(self, config: GroupConfig, now: Now) -> None:
        self._check_room(TOPIC_BYTES)
        self._group_changed(self.groups.put(config), now)

    def _group(self, name: str, now: Now) -> GroupConfig:
        """Return the group, created if that is allowed."""
        if self.groups.get(name) is None:
            self._check_room(TOPIC_BYTES)
            self._group_changed(self.groups.ensure(name), now)
        return self.groups.table[name]

    def _group_changed(self, entry: GroupEntry | None, now: Now) -> None:
        if entry is not None:
            self.publish(entry)
            self._bump_groups(now)

    def _topic_changed(self, change: TopicChange | None, now: Now) -> None:
        if change is None:
            return
        self.outbox.opened += change.opened
        self.outbox.closed += change.closed
        self.publish(change.entry)
        if change.closed:
            self.publish(BrokerEntry(self.settings.permission, self.topics.row_incarnation_next))
        self._bump_topics(now)

    def _ensure_topic(self, name: str, queues: int, now: Now) -> TopicEntry:
        if self.topics.get(name) is None:
            self._check_room(TOPIC_BYTES + ROW_BYTES * max(0, queues))
            self._topic_changed(self.topics.ensure(name, queues, Permission.READ_WRITE), now)
        return self.topics.table[name]

    def _bump_topics(self, now: Now) -> None:
        if not self.outbox.topics_changed:
            self.outbox.topics_changed = True
            self.topic_version = _next_version(self.topic_version, now)

    def _bump_groups(self, now: Now) -> None:
        if not self.outbox.groups_changed:
            self.outbox.groups_changed = True
            self.group_version = _next_version(self.group_version, now)

    # --- tables --------------------------------------------------------------------------------------

    def publish(self, entry: Entry) -> None:
        """Change the tables; what they say already is not said again."""
        if self.tables.change(entry):
            self.outbox.entries.append(entry)

    def _check_room(self, bytes_more: int) -> None:
        if self.tables.size_bytes + bytes_more > self.settings.tables_bytes_max:
            raise RequestError(
                ResponseCode.SYSTEM_ERROR,
                f"the published tables hold {self.tables.size_bytes} bytes, and {bytes_more} more do not "
                "fit: raise memory.tables_bytes",
            )

    # --- send-back -----------------------------------------------------------------------------------

    def _send_back(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand | None:
        asked = retry.decode_send_back(request.fields, request.version)
        config = self._group(asked.group, now)
        if not self.settings.permission & Permission.WRITE:
            raise RequestError(ResponseCode.NO_PERMISSION, "the broker sending message is forbidden")
        if config.retry_queue_nums <= 0:
            return RemotingCommand.response_to(request, ResponseCode.SUCCESS)
        again = self._ensure_topic(RETRY_PREFIX + asked.group, config.retry_queue_nums, now)
        if not again.writable:
            raise RequestError(
                ResponseCode.NO_PERMISSION, f"the topic[{again.name}] sending message is forbidden"
            )
        record = self.view.record(asked.log_offset)
        if record is None:
            raise retry.not_found(asked.log_offset)
        if len(self._appending) >= APPENDING_MAX:
            raise RequestError(ResponseCode.SYSTEM_BUSY, OVERLOAD)
        original = retry.Original(record.topic, record.properties, record.reconsume_times, record.message_id)
        goal = retry.target(asked, config, original)
        if goal.dead:
            self._ensure_topic(goal.topic, goal.queues, now)
        placed = retry.place(asked, goal, original, self.levels, self.random)
        self._ticket += 1
        entry = self.topics.table[placed.topic]
        self.outbox.appends.append(
            copy_of(
                record, self._ticket, entry, placed.queue_id, placed.properties, record.reconsume_times + 1
            )
        )
        self._appending[self._ticket] = _Asked(caller, request)
        return None

    def appended(self, ticket: int, status: int, log_end: int) -> None:
        """The writer has dealt with a send-back; the consumer hears of it when the log is safe."""
        if self.topics.deletions.is_fence(ticket):
            # The writer has seen that the rows are closed: it stores nothing of these topics any more.
            self.topics.deletions.fenced(ticket, self.view.log_end())
            self.outbox.deleted_changed = True
            return
        sent = self._appending.pop(ticket, None)
        if sent is None:
            return
        if status == PutStatus.PUT_OK:
            answer = RemotingCommand.response_to(sent.request, ResponseCode.SUCCESS)
        else:
            answer = RemotingCommand.response_to(
                sent.request, ResponseCode.SYSTEM_ERROR, PutStatus(status).name
            )
        self._reply(sent.caller, sent.request, answer)
        self.outbox.replies[-1].log_end = log_end if status == PutStatus.PUT_OK else 0


class _MessageQueue(msgspec.Struct, rename="camel"):
    topic: str
    queue_id: int
    broker_name: str = ""


class _LockBody(msgspec.Struct, rename="camel"):
    """The body of 41 and 42."""

    consumer_group: str
    client_id: str
    mq_set: list[_MessageQueue] = []

    def queues(self) -> dict[QueueKey, _MessageQueue]:
        return {QueueKey(queue.topic, queue.queue_id): queue for queue in self.mq_set}


def _lock_body(body: bytes | memoryview) -> _LockBody:
    asked = read_body(json.loads(body), _LockBody, "lock request", ResponseCode.SYSTEM_ERROR)
    if len(asked.mq_set) > LOCK_QUEUES_MAX:
        raise RequestError(ResponseCode.SYSTEM_ERROR, f"more than {LOCK_QUEUES_MAX} queues in one request")
    names = (asked.consumer_group, asked.client_id, *(queue.topic for queue in asked.mq_set))
    if max(map(len, names)) > LOCK_NAME_LENGTH_MAX:
        raise RequestError(ResponseCode.SYSTEM_ERROR, "a name in the lock request is too long")
    return asked


class _TopicsBody(msgspec.Struct, rename="camel"):
    topic_config_list: list[Any]


class _GroupsBody(msgspec.Struct, rename="camel"):
    group_config_list: list[Any]


def _topic_bytes(config: TopicConfig) -> int:
    rows = max(config.read_queues, config.write_queues, 0)
    return TOPIC_BYTES + ROW_BYTES * rows + sum(len(k) + len(v) for k, v in config.attributes.items())


def _signed(attributes: Mapping[str, str]) -> str:
    """Return attributes of a JSON topic as the text of code 17: a key without a sign is set."""
    items = (f"{key if key[:1] in ('+', '-') else '+' + key}={value}" for key, value in attributes.items())
    return ",".join(items)


def _next_version(version: DataVersion, now: Now) -> DataVersion:
    return DataVersion(version.state_version, now.wall_ms, version.counter + 1)
