"""Which queue is sent to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actormq.client.latency import FaultTable, choose_queue, queue_of_key
from actormq.client.results import MessageQueue
from actormq.message import java_hash

QUEUES = [MessageQueue("t", broker, queue) for broker in "ab" for queue in range(2)]


def test_round_robin_over_all_queues() -> None:
    chosen = [choose_queue(QUEUES, index, None, FaultTable(), 0) for index in range(8)]
    assert chosen == QUEUES * 2


def test_a_retry_goes_to_another_broker() -> None:
    for index in range(8):
        assert choose_queue(QUEUES, index, "a", FaultTable(), 0).broker_name == "b"


def test_a_single_broker_is_tried_again_all_the_same() -> None:
    assert choose_queue(QUEUES[:2], 5, "a", FaultTable(), 0) == QUEUES[1]


def test_a_broker_that_failed_is_left_alone_for_ten_seconds() -> None:
    faults = FaultTable()
    faults.note("a", 3, 1_000, failed=True)
    assert not faults.is_available("a", 10_999)
    assert faults.is_available("a", 11_000)
    assert {choose_queue(QUEUES, index, None, faults, 5_000).broker_name for index in range(4)} == {"b"}


def test_when_all_are_bad_the_one_that_did_not_just_fail_is_taken() -> None:
    faults = FaultTable()
    for broker in "ab":
        faults.note(broker, 0, 0, failed=True)
    assert choose_queue(QUEUES, 0, "a", faults, 1).broker_name == "b"


def test_a_slow_broker_is_avoided_according_to_the_table() -> None:
    """client.md §2.5: 550 ms → 2 s, 1.8 s → 5 s, 3 s → 6 s; below 550 ms not at all."""
    for latency_ms, avoided_ms in ((10, 0), (549, 0), (550, 2_000), (1_800, 5_000), (20_000, 30_000)):
        faults = FaultTable()
        faults.note("a", latency_ms, 0)
        assert faults.is_available("a", avoided_ms)
        assert not avoided_ms or not faults.is_available("a", avoided_ms - 1)


def test_a_quick_answer_forgives() -> None:
    faults = FaultTable()
    faults.note("a", 0, 0, failed=True)
    faults.note("a", 10, 1)
    assert faults.is_available("a", 2)


@given(st.text(max_size=20), st.integers(1, 16))
def test_a_key_always_has_the_same_queue(key: str, count: int) -> None:
    queues = [MessageQueue("t", "a", queue) for queue in range(count)]
    assert queue_of_key(queues, key) == queues[abs(java_hash(key)) % count]
