"""send: put messages into a topic, from the command line or from standard input."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actormq.cli.options import NAMESRV_DEFAULT, Json, Namesrv, client_url
from actormq.cli.output import print_json, say
from actormq.errors import ConfigError

if TYPE_CHECKING:
    from actormq.client.futures import SendFuture
    from actormq.client.producer import Producer
    from actormq.client.results import SendResult

GROUP = "actormq-cli"
_IN_FLIGHT = 1_000
"""Messages of standard input that are on their way before the oldest's outcome is waited for."""


def send(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    body: Annotated[str, typer.Argument(help="The message; - reads it from standard input.")] = "-",
    lines: Annotated[bool, typer.Option("--lines", help="Every line of the input is a message.")] = False,
    tags: Annotated[str | None, typer.Option("--tags", "-t", help="The tag to filter by.")] = None,
    keys: Annotated[list[str] | None, typer.Option("--keys", help="A word to find it by.")] = None,
    key: Annotated[str | None, typer.Option("--by", help="The same word, the same queue, in order.")] = None,
    properties: Annotated[
        list[str] | None, typer.Option("--property", "-p", metavar="NAME=VALUE", help="Repeatable.")
    ] = None,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Send a message, or with --lines one for each line of standard input."""
    from actormq.client.producer import Producer
    from actormq.client.settings import ProducerSettings

    options: dict[str, Any] = {"tags": tags, "keys": keys or (), "properties": _properties(properties or [])}
    options["key"] = key
    sent = 0
    settings = ProducerSettings(offset_message_ids=as_json)
    with Producer(client_url(namesrv), GROUP, settings=settings) as producer:
        if lines:
            results = _send_all(producer, topic, _lines(body), options)
        else:
            results = iter([producer.send(topic, _whole(body), **options)])
        for result in results:
            sent += 1
            if as_json:
                print_json(_as_json(result))
            elif not lines:
                queue = (
                    f"{result.queue.broker_name} queue {result.queue.queue_id} offset {result.queue_offset}"
                )
                print(f"{result.status.name} {result.message_id} {queue}")
    if lines and not as_json:
        say(f"{sent} messages sent to {topic}")


def _whole(body: str) -> bytes:
    return sys.stdin.buffer.read() if body == "-" else body.encode("utf-8", "surrogateescape")


def _lines(body: str) -> Iterator[bytes]:
    """Yield the lines of standard input; empty ones are no messages, as no broker takes an empty body."""
    if body != "-":
        raise ConfigError("--lines reads standard input: give no message with it")
    for line in sys.stdin.buffer:
        if stripped := line.rstrip(b"\r\n"):
            yield stripped


def _send_all(
    producer: Producer, topic: str, bodies: Iterable[bytes], options: dict[str, Any]
) -> Iterator[SendResult]:
    """Yield the results in the order of the messages, with a bounded number of them on their way."""
    under_way: deque[SendFuture] = deque()
    for body in bodies:
        under_way.append(producer.send_async(topic, body, **options))
        if len(under_way) >= _IN_FLIGHT:
            yield under_way.popleft().result()
    for future in under_way:
        yield future.result()


def _properties(words: list[str]) -> dict[str, str]:
    properties = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ConfigError(f"--property {word!r} must be NAME=VALUE")
        properties[name] = value
    return properties


def _as_json(result: SendResult) -> dict[str, Any]:
    return {
        "status": result.status.name,
        "message_id": result.message_id,
        "offset_message_id": result.offset_message_id,
        "topic": result.queue.topic,
        "broker": result.queue.broker_name,
        "queue": result.queue.queue_id,
        "offset": result.queue_offset,
    }
