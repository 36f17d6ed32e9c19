"""One connection to one address: what RocketMQ TCP and ZeroMQ links have in common.

Non-blocking; the client's loop watches it.  A link is used once: when it breaks, everything that waits on it
fails, and the next request opens another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from actormq.client.procedures import Address, JsonFrame
from actormq.client.tasks import Answer, FrameAnswer, Loop, Timer
from actormq.clock import Clock
from actormq.errors import ActorMQError, ConnectFailed, ConnectionLost, WindowFull
from actormq.wire import frame
from actormq.wire.command import FLAG_RESPONSE, RemotingCommand, Serialize

_JSON: Final = bytes([Serialize.JSON])
READS_PER_TURN: Final = 16
"""So that one busy connection does not keep the others waiting."""


class Owner(Protocol):
    """What a link tells its network; loop thread only."""

    def on_open(self, link: Link) -> None: ...

    def on_request(self, link: Link, command: RemotingCommand) -> None: ...

    def on_closed(self, link: Link, error: ActorMQError) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkContext:
    """What every link needs."""

    loop: Loop
    owner: Owner
    clock: Clock
    connect_timeout_ms: int
    frame_bytes_max: int
    outgoing_bytes_max: int
    identity: Callable[[], bytes]
    """Makes a new ZeroMQ identity: the client's id and a number of this connection."""


