"""Consumers in virtual time: pulling, giving back, rebalance, order, offsets, and what brokers ask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from unit.client.fakes import FakeCluster, SimLoop, encode_record
from unit.client.sim import SimClient

from actormq.client.procedures import Address
from actormq.client.received import ReceivedMessage
from actormq.client.requests import queue_json
from actormq.client.results import ConsumeResult, MessageModel, MessageQueue, RetryLater, StartFrom
from actormq.client.window import WindowLimits
from actormq.errors import ConfigError, ConnectionLost, ResponseCode
from actormq.wire import json
from actormq.wire.codes import RequestCode
from actormq.wire.command import RemotingCommand

FIRST = {"start_from": StartFrom.FIRST}


class World:
    """A cluster with a topic, one loop, any number of clients."""

    def __init__(self, queues: int = 4) -> None:
        self.loop = SimLoop()
        self.cluster = FakeCluster(queues=queues)
        self.cluster.create("orders")
        self._tick()
        self.got: list[ReceivedMessage] = []

    def _tick(self) -> None:
        self.cluster.tick()
        self.loop.call_later(100, self._tick)

    def client(self, name: str = "one", **options: Any) -> SimClient:
        return SimClient(self.loop, self.cluster, name, **options)

    def listen(self, message: ReceivedMessage) -> None:
        self.got.append(message)

    def put(self, count: int, queue_id: int | None = None) -> list[bytes]:
        bodies = [b"%d" % index for index in range(count)]
        for index, body in enumerate(bodies):
            queue = index % self.cluster.queues if queue_id is None else queue_id
            self.cluster.put("orders", body, queue_id=queue)
        return bodies

    def bodies(self) -> list[bytes]:
        return [message.body for message in self.got]

    def wait_for(self, count: int, within_ms: int = 60_000) -> int:
        return self.loop.run_until(lambda: len(self.got) >= count, within_ms)

    def pulls_of(self, topic: str) -> int:
        return sum(
            command.code == RequestCode.PULL_MESSAGE and command.fields["topic"] == topic
            for _, command in self.cluster.asked
        )

    def offsets(self, group: str = "g", topic: str = "orders") -> dict[int, int]:
        return {
            queue: offset
            for (a_group, a_topic, queue), offset in self.cluster.broker().offsets.items()
            if (a_group, a_topic) == (group, topic)
        }


@pytest.fixture
def world() -> World:
    return World()


# --- pulling -----------------------------------------------------------------------------------------


def test_everything_is_consumed_once_and_committed(world: World) -> None:
    sent = world.put(100)
    consumer = world.client().consumer("g", world.listen, **FIRST)
    world.wait_for(100)
    assert sorted(world.bodies()) == sorted(sent)
    world.loop.run_for(6_000)
    assert world.offsets() == {0: 25, 1: 25, 2: 25, 3: 25}
    assert len(consumer.core.queues()) == 5, "the topic's four and the retry topic's one"


def test_a_message_that_comes_later_is_delivered_at_once(world: World) -> None:
    """The broker holds the pull; there is no polling."""
    world.client().consumer("g", world.listen, **FIRST)
    world.loop.run_for(3_000)
    pulls = world.cluster.count(RequestCode.PULL_MESSAGE)
    world.loop.run_for(5_000)
    assert world.cluster.count(RequestCode.PULL_MESSAGE) == pulls
    world.put(1)
    assert world.wait_for(1) <= 5


def test_a_group_goes_on_where_it_stopped(world: World) -> None:
    world.put(10)
    client = world.client()
    consumer = client.consumer("g", world.listen, **FIRST)
    world.wait_for(10)
    consumer.close()
    client.kill()
    world.got.clear()
    for body in (b"new-1", b"new-2"):
        world.cluster.put("orders", body)
    world.client("two").consumer("g", world.listen, **FIRST)
    world.wait_for(2)
    world.loop.run_for(1_000)
    assert world.bodies() == [b"new-1", b"new-2"]


def test_a_new_group_starts_at_the_end_unless_told_otherwise(world: World) -> None:
    world.put(8)
    world.client().consumer("g", world.listen)
    world.loop.run_for(2_000)
    world.cluster.put("orders", b"after")
    world.wait_for(1)
    assert world.bodies() == [b"after"]


def test_a_new_group_may_start_at_a_time(world: World) -> None:
    asked = []
    world.cluster.refuse[RequestCode.SEARCH_OFFSET_BY_TIMESTAMP] = []
    original = world.cluster.handle

    def handle(address: str, command: Any, answer: Any, push: Any) -> None:
        if command.code == RequestCode.SEARCH_OFFSET_BY_TIMESTAMP:
            asked.append(command.fields["timestamp"])
            answer(RemotingCommand.response_to(command, 0, fields={"offset": "1"}))
        else:
            original(address, command, answer, push)

    world.cluster.handle = handle  # type: ignore[method-assign]
    world.put(8)
    world.client().consumer("g", world.listen, start_from=StartFrom.TIMESTAMP, start_timestamp_ms=1_234)
    world.wait_for(4)
    assert asked == ["1234"] * 4
    assert sorted(world.bodies()) == [b"4", b"5", b"6", b"7"]


def test_only_the_wanted_tags_are_delivered_and_all_are_committed(world: World) -> None:
    for index, tag in enumerate(["paid", "new", "old", "Aa", "BB"] * 4):
        world.cluster.put("orders", b"%d" % index, {"TAGS": tag})
    world.client().consumer("g", world.listen, expression="paid || Aa", **FIRST)
    world.wait_for(8)
    world.loop.run_for(6_000)
    assert {message.tags for message in world.got} == {"paid", "Aa"}
    assert world.offsets()[0] == 20


def test_an_offset_outside_the_queue_is_moved_into_it(world: World) -> None:
    """client.md §4.2, OFFSET_ILLEGAL: go on where the broker says, and persist that."""
    world.put(8, queue_id=0)
    world.cluster.broker().min_offsets["orders", 0] = 5
    world.cluster.broker().offsets["g", "orders", 1] = 77
    world.client().consumer("g", world.listen, **FIRST)
    world.wait_for(3)
    assert sorted(world.bodies()) == [b"5", b"6", b"7"]
    world.loop.run_for(100)
    assert world.offsets()[1] == 0


def test_a_full_window_stops_pulling_until_listeners_catch_up() -> None:
    world = World(queues=1)
    world.put(500)
    world.client().consumer(
        "g", world.listen, takes_ms=1_000, window=WindowLimits(messages_max=64), pull_messages=32, **FIRST
    )
    world.wait_for(2)
    pulls = world.pulls_of("orders")
    world.loop.run_for(20_000)
    assert world.pulls_of("orders") - pulls <= 2
    world.wait_for(500, within_ms=600_000)
    assert len(set(world.bodies())) == 500


def test_a_lost_connection_is_no_pause(world: World) -> None:
    """A broker's gateway was replaced: the pull is repeated at once, the client introduces itself again."""
    client = world.client()
    client.consumer("g", world.listen, **FIRST)
    world.loop.run_for(2_000)
    heartbeats = world.cluster.count(RequestCode.HEART_BEAT)
    world.cluster.parked.clear()
    client.network.lose("127.0.0.1:10911")
    client.session.on_link_closed(Address("tcp://127.0.0.1:10911"), ConnectionLost("lost"))
    world.put(4)
    assert world.wait_for(4) <= 150
    assert world.cluster.count(RequestCode.HEART_BEAT) > heartbeats


