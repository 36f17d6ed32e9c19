"""The control line: a socket pair between two processes that carries typed messages and descriptors.

One runs between the supervisor and each role, where its end of file is also the role's lifeline,
and one between the supervisor and the forkserver.  Neither side ever blocks on it.
Frame: u32 payload length, u32 number of descriptors, payload (msgpack); the descriptors travel by
SCM_RIGHTS with the frame's first bytes, and are handed out in the order in which they came.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from actormq.config import BrokerConfig

FRAME: Final = struct.Struct("<II")
assert FRAME.size == 8
FRAME_BYTES_MAX: Final = 1 << 20
DESCRIPTORS_MAX: Final = 250
"""Linux passes at most 253 descriptors at once."""
_READ_BYTES: Final = 64 * 1024
_RECEIVE_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_INT_BYTES: Final = array.array("i").itemsize


class Start(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """supervisor → role: who you are.  Descriptors in the order of `names`."""

    role: str
    class_path: str
    slot: int
    incarnation: int
    run_dir: str
    config: bytes
    one_shot: bool
    """Ends by itself when its start is done."""
    names: list[str]
    """What each descriptor is: ``log``, ``segment:positions``, ``doorbell:writer``, ``listener:tcp`` …"""


class PortOpened(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """supervisor → role: a port, one descriptor; ours when `client` is our own name."""

    kind: str
    client: str
    incarnation: int


class PortClosed(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """supervisor → server of a port: that incarnation of the client is dead."""

    kind: str
    client: str
    incarnation: int


class RoleChanged(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """supervisor → all: a role is gone (incarnation 0), or runs again as `incarnation`."""

    role: str
    incarnation: int


class Go(msgspec.Struct, tag=True, frozen=True):
    """supervisor → role: everything that you need was sent; begin."""


class Stop(msgspec.Struct, tag=True, frozen=True):
    """supervisor → role: finish what was begun, then exit with 0."""


class Running(msgspec.Struct, tag=True, frozen=True):
    """role → supervisor: started, serving."""


class StopAsked(msgspec.Struct, tag=True, frozen=True):
    """role → supervisor: somebody sent SIGTERM to this process; it goes on until it is told to stop."""


class StoreBroken(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """role → supervisor: a write or sync of the store failed; one sentence with the file."""

    sentence: str


class Fork(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """supervisor → forkserver: one process more; its end of the control line is the descriptor."""

    role: str
    incarnation: int
    module: str
    early: bool
    """It need not wait until everything else is imported: its own module is enough."""


class Forked(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """forkserver → supervisor: it lives; a pidfd comes with it where the system has them."""

    role: str
    incarnation: int
    pid: int


class Exited(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """forkserver → supervisor: reaped; `status` as of waitpid."""

    pid: int
    status: int


ToRole = Start | PortOpened | PortClosed | RoleChanged | Go | Stop
FromRole = Running | StopAsked | StoreBroken
ToForkserver = Fork
FromForkserver = Forked | Exited


class LineBroken(ConnectionError):
    """The other side sent what is no frame."""


class Line:
    """One end of a control line.

    Args:
        sock: a connected unix stream socket; made non-blocking, owned from now on.
        accepts: the union of messages that the other side may send.
    """

    def __init__(self, sock: socket.socket, accepts: Any) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(accepts)
        self._encoder = msgspec.msgpack.Encoder()
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self.ended = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Send, or keep for `flush` when the other side does not read; a dead other side is no error.

        The descriptors are duplicated: the caller may close its own at once.
        """
        assert len(descriptors) <= DESCRIPTORS_MAX
        payload = self._encoder.encode(message)
        frame = memoryview(FRAME.pack(len(payload), len(descriptors)) + payload)
        self._unsent.append((frame, [os.dup(descriptor) for descriptor in descriptors]))
        self.flush()

    @property
    def unsent(self) -> bool:
        """Whether something waits for the other side to read."""
        return bool(self._unsent)

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        while self._unsent:
            frame, descriptors = self._unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
            try:
                sent = self._sock.sendmsg([frame], rights if descriptors else [])
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self._drop_unsent()
                return
            _close_all(descriptors)
            if sent == len(frame):
                self._unsent.popleft()
            else:
                self._unsent[0] = (frame[sent:], [])

    def receive(self) -> list[tuple[Any, list[int]]]:
        """Return the messages that are there, each with its descriptors; sets `ended` at end of file.

        Raises:
            LineBroken: bytes that are no frame, or no message that we accept.
        """
        while not self.ended and self._read():
            pass
        messages = []
        while (frame := self._next_frame()) is not None:
            messages.append(frame)
        return messages

    def at_end(self) -> bool:
        """Whether the other side is gone, without reading: true even where unread messages wait."""
        poller = select.poll()
        poller.register(self._sock, 0)
        return bool(poller.poll(0))

    def close(self) -> None:
        self._drop_unsent()
        _close_all(self._descriptors)
        self._descriptors.clear()
        self._sock.close()

    def _read(self) -> bool:
        space = socket.CMSG_SPACE(DESCRIPTORS_MAX * _INT_BYTES)
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ_BYTES, space, _RECEIVE_FLAGS)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data, ancillary = b"", []
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(rights[: len(rights) - len(rights) % _INT_BYTES])
                self._descriptors.extend(received)
        self._received += data
        self.ended = not data
        return bool(data)

    def _next_frame(self) -> tuple[Any, list[int]] | None:
        if len(self._received) < FRAME.size:
            return None
        length, count = FRAME.unpack_from(self._received)
        if length > FRAME_BYTES_MAX or count > DESCRIPTORS_MAX:
            raise LineBroken(f"a control frame of {length} bytes with {count} descriptors")
        end = FRAME.size + length
        if len(self._received) < end:
            return None
        payload = bytes(self._received[FRAME.size : end])
        del self._received[:end]
        if len(self._descriptors) < count:
            raise LineBroken(f"{count} descriptors announced, {len(self._descriptors)} came")
        descriptors = [self._descriptors.popleft() for _ in range(count)]
        try:
            return self._decoder.decode(payload), descriptors
        except msgspec.DecodeError as error:
            _close_all(descriptors)
            raise LineBroken(str(error)) from error

    def _drop_unsent(self) -> None:
        for _, descriptors in self._unsent:
            _close_all(descriptors)
        self._unsent.clear()


def _close_all(descriptors: Sequence[int] | deque[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def line_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new line; neither is inherited by a started program."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def encode_config(config: BrokerConfig) -> bytes:
    """Return the settings as msgpack, for `decode_config` in another process."""
    return msgspec.msgpack.encode(config, enc_hook=_encode_path)


def decode_config(data: bytes) -> BrokerConfig:
    """Return the settings that `encode_config` packed, checked once more."""
    return msgspec.msgpack.decode(data, type=BrokerConfig, dec_hook=_decode_path)


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _decode_path(kind: type[Any], value: Any) -> Any:
    if issubclass(kind, Path):
        return Path(value)
    raise NotImplementedError(kind)
