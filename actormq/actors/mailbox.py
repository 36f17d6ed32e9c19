"""Mailboxes: typed messages between processes over ZeroMQ ipc, and futures for what was asked.

A mailbox is a PULL socket at ``<run dir>/<owner>``, where the owner of a role's is ``<role>.<incarnation>``:
a message for a dead incarnation reaches nobody.  Bodies are msgpack of msgspec structs; never pickle.
Control messages go this way; data uses rings.  A tell may be lost (the other side dies, or does not read
for 10,000 messages); an ask ends in an answer, `Timeout`, `ActorDeadError` or `MailboxFull`.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

import msgspec
import pykka
import zmq
from pykka import ActorDeadError, Timeout

from actormq.actors.rundir import IPC_PATH_BYTES_MAX
from actormq.errors import ActorMQError, PeerError, RequestError, ResponseCode

__all__ = [
    "ActorDeadError",
    "Asked",
    "Directory",
    "Mailbox",
    "MailboxFull",
    "ProcessFuture",
    "ProcessRef",
    "Sender",
    "Timeout",
    "mailbox_path",
]

MESSAGES_MAX: Final = 10_000
ASK_TIMEOUT_S: Final = 5.0
_RECONNECT_MS: Final = 10
_DEATH_CHECK_NS: Final = 100_000_000

_TELL: Final = 0
_ASK: Final = 1
_REPLY: Final = 2
_REFUSAL: Final = 3


class MailboxFull(ActorMQError):
    """The receiver has not read for so long that no more is kept for it."""

    response_code = ResponseCode.SYSTEM_BUSY
    retryable = True


class Sender(msgspec.Struct, frozen=True):
    """Who sent a message, and the number of the question (0: no answer is expected)."""

    role: str
    incarnation: int
    ask_id: int = 0

    @property
    def owner(self) -> str:
        return f"{self.role}.{self.incarnation}"


class Asked(msgspec.Struct, frozen=True):
    """A message as it came out of the mailbox."""

    message: msgspec.Struct
    sender: Sender


class _Envelope(msgspec.Struct, array_like=True):
    kind: int
    role: str
    incarnation: int
    ask_id: int
    type_name: str
    body: msgspec.Raw


class _Refusal(msgspec.Struct, array_like=True):
    response_code: int
    remark: str


class Directory(Protocol):
    """Who is alive; the positions page answers this for roles."""

    def incarnation_of(self, role: str) -> int:
        """The living incarnation of `role`, 0 when it is gone or was never started."""
        ...

    def pid_of(self, role: str) -> int:
        """The process of `role`, 0 when unknown."""
        ...


def mailbox_path(run_dir: Path, owner: str) -> str:
    """Return the ipc address of a mailbox.

    Raises:
        ValueError: the path is too long for a unix socket.
    """
    path = str(run_dir / owner)
    if len(os.fsencode(path)) >= IPC_PATH_BYTES_MAX:
        raise ValueError(f"{path} is too long for a socket: choose a shorter run folder")
    return f"ipc://{path}"


class ProcessFuture(pykka.Future[Any]):
    """The answer of a role in another process: `get` it, or have `on_done` called with this future."""

    def __init__(self, mailbox: Mailbox | None = None, role: str = "", incarnation: int = 0) -> None:
        super().__init__()
        self._mailbox = mailbox
        self.role = role
        self.incarnation = incarnation
        self.reply_type: Any = Any
        self.deadline_ns = 0
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[ProcessFuture], None]] = []

    @property
    def done(self) -> bool:
        return self._done

    @property
    def error(self) -> BaseException | None:
        """The exception that `get` would raise, once done."""
        return self._error

    def get(self, *, timeout: float | None = None) -> Any:
        """Return the answer, waiting for it: for a role inside its loop only where nothing else can be done.

        Args:
            timeout: seconds; None waits as long as the question itself lives (its own time-out).
        Raises:
            Timeout: no answer in time.
            ActorDeadError: the other process is gone.
            RequestError: it refused.
            MailboxFull: it has not read for long.
        """
        if self._get_hook is not None:
            return super().get(timeout=timeout)
        if not self._done:
            assert self._mailbox is not None, "nobody can answer this future"
            self._mailbox.wait_for(self, timeout)
        if self._error is not None:
            raise self._error
        return self._value

    def set(self, value: Any = None) -> None:
        self._finish(value, None)

    def set_exception(
        self,
        exc_info: tuple[type[BaseException] | None, BaseException | None, TracebackType | None] | None = None,
    ) -> None:
        error = (exc_info or sys.exc_info())[1]
        assert error is not None
        self._finish(None, error)

    def on_done(self, callback: Callable[[ProcessFuture], None]) -> None:
        """Call `callback(self)` once, in the loop's thread, when there is an answer or a failure."""
        if self._done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        assert not self._done, "a future is set once"
        self._done, self._value, self._error = True, value, error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


