"""Tiny roles for the process tests, and the messages that they understand."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

import msgspec

from actormq import faults
from actormq.actors.loop import READ
from actormq.actors.mailbox import ProcessFuture, Sender
from actormq.actors.runtime import DEFERRED, ProcessActor, RoleContext
from actormq.errors import ConfigError, RequestError
from actormq.shm.positions import Position, RoleState
from actormq.shm.ring import Port, RingConsumer, RingProducer

PATIENCE_S = 60.0
"""As long as the tests themselves wait for anything."""


class Say(msgspec.Struct):
    """Asks for the same text back, with who answers."""

    text: str


class Said(msgspec.Struct):
    text: str
    pid: int
    incarnation: int


class Keep(msgspec.Struct):
    """A question that is never answered."""


class Refuse(msgspec.Struct):
    """A question that is refused."""


class Die(msgspec.Struct):
    """Raises what nobody catches."""


class Leave(msgspec.Struct):
    """Exits at once with `status`."""

    status: int


class Forward(msgspec.Struct):
    """Says `text` to another role, inside the loop (`block`) or with a callback, and hands on its answer."""

    role: str
    text: str
    block: bool = False


class ForwardKeep(msgspec.Struct):
    """Asks another role what it never answers, and hands on which exception came of it."""

    role: str
    timeout_s: float


class Ring(msgspec.Struct):
    """Sends `text` through the port and hands on what comes back."""

    text: str


class History(msgspec.Struct):
    """Asks for what happened to the role so far."""


class FailStore(msgspec.Struct):
    """Says that the disk failed."""


class Advance(msgspec.Struct):
    """Sets a position."""

    position: int
    value: int


class Block(msgspec.Struct):
    """Sits in a sync until the test opens the gate."""


class Echo(ProcessActor):
    """Answers, and remembers what the runtime told it."""

    messages = (Say, Keep, Refuse, Die, Leave, Forward, ForwardKeep, Ring, History, FailStore, Advance, Block)

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self.history: list[str] = []

    def on_start(self) -> None:
        self.history.append("start")
        self.log.info("demo role starts")

    def on_port_opened(self, kind: str, client: str, incarnation: int, port: Port) -> None:
        self.history.append(f"opened {kind} {client} {incarnation}")

    def on_port_closed(self, kind: str, client: str, incarnation: int) -> None:
        self.history.append(f"closed {kind} {client} {incarnation}")

    def on_role_changed(self, role: str, incarnation: int) -> None:
        self.history.append(f"changed {role} {incarnation}")

    def on_stop(self) -> None:
        self.log.info("demo role stops")

    def on_message(self, message: Any, sender: Sender) -> Any:
        match message:
            case Say():
                faults.point("demo.say")
                return Said(message.text, os.getpid(), self.context.incarnation)
            case Keep():
                return DEFERRED
            case Refuse():
                raise RequestError(13, "not like this")
            case Die():
                raise ZeroDivisionError("a bug in the demo role")
            case Leave():
                os._exit(message.status)
            case Forward():
                return self.forward(message, sender)
            case ForwardKeep():
                asked: ProcessFuture = self.context.ref(message.role).ask(Keep(), timeout=message.timeout_s)
                asked.on_done(lambda done: self.reply(sender, type(done.error).__name__))
                return DEFERRED
            case Ring():
                return self.ring(message, sender)
            case History():
                return self.history
            case FailStore():
                self.context.store_failed("/log/00000 at offset 17: Input/output error")
            case Advance():
                self.positions.set(Position(message.position), message.value)
            case Block():
                with self.busy(RoleState.SYNCING):
                    wait_at_the_gate(self)
        return None

    def forward(self, message: Forward, sender: Sender) -> Any:
        ref = self.context.ref(message.role)
        if message.block:
            return ref.ask(Say(message.text), block=True, reply_type=Said, timeout=PATIENCE_S)
        future: ProcessFuture = ref.ask(Say(message.text), reply_type=Said, timeout=PATIENCE_S)
        future.on_done(lambda done: self.reply(sender, done.get()))
        return DEFERRED

    def ring(self, message: Ring, sender: Sender) -> Any:
        raise NotImplementedError


class PortClient(Echo):
    """Client of a port to the writer."""

    def on_start(self) -> None:
        super().on_start()
        port = self.ports["append"]
        self.requests = RingProducer(port.requests)
        self.completions = RingConsumer(port.completions)
        self.asked: list[Sender] = []

    def ring(self, message: Ring, sender: Sender) -> Any:
        assert self.requests.try_push(message.text.encode())
        self.context.doorbells["writer"].ring()
        self.asked.append(sender)
        return DEFERRED

    def on_batch(self) -> bool:
        answers = [bytes(view).decode() for view in self.completions.take()]
        self.completions.release()
        for answer in answers:
            self.reply(self.asked.pop(0), answer)
        return bool(answers)


class PortServer(Echo):
    """Answers in capitals whatever comes in through its ports."""

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self.served: dict[tuple[str, int], tuple[RingConsumer, RingProducer]] = {}

    def on_port_opened(self, kind: str, client: str, incarnation: int, port: Port) -> None:
        super().on_port_opened(kind, client, incarnation, port)
        self.served[client, incarnation] = (RingConsumer(port.requests), RingProducer(port.completions))

    def on_port_closed(self, kind: str, client: str, incarnation: int) -> None:
        super().on_port_closed(kind, client, incarnation)
        del self.served[client, incarnation]

    def on_batch(self) -> bool:
        busy = False
        for (client, _), (requests, completions) in self.served.items():
            texts = [bytes(view) for view in requests.take()]
            for text in texts:
                assert completions.try_push(text.upper())
            requests.release()
            if texts:
                self.context.doorbells[client].ring()
                busy = True
        return busy


class Ticker(Echo):
    """Remembers how late each of its five ticks came, one every 10 ms."""

    def on_start(self) -> None:
        super().on_start()
        self.due_ns: int | None = self.context.clock.monotonic_ns()
        self.ticks = 0

    def wake_at_ns(self) -> int | None:
        return self.due_ns

    def on_tick(self, now_ns: int) -> None:
        assert self.due_ns is not None
        assert now_ns >= self.due_ns, "early"
        self.ticks += 1
        self.history.append(f"tick {self.ticks}")
        self.due_ns = self.due_ns + 10_000_000 if self.ticks < 5 else None


class StoreWriter(Echo):
    """Holds the shared lock of the store's folder."""

    writes_store = True


