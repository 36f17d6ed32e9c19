"""coordinator: topics, groups, members, offsets and queue locks: everything that one role must decide alone.

From: gateways (Serve, ConnectionClosed, NeedTopic, NeedGroup, CommitOffsets, ReplayDone, ClientAnswered).
To: gateways (Served, Needed, CallClient), every reader (tables), the writer (send-backs), name servers.
Owns: the published tables, the rows of the extents table (opening and closing), ``config/topics.json``,
``deletedTopics.json``, ``subscriptionGroup.json``, ``consumerOffset.json``, and a ledger of offsets and
locks in the run folder.
Dies with it: who is connected (gateways repeat their clients' heartbeats, and nothing moves until all have)
and send-backs that were not answered (the consumer sends them again).

All that one gateway sends travels in one FIFO, so a commit is applied before the lock is released after it.
The decisions are in `actormq.broker.coordinating`; here is what touches the world.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Final

import msgspec

from actormq import faults
from actormq.actors.cleaner import CleanNow
from actormq.actors.copying import push
from actormq.actors.progress import LedgerFile, SafeSave, Table
from actormq.actors.registering import NameServers
from actormq.actors.runtime import DEFERRED, PositionsDirectory, ProcessActor, RoleContext, Sender
from actormq.actors.storeview import StoreReader
from actormq.broker.admin import Admin, broker_properties
from actormq.broker.coordinating import Coordinator, Settings
from actormq.broker.delay import DelayLevels
from actormq.broker.deleting import Deletions
from actormq.broker.groups import GroupConfig, Groups, group_from_json, group_to_json
from actormq.broker.ledger_rows import ledger_rows, lock_row, offset_row, restore_row
from actormq.broker.locks import Locks
from actormq.broker.members import ConnectionKey
from actormq.broker.offsets import Offsets, parse_table
from actormq.broker.outbox import Append, Caller, Now, Outbox, Reply
from actormq.broker.registration import registration_body
from actormq.broker.tables import (
    BrokerEntry,
    Entry,
    GroupEntry,
    OwnTables,
    TopicEntry,
    TopicGone,
    encode_entry,
)
from actormq.broker.topics import Topics, TopicSettings, TopicTexts
from actormq.config import FlushMode
from actormq.errors import RequestError, ResponseCode
from actormq.shm.append_port import AppendPort
from actormq.shm.extents import Extents
from actormq.shm.positions import Position, RoleCell, RoleState, slot_of
from actormq.shm.tables import TablesFull, TablesPublisher, TablesReader, behind
from actormq.store import tables as files
from actormq.store.disk import RealDisk
from actormq.wire import frame
from actormq.wire.codes import RequestCode
from actormq.wire.command import RemotingCommand
from actormq.wire.registration import DataVersion

REPLAY_MS_MAX: Final = 30_000
"""After this the coordinator believes that a gateway has nothing to repeat, and says so."""
HELD_MAX: Final = 20_000
SILENT_NS: Final = 4_000_000_000
"""A gateway that has not beaten for so long has stood still for at least `role.STANDSTILL_NS`: it beats every
second."""
PERSIST_RETRY_MS: Final = 1_000
STOP_MS_MAX: Final = 3_000
SETTLE_LOOK_MS: Final = 20
ROW_WRITERS: Final = ("dispatcher", "cleaner")
"""Who writes into rows that are open."""
TABLES_SHARE: Final = 0.7
"""How much of a half of the tables' memory a snapshot may fill: the rest is for changes."""
LEDGER_NAME: Final = "coordinator.ledger"
UNSAVED: Final = (
    "the change is in force, but could not be written to disk and will be tried again: "
    "free some space in the broker's store, then ask again"
)
_CLEANING_CODES: Final = (
    RequestCode.DELETE_EXPIRED_COMMITLOG,
    RequestCode.CLEAN_EXPIRED_CONSUMEQUEUE,
    RequestCode.CLEAN_UNUSED_TOPIC,
)
"""Served by the cleaner, all alike; what deleted topics leave, the dispatcher removes at once anyway."""
_SAVED_IN_ORDER: Final = (files.DELETED_TOPICS, files.TOPICS, files.GROUPS, files.CONSUMER_OFFSETS)
_TOPIC_FILES: Final = frozenset({files.DELETED_TOPICS, files.TOPICS, files.CONSUMER_OFFSETS})
_NS_PER_MS: Final = 1_000_000


