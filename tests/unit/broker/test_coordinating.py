"""The coordinator's decisions: what is answered, what must happen before the answer, who is told."""

from dataclasses import replace

import pytest
from unit.broker.coordinator_parts import NOW, Bench, record

from actormq.broker.coordinating import HEARTBEAT_BYTES_MAX, Settings
from actormq.broker.deleting import Deletions
from actormq.broker.groups import GroupConfig, Groups
from actormq.broker.ledger_rows import offset_row, restore_row
from actormq.broker.locks import Locks
from actormq.broker.members import ConnectionKey
from actormq.broker.offsets import FORGOTTEN, OffsetKey, Offsets
from actormq.broker.outbox import Caller
from actormq.broker.sending import PutStatus
from actormq.broker.tables import (
    ConsumerGroupOffline,
    ConsumerGroupOnline,
    GroupEntry,
    GroupGone,
    OwnTables,
    SubscriptionEntry,
    Tables,
    TopicEntry,
    TopicGone,
)
from actormq.broker.topics import TopicConfig, Topics, TopicSettings
from actormq.wire.command import RemotingCommand

GATEWAY = ConnectionKey("gateway-0", 1, 0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_life_publishes_all_that_every_broker_has() -> None:
    """Rows are opened for exactly the published queues; both files are to be written."""
    bench = Bench()
    box = bench.begun
    tables = Tables()
    for entry in box.entries:
        tables.put(entry)
    rows = {row for entry in tables.topics.values() for row in entry.rows}
    assert {opened.row for opened in box.opened} == rows
    assert {"TBW102", "SCHEDULE_TOPIC_XXXX", "broker-a"} <= set(tables.topics)
    assert {"g", "TOOLS_CONSUMER"} <= set(tables.groups)
    assert (box.topics_changed, box.groups_changed) == (True, True)


def test_a_heartbeat_is_answered_after_the_tables_are_known() -> None:
    """Group, retry topic and subscription are published; the members are told at once."""
    bench = Bench()
    bench.beat(group="new")
    box = bench.state.take()
    assert box.replies[-1].tables
    assert ConsumerGroupOnline("new") in box.entries
    assert GroupEntry("new") in box.entries
    topics = {entry.name: entry for entry in box.entries if isinstance(entry, TopicEntry)}
    assert (topics["%RETRY%new"].read_queues, topics["%RETRY%new"].perm) == (1, 6)
    assert [row.topic for row in box.opened] == ["%RETRY%new"]
    assert [(key.connection_id, call.code, call.fields, call.is_oneway) for key, call in box.calls] == [
        (1, 40, {"consumerGroup": "new"}, True)
    ]
    bench.beat(group="new")
    again = bench.state.take()
    assert (again.entries, again.calls, again.topics_changed) == ([], [], False)


def test_who_is_in_a_group() -> None:
    """Every client once; none = 1, so that clients keep their queues."""
    bench = Bench()
    answer = bench.ask(38, {"consumerGroup": "g"})
    assert answer is not None
    assert (answer.code, answer.remark) == (1, "no consumer for this group, g")
    bench.beat("c1", connection=1)
    bench.beat("c2", connection=2)
    assert bench.good(38, {"consumerGroup": "g"}) == {"consumerIdList": ["c1", "c2"]}


@pytest.mark.parametrize("leave", ["close", "unregister", "gateway", "silence"])
def test_whoever_stays_is_told_when_a_member_goes(leave: str) -> None:
    """By close, by 35, with its gateway, by silence: 40 to the others, and offline after the last."""
    bench = Bench()
    bench.beat("c1", connection=1, gateway="gateway-1", lease_ms=5_000)
    bench.beat("c2", connection=2)
    bench.state.take()
    if leave == "close":
        bench.state.closed(ConnectionKey("gateway-1", 1, 1))
    elif leave == "unregister":
        fields = {"clientID": "c1", "producerGroup": "p", "consumerGroup": "g"}
        bench.good(35, fields, connection=1, gateway="gateway-1")
    elif leave == "gateway":
        bench.state.gateway_changed("gateway-1", 2)
    else:
        wake_ms = bench.state.wake_ms()
        assert wake_ms == NOW.monotonic_ms + 5_000
        bench.state.tick(NOW._replace(monotonic_ms=wake_ms))
    assert [key.connection_id for key, _ in bench.state.take().calls] == [2]
    bench.state.closed(ConnectionKey("gateway-0", 1, 2))
    assert ConsumerGroupOffline("g") in bench.state.take().entries


def test_a_group_that_may_not_be_created_is_passed_over() -> None:
    """The heartbeat succeeds, as RocketMQ's does; its pulls will be answered 26."""
    for bench, group in ((Bench(groups=Groups(auto_create=False)), "unknown"), (Bench(), "../x")):
        answer = bench.beat(group=group)
        assert answer is not None
        assert answer.code == 0
        assert bench.state.members.groups == {}


def test_a_group_that_does_not_want_notices_gets_none() -> None:
    """notifyConsumerIdsChangedEnable off; broadcasting groups neither."""
    bench = Bench(groups=Groups([GroupConfig(group_name="g", notify_consumer_ids_changed_enable=False)]))
    bench.beat()
    bench.beat(group="b", model="BROADCASTING", connection=2)
    assert bench.state.take().calls == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"clientID":1}', b'{"consumerDataSet":[]}'])
