"""What consumers answer when brokers (mostly on behalf of mqadmin) ask.

Source: RocketMQ ConsumerRunningInfo.java, GetConsumerStatusBody.java, ResetOffsetBody.java; wire.md §6.13.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from actormq.client import requests
from actormq.client.held import HeldQueue
from actormq.client.received import ReceivedMessage, decode_messages
from actormq.client.results import MessageQueue
from actormq.errors import PeerError
from actormq.message import QueueOffset
from actormq.wire import json
from actormq.wire.command import RemotingCommand

if TYPE_CHECKING:
    from actormq.client.consuming import ConsumerCore


def _key(queue: MessageQueue) -> str:
    """Return a queue as a map key: an object, for RocketMQ 5.5 (fastjson2) does not read the text of one."""
    return json.ObjectKey.of(requests.queue_json(queue))


def parse_reset(command: RemotingCommand) -> dict[MessageQueue, QueueOffset]:
    """Return the offsets in a RESET_CONSUMER_CLIENT_OFFSET body: a map with object keys, or a list.

    Raises:
        PeerError: it is neither.
    """
    value = json.loads(command.body)
    table = value.get("offsetTable") if isinstance(value, dict) else None
    offsets: dict[MessageQueue, QueueOffset] = {}
    try:
        if isinstance(table, dict):
            for key, offset in table.items():
                offsets[requests.queue_of_json(json.key_object(key))] = QueueOffset(int(offset))
        elif isinstance(table, list):
            for item in table:
                queue, offset = (item, item["offset"]) if isinstance(item, dict) else item
                offsets[requests.queue_of_json(queue)] = QueueOffset(int(offset))
    except (KeyError, TypeError, ValueError) as error:
        raise PeerError(f"no offset table: {error!r}") from error
    return offsets


def offsets_body(held: Iterable[HeldQueue]) -> bytes:
    """Return GetConsumerStatusBody: queue to offset."""
    table = {_key(one.queue): one.window.commit_offset for one in held}
    return json.dumps_fastjson({"messageQueueTable": table})


def running_info_body(consumer: ConsumerCore) -> bytes:
    """Return ConsumerRunningInfo: what ``mqadmin consumerStatus`` shows."""
    settings = consumer.settings
    properties = {
        "PROP_NAMESERVER_ADDR": "",
        "PROP_CONSUME_TYPE": "CONSUME_PASSIVELY",
        "PROP_CONSUME_ORDERLY": str(settings.orderly).lower(),
        "PROP_THREADPOOL_CORE_SIZE": str(settings.workers),
        "PROP_CONSUMER_START_TIMESTAMP": str(consumer.started_wall_ms),
        "PROP_CLIENT_VERSION": "V5_3_3",
        "messageModel": settings.model.value,
        "consumerGroup": consumer.group,
        "allocateMessageQueueStrategy": settings.strategy.name,
    }
    now_ms, wall_ms = consumer.session.now_ms(), consumer.session.clock.wall_ms()
    return json.dumps_fastjson(
        {
            "properties": properties,
            "subscriptionSet": [one.heartbeat_data() for one in consumer.subscriptions()],
            "mqTable": {
                _key(queue): _queue_info(held, now_ms, wall_ms)
                for queue, held in consumer.assignment.held.items()
            },
            "mqPopTable": {},
            "statusTable": {},
            "userConsumerInfo": {},
        }
    )


def _queue_info(held: HeldQueue, now_ms: int, wall_ms: int) -> dict[str, Any]:
    window = held.window
    lowest = window.lowest
    return {
        "commitOffset": window.commit_offset,
        "cachedMsgMinOffset": lowest or 0,
        "cachedMsgMaxOffset": 0 if lowest is None else lowest + window.span,
        "cachedMsgCount": len(window),
        "cachedMsgSizeInMiB": window.bytes >> 20,
        "transactionMsgMinOffset": 0,
        "transactionMsgMaxOffset": 0,
        "transactionMsgCount": 0,
        "locked": held.locked_until_ms is not None and now_ms < held.locked_until_ms,
        "tryUnlockTimes": 0,
        "lastLockTimestamp": 0,
        "droped": held.is_stopped,
        "lastPullTimestamp": wall_ms - (now_ms - held.pulled_at_ms),
        "lastConsumeTimestamp": wall_ms,
    }


def message_in(command: RemotingCommand) -> ReceivedMessage:
    """Return the stored message that a broker sent along (CONSUME_MESSAGE_DIRECTLY).

    Raises:
        PeerError: there is not exactly one.
    """
    queue = MessageQueue(command.fields.get("topic", ""), command.fields.get("brokerName", ""), 0)
    messages = decode_messages(bytes(command.body), queue)
    if len(messages) != 1:
        raise PeerError(f"{len(messages)} messages where one was expected")
    return messages[0]


def direct_result_body(is_success: bool, spent_ms: int) -> bytes:
    """Return ConsumeMessageDirectlyResult."""
    return json.dumps(
        {
            "order": False,
            "autoCommit": True,
            "consumeResult": "CR_SUCCESS" if is_success else "CR_LATER",
            "remark": "",
            "spentTimeMills": spent_ms,
        }
    )
