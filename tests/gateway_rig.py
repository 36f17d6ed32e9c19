"""A gateway with everything around it in one thread: real fronts, rings, writer, dispatcher and holder.

Only the coordinator is made up: it writes down what it hears and answers as the test says.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import zmq
from store_rig import Memory, MemoryPort, SilentDoorbell

from actormq.actors.coordinator import Needed, NeedGroup, NeedTopic, Serve, Served
from actormq.actors.dispatcher import Dispatcher, Mend
from actormq.actors.gateway import GatewayActor
from actormq.actors.holder import HolderActor
from actormq.actors.mailbox import Sender
from actormq.actors.runtime import RoleContext
from actormq.actors.writer import Writer, store_host
from actormq.broker.delay import DelayLevels
from actormq.broker.tables import (
    BrokerEntry,
    ConsumerGroupOnline,
    Entry,
    GroupEntry,
    SubscriptionEntry,
    TopicEntry,
    encode_entry,
)
from actormq.clock import SystemClock
from actormq.config import BrokerConfig, FlushMode, GatewayConfig
from actormq.shm.positions import SLOT_OF, Position, RoleCell, RoleState, slot_of
from actormq.shm.ring import RingProducer
from actormq.shm.tables import TablesReader
from actormq.store import record
from actormq.store.disk import RealDisk
from actormq.wire import frame
from actormq.wire.command import RemotingCommand, Serialize
from actormq.wire.frame import FrameCutter
from actormq.wire.headers import SendHeader, encode_send_v2

DEADLINE_S = 60
SENDER = Sender("coordinator", 1)


class Coordinator:
    """What the gateway's FIFO leads to."""

    def __init__(self) -> None:
        self.heard: list[msgspec.Struct] = []
        self.on_message: Callable[[msgspec.Struct], None] = lambda message: None
        self.full = False

    def tell(self, message: msgspec.Struct) -> bool:
        if self.full:
            return False
        self.heard.append(message)
        self.on_message(message)
        return True

    def of(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.heard if isinstance(message, kind)]


class DispatcherRef:
    """Leads to the rig's dispatcher."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    def tell(self, message: Any) -> bool:
        assert isinstance(message, Mend)
        self.rig.dispatcher.mend(message.log_offset)
        return True


class TestClock(SystemClock):
    """Real time, which a test may move forward."""

    __test__ = False

    def __init__(self) -> None:
        self.ahead_ns = 0

    def monotonic_ns(self) -> int:
        return time.monotonic_ns() + self.ahead_ns


class TcpPeer:
    """A client's end of a TCP connection."""

    def __init__(self, rig: Rig, front: str = "tcp") -> None:
        self.rig = rig
        self.sock = socket.create_connection(rig.listeners[front].getsockname())
        self.sock.setblocking(False)
        self.cutter = FrameCutter()
        self.got: list[RemotingCommand] = []
        self.ended = False

    def tell(self, command: RemotingCommand) -> None:
        self.write(frame.encode(command))

    def write(self, data: bytes) -> None:
        view = memoryview(data)

        def pushed() -> bool:
            nonlocal view
            with contextlib.suppress(BlockingIOError):
                view = view[self.sock.send(view) :]
            return not view

        self.rig.turn(pushed)

    def poll(self) -> None:
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.ended = True
        self.got += [frame.decode(one) for one in self.cutter.feed(data)]

    def close(self) -> None:
        self.sock.close()

    def answer_to(self, command: RemotingCommand) -> RemotingCommand:
        """Wait for the answer to `command`."""

        def found() -> list[RemotingCommand]:
            self.poll()
            return [one for one in self.got if one.is_response and one.opaque == command.opaque]

        answers: list[RemotingCommand] = self.rig.turn(found)
        return answers[0]

    def ask(self, command: RemotingCommand) -> RemotingCommand:
        self.tell(command)
        return self.answer_to(command)


class ZmqPeer(TcpPeer):
    """A native client."""

    def __init__(self, rig: Rig, identity: bytes) -> None:
        self.rig = rig
        self.got = []
        self.ended = False
        self.dealer = rig.peers.socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.ROUTING_ID, identity)
        self.dealer.setsockopt(zmq.LINGER, 0)
        self.losses = self.dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.dealer.connect("tcp://{}:{}".format(*rig.listeners["zmq"].getsockname()[:2]))

    def tell(self, command: RemotingCommand) -> None:
        head = frame.encode_head(command)[4:]
        self.dealer.send_multipart([head, command.body] if len(command.body) else [head])

    def poll(self) -> None:
        with contextlib.suppress(zmq.Again):
            head, *body = self.dealer.recv_multipart(zmq.DONTWAIT)
            self.got.append(frame.decode_parts(head, b"".join(body)))

    def has_lost_connection(self) -> bool:
        """Whether its connection ended since the last call: what is sent until it knows may be lost."""
        return bool(self.losses.poll(0)) and bool(self.losses.recv_multipart())

    def close(self) -> None:
        self.dealer.disable_monitor()
        self.losses.close(0)
        self.dealer.close(0)