def test_a_body_that_is_no_heartbeat(body: bytes) -> None:
    """Answered with an error; the coordinator lives on."""
    answer = Bench().ask(34, None, body)
    assert answer is not None
    assert answer.code == 1


def test_a_heartbeat_has_a_limit() -> None:
    """One client cannot fill the tables."""
    answer = Bench().ask(34, None, b" " * (HEARTBEAT_BYTES_MAX + 1))
    assert answer is not None
    assert answer.code == 1


def test_tables_that_are_full_refuse_what_is_new_and_serve_the_rest() -> None:
    """A sentence names the setting; known groups go on."""
    size = Bench().state.tables.size_bytes
    bench = Bench(settings=Settings(broker="broker-a", tables_bytes_max=size + 400))
    answer = bench.beat(group="new")
    assert answer is not None
    assert "tables_bytes" in (answer.remark or "")
    bench.state.commit([("g", "TBW102", 0, 5)], NOW)
    assert bench.good(14, {"consumerGroup": "g", "topic": "TBW102", "queueId": "0"}) == {"offset": "5"}


def test_unknown_codes_are_answered_three() -> None:
    """With RocketMQ's remark, blank in front."""
    answer = Bench().ask(222, {"group": "g", "topic": "t", "timestamp": "0", "isForce": "true"})
    assert answer is not None
    assert (answer.code, answer.remark) == (3, " request type 222 not supported")


def test_one_way_requests_are_answered_with_nothing() -> None:
    """But they are served."""
    bench = Bench()
    fields = {"consumerGroup": "g", "topic": "TBW102", "queueId": "0", "commitOffset": "9"}
    assert bench.ask(15, fields, oneway=True) is None
    assert bench.reply().command is None
    assert bench.good(14, fields) == {"offset": "9"}


# --- offsets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"consumerGroup": "unknown"}, 26),
        ({"topic": "unknown"}, 17),
        ({"queueId": "x"}, 1),
        ({"queueId": None}, 29),
        ({"commitOffset": None}, 29),
    ],
)
def test_committing(changes: dict[str, str | None], code: int) -> None:
    """The checks of 15, and that a commit reaches the coordinator's own file."""
    bench = Bench()
    fields = {"consumerGroup": "g", "topic": "TBW102", "queueId": "1", "commitOffset": "9"}
    asked = {k: v for k, v in {**fields, **changes}.items() if v is not None}
    answer = bench.ask(15, asked)
    assert answer is not None
    assert answer.code == code
    assert [offset for _, offset in bench.state.take().offset_rows] == ([9] if code == 0 else [])


def test_where_a_group_without_offset_begins() -> None:
    """0 where the first message is near or nothing is there; 22 in an old queue, or if the client says so."""
    bench = Bench()
    fields = {"consumerGroup": "g", "topic": "TBW102", "queueId": "0"}
    assert bench.good(14, fields) == {"offset": "0"}
    bench.view.extents["TBW102", 0] = (0, 9)
    assert bench.good(14, fields) == {"offset": "0"}
    bench.view.near = False
    for asked in (fields, {**fields, "setZeroIfNotFound": "false"}, {**fields, "topic": "unknown"}):
        answer = bench.ask(14, asked)
        assert answer is not None
        assert answer.code == 22


def test_commits_of_pulls_count_only_for_what_exists() -> None:
    """No row for an unknown topic or group: names come from the peer."""
    bench = Bench()
    bench.state.commit([("g", "TBW102", 0, 5), ("unknown", "TBW102", 0, 5), ("g", "unknown", 0, 5)], NOW)
    assert len(bench.state.take().offset_rows) == 1


# --- locks -----------------------------------------------------------------------------------------------


def lock_body(client: str, *queues: int, group: str = "g") -> dict[str, object]:
    wanted = [{"topic": "t", "brokerName": "broker-a", "queueId": n} for n in queues]
    return {"consumerGroup": group, "clientId": client, "mqSet": wanted}


def test_locking_and_unlocking() -> None:
    """The free and the own are granted; the group is shown as ordered while it holds a lock."""
    bench = Bench()
    bench.state.take()
    assert bench.good(41, None, lock_body("c1", 0, 1)) == {
        "lockOKMQSet": [{"topic": "t", "queueId": n, "brokerName": "broker-a"} for n in (0, 1)]
    }
    assert GroupEntry("g", orderly_locked=True) in bench.state.outbox.entries
    assert len(bench.good(41, None, lock_body("c2", 1, 2))["lockOKMQSet"]) == 1
    bench.good(42, None, lock_body("c1", 0, 1))
    bench.good(42, None, lock_body("c2", 2))
    assert bench.state.outbox.entries[-1] == GroupEntry("g")
    assert len(bench.state.outbox.lock_rows) == 6


