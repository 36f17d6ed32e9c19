"""What a link makes of frames that come, without a socket."""

from __future__ import annotations

from typing import Any

import pytest
from unit.client.fakes import SimLoop

from actormq.client.links import Link, LinkContext
from actormq.client.procedures import Address, JsonFrame
from actormq.errors import ConnectionLost, FrameError
from actormq.wire import frame
from actormq.wire.command import RemotingCommand, Serialize


class Owner:
    def __init__(self) -> None:
        self.asked: list[RemotingCommand] = []

    def on_open(self, link: Link) -> None: ...

    def on_request(self, link: Link, command: RemotingCommand) -> None:
        self.asked.append(command)

    def on_closed(self, link: Link, error: Exception) -> None: ...


class Wire(Link):
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.owner, self.loop = Owner(), SimLoop()
        context = LinkContext(
            loop=self.loop,
            owner=self.owner,
            clock=self.loop.clock,
            connect_timeout_ms=1,
            frame_bytes_max=1_000_000,
            outgoing_bytes_max=1_000_000,
            identity=bytes,
        )
        super().__init__(Address("tcp://here:1"), context)
        self.sent: list[bytes] = []
        self.answers: list[Any] = []

    def _send_frame(self, data: bytes) -> None:
        self.sent.append(data)

    def send(self, command: RemotingCommand) -> None:
        self.sent.append(frame.encode(command))

    def _outgoing_bytes(self) -> int:
        return 0

    def _shut(self) -> None: ...

    def receive(self, data: bytes) -> None:
        self._received_parts(*frame.split(data[4:]))
        self.loop.settle()


def answer(opaque: int, **more: Any) -> RemotingCommand:
    return RemotingCommand(code=0, flag=1, opaque=opaque, fields={"offset": "1"}, **more)


def json_frame(header: bytes) -> bytes:
    return len(header).to_bytes(4, "big") + header


def test_who_asks_by_a_frame_gets_the_header_as_it_came() -> None:
    wire = Wire()
    wire.ask_frame(7, b"request", wire.answers.append)
    assert wire.sent == [b"request"]
    wire.receive(frame.encode(answer(7, body=b"body")))
    [found] = wire.answers
    assert isinstance(found, JsonFrame)
    assert (found.header["opaque"], found.header["extFields"], found.body) == (7, {"offset": "1"}, b"body")
    wire.receive(frame.encode(answer(7)))
    assert len(wire.answers) == 1, "answered once"


def test_an_odd_answer_to_a_frame_is_made_a_command() -> None:
    """A binary header, and JSON as only fastjson writes it."""
    wire = Wire()
    for opaque in (7, 8):
        wire.ask_frame(opaque, b"request", wire.answers.append)
    wire.receive(frame.encode(answer(7, serialize=Serialize.BINARY)))
    wire._received_parts(json_frame(b"{code:0,'flag':1,opaque:8,extFields:{offset:\"1\"},}"), b"")
    wire.loop.settle()
    assert [(one.opaque, one.fields) for one in wire.answers] == [(7, {"offset": "1"}), (8, {"offset": "1"})]
    assert not wire._framed


def test_other_frames_take_their_usual_way_beside() -> None:
    wire, others = Wire(), []
    wire.ask_frame(7, b"request", wire.answers.append)
    wire.ask(RemotingCommand(code=1, opaque=8), others.append)
    wire.receive(frame.encode(answer(8)))
    wire.receive(frame.encode(RemotingCommand(code=40, opaque=7)))
    assert [one.opaque for one in others] == [8]
    assert [one.code for one in wire.owner.asked] == [40], "a request is no answer, whatever its opaque"
    assert wire.answers == []
    for data in (b"[]", b"7", b'{"opaque":[],"flag":1}'):
        with pytest.raises(FrameError):
            wire._received_parts(json_frame(data), b"")


def test_who_asked_by_a_frame_is_told_of_trouble() -> None:
    wire = Wire()
    wire.ask_frame(7, b"request", wire.answers.append)
    wire.fail(ConnectionLost("gone"))
    wire.ask_frame(8, b"request", wire.answers.append)
    wire.loop.settle()
    assert [type(one) for one in wire.answers] == [ConnectionLost, ConnectionLost]
    assert wire.sent == [b"request"]


def test_a_framed_request_that_was_given_up_is_forgotten() -> None:
    wire = Wire()
    wire._last_read_ns = 1
    wire.ask_frame(7, b"request", wire.answers.append)
    wire.give_up(7)
    wire.receive(frame.encode(answer(7)))
    assert wire.answers == []
    assert not wire._framed
