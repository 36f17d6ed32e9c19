# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False
"""Received messages: from the body of a pull to the listener, and what became of each.

`cut` finds the messages of a pull, `Batch` keeps them until each was dealt with, `Handful` gives them to
listeners, `ReceivedMessage` is what a listener sees: made when it is its turn, and decoded only where it is
looked at.  Plain Python that runs as it stands; compiled, `received.pxd` gives the C types.

Threads: workers take messages and mark them, the client's thread looks at the marks.  There are no locks: a
mark is one byte that one worker stores, and who takes what is decided by a counter's one step.

Source: RocketMQ MessageDecoder.java (a record's layout); wire.md §5.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import count as counting
from typing import Any, Final, NamedTuple

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if not cython.compiled:
    from actormq.kernels.queues import find_byte, find_properties, numbers
    from actormq.kernels.records import load_i16, load_i32, load_i64, pointer_const, text_at

    WAITING: Final = 0
    TAKEN: Final = 1
    DONE: Final = 2

    def decoded(data: memoryview, at: int, size: int) -> str:
        """Return some bytes as text."""
        return bytes(data[at : at + size]).decode("utf-8", "replace")

    def bytes_of(marks: bytearray) -> bytearray:
        """Return the bytes in `marks`; compiled, a C pointer."""
        return marks

    def count_marks(marks: bytearray, at: int, end: int, mark: int) -> int:
        """Say how many of ``marks[at:end]`` are `mark`."""
        return marks.count(mark, at, end)

    def value_place(data: memoryview, at: int, end: int, which: int) -> tuple[int, int]:
        """Return position and size of one property's value; `which`: its place in `find_properties`."""
        places = numbers(array("q", bytes(64)))
        find_properties(data, at, end, places)
        return places[which], places[which + 1]

    def step(handful: Handful) -> int:
        """Return the number of the next message, each one once, whoever asks."""
        index: int = next(handful.cursor)
        handful.taken = index + 1
        return index


RECORD_BYTES_MIN: Final = 91
"""No record is shorter: all fields, an IPv4 address twice, nothing else."""


class Rules(NamedTuple):
    """What messages need from above: kernels import nothing of ours."""

    error: Callable[[str], Exception]
    """Makes what is raised for bytes that are no record."""
    decompress: Callable[[bytes, int], bytes]
    """(stored body, sysFlag) → what was sent."""
    host: Callable[[bytes], str]
    """Address and port as stored → text."""
    message_id: Callable[[bytes, int], str]
    """(store host as stored, log offset) → the broker's id."""
    unwrap: Callable[[memoryview], bytes]
    """Records → the same with an ordinary record for each message of an inner batch."""
    rebuild: Callable[..., ReceivedMessage]
    """Unpickles: (record, queue, attempts) → message."""


class Gate:
    """What the client's thread tells those who work on the messages of one window."""

    __slots__ = ("is_closed", "report_after")

    def __init__(self) -> None:
        self.is_closed = False
        """Nothing more may be taken."""
        self.report_after = 0
        """Somebody waits for room: each worker shall say so when it is through with so many; 0 = nobody."""


