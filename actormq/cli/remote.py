"""remote: one question at a time over RocketMQ's TCP, for commands that ask, print and end.

The client (`actormq.client`) keeps connections, routes and heartbeats; a command that looks needs none.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any, Final

from actormq.errors import (
    ClientError,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    FrameError,
    RequestRefused,
    RequestTimeout,
)
from actormq.wire import frame, json
from actormq.wire.codes import RequestCode
from actormq.wire.command import BROKER_VERSION, RemotingCommand

TIMEOUT_S: Final = 5.0
MASTER_ID: Final = 0
ZMQ: Final = "zmq://"
UNREACHABLE: Final = (ConnectFailed, ConnectionLost, RequestTimeout)
"""Another server may answer the same question."""


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
            ConnectFailed, ConnectionLost, RequestTimeout: it does not answer.
            RequestRefused: an answer with another code than 0; its remark is the server's.
        """
        request = RemotingCommand.request(code, fields, body)
        request.version = version
        try:
            if address.startswith(ZMQ):
                answer = self._exchange_zmq(address, request)
            else:
                answer = self._exchange(address, self._socket(address), request)
        except UNREACHABLE:
            self._forget(address)
            raise
        except (OSError, FrameError) as error:
            self._forget(address)
            raise ConnectionLost(f"{address} does not answer: {_reason(error)}") from None
        if answer.code != 0:
            raise RequestRefused(answer.code, first_line(answer.remark) or None, address)
        return answer

    def _exchange(self, address: str, sock: socket.socket, request: RemotingCommand) -> RemotingCommand:
        deadline = time.monotonic() + self._timeout_s
        sock.settimeout(self._timeout_s)
        sock.sendall(frame.encode(request))
        cutter = frame.FrameCutter()
        while (left_s := deadline - time.monotonic()) > 0:
            sock.settimeout(left_s)
            try:
                data = sock.recv(256 * 1024)
            except TimeoutError:
                break
            if not data:
                raise ConnectionLost(f"{address} closed the connection")
            for part in cutter.feed(data):
                command = frame.decode(part)
                if command.is_response and command.opaque == request.opaque:
                    return command
        raise RequestTimeout(f"{address} did not answer within {self._timeout_s:g} s")

    def _exchange_zmq(self, address: str, request: RemotingCommand) -> RemotingCommand:
        """As `_exchange`, with a name server's ZeroMQ front: the frame in two parts, without its length."""
        import zmq

        split_address(address.removeprefix(ZMQ))
        data = frame.encode(request)
        head_end = 8 + (int.from_bytes(data[4:8], "big") & 0xFFFFFF)
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(address.replace(ZMQ, "tcp://", 1))
            dealer.send_multipart([data[4:head_end], data[head_end:]])
            deadline = time.monotonic() + self._timeout_s
            while (left_s := deadline - time.monotonic()) > 0 and dealer.poll(round(left_s * 1000)):
                command = frame.decode(b"".join(dealer.recv_multipart()))
                if command.is_response and command.opaque == request.opaque:
                    return command
        raise RequestTimeout(f"{address} did not answer within {self._timeout_s:g} s")

    def _socket(self, address: str) -> socket.socket:
        if address not in self._sockets:
            try:
                self._sockets[address] = socket.create_connection(split_address(address), self._timeout_s)
            except OSError as error:
                raise ConnectFailed(f"{address} does not answer: {_reason(error)}") from None
        return self._sockets[address]

    def _forget(self, address: str) -> None:
        sock = self._sockets.pop(address, None)
        if sock is not None:
            sock.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class Cluster:
    """What the name servers tell: brokers, topics, routes.

    Args:
        namesrv: ``host:port``, several separated by ``;`` or ``,``: the first that answers is asked.
            ``zmq://`` before the first means ZeroMQ.
    """

    def __init__(self, remote: Remote, namesrv: str) -> None:
        self._remote = remote
        rest = namesrv.removeprefix(ZMQ).removeprefix("rocketmq://").replace(",", ";")
        scheme = ZMQ if namesrv.startswith(ZMQ) else ""
        self._addresses = [scheme + address.strip() for address in rest.split(";") if address.strip()]
        self._tried = 0
        """Those before it do not answer."""
        if not self._addresses:
            raise ConfigError("no name server is given: say --namesrv HOST:PORT")

    def ask(self, code: int, fields: dict[str, str] | None = None) -> Any:
        """Return the answer's body, read as JSON.

        Raises:
            ConnectFailed, ConnectionLost, RequestTimeout: none of the name servers answers.
            RequestRefused: the one that answers refuses.
        """
        while True:
            try:
                return json.loads(self._remote.ask(self._addresses[self._tried], code, fields).body)
            except UNREACHABLE:
                # Never again in this command: each question would wait for it.
                self._tried += 1
                if self._tried == len(self._addresses):
                    self._tried = 0
                    raise

    def tell_all(self, code: int, fields: dict[str, str]) -> None:
        """Ask every name server for the same change.

        Raises:
            ConnectFailed, ConnectionLost, RequestTimeout, RequestRefused: of the first that did not do it;
                all have been asked.
        """
        failure: ClientError | None = None
        for address in self._addresses:
            try:
                self._remote.ask(address, code, fields)
            except ClientError as error:
                failure = failure or error
        if failure is not None:
            raise failure

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

    def masters(self, name: str | None = None) -> list[Broker]:
        """Return the masters, or the one of that name.

        Raises:
            ConfigError: there is none.
        """
        found = [broker for broker in self.brokers(masters_only=True) if name in (None, broker.name)]
        if not found:
            raise ConfigError(f"no broker {name} is registered" if name else "no broker is registered")
        return found

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
