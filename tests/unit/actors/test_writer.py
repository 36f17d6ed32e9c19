"""The writer: one log of many ports, and a death anywhere costs nothing but time."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from faults.disks import FailingDisk
from store_rig import (
    FILE_BYTES,
    HOST,
    Died,
    Memory,
    MemoryPort,
    SilentDoorbell,
    StoreWriter,
    TornDisk,
    append,
    assert_matches,
    killing,
    log_records,
)

from actormq.actors.writer import BATCH_BYTES, ROOM, Room, Source, Writer, store_host
from actormq.broker.sending import PutStatus
from actormq.config import FlushMode, RecordCrc
from actormq.errors import StoreFailed
from actormq.shm.append_port import AppendPort, Completion
from actormq.shm.intent import IntentPage
from actormq.shm.positions import Position, slot_of
from actormq.store.disk import Disk, RealDisk

NOW_MS = 1_700_000_000_000


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    made = Memory(tmp_path)
    made.log_files().create(0)
    made.add_topic("topic", 8)
    return made


class Rig:
    """A writer's successive lives, and clients that outlive them."""

    def __init__(self, memory: Memory, clients: int = 1) -> None:
        self.memory = memory
        self.raw = [MemoryPort() for _ in range(clients)]
        self.clients = [AppendPort(raw, SilentDoorbell()) for raw in self.raw]  # type: ignore[arg-type]
        self.writer = self.start()

    def start(self, disk: Disk | None = None) -> Writer:
        memory = self.memory
        self.writer = Writer(
            memory.config, disk or RealDisk(), memory.positions, memory.extents_view, memory.intent, HOST,
            pool=memory.pool,
        )  # fmt: skip
        for number, raw in enumerate(self.raw):
            self.writer.open_port(16 + number, 1, raw)  # type: ignore[arg-type]
        self.writer.recover()
        return self.writer

    def run(self, wall_ms: int = NOW_MS, now_ns: int = 0) -> list[Source]:
        return self.writer.run(wall_ms, now_ns)

    def finish(self) -> None:
        while self.run():
            pass

    def completions(self) -> list[Completion]:
        return [done for client in self.clients for done in client.completions()]

    def stored(self) -> list[tuple[int, object, bytes]]:
        end = self.memory.positions.get(Position.APPENDED)
        return log_records(self.memory, end)  # type: ignore[return-value]


