"""Our client on records that the official broker has stored: each message with all that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden.stores import NAMES, body_of, unpack

from actormq.client.received import decode_messages
from actormq.client.results import MessageQueue
from actormq.errors import PeerError
from actormq.wire import batch

WRAPPED = 0xC0


def pulled(tmp_path: Path, name: str) -> list[tuple[dict[str, Any], bytes]]:
    """What Java says of each record, and the record."""
    golden = unpack(name, tmp_path)
    return [(java, golden.stored(java["logOffset"], java["size"])) for java in golden.said["records"]]


@pytest.mark.parametrize("name", NAMES)
def test_received_messages_are_those_that_java_reads(tmp_path: Path, name: str) -> None:
    """IPv6 hosts and long topics included."""
    for java, stored in pulled(tmp_path, name):
        if java["sysFlag"] & (WRAPPED | 1):
            continue
        [message] = decode_messages(stored, MessageQueue("golden", java["topic"], java["queueId"]))
        assert message.topic == java["topic"]
        assert message.body == body_of(java)
        assert message.queue_offset == java["queueOffset"]
        assert message.properties == java["properties"]
        assert message.offset_message_id == java["messageId"]
        assert (message.born_timestamp_ms, message.store_timestamp_ms) == (
            java["bornTimestamp"],
            java["storeTimestamp"],
        )


def test_inner_batches_are_taken_apart(tmp_path: Path) -> None:
    """Between single messages, too: each message with its own place, key, tags and body."""
    records = [one for one in pulled(tmp_path, "rocketmq-5-batch") if one[0]["queueId"] == 0]
    queue = MessageQueue("golden", "batched", 0)
    messages = decode_messages(b"".join(stored for _, stored in records), queue)
    assert [message.queue_offset for message in messages] == list(range(259))
    expected = []
    for java, _ in records:
        items = list(batch.iterate(body_of(java))) if java["sysFlag"] & WRAPPED else []
        expected += [bytes(item.body) for item in items] or [body_of(java)]
    assert [message.body for message in messages] == expected
    third = messages[5]
    assert (third.body, third.keys, third.tags) == (b"inner 2.2", ["key-2-2"], "t2")


def test_an_inner_batch_that_is_none_is_the_peers_error(tmp_path: Path) -> None:
    java, stored = pulled(tmp_path, "rocketmq-5-batch")[1]
    damaged = bytearray(stored)
    damaged[88] ^= 0x40  # the first item's size
    with pytest.raises(PeerError):
        decode_messages(damaged, MessageQueue("golden", "batched", java["queueId"]))