def test_a_broker_that_forgot_the_subscription_is_told_again(world: World) -> None:
    world.client().consumer("g", world.listen, **FIRST)
    world.loop.run_for(1_000)
    heartbeats = world.cluster.count(RequestCode.HEART_BEAT)
    world.cluster.refuse[RequestCode.PULL_MESSAGE] = [ResponseCode.SUBSCRIPTION_NOT_EXIST] * 4
    world.put(8)
    assert world.wait_for(8) < 500, "the pull overtook the heartbeat, no more"
    assert world.cluster.count(RequestCode.HEART_BEAT) > heartbeats


def test_a_broker_that_refuses_for_long_is_asked_once_a_second(world: World) -> None:
    """The pauses grow up to `pause_after_error_ms`, and begin anew once a pull has succeeded."""
    world.client().consumer("g", world.listen, **FIRST)
    world.loop.run_for(1_000)
    world.cluster.refuse[RequestCode.PULL_MESSAGE] = [ResponseCode.SYSTEM_ERROR] * 1_000
    world.put(4)
    world.loop.run_for(3_000)
    before = world.cluster.count(RequestCode.PULL_MESSAGE)
    world.loop.run_for(10_000)
    assert world.cluster.count(RequestCode.PULL_MESSAGE) - before <= 5 * 11
    world.cluster.refuse[RequestCode.PULL_MESSAGE] = []
    world.loop.run_for(1_100)
    world.cluster.refuse[RequestCode.PULL_MESSAGE] = [ResponseCode.SYSTEM_ERROR] * 4
    for count in (8, 12):  # the pulls that waited have the first four, those after them fail
        world.put(4)
        assert world.wait_for(count) <= 300


def test_flow_control_is_a_short_pause(world: World) -> None:
    world.put(4)
    world.cluster.refuse[RequestCode.PULL_MESSAGE] = [ResponseCode.FLOW_CONTROL] * 5
    world.client().consumer("g", world.listen, **FIRST)
    assert world.wait_for(4) < 500


def test_a_broker_that_does_not_hold_pulls_is_not_hammered(world: World) -> None:
    world.cluster.refuse[RequestCode.PULL_MESSAGE] = []
    original = world.cluster._pull
    world.cluster._pull = lambda *arguments, may_wait=True: original(*arguments, may_wait=False)  # type: ignore[method-assign]
    world.client().consumer("g", world.listen, **FIRST)
    world.loop.run_for(10_000)
    assert world.cluster.count(RequestCode.PULL_MESSAGE) < 10_000 / 50 * 5 * 1.2


def test_a_topic_that_does_not_exist_yet_is_found_soon_after_it_does(world: World) -> None:
    """RocketMQ's clients may take 30 s; ours ask every second while a topic is unknown."""
    world.client().consumer("g", world.listen, topic="future", **FIRST)
    world.loop.run_for(5_000)
    world.cluster.put("future", b"x")
    assert world.wait_for(1) <= 2_500