class Mailbox:
    """The inbox and the outgoing side of one owner; pykka's inbox protocol for letters from inside.

    Args:
        run_dir: the broker's private folder.
        role: whose it is; any other name for a caller that is no role.
        incarnation: which of them; a caller that is no role takes its pid.
        messages: the struct types that may come in.
        directory: who is alive.
    """

    def __init__(
        self,
        run_dir: Path,
        role: str,
        incarnation: int,
        messages: Iterable[type[msgspec.Struct]],
        directory: Directory,
    ) -> None:
        self._run_dir = run_dir
        self._role = role
        self._incarnation = incarnation
        self._directory = directory
        self._decoders = {kind.__name__: msgspec.msgpack.Decoder(kind) for kind in messages}
        self._encoder = msgspec.msgpack.Encoder()
        self._envelopes = msgspec.msgpack.Decoder(_Envelope)
        self.zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        """For the role's own sockets, too: one I/O thread a process; `close` closes them all."""
        self.socket: zmq.Socket[bytes] = self.zmq.socket(zmq.PULL)
        self.socket.set_hwm(MESSAGES_MAX)
        self.socket.bind(mailbox_path(run_dir, f"{role}.{incarnation}"))
        self._outgoing: dict[str, zmq.Socket[bytes]] = {}
        self.asked: dict[int, ProcessFuture] = {}
        """Questions that have no answer yet, by number."""
        self._ask_id = 0
        self.kept: deque[Asked] = deque()
        """Messages that came while an answer was waited for."""
        self.bad_letters = 0
        self.lifeline_fd = -1
        self.on_lifeline: Callable[[], None] = lambda: None
        self.on_used: Callable[[], None] = lambda: None
        """Called when the socket was received from outside of `receive`."""

    # -- sending

    def tell(self, role: str, message: msgspec.Struct) -> bool:
        """Send; False when the role is dead or its mailbox full, and the message is dropped."""
        incarnation = self._directory.incarnation_of(role)
        return incarnation != 0 and self._send(f"{role}.{incarnation}", _TELL, 0, message)

    def ask(
        self, role: str, message: msgspec.Struct, *, reply_type: Any = Any, timeout_s: float = ASK_TIMEOUT_S
    ) -> ProcessFuture:
        """Send a question; the future ends in an answer or a failure within `timeout_s` or a little more."""
        incarnation = self._directory.incarnation_of(role)
        future = ProcessFuture(self, role, incarnation)
        future.reply_type = reply_type
        future.deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        if incarnation == 0:
            future._finish(None, ActorDeadError(f"{role} is not running"))
            return future
        self._ask_id += 1
        if self._send(f"{role}.{incarnation}", _ASK, self._ask_id, message):
            self.asked[self._ask_id] = future
        else:
            future._finish(None, MailboxFull(f"{role} has not read its mailbox for {MESSAGES_MAX} messages"))
        return future

    def reply(self, sender: Sender, value: Any) -> bool:
        """Answer a question; does nothing for a tell."""
        return sender.ask_id != 0 and self._send(sender.owner, _REPLY, sender.ask_id, value)

    def refuse(self, sender: Sender, error: ActorMQError) -> bool:
        """Answer a question with a RequestError."""
        refusal = _Refusal(int(error.response_code), error.remark)
        return sender.ask_id != 0 and self._send(sender.owner, _REFUSAL, sender.ask_id, refusal)

    def _send(self, owner: str, kind: int, ask_id: int, value: Any) -> bool:
        body = msgspec.Raw(self._encoder.encode(value))
        envelope = _Envelope(kind, self._role, self._incarnation, ask_id, type(value).__name__, body)
        try:
            self._outgoing_to(owner).send(self._encoder.encode(envelope), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _outgoing_to(self, owner: str) -> zmq.Socket[bytes]:
        socket = self._outgoing.get(owner)
        if socket is None:
            socket = self.zmq.socket(zmq.PUSH)
            socket.set_hwm(MESSAGES_MAX)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
            socket.connect(mailbox_path(self._run_dir, owner))
            self._outgoing[owner] = socket
        return socket

    # -- receiving

    def receive(self, limit: int = 256) -> list[Asked]:
        """Return up to `limit` messages; answers go to their futures on the way."""
        taken: list[Asked] = []
        while self.kept and len(taken) < limit:
            taken.append(self.kept.popleft())
        while len(taken) < limit and (letter := self._take_letter()) is not None:
            if (asked := self._open(letter)) is not None:
                taken.append(asked)
        return taken

    def _take_letter(self) -> bytes | None:
        try:
            return self.socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def _open(self, letter: bytes) -> Asked | None:
        try:
            envelope = self._envelopes.decode(letter)
            if envelope.kind in (_REPLY, _REFUSAL):
                self._answered(envelope)
                return None
            decoder = self._decoders.get(envelope.type_name)
            if decoder is None:
                raise msgspec.DecodeError(f"no {envelope.type_name} is accepted here")
            message = decoder.decode(envelope.body)
        except msgspec.DecodeError:
            self.bad_letters += 1
            return None
        return Asked(message, Sender(envelope.role, envelope.incarnation, envelope.ask_id))

    def _answered(self, envelope: _Envelope) -> None:
        future = self.asked.pop(envelope.ask_id, None)
        if future is None:
            return  # it came after the time-out
        if envelope.kind == _REFUSAL:
            refusal = msgspec.msgpack.decode(envelope.body, type=_Refusal)
            future._finish(None, RequestError(refusal.response_code, refusal.remark))
            return
        try:
            future._finish(msgspec.msgpack.decode(envelope.body, type=future.reply_type), None)
        except msgspec.DecodeError as error:
            if future.done:  # raised by a callback, not by the decoding
                raise
            future._finish(None, PeerError(f"{future.role} answered what was not asked for: {error}"))

    # -- waiting and failing

    def wait_for(self, future: ProcessFuture, timeout_s: float | None) -> None:
        """Receive until `future` is done; other messages are kept for the next `receive`."""
        limit_ns = future.deadline_ns
        if timeout_s is not None:
            limit_ns = min(limit_ns, time.monotonic_ns() + int(timeout_s * 1e9))
        pidfd = _open_pidfd(self._directory.pid_of(future.role))
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        if pidfd >= 0:
            poller.register(pidfd, zmq.POLLIN)
        if self.lifeline_fd >= 0:
            poller.register(self.lifeline_fd, zmq.POLLERR)  # its end only: messages on it can wait
        try:
            while not future.done:
                self._wait_once(future, poller, pidfd, limit_ns)
        finally:
            self.on_used()
            if pidfd >= 0:
                os.close(pidfd)

    def _wait_once(self, future: ProcessFuture, poller: zmq.Poller, pidfd: int, limit_ns: int) -> None:
        left_ns = limit_ns - time.monotonic_ns()
        ready = dict(poller.poll(max(0, -(-min(left_ns, _DEATH_CHECK_NS) // 1_000_000))))
        if self.lifeline_fd in ready:
            self.on_lifeline()
        while not future.done and (letter := self._take_letter()) is not None:
            if (asked := self._open(letter)) is not None:
                self.kept.append(asked)
        if future.done:
            return
        if pidfd in ready or self._directory.incarnation_of(future.role) != future.incarnation:
            self._fail(future, ActorDeadError(f"{future.role} died before it answered"))
        elif left_ns <= 0 and limit_ns >= future.deadline_ns:
            self._fail(future, Timeout(f"{future.role} did not answer in time"))
        elif left_ns <= 0:
            raise Timeout(f"{future.role} has not answered yet")

    def _fail(self, future: ProcessFuture, error: BaseException) -> None:
        for ask_id, asked in list(self.asked.items()):
            if asked is future:
                del self.asked[ask_id]
        future._finish(None, error)

    def role_changed(self, role: str, incarnation: int) -> None:
        """Fail what was asked of other incarnations of `role`, and forget the way to them.

        The word may be late: who is alive now may have been written to already, and must not lose that.
        """
        incarnation = max(incarnation, self._directory.incarnation_of(role))
        prefix = f"{role}."
        current = f"{role}.{incarnation}"
        for owner in [owner for owner in self._outgoing if owner.startswith(prefix) and owner != current]:
            self._outgoing.pop(owner).close()
        for ask_id, future in list(self.asked.items()):
            if future.role == role and future.incarnation != incarnation:
                del self.asked[ask_id]
                future._finish(None, ActorDeadError(f"{role} died before it answered"))

    def next_deadline_ns(self) -> int | None:
        """When the next question times out."""
        return min((future.deadline_ns for future in self.asked.values()), default=None)

    def expire(self, now_ns: int) -> None:
        """End the questions whose time is over."""
        for ask_id, future in list(self.asked.items()):
            if future.deadline_ns <= now_ns:
                del self.asked[ask_id]
                future._finish(None, Timeout(f"{future.role} did not answer in time"))

    def close(self, linger_ms: int = 0) -> None:
        """Close every socket; what was sent has `linger_ms` to leave."""
        for socket in self._outgoing.values():
            socket.setsockopt(zmq.LINGER, linger_ms)
        self._outgoing.clear()
        self.socket.close(0)
        self.zmq.destroy()


def _open_pidfd(pid: int) -> int:
    """Return a descriptor that is readable once `pid` is gone; -1 where that cannot be had."""
    if pid == 0 or not hasattr(os, "pidfd_open"):
        return -1
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1  # reaped: the directory says so in a moment


class ProcessRef(pykka.ActorRef[Any]):
    """A role in another process: always its living incarnation.

    Unlike pykka's, `ask` does not block unless told to: the caller is usually a loop.
    """

    def __init__(self, mailbox: Mailbox, directory: Directory, role: str) -> None:
        self._mailbox = mailbox
        self._directory = directory
        self.role = role
        self.actor_urn = f"actormq:{role}"

    def __str__(self) -> str:
        return f"{self.role}.{self._directory.incarnation_of(self.role)}"

    @property
    def incarnation(self) -> int:
        """The living incarnation, 0 when it is gone."""
        return self._directory.incarnation_of(self.role)

    def is_alive(self) -> bool:
        return self.incarnation != 0

    def tell(self, message: msgspec.Struct) -> bool:  # type: ignore[override]
        """Send; False when it is dead or does not read, and the message is dropped."""
        return self._mailbox.tell(self.role, message)

    def ask(
        self,
        message: msgspec.Struct,
        *,
        block: bool = False,
        timeout: float | None = None,
        reply_type: Any = Any,
    ) -> Any:
        """Send a question.

        Args:
            message: one of the struct types that the role accepts.
            block: wait for the answer and return it, instead of the future.
            timeout: seconds until the question fails with `Timeout`; 5 by default.
            reply_type: what the answer is decoded as (a struct type; Any gives plain values).
        Returns:
            a `ProcessFuture`, or the answer when `block`.
        """
        timeout_s = ASK_TIMEOUT_S if timeout is None else timeout
        future = self._mailbox.ask(self.role, message, reply_type=reply_type, timeout_s=timeout_s)
        return future.get() if block else future
