"""Which sends are refused, with which code, and where the others go."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.broker.sending import (
    PutStatus,
    check_group_name,
    check_send_topic,
    check_topic_name,
    choose_queue,
    group_missing,
    message_status,
    put_response,
    retry_send,
    topic_missing,
)
from actormq.broker.tables import GroupEntry, TopicEntry
from actormq.errors import RequestError, ResponseCode


def topic(name: str = "t", queues: int = 4, *, order: bool = False) -> TopicEntry:
    return TopicEntry(name, 6, queues, queues, 0, order, "SINGLE_TAG", {}, list(range(queues)), [1] * queues)


def test_put_statuses_answer_with_rocketmqs_codes() -> None:
    """The table of broker.md 3.4."""
    assert [int(put_response(status)[0]) for status in PutStatus] == [0, 13, 13, 14, 1, 17, 2]
    assert (put_response(PutStatus.OS_PAGE_CACHE_BUSY)[1] or "").startswith("[PC_SYNCHRONIZED]broker busy")


@pytest.mark.parametrize("name", ["", "  ", "a b", "é", "a/b", "x" * 128])
def test_illegal_topic_names_are_invalid_parameters(name: str) -> None:
    """Blank, foreign characters, too long: 29."""
    with pytest.raises(RequestError) as error:
        check_topic_name(name)
    assert error.value.response_code == ResponseCode.INVALID_PARAMETER
    assert "blank" in error.value.remark or f"The specified topic: {name}, " in error.value.remark


def test_a_remark_does_not_repeat_a_megabyte() -> None:
    """A name of any length is refused in one line."""
    with pytest.raises(RequestError) as error:
        check_topic_name("x" * (1 << 20))
    assert len(error.value.remark) < 400


def test_legal_names_pass() -> None:
    """Letters, digits, percent, bar, minus, underscore; a retry topic may be longer than a plain one."""
    check_topic_name("aZ09%|-_")
    check_topic_name("x" * 127)
    check_topic_name("%RETRY%" + "g" * 120)
    check_topic_name("%RETRY%" + "g" * 200)
    check_group_name("g" * 120)
    with pytest.raises(RequestError):
        check_group_name("g" * 121)


@pytest.mark.parametrize("name", ["SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC", "SELF_TEST_TOPIC"])
def test_system_topics_take_no_sends(name: str) -> None:
    """A client cannot put messages where only the broker may."""
    with pytest.raises(RequestError) as error:
        check_send_topic(name, topic(name), 6)
    assert error.value.response_code == ResponseCode.NO_PERMISSION


def test_only_ordered_topics_are_refused_by_a_broker_that_is_not_writable() -> None:
    """RocketMQ's rule: others are kept away by the route."""
    check_send_topic("t", topic(), 4)
    with pytest.raises(RequestError) as error:
        check_send_topic("t", topic(order=True), 4)
    assert error.value.response_code == ResponseCode.NO_PERMISSION


@given(st.integers(1, 20), st.integers(-3, 30), st.integers())
def test_a_queue_is_one_of_the_topic(queues: int, wish: int, seed: int) -> None:
    """A negative wish leaves the choice to the broker, a wish beyond the last queue is refused."""
    if wish >= queues:
        with pytest.raises(RequestError) as error:
            choose_queue(topic(queues=queues), wish, Random(seed))
        assert error.value.response_code == ResponseCode.INVALID_PARAMETER
    else:
        chosen = choose_queue(topic(queues=queues), wish, Random(seed))
        assert chosen == wish if wish >= 0 else 0 <= chosen < queues


@pytest.mark.parametrize(
    ("name", "body", "properties", "status"),
    [
        ("t", 1, 0, PutStatus.PUT_OK),
        ("t", 4 << 20, 32_767, PutStatus.PUT_OK),
        ("t", 0, 0, PutStatus.MESSAGE_ILLEGAL),
        ("t", (4 << 20) + 1, 0, PutStatus.MESSAGE_ILLEGAL),
        ("t", 1, 32_768, PutStatus.PROPERTIES_SIZE_EXCEEDED),
        ("t" * 128, 1, 0, PutStatus.MESSAGE_ILLEGAL),
        ("%RETRY%" + "t" * 200, 1, 0, PutStatus.PUT_OK),
        ("%RETRY%" + "t" * 249, 1, 0, PutStatus.MESSAGE_ILLEGAL),
    ],
)
def test_sizes(name: str, body: int, properties: int, status: PutStatus) -> None:
    """The bounds of broker.md 3.7, each at its edge."""
    assert message_status(name, body, properties, 4 << 20) is status


@pytest.mark.parametrize(
    ("times", "times_max", "locked", "dead"),
    [
        (16, None, False, False),
        (17, None, False, True),
        (2, 1, False, True),
        (1, 1, False, False),
        (0, 9, True, True),
    ],
)
def test_a_direct_send_to_the_retry_topic(
    times: int, times_max: int | None, locked: bool, dead: bool
) -> None:
    """More than the maximum, or a group that consumes in order: dead letter."""
    decided = retry_send("%RETRY%g", GroupEntry("g", orderly_locked=locked), times, times_max)
    assert decided.dead is dead
    assert decided.topic == ("%DLQ%g" if dead else "%RETRY%g")


def test_a_retry_send_of_an_unknown_group() -> None:
    """Answered 26, with the name of the group."""
    with pytest.raises(RequestError) as error:
        retry_send("%RETRY%g", None, 0, None)
    assert error.value.response_code == 26
    assert "[g]" in error.value.remark


def test_missing_names_are_named() -> None:
    """Operators search for these sentences."""
    assert topic_missing("t").remark.startswith("topic[t] not exist, apply first please!")
    assert group_missing("g").remark.startswith("subscription group [g] does not exist")