def test_pausing_stops_pulls_and_resuming_goes_on(world: World) -> None:
    consumer = world.client().consumer("g", world.listen, **FIRST)
    world.loop.run_for(1_000)
    consumer.core.pause()
    world.put(4)
    world.wait_for(4)  # the pulls that wait at the broker still bring something
    world.loop.run_for(1_000)
    world.put(4)
    world.loop.run_for(20_000)
    assert len(world.got) == 4
    consumer.core.resume()
    world.wait_for(8, within_ms=100)


# --- failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise", "retry", "later"])
def test_a_failed_message_comes_back_through_the_retry_topic(world: World, how: str) -> None:
    def listener(message: ReceivedMessage) -> ConsumeResult | None:
        world.got.append(message)
        if len(world.got) == 1:
            if how == "raise":
                raise ValueError("not now")
            if how == "later":
                raise RetryLater(delay_level=5)
            return ConsumeResult.RETRY
        return None

    world.put(1)
    world.client().consumer("g", listener, **FIRST)
    world.wait_for(2)
    first, again = world.got
    assert (again.topic, again.stored_topic, again.reconsume_times) == ("orders", "%RETRY%g", 1)
    assert (again.body, again.properties["ORIGIN_MESSAGE_ID"]) == (first.body, first.message_id)
    [(_, command)] = [one for one in world.cluster.asked if one[1].code == RequestCode.CONSUMER_SEND_MSG_BACK]
    assert command.fields["delayLevel"] == ("5" if how == "later" else "0")
    assert command.fields["maxReconsumeTimes"] == "16"
    world.loop.run_for(6_000)
    assert world.offsets()[0] == 1


@pytest.mark.parametrize("answers", [True, False])
def test_leaving_waits_for_what_is_on_its_way_back(world: World, answers: bool) -> None:
    """Its offset is saved, if the broker answers in time."""
    original = world.cluster.handle

    def handle(address: str, command: Any, answer: Any, push: Any) -> None:
        def answer_late(answered: RemotingCommand) -> None:
            if answers:
                world.loop.call_later(2_000, lambda: answer(answered))

        late = command.code in (RequestCode.CONSUMER_SEND_MSG_BACK, RequestCode.SEND_MESSAGE_V2)
        original(address, command, answer_late if late else answer, push)

    def listener(message: ReceivedMessage) -> None:
        world.got.append(message)
        if len(world.got) == 1:
            raise RetryLater

    world.cluster.handle = handle  # type: ignore[method-assign]
    world.put(2, queue_id=0)
    consumer = world.client().consumer("g", listener, **FIRST)
    world.wait_for(3, within_ms=1_000)
    consumer.close()
    assert world.offsets()[0] == (2 if answers else 0)


def test_when_the_broker_refuses_it_is_sent_to_the_retry_topic(world: World) -> None:
    """client.md §4.4: a normal message with RETRY_TOPIC, delay level 3 + n and the counts in the header."""
    failed: list[int] = []

    def listener(message: ReceivedMessage) -> None:
        world.got.append(message)
        if not failed:
            failed.append(1)
            raise ValueError("not now")

    world.cluster.refuse[RequestCode.CONSUMER_SEND_MSG_BACK] = [ResponseCode.SYSTEM_ERROR]
    world.put(1)
    world.client().consumer("g", listener, **FIRST)
    world.wait_for(2)
    again = world.got[1]
    assert (again.topic, again.reconsume_times, again.properties["DELAY"]) == ("orders", 1, "3")
    [(_, command)] = [one for one in world.cluster.asked if one[1].code == RequestCode.SEND_MESSAGE_V2]
    assert (command.fields["j"], command.fields["l"], command.fields["b"]) == ("1", "16", "%RETRY%g")


def test_when_nothing_helps_it_is_delivered_again_here_and_not_committed(world: World) -> None:
    def listener(message: ReceivedMessage) -> None:
        world.got.append(message)
        if len(world.got) < 3:
            raise ValueError("not now")

    world.cluster.refuse[RequestCode.CONSUMER_SEND_MSG_BACK] = [1] * 2
    world.cluster.refuse[RequestCode.SEND_MESSAGE_V2] = [13] * 2
    world.put(2, queue_id=0)
    world.client().consumer("g", listener, **FIRST)
    world.wait_for(2)
    world.loop.run_for(5_500)
    assert world.got[2] in world.got[:2], "the same object, from the window"
    assert world.got[2].reconsume_times == 1
    world.wait_for(4)
    world.loop.run_for(6_000)
    assert world.offsets()[0] == 2


def test_broadcast_failures_are_not_repeated(world: World, tmp_path: Path) -> None:
    def listener(message: ReceivedMessage) -> None:
        world.got.append(message)
        raise ValueError("no")

    world.put(4)
    world.client().consumer("g", listener, model=MessageModel.BROADCASTING, offsets_folder=tmp_path, **FIRST)
    world.wait_for(4)
    world.loop.run_for(20_000)
    assert len(world.got) == 4
    assert world.cluster.count(RequestCode.CONSUMER_SEND_MSG_BACK) == 0


