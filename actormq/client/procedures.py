"""What clients do, as coroutines that touch nothing: they await effects, somebody else carries them out.

A procedure is an ``async def`` that awaits only the effects below (and other procedures).  It belongs to no
event loop: `actormq.client.tasks` runs it on the client's own thread or on asyncio, `tasks.run_here` in the
calling thread, and a test answers each effect by hand.  Time passes only in the effects.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, NewType, TypeVar

from actormq.wire.command import RemotingCommand

Address = NewType("Address", str)
"""Where a connection goes: ``tcp://host:port`` or ``zmq://host:port``."""

T = TypeVar("T")
Procedure = Coroutine[Any, Any, T]


@dataclass(frozen=True, slots=True)
class Ask:
    """Send a request and wait for its answer.

    Raises (where it is awaited):
        ConnectFailed, ConnectionLost, RequestTimeout.
    """

    address: Address
    command: RemotingCommand
    timeout_ms: int

    def __await__(self) -> Generator[Ask, RemotingCommand, RemotingCommand]:
        return (yield self)


class JsonFrame(NamedTuple):
    """An answer of which no command was made."""

    header: dict[str, Any]
    """Standard JSON; nothing but its opaque has been looked at."""
    body: bytes | memoryview


class AskFrame:
    """As `Ask`, for a request whose frame is made already; the answer is not made a command if it is common.

    Attributes:
        data: a frame without a body.

    Raises (where it is awaited):
        ConnectFailed, ConnectionLost, RequestTimeout.
    """

    __slots__ = ("address", "code", "data", "opaque", "timeout_ms")

    def __init__(self, address: Address, code: int, opaque: int, data: bytes, timeout_ms: int) -> None:
        self.address = address
        self.code = code
        self.opaque = opaque
        self.data = data
        self.timeout_ms = timeout_ms

    def __await__(self) -> Generator[AskFrame, JsonFrame | RemotingCommand, JsonFrame | RemotingCommand]:
        return (yield self)


@dataclass(frozen=True, slots=True)
class Tell:
    """Send a one-way request; trouble with the connection is not reported."""

    address: Address
    command: RemotingCommand

    def __await__(self) -> Generator[Tell, None, None]:
        yield self


class Call:
    """Send a request's frame and wait for the answer's, in the calling thread (see `actormq.client.direct`).

    Attributes:
        opaque: of the request; None = it is one-way, and nothing is waited for: the answer is b"".

    Raises (where it is awaited):
        ConnectFailed, ConnectionLost, RequestTimeout, ClientClosed.
    """

    __slots__ = ("address", "data", "opaque", "timeout_ms")

    def __init__(self, address: Address, data: bytes, opaque: int | None, timeout_ms: int) -> None:
        self.address = address
        self.data = data
        self.opaque = opaque
        self.timeout_ms = timeout_ms

    def __await__(self) -> Generator[Call, bytes, bytes]:
        return (yield self)


@dataclass(frozen=True, slots=True)
class Pause:
    """Let time pass."""

    ms: int

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until a signal is set (True) or time is up (False); the signal is reset."""

    signal: Signal
    timeout_ms: int | None = None

    def __await__(self) -> Generator[Wait, bool, bool]:
        return (yield self)


@dataclass(frozen=True, slots=True)
class Together:
    """Run procedures side by side; the results in the same order, a `ClientError` for one that failed."""

    procedures: list[Procedure[Any]]

    def __await__(self) -> Generator[Together, list[Any], list[Any]]:
        return (yield self)


Effect = Ask | AskFrame | Tell | Call | Pause | Wait | Together


class Signal:
    """A flag that one procedure waits for; set in the client's own thread only."""

    __slots__ = ("_is_set", "_wake")

    def __init__(self) -> None:
        self._is_set = False
        self._wake: Callable[[], None] | None = None

    def set(self) -> None:
        """Wake the waiting procedure, or the next one that waits."""
        self._is_set = True
        if self._wake is not None:
            self._wake()

    def take(self) -> bool:
        """Return whether the flag was set, and reset it."""
        was_set, self._is_set = self._is_set, False
        return was_set

    def on_set(self, wake: Callable[[], None] | None) -> None:
        """Call `wake` when the flag is set; None = nobody waits any more."""
        assert wake is None or self._wake is None, "two procedures wait for one signal"
        self._wake = wake
