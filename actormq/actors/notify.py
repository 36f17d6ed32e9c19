"""notify: what a service manager is told of us: READY, STATUS, STOPPING, and WATCHDOG while all is well.

One datagram each to the socket that systemd names in the environment.  Where it names none, nothing
is sent.  Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Mapping
from typing import Final

_SHARE: Final = 4
"""The watchdog is fed that many times in its period: one that is late, and one that is lost, do no harm."""
_UNSENT_MAX: Final = 16


class Notifier:
    """Tells the service manager, if there is one.

    Args:
        environ: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID as systemd sets them.
    Attributes:
        feed_every_ns: how often the watchdog wants to be fed; None when nobody watches us.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.feed_every_ns = _feed_every_ns(environ) if self._address else None
        self._fed_ns: int | None = None
        self._status = ""
        self._unsent: deque[bytes] = deque(maxlen=_UNSENT_MAX)
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def tell(self, *assignments: str) -> None:
        """Send them in one datagram; while systemd does not read, they wait for `flush`."""
        if self._socket is not None:
            self._unsent.append("\n".join(assignments).encode())
            self.flush()

    def status(self, sentence: str, *assignments: str) -> None:
        """Tell people how we are (``systemctl status``); the same sentence is said once."""
        if sentence != self._status or assignments:
            self._status = sentence
            self.tell(*assignments, f"STATUS={sentence}")

    def flush(self) -> None:
        """Send what waits: a READY that is lost would be the end of a broker that serves."""
        while self._unsent and self._socket is not None:
            try:
                self._socket.sendto(self._unsent[0], self._address)
            except BlockingIOError:
                return
            except OSError:
                pass  # nobody is there (any more)
            self._unsent.popleft()

    def is_hungry(self, now_ns: int) -> bool:
        """Whether the watchdog is to be fed, if all is well."""
        if self.feed_every_ns is None:
            return False
        return self._fed_ns is None or now_ns - self._fed_ns >= self.feed_every_ns

    def feed(self, now_ns: int) -> None:
        """Say that all is well."""
        self._fed_ns = now_ns
        self.tell("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _address(name: str) -> str:
    """Return the socket's address: a path, or a name in the abstract namespace; "" for what is neither."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _feed_every_ns(environ: Mapping[str, str]) -> int | None:
    period, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
    if not period.isdecimal() or int(period) == 0 or pid != str(os.getpid()):
        return None
    return int(period) * 1_000 // _SHARE
