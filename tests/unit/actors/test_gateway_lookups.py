"""Questions about queues and single messages: by place, by time, by key; and who waits for the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateway_rig import Rig, TcpPeer, pull_request, records_of, send_request

from actormq.actors.gateway import lookups
from actormq.errors import ResponseCode
from actormq.message import java_hash
from actormq.shm.positions import Position
from actormq.store.disk import RealDisk
from actormq.wire.command import RemotingCommand


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    made.add_topic("t", 4)
    made.add_group("g", "t")
    made.add_group("g", "u")
    yield made
    made.close()


@pytest.fixture
def peer(rig: Rig) -> Iterator[TcpPeer]:
    made = TcpPeer(rig)
    yield made
    made.close()


def query_fields(key: str, topic: str = "t", **changes: str) -> dict[str, str]:
    fields = {"topic": topic, "key": key, "maxNum": "64", "beginTimestamp": "0", "endTimestamp": str(1 << 62)}
    return {**fields, **changes}


class TestLookups:
    def test_offsets(self, rig: Rig, peer: TcpPeer) -> None:
        """30 and 31, also of a queue that nobody knows."""
        peer.ask(send_request())
        rig.settle()
        for code, topic, expected in (
            (30, "t", "1"),
            (31, "t", "0"),
            (30, "nobody", "0"),
            (31, "nobody", "0"),
        ):
            answer = peer.ask(RemotingCommand.request(code, {"topic": topic, "queueId": "0"}))
            assert (answer.code, answer.fields["offset"]) == (0, expected)
        assert peer.ask(RemotingCommand.request(30, {"topic": "t"})).code == 1

    def test_offsets_by_time(self, rig: Rig, peer: TcpPeer) -> None:
        """29: the first at or after, or the last at or before."""
        for _ in range(3):
            peer.ask(send_request())
        rig.settle()
        times = [one.store_timestamp for one in records_of(peer.ask(pull_request()).body)]

        def search(timestamp: int, boundary: str | None = None) -> str:
            fields = {"topic": "t", "queueId": "0", "timestamp": str(timestamp)}
            if boundary:
                fields["boundaryType"] = boundary
            return peer.ask(RemotingCommand.request(29, fields)).fields["offset"]

        assert search(times[0]) == "0"
        assert search(times[-1] + 1) == "3"
        assert search(0) == "0"
        assert search(times[-1] + 1, "UPPER") == "2"
        assert search(0, "upper") == "0"

    def test_the_earliest_time(self, rig: Rig, peer: TcpPeer) -> None:
        """32: -1 where there is nothing."""
        fields = {"topic": "t", "queueId": "0"}
        assert peer.ask(RemotingCommand.request(32, fields)).fields["timestamp"] == "-1"
        peer.ask(send_request())
        rig.settle()
        (stored,) = records_of(peer.ask(pull_request()).body)
        assert peer.ask(RemotingCommand.request(32, fields)).fields["timestamp"] == str(
            stored.store_timestamp
        )

    def test_a_message_by_its_place(self, rig: Rig, peer: TcpPeer) -> None:
        """33: exactly at a record, or not found; a place that somebody made up does no harm."""
        answer = peer.ask(send_request(body=b"first"))
        peer.ask(send_request(body=b"second"))
        rig.settle()
        at = int(answer.fields["msgId"][16:], 16)
        found = peer.ask(RemotingCommand.request(33, {"offset": str(at)}))
        (stored,) = records_of(found.body)
        assert bytes(stored.body) == b"first"
        end = rig.positions.get(Position.APPENDED)
        for wrong in (at + 1, at + 50, end, end + 1, end - 1, -1, 1 << 40, (1 << 63) - 1):
            answer = peer.ask(RemotingCommand.request(33, {"offset": str(wrong)}))
            assert (answer.code, answer.remark) == (1, f"can not find message by the offset, {wrong}")

    @pytest.mark.parametrize("code", [12, 29, 32, 33])
    def test_what_a_disk_must_be_asked_for_is_read_elsewhere(
        self, rig: Rig, peer: TcpPeer, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        """The same answer, later; the gateway's own thread has not waited for it."""
        sent = peer.ask(send_request(properties="KEYS\1k\2"))
        rig.settle()
        fields = {
            12: query_fields("k"),
            29: {"topic": "t", "queueId": "0", "timestamp": str(1 << 60)},
            32: {"topic": "t", "queueId": "0"},
            33: {"offset": str(int(sent.fields["msgId"][16:], 16))},
        }[code]
        at_once = peer.ask(RemotingCommand.request(code, fields))
        readers: list[str] = []
        real = RealDisk.pread

        def pread(disk: RealDisk, fd: int, size: int, at: int) -> bytes:
            readers.append(threading.current_thread().name)
            return real(disk, fd, size, at)

        def nothing_is_cached(fd: int, parts: list[memoryview], at: int, flags: int = 0) -> int:
            raise BlockingIOError

        monkeypatch.setattr(RealDisk, "pread", pread)
        monkeypatch.setattr(os, "preadv", nothing_is_cached)
        later = peer.ask(RemotingCommand.request(code, fields))
        assert (later.code, later.fields, bytes(later.body)) == (0, at_once.fields, bytes(at_once.body))
        assert set(readers) == {"reads"}

    def test_no_more_questions_wait_than_the_bound(
        self, rig: Rig, peer: TcpPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Beyond it clients are told to ask again; when one is answered there is room."""
        monkeypatch.setattr(lookups, "WAITING_MAX", 2)
        jobs: list[Callable[[], Callable[[], None]]] = []
        monkeypatch.setattr(rig.gateway._lookups._threads, "run", jobs.append)
        requests = [RemotingCommand.request(12, query_fields("k")) for _ in range(4)]
        for request in requests[:3]:
            peer.tell(request)
        assert peer.answer_to(requests[2]).code == ResponseCode.SYSTEM_BUSY
        jobs[0]()()
        assert peer.answer_to(requests[0]).code == ResponseCode.QUERY_NOT_FOUND
        peer.tell(requests[3])
        rig.turn(lambda: len(jobs) == 3)


class TestQueries:
    """12: by key and by unique key."""

    def bodies(self, peer: TcpPeer, key: str, topic: str = "t", **changes: str) -> list[bytes]:
        answer = peer.ask(RemotingCommand.request(12, query_fields(key, topic, **changes)))
        if answer.code == ResponseCode.QUERY_NOT_FOUND:
            assert answer.remark == "can not find message, maybe time range not correct"
            assert not answer.body
            return []
        assert answer.code == 0
        return [bytes(one.body) for one in records_of(answer.body)]

    def test_by_key(self, rig: Rig, peer: TcpPeer) -> None:
        """By each of several keys, the oldest message first, of this topic only; and how far the index is."""
        rig.add_topic("u")
        for number in range(3):
            properties = f"UNIQ_KEY\1ID{number}\2KEYS\1both k{number}\2"
            peer.ask(send_request(body=b"%d" % number, properties=properties))
        peer.ask(send_request("u", body=b"other", properties="KEYS\1both\2"))
        rig.settle()
        assert self.bodies(peer, "both") == [b"0", b"1", b"2"]
        assert self.bodies(peer, "both", maxNum="2") == [b"1", b"2"]
        assert self.bodies(peer, "both", "u") == [b"other"]
        assert self.bodies(peer, "k1") == self.bodies(peer, "ID1") == [b"1"]
        assert self.bodies(peer, "nobody") == self.bodies(peer, "both", "nobody") == []
        assert self.bodies(peer, "both", maxNum="0") == self.bodies(peer, "both", maxNum="-1") == []
        found = peer.ask(RemotingCommand.request(12, query_fields("k1")))
        (last,) = records_of(peer.ask(pull_request("u")).body)
        assert found.fields["indexLastUpdatePhyoffset"] == str(last.log_offset)
        assert found.fields["indexLastUpdateTimestamp"] == str(last.store_timestamp)

    def test_by_unique_key(self, rig: Rig, peer: TcpPeer) -> None:
        """With RocketMQ's flag: not a message that merely has such a key; 32 at most, whatever is asked."""
        for number in range(40):
            peer.ask(send_request(body=b"%d" % number, properties="UNIQ_KEY\1ID\2"))
        peer.ask(send_request(body=b"imposter", properties="UNIQ_KEY\1X\2KEYS\1ID\2"))
        rig.settle()
        found = self.bodies(peer, "ID", **{"_UNIQUE_KEY_QUERY": "true", "maxNum": "1"})
        assert found == [b"%d" % number for number in range(8, 40)]
        assert self.bodies(peer, "ID", maxNum="1") == [b"imposter"]
        assert len(self.bodies(peer, "ID", maxNum="1000")) == 41

    def test_a_last_key_changes_nothing(self, rig: Rig, peer: TcpPeer) -> None:
        """The index files of RocketMQ do not know it either; and a unique key is no tag."""
        for number in range(4):
            properties = f"UNIQ_KEY\1ID{number}\2KEYS\1k\2TAGS\1k\2"
            peer.ask(send_request(body=b"%d" % number, properties=properties))
        rig.settle()
        for last_key in ("", "ID3", "k", "no key of anybody"):
            for kind in ({}, {"indexType": "T"}, {"indexType": "K"}):
                assert self.bodies(peer, "k", maxNum="2", lastKey=last_key, **kind) == [b"2", b"3"]
        assert self.bodies(peer, "ID1", indexType="T", **{"_UNIQUE_KEY_QUERY": "true"}) == [b"1"]

    def test_by_time(self, rig: Rig, peer: TcpPeer) -> None:
        """Both ends are included, to the millisecond, although the index keeps seconds."""
        for number in range(4):
            peer.ask(send_request(body=b"%d" % number, properties="KEYS\1k\2"))
            rig.positions.set(Position.STORE_TIMESTAMP, rig.positions.get(Position.STORE_TIMESTAMP) + 10)
        rig.settle()
        stored = {bytes(one.body): one.store_timestamp for one in records_of(peer.ask(pull_request()).body)}
        for begin in stored.values():
            for end in stored.values():
                expected = [body for body, time in stored.items() if begin <= time <= end]
                found = self.bodies(peer, "k", beginTimestamp=str(begin), endTimestamp=str(end))
                assert found == expected

    def test_hashes_that_collide(self, rig: Rig, peer: TcpPeer) -> None:
        """RocketMQ answers them; we look at the message itself, and go on to the next in the chain."""
        assert java_hash("t#Aa") == java_hash("t#BB")
        peer.ask(send_request(body=b"wanted", properties="KEYS\1Aa\2"))
        for _ in range(70):
            peer.ask(send_request(body=b"other", properties="KEYS\1BB\2"))
        rig.settle()
        assert self.bodies(peer, "Aa") == [b"wanted"]

    def test_an_answer_has_room_for_a_frame(
        self, rig: Rig, peer: TcpPeer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The newest that fit; one message always does."""
        monkeypatch.setattr(lookups, "BYTES_MAX", 10_000)
        for number in range(4):
            peer.ask(send_request(body=b"%d" % number * 3_000, properties="KEYS\1k\2"))
        peer.ask(send_request(body=b"b" * 20_000, properties="KEYS\1big\2"))
        rig.settle()
        assert [body[:1] for body in self.bodies(peer, "k")] == [b"1", b"2", b"3"]
        assert len(self.bodies(peer, "big")[0]) == 20_000

    def test_a_dead_topics_messages_are_not_found(self, rig: Rig, peer: TcpPeer) -> None:
        """A topic of the same name was made since: what lies before it in the log is not its."""
        peer.ask(send_request(body=b"dead", properties="KEYS\1k\2"))
        rig.settle()
        row = rig.gateway._tables.topic("t").rows[0]  # type: ignore[union-attr]
        extent = rig.memory.extents.read(row)
        rig.memory.extents.open_row(
            row, extent.incarnation, 0, extent.max, log_start=rig.positions.get(Position.APPENDED)
        )
        peer.ask(send_request(body=b"alive", properties="KEYS\1k\2"))
        rig.settle()
        assert self.bodies(peer, "k") == [b"alive"]

    def test_what_is_asked_wrongly_is_refused(self, rig: Rig, peer: TcpPeer) -> None:
        """A field that is missing, or no number."""
        for name, value in (("key", None), ("maxNum", "many"), ("beginTimestamp", "")):
            fields = query_fields("k")
            if value is None:
                del fields[name]
            else:
                fields[name] = value
            assert peer.ask(RemotingCommand.request(12, fields)).code != 0
