"""Sending in virtual time: attempts, other brokers, refusals, new topics, batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.client.fakes import FakeCluster, SimLoop
from unit.client.sim import SimClient

from actormq.client import requests
from actormq.client.batching import BatchLimits
from actormq.client.collecting import Collector
from actormq.client.messages import Message, encode_user_properties
from actormq.client.received import decode_messages
from actormq.client.results import MessageQueue
from actormq.client.sending import FirstAttempt, queue_choice
from actormq.client.settings import ProducerSettings
from actormq.errors import (
    ClientClosed,
    ClientError,
    ConnectionLost,
    MessageRejected,
    NameServerUnavailable,
    RequestRefused,
    RequestTimeout,
    ResponseCode,
    RouteNotFound,
    SendFailed,
)
from actormq.message import SendStatus
from actormq.wire import frame
from actormq.wire.codes import RequestCode

SEND = RequestCode.SEND_MESSAGE_V2


class World:
    def __init__(self, brokers: int = 1, scheme: str = "rocketmq", **settings: Any) -> None:
        self.cluster = FakeCluster(brokers)
        self.client = SimClient(SimLoop(), self.cluster, scheme=scheme)
        self.sender = self.client.sender(ProducerSettings(**settings))

    def send(self, topic: str = "orders", body: bytes = b"x", choose: Any = None) -> Any:
        message = self.sender.single(Message(body))
        return self.client.run(self.sender.send(topic, message, choose))

    def stored(self, topic: str = "orders") -> list[bytes]:
        queue = MessageQueue(topic, "", 0)
        return [
            message.body
            for record in self.cluster.bodies(topic)
            for message in decode_messages(record, queue)
        ]


def test_a_message_is_stored_and_its_place_returned() -> None:
    world = World()
    world.cluster.create("orders")
    result = world.send()
    assert result.status is SendStatus.SEND_OK
    assert (result.queue.broker_name, result.queue_offset, result.region) == ("broker-a", 0, "DefaultRegion")
    assert len(result.message_id) == 32
    assert result.offset_message_id.startswith("7F000001")
    assert world.stored() == [b"x"]


def test_the_stored_message_carries_its_unique_key() -> None:
    world = World()
    result = world.send()
    [message] = decode_messages(world.cluster.bodies("orders")[0], result.queue)
    assert message.message_id == result.message_id


def test_queues_are_taken_in_turn() -> None:
    world = World()
    world.cluster.create("orders", 4)
    assert [world.send().queue.queue_id for _ in range(6)] == [0, 1, 2, 3, 0, 1]


def test_a_new_topic_is_made_by_the_broker() -> None:
    """Unknown topic: the template's brokers, min(4, 8) queues, and the broker creates it."""
    world = World(queues_wanted=4)
    world.cluster.queues = 8
    world.send("fresh")
    assert len(world.cluster.broker().topics["fresh"]) == 4


def test_without_creation_on_demand_an_unknown_topic_is_an_error_at_once() -> None:
    world = World()
    world.cluster.auto_create = False
    with pytest.raises(RouteNotFound, match="create it first"):
        world.send("fresh")
    assert world.client.loop.now_ms() < 100


def test_a_refusing_broker_is_left_for_another() -> None:
    world = World(brokers=2)
    world.cluster.create("orders")
    world.cluster.refuse[SEND] = [ResponseCode.SYSTEM_BUSY]
    assert world.send().queue.broker_name == "broker-b"


def test_a_broker_that_is_down_is_left_for_another_and_avoided_afterwards() -> None:
    world = World(brokers=2)
    world.cluster.create("orders")
    world.cluster.down.add("127.0.0.1:10911")
    assert {world.send().queue.broker_name for _ in range(8)} == {"broker-b"}


def test_a_single_broker_is_tried_again_until_it_serves() -> None:
    world = World(retries=2)
    world.cluster.create("orders")
    world.cluster.refuse[SEND] = [ResponseCode.SYSTEM_BUSY, ResponseCode.SERVICE_NOT_AVAILABLE]
    assert world.send().status is SendStatus.SEND_OK
    assert world.client.loop.now_ms() >= 50 + 100, "it pauses longer each time"


