"""The collecting kernel against the plain encoder of batches, compiled and uncompiled."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_twins import each_of, twins

from actormq.client.latency import queue_of_key
from actormq.client.messages import UNIQUE_KEY_BYTES, encode_user_properties, with_unique_key
from actormq.client.results import MessageQueue
from actormq.errors import MessageRejected
from actormq.wire import batch as plain

KERNELS = twins("collecting")
both = each_of(KERNELS)

QUEUES = tuple(("t", "broker-a", index) for index in range(5))
DIGITS = "0123456789ABCDEF0123456789AB"
PREFIX = b"UNIQ_KEY\x01" + DIGITS.encode()
TEXT = st.text(st.characters(exclude_characters="\x01\x02", exclude_categories=("Cs",)), max_size=30)
MESSAGES = st.lists(
    st.tuples(st.integers(-(2**31), 2**31 - 1), st.binary(min_size=1, max_size=300), TEXT), max_size=12
)


def window_of(kernel: ModuleType, **limits: int) -> Any:
    chosen = {
        "messages_max": 1_000,
        "bytes_max": 1 << 20,
        "batch_messages": 100,
        "batch_bytes": 4_096,
        "body_bytes_max": 1_000,
    }
    return kernel.Window(**(chosen | limits))


def opened(kernel: ModuleType, window: Any, topic: str = "t", size: int = 4_096, first: int = 0) -> Any:
    """Return a lane that `window` knows, with an open batch."""
    lane = kernel.Lane()
    lane.open = kernel.Batch(size, PREFIX, first)
    window.know(topic, lane)
    return lane


def expected(messages: list[tuple[int, bytes, bytes]], first: int) -> bytes:
    """What the long way encodes."""
    return plain.encode(
        (flag, body, with_unique_key(properties, f"{DIGITS}{first + index:04X}"))
        for index, (flag, body, properties) in enumerate(messages)
    )


# --- bytes -------------------------------------------------------------------------------------------


@both
@given(messages=MESSAGES, first=st.integers(0, 65_535 - 12))
def test_items_are_those_of_the_plain_encoder(
    kernel: ModuleType, messages: list[tuple[int, bytes, str]], first: int
) -> None:
    """Whatever flag, body, properties and keys: the same bytes as `actormq.wire.batch.encode`."""
    window = window_of(kernel, batch_bytes=1 << 16)
    lane = opened(kernel, window, size=1 << 16, first=first)
    items = [(flag, body, encode_user_properties(tags=text or None)) for flag, body, text in messages]
    for index, item in enumerate(items):
        future = window.add(lane, *item)
        assert future is not None
        assert lane.open.unique_key(index) == f"{DIGITS}{first + index:04X}"
    whole = expected(items, first)
    assert bytes(lane.open.body()) == whole
    assert (lane.open.count, lane.open.used_bytes) == (len(items), len(whole))
    assert (window.messages, window.held_bytes) == (len(items), len(whole))


@both
@given(bodies=st.lists(st.binary(min_size=1, max_size=100), max_size=8), tags=st.sampled_from([None, "paid"]))
def test_the_quick_way_writes_the_same(kernel: ModuleType, bodies: list[bytes], tags: str | None) -> None:
    window = window_of(kernel)
    lane = opened(kernel, window)
    properties = encode_user_properties(tags=tags)
    assert all(window.put("t", body, properties, 7) is not None for body in bodies)
    assert bytes(lane.open.body()) == expected([(7, body, properties) for body in bodies], 0)


@both
def test_the_largest_properties(kernel: ModuleType) -> None:
    """Their size has 15 bits, the unique key included."""
    window = window_of(kernel, batch_bytes=1 << 17)
    lane = opened(kernel, window, size=1 << 17)
    properties = b"p" * (32_767 - UNIQUE_KEY_BYTES)
    assert window.add(lane, 0, b"x", properties) is not None
    [item] = plain.iterate(lane.open.body())
    assert len(item.properties) == 32_767


# --- what is refused ---------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("topic", "body", "more"),
    [
        ("unknown", b"x", {}),
        (7, b"x", {}),
        ("t", b"", {}),
        ("t", b"x" * 1_001, {}),
        ("t", bytearray(b"x"), {}),
        ("t", "text", {}),
        ("t", None, {}),
        ("t", b"x", {"key": "no route for it yet"}),
        ("t", b"x", {"key": 7}),
        ("t", b"x", {"queue": ("t", "unknown", 0)}),
        ("t", b"x", {"queue": len}),
        ("t", b"x", {"queue": QUEUES[0], "key": "both"}),
        ("u", b"x", {"queue": QUEUES[0]}),
    ],
)
def test_what_is_not_common_is_left_to_the_caller(
    kernel: ModuleType, topic: Any, body: Any, more: Any
) -> None:
    """Nothing is written, and nothing is counted."""
    window = window_of(kernel)
    lane = opened(kernel, window)
    window.know_queue("t", QUEUES[0], lane)
    assert window.put(topic, body, **more) is None
    assert (lane.open.count, window.messages, window.held_bytes) == (0, 0, 0)
    assert window.put("t", b"x") is not None


@both
def test_a_subclass_of_bytes_is_not_common(kernel: ModuleType) -> None:
    """Its methods could be anything."""

    class Strange(bytes):
        pass

    window = window_of(kernel)
    opened(kernel, window)
    assert window.put("t", Strange(b"x")) is None


@both
def test_the_message_that_fills_a_batch_is_left_to_the_caller(kernel: ModuleType) -> None:
    """Somebody must see to it that the batch leaves: by number, and by bytes."""
    window = window_of(kernel, batch_messages=3)
    lane = opened(kernel, window)
    assert [window.put("t", b"x") is not None for _ in range(3)] == [True, True, False]
    assert not window.is_full(lane.open)
    assert window.add(lane, 0, b"x", b"") is not None
    assert window.is_full(lane.open)
    assert window.add(lane, 0, b"x", b"") is None

    size = 22 + UNIQUE_KEY_BYTES + 100
    window = window_of(kernel, batch_bytes=2 * size)
    lane = opened(kernel, window, size=2 * size)
    assert [window.put("t", b"x" * 100) is not None for _ in range(2)] == [True, False]
    assert window.add(lane, 0, b"x" * 101, b"") is None, "it would not fit"
    assert window.add(lane, 0, b"x" * 100, b"") is not None
    assert window.is_full(lane.open)


@both
def test_a_window_is_full_by_number_and_by_bytes(kernel: ModuleType) -> None:
    window = window_of(kernel, messages_max=2)
    lane = opened(kernel, window)
    assert [window.put("t", b"x") is not None for _ in range(3)] == [True, True, False]
    assert not window.has_room(1)
    window.leave(lane.open)
    assert (window.messages, window.held_bytes) == (0, 0)
    assert window.has_room(1)

    window = window_of(kernel, bytes_max=150, batch_bytes=1 << 20)
    lane = opened(kernel, window)
    assert window.add(lane, 0, b"x" * 1_000, b"") is not None, "one always fits"
    assert window.put("t", b"x") is None


@both
def test_a_lane_without_an_open_batch(kernel: ModuleType) -> None:
    window = window_of(kernel)
    lane = opened(kernel, window)
    assert window.put("t", b"x") is not None
    lane.open = None
    assert window.put("t", b"x") is None
    assert window.add(lane, 0, b"x", b"") is None


@both
def test_a_topic_that_was_forgotten_is_not_taken_any_more(kernel: ModuleType) -> None:
    """Also where it was the last one used."""
    window = window_of(kernel)
    opened(kernel, window, "a")
    opened(kernel, window, "b")
    assert window.put("a", b"x") is not None
    window.forget("a")
    assert window.put("a", b"x") is None
    assert window.put("b", b"x") is not None
    window.forget()
    assert window.put("b", b"x") is None


@both
def test_topics_do_not_mix(kernel: ModuleType) -> None:
    window = window_of(kernel)
    lanes = {topic: opened(kernel, window, topic) for topic in ("a", "b")}
    for index, topic in enumerate("abbaab"):
        assert window.put(topic, b"%d" % index) is not None
    for topic, wanted in (("a", [b"0", b"3", b"4"]), ("b", [b"1", b"2", b"5"])):
        assert [bytes(item.body) for item in plain.iterate(lanes[topic].open.body())] == wanted


# --- keys and named queues ---------------------------------------------------------------------------


@both
@given(key=st.text(max_size=20), count=st.integers(1, 100))
def test_a_key_means_the_queue_that_it_means_everywhere(kernel: ModuleType, key: str, count: int) -> None:
    """Java's hash, whatever the characters; lone surrogates and those beyond 16 bits included."""
    queues = [MessageQueue("t", "a", index) for index in range(count)]
    assert kernel.place_of_key(key, count) == queue_of_key(queues, key).queue_id


