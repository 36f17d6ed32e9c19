"""A broker's store work in one thread, for fault tests: append, sync, dispatch, checkpoint, stop.

It does what writer, flusher and dispatcher do, in the same order, on any disk; nothing else.  Every record
has the same size unless told otherwise: stale records behind a cut then sit at exactly the right places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actormq.config import StoreConfig
from actormq.kernels import queues, records
from actormq.store import checkpoint, commit_log, consume_queue, index, marks
from actormq.store.checkpoint import Checkpoint
from actormq.store.commit_log import LogFiles, LogReader
from actormq.store.consume_queue import QueueFiles, QueueReader
from actormq.store.index import IndexReader, IndexWriter
from actormq.store.marks import Mark, QueueExtent
from actormq.store.queue_ext import ExtensionFiles
from actormq.store.recovery import RecoveredStore, recover

ROOT = Path("/store")
HOST = bytes([127, 0, 0, 1, 0, 0, 42, 159])
DELAYS = [1000, 5000]
BASE_MS = 1_700_000_000_000
FOREVER_MS = 1 << 60


def small_config(root: Path = ROOT, **changes: Any) -> StoreConfig:
    """Files so small that a few records fill them."""
    options: dict[str, Any] = {
        "log_file_bytes": 1 << 20,
        "queue_file_entries": 100,
        "index_slots": 50,
        "index_entries": 400,
        "body_bytes_max": 300_000,
    }
    return StoreConfig(root=root, **options | changes)


@dataclass(frozen=True)
class Message:
    """What a record must say."""

    number: int
    topic: str
    queue_id: int

    @property
    def key(self) -> str:
        return f"K{self.number:08d}"

    def body(self, size: int) -> bytes:
        return self.key.encode().ljust(size, b".")


@dataclass
class SmallStore:
    """One life of a broker on `disk`, from recovery to crash or stop."""

    disk: Any
    config: StoreConfig = field(default_factory=small_config)
    body_bytes: int = 60_000
    queue_count: int = 3
    asynchronous: bool = False
    """Dispatch what is appended, not only what is durable."""
    delay_ms: list[int] = field(default_factory=lambda: DELAYS)
    rebuild: bool = False
    found: RecoveredStore = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        self.now_ms = BASE_MS
        self.found = recover(
            self.disk,
            config,
            wall_ms=self.now_ms,
            pid=7,
            delay_ms=self.delay_ms,
            rebuild=self.rebuild,
        )
        log_folder = config.root / commit_log.FOLDER
        self.log = LogFiles(self.disk, log_folder, config.log_file_bytes)
        self.reader = LogReader(self.disk, log_folder, config.log_file_bytes)
        self.queue_files = QueueFiles(
            self.disk, config.root / consume_queue.FOLDER, config.queue_file_entries
        )
        self.extensions = ExtensionFiles(self.disk, config)
        self.index = IndexWriter(
            self.disk, config.root / index.FOLDER, config.index_slots, config.index_entries
        )
        self.end = self.flushed = self.dispatched = self.found.log_end
        self.next_offset = {queue: extent.max for queue, extent in self.found.queues.items()}
        self.known = self.found.checkpoint
        self.last_timestamp = self.found.last_store_timestamp

    def append(self, messages: list[Message]) -> None:
        """Write messages as the writer does: one write per file, a blank where one does not fit."""
        batch = bytearray()
        start = self.end
        for message in messages:
            self.now_ms += 7
            self.last_timestamp = self.now_ms
            body = message.body(self.body_bytes)
            properties = f"KEYS\1{message.key}\2".encode()
            topic = message.topic.encode()
            size = records.record_size(8, 8, len(topic), len(properties), len(body))
            place = start + len(batch)
            left = self.config.log_file_bytes - place % self.config.log_file_bytes
            if size + 8 > left:
                blank = bytearray(8)
                records.encode_blank(blank, 0, left)
                self._write(start, batch + blank)
                start = place = place + left
                batch = bytearray()
            queue = (message.topic, message.queue_id)
            offset = self.next_offset.get(queue, 0)
            piece = bytearray(size)
            records.encode(
                piece,
                0,
                queue_id=message.queue_id,
                queue_offset=offset,
                physical_offset=place,
                store_timestamp=self.now_ms,
                store_host=HOST,
                topic=topic,
                body=body,
                properties=properties,
            )
            batch += piece
            self.next_offset[queue] = offset + 1
        self._write(start, batch)
        self.end = start + len(batch)

    def _write(self, start: int, batch: bytearray) -> None:
        if batch:
            self.log.create(self.log.base_of(start))
            self.log.append(start, [batch])

    def sync(self) -> None:
        """As the flusher: what is before `end` is durable."""
        if self.flushed < self.end:
            self.log.sync(self.flushed, self.end)
            self.flushed = self.end

    def dispatch(self) -> None:
        """As the dispatcher, up to the safe point."""
        limit = self.end if self.asynchronous else self.flushed
        rows: dict[tuple[bytes, int], int] = {}
        names: list[tuple[str, int]] = []
        while self.dispatched < limit:
            base = self.log.base_of(self.dispatched)
            view = self.reader.file(base)
            made = queues.dispatch(view, self.dispatched - base, limit - base, base, rows, self.delay_ms)
            for row, first, entries in made.runs:
                if self.config.queue_ext:
                    self.extensions.put(*names[row], first, entries, view, base)
                self.queue_files.write(*names[row], first, entries)
            if made.keys:
                self.index.put(made.keys, self.now_ms)
            self.dispatched = base + made.end
            if made.reason == queues.UNKNOWN_QUEUE:
                header = records.decode(view, made.end)
                rows[header.topic, header.queue_id] = len(names)
                names.append((header.topic.decode(), header.queue_id))
            elif made.reason == records.ScanEnd.BLANK:
                self.dispatched = base + self.config.log_file_bytes
            else:
                assert made.reason == records.ScanEnd.STOP

    def checkpoint(self) -> None:
        """As the flusher every second: log, queues and index durable, then the checkpoint says so."""
        self.sync()
        dispatched = self.dispatched
        size = index.file_bytes(self.config.index_slots, self.config.index_entries)
        name, following = index.sync_newest(self.disk, self.index.folder, size)
        if name:
            self.disk.fsync_dir(self.index.folder)
        self.extensions.sync()
        self.queue_files.sync()
        self.known = Checkpoint(
            log_timestamp=self.last_timestamp,
            queues_timestamp=self.last_timestamp,
            log_flushed=self.flushed,
            queues_flushed=dispatched,
            index_flushed=dispatched,
            index_file=name,
            index_next=following,
        )
        checkpoint.write(self.disk, self.config.root / checkpoint.NAME, self.known)

    def stop(self) -> None:
        """Stop cleanly."""
        self.sync()
        self.dispatch()
        self.checkpoint()
        bases = self.log.bases()
        extents = {}
        for queue, following in self.next_offset.items():
            known = self.found.queues.get(queue)
            low, first = (known.min, known.first_file_entry) if known else (0, 0)
            extents[queue] = QueueExtent(min=low, max=following, first_file_entry=first)
        mark = Mark(
            log_min=bases[0] if bases else 0,
            log_end=self.end,
            last_store_timestamp=self.last_timestamp,
            queues=extents,
        )
        marks.close_store(self.disk, self.config.root, mark, self.known)


def read_log(disk: Any, found: RecoveredStore, config: StoreConfig) -> list[records.Header]:
    """Return every record from the log's beginning to its end; fails on anything else in between."""
    reader = LogReader(disk, config.root / commit_log.FOLDER, config.log_file_bytes)
    headers = []
    at = found.log_min
    while at < found.log_end:
        base = at - at % config.log_file_bytes
        view = reader.file(base)
        scan = records.scan(view, at - base, base, True, at - base + 1)
        if scan.reason == records.ScanEnd.BLANK:
            at = base + config.log_file_bytes
            continue
        assert scan.records == 1, (at, scan)
        headers.append(records.decode(view, at - base))
        at = base + scan.end
    assert at == found.log_end
    base = at - at % config.log_file_bytes
    if disk.exists(reader.folder / commit_log.file_name(base)):
        assert not bytes(reader.file(base)[at - base :]).strip(b"\0"), (
            "something is left behind the end of the log"
        )
    return headers


