"""The control line: whole messages with their descriptors, however the bytes arrive."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.actors import control
from actormq.config import BrokerConfig, FlushMode, NameServerConfig, StoreConfig


def lines(accepts: object = control.ToRole) -> tuple[control.Line, control.Line]:
    left, right = control.line_pair()
    return control.Line(left, control.FromRole), control.Line(right, accepts)


def test_messages_arrive_with_their_descriptors() -> None:
    """Each message has its own descriptors, in order, even when many arrive at once."""
    ours, theirs = lines()
    readers = []
    for number in range(5):
        reader, writer = os.pipe()
        readers.append(reader)
        ours.send(control.PortOpened(kind=str(number), client="c", incarnation=number), [writer])
        ours.send(control.Stop())
        os.close(writer)
    received = theirs.receive()
    assert [type(message).__name__ for message, _ in received] == ["PortOpened", "Stop"] * 5
    for (message, fds), reader in zip(received[::2], readers, strict=True):
        os.write(fds[0], message.kind.encode())
        assert os.read(reader, 10) == message.kind.encode()
        assert not os.get_inheritable(fds[0])
        os.close(fds[0])
        os.close(reader)
    ours.close()
    theirs.close()


def test_other_sides_end_is_seen() -> None:
    """`ended` after the last message was handed out; `at_end` sees it before anything is read."""
    ours, theirs = lines()
    ours.send(control.Stop())
    assert not theirs.at_end()
    ours.close()
    assert theirs.at_end()
    assert [message for message, _ in theirs.receive()] == [control.Stop()]
    assert theirs.ended
    theirs.close()


def test_full_line_never_blocks_and_loses_nothing() -> None:
    """A side that does not read: the rest waits for `flush`, descriptors included."""
    ours, theirs = lines()
    sent = 0
    while not ours.unsent:
        ours.send(control.RoleChanged(role="x" * 1000, incarnation=sent))
        sent += 1
    reader, writer = os.pipe()
    ours.send(control.PortOpened(kind="k", client="c", incarnation=sent), [writer])
    os.close(writer)
    received = []
    while ours.unsent or len(received) <= sent:
        received += theirs.receive()
        ours.flush()
    assert [message.incarnation for message, _ in received] == list(range(sent + 1))
    assert len(received[-1][1]) == 1
    os.close(received[-1][1][0])
    os.close(reader)
    ours.close()
    theirs.close()


def test_sending_to_the_dead_is_no_error() -> None:
    """The other side is gone: what is sent is dropped, nothing leaks."""
    ours, theirs = lines()
    theirs.close()
    before = len(os.listdir("/proc/self/fd"))
    reader, writer = os.pipe()
    for _ in range(3):
        ours.send(control.PortOpened(kind="k", client="c", incarnation=1), [writer])
    assert not ours.unsent
    os.close(reader)
    os.close(writer)
    assert len(os.listdir("/proc/self/fd")) == before
    ours.close()


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_frames_read_alike_however_chunked(sizes: list[int]) -> None:
    """Bytes cut anywhere give the same messages."""
    left, right = control.line_pair()
    line = control.Line(right, control.ToRole)
    sender = control.Line(left, control.FromRole)
    captured = bytearray()
    capture_left, capture_right = socket.socketpair()
    recorder = control.Line(capture_left, control.FromRole)
    for number in range(5):
        recorder.send(control.RoleChanged(role="holder", incarnation=number))
    captured += capture_right.recv(65_536)
    received = []
    position = 0
    for size in sizes * (len(captured) // sum(sizes) + 1):
        left.send(captured[position : position + size])
        position += size
        received += line.receive()
        if position >= len(captured):
            break
    assert [message.incarnation for message, _ in received] == list(range(5))
    for end in (line, sender, recorder):
        end.close()
    capture_right.close()


@pytest.mark.parametrize(
    "junk",
    [
        control.FRAME.pack(1 << 30, 0),
        control.FRAME.pack(1, 251),
        control.FRAME.pack(1, 1) + b"\x80",
        control.FRAME.pack(1, 0) + b"\xc1",
        control.FRAME.pack(1, 0) + b"\x80",
    ],
)
def test_junk_is_refused(junk: bytes) -> None:
    """Too long, too many or missing descriptors, no msgpack, no message: LineBroken."""
    left, right = control.line_pair()
    line = control.Line(right, control.ToRole)
    left.send(junk)
    with pytest.raises(control.LineBroken):
        line.receive()
    line.close()
    left.close()


def test_settings_survive_the_way_to_a_role(tmp_path: Path) -> None:
    """Every setting, paths and enumerations included, is the same on the other side."""
    config = BrokerConfig(
        store=StoreConfig(root=tmp_path, flush=FlushMode.SYNC, log_file_bytes=1 << 26),
        name="b",
        namesrv=NameServerConfig(port=0, kv_path=tmp_path / "kv"),
        namesrv_addrs=("a:1", "b:2"),
        log_path=tmp_path / "log",
        other_keys={"x": "y"},
    )
    assert control.decode_config(control.encode_config(config)) == config
