"""URLs, groups and settings are checked where they are made."""

from __future__ import annotations

import pytest

from actormq.client.results import StartFrom
from actormq.client.settings import (
    ClientSettings,
    ConsumerSettings,
    ProducerSettings,
    check_group,
    parse_endpoint,
)
from actormq.errors import ConfigError


def test_urls_of_name_servers() -> None:
    assert parse_endpoint("rocketmq://a:1,b:2").name_servers == ("tcp://a:1", "tcp://b:2")
    assert parse_endpoint("a:1;b:2").name_servers == ("tcp://a:1", "tcp://b:2")
    assert parse_endpoint("localhost").name_servers == ("tcp://localhost:9876",)
    assert parse_endpoint("zmq://localhost/").name_servers == ("zmq://localhost:9877",)
    assert parse_endpoint("rocketmq://[::1]:9876").name_servers == ("tcp://[::1]:9876",)


def test_only_a_zmq_url_allows_zeromq() -> None:
    assert parse_endpoint("zmq://a").allows_zmq
    assert not parse_endpoint("rocketmq://a").allows_zmq


@pytest.mark.parametrize("url", ["http://a", "rocketmq://", "a:b", "a:0", "zmq://:7", "a:70000"])
def test_urls_that_say_nothing_useful_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        parse_endpoint(url)


@pytest.mark.parametrize("group", ["", "a b", "ä", "g" * 121, "DEFAULT_CONSUMER"])
def test_illegal_groups_are_refused(group: str) -> None:
    with pytest.raises(ConfigError):
        check_group(group)


def test_settings_that_cannot_work_are_refused() -> None:
    for make in (
        lambda: ClientSettings(connect_timeout_ms=0),
        lambda: ProducerSettings(send_timeout_ms=0),
        lambda: ProducerSettings(retries=-1),
        lambda: ConsumerSettings(workers=0),
        lambda: ConsumerSettings(pull_messages=0),
        lambda: ConsumerSettings(suspend_ms=30_000),
        lambda: ConsumerSettings(lock_valid_ms=1_000),
        lambda: ConsumerSettings(start_from=StartFrom.TIMESTAMP),
        lambda: ConsumerSettings(start_timestamp_ms=1),
    ):
        with pytest.raises(ConfigError):
            make()
