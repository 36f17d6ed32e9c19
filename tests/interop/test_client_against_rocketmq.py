"""Our client against the real RocketMQ 5.5.0: broker and name server, the official client, mqadmin."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from interop import rocketmq
from listening import SECONDS, Box, wait_until
from server_process import running_namesrv

from actormq.client import (
    Consumer,
    ConsumerSettings,
    Message,
    Producer,
    ReceivedMessage,
    RetryLater,
    StartFrom,
    connect,
)
from actormq.client.aio_consumer import AsyncConsumer
from actormq.errors import RequestRefused, ResponseCode
from actormq.message import SendStatus

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

FIRST = ConsumerSettings(start_from=StartFrom.FIRST)


@pytest.fixture(scope="module")
def namesrv() -> Iterator[str]:
    rocketmq.require_java()
    with rocketmq.java_name_server() as address:
        yield address


@pytest.fixture(scope="module")
def broker(namesrv: str) -> Iterator[str]:
    with rocketmq.java_broker(namesrv) as address:
        yield address


@pytest.fixture
def url(namesrv: str, broker: str) -> str:
    return f"rocketmq://{namesrv}"


def test_every_way_of_sending_arrives_with_its_tag(url: str) -> None:
    """Sync, collected, batch and one-way; the listener sees the wanted tags only, with every field."""
    with Producer(url, "p") as producer:
        result = producer.send(
            "AllWays", b"sync", tags="paid", keys=["k1", "k2"], properties={"color": "red"}
        )
        assert result.status is SendStatus.SEND_OK
        futures = [
            producer.send_async("AllWays", b"async-%03d" % i, tags="new", key="one") for i in range(200)
        ]
        offsets = [future.result(SECONDS).queue_offset for future in futures]
        assert offsets == list(range(offsets[0], offsets[0] + 200))
        batch = producer.send_batch(
            "AllWays", [Message(b"batch-1", tags="paid"), Message(b"batch-2", tags="old")]
        )
        assert len({one.offset_message_id for one in batch}) == 2
        producer.send_oneway("AllWays", b"oneway", tags="paid")
        producer.send("AllWays", b"large " * 10_000, tags="paid")
        box = Box()
        with Consumer(url, "all-ways", settings=FIRST) as consumer:
            consumer.subscribe("AllWays", "paid || new", box)
            bodies = box.wait(204)
    assert sorted(bodies) == sorted(
        [b"sync", b"batch-1", b"oneway", b"large " * 10_000, *(b"async-%03d" % i for i in range(200))]
    )
    got = next(message for message in box.messages if message.body == b"sync")
    assert (got.tags, got.keys, got.properties["color"]) == ("paid", ["k1", "k2"], "red")
    assert (got.message_id, got.offset_message_id) == (result.message_id, result.offset_message_id)
    assert (got.queue, got.queue_offset) == (result.queue, result.queue_offset)


def test_the_official_consumer_reads_what_we_send(namesrv: str, url: str) -> None:
    """Bodies (compressed ones, too), tags and keys arrive; filtered by tag."""
    with Producer(url) as producer:
        for index in range(20):
            producer.send_async("ToJava", b"red-%06d" % index, tags="red", keys=f"key-{index}")
            producer.send_async("ToJava", b"blue-%06d" % index, tags="blue")
        producer.send("ToJava", b"red-large" + b" " * 20_000, tags="red")
        producer.flush()
    lines = rocketmq.run_client("5", "consume", namesrv, "ToJava", "java-g", "red", 21, 60, "plain")
    got = {line.fields[0].strip() for line in lines if line.kind == "GOT"}
    assert got == {"red-large", *(f"red-{index:06d}" for index in range(20))}
    assert {line.fields[2] for line in lines if line.kind == "GOT"} >= {f"key-{index}" for index in range(20)}


@pytest.mark.parametrize("version", ["5", "4"])
@pytest.mark.parametrize("mode", ["sync", "batch"])
def test_we_read_what_the_official_producer_sends(namesrv: str, url: str, version: str, mode: str) -> None:
    """Of 200 and of 9000 bytes (compressed by Java); message ids are those that Java was told."""
    topic = f"FromJava{version}{mode}"
    box = Box()
    sent = rocketmq.run_client(version, "send", namesrv, topic, mode, 20, "red", 200)
    if mode == "sync":
        sent += rocketmq.run_client(version, "send", namesrv, topic, mode, 5, "red", 9_000)
    with Consumer(url, f"from-java-{version}{mode}", settings=FIRST) as consumer:
        consumer.subscribe(topic, "red", box)
        bodies = box.wait(25 if mode == "sync" else 20)
    assert {body.split()[0] for body in bodies} == {
        b"%s-%06d" % (mode.encode(), index) for index in range(20)
    }
    assert {len(body) for body in bodies} == ({200, 9_000} if mode == "sync" else {200})
    if mode == "sync":
        told = {line.fields[2] for line in sent if line.kind == "SENT"}
        assert {message.message_id for message in box.messages} == told


def test_a_refused_message_comes_back_and_a_hopeless_one_goes_to_the_dead_letters(url: str) -> None:
    """Send-back (36): delay level 1 is a second; level -1 is the dead-letter topic at once."""
    box = Box()

    def listener(message: ReceivedMessage) -> None:
        box(message)
        if message.body == b"hopeless":
            raise RetryLater(delay_level=-1)
        if not message.reconsume_times:
            raise RetryLater(delay_level=1)

    with Producer(url) as producer, Consumer(url, "refusers", settings=FIRST) as consumer:
        consumer.subscribe("Refused", "*", listener)
        producer.send("Refused", b"again")
        producer.send("Refused", b"hopeless")
        box.wait(3)
        dead = Box()
        with Consumer(url, "undertaker", settings=FIRST) as undertaker:
            undertaker.subscribe("%DLQ%refusers", "*", dead)
            assert dead.wait(1) == [b"hopeless"]
    again = [message for message in box.messages if message.body == b"again"]
    assert [message.reconsume_times for message in again] == [0, 1]
    assert (again[1].topic, again[1].stored_topic) == ("Refused", "%RETRY%refusers")


def test_orderly_consumption_keeps_the_order_of_each_key(url: str) -> None:
    box, failed = Box(), threading.Event()

    def listener(message: ReceivedMessage) -> None:
        if message.body == b"a-050" and not failed.is_set():
            failed.set()
            raise ValueError("once")
        box(message)

    settings = ConsumerSettings(start_from=StartFrom.FIRST, orderly=True, suspend_queue_ms=100)
    with Producer(url) as producer, Consumer(url, "orderly", settings=settings) as consumer:
        for index in range(100):
            for key in ("a", "b", "c"):
                producer.send_async("Orderly", b"%s-%03d" % (key.encode(), index), key=key)
        consumer.subscribe("Orderly", "*", listener)
        bodies = box.wait(300)
    for key in (b"a", b"b", b"c"):
        own = [body for body in bodies if body.startswith(key)]
        assert own == sorted(own)
        assert len(own) == 100


def test_two_consumers_share_the_queues_and_nothing_is_lost_or_doubled_when_one_leaves(url: str) -> None:
    boxes = [Box(), Box()]
    with Producer(url) as producer:
        producer.send("Shared", b"first", queue=lambda queues: queues[0])
        consumers = [Consumer(url, "sharers", settings=FIRST).start() for _ in boxes]
        try:
            for consumer, box in zip(consumers, boxes, strict=True):
                consumer.subscribe("Shared", "*", box)
            wait_until(lambda: [sum(q.topic == "Shared" for q in c.queues()) for c in consumers] == [2, 2])
            for index in range(200):
                producer.send_async("Shared", b"%d" % index, key=str(index))
            producer.flush()
            wait_until(lambda: sum(len(box.messages) for box in boxes) == 201)
            assert all(len(box.messages) > 20 for box in boxes)
            consumers[0].close()
            wait_until(lambda: sum(queue.topic == "Shared" for queue in consumers[1].queues()) == 4, 5)
            producer.send_batch("Shared", [b"%d" % index for index in range(200, 220)])
            wait_until(lambda: sum(len(box.messages) for box in boxes) >= 221)
        finally:
            for consumer in consumers:
                consumer.close()
    bodies = [message.body for box in boxes for message in box.messages]
    assert sorted(bodies) == sorted([b"first", *(b"%d" % index for index in range(220))])


CONSUMER_PROGRAM = """
import os, sys, time
from actormq import Consumer, ConsumerSettings, StartFrom
def listener(message):
    os.write(1, message.body + b"\\n")  # in one piece: two workers write here
    time.sleep(0.02)