def test_a_native_producer_is_kept_without_beating_every_second() -> None:
    """Its gateway says when it goes; a consumer's lease is short, since others wait for its queues."""
    bench = Bench()
    body = {"clientID": "p1", "producerDataSet": [{"groupName": "p"}], "consumerDataSet": []}
    bench.good(34, None, body, connection=7, lease_ms=5_000)
    bench.beat("c1", lease_ms=5_000)
    bench.state.tick(NOW._replace(monotonic_ms=NOW.monotonic_ms + 5_001))
    assert {client.client_id for client in bench.state.members.clients.values()} == {"p1"}


def test_locks_that_were_asked_for_long_ago() -> None:
    """A gateway stood still: who asked for a lock has given up, who let one go may have it again."""
    bench = Bench()
    then, now = NOW.monotonic_ms, NOW._replace(monotonic_ms=NOW.monotonic_ms + 10_000)
    refused = bench.ask(41, None, lock_body("c1", 0), now=now, read_ms=then)
    assert refused is not None
    assert refused.code == 2
    assert (
        len(bench.good(41, None, lock_body("c1", 0), now=now, read_ms=now.monotonic_ms)["lockOKMQSet"]) == 1
    )
    bench.good(42, None, lock_body("c1", 0), now=now, read_ms=then)
    assert not bench.good(41, None, lock_body("c2", 0), now=now)["lockOKMQSet"], "an old request let it go"
    bench.good(42, None, lock_body("c1", 0), now=now, read_ms=now.monotonic_ms)
    assert bench.good(41, None, lock_body("c2", 0), now=now)["lockOKMQSet"]


def test_who_changes_nothing_waits_for_nobody() -> None:
    """Leases and locks do not hang on gateways that have not read somebody else's change."""
    bench = Bench()
    bench.beat("c1")
    assert bench.reply().tables, "a new member's subscription must be known everywhere"
    bench.beat("c1")
    assert not bench.reply().tables
    bench.good(41, None, lock_body("c1", 0))
    assert bench.reply().tables, "the group has become an orderly one"
    for code in (41, 42, 41):
        bench.good(code, None, lock_body("c1", 1) if code == 42 else lock_body("c1", 0, 1))
        assert not bench.reply().tables


def test_old_locks_end_by_themselves() -> None:
    """The tick forgets them and takes the mark from the group."""
    bench = Bench()
    bench.good(41, None, lock_body("c1", 0))
    bench.state.take()
    now = NOW
    while (wake_ms := bench.state.wake_ms()) is not None:
        now = now._replace(monotonic_ms=wake_ms)
        bench.state.tick(now)
    assert now.monotonic_ms - NOW.monotonic_ms in range(60_001, 80_000)
    assert GroupEntry("g") in bench.state.take().entries


def test_a_native_clients_heartbeats_keep_its_locks_in_the_ledger() -> None:
    """A successor must know how long they have been held: only renewals make them last."""
    bench = Bench()
    bench.good(41, None, lock_body("c1", 0), lease_ms=5_000)
    bench.state.take()
    later = NOW._replace(monotonic_ms=NOW.monotonic_ms + 1_000)
    bench.beat("c1", now=later, lease_ms=5_000)
    assert [(row.client_id, row.renewed_ms) for row in bench.state.take().lock_rows] == [
        ("c1", later.monotonic_ms)
    ]
    bench.beat("c1", now=later)
    assert bench.state.take().lock_rows == []


LONG = b'{"consumerGroup":"g","clientId":"' + b"c" * 600 + b'"}'


@pytest.mark.parametrize(
    "body", [b"x", b"[]", b"{}", LONG, b'{"consumerGroup":"g","clientId":"c","mqSet":[1]}']
)
def test_what_is_no_lock_request(body: bytes) -> None:
    """Answered with an error."""
    for code in (41, 42):
        answer = Bench().ask(code, None, body)
        assert answer is not None
        assert answer.code == 1


# --- topics and groups -----------------------------------------------------------------------------------

TOPIC = {
    "topic": "orders",
    "defaultTopic": "TBW102",
    "readQueueNums": "4",
    "writeQueueNums": "2",
    "perm": "6",
    "topicFilterType": "SINGLE_TAG",
    "topicSysFlag": "0",
    "order": "false",
    "attributes": "+message.type=FIFO",
}


def test_creating_a_topic() -> None:
    """Answered when gateways and name servers know; repeated, it changes nothing; versions grow."""
    bench = Bench()
    bench.state.take()
    version = bench.state.topic_version
    bench.good(17, TOPIC)
    assert (bench.reply().tables, bench.reply().registration) == (True, True)
    box = bench.state.take()
    assert box.topics_changed
    assert bench.state.topic_version.counter == version.counter + 1
    entry = bench.state.tables.topic("orders")
    assert entry is not None
    assert (entry.read_queues, entry.write_queues, entry.attributes) == (4, 2, {"message.type": "FIFO"})
    bench.good(17, TOPIC)
    assert not bench.state.take().topics_changed


