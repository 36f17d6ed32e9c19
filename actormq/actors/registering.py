"""The coordinator's name servers: asked over TCP, in its loop, when `actormq.broker.registration` says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from actormq.broker.registration import (
    BrokerIdentity,
    Registrar,
    register_request,
    topic_request,
    unregister_request,
)
from actormq.broker.tables import TopicEntry
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
        self,
        config: BrokerConfig,
        loop: Reactor,
        log: logging.Logger,
        now_ms: Callable[[], int],
        body: Callable[[], bytes],
    ) -> None:
        """`now_ms`: the monotonic clock; `body`: what registers us with all topics as they are now."""
        self._identity = BrokerIdentity.of(config)
        self._registrar = Registrar(config.namesrv_addrs, config.coordinator.register_interval_ms)
        self._remoting = RemotingClient(loop, request_timeout_ms=ANSWER_MS_MAX, on_lost=self._lost)
        self._log = log
        self._now_ms = now_ms
        self._permission = config.permission
        self._body = body
        self._stopped = False
        self.leaving = 0

    @property
    def change(self) -> int:
        """The number of the last change that was told."""
        return self._registrar.change

    def settled(self, change: int) -> bool:
        """Whether every name server that answers has that change."""
        return self._registrar.settled(change)

    def tell(self, topics: Sequence[TopicEntry] = ()) -> None:
        """Tell all of them at once what has changed: these topics, or (none given) anything."""
        self._registrar.changed(topics)
        self.tick()

    def tick(self) -> None:
        """Ask those that are due."""
        if self._stopped:
            return
        for address in self._registrar.due(self._now_ms()):
            self._ask(address)

    def _ask(self, address: str) -> None:
        news = self._registrar.news(address)
        if news is None:
            requests = [register_request(self._identity, self._body())]
        else:
            requests = [topic_request(self._identity, topic, self._permission) for topic in news]
        answers: list[RemotingCommand | RemotingFailed] = []

        def answered(answer: RemotingCommand | RemotingFailed) -> None:
            answers.append(answer)
            if len(answers) == len(requests):
                self._answered(address, next((one for one in answers if not _is_success(one)), answer))

        for request in requests:
            self._remoting.request(address, request, answered)

    def _answered(self, address: str, answer: RemotingCommand | RemotingFailed) -> None:
        now_ms = self._now_ms()
        if _is_success(answer):
            if self._registrar.answered(address, now_ms):
                self._log.info("registered with name server %s", address)
        elif self._registrar.news(address) is not None and _is_unknown_code(answer):
            self._registrar.takes_all_only(address, now_ms)
        elif self._registrar.failed(address, now_ms):
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


def _is_success(answer: RemotingCommand | RemotingFailed) -> bool:
    return isinstance(answer, RemotingCommand) and answer.code == ResponseCode.SUCCESS


def _is_unknown_code(answer: RemotingCommand | RemotingFailed) -> bool:
    return isinstance(answer, RemotingCommand) and answer.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
