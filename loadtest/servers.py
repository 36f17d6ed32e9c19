"""What a server under test is, and ours.  The others are in rocketmq.py and kafka.py.

All keep their data in a temporary folder, listen on free ports of 127.0.0.1, and are gone after the
measurement.  Where they have RocketMQ's files these have RocketMQ's default sizes, dispatch and index on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest.machine import project
from loadtest.processes import folder, talking, told_on_failure

GIB: Final = 1 << 30
SIZES: Final = {
    "ACTORMQ_STORE_LOG_FILE_BYTES": GIB,
    "ACTORMQ_STORE_INDEX_SLOTS": 5_000_000,
    "ACTORMQ_STORE_INDEX_ENTRIES": 20_000_000,
}
"""RocketMQ's defaults instead of dev's small files: both sides write files of one size."""
SMALL_SIZES: Final = {"ACTORMQ_STORE_LOG_FILE_BYTES": 16 << 20}


class Unavailable(Exception):
    """A server cannot be had on this machine; the sentence says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server.

    Attributes:
        kind: "actormq", "rocketmq" or "kafka"; "folder": nothing runs yet, the path is in `url`.
        namesrv, broker: ``host:port`` of the RocketMQ protocol; Kafka's bootstrap server in both.
        url: for the native client of the kind.
        pids: the roots of its processes.
        about: versions and settings that belong beside every figure.
    """

    kind: str
    namesrv: str
    broker: str
    url: str
    pids: tuple[int, ...]
    about: dict[str, str]


Start = Callable[[], AbstractContextManager[Server]]


def require_java() -> None:
    """Refuse where the official servers cannot be fetched or run.

    Raises:
        Unavailable: Java or Maven is missing.
    """
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")


@contextmanager
def actormq(flush: str, *, small: bool = False) -> Iterator[Server]:
    """Run `actormq dev`; `small` files are for runs whose figures nobody reads."""
    with folder("actormq") as data, life(data, flush, SMALL_SIZES if small else SIZES) as (server, _):
        yield server


@contextmanager
def in_folder(*, small: bool = False) -> Iterator[Server]:
    """Give a case a folder in which it starts brokers itself, by `life`, as often as it likes."""
    with folder("starts") as data:
        about = _about("async", SMALL_SIZES if small else SIZES, project()["kernels"])
        yield Server(kind="folder", namesrv="", broker="", url=str(data), pids=(), about=about)


@contextmanager
def life(
    data: Path, flush: str, settings: Mapping[str, int]
) -> Iterator[tuple[Server, subprocess.Popen[str]]]:
    """Run `actormq dev` on a folder once, from its ready line until it ends, by whatever hand."""
    environment = {name: str(value) for name, value in settings.items()}
    command = [
        sys.executable, "-m", "actormq.cli.main", "dev", "--data-dir", str(data / "store"),
        "--flush", flush, "--namesrv-port", "0", "--namesrv-zmq-port", "0",
        "--port", "0", "--zmq-port", "0",
    ]  # fmt: skip
    log = data / "actormq.log"
    with told_on_failure(log), talking(command, environment=environment, log=log) as process:
        assert process.stdout
        line = process.stdout.readline()
        if not line.startswith("ready"):
            raise RuntimeError(f"actormq dev did not start: {line!r}")
        ready = dict(word.split("=", 1) for word in line.split() if "=" in word)
        server = Server(
            kind="actormq",
            namesrv=ready["namesrv"],
            broker=ready["broker"],
            url=f"zmq://{ready['namesrv-zmq']}",
            pids=(process.pid,),
            about=_about(flush, settings, ready["kernels"]),
        )
        yield server, process


def _about(flush: str, settings: Mapping[str, int], kernels: str) -> dict[str, str]:
    ours = project()
    return {
        "version": f"ActorMQ {ours['version']}",
        # Of this start: half an hour of measuring must not be credited to one commit.
        "commit": ours["commit"] + "+" * ours["changed"],
        "kernels": kernels,
        "durability": f"{flush} flush",
        "log file": f"{settings['ACTORMQ_STORE_LOG_FILE_BYTES'] >> 20} MiB",
    }
