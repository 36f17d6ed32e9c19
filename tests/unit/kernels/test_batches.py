"""The writer's kernel against a slow and obvious writer, compiled and uncompiled."""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_twins import each_of, twins

from actormq.kernels.rings import DATA, RingConsumer, RingProducer, ring_init
from actormq.shm.append_port import COMPLETION, REQUEST, Completion, unpack_request

KERNELS = twins("batches")
each_kernel = each_of(KERNELS)

HOST = bytes([127, 0, 0, 1, 0, 0, 42, 159])
HOST_V6 = bytes(range(16)) + bytes([0, 0, 42, 159])
FILE_BYTES = 1 << 20
BODY_MAX = 64 * 1024
ROWS = 8
STORE_TIMESTAMP = 1_700_000_000_123


def new_ring(capacity: int, turned: int = 0) -> memoryview:
    """Return an empty ring whose positions stand at `turned`."""
    ring = memoryview(bytearray(DATA + capacity))
    ring_init(ring)
    cells = ring.cast("Q")
    cells[0] = cells[8] = turned
    return ring


class Rig:
    """A port, an extents table and an encoder: what the writer holds."""

    def __init__(
        self,
        kernel: Any,
        *,
        store_host: bytes = HOST,
        batch_bytes: int = 1 << 18,
        request_capacity: int = 1 << 18,
        completion_capacity: int = 4096,
        turned: int = 0,
        record_crc: bool = False,
    ) -> None:
        self.kernel = kernel
        self.requests = new_ring(request_capacity, turned)
        self.completions = new_ring(completion_capacity, turned)
        self.producer = RingProducer(self.requests)
        self.rows = memoryview(bytearray(64 * ROWS))
        for row in range(ROWS):
            self.rows.cast("Q")[8 * row] = row + 1
            self.rows.cast("Q")[8 * row + 2] = 100 * row
        self.log: dict[int, bytes] = {}
        self.encoder = kernel.BatchEncoder(
            self.rows,
            store_host=store_host,
            body_bytes_max=BODY_MAX,
            file_bytes=FILE_BYTES,
            batch_bytes=batch_bytes,
            read_log=lambda offset, size: self.log.get(offset),
            record_crc=record_crc,
        )
        self.head = self.tail = turned
        self.begin()

    def begin(self, log_start: int = 0, file_end: int = FILE_BYTES, refusal: int = 0) -> None:
        self.encoder.begin(log_start, file_end, 1 << 40, STORE_TIMESTAMP, refusal)

    def take(self, share_bytes: int = 1 << 30, discard: bool = False) -> tuple[int, int]:
        """Take once and publish what a writer would: return (answered, stop)."""
        self.head, self.tail, answered, stop = self.encoder.take(
            self.requests, self.head, self.completions, self.tail, share_bytes, discard
        )
        self.completions.cast("Q")[8] = self.tail
        self.requests.cast("Q")[0] = self.head
        return answered, stop

    def answers(self) -> list[Completion]:
        consumer = RingConsumer(self.completions)
        found = [Completion(*fields) for entry in consumer.take() for fields in COMPLETION.iter_unpack(entry)]
        consumer.release()
        return found


def request(
    ticket: int = 1,
    *,
    row: int = 1,
    incarnation: int | None = None,
    queue_id: int = 3,
    kind: int = 1,
    flag: int = 0,
    sys_flag: int = 0,
    reconsume_times: int = 0,
    body: bytes = b"body",
    body_bytes: int | None = None,
    born_timestamp: int = 5,
    prepared_offset: int = 0,
    body_ref: int = 0,
    topic: bytes = b"topic",
    properties: bytes = b"",
    born_host: bytes = HOST,
) -> bytes:
    header = REQUEST.pack(
        ticket, row, row + 1 if incarnation is None else incarnation, queue_id, kind, 1, flag, sys_flag,
        reconsume_times, len(body) if body_bytes is None else body_bytes, born_timestamp, prepared_offset,
        body_ref, len(topic), len(properties), len(born_host), 0, 0,
    )  # fmt: skip
    return header + born_host + topic + properties + body


