"""The window: the offset to commit never passes a message in hand."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.client.fakes import encode_record

from actormq.client.received import decode_messages
from actormq.client.results import MessageQueue
from actormq.client.window import Window, WindowLimits
from actormq.errors import PeerError
from actormq.kernels.received import Handful, ReceivedMessage
from actormq.message import QueueOffset

QUEUE = MessageQueue("t", "a", 0)


def record(offset: int, body: bytes = b"x") -> bytes:
    return encode_record("t", body, queue_offset=offset)


def put(window: Window, *offsets: int) -> list[ReceivedMessage]:
    """Take in hand what a pull brought."""
    return window.put(b"".join(map(record, offsets)), QUEUE).messages()


@given(
    st.sets(st.integers(10, 60), min_size=1),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
    st.integers(0, 70),
)
def test_the_commit_offset_is_the_lowest_in_hand_else_behind_all(
    offsets: set[int], pull: int, random: Random, skipped_to: int
) -> None:
    """Compared with a model that remembers everything, in any order of finishing, over several pulls."""
    window = Window(QueueOffset(10))
    ordered = sorted(offsets)
    messages = []
    for at in range(0, len(ordered), pull):
        messages += put(window, *ordered[at : at + pull])
    assert [one.queue_offset for one in messages] == ordered
    window.skip_to(QueueOffset(skipped_to))
    behind_all = max(max(offsets) + 1, skipped_to)
    left = set(offsets)
    random.shuffle(messages)
    for one in messages:
        assert window.commit_offset == window.lowest == min(left)
        assert window.span == behind_all - 1 - min(left)
        assert window.bytes >= len(record(0)) * len(left)
        assert window.holds(one)
        assert window.done(one)
        assert not window.holds(one)
        left.discard(one.queue_offset)
        assert len(window) == len(left)
    assert (window.commit_offset, window.lowest, window.bytes, window.span) == (behind_all, None, 0, 0)


def test_a_repeated_pull_brings_nothing_new() -> None:
    """Also what was done already is not taken in hand again."""
    window = Window(QueueOffset(0))
    first = put(window, 0, 1)
    window.done(first[0])
    assert [one.queue_offset for one in put(window, 0, 1, 2)] == [2]
    assert len(window) == 2


def test_a_stranger_is_not_done() -> None:
    """What another window has, or nobody, changes nothing here."""
    window, other = Window(QueueOffset(0)), Window(QueueOffset(0))
    [held] = put(window, 0)
    assert not window.done(decode_messages(record(0), QUEUE)[0])
    assert not window.done(put(other, 0)[0])
    assert window.holds(held)
    assert window.done(held)
    assert not window.done(held)


def test_garbage_is_not_taken_in_hand() -> None:
    """Not even the messages in front of it: the pull is repeated."""
    window = Window(QueueOffset(0))
    with pytest.raises(PeerError):
        window.put(record(0) + b"garbage", QUEUE)
    assert (len(window), window.commit_offset) == (0, 0)


def test_limits_of_count_bytes_and_span() -> None:
    window = Window(QueueOffset(0))
    window.put(record(0) + record(1, b"y" * 100) + record(50), QUEUE)
    assert window.is_full(WindowLimits(messages_max=3))
    assert not window.is_full(WindowLimits(messages_max=4))
    assert window.is_full(WindowLimits(bytes_max=100))
    assert window.is_full(WindowLimits(span_max=49))
    assert not window.is_full(WindowLimits(span_max=50))
    assert not window.is_full(WindowLimits(span_max=None))


def test_a_pull_counts_whole_until_its_last_message_is_done() -> None:
    """That is what it holds in memory."""
    window = Window(QueueOffset(0))
    first, _ = put(window, 0, 1), put(window, 2)
    both = window.bytes
    assert both == 3 * len(record(0))
    window.done(first[0])
    assert window.bytes == both
    window.done(first[1])
    assert window.bytes == len(record(0))


def test_who_waits_for_room_is_told_in_time() -> None:
    """Workers report after an eighth of what is in hand, divided among them; nobody waits: they do not."""
    window = Window(QueueOffset(0))
    messages = put(window, *range(100))
    assert window.has_room(WindowLimits(messages_max=101), 4)
    assert window.gate.report_after == 0
    assert not window.has_room(WindowLimits(messages_max=100), 4)
    assert window.gate.report_after == 100 // 32 + 1
    window.done(messages[50])
    assert window.has_room(WindowLimits(messages_max=100), 4)
    assert window.gate.report_after == 0


def test_what_holds_the_offset_back_is_seen_with_its_listener() -> None:
    """From the first look that found it there; what nobody has taken is not stuck."""
    window = Window(QueueOffset(5))
    assert window.stuck(1_000) is None
    batch = window.put(record(5) + record(6), QUEUE)
    assert window.stuck(1_000) is None
    handful = Handful(batch)
    five, six = handful.take(), handful.take()
    assert five is not None and six is not None

    def stuck(now_ms: int) -> tuple[int, int] | None:
        found = window.stuck(now_ms)
        return None if found is None else (found[0].queue_offset, found[1])

    assert stuck(2_000) == (5, 0)
    assert stuck(5_000) == (5, 3_000)
    window.watch_anew(6_000)
    assert stuck(6_500) == (5, 500)
    window.done(five)
    assert stuck(7_000) == (6, 0)
    window.done(six)
    assert stuck(8_000) is None