class Rig:
    """One gateway and its surroundings, turned by hand."""

    def __init__(
        self,
        root: Path,
        *,
        flush: FlushMode = FlushMode.ASYNC,
        ring_bytes: int = 1 << 18,
        gateway: GatewayConfig | None = None,
        fronts: Iterable[str] = ("tcp", "vip", "zmq"),
    ) -> None:
        self.memory = Memory(root)
        self.memory.config = replace(self.memory.config, flush=flush)
        self.positions = self.memory.positions
        self.clock = TestClock()
        self.peers: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in fronts}
        port = self.listeners["tcp"].getsockname()[1]
        self.config = BrokerConfig(
            store=self.memory.config, gateway=replace(gateway or GatewayConfig(), port=port)
        )
        self.coordinator = Coordinator()
        self.ring_bytes = ring_bytes
        self.bells = {name: SilentDoorbell() for name in [*SLOT_OF, "gateway-0"]}
        self.running = {"writer": True, "dispatcher": True, "flusher": True}
        self.host = store_host("127.0.0.1", port)
        self.set_coordinator(1)
        self.publish(BrokerEntry())
        self.writer = Writer(
            self.memory.config,
            RealDisk(),
            self.positions,
            self.memory.extents_view,
            self.memory.intent,
            self.host,
        )
        self.writer.recover()
        for base in (0, self.memory.config.log_file_bytes):
            self.memory.log_files().create(base)
        levels = DelayLevels(self.config.coordinator.delay_levels)
        self.dispatcher = Dispatcher(
            self.memory.config,
            RealDisk(),
            self.positions,
            self.memory.extents,
            TablesReader(self.memory.tables_view, self.positions, slot_of("dispatcher")),
            list(levels.delays_ms),
        )
        self.gateways: list[GatewayActor] = []
        self.start_holder()
        self.gateway = self.start_gateway(1)

    # -- roles

    def segments(self) -> Any:
        return {
            "tables": SimpleNamespace(view=self.memory.tables_view),
            "extents": SimpleNamespace(view=self.memory.extents_view),
        }

    def start_gateway(self, incarnation: int) -> GatewayActor:
        context = RoleContext(
            role="gateway-0",
            slot=slot_of("gateway-0"),
            incarnation=incarnation,
            config=self.config,
            positions=self.positions,
            doorbells=self.bells,  # type: ignore[arg-type]
            segments=self.segments(),
            run_dir=self.memory.root,
            listeners={name: listener.fileno() for name, listener in self.listeners.items()},
            clock=self.clock,
            log=logging.getLogger("gateway"),
            refs={"coordinator": self.coordinator, "dispatcher": DispatcherRef(self)},  # type: ignore[dict-item]
        )
        self.gateway = GatewayActor(context)
        self.gateways.append(self.gateway)
        self.append_port = MemoryPort(self.ring_bytes)
        self.park_port = MemoryPort(1 << 12, 1 << 12)
        self.gateway.ports = {"append": self.append_port, "park": self.park_port}  # type: ignore[dict-item]
        self.writer.open_port(context.slot, incarnation, self.append_port)  # type: ignore[arg-type]
        self.holder.on_port_opened("park", "gateway-0", incarnation, self.park_port)  # type: ignore[arg-type]
        self.gateway.on_start()
        return self.gateway

    def start_holder(self) -> None:
        self.arrived_port = MemoryPort(1 << 12, 1 << 12)
        self.arrived = RingProducer(self.arrived_port.requests)
        context: Any = SimpleNamespace(
            role="holder",
            slot=slot_of("holder"),
            config=None,
            positions=self.positions,
            doorbells=self.bells,
            segments=self.segments(),
            clock=self.clock,
            log=None,
        )
        self.holder = HolderActor(context)
        self.holder.on_port_opened("arrived", "dispatcher", 1, self.arrived_port)  # type: ignore[arg-type]

    def replace_holder(self) -> None:
        self.start_holder()
        self.holder.on_port_opened("park", "gateway-0", 1, self.park_port)  # type: ignore[arg-type]
        self.gateway.on_role_changed("holder", 2)

    def set_coordinator(self, incarnation: int) -> None:
        slot = slot_of("coordinator")
        self.positions.set_role(slot, RoleCell.INCARNATION, incarnation)
        state = RoleState.RUNNING if incarnation else RoleState.ABSENT
        self.positions.set_role(slot, RoleCell.STATE, state)

    # -- tables

    def publish(self, *entries: Entry) -> None:
        self.memory.publisher.publish(*map(encode_entry, entries))

    def add_topic(self, name: str, queues: int = 1, **changes: Any) -> TopicEntry:
        extents = self.memory.extents
        rows = [row for row in range(extents.rows_max) if extents.read(row).incarnation == 0][:queues]
        for row in rows:
            extents.open_row(row, row + 1, 0, 0)
        entry = TopicEntry(
            name, 6, queues, queues, 0, False, "SINGLE_TAG", {}, rows, [row + 1 for row in rows]
        )
        entry = msgspec.structs.replace(entry, **changes)
        self.publish(entry)
        return entry

    def add_group(self, group: str, topic: str, tag_codes: Iterable[int] = (), **changes: Any) -> None:
        """An online group that is subscribed to `topic`."""
        self.publish(
            GroupEntry(group, **changes),
            ConsumerGroupOnline(group),
            SubscriptionEntry(group, topic, "CLUSTERING", "TAG", "*", list(tag_codes), 1),
        )

    # -- time

    def step(self) -> None:
        """One turn of every role."""
        self.gateway._run_calls()
        self.gateway.on_batch()
        now_ns = self.clock.monotonic_ns()
        due_ns = self.gateway.wake_at_ns()
        if due_ns is not None and due_ns <= now_ns:
            self.gateway.on_tick(now_ns)
        self.gateway.loop.run_once(time.monotonic_ns() + 1_000_000)
        self.gateway.on_batch()
        if self.running["writer"]:
            self.writer.run(self.clock.wall_ms(), now_ns)
        if self.running["flusher"]:
            self.positions.set(Position.FLUSHED, self.positions.get(Position.APPENDED))
        if self.running["dispatcher"]:
            grown = self.dispatcher.run(self.clock.wall_ms(), now_ns)
            if grown:
                self.arrived.try_push(struct.pack(f"<{len(grown)}I", *grown))
        self.holder.on_batch()

    def turn(self, condition: Callable[[], Any]) -> Any:
        """Run everything until `condition` is true; return what it returned."""
        deadline = time.monotonic() + DEADLINE_S
        while not (result := condition()):
            assert time.monotonic() < deadline, "the condition did not come"
            self.step()
        return result

    def pass_until(self, seconds: float) -> None:
        """Move the clock to `seconds` ahead, in steps so small that nobody seems to stand still."""
        while self.clock.ahead_ns < seconds * 1e9:
            self.clock.ahead_ns = min(self.clock.ahead_ns + 2_000_000_000, int(seconds * 1e9))
            self.step()

    def settle(self, turns: int = 5) -> None:
        """A few turns: enough for all that is under way in this thread."""
        for _ in range(turns):
            self.step()

    def close(self) -> None:
        for gateway in self.gateways:
            for server in gateway._servers:
                server.close()
            if gateway._router is not None:
                gateway._router.close()
        for listener in self.listeners.values():
            listener.close()
        self.peers.destroy(0)

    # -- the coordinator's side

    def serve_with(self, answer: Callable[[Serve, RemotingCommand], RemotingCommand | None]) -> None:
        """Answer every Serve as a coordinator would, a turn later."""

        def on_message(message: msgspec.Struct) -> None:
            if isinstance(message, Serve) and not message.replay:
                request = frame.decode(message.command)
                reply = answer(message, request)
                encoded = None if reply is None else frame.encode(reply)[4:]
                self.gateway.call_soon(
                    lambda: self.gateway.on_message(Served(message.request_id, encoded), SENDER)
                )
                self.gateway._run_calls()

        self.coordinator.on_message = on_message

    def answer_need(self, need: NeedTopic | NeedGroup, code: int = 0, remark: str | None = None) -> None:
        self.gateway.on_message(Needed(need.request_id, code, remark), SENDER)


