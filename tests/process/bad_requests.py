"""Requests that no broker can serve as they are: what each is answered, and with which remark.

The codes were compared with those of a RocketMQ 5.5.0 broker; where that one fails by an exception of its
own (or stores what it cannot read), ours refuses with the code of the nearest rule.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from gateway_rig import pull_request, send_request
from process.odd_clients import DEEP, GROUP, MEGABYTE, TOPIC

from actormq.wire import json
from actormq.wire.command import RemotingCommand

Request = Callable[[], RemotingCommand]


def ask(code: int, body: bytes = b"", **fields: object) -> Request:
    """Return what makes such a request."""
    return lambda: RemotingCommand.request(code, {key: str(value) for key, value in fields.items()}, body)


def send(topic: str = TOPIC, body: bytes = b"x", properties: str = "", /, **fields: object) -> Request:
    """A send in the short form; a field that is None is left out."""

    def made() -> RemotingCommand:
        command = send_request(topic, body, properties)
        command.fields |= {key: str(value) for key, value in fields.items() if value is not None}
        for key in [key for key, value in fields.items() if value is None]:
            del command.fields[key]
        return command

    return made


def pull(offset: int = 0, group: str = GROUP, topic: str = TOPIC, /, **fields: object) -> Request:
    """A pull that does not wait; a field that is None is left out."""

    def made() -> RemotingCommand:
        command = pull_request(topic, group, offset, flags=4, subscription="*")
        command.fields |= {key: str(value) for key, value in fields.items() if value is not None}
        for key in [key for key, value in fields.items() if value is None]:
            del command.fields[key]
        return command

    return made


def offset_of(**changes: object) -> Request:
    """A commit of an offset; a field that is None is left out."""
    fields = {"topic": TOPIC, "consumerGroup": GROUP, "queueId": 0, "commitOffset": 0, **changes}
    return ask(15, **{key: value for key, value in fields.items() if value is not None})


def topic_of(name: str = "made", **changes: object) -> Request:
    """The creation of a topic."""
    fields = {"topic": name, "defaultTopic": "TBW102", "readQueueNums": 2, "writeQueueNums": 2, "perm": 6}
    return ask(17, **{**fields, "topicFilterType": "SINGLE_TAG", **changes})


def item(
    body: bytes = b"x",
    properties: bytes = b"",
    *,
    total: int | None = None,
    body_bytes: int | None = None,
    properties_bytes: int | None = None,
) -> bytes:
    """One message of a batch, which may lie about its lengths."""
    return b"".join(
        (
            struct.pack(">iiii", 22 + len(body) + len(properties) if total is None else total, 0, 0, 0),
            struct.pack(">i", len(body) if body_bytes is None else body_bytes),
            body,
            struct.pack(">h", len(properties) if properties_bytes is None else properties_bytes),
            properties,
        )
    )


def batch(body: bytes) -> Request:
    return lambda: send_request(TOPIC, body, code=320)


def lock(queues: object, group: object = GROUP, client: object = "c", *, code: int = 41) -> Request:
    return ask(code, json.dumps({"consumerGroup": group, "clientId": client, "mqSet": queues}))


def beat(**changes: object) -> Request:
    return ask(34, json.dumps({"clientID": "c@bad", **changes}))


def consumer(**changes: object) -> dict[str, object]:
    return {"consumerDataSet": [{"groupName": "g-bad", **changes}]}


ILLEGAL_NAMES = ("../x", "a\0b", "tür", "a b", "a.b", "a@b", "\U0001f600", "a\nb")
QUEUE = {"topic": TOPIC, "queueId": 0, "brokerName": "broker-a"}
NO_NUMBERS = ("x", "", "1.5", "1_0", " 1", "0x10", "NaN", "9223372036854775808", "-9223372036854775809")
_ILLEGAL = "contains illegal characters, allowing only"
_BODY = "maybe msg body or properties length not matched"

CASES: list[tuple[str, Request, int, str]] = [
    ("an unknown code", ask(9999), 3, "^ request type 9999 not supported$"),
    ("a negative code", ask(-5), 3, "^ request type -5 not supported$"),
    ("a code of ours that is not built", ask(400), 3, " request type 400 not supported"),
    # Names.
    *((f"topic {name!a}", send(name), 29, f"The specified topic: .*{_ILLEGAL}") for name in ILLEGAL_NAMES),
    *(
        (f"a batch to {name!a}", lambda name=name: send_request(name, item(), code=320), 29, _ILLEGAL)
        for name in ILLEGAL_NAMES[:2]
    ),
    *((f"topic {name!a} made", topic_of(name), 29, _ILLEGAL) for name in ILLEGAL_NAMES[:3]),
    *(
        (f"group {name!a}", pull(0, name), 26, f"cannot be created: The specified group: .*{_ILLEGAL}")
        for name in ILLEGAL_NAMES
    ),
    *(
        (f"{name!a} sends back", ask(36, group=name, offset=0, delayLevel=0), 26, "cannot be created")
        for name in ILLEGAL_NAMES[:3]
    ),
    *(
        (f"{name!a} commits", offset_of(consumerGroup=name), 26, "^Group .* not exist!$")
        for name in ("", "../x")
    ),
    *(
        (f"group {name!a} made", ask(200, json.dumps({"groupName": name})), 29, "group")
        for name in ("", "a.b")
    ),
    ("no topic", send(""), 29, "The specified topic is blank"),
    ("a blank topic", send("  "), 29, "The specified topic is blank"),
    ("a long topic", send("x" * 128), 29, "is longer than topic max length: 127"),
    ("a very long topic", send("x" * 100_000), 29, "is longer than topic max length: 127"),
    ("a long retry topic", send("%RETRY%" + "x" * 249), 29, "is longer than topic max length: 255"),
    ("a long group", pull(0, "g" * 121), 26, "is longer than group max length: 120"),
    ("a long group made", ask(200, json.dumps({"groupName": "g" * 121})), 29, "group max length: 120"),
    ("an unknown topic pulled", pull(0, GROUP, "nobodys"), 17, "not exist, apply first please!"),
    ("an unknown topic committed", offset_of(topic="nobodys"), 17, "^Topic nobodys not exist!$"),
    (
        "an unknown template",
        send("orphan", c="NOSUCH"),
        17,
        r"topic\[orphan\] not exist, apply first please!",
    ),
    ("a retry topic without a group", send("%RETRY%../x"), 29, _ILLEGAL),
    *(
        (f"system topic {name}", send(name), 16, f"Sending message to topic.{name}. is forbidden")
        for name in (
            "SCHEDULE_TOPIC_XXXX",
            "RMQ_SYS_TRANS_HALF_TOPIC",
            "RMQ_SYS_TRANS_OP_HALF_TOPIC",
            "TRANS_CHECK_MAX_TIME_TOPIC",
            "SELF_TEST_TOPIC",
            "OFFSET_MOVED_EVENT",
        )
    ),
    *(
        (f"{name} changed", topic_of(name), 29, "is conflict with system topic")
        for name in ("TBW102", "SCHEDULE_TOPIC_XXXX", "rmq_sys_any", "broker-a", "DefaultCluster")
    ),
    # Sizes.
    (
        "large properties",
        send(TOPIC, b"x", "k\x01" + "v" * 32_768 + "\x02"),
        13,
        "properties length limit 32KB",
    ),
    (
        "huge properties",
        send(TOPIC, b"x", "k\x01" + "v" * 150_000 + "\x02"),
        13,
        "properties length limit 32KB",
    ),
    ("a large body", send(TOPIC, bytes(4 * MEGABYTE + 1)), 13, "msg body length limit 4194304B"),
    ("no body", send(TOPIC, b""), 13, _BODY),
    ("a body beyond all rings", send(TOPIC, bytes(15 * MEGABYTE)), 13, "msg body length limit"),
    # Queues.
    ("queue 4 of 4", send(e=4), 29, r"request queueId\[4\] is illegal, topic\[good\] has 4 read queues"),
    ("the last queue there can be", send(e=2**31 - 1), 29, r"request queueId\[2147483647\] is illegal"),
    ("the queue is left to the broker", send(e=-1), 0, ""),
    ("queue -1 pulled", pull(queueId=-1), 29, r"queueId\[-1\] is illegal, topic:\[good\]"),
    ("queue 4 pulled", pull(queueId=4), 29, r"readQueueNums:\[4\]"),
    ("queue 4 of 4 asked for", ask(30, topic=TOPIC, queueId=4), 0, ""),
    # Fields.
    *((f"no {name} in a send", send(**{name: None}), 1, f"field <{name}> is null") for name in "abcdefgh"),
    *(
        (f"{name}={text!a}", send(**{name: text}), 1, f"<{name}> is no number")
        for name in "de"
        for text in NO_NUMBERS
    ),
    *((f"{name}=2**31", send(**{name: 2**31}), 1, f"<{name}> is no number") for name in "defhjl"),
    *(
        (f"no {name} in a pull", pull(**{name: None}), 1, f"field <{name}> is null")
        for name in (
            "topic",
            "consumerGroup",
            "queueId",
            "queueOffset",
            "maxMsgNums",
            "sysFlag",
            "subVersion",
        )
    ),
    *((f"queueOffset={text!a}", pull(queueOffset=text), 1, "is no number") for text in NO_NUMBERS),
    *((f"queueId={text!a}", ask(30, topic=TOPIC, queueId=text), 1, "is no number") for text in NO_NUMBERS),
    ("no fields in a send", ask(310, b"x"), 1, "is null"),
    ("no fields in a pull", ask(11), 1, "is null"),
    ("no fields in a commit", ask(15), 1, "is null"),
    ("no queue in a commit", offset_of(queueId=None), 29, "QueueId is null, topic is good"),
    ("no offset in a commit", offset_of(commitOffset=None), 29, "Offset is null, topic is good"),
    ("an offset of 2**63", offset_of(commitOffset=2**63), 1, "<commitOffset> is no number"),
    ("no topic in a lookup", ask(31, queueId=0), 1, "field <topic> is null"),
    # Offsets and limits of pulls.
    ("offset -1", pull(-1), 21, "OFFSET_TOO_SMALL"),
    ("the lowest offset", pull(-(2**63)), 21, "OFFSET_TOO_SMALL"),
    ("offset 2**62", pull(2**62), 21, "OFFSET_OVERFLOW_BADLY"),
    ("the highest offset", pull(2**63 - 1), 21, "OFFSET_OVERFLOW_BADLY"),
    *((f"{count} messages", pull(maxMsgNums=count), 0, "FOUND") for count in (0, -1, 2**31 - 1, -(2**31))),
    *((f"{count} bytes", pull(maxMsgBytes=count), 0, "FOUND") for count in (0, -1, 2**31 - 1)),
    ("a wait of minus an age", pull(2**62, sysFlag=6, suspendTimeoutMillis=-(2**63)), 21, ""),
    ("an absurd wait for what is there", pull(0, sysFlag=6, suspendTimeoutMillis=2**63 - 1), 0, "FOUND"),
    ("a version from the future", pull(0, sysFlag=0, subVersion=2**62), 25, "subscription not latest"),
    ("nobody's subscription", pull(0, "g-nobody", sysFlag=0), 24, "the consumer's group info not exist"),
    ("nothing but bars", pull(subscription="||"), 23, "parse the consumer's subscription failed"),
    (
        "a filter language",
        pull(expressionType="XPATH"),
        1,
        "does not support consumer to filter message by XPATH",
    ),
    ("a time from the future", ask(29, topic=TOPIC, queueId=0, timestamp=2**63 - 1), 0, ""),
    ("a place before the log", ask(33, offset=-1), 1, "can not find message by the offset, -1"),
    ("a place behind the log", ask(33, offset=2**62), 1, "can not find message by the offset, 4611686"),
    ("a place inside a message", ask(33, offset=1), 1, "can not find message by the offset, 1"),
    # Send-back.
    *(
        (
            f"sent back from {at}",
            ask(36, group=GROUP, offset=at, delayLevel=0),
            1,
            f"look message by offset failed, {at}",
        )
        for at in (-1, 1, 2**62, 2**63 - 1, -(2**63))
    ),
    (
        "sent back by halves",
        ask(36, group=GROUP, offset=0, delayLevel="half"),
        1,
        "<delayLevel> is no number",
    ),
    ("sent back without a group", ask(36, offset=0, delayLevel=0), 1, "field <group> is null"),
    # Properties with a meaning.
    (
        "a delay that is none",
        send(TOPIC, b"x", "DELAY\x01soon\x02"),
        13,
        "DELAY must be the number of a delay level",
    ),
    ("a timer", send(TOPIC, b"x", "TIMER_DELAY_SEC\x01x\x02"), 1, "timerWheelEnable is false"),
    ("a half message", send(TOPIC, b"x", "TRAN_MSG\x01true\x02"), 16, "transaction message is forbidden"),
    # Batches.
    *(
        (f"a batch: {what}", batch(body), 13, "the message is illegal")
        for what, body in {
            "nothing": b"",
            "three bytes": b"abc",
            "total -1": item(total=-1),
            "total 0": item(total=0),
            "total 2**31-1": item(total=2**31 - 1),
            "total too long": item(total=24),
            "body -1": item(body_bytes=-1),
            "body 2**31-1": item(body_bytes=2**31 - 1),
            "body too short": item(b"xyz", body_bytes=2),
            "properties -1": item(properties_bytes=-1),
            "properties too long": item(properties_bytes=32_767),
            "properties that leave no room": item(properties=b"k\x01" + b"v" * 32_764 + b"\x02"),
            "bytes behind the end": item() + b"zz",
            "good, then bad": item() + item(body_bytes=7),
            "more than a message may have": item() * (4 * MEGABYTE // 23),
        }.items()
    ),
    # Topics and groups.
    *(
        (f"{count} queues", topic_of("many", readQueueNums=count), 1, "raise memory")
        for count in (20_000, 2**31 - 1)
    ),
    ("-1 queues", topic_of(readQueueNums=-1), 29, "the number of queues is negative"),
    ("permission 64", topic_of(perm=64), 29, "perm 64 is illegal"),
    ("a filter type", topic_of(topicFilterType="NO_TAG"), 29, "unknown topicFilterType NO_TAG"),
    ("an attribute", topic_of(attributes="colour=red"), 1, "attribute format is wrong"),
    ("a producer's wish for any number of queues", send("wished", d=2**31 - 1), 0, ""),
    ("a list of topics", ask(18, b'{"topicConfigList":5}'), 29, "this is no list of topics"),
    ("a list of groups", ask(225, b'{"groupConfigList":[5]}'), 29, "this is no subscription group"),
    # Bodies.
    *(
        (f"{code} with {what}", ask(code, body), 1, remark)
        for code in (34, 41, 42)
        for what, body, remark in (
            ("nothing", b"", "bad JSON"),
            ("garbage", b"\xff\xfe\x00", "bad JSON"),
            ("half of it", b'{"clientID":"c', "bad JSON"),
            ("a list", b"[]", "this is no"),
            ("nothing it needs", b"{}", "missing required field"),
            ("depth", DEEP, "nests deeper than 64 levels"),
            ("brackets", b"[" * 200_000, "nests deeper than 64 levels|bytes"),
        )
    ),
    ("a number as client", beat(clientID=7), 1, "Expected `str`, got `int`"),
    ("consumers that are none", beat(consumerDataSet=[5]), 1, "Expected `object`, got `int`"),
    (
        "a subscription without topic",
        beat(**consumer(subscriptionDataSet=[{}])),
        1,
        "missing required field `topic`",
    ),
    (
        "a version beyond all numbers",
        beat(**consumer(subscriptionDataSet=[{"topic": TOPIC, "subVersion": 1e300}])),
        1,
        "Expected `int`, got `float`",
    ),
    ("a model that is none", beat(**consumer(messageModel=1.5)), 1, "got `float`"),
    ("a consumer without a legal name", beat(consumerDataSet=[{"groupName": "../x"}]), 0, ""),
    ("a heartbeat too large", beat(clientID="c" * 300_000), 1, "a heartbeat of more than 262144 bytes"),
    ("a body beyond reason", lock(["x" * 2 * MEGABYTE]), 1, "this request may have 1048576, split it"),
    ("locks of nobody", lock([QUEUE], None), 1, "missing required field `consumerGroup`"),
    ("locks of a number", lock([QUEUE], client=5), 1, "Expected `str`, got `int`"),
    ("locks of no queues", lock([7]), 1, "Expected `object`, got `int`"),
    ("half a queue", lock([{**QUEUE, "queueId": 0.5}]), 1, "Expected `int`, got `float`"),
    (
        "too many locks",
        lock([{"topic": "t", "queueId": number} for number in range(10_001)]),
        1,
        "more than 10000",
    ),
    ("locks under a long name", lock([QUEUE], "g" * 513), 1, "a name in the lock request is too long"),
    (
        "locks of queues that are not",
        lock([{**QUEUE, "queueId": number} for number in (-1, 2**63, 2**64 - 1)]),
        0,
        "",
    ),
    (
        "and none of them",
        lock([{**QUEUE, "queueId": number} for number in (-1, 2**63, 2**64 - 1)], code=42),
        0,
        "",
    ),
]
"""Name, what makes the request, the code of its answer, a pattern that is found in the remark."""
