"""Common pulls: what the kernel answers, or lets wait, ends in the same bytes as what goes the long way."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from faults.disks import MemoryDisk
from gateway_rig import Rig, TcpPeer, pull_request, send_request
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_twins import each_of, twins

from actormq.actors.gateway.clients import TCP, ZMQ, Client
from actormq.actors.gateway.damage import Damage
from actormq.actors.gateway.lost_tails import LostTails
from actormq.actors.gateway.pulls import Pulls
from actormq.actors.gateway.replies import Replies
from actormq.broker.pulling import TransferLimits
from actormq.broker.tables import (
    BrokerEntry,
    ConsumerGroupOffline,
    ConsumerGroupOnline,
    GroupEntry,
    SubscriptionEntry,
    Tables,
    TopicEntry,
)
from actormq.errors import FrameError
from actormq.kernels import records
from actormq.kernels.frames import cut_frames
from actormq.kernels.parks import PARK, ParkTable
from actormq.kernels.queues import ENTRY, ENTRY_BYTES
from actormq.message import java_hash
from actormq.shm.extents import Extents
from actormq.store.batch_queue import ENTRY as BATCH_ENTRY
from actormq.store.batch_queue import BatchQueues
from actormq.store.commit_log import LogRemoved, file_name
from actormq.store.consume_queue import QueueRemoved
from actormq.store.disk import RealDisk
from actormq.store.queue_ext import QueueExtensions
from actormq.wire import frame
from actormq.wire.command import Language, RemotingCommand, Serialize

LOG_FILE_BYTES = 1 << 16
LOG_FILES = 4
FILE_ENTRIES = 8
ENTRIES = 20
"""Of each queue, in three files."""
LIMITS = TransferLimits(
    memory_messages=4,
    memory_bytes=40_000,
    disk_messages=2,
    disk_bytes=500,
    native_messages=6,
    native_bytes=60_000,
    native_disk_bytes=900,
)
NS_PER_MS = 1_000_000
QUEUES = 3
DAMAGED = -(1 << 41)
"""A tags code of messages whose records are damaged."""
ADDRESSED = -(1 << 40)
"""A tags code that is an address in the extension file."""


KERNELS = twins("pulls")
each_kernel = each_of(KERNELS)


class Link:
    """Where answers go."""

    def __init__(self) -> None:
        self.host = ("10.0.0.1", 4711)
        self.peer = "10.0.0.1:4711"
        self.closed = False
        self.queued_bytes = 0
        self.sent: list[bytes] = []

    def send(self, *parts: Any) -> None:
        self.sent.append(b"".join(parts))

    def frames(self) -> list[bytes]:
        """Return what was answered, sorted: answers have no order."""
        cutter = frame.FrameCutter()
        return sorted(cutter.feed(b"".join(self.sent)))


def in_log(at: int, queue_id: int) -> int:
    """Return where a place of one queue's log lies: every third file is that queue's."""
    return (at // LOG_FILE_BYTES * QUEUES + queue_id) * LOG_FILE_BYTES + at % LOG_FILE_BYTES


class Log:
    """Readable log files in memory, with the records of every queue's entries."""

    file_bytes = LOG_FILE_BYTES

    def __init__(self, entries: bytes) -> None:
        self.bytes = bytearray(QUEUES * LOG_FILES * LOG_FILE_BYTES)
        self.data = memoryview(self.bytes)
        self.removed: set[int] = set()
        for queue_id in range(QUEUES):
            for number, (at, size, code) in enumerate(ENTRY.iter_unpack(entries)):
                if at % LOG_FILE_BYTES + size <= LOG_FILE_BYTES and at < LOG_FILES * LOG_FILE_BYTES and size:
                    self._put(in_log(at, queue_id), size, queue_id, number)
                    if code == DAMAGED:
                        self.bytes[in_log(at, queue_id) + size // 2] ^= 4

    def _put(self, at: int, size: int, queue_id: int, number: int) -> None:
        body = bytes(size - records.record_size(8, 8, 1, 0, 0))
        host = bytes(8)
        records.encode(
            self.bytes, at, queue_id=queue_id, queue_offset=number, physical_offset=at, store_timestamp=1,
            store_host=host, born_host=host, topic=b"t", body=body,
        )  # fmt: skip

    def file(self, base: int) -> memoryview:
        if base in self.removed or not 0 <= base < len(self.data):
            raise LogRemoved(f"no file {base}")
        return self.data[base : base + LOG_FILE_BYTES]

    def view(self, log_offset: int, size: int) -> memoryview:
        at = log_offset % LOG_FILE_BYTES
        if log_offset < 0 or at + size > LOG_FILE_BYTES:
            raise LogRemoved("not in one file")
        return self.file(log_offset - at)[at : at + size]

    def parts(self, ranges: list[tuple[int, int]], size: int) -> tuple[memoryview, ...]:
        return tuple(self.view(at, count) for at, count in ranges)


class Queues:
    """Readable queue files in memory: every queue has the same entries, each in its own part of the log."""

    file_bytes = FILE_ENTRIES * ENTRY_BYTES

    def __init__(self, entries: bytes) -> None:
        self.data = []
        for queue_id in range(QUEUES):
            packed = b"".join(
                ENTRY.pack(in_log(at, queue_id) if 0 < size < 0x7FFFFFFF else at, size, code)
                for at, size, code in ENTRY.iter_unpack(entries)
            )
            self.data.append(memoryview(bytearray(packed + bytes(-len(packed) % self.file_bytes))))
        self.removed: set[int] = set()

    def file(self, topic: str, queue_id: int, queue_offset: int, incarnation: int = 0) -> memoryview:
        base = queue_offset // FILE_ENTRIES * self.file_bytes
        if base in self.removed or base >= len(self.data[queue_id]):
            raise QueueRemoved(f"no file {base}")
        return self.data[queue_id][base : base + self.file_bytes]

    def view(
        self, topic: str, queue_id: int, queue_offset: int, count: int, incarnation: int = 0
    ) -> memoryview:
        at = queue_offset % FILE_ENTRIES * ENTRY_BYTES
        return self.file(topic, queue_id, queue_offset)[at : at + count * ENTRY_BYTES]

    def entry(self, number: int, queue_id: int = 0) -> memoryview:
        """Return the bytes of one entry."""
        return self.data[queue_id][number * ENTRY_BYTES : (number + 1) * ENTRY_BYTES]


class Marks:
    """The log's readable part."""

    def __init__(self) -> None:
        self.log_min = 0
        self.log_end = QUEUES * LOG_FILES * LOG_FILE_BYTES
        self.reads = False

    def log_range(self) -> tuple[int, int]:
        return self.log_min, self.log_end

    def reading(self, log_offset: int) -> None:
        self.reads = True

    def done_reading(self) -> None:
        self.reads = False


class Relay:
    """What the coordinator hears."""

    def __init__(self) -> None:
        self.commits: dict[tuple[str, str, int], int] = {}
        self.asked: list[str] = []

    def need_group(self, group: str, on_needed: Callable[[int, str], None], now_ns: int) -> None:
        self.asked.append(group)

    def commit(self, group: str, topic: str, queue_id: int, offset: int, now_ns: int) -> None:
        self.commits[group, topic, queue_id] = offset

    def commit_all(self, commits: dict[tuple[str, str, int], int], now_ns: int) -> None:
        self.commits.update(commits)


class HolderPort:
    """A holder that looks when it is told to."""

    entry_bytes_max = 5 * PARK.size

    def __init__(self, extents: memoryview) -> None:
        self.table = ParkTable(extents)
        self.full = False
        self.told: dict[int, tuple[int, int, int]] = {}
        self.waiting = 0

    def try_park(self, parks: bytearray) -> bool:
        if self.full:
            return False
        for number, *what in PARK.iter_unpack(parks):
            self.told[number] = (what[0], what[1], what[2])
        self.table.park([memoryview(bytes(parks))])
        return True

    def say_waiting(self, count: int) -> None:
        self.waiting = count

    def flush(self) -> None: ...

    @property
    def has_woken(self) -> bool:
        return bool(self.table.woken)

    def woken(self) -> list[memoryview]:
        numbers = bytes(self.table.woken)
        self.table.woken.clear()
        return [memoryview(numbers)] if numbers else []

    def release(self) -> None: ...


class Cold:
    """Reads at once."""

    old_bytes = 9 * LOG_FILE_BYTES

    def __init__(self, log: Log) -> None:
        self.log = log
        self.is_paced = False
        self.reads = 0

    def is_old(self, distance: int) -> bool:
        return distance > self.old_bytes

    def read(self, ranges: list[tuple[int, int]], then: Callable[[bytes | None], None]) -> bool:
        self.reads += 1
        try:
            then(b"".join(bytes(self.log.view(at, size)) for at, size in ranges))
        except LogRemoved:
            then(None)
        return True


def tables() -> Tables:
    made = Tables()
    made.put(BrokerEntry())
    made.put(TopicEntry("t", 6, 3, 3, 2, False, "SINGLE_TAG", {}, [0, 1, 2], [1, 1, 1]))
    made.put(TopicEntry("deaf", 2, 1, 1, 0, False, "SINGLE_TAG", {}, [3], [1]))
    for group, codes in (("g", []), ("tagged", [java_hash("A")]), ("two", [java_hash("A"), java_hash("B")])):
        made.put(GroupEntry(group, sys_flag=3))
        made.put(ConsumerGroupOnline(group))
        made.put(SubscriptionEntry(group, "t", "CLUSTERING", "TAG", "*", codes, 5))
    batched = {"queue.type": "BatchCQ"}
    made.put(TopicEntry("batched", 6, 1, 1, 0, False, "SINGLE_TAG", batched, [3], [1]))
    made.put(SubscriptionEntry("g", "batched", "CLUSTERING", "TAG", "*", [], 5))
    made.put(GroupEntry("off", consume_enable=False))
    made.put(GroupEntry("offline"))
    return made


class Way:
    """One gateway's pulls; the test plays everything around them."""

    def __init__(self, kernel: ModuleType, entries: bytes, memory_bytes: int, cold: bool) -> None:
        self.memory = memoryview(bytearray(Extents.payload_bytes(4)))
        self.extents = Extents(self.memory)
        for row in range(4):
            self.extents.open_row(row, 1, 0, 0)
        self.log, self.queues, self.marks, self.relay = Log(entries), Queues(entries), Marks(), Relay()
        self.cold = Cold(self.log)
        self.batches = BatchQueues(MemoryDisk(), Path("/store"))
        self.mended: list[int] = []
        self.holder = HolderPort(self.memory)
        self.tables = tables()
        self.now_ns = NS_PER_MS
        self.pulls = Pulls(
            holder=self.holder,
            relay=self.relay,
            tables=self.tables,
            extents=self.extents,
            queues=self.queues,  # type: ignore[arg-type]
            extensions=QueueExtensions(RealDisk(), Path("/nowhere")),
            batch_queues=self.batches,
            log=self.log,  # type: ignore[arg-type]
            marks=self.marks,
            replies=Replies("R", True),
            limits=LIMITS,
            memory_bytes=memory_bytes,
            address="a:1",
            now_ns=lambda: self.now_ns,
            damage=Damage(
                self.queues,  # type: ignore[arg-type]
                self.log,  # type: ignore[arg-type]
                self.marks,
                self.mended.append,
                logging.getLogger("gateway"),
            ),
            lost_tails=LostTails(self.extents, self.tables, 0, lambda: self.now_ns),
            cold=self.cold if cold else None,
            path_class=kernel.PullPath,
        )
        self.links = [Link(), Link()]
        self.clients = [Client(number, TCP, link) for number, link in enumerate(self.links)]

    def feed(self, number: int, stream: bytes, common: bool) -> str:
        """Take what a read has brought; return why the connection ends, if so."""
        client, view = self.clients[number], memoryview(bytearray(stream))
        spots, _, bad = cut_frames(view, len(view), 1 << 20)
        if common and spots:
            spots = self.pulls.take(client, view, spots, self.now_ns)
        for start, end in spots:
            try:
                command = frame.decode(view[start:end])
            except FrameError as error:
                return error.remark
            if command.code in (11, 361) and not command.is_response:
                self.pulls.submit(client, command, self.now_ns)
        return f"bad {bad}"

    def know(self) -> None:
        """Let the kernel know all common pulls: one of each has gone the long way."""
        for group in ("g", "tagged", "two"):
            for queue_id in range(3):
                for expression in (None, *EXPRESSIONS):
                    changes = {"sysFlag": "0"} if expression is None else {"subscription": expression}
                    fields = {"sysFlag": "4", "consumerGroup": group, "queueId": str(queue_id)} | changes
                    self.feed(0, request(0, **fields), False)

    def turn(self) -> None:
        """What the gateway does each turn; the holder looks at everything first."""
        self.holder.table.look_at_all()
        self.pulls.collect(self.now_ns)
        self.pulls.expire(self.now_ns)
        self.pulls.finish_batch(self.now_ns)

    def seen(self) -> tuple[Any, ...]:
        """Return everything that must be the same both ways."""
        untold = (-1, -1, -1)
        living = [self.holder.told.get(number, untold) for number in self.pulls._path.waits()]
        return (
            [link.frames() for link in self.links],
            self.relay.commits,
            self.relay.asked,
            sorted(living),
            self.pulls.parked,
            [len(client.parked) for client in self.clients],
            self.pulls.wake_at_ns(),
            self.pulls.counts,
            self.pulls.blocked,
            self.holder.waiting,
            self.mended,
        )


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """Entries of a queue: most are messages one behind the other in the log."""
    data, at = b"", 0
    strange = draw(st.booleans())
    for _ in range(ENTRIES):
        size = draw(st.sampled_from([100, 100, 300, 300, 5_000, 17_000]))
        at += draw(st.sampled_from([0, 0, 0, 100]))
        if at % LOG_FILE_BYTES + size > LOG_FILE_BYTES:
            at += LOG_FILE_BYTES - at % LOG_FILE_BYTES
        code = draw(st.sampled_from([0, java_hash("A"), java_hash("A"), java_hash("B"), ADDRESSED]))
        if strange and draw(st.integers(0, 5)) == 0:
            code = DAMAGED
        if strange and draw(st.integers(0, 5)) == 0:
            data += draw(
                st.sampled_from(
                    [
                        ENTRY.pack(0, 0x7FFFFFFF, 0),
                        ENTRY.pack(0, 0, 0),
                        ENTRY.pack(at // LOG_FILE_BYTES * LOG_FILE_BYTES + LOG_FILE_BYTES - 10, 100, code),
                    ]
                )
            )
        else:
            data += ENTRY.pack(at, size, code)
            at += size
    assert at <= LOG_FILES * LOG_FILE_BYTES * 2
    return data


USUAL = {
    "consumerGroup": "g", "topic": "t", "queueId": "0", "queueOffset": "0", "maxMsgNums": "32",
    "sysFlag": "3", "commitOffset": "0", "suspendTimeoutMillis": "15000", "subVersion": "5",
    "expressionType": "TAG", "bname": "broker", "maxMsgBytes": "100000",
}  # fmt: skip
ENDS = (10, 0, 3)
"""Of the three queues, at first."""
EXPRESSIONS = ("*", "A", "A || B")
CHANGES: dict[str, tuple[str | None, ...]] = {
    "consumerGroup": ("off", "offline", "nobody", "", "é", "g\x01", None),
    "topic": ("deaf", "nothing", "", None),
    "queueId": ("3", "-1", "007", "+1", "x", "99999999999", "", None),
    "queueOffset": (
        "-1",
        "x",
        "9223372036854775807",
        "9223372036854775808",
        "999999999999999999",
        "01",
        None,
    ),
    "maxMsgNums": ("0", "-5", "2147483648", "", None),
    "sysFlag": ("8", "16", "-1", "1_0", "2147483647", None),
    "commitOffset": ("-3", "x", None),
    "suspendTimeoutMillis": ("0", "-1", "999999", "999999999999999999", None),
    "subVersion": ("4", "6", "-1", "999999999999999999", "9999999999999999999", None),
    "expressionType": ("SQL92", "", None),
    "subscription": ("*", "A", "A || B", "||", "", "é"),
    "bname": ("", "\\", '"', "é", None),
    "maxMsgBytes": ("1", "0", "-1", "", "99999999999", None),
    "zz": ("x", 'a"b', "é"),
}


@st.composite
def pulls(draw: st.DrawFn) -> bytes:
    """One frame: most are common pulls, some are anything."""
    strange = draw(st.integers(0, 9)) == 9
    fields = {
        **USUAL,
        "consumerGroup": draw(st.sampled_from(["g", "g", "tagged", "two"])),
        "queueId": str(draw(st.integers(0, 2))),
        "queueOffset": str(draw(st.sampled_from([*ENDS * 3, 1, 5, 8, 9, 11, 12, 20, 21]))),
        "maxMsgNums": str(draw(st.sampled_from([1, 3, 32, 1000]))),
        "sysFlag": str(draw(st.sampled_from([0, 1, 2, 3, 3, 3, 3, 7, 22]))),
        "commitOffset": str(draw(st.integers(0, ENTRIES))),
        "suspendTimeoutMillis": str(draw(st.sampled_from([5, 5, 100, 15_000]))),
        "maxMsgBytes": str(draw(st.sampled_from([1, 100, 20_000, 100_000]))),
    }
    if int(fields["sysFlag"]) & 4:
        fields["subscription"] = draw(st.sampled_from(EXPRESSIONS))
    language = draw(st.sampled_from([Language.JAVA, Language.PYTHON]))
    opaque = draw(st.integers(-(2**31), 2**31 - 1))
    serialize = draw(st.sampled_from(list(Serialize)))
    if not strange:
        return frame.encode(
            RemotingCommand(code=11, opaque=opaque, fields=fields, serialize=serialize, language=language)
        )
    for name in draw(st.lists(st.sampled_from(sorted(CHANGES)), max_size=2)):
        value = draw(st.sampled_from(CHANGES[name]))
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = value
    command = RemotingCommand(
        code=draw(st.sampled_from([11] * 5 + [361, 34])),
        flag=draw(st.sampled_from([0] * 9 + [1, 2, 4])),
        opaque=opaque,
        fields=fields,
        body=draw(st.sampled_from([b""] * 9 + [b"body"])),
        serialize=serialize,
        language=draw(st.sampled_from([language, Language.GO])),
        remark=draw(st.sampled_from([None] * 9 + ["why"])),
    )
    data = bytearray(frame.encode(command))
    if draw(st.integers(0, 4)) == 4:  # a byte of the header is another one
        at = draw(st.integers(8, len(data) - 1))
        data[at] = draw(st.integers(0, 255) | st.sampled_from(list(b'"\\{},: 0u')))
    return bytes(data)


STEPS: dict[str, tuple[int, list[st.SearchStrategy[Any]]]] = {
    "read": (10, [st.integers(0, 1), st.lists(pulls(), min_size=1, max_size=5)]),
    "grow": (6, [st.integers(0, 2), st.integers(1, 6)]),
    "pass": (4, [st.sampled_from([1, 5, 100, 20_000])]),
    "tables": (2, [st.sampled_from(["same", "online", "offline", "tags"]), st.booleans()]),
    "full": (2, [st.booleans()]),
    "min": (1, [st.integers(0, 2), st.integers(0, 4)]),
    "row": (1, [st.integers(0, 2)]),
    "close": (1, [st.integers(0, 1)]),
    "holder": (1, []),
    "log": (1, [st.integers(0, LOG_FILES - 1)]),
    "queue": (1, [st.integers(0, 2)]),
}
"""What may happen, how often, and to what."""


@st.composite
def steps(draw: st.DrawFn) -> tuple[Any, ...]:
    kind = draw(st.sampled_from([name for name, (count, _) in STEPS.items() for _ in range(count)]))
    return (kind, *[draw(each) for each in STEPS[kind][1]])


def play(way: Way, step: tuple[Any, ...], common: bool) -> Any:
    """Let one thing happen; growth and whatever else others do comes between turns, unannounced."""
    kind, *what = step
    ended = None
    if kind == "read":
        ended = way.feed(what[0], b"".join(what[1]), common)
    elif kind == "grow":
        way.extents.set_max(what[0], min(ENTRIES, way.extents.read(what[0]).max + what[1]))
    elif kind == "pass":
        way.now_ns += what[0] * NS_PER_MS
    elif kind == "tables":
        if what[0] == "online":
            way.tables.put(ConsumerGroupOnline("tagged"))
        elif what[0] == "offline":
            way.tables.put(ConsumerGroupOffline("tagged"))
        elif what[0] == "tags":
            entry = SubscriptionEntry("g", "t", "CLUSTERING", "TAG", "B", [java_hash("B")], 6)
            way.tables.put(entry)
        way.pulls.tables_changed()
        if what[1]:
            way.know()
    elif kind == "min":
        way.extents.set_min(what[0], min(what[1], way.extents.read(what[0]).max))
    elif kind == "row":
        way.extents.close_row(what[0])
    elif kind == "close":
        way.pulls.client_closed(way.clients[what[0]])
    elif kind == "full":
        way.holder.full = what[0]
    elif kind == "holder":
        way.holder.table = ParkTable(way.memory)
        way.pulls.park_all_again()
    elif kind == "log":
        way.marks.log_min = max(way.marks.log_min, what[0] * LOG_FILE_BYTES)
        way.log.removed.update(range(0, way.marks.log_min, LOG_FILE_BYTES))
    return ended


@each_kernel
@settings(deadline=None, max_examples=200)
@given(
    entries(),
    st.lists(steps(), min_size=5, max_size=14),
    st.sampled_from([1 << 40, 100_000]),
    st.booleans(),
)
def test_both_ways_end_in_the_same_bytes(
    kernel: ModuleType,
    data: bytes,
    sequence: list[tuple[Any, ...]],
    memory_bytes: int,
    cold: bool,
) -> None:
    """Answers, what waits until when, what the holder and the coordinator are told, what is counted."""
    common, slow = (Way(kernel, data, memory_bytes, cold) for _ in range(2))
    for way in (common, slow):
        for row, end in enumerate(ENDS):
            way.extents.set_max(row, end)
        # Missing from the beginning: what is mapped is readable for as long as the row says so.
        way.queues.removed.update(
            step[1] * FILE_ENTRIES * ENTRY_BYTES for step in sequence if step[0] == "queue"
        )
        way.know()
    for step in sequence:
        outcomes = [play(way, step, way is common) for way in (common, slow)]
        assert outcomes[0] == outcomes[1]
        for way in (common, slow):
            way.turn()
        assert common.seen() == slow.seen()
    for way in (common, slow):
        way.pulls.end_all()
        way.turn()
        assert way.pulls.parked == 0 or way.holder.full
        assert not way.marks.reads
    assert common.seen() == slow.seen()


PLAIN = b"".join(ENTRY.pack(number * 100, 100, 0) for number in range(ENTRIES))


def request(
    opaque: int = 1,
    serialize: Serialize = Serialize.JSON,
    language: Language = Language.JAVA,
    **changes: str,
) -> bytes:
    """Return a pull as an official client writes it."""
    fields = {**USUAL, **changes}
    return frame.encode(
        RemotingCommand(code=11, opaque=opaque, fields=fields, serialize=serialize, language=language)
    )


def taken(way: Way, stream: bytes) -> int:
    """Return how many frames of a read the kernel takes."""
    view = memoryview(bytearray(stream))
    spots, _, _ = cut_frames(view, len(view), 1 << 20)
    left = way.pulls.take(way.clients[0], view, spots, way.now_ns)
    assert left == spots[len(spots) - len(left) :]
    return len(spots) - len(left)


@each_kernel
@pytest.mark.parametrize("serialize", list(Serialize))
def test_what_official_clients_pull_is_common(kernel: ModuleType, serialize: Serialize) -> None:
    """After the first of its kind; otherwise the test above would compare the long way with itself."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.extents.set_max(0, 10)
    kinds = [
        request(1, serialize),
        request(2, serialize, consumerGroup="tagged"),
        request(3, serialize, sysFlag="22", subscription="A || B"),
        request(4, serialize, queueId="1"),
        request(5, serialize, queueOffset="10"),
        request(6, serialize, queueOffset="9", subVersion="4"),
    ]
    assert taken(way, b"".join(kinds)) == 0
    way.feed(0, b"".join(kinds), True)
    assert taken(way, b"".join(kinds)) == len(kinds)
    assert way.pulls.parked == 4  # queue 1 and the end of queue 0, twice each
    assert [len(frames) for frames in map(Link.frames, way.links)] == [8, 0]


@each_kernel
def test_what_waits_is_answered_by_the_kernel_itself(kernel: ModuleType) -> None:
    """When it is woken and when its time is over: nobody decodes it again."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.feed(0, request(0, sysFlag="0"), True)
    assert taken(way, request(1) + request(2, suspendTimeoutMillis="5")) == 2
    way.pulls._resume = lambda pull, now_ns: pytest.fail("the long way")  # type: ignore[method-assign]
    way.turn()
    way.now_ns += 5 * NS_PER_MS
    way.turn()
    way.extents.set_max(0, 2)
    way.turn()
    answers = {one.opaque: one for one in map(frame.decode, way.links[0].frames())}
    assert (answers[2].code, answers[2].remark) == (19, "NO_MESSAGE_IN_QUEUE")
    assert (answers[1].code, answers[1].fields["nextBeginOffset"]) == (0, "2")
    assert way.pulls.parked == 0


@each_kernel
def test_others_messages_are_passed_by_the_kernel_itself(kernel: ModuleType) -> None:
    """Who is woken by messages that it did not want waits behind them, until its time is over."""
    tags = [java_hash("B")] * 3 + [java_hash("A")] + [java_hash("B")] * (ENTRIES - 4)
    data = b"".join(ENTRY.pack(number * 100, 100, tag) for number, tag in enumerate(tags))
    way = Way(kernel, data, 1 << 40, False)
    mine = {"consumerGroup": "tagged", "suspendTimeoutMillis": "5"}
    way.feed(0, request(0, **mine | {"sysFlag": "0"}), True)
    way.pulls._resume = lambda pull, now_ns: pytest.fail("the long way")  # type: ignore[method-assign]
    assert taken(way, request(1, **mine)) == 1
    way.turn()
    for end in (1, 3):
        way.extents.set_max(0, end)
        way.turn()
        assert way.pulls.parked == 1
        assert way.holder.told[way.pulls._path.waits()[0]][2] == end
    way.extents.set_max(0, 4)
    way.turn()
    assert taken(way, request(2, **mine | {"queueOffset": "4"})) == 1
    way.turn()
    way.extents.set_max(0, 5)
    way.turn()
    way.now_ns += 5 * NS_PER_MS - 1
    way.turn()
    assert way.pulls.parked == 1
    way.now_ns += 1
    way.turn()
    answers = {one.opaque: one for one in map(frame.decode, way.links[0].frames())}
    assert (answers[1].code, answers[1].fields["nextBeginOffset"], len(answers[1].body)) == (0, "4", 100)
    assert (answers[2].code, answers[2].fields["nextBeginOffset"]) == (19, "5")


@each_kernel
def test_behind_another_frame_nothing_is_taken(kernel: ModuleType) -> None:
    """Offsets that pulls carry, and whatever changes them, keep their order."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.feed(0, request(), True)
    other = frame.encode(RemotingCommand(code=15, opaque=1, fields={}))
    assert taken(way, request(2) + other + request(3)) == 1


@each_kernel
def test_large_answers_are_sent_from_where_they_lie(kernel: ModuleType) -> None:
    """No copy of the log; small ones share one piece."""
    data = b"".join(ENTRY.pack(number * 20_000, 20_000, 0) for number in range(2))
    data += b"".join(ENTRY.pack(40_000 + number * 100, 100, 0) for number in range(ENTRIES - 2))
    way = Way(kernel, data, 1 << 40, False)
    way.feed(0, request(queueOffset="2", sysFlag="0"), True)
    way.extents.set_max(0, 10)
    way.links[0].sent.clear()
    parts: list[Any] = []
    way.links[0].send = lambda *some: parts.extend(some)  # type: ignore[method-assign]
    assert taken(way, request(1) + request(2, queueOffset="3") + request(3, queueOffset="4")) == 3
    assert len(parts) == 3
    head, body = (part for part in parts if not isinstance(part, bytearray))
    assert len(body) == 40_000
    assert body.obj is way.log.data.obj
    assert len(head) + 40_000 == struct.unpack_from(">I", head)[0] + 4


@each_kernel
def test_no_more_queue_files_are_held_than_allowed(
    kernel: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was looked at first is let go, and found again when it is asked for."""
    monkeypatch.setattr("actormq.actors.gateway.pulls._MAPS_MAX", 2)
    way = Way(kernel, PLAIN, 1 << 40, False)
    for row in range(3):
        way.extents.set_max(row, 10)
    asked: list[int] = []
    ask = way.queues.file

    def count(topic: str, queue_id: int, queue_offset: int, incarnation: int = 0) -> memoryview:
        asked.append(queue_id)
        return ask(topic, queue_id, queue_offset, incarnation)

    every = [request(sysFlag="0", queueId=str(number)) for number in range(3)]
    way.feed(0, b"".join(every), True)
    way.queues.file = count  # type: ignore[method-assign]
    for number in (0, 1, 1, 0, 2, 2, 1, 0):
        assert taken(way, every[number]) == 1
    assert asked == [0, 1, 2, 0]


@each_kernel
def test_a_header_that_came_alone(kernel: ModuleType) -> None:
    """Native clients' messages: the same answer, without the length prefix, head and body apart."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.extents.set_max(0, 3)
    way.clients[1].front = ZMQ
    way.feed(0, request(7), True)
    way.links[0].sent.clear()
    assert not way.pulls.take_header(way.clients[1], b"abc", 0)
    sent: list[tuple[bytes, ...]] = []
    way.links[1].send = lambda *parts: sent.append(tuple(map(bytes, parts)))  # type: ignore[method-assign]
    assert way.pulls.take_header(way.clients[1], request(7)[4:], way.now_ns)
    way.feed(0, request(7), False)
    (whole,) = way.links[0].sent
    ((head, body),) = sent
    assert (head, body) == (whole[4:-300], whole[-300:])


@each_kernel
def test_no_more_wait_than_there_are_places(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds none is answered at once."""
    monkeypatch.setattr("actormq.actors.gateway.pulls.PARKED_MAX", 2)
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.feed(0, request(0, sysFlag="0"), True)
    assert taken(way, b"".join(request(number) for number in range(1, 5))) == 4
    assert way.pulls.parked == 2
    assert len(way.links[0].frames()) == 3


@each_kernel
def test_growth_while_the_holder_is_told_is_seen(kernel: ModuleType) -> None:
    """The holder is not woken for parks, so a queue that grew before they were in its ring is seen here."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.feed(0, request(0, sysFlag="0"), True)
    assert taken(way, request(1)) == 1
    pushed = way.holder.try_park

    def grow_first(parks: bytearray) -> bool:
        way.extents.set_max(0, 1)
        way.holder.told.update({number: (0, 0, 0) for number, *_ in PARK.iter_unpack(parks)})
        return True

    way.holder.try_park = grow_first  # type: ignore[method-assign]
    way.pulls.finish_batch(way.now_ns)
    way.holder.try_park = pushed  # type: ignore[method-assign]
    assert [frame.decode(one).code for one in way.links[0].frames()] == [0, 19]
    assert way.pulls.parked == 0


@each_kernel
def test_a_late_wake_ends_no_other_wait(kernel: ModuleType) -> None:
    """The place is used again, its number is not."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.feed(0, request(0, sysFlag="0"), True)
    taken(way, request(1, suspendTimeoutMillis="5"))
    (first,) = way.pulls._path.waits()
    way.now_ns += 5 * NS_PER_MS
    way.pulls.expire(way.now_ns)
    taken(way, request(2))
    (second,) = way.pulls._path.waits()
    assert second != first
    assert second & 0xFFFFF == first & 0xFFFFF
    assert way.pulls._path.wake(memoryview(struct.pack("<2Q", first, first + 1)), {}) == []
    assert way.pulls._path.end(first) is None
    assert way.pulls.parked == 1


@each_kernel
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=60), st.integers(0, 50))
def test_deadlines_come_in_order(kernel: ModuleType, waits: list[tuple[int, bool]], now_ns: int) -> None:
    """Whatever ended before, and in whatever order they began."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    path = way.pulls._path
    living: dict[int, int] = {}
    for deadline_ns, ends in waits:
        number = path.wait(object(), way.clients[0], way.clients[0].parked, 0, 1, 0, deadline_ns + 1)
        living[number] = deadline_ns + 1
        if ends:
            gone = sorted(living)[len(living) // 2]
            assert path.end(gone) is not None
            del living[gone]
        assert path.deadline_ns == min(living.values(), default=0)
    due = path.expire(now_ns, {})
    assert [living[number] for number in due] == sorted(one for one in living.values() if one <= now_ns)
    for number in due:
        assert path.end(number) is not None
        del living[number]
    assert path.deadline_ns == min(living.values(), default=0)
    assert sorted(path.waits()) == sorted(way.clients[0].parked) == sorted(living)


def answer(way: Way, language: Language = Language.JAVA, **changes: str) -> RemotingCommand:
    """Return the answer to one pull."""
    way.links[0].sent.clear()
    way.feed(0, request(language=language, **({"sysFlag": "0"} | changes)), True)
    (only,) = way.links[0].frames()
    return frame.decode(only)


def numbers_in(body: Any) -> list[int]:
    """Return the queue offsets of the messages in an answer."""
    found, at = [], 0
    while at < len(body):
        header = records.decode(body, at, check_crc=True)
        found.append(header.queue_offset)
        at += header.total_size
    return found


def read_all(way: Way, end: int) -> list[int]:
    """Pull as a consumer does, until the queue's end; return the queue offsets of what came."""
    found: list[int] = []
    at = 0
    while at < end:
        got = answer(way, queueOffset=str(at))
        assert got.code in (0, 20), got.remark
        found += numbers_in(got.body)
        assert int(got.fields["nextBeginOffset"]) > at
        at = int(got.fields["nextBeginOffset"])
    return found


