"""Sending: which queue, which attempt, what to do after a failure.  Procedures only.

Source: RocketMQ DefaultMQProducerImpl.java (sendDefaultImpl); client.md §2.3, §2.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from actormq.client import requests
from actormq.client.batching import Batch
from actormq.client.directory import Directory
from actormq.client.identifiers import UniqueKeys
from actormq.client.latency import FaultTable, choose_queue, queue_of_key
from actormq.client.messages import (
    Message,
    check_body,
    check_flag,
    check_topic,
    compress,
    encode_user_properties,
    with_unique_key,
)
from actormq.client.procedures import Address, Ask, Call, Pause, Tell
from actormq.client.requests import Outgoing, Stored
from actormq.client.results import MessageQueue, SendResult
from actormq.client.send_frames import SendFrames, parse_stored
from actormq.client.settings import ProducerSettings
from actormq.clock import Clock
from actormq.errors import (
    ActorMQError,
    BrokerUnknown,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    MessageRejected,
    PeerError,
    RequestRefused,
    RequestTimeout,
    ResponseCode,
    RouteNotFound,
    SendFailed,
)
from actormq.message import RETRY_PREFIX, SendStatus
from actormq.wire import batch as batch_bytes
from actormq.wire.command import RemotingCommand, next_opaque

QueueChoice = Callable[[Sequence[MessageQueue]], MessageQueue]
"""Picks one of the writable queues; called again for each attempt."""

QueueTarget = MessageQueue | QueueChoice
"""How a caller names a queue: itself, or by a function that picks one."""


def queue_choice(key: str | None, queue: QueueTarget | None) -> QueueChoice | None:
    """Return what `key` or `queue` of a send means; None = round robin.

    Raises:
        MessageRejected: both were given.
    """
    if key is not None:
        if queue is not None:
            raise MessageRejected("key and queue exclude each other: the key already decides the queue")
        return lambda queues: queue_of_key(queues, key)
    if isinstance(queue, MessageQueue):
        return lambda _: queue
    return queue


IsReachable = Callable[[Address], bool]
"""Whether a broker's TCP address may be called by the calling thread itself."""


@dataclass(slots=True)
class FirstAttempt:
    """What somebody has done before he needs a procedure.

    Attributes:
        is_reachable: of a thread that calls brokers itself.
        error: why his attempt failed.
        stored: what it came to otherwise; without both he has made none.
    """

    began_ns: int
    is_reachable: IsReachable | None = None
    error: ClientError | None = None
    broker_name: str | None = None
    stored: Stored | None = None


Item = tuple[int, bytes, bytes]
"""Flag, body, property string without the unique key."""


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """A stored batch: one status for all, consecutive queue offsets."""

    stored: Stored
    message_ids: list[str]

    def result(self, index: int) -> SendResult:
        """Return what became of the message at `index`."""
        return self.stored.result_in_batch(self.message_ids[index], index)


_HEAD_BYTES = 8
"""Of a frame before its header: two lengths, and the header's type between them."""
_TRY_ANOTHER_QUEUE = frozenset({int(ResponseCode.TOPIC_NOT_EXIST), int(ResponseCode.NO_PERMISSION)})


