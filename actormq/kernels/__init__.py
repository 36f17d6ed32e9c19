"""The hot loops: functions over memory, ordinary Python files that are compiled by Cython when possible.

May enter: one file per kind of memory (frames, records, queues, rings, batches, received).  They import
nothing of ours but each other, do no I/O (but `ahead`, which only hints) and hold no state but what they
are handed.
Each runs compiled and uncompiled alike; ``ACTORMQ_PURE=1`` forces the ``.py`` files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

PURE_ENVIRONMENT = "ACTORMQ_PURE"
_FOLDER = Path(__file__).parent


shadow = SimpleNamespace(
    compiled=False, cclass=lambda one: one, no_gc=lambda one: one, freelist=lambda _: lambda one: one
)
"""All that a kernel's ``.py`` file uses of the module ``cython``, where that is not installed (ADR 34)."""


class PureFinder:
    """Finds the ``.py`` file of a kernel where Python would take the extension beside it."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        source = _FOLDER / f"{name}.py"
        if package != __name__ or not source.exists():
            return None
        return spec_from_file_location(fullname, source)


def _all_compiled() -> bool:
    names = {path.stem for path in _FOLDER.glob("*.py")} - {"__init__"}
    return all(any((_FOLDER / (name + suffix)).exists() for suffix in EXTENSION_SUFFIXES) for name in names)


COMPILED: bool = os.environ.get(PURE_ENVIRONMENT) != "1" and _all_compiled()
"""True when every kernel of this process is compiled code."""

if not COMPILED:
    # All or none: a compiled kernel that calls into another one cannot use that one's .py file.
    sys.meta_path.insert(0, PureFinder)
