"""The client against our own broker, over both transports, with three gateways."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from actormq_process import Dev, running_dev
from listening import SECONDS, Box, wait_until
from process.broker_load import GET_ROLES, call

from actormq.client import (
    BatchLimits,
    Consumer,
    ConsumerSettings,
    Message,
    Producer,
    ProducerSettings,
    ReceivedMessage,
    RetryLater,
    SendResult,
    StartFrom,
    connect,
)
from actormq.client.identifiers import parse_offset_message_id
from actormq.errors import RequestRefused, ResponseCode

pytestmark = pytest.mark.timeout(180)

FIRST = ConsumerSettings(start_from=StartFrom.FIRST)
NEVER_MS = 3_600_000
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def dev() -> Iterator[Dev]:
    with running_dev(gateways=3) as broker:
        yield broker


@pytest.fixture(params=["rocketmq", "zmq"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(dev: Dev, scheme: str) -> str:
    return f"rocketmq://{dev.namesrv}" if scheme == "rocketmq" else f"zmq://{dev.namesrv_zmq}"


@pytest.mark.parametrize("wanted", [False, True])
def test_ids_of_the_broker_come_where_they_are_wanted(url: str, scheme: str, wanted: bool) -> None:
    """An answer to a collected batch has them only if the producer asks: 32 digits a message."""
    topic = f"ids-{scheme}-{wanted}"
    settings = ProducerSettings(offset_message_ids=wanted, batch=BatchLimits(batch_messages=50))
    with Producer(url, "p", settings=settings) as producer:
        # Batches are posted over the connection that the first message opened.
        assert producer.send_async(topic, b"first").result(SECONDS).offset_message_id
        futures = [producer.send_async(topic, b"%d" % index) for index in range(200)]
        producer.flush()
        ids = [future.result(0).offset_message_id for future in futures]
    if wanted:
        assert len({parse_offset_message_id(one).log_offset for one in ids}) == 200
    else:
        assert "" in ids


def test_every_way_of_sending_arrives_with_its_tag(url: str, scheme: str) -> None:
    """Sync, collected, batch and one-way; a group of `paid || new` sees no other tag; offsets are kept."""
    topic = f"all-{scheme}"
    with Producer(url, "p") as producer:
        result = producer.send(topic, b"sync", tags="paid", keys=["k1", "k2"], properties={"color": "red"})
        futures = [producer.send_async(topic, b"%03d" % index, tags="new", key="one") for index in range(300)]
        offsets = [future.result(SECONDS).queue_offset for future in futures]
        assert offsets == list(range(offsets[0], offsets[0] + 300))
        producer.send_batch(topic, [Message(b"batch-1", tags="paid"), Message(b"batch-2", tags="old")])
        producer.send_oneway(topic, b"oneway", tags="paid")
        producer.send(topic, b"large " * 10_000, tags="paid")
        box = Box()
        with Consumer(url, f"all-{scheme}", settings=FIRST) as consumer:
            consumer.subscribe(topic, "paid || new", box)
            bodies = box.wait(304)
        others = [b"sync", b"batch-1", b"oneway", b"large " * 10_000]
        assert sorted(bodies) == sorted([*others, *(b"%03d" % index for index in range(300))])
        got = next(message for message in box.messages if message.body == b"sync")
        assert (got.keys, got.properties["color"], got.message_id) == (["k1", "k2"], "red", result.message_id)
        producer.send(topic, b"later", tags="paid")
        again = Box()
        with Consumer(url, f"all-{scheme}", settings=FIRST) as consumer:
            consumer.subscribe(topic, "paid || new", again)
            assert again.wait(1) == [b"later"]


def test_a_refused_message_comes_back_and_a_hopeless_one_goes_to_the_dead_letters(
    url: str, scheme: str
) -> None:
    box, dead = Box(), Box()
    group = f"refusers-{scheme}"

    def listener(message: ReceivedMessage) -> None:
        box(message)
        if message.body == b"hopeless":
            raise RetryLater(delay_level=-1)
        if not message.reconsume_times:
            raise RetryLater(delay_level=1)

    with Producer(url) as producer, Consumer(url, group, settings=FIRST) as consumer:
        consumer.subscribe(f"refused-{scheme}", "*", listener)
        producer.send(f"refused-{scheme}", b"again")
        producer.send(f"refused-{scheme}", b"hopeless")
        box.wait(3)
        with Consumer(url, f"undertaker-{scheme}", settings=FIRST) as undertaker:
            undertaker.subscribe(f"%DLQ%{group}", "*", dead)
            assert dead.wait(1) == [b"hopeless"]
    assert [message.reconsume_times for message in box.messages if message.body == b"again"] == [0, 1]


CONSUMER_PROGRAM = """
import os, sys, time
from actormq import Consumer, ConsumerSettings, StartFrom
def listener(message):
    os.write(1, message.body + b"\\n")  # in one piece: two workers write here
    time.sleep(0.02)