def item(body: bytes, properties: bytes = b"", flag: int = 0) -> bytes:
    """One item of a RocketMQ batch body."""
    size = 22 + len(body) + len(properties)
    return (
        struct.pack(">iiiii", size, 0, 0, flag, len(body))
        + body
        + struct.pack(">h", len(properties))
        + properties
    )


def naive_record(
    entry: bytes,
    body: bytes,
    properties: bytes,
    flag: int,
    queue_offset: int,
    log_offset: int,
    store_host: bytes,
    record_crc: bool = False,
) -> bytes:
    """One record by the book (storage reference §2.1, §2.4)."""
    if record_crc:
        properties += (b"\x02" if properties and not properties.endswith(b"\x02") else b"") + bytes(20)
    asked = unpack_request(memoryview(entry))
    sys_flag = asked.sys_flag & ~0x30
    sys_flag |= (0x10 if len(asked.born_host) == 20 else 0) | (0x20 if len(store_host) == 20 else 0)
    topic = bytes(asked.topic)
    tail = (
        bytes(asked.born_host)
        + struct.pack(">q", STORE_TIMESTAMP)
        + store_host
        + struct.pack(
            ">iqi", asked.reconsume_times, asked.prepared_offset if asked.kind != 2 else 0, len(body)
        )
        + body
        + (struct.pack(">B", len(topic)) if len(topic) <= 127 else struct.pack(">h", len(topic)))
        + topic
        + struct.pack(">h", len(properties))
        + properties
    )
    crc = zlib.crc32(body) & 0x7FFFFFFF if body else 0
    magic = 0xDAA320A7 if len(topic) <= 127 else 0xDAA320AB
    record = struct.pack(
        ">iIiiiqqiq", 48 + len(tail), magic, crc, asked.queue_id, flag, queue_offset, log_offset, sys_flag,
        asked.born_timestamp,
    ) + tail  # fmt: skip
    if record_crc:
        digits = b"%010d" % (zlib.crc32(record[:-20]) & 0x7FFFFFFF)
        record = record[:-20] + b"__CRC32#\x01" + digits[::-1] + b"\x02"
    return record


def without_crc(properties: bytes) -> bytes:
    """Properties without what claims to be a record's CRC."""
    items = re.findall(rb"[^\x02]*\x02|[^\x02]+\Z", properties)
    return b"".join(one for one in items if not one.startswith(b"__CRC32#\x01"))


def naive_items(entry: bytes) -> list[tuple[bytes, bytes, int]]:
    """(body, properties, flag) of the messages in a well-formed request."""
    asked = unpack_request(memoryview(entry))
    own = without_crc(bytes(asked.properties))
    if asked.kind != 2:
        return [(bytes(asked.body), own, asked.flag)]
    found = []
    body, at = bytes(asked.body), 0
    while at < len(body):
        size, _, _, flag, length = struct.unpack_from(">iiiii", body, at)
        properties = without_crc(body[at + 22 + length : at + size])
        between = b"\x02" if own and properties and not properties.endswith(b"\x02") else b""
        found.append((body[at + 20 : at + 20 + length], properties + between + own, flag))
        at += size
    return found


class NaiveWriter:
    """Takes one request after the other."""

    def __init__(self, store_host: bytes, log_start: int, record_crc: bool) -> None:
        self.record_crc = record_crc
        self.store_host = store_host
        self.log_start = log_start
        self.log = b""
        self.next = {row: 100 * row for row in range(ROWS)}

    def append(self, entry: bytes) -> Completion:
        asked = unpack_request(memoryview(entry))
        start = self.log_start + len(self.log)
        prepared = asked.kind != 2 and asked.sys_flag & 0xC in (0x4, 0xC)
        first = 0 if prepared else self.next[asked.row]
        items = naive_items(entry)
        for number, (body, properties, flag) in enumerate(items):
            at = self.log_start + len(self.log)
            self.log += naive_record(
                entry, body, properties, flag, first + number, at, self.store_host, self.record_crc
            )
        if not prepared:
            self.next[asked.row] += len(items)
        return Completion(
            asked.ticket, 0, len(items), start, self.log_start + len(self.log), first, STORE_TIMESTAMP
        )


