"""Cutting frames: compiled and uncompiled alike, and like the simple cutter."""

from __future__ import annotations

import contextlib
import importlib
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq import kernels
from actormq.errors import FrameError
from actormq.wire.frame import FrameCutter


def _pure() -> ModuleType:
    """Import the .py file beside the compiled one."""
    names = ["actormq.kernels.frames", "actormq.kernels.records"]
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.meta_path.insert(0, kernels.PureFinder)
    try:
        return importlib.import_module(names[0])
    finally:
        sys.meta_path.remove(kernels.PureFinder)
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


PURE = _pure()
USED = importlib.import_module("actormq.kernels.frames")
MODES = [PURE] if USED.__file__ == PURE.__file__ else [PURE, USED]
IDS = ["python", "compiled"][: len(MODES)]

streams = st.lists(
    st.binary(max_size=30).map(lambda body: len(body).to_bytes(4, "big") + body) | st.binary(max_size=9)
).map(b"".join)


@pytest.mark.parametrize("kernel", MODES, ids=IDS)
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
