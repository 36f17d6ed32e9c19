"""The kill matrix: every role of a loaded broker dies twenty times, dies at each of its points, and sleeps.

Three gateways, 16 queues, two groups with running consumers, keyed order; judged by the checker.  At the end
a table is printed: of each run the longest wait of any producer thread for its next acknowledgement after a
fault, the same for deliveries, and how long a successor took.  Nothing here passes or fails by time.

``make soak``; ACTORMQ_KILLS says how often a role dies (20), ACTORMQ_KEEP_HISTORIES where histories are kept.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from process.broker_load import (
    CREATE_TOPIC,
    DELAYED_A_SECOND,
    DELETE_TOPIC,
    GATEWAYS,
    MAX_OFFSET,
    ROLES,
    Load,
    broker_under_load,
    call,
)
from process.load_story import Result, table

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

KILLS = int(os.environ.get("ACTORMQ_KILLS", "20"))
SLEEP_S = 10.0
STORE_ROLES = ("writer", "flusher", "dispatcher")
ACTORS = Path(__file__).parent.parent.parent / "actormq" / "actors"
Record = Callable[[Load, str], Result]


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[list[Result]]:
    """Collects what happened, and says it at the end."""
    found: list[Result] = []
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\n" + table(found))
        for result in found:
            print(result.as_json())


@pytest.fixture
def record(results: list[Result]) -> Record:
    """Return what ends a load, judges it and keeps the result."""

    def end(load: Load, name: str) -> Result:
        verdict = load.finish()
        result = load.result(name, verdict)
        results.append(result)
        assert verdict.clean, verdict
        assert "Traceback" not in "".join(load.dev.errors)
        return result

    return end


def kill_at_random(load: Load, role: str) -> None:
    """Kill a role again and again; each time all is well before the next."""
    chance = random.Random(role)
    for _ in range(KILLS):
        # Some messages more, so that the moment is a random one.
        load.await_flow(time.monotonic_ns(), chance.randrange(1, 40))
        load.kill(role)
        load.await_flow(load.faults[-1].at_ns)
    incarnations = load.incarnations()
    assert incarnations.pop(role) == KILLS + 1
    assert set(incarnations.values()) == {1}, f"others died, too: {incarnations}"


RANDOM_KILLS = [*((role, "async") for role in ROLES), *((role, "sync") for role in STORE_ROLES)]


@pytest.mark.parametrize(("role", "flush"), RANDOM_KILLS)
def test_a_role_may_die_again_and_again(role: str, flush: str, record: Record) -> None:
    """Nothing lost, invented, stored twice or out of order; offsets never go back.

    The coordinator's death moves no queue: its consumers keep what they have until it knows them again.
    """
    with broker_under_load(flush=flush) as load:
        kill_at_random(load, role)
        result = record(load, f"{role} {flush}")
        if role == "coordinator":
            assert not result.worst("moves"), load.story.moves


@pytest.mark.parametrize("flush", ["async", "sync"])
def test_two_roles_may_die_at_once(flush: str, record: Record) -> None:
    """Whatever two they are, again and again."""
    chance = random.Random(flush)
    with broker_under_load(flush=flush) as load:
        for _ in range(KILLS):
            load.await_flow(time.monotonic_ns(), chance.randrange(1, 40))
            load.kill(*chance.sample(ROLES, 2))
            load.await_flow(load.faults[-1].at_ns)
        record(load, f"two at once {flush}")


@pytest.mark.parametrize("flush", ["async", "sync"])
def test_the_supervisor_may_die_again_and_again(flush: str, record: Record) -> None:
    """Everybody goes with it within a second; each next start has all that was acknowledged."""
    with broker_under_load(flush=flush) as load:
        for _ in range(KILLS):
            load.await_flow(time.monotonic_ns(), random.Random(flush).randrange(1, 40))
            load.kill_supervisor(gone_s=1.0)
            load.restart()
            load.await_flow(load.faults[-1].back_ns)
        record(load, f"supervisor {flush}")


@pytest.mark.parametrize("role", ROLES)
def test_a_role_that_sleeps_is_waited_for(role: str, record: Record) -> None:
    """SIGSTOP for 10 s: nothing is lost, and nobody is replaced before its death."""
    with broker_under_load() as load:
        load.hold(role, SLEEP_S)
        load.await_flow(load.faults[-1].back_ns)
        assert set(load.incarnations().values()) == {1}
        record(load, f"{role} stopped")


# --- fault points ------------------------------------------------------------------------------------------

SMALL_FILES = {"ACTORMQ_STORE_LOG_FILE_BYTES": str(1 << 20), "ACTORMQ_STORE_BODY_BYTES_MAX": str(256 << 10)}
FORGETFUL = {
    **SMALL_FILES,
    "ACTORMQ_STORE_LOG_FILE_BYTES": str(2 << 20),
    "ACTORMQ_STORE_RETENTION_HOURS": "0",
    "ACTORMQ_STORE_DELETE_WHEN": ";".join(map(str, range(24))),
    "ACTORMQ_STORE_CLEAN_INTERVAL_MS": "2000",
}
"""Whole files that are flushed and dispatched go, read or not: so large that consumers are not a file behind
even on a machine with much else to do."""


def points(role: str) -> list[str]:
    """Return the fault points of a role, as its source has them."""
    path = ACTORS / f"{role}.py"
    source = (path if path.exists() else ACTORS / role / "role.py").read_text()
    return list(dict.fromkeys(re.findall(r'faults\.point\("([^"]+)"\)', source)))


DELETION = ("coordinator.rows-closed", "coordinator.deletion-saved", "dispatcher.queue-removed")
SPECIAL = {"writer.recovered", "flusher.marked-clean", *DELETION}
"""Reached by what a test of its own does."""
SELDOM = re.compile(
    r"cleaner\.|\w+\.offsets|writer\.blank|flusher\.(?!log)|nameserver\.(asked|handled|scanning)"
)
"""Reached every few seconds; without sync flush so are all points of the flusher."""
ARMED_ROLES = (
    "writer", "flusher", "dispatcher", "holder", "coordinator", "scheduler", "cleaner", "gateway",
    "nameserver",
)  # fmt: skip
POINTS = [name for role in ARMED_ROLES for name in points(role) if name not in SPECIAL]
POOL = "flusher.pool-"
"""There in async mode only."""
SETTINGS = {
    POOL: {**SMALL_FILES, "ACTORMQ_STORE_POOL_ENABLED": "true"},
    "dispatcher.units-": {**SMALL_FILES, "ACTORMQ_STORE_QUEUE_EXT": "true"},
    "cleaner.": FORGETFUL,
}
"""What the points that begin so need to be reached."""


def settings_of(point: str) -> dict[str, str]:
    return next((found for begin, found in SETTINGS.items() if point.startswith(begin)), SMALL_FILES)


def roles_of(point: str) -> list[str]:
    """Return who comes by a point; all gateways do."""
    role = point.partition(".")[0]
    return [f"gateway-{number}" for number in range(GATEWAYS)] if role == "gateway" else [role]


def hits_of(point: str, flush: str) -> int:
    """Return how often a point is passed before the death there: under way, not in the first moment."""
    role = point.partition(".")[0]
    if SELDOM.match(point) or (flush == "async" and role == "flusher"):
        span = (1, 4)
    else:
        # Each ledger has some rows before there is any load.
        # A name server turns once a second, and for each question.
        spans = {"coordinator": (30, 80), "scheduler": (20, 40), "nameserver": (15, 30)}
        span = spans.get(role, (50, 300))
    return random.Random(point).randrange(*span)


def die_at(point: str, flush: str, record: Record) -> None:
    hits, env = hits_of(point, flush), settings_of(point)
    # What is delayed would be gone with its file before it is due.
    delayed = 0 if env is FORGETFUL else DELAYED_A_SECOND
    env = {**env, "ACTORMQ_FAULT": f"{point}:{hits}"}
    with broker_under_load(flush=flush, env=env, delayed_a_second=delayed) as load:
        for role in roles_of(point):
            load.await_incarnation(role, 2)
        load.await_flow(time.monotonic_ns())
        load.note_deaths(len(roles_of(point)))
        record(load, f"{point}:{hits} {flush}")


@pytest.mark.parametrize("point", POINTS)
def test_death_at_each_point(point: str, record: Record) -> None:
    """Each role dies between any two of its steps."""
    die_at(point, "async", record)


@pytest.mark.parametrize(
    "point",
    [name for name in POINTS if name.partition(".")[0] in STORE_ROLES and not name.startswith(POOL)],
)
def test_death_at_each_point_of_the_store_in_sync_mode(point: str, record: Record) -> None:
    """The same while every acknowledgement waits for the disk."""
    die_at(point, "sync", record)


def test_death_of_a_writer_that_recovers_from_a_death(record: Record) -> None:
    """The second dies in the middle of what the first left half done."""
    armed = "writer.records-written:100,2@writer.recovered"
    with broker_under_load(env={"ACTORMQ_FAULT": armed}) as load:
        load.await_incarnation("writer", 3)
        load.await_flow(time.monotonic_ns())
        load.note_deaths()
        record(load, armed)


def test_death_of_the_flusher_at_the_end_of_a_clean_stop(record: Record) -> None:
    """It had marked the store as clean, and so it is."""
    with broker_under_load(env={"ACTORMQ_FAULT": "flusher.marked-clean"}) as load:
        assert load.end_broker() != 0
        load.restart()
        load.await_flow(load.faults[-1].back_ns)
        record(load, "flusher.marked-clean")


def test_death_of_recovery_at_each_point(record: Record) -> None:
    """Each is a failed start and nothing else; the next recovery begins from there, clients still call."""
    with broker_under_load() as load:
        load.kill_supervisor()
        # Something for recovery to end.
        deleted = load.dev.data_dir / "config" / "deletedTopics.json"
        deleted.write_text('{"deletedTopics": {"half-deleted": -1}}')
        for point in points("recovery"):
            with pytest.raises(AssertionError, match="not ready"):
                load.restart({"ACTORMQ_FAULT": point})
        load.restart()
        load.await_flow(load.faults[-1].back_ns)
        record(load, "recovery.*")


def topic_request(topic: str) -> tuple[int, dict[str, str]]:
    fields = {
        "topic": topic, "defaultTopic": "TBW102", "readQueueNums": "4", "writeQueueNums": "4", "perm": "6",
        "topicFilterType": "SINGLE_TAG", "order": "false",
    }  # fmt: skip
    return CREATE_TOPIC, fields


def test_death_while_topics_are_made(record: Record) -> None:
    """Rows are open, and no topic has them yet."""
    point = "coordinator.rows-opened:200"
    with broker_under_load(env={"ACTORMQ_FAULT": point}) as load:
        number = 0
        while load.incarnations()["coordinator"] == 1:
            number += 1
            answer = call(load.dev.broker, *topic_request(f"other-{number}"))
            assert answer.code in (0, 1, 2), answer.remark  # an answer that died with it is an error
        for other in range(1, number + 1):
            assert call(load.dev.broker, *topic_request(f"other-{other}")).code == 0
        load.await_flow(time.monotonic_ns())
        load.note_deaths()
        record(load, point)


@pytest.mark.parametrize("point", DELETION)
def test_death_while_topics_are_deleted(point: str, record: Record) -> None:
    """The deletion is ended by the successor, or was not begun; a topic made again is empty."""
    role = point.partition(".")[0]
    with broker_under_load(env={"ACTORMQ_FAULT": f"{point}:3"}) as load:
        for number in count():
            code, fields = topic_request(f"other-{number}")
            assert call(load.dev.broker, code, fields).code == 0
            answer = call(load.dev.broker, DELETE_TOPIC, {"topic": f"other-{number}"})
            assert answer.code in (0, 1, 2), answer.remark  # an answer that died with it is an error
            if load.incarnations()[role] != 1:
                break
        load.await_incarnation(role, 2)
        for other in range(number + 1):
            assert call(load.dev.broker, DELETE_TOPIC, {"topic": f"other-{other}"}).code == 0
            assert call(load.dev.broker, *topic_request(f"other-{other}")).code == 0
            answer = call(load.dev.broker, MAX_OFFSET, {"topic": f"other-{other}", "queueId": "0"})
            assert answer.fields == {"offset": "0"}
        load.await_flow(time.monotonic_ns())
        load.note_deaths()
        record(load, f"{point}:3")
