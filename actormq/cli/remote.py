"""remote: one question at a time over RocketMQ's TCP, for commands that ask, print and end.

The client (`actormq.client`) keeps connections, routes and heartbeats; a command that looks needs none.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any, Final

from actormq.errors import ActorMQError, ConfigError, FrameError, RequestError
from actormq.wire import frame, json
from actormq.wire.command import BROKER_VERSION, RemotingCommand
from actormq.wire.headers import RequestCode

DEFAULT_NAMESRV: Final = "127.0.0.1:9876"
TIMEOUT_S: Final = 5.0
MASTER_ID: Final = 0


class Unreachable(ActorMQError):
    """Nobody answers there."""

    retryable = True


@dataclass(frozen=True, slots=True)
class Broker:
    """One broker process of a cluster, as its name server knows it."""

    cluster: str
    name: str
    broker_id: int
    address: str


class Remote:
    """Asks servers, one connection an address; a context manager."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._sockets: dict[str, socket.socket] = {}

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    def ask(
        self,
        address: str,
        code: int,
        fields: dict[str, str] | None = None,
        body: bytes = b"",
        version: int = BROKER_VERSION,
    ) -> RemotingCommand:
        """Return the successful answer of ``host:port``; `version` is the client's that we claim to be.

        Raises:
            Unreachable: no connection, no answer in time, or bytes that are no frame.
            RequestError: an answer with another code than 0; its remark is the server's.
        """
        request = RemotingCommand.request(code, fields, body)
        request.version = version
        try:
            answer = self._exchange(address, request)
        except (OSError, FrameError) as error:
            self._sockets.pop(address, socket.socket()).close()
            reason = getattr(error, "strerror", None) or str(error)
            raise Unreachable(f"{address} does not answer: {reason}") from None
        if answer.code != 0:
            raise RequestError(answer.code, first_line(answer.remark) or f"answered code {answer.code}")
        return answer

    def _exchange(self, address: str, request: RemotingCommand) -> RemotingCommand:
        deadline = time.monotonic() + self._timeout_s
        sock = self._socket(address)
        sock.settimeout(self._timeout_s)
        sock.sendall(frame.encode(request))
        cutter = frame.FrameCutter()
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            data = sock.recv(256 * 1024)
            if not data:
                raise ConnectionError("it closed the connection")
            for part in cutter.feed(data):
                command = frame.decode(part)
                if command.is_response and command.opaque == request.opaque:
                    return command
        raise TimeoutError(f"no answer within {self._timeout_s:g} s")

    def _socket(self, address: str) -> socket.socket:
        if address not in self._sockets:
            self._sockets[address] = socket.create_connection(split_address(address), self._timeout_s)
        return self._sockets[address]


class Cluster:
    """What the name servers tell: brokers, topics, routes.

    Args:
        namesrv: ``host:port``, several separated by ``;``: the first that answers is asked.
    """

    def __init__(self, remote: Remote, namesrv: str) -> None:
        self._remote = remote
        self._addresses = [address.strip() for address in namesrv.split(";") if address.strip()]
        if not self._addresses:
            raise ConfigError("no name server is given: say --namesrv HOST:PORT")

    def ask(self, code: int, fields: dict[str, str] | None = None) -> Any:
        """Return the answer's body, read as JSON.

        Raises:
            Unreachable: none of the name servers answers.
            RequestError: the one that answers refuses.
        """
        trouble: Unreachable | None = None
        for address in self._addresses:
            try:
                return json.loads(self._remote.ask(address, code, fields).body)
            except Unreachable as error:
                trouble = error
        assert trouble is not None
        raise trouble

    def brokers(self, *, masters_only: bool = False) -> list[Broker]:
        """Return all registered brokers, by name and id."""
        info = self.ask(RequestCode.GET_BROKER_CLUSTER_INFO)
        found = [
            Broker(group["cluster"], name, int(broker_id), address)
            for name, group in info["brokerAddrTable"].items()
            for broker_id, address in group["brokerAddrs"].items()
            if not masters_only or int(broker_id) == MASTER_ID
        ]
        return sorted(found, key=lambda broker: (broker.cluster, broker.name, broker.broker_id))

    def route(self, topic: str) -> dict[str, Any]:
        """Return TopicRouteData of `topic`."""
        route: dict[str, Any] = self.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": topic})
        return route


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port``, ``[v6]:port`` included.

    Raises:
        ConfigError: it is none.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{address!r} is no HOST:PORT")
    return host.strip("[]"), int(port)


def first_line(text: str | None) -> str:
    """Return the sentence of a remark, without the stack or address behind it."""
    return (text or "").partition("\n")[0].strip()
