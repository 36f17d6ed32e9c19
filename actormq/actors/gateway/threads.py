"""threads: the few threads of a gateway that may wait for a disk, and reading that refuses to wait.

The gateway's own thread reads what is in memory; for the rest it hands a job to these, so that nobody's
sends wait behind somebody's old messages.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Final

THREADS: Final = 2
_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)

Then = Callable[[], None]


def pread_cached(fd: int, size: int, at: int) -> bytes:
    """Read like `Disk.pread`, all of it or nothing.

    Raises:
        BlockingIOError: it may take a disk (or the file ends before: nobody can tell).
    """
    part = bytearray(size)
    try:
        complete = bool(_NOWAIT) and os.preadv(fd, [part], at, _NOWAIT) == size
    except OSError:
        complete = False
    if not complete:
        raise BlockingIOError
    return bytes(part)


class ReadThreads:
    """Runs jobs beside the gateway, a few at a time; who hands them in bounds how many wait.

    Args:
        call_soon: runs a function in the gateway's own thread (`ProcessActor.call_soon`).
    """

    def __init__(self, call_soon: Callable[[Then], None]) -> None:
        self._call_soon = call_soon
        self._jobs: SimpleQueue[Callable[[], Then]] = SimpleQueue()
        self._under_way = 0
        self._threads: list[threading.Thread] = []

    def run(self, job: Callable[[], Then]) -> None:
        """Run `job` in a thread, and then what it returns in the gateway's own."""
        self._under_way += 1
        self._jobs.put(job)
        if len(self._threads) < min(THREADS, self._under_way):
            thread = threading.Thread(target=self._work, name="reads", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        """Run job after job; the thread lives as long as the process."""
        while True:
            job = self._jobs.get()
            try:
                then = job()
            except Exception as error:  # the gateway dies of it, as of an error of its own
                then = _raiser(error)
            self._call_soon(partial(self._done, then))

    def _done(self, then: Then) -> None:
        self._under_way -= 1
        then()


def _raiser(error: Exception) -> Then:
    def raise_it() -> None:
        raise error

    return raise_it