class Sender:
    """What all sends of one producer share.

    Used by any number of threads: its parts are immutable, or change by single assignments.
    """

    def __init__(
        self,
        group: str,
        settings: ProducerSettings,
        directory: Directory,
        clock: Clock,
        keys: UniqueKeys,
        first_index: int,
    ) -> None:
        """
        Args:
            first_index: where round robin begins; random, so that producers do not all start at queue 0.
        """
        self.group = group
        self.settings = settings
        self.directory = directory
        self.faults = FaultTable()
        self._clock = clock
        self._keys = keys
        self._index = count(first_index)
        self._frames = SendFrames(group, settings.queues_wanted)

    # -- messages to requests

    def single(self, message: Message) -> Outgoing:
        """Return a message ready to be sent.

        Raises:
            MessageRejected: it never could be.
        """
        check_body(message.body, self.settings.body_bytes_max)
        check_flag(message.flag)
        properties = encode_user_properties(
            message.tags, message.keys, message.properties, message.delay_level, message.wait_stored
        )
        return self._single((message.flag, message.body, properties))

    def _single(self, item: Item) -> Outgoing:
        flag, body, properties = item
        key = self._keys.next(self._clock.wall_ms())
        body, sys_flag = compress(body, self.settings.compress_from_bytes)
        return Outgoing(
            body=body,
            properties=with_unique_key(properties, key),
            message_ids=[key],
            sys_flag=sys_flag,
            flag=flag,
        )

    def batch(self, messages: Sequence[Message]) -> Outgoing:
        """Return messages ready to be sent as one.

        Raises:
            MessageRejected: none, too much, delayed, or with different `wait_stored`.
        """
        if not messages:
            raise MessageRejected("a batch has at least one message")
        if any(message.delay_level for message in messages):
            raise MessageRejected("a delayed message cannot be part of a batch: send it alone")
        if len({message.wait_stored for message in messages}) > 1:
            raise MessageRejected("all messages of a batch have the same wait_stored")
        items = []
        for message in messages:
            check_body(message.body, self.settings.body_bytes_max)
            check_flag(message.flag)
            properties = encode_user_properties(
                message.tags, message.keys, message.properties, wait_stored=message.wait_stored
            )
            items.append((message.flag, message.body, properties))
        return self._batch(items, messages[0].wait_stored)

    def _batch(self, items: Sequence[Item], wait_stored: bool) -> Outgoing:
        now_ms = self._clock.wall_ms()
        keys = [self._keys.next(now_ms) for _ in items]
        body = batch_bytes.encode(
            (flag, body, with_unique_key(properties, key))
            for (flag, body, properties), key in zip(items, keys, strict=True)
        )
        if len(body) > self.settings.body_bytes_max:
            raise MessageRejected(
                f"the batch has {len(body)} bytes; {self.settings.body_bytes_max} are allowed: split it"
            )
        return Outgoing(
            body=body,
            properties=encode_user_properties(wait_stored=wait_stored),
            message_ids=keys,
            batch=True,
        )

    # -- procedures

    async def send(
        self,
        topic: str,
        message: Outgoing,
        choose: QueueChoice | None = None,
        timeout_ms: int | None = None,
    ) -> SendResult:
        """Store one message; see `store`."""
        return (await self.store(topic, message, choose, timeout_ms)).result(message.message_ids[0])

    async def send_batch(
        self,
        topic: str,
        message: Outgoing,
        choose: QueueChoice | None = None,
        timeout_ms: int | None = None,
    ) -> BatchOutcome:
        """Store a batch; see `store`."""
        return batch_outcome(await self.store(topic, message, choose, timeout_ms), message)

    async def send_collected(self, batch: Batch, first: FirstAttempt | None = None) -> Stored:
        """Store what an `Accumulator` collected; a batch of one goes as an ordinary message."""
        lane = batch.lane
        queue = lane.queue
        choose = None if queue is None else lambda _: queue
        return await self.store(lane.topic, self._collected(batch), choose, first=first)

    def _collected(self, batch: Batch) -> Outgoing:
        if batch.count == 1:
            [item] = batch_bytes.iterate(batch.body())
            body, sys_flag = compress(bytes(item.body), self.settings.compress_from_bytes)
            return Outgoing(
                body=body,
                properties=bytes(item.properties),
                message_ids=[],
                sys_flag=sys_flag,
                flag=item.flag,
            )
        return Outgoing(
            body=batch.body(),
            properties=encode_user_properties(wait_stored=batch.lane.wait_stored),
            message_ids=[],
            batch=True,
        )

    async def store(
        self,
        topic: str,
        message: Outgoing,
        choose: QueueChoice | None = None,
        timeout_ms: int | None = None,
        first: FirstAttempt | None = None,
    ) -> Stored:
        """Store a message or batch: some attempts within one time-out.

        Without `choose` each attempt takes the next queue, away from the broker that just failed; with it the
        attempts go where it says.  An attempt that timed out may have been stored: a repetition is possible.

        Args:
            first: how far somebody has come who did not need a procedure until now.
        Raises:
            SendFailed: all attempts failed.
            RequestRefused: an answer after which trying again makes no sense.
            RouteNotFound, MessageRejected, PeerError.
        """
        timeout_ms = timeout_ms or self.settings.send_timeout_ms
        began_ns = self._clock.monotonic_ns() if first is None else first.began_ns
        deadline_ns = began_ns + timeout_ms * 1_000_000
        failures: list[ClientError] = []
        stored = None if first is None else first.stored
        failed_broker = None if first is None else first.broker_name
        failure = None if first is None else first.error
        for attempt in range(1 + self.settings.retries):
            if failure is None and (attempt or stored is None):
                pause_ms = self.settings.retry_pause_ms << attempt - 1 if failures else 0
                if self._left_ms(deadline_ns) <= pause_ms:
                    break
                if pause_ms:
                    await Pause(pause_ms)
                try:
                    queues = await self.directory.publish_queues(topic, self.settings.queues_wanted)
                    queue = self.choose(queues, choose, failed_broker)
                    failed_broker = queue.broker_name
                    left_ms = max(1, self._left_ms(deadline_ns))
                    stored = await self._attempt(queue, message, left_ms, first)
                except ClientError as error:
                    failure = error
            if failure is not None:
                failures.append(failure)
                if not self._is_worth_another(failure):
                    if stored is None:
                        raise failure
                    break
                await self._look_again(topic, failure)
                failure = None
                continue
            assert stored is not None
            if self.is_good_enough(stored):
                return stored
        if stored is not None:
            return stored
        last = failures[-1] if failures else None
        raise SendFailed(
            f"a message to {topic} could not be sent in {len(failures)} attempt(s) within {timeout_ms} ms; "
            f"last: {last or 'no time was left'}",
            failures,
        ) from last

    def now_ns(self) -> int:
        return self._clock.monotonic_ns()

    def _left_ms(self, deadline_ns: int) -> int:
        return (deadline_ns - self._clock.monotonic_ns()) // 1_000_000

    def choose(
        self,
        queues: tuple[MessageQueue, ...],
        choose: QueueChoice | None,
        failed_broker: str | None = None,
    ) -> MessageQueue:
        """Return the queue for the next attempt.

        Raises:
            MessageRejected: `choose` returned something else.
        """
        if choose is None:
            now_ms = self._clock.monotonic_ns() // 1_000_000
            return choose_queue(queues, next(self._index), failed_broker, self.faults, now_ms)
        queue = choose(queues)
        if not isinstance(queue, MessageQueue):
            raise MessageRejected(f"the queue selector returned {queue!r:.100}, which is no MessageQueue")
        return queue

    async def _attempt(
        self, queue: MessageQueue, message: Outgoing, timeout_ms: int, here: FirstAttempt | None
    ) -> Stored:
        began_ns = self._clock.monotonic_ns()
        failed = True
        try:
            direct = None
            if here is not None and here.is_reachable is not None:
                direct = self.direct_address(queue, here.is_reachable)
            if direct is not None:
                data, opaque = self.frame(queue, message)
                stored = parse_stored(await Call(direct, data, opaque, timeout_ms), queue, direct)
            else:
                address = await self.directory.master_of(queue.broker_name)
                answer = await Ask(address, self._request(queue, message), timeout_ms)
                stored = requests.parse_stored(answer, queue, address)
            failed = False
            return stored
        except RequestRefused as error:
            failed = self.blames_broker(error)
            raise
        finally:
            self.note(queue, began_ns, failed)

    def note(self, queue: MessageQueue, began_ns: int, failed: bool) -> None:
        """Remember how an attempt went."""
        now_ns = self._clock.monotonic_ns()
        self.faults.note(queue.broker_name, (now_ns - began_ns) / 1e6, now_ns // 1_000_000, failed=failed)

    def blames_broker(self, error: ClientError) -> bool:
        """Whether other brokers are better asked for a while."""
        return not isinstance(error, RequestRefused) or error.response_code in self.settings.retry_codes

    # -- of batches that are posted

    def place(self, topic: str, queue: MessageQueue | None) -> tuple[MessageQueue, Address] | None:
        """Return where a batch would go, if that can be said without asking anybody.

        Args:
            queue: the named one, or None = round robin.
        """
        if queue is None:
            queues = self.directory.table.publish_queues(topic)
            if not queues:
                return None
            queue = self.choose(queues, None)
        address = self.directory.known_master(queue.broker_name)
        return None if address is None else (queue, address)

    def judge(
        self, queue: MessageQueue, address: Address, began_ns: int, answer: RemotingCommand | ActorMQError
    ) -> Stored | ActorMQError:
        """Return what an attempt came to; the broker is remembered as quick, slow or failing."""
        outcome: Stored | ActorMQError
        failed = True
        if isinstance(answer, ActorMQError):
            outcome = answer
        else:
            try:
                outcome = requests.parse_stored(answer, queue, address)
                failed = False
            except RequestRefused as error:
                outcome = error
                failed = self.blames_broker(error)
            except PeerError as error:
                outcome = error
        self.note(queue, began_ns, failed)
        return outcome

    def is_good_enough(self, stored: Stored) -> bool:
        """Return whether no other broker is to be tried."""
        return stored.status is SendStatus.SEND_OK or not self.settings.retry_other_broker_when_not_ok

    # -- of a calling thread

    def direct_address(self, queue: MessageQueue, is_reachable: IsReachable) -> Address | None:
        """Return where the calling thread may call the queue's broker; None = ask by the client's loop.

        Whoever was given a ZeroMQ address may have no way to the broker's TCP port: then only where it has
        been seen to be open.
        """
        address = self.directory.table.tcp_master(queue.broker_name)
        if address is None or (self.directory.allows_zmq and not is_reachable(address)):
            return None
        return address

    def frame(self, queue: MessageQueue, message: Outgoing, oneway: bool = False) -> tuple[bytes, int]:
        """Return the frame that stores `message` in `queue`, and its opaque."""
        opaque = next_opaque()
        return self._frames.encode(queue, message, self._clock.wall_ms(), opaque, oneway), opaque

    def collected_single(self, queue: MessageQueue, batch: Batch) -> tuple[bytes, memoryview, int]:
        """Return the frame of a batch of one up to its body, the body, and the opaque."""
        data, opaque = self.frame(queue, self._collected(batch))
        body_at = _HEAD_BYTES + int.from_bytes(data[5:_HEAD_BYTES], "big")
        return data[:body_at], memoryview(data)[body_at:], opaque

    def _request(self, queue: MessageQueue, message: Outgoing, oneway: bool = False) -> RemotingCommand:
        return requests.send(
            self.group,
            queue,
            message,
            self._clock.wall_ms(),
            queues_wanted=self.settings.queues_wanted,
            oneway=oneway,
        )

    def _is_worth_another(self, error: ClientError) -> bool:
        if isinstance(error, RequestRefused):
            return error.response_code in self.settings.retry_codes
        return error.retryable and not isinstance(error, RouteNotFound)

    async def _look_again(self, topic: str, error: ClientError) -> None:
        """Ask for the route again where the failure says that it may be old; keep it when nobody answers."""
        is_stale = (
            isinstance(error, BrokerUnknown | ConnectFailed) or error.response_code in _TRY_ANOTHER_QUEUE
        )
        if is_stale:
            try:
                await self.directory.refresh(topic)
            except (ClientError, PeerError):
                return

    async def tell(
        self,
        topic: str,
        message: Outgoing,
        choose: QueueChoice | None = None,
        is_reachable: IsReachable | None = None,
    ) -> None:
        """Send without waiting for an answer; nothing says whether it was stored.

        Raises:
            RouteNotFound, NameServerUnavailable, BrokerUnknown, MessageRejected.
        """
        queues = await self.directory.publish_queues(topic, self.settings.queues_wanted)
        queue = self.choose(queues, choose)
        direct = None if is_reachable is None else self.direct_address(queue, is_reachable)
        if direct is None:
            address = await self.directory.master_of(queue.broker_name)
            await Tell(address, self._request(queue, message, oneway=True))
            return
        data, _ = self.frame(queue, message, oneway=True)
        with suppress(ConnectFailed, ConnectionLost, RequestTimeout):
            await Call(direct, data, None, self.settings.send_timeout_ms)


def check_batch_topic(topic: str) -> None:
    """Refuse a topic to which batches (and so collected messages) cannot be sent.

    Raises:
        MessageRejected: illegal, or a retry topic.
    """
    check_topic(topic)
    if topic.startswith(RETRY_PREFIX):
        raise MessageRejected(f"{topic} is a retry topic: batches cannot be sent to it")


def batch_outcome(stored: Stored, message: Outgoing) -> BatchOutcome:
    return BatchOutcome(stored, message.message_ids)
