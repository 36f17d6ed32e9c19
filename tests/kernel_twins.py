"""Both versions of a kernel: the .py file as it stands, and the compiled one where there is one."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest

from actormq import kernels

_ROOM = "actormq.kernels."


def twins(name: str) -> list[ModuleType]:
    """Return the kernel uncompiled, with all that it uses uncompiled; then compiled, if it was compiled."""
    used = importlib.import_module(_ROOM + name)
    kept = _forget()
    sys.meta_path.insert(0, kernels.PureFinder)
    try:
        pure = importlib.import_module(_ROOM + name)
    finally:
        sys.meta_path.remove(kernels.PureFinder)
        _forget()
        for full_name, module in kept.items():
            sys.modules[full_name] = module
            setattr(kernels, full_name.removeprefix(_ROOM), module)
    return [pure] if used.__file__ == pure.__file__ else [pure, used]


def each_of(modules: list[ModuleType], argument: str = "kernel") -> pytest.MarkDecorator:
    """Run a test once with each version, as its argument."""
    return pytest.mark.parametrize(argument, modules, ids=["python", "compiled"][: len(modules)])


def _forget() -> dict[str, ModuleType]:
    """Take all loaded kernels out of Python's table; return them."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(_ROOM)}
