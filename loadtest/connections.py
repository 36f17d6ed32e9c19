"""Many connections in one process: each sends one message, waits for its answer, and sends the next.

    python -m loadtest.connections BROKER TOPIC --connections N --size BYTES --seconds S

The least that a client can do, so that what the server uses is seen and not what a client library adds.
Says ``begin`` when all are connected and one line of JSON at the end, as `worker.py` does.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import struct
import sys
import time
from typing import Final

from actormq.wire import frame
from actormq.wire.command import RemotingCommand
from actormq.wire.headers import RequestCode, SendHeader, encode_send_v2
from loadtest.worker import say

_QUEUES: Final = 8
_LENGTH: Final = struct.Struct(">I")


def request(topic: str, queue_id: int, body: bytes) -> bytes:
    """Return a send as a TCP frame."""
    header = SendHeader(
        producer_group="connections",
        topic=topic,
        default_topic="TBW102",
        default_topic_queues=_QUEUES,
        queue_id=queue_id,
        sys_flag=0,
        born_timestamp_ms=int(time.time() * 1_000),
        flag=0,
        properties=f"UNIQ_KEY\x01{queue_id:032X}\x02WAIT\x01true\x02",
        reconsume_times=0,
        unit_mode=False,
        max_reconsume_times=None,
        batch=False,
    )
    return frame.encode(RemotingCommand.request(RequestCode.SEND_MESSAGE_V2, encode_send_v2(header), body))


def whole(answer: bytes) -> bool:
    """Return whether an answer has come completely.

    Raises:
        RuntimeError: the server refused.
    """
    if len(answer) < 4 or len(answer) < 4 + _LENGTH.unpack_from(answer)[0]:
        return False
    command = frame.decode(memoryview(answer)[4:])
    if command.code != 0:
        raise RuntimeError(f"the broker refused: {command.code} {command.remark}")
    return True


def run(address: tuple[str, int], topic: str, connections: int, size: int, seconds: float) -> int:
    """Send for so long; return how many were acknowledged."""
    selector = selectors.DefaultSelector()
    for number in range(connections):
        sock = socket.create_connection(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sent = request(topic, number % _QUEUES, bytes(size))
        selector.register(sock, selectors.EVENT_READ, [sock, sent, b""])
    say("begin")
    until = time.monotonic() + seconds
    for key in selector.get_map().values():
        key.data[0].sendall(key.data[1])
    count, waiting = 0, connections
    while waiting:
        for key, _ in selector.select():
            sock, sent, came = key.data
            came += sock.recv(65_536)
            key.data[2] = came
            if not whole(came):
                continue
            key.data[2] = b""
            count += 1
            if time.monotonic() < until:
                sock.sendall(sent)
            else:
                waiting -= 1
    for key in list(selector.get_map().values()):
        key.data[0].close()
    selector.close()
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="loadtest.connections")
    parser.add_argument("broker")
    parser.add_argument("topic")
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    host, _, port = options.broker.rpartition(":")
    count = run((host, int(port)), options.topic, options.connections, options.size, options.seconds)
    say({"count": count})
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
