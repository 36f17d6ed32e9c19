"""The name server's request codes: RocketMQ's answers, byte for byte where clients depend on the bytes."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.broker.naming import CHANGEABLE, KV_ENTRIES_MAX, NameService
from actormq.config import NameServerConfig
from actormq.wire.command import FLAG_ONEWAY, FLAG_RESPONSE, RemotingCommand
from actormq.wire.headers import DESCRIPTIONS, RequestCode, Role
from actormq.wire.registration import DataVersion, RegistrationBody, TopicConfig, encode_registration

WHO = {"brokerName": "a", "brokerAddr": "10.0.0.1:1", "clusterName": "C", "brokerId": "0"}
VERSION = DataVersion(0, 7, 1)
BODY = encode_registration(
    RegistrationBody(
        version=VERSION,
        topics=(TopicConfig(name="T", read_queues=4, write_queues=3), TopicConfig(name="U", sys_flag=1)),
    )
)


class Caller:
    """Asks one name service, as one connection."""

    def __init__(self, config: NameServerConfig | None = None, **rest: Any) -> None:
        self.service = NameService(config or NameServerConfig(), **rest)
        self.now_ms = 0

    def ask(self, code: int, body: bytes = b"", version: int = 479, /, **fields: str) -> RemotingCommand:
        request = RemotingCommand.request(code, fields, body)
        request.version = version
        answer = self.service.handle(request, "connection", self.now_ms)
        assert answer is not None
        assert answer.opaque == request.opaque
        assert answer.flag == FLAG_RESPONSE
        return answer

    def value(self, code: int, body: bytes = b"", /, **fields: str) -> Any:
        answer = self.ask(code, body, **fields)
        assert answer.code == 0, answer.remark
        return json.loads(bytes(answer.body))

    def register(self, body: bytes = BODY, /, **fields: str) -> RemotingCommand:
        return self.ask(103, body, **{**WHO, "haServerAddr": "10.0.0.1:2", **fields})


@pytest.fixture
def caller() -> Caller:
    caller = Caller()
    assert caller.register().code == 0
    return caller


def test_every_code_of_the_name_server_is_served() -> None:
    """No code that the table of codes gives to the name server is unknown to it."""
    for code, description in DESCRIPTIONS.items():
        answer = Caller().ask(code)
        assert (answer.code == 3) == (description.role is not Role.NAMESERVER and code != 300000), code


def test_an_unknown_code_is_refused_as_rocketmq_does() -> None:
    """Code 3, and the remark with its leading blank."""
    answer = Caller().ask(9999)
    assert (answer.code, answer.remark) == (3, " request type 9999 not supported")


def test_only_a_registration_may_have_a_large_body(caller: Caller) -> None:
    """Everybody waits while one is read."""
    answer = caller.ask(322, bytes((1 << 20) + 1), **WHO)
    assert answer.code == 1
    assert "too large" in (answer.remark or "")
    assert caller.register(BODY.ljust((1 << 20) + 1)).code == 0


def test_a_missing_field_is_named(caller: Caller) -> None:
    """A required field that is not there is answered with its name."""
    answer = caller.ask(105)
    assert (answer.code, answer.remark) == (1, "the custom field <topic> is null")


def test_one_way_requests_and_answers_are_not_answered() -> None:
    """Nothing goes back to a one-way request, nor to a stray response."""
    service = NameService(NameServerConfig())
    for flag in (FLAG_ONEWAY, FLAG_RESPONSE):
        assert service.handle(RemotingCommand(code=206, flag=flag), 1, 0) is None


ROUTE = (
    '{"brokerDatas":[{"brokerAddrs":{%s:"10.0.0.1:1"},"brokerName":"a","cluster":"C","enableActingMaster":false'
    '%s}],"filterServerTable":{},"queueDatas":[{"brokerName":"a","perm":6,"readQueueNums":4,"topicSysFlag":0,'
    '"writeQueueNums":3}]}'
)


@pytest.mark.parametrize(
    ("version", "fields", "key"),
    [(401, {}, '"0"'), (479, {}, '"0"'), (400, {}, "0"), (317, {"acceptStandardJsonOnly": "true"}, '"0"')],
)
def test_a_route_is_written_for_its_reader(caller: Caller, version: int, fields: Any, key: str) -> None:
    """Quoted keys from 4.9.4 on or when asked; bare ones for older clients (Go); no blanks for anyone."""
    answer = caller.ask(105, b"", version, topic="T", **fields)
    assert answer.body == (ROUTE % (key, "")).encode()


def test_a_route_carries_the_way_for_native_clients() -> None:
    """The ZeroMQ endpoint stands beside brokerAddrs, where RocketMQ's clients do not look."""
    caller = Caller()
    caller.register(zmqAddr="10.0.0.1:3")
    assert caller.ask(105, topic="T").body == (ROUTE % ('"0"', ',"zmqAddrs":{"0":"10.0.0.1:3"}')).encode()
    caller.register()
    assert caller.ask(105, topic="T").body == (ROUTE % ('"0"', "")).encode()