hosts = st.sampled_from([HOST, HOST_V6])
texts = st.sampled_from(
    [
        b"",
        b"KEYS\x01k\x02",
        b"TAGS\x01a",
        b"A\x01\xc3\xa4\x02B\x012\x02",
        b"__CRC32#\x012147483647\x02",
        b"A\x01#\x02__CRC32#\x010000000000\x02X__CRC32#\x01kept\x02__CRC32#\x02",
        b"A\x011\x02__CRC32#\x01cut",
    ]
)
singles = st.builds(
    request,
    st.integers(0, 2**64 - 1),
    row=st.integers(0, ROWS - 1),
    queue_id=st.integers(0, 2**31 - 1),
    flag=st.integers(-(2**31), 2**31 - 1),
    sys_flag=st.integers(0, 0x7FF),
    reconsume_times=st.integers(0, 20),
    body=st.binary(max_size=300),
    born_timestamp=st.integers(-1, 2**62),
    prepared_offset=st.integers(0, 2**62),
    topic=st.sampled_from([b"t", b"%RETRY%" + b"g" * 120, b"x" * 127, b"x" * 128, b"x" * 255]),
    properties=texts,
    born_host=hosts,
)
batches = st.builds(
    lambda items, **rest: request(kind=2, body=b"".join(items), **rest),
    st.lists(
        st.builds(item, st.binary(max_size=50), texts, st.integers(-(2**31), 2**31 - 1)),
        min_size=1,
        max_size=8,
    ),
    ticket=st.integers(0, 2**64 - 1),
    row=st.integers(0, ROWS - 1),
    sys_flag=st.sampled_from([0, 1]),
    properties=texts,
    born_host=hosts,
)


@each_kernel
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    entries=st.lists(st.one_of(singles, batches), max_size=40),
    store_host=hosts,
    turned=st.integers(0, 600).map(lambda n: n * 8),
    log_start=st.integers(0, 2**50),
    record_crc=st.booleans(),
)
def test_encodes_like_a_naive_writer(
    kernel: Any, entries: list[bytes], store_host: bytes, turned: int, log_start: int, record_crc: bool
) -> None:
    """Whatever is asked for, records and completions are those of a writer that takes one after the other."""
    rig = Rig(kernel, store_host=store_host, turned=turned, record_crc=record_crc)
    rig.begin(log_start, log_start + FILE_BYTES)
    naive = NaiveWriter(store_host, log_start, record_crc)
    for entry in entries:
        assert rig.producer.try_push(entry)
    expected = [naive.append(entry) for entry in entries]
    answered = 0
    while answered < len(entries):
        more, _ = rig.take()
        assert more > 0
        answered += more
    assert bytes(rig.encoder.records) == naive.log
    assert rig.answers() == expected
    assert rig.encoder.count == sum(done.count for done in expected)


damaged_batches = st.builds(
    lambda first, rest: first + rest, st.builds(item, st.binary(max_size=9)), st.binary(max_size=30)
)


@settings(max_examples=100, deadline=None)
@given(
    noise=st.binary(min_size=1, max_size=120),
    at=st.integers(0, 71),
    kind=st.integers(0, 5),
    body=st.one_of(st.binary(max_size=100), damaged_batches),
)
def test_survives_any_request(noise: bytes, at: int, kind: int, body: bytes) -> None:
    """A damaged request is answered, harms nobody else's, and both kernels answer it alike."""
    entry = bytearray(request(kind=kind, body=body))
    entry[8 + at : 8 + at + len(noise)] = noise
    results = []
    for mode in KERNELS:
        rig = Rig(mode)
        rig.producer.try_push(bytes(entry))
        rig.producer.try_push(request(2, row=2))
        taken = (rig.take(), rig.take())
        results.append((taken, rig.answers(), bytes(rig.encoder.records)))
    assert all(result == results[0] for result in results)
    answers = results[0][1]
    assert answers[-1].ticket == 2
    assert answers[-1].status == 0


