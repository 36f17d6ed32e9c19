# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False
"""From the log to the queues and the index, and from a queue to a pull.

`dispatch` turns log records into queue entries and index keys, `put_index` stores keys in an index
file, `select` turns queue entries into the log ranges that answer a pull.  Like every kernel these
are functions over memory that is handed in; `queues.pxd` gives the C types.

Source: RocketMQ ConsumeQueue.java (store unit: i64 log offset, i32 size, i64 tags code; big-endian),
IndexFile.java, CommitLog.checkMessageAndReturnSize.
"""

from __future__ import annotations

import struct
from array import array
from typing import Any, Final, NamedTuple

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

ENTRY: Final = struct.Struct(">qiq")
"""A queue entry: log offset, record size, tags code (in the schedule topic: the delivery time)."""
ENTRY_BYTES: Final = 20
assert ENTRY.size == ENTRY_BYTES
KEY: Final = struct.Struct(">iqq")
"""An index key on its way to `put_index`: hash of ``topic#key``, log offset, store timestamp."""
KEY_BYTES: Final = 20
assert KEY.size == KEY_BYTES

if not cython.compiled:
    from actormq.kernels.records import (
        advance,
        bytes_pointer,
        check_record,
        copy_bytes,
        equal_bytes,
        is_message,
        load_i16,
        load_i32,
        load_i64,
        pointer,
        pointer_const,
        store_i16,
        store_i32,
        store_i64,
    )

    def find_byte(data: memoryview, at: int, end: int, value: int) -> int:
        """Return where `value` is first found in `data[at:end]`; `end` when it is not there."""
        found = bytes(data[at:end]).find(value)
        return end if found < 0 else at + found

    def wrap(value: int) -> int:
        """Return `value` as unsigned 32 bits; a C number already is."""
        return value & 0xFFFFFFFF

    def signed(value: int) -> int:
        """Return 32 unsigned bits as the signed number that they mean in Java."""
        return value - 0x1_0000_0000 if value > 0x7FFFFFFF else value

    def index_hash(value: int) -> int:
        """Return the key hash of an index entry: Java's absolute value, 0 where there is none."""
        if value > 0x80000000:
            return 0x1_0000_0000 - value
        return 0 if value == 0x80000000 else value

    def numbers(view: Any) -> Any:
        """Return the numbers in `view`; compiled, a C pointer."""
        return view

    def new_bytes(size: int) -> bytearray:
        """Return memory; compiled, whatever was in it."""
        return bytearray(size)

    def bytes_to(data: bytearray) -> memoryview:
        """Return where `data` lies; compiled, a C pointer."""
        return memoryview(data)

    def append_key(keys: bytearray, used: int, key_hash: int, log_offset: int, store_timestamp: int) -> int:
        """Add one `KEY` unit to `keys`, of which `used` bytes count; return how many do now."""
        keys += KEY.pack(key_hash, log_offset, store_timestamp)
        return used + KEY_BYTES

    def append_entry(entries: bytearray, used: int, log_offset: int, size: int, code: int) -> int:
        """Add one queue entry to `entries`, of which `used` bytes count; return how many do now."""
        entries += ENTRY.pack(log_offset, size, code)
        return used + ENTRY_BYTES

    def trim(data: bytearray, used: int) -> None:
        """Give back what `data` has beyond the bytes that count; only compiled there is such a thing."""

    def prefetch(data: memoryview, at: int) -> None:
        """Say that this byte is soon changed; compiled, it begins its way to the processor."""

    # Where `find_properties` puts what it finds: position and size of each value.
    _TAGS: Final = 0
    _KEYS: Final = 2
    _UNIQUE: Final = 4
    _DELAY: Final = 6
    _AHEAD_BYTES: Final = 320

UNKNOWN_QUEUE: Final = 16
"""`dispatch` stopped before a record whose queue has no row yet (goes on where `ScanEnd` stops)."""
BLANK_ENTRY_SIZE: Final = 0x7FFFFFFF
"""The size in the entries that fill a queue's first file up to its first real one."""

INDEX_HEADER_BYTES: Final = 40
INDEX_SLOT_BYTES: Final = 4
INDEX_ENTRY_BYTES: Final = 20


