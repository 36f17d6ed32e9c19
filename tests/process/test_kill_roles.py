"""`kill -9` of each role of a loaded broker, once, and of the supervisor: nothing acknowledged is lost.

Three gateways, 16 queues, two groups with running consumers, keyed order.  `test_kill_matrix` does the same
twenty times, at every fault point, with roles that sleep, and with sync flush (``make soak``).
"""

from __future__ import annotations

import pytest
from process.broker_load import ROLES, Load, broker_under_load
from process.load_story import Result


def judge(load: Load, name: str) -> Result:
    """End the load; nothing was lost, and nobody died of himself."""
    verdict = load.finish()
    assert verdict.clean, verdict
    assert "Traceback" not in "".join(load.dev.errors)
    result = load.result(name, verdict)
    print(result.as_json())
    return result


@pytest.mark.timeout(240)
def test_any_role_may_die_once_and_nothing_is_lost() -> None:
    """Each role in turn is killed under load; the checker's verdict over the whole run is clean.

    The coordinator's death moves no queue, and no offset goes back.
    """
    with broker_under_load() as load:
        for role in ROLES:
            load.kill(role)
            load.await_flow(load.faults[-1].at_ns)
        assert {load.incarnations()[role] for role in ROLES} == {2}
        costs = {cost.role: cost for cost in judge(load, "each once").costs}
        assert not costs["coordinator"].moves


@pytest.mark.timeout(120)
def test_the_supervisors_death_ends_everything_and_loses_nothing() -> None:
    """`kill -9` of the supervisor: all gone (how soon, the kill matrix sees); the next start has every
    message."""
    with broker_under_load() as load:
        load.kill_supervisor()
        load.restart()
        load.await_flow(load.faults[-1].back_ns)
        judge(load, "supervisor")
