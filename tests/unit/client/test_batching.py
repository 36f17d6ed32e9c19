"""The window of a producer: batches, lanes, bounds, outcomes."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from actormq.client.batching import (
    ITEM_OVERHEAD_BYTES,
    Accumulator,
    Batch,
    BatchLimits,
    BatchOutcome,
    LaneKey,
)
from actormq.client.futures import SendFuture
from actormq.client.results import MessageQueue
from actormq.errors import ClientClosed, ConfigError, RequestTimeout, SendFailed
from actormq.message import QueueOffset, SendStatus

QUEUE = MessageQueue("t", "a", 0)
FREE: LaneKey = ("t", None, True)
FIXED: LaneKey = ("t", QUEUE, True)


def outcome(batch: Batch) -> BatchOutcome:
    count = len(batch.items)
    return BatchOutcome(
        SendStatus.SEND_OK,
        QUEUE,
        QueueOffset(100),
        [f"o{i}" for i in range(count)],
        [f"m{i}" for i in range(count)],
    )


def append(
    window: Accumulator, key: LaneKey, body: bytes, now_ms: int = 0, *, alone: bool = False
) -> SendFuture:
    place = window.append(key, 0, body, b"", now_ms, alone=alone)
    assert place is not None
    return SendFuture(*place)


def bodies(batch: Batch) -> list[bytes]:
    return [body for _, body, _ in batch.items]


@hypothesis_settings(max_examples=200)
@given(st.data())
def test_nothing_is_lost_doubled_or_reordered(data: st.DataObject) -> None:
    """Whatever is appended, taken and finished in whatever order: each message leaves once, in lane order,
    no lane with a named queue has two batches under way, and the counters return to zero."""
    limits = BatchLimits(
        batch_bytes=400, batch_messages=4, window_bytes=4_000, window_messages=30, in_flight_per_topic=2
    )
    window = Accumulator(limits)
    keys: list[LaneKey] = [FREE, FIXED, ("u", None, True), ("t", None, False)]
    appended, taken = defaultdict(list), defaultdict(list)
    under_way: list[Batch] = []
    for number in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(["append", "append", "take", "finish"]))
        if action == "append":
            key, body = (
                data.draw(st.sampled_from(keys)),
                b"%d." % number + b"x" * data.draw(st.integers(0, 500)),
            )
            if window.append(key, 0, body, b"", number, alone=data.draw(st.booleans())) is not None:
                appended[key].append(body)
        elif action == "take":
            for batch in window.ready(number):
                taken[batch.lane.key] += bodies(batch)
                under_way.append(batch)
        elif under_way:
            window.finished(under_way.pop(data.draw(st.integers(0, len(under_way) - 1))))
        by_lane = defaultdict(int)
        for batch in under_way:
            by_lane[batch.lane.key] += 1
            assert len(batch.items) <= 4
            assert batch.bytes <= 400 or len(batch.items) == 1
        assert all(n <= (1 if key[1] else 2) for key, n in by_lane.items())
        assert window.messages <= 30
    while not window.is_empty():
        for batch in window.ready(10**6, flush=True):
            taken[batch.lane.key] += bodies(batch)
            under_way.append(batch)
        window.finished(under_way.pop())
    assert taken == appended
    assert (window.messages, window.bytes) == (0, 0)


def test_a_full_window_takes_nothing_until_something_has_its_outcome() -> None:
    window = Accumulator(BatchLimits(batch_messages=2, window_messages=2))
    append(window, FREE, b"1")
    append(window, FREE, b"2")
    assert window.append(FREE, 0, b"3", b"", 0) is None
    [batch] = window.ready(0)
    assert window.append(FREE, 0, b"3", b"", 0) is None, "under way is not done"
    window.finished(batch)
    assert window.append(FREE, 0, b"3", b"", 0) is not None


def test_bytes_fill_the_window_too_but_one_message_always_fits() -> None:
    window = Accumulator(BatchLimits(batch_bytes=100, window_bytes=1_000))
    append(window, FREE, b"x" * 5_000)
    assert window.append(FREE, 0, b"y", b"", 0) is None


def test_while_requests_are_under_way_the_next_batch_grows() -> None:
    window = Accumulator(BatchLimits(in_flight_per_topic=1))
    append(window, FREE, b"1")
    [first] = window.ready(0)
    for body in (b"2", b"3"):
        append(window, FREE, body)
        assert window.ready(0) == []
    window.finished(first)
    assert [bodies(batch) for batch in window.ready(0)] == [[b"2", b"3"]]


def test_lingering_waits_for_more_but_not_longer() -> None:
    window = Accumulator(BatchLimits(linger_ms=10))
    assert window.due_at_ms() is None
    append(window, FREE, b"1", now_ms=100)
    assert window.due_at_ms() == 110
    assert window.ready(109) == []
    assert [bodies(batch) for batch in window.ready(110)] == [[b"1"]]
    assert window.due_at_ms() is None


def test_a_full_batch_does_not_linger_and_a_flush_takes_all() -> None:
    window = Accumulator(BatchLimits(linger_ms=1_000, batch_messages=2))
    for body in (b"1", b"2", b"3"):
        append(window, FREE, body)
    assert [bodies(batch) for batch in window.ready(0)] == [[b"1", b"2"]]
    assert [bodies(batch) for batch in window.ready(0, flush=True)] == [[b"3"]]


def test_a_message_alone_keeps_its_place() -> None:
    """A delayed message cannot share a request, but does not overtake either."""
    window = Accumulator(BatchLimits(in_flight_per_topic=9))
    append(window, FREE, b"1")
    append(window, FREE, b"2", alone=True)
    append(window, FREE, b"3")
    assert [bodies(batch) for batch in window.ready(0)] == [[b"1"], [b"2"], [b"3"]]


def test_bytes_are_counted_as_they_travel() -> None:
    window = Accumulator(BatchLimits(batch_bytes=2 * (ITEM_OVERHEAD_BYTES + 5)))
    for _ in range(3):
        append(window, FREE, b"12345")
    assert [len(batch.items) for batch in window.ready(0)] == [2, 1]


def test_a_future_points_at_its_own_message() -> None:
    window = Accumulator(BatchLimits())
    futures = [append(window, FREE, b"x") for _ in range(3)]
    [batch] = window.ready(0)
    assert not futures[1].done()
    with pytest.raises(RequestTimeout):
        futures[1].result(0)
    batch.complete(outcome(batch))
    result = futures[1].result()
    assert (result.queue_offset, result.message_id, result.offset_message_id) == (101, "m1", "o1")
    assert futures[1].exception() is None


def test_a_failed_batch_fails_all_its_futures() -> None:
    window = Accumulator(BatchLimits())
    future = append(window, FREE, b"x")
    [batch] = window.ready(0)
    error = SendFailed("no", [])
    batch.complete(error)
    assert future.exception() is error
    with pytest.raises(SendFailed):
        future.result()


def test_callbacks_are_called_once_before_and_after() -> None:
    window = Accumulator(BatchLimits())
    future = append(window, FREE, b"x")
    called: list[SendFuture] = []
    future.add_done_callback(called.append)
    future.add_done_callback(lambda _: 1 / 0)
    [batch] = window.ready(0)
    batch.complete(outcome(batch))
    future.add_done_callback(called.append)
    assert called == [future, future]


def test_abandoning_fails_what_waits_and_not_what_is_under_way() -> None:
    window = Accumulator(BatchLimits(in_flight_per_topic=1))
    first = append(window, FREE, b"1")
    [batch] = window.ready(0)
    second = append(window, FREE, b"2")
    window.abandon(ClientClosed("closed"))
    assert isinstance(second.exception(), ClientClosed)
    assert not first.done()
    window.finished(batch)
    assert (window.messages, window.bytes) == (0, 0)


@pytest.mark.parametrize(
    "limits",
    [{"batch_bytes": 0}, {"window_messages": 10}, {"window_bytes": 1_000}, {"linger_ms": -1}],
)
def test_limits_that_cannot_work_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        BatchLimits(**limits)
