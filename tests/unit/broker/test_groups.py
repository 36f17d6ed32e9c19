"""Group configurations: RocketMQ's JSON and defaults, and what the tables say of them."""

import pytest

from actormq.broker.groups import SYSTEM_GROUPS, GroupConfig, Groups, group_from_json, group_to_json
from actormq.broker.tables import GroupEntry
from actormq.errors import RequestError


def test_rocketmqs_json_both_ways() -> None:
    """Field names, defaults, and fields that we only keep."""
    value = group_to_json(GroupConfig(group_name="g"))
    assert value == {
        "groupName": "g",
        "consumeEnable": True,
        "consumeFromMinEnable": True,
        "consumeBroadcastEnable": True,
        "consumeMessageOrderly": False,
        "retryQueueNums": 1,
        "retryMaxTimes": 16,
        "groupRetryPolicy": {"type": "CUSTOMIZED"},
        "brokerId": 0,
        "whichBrokerWhenConsumeSlowly": 1,
        "notifyConsumerIdsChangedEnable": True,
        "groupSysFlag": 0,
        "consumeTimeoutMinute": 15,
        "attributes": {},
    }
    given = {**value, "retryMaxTimes": 3, "groupRetryPolicy": {"type": "EXPONENTIAL"}, "unknown": 1}
    config = group_from_json({**given, "subscriptionDataSet": None})
    assert config.retry_max_times == 3
    assert group_to_json(config)["groupRetryPolicy"] == {"type": "EXPONENTIAL"}
    assert group_from_json({"groupName": "g", "attributes": None}) == GroupConfig(group_name="g")


@pytest.mark.parametrize("value", [None, [], {}, {"groupName": "a b"}, {"groupName": "g", "brokerId": "x"}])
def test_what_is_no_group(value: object) -> None:
    """Answered 29."""
    with pytest.raises(RequestError) as error:
        group_from_json(value)
    assert error.value.response_code == 29


def test_groups_are_created_on_first_use_where_that_is_allowed() -> None:
    """Otherwise 26, also for a name that cannot be, and says so; a second use changes nothing."""
    groups = Groups()
    assert groups.ensure("g") == GroupEntry("g")
    assert groups.ensure("g") is None
    with pytest.raises(RequestError, match="a b, contains illegal characters") as error:
        groups.ensure("a b")
    assert error.value.response_code == 26
    with pytest.raises(RequestError) as error:
        Groups(auto_create=False).ensure("g")
    assert error.value.response_code == 26


def test_locks_show_in_the_tables_once() -> None:
    """An entry only when the state turns; a changed configuration keeps it."""
    groups = Groups([GroupConfig(group_name="g")])
    assert groups.set_locked("g", False) is None
    assert groups.set_locked("g", True) == GroupEntry("g", orderly_locked=True)
    assert groups.set_locked("g", True) is None
    assert groups.put(GroupConfig(group_name="g", retry_max_times=2)) == GroupEntry(
        "g", retry_max_times=2, orderly_locked=True
    )
    assert groups.put(GroupConfig(group_name="g", retry_max_times=2)) is None
    assert groups.set_locked("g", False) == GroupEntry("g", retry_max_times=2)
    assert groups.set_locked("unknown", True) is None


def test_every_broker_has_the_system_groups() -> None:
    """Created once, also beside groups that the file has."""
    groups = Groups([GroupConfig(group_name="TOOLS_CONSUMER", retry_max_times=1)])
    assert [entry.name for entry in groups.create_missing_system_groups()] == list(SYSTEM_GROUPS[1:])
    assert groups.create_missing_system_groups() == []
    config = groups.get("TOOLS_CONSUMER")
    assert config is not None
    assert config.retry_max_times == 1


def test_there_is_a_limit() -> None:
    """A flood of group names ends in an error, not in a full memory."""
    groups = Groups(groups_max=1)
    groups.ensure("g")
    with pytest.raises(RequestError, match="1 groups"):
        groups.ensure("h")
    assert groups.put(GroupConfig(group_name="g", retry_max_times=1)) is not None