class Dispatch(NamedTuple):
    """What `dispatch` made of a stretch of log."""

    end: int
    """Position in the view behind the last record that was dispatched."""
    reason: int
    """A `ScanEnd`, or `UNKNOWN_QUEUE`."""
    runs: list[tuple[int, int, bytearray]]
    """(row, queue offset of the first entry, entries): consecutive entries of one queue, 20 bytes each."""
    keys: bytearray
    """`KEY` units for `put_index`, in log order."""
    last_store_timestamp: int
    records: int


class Selection(NamedTuple):
    """What `select` chose."""

    ranges: list[tuple[int, int]]
    """(log offset, bytes): neighbours in the log are one range."""
    messages: int
    bytes: int
    next_queue_offset: int
    """Where the next pull goes on: behind the last entry that was looked at."""
    examined: int
    """0: the first entry points nowhere."""
    places: list[int]
    """Which entry each message is of, from 0."""


def hash_text(data: memoryview, at: int, size: int, seed: int) -> int:
    """Go on with Java's String.hashCode from `seed` over UTF-8 text; return it as unsigned 32 bits."""
    value = seed
    end = at + size
    position = at
    # Four at once: each multiplication of `value` waits for the one before.
    while (
        position + 4 <= end
        and (data[position] | data[position + 1] | data[position + 2] | data[position + 3]) < 128
    ):
        value = wrap(
            923521 * value
            + 29791 * data[position]
            + 961 * data[position + 1]
            + 31 * data[position + 2]
            + data[position + 3]
        )
        position += 4
    while position < end and data[position] < 128:
        value = wrap(31 * value + data[position])
        position += 1
    if position < end:
        units = bytes(data[position:end]).decode("utf-8", "replace").encode("utf-16-be")
        for high, low in zip(units[::2], units[1::2], strict=True):
            value = wrap(31 * value + (high << 8 | low))
    return value


def find_properties(data: memoryview, at: int, end: int, places: Any) -> int:
    """Note where the values of TAGS, KEYS, UNIQ_KEY and DELAY lie in the property string `data[at:end]`.

    ``key 0x01 value 0x02`` repeated; the last duplicate wins, a missing last 0x02 is tolerated, items
    without key or value do not count.  A property that is not there has position -1.

    Returns:
        Where the items begin that are behind the last of these properties.
    """
    others_at = at
    for which in range(0, 8, 2):
        places[which] = -1
    while at < end:
        item_end = find_byte(data, at, end, 2)
        # None of the names has a 0x01 in it: one that is followed by 0x01 is the whole key.
        which = -1
        value_at = at + 5
        if value_at < item_end:
            name = load_i32(data, at)
            if data[at + 4] == 1:
                if name == 0x54414753:
                    which = _TAGS
                elif name == 0x4B455953:
                    which = _KEYS
            elif name == 0x554E4951:
                value_at = at + 9
                if value_at < item_end and load_i32(data, at + 4) == 0x5F4B4559 and data[at + 8] == 1:
                    which = _UNIQUE
            elif name == 0x44454C41 and data[at + 4] == 0x59 and data[at + 5] == 1:
                value_at = at + 6
                if value_at < item_end:
                    which = _DELAY
        if which >= 0:
            places[which] = value_at
            places[which + 1] = item_end - value_at
            others_at = item_end + 1
        at = item_end + 1
    return others_at


def add_keys(
    keys: bytearray,
    used: int,
    data: memoryview,
    topic_hash: int,
    places: Any,
    log_offset: int,
    store_timestamp: int,
    with_tags: bool,
) -> int:
    """Add the units of a message's keys; return how many bytes of `keys` count.

    The unique key, each word of KEYS and then, as ``topic#T#tags``, the tags.  RocketMQ indexes these since
    5.4; IndexService.java.

    Args:
        topic_hash: of ``topic#``, with which each key begins.
    """
    if places[_UNIQUE] >= 0:
        value = hash_text(data, places[_UNIQUE], places[_UNIQUE + 1], topic_hash)
        used = append_key(keys, used, index_hash(value), log_offset, store_timestamp)
    at = places[_KEYS]
    end = at + places[_KEYS + 1] if at >= 0 else at
    while at < end:
        word_end = find_byte(data, at, end, 32)
        if word_end > at:
            value = hash_text(data, at, word_end - at, topic_hash)
            used = append_key(keys, used, index_hash(value), log_offset, store_timestamp)
        at = word_end + 1
    if with_tags and places[_TAGS] >= 0:
        # 84 is the 'T', 35 the '#'.
        value = hash_text(data, places[_TAGS], places[_TAGS + 1], wrap(31 * wrap(31 * topic_hash + 84) + 35))
        used = append_key(keys, used, index_hash(value), log_offset, store_timestamp)
    return used


