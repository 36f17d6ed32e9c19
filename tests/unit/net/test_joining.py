"""Parts are joined in memory that is used again, and never while somebody holds it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.net import joining
from actormq.net.joining import Joiner


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "SHORT_BYTES", 4)


@given(
    st.lists(st.lists(st.binary(min_size=0, max_size=40), min_size=1, max_size=4), max_size=40),
    st.randoms(use_true_random=False),
)
def test_what_is_held_does_not_change(joins: list[list[bytes]], random: Random) -> None:
    """Held by itself or by a part of it, for any time, whatever is joined meanwhile."""
    joiner = Joiner(buffer_bytes=64, buffers_max=3)
    held: list[tuple[memoryview, bytes]] = []
    for parts in joins:
        joined, whole = joiner.join(parts), b"".join(parts)
        assert bytes(joined) == whole
        cut = random.randint(0, len(whole))
        held.append((memoryview(joined)[cut:], whole[cut:]))
        del joined
        if random.random() < 0.6:
            held.pop(random.randrange(len(held)))
        assert all(bytes(view) == expected for view, expected in held)


def test_memory_is_used_again_once_it_is_let_go() -> None:
    joiner = Joiner(buffer_bytes=64, buffers_max=2)

    def memory(view: object) -> int:
        assert isinstance(view, memoryview)
        return id(view.obj)

    first, second = joiner.join([b"12345"]), joiner.join([b"12345"])
    used = {memory(first), memory(second)}
    assert len(used) == 2
    assert isinstance(joiner.join([b"12345"]), bytes), "as many as there may be are in use"
    del first
    third = joiner.join([b"123", b"45"])
    assert memory(third) in used
    assert memory(third) != memory(second)


def test_what_is_long_or_short_has_memory_of_its_own() -> None:
    joiner = Joiner(buffer_bytes=8, buffers_max=2)
    assert [type(joiner.join([b"x" * size])) for size in (3, 4, 8, 9)] == [
        bytes,
        memoryview,
        memoryview,
        bytes,
    ]
