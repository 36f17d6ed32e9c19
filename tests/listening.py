"""For tests of clients: what a listener got, and waiting for it; where nobody listens."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from actormq import ReceivedMessage

SECONDS = 60.0


class Box:
    """What a listener got."""

    def __init__(self) -> None:
        self.messages: list[ReceivedMessage] = []
        self._changed = threading.Condition()

    def __call__(self, message: ReceivedMessage) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def wait(self, count: int) -> list[bytes]:
        """Return the bodies once there are `count` or more."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, SECONDS), len(self.messages)
            return [message.body for message in self.messages]


def wait_until(condition: Callable[[], bool], seconds: float = SECONDS) -> float:
    """Wait for a condition; return how long that took."""
    began, tick = time.monotonic(), threading.Event()
    while not condition():
        assert time.monotonic() - began < seconds
        tick.wait(0.02)
    return time.monotonic() - began


@contextmanager
def dead_port() -> Iterator[int]:
    """Keep a port at which nobody listens, for the length of a block."""
    with socket.socket() as keeper:
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]
