"""AsyncProducer: `actormq.client.producer.Producer` for asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from actormq.client.aio import AsyncClient
from actormq.client.client import DEFAULT_PRODUCER_GROUP
from actormq.client.collecting import Collector, window_full
from actormq.client.futures import SendFuture
from actormq.client.messages import Message, MessageOptions, as_message, check_topic
from actormq.client.results import MessageQueue, SendResult
from actormq.client.sending import QueueChoice, QueueTarget, Sender, check_batch_topic, queue_choice
from actormq.client.settings import ClientSettings, ProducerSettings, check_group
from actormq.errors import ClientClosed

log = logging.getLogger("actormq.client")


class AsyncProducer:
    """Sends messages; see `actormq.client.producer.Producer`, whose methods these are."""

    def __init__(
        self,
        client: str | AsyncClient,
        group: str = DEFAULT_PRODUCER_GROUP,
        *,
        settings: ProducerSettings | None = None,
        client_settings: ClientSettings | None = None,
    ) -> None:
        check_group(group)
        self.group = group
        self.settings = settings or ProducerSettings()
        self._owns_client = isinstance(client, str)
        self._client = AsyncClient(client, settings=client_settings) if isinstance(client, str) else client
        self._sender: Sender | None = None
        self._collector: Collector | None = None
        self._is_closed = False

    # -- life

    async def start(self) -> Self:
        """Start; a second call does nothing.

        Raises:
            ClientClosed: it was closed before.
        """
        if self._is_closed:
            raise ClientClosed("this producer was closed: make a new one")
        if self._sender is None:
            await self._client.start()
            session = self._client.session
            self._sender = Sender(
                self.group,
                self.settings,
                session.directory,
                session.clock,
                session.keys,
                session.random.randrange(1 << 16),
            )
            self._collector = Collector(session, self._sender)
            session.add_producer(self.group)
            self._client.adopt(self)
        return self

    async def close(self, timeout_ms: int | None = None) -> None:
        """Send what waits (for at most `timeout_ms`, default the send time-out), then stop."""
        was_running, self._is_closed = self._sender is not None and not self._is_closed, True
        if was_running and self._collector is not None:
            timeout_s = (timeout_ms or self.settings.send_timeout_ms) / 1000
            try:
                await asyncio.wait_for(self._client.run(self._collector.flush()), timeout_s)
            except TimeoutError:
                log.warning("the producer was closed with messages on their way")
            self._collector.close()
            await self._client.run(self._client.session.remove_producer(self.group))
            self._client.release(self)
        if self._owns_client:
            await self._client.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _running(self) -> tuple[Sender, Collector]:
        if self._sender is None or self._collector is None or self._is_closed:
            raise ClientClosed("this producer is not running: use `async with`, or await start() first")
        return self._sender, self._collector

    # -- sending

    async def send(
        self,
        topic: str,
        body: bytes | Message,
        *,
        key: str | None = None,
        queue: QueueTarget | None = None,
        timeout_ms: int | None = None,
        **options: Unpack[MessageOptions],
    ) -> SendResult:
        """Store one message and return its queue and offset; see `Producer.send`."""
        sender, _ = self._running()
        check_topic(topic)
        message = sender.single(as_message(body, options))
        return await self._client.run(sender.send(topic, message, queue_choice(key, queue), timeout_ms))

    async def send_batch(
        self,
        topic: str,
        messages: Sequence[Message | bytes],
        *,
        key: str | None = None,
        queue: QueueTarget | None = None,
        timeout_ms: int | None = None,
    ) -> list[SendResult]:
        """Store messages in one queue, all of them or none; see `Producer.send_batch`."""
        sender, _ = self._running()
        check_batch_topic(topic)
        batch = sender.batch([as_message(message, {}) for message in messages])
        choose = queue_choice(key, queue)
        outcome = await self._client.run(sender.send_batch(topic, batch, choose, timeout_ms))
        return [outcome.result(index) for index in range(len(messages))]

    async def send_oneway(
        self,
        topic: str,
        body: bytes | Message,
        *,
        key: str | None = None,
        queue: QueueTarget | None = None,
        **options: Unpack[MessageOptions],
    ) -> None:
        """Send without waiting for an answer; see `Producer.send_oneway`."""
        sender, _ = self._running()
        check_topic(topic)
        message = sender.single(as_message(body, options))
        await self._client.run(sender.tell(topic, message, queue_choice(key, queue)))

    async def send_async(
        self,
        topic: str,
        body: bytes | Message,
        *,
        key: str | None = None,
        queue: QueueTarget | None = None,
        **options: Unpack[MessageOptions],
    ) -> SendFuture:
        """Put a message into the window; await the future that is returned for its outcome.

        Waits only while the window is full; see `Producer.send_async`.
        """
        _, collector = self._running()
        message = as_message(body, options)
        target = (
            queue if isinstance(queue, MessageQueue) else await self._target(topic, queue_choice(key, queue))
        )
        future = collector.collect(topic, message, target)
        if future is None:
            try:
                async with asyncio.timeout(self.settings.window_timeout_ms / 1000):
                    future = await _collect_later(collector, topic, message, target)
            except TimeoutError:
                raise window_full(self.settings) from None
        return future

    async def _target(self, topic: str, choose: QueueChoice | None) -> MessageQueue | None:
        return None if choose is None else choose(await self.queues(topic))

    async def flush(self) -> None:
        """Return when the outcome of everything sent so far is known."""
        _, collector = self._running()
        await self._client.run(collector.flush())

    async def queues(self, topic: str) -> tuple[MessageQueue, ...]:
        """Return the queues that the topic can be sent to."""
        self._running()
        directory = self._client.session.directory
        known = directory.table.publish_queues(topic)
        return known or await self._client.run(directory.publish_queues(topic, self.settings.queues_wanted))


async def _collect_later(
    collector: Collector, topic: str, message: Message, target: MessageQueue | None
) -> SendFuture:
    while True:
        left = asyncio.Event()
        collector.call_on_room(left.set)
        future = collector.collect(topic, message, target)
        if future is not None:
            return future
        await left.wait()