def send_request(
    topic: str = "t",
    body: bytes = b"body",
    properties: str = "",
    *,
    code: int = 310,
    queue_id: int = 0,
    serialize: Serialize = Serialize.JSON,
    oneway: bool = False,
    version: int = 479,
    **changes: Any,
) -> RemotingCommand:
    """Return a send as the Java client makes it."""
    header = SendHeader(
        producer_group="p",
        topic=topic,
        default_topic="TBW102",
        default_topic_queues=4,
        queue_id=queue_id,
        sys_flag=0,
        born_timestamp_ms=1_700_000_000_000,
        flag=0,
        properties=properties,
        reconsume_times=0,
        unit_mode=False,
        max_reconsume_times=None,
        batch=code == 320,
    )
    request = RemotingCommand.request(code, encode_send_v2(replace(header, **changes)), body, oneway)
    request.serialize = serialize
    request.version = version
    return request


def pull_request(
    topic: str = "t",
    group: str = "g",
    queue_offset: int = 0,
    *,
    queue_id: int = 0,
    messages: int = 32,
    flags: int = 2,
    suspend_ms: int = 15_000,
    commit_offset: int = 0,
    **more: str,
) -> RemotingCommand:
    """Return a pull as the Java client makes it."""
    fields = {
        "consumerGroup": group,
        "topic": topic,
        "queueId": str(queue_id),
        "queueOffset": str(queue_offset),
        "maxMsgNums": str(messages),
        "sysFlag": str(flags),
        "commitOffset": str(commit_offset),
        "suspendTimeoutMillis": str(suspend_ms),
        "subVersion": "1",
        "expressionType": "TAG",
    }
    return RemotingCommand.request(11, {**fields, **more})


def records_of(body: bytes | memoryview) -> list[record.Record]:
    found = []
    view, at = memoryview(body), 0
    while at < len(view):
        one = record.decode(view, at, check_crc=True)
        found.append(one)
        at += one.size
    return found
