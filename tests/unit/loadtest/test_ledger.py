"""The load test's ledger notices what is lost, changed and repeated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.ledger import HEAD, Ledger


@given(
    sent=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), unique=True),
    acknowledged=st.integers(0, 60),
    received=st.lists(st.integers(0, 59)),
    late=st.booleans(),
)
def test_counts(sent: list[tuple[int, int]], acknowledged: int, received: list[int], late: bool) -> None:
    """Whatever is received, in any order, often, before or after the acknowledgement."""
    ledger = Ledger()
    bodies = [ledger.body(producer, number, 7, 100) for producer, number in sent]
    came = [index for index in received if index < len(sent)]
    if not late:
        for producer, number in sent[:acknowledged]:
            ledger.acknowledge(producer, number)
    assert all(ledger.receive(bodies[index]) == 7 for index in came)
    if late:
        for producer, number in sent[:acknowledged]:
            ledger.acknowledge(producer, number)
    promised = set(range(len(sent[:acknowledged])))
    assert ledger.counts() == {
        "acknowledged": len(promised),
        "received": len(set(came)),
        "lost": len(promised - set(came)),
        "changed": 0,
        "repeated": len(came) - len(set(came)),
    }


@pytest.mark.parametrize(
    "damage",
    [lambda body: body[:-1] + b"?", lambda body: body[:40] + b"?" + body[41:], lambda body: body[:92]],
)
def test_a_changed_body_is_noticed(damage: Callable[[bytes], bytes]) -> None:
    """Any byte behind the head, or an end that is missing."""
    ledger = Ledger()
    ledger.receive(damage(ledger.body(1, 0x0102030405060708, 7, 100)))
    assert (ledger.counts()["changed"], ledger.counts()["received"]) == (1, 1)


def test_others_messages_are_none_of_ours() -> None:
    """Those of earlier runs, and of whoever else uses the topic."""
    ledger = Ledger()
    for body in (b"", b"hello", bytes(HEAD.size), Ledger().body(0, 0, 7, 100)):
        assert ledger.receive(body) is None
    assert ledger.counts()["received"] == 0


def test_a_body_is_as_long_as_asked() -> None:
    """But holds its head."""
    ledger = Ledger()
    assert [len(ledger.body(0, 0, 7, size)) for size in (0, 32, 33, 4096)] == [HEAD.size, 32, 33, 4096]
