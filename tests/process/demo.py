"""A supervisor of tiny roles in a process of its own, and what a test needs to look at it.

Run as a program it is that supervisor: ``python -m process.demo '{"store": …}'``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from actormq.actors.roles import Front, PortSpec, RoleSpec, StopStage
from actormq.config import BrokerConfig, StoreConfig, SupervisorConfig
from actormq.shm.positions import Positions, RoleCell, RoleState, slot_of
from actormq.shm.segment import Segment

DEADLINE_S: Final = 60.0
TESTS: Final = Path(__file__).parent.parent
PROJECT: Final = TESTS.parent


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> Any:
    """Return the first true value of `condition`; fails the test when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        select.select([], [], [], 0.005)
    return value


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Demo:
    """The supervisor's process.

    Args:
        store: the store's folder.
        roles: role → class of `demo_roles`.
        ports: client roles that get an append port to the writer.
        settings: of `SupervisorConfig`.
        broken_sync: every fdatasync of the supervisor fails.
    """

    def __init__(
        self,
        store: Path,
        roles: dict[str, str],
        *,
        ports: tuple[str, ...] = (),
        fronts: dict[str, int] | None = None,
        keeps_store: bool = True,
        settings: dict[str, int] | None = None,
        log_path: Path | None = None,
        environment: dict[str, str] | None = None,
        broken_sync: bool = False,
    ) -> None:
        self._request = {
            "store": str(store),
            "roles": roles,
            "ports": ports,
            "fronts": fronts or {},
            "keeps_store": keeps_store,
            "settings": settings or {},
            "log_path": str(log_path) if log_path else None,
            "broken_sync": broken_sync,
        }
        path = os.pathsep.join([str(TESTS), str(PROJECT)])
        self._environment = {**os.environ, "PYTHONPATH": path, **(environment or {})}
        self.log_file = store.parent / f"{store.name}.log"
        self._callers: list[Any] = []

    def start(self) -> Self:
        """Start it and wait until every role runs."""
        self.begin()
        line = self.process.stdout.readline() if self.process.stdout else b""
        assert line, f"never ready: {self.log}"
        facts = json.loads(line)
        self.pid = self.process.pid
        self.run_dir = Path(facts["run_dir"])
        self.addresses = facts["addresses"]
        self.forkserver = facts["forkserver"]
        fd = os.open(f"/proc/{self.pid}/fd/{facts['positions']}", os.O_RDWR)
        self._segment = Segment.attach(fd)
        self.positions = Positions(self._segment.view)
        return self

    def begin(self) -> Self:
        """Start it, without waiting."""
        command = [sys.executable, "-m", "process.demo", json.dumps(self._request)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self._environment, cwd=PROJECT, stdout=subprocess.PIPE, stderr=log
            )
        return self

    @property
    def log(self) -> str:
        """Everything logged so far."""
        return self.log_file.read_text()

    def role(self, role: str, cell: RoleCell) -> int:
        return self.positions.role(slot_of(role), cell)

    def pid_of(self, role: str) -> int:
        return self.role(role, RoleCell.PID)

    def heartbeat(self, role: str) -> int:
        return self.role(role, RoleCell.HEARTBEAT_NS)

    def pids(self) -> list[int]:
        """The roles' processes."""
        return [pid for role in self._request["roles"] if (pid := self.pid_of(role))]

    def kill(self, role: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid_of(role), number)

    def wait_running(self, role: str, incarnation: int) -> None:
        """Wait until that incarnation serves."""
        wait_until(
            lambda: (
                self.role(role, RoleCell.INCARNATION) >= incarnation
                and self.role(role, RoleCell.STATE) == RoleState.RUNNING
            ),
            f"{role} runs as {incarnation}: {self.log}",
        )

    def caller(self) -> Any:
        """A mailbox of the test's own: ``demo.ref("holder").ask(…)``."""
        from actormq.actors.mailbox import Mailbox
        from actormq.actors.runtime import PositionsDirectory

        if not self._callers:
            directory = PositionsDirectory(self.positions)
            self._callers.append(Mailbox(self.run_dir, "test", os.getpid(), (), directory))
        return self._callers[0]

    def ref(self, role: str) -> Any:
        from actormq.actors.mailbox import ProcessRef
        from actormq.actors.runtime import PositionsDirectory

        class PatientRef(ProcessRef):
            """Waits as long for an answer as a test waits for anything."""

            def ask(self, message: Any, **options: Any) -> Any:
                return super().ask(message, **{"timeout": DEADLINE_S} | options)

        return PatientRef(self.caller(), PositionsDirectory(self.positions), role)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop and return its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for caller in self._callers:
            caller.close()
        self._callers.clear()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE_S)
        if self.process.stdout:
            self.process.stdout.close()


def _specs(request: dict[str, Any]) -> list[RoleSpec]:
    specs = []
    for role, class_name in request["roles"].items():
        port = PortSpec(kind="append", server="writer", request_bytes=65_536, completion_bytes=65_536)
        fronts = (
            tuple(
                Front(name=name, group="gateway", host="127.0.0.1", port=number)
                for name, number in request["fronts"].items()
            )
            if role.startswith("gateway")
            else ()
        )
        spec = RoleSpec(
            role=role,
            class_path=f"process.demo_roles:{class_name}",
            ports=(port,) if role in request["ports"] else (),
            fronts=fronts,
            stop_stage=StopStage.WRITER if role == "writer" else StopStage.SERVICES,
            one_shot=role == "recovery",
        )
        specs.append(spec)
    return specs


def _broken_sync(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def main(argument: str) -> int:
    from actormq.actors.supervisor import Supervisor
    from actormq.errors import ActorMQError

    request = json.loads(argument)
    root = Path(request["store"])
    config = BrokerConfig(
        store=StoreConfig(root=root, log_file_bytes=8 << 20),
        supervisor=SupervisorConfig(**request["settings"]),
        log_path=Path(request["log_path"]) if request["log_path"] else None,
    )

    def tell(supervisor: Supervisor) -> None:
        facts = {
            "run_dir": str(supervisor.run_dir),
            "addresses": supervisor.addresses,
            "positions": supervisor.positions_fd,
            "forkserver": supervisor.nursery.forkserver_pid,
        }
        print(json.dumps(facts), flush=True)

    if request["broken_sync"]:
        os.fdatasync = _broken_sync
    store_root = root if request["keeps_store"] else None
    supervisor = Supervisor(config, _specs(request), store_root=store_root, on_ready=tell)
    try:
        return supervisor.run()
    except ActorMQError as error:
        print(error.remark, file=sys.stderr)
        return 2


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1]))
