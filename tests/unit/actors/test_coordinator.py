"""The coordinator's role: in which order it acts on the world, what a successor finds, what it waits for."""

from __future__ import annotations

import errno
import json as plain_json
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from broker_rig import Broker, sync_mode
from faults.disks import FailingDisk
from store_rig import Died, killing, log_records

from actormq.actors.coordinator import (
    ROW_WRITERS,
    SILENT_NS,
    CallClient,
    CommitOffsets,
    ConnectionClosed,
    CoordinatorActor,
    Needed,
    NeedGroup,
    NeedTopic,
    ReplayDone,
    Serve,
    Served,
)
from actormq.actors.runtime import LOCAL
from actormq.broker.sending import PutStatus
from actormq.broker.tables import Tables, TopicEntry
from actormq.errors import StoreFailed
from actormq.message import decode_properties
from actormq.net import tcp
from actormq.shm.positions import Position, RoleCell, RoleState, slot_of
from actormq.shm.tables import TablesReader
from actormq.store import tables as files
from actormq.store.disk import RealDisk
from actormq.wire import frame, json
from actormq.wire.command import RemotingCommand
from actormq.wire.registration import RegistrationBody, decode_registration

GATEWAYS = ("gateway-0", "gateway-1")


class Rig:
    """A broker with two gateways that read the tables when they are told to."""

    def __init__(
        self,
        tmp_path: Path,
        change: Callable[[Any], Any] = lambda config: config,
        tables_bytes: int = 1 << 16,
    ) -> None:
        self.broker = Broker(tmp_path / "store", tmp_path / "run", tables_bytes=tables_bytes)
        config = self.broker.config
        gateways = replace(config.gateway, count=2, port=10911)
        self.broker.config = change(replace(config, gateway=gateways))
        self.broker.memory.config = self.broker.config.store
        self.readers = {}
        memory = self.broker.memory
        for name in (*GATEWAYS, *ROW_WRITERS):
            if name in GATEWAYS:
                self.broker.gateway(name)
            self.readers[name] = TablesReader(memory.tables_view, memory.positions, slot_of(name))
            self.read_tables(name)
        self.actor: CoordinatorActor = self.start()
        self.number = 0

    def start(self) -> CoordinatorActor:
        self.actor = self.broker.start("coordinator", CoordinatorActor)
        self.turn()
        self.read_tables()
        return self.actor

    def turn(self) -> None:
        self.broker.turn(self.actor)

    def read_tables(self, *names: str) -> None:
        for name in names or self.readers:
            self.readers[name].poll()
            self.readers[name].mark_seen()

    @property
    def tables(self) -> Tables:
        memory = self.broker.memory
        tables = Tables()
        for entry in TablesReader(memory.tables_view, memory.positions, 63).poll()[1]:
            tables.apply(entry)
        return tables

    def topic(self, name: str) -> TopicEntry:
        entry = self.tables.topic(name)
        assert entry is not None
        return entry

    def send(self, code: int, fields: Any = None, body: Any = b"", **how: Any) -> int:
        """Hand in a client's request; return its number."""
        data = body if isinstance(body, bytes) else json.dumps(body)
        command = RemotingCommand.request(code, fields, data, oneway=how.pop("oneway", False))
        self.number += 1
        letter: dict[str, Any] = {"gateway": "gateway-0", "incarnation": 1, "connection_id": 1, "peer": "p:1"}
        self.actor.on_message(
            Serve(request_id=self.number, command=frame.encode(command)[4:], **{**letter, **how}), LOCAL
        )
        self.turn()
        return self.number

    def answers(self, gateway: str = "gateway-0") -> dict[int, RemotingCommand | None]:
        """Return the answers that a gateway got since the last time."""
        came = self.broker.letters[gateway].take(Served)
        return {m.request_id: None if m.command is None else frame.decode(m.command) for m in came}

    def ask(self, code: int, fields: Any = None, body: Any = b"", **how: Any) -> RemotingCommand:
        """Hand in a request that is answered at once."""
        number = self.send(code, fields, body, **how)
        self.read_tables()
        self.turn()
        answer = self.answers(how.get("gateway", "gateway-0"))[number]
        assert answer is not None
        return answer

    def beat(self, client_id: str, group: str = "g", **how: Any) -> int:
        consumer = {
            "groupName": group,
            "messageModel": "CLUSTERING",
            "subscriptionDataSet": [{"topic": "orders", "subString": "*", "subVersion": 1}],
        }
        return self.send(34, None, {"clientID": client_id, "consumerDataSet": [consumer]}, **how)

    def file(self, name: str) -> Any:
        return plain_json.loads((self.broker.config.store.root / "config" / name).read_text())


