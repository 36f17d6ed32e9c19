"""The gateway as its clients see it, with the real data path behind it in one thread."""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_rig import SENDER, Rig, TcpPeer, ZmqPeer, pull_request, records_of, send_request

from actormq.actors.coordinator import (
    CallClient,
    ClientAnswered,
    CommitOffsets,
    ConnectionClosed,
    NeedGroup,
    NeedTopic,
    ReplayDone,
    Serve,
    Served,
)
from actormq.actors.gateway import relay
from actormq.actors.gateway.cold import ColdReader
from actormq.actors.gateway.role import CROWD, REST_A_SEND_NS
from actormq.broker.tables import BrokerEntry, GroupEntry, TopicGone
from actormq.config import FlushMode, GatewayConfig
from actormq.errors import FrameError, RequestError
from actormq.message import java_hash
from actormq.shm.positions import Position, RoleCell, slot_of
from actormq.wire import batch, frame, json
from actormq.wire.command import Language, RemotingCommand, Serialize
from actormq.wire.headers import _LONG, _V2


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    made.add_topic("t", 4)
    made.add_group("g", "t")
    yield made
    made.close()


@pytest.fixture
def peer(rig: Rig) -> Iterator[TcpPeer]:
    made = TcpPeer(rig)
    yield made
    made.close()


class TestSending:
    def test_a_message_is_stored_and_answered(self, rig: Rig, peer: TcpPeer) -> None:
        """The answer's fields say where it is; the record says what it was."""
        answer = peer.ask(
            send_request(body=b"hello", properties="KEYS\x01k\x02UNIQ_KEY\x01U1\x02WAIT\x01true\x02")
        )
        assert answer.code == 0
        assert answer.remark is None
        offset_id = answer.fields.pop("msgId")
        assert answer.fields == {
            "MSG_REGION": "DefaultRegion",
            "TRACE_ON": "true",
            "queueId": "0",
            "queueOffset": "0",
            "transactionId": "U1",
        }
        assert bytes.fromhex(offset_id) == rig.host + struct.pack(">q", 0)
        pulled = peer.ask(pull_request())
        (stored,) = records_of(pulled.body)
        assert bytes(stored.body) == b"hello"
        assert stored.topic == "t"
        assert stored.born_host[0] == "127.0.0.1"
        assert stored.born_host[1] == peer.sock.getsockname()[1]
        assert stored.message_id == offset_id
        assert stored.properties == {
            "KEYS": "k",
            "UNIQ_KEY": "U1",
            "CLUSTER": "DefaultCluster",
            "MSG_REGION": "DefaultRegion",
            "TRACE_ON": "true",
        }

    @pytest.mark.parametrize("code", [10, 310])
    @pytest.mark.parametrize("serialize", list(Serialize))
    def test_both_forms_and_both_serializations(
        self, rig: Rig, peer: TcpPeer, code: int, serialize: Serialize
    ) -> None:
        """10 with long names, 310 with letters, JSON and binary headers; the answer comes in kind."""
        request = send_request(code=310, serialize=serialize, queue_id=2)
        if code == 10:
            request.code = 10
            request.fields = {
                long: request.fields[short]
                for long, short in zip(_LONG, _V2, strict=True)
                if short in request.fields
            }
        answer = peer.ask(request)
        assert answer.code == 0
        assert answer.serialize is serialize
        assert answer.fields["queueId"] == "2"
        assert len(answer.fields["transactionId"]) == 32, "a unique key is made where there is none"

    def test_many_sends_of_one_read_keep_their_order(self, rig: Rig, peer: TcpPeer) -> None:
        """One write, one doorbell, answers for all."""
        requests = [send_request(body=b"%d" % number) for number in range(200)]
        rung = rig.bells["writer"].rung
        peer.write(b"".join(map(frame.encode, requests)))
        answers = [peer.answer_to(request) for request in requests]
        assert [int(answer.fields["queueOffset"]) for answer in answers] == list(range(200))
        assert rig.bells["writer"].rung - rung < 50
        pulled = peer.ask(pull_request(queue_offset=100, messages=5))
        assert [bytes(one.body) for one in records_of(pulled.body)] == [b"%d" % n for n in range(100, 105)]

    def test_it_looks_away_only_after_a_crowd(self, rig: Rig, peer: TcpPeer) -> None:
        """Many sends in one read: the answers and the next sends are one turn.  Few: nobody waits."""
        request = send_request(properties="UNIQ_KEY\x01U\x02")
        peer.ask(request)
        rig.gateway.rest_ns()
        rests = []
        for count in (CROWD - 1, CROWD, 40, 10):
            peer.write(b"".join(frame.encode(request) for _ in range(count)))
            rig.turn(lambda: rig.gateway.loop.run_once(0))
            rests.append(rig.gateway.rest_ns())
            assert rig.gateway.rest_ns() == 0, "once only"
            rig.settle()
        assert rests == [0, CROWD * REST_A_SEND_NS, 40 * REST_A_SEND_NS, 10 * REST_A_SEND_NS]

    def test_before_sleeping_it_sees_what_is_in_the_rings(self, rig: Rig, peer: TcpPeer) -> None:
        """Completions and wakes: who comes between the turn and the poll must not be overlooked."""
        rig.settle()
        assert not rig.gateway.has_news()
        rig.running["writer"] = False
        peer.write(frame.encode(send_request()))
        rig.turn(lambda: not rig.writer.idle)
        assert not rig.gateway.has_news()
        rig.writer.run(rig.clock.wall_ms(), 0)
        assert rig.gateway.has_news()
        rig.gateway.on_batch()
        assert not rig.gateway.has_news()

    def test_a_batch_gets_an_id_for_each_message(self, rig: Rig, peer: TcpPeer) -> None:
        """Consecutive offsets, comma-joined ids, own properties and the broker's."""
        body = batch.encode([(0, b"one", b"UNIQ_KEY\x01A\x02"), (7, b"three", b"UNIQ_KEY\x01B\x02")])
        answer = peer.ask(
            send_request(body=body, code=320, properties="WAIT\x01true\x02UNIQ_KEY\x01OUTER\x02")
        )
        assert answer.code == 0
        pulled = records_of(peer.ask(pull_request()).body)
        assert answer.fields["msgId"] == ",".join(one.message_id for one in pulled)
        assert [bytes(one.body) for one in pulled] == [b"one", b"three"]
        assert [one.flag for one in pulled] == [0, 7]
        assert [one.properties["UNIQ_KEY"] for one in pulled] == ["A", "B"]
        assert all(one.properties["CLUSTER"] == "DefaultCluster" for one in pulled)
        assert all("WAIT" not in one.properties for one in pulled)

    def test_a_one_way_send_is_stored_in_silence(self, rig: Rig, peer: TcpPeer) -> None:
        """No answer, not even an error."""
        peer.tell(send_request(oneway=True))
        peer.tell(send_request(oneway=True, topic="no such topic!"))
        answer = peer.ask(send_request())
        assert answer.fields["queueOffset"] == "1"
        assert len(peer.got) == 1

    @pytest.mark.parametrize(
        ("request_", "code", "remark"),
        [
            (send_request(topic=""), 29, "blank"),
            (send_request(topic="a b"), 29, "illegal characters"),
            (send_request(topic="x" * 128), 29, "longer"),
            (send_request(topic="SCHEDULE_TOPIC_XXXX"), 16, "forbidden"),
            (send_request(topic="RMQ_SYS_TRANS_HALF_TOPIC"), 16, "forbidden"),
            (send_request(queue_id=4), 29, "request queueId[4] is illegal"),
            (send_request(body=b""), 13, "illegal"),
            (send_request(body=bytes(64 * 1024 + 1)), 13, "illegal"),
            (send_request(properties="k\x01" + "v" * 32_700 + "\x02"), 13, "32KB"),
            (send_request(properties="TRAN_MSG\x01true\x02"), 16, "transaction message is forbidden"),
            (send_request(properties="TIMER_DELAY_SEC\x015\x02"), 1, "timerWheelEnable is false"),
            (send_request(properties="DELAY\x01soon\x02"), 13, "DELAY must be the number of a delay level"),
            (send_request(sys_flag=0x80), 13, "not supported"),
            (
                send_request(topic="%RETRY%g", code=320, body=batch.encode([(0, b"x", b"")])),
                13,
                "retry group",
            ),
            (send_request(code=320, body=b"garbage"), 13, "illegal"),
            (
                send_request(code=320, body=batch.encode([(0, b"x", b"")]), properties="DELAY\x011\x02"),
                13,
                "illegal",
            ),
        ],
    )
    def test_what_is_refused(
        self, rig: Rig, peer: TcpPeer, request_: RemotingCommand, code: int, remark: str
    ) -> None:
        """RocketMQ's code and remark, region and trace switch in the answer, nothing stored."""
        rig.add_topic("%RETRY%g")
        answer = peer.ask(request_)
        assert (answer.code, remark in (answer.remark or "")) == (code, True), answer
        assert answer.fields["MSG_REGION"] == "DefaultRegion"
        assert rig.positions.get(Position.APPENDED) == 0
        assert peer.ask(send_request()).code == 0, "the connection goes on"

    def test_a_missing_field_is_answered(self, rig: Rig, peer: TcpPeer) -> None:
        """SYSTEM_ERROR with the field's name, as RocketMQ's checkFields."""
        request = send_request()
        del request.fields["g"]
        answer = peer.ask(request)
        assert answer.code == 1
        assert "<g>" in (answer.remark or "")

    def test_a_delayed_message_goes_to_its_level(self, rig: Rig, peer: TcpPeer) -> None:
        """SCHEDULE_TOPIC_XXXX, queue level - 1, with its own place kept aside; levels end at 18."""
        rig.add_topic("SCHEDULE_TOPIC_XXXX", 18)
        rig.add_group("g", "SCHEDULE_TOPIC_XXXX")
        assert peer.ask(send_request(queue_id=3, properties="DELAY\x013\x02")).fields["queueId"] == "2"
        assert peer.ask(send_request(properties="DELAY\x0199\x02")).fields["queueId"] == "17"
        (stored,) = records_of(peer.ask(pull_request("SCHEDULE_TOPIC_XXXX", queue_id=2)).body)
        assert stored.topic == "SCHEDULE_TOPIC_XXXX"
        assert stored.properties["REAL_TOPIC"] == "t"
        assert stored.properties["REAL_QID"] == "3"

    def test_properties_that_only_the_broker_sets(self, rig: Rig, peer: TcpPeer) -> None:
        """A pop handle, transient properties and a forged cluster are not stored."""
        peer.ask(
            send_request(properties="POP_CK\x01x\x02__RMQ.TRANSIENT.a\x01b\x02CLUSTER\x01evil\x02x\x01y\x02")
        )
        (stored,) = records_of(peer.ask(pull_request()).body)
        assert stored.properties.keys() == {"x", "UNIQ_KEY", "CLUSTER", "MSG_REGION", "TRACE_ON"}
        assert stored.properties["CLUSTER"] == "DefaultCluster"

    def test_host_flags_are_the_brokers(self, rig: Rig, peer: TcpPeer) -> None:
        """A client that claims an IPv6 host does not break the record."""
        assert peer.ask(send_request(sys_flag=0x10 | 0x20 | 1)).code == 0
        (stored,) = records_of(peer.ask(pull_request()).body)
        assert stored.sys_flag == 1

    def test_the_queue_is_chosen_where_the_client_leaves_it(self, rig: Rig, peer: TcpPeer) -> None:
        """Negative queue ids are spread."""
        chosen = {peer.ask(send_request(queue_id=-1)).fields["queueId"] for _ in range(40)}
        assert chosen == {"0", "1", "2", "3"}


