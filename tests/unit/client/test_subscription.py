"""Tag expressions: what the broker hears, and the check by text."""

from __future__ import annotations

import pytest
from unit.client.fakes import encode_record

from actormq.client.messages import decode_messages
from actormq.client.results import MessageQueue
from actormq.client.subscription import parse_subscription
from actormq.errors import ConfigError
from actormq.message import java_hash

QUEUE = MessageQueue("orders", "a", 0)


def tagged(tag: str | None) -> bool:
    properties = {"TAGS": tag} if tag else {}
    [message] = decode_messages(encode_record("orders", b"x", properties), QUEUE)
    return parse_subscription("orders", "paid || new", 1).wants(message)


def test_only_the_named_tags_are_wanted() -> None:
    assert [tagged(tag) for tag in ("paid", "new", "old", None)] == [True, True, False, False]


def test_a_tag_with_the_same_hash_is_not_wanted() -> None:
    """The broker sees only hashes; "Aa" and "BB" have the same one in Java."""
    assert java_hash("Aa") == java_hash("BB")
    [message] = decode_messages(encode_record("orders", b"x", {"TAGS": "BB"}), QUEUE)
    assert not parse_subscription("orders", "Aa", 1).wants(message)


@pytest.mark.parametrize("expression", ["*", "", "  "])
def test_everything(expression: str) -> None:
    subscription = parse_subscription("orders", expression, 1)
    [message] = decode_messages(encode_record("orders", b"x"), QUEUE)
    assert subscription.wants(message)
    assert subscription.heartbeat_data()["subString"] == "*"


def test_what_the_broker_hears() -> None:
    data = parse_subscription("orders", " paid||new ", 77).heartbeat_data()
    assert data["tagsSet"] == ["new", "paid"]
    assert data["codeSet"] == sorted([java_hash("new"), java_hash("paid")])
    assert (data["subVersion"], data["expressionType"], data["topic"]) == (77, "TAG", "orders")


def test_an_expression_of_separators_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no tag"):
        parse_subscription("orders", " || ", 1)
