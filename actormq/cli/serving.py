"""serving: what `dev`, `broker` and `namesrv` share: run a supervisor, say when it is ready and how it ended.

Imports little: everything here is on the way of a start that is measured.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from actormq.actors.forkserver import Forkserver
    from actormq.actors.roles import RoleSpec
    from actormq.actors.supervisor import Supervisor
    from actormq.cli.settings import Layer
    from actormq.config import BrokerConfig


def serve(
    config: BrokerConfig,
    roles: Sequence[RoleSpec],
    *,
    store_root: Path | None,
    forkserver: Forkserver | None = None,
    fronts: Sequence[tuple[str, str]],
) -> int:
    """Run `roles` until a signal ends them; print one line when they are ready; return the exit code.

    Args:
        fronts: words of the ready line and the supervisor's names of their addresses.
    """
    from actormq.actors.status import EXIT_REFUSED
    from actormq.actors.supervisor import Supervisor

    check_kernels()
    check_faults(os.environ)

    def say_ready(supervisor: Supervisor) -> None:
        print(ready_line(supervisor.addresses, fronts), flush=True)

    status = Supervisor(config, roles, store_root=store_root, forkserver=forkserver, on_ready=say_ready).run()
    return 2 if status == EXIT_REFUSED else status


def check_kernels(machine: str | None = None) -> None:
    """Say once when the kernels are not compiled, and what to do about it.

    Raises:
        ConfigError: uncompiled on a processor that may show stores to others in another order.
    """
    from actormq.errors import ConfigError
    from actormq.kernels import COMPILED

    if COMPILED:
        return
    machine = machine or os.uname().machine
    if machine not in ("x86_64", "amd64"):
        raise ConfigError(
            f"the kernels are not compiled, and uncompiled a server runs on x86-64 only, not on {machine}: "
            "install a C compiler and install actormq again"
        )
    warn(["the kernels are not compiled (no C compiler when actormq was installed): it works, slower"])


def check_faults(environ: Mapping[str, str]) -> None:
    """Say that nobody will die at the points that the environment names, where the build has none."""
    from actormq import faults

    if environ.get(faults.ENVIRONMENT) and not faults.COMPILED_IN:
        warn([f"{faults.ENVIRONMENT} has no effect: fault points are left out of this build"])


def ready_line(addresses: dict[str, tuple[str, int]], fronts: Sequence[tuple[str, str]]) -> str:
    """Return the line that programs wait for: seconds since the process began, addresses, pid, kernels."""
    from actormq.kernels import COMPILED

    words = [f"ready in {seconds_since_start():.2f} s"]
    for word, key in fronts:
        host, port = addresses.get(key, ("-", 0))
        words.append(f"{word}={_address(host, port) if port else '-'}")
    words += [f"pid={os.getpid()}", f"kernels={'compiled' if COMPILED else 'python'}"]
    return " ".join(words)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def seconds_since_start() -> float:
    """Return how long this process has lived, the interpreter's own start included where that is known."""
    try:
        with open("/proc/self/stat") as stat:
            # The command's name is in parentheses and may hold blanks; starttime is the 22nd field.
            ticks = int(stat.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.perf_counter() - _IMPORTED
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


_IMPORTED = time.perf_counter()


def parse(parser: ArgumentParser, words: Sequence[str]) -> dict[str, object]:
    """Return the options that were given; those that were not are absent.

    Exits with 2 and one sentence, as argparse does, when they are wrong.
    """
    return {name: value for name, value in vars(parser.parse_args(words)).items() if value is not None}


def layer(options: dict[str, object], settings: dict[str, str]) -> Layer:
    """Return the options that are settings, as the strongest layer.

    Args:
        settings: option to ``section.field``.
    """
    from actormq.cli.settings import flag

    return {
        settings[name]: flag(name.replace("_", "-"), value)
        for name, value in options.items()
        if name in settings
    }


def warn(warnings: Sequence[str]) -> None:
    """Tell the person what was not used."""
    for warning in warnings:
        print(f"actormq: {warning}", file=sys.stderr, flush=True)