def test_a_message_stuck_in_its_listener_is_given_to_others(world: World) -> None:
    """The queue's offset does not wait for ever: after the listener's time-out the message is sent back."""
    world.put(1)
    client = world.client()
    consumer = client.consumer("g", world.listen, listener_timeout_ms=60_000, takes_ms=10**9, **FIRST)
    consumer._hand_over = lambda delivery: delivery.take(world.loop.now_ms())  # type: ignore[method-assign]
    consumer.core.handing._hand_over = lambda delivery: delivery.take(world.loop.now_ms())  # type: ignore[assignment]
    world.loop.run_for(100_000)
    assert world.cluster.count(RequestCode.CONSUMER_SEND_MSG_BACK) == 0
    world.loop.run_for(30_000)
    assert world.cluster.count(RequestCode.CONSUMER_SEND_MSG_BACK) == 1
    world.loop.run_for(6_000)
    assert world.offsets()[0] == 1


# --- the group ---------------------------------------------------------------------------------------


def test_two_members_split_the_queues_and_a_third_changes_that_at_once(world: World) -> None:
    consumers = [world.client(name).consumer("g", world.listen, **FIRST) for name in ("a", "b")]

    def shares() -> list[int]:
        return [sum(queue.topic == "orders" for queue in one.core.queues()) for one in consumers]

    world.loop.run_until(lambda: shares() == [2, 2], within_ms=2_000)
    consumers.append(world.client("c").consumer("g", world.listen, **FIRST))
    world.loop.run_until(lambda: shares() == [2, 1, 1], within_ms=2_000)


def test_on_queues_is_told_before_a_queues_first_message_and_after_its_last(world: World) -> None:
    """What it is told is what `queues` says; in order, nothing comes of a queue that was let go."""
    told: list[tuple[str, Any]] = []

    def watch(taken: Sequence[MessageQueue], left: Sequence[MessageQueue]) -> None:
        told.extend(("taken", queue) for queue in taken)
        told.extend(("left", queue) for queue in left)

    def listen(message: ReceivedMessage) -> None:
        told.append(("message", message.queue))

    world.put(40)
    first = world.client("a").consumer("g", listen, takes_ms=20, orderly=True, on_queues=watch, **FIRST)
    world.loop.run_for(100)
    world.client("b").consumer("g", world.listen, orderly=True, **FIRST)
    world.wait_for(1)
    mine = first.core.queues()
    assert {queue for kind, queue in told if kind == "taken"} > set(mine)
    first.close()
    held: set[MessageQueue] = set()
    for kind, queue in told:
        assert (queue in held) == (kind != "taken"), (kind, queue)
        if kind == "taken":
            held.add(queue)
        elif kind == "left":
            held.remove(queue)
    assert not held
    assert any(kind == "message" for kind, _ in told)


def test_an_error_in_on_queues_stops_nothing(world: World) -> None:
    def fail(taken: Sequence[MessageQueue], left: Sequence[MessageQueue]) -> None:
        raise ValueError("the user's mistake")

    world.put(3)
    world.client().consumer("g", world.listen, on_queues=fail, **FIRST)
    world.wait_for(3)


def test_a_member_that_leaves_is_replaced_at_once_and_nothing_is_lost(world: World) -> None:
    one, two = world.client("a"), world.client("b")
    first = one.consumer("g", world.listen, **FIRST)
    second = two.consumer("g", world.listen, **FIRST)
    world.loop.run_for(2_000)
    world.put(40)
    world.wait_for(40)
    first.close()
    assert world.cluster.count(RequestCode.UNREGISTER_CLIENT) == 1
    world.loop.run_until(lambda: len(second.core.queues()) == 5, within_ms=2_000)
    world.cluster.put("orders", b"later")
    world.wait_for(41)
    world.loop.run_for(2_000)
    assert len(world.got) == 41, "nothing twice: the offsets were saved before leaving"


def test_a_member_that_is_killed_loses_its_queues_but_no_message(world: World) -> None:
    one, two = world.client("a"), world.client("b")
    one.consumer("g", world.listen, takes_ms=50, **FIRST)
    two.consumer("g", world.listen, **FIRST)
    world.loop.run_for(2_000)
    sent = world.put(40)
    world.wait_for(25)
    one.kill()
    world.cluster.drop_member(one.id)
    world.loop.run_until(lambda: set(world.bodies()) == set(sent), within_ms=5_000)


def test_a_broker_that_does_not_list_us_is_told_of_us_first(world: World) -> None:
    client = world.client()
    consumer = client.consumer("g", world.listen, **FIRST)
    world.loop.run_for(1_000)
    world.cluster.broker().members["g"].clear()
    consumer.core.on_members_changed()
    world.loop.run_for(2_000)
    assert len(consumer.core.queues()) == 5
    assert client.id in world.cluster.broker().members["g"]


def test_while_the_broker_cannot_say_who_is_there_queues_are_kept(world: World) -> None:
    """design-failure §9: a restarted coordinator answers an error to 38 until it knows all members."""
    consumer = world.client().consumer("g", world.listen, **FIRST)
    world.loop.run_for(1_000)
    before = consumer.core.queues()
    world.cluster.refuse[RequestCode.GET_CONSUMER_LIST_BY_GROUP] = [1] * 12
    consumer.core.on_members_changed()
    world.loop.run_for(1_500)
    assert consumer.core.queues() == before


