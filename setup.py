"""Build the kernels, every file of ``actormq/kernels`` an extension; leave out of a wheel what is for tests.

In place, the tests' checker gets its loop compiled, too.

Nothing here is needed to run ActorMQ: without Cython, a compiler or Python's headers the install
succeeds and the ``.py`` files are used; one kernel that fails to compile leaves the others compiled.
``ACTORMQ_KERNELS=required`` makes each of these an error: a wheel for others has them all, or is none.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.machinery
import os
import re
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

KERNELS = Path("actormq/kernels")
JUDGING = Path("tests/faults/judging.py")
HEADERS = sorted(KERNELS.glob("*.h"))
DIRECTIVES = {"language_level": 3, "show_performance_hints": False}
"""The rest is Python's own meaning; a kernel that is sure of its bounds says so in its first lines:
``# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True``.
"""


FAULT_POINT = re.compile(r"^( *)faults\.point\([^()\n]*\)$", re.MULTILINE)
FAULT_POINTS_THERE = "COMPILED_IN: Final = True"
"""In actormq/faults.py."""


def _warn(sentence: str) -> None:
    """Say what is missing; when nothing may be, end the build."""
    if os.environ.get("ACTORMQ_KERNELS") == "required":
        raise SystemExit(f"actormq: {sentence}")
    print(f"actormq: {sentence}", file=sys.stderr)


def _drop_stale(source: Path) -> None:
    """Remove extensions older than their source: they would run instead of it and hide the change."""
    inputs = [source, source.with_suffix(".pxd"), *HEADERS, KERNELS / "atomics.pxd", KERNELS / "records.pxd"]
    changed = max(path.stat().st_mtime for path in inputs if path.exists())
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        built = source.with_suffix(suffix)
        if built.exists() and built.stat().st_mtime < changed:
            built.unlink()


def _extension(source: Path) -> Extension:
    return Extension(
        ".".join(source.with_suffix("").parts),
        [str(source)],
        depends=[str(header) for header in HEADERS],
        include_dirs=[str(KERNELS)],
        extra_compile_args=["-O3", "-g0", "-fno-strict-aliasing"],
    )


def _compiler() -> str | None:
    """Return the path of the compiler that distutils would call."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    return shutil.which(command[0])


def _sources() -> list[Path]:
    """Return what is compiled."""
    sources = sorted(set(KERNELS.glob("*.py")) - {KERNELS / "__init__.py"})
    return [*sources, JUDGING] if "--inplace" in sys.argv and JUDGING.exists() else sources


def kernels() -> list[Extension]:
    """Return one optional extension per kernel that Cython accepts."""
    if os.environ.get("ACTORMQ_PURE") == "1":
        return []  # asked for
    if not _compiler():
        _warn("no C compiler here, the kernels stay uncompiled")
        return []
    try:
        from Cython.Build import cythonize
        from Cython.Compiler.Errors import CompileError
    except ImportError:
        _warn("Cython is not installed, the kernels stay uncompiled")
        return []
    extensions: list[Any] = []
    for source in _sources():
        _drop_stale(source)
        try:
            (extension,) = cythonize(
                [_extension(source)], build_dir="build/c", compiler_directives=DIRECTIVES, quiet=True
            )
            extension.optional = True
            extensions.append(extension)
        except CompileError:
            _warn(f"{source} is refused by Cython and stays uncompiled")
    return extensions


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the build folder: two builds at once would hand each other half-written files."""
    Path("build").mkdir(exist_ok=True)
    with open("build/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class BuildKernels(build_ext):
    """Compile what can be compiled; say which kernels stay Python."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count()

    def build_extensions(self) -> None:
        """A kernel uses nothing but libc: no folder of this machine is to be searched where it is used."""
        link = self.compiler.linker_so
        self.compiler.set_executable(
            "linker_so", [word for word in link if not word.startswith("-Wl,-rpath")]
        )
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as trouble:  # whatever a toolchain may throw: the .py file works, too
            _warn(f"{ext.name} stays uncompiled: {trouble}")


def without_fault_points(name: str, source: str) -> str:
    """Return a module as a wheel has it: each fault point a ``pass``, line for line.

    Raises:
        ValueError: a point is no statement of its own on one line, so it would stay.
    """
    if name == "actormq.faults":
        if FAULT_POINTS_THERE not in source:
            raise ValueError(f"{name} says no longer {FAULT_POINTS_THERE!r}")
        return source.replace(FAULT_POINTS_THERE, FAULT_POINTS_THERE.replace("True", "False"))
    source = FAULT_POINT.sub(r"\1pass", source)
    if "faults.point" in source:
        raise ValueError(f"{name} uses faults.point otherwise than as a statement on one line")
    return source


class BuildModules(build_py):
    """Copy the modules without their fault points.  An editable install copies nothing."""

    def build_module(self, module: str, module_file: str, package: Any) -> Any:
        built = super().build_module(module, module_file, package)
        copy = Path(built[0])
        name = ".".join((package, module) if isinstance(package, str) else (*package, module))
        source = copy.read_text("utf-8")
        if (changed := without_fault_points(name, source)) != source:
            copy.write_text(changed, "utf-8")
        return built


if __name__ == "__main__":
    with _alone():
        setup(ext_modules=kernels(), cmdclass={"build_ext": BuildKernels, "build_py": BuildModules})
