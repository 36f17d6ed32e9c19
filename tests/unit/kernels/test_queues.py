"""The queue kernel against slow and obvious readers of the same bytes, compiled and uncompiled."""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_twins import each_of, twins

from actormq.kernels import records
from actormq.message import decode_properties, java_hash

KERNELS = twins("queues")
both = each_of(KERNELS, "queues")

HOST = bytes([127, 0, 0, 1, 0, 0, 42, 159])
HOST_V6 = bytes(20)
BASE = 7 << 30
DELAYS = [1000, 5000, 10_000]
SCHEDULE = "SCHEDULE_TOPIC_XXXX"
ROLLBACK, PREPARED = 0xC, 0x4

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\1\2 "), min_size=1, max_size=6)
MESSAGE = st.fixed_dictionaries(
    {
        "topic": st.sampled_from(("a", "topic", SCHEDULE, "t" * 130)),
        "queue_id": st.integers(0, 2),
        "sys_flag": st.sampled_from((0, 0, 0, PREPARED, 0x8, ROLLBACK)),
        "tags": st.none() | WORDS,
        "keys": st.lists(WORDS, max_size=3),
        "unique": st.none() | WORDS,
        "delay": st.none() | st.sampled_from(("1", "3", "9", "0", "-1", "x")),
        "other": st.none() | WORDS,
        "v6": st.booleans(),
        "offset_step": st.sampled_from((1, 1, 1, 1, 3)),
    }
)


def properties_of(message: dict[str, Any]) -> str:
    items = {
        "other": message["other"],
        "TAGS": message["tags"],
        "KEYS": " ".join(message["keys"]),
        "UNIQ_KEY": message["unique"],
        "DELAY": message["delay"],
    }
    return "".join(f"{key}\1{value}\2" for key, value in items.items() if value)


def write_log(messages: list[dict[str, Any]]) -> tuple[bytearray, list[int], list[int]]:
    """Return a file with these messages, where each record ends, and each one's queue offset."""
    out = bytearray(4000 + 600 * len(messages))
    at = 0
    ends, offsets = [], []
    following: dict[tuple[str, int], int] = defaultdict(int)
    for number, message in enumerate(messages):
        queue = (message["topic"], message["queue_id"])
        offsets.append(following[queue])
        at = records.encode(
            out,
            at,
            queue_id=message["queue_id"],
            queue_offset=following[queue],
            physical_offset=BASE + at,
            store_timestamp=10_000 + number * 700,
            store_host=HOST_V6 if message["v6"] else HOST,
            born_host=HOST_V6 if message["v6"] and number % 2 else HOST,
            topic=message["topic"].encode(),
            body=b"x" * (number % 7),
            properties=properties_of(message).encode(),
            sys_flag=message["sys_flag"],
        )
        ends.append(at)
        if message["sys_flag"] in (0, 8):
            following[queue] += message["offset_step"]
    return out, ends, offsets


def naive_code(message: dict[str, Any], store_timestamp: int) -> int:
    properties = decode_properties(properties_of(message).encode())
    level = properties.get("DELAY", "0")
    if message["topic"] == SCHEDULE and level.isdigit() and int(level) > 0:
        return store_timestamp + DELAYS[min(int(level), len(DELAYS)) - 1]
    return java_hash(properties["TAGS"]) if "TAGS" in properties else 0


def naive_keys(message: dict[str, Any]) -> list[int]:
    if message["sys_flag"] == ROLLBACK:
        return []
    return hashes_of(message["topic"], decode_properties(properties_of(message).encode()))


def hashes_of(topic: str, properties: dict[str, str]) -> list[int]:
    words = [properties["UNIQ_KEY"]] if "UNIQ_KEY" in properties else []
    words += [word for word in properties.get("KEYS", "").split(" ") if word]
    words += ["T#" + properties["TAGS"]] if "TAGS" in properties else []
    hashes = [abs(java_hash(f"{topic}#{word}")) for word in words]
    return [0 if value == 2**31 else value for value in hashes]


ROWS = {
    (topic.encode(), queue): 10 * number + queue
    for number, topic in enumerate(("a", "topic", SCHEDULE, "t" * 130))
    for queue in range(3)
}


