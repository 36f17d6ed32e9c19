"""The window: the offset to commit never passes a message in hand."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from unit.client.fakes import encode_record

from actormq.client.messages import ReceivedMessage, decode_messages
from actormq.client.results import MessageQueue
from actormq.client.window import Window, WindowLimits
from actormq.message import QueueOffset

QUEUE = MessageQueue("t", "a", 0)


def message(offset: int, body: bytes = b"x") -> ReceivedMessage:
    return decode_messages(encode_record("t", body, queue_offset=offset), QUEUE)[0]


@given(st.sets(st.integers(10, 60), min_size=1), st.randoms(use_true_random=False), st.integers(0, 70))
def test_the_commit_offset_is_the_lowest_in_hand_else_behind_all(
    offsets: set[int], random: Random, skipped_to: int
) -> None:
    """Compared with a model that remembers everything, in any order of finishing."""
    window = Window(QueueOffset(10))
    messages = [message(offset) for offset in sorted(offsets)]
    assert window.put(messages) == messages
    window.skip_to(QueueOffset(skipped_to))
    behind_all = max(max(offsets) + 1, skipped_to)
    left = set(offsets)
    random.shuffle(messages)
    for one in messages:
        assert window.commit_offset == min(left)
        assert window.span == behind_all - 1 - min(left)
        assert window.done(one)
        left.discard(one.queue_offset)
        assert len(window) == len(left)
    assert (window.commit_offset, window.bytes, window.span) == (behind_all, 0, 0)


def test_a_repeated_pull_brings_nothing_new() -> None:
    """Also what was done already is not taken in hand again."""
    window = Window(QueueOffset(0))
    first = [message(0), message(1)]
    window.put(first)
    window.done(first[0])
    assert [one.queue_offset for one in window.put([message(0), message(1), message(2)])] == [2]


def test_a_stranger_is_not_done() -> None:
    window = Window(QueueOffset(0))
    [held] = window.put([message(0)])
    assert not window.done(message(0))
    assert not window.done(message(7))
    assert window.holds(held)
    assert window.done(held)
    assert not window.done(held)


def test_limits_of_count_bytes_and_span() -> None:
    window = Window(QueueOffset(0))
    window.put([message(0), message(1, b"y" * 100), message(50)])
    assert window.is_full(WindowLimits(messages_max=3))
    assert not window.is_full(WindowLimits(messages_max=4))
    assert window.is_full(WindowLimits(bytes_max=100))
    assert window.is_full(WindowLimits(span_max=49))
    assert not window.is_full(WindowLimits(span_max=50))
    assert not window.is_full(WindowLimits(span_max=None))


def test_what_holds_the_offset_back_is_first() -> None:
    window = Window(QueueOffset(5))
    assert window.first() is None
    five, six = window.put([message(5), message(6)])
    window.done(six)
    assert window.first() is five
    assert window.all() == [five]
