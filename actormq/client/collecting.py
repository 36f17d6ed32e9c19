"""The part of a producer that lives in the client's loop: takes batches out of the window and sends them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from actormq.client.batching import ITEM_OVERHEAD_BYTES, Accumulator, Batch, BatchOutcome, LaneKey
from actormq.client.futures import SendFuture
from actormq.client.messages import Message, check_body, encode_user_properties
from actormq.client.procedures import Signal, Wait
from actormq.client.results import MessageQueue
from actormq.client.sending import Sender, check_batch_topic
from actormq.client.session import Session
from actormq.client.settings import ProducerSettings
from actormq.client.tasks import Timer
from actormq.errors import ActorMQError, ClientClosed, ClientError, WindowFull

_TOPICS_REMEMBERED_MAX = 10_000


class Collector:
    """One producer's window.

    `collect` may be called by any thread; the rest belongs to the loop's thread.
    """

    def __init__(self, session: Session, sender: Sender) -> None:
        self._session = session
        self._sender = sender
        self._window = Accumulator(sender.settings.batch)
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._on_room: list[Callable[[], None]] = []
        self._is_pumping = False
        self._timer: Timer | None = None
        self._flushers: list[Signal] = []
        self._checked: set[str] = set()
        self._closed: ClientError | None = None
        session.at_close.append(self.close)

    # -- any thread

    def collect(self, topic: str, message: Message, queue: MessageQueue | None) -> SendFuture | None:
        """Put a message into the window; None = there is no room.

        Raises:
            MessageRejected, ClientClosed.
        """
        if topic not in self._checked:
            check_batch_topic(topic)
            if len(self._checked) < _TOPICS_REMEMBERED_MAX:
                self._checked.add(topic)
        check_body(message.body, self._sender.settings.body_bytes_max)
        properties = encode_user_properties(
            message.tags, message.keys, message.properties, message.delay_level, message.wait_stored
        )
        key: LaneKey = (topic, queue, message.wait_stored)
        now_ms = self._session.now_ms()
        with self._lock:
            if self._closed is not None:
                raise self._closed
            place = self._window.append(
                key, message.flag, message.body, properties, now_ms, alone=message.delay_level > 0
            )
            if place is None:
                return None
            # A busy lane is looked at when its request has ended; an open batch was looked at when it began.
            must_wake = not self._is_pumping and self._window.is_news(*place)
            self._is_pumping |= must_wake
        if must_wake:
            self._session.loop.call_soon(self._pump)
        return SendFuture(*place)

    def wait_for_room(self, message: Message, timeout_s: float) -> bool:
        """Block until there is room for `message`, or the window is closed; False = time is up."""
        with self._room:
            return self._room.wait_for(lambda: self._has_room(message), timeout_s)

    def _has_room(self, message: Message) -> bool:
        size = len(message.body) + ITEM_OVERHEAD_BYTES
        return self._closed is not None or self._window.has_room(size)

    def call_on_room(self, call: Callable[[], None]) -> None:
        """Call once when something leaves the window."""
        with self._lock:
            self._on_room.append(call)

    # -- loop thread

    def _pump(self) -> None:
        now_ms = self._session.now_ms()
        with self._lock:
            self._is_pumping = False
            batches = self._window.ready(now_ms, flush=bool(self._flushers))
            due_at_ms = self._window.due_at_ms()
        for batch in batches:
            self._session.spawn(self._sender.send_collected(batch), partial(self._finished, batch))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_at_ms is not None:
            self._timer = self._session.loop.call_later(max(0, due_at_ms - now_ms), self._pump)

    def _finished(self, batch: Batch, outcome: BatchOutcome | None, error: BaseException | None) -> None:
        with self._lock:
            self._window.finished(batch)
            self._room.notify_all()
            callers, self._on_room = self._on_room, []
            is_empty = self._window.is_empty()
        batch.complete(outcome if outcome is not None else _as_client_error(error))
        for call in callers:
            call()
        if is_empty:
            for signal in self._flushers:
                signal.set()
        self._pump()

    async def flush(self) -> None:
        """Send what waits, however young; return when every outcome is known."""
        empty = Signal()
        self._flushers.append(empty)
        try:
            self._pump()
            while not self._window.is_empty():
                await Wait(empty)
        finally:
            self._flushers.remove(empty)

    def close(self) -> None:
        """Refuse new messages, and give up those that no request carries yet; a second call does nothing."""
        if self._closed is not None:
            return
        self._closed = ClientClosed("the producer is closed")
        with self._lock:
            self._window.abandon(self._closed)
            self._room.notify_all()
            callers, self._on_room = self._on_room, []
        for call in callers:
            call()
        if self.close in self._session.at_close:
            self._session.at_close.remove(self.close)


def window_full(settings: ProducerSettings) -> WindowFull:
    """Return what to raise when a window stayed full for `window_timeout_ms`."""
    return WindowFull(
        f"the window of {settings.batch.window_messages} messages or {settings.batch.window_bytes} bytes "
        f"stayed full for {settings.window_timeout_ms} ms: the broker is slower than this producer"
    )


def _as_client_error(error: BaseException | None) -> ClientError:
    """Return `error` as what a future raises; a mistake of ours stays visible as the cause."""
    if isinstance(error, ClientError):
        return error
    text = str(error) if isinstance(error, ActorMQError) else f"an internal error: {error!r}"
    failure = ClientError(text)
    failure.__cause__ = error
    return failure
