"""One client process under load, writing its own history for the checker.

python load_client.py produce URL TOPIC HISTORY KEYS DELAYED   until SIGTERM; one thread per key, in order,
                                                               and one that sends so many delayed a second
python load_client.py consume URL TOPIC GROUP HISTORY    until SIGTERM; orderly

Notes in the history, for whoever measures: ``taken`` and ``left`` (group, queue), ``connected`` and
``disconnected`` (address), ``log`` (what the client library warned of).
"""

from __future__ import annotations

import hashlib
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from faults.checker import History
from process.load_story import DELAYED

from actormq.client import (
    Consumer,
    ConsumerSettings,
    MessageQueue,
    Producer,
    ProducerSettings,
    ReceivedMessage,
    StartFrom,
)
from actormq.errors import ActorMQError

SEND_TIMEOUT_MS = 30_000
"""Longer than any role is stopped for: what was given up may be stored after what was sent next."""
_EVENTS = {"connected": "connected", "connection ended": "disconnected"}


class Noting(logging.Handler):
    """Puts what the client library says of connections, and its warnings, into the history."""

    def __init__(self, history: History) -> None:
        super().__init__(logging.INFO)
        self._history = history

    def emit(self, record: logging.LogRecord) -> None:
        event = _EVENTS.get(record.msg)
        if event is not None:
            self._history.note(event, getattr(record, "address", ""))
        elif record.levelno >= logging.WARNING:
            text = record.getMessage()
            self._history.note("log", text if record.exc_info is None else f"{text}: {record.exc_info[1]!r}")


def open_history(path: Path) -> History:
    """Begin a history that also hears what the client library logs."""
    history = History(path)
    log = logging.getLogger("actormq.client")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(Noting(history))
    return history


def queue_name(queue_id: int) -> str:
    """What the histories call a queue."""
    return f"q{queue_id}"


def digest_of(body: bytes) -> str:
    """Return what the histories keep of a body."""
    return hashlib.blake2b(body, digest_size=8).hexdigest()


class Load:
    """The threads of one producer.  Each message is attempted once, and its outcome noted.

    The client makes no retries: the checker must know how often each message was handed to a broker.
    """

    def __init__(self, producer: Producer, topic: str, history: History, stop: threading.Event) -> None:
        self._producer = producer
        self._topic = topic
        self._history = history
        self._stop = stop

    def one_key(self, key: str) -> None:
        """Send one message after the other; they go to one queue, and stay in order."""
        number = 0
        while not self._stop.is_set():
            name = f"{key}-{number}"
            body = (name + " " * (number * 37 % 900)).encode()
            self._history.send(name, digest_of(body), key, number)
            try:
                result = self._producer.send(self._topic, body, key=key)
            except ActorMQError as error:
                self._failed(name, error)
            else:
                self._history.ack(name, queue_name(result.queue.queue_id), result.queue_offset)
            number += 1

    def delayed(self, prefix: str, a_second: int) -> None:
        """Send messages that the scheduler delivers a second later."""
        number = 0
        while not self._stop.wait(1 / a_second):
            name = f"{prefix}-{number}"
            self._history.send(name, digest_of(name.encode()), delayed=True)
            try:
                self._producer.send(self._topic, name.encode(), delay_level=1)
            except ActorMQError as error:
                self._failed(name, error)
            else:
                self._history.ack(name, None, 0)
            number += 1

    def _failed(self, name: str, error: ActorMQError) -> None:
        self._history.fail(name)
        self._history.note("failed", name, f"{type(error).__name__}: {error}")
        self._stop.wait(0.02)


def wait_for_the_end() -> None:
    """Return when SIGTERM comes.

    It is blocked in all threads and taken here: a handler would wait until the main thread wakes, which a
    signal that came to another thread does not do.
    """
    signal.sigwait({signal.SIGTERM})


def produce(url: str, topic: str, history: History, keys: list[str], delayed_a_second: int) -> None:
    """Run one thread per key, and one for delayed messages."""
    stop = threading.Event()
    settings = ProducerSettings(retries=0, send_timeout_ms=SEND_TIMEOUT_MS)
    with Producer(url, group="load", settings=settings) as producer:
        load = Load(producer, topic, history, stop)
        threads = [threading.Thread(target=load.one_key, args=(key,)) for key in keys]
        if delayed_a_second:
            arguments = (f"{DELAYED}-{keys[0]}", delayed_a_second)
            threads.append(threading.Thread(target=load.delayed, args=arguments))
        for thread in threads:
            thread.start()
        print("running", flush=True)
        wait_for_the_end()
        stop.set()
        for thread in threads:
            thread.join()


def consume(url: str, topic: str, group: str, history: History) -> None:
    """Note every message received, before it counts as consumed, and every queue that comes or goes."""

    def on_queues(taken: Sequence[MessageQueue], left: Sequence[MessageQueue]) -> None:
        for what, queues in (("taken", taken), ("left", left)):
            for queue in queues:
                if queue.topic == topic:
                    name = queue_name(queue.queue_id)
                    history.note(what, group, name)
                    if what == "taken":
                        history.session(group, name)

    def listener(message: ReceivedMessage) -> None:
        body = message.body
        name = queue_name(message.queue.queue_id)
        history.receive(group, name, message.queue_offset, body.decode().strip(), digest_of(body))

    settings = ConsumerSettings(orderly=True, start_from=StartFrom.FIRST, commit_interval_ms=500)
    with Consumer(url, group=group, settings=settings, on_queues=on_queues) as consumer:
        consumer.subscribe(topic, "*", listener)
        print("running", flush=True)
        wait_for_the_end()


def main() -> None:
    """Run one of the two until SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    kind, url, topic, *rest = sys.argv[1:]
    if kind == "produce":
        history = open_history(Path(rest[0]))
        produce(url, topic, history, rest[1].split(","), int(rest[2]))
    else:
        history = open_history(Path(rest[1]))
        consume(url, topic, rest[0], history)
    history.close()


if __name__ == "__main__":
    main()