@both
@pytest.mark.parametrize("skipped", [0, 2, 5])
def test_units_have_code_and_store_time_of_their_entries(queues: Any, skipped: int) -> None:
    """Those that were asked for; their entries lead there, the others are as they were."""
    messages = [
        {"topic": "a", "queue_id": 0, "sys_flag": 0, "tags": tags, "keys": [], "unique": None, "delay": None,
         "other": None, "v6": number % 2 == 1, "offset_step": 1}
        for number, tags in enumerate(("x", None, "y", "\u00e4", "z" * 40))
    ]  # fmt: skip
    log, _, _ = write_log(messages)
    times = {BASE + at: 10_000 + number * 700 for number, at in enumerate(starts_of(log, len(messages)))}
    ((_, _, entries),) = queues.dispatch(log, 0, len(log), BASE, ROWS, DELAYS).runs
    before = list(queues.ENTRY.iter_unpack(entries))
    made = queues.make_units(log, BASE, entries, skipped, len(before) - skipped, -(1 << 63) + 70)
    assert list(struct.iter_unpack(">hqqh", made)) == [
        (20, code, times[log_offset], 0) for log_offset, _, code in before[skipped:]
    ]
    assert list(queues.ENTRY.iter_unpack(entries)) == before[:skipped] + [
        (log_offset, size, -(1 << 63) + 70 + 20 * number)
        for number, (log_offset, size, _) in enumerate(before[skipped:])
    ]


def starts_of(log: bytearray, count: int) -> list[int]:
    found, at = [], 0
    for _ in range(count):
        found.append(at)
        at += int.from_bytes(log[at : at + 4], "big")
    return found


@both
def test_units_of_entries_that_are_not_there_are_refused(queues: Any) -> None:
    log = bytearray(500)
    for entry, first, count in (((BASE + 425, 1, 1), 0, 1), ((BASE - 1, 1, 1), 0, 1), ((BASE, 1, 1), 1, 1)):
        with pytest.raises(ValueError, match="entr"):
            queues.make_units(log, BASE, bytearray(queues.ENTRY.pack(*entry)), first, count, -(1 << 63))


@both
def test_where_the_next_unit_goes(queues: Any) -> None:
    """Behind the last one, whatever bitmaps they have; a mark means the end of the file."""
    one, other = b"\0\x14" + bytes(18), b"\0\x22" + bytes(32)
    assert queues.find_units_end(bytes(100)) == 0
    assert queues.find_units_end((one + other + one).ljust(100, b"\0")) == 74
    assert queues.find_units_end((one + other + b"\xff\xff").ljust(100, b"\0")) == 100
    assert queues.find_units_end(one * 4 + b"\x7f\xff" + bytes(18)) == 100
    assert queues.find_units_end(one + b"\0\x13" + bytes(78)) == 20
    assert queues.find_units_end(b"") == 0


@both
@given(messages=st.lists(MESSAGE, max_size=25), cut=st.integers(0, 25))
def test_dispatch_makes_the_entries_and_keys_of_every_record(
    queues: Any, messages: list[dict[str, Any]], cut: int
) -> None:
    """Tags codes, delivery times, transactions, IPv6 hosts, long topics; nothing behind the safe point."""
    log, ends, offsets = write_log(messages)
    shown = min(cut, len(messages))
    limit = ends[shown - 1] if shown else 0
    # A safe point inside a record does not show that record.
    made = queues.dispatch(log, 0, limit + (shown < len(messages)), BASE, ROWS, DELAYS)
    assert (made.end, made.records, made.reason) == (limit, shown, records.ScanEnd.STOP)
    entries = {}
    for row, first, data in made.runs:
        for number, (log_offset, size, code) in enumerate(queues.ENTRY.iter_unpack(data)):
            assert entries.setdefault((row, first + number), (log_offset, size, code)) == (
                log_offset,
                size,
                code,
            )
    expected_entries, expected_keys = {}, []
    for number, message in enumerate(messages[:shown]):
        start = ends[number - 1] if number else 0
        timestamp = 10_000 + number * 700
        row = ROWS[message["topic"].encode(), message["queue_id"]]
        if message["sys_flag"] in (0, 8):
            expected_entries[row, offsets[number]] = (
                BASE + start,
                ends[number] - start,
                naive_code(message, timestamp),
            )
        expected_keys += [(value, BASE + start, timestamp) for value in naive_keys(message)]
    assert entries == expected_entries
    assert list(queues.KEY.iter_unpack(made.keys)) == expected_keys
    if shown:
        assert made.last_store_timestamp == 10_000 + (shown - 1) * 700


