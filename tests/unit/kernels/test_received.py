"""Received messages: compiled and uncompiled alike, and like a decoder that reads one record alone."""

from __future__ import annotations

import pickle
import struct
import threading
import zlib
from itertools import chain
from random import Random
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_twins import each_of, twins

from actormq.client.received import RULES
from actormq.client.results import MessageQueue
from actormq.errors import PeerError
from actormq.kernels import records
from actormq.message import SysFlag, decode_properties, encode_properties

KERNELS = twins("received")
both = each_of(KERNELS)

QUEUE = MessageQueue("orders", "broker-a", 3)
SECONDS = 30.0


# --- records, and the simple decoder ---------------------------------------------------------------------

HOSTS = st.binary(min_size=8, max_size=8) | st.binary(min_size=20, max_size=20)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
PROPERTIES = st.dictionaries(
    st.sampled_from(["TAGS", "KEYS", "UNIQ_KEY", "RETRY_TOPIC", "DELAY", "TAG", "TAGSX"]) | TEXTS, TEXTS
)


@st.composite
def stored(draw: st.DrawFn) -> bytes:
    """A record of either version, with addresses of either kind, compressed or not."""
    topic = draw(st.sampled_from(["orders", "%RETRY%g", "%RETRY%" + "g" * 200]) | TEXTS).encode()
    born_host, store_host = draw(HOSTS), draw(HOSTS)
    body, sys_flag = draw(st.binary(max_size=60)), 0
    if draw(st.booleans()):
        body, sys_flag = zlib.compress(body), 0x301
    properties = encode_properties(draw(PROPERTIES))
    if draw(st.booleans()):
        odd = st.sampled_from([b"\x01", b"\x02", b"\xe2", b"\x82", b"\xac", b"\xf0", b"TAGS", b"KEYS", b"a"])
        properties += draw(st.lists(odd, max_size=12).map(b"".join) | st.binary(max_size=20))
    sizes = (len(born_host), len(store_host), len(topic), len(properties), len(body))
    out = bytearray(records.record_size(*sizes))
    records.encode(
        out,
        0,
        queue_id=draw(st.integers(0, 9)),
        flag=draw(st.integers(-(2**31), 2**31 - 1)),
        queue_offset=draw(st.integers(0, 2**62)),
        physical_offset=draw(st.integers(0, 2**62)),
        sys_flag=sys_flag,
        born_timestamp=draw(st.integers(0, 2**60)),
        born_host=born_host,
        store_timestamp=draw(st.integers(0, 2**60)),
        store_host=store_host,
        reconsume_times=draw(st.integers(0, 20)),
        prepared_offset=draw(st.integers(0, 2**60)),
        body=body,
        topic=topic,
        properties=properties,
    )
    return bytes(out)