LARGE = b"".join(ENTRY.pack(number * 400, 400, 0) for number in range(ENTRIES))


def with_batches(cold: bool, entries: Sequence[tuple[int, int, int]]) -> Way:
    """Return pulls of a batch queue with these (log offset, first message, messages)."""
    way = Way(KERNELS[0], PLAIN, 1 << 40, cold)
    folder = way.batches.root / "batched" / "0"
    disk = way.batches.disk
    disk.mkdir(folder)
    data = b"".join(BATCH_ENTRY.pack(at, 100, 7, 1, first, count, -1, 0) for at, first, count in entries)
    fd = disk.open(folder / file_name(0), exclusive=True)
    disk.pwritev(fd, [data], 0)
    disk.close(fd)
    way.extents.set_max(3, sum(count for _, _, count in entries))
    return way


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_old_batches_are_read_elsewhere_too(cold: bool) -> None:
    """The same answer; damaged records, those of others and entries that lead nowhere are passed over."""
    # The record at 100 × n says that it is the n-th of its queue.
    entries = [(0, 0, 1), (100, 1, 1), (500, 2, 1), (300, 3, 1), (1 << 50, 4, 1), (500, 5, 2), (800, 7, 1)]
    way = with_batches(cold, entries)
    way.log.bytes[395] ^= 1
    got = answer(way, topic="batched", maxMsgNums="32")
    assert (got.code, got.fields["nextBeginOffset"]) == (0, "5")
    assert numbers_in(got.body) == [0, 1]
    got = answer(way, topic="batched", queueOffset="6", maxMsgNums="32")
    assert (got.code, got.fields["nextBeginOffset"]) == (0, "8")
    assert numbers_in(got.body) == [5]
    assert way.cold.reads == 2 * cold
    assert way.pulls.counts.messages == 4