class Batch:
    """The messages of one pull that are new and wanted; made by `cut`.

    Attributes:
        count: how many.
        size: bytes that they hold in memory: the whole pull's, as long as one message of it is there.
    """

    __slots__ = (
        "_first",
        "_marks",
        "_raw",
        "_starts",
        "_view",
        "count",
        "gate",
        "kept",
        "next_offset",
        "queue",
        "rules",
        "size",
    )

    count: int
    gate: Gate
    kept: Any
    next_offset: int
    queue: Any
    rules: Rules
    size: int
    _first: int
    _marks: bytearray
    _raw: Any
    _starts: Any
    _view: Any

    def left(self) -> int:
        """Return how many messages are not done."""
        self.first()
        return self.count - self._first - count_marks(self._marks, self._first, self.count, DONE)

    def first(self) -> int:
        """Return the number of the first message that is not done; `count` when all are."""
        at = self._first
        while at < self.count and self._marks[at] == DONE:
            at += 1
        self._first = at
        return at

    def offset_of(self, index: int) -> int:
        """Return the queue offset of message `index`."""
        return load_i64(self._raw, self._starts[index] + 20)

    def is_taken(self, index: int) -> bool:
        """Say whether a listener was given message `index` and has not returned."""
        return self._marks[index] == TAKEN

    def message(self, index: int) -> ReceivedMessage:
        """Return message `index`, from 0; each call makes an object of its own."""
        if index < 0 or index >= self.count:
            raise IndexError(f"no message {index} in {self.count}")
        return make(self, index)

    def messages(self) -> list[ReceivedMessage]:
        """Return all messages."""
        found = []
        for index in range(self.count):
            found.append(make(self, index))
        return found


def cut(
    data: Any,
    queue: Any,
    rules: Rules,
    gate: Gate,
    first_offset: int = -1,
    tags: frozenset[str] | None = None,
) -> Batch:
    """Find the messages that lie in `data` one behind the other (a pull's body).

    Args:
        data: bytes, or a buffer that nobody changes.
        queue: what `ReceivedMessage.queue` shall be.
        first_offset: what has a lower queue offset is left out, and so is what does not go on upwards from
            there; negative: nothing is left out.
        tags: leave out messages with other tags, letter by letter; None or empty: keep all.

    Raises:
        `rules.error`: a size or magic that no record has, an inner batch that is none.
    """
    view = memoryview(data)
    raw = pointer_const(view)
    end = len(view)
    records = 0
    wrapped = False
    at = 0
    while at < end:
        if end - at < 91:
            raise rules.error(f"a record cut off after {end - at} bytes")
        size = load_i32(raw, at)
        magic = load_i32(raw, at + 4)
        if (magic != -626843481 and magic != -626843477) or size < 91 or size > end - at:
            raise rules.error(f"no record at byte {at} of {end}: size {size}, magic {magic}")
        if load_i32(raw, at + 36) & 0xC0 == 0xC0:
            wrapped = True
        records += 1
        at += size
    if wrapped:
        return cut(rules.unwrap(view), queue, rules, gate, first_offset, tags)
    places = array("q", bytes(8 * records + 8))
    starts = numbers(places)
    kept = 0
    at = 0
    takes_all = first_offset < 0
    while at < end:
        offset = load_i64(raw, at + 20)
        if takes_all or offset >= first_offset:
            first_offset = offset + 1
            if not tags or tag_of(raw, at, rules) in tags:
                starts[kept] = at
                kept += 1
        at += load_i32(raw, at)
    batch = Batch.__new__(Batch)
    marks = bytearray(kept)
    batch._view = view
    batch._raw = raw
    batch.kept = (places, marks)
    batch._starts = starts
    batch._marks = bytes_of(marks)
    batch._first = 0
    batch.count = kept
    batch.size = end
    batch.next_offset = first_offset
    batch.queue = queue
    batch.rules = rules
    batch.gate = gate
    return batch


def make(batch: Batch, index: int) -> ReceivedMessage:
    """Return a message object for record `index` of `batch`."""
    message = ReceivedMessage.__new__(ReceivedMessage)
    message._batch = batch
    message._start = batch._starts[index]
    message._index = index
    message._attempts = 0
    message._body = None
    message._properties = None
    return message


# --- where what is, in the record that begins at `start` -------------------------------------------------


def field_end(raw: memoryview, start: int, at: int, size: int, rules: Rules) -> int:
    """Return where a field of the record, `size` bytes at `at`, begins in `raw`."""
    if at + size > load_i32(raw, start):
        raise rules.error(f"a record of {load_i32(raw, start)} bytes that ends before its body")
    return start + at