def test_after_all_attempts_the_failures_are_told() -> None:
    world = World(retries=2)
    world.cluster.create("orders")
    world.cluster.refuse[SEND] = [ResponseCode.SYSTEM_BUSY] * 3
    with pytest.raises(SendFailed) as caught:
        world.send()
    assert [failure.response_code for failure in caught.value.failures] == [2, 2, 2]
    assert caught.value.response_code == ResponseCode.SYSTEM_BUSY
    assert isinstance(caught.value.__cause__, RequestRefused)


def go_on(world: World, error: ClientError, broker: str = "broker-a", spent_ms: int = 0) -> Any:
    """Send what a thread has tried by itself, in vain."""
    began_ns = world.client.loop.clock.monotonic_ns()
    world.client.loop.run_for(spent_ms)
    message = world.sender.single(Message(b"x"))
    first = FirstAttempt(began_ns, lambda address: False, error, broker)
    return world.client.run(world.sender.store("orders", message, first=first))


def test_a_threads_own_attempt_counts_as_the_first() -> None:
    """Its broker is left for another, its failure and the time it took are told with the others'."""
    world = World(brokers=2, scheme="zmq")
    world.cluster.create("orders")
    for broker in ("broker-a", "broker-b"):
        assert go_on(world, ConnectionLost("gone"), broker).queue.broker_name != broker
    world.cluster.refuse[SEND] = [ResponseCode.SYSTEM_BUSY] * 9
    before = world.cluster.count(SEND)
    with pytest.raises(SendFailed, match=r"in 6 attempt\(s\)") as caught:
        go_on(world, ConnectionLost("gone"))
    assert world.cluster.count(SEND) - before == 5
    assert [type(failure) for failure in caught.value.failures] == [ConnectionLost] + [RequestRefused] * 5
    with pytest.raises(SendFailed, match=r"in 1 attempt\(s\) within 3000 ms") as caught:
        go_on(world, RequestTimeout("late"), spent_ms=3_000)
    assert isinstance(caught.value.failures[0], RequestTimeout)


def test_a_final_answer_to_a_threads_own_attempt_is_raised() -> None:
    world = World(scheme="zmq")
    world.cluster.create("orders")
    with pytest.raises(RequestRefused) as caught:
        go_on(world, RequestRefused(ResponseCode.MESSAGE_ILLEGAL, "no", "there"))
    assert caught.value.response_code == ResponseCode.MESSAGE_ILLEGAL
    assert world.cluster.count(SEND) == 0


def test_an_answer_that_is_final_is_not_tried_again() -> None:
    world = World()
    world.cluster.create("orders")
    world.cluster.refuse[SEND] = [ResponseCode.MESSAGE_ILLEGAL]
    with pytest.raises(RequestRefused) as caught:
        world.send()
    assert (caught.value.response_code, caught.value.peer_remark) == (13, "as the test wants it")
    assert world.cluster.count(SEND) == 1


def test_the_time_out_holds_for_all_attempts_together() -> None:
    world = World(send_timeout_ms=1_000)
    world.cluster.create("orders")
    world.cluster.silent.add(SEND)
    began_ms = world.client.loop.now_ms()
    with pytest.raises(SendFailed) as caught:
        world.send()
    assert isinstance(caught.value.failures[-1], RequestTimeout)
    assert 990 <= world.client.loop.now_ms() - began_ms <= 1_010


def test_no_name_server() -> None:
    world = World(retries=1)
    world.cluster.down.add(world.cluster.name_server)
    with pytest.raises(SendFailed) as caught:
        world.send()
    assert isinstance(caught.value.failures[0], NameServerUnavailable)