class TestMerging:
    def test_every_message_is_stored_and_answered_once(self, memory: Memory) -> None:
        rig = Rig(memory, clients=3)
        for number, client in enumerate(rig.clients):
            for ticket in range(10):
                append(client, ticket, row=number, queue_id=number, body=b"%d-%d" % (number, ticket))
        rig.finish()
        for client in rig.clients:
            done = client.completions()
            assert [each.ticket for each in done] == list(range(10))
            assert [each.queue_offset for each in done] == list(range(10))
            assert {each.store_timestamp for each in done} == {NOW_MS}
        stored = rig.stored()
        assert len(stored) == 30
        assert {body for _, _, body in stored} == {b"%d-%d" % (n, t) for n in range(3) for t in range(10)}

    def test_each_port_gets_its_share_of_a_batch(self, memory: Memory) -> None:
        """A port with much does not make one with little wait for it."""
        rig = Rig(memory, clients=2)
        rig.raw[0] = MemoryPort(request_capacity=4 << 20, completion_capacity=1 << 18)
        rig.clients[0] = AppendPort(rig.raw[0], SilentDoorbell())  # type: ignore[arg-type]
        memory.log_files().create(FILE_BYTES)
        memory.log_files().create(2 * FILE_BYTES)
        rig.start()
        while append(rig.clients[0], 0, body=bytes(1000)):
            pass
        append(rig.clients[1], 1, row=1, queue_id=1)
        rig.run()
        assert [done.ticket for done in rig.clients[1].completions()] == [1]
        assert rig.clients[0].completions()
        assert rig.writer.appended <= BATCH_BYTES

    def test_nothing_to_do_is_no_batch(self, memory: Memory) -> None:
        rig = Rig(memory)
        assert rig.run() == []
        assert rig.writer.wake_at_ns is None

    def test_dead_clients_messages_are_stored_then_its_port_is_forgotten(self, memory: Memory) -> None:
        """What a gateway had pushed completely counts, although nobody hears of it."""
        rig = Rig(memory, clients=2)
        append(rig.clients[0], 1)
        rig.writer.close_port(16, 1)
        assert len(rig.writer.sources) == 2
        rig.finish()
        assert len(rig.stored()) == 1
        assert list(rig.writer.sources) == [(17, 1)]
        rig.writer.close_port(17, 1)
        assert rig.writer.sources == {}

    def test_client_that_takes_no_answers_stops_only_itself(self, memory: Memory) -> None:
        rig = Rig(memory, clients=2)
        tight = MemoryPort(completion_capacity=128)
        rig.raw[0] = tight
        rig.clients[0] = AppendPort(tight, SilentDoorbell())  # type: ignore[arg-type]
        rig.clients[0]._outstanding_max = 100  # a client that does not keep to the bound
        rig.start()
        for ticket in range(10):
            append(rig.clients[0], ticket)
        append(rig.clients[1], 77, row=1, queue_id=1)
        rig.finish()
        assert rig.writer.wake_at_ns is not None
        assert [done.ticket for done in rig.clients[1].completions()] == [77]
        tickets = []
        while done := rig.clients[0].completions():
            tickets += [each.ticket for each in done]
            rig.finish()
        assert tickets == list(range(10))


class TestTimestamps:
    def test_never_go_back_and_stay_near_the_clock(self, memory: Memory) -> None:
        """After the clock was set back an hour, messages are a second ahead of it, not an hour."""
        rig = Rig(memory)
        seen = []
        for wall_ms in (NOW_MS, NOW_MS - 400, NOW_MS + 5, NOW_MS - 3_600_000, NOW_MS - 3_599_500):
            append(rig.clients[0], 1)
            rig.run(wall_ms)
            seen.append(rig.completions()[0].store_timestamp)
        assert seen == [NOW_MS, NOW_MS, NOW_MS + 5, NOW_MS - 3_599_000, NOW_MS - 3_598_500 - 500]

    def test_successor_goes_on_from_the_published_one(self, memory: Memory) -> None:
        rig = Rig(memory)
        append(rig.clients[0], 1)
        rig.run(NOW_MS)
        rig.start()
        append(rig.clients[0], 2)
        rig.run(NOW_MS - 500)
        assert [done.store_timestamp for done in rig.completions()] == [NOW_MS, NOW_MS]