settings = ConsumerSettings(start_from=StartFrom.FIRST, workers=2)
with Consumer(sys.argv[1], "mortals", settings=settings) as consumer:
    consumer.subscribe("Mortal", "*", listener)
    sys.stdin.read()
"""


def test_a_consumer_killed_by_sigkill_is_replaced_and_nothing_is_lost(url: str) -> None:
    """The broker sees its connection close; the other one has its queues within 6 s."""
    box = Box()
    with Producer(url) as producer:
        sent = {b"%d" % index for index in range(400)}
        for body in sent:
            producer.send_async("Mortal", body)
        producer.flush()
    victim = subprocess.Popen(
        [sys.executable, "-c", CONSUMER_PROGRAM, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(rocketmq.ROOT)},
    )
    assert victim.stdout
    first = victim.stdout.readline().strip()
    with Consumer(url, "mortals", settings=FIRST) as consumer:
        consumer.subscribe("Mortal", "*", box)
        wait_until(lambda: sum(queue.topic == "Mortal" for queue in consumer.queues()) == 2)
        victim.send_signal(signal.SIGKILL)
        rest = set(victim.stdout.read().split())
        victim.wait(10)
        spent = wait_until(lambda: sum(queue.topic == "Mortal" for queue in consumer.queues()) == 4, 6)
        wait_until(lambda: {message.body for message in box.messages} | rest | {first} == sent)
    assert spent < 6


def test_offsets_survive_a_restart_of_consumer_and_broker(namesrv: str, tmp_path: Path) -> None:
    """The broker comes back on another port with its store: the group goes on where it was."""
    url, topic = f"rocketmq://{namesrv}", "Restarted"
    box = Box()
    settings = {"brokerName": "restarted", "store": tmp_path / "store"}
    with rocketmq.java_broker(namesrv, **settings), Producer(url) as producer:  # type: ignore[arg-type]
        for index in range(10):
            producer.send(topic, b"%d" % index, queue=lambda queues: _of(queues, "restarted"))
        with Consumer(url, "restarters", settings=FIRST) as consumer:
            consumer.subscribe(topic, "*", box)
            box.wait(10)
    with rocketmq.java_broker(namesrv, **settings), Producer(url) as producer:  # type: ignore[arg-type]
        again = Box()
        producer.send(topic, b"later", queue=lambda queues: _of(queues, "restarted"))
        with Consumer(url, "restarters", settings=FIRST) as consumer:
            consumer.subscribe(topic, "*", again)
            again.wait(1)
            producer.send(topic, b"last", queue=lambda queues: _of(queues, "restarted"))
            assert again.wait(2) == [b"later", b"last"]


def _of(queues: object, broker_name: str) -> object:
    return next(queue for queue in queues if queue.broker_name == broker_name)  # type: ignore[attr-defined]


def test_asyncio(url: str) -> None:
    got: list[bytes] = []

    async def listener(message: ReceivedMessage) -> None:
        await asyncio.sleep(0)
        got.append(message.body)

    async def main() -> None:
        async with connect(url) as mq, AsyncConsumer(mq, "aio", settings=FIRST) as consumer:
            await mq.send("Async", b"one", tags="a")
            producer = await mq.producer("aio-p")
            futures = [await producer.send_async("Async", b"%d" % index, tags="a") for index in range(100)]
            assert {(await future).status for future in futures} == {SendStatus.SEND_OK}
            consumer.subscribe("Async", "a", listener)
            async with asyncio.timeout(SECONDS):
                while len(got) < 101:
                    await asyncio.sleep(0.01)
            async for message in mq.consume("Async", group="aio-stream", settings=FIRST):
                async with message.process():
                    assert message.tags == "a"
                break

    asyncio.run(main())
    assert sorted(got) == sorted([b"one", *(b"%d" % index for index in range(100))])


def test_what_the_broker_refuses_is_told_with_its_code(url: str) -> None:
    with Producer(url) as producer:
        with pytest.raises(RequestRefused) as caught:
            producer.send("AllWays", b"x", queue=producer.queues("AllWays")[0]._replace(queue_id=99))
        assert caught.value.response_code in (ResponseCode.INVALID_PARAMETER, ResponseCode.SYSTEM_ERROR)
        assert "99" in str(caught.value)


def test_mqadmin_sees_our_consumer_and_can_reset_it(namesrv: str, url: str) -> None:
    """Connection (203), running info (307), consuming directly (309), and a reset by time (222)."""
    box = Box()
    with Producer(url) as producer, Consumer(url, "seen", settings=FIRST) as consumer:
        consumer.subscribe("Seen", "*", box)
        for index in range(8):
            result = producer.send("Seen", b"%d" % index)
        box.wait(8)
        client_id = consumer._client.session.client_id
        connections = rocketmq.mqadmin("consumerConnection", "-n", namesrv, "-g", "seen")
        assert client_id in connections
        assert "PYTHON" in connections
        status = rocketmq.mqadmin("consumerStatus", "-n", namesrv, "-g", "seen", "-i", client_id)
        assert "#Consumer MQ Detail#" in status
        assert "ProcessQueueInfo [commitOffset=2" in status
        direct = rocketmq.mqadmin(
            "queryMsgById",
            "-n",
            namesrv,
            "-t",
            "Seen",
            "-i",
            result.offset_message_id,
            "-g",
            "seen",
            "-d",
            client_id,
        )
        assert "consumeResult=CR_SUCCESS" in direct
        assert box.wait(9)[8] == b"7"
        box.messages.clear()
        consumer.pause()
        reset = rocketmq.mqadmin(
            "resetOffsetByTime", "-n", namesrv, "-g", "seen", "-t", "Seen", "-s", "0", "-f", "true"
        )
        assert "Exception" not in reset, reset
        consumer.resume()
        bodies = box.wait(8)
    assert sorted(bodies) == sorted(b"%d" % index for index in range(8))


def test_a_zmq_url_leads_to_a_java_broker_over_tcp(tmp_path: Path) -> None:
    """Our name server over ZeroMQ names a Java broker; asked for its doors it does not understand: TCP."""
    rocketmq.require_java()
    with running_namesrv(tmp_path) as server, rocketmq.java_broker(server.words["namesrv"]):
        url = f"zmq://{server.words['namesrv-zmq']}"
        box = Box()
        with Producer(url) as producer, Consumer(url, "mixed", settings=FIRST) as consumer:
            consumer.subscribe("Mixed", "*", box)
            for index in range(20):
                producer.send_async("Mixed", b"%d" % index)
            assert set(box.wait(20)) == {b"%d" % index for index in range(20)}