def delivery_time(text: bytes, delay_ms: list[int], store_timestamp: int, otherwise: int) -> int:
    """Return when a message of the delay level in `text` is due; `otherwise` when it is no level."""
    try:
        level = int(text)
    except ValueError:
        return otherwise
    if level <= 0:
        return otherwise
    if not delay_ms:
        return store_timestamp + 1000
    return store_timestamp + delay_ms[min(level, len(delay_ms)) - 1]


def dispatch(
    view: Any,
    start: int,
    limit: int,
    base_log_offset: int,
    rows: dict[tuple[bytes, int], int],
    delay_ms: list[int],
    index: bool = True,
    schedule_topic: bytes = b"SCHEDULE_TOPIC_XXXX",
    with_tags: bool = True,
) -> Dispatch:
    """Turn the records in `view[start:limit]` into queue entries and index keys.

    Prepared and rolled-back transaction records make no entry, rolled-back ones no key either.

    Args:
        view: one log file from its first byte to its last.
        start: position of a record.
        limit: nothing that ends behind this position is dispatched (the safe point).
        base_log_offset: the log offset of the first byte of `view`.
        rows: the row of each queue, by (topic, queue id).
        delay_ms: the delays of levels 1, 2, …
        index: make index keys, too.
        with_tags: of tags, too; RocketMQ before 5.4 had none.
    """
    data = pointer_const(memoryview(view))
    spots = array("q", bytes(64))
    places = numbers(spots)
    size_of_view = len(view)
    if limit > size_of_view:
        limit = size_of_view
    runs: list[tuple[int, int, bytearray]] = []
    open_runs: dict[int, tuple[int, bytearray]] = {}
    keys = bytearray()
    keys_used = 0
    at = start
    reason = 0
    records = 0
    last_timestamp = 0
    # The topic and queue of the record before: most often the same, and cheaper to compare than to look up.
    known_at = 0
    known_size = -1
    topic_hash = -1
    row = -1
    row_queue_id = 0
    # Its last properties, none of them one that is looked for: what the broker adds is always the same.
    others_at = 0
    others_size = 0
    # The run that is being written, and where it goes on.
    entries = bytearray()
    entries_used = 0
    run_row = -1
    run_end = 0
    while at < limit:
        size = check_record(data, at, size_of_view, base_log_offset + at, False)
        if size <= 0:
            reason = -size
            break
        if at + size > limit:
            break
        sys_flag = load_i32(data, at + 36)
        store_at = at + 68 if sys_flag & 0x10 else at + 56
        store_timestamp = load_i64(data, store_at)
        body_at = store_at + (44 if sys_flag & 0x20 else 32)
        topic_at = body_at + load_i32(data, body_at - 4)
        if load_i32(data, at + 4) == -626843481:
            topic_size = data[topic_at]
            topic_at += 1
        else:
            topic_size = load_i16(data, topic_at)
            topic_at += 2
        if topic_size != known_size or not equal_bytes(data, topic_at, data, known_at, topic_size):
            known_at = topic_at
            known_size = topic_size
            topic_hash = -1
            row = -1
        properties_at = topic_at + topic_size + 2
        properties_end = at + size
        seen_to = properties_end - others_size
        if (
            others_size > 0
            and seen_to > properties_at
            and data[seen_to - 1] == 2
            and equal_bytes(data, seen_to, data, others_at, others_size)
        ):
            others_at = seen_to
            find_properties(data, properties_at, seen_to, places)
        else:
            others_at = find_properties(data, properties_at, properties_end, places)
            others_size = max(properties_end - others_at, 0)
        transaction = sys_flag & 0xC
        if transaction == 0 or transaction == 8:
            queue_id = load_i32(data, at + 12)
            if row < 0 or queue_id != row_queue_id:
                found = rows.get((bytes(data[topic_at : topic_at + topic_size]), queue_id))
                if found is None:
                    reason = 16
                    break
                row = found
                row_queue_id = queue_id
            code = 0
            if places[_TAGS] >= 0:
                code = signed(hash_text(data, places[_TAGS], places[_TAGS + 1], 0))
            if places[_DELAY] >= 0 and bytes(data[topic_at : topic_at + topic_size]) == schedule_topic:
                level = bytes(data[places[_DELAY] : places[_DELAY] + places[_DELAY + 1]])
                code = delivery_time(level, delay_ms, store_timestamp, code)
            queue_offset = load_i64(data, at + 20)
            if row != run_row or queue_offset != run_end:
                trim(entries, entries_used)
                entries = open_run(runs, open_runs, row, queue_offset)
                entries_used = len(entries)
                run_row = row
                run_end = queue_offset
            entries_used = append_entry(entries, entries_used, base_log_offset + at, size, code)
            run_end += 1
        if (
            index
            and transaction != 0xC
            and (places[_UNIQUE] >= 0 or places[_KEYS] >= 0 or places[_TAGS] >= 0)
        ):
            if topic_hash < 0:
                # A key is hashed as ``topic#key``; 35 is the '#'.
                topic_hash = wrap(31 * hash_text(data, topic_at, topic_size, 0) + 35)
            keys_used = add_keys(
                keys, keys_used, data, topic_hash, places, base_log_offset + at, store_timestamp, with_tags
            )
        last_timestamp = store_timestamp
        records += 1
        at += size
    trim(entries, entries_used)
    trim(keys, keys_used)
    return Dispatch(at, reason, runs, keys, last_timestamp, records)