@each_kernel
class TestRefusals:
    @pytest.mark.parametrize(
        ("entry", "status"),
        [
            (request(topic=b""), 1),
            (request(topic=b"x" * 256), 1),
            (request(body=b"", body_bytes=4), 1),
            (request(kind=0), 1),
            (request(kind=4), 1),
            (request(born_host=b"1234"), 1),
            (request(body=b"x" * (BODY_MAX + 1)), 1),
            (request(kind=2, body=b""), 1),
            (request(kind=2, body=item(b"x") + b"\0" * 21), 1),
            (request(kind=2, body=item(b"x")[:-1] + b"\7"), 1),
            (request(kind=2, body=item(b"x" * 30_000) * 2 + item(b"x" * 8000)), 1),
            (request(properties=b"k\x01" + b"v" * 32_766), 2),
            (request(kind=2, body=item(b"", b"k\x01" + b"v" * 32_765), properties=b"a\x01b\x02"), 2),
            (request(incarnation=9), 5),
            (request(incarnation=0), 5),
            (request(row=ROWS, incarnation=1), 5),
            (request(row=2**32 - 1, incarnation=1), 5),
            (request(kind=3, body=b"", body_bytes=4, body_ref=77), 1),
            (request(kind=3, body=b"", body_bytes=4, body_ref=1 << 40), 1),
            (request(kind=3, body=b"", body_bytes=4, body_ref=-1), 1),
        ],
    )
    def test_answers_with_the_reason_and_stores_nothing(self, kernel: Any, entry: bytes, status: int) -> None:
        """Illegal requests are refused whole; the next message takes the queue offset they did not get."""
        rig = Rig(kernel, request_capacity=1 << 18)
        rig.producer.try_push(entry)
        rig.producer.try_push(request(2))
        rig.take()
        refused, stored = rig.answers()
        assert (refused.status, refused.count, refused.log_offset, refused.queue_offset) == (
            status,
            0,
            -1,
            -1,
        )
        assert (stored.status, stored.log_offset, stored.queue_offset) == (0, 0, 100)

    def test_a_records_crc_needs_its_room(self, kernel: Any) -> None:
        """Its 20 bytes, and a 0x02 that the properties lack, count as properties."""
        rig = Rig(kernel, record_crc=True, batch_bytes=1 << 20)
        for extra, closed in ((0, b"\x02"), (1, b"\x02"), (-1, b""), (0, b"")):
            size = 32_767 - 20 + extra
            rig.producer.try_push(request(properties=b"k\x01".ljust(size - len(closed), b"v") + closed))
            rig.take()
        assert [done.status for done in rig.answers()] == [0, 2, 0, 2]

    def test_largest_body_is_stored(self, kernel: Any) -> None:
        rig = Rig(kernel, batch_bytes=4096)
        rig.producer.try_push(request(body=b"x" * BODY_MAX))
        assert rig.take()[0] == 1
        assert rig.answers()[0].status == 0
        assert rig.encoder.size == 91 + 5 + BODY_MAX


