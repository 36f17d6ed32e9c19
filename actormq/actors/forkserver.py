"""The forkserver: a small, clean process that has everything imported, and forks one role per request.

The supervisor starts it first thing, as a fresh interpreter, so that importing goes on while the rest is
prepared.  It holds no context, thread or socket but its line to the supervisor; a child gets its own
control line and nothing else.  It reaps its children and reports how they ended.
It dies with the supervisor (end of file).  If it dies alone, roles live on and the supervisor starts
another one.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from actormq.actors import control

RUNTIME: Final = "actormq.actors.runtime"
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
    import contextlib
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS_WANTED)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(arguments: Sequence[str]) -> None:
    """Serve until the supervisor goes: ``forkserver FD MODULE…``."""
    fd, *preload = arguments
    sock = socket.socket(fileno=int(fd))
    os.set_inheritable(sock.fileno(), False)
    rename("amq:forkserver")
    raise_descriptor_limit()
    _preload(preload)
    child = _serve(sock)
    from actormq.actors.runtime import run_role

    run_role(child)


def _preload(modules: Sequence[str]) -> None:
    import contextlib
    import gc
    import importlib

    importlib.import_module(RUNTIME)
    for module in modules:
        with contextlib.suppress(ImportError):  # the role that needs it dies of it, with a traceback
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is here stays shared with the children: their collector does not touch it


def _serve(sock: socket.socket) -> socket.socket:
    """Fork as asked; returns only in a child, with its control line."""
    import faulthandler
    import select
    import signal

    from actormq.actors import control

    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    woken, waker = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    line = control.Line(sock, control.ToForkserver)
    poller = select.poll()
    poller.register(line.fileno(), select.POLLIN)
    poller.register(woken, select.POLLIN)
    while True:
        poller.poll()
        requests = line.receive()
        while requests:
            request, (fd,) = requests.pop(0)
            if _fork(request, line):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                line.close()
                _close([woken, waker, *(other for _, (other,) in requests)])
                return socket.socket(fileno=fd)
            os.close(fd)
        if line.ended:
            os._exit(0)
        _drain(woken)
        _reap(line)


def _fork(request: control.Fork, line: control.Line) -> bool:
    """Return True in the new role's process, False in ours."""
    from actormq.actors import control

    pid = os.fork()
    if pid == 0:
        rename(f"amq:{request.role}")
        return True
    forked = control.Forked(role=request.role, incarnation=request.incarnation, pid=pid)
    if hasattr(os, "pidfd_open"):
        pidfd = os.pidfd_open(pid)  # our child, not reaped yet: nobody else can have this number
        line.send(forked, [pidfd])
        os.close(pidfd)
    else:
        line.send(forked)
    return False


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _drain(fd: int) -> None:
    import contextlib

    with contextlib.suppress(BlockingIOError):
        os.read(fd, 4096)


def _reap(line: control.Line) -> None:
    from actormq.actors import control

    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        line.send(control.Exited(pid=pid, status=status))


def rename(name: str) -> None:
    """Give this process a name for ``ps -o comm`` and ``top``, where the system has a file for that."""
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write(name[:_NAME_BYTES_MAX])
    except OSError:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
