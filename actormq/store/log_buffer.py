"""The store pool: the newest bytes of the log in shared memory, before they are in its files.

RocketMQ's transient store pool.  A ring in which a log offset has one place: writer appends, flusher
commits.  It belongs to the supervisor, so that whatever role dies finds all of it again.
"""

from __future__ import annotations

from collections.abc import Sequence

from actormq.store.commit_log import LogFiles
from actormq.store.disk import BytesLike


class LogBuffer:
    """A view of the ring.

    Args:
        view: its memory.
        end: up to where the log goes; before that there are no gaps.
    """

    def __init__(self, view: memoryview, end: int) -> None:
        self.capacity = len(view)
        self._view = view
        self._end = end

    def append(self, log_offset: int, buffers: Sequence[BytesLike]) -> int:
        """Put `buffers` at `log_offset`; what lies between them and the end until now reads as zeros.

        The caller knows that all of it is less than `capacity` ahead of what is committed.
        """
        if log_offset > self._end:
            self._put(self._end, bytes(log_offset - self._end))
        for buffer in buffers:
            self._put(log_offset, memoryview(buffer))
            log_offset += len(buffer)
        self._end = log_offset
        return log_offset

    def _put(self, log_offset: int, data: BytesLike) -> None:
        done = 0
        for part in self.parts(log_offset, len(data)):
            part[:] = data[done : done + len(part)]
            done += len(part)

    def parts(self, log_offset: int, size: int) -> list[memoryview]:
        """Return the memory of `size` bytes at `log_offset`: one piece, or two at the end of the ring."""
        assert size <= self.capacity, "more than the ring holds"
        at = log_offset % self.capacity
        first = self._view[at : at + size]
        return [first] if len(first) == size else [first, self._view[: size - len(first)]]

    def commit(self, files: LogFiles, start: int, end: int) -> None:
        """Write the bytes of [start, end) into the log's files; doing it again changes nothing.

        Raises:
            OSError: as `LogFiles.append`.
        """
        while start < end:
            stop = min(end, files.base_of(start) + files.file_bytes)
            start = files.append(start, self.parts(start, stop - start))
