"""The coordinator's name servers: asked over TCP, in its loop, when `actormq.broker.registration` says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from actormq.broker.registration import BrokerIdentity, Registrar, register_request, unregister_request
from actormq.config import BrokerConfig
from actormq.errors import ResponseCode
from actormq.net.tcp import Reactor, RemotingClient, RemotingFailed
from actormq.wire.command import RemotingCommand

ANSWER_MS_MAX: Final = 6_000
LEAVE_MS_MAX: Final = 1_000


class NameServers:
    """All name servers of one broker.

    Attributes:
        leaving: how many have not answered our leaving yet.
    """

    def __init__(
        self, config: BrokerConfig, loop: Reactor, log: logging.Logger, now_ms: Callable[[], int]
    ) -> None:
        """`now_ms`: the monotonic clock."""
        self._identity = BrokerIdentity.of(config)
        self._registrar = Registrar(config.namesrv_addrs, config.coordinator.register_interval_ms)
        self._remoting = RemotingClient(loop, request_timeout_ms=ANSWER_MS_MAX, on_lost=self._lost)
        self._log = log
        self._now_ms = now_ms
        self._body = b""
        self._stopped = False
        self.leaving = 0

    @property
    def change(self) -> int:
        """The number of the last change that was told."""
        return self._registrar.change

    def settled(self, change: int) -> bool:
        """Whether every name server that answers has that change."""
        return self._registrar.settled(change)

    def tell(self, body: bytes) -> None:
        """Register `body` with all of them at once, and from now on."""
        self._body = body
        self._registrar.changed()
        self.tick()

    def tick(self) -> None:
        """Ask those that are due."""
        if self._stopped:
            return
        for address in self._registrar.due(self._now_ms()):
            self._ask(address)

    def _ask(self, address: str) -> None:
        def answered(answer: RemotingCommand | RemotingFailed) -> None:
            self._answered(address, answer)

        self._remoting.request(address, register_request(self._identity, self._body), answered)

    def _answered(self, address: str, answer: RemotingCommand | RemotingFailed) -> None:
        if isinstance(answer, RemotingCommand) and answer.code == ResponseCode.SUCCESS:
            if self._registrar.answered(address, self._now_ms()):
                self._log.info("registered with name server %s", address)
        elif self._registrar.failed(address, self._now_ms()):
            self._log.warning("name server %s has not registered us: %s", address, answer.remark)

    def _lost(self, address: str) -> None:
        self._registrar.lost(address, self._now_ms())

    def wake_ms(self) -> int | None:
        """Return when `tick` next has work, monotonic."""
        return None if self._stopped else self._registrar.wake_ms()

    def leave(self) -> None:
        """Unregister everywhere; `leaving` counts who has not answered."""
        self._stopped = True
        for address in self._registrar.addresses:
            self.leaving += 1
            request = unregister_request(self._identity)
            self._remoting.request(address, request, self._left, timeout_ms=LEAVE_MS_MAX)

    def _left(self, answer: RemotingCommand | RemotingFailed) -> None:
        self.leaving -= 1
