"""Running procedures: on the client's own loop (`Task`), or in the thread that calls (`run_here`)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from actormq.client.procedures import (
    Address,
    Ask,
    AskFrame,
    Call,
    Effect,
    JsonFrame,
    Pause,
    Procedure,
    Tell,
    Together,
    Wait,
)
from actormq.errors import ActorMQError, ClientClosed, RequestTimeout
from actormq.wire.command import RemotingCommand

T = TypeVar("T")
log = logging.getLogger("actormq.client")

Answer = RemotingCommand | ActorMQError
"""What became of a request."""

FrameAnswer = JsonFrame | RemotingCommand | ActorMQError
"""The same, where who asks by a frame wants no more made of the answer than needed."""


class Timer(Protocol):
    """A call that was asked for later."""

    def cancel(self) -> None: ...


class Loop(Protocol):
    """One thread's events: the client's own thread, or an asyncio event loop."""

    def call_soon(self, call: Callable[[], None]) -> None:
        """Call from the loop's thread, in order; from any thread."""
        ...

    def call_later(self, delay_ms: float, call: Callable[[], None]) -> Timer:
        """Call after a delay; from the loop's thread only."""
        ...

    def watch(
        self, fd: int, on_readable: Callable[[], None], on_writable: Callable[[], None] | None = None
    ) -> None:
        """Call when `fd` can be read (and, with `on_writable`, written); replaces an earlier watch."""
        ...

    def unwatch(self, fd: int) -> None: ...

    def is_here(self) -> bool:
        """Return whether the caller runs in the loop's thread."""
        ...


class Asking(Protocol):
    """Who carries requests; any thread may call."""

    def ask(
        self, address: Address, command: RemotingCommand, on_answer: Callable[[Answer], None]
    ) -> None: ...

    def ask_frame(
        self, address: Address, opaque: int, data: bytes, on_answer: Callable[[FrameAnswer], None]
    ) -> None:
        """As `ask`, with a request's frame, which has no body."""
        ...

    def give_up(self, address: Address, opaque: int) -> None:
        """Stop waiting for the answer: it took too long."""
        ...

    def tell(self, address: Address, command: RemotingCommand) -> None: ...


class Calling(Protocol):
    """Who carries requests in the thread that calls, which blocks (`actormq.client.direct.Direct`)."""

    def call(self, address: Address, data: bytes, opaque: int | None, timeout_ms: int) -> bytes: ...


def timed_out(effect: Ask | AskFrame) -> RequestTimeout:
    code = effect.command.code if isinstance(effect, Ask) else effect.code
    return RequestTimeout(f"{effect.address} did not answer request {code} within {effect.timeout_ms} ms")


