"""Tag expressions: what the broker hears, and the check by text."""

from __future__ import annotations

import pytest
from unit.client.fakes import encode_record

from actormq.client.results import MessageQueue
from actormq.client.subscription import parse_subscription
from actormq.client.window import Window
from actormq.errors import ConfigError
from actormq.message import QueueOffset, java_hash

QUEUE = MessageQueue("orders", "a", 0)


def wanted(expression: str, *tags: str | None) -> list[str | None]:
    """Return the tags of the messages that a subscription takes in hand, of messages with `tags`."""
    data = b"".join(
        encode_record("orders", b"x", {"TAGS": tag} if tag else {}, queue_offset=offset)
        for offset, tag in enumerate(tags)
    )
    window = Window(QueueOffset(0))
    batch = window.put(data, QUEUE, parse_subscription("orders", expression, 1).tags)
    assert window.commit_offset == (batch.messages()[0].queue_offset if batch.count else len(tags))
    return [message.tags for message in batch.messages()]


def test_only_the_named_tags_are_wanted() -> None:
    assert wanted("paid || new", "old", "paid", "new", "old", None) == ["paid", "new"]


def test_a_tag_with_the_same_hash_is_not_wanted() -> None:
    """The broker sees only hashes; "Aa" and "BB" have the same one in Java."""
    assert java_hash("Aa") == java_hash("BB")
    assert wanted("Aa", "BB") == []


@pytest.mark.parametrize("expression", ["*", "", "  "])
def test_everything(expression: str) -> None:
    assert wanted(expression, "paid", None) == ["paid", None]
    assert parse_subscription("orders", expression, 1).heartbeat_data()["subString"] == "*"


def test_what_the_broker_hears() -> None:
    data = parse_subscription("orders", " paid||new ", 77).heartbeat_data()
    assert data["tagsSet"] == ["new", "paid"]
    assert data["codeSet"] == sorted([java_hash("new"), java_hash("paid")])
    assert (data["subVersion"], data["expressionType"], data["topic"]) == (77, "TAG", "orders")


def test_an_expression_of_separators_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no tag"):
        parse_subscription("orders", " || ", 1)
