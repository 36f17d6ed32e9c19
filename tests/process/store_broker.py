"""A supervisor with the real roles around the store, and pumps in the place of gateways.

A pump sends small messages through its append port as fast as it is answered and keeps a history for the
checker (`faults.checker`).  Run as a program it is that supervisor: ``python -m process.store_broker '{…}'``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
from faults.checker import History, Verdict, check
from faults.disks import FailingDisk
from process.demo import PROJECT, TESTS, Demo, wait_until

from actormq.actors.cleaner import CleanerActor
from actormq.actors.flusher import FlusherActor
from actormq.actors.mailbox import Sender
from actormq.actors.roles import PortSpec, RoleSpec, StopStage, broker_roles
from actormq.actors.runtime import ProcessActor, RoleContext
from actormq.actors.writer import WriterActor
from actormq.broker.queue_rows import QueueRows
from actormq.config import (
    BrokerConfig,
    CoordinatorConfig,
    FlushMode,
    MemoryConfig,
    StoreConfig,
    SupervisorConfig,
)
from actormq.kernels import records
from actormq.shm.append_port import AppendPort, Completion
from actormq.shm.positions import Position, RoleCell
from actormq.shm.tables import TablesReader
from actormq.store import commit_log, consume_queue
from actormq.store.commit_log import LogReader
from actormq.store.consume_queue import QueueReader
from actormq.store.disk import RealDisk

HOST = bytes([127, 0, 0, 1, 0, 0, 42, 159])
TOPIC = "load"
QUEUES = 4
WINDOW = 64
"""Messages of one pump that are not yet acknowledged."""
STORE_ROLES = ("recovery", "writer", "flusher", "dispatcher", "holder", "cleaner")
FILE_BYTES = 1 << 20
PATIENCE_S = 60.0
"""On a machine that other tests use, too, a second's work may take a minute."""


class More(msgspec.Struct):
    """Asks for so many more."""

    messages: int


class PumpActor(ProcessActor):
    """Sends so many messages as the settings say, to all queues in turn, and notes what becomes of them."""

    messages: ClassVar[tuple[type[msgspec.Struct], ...]] = (More,)

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        keys = self.config.other_keys
        name = f"{context.role}.{context.incarnation}.{os.getpid()}"
        self.name = name
        self.history = History(Path(keys["histories"]) / name)
        self.left = int(keys["messages"])
        self.body_bytes = int(keys["body_bytes"])
        self.sent = 0
        self.body = b""
        self.acknowledged = 0
        self.under_way: dict[int, tuple[str, int]] = {}
        self.unflushed: list[tuple[str, int, Completion]] = []

    def on_start(self) -> None:
        self.positions.set_role(self.context.slot, RoleCell.COUNTER_0, 0)
        self.append = AppendPort(self.ports["append"], self.context.doorbells["writer"])
        rows = QueueRows(lambda row: 0)
        rows.apply(
            *TablesReader(self.context.segments["tables"].view, self.positions, self.context.slot).poll()
        )
        self.queues = [rows.queue(rows.rows[TOPIC.encode(), number]) for number in range(QUEUES)]

    def on_message(self, message: Any, sender: Sender) -> Any:
        self.left += message.messages
        return None

    def on_batch(self) -> bool:
        done = self.append.completions()
        for completion in done:
            message, queue_id = self.under_way.pop(completion.ticket)
            if completion.status != 0:
                self.history.fail(message)
                self.left += 1
                self.positions.add_role(self.context.slot, RoleCell.COUNTER_1)
            elif self.config.store.flush is FlushMode.SYNC:
                self.unflushed.append((message, queue_id, completion))
            else:
                self._acknowledge(message, queue_id, completion)
        return self._take_flushed() | self._send() | bool(done)

    def _take_flushed(self) -> bool:
        """Acknowledge what is synced, and wish for what is not."""
        flushed = self.positions.get(Position.FLUSHED)
        count = 0
        while count < len(self.unflushed) and self.unflushed[count][2].log_end <= flushed:
            self._acknowledge(*self.unflushed[count])
            count += 1
        del self.unflushed[:count]
        wish = self.unflushed[0][2].log_end if self.unflushed else 0
        self.positions.set_role(self.context.slot, RoleCell.WANTED_FLUSHED, wish)
        return count > 0

    def _acknowledge(self, message: str, queue_id: int, completion: Completion) -> None:
        self.history.ack(message, f"{TOPIC}:{queue_id}", completion.queue_offset)
        self.acknowledged += 1
        self.positions.set_role(self.context.slot, RoleCell.COUNTER_0, self.acknowledged)

    def _send(self) -> bool:
        sent = 0
        while self.left > 0 and len(self.under_way) + len(self.unflushed) < WINDOW and self._append_next():
            sent += 1
        self.append.flush()
        return sent > 0

    def _append_next(self) -> bool:
        """Send the next message; False when the ring is full: it stays the next."""
        message = f"{self.name}.{self.sent}"
        queue = self.queues[self.sent % QUEUES]
        if not self.body:
            self.body = message.encode() + b" " + os.urandom(self.body_bytes)
            self.history.send(message, digest(self.body), f"{self.name}:{queue.queue_id}", self.sent)
        if not self.append.try_append(
            self.sent + 1, row=queue.row, row_incarnation=queue.incarnation, queue_id=queue.queue_id,
            topic=TOPIC.encode(), properties=b"KEYS\x01k\x02", body=self.body, flag=0, sys_flag=0,
            reconsume_times=0, born_timestamp=0, born_host=HOST,
        ):  # fmt: skip
            return False
        self.under_way[self.sent + 1] = (message, queue.queue_id)
        self.sent += 1
        self.left -= 1
        self.body = b""
        return True

    def drained(self) -> bool:
        return not self.under_way and not self.unflushed

    def on_stop(self) -> None:
        self.left = 0


