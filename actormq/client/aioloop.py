"""An asyncio event loop as the client's loop: no thread of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from actormq.errors import ConfigError


class AsyncioLoop:
    """The running event loop; see `actormq.client.tasks.Loop`.

    Made inside a coroutine.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def call_soon(self, call: Callable[[], None]) -> None:
        if self.is_here():
            self._loop.call_soon(call)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)

    def call_later(self, delay_ms: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(delay_ms / 1000, call)

    def watch(
        self, fd: int, on_readable: Callable[[], None], on_writable: Callable[[], None] | None = None
    ) -> None:
        try:
            self._loop.add_reader(fd, on_readable)
        except NotImplementedError:
            raise ConfigError(
                "this event loop cannot watch sockets (Windows' default): use asyncio.SelectorEventLoop, "
                "or the synchronous Producer and Consumer"
            ) from None
        if on_writable is not None:
            self._loop.add_writer(fd, on_writable)
        else:
            self._loop.remove_writer(fd)

    def unwatch(self, fd: int) -> None:
        if not self._loop.is_closed():
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)

    def is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False