@both
@pytest.mark.parametrize(
    "key", ["", "polygenelubricants", "\ud800", "\U0001f600 and more", "GydZG_DESIGNING WORKHOUSES"]
)
def test_a_key_with_an_odd_hash(kernel: ModuleType, key: str) -> None:
    """Zero, the smallest number (which has no positive), half a pair, a pair."""
    queues = [MessageQueue("t", "a", index) for index in range(7)]
    assert kernel.place_of_key(key, 7) == queue_of_key(queues, key).queue_id


@both
def test_a_key_finds_its_lane_once_it_is_known(kernel: ModuleType) -> None:
    window = window_of(kernel)
    key, other = "a", "b"
    place = kernel.place_of_key(key, 5)
    assert kernel.place_of_key(other, 5) != place
    lane = opened(kernel, window)
    assert window.put("t", b"x", key=key) is None
    window.know_keys("t", QUEUES, QUEUES[place], lane)
    assert window.put("t", b"x", key=key) is not None
    assert window.put("t", b"x", key=other) is None, "that queue was not asked for yet"
    assert window.put("u", b"x", key=key) is None
    assert lane.open.count == 1


@both
def test_another_route_makes_keys_unknown_again(kernel: ModuleType) -> None:
    """With another number of queues a key may mean another one: nothing of the old route may be used."""
    window = window_of(kernel)
    lane = opened(kernel, window)
    for index in range(5):
        window.know_keys("t", QUEUES, QUEUES[index], lane)
    longer = (*QUEUES, ("t", "broker-a", 5))
    window.know_keys("t", longer, longer[5], lane)
    known = [str(number) for number in range(50) if window.put("t", b"x", key=str(number)) is not None]
    assert known == [str(number) for number in range(50) if kernel.place_of_key(str(number), 6) == 5]