@each_kernel
class TestLimits:
    def test_file_end_stops_the_batch(self, kernel: Any) -> None:
        """A record that leaves no room for the blank record belongs to the next file."""
        size = len(naive_record(request(), b"body", b"", 0, 0, 0, HOST))
        for room, fits in ((size + 8, True), (size + 7, False)):
            rig = Rig(kernel)
            rig.begin(FILE_BYTES - room)
            rig.producer.try_push(request())
            answered, stop = rig.take()
            assert (answered, stop) == ((1, 1) if fits else (0, kernel.Stop.FILE_FULL))

    @pytest.mark.parametrize("refusal", [3, 4])
    def test_refuses_where_no_file_follows_but_stores_what_still_fits(
        self, kernel: Any, refusal: int
    ) -> None:
        rig = Rig(kernel)
        rig.begin(FILE_BYTES - 1000, refusal=refusal)
        rig.producer.try_push(request(1, body=b"x" * 1000))
        rig.producer.try_push(request(2))
        assert rig.take() == (2, kernel.Stop.DRAINED)
        assert [(done.ticket, done.status, done.queue_offset) for done in rig.answers()] == [
            (1, refusal, -1),
            (2, 0, 100),
        ]

    def test_batch_of_one_request_is_never_split(self, kernel: Any) -> None:
        rig = Rig(kernel)
        rig.begin(FILE_BYTES - 500)
        rig.producer.try_push(request(1, kind=2, body=item(b"x" * 100) * 4))
        assert rig.take() == (0, kernel.Stop.FILE_FULL)
        rig.begin(FILE_BYTES, 2 * FILE_BYTES)
        assert rig.take() == (1, kernel.Stop.DRAINED)
        assert (rig.answers()[0].count, rig.encoder.count) == (4, 4)

    def test_full_buffer_leaves_the_rest_for_the_next_batch(self, kernel: Any) -> None:
        rig = Rig(kernel, batch_bytes=1000)
        for ticket in range(20):
            rig.producer.try_push(request(ticket))
        start, tickets, batches = 0, [], 0
        while len(tickets) < 20:
            rig.begin(start)
            _, stop = rig.take()
            assert 0 < rig.encoder.size <= 1000
            start += rig.encoder.size
            done = rig.answers()
            tickets += [answer.ticket for answer in done]
            batches += 1
            assert stop == (kernel.Stop.BUFFER_FULL if len(tickets) < 20 else kernel.Stop.DRAINED)
        assert tickets == list(range(20))
        assert batches == 2

    def test_share_ends_a_ports_turn(self, kernel: Any) -> None:
        """A port gets its share of the batch, and one message at least, however large."""
        rig = Rig(kernel)
        for ticket in range(10):
            rig.producer.try_push(request(ticket))
        assert rig.take(share_bytes=1) == (1, kernel.Stop.DRAINED)
        assert rig.take(share_bytes=250) == (3, kernel.Stop.DRAINED)

    def test_full_completion_ring_stops_this_port(self, kernel: Any) -> None:
        """Requests wait until the client takes its completions; nothing is lost or answered twice."""
        rig = Rig(kernel, completion_capacity=512, turned=8 * 41)
        for ticket in range(200):
            rig.producer.try_push(request(ticket))
        tickets: list[int] = []
        stops = set()
        while len(tickets) < 200:
            _, stop = rig.take()
            stops.add(stop)
            tickets += [done.ticket for done in rig.answers()]
        assert tickets == list(range(200))
        assert kernel.Stop.COMPLETIONS_FULL in stops

    def test_dead_clients_completions_are_overwritten(self, kernel: Any) -> None:
        rig = Rig(kernel, completion_capacity=512)
        for ticket in range(200):
            rig.producer.try_push(request(ticket))
        taken = 0
        while taken < 200:
            answered, _ = rig.take(discard=True)
            assert answered > 0
            taken += answered
        assert rig.encoder.count == 200

    def test_nothing_is_visible_before_the_tail_moves(self, kernel: Any) -> None:
        rig = Rig(kernel)
        rig.producer.try_push(request())
        before = rig.completions.cast("Q")[8], rig.requests.cast("Q")[0]
        rig.encoder.take(rig.requests, 0, rig.completions, 0, 1 << 30)
        assert (rig.completions.cast("Q")[8], rig.requests.cast("Q")[0]) == before
        assert rig.answers() == []

    def test_same_batch_again_is_the_same_bytes(self, kernel: Any) -> None:
        """A successor that runs an unpublished batch again, from the extents, writes what was written."""
        rig, again = Rig(kernel), Rig(kernel)
        for ticket in range(5):
            rig.producer.try_push(request(ticket, row=ticket % 2))
            again.producer.try_push(request(ticket, row=ticket % 2))
        rig.take()
        again.take()
        assert bytes(rig.encoder.records) == bytes(again.encoder.records)