class TestRolling:
    def test_log_goes_on_in_the_next_file(self, memory: Memory) -> None:
        """A blank record ends the file; no record lies in two."""
        rig = Rig(memory)
        memory.log_files().create(FILE_BYTES)
        ticket = 0
        while memory.positions.get(Position.APPENDED) <= FILE_BYTES:
            append(rig.clients[0], ticket, body=bytes(30_000))
            ticket += 1
            rig.finish()
            assert rig.clients[0].completions()[0].ticket == ticket - 1
        stored = rig.stored()
        assert len(stored) == ticket
        assert stored[-1][0] == FILE_BYTES

    def test_waits_for_the_next_file_then_refuses_then_goes_on(self, memory: Memory) -> None:
        """A missing file delays sends for a second, then they are refused until there is one."""
        rig = Rig(memory)
        self._fill(rig)
        append(rig.clients[0], 1, body=bytes(60_000))
        assert rig.run(now_ns=5) == []
        assert rig.writer.file_is_missing
        due = rig.writer.wake_at_ns
        assert due is not None
        assert rig.run(now_ns=due) != []
        late = PutStatus.CREATE_MAPPED_FILE_FAILED
        assert [(done.ticket, done.status) for done in rig.completions()] == [(1, late)]
        append(rig.clients[0], 2, body=bytes(60_000))
        rig.run(now_ns=due + 1)
        assert [(done.ticket, done.status) for done in rig.completions()] == [(2, late)]
        memory.log_files().create(FILE_BYTES)
        append(rig.clients[0], 3, body=bytes(60_000))
        rig.run(now_ns=due + 2)
        assert [(done.ticket, done.status, done.log_offset) for done in rig.completions()] == [
            (3, 0, FILE_BYTES)
        ]
        assert not rig.writer.file_is_missing
        assert len({header.queue_offset for _, header, _ in rig.stored()}) == len(rig.stored())

    def test_full_disk_refuses_at_once_what_needs_a_file(self, memory: Memory) -> None:
        """What still fits into the present file is stored."""
        rig = Rig(memory)
        self._fill(rig)
        memory.positions.set_role(slot_of("cleaner"), ROOM, Room.NO_FILE)
        append(rig.clients[0], 1, body=bytes(60_000))
        append(rig.clients[0], 2)
        rig.run(now_ns=5)
        assert [(done.ticket, done.status) for done in rig.completions()] == [(1, 3), (2, 0)]

    def test_first_file_may_be_missing_too(self, tmp_path: Path, memory: Memory) -> None:
        rig = Rig(memory)
        memory.log_files().remove(0)
        append(rig.clients[0], 1)
        assert rig.run() == []
        memory.log_files().create(0)
        rig.run()
        assert [done.status for done in rig.completions()] == [0]

    @staticmethod
    def _fill(rig: Rig) -> None:
        while FILE_BYTES - rig.writer.appended > 50_000:
            append(rig.clients[0], 1, body=bytes(40_000))
            rig.run()
            rig.completions()


class TestRecordCrc:
    @pytest.mark.parametrize(
        ("flush", "record_crc", "has_one"),
        [("sync", "auto", True), ("async", "auto", False), ("async", "on", True), ("sync", "off", False)],
    )
    def test_is_written_in_sync_mode_or_as_told(
        self, memory: Memory, flush: str, record_crc: str, has_one: bool
    ) -> None:
        memory.config = replace(memory.config, flush=FlushMode(flush), record_crc=RecordCrc(record_crc))
        writer = StoreWriter(memory)
        done = writer.put(properties=b"TAGS\x01a\x02")
        ((_, header, _),) = log_records(memory, done.log_end)
        assert (b"__CRC32#\x01" in header.properties) == has_one


class TestFailedWrite:
    def test_stops_the_broker(self, memory: Memory) -> None:
        class BadDisk(RealDisk):
            def pwritev(self, *_: object) -> int:
                raise OSError(5, "Input/output error")

        rig = Rig(memory)
        rig.start(BadDisk())
        append(rig.clients[0], 1)
        with pytest.raises(StoreFailed, match="00000000000000000000 at log offset 0"):
            rig.run()
        assert memory.positions.get(Position.STORE_FAILED) == 1
        assert memory.positions.get(Position.APPENDED) == 0
        assert rig.completions() == []


def points_of_one_batch() -> list[str]:
    return [
        "writer.encoded",
        "writer.intent-written",
        "writer.records-written",
        "writer.appended",
        "writer.completions-published",
        "writer.heads-moved",
        "writer.intent-cleared",
    ]


