"""What a group wants of a topic: a tag expression, as the broker hears it and as the client checks it again.

The broker filters by the hash of the tag alone, so two tags may look alike to it; the client compares texts.
Source: RocketMQ FilterAPI.java, SubscriptionData.java; client.md §4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from actormq.errors import ConfigError
from actormq.message import tags_code

ALL: Final = "*"
_OR: Final = "||"


@dataclass(frozen=True, slots=True)
class Subscription:
    """One topic's expression.

    Attributes:
        expression: ``*``, or tags joined by ``||``.
        tags: empty for ``*``.
        version: milliseconds; the broker keeps the highest one of a group.
    """

    topic: str
    expression: str
    tags: frozenset[str]
    version: int

    def heartbeat_data(self) -> dict[str, Any]:
        """Return RocketMQ's SubscriptionData as a JSON object."""
        tags = sorted(self.tags)
        return {
            "topic": self.topic,
            "subString": self.expression,
            "tagsSet": tags,
            "codeSet": sorted({tags_code(tag) for tag in tags}),
            "subVersion": self.version,
            "expressionType": "TAG",
            "classFilterMode": False,
        }


def parse_subscription(topic: str, expression: str, now_ms: int) -> Subscription:
    """Return the subscription that `expression` says.

    Raises:
        ConfigError: nothing but separators.
    """
    text = expression.strip()
    if text in ("", ALL):
        return Subscription(topic, ALL, frozenset(), now_ms)
    tags = frozenset(filter(None, (part.strip() for part in text.split(_OR))))
    if not tags:
        raise ConfigError(f"{expression!r} names no tag; write for example 'paid || new', or '*' for all")
    return Subscription(topic, text, tags, now_ms)
