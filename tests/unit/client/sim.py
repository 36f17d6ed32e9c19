"""One client in virtual time: a session on a `SimNetwork`, and consumers whose listeners run in the loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from unit.client.fakes import NAME_SERVER, FakeCluster, SimLoop, SimNetwork

from actormq.client.consuming import ConsumerCore
from actormq.client.held import Delivery, QueueWatcher
from actormq.client.received import ReceivedMessage
from actormq.client.sending import Sender
from actormq.client.session import Session
from actormq.client.settings import ClientSettings, ConsumerSettings, ProducerSettings
from actormq.client.workers import level_of, level_of_failure

T = TypeVar("T")


class SimClient:
    """See the module."""

    def __init__(
        self,
        loop: SimLoop,
        cluster: FakeCluster,
        name: str = "one",
        *,
        scheme: str = "rocketmq",
        settings: ClientSettings | None = None,
    ) -> None:
        self.loop = loop
        self.cluster = cluster
        settings = settings or ClientSettings(instance=name)
        self.session = Session(loop, f"{scheme}://{NAME_SERVER}", settings, loop.clock)
        self.session.random = random.Random(name)
        self.network = SimNetwork(loop, cluster, self.session)
        self.session.network = self.network  # type: ignore[assignment]
        self.session.start()

    @property
    def id(self) -> str:
        return self.session.client_id

    def run(self, procedure: Coroutine[Any, Any, T], within_ms: int = 60_000) -> T:
        """Run a procedure in virtual time and return its result, or raise what it raises."""
        outcome: list[Any] = []
        self.session.spawn(procedure, lambda value, error: outcome.append((value, error)))
        self.loop.run_until(lambda: bool(outcome), within_ms)
        value, error = outcome[0]
        if error is not None:
            raise error
        result: T = value
        return result

    def sender(self, settings: ProducerSettings | None = None) -> Sender:
        session = self.session
        return Sender(
            "producers", settings or ProducerSettings(), session.directory, session.clock, session.keys, 0
        )

    def consumer(
        self,
        group: str,
        listener: Callable[[ReceivedMessage], Any],
        topic: str = "orders",
        expression: str = "*",
        *,
        takes_ms: int = 0,
        on_queues: QueueWatcher | None = None,
        **settings: Any,
    ) -> SimConsumer:
        consumer = SimConsumer(self, group, ConsumerSettings(**settings), takes_ms, on_queues)
        consumer.core.subscribe(topic, expression, listener)
        consumer.core.start()
        return consumer

    def kill(self) -> None:
        """End as by SIGKILL: nothing is said any more, by anybody."""
        self.session.close()


class SimConsumer:
    """A consumer core whose listeners run in the loop, each message taking `takes_ms`."""

    def __init__(
        self,
        client: SimClient,
        group: str,
        settings: ConsumerSettings,
        takes_ms: int,
        on_queues: QueueWatcher | None,
    ) -> None:
        self._client = client
        self._takes_ms = takes_ms
        self.core = ConsumerCore(client.session, group, settings, self._hand_over, on_queues)

    def _hand_over(self, delivery: Delivery) -> None:
        self._client.loop.call_soon(lambda: self._next(delivery))

    def _next(self, delivery: Delivery) -> None:
        message = delivery.take(self._client.loop.now_ms())
        if message is None:
            self.core.handing.report(delivery, [], True)
        else:
            self._client.loop.call_later(self._takes_ms, lambda: self._finish(delivery, message))

    def _finish(self, delivery: Delivery, message: ReceivedMessage) -> None:
        if self._client.session.is_closed:
            return
        try:
            level = level_of(delivery.listener(message))
        except Exception as error:
            level = level_of_failure(delivery, error)
        is_last = level is not None and delivery.in_order
        self.core.handing.report(delivery, [(message, level)], is_last)
        if not is_last:
            self._next(delivery)

    def close(self) -> None:
        """Leave the group in an orderly way: listeners finish what they have, nothing new begins."""
        self.core.halt()
        self._client.loop.run_for(self._takes_ms + 1)
        self._client.run(self.core.leave())
