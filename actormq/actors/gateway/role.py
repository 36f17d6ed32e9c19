"""gateway: all client connections of one process; decodes, authorises, routes by request code, answers.

From: clients (RocketMQ TCP, its VIP port, ZeroMQ), writer (completions), holder (wakes), coordinator
(Served, Needed, CallClient).  To: writer (append port), holder (park port), coordinator (one FIFO).
Owns its client connections, which die with it: clients reconnect to the same listening socket, and what
was not answered was not acknowledged.  A new incarnation has new ports and starts from nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import zmq

from actormq import __version__, faults
from actormq.actors.coordinator import CallClient, Needed, Served
from actormq.actors.dispatcher import Mend
from actormq.actors.gateway.clients import TCP, VIP, ZMQ, Client, Link
from actormq.actors.gateway.cold import ColdReader, Pace
from actormq.actors.gateway.damage import Damage
from actormq.actors.gateway.lookups import Lookups
from actormq.actors.gateway.lost_tails import LostTails
from actormq.actors.gateway.pulls import Pulls
from actormq.actors.gateway.relay import Relay
from actormq.actors.gateway.replies import Replies
from actormq.actors.gateway.sends import TICKET_BITS, Sends, WaitingLimits
from actormq.actors.gateway.threads import ReadThreads
from actormq.actors.holder import ParkPort
from actormq.actors.mailbox import Sender
from actormq.actors.runtime import ProcessActor, RoleContext
from actormq.actors.writer import DISK_USED, store_host
from actormq.broker.admission import SendSettings, broker_properties
from actormq.broker.delay import DelayLevels
from actormq.broker.pulling import MEMORY_PART, TransferLimits
from actormq.broker.tables import Tables
from actormq.config import FlushMode
from actormq.errors import FrameError, RequestError, ResponseCode
from actormq.kernels.frames import cut_frames
from actormq.kernels.sends import SendPath
from actormq.net.tcp import Connection, Limits, Places, Server
from actormq.net.zmq import RouterClient, RouterLimits, RouterServer
from actormq.shm.append_port import AppendPort
from actormq.shm.extents import Extents
from actormq.shm.positions import SLOT_OF, Position, Positions, RoleCell, RoleState, slot_of
from actormq.shm.tables import TablesReader
from actormq.store.batch_queue import BatchQueues
from actormq.store.commit_log import FOLDER as LOG_FOLDER
from actormq.store.commit_log import LogReader
from actormq.store.consume_queue import FOLDER as QUEUE_FOLDER
from actormq.store.consume_queue import QueueReader
from actormq.store.disk import RealDisk
from actormq.store.identifiers import UniqueKeys
from actormq.store.queue_ext import QueueExtensions
from actormq.store.tables import LOST_TAIL_COUNTS_MS
from actormq.telemetry.counters import Counters, snapshot
from actormq.wire import frame, json
from actormq.wire.command import BROKER_VERSION, RemotingCommand
from actormq.wire.headers import DESCRIPTIONS, Description, RequestCode, Role, not_supported

GO_AWAY_SINCE: Final = 475
"""Clients of 5.3.2 and later understand GO_AWAY: they connect elsewhere and repeat the request."""
STOP_TIMEOUT_NS: Final = 2_000_000_000
STANDSTILL_NS: Final = 3_000_000_000
"""As long as clients wait for an answer.  After a longer standstill of this process they have asked
again elsewhere: to serve what they had sent would set offsets back and store messages twice."""
COUNTERS: Final = (
    "messages in",
    "bytes in",
    "messages out",
    "bytes out",
    "pulls",
    "sends refused",
    "connections",
    "pulls waiting",
    "damaged messages",
)
_NS_PER_MS: Final = 1_000_000
CROWD: Final = 4
"""So many sends in one turn say that more are on their way (see `GatewayActor.rest_ns`)."""
REST_A_SEND_NS: Final = 10_000
REST_NS_MAX: Final = 500_000
_BLOCKED_RETRY_NS: Final = 1_000_000
_SENDS: Final = (RequestCode.SEND_MESSAGE, RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE)
_PULLS: Final = (RequestCode.PULL_MESSAGE, RequestCode.LITE_PULL_MESSAGE)
_NOT_ON_VIP: Final = frozenset(
    {
        *_PULLS,
        RequestCode.POP_MESSAGE,
        RequestCode.PEEK_MESSAGE,
        RequestCode.NOTIFICATION,
        RequestCode.POLLING_INFO,
    }
)

Authorise = Callable[[Client, Description, RemotingCommand], None]
"""Raises RequestError(NO_PERMISSION) when the client may not do this."""
_COORDINATOR: Final = SLOT_OF["coordinator"]
Handle = Callable[[Client, RemotingCommand, int], None]


def allow_all(client: Client, description: Description, command: RemotingCommand) -> None:
    """Authorise without access control."""


class StoreMarks:
    """The positions that readers look at, and our READING_FROM cell."""

    def __init__(self, positions: Positions, slot: int) -> None:
        self._positions = positions
        self._slot = slot
        self._reading = False

    def log_range(self) -> tuple[int, int]:
        """Return the log offsets between which messages are readable."""
        return self._positions.get(Position.CLEANED), self._positions.get(Position.DISPATCHED)

    def reading(self, log_offset: int) -> None:
        """Keep the cleaner from unlinking what is read from here on, until `done_reading`."""
        if not self._reading:
            self._reading = True
            # 0 means "reads nothing"; one byte of the first record more or less names the same file.
            self._positions.set_role(self._slot, RoleCell.READING_FROM, max(1, log_offset))

    def done_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._positions.set_role(self._slot, RoleCell.READING_FROM, 0)


class GatewayActor(ProcessActor):
    """Wires fronts, rings, tables and files to the pure parts; nothing is decided here."""

    messages = (Served, Needed, CallClient)

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self.authorise: Authorise = allow_all
        self._clients: dict[int, Client] = {}
        self._client_ids = 0
        self._servers: list[Server] = []
        self._router: RouterServer | None = None
        self._tables = Tables()
        self._tables_changed: Callable[[], None] = lambda: None
        self._wanted_flushed = 0
        self._alive_ns = context.clock.monotonic_ns()
        self._stood_still = False
        self._stop_deadline_ns: int | None = None
        self._address = f"{context.config.advertised_host}:{context.config.gateway.port}"

    # -- starting

    def on_start(self) -> None:
        context, config = self.context, self.config
        self._tables_reader = TablesReader(context.segments["tables"].view, self.positions, context.slot)
        self._refresh_tables()
        self._marks = StoreMarks(self.positions, context.slot)
        self._counters = Counters(self.positions, context.slot, COUNTERS)
        self._replies = Replies(config.region, config.trace_on)
        self._relay = Relay(
            context.role,
            context.incarnation,
            context.ref("coordinator").tell,
            self._coordinator_incarnation,
            self._clients,
        )
        self._open_store()
        self._routes = self._make_routes()
        self._open_fronts()
        self._relay.pump()

    def _coordinator_incarnation(self) -> int:
        if self.positions.role(_COORDINATOR, RoleCell.STATE) in (RoleState.ABSENT, RoleState.STOPPED):
            return 0
        return self.positions.role(_COORDINATOR, RoleCell.INCARNATION)

    def _open_store(self) -> None:
        """Make the send and the pull path."""
        context, store, gateway = self.context, self.config.store, self.config.gateway
        disk = RealDisk()
        host = store_host(self.config.advertised_host, gateway.port)
        self._log_reader = LogReader(disk, store.root / LOG_FOLDER, store.log_file_bytes)
        extents = Extents(context.segments["extents"].view)
        queues = QueueReader(disk, store.root / QUEUE_FOLDER, store.queue_file_entries)
        keys = UniqueKeys(host[:-4], os.getpid(), int.from_bytes(os.urandom(4), "big", signed=True))
        port = AppendPort(self.ports["append"], context.doorbells["writer"])
        self._sends = Sends(
            incarnation=context.incarnation,
            port=port,
            path=self._send_path(port, host),
            questions=self._relay,
            tables=self._tables,
            settings=self._send_settings(),
            replies=self._replies,
            limits=WaitingLimits(
                requests_max=gateway.waiting_requests_max,
                bytes_max=gateway.waiting_bytes_max,
                wait_ns=gateway.waiting_ms_max * _NS_PER_MS,
            ),
            store_host=host,
            sync=store.flush is FlushMode.SYNC,
            sync_timeout_ns=store.sync_flush_timeout_ms * _NS_PER_MS,
            record_starts=self._record_starts,
            disk_percent=lambda: self.positions.role(slot_of("cleaner"), DISK_USED),
            new_key=lambda: keys.new(context.clock.wall_ms()),
            now_ns=context.clock.monotonic_ns,
            random=Random(),  # noqa: S311 (spreads messages over queues)
        )
        threads = ReadThreads(self.call_soon)
        self._pulls = Pulls(
            holder=ParkPort(self.ports["park"], context.doorbells["holder"], self.positions, context.slot),
            relay=self._relay,
            tables=self._tables,
            extents=extents,
            queues=queues,
            extensions=QueueExtensions(disk, store.root),
            batch_queues=BatchQueues(disk, store.root),
            log=self._log_reader,
            marks=self._marks,
            replies=self._replies,
            limits=TransferLimits(),
            memory_bytes=int(MEMORY_PART * _machine_memory_bytes()),
            address=self._address,
            now_ns=context.clock.monotonic_ns,
            lost_tails=self._new_lost_tails(extents),
            damage=Damage(queues, self._log_reader, self._marks, self._mend, self.log),
            cold=ColdReader(
                store.root / LOG_FOLDER,
                store.log_file_bytes,
                threads,
                Pace(gateway.cold_bytes_per_second, self._log_end, context.clock.monotonic_ns),
                self.loop.call_at,
            ),
        )
        self._tables_changed = self._forget_prepared
        self._lookups = Lookups(
            tables=self._tables,
            extents=extents,
            disk=disk,
            store=store,
            marks=self._marks,
            threads=threads,
        )

    def _log_end(self) -> int:
        return self.positions.get(Position.APPENDED)

    def _new_lost_tails(self, extents: Extents) -> LostTails:
        """Only the first life of a gateway meets consumers of the former broker."""
        now_ns = self.context.clock.monotonic_ns
        until_ns = now_ns() + LOST_TAIL_COUNTS_MS * 1_000_000 if self.context.incarnation == 1 else 0
        return LostTails(extents, self._tables, until_ns, now_ns)

    def _mend(self, log_offset: int) -> None:
        """Have the queue entry of a record made again."""
        self.context.ref("dispatcher").tell(Mend(log_offset))

    def _forget_prepared(self) -> None:
        self._sends.tables_changed()
        self._pulls.tables_changed()

    def _send_path(self, port: AppendPort, host: bytes) -> SendPath:
        return SendPath(
            port.request_ring,
            ticket_base=self.context.incarnation << TICKET_BITS,
            slots=2 * port.outstanding_max,
            store_host=host,
            added=broker_properties(self._send_settings()),
            sync=self.config.store.flush is FlushMode.SYNC,
            body_bytes_max=self.config.store.body_bytes_max,
            json_pieces=self._replies.stored_pieces,
            json_bare=self._replies.stored_bare,
            binary_fields=self._replies.stored_fields,
            binary_bare=self._replies.stored_fields_bare,
            version=BROKER_VERSION,
            read_log=self._log_reader.view,
        )

    def _send_settings(self) -> SendSettings:
        return SendSettings(
            cluster=self.config.cluster,
            region=self.config.region,
            trace_on=self.config.trace_on,
            address=self._address,
            body_bytes_max=self.config.store.body_bytes_max,
            levels=DelayLevels(self.config.coordinator.delay_levels),
        )

    def _record_starts(self, start: int, end: int) -> list[int]:
        """Return the log offsets of the records of a batch, which lies in one file."""
        view = self._log_reader.view(start, end - start)
        starts, at = [], 0
        while at < len(view):
            starts.append(start + at)
            size = int.from_bytes(view[at : at + 4], "big")
            assert size > 0, f"no record at log offset {start + at}, inside what the writer completed"
            at += size
        return starts

    def _make_routes(self) -> dict[int, Handle]:
        """Return what this role serves itself."""
        routes: dict[int, Handle] = {}
        for code in _SENDS:
            routes[code] = self._sends.submit
        for code in _PULLS:
            routes[code] = self._pulls.submit
        for number in self._lookups.handlers:
            routes[number] = lambda client, command, now_ns: self._lookups.serve(client, command)
        routes[RequestCode.GET_ENDPOINTS] = self._get_endpoints
        routes[RequestCode.GET_ROLES] = self._get_roles
        routes[RequestCode.KEEP_ALIVE] = self._keep_alive
        routes[RequestCode.BYE] = self._bye
        return routes

    # -- fronts

    def _limits(self) -> Limits:
        gateway = self.config.gateway
        return Limits(
            frame_bytes_max=gateway.frame_bytes_max,
            connections_max=gateway.connections_max,
            idle_timeout_ms=gateway.idle_timeout_ms,
            reply_bytes_max=gateway.reply_bytes_max,
            unfinished_bytes_max=gateway.unfinished_bytes_max,
        )

    def _open_fronts(self) -> None:
        """Begin to serve; the listening sockets are the supervisor's, ours are copies of the descriptors."""
        limits = self._limits()
        now_ns = self.context.clock.monotonic_ns
        for name in (TCP, VIP):
            if name in self.context.listeners:
                listener = socket.socket(fileno=os.dup(self.context.listeners[name]))
                front = TcpFront(self, name)
                front.server = Server(self.loop, listener, front, limits, self.log, now_ns, front.cut)
                self._servers.append(front.server)
        if ZMQ in self.context.listeners:
            self._open_router(limits)

    def _open_router(self, limits: Limits) -> None:
        fd = os.dup(self.context.listeners[ZMQ])
        with socket.socket(fileno=os.dup(fd)) as named:
            host, port = named.getsockname()[:2]
        context: zmq.Context[Any] = (
            self.context.mailbox.zmq if self.context.mailbox is not None else zmq.Context.instance()
        )
        self._router = RouterServer(
            self.loop,
            context,
            fd,
            f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}",
            ZmqFront(self),
            RouterLimits(
                frame_bytes_max=limits.frame_bytes_max,
                clients_max=limits.connections_max,
                lease_ms=self.config.coordinator.native_lease_ms,
                reply_bytes_max=limits.reply_bytes_max,
                idle_timeout_ms=limits.idle_timeout_ms,
            ),
            self.log,
            self.context.clock.monotonic_ns,
        )

    def client_opened(self, front: str, link: Link) -> Client:
        """A front has a new connection."""
        self._client_ids += 1
        client = self._clients[self._client_ids] = Client(self._client_ids, front, link)
        self._counters.add("connections")
        return client

    def client_closed(self, client: Client) -> None:
        """A front has lost a connection."""
        del self._clients[client.id]
        self._pulls.client_closed(client)
        self._relay.closed(client)

    # -- requests

    def begin_batch(self) -> int | None:
        """Look at the tables once for all requests of a read; return the time that they came.

        None: this process stood still, nobody knows how old they are, and they must not be served.
        """
        now_ns = self._look_at_clock()
        if self._stood_still:
            return None
        self._refresh_tables()
        return now_ns

    def _look_at_clock(self) -> int:
        now_ns = self.context.clock.monotonic_ns()
        self._stood_still |= now_ns - self._alive_ns > STANDSTILL_NS
        self._alive_ns = now_ns
        return now_ns

    def _start_afresh(self) -> None:
        """Close all connections, as our death would: clients connect again and say what they want now."""
        self._stood_still = False
        self.log.warning(
            "stood still for seconds: closed all connections", extra={"clients": len(self._clients)}
        )
        for server in self._servers:
            server.start_afresh("the gateway stood still")
        if self._router is not None:
            self._router.close()
            self._open_router(self._limits())
        self._sends.forget_waiting()

    def cut(self, client: Client, view: memoryview, end: int) -> Places:
        """Serve the common sends and pulls of a read; return where the other frames are."""
        bytes_max = self.config.gateway.frame_bytes_max
        now_ns = self.begin_batch()
        if now_ns is None or not self._takes_unseen():
            return cut_frames(view, end, bytes_max)
        faults.point("gateway.received")
        spots, used, bad = self._sends.take(client, view, end, bytes_max)
        if spots and client.front != VIP:
            spots = self._pulls.take(client, view, spots, now_ns)
        return spots, used, bad

    def take_parts(self, client: Client, header: bytes, body: bytes | memoryview, now_ns: int) -> bool:
        """Serve a send whose header and body came apart, or a pull, if it is a common one."""
        if not self._takes_unseen():
            return False
        if body:
            return self._sends.take_parts(client, header, body)
        return self._pulls.take_header(client, header, now_ns)

    def _takes_unseen(self) -> bool:
        """Whether requests may be taken without `handle`: where access is controlled, each is looked at."""
        return self._stop_deadline_ns is None and self.authorise is allow_all

    def handle(self, client: Client, command: RemotingCommand, data: memoryview | bytes, now_ns: int) -> None:
        """Serve one command of a client.

        Args:
            data: the frame that it was decoded from; like the body, perhaps gone when this returns.
        """
        if command.is_response:
            self._relay.client_answered(client, command.opaque, bytes(data))
            return
        description = DESCRIPTIONS.get(command.code)
        try:
            if self._stop_deadline_ns is not None:
                raise _going_away(command)
            handle = self._routes.get(command.code)
            if client.front == VIP and command.code in _NOT_ON_VIP:
                handle = description = None
            if description is not None:
                self.authorise(client, description, command)
            if handle is not None:
                handle(client, command, now_ns)
            elif command.code == RequestCode.UPDATE_CONSUMER_OFFSET and self._pulls.is_commit_ahead(
                client, command
            ):
                self._pass_over(client, command)
            elif description is not None and description.role is Role.COORDINATOR:
                self._relay.serve(client, command, data, now_ns)
            else:
                raise RequestError(ResponseCode.REQUEST_CODE_NOT_SUPPORTED, not_supported(command.code))
        except RequestError as error:
            client.refuse(command, error.response_code, error.remark)

    def _pass_over(self, client: Client, command: RemotingCommand) -> None:
        """An offset of messages that were lost: nothing to complain of, and nothing to keep."""
        if not command.is_oneway:
            client.answer(RemotingCommand.response_to(command, ResponseCode.SUCCESS))

    def _get_endpoints(self, client: Client, command: RemotingCommand, now_ns: int) -> None:
        fields = {"broker": self.config.name, "version": __version__}
        if self._router is not None:
            fields["zmq"] = f"{self.config.advertised_host}:{self._router.endpoint.rpartition(':')[2]}"
        client.answer(RemotingCommand.response_to(command, ResponseCode.SUCCESS, fields=fields))

    def _get_roles(self, client: Client, command: RemotingCommand, now_ns: int) -> None:
        gateways = [f"gateway-{number}" for number in range(self.config.gateway.count)]
        names = [*SLOT_OF, *gateways]
        lived = [name for name in names if self.positions.role(slot_of(name), RoleCell.INCARNATION)]
        roles = [
            {
                "role": one.role,
                "pid": one.pid,
                "incarnation": one.incarnation,
                "state": one.state,
                "heartbeat_age_ms": one.heartbeat_age_ms,
                "busy_ms": one.busy_ms,
                "counters": list(one.counters),
            }
            for one in snapshot(self.positions, lived, now_ns)
        ]
        positions = {position.name.lower(): self.positions.get(position) for position in Position}
        body = json.dumps({"roles": roles, "positions": positions})
        client.answer(RemotingCommand.response_to(command, ResponseCode.SUCCESS, body=body))

    def _keep_alive(self, client: Client, command: RemotingCommand, now_ns: int) -> None:
        """Anything renews a lease; this is for clients that have nothing else to say."""
        if not command.is_oneway:
            client.answer(RemotingCommand.response_to(command, ResponseCode.SUCCESS))

    def _bye(self, client: Client, command: RemotingCommand, now_ns: int) -> None:
        """A client leaves: its memberships end now, not with its lease."""
        if isinstance(client.link, RouterClient) and self._router is not None:
            self._router.close_client(client.link, "said goodbye")

    # -- turns

    def on_batch(self) -> bool:
        now_ns = self._look_at_clock()
        if self._stood_still:
            self._start_afresh()
        self._refresh_tables()
        self._sends.flush()  # the writer works while we look at everything else
        busy = self._sends.collect(now_ns)
        faults.point("gateway.completed")
        busy |= self._acknowledge()
        self._flush_fronts()  # who waits for an answer has it before anything else is looked at
        busy |= self._sends.retry_line(now_ns)
        busy |= self._pulls.collect(now_ns)
        self._sends.flush()
        faults.point("gateway.appended")
        self._pulls.finish_batch(now_ns)
        faults.point("gateway.parked")
        relay = self._relay
        if relay.outgoing or self.positions.role(_COORDINATOR, RoleCell.INCARNATION) != relay.known:
            busy |= relay.pump()
        faults.point("gateway.relayed")
        self._flush_fronts()
        faults.point("gateway.replied")
        self._count()
        return busy

    def has_news(self) -> bool:
        return (
            self._sends.has_news(self.positions.get(Position.FLUSHED))
            or self._pulls.has_woken
            or self._tables_reader.stale
        )

    def rest_ns(self) -> int:
        """Look away for a moment after a turn that brought many sends.

        Their producers wait for answers, which the writer makes meanwhile; then answers and the next sends
        are one turn, and nobody has to be woken.  Who sends one after the other never waits for that.
        """
        count, self._sends.arrived = self._sends.arrived, 0
        return min(count * REST_A_SEND_NS, REST_NS_MAX) if count >= CROWD else 0

    def _acknowledge(self) -> bool:
        """Answer what is synced, and say how far the next sync must go."""
        if not (self._sends.wanted_flushed or self._wanted_flushed):
            return False
        some = self._sends.acknowledge(self.positions.get(Position.FLUSHED))
        wanted = self._sends.wanted_flushed
        if wanted != self._wanted_flushed:
            self._wanted_flushed = wanted
            self.positions.set_role(self.context.slot, RoleCell.WANTED_FLUSHED, wanted)
        return some

    def _flush_fronts(self) -> None:
        for server in self._servers:
            if server.dirty:
                server.flush()
        if self._router is not None and self._router.dirty:
            self._router.flush()

    def _refresh_tables(self) -> None:
        """Take over what was published since the last look: one load when nothing was."""
        if not self._tables_reader.stale:
            return
        reset, entries = self._tables_reader.poll()
        if reset:
            self._tables.reset()
        for entry in entries:
            self._tables.apply(entry)
        self._tables_changed()
        self._tables_reader.mark_seen()
        # It may hold back the answer to a change until everybody has seen it.
        self.context.doorbells["coordinator"].ring()
        seen = self.positions.role(self.context.slot, RoleCell.TABLES_SEEN)
        self.positions.set_role(self.context.slot, RoleCell.WANTED_TABLES, seen + 1)

    def _count(self) -> None:
        sends, pulls = self._sends.counts, self._pulls.counts
        if sends.messages or sends.bytes or sends.refused:
            self._add("messages in", sends.messages)
            self._add("bytes in", sends.bytes)
            self._add("sends refused", sends.refused)
            sends.messages = sends.bytes = sends.refused = 0
        if pulls.pulls or pulls.messages or pulls.damaged:
            self._add("pulls", pulls.pulls)
            self._add("messages out", pulls.messages)
            self._add("bytes out", pulls.bytes)
            self._add("damaged messages", pulls.damaged)
            pulls.messages = pulls.bytes = pulls.pulls = pulls.damaged = 0

    def _add(self, name: str, value: int) -> None:
        if value:
            self._counters.add(name, value)

    def on_message(self, message: Any, sender: Sender) -> None:
        self._refresh_tables()
        match message:
            case Served():
                self._relay.served(message)
            case Needed():
                self._relay.needed(message)
            case CallClient():
                self._relay.call(message, self.context.clock.monotonic_ns())

    def on_role_changed(self, role: str, incarnation: int) -> None:
        if role == "holder" and incarnation:
            self._pulls.park_all_again()

    def wake_at_ns(self) -> int | None:
        due_ns = self._stop_deadline_ns
        for time_ns in (self._sends.wake_at_ns(), self._pulls.wake_at_ns(), self._relay.wake_at_ns()):
            if time_ns is not None and (due_ns is None or time_ns < due_ns):
                due_ns = time_ns
        if self._pulls.blocked or (self._relay.outgoing and self._coordinator_incarnation()):
            retry_ns = self.context.clock.monotonic_ns() + _BLOCKED_RETRY_NS
            due_ns = retry_ns if due_ns is None else min(due_ns, retry_ns)
        return due_ns

    def on_tick(self, now_ns: int) -> None:
        self._sends.retry_line(now_ns)
        self._sends.expire(now_ns)
        self._pulls.expire(now_ns)
        self._relay.expire(now_ns)

    # -- stopping

    def on_stop(self) -> None:
        """Take no connection and no request any more; what was taken is answered."""
        self._stop_deadline_ns = self.context.clock.monotonic_ns() + STOP_TIMEOUT_NS
        for server in self._servers:
            server.stop_accepting()
        self._pulls.end_all()
        self._relay.flush_commits()

    def drained(self) -> bool:
        assert self._stop_deadline_ns is not None
        if self.context.clock.monotonic_ns() >= self._stop_deadline_ns:
            return True
        unsent = any(client.link.queued_bytes for client in self._clients.values())
        return self._sends.idle and self._relay.unanswered == 0 and not unsent


