"""Registration: RocketMQ's bytes, and that every change reaches every name server."""

import random

from hypothesis import given
from hypothesis import strategies as st

from actormq.broker.registration import (
    SINGLE_TOPICS_MAX,
    BrokerIdentity,
    Registrar,
    register_request,
    registration_body,
    topic_request,
    unregister_request,
)
from actormq.broker.tables import TopicEntry
from actormq.wire import json
from actormq.wire.registration import DataVersion, decode_registration

WHO = BrokerIdentity(
    name="broker-a", cluster="c", broker_id=0, address="127.0.0.1:10911", ha_address="127.0.0.1:10912"
)
TOPIC = TopicEntry("t", 6, 4, 2, 1, False, "SINGLE_TAG", {"message.type": "FIFO"}, [0, 1, 2, 3], [1] * 4)


def test_a_name_server_reads_what_we_register() -> None:
    """Our own reader of Java's bodies finds the topics and the version; the checksum covers the body."""
    body = registration_body([TOPIC], DataVersion(0, 77, 3), 6)
    read = decode_registration(body, 479)
    assert read.version == DataVersion(0, 77, 3)
    assert [(t.name, t.read_queues, t.write_queues, t.permission, t.sys_flag) for t in read.topics] == [
        ("t", 4, 2, 6, 1)
    ]
    fields = register_request(WHO, b"abc").fields
    assert fields == {
        "brokerName": "broker-a",
        "brokerAddr": "127.0.0.1:10911",
        "clusterName": "c",
        "haServerAddr": "127.0.0.1:10912",
        "brokerId": "0",
        "enableActingMaster": "false",
        "compressed": "false",
        "bodyCrc32": str(0x352441C2),
    }
    assert unregister_request(WHO).fields["brokerAddr"] == "127.0.0.1:10911"
    assert b"rows" not in body


def test_a_broker_that_takes_no_writes_says_so_for_every_topic() -> None:
    """Clients then choose another broker."""
    read = decode_registration(registration_body([TOPIC], DataVersion(), 4), 479)
    assert read.topics[0].permission == 4


def test_at_once_on_change_every_interval_and_sooner_after_a_failure() -> None:
    """The timetable of one name server."""
    registrar = Registrar(["ns:1", "ns:1"], 30_000)
    assert registrar.due(0) == ["ns:1"]
    assert registrar.due(0) == []
    assert registrar.wake_ms() is None
    assert registrar.answered("ns:1", 5)
    assert registrar.wake_ms() == 30_005
    change = registrar.changed()
    assert not registrar.settled(change)
    assert registrar.due(6) == ["ns:1"]
    later = registrar.changed()
    assert not registrar.answered("ns:1", 7)
    assert registrar.settled(change)
    assert not registrar.settled(later)
    assert registrar.due(7) == ["ns:1"]
    assert registrar.failed("ns:1", 8)
    assert registrar.settled(later)
    assert registrar.wake_ms() == 1_008
    registrar.due(1_008)
    assert not registrar.failed("ns:1", 1_009)
    assert registrar.wake_ms() == 3_009
    registrar.due(3_009)
    assert registrar.answered("ns:1", 3_010)


def named(name: str) -> TopicEntry:
    return TopicEntry(name, 6, 1, 1, 0, False, "SINGLE_TAG", {}, [0], [1])