def open_run(
    runs: list[tuple[int, int, bytearray]],
    open_runs: dict[int, tuple[int, bytearray]],
    row: int,
    queue_offset: int,
) -> bytearray:
    """Return the entries that go on at `queue_offset`: those of the last run of the row, or of a new one."""
    run = open_runs.get(row)
    if run is not None:
        first, entries = run
        if first + len(entries) // 20 == queue_offset:
            return entries
    entries = bytearray()
    open_runs[row] = (queue_offset, entries)
    runs.append((row, queue_offset, entries))
    return entries


def make_units(
    view: Any, base_log_offset: int, entries: bytearray, first: int, count: int, address: int
) -> bytearray:
    """Return the extension units of `count` entries from number `first` on; the entries then point there.

    Args:
        view: the log file in which all their records lie.
        base_log_offset: the log offset of its first byte.
        address: of the first unit; the others come right behind it.
    """
    data = pointer_const(memoryview(view))
    size_of_view = len(view)
    if first < 0 or count < 0 or (first + count) * 20 > len(entries):
        raise ValueError(f"{len(entries)} bytes are not {first + count} entries")
    units = new_bytes(count * 20)
    source = bytes_to(entries)
    out = bytes_to(units)
    for number in range(count):
        entry = (first + number) * 20
        unit = number * 20
        at = load_i64(source, entry) - base_log_offset
        if at < 0 or at + 76 > size_of_view:
            raise ValueError(f"the record of entry {first + number} is not in this file")
        store_i16(out, unit, 20)
        store_i64(out, unit + 2, load_i64(source, entry + 12))
        store_i64(out, unit + 10, load_i64(data, at + 68 if load_i32(data, at + 36) & 0x10 else at + 56))
        store_i16(out, unit + 18, 0)
        store_i64(source, entry + 12, address + unit)
    return units


def find_units_end(view: Any) -> int:
    """Return where the next unit goes in one extension file: its size when it is full."""
    data = pointer_const(memoryview(view))
    end = len(view)
    at = 0
    while at + 20 <= end:
        size = load_i16(data, at)
        if size == -1:
            return end
        if size < 20:
            break
        at += size
    return min(at, end)