def check_queues(disk: Any, found: RecoveredStore, config: StoreConfig, log: list[records.Header]) -> None:
    """Compare every queue, entry by entry, with the log; nothing may be left behind its end."""
    expected: dict[tuple[str, int], dict[int, tuple[int, int]]] = {}
    for header in log:
        queue = (header.topic.decode(), header.queue_id)
        expected.setdefault(queue, {})[header.queue_offset] = (header.physical_offset, header.total_size)
    reader = QueueReader(disk, config.root / consume_queue.FOLDER, config.queue_file_entries)
    assert {queue for queue, extent in found.queues.items() if extent.max > extent.min} == set(expected)
    for queue, extent in found.queues.items():
        entries = {number: reader.entry(*queue, number)[:2] for number in range(extent.min, extent.max)}
        assert entries == expected.get(queue, {}), queue
        path = consume_queue.queue_folder(reader.root, *queue)
        last_file = extent.max // config.queue_file_entries * config.queue_file_entries
        if disk.exists(path / commit_log.file_name(last_file * queues.ENTRY_BYTES)):
            behind = reader.view(*queue, extent.max, config.queue_file_entries)
            assert not bytes(behind).strip(b"\0"), f"entries are left behind the end of {queue}"


def check_index(disk: Any, config: StoreConfig, log: list[records.Header], topic: str = "t") -> None:
    """Ask for every key: exactly its message."""
    reader = IndexReader(disk, config.root / index.FOLDER, config.index_slots, config.index_entries)
    for header in log:
        key = header.properties.decode().split("\1")[1].rstrip("\2")
        found = reader.query(header.topic.decode(), key, 0, FOREVER_MS, 64)
        assert header.physical_offset in found, key
        assert len(found) == len(set(found))
