"""Whatever bytes come to a running broker or name server: only the connection that they came on ends."""

from __future__ import annotations

import socket
import struct

import psutil
import pytest
from actormq_process import Dev
from gateway_process import PATIENCE_S, Peer, until
from gateway_rig import send_request
from process.bad_requests import Request, ask
from process.odd_clients import DEEP, MEGABYTE, NativePeer, framed

from actormq.wire import frame, json
from actormq.wire.command import RemotingCommand

# --- frames ----------------------------------------------------------------------------------------------


def binary(
    fields: bytes = b"",
    remark: bytes = b"",
    *,
    fields_bytes: int | None = None,
    remark_bytes: int | None = None,
) -> bytes:
    """A frame with a binary header, whose inner lengths may lie."""
    said = len(remark) if remark_bytes is None else remark_bytes
    header = struct.pack(">hBhiii", 9999, 0, 479, 7, 0, said) + remark
    return framed(
        header + struct.pack(">i", len(fields) if fields_bytes is None else fields_bytes) + fields, 1
    )


def field(key: bytes, value: bytes, key_bytes: int | None = None, value_bytes: int | None = None) -> bytes:
    return b"".join(
        (
            struct.pack(">H", len(key) if key_bytes is None else key_bytes) + key,
            struct.pack(">i", len(value) if value_bytes is None else value_bytes) + value,
        )
    )