def record(offset: int, tag: str | None = None, body: bytes = b"x") -> bytes:
    properties = encode_properties({"TAGS": tag} if tag else {})
    out = bytearray(records.record_size(8, 8, 6, len(properties), len(body)))
    records.encode(
        out, 0, queue_id=3, flag=0, queue_offset=offset, physical_offset=77, sys_flag=0, born_timestamp=1,
        born_host=b"\x7f\0\0\1\0\0\0\1", store_timestamp=2, store_host=b"\x7f\0\0\1\0\0\0\2",
        reconsume_times=0, prepared_offset=0, body=body, topic=b"orders", properties=properties,
    )  # fmt: skip
    return bytes(out)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A record of which some bytes are others; its size and its first magic are still right."""
    data = bytearray(draw(stored()))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(8, len(data) - 1))
        data[at] = draw(st.integers(0, 255))
    data[39] &= ~(
        SysFlag.NEED_UNWRAP | SysFlag.INNER_BATCH
    )  # a message of messages is taken apart: another test
    return bytes(data)


def record_with_log_offset(log_offset: int) -> bytes:
    """Return a record that lies where none can lie."""
    data = bytearray(record(0))
    struct.pack_into(">q", data, 28, log_offset)
    return bytes(data)


class Simple:
    """One record, decoded field after field; whatever lies outside it is an error."""

    def __init__(self, record: bytes) -> None:
        self.record = record

    def number(self, code: str, at: int) -> int:
        value: int = struct.unpack_from(">" + code, self.record, at)[0]
        return value

    def part(self, at: int, size: int) -> bytes:
        if size < 0 or at + size > len(self.record):
            raise PeerError("outside")
        return self.record[at : at + size]

    def read(self, name: str) -> Any:
        flags = self.number("i", 36)
        born = 20 if flags & 0x10 else 8
        store = 20 if flags & 0x20 else 8
        fixed = {
            "stored_bytes": lambda: len(self.record),
            "flag": lambda: self.number("i", 16),
            "queue_offset": lambda: self.number("q", 20),
            "log_offset": lambda: self.number("q", 28),
            "sys_flag": lambda: flags,
            "born_timestamp_ms": lambda: self.number("q", 40),
            "born_host": lambda: RULES.host(self.part(48, born)),
            "store_timestamp_ms": lambda: self.number("q", 48 + born),
            "store_host": lambda: RULES.host(self.part(56 + born, store)),
            "reconsume_times": lambda: self.number("i", 56 + born + store),
            "prepared_transaction_offset": lambda: self.number("q", 60 + born + store),
            "stored_body": lambda: self.body(68 + born + store)[0],
            "offset_message_id": lambda: (self.part(56 + born, store) + self.part(28, 8)).hex().upper(),
        }
        if name in fixed:
            return fixed[name]()
        body, at = self.body(68 + born + store)
        if name == "body":
            return RULES.decompress(body, flags) if flags & 1 else body
        if at + 3 > len(self.record):
            raise PeerError("outside")
        if self.number("i", 4) == -626_843_477:
            topic_at, topic_bytes = at + 2, self.number("H", at)
        else:
            topic_at, topic_bytes = at + 1, self.number("B", at)
        topic = self.part(topic_at, topic_bytes).decode("utf-8", "replace")
        if topic_at + topic_bytes + 2 > len(self.record):
            raise PeerError("outside")
        if name == "stored_topic" or (name == "topic" and not topic.startswith("%RETRY%")):
            return topic
        at = topic_at + topic_bytes
        properties = decode_properties(self.part(at + 2, self.number("H", at)))
        named = {
            "properties": lambda: properties,
            "topic": lambda: properties.get("RETRY_TOPIC", topic),
            "tags": lambda: properties.get("TAGS"),
            "keys": lambda: properties.get("KEYS", "").split(),
            "message_id": lambda: properties.get("UNIQ_KEY") or self.read("offset_message_id"),
        }
        return named[name]()

    def body(self, at: int) -> tuple[bytes, int]:
        size = self.number("i", at)
        return self.part(at + 4, size), at + 4 + size

    def answer(self, name: str) -> Any:
        try:
            return self.read(name)
        except (PeerError, struct.error):
            return PeerError


NAMES = [
    "stored_bytes", "flag", "queue_offset", "log_offset", "sys_flag", "born_timestamp_ms", "born_host",
    "store_timestamp_ms", "store_host", "reconsume_times", "prepared_transaction_offset", "stored_body",
    "body", "stored_topic", "topic", "tags", "keys", "message_id", "properties", "offset_message_id",
]  # fmt: skip


def answer(message: Any, name: str) -> Any:
    try:
        return getattr(message, name)
    except PeerError:
        return PeerError


def cut(kernel: ModuleType, data: bytes, **options: Any) -> Any:
    return kernel.cut(data, QUEUE, RULES, kernel.Gate(), **options)


@both
@example([record_with_log_offset(-1)], NAMES)
@given(st.lists(stored() | damaged(), min_size=1, max_size=4), st.permutations(NAMES))
def test_every_field_is_read_like_the_simple_decoder(
    kernel: ModuleType, data: list[bytes], names: list[str]
) -> None:
    """In whatever order, whole records and damaged ones, between neighbours that must not leak in."""
    messages = cut(kernel, b"".join(data)).messages()
    assert len(messages) == len(data)
    for message, record in zip(messages, data, strict=True):
        simple = Simple(record)
        assert {name: answer(message, name) for name in names} == {
            name: simple.answer(name) for name in names
        }
        assert message.queue is QUEUE


@both
@given(st.binary(max_size=200) | st.lists(stored(), max_size=3).map(b"".join), st.data())
@example(b"\0" * 91, None)
def test_what_is_no_record_is_refused_whole(
    kernel: ModuleType, data: bytes, drawn: st.DataObject | None
) -> None:
    """A wrong size, a wrong magic, a record that is cut off: nothing comes of the others either."""
    if drawn is not None and data:
        mutable = bytearray(data)
        mutable[drawn.draw(st.integers(0, len(data) - 1))] ^= drawn.draw(st.integers(0, 255))
        data = bytes(mutable[: drawn.draw(st.integers(0, len(data)))])
    at, expected = 0, []
    while at < len(data):
        if len(data) - at < 91:
            break
        size, magic = struct.unpack_from(">ii", data, at)
        if magic not in (-626_843_481, -626_843_477) or not 91 <= size <= len(data) - at:
            break
        expected.append(data[at : at + size])
        at += size
    if at < len(data):
        with pytest.raises(PeerError):
            cut(kernel, data)
    else:
        found = cut(kernel, data).messages()
        assert [one.stored_bytes for one in found] == [len(record) for record in expected]


@both
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([None, "a", "b", "ab"])), max_size=20),
    st.integers(0, 30),
    st.sets(st.sampled_from(["a", "ab", "c"])),
)
def test_what_is_old_or_has_other_tags_is_left_out(
    kernel: ModuleType, placed: list[tuple[int, str | None]], first: int, tags: set[str]
) -> None:
    """As if one message after the other was looked at."""
    batch = cut(
        kernel,
        b"".join(record(offset, tag) for offset, tag in placed),
        first_offset=first,
        tags=frozenset(tags),
    )
    expected, following = [], first
    for offset, tag in placed:
        if offset >= following:
            following = offset + 1
            if not tags or tag in tags:
                expected.append((offset, tag))
    assert [(one.queue_offset, one.tags) for one in batch.messages()] == expected
    assert (batch.count, batch.next_offset) == (len(expected), following)
    assert [batch.offset_of(index) for index in range(batch.count)] == [offset for offset, _ in expected]


def numbered(kernel: ModuleType, count: int) -> Any:
    return cut(kernel, b"".join(record(offset, body=b"%d" % offset) for offset in range(count)))


@both
def test_a_message_is_made_once_it_is_wanted_and_keeps_what_it_needs(kernel: ModuleType) -> None:
    """Its bytes live as long as it; the body is one object however often it is looked at."""
    message = numbered(kernel, 5).message(3)
    assert (message.body, message.queue_offset) == (b"3", 3)
    assert message.body is message.body
    assert message.properties is message.properties
    message.count_attempt()
    assert message.reconsume_times == 1
    with pytest.raises(IndexError):
        numbered(kernel, 5).message(5)
    with pytest.raises(IndexError):
        numbered(kernel, 5).message(-1)


@both
def test_a_message_can_be_pickled(kernel: ModuleType) -> None:
    """For listeners that hand the work to other processes."""
    message = numbered(kernel, 5).message(2)
    message.count_attempt()
    again = pickle.loads(pickle.dumps(message))
    assert (again.body, again.queue_offset, again.queue, again.reconsume_times) == (b"2", 2, QUEUE, 1)


# --- marks -----------------------------------------------------------------------------------------------


@both
@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_the_first_and_the_number_of_those_left(kernel: ModuleType, count: int, random: Random) -> None:
    batch = numbered(kernel, count)
    order, left = list(range(count)), set(range(count))
    random.shuffle(order)
    for index in order:
        assert (batch.first(), batch.left()) == (min(left), len(left))
        message = batch.message(index)
        assert not kernel.is_done(message)
        assert kernel.finish(message)
        assert not kernel.finish(batch.message(index)), "the mark is the record's, not the object's"
        left.discard(index)
    assert (batch.first(), batch.left()) == (count, 0)


@both
def test_each_message_is_taken_once_by_however_many_threads(kernel: ModuleType) -> None:
    handful = kernel.Handful(numbered(kernel, 2_000))
    taken: list[list[int]] = [[] for _ in range(4)]

    def take(mine: list[int]) -> None:
        while (message := handful.take()) is not None:
            mine.append(message.queue_offset)

    threads = [threading.Thread(target=take, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(chain.from_iterable(taken)) == list(range(2_000))
    assert not handful.has_more()
    assert handful.take() is None
    assert handful.batch.is_taken(1_999)
    assert handful.batch.left() == 2_000, "taken is not done"


@both
def test_work_marks_what_the_listener_returned_from(kernel: ModuleType) -> None:
    batch, seen = numbered(kernel, 5), []

    def listener(message: Any) -> None:
        assert batch.is_taken(int(message.body))
        assert batch.left() == 5 - len(seen), "marked afterwards, not before"
        seen.append(message.body)

    assert kernel.Handful(batch).work(listener, None.__class__) is None
    assert seen == [b"0", b"1", b"2", b"3", b"4"]
    assert batch.left() == 0


@both
def test_work_stops_at_what_is_not_done_and_goes_on_behind_it(kernel: ModuleType) -> None:
    """A listener that raised, or wants the message again: it stays unfinished, and the caller decides."""
    batch, again, trouble = numbered(kernel, 4), object(), ValueError("no")

    def listener(message: Any) -> Any:
        if message.body == b"1":
            raise trouble
        return again if message.body == b"2" else "whatever"

    handful = kernel.Handful(batch)
    message, outcome = handful.work(listener, again)
    assert (message.body, outcome) == (b"1", trouble)
    message, outcome = handful.work(listener, again)
    assert (message.body, outcome) == (b"2", again)
    assert handful.work(listener, again) is None
    assert (batch.first(), batch.left()) == (1, 2)


@both
def test_what_is_no_exception_but_an_end_is_not_kept(kernel: ModuleType) -> None:
    """SystemExit ends the thread, as it would anywhere else; the message is not done."""

    def listener(message: Any) -> None:
        raise SystemExit

    batch = numbered(kernel, 2)
    with pytest.raises(SystemExit):
        kernel.Handful(batch).work(listener, None.__class__)
    assert batch.left() == 2


@both
def test_work_says_so_when_somebody_waits_for_room(kernel: ModuleType) -> None:
    batch = numbered(kernel, 10)
    handful = kernel.Handful(batch)
    batch.gate.report_after = 4
    assert handful.work(lambda message: None, again := object()) == (None, None)
    assert batch.left() == 6
    batch.gate.report_after = 0
    assert handful.work(lambda message: None, again) is None
    assert batch.left() == 0


@both
def test_a_closed_gate_lets_nothing_through(kernel: ModuleType) -> None:
    """Also in the middle of a batch: the message that the listener has is the last one."""
    batch = numbered(kernel, 5)
    handful = kernel.Handful(batch)

    def listener(message: Any) -> None:
        batch.gate.is_closed = message.body == b"1"

    assert handful.work(listener, object()) is None
    assert batch.left() == 3
    assert handful.take() is None
    assert not handful.has_more()


@both
def test_some_messages_of_a_window_may_be_given_out_alone(kernel: ModuleType) -> None:
    """Those that are delivered again here; the same objects, with their attempts."""
    gate = kernel.Gate()
    batches = [kernel.cut(record(0) + record(1), QUEUE, RULES, gate) for _ in range(2)]
    picks = [batches[0].message(1), batches[1].message(0)]
    handful = kernel.Handful(picks)
    seen: list[Any] = []
    assert handful.count == 2
    assert handful.work(seen.append, object()) is None
    assert seen[0] is picks[0] and seen[1] is picks[1]
    assert [batch.left() for batch in batches] == [1, 1]
    gate.is_closed = True
    assert kernel.Handful(picks).take() is None