@both
def test_dispatch_stops_before_a_queue_without_a_row(queues: Any) -> None:
    """The caller gives it a row and goes on at the same place."""
    plain = {
        "sys_flag": 0,
        "tags": None,
        "keys": [],
        "unique": None,
        "delay": None,
        "other": None,
        "v6": False,
    }
    messages = [plain | {"topic": "a", "queue_id": queue, "offset_step": 1} for queue in (0, 1, 0)]
    log, ends, _ = write_log(messages)
    rows = {(b"a", 0): 5}
    made = queues.dispatch(log, 0, ends[-1], BASE, rows, DELAYS)
    assert (made.end, made.reason, made.records) == (ends[0], queues.UNKNOWN_QUEUE, 1)
    rows[b"a", 1] = 6
    made = queues.dispatch(log, made.end, ends[-1], BASE, rows, DELAYS)
    assert [(row, first) for row, first, _ in made.runs] == [(6, 0), (5, 1)]
    assert made.end == ends[-1]


@both
def test_dispatch_stops_at_what_is_no_record(queues: Any) -> None:
    log = bytearray(200)
    assert queues.dispatch(log, 0, 200, 0, {}, DELAYS).reason == records.ScanEnd.EMPTY
    records.encode_blank(log, 0, 200)
    assert queues.dispatch(log, 0, 200, 0, {}, DELAYS).reason == records.ScanEnd.BLANK


@both
def test_tags_code_of_minus_one_is_sign_extended(queues: Any) -> None:
    message = {
        "topic": "a",
        "queue_id": 0,
        "sys_flag": 0,
        "tags": "polygenelubricants",  # its hash is the smallest 32-bit number
        "keys": [],
        "unique": None,
        "delay": None,
        "other": None,
        "v6": False,
        "offset_step": 1,
    }
    log, ends, _ = write_log([message])
    made = queues.dispatch(log, 0, ends[-1], BASE, ROWS, DELAYS)
    assert queues.ENTRY.unpack(made.runs[0][2])[2] == -(2**31)


def one_message(properties: bytes, topic: bytes = b"a", *, at: int = 0, queue_offset: int = 0) -> bytearray:
    """Return a record with these properties, for position `at` of a log."""
    out = bytearray(400 + len(topic) + len(properties))
    end = records.encode(
        out, 0, queue_id=0, queue_offset=queue_offset, physical_offset=BASE + at, store_timestamp=1,
        store_host=HOST, topic=topic, body=b"b", properties=properties,
    )  # fmt: skip
    return out[:end]


PIECES = (
    "TAGS",
    "KEYS",
    "UNIQ_KEY",
    "DELAY",
    "TAG",
    "S",
    "KEYS2",
    "UNIQ",
    "_KEY",
    "DELAYS",
    "\1",
    "\1",
    "\2",
    "v w",
)


@both
@given(
    strings=st.lists(st.lists(st.sampled_from(PIECES), max_size=20).map("".join), min_size=1, max_size=3),
    ends=st.lists(
        st.sampled_from(("", "\2", "A\1b\2", "\2A\1b\2", "TAGS\1vA\1b\2", "KEYS\1k\2A\1b\2")),
        min_size=1,
        max_size=2,
    ),
)
@example(strings=["KEYS\1k\2"], ends=["A\1b\2", "TAGS\1vA\1b\2"])
def test_dispatch_reads_any_property_string(queues: Any, strings: list[str], ends: list[str]) -> None:
    """Names that only begin like ours, without value or separator, twice, empty; ends like those before."""
    texts = [string + end for string in strings for end in (*ends, ends[0])]
    log = bytearray()
    for number, text in enumerate(texts):
        log += one_message(text.encode(), at=len(log), queue_offset=number)
    made = queues.dispatch(log, 0, len(log), BASE, ROWS, DELAYS)
    codes, hashes = [], []
    for text in texts:
        properties = decode_properties(text.encode())
        codes.append(java_hash(properties["TAGS"]) if "TAGS" in properties else 0)
        hashes += hashes_of("a", properties)
    assert [code for _, _, code in queues.ENTRY.iter_unpack(made.runs[0][2])] == codes
    assert [key for key, _, _ in queues.KEY.iter_unpack(made.keys)] == hashes