@pytest.mark.parametrize(
    ("changes", "code"), [({"topic": "TBW102"}, 29), ({"perm": "99"}, 29), ({"readQueueNums": "9999"}, 1)]
)
def test_a_topic_that_cannot_be(changes: dict[str, str], code: int) -> None:
    """Name, permission, too many queues: an error, nothing changed, nothing to wait for."""
    bench = Bench()
    bench.state.take()
    answer = bench.ask(17, {**TOPIC, **changes})
    assert answer is not None
    assert answer.code == code
    assert (bench.reply().tables, bench.reply().registration) == (False, False)
    assert bench.state.take().entries == []


def test_creating_several_topics_and_groups_at_once() -> None:
    """18 and 225 carry lists."""
    bench = Bench()
    topics = [
        {"topicName": "a", "readQueueNums": 1},
        {"topicName": "b", "attributes": {"+queue.type": "BatchCQ"}},
    ]
    bench.good(18, None, {"topicConfigList": topics})
    a, b = bench.state.tables.topic("a"), bench.state.tables.topic("b")
    assert a is not None
    assert b is not None
    assert (a.read_queues, a.write_queues, b.attributes) == (1, 16, {"queue.type": "BatchCQ"})
    bench.good(225, None, {"groupConfigList": [{"groupName": "x"}, {"groupName": "y", "retryMaxTimes": 2}]})
    y = bench.state.tables.group("y")
    assert y is not None
    assert y.retry_max_times == 2
    for code in (18, 225):
        answer = bench.ask(code, None, {})
        assert answer is not None
        assert answer.code == 29


def test_changing_a_group() -> None:
    """200: published, persisted, answered when known."""
    bench = Bench()
    bench.state.take()
    bench.good(200, None, {"groupName": "g", "consumeEnable": False})
    assert bench.reply().tables
    box = bench.state.take()
    assert box.entries == [GroupEntry("g", consume_enable=False)]
    assert box.groups_changed
    assert bench.good(352, {"group": "g"})["consumeEnable"] is False


@pytest.mark.parametrize(
    ("topic", "template", "code"),
    [("orders", "TBW102", 0), ("orders", "nothing", 17), ("a b", "TBW102", 29), ("%DLQ%g", "nothing", 0)],
)
def test_a_send_to_an_unknown_topic(topic: str, template: str, code: int) -> None:
    """Created from its template or refused; the answer waits for the tables. Dead letters get one queue."""
    bench = Bench()
    bench.state.need_topic(Caller(GATEWAY, 7, "", 0), topic, template, 4, 0, NOW)
    reply = bench.reply()
    assert reply.needed is not None
    assert (reply.request_id, reply.needed[0], reply.tables) == (7, code, code == 0)
    entry = bench.state.tables.topic(topic)
    assert (entry.write_queues if entry else None) == (None if code else 1 if topic == "%DLQ%g" else 4)


def test_a_producer_may_wish_for_any_number_of_queues() -> None:
    """The template's is the limit, for the room in the tables, too."""
    bench = Bench()
    bench.state.need_topic(Caller(GATEWAY, 7, "", 0), "orders", "TBW102", (1 << 31) - 1, 0, NOW)
    assert bench.reply().needed == (0, None)
    entry = bench.state.tables.topic("orders")
    assert entry is not None
    assert entry.write_queues == 8


def test_a_pull_of_an_unknown_group() -> None:
    """Created where that is allowed, else 26."""
    bench = Bench()
    bench.state.need_group(Caller(GATEWAY, 7, "", 0), "new", NOW)
    assert bench.reply().needed == (0, None)
    assert bench.state.tables.group("new") == GroupEntry("new")
    closed = Bench(groups=Groups(auto_create=False))
    closed.state.need_group(Caller(GATEWAY, 7, "", 0), "new", NOW)
    needed = closed.reply().needed
    assert needed is not None
    assert needed[0] == 26


# --- send-back -------------------------------------------------------------------------------------------

BACK = {"offset": "4096", "group": "g", "delayLevel": "0", "originMsgId": "x", "originTopic": "orders"}


def test_a_message_sent_back_is_stored_again_by_reference() -> None:
    """Its body stays in the log; the answer comes with the writer's, and waits until that is safe."""
    bench = Bench()
    bench.view.records[4096] = record(4096, reconsume_times=1)
    assert bench.ask(36, BACK) is None
    (append,) = bench.state.outbox.appends
    schedule = bench.state.tables.topic("SCHEDULE_TOPIC_XXXX")
    assert schedule is not None
    assert (append.topic, append.queue_id, append.row) == (b"SCHEDULE_TOPIC_XXXX", 3, schedule.rows[3])
    assert (append.body_ref, append.body_bytes, append.reconsume_times) == (4096 + 88, 10, 2)
    assert (append.flag, append.sys_flag, append.born_timestamp) == (5, 1, 11)
    assert append.born_host == bytes([10, 0, 0, 1, 0, 0, 0, 80])
    assert b"REAL_TOPIC\x01%RETRY%g\x02" in append.properties
    bench.state.appended(append.ticket, PutStatus.PUT_OK, 9_000)
    reply = bench.reply()
    assert reply.command is not None
    assert (reply.command.code, reply.log_end, reply.tables) == (0, 9_000, True)