def test_an_unknown_topic_has_no_route(caller: Caller) -> None:
    """Code 17, with the words that operators look for."""
    answer = caller.ask(105, topic="X")
    assert answer.code == 17
    assert answer.remark is not None
    assert answer.remark.startswith("No topic route info in name server for the topic: X\nSee https://")


def test_the_cluster_is_described(caller: Caller) -> None:
    """106 writes broker ids bare for everyone."""
    caller.register(brokerId="1", brokerAddr="10.0.0.2:1")
    assert caller.ask(106).body == (
        b'{"brokerAddrTable":{"a":{"brokerAddrs":{0:"10.0.0.1:1",1:"10.0.0.2:1"},"brokerName":"a","cluster":"C",'
        b'"enableActingMaster":false}},"clusterAddrTable":{"C":["a"]}}'
    )
    assert caller.ask(901, clusterName="C", brokerName="a").body == (
        b'{"brokerMemberGroup":{"brokerAddrs":{0:"10.0.0.1:1",1:"10.0.0.2:1"},"brokerName":"a","cluster":"C"}}'
    )
    assert b'"brokerAddrs":{}' in caller.ask(901, clusterName="C", brokerName="x").body


def test_topics_are_listed(caller: Caller) -> None:
    """All topics, a cluster's, the system's own names, and those with unit flags."""
    assert caller.value(206) == {"topicList": ["T", "U"]}
    assert caller.value(224, cluster="C") == {"topicList": ["T", "U"]}
    assert caller.value(224, cluster="D") == {"topicList": []}
    assert caller.value(304) == {"brokerAddr": "10.0.0.1:1", "topicList": ["C", "a"]}
    assert caller.value(311) == {"topicList": ["U"]}
    assert caller.value(312) == {"topicList": []}
    assert caller.value(313) == {"topicList": []}
    assert Caller().value(304) == {"topicList": []}


def test_lists_can_be_switched_off() -> None:
    """The remark is RocketMQ's one word."""
    caller = Caller(NameServerConfig(enable_all_topic_list=False, enable_topic_list=False))
    for code in (206, 311, 312, 313):
        assert (caller.ask(code).code, caller.ask(code).remark) == (1, "disable")
    assert caller.ask(224, cluster="C").remark == "disable"


def test_a_compressed_registration_counts_whatever_the_header_says() -> None:
    """5.x brokers compress when told to, and still say compressed=false."""
    caller = Caller()
    items = [b'{"counter":1,"timestamp":7}', b"T 4 3 6 SINGLE_TAG {}", b"U 16 16 6 SINGLE_TAG", b"[]"]
    sized = [len(item).to_bytes(4, "big") + item for item in items]
    plain = sized[0] + (2).to_bytes(4, "big") + b"".join(sized[1:]) + (0).to_bytes(4, "big")
    body = zlib.compress(plain, 9)
    crc = zlib.crc32(body) & 0x7FFF_FFFF
    assert caller.register(body, bodyCrc32=str(crc), compressed="false").code == 0
    assert caller.ask(105, topic="T").body == (ROUTE % ('"0"', "")).encode()
    assert caller.ask(322, VERSION_BODY, **WHO).fields == {"changed": "false"}


def test_a_registration_with_a_wrong_sum_is_refused() -> None:
    """bodyCrc32 0 means: not checked."""
    assert Caller().register(bodyCrc32="1").remark == "crc32 not match"
    assert Caller().register(bodyCrc32="0").code == 0


def test_an_increment_of_an_unknown_broker_is_refused() -> None:
    """One topic from a broker that we do not know."""
    body = encode_registration(RegistrationBody(version=VERSION, topics=(TopicConfig(name="T"),)))
    assert (Caller().register(body).code, Caller().register(body).remark) == (1, "register broker failed")


def test_a_slave_is_answered_with_its_master(caller: Caller) -> None:
    """Header fields masterAddr and haServerAddr; absent for a master."""
    answer = caller.register(brokerId="1", brokerAddr="10.0.0.2:1")
    assert answer.fields == {"masterAddr": "10.0.0.1:1", "haServerAddr": "10.0.0.1:2"}
    assert caller.register().fields == {}


VERSION_BODY = b'{"counter":1,"stateVersion":0,"timestamp":7}'


def test_a_broker_asks_whether_its_topics_are_known(caller: Caller) -> None:
    """322 compares versions, answers ours, and counts as a sign of life."""
    same = caller.ask(322, VERSION_BODY, **WHO)
    assert (same.fields, same.body) == ({"changed": "false"}, VERSION_BODY)
    assert caller.ask(322, b'{"counter":2,"timestamp":7}', **WHO).fields == {"changed": "true"}
    stranger = caller.ask(322, VERSION_BODY, **{**WHO, "brokerAddr": "x:1"})
    assert (stranger.fields, stranger.body) == ({"changed": "true"}, b"")
    for code in (322, 904):
        caller.now_ms += 100_000
        caller.ask(code, b"", **WHO)
        assert caller.service.expire(caller.now_ms + 100_000) == []
    assert caller.service.expire(caller.now_ms + 120_001) == ["connection"]


