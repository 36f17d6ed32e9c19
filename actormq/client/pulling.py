"""Pulling one queue: ask, wait, take in hand, ask again.  One pull at a time for each queue.

Source: RocketMQ DefaultMQPushConsumerImpl.java (pullMessage); client.md §4.2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from actormq.client.handing import Handing
from actormq.client.held import HeldQueue
from actormq.client.offsets import Offsets
from actormq.client.procedures import AskFrame, Pause, Wait
from actormq.client.pull_frames import PullFrames, parse_pull
from actormq.client.requests import PullAnswer, PullStatus
from actormq.client.results import MessageModel
from actormq.client.session import Session
from actormq.client.settings import ConsumerSettings
from actormq.client.subscription import Subscription
from actormq.errors import ClientError, ConnectionLost, PeerError, RequestRefused, ResponseCode
from actormq.message import QueueOffset
from actormq.wire.codes import RequestCode
from actormq.wire.command import next_opaque

log = logging.getLogger("actormq.client")

_FLOW_CONTROL_PAUSE_MS = 20
_FIRST_PAUSE_MS = 100
"""After an error, doubled by each further one: a gateway that died is replaced within this time, and our
heartbeat may reach its successor after our pull."""
_TOO_QUICK_MS = 5
_QUICK_PAUSE_MS = 50
"""A broker that answers "nothing new" at once does not hold pulls; do not spin."""
_UNKNOWN_TO_BROKER = (ResponseCode.SUBSCRIPTION_NOT_EXIST, ResponseCode.SUBSCRIPTION_NOT_LATEST)


class Puller:
    """Loop thread."""

    def __init__(
        self,
        session: Session,
        group: str,
        settings: ConsumerSettings,
        handing: Handing,
        offsets: Offsets,
        subscription_of: Callable[[str], Subscription | None],
    ) -> None:
        self._session = session
        self._group = group
        self._settings = settings
        self._handing = handing
        self._offsets = offsets
        self._subscription_of = subscription_of
        self._frames = PullFrames(
            group,
            messages_max=min(settings.pull_messages, settings.window.messages_max),
            bytes_max=min(settings.pull_bytes, settings.window.bytes_max),
            suspend_ms=settings.suspend_ms,
        )
        self.is_paused = False

    async def pull_forever(self, held: HeldQueue) -> None:
        """Pull a queue until the task is cancelled (the queue is no longer ours)."""
        while True:
            if self.is_paused or not held.window.has_room(self._settings.window, self._settings.workers):
                await Wait(held.room)
                continue
            subscription = self._subscription_of(held.queue.topic)
            if subscription is None:
                await Pause(self._settings.pause_after_error_ms)
                continue
            try:
                pause_ms = await self._pull_once(held, subscription)
                held.failures = 0
            except (ClientError, PeerError) as error:
                pause_ms = self._pause_after(held, error)
            if pause_ms:
                await Pause(pause_ms)

    def _pause_after(self, held: HeldQueue, error: ClientError | PeerError) -> int:
        if isinstance(error, RequestRefused) and error.response_code == ResponseCode.FLOW_CONTROL:
            return _FLOW_CONTROL_PAUSE_MS
        if not isinstance(error, ConnectionLost):
            log.warning("pulling %s: %s", held.queue, error)
        if error.response_code in _UNKNOWN_TO_BROKER:
            self._session.beat_now()
        held.failures += 1
        return min(_FIRST_PAUSE_MS << min(held.failures - 1, 16), self._settings.pause_after_error_ms)

    async def _pull_once(self, held: HeldQueue, subscription: Subscription) -> int:
        """Pull once; return how long to rest before the next one, in milliseconds."""
        window = held.window
        commit = self._offset_to_commit(held)
        held.broker_id, address = await self._session.directory.reader_of(
            held.queue.broker_name, held.broker_id
        )
        opaque = next_opaque()
        data = self._frames.encode(
            held.queue,
            held.next_offset,
            subscription.version,
            commit if held.broker_id == 0 else None,
            opaque,
        )
        asked_ms = held.pulled_at_ms = self._session.now_ms()
        ask = AskFrame(address, RequestCode.PULL_MESSAGE, opaque, data, self._settings.pull_timeout_ms)
        answer = parse_pull(await ask, address)
        if held.window is not window:
            return 0  # repositioned meanwhile
        if commit is not None and held.broker_id == 0:
            held.persisted = commit
        held.broker_id = answer.suggested_broker_id
        if answer.status is PullStatus.OFFSET_MOVED:
            await self.reposition(held, answer.next_offset)
            return 0
        self._take(held, subscription, answer)
        is_quick = self._session.now_ms() - asked_ms < _TOO_QUICK_MS
        return _QUICK_PAUSE_MS if answer.status is PullStatus.NOTHING_NEW and is_quick else 0

    def _offset_to_commit(self, held: HeldQueue) -> QueueOffset | None:
        """Return what a pull should commit on its way: our offset, when the broker has an older one."""
        if self._settings.model is MessageModel.BROADCASTING or not held.is_locked(self._session.now_ms()):
            return None
        offset = held.window.commit_offset
        return offset if offset > 0 and offset != held.persisted else None

    def _take(self, held: HeldQueue, subscription: Subscription, answer: PullAnswer) -> None:
        batch = None
        if answer.status is PullStatus.FOUND:
            # The broker compared hashes of tags; here the texts decide.
            batch = held.window.put(answer.body, held.queue, subscription.tags)
        held.next_offset = answer.next_offset
        held.window.skip_to(answer.next_offset)
        if batch is not None and batch.count:
            self._handing.put(held, batch)

    async def reposition(self, held: HeldQueue, queue_offset: QueueOffset) -> None:
        """Go on from another offset, and make the broker remember it: the old one is outside the queue."""
        log.warning("%s: offset %d moved to %d", held.queue, held.next_offset, queue_offset)
        held.restart(queue_offset)
        held.persisted = None
        if await self._offsets.save({held.queue: queue_offset}):
            held.persisted = queue_offset
