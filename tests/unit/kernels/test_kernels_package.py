"""Which kernels a process gets: compiled ones where they are, Python where that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from actormq import kernels

SCRIPT = """
from actormq import kernels
from actormq.kernels import rings
print(kernels.COMPILED, rings.FENCED, rings.__file__.endswith(".py"))
"""

ALL = """
import importlib, pathlib, sys
sys.modules["cython"] = sys.modules["Cython"] = None  # as if not installed
from actormq import kernels
names = [path.stem for path in pathlib.Path(kernels.__file__).parent.glob("*.py") if path.stem != "__init__"]
modules = [importlib.import_module(f"actormq.kernels.{name}") for name in names]
assert all(module.__file__.endswith(".py") for module in modules)
from actormq.kernels.rings import Cells
cells = Cells(memoryview(bytearray(64)))
cells.store(0, 7)
print(len(names), cells.load(0))
"""


def answers(pure: str) -> str:
    """Return what a new process says about its kernels."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"ACTORMQ_PURE": pure},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_environment_forces_python() -> None:
    """ACTORMQ_PURE=1 takes the .py files even beside compiled ones."""
    assert answers("1") == "False False True"


def test_without_cython() -> None:
    """Cython is needed to compile: without it every kernel's .py file is imported, and runs."""
    done = subprocess.run(
        [sys.executable, "-c", ALL], env=os.environ | {"ACTORMQ_PURE": "1"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    count, loaded = done.stdout.split()
    assert (int(count) >= 6, loaded) == (True, "7")


def test_compiled_only_when_all_are() -> None:
    """One kernel without its extension, and the process does not call itself compiled."""
    folder = Path(kernels.__file__).parent
    sources = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    built = {path.name.partition(".")[0] for path in folder.glob("*.so")}
    compiled, fenced, python = answers("").split()
    assert (compiled == "True") == (sources <= built)
    assert (fenced == "True") == ("rings" in built)
    assert (python == "True") == ("rings" not in built)


def test_finder_knows_only_kernels() -> None:
    """Other imports, and kernels that do not exist, are left to Python."""
    assert kernels.PureFinder.find_spec("actormq.kernels.absent") is None
    assert kernels.PureFinder.find_spec("rings") is None
    spec = kernels.PureFinder.find_spec("actormq.kernels.rings")
    assert spec is not None
    assert spec.origin == str(Path(kernels.__file__).parent / "rings.py")
