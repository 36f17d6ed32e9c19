# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False, auto_pickle=False, nonecheck=True
"""A producer's messages into request bodies: what one call per message costs.

Plain Python that runs as it stands; compiled, `collecting.pxd` gives the C types.  A message is written once,
as an item of RocketMQ's batch body, at the end of the batch that is open for its topic; what the caller gets
names the batch and the place in it.

    i32 item size | i32 0 | i32 0 | i32 flag | i32 body size | body | i16 properties size | properties

The properties begin with the message's unique key; the keys of a batch differ in their last four digits,
which count.  Compiled, `Window.put` (and with it the common `Collecting.send_async`) is one step for other
threads: nothing in it calls into Python or gives up the interpreter's lock, so it needs no lock of its own.
Uncompiled, it takes `Window.lock`.  All other methods are called with that lock held.

Source: RocketMQ MessageDecoder.encodeMessage; wire.md §5.3.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if not cython.compiled:
    from actormq.kernels.records import bytes_pointer, copy_bytes, store_i16, store_i32

    ITEM_BYTES: Final = 22
    KEY_PREFIX_BYTES: Final = 37
    UNIQUE_BYTES: Final = 42
    _DIGITS: Final = b"0123456789ABCDEF"

    def new_buffer(size: int) -> bytearray:
        """Return memory for a batch; compiled, it is not cleared."""
        return bytearray(size)

    def writing(buffer: bytearray) -> memoryview:
        """Return where `buffer` lies, for writing."""
        return memoryview(buffer)

    def digit(value: int) -> int:
        """Return the hexadecimal digit of a number below 16."""
        return _DIGITS[value]

    def new_future(batch: Batch, index: int) -> SendFuture:
        """Return the future of one message."""
        return SendFuture(batch, index)


_NO_KEYS: Final = ()
"""What `keys` is when it was not given."""


class Batch:
    """Messages that travel and end together.

    Attributes:
        count, used_bytes: of the messages in it.
        is_done: the outcome is known: `error`, or None = it was stored.
    """

    def __init__(self, size: int, key_prefix: bytes, first_key: int) -> None:
        """
        Args:
            size: bytes that it can hold.
            key_prefix: what the unique keys begin with: ``UNIQ_KEY``, 0x01 and 28 digits.
            first_key: the number in the first key's last digits; all of them have four.
        """
        assert len(key_prefix) == KEY_PREFIX_BYTES
        self._buffer: bytearray | None = new_buffer(size)
        self._size = size
        self._key_prefix = key_prefix
        self._first_key = first_key
        self.used_bytes = 0
        self.count = 0
        self.is_done = False
        self.error: Exception | None = None

    def settle(self, error: Exception | None) -> None:
        """Make the outcome known, and let go of the bytes."""
        self._buffer = None
        self.error = error
        self.is_done = True

    def body(self) -> memoryview:
        """Return the items; not copied, and good for as long as it is held."""
        assert self._buffer is not None, "the outcome is known: the bytes are gone"
        return memoryview(self._buffer)[: self.used_bytes]

    def unique_key(self, index: int) -> str:
        """Return the unique key of the message at `index`."""
        return f"{self._key_prefix[9:].decode()}{self._first_key + index:04X}"

    # -- of one message; `actormq.client.batching.Batch` says how

    def result_of(self, index: int, timeout_s: float | None) -> Any:
        raise NotImplementedError

    def wait(self, timeout_s: float | None) -> None:
        raise NotImplementedError

    def call_back(self, callback: Callable[[Any], None], future: Any) -> None:
        raise NotImplementedError

    def awaited(self) -> Generator[None, None, None]:
        raise NotImplementedError


@cython.no_gc
@cython.freelist(4096)
@cython.cclass
class SendFuture:
    """One message on its way.  Wait with `result`, ``await`` it, or be called back.

    Light: it only points into the batch that the message travels in.
    """

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self._index = index

    def done(self) -> bool:
        """Return whether the outcome is known."""
        return self._batch.is_done

    def result(self, timeout_s: float | None = None) -> Any:
        """Return status, queue and offset of the message, as a `SendResult`.

        Raises:
            ClientError: what went wrong (SendFailed, RequestRefused, RouteNotFound, ClientClosed, …).
            RequestTimeout: `timeout_s` passed; the message is still on its way.
        """
        return self._batch.result_of(self._index, timeout_s)

    def exception(self, timeout_s: float | None = None) -> Any:
        """Return what went wrong, or None; waits like `result`."""
        if not self._batch.is_done:
            self._batch.wait(timeout_s)
        return self._batch.error

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` with this future once the outcome is known (in the client's own thread: be brief).

        At once, in this thread, when it is known already.  What it raises is logged.
        """
        self._batch.call_back(callback, self)

    def __await__(self) -> Generator[None, None, Any]:
        yield from self._batch.awaited()
        return self._batch.result_of(self._index, 0)