@given(
    st.integers(),
    st.lists(st.sampled_from(["change", "one", "one", "many", "answer", "fail", "wait", "old"]), max_size=40),
)
def test_the_last_change_reaches_every_name_server_in_the_end(seed: int, steps: list[str]) -> None:
    """Whatever failed or overlapped: when all answer again, all know the last change, topic by topic."""
    chance = random.Random(seed)
    registrar = Registrar(["a", "b"], 30_000)
    now, under_way = 0, {}
    exists = {"first"}
    told: dict[str, set[str]] = {"a": set(), "b": set()}
    for step in [*steps, *["answer", "wait"] * 4]:
        for address in registrar.due(now):
            assert address not in under_way, "two requests to one name server"
            news = registrar.news(address)
            under_way[address] = set(exists) if news is None else told[address] | {one.name for one in news}
        if step == "change":
            exists.add(f"t{len(exists)}")
            registrar.changed()
        elif step in ("one", "many"):
            names = [f"t{len(exists) + number}" for number in range(1 if step == "one" else 9)]
            exists.update(names)
            registrar.changed([named(name) for name in names])
        elif step == "wait":
            now += 40_000
        elif step == "old" and under_way:
            address = chance.choice(sorted(under_way))
            if registrar.news(address) is not None:
                del under_way[address]
                registrar.takes_all_only(address, now)
        elif under_way:
            for address in chance.sample(sorted(under_way), len(under_way)):
                carried = under_way.pop(address)
                if step == "answer":
                    told[address] = carried
                    registrar.answered(address, now)
                else:
                    registrar.failed(address, now)
    assert told == {"a": exists, "b": exists}
    assert registrar.settled(registrar.change)


def test_a_few_changed_topics_are_told_alone() -> None:
    """Each one's last state; everything is told after a failure, a lost connection, a gap, and in time."""
    registrar = Registrar(["a"], 30_000)

    def told(now_ms: int, ends: str = "answered") -> list[TopicEntry] | None:
        assert registrar.due(now_ms) == ["a"]
        news = registrar.news("a")
        getattr(registrar, ends)("a", now_ms)
        return news

    assert told(0) is None
    registrar.changed([TOPIC])
    registrar.changed([named("u"), named("t")])
    assert told(1) == [named("t"), named("u")]
    assert registrar.wake_ms() == 30_000
    registrar.changed([named(f"n{number}") for number in range(SINGLE_TOPICS_MAX + 1)])
    assert told(2) is None
    registrar.changed([TOPIC])
    assert told(3, "failed") == [TOPIC]
    assert told(2_000) is None
    registrar.changed([TOPIC])
    registrar.changed()
    assert told(2_001) is None
    for _ in range(SINGLE_TOPICS_MAX + 1):
        registrar.changed([TOPIC])
    assert told(2_002) is None
    registrar.lost("a", 2_003)
    assert told(2_300) is None
    registrar.changed([TOPIC])
    assert told(2_301) == [TOPIC]
    assert registrar.wake_ms() == 32_300
    registrar.changed([TOPIC])
    assert told(32_300) is None
    registrar.changed([TOPIC])
    assert told(32_301, "takes_all_only") == [TOPIC]
    assert told(32_301) is None
    registrar.changed([TOPIC])
    assert told(32_302) is None


def test_one_topic_as_rocketmq_says_it() -> None:
    """REGISTER_TOPIC_IN_NAMESRV: a route of one broker; a broker that takes no writes says so here, too."""
    request = topic_request(WHO, TOPIC, 4)
    assert (request.code, request.fields) == (217, {"topic": "t"})
    (queues,) = json.loads(request.body)["queueDatas"]
    assert queues == {
        "brokerName": "broker-a", "readQueueNums": 4, "writeQueueNums": 2, "perm": 4, "topicSysFlag": 1
    }  # fmt: skip


def test_a_lost_connection_is_a_lost_registration() -> None:
    """A name server that restarts knows us again soon; one that ends every connection is not hammered."""
    registrar = Registrar(["a"], 30_000)
    registrar.changed()
    assert registrar.due(0) == ["a"]
    registrar.answered("a", 0)
    registrar.lost("a", 1_000)
    assert not registrar.settled(1)
    assert (registrar.due(1_199), registrar.due(1_200)) == ([], ["a"])
    assert registrar.answered("a", 1_210)
    now_ms, asked = 2_000, 0
    registrar.lost("a", now_ms)
    while now_ms < 32_000:
        now_ms = max(now_ms, registrar.wake_ms() or 0)
        for address in registrar.due(now_ms):
            asked += 1
            registrar.failed(address, now_ms)
            registrar.lost(address, now_ms)
    assert asked < 10


def test_without_name_servers_there_is_nothing_to_do() -> None:
    """A change is settled at once."""
    registrar = Registrar([], 30_000)
    assert registrar.settled(registrar.changed())
    assert registrar.wake_ms() is None
