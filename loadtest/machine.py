"""What a figure depends on: the machine, the versions, and who else used the processor meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from actormq import __version__, kernels

ROOT: Final = Path(__file__).parent.parent
DISTURBED_PERCENT: Final = 15.0
"""CPU that others used or the hypervisor took, in percent of one core, from which a run is disturbed."""


def machine() -> dict[str, Any]:
    """Return what it was measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / (1 << 30), 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def project() -> dict[str, Any]:
    """Return which ActorMQ it was."""
    return {
        "version": __version__,
        "commit": _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "changed": bool(_git("status", "--porcelain", "--", "actormq")),
        "kernels": "compiled" if kernels.COMPILED else "python",
    }


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Who used how much over a stretch of time; seconds of CPU, percent of one core."""

    seconds: float
    server_s: float
    clients_s: float
    others_percent: float
    stolen_percent: float

    @property
    def is_disturbed(self) -> bool:
        return self.others_percent + self.stolen_percent > DISTURBED_PERCENT


class CpuMeter:
    """CPU of the servers' processes, of the clients', and of everybody else, from now until `stop`.

    Descendants count; a process that ends meanwhile takes its seconds with it, so nobody is to end early.
    """

    def __init__(self, servers: Iterable[int], clients: Iterable[int]) -> None:
        self._servers = tree(servers)
        self._clients = tree(clients)
        self._before = self._now()

    def _now(self) -> tuple[float, float, float, float, float, float]:
        whole = psutil.cpu_times()
        stolen = getattr(whole, "steal", 0.0)
        counted_twice = getattr(whole, "guest", 0.0) + getattr(whole, "guest_nice", 0.0)
        waiting = whole.idle + getattr(whole, "iowait", 0.0)
        working = sum(whole) - counted_twice - waiting - stolen
        here = time.process_time()
        return time.monotonic(), cpu_s(self._servers), cpu_s(self._clients), here, working, stolen

    def stop(self) -> CpuUse:
        """Return what was used since the meter was made."""
        after = self._now()
        seconds, servers, clients, here, working, stolen = (
            new - old for new, old in zip(after, self._before, strict=True)
        )
        others = max(working - servers - clients - here, 0.0)
        return CpuUse(seconds, servers, clients, others / seconds * 100, stolen / seconds * 100)


def wait_quiet(servers: Iterable[int], patience_s: float) -> None:
    """Return once nobody else works on this machine, or when patience ends."""
    pids, deadline = list(servers), time.monotonic() + patience_s
    while time.monotonic() < deadline:
        meter = CpuMeter(pids, [])
        time.sleep(min(1.0, patience_s))
        if not meter.stop().is_disturbed:
            return


def tree(pids: Iterable[int]) -> list[psutil.Process]:
    """Return the processes and all that descend from them."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        root = psutil.Process(pid)
        found |= {process.pid: process for process in [root, *root.children(recursive=True)]}
    return list(found.values())


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU seconds that they have used; one that is gone counts nothing."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def memory_mb(pids: Iterable[int]) -> float:
    """Return the memory of the processes and their descendants, shared pages counted once."""
    total = 0
    for process in tree(pids):
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue
    return total / (1 << 20)