class Lane:
    """Where the messages for one topic (and perhaps one queue) wait.

    Attributes:
        open: the batch that takes them now; None = the next one must be opened.
    """

    def __init__(self) -> None:
        self.open: Batch | None = None


class Spread:
    """The lanes of a topic's queues, for messages that name one by a key.

    Args:
        queues: the queues that the topic can be sent to, in their order.
    """

    def __init__(self, queues: tuple[Any, ...]) -> None:
        self.queues = queues
        self.lanes: list[Lane | None] = [None] * len(queues)


class Window:
    """Everything whose outcome is not known yet, and how much more may come.

    Attributes:
        messages, held_bytes: in the window.
        lock: see the module.
    """

    def __init__(
        self,
        *,
        messages_max: int,
        bytes_max: int,
        batch_messages: int,
        batch_bytes: int,
        body_bytes_max: int,
    ) -> None:
        """
        Args:
            body_bytes_max: longer bodies are left to the rules for what is uncommon.
        """
        self.lock = threading.Lock()
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._batch_messages = batch_messages
        self._batch_bytes = batch_bytes
        self._body_bytes_max = body_bytes_max
        self._lanes: dict[str, Lane] = {}
        self._spreads: dict[str, Spread] = {}
        self._named: dict[tuple[str, Any], Lane] = {}
        self._topic: str | None = None
        self._lane: Lane | None = None
        self.messages = 0
        self.held_bytes = 0

    def know(self, topic: str, lane: Lane) -> None:
        """Take the common messages for `topic` into `lane`."""
        self._lanes[topic] = lane

    def know_queue(self, topic: str, queue: Any, lane: Lane) -> None:
        """Take the common messages that name `queue` into `lane`."""
        self._named[topic, queue] = lane

    def know_keys(self, topic: str, queues: tuple[Any, ...], queue: Any, lane: Lane) -> None:
        """Take the common messages whose key means `queue`, one of `queues`, into `lane`."""
        spread = self._spreads.get(topic)
        if spread is None or spread.queues is not queues:
            # Another route: what keys mean may have changed, so every queue is looked at again.
            spread = self._spreads[topic] = Spread(queues)
        spread.lanes[queues.index(queue)] = lane

    def forget(self, topic: str | None = None, queue: Any = None) -> None:
        """Leave a topic, or a queue, to the rules for what is uncommon; without both everything."""
        if topic is None:
            self._lanes.clear()
            self._spreads.clear()
            self._named.clear()
        elif queue is None:
            self._lanes.pop(topic, None)
        else:
            self._named.pop((topic, queue), None)
            self._spreads.pop(topic, None)
        self._topic = None
        self._lane = None

    def has_room(self, size: int) -> bool:
        """Return whether an item of `size` bytes fits; one that is alone always does."""
        return self._has_room(size)

    def _has_room(self, size: int) -> bool:
        if self.messages == 0:
            return True
        return self.messages < self._messages_max and self.held_bytes + size <= self._bytes_max

    def is_full(self, batch: Batch) -> bool:
        """Return whether a batch should wait for no more."""
        return batch.count >= self._batch_messages or batch.used_bytes >= self._batch_bytes

    def add(self, lane: Lane, flag: int, body: bytes, properties: bytes) -> Any:
        """Write a message into the batch that is open, and return its `SendFuture`.

        None = there is no such batch, it is full, or the window is.

        Args:
            properties: as stored, without the unique key.
        """
        return self._add(lane, flag, body, properties)

    def _add(self, lane: Lane, flag: int, body: bytes, properties: bytes) -> SendFuture | None:
        batch = lane.open
        if batch is None:
            return None
        body_size = len(body)
        properties_size = len(properties)
        size = ITEM_BYTES + UNIQUE_BYTES + properties_size + body_size
        if batch.count >= self._batch_messages or batch.used_bytes + size > batch._size:
            return None
        buffer = batch._buffer
        if buffer is None or not self._has_room(size):
            return None
        # Made first: from here on nothing can fail.
        future = new_future(batch, batch.count)
        out = writing(buffer)
        at = batch.used_bytes
        store_i32(out, at, size)
        store_i32(out, at + 4, 0)
        store_i32(out, at + 8, 0)
        store_i32(out, at + 12, flag)
        store_i32(out, at + 16, body_size)
        at += 20
        copy_bytes(out, at, bytes_pointer(body), body_size)
        at += body_size
        store_i16(out, at, UNIQUE_BYTES + properties_size)
        at += 2
        copy_bytes(out, at, bytes_pointer(batch._key_prefix), KEY_PREFIX_BYTES)
        at += KEY_PREFIX_BYTES
        key = batch._first_key + batch.count
        out[at] = digit(key >> 12 & 15)
        out[at + 1] = digit(key >> 8 & 15)
        out[at + 2] = digit(key >> 4 & 15)
        out[at + 3] = digit(key & 15)
        out[at + 4] = 2
        if properties_size:
            copy_bytes(out, at + 5, bytes_pointer(properties), properties_size)
        batch.used_bytes += size
        batch.count += 1
        self.messages += 1
        self.held_bytes += size
        return future

    def leave(self, batch: Batch) -> None:
        """Give back the room of a batch."""
        self.messages -= batch.count
        self.held_bytes -= batch.used_bytes

    def put(
        self,
        topic: str,
        body: bytes,
        properties: bytes = b"",
        flag: int = 0,
        key: str | None = None,
        queue: Any = None,
    ) -> Any:
        """Add a common message and return its `SendFuture`; None = something is not common.

        The message that fills a batch is not: whoever adds it must see to it that the batch leaves.
        """
        if cython.compiled:
            return self._put(topic, body, properties, flag, key, queue)
        with self.lock:
            return self._put(topic, body, properties, flag, key, queue)

    def _put(
        self, topic: str, body: bytes, properties: bytes, flag: int, key: str | None, queue: Any
    ) -> SendFuture | None:
        if type(body) is not bytes or type(topic) is not str:
            return None
        lane = self._find(topic, key, queue)
        # From here on nothing calls into Python: no other thread sees the window before all is done.
        if lane is None:
            return None
        batch = lane.open
        if batch is None:
            return None
        data = body
        size = len(data)
        if size == 0 or size > self._body_bytes_max:
            return None
        size += ITEM_BYTES + UNIQUE_BYTES + len(properties)
        if batch.count + 1 >= self._batch_messages or batch.used_bytes + size >= self._batch_bytes:
            return None
        return self._add(lane, flag, data, properties)

    def _find(self, topic: str, key: str | None, queue: Any) -> Lane | None:
        if key is None and queue is None:
            if topic is not self._topic:
                known = self._lanes.get(topic)
                if known is None:
                    return None
                self._topic = topic
                self._lane = known
            return self._lane
        if key is None:
            return self._named.get((topic, queue)) if isinstance(queue, tuple) else None
        if queue is not None or type(key) is not str:
            return None
        spread = self._spreads.get(topic)
        if spread is None:
            return None
        return spread.lanes[place_of_key(key, len(spread.lanes))]


