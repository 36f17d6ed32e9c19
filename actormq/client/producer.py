"""Producer, the synchronous face.  Safe for threads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from actormq.client.client import DEFAULT_PRODUCER_GROUP, Client
from actormq.client.collecting import Collector, window_full
from actormq.client.futures import SendFuture
from actormq.client.messages import Message, MessageOptions, as_message, check_topic, encode_user_properties
from actormq.client.procedures import Procedure
from actormq.client.requests import Outgoing, Stored
from actormq.client.results import MessageQueue, SendResult
from actormq.client.send_frames import parse_stored
from actormq.client.sending import (
    FirstAttempt,
    QueueChoice,
    QueueTarget,
    Sender,
    batch_outcome,
    check_batch_topic,
    queue_choice,
)
from actormq.client.settings import ClientSettings, ProducerSettings, check_group
from actormq.client.tasks import run_here
from actormq.errors import ClientClosed, ClientError, RequestTimeout
from actormq.kernels.collecting import Collecting

T = TypeVar("T")
log = logging.getLogger("actormq.client")


class Producer(Collecting):
    """Sends messages.

    ``with Producer("rocketmq://127.0.0.1:9876", group="shop") as producer: producer.send("orders", b"…")``
    """

    def __init__(
        self,
        client: str | Client,
        group: str = DEFAULT_PRODUCER_GROUP,
        *,
        settings: ProducerSettings | None = None,
        client_settings: ClientSettings | None = None,
    ) -> None:
        """
        Args:
            client: the URL of a name server, or a `Client` to share connections with.
            group: producers of one group are interchangeable.
            client_settings: for a client of its own.
        Raises:
            ConfigError: the URL, the group or a setting is wrong.
        """
        check_group(group)
        self.group = group
        self._owns_client = isinstance(client, str)
        self._client = Client(client, settings=client_settings) if isinstance(client, str) else client
        session = self._client.session
        self.settings = settings or ProducerSettings()
        self._sender = Sender(
            group,
            self.settings,
            session.directory,
            session.clock,
            session.keys,
            session.random.randrange(1 << 16),
        )
        self._direct = session.direct
        self._collector = Collector(session, self._sender)
        super().__init__(self._collector.window)
        self._lock = threading.Lock()
        self._state = "new"

    # -- life

    def start(self) -> Self:
        """Start; a second call does nothing.  Nothing is sent before it is needed.

        Raises:
            ClientClosed: it was closed before.
        """
        with self._lock:
            if self._state == "closed":
                raise ClientClosed("this producer was closed: make a new one")
            if self._state == "new":
                self._client.start()
                self._client.adopt(self)
                session = self._client.session
                session.loop.call_soon(lambda: session.add_producer(self.group))
                self._state = "running"
        return self

    def close(self, timeout_ms: int | None = None) -> None:
        """Send what waits (for at most `timeout_ms`, default the send time-out), then stop.

        What could not be sent by then has the outcome ClientClosed.
        """
        with self._lock:
            was_running, self._state = self._state == "running", "closed"
        if was_running:
            self._collector.refuse()
            timeout_s = (timeout_ms or self.settings.send_timeout_ms) / 1000
            with suppress(ClientClosed):  # the client's thread may be dead
                try:
                    self._client.run(self._collector.flush(), timeout_s)
                except RequestTimeout as late:
                    log.warning("the producer was closed with messages on their way: %s", late)
                self._collector.close()
                self._client.run(self._client.session.remove_producer(self.group))
            self._client.release(self)
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- sending

    def send(
        self,
        topic: str,
        body: bytes | Message,
        *,
        key: str | None = None,
        queue: QueueTarget | None = None,
        timeout_ms: int | None = None,
        **options: Unpack[MessageOptions],
    ) -> SendResult:
        """Store one message and return its queue and offset.

        Failures are tried again, on another broker where there is one, within the time-out.

        Args:
            key: messages with the same key go to the same queue.
            queue: a queue, or a function that picks one of the writable queues.
            options: tags, keys, properties, delay_level, wait_stored, flag: see `Message`.
        Raises:
            SendFailed: every attempt failed; it may have been stored all the same.
            RequestRefused: the broker will not have it (its `response_code` says why).
            RouteNotFound, MessageRejected, ClientClosed.
        """
        self._require_running()
        check_topic(topic)
        message = self._sender.single(as_message(body, options))
        return self._store(topic, message, queue_choice(key, queue), timeout_ms).result(
            message.message_ids[0]
        )

    def send_batch(
        self,
        topic: str,
        messages: Sequence[Message | bytes],
        *,
        key: str | None = None,
        queue: QueueTarget | None = None,
        timeout_ms: int | None = None,
    ) -> list[SendResult]:
        """Store messages in one queue, one behind the other: all of them or none.

        Raises:
            As `send`.
        """
        self._require_running()
        check_batch_topic(topic)
        batch = self._sender.batch([as_message(message, {}) for message in messages])
        outcome = batch_outcome(self._store(topic, batch, queue_choice(key, queue), timeout_ms), batch)
        return [outcome.result(index) for index in range(len(messages))]

    def send_oneway(
        self,
        topic: str,
        body: bytes | Message,
        *,
        key: str | None = None,
        queue: QueueTarget | None = None,
        **options: Unpack[MessageOptions],
    ) -> None:
        """Send without waiting for an answer: quick, and nothing tells whether it was stored.

        Raises:
            RouteNotFound, MessageRejected, ClientClosed.
        """
        self._require_running()
        check_topic(topic)
        message = self._sender.single(as_message(body, options))
        self._run(self._sender.tell(topic, message, queue_choice(key, queue), self._direct.is_reachable))

    if TYPE_CHECKING:
        # Its docstring and its common way are `Collecting`'s, which cannot name the client's types.
        def send_async(
            self,
            topic: str,
            body: bytes | Message,
            *,
            key: str | None = None,
            queue: QueueTarget | None = None,
            **options: Unpack[MessageOptions],
        ) -> SendFuture: ...

    def _send_async(
        self,
        topic: str,
        body: bytes | Message,
        key: str | None,
        queue: QueueTarget | None,
        options: Any,
    ) -> SendFuture:
        self._require_running()
        message = as_message(body, options)
        choose = queue_choice(key, queue)
        queues: tuple[MessageQueue, ...] = ()
        target = queue if isinstance(queue, MessageQueue) else None
        if target is None and choose is not None:
            queues = self._queues(topic)
            target = choose(queues)
        future = self._collector.collect(topic, message, target)
        if future is None:
            future = self._collect_later(topic, message, target)
        if key is not None and target is not None:
            self._collector.know_key(topic, queues, target)
        return future

    def _encode(self, tags: str | None, keys: Any, properties: Any) -> bytes:
        return encode_user_properties(tags, keys, properties)

    def _queues(self, topic: str) -> tuple[MessageQueue, ...]:
        directory = self._client.session.directory
        return directory.table.publish_queues(topic) or self._run(
            directory.publish_queues(topic, self.settings.queues_wanted)
        )

    def _collect_later(self, topic: str, message: Message, target: MessageQueue | None) -> SendFuture:
        self._client.require_other_thread()
        deadline = time.monotonic() + self.settings.window_timeout_ms / 1000
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._collector.wait_for_room(message, left_s):
                raise window_full(self.settings)
            future = self._collector.collect(topic, message, target)
            if future is not None:
                return future

    def flush(self, timeout_ms: int | None = None) -> None:
        """Return when the outcome of everything sent so far is known.

        Raises:
            RequestTimeout: `timeout_ms` passed; it goes on being sent.
        """
        self._require_running()
        self._client.run(self._collector.flush(), None if timeout_ms is None else timeout_ms / 1000)

    def queues(self, topic: str) -> tuple[MessageQueue, ...]:
        """Return the queues that the topic can be sent to.

        Raises:
            RouteNotFound, ClientClosed.
        """
        self._require_running()
        directory = self._client.session.directory
        return self._run(directory.publish_queues(topic, self.settings.queues_wanted))

    def _store(
        self, topic: str, message: Outgoing, choose: QueueChoice | None, timeout_ms: int | None
    ) -> Stored:
        """Do what `Sender.store` says; the first attempt, mostly the only one, without a procedure."""
        self._client.require_other_thread()
        sender, direct = self._sender, self._direct
        first = FirstAttempt(sender.now_ns(), direct.is_reachable)
        queues = self._client.session.directory.table.publish_queues(topic)
        if queues and not self.settings.retry_other_broker_when_not_ok:
            queue = sender.choose(queues, choose)
            address = sender.direct_address(queue, direct.is_reachable)
            if address is not None:
                try:
                    data, opaque = sender.frame(queue, message)
                    answer = direct.call(address, data, opaque, timeout_ms or self.settings.send_timeout_ms)
                    stored = parse_stored(answer, queue, address)
                except ClientError as error:
                    sender.note(queue, first.began_ns, sender.blames_broker(error))
                    first.error, first.broker_name = error, queue.broker_name
                else:
                    sender.note(queue, first.began_ns, False)
                    return stored
        return self._run(sender.store(topic, message, choose, timeout_ms, first))

    def _run(self, procedure: Procedure[T]) -> T:
        try:
            self._client.require_other_thread()
        except RuntimeError:
            procedure.close()
            raise
        return run_here(self._client.session.network, procedure, self._direct)

    def _require_running(self) -> None:
        if self._state != "running":
            raise ClientClosed(f"this producer is {self._state}: use it inside `with`, or call start() first")
