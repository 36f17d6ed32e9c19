"""send: put messages into a topic, from the command line, a file or standard input."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer

from actormq.cli.options import NAMESRV_DEFAULT, Json, Namesrv, client_url, examples
from actormq.cli.output import print_json, say
from actormq.errors import ConfigError

if TYPE_CHECKING:
    from actormq.client.futures import SendFuture
    from actormq.client.producer import Producer
    from actormq.client.results import MessageQueue, SendResult

EXAMPLES: Final = examples(
    "send orders 'two coffees'",
    "send orders '{\"id\": 7}' --tags paid --keys 7 -p source=shop",
    "send orders --file orders.txt --lines --by customer-7",
    "tail -f access.log | actormq send access --lines",
    "send orders 'in a while' --delay 30s",
    "send orders tick --count 100 --rate 10",
)
GROUP: Final = "actormq-cli"
DELAYS: Final = [
    "1s",
    "5s",
    "10s",
    "30s",
    "1m",
    "2m",
    "3m",
    "4m",
    "5m",
    "6m",
    "7m",
    "8m",
    "9m",
    "10m",
    "20m",
    "30m",
    "1h",
    "2h",
]
"""RocketMQ's delay levels, from 1; a broker may have others: there a number says which."""
_IN_FLIGHT: Final = 1_000
"""Messages that are on their way before the oldest's outcome is waited for."""


def send(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    body: Annotated[str, typer.Argument(help="The message; - reads it from standard input.")] = "-",
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="PATH", help="Read the message from a file.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Every line of the input is a message.")] = False,
    tags: Annotated[str | None, typer.Option("--tags", "-t", help="The tag to filter by.")] = None,
    keys: Annotated[
        list[str] | None, typer.Option("--keys", help="A word to find it by; repeatable.")
    ] = None,
    properties: Annotated[
        list[str] | None, typer.Option("--property", "-p", metavar="NAME=VALUE", help="Repeatable.")
    ] = None,
    key: Annotated[str | None, typer.Option("--by", help="The same word, the same queue, in order.")] = None,
    queue: Annotated[
        str | None, typer.Option("--queue", "-q", metavar="[BROKER:]N", help="Into this queue.")
    ] = None,
    delay: Annotated[
        str, typer.Option("--delay", "-d", metavar="LEVEL|TIME", help="Deliver later: 1 to 18, or 1s … 2h.")
    ] = "0",
    count: Annotated[int, typer.Option("--count", "-c", help="Send it so many times.", min=1)] = 1,
    rate: Annotated[float, typer.Option("--rate", "-r", help="At most so many a second.", min=0)] = 0,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Send a message, or with --lines one for each line of the input.

    Prints the outcome of each message; with --lines or --count their number at the end.
    """
    from actormq.client.producer import Producer
    from actormq.client.settings import ProducerSettings

    options: dict[str, Any] = {"tags": tags, "keys": keys or (), "properties": _properties(properties or [])}
    options["delay_level"] = _delay_level(delay)
    if lines and count > 1:
        raise ConfigError("--count repeats one message: it does not go with --lines")
    sent = 0
    settings = ProducerSettings(offset_message_ids=as_json)
    with (
        _opened(body, file) as data,
        Producer(client_url(namesrv), GROUP, settings=settings) as producer,
    ):
        if queue is not None:
            options["queue"] = _queue(producer.queues(topic), queue)
        options["key"] = key
        if lines:
            results = _send_all(producer, topic, _paced(_lines(data), rate), options)
        elif count > 1:
            results = _send_all(producer, topic, _paced(repeat(_whole(data), count), rate), options)
        else:
            results = iter([producer.send(topic, _whole(data), **options)])
        for result in results:
            sent += 1
            if as_json:
                print_json(_as_json(result))
            elif not lines and count == 1:
                place = (
                    f"{result.queue.broker_name} queue {result.queue.queue_id} offset {result.queue_offset}"
                )
                print(f"{result.status.name} {result.message_id} {place}")
    if (lines or count > 1) and not as_json:
        say(f"{sent} messages sent to {topic}")


@contextmanager
def _opened(body: str, file: Path | None) -> Iterator[BinaryIO | bytes]:
    """Give what is to be read: the argument's own bytes, a file, or standard input."""
    if file is not None:
        if body != "-":
            raise ConfigError("the message is given twice: as an argument and with --file")
        try:
            opened = file.open("rb")
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from None
        with opened:
            yield opened
    elif body == "-":
        yield sys.stdin.buffer
    else:
        yield body.encode("utf-8", "surrogateescape")


def _whole(data: BinaryIO | bytes) -> bytes:
    return data if isinstance(data, bytes) else data.read()


def _lines(data: BinaryIO | bytes) -> Iterator[bytes]:
    """Yield the lines of the input; empty ones are no messages, as no broker takes an empty body."""
    if isinstance(data, bytes):
        raise ConfigError("--lines reads standard input or a file: give no message with it")
    for line in data:
        if stripped := line.rstrip(b"\r\n"):
            yield stripped


def _paced(bodies: Iterable[bytes], rate: float) -> Iterator[bytes]:
    """Yield `bodies`, at most `rate` a second (0: as they come)."""
    start = time.monotonic()
    for number, body in enumerate(bodies):
        if rate and (early_s := start + number / rate - time.monotonic()) > 0:
            time.sleep(early_s)
        yield body


def _send_all(
    producer: Producer, topic: str, bodies: Iterable[bytes], options: dict[str, Any]
) -> Iterator[SendResult]:
    """Yield the results in the order of the messages, with a bounded number of them on their way."""
    under_way: deque[SendFuture] = deque()
    for body in bodies:
        under_way.append(producer.send_async(topic, body, **options))
        while under_way and (len(under_way) >= _IN_FLIGHT or under_way[0].done()):
            yield under_way.popleft().result()
    for future in under_way:
        yield future.result()


def _delay_level(text: str) -> int:
    """Return the level in ``3`` or ``10s``."""
    if text.isdecimal() and int(text) <= 18:
        return int(text)
    if text in DELAYS:
        return DELAYS.index(text) + 1
    raise ConfigError(f"--delay {text!r} must be a level, 1 to 18, or one of {' '.join(DELAYS)}")


def _queue(queues: Iterable[MessageQueue], text: str) -> MessageQueue:
    """Return the queue that ``3`` or ``broker-a:3`` names."""
    broker, _, number = text.rpartition(":")
    found = [queue for queue in queues if str(queue.queue_id) == number and broker in ("", queue.broker_name)]
    if not found:
        raise ConfigError(f"--queue {text!r}: the topic has no such queue that takes messages")
    if len(found) > 1:
        raise ConfigError(f"--queue {text!r}: several brokers have one, say BROKER:{number}")
    return found[0]


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
