# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False
"""Is an index what the log makes of it?  Comparisons over millions of entries, for `actormq store verify`.

Functions over memory that is handed in; `checks.pxd` gives the C types.  Index entries and the keys that
`queues.dispatch` makes are both units of 20 bytes that begin with the key's hash (i32) and the message's log
offset (i64), in the log's order.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if not cython.compiled:
    from actormq.kernels.records import load_i32, load_i64, pointer_const

    def bytes_of(data: bytearray) -> bytearray:
        """Return where `data` lies; compiled, a C pointer."""
        return data


UNIT_BYTES: Final = 20


class Match(NamedTuple):
    """What `match_keys` found; positions are bytes, -1 where nothing is wrong."""

    strays: int
    """Entries of which the log has no such key."""
    first_stray: int
    missing: int
    """Keys of which there is no entry."""
    first_missing: int


class Links(NamedTuple):
    """What `check_links` found."""

    bad_slots: int
    """Slots that lead to no entry, or to one of another slot."""
    first_bad_slot: int
    bad_links: int
    """Entries whose link leads to no older entry of their slot, or to one that another link leads to."""
    first_bad_link: int
    unreached: int
    """Entries that no slot and no link leads to: nobody finds these messages by their key."""
    first_unreached: int


def units_before(units: Any, start: int, end: int, log_offset: int) -> int:
    """Return the position in `units[start:end]` of the first unit of a message at or behind `log_offset`."""
    if end > len(units):
        end = len(units)
    if end <= start or start < 0:
        return start
    data = pointer_const(memoryview(units))
    at = start
    while at + 20 <= end and load_i64(data, at + 4) < log_offset:
        at += 20
    return at


def match_keys(entries: Any, keys: Any) -> Match:
    """Compare index entries with the keys of the same stretch of log, message by message.

    The order of one message's keys does not matter, nor whether one of them is there twice.
    """
    entries_end = len(entries)
    keys_end = len(keys)
    strays = 0
    first_stray = -1
    missing = 0
    first_missing = -1
    if entries_end == 0 or keys_end == 0:
        return Match(entries_end // 20, 0 if entries_end else -1, keys_end // 20, 0 if keys_end else -1)
    ours = pointer_const(memoryview(entries))
    theirs = pointer_const(memoryview(keys))
    entry = 0
    key = 0
    while entry < entries_end or key < keys_end:
        if key >= keys_end or (entry < entries_end and load_i64(ours, entry + 4) < load_i64(theirs, key + 4)):
            if strays == 0:
                first_stray = entry
            strays += 1
            entry += 20
            continue
        if entry >= entries_end or load_i64(ours, entry + 4) > load_i64(theirs, key + 4):
            if missing == 0:
                first_missing = key
            missing += 1
            key += 20
            continue
        log_offset = load_i64(ours, entry + 4)
        entry_stop = entry
        while entry_stop < entries_end and load_i64(ours, entry_stop + 4) == log_offset:
            entry_stop += 20
        key_stop = key
        while key_stop < keys_end and load_i64(theirs, key_stop + 4) == log_offset:
            key_stop += 20
        while entry < entry_stop:
            if not has_hash(theirs, key, key_stop, load_i32(ours, entry)):
                if strays == 0:
                    first_stray = entry
                strays += 1
            entry += 20
        entry = entry_stop
        at = key
        while at < key_stop:
            # The entries of this message end at `entry`; they begin where its offset does.
            if not has_hash_before(ours, entry, log_offset, load_i32(theirs, at)):
                if missing == 0:
                    first_missing = at
                missing += 1
            at += 20
        key = key_stop
    return Match(strays, first_stray, missing, first_missing)


def wrong_times(entries: Any, keys: Any, begin_ms: int) -> tuple[int, int]:
    """Compare entries' times with those of their messages: (how many differ, position of the first or -1).

    Args:
        entries: of one index file, in the log's order.
        keys: those of the same stretch of log, or more.
        begin_ms: the file's first store time, from which its entries count seconds.
    """
    entries_end = len(entries)
    keys_end = len(keys)
    wrong = 0
    first = -1
    if entries_end == 0 or keys_end == 0:
        return 0, -1
    ours = pointer_const(memoryview(entries))
    theirs = pointer_const(memoryview(keys))
    key = 0
    for entry in range(0, entries_end, 20):
        log_offset = load_i64(ours, entry + 4)
        while key < keys_end and load_i64(theirs, key + 4) < log_offset:
            key += 20
        if key >= keys_end:
            break
        if load_i64(theirs, key + 4) != log_offset:
            continue
        seconds = 0
        if begin_ms > 0 and load_i64(theirs, key + 12) > begin_ms:
            seconds = min((load_i64(theirs, key + 12) - begin_ms) // 1000, 0x7FFFFFFF)
        if load_i32(ours, entry + 12) != seconds:
            if wrong == 0:
                first = entry
            wrong += 1
    return wrong, first


def has_hash(data: memoryview, at: int, end: int, wanted: int) -> bool:
    """Say whether a unit in `data[at:end]` has this hash."""
    while at < end:
        if load_i32(data, at) == wanted:
            return True
        at += 20
    return False


def has_hash_before(data: memoryview, end: int, log_offset: int, wanted: int) -> bool:
    """Say whether one of the units that end at `end` and are of the message at `log_offset` has this hash."""
    at = end - 20
    while at >= 0 and load_i64(data, at + 4) == log_offset:
        if load_i32(data, at) == wanted:
            return True
        at -= 20
    return False


def check_links(view: Any, slots: int, next_number: int, growing: bool) -> Links:
    """Look whether every entry of an index file is found through its slot: each is led to exactly once.

    Args:
        view: the whole index file.
        slots: of the file.
        next_number: the entries before it count.
        growing: there may be more entries, of which nothing is known: a slot that leads to one of them is
            followed down to those that count.
    """
    data = pointer_const(memoryview(view))
    entries_at = 40 + slots * 4
    slot_count = slots
    if slots <= 0 or next_number < 1 or len(view) < entries_at + next_number * 20:
        raise ValueError(f"an index file of {len(view)} bytes has less than {next_number - 1} entries")
    last_number = (len(view) - entries_at) // 20 - 1
    marks = bytearray(next_number)
    reached = bytes_of(marks)
    bad_slots = 0
    first_bad_slot = -1
    bad_links = 0
    first_bad_link = -1
    unreached = 0
    first_unreached = -1
    for number in range(1, next_number):
        at = entries_at + number * 20
        previous = load_i32(data, at + 16)
        if previous == 0:
            continue
        if (
            previous < 0
            or previous >= number
            or reached[previous] != 0
            or slot_of(data, entries_at + previous * 20, slot_count) != slot_of(data, at, slot_count)
        ):
            if bad_links == 0:
                first_bad_link = number
            bad_links += 1
        else:
            reached[previous] = 1
    for slot in range(slot_count):
        number = load_i32(data, 40 + slot * 4)
        while growing and next_number <= number <= last_number:
            previous = load_i32(data, entries_at + number * 20 + 16)
            number = previous if previous < number else 0
        if number == 0:
            continue
        if (
            number < 0
            or number >= next_number
            or reached[number] != 0
            or slot_of(data, entries_at + number * 20, slot_count) != slot
        ):
            if bad_slots == 0:
                first_bad_slot = slot
            bad_slots += 1
        else:
            reached[number] = 1
    for number in range(1, next_number):
        if reached[number] == 0:
            if unreached == 0:
                first_unreached = number
            unreached += 1
    return Links(bad_slots, first_bad_slot, bad_links, first_bad_link, unreached, first_unreached)


def slot_of(data: memoryview, at: int, slots: int) -> int:
    """Return the slot of the entry at `at`."""
    return (load_i32(data, at) & 0x7FFFFFFF) % slots