class BrokenFlusher(FlusherActor):
    """Its third sync of a log file fails."""

    def on_start(self) -> None:
        super().on_start()
        self.state.files.disk = FailingDisk(RealDisk(), 3, kinds=["fdatasync"])


class BrokenWriter(WriterActor):
    """Its fiftieth write into the log fails half-way."""

    def on_start(self) -> None:
        super().on_start()
        self.state.files.disk = FailingDisk(RealDisk(), 50, kinds=["pwritev"], short=True)


class FullDisk(RealDisk):
    """Has no room for log files while the file `marker` is there."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def allocate(self, fd: int, offset: int, length: int) -> None:
        if self.marker.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().allocate(fd, offset, length)


class FullCleaner(CleanerActor):
    """Finds the disk full while there is a file ``full`` in the histories' folder."""

    def on_start(self) -> None:
        self._files.disk = FullDisk(Path(self.config.other_keys["histories"]) / "full")
        super().on_start()


class EagerCleaner(CleanerActor):
    """Looks for old files all the time; the settings of these tests call every full file old."""

    def on_start(self) -> None:
        super().on_start()
        self._round_at_ns = 0

    def on_tick(self, now_ns: int) -> None:
        super().on_tick(now_ns)
        self._round_at_ns = min(self._round_at_ns, now_ns + 20_000_000)


def digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=8).hexdigest()


def broker_config(
    store: Path, flush: FlushMode, pumps: int, pooled: bool = False, extended: bool = False, **keys: object
) -> BrokerConfig:
    base = BrokerConfig(
        store=StoreConfig(
            root=store,
            log_file_bytes=FILE_BYTES,
            body_bytes_max=64 * 1024,
            queue_file_entries=200,
            index_slots=100,
            index_entries=400,
            flush=flush,
            pool_enabled=pooled,
            queue_ext=extended,
            pool_bytes=6 << 20,
            pool_commit_thorough_interval_ms=60_000,  # nothing comes by itself for want of time
            flush_interval_ms=50,
            flush_queue_interval_ms=50,
            flush_thorough_interval_ms=200,
            retention_hours=0,
            delete_when=";".join(map(str, range(24))),
        ),
        memory=MemoryConfig(queue_rows_max=256, append_ring_bytes=1 << 20),
        coordinator=CoordinatorConfig(default_topic_queues=2),
        # Roles die here again and again on purpose: that is no crash loop.
        supervisor=SupervisorConfig(restart_backoff_max_ms=50, crash_loop_restarts=1000),
        other_keys={name: str(value) for name, value in keys.items()},
    )
    return replace(base, gateway=replace(base.gateway, count=pumps))