class TestDeath:
    @pytest.mark.parametrize("name", points_of_one_batch())
    @pytest.mark.parametrize("hit", [1, 2])
    def test_at_each_point_nothing_is_lost_doubled_or_answered_wrong(
        self, memory: Memory, name: str, hit: int
    ) -> None:
        rig = Rig(memory, clients=3)
        done: list[Completion] = []
        for ticket in range(5):
            for number, client in enumerate(rig.clients):
                append(client, ticket, row=number, queue_id=number)
        with killing(name, hit), pytest.raises(Died):
            self._go_on(rig)
        done += rig.completions()
        rig.start()
        assert IntentPage(memory.intent).read() is None
        rig.finish()
        done += rig.completions()
        assert_matches(done, rig.stored())  # type: ignore[arg-type]
        assert all(client.outstanding == 0 for client in rig.clients)

    @staticmethod
    def _go_on(rig: Rig) -> None:
        while True:
            rig.finish()
            for number, client in enumerate(rig.clients):
                append(client, 99, row=number, queue_id=number)

    def test_in_the_middle_of_a_write_leaves_no_trace(self, memory: Memory) -> None:
        """Half a batch is zeroed, then stored whole; behind a shorter batch nothing of it is left."""
        rig = Rig(memory)
        for ticket in range(20):
            append(rig.clients[0], ticket)
        rig.start(TornDisk(writes=1))
        with pytest.raises(Died):
            rig.run()
        rig.start()
        assert memory.positions.get(Position.APPENDED) == 0
        assert memory.log_files().disk.pread(rig.writer.files.descriptor(0), 4096, 0) == bytes(4096)
        rig.finish()
        assert_matches(rig.completions(), rig.stored())  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["writer.blank-written", "writer.records-written", "writer.appended"])
    def test_while_rolling(self, memory: Memory, name: str) -> None:
        rig = Rig(memory)
        memory.log_files().create(FILE_BYTES)
        TestRolling._fill(rig)
        before = {offset for offset, _, _ in rig.stored()}
        append(rig.clients[0], 1, body=bytes(60_000))
        with killing(name), pytest.raises(Died):
            rig.run()
        rig.start()
        rig.finish()
        done = rig.completions()
        assert [(each.ticket, each.status, each.log_offset) for each in done] == [(1, 0, FILE_BYTES)]
        assert {offset for offset, _, _ in rig.stored()} == before | {FILE_BYTES}

    def test_during_recovery(self, memory: Memory) -> None:
        """The successor may die, too, before it has cleared the intent."""
        for name in ("writer.records-written", "writer.appended"):
            rig = Rig(memory)
            append(rig.clients[0], 1)
            start = memory.positions.get(Position.APPENDED)
            with killing(name), pytest.raises(Died):
                rig.run()
            with killing("writer.recovered"), pytest.raises(Died):
                rig.start()
            rig.start()
            rig.finish()
            assert [(done.ticket, done.log_offset) for done in rig.completions()] == [(1, start)]

    def test_answers_never_go_to_another_incarnation(self, memory: Memory) -> None:
        """A gateway that died with the writer has a new port: the intent's numbers are not for that one."""
        rig = Rig(memory)
        append(rig.clients[0], 1)
        with killing("writer.appended"), pytest.raises(Died):
            rig.run()
        fresh = MemoryPort()
        client = AppendPort(fresh, SilentDoorbell())  # type: ignore[arg-type]
        append(client, 1, body=b"another message with the same ticket")
        memory_ = rig.memory
        rig.writer = Writer(
            memory_.config, RealDisk(), memory_.positions, memory_.extents_view, memory_.intent, HOST
        )
        rig.writer.open_port(16, 2, fresh)  # type: ignore[arg-type]
        rig.writer.recover()
        assert client.completions() == []
        rig.finish()
        (done,) = client.completions()
        assert done.log_offset > 0
        assert rig.stored()[1][2] == b"another message with the same ticket"

    def test_queue_offsets_go_on_behind_what_is_not_dispatched_yet(self, memory: Memory) -> None:
        """The dispatcher may be far behind: the log itself says which offsets are taken."""
        rig = Rig(memory)
        for ticket in range(30):
            append(rig.clients[0], ticket, row=ticket % 3, queue_id=ticket % 3)
        append(rig.clients[0], 30, row=3, queue_id=3, sys_flag=0x4)
        rig.finish()
        rig.start()
        for ticket in range(4):
            append(rig.clients[0], ticket, row=ticket, queue_id=ticket)
        rig.finish()
        assert [done.queue_offset for done in rig.completions()[-4:]] == [10, 10, 10, 0]

    def test_scan_is_forgotten_once_dispatched(self, memory: Memory) -> None:
        """A topic deleted and made again begins at 0, whatever the old one's records said."""
        rig = Rig(memory)
        append(rig.clients[0], 1, row=5, queue_id=5)
        append(rig.clients[0], 2, row=5, queue_id=5)
        rig.finish()
        rig.start()
        memory.positions.set(Position.DISPATCHED, memory.positions.get(Position.APPENDED))
        memory.extents.open_row(5, 1000, 0, 0)
        append(rig.clients[0], 3, row=5, queue_id=5, incarnation=1000)
        rig.finish()
        assert [done.queue_offset for done in rig.completions()] == [0, 1, 0]


