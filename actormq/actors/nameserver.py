"""nameserver: tells clients which broker serves which topic, over RocketMQ's TCP and ZeroMQ.

From: brokers (registrations), clients and admin tools (routes, lists, KV).  To: whoever asked.
A process of its own under ``actormq namesrv``, or beside a broker's roles in ``actormq dev``.
Owns the route tables, in memory only, and the KV file.  With the process die the routes: the listening
sockets live on in the supervisor, brokers register again by themselves, clients keep the routes that
they have, and the KV entries are read from their file.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

import zmq

from actormq import faults
from actormq.actors.runtime import ProcessActor
from actormq.broker.naming import NameService
from actormq.broker.routes import BrokerIdentity
from actormq.config import NameServerConfig
from actormq.errors import ConfigError, FrameError, ResponseCode
from actormq.net import tcp
from actormq.net.zmq import RouterClient, RouterLimits, RouterServer, message_parts
from actormq.shm import small_file
from actormq.wire import frame
from actormq.wire.command import RemotingCommand

_NS_PER_MS: Final = 1_000_000


class NameServerActor(ProcessActor):
    """The fronts, the clock and the KV file around a `NameService`."""

    def on_start(self) -> None:
        assert self.config.namesrv is not None
        self.settings = self.config.namesrv
        self.service = self._service()
        self._brokers: dict[tuple[str, str], BrokerIdentity] = {}
        self._scan_ns = self.context.clock.monotonic_ns()
        listeners = self.context.listeners
        self.server = tcp.Server(
            self.loop,
            socket.socket(fileno=listeners["tcp"]),
            self,
            tcp.Limits(
                connections_max=self.settings.connections_max, idle_timeout_ms=self.settings.idle_timeout_ms
            ),
            self.log,
            self.context.clock.monotonic_ns,
        )
        self.router = self._router(listeners["zmq"]) if "zmq" in listeners else None

    def _service(self) -> NameService:
        """Begin with the KV entries of the last run."""
        path = self.settings.kv_path
        try:
            kv = path.read_bytes() if path is not None and path.exists() else b""
            return NameService(self.settings, kv=kv, zmq_endpoint=_told_endpoint(self.settings))
        except (OSError, FrameError) as error:
            raise ConfigError(f"the KV configuration {path} cannot be read: {error}") from None

    def _router(self, listener: int) -> RouterServer:
        """Native clients hold no lease here: nothing of theirs is kept; brokers expire by their own word."""
        mailbox = self.context.mailbox
        limits = RouterLimits(
            clients_max=self.settings.connections_max,
            lease_ms=self.settings.broker_expiry_ms,
            idle_timeout_ms=self.settings.idle_timeout_ms,
        )
        return RouterServer(
            self.loop,
            zmq.Context.instance() if mailbox is None else mailbox.zmq,
            listener,
            f"tcp://{_zmq_endpoint(self.settings)}",
            self,
            limits,
            self.log,
            self.context.clock.monotonic_ns,
        )

    # --- TCP (actormq.net.tcp.Handler) -----------------------------------------------------------------

    def opened(self, connection: tcp.Connection) -> None:
        """Nothing is known of a peer before it speaks."""

    def frames(self, connection: tcp.Connection, frames: Sequence[memoryview]) -> None:
        for data in frames:
            try:
                command = frame.decode(data)
            except FrameError as error:
                self.server.close_connection(connection, error.remark, warn=True)
                return
            answer = self._answer(command, connection)
            if answer is not None:
                connection.send(frame.encode(answer))

    def closed(self, connection: tcp.Connection, reason: str) -> None:
        self.service.on_connection_closed(connection)
        self._log_brokers(reason)

    # --- ZeroMQ (actormq.net.zmq.RouterHandler) --------------------------------------------------------

    def client_opened(self, client: RouterClient) -> None:
        """As `opened`."""

    def message(self, client: RouterClient, header: bytes, body: bytes | memoryview) -> None:
        assert self.router is not None
        try:
            command = frame.decode_parts(header, body)
        except FrameError as error:
            self.router.close_client(client, error.remark, warn=True)
            return
        answer = self._answer(command, client)
        if answer is not None:
            client.send(*message_parts((frame.encode_head(answer), answer.body)))

    def client_closed(self, client: RouterClient, reason: str) -> None:
        self.service.on_connection_closed(client)
        self._log_brokers(reason)

    # --- answering -------------------------------------------------------------------------------------

    def _answer(
        self, command: RemotingCommand, connection: tcp.Connection | RouterClient
    ) -> RemotingCommand | None:
        faults.point("nameserver.asked")
        answer = self.service.handle(command, connection, self._now_ms())
        faults.point("nameserver.handled")
        self._log_brokers("unregistered")
        kv = self.service.take_kv()
        if kv is not None and not self._write_kv(kv) and answer is not None:
            remark = "the KV configuration could not be saved; it holds until the name server restarts"
            return RemotingCommand.response_to(command, ResponseCode.SYSTEM_ERROR, remark)
        return answer

    def _log_brokers(self, reason: str) -> None:
        """Say who came and who went; an unchanged set of brokers costs one comparison."""
        live = self.service.routes.live
        if live.keys() == self._brokers.keys():
            return
        for key in live.keys() - self._brokers.keys():
            self.log.info("broker registered", extra=_shown(live[key].broker))
        for key in self._brokers.keys() - live.keys():
            self.log.info("broker gone", extra={**_shown(self._brokers[key]), "reason": reason})
        self._brokers = {key: entry.broker for key, entry in live.items()}

    def _now_ms(self) -> int:
        return self.context.clock.monotonic_ns() // _NS_PER_MS

    # --- turns -----------------------------------------------------------------------------------------

    def on_batch(self) -> bool:
        faults.point("nameserver.unanswered")
        self.server.flush()
        faults.point("nameserver.tcp-answered")
        if self.router is not None:
            self.router.flush()
        faults.point("nameserver.answered")
        return False

    def wake_at_ns(self) -> int | None:
        """Brokers expire at the next scan; without brokers there is none."""
        if not self.service.routes.live:
            return None
        return self._scan_ns + self.settings.scan_interval_ms * _NS_PER_MS

    def on_tick(self, now_ns: int) -> None:
        self._scan_ns = now_ns
        faults.point("nameserver.scanning")
        for connection in self.service.expire(now_ns // _NS_PER_MS):
            if isinstance(connection, tcp.Connection):
                self.server.close_connection(connection, "the broker is silent")
        self._log_brokers("expired")

    def on_stop(self) -> None:
        """Answer what was asked; clients turn to another name server, or keep their routes."""
        self.on_batch()
        self.server.close()
        if self.router is not None:
            self.router.close()

    # --- the KV file -----------------------------------------------------------------------------------

    def _write_kv(self, text: bytes) -> bool:
        path = self.settings.kv_path
        if path is None:
            return True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            small_file.replace(path, text)
        except OSError as error:
            self.log.error("the KV configuration cannot be written", extra={"path": path, "reason": error})
            return False
        return True


def _zmq_endpoint(settings: NameServerConfig) -> str:
    return tcp.format_address(settings.host, settings.zmq_port or 0)


def _told_endpoint(settings: NameServerConfig) -> str | None:
    """What clients may be told: an address on which we listen for everyone is none to connect to."""
    if settings.zmq_port is None or settings.host in ("0.0.0.0", "::"):
        return None
    return _zmq_endpoint(settings)


def _shown(broker: BrokerIdentity) -> dict[str, object]:
    return {
        "cluster": broker.cluster,
        "broker": broker.name,
        "broker_id": broker.broker_id,
        "address": broker.address,
    }