class Serve(msgspec.Struct, frozen=True, tag=True):
    """A client's request for this role; answered by `Served` with the same `request_id`.

    Attributes:
        connection_id: unique in one incarnation of the gateway, never reused in it.
        peer: the client's address as ``host:port``.
        command: an encoded frame without its length prefix.
        front: "tcp" or "zmq"; a ZeroMQ client holds a lease, as it cannot be seen to disconnect.
        replay: the gateway repeats a client's last heartbeat to a new coordinator; it is not answered.
        read_ms: when the gateway read the request (monotonic, one clock for the machine): a gateway that was
            stopped hands over what it read before, and its client has long gone on elsewhere.
    """

    gateway: str
    incarnation: int
    connection_id: int
    request_id: int
    peer: str
    command: bytes
    front: str = "tcp"
    replay: bool = False
    read_ms: int = 0


class Served(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Serve`: an encoded frame without its length prefix; None to a one-way request."""

    request_id: int
    command: bytes | None


class ConnectionClosed(msgspec.Struct, frozen=True, tag=True):
    """A client's connection is gone, and its memberships with it."""

    gateway: str
    incarnation: int
    connection_id: int


class ReplayDone(msgspec.Struct, frozen=True, tag=True):
    """The gateway has repeated the heartbeats of all its clients to this coordinator (perhaps none)."""

    gateway: str
    incarnation: int


class NeedTopic(msgspec.Struct, frozen=True, tag=True):
    """A send met an unknown topic: create it from its template if that is allowed; answered by `Needed`."""

    gateway: str
    incarnation: int
    request_id: int
    topic: str
    default_topic: str
    default_queues: int
    sys_flag: int = 0


class NeedGroup(msgspec.Struct, frozen=True, tag=True):
    """A pull or a send met an unknown group: create it if that is allowed; answered by `Needed`."""

    gateway: str
    incarnation: int
    request_id: int
    group: str


class Needed(msgspec.Struct, frozen=True, tag=True):
    """The answer to `NeedTopic` and `NeedGroup`.

    With `code` 0 the entry is in the tables of every live gateway; else that is the response code to give.
    """

    request_id: int
    code: int
    remark: str | None = None


class CommitOffsets(msgspec.Struct, frozen=True, tag=True):
    """Offsets that pulls carried, in the order of the pulls; not answered."""

    gateway: str
    incarnation: int
    commits: list[tuple[str, str, int, int]]
    """Each: group, topic, queue id, offset."""
    read_ms: int = 0
    """As in `Serve`; of the first of them."""


class CallClient(msgspec.Struct, frozen=True, tag=True):
    """A command for a client of that gateway; with a `call_id` its answer comes back as `ClientAnswered`."""

    connection_id: int
    command: bytes
    call_id: int = 0


class ClientAnswered(msgspec.Struct, frozen=True, tag=True):
    """What a client said to a `CallClient`; None: its connection is gone or the gateway gave up."""

    gateway: str
    incarnation: int
    call_id: int
    command: bytes | None


@dataclass(slots=True)
class _Held:
    """An answer that waits."""

    reply: Reply
    tables: int
    """The version that every live gateway must have seen; 0 = none."""
    change: int
    """The registration that the name servers must have; 0 = none."""
    deadline_ms: int

    def ready(self, seen: int, safe: int, name_servers: NameServers) -> bool:
        return seen >= self.tables and safe >= self.reply.log_end and name_servers.settled(self.change)


class CoordinatorActor(ProcessActor):
    """The coordinator's process: mailbox in; files, tables, rings and mailboxes out."""

    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = (
        Serve,
        ConnectionClosed,
        ReplayDone,
        NeedTopic,
        NeedGroup,
        CommitOffsets,
        ClientAnswered,
    )
    writes_store: ClassVar[bool] = True

    # --- beginning -----------------------------------------------------------------------------------

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self._held: list[_Held] = []
        self._appends: deque[Append] = deque()
        self._directory = PositionsDirectory(context.positions)
        self._port: AppendPort | None = None
        self._topic_texts = TopicTexts()
        self._unsaved: set[str] = set()
        self._unwritable: set[str] = set()
        self._forgotten: set[str] = set()
        """Deleted topics whose offsets consumerOffset.json may still have."""
        self._persist_ms = 0
        self._stop_ms: int | None = None

    def on_start(self) -> None:
        config, now = self.config, self._now()
        self._disk = RealDisk()
        self._extents = Extents(self.context.segments["extents"].view)
        self._open_tables()
        if "append" in self.ports:
            self._port = AppendPort(self.ports["append"], self.context.doorbells["writer"])
        self._settle_version = 0
        self.state = self._restore(now)
        self.state.add_handlers(Admin(self.state, broker_properties(config), now.wall_ms).handlers())
        self.state.add_handlers(dict.fromkeys(_CLEANING_CODES, self._have_cleaned))
        self._save = SafeSave(config.coordinator.offsets_interval_ms, now.monotonic_ms)
        self._replay_until_ms = now.monotonic_ms + REPLAY_MS_MAX
        self._name_servers = NameServers(
            config, self.loop, self.log, lambda: self._now().monotonic_ms, self._registration
        )
        self.state.begin(now)
        self._carry_out(now)
        if self.context.incarnation > 1:
            self.state.topics.hold_rows()
            self._settle_version = self._publisher.version
            self._ring_row_writers()

    def _have_cleaned(self, caller: Caller, request: RemotingCommand, now: Now) -> RemotingCommand:
        """Have old files removed now; as in RocketMQ, the answer does not wait for that."""
        if not self.context.ref("cleaner").tell(CleanNow()):
            raise RequestError(ResponseCode.SYSTEM_BUSY, "the cleaner takes no messages now")
        return RemotingCommand.response_to(request, ResponseCode.SUCCESS)

    def _open_tables(self) -> None:
        """Go on from what was published last: by recovery, or by the coordinator before."""
        view = self.context.segments["tables"].view
        reader = TablesReader(view, self.positions, self.context.slot)
        _, entries = reader.poll()
        self._tables = OwnTables()
        for entry in entries:
            self._tables.apply(entry)
        reader.mark_seen()
        self._publisher = TablesPublisher(view, self.positions)

    def _restore(self, now: Now) -> Coordinator:
        config = self.config
        topics_table = self._load(files.TOPICS)
        groups_table = self._load(files.GROUPS)
        self._forbidden = groups_table.get("forbiddenTable") or {}
        topics = Topics(
            TopicSettings.of(config),
            self._tables.topics.values(),
            self._tables.broker.row_incarnation_next,
            Deletions(files.deleted_topics(self._load(files.DELETED_TOPICS))),
        )
        offsets, locks = self._restore_progress()
        return Coordinator(
            Settings(
                broker=config.name,
                permission=config.permission,
                tables_bytes_max=int(self._publisher.half_bytes * TABLES_SHARE),
                ticket_base=self.context.incarnation << 32,
            ),
            tables=self._tables,
            topics=topics,
            groups=self._restore_groups(groups_table),
            offsets=offsets,
            locks=locks,
            levels=DelayLevels(config.coordinator.delay_levels),
            view=StoreReader(config, self._disk, self.positions, self._extents),
            random=Random(),  # noqa: S311  which of several retry queues
            topic_version=DataVersion.from_json(topics_table.get("dataVersion")),
            group_version=DataVersion.from_json(groups_table.get("dataVersion")),
            awaited=self._gateways_with_clients(),
        )

    def _load(self, name: str) -> Table:
        return files.load(self._disk, self.config.store.root / files.FOLDER / name) or {}

    def _restore_groups(self, table: Table) -> Groups:
        """Return the groups of the file, and those that the tables know and the file does not (yet)."""
        groups = Groups(auto_create=self.config.coordinator.auto_create_groups)
        for name, value in (table.get("subscriptionGroupTable") or {}).items():
            try:
                config = group_from_json(value)
            except RequestError as error:
                self.log.warning("left out group %r of %s: %s", name, files.GROUPS, error.remark)
                continue
            groups.table[config.group_name] = config
        for entry in self._tables.groups.values():
            groups.table.setdefault(entry.name, _config_of(entry))
        return groups

    def _restore_progress(self) -> tuple[Offsets, Locks]:
        """Return offsets and locks: the file's, then what the ledger of this broker's life knows better."""
        table = self._load(files.CONSUMER_OFFSETS)
        # RocketMQ's other members; groupTopicMap it makes of the offsets whenever it writes.
        others = table.keys() - {"dataVersion", "offsetTable", "groupTopicMap"}
        self._offsets_rest = {name: table[name] for name in others}
        offsets = Offsets(version=DataVersion.from_json(table.get("dataVersion")))
        locks = Locks(expiry_ms=self.config.coordinator.lock_expiry_ms)
        for key, offset in parse_table(_offset_items(table)):
            offsets.restore(key, offset)
        self._ledger = LedgerFile(self.context.run_dir / LEDGER_NAME, lambda: ledger_rows(offsets, locks))
        for row in self._ledger.found():
            restore_row(row, offsets, locks)
            offsets.changed = True
        return offsets, locks

    def _gateways_with_clients(self) -> list[str]:
        """Return the gateways that were there before us: in the first life of all there are none."""
        if self.context.incarnation <= 1:
            return []
        names = (f"gateway-{number}" for number in range(self.config.gateway.count))
        running = (RoleState.RUNNING, RoleState.WRITING, RoleState.SYNCING)
        return [name for name in names if self.positions.role(slot_of(name), RoleCell.STATE) in running]

    def _now(self) -> Now:
        clock = self.context.clock
        return Now(clock.wall_ms(), clock.monotonic_ns() // _NS_PER_MS)

    def _registration(self) -> bytes:
        topics = self.state.topics.table.values()
        return registration_body(topics, self.state.topic_version, self.config.permission)

    # --- what comes in -------------------------------------------------------------------------------

    def on_message(self, message: Any, sender: Sender) -> Any:
        now = self._now()
        match message:
            case Serve():
                self._serve(message, now)
            case CommitOffsets():
                self.state.commit(message.commits, now, message.read_ms)
            case ConnectionClosed():
                key = ConnectionKey(message.gateway, message.incarnation, message.connection_id)
                self.state.closed(key)
            case NeedTopic():
                self.state.need_topic(
                    _caller(message),
                    message.topic,
                    message.default_topic,
                    message.default_queues,
                    message.sys_flag,
                    now,
                )
            case NeedGroup():
                self.state.need_group(_caller(message), message.group, now)
            case ReplayDone():
                if self._lives(message.gateway, message.incarnation):
                    self.state.replay_done(message.gateway)
            case ClientAnswered():
                pass  # nothing that we call for wants an answer yet
        return DEFERRED

    def _serve(self, message: Serve, now: Now) -> None:
        command = frame.decode(message.command)
        # A dead gateway's clients are gone, and would never be seen to go; their last commits still count.
        if not self._lives(message.gateway, message.incarnation) and command.code not in _EVEN_OF_THE_DEAD:
            return
        settings = self.config.coordinator
        lease_ms = settings.native_lease_ms if message.front == "zmq" else settings.client_expiry_ms
        key = ConnectionKey(message.gateway, message.incarnation, message.connection_id)
        caller = Caller(key, message.request_id, message.peer, lease_ms, message.read_ms)
        self.state.serve(caller, command, now, replay=message.replay)

    def _lives(self, gateway: str, incarnation: int) -> bool:
        return self._directory.incarnation_of(gateway) == incarnation

    def on_role_changed(self, role: str, incarnation: int) -> None:
        if role.startswith("gateway-"):
            self.state.gateway_changed(role, incarnation)

    # --- one turn ------------------------------------------------------------------------------------

    def on_batch(self) -> bool:
        now = self._now()
        busy = self._take_completions()
        busy |= self._carry_out(now)
        busy |= self._settle(now)
        busy |= self._push_appends()
        busy |= self._send_held(now)
        busy |= self._save_progress(now)
        return busy | self._set_wishes()

    def _take_completions(self) -> bool:
        done = self._port.completions() if self._port is not None else []
        for completion in done:
            self.state.appended(completion.ticket, completion.status, completion.log_end)
        return bool(done)

    def _carry_out(self, now: Now) -> bool:
        """Do what was decided since the last time, in the order that readers and successors rely on."""
        box = self.state.take()
        if box.is_empty:
            return False
        for row in box.opened:
            self._extents.open_row(
                row.row,
                row.incarnation,
                row.min_offset,
                row.max_offset,
                entries_per_file=self.config.store.queue_file_entries,
                log_start=row.log_start,
            )
        faults.point("coordinator.rows-opened")
        for key, offset in box.offset_rows:
            self._ledger.put(offset_row(key, offset))
        for lock in box.lock_rows:
            self._ledger.put(lock_row(lock))
        faults.point("coordinator.ledger-written")
        self._note_files(box)
        self._persist(now)
        if self._unsaved & _TOPIC_FILES:
            box.replies = [_told_unsaved(reply) for reply in box.replies]
        faults.point("coordinator.persisted")
        self._close_rows(box.closed)
        self._publish(box)
        faults.point("coordinator.published")
        if box.topics_changed:
            self._name_servers.tell(_only_topics(box.entries))
        if box.closed:
            self._settle_version = self._publisher.version
            self._ring_row_writers()
        self._appends.extend(box.appends)
        for connection, call in box.calls:
            self._call(connection, call)
        self._hold(box.replies, now)
        return True

    def _close_rows(self, rows: list[int]) -> None:
        """Take rows from deleted topics: from now on the writer refuses what was admitted for them."""
        for row in rows:
            self._extents.close_row(row)
        if rows:
            faults.point("coordinator.rows-closed")

    def _ring_row_writers(self) -> None:
        for role in ROW_WRITERS:
            self.context.doorbells[role].ring()

    def _settle(self, now: Now) -> bool:
        """Use rows again once nobody can still write into them for the queue that they had."""
        if not self.state.topics.settling:
            return False
        slots = map(slot_of, ROW_WRITERS)
        if any(self.positions.role(slot, RoleCell.TABLES_SEEN) < self._settle_version for slot in slots):
            return False
        self.state.settle(now)
        return True

    # --- files ---------------------------------------------------------------------------------------

    def _note_files(self, box: Outbox) -> None:
        topics = (entry.name for entry in box.entries if isinstance(entry, TopicEntry | TopicGone))
        self._topic_texts.changed(topics)
        if box.deleted_changed:
            self._unsaved.add(files.DELETED_TOPICS)
        if box.unsaved_offsets:
            self._unsaved.add(files.CONSUMER_OFFSETS)
            self._forgotten |= box.unsaved_offsets
            if self._save.table is not None:
                files.forget_consumers_of(self._save.table, box.unsaved_offsets)
        if box.topics_changed:
            self._unsaved.add(files.TOPICS)
        if box.groups_changed:
            self._unsaved.add(files.GROUPS)

    def _persist(self, now: Now) -> None:
        """Write what has changed; on a full disk it is tried again, and the tables go on without.

        Raises:
            StoreFailed: the disk failed; not to be tried again.
        """
        if not self._unsaved or now.monotonic_ms < self._persist_ms:
            return
        for name in [name for name in _SAVED_IN_ORDER if name in self._unsaved]:
            table = self._table_of(name)
            if table is not None and not self._write(name, table):
                self._persist_ms = now.monotonic_ms + PERSIST_RETRY_MS
                if name == files.DELETED_TOPICS:
                    self.state.deletions_unsaved(UNSAVED)
                return
            self._unsaved.discard(name)
            if name == files.DELETED_TOPICS:
                faults.point("coordinator.deletion-saved")
                self.state.deletions_saved(now)

    def _table_of(self, name: str) -> Table | None:
        """Return what to write, None when the file is right as it is."""
        match name:
            case files.TOPICS:
                return self._topics_table()
            case files.GROUPS:
                return self._groups_table()
            case files.DELETED_TOPICS:
                deletions = self.state.topics.deletions
                deletions.forget(self.positions.get(Position.CLEANED))
                return files.deleted_topics_table(deletions.log_ends)
            case _:
                # What was saved last, without the offsets of topics that are no more.
                table = self._load(files.CONSUMER_OFFSETS)
                return table if files.forget_consumers_of(table, self._forgotten) else None

    def _write(self, name: str, table: Table) -> bool:
        try:
            with self.busy(RoleState.SYNCING):
                files.save(self._disk, self.config.store.root / files.FOLDER / name, table)
        except OSError as error:
            if name not in self._unwritable:
                self.log.error("cannot write %s, trying again until it can be: %s", name, error)
            self._unwritable.add(name)
            return False
        if name == files.CONSUMER_OFFSETS:
            # Whichever table it was: those topics' offsets are in no file now.
            self._forgotten.clear()
        if name in self._unwritable:
            self._unwritable.discard(name)
            self.log.info("%s can be written again", name)
        return True

    def _topics_table(self) -> Table:
        return {
            "dataVersion": self.state.topic_version.to_json(),
            "topicConfigTable": self._topic_texts.of(self.state.topics.table),
        }

    def _groups_table(self) -> Table:
        groups = self.state.groups.table
        return {
            "dataVersion": self.state.group_version.to_json(),
            "forbiddenTable": self._forbidden,
            "subscriptionGroupTable": {name: group_to_json(config) for name, config in groups.items()},
        }

    def _save_progress(self, now: Now) -> bool:
        appended, flushed = self.positions.get(Position.APPENDED), self.positions.get(Position.FLUSHED)
        table = self._save.look(now.monotonic_ms, appended, flushed, self._take_offsets)
        if table is None:
            return False
        faults.point("coordinator.offsets-unsaved")
        if not self._write(files.CONSUMER_OFFSETS, table):
            self.state.offsets.changed = True
        faults.point("coordinator.offsets-saved")
        return True

    def _take_offsets(self) -> Table | None:
        offsets = self.state.offsets
        if not offsets.changed:
            return None
        offsets.changed = False
        return self._offsets_rest | {
            "dataVersion": offsets.version.to_json(),
            "offsetTable": offsets.table(),
        }

    # --- tables --------------------------------------------------------------------------------------

    def _publish(self, box: Outbox) -> None:
        if not box.entries:
            return
        try:
            self._publisher.publish(*map(encode_entry, box.entries))
        except TablesFull:
            # Readers copy and compare the epoch afterwards: to write into the other half is always safe.
            snapshot = map(encode_entry, self._tables.entries())
            self._publisher.compact(snapshot, lambda: True)
        for name in self._living_gateways():
            self.context.doorbells[name].ring()

    def _living_gateways(self) -> list[str]:
        """Return the gateways that serve clients."""
        names = (f"gateway-{number}" for number in range(self.config.gateway.count))
        return [name for name in names if self._directory.incarnation_of(name) and self._serves(name)]

    def _serves(self, gateway: str) -> bool:
        """A gateway that is starting reads the tables before it serves anybody."""
        return self.positions.role(slot_of(gateway), RoleCell.STATE) != RoleState.STARTING

    def _seen(self) -> int:
        """Return the version of the tables that all living gateways have.

        One that is silent is not waited for: it closes all its connections when it goes on, and reads the
        tables before it serves anybody.
        """
        version = self._publisher.version
        silent_ns = self.context.clock.monotonic_ns() - SILENT_NS
        slots = [
            slot
            for slot in behind(self.positions, version, map(slot_of, self._living_gateways()))
            if self.positions.role(slot, RoleCell.HEARTBEAT_NS) > silent_ns
        ]
        return min((self.positions.role(slot, RoleCell.TABLES_SEEN) for slot in slots), default=version)

    # --- appends -------------------------------------------------------------------------------------

    def _push_appends(self) -> bool:
        if self._port is None:
            return False
        pushed = False
        while self._appends and push(self._port, self._appends[0]):
            self._appends.popleft()
            pushed = True
        self._port.flush()
        return pushed

    # --- answers -------------------------------------------------------------------------------------

    def _hold(self, replies: list[Reply], now: Now) -> None:
        """Send what waits for nothing, keep the rest."""
        deadline_ms = now.monotonic_ms + self.config.store.sync_flush_timeout_ms
        for reply in replies:
            held = _Held(
                reply,
                self._publisher.version if reply.tables else 0,
                self._name_servers.change if reply.registration else 0,
                deadline_ms,
            )
            if not (held.tables or held.change or reply.log_end):
                self._send(reply)
            elif len(self._held) >= HELD_MAX:
                self._refuse(reply, ResponseCode.SYSTEM_BUSY, "[OVERLOAD]system busy")
            else:
                self._held.append(held)

    def _send_held(self, now: Now) -> bool:
        if not self._held:
            return False
        seen, safe = self._seen(), self._safe()
        waiting = []
        for held in self._held:
            if held.ready(seen, safe, self._name_servers):
                self._send(held.reply)
            elif held.reply.log_end > safe and now.monotonic_ms >= held.deadline_ms:
                self._refuse(held.reply, ResponseCode.SYSTEM_ERROR, "FLUSH_DISK_TIMEOUT")
            else:
                waiting.append(held)
        sent = len(waiting) < len(self._held)
        self._held = waiting
        return sent

    def _safe(self) -> int:
        """Return the log offset up to which a send-back may be answered."""
        sync = self.config.store.flush is FlushMode.SYNC
        return self.positions.get(Position.FLUSHED if sync else Position.APPENDED)

    def _refuse(self, reply: Reply, code: ResponseCode, remark: str) -> None:
        if reply.needed is not None:
            reply.needed = (code, remark)
        elif reply.command is not None:
            reply.command = RemotingCommand.response_to(reply.command, code, remark)
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        if not self._lives(reply.key.gateway, reply.key.incarnation):
            return
        message: Served | Needed
        if reply.needed is not None:
            message = Needed(reply.request_id, *reply.needed)
        else:
            data = frame.encode(reply.command)[4:] if reply.command is not None else None
            message = Served(reply.request_id, data)
        self.context.ref(reply.key.gateway).tell(message)

    def _call(self, key: ConnectionKey, command: RemotingCommand) -> None:
        if self._lives(key.gateway, key.incarnation):
            self.context.ref(key.gateway).tell(CallClient(key.connection_id, frame.encode(command)[4:]))

    def _set_wishes(self) -> bool:
        """Say which positions we wait for, so that their owners ring us.

        True when a wish is new: the position must be looked at once more before we sleep.
        """
        tables = min((held.tables for held in self._held if held.tables), default=0)
        log_ends = [held.reply.log_end for held in self._held if held.reply.log_end]
        if self._save.pending:
            log_ends.append(self._save.wanted_flushed)
        asked = self.wish(RoleCell.WANTED_FLUSHED, min(log_ends, default=0))
        if asked:
            self.context.doorbells["flusher"].ring()
        return asked | self.wish(RoleCell.WANTED_TABLES, tables)

    # --- time ----------------------------------------------------------------------------------------

    def wake_at_ns(self) -> int | None:
        times = [self.state.wake_ms(), self._name_servers.wake_ms()]
        if self.state.offsets.changed or self._save.pending:
            times.append(self._save.wake_ms())
        if self._unsaved:
            times.append(self._persist_ms)
        if self.state.waiting and self.state.topics.settling:
            times.append(self._now().monotonic_ms + SETTLE_LOOK_MS)
        if self.state.awaited:
            times.append(self._replay_until_ms)
        if self._stop_ms is not None:
            times.append(self._stop_ms)
        times += [held.deadline_ms for held in self._held if held.reply.log_end]
        due = [time for time in times if time is not None]
        return min(due) * _NS_PER_MS if due else None

    def on_tick(self, now_ns: int) -> None:
        now = self._now()
        self.state.tick(now)
        if self.state.awaited and now.monotonic_ms >= self._replay_until_ms:
            missing = sorted(self.state.awaited)
            self.log.warning("not told of their clients by %s: going on without", ", ".join(missing))
            for gateway in missing:
                self.state.replay_done(gateway)
        self._persist(now)
        self._name_servers.tick()

    # --- the end -------------------------------------------------------------------------------------

    def on_stop(self) -> None:
        """Leave the name servers, save the offsets once more."""
        self._stop_ms = self._now().monotonic_ms + STOP_MS_MAX
        self._save.hurry()
        self._name_servers.leave()

    def drained(self) -> bool:
        assert self._stop_ms is not None
        if self._now().monotonic_ms >= self._stop_ms:
            return True
        state = self.state
        busy = self._held or self._appends or self._name_servers.leaving or self._save.pending
        busy = busy or state.deleting
        return not busy and not self.state.offsets.changed


def _only_topics(entries: list[Entry]) -> list[TopicEntry]:
    """Return the topics among what has changed; none if something changed that registers with all topics."""
    if any(isinstance(entry, TopicGone | BrokerEntry) for entry in entries):
        return []
    return [entry for entry in entries if isinstance(entry, TopicEntry)]


_EVEN_OF_THE_DEAD: Final = (RequestCode.UPDATE_CONSUMER_OFFSET,)


def _caller(message: NeedTopic | NeedGroup) -> Caller:
    return Caller(ConnectionKey(message.gateway, message.incarnation, 0), message.request_id, "", 0)


def _config_of(entry: GroupEntry) -> GroupConfig:
    """Return the configuration of a group of which only the tables know."""
    return GroupConfig(
        group_name=entry.name,
        consume_enable=entry.consume_enable,
        consume_broadcast_enable=entry.broadcast_enable,
        retry_max_times=entry.retry_max_times,
        retry_queue_nums=entry.retry_queues,
        broker_id=entry.broker_id,
        which_broker_when_consume_slowly=entry.which_broker_when_slow,
        group_sys_flag=entry.sys_flag,
    )


def _offset_items(table: Table) -> Iterable[tuple[str, dict[int, int]]]:
    """Return what consumerOffset.json says; what is no number is left out."""
    for name, queues in (table.get("offsetTable") or {}).items():
        if isinstance(queues, dict):
            yield (
                name,
                {
                    int(queue_id): offset
                    for queue_id, offset in queues.items()
                    if str(queue_id).isdecimal() and type(offset) is int
                },
            )


def _told_unsaved(reply: Reply) -> Reply:
    """Return the answer to an administrator's change that is in force, but would not survive the broker.

    Heartbeats, locks and send-backs have changed nothing that is lost with it: they succeed.
    """
    command = reply.command
    if command is None or not reply.registration or command.code != ResponseCode.SUCCESS:
        return reply
    command.code = ResponseCode.SYSTEM_ERROR
    command.remark = UNSAVED
    return reply
