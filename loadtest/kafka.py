"""Apache Kafka as the other side of the native rows: the server by Maven, confluent-kafka by pip."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loadtest.machine import ROOT
from loadtest.processes import folder, told_on_failure, writing
from loadtest.servers import Server, Unavailable, require_java

VERSION: Final = "4.4.0"
WORK: Final = ROOT / ".work" / "kafka"


def packages() -> Path:
    """Return the folder that holds confluent-kafka for those who have not installed it."""
    return WORK / f"python-{sys.version_info.major}.{sys.version_info.minor}"


def require() -> None:
    """Fetch the server by Maven and confluent-kafka by pip, beside our own environment.

    Raises:
        Unavailable: one of them cannot be had.
    """
    require_java()
    try:
        _fetch_server()
        _fetch_client()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"it cannot be fetched: {error}") from None


def _fetch_server() -> None:
    done = WORK / "libs" / f".done-{VERSION}"
    if not done.exists():
        command = [
            "mvn", "-q", "-B", "-f", str(Path(__file__).parent / "kafka-pom.xml"), f"-Dkafka={VERSION}",
            "dependency:copy-dependencies", f"-DoutputDirectory={done.parent}", "-DincludeScope=runtime",
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=900)
        done.touch()


def _fetch_client() -> None:
    if importlib.util.find_spec("confluent_kafka") is None and not packages().exists():
        command = [
            sys.executable, "-m", "pip", "install", "-q", "--target", str(packages()), "confluent-kafka",
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=600)


@contextmanager
def running(flush: str) -> Iterator[Server]:
    """Run Kafka: one node, KRaft; the log is synced before the answer only with sync flush."""
    from tests.interop import rocketmq as official

    with folder("kafka") as data:
        port = official.free_port(1)
        conf = data / "server.properties"
        conf.write_text(_conf(data, port, flush))
        log4j = data / "log4j2.yaml"
        log4j.write_text("Configuration:\n  Loggers:\n    Root: { level: ERROR }\n")
        run = [
            "java", "-server", "-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
            f"-Dlog4j2.configurationFile={log4j}", "-cp", f"{WORK / 'libs'}/*",
        ]  # fmt: skip
        tool = [*run, "kafka.tools.StorageTool", "format", "-t", "AAAAAAAAQACAAAAAAAAAAQ", "-c", str(conf)]
        subprocess.run(tool, check=True, timeout=60, capture_output=True)
        log = data / "kafka.out"
        with told_on_failure(log), writing([*run, "kafka.Kafka", str(conf)], log) as process:
            official.wait_port(port)
            yield Server(
                kind="kafka",
                namesrv=f"127.0.0.1:{port}",
                broker=f"127.0.0.1:{port}",
                url=f"127.0.0.1:{port}",
                pids=(process.pid,),
                about={
                    "version": f"Apache Kafka {VERSION}",
                    "heap": "1 GiB, G1",
                    "durability": f"acks=all, {flush} flush",
                },
            )


def _conf(data: Path, port: int, flush: str) -> str:
    keys: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{port + 1}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{port + 1}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": data / "logs",
        "num.partitions": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
    }
    if flush == "sync":
        keys["log.flush.interval.messages"] = 1
    return "".join(f"{key}={value}\n" for key, value in keys.items())
