"""Settings that depend on the machine."""

from __future__ import annotations

import os

import pytest

from actormq.config import GatewayConfig, gateways_for


def test_gateways_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this process may use, not those of the machine; and what somebody says counts."""
    assert [gateways_for(cores) for cores in (1, 2, 3, 4, 5, 6, 64)] == [1, 1, 1, 2, 2, 3, 3]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert GatewayConfig().count == 2
    assert GatewayConfig(count=7).count == 7
