"""Producers and consumers of both faces over both transports, against a fake broker on the loopback."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from listening import SECONDS, Box, dead_port, wait_until
from unit.client.fake_server import FakeServer, serving

from actormq.client import (
    BatchLimits,
    Client,
    ClientSettings,
    Consumer,
    ConsumerSettings,
    Message,
    MessageQueue,
    Producer,
    ProducerSettings,
    ReceivedMessage,
    RetryLater,
    SendFuture,
    StartFrom,
    connect,
    connect_sync,
)
from actormq.client.aio_consumer import AsyncConsumer
from actormq.client.aio_producer import AsyncProducer
from actormq.client.received import decode_messages
from actormq.errors import (
    ClientClosed,
    ConfigError,
    ConnectFailed,
    MessageRejected,
    RequestTimeout,
    SendFailed,
    WindowFull,
)
from actormq.wire.codes import RequestCode

FIRST = ConsumerSettings(start_from=StartFrom.FIRST)
SENDS = {RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving() as one:
        one.cluster.create("orders")
        yield one


@pytest.fixture(params=["rocketmq", "zmq"])
def url(request: pytest.FixtureRequest, server: FakeServer) -> str:
    return f"{request.param}://{server.tcp if request.param == 'rocketmq' else server.zmq}"


# --- the synchronous face ----------------------------------------------------------------------------


def test_every_way_of_sending_reaches_a_listener(server: FakeServer, url: str) -> None:
    box = Box()
    with Producer(url, "p") as producer, Consumer(url, "g", settings=FIRST) as consumer:
        consumer.subscribe("orders", "paid || new", box)
        result = producer.send("orders", b"sync", tags="paid", keys=["42"])
        assert result.queue.topic == "orders"
        future = producer.send_async("orders", b"async", tags="new")
        assert future.result(SECONDS).queue.topic == "orders"
        results = producer.send_batch(
            "orders", [Message(b"batch-1", tags="paid"), Message(b"batch-2", tags="no")]
        )
        assert results[1].queue_offset == results[0].queue_offset + 1
        producer.send_oneway("orders", b"oneway", tags="paid")
        assert sorted(box.wait(4)) == [b"async", b"batch-1", b"oneway", b"sync"]
        assert {message.tags for message in box.messages} == {"paid", "new"}
        assert next(one for one in box.messages if one.body == b"sync").keys == ["42"]


def doors_of_sends(server: FakeServer) -> list[str]:
    """Return where sends have come, first to last."""
    return [where for where, command in server.cluster.asked if command.code in SENDS]


def test_over_which_door(server: FakeServer, url: str) -> None:
    """What is collected goes to the broker's ROUTER, if the URL says zmq; who waits calls its TCP port."""
    with Producer(url) as producer:
        producer.send_async("orders", b"x").result(SECONDS)
        assert doors_of_sends(server) == [server.zmq if url.startswith("zmq") else server.tcp]

        def goes_over_tcp() -> bool:
            producer.send("orders", b"x")
            return doors_of_sends(server)[-1] == server.tcp

        wait_until(goes_over_tcp)
        producer.send_batch("orders", [b"x", b"y"])
        producer.send_oneway("orders", b"z")
        producer.send("orders", b"last", queue=MessageQueue("orders", "broker-a", 0))
        assert doors_of_sends(server)[-3:] == [server.tcp] * 3


def test_what_is_sent_now_and_then_takes_the_quick_way(server: FakeServer) -> None:
    """One message by TCP once a connection stands; a batch by ZeroMQ."""
    with Producer(f"zmq://{server.zmq}") as producer:

        def goes_over_tcp() -> bool:
            assert producer.send_async("orders", b"x").result(SECONDS)
            return doors_of_sends(server)[-1] == server.tcp

        wait_until(goes_over_tcp)
        futures = [producer.send_async("orders", b"%d" % index, key="k") for index in range(1_000)]
        offsets = [future.result(SECONDS).queue_offset for future in futures]
        assert offsets == list(range(offsets[0], offsets[0] + 1_000))
        batches = {where for where, one in server.cluster.asked if one.code == RequestCode.SEND_BATCH_MESSAGE}
        assert batches == {server.zmq}


