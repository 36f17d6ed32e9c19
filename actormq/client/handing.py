"""From the window to listeners and back: deliveries, what listeners say of them, and giving messages back.

Source: RocketMQ ConsumeMessageConcurrentlyService.java, ConsumeMessageOrderlyService.java; client.md §6, §7.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from itertools import groupby, islice

from actormq.client import requests
from actormq.client.held import AnyListener, Delivery, Finished, HeldQueue
from actormq.client.procedures import Ask, Pause, Signal, Wait
from actormq.client.received import ReceivedMessage
from actormq.client.requests import Outgoing
from actormq.client.results import MessageModel
from actormq.client.sending import Sender
from actormq.client.session import Session
from actormq.client.settings import ConsumerSettings, ProducerSettings
from actormq.errors import ClientError, PeerError
from actormq.kernels.received import Batch, finish, gate_of, is_done
from actormq.message import RETRY_PREFIX, PropertyKey, QueueOffset, encode_properties

log = logging.getLogger("actormq.client")

RECONSUME_MAX = 16
"""What -1 means in clustering; RocketMQ's default."""
_IN_ORDER_RUN = 64
"""Messages that one worker takes at a time in orderly mode: what a crash may repeat."""
_INNER_GROUP = "CLIENT_INNER_PRODUCER"
_FIRST_RETRY_LEVEL = 3


