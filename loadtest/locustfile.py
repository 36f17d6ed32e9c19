"""Locust users of the native client: producers that send numbered messages, consumers of one group.

    make loadtest                                      against an `actormq dev` of its own
    make loadtest LOADTEST_ARGS="-u 50 -t 2m --host rocketmq://127.0.0.1:9876"      against a broker that runs

Every message has the number of its producer and its own, so at the end it is known what was lost: what was
acknowledged and not received even by a last reader.  Locust's table has a row for sends (until acknowledged)
and one for receives (from the send to the consumer's loop).  The exit code is 1 when a message was lost or
changed, when a send or a receive failed, and when nothing was sent.

gevent: locust patches Python's threads and sockets before it reads this file, and the client is made of
those: all users are greenlets of one thread.  ZeroMQ's own threads are C and not touched by that.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from locust import User, constant, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import LocalRunner

from actormq.client import Consumer, ConsumerSettings, Producer, StartFrom
from actormq.client.streams import Delivered
from actormq.errors import ActorMQError
from loadtest.demo import Dev
from loadtest.ledger import Ledger

TOPIC = "locust"
GROUP = "locust-readers"
QUEUES = 8
LOOK_BACK_MS = 60_000
"""How far before the test the group begins: clocks differ, and a broker that runs may hold much more."""
LAST_READER_PATIENCE_S = 30.0
"""So long the last reader waits for a next message: longer than a lease and a rebalance take."""


class OwnBroker:
    """An `actormq dev` for as long as locust runs.  It starts before locust's clock does."""

    def __init__(self, transport: str) -> None:
        self._release = contextlib.ExitStack()
        with contextlib.ExitStack() as release:
            folder = release.enter_context(tempfile.TemporaryDirectory(prefix="actormq-locust-"))
            self._dev = Dev.start(Path(folder) / "data")
            release.callback(self._dev.stop)
            ready = self._dev.ready
            print(
                f"actormq dev   ready after {self._dev.start_s:.2f} s, kernels={ready['kernels']}", flush=True
            )
            subprocess.run(
                [sys.executable, "-m", "actormq.cli.main", "topic", "create", TOPIC, "--queues", str(QUEUES),
                 "--namesrv", ready["namesrv"]],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            self.url = f"{transport}://{ready['namesrv-zmq' if transport == 'zmq' else 'namesrv']}"
            self._release = release.pop_all()

    def stop(self) -> int:
        """End it and return its exit code."""
        with self._release:
            return self._dev.stop()


class Run:
    """One test: the users' clients, and what they did."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.ledger = Ledger()
        self.numbers = itertools.count()
        self.producers = contextlib.ExitStack()
        self.consumers = contextlib.ExitStack()
        self.url = str(environment.host)
        self.group = f"{GROUP}-{self.ledger.run:x}"
        self.from_ms = time.time_ns() // 1_000_000 - LOOK_BACK_MS

    def stream(self) -> Iterator[Delivered]:
        """Become a member of the group."""
        settings = ConsumerSettings(start_from=StartFrom.TIMESTAMP, start_timestamp_ms=self.from_ms)
        consumer = Consumer(self.url, group=self.group, settings=settings)
        stream = consumer.stream(TOPIC)
        self.consumers.enter_context(consumer)
        return stream

    def receive(self, delivered: Delivered) -> None:
        """Note a message and acknowledge it: between the two no other greenlet runs."""
        body = delivered.body
        with delivered.process():
            sent_ns = self.ledger.receive(body)
        if sent_ns is not None:
            self.report("RECEIVE", (time.monotonic_ns() - sent_ns) / 1e6, len(body))

    def report(self, what: str, ms: float, size: int, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=what, name=TOPIC, response_time=ms, response_length=size, exception=error, context={}
        )

    def end_streams(self) -> None:
        """Let the consumers' loops end: a user who waits for a message does not hear that it is to stop."""
        self.consumers.close()

    def end(self) -> None:
        """Close the users' clients, read what is left, say what was found."""
        self.producers.close()
        with self.consumers:
            self._read_the_rest()
        self._say()

    def _read_the_rest(self) -> None:
        stream = self.stream()
        while self.ledger.lost:
            delivered = None
            with gevent.Timeout(LAST_READER_PATIENCE_S, False):
                delivered = next(stream)
            if delivered is None:
                return
            self.receive(delivered)

    def _say(self) -> None:
        counts = self.ledger.counts()
        print("messages      " + ", ".join(f"{count} {what}" for what, count in counts.items()), flush=True)
        for what in ("lost", "changed"):
            if counts[what]:
                fail(self.environment, f"{counts[what]} messages were {what}")
        if not counts["acknowledged"]:
            fail(self.environment, "nothing was sent")


def fail(environment: Environment, sentence: str) -> None:
    print(f"FAILED: {sentence}", flush=True)
    environment.process_exit_code = 1


class Runs:
    """The test that runs now."""

    now: Run


class ProducerUser(User):
    """Sends one message after the other, and waits for each to be acknowledged."""

    wait_time = constant(0)

    def on_start(self) -> None:
        self.number = next(Runs.now.numbers)
        self.sent = itertools.count()
        producer = Producer(Runs.now.url, group="locust")
        self.producer = Runs.now.producers.enter_context(producer)

    @task
    def send(self) -> None:
        run, number = Runs.now, next(self.sent)
        size = run.environment.parsed_options.body_bytes
        began_ns = time.monotonic_ns()
        body = run.ledger.body(self.number, number, began_ns, size)
        error: Exception | None = None
        try:
            self.producer.send(TOPIC, body)
            run.ledger.acknowledge(self.number, number)
        except ActorMQError as trouble:
            error = trouble
        run.report("SEND", (time.monotonic_ns() - began_ns) / 1e6, len(body), error)


class ConsumerUser(User):
    """A member of the one group: takes one message after the other."""

    wait_time = constant(0)

    def on_start(self) -> None:
        self.stream = Runs.now.stream()

    @task
    def receive(self) -> None:
        delivered = next(self.stream, None)
        if delivered is None:
            raise StopUser
        Runs.now.receive(delivered)


# --- locust's hooks ----------------------------------------------------------------------------------


@events.init_command_line_parser.add_listener
def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--transport", choices=("zmq", "rocketmq"), default="zmq", help="to our own broker")
    parser.add_argument("--body-bytes", type=int, default=128, help="size of a message's body, at least 32")


@events.init.add_listener
def _init(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, LocalRunner):
        # What one process sent another one received: nobody would know what was lost.
        raise SystemExit("this test counts in one process: run it without --master, --worker and --processes")
    if not environment.host:
        broker = OwnBroker(environment.parsed_options.transport)
        environment.host = broker.url

        @environment.events.quitting.add_listener
        def end(environment: Environment, **_: Any) -> None:
            if (status := broker.stop()) != 0:
                fail(environment, f"the broker ended with {status}")


@events.test_start.add_listener
def _begin(environment: Environment, **_: Any) -> None:
    Runs.now = Run(environment)


@events.test_stopping.add_listener
def _stop(environment: Environment, **_: Any) -> None:
    Runs.now.end_streams()


@events.test_stop.add_listener
def _end(environment: Environment, **_: Any) -> None:
    Runs.now.end()
