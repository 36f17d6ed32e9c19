"""What a role runs in: pykka actors whose loop is the main thread of a process of their own.

A role's class derives from `ProcessActor`; `entry` starts it in a forkserver's child.
Order: ``__init__``, ``on_port_opened`` for every port that is there, ``on_start``, then turns of
``on_batch``, messages, ``on_tick``; at the end ``on_stop``, and turns until ``drained``.

There is no catch-all: an unknown error is this process's death, with a traceback in the log and exit
status 70.  End of file on the control line means that the supervisor is gone: exit at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec
import pykka

from actormq.actors import control
from actormq.actors.context import Letters, PositionsDirectory, Ref, RoleContext
from actormq.actors.loop import READ, WRITE, Loop
from actormq.actors.mailbox import ProcessFuture, Sender
from actormq.errors import ActorMQError, PeerError
from actormq.shm.doorbell import ALWAYS_RINGS
from actormq.shm.positions import Positions, RoleCell, RoleState
from actormq.shm.ring import Port
from actormq.shm.segment import Segment

if TYPE_CHECKING:
    from pykka._envelope import Envelope

__all__ = [
    "DEFERRED",
    "LOCAL",
    "PositionsDirectory",
    "ProcessActor",
    "ProcessInbox",
    "Ref",
    "RoleContext",
    "Sender",
    "ThreadedRole",
]

_LOOK_AGAIN_NS: Final = 1_000_000


class _Deferred:
    """The type of `DEFERRED`."""


DEFERRED: Final = _Deferred()
"""Returned by `on_message`: the answer comes later, by `reply` or `refuse`."""

LOCAL: Final = Sender("", 0)
"""The sender of what came from inside this process."""


class ProcessInbox:
    """pykka's inbox for what comes from inside this process; letters from others are the mailbox's."""

    def __init__(self) -> None:
        self.envelopes: deque[Envelope[Any]] = deque()
        self.on_put: Callable[[], None] = lambda: None

    def put(self, envelope: Envelope[Any], /) -> None:
        self.envelopes.append(envelope)
        self.on_put()

    def get(self) -> Envelope[Any]:
        return self.envelopes.popleft()

    def empty(self) -> bool:
        return not self.envelopes


class Busy:
    """The time in which a role waits for the disk; what ends by an error leaves the state as it was then."""

    __slots__ = ("_positions", "_since_ns", "_slot", "_state")

    def __init__(self, positions: Positions, slot: int, state: RoleState, since_ns: int) -> None:
        self._positions = positions
        self._slot = slot
        self._state: int = state
        self._since_ns = since_ns

    def __enter__(self) -> None:
        positions, slot = self._positions, self._slot
        before = positions.role(slot, RoleCell.STATE)
        positions.set_role(slot, RoleCell.BUSY_SINCE_NS, self._since_ns)
        positions.set_role(slot, RoleCell.STATE, self._state)
        self._state = before

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._positions.set_role(self._slot, RoleCell.STATE, self._state)
            self._positions.set_role(self._slot, RoleCell.BUSY_SINCE_NS, 0)


class ProcessActor(pykka.Actor):
    """A role.  Everything here runs in the main thread of the role's process.

    Attributes:
        messages: the struct types that others may send.
        writes_store: holds the shared lock on the store's folder for its whole life.
        ports: client sides of this incarnation's ports, by kind.
        loop: for the role's own descriptors, ZeroMQ sockets and timers.
    """

    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = ()
    writes_store: ClassVar[bool] = False

    def __init__(self, context: RoleContext) -> None:
        super().__init__()
        self.context = context
        self.config = context.config
        self.positions = context.positions
        self.log = context.log
        self.ports: dict[str, Port] = {}
        self.loop = Loop(context.clock.monotonic_ns)
        self._calls: deque[Callable[[], None]] = deque()
        self._now_ns = context.clock.monotonic_ns
        assert isinstance(self.actor_inbox, ProcessInbox)
        self._envelopes = self.actor_inbox.envelopes
        self._beat_due_ns = 0
        self._due_ns = 0
        """Before this `on_tick` and time-outs have no work; 0: not known."""
        self._rung = False
        self._look_again = True
        self._stopping = False
        self._stop_asked = False
        self._over = False

    # -- what a role overrides

    def on_start(self) -> None:
        """Begin; every port is there.  Serving starts when this returns."""

    def on_batch(self) -> bool:
        """Drain every ring; True when something was done: it is called again before the role sleeps."""
        return False

    def has_news(self) -> bool:
        """Look at shared memory before sleeping; True when `on_batch` would find work, or has found it."""
        return self.on_batch()

    def rest_ns(self) -> int:
        """How long to look away after this turn, 0 for not at all; asked once after each turn.

        For a role under load: it finds more at once afterwards, and nobody has to wake it meanwhile.
        """
        return 0

    def on_message(self, message: Any, sender: Sender) -> Any:
        """Handle a message of `messages`; the value answers an ask (`DEFERRED`: later, by `reply`).

        Raises:
            PeerError: the message cannot be served; who asked gets a RequestError, who told nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} accepts messages but does not handle them")

    def wake_at_ns(self) -> int | None:
        """When `on_tick` next has work (monotonic clock), None for never."""
        return None

    def on_tick(self, now_ns: int) -> None:
        """`wake_at_ns` has come."""

    def on_port_opened(self, kind: str, client: str, incarnation: int, port: Port) -> None:
        """We serve a new port: take its requests from now on."""

    def on_port_closed(self, kind: str, client: str, incarnation: int) -> None:
        """That client is dead: drain what it had completed, then forget the port."""

    def on_role_changed(self, role: str, incarnation: int) -> None:
        """Another role is gone (0), or runs again as `incarnation`."""

    def on_stop(self) -> None:
        """Finish: take nothing new.  Turns go on until `drained`."""

    def drained(self) -> bool:
        """Whether all that was begun before `on_stop` is finished."""
        return True

    # -- what a role uses

    def reply(self, sender: Sender, value: Any) -> None:
        """Answer a question that `on_message` deferred."""
        if self.context.mailbox is not None:
            self.context.mailbox.reply(sender, value)

    def refuse(self, sender: Sender, error: ActorMQError) -> None:
        """Answer a deferred question with an error."""
        if self.context.mailbox is not None:
            self.context.mailbox.refuse(sender, error)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run `call` in the loop's thread at its next turn; may be called from any thread of this process."""
        self._calls.append(call)
        self.context.doorbell.ring()

    def wish(self, cell: RoleCell, value: int) -> bool:
        """Write into `cell` what this role waits for, 0 = nothing; True when it is a new wish."""
        if self.positions.role(self.context.slot, cell) == value:
            return False
        self.positions.set_role(self.context.slot, cell, value)
        return value != 0

    def busy(self, state: RoleState) -> Busy:
        """Say that this role is inside a write or sync, so that silence is reported as a slow disk."""
        return Busy(self.positions, self.context.slot, state, self._now_ns())

    # -- pykka's extension points

    @staticmethod
    def _create_actor_inbox() -> ProcessInbox:
        return ProcessInbox()

    @staticmethod
    def _create_future() -> ProcessFuture:
        return ProcessFuture()

    def _start_actor_loop(self) -> None:
        """Run here and now: the process is ours alone, and this is its main thread."""
        self._actor_loop()

    def _actor_loop_setup(self) -> None:
        assert isinstance(self.actor_inbox, ProcessInbox)
        self.actor_inbox.on_put = self.context.doorbell.ring
        self.loop.watch(self.context.doorbell.fd, READ, self._on_rung)
        mailbox = self.context.mailbox
        if mailbox is not None:
            self.loop.watch_zmq(mailbox.socket, self._read_mailbox)
            mailbox.on_used = lambda: self.loop.used(mailbox.socket)
        if self.context.line is not None:
            self.loop.watch(self.context.line.fileno(), READ, self._on_control)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the supervisor orders the end
            signal.signal(signal.SIGTERM, lambda number, frame: self._ask_to_stop())
        self._apply(self.context.letters_before)
        self.on_start()
        self._set_state(RoleState.RUNNING)
        self._send_up(control.Running())
        self._apply(self.context.letters_after)
        if self.context.one_shot:
            self.stop()

    def _actor_loop_running(self) -> None:
        doorbell, loop = self.context.doorbell, self.loop
        while not self._over:
            go_on = self._turn()
            rest_ns = self.rest_ns()
            if rest_ns:
                time.sleep(rest_ns / 1e9)
            if go_on or rest_ns:
                self._look_again = True
                self._due_ns = 0
                loop.wait(0)
                continue
            doorbell.prepare_sleep()
            # What a turn sends at its end may have changed a ZeroMQ socket that it had looked at before.
            if self.has_news() or self._calls or (loop.zmq_stale and loop.dispatch_zmq()):
                self._due_ns = 0
                loop.wait(0)
            else:
                loop.wait(self._sleep_until_ns())
            doorbell.woke(self._rung)
            self._rung = False

    def _actor_loop_teardown(self) -> None:
        super()._actor_loop_teardown()
        self._set_state(RoleState.STOPPED)

    def _stop(self) -> None:
        self._begin_stop()

    def on_receive(self, message: Any) -> Any:
        return self.on_message(message, LOCAL)

    def _on_rung(self, _events: int) -> None:
        self._rung = True

    # -- one turn

    def _turn(self) -> bool:
        """Do all that is there to do; True when another turn must come before the role may sleep.

        What is in the rings and in ZeroMQ's sockets needs none: they are looked at last of all.
        """
        now_ns = self._now_ns()
        if now_ns >= self._beat_due_ns:
            self._beat(now_ns)
        loop, mailbox = self.loop, self.context.mailbox
        # ZeroMQ first, so that the same turn hands on what has come.
        worked = loop.zmq_stale and loop.dispatch_zmq()
        if self.on_batch() or worked:
            self._look_again = True
            worked = True
        busy = worked and self._stopping
        # Most turns have nothing else: each of these is asked before it is called.
        if self._calls:
            busy |= self._run_calls()
        if self._envelopes:
            busy |= self._read_inbox()
        # Nothing is due before the last sleep was to end; what this turn has done counts from the next one.
        ticked = now_ns >= self._due_ns and self._tick(now_ns)
        if now_ns >= loop.timer_ns:
            busy |= loop.dispatch_timers()
        if mailbox is not None and mailbox.kept:
            busy |= self._read_kept()
        if self._stop_asked:
            self._stop_asked = False
            self._hand_on_stop()
        # A tick leaves nothing that `drained` does not know of, and one that stays due must not keep us here.
        if self._stopping and not busy and not self._calls and self.drained():
            self._over = True
            self.actor_stopped.set()
            return True
        return busy or ticked

    def _beat(self, now_ns: int) -> None:
        self._beat_due_ns = now_ns + self.config.supervisor.heartbeat_interval_ms * 1_000_000
        self.positions.set_role(self.context.slot, RoleCell.HEARTBEAT_NS, now_ns)

    def _run_calls(self) -> bool:
        ran = bool(self._calls)
        while self._calls:
            self._calls.popleft()()
        return ran

    def _read_mailbox(self, _events: int = 0) -> None:
        mailbox = self.context.mailbox
        assert mailbox is not None
        for letter in mailbox.receive():
            self._handle(letter.message, letter.sender)

    def _read_kept(self) -> bool:
        """Messages that came while a blocking ask waited."""
        self._read_mailbox()
        assert self.context.mailbox is not None
        self.context.mailbox.on_used()
        return True

    def _handle(self, message: Any, sender: Sender) -> None:
        try:
            value = self.on_message(message, sender)
        except PeerError as error:
            self.refuse(sender, error)
            return
        if value is not DEFERRED:
            self.reply(sender, value)

    def _read_inbox(self) -> bool:
        ran = bool(self._envelopes)
        while self._envelopes:
            envelope = self._envelopes.popleft()
            value = self._handle_receive(envelope.message)
            if envelope.reply_to is not None:
                envelope.reply_to.set(value)
        return ran

    def _tick(self, now_ns: int) -> bool:
        mailbox = self.context.mailbox
        if mailbox is not None and mailbox.asked:
            mailbox.expire(now_ns)
        due_ns = self.wake_at_ns()
        if due_ns is None or due_ns > now_ns:
            return False
        self.on_tick(now_ns)
        return True

    def _sleep_until_ns(self) -> int:
        until_ns = self._beat_due_ns
        due_ns = self.wake_at_ns()
        if due_ns is not None and due_ns < until_ns:
            until_ns = due_ns
        mailbox = self.context.mailbox
        if mailbox is not None and mailbox.asked:
            deadline_ns = mailbox.next_deadline_ns()
            until_ns = min(until_ns, deadline_ns) if deadline_ns is not None else until_ns
        self._due_ns = until_ns
        if ALWAYS_RINGS and self._look_again:
            # Without fences somebody may have published without seeing our wish, and we without seeing
            # that.  A moment later both are visible: one more look, then sleep as long as there is nothing.
            self._look_again = False
            until_ns = min(until_ns, self.context.clock.monotonic_ns() + _LOOK_AGAIN_NS)
        return until_ns

    # -- the supervisor

    def _on_control(self, _events: int) -> None:
        line = self.context.line
        assert line is not None
        line.flush()
        self._apply(line.receive())
        if line.ended:
            os._exit(0)  # the supervisor is gone: touch nothing more
        self._watch_line()

    def _watch_line(self) -> None:
        line = self.context.line
        if line is not None:
            self.loop.watch(line.fileno(), READ | WRITE if line.unsent else READ, self._on_control)

    def _apply(self, letters: Letters) -> None:
        for message, descriptors in letters:
            self._apply_one(message, descriptors)

    def _apply_one(self, message: control.ToRole, descriptors: list[int]) -> None:
        match message:
            case control.PortOpened():
                self._open_port(message, descriptors[0])
            case control.PortClosed():
                self.on_port_closed(message.kind, message.client, message.incarnation)
            case control.RoleChanged():
                if self.context.mailbox is not None:
                    self.context.mailbox.role_changed(message.role, message.incarnation)
                self.on_role_changed(message.role, message.incarnation)
            case control.Stop():
                self._begin_stop()
            case _:
                raise AssertionError(f"{message} comes only before the start")

    def _open_port(self, opened: control.PortOpened, descriptor: int) -> None:
        port = Port(Segment.attach(descriptor))
        if opened.client == self.context.role:
            self.ports[opened.kind] = port
        else:
            self.on_port_opened(opened.kind, opened.client, opened.incarnation, port)

    def _hand_on_stop(self) -> None:
        """SIGTERM may have gone to the whole broker (systemd does): the supervisor knows the order."""
        if self.context.line is None:
            self._begin_stop()
        else:
            self._send_up(control.StopAsked())

    def _begin_stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._set_state(RoleState.STOPPING)
            self.on_stop()

    def _ask_to_stop(self) -> None:
        """Ask at the next turn; for a signal handler."""
        self._stop_asked = True
        self.context.doorbell.ring()

    def _set_state(self, state: RoleState) -> None:
        self.positions.set_role(self.context.slot, RoleCell.STATE, state)

    def _send_up(self, message: control.FromRole) -> None:
        if self.context.line is not None:
            self.context.line.send(message)
            self._watch_line()


class ThreadedRole(pykka.ThreadingActor):
    """The same role class in a thread of a test: messages by pykka's own inbox, no process, no ZeroMQ.

    `on_batch` runs until it has nothing more to do, after the start and after every message.
    """

    def __init__(self, role_class: type[ProcessActor], context: RoleContext) -> None:
        super().__init__()
        self.role = role_class(context)

    def on_start(self) -> None:
        self.role.on_start()
        self._drain()

    def on_receive(self, message: Any) -> Any:
        value = self.role.on_message(message, LOCAL)
        self._drain()
        return value

    def on_stop(self) -> None:
        self.role.on_stop()
        self._drain()

    def _drain(self) -> None:
        while self.role.on_batch():
            pass
