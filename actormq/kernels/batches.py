# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, annotation_typing=False
"""Append requests in a ring → records for the commit log and completions: the writer's hot loop.

The formats: requests and completions in `actormq.shm.append_port`, rings in `rings`, records in
`records`.  Plain Python that runs as it stands; `batches.pxd` gives the C types.

Nothing is published here.  Records go into a private buffer, completions behind the tail of their
ring, where the client cannot see them: the writer publishes both by moving cells, so that it may die
before and nothing has happened, or later and its successor only has to move the same cells.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, Final

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if not cython.compiled:
    from actormq.kernels.records import (
        RECORD_CRC_BYTES,
        advance,
        append_record_crc,
        bytes_pointer,
        bytes_view,
        copy_bytes,
        encode_parts,
        load_i16,
        load_i32,
        pointer,
        pointer_const,
        record_crc_key,
        record_size,
        store_i16,
        store_i32,
        without_record_crc,
    )
    from actormq.kernels.rings import CAPACITY, DATA, HEAD, LAP_END, TAIL

    BLANK_BYTES: Final = 8
    REQUEST_BYTES: Final = 72
    COMPLETION_BYTES: Final = 48
    ITEM_BYTES_MIN: Final = 22
    SINGLE: Final = 1
    BATCH: Final = 2
    COPY: Final = 3
    PUT_OK: Final = 0
    MESSAGE_ILLEGAL: Final = 1
    PROPERTIES_SIZE_EXCEEDED: Final = 2
    TOPIC_GONE: Final = 5
    PROPERTIES_MAX: Final = 32_767
    TRANSACTION_PREPARED: Final = 0x4
    TRANSACTION_COMMIT: Final = 0x8
    ROW_CELLS: Final = 8
    ROW_MAX_CELL: Final = 2
    ROW_LOG_START_CELL: Final = 5
    GO_ON: Final = 0
    BUFFER_FULL: Final = 2
    FILE_FULL: Final = 3
    COMPLETIONS_FULL: Final = 4
    ITEMS_WITH_CRC: Final = -99

    def ring_cell(view: memoryview, index: int) -> int:
        """Return cell `index` of a ring's header, with acquire."""
        return view.cast("Q")[index]

    def row_max(rows: memoryview, row: int) -> int:
        """Return one past the last readable entry of a queue, with acquire."""
        return rows[row * ROW_CELLS + ROW_MAX_CELL]

    def load_u16(data: memoryview, at: int) -> int:
        return int.from_bytes(data[at : at + 2], "little")

    def load_u32(data: memoryview, at: int) -> int:
        return int.from_bytes(data[at : at + 4], "little")

    def load_u64(data: memoryview, at: int) -> int:
        return int.from_bytes(data[at : at + 8], "little")

    def store_u32(out: memoryview, at: int, value: int) -> None:
        out[at : at + 4] = value.to_bytes(4, "little")

    def store_u64(out: memoryview, at: int, value: int) -> None:
        out[at : at + 8] = value.to_bytes(8, "little")


_REQUEST: Final = struct.Struct("<QIIiHHiiiIqqqHHBBH")
_COMPLETION: Final = struct.Struct("<QiIqqqq")
_ITEM: Final = struct.Struct(">iiiii")
ReadLog = Callable[[int, int], "memoryview | None"]
Scanned = Mapping[tuple[bytes, int], tuple[int, int]]
"""(topic, queue id) → (next queue offset, log offset of the queue's last record)."""


class Stop(IntEnum):
    """Why `BatchEncoder.take` stopped."""

    DRAINED = 1
    """The ring is empty, or this port has had its share of the batch."""
    BUFFER_FULL = 2
    """The next request does not fit into the rest of the batch: it is the first of the next one."""
    FILE_FULL = 3
    """The next request needs the next log file."""
    COMPLETIONS_FULL = 4
    """The client has not taken its completions: its requests wait."""