@pytest.mark.parametrize("seed", range(25))
def test_any_deaths_in_any_order(memory: Memory, seed: int) -> None:
    """Random messages on three ports, the writer dying at random points and in the middle of writes."""
    chance = random.Random(seed)
    rig = Rig(memory, clients=3)
    for number in range(1, 4):
        memory.log_files().create(number * FILE_BYTES)
    done: dict[int, list[Completion]] = defaultdict(list)
    sent: Counter[int] = Counter()
    for _ in range(40):
        for number, client in enumerate(rig.clients):
            for _ in range(chance.randrange(4)):
                row = chance.randrange(8)
                size = chance.choice([0, 10, 1000, 50_000])
                incarnation = 999 if chance.random() < 0.05 else None
                if append(
                    client, sent[number], row=row, queue_id=row, body=bytes(size), incarnation=incarnation
                ):
                    sent[number] += 1
        try:
            with killing(None, chance.randrange(1, 25)):
                rig.run()
        except Died:
            rig.start(TornDisk(chance.randrange(1, 9)) if chance.random() < 0.5 else None)
        if chance.random() < 0.7:
            for number, client in enumerate(rig.clients):
                done[number] += client.completions()
    rig.start()
    rig.finish()
    for number, client in enumerate(rig.clients):
        done[number] += client.completions()
        assert [each.ticket for each in done[number]] == list(range(sent[number]))
    everything = [each for of_client in done.values() for each in of_client]
    stored = rig.stored()
    assert_matches(everything, stored)  # type: ignore[arg-type]
    offsets = defaultdict(list)
    for _, header, _ in stored:
        offsets[header.queue_id].append(header.queue_offset)  # type: ignore[attr-defined]
    assert all(numbers == list(range(len(numbers))) for numbers in offsets.values())


def test_store_host_is_address_and_port() -> None:
    assert store_host("127.0.0.1", 10911) == HOST
    assert store_host("::1", 1) == bytes(15) + b"\1" + b"\0\0\0\1"


class TestFullDisk:
    def test_above_the_warning_level_nothing_is_stored(self, memory: Memory) -> None:
        """There is room in the file, but the disk is nearly full; afterwards it goes on at once."""
        rig = Rig(memory)
        memory.positions.set_role(slot_of("cleaner"), ROOM, Room.DISK_FULL)
        append(rig.clients[0], 1)
        rig.finish()
        (refused,) = rig.completions()
        assert (refused.status, refused.log_offset) == (3, -1)
        assert memory.positions.get(Position.APPENDED) == 0
        memory.positions.set_role(slot_of("cleaner"), ROOM, Room.ENOUGH)
        append(rig.clients[0], 2)
        rig.finish()
        assert rig.completions()[0].status == 0