class Link:
    """What both kinds have in common: who waits for which answer."""

    def __init__(self, address: Address, context: LinkContext) -> None:
        self.address = address
        self._context = context
        self._waiting: dict[int, tuple[Callable[[Any], None], int, bool]] = {}
        self._framed: set[int] = set()
        """Which of them asked by a frame."""
        self._lock = threading.Lock()
        self._broken: ActorMQError | None = None
        self._last_read_ns = 0
        self._connect_timer: Timer | None = None
        self.is_open = False

    # -- any thread

    def ask(self, command: RemotingCommand, on_answer: Callable[[Answer], None]) -> None:
        """Send a request; `on_answer` is called in the loop's thread, never before this returns."""
        with self._lock:
            refusal = self._broken or self._overfull()
            if refusal is None:
                self._waiting[command.opaque] = (on_answer, self._context.clock.monotonic_ns(), False)
        if refusal is not None:
            error = refusal
            self._context.loop.call_soon(lambda: on_answer(error))
            return
        self.send(command)

    def ask_frame(self, opaque: int, data: bytes, on_answer: Callable[[FrameAnswer], None]) -> None:
        """As `ask`, with a request's frame, which has no body, and `FrameAnswer`."""
        with self._lock:
            refusal = self._broken or self._overfull()
            if refusal is None:
                self._waiting[opaque] = (on_answer, self._context.clock.monotonic_ns(), False)
                self._framed.add(opaque)
        if refusal is not None:
            error = refusal
            self._context.loop.call_soon(lambda: on_answer(error))
            return
        self._send_frame(data)

    def _send_frame(self, data: bytes) -> None:
        raise NotImplementedError

    def post(self, opaque: int, head: bytes, body: memoryview, on_answer: Callable[[Answer], None]) -> bool:
        """Send a request whose bytes are made, if the link is open and takes more.

        Args:
            head: the frame up to its body, length prefix included.
            on_answer: called by whatever thread reads the answer, perhaps before this returns.
        """
        with self._lock:
            if not self.is_open or self._broken is not None or self._overfull() is not None:
                return False
            self._waiting[opaque] = (on_answer, self._context.clock.monotonic_ns(), True)
        self._send_parts(head, body)
        return True

    def _send_parts(self, head: bytes, body: memoryview) -> None:
        raise NotImplementedError

    def send(self, command: RemotingCommand) -> None:
        """Send a request or an answer; silently dropped when the link is broken."""
        raise NotImplementedError

    def _overfull(self) -> ActorMQError | None:
        if self._outgoing_bytes() <= self._context.outgoing_bytes_max:
            return None
        return WindowFull(
            f"more than {self._context.outgoing_bytes_max} bytes wait to be sent to {self.address}"
        )

    def _outgoing_bytes(self) -> int:
        raise NotImplementedError

    # -- loop thread

    def open(self) -> None:
        """Begin to connect."""
        raise NotImplementedError

    def give_up(self, opaque: int) -> None:
        """Stop waiting for an answer.  A link that has been silent since the request is taken for dead."""
        with self._lock:
            entry = self._waiting.pop(opaque, None)
            self._framed.discard(opaque)
        if entry is not None and self._last_read_ns < entry[1]:
            self.fail(ConnectionLost(f"{self.address} has not answered anything for too long"))

    def close(self) -> None:
        self.fail(ConnectionLost(f"the connection to {self.address} was closed by this client"))

    def fail(self, error: ActorMQError) -> None:
        """End the link; everything that waits on it is told `error`."""
        with self._lock:
            if self._broken is not None:
                return
            self._broken = error
            waiting, self._waiting = self._waiting, {}
        self._connected_in_time()
        self.is_open = False
        self._shut()
        self._context.owner.on_closed(self, error)
        for on_answer, _, _ in waiting.values():
            on_answer(error)

    def _fail_soon(self, error: ActorMQError) -> None:
        """As `fail`, from any thread or with the lock held."""
        self._context.loop.call_soon(lambda: self.fail(error))

    def _shut(self) -> None:
        raise NotImplementedError

    def _expect_connection(self) -> None:
        def late() -> None:
            self.fail(
                ConnectFailed(f"no connection to {self.address} within {self._context.connect_timeout_ms} ms")
            )

        self._connect_timer = self._context.loop.call_later(self._context.connect_timeout_ms, late)

    def _connected_in_time(self) -> None:
        if self._connect_timer is not None:
            self._connect_timer.cancel()
            self._connect_timer = None

    def _opened(self) -> None:
        self._connected_in_time()
        self.is_open = True
        self._last_read_ns = self._context.clock.monotonic_ns()
        self._context.owner.on_open(self)

    # -- whatever thread reads

    def _received(self, command: RemotingCommand) -> None:
        if not command.is_response:
            self._in_loop(lambda: self._context.owner.on_request(self, command))
            return
        with self._lock:
            entry = self._waiting.pop(command.opaque, None)
            self._framed.discard(command.opaque)
        if entry is not None:
            on_answer, _, anywhere = entry
            if anywhere:
                on_answer(command)
            else:
                self._in_loop(lambda: on_answer(command))

    def _received_parts(self, head: bytes, body: bytes | memoryview) -> None:
        """Take in a frame without its length, its body apart.

        Raises:
            FrameError: it is none.
        """
        if not self._framed or not self._answers_frame(head, body):
            self._received(frame.decode_parts(head, body))

    def _answers_frame(self, head: bytes, body: bytes | memoryview) -> bool:
        """Hand on an answer with a JSON header to who asked by a frame; False = it is something else."""
        if head[:1] != _JSON:
            return False
        try:
            header: Any = orjson.loads(head[4:])
            opaque, is_response = header["opaque"], header["flag"] & FLAG_RESPONSE
            entry = self._waiting.get(opaque) if is_response and opaque in self._framed else None
        except (ValueError, KeyError, TypeError):
            return False  # no standard JSON: the general decoder knows more
        if entry is None:
            return False
        with self._lock:
            entry = self._waiting.pop(opaque, None)
            self._framed.discard(opaque)
        if entry is not None:
            on_answer, answer = entry[0], JsonFrame(header, body)
            self._in_loop(lambda: on_answer(answer))
        return True

    def _in_loop(self, call: Callable[[], None]) -> None:
        """Call in the loop's thread: at once where this is it."""
        if self._context.loop.is_here():
            call()
        else:
            self._context.loop.call_soon(call)


def host_and_port(address: Address) -> tuple[str, int]:
    host, _, port = address.partition("://")[2].rpartition(":")
    return host.strip("[]"), int(port)