class BatchEncoder:
    """The writer's buffer and its next queue offsets; filled by `take`, port after port, then written.

    A batch lies in one log file.  A request is stored wholly, with consecutive queue offsets, or not
    at all; each request gets one completion.
    """

    def __init__(
        self,
        rows: memoryview,
        *,
        store_host: bytes,
        body_bytes_max: int,
        file_bytes: int,
        batch_bytes: int,
        read_log: ReadLog,
        record_crc: bool = False,
    ) -> None:
        """Start with an empty batch.

        Args:
            rows: the extents table's memory.
            store_host: 4 or 16 address bytes and the port as a big-endian i32.
            body_bytes_max: a larger body, or a batch whose records are larger together, is illegal.
            file_bytes: the size of a log file.
            batch_bytes: a batch ends here; one larger request makes a batch of its own.
            read_log: (log offset, size) → bytes of the log, None where it has none (any more).
            record_crc: each record ends with the property that is a CRC of all before it.
        """
        assert len(store_host) in (8, 20), "a host is 8 bytes (IPv4) or 20 (IPv6)"
        self._rows = rows.cast("Q")
        self._row_count = len(rows) // 64
        self._next = memoryview(bytearray(self._row_count * 16)).cast("Q")
        self._store_host = memoryview(store_host)
        self._store_host_bytes = len(store_host)
        self._body_max = body_bytes_max
        self._record_max = min(body_bytes_max + 65_536, file_bytes - BLANK_BYTES)
        self._batch_bytes = batch_bytes
        self._crc_bytes = RECORD_CRC_BYTES if record_crc else 0
        self._read_log = read_log
        self._bytes = bytearray(batch_bytes)
        self._buffer = memoryview(self._bytes)
        self._scanned: dict[tuple[bytes, int], tuple[int, int]] = {}
        self.begin(0, 0, 0, 0, False)

    def resume(self, scanned: Scanned) -> None:
        """Set what a scan of the log found beyond the extents: where queues go on, by (topic, queue id)."""
        self._scanned = dict(scanned)

    @property
    def resuming(self) -> bool:
        """Whether numbers of such a scan are still held."""
        return len(self._scanned) > 0

    def begin(self, log_start: int, file_end: int, appended: int, store_timestamp: int, refusal: int) -> None:
        """Start a batch at `log_start`, in the file that ends at `file_end`.

        Args:
            appended: the end of what `read_log` may be asked for.
            refusal: the put status to answer where otherwise FILE_FULL would be returned; 0: return that.
        """
        self._log_start = log_start
        self._file_end = file_end
        self._appended = appended
        self._store_timestamp = store_timestamp
        self._refusal = refusal
        self._size = 0
        self._count = 0

    @property
    def size(self) -> int:
        """Bytes of records in the batch."""
        return self._size

    @property
    def count(self) -> int:
        """Records in the batch."""
        return self._count

    @property
    def records(self) -> memoryview:
        """The batch's bytes; valid until the next `begin`."""
        return memoryview(self._bytes)[: self._size]

    def next_queue_offset(self, row: int) -> tuple[int, int]:
        """Return (incarnation, next queue offset) of a row; incarnation 0: not used yet."""
        return self._next[2 * row], self._next[2 * row + 1]

    def take(
        self,
        requests: memoryview,
        head: int,
        completions: memoryview,
        tail: int,
        share_bytes: int,
        discard: bool = False,
    ) -> tuple[int, int, int, int]:
        """Encode the requests from stream position `head` of a port's ring.

        Args:
            requests, completions: the port's two rings; `tail` is where the next completion goes.
            share_bytes: stop once this port has added so many bytes to the batch.
            discard: the client is dead: completions may overwrite what it has not taken.

        Returns:
            New head, new tail, how many requests were answered, and a `Stop`.
        """
        ring = pointer_const(requests)
        answers = pointer(completions)
        capacity = ring_cell(requests, CAPACITY)
        end = ring_cell(requests, TAIL)
        answers_capacity = ring_cell(completions, CAPACITY)
        answers_head = tail if discard else ring_cell(completions, HEAD)
        assert end - head <= capacity, "a request ring's tail is not within one capacity of its reader"
        entry = 0
        answered = 0
        stop = 1
        size_before = self._size
        while head != end and self._size - size_before < share_bytes:
            at = DATA + head % capacity
            size = load_u64(ring, at)
            if size == LAP_END:
                head += capacity - head % capacity
                continue
            needed = 8 + ((size + 7) & ~7)
            assert needed <= end - head, "a request beyond its ring's tail"
            assert needed <= capacity - head % capacity, "a request beyond its lap"
            # Where the completion goes: into the open entry, or a new one, perhaps on the next lap.
            place = tail % answers_capacity
            rest = answers_capacity - place
            if entry > 0 and place > 0 and rest >= 48:
                room = 48
            elif rest >= 56:
                room = 56
            else:
                room = rest + 56
            if tail - answers_head + room > answers_capacity:
                stop = COMPLETIONS_FULL
                break
            outcome = self._encode(ring, at + 8, size)
            if outcome != GO_ON:
                stop = outcome
                break
            head += needed
            answered += 1
            if room == 48:
                store_u64(answers, entry, load_u64(answers, entry) + 48)
            else:
                if room > 56:
                    store_u64(answers, DATA + place, LAP_END)
                    tail += rest
                    place = 0
                entry = DATA + place
                store_u64(answers, entry, 48)
                tail += 8
                place += 8
            self._complete(answers, DATA + place)
            tail += 48
        return head, tail, answered, stop

    def _complete(self, answers: memoryview, at: int) -> None:
        """Write the completion of the request that `_encode` has just dealt with."""
        if cython.compiled:
            store_u64(answers, at, self._ticket)
            store_u32(answers, at + 8, self._status)
            store_u32(answers, at + 12, self._stored)
            store_u64(answers, at + 16, self._log_offset)
            store_u64(answers, at + 24, self._log_end)
            store_u64(answers, at + 32, self._queue_offset)
            store_u64(answers, at + 40, self._store_timestamp)
        else:
            _COMPLETION.pack_into(
                answers,
                at,
                self._ticket,
                self._status,
                self._stored,
                self._log_offset,
                self._log_end,
                self._queue_offset,
                self._store_timestamp,
            )

    def _encode(self, ring: memoryview, at: int, size: int) -> int:
        """Add the records of the request at `ring[at:at + size]`; say why not yet, or 0.

        Sets what `_complete` writes.  A request that is refused adds nothing and is complete.
        """
        self._stored = 0
        self._log_offset = -1
        self._log_end = -1
        self._queue_offset = -1
        assert size >= REQUEST_BYTES, "a request shorter than its header"
        if cython.compiled:
            self._ticket = load_u64(ring, at)
            row = load_u32(ring, at + 8)
            incarnation = load_u32(ring, at + 12)
            self._queue_id = load_u32(ring, at + 16)
            kind = load_u16(ring, at + 20)
            self._flag = load_u32(ring, at + 24)
            self._sys_flag = load_u32(ring, at + 28)
            self._reconsume_times = load_u32(ring, at + 32)
            body_size = load_u32(ring, at + 36)
            self._born_timestamp = load_u64(ring, at + 40)
            self._prepared_offset = load_u64(ring, at + 48)
            body_ref = load_u64(ring, at + 56)
            topic_size = load_u16(ring, at + 64)
            properties_size = load_u16(ring, at + 66)
            host_size = ring[at + 68]
        else:
            (
                self._ticket,
                row,
                incarnation,
                self._queue_id,
                kind,
                _,
                self._flag,
                self._sys_flag,
                self._reconsume_times,
                body_size,
                self._born_timestamp,
                self._prepared_offset,
                body_ref,
                topic_size,
                properties_size,
                host_size,
                _,
                _,
            ) = _REQUEST.unpack_from(ring, at)
        self._host_size = host_size
        self._topic_size = topic_size
        self._properties_size = properties_size
        host_at = at + REQUEST_BYTES
        topic_at = host_at + host_size
        properties_at = topic_at + topic_size
        body_at = properties_at + properties_size
        carried = 0 if kind == COPY else body_size
        if (
            body_at + carried != at + size
            or topic_size == 0
            or topic_size > 255
            or (host_size != 8 and host_size != 20)
            or body_size > self._body_max
            or kind < SINGLE
            or kind > COPY
        ):
            self._status = MESSAGE_ILLEGAL
            return GO_ON
        if properties_size > PROPERTIES_MAX:
            self._status = PROPERTIES_SIZE_EXCEEDED
            return GO_ON
        if row >= self._row_count or incarnation == 0 or self._rows[row * ROW_CELLS] != incarnation:
            self._status = TOPIC_GONE
            return GO_ON
        host = advance(ring, host_at)
        topic = advance(ring, topic_at)
        properties = advance(ring, properties_at)
        items = advance(ring, body_at)
        if record_crc_key(properties, 0, properties_size) >= 0:
            # It was right in another log; here it would call a good record damaged.
            self._cleaned = without_record_crc(bytes_view(properties, properties_size))
            properties = bytes_pointer(self._cleaned)
            properties_size = len(self._cleaned)
            self._properties_size = properties_size
        if kind == BATCH:
            total = self._batch_total(items, body_size, properties)
            if total == ITEMS_WITH_CRC:
                self._cleaned_items = _items_without_crc(bytes(bytes_view(items, body_size)))
                items = bytes_pointer(self._cleaned_items)
                body_size = len(self._cleaned_items)
                total = self._batch_total(items, body_size, properties)
        else:
            total = self._single_total(properties, properties_size, body_size)
        if total <= 0:
            self._status = -total
            return GO_ON
        outcome = self._make_room(total)
        if outcome != GO_ON:
            return GO_ON if self._status != PUT_OK else outcome
        if self._next[2 * row] != incarnation:
            self._open_row(row, incarnation, bytes(ring[topic_at:properties_at]))
        self._queue_offset = self._next[2 * row + 1]
        start = self._size
        if kind == BATCH:
            self._put_batch(items, body_size, host, topic, properties)
        else:
            transaction = self._sys_flag & 0xC
            if transaction != 0 and transaction != TRANSACTION_COMMIT:
                # Prepared and rolled back messages have no place in a queue.
                self._queue_offset = 0
            source = self._copy_source(body_ref, body_size) if kind == COPY else b" "
            if source is None:
                self._queue_offset = -1
                self._status = MESSAGE_ILLEGAL
                return GO_ON
            body = pointer_const(memoryview(source)) if kind == COPY else items
            self._put(
                self._queue_offset,
                self._flag,
                self._prepared_offset,
                host,
                topic,
                properties,
                properties_size,
                body,
                body_size,
            )
            self._seal(start, properties_size)
            self._stored = 1
            if transaction == 0 or transaction == TRANSACTION_COMMIT:
                self._next[2 * row + 1] = self._queue_offset + 1
        if kind == BATCH:
            self._next[2 * row + 1] = self._queue_offset + self._stored
        assert self._size == start + total, "records have another size than was made room for"
        self._status = PUT_OK
        self._log_offset = self._log_start + start
        self._log_end = self._log_start + self._size
        self._count += self._stored
        return GO_ON

    def _copy_source(self, body_ref: int, body_size: int) -> Any:
        """Return the bytes of the log that a request wants as its body, None when they are not there."""
        if body_ref < 0 or body_ref + body_size > self._appended:
            return None
        # A pointer needs a byte to point at.
        return self._read_log(body_ref, body_size) if body_size > 0 else b" "

    def _make_room(self, total: int) -> int:
        """Say whether `total` bytes go into this batch now; sets the status to refuse them."""
        self._status = PUT_OK
        if self._size > 0 and self._size + total > self._batch_bytes:
            return BUFFER_FULL
        if self._log_start + self._size + total + BLANK_BYTES > self._file_end:
            self._status = self._refusal
            return FILE_FULL
        if total > len(self._bytes):
            assert self._size == 0, "the buffer only grows when it is empty"
            self._bytes = bytearray(total)
            self._buffer = memoryview(self._bytes)
        return GO_ON

    def _open_row(self, row: int, incarnation: int, topic: bytes) -> None:
        """Find where a queue goes on: behind what was dispatched, or behind what a scan found."""
        found, last_record = self._scanned.pop((topic, self._queue_id), (0, 0))
        if last_record < self._rows[row * ROW_CELLS + ROW_LOG_START_CELL]:
            found = 0  # a deleted topic of the same name had that record
        self._next[2 * row + 1] = max(found, row_max(self._rows, row))
        self._next[2 * row] = incarnation

    def _put(
        self,
        queue_offset: int,
        flag: int,
        prepared_offset: int,
        host: memoryview,
        topic: memoryview,
        properties: memoryview,
        properties_size: int,
        body: memoryview,
        body_size: int,
    ) -> None:
        self._size = encode_parts(
            pointer(self._buffer),
            self._size,
            self._queue_id,
            flag,
            queue_offset,
            self._log_start + self._size,
            self._sys_flag,
            self._born_timestamp,
            self._store_timestamp,
            self._reconsume_times,
            prepared_offset,
            host,
            self._host_size,
            pointer_const(self._store_host),
            self._store_host_bytes,
            topic,
            self._topic_size,
            properties,
            properties_size,
            body,
            body_size,
        )

    def _single_total(self, properties: memoryview, properties_size: int, body_size: int) -> int:
        """Return the size of a single message's record, or minus the status that refuses it."""
        if self._crc_bytes > 0:
            properties_size += _open_end(properties, 0, properties_size) + self._crc_bytes
        if properties_size > PROPERTIES_MAX:
            return -PROPERTIES_SIZE_EXCEEDED
        total = record_size(
            self._host_size, self._store_host_bytes, self._topic_size, properties_size, body_size
        )
        return total if total <= self._record_max else -MESSAGE_ILLEGAL

    def _batch_total(self, items: memoryview, end: int, extra: memoryview) -> int:
        """Return the size of all records of a batch body, or minus the status that refuses it.

        Args:
            end: the body's size.
            extra: the request's own properties, which are added to those of each item.

        Returns:
            `ITEMS_WITH_CRC` when some item brings a record's CRC that is not ours.
        """
        at = 0
        total = 0
        while at < end:
            if end - at < ITEM_BYTES_MIN:
                return -MESSAGE_ILLEGAL
            item_size = load_i32(items, at)
            body_size = load_i32(items, at + 16)
            if item_size < ITEM_BYTES_MIN or item_size > end - at:
                return -MESSAGE_ILLEGAL
            if body_size < 0 or body_size > item_size - ITEM_BYTES_MIN:
                return -MESSAGE_ILLEGAL
            properties_size = load_i16(items, at + 20 + body_size)
            if properties_size < 0 or ITEM_BYTES_MIN + body_size + properties_size != item_size:
                return -MESSAGE_ILLEGAL
            if record_crc_key(items, at + 22 + body_size, properties_size) >= 0:
                return ITEMS_WITH_CRC
            open_end = _open_end(items, at + 22 + body_size, properties_size)
            if self._properties_size > 0:
                properties_size += open_end + self._properties_size
                open_end = _open_end(extra, 0, self._properties_size)
            if self._crc_bytes > 0:
                properties_size += open_end + self._crc_bytes
            at += item_size
            if properties_size > PROPERTIES_MAX:
                return -PROPERTIES_SIZE_EXCEEDED
            total += record_size(
                self._host_size, self._store_host_bytes, self._topic_size, properties_size, body_size
            )
            if total > self._body_max:
                return -MESSAGE_ILLEGAL
        return total if total > 0 else -MESSAGE_ILLEGAL

    def _put_batch(
        self, items: memoryview, end: int, host: memoryview, topic: memoryview, extra: memoryview
    ) -> None:
        """Add one record per item: own flag, body and properties, consecutive queue offsets."""
        at = 0
        while at < end:
            body_size = load_i32(items, at + 16)
            properties_size = load_i16(items, at + 20 + body_size)
            start = self._size
            self._put(
                self._queue_offset + self._stored,
                load_i32(items, at + 12),
                0,
                host,
                topic,
                advance(items, at + 22 + body_size),
                properties_size,
                advance(items, at + 20),
                body_size,
            )
            self._stored += 1
            at += load_i32(items, at)
            if self._properties_size > 0:
                properties_size = self._grow(start, properties_size, self._properties_size)
                copy_bytes(
                    pointer(self._buffer), self._size - self._properties_size, extra, self._properties_size
                )
            self._seal(start, properties_size)

    def _seal(self, start: int, properties_size: int) -> None:
        """End the last record, which begins at `start`, with the CRC of all of it, when that is wanted."""
        if self._crc_bytes > 0:
            self._grow(start, properties_size, self._crc_bytes)
            append_record_crc(pointer(self._buffer), start, self._size - self._crc_bytes)

    def _grow(self, start: int, properties_size: int, added: int) -> int:
        """Make room for more properties at the end of the last record; return how long they are then."""
        out = pointer(self._buffer)
        separator = _open_end(out, self._size - properties_size, properties_size)
        if separator == 1:
            out[self._size] = 2
        longer = properties_size + separator + added
        store_i16(out, self._size - properties_size - 2, longer)
        self._size += separator + added
        store_i32(out, start, self._size - start)
        return longer


def _open_end(properties: memoryview, at: int, size: int) -> int:
    """Return 1 when properties lack their last 0x02, which they need before more are added."""
    return 1 if size > 0 and properties[at + size - 1] != 2 else 0


def _items_without_crc(items: bytes) -> bytes:
    """Return a batch body, known to be sound, whose items bring no record's CRC."""
    kept = bytearray()
    at = 0
    while at < len(items):
        item_size, magic, crc, flag, body_size = _ITEM.unpack_from(items, at)
        body_end = at + _ITEM.size + body_size
        properties = without_record_crc(items[body_end + 2 : at + item_size])
        kept += _ITEM.pack(ITEM_BYTES_MIN + body_size + len(properties), magic, crc, flag, body_size)
        kept += items[at + _ITEM.size : body_end] + len(properties).to_bytes(2, "big") + properties
        at += item_size
    return bytes(kept)
