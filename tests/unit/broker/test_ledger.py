"""The ledger: what was put is found again, whatever the moment of death."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.broker.ledger import Ledger, LedgerFull, Row, needed_bytes, record_bytes

keys = st.one_of(st.sampled_from([b"a", b"another key"]), st.binary(min_size=1, max_size=12))
numbers = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(keys, numbers, numbers), max_size=30), st.integers(0, 30))
def test_everything_put_is_found_by_the_next_life(
    puts: list[tuple[bytes, int, int]], died_after: int
) -> None:
    """The last value of each key, in any number of lives."""
    memory = memoryview(bytearray(8192))
    ledger = Ledger(memory)
    for n, (key, value, stamp) in enumerate(puts):
        if n == died_after:
            ledger = Ledger(memory)
        ledger.put(key, value, stamp)
    expected = {key: Row(key, value, stamp) for key, value, stamp in puts}
    assert {row.key: row for row in Ledger(memory).found()} == expected


@given(st.lists(st.tuples(keys, numbers), min_size=1, max_size=6), keys, numbers, st.integers(0, 200))
def test_a_writer_killed_half_way_loses_no_other_value(
    puts: list[tuple[bytes, int]], key: bytes, value: int, stored_bytes: int
) -> None:
    """Any part of the last put leaves every other key its value, and its own key the old or the new."""
    before = memoryview(bytearray(4096))
    ledger = Ledger(before)
    for each, number in puts:
        ledger.put(each, number)
    old = {row.key: row.value for row in Ledger(memoryview(bytearray(before))).found()}
    after = memoryview(bytearray(before))
    Ledger(after).put(key, value)
    torn = bytearray(before)
    changed = [at for at in range(len(torn)) if torn[at] != after[at]]
    for at in changed[:stored_bytes]:
        torn[at] = after[at]
    found = {row.key: row.value for row in Ledger(memoryview(torn)).found()}
    for each in old.keys() - {key}:
        assert found[each] == old[each]
    assert found.get(key) in (old.get(key), value)


def test_it_says_when_it_is_full_and_goes_on_with_the_keys_it_has() -> None:
    """No room for a new key is an error; a known key always fits."""
    ledger = Ledger(memoryview(bytearray(8 + record_bytes(b"a") + 16)))
    ledger.put(b"a", 1)
    with pytest.raises(LedgerFull):
        ledger.put(b"b", 1)
    ledger.put(b"a", 2)
    assert ledger.free_bytes == 16


def test_memory_that_holds_something_else_is_foreign() -> None:
    """It is not read as if it were ours."""
    ledger = Ledger(memoryview(bytearray(b"something else" + bytes(100))))
    assert ledger.foreign
    assert ledger.found() == []


def test_a_new_ledger_has_room_for_as_much_again() -> None:
    """Compacting never ends in another compaction at once."""
    rows = [Row(b"%05d" % n, n, 0) for n in range(5000)]
    ledger = Ledger(memoryview(bytearray(needed_bytes(rows))))
    for row in rows:
        ledger.put(*row)
    assert ledger.free_bytes >= sum(record_bytes(row.key) for row in rows)