@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_batches_that_are_gone_are_passed_over(cold: bool) -> None:
    way = with_batches(cold, [(0, 0, 1), (100, 1, 3)])
    way.log.removed.add(0)
    got = answer(way, topic="batched")
    assert (got.code, got.fields["nextBeginOffset"], bytes(got.body)) == (20, "4", b"")


@pytest.mark.parametrize(("language", "paced"), [(Language.PYTHON, 2), (Language.JAVA, 4)])
def test_paced_answers_are_short(language: Language, paced: int) -> None:
    """Our own client gets less at a time while old messages are paced; official ones never get much."""
    way = Way(KERNELS[0], LARGE, 1 << 40, True)
    way.extents.set_max(0, 10)
    alone = numbers_in(answer(way, language=language).body)
    way.cold.is_paced = True
    beside = numbers_in(answer(way, language=language).body)
    assert len(beside) == paced
    assert len(alone) == (6 if language is Language.PYTHON else 4)


EVERY_FIELD = [
    (part, at) for part, size in (("entry", ENTRY_BYTES - 8), ("record", 100)) for at in range(size)
]


@each_kernel
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_a_damaged_byte_costs_its_own_message_at_most(kernel: ModuleType, cold: bool) -> None:
    """A damaged record is passed over, a damaged entry's message is found; no other one is missing or wrong.

    Of a record without CRC property some fields are not covered; of an entry, the tags code.
    """
    for part, at in EVERY_FIELD:
        way = Way(kernel, PLAIN, 100 if cold else 1 << 40, cold)
        way.extents.set_max(0, 10)
        way.know()
        before = bytes(way.log.bytes[500:600])
        data = way.queues.entry(5) if part == "entry" else way.log.data[500:600]
        data[at] ^= 0x10
        found = read_all(way, 10)
        whole = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        if part == "entry":
            assert found == whole, at
            assert way.mended == [500], at
        elif found == whole:
            # Not covered: flag, sys flag's other bits, times, ports, hosts, reconsume times, prepared offset.
            assert records.decode(memoryview(before), 0)[:4] == records.decode(way.log.data[500:600], 0)[:4]
            assert at in range(16, 20) or at in range(36, 84), at
        else:
            assert found == [0, 1, 2, 3, 4, 6, 7, 8, 9], at
        assert way.pulls.counts.damaged == (found != whole or part == "entry"), at


