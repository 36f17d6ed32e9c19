"""The rules of a pull, without a gateway around them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.broker.pulling import (
    Place,
    PullRefused,
    PullStatus,
    TransferLimits,
    locate,
    may_wait,
    response_code,
    share,
    tag_codes,
)
from actormq.message import java_hash
from actormq.wire.headers import PullHeader

offsets = st.integers(-(1 << 62), 1 << 62)


@given(offsets, st.integers(0, 1000), st.integers(0, 1000))
def test_where_an_offset_leads(offset: int, first: int, count: int) -> None:
    """FOUND exactly inside the queue; otherwise the next offset is one that the queue has or will have."""
    end = first + count
    place = locate(offset, first, end)
    if end == 0:
        assert place == Place(PullStatus.NO_MESSAGE_IN_QUEUE, 0)
        return
    assert (place.status is PullStatus.FOUND) == (first <= offset < end)
    assert first <= place.next_offset <= end
    assert may_wait(place, offset, end) == (offset == end >= first)


def test_an_empty_queue_waits_only_for_its_first_message() -> None:
    """Who asks for 5 of an empty queue is wrong, not early."""
    place = locate(0, 0, 0)
    assert may_wait(place, 0, 0)
    assert not may_wait(locate(5, 0, 0), 5, 0)
    assert response_code(place.status, 0) == 19
    assert response_code(place.status, 5) == 21


@pytest.mark.parametrize("text", ["", " ", "*", " * "])
def test_expressions_for_everything(text: str) -> None:
    """Blank and star."""
    assert tag_codes(text) is None


def test_expressions_with_tags() -> None:
    """Split, trimmed, empty parts dropped, hashed as Java does."""
    assert tag_codes("TagA || TagB||") == {java_hash("TagA"), java_hash("TagB")}
    with pytest.raises(PullRefused):
        tag_codes("|| ||")


def header(messages: int = 32, bytes_max: int | None = None) -> PullHeader:
    return PullHeader("g", "t", 0, 0, messages, 0, 0, 0, None, 0, "TAG", bytes_max)


@given(
    st.integers(-(1 << 31), 1 << 31),
    st.none() | st.integers(-(1 << 31), 1 << 31),
    st.booleans(),
    st.booleans(),
)
def test_no_request_gets_more_than_the_limits(
    messages: int, bytes_max: int | None, in_memory: bool, native: bool
) -> None:
    """At least one message, at most what the limits say, whatever is asked for."""
    limits = TransferLimits()
    taken = share(header(messages, bytes_max), limits, in_memory=in_memory, native=native)
    assert 1 <= taken.messages <= limits.native_messages
    assert 1 <= taken.bytes <= limits.native_bytes
    assert taken.entries >= max(800, taken.messages)
    if not in_memory and not native:
        assert (taken.messages <= limits.disk_messages, taken.bytes <= limits.disk_bytes) == (True, True)


def test_rocketmqs_limits() -> None:
    """32 messages and 256 KiB from memory, 8 and 64 KiB from disk; fewer bytes where asked, 100 at least."""
    limits = TransferLimits()
    near = share(header(1000), limits, in_memory=True, native=False)
    assert (near.messages, near.bytes) == (32, 256 * 1024)
    far = share(header(1000), limits, in_memory=False, native=False)
    assert (far.messages, far.bytes) == (8, 64 * 1024)
    assert share(header(bytes_max=1), limits, in_memory=True, native=False).bytes == 100


def test_our_own_client_says_how_much_it_takes() -> None:
    """Up to 8,192 messages in 1 MiB; in 256 KiB what a disk may have to be asked for."""
    limits = TransferLimits()
    near = share(header(100_000), limits, in_memory=True, native=True)
    assert (near.messages, near.bytes, near.entries) == (8_192, 1024 * 1024, 8_192)
    far = share(header(2_000), limits, in_memory=False, native=True)
    assert (far.messages, far.bytes, far.entries) == (2_000, 128 * 1024, 2_000)
