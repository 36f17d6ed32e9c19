"""Consumer, the synchronous face: listeners run in threads; or messages are taken in a loop."""

from __future__ import annotations

import inspect
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from actormq.client.client import Client
from actormq.client.consuming import ConsumerCore
from actormq.client.held import Delivery, Listener, QueueWatcher
from actormq.client.results import MessageQueue
from actormq.client.settings import ClientSettings, ConsumerSettings, check_group
from actormq.client.streams import Delivered
from actormq.client.workers import WorkerPool
from actormq.errors import ClientClosed, ConfigError


class Consumer:
    """Receives messages as one member of a group.

    ``with Consumer("rocketmq://127.0.0.1:9876", group="billing") as consumer:``
    ``    consumer.subscribe("orders", "paid || new", listener)``

    A listener that returns has consumed the message; one that raises (or returns `ConsumeResult.RETRY`)
    gets it again later.  A message may come more than once (after a crash, or when queues change owners).
    """

    def __init__(
        self,
        client: str | Client,
        group: str,
        *,
        settings: ConsumerSettings | None = None,
        client_settings: ClientSettings | None = None,
        on_queues: QueueWatcher | None = None,
    ) -> None:
        """
        Args:
            client: the URL of a name server, or a `Client` to share connections with.
            group: each message goes to one member of each group (broadcasting: to all).
            client_settings: for a client of its own.
            on_queues: ``on_queues(taken, left)``, called when queues change owners; see `QueueWatcher`.
        Raises:
            ConfigError: the URL, the group or a setting is wrong.
        """
        check_group(group)
        self.group = group
        self.settings = settings or ConsumerSettings()
        self._owns_client = isinstance(client, str)
        self._client = Client(client, settings=client_settings) if isinstance(client, str) else client
        session = self._client.session
        self._core = ConsumerCore(session, group, self.settings, self._hand_over, on_queues)
        self._pool = WorkerPool(
            self.settings.workers, self._core.handing.report, session.clock, f"actormq-{group}"
        )
        self._lock = threading.Lock()
        self._state = "new"
        self._before_start: list[Callable[[], None]] = []
        self._streams: list[_Stream] = []

    # -- life

    def start(self) -> Self:
        """Become a member of the group; a second call does nothing.

        Raises:
            ClientClosed: it was closed before.
            ConfigError: this client has a consumer of the group already.
        """
        with self._lock:
            if self._state == "closed":
                raise ClientClosed("this consumer was closed: make a new one")
            if self._state == "running":
                return self
            self._client.start()
            self._client.run(self._begin())
            self._client.adopt(self)
            self._state = "running"
        return self

    async def _begin(self) -> None:
        for subscribe in self._before_start:
            subscribe()
        self._core.start()

    def close(self) -> None:
        """Finish the messages that listeners have, save the offsets and leave the group."""
        with self._lock:
            was_running, self._state = self._state == "running", "closed"
        for stream in self._streams:
            stream.end()
        if was_running:
            with suppress(ClientClosed):  # the client's thread may be dead
                self._client.run(self._halt())
            self._pool.stop(self.settings.close_wait_ms / 1000)
            with suppress(ClientClosed):
                self._client.run(self._core.leave())
            self._client.release(self)
        if self._owns_client:
            self._client.close()

    async def _halt(self) -> None:
        self._core.halt()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- subscriptions

    def subscribe(self, topic: str, expression: str = "*", listener: Listener | None = None) -> None:
        """Consume a topic.

        Args:
            expression: ``*``, or tags joined by ``||``.  All members of a group subscribe to the same.
            listener: called in a worker thread with one message at a time.
        Raises:
            ConfigError: no listener, a coroutine function, or an expression that says nothing.
            ClientClosed.
        """
        if listener is None:
            raise ConfigError("subscribe needs a listener; to take messages in a loop use stream()")
        if inspect.iscoroutinefunction(listener):
            raise ConfigError(
                "this consumer's listeners are plain functions; use AsyncConsumer for coroutines"
            )
        self._subscribe(topic, expression, listener)

    def _subscribe(self, topic: str, expression: str, listener: Listener | _Stream) -> None:
        self._in_loop(lambda: self._core.subscribe(topic, expression, listener))

    def unsubscribe(self, topic: str) -> None:
        """Stop consuming a topic; its queues go to the other members."""
        self._in_loop(lambda: self._core.unsubscribe(topic))

    def _in_loop(self, call: Callable[[], None]) -> None:
        async def procedure() -> None:
            call()

        with self._lock:
            if self._state == "closed":
                raise ClientClosed("this consumer was closed: make a new one")
            if self._state == "new":
                self._before_start.append(call)
                return
        self._client.run(procedure())

    def stream(self, topic: str, expression: str = "*") -> Iterator[Delivered]:
        """Yield messages one by one until the consumer is closed.

        Each must be settled: ``with message.process(): …``, or `ack`, or `retry`; what is not comes again
        after a restart, and the queue's offset waits for it.  How many may be in hand: `settings.window`.

        Raises:
            ConfigError: an orderly consumer.
            ClientClosed.
        """
        if self.settings.orderly:
            raise ConfigError("an orderly consumer needs a listener: a loop could not keep the order")
        stream = _Stream(self._core)
        self._streams.append(stream)
        self._subscribe(topic, expression, stream)
        return iter(stream)

    # -- control

    def pause(self) -> None:
        """Fetch nothing more until `resume`; what was fetched still goes to the listeners."""
        self._in_loop(self._core.pause)

    def resume(self) -> None:
        self._in_loop(self._core.resume)

    def queues(self) -> list[MessageQueue]:
        """Return the queues that are this consumer's now."""
        return self._core.queues()

    # -- to the workers

    def _hand_over(self, delivery: Delivery) -> None:
        if isinstance(delivery.listener, _Stream):
            delivery.listener.put(delivery)
        else:
            self._pool.submit(delivery)


class _Stream:
    """Deliveries for a loop that takes one message after the other."""

    def __init__(self, core: ConsumerCore) -> None:
        self._core = core
        self._waiting: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()

    def put(self, delivery: Delivery) -> None:
        self._waiting.put(delivery)

    def end(self) -> None:
        self._waiting.put(None)

    def __iter__(self) -> Iterator[Delivered]:
        while (delivery := self._waiting.get()) is not None:
            while (message := delivery.take_any()) is not None:
                yield Delivered(self._core.handing, delivery, message)
