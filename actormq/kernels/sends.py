# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False
"""The gateway's common send: from a read buffer into the append ring, and from completions to reply frames.

Plain Python that runs as it stands; compiled, `sends.pxd` gives the C types.  What is common is narrow:
a header as the official clients write it, ASCII texts, a known topic, nothing that a rule of the broker
changes but WAIT.  Everything else (and everything wrong) is left to the caller, who serves it by the rules
in `actormq.broker.admission`; a frame is taken here only if both ways end in the same bytes.

A request that was taken has a slot in a table until it is answered.  A slot, little-endian: u64 ticket,
u32 opaque, queue id, header type, one-way, waits for the sync, used, key length, count; u64 log offset, log
end, queue offset, deadline, wants no ids; then the unique key.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if not cython.compiled:
    from actormq.kernels.batches import load_u32, load_u64, store_u32, store_u64
    from actormq.kernels.heads import HEADER_MAX, SLOW, TAKEN, Headers, hex_value, same
    from actormq.kernels.records import (
        advance,
        bytes_pointer,
        copy_bytes,
        load_i32,
        pointer,
        pointer_const,
        store_i16,
        store_i32,
        text_at,
    )

    HEAD: Final = 0
    TAIL: Final = 8
    CAPACITY: Final = 16
    DATA: Final = 192
    LAP_END: Final = 0xFFFFFFFF
    REQUEST_BYTES: Final = 72
    COMPLETION_BYTES: Final = 48
    SLOT_BYTES: Final = 144
    KEY_AT: Final = 80
    KEY_BYTES_MAX: Final = 64
    FIELDS: Final = 14
    PROPERTIES_MAX: Final = 32
    STORED_MAX: Final = 32_767
    TOPIC_MAX: Final = 127
    TICKET_MASK: Final = (1 << 40) - 1
    REFUSED_BITS: Final = 0x8C
    CLIENT_BITS: Final = ~0x7C
    PLAIN: Final = 0
    WAIT: Final = 1
    UNIQUE: Final = 2
    RULED: Final = 3

    def cell(cells: memoryview, index: int) -> int:
        """Return a cell of a ring; compiled, an acquire load."""
        return int(cells[index])

    def set_cell(cells: memoryview, index: int, value: int) -> None:
        """Set a cell of a ring; compiled, a release store."""
        cells[index] = value

    def append(out: bytearray, data: memoryview, size: int) -> None:
        """Add the first `size` bytes of `data` to `out`."""
        out += data[:size]


_LONG_NAMES: Final = (
    b"producerGroup",
    b"topic",
    b"defaultTopic",
    b"defaultTopicQueueNums",
    b"queueId",
    b"sysFlag",
    b"bornTimestamp",
    b"flag",
    b"properties",
    b"reconsumeTimes",
    b"unitMode",
    b"maxReconsumeTimes",
    b"batch",
)


class SendTopic:
    """A topic to which sends are taken here: what of its table entry decides about a common send.

    Args:
        rows: each queue's row in the extents table and that row's incarnation.
        sys_flag_bits: added to every stored message's flag.
    """

    def __init__(self, rows: Sequence[tuple[int, int]], sys_flag_bits: int) -> None:
        self.queues = len(rows)
        self.rows = b"".join([struct.pack("<II", row, incarnation) for row, incarnation in rows])
        self.bits = sys_flag_bits


class SendPath(Headers):
    """What one gateway has on its way to the writer and back.

    Args:
        ring: the append port's request ring; others may push into it between two calls.
        ticket_base: the upper 24 bits of every ticket.
        slots: how many requests may be unanswered; more are left to the caller.
        store_host: as records and message ids name this broker.
        added: the properties that every stored message gets.
        sync: whether answers wait for the sync unless WAIT says "false".
        json_pieces: what lies around code, ids, queue id, queue offset, unique key and opaque in an answer.
        json_bare: what lies between code and queue id in an answer without ids.
        binary_fields: key (and value, where it is always the same) before the ids, queue id, queue offset and
            unique key in a binary answer.
        binary_bare: what lies before the queue id in one without ids.
        version: ours, in binary answers.
        read_log: gives the records of a batch, to find where each begins.

    Attributes:
        sequence: of the next ticket, here and for what the caller appends.
        taken, taken_bytes: requests and body bytes of the last `take`.
        messages: completed since somebody last set it to 0.
        unanswered: slots in use.
    """

    def __init__(
        self,
        ring: memoryview,
        *,
        ticket_base: int,
        slots: int,
        store_host: bytes,
        added: bytes,
        sync: bool,
        body_bytes_max: int,
        json_pieces: Sequence[bytes],
        json_bare: bytes,
        binary_fields: Sequence[bytes],
        binary_bare: bytes,
        version: int,
        read_log: Callable[[int, int], memoryview],
    ) -> None:
        super().__init__(FIELDS)
        self._ring = ring
        self._cells = ring.cast("Q")
        self._capacity = cell(self._cells, CAPACITY)
        self._base = ticket_base
        self._slots = slots
        self._table = memoryview(bytearray(slots * SLOT_BYTES))
        self._owners: list[object] = [None] * slots
        self._syncing = memoryview(bytearray(slots * 8)).cast("q")
        self._syncing_first = 0
        self._syncing_count = 0
        self._id_prefix = store_host.hex().upper().encode()
        self._added = added
        self._sync = sync
        self._body_max = body_bytes_max
        self._json = list(json_pieces)
        self._json_bare = json_bare
        self._binary = list(binary_fields)
        self._binary_bare = binary_bare
        assert len(self._json) == 7
        assert len(self._binary) == 4
        self._version = version
        self._read_log = read_log
        self._keys = memoryview(bytearray(PROPERTIES_MAX * 2 * 8)).cast("q")
        self._plain = memoryview(bytearray(HEADER_MAX))
        self._kept = memoryview(bytearray(HEADER_MAX + len(added)))
        self._wait_flush = False
        self._batch = False
        self._no_ids = False
        self._key_size = 0
        self._tail = self._head = self._room = self._slot = 0
        self.sequence = 0
        self.taken = 0
        self.taken_bytes = 0
        self.messages = 0
        self.unanswered = 0

    # -- in

    def take(
        self,
        view: memoryview,
        end: int,
        frame_bytes_max: int,
        owner: object,
        born_host: bytes,
        topics: dict[bytes, SendTopic],
        room: int,
    ) -> tuple[list[tuple[int, int]], int, int]:
        """Put the common sends among the whole frames of ``view[:end]`` into the ring.

        From the first send on that is not taken, none is: sends of one connection keep their order.

        Args:
            owner: whose they are; the key of its answers in `complete`.
            topics: what this owner may send to.
            room: requests that may be added.

        Returns:
            What `actormq.kernels.frames.cut_frames` does, without the frames that were taken.
        """
        places: list[tuple[int, int]] = []
        self._begin(room)
        at = 0
        bad = -1
        outcome = TAKEN
        if end >= 4:
            data = pointer_const(view)
            while at + 4 <= end:
                length = load_i32(data, at) & 0xFFFFFFFF
                if length < 4 or length > frame_bytes_max - 4:
                    bad = length
                    break
                if at + 4 + length > end:
                    break
                if outcome != SLOW:
                    outcome = self._frame(data, at + 4, length, owner, born_host, topics)
                if outcome != TAKEN:
                    places.append((at + 4, at + 4 + length))
                at += 4 + length
        self._publish()
        return places, at, bad

    def take_parts(
        self,
        head: memoryview,
        body: memoryview,
        owner: object,
        born_host: bytes,
        topics: dict[bytes, SendTopic],
        room: int,
    ) -> bool:
        """Put one send, whose header (with type and length) and body came apart, into the ring."""
        self._begin(room)
        if len(head) < 4 or len(body) == 0:
            return False
        data = pointer_const(head)
        size = load_i32(data, 0) & 0xFFFFFF
        if size != len(head) - 4 or size > HEADER_MAX:
            return False
        if self._parse(data, 0, size) != TAKEN:
            return False
        if self._admit(data, pointer_const(body), len(body), owner, born_host, topics) != TAKEN:
            return False
        self._publish()
        return True

    def _begin(self, room: int) -> None:
        self._room = room
        self._tail = cell(self._cells, TAIL)
        self._head = cell(self._cells, HEAD)
        self.taken = 0
        self.taken_bytes = 0

    def _publish(self) -> None:
        if self.taken:
            # The tail moves last: a writer that saw it early would read another lap's bytes.
            set_cell(self._cells, TAIL, self._tail)

    def _frame(
        self,
        data: memoryview,
        at: int,
        size: int,
        owner: object,
        born_host: bytes,
        topics: dict[bytes, SendTopic],
    ) -> int:
        header = load_i32(data, at) & 0xFFFFFF
        if header + 4 > size or header > HEADER_MAX:
            return SLOW
        outcome = self._parse(data, at, header)
        if outcome != TAKEN:
            return outcome
        return self._admit(data, advance(data, at + 4 + header), size - 4 - header, owner, born_host, topics)

    # -- headers

    def _wants(self, code: int) -> bool:
        return code == 310 or code == 320 or code == 10

    def _field_number(self, data: memoryview, at: int, size: int) -> int:
        number = -1
        if self._code == 10:
            number = long_name(data, at, size)
        elif size == 1 and 97 <= data[at] <= 109:  # a to m
            number = data[at] - 97
        if number < 0 and size == 5 and same(data, at, 5, b"noIds"):
            number = 13
        return number

    # -- one send

    def _admit(
        self,
        data: memoryview,
        body: memoryview,
        body_size: int,
        owner: object,
        born_host: bytes,
        topics: dict[bytes, SendTopic],
    ) -> int:
        """Put a send whose fields are found into the ring; SLOW when it is uncommon or has no room."""
        if self._room <= 0 or self._flag & 1 or body_size < 1 or body_size > self._body_max:
            return SLOW
        topic_at = self._fields[3]
        topic_size = self._fields[4]
        if topic_size < 1 or topic_size > TOPIC_MAX or self._fields[5]:
            return SLOW
        if self._fields[1] < 0 or self._fields[7] < 0:  # producer group, default topic
            return SLOW
        topic = topics.get(text_at(data, topic_at, topic_size))
        if topic is None:
            return SLOW
        queue_id = self._digits(data, 4, 10, 0x7FFF_FFFF)
        sys_flag = self._digits(data, 5, 10, 0x7FFF_FFFF)
        born = self._digits(data, 6, 18, 0x7FFF_FFFF_FFFF_FFFF)
        flag = self._digits(data, 7, 10, 0x7FFF_FFFF)
        times = 0
        if self._fields[28] >= 0:
            times = self._digits(data, 9, 10, 0x7FFF_FFFF)
        if self._fields[34] >= 0 and self._digits(data, 11, 10, 0x7FFF_FFFF) < 0:
            return SLOW
        if queue_id < 0 or sys_flag < 0 or born < 0 or flag < 0 or times < 0:
            return SLOW
        if self._digits(data, 3, 10, 0x7FFF_FFFF) < 0 or self._truth(data, 10) < 0:
            return SLOW
        said = self._truth(data, 12)
        if said < 0 or queue_id >= topic.queues or sys_flag & REFUSED_BITS:
            return SLOW
        self._batch = said == 1 or self._code == 320
        said = self._truth(data, 13)
        if said < 0:
            return SLOW
        self._no_ids = said == 1
        slot = (self.sequence % self._slots) * SLOT_BYTES
        table = pointer(self._table)
        if load_u32(table, slot + 28):
            return SLOW
        self._slot = slot
        properties_size = self._properties(data)
        if properties_size < 0 or properties_size > STORED_MAX:
            return SLOW
        host_size = len(born_host)
        size = REQUEST_BYTES + host_size + topic_size + properties_size + body_size
        if not self._place(size):
            return SLOW
        ring = pointer(self._ring)
        at = self._at
        ticket = self._base | self.sequence
        store_u64(ring, at, size)
        at += 8
        store_u64(ring, at, ticket)
        rows = bytes_pointer(topic.rows)
        store_u32(ring, at + 8, load_u32(rows, queue_id * 8))
        store_u32(ring, at + 12, load_u32(rows, queue_id * 8 + 4))
        store_u32(ring, at + 16, queue_id)
        store_u32(ring, at + 20, (2 if self._batch else 1) | 0x10000)
        store_u32(ring, at + 24, flag)
        stored_flag = (sys_flag & CLIENT_BITS) | topic.bits
        if host_size > 8:
            stored_flag = stored_flag | 0x10
        store_u32(ring, at + 28, stored_flag)
        store_u32(ring, at + 32, times)
        store_u32(ring, at + 36, body_size)
        store_u64(ring, at + 40, born)
        store_u64(ring, at + 48, 0)
        store_u64(ring, at + 56, 0)
        store_u32(ring, at + 64, topic_size | (properties_size << 16))
        store_u32(ring, at + 68, host_size)
        at += REQUEST_BYTES
        copy_bytes(ring, at, bytes_pointer(born_host), host_size)
        at += host_size
        copy_bytes(ring, at, advance(data, topic_at), topic_size)
        at += topic_size
        copy_bytes(ring, at, pointer_const(self._kept), properties_size)
        copy_bytes(ring, at + properties_size, body, body_size)
        self._keep(table, slot, ticket, queue_id, owner)
        self.taken_bytes += body_size
        return TAKEN

    def _keep(self, table: memoryview, slot: int, ticket: int, queue_id: int, owner: object) -> None:
        """Fill the slot of a request that is in the ring; its unique key is there already."""
        store_u64(table, slot, ticket)
        store_u32(table, slot + 8, self._opaque & 0xFFFFFFFF)
        store_u32(table, slot + 12, queue_id)
        store_u32(table, slot + 16, self._kind)
        store_u32(table, slot + 20, (self._flag >> 1) & 1)
        store_u32(table, slot + 24, 1 if self._sync and self._wait_flush else 0)
        store_u32(table, slot + 28, 2 if self._batch else 1)
        store_u32(table, slot + 32, self._key_size)
        store_u32(table, slot + 72, 1 if self._no_ids else 0)
        self._owners[slot // SLOT_BYTES] = owner
        self.sequence = (self.sequence + 1) & TICKET_MASK
        self._room -= 1
        self.taken += 1
        self.unanswered += 1

    def _place(self, size: int) -> bool:
        """Set `_at` to where an entry of so many bytes may be written; False when the ring has no room."""
        needed = 8 + (size + 7) // 8 * 8
        at = self._tail % self._capacity
        rest = self._capacity - at
        skipped = 0 if needed <= rest else rest
        if self._tail + skipped + needed - self._head > self._capacity:
            return False
        if skipped:
            store_u64(pointer(self._ring), DATA + at, LAP_END)
            self._tail += skipped
            at = 0
        self._at = DATA + at
        self._tail += needed
        return True

    def _properties(self, data: memoryview) -> int:
        """Write what is stored of a send's properties to `_kept`; return its size, -1 when it is uncommon."""
        self._wait_flush = True
        self._key_size = 0
        size = self._fields[25]
        unique = 0
        kept = 0
        if size > 0:
            if self._fields[26]:
                size = self._unescape(data, self._fields[24], size)
                kept = self._filter(pointer_const(self._plain), 0, size)
            else:
                kept = self._filter(data, self._fields[24], self._fields[24] + size)
        unique = self._key_size
        if kept < 0 or (unique == 0 and not self._batch):
            return -1
        copy_bytes(pointer(self._kept), kept, bytes_pointer(self._added), len(self._added))
        return kept + len(self._added)

    def _unescape(self, data: memoryview, at: int, size: int) -> int:
        """Write a JSON string to `_plain`; its escapes have been checked."""
        out = pointer(self._plain)
        end = at + size
        length = 0
        while at < end:
            if data[at] == 92:
                out[length] = (data[at + 4] - 48) * 16 + hex_value(data[at + 5])
                at += 6
            else:
                out[length] = data[at]
                at += 1
            length += 1
        return length

    def _filter(self, data: memoryview, at: int, end: int) -> int:
        """Copy the properties that are stored; return their size, -1 when a rule of the broker has a say."""
        out = pointer(self._kept)
        size = 0
        count = 0
        while at < end:
            stop = at
            middle = -1
            while stop < end and data[stop] != 2:
                if data[stop] >= 128:
                    return -1
                if data[stop] == 1 and middle < 0:
                    middle = stop
                stop += 1
            if middle > at and stop > middle + 1:
                if count == PROPERTIES_MAX or self._is_known(data, at, middle - at, count):
                    return -1
                self._keys[count * 2] = at
                self._keys[count * 2 + 1] = middle - at
                count += 1
                rule = property_rule(data, at, middle - at)
                if rule == RULED:
                    return -1
                if rule == WAIT:
                    if stop - middle == 6 and same(data, middle + 1, 5, b"false"):
                        self._wait_flush = False
                    elif stop - middle != 5 or not same(data, middle + 1, 4, b"true"):
                        return -1
                elif rule == UNIQUE and not self._unique(data, middle + 1, stop - middle - 1):
                    return -1
                if rule == PLAIN or (rule == UNIQUE and not self._batch):
                    copy_bytes(out, size, advance(data, at), stop - at)
                    size += stop - at
                    out[size] = 2
                    size += 1
            at = stop + 1
        return size

    def _is_known(self, data: memoryview, at: int, size: int, count: int) -> bool:
        """Whether a property came before."""
        for number in range(count):
            if self._keys[number * 2 + 1] == size and equal(data, at, self._keys[number * 2], size):
                return True
        return False

    def _unique(self, data: memoryview, at: int, size: int) -> bool:
        """Note the unique key, which the answer repeats; False for one that JSON would have to escape."""
        if size > KEY_BYTES_MAX:
            return False
        for place in range(at, at + size):
            byte = data[place]
            if not (48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122):
                return False
        copy_bytes(pointer(self._table), self._slot + KEY_AT, advance(data, at), size)
        self._key_size = size
        return True

    # -- out

    def complete(self, entry: memoryview, replies: dict[object, bytearray], deadline_ns: int) -> list[int]:
        """Answer what the writer has stored, or let it wait for the sync.

        Args:
            entry: completions, one behind the other.
            replies: frames for each owner; answers are added at the end.
            deadline_ns: until when a sync is waited for.

        Returns:
            Where in `entry` the completions are that belong to the caller: his requests, and what failed.
        """
        others: list[int] = []
        done = pointer_const(entry)
        table = pointer(self._table)
        for at in range(0, len(entry), COMPLETION_BYTES):
            ticket = load_u64(done, at)
            slot = (ticket & TICKET_MASK) % self._slots * SLOT_BYTES
            if load_u32(table, slot + 28) == 0 or load_u64(table, slot) != ticket or load_u32(done, at + 8):
                others.append(at)
                continue
            self.messages += load_u32(done, at + 12)
            store_u32(table, slot + 36, load_u32(done, at + 12))
            store_u64(table, slot + 40, load_u64(done, at + 16))
            store_u64(table, slot + 48, load_u64(done, at + 24))
            store_u64(table, slot + 56, load_u64(done, at + 32))
            if load_u32(table, slot + 24):
                store_u64(table, slot + 64, deadline_ns)
                place = (self._syncing_first + self._syncing_count) % self._slots
                self._syncing[place] = slot
                self._syncing_count += 1
            else:
                self._answer(slot, 0, replies)
        return others

    def failed(self, ticket: int) -> tuple[object, int, int, bool] | None:
        """Free the slot of a request that was not stored: its owner, opaque, header type, one-way."""
        table = pointer(self._table)
        slot = (ticket & TICKET_MASK) % self._slots * SLOT_BYTES
        if load_u32(table, slot + 28) == 0 or load_u64(table, slot) != ticket:
            return None
        owner = self._free(slot)
        return (
            owner,
            as_signed(load_u32(table, slot + 8)),
            load_u32(table, slot + 16),
            load_u32(table, slot + 20) != 0,
        )

    def acknowledge(self, flushed: int, replies: dict[object, bytearray]) -> bool:
        """Answer what is synced up to log offset `flushed`; True when there was something."""
        some = False
        while self._syncing_count and self._waiting(48) <= flushed:
            self._answer(self._pop(), 0, replies)
            some = True
        return some

    def expire(self, now_ns: int, code: int, replies: dict[object, bytearray]) -> None:
        """Answer `code` to what has waited too long for the sync."""
        while self._syncing_count and self._waiting(64) <= now_ns:
            self._answer(self._pop(), code, replies)

    @property
    def wanted_end(self) -> int:
        """The log offset whose sync is waited for first; 0 = none."""
        return self._waiting(48) if self._syncing_count else 0

    @property
    def deadline_ns(self) -> int:
        """When `expire` next has work; 0 = never."""
        return self._waiting(64) if self._syncing_count else 0

    def _waiting(self, at: int) -> int:
        """Return a number from the slot that waits longest for the sync."""
        return load_u64(pointer_const(self._table), self._syncing[self._syncing_first] + at)

    def _pop(self) -> int:
        slot = self._syncing[self._syncing_first]
        self._syncing_first = (self._syncing_first + 1) % self._slots
        self._syncing_count -= 1
        return slot

    def _free(self, slot: int) -> object:
        owner = self._owners[slot // SLOT_BYTES]
        self._owners[slot // SLOT_BYTES] = None
        store_u32(pointer(self._table), slot + 28, 0)
        self.unanswered -= 1
        return owner

    def _answer(self, slot: int, code: int, replies: dict[object, bytearray]) -> None:
        """Add the answer to a request to its owner's, and free its slot."""
        table = pointer(self._table)
        batch = load_u32(table, slot + 28) == 2
        owner = self._free(slot)
        if load_u32(table, slot + 20):
            return
        count = load_u32(table, slot + 36)
        bare = load_u32(table, slot + 72) != 0
        room = 1024 + len(self._json_bare) + len(self._binary_bare)
        if not bare:
            room += 33 * (count if batch else 1)
        for piece in self._json if load_u32(table, slot + 16) == 0 else self._binary:
            room += len(piece)
        if len(self._out) < room:
            self._out = memoryview(bytearray(room))
        self._at = 8
        if load_u32(table, slot + 16) == 0:
            self._answer_json(table, slot, code, batch and count != 1, bare)
        else:
            self._answer_binary(table, slot, code, batch and count != 1, bare)
        out = pointer(self._out)
        store_i32(out, 0, self._at - 4)
        store_i32(out, 4, (self._at - 8) | (load_u32(table, slot + 16) << 24))
        given = replies.get(owner)
        if given is None:
            given = replies[owner] = bytearray()
        append(given, self._out, self._at)

    def _answer_json(self, table: memoryview, slot: int, code: int, batch: bool, bare: bool) -> None:
        pieces = self._json
        self._put(pieces[0])
        self._put_number(code)
        if bare:
            self._put(self._json_bare)
        else:
            self._put(pieces[1])
            self._put_ids(table, slot, batch)
            self._put(pieces[2])
        self._put_number(load_u32(table, slot + 12))
        self._put(pieces[3])
        self._put_number(load_u64(table, slot + 56))
        self._put(pieces[4])
        self._put_key(table, slot)
        self._put(pieces[5])
        self._put_number(as_signed(load_u32(table, slot + 8)))
        self._put(pieces[6])

    def _answer_binary(self, table: memoryview, slot: int, code: int, batch: bool, bare: bool) -> None:
        pieces = self._binary
        out = pointer(self._out)
        store_i16(out, 8, code)
        out[10] = 0  # Java
        store_i16(out, 11, self._version)
        store_i32(out, 13, as_signed(load_u32(table, slot + 8)))
        store_i32(out, 17, 1)
        store_i32(out, 21, 0)
        self._at = 29
        for number in range(1 if bare else 0, 4):
            self._put(self._binary_bare if bare and number == 1 else pieces[number])
            start = self._at
            self._at += 4
            if number == 0:
                self._put_ids(table, slot, batch)
            elif number == 1:
                self._put_number(load_u32(table, slot + 12))
            elif number == 2:
                self._put_number(load_u64(table, slot + 56))
            else:
                self._put_key(table, slot)
            store_i32(out, start, self._at - start - 4)
        store_i32(out, 25, self._at - 29)

    def _put_key(self, table: memoryview, slot: int) -> None:
        size = load_u32(table, slot + 32)
        copy_bytes(pointer(self._out), self._at, advance(table, slot + KEY_AT), size)
        self._at += size

    def _put_ids(self, table: memoryview, slot: int, batch: bool) -> None:
        """Write the offset message id; of a batch all, joined by commas."""
        log_offset = load_u64(table, slot + 40)
        if not batch:
            self._put_id(log_offset)
            return
        size = load_u64(table, slot + 48) - log_offset
        view = self._read_log(log_offset, size)
        records = pointer_const(view)
        out = pointer(self._out)
        count = load_u32(table, slot + 36)
        at = 0
        while at + 4 <= size and count > 0:
            if at:
                out[self._at] = 44
                self._at += 1
            self._put_id(log_offset + at)
            length = load_i32(records, at)
            assert length > 0, "no record inside what the writer completed"
            at += length
            count -= 1
        assert at == size, "the records of a batch do not fill their part of the log"
        assert count == 0, "the records of a batch do not fill their part of the log"

    def _put_id(self, log_offset: int) -> None:
        self._put(self._id_prefix)
        out = pointer(self._out)
        for place in range(16):
            digit = (log_offset >> ((15 - place) * 4)) & 15
            out[self._at + place] = digit + 48 if digit < 10 else digit + 55
        self._at += 16


# --- bytes -------------------------------------------------------------------------------------------


def as_signed(value: int) -> int:
    """Return 32 bits as the signed number that they are."""
    return value - 0x1_0000_0000 if value > 0x7FFF_FFFF else value


def equal(data: memoryview, at: int, other: int, size: int) -> bool:
    """Whether two places hold the same bytes."""
    for place in range(size):  # noqa: SIM110
        if data[at + place] != data[other + place]:
            return False
    return True


def long_name(data: memoryview, at: int, size: int) -> int:
    """Return the number of one of the long field names, -1 for another name."""
    for number in range(13):
        name = _LONG_NAMES[number]
        if len(name) == size and same(data, at, size, name):
            return number
    return -1


def property_rule(data: memoryview, at: int, size: int) -> int:
    """Return what the broker does about a property: nothing, or what only the common way knows, or more."""
    first = data[at]
    if first == 87:  # W
        return WAIT if size == 4 and same(data, at, 4, b"WAIT") else PLAIN
    if first == 85:  # U
        return UNIQUE if size == 8 and same(data, at, 8, b"UNIQ_KEY") else PLAIN
    ruled = (
        (size == 5 and same(data, at, 5, b"DELAY"))
        or (size == 6 and same(data, at, 6, b"POP_CK"))
        or (size == 8 and same(data, at, 8, b"TRAN_MSG"))
        or (size == 8 and same(data, at, 8, b"TRACE_ON"))
        or (size == 7 and same(data, at, 7, b"CLUSTER"))
        or (size == 10 and same(data, at, 10, b"MSG_REGION"))
        or (size >= 6 and same(data, at, 6, b"TIMER_"))
        or (size >= 16 and same(data, at, 16, b"__RMQ.TRANSIENT."))
    )
    return RULED if ruled else PLAIN