def test_one_client_has_one_consumer_of_a_group(world: World) -> None:
    client = world.client()
    client.consumer("g", world.listen)
    with pytest.raises(ConfigError, match="already"):
        client.consumer("g", world.listen)


def test_unsubscribing_gives_the_queues_up(world: World) -> None:
    consumer = world.client().consumer("g", world.listen, **FIRST)
    world.loop.run_for(1_000)
    consumer.core.unsubscribe("orders")
    world.loop.run_for(1_000)
    assert [queue.topic for queue in consumer.core.queues()] == ["%RETRY%g"]
    world.put(4)
    world.loop.run_for(1_000)
    assert world.got == []


def test_broadcasting_gives_every_member_everything(world: World, tmp_path: Path) -> None:
    """Offsets are kept in a file, found again by a client of the same instance name."""
    settings = {"model": MessageModel.BROADCASTING, "offsets_folder": tmp_path, **FIRST}
    received: dict[str, list[bytes]] = defaultdict(list)
    clients = {name: world.client(name) for name in "ab"}
    consumers = [
        clients[name].consumer("g", lambda one, name=name: received[name].append(one.body), **settings)
        for name in "ab"
    ]
    sent = world.put(12)
    world.loop.run_until(lambda: sum(map(len, received.values())) == 24)
    assert sorted(received["a"]) == sorted(received["b"]) == sorted(sent)
    for consumer in consumers:
        consumer.close()
    assert world.offsets() == {}
    received.clear()
    world.cluster.put("orders", b"later")
    clients["a"].kill()
    world.client("a").consumer("g", lambda message: received["a"].append(message.body), **settings)
    world.loop.run_for(2_000)
    assert received["a"] == [b"later"]


# --- order -------------------------------------------------------------------------------------------


def test_an_orderly_consumer_locks_and_keeps_the_order_through_failures() -> None:
    world = World(queues=2)
    failures = {b"3": 2, b"6": 1}

    def listener(message: ReceivedMessage) -> None:
        if failures.get(message.body, 0):
            failures[message.body] -= 1
            raise ValueError("not now")
        world.got.append(message)

    sent = world.put(10, queue_id=1)
    client = world.client()
    client.consumer("g", listener, orderly=True, **FIRST)
    spent_ms = world.wait_for(10)
    assert world.bodies() == sent
    assert spent_ms >= 3_000, "a queue rests for a second after each failure"
    assert set(world.cluster.broker().locks.values()) == {client.id}
    assert world.cluster.count(RequestCode.CONSUMER_SEND_MSG_BACK) == 0


def test_an_orderly_message_that_always_fails_is_set_aside_after_so_many_times() -> None:
    world = World(queues=1)

    def listener(message: ReceivedMessage) -> None:
        if message.body == b"0":
            raise ValueError("never")
        world.got.append(message)

    world.put(3)
    world.client().consumer("g", listener, orderly=True, reconsume_max=2, **FIRST)
    world.wait_for(2)
    assert world.bodies() == [b"1", b"2"]
    [(_, command)] = [one for one in world.cluster.asked if one[1].code == RequestCode.SEND_MESSAGE_V2]
    assert (command.fields["b"], command.fields["j"], command.fields["l"]) == ("%RETRY%g", "3", "2")


def test_a_queue_changes_owners_only_when_its_listener_is_through_and_stays_in_order() -> None:
    world = World(queues=1)
    sent = world.put(60)
    clients = [world.client(name) for name in ("b", "a")]
    log: list[tuple[str, bytes]] = []
    clients[0].consumer("g", lambda m: log.append(("b", m.body)), takes_ms=100, orderly=True, **FIRST)
    world.loop.run_until(lambda: len(log) >= 5)
    clients[1].consumer("g", lambda m: log.append(("a", m.body)), takes_ms=1, orderly=True, **FIRST)
    world.loop.run_until(lambda: len(log) >= 60)
    world.loop.run_for(5_000)
    assert [body for _, body in log] == sent, "in order, none twice"
    assert {name for name, _ in log} == {"a", "b"}


def test_a_queue_whose_lock_belongs_to_somebody_else_is_not_consumed() -> None:
    world = World(queues=1)
    world.put(3)
    world.cluster.broker().locks["g", "orders", 0] = "somebody"
    world.client().consumer("g", world.listen, orderly=True, **FIRST)
    world.loop.run_for(10_000)
    assert world.got == []
    world.cluster.broker().locks.clear()
    world.wait_for(3, within_ms=2_000)


def test_locks_are_renewed_and_a_lost_one_stops_the_queue() -> None:
    world = World(queues=1)
    client = world.client()
    consumer = client.consumer("g", world.listen, orderly=True, **FIRST)
    world.loop.run_for(21_000)
    renewed = world.cluster.count(RequestCode.LOCK_BATCH_MQ)
    world.loop.run_for(20_000)
    assert world.cluster.count(RequestCode.LOCK_BATCH_MQ) == renewed + 1
    world.cluster.broker().locks["g", "orders", 0] = "somebody"
    world.loop.run_for(40_000)
    assert [queue.topic for queue in consumer.core.queues()] == ["%RETRY%g"]
    world.put(1)
    world.loop.run_for(5_000)
    assert world.got == []


