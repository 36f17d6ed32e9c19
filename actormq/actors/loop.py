"""One wait for everything: descriptors, ZeroMQ sockets and timers of one process.

Knows nothing of roles.  Callbacks run in the thread that calls `run_once`; an exception in one is
the caller's: there is no catch-all here.  epoll on Linux, poll elsewhere.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Final

READ: Final = select.POLLIN
WRITE: Final = select.POLLOUT
HANGUP: Final = select.POLLHUP
ERROR: Final = select.POLLERR

_ZMQ_FD: Final = 14
_NS_PER_MS: Final = 1_000_000
NEVER: Final = 1 << 63
"""A monotonic time that does not come."""

Callback = Callable[[int], None]
"""Called with the events (READ, WRITE, HANGUP, ERROR) that are there."""


class Timer:
    """A call in the future; `cancel` forgets it."""

    __slots__ = ("callback", "due_ns")

    def __init__(self, due_ns: int, callback: Callable[[], None]) -> None:
        self.due_ns = due_ns
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class _ZmqWatch:
    """A ZeroMQ socket, whose descriptor says only that something may have changed.

    The descriptor is edge-triggered: it stays silent while messages wait that were there when EVENTS was
    last read.  So EVENTS is read again whenever the socket was used (`stale`).
    """

    __slots__ = ("_option", "callback", "events", "loop", "socket", "stale")

    def __init__(self, loop: Loop, socket: Any, events: int, callback: Callback) -> None:
        self.loop = loop
        self.socket = socket
        self.events = events
        self.callback = callback
        self.stale = True
        from zmq import EVENTS  # not above: who watches none need not load it

        self._option = EVENTS  # as a plain number pyzmq would have to look it up each time

    def signalled(self, _events: int = 0) -> None:
        self.stale = self.loop.zmq_stale = True

    def ready(self) -> int:
        return int(self.socket.getsockopt(self._option)) & self.events


class Loop:
    """The reactor of one process."""

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._poller: Any = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._seconds = hasattr(select, "epoll")
        self._callbacks: dict[int, Callback] = {}
        self._zmq: dict[Any, _ZmqWatch] = {}
        self.zmq_stale = False
        """Whether `dispatch_zmq` has something to look at."""
        self._timers: list[tuple[int, int, Timer]] = []
        self.timer_ns = NEVER
        """No timer is due before this."""
        self._timer_numbers = count()

    # -- descriptors

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call `callback(events)` whenever `fd` has one of `events` (or HANGUP, ERROR); level-triggered.

        Watching a watched descriptor replaces its events and callback.
        """
        if fd in self._callbacks:
            self._poller.modify(fd, events)
        else:
            self._poller.register(fd, events)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Forget `fd` (before it is closed); unknown ones are ignored."""
        if self._callbacks.pop(fd, None) is not None:
            self._poller.unregister(fd)

    def watch_zmq(self, socket: Any, callback: Callback, events: int = 1) -> None:
        """Call `callback(events)` while the ZeroMQ `socket` has one of `events` (1 = POLLIN, 2 = POLLOUT).

        The callback need not read all that is there.  Whoever uses the socket outside of it says so (`used`).
        """
        watch = self._zmq[socket] = _ZmqWatch(self, socket, events, callback)
        watch.signalled()
        self.watch(int(socket.getsockopt(_ZMQ_FD)), READ, watch.signalled)

    def used(self, socket: Any) -> None:
        """Say that the ZeroMQ `socket` was sent to or received from, outside its callback."""
        watch = self._zmq.get(socket)
        if watch is not None:
            watch.signalled()

    def unwatch_zmq(self, socket: Any) -> None:
        """Forget the ZeroMQ `socket` (before it is closed)."""
        self._zmq.pop(socket, None)
        self.unwatch(int(socket.getsockopt(_ZMQ_FD)))

    # -- timers

    def call_at(self, due_ns: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` once the monotonic clock has reached `due_ns`."""
        timer = Timer(due_ns, callback)
        heapq.heappush(self._timers, (due_ns, next(self._timer_numbers), timer))
        self.timer_ns = self._timers[0][0]
        return timer

    def call_later_ms(self, delay_ms: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` after `delay_ms`."""
        return self.call_at(self._now_ns() + int(delay_ms * _NS_PER_MS), callback)

    def next_due_ns(self) -> int | None:
        """When the next timer is due, None without one."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        self.timer_ns = self._timers[0][0] if self._timers else NEVER
        return self.timer_ns if self._timers else None

    # -- running

    def dispatch_zmq(self) -> bool:
        """Run the callbacks of ZeroMQ sockets that are ready, once each; True when one ran."""
        ran = self.zmq_stale = False
        for watch in [watch for watch in self._zmq.values() if watch.stale]:
            watch.stale = False
            if events := watch.ready():
                watch.callback(events)
                watch.signalled()
                ran = True
        return ran

    def dispatch_timers(self) -> bool:
        """Run the timers that are due; True when one ran."""
        ran = False
        while (due_ns := self.next_due_ns()) is not None and due_ns <= self._now_ns():
            _, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
                ran = True
        return ran

    def wait(self, until_ns: int | None) -> bool:
        """Wait for a descriptor until `until_ns` or the next timer (None: without limit) and run callbacks.

        Returns True when a callback ran.
        """
        ready = self._poller.poll(0 if until_ns == 0 else self._timeout(until_ns))
        if not ready:
            return False
        callbacks = self._callbacks
        if len(ready) == 1:
            ((fd, events),) = ready
            callback = callbacks.get(fd)
            if callback is not None:
                callback(events)
            return True
        for fd, callback, events in [(fd, callbacks.get(fd), events) for fd, events in ready]:
            # An earlier callback of this round may have closed it, and another have got its number.
            if callback is not None and callbacks.get(fd) is callback:
                callback(events)
        return True

    def run_once(self, until_ns: int | None = None) -> bool:
        """Do what is due, waiting at most until `until_ns` when nothing is; True when something ran."""
        ran = self.dispatch_zmq() | self.dispatch_timers()
        ran |= self.wait(0 if ran else until_ns)
        return ran | self.dispatch_zmq() | self.dispatch_timers()

    def _timeout(self, until_ns: int | None) -> float | None:
        if until_ns is None or self.timer_ns < until_ns:
            self.next_due_ns()  # forgets those that were cancelled
            until_ns = min(self.timer_ns, NEVER if until_ns is None else until_ns)
        if until_ns == NEVER:
            return None
        left_ns = max(0, until_ns - self._now_ns())
        return left_ns / 1e9 if self._seconds else -(-left_ns // _NS_PER_MS)

    def close(self) -> None:
        self._callbacks.clear()
        self._zmq.clear()
        if self._seconds:
            self._poller.close()