@each_kernel
class TestQueueOffsets:
    def test_begins_behind_what_was_dispatched(self, kernel: Any) -> None:
        rig = Rig(kernel)
        rig.producer.try_push(request(row=3))
        rig.take()
        assert rig.answers()[0].queue_offset == 300
        assert rig.encoder.next_queue_offset(3) == (4, 301)

    def test_begins_behind_what_a_scan_found(self, kernel: Any) -> None:
        """After the writer's death the log may hold more than the dispatcher has done."""
        rig = Rig(kernel)
        rig.encoder.resume({(b"topic", 3): (317, 0), (b"topic", 4): (200, 0)})
        rig.producer.try_push(request(row=3, queue_id=3))
        rig.producer.try_push(request(row=3, queue_id=3))
        rig.producer.try_push(request(row=2, queue_id=4))
        rig.producer.try_push(request(row=5, queue_id=5))
        rig.take()
        assert [done.queue_offset for done in rig.answers()] == [317, 318, 200, 500]
        assert not rig.encoder.resuming

    def test_dispatched_beyond_the_scan_wins(self, kernel: Any) -> None:
        rig = Rig(kernel)
        rig.encoder.resume({(b"topic", 3): (250, 0)})
        rig.producer.try_push(request(row=3))
        rig.take()
        assert rig.answers()[0].queue_offset == 300

    def test_records_of_a_deleted_topic_do_not_count(self, kernel: Any) -> None:
        """The scan finds the dead topic's last record; the row says that the new one begins behind it."""
        for last_record, begins in ((4_999, 0), (5_000, 317)):
            rig = Rig(kernel)
            cells = rig.rows.cast("Q")
            cells[26], cells[29] = 0, 5_000
            rig.encoder.resume({(b"topic", 3): (317, last_record)})
            rig.producer.try_push(request(row=3, queue_id=3))
            rig.take()
            assert rig.answers()[0].queue_offset == begins

    def test_topic_made_again_starts_where_its_row_says(self, kernel: Any) -> None:
        rig = Rig(kernel)
        rig.producer.try_push(request(row=3))
        rig.take()
        cells = rig.rows.cast("Q")
        cells[24], cells[26] = 77, 0
        rig.producer.try_push(request(row=3))
        rig.producer.try_push(request(row=3, incarnation=77))
        rig.take()
        assert [(done.status, done.queue_offset) for done in rig.answers()] == [(0, 300), (5, -1), (0, 0)]


@each_kernel
class TestCopies:
    def test_body_comes_from_the_log(self, kernel: Any) -> None:
        rig = Rig(kernel)
        rig.log[4711] = b"the old body"
        entry = request(kind=3, body=b"", body_bytes=12, body_ref=4711)
        rig.producer.try_push(entry)
        rig.take()
        assert rig.answers()[0].status == 0
        assert bytes(rig.encoder.records) == naive_record(entry, b"the old body", b"", 0, 100, 0, HOST)

    def test_empty_body_reads_nothing(self, kernel: Any) -> None:
        rig = Rig(kernel)
        entry = request(kind=3, body=b"", body_bytes=0, body_ref=4711)
        rig.producer.try_push(entry)
        rig.take()
        assert bytes(rig.encoder.records) == naive_record(entry, b"", b"", 0, 100, 0, HOST)

    def test_only_what_was_appended_can_be_copied(self, kernel: Any) -> None:
        rig = Rig(kernel)
        rig.log[100] = b"1234"
        rig.encoder.begin(200, FILE_BYTES, 103, STORE_TIMESTAMP, 0)
        rig.producer.try_push(request(kind=3, body=b"", body_bytes=4, body_ref=100))
        rig.take()
        assert rig.answers()[0].status == 1
