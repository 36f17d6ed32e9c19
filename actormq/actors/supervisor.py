"""supervisor: makes shared memory, sockets and roles, watches them, and ends them in order.

From: roles (control lines, log pipe, the positions page), the forkserver (pids, exits), signals.
To: roles (control lines).  Owns: segments, listening sockets, run folder, store lock.
When it dies, every role sees the end of its control line and exits; the next one sweeps and recovers.

It never touches a message: it may be slow, and it must not block.  The one wait is the sync of what a
dead flusher left (design-failure §3).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from actormq.actors import control
from actormq.actors.child import GIVEN, Child, Deaths, Phase
from actormq.actors.forkserver import Forkserver, raise_descriptor_limit, rename
from actormq.actors.listeners import Listeners
from actormq.actors.loop import READ, WRITE, Loop
from actormq.actors.roles import RoleSpec, settle
from actormq.actors.rundir import RunDir, prefix_of
from actormq.actors.status import EXIT_CRASH_LOOP, EXIT_REFUSED, EXIT_STORE_FAILED, EXIT_UNCLEAN
from actormq.actors.storelock import StoreLock
from actormq.actors.unsynced import UnsyncedFiles
from actormq.config import BrokerConfig
from actormq.errors import ConfigError, StoreFailed
from actormq.shm.doorbell import doorbell_fd
from actormq.shm.extents import Extents
from actormq.shm.intent import IntentPage
from actormq.shm.positions import Position, Positions, RoleCell, RoleState, slot_of
from actormq.shm.ring import Port
from actormq.shm.segment import Segment, sweep
from actormq.telemetry.log import LogSink

ABORT_NAME: Final = "abort"
_TICK_MS: Final = 1_000
_STATUS_WAIT_MS: Final = 50
_STOP_ASKED_MS: Final = 200
"""A SIGTERM to every process of a group or unit reaches us within that time, too."""
_LOG_READS_MAX: Final = 16
_RESET_CELLS: Final = tuple(
    cell for cell in RoleCell if RoleCell.PID <= cell < RoleCell.COUNTER_0 and cell is not RoleCell.STATE
)


@dataclass
class _Ending:
    """The broker stops: how and why."""

    status: int
    sentence: str = ""
    killed: bool = False


class Supervisor:
    """Runs `roles` until it is told to stop.

    Args:
        config: settings; port 0 is replaced by the port taken before any role sees them.
        roles: who is to run; one-shot roles run first and must end well.
        store_root: the folder that is locked; None where no store is kept.
        forkserver: one that was started before, to save time; else it is started here.
        on_ready: called once, when every role runs.
        log_stream: where the log goes when ``config.log_path`` is None; stderr by default.
    """

    def __init__(
        self,
        config: BrokerConfig,
        roles: Sequence[RoleSpec],
        *,
        store_root: Path | None = None,
        forkserver: Forkserver | None = None,
        on_ready: Callable[[Supervisor], None] | None = None,
        log_stream: TextIO | None = None,
    ) -> None:
        self.config = config
        self.started_ns = time.monotonic_ns()
        self.ready_ns: int | None = None
        self.listeners = Listeners()
        self._preload = list(dict.fromkeys(spec.module for spec in roles))
        self._forkserver = forkserver
        self._store_root = store_root
        self._on_ready = on_ready
        self._log_stream = log_stream
        self._children = {spec.role: Child(spec, slot_of(spec.role)) for spec in roles}
        self._ending: _Ending | None = None
        self._forkserver_deaths = Deaths()
        self._stages: list[int] = []
        self._release = contextlib.ExitStack()
        self._loop = Loop()
        self._woken, self._waker = os.pipe()
        for fd in (self._woken, self._waker):
            os.set_blocking(fd, False)
            self._release.callback(os.close, fd)

    # -- life

    def run(self) -> int:
        """Run until SIGTERM, SIGINT, `request_stop` or a reason to give up; return the exit status.

        Raises:
            ActorMQError: it cannot even begin (folder locked, port in use, no memory); nothing is left.
        """
        with self._release:
            self._prepare()
            self._launch_all()
            while not self._over():
                self._loop.run_once()
            return self._conclude()

    def request_stop(self) -> None:
        """Stop cleanly; from any thread or a signal handler."""
        with contextlib.suppress(OSError):
            os.write(self._waker, b"s")

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        """Host and port by front, as really taken: ``gateway.tcp``, ``gateway.zmq``, ``nameserver.tcp`` …"""
        return self.listeners.addresses

    @property
    def ready_s(self) -> float | None:
        """Seconds from the start of this object until every role ran."""
        return None if self.ready_ns is None else (self.ready_ns - self.started_ns) / 1e9

    def pids(self) -> dict[str, int]:
        """The living roles' processes."""
        return {role: child.pid for role, child in self._children.items() if child.alive}

    # -- preparing

    def _prepare(self) -> None:
        raise_descriptor_limit()
        if self._forkserver is None:
            self._forkserver = Forkserver(self._preload)
        self._release.callback(self._end_forkserver)
        self._open_log()
        if self._store_root is not None:
            lock = StoreLock(self._store_root)
            self._release.callback(lock.close)
            lock.own()
        self._make_run_dir()
        self._bind()
        self._make_segments()
        self._make_doorbells()
        self._take_signals()

    def _open_log(self) -> None:
        try:
            self._sink = LogSink(self.config.log_path, self._log_stream)
        except OSError as error:
            raise ConfigError(f"cannot write the log {self.config.log_path}: {error.strerror}") from error
        self.log = self._sink.logger
        self._release.callback(self._sink.close)
        self._release.callback(self._sink.adopt("actormq"))
        self._log_fd, self._log_write_fd = os.pipe()
        os.set_blocking(self._log_fd, False)
        self._release.callback(os.close, self._log_fd)
        self._release.callback(os.close, self._log_write_fd)
        self._loop.watch(self._log_fd, READ, self._read_log)

    def _make_run_dir(self) -> None:
        self._prefix = prefix_of(self._store_root)
        self.run_dir = RunDir(self._prefix)
        self._release.callback(self.run_dir.remove)
        swept = self.run_dir.swept + sweep(self._prefix)
        if swept:
            self.log.info("swept what a dead broker left", extra={"count": len(swept)})

    def _bind(self) -> None:
        self._release.callback(self.listeners.close)
        for child in self._children.values():
            for front in child.spec.fronts:
                if not self.listeners.bind(child.role, front):
                    self.log.warning("a port is taken, doing without", extra={"front": front.address_key})
        self.config = settle(self.config, self.listeners.addresses)
        self._encoded_config = control.encode_config(self.config)

    def _make_segments(self) -> None:
        sizes = {"positions": Positions.payload_bytes()}
        if self._store_root is not None:
            sizes["extents"] = Extents.payload_bytes(self.config.memory.queue_rows_max)
            sizes["tables"] = self.config.memory.tables_bytes
            sizes["intent"] = IntentPage.payload_bytes()
        self._segments = {purpose: self._segment(purpose, size) for purpose, size in sizes.items()}
        self.positions = Positions(self._segments["positions"].view)
        own = slot_of("supervisor")
        for cell, value in (
            (RoleCell.INCARNATION, 1),
            (RoleCell.PID, os.getpid()),
            (RoleCell.STATE, RoleState.RUNNING),
            (RoleCell.SLEEPING, 1),  # always: it only looks when rung
        ):
            self.positions.set_role(own, cell, value)
        self._unsynced = self._follow_log()

    def _segment(self, purpose: str, size: int) -> Segment:
        segment = Segment.create(self._prefix, purpose, size)
        segment.unlink()  # roles get descriptors: a name would only be something to leave behind
        self._release.callback(segment.close)
        return segment

    def _follow_log(self) -> UnsyncedFiles | None:
        if self._store_root is None:
            return None
        files = UnsyncedFiles(self._store_root / "commitlog", self.config.store.log_file_bytes)
        self._release.callback(files.close)
        return files

    def _make_doorbells(self) -> None:
        self._doorbells = {role: doorbell_fd() for role in ("supervisor", *self._children)}
        for fd in self._doorbells.values():
            self._release.callback(os.close, fd)
        self._loop.watch(self._doorbells["supervisor"], READ, self._rung)

    def _take_signals(self) -> None:
        self._loop.watch(self._woken, READ, lambda events: self._stop_asked(os.read(self._woken, 4096)))
        if threading.current_thread() is not threading.main_thread():
            return  # embedded: the owner calls request_stop
        rename("amq:supervisor")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            before = signal.signal(number, lambda number, frame: self.request_stop())
            self._release.callback(signal.signal, number, before)

    # -- starting roles

    def _launch_all(self) -> None:
        self._release.callback(self._kill_left)
        self._watch_forkserver()
        self._loop.call_later_ms(_TICK_MS, self._tick)
        if not self._recovering():
            self.listeners.listen()
        for child in self._children.values():
            self._launch(child)

    def _watch_forkserver(self) -> None:
        assert self._forkserver is not None
        self._forkserver_since_ns = time.monotonic_ns()
        self._fork_line = control.Line(self._forkserver.socket, control.FromForkserver)
        self._watch_line(self._fork_line, self._on_forkserver)

    def _watch_line(self, line: control.Line, callback: Callable[[int], None]) -> None:
        self._loop.watch(line.fileno(), READ | WRITE if line.unsent else READ, callback)

    def _launch(self, child: Child) -> None:
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
        child.phase = Phase.HELD
        if descriptors:
            child.pidfd = descriptors[0]
            self._loop.watch(child.pidfd, READ, lambda events: self._on_pidfd(child))
        if child.spec.one_shot or not self._recovering():
            self._give(child)

    def _recovering(self) -> bool:
        return any(
            child.spec.one_shot and child.phase is not Phase.ENDED for child in self._children.values()
        )

    def _give(self, child: Child) -> None:
        """Tell a forked process who it is, hand it its ports and those that it serves, and let it go."""
        assert child.line is not None
        child.phase = Phase.STARTING
        child.given_ns = time.monotonic_ns()
        for cell in _RESET_CELLS:
            self.positions.set_role(child.slot, cell, 0)
        self.positions.set_role(child.slot, RoleCell.PID, child.pid)
        self.positions.set_role(child.slot, RoleCell.INCARNATION, child.incarnation)
        self.positions.set_role(child.slot, RoleCell.STATE, RoleState.STARTING)
        self._send_start(child, child.line)
        for spec in child.spec.ports:
            if spec.server in self._children:
                self._open_port(child, spec.kind, spec.server, spec.request_bytes, spec.completion_bytes)
        for client in self._children.values():
            for kind, port in client.ports.items():
                if client is not child and self._server_of(client, kind) is child:
                    self._hand_over(child, kind, client.role, client.incarnation, port)
        for kind, role, incarnation, port in child.closing:
            self._hand_over(child, kind, role, incarnation, port)
        self._tell(child, control.Go())
        for kind, role, incarnation, port in child.closing:
            self._tell(child, control.PortClosed(kind=kind, client=role, incarnation=incarnation))
            port.close()
        child.closing.clear()

    def _send_start(self, child: Child, line: control.Line) -> None:
        handed = {"log": self._log_write_fd}
        handed |= {f"segment:{purpose}": segment.fd for purpose, segment in self._segments.items()}
        handed |= {f"doorbell:{role}": fd for role, fd in self._doorbells.items()}
        handed |= {f"listener:{name}": fd for name, fd in self.listeners.of(child.role).items()}
        start = control.Start(
            role=child.role,
            class_path=child.spec.class_path,
            slot=child.slot,
            incarnation=child.incarnation,
            run_dir=str(self.run_dir.path),
            config=self._encoded_config,
            one_shot=child.spec.one_shot,
            names=list(handed),
        )
        line.send(start, list(handed.values()))

    def _open_port(self, child: Child, kind: str, server: str, requests: int, completions: int) -> None:
        port = Port.create(self._prefix, kind, requests, completions)
        port.segment.unlink()
        child.ports[kind] = port
        self._hand_over(child, kind, child.role, child.incarnation, port)
        if self._children[server].phase in GIVEN:
            self._hand_over(self._children[server], kind, child.role, child.incarnation, port)

    def _hand_over(self, to: Child, kind: str, client: str, incarnation: int, port: Port) -> None:
        opened = control.PortOpened(kind=kind, client=client, incarnation=incarnation)
        self._tell(to, opened, [port.segment.fd])

    def _server_of(self, client: Child, kind: str) -> Child | None:
        server = next(spec.server for spec in client.spec.ports if spec.kind == kind)
        return self._children.get(server)

    def _tell(self, child: Child, message: control.ToRole, descriptors: Sequence[int] = ()) -> None:
        line = child.line
        if line is not None:
            line.send(message, descriptors)
            self._watch_line(line, lambda events: self._on_line(child, line))

    def _tell_all(self, message: control.ToRole, but: Child) -> None:
        for child in self._children.values():
            if child is not but and child.phase in GIVEN:
                self._tell(child, message)

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
            if isinstance(message, control.StoreBroken):
                self._store_failed(message.sentence)
            elif isinstance(message, control.StopAsked):
                self._loop.call_later_ms(_STOP_ASKED_MS, lambda: self._stop_one(child))
            elif child.phase is Phase.STARTING:
                self._running(child)

    def _stop_one(self, child: Child) -> None:
        """Somebody wants this role to end; when it was not the whole broker, it is drained and replaced."""
        if self._ending is None and child.phase in GIVEN:
            self.log.info(f"{child.role} was asked to stop, replacing it")
            self._tell(child, control.Stop())

    def _running(self, child: Child) -> None:
        if child.spec.one_shot:
            return
        child.phase = Phase.RUNNING
        child.running_since_ns = time.monotonic_ns()
        if self.ready_ns is not None:
            self.log.info(f"{child.role} runs again", extra={"incarnation": child.incarnation})
            self._tell_all(control.RoleChanged(role=child.role, incarnation=child.incarnation), child)
        elif all(other.phase in (Phase.RUNNING, Phase.ENDED) for other in self._children.values()):
            self._ready()

    def _ready(self) -> None:
        self.ready_ns = time.monotonic_ns()
        self.log.info("ready", extra={"seconds": f"{self.ready_s:.3f}"})
        notify_systemd("READY=1")
        if self._on_ready is not None:
            self._on_ready(self)

    def _rung(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._doorbells["supervisor"], 4096)
        self._check_store()

    def _read_log(self, _events: int = 0) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_LOG_READS_MAX):  # then the others' turn, however much is logged
                self._sink.feed(os.read(self._log_fd, 65_536))

    # -- deaths

    def _on_pidfd(self, child: Child) -> None:
        self._loop.unwatch(child.pidfd)
        self._expect_status(child)

    def _expect_status(self, child: Child) -> None:
        """It is gone; the forkserver says in a moment how, unless it died itself."""
        if child.timer is None:
            child.timer = self._loop.call_later_ms(_STATUS_WAIT_MS, lambda: self._gone(child))

    def _exited(self, exited: control.Exited) -> None:
        for child in self._children.values():
            if child.pid == exited.pid and child.alive:
                child.status = exited.status
                self._gone(child)

    def _gone(self, child: Child) -> None:
        """That process is dead for certain: tell everyone, and start the next one where that is right."""
        if child.timer is not None:
            child.timer.cancel()
            child.timer = None
        if child.status is None and child.pidfd >= 0:
            child.status = _reap(child.pidfd)
        if child.status is None and self.positions.role(child.slot, RoleCell.STATE) == RoleState.STOPPED:
            child.status = 0  # nobody could reap it, but it had said that it was through
        self._read_log()
        phase = child.phase
        self._bury(child)
        if child.spec.one_shot:
            self._one_shot_ended(child)
        elif self._ending is not None:
            self._ended_while_stopping(child)
        else:
            self._died(child, phase)

    def _bury(self, child: Child) -> None:
        line = child.line
        if line is not None:
            if not line.ended:
                self._read_line(child, line)
            # A message to it after its end may have had it watched again.
            self._loop.unwatch(line.fileno())
        if child.pidfd >= 0:
            self._loop.unwatch(child.pidfd)
        child.forget_process()
        (self.run_dir.path / child.mailbox_name).unlink(missing_ok=True)
        for cell in _RESET_CELLS:
            self.positions.set_role(child.slot, cell, 0)
        self.positions.set_role(child.slot, RoleCell.STATE, RoleState.ABSENT)

    def _died(self, child: Child, phase: Phase) -> None:
        if child.role == "flusher":
            self._sync_unsynced()
        self._check_store()
        if child.exit_status == EXIT_STORE_FAILED:
            self._store_failed(f"{child.role} says so: see above")
        elif child.exit_status == EXIT_REFUSED and self.ready_ns is None:
            self._give_up(f"{child.role} cannot start: see above", EXIT_REFUSED)
        if self._ending is not None:
            child.phase = Phase.ENDED
            return
        now_ns = time.monotonic_ns()
        lived_ns = now_ns - child.running_since_ns if phase is Phase.RUNNING else 0
        limits = self.config.supervisor
        delay_ms = child.deaths.count(lived_ns, now_ns, limits, from_outside=child.was_killed)
        child.phase = Phase.NONE
        if delay_ms is None:
            times = limits.crash_loop_restarts
            sentence = f"{child.role} died {times} times in a row, at last it {child.ending()}: giving up"
            self._give_up(sentence, EXIT_CRASH_LOOP)
            return
        self.log.error(
            f"{child.role} {child.ending()}",
            extra={"incarnation": child.incarnation, "restart_in_ms": delay_ms},
        )
        self._close_ports(child)
        if phase in GIVEN:
            self._tell_all(control.RoleChanged(role=child.role, incarnation=0), child)
        if delay_ms == 0:
            self._launch(child)
        else:
            child.timer = self._loop.call_later_ms(delay_ms, lambda: self._launch(child))

    def _close_ports(self, child: Child) -> None:
        for kind, port in child.ports.items():
            server = self._server_of(child, kind)
            assert server is not None
            if server.phase in GIVEN:
                closed = control.PortClosed(kind=kind, client=child.role, incarnation=child.incarnation)
                self._tell(server, closed)
                port.close()
            else:  # dead at the same time: its successor finishes what it had begun for this port
                server.closing.append((kind, child.role, child.incarnation, port))
        child.ports.clear()

    def _one_shot_ended(self, child: Child) -> None:
        child.phase = Phase.ENDED
        if self._ending is not None:
            return
        if child.exit_status != 0:
            self._check_store()
            self._give_up(f"{child.role} {child.ending()}: see above", child.exit_status or EXIT_UNCLEAN)
        elif not self._recovering():
            self._begin_service()

    def _begin_service(self) -> None:
        """Recovery is done: let everyone go at once."""
        self.listeners.listen()
        for child in self._children.values():
            if child.phase is Phase.HELD:
                self._give(child)

    def _replace_forkserver(self) -> None:
        """It died alone: roles live on, those just being forked are begun again."""
        if self._ending is not None:
            self._loop.unwatch(self._fork_line.fileno())
            return
        self._end_forkserver()
        now_ns = time.monotonic_ns()
        lived_ns = now_ns - self._forkserver_since_ns
        limits = self.config.supervisor
        if self._forkserver_deaths.count(lived_ns, now_ns, limits, from_outside=False) is None:
            self._give_up("the forkserver died again and again: giving up", EXIT_CRASH_LOOP)
            return
        self.log.error("the forkserver died; starting another one")
        self._forkserver = Forkserver(self._preload)
        self._watch_forkserver()
        for child in self._children.values():
            if child.phase is Phase.FORKING:
                # Should it have been forked after all, it sees the end of its line before any Go.
                assert child.line is not None
                self._loop.unwatch(child.line.fileno())
                child.line.close()
                self._fork(child)

    def _end_forkserver(self) -> None:
        assert self._forkserver is not None
        if hasattr(self, "_fork_line"):
            self._loop.unwatch(self._fork_line.fileno())
            self._fork_line.close()
        else:
            self._forkserver.socket.close()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.kill(self._forkserver.pid, signal.SIGKILL)  # it has nothing to finish
            os.waitpid(self._forkserver.pid, 0)

    # -- the store's failure

    def _check_store(self) -> None:
        if self.positions.get(Position.STORE_FAILED):
            self._store_failed("a write or sync of the log failed")

    def _store_failed(self, sentence: str) -> None:
        """Every role dies at once: whatever is acknowledged from now on could be lost."""
        self._give_up(f"the store failed: {sentence}; restart after the disk is repaired", EXIT_STORE_FAILED)

    def _sync_unsynced(self) -> None:
        if self._unsynced is None:
            return
        try:
            self._unsynced.sync()
        except StoreFailed as error:
            self.positions.set(Position.STORE_FAILED, 1)
            self._store_failed(error.remark)

    # -- watching

    def _tick(self) -> None:
        self._loop.call_later_ms(_TICK_MS, self._tick)
        now_ns = time.monotonic_ns()
        self.positions.set_role(slot_of("supervisor"), RoleCell.HEARTBEAT_NS, now_ns)
        self._check_store()
        if self._unsynced is not None:
            self._unsynced.follow(self.positions.get(Position.FLUSHED), self.positions.get(Position.APPENDED))
        fresh = [self._beats(child, now_ns) for child in self._children.values()]
        if self.ready_ns is not None and all(fresh):
            notify_systemd("WATCHDOG=1")

    def _beats(self, child: Child, now_ns: int) -> bool:
        """Whether the role gives signs of life; says so once when it stops and when it is back."""
        if child.phase not in GIVEN and child.phase is not Phase.FORKING:
            return child.phase is Phase.ENDED
        silent_ns = now_ns - max(self.positions.role(child.slot, RoleCell.HEARTBEAT_NS), child.given_ns)
        if silent_ns < self.config.supervisor.silence_ms * 1_000_000:
            if child.silent:
                child.silent = False
                self.log.warning(f"{child.role} is back")
            return True
        if not child.silent:
            child.silent = True
            self._report_silence(child, now_ns, silent_ns)
        return False

    def _report_silence(self, child: Child, now_ns: int, silent_ns: int) -> None:
        busy_ns = self.positions.role(child.slot, RoleCell.BUSY_SINCE_NS)
        if busy_ns:
            since = time.strftime("%H:%M:%S", time.localtime(time.time() - (now_ns - busy_ns) / 1e9))
            self.log.warning(f"{child.role}: disk slow since {since}")
        elif child.phase is Phase.FORKING:
            self.log.warning(f"{child.role} waits for the forkserver")
        elif child.phase is Phase.STARTING:
            self.log.warning(f"{child.role} is still starting", extra={"pid": child.pid})
        else:
            self.log.warning(
                f"{child.role} is silent", extra={"ms": silent_ns // 1_000_000, "pid": child.pid}
            )

    # -- stopping

    def _stop_asked(self, _data: bytes) -> None:
        if self._ending is not None:
            self._ending.status = EXIT_UNCLEAN
            self._kill_all()
            return
        self.log.info("stopping")
        notify_systemd("STOPPING=1")
        self._ending = _Ending(status=0)
        for child in self._children.values():
            if child.phase not in GIVEN or child.spec.one_shot:
                self._drop(child)
        self._stages = sorted({child.spec.stop_stage for child in self._children.values()})
        self._next_stage()

    def _drop(self, child: Child) -> None:
        """End a process that has not begun to serve, or one that may be ended at any moment."""
        if child.timer is not None and child.phase is Phase.NONE:
            child.timer.cancel()
            child.timer = None
        child.dropped = True
        self._end(child)

    def _end(self, child: Child) -> None:
        """Kill it; one that is just being forked sees the end of its line before any Go, and exits."""
        if child.alive:
            child.kill()
            return
        if child.phase is Phase.FORKING and child.line is not None:
            self._loop.unwatch(child.line.fileno())
            child.forget_process()
        child.phase = Phase.ENDED

    def _next_stage(self) -> None:
        """Ask the next group that still lives to stop."""
        while self._stages:
            members = [child for child in self._of_stage(self._stages[0]) if child.alive]
            if members:
                self._stop_members(members)
                return
            self._stages.pop(0)

    def _stop_members(self, members: list[Child]) -> None:
        for child in members:
            self._tell(child, control.Stop())
        self._loop.call_later_ms(self.config.supervisor.stop_timeout_ms, lambda: self._too_late(members))

    def _of_stage(self, stage: int) -> list[Child]:
        return [child for child in self._children.values() if child.spec.stop_stage == stage]

    def _too_late(self, members: list[Child]) -> None:
        for child in members:
            if child.alive:
                self.log.error(f"{child.role} does not stop, killing it")
                child.kill()

    def _ended_while_stopping(self, child: Child) -> None:
        assert self._ending is not None
        child.phase = Phase.ENDED
        if child.exit_status != 0 and not (child.dropped or self._ending.killed):
            self.log.error(f"{child.role} {child.ending()} while stopping")
            self._ending.status = self._ending.status or EXIT_UNCLEAN
        stage = child.spec.stop_stage
        if self._stages and stage == self._stages[0] and not any(c.alive for c in self._of_stage(stage)):
            self._next_stage()

    def _give_up(self, sentence: str, status: int) -> None:
        """End everything at once; the sentence is the log's last line."""
        if self._ending is None or not self._ending.sentence:
            self._ending = _Ending(status=status, sentence=sentence)
            self._kill_all()

    def _kill_all(self) -> None:
        assert self._ending is not None
        self._ending.killed = True
        self._stages = []
        for child in self._children.values():
            self._end(child)

    def _kill_left(self) -> None:
        """Whatever ends the supervisor, its roles end, too."""
        for child in self._children.values():
            child.kill()
            child.forget_process()

    def _over(self) -> bool:
        if self._ending is None:
            return False
        return not any(child.alive for child in self._children.values())

    def _conclude(self) -> int:
        """Everyone is gone: see how the store was left, and say the last word."""
        assert self._ending is not None
        self._read_log()
        for child in self._children.values():
            for port in [*child.ports.values(), *(left for *_, left in child.closing)]:
                port.close()
        if self._ending.status == 0 and self._store_root is not None and self.ready_ns is not None:
            self._look_for_abort(self._store_root)
        if self._ending.sentence:
            self.log.critical(self._ending.sentence)
        else:
            self.log.info("stopped", extra={"status": self._ending.status})
        return self._ending.status

    def _look_for_abort(self, root: Path) -> None:
        """Recovery made the file before it changed anything; the flusher removes it at a clean end."""
        if not (root / ABORT_NAME).exists():
            return
        self._ending = _Ending(EXIT_UNCLEAN)
        appended = self.positions.get(Position.APPENDED)
        behind = {
            position.name.lower(): appended - self.positions.get(position)
            for position in (Position.FLUSHED, Position.DISPATCHED)
            if self.positions.get(position) < appended
        }
        self.log.error("the store was not left clean, the next start recovers it", extra=behind)


def notify_systemd(state: str) -> None:
    """Tell systemd (READY=1, STOPPING=1, WATCHDOG=1), when it started us.  Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.sendto(state.encode(), address)


def _reap(pidfd: int) -> int | None:
    """Return the wait status of an orphan that fell to us (we are its init), None when it is not ours."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status << 8 if result.si_code == os.CLD_EXITED else result.si_status