class Task(Generic[T]):
    """A procedure under way on a loop.  Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        network: Asking,
        procedure: Procedure[T],
        on_done: Callable[[T | None, BaseException | None], None] | None = None,
    ) -> None:
        """
        Args:
            on_done: called with the result, or with what was raised; without it an error is logged.
        """
        self._loop = loop
        self._network = network
        self._procedure = procedure
        self._on_done = on_done
        self._abandon: Callable[[], None] | None = None
        self.is_done = False

    def start(self) -> Task[T]:
        self._step(None, None)
        return self

    def cancel(self) -> None:
        """Abandon the procedure where it waits: its ``finally`` blocks run, `on_done` gets ClientClosed."""
        if self.is_done:
            return
        self.is_done = True  # first: what is abandoned below must not resume this procedure
        if self._abandon is not None:
            self._abandon()
        self._procedure.close()
        self._finish(None, ClientClosed("the client is closed"))

    def _step(self, value: Any, error: BaseException | None) -> None:
        if self.is_done:
            return
        self._abandon = None
        try:
            effect = self._procedure.send(value) if error is None else self._procedure.throw(error)
        except StopIteration as stop:
            self._finish(stop.value, None)
        except Exception as raised:
            # Not a catch-all of the caller's: what the procedure raised is handed to whoever awaits it.
            self._finish(None, raised)
        else:
            self._begin(effect)

    def _finish(self, value: T | None, error: BaseException | None) -> None:
        self.is_done = True
        if self._on_done is not None:
            self._on_done(value, error)
        elif error is not None and not isinstance(error, ClientClosed):
            log.error("a client procedure ended with an error", exc_info=error)

    def _begin(self, effect: Effect) -> None:
        if isinstance(effect, Ask | AskFrame):
            self._ask(effect)
        elif isinstance(effect, Tell):
            self._network.tell(effect.address, effect.command)
            self._loop.call_soon(lambda: self._step(None, None))
        elif isinstance(effect, Pause):
            timer = self._loop.call_later(effect.ms, lambda: self._step(None, None))
            self._abandon = timer.cancel
        elif isinstance(effect, Wait):
            self._wait(effect)
        elif isinstance(effect, Together):
            self._together(effect)
        else:
            raise AssertionError("a loop's thread does not block in a call")

    def _ask(self, effect: Ask | AskFrame) -> None:
        waiting = True

        def answered(answer: Answer | FrameAnswer) -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                timer.cancel()
                if isinstance(answer, ActorMQError):
                    self._step(None, answer)
                else:
                    self._step(answer, None)

        def late() -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                self._network.give_up(effect.address, opaque)
                self._step(None, timed_out(effect))

        def abandon() -> None:
            nonlocal waiting
            waiting = False
            timer.cancel()

        opaque = effect.opaque if isinstance(effect, AskFrame) else effect.command.opaque
        timer = self._loop.call_later(effect.timeout_ms, late)
        self._abandon = abandon
        if isinstance(effect, AskFrame):
            self._network.ask_frame(effect.address, opaque, effect.data, answered)
        else:
            self._network.ask(effect.address, effect.command, answered)

    def _wait(self, effect: Wait) -> None:
        signal = effect.signal
        if signal.take():
            self._loop.call_soon(lambda: self._step(True, None))
            return
        timer: Timer | None = None

        def end() -> None:
            signal.on_set(None)
            if timer is not None:
                timer.cancel()

        def woken() -> None:
            end()
            signal.take()
            # Through the loop: whoever set the signal goes on first.
            self._loop.call_soon(lambda: self._step(True, None))

        def late() -> None:
            end()
            self._step(False, None)

        if effect.timeout_ms is not None:
            timer = self._loop.call_later(effect.timeout_ms, late)
        signal.on_set(woken)
        self._abandon = end

    def _together(self, effect: Together) -> None:
        results: list[Any] = [None] * len(effect.procedures)
        missing = len(results)

        def done(index: int, value: Any, error: BaseException | None) -> None:
            nonlocal missing
            results[index] = value if error is None else error
            missing -= 1
            if not missing and not self.is_done:
                unexpected = next(
                    (item for item in results if isinstance(item, BaseException) and not is_expected(item)),
                    None,
                )
                self._step(results, unexpected)

        tasks: list[Task[Any]] = [
            Task(self._loop, self._network, procedure, partial(done, index))
            for index, procedure in enumerate(effect.procedures)
        ]

        def abandon() -> None:
            for task in tasks:
                task.cancel()

        self._abandon = abandon
        if not tasks:
            self._loop.call_soon(lambda: self._step(results, None))
        for task in tasks:
            task.start()


def is_expected(error: BaseException) -> bool:
    """Return whether `error` is trouble in the world, not a mistake of ours."""
    return isinstance(error, ActorMQError)


class _Slot:
    """Where a calling thread waits for one answer."""

    __slots__ = ("answer", "event")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.answer: Answer | None = None

    def fill(self, answer: Answer) -> None:
        self.answer = answer
        self.event.set()


def run_here(network: Asking, procedure: Procedure[T], direct: Calling) -> T:
    """Run a procedure in the calling thread, which blocks; not for procedures that wait for signals.

    Args:
        direct: carries the procedure's calls.
    Raises:
        What the procedure raises.
    """
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            effect = procedure.send(value) if error is None else procedure.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        value, error = None, None
        if isinstance(effect, Call):
            try:
                value = direct.call(effect.address, effect.data, effect.opaque, effect.timeout_ms)
            except ActorMQError as trouble:
                error = trouble
        elif isinstance(effect, Ask):
            slot = _Slot()
            network.ask(effect.address, effect.command, slot.fill)
            if not slot.event.wait(effect.timeout_ms / 1000):
                network.give_up(effect.address, effect.command.opaque)
                error = timed_out(effect)
            elif isinstance(slot.answer, RemotingCommand):
                value = slot.answer
            else:
                error = slot.answer
        elif isinstance(effect, Tell):
            network.tell(effect.address, effect.command)
        elif isinstance(effect, Pause):
            time.sleep(effect.ms / 1000)
        else:
            raise AssertionError(f"{type(effect).__name__} cannot be awaited in a calling thread")