def test_a_broker_whose_tcp_port_cannot_be_reached(server: FakeServer) -> None:
    """A zmq URL goes on leading to its ROUTER, and nobody waits for the other port."""
    del server.cluster.brokers[server.tcp]
    with dead_port() as port, Producer(f"zmq://{server.zmq}") as producer:
        server.cluster.broker().address = f"127.0.0.1:{port}"
        for _ in range(20):
            producer.send("orders", b"x")
        producer.send_oneway("orders", b"x")
        assert producer.send_async("orders", b"x").result(SECONDS)
    assert set(doors_of_sends(server)) == {server.zmq}


def test_many_threads_send_and_wait(server: FakeServer, url: str) -> None:
    with Producer(url, client_settings=ClientSettings(direct_connections_max=4)) as producer:
        producer.send("orders", b"first", key="k")
        with ThreadPoolExecutor(12) as pool:
            bodies = [b"%d" % index for index in range(300)]
            results = list(pool.map(lambda body: producer.send("orders", body, key="k"), bodies))
        assert sorted(result.queue_offset for result in results) == list(range(1, 301))
        assert len({result.message_id for result in results}) == 300
    assert server.opened <= 4 + 3, "name server, heartbeats, a question for other doors"


def test_one_way_sends_and_others_of_one_thread_stay_in_order(server: FakeServer) -> None:
    with Producer(f"rocketmq://{server.tcp}") as producer:
        offsets = []
        for _ in range(50):
            producer.send_oneway("orders", b"x", key="k")
            offsets.append(producer.send("orders", b"x", key="k").queue_offset)
    assert offsets == list(range(1, 100, 2))


def test_closing_while_a_send_waits(server: FakeServer, url: str) -> None:
    server.cluster.silent.add(RequestCode.SEND_MESSAGE_V2)
    producer = Producer(url, settings=ProducerSettings(send_timeout_ms=60_000)).start()
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(producer.send, "orders", b"x")
        wait_until(lambda: bool(doors_of_sends(server)))
        producer.close()
        assert isinstance(sending.exception(SECONDS), ClientClosed)


def test_connections_of_calling_threads_are_closed_when_idle(server: FakeServer) -> None:
    settings = ClientSettings(direct_idle_ms=50)
    with Producer(f"rocketmq://{server.tcp}", client_settings=settings) as producer:
        producer.send("orders", b"x")
        direct = producer._client.session.direct
        wait_until(lambda: not any(pool.all for pool in direct._pools.values()))
        producer.send("orders", b"x")


GEVENT_PROGRAM = """
from gevent import monkey
monkey.patch_all()
import sys, gevent
from actormq import Consumer, ConsumerSettings, Producer, StartFrom
got, ticks = [], []
def tick():
    while True:
        ticks.append(None)
        gevent.sleep(0)
with Producer(sys.argv[1]) as producer:
    ticking = gevent.spawn(tick)
    sends = [gevent.spawn(producer.send, "orders", b"%d" % index) for index in range(100)]
    gevent.joinall(sends, raise_error=True)
    ticking.kill()
    assert len({send.value.message_id for send in sends}) == 100
    assert len(ticks) > 100, "nobody else ran while somebody waited"
    with Consumer(sys.argv[1], "g", settings=ConsumerSettings(start_from=StartFrom.FIRST)) as consumer:
        consumer.subscribe("orders", "*", lambda message: got.append(message.body))
        with gevent.Timeout(20):
            while len(got) < 100:
                gevent.sleep(0.01)
print(len(set(got)))
"""