def test_a_dead_letter_gets_its_topic() -> None:
    """One queue, made on demand."""
    bench = Bench()
    bench.view.records[4096] = record(4096, reconsume_times=16)
    bench.ask(36, BACK)
    assert bench.state.outbox.appends[0].topic == b"%DLQ%g"
    entry = bench.state.tables.topic("%DLQ%g")
    assert entry is not None
    assert (entry.write_queues, entry.perm) == (1, 6)


def test_a_refused_append_is_an_error() -> None:
    """With the status in the remark; a second completion of the ticket means nothing."""
    bench = Bench()
    bench.view.records[4096] = record(4096)
    bench.ask(36, BACK)
    ticket = bench.state.outbox.appends[0].ticket
    bench.state.appended(ticket, PutStatus.SERVICE_NOT_AVAILABLE, -1)
    command = bench.reply().command
    assert command is not None
    assert (command.code, command.remark, bench.reply().log_end) == (1, "SERVICE_NOT_AVAILABLE", 0)
    before = len(bench.state.outbox.replies)
    bench.state.appended(ticket, PutStatus.PUT_OK, 5)
    assert len(bench.state.outbox.replies) == before


def test_send_backs_under_way_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it the consumer hears SYSTEM_BUSY, until some are stored."""
    monkeypatch.setattr("actormq.broker.coordinating.APPENDING_MAX", 2)
    bench = Bench()
    bench.view.records[4096] = record(4096)
    assert bench.ask(36, BACK) is None
    assert bench.ask(36, BACK) is None
    answer = bench.ask(36, BACK)
    assert answer is not None
    assert answer.code == 2
    bench.state.appended(bench.state.outbox.appends[0].ticket, PutStatus.PUT_OK, 1)
    assert bench.ask(36, BACK) is None


def test_lock_requests_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of queues in one request."""
    monkeypatch.setattr("actormq.broker.coordinating.LOCK_QUEUES_MAX", 1)
    answer = Bench().ask(41, None, lock_body("c", 0, 1))
    assert answer is not None
    assert answer.code == 1


def test_offsets_have_a_limit() -> None:
    """A flood of queues ends in an error."""
    bench = Bench(offsets=Offsets(offsets_max=1))
    for queue, code in ((0, 0), (1, 1)):
        fields = {"consumerGroup": "g", "topic": "TBW102", "queueId": str(queue), "commitOffset": "9"}
        answer = bench.ask(15, fields)
        assert answer is not None
        assert answer.code == code


def test_tickets_belong_to_one_incarnation() -> None:
    """The next life counts from another base."""
    first = Bench(settings=Settings(broker="b", ticket_base=1 << 32))
    first.view.records[4096] = record(4096)
    first.ask(36, BACK)
    assert first.state.outbox.appends[0].ticket == (1 << 32) + 1


@pytest.mark.parametrize(
    "case", ["no record", "no retries", "read-only broker", "read-only topic", "no group"]
)
def test_send_backs_that_store_nothing(case: str) -> None:
    """The checks of broker.md 4, in order."""
    groups = Groups([GroupConfig(group_name="g", retry_queue_nums=0)]) if case == "no retries" else None
    settings = Settings(broker="b", permission=4) if case == "read-only broker" else Settings(broker="b")
    bench = Bench(settings=settings, **({"groups": groups} if groups else {}))
    if case == "no group":
        bench.state.groups.auto_create = False
    if case == "read-only topic":
        bench.state.topics.put(TopicConfig(name="%RETRY%g", read_queues=1, write_queues=1, perm=4))
    if case != "no record":
        bench.view.records[4096] = record(4096)
    answer = bench.ask(36, {**BACK, "group": "unknown"} if case == "no group" else BACK)
    assert answer is not None
    codes = {"no record": 1, "no retries": 0, "read-only broker": 16, "read-only topic": 16, "no group": 26}
    assert answer.code == codes[case]
    assert bench.state.outbox.appends == []


# --- a new life ------------------------------------------------------------------------------------------


def restarted(first: Bench, locks: Locks | None = None) -> Bench:
    """Return the successor: it has the published tables, and waits for both gateways."""
    tables = OwnTables()
    for entry in first.state.tables.entries():
        tables.put(entry)
    topics = Topics(first.state.topics.settings, tables.topics.values(), tables.broker.row_incarnation_next)
    return Bench(
        tables=tables,
        topics=topics,
        groups=first.state.groups,
        locks=locks or Locks(),
        awaited=["gateway-0", "gateway-1"],
    )