class TestSync:
    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[Rig]:
        made = Rig(tmp_path, flush=FlushMode.SYNC)
        made.add_topic("t")
        made.add_group("g", "t")
        yield made
        made.close()

    def test_an_answer_waits_for_the_sync(self, rig: Rig, peer: TcpPeer) -> None:
        """Appended is not enough; the wish names the end of the record; then all are answered."""
        rig.running["flusher"] = False
        requests = [send_request(), send_request()]
        for request in requests:
            peer.tell(request)
        rig.turn(lambda: rig.positions.role(slot_of("gateway-0"), RoleCell.WANTED_FLUSHED))
        rig.settle()
        peer.poll()
        assert peer.got == []
        rig.turn(lambda: len(peer.rig.gateway._sends._syncing) == 2)
        first_end = rig.gateway._sends.wanted_flushed
        rig.positions.set(Position.FLUSHED, first_end)
        assert peer.answer_to(requests[0]).code == 0
        assert len(peer.got) == 1
        assert rig.gateway._sends.wanted_flushed > first_end
        rig.running["flusher"] = True
        assert peer.answer_to(requests[1]).code == 0
        rig.settle()
        assert rig.positions.role(slot_of("gateway-0"), RoleCell.WANTED_FLUSHED) == 0

    def test_a_message_that_does_not_wait_is_answered_at_once(self, rig: Rig, peer: TcpPeer) -> None:
        """WAIT=false: appended is enough, although another waits."""
        rig.running["flusher"] = False
        waiting = send_request()
        peer.tell(waiting)
        assert peer.ask(send_request(properties="WAIT\x01false\x02")).code == 0
        assert len(peer.got) == 1

    def test_a_sync_that_does_not_come(self, rig: Rig, peer: TcpPeer) -> None:
        """FLUSH_DISK_TIMEOUT after five seconds, header filled: the message is stored."""
        rig.running["flusher"] = False
        request = send_request()
        peer.tell(request)
        rig.turn(lambda: rig.gateway._sends.wanted_flushed)
        rig.pass_until(4)
        rig.settle()
        peer.poll()
        assert peer.got == []
        rig.pass_until(5.1)
        answer = peer.answer_to(request)
        assert answer.code == 10
        assert answer.fields["queueOffset"] == "0"

    def test_what_waits_for_the_disk_is_bounded(self, tmp_path: Path) -> None:
        """While nothing is synced, no more is stored than may wait; the rest waits in the line."""
        rig = Rig(tmp_path, flush=FlushMode.SYNC, gateway=GatewayConfig(waiting_requests_max=12))
        rig.add_topic("t")
        peer = TcpPeer(rig)
        rig.running["flusher"] = False
        rig.gateway.authorise = lambda client, description, command: None  # none may be taken by the kernel
        requests = [send_request() for _ in range(14)]
        for request in requests[:12]:
            peer.tell(request)
        rig.turn(lambda: len(rig.gateway._sends._syncing) == 12)
        for request in requests[12:]:
            peer.tell(request)
        rig.turn(lambda: len(rig.gateway._sends._line) == 2)
        rig.running["flusher"] = True
        assert {peer.answer_to(request).code for request in requests} == {0}
        rig.close()


