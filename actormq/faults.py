"""Named fault points: where the kill tests let a role die, between two steps that matter.

``ACTORMQ_FAULT=writer.intent:3`` kills the process (SIGKILL) the third time that it comes to
the point of that name; several are separated by commas.  Nothing is armed without the variable:
the module then binds `point` to a function that does nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

ENVIRONMENT = "ACTORMQ_FAULT"


def _pass(name: str) -> None:
    """Do nothing: no fault is armed in this process."""


def _armed(spec: str) -> Callable[[str], None]:
    left = {}
    for item in filter(None, spec.split(",")):
        name, _, hits = item.partition(":")
        left[name] = int(hits or 1)

    def point(name: str) -> None:
        if name in left:
            left[name] -= 1
            if left[name] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return point


def arm(spec: str) -> None:
    """Arm this process: `spec` as in the environment variable, empty disarms."""
    global point
    point = _armed(spec) if spec else _pass


point: Callable[[str], None] = _pass
arm(os.environ.get(ENVIRONMENT, ""))