def test_under_gevent(server: FakeServer, url: str) -> None:
    """Greenlets that wait for answers let each other run."""
    pytest.importorskip("gevent")
    program = [sys.executable, "-c", GEVENT_PROGRAM, url]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.returncode) == ("100", 0), done.stderr


def test_messages_with_a_key_are_stored_in_order(server: FakeServer, url: str) -> None:
    settings = ProducerSettings(batch=BatchLimits(batch_messages=7))
    with Producer(url, settings=settings) as producer:
        futures = [producer.send_async("orders", b"%03d" % index, key="customer") for index in range(200)]
        producer.flush()
        offsets = [future.result(0).queue_offset for future in futures]
        assert offsets == list(range(200))
        assert len({future.result(0).queue for future in futures}) == 1


def test_a_named_queue(server: FakeServer, url: str) -> None:
    with Producer(url) as producer:
        queue = producer.queues("orders")[2]
        assert producer.send("orders", b"x", queue=queue).queue == queue
        assert producer.send("orders", b"x", queue=lambda queues: queues[1]).queue.queue_id == 1
        assert producer.send_async("orders", b"x", queue=queue).result(SECONDS).queue == queue


def test_a_lost_connection_is_repaired_without_the_caller_noticing(server: FakeServer) -> None:
    with Producer(f"rocketmq://{server.tcp}") as producer:
        producer.send("orders", b"1")
        server.drop_on.add(RequestCode.SEND_MESSAGE_V2)
        producer.send("orders", b"2")
        assert len(server.cluster.bodies("orders")) // 2 == 2


def test_a_consumer_goes_on_after_its_connection_was_lost(server: FakeServer) -> None:
    box = Box()
    with Consumer(f"rocketmq://{server.tcp}", "g", settings=FIRST) as consumer:
        consumer.subscribe("orders", "*", box)
        with Producer(f"rocketmq://{server.tcp}") as producer:
            producer.send("orders", b"1")
            box.wait(1)
            server.drop_connections()
            producer.send("orders", b"2")
            assert box.wait(2) == [b"1", b"2"]


def test_nobody_listens() -> None:
    settings = ProducerSettings(retries=1, retry_pause_ms=1)
    for scheme, how in (("rocketmq", "Connection refused"), ("zmq", "nobody listens")):
        with (
            dead_port() as port,
            Producer(f"{scheme}://127.0.0.1:{port}", settings=settings) as producer,
            pytest.raises(SendFailed, match=f"is one running there.*{how}"),
        ):
            producer.send("orders", b"x")


def test_a_name_that_does_not_exist() -> None:
    settings = ProducerSettings(retries=0)
    with (
        Producer("rocketmq://no-such-host.invalid:9876", settings=settings) as producer,
        pytest.raises(SendFailed, match="cannot be resolved"),
    ):
        producer.send("orders", b"x")


def test_a_name_instead_of_an_address(server: FakeServer) -> None:
    with Producer(f"rocketmq://localhost:{server.tcp.rpartition(':')[2]}") as producer:
        producer.send("orders", b"x")


