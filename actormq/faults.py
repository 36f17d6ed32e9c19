"""Named fault points: where the kill tests let a role die, between two steps that matter.

``ACTORMQ_FAULT=writer.intent:3`` kills the process (SIGKILL) the third time that it comes to
the point of that name; several are separated by commas.  A role dies there in its first life only: its
successor shows how it recovers; ``2@writer.recovered`` is for the second life.  Nothing is armed without
the variable: the module then binds `point` to a function that does nothing.

A wheel has no fault points: the build makes a ``pass`` of each (setup.py, ADR 34).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

ENVIRONMENT = "ACTORMQ_FAULT"
COMPILED_IN: Final = True
"""Whether there are fault points in this build."""


def _pass(name: str) -> None:
    """Do nothing: no fault is armed in this process."""


def _hits(spec: str, life: int) -> dict[str, int]:
    """Return how often which points may be passed in this life, the last time included."""
    hits = {}
    for item in filter(None, spec.split(",")):
        of_life, _, place = item.rpartition("@")
        name, _, times = place.partition(":")
        if int(of_life or 1) == life:
            hits[name] = int(times or 1)
    return hits


def _armed(left: dict[str, int]) -> Callable[[str], None]:
    def point(name: str) -> None:
        if name in left:
            left[name] -= 1
            if left[name] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return point


def arm(spec: str, life: int = 1) -> None:
    """Arm this process: `spec` as in the environment variable, empty disarms.

    Args:
        life: which incarnation of its role this process is.
    """
    global point
    hits = _hits(spec, life)
    point = _armed(hits) if hits else _pass


point: Callable[[str], None] = _pass
arm(os.environ.get(ENVIRONMENT, ""))