class Handing:
    """Loop thread, except `report`."""

    def __init__(
        self,
        session: Session,
        group: str,
        settings: ConsumerSettings,
        listener_of: Callable[[str], AnyListener],
        hand_over: Callable[[Delivery], None],
    ) -> None:
        """
        Args:
            listener_of: topic to listener.
            hand_over: takes a delivery to the workers; must not block.
        """
        self._session = session
        self._group = group
        self._settings = settings
        self._listener_of = listener_of
        self._hand_over = hand_over
        self._reports: deque[tuple[Delivery, list[Finished], bool]] = deque()
        self._is_reporting = False
        self._direct: dict[int, tuple[Delivery, ReceivedMessage, Callable[[int | None], None]]] = {}
        self._returning = 0
        """Messages on their way back to the broker."""
        self._all_returned = Signal()
        self._resender = Sender(
            _INNER_GROUP, ProducerSettings(), session.directory, session.clock, session.keys, 0
        )

    # -- out

    def put(self, held: HeldQueue, batch: Batch) -> None:
        """Pass on what was taken in hand; at least one message."""
        if self._settings.orderly:
            held.backlog.extend(batch.messages())
            self.go_on(held)
        elif held.queue.topic.startswith(RETRY_PREFIX):
            for topic, some in groupby(batch.messages(), key=lambda message: message.topic):
                self._deliver(held, list(some), topic)
        else:
            self._deliver(held, batch, held.queue.topic)

    def _deliver(self, held: HeldQueue, messages: Batch | list[ReceivedMessage], topic: str) -> None:
        self._hand_over(Delivery(held, messages, self._listener_of(topic), in_order=False))

    def go_on(self, held: HeldQueue) -> None:
        """Orderly: give the next messages to a worker, unless one is at work on this queue."""
        if held.is_in_listener or not held.backlog or not held.may_run(self._session.now_ms()):
            return
        held.is_in_listener = True
        run = list(islice(held.backlog, _IN_ORDER_RUN))
        listener = self._listener_of(run[0].topic)
        self._hand_over(Delivery(held, run, listener, in_order=True))

    def deliver_directly(
        self, message: ReceivedMessage, listener: AnyListener, on_done: Callable[[int | None], None]
    ) -> None:
        """Give a listener one message outside any window; `on_done` gets the delay level, None = success."""
        held = HeldQueue(message.queue, QueueOffset(message.queue_offset), persisted=None)
        delivery = Delivery(held, [message], listener, in_order=False)
        self._direct[id(delivery)] = (delivery, message, on_done)
        gate_of(message).report_after = 1  # even when it succeeds
        self._hand_over(delivery)

    # -- back

    def settle(self, delivery: Delivery, message: ReceivedMessage, delay_level: int | None) -> None:
        """Say what became of one message, not in order; any thread.

        Args:
            delay_level: for its retry; None = it is done with.
        """
        if delay_level is None:
            finish(message)
            if delivery.must_report():
                self.report(delivery, [], False)
        else:
            self.report(delivery, [(message, delay_level)], False)

    def report(self, delivery: Delivery, finished: list[Finished], is_last: bool) -> None:
        """Say what became of messages; any thread.

        Args:
            finished: in order, all that were run; otherwise those that failed: the others are marked.
            is_last: this worker is through with the delivery.
        """
        self._reports.append((delivery, finished, is_last))
        if not self._is_reporting:
            self._is_reporting = True
            self._session.loop.call_soon(self.take_reports)

    def take_reports(self) -> None:
        """Take in what workers have reported so far."""
        self._is_reporting = False
        while self._reports:
            delivery, finished, is_last = self._reports.popleft()
            held = delivery.held
            if self._is_direct(delivery, finished):
                continue
            is_current = held.window is delivery.window and not held.is_released
            if not is_current:
                finished = []
            if delivery.in_order:
                self._take_in_order(held, finished, is_last, is_current)
            else:
                self._take(held, finished)

    def _is_direct(self, delivery: Delivery, finished: list[Finished]) -> bool:
        """Tell who wanted a message delivered directly, if that is what was reported."""
        direct = self._direct.get(id(delivery))
        if direct is None:
            return False
        _, message, on_done = direct
        if finished or is_done(message):
            del self._direct[id(delivery)]
            on_done(finished[0][1] if finished else None)
        return True

    def _take(self, held: HeldQueue, finished: list[Finished]) -> None:
        for message, delay_level in finished:
            if delay_level is None:
                held.window.done(message)
            elif self._settings.model is MessageModel.BROADCASTING:
                log.warning("%r failed; broadcast messages are not repeated", message)
                held.window.done(message)
            else:
                self._session.spawn(self._give_back(held, message, delay_level))
        self._make_room(held)

    def _make_room(self, held: HeldQueue) -> None:
        """Let pulling go on if it waits and may."""
        window = held.window
        if window.gate.report_after and window.has_room(self._settings.window, self._settings.workers):
            held.room.set()

    def _take_in_order(
        self, held: HeldQueue, finished: list[Finished], is_last: bool, is_current: bool
    ) -> None:
        failed = False
        for message, delay_level in finished:
            if delay_level is None:
                held.backlog.popleft()
                held.window.done(message)
            else:
                failed = True
                self._session.spawn(self._repeat_in_place(held, message))
        if finished:
            held.room.set()
        if not is_last:
            return
        held.is_in_listener = failed and is_current
        held.idle.set()
        if not failed:
            self.go_on(held)

    # -- failures

    async def _repeat_in_place(self, held: HeldQueue, message: ReceivedMessage) -> None:
        """Orderly: let the queue rest, then deliver the message again; after too many times set it aside."""
        reconsume_max = self._settings.reconsume_max
        if 0 <= reconsume_max <= message.reconsume_times and await self._set_aside(message, reconsume_max):
            if held.backlog and held.backlog[0] is message:
                held.backlog.popleft()
                held.window.done(message)
        else:
            message.count_attempt()
            await Pause(self._settings.suspend_queue_ms)
        held.is_in_listener = False
        held.idle.set()
        self.go_on(held)

    async def _set_aside(self, message: ReceivedMessage, reconsume_max: int) -> bool:
        try:
            await self._resend(message, reconsume_max)
            return True
        except (ClientError, PeerError) as error:
            log.warning("%r could not be set aside: %s", message, error)
            return False

    async def _give_back(self, held: HeldQueue, message: ReceivedMessage, delay_level: int) -> None:
        """Put a message into the group's retry topic; when that fails, deliver it again from here."""
        self._returning += 1
        try:
            is_back = await self._put_into_retry_topic(message, delay_level)
            if is_back and not held.is_released:
                held.window.done(message)
        finally:
            self._returning -= 1
            if not self._returning:
                self._all_returned.set()
        if is_back:
            self._make_room(held)
            return
        await Pause(self._settings.send_back_retry_ms)
        message.count_attempt()
        if held.window.holds(message) and not held.is_stopped:
            self._deliver(held, [message], message.topic)

    async def _put_into_retry_topic(self, message: ReceivedMessage, delay_level: int) -> bool:
        """Return whether the broker has it."""
        reconsume_max = self._settings.reconsume_max
        if reconsume_max < 0:
            reconsume_max = RECONSUME_MAX
        try:
            await self._send_back(message, delay_level, reconsume_max)
            return True
        except (ClientError, PeerError) as refused:
            log.warning("%r was not taken back (%s); sending it to the retry topic", message, refused)
        try:
            await self._resend(message, reconsume_max)
            return True
        except (ClientError, PeerError) as error:
            log.warning("%r could not be given back: %s; it is delivered again here", message, error)
            return False

    async def all_returned(self) -> None:
        """Wait until the broker has all that is on its way back: then it counts as done with.

        Not longer than one answer may take.
        """
        until_ms = self._session.now_ms() + self._settings.send_back_timeout_ms
        while self._returning and (left_ms := until_ms - self._session.now_ms()) > 0:
            await Wait(self._all_returned, left_ms)

    async def _send_back(self, message: ReceivedMessage, delay_level: int, reconsume_max: int) -> None:
        address = await self._session.directory.master_of(message.queue.broker_name)
        command = requests.send_back(
            self._group,
            message.log_offset,
            delay_level,
            message.message_id,
            message.topic,
            reconsume_max,
        )
        requests.require_success(await Ask(address, command, self._settings.send_back_timeout_ms), address)

    async def _resend(self, message: ReceivedMessage, reconsume_max: int) -> None:
        """Store a copy in the retry topic, as RocketMQ's client does when its broker refuses a send-back."""
        properties = dict(message.properties)
        properties.pop(PropertyKey.TRANSACTION_PREPARED, None)
        properties.setdefault(PropertyKey.ORIGIN_MESSAGE_ID, message.message_id)
        properties[PropertyKey.RETRY_TOPIC] = message.topic
        properties[PropertyKey.DELAY] = str(_FIRST_RETRY_LEVEL + message.reconsume_times)
        outgoing = Outgoing(
            body=message.body,
            properties=encode_properties(properties),
            message_ids=[message.message_id],
            flag=message.flag,
            reconsume_times=message.reconsume_times + 1,
            max_reconsume_times=reconsume_max,
        )
        await self._resender.store(RETRY_PREFIX + self._group, outgoing)

    def give_back_stuck(self, held: HeldQueue) -> None:
        """Concurrent: give back the first message when its listener has held it for too long."""
        now_ms = self._session.now_ms()
        stuck = held.window.stuck(now_ms)
        if stuck is not None and stuck[1] >= self._settings.listener_timeout_ms:
            message, held_for_ms = stuck
            log.warning(
                "%r is in its listener for %d s; it goes to the retry topic", message, held_for_ms // 1000
            )
            held.window.watch_anew(now_ms)
            self._session.spawn(self._give_back(held, message, _FIRST_RETRY_LEVEL))
