"""The client's own thread: waits for sockets and timers, and calls back.

One per client.  Plain threads, sockets and `selectors`, so that it also runs under gevent's patches.
Nothing that it calls may block.  What a callback raises is a mistake of ours: the thread ends with a
traceback, and `on_death` fails all that waits.
"""

from __future__ import annotations

import heapq
import logging
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Final

from actormq.clock import Clock

log = logging.getLogger("actormq.client")

_CANCELLED_MAX: Final = 64
_CALLS_PER_TURN: Final = 10_000
"""So that a caller who always has more to say cannot keep the sockets from being read."""


class _Timer:
    __slots__ = ("call", "reactor")

    def __init__(self, call: Callable[[], None], reactor: Reactor) -> None:
        self.call: Callable[[], None] | None = call
        self.reactor = reactor

    def cancel(self) -> None:
        if self.call is not None:
            self.call = None
            self.reactor.cancelled += 1


class Reactor:
    """A thread that runs a client's loop; see `actormq.client.tasks.Loop`."""

    def __init__(self, clock: Clock, name: str = "actormq-client") -> None:
        self._clock = clock
        self.on_death: Callable[[], None] | None = None
        """Called in the dying thread."""
        self._selector: selectors.BaseSelector
        self._wake_in: socket.socket | None = None
        self._wake_out: socket.socket
        self._calls: deque[Callable[[], None]] = deque()
        self._is_woken = False
        self._timers: list[tuple[int, int, _Timer]] = []
        self._sequence = count()
        self.cancelled = 0
        """Timers that wait for nothing any more; too many when some of them were due since."""
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; a reactor that was never started holds no descriptors."""
        self._selector = selectors.DefaultSelector()
        wake_in, self._wake_out = socket.socketpair()
        for end in (wake_in, self._wake_out):
            end.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ, (self._drain, None))
        self._wake_in = wake_in
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what was already asked of it; wait for it unless called from it."""
        self.call_soon(self._stop)
        if not self.is_here():
            self._thread.join()

    def _stop(self) -> None:
        self._is_stopped = True

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    # -- what the client asks of its loop

    def is_here(self) -> bool:
        return threading.get_ident() == self._thread.ident

    def call_soon(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        # Who runs the loop looks at the calls before he sleeps.
        if not self._is_woken and self._wake_in is not None and not self.is_here():
            self._is_woken = True
            self._wake(self._wake_in)

    @staticmethod
    def _wake(wake_in: socket.socket) -> None:
        try:
            wake_in.send(b"\0")
        except (BlockingIOError, OSError):
            # Full: the thread has been woken already.  Closed: there is nobody to wake any more.
            return

    def call_later(self, delay_ms: float, call: Callable[[], None]) -> _Timer:
        if self.cancelled > _CANCELLED_MAX and self.cancelled * 2 > len(self._timers):
            self._forget_cancelled()
        timer = _Timer(call, self)
        due_ns = self._clock.monotonic_ns() + int(delay_ms * 1_000_000)
        heapq.heappush(self._timers, (due_ns, next(self._sequence), timer))
        return timer

    def _forget_cancelled(self) -> None:
        """Drop the time-outs of what was answered: most are, long before they are due."""
        self._timers = [entry for entry in self._timers if entry[2].call is not None]
        heapq.heapify(self._timers)
        self.cancelled = 0

    def watch(
        self, fd: int, on_readable: Callable[[], None], on_writable: Callable[[], None] | None = None
    ) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if on_writable else 0)
        callbacks = (on_readable, on_writable)
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, callbacks)
        else:
            self._selector.register(fd, events, callbacks)

    def unwatch(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._is_stopped:
                self._turn()
        except Exception:
            log.critical("the client's thread ended by a mistake of ours; the client is dead", exc_info=True)
            if self.on_death is not None:
                self.on_death()
        finally:
            self._selector.close()
            self._wake_out.close()
            if self._wake_in is not None:
                self._wake_in.close()

    def _turn(self) -> None:
        for key, events in self._selector.select(self._patience_s()):
            on_readable, on_writable = key.data
            if events & selectors.EVENT_READ:
                on_readable()
            if events & selectors.EVENT_WRITE and on_writable is not None:
                on_writable()
        self._run_timers()
        # First the flag, then the calls: who comes in between rings once too often, never too seldom.
        self._is_woken = False
        for _ in range(min(len(self._calls), _CALLS_PER_TURN)):
            self._calls.popleft()()

    def _patience_s(self) -> float | None:
        if self._calls:
            return 0
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return max(0.0, (self._timers[0][0] - self._clock.monotonic_ns()) / 1e9)

    def _run_timers(self) -> None:
        now_ns = self._clock.monotonic_ns()
        while self._timers and self._timers[0][0] <= now_ns:
            call = heapq.heappop(self._timers)[2].call
            if call is not None:
                call()

    def _drain(self) -> None:
        try:
            while len(self._wake_out.recv(4_096)) == 4_096:
                continue
        except BlockingIOError:
            return
