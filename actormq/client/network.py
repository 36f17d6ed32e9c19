"""All connections of one client: a request goes to an address, and the link to it is opened when needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from actormq.client.links import Link, LinkContext
from actormq.client.procedures import Address
from actormq.client.settings import ClientSettings
from actormq.client.tasks import Answer, FrameAnswer, Loop
from actormq.client.tcp_link import TcpLink
from actormq.clock import Clock
from actormq.errors import ActorMQError, ClientClosed
from actormq.wire.command import RemotingCommand

_TRY_AGAIN_NS: Final = 5_000_000_000
log = logging.getLogger("actormq.client")


class Listener(Protocol):
    """Whom the network tells what it did not ask for; loop thread only."""

    def on_link_open(self, address: Address) -> None: ...

    def on_link_closed(self, address: Address, error: ActorMQError) -> None: ...

    def on_request(self, command: RemotingCommand, reply: Callable[[RemotingCommand], None]) -> None: ...


class Network:
    """See `actormq.client.tasks.Asking`: `ask`, `tell` and `give_up` may be called by any thread."""

    def __init__(
        self,
        loop: Loop,
        listener: Listener,
        clock: Clock,
        settings: ClientSettings,
        identity: Callable[[], bytes],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._links: dict[Address, Link] = {}
        self._try_again_ns: dict[Address, int] = {}
        self._is_closed = False
        self._context = LinkContext(
            loop=loop,
            owner=self,
            clock=clock,
            connect_timeout_ms=settings.connect_timeout_ms,
            frame_bytes_max=settings.frame_bytes_max,
            outgoing_bytes_max=settings.outgoing_bytes_max,
            identity=identity,
        )

    # -- any thread

    def ask(self, address: Address, command: RemotingCommand, on_answer: Callable[[Answer], None]) -> None:
        link = self._links.get(address)
        if link is not None:
            link.ask(command, on_answer)
        else:
            self._loop.call_soon(lambda: self._ask(address, command, on_answer))

    def ask_frame(
        self, address: Address, opaque: int, data: bytes, on_answer: Callable[[FrameAnswer], None]
    ) -> None:
        link = self._links.get(address)
        if link is not None:
            link.ask_frame(opaque, data, on_answer)
        else:
            self._loop.call_soon(lambda: self._ask_frame(address, opaque, data, on_answer))

    def _ask_frame(
        self, address: Address, opaque: int, data: bytes, on_answer: Callable[[FrameAnswer], None]
    ) -> None:
        if self._is_closed:
            on_answer(ClientClosed("the client is closed"))
        else:
            self._link(address).ask_frame(opaque, data, on_answer)

    def is_open(self, address: Address) -> bool:
        """Return whether a link stands there; begin to open one when nobody has tried lately.

        For who has another way: nobody waits for an address that may lead nowhere.
        """
        link = self._links.get(address)
        if link is not None:
            return link.is_open
        now_ns = self._context.clock.monotonic_ns()
        if now_ns >= self._try_again_ns.get(address, 0) and not self._is_closed:
            self._try_again_ns[address] = now_ns + _TRY_AGAIN_NS
            self._loop.call_soon(lambda: self._open(address))
        return False

    def _open(self, address: Address) -> None:
        if not self._is_closed:
            self._link(address)

    def post(
        self,
        address: Address,
        opaque: int,
        head: bytes,
        body: memoryview,
        on_answer: Callable[[Answer], None],
    ) -> bool:
        """Send a request whose bytes are made over the link that stands; False = none does, or it is full.

        `on_answer` is called by whatever thread reads the answer, perhaps before this returns.
        """
        link = self._links.get(address)
        return link is not None and link.post(opaque, head, body, on_answer)

    def drop(self, address: Address, opaque: int) -> None:
        """Stop waiting for the answer to what was posted; loop thread only."""
        self._give_up(address, opaque)

    def _ask(self, address: Address, command: RemotingCommand, on_answer: Callable[[Answer], None]) -> None:
        if self._is_closed:
            on_answer(ClientClosed("the client is closed"))
        else:
            self._link(address).ask(command, on_answer)

    def tell(self, address: Address, command: RemotingCommand) -> None:
        link = self._links.get(address)
        if link is not None:
            link.send(command)
        else:
            self._loop.call_soon(lambda: self._tell(address, command))

    def _tell(self, address: Address, command: RemotingCommand) -> None:
        if not self._is_closed:
            self._link(address).send(command)

    def give_up(self, address: Address, opaque: int) -> None:
        self._loop.call_soon(lambda: self._give_up(address, opaque))

    def _give_up(self, address: Address, opaque: int) -> None:
        link = self._links.get(address)
        if link is not None:
            link.give_up(opaque)

    # -- loop thread

    def _link(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = self._new_link(address)
            link.open()
        return link

    def _new_link(self, address: Address) -> Link:
        if not address.startswith("zmq://"):
            return TcpLink(address, self._context)
        from actormq.client.zmq_link import ZmqLink  # only clients of zmq:// URLs load ZeroMQ

        return ZmqLink(address, self._context)

    def open_addresses(self) -> list[Address]:
        """Return where a connection stands."""
        return [address for address, link in self._links.items() if link.is_open]

    def close(self) -> None:
        """End all connections; requests that wait are told, later ones are refused."""
        self._is_closed = True
        for link in list(self._links.values()):
            link.close()

    # -- what links say

    def on_open(self, link: Link) -> None:
        log.info("connected", extra={"address": link.address})
        self._listener.on_link_open(link.address)

    def on_request(self, link: Link, command: RemotingCommand) -> None:
        self._listener.on_request(command, link.send)

    def on_closed(self, link: Link, error: ActorMQError) -> None:
        if self._links.get(link.address) is link:
            del self._links[link.address]
        if not self._is_closed:
            log.info("connection ended", extra={"address": link.address, "reason": str(error)})
            self._listener.on_link_closed(link.address, error)
