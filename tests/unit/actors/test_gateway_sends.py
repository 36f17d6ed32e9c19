"""Common sends: what the kernel takes ends in the same bytes as what goes the long way, there and back."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
from gateway_rig import Rig, TcpPeer, send_request
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_twins import each_of, twins
from store_rig import MemoryPort, SilentDoorbell

from actormq.actors.gateway.clients import TCP, Client
from actormq.actors.gateway.replies import Replies
from actormq.actors.gateway.sends import TICKET_BITS, Sends, WaitingLimits
from actormq.broker.admission import SendSettings, broker_properties
from actormq.broker.delay import DelayLevels
from actormq.broker.sending import PutStatus
from actormq.broker.tables import GroupEntry, Tables, TopicEntry
from actormq.errors import FrameError
from actormq.kernels.rings import RingProducer
from actormq.shm.append_port import COMPLETION, AppendPort, unpack_request
from actormq.shm.ring import RingConsumer
from actormq.wire import batch, frame
from actormq.wire.command import BROKER_VERSION, RemotingCommand, Serialize
from actormq.wire.headers import _LONG, _V2

HOST = b"\x7f\x00\x00\x01" + struct.pack(">i", 10911)
RECORD_BYTES = 100
"""Of every record in the made-up log."""


KERNELS = twins("sends")
each_kernel = each_of(KERNELS)


class Link:
    """Where answers go."""

    def __init__(self, host: str) -> None:
        self.host = (host, 4711)
        self.peer = f"{host}:4711"
        self.closed = False
        self.queued_bytes = 0
        self.sent = bytearray()

    def send(self, *parts: Any) -> None:
        for part in parts:
            self.sent += part

    def frames(self) -> list[bytes]:
        """Return what was answered, sorted: answers have no order."""
        cutter = frame.FrameCutter()
        return sorted(cutter.feed(bytes(self.sent)))


class Nobody:
    """Whom names are asked about: an answer never comes."""

    def need_topic(self, *_: Any) -> None: ...

    def need_group(self, *_: Any) -> None: ...


def tables() -> Tables:
    made = Tables()
    for name, filter_type, attributes in (
        ("t", "SINGLE_TAG", {}),
        ("multi", "MULTI_TAG", {}),
        ("compact", "SINGLE_TAG", {"cleanup.policy": "COMPACTION"}),
        ("batches", "SINGLE_TAG", {"queue.type": "BatchCQ"}),
        ("%RETRY%g", "SINGLE_TAG", {}),
        ("%DLQ%g", "SINGLE_TAG", {}),
        ("SCHEDULE_TOPIC_XXXX", "SINGLE_TAG", {}),
    ):
        rows = [sum(name.encode()) % 100 + number for number in range(4)]
        made.put(TopicEntry(name, 6, 4, 4, 0, False, filter_type, attributes, rows, [9] * 4))
    made.put(GroupEntry("g"))
    return made


class Way:
    """One gateway's sends, with the writer played by the test."""

    def __init__(
        self,
        kernel: ModuleType,
        *,
        sync: bool = False,
        host: str = "10.0.0.1",
        ring: int = 1 << 16,
        slots: int = 64,
    ) -> None:
        self.port = MemoryPort(ring)
        self.requests = RingConsumer(self.port.requests)
        self.completions = RingProducer(self.port.completions)
        send_settings = SendSettings(
            cluster="C",
            region="R%d",
            trace_on=True,
            address="a:1",
            body_bytes_max=1000,
            levels=DelayLevels("1s 5s"),
        )
        replies = Replies("R%d", True)
        append = AppendPort(self.port, SilentDoorbell())  # type: ignore[arg-type]
        self.keys = 0
        self.path = kernel.SendPath(
            append.request_ring,
            ticket_base=3 << TICKET_BITS,
            slots=slots,
            store_host=HOST,
            added=broker_properties(send_settings),
            sync=sync,
            body_bytes_max=1000,
            json_pieces=replies.stored_pieces,
            json_bare=replies.stored_bare,
            binary_fields=replies.stored_fields,
            binary_bare=replies.stored_fields_bare,
            version=BROKER_VERSION,
            read_log=lambda start, size: memoryview(
                (struct.pack(">i", RECORD_BYTES) + bytes(RECORD_BYTES - 4)) * (size // RECORD_BYTES)
            ),
        )
        self.sends = Sends(
            incarnation=3,
            port=append,
            path=self.path,
            questions=Nobody(),
            tables=tables(),
            settings=send_settings,
            replies=replies,
            limits=WaitingLimits(requests_max=10_000, bytes_max=1 << 20, wait_ns=200),
            store_host=HOST,
            sync=sync,
            sync_timeout_ns=5_000,
            record_starts=lambda start, end: list(range(start, end, RECORD_BYTES)),
            disk_percent=lambda: 93,
            new_key=self.new_key,
            now_ns=lambda: 0,
            random=Random(7),
        )
        self.link = Link(host)
        self.client = Client(1, TCP, self.link)
        self.log_end = 1 << 40
        self.stored: list[bytes] = []

    def new_key(self) -> str:
        self.keys += 1
        return f"{self.keys:032X}"

    def know(self, *topics: str) -> None:
        """Let the kernel take sends to `topics`, as after a first send to each."""
        for topic in topics:
            self.sends._prepare(self.client, topic)

    def feed(self, stream: bytes, common: bool) -> str:
        """Take what a read has brought; return why the connection ends, if so."""
        view = memoryview(bytearray(stream))
        if common:
            places, _, bad = self.sends.take(self.client, view, len(view), 1 << 20)
        else:
            places, _, bad = kernels_cut(view)
        for start, end in places:
            try:
                command = frame.decode(view[start:end])
            except FrameError as error:
                return error.remark
            if command.code in (10, 310, 320) and not command.is_response:
                self.sends.submit(self.client, command, 0)
        return f"bad {bad}"

    def write(self, statuses: list[int]) -> None:
        """Complete what is in the ring, with the next of `statuses` each."""
        done = b""
        for number, entry in enumerate(self.requests.take()):
            self.stored.append(bytes(entry))
            request = unpack_request(entry)
            status = statuses[number % len(statuses)]
            count = 3 if request.kind == 2 else 1
            end = self.log_end + count * RECORD_BYTES
            done += (
                COMPLETION.pack(request.ticket, 0, count, self.log_end, end, number * 7, 99)
                if status == 0
                else COMPLETION.pack(request.ticket, status, 0, -1, -1, -1, 99)
            )
            self.log_end = end
        self.requests.release()
        if done:
            assert self.completions.try_push(done)


def kernels_cut(view: memoryview) -> Any:
    from actormq.kernels.frames import cut_frames

    return cut_frames(view, len(view), 1 << 20)


NAMES = ["KEYS", "TAGS", "A", "WAIT", "UNIQ_KEY", "WAITS", "UNIQ_KEYS"]
RULED = [
    "DELAY",
    "POP_CK",
    "TRAN_MSG",
    "CLUSTER",
    "MSG_REGION",
    "TRACE_ON",
    "TIMER_DELAY_SEC",
    "__RMQ.TRANSIENT.x",
    "",
]
VALUES = ["true", "false", "TRUE", "v", "1", "0", "", "a b", 'q"\\/\n\t', "é", "\x01", "0" * 70, "ABC123"]
items = st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)) | st.tuples(
    st.sampled_from(NAMES + RULED), st.sampled_from(VALUES)
)


