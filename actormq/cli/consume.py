"""consume: print messages as a member of a group; what was printed counts as consumed."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from actormq.cli.options import NAMESRV_DEFAULT, Json, Namesrv, client_url, examples
from actormq.cli.output import message_json, print_json

if TYPE_CHECKING:
    from actormq.client.received import ReceivedMessage

EXAMPLES: Final = examples(
    "consume orders",
    "consume orders --from earliest --count 10 --json",
    "consume orders --group billing --tags 'paid || new'",
    "consume orders --from 2026-11-22T14:30:00 --idle 2 > orders.txt",
)


def consume(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    group: Annotated[
        str | None,
        typer.Option("--group", "-g", help="The consumer group; without it one of your own, until the end."),
    ] = None,
    start: Annotated[
        str,
        typer.Option("--from", metavar="earliest|latest|TIME", help="Where a group begins that is new here."),
    ] = "latest",
    tags: Annotated[str, typer.Option("--tags", "-t", help="Only these: 'a || b', or * for all.")] = "*",
    count: Annotated[int, typer.Option("--count", "-c", help="End after so many; 0 for never.", min=0)] = 0,
    idle: Annotated[
        float, typer.Option("--idle", help="End when so many seconds brought nothing; 0 for never.", min=0)
    ] = 0,
    namesrv: Namesrv = NAMESRV_DEFAULT,
    as_json: Json = False,
) -> None:
    """Print the messages of a topic as they come, until Ctrl-C.

    A group goes on where it ended.  TIME is like 2026-11-22T14:30:00, in your time zone unless it says
    another.
    """
    from actormq.cli.beginning import Beginning, begin_at, throw_away
    from actormq.client.client import Client
    from actormq.client.consumer import Consumer
    from actormq.client.settings import ConsumerSettings, check_group

    beginning = Beginning.of(start)
    name = group or f"actormq-cli-{secrets.token_hex(6)}"
    check_group(name)
    stop = _Stop(idle)
    with (
        suppress(KeyboardInterrupt),
        throw_away(namesrv, name) if group is None else nullcontext(),
        Client(client_url(namesrv)) as client,
    ):
        begin_at(namesrv, name, topic, beginning)
        settings = ConsumerSettings(
            start_from=beginning.start_from, start_timestamp_ms=beginning.timestamp_ms
        )
        with Consumer(client, group=name, settings=settings) as consumer:
            stop.watch()
            for number, delivered in enumerate(consumer.stream(topic, tags), 1):
                with stop.deferred(), delivered.process():
                    _print(delivered.message, as_json)
                if number == count:
                    return
                stop.watch()


class _Stop:
    """Ctrl-C, and a service manager's SIGTERM: at once while waiting, else once the message in hand is done.

    Without that a message would be printed but not acknowledged, and printed again by the next run.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._is_busy = False
        self._is_asked = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: object) -> None:
        again, self._is_asked = self._is_asked, True
        if again or not self._is_busy:
            raise KeyboardInterrupt

    def watch(self) -> None:
        """Stop when nothing comes for too long, from now on."""
        if self._idle_s:
            signal.setitimer(signal.ITIMER_REAL, self._idle_s)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block end first; a second signal ends it, too (output that nobody reads)."""
        if self._idle_s:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._is_busy = True
        yield
        self._is_busy = False
        if self._is_asked:
            raise KeyboardInterrupt


def _print(message: ReceivedMessage, as_json: bool) -> None:
    if as_json:
        print_json(message_json(message))
    else:
        sys.stdout.buffer.write(message.body + b"\n")
        sys.stdout.buffer.flush()
