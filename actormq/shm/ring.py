"""Rings and ports: bytes from one process to one other, through shared memory.

A *port* is one segment with a ring of requests and a ring of completions, between a client role and
the role that serves it.  It belongs to one incarnation of the client: a restarted one gets a new
port.  It survives the server, whose successor goes on at the heads.
"""

from __future__ import annotations

import struct

from actormq.kernels.rings import DATA, RingConsumer, RingProducer, ring_init, ring_region
from actormq.shm.segment import Segment, SegmentError

__all__ = ["Port", "RingConsumer", "RingProducer", "ring_bytes", "ring_init", "ring_region"]

_SIZES = struct.Struct("<QQ")
_LINE = 64


def _rounded(capacity: int) -> int:
    return (capacity + _LINE - 1) // _LINE * _LINE


def ring_bytes(capacity: int) -> int:
    """Return the memory that a ring for `capacity` bytes of entries needs: rounded up to 64, and 192 more.

    An entry takes 8 bytes and its payload, rounded up to 8.
    """
    return DATA + _rounded(capacity)


class Port:
    """A request ring and a completion ring in one segment.

    Attributes:
        requests: memory of the ring that the client produces into.
        completions: memory of the ring that the server produces into.
    """

    def __init__(self, segment: Segment) -> None:
        """`segment`: made with `Port.create`."""
        self.segment = segment
        sizes = segment.view[: _SIZES.size]
        request_bytes, completion_bytes = _SIZES.unpack(sizes)
        if request_bytes == 0 or _LINE + request_bytes + completion_bytes > len(segment.view):
            raise SegmentError(f"the shared segment {segment.purpose!r} is no port")
        middle = _LINE + request_bytes
        self.requests = segment.view[_LINE:middle]
        self.completions = segment.view[middle : middle + completion_bytes]

    @staticmethod
    def payload_bytes(request_capacity: int, completion_capacity: int) -> int:
        """Return what the segment of such a port must hold."""
        return _LINE + ring_bytes(request_capacity) + ring_bytes(completion_capacity)

    @classmethod
    def create(cls, prefix: str, purpose: str, request_capacity: int, completion_capacity: int) -> Port:
        """Return a new port with empty rings, in a segment of its own."""
        size = cls.payload_bytes(request_capacity, completion_capacity)
        segment = Segment.create(prefix, purpose, size)
        segment.view[: _SIZES.size] = _SIZES.pack(
            ring_bytes(request_capacity), ring_bytes(completion_capacity)
        )
        port = cls(segment)
        ring_init(port.requests)
        ring_init(port.completions)
        return port

    def close(self) -> None:
        """Give up the rings' memory."""
        self.requests.release()
        self.completions.release()
        self.segment.close()