@st.composite
def properties(draw: st.DrawFn) -> str:
    """Most have a unique key and nothing strange."""
    strange = draw(st.integers(0, 3)) == 3
    plain = st.tuples(st.sampled_from(["KEYS", "TAGS", "UNIQ_KEYS", "WAITS"]), st.sampled_from(VALUES[:6]))
    pairs = draw(
        st.lists(items if strange else plain, max_size=4, unique_by=None if strange else lambda pair: pair[0])
    )
    if not strange or draw(st.booleans()):
        pairs.insert(draw(st.integers(0, len(pairs))), ("UNIQ_KEY", "7F0000010001"))
    if draw(st.booleans()):
        pairs.insert(
            draw(st.integers(0, len(pairs))), ("WAIT", draw(st.sampled_from(["true", "false", "True"])))
        )
    text = "".join(f"{key}\x01{value}\x02" for key, value in pairs)
    return text[:-1] if draw(st.integers(0, 5)) == 5 else text


USUAL = {
    "a": "pg", "b": "t", "c": "TBW102", "d": "4", "e": "1", "f": "0", "g": "1700000000000", "h": "0",
    "j": "0", "k": "false", "m": "false", "n": "broker",
}  # fmt: skip
CHANGES: dict[str, tuple[str | None, ...]] = {
    "a": ("", None),
    "b": ("multi", "%DLQ%g", "compact", "batches", "%RETRY%g", "no", "SCHEDULE_TOPIC_XXXX", "é", "", None),
    "c": ("", None),
    "d": ("x", "-4", "", None),
    "e": ("0", "3", "4", "-1", "007", "+1", " 1", "99999999999", "", None),
    "f": ("1", "2", "3", "4", "8", "0x1", "16", "48", "64", "128", "1792", "2147483647", "-1"),
    "g": ("0", "-5", "9223372036854775807", "9223372036854775808", "999999999999999999", "1_0"),
    "h": ("77", "-1", "2147483647", "2147483648"),
    "i": ("", "A", "\x02", "\x01"),
    "j": ("3", "-1", "x", "", None),
    "k": ("true", "TRUE", "x", None),
    "l": ("16", "x", "-1", ""),
    "m": ("true", "True", None),
    "n": ("é", None),
    "noIds": ("true", "true", "false", "True", "x", ""),
    "zz": ("x", 'a"b', "é"),
}