class TcpFront:
    """Decodes what comes over TCP."""

    server: Server

    def __init__(self, gateway: GatewayActor, name: str) -> None:
        self._gateway = gateway
        self._name = name

    def opened(self, connection: Connection) -> None:
        connection.user = self._gateway.client_opened(self._name, connection)

    def cut(self, connection: Connection, view: memoryview, end: int) -> Places:
        assert isinstance(connection.user, Client)
        return self._gateway.cut(connection.user, view, end)

    def frames(self, connection: Connection, frames: Sequence[memoryview]) -> None:
        client = connection.user
        assert isinstance(client, Client)
        now_ns = self._gateway.begin_batch()
        if now_ns is None:
            return
        faults.point("gateway.received")
        for data in frames:
            try:
                command = frame.decode(data)
            except FrameError as error:
                self.server.close_connection(connection, error.remark, warn=True)
                return
            self._gateway.handle(client, command, data, now_ns)

    def closed(self, connection: Connection, reason: str) -> None:
        assert isinstance(connection.user, Client)
        self._gateway.client_closed(connection.user)


class ZmqFront:
    """Decodes what comes from native clients."""

    def __init__(self, gateway: GatewayActor) -> None:
        self._gateway = gateway

    def client_opened(self, client: RouterClient) -> None:
        client.user = self._gateway.client_opened(ZMQ, client)

    def message(self, client: RouterClient, header: bytes, body: bytes | memoryview) -> None:
        assert isinstance(client.user, Client)
        now_ns = self._gateway.begin_batch()
        if now_ns is None:
            return
        if self._gateway.take_parts(client.user, header, body, now_ns):
            return
        try:
            command = frame.decode_parts(header, body)
        except FrameError as error:
            client.server.close_client(client, error.remark, warn=True)
            return
        self._gateway.handle(client.user, command, header + body if _is_relayed(command) else header, now_ns)

    def client_closed(self, client: RouterClient, reason: str) -> None:
        assert isinstance(client.user, Client)
        self._gateway.client_closed(client.user)


def _is_relayed(command: RemotingCommand) -> bool:
    """Whether the whole frame goes on to the coordinator."""
    description = DESCRIPTIONS.get(command.code)
    return command.is_response or (description is not None and description.role is Role.COORDINATOR)


def _going_away(command: RemotingCommand) -> RequestError:
    if command.version > GO_AWAY_SINCE:
        return RequestError(ResponseCode.GO_AWAY, "please go away")
    return RequestError(ResponseCode.SERVICE_NOT_AVAILABLE, "the broker is shutting down")


def _machine_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
