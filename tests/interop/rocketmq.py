"""The real Apache RocketMQ, driven from tests: jars by Maven, servers on free ports, the official client.

Jars and classes live in ``$RMQ_WORK`` (default ``.work/rocketmq`` in the checkout) and are fetched once.
Every process started here is ended here, by pid.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WORK = Path(os.environ.get("RMQ_WORK", ROOT / ".work" / "rocketmq"))
VERSIONS = {"5": "rocketmq-5", "4": "rocketmq-4", "4-broker": "rocketmq-4-broker"}
JAVA_17_OPENS = [
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.net=ALL-UNNAMED",
    "--add-exports=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
]


def require_java() -> None:
    """Skip, with a word, where Java or Maven is missing."""
    for tool in ("java", "javac", "mvn"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: the official RocketMQ cannot be run here")


def jars(version: str) -> Path:
    """Return the folder with the official jars of release line `version`: "5", "4" or "4-broker"."""
    folder = WORK / f"lib-{version}"
    if not (folder / ".done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                "mvn", "-q", "-B", "-f", str(HERE / "java" / "pom.xml"), "-P", VERSIONS[version],
                "dependency:copy-dependencies", f"-DoutputDirectory={folder}", "-DincludeScope=runtime",
            ],
            check=True,
            timeout=900,
        )  # fmt: skip
        (folder / ".done").touch()
    return folder


def classes(version: str) -> Path:
    """Return the folder with Interop.class, compiled against release line `version`."""
    folder = WORK / f"interop-classes-{version}"
    source = HERE / "java" / "Interop.java"
    made = folder / "Interop.class"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["javac", "-nowarn", "-Xlint:none", "-d", str(folder), "-cp", f"{jars(version)}/*", str(source)],
            check=True,
            timeout=300,
        )
    return folder


def free_port(*spare: int) -> int:
    """Return a free TCP port below the ephemeral range; so are those at the distances in `spare` from it."""
    for port in range(20_000 + os.getpid() % 5_000, 32_000, 7):
        try:
            for offset in (0, *spare):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return port
    raise RuntimeError("no free port")


def wait_port(port: int, seconds: float = 60) -> None:
    """Return once something listens on `port`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {port} after {seconds} s")


def wait_registered(namesrv: str, broker: str, seconds: float = 60) -> None:
    """Return once the name server names the broker's address in its cluster info (code 106)."""
    host, port = namesrv.rsplit(":", 1)
    header = b'{"code":106,"language":"JAVA","version":401,"opaque":1,"flag":0}'
    request = (4 + len(header)).to_bytes(4, "big") + len(header).to_bytes(4, "big") + header
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(request)
            stream = connection.makefile("rb")
            if broker.encode() in stream.read(int.from_bytes(stream.read(4), "big")):
                return
        time.sleep(0.1)
    raise TimeoutError(f"{broker} is not registered with {namesrv} after {seconds} s")


@dataclass
class Line:
    """One tab-separated event of the Java program."""

    kind: str
    fields: list[str]


def client_command(version: str, *arguments: object) -> list[str]:
    """Return the command that runs Interop with the client of release line `version`."""
    class_path = f"{classes(version)}:{jars(version)}/*"
    home = WORK / "home"
    home.mkdir(parents=True, exist_ok=True)
    return [
        "java", "-Xmx256m", f"-Duser.home={home}", "-cp", class_path, "Interop", *map(str, arguments),
    ]  # fmt: skip


def run_client(version: str, *arguments: object, seconds: float = 120) -> list[Line]:
    """Run Interop to its end and return its events."""
    done = subprocess.run(
        client_command(version, *arguments), capture_output=True, text=True, timeout=seconds, check=False
    )
    lines = parse(done.stdout)
    assert [line.kind for line in lines[-1:]] == ["DONE"], f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return lines


def parse(output: str) -> list[Line]:
    """Return the events in the program's output."""
    lines = []
    for text in output.splitlines():
        kind, *fields = text.split("\t")
        if kind in {"SENT", "BATCH", "FAILED", "STARTED", "GOT", "REFUSED", "DONE"}:
            lines.append(Line(kind, fields))
    return lines


def _serve(main_class: str, heap: str, conf: Path, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
    home = conf.parent / "home"
    home.mkdir(exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            [
                "java", f"-Xms{heap}", f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:MaxDirectMemorySize=1g",
                *JAVA_17_OPENS, f"-Duser.home={home}", f"-Drocketmq.home.dir={home}",
                "-cp", f"{jars('5')}/*", main_class, "-c", str(conf), *arguments,
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def java_name_server() -> Iterator[str]:
    """Run the real name server (5.5.0) and yield its HOST:PORT."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder) / "namesrv.conf"
        conf.write_text(f"listenPort={port}\n")
        process = _serve(
            "org.apache.rocketmq.namesrv.NamesrvStartup", "128m", conf, log=Path(folder) / "namesrv.out"
        )
        try:
            wait_port(port)
            yield f"127.0.0.1:{port}"
        finally:
            _end(process)


@contextmanager
def java_broker(namesrv: str, store: Path | None = None, **keys: object) -> Iterator[str]:
    """Run the real broker (5.5.0) registered with `namesrv` and yield its HOST:PORT."""
    port = free_port(-2, 1)
    with tempfile.TemporaryDirectory() as folder:
        root = store or Path(folder) / "store"
        settings: dict[str, object] = {
            "brokerClusterName": "DefaultCluster",
            "brokerName": "java-broker",
            "brokerId": 0,
            "brokerIP1": "127.0.0.1",
            "listenPort": port,
            "haListenPort": port + 1,
            "storePathRootDir": root,
            "storePathCommitLog": root / "commitlog",
            "mappedFileSizeCommitLog": 64 * 1024 * 1024,
            "autoCreateTopicEnable": "true",
            **keys,
        }
        conf = Path(folder) / "broker.conf"
        conf.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        process = _serve(
            "org.apache.rocketmq.broker.BrokerStartup",
            "512m",
            conf,
            "-n",
            namesrv,
            log=Path(folder) / "broker.out",
        )
        try:
            wait_port(port)
            wait_registered(namesrv, f"127.0.0.1:{port}")
            yield f"127.0.0.1:{port}"
        finally:
            _end(process)


def mqadmin(*arguments: str, seconds: float = 60) -> str:
    """Run the official mqadmin (5.5.0) and return what it printed."""
    home = WORK / "home"
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["java", "-Xmx256m", f"-Duser.home={home}", f"-Drocketmq.home.dir={home}", "-cp", f"{jars('5')}/*",
         "org.apache.rocketmq.tools.command.MQAdminStartup", *arguments],
        capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr
