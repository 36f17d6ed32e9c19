# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False
"""The gateway's common pull: from a read buffer to its answer, or to a place where it waits and back.

Plain Python that runs as it stands; compiled, `pulls.pxd` gives the C types.  What is common is narrow: a
header as the official clients write it, a group and a topic whose pulls have passed every check of
`actormq.broker.pulling` since the tables last changed, an offset inside the queue or at its end, messages
near the log's end.  Everything else (and everything wrong) is left to the caller, also for pulls that wait
here already; a frame is taken only if both ways end in the same bytes.

All waiting pulls have a place here, the caller's, too.  The number of a wait names its place and which wait
in that place it is: a late wake-up of an earlier one ends nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if not cython.compiled:
    from actormq.kernels.heads import HEADER_MAX, SLOW, TAKEN, Headers, same
    from actormq.kernels.queues import choose, numbers
    from actormq.kernels.records import (
        advance,
        bytes_pointer,
        is_message,
        load_i32,
        load_i64,
        pointer,
        pointer_const,
        store_i16,
        store_i32,
        text_at,
    )

    PARK_BYTES: Final = 24
    PLACE_BITS: Final = 20
    COPIED_MAX: Final = 16_384
    KEY_BYTES_MAX: Final = 1_024
    ROW_CELLS: Final = 8
    MIN: Final = 1
    MAX: Final = 2
    ENTRY_BYTES: Final = 20
    COMMITS: Final = 1
    SUSPENDS: Final = 2
    SUBSCRIBES: Final = 4
    PYTHON: Final = 3
    NS_PER_MS: Final = 1_000_000
    # The numbers of the fields.
    GROUP: Final = 0
    TOPIC: Final = 1
    QUEUE_ID: Final = 2
    QUEUE_OFFSET: Final = 3
    MESSAGES: Final = 4
    SYS_FLAG: Final = 5
    COMMIT_OFFSET: Final = 6
    SUSPEND_MS: Final = 7
    SUBSCRIPTION: Final = 8
    SUB_VERSION: Final = 9
    EXPRESSION: Final = 10
    BYTES: Final = 11
    FIELDS: Final = 12
    # What a queue has for a pull; all but the last are outcomes that are answered here.
    FOUND: Final = 0
    NONE_MATCHED: Final = 1
    AT_END: Final = 2
    EMPTY: Final = 3
    ELSEWHERE: Final = 4

    _PARK: Final = struct.Struct("<QIIq")

    def cell(cells: memoryview, index: int) -> int:
        """Return a cell of the extents table; compiled, an acquire load."""
        return int(cells[index])

    def fence() -> None:
        """Let no later load pass an earlier store; compiled only."""

    def append(out: bytearray, data: memoryview, at: int, size: int) -> None:
        """Add some bytes of `data` to `out`."""
        out += data[at : at + size]

    def append_park(out: bytearray, number: int, row: int, incarnation: int, wanted: int) -> None:
        """Add what the holder must know of one wait."""
        out += _PARK.pack(number, row, incarnation, wanted)

    def load_number(data: memoryview, at: int) -> int:
        """Return an unsigned number of 64 bits, little-endian."""
        return int.from_bytes(data[at : at + 8], "little")


def is_end(outcome: int) -> bool:
    """Whether a pull is early: something may come at exactly its offset."""
    return AT_END <= outcome <= EMPTY


class PullQueue:
    """One queue as a group's pulls see it: its row, and the entries of the file that was looked at last."""

    def __init__(self, key: tuple[str, str, int], row: int, row_incarnation: int) -> None:
        self.row = row
        self.row_incarnation = row_incarnation
        self.key = key
        self.topic = key[1].encode()
        self.first = self.end = 0
        self.entries = memoryview(b"")


class PullTarget:
    """A group and a topic whose pulls are taken here, as long as `version` is the path's.

    Attributes:
        queues: those that were pulled from since the tables last changed, by id.
    """

    def __init__(
        self,
        version: int,
        group_flags: int,
        topic_flags: int,
        sub_version: int,
        tag_codes: frozenset[int] | None,
    ) -> None:
        self.version = version
        self.group_flags = group_flags
        self.topic_flags = topic_flags
        self.sub_version = sub_version
        self.tag_codes = tag_codes
        self.queues: dict[int, PullQueue] = {}


def target_key(group: bytes, topic: bytes, expression: tuple[bytes, bytes] | None) -> bytes:
    """Return the key of a target: with the expression and its type where a pull brings them."""
    if expression is None:
        return b"0" + group + b"\0" + topic
    return b"1" + group + b"\0" + topic + b"\0" + expression[0] + b"\0" + expression[1]


class Waiting:
    """One wait in its place; the object is used again for the next one."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.number = 0
        self.used = False
        self.untold = False
        self.owner: object = None
        self.home: set[int] | None = None
        self.other: object = None
        self.target: PullTarget | None = None
        self.queue: PullQueue | None = None
        self.frame = b""
        self.row = self.row_incarnation = 0
        self.offset = 0
        self.deadline_ns = 0
        self.heap_at = -1
        self.opaque = self.kind = 0
        self.messages_max = self.bytes_max = self.entries = 0


class PullPath(Headers):
    """What one gateway has between its clients' pulls and their answers.

    Args:
        extents: the extents table's memory.
        waiting_max: waits at a time.
        limits: messages and bytes of one answer, then the same for our own client.
        examined_min: queue entries that a pull looks at, however few it wants.
        bytes_wanted_min: who wants fewer bytes gets so many.
        warm_bytes: only messages so near to the log's end are taken to be in memory.
        json_pieces: what lies around code, group flags, queue's end, its begin, next offset, topic flags,
            opaque and remark in an answer.
        binary_pieces: what lies before group flags, end, begin, next offset and topic flags in a binary one.
        outcomes: code and remark of FOUND, NONE_MATCHED, AT_END and EMPTY (asked from 0).
        version: ours, in binary answers.
        map_queue: gives the file of a queue (topic, id, offset, incarnation), None when there is none.
        map_log: gives the file of the log that begins at an offset, None when there is none.
        log_parts: gives the bytes of ranges of the log to send (`actormq.store.commit_log.LogReader.parts`).

    Attributes:
        version: raised by the caller when the tables change.
        commits: offsets that pulls carried; the caller takes them out.
        large: answers that are sent from where they lie: owner, head, parts; the caller takes them out.
        pulls, messages, body_bytes: answered since the caller last set them to 0.
        waiting: places in use.
    """

    def __init__(
        self,
        extents: memoryview,
        *,
        waiting_max: int,
        limits: tuple[int, int, int, int],
        examined_min: int,
        bytes_wanted_min: int,
        suspend_ms_max: int,
        warm_bytes: int,
        queue_file_entries: int,
        log_file_bytes: int,
        maps_max: int,
        json_pieces: Sequence[bytes],
        binary_pieces: Sequence[bytes],
        outcomes: Sequence[tuple[int, bytes]],
        version: int,
        map_queue: Callable[[str, int, int, int], memoryview | None],
        map_log: Callable[[int], memoryview | None],
        log_parts: Callable[[list[tuple[int, int]], int], tuple[Any, ...]],
    ) -> None:
        super().__init__(FIELDS)
        assert waiting_max <= 1 << PLACE_BITS
        self._rows = extents.cast("Q")
        self._waiting_max = waiting_max
        self._messages_max, self._bytes_max, self._native_messages_max, self._native_bytes_max = limits
        self._examined_min = examined_min
        self._bytes_wanted_min = bytes_wanted_min
        self._suspend_ms_max = suspend_ms_max
        self._warm_bytes = warm_bytes
        self._file_entries = queue_file_entries
        self._log_file_bytes = log_file_bytes
        self._maps_max = maps_max
        self._json = list(json_pieces)
        self._binary = list(binary_pieces)
        assert len(self._json) == 9
        assert len(self._binary) == 5
        self._codes = [code for code, _ in outcomes]
        self._remarks = [remark for _, remark in outcomes]
        assert len(self._codes) == 4
        self._version = version
        self._map_queue = map_queue
        self._map_log = map_log
        self._log_parts = log_parts
        self._mapped: list[PullQueue] = []
        self._log = memoryview(b"")
        self._log_base = -1
        self._key = memoryview(bytearray(KEY_BYTES_MAX))
        self._chosen = memoryview(bytearray((4 + 2 * max(limits[0], limits[2])) * 8)).cast("q")
        self._entries = memoryview(bytearray(max(limits[0], limits[2]) * 8)).cast("q")
        self._now_ns = self._log_min = self._log_end = 0
        self._min = self._max = self._next = 0
        self._places: list[Waiting] = []
        self._free: list[Waiting] = []
        self._heap: list[Waiting] = []
        self._fresh: list[Waiting] = []
        self._telling = 0
        self._waits = 0
        self.version = 0
        self.commits: dict[tuple[str, str, int], int] = {}
        self.large: list[tuple[object, bytes, tuple[Any, ...]]] = []
        self.pulls = 0
        self.messages = 0
        self.body_bytes = 0
        self.waiting = 0

    def begin(self, now_ns: int, log_min: int, log_end: int) -> None:
        """Say what is true for the next calls: the time, and which part of the log may be read."""
        self._now_ns = now_ns
        self._log_min = log_min
        self._log_end = log_end
        if self._log_base >= 0 and self._log_base + self._log_file_bytes <= log_min:
            self._log = memoryview(b"")  # the cleaner takes it away
            self._log_base = -1

    # -- what was learned

    def learn(
        self,
        targets: dict[bytes, PullTarget],
        key: bytes,
        group_flags: int,
        topic_flags: int,
        sub_version: int,
        tag_codes: frozenset[int] | None,
        commit_key: tuple[str, str, int],
        row: int,
        row_incarnation: int,
    ) -> None:
        """Let pulls be taken, as long as the tables stay the same: one of them has passed every check.

        Args:
            key: the `target_key`.
            sub_version: of the registered subscription; pulls of a newer one are not taken.
            tag_codes: of the wanted tags; None = every message.
            commit_key: group, topic and queue id, under which offsets that pulls carry are noted.
        """
        target = targets.get(key)
        if target is None:
            target = targets[key] = PullTarget(self.version, group_flags, topic_flags, sub_version, tag_codes)
        if commit_key[2] not in target.queues:
            target.queues[commit_key[2]] = PullQueue(commit_key, row, row_incarnation)

    # -- in

    def take(
        self,
        view: memoryview,
        places: list[tuple[int, int]],
        owner: object,
        home: set[int],
        targets: dict[bytes, PullTarget],
        replies: dict[object, bytearray],
    ) -> list[tuple[int, int]]:
        """Serve the common pulls among the frames at `places`; return where the others are.

        From the first frame on that is no such pull, none is served: what carries offsets, or
        changes them, keeps its order.

        Args:
            owner: whose they are; the key of its answers in `replies`.
            home: the numbers of the owner's waits.
            targets: by `target_key`.
        """
        data = pointer_const(view)
        left: list[tuple[int, int]] = []
        for place in places:
            start = place[0]
            size = place[1] - start
            if left or self._frame(data, start, size, owner, home, targets, replies) != TAKEN:
                left.append(place)
        return left

    def take_header(
        self,
        head: memoryview,
        owner: object,
        home: set[int],
        targets: dict[bytes, PullTarget],
        replies: dict[object, bytearray],
    ) -> bool:
        """Serve one pull, a header (with type and length) without a body, if it is a common one."""
        if len(head) < 4:
            return False
        return self._frame(pointer_const(head), 0, len(head), owner, home, targets, replies) == TAKEN

    def _frame(
        self,
        data: memoryview,
        at: int,
        size: int,
        owner: object,
        home: set[int],
        targets: dict[bytes, PullTarget],
        replies: dict[object, bytearray],
    ) -> int:
        header = load_i32(data, at) & 0xFFFFFF
        if header + 4 != size or header > HEADER_MAX:
            return SLOW
        if self._parse(data, at, header) != TAKEN or self._flag & 3:
            return SLOW
        flags = self._digits(data, SYS_FLAG, 10, 0x7FFF_FFFF)
        queue_id = self._digits(data, QUEUE_ID, 10, 0x7FFF_FFFF)
        offset = self._digits(data, QUEUE_OFFSET, 18, 0x7FFF_FFFF_FFFF_FFFF)
        messages = self._digits(data, MESSAGES, 10, 0x7FFF_FFFF)
        commit = self._digits(data, COMMIT_OFFSET, 18, 0x7FFF_FFFF_FFFF_FFFF)
        suspend_ms = self._digits(data, SUSPEND_MS, 18, 0x7FFF_FFFF_FFFF_FFFF)
        sub_version = self._digits(data, SUB_VERSION, 18, 0x7FFF_FFFF_FFFF_FFFF)
        if flags < 0 or queue_id < 0 or offset < 0 or messages < 0:
            return SLOW
        if commit < 0 or suspend_ms < 0 or sub_version < 0:
            return SLOW
        bytes_max = -1
        if self._fields[BYTES * 3 + 1] >= 0:
            bytes_max = self._digits(data, BYTES, 10, 0x7FFF_FFFF)
            if bytes_max < 0:
                return SLOW
        key = self._target(data, flags)
        target = targets.get(key) if key is not None else None
        if target is None or target.version != self.version or sub_version > target.sub_version:
            return SLOW
        queue = target.queues.get(queue_id)
        if queue is None:
            return SLOW
        native = self._is_native(data)
        most = self._native_messages_max if native else self._messages_max
        size_max = self._native_bytes_max if native else self._bytes_max
        messages = min(messages, most)
        entries = max(messages, self._examined_min)
        messages = max(messages, 1)
        if bytes_max >= 0:
            size_max = min(size_max, max(bytes_max, self._bytes_wanted_min))
        outcome = self._look(target, queue, offset, messages, size_max, entries)
        if outcome == ELSEWHERE:
            return SLOW
        if flags & COMMITS:
            self.commits[queue.key] = commit
        may_wait = flags & SUSPENDS and suspend_ms > 0 and self.waiting < self._waiting_max
        if is_end(outcome) and may_wait:
            waiting = self._place()
            waiting.owner = owner
            waiting.home = home
            waiting.target = target
            waiting.queue = queue
            waiting.frame = text_at(data, at, size)
            waiting.row = queue.row
            waiting.row_incarnation = queue.row_incarnation
            waiting.deadline_ns = self._now_ns + min(suspend_ms, self._suspend_ms_max) * NS_PER_MS
            waiting.opaque = self._opaque
            waiting.kind = self._kind
            waiting.messages_max = messages
            waiting.bytes_max = size_max
            waiting.entries = entries
            self._wait(waiting, offset)
        else:
            self._answer(outcome, owner, target, self._opaque, self._kind, replies)
        return TAKEN

    def _wants(self, code: int) -> bool:
        return code == 11 or code == 361

    def _field_number(self, data: memoryview, at: int, size: int) -> int:
        if size == 5:
            return TOPIC if same(data, at, 5, b"topic") else -1
        if size == 7:
            if same(data, at, 7, b"queueId"):
                return QUEUE_ID
            return SYS_FLAG if same(data, at, 7, b"sysFlag") else -1
        if size == 10:
            if same(data, at, 10, b"maxMsgNums"):
                return MESSAGES
            return SUB_VERSION if same(data, at, 10, b"subVersion") else -1
        if size == 11:
            if same(data, at, 11, b"queueOffset"):
                return QUEUE_OFFSET
            return BYTES if same(data, at, 11, b"maxMsgBytes") else -1
        if size == 12:
            if same(data, at, 12, b"commitOffset"):
                return COMMIT_OFFSET
            return SUBSCRIPTION if same(data, at, 12, b"subscription") else -1
        if size == 13:
            return GROUP if same(data, at, 13, b"consumerGroup") else -1
        if size == 14:
            return EXPRESSION if same(data, at, 14, b"expressionType") else -1
        if size == 20:
            return SUSPEND_MS if same(data, at, 20, b"suspendTimeoutMillis") else -1
        return -1

    def _target(self, data: memoryview, flags: int) -> bytes | None:
        """Return the `target_key` of the pull whose fields are found; None when it is uncommon."""
        out = pointer(self._key)
        out[0] = 49 if flags & SUBSCRIBES else 48
        self._at = 1
        if not self._put_text(data, GROUP) or not self._put_text(data, TOPIC):
            return None
        if flags & SUBSCRIBES and not (
            self._put_text(data, SUBSCRIPTION) and self._put_text(data, EXPRESSION)
        ):
            return None
        return text_at(pointer_const(self._key), 0, self._at - 1)

    def _put_text(self, data: memoryview, number: int) -> bool:
        """Add a field's text and a zero to the key; False when it is missing or uncommon."""
        at = self._fields[number * 3]
        size = self._fields[number * 3 + 1]
        if size < 1 or self._fields[number * 3 + 2] or self._at + size >= KEY_BYTES_MAX:
            return False
        out = pointer(self._key)
        for place in range(size):
            byte = data[at + place]
            if byte < 32 or byte > 126:
                return False
            out[self._at + place] = byte
        self._at += size
        out[self._at] = 0
        self._at += 1
        return True

    def _is_native(self, data: memoryview) -> bool:
        if self._kind == 1:
            return self._language == PYTHON
        return self._language_size == 6 and same(data, self._language_at, 6, b"PYTHON")

    # -- what a queue has

    def _look(
        self, target: PullTarget, queue: PullQueue, offset: int, messages: int, bytes_max: int, entries: int
    ) -> int:
        """Look into a queue: an outcome, with `_min`, `_max`, `_next`, and of FOUND `_chosen`."""
        row = queue.row * ROW_CELLS
        incarnation = cell(self._rows, row)
        self._max = cell(self._rows, row + MAX)
        self._min = cell(self._rows, row + MIN)
        if incarnation != queue.row_incarnation or cell(self._rows, row) != incarnation:
            return ELSEWHERE
        self._next = offset
        if self._max == 0:
            return EMPTY if offset == 0 else ELSEWHERE
        if offset < self._min or offset > self._max:
            return ELSEWHERE
        if offset == self._max:
            return AT_END
        if (offset < queue.first or offset >= queue.end) and not self._map(queue, offset):
            return ELSEWHERE
        data = advance(pointer_const(queue.entries), (offset - queue.first) * ENTRY_BYTES)
        if self._log_end - load_i64(data, 0) > self._warm_bytes:
            return ELSEWHERE
        count = min(entries, self._max - offset)
        count = min(count, queue.end - offset)
        choose(
            data,
            count * ENTRY_BYTES,
            messages,
            bytes_max,
            target.tag_codes,
            self._log_min,
            numbers(self._chosen),
            numbers(self._entries),
        )
        self._next = offset + self._chosen[2]
        if self._chosen[2] == 0 or not self._are_whole(queue, data, offset):
            return ELSEWHERE
        # Fenced: the reading is over before the row is looked at again.
        fence()
        if cell(self._rows, row) != incarnation or cell(self._rows, row + MIN) > offset:
            return ELSEWHERE
        return FOUND if self._chosen[0] else NONE_MATCHED

    def _are_whole(self, queue: PullQueue, data: memoryview, offset: int) -> bool:
        """Say whether the chosen messages are undamaged, each the one that its entry in `data` promises."""
        name = bytes_pointer(queue.topic)
        name_size = len(queue.topic)
        queue_id = queue.key[2]
        for number in range(self._chosen[0]):
            entry = advance(data, self._entries[number] * ENTRY_BYTES)
            log_offset = load_i64(entry, 0)
            size = load_i32(entry, 8)
            if not self._is_mapped(log_offset, size):
                return False
            at = log_offset - self._log_base
            if not is_message(
                pointer_const(self._log),
                at,
                size,
                log_offset,
                queue_id,
                offset + self._entries[number],
                name,
                name_size,
            ):
                return False
        return True

    def _map(self, queue: PullQueue, offset: int) -> bool:
        """Take hold of the file of a queue in which an offset lies; the oldest of too many is let go."""
        view = self._map_queue(queue.key[1], queue.key[2], offset, queue.row_incarnation)
        if view is None or len(view) < self._file_entries * ENTRY_BYTES:
            return False
        if queue.end == 0:
            self._mapped.append(queue)
            if len(self._mapped) > self._maps_max:
                oldest = self._mapped.pop(0)
                oldest.entries = memoryview(b"")
                oldest.first = oldest.end = 0
        queue.entries = view
        queue.first = offset - offset % self._file_entries
        queue.end = queue.first + self._file_entries
        return True

    def forget_maps(self) -> None:
        """Let go of every queue's file: their targets are gone."""
        for queue in self._mapped:
            queue.entries = memoryview(b"")
            queue.first = queue.end = 0
        self._mapped.clear()

    def _is_mapped(self, log_offset: int, size: int) -> bool:
        """Take hold of the file of the log in which a range lies; False when it is none."""
        at = log_offset % self._log_file_bytes
        if at + size > self._log_file_bytes:
            return False
        if log_offset - at == self._log_base:
            return True
        view = self._map_log(log_offset - at)
        if view is None or len(view) < self._log_file_bytes:
            return False
        self._log = view
        self._log_base = log_offset - at
        return True

    # -- answers

    def _answer(
        self,
        outcome: int,
        owner: object,
        target: PullTarget,
        opaque: int,
        kind: int,
        replies: dict[object, bytearray],
    ) -> None:
        """Write the answer of a pull that `_look` has looked at."""
        size = self._chosen[1] if outcome == FOUND else 0
        self.pulls += 1
        self._at = 8
        if kind == 0:
            self._head_json(outcome, target, opaque)
        else:
            self._head_binary(outcome, target, opaque)
        out = pointer(self._out)
        store_i32(out, 0, self._at - 4 + size)
        store_i32(out, 4, (self._at - 8) | (kind << 24))
        if outcome == FOUND:
            self.messages += self._chosen[0]
            self.body_bytes += size
            if size > COPIED_MAX:
                head = text_at(pointer_const(self._out), 0, self._at)
                self.large.append((owner, head, self._log_parts(self._ranges(), size)))
                return
        given = replies.get(owner)
        if given is None:
            given = replies[owner] = bytearray()
        append(given, pointer_const(self._out), 0, self._at)
        if outcome == FOUND:
            for number in range(self._chosen[3]):
                start = self._chosen[4 + 2 * number]
                held = self._is_mapped(start, self._chosen[5 + 2 * number])
                assert held, "a file of the log that was there a moment ago"
                append(given, pointer_const(self._log), start - self._log_base, self._chosen[5 + 2 * number])

    def _ranges(self) -> list[tuple[int, int]]:
        """Return the ranges in `_chosen`: log offset, bytes."""
        ranges: list[tuple[int, int]] = []
        for number in range(self._chosen[3]):
            ranges.append((self._chosen[4 + 2 * number], self._chosen[5 + 2 * number]))
        return ranges

    def _head_json(self, outcome: int, target: PullTarget, opaque: int) -> None:
        pieces = self._json
        self._put(pieces[0])
        self._put_number(self._codes[outcome])
        self._put(pieces[1])
        self._put_number(target.group_flags)
        self._put(pieces[2])
        self._put_number(self._max)
        self._put(pieces[3])
        self._put_number(self._min)
        self._put(pieces[4])
        self._put_number(self._next)
        self._put(pieces[5])
        self._put_number(target.topic_flags)
        self._put(pieces[6])
        self._put_number(opaque)
        self._put(pieces[7])
        self._put(self._remarks[outcome])
        self._put(pieces[8])

    def _head_binary(self, outcome: int, target: PullTarget, opaque: int) -> None:
        out = pointer(self._out)
        remark = self._remarks[outcome]
        store_i16(out, 8, self._codes[outcome])
        out[10] = 0  # Java
        store_i16(out, 11, self._version)
        store_i32(out, 13, opaque)
        store_i32(out, 17, 1)
        store_i32(out, 21, len(remark))
        self._at = 25
        self._put(remark)
        fields_at = self._at
        self._at += 4
        self._put_field(0, target.group_flags)
        self._put_field(1, self._max)
        self._put_field(2, self._min)
        self._put_field(3, self._next)
        self._put_field(4, target.topic_flags)
        store_i32(out, fields_at, self._at - fields_at - 4)

    def _put_field(self, number: int, value: int) -> None:
        self._put(self._binary[number])
        start = self._at
        self._at += 4
        self._put_number(value)
        store_i32(pointer(self._out), start, self._at - start - 4)

    # -- waiting

    def wait(
        self,
        other: object,
        owner: object,
        home: set[int],
        row: int,
        row_incarnation: int,
        offset: int,
        deadline_ns: int,
    ) -> int:
        """Let a pull of the caller's wait until its row grows beyond `offset`; return the wait's number."""
        waiting = self._place()
        waiting.other = other
        waiting.owner = owner
        waiting.home = home
        waiting.row = row
        waiting.row_incarnation = row_incarnation
        waiting.deadline_ns = deadline_ns
        self._wait(waiting, offset)
        return waiting.number

    def _place(self) -> Waiting:
        """Return a place that is free."""
        if self._free:
            waiting: Waiting = self._free.pop()
            return waiting
        waiting = Waiting(len(self._places))
        assert len(self._places) < 1 << PLACE_BITS, "more waits than places"
        self._places.append(waiting)
        return waiting

    def _wait(self, waiting: Waiting, offset: int) -> None:
        """Begin a wait, under a number of its own: a late wake-up of the last one must not end it."""
        self._waits += 1
        waiting.number = self._waits << PLACE_BITS | waiting.place
        waiting.used = True
        waiting.offset = offset
        self.waiting += 1
        home = waiting.home
        assert home is not None
        home.add(waiting.number)
        if not waiting.untold:
            waiting.untold = True
            self._fresh.append(waiting)
        waiting.heap_at = len(self._heap)
        self._heap.append(waiting)
        self._rise(waiting.heap_at)

    def _leave(self, waiting: Waiting) -> None:
        """End a wait; what it was for stays in its place until that is freed."""
        waiting.used = False
        self.waiting -= 1
        home = waiting.home
        assert home is not None
        home.discard(waiting.number)
        if waiting.heap_at >= 0:
            self._remove(waiting.heap_at)

    def _give_back(self, waiting: Waiting) -> None:
        """Free the place of a wait that has ended."""
        waiting.owner = waiting.other = waiting.home = waiting.target = waiting.queue = None
        waiting.frame = b""
        self._free.append(waiting)

    def _of(self, number: int) -> Waiting | None:
        """Return the wait of this number, None when it is over."""
        place = number & ((1 << PLACE_BITS) - 1)
        if place >= len(self._places):
            return None
        waiting: Waiting = self._places[place]
        return waiting if waiting.used and waiting.number == number else None

    def end(self, number: int) -> tuple[object, bytes, int, int, object] | None:
        """End a wait, which the caller takes over: owner, frame, offset, deadline, what he gave to `wait`."""
        waiting = self._of(number)
        if waiting is None:
            return None
        self._leave(waiting)
        ended = (waiting.owner, waiting.frame, waiting.offset, waiting.deadline_ns, waiting.other)
        self._give_back(waiting)
        return ended

    def waits(self) -> list[int]:
        """Return the number of every wait."""
        return [waiting.number for waiting in self._places if waiting.used]

    # -- woken

    def wake(self, entry: memoryview, replies: dict[object, bytearray]) -> list[int]:
        """Look again for the waits whose numbers are in `entry`; return those that the caller must end."""
        data = pointer_const(entry)
        others: list[int] = []
        for at in range(0, len(entry), 8):
            waiting = self._of(load_number(data, at))
            if waiting is not None:
                self._again(waiting, replies, others)
        return others

    def expire(self, now_ns: int, replies: dict[object, bytearray]) -> list[int]:
        """Answer what has waited long enough; return the waits that the caller must end."""
        due: list[Waiting] = []
        others: list[int] = []
        while self._heap and self._first().deadline_ns <= now_ns:
            waiting = self._first()
            self._remove(0)
            due.append(waiting)
        for waiting in due:
            self._again(waiting, replies, others)
        return others

    @property
    def deadline_ns(self) -> int:
        """When `expire` next has work; 0 = never."""
        return self._first().deadline_ns if self._heap else 0

    def _again(self, waiting: Waiting, replies: dict[object, bytearray], others: list[int]) -> None:
        """Answer a wait, let it wait on, or add it to `others`."""
        target = waiting.target
        queue = waiting.queue
        if target is None or queue is None or target.version != self.version:
            others.append(waiting.number)
            return
        outcome = self._look(
            target, queue, waiting.offset, waiting.messages_max, waiting.bytes_max, waiting.entries
        )
        if outcome == ELSEWHERE:
            others.append(waiting.number)
            return
        at_end = is_end(outcome)
        if outcome == NONE_MATCHED and self._next == self._max:
            # Woken by messages that others wanted: go on behind them.
            outcome = AT_END
            at_end = True
        self._leave(waiting)
        if at_end and self._now_ns < waiting.deadline_ns:
            self._wait(waiting, self._next)
            return
        self._answer(outcome, waiting.owner, target, waiting.opaque, waiting.kind, replies)
        self._give_back(waiting)

    # -- the holder

    def untold(self, waits_max: int) -> bytearray:
        """Return what the holder has not been told, of so many waits at most; `told` when it was."""
        parks = bytearray()
        self._telling = 0
        kept = 0
        for waiting in self._fresh:
            if waiting.used:
                self._fresh[kept] = waiting
                kept += 1
                if self._telling < waits_max:
                    self._telling += 1
                    append_park(parks, waiting.number, waiting.row, waiting.row_incarnation, waiting.offset)
            else:
                waiting.untold = False
        del self._fresh[kept:]
        return parks

    def told(self, replies: dict[object, bytearray]) -> list[int]:
        """The waits of the last `untold` are in the holder's ring; return those that the caller must end.

        Each is compared here once more: so the holder need not look into its ring before it hears of growth.
        """
        telling = self._fresh[: self._telling]
        del self._fresh[: self._telling]
        self._telling = 0
        others: list[int] = []
        # Fenced: what has grown before the holder could see these waits is seen here.
        fence()
        for waiting in telling:
            waiting.untold = False
        for waiting in telling:
            if waiting.used and self._is_due(waiting):
                self._again(waiting, replies, others)
        return others

    @property
    def has_untold(self) -> bool:
        """Whether the holder has not been told of some wait."""
        return bool(self._fresh)

    def tell_all(self) -> None:
        """The holder is a new one: it knows nothing."""
        self._fresh = [waiting for waiting in self._places if waiting.used]
        for waiting in self._places:
            waiting.untold = waiting.used

    def _is_due(self, waiting: Waiting) -> bool:
        row = waiting.row * ROW_CELLS
        return (
            cell(self._rows, row) != waiting.row_incarnation or cell(self._rows, row + MAX) > waiting.offset
        )

    # -- deadlines: a heap in which every wait knows its place

    def _first(self) -> Waiting:
        first: Waiting = self._heap[0]
        return first

    def _rise(self, at: int) -> None:
        """Bring the wait at `at` to its place among those above it."""
        heap = self._heap
        waiting: Waiting = heap[at]
        while at > 0:
            parent: Waiting = heap[(at - 1) >> 1]
            if parent.deadline_ns <= waiting.deadline_ns:
                break
            heap[at] = parent
            parent.heap_at = at
            at = (at - 1) >> 1
        heap[at] = waiting
        waiting.heap_at = at

    def _sink(self, at: int) -> None:
        """Bring the wait at `at` to its place among those below it."""
        heap = self._heap
        count = len(heap)
        waiting: Waiting = heap[at]
        while 2 * at + 1 < count:
            below = 2 * at + 1
            child: Waiting = heap[below]
            if below + 1 < count:
                other: Waiting = heap[below + 1]
                if other.deadline_ns < child.deadline_ns:
                    below += 1
                    child = other
            if waiting.deadline_ns <= child.deadline_ns:
                break
            heap[at] = child
            child.heap_at = at
            at = below
        heap[at] = waiting
        waiting.heap_at = at

    def _remove(self, at: int) -> None:
        """Take the wait at `at` out of the heap."""
        waiting: Waiting = self._heap[at]
        waiting.heap_at = -1
        last: Waiting = self._heap.pop()
        if last is not waiting:
            self._heap[at] = last
            last.heap_at = at
            self._rise(at)
            self._sink(last.heap_at)