def test_stored_but_not_flushed_is_a_result() -> None:
    world = World()
    world.cluster.create("orders")
    original = world.cluster.handle

    def slow_disk(address: str, command: Any, answer: Any, push: Any) -> None:
        def changed(response: Any) -> None:
            if command.code == SEND:
                response.code = ResponseCode.FLUSH_DISK_TIMEOUT
            answer(response)

        original(address, command, changed, push)

    world.cluster.handle = slow_disk  # type: ignore[method-assign]
    assert world.send().status is SendStatus.FLUSH_DISK_TIMEOUT
    assert len(world.stored()) == 1
    world.sender.settings = ProducerSettings(retry_other_broker_when_not_ok=True, retries=1)
    assert world.send().status is SendStatus.FLUSH_DISK_TIMEOUT
    assert len(world.stored()) == 3


def test_a_key_decides_the_queue_on_every_attempt() -> None:
    world = World(brokers=2)
    world.cluster.create("orders")
    world.cluster.refuse[SEND] = [ResponseCode.SYSTEM_BUSY]
    assert len({world.send(choose=queue_choice("customer-7", None)).queue for _ in range(5)}) == 1


def test_a_selector_must_return_a_queue() -> None:
    world = World()
    world.cluster.create("orders")
    with pytest.raises(MessageRejected, match="no MessageQueue"):
        world.send(choose=lambda queues: None)
    with pytest.raises(MessageRejected, match="exclude"):
        queue_choice("key", MessageQueue("t", "a", 0))


def test_large_bodies_travel_compressed_and_come_out_whole() -> None:
    world = World()
    world.send(body=b"abc" * 10_000)
    assert len(world.cluster.bodies("orders")[0]) < 1_000
    assert world.stored() == [b"abc" * 10_000]


def test_a_batch_is_stored_in_one_queue_in_order() -> None:
    world = World()
    world.cluster.create("orders")
    batch = world.sender.batch([Message(b"1", tags="a"), Message(b"2"), Message(b"3")])
    outcome = world.client.run(world.sender.send_batch("orders", batch))
    results = [outcome.result(index) for index in range(3)]
    assert [result.queue_offset for result in results] == [0, 1, 2]
    assert len({result.queue for result in results}) == 1
    assert len({result.message_id for result in results}) == 3
    assert len({result.offset_message_id for result in results}) == 3
    assert world.stored() == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [Message(b"1", delay_level=1)],
        [Message(b"1"), Message(b"2", wait_stored=False)],
        [Message(b"x" * 40), Message(b"y" * 40)],
    ],
)
def test_batches_that_no_broker_takes_are_refused(messages: list[Message]) -> None:
    with pytest.raises(MessageRejected):
        World(body_bytes_max=100).sender.batch(messages)


def test_one_way_is_stored_without_an_answer() -> None:
    world = World()
    world.cluster.create("orders")
    world.client.run(world.sender.tell("orders", world.sender.single(Message(b"x"))))
    world.client.loop.run_for(10)
    assert world.stored() == [b"x"]


# --- collected ---------------------------------------------------------------------------------------


def collect(world: World, *bodies: bytes, **limits: Any) -> tuple[Collector, list[Any]]:
    world.sender.settings = ProducerSettings(batch=BatchLimits(**limits))
    collector = Collector(world.client.session, world.sender)
    futures = [collector.collect("orders", Message(body), None) for body in bodies]
    return collector, futures


def test_collected_messages_travel_together() -> None:
    world = World()
    world.cluster.create("orders")
    _, futures = collect(world, *(b"%d" % index for index in range(50)))
    world.client.loop.run_until(lambda: all(future.done() for future in futures))
    assert world.cluster.count(RequestCode.SEND_BATCH_MESSAGE) == 1
    assert [future.result().queue_offset for future in futures] == list(range(50))


def test_a_lone_message_travels_as_an_ordinary_one() -> None:
    world = World()
    world.cluster.create("orders")
    _, [future] = collect(world, b"x" * 10_000)
    world.client.loop.run_until(future.done)
    assert (world.cluster.count(RequestCode.SEND_BATCH_MESSAGE), world.cluster.count(SEND)) == (0, 1)
    assert len(world.cluster.bodies("orders")[0]) < 1_000, "compressed"


