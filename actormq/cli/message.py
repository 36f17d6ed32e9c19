"""message: look at single messages: by id, by key, by time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from actormq.cli.beginning import moment_ms
from actormq.cli.options import NAMESRV_DEFAULT, Json, Namesrv, examples
from actormq.cli.output import message_json, print_json, print_table
from actormq.cli.remote import Broker, Cluster, Remote
from actormq.errors import ConfigError, PeerError, RequestRefused, ResponseCode
from actormq.wire.codes import RequestCode

if TYPE_CHECKING:
    from actormq.client.received import ReceivedMessage

app = typer.Typer()

_ANY_TIME: Final = (0, (1 << 63) - 1)
_BODY_CHARACTERS: Final = 60
_GROUP: Final = "TOOLS_CONSUMER"
"""Every broker knows it: RocketMQ's own tools pull as members of it."""


@app.command(
    epilog=examples("message get 7F00000100002A9F00000000000000E1", "message get ID --topic orders --json")
)
def get(
    message_id: Annotated[str, typer.Argument(help="The broker's id of the message, or its producer's.")],
    topic: Annotated[str | None, typer.Option(help="Where to look for a producer's id.")] = None,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Print one message with everything that is known of it.

    The broker's id (offset message id) says where the message lies.  The producer's (what `send` and
    `consume` print) does not: it needs the topic.
    """
    with Remote() as remote:
        cluster = Cluster(remote, namesrv)
        found = list(_by_unique_key(remote, cluster, topic, message_id)) if topic else []
        found = found or list(_by_place(remote, cluster, message_id))
    if not found:
        known = (
            f"topic {topic} has no message"
            if topic
            else "no broker (with --topic: no producer) has a message"
        )
        raise ConfigError(f"{known} with the id {message_id}")
    value = message_json(found[-1])
    if as_json:
        print_json(value)
    else:
        print_table(("what", "value"), [[name, _text(item)] for name, item in value.items()])


def _by_place(remote: Remote, cluster: Cluster, message_id: str) -> Iterator[ReceivedMessage]:
    """Ask the broker that an offset message id names, if it is one of the cluster's."""
    from actormq.client.identifiers import parse_offset_message_id

    try:
        place = parse_offset_message_id(message_id)
    except PeerError:
        return
    for broker in cluster.brokers():
        if broker.address in (f"{place.host}:{place.port}", f"[{place.host}]:{place.port}"):
            try:
                fields = {"offset": str(place.log_offset)}
                body = remote.ask(broker.address, RequestCode.VIEW_MESSAGE_BY_ID, fields).body
            except RequestRefused:
                continue
            yield from _messages(bytes(body), broker.name)


def _by_unique_key(remote: Remote, cluster: Cluster, topic: str, key: str) -> Iterator[ReceivedMessage]:
    for message in _query(remote, cluster, topic, key, *_ANY_TIME, 32, {"_UNIQUE_KEY_QUERY": "true"}):
        if message.message_id == key:
            yield message


def _query(
    remote: Remote,
    cluster: Cluster,
    topic: str,
    key: str,
    begin_ms: int,
    end_ms: int,
    count: int,
    more: dict[str, str],
) -> Iterator[ReceivedMessage]:
    """Ask every broker of the topic for messages with this key; their indexes know no keys, but hashes."""
    fields = {
        "topic": topic,
        "key": key,
        "maxNum": str(count),
        "beginTimestamp": str(begin_ms),
        "endTimestamp": str(end_ms),
    }
    for broker in _serving(cluster, topic):
        try:
            body = remote.ask(broker.address, RequestCode.QUERY_MESSAGE, {**fields, **more}).body
        except RequestRefused as refused:
            if refused.response_code != ResponseCode.QUERY_NOT_FOUND:
                raise
        else:
            yield from _messages(bytes(body), broker.name)


def _serving(cluster: Cluster, topic: str) -> list[Broker]:
    names = {item["brokerName"] for item in cluster.route(topic)["brokerDatas"]}
    return [broker for broker in cluster.masters() if broker.name in names]


def _messages(data: bytes, broker: str) -> list[ReceivedMessage]:
    """Return the messages of an answer, each with the queue that it says it lies in."""
    from actormq.client.received import decode_messages
    from actormq.client.results import MessageQueue

    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        queue_id = int.from_bytes(data[at + 12 : at + 16], "big")
        (message,) = decode_messages(data[at : at + size], MessageQueue("", broker, queue_id))
        found.append(message)
        at += size
    return found


@app.command(
    epilog=examples(
        "message find orders --key order-7",
        "message find orders --key order-7 --since 2026-11-22T14:30:00 --json",
        "message find orders --at 2026-11-22T14:30:00",
    )
)
def find(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    key: Annotated[
        str | None, typer.Option("--key", "-k", help="One of the message's keys, or its id.")
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="In each queue the first stored then or later.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="With --key: stored then or later.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="With --key: stored then or before.")
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-c", help="At most so many of a broker.", min=1, max=64)
    ] = 64,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Print the messages of a topic that have a key, or that lie at a time.

    Of more than 64 on one broker the newest.  TIME is like 2026-11-22T14:30:00, in your time zone unless it
    says another.
    """
    if (key is None) == (at is None):
        raise ConfigError("say either --key or --at")
    if at is not None and (since or until):
        raise ConfigError("--since and --until go with --key")
    begin_ms = moment_ms("--since", since) if since else _ANY_TIME[0]
    end_ms = moment_ms("--until", until) if until else _ANY_TIME[1]
    with Remote() as remote:
        cluster = Cluster(remote, namesrv)
        if key is not None:
            asked = _query(remote, cluster, topic, key, begin_ms, end_ms, count, {})
            found = [message for message in asked if key in (message.message_id, *message.keys)]
        else:
            found = list(_at_time(remote, cluster, topic, moment_ms("--at", str(at))))
    rows = [message_json(message) for message in found]
    if as_json:
        print_json(rows)
    else:
        columns = ("broker", "queue", "offset", "store_timestamp_ms", "message_id", "tags", "keys")
        print_table(
            (*columns, "body"), [[*(_text(row[name]) for name in columns), _start(row)] for row in rows]
        )


def _text(value: Any) -> str:
    """Return a value of a message's JSON as people read it."""
    if isinstance(value, dict):
        return " ".join(f"{name}={item}" for name, item in value.items())
    return " ".join(value) if isinstance(value, list) else "" if value is None else str(value)


def _start(row: dict[str, Any]) -> str:
    """Return so much of a body as has room in a line."""
    body = str(row.get("body", row.get("body_base64", "")))
    line = " ".join(body.split())
    return line if len(line) <= _BODY_CHARACTERS else line[: _BODY_CHARACTERS - 1] + "…"


def _at_time(remote: Remote, cluster: Cluster, topic: str, time_ms: int) -> Iterator[ReceivedMessage]:
    queues = {item["brokerName"]: item["readQueueNums"] for item in cluster.route(topic)["queueDatas"]}
    for broker in _serving(cluster, topic):
        for queue_id in range(queues[broker.name]):
            queue = {"topic": topic, "queueId": str(queue_id)}
            searched = {**queue, "timestamp": str(time_ms), "boundaryType": "LOWER"}
            code = RequestCode.SEARCH_OFFSET_BY_TIMESTAMP
            offset = remote.ask(broker.address, code, searched).fields["offset"]
            yield from _pulled(remote, broker, queue, offset)


def _pulled(remote: Remote, broker: Broker, queue: dict[str, str], offset: str) -> list[ReceivedMessage]:
    """Return the message at a place of a queue, if there is one."""
    fields = {
        **queue,
        "consumerGroup": _GROUP,
        "queueOffset": offset,
        "maxMsgNums": "1",
        "sysFlag": "4",
        "commitOffset": "0",
        "suspendTimeoutMillis": "0",
        "subscription": "*",
        "subVersion": "0",
        "expressionType": "TAG",
    }
    try:
        body = remote.ask(broker.address, RequestCode.PULL_MESSAGE, fields).body
    except RequestRefused as refused:
        nothing = (
            ResponseCode.PULL_NOT_FOUND,
            ResponseCode.PULL_RETRY_IMMEDIATELY,
            ResponseCode.PULL_OFFSET_MOVED,
        )
        if refused.response_code in nothing:
            return []
        raise
    return _messages(bytes(body), broker.name)