def test_a_broker_that_was_started_anew_is_told_the_offsets_again(world: World) -> None:
    """It had not saved them; of a queue without new messages nobody else would ever say it."""
    client = world.client()
    client.consumer("g", world.listen, **FIRST)
    world.loop.run_for(1_000)
    world.put(4)
    world.wait_for(4)
    world.loop.run_for(6_000)
    before = dict(world.cluster.broker().offsets)
    assert before["g", "orders", 0] == 1
    world.cluster.broker().offsets.clear()
    world.loop.run_for(60_000)
    assert world.cluster.broker().offsets == {}
    client.session.on_link_open(Address("tcp://127.0.0.1:10911"))
    world.loop.run_for(6_000)
    assert world.cluster.broker().offsets == before


def test_a_queue_that_a_new_broker_gave_to_another_is_left_at_once() -> None:
    """Its locks are gone with the old one; whoever came first has them, and both must not go on."""
    world = World(queues=1)
    client = world.client()
    consumer = client.consumer("g", world.listen, orderly=True, commit_interval_ms=500, **FIRST)
    world.loop.run_for(1_000)
    world.put(2)
    world.wait_for(2)
    world.loop.run_for(1_000)
    world.cluster.broker().locks["g", "orders", 0] = "somebody"
    world.cluster.broker().offsets["g", "orders", 0] = 7
    client.session.on_link_open(Address("tcp://127.0.0.1:10911"))
    world.loop.run_for(100)
    assert [queue.topic for queue in consumer.core.queues()] == ["%RETRY%g"]
    world.loop.run_for(6_000)
    assert world.cluster.broker().offsets["g", "orders", 0] == 7


@pytest.mark.parametrize("answer", ["refusal", "silence"])
def test_a_lock_is_given_back_until_the_broker_has_heard_it(answer: str) -> None:
    """A native broker keeps all locks alive that it knows, with each heartbeat: nobody had the queue."""
    world = World(queues=2)
    first = world.client("b")
    first.consumer("g", world.listen, orderly=True, **FIRST)
    world.loop.run_for(1_000)
    original, unheard = world.cluster.handle, 2

    def handle(address: str, command: Any, reply: Any, push: Any) -> None:
        nonlocal unheard
        if command.code != RequestCode.UNLOCK_BATCH_MQ or not unheard:
            original(address, command, reply, push)
            return
        unheard -= 1
        if answer == "refusal":
            reply(RemotingCommand.response_to(command, ResponseCode.SYSTEM_BUSY, remark="who knows"))

    world.cluster.handle = handle  # type: ignore[method-assign]
    second = world.client("a")
    second.consumer("g", world.listen, orderly=True, **FIRST)
    world.loop.run_for(30_000)
    assert not unheard
    owners = [world.cluster.broker().locks["g", "orders", number] for number in range(2)]
    assert sorted(owners) == sorted([first.id, second.id])


def test_a_lock_that_may_have_been_granted_is_given_back(world: World) -> None:
    """Its answer was lost, and meanwhile the queue has become somebody else's."""
    original = world.cluster.handle
    lost = []

    def handle(address: str, command: Any, reply: Any, push: Any) -> None:
        if command.code == RequestCode.LOCK_BATCH_MQ and not lost:
            lost.append(original(address, command, lambda answered: None, push))
        else:
            original(address, command, reply, push)

    world.cluster.handle = handle  # type: ignore[method-assign]
    first = world.client("b")
    first.consumer("g", world.listen, orderly=True, **FIRST)
    world.loop.run_until(lambda: bool(lost))
    second = world.client("a")
    second.consumer("g", world.listen, orderly=True, **FIRST)
    world.loop.run_for(30_000)
    owners = [world.cluster.broker().locks["g", "orders", number] for number in range(4)]
    assert owners == [second.id] * 2 + [first.id] * 2


def test_a_broker_that_grants_nothing_for_long_is_not_flooded(world: World) -> None:
    """Each attempt to take a queue over may leave a lock behind; only the last one is worth a question."""
    original = world.cluster.handle

    def handle(address: str, command: Any, reply: Any, push: Any) -> None:
        if command.code in (RequestCode.LOCK_BATCH_MQ, RequestCode.UNLOCK_BATCH_MQ):
            world.cluster.asked.append((address, command))
            reply(RemotingCommand.response_to(command, ResponseCode.SYSTEM_BUSY, remark="who knows"))
        else:
            original(address, command, reply, push)

    world.cluster.handle = handle  # type: ignore[method-assign]
    world.client().consumer("g", world.listen, orderly=True, **FIRST)
    world.loop.run_for(60_000)
    assert world.cluster.count(RequestCode.UNLOCK_BATCH_MQ) <= 2 * world.cluster.count(
        RequestCode.LOCK_BATCH_MQ
    )


def test_leaving_gives_the_locks_back() -> None:
    world = World(queues=2)
    consumer = world.client().consumer("g", world.listen, orderly=True, **FIRST)
    world.loop.run_for(1_000)
    consumer.close()
    assert world.cluster.broker().locks == {}


