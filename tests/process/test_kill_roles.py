"""`kill -9` and SIGSTOP of each role of a loaded broker: nothing acknowledged is lost, service returns.

Three gateways, 16 queues, two groups with running consumers, keyed order.  The default suite kills each role
once or twice; ``make soak`` as often as ACTORMQ_KILLS says (default 20).
"""

from __future__ import annotations

import os
import random
import signal
import time

import psutil
import pytest
from actormq_process import start_dev
from process.broker_load import Load, await_true, broker_under_load, processes_of

ROLES = (
    "writer", "flusher", "dispatcher", "holder", "coordinator", "scheduler", "cleaner", "nameserver",
    "gateway-0", "gateway-1",
)  # fmt: skip


def kill_and_wait(load: Load, role: str) -> None:
    """Kill a role and return when its successor runs."""
    before = load.roles()[role]
    os.kill(before, signal.SIGKILL)
    await_true(f"a new {role}", lambda: _pid(load, role) not in (0, before))


def _runs(process: psutil.Process) -> bool:
    """Whether a process still does anything; one that nobody has reaped yet (a container's init) does not."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _pid(load: Load, role: str) -> int:
    try:
        return load.roles().get(role, 0)
    except OSError:  # the gateway that we asked is the one that died
        return 0


@pytest.mark.timeout(240)
def test_any_role_may_die_once_and_nothing_is_lost() -> None:
    """Each role in turn is killed under load; the checker's verdict over the whole run is clean."""
    with broker_under_load() as load:
        for role in ROLES:
            kill_and_wait(load, role)
            load.await_progress()
        verdict = load.finish()
        assert verdict.clean, verdict
        assert verdict.acknowledged > len(ROLES) * 200


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_die_again_and_again(role: str) -> None:
    """One role is killed many times at random moments."""
    with broker_under_load() as load:
        for _ in range(int(os.environ.get("ACTORMQ_KILLS", "20"))):
            time.sleep(random.uniform(0, 0.5))  # a random moment is what is tested here
            kill_and_wait(load, role)
            load.await_progress(100)
        verdict = load.finish()
        print(role, verdict)
        assert verdict.clean, verdict


@pytest.mark.timeout(120)
def test_the_supervisors_death_ends_everything_and_loses_nothing() -> None:
    """`kill -9` of the supervisor: all gone within a second; the next start has every message."""
    with broker_under_load() as load:
        family = processes_of(load.dev)
        os.kill(load.dev.process.pid, signal.SIGKILL)
        await_true("every process is gone", lambda: not any(map(_runs, family)), seconds=1.0)
        load.dev.process.wait()
        again = start_dev(load.dev.data_dir, gateways=3, like=load.dev)
        load.dev = again
        load.await_progress()
        verdict = load.finish()
        assert verdict.clean, verdict


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_that_sleeps_is_waited_for(role: str) -> None:
    """SIGSTOP for 10 s: nothing is lost, and nobody is replaced before its death."""
    with broker_under_load() as load:
        pid = load.roles()[role]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(10)  # the length of the sleep is what is tested here
        os.kill(pid, signal.SIGCONT)
        load.await_progress()
        assert load.roles()[role] == pid
        verdict = load.finish()
        print(role, verdict)
        assert verdict.clean, verdict