def test_brokers_leave_by_word_or_by_closing(caller: Caller) -> None:
    """104 and the end of the connection both remove at once."""
    assert caller.ask(104, **WHO).code == 0
    assert caller.ask(105, topic="T").code == 17
    caller.register()
    caller.service.on_connection_closed("connection")
    assert caller.ask(105, topic="T").code == 17


def test_write_permissions(caller: Caller) -> None:
    """205 and 327 answer how many topics they touched, under their own names."""
    assert caller.ask(205, brokerName="a").fields == {"wipeTopicCount": "2"}
    assert caller.value(105, topic="T")["queueDatas"][0]["perm"] == 4
    assert caller.ask(327, brokerName="a").fields == {"addTopicCount": "2"}


def test_topics_are_deleted_and_registered_alone(caller: Caller) -> None:
    """216 and 217."""
    assert caller.ask(216, topic="T").code == 0
    assert caller.ask(105, topic="T").code == 17
    queues = {"brokerName": "a", "readQueueNums": 4, "writeQueueNums": 3, "perm": 6, "topicSynFlag": 0}
    assert caller.ask(217, json.dumps({"queueDatas": [queues]}).encode(), topic="T").code == 0
    assert caller.ask(105, topic="T").body == (ROUTE % ('"0"', "")).encode()


def test_kv_entries_are_kept_and_saved() -> None:
    """What was put is read, listed, deleted, and comes back from the file's text."""
    caller = Caller()
    assert caller.service.take_kv() is None
    assert caller.ask(100, namespace="N", key="k", value="v").code == 0
    saved = caller.service.take_kv()
    assert saved == b'{"configTable":{"N":{"k":"v"}}}'
    assert caller.service.take_kv() is None
    again = Caller(kv=saved)
    assert again.ask(101, namespace="N", key="k").fields == {"value": "v"}
    assert again.value(219, namespace="N") == {"table": {"k": "v"}}
    assert again.ask(102, namespace="N", key="k").code == 0
    missing = again.ask(101, namespace="N", key="k")
    assert (missing.code, missing.remark) == (22, "No config item, Namespace: N Key: k")
    assert again.ask(219, namespace="M").code == 22
    again.ask(102, namespace="N", key="k")
    assert again.service.take_kv() == b'{"configTable":{"N":{}}}'


def test_kv_entries_are_bounded() -> None:
    """A name server cannot be filled without end."""
    table = {"N": {str(number): "" for number in range(KV_ENTRIES_MAX)}}
    caller = Caller(kv=json.dumps({"configTable": table}).encode())
    assert caller.ask(100, namespace="N", key="k", value="v").code == 1


def test_the_order_of_topics_reaches_brokers_and_clients() -> None:
    """ORDER_TOPIC_CONFIG goes to brokers at registration, and into routes when that is on."""
    caller = Caller(NameServerConfig(order_message_enable=True))
    caller.ask(100, namespace="ORDER_TOPIC_CONFIG", key="T", value="a:4")
    assert caller.register().body == b'{"table":{"T":"a:4"}}'
    assert caller.value(105, topic="T")["orderTopicConf"] == "a:4"
    assert "orderTopicConf" not in caller.value(105, topic="U")


def test_only_harmless_settings_can_be_changed() -> None:
    """318 takes the keys of the allow-list and nothing else, all or nothing; 319 shows them."""
    caller = Caller()
    assert caller.ask(318, b"enableTopicList=false\n").code == 0
    assert caller.ask(224, cluster="C").remark == "disable"
    for key in ("kvConfigPath", "configStorePath", "rocketmqHome", "listenPort", "unheard"):
        refused = caller.ask(318, f"enableTopicList=true\n{key}=/etc/passwd\n".encode())
        assert refused.code == 16
    shown = bytes(caller.ask(319).body).decode()
    assert "enableTopicList=false\n" in shown
    assert all(f"{key}=" in shown for key in CHANGEABLE)


def test_a_native_client_is_told_the_way() -> None:
    """300000 answers the ZeroMQ endpoint, if there is one."""
    assert Caller(zmq_endpoint="h:1").ask(300000).fields == {"zmq": "h:1"}
    assert Caller().ask(300000).fields == {}


KEYS = [
    "topicConfigSerializeWrapper",
    "topicConfigTable",
    "queueDatas",
    "filterServerList",
    "dataVersion",
    "topicQueueMappingInfoMap",
    "counter",
    "perm",
    "brokerName",
]


@given(
    st.sampled_from([code for code in RequestCode if DESCRIPTIONS[code].role is Role.NAMESERVER]),
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(KEYS),
                    inner,
                    max_size=3,
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=60).map(zlib.compress),
    ),
    st.dictionaries(
        st.sampled_from(["topic", "brokerName", "brokerId", "clusterName", "bodyCrc32"]), st.text(max_size=5)
    ),
)
def test_no_request_stops_the_service(code: RequestCode, body: bytes, extra: dict[str, str]) -> None:
    """Whatever a peer sends is answered, if only with an error."""
    fields = {field.name: "1" for field in DESCRIPTIONS[code].fields if field.name != "bodyCrc32"}
    caller = Caller()
    caller.register()
    caller.ask(code, body, **{**fields, **extra})
    caller.ask(106)