@both
@given(
    topic=st.text(st.sampled_from("aZ0ä€😀"), min_size=1, max_size=20),
    key=st.text(st.sampled_from("aZ0ä€😀"), min_size=1, max_size=40),
)
def test_keys_are_hashed_as_java_does(queues: Any, topic: str, key: str) -> None:
    """Of any length, whether and where the text leaves ASCII."""
    log = one_message(b"UNIQ_KEY\1%s\2" % key.encode(), topic.encode())
    made = queues.dispatch(log, 0, len(log), BASE, {(topic.encode(), 0): 0}, DELAYS)
    value = abs(java_hash(f"{topic}#{key}"))
    assert queues.KEY.unpack(made.keys)[0] == (0 if value == 2**31 else value)


@both
def test_dispatch_gives_back_no_more_than_was_asked(queues: Any) -> None:
    """Long runs that take turns: each has its entries and nothing behind them."""
    messages = [
        {"topic": "a", "queue_id": number // 30 % 3, "sys_flag": 0, "tags": None, "keys": [], "unique": "u",
         "delay": None, "other": None, "v6": False, "offset_step": 1}
        for number in range(360)
    ]  # fmt: skip
    log, ends, _ = write_log(messages)
    made = queues.dispatch(log, 0, len(log), BASE, ROWS, DELAYS)
    assert [(row, first, len(data) // 20) for row, first, data in made.runs] == [
        (ROWS[b"a", queue], 0, 120) for queue in range(3)
    ]
    starts = [0, *ends[:-1]]
    for row, _, data in made.runs:
        assert [entry[0] - BASE for entry in queues.ENTRY.iter_unpack(data)] == [
            start
            for start, message in zip(starts, messages, strict=True)
            if ROWS[b"a", message["queue_id"]] == row
        ]
    assert len(made.keys) == 360 * 20


# The index.

SLOTS, ENTRIES = 7, 30
KEYS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=40)


def new_index() -> bytearray:
    return bytearray(40 + SLOTS * 4 + ENTRIES * 20)


def key_units(queues: Any, steps: list[tuple[int, int]]) -> bytes:
    """Units with ascending log offsets; a step of 0 is another key of the same message."""
    units, offset = [], 1000
    for key_hash, step in steps:
        offset += step
        units.append(queues.KEY.pack(key_hash, offset, 5000 + offset * 10))
    return b"".join(units)


def chain(index: bytearray, key_hash: int) -> list[tuple[int, int]]:
    """Return (hash, log offset) of the entries in the slot of `key_hash`, newest first."""
    found = []
    count = struct.unpack_from(">i", index, 36)[0]
    number = struct.unpack_from(">i", index, 40 + key_hash % SLOTS * 4)[0]
    bound = count
    while 0 < number < bound:
        value, offset, _, previous = struct.unpack_from(">iqii", index, 40 + SLOTS * 4 + number * 20)
        found.append((value, offset))
        bound, number = number, previous
    return found


@both
@given(steps=KEYS)
def test_put_index_chains_the_newest_first(queues: Any, steps: list[tuple[int, int]]) -> None:
    """Every key is found from its slot, until the file is full: entry numbers begin at 1."""
    index, units = new_index(), key_units(queues, steps)
    end = queues.put_index(index, SLOTS, ENTRIES, units)
    # The same key of the same message twice is stored once.
    stored = list(dict.fromkeys(unit[:2] for unit in queues.KEY.iter_unpack(units[:end])))
    assert len(stored) <= ENTRIES - 1
    assert end == len(units) or len(stored) == ENTRIES - 1
    for slot in range(SLOTS):
        assert chain(index, slot) == [each for each in reversed(stored) if each[0] % SLOTS == slot]
    header = struct.unpack_from(">qqqqii", index)
    if stored:
        last = max(offset for _, offset in stored)
        first = stored[0][1]
        used = len({key_hash % SLOTS for key_hash, _ in stored})
        assert header == (5000 + first * 10, 5000 + last * 10, first, last, used, len(stored) + 1)


@both
@given(steps=KEYS, again=st.integers(0, 40))
def test_putting_keys_again_changes_nothing(queues: Any, steps: list[tuple[int, int]], again: int) -> None:
    """A dispatcher that was killed begins again at a record that it had done."""
    index, units = new_index(), key_units(queues, steps)
    end = queues.put_index(index, SLOTS, ENTRIES, units)
    before = bytes(index)
    queues.put_index(index, SLOTS, ENTRIES, units[min(again, len(steps)) * 20 : end])
    assert bytes(index) == before


@both
@given(steps=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3)), min_size=1, max_size=20))
def test_an_entry_whose_slot_has_its_own_number_keeps_its_link(
    queues: Any, steps: list[tuple[int, int]]
) -> None:
    """Killed between slot and count: RocketMQ would link the entry to itself, a chain without end."""
    index, units = new_index(), key_units(queues, steps)
    queues.put_index(index, SLOTS, ENTRIES, units[:-20])
    header = bytes(index[:40])
    queues.put_index(index, SLOTS, ENTRIES, units)
    expected = bytes(index)
    index[:40] = header
    queues.put_index(index, SLOTS, ENTRIES, units[-20:])
    assert bytes(index[40:]) == expected[40:]
    assert bytes(index[:32]) == expected[:32]


@both
@given(steps=KEYS, cut=st.integers(1, 30), noise=st.binary(min_size=40, max_size=40))
def test_cut_index_restores_what_was_before(
    queues: Any, steps: list[tuple[int, int]], cut: int, noise: bytes
) -> None:
    """Slots lead to the newest entry that is left, whatever is behind the cut; then it goes on as before."""
    whole, part = new_index(), new_index()
    units = key_units(queues, [(key_hash, step + 1) for key_hash, step in steps])[: (ENTRIES - 1) * 20]
    cut = min(cut, len(units) // 20 + 1)
    queues.put_index(part, SLOTS, ENTRIES, units[: (cut - 1) * 20])
    queues.put_index(whole, SLOTS, ENTRIES, units)
    behind = 40 + SLOTS * 4 + cut * 20
    torn = bytearray(whole)
    torn[behind : behind + 40] = noise[: len(torn) - behind]
    emptied = queues.cut_index(torn, SLOTS, ENTRIES, cut)
    assert (emptied is None) == all(
        struct.unpack_from(">i", whole, 40 + 4 * slot)[0] < cut for slot in range(SLOTS)
    )
    if emptied is not None:
        middle = 1 + cut // 2
        queues.relink_index(torn, SLOTS, emptied, 1, middle)
        queues.relink_index(torn, SLOTS, emptied, middle, cut)
    for slot in range(SLOTS):
        assert chain(torn, slot) == chain(part, slot)
    queues.put_index(torn, SLOTS, ENTRIES, units[(cut - 1) * 20 :])
    for slot in range(SLOTS):
        assert chain(torn, slot) == chain(whole, slot)
    if units:
        (begin, end, *others), (begin_before, end_before, *others_before) = (
            struct.unpack_from(">qqqqii", each) for each in (torn, whole)
        )
        assert (begin, others) == (begin_before, others_before)
        assert end_before <= end < end_before + 1000


@both
def test_index_functions_refuse_a_file_that_is_too_small(queues: Any) -> None:
    with pytest.raises(ValueError, match="room"):
        queues.put_index(bytearray(100), SLOTS, ENTRIES, b"")
    with pytest.raises(ValueError, match="cut"):
        queues.cut_index(new_index(), SLOTS, ENTRIES, 0)
    with pytest.raises(ValueError, match="no entries"):
        queues.relink_index(new_index(), SLOTS, bytearray(SLOTS), 0, 1)
    with pytest.raises(ValueError, match="no entries"):
        queues.relink_index(new_index(), SLOTS, bytearray(SLOTS), 1, ENTRIES + 1)


# Pulls.

ENTRY_SETS = st.lists(
    st.tuples(
        st.sampled_from((0, 0, 0, 1, 50)),  # hole in the log before the record
        st.sampled_from((100, 200, 0, 0x7FFFFFFF)),
        st.sampled_from((0, 65, 66, -(2**31), -(2**31) - 1, -(2**62), 2**40)),
    ),
    max_size=30,
)


def naive_select(
    entries: list[tuple[int, int, int]],
    first: int,
    messages_max: int,
    bytes_max: int,
    codes: frozenset[int] | None,
    log_min: int,
) -> tuple[bytes, int, int]:
    """Return every byte position chosen (as ranges joined), the messages, the next queue offset."""
    taken: list[tuple[int, int]] = []
    total = 0
    for number, (offset, size, code) in enumerate(entries):
        if size in (0, 0x7FFFFFFF) or offset < log_min:
            return repr(taken).encode(), len(taken), first + number
        if codes is not None and -(2**31) <= code < 2**31 and code not in codes:
            continue
        if len(taken) == messages_max or (taken and total + size > bytes_max):
            return repr(taken).encode(), len(taken), first + number
        taken.append((offset, size))
        total += size
    return repr(taken).encode(), len(taken), first + len(entries)


@both
@given(
    shapes=ENTRY_SETS,
    messages_max=st.integers(1, 12),
    bytes_max=st.integers(0, 1500),
    codes=st.none() | st.frozensets(st.sampled_from((65, 66, 0, -(2**31))), max_size=3),
    log_min=st.sampled_from((0, 0, 500)),
)
def test_select_chooses_what_a_slow_reader_chooses(
    queues: Any,
    shapes: list[tuple[int, int, int]],
    messages_max: int,
    bytes_max: int,
    codes: frozenset[int] | None,
    log_min: int,
) -> None:
    """Limits, tags, fillers and holes; the ranges are the messages in order, neighbours joined."""
    entries, offset = [], 0
    for gap, size, code in shapes:
        offset += gap
        entries.append((offset, size, code))
        offset += size if size < 0x7FFFFFFF else 0
    data = b"".join(queues.ENTRY.pack(*entry) for entry in entries)
    chosen = queues.select(data + b"half an entry", 77, messages_max, bytes_max, codes, log_min)
    taken, messages, following = naive_select(entries, 77, messages_max, bytes_max, codes, log_min)
    assert (chosen.messages, chosen.next_queue_offset) == (messages, following)
    assert chosen.examined == following - 77
    assert chosen.bytes == sum(size for _, size in chosen.ranges)
    pieces = eval(taken)
    joined: list[tuple[int, int]] = []
    for start, size in pieces:
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + size)
        else:
            joined.append((start, size))
    assert chosen.ranges == joined


@pytest.mark.skipif(len(KERNELS) < 2, reason="the kernels are not compiled here")
@settings(max_examples=50)
@given(messages=st.lists(MESSAGE, max_size=15), noise=st.data())
def test_compiled_and_uncompiled_agree(messages: list[dict[str, Any]], noise: Any) -> None:
    """On whole logs and on damaged ones."""
    log, ends, _ = write_log(messages)
    for _ in range(noise.draw(st.integers(0, 3))):
        log[noise.draw(st.integers(0, (ends or [10])[-1] - 1))] = noise.draw(st.integers(0, 255))
    view = memoryview(log).toreadonly()
    answers = [queues.dispatch(view, 0, len(log), BASE, ROWS, DELAYS) for queues in KERNELS]
    assert answers[0] == answers[1]


@both
@given(
    data=st.binary(max_size=200),
    ranges=st.lists(st.tuples(st.integers(-5, 220), st.integers(-2, 40)), max_size=8),
    off_by=st.sampled_from([0, 0, 0, -1, 1]),
)
def test_gather_joins_ranges_of_one_file(
    queues: Any, data: bytes, ranges: list[tuple[int, int]], off_by: int
) -> None:
    """In any order; None where one lies outside the file, or their sum is another than was said."""
    size = sum(count for _, count in ranges) + off_by
    if size < 0:
        return
    base = 1_000
    lies_inside = all(at >= 0 and count >= 0 and at + count <= len(data) for at, count in ranges)
    expected = b"".join(data[at : at + count] for at, count in ranges) if lies_inside and not off_by else None
    assert queues.gather(data, base, [(base + at, count) for at, count in ranges], size) == expected


@both
@given(data=st.binary(max_size=50), zeros=st.integers(0, 50))
def test_the_zeros_at_the_end_are_not_used(queues: Any, data: bytes, zeros: int) -> None:
    """Nor any before them that follow the last other byte."""
    assert queues.used_bytes(data + bytes(zeros)) == len(data.rstrip(b"\0"))


@both
def test_keys_of_tags_can_be_left_out(queues: Any) -> None:
    """As RocketMQ before 5.4 did; everything else is the same."""
    log = one_message(b"UNIQ_KEY\1u\2KEYS\1k l\2TAGS\1t\2")
    rows = {(b"a", 0): 0}
    with_tags = queues.dispatch(log, 0, len(log), BASE, rows, DELAYS)
    without = queues.dispatch(log, 0, len(log), BASE, rows, DELAYS, with_tags=False)
    assert (len(with_tags.keys), without.keys) == (4 * 20, with_tags.keys[: 3 * 20])
    assert without.runs == with_tags.runs