def put_index(view: Any, slots: int, entries_max: int, keys: Any, at: int = 0) -> int:
    """Store `keys[at:]` in an index file; return the position of the first key that found the file full.

    Storing again what is there changes nothing: keys before the file's end offset are skipped, the
    last message's keys are looked for, and an entry whose slot already holds its own number keeps its
    link (a store that died between slot and count; a link to itself would be a chain without end).

    Args:
        view: the whole index file, writable.
        slots, entries_max: of the file (5,000,000 and 20,000,000 in a default store).
        keys: `KEY` units as `dispatch` makes them.
    """
    out = pointer(memoryview(view))
    source = pointer_const(memoryview(keys))
    end = len(keys)
    entries_at = 40 + slots * 4
    slot_count = slots
    if slots <= 0 or len(view) < entries_at + entries_max * 20:
        raise ValueError(
            f"an index file of {len(view)} bytes has no room for {slots} slots, {entries_max} entries"
        )
    number = load_i32(out, 36)
    if number <= 0:
        number = 1
    begin = load_i64(out, 0)
    end_offset = load_i64(out, 24)
    # Slots lie anywhere in 20 MB: while one key is stored those of the next ones are on their way.
    for ahead in range(at, min(at + _AHEAD_BYTES, end - 19), 20):
        prefetch(out, 40 + load_i32(source, ahead) % slot_count * 4)
    while at + 20 <= end and number < entries_max:
        ahead = at + _AHEAD_BYTES
        if ahead + 20 <= end:
            prefetch(out, 40 + load_i32(source, ahead) % slot_count * 4)
        key_hash = load_i32(source, at)
        log_offset = load_i64(source, at + 4)
        timestamp = load_i64(source, at + 12)
        at += 20
        if number > 1 and (
            log_offset < end_offset
            or (log_offset == end_offset and index_has(out, entries_at, number, key_hash, log_offset))
        ):
            continue
        if number <= 1:
            begin = timestamp
        put_key(out, slot_count, entries_at, number, key_hash, log_offset, timestamp, begin)
        number += 1
        end_offset = log_offset
    return at


def index_has(out: memoryview, entries_at: int, number: int, key_hash: int, log_offset: int) -> bool:
    """Say whether one of the newest entries, those of the message at `log_offset`, has this hash."""
    number -= 1
    while number >= 1:
        entry = entries_at + number * 20
        if load_i64(out, entry + 4) != log_offset:
            return False
        if load_i32(out, entry) == key_hash:
            return True
        number -= 1
    return False


