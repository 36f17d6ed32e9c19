"""A producer's window: messages into batches, batches into requests, answers into outcomes.

A batch's first attempt is posted by whatever thread filled the batch, and its answer taken in by whatever
thread reads it: the client's own thread would have to wait for the interpreter's lock, up to 5 ms each time,
while a busy caller fills one batch after the other.  What does not go well is left to `Sender.store`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from actormq.client.batching import ITEM_OVERHEAD_BYTES, Accumulator, Batch, Lane, LaneKey
from actormq.client.futures import SendFuture
from actormq.client.messages import Message, check_body, check_flag, encode_user_properties
from actormq.client.procedures import Address, Signal, Wait
from actormq.client.requests import BatchHead, Stored
from actormq.client.results import MessageQueue
from actormq.client.sending import FirstAttempt, Sender, check_batch_topic
from actormq.client.session import Session
from actormq.client.settings import ProducerSettings
from actormq.client.tasks import Answer, Timer
from actormq.errors import ActorMQError, ClientClosed, ClientError, RequestTimeout, WindowFull
from actormq.wire.codes import RequestCode
from actormq.wire.command import next_opaque

_TOPICS_REMEMBERED_MAX = 10_000
_HEADS_REMEMBERED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Posted:
    """A first attempt that is under way."""

    batch: Batch
    queue: MessageQueue
    address: Address
    opaque: int
    began_ns: int


class Collector:
    """One producer's window, and what is under way of it.

    Attributes:
        window: its lock is ours; held for a few steps at a time, and never while anything else is called.
    """

    def __init__(self, session: Session, sender: Sender) -> None:
        self._session = session
        self._sender = sender
        settings = sender.settings
        limits = replace(settings.batch, batch_bytes=min(settings.batch.batch_bytes, settings.body_bytes_max))
        self.window = Accumulator(limits, session.keys, settings.body_bytes_max)
        self._lock: threading.Lock = self.window.lock
        self._room = threading.Condition(self._lock)
        self._waiters = 0
        self._on_room: list[Callable[[], None]] = []
        self._is_pumping = False
        self._timer: Timer | None = None
        self._flushers: list[Signal] = []
        self._checked: set[str] = set()
        self._closed: ClientError | None = None
        self._heads: dict[tuple[MessageQueue, bool], BatchHead] = {}
        self._posted: dict[int, _Posted] = {}
        """By opaque, the oldest first."""
        self._is_watching = False
        self._has_posted = False
        self._under_way: set[Batch] = set()
        session.at_close.append(self.close)

    # -- any thread: in

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
        check_flag(message.flag)
        properties = encode_user_properties(
            message.tags, message.keys, message.properties, message.delay_level, message.wait_stored
        )
        key: LaneKey = (topic, queue, message.wait_stored)
        now_ms, wall_ms = self._session.now_ms(), self._session.clock.wall_ms()
        with self._lock:
            if self._closed is not None:
                raise self._closed
            lane = self.window.lane(key)
            future = self.window.append(
                lane,
                message.flag,
                bytes(message.body),
                properties,
                now_ms,
                wall_ms,
                alone=message.delay_level > 0,
            )
            if future is None:
                return None
            batch = self.window.take_full(lane)
            if batch is None and self.window.is_first(lane) and self._is_connected(lane):
                batch = self.window.take_first(lane)
            if batch is not None:
                self._under_way.add(batch)
            # A busy lane is looked at when a request of it has ended, an open batch was when it began.
            must_wake = not self._is_pumping and self.window.is_news(lane)
            self._is_pumping |= must_wake
        if must_wake:
            self._session.loop.call_soon(self._pump)
        if batch is not None:
            self._launch(batch)
        return future

    def know_key(self, topic: str, queues: tuple[MessageQueue, ...], queue: MessageQueue) -> None:
        """Take messages by the quick way whose key means `queue` among `queues`."""
        with self._lock:
            if self._closed is None:
                self.window.know_keys(topic, queues, queue, self.window.lane((topic, queue, True)))

    def wait_for_room(self, message: Message, timeout_s: float) -> bool:
        """Block until there is room for `message`, or the window is closed; False = time is up.

        Returns only when there is room for many: otherwise a thread would be woken for every message.
        """
        size = len(message.body) + ITEM_OVERHEAD_BYTES
        with self._room:
            self._waiters += 1
            try:
                return self._room.wait_for(
                    lambda: self._closed is not None or self._has_ease_for(size), timeout_s
                ) or self.window.has_room(size)
            finally:
                self._waiters -= 1

    def _has_ease_for(self, size: int) -> bool:
        return self.window.has_ease() and self.window.has_room(size)

    def call_on_room(self, call: Callable[[], None]) -> None:
        """Call once when something leaves the window."""
        with self._lock:
            self._on_room.append(call)

    # -- any thread: out

    def _launch(self, batch: Batch) -> None:
        """Send a batch that was taken."""
        if not self._post(batch):
            self._in_loop(partial(self._store, batch, None))

    def _post(self, batch: Batch) -> bool:
        """Make the first attempt from here, where that can be done without waiting for anything."""
        lane = batch.lane
        place = self._sender.place(lane.topic, lane.queue)
        if place is None:
            return False
        queue, address = place
        clock = self._session.clock
        if batch.count > 1:
            body = batch.body()
            opaque = next_opaque()
            head = self._head(queue, lane.wait_stored).encode(opaque, clock.wall_ms(), len(body))
        else:
            head, body, opaque = self._sender.collected_single(queue, batch)
            address = self._quick_way(queue, address)
        posted = _Posted(batch, queue, address, opaque, clock.monotonic_ns())
        self._posted[opaque] = posted
        if not self._session.network.post(address, opaque, head, body, partial(self._answered, posted)):
            return self._posted.pop(opaque, None) is None
        self._has_posted = True
        if not self._is_watching:
            self._is_watching = True
            self._in_loop(self._watch_deadlines)
        return True

    def _is_connected(self, lane: Lane) -> bool:
        """Return whether a message can probably be posted without asking anybody anything."""
        queues = (lane.queue,) if lane.queue else self._session.directory.table.publish_queues(lane.topic)
        address = self._session.directory.known_master(queues[0].broker_name) if queues else None
        return address is not None and self._session.network.is_open(address)

    def _quick_way(self, queue: MessageQueue, address: Address) -> Address:
        """Return the broker's TCP address where a connection stands: one message is there sooner than by
        ZeroMQ, whose own threads have to be woken on both sides."""
        tcp = self._session.directory.table.tcp_master(queue.broker_name)
        return tcp if tcp is not None and self._session.network.is_open(tcp) else address

    def _head(self, queue: MessageQueue, wait_stored: bool) -> BatchHead:
        head = self._heads.get((queue, wait_stored))
        if head is None:
            if len(self._heads) >= _HEADS_REMEMBERED_MAX:
                self._heads.clear()
            settings = self._sender.settings
            no_ids = not settings.offset_message_ids
            head = BatchHead(self._sender.group, queue, wait_stored, settings.queues_wanted, no_ids)
            self._heads[queue, wait_stored] = head
        return head

    def _answered(self, posted: _Posted, answer: Answer) -> None:
        if self._posted.pop(posted.opaque, None) is None:
            return  # given up
        sender = self._sender
        outcome = sender.judge(posted.queue, posted.address, posted.began_ns, answer)
        first = FirstAttempt(posted.began_ns, broker_name=posted.queue.broker_name)
        if isinstance(outcome, Stored):
            if sender.is_good_enough(outcome):
                self._finished(posted.batch, outcome, None)
                return
            first.stored = outcome
        elif isinstance(outcome, ClientError):
            first.error = outcome
        else:
            self._finished(posted.batch, None, outcome)
            return
        self._in_loop(partial(self._store, posted.batch, first))

    def _finished(self, batch: Batch, outcome: Stored | None, error: BaseException | None) -> None:
        with self._lock:
            if batch not in self._under_way:
                return
            self._under_way.remove(batch)
            # First the outcome: whoever sees an empty window may look at every future.
            calls_back = batch.complete(outcome if outcome is not None else _as_client_error(error))
            self.window.finished(batch)
            following = self.window.take_full(batch.lane)
            if following is not None:
                self._under_way.add(following)
            if self._waiters and self.window.has_ease():
                self._room.notify_all()
            callers, self._on_room = self._on_room, []
            is_empty = self.window.is_empty()
            must_wake = not self._is_pumping and self.window.is_waiting(batch.lane)
            self._is_pumping |= must_wake
        if calls_back:
            self._in_loop(batch.call_all_back)
        for call in callers:
            call()
        if is_empty and self._flushers:
            self._in_loop(self._tell_flushers)
        if must_wake:
            self._in_loop(self._pump)
        if following is not None:
            self._launch(following)
        if self._closed is not None:
            self._leave_session()

    def _in_loop(self, call: Callable[[], None]) -> None:
        """Call in the loop's thread: at once where this is it."""
        loop = self._session.loop
        if loop.is_here():
            call()
        else:
            loop.call_soon(call)

    # -- loop thread

    def _store(self, batch: Batch, first: FirstAttempt | None) -> None:
        """Send a batch by all the rules, or go on after a first attempt."""
        self._session.spawn(self._sender.send_collected(batch, first), partial(self._finished, batch))

    def _pump(self) -> None:
        now_ms = self._session.now_ms()
        with self._lock:
            self._is_pumping = False
            batches = self.window.ready(now_ms, flush=bool(self._flushers))
            due_at_ms = self.window.due_at_ms()
            self._under_way.update(batches)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_at_ms is not None:
            self._timer = self._session.loop.call_later(max(0, due_at_ms - now_ms), self._pump)
        # Last: an answer may be read meanwhile, and lead to this place again.
        for batch in batches:
            self._launch(batch)

    def _watch_deadlines(self) -> None:
        """Give up what was posted and not answered in time; look again when the next one is due.

        Without anything under way once more, after a whole time-out: a call for each batch would cost more.
        """
        timeout_ms = self._sender.settings.send_timeout_ms
        now_ns = self._session.clock.monotonic_ns()
        patience_ms = float(timeout_ms)
        for posted in list(self._posted.values()):
            left_ms = timeout_ms - (now_ns - posted.began_ns) / 1_000_000
            if left_ms > 0:
                patience_ms = left_ms
                break
            self._session.network.drop(posted.address, posted.opaque)
            self._answered(posted, _late(posted, timeout_ms))
        is_idle, self._has_posted = not self._has_posted, False
        self._is_watching = not is_idle
        # Whoever posted a moment ago may have believed the flag.
        if not is_idle or self._posted:
            self._is_watching = True
            self._session.loop.call_later(patience_ms, self._watch_deadlines)

    def _tell_flushers(self) -> None:
        for signal in self._flushers:
            signal.set()

    async def flush(self) -> None:
        """Send what waits, however young; return when every outcome is known."""
        empty = Signal()
        self._flushers.append(empty)
        try:
            self._pump()
            while not self.window.is_empty():
                await Wait(empty)
        finally:
            self._flushers.remove(empty)

    def refuse(self) -> None:
        """Take nothing by the quick way any more; any thread."""
        with self._lock:
            self.window.forget()

    def close(self) -> None:
        """Refuse new messages, and give up those that no request carries yet.

        When the session is closed, no answer will come any more: then all are given up.
        """
        with self._lock:
            self._closed = self._closed or ClientClosed("the producer is closed")
            given_up = self.window.abandon()
            left = list(self._under_way) if self._session.is_closed else []
            self._room.notify_all()
            callers, self._on_room = self._on_room, []
        for batch in given_up:
            batch.complete(self._closed)
            batch.call_all_back()
        for batch in left:
            self._finished(batch, None, self._closed)
        for call in callers:
            call()
        self._leave_session()

    def _leave_session(self) -> None:
        if not self._under_way:
            with suppress(ValueError):  # another thread was first
                self._session.at_close.remove(self.close)


def window_full(settings: ProducerSettings) -> WindowFull:
    """Return what to raise when a window stayed full for `window_timeout_ms`."""
    return WindowFull(
        f"the window of {settings.batch.window_messages} messages or {settings.batch.window_bytes} bytes "
        f"stayed full for {settings.window_timeout_ms} ms: the broker is slower than this producer"
    )


def _late(posted: _Posted, timeout_ms: int) -> RequestTimeout:
    code = int(RequestCode.SEND_BATCH_MESSAGE)
    return RequestTimeout(f"{posted.address} did not answer request {code} within {timeout_ms} ms")


def _as_client_error(error: BaseException | None) -> ClientError:
    """Return `error` as what a future raises; a mistake of ours stays visible as the cause."""
    if isinstance(error, ClientError):
        return error
    text = str(error) if isinstance(error, ActorMQError) else f"an internal error: {error!r}"
    failure = ClientError(text)
    failure.__cause__ = error
    return failure