@both
def test_a_named_queue_has_a_lane_of_its_own(kernel: ModuleType) -> None:
    window = window_of(kernel)
    free, named = opened(kernel, window), opened(kernel, window, "not by this name")
    window.know_queue("t", QUEUES[1], named)
    assert window.put("t", b"x", queue=("t", "broker-a", 1)) is not None
    assert (free.open.count, named.open.count) == (0, 1)
    window.forget("t", QUEUES[1])
    assert window.put("t", b"x", queue=QUEUES[1]) is None
    assert window.put("t", b"x") is not None


@both
def test_threads_do_not_write_over_each_other(kernel: ModuleType) -> None:
    """Many callers at once: every message is there once, whole, with a key of its own."""
    window = window_of(kernel, messages_max=10_000, batch_messages=10_000, batch_bytes=1 << 20)
    lane = opened(kernel, window, size=1 << 20)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(
                target=lambda name=name: [window.put("t", b"%d.%d" % (name, i)) for i in range(500)]
            )
            for name in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    items = list(plain.iterate(lane.open.body()))
    assert {bytes(item.body) for item in items} == {b"%d.%d" % (n, i) for n in range(4) for i in range(500)}
    assert len({bytes(item.properties) for item in items}) == len(items) == 2_000


# --- futures -----------------------------------------------------------------------------------------


def said(kernel: ModuleType) -> type[Any]:
    """A batch that says what it is asked."""

    class Said(kernel.Batch):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(1_000, PREFIX, 0)
            self.asked: list[Any] = []

        def result_of(self, index: int, timeout_s: float | None) -> Any:
            self.asked.append((index, timeout_s))
            return f"result {index}"

        def wait(self, timeout_s: float | None) -> None:
            self.asked.append(timeout_s)
            self.settle(None)

        def call_back(self, callback: Any, future: Any) -> None:
            callback(future)

        def awaited(self) -> Iterator[None]:
            yield None

    return Said


@both
def test_a_future_asks_its_batch(kernel: ModuleType) -> None:
    window = window_of(kernel)
    lane = kernel.Lane()
    batch = lane.open = said(kernel)()
    futures = [window.add(lane, 0, b"x", b"") for _ in range(3)]
    assert not futures[1].done()
    assert futures[1].result(2.5) == "result 1"
    assert futures[2].exception(0.5) is None
    assert futures[2].done()
    assert batch.asked == [(1, 2.5), 0.5]
    seen: list[Any] = []
    futures[0].add_done_callback(seen.append)
    assert seen == [futures[0]]
    steps = futures[2].__await__()
    assert next(steps) is None
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value == "result 2"


@both
def test_an_outcome_lets_go_of_the_bytes_and_keeps_the_keys(kernel: ModuleType) -> None:
    window = window_of(kernel)
    lane = opened(kernel, window)
    future = window.put("t", b"x")
    view = lane.open.body()
    error = ValueError("no")
    lane.open.settle(error)
    assert bytes(view[20:21]) == b"x", "who still sends it may"
    assert future.exception() is error
    assert lane.open.unique_key(0) == f"{DIGITS}0000"
    with pytest.raises(AssertionError):
        lane.open.body()
    assert window.put("t", b"y") is None, "it is over"


# --- the face ----------------------------------------------------------------------------------------


def face(kernel: ModuleType, window: Any) -> tuple[Any, list[Any], list[Any]]:
    """Return a producer, what it left to the long way, and what it encoded."""
    left: list[Any] = []
    encoded: list[Any] = []

    class Face(kernel.Collecting):  # type: ignore[misc, name-defined]
        def _send_async(self, *arguments: Any) -> Any:
            left.append(arguments)
            return "long way"

        def _encode(self, *arguments: Any) -> bytes:
            encoded.append(arguments)
            return encode_user_properties(*arguments)

    return Face(window), left, encoded