class Flusher(StoreWriter):
    """Removes the mark that Recovery made when nothing is left to do."""

    def on_stop(self) -> None:
        super().on_stop()
        if self.positions.get(Position.DISPATCHED) == self.positions.get(Position.APPENDED):
            (self.config.store.root / "abort").unlink()


class Recovery(Echo):
    """A one-shot role that succeeds, and marks the store as in use."""

    def on_start(self) -> None:
        (self.config.store.root / "abort").touch()
        self.log.info("recovered")


class SlowRecovery(Echo):
    """A one-shot role that takes its time."""

    def on_start(self) -> None:
        self.log.info("recovering slowly")
        time.sleep(60)


def wait_at_the_gate(role: Echo) -> None:
    """Wait until the test writes a line into the FIFO that it named."""
    role.log.info("waits at the gate")
    with open(os.environ["DEMO_GATE"]) as gate:
        gate.readline()


class GatedRecovery(Recovery):
    """A one-shot role that takes as long as the test wants."""

    def on_start(self) -> None:
        wait_at_the_gate(self)
        super().on_start()


class GatedEcho(Echo):
    """Serves when the test wants."""

    def on_start(self) -> None:
        wait_at_the_gate(self)
        super().on_start()


class RefusedRecovery(Echo):
    """A one-shot role that refuses."""

    def on_start(self) -> None:
        raise ConfigError("this folder is not ours")


class BrokenAtStart(Echo):
    """Dies before it serves, always."""

    def on_start(self) -> None:
        raise ZeroDivisionError("broken from birth")


class Stubborn(Echo):
    """Never finishes."""

    def drained(self) -> bool:
        return False


class SlowServer(PortServer):
    """Takes long to start a second time: its clients may die meanwhile."""

    def on_start(self) -> None:
        super().on_start()
        if self.context.incarnation == 2:
            time.sleep(0.3)


class Greeter(Echo):
    """Accepts connections and tells each its pid."""

    def on_start(self) -> None:
        super().on_start()
        self.listener = socket.socket(fileno=self.context.listeners["tcp"])
        self.loop.watch(self.listener.fileno(), READ, self.accept)

    def accept(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self.listener.accept()
            with client:
                client.sendall(b"%d\n" % os.getpid())
