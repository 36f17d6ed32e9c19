"""The forkserver: a small, clean process that has everything imported, and forks one role per request.

The supervisor starts it first thing, as a fresh interpreter, so that importing goes on while the rest is
prepared.  It holds no context, thread or socket but its line to the supervisor; a child gets its own
control line and nothing else.  It reaps its children and reports how they ended.
It dies with the supervisor (end of file).  If it dies alone, roles live on and the supervisor starts
another one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from actormq.actors import control

ENTRY: Final = "actormq.actors.entry"
_NAME_BYTES_MAX: Final = 15
_DESCRIPTORS_WANTED: Final = 65_536
BROKER_MODULES: Final = tuple(
    f"actormq.actors.{name}"
    for name in (
        "recovery",
        "writer",
        "flusher",
        "dispatcher",
        "holder",
        "coordinator",
        "scheduler",
        "cleaner",
        "gateway",
        "nameserver",
    )
)
"""What is preloaded when the settings, and so the roles, are not known yet."""


class Forkserver:
    """The supervisor's side: the process and our end of its line.  Imports little: it is started first."""

    def __init__(self, preload: Sequence[str]) -> None:
        """Start it; `preload` are the modules of the roles to come (missing ones are left to the roles)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.set_inheritable(theirs.fileno(), True)
            self.pid = _spawn(theirs.fileno(), preload)
        finally:
            theirs.close()
        self.socket = ours
        self._ended = False

    def end(self) -> None:
        """Kill it: no role is touched by that, and it has nothing to finish.  Twice is once."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.socket.close()


def _spawn(fd: int, preload: Sequence[str]) -> int:
    program = [sys.executable, "-P", "-m", "actormq.actors.forkserver", str(fd), *preload]
    # The same modules as here, wherever they come from: a wheel, a checkout, a test's folder.
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    files = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    # Away from the terminal: Ctrl-C goes to the supervisor only, which stops roles in order.  A session
    # where there are: a mere group that loses its parent is hung up (SIGHUP) if one of it was stopped.
    if sys.platform == "linux":
        return os.posix_spawn(sys.executable, program, environment, file_actions=files, setsid=True)
    return os.posix_spawn(sys.executable, program, environment, file_actions=files, setpgroup=0)


def raise_descriptor_limit() -> None:
    """Clients, segments and doorbells are all descriptors: take what the system allows, up to a bound."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_WANTED)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(arguments: Sequence[str]) -> None:
    """Serve until the supervisor goes: ``forkserver FD MODULE…``."""
    import faulthandler

    fd, *preload = arguments
    sock = socket.socket(fileno=int(fd))
    os.set_inheritable(sock.fileno(), False)
    rename("amq:forkserver")
    retitle("actormq: forkserver")
    raise_descriptor_limit()
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = _Server(sock).run(preload)

    from actormq.actors.entry import run_role

    run_role(child)


class _Server:
    """The forkserver's side."""

    def __init__(self, sock: socket.socket) -> None:
        import select

        from actormq.actors import control

        self._control = control
        self._line = control.Line(sock, control.ToForkserver)
        self._requests: list[tuple[control.Fork, int]] = []
        self._woken, self._waker = os.pipe()
        for fd in (self._woken, self._waker):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        self._poller = select.poll()
        self._poller.register(self._line.fileno(), select.POLLIN)
        self._poller.register(self._woken, select.POLLIN)

    def run(self, preload: Sequence[str]) -> socket.socket:
        """Import, then fork as asked; returns only in a child, with its control line."""
        import gc

        gc.disable()
        child = self._preload(preload)
        gc.freeze()  # what is here stays shared with the children: their collector does not touch it
        while child is None and (child := self._fork_next(lambda request: True)) is None:
            self._turn(None)
        gc.enable()
        return child

    def _preload(self, modules: Sequence[str]) -> socket.socket | None:
        """Import all of `modules`; a one-shot role whose module is there need not wait for the rest."""
        import importlib

        loaded = set()
        for module in (ENTRY, *modules):
            try:
                importlib.import_module(module)
            except ImportError:
                continue  # the role that needs it dies of it, with a traceback
            loaded.add(module)
            self._turn(0)
            child = self._fork_next(lambda request: request.early and request.module in loaded)
            if child is not None:
                return child
        return None

    def _turn(self, timeout_ms: int | None) -> None:
        """Take requests, report the dead; exit with the supervisor."""
        self._poller.poll(timeout_ms)
        self._requests += [(request, fd) for request, (fd,) in self._line.receive()]
        if self._line.ended:
            os._exit(0)
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, 4096)
        self._reap()
        self._line.flush()

    def _fork_next(self, wanted: Callable[[control.Fork], bool]) -> socket.socket | None:
        """Fork every request that is wanted; return a child's control line in that child, else None."""
        for letter in [letter for letter in self._requests if wanted(letter[0])]:
            self._requests.remove(letter)
            request, fd = letter
            pid = os.fork()
            if pid == 0:
                self._leave()
                rename(f"amq:{request.role}")
                retitle(f"actormq: {request.role}")
                return socket.socket(fileno=fd)
            os.close(fd)
            self._report(request, pid)
        return None

    def _leave(self) -> None:
        """In a child: drop everything that is the forkserver's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._line.close()
        for fd in (self._woken, self._waker, *(other for _, other in self._requests)):
            os.close(fd)

    def _report(self, request: control.Fork, pid: int) -> None:
        forked = self._control.Forked(role=request.role, incarnation=request.incarnation, pid=pid)
        if not hasattr(os, "pidfd_open"):
            self._line.send(forked)
            return
        pidfd = os.pidfd_open(pid)  # our child, not reaped yet: nobody else can have this number
        self._line.send(forked, [pidfd])
        os.close(pidfd)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._line.send(self._control.Exited(pid=pid, status=status))


def rename(name: str) -> None:
    """Give this process a short name, as ``top`` shows it, where the system has a file for that."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(name[:_NAME_BYTES_MAX])


def retitle(title: str) -> None:
    """Overwrite our arguments, as ``ps -ef`` shows them: a forked role has the forkserver's otherwise.

    Where they lie is in the 48th and 49th field of stat.  Source: proc(5).
    """
    with contextlib.suppress(OSError, IndexError, ValueError):
        with open("/proc/self/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(title.encode()[: end - start - 1].ljust(end - start, b"\0"))


if __name__ == "__main__":
    main(sys.argv[1:])