settings = ConsumerSettings(start_from=StartFrom.FIRST, workers=2, orderly=sys.argv[4] == "orderly")
with Consumer(sys.argv[1], sys.argv[2], settings=settings) as consumer:
    consumer.subscribe(sys.argv[3], "*", listener)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("scheme", "mode"), [("rocketmq", "concurrent"), ("zmq", "concurrent"), ("zmq", "orderly")]
)
def test_a_consumer_killed_by_sigkill_is_replaced_soon(url: str, scheme: str, mode: str) -> None:
    """Over TCP its connection closes, over ZeroMQ its lease runs out; no message is lost.

    Who is left is told so by the broker: by himself he would look an hour later.
    Not orderly over TCP: RocketMQ's queue locks outlive a TCP client by up to 60 s, and ours do as theirs.
    """
    topic = group = f"mortal-{scheme}-{mode}"
    with Producer(url) as producer:
        sent = {b"%d" % index for index in range(300)}
        for body in sent:
            producer.send_async(topic, body, key=body.decode())
        producer.flush()
    victim = subprocess.Popen(
        [sys.executable, "-c", CONSUMER_PROGRAM, url, group, topic, mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert victim.stdin
    assert victim.stdout
    first = victim.stdout.readline().strip()
    box = Box()
    settings = ConsumerSettings(
        start_from=StartFrom.FIRST, orderly=mode == "orderly", rebalance_interval_ms=NEVER_MS
    )
    with Consumer(url, group, settings=settings) as consumer:

        def own() -> int:
            return sum(queue.topic == topic for queue in consumer.queues())

        consumer.subscribe(topic, "*", box)
        wait_until(lambda: own() == 2)
        victim.send_signal(signal.SIGKILL)
        wait_until(lambda: own() == 4)
        rest = set(victim.stdout.read().split())
        victim.wait(SECONDS)
        wait_until(lambda: {message.body for message in box.messages} | rest | {first} == sent)
    victim.stdin.close()
    victim.stdout.close()


def test_a_topic_made_after_its_consumer_started_is_found(url: str, scheme: str) -> None:
    box = Box()
    with Consumer(url, f"early-{scheme}", settings=FIRST) as consumer:
        consumer.subscribe(f"late-{scheme}", "*", box)
        with Producer(url) as producer:
            producer.send(f"late-{scheme}", b"x")
            box.wait(1)


def test_asyncio(url: str, scheme: str) -> None:
    topic = f"aio-{scheme}"

    async def main() -> set[bytes]:
        got: set[bytes] = set()
        async with connect(url) as mq, asyncio.timeout(SECONDS):
            producer = await mq.producer("aio")
            futures = [await producer.send_async(topic, b"%d" % index, tags="a") for index in range(100)]
            for future in futures:
                await future
            async for message in mq.consume(topic, group=topic, expression="a", settings=FIRST):
                async with message.process():
                    got.add(message.body)
                if len(got) == 100:
                    return got
        return got

    assert asyncio.run(main()) == {b"%d" % index for index in range(100)}


def gateways(dev: Dev) -> list[int]:
    """Return the process ids of the running gateways; nothing when the one that we asked died."""
    try:
        answer = call(dev.broker, GET_ROLES)
    except OSError:
        return []
    roles = json.loads(bytes(answer.body))["roles"]
    return [
        role["pid"] for role in roles if role["role"].startswith("gateway") and role["state"] == "RUNNING"
    ]


def test_threads_that_send_and_wait_do_not_notice_that_gateways_die(dev: Dev, url: str, scheme: str) -> None:
    """All their connections lead to gateways; one after the other is killed.  Every answer was true."""
    topic, threads, rounds = f"waiting-{scheme}", 8, 150
    killed = threading.Event()

    def send(thread: int) -> list[SendResult]:
        results, number = [], 0
        while number < rounds or not killed.is_set():
            results.append(producer.send(topic, b"%d-%d" % (thread, number)))
            number += 1
        return results

    settings = ProducerSettings(send_timeout_ms=int(SECONDS * 1000))
    with Producer(url, settings=settings) as producer, ThreadPoolExecutor(threads) as pool:
        sending = [pool.submit(send, thread) for thread in range(threads)]
        try:
            for pid in gateways(dev):
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: pid not in (now := gateways(dev)) and len(now) == 3)  # type: ignore[misc]
        finally:
            killed.set()
        results = [result for one in sending for result in one.result(SECONDS)]
    bodies = {
        b"%d-%d" % (thread, number)
        for thread, one in enumerate(sending)
        for number in range(len(one.result()))
    }
    assert len({(result.queue, result.queue_offset) for result in results}) == len(results) == len(bodies)
    box = Box()
    with Consumer(url, topic, settings=FIRST) as consumer:
        consumer.subscribe(topic, "*", box)
        wait_until(lambda: {message.body for message in box.messages} == bodies)
    places = {(message.queue, message.queue_offset): message.message_id for message in box.messages}
    for result in results:
        assert places[result.queue, result.queue_offset] == result.message_id


def test_what_the_broker_refuses_is_told_with_its_code(url: str, scheme: str) -> None:
    with Producer(url) as producer:
        queue = producer.send(f"codes-{scheme}", b"x").queue
        with pytest.raises(RequestRefused) as caught:
            producer.send(f"codes-{scheme}", b"x", queue=queue._replace(queue_id=99))
        assert caught.value.response_code in (ResponseCode.INVALID_PARAMETER, ResponseCode.SYSTEM_ERROR)