@both
def test_send_async_takes_the_quick_way_where_it_can(kernel: ModuleType) -> None:
    """Also with properties; those of the same tags are not encoded again and again."""
    window = window_of(kernel)
    lane = opened(kernel, window)
    window.know_queue("t", QUEUES[0], lane)
    window.know_keys("t", QUEUES, QUEUES[kernel.place_of_key("k", 5)], lane)
    producer, left, encoded = face(kernel, window)
    for future in (
        producer.send_async("t", b"x"),
        producer.send_async(topic="t", body=b"x"),
        producer.send_async("t", b"x", key=None, queue=None, tags=None, flag=0, wait_stored=True),
        producer.send_async("t", b"x", tags="paid"),
        producer.send_async("t", b"x", tags="paid"),
        producer.send_async("t", b"x", keys=["a", "b"], tags="new"),
        producer.send_async("t", b"x", properties={"p": "q"}, flag=-5),
        producer.send_async("t", b"x", key="k"),
        producer.send_async("t", b"x", queue=QUEUES[0]),
    ):
        assert type(future) is kernel.SendFuture
    assert left == []
    assert encoded == [("paid", (), None), ("new", ["a", "b"], None), (None, (), {"p": "q"})]
    written = [
        b"",
        b"",
        b"",
        *[b"TAGS\x01paid\x02"] * 2,
        b"KEYS\x01a b\x02TAGS\x01new\x02",
        b"p\x01q\x02",
        b"",
        b"",
    ]
    assert bytes(lane.open.body()) == expected(
        [(-5 if index == 6 else 0, b"x", properties) for index, properties in enumerate(written)], 0
    )


@both
@pytest.mark.parametrize(
    "options",
    [
        {"delay_level": 3},
        {"wait_stored": False},
        {"flag": 1 << 31},
        {"flag": "seven"},
        {"keys": iter(["read", "once"])},
        {"delay_level": 3, "tags": "a", "keys": "b", "properties": {"c": "d"}, "flag": 7},
    ],
)
def test_options_that_go_the_long_way(kernel: ModuleType, options: dict[str, Any]) -> None:
    """With nothing but what was given, and untouched."""
    window = window_of(kernel)
    opened(kernel, window)
    producer, left, encoded = face(kernel, window)
    assert producer.send_async("t", b"x", **options) == "long way"
    assert producer.send_async("t", b"x", key="k", **options) == "long way"
    assert left == [("t", b"x", None, None, options), ("t", b"x", "k", None, options)]
    assert (window.messages, encoded) == (0, [])


@both
def test_what_does_not_fit_is_handed_on_with_its_options(kernel: ModuleType) -> None:
    """The long way reads them again."""
    producer, left, _ = face(kernel, window_of(kernel))
    options = {"tags": "a", "keys": ["b"], "properties": {"c": "d"}, "flag": 7}
    assert producer.send_async("t", b"x", queue=QUEUES[1], **options) == "long way"
    assert left == [("t", b"x", None, QUEUES[1], options)]


@both
def test_properties_that_are_refused(kernel: ModuleType) -> None:
    """What the encoder raises reaches the caller, and nothing is written; the next tags are not these."""
    window = window_of(kernel)
    opened(kernel, window)
    producer, _, _ = face(kernel, window)
    for options in ({"tags": "a\x01b"}, {"properties": {"TAGS": "x"}}, {"keys": "\x02"}):
        with pytest.raises(MessageRejected):
            producer.send_async("t", b"x", **options)
    assert window.messages == 0


@both
def test_arguments_are_checked(kernel: ModuleType) -> None:
    producer, _, _ = face(kernel, window_of(kernel))
    with pytest.raises(TypeError):
        producer.send_async("t", b"x", "positional")
    with pytest.raises(TypeError):
        producer.send_async("t", b"x", no_such_option=1)
    with pytest.raises(TypeError):
        producer.send_async("t")


@both
def test_a_producer_that_was_never_made_has_no_quick_way(kernel: ModuleType) -> None:
    """A subclass that forgot to call our ``__init__`` gets an error, not a crash."""

    class Forgetful(kernel.Collecting):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            pass

    with pytest.raises(AttributeError):
        Forgetful().send_async("t", b"x")


@both
def test_help_says_what_it_takes(kernel: ModuleType) -> None:
    signature = inspect.signature(kernel.Collecting.send_async)
    assert list(signature.parameters) == [
        "self",
        "topic",
        "body",
        "key",
        "queue",
        "tags",
        "keys",
        "properties",
        "delay_level",
        "wait_stored",
        "flag",
    ]
    assert "WindowFull" in kernel.Collecting.send_async.__doc__
    assert kernel.SendFuture.result.__doc__
