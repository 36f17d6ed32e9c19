"""Batch queues made anew from the log: the entry of a record stands right behind that of the one before.

An entry says itself which messages it has, so its place means nothing: a queue begins at its first place
again, also where its first records have left the log.
"""

from __future__ import annotations

from pathlib import Path

from actormq.errors import StoreForeign
from actormq.kernels import queues, records
from actormq.message import SysFlag
from actormq.store import batch_queue, tables
from actormq.store.batch_queue import ENTRY, ENTRY_BYTES, BatchEntry, BatchQueues, is_batch_topic
from actormq.store.consume_queue import QueueFiles
from actormq.store.disk import Disk
from actormq.store.tools.walking import Piece, Queue


class BatchRebuild:
    """Writes batch queues.

    Args:
        root: the folder in which they are made, beside others.
        old: as they are.
    """

    def __init__(self, disk: Disk, root: Path, file_entries: int, old: BatchQueues) -> None:
        self._files = QueueFiles(disk, root / batch_queue.FOLDER, file_entries, entry_bytes=ENTRY_BYTES)
        self._old = old
        self._places: dict[Queue, int] = {}
        """Of each queue: the number of its next entry."""
        self.ends: dict[Queue, int] = {}
        """One past the last message of each."""

    def write(self, queue: Queue, first: int, entries: bytearray, piece: Piece) -> int:
        """Write the entries of consecutive records; return how many messages they have.

        Args:
            first: queue offset of the first message.
            entries: ordinary queue entries of the records, which lie in `piece`.
        """
        made = batch_queue.entries_of(entries, piece.view, piece.base)
        if first == 0 and queue in self._places:
            # The topic was deleted and made again.
            self._files.remove_queue(*queue)
            del self._places[queue]
        return self._append(queue, made)

    def _append(self, queue: Queue, entries: bytes | bytearray) -> int:
        place = self._places.get(queue, 0)
        self._files.write(*queue, place, entries)
        self._places[queue] = place + len(entries) // ENTRY_BYTES
        added = [BatchEntry._make(each) for each in ENTRY.iter_unpack(entries)]
        self.ends[queue] = added[-1].end
        return sum(each.messages for each in added)

    def keep_end(self, queue: Queue, log_min: int) -> None:
        """Make a queue that has no record in the log any more go on where it ended: keep its last entry."""
        if queue in self._places:
            return
        with self._old.queue(*queue) as files:
            last = files.last(log_min)
        if last is not None:
            self._append(queue, ENTRY.pack(*last))

    def sync(self) -> None:
        self._files.sync()

    def close(self) -> None:
        self._files.close()


def check_tables(old: BatchQueues, topics: tables.Table | None) -> None:
    """Look whether the topics that have batch queues are called so.

    Raises:
        StoreForeign: topics.json has one as an ordinary topic: which queues are its own cannot be told.
    """
    ordinary = tables.topics_with(topics, lambda attributes: not is_batch_topic(attributes))
    for topic, _ in old.names():
        if topic in ordinary:
            raise StoreForeign(
                f"{old.root / topic} has batch queues, but {tables.TOPICS} does not say queue.type=BatchCQ "
                "of it: mend the table, or remove the folder, whichever is wrong"
            )


def check_ordinary(queue: Queue, entries: bytearray, piece: Piece) -> None:
    """Look whether a run of records can be an ordinary queue's.

    Looked at is the last one: behind a record of many messages the offsets jump, so a run ends there.

    Raises:
        StoreForeign: it has many messages: its topic has batch queues, and nothing but the log says so.
    """
    log_offset = queues.ENTRY.unpack_from(entries, len(entries) - queues.ENTRY_BYTES)[0]
    if records.decode(piece.view, log_offset - piece.base).sys_flag & SysFlag.INNER_BATCH:
        raise StoreForeign(
            f"the record at log offset {log_offset} has many messages, so topic {queue[0]} has batch queues, "
            f"but neither {tables.TOPICS} (queue.type=BatchCQ) nor a folder in {batch_queue.FOLDER} says so: "
            f"bring the table back, or make the folder {batch_queue.FOLDER}/{queue[0]}/{queue[1]}"
        )
