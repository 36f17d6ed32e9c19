"""A topic that is deleted and made again, while producers send to it and consumers wait at it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from actormq_process import PATIENCE_S, Dev, dev_in

from actormq.cli.remote import Remote
from actormq.client.consumer import Consumer
from actormq.client.producer import Producer
from actormq.client.received import ReceivedMessage
from actormq.client.results import StartFrom
from actormq.client.settings import ConsumerSettings
from actormq.errors import ActorMQError, RequestRefused, ResponseCode
from actormq.store import record
from actormq.wire.headers import RequestCode

TOPIC = "again"
QUEUES = 4
PULL_BY_ITSELF = 4
"""sysFlag: the pull says what it wants, no member of the group has to."""
ROUND_MESSAGES = 150
"""So many must be acknowledged, at least, in each life of the topic."""


def await_true(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.01)


class Acknowledged(NamedTuple):
    """A message that a producer was told is stored, and when."""

    asked: float
    answered: float
    body: bytes
    queue_id: int
    offset: int


class Load:
    """Producers that never stop, and what was acknowledged."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self.acknowledged: list[Acknowledged] = []

    def run(self, name: str) -> None:
        with Producer(self._url, "senders") as producer:
            for number in count():
                if self._stop.is_set():
                    return
                body = f"{name}-{number}".encode()
                asked = time.monotonic()
                try:
                    result = producer.send(TOPIC, body)
                except ActorMQError:
                    continue  # the topic is just not there; not acknowledged
                place = (result.queue.queue_id, int(result.queue_offset))
                self.acknowledged.append(Acknowledged(asked, time.monotonic(), body, *place))

    @contextmanager
    def running(self) -> Iterator[Load]:
        threads = [threading.Thread(target=self.run, args=(f"p{number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def since(self, moment: float) -> int:
        return sum(one.asked >= moment for one in self.acknowledged)


def delete(remote: Remote, dev: Dev) -> None:
    remote.ask(dev.broker, RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": TOPIC})


def create(remote: Remote, dev: Dev) -> None:
    fields = {
        "topic": TOPIC,
        "defaultTopic": "TBW102",
        "readQueueNums": str(QUEUES),
        "writeQueueNums": str(QUEUES),
        "perm": "6",
        "topicFilterType": "SINGLE_TAG",
    }
    remote.ask(dev.broker, RequestCode.UPDATE_AND_CREATE_TOPIC, fields)


def read_all(remote: Remote, dev: Dev) -> dict[tuple[int, int], bytes]:
    """Return everything that the topic serves, by queue and offset."""
    found = {}
    for queue_id in range(QUEUES):
        offset = 0
        fields = {
            "consumerGroup": "TOOLS_CONSUMER", "topic": TOPIC, "queueId": str(queue_id), "maxMsgNums": "32",
            "sysFlag": str(PULL_BY_ITSELF), "commitOffset": "0", "suspendTimeoutMillis": "0",
            "subscription": "*", "subVersion": "0", "expressionType": "TAG",
        }  # fmt: skip
        while True:
            fields["queueOffset"] = str(offset)
            try:
                answer = remote.ask(dev.broker, RequestCode.PULL_MESSAGE, fields)
            except RequestRefused as refused:
                if refused.response_code == ResponseCode.PULL_RETRY_IMMEDIATELY:
                    continue
                if refused.response_code == ResponseCode.PULL_NOT_FOUND:
                    break
                raise
            view = memoryview(answer.body)
            while view:
                stored = record.decode(view)
                assert (stored.topic, stored.queue_id) == (TOPIC, queue_id)
                found[queue_id, int(stored.queue_offset)] = bytes(stored.body)
                view = view[stored.size :]
            offset = int(answer.fields["nextBeginOffset"])
    return found


def check_life(
    acknowledged: list[Acknowledged], found: dict[tuple[int, int], bytes], asked: float, made: float
) -> None:
    """Nothing that was acknowledged before the deletion; all that was after the creation, in its place.

    Args:
        acknowledged: all of which is readable, if it is of this life.
    """
    dead = {one.body for one in acknowledged if one.answered < asked}
    assert not dead & set(found.values())
    for one in acknowledged:
        if one.asked > made:
            assert found.get((one.queue_id, one.offset)) == one.body
    for queue_id in range(QUEUES):
        offsets = sorted(offset for queue, offset in found if queue == queue_id)
        assert offsets == list(range(len(offsets)))


@contextmanager
def consuming(url: str, received: list[bytes]) -> Iterator[None]:
    def listener(message: ReceivedMessage) -> None:
        received.append(message.body)

    settings = ConsumerSettings(start_from=StartFrom.FIRST)
    with Consumer(url, "running", settings=settings) as consumer:
        consumer.subscribe(TOPIC, "*", listener)
        yield


@contextmanager
def behind(dev: Dev) -> Iterator[None]:
    """Let the dispatcher stand still: it meets the last messages of the dead when the topic is a new one."""
    roles = {each.name(): each for each in psutil.Process(dev.process.pid).children(recursive=True)}
    roles["amq:dispatcher"].suspend()
    try:
        yield
    finally:
        roles["amq:dispatcher"].resume()


def live(remote: Remote, dev: Dev) -> tuple[Load, float, float]:
    """Six lives under load, with two waiting consumers; return the load, the last deletion and creation."""
    received: list[bytes] = []
    load = Load(f"zmq://{dev.namesrv_zmq}")
    asked = made = 0.0
    with (
        consuming(f"zmq://{dev.namesrv_zmq}", received),
        consuming(f"rocketmq://{dev.namesrv}", received),
        load.running(),
    ):
        for number in range(6):
            await_true("messages are sent", lambda: load.since(made) > ROUND_MESSAGES)  # noqa: B023
            with behind(dev) if number % 2 else nullcontext():
                stopped = time.monotonic()
                await_true("messages are sent", lambda: load.since(stopped) > ROUND_MESSAGES)  # noqa: B023
                asked = time.monotonic()
                delete(remote, dev)
                create(remote, dev)
                made = time.monotonic()
            await_true("messages are sent", lambda: load.since(made) > ROUND_MESSAGES)  # noqa: B023
            acknowledged = list(load.acknowledged)
            places = {(one.queue_id, one.offset) for one in acknowledged if one.asked > made}
            await_true("all are readable", lambda: places <= read_all(remote, dev).keys())  # noqa: B023
            check_life(acknowledged, read_all(remote, dev), asked, made)
        before = len(received)
        await_true("the consumers go on", lambda: len(received) > before)
    return load, asked, made


@pytest.mark.parametrize("flush", ["async", "sync"])
def test_nobody_is_served_a_dead_topics_message(tmp_path: Path, flush: str) -> None:
    """Not while it is deleted and made again under load, over two gateways, nor after kills of the broker."""
    folder = tmp_path / "data"
    with Remote(PATIENCE_S) as remote:
        with dev_in(folder, flush=flush, gateways=2) as dev:
            create(remote, dev)
            load, asked, made = live(remote, dev)
            dev.stop(by=signal.SIGKILL)
        with dev_in(folder, flush=flush) as dev:
            check_life(load.acknowledged, read_all(remote, dev), asked, made)
            delete(remote, dev)
            create(remote, dev)
            dev.stop(by=signal.SIGKILL)
        with dev_in(folder, flush=flush) as dev:
            assert read_all(remote, dev) == {}
            with Producer(f"zmq://{dev.namesrv_zmq}", "senders") as producer:
                assert producer.send(TOPIC, b"first").queue_offset == 0
            delete(remote, dev)
            dev.stop(by=signal.SIGKILL)
        with dev_in(folder, flush=flush) as dev:
            with pytest.raises(RequestRefused) as refused:
                remote.ask(dev.broker, RequestCode.GET_TOPIC_CONFIG, {"topic": TOPIC})
            assert refused.value.response_code == ResponseCode.TOPIC_NOT_EXIST
            assert dev.stop() == 0
    assert not (folder / "consumequeue" / TOPIC).exists()
