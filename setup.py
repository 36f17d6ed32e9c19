"""Build the kernels: every file of ``actormq/kernels`` becomes an extension where that can be done.

Nothing here is needed to run ActorMQ: without Cython, a compiler or Python's headers the install
succeeds and the ``.py`` files are used; one kernel that fails to compile leaves the others compiled.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.machinery
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("actormq/kernels")
HEADERS = sorted(KERNELS.glob("*.h"))
DIRECTIVES = {"language_level": 3, "show_performance_hints": False}
"""The rest is Python's own meaning; a kernel that is sure of its bounds says so in its first lines:
``# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True``.
"""


def _warn(sentence: str) -> None:
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


def kernels() -> list[Extension]:
    """Return one optional extension per kernel that Cython accepts."""
    if os.environ.get("ACTORMQ_PURE") == "1":
        return []
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
    for source in sorted(KERNELS.glob("*.py")):
        if source.name == "__init__.py":
            continue
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

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as trouble:  # whatever a toolchain may throw: the .py file works, too
            _warn(f"{ext.name} stays uncompiled: {trouble}")


with _alone():
    setup(ext_modules=kernels(), cmdclass={"build_ext": BuildKernels})
