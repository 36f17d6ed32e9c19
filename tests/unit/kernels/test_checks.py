"""The checks of an index, compiled and uncompiled, against indexes that are made and then spoiled."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_twins import each_of, twins

from actormq.kernels import queues

KERNELS = twins("checks")
both = each_of(KERNELS, "checks")

SLOTS, ENTRIES = 7, 60
ENTRIES_AT = 40 + SLOTS * 4
KEYS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=40)


def units(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (hash, log offset), offsets ascending; a step of 0 is another key of the same message."""
    found, offset = [], 1000
    for key_hash, step in steps:
        offset += step
        found.append((key_hash, offset))
    return found


def as_entries(pairs: list[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack(">iqii", *pair, 0, 0) for pair in pairs)


def as_keys(pairs: list[tuple[int, int]]) -> bytes:
    return b"".join(queues.KEY.pack(*pair, 5) for pair in pairs)


def new_index(pairs: list[tuple[int, int]]) -> bytearray:
    index = bytearray(ENTRIES_AT + ENTRIES * 20)
    queues.put_index(index, SLOTS, ENTRIES, as_keys(pairs))
    return index


@both
@given(entries=KEYS, keys=KEYS)
def test_keys_and_entries_are_matched(checks: Any, entries: list[Any], keys: list[Any]) -> None:
    """As sets of (hash, message); each one without its like counts, and the first is named."""
    ours, theirs = units(entries), units(keys)
    strays = [at for at, pair in enumerate(ours) if pair not in theirs]
    missing = [at for at, pair in enumerate(theirs) if pair not in ours]
    found = checks.match_keys(as_entries(ours), as_keys(theirs))
    assert found == (
        len(strays), min(strays, default=-1) * 20 if strays else -1,
        len(missing), min(missing, default=-1) * 20 if missing else -1,
    )  # fmt: skip


@both
@given(keys=KEYS, limit=st.integers(990, 1130))
def test_units_before_a_log_offset(checks: Any, keys: list[Any], limit: int) -> None:
    """The first at or behind it; the end when there is none."""
    pairs = units(keys)
    data = as_keys(pairs)
    assert checks.units_before(data, 0, len(data), limit) == 20 * len([1 for _, at in pairs if at < limit])
    assert checks.units_before(data, len(data), len(data), limit) == len(data)
    assert checks.units_before(data, 0, len(data) + 1_000, 1 << 60) == len(data)


@both
@given(keys=KEYS.filter(bool), change=st.integers(0, 39), begin=st.integers(0, 5_000_000))
def test_times_are_compared(checks: Any, keys: list[Any], change: int, begin: int) -> None:
    """Seconds since the file's first time; entries of other messages are passed over."""
    pairs = units(keys)
    times = [at * 1000 for _, at in pairs]
    seconds = [max(at - begin, 0) // 1000 if begin else 0 for at in times]
    wrong = change % len(pairs)
    seconds[wrong] += 1
    entries = b"".join(
        struct.pack(">iqii", *pair, late, 0) for pair, late in zip(pairs, seconds, strict=True)
    )
    theirs = b"".join(queues.KEY.pack(*pair, at) for pair, at in zip(pairs, times, strict=True))
    assert checks.wrong_times(entries, theirs, begin) == (1, wrong * 20)
    others = b"".join(queues.KEY.pack(7, at, 5) for at in (1, 10**9))
    assert checks.wrong_times(entries, others, begin) == (0, -1)


@both
@given(keys=KEYS)
def test_what_was_put_is_linked_well(checks: Any, keys: list[Any]) -> None:
    """Nothing to complain of, also of a file that goes on growing behind the entries that count."""
    index = new_index(units(keys))
    (following,) = struct.unpack_from(">i", index, 36)
    following = max(following, 1)
    assert checks.check_links(index, SLOTS, following, False) == (0, -1, 0, -1, 0, -1)
    for before in range(1, following):
        assert checks.check_links(index, SLOTS, before, True) == (0, -1, 0, -1, 0, -1)


@both
@given(
    keys=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 3)), min_size=1, max_size=40), data=st.data()
)
def test_a_spoiled_link_is_found(checks: Any, keys: list[Any], data: st.DataObject) -> None:
    """Any other value in any slot or link."""
    index = new_index(units(keys))
    (following,) = struct.unpack_from(">i", index, 36)
    at = data.draw(
        st.sampled_from([40 + slot * 4 for slot in range(SLOTS)])
        | st.integers(1, following - 1).map(lambda number: ENTRIES_AT + number * 20 + 16)
    )
    before = struct.unpack_from(">i", index, at)[0]
    value = data.draw(
        (st.integers(-2, following + 2) | st.integers(-(2**31), 2**31 - 1)).filter(lambda one: one != before)
    )
    struct.pack_into(">i", index, at, value)
    found = checks.check_links(index, SLOTS, following, False)
    assert found.bad_slots + found.bad_links + found.unreached > 0


@both
def test_a_file_too_short_for_its_entries_is_refused(checks: Any) -> None:
    for slots, following in ((0, 1), (SLOTS, 0), (SLOTS, ENTRIES + 1)):
        with pytest.raises(ValueError, match="index file"):
            checks.check_links(bytearray(ENTRIES_AT + ENTRIES * 20), slots, following, False)
