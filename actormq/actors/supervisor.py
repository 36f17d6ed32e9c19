"""supervisor: makes shared memory, sockets and roles, watches them, and ends them in order.

From: roles (control lines, log pipe, the positions page), the forkserver (pids, exits), signals.
To: roles (control lines).  Owns: what all stand on (`premises`), and every process (`nursery`).
When it dies, every role sees the end of its control line and exits; the next one sweeps and recovers.

It never touches a message: it may be slow, and it must not block.  The one wait is the sync of what a
dead flusher left (design-failure §3).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from actormq.actors import control
from actormq.actors.child import GIVEN, Child, Deaths, Phase
from actormq.actors.forkserver import Forkserver, raise_descriptor_limit, rename
from actormq.actors.loop import READ, Loop
from actormq.actors.notify import Notifier
from actormq.actors.nursery import Nursery
from actormq.actors.premises import Premises
from actormq.actors.roles import RoleSpec
from actormq.actors.status import EXIT_CRASH_LOOP, EXIT_REFUSED, EXIT_STORE_FAILED, EXIT_UNCLEAN
from actormq.config import BrokerConfig
from actormq.errors import ConfigError, StoreFailed
from actormq.shm.positions import Position, RoleCell, slot_of
from actormq.telemetry.log import LogSink

ABORT_NAME: Final = "abort"
_TICK_MS: Final = 1_000
_RECOVERY_MORE_US: Final = 30_000_000
"""So much longer systemd is to wait for a store that is being recovered; said again at each tick."""
_STOP_ASKED_MS: Final = 200
"""A SIGTERM to every process of a group or unit reaches us within that time, too."""
_LOG_READS_MAX: Final = 16
_SAID: Final = ""
"""A role that refuses to start has said why, in one sentence: nothing is to be added."""


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
        self._preload = list(dict.fromkeys(spec.module for spec in roles))
        self._forkserver = forkserver
        self._store_root = store_root
        self._on_ready = on_ready
        self._log_stream = log_stream
        self._children = {spec.role: Child(spec, slot_of(spec.role)) for spec in roles}
        self._ending: _Ending | None = None
        self._forkserver_deaths = Deaths()
        self._stages: list[int] = []
        self._systemd = Notifier({})
        self._probing = False
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
        return self.premises.listeners.addresses

    @property
    def ready_s(self) -> float | None:
        """Seconds from the start of this object until every role ran."""
        return None if self.ready_ns is None else (self.ready_ns - self.started_ns) / 1e9

    @property
    def run_dir(self) -> Path:
        """Where the mailboxes are."""
        return self.premises.shared.run_dir

    @property
    def positions_fd(self) -> int:
        """The positions page, for whoever looks from outside."""
        return self.premises.shared.segments["positions"]

    def pids(self) -> dict[str, int]:
        """The living roles' processes."""
        return {role: child.pid for role, child in self._children.items() if child.alive}

    # -- preparing

    def _prepare(self) -> None:
        raise_descriptor_limit()
        forkserver = self._forkserver or Forkserver(self._preload)
        self._release.callback(forkserver.end)
        self._open_log()
        roles = [child.spec for child in self._children.values()]
        self.premises = Premises(self.config, roles, self._store_root, self.log, self._log_write_fd)
        self._release.callback(self.premises.close)
        self.config = self.premises.config
        self.positions = self.premises.positions
        self._unsynced = self.premises.unsynced
        shared = self.premises.shared
        self._bell_fd = shared.doorbells["supervisor"]
        self._loop.watch(self._bell_fd, READ, self._rung)
        self._take_signals()
        self.nursery = Nursery(self._loop, self._children, forkserver, self._preload, shared, self)
        self._release.callback(self.nursery.close)

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

    def _take_signals(self) -> None:
        self._loop.watch(self._woken, READ, lambda events: self._stop_asked(os.read(self._woken, 4096)))
        if threading.current_thread() is not threading.main_thread():
            return  # embedded: the owner calls request_stop
        self._systemd = Notifier(os.environ)
        self._release.callback(self._systemd.close)
        rename("amq:supervisor")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            before = signal.signal(number, lambda number, frame: self.request_stop())
            self._release.callback(signal.signal, number, before)

    # -- starting roles

    def _launch_all(self) -> None:
        self._loop.call_later_ms(self._tick_ms(), self._tick)
        if self._recovering():
            self._systemd.status("recovering the store")
        else:
            self.premises.listeners.listen()
        for child in self._children.values():
            self.nursery.launch(child)

    def _recovering(self) -> bool:
        return any(
            child.spec.one_shot and child.phase is not Phase.ENDED for child in self._children.values()
        )

    def may_start(self, child: Child) -> bool:
        """One-shot roles first; whoever is forked meanwhile waits."""
        return child.spec.one_shot or not self._recovering()

    def _begin_service(self) -> None:
        """Recovery is done: let everyone go at once."""
        self.premises.listeners.listen()
        for child in self._children.values():
            if child.phase is Phase.HELD:
                self.nursery.give(child)

    # -- what roles say

    def on_message(self, child: Child, message: control.FromRole) -> None:
        """A role says more than that it runs."""
        if isinstance(message, control.StoreBroken):
            self._store_failed(message.sentence)
        elif isinstance(message, control.StopAsked):
            self._loop.call_later_ms(_STOP_ASKED_MS, lambda: self._stop_one(child))

    def _stop_one(self, child: Child) -> None:
        """Somebody wants this role to end; when it was not the whole broker, it is drained and replaced."""
        if self._ending is None and child.phase in GIVEN:
            self.log.info(f"{child.role} was asked to stop, replacing it")
            self.nursery.tell(child, control.Stop())

    def on_running(self, child: Child) -> None:
        """The last one makes the broker ready; later it is a successor, and the others are told."""
        if child.spec.one_shot:
            return
        if self.ready_ns is not None:
            self.log.info(f"{child.role} runs again", extra={"incarnation": child.incarnation})
            changed = control.RoleChanged(role=child.role, incarnation=child.incarnation)
            self.nursery.tell_all(changed, but=child)
        elif all(other.phase in (Phase.RUNNING, Phase.ENDED) for other in self._children.values()):
            self._ready()

    def _ready(self) -> None:
        self.ready_ns = time.monotonic_ns()
        self.log.info("ready", extra={"seconds": f"{self.ready_s:.3f}"})
        self._systemd.status(self._condition(), "READY=1")
        if self._on_ready is not None:
            self._on_ready(self)

    def _rung(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._bell_fd, 4096)
        self._check_store()
        if self._probing and self._ending is None:
            self._probing = False
            self._systemd.feed(time.monotonic_ns())

    def _read_log(self, _events: int = 0) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_LOG_READS_MAX):  # then the others' turn, however much is logged
                self._sink.feed(os.read(self._log_fd, 65_536))

    # -- deaths

    def on_gone(self, child: Child, phase: Phase) -> None:
        """A process is dead for certain: its end was wanted, or its successor is started."""
        self._read_log()
        if child.spec.one_shot:
            self._one_shot_ended(child)
        elif self._ending is not None:
            self._ended_while_stopping(child)
        else:
            self._died(child, phase)

    def _died(self, child: Child, phase: Phase) -> None:
        if child.role == "flusher":
            self._sync_unsynced()
        self._check_store()
        if child.exit_status == EXIT_STORE_FAILED:
            self._store_failed(f"{child.role} says so: see above")
        elif child.exit_status == EXIT_REFUSED and self.ready_ns is None:
            self._give_up(_SAID, EXIT_REFUSED)
        if self._ending is None:
            self._replace(child, phase)

    def _replace(self, child: Child, phase: Phase) -> None:
        now_ns = time.monotonic_ns()
        lived_ns = now_ns - child.running_since_ns if phase is Phase.RUNNING else 0
        limits = self.config.supervisor
        delay_ms = child.deaths.count(lived_ns, now_ns, limits, from_outside=child.was_killed)
        if delay_ms is None:
            times = limits.crash_loop_restarts
            sentence = f"{child.role} died {times} times in a row, at last it {child.ending()}: giving up"
            self._give_up(sentence, EXIT_CRASH_LOOP)
            return
        self.log.error(
            f"{child.role} {child.ending()}",
            extra={"incarnation": child.incarnation, "restart_in_ms": delay_ms},
        )
        self.nursery.close_ports(child)
        if phase in GIVEN:
            self.nursery.tell_all(control.RoleChanged(role=child.role, incarnation=0), but=child)
        if delay_ms == 0:
            self.nursery.launch(child)
        else:
            child.timer = self._loop.call_later_ms(delay_ms, lambda: self.nursery.launch(child))

    def _one_shot_ended(self, child: Child) -> None:
        child.phase = Phase.ENDED
        if self._ending is not None:
            return
        if child.exit_status != 0:
            self._check_store()
            refused = child.exit_status == EXIT_REFUSED
            sentence = _SAID if refused else f"{child.role} {child.ending()}: see above"
            self._give_up(sentence, child.exit_status or EXIT_UNCLEAN)
        elif not self._recovering():
            self._begin_service()

    def on_forkserver_gone(self, lived_ns: int) -> bool:
        """Another one, unless we stop, or nothing helps."""
        if self._ending is not None:
            return False
        limits = self.config.supervisor
        now_ns = time.monotonic_ns()
        if self._forkserver_deaths.count(lived_ns, now_ns, limits, from_outside=False) is None:
            self._give_up("the forkserver died again and again: giving up", EXIT_CRASH_LOOP)
            return False
        self.log.error("the forkserver died; starting another one")
        return True

    # -- the store's failure

    def _check_store(self) -> None:
        if self.positions.get(Position.STORE_FAILED):
            self._store_failed("a write or sync of it failed")

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
        self._loop.call_later_ms(self._tick_ms(), self._tick)
        now_ns = time.monotonic_ns()
        self.positions.set_role(slot_of("supervisor"), RoleCell.HEARTBEAT_NS, now_ns)
        self._check_store()
        if self._unsynced is not None:
            self._unsynced.follow(self.positions.get(Position.FLUSHED), self.positions.get(Position.APPENDED))
        fresh = [self._beats(child, now_ns) for child in self._children.values()]
        self._systemd.flush()
        if self.ready_ns is not None and self._ending is None:
            self._systemd.status(self._condition())
            if all(fresh) and self._systemd.is_hungry(now_ns):
                self._probe()
        elif self._recovering() and self._ending is None:
            self._systemd.tell(f"EXTEND_TIMEOUT_USEC={_RECOVERY_MORE_US}")

    def _tick_ms(self) -> int:
        """Return how long to wait for the next look; a short-tempered watchdog wants more of them."""
        feed_every_ns = self._systemd.feed_every_ns
        return _TICK_MS if feed_every_ns is None else max(1, min(_TICK_MS, feed_every_ns // 1_000_000))

    def _probe(self) -> None:
        """Ring our own bell as a role would whose disk failed: who hears it looks, and feeds the watchdog."""
        self._probing = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._bell_fd, (1).to_bytes(8, "little"))

    def _condition(self) -> str:
        """How we are, in a sentence for `systemctl status`."""
        silent = [child.role for child in self._children.values() if child.silent]
        if silent:
            return f"no sign of life from {', '.join(silent)}"
        at = (f"{front} on {host}:{port}" for front, (host, port) in self.addresses.items())
        return f"serving {', '.join(at)}"

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
        # Whoever waits for the disk is not to be ended by the watchdog: the next one would wait for it, too.
        return self._waits_for_disk_since(child) is not None

    def _waits_for_disk_since(self, child: Child) -> int | None:
        """Return when the write or sync began that the role is inside of (monotonic, ns)."""
        busy_ns = self.positions.role(child.slot, RoleCell.BUSY_SINCE_NS)
        return busy_ns if busy_ns and not child.is_stopped() else None

    def _report_silence(self, child: Child, now_ns: int, silent_ns: int) -> None:
        busy_ns = self._waits_for_disk_since(child)
        if busy_ns is not None:
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
            self._ending.status = self._ending.status or EXIT_UNCLEAN
            self._kill_all()
            return
        self.log.info("stopping")
        self._systemd.status("stopping", "STOPPING=1")
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
        self.nursery.end(child)

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
            self.nursery.tell(child, control.Stop())
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
            self._systemd.status(sentence or "refused to start: see the log")
            self._kill_all()

    def _kill_all(self) -> None:
        assert self._ending is not None
        self._ending.killed = True
        self._stages = []
        for child in self._children.values():
            self.nursery.end(child)

    def _over(self) -> bool:
        if self._ending is None:
            return False
        return not any(child.alive for child in self._children.values())

    def _conclude(self) -> int:
        """Everyone is gone: see how the store was left, and say the last word."""
        assert self._ending is not None
        self._read_log()
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
