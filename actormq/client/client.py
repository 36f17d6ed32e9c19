"""The synchronous face: one client with a thread of its own, from which producers and consumers are made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from actormq.client.messages import Message, MessageOptions
from actormq.client.procedures import Procedure
from actormq.client.reactor import Reactor
from actormq.client.results import SendResult
from actormq.client.session import Session
from actormq.client.settings import ClientSettings, ConsumerSettings, ProducerSettings
from actormq.clock import SystemClock
from actormq.errors import ClientClosed, RequestTimeout

if TYPE_CHECKING:
    from actormq.client.consumer import Consumer
    from actormq.client.producer import Producer
    from actormq.client.streams import Delivered

T = TypeVar("T")
DEFAULT_PRODUCER_GROUP = "actormq-producers"


class Client:
    """One connection to a cluster, shared by the producers and consumers made from it.  Safe for threads.

    ``with actormq.connect_sync("rocketmq://127.0.0.1:9876") as mq: …``
    """

    def __init__(self, url: str, *, settings: ClientSettings | None = None) -> None:
        """
        Args:
            url: ``rocketmq://host:port`` or ``zmq://host:port`` of a name server; several joined by commas.
        Raises:
            ConfigError: the URL or a setting is wrong.
        """
        clock = SystemClock()
        self._reactor = Reactor(clock)
        self.session = Session(self._reactor, url, settings, clock)
        self._lock = threading.Lock()
        self._is_started = False
        self._is_closed = False
        self._parts: list[Producer | Consumer] = []
        self._producer: Producer | None = None

    # -- life

    def start(self) -> Self:
        """Start the client's thread; a second call does nothing.

        Raises:
            ClientClosed: it was closed before.
        """
        with self._lock:
            if self._is_closed:
                raise ClientClosed("this client was closed: make a new one")
            if not self._is_started:
                self._is_started = True
                self._reactor.on_death = self.session.close
                self._reactor.start()
                self._reactor.call_soon(self.session.start)
        return self

    def close(self) -> None:
        """Close what was made from this client, say good-bye to the brokers, end the thread."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        for part in list(self._parts):
            part.close()
        if self._is_started:
            self._reactor.call_soon(self.session.close)
            self._reactor.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- making things

    def producer(
        self, group: str = DEFAULT_PRODUCER_GROUP, *, settings: ProducerSettings | None = None
    ) -> Producer:
        """Return a started producer that uses this client; closed with it at the latest."""
        from actormq.client.producer import Producer

        return Producer(self, group, settings=settings).start()

    def consumer(self, group: str, *, settings: ConsumerSettings | None = None) -> Consumer:
        """Return a started consumer that uses this client; closed with it at the latest."""
        from actormq.client.consumer import Consumer

        return Consumer(self, group, settings=settings).start()

    # -- the short way

    def send(
        self,
        topic: str,
        body: bytes | Message,
        *,
        key: str | None = None,
        **options: Unpack[MessageOptions],
    ) -> SendResult:
        """Send through a producer of the client's own; see `Producer.send`."""
        with self._lock:
            if self._producer is None and not self._is_closed:
                from actormq.client.producer import Producer

                self._producer = Producer(self, DEFAULT_PRODUCER_GROUP)
        if self._producer is None:
            raise ClientClosed("this client was closed: make a new one")
        return self._producer.start().send(topic, body, key=key, **options)

    def consume(
        self,
        topic: str,
        group: str,
        expression: str = "*",
        *,
        settings: ConsumerSettings | None = None,
    ) -> Iterator[Delivered]:
        """Yield messages one by one, for as long as the loop goes on; see `Consumer.stream`."""
        with self.consumer(group, settings=settings) as consumer:
            yield from consumer.stream(topic, expression)

    # -- for the producers and consumers

    def adopt(self, part: Producer | Consumer) -> None:
        """Close `part` when the client is closed."""
        with self._lock:
            self._parts.append(part)

    def release(self, part: Producer | Consumer) -> None:
        with self._lock:
            if part in self._parts:
                self._parts.remove(part)

    def require_other_thread(self) -> None:
        """Refuse to block the client's own thread: it would wait for itself."""
        if self._reactor.is_here():
            raise RuntimeError("a send callback must not block: hand the work to a thread of your own")

    def run(self, procedure: Procedure[T], timeout_s: float | None = None) -> T:
        """Run a procedure in the client's thread and wait for its result.

        Raises:
            ClientClosed, RequestTimeout, or what the procedure raises.
        """
        self.require_other_thread()
        finished = threading.Event()
        outcome: list[Any] = [None, None]

        def done(value: T | None, error: BaseException | None) -> None:
            outcome[:] = [value, error]
            finished.set()

        def begin() -> None:
            self.session.spawn(procedure, done)

        self._reactor.call_soon(begin)
        patience_s = 1.0 if timeout_s is None else timeout_s
        while not finished.wait(patience_s if self._reactor.is_alive else 0.0):
            if not self._reactor.is_alive:
                procedure.close()
                raise ClientClosed("the client's thread has ended")
            if timeout_s is not None:
                raise RequestTimeout(f"not done after {timeout_s} s")
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result


def connect_sync(url: str, *, settings: ClientSettings | None = None) -> Client:
    """Return a client for ``with``; the URL as for `Client`."""
    return Client(url, settings=settings)
