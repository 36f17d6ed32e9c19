# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False
"""Frames in a read buffer: where each begins and ends.

Functions over memory that is handed in; plain Python that runs as it stands, `frames.pxd` gives the
C types.  A frame: u32 length (big-endian, of what follows), u8 header type, u24 header length, header, body.
"""

from __future__ import annotations

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if not cython.compiled:
    from actormq.kernels.records import load_i32, pointer_const


def cut_frames(view: memoryview, end: int, frame_bytes_max: int) -> tuple[list[tuple[int, int]], int, int]:
    """Find the whole frames in ``view[:end]``.

    Args:
        frame_bytes_max: the longest frame that is allowed, its length prefix included.

    Returns:
        (start, end) of each frame behind its length prefix; how many bytes they take; and the length
        that no frame can have where the stream is broken, else -1.
    """
    places: list[tuple[int, int]] = []
    if end < 4:
        return places, 0, -1
    data = pointer_const(view)
    at = 0
    bad = -1
    while at + 4 <= end:
        length = load_i32(data, at) & 0xFFFFFFFF
        if length < 4 or length > frame_bytes_max - 4:
            bad = length
            break
        if at + 4 + length > end:
            break
        places.append((at + 4, at + 4 + length))
        at += 4 + length
    return places, at, bad
