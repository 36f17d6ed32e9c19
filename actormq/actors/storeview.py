"""What a role outside the data path reads of the store: single records, single queue entries, bounds.

Reads through maps, as gateways do; whoever needs ranges uses the kernels instead.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from actormq.actors.writer import DISK_USED
from actormq.broker.delay import DueEntry
from actormq.broker.tables import TopicEntry
from actormq.config import BrokerConfig
from actormq.kernels.queues import ENTRY, ENTRY_BYTES
from actormq.shm.extents import Extent, Extents
from actormq.shm.positions import Position, Positions, readable, slot_of
from actormq.store import record as records
from actormq.store.commit_log import FOLDER as LOG_FOLDER
from actormq.store.commit_log import LogReader, LogRemoved
from actormq.store.consume_queue import FOLDER as QUEUES_FOLDER
from actormq.store.consume_queue import QueueReader, QueueRemoved
from actormq.store.disk import Disk

_SIZE: Final = struct.Struct(">i")
_RECORD_BYTES_MIN: Final = 91
MEMORY_SHARE: Final = 0.4
"""RocketMQ's accessMessageInMemoryMaxRatio: what lies less far back than this share of RAM is in memory."""


class StoreReader:
    """Reads log and queues of this broker."""

    def __init__(self, config: BrokerConfig, disk: Disk, positions: Positions, extents: Extents) -> None:
        store = config.store
        self._positions = positions
        self._extents = extents
        self._log = LogReader(disk, store.root / LOG_FOLDER, store.log_file_bytes, maps_max=4)
        self._queues = QueueReader(disk, store.root / QUEUES_FOLDER, store.queue_file_entries, maps_max=64)
        self._safe = readable(store)
        self._near_bytes = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)

    @property
    def safe(self) -> int:
        """The log offset up to which nothing can be lost any more in this broker's mode."""
        return self._positions.get(self._safe)

    def _extent(self, entry: TopicEntry, queue_id: int) -> Extent:
        """Return the queue's extent; empty when its row has another queue by now."""
        if not 0 <= queue_id < len(entry.rows):
            return Extent(0, 0, 0)
        extent = self._extents.read(entry.rows[queue_id])
        return extent if extent.incarnation == entry.row_incarnations[queue_id] else Extent(0, 0, 0)

    def extent(self, entry: TopicEntry, queue_id: int) -> tuple[int, int]:
        """Return (min, max) of a queue; (0, 0) when there is none."""
        extent = self._extent(entry, queue_id)
        return extent.min, extent.max

    def entries(self, entry: TopicEntry, queue_id: int, first: int, count: int) -> list[DueEntry]:
        """Return up to `count` entries of a queue from `first` on; none where the queue ends or has moved on.

        The code of an entry is given as its due time: that is what it is in the queues of the delay levels.
        """
        extent = self._extent(entry, queue_id)
        count = min(count, extent.max - first)
        if count <= 0 or first < extent.min:
            return []
        try:
            view = self._queues.view(entry.name, queue_id, first, count, extent.incarnation)
        except QueueRemoved:
            return []
        data = bytes(view)
        if not self._extents.still_holds(entry.rows[queue_id], extent, first):
            return []
        assert len(data) % ENTRY_BYTES == 0, len(data)
        return [
            DueEntry(first + number, log_offset, size, code)
            for number, (log_offset, size, code) in enumerate(ENTRY.iter_unpack(data))
        ]

    def is_near(self, entry: TopicEntry, queue_id: int, queue_offset: int) -> bool:
        """Return whether a message is recent enough to be in memory still (RocketMQ's estimate)."""
        found = self.entries(entry, queue_id, queue_offset, 1)
        return (
            bool(found) and self._positions.get(Position.APPENDED) - found[0].log_offset <= self._near_bytes
        )

    def record(self, log_offset: int) -> records.Record | None:
        """Return the record that begins at `log_offset`; None: none does, it is damaged, or not safe yet."""
        if not self._positions.get(Position.CLEANED) <= log_offset <= self.safe - _RECORD_BYTES_MIN:
            return None
        try:
            (size,) = _SIZE.unpack(self._log.view(log_offset, _SIZE.size))
            if not _RECORD_BYTES_MIN <= size <= self.safe - log_offset:
                return None
            # Who asks stores it again, under a new CRC: what is damaged must not become right by that.
            found = records.decode(self._log.view(log_offset, size), check_crc=True)
        except (LogRemoved, records.BadRecord):
            return None
        # Peers name log offsets: bytes inside a body can look like a record, but do not know their place.
        return found if found.log_offset == log_offset and found.size == size else None

    def store_time(self, entry: TopicEntry, queue_id: int, queue_offset: int) -> int:
        """Return a message's store timestamp, 0 when it is not there."""
        found = self.entries(entry, queue_id, queue_offset, 1)
        stored = self.record(found[0].log_offset) if found else None
        return stored.store_timestamp if stored is not None else 0

    def log_end(self) -> int:
        """Return the log offset behind the last record that was stored."""
        return self._positions.get(Position.APPENDED)

    def runtime(self) -> dict[str, str]:
        """Return what the positions say, by RocketMQ's runtime keys."""
        appended = self._positions.get(Position.APPENDED)
        oldest = self.record(self._positions.get(Position.CLEANED))
        used = f"{self._positions.role(slot_of('cleaner'), DISK_USED) / 100:.2f}"
        return {
            "commitLogDiskRatio": used,
            "consumeQueueDiskRatio": used,
            "earliestMessageTimeStamp": str(oldest.store_timestamp if oldest is not None else -1),
            "commitLogMinOffset": str(self._positions.get(Position.CLEANED)),
            "commitLogMaxOffset": str(appended),
            "dispatchBehindBytes": str(appended - self._positions.get(Position.DISPATCHED)),
            "remainHowManyDataToFlush": f"{appended - self._positions.get(Position.FLUSHED)} B",
        }
