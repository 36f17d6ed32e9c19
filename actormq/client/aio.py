"""The asyncio face: the same client without a thread, in the running event loop.

``async with actormq.connect("zmq://127.0.0.1:9877") as mq: await mq.send("orders", b"…")``
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from actormq.client.aioloop import AsyncioLoop
from actormq.client.client import DEFAULT_PRODUCER_GROUP
from actormq.client.messages import Message, MessageOptions
from actormq.client.procedures import Procedure
from actormq.client.results import SendResult
from actormq.client.session import Session
from actormq.client.settings import ClientSettings, ConsumerSettings, ProducerSettings, parse_endpoint
from actormq.errors import ClientClosed

if TYPE_CHECKING:
    from actormq.client.aio_consumer import AsyncConsumer
    from actormq.client.aio_producer import AsyncProducer
    from actormq.client.streams import Delivered

T = TypeVar("T")


class AsyncClient:
    """One connection to a cluster, shared by the producers and consumers made from it.

    Belongs to the event loop in which it was started.
    """

    def __init__(self, url: str, *, settings: ClientSettings | None = None) -> None:
        """
        Args:
            url: ``rocketmq://host:port`` or ``zmq://host:port`` of a name server; several joined by commas.
        Raises:
            ConfigError: the URL or a setting is wrong.
        """
        parse_endpoint(url)
        self._url = url
        self._settings = settings
        self._session: Session | None = None
        self._is_closed = False
        self._parts: list[AsyncProducer | AsyncConsumer] = []
        self._producer: AsyncProducer | None = None

    @property
    def session(self) -> Session:
        if self._session is None or self._is_closed:
            raise ClientClosed("this client is not running: use `async with`, or await start() first")
        return self._session

    # -- life

    async def start(self) -> Self:
        """Start; a second call does nothing.

        Raises:
            ClientClosed: it was closed before.
        """
        if self._is_closed:
            raise ClientClosed("this client was closed: make a new one")
        if self._session is None:
            self._session = Session(AsyncioLoop(), self._url, self._settings)
            self._session.start()
        return self

    async def close(self) -> None:
        """Close what was made from this client and say good-bye to the brokers."""
        if self._is_closed:
            return
        for part in list(self._parts):
            await part.close()
        self._is_closed = True
        if self._session is not None:
            self._session.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- making things

    async def producer(
        self, group: str = DEFAULT_PRODUCER_GROUP, *, settings: ProducerSettings | None = None
    ) -> AsyncProducer:
        """Return a started producer that uses this client; closed with it at the latest."""
        from actormq.client.aio_producer import AsyncProducer

        return await AsyncProducer(self, group, settings=settings).start()

    async def consumer(self, group: str, *, settings: ConsumerSettings | None = None) -> AsyncConsumer:
        """Return a started consumer that uses this client; closed with it at the latest."""
        from actormq.client.aio_consumer import AsyncConsumer

        return await AsyncConsumer(self, group, settings=settings).start()

    # -- the short way

    async def send(
        self, topic: str, body: bytes | Message, *, key: str | None = None, **options: Unpack[MessageOptions]
    ) -> SendResult:
        """Send through a producer of the client's own; see `AsyncProducer.send`."""
        from actormq.client.aio_producer import AsyncProducer

        if self._producer is None:
            self._producer = AsyncProducer(self, DEFAULT_PRODUCER_GROUP)
        await self._producer.start()
        return await self._producer.send(topic, body, key=key, **options)

    async def consume(
        self, topic: str, group: str, expression: str = "*", *, settings: ConsumerSettings | None = None
    ) -> AsyncIterator[Delivered]:
        """Yield messages one by one, for as long as the loop goes on; see `AsyncConsumer.stream`."""
        async with await self.consumer(group, settings=settings) as consumer:
            async for message in consumer.stream(topic, expression):
                yield message

    # -- for the producers and consumers

    def adopt(self, part: AsyncProducer | AsyncConsumer) -> None:
        """Close `part` when the client is closed."""
        self._parts.append(part)

    def release(self, part: AsyncProducer | AsyncConsumer) -> None:
        if part in self._parts:
            self._parts.remove(part)

    async def run(self, procedure: Procedure[T]) -> T:
        """Run a procedure; when the caller is cancelled, so is it.

        Raises:
            ClientClosed, or what the procedure raises.
        """
        finished: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(value: Any, error: BaseException | None) -> None:
            if finished.done():
                return
            if error is not None:
                finished.set_exception(error)
            else:
                finished.set_result(value)

        task = self.session.spawn(procedure, done)
        try:
            return await finished
        except asyncio.CancelledError:
            task.cancel()
            raise


def connect(url: str, *, settings: ClientSettings | None = None) -> AsyncClient:
    """Return a client for ``async with``; the URL as for `AsyncClient`."""
    return AsyncClient(url, settings=settings)