GOOD = b'{"code":9999,"opaque":7}'
LONG = MEGABYTE - 100
BAD_FRAMES: dict[str, tuple[bytes, str]] = {
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "a frame of 1195725856 bytes"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "a frame of 369295618 bytes"),
    "one byte beyond 16 MiB": (framed(GOOD, length=16 * MEGABYTE - 3), "a frame of 16777213 bytes"),
    "a negative length": (framed(GOOD, length=-1), "a frame of 4294967295 bytes"),
    "the lowest length": (framed(GOOD, length=-(2**31)), "a frame of 2147483648 bytes"),
    "length 0": (framed(GOOD, length=0), "a frame of 0 bytes"),
    "length 3": (framed(GOOD, length=3), "a frame of 3 bytes"),
    "a header longer than its frame": (framed(GOOD, header_bytes=25), "header of 25 bytes in a frame of 28"),
    "the longest header": (framed(GOOD, header_bytes=0xFFFFFF), "header of 16777215 bytes"),
    "no header": (framed(b""), "bad JSON"),
    "a header beyond reason": (framed(b" " * (MEGABYTE + 1)), "header of 1048577 bytes"),
    "type 2": (framed(GOOD, 2), "unknown header type 2"),
    "type 255": (framed(GOOD, 255), "unknown header type 255"),
    "garbage": (framed(b"\x00\x01\xffgarbage"), "bad JSON"),
    "no object": (framed(b"[9999]"), "a JSON header that is no object"),
    "depth": (framed(b'{"code":9999,"extFields":' + DEEP + b"}"), "nests deeper than 64 levels"),
    "a bomb of brackets": (framed(b"[" * LONG), "nests deeper than 64 levels"),
    "a bomb of values": (
        framed(b"{'code':9999,'remark':[" + b"[]," * (LONG // 3) + b"]}"),
        "too many values",
    ),
    "a code that is a word": (framed(b'{"code":"send"}'), "header field code is no 32-bit integer"),
    "a code and a half": (framed(b'{"code":1.5}'), "header field code is no 32-bit integer"),
    "a code of 2**31": (framed(b'{"code":2147483648}'), "header field code is no 32-bit integer"),
    "an opaque beyond all numbers": (
        framed(b'{"code":1,"opaque":1e400}'),
        "header field opaque is no 32-bit",
    ),
    "fields in a list": (framed(b'{"code":1,"extFields":[1]}'), "extFields is no object"),
    "too many fields": (
        framed(json.dumps({"code": 1, "extFields": {str(number): "" for number in range(2_000)}})),
        "has too many members",
    ),
    "20 binary bytes": (framed(bytes(20), 1), "a binary header of 20 bytes"),
    "a binary remark of -1 bytes": (binary(remark_bytes=-1), "a binary header text of -1 bytes"),
    "a binary remark of 2 GiB": (binary(remark_bytes=2**31 - 1), "a binary header text of 2147483647 bytes"),
    "binary fields of -1 bytes": (binary(fields_bytes=-1), "binary header fields of -1 bytes"),
    "binary fields beyond the end": (binary(fields_bytes=9), "binary header fields of 9 bytes"),
    "a binary key beyond the end": (
        binary(field(b"k", b"v", key_bytes=60_000)),
        "a binary field key of 60000 bytes",
    ),
    "a binary value of -1 bytes": (
        binary(field(b"k", b"v", value_bytes=-1)),
        "a binary header text of -1 bytes",
    ),
    "half a binary field": (binary(b"\x00"), "a binary field cut off in its key"),
    "too many binary fields": (binary(field(b"", b"") * 100_000), "more than 1024 header fields"),
}


def closings(dev: Dev, name: tuple[str, int], before: int) -> list[str]:
    """Return the log's lines about the connection with this address of its client.

    Lines up to number `before` are about an earlier connection that had the same port.
    """
    said = f"closed the connection of {name[0]}:{name[1]}: "
    return [line.partition(said)[2].strip() for line in dev.errors[before:] if said in line]


@pytest.mark.parametrize("server", ["broker", "namesrv"])
@pytest.mark.parametrize(("data", "reason"), BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_a_bad_frame_ends_its_own_connection(dev: Dev, server: str, data: bytes, reason: str) -> None:
    """At once, with one line in the log; a neighbour is served; what came before it was answered."""
    address = getattr(dev, server)
    neighbour, victim = connect(address), connect(address)
    name, before = victim.getsockname(), len(dev.errors)
    victim.sendall(framed(GOOD))
    assert code_of(victim) == 3
    victim.sendall(data)
    assert ended(victim)
    neighbour.sendall(framed(GOOD))
    assert code_of(neighbour) == 3
    until("a line in the log", lambda: closings(dev, name, before))
    (line,) = closings(dev, name, before)
    assert reason in line
    neighbour.close()
    victim.close()


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def code_of(sock: socket.socket) -> int:
    """Return the code of the next answer."""
    stream = sock.makefile("rb", buffering=0)
    head = stream.read(4)
    assert head, "closed"
    data = b""
    while len(data) < int.from_bytes(head, "big"):
        data += stream.read(int.from_bytes(head, "big") - len(data)) or b""
    return frame.decode(data).code


def ended(sock: socket.socket) -> bool:
    """Wait for the other side to close."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "header",
    [
        b'{"code":9999,"opaque":7,"remark":"\xff\xfe","extFields":{"\xff":"\xff"}}',
        b'{"code":9999,"opaque":7,"remark":"\\ud800"}',
        b'{"code":"9999","opaque":-7,"language":77,"version":-1,"extFields":{"a":{"b":[1,null]}},"new":[]}',
        b"{code:9999,'opaque':7,extFields:{'a':'b',},}",
        b'{"code":9999,"opaque":7,"remark":"' + b"x" * (LONG - 40) + b'"}',
        b"{'code':9999,'opaque':7,'remark':'" + b"x" * (LONG - 40) + b"'}",
    ],
    ids=[
        "no UTF-8",
        "half a surrogate pair",
        "Java's leniency",
        "fastjson's leniency",
        "long",
        "long and lenient",
    ],
)
def test_a_header_that_java_would_read_is_read(dev: Dev, header: bytes) -> None:
    """Odd is not bad: the connection goes on."""
    sock = connect(dev.broker)
    for _ in range(2):
        sock.sendall(framed(header))
        assert code_of(sock) == 3
    sock.close()


def test_answers_that_nobody_asked_for_are_ignored(dev: Dev) -> None:
    """Also one-way requests that cannot be served: nothing comes back, and the connection goes on."""
    sock = connect(dev.broker)
    sock.sendall(framed(b'{"code":0,"opaque":1,"flag":1}') + framed(b'{"code":0,"opaque":7,"flag":3}'))
    sock.sendall(framed(b'{"code":9999,"opaque":1,"flag":2}') + framed(b'{"code":310,"opaque":1,"flag":2}'))
    sock.sendall(framed(GOOD))
    assert code_of(sock) == 3
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    sock.close()


def test_a_client_that_stops_in_the_middle_of_a_frame(dev: Dev) -> None:
    """Wherever it stops, others are served; when it goes on, it is served, too."""
    whole = frame.encode(send_request("halves", bytes(300_000)))
    cuts = (1, 3, 4, 7, 8, 50, len(whole) - 1)
    stopped = [connect(dev.broker) for _ in cuts]
    for sock, cut in zip(stopped, cuts, strict=True):
        sock.sendall(whole[:cut])
    other = Peer(dev)
    assert other.ask(send_request("halves")).code == 0
    other.close()
    for sock, cut in zip(stopped, cuts, strict=True):
        sock.sendall(whole[cut:])
        assert code_of(sock) == 0
        sock.close()


def test_one_byte_at_a_time(dev: Dev) -> None:
    """Two requests, every byte a packet of its own."""
    sock = connect(dev.broker)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for request, code in ((send_request("bytes"), 0), (RemotingCommand.request(9999), 3)):
        for byte in frame.encode(request):
            sock.sendall(bytes((byte,)))
        assert code_of(sock) == code
    sock.close()


# --- ZeroMQ ----------------------------------------------------------------------------------------------

BAD_MESSAGES: dict[str, tuple[list[bytes], str]] = {
    "an empty part": ([b""], "a header part of 0 bytes"),
    "three bytes": ([b"abc"], "a header part of 3 bytes"),
    "text": ([b"hello, is this the message queue?"], "header says"),
    "a length that lies": ([framed(GOOD, header_bytes=7)[4:], b""], "header says 7 bytes, has 24"),
    "type 9": ([framed(GOOD, 9)[4:]], "unknown header type 9"),
    "garbage": ([framed(b"\xff\x00")[4:], b"x"], "bad JSON"),
    "depth": ([framed(b'{"a":' + DEEP + b"}")[4:]], "nests deeper than 64 levels"),
    "a binary header that lies": ([binary(remark_bytes=-1)[4:]], "a binary header text of -1 bytes"),
    "a header beyond reason": ([framed(b" " * MEGABYTE)[4:]], "a message of 1048580 + 0 bytes"),
    "parts that are too much together": (
        [framed(GOOD)[4:], *[bytes(6 * MEGABYTE)] * 3],
        "a message of 28 + 18874368",
    ),
}


@pytest.mark.parametrize(("parts", "reason"), BAD_MESSAGES.values(), ids=BAD_MESSAGES.keys())
def test_a_bad_message_ends_its_own_client(dev: Dev, parts: list[bytes], reason: str) -> None:
    """One line in the log; others are served, and so is the same socket when it says something sensible."""
    before = len(dev.errors)
    victim, neighbour = NativePeer(dev), NativePeer(dev)
    assert neighbour.ask(RemotingCommand.request(9999)).code == 3
    victim.socket.send_multipart(parts)
    assert victim.ask(RemotingCommand.request(9999)).code == 3
    assert neighbour.ask(RemotingCommand.request(9999)).code == 3
    said = "dropped the native client 127.0.0.1:0: "
    lines = until("a line in the log", lambda: [line for line in dev.errors[before:] if said in line])
    assert len(lines) == 1
    assert reason in lines[0]
    victim.close()
    neighbour.close()


def test_what_is_no_zeromq_at_all(dev: Dev) -> None:
    """Another protocol at that port: its connection ends or is ignored, native clients are served."""
    talker = connect(dev.zmq)
    talker.sendall(framed(GOOD) + b"GET / HTTP/1.1\r\n\r\n" * 100)
    peer = NativePeer(dev)
    assert peer.ask(send_request("native")).code == 0
    peer.close()
    talker.close()


# --- memory ----------------------------------------------------------------------------------------------


def test_memory_stays_flat(dev: Dev) -> None:
    """Large frames broken off, large bodies refused, clients dropped: none of it is kept."""
    members = [psutil.Process(dev.process.pid), *psutil.Process(dev.process.pid).children(recursive=True)]

    def resident_bytes() -> int:
        return sum(member.memory_info().rss for member in members)

    for _ in range(3):
        abuse(dev)  # the allocator keeps what one round needs
    before = resident_bytes()
    for _ in range(4):
        abuse(dev)
    assert resident_bytes() - before < 40 * MEGABYTE, "of 400 MB"


def abuse(dev: Dev) -> None:
    """Bring some 100 MB to the broker that it has no use for."""
    breaking = [connect(dev.broker) for _ in range(4)]
    for sock in breaking:
        sock.sendall(struct.pack(">II", 15 * MEGABYTE, len(GOOD)) + bytes(8 * MEGABYTE))
        sock.close()
    peer, native = Peer(dev), NativePeer(dev)
    for code in (41, 34, 9999):
        assert peer.ask(RemotingCommand.request(code, body=bytes(10 * MEGABYTE))).code != 0
    native.socket.send_multipart([framed(GOOD)[4:], *[bytes(8 * MEGABYTE)] * 3])
    assert native.ask(RemotingCommand.request(9999)).code == 3
    for _ in range(50):
        sock = connect(dev.broker)
        sock.sendall(framed(b"[" * 10_000))
        assert ended(sock)
        sock.close()
    peer.close()
    native.close()


# --- name server -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code", "remark"),
    [
        (ask(9999), 3, "request type 9999 not supported"),
        (ask(310), 3, "request type 310 not supported"),
        (ask(105), 1, "the custom field <topic> is null"),
        (ask(105, topic="../nowhere\n"), 17, "No topic route info in name server for the topic: ../nowhere"),
        (
            ask(103, brokerName="b", brokerAddr="a", clusterName="c", haServerAddr="", brokerId="x"),
            1,
            "is no number",
        ),
        (
            ask(322, bytes(2 * MEGABYTE), brokerName="b", brokerAddr="a", clusterName="c", brokerId=0),
            1,
            "too large",
        ),
        (ask(322, DEEP, brokerName="b", brokerAddr="a", clusterName="c", brokerId=0), 1, "nests deeper"),
        (ask(318, b"kvConfigPath=/etc/passwd"), 16, "Can not update config in black list"),
    ],
)
def test_the_name_server_answers(dev: Dev, request_: Request, code: int, remark: str) -> None:
    """The same manners as the broker's."""
    sock = connect(dev.namesrv)
    sock.sendall(frame.encode(request_()))
    stream = sock.makefile("rb")
    answer = frame.decode(stream.read(int.from_bytes(stream.read(4), "big")))
    assert answer.code == code, answer.remark
    assert remark in (answer.remark or "")
    sock.close()