class TestUnknownTopics:
    def test_a_topic_is_asked_for_once(self, rig: Rig, peer: TcpPeer) -> None:
        """Sends wait, others do not; when it is there they are stored in their order."""
        requests = [send_request("new", b"%d" % number) for number in range(3)]
        for request in requests:
            peer.tell(request)
        other = TcpPeer(rig)
        requests.append(send_request("new", b"3"))
        rig.turn(lambda: rig.coordinator.of(NeedTopic))
        other.tell(requests[3])
        assert peer.ask(send_request("t")).code == 0
        rig.settle()
        (need,) = rig.coordinator.of(NeedTopic)
        assert (need.topic, need.default_topic, need.default_queues) == ("new", "TBW102", 4)
        rig.add_topic("new")
        late = send_request("new", b"4")
        peer.tell(late)
        rig.settle()
        rig.answer_need(need)
        offsets = [int(peer.answer_to(request).fields["queueOffset"]) for request in requests[:3]]
        assert offsets == [0, 1, 2]
        assert other.answer_to(requests[3]).fields["queueOffset"] == "3"
        assert peer.answer_to(late).fields["queueOffset"] == "4"
        assert len(rig.coordinator.of(NeedTopic)) == 1
        assert rig.gateway._sends.idle

    def test_a_refusal_goes_to_all_who_wait(self, rig: Rig, peer: TcpPeer) -> None:
        """The coordinator's code and remark; nothing negative is remembered."""
        first, second = send_request("new"), send_request("new")
        peer.tell(first)
        peer.tell(second)
        need = rig.turn(lambda: rig.coordinator.of(NeedTopic))[0]
        rig.settle()
        rig.answer_need(need, 17, "topic[new] not exist, apply first please!")
        assert peer.answer_to(first).code == 17
        assert "apply first" in (peer.answer_to(second).remark or "")
        peer.tell(send_request("new"))
        rig.turn(lambda: len(rig.coordinator.of(NeedTopic)) == 2)

    def test_no_answer_at_all(self, rig: Rig, peer: TcpPeer) -> None:
        """After three seconds: SYSTEM_BUSY, and the next send asks again."""
        request = send_request("new")
        peer.tell(request)
        rig.turn(lambda: rig.coordinator.of(NeedTopic))
        rig.pass_until(3.1)
        assert peer.answer_to(request).code == 2
        peer.tell(send_request("new"))
        rig.turn(lambda: len(rig.coordinator.of(NeedTopic)) == 2)

    def test_the_question_reaches_the_next_coordinator(self, rig: Rig, peer: TcpPeer) -> None:
        """A coordinator that dies with the question is no reason to refuse."""
        request = send_request("new")
        peer.tell(request)
        rig.turn(lambda: rig.coordinator.of(NeedTopic))
        rig.set_coordinator(0)
        rig.settle()
        rig.set_coordinator(2)
        rig.turn(lambda: len(rig.coordinator.of(NeedTopic)) == 2)
        rig.add_topic("new")
        rig.answer_need(rig.coordinator.of(NeedTopic)[-1])
        assert peer.answer_to(request).code == 0


class TestRetrySends:
    def test_within_the_limit_it_stays(self, rig: Rig, peer: TcpPeer) -> None:
        """The client's fallback when send-back failed."""
        rig.add_topic("%RETRY%g")
        assert peer.ask(send_request("%RETRY%g", reconsume_times=16)).code == 0
        assert rig.memory.extents.read(rig.gateway._tables.topics["%RETRY%g"].rows[0]).incarnation

    def test_beyond_the_limit_it_is_dead(self, rig: Rig, peer: TcpPeer) -> None:
        """%DLQ%g is asked for like any topic, and gets the message without its delay."""
        rig.add_topic("%RETRY%g")
        rig.add_group("g", "%DLQ%g")
        request = send_request("%RETRY%g", reconsume_times=17, properties="DELAY\x013\x02")
        peer.tell(request)
        (need,) = rig.turn(lambda: rig.coordinator.of(NeedTopic))
        assert need.topic == "%DLQ%g"
        rig.add_topic("%DLQ%g")
        rig.answer_need(need)
        assert peer.answer_to(request).code == 0
        (stored,) = records_of(peer.ask(pull_request("%DLQ%g")).body)
        assert stored.topic == "%DLQ%g"

    def test_the_clients_limit_counts_for_new_clients_only(self, rig: Rig, peer: TcpPeer) -> None:
        """maxReconsumeTimes of the header, from 3.4.9 on."""
        rig.add_topic("%RETRY%g")
        dead = rig.add_topic("%DLQ%g")
        for version, max_offset in ((100, 0), (479, 1)):
            request = send_request("%RETRY%g", version=version, reconsume_times=3, max_reconsume_times=2)
            assert peer.ask(request).code == 0
            rig.settle()
            assert rig.memory.extents.read(dead.rows[0]).max == max_offset

    def test_an_unknown_group_is_asked_for(self, rig: Rig, peer: TcpPeer) -> None:
        """26 when it may not be created."""
        rig.add_topic("%RETRY%nobody")
        request = send_request("%RETRY%nobody")
        peer.tell(request)
        (need,) = rig.turn(lambda: rig.coordinator.of(NeedGroup))
        assert need.group == "nobody"
        rig.answer_need(need, 26, "subscription group [nobody] does not exist")
        assert peer.answer_to(request).code == 26