def test_a_lease_that_ran_out_stops_the_queue_and_never_moves_the_offset_back() -> None:
    """Over ZeroMQ the broker gives a silent client's lock away after 5 s: a process that was stopped for
    longer must neither go on nor save its old offset; it takes the queue over afresh, at once."""
    world = World(queues=1)
    broker = world.cluster.broker()
    broker.zmq_address = "127.0.0.1:10921"
    world.cluster.brokers["127.0.0.1:10921"] = broker
    client = SimClient(world.loop, world.cluster, scheme="zmq")
    client.consumer("g", world.listen, orderly=True, takes_ms=100, commit_interval_ms=500, **FIRST)
    world.loop.run_for(2_000)
    world.put(200)
    world.wait_for(3)
    world.cluster.silent |= {RequestCode.HEART_BEAT, RequestCode.UPDATE_CONSUMER_OFFSET}
    world.loop.run_for(2_900)
    assert len(world.got) > 25, "the lease still holds"
    world.loop.run_for(2_000)
    stopped_at = len(world.got)
    world.loop.run_for(3_000)
    assert len(world.got) == stopped_at, "nothing more after the lease"
    broker.offsets["g", "orders", 0] = 150  # what the next owner did meanwhile
    broker.locks.clear()
    world.cluster.silent.clear()
    world.wait_for(stopped_at + 1, within_ms=2_500)
    world.wait_for(stopped_at + 50)
    assert world.bodies()[stopped_at:] == [b"%d" % index for index in range(150, 200)]
    assert broker.offsets["g", "orders", 0] >= 150


# --- memberships and connections ---------------------------------------------------------------------


def test_heartbeats_every_thirty_seconds_over_tcp(world: World) -> None:
    world.client().consumer("g", world.listen, **FIRST)
    world.loop.run_for(20_000)
    before = world.cluster.count(RequestCode.HEART_BEAT)
    world.loop.run_for(60_000)
    assert world.cluster.count(RequestCode.HEART_BEAT) - before == 2


@pytest.mark.parametrize("told_by", ["route", "broker"])
def test_heartbeats_every_second_over_zeromq(world: World, told_by: str) -> None:
    """The lease of a native client is 5 s; its broker cannot see it die."""
    world.cluster.name_server = "127.0.0.1:9877"
    broker = world.cluster.brokers["127.0.0.1:10911"]
    broker.zmq_address = "127.0.0.1:10921"
    world.cluster.brokers["127.0.0.1:10921"] = broker
    world.cluster.brokers = dict(reversed(world.cluster.brokers.items()))
    world.cluster.knows_endpoints = True
    original = world.cluster._route

    def route(command: RemotingCommand) -> RemotingCommand:
        if told_by == "broker":
            broker.zmq_address = None
        answer = original(command)
        broker.zmq_address = "127.0.0.1:10921"
        return answer

    world.cluster._route = route  # type: ignore[method-assign]
    client = SimClient(world.loop, world.cluster, scheme="zmq")
    client.session.directory._name_servers = ["zmq://127.0.0.1:9877"]  # type: ignore[list-item]
    client.consumer("g", world.listen, **FIRST)
    world.loop.run_for(3_000)
    before = world.cluster.count(RequestCode.HEART_BEAT)
    world.loop.run_for(20_000)
    assert 19 <= world.cluster.count(RequestCode.HEART_BEAT) - before <= 21
    assert world.cluster.count(RequestCode.GET_ENDPOINTS) <= (2 if told_by == "broker" else 0)
    pulls = {address for address, command in world.cluster.asked if command.code == RequestCode.PULL_MESSAGE}
    assert pulls == {"127.0.0.1:10921"}


def test_a_rocketmq_broker_is_talked_to_over_tcp(world: World) -> None:
    """It answers REQUEST_CODE_NOT_SUPPORTED to the question for its endpoints; it is asked once."""
    client = SimClient(world.loop, world.cluster, scheme="zmq")
    client.consumer("g", world.listen, **FIRST)
    world.put(4)
    world.wait_for(4)
    assert world.cluster.count(RequestCode.GET_ENDPOINTS) <= 2


# --- what brokers ask --------------------------------------------------------------------------------


def ask_client(client: SimClient, code: int, fields: dict[str, str], body: bytes = b"") -> RemotingCommand:
    answers: list[RemotingCommand] = []
    client.session.on_request(RemotingCommand.request(code, fields, body), answers.append)
    client.loop.run_until(lambda: bool(answers), within_ms=1_000)
    return answers[0]


def test_offsets_can_be_reset_by_an_administrator(world: World) -> None:
    """220, in both forms that brokers send."""
    client = world.client()
    client.consumer("g", world.listen, **FIRST)
    sent = world.put(8, queue_id=0)
    world.wait_for(8)
    queue = queue_json(MessageQueue("orders", "broker-a", 0))
    table = json.dumps_fastjson({"offsetTable": {json.ObjectKey.of(queue): 6}})
    ask_client(client, 220, {"topic": "orders", "group": "g"}, table)
    world.wait_for(10)
    assert world.bodies()[8:] == sent[6:]
    table = json.dumps({"offsetTable": [{**queue, "offset": 7}]})
    ask_client(client, 220, {"topic": "orders", "group": "g"}, table)
    world.wait_for(11)
    assert world.bodies()[10:] == sent[7:]


