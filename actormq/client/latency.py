"""Which queue to send to: round robin, away from brokers that failed; or by key, always the same.

Source: RocketMQ TopicPublishInfo.java, MQFaultStrategy.java, LatencyFaultToleranceImpl.java,
SelectMessageQueueByHash.java; client.md §2.5.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from actormq.client.results import MessageQueue
from actormq.message import java_hash

LATENCIES_MS: Final = (50, 100, 550, 1_800, 3_000, 5_000, 15_000)
AVOIDED_MS: Final = (0, 0, 2_000, 5_000, 6_000, 10_000, 30_000)
ISOLATED_LATENCY_MS: Final = 10_000
"""What a failed request counts as: its broker is avoided for 10 s."""
assert len(LATENCIES_MS) == len(AVOIDED_MS)


class FaultTable:
    """Which brokers are better left alone for a while.

    Entries are replaced whole, so threads that read while another one writes see old or new.
    """

    def __init__(self) -> None:
        self._avoided_until_ms: dict[str, int] = {}

    def note(self, broker_name: str, latency_ms: float, now_ms: int, *, failed: bool = False) -> None:
        """Remember how a request to the broker went.

        Args:
            failed: no answer, or an error: counts as a latency of 10 s.
            now_ms: on the monotonic clock.
        """
        index = bisect_right(LATENCIES_MS, ISOLATED_LATENCY_MS if failed else latency_ms) - 1
        avoided_ms = AVOIDED_MS[index] if index >= 0 else 0
        if avoided_ms:
            self._avoided_until_ms[broker_name] = now_ms + avoided_ms
        else:
            self._avoided_until_ms.pop(broker_name, None)

    def is_available(self, broker_name: str, now_ms: int) -> bool:
        """Return whether nothing speaks against the broker; an unknown one is available."""
        return self._avoided_until_ms.get(broker_name, now_ms) <= now_ms


def choose_queue(
    queues: Sequence[MessageQueue], index: int, failed_broker: str | None, faults: FaultTable, now_ms: int
) -> MessageQueue:
    """Return the queue to send to next.

    First choice: a broker that is available and did not just fail; then one that did not just fail;
    then plain round robin.

    Args:
        queues: not empty.
        index: a number that the caller raises by one for every choice.
        failed_broker: the broker of the attempt before.
    """
    count = len(queues)
    other = None
    for step in range(count):
        queue = queues[(index + step) % count]
        if queue.broker_name == failed_broker:
            continue
        if faults.is_available(queue.broker_name, now_ms):
            return queue
        other = other or queue
    return other or queues[index % count]


def queue_of_key(queues: Sequence[MessageQueue], key: str) -> MessageQueue:
    """Return the queue of `key`, the same as the Java client's hash selector chooses."""
    return queues[abs(java_hash(key)) % len(queues)]