@st.composite
def sends(draw: st.DrawFn) -> bytes:
    """One frame: most are common sends, some are anything."""
    fields: dict[str, str | None] = {**USUAL, "i": draw(properties())}
    for name in draw(
        st.lists(st.sampled_from(sorted(CHANGES)), max_size=draw(st.sampled_from([0, 0, 1, 2])))
    ):
        fields[name] = draw(st.sampled_from(CHANGES[name]))
    code = draw(st.sampled_from([310, 310, 310, 10, 320]))
    is_batch = code == 320 or fields["m"] == "true"
    if code == 10:
        names = dict(zip(_V2, _LONG, strict=True))
        fields = {names.get(short, short): value for short, value in fields.items()}
    one = b"b" * draw(st.sampled_from([1, 5, 200, 1000, 1001, 0]))
    command = RemotingCommand(
        code=draw(st.sampled_from([code] * 15 + [34, 11])),
        flag=draw(st.sampled_from([0, 0, 0, 0, 2, 1])),
        opaque=draw(st.integers(-(2**31), 2**31 - 1)),
        fields={key: value for key, value in fields.items() if value is not None},
        body=batch.encode([(0, one, b"")] * 3) if is_batch else one,
        serialize=draw(st.sampled_from(list(Serialize))),
        version=draw(st.sampled_from([479, 0, 300])),
        remark=draw(st.sampled_from([None] * 15 + ["why"])),
    )
    data = bytearray(frame.encode(command))
    if command.code == code and draw(st.integers(0, 9)) == 9:  # a byte of the header is another one
        at = draw(st.integers(8, len(data) - 1))
        data[at] = draw(st.integers(0, 255) | st.sampled_from(list(b'"\\{},: 0u')))
    return bytes(data)


