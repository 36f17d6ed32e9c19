"""One buffer of several parts, in memory that is used again.

New memory of a megabyte costs a page fault for every four kilobytes of it, on most virtual machines more than
copying them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from actormq.net.tcp import Buffer

BUFFER_BYTES: Final = 1024 * 1024
"""As much as the answer to a pull carries."""
BUFFERS_MAX: Final = 16
SHORT_BYTES: Final = 64 * 1024
"""Memory for less than this is at hand in any case."""


class Joiner:
    """Joins parts.  What it returned is not changed while anybody holds it, or a view of it.

    Args:
        buffer_bytes: what is longer gets memory of its own.
        buffers_max: what is joined while so many are in use gets memory of its own.
    """

    def __init__(self, buffer_bytes: int = BUFFER_BYTES, buffers_max: int = BUFFERS_MAX) -> None:
        self._buffer_bytes = buffer_bytes
        self._buffers_max = buffers_max
        self._buffers: deque[bytearray] = deque()

    def join(self, parts: Sequence[Buffer]) -> Buffer:
        """Return the bytes of all parts, one behind the other."""
        size = sum(map(len, parts))
        buffer = self._free_buffer() if SHORT_BYTES <= size <= self._buffer_bytes else None
        if buffer is None:
            return b"".join(parts)
        view = memoryview(buffer)[:size]
        at = 0
        for part in parts:
            view[at : at + len(part)] = part
            at += len(part)
        return view

    def _free_buffer(self) -> bytearray | None:
        """Return a buffer that nobody holds: the one that was used longest ago is looked at first."""
        for _ in range(len(self._buffers)):
            buffer = self._buffers.popleft()
            self._buffers.append(buffer)
            if _is_free(buffer):
                return buffer
        if len(self._buffers) == self._buffers_max:
            return None
        buffer = bytearray(self._buffer_bytes)
        self._buffers.append(buffer)
        return buffer


def _is_free(buffer: bytearray) -> bool:
    """Whether there is no view of `buffer`: Python refuses to change its length while there is one."""
    try:
        last = buffer.pop()
    except BufferError:
        return False
    buffer.append(last)
    return True
