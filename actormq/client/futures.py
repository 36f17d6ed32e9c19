"""What `send_async` returns: the outcome of one message, whenever it is wanted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator

from actormq.client.batching import Batch, BatchOutcome
from actormq.client.results import SendResult
from actormq.errors import ActorMQError, RequestTimeout

log = logging.getLogger("actormq.client")


class SendFuture:
    """One message on its way.  Wait with `result`, ``await`` it, or be called back.

    Light: it only points into the batch that the message travels in.
    """

    __slots__ = ("_batch", "_index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    def done(self) -> bool:
        """Return whether the outcome is known."""
        return self._batch.outcome is not None

    def result(self, timeout_s: float | None = None) -> SendResult:
        """Return status, queue and offset of the message.

        Raises:
            ClientError: what went wrong (SendFailed, RequestRefused, RouteNotFound, ClientClosed, …).
            RequestTimeout: `timeout_s` passed; the message is still on its way.
        """
        self._wait(timeout_s)
        outcome = self._batch.outcome
        if isinstance(outcome, BatchOutcome):
            return outcome.result(self._index)
        assert outcome is not None
        raise outcome

    def exception(self, timeout_s: float | None = None) -> ActorMQError | None:
        """Return what went wrong, or None; waits like `result`."""
        self._wait(timeout_s)
        outcome = self._batch.outcome
        return None if isinstance(outcome, BatchOutcome) else outcome

    def _wait(self, timeout_s: float | None) -> None:
        if self._batch.outcome is not None:
            return
        known = threading.Event()
        self._batch.add_done_callback(known.set)
        if not known.wait(timeout_s):
            raise RequestTimeout(f"the message is still on its way after {timeout_s} s")

    def add_done_callback(self, callback: Callable[[SendFuture], None]) -> None:
        """Call `callback` with this future once the outcome is known (in the client's own thread: be brief).

        What it raises is logged.
        """

        def call() -> None:
            try:
                callback(self)
            except Exception:
                # The user's code, not ours: it must not end the client's thread.
                log.exception("a send callback raised")

        self._batch.add_done_callback(call)

    def __await__(self) -> Generator[None, None, SendResult]:
        if self._batch.outcome is None:
            yield from _outcome_known(self._batch).__await__()
        return self.result(0)


async def _outcome_known(batch: Batch) -> None:
    import asyncio  # only whoever awaits a future needs it

    loop = asyncio.get_running_loop()
    known = asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(known.set)

    batch.add_done_callback(tell)
    await known.wait()
