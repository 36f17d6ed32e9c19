"""The client's end of a port to the writer: what goes in comes out, and full means wait."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from actormq.kernels.rings import DATA, RingConsumer, RingProducer, ring_init
from actormq.shm.append_port import (
    COMPLETION,
    KIND_COPY,
    AppendPort,
    Completion,
    outstanding_max,
    unpack_request,
)

HOST = bytes([127, 0, 0, 1, 0, 0, 42, 159])


def new_ring(capacity: int) -> memoryview:
    ring = memoryview(bytearray(DATA + capacity))
    ring_init(ring)
    return ring


@dataclass
class FakePort:
    """The two rings of a port, in private memory."""

    request_capacity: int = 4096
    completion_capacity: int = 1024
    requests: memoryview = field(init=False)
    completions: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self.requests = new_ring(self.request_capacity)
        self.completions = new_ring(self.completion_capacity)


@dataclass
class FakeDoorbell:
    rung: int = 0

    def ring(self) -> None:
        self.rung += 1


def new_port(**sizes: int) -> tuple[FakePort, FakeDoorbell, AppendPort]:
    port, doorbell = FakePort(**sizes), FakeDoorbell()
    return port, doorbell, AppendPort(port, doorbell)  # type: ignore[arg-type]


def append(port: AppendPort, ticket: int, body: bytes = b"body") -> bool:
    return port.try_append(
        ticket, row=1, row_incarnation=2, queue_id=3, topic=b"topic", properties=b"", body=body, flag=0,
        sys_flag=0, reconsume_times=0, born_timestamp=0, born_host=HOST,
    )  # fmt: skip


@given(
    ticket=st.integers(0, 2**64 - 1),
    row=st.integers(0, 2**32 - 1),
    queue_id=st.integers(-(2**31), 2**31 - 1),
    flags=st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 3),
    times=st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 3),
    texts=st.tuples(*[st.binary(max_size=300)] * 3),
)
def test_request_arrives_as_it_was_given(
    ticket: int,
    row: int,
    queue_id: int,
    flags: tuple[int, ...],
    times: tuple[int, ...],
    texts: tuple[bytes, ...],
) -> None:
    """Every field of `try_append` is read back by `unpack_request`, and by the layout of the contract."""
    raw, _, port = new_port()
    topic, properties, body = texts
    assert port.try_append(
        ticket, row=row, row_incarnation=7, queue_id=queue_id, topic=topic, properties=properties, body=body,
        flag=flags[0], sys_flag=flags[1], reconsume_times=flags[2], born_timestamp=times[0], born_host=HOST,
        count=9, kind=2, prepared_offset=times[1], body_ref=times[2],
    )  # fmt: skip
    (entry,) = RingConsumer(raw.requests).take()
    asked = unpack_request(entry)
    assert asked[:13] == (ticket, row, 7, queue_id, 2, 9, *flags, *times, len(body))
    assert [bytes(part) for part in asked[13:]] == [HOST, topic, properties, body]
    assert bytes(entry[64:72]) == (
        len(topic).to_bytes(2, "little") + len(properties).to_bytes(2, "little") + b"\x08\0\0\0"
    )


def test_copied_body_travels_as_a_place_in_the_log() -> None:
    raw, _, port = new_port()
    assert port.try_append(
        1, row=1, row_incarnation=2, queue_id=3, topic=b"t", properties=b"", body=b"", flag=0, sys_flag=0,
        reconsume_times=1, born_timestamp=0, born_host=HOST, kind=KIND_COPY, body_ref=4711, body_bytes=100,
    )  # fmt: skip
    asked = unpack_request(RingConsumer(raw.requests).take()[0])
    assert (asked.kind, asked.body_ref, asked.body_bytes, bytes(asked.body)) == (3, 4711, 100, b"")


def test_full_ring_is_refused_and_rung() -> None:
    """A full ring is no error: the caller keeps the message, and the writer is told."""
    raw, doorbell, port = new_port(request_capacity=256)
    assert append(port, 1)
    assert append(port, 2)
    port.flush()
    assert not append(port, 3)
    port.flush()
    assert doorbell.rung == 2
    consumer = RingConsumer(raw.requests)
    assert [unpack_request(entry).ticket for entry in consumer.take()] == [1, 2]
    consumer.release()
    assert append(port, 3)


def test_flush_rings_once_for_all_that_was_appended() -> None:
    _, doorbell, port = new_port()
    port.flush()
    assert doorbell.rung == 0
    append(port, 1)
    append(port, 2)
    port.flush()
    port.flush()
    assert doorbell.rung == 1


def test_completions_come_out_of_entries_of_any_length() -> None:
    """The writer may publish one completion an entry, or all of a batch in one."""
    raw, _, port = new_port()
    for ticket in range(4):
        append(port, ticket)
    done = [Completion(ticket, 0, 1, ticket * 100, ticket * 100 + 100, ticket, 77) for ticket in range(4)]
    packed = [COMPLETION.pack(*completion) for completion in done]
    writer = RingProducer(raw.completions)
    writer.try_push(packed[0])
    writer.try_push(*packed[1:])
    assert port.outstanding == 4
    assert port.completions() == done
    assert port.completions() == []
    assert port.outstanding == 0
    assert RingProducer(raw.completions).free_bytes == raw.completion_capacity


def test_never_more_unanswered_than_completions_fit() -> None:
    """Completions of all that is unanswered fit into their ring, whatever its position and the grouping."""
    raw, _, port = new_port(request_capacity=1 << 16, completion_capacity=512)
    writer = RingProducer(raw.completions)
    ticket = 0
    for _ in range(50):
        while append(port, ticket):
            ticket += 1
        assert port.outstanding == outstanding_max(512)
        requests = RingConsumer(raw.requests)
        for entry in requests.take():
            answer = Completion(unpack_request(entry).ticket, 0, 1, 0, 1, 0, 0)
            assert writer.try_push(COMPLETION.pack(*answer))
        requests.release()
        assert len(port.completions()) == outstanding_max(512)
