"""Cutting frames: compiled and uncompiled alike, and like the simple cutter."""

from __future__ import annotations

import contextlib
from types import ModuleType

from hypothesis import given
from hypothesis import strategies as st
from kernel_twins import each_of, twins

from actormq.errors import FrameError
from actormq.wire.frame import FrameCutter

KERNELS = twins("frames")
each_kernel = each_of(KERNELS)

streams = st.lists(
    st.binary(max_size=30).map(lambda body: len(body).to_bytes(4, "big") + body) | st.binary(max_size=9)
).map(b"".join)


@each_kernel
@given(streams, st.integers(8, 64))
def test_the_kernel_cuts_like_the_simple_cutter(kernel: ModuleType, stream: bytes, limit: int) -> None:
    """Same frames, same end, same refusal."""
    places, used, bad = kernel.cut_frames(memoryview(stream), len(stream), limit)
    cutter = FrameCutter(limit)
    frames: list[bytes] = []
    with contextlib.suppress(FrameError):
        frames = cutter.feed(stream)
    assert [stream[start:end] for start, end in places] == frames
    assert used == sum(len(frame) + 4 for frame in frames)
    assert (bad >= 0) == (cutter.broken is not None)
    if bad >= 0:
        assert bad == int.from_bytes(stream[used : used + 4], "big")