@each_kernel
@settings(deadline=None)
@given(
    st.lists(st.lists(sends(), max_size=6), min_size=1, max_size=4),
    st.lists(st.sampled_from([0, 0, 0, 0, *map(int, PutStatus)]), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from(["10.0.0.1", "fe80::7"]),
)
def test_both_ways_end_in_the_same_bytes(
    kernel: ModuleType, reads: list[list[bytes]], statuses: list[int], sync: bool, host: str
) -> None:
    """Requests, answers, what is counted, what waits for the sync."""
    common, slow = Way(kernel, sync=sync, host=host), Way(kernel, sync=sync, host=host)
    common.know("t", "multi", "%DLQ%g", "compact", "batches", "%RETRY%g", "no", "SCHEDULE_TOPIC_XXXX")
    ways = (common, slow)
    for frames in reads:
        ends = [way.feed(b"".join(frames), way is common) for way in ways]
        assert ends[0] == ends[1]
        for way in ways:
            way.write(statuses)
            way.sends.collect(1_000)
            way.sends.acknowledge(way.log_end - 3 * RECORD_BYTES)
        assert common.stored == slow.stored
        assert common.sends.wanted_flushed == slow.sends.wanted_flushed
        assert common.sends.wake_at_ns() == slow.sends.wake_at_ns()
        assert common.sends.counts == slow.sends.counts
        assert common.sends.idle == slow.sends.idle
    for way in ways:
        way.sends.expire(1_000_000)
    assert common.link.frames() == slow.link.frames()


def request(number: int = 1, serialize: Serialize = Serialize.JSON, **changes: str) -> bytes:
    """Return a send as an official client writes it."""
    fields = {
        "a": "pg", "b": "t", "c": "TBW102", "d": "4", "e": "1", "f": "0", "g": "1700000000000", "h": "0",
        "i": f"UNIQ_KEY\x017F{number:030X}\x02WAIT\x01true\x02TAGS\x01x\x02",
        "j": "0", "k": "false", "m": "false",
    }  # fmt: skip
    return frame.encode(
        RemotingCommand(code=310, opaque=number, fields=fields | changes, body=b"body", serialize=serialize)
    )


@each_kernel
@pytest.mark.parametrize("serialize", list(Serialize))
def test_what_official_clients_send_is_common(kernel: ModuleType, serialize: Serialize) -> None:
    """Otherwise the test above would compare the long way with itself."""
    way = Way(kernel)
    way.know("t")
    stream = memoryview(bytearray(b"".join(request(number, serialize) for number in range(20))))
    places, used, bad = way.sends.take(way.client, stream, len(stream), 1 << 20)
    assert (places, used, bad) == ([], len(stream), -1)
    assert way.path.unanswered == 20


@each_kernel
@pytest.mark.parametrize("serialize", list(Serialize))
@pytest.mark.parametrize("common", [True, False])
def test_who_wants_no_ids_gets_none(kernel: ModuleType, serialize: Serialize, common: bool) -> None:
    """Everything else in the answer is as always; both ways, single or batch."""
    fields = []
    for changes in ({}, {"noIds": "true"}, {"m": "true", "noIds": "true"}):
        way = Way(kernel)
        way.know("t")
        way.feed(request(7, serialize, **changes), common)
        assert way.path.unanswered == int(common)
        way.write([0])
        way.sends.collect(0)
        (answer,) = way.link.frames()
        fields.append(frame.decode(answer).fields)
    usual, bare, batch_bare = fields
    assert len(usual.pop("msgId")) == 32
    assert usual == bare == batch_bare


@each_kernel
def test_behind_an_uncommon_send_nothing_is_taken(kernel: ModuleType) -> None:
    """Sends of one connection keep their order; what is no send is passed over."""
    way = Way(kernel)
    way.know("t")
    other = frame.encode(RemotingCommand(code=34, opaque=1, fields={}))
    parts = [request(1), other, request(2), request(3, e="-1"), request(4), b"\0\0"]
    stream = memoryview(bytearray(b"".join(parts)))
    places, used, _ = way.sends.take(way.client, stream, len(stream), 1 << 20)
    assert [bytes(stream[start - 4 : end]) for start, end in places] == [other, parts[3], parts[4]]
    assert used == len(stream) - 2
    assert way.path.unanswered == 2


@each_kernel
def test_behind_waiting_sends_nothing_is_taken(kernel: ModuleType) -> None:
    """A full ring makes sends wait in their order, also those of later reads."""
    way = Way(kernel, ring=512)
    way.know("t")
    for number in range(1, 6):
        way.feed(request(number), True)
    assert len(way.requests.take()) == 2
    way.requests.release()
    way.feed(request(6), True)
    way.sends.retry_line(0)
    taken = [bytes(unpack_request(entry).properties) for entry in way.requests.take()]
    assert [text[40] for text in taken] == [ord("3"), ord("4")]


@each_kernel
def test_a_changed_table_is_asked_again(kernel: ModuleType) -> None:
    """A topic that is gone, or another one by now, is not taken on what was known of it."""
    way = Way(kernel)
    way.know("t")
    way.sends.tables_changed()
    stream = memoryview(bytearray(request()))
    places, _, _ = way.sends.take(way.client, stream, len(stream), 1 << 20)
    assert len(places) == 1


@each_kernel
def test_no_more_than_there_are_slots(kernel: ModuleType) -> None:
    """Requests that wait for the sync keep their slots; the next go the long way."""
    way = Way(kernel, sync=True, slots=4)
    way.know("t")
    stream = b"".join(request(number) for number in range(6))
    way.feed(stream, True)
    assert way.path.unanswered == 4
    way.write([0])
    way.sends.collect(0)
    assert way.path.unanswered == 4
    assert not way.link.sent
    way.sends.acknowledge(way.log_end)
    assert len(way.link.frames()) == 6
    assert way.sends.idle


@each_kernel
def test_a_header_and_a_body_that_came_apart(kernel: ModuleType) -> None:
    """Native clients' messages: the same request as from one frame."""
    parts, whole = Way(kernel), Way(kernel)
    for way in (parts, whole):
        way.know("t")
    data = request()
    assert parts.sends.take_parts(parts.client, data[4:-4], b"body")
    assert not parts.sends.take_parts(parts.client, data[4:-4], b"")
    whole.feed(data, True)
    for way in (parts, whole):
        way.write([0])
    assert parts.stored == whole.stored


def test_where_access_is_controlled_every_send_is_looked_at(tmp_path: Path) -> None:
    """Nothing is taken behind the back of who decides, however often he has agreed."""
    rig = Rig(tmp_path)
    rig.add_topic("t", 4)
    peer = TcpPeer(rig)
    asked: list[int] = []
    rig.gateway.authorise = lambda client, description, command: asked.append(command.code)
    try:
        for number in range(3):
            assert peer.ask(send_request(properties=f"UNIQ_KEY\x01U{number}\x02")).code == 0
    finally:
        peer.close()
        rig.close()
    assert asked == [310] * 3