def test_collected_messages_for_one_queue_stay_in_order_through_failures() -> None:
    """A refused request is repeated before the next one for that queue goes."""
    world = World()
    world.cluster.create("orders")
    world.sender.settings = ProducerSettings(batch=BatchLimits(batch_messages=3))
    collector = Collector(world.client.session, world.sender)
    world.cluster.refuse[RequestCode.SEND_BATCH_MESSAGE] = [2, 2]
    queue = MessageQueue("orders", "broker-a", 2)
    futures = [collector.collect("orders", Message(b"%02d" % index), queue) for index in range(20)]
    world.client.loop.run_until(lambda: all(future is not None and future.done() for future in futures))
    assert world.stored() == [b"%02d" % index for index in range(20)]


def test_flush_waits_for_every_outcome() -> None:
    world = World()
    world.cluster.create("orders")
    collector, futures = collect(world, b"1", b"2", linger_ms=10_000)
    world.client.loop.run_for(5)
    assert not futures[0].done()
    world.client.run(collector.flush())
    assert [future.result().queue_offset for future in futures] == [0, 1]
    assert world.client.loop.now_ms() < 1_000


def test_linger_sends_when_its_time_has_come() -> None:
    world = World()
    world.cluster.create("orders")
    _, futures = collect(world, b"1", b"2", linger_ms=500)
    world.client.loop.run_for(499)
    assert world.cluster.count(RequestCode.SEND_BATCH_MESSAGE) == 0
    world.client.loop.run_until(futures[0].done)


def test_a_failed_batch_fails_every_message_of_it() -> None:
    world = World()
    world.cluster.create("orders")
    world.cluster.refuse[RequestCode.SEND_BATCH_MESSAGE] = [13]
    _, futures = collect(world, b"1", b"2")
    world.client.loop.run_until(futures[0].done)
    assert {type(future.exception()) for future in futures} == {RequestRefused}


def test_a_closed_collector_refuses_and_gives_up_what_waits() -> None:
    world = World()
    collector, futures = collect(world, b"1", linger_ms=10_000)
    collector.close()
    assert isinstance(futures[0].exception(), ClientClosed)
    with pytest.raises(ClientClosed):
        collector.collect("orders", Message(b"2"), None)


def test_illegal_messages_are_refused_when_collected() -> None:
    world = World()
    collector, _ = collect(world)
    for topic, body in (("a b", b"x"), ("%RETRY%g", b"x"), ("orders", b"")):
        with pytest.raises(MessageRejected):
            collector.collect(topic, Message(body), None)


# --- posted by the thread that filled the batch ------------------------------------------------------

BATCH = RequestCode.SEND_BATCH_MESSAGE


@given(
    opaque=st.integers(0, 2**31 - 1),
    born_ms=st.integers(0, 2**45),
    body=st.binary(max_size=50),
    topic=st.sampled_from(["orders", "a|b%c", 't"opaque":1']),
    wait_stored=st.booleans(),
    no_ids=st.booleans(),
)
def test_the_head_of_a_batch_is_that_of_an_ordinary_request(
    opaque: int, born_ms: int, body: bytes, topic: str, wait_stored: bool, no_ids: bool
) -> None:
    queue = MessageQueue(topic, "broker-a", 3)
    properties = encode_user_properties(wait_stored=wait_stored)
    message = requests.Outgoing(body=body, properties=properties, message_ids=[], batch=True)
    command = requests.send("group", queue, message, born_ms, queues_wanted=4, no_ids=no_ids)
    command.opaque = opaque
    head = requests.BatchHead("group", queue, wait_stored, 4, no_ids)
    assert head.encode(opaque, born_ms, len(body)) + body == frame.encode(command)