def born_host_bytes(raw: memoryview, start: int) -> int:
    """Return the length of the producer's address and port."""
    return 20 if load_i32(raw, start + 36) & 0x10 else 8


def hosts_bytes(raw: memoryview, start: int) -> int:
    """Return the length of both addresses."""
    return born_host_bytes(raw, start) + (20 if load_i32(raw, start + 36) & 0x20 else 8)


def body_place(raw: memoryview, start: int, rules: Rules) -> int:
    """Return where the body begins; its length lies in the four bytes before."""
    at = field_end(raw, start, 68 + hosts_bytes(raw, start), 4, rules) + 4
    body_bytes = load_i32(raw, at - 4)
    if body_bytes < 0 or body_bytes > load_i32(raw, start) - (at - start):
        raise rules.error(f"a record of {load_i32(raw, start)} bytes with a body of {body_bytes}")
    return at


def topic_place(raw: memoryview, start: int, rules: Rules) -> tuple[int, int]:
    """Return begin and end of the topic."""
    size = load_i32(raw, start)
    at = body_place(raw, start, rules)
    at += load_i32(raw, at - 4)
    if at + 3 > start + size:
        raise rules.error(f"a record of {size} bytes with a body of {at - start}")
    if load_i32(raw, start + 4) == -626843477:
        begin = at + 2
        topic_end = begin + (load_i16(raw, at) & 0xFFFF)
    else:
        begin = at + 1
        topic_end = begin + raw[at]
    if topic_end + 2 > start + size:
        raise rules.error(f"a record of {size} bytes whose topic ends outside it")
    return begin, topic_end


def properties_place(raw: memoryview, start: int, rules: Rules) -> tuple[int, int]:
    """Return begin and end of the property string."""
    size = load_i32(raw, start)
    _, at = topic_place(raw, start, rules)
    properties_bytes = load_i16(raw, at) & 0xFFFF
    if at + 2 + properties_bytes > start + size:
        raise rules.error(f"a record of {size} bytes with {properties_bytes} bytes of properties")
    return at + 2, at + 2 + properties_bytes


def property_of(raw: memoryview, start: int, which: int, rules: Rules) -> str | None:
    """Return one property without decoding the others; `which`: its place in `find_properties`."""
    begin, end = properties_place(raw, start, rules)
    at, size = value_place(raw, begin, end, which)
    return None if at < 0 else decoded(raw, at, size)


def all_properties(raw: memoryview, start: int, rules: Rules) -> dict[str, str]:
    """Return all properties; as in `actormq.message.decode_properties` the last duplicate wins."""
    at, end = properties_place(raw, start, rules)
    found = {}
    while at < end:
        item_end = find_byte(raw, at, end, 2)
        value_at = find_byte(raw, at, item_end, 1) + 1
        if at + 1 < value_at < item_end:
            found[decoded(raw, at, value_at - 1 - at)] = decoded(raw, value_at, item_end - value_at)
        at = item_end + 1
    return found


def tag_of(raw: memoryview, start: int, rules: Rules) -> str | None:
    """Return the TAGS property."""
    return property_of(raw, start, 0, rules)


