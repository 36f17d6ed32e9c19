"""Single messages, looked up by place, by key and by time, wherever they lie.

Everything is read by descriptor, in few bytes, never through a map: who waits for a disk inside a map keeps
the whole process waiting, inside a `pread` only the own thread.  And whoever may not wait at all hands in a
`Read` that refuses to (`actormq.actors.gateway.threads`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final

from actormq.config import StoreConfig
from actormq.kernels.queues import ENTRY, ENTRY_BYTES
from actormq.message import PropertyKey
from actormq.store import commit_log, consume_queue, index
from actormq.store import record as records
from actormq.store.batch_queue import BatchQueue, BatchQueues
from actormq.store.commit_log import file_name
from actormq.store.consume_queue import Boundary, offset_by_time, queue_folder
from actormq.store.disk import Disk
from actormq.store.index import IndexReader

Read = Callable[[int, int, int], bytes]
"""(descriptor, bytes, position) → up to so many bytes, like `Disk.pread`."""
NO_TIME: Final = -1
_FIRST_BYTES: Final = 4096
"""Most records are shorter: one read is enough."""
_SIZE_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a message that is asked for by a key must be.

    Attributes:
        begin_ms, end_ms: store times, both included.
        messages_max, bytes_max: the newest so many; at least one, however long.
        unique_only: `key` is a unique key; one of the `KEYS` that reads the same is another message's.
        is_tag: `key` is a message's tags.
        log_starts: by queue id, where the topic's records begin; those before are of a deleted topic.
    """

    topic: str
    key: str
    begin_ms: int
    end_ms: int
    messages_max: int
    bytes_max: int
    unique_only: bool
    log_starts: Mapping[int, int]
    is_tag: bool = False

    @property
    def indexed(self) -> str:
        """How the index has it, behind the topic."""
        return f"T#{self.key}" if self.is_tag else self.key

    def fits(self, record: records.Record) -> bool:
        """Whether it is asked for: the index knows hashes only, and seconds."""
        names = {record.properties.get(PropertyKey.TAGS if self.is_tag else PropertyKey.UNIQ_KEY)}
        if not self.unique_only and not self.is_tag:
            names.update(record.properties.get(PropertyKey.KEYS, "").split(" "))
        return (
            record.topic == self.topic
            and self.key in names
            and self.begin_ms <= record.store_timestamp <= self.end_ms
            and record.log_offset >= self.log_starts.get(record.queue_id, 0)
        )


class Finder:
    """Answers one question; a context manager, which closes what was opened for it.

    Args:
        log_min, log_end: between which log offsets messages are readable.
        read: how bytes are read; what it raises, the question raises.
    """

    def __init__(
        self, disk: Disk, config: StoreConfig, log_min: int, log_end: int, read: Read | None = None
    ) -> None:
        self._disk = disk
        self._config = config
        self._log_min = log_min
        self._log_end = log_end
        self._read = read or disk.pread
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> Finder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._descriptors.values():
            self._disk.close(fd)
        self._descriptors.clear()

    def _bytes(self, path: Path, size: int, at: int) -> bytes:
        """Return up to `size` bytes of a file; none of one that is gone."""
        fd = self._descriptors.get(path)
        if fd is None:
            try:
                fd = self._disk.open(path, write=False)
            except FileNotFoundError:
                return b""
            self._descriptors[path] = fd
        return self._read(fd, size, at)

    def message(self, log_offset: int) -> tuple[bytes, records.Record] | None:
        """Return the sound, readable record at a place in the log; None where none begins.

        The asker may have made the place up.
        """
        data = self._stored(log_offset)
        try:
            found = records.decode(memoryview(data), check_crc=True)
        except records.BadRecord:
            return None
        # Bytes inside a body can look like a record, but do not know their place.
        return (data, found) if found.log_offset == log_offset and found.size == len(data) else None

    def _stored(self, log_offset: int) -> bytes:
        """Return as many bytes as a record at `log_offset` says that it has; none if that cannot be."""
        if not self._log_min <= log_offset <= self._log_end - _SIZE_BYTES:
            return b""
        at = log_offset % self._config.log_file_bytes
        path = self._config.root / commit_log.FOLDER / file_name(log_offset - at)
        readable = min(self._log_end - log_offset, self._config.log_file_bytes - at)
        data = self._bytes(path, min(_FIRST_BYTES, readable), at)
        size = int.from_bytes(data[:_SIZE_BYTES], "big", signed=True)
        if not 0 < size <= readable:
            return b""
        if size > len(data):
            data += self._bytes(path, size - len(data), at + len(data))
        return data[:size]

    def store_time(self, topic: str, queue_id: int, queue_offset: int, *, is_batch: bool = False) -> int:
        """Return a message's store timestamp; `NO_TIME` when it is not there (any more).

        Args:
            is_batch: the topic has batch queues.
        """
        if is_batch:
            with self._batch_queue(topic, queue_id) as queue:
                return self._batch_time(queue, queue_offset)
        at = queue_offset % self._config.queue_file_entries * ENTRY_BYTES
        folder = queue_folder(self._config.root / consume_queue.FOLDER, topic, queue_id)
        entry = self._bytes(folder / file_name(queue_offset * ENTRY_BYTES - at), ENTRY_BYTES, at)
        if len(entry) != ENTRY_BYTES:
            return NO_TIME
        found = self.message(ENTRY.unpack(entry)[0])
        return found[1].store_timestamp if found is not None else NO_TIME

    def offset_at(
        self,
        topic: str,
        queue_id: int,
        low: int,
        high: int,
        timestamp: int,
        boundary: Boundary,
        *,
        is_batch: bool = False,
    ) -> int:
        """Return the queue offset that RocketMQ answers for a store time, inside [low, high].

        Args:
            is_batch: the topic has batch queues.
        """
        if is_batch:
            with self._batch_queue(topic, queue_id) as queue:
                return offset_by_time(low, high, timestamp, boundary, partial(self._batch_time, queue))
        return offset_by_time(low, high, timestamp, boundary, partial(self.store_time, topic, queue_id))

    def _batch_queue(self, topic: str, queue_id: int) -> AbstractContextManager[BatchQueue]:
        return BatchQueues(self._disk, self._config.root).queue(topic, queue_id, self._read)

    def _batch_time(self, queue: BatchQueue, queue_offset: int) -> int:
        """Return when the record with a message was stored: a batch's messages are as old as it."""
        entry = next(queue.since(queue_offset, self._log_end), None)
        return NO_TIME if entry is None else entry.store_timestamp

    def by_key(self, wanted: Wanted) -> tuple[list[bytes], tuple[int, int]]:
        """Return the newest messages that fit, oldest first, and up to where the index knows the log.

        Returns:
            The records; (store time, log offset) of the last message in the index.
        """
        config = self._config
        reader = IndexReader(
            self._disk, config.root / index.FOLDER, config.index_slots, config.index_entries, self._read
        )
        found: dict[int, bytes] = {}
        room = wanted.bytes_max
        reached = reader.reached()
        for log_offset in reader.candidates(wanted.topic, wanted.indexed, wanted.begin_ms, wanted.end_ms):
            if len(found) >= wanted.messages_max:
                break
            message = self.message(log_offset)
            if message is None or not wanted.fits(message[1]):
                continue
            room -= len(message[0])
            if found and room < 0:
                break
            found[log_offset] = message[0]
        return [found[log_offset] for log_offset in sorted(found)], reached
