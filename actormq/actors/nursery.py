"""Processes of roles: forked, told who they are, handed their ports; and known to be dead for certain.

The supervisor's hands: it decides who is to live, this file makes it so.  A process gets nothing before
the supervisor has its pid and pidfd (a `Start`, ports, then `Go`): one that was forked while the
forkserver died sees the end of its line first, and has touched nothing.
A port belongs to one incarnation of its client, and survives its server.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from actormq.actors import control
from actormq.actors.child import GIVEN, Child, Phase
from actormq.actors.forkserver import Forkserver
from actormq.actors.loop import READ, WRITE, Loop
from actormq.actors.premises import Shared
from actormq.actors.roles import PortSpec
from actormq.shm.positions import RoleCell, RoleState
from actormq.shm.ring import Port

_STATUS_WAIT_MS: Final = 2_000
"""So long the forkserver may take to say how a role ended; it may be importing, on a busy machine."""
_SHORT_STATUS_WAIT_MS: Final = 50
_RESET_CELLS: Final = tuple(cell for cell in RoleCell if RoleCell.STATE < cell < RoleCell.COUNTER_0)


class Keeper(Protocol):
    """Who decides."""

    def may_start(self, child: Child) -> bool:
        """Whether a process that has just been forked begins now, or waits for `Nursery.give`."""
        ...

    def on_running(self, child: Child) -> None:
        """It serves."""
        ...

    def on_message(self, child: Child, message: control.FromRole) -> None:
        """It says something else."""
        ...

    def on_gone(self, child: Child, phase: Phase) -> None:
        """Its process is gone; `phase` is where that was."""
        ...

    def on_forkserver_gone(self, lived_ns: int) -> bool:
        """The forkserver died; whether another one is wanted."""
        ...


class Nursery:
    """The processes of all roles.

    Args:
        preload: the modules that a new forkserver imports.
    """

    def __init__(
        self,
        loop: Loop,
        children: dict[str, Child],
        forkserver: Forkserver,
        preload: Sequence[str],
        shared: Shared,
        keeper: Keeper,
    ) -> None:
        self._loop = loop
        self._children = children
        self._forkserver = forkserver
        self._preload = preload
        self._shared = shared
        self._positions = shared.positions
        self._keeper = keeper
        self._watch_forkserver()

    @property
    def forkserver_pid(self) -> int:
        return self._forkserver.pid

    # -- forking

    def launch(self, child: Child) -> None:
        """Ask for the process of the next incarnation."""
        child.incarnation += 1
        child.status = None
        child.silent = False
        child.dropped = False
        child.timer = None
        child.phase = Phase.FORKING
        child.given_ns = time.monotonic_ns()
        self._fork(child)

    def _fork(self, child: Child) -> None:
        ours, theirs = control.line_pair()
        line = child.line = control.Line(ours, control.FromRole)
        self._watch_line(line, lambda events: self._on_line(child, line))
        spec = child.spec
        request = control.Fork(
            role=spec.role, incarnation=child.incarnation, module=spec.module, early=spec.one_shot
        )
        self._fork_line.send(request, [theirs.fileno()])
        self._watch_line(self._fork_line, self._on_forkserver)
        theirs.close()

    def _watch_forkserver(self) -> None:
        self._forkserver_since_ns = time.monotonic_ns()
        self._fork_line = control.Line(self._forkserver.socket, control.FromForkserver)
        self._watch_line(self._fork_line, self._on_forkserver)

    def _watch_line(self, line: control.Line, callback: Callable[[int], None]) -> None:
        self._loop.watch(line.fileno(), READ | WRITE if line.unsent else READ, callback)

    def _on_forkserver(self, _events: int) -> None:
        self._fork_line.flush()
        for message, descriptors in self._fork_line.receive():
            if isinstance(message, control.Forked):
                self._forked(message, descriptors)
            else:
                self._exited(message)
        if self._fork_line.ended:
            self._replace_forkserver()
        else:
            self._watch_line(self._fork_line, self._on_forkserver)

    def _forked(self, forked: control.Forked, descriptors: list[int]) -> None:
        child = self._children[forked.role]
        if child.phase is not Phase.FORKING:  # we stop, and closed its line
            for fd in descriptors:
                os.close(fd)
            return
        assert child.incarnation == forked.incarnation, (child.incarnation, forked)
        child.pid = forked.pid
        child.is_orphan = False
        child.phase = Phase.HELD
        if descriptors:
            child.pidfd = descriptors[0]
            self._loop.watch(child.pidfd, READ, lambda events: self._on_pidfd(child))
        if self._keeper.may_start(child):
            self.give(child)

    def _replace_forkserver(self) -> None:
        """It died alone: roles live on, those just being forked are begun again."""
        self._loop.unwatch(self._fork_line.fileno())
        self._forkserver.end()
        for child in self._children.values():
            self._orphan(child)
        if not self._keeper.on_forkserver_gone(time.monotonic_ns() - self._forkserver_since_ns):
            return
        self._forkserver = Forkserver(self._preload)
        self._watch_forkserver()
        for child in self._children.values():
            if child.phase is Phase.FORKING:
                # Should it have been forked after all, it sees the end of its line before any Go.
                assert child.line is not None
                self._loop.unwatch(child.line.fileno())
                child.line.close()
                self._fork(child)

    def _orphan(self, child: Child) -> None:
        """Its forkserver is gone; what that had to report of it has been read."""
        child.is_orphan = True
        if child.alive and child.timer is not None:
            child.timer.cancel()
            child.timer = None
            self._expect_status(child)

    # -- handing over

    def give(self, child: Child) -> None:
        """Tell a forked process who it is, hand it its ports and those that it serves, and let it go."""
        assert child.line is not None
        child.phase = Phase.STARTING
        child.given_ns = time.monotonic_ns()
        self._set_cells(child, pid=child.pid, state=RoleState.STARTING)
        self._positions.set_role(child.slot, RoleCell.INCARNATION, child.incarnation)
        self._send_start(child, child.line)
        for spec in child.spec.ports:
            if spec.server in self._children:
                self._open_port(child, spec)
        self._hand_over_served(child)
        self.tell(child, control.Go())
        for kind, role, incarnation, port in child.closing:
            self.tell(child, control.PortClosed(kind=kind, client=role, incarnation=incarnation))
            port.close()
        child.closing.clear()

    def _set_cells(self, child: Child, pid: int, state: RoleState) -> None:
        """Wishes, heartbeat and the like are an incarnation's own; counters go on."""
        for cell in _RESET_CELLS:
            self._positions.set_role(child.slot, cell, 0)
        self._positions.set_role(child.slot, RoleCell.PID, pid)
        self._positions.set_role(child.slot, RoleCell.STATE, state)

    def _hand_over_served(self, server: Child) -> None:
        for client in self._children.values():
            for kind, port in client.ports.items():
                if self._server_of(client, kind) is server:
                    self._hand_over(server, kind, client.role, client.incarnation, port)
        for kind, role, incarnation, port in server.closing:
            self._hand_over(server, kind, role, incarnation, port)

    def _send_start(self, child: Child, line: control.Line) -> None:
        handed = {"log": self._shared.log_fd}
        handed |= {f"segment:{purpose}": fd for purpose, fd in self._shared.segments.items()}
        handed |= {f"doorbell:{role}": fd for role, fd in self._shared.doorbells.items()}
        handed |= {f"listener:{name}": fd for name, fd in self._shared.listeners.of(child.role).items()}
        start = control.Start(
            role=child.role,
            class_path=child.spec.class_path,
            slot=child.slot,
            incarnation=child.incarnation,
            run_dir=str(self._shared.run_dir),
            config=self._shared.config,
            one_shot=child.spec.one_shot,
            names=list(handed),
        )
        line.send(start, list(handed.values()))

    def _open_port(self, child: Child, spec: PortSpec) -> None:
        port = Port.create(self._shared.prefix, spec.kind, spec.request_bytes, spec.completion_bytes)
        port.segment.unlink()  # both sides get descriptors
        child.ports[spec.kind] = port
        for side in (child, self._children[spec.server]):
            if side.phase in GIVEN:
                self._hand_over(side, spec.kind, child.role, child.incarnation, port)

    def _hand_over(self, to: Child, kind: str, client: str, incarnation: int, port: Port) -> None:
        opened = control.PortOpened(kind=kind, client=client, incarnation=incarnation)
        self.tell(to, opened, [port.segment.fd])

    def _server_of(self, client: Child, kind: str) -> Child | None:
        server = next(spec.server for spec in client.spec.ports if spec.kind == kind)
        return self._children.get(server)

    def tell(self, child: Child, message: control.ToRole, descriptors: Sequence[int] = ()) -> None:
        """Send to one role; to a dead one nothing is sent."""
        line = child.line
        if line is not None and not line.ended:
            line.send(message, descriptors)
            self._watch_line(line, lambda events: self._on_line(child, line))

    def tell_all(self, message: control.ToRole, but: Child) -> None:
        """Send to every role that was told who it is, except `but`."""
        for child in self._children.values():
            if child is not but and child.phase in GIVEN:
                self.tell(child, message)

    def close_ports(self, child: Child) -> None:
        """It is dead: its servers drain and forget the ports that it was the client of."""
        for kind, port in child.ports.items():
            server = self._server_of(child, kind)
            assert server is not None
            if server.phase in GIVEN:
                closed = control.PortClosed(kind=kind, client=child.role, incarnation=child.incarnation)
                self.tell(server, closed)
                port.close()
            else:  # dead at the same time: its successor finishes what it had begun for this port
                server.closing.append((kind, child.role, child.incarnation, port))
        child.ports.clear()

    def close(self) -> None:
        """Whatever ends the supervisor, its roles end, too; nothing of theirs stays open here."""
        for child in self._children.values():
            child.kill()
            child.forget_process()
            for port in [*child.ports.values(), *(left for *_, left in child.closing)]:
                port.close()
        self._forkserver.end()

    # -- what roles say

    def _on_line(self, child: Child, line: control.Line) -> None:
        line.flush()
        self._read_line(child, line)
        if line.ended:
            self._loop.unwatch(line.fileno())
            if child.pidfd < 0 and child.phase is not Phase.FORKING:
                self._expect_status(child)  # no pidfds here: only a dead process closes its end
        else:
            self._watch_line(line, lambda events: self._on_line(child, line))

    def _read_line(self, child: Child, line: control.Line) -> None:
        for message, _ in line.receive():
            if not isinstance(message, control.Running):
                self._keeper.on_message(child, message)
            elif child.phase is Phase.STARTING:
                child.phase = Phase.RUNNING
                child.running_since_ns = time.monotonic_ns()
                self._keeper.on_running(child)

    # -- deaths

    def end(self, child: Child) -> None:
        """Kill it; one that is just being forked sees the end of its line before any Go, and exits."""
        if child.alive:
            child.kill()
            return
        if child.phase is Phase.FORKING and child.line is not None:
            self._loop.unwatch(child.line.fileno())
            child.forget_process()
        child.phase = Phase.ENDED

    def _on_pidfd(self, child: Child) -> None:
        self._loop.unwatch(child.pidfd)
        self._expect_status(child)

    def _expect_status(self, child: Child) -> None:
        """It is gone; the forkserver says in a moment how, unless it died itself."""
        if child.timer is None:
            wait_ms = _SHORT_STATUS_WAIT_MS if child.is_orphan or self._is_through(child) else _STATUS_WAIT_MS
            child.timer = self._loop.call_later_ms(wait_ms, lambda: self._gone(child))

    def _exited(self, exited: control.Exited) -> None:
        for child in self._children.values():
            if child.pid == exited.pid and child.alive:
                child.status = exited.status
                self._gone(child)

    def _gone(self, child: Child) -> None:
        """That process is dead for certain."""
        if child.timer is not None:
            child.timer.cancel()
            child.timer = None
        if child.status is None and child.pidfd >= 0:
            child.status = _reap(child.pidfd)
        if child.status is None and self._is_through(child):
            child.status = 0  # nobody could reap it, but it had said so
        phase = child.phase
        self._bury(child)
        child.phase = Phase.NONE
        self._keeper.on_gone(child, phase)

    def _is_through(self, child: Child) -> bool:
        """Whether it had said that it stops."""
        return self._positions.role(child.slot, RoleCell.STATE) == RoleState.STOPPED

    def _bury(self, child: Child) -> None:
        line = child.line
        if line is not None and not line.ended:
            self._read_line(child, line)
            self._loop.unwatch(line.fileno())
        if child.pidfd >= 0:
            self._loop.unwatch(child.pidfd)
        child.forget_process()
        (self._shared.run_dir / child.mailbox_name).unlink(missing_ok=True)
        self._set_cells(child, pid=0, state=RoleState.ABSENT)


def _reap(pidfd: int) -> int | None:
    """Return the wait status of an orphan that fell to us (we are its init), None when it is not ours."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status << 8 if result.si_code == os.CLD_EXITED else result.si_status
