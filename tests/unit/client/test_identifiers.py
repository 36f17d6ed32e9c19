"""Client ids, unique keys and offset message ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.client.identifiers import (
    UniqueKeys,
    client_id,
    format_offset_message_id,
    parse_offset_message_id,
)
from actormq.errors import PeerError
from actormq.message import LogOffset

NOON = 1_763_812_800_000  # 2025-11-22T12:00:00Z


def test_a_client_id_names_address_and_instance() -> None:
    """As RocketMQ: address@instance, and without an instance name the process and its start."""
    assert client_id("10.0.0.1", 7, 99) == "10.0.0.1@7#99"
    assert client_id("10.0.0.1", 7, 99, "billing") == "10.0.0.1@billing"


def test_a_unique_key_has_the_layout_of_rocketmq() -> None:
    """Address, process, salt, milliseconds since the month began, counter: 32 upper-case digits."""
    keys = UniqueKeys(bytes([10, 0, 0, 255]), 0x12345, 0xCAFEBABE)
    first, second = keys.next(NOON), keys.next(NOON)
    assert first[:20] == "0A0000FF2345CAFEBABE"
    assert int(first[20:28], 16) == NOON - 1_761_955_200_000
    assert (first[28:], second[28:]) == ("0000", "0001")


def test_unique_keys_go_on_over_the_end_of_a_month() -> None:
    """The month's beginning is computed anew when it has passed, also in December."""
    keys = UniqueKeys(bytes(4), 1, 1)
    december_end = 1_767_225_600_000 - 1  # 2025-12-31T23:59:59.999Z
    assert int(keys.next(december_end)[20:28], 16) == 31 * 86_400_000 - 1
    assert int(keys.next(december_end + 1)[20:28], 16) == 0


def test_unique_keys_are_unique() -> None:
    keys = UniqueKeys(bytes(4), 1, 1)
    assert len({keys.next(NOON) for _ in range(10_000)}) == 10_000


@given(st.binary(min_size=4, max_size=4), st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1))
def test_offset_message_ids_are_read_as_they_are_written(address: bytes, port: int, offset: int) -> None:
    text = format_offset_message_id(address + port.to_bytes(4, "big"), LogOffset(offset))
    place = parse_offset_message_id(text)
    assert (place.host, place.port, place.log_offset) == (".".join(map(str, address)), port, offset)


def test_an_ipv6_offset_message_id() -> None:
    text = format_offset_message_id(bytes(15) + b"\1" + (10911).to_bytes(4, "big"), LogOffset(5))
    assert len(text) == 56
    assert parse_offset_message_id(text).host == "::1"


@pytest.mark.parametrize("text", ["", "zz", "00" * 15, "00" * 17])
def test_what_is_no_offset_message_id_is_refused(text: str) -> None:
    with pytest.raises(PeerError):
        parse_offset_message_id(text)


# --- runs of keys ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(1, 30_000), st.integers(0, 30_000)), max_size=20))
def test_no_key_is_ever_made_twice(steps: list[tuple[int, int, int]]) -> None:
    """However many are asked for in a millisecond, whatever is given back, and with a clock set back."""
    keys = UniqueKeys(bytes(4), 1, 1)
    made: set[str] = set()
    count, now_ms = 0, NOON
    for pass_ms, wanted, used in steps:
        now_ms += pass_ms
        run = keys.reserve(now_ms, wanted)
        single = keys.next(now_ms) if used % 2 else None
        used = min(used, wanted)
        keys.give_back(run, used)
        new = {f"{run.prefix}{run.first + index:04X}" for index in range(0, used, 997)}
        if single is not None:
            new.add(single)
        assert not new & made
        assert all(len(key) == 32 for key in new)
        count += len(new)
        made |= new
    assert len(made) == count


def test_a_millisecond_has_65536_keys() -> None:
    keys = UniqueKeys(bytes(4), 1, 1)
    whole = keys.reserve(NOON, 65_536)
    after = keys.reserve(NOON, 1)
    assert (whole.first, after.first) == (0, 0)
    assert int(after.prefix[20:], 16) == int(whole.prefix[20:], 16) + 1


def test_keys_that_were_not_used_are_used_by_the_next() -> None:
    """But only the last ones made: others lie in between otherwise."""
    keys = UniqueKeys(bytes(4), 1, 1)
    first = keys.reserve(NOON, 100)
    keys.give_back(first, 3)
    second = keys.reserve(NOON, 100)
    assert second.first == 3
    keys.next(NOON)
    keys.give_back(second, 1)
    assert keys.reserve(NOON, 1).first == 104
