"""AsyncConsumer: `actormq.client.consumer.Consumer` for asyncio; listeners are coroutine functions."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from actormq.client.aio import AsyncClient
from actormq.client.consuming import ConsumerCore
from actormq.client.held import AsyncListener, Delivery, QueueWatcher
from actormq.client.received import ReceivedMessage
from actormq.client.results import MessageQueue
from actormq.client.settings import ClientSettings, ConsumerSettings, check_group
from actormq.client.streams import Delivered
from actormq.client.workers import level_of, level_of_failure
from actormq.errors import ClientClosed, ConfigError


class AsyncConsumer:
    """Receives messages as one member of a group; see `actormq.client.consumer.Consumer`.

    Listeners are coroutine functions; at most `settings.workers` of them are under way.
    """

    def __init__(
        self,
        client: str | AsyncClient,
        group: str,
        *,
        settings: ConsumerSettings | None = None,
        client_settings: ClientSettings | None = None,
        on_queues: QueueWatcher | None = None,
    ) -> None:
        check_group(group)
        self.group = group
        self._on_queues = on_queues
        self.settings = settings or ConsumerSettings()
        self._owns_client = isinstance(client, str)
        self._client = AsyncClient(client, settings=client_settings) if isinstance(client, str) else client
        self._core: ConsumerCore | None = None
        self._workers: _AsyncWorkers | None = None
        self._is_closed = False
        self._before_start: list[Callable[[ConsumerCore], None]] = []
        self._streams: list[_AsyncStream] = []

    # -- life

    async def start(self) -> Self:
        """Become a member of the group; a second call does nothing.

        Raises:
            ClientClosed: it was closed before.
            ConfigError: this client has a consumer of the group already.
        """
        if self._is_closed:
            raise ClientClosed("this consumer was closed: make a new one")
        if self._core is None:
            await self._client.start()
            core = ConsumerCore(
                self._client.session, self.group, self.settings, self._hand_over, self._on_queues
            )
            self._workers = _AsyncWorkers(core, self.settings.workers)
            for subscribe in self._before_start:
                subscribe(core)
            core.start()
            self._core = core
            self._client.adopt(self)
        return self

    async def close(self) -> None:
        """Finish the messages that listeners have, save the offsets and leave the group."""
        was_closed, self._is_closed = self._is_closed, True
        for stream in self._streams:
            stream.put(None)
        if self._core is not None and self._workers is not None and not was_closed:
            self._core.halt()
            await self._workers.stop(self.settings.close_wait_ms / 1000)
            await self._client.run(self._core.leave())
            self._client.release(self)
        if self._owns_client:
            await self._client.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- subscriptions

    def subscribe(self, topic: str, expression: str = "*", listener: AsyncListener | None = None) -> None:
        """Consume a topic; see `Consumer.subscribe`.

        Raises:
            ConfigError: no listener, no coroutine function, or an expression that says nothing.
            ClientClosed.
        """
        if listener is None:
            raise ConfigError("subscribe needs a listener; to take messages in a loop use stream()")
        if not inspect.iscoroutinefunction(listener) and not inspect.iscoroutinefunction(
            getattr(listener, "__call__", None)  # noqa: B004 - an object with an async __call__
        ):
            raise ConfigError("this consumer's listeners are coroutine functions (async def)")
        self._on_core(lambda core: core.subscribe(topic, expression, listener))

    def unsubscribe(self, topic: str) -> None:
        """Stop consuming a topic; its queues go to the other members."""
        self._on_core(lambda core: core.unsubscribe(topic))

    def _on_core(self, call: Callable[[ConsumerCore], None]) -> None:
        if self._is_closed:
            raise ClientClosed("this consumer was closed: make a new one")
        if self._core is None:
            self._before_start.append(call)
        else:
            call(self._core)

    def stream(self, topic: str, expression: str = "*") -> AsyncIterator[Delivered]:
        """Yield messages one by one until the consumer is closed; see `Consumer.stream`."""
        if self.settings.orderly:
            raise ConfigError("an orderly consumer needs a listener: a loop could not keep the order")
        stream = _AsyncStream()
        self._streams.append(stream)
        self._on_core(lambda core: core.subscribe(topic, expression, stream))
        return self._take(stream)

    async def _take(self, stream: _AsyncStream) -> AsyncIterator[Delivered]:
        while (delivery := await stream.get()) is not None:
            assert self._core is not None
            while (message := delivery.take_any()) is not None:
                yield Delivered(self._core.handing, delivery, message)

    # -- control

    def pause(self) -> None:
        """Fetch nothing more until `resume`; what was fetched still goes to the listeners."""
        self._on_core(ConsumerCore.pause)

    def resume(self) -> None:
        self._on_core(ConsumerCore.resume)

    def queues(self) -> list[MessageQueue]:
        """Return the queues that are this consumer's now."""
        return [] if self._core is None else self._core.queues()

    def _hand_over(self, delivery: Delivery) -> None:
        if isinstance(delivery.listener, _AsyncStream):
            delivery.listener.put(delivery)
        elif self._workers is not None:
            self._workers.submit(delivery)


class _AsyncStream(asyncio.Queue["Delivery | None"]):
    """Deliveries for a loop; unbounded itself, the window bounds what is in hand."""

    def put(self, delivery: Delivery | None) -> None:  # type: ignore[override]
        self.put_nowait(delivery)


class _AsyncWorkers:
    """At most `workers` tasks that run listeners; they end when nothing waits."""

    def __init__(self, core: ConsumerCore, workers: int) -> None:
        self._core = core
        self._max = workers
        self._waiting: deque[Delivery] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, delivery: Delivery) -> None:
        self._waiting.append(delivery)
        wanted = 1 if delivery.in_order else delivery.count
        for _ in range(min(wanted, self._max - len(self._tasks))):
            task = asyncio.get_running_loop().create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self, timeout_s: float) -> None:
        """Wait for the listeners under way; after `timeout_s` cancel them (their messages come again)."""
        self._waiting.clear()
        tasks = self._tasks - {asyncio.current_task()}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _work(self) -> None:
        while self._waiting:
            delivery = self._waiting[0]
            if delivery.in_order:
                self._waiting.popleft()
                await self._run_in_order(delivery)
                continue
            message = delivery.take_any()
            if message is None:
                self._waiting.popleft()
                continue
            self._core.handing.settle(delivery, message, await self._listen(delivery, message))

    async def _run_in_order(self, delivery: Delivery) -> None:
        while (message := delivery.take(self._core.session.now_ms())) is not None:
            level = await self._listen(delivery, message)
            has_failed = level is not None
            self._core.handing.report(delivery, [(message, level)], has_failed)
            if has_failed:
                return
        self._core.handing.report(delivery, [], True)

    async def _listen(self, delivery: Delivery, message: ReceivedMessage) -> int | None:
        try:
            return level_of(await delivery.listener(message))
        except Exception as error:
            # The user's code: whatever it raises means "deliver again", and is logged.
            return level_of_failure(delivery, error)