def new_topic(name: str = "orders", queues: int = 2) -> dict[str, str]:
    return {
        "topic": name,
        "defaultTopic": "TBW102",
        "readQueueNums": str(queues),
        "writeQueueNums": str(queues),
        "perm": "6",
        "topicFilterType": "SINGLE_TAG",
    }


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_change_is_answered_when_every_living_gateway_knows_it(rig: Rig) -> None:
    """Not before the slowest; one that dies or starts is not waited for; bells and wishes, no polling."""
    bells = rig.broker.bells["gateway-1"].rung
    number = rig.send(17, new_topic())
    assert rig.answers() == {}
    positions = rig.broker.memory.positions
    assert positions.role(slot_of("coordinator"), RoleCell.WANTED_TABLES) == positions.get(Position.TABLES)
    assert rig.broker.bells["gateway-1"].rung == bells + 1
    rig.read_tables("gateway-0")
    rig.turn()
    assert rig.answers() == {}
    rig.read_tables("gateway-1")
    rig.turn()
    answer = rig.answers()[number]
    assert answer is not None
    assert answer.code == 0
    assert positions.role(slot_of("coordinator"), RoleCell.WANTED_TABLES) == 0

    number = rig.send(17, new_topic("stopped"))
    rig.read_tables("gateway-0")
    rig.broker.clock.advance_ms(SILENT_NS // 1_000_000)
    rig.broker.gateway("gateway-0")
    rig.turn()
    assert rig.answers()[number] is not None, "it waits for a gateway that stands still"

    number = rig.send(17, new_topic("more"))
    rig.broker.gateway("gateway-1")
    rig.read_tables("gateway-0")
    rig.turn()
    assert rig.answers() == {}
    rig.broker.gateway("gateway-1", 1, RoleState.ABSENT)
    rig.actor.on_role_changed("gateway-1", 0)
    rig.turn()
    assert number in rig.answers()
    rig.broker.gateway("gateway-1", 2, RoleState.STARTING)
    number = rig.send(17, new_topic("most"))
    rig.read_tables("gateway-0")
    rig.turn()
    assert number in rig.answers()


def test_a_topic_has_open_rows_and_stands_in_the_file_when_it_is_published(rig: Rig) -> None:
    """Rows, then the file, then the tables: wherever it dies in between, nobody sees a topic without rows."""
    for name in ("coordinator.rows-opened", "coordinator.persisted", "coordinator.published"):
        with killing(name), pytest.raises(Died):
            rig.send(17, new_topic(name.replace(".", "-")))
        published = rig.tables.topic(name.replace(".", "-"))
        assert (published is not None) is (name == "coordinator.published")
        rig.start()
        again = rig.ask(17, new_topic(name.replace(".", "-")))
        assert again.code == 0
        entry = rig.topic(name.replace(".", "-"))
        for row, incarnation in zip(entry.rows, entry.row_incarnations, strict=True):
            assert rig.broker.memory.extents.read(row).incarnation == incarnation
    stored = rig.file("topics.json")
    assert stored["topicConfigTable"]["coordinator-published"]["readQueueNums"] == 2
    rows = [row for entry in rig.tables.topics.values() for row in entry.rows]
    assert len(rows) == len(set(rows))


def delete(rig: Rig, name: str) -> RemotingCommand:
    """Delete a topic, everybody doing their part."""
    number = rig.send(215, {"topic": name})
    rig.broker.write()
    rig.turn()
    rig.read_tables()
    rig.turn()
    answer = rig.answers()[number]
    assert answer is not None
    return answer


def test_a_deleted_topic_is_gone_everywhere(rig: Rig) -> None:
    """Tables, rows, files, offsets; where its messages end is noted; made again, it begins behind them."""
    rig.ask(17, new_topic())
    rig.ask(17, new_topic("other"))
    rig.ask(200, None, {"groupName": "g"})
    for topic in ("orders", "other"):
        fields = {"consumerGroup": "g", "topic": topic, "queueId": "0", "commitOffset": "1"}
        assert rig.ask(15, fields).code == 0
    old = rig.topic("orders")
    done = rig.broker.put(old)
    rig.broker.clock.advance_ms(60_000)
    rig.turn()
    rig.broker.flush()
    rig.turn()
    assert set(rig.file("consumerOffset.json")["offsetTable"]) == {"orders@g", "other@g"}
    extents = rig.broker.memory.extents
    number = rig.send(215, {"topic": "orders"})
    rig.read_tables()
    rig.turn()
    assert rig.tables.topic("orders") is None
    assert {extents.read(row).incarnation for row in old.rows} == {0}
    assert rig.file("deletedTopics.json")["deletedTopics"] == {"orders": -1}
    assert "orders" not in rig.file("topics.json")["topicConfigTable"]
    assert set(rig.file("consumerOffset.json")["offsetTable"]) == {"other@g"}
    assert number not in rig.answers()
    rig.broker.write()
    rig.turn()
    answer = rig.answers()[number]
    assert answer is not None
    assert answer.code == 0
    assert rig.file("deletedTopics.json")["deletedTopics"] == {"orders": done.log_end}
    assert rig.ask(17, new_topic()).code == 0
    new = rig.topic("orders")
    assert {extents.log_start(row) for row in new.rows} == {done.log_end}
    assert not set(new.row_incarnations) & set(old.row_incarnations)
    assert rig.ask(14, {**fields, "topic": "orders"}).fields == {"offset": "0"}


DELETION_POINTS = (
    "coordinator.ledger-written",
    "coordinator.deletion-saved",
    "coordinator.persisted",
    "coordinator.rows-closed",
    "coordinator.published",
    "2coordinator.deletion-saved",
    "2coordinator.published",
)


@pytest.mark.parametrize("name", DELETION_POINTS)
def test_a_deletion_that_was_noted_is_ended_by_the_successor(rig: Rig, name: str) -> None:
    """Wherever the coordinator dies: the topic is there, or gone; made again, it begins behind the dead."""
    rig.ask(17, new_topic())
    old = rig.topic("orders")
    done = rig.broker.put(old)
    hit = 2 if name[0] == "2" else 1
    with killing(name.lstrip("2"), hit=hit), pytest.raises(Died):
        delete(rig, "orders")
    path = rig.broker.config.store.root / "config" / "deletedTopics.json"
    noted = path.exists()
    rig.start()
    rig.broker.write()
    rig.turn()
    assert (rig.tables.topic("orders") is None) is noted
    assert rig.ask(17, new_topic()).code == 0
    entry = rig.topic("orders")
    assert (entry.row_incarnations == old.row_incarnations) is not noted
    extents = rig.broker.memory.extents
    for row, incarnation in zip(entry.rows, entry.row_incarnations, strict=True):
        assert extents.read(row).incarnation == incarnation
        assert extents.log_start(row) == (done.log_end if noted else 0)


def test_rows_rest_until_their_writers_have_seen_it(rig: Rig) -> None:
    """Dispatcher and cleaner are rung; a dispatcher that lags could still write into the row."""
    rig.ask(17, new_topic())
    (first, second) = rig.topic("orders").rows
    bells = {name: rig.broker.bells[name].rung for name in ROW_WRITERS}
    number = rig.send(215, {"topic": "orders"})
    assert all(rig.broker.bells[name].rung > bells[name] for name in ROW_WRITERS)
    rig.broker.write()
    rig.turn()
    rig.read_tables(*GATEWAYS, "cleaner")
    rig.turn()
    assert number in rig.answers()
    assert rig.actor.state.topics.settling
    rig.read_tables("dispatcher")
    rig.turn()
    assert not rig.actor.state.topics.settling
    rig.ask(17, new_topic("next"))
    assert rig.topic("next").rows == [first, second]


def test_a_successor_gives_out_no_row_that_others_may_still_know(rig: Rig) -> None:
    rig.start()
    rig.ask(17, new_topic("before"))
    version = rig.broker.memory.positions.get(Position.TABLES)
    rig.broker.start("coordinator", CoordinatorActor)
    rig.actor = rig.start()
    for name in ROW_WRITERS:
        rig.broker.memory.positions.set_role(slot_of(name), RoleCell.TABLES_SEEN, version - 1)
    rig.actor.state.topics.hold_rows()
    number = rig.send(17, new_topic("orders"))
    assert rig.tables.topic("orders") is None
    assert rig.actor.wake_at_ns() is not None
    rig.read_tables()
    rig.turn()
    rig.read_tables()
    rig.turn()
    assert number in rig.answers()


def test_a_deletion_without_room_for_its_note_is_said(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk; when there is room again it is ended."""
    rig.ask(17, new_topic())
    rig.broker.put(rig.topic("orders"))
    save, full = files.save, [True]

    def saving(disk: Any, path: Path, table: Any) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(disk, path, table)

    monkeypatch.setattr("actormq.store.tables.save", saving)
    answer = delete(rig, "orders")
    assert answer.code == 1
    assert "free some space" in str(answer.remark)
    assert rig.tables.topic("orders") is None
    full[0] = False
    number = rig.send(17, new_topic())
    rig.broker.clock.advance_ms(1_001)
    rig.turn()
    rig.read_tables()
    rig.turn()
    assert number in rig.answers()
    assert "orders" in rig.file("deletedTopics.json")["deletedTopics"]


def test_tables_that_are_full_of_changes_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of changes in a small segment: readers always end with the same tables."""
    rig = Rig(tmp_path, tables_bytes=1 << 13)
    monkeypatch.setattr("actormq.store.tables.save", lambda disk, path, table: None)
    tables = Tables()
    reader = TablesReader(rig.broker.memory.tables_view, rig.broker.memory.positions, 62)
    for number in range(400):
        rig.ask(200, None, {"groupName": f"g{number % 7}", "retryMaxTimes": number})
        if number % 10 == 0:
            reset, entries = reader.poll()
            if reset:
                tables.reset()
            for entry in entries:
                tables.apply(entry)
    assert rig.broker.memory.positions.get(Position.TABLES) >> 40 > 0
    group = rig.tables.group("g0")
    assert group is not None
    assert group.retry_max_times == 399
    assert "SCHEDULE_TOPIC_XXXX" in tables.topics


def test_answers_that_wait_have_a_limit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that never reads the tables does not fill our memory: beyond the limit it is SYSTEM_BUSY."""
    monkeypatch.setattr("actormq.actors.coordinator.HELD_MAX", 2)
    numbers = [rig.send(200, None, {"groupName": f"g{number}"}) for number in range(3)]
    rig.actor.on_message(NeedTopic("gateway-0", 1, 77, "orders", "TBW102", 4), LOCAL)
    rig.turn()
    answers = rig.answers()
    assert list(answers) == numbers[2:]
    busy = answers[numbers[2]]
    assert busy is not None
    assert busy.code == 2
    assert [m.code for m in rig.broker.letters["gateway-0"].take(Needed)] == [2]
    rig.read_tables()
    rig.turn()
    assert list(rig.answers()) == numbers[:2]


def test_needs_of_gateways(rig: Rig) -> None:
    """A topic or group is made, or refused with its code; the answer follows the tables."""
    rig.actor.on_message(NeedTopic("gateway-0", 1, 7, "orders", "TBW102", 4), LOCAL)
    rig.actor.on_message(NeedTopic("gateway-0", 1, 8, "a b", "TBW102", 4), LOCAL)
    rig.actor.on_message(NeedGroup("gateway-0", 1, 9, "g"), LOCAL)
    rig.turn()
    letters = rig.broker.letters["gateway-0"]
    assert [(m.request_id, m.code) for m in letters.take(Needed)] == [(8, 29)]
    rig.read_tables()
    rig.turn()
    assert [(m.request_id, m.code) for m in letters.take(Needed)] == [(7, 0), (9, 0)]
    assert rig.topic("orders").write_queues == 2


def test_members_of_two_gateways_hear_of_each_other(rig: Rig) -> None:
    """40 through the gateway that has the client; a dead gateway's clients leave at once."""
    rig.beat("c1", connection_id=1)
    rig.beat("c2", connection_id=5, gateway="gateway-1")
    calls = rig.broker.letters["gateway-0"].take(CallClient)
    assert {call.connection_id for call in calls} == {1}
    assert frame.decode(calls[-1].command).fields == {"consumerGroup": "g"}
    assert json.loads(rig.ask(38, {"consumerGroup": "g"}).body) == {"consumerIdList": ["c1", "c2"]}
    rig.broker.gateway("gateway-1", 1, RoleState.ABSENT)
    rig.actor.on_role_changed("gateway-1", 0)
    rig.turn()
    assert json.loads(rig.ask(38, {"consumerGroup": "g"}).body) == {"consumerIdList": ["c1"]}
    assert len(rig.broker.letters["gateway-0"].take(CallClient)) == 1
    rig.actor.on_message(ConnectionClosed("gateway-0", 1, 1), LOCAL)
    rig.turn()
    assert rig.tables.consumer_group("g") is None


def test_what_a_dead_gateway_said_does_not_make_members(rig: Rig) -> None:
    """Its letters come late: heartbeats are dropped, commits count, nobody is answered."""
    rig.ask(17, new_topic())
    rig.ask(200, None, {"groupName": "g"})
    rig.broker.gateway("gateway-1", 2)
    rig.actor.on_role_changed("gateway-1", 2)
    rig.beat("late", gateway="gateway-1", incarnation=1)
    offset = {"consumerGroup": "g", "topic": "orders", "queueId": "0", "commitOffset": "4"}
    rig.send(15, offset, gateway="gateway-1", incarnation=1, oneway=True)
    rig.turn()
    assert rig.actor.state.members.clients == {}
    assert rig.ask(14, offset).fields == {"offset": "4"}
    assert rig.answers("gateway-1") == {}


def test_native_clients_have_a_short_lease(rig: Rig) -> None:
    """5 s for ZeroMQ, 120 s for TCP; the role sleeps until the first one ends."""
    rig.beat("native", connection_id=1, front="zmq")
    rig.beat("java", connection_id=2)
    wake_ns = rig.actor.wake_at_ns()
    assert wake_ns is not None
    assert wake_ns <= rig.broker.clock.monotonic_ns() + 5_000_000_000
    rig.broker.clock.advance_ms(5_000)
    rig.turn()
    assert json.loads(rig.ask(38, {"consumerGroup": "g"}).body) == {"consumerIdList": ["java"]}
    rig.broker.clock.advance_ms(115_000)
    rig.turn()
    assert rig.ask(38, {"consumerGroup": "g"}).code == 1


def test_one_way_requests_are_acknowledged_to_the_gateway_only(rig: Rig) -> None:
    """The gateway forgets the request; the client hears nothing."""
    number = rig.send(35, {"clientID": "c1"}, oneway=True)
    assert rig.answers() == {number: None}


# --- successors ------------------------------------------------------------------------------------------


def test_what_a_gateway_read_before_it_stood_still_moves_nothing_back(rig: Rig) -> None:
    """Commits count in the order in which gateways read them, not in that in which they come."""
    rig.ask(17, new_topic())
    rig.ask(200, None, {"groupName": "g"})
    fields = {"consumerGroup": "g", "topic": "orders", "queueId": "0"}
    now_ms = rig.broker.clock.monotonic_ns() // 1_000_000
    rig.actor.on_message(CommitOffsets("gateway-1", 1, [("g", "orders", 0, 90)], now_ms), LOCAL)
    rig.actor.on_message(CommitOffsets("gateway-0", 1, [("g", "orders", 0, 5)], now_ms - 10_000), LOCAL)
    assert rig.ask(14, fields).fields == {"offset": "90"}
    rig.ask(15, {**fields, "commitOffset": "6"}, read_ms=now_ms - 9_000)
    assert rig.ask(14, fields).fields == {"offset": "90"}
    rig.ask(15, {**fields, "commitOffset": "7"}, read_ms=now_ms + 1)
    assert rig.ask(14, fields).fields == {"offset": "7"}, "a group may go back of its own will"


def test_offsets_and_locks_survive_the_process(rig: Rig) -> None:
    """Killed without any save: the successor knows each one, those of pulls included."""
    rig.ask(17, new_topic(queues=3))
    rig.ask(200, None, {"groupName": "g"})
    rig.send(15, {"consumerGroup": "g", "topic": "orders", "queueId": "0", "commitOffset": "4"})
    rig.actor.on_message(CommitOffsets("gateway-0", 1, [("g", "orders", 1, 9), ("g", "orders", 0, 5)]), LOCAL)
    lock = {"consumerGroup": "g", "clientId": "c1", "mqSet": [{"topic": "orders", "queueId": 2}]}
    rig.ask(41, None, lock)
    assert not (rig.broker.config.store.root / "config" / "consumerOffset.json").exists()
    for _ in range(3):
        rig.start()
        for queue, offset in ((0, "5"), (1, "9")):
            fields = {"consumerGroup": "g", "topic": "orders", "queueId": str(queue)}
            assert rig.ask(14, fields).fields == {"offset": offset}
        other = {**lock, "clientId": "c2"}
        assert json.loads(rig.ask(41, None, other).body) == {"lockOKMQSet": []}
        group = rig.tables.group("g")
        assert group is not None
        assert group.orderly_locked


def test_a_successor_moves_nothing_until_all_gateways_have_replayed(rig: Rig) -> None:
    """38 is an error, then complete; the offsets and memberships never went back."""
    rig.beat("c1", connection_id=1)
    rig.beat("c2", connection_id=5, gateway="gateway-1")
    rig.start()
    assert rig.ask(38, {"consumerGroup": "g"}).code == 1
    rig.answers("gateway-1")
    rig.beat("c1", connection_id=1, replay=True)
    rig.actor.on_message(ReplayDone("gateway-0", 1), LOCAL)
    assert rig.ask(38, {"consumerGroup": "g"}).code == 1
    assert rig.tables.consumer_group("g") is not None
    rig.beat("c2", connection_id=5, gateway="gateway-1", replay=True)
    rig.actor.on_message(ReplayDone("gateway-1", 1), LOCAL)
    assert json.loads(rig.ask(38, {"consumerGroup": "g"}).body) == {"consumerIdList": ["c1", "c2"]}
    assert rig.answers("gateway-1") == {}, "a replayed heartbeat is not answered"


def test_a_gateway_that_never_replays_is_not_waited_for_for_ever(rig: Rig) -> None:
    """After half a minute the rest goes on, with a warning."""
    rig.start()
    rig.broker.clock.advance_ms(30_000)
    rig.turn()
    assert rig.actor.state.awaited == set()


def test_the_first_coordinator_waits_for_nobody(rig: Rig) -> None:
    """There were no clients before it."""
    assert rig.ask(38, {"consumerGroup": "g"}).remark == "no consumer for this group, g"


def test_groups_survive_with_all_their_settings(rig: Rig) -> None:
    """By the file; and by the tables if it could not be written."""
    rig.ask(200, None, {"groupName": "g", "retryMaxTimes": 3, "consumeTimeoutMinute": 4})
    rig.start()
    body = json.loads(rig.ask(352, {"group": "g"}).body)
    assert (body["retryMaxTimes"], body["consumeTimeoutMinute"]) == (3, 4)
    (rig.broker.config.store.root / "config" / "subscriptionGroup.json").unlink()
    for left in (rig.broker.config.store.root / "config").glob("subscriptionGroup.json.bak"):
        left.unlink()
    rig.start()
    assert json.loads(rig.ask(352, {"group": "g"}).body)["retryMaxTimes"] == 3


# --- progress on disk ------------------------------------------------------------------------------------


def test_offsets_are_saved_behind_the_log_and_at_the_end(rig: Rig) -> None:
    """Every 5 s what the flushed log covers; a stop saves the rest, and asks for the flush."""
    rig.ask(17, new_topic())
    rig.ask(200, None, {"groupName": "g"})
    entry = rig.topic("orders")
    positions = rig.broker.memory.positions
    rig.broker.writer.put(
        row=entry.rows[0], incarnation=entry.row_incarnations[0], topic=b"orders", wall_ms=rig.broker.wall_ms
    )
    rig.send(15, {"consumerGroup": "g", "topic": "orders", "queueId": "0", "commitOffset": "1"})
    rig.broker.clock.advance_ms(5_000)
    rig.turn()
    path = rig.broker.config.store.root / "config" / "consumerOffset.json"
    assert not path.exists()
    assert positions.role(slot_of("coordinator"), RoleCell.WANTED_FLUSHED) == positions.get(Position.APPENDED)
    assert rig.broker.bells["flusher"].rung
    rig.broker.flush()
    rig.turn()
    assert rig.file("consumerOffset.json")["offsetTable"] == {"orders@g": {"0": 1}}
    assert positions.role(slot_of("coordinator"), RoleCell.WANTED_FLUSHED) == 0
    rig.send(15, {"consumerGroup": "g", "topic": "orders", "queueId": "0", "commitOffset": "2"})
    rig.actor.on_stop()
    rig.turn()
    assert rig.actor.drained()
    assert rig.file("consumerOffset.json")["offsetTable"] == {"orders@g": {"0": 2}}


def test_a_stop_does_not_wait_for_ever(rig: Rig) -> None:
    """A log that cannot be flushed: the older offsets stay, the process ends."""
    rig.ask(17, new_topic())
    rig.ask(200, None, {"groupName": "g"})
    rig.broker.writer.put(
        row=rig.topic("orders").rows[0], incarnation=rig.topic("orders").row_incarnations[0], topic=b"orders"
    )
    rig.send(15, {"consumerGroup": "g", "topic": "orders", "queueId": "0", "commitOffset": "2"})
    rig.actor.on_stop()
    rig.turn()
    assert not rig.actor.drained()
    rig.broker.clock.advance_ms(3_000)
    assert rig.actor.drained()


def test_rocketmqs_file_of_offsets_is_read(tmp_path: Path) -> None:
    """Integer keys without quotes, and rows that are none."""
    folder = tmp_path / "store" / "config"
    folder.mkdir(parents=True)
    (folder / "consumerOffset.json").write_text(
        '{"offsetTable":{"TBW102@g":{0:12,1:"x"},"bad":{0:1},"x@y":3}}'
    )
    rig = Rig(tmp_path)
    rig.ask(200, None, {"groupName": "g"})
    assert rig.ask(14, {"consumerGroup": "g", "topic": "TBW102", "queueId": "0"}).fields == {"offset": "12"}


def test_a_full_disk_stops_no_service(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The topic is there at once, but its creator is told that it is not safe; the file follows with room.

    Consumers notice nothing.
    """

    def full(disk: Any, path: Path, table: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("actormq.store.tables.save", full)
        answer = rig.ask(17, new_topic())
        assert (answer.code, "could not be written" in (answer.remark or "")) == (1, True)
        assert rig.topic("orders")
        consumer = {"groupName": "g", "subscriptionDataSet": []}
        assert rig.ask(34, None, {"clientID": "c", "consumerDataSet": [consumer]}).code == 0
        lock = {"consumerGroup": "g", "clientId": "c", "mqSet": [{"topic": "orders", "queueId": 0}]}
        assert rig.ask(41, None, lock).code == 0
        rig.broker.clock.advance_ms(1_000)
        rig.turn()
    assert "orders" not in rig.file("topics.json")["topicConfigTable"]
    rig.broker.clock.advance_ms(1_000)
    rig.turn()
    assert "orders" in rig.file("topics.json")["topicConfigTable"]


@pytest.mark.parametrize(
    ("number", "failing"), [(errno.EIO, "fdatasync"), (errno.EIO, "rename"), (errno.ENOSPC, "fsync_dir")]
)
def test_a_disk_that_fails_stops_the_broker(rig: Rig, number: int, failing: str) -> None:
    """A table is not written again after a sync that failed: that would be the retry that lies."""
    rig.actor._disk = FailingDisk(RealDisk(), 1, number, kinds=(failing,))
    with pytest.raises(StoreFailed, match=r"config.*injected"):
        rig.ask(17, new_topic())


# --- send-back -------------------------------------------------------------------------------------------


def back(offset: int, level: str = "0") -> dict[str, str]:
    return {"offset": str(offset), "group": "g", "delayLevel": level}


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_message_sent_back_is_stored_and_answered_at_the_safe_point(tmp_path: Path, mode: str) -> None:
    """The same body again, under the level's topic; in sync mode the answer waits for the sync."""
    rig = Rig(tmp_path, sync_mode if mode == "sync" else lambda config: config)
    rig.ask(17, new_topic())
    stored = rig.broker.put(rig.topic("orders"), 1, body=b"the body", properties={"TAGS": "a"})
    number = rig.send(36, back(stored.log_offset))
    rig.broker.write()
    rig.turn()
    rig.read_tables()
    rig.turn()
    if mode == "sync":
        assert rig.answers() == {}
        positions = rig.broker.memory.positions
        assert positions.role(slot_of("coordinator"), RoleCell.WANTED_FLUSHED) == positions.get(
            Position.APPENDED
        )
        rig.broker.flush()
        rig.turn()
    answer = rig.answers()[number]
    assert answer is not None
    assert answer.code == 0
    end = rig.broker.memory.positions.get(Position.APPENDED)
    _, header, body = log_records(rig.broker.memory, end)[-1]
    assert (header.topic, header.queue_id, body) == (b"SCHEDULE_TOPIC_XXXX", 2, b"the body")
    properties = decode_properties(header.properties)
    assert (properties["REAL_TOPIC"], properties["TAGS"], header.reconsume_times) == ("%RETRY%g", "a", 1)


def test_a_sync_that_takes_too_long_is_an_error(tmp_path: Path) -> None:
    """The consumer then sends it to the retry topic itself."""
    rig = Rig(tmp_path, sync_mode)
    rig.ask(17, new_topic())
    stored = rig.broker.put(rig.topic("orders"))
    number = rig.send(36, back(stored.log_offset, "-1"))
    rig.broker.write()
    rig.turn()
    rig.read_tables()
    rig.broker.clock.advance_ms(5_000)
    rig.turn()
    answer = rig.answers()[number]
    assert answer is not None
    assert (answer.code, answer.remark) == (1, "FLUSH_DISK_TIMEOUT")


@pytest.mark.parametrize("offset", [-1, 1, 1 << 40])
def test_offsets_that_are_no_records_are_refused(rig: Rig, offset: int) -> None:
    """Peers name them: before the log, inside a record, behind the end."""
    rig.ask(17, new_topic())
    rig.broker.put(rig.topic("orders"), body=bytes(300))
    answer = rig.ask(36, back(offset))
    assert (answer.code, answer.remark) == (1, f"look message by offset failed, {offset}")


def test_more_send_backs_than_the_ring_holds(rig: Rig) -> None:
    """They wait their turn; each is answered."""
    rig.ask(17, new_topic())
    stored = rig.broker.put(rig.topic("orders"), properties={"KEYS": "k" * 2000})
    numbers = [rig.send(36, back(stored.log_offset)) for _ in range(300)]
    answers: dict[int, RemotingCommand | None] = {}
    for _ in range(20):
        rig.broker.write()
        rig.turn()
        rig.read_tables()
        answers |= rig.answers()
    assert sorted(answers) == numbers
    assert all(answer is not None and answer.code == PutStatus.PUT_OK for answer in answers.values())


# --- name servers ----------------------------------------------------------------------------------------


class FakeNameServer:
    """Takes registrations on a real port, in the coordinator's own loop."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.registered: list[RegistrationBody] = []
        self.fields: dict[str, str] = {}
        self.topics: list[str] = []
        """Those that were told alone."""
        self.knows_single = True
        self.left = 0
        self.silent = False

    def serve(self, loop: Any) -> None:
        self.server = tcp.Server(loop, self.listener, self, tcp.Limits(), logging.getLogger("test"))

    def opened(self, connection: tcp.Connection) -> None:
        pass

    def closed(self, connection: tcp.Connection, reason: str) -> None:
        pass

    def frames(self, connection: tcp.Connection, frames: Sequence[memoryview]) -> None:
        for data in frames:
            command = frame.decode(bytes(data))
            if command.code == 103:
                self.fields = command.fields
                self.registered.append(decode_registration(command.body, command.version))
                assert int(command.fields["bodyCrc32"]) == crc32(command.body) & 0x7FFFFFFF
            if command.code == 217 and self.knows_single:
                self.topics.append(command.fields["topic"])
            self.left += command.code == 104
            code = 3 if command.code == 217 and not self.knows_single else 0
            if not self.silent:
                connection.send(frame.encode(RemotingCommand.response_to(command, code)))
        self.server.flush()


class NamedRig(Rig):
    """A rig with a name server of its own."""

    def start(self) -> CoordinatorActor:
        self.name_server = FakeNameServer()
        self.broker.config = replace(self.broker.config, namesrv_addrs=(self.name_server.address,))
        self.actor = self.broker.start("coordinator", CoordinatorActor)
        self.name_server.serve(self.actor.loop)
        self.settle(lambda: len(self.name_server.registered) == 1)
        self.read_tables()
        return self.actor

    def settle(self, condition: Callable[[], bool]) -> None:
        """Run until something is so: TCP on loopback takes a moment."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            self.actor.loop.run_once(self.broker.clock.monotonic_ns() + 1_000_000)
            self.turn()


def test_topics_are_registered_at_once_and_before_the_answer(tmp_path: Path) -> None:
    """The administrator who has the answer finds the route; half a minute later it is said again."""
    rig = NamedRig(tmp_path)
    names = rig.name_server
    assert {"TBW102", "SCHEDULE_TOPIC_XXXX"} <= {topic.name for topic in names.registered[0].topics}
    assert names.fields["brokerAddr"] == "127.0.0.1:10911"
    assert names.fields["haServerAddr"] == "127.0.0.1:10912"
    names.silent = True
    number = rig.send(17, new_topic())
    rig.read_tables()
    rig.settle(lambda: names.topics == ["orders"])
    assert rig.answers() == {}
    names.silent = False
    rig.broker.clock.advance_ms(6_000)  # the first request ends in a time-out, and everything is said
    rig.settle(lambda: number in rig.answers())
    rig.broker.clock.advance_ms(1_000)
    rig.settle(lambda: len(names.registered) == 2)
    assert "orders" in {topic.name for topic in names.registered[1].topics}
    assert names.registered[1].version.counter > names.registered[0].version.counter
    rig.broker.clock.advance_ms(30_000)
    rig.settle(lambda: len(names.registered) == 3)
    assert names.registered[2].version == names.registered[1].version


def test_a_name_server_that_knows_no_single_topics_hears_of_all(tmp_path: Path) -> None:
    """RocketMQ's before 5.0; it is asked once."""
    rig = NamedRig(tmp_path)
    rig.name_server.knows_single = False
    for count, topic in ((2, "orders"), (3, "bills")):
        number = rig.send(17, new_topic(topic))
        rig.read_tables()
        rig.settle(lambda number=number: number in rig.answers())  # type: ignore[misc]
        assert len(rig.name_server.registered) == count
        assert topic in {one.name for one in rig.name_server.registered[-1].topics}


def test_a_broker_that_stops_leaves_its_name_servers(tmp_path: Path) -> None:
    """104, and it waits a moment for the answer."""
    rig = NamedRig(tmp_path)
    rig.actor.on_stop()
    assert not rig.actor.drained()
    rig.settle(rig.actor.drained)
    assert rig.name_server.left == 1