def test_until_all_gateways_have_replayed_nothing_moves() -> None:
    """38 and 400 are errors, 41 renews only, nobody is told or expires; then everybody is told once."""
    first = Bench()
    first.beat("c1", connection=1)
    first.beat("c2", connection=2, gateway="gateway-1")
    first.beat("c3", group="gone", connection=3)
    first.good(41, None, lock_body("c1", 0))
    locks = Locks()
    for row in first.state.locks.rows():
        locks.restore(row)
    bench = restarted(first, locks)
    assert bench.begun.opened == []
    assert bench.begun.entries == []
    assert bench.beat("c1", connection=1, replay=True, lease_ms=5) is None
    for code, fields in ((38, {"consumerGroup": "g"}), (400, None)):
        answer = bench.ask(code, fields)
        assert answer is not None
        assert answer.code == 1
    assert len(bench.good(41, None, lock_body("c1", 0, 1))["lockOKMQSet"]) == 1
    assert bench.good(41, None, lock_body("c2", 0, 1)) == {"lockOKMQSet": []}
    bench.state.replay_done("gateway-0")
    bench.state.tick(NOW._replace(monotonic_ms=NOW.monotonic_ms + 500))
    assert bench.state.take().calls == []
    bench.beat("c2", connection=2, gateway="gateway-1", replay=True)
    bench.state.replay_done("gateway-1")
    assert bench.good(38, {"consumerGroup": "g"}) == {"consumerIdList": ["c1", "c2"]}
    box = bench.state.take()
    assert [key.connection_id for key, _ in box.calls] == [1, 2]
    assert box.entries == [ConsumerGroupOffline("gone")]
    answer = bench.ask(400, None)
    assert answer is not None
    assert answer.code == 3


def test_a_gateway_that_dies_needs_not_replay() -> None:
    """Its clients are gone; their groups are offline unless others remain."""
    first = Bench()
    first.beat("c1")
    bench = restarted(first)
    bench.state.gateway_changed("gateway-0", 0)
    bench.state.gateway_changed("gateway-1", 2)
    assert bench.state.awaited == set()
    assert bench.state.take().entries == [ConsumerGroupOffline("g")]


def test_subscriptions_that_are_gone_after_the_replay_leave_the_tables() -> None:
    """The tables say what the living members want."""
    first = Bench()
    first.beat(topics=["orders", "returns"])
    bench = restarted(first)
    bench.beat(topics=["orders"], replay=True)
    for gateway in ("gateway-0", "gateway-1"):
        bench.state.replay_done(gateway)
    assert bench.state.tables.subscription("g", "returns") is None
    assert isinstance(bench.state.tables.subscription("g", "orders"), SubscriptionEntry)


def test_deleting_a_topic_publishes_the_high_water_mark_of_incarnations() -> None:
    """A successor that knows only the tables never gives a row its old incarnation again."""
    bench = Bench(topics=Topics(TopicSettings(cluster="c", broker="broker-a", rows_max=300)))
    bench.good(17, TOPIC)
    entry = bench.state.tables.topic("orders")
    assert entry is not None
    assert bench.ask(215, {"topic": "orders"}) is None
    assert bench.state.outbox.closed == entry.rows
    successor = restarted(bench)
    change = successor.state.topics.put(TopicConfig(name="orders", read_queues=1, write_queues=1))
    assert change.opened[0].row == entry.rows[0]
    assert change.opened[0].incarnation > entry.row_incarnations[0]


def fence_of(bench: Bench) -> int:
    """Return the ticket that the writer is asked for."""
    (append,) = bench.state.outbox.appends
    return append.ticket


def test_a_topic_is_deleted_once_the_writer_and_the_disk_know(bench: Bench) -> None:
    """Noted first, rows closed, then gone; answered when where it ended is durable, and everyone knows."""
    bench.good(17, TOPIC)
    rows = bench.state.topics.table["orders"].rows
    bench.state.take()
    assert bench.ask(215, {"topic": "orders"}) is None
    box = bench.state.outbox
    assert box.deleted_changed
    assert bench.state.topics.deletions.log_ends == {"orders": -1}
    assert box.closed == rows
    assert TopicGone("orders") in box.entries
    assert box.topics_changed
    ticket = fence_of(bench)
    bench.state.take()
    bench.state.appended(ticket, PutStatus.TOPIC_GONE, -1)
    assert bench.state.outbox.deleted_changed
    assert bench.state.topics.deletions.log_ends == {"orders": 5_000}
    assert not bench.state.outbox.replies
    bench.state.deletions_saved(NOW)
    reply = bench.reply()
    assert reply.command is not None
    assert (reply.command.code, reply.tables, reply.registration) == (0, True, True)
    assert not bench.state.deleting


