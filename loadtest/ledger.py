"""What a load test sent and received: numbered bodies, and who is owed what.  Knows nothing of locust."""

from __future__ import annotations

import secrets
import struct
from collections import Counter, defaultdict

HEAD = struct.Struct("<QIIQQ")
"""Of a body: run, producer, bytes of all, the message's number, when it was sent (ns).  A filler follows."""
RUN = struct.Struct("<Q")


class Ledger:
    """One run's.  Not locked: for one thread, or greenlets, which change places only where they wait."""

    def __init__(self) -> None:
        self.run = secrets.randbits(64)
        self.changed = 0
        self.lost = 0
        """Acknowledged and not received, so far."""
        self._acknowledged: dict[int, set[int]] = defaultdict(set)
        self._received: dict[int, Counter[int]] = defaultdict(Counter)

    def body(self, producer: int, number: int, now_ns: int, body_bytes: int) -> bytes:
        """Return a message's body; at least the head is sent."""
        size = max(body_bytes, HEAD.size)
        return HEAD.pack(self.run, producer, size, number, now_ns) + _filler(number, size)

    def acknowledge(self, producer: int, number: int) -> None:
        """The broker has promised to deliver it."""
        self._acknowledged[producer].add(number)
        self.lost += number not in self._received[producer]

    def receive(self, body: bytes) -> int | None:
        """Note a message that came; return when it was sent, None when it is none of this run's."""
        if len(body) < HEAD.size or RUN.unpack_from(body)[0] != self.run:
            return None
        _, producer, size, number, sent_ns = HEAD.unpack_from(body)
        self.changed += len(body) != size or body[HEAD.size :] != _filler(number, len(body))
        received = self._received[producer]
        received[number] += 1
        self.lost -= received[number] == 1 and number in self._acknowledged[producer]
        return int(sent_ns)

    def counts(self) -> dict[str, int]:
        """Return what to tell people.  Repeated ones are no failure: delivery is at least once."""
        return {
            "acknowledged": sum(map(len, self._acknowledged.values())),
            "received": sum(map(len, self._received.values())),
            "lost": self.lost,
            "changed": self.changed,
            "repeated": sum(numbers.total() - len(numbers) for numbers in self._received.values()),
        }


def _filler(number: int, body_bytes: int) -> bytes:
    """Return what follows the head, different for each message."""
    size = body_bytes - HEAD.size
    return (number.to_bytes(8, "little") * (size // 8 + 1))[:size]
