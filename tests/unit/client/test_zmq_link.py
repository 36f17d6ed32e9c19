"""What the ZeroMQ link makes of a message's parts."""

from __future__ import annotations

from random import Random

import pytest
import zmq

from actormq.client.zmq_link import _receive_body


@pytest.mark.parametrize("sizes", [[], [0], [1], [32 * 1024 - 1], [32 * 1024], [500_000], [0, 1, 70_000, 5]])
def test_a_body_of_any_size_in_any_number_of_parts(sizes: list[int]) -> None:
    """Long ones are not copied; the next message is another one."""
    source = Random(1)
    parts = [source.randbytes(size) for size in sizes]
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://here")
        other.connect("inproc://here")
        for _ in range(2):
            one.send_multipart([b"header", *parts])
            assert other.recv() == b"header"
            body = _receive_body(other)
            assert bytes(body) == b"".join(parts)
            assert isinstance(body, memoryview) == (len(sizes) == 1 and sizes[0] >= 32 * 1024)
            del body
