"""Send-back: how often, after which delay, and when it is over."""

from random import Random

import pytest

from actormq.broker.delay import DelayLevels
from actormq.broker.groups import GroupConfig
from actormq.broker.retry import Original, decode_send_back, not_found, place, target
from actormq.errors import RequestError

LEVELS = DelayLevels("1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h")
GROUP = GroupConfig(group_name="g", retry_queue_nums=2)


def fields(**more: str) -> dict[str, str]:
    return {"offset": "4096", "group": "g", "delayLevel": "0", **more}


def original(times: int = 0, **properties: str) -> Original:
    return Original("orders", properties, times, "AB" * 16)


@pytest.mark.parametrize(("times", "queue"), [(0, 2), (1, 3), (15, 17)])
def test_each_try_waits_longer(times: int, queue: int) -> None:
    """Level 0 means 3 + the tries so far: 10 s, 30 s, 1 m, … 2 h."""
    request = decode_send_back(fields(), 479)
    goal = target(request, GROUP, original(times))
    placed = place(request, goal, original(times), LEVELS, Random(1))
    assert (placed.topic, placed.queue_id) == ("SCHEDULE_TOPIC_XXXX", queue)
    assert placed.properties["REAL_TOPIC"] == "%RETRY%g"
    assert placed.properties["REAL_QID"] in ("0", "1")
    assert placed.properties["RETRY_TOPIC"] == "orders"
    assert placed.properties["ORIGIN_MESSAGE_ID"] == "AB" * 16
    assert placed.properties["WAIT"] == "false"


def test_a_level_given_by_the_client_is_used() -> None:
    """The consumer may choose how long to wait."""
    request = decode_send_back(fields(delayLevel="5"), 479)
    assert place(request, target(request, GROUP, original()), original(), LEVELS, Random(1)).queue_id == 4


@pytest.mark.parametrize(
    ("times", "level", "limit", "version", "dead"),
    [
        (16, "0", None, 479, True),
        (15, "0", None, 479, False),
        (0, "-1", None, 479, True),
        (3, "0", "3", 479, True),
        (3, "0", "3", 120, False),
        (20, "0", "30", 479, False),
    ],
)
def test_when_it_is_over(times: int, level: str, limit: str | None, version: int, dead: bool) -> None:
    """The group's maximum, or the client's if it is new enough to mean it; a negative level at once."""
    more = {"maxReconsumeTimes": limit} if limit else {}
    request = decode_send_back(fields(delayLevel=level, **more), version)
    assert target(request, GROUP, original(times)).dead is dead


def test_a_dead_letter_is_stored_at_once() -> None:
    """One queue, no delay, even if the message once had one; its first origin is kept."""
    request = decode_send_back(fields(delayLevel="-1"), 479)
    letter = original(2, DELAY="4", RETRY_TOPIC="first", ORIGIN_MESSAGE_ID="CD" * 16)
    placed = place(request, target(request, GROUP, letter), letter, LEVELS, Random(1))
    assert (placed.topic, placed.queue_id) == ("%DLQ%g", 0)
    assert "DELAY" not in placed.properties
    assert placed.properties["RETRY_TOPIC"] == "first"
    assert placed.properties["ORIGIN_MESSAGE_ID"] == "CD" * 16


def test_requests_that_cannot_be_read() -> None:
    """Missing or senseless fields are answered, not guessed."""
    for broken in ({}, {"offset": "x", "group": "g", "delayLevel": "0"}):
        with pytest.raises(RequestError):
            decode_send_back(broken, 479)
    assert not_found(77).response_code == 1
