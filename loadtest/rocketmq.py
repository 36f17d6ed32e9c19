"""The real Apache RocketMQ as the other side: its name server and broker, started as its own scripts do."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loadtest.processes import folder, told_on_failure, writing
from loadtest.servers import Server, Unavailable, require_java

VERSION: Final = "5.5.0"
_BROKER_HEAP: Final = (
    "-Xms2g", "-Xmx2g", "-XX:+UseG1GC", "-XX:G1HeapRegionSize=16m", "-XX:G1ReservePercent=25",
    "-XX:InitiatingHeapOccupancyPercent=30", "-XX:SoftRefLRUPolicyMSPerMB=0", "-XX:MaxDirectMemorySize=8g",
)  # fmt: skip
"""As its runbroker.sh, but for the size: 8 GiB there."""
_NAMESRV_HEAP: Final = ("-Xms256m", "-Xmx256m", "-XX:+UseG1GC")


def require() -> None:
    """Fetch the official jars where they are missing.

    Raises:
        Unavailable: Java or Maven is missing, or Maven does not get them.
    """
    require_java()
    from tests.interop import rocketmq as official

    try:
        official.jars("5")
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"Maven does not get the jars of RocketMQ {VERSION}: {error}") from None


def java(main_class: str, *words: object, heap: tuple[str, ...], home: Path) -> list[str]:
    """Return the command that runs a class of the official jars."""
    from tests.interop import rocketmq as official

    return [
        "java", "-server", *heap, "-XX:-OmitStackTraceInFastThrow", *official.JAVA_17_OPENS,
        f"-Duser.home={home}", f"-Drocketmq.home.dir={home}", "-cp", f"{official.jars('5')}/*", main_class,
        *map(str, words),
    ]  # fmt: skip


@contextmanager
def running(flush: str) -> Iterator[Server]:
    """Run the real name server and broker, with the flags that its own start script recommends."""
    from tests.interop import rocketmq as official

    with folder("rocketmq") as data, _name_server(data, official.free_port()) as (namesrv, first):
        port = official.free_port(-2, 1)
        conf = data / "broker.conf"
        conf.write_text(_broker_conf(data / "store", port, flush))
        main = "org.apache.rocketmq.broker.BrokerStartup"
        command = java(main, "-c", conf, "-n", namesrv, heap=_BROKER_HEAP, home=data)
        log = data / "broker.out"
        with told_on_failure(log), writing(command, log) as process:
            official.wait_port(port)
            official.wait_registered(namesrv, f"127.0.0.1:{port}")
            yield Server(
                kind="rocketmq",
                namesrv=namesrv,
                broker=f"127.0.0.1:{port}",
                url=f"rocketmq://{namesrv}",
                pids=(first, process.pid),
                about={
                    "version": f"Apache RocketMQ {VERSION}",
                    "heap": "2 GiB, G1",
                    "durability": f"{flush} flush",
                    "log file": "1024 MiB",
                },
            )


@contextmanager
def _name_server(data: Path, port: int) -> Iterator[tuple[str, int]]:
    from tests.interop import rocketmq as official

    conf = data / "namesrv.conf"
    conf.write_text(f"listenPort={port}\n")
    main = "org.apache.rocketmq.namesrv.NamesrvStartup"
    with writing(java(main, "-c", conf, heap=_NAMESRV_HEAP, home=data), data / "namesrv.out") as process:
        official.wait_port(port)
        yield f"127.0.0.1:{port}", process.pid


def _broker_conf(store: Path, port: int, flush: str) -> str:
    keys: dict[str, object] = {
        "brokerClusterName": "DefaultCluster",
        "brokerName": "broker-a",
        "brokerId": 0,
        "brokerRole": "ASYNC_MASTER",
        "brokerIP1": "127.0.0.1",
        "listenPort": port,
        "haListenPort": port + 1,
        "flushDiskType": f"{flush.upper()}_FLUSH",
        "storePathRootDir": store,
        "storePathCommitLog": store / "commitlog",
        "autoCreateTopicEnable": "true",
        "autoCreateSubscriptionGroup": "true",
    }
    return "".join(f"{key}={value}\n" for key, value in keys.items())