class ReceivedMessage:
    """A stored message, read from the bytes in which it came.

    Nothing of it is decoded before it is asked for.  Whatever it has to decode may raise `PeerError`: the
    record is damaged.
    """

    __slots__ = ("_attempts", "_batch", "_body", "_index", "_properties", "_start")

    _attempts: int
    _batch: Batch
    _body: bytes | None
    _index: int
    _properties: dict[str, str] | None
    _start: int

    def __reduce__(self) -> tuple[Any, ...]:
        batch = self._batch
        record = text_at(batch._raw, self._start, load_i32(batch._raw, self._start))
        return batch.rules.rebuild, (record, batch.queue, self._attempts)

    @property
    def queue(self) -> Any:
        """The queue that it was pulled from."""
        return self._batch.queue

    @property
    def queue_offset(self) -> int:
        """Its number in the queue."""
        return load_i64(self._batch._raw, self._start + 20)

    @property
    def stored_bytes(self) -> int:
        """Size of the whole record."""
        return load_i32(self._batch._raw, self._start)

    @property
    def flag(self) -> int:
        """The sender's own number."""
        return load_i32(self._batch._raw, self._start + 16)

    @property
    def log_offset(self) -> int:
        """Where the record begins in the broker's log."""
        return load_i64(self._batch._raw, self._start + 28)

    @property
    def sys_flag(self) -> int:
        """Bits that say how it is stored."""
        return load_i32(self._batch._raw, self._start + 36)

    @property
    def born_timestamp_ms(self) -> int:
        """When the producer made it (wall clock there)."""
        return load_i64(self._batch._raw, self._start + 40)

    @property
    def store_timestamp_ms(self) -> int:
        """When the broker stored it (wall clock there)."""
        raw = self._batch._raw
        return load_i64(raw, self._start + 48 + born_host_bytes(raw, self._start))

    @property
    def born_host(self) -> str:
        """``address:port`` of the producer."""
        batch = self._batch
        return batch.rules.host(
            text_at(batch._raw, self._start + 48, born_host_bytes(batch._raw, self._start))
        )

    @property
    def store_host(self) -> str:
        """``address:port`` of the broker."""
        return self._batch.rules.host(self._store_host())

    def _store_host(self) -> bytes:
        batch = self._batch
        born_bytes = born_host_bytes(batch._raw, self._start)
        size = hosts_bytes(batch._raw, self._start) - born_bytes
        at = field_end(batch._raw, self._start, 56 + born_bytes, size, batch.rules)
        return text_at(batch._raw, at, size)

    @property
    def reconsume_times(self) -> int:
        """How many times it was delivered and given back before."""
        batch = self._batch
        at = 56 + hosts_bytes(batch._raw, self._start)
        return load_i32(batch._raw, field_end(batch._raw, self._start, at, 4, batch.rules)) + self._attempts

    def count_attempt(self) -> None:
        """Note one more delivery that this client itself will repeat."""
        self._attempts += 1

    @property
    def prepared_transaction_offset(self) -> int:
        """Where its half message lies in the log."""
        batch = self._batch
        at = 60 + hosts_bytes(batch._raw, self._start)
        return load_i64(batch._raw, field_end(batch._raw, self._start, at, 8, batch.rules))

    @property
    def stored_body(self) -> bytes:
        """The body as stored, perhaps compressed."""
        batch = self._batch
        at = body_place(batch._raw, self._start, batch.rules)
        return text_at(batch._raw, at, load_i32(batch._raw, at - 4))

    @property
    def body(self) -> bytes:
        """What was sent.

        Raises:
            PeerError: compressed in a way that this Python cannot undo, or damaged.
        """
        if self._body is None:
            batch = self._batch
            at = body_place(batch._raw, self._start, batch.rules)
            stored = text_at(batch._raw, at, load_i32(batch._raw, at - 4))
            sys_flag = load_i32(batch._raw, self._start + 36)
            self._body = batch.rules.decompress(stored, sys_flag) if sys_flag & 1 else stored
        return self._body

    @property
    def stored_topic(self) -> str:
        """The topic that it lies in; for a retried message ``%RETRY%group``."""
        raw = self._batch._raw
        begin, end = topic_place(raw, self._start, self._batch.rules)
        return decoded(raw, begin, end - begin)

    @property
    def topic(self) -> str:
        """The topic that it was sent to."""
        stored = self.stored_topic
        if stored.startswith("%RETRY%"):
            return self.properties.get("RETRY_TOPIC", stored)
        return stored

    @property
    def properties(self) -> dict[str, str]:
        """All properties, RocketMQ's own included."""
        if self._properties is None:
            batch = self._batch
            self._properties = all_properties(batch._raw, self._start, batch.rules)
        return self._properties

    def _property(self, which: int, name: str) -> str | None:
        """Return one property; `which`: its place in `find_properties`."""
        if self._properties is not None:
            return self._properties.get(name)
        return property_of(self._batch._raw, self._start, which, self._batch.rules)

    @property
    def tags(self) -> str | None:
        """The word that consumers filter by."""
        return self._property(0, "TAGS")

    @property
    def keys(self) -> list[str]:
        """The words by which it can be found."""
        return (self._property(2, "KEYS") or "").split()

    @property
    def message_id(self) -> str:
        """The producer's unique key; the broker's id where there is none."""
        return self._property(4, "UNIQ_KEY") or self.offset_message_id

    @property
    def offset_message_id(self) -> str:
        """The broker's own id: its address and the log offset."""
        return self._batch.rules.message_id(self._store_host(), self.log_offset)

    def __repr__(self) -> str:
        queue = self._batch.queue
        return (
            f"<ReceivedMessage {self.topic} {self.message_id} at {queue.broker_name}/"
            f"{queue.queue_id}/{self.queue_offset}, {self.stored_bytes} bytes>"
        )