def test_a_reset_while_a_listener_is_at_work_repeats_everything_in_order() -> None:
    """What the listener says of the old window does not count in the new one."""
    world = World(queues=1)
    sent = world.put(10)
    client = world.client()
    client.consumer("g", world.listen, orderly=True, takes_ms=100, **FIRST)
    world.wait_for(3)
    world.loop.run_for(50)
    table = json.dumps({"offsetTable": [{**queue_json(MessageQueue("orders", "broker-a", 0)), "offset": 0}]})
    ask_client(client, 220, {"topic": "orders", "group": "g"}, table)
    world.wait_for(14)
    assert world.bodies() == sent[:4] + sent


def test_offsets_and_state_can_be_asked_for(world: World) -> None:
    client = world.client()
    client.consumer("g", world.listen, **FIRST)
    world.put(8)
    world.wait_for(8)
    world.loop.run_for(50)
    table = json.loads(ask_client(client, 221, {"topic": "orders", "group": "g"}).body)["messageQueueTable"]
    assert {json.key_object(key)["queueId"]: offset for key, offset in table.items()} == dict.fromkeys(
        range(4), 2
    )
    info = json.loads(ask_client(client, 307, {"consumerGroup": "g", "clientId": client.id}).body)
    assert {one["topic"] for one in info["subscriptionSet"]} == {"orders", "%RETRY%g"}
    assert len(info["mqTable"]) == 5
    assert info["properties"]["PROP_CONSUME_ORDERLY"] == "false"


@pytest.mark.parametrize("fails", [False, True])
def test_a_message_can_be_consumed_directly(world: World, fails: bool) -> None:
    def listener(message: ReceivedMessage) -> None:
        world.got.append(message)
        if fails:
            raise ValueError("no")

    client = world.client()
    client.consumer("g", listener, **FIRST)
    record = encode_record("orders", b"direct", queue_offset=3)
    answer = ask_client(
        client, 309, {"consumerGroup": "g", "topic": "orders", "brokerName": "broker-a"}, record
    )
    assert json.loads(answer.body)["consumeResult"] == ("CR_LATER" if fails else "CR_SUCCESS")
    assert world.bodies() == [b"direct"]


def test_questions_that_make_no_sense_get_an_error(world: World) -> None:
    client = world.client()
    client.consumer("g", world.listen, **FIRST)
    assert ask_client(client, 220, {"group": "g"}, b'{"offsetTable":{"x":1}}').code == 1
    assert ask_client(client, 309, {"consumerGroup": "g"}, b"").code == 1
    assert ask_client(client, 307, {"consumerGroup": "unknown"}).code == 1
    unknown = ask_client(client, 326, {})
    assert (unknown.code, unknown.remark) == (3, " request type 326 not supported")


# --- everything at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("orderly", [False, True])
def test_no_message_is_lost_whatever_happens(seed: int, orderly: bool) -> None:
    """Members come, leave and are killed, connections break, brokers refuse, listeners fail: every message
    is consumed at least once; orderly: no queue shows an older message for the first time after a newer."""
    random = Random(seed)
    world = World(queues=3)
    seen: dict[int, list[bytes]] = defaultdict(list)

    def listener(message: ReceivedMessage) -> None:
        if random.random() < 0.05:
            raise ValueError("sometimes")
        seen[message.queue.queue_id].append(message.body)

    members: dict[str, tuple[SimClient, Any]] = {}
    names = iter(range(1_000))
    sent = 0

    def join() -> None:
        client = world.client(f"m{next(names)}")
        members[client.id] = (
            client,
            client.consumer(
                "g", listener, takes_ms=random.randrange(30), orderly=orderly, suspend_queue_ms=50, **FIRST
            ),
        )

    join()
    for _ in range(40):
        action = random.choice(["put", "put", "join", "leave", "kill", "lose", "refuse", "wait"])
        if action == "put":
            for _ in range(random.randrange(30)):
                world.cluster.put("orders", b"%06d" % sent, queue_id=random.randrange(3))
                sent += 1
        elif action == "join" and len(members) < 4:
            join()
        elif action == "leave" and len(members) > 1:
            client, consumer = members.pop(random.choice(sorted(members)))
            consumer.close()
            client.kill()
        elif action == "kill" and len(members) > 1:
            client, _ = members.pop(random.choice(sorted(members)))
            client.kill()
            world.cluster.drop_member(client.id)
            for key, owner in list(world.cluster.broker().locks.items()):
                if owner == client.id:
                    del world.cluster.broker().locks[key]
        elif action == "lose":
            members[random.choice(sorted(members))][0].network.lose("127.0.0.1:10911")
        elif action == "refuse":
            code = random.choice([11, 14, 15, 34, 36, 38, 41, 30])
            world.cluster.refuse[code] += [random.choice([1, 2, 215])] * random.randrange(4)
        world.loop.run_for(random.randrange(3_000))
    wanted = {b"%06d" % number for number in range(sent)}
    consumed = lambda: {body for bodies in seen.values() for body in bodies}  # noqa: E731
    world.loop.run_until(lambda: consumed() == wanted, within_ms=120_000)
    if orderly:
        for bodies in seen.values():
            firsts = list(dict.fromkeys(bodies))
            assert firsts == sorted(firsts)