def role_specs(config: BrokerConfig, classes: dict[str, str]) -> list[RoleSpec]:
    """Return the roles; `classes` names other classes of this file for some of them."""
    roles = [
        replace(spec, class_path=f"process.store_broker:{classes[spec.role]}")
        if spec.role in classes
        else spec
        for spec in broker_roles(config)
        if spec.role in STORE_ROLES
    ]
    port = PortSpec(
        kind="append",
        server="writer",
        request_bytes=config.memory.append_ring_bytes,
        completion_bytes=config.memory.completion_ring_bytes,
    )
    pumps = [
        RoleSpec(
            role=f"gateway-{number}",
            class_path="process.store_broker:PumpActor",
            ports=(port,),
            stop_stage=StopStage.FRONTS,
        )
        for number in range(config.gateway.count)
    ]
    return roles + pumps


class StoreBroker(Demo):
    """The supervisor's process.

    Args:
        folder: for the store and the histories.
        messages: how many each pump sends at first.
        faults: as in ``ACTORMQ_FAULT``, for the first life of each role.
        pooled: with a store pool.
        classes: role → class of this file that takes its place.
    """

    def __init__(
        self,
        folder: Path,
        *,
        flush: FlushMode = FlushMode.ASYNC,
        pumps: int = 2,
        messages: int = 500,
        body_bytes: int = 200,
        faults: str = "",
        pooled: bool = False,
        extended: bool = False,
        classes: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.histories = folder / "histories"
        self.histories.mkdir(parents=True, exist_ok=True)
        (self.store / "config").mkdir(parents=True, exist_ok=True)
        topic = {"topicName": TOPIC, "readQueueNums": QUEUES, "writeQueueNums": QUEUES}
        (self.store / "config/topics.json").write_text(json.dumps({"topicConfigTable": {TOPIC: topic}}))
        super().__init__(self.store, {}, environment={"ACTORMQ_FAULT": faults})
        self.pumps = [f"gateway-{number}" for number in range(pumps)]
        self.messages = messages
        self._request = {
            "store": str(self.store),
            "flush": flush.value,
            "pumps": pumps,
            "pooled": pooled,
            "extended": extended,
            "histories": str(self.histories),
            "messages": messages,
            "body_bytes": body_bytes,
            "classes": classes or {},
            "roles": dict.fromkeys((*STORE_ROLES, *self.pumps), ""),
        }
        self.config = broker_config(self.store, flush, pumps, pooled, extended)

    def start(self) -> Self:
        try:
            return super().start()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def begin(self) -> Self:
        command = [sys.executable, "-m", "process.store_broker", json.dumps(self._request)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self._environment, cwd=PROJECT, stdout=subprocess.PIPE, stderr=log
            )
        return self

    def send(self, messages: int) -> None:
        """Have every pump send so many more."""
        for pump in self.pumps:
            self.ref(pump).tell(More(messages))

    def acknowledged(self, pump: str) -> int:
        """Return how many messages the pump's present incarnation has had acknowledged."""
        return self.role(pump, RoleCell.COUNTER_0)

    def wait_acknowledged(self, at_least: int, seconds: float = PATIENCE_S) -> None:
        """Wait until every pump has got so far, in its present life."""
        wait_until(
            lambda: all(self.acknowledged(pump) >= at_least for pump in self.pumps),
            f"{at_least} messages of each pump: {self.log[-3000:]}",
            seconds,
        )

    def wait_flow(self, appended: int) -> None:
        """Wait until messages have been stored behind `appended`."""
        wait_until(
            lambda: self.positions.get(Position.APPENDED) > appended,
            f"messages flow again: {self.log[-3000:]}",
            PATIENCE_S,
        )

    def wait_dispatched(self) -> None:
        wait_until(
            lambda: self.positions.get(Position.DISPATCHED) == self.positions.get(Position.APPENDED),
            f"everything is dispatched: {self.log[-3000:]}",
            PATIENCE_S,
        )

    def kill_all(self) -> None:
        """SIGKILL the supervisor; its roles follow."""
        pids = self.pids()
        self.process.send_signal(signal.SIGKILL)
        self.wait()
        from process.demo import alive

        wait_until(lambda: not any(alive(pid) for pid in pids), "roles end with their supervisor")

    def check(self, expect_all: bool = True) -> Verdict:
        """Read every queue as a consumer would and judge it; the store is at rest.

        Args:
            expect_all: what was acknowledged and cannot be read is lost (not where old files are removed).
        """
        reader_history = self.histories / "reader"
        reader_history.unlink(missing_ok=True)
        history = History(reader_history)
        history.session("reader")
        log_min = self.log_min
        log = LogReader(RealDisk(), self.store / commit_log.FOLDER, FILE_BYTES)
        entries = self.config.store.queue_file_entries
        queues = QueueReader(RealDisk(), self.store / consume_queue.FOLDER, entries)
        for queue_id in range(QUEUES):
            for number in range(*self.queue_range(queue_id)):
                log_offset, size, _ = queues.entry(TOPIC, queue_id, number)
                if log_offset < log_min:
                    continue
                header = records.decode(log.view(log_offset, size), 0, check_crc=True)
                assert (header.queue_id, header.queue_offset) == (queue_id, number), "a hole in a queue"
                body = bytes(log.view(log_offset, size)[header.body_at :][: header.body_size])
                message = body.split(b" ", 1)[0].decode()
                history.receive("reader", f"{TOPIC}:{queue_id}", number, message, digest(body))
        if expect_all:
            history.expect("reader")
        history.close()
        return check(sorted(self.histories.iterdir()), again_allowed=False)

    def queue_range(self, queue_id: int) -> tuple[int, int]:
        """Return the first entry in the queue's files and one past the last."""
        paths = sorted((self.store / consume_queue.FOLDER / TOPIC / str(queue_id)).iterdir())
        data = b"".join(path.read_bytes() for path in paths)
        sizes = (int.from_bytes(data[at + 8 : at + 12], "big") for at in range(0, len(data), 20))
        first = int(paths[0].name) // 20
        return first, first + sum(1 for size in sizes if size)

    @property
    def log_min(self) -> int:
        """Where the log begins on the disk."""
        return min(int(path.name) for path in (self.store / commit_log.FOLDER).iterdir())


def main(argument: str) -> int:
    from actormq.actors.supervisor import Supervisor
    from actormq.errors import ActorMQError

    request = json.loads(argument)
    config = broker_config(
        Path(request["store"]),
        FlushMode(request["flush"]),
        request["pumps"],
        request["pooled"],
        request["extended"],
        histories=request["histories"],
        messages=request["messages"],
        body_bytes=request["body_bytes"],
    )

    def tell(supervisor: Supervisor) -> None:
        facts = {
            "run_dir": str(supervisor.run_dir),
            "addresses": supervisor.addresses,
            "positions": supervisor.positions_fd,
            "forkserver": supervisor.nursery.forkserver_pid,
        }
        print(json.dumps(facts), flush=True)

    supervisor = Supervisor(
        config, role_specs(config, request["classes"]), store_root=config.store.root, on_ready=tell
    )
    try:
        return supervisor.run()
    except ActorMQError as error:
        print(error.remark, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS)]
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1]))