class TestStorePool:
    """Acknowledged from memory; the flusher brings it into the files."""

    def fill(self, rig: Rig) -> list[Completion]:
        """Send until the writer takes no more; return what was answered."""
        done: list[Completion] = []
        for ticket in range(200):
            append(rig.clients[0], ticket, body=bytes(60_000))
            rig.finish()
            done += rig.completions()
            if len(done) <= ticket:
                break
        return done

    @pytest.fixture
    def rig(self, memory: Memory) -> Rig:
        memory.log_files().create(FILE_BYTES)
        memory.log_files().create(2 * FILE_BYTES)
        return Rig(memory.with_pool())

    def test_answers_before_anything_is_in_the_file(self, rig: Rig) -> None:
        append(rig.clients[0], 1)
        rig.run()
        (done,) = rig.completions()
        assert rig.memory.positions.get(Position.APPENDED) == done.log_end
        assert not any((rig.memory.root / "commitlog" / ("0" * 20)).read_bytes())

    def test_full_pool_makes_sends_wait_and_says_what_for(self, rig: Rig) -> None:
        done = self.fill(rig)
        assert all(each.status == 0 for each in done)
        assert rig.memory.pool is not None
        assert done[-1].log_end <= len(rig.memory.pool)
        assert rig.writer.is_stuck
        assert rig.writer.wanted_written > 0
        rig.memory.positions.set(Position.WRITTEN, rig.writer.wanted_written - 1)
        assert rig.run() == []
        rig.memory.positions.set(Position.WRITTEN, rig.writer.wanted_written)
        assert rig.run()
        assert rig.writer.wanted_written == 0
        assert rig.completions()[0].status == 0

    def test_full_pool_may_refuse_instead(self, rig: Rig) -> None:
        rig.memory.config = replace(rig.memory.config, pool_fail_fast=True)
        rig.start()
        for ticket in range(60):
            append(rig.clients[0], ticket, body=bytes(60_000))
            rig.finish()
        statuses = [done.status for done in rig.completions()]
        assert statuses == sorted(statuses)
        assert {0, PutStatus.CREATE_MAPPED_FILE_FAILED} == set(statuses)
        rig.memory.positions.set(Position.WRITTEN, rig.memory.positions.get(Position.APPENDED))
        append(rig.clients[0], 1)
        rig.run()
        assert rig.completions()[0].status == 0

    @pytest.mark.parametrize("point", ["writer.encoded", "writer.records-written", "writer.appended"])
    def test_death_takes_nothing(self, rig: Rig, point: str) -> None:
        """The successor counts on where the dead one was, although the files know nothing of it."""
        append(rig.clients[0], 1)
        rig.run()
        append(rig.clients[0], 2)
        with killing(point), pytest.raises(Died):
            rig.run()
        rig.start()
        rig.finish()
        append(rig.clients[0], 3)
        rig.finish()
        assert [(done.ticket, done.queue_offset) for done in rig.completions()] == [(1, 0), (2, 1), (3, 2)]


class TestFailedWriteOfASuccessor:
    """What a dead writer left cannot be undone, or read: nothing can be said of the log any more."""

    def test_undoing(self, memory: Memory) -> None:
        rig = Rig(memory)
        append(rig.clients[0], 1)
        with killing("writer.records-written"), pytest.raises(Died):
            rig.run()
        with pytest.raises(StoreFailed, match=r"cannot write .*/commitlog/0{20} at log offset 0"):
            rig.start(FailingDisk(RealDisk(), 1, kinds=["zero_range"]))
        assert memory.positions.get(Position.STORE_FAILED) == 1

    def test_bringing_the_pool_into_the_files(self, memory: Memory) -> None:
        rig = Rig(memory.with_pool())
        append(rig.clients[0], 1)
        rig.run()
        with pytest.raises(StoreFailed, match="cannot write"):
            rig.start(FailingDisk(RealDisk(), 1, kinds=["pwritev"]))
        assert memory.positions.get(Position.STORE_FAILED) == 1
