"""damage: what a pull gets where a queue's entry does not lead to its message.

Either the record is damaged: the consumer goes on behind it.  Or the entry is: the message lies in the log
between those of its neighbours in the queue, is found there and served, and the dispatcher makes the entry
again.  Each is named once in the log.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from actormq.errors import StoreError
from actormq.kernels.queues import ENTRY, ENTRY_BYTES, count_whole, find_message
from actormq.kernels.records import ScanEnd
from actormq.net.tcp import Buffer
from actormq.shm.extents import Extent
from actormq.store.commit_log import LogReader, LogRemoved, file_name
from actormq.store.consume_queue import QueueReader
from actormq.store.log_scan import next_record

NEIGHBOURS: Final = 16
"""So many entries on either side are looked at for one that fits."""
SEARCH_BYTES: Final = 64 * 1024 * 1024
"""No more of the log is walked through for one message: nobody is served meanwhile."""
KNOWN_MAX: Final = 10_000

Place = tuple[int, int]
"""Log offset and size of a record."""


class Readable(Protocol):
    """Which part of the log may be read."""

    def log_range(self) -> tuple[int, int]: ...


class Damage:
    """Finds messages whose entries do not lead to them, and keeps what it has found.

    Args:
        mend: is told the log offset of a record whose queue entry is to be made again.

    Attributes:
        count: messages that nobody can read any more, and entries that were made again.
    """

    def __init__(
        self,
        queues: QueueReader,
        log: LogReader,
        marks: Readable,
        mend: Callable[[int], object],
        journal: logging.Logger,
    ) -> None:
        self._queues = queues
        self._log = log
        self._marks = marks
        self._mend = mend
        self._journal = journal
        self._known: OrderedDict[tuple[str, int, int, int], Place | None] = OrderedDict()
        self.count = 0

    def find(self, topic: str, queue_id: int, queue_offset: int, extent: Extent) -> Place | None:
        """Return where a message of a queue is, None when it cannot be read any more."""
        led = self._led(topic, queue_id, queue_offset, extent)
        if led is not None:
            return led
        key = (topic, queue_id, extent.incarnation, queue_offset)
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        found = self._search(topic, queue_id, queue_offset, extent)
        self._known[key] = found
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        return found

    def _entry(self, topic: str, queue_id: int, queue_offset: int, extent: Extent) -> memoryview:
        return self._queues.view(topic, queue_id, queue_offset, 1, extent.incarnation)

    def _led(self, topic: str, queue_id: int, queue_offset: int, extent: Extent) -> Place | None:
        """Return where an entry leads to, None when its message is not there."""
        try:
            entry = self._entry(topic, queue_id, queue_offset, extent)
            log_offset, size, _ = ENTRY.unpack(entry)
            if size <= 0 or log_offset < self._marks.log_range()[0]:
                return None
            record = self._log.view(log_offset, size)
        except StoreError:
            return None
        whole = count_whole(entry, [0], queue_offset, (record,), topic.encode(), queue_id)
        return (log_offset, size) if whole else None

    def _search(self, topic: str, queue_id: int, queue_offset: int, extent: Extent) -> Place | None:
        """Walk through the log between the nearest entries that fit."""
        low = max(extent.min, queue_offset - NEIGHBOURS)
        high = min(extent.max, queue_offset + 1 + NEIGHBOURS)
        before = self._first(topic, queue_id, range(queue_offset - 1, low - 1, -1), extent)
        after = self._first(topic, queue_id, range(queue_offset + 1, high), extent)
        promised = self._promise(topic, queue_id, queue_offset, extent)
        log_min, _ = self._marks.log_range()
        # The cleaner's, who has not come to say so in the queue's extent.
        removed = before is None and 0 <= promised < log_min
        start = before[0] + before[1] if before is not None else log_min
        end = after[0] if after is not None else start + SEARCH_BYTES
        found = None
        if not removed or after is not None:
            start = max(start, end - SEARCH_BYTES) if before is None else start
            found = self._walk(start, min(end, start + SEARCH_BYTES), topic, queue_id, queue_offset)
        if found is not None or not removed:
            self._note(f"message {queue_offset} of queue {queue_id} of topic {topic}", promised, found)
        return found

    def _promise(self, topic: str, queue_id: int, queue_offset: int, extent: Extent) -> int:
        """Return the log offset in an entry; -1 when there is none."""
        try:
            log_offset, _, _ = ENTRY.unpack(self._entry(topic, queue_id, queue_offset, extent))
        except StoreError:
            return -1
        return int(log_offset)

    def _first(self, topic: str, queue_id: int, offsets: range, extent: Extent) -> Place | None:
        for queue_offset in offsets:
            led = self._led(topic, queue_id, queue_offset, extent)
            if led is not None:
                return led
        return None

    def _walk(self, start: int, end: int, topic: str, queue_id: int, queue_offset: int) -> Place | None:
        file_bytes = self._log.file_bytes
        name = topic.encode()
        at = start
        while at < end:
            base = at - at % file_bytes
            try:
                view = self._log.file(base)
            except LogRemoved:
                return None
            limit = min(end - base, file_bytes)
            position, size = find_message(view, at - base, limit, base, name, queue_id, queue_offset)
            at = base + position
            if size > 0:
                return at, size
            reason = ScanEnd(-size)
            if reason is ScanEnd.BLANK or (reason is ScanEnd.STOP and limit == file_bytes):
                at = base + file_bytes
            elif reason in (ScanEnd.STOP, ScanEnd.EMPTY):
                return None
            else:
                good = next_record(self._log, range(base, end, file_bytes), at + 1, end)
                if good is None:
                    return None
                at = good
        return None

    def _note(self, what: str, promised: int, found: Place | None) -> None:
        """Say once what is wrong, and have it mended where that can be done."""
        self.count += 1
        if found is not None:
            self._journal.error(
                f"the queue entry of {what} is damaged; the message is at log offset {found[0]}: "
                "it is served, and the entry made again"
            )
            self._mend(found[0])
            return
        position = promised % self._log.file_bytes
        self._journal.error(
            f"{what} is damaged or gone: log offset {promised}, position {position} of log file "
            f"{file_name(max(promised - position, 0))}; consumers go on behind it"
        )


def sizes(entries: Buffer, places: list[int]) -> list[int]:
    """Return the sizes of the records that some entries promise."""
    return [ENTRY.unpack_from(entries, place * ENTRY_BYTES)[1] for place in places]