def connected(**settings: Any) -> World:
    """Return a world in which the broker's address and a connection to it are known."""
    world = World(**settings)
    world.cluster.create("orders", 1)
    world.send()
    world.cluster.asked.clear()
    return world


def fill(world: World, count: int, queue: MessageQueue | None = None, **limits: Any) -> list[Any]:
    """Collect messages, two to a batch."""
    limits = {"linger_ms": 1, **limits}  # otherwise the first one would not wait for the second
    settings = replace(world.sender.settings, batch=BatchLimits(batch_messages=2, **limits))
    world.sender.settings = settings
    world.collector = Collector(world.client.session, world.sender)  # type: ignore[attr-defined]
    return [
        world.collector.collect("orders", Message(b"%d" % index), queue)  # type: ignore[attr-defined]
        for index in range(count)
    ]


def done(world: World, futures: list[Any]) -> None:
    world.client.loop.run_until(lambda: all(future.done() for future in futures))


def test_a_message_that_finds_its_lane_idle_leaves_before_the_loop_has_its_turn() -> None:
    """By the thread that sends it, as an ordinary message; what comes while it is under way is collected."""
    world = connected()
    _, futures = collect(world, b"x" * 10_000, b"1", b"2")
    assert len(world.client.network._waiting) == 1, "nothing of the loop has run"
    done(world, futures)
    assert (world.cluster.count(SEND), world.cluster.count(BATCH)) == (1, 1)
    assert [future.result().queue_offset for future in futures] == [1, 2, 3]
    assert world.stored() == [b"x", b"x" * 10_000, b"1", b"2"]
    assert futures[0].result().message_id != futures[1].result().message_id


def test_a_posted_message_that_is_refused_is_sent_again() -> None:
    world = connected()
    world.cluster.refuse[SEND] = [ResponseCode.SYSTEM_BUSY]
    _, futures = collect(world, b"1")
    done(world, futures)
    assert world.cluster.count(SEND) == 2
    assert futures[0].result().queue_offset == 1
    [record] = world.cluster.bodies("orders")[1:]
    [stored] = decode_messages(record, MessageQueue("orders", "", 0))
    assert stored.message_id == futures[0].result().message_id


def test_a_full_batch_leaves_before_the_loop_has_its_turn() -> None:
    """The thread that fills it posts it; as many as may be under way."""
    world = connected()
    world.cluster.down.clear()
    futures = fill(world, 10, in_flight_per_topic=3, linger_ms=10_000)
    assert len(world.client.network._waiting) == 3, "nothing of the loop has run"
    done(world, futures)
    assert world.cluster.count(BATCH) == 5
    assert [future.result().queue_offset for future in futures] == list(range(1, 11))
    assert len({future.result().message_id for future in futures}) == 10
    assert len({future.result().offset_message_id for future in futures}) == 10


def test_a_posted_batch_that_is_refused_is_sent_again() -> None:
    world = connected()
    world.cluster.refuse[BATCH] = [ResponseCode.SYSTEM_BUSY, ResponseCode.SYSTEM_BUSY]
    futures = fill(world, 2)
    done(world, futures)
    assert [future.exception() for future in futures] == [None, None]
    assert world.client.loop.now_ms() >= 50 + 100, "with the pauses of every other send"
    assert world.cluster.count(BATCH) == 3


def test_a_posted_batch_that_the_broker_will_not_have_fails() -> None:
    world = connected()
    world.cluster.refuse[BATCH] = [ResponseCode.MESSAGE_ILLEGAL]
    futures = fill(world, 2)
    done(world, futures)
    assert {type(future.exception()) for future in futures} == {RequestRefused}
    assert world.cluster.count(BATCH) == 1


def test_posted_batches_of_one_queue_stay_in_order_through_failures() -> None:
    world = connected()
    world.cluster.refuse[BATCH] = [ResponseCode.SYSTEM_BUSY, ResponseCode.SYSTEM_BUSY]
    futures = fill(world, 20, MessageQueue("orders", "broker-a", 0))
    done(world, futures)
    assert world.stored() == [b"x", *(b"%d" % index for index in range(20))]