def put_key(
    out: memoryview,
    slots: int,
    entries_at: int,
    number: int,
    key_hash: int,
    log_offset: int,
    timestamp: int,
    begin: int,
) -> None:
    """Store entry `number`: entry, slot, header, in RocketMQ's order.

    The header counts each entry at once: of those that a killed process had stored and not counted, only
    the last is known for what it is, and others in one slot with it would lose their link.
    """
    slot_at = 40 + key_hash % slots * 4
    entry_at = entries_at + number * 20
    newest = load_i32(out, slot_at)
    if newest == number:
        previous = load_i32(out, entry_at + 16)
        if previous >= number or previous < 0:
            previous = 0
    elif newest < 0 or newest > number:
        previous = 0
    else:
        previous = newest
    seconds = 0
    if begin > 0 and timestamp > begin:
        seconds = min((timestamp - begin) // 1000, 0x7FFFFFFF)
    store_i32(out, entry_at, key_hash)
    store_i64(out, entry_at + 4, log_offset)
    store_i32(out, entry_at + 12, seconds)
    store_i32(out, entry_at + 16, previous)
    store_i32(out, slot_at, number)
    if number <= 1:
        store_i64(out, 0, timestamp)
        store_i64(out, 16, log_offset)
    if newest <= 0 or newest > number:
        store_i32(out, 32, load_i32(out, 32) + 1)
    store_i32(out, 36, number + 1)
    store_i64(out, 24, log_offset)
    store_i64(out, 8, timestamp)


def cut_index(view: Any, slots: int, entries_max: int, next_number: int) -> bytearray | None:
    """End an index file before entry `next_number`; what lies behind is not looked at.

    Slots that led behind the cut are emptied; `relink_index` over all entries before the cut fills them.

    Returns:
        Which slots were emptied, one byte each; None when none was.
    """
    out = pointer(memoryview(view))
    entries_at = 40 + slots * 4
    if slots <= 0 or len(view) < entries_at + entries_max * 20 or not 1 <= next_number <= entries_max:
        raise ValueError(f"an index file of {len(view)} bytes cannot be cut at entry {next_number}")
    emptied = bytearray(slots)
    count = 0
    used = 0
    for slot in range(slots):
        number = load_i32(out, 40 + slot * 4)
        if number < 0 or number >= next_number:
            store_i32(out, 40 + slot * 4, 0)
            emptied[slot] = 1
            count += 1
        elif number > 0:
            used += 1
    store_i32(out, 32, used)
    store_i32(out, 36, next_number)
    if next_number > 1:
        # Entries keep whole seconds: the end may be said too late, never too early.
        newest = entries_at + (next_number - 1) * 20
        store_i64(out, 24, load_i64(out, newest + 4))
        store_i64(out, 8, load_i64(out, 0) + load_i32(out, newest + 12) * 1000 + 999)
    return emptied if count > 0 else None


def relink_index(view: Any, slots: int, emptied: bytearray, first: int, end: int) -> None:
    """Have emptied slots lead to the newest of the entries in [first, end), which are trusted.

    Call it over the entries in ascending order; `emptied` is changed.
    """
    out = pointer(memoryview(view))
    entries_at = 40 + slots * 4
    if len(emptied) != slots or first < 1 or len(view) < entries_at + end * 20:
        raise ValueError(f"an index file of {len(view)} bytes has no entries from {first} to {end}")
    used = load_i32(out, 32)
    for number in range(first, end):
        slot = (load_i32(out, entries_at + number * 20) & 0x7FFFFFFF) % slots
        if emptied[slot] != 0:
            if emptied[slot] == 1:
                emptied[slot] = 2
                used += 1
            store_i32(out, 40 + slot * 4, number)
    store_i32(out, 32, used)


def select(
    entries: Any,
    first_queue_offset: int,
    messages_max: int,
    bytes_max: int,
    tag_codes: frozenset[int] | None = None,
    log_min: int = 0,
) -> Selection:
    """Choose the messages of a pull from consecutive queue entries.

    Stops before the entry that would exceed a limit; the first message is taken whatever its size.
    Stops, too, before an entry that points nowhere (fillers, holes, before `log_min`): somebody must see why.

    Args:
        entries: a whole number of 20-byte entries; what lies behind a last whole one is not looked at.
        first_queue_offset: the queue offset of the first of them.
        tag_codes: take only entries with one of these codes; None takes all.  A code that is no hash (an
            address in the extension file) says nothing of the tags: it is taken, the client looks again.
        log_min: where the commit log begins.
    """
    end = len(entries) // 20 * 20
    room = min(max(messages_max, 1), end // 20)
    chosen = array("q", bytes(8 * (4 + 2 * room)))
    places = array("q", bytes(8 * (room + 1)))
    choose(
        pointer_const(memoryview(entries)),
        end,
        messages_max,
        bytes_max,
        tag_codes,
        log_min,
        numbers(chosen),
        numbers(places),
    )
    ranges = [(chosen[4 + 2 * number], chosen[5 + 2 * number]) for number in range(chosen[3])]
    first = first_queue_offset + chosen[2]
    return Selection(ranges, chosen[0], chosen[1], first, chosen[2], places[: chosen[0]].tolist())


def choose(
    data: memoryview,
    end: int,
    messages_max: int,
    bytes_max: int,
    tag_codes: frozenset[int] | None,
    log_min: int,
    chosen: Any,
    places: Any,
) -> None:
    """As `select`, over the entries in ``data[:end]``, for other kernels.

    Args:
        chosen: room for the messages, bytes, entries looked at and ranges, then log offset and bytes of as
            many ranges as there may be messages.
        places: room for which entry each message is of.
    """
    only = 0
    only_one = tag_codes is not None and len(tag_codes) == 1
    if tag_codes is not None and only_one:
        only = next(iter(tag_codes))
    ranges = 0
    range_end = -1
    messages = 0
    total = 0
    at = 0
    while at < end:
        log_offset = load_i64(data, at)
        size = load_i32(data, at + 8)
        if size <= 0 or size == 0x7FFFFFFF or log_offset < log_min:
            break
        if tag_codes is not None:
            code = load_i64(data, at + 12)
            hash_code = -0x80000000 <= code <= 0x7FFFFFFF
            if hash_code and (code != only if only_one else code not in tag_codes):
                at += 20
                continue
        if messages >= messages_max or (messages > 0 and total + size > bytes_max):
            break
        if log_offset != range_end:
            ranges += 1
            chosen[2 + 2 * ranges] = range_end = log_offset
            chosen[3 + 2 * ranges] = 0
        chosen[3 + 2 * ranges] += size
        range_end += size
        places[messages] = at // 20
        messages += 1
        total += size
        at += 20
    chosen[0] = messages
    chosen[1] = total
    chosen[2] = at // 20
    chosen[3] = ranges


def count_whole(
    entries: Any,
    places: list[int],
    first_queue_offset: int,
    parts: tuple[Any, ...],
    topic: bytes,
    queue_id: int,
) -> int:
    """Return how many chosen messages, from the first on, are undamaged and those that their entries promise.

    Args:
        entries, first_queue_offset: as for `select`.
        places: which entries were chosen.
        parts: the messages' bytes in order; none lies in two parts.
    """
    count = len(places)
    data = pointer_const(memoryview(entries))
    name = pointer_const(memoryview(topic))
    part = -1
    at = left = 0
    for number in range(count):
        place = places[number]
        log_offset = load_i64(data, place * 20)
        size = load_i32(data, place * 20 + 8)
        if left == 0:
            part += 1
            at = 0
            left = len(parts[part])
            log = pointer_const(memoryview(parts[part]))
        if size > left or not is_message(
            log, at, size, log_offset, queue_id, first_queue_offset + place, name, len(topic)
        ):
            return number
        at += size
        left -= size
    return count


def find_message(
    view: Any, start: int, limit: int, base_log_offset: int, topic: bytes, queue_id: int, queue_offset: int
) -> tuple[int, int]:
    """Walk the records of one file until the one that is this message of its queue.

    Args:
        view: one log file from its first byte to its last.
        start: position of a record.
        limit: only records that begin before this position are looked at.

    Returns:
        A position, and the message's size if it is there, undamaged; else minus the `ScanEnd` that says why.
    """
    data = pointer_const(memoryview(view))
    name = pointer_const(memoryview(topic))
    size_of_view = len(view)
    at = start
    while at < limit:
        size = check_record(data, at, size_of_view, base_log_offset + at, False)
        if size <= 0:
            return at, size
        if load_i64(data, at + 20) == queue_offset and is_message(
            data, at, size, base_log_offset + at, queue_id, queue_offset, name, len(topic)
        ):
            return at, size
        at += size
    return at, 0


def gather(view: Any, base_log_offset: int, ranges: list[tuple[int, int]], size: int) -> bytearray | None:
    """Return a copy of log ranges, one behind the other; None when one lies outside the file.

    Args:
        view: one log file.
        base_log_offset: the log offset of its first byte.
        ranges: (log offset, bytes), as `select` returns them.
        size: bytes of all ranges together.
    """
    data = pointer_const(memoryview(view))
    end = len(view)
    copied = new_bytes(size)
    out = bytes_to(copied)
    at = 0
    for log_offset, count in ranges:
        start = log_offset - base_log_offset
        if start < 0 or count < 0 or start + count > end or at + count > size:
            return None
        copy_bytes(out, at, advance(data, start), count)
        at += count
    return copied if at == size else None


def used_bytes(block: bytes) -> int:
    """Return how long `block` is without the zeros at its end."""
    if not cython.compiled:
        return len(block.rstrip(b"\0"))
    data = bytes_pointer(block)
    end = len(block)
    while end and data[end - 1] == 0:
        end -= 1
    return end