def test_a_name_is_free_only_when_its_end_is_noted(bench: Bench) -> None:
    """Creations by anyone wait: of administrators, senders, and heartbeats (retry topics)."""
    bench.good(17, TOPIC)
    bench.beat(topics=["orders"])
    bench.state.take()
    assert bench.ask(215, {"topic": "orders"}) is None
    ticket = fence_of(bench)
    assert bench.ask(17, TOPIC) is None
    caller = Caller(ConnectionKey("gateway-0", 1, 0), 77, "", 0)
    bench.state.need_topic(caller, "orders", "TBW102", 4, 0, NOW)
    assert bench.ask(215, {"topic": "orders"}) is None
    assert bench.ask(17, {**TOPIC, "topic": "others"}) is not None
    assert bench.state.waiting
    bench.state.take()
    bench.state.appended(ticket, PutStatus.TOPIC_GONE, -1)
    assert not bench.state.outbox.opened
    bench.state.deletions_saved(NOW)
    # The first deletion is answered; then the topic is made, asked for, and deleted once more.
    opened = bench.state.outbox.opened
    assert {row.log_start for row in opened} == {5_000}
    assert {row.incarnation for row in opened}.isdisjoint({1})
    answered = [(reply.request_id, reply.needed) for reply in bench.state.outbox.replies]
    assert (77, (0, None)) in answered
    assert bench.state.topics.deletions.is_pending("orders")

    dlq = "%RETRY%g"
    bench.state.take()
    assert bench.ask(215, {"topic": dlq}) is None
    assert bench.beat("c2", topics=["orders"]) is None
    assert "c2" not in str(bench.state.members.groups["g"].client_ids())
    bench.state.appended(fence_of(bench), PutStatus.TOPIC_GONE, -1)
    bench.state.deletions_saved(NOW)
    assert bench.state.topics.table[dlq].row_incarnations
    assert "c2" in bench.state.members.groups["g"].client_ids()


def test_rows_of_a_deleted_topic_rest_until_nobody_writes_into_them() -> None:
    """A creation that needs them waits; one that does not gets others."""
    settings = TopicSettings(cluster="c", broker="broker-a", rows_max=64)
    bench = Bench(topics=Topics(settings))
    free = bench.state.topics.rows_free
    many = {**TOPIC, "readQueueNums": str(free), "writeQueueNums": str(free)}
    bench.good(17, many)
    bench.state.take()
    bench.ask(215, {"topic": "orders"})
    bench.state.appended(fence_of(bench), PutStatus.TOPIC_GONE, -1)
    bench.state.deletions_saved(NOW)
    bench.state.take()
    assert bench.ask(17, TOPIC) is None
    bench.state.settle(NOW)
    assert bench.reply().command is not None
    assert bench.state.topics.get("orders") is not None


def test_offsets_go_with_their_topic(bench: Bench) -> None:
    """Of every group; the ledger and the file are told; a topic that is not there may have some, too."""
    bench.good(17, TOPIC)
    bench.good(17, {**TOPIC, "topic": "others"})
    for topic in ("orders", "others"):
        for queue_id in ("0", "1"):
            fields = {"consumerGroup": "g", "topic": topic, "queueId": queue_id, "commitOffset": "70"}
            bench.good(15, fields)
    bench.state.take()
    bench.ask(215, {"topic": "orders"})
    box = bench.state.take()
    assert box.unsaved_offsets == {"orders"}
    assert [(key.topic, key.queue_id) for key, _ in box.offset_rows] == [("orders", 0), ("orders", 1)]
    assert bench.state.offsets.topics_of("g") == ["others"]
    # What consumers of it still say of it does not count.
    bench.state.commit([("g", "orders", 0, 71)], NOW)
    assert bench.state.offsets.topics_of("g") == ["others"]
    offsets, locks = Offsets(), Locks()
    offsets.restore(OffsetKey("orders", "g", 0), 70)
    for key, offset in box.offset_rows:
        restore_row(offset_row(key, offset), offsets, locks)
    assert offsets.get(OffsetKey("orders", "g", 0)) is None
    assert offsets.table() == {}

    bench.state.offsets.restore(OffsetKey("unknown", "g", 0), 5)
    bench.good(215, {"topic": "unknown"})
    assert bench.state.offsets.topics_of("g") == ["others"]
    assert bench.state.outbox.unsaved_offsets == {"unknown"}


def test_commits_of_the_dead_do_not_count(bench: Bench) -> None:
    """A consumer repeats how far it was in the deleted topic; the new one of that name has less."""
    bench.good(17, TOPIC)
    bench.ask(215, {"topic": "orders"})
    bench.state.appended(fence_of(bench), PutStatus.TOPIC_GONE, -1)
    bench.state.deletions_saved(NOW)
    bench.good(17, TOPIC)
    bench.view.extents["orders", 0] = (0, 5)
    fields = {"consumerGroup": "g", "topic": "orders", "queueId": "0"}
    for offset, stored in (("70", None), ("5", 5), ("6", 5), ("4", 4)):
        bench.good(15, {**fields, "commitOffset": offset})
        assert bench.state.offsets.get(OffsetKey("orders", "g", 0)) == stored
    bench.state.commit([("g", "orders", 0, 71)], NOW)
    assert bench.state.offsets.get(OffsetKey("orders", "g", 0)) == 4