def test_a_posted_batch_whose_connection_breaks_is_sent_again() -> None:
    world = connected()
    futures = fill(world, 2)
    world.client.network.lose("127.0.0.1:10911")
    done(world, futures)
    assert [future.exception() for future in futures] == [None, None]


def test_a_posted_batch_has_the_time_of_every_other_send() -> None:
    """Nobody answers: the first attempt ends with the time-out for all, and so does the batch."""
    world = connected(send_timeout_ms=1_000)
    world.cluster.silent.add(BATCH)
    began_ms = world.client.loop.now_ms()
    futures = fill(world, 2)
    world.client.loop.run_for(400)
    later = [world.collector.collect("orders", Message(b"x"), None) for _ in range(2)]  # type: ignore[attr-defined]
    done(world, futures)
    assert 990 <= world.client.loop.now_ms() - began_ms <= 1_010
    [failure] = futures[0].exception().failures
    assert isinstance(failure, RequestTimeout)
    assert not later[0].done()
    done(world, later)
    assert 1_390 <= world.client.loop.now_ms() - began_ms <= 1_410


def test_nobody_watches_time_when_nothing_is_under_way() -> None:
    """An idle client sleeps."""
    world = connected(send_timeout_ms=1_000)
    done(world, fill(world, 2))
    world.client.loop.run_for(2_100)
    assert not world.collector._is_watching  # type: ignore[attr-defined]
    world.cluster.silent.add(BATCH)
    futures = [world.collector.collect("orders", Message(b"x"), None) for _ in range(2)]  # type: ignore[attr-defined]
    done(world, futures)
    assert isinstance(futures[0].exception(), SendFailed)


def test_closing_the_session_gives_up_what_is_posted() -> None:
    world = connected()
    world.cluster.silent.add(BATCH)
    futures = fill(world, 4, in_flight_per_topic=1)
    world.client.loop.run_for(5)
    world.client.session.close()
    assert {type(future.exception(0)) for future in futures} == {ClientClosed}


def test_closing_a_producer_lets_what_is_posted_end() -> None:
    world = connected()
    futures = fill(world, 4, in_flight_per_topic=1)
    world.collector.close()  # type: ignore[attr-defined]
    done(world, futures)
    assert [type(future.exception()) for future in futures] == [type(None)] * 2 + [ClientClosed] * 2
    assert world.collector.close not in world.client.session.at_close  # type: ignore[attr-defined]


def test_without_a_route_the_loop_asks_first() -> None:
    world = World()
    world.cluster.create("orders", 1)
    futures = fill(world, 2)
    done(world, futures)
    assert [future.result().queue_offset for future in futures] == [0, 1]


def test_a_stored_batch_with_less_than_wanted_may_be_sent_elsewhere() -> None:
    """retry_other_broker_when_not_ok holds for batches that were posted, too."""
    world = connected(retry_other_broker_when_not_ok=True, retries=1, retry_pause_ms=0)
    original = world.cluster.handle

    def slow_disk(address: str, command: Any, answer: Any, push: Any) -> None:
        def changed(response: Any) -> None:
            if command.code == BATCH:
                response.code = ResponseCode.FLUSH_DISK_TIMEOUT
            answer(response)

        original(address, command, changed, push)

    world.cluster.handle = slow_disk  # type: ignore[method-assign]
    futures = fill(world, 2)
    done(world, futures)
    assert futures[0].result().status is SendStatus.FLUSH_DISK_TIMEOUT
    assert world.cluster.count(BATCH) == 2


def test_a_flag_that_does_not_fit_is_refused() -> None:
    world = World()
    collector, _ = collect(world)
    with pytest.raises(MessageRejected, match="32 bits"):
        collector.collect("orders", Message(b"x", flag=1 << 31), None)
    with pytest.raises(MessageRejected, match="32 bits"):
        world.sender.single(Message(b"x", flag=-(1 << 31) - 1))