# --- what became of them ---------------------------------------------------------------------------------


def finish(message: ReceivedMessage) -> bool:
    """Mark a message as done; False: it was."""
    batch = message._batch
    if batch._marks[message._index] == DONE:
        return False
    batch._marks[message._index] = DONE
    return True


def is_done(message: ReceivedMessage) -> bool:
    """Say whether a message was dealt with."""
    return message._batch._marks[message._index] == DONE


def gate_of(message: ReceivedMessage) -> Gate:
    """Return the gate of the window that took the message in hand."""
    return message._batch.gate


class Handful:
    """Messages of one window for one listener, taken one by one by one or more workers.

    Args:
        messages: a batch, whose messages are made when it is their turn, or some messages (at least one).
    """

    __slots__ = ("batch", "count", "cursor", "gate", "picks", "taken")

    batch: Batch | None
    cursor: Any
    gate: Gate
    picks: list[ReceivedMessage]

    def __init__(self, messages: Batch | list[ReceivedMessage]) -> None:
        self.batch = None
        self.picks = []
        if isinstance(messages, Batch):
            self.batch = messages
            self.gate = messages.gate
            self.count = messages.count
        else:
            self.picks = messages
            self.gate = gate_of(messages[0])
            self.count = len(messages)
        self.taken = 0
        if not cython.compiled:
            self.cursor = counting()

    def has_more(self) -> bool:
        """Return whether there is probably a message left for somebody."""
        return self.taken < self.count and not self.gate.is_closed

    def take(self) -> ReceivedMessage | None:
        """Return the next message; None when all were taken or the gate is closed.  Any thread."""
        if self.gate.is_closed:
            return None
        index = step(self)
        if index >= self.count:
            return None
        message = self.picks[index] if self.batch is None else make(self.batch, index)
        message._batch._marks[message._index] = TAKEN
        return message

    def work(
        self, listener: Callable[[ReceivedMessage], Any], again: Any
    ) -> tuple[ReceivedMessage | None, Any] | None:
        """Give `listener` one message after the other; each that it returns from is done.

        Returns:
            None when there is nothing more to take; (None, None) when somebody waits to hear of room;
            else a message that is not done, and what the listener raised, or `again`, which it returned.
        """
        gate = self.gate
        done = 0
        message = None
        try:
            while True:
                message = self.take()
                if message is None:
                    return None
                outcome = listener(message)
                if outcome is again:
                    return message, outcome
                message._batch._marks[message._index] = DONE
                done += 1
                if gate.report_after != 0 and done >= gate.report_after:
                    return None, None
        except Exception as error:
            # The user's code: whatever it raises is for the caller to judge.
            return message, error