@each_kernel
def test_damage_is_named_once(kernel: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """However many groups come to it."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.extents.set_max(0, 10)
    way.log.bytes[595] ^= 1
    for _ in range(3):
        assert read_all(way, 10) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [record.getMessage() for record in caplog.records] == [
        "message 5 of queue 0 of topic t is damaged or gone: log offset 500, position 500 of log file "
        "00000000000000000000; consumers go on behind it"
    ]


@each_kernel
def test_a_lost_sector_of_a_queue_hides_nothing(kernel: ModuleType) -> None:
    """Many entries in a row are zeros: each message is found between those that have one."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.extents.set_max(0, 18)
    for number in range(3, 15):
        way.queues.entry(number)[:] = bytes(ENTRY_BYTES)
    assert read_all(way, 18) == list(range(18))
    assert way.mended == [100 * number for number in range(3, 15)]


@each_kernel
def test_what_the_cleaner_removes_is_no_damage(kernel: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """He moves the log's beginning before those of the queues."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.extents.set_max(0, 10)
    way.marks.log_min = 400
    assert read_all(way, 10) == [4, 5, 6, 7, 8, 9]
    assert caplog.records == []


def test_where_access_is_controlled_every_pull_is_looked_at(tmp_path: Path) -> None:
    """Nothing is answered behind the back of who decides, however often he has agreed."""
    rig = Rig(tmp_path)
    rig.add_topic("t", 1)
    rig.add_group("g", "t")
    peer = TcpPeer(rig)
    assert peer.ask(send_request()).code == 0
    rig.settle()
    asked: list[int] = []
    rig.gateway.authorise = lambda client, description, command: asked.append(command.code)
    try:
        for _ in range(3):
            assert peer.ask(pull_request()).code == 0
    finally:
        peer.close()
        rig.close()
    assert asked == [11] * 3


def way_after_a_loss(kernel: ModuleType) -> Way:
    """Ten messages, of which those from 4 on stand where others were lost."""
    way = Way(kernel, PLAIN, 1 << 40, False)
    way.pulls._lost_tails = LostTails(way.extents, way.tables, way.now_ns + NS_PER_MS, lambda: way.now_ns)
    way.extents.open_row(0, 1, 0, 10, lost_from=4)
    return way


def commit_of(group: str, offset: object) -> RemotingCommand:
    fields = {"consumerGroup": group, "topic": "t", "queueId": "0", "commitOffset": str(offset)}
    return RemotingCommand.request(15, fields)


@each_kernel
def test_who_was_ahead_of_a_lost_tail_is_set_back(kernel: ModuleType) -> None:
    """Each pull beyond what its group has had in this life, while consumers of the former broker may come."""
    way = way_after_a_loss(kernel)
    moved = answer(way, queueOffset="7")
    assert (moved.code, moved.remark, moved.fields["nextBeginOffset"]) == (21, "OFFSET_RESET", "4")
    assert way.relay.commits == {}
    assert numbers_in(answer(way, queueOffset="4").body) == [4, 5, 6, 7]
    assert answer(way, queueOffset="9").code == 21, "another consumer of the group, who missed 8"
    assert numbers_in(answer(way, queueOffset="8").body) == [8, 9]
    assert numbers_in(answer(way, queueOffset="6").body)[:2] == [6, 7]
    assert answer(way, consumerGroup="two", queueOffset="5").code == 21, "other groups are no help"
    way.now_ns += NS_PER_MS
    assert answer(way, consumerGroup="tagged", queueOffset="9").code != 21


@each_kernel
def test_nobody_is_set_back_where_nothing_was_lost(kernel: ModuleType) -> None:
    way = way_after_a_loss(kernel)
    way.extents.open_row(0, 1, 0, 10)
    assert answer(way, queueOffset="8").code == 0
    assert not way.pulls.is_commit_ahead(way.clients[0], commit_of("g", 9))


@each_kernel
def test_in_broadcasting_each_client_is_asked_how_far_it_has_come(kernel: ModuleType) -> None:
    way = way_after_a_loss(kernel)
    way.tables.put(SubscriptionEntry("g", "t", "BROADCASTING", "TAG", "*", [], 5))
    way.tables.put(GroupEntry("g", sys_flag=3, broadcast_enable=True))
    assert numbers_in(answer(way, queueOffset="4").body) == [4, 5, 6, 7]
    assert answer(way, queueOffset="8").code == 0
    way.links[1].sent.clear()
    way.feed(1, request(sysFlag="0", queueOffset="8"), True)
    (other,) = way.links[1].frames()
    assert frame.decode(other).code == 21


@each_kernel
def test_offsets_of_lost_messages_are_not_committed(kernel: ModuleType) -> None:
    """Nor does a group keep one that it sends before its first pull."""
    way = way_after_a_loss(kernel)
    client = way.clients[0]
    assert way.pulls.is_commit_ahead(client, commit_of("g", 5))
    assert not way.pulls.is_commit_ahead(client, commit_of("g", 4))
    answer(way, queueOffset="4")
    assert not way.pulls.is_commit_ahead(client, commit_of("g", 8))
    assert way.pulls.is_commit_ahead(client, commit_of("g", 9))
    way.now_ns += NS_PER_MS
    assert not way.pulls.is_commit_ahead(client, commit_of("g", 9))
