"""Batch bodies: strict bounds, nothing copied."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.errors import FrameError
from actormq.wire import batch

items = st.lists(
    st.tuples(st.integers(-(1 << 31), (1 << 31) - 1), st.binary(max_size=50), st.binary(max_size=50)),
    max_size=6,
)


@given(items)
def test_a_batch_reads_back(messages: list[tuple[int, bytes, bytes]]) -> None:
    """Encode, iterate: the same messages in the same order."""
    data = batch.encode(messages)
    assert [(one.flag, bytes(one.body), bytes(one.properties)) for one in batch.iterate(data)] == messages
    assert batch.count(data) == len(messages)


@given(items.filter(bool), st.data())
def test_a_cut_batch_is_refused(messages: list[tuple[int, bytes, bytes]], data: st.DataObject) -> None:
    """Any cut inside a message raises FrameError; a cut between two is a shorter batch."""
    whole = batch.encode(messages)
    ends = {len(batch.encode(messages[:count])) for count in range(len(messages) + 1)}
    cut = data.draw(st.integers(0, len(whole) - 1))
    if cut in ends:
        batch.count(whole[:cut])
    else:
        with pytest.raises(FrameError):
            batch.count(whole[:cut])


@given(st.binary(max_size=120))
def test_garbage_is_refused_or_read(garbage: bytes) -> None:
    """FrameError and nothing else."""
    with contextlib.suppress(FrameError):
        batch.count(garbage)


def test_the_bytes_are_rocketmqs() -> None:
    """total, magic 0, crc 0, flag, body, properties."""
    assert batch.encode([(7, b"body", b"k\x01v\x02")]) == (
        struct.pack(">iiiii", 30, 0, 0, 7, 4) + b"body" + struct.pack(">h", 4) + b"k\x01v\x02"
    )


def test_a_size_that_leaves_a_gap_is_refused() -> None:
    """Total size must be exactly what its parts add up to."""
    data = bytearray(batch.encode([(0, b"body", b"")]) + b"\x00")
    data[3] += 1
    with pytest.raises(FrameError):
        batch.count(bytes(data))
