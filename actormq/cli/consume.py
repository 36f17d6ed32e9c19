"""consume: print messages as a member of a group; what was printed counts as consumed."""

from __future__ import annotations

import base64
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actormq.cli.options import NAMESRV_DEFAULT, Json, Namesrv, client_url
from actormq.cli.output import print_json
from actormq.errors import ConfigError

if TYPE_CHECKING:
    from actormq.client.received import ReceivedMessage
    from actormq.client.settings import ConsumerSettings


def consume(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    group: Annotated[str, typer.Option("--group", "-g", help="The consumer group.")],
    start: Annotated[
        str,
        typer.Option("--from", metavar="earliest|latest|TIME", help="Where a new group begins."),
    ] = "latest",
    tags: Annotated[str, typer.Option("--tags", "-t", help="Only these: 'a || b', or * for all.")] = "*",
    count: Annotated[int, typer.Option("--count", "-c", help="End after so many; 0 for never.", min=0)] = 0,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Print the messages of a topic until Ctrl-C, or until --count of them were printed."""
    from actormq.client.consumer import Consumer

    stop = _Stop()
    with (
        suppress(KeyboardInterrupt),
        Consumer(client_url(namesrv), group=group, settings=_settings(start)) as consumer,
    ):
        for number, delivered in enumerate(consumer.stream(topic, tags), 1):
            with stop.deferred(), delivered.process():
                _print(delivered.message, as_json)
            if number == count:
                return


class _Stop:
    """Ctrl-C, and a service manager's SIGTERM: at once while waiting, else once the message in hand is done.

    Without that a message would be printed but not acknowledged, and printed again by the next run.
    """

    def __init__(self) -> None:
        self._is_busy = False
        self._is_asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: object) -> None:
        again, self._is_asked = self._is_asked, True
        if again or not self._is_busy:
            raise KeyboardInterrupt

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block end first; a second signal ends it, too (output that nobody reads)."""
        self._is_busy = True
        yield
        self._is_busy = False
        if self._is_asked:
            raise KeyboardInterrupt


def _settings(start: str) -> ConsumerSettings:
    from actormq.client.results import StartFrom
    from actormq.client.settings import ConsumerSettings

    if start in ("earliest", "latest"):
        return ConsumerSettings(start_from=StartFrom.FIRST if start == "earliest" else StartFrom.LAST)
    try:
        moment = datetime.fromisoformat(start)
    except ValueError:
        raise ConfigError(f"--from {start!r} must be earliest, latest or like 2026-11-22T14:30:00") from None
    return ConsumerSettings(
        start_from=StartFrom.TIMESTAMP, start_timestamp_ms=round(moment.timestamp() * 1000)
    )


def _print(message: ReceivedMessage, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(message))
    else:
        sys.stdout.buffer.write(message.body + b"\n")
        sys.stdout.buffer.flush()


def _as_json(message: ReceivedMessage) -> dict[str, Any]:
    """Return everything of a message; a body that is no UTF-8 text is given in base64."""
    value: dict[str, Any] = {
        "topic": message.topic,
        "broker": message.queue.broker_name,
        "queue": message.queue.queue_id,
        "offset": message.queue_offset,
        "message_id": message.message_id,
        "tags": message.tags,
        "keys": message.keys,
        "properties": message.properties,
        "born_timestamp_ms": message.born_timestamp_ms,
        "store_timestamp_ms": message.store_timestamp_ms,
        "reconsume_times": message.reconsume_times,
    }
    try:
        value["body"] = message.body.decode()
    except UnicodeDecodeError:
        value["body_base64"] = base64.b64encode(message.body).decode()
    return value
