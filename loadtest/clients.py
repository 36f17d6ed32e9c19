"""Native clients under one face, so that a worker does the same work with each of them.

Each way is the one that its documentation shows to somebody in a hurry; `settings` says what was set.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from loadtest import kafka

QUEUES: Final = 8
PATIENCE_S: Final = 60.0
Received = Callable[[bytes], None]


class NativeClient(ABC):
    """One client library, connected to one server."""

    settings: ClassVar[dict[str, str]]

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def create(self, *topics: str) -> None:
        """Make topics, unless the harness has made them."""

    @abstractmethod
    def open_producer(self, *, pipelined: bool) -> None: ...

    @abstractmethod
    def send_round(self, topic: str, bodies: Sequence[bytes]) -> None:
        """Send each body by a call of its own, without waiting; look at outcomes as they come."""

    @abstractmethod
    def finish(self) -> int:
        """Wait for every outcome; return how many messages were acknowledged."""

    @abstractmethod
    def send(self, topic: str, body: bytes) -> None:
        """Return when it is acknowledged.  Raises whatever the client raises when it is not."""

    @abstractmethod
    def close_producer(self) -> None: ...

    @abstractmethod
    def consume(
        self,
        topic: str,
        group: str,
        count: int,
        received: Received,
        *,
        pipelined: bool,
        ready: Callable[[], None],
    ) -> None:
        """Receive `count` messages, from the first on, and commit the offsets.

        Args:
            pipelined: take as many at a time as the client likes, instead of each as soon as it is there.
            ready: called once a member of the group.
        """


# --- ours ----------------------------------------------------------------------------------------------


class ActorMQ(NativeClient):
    settings: ClassVar = {
        "produce": "send_async() per message, future.exception() of each looked at",
        "sync": "send()",
        "consume": "subscribe() with a listener, one worker, committed at close",
    }

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._waiting: deque[list[Any]] = deque()
        self._acknowledged = 0

    def create(self, *topics: str) -> None:
        pass

    def open_producer(self, *, pipelined: bool) -> None:
        from actormq.client import Producer

        self._producer = Producer(self.url, group="bench").start()

    def send_round(self, topic: str, bodies: Sequence[bytes]) -> None:
        send = self._producer.send_async
        self._waiting.append([send(topic, body) for body in bodies])
        while self._waiting[0][-1].done():
            self._look_at(self._waiting.popleft())
            if not self._waiting:
                return

    def _look_at(self, futures: list[Any]) -> None:
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        self._acknowledged += len(futures)
        # Status, queue and offset are there for each; making the tuple for one in a round shows it.
        assert futures[-1].result().queue_offset >= 0

    def finish(self) -> int:
        self._producer.flush()
        while self._waiting:
            self._look_at(self._waiting.popleft())
        return self._acknowledged

    def send(self, topic: str, body: bytes) -> None:
        self._producer.send(topic, body)

    def close_producer(self) -> None:
        self._producer.close()

    def consume(
        self,
        topic: str,
        group: str,
        count: int,
        received: Received,
        *,
        pipelined: bool,
        ready: Callable[[], None],
    ) -> None:
        from actormq.client import Consumer, ConsumerSettings, StartFrom

        finished = threading.Event()
        left = count

        def listener(message: Any) -> None:
            nonlocal left
            received(message.body)
            left -= 1
            if left == 0:
                finished.set()

        # One worker: the listener is Python, and more threads would only pass the interpreter's lock around.
        settings = ConsumerSettings(start_from=StartFrom.FIRST, workers=1)
        with Consumer(self.url, group=group, settings=settings) as consumer:
            consumer.subscribe(topic, "*", listener)
            deadline = time.monotonic() + PATIENCE_S
            while len(consumer.queues()) < QUEUES and time.monotonic() < deadline:
                time.sleep(0.01)
            ready()
            if not finished.wait(PATIENCE_S):
                raise TimeoutError(f"{left} of {count} messages did not come within {PATIENCE_S} s")


# --- Kafka ---------------------------------------------------------------------------------------------


class Confluent(NativeClient):
    settings: ClassVar = {
        "produce": "produce() per message with a delivery callback; acks=all, linger 5 ms, batch 256 KiB",
        "sync": "produce() + flush(); acks=all, linger 0",
        "consume": "consume(5000), commit per batch; fetch backoff 1 ms, 8 MiB fetches",
    }
    _OUTSTANDING_MAX: Final = 150_000

    def __init__(self, url: str) -> None:
        super().__init__(url)
        sys.path.append(str(kafka.packages()))
        self._sent = self._acknowledged = 0
        self._failure: Any = None

    def create(self, *topics: str) -> None:
        from confluent_kafka.admin import (  # type: ignore[import-not-found, unused-ignore]
            AdminClient,
            NewTopic,
        )

        admin = AdminClient({"bootstrap.servers": self.url})
        made = admin.create_topics([NewTopic(topic, 1, 1) for topic in topics], request_timeout=15)
        for future in made.values():
            future.result()

    def open_producer(self, *, pipelined: bool) -> None:
        import confluent_kafka  # type: ignore[import-not-found, unused-ignore]

        bulk = {
            "linger.ms": 5,
            "batch.size": 262_144,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 1 << 20,
        }
        common = {"bootstrap.servers": self.url, "acks": "all", "reconnect.backoff.ms": 20}
        self._producer = confluent_kafka.Producer(common | (bulk if pipelined else {"linger.ms": 0}))

    def _delivered(self, error: Any, message: Any) -> None:
        if error is None:
            self._acknowledged += 1
        else:
            self._failure = error

    def send_round(self, topic: str, bodies: Sequence[bytes]) -> None:
        produce, poll, delivered = self._producer.produce, self._producer.poll, self._delivered
        for number, body in enumerate(bodies):
            produce(topic, body, on_delivery=delivered)
            if not number & 127:
                poll(0)
        self._sent += len(bodies)
        while self._sent - self._acknowledged > self._OUTSTANDING_MAX and self._failure is None:
            poll(0.01)

    def finish(self) -> int:
        self._producer.flush(PATIENCE_S)
        if self._failure is not None:
            raise RuntimeError(f"not delivered: {self._failure}")
        return self._acknowledged

    def send(self, topic: str, body: bytes) -> None:
        before = self._acknowledged
        self._producer.produce(topic, body, on_delivery=self._delivered)
        self._producer.flush()
        if self._acknowledged != before + 1:
            raise RuntimeError(f"not delivered: {self._failure}")

    def close_producer(self) -> None:
        self._producer.flush(PATIENCE_S)

    def consume(
        self,
        topic: str,
        group: str,
        count: int,
        received: Received,
        *,
        pipelined: bool,
        ready: Callable[[], None],
    ) -> None:
        import confluent_kafka

        settings: dict[str, Any] = {
            "bootstrap.servers": self.url,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.min.bytes": 1,
        }
        if pipelined:
            # With its default of 1 s a fast consumer stalls whenever its queue has been full.
            settings |= {
                "queued.min.messages": 1_000_000,
                "fetch.queue.backoff.ms": 1,
                "max.partition.fetch.bytes": 8 << 20,
            }
        consumer = confluent_kafka.Consumer(settings)
        assigned = threading.Event()
        consumer.subscribe([topic], on_assign=lambda *_: assigned.set())
        early: list[Any] = []
        deadline = time.monotonic() + PATIENCE_S
        while not assigned.is_set():
            early += consumer.consume(1, 0.05)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no partition was assigned within {PATIENCE_S} s")
        ready()
        self._receive(consumer, early, count, received, pipelined)
        consumer.close()

    @staticmethod
    def _receive(consumer: Any, messages: list[Any], count: int, received: Received, pipelined: bool) -> None:
        left, deadline = count, time.monotonic() + PATIENCE_S
        while left > 0:
            for message in messages:
                if message.error():
                    raise RuntimeError(message.error())
                received(message.value())
            left -= len(messages)
            if messages and (pipelined or not left):
                consumer.commit(asynchronous=False)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} of {count} messages did not come within {PATIENCE_S} s")
            messages = consumer.consume(5_000 if pipelined else 1, 0.05) if left else []


CLIENTS: Final[dict[str, type[NativeClient]]] = {"actormq": ActorMQ, "kafka": Confluent}