class TestBackPressure:
    def test_a_full_ring_makes_sends_wait_in_order(self, tmp_path: Path) -> None:
        """While the writer stands still sends wait, pulls do not; then all are stored in order."""
        rig = Rig(tmp_path, ring_bytes=4096)
        rig.add_topic("t")
        rig.add_group("g", "t")
        peer = TcpPeer(rig)
        rig.running["writer"] = False
        requests = [send_request(body=bytes(500)) for _ in range(30)]
        peer.write(b"".join(map(frame.encode, requests)))
        rig.turn(lambda: rig.gateway._sends._line)
        assert peer.ask(pull_request(flags=0)).code == 19, "a pull waited behind sends"
        rig.running["writer"] = True
        offsets = [int(peer.answer_to(request).fields["queueOffset"]) for request in requests]
        assert offsets == list(range(30))
        assert (rig.gateway._sends._waiting_requests, rig.gateway._sends._waiting_bytes) == (0, 0)
        rig.close()

    def test_200_ms_are_enough(self, tmp_path: Path) -> None:
        """TIMEOUT_CLEAN_QUEUE names how long it waited; what is in the ring is not refused."""
        rig = Rig(tmp_path, ring_bytes=4096)
        rig.add_topic("t")
        peer = TcpPeer(rig)
        rig.running["writer"] = False
        requests = [send_request(body=bytes(500)) for _ in range(20)]
        peer.write(b"".join(map(frame.encode, requests)))
        rig.turn(lambda: len(rig.gateway._sends._line) + len(rig.gateway._sends._tickets) == 20)
        in_ring = len(rig.gateway._sends._tickets)
        rig.pass_until(0.21)
        refused = peer.answer_to(requests[-1])
        assert refused.code == 2
        assert (refused.remark or "").startswith(
            "[TIMEOUT_CLEAN_QUEUE]broker busy, start flow control for a while, period in queue: "
        )
        rig.running["writer"] = True
        codes = [peer.answer_to(request).code for request in requests]
        assert codes == [0] * in_ring + [2] * (20 - in_ring)
        rig.close()

    def test_a_stuck_writer_gets_nothing_more(self, rig: Rig, peer: TcpPeer) -> None:
        """After a second without a completion sends are refused at once, though the ring has room.

        What is in the ring is neither refused nor lost; pulls are served; then all goes on.
        """
        rig.running["writer"] = False
        requests = [send_request(body=b"in the ring"), send_request(body=b"refused", properties="a\x01b\x02")]
        peer.tell(requests[0])
        rig.turn(lambda: rig.gateway._sends._moved_ns)
        rig.pass_until(1.1)
        native = ZmqPeer(rig, b"native-1")
        for one in (peer, native):
            refused = one.ask(requests[1])
            assert (refused.code, refused.remark) == (
                2,
                "[PC_SYNCHRONIZED]broker busy, start flow control for a while",
            )
        assert peer.ask(pull_request(flags=0)).code == 19
        assert rig.gateway.wake_at_ns() is None, "it would turn for nothing while the writer is stuck"
        rig.running["writer"] = True
        assert peer.answer_to(requests[0]).code == 0
        assert peer.ask(send_request()).fields["queueOffset"] == "1"

    def test_a_writer_that_is_slow_is_not_stuck(self, rig: Rig, peer: TcpPeer) -> None:
        """Each completion begins the second anew, and so does a send after a pause."""
        for _ in range(3):
            rig.running["writer"] = False
            request = send_request()
            peer.tell(request)
            rig.turn(lambda: rig.gateway._sends._moved_ns)
            rig.pass_until(0.8)
            rig.running["writer"] = True
            assert peer.answer_to(request).code == 0
            rig.clock.ahead_ns += 2_000_000_000

    def test_beyond_the_bound_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A connection gets a quarter of what may wait; OVERLOAD beyond it, others still wait."""
        monkeypatch.setattr("actormq.actors.gateway.sends.STALL_NS", 60_000_000_000)
        rig = Rig(
            tmp_path,
            ring_bytes=4096,
            gateway=GatewayConfig(waiting_requests_max=40, waiting_ms_max=60_000),
        )
        rig.add_topic("t")
        first, second = TcpPeer(rig), TcpPeer(rig)
        rig.running["writer"] = False
        requests = [send_request(body=bytes(500)) for _ in range(40)]
        first.write(b"".join(map(frame.encode, requests)))
        refused = first.answer_to(requests[-1])
        assert refused.code == 2
        assert refused.remark == "[OVERLOAD]system busy, start flow control for a while"
        assert len(rig.gateway._sends._line) == 10
        second.tell(send_request())
        rig.turn(lambda: len(rig.gateway._sends._line) == 11)
        rig.close()

    def test_a_message_longer_than_the_ring_is_illegal(self, tmp_path: Path) -> None:
        """No waiting helps."""
        rig = Rig(tmp_path, ring_bytes=4096)
        rig.add_topic("t")
        peer = TcpPeer(rig)
        assert peer.ask(send_request(body=bytes(10_000))).code == 13
        rig.close()


class TestPulling:
    def put(self, rig: Rig, peer: TcpPeer, count: int, **changes: str) -> None:
        for number in range(count):
            assert peer.ask(send_request(body=b"%d" % number, **changes)).code == 0  # type: ignore[arg-type]
        rig.settle()

    def test_what_is_there_is_answered(self, rig: Rig, peer: TcpPeer) -> None:
        """All four offsets, status as remark, records back to back."""
        self.put(rig, peer, 5)
        answer = peer.ask(pull_request(queue_offset=1, messages=3))
        assert answer.code == 0
        assert answer.remark == "FOUND"
        assert answer.fields == {
            "groupSysFlag": "0",
            "maxOffset": "5",
            "minOffset": "0",
            "nextBeginOffset": "4",
            "suggestWhichBrokerId": "0",
            "topicSysFlag": "0",
        }
        assert [bytes(one.body) for one in records_of(answer.body)] == [b"1", b"2", b"3"]
        assert rig.positions.role(slot_of("gateway-0"), RoleCell.READING_FROM) == 0

    def test_a_binary_pull(self, rig: Rig, peer: TcpPeer) -> None:
        """The same in the other serialization."""
        self.put(rig, peer, 2)
        request = pull_request()
        request.serialize = Serialize.BINARY
        answer = peer.ask(request)
        assert answer.serialize is Serialize.BINARY
        assert answer.fields["nextBeginOffset"] == "2"
        assert len(records_of(answer.body)) == 2

    def test_limits_of_one_answer(self, rig: Rig, peer: TcpPeer) -> None:
        """32 messages for a Java client, more for our own; bytes as asked, but one message at least."""
        self.put(rig, peer, 40)
        assert len(records_of(peer.ask(pull_request(messages=1000)).body)) == 32
        native = pull_request(messages=1000)
        native.language = Language.PYTHON
        assert len(records_of(peer.ask(native).body)) == 40
        assert len(records_of(peer.ask(pull_request(maxMsgBytes="1")).body)) == 1
        assert len(records_of(peer.ask(pull_request(messages=0)).body)) == 1

    @pytest.mark.parametrize(
        ("offset", "code", "remark", "next_offset"),
        [
            (3, 19, "OFFSET_OVERFLOW_ONE", "3"),
            (4, 21, "OFFSET_OVERFLOW_BADLY", "3"),
            (-1, 21, "OFFSET_TOO_SMALL", "0"),
        ],
    )
    def test_offsets_outside(
        self, rig: Rig, peer: TcpPeer, offset: int, code: int, remark: str, next_offset: str
    ) -> None:
        """The corrections that consumers follow."""
        self.put(rig, peer, 3)
        answer = peer.ask(pull_request(queue_offset=offset, flags=0))
        assert (answer.code, answer.remark, answer.fields["nextBeginOffset"]) == (code, remark, next_offset)

    def test_an_empty_queue(self, rig: Rig, peer: TcpPeer) -> None:
        """19 to who asks from 0, 21 to who is far ahead."""
        answer = peer.ask(pull_request(queue_id=1, flags=0))
        assert (answer.code, answer.remark) == (19, "NO_MESSAGE_IN_QUEUE")
        assert peer.ask(pull_request(queue_id=1, queue_offset=9, flags=0)).code == 21

    @pytest.mark.parametrize(
        ("entries", "request_", "code", "forbidden"),
        [
            ([BrokerEntry(permission=2)], pull_request(), 16, "1"),
            ([GroupEntry("g", consume_enable=False)], pull_request(), 16, "2"),
            ([], pull_request("nowhere"), 17, None),
            ([], pull_request("unreadable"), 16, "3"),
            ([], pull_request(queue_id=4), 29, None),
            ([], pull_request(queue_id=-1), 29, None),
            ([GroupEntry("offline")], pull_request(group="offline"), 24, None),
            ([], pull_request("other"), 24, None),
            ([], pull_request(subVersion="2"), 25, None),
            ([], pull_request(flags=4, subscription="||"), 23, None),
            ([], pull_request(flags=4, expressionType="SQL92", subscription="a > 1"), 1, None),
        ],
    )
    def test_what_is_refused(
        self,
        rig: Rig,
        peer: TcpPeer,
        entries: list[BrokerEntry | GroupEntry],
        request_: RemotingCommand,
        code: int,
        forbidden: str | None,
    ) -> None:
        """Checks in RocketMQ's order, with what forbids it."""
        rig.add_topic("unreadable", perm=2)
        rig.add_topic("other")
        rig.publish(*entries)
        answer = peer.ask(request_)
        assert (answer.code, answer.fields.get("forbiddenType")) == (code, forbidden), answer.remark
        assert rig.coordinator.of(CommitOffsets) == []

    def test_a_missing_field_is_answered(self, rig: Rig, peer: TcpPeer) -> None:
        """The connection goes on."""
        request = pull_request()
        del request.fields["queueOffset"]
        answer = peer.ask(request)
        assert (answer.code, "queueOffset" in (answer.remark or "")) == (1, True)

    def test_an_unknown_group_is_asked_for(self, rig: Rig, peer: TcpPeer) -> None:
        """Created if the coordinator may; the pull goes on then."""
        request = pull_request(group="fresh", flags=4, subscription="*")
        peer.tell(request)
        (need,) = rig.turn(lambda: rig.coordinator.of(NeedGroup))
        rig.publish(GroupEntry("fresh"))
        rig.answer_need(need)
        assert peer.answer_to(request).code == 19
        refused = pull_request(group="never")
        peer.tell(refused)
        rig.turn(lambda: len(rig.coordinator.of(NeedGroup)) == 2)
        rig.answer_need(rig.coordinator.of(NeedGroup)[1], 26, "does not exist")
        assert peer.answer_to(refused).code == 26

    def test_tags(self, rig: Rig, peer: TcpPeer) -> None:
        """By the hash in the queue entry: the group's registered tags, or the expression of the request."""
        for tag in ("A", "B", "A", "C"):
            peer.ask(send_request(body=tag.encode(), properties=f"TAGS\x01{tag}\x02"))
        rig.settle()
        rig.add_group("tagged", "t", [java_hash("A")])
        answer = peer.ask(pull_request(group="tagged"))
        assert [bytes(one.body) for one in records_of(answer.body)] == [b"A", b"A"]
        assert answer.fields["nextBeginOffset"] == "4"
        answer = peer.ask(pull_request(flags=4, subscription="B || C"))
        assert [bytes(one.body) for one in records_of(answer.body)] == [b"B", b"C"]
        answer = peer.ask(pull_request(flags=6, subscription="none"))
        assert (answer.code, answer.remark) == (20, "NO_MATCHED_MESSAGE")
        assert answer.fields["nextBeginOffset"] == "4"

    def test_a_commit_in_a_pull_reaches_the_coordinator(self, rig: Rig, peer: TcpPeer) -> None:
        """Before whatever the same client says next, and only where the flag says so."""
        rig.serve_with(lambda serve, request: RemotingCommand.response_to(request, 0))
        peer.tell(pull_request(flags=1, commit_offset=7))
        peer.tell(pull_request(flags=0, commit_offset=9))
        peer.ask(RemotingCommand.request(14, {"consumerGroup": "g", "topic": "t", "queueId": "0"}))
        heard = [message for message in rig.coordinator.heard if isinstance(message, CommitOffsets | Serve)]
        assert isinstance(heard[0], CommitOffsets)
        assert heard[0].commits == [("g", "t", 0, 7)]
        assert isinstance(heard[1], Serve)
        assert len(heard) == 2

    def test_commits_of_pulls_are_gathered(
        self, rig: Rig, peer: TcpPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of each queue the last counts, and they go by themselves before long."""
        kept_s = 10  # a busy machine does not do the ten pulls in the 50 ms
        monkeypatch.setattr(relay, "COMMITS_KEPT_NS", kept_s * 10**9)
        rig.coordinator.heard.clear()
        for offset in range(1, 6):
            assert peer.ask(pull_request(flags=1, commit_offset=offset)).code == 19
            assert peer.ask(pull_request(flags=1, queue_id=1, commit_offset=10 * offset)).code == 19
        assert rig.coordinator.of(CommitOffsets) == []
        rig.pass_until(kept_s)
        (message,) = rig.coordinator.of(CommitOffsets)
        assert message.commits == [("g", "t", 0, 5), ("g", "t", 1, 50)]

    def test_gathered_commits_are_not_kept_by_a_gateway_that_stops(self, rig: Rig, peer: TcpPeer) -> None:
        peer.ask(pull_request(flags=1, commit_offset=3))
        rig.gateway.on_stop()
        rig.step()
        (message,) = rig.coordinator.of(CommitOffsets)
        assert message.commits == [("g", "t", 0, 3)]

    def test_what_is_old_may_have_to_wait_for_the_disk(
        self, rig: Rig, peer: TcpPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread reads it while others are served."""
        self.put(rig, peer, 5)
        assert rig.gateway._pulls._cold is not None
        monkeypatch.setattr(rig.gateway._pulls._cold, "is_old", lambda distance: True)
        request = pull_request(queue_offset=1)
        peer.tell(request)
        assert peer.ask(send_request()).code == 0

        def came() -> bool:
            rig.gateway._run_calls()
            peer.poll()
            return any(one.opaque == request.opaque for one in peer.got)

        rig.turn(came)
        answer = peer.answer_to(request)
        assert [bytes(one.body) for one in records_of(answer.body)] == [b"1", b"2", b"3", b"4"]
        assert answer.fields["nextBeginOffset"] == "5"

    def test_what_is_old_is_paced_while_others_send(self, rig: Rig, peer: TcpPeer) -> None:
        """Sends of anybody count, also those that came through another gateway: the log grows."""
        cold = rig.gateway._pulls._cold
        assert isinstance(cold, ColdReader)
        cold._pace.has_read(1_000, 1_000)
        assert not cold.is_paced
        self.put(rig, peer, 1)
        assert cold.is_paced


class TestLongPolling:
    def test_a_pull_waits_for_its_message(self, rig: Rig, peer: TcpPeer) -> None:
        """Parked with the holder, answered by the message, not by the deadline."""
        waiting = pull_request()
        peer.tell(waiting)
        rig.turn(lambda: rig.holder.parked == 1)
        rig.settle()
        peer.poll()
        assert peer.got == []
        sent = peer.ask(send_request(body=b"news"))
        assert sent.code == 0
        answer = peer.answer_to(waiting)
        assert answer.code == 0
        assert [bytes(one.body) for one in records_of(answer.body)] == [b"news"]
        assert rig.gateway._pulls.parked == 0
        assert rig.holder.parked == 0

    def test_the_deadline_answers_not_found(self, rig: Rig, peer: TcpPeer) -> None:
        """After the time that the client gave, not before."""
        waiting = pull_request(suspend_ms=15_000)
        peer.tell(waiting)
        rig.turn(lambda: rig.gateway._pulls.parked == 1)
        rig.pass_until(14)
        rig.settle()
        peer.poll()
        assert peer.got == []
        rig.pass_until(15.1)
        assert peer.answer_to(waiting).code == 19
        assert rig.gateway._pulls.parked == 0
        again = pull_request()
        peer.tell(again)
        rig.turn(lambda: rig.gateway._pulls.parked == 1)
        rig.settle()
        assert rig.holder.parked == 1, "the next wait takes the place of the last one"

    def test_it_waits_on_when_nothing_is_for_its_tags(self, rig: Rig, peer: TcpPeer) -> None:
        """Woken by others' messages: parked again behind them, until its own comes."""
        rig.add_group("tagged", "t", [java_hash("A")])
        waiting = pull_request(group="tagged")
        peer.tell(waiting)
        rig.turn(lambda: rig.holder.parked == 1)
        for _ in range(3):
            peer.ask(send_request(properties="TAGS\x01B\x02"))
            rig.settle()
        peer.poll()
        assert all(one.opaque != waiting.opaque for one in peer.got)
        assert rig.holder.parked == 1
        peer.ask(send_request(body=b"mine", properties="TAGS\x01A\x02"))
        answer = peer.answer_to(waiting)
        assert [bytes(one.body) for one in records_of(answer.body)] == [b"mine"]
        assert answer.fields["nextBeginOffset"] == "4"

    def test_its_deadline_takes_it_behind_what_it_has_seen(self, rig: Rig, peer: TcpPeer) -> None:
        """The client need not look at others' messages again."""
        rig.add_group("tagged", "t", [java_hash("A")])
        waiting = pull_request(group="tagged")
        peer.tell(waiting)
        rig.turn(lambda: rig.holder.parked == 1)
        peer.ask(send_request(properties="TAGS\x01B\x02"))
        rig.settle()
        rig.pass_until(15.1)
        answer = peer.answer_to(waiting)
        assert (answer.code, answer.fields["nextBeginOffset"]) == (19, "1")

    def test_a_new_holder_is_told_everything(self, rig: Rig, peer: TcpPeer) -> None:
        """The gateway parks again, and nothing sleeps on."""
        waiting = [pull_request(queue_id=queue_id) for queue_id in range(4)]
        for request in waiting:
            peer.tell(request)
        rig.turn(lambda: rig.holder.parked == 4)
        rig.replace_holder()
        rig.turn(lambda: rig.holder.parked == 4)
        for queue_id, request in enumerate(waiting):
            peer.ask(send_request(queue_id=queue_id))
            assert peer.answer_to(request).code == 0

    def test_more_parks_than_the_ring_holds(self, rig: Rig, peer: TcpPeer) -> None:
        """They are told when there is room, and all are woken."""
        waiting = [pull_request(queue_id=number % 4) for number in range(300)]
        peer.write(b"".join(map(frame.encode, waiting)))
        rig.turn(lambda: rig.holder.parked == 300)
        for queue_id in range(4):
            peer.ask(send_request(queue_id=queue_id))
        assert all(peer.answer_to(request).code == 0 for request in waiting)

    def test_a_closed_client_waits_no_more(self, rig: Rig, peer: TcpPeer) -> None:
        """Its parks go with it."""
        peer.tell(pull_request())
        rig.turn(lambda: rig.gateway._pulls.parked == 1)
        peer.close()
        rig.turn(lambda: rig.gateway._pulls.parked == 0)

    def test_a_deleted_topic_is_told(self, rig: Rig, peer: TcpPeer) -> None:
        """A pull that waits on it is answered 17, not forgotten."""
        waiting = pull_request()
        peer.tell(waiting)
        rig.turn(lambda: rig.holder.parked == 1)
        row = rig.gateway._tables.topics["t"].rows[0]
        rig.publish(TopicGone("t"))
        rig.memory.extents.close_row(row)
        rig.arrived.try_push(struct.pack("<I", row))
        assert peer.answer_to(waiting).code == 17

    def test_without_the_flag_there_is_no_waiting(self, rig: Rig, peer: TcpPeer) -> None:
        """19 at once."""
        assert peer.ask(pull_request(flags=0)).code == 19
        assert peer.ask(pull_request(suspend_ms=0)).code == 19
        assert rig.gateway._pulls.parked == 0


class TestCoordinatorCodes:
    def test_a_request_goes_there_and_back(self, rig: Rig, peer: TcpPeer) -> None:
        """The frame as it came; the answer as it is given; nothing to a one-way request."""
        rig.serve_with(
            lambda serve, request: (
                None
                if request.is_oneway
                else RemotingCommand.response_to(request, 0, body=request.body + b"!")
            )
        )
        request = RemotingCommand.request(34, body=b"{}")
        assert bytes(peer.ask(request).body) == b"{}!"
        peer.tell(RemotingCommand.request(15, {"consumerGroup": "g"}, oneway=True))
        rig.turn(lambda: len(rig.coordinator.of(Serve)) == 2)
        serve = rig.coordinator.of(Serve)[0]
        assert frame.decode(serve.command) == request
        assert serve.peer == f"127.0.0.1:{peer.sock.getsockname()[1]}"
        assert (serve.gateway, serve.incarnation, serve.front) == ("gateway-0", 1, "tcp")
        assert rig.gateway._relay.unanswered == 0

    def test_a_close_is_reported_once(self, rig: Rig, peer: TcpPeer) -> None:
        """For a client that the coordinator has heard of."""
        silent = TcpPeer(rig)
        peer.tell(RemotingCommand.request(34))
        rig.turn(lambda: rig.coordinator.of(Serve))
        silent.close()
        peer.close()
        rig.turn(lambda: rig.coordinator.of(ConnectionClosed))
        rig.settle()
        (closed,) = rig.coordinator.of(ConnectionClosed)
        assert closed.connection_id == rig.coordinator.of(Serve)[0].connection_id

    def test_the_same_heartbeat_of_a_native_producer_goes_on_seldom(self, rig: Rig) -> None:
        """It comes every second, and says nothing new; what is new, or of consumers, or over TCP, goes on."""
        rig.serve_with(lambda serve, request: RemotingCommand.response_to(request, 0))
        native, peer = ZmqPeer(rig, b"native-1"), TcpPeer(rig)

        def beats(one: TcpPeer, *groups: str, consumers: tuple[str, ...] = ()) -> int:
            """Say it three times; return how often the coordinator heard it."""
            rig.coordinator.heard.clear()
            consuming = [{"groupName": name} for name in consumers]
            producing = [{"groupName": name} for name in groups]
            body = {"clientID": "c", "producerDataSet": producing, "consumerDataSet": consuming}
            for _ in range(3):
                assert one.ask(RemotingCommand.request(34, body=json.dumps(body))).code == 0
            return len(rig.coordinator.of(Serve))

        assert beats(native, "p") == 1
        assert beats(native, "p") == 0
        assert beats(native, "p", "q") == 1
        assert beats(native, "p") == 1
        assert beats(native, "p", consumers=("g",)) == 3
        assert beats(peer, "p") == 3
        assert beats(native, "p") == 1
        rig.pass_until(30.1)
        assert beats(native, "p") == 1
        assert native.ask(RemotingCommand.request(35, {"clientID": "c", "producerGroup": "p"})).code == 0
        assert beats(native, "p") == 1

    def test_a_refused_heartbeat_is_not_answered_here(self, rig: Rig) -> None:
        """Until the coordinator has taken one, each goes on."""
        rig.serve_with(lambda serve, request: RemotingCommand.response_to(request, 1, "no"))
        native = ZmqPeer(rig, b"native-1")
        for body in (b"{}", b"{}", b"no heartbeat"):
            assert native.ask(RemotingCommand.request(34, body=body)).code == 1
        assert len(rig.coordinator.of(Serve)) == 3

    def test_a_new_coordinator_hears_the_heartbeats(self, rig: Rig, peer: TcpPeer) -> None:
        """Last heartbeat and what was unregistered since, then ReplayDone, then what may be repeated."""
        for body in (b"old", b"new"):
            peer.tell(RemotingCommand.request(34, body=body))
        peer.tell(RemotingCommand.request(35, {"clientID": "c"}))
        waiting = RemotingCommand.request(14, {"consumerGroup": "g"})
        lost = RemotingCommand.request(36, {"offset": "0", "group": "g", "delayLevel": "0"})
        peer.tell(waiting)
        peer.tell(lost)
        rig.turn(lambda: len(rig.coordinator.of(Serve)) == 5)
        rig.coordinator.heard.clear()
        rig.set_coordinator(0)
        rig.gateway.on_role_changed("coordinator", 0)
        late = RemotingCommand.request(38, {"consumerGroup": "g"})
        peer.tell(late)
        rig.settle()
        assert rig.coordinator.heard == []
        rig.serve_with(lambda serve, request: RemotingCommand.response_to(request, 0))
        rig.set_coordinator(2)
        assert peer.answer_to(lost).code == 2
        assert peer.answer_to(waiting).code == 0
        assert peer.answer_to(late).code == 0
        heard = rig.coordinator.heard
        done = next(at for at, message in enumerate(heard) if isinstance(message, ReplayDone))
        replayed = [frame.decode(message.command) for message in heard[:done] if isinstance(message, Serve)]
        assert [(one.code, bytes(one.body)) for one in replayed] == [(34, b"new"), (35, b"")]
        assert all(message.replay for message in heard[:done] if isinstance(message, Serve))
        codes = [frame.decode(message.command).code for message in heard[done:] if isinstance(message, Serve)]
        assert codes == [34, 34, 35, 14, 38]

    def test_replay_is_done_even_with_nobody(self, rig: Rig) -> None:
        """A coordinator waits for every gateway's word."""
        assert len(rig.coordinator.of(ReplayDone)) == 1

    def test_a_full_mailbox_delays_but_keeps_the_order(self, rig: Rig, peer: TcpPeer) -> None:
        """Nothing is lost while the coordinator does not read."""
        rig.coordinator.full = True
        requests = [RemotingCommand.request(14, {"n": str(number)}) for number in range(5)]
        peer.write(b"".join(map(frame.encode, requests)))
        rig.turn(lambda: rig.gateway._relay.unanswered == 5)
        assert rig.gateway.wake_at_ns() is not None
        rig.coordinator.full = False
        rig.turn(lambda: len(rig.coordinator.of(Serve)) == 5)
        numbers = [frame.decode(message.command).fields["n"] for message in rig.coordinator.of(Serve)]
        assert numbers == ["0", "1", "2", "3", "4"]

    def test_an_answer_that_never_comes(self, rig: Rig, peer: TcpPeer) -> None:
        """SYSTEM_BUSY after half a minute, and the request is forgotten."""
        request = RemotingCommand.request(14)
        peer.tell(request)
        rig.turn(lambda: rig.gateway._relay.unanswered == 1)
        rig.pass_until(31)
        assert peer.answer_to(request).code == 2
        assert rig.gateway._relay.unanswered == 0

    def test_a_body_that_is_too_large_stays_here(self, rig: Rig, peer: TcpPeer) -> None:
        """It would take the coordinator seconds to read; the largest that may go does."""
        rig.serve_with(lambda serve, request: RemotingCommand.response_to(request, 0))
        refused = peer.ask(RemotingCommand.request(41, body=bytes(relay.BODY_BYTES_MAX + 1)))
        assert refused.code == 1
        assert f"{relay.BODY_BYTES_MAX}, split it" in (refused.remark or "")
        assert rig.coordinator.of(Serve) == []
        assert peer.ask(RemotingCommand.request(41, body=bytes(relay.BODY_BYTES_MAX))).code == 0

    def test_unanswered_bytes_are_bounded(
        self, rig: Rig, peer: TcpPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is kept for the next coordinator has an end, and room again once it is answered."""
        monkeypatch.setattr(relay, "ASKED_BYTES_MAX", 1_000)
        first, second = (RemotingCommand.request(41, body=bytes(600)) for _ in range(2))
        peer.tell(first)
        peer.tell(second)
        assert peer.ask(RemotingCommand.request(41)).code == 2
        rig.serve_with(lambda serve, request: RemotingCommand.response_to(request, 0))
        for serve in rig.coordinator.of(Serve):
            answer = RemotingCommand.response_to(frame.decode(serve.command), 0)
            rig.gateway.on_message(Served(serve.request_id, frame.encode(answer)[4:]), SENDER)
        assert peer.answer_to(first).code == peer.answer_to(second).code == 0
        assert peer.ask(RemotingCommand.request(41)).code == 0

    def test_a_call_to_a_client_and_its_answer(self, rig: Rig, peer: TcpPeer) -> None:
        """Under an opaque of the gateway's own; one-way calls as they are."""
        peer.tell(RemotingCommand.request(34))
        connection_id = rig.turn(lambda: rig.coordinator.of(Serve))[0].connection_id
        notice = RemotingCommand.request(40, {"consumerGroup": "g"}, oneway=True)
        question = RemotingCommand.request(307, {"clientId": "c"}, b"?")
        for call_id, command in ((0, notice), (77, question)):
            call = CallClient(connection_id, frame.encode(command)[4:], call_id)
            rig.gateway.on_message(call, None)  # type: ignore[arg-type]

        def both() -> bool:
            peer.poll()
            return len(peer.got) == 2

        rig.turn(both)
        assert [one.code for one in peer.got] == [40, 307]
        asked = peer.got[1]
        assert bytes(asked.body) == b"?"
        peer.tell(RemotingCommand.response_to(asked, 0, body=b"here"))
        peer.tell(RemotingCommand.response_to(asked, 0, body=b"again"))
        answered = rig.turn(lambda: rig.coordinator.of(ClientAnswered))
        rig.settle()
        assert len(answered) == 1
        assert answered[0].call_id == 77
        assert bytes(frame.decode(answered[0].command).body) == b"here"

    def test_a_call_that_nobody_answers(self, rig: Rig, peer: TcpPeer) -> None:
        """None: unknown connection, closed meanwhile, or silent for 15 s."""
        peer.tell(RemotingCommand.request(34))
        connection_id = rig.turn(lambda: rig.coordinator.of(Serve))[0].connection_id
        question = frame.encode(RemotingCommand.request(307))[4:]
        for call_id, target in ((1, 999), (2, connection_id)):
            rig.gateway.on_message(CallClient(target, question, call_id), None)  # type: ignore[arg-type]
        rig.settle()
        rig.pass_until(16)
        rig.turn(lambda: len(rig.coordinator.of(ClientAnswered)) == 2)
        rig.gateway.on_message(CallClient(connection_id, question, 3), None)  # type: ignore[arg-type]
        peer.close()
        rig.turn(lambda: len(rig.coordinator.of(ClientAnswered)) == 3)
        answers = rig.coordinator.of(ClientAnswered)
        assert [(one.call_id, one.command) for one in answers] == [(1, None), (2, None), (3, None)]


class TestFronts:
    def test_unknown_codes(self, rig: Rig, peer: TcpPeer) -> None:
        """RocketMQ's code and remark; the connection goes on."""
        for code in (9999, 13, 22, 39, 105, 37, -5):
            answer = peer.ask(RemotingCommand.request(code))
            assert (answer.code, answer.remark) == (3, f" request type {code} not supported")

    def test_the_vip_port_does_not_pull(self, rig: Rig) -> None:
        """It serves the same codes but pulls."""
        vip = TcpPeer(rig, "vip")
        assert vip.ask(send_request()).code == 0
        assert vip.ask(pull_request()).code == 3
        vip.close()

    def test_a_malformed_frame_closes_its_connection_only(
        self, rig: Rig, peer: TcpPeer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One log line; what came before it in the same read is served."""
        bad = TcpPeer(rig)
        with caplog.at_level(logging.WARNING):
            bad.write(frame.encode(send_request()) + b"\0\0\0\x08\0\0\0\x04{{{{")
            rig.turn(lambda: (bad.poll(), bad.ended)[1])
        assert len([one for one in caplog.records if one.name == "gateway"]) == 1
        assert peer.ask(send_request()).fields["queueOffset"] == "1"

    def test_endpoints_and_roles(self, rig: Rig, peer: TcpPeer) -> None:
        """Our private codes: where ZeroMQ is, and who runs."""
        answer = peer.ask(RemotingCommand.request(300000))
        assert answer.fields["zmq"] == "127.0.0.1:{}".format(rig.listeners["zmq"].getsockname()[1])
        assert answer.fields["broker"] == rig.config.name
        body = json.loads(peer.ask(RemotingCommand.request(300001)).body)
        assert [role["role"] for role in body["roles"]] == ["coordinator"]
        assert body["positions"]["appended"] == 0

    def test_authorisation_comes_first(self, rig: Rig, peer: TcpPeer) -> None:
        """The hook sees every known code with its description, and what it refuses is refused."""
        seen = []

        def refuse(client: object, description: object, command: RemotingCommand) -> None:
            seen.append(description)
            raise RequestError(16, "not you")

        rig.gateway.authorise = refuse
        for request in (send_request(), pull_request(), RemotingCommand.request(34)):
            answer = peer.ask(request)
            assert (answer.code, answer.remark) == (16, "not you")
        assert [one.code for one in seen] == [310, 11, 34]  # type: ignore[attr-defined]

    def test_native_clients(self, rig: Rig) -> None:
        """The same requests over ZeroMQ: send, pull with its body in parts, coordinator codes, goodbye."""
        peer = ZmqPeer(rig, b"native-1")
        rig.serve_with(lambda serve, request: RemotingCommand.response_to(request, 0, body=b"served"))
        for number in range(3):
            assert peer.ask(send_request(body=b"%d" % number)).code == 0
        rig.settle()
        assert [bytes(one.body) for one in records_of(peer.ask(pull_request()).body)] == [b"0", b"1", b"2"]
        assert bytes(peer.ask(RemotingCommand.request(34, body=b"beat")).body) == b"served"
        serve = rig.coordinator.of(Serve)[0]
        assert serve.front == "zmq"
        assert bytes(frame.decode(serve.command).body) == b"beat"
        peer.tell(RemotingCommand.request(300002, oneway=True))
        peer.tell(RemotingCommand.request(300003, oneway=True))
        (closed,) = rig.turn(lambda: rig.coordinator.of(ConnectionClosed))
        assert closed.connection_id == serve.connection_id
        peer.close()

    def test_a_malformed_native_message_drops_its_client(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One log line; the next message makes it a new client."""
        peer = ZmqPeer(rig, b"native-1")
        with caplog.at_level(logging.WARNING):
            peer.dealer.send_multipart([b"nonsense"])
            rig.turn(lambda: [one for one in caplog.records if one.name == "gateway"])
        assert peer.ask(send_request()).code == 0
        peer.close()

    def test_a_lease_that_ends_is_a_close(self, rig: Rig) -> None:
        """Its memberships end after five silent seconds."""
        peer = ZmqPeer(rig, b"native-1")
        peer.tell(RemotingCommand.request(34))
        rig.turn(lambda: rig.coordinator.of(Serve))
        assert rig.gateway._router is not None
        (client,) = rig.gateway._router.clients.values()
        client.active_ns -= 6_000_000_000
        rig.gateway._router.close_silent(rig.clock.monotonic_ns())
        rig.turn(lambda: rig.coordinator.of(ConnectionClosed))

    def test_random_bytes_never_hurt(self, rig: Rig, peer: TcpPeer) -> None:
        """Damaged sends and pulls: an answer or a close, and the gateway serves the next client."""
        dice = random.Random(4)
        for _ in range(150):
            request = dice.choice([send_request, pull_request])()
            request.serialize = dice.choice(list(Serialize))
            data = bytearray(frame.encode(request))
            for _ in range(dice.randrange(1, 4)):
                data[dice.randrange(4, len(data))] = dice.randrange(256)
            victim = TcpPeer(rig)
            victim.sock.send(data)
            for _ in range(4):
                rig.step()
                try:
                    victim.poll()
                except FrameError:
                    pytest.fail("our own answer is no frame")
            victim.close()
        assert peer.ask(send_request()).code == 0


class TestStopping:
    def test_what_was_taken_is_answered_and_new_requests_go_away(self, rig: Rig, peer: TcpPeer) -> None:
        """Parked pulls are answered, a send in the ring is, later ones are sent elsewhere."""
        waiting = pull_request()
        peer.tell(waiting)
        rig.turn(lambda: rig.gateway._pulls.parked == 1)
        rig.running["writer"] = False
        taken = send_request()
        peer.tell(taken)
        rig.turn(lambda: not rig.gateway._sends.idle)
        rig.gateway.on_stop()
        assert peer.answer_to(waiting).code == 19
        new = peer.ask(send_request())
        assert (new.code, new.remark) == (1500, "please go away")
        assert peer.ask(send_request(version=475)).code == 14
        assert not rig.gateway.drained()
        rig.running["writer"] = True
        assert peer.answer_to(taken).code == 0
        rig.turn(rig.gateway.drained)

    def test_it_does_not_wait_for_ever(self, rig: Rig, peer: TcpPeer) -> None:
        """A writer that is stuck does not keep the gateway."""
        rig.running["writer"] = False
        peer.tell(send_request())
        rig.turn(lambda: not rig.gateway._sends.idle)
        rig.gateway.on_stop()
        rig.pass_until(3)
        assert rig.gateway.drained()


class TestIncarnations:
    def test_a_dead_gateways_completion_answers_nobody(self, rig: Rig, peer: TcpPeer) -> None:
        """A ticket carries the incarnation: the same number of the next life is another one."""
        rig.running["writer"] = False
        peer.tell(send_request(body=b"lost answer"))
        rig.turn(lambda: not rig.gateway._sends.idle)
        old_port = rig.append_port
        for server in rig.gateway._servers:
            for connection in list(server.connections):
                server.close_connection(connection, "killed")
        rig.gateway.loop.close()
        rig.start_gateway(2)
        rig.append_port.completions[:] = old_port.completions  # even if the old ring were handed over
        rig.running["writer"] = True
        fresh = TcpPeer(rig)
        answer = fresh.ask(send_request(body=b"mine"))
        assert answer.code == 0
        assert answer.fields["queueOffset"] == "1"
        assert len(fresh.got) == 1


class TestStandstill:
    def test_what_came_meanwhile_is_not_served(
        self, rig: Rig, peer: TcpPeer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A gateway that was stopped closes all connections: its clients have asked again elsewhere."""
        native = ZmqPeer(rig, b"native-1")
        rig.serve_with(lambda serve, request: RemotingCommand.response_to(request, 0))
        for one in (peer, native):
            assert one.ask(RemotingCommand.request(34)).code == 0
        waiting = pull_request()
        peer.tell(waiting)
        rig.turn(lambda: rig.gateway._pulls.parked == 1)
        rig.coordinator.heard.clear()
        peer.sock.sendall(frame.encode(send_request(body=b"stale")))
        native.dealer.send_multipart([frame.encode(RemotingCommand.request(15))[4:]])
        in_backlog = TcpPeer(rig)
        in_backlog.sock.sendall(frame.encode(send_request(body=b"stale, too")))
        rig.clock.ahead_ns += 10_000_000_000
        with caplog.at_level(logging.WARNING):
            for one in (peer, in_backlog):
                rig.turn(lambda one=one: (one.poll(), one.ended)[1])
            rig.turn(lambda: len(rig.coordinator.of(ConnectionClosed)) == 2)
        assert len([one for one in caplog.records if one.name == "gateway"]) == 1
        assert rig.coordinator.of(Serve) == []
        assert rig.positions.get(Position.APPENDED) == 0
        assert rig.gateway._pulls.parked == 0
        fresh = TcpPeer(rig)
        assert fresh.ask(send_request()).fields["queueOffset"] == "0"
        rig.turn(native.has_lost_connection)
        assert native.ask(send_request()).fields["queueOffset"] == "1"

    def test_what_was_read_before_says_when(self, rig: Rig, peer: TcpPeer) -> None:
        """Commits that were under way when it was stopped reach the coordinator with their age."""
        rig.coordinator.full = True
        before_ms = rig.clock.monotonic_ns() // 1_000_000
        peer.tell(pull_request(flags=3, commit_offset=7))
        rig.turn(lambda: rig.gateway._pulls.parked == 1)
        peer.tell(RemotingCommand.request(15))
        rig.turn(lambda: rig.gateway._relay.unanswered == 1)
        after_ms = rig.clock.monotonic_ns() // 1_000_000
        rig.clock.ahead_ns += 10_000_000_000
        rig.coordinator.full = False
        rig.turn(lambda: rig.coordinator.of(ConnectionClosed))
        (commits,), (serve,) = rig.coordinator.of(CommitOffsets), rig.coordinator.of(Serve)
        assert before_ms <= commits.read_ms <= serve.read_ms <= after_ms

    def test_sends_that_waited_are_forgotten(self, tmp_path: Path) -> None:
        """For room, or for their topic; what is in the ring is stored."""
        rig = Rig(tmp_path, ring_bytes=4096)
        rig.add_topic("t")
        peer = TcpPeer(rig)
        rig.running["writer"] = False
        requests = [send_request("new")] + [send_request(body=bytes(500)) for _ in range(20)]
        peer.write(b"".join(map(frame.encode, requests)))
        rig.turn(lambda: rig.gateway._sends._named and rig.gateway._sends._line)
        in_ring = len(rig.gateway._sends._tickets)
        rig.clock.ahead_ns += 4_000_000_000
        rig.running["writer"] = True
        rig.turn(lambda: (peer.poll(), peer.ended)[1])
        rig.turn(lambda: rig.gateway._sends.idle)
        assert (rig.gateway._sends._waiting_requests, rig.gateway._sends._waiting_bytes) == (0, 0)
        rig.answer_need(rig.coordinator.of(NeedTopic)[0])
        rig.settle()
        rig.add_group("g", "t")
        pulled = TcpPeer(rig).ask(pull_request())
        assert len(records_of(pulled.body)) == in_ring
        rig.close()


def test_a_damaged_queue_entry_is_served_and_made_again(tmp_path: Path) -> None:
    """The gateway finds the message, the dispatcher writes the entry."""
    rig = Rig(tmp_path)
    rig.add_topic("t")
    rig.add_group("g", "t")
    peer = TcpPeer(rig)
    for number in range(5):
        assert peer.ask(send_request(body=b"%d" % number)).code == 0
    rig.settle()
    path = tmp_path / "consumequeue" / "t" / "0" / "00000000000000000000"
    whole = path.read_bytes()
    with open(path, "r+b") as queue:
        queue.seek(2 * 20)
        queue.write(bytes(8))
    assert path.read_bytes() != whole
    found, at = [], 0
    while at < 5:
        answer = peer.ask(pull_request(queue_offset=at))
        found.append(bytes(answer.body))
        at = int(answer.fields["nextBeginOffset"])
    assert len(b"".join(found)) == rig.positions.get(Position.DISPATCHED)
    assert path.read_bytes() == whole
    rig.gateway._count()
    assert rig.gateway._counters.read()["damaged messages"] == 1
    peer.close()
    rig.close()