def test_somebody_who_does_not_speak_the_protocol_at_all() -> None:
    """Connections to it time out or break; the error says so and the client lives on."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        try:
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        except OSError:
            return

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    settings = ProducerSettings(retries=0)
    with (
        Producer(f"rocketmq://127.0.0.1:{port}", settings=settings) as producer,
        pytest.raises(SendFailed, match="no frame"),
    ):
        producer.send("orders", b"x")
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(SECONDS)


def test_a_silent_server_is_given_up(server: FakeServer, url: str) -> None:
    with Producer(url) as producer:
        producer.send("orders", b"x")  # routes and connections take no time later
        server.cluster.silent.add(RequestCode.SEND_MESSAGE_V2)
        with pytest.raises(SendFailed) as caught:
            producer.send("orders", b"x", timeout_ms=300)
        assert isinstance(caught.value.failures[0], RequestTimeout)
        server.cluster.silent.clear()
        producer.send("orders", b"y")


def test_a_full_window_blocks_and_then_says_so(server: FakeServer, url: str) -> None:
    limits = BatchLimits(batch_messages=1, window_messages=2, in_flight_per_topic=1)
    with Producer(url, settings=ProducerSettings(window_timeout_ms=60_000, batch=limits)) as producer:
        for future in [producer.send_async("orders", b"x") for _ in range(20)]:
            assert future.result(SECONDS)
    settings = ProducerSettings(send_timeout_ms=400, window_timeout_ms=50, retries=0, batch=limits)
    with Producer(url, settings=settings) as producer:
        server.cluster.silent.add(RequestCode.SEND_MESSAGE_V2)
        futures = []

        def send_on() -> None:
            while True:  # the third is too many, unless this machine let the others time out before
                futures.append(producer.send_async("orders", b"x"))

        with pytest.raises(WindowFull, match="slower than this producer"):
            send_on()
        assert isinstance(futures[0].exception(SECONDS), SendFailed)


def test_callbacks_run_in_the_clients_thread_and_must_not_block_it(server: FakeServer, url: str) -> None:
    seen: list[object] = []
    finished = threading.Event()
    # The message waits until the callback is there.
    settings = ProducerSettings(batch=BatchLimits(linger_ms=60_000))
    with Producer(url, settings=settings) as producer:

        def callback(future: SendFuture) -> None:
            seen.append(future.result(0).queue.topic)
            try:
                producer.send("orders", b"no")
            except RuntimeError as error:
                seen.append(str(error))
            finished.set()

        producer.send_async("orders", b"x").add_done_callback(callback)
        producer.flush()
        assert finished.wait(SECONDS)
    assert seen[0] == "orders"
    assert "must not block" in str(seen[1])


def test_closing_sends_what_waits(server: FakeServer, url: str) -> None:
    settings = ProducerSettings(batch=BatchLimits(linger_ms=60_000))
    with Producer(url, settings=settings) as producer:
        futures = [producer.send_async("orders", b"x") for _ in range(10)]
    assert all(future.result(0) for future in futures)
    with pytest.raises(ClientClosed, match="closed"):
        producer.send("orders", b"x")
    with pytest.raises(ClientClosed):
        producer.start()


def test_a_producer_must_be_started(server: FakeServer, url: str) -> None:
    with pytest.raises(ClientClosed, match="with"):
        Producer(url).send("orders", b"x")


def test_a_producer_introduces_itself_at_once_and_keeps_its_lease(server: FakeServer) -> None:
    """A native broker forgets who is silent for 5 s, and with him the answers that he waits for."""
    never_ms = 3_600_000  # with the routes, say
    settings = ClientSettings(route_interval_ms=never_ms, heartbeat_interval_ms=never_ms)
    with Producer(f"zmq://{server.zmq}", client_settings=settings) as producer:
        producer.send("orders", b"x")
        wait_until(lambda: server.cluster.count(RequestCode.HEART_BEAT) >= 3)


def test_a_mistake_in_the_clients_thread_leaves_nobody_waiting(server: FakeServer, url: str) -> None:
    """The thread ends with a traceback in the log; what waits is told, later calls are refused."""
    settings = ProducerSettings(batch=BatchLimits(linger_ms=60_000))
    with Producer(url, settings=settings) as producer, Consumer(producer._client, "g"):
        producer.send("orders", b"x")
        future = producer.send_async("orders", b"x")
        producer._client._reactor.call_soon(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        assert isinstance(future.exception(SECONDS), ClientClosed)
        with pytest.raises(ClientClosed):
            producer.send_async("orders", b"x")
        with pytest.raises(ClientClosed, match="thread has ended"):
            producer.flush()


def test_closing_leaves_no_thread_and_no_connection(server: FakeServer, url: str) -> None:
    before = set(threading.enumerate())
    box = Box()
    with connect_sync(url) as client:
        client.producer("p").send("orders", b"x")
        client.consumer("g", settings=FIRST).subscribe("orders", "*", box)
        box.wait(1)
    left = [one for one in set(threading.enumerate()) - before if "actormq" in one.name]
    assert left == []
    assert server.cluster.broker().members["g"] == {}, "it said good-bye"


def test_offsets_are_saved_on_closing(server: FakeServer, url: str) -> None:
    box = Box()
    with Producer(url) as producer:
        for _ in range(10):
            producer.send("orders", b"x", key="k")
        with Consumer(url, "g", settings=FIRST) as consumer:
            consumer.subscribe("orders", "*", box)
            box.wait(10)
        assert max(server.cluster.broker().offsets.values()) == 10
        producer.send("orders", b"later", key="k")
        with Consumer(url, "g", settings=FIRST) as consumer:
            consumer.subscribe("orders", "*", box)
            assert box.wait(11)[10:] == [b"later"]


def test_closing_waits_for_the_listener_that_runs(server: FakeServer, url: str) -> None:
    began, may_end = threading.Event(), threading.Event()
    done: list[bytes] = []

    def listener(message: ReceivedMessage) -> None:
        began.set()
        assert may_end.wait(SECONDS)
        done.append(message.body)

    with Producer(url) as producer:
        producer.send("orders", b"x")
    consumer = Consumer(url, "g", settings=FIRST).start()
    consumer.subscribe("orders", "*", listener)
    assert began.wait(SECONDS)
    closing = threading.Thread(target=consumer.close)
    closing.start()
    may_end.set()
    closing.join(SECONDS)
    assert done == [b"x"]
    assert 1 in server.cluster.broker().offsets.values()


def test_slow_listeners_run_side_by_side(server: FakeServer, url: str) -> None:
    """All messages of one pull are in listeners at the same time, up to the number of workers."""
    barrier, box = threading.Barrier(8), Box()

    def listener(message: ReceivedMessage) -> None:
        barrier.wait(SECONDS)
        box(message)

    for index in range(8):
        server.cluster.put("orders", b"%d" % index, queue_id=0)
    settings = ConsumerSettings(start_from=StartFrom.FIRST, workers=8)
    with Consumer(url, "g", settings=settings) as consumer:
        consumer.subscribe("orders", "*", listener)
        box.wait(8)
    assert server.cluster.broker().offsets["g", "orders", 0] == 8
    assert not barrier.broken


def test_an_orderly_consumer_sees_each_queue_in_order(server: FakeServer, url: str) -> None:
    box = Box()
    failed: list[bytes] = []

    def listener(message: ReceivedMessage) -> None:
        if message.body == b"050" and not failed:
            failed.append(message.body)
            raise ValueError("once")
        box(message)

    settings = ConsumerSettings(start_from=StartFrom.FIRST, orderly=True, suspend_queue_ms=10)
    with Producer(url) as producer, Consumer(url, "g", settings=settings) as consumer:
        for index in range(100):
            producer.send_async("orders", b"%03d" % index, key="k")
        consumer.subscribe("orders", "*", listener)
        assert box.wait(100) == [b"%03d" % index for index in range(100)]
        assert failed


def test_two_consumers_share_and_one_takes_over(server: FakeServer, url: str) -> None:
    boxes = [Box(), Box()]
    left: list[MessageQueue] = []
    consumers = [
        Consumer(url, "g", settings=FIRST, on_queues=lambda _, gone: left.extend(gone)).start() for _ in boxes
    ]
    try:
        for consumer, box in zip(consumers, boxes, strict=True):
            consumer.subscribe("orders", "*", box)
        wait_until(lambda: [sum(q.topic == "orders" for q in c.queues()) for c in consumers] == [2, 2])
        consumers[0].close()
        assert sum(queue.topic == "orders" for queue in left) >= 2
        wait_until(lambda: sum(queue.topic == "orders" for queue in consumers[1].queues()) == 4)
    finally:
        for consumer in consumers:
            consumer.close()


def test_a_stream_of_messages(server: FakeServer, url: str) -> None:
    """Each is settled by whoever took it; what failed comes back, what was not settled is not committed."""
    for index in range(4):
        server.cluster.put("orders", b"%d" % index, queue_id=0)
    got: list[bytes] = []
    with Consumer(url, "g", settings=FIRST) as consumer:
        for delivered in consumer.stream("orders"):
            with delivered.process():
                got.append(delivered.body)
                if len(got) == 2:
                    raise RetryLater
            if len(got) == 5:
                break
    assert got == [b"0", b"1", b"2", b"3", b"1"]
    assert server.cluster.broker().offsets["g", "orders", 0] == 4
    server.cluster.put("orders", b"unsettled", queue_id=0)
    with Consumer(url, "g") as consumer:
        next(consumer.stream("orders"))
    assert server.cluster.broker().offsets["g", "orders", 0] == 4


def test_the_short_way(server: FakeServer, url: str) -> None:
    with connect_sync(url) as mq:
        mq.send("orders", b"x", tags="a")
        for message in mq.consume("orders", "g", settings=FIRST):
            with message.process():
                assert (message.body, message.tags, message.topic) == (b"x", "a", "orders")
            break


def test_an_exception_in_a_stream_goes_on_and_the_message_comes_again(server: FakeServer, url: str) -> None:
    server.cluster.put("orders", b"x")
    with Consumer(url, "g", settings=FIRST) as consumer:
        stream = consumer.stream("orders")
        with pytest.raises(ZeroDivisionError), next(stream).process():
            _ = 1 / 0
        again = next(stream)
        assert again.message.reconsume_times == 1


def test_mistakes_are_told_at_once(server: FakeServer, url: str) -> None:
    async def coroutine(message: ReceivedMessage) -> None: ...

    with Consumer(url, "g") as consumer:
        with pytest.raises(ConfigError, match="listener"):
            consumer.subscribe("orders")
        with pytest.raises(ConfigError, match="AsyncConsumer"):
            consumer.subscribe("orders", "*", coroutine)  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            consumer.subscribe("orders", "||", Box())
    with pytest.raises(ClientClosed):
        consumer.subscribe("orders", "*", Box())
    orderly = Consumer(url, "o", settings=ConsumerSettings(orderly=True))
    with pytest.raises(ConfigError, match="orderly"):
        orderly.stream("orders")
    with Producer(url) as producer:
        for body in (b"", "text", b"x" * (4 * 1024 * 1024 + 1)):
            with pytest.raises(MessageRejected):
                producer.send("orders", body)  # type: ignore[arg-type]
    with Client(url) as client:
        client.consumer("g")
        with pytest.raises(ConfigError, match="already"):
            client.consumer("g")


# --- the asyncio face --------------------------------------------------------------------------------


async def async_box(into: list[bytes], count: int) -> None:
    async with asyncio.timeout(SECONDS):
        while len(into) < count:
            await asyncio.sleep(0.005)


def test_asyncio_every_way_of_sending(server: FakeServer, url: str) -> None:
    got: list[bytes] = []

    async def listener(message: ReceivedMessage) -> None:
        await asyncio.sleep(0)
        got.append(message.body)

    async def main() -> None:
        async with AsyncProducer(url, "p") as producer, AsyncConsumer(url, "g", settings=FIRST) as consumer:
            consumer.subscribe("orders", "paid", listener)
            await producer.send("orders", b"send", tags="paid")
            futures = [
                await producer.send_async("orders", b"async-%d" % i, tags="paid", key="k") for i in range(50)
            ]
            results = await asyncio.gather(*(asyncio.ensure_future(wait(one)) for one in futures))
            assert [result.queue_offset for result in results] == sorted(r.queue_offset for r in results)
            await producer.send_batch("orders", [Message(b"batch", tags="paid"), b"untagged"])
            await producer.send_oneway("orders", b"oneway", tags="paid")
            await async_box(got, 53)

    async def wait(future: SendFuture) -> object:
        return await future

    asyncio.run(main())
    assert sorted(got) == sorted([b"send", b"batch", b"oneway", *(b"async-%d" % i for i in range(50))])


def test_asyncio_listeners_run_side_by_side_and_orderly_ones_do_not(server: FakeServer, url: str) -> None:
    at_once = {"most": 0, "now": 0, "expected": 6}
    got: list[bytes] = []

    async def listener(message: ReceivedMessage) -> None:
        at_once["now"] += 1
        at_once["most"] = max(at_once["most"], at_once["now"])
        async with asyncio.timeout(SECONDS):
            while at_once["most"] < at_once["expected"]:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)  # one more would come now
        at_once["now"] -= 1
        if message.body == b"3" and b"3" not in got and message.reconsume_times == 0:
            raise ValueError("once")
        got.append(message.body)

    async def main(group: str, orderly: bool) -> None:
        settings = ConsumerSettings(
            start_from=StartFrom.FIRST, orderly=orderly, workers=6, suspend_queue_ms=10
        )
        async with AsyncConsumer(url, group, settings=settings) as consumer:
            consumer.subscribe("orders", "*", listener)
            await async_box(got, 10)

    for index in range(10):
        server.cluster.put("orders", b"%d" % index, queue_id=0)
    asyncio.run(main("g", orderly=False))
    assert at_once["most"] == 6
    got.clear()
    at_once.update(most=0, now=0, expected=1)
    asyncio.run(main("o", orderly=True))
    assert got == [b"%d" % index for index in range(10)]
    assert at_once["most"] == 1


def test_asyncio_streams_and_the_short_way(server: FakeServer, url: str) -> None:
    async def main() -> list[bytes]:
        got = []
        async with connect(url) as mq:
            for index in range(5):
                await mq.send("orders", b"%d" % index, key="k")
            async for message in mq.consume("orders", group="billing", settings=FIRST):
                async with message.process():
                    got.append(message.body)
                if len(got) == 5:
                    break
        return got

    assert asyncio.run(main()) == [b"0", b"1", b"2", b"3", b"4"]


def test_asyncio_cancelling_a_send_leaves_the_client_usable(server: FakeServer, url: str) -> None:
    async def main() -> None:
        async with AsyncProducer(url) as producer:
            await producer.send("orders", b"1")
            server.cluster.silent.add(RequestCode.SEND_MESSAGE_V2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(producer.send("orders", b"2"), 0.1)
            server.cluster.silent.clear()
            await producer.send("orders", b"3")

    asyncio.run(main())


def test_asyncio_a_full_window(server: FakeServer, url: str) -> None:
    limits = BatchLimits(batch_messages=1, window_messages=2, in_flight_per_topic=1)

    async def main() -> None:
        patient = ProducerSettings(window_timeout_ms=60_000, batch=limits)
        async with AsyncProducer(url, settings=patient) as producer:
            futures = [await producer.send_async("orders", b"%d" % index) for index in range(20)]
            assert [(await future).queue.topic for future in futures] == ["orders"] * 20
        server.cluster.silent.add(RequestCode.SEND_MESSAGE_V2)
        settings = ProducerSettings(send_timeout_ms=400, window_timeout_ms=50, retries=0, batch=limits)
        async with AsyncProducer(url, settings=settings) as producer:
            late = []

            async def send_on() -> None:
                while True:  # as above
                    late.append(await producer.send_async("orders", b"x"))

            with pytest.raises(WindowFull):
                await send_on()
            with pytest.raises(SendFailed):
                await late[0]

    asyncio.run(main())


def test_asyncio_closing_twice_and_using_after(server: FakeServer, url: str) -> None:
    async def main() -> None:
        client = connect(url)
        with pytest.raises(ClientClosed):
            _ = client.session
        async with client:
            producer = await client.producer()
            consumer = await client.consumer("g")
        await client.close()
        for call in (producer.send("orders", b"x"), client.send("orders", b"x"), consumer.start()):
            with pytest.raises(ClientClosed):
                await call

    asyncio.run(main())


def test_a_refused_connection_is_connect_failed(server: FakeServer) -> None:
    """Both transports tell at once, with the address."""

    async def main(scheme: str, port: int) -> None:
        async with AsyncProducer(
            f"{scheme}://127.0.0.1:{port}", settings=ProducerSettings(retries=0)
        ) as producer:
            with pytest.raises(SendFailed) as caught:
                await producer.send("orders", b"x")
            assert str(port) in str(caught.value)

    with dead_port() as port:
        for scheme in ("rocketmq", "zmq"):
            asyncio.run(main(scheme, port))
    assert issubclass(ConnectFailed, Exception)
    assert ClientSettings().connect_timeout_ms == 3_000
    assert MessageQueue("t", "b", 0).queue_id == 0


# --- many threads, one producer ----------------------------------------------------------------------


def test_threads_that_collect_share_window_and_connection(server: FakeServer, url: str) -> None:
    """Full batches are posted by whatever thread filled them, answers taken in by whatever thread reads them:
    every message is stored once, and every future knows its own outcome."""
    limits = BatchLimits(batch_messages=20, window_messages=100, in_flight_per_topic=3)
    settings = ProducerSettings(batch=limits, window_timeout_ms=60_000)
    futures: dict[bytes, SendFuture] = {}

    def send(name: int) -> None:
        for index in range(500):
            body = b"%d.%03d" % (name, index)
            futures[body] = producer.send_async("orders", body, tags="paid" if index % 3 else None)

    with Producer(url, settings=settings) as producer:
        threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        producer.flush()
        results = {body: future.result(0) for body, future in futures.items()}
    stored = {
        (queue, message.queue_offset): message
        for queue in range(4)
        for record in server.cluster.broker().topics["orders"][queue]
        for message in decode_messages(record, MessageQueue("orders", "broker-a", queue))
    }
    assert len(results) == len(stored) == 2_000
    for body, result in results.items():
        message = stored[result.queue.queue_id, result.queue_offset]
        assert (message.body, message.message_id) == (body, result.message_id)
        assert message.offset_message_id == result.offset_message_id


def test_a_producer_of_ones_own(server: FakeServer, url: str) -> None:
    """`send_async` is a method like any other, although the common call never leaves compiled code."""

    class Counting(Producer):
        count = 0

        def send_async(self, *arguments: Any, **options: Any) -> SendFuture:
            self.count += 1
            return super().send_async(*arguments, **options)

    with Counting(url) as producer:
        futures = [producer.send_async("orders", b"x", tags="a") for _ in range(10)]
        assert all(future.result(SECONDS).queue.topic == "orders" for future in futures)
        assert producer.count == 10


def test_after_closing_nothing_is_collected(server: FakeServer, url: str) -> None:
    """Neither by the quick way nor by the long one; nor before the start."""
    producer = Producer(url)
    with pytest.raises(ClientClosed):
        producer.send_async("orders", b"x")
    with producer:
        producer.send_async("orders", b"x")
    with pytest.raises(ClientClosed):
        producer.send_async("orders", b"x")


def test_asyncio_full_batches(server: FakeServer, url: str) -> None:
    async def main() -> list[int]:
        settings = ProducerSettings(batch=BatchLimits(batch_messages=10))
        async with AsyncProducer(url, settings=settings) as producer:
            futures = [await producer.send_async("orders", b"%d" % index, key="k") for index in range(95)]
            await producer.flush()
            return [future.result(0).queue_offset for future in futures]

    assert asyncio.run(main()) == list(range(95))
