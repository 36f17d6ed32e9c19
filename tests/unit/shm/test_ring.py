"""Ports: two rings in one segment, for one incarnation of the client role."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from actormq.shm.ring import Port, RingConsumer, RingProducer, ring_bytes
from actormq.shm.segment import Segment, SegmentError, sweep


@pytest.fixture
def prefix() -> Iterator[str]:
    name = f"amqt{secrets.token_hex(4)}"
    yield name
    sweep(name)


def test_requests_and_completions_do_not_touch(prefix: str) -> None:
    """Both rings filled to the brim give back what each was given, through another map of the port."""
    client = Port.create(prefix, "append", 1000, 128)
    server = Port(Segment.attach(os.dup(client.segment.fd)))
    requests, completions = RingProducer(client.requests), RingProducer(server.completions)
    sent = 0
    while requests.try_push(b"request!"):
        sent += 1
    answered = 0
    while completions.try_push(b"answer"):
        answered += 1
    assert (sent, answered) == (1024 // 16, 128 // 16)
    assert [bytes(item) for item in RingConsumer(server.requests).take()] == [b"request!"] * sent
    assert [bytes(item) for item in RingConsumer(client.completions).take()] == [b"answer"] * answered


def test_port_survives_the_server(prefix: str) -> None:
    """A new server goes on at what the dead one had not released."""
    port = Port.create(prefix, "append", 256, 256)
    RingProducer(port.requests).try_push(b"one")
    RingProducer(port.requests).try_push(b"two")
    dead = RingConsumer(port.requests)
    dead.take(1)
    dead.release()
    dead.take(1)
    assert [bytes(item) for item in RingConsumer(Port(port.segment).requests).take()] == [b"two"]


def test_other_segments_are_no_ports(prefix: str) -> None:
    """A segment without rings, or with sizes beyond its end, is refused."""
    empty = Segment.create(prefix, "tables", 4096)
    with pytest.raises(SegmentError, match="no port"):
        Port(empty)
    empty.view[:16] = (4096).to_bytes(8, "little") + (64).to_bytes(8, "little")
    with pytest.raises(SegmentError, match="no port"):
        Port(empty)


def test_ring_bytes_round_up() -> None:
    """Rings are whole cache lines."""
    assert ring_bytes(64) == ring_bytes(1) == 192 + 64
    assert ring_bytes(65) == 192 + 128


def test_close_gives_the_memory_back(prefix: str) -> None:
    """After close the segment's descriptor is gone."""
    port = Port.create(prefix, "park", 64, 64)
    fd = port.segment.fd
    port.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
