"""What was sent is what is stored, or the figures are worth nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from loadtest.machine import CpuUse
from loadtest.native import require_same, server_us
from loadtest.worker import pool, quantiles


def test_same_bodies_in_another_order() -> None:
    require_same(Counter([b"a", b"b", b"a"]), Counter([b"b", b"a", b"a"]))


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ([b"a", b"b"], "1 are missing, 0 are too many"),
        ([b"a", b"b", b"a", b"a"], "0 are missing, 1 are too many"),
        ([b"a", b"b", b"x"], "1 are missing, 1 are too many"),
    ],
    ids=["lost", "doubled", "changed"],
)
def test_any_difference_is_refused(stored: list[bytes], words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        require_same(Counter([b"a", b"b", b"a"]), Counter(stored))


def test_bodies_are_the_same_in_every_process_and_all_different() -> None:
    """Whoever checks makes them again instead of being told."""
    assert pool(128, 50) == pool(128, 50)
    assert len(set(pool(16, 500))) == 500


def test_quantiles() -> None:
    """In microseconds; the last one is the longest."""
    found = quantiles([number * 1_000 for number in range(1, 1_001)])
    assert found == {"p50_us": 501, "p90_us": 901, "p99_us": 991, "p999_us": 1000, "max_us": 1000}


def test_a_message_never_costs_nothing() -> None:
    """A server that got no processor in a very short run has used less than its clock counts: one step."""
    assert server_us(CpuUse(1.0, 0.5, 0.0, 0.0, 0.0), 1_000) == pytest.approx(500)
    assert 0 < server_us(CpuUse(1.0, 0.0, 0.0, 0.0, 0.0), 1_000) <= 1_000
