"""The window of a producer: batches, lanes, bounds, outcomes."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from actormq.client.batching import ITEM_OVERHEAD_BYTES, Accumulator, Batch, BatchLimits, LaneKey
from actormq.client.futures import SendFuture
from actormq.client.identifiers import UniqueKeys
from actormq.client.requests import Stored
from actormq.client.results import MessageQueue
from actormq.errors import ClientClosed, ConfigError, RequestTimeout, SendFailed
from actormq.message import QueueOffset, SendStatus
from actormq.wire import batch as batch_bytes

WALL_MS = 1_763_812_800_000
QUEUE = MessageQueue("t", "a", 0)
FREE: LaneKey = ("t", None, True)
FIXED: LaneKey = ("t", QUEUE, True)


def window_of(**limits: int) -> Accumulator:
    return Accumulator(BatchLimits(**limits), UniqueKeys(bytes(4), 1, 1))


def outcome(count: int) -> Stored:
    ids = ",".join(f"o{index}" for index in range(count))
    return Stored(SendStatus.SEND_OK, QUEUE, QueueOffset(100), ids, "", "")


def try_append(
    window: Accumulator, key: LaneKey, body: bytes, now_ms: int = 0, *, alone: bool = False
) -> SendFuture | None:
    with window.lock:
        return window.append(window.lane(key), 0, body, b"", now_ms, WALL_MS + now_ms, alone=alone)


def append(window: Accumulator, key: LaneKey, body: bytes, now_ms: int = 0, **more: bool) -> SendFuture:
    future = try_append(window, key, body, now_ms, **more)
    assert future is not None
    return future


def bodies(batch: Batch) -> list[bytes]:
    return [bytes(item.body) for item in batch_bytes.iterate(batch.body())]


@hypothesis_settings(max_examples=200)
@given(st.data())
def test_nothing_is_lost_doubled_or_reordered(data: st.DataObject) -> None:
    """Whatever is appended, taken and finished in whatever order: each message leaves once, in lane order,
    no lane with a named queue has two batches under way, and the counters return to zero."""
    window = window_of(
        batch_bytes=400, batch_messages=4, window_bytes=4_000, window_messages=30, in_flight_per_topic=2
    )
    keys: list[LaneKey] = [FREE, FIXED, ("u", None, True), ("t", None, False)]
    appended: dict[LaneKey, list[bytes]] = defaultdict(list)
    taken: dict[LaneKey, list[bytes]] = defaultdict(list)
    under_way: list[Batch] = []
    for number in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(["append", "append", "take", "finish"]))
        if action == "append":
            key, body = (
                data.draw(st.sampled_from(keys)),
                b"%d." % number + b"x" * data.draw(st.integers(0, 500)),
            )
            quick = key == FREE and data.draw(st.booleans())
            future = (
                window.put("t", body)
                if quick
                else try_append(window, key, body, number, alone=data.draw(st.booleans()))
            )
            if future is not None:
                appended[key].append(body)
        elif action == "take":
            for batch in window.ready(number):
                taken[batch.lane.key] += bodies(batch)
                under_way.append(batch)
        elif under_way:
            window.finished(under_way.pop(data.draw(st.integers(0, len(under_way) - 1))))
        by_lane: dict[LaneKey, int] = defaultdict(int)
        for batch in under_way:
            by_lane[batch.lane.key] += 1
            assert batch.count <= 4
            assert batch.used_bytes <= 400 or batch.count == 1
        assert all(n <= (1 if key[1] else 2) for key, n in by_lane.items())
        assert window.messages <= 30
    while not window.is_empty():
        for batch in window.ready(10**6, flush=True):
            taken[batch.lane.key] += bodies(batch)
            under_way.append(batch)
        window.finished(under_way.pop())
    assert taken == appended
    assert (window.messages, window.held_bytes) == (0, 0)


def test_a_full_window_takes_nothing_until_something_has_its_outcome() -> None:
    window = window_of(batch_messages=2, window_messages=2)
    append(window, FREE, b"1")
    append(window, FREE, b"2")
    assert try_append(window, FREE, b"3") is None
    [batch] = window.ready(0)
    assert try_append(window, FREE, b"3") is None, "under way is not done"
    window.finished(batch)
    assert try_append(window, FREE, b"3") is not None


def test_bytes_fill_the_window_too_but_one_message_always_fits() -> None:
    window = window_of(batch_bytes=100, window_bytes=1_000)
    append(window, FREE, b"x" * 5_000)
    assert try_append(window, FREE, b"y") is None


def test_while_requests_are_under_way_the_next_batch_grows() -> None:
    window = window_of(in_flight_per_topic=1)
    append(window, FREE, b"1")
    [first] = window.ready(0)
    for body in (b"2", b"3"):
        append(window, FREE, body)
        assert window.ready(0) == []
    window.finished(first)
    assert [bodies(batch) for batch in window.ready(0)] == [[b"2", b"3"]]


def test_the_first_message_of_an_idle_lane_can_be_taken_at_once() -> None:
    """Only while nothing is under way, and where no lingering was asked for."""
    window = window_of()
    lane = window.lane(FREE)
    assert not window.is_first(lane)
    append(window, FREE, b"1")
    assert window.is_first(lane)
    first = window.take_first(lane)
    assert bodies(first) == [b"1"]
    assert window.ready(0) == []
    append(window, FREE, b"2")
    assert not window.is_first(lane)
    window.finished(first)
    append(window, FREE, b"3")
    assert not window.is_first(lane), "there is an older one"
    assert [bodies(batch) for batch in window.ready(0)] == [[b"2", b"3"]]
    patient = window_of(linger_ms=5)
    append(patient, FREE, b"1")
    assert not patient.is_first(patient.lane(FREE))


def test_lingering_waits_for_more_but_not_longer() -> None:
    window = window_of(linger_ms=10)
    assert window.due_at_ms() is None
    append(window, FREE, b"1", now_ms=100)
    assert window.due_at_ms() == 110
    assert window.ready(109) == []
    assert [bodies(batch) for batch in window.ready(110)] == [[b"1"]]
    assert window.due_at_ms() is None


def test_a_full_batch_does_not_linger_and_a_flush_takes_all() -> None:
    window = window_of(linger_ms=1_000, batch_messages=2)
    for body in (b"1", b"2", b"3"):
        append(window, FREE, body)
    assert [bodies(batch) for batch in window.ready(0)] == [[b"1", b"2"]]
    assert [bodies(batch) for batch in window.ready(0, flush=True)] == [[b"3"]]


def test_a_message_alone_keeps_its_place() -> None:
    """A delayed message cannot share a request, but does not overtake either."""
    window = window_of(in_flight_per_topic=16)
    append(window, FREE, b"1")
    append(window, FREE, b"2", alone=True)
    append(window, FREE, b"3")
    assert [bodies(batch) for batch in window.ready(0)] == [[b"1"], [b"2"], [b"3"]]


def test_bytes_are_counted_as_they_travel() -> None:
    window = window_of(batch_bytes=2 * (ITEM_OVERHEAD_BYTES + 5))
    for _ in range(3):
        append(window, FREE, b"12345")
    assert [batch.count for batch in window.ready(0)] == [2, 1]


def test_a_future_points_at_its_own_message() -> None:
    window = window_of()
    futures = [append(window, FREE, b"x") for _ in range(3)]
    [batch] = window.ready(0)
    assert not futures[1].done()
    with pytest.raises(RequestTimeout):
        futures[1].result(0)
    batch.complete(outcome(batch.count))
    batch.call_all_back()
    result = futures[1].result()
    assert (result.queue_offset, result.offset_message_id) == (101, "o1")
    assert len({future.result().message_id for future in futures}) == 3
    assert futures[1].exception() is None


def test_a_failed_batch_fails_all_its_futures() -> None:
    window = window_of()
    future = append(window, FREE, b"x")
    [batch] = window.ready(0)
    error = SendFailed("no", [])
    batch.complete(error)
    assert future.exception() is error
    with pytest.raises(SendFailed):
        future.result()


def test_callbacks_are_called_once_before_and_after() -> None:
    window = window_of()
    future = append(window, FREE, b"x")
    called: list[SendFuture] = []
    future.add_done_callback(called.append)
    future.add_done_callback(lambda _: 1 / 0)
    [batch] = window.ready(0)
    batch.complete(outcome(batch.count))
    batch.call_all_back()
    future.add_done_callback(called.append)
    assert called == [future, future]


def test_abandoning_fails_what_waits_and_not_what_is_under_way() -> None:
    window = window_of(in_flight_per_topic=1)
    first = append(window, FREE, b"1")
    [batch] = window.ready(0)
    second = append(window, FREE, b"2")
    for abandoned in window.abandon():
        abandoned.complete(ClientClosed("closed"))
    assert isinstance(second.exception(), ClientClosed)
    assert not first.done()
    window.finished(batch)
    assert (window.messages, window.held_bytes) == (0, 0)


@pytest.mark.parametrize(
    "limits",
    [
        {"batch_bytes": 0},
        {"window_messages": 10},
        {"window_bytes": 1_000},
        {"linger_ms": -1},
        {"batch_messages": 65_536, "window_messages": 100_000},
        {"batch_bytes": 1 << 23},
    ],
)
def test_limits_that_cannot_work_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        BatchLimits(**limits)


def test_who_had_to_wait_for_room_gets_some_to_go_on_with() -> None:
    """An eighth of the window, by number and by bytes: not a wake-up for each message that leaves."""
    window = window_of(batch_messages=1, window_messages=16, in_flight_per_topic=16)
    for _ in range(16):
        append(window, FREE, b"x")
    batches = window.ready(0)
    eased = []
    for batch in batches:
        window.finished(batch)
        eased.append((window.has_room(1), window.has_ease()))
    assert eased[:3] == [(True, False), (True, False), (True, True)]
    assert eased[-1] == (True, True)

    window = window_of(batch_bytes=1_000, window_bytes=8_000, in_flight_per_topic=16)
    size = 1_000 - ITEM_OVERHEAD_BYTES
    for _ in range(8):
        append(window, FREE, b"x" * size)
    batches = window.ready(0)
    assert not window.has_ease()
    window.finished(batches[0])
    assert window.has_ease()


def test_a_lane_that_nobody_uses_is_let_go_when_there_are_many() -> None:
    """Memory is bounded, and a topic that comes back gets a new one."""
    window = window_of()
    for number in range(1_100):
        append(window, (f"topic-{number}", None, True), b"x")
        [batch] = window.ready(0)
        window.finished(batch)
    assert len(window._by_key) <= 1_024
    assert window.put("topic-1099", b"x") is None
    append(window, ("topic-1099", None, True), b"x")
    assert window.put("topic-1099", b"x") is not None