def test_a_group_is_deleted(bench: Bench) -> None:
    """Its offsets only when asked to, as with RocketMQ; one that is not there is no error."""
    bench.good(17, TOPIC)
    fields = {"consumerGroup": "g", "topic": "orders", "queueId": "0", "commitOffset": "70"}
    bench.good(15, fields)
    bench.state.take()
    bench.good(207, {"groupName": "g"})
    assert bench.state.groups.get("g") is None
    assert bench.state.outbox.entries == [GroupGone("g")]
    assert bench.state.outbox.groups_changed
    assert bench.reply().tables
    key = OffsetKey("orders", "g", 0)
    assert bench.state.offsets.get(key) == 70
    bench.state.take()
    bench.good(207, {"groupName": "g", "cleanOffset": "true"})
    assert bench.state.outbox.offset_rows == [(key, FORGOTTEN)]
    assert not bench.state.outbox.groups_changed
    assert bench.state.offsets.table() == {}


def test_retry_topics_of_pop_go_with_their_topic(bench: Bench) -> None:
    for name in ("orders", "%RETRY%g_orders", "%RETRY%g+orders", "%RETRY%g"):
        bench.state.topics.put(TopicConfig(name=name))
    fields = {"consumerGroup": "g", "topic": "orders", "queueId": "0", "commitOffset": "70"}
    bench.good(15, fields)
    bench.ask(215, {"topic": "orders"})
    assert [name for name in bench.state.topics.table if "orders" in name] == []
    assert bench.state.topics.get("%RETRY%g") is not None


def test_system_topics_stay(bench: Bench) -> None:
    """So does RocketMQ; and a blank name is none."""
    for name in ("TBW102", "SCHEDULE_TOPIC_XXXX", "rmq_sys_x", " "):
        answer = bench.ask(215, {"topic": name})
        assert answer is not None
        assert answer.code == 29
    assert bench.state.topics.get("SCHEDULE_TOPIC_XXXX") is not None


def test_a_deletion_that_cannot_be_noted_is_said_and_goes_on(bench: Bench) -> None:
    """Full disk: an error at once; the name stays taken until it could be noted."""
    bench.good(17, TOPIC)
    bench.state.take()
    bench.ask(215, {"topic": "orders"})
    ticket = fence_of(bench)
    bench.state.deletions_unsaved("no room")
    reply = bench.reply()
    assert reply.command is not None
    assert (reply.command.code, reply.command.remark) == (1, "no room")
    assert bench.ask(17, TOPIC) is None
    bench.state.take()
    bench.state.appended(ticket, PutStatus.TOPIC_GONE, -1)
    bench.state.deletions_saved(NOW)
    assert bench.state.topics.get("orders") is not None


def test_a_successor_ends_what_was_begun() -> None:
    """It finds the note, whether the tables still have the topic or not."""
    for gone in (False, True):
        bench = Bench(topics=Topics(TopicSettings(cluster="c", broker="broker-a", rows_max=300)))
        bench.good(17, TOPIC)
        bench.ask(215, {"topic": "orders"})
        if not gone:
            bench.good(17, {**TOPIC, "topic": "again"})
        deletions = Deletions(dict(bench.state.topics.deletions.log_ends))
        entries = bench.state.tables.topics.values()
        topics = Topics(bench.state.topics.settings, entries, 1000, deletions)
        successor = Bench(topics=topics)
        assert successor.ask(17, TOPIC) is None
        successor.state.appended(successor.begun.appends[0].ticket, PutStatus.TOPIC_GONE, -1)
        successor.state.deletions_saved(NOW)
        assert successor.state.topics.table["orders"].row_incarnations[0] >= 1000


def test_too_many_that_wait_are_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actormq.broker.coordinating.WAITING_MAX", 2)
    bench.good(17, TOPIC)
    bench.ask(215, {"topic": "orders"})
    assert [bench.ask(17, TOPIC) for _ in range(2)] == [None, None]
    answer = bench.ask(17, TOPIC)
    assert answer is not None
    assert (answer.code, str(answer.remark)[:10]) == (2, "[OVERLOAD]")
    caller = Caller(ConnectionKey("gateway-0", 1, 0), 77, "", 0)
    bench.state.need_topic(caller, "orders", "TBW102", 4, 0, NOW)
    assert bench.reply().needed is not None
    assert bench.reply().needed[0] == 2  # type: ignore[index]


def test_notes_of_deletions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log does not hold any more goes, then the oldest; a name that is not free yet stays."""
    monkeypatch.setattr("actormq.broker.deleting.NOTES_MAX", 3)
    deletions = Deletions({"c": 30, "a": 10, "d": 40, "b": 20, "e": 50})
    deletions.begin(["p"], 1)
    assert deletions.forget(10)
    assert deletions.log_ends == {"d": 40, "e": 50, "p": -1}
    assert not deletions.forget(10)


def test_a_request_is_answered_on_its_own_gateway() -> None:
    """Key and number of the question come back with the answer."""
    bench = Bench()
    bench.beat(connection=9, gateway="gateway-3")
    reply = bench.reply()
    assert (reply.key, reply.request_id) == (ConnectionKey("gateway-3", 1, 9), bench.request_id)
    assert isinstance(reply.command, RemotingCommand)
    assert replace(reply.command).is_response