def place_of_key(key: str, count: int) -> int:
    """Return which of `count` queues a key means: Java's ``String.hashCode``, without its sign, modulo."""
    value = 0
    for letter in key:
        unit = ord(letter)
        if unit > 0xFFFF:
            value = (31 * value + 0xD800 + (unit - 0x10000 >> 10)) & 0xFFFFFFFF
            unit = 0xDC00 + (unit - 0x10000 & 0x3FF)
        value = (31 * value + unit) & 0xFFFFFFFF
    if value & 0x80000000:
        value = 0x100000000 - value
    return value % count


class Collecting:
    """Base of a producer: the way of a common message, which leaves compiled code once per batch.

    Args:
        window: where messages go; topics that it does not know are left to `_send_async`.
    """

    def __init__(self, window: Window) -> None:
        self._quick = window
        self._tagged: tuple[str | None, bytes] = (None, b"")
        """The tags of the last message that had some, and their properties: the next often has the same."""

    def send_async(
        self,
        topic: str,
        body: Any,
        *,
        key: str | None = None,
        queue: Any = None,
        tags: str | None = None,
        keys: str | Iterable[str] = (),
        properties: Any = None,
        delay_level: int = 0,
        wait_stored: bool = True,
        flag: int = 0,
    ) -> Any:
        """Put a message into the window and return at once; the future knows what became of it.

        Messages for one topic travel together in batches.  Messages with the same `key` (or named queue)
        are stored in the order in which they were sent.  Blocks only while the window is full.

        Args:
            topic: where to.
            body: bytes, or a `Message` (then without the options below).
            key: messages with the same key go to the same queue.
            queue: a queue, or a function that picks one of the writable queues.
            tags, keys, properties, delay_level, wait_stored, flag: see `Message`.

        Returns:
            A `SendFuture`.

        Raises:
            WindowFull: it stayed full for `window_timeout_ms`.
            RouteNotFound (only with `key` or a function), MessageRejected, ClientClosed.
        """
        if (
            type(body) is bytes
            and delay_level == 0
            and wait_stored is True
            and type(flag) is int
            and -0x80000000 <= flag <= 0x7FFFFFFF
            # Not what can be read only once: the long way may have to read it again.
            and (keys is _NO_KEYS or isinstance(keys, (str, list, tuple)))
        ):
            encoded = b""
            if keys is not _NO_KEYS or properties is not None:
                encoded = self._encode(tags, keys, properties)
            elif tags is not None:
                tagged = self._tagged
                if tags is not tagged[0]:
                    tagged = self._tagged = (tags, self._encode(tags, (), None))
                encoded = tagged[1]
            if cython.compiled:
                future = self._quick._put(topic, body, encoded, flag, key, queue)
            else:
                future = self._quick.put(topic, body, encoded, flag, key, queue)
            if future is not None:
                return future
        options: dict[str, Any] = {}
        if tags is not None:
            options["tags"] = tags
        if keys is not _NO_KEYS:
            options["keys"] = keys
        if properties is not None:
            options["properties"] = properties
        if delay_level != 0:
            options["delay_level"] = delay_level
        if wait_stored is not True:
            options["wait_stored"] = wait_stored
        if flag != 0:
            options["flag"] = flag
        return self._send_async(topic, body, key, queue, options)

    def _send_async(self, topic: str, body: Any, key: str | None, queue: Any, options: Any) -> Any:
        """Send what is not common."""
        raise NotImplementedError

    def _encode(self, tags: str | None, keys: Any, properties: Any) -> bytes:
        """Return the property string; what cannot be one raises."""
        raise NotImplementedError
