"""Requests to one broker, official or ours, over RocketMQ's TCP protocol, one at a time."""

from __future__ import annotations

import socket
import time
from typing import Any

from actormq.wire import frame
from actormq.wire.command import RemotingCommand


class WireClient:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._cutter = frame.FrameCutter()

    def close(self) -> None:
        self._socket.close()

    def call(self, code: int, fields: dict[str, Any], body: bytes = b"") -> RemotingCommand:
        """Return the answer; ask again while the store is still starting, or busy."""
        deadline = time.monotonic() + 20
        while True:
            request = RemotingCommand.request(code, {key: str(value) for key, value in fields.items()}, body)
            self._socket.sendall(frame.encode(request))
            frames: list[bytes] = []
            while not frames:
                data = self._socket.recv(1 << 20)
                assert data, f"the broker has hung up on code {code}"
                frames = self._cutter.feed(data)
            answer = frame.decode(frames[0])
            # 14: the store is still starting.
            if answer.code not in (1, 2, 14) or time.monotonic() > deadline:
                return answer
            time.sleep(0.2)

    def send(
        self,
        topic: str,
        queue_id: int,
        body: bytes,
        properties: str,
        *,
        is_batch: bool = False,
        queues: int = 4,
    ) -> RemotingCommand:
        answer = self.try_send(topic, queue_id, body, properties, is_batch=is_batch, queues=queues)
        assert answer.code == 0, answer
        return answer

    def try_send(
        self,
        topic: str,
        queue_id: int,
        body: bytes,
        properties: str,
        *,
        is_batch: bool = False,
        queues: int = 4,
    ) -> RemotingCommand:
        fields = {
            "a": "g", "b": topic, "c": "TBW102", "d": queues, "e": queue_id, "f": 0, "g": 1_700_000_000_001,
            "h": 7, "i": properties, "j": 0, "k": "false", "l": 16, "m": "true" if is_batch else "false",
        }  # fmt: skip
        return self.call(320 if is_batch else 310, fields, body)

    def pull(self, topic: str, queue_id: int, offset: int, tags: str = "*") -> tuple[bytes, int]:
        """Return records, none when there are no more, and where to go on."""
        fields = {
            "consumerGroup": "reader", "topic": topic, "queueId": queue_id, "queueOffset": offset,
            "maxMsgNums": 32, "sysFlag": 4, "commitOffset": 0, "suspendTimeoutMillis": 0,
            "subscription": tags, "subVersion": 0, "expressionType": "TAG",
        }  # fmt: skip
        answer = self.call(11, fields)
        assert answer.code in (0, 19, 20), answer
        return bytes(answer.body) if answer.code == 0 else b"", int(answer.fields["nextBeginOffset"])
