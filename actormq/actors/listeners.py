"""Listening sockets, made by the supervisor and kept for its whole life.

Every role of a group has a socket of its own on the group's address (SO_REUSEPORT): the kernel spreads
connections over them, and those that wait on a dead role's socket are served by its successor.
"""

from __future__ import annotations

import socket
from typing import Final

from actormq.actors.roles import Front
from actormq.errors import ConfigError

BACKLOG: Final = 1024


class Listeners:
    """All listening sockets of one supervisor.

    Attributes:
        addresses: host and port per address key (``gateway.tcp``), as really taken.
    """

    def __init__(self) -> None:
        self._sockets: dict[str, dict[str, socket.socket]] = {}
        self.addresses: dict[str, tuple[str, int]] = {}

    def bind(self, role: str, front: Front) -> bool:
        """Take the address of `front` for `role`; False when an optional one cannot be had.

        Raises:
            ConfigError: the address is in use, or not ours.
        """
        taken = self.addresses.get(front.address_key)
        host, port = taken or (front.host, self._port(front))
        try:
            if taken is None and port != 0:
                _probe(host, port)
            sock = _bound(host, port)
        except (OSError, OverflowError, UnicodeError) as error:
            if front.optional:
                return False
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot listen on {host}:{port} ({front.address_key}): {reason}") from error
        self.addresses[front.address_key] = (host, sock.getsockname()[1])
        self._sockets.setdefault(role, {})[front.name] = sock
        return True

    def _port(self, front: Front) -> int:
        if front.follows is None:
            return front.port
        return self.addresses[f"{front.group}.{front.follows}"][1] + front.port

    def listen(self) -> None:
        """Let clients connect; those that come before a role serves wait in the socket."""
        for sockets in self._sockets.values():
            for sock in sockets.values():
                sock.listen(BACKLOG)

    def of(self, role: str) -> dict[str, int]:
        """Return the descriptors of `role` by front name."""
        return {name: sock.fileno() for name, sock in self._sockets.get(role, {}).items()}

    def close(self) -> None:
        for sockets in self._sockets.values():
            for sock in sockets.values():
                sock.close()
        self._sockets.clear()


def resolve(advertised_host: str) -> str:
    """Return the address by which records and message ids name this broker.

    Raises:
        ConfigError: the name has none.
    """
    try:
        *_, address = socket.getaddrinfo(advertised_host, 0, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"advertised_host {advertised_host!r} cannot be resolved: {reason}") from None
    return str(address[0])


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _probe(host: str, port: int) -> None:
    """Raise OSError when somebody listens there: SO_REUSEPORT alone would join another broker."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket(_family(host), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock
