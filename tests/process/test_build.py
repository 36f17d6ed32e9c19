"""The build of the kernels: whatever is missing or refused, the install succeeds and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNEL = "def double(value: int) -> int:\n    return 2 * value\n"
_COMPILER = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
needs_compiler = pytest.mark.skipif(shutil.which(_COMPILER) is None, reason="no C compiler here")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one small kernel and our build file."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    kernels = tmp_path / "actormq" / "kernels"
    kernels.mkdir(parents=True)
    (kernels.parent / "__init__.py").touch()
    (kernels / "__init__.py").touch()
    (kernels / "small.py").write_text(KERNEL)
    for name in ("atomics.h", "atomics.pxd"):
        shutil.copy(ROOT / "actormq" / "kernels" / name, kernels)
    return tmp_path


def build(project: Path, **environment: str) -> str:
    """Run the build, which must succeed, and return what it complains about."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=project,
        env=os.environ | {"ACTORMQ_PURE": ""} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def built(project: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in (project / "actormq" / "kernels").glob("*.so")}


def test_without_a_compiler(project: Path) -> None:
    """One sentence, no extension, no failure."""
    assert "no C compiler" in build(project, CC="/nowhere/cc")
    assert built(project) == set()


def test_with_a_compiler_that_fails(project: Path, tmp_path: Path) -> None:
    """Python's headers missing, say: each kernel stays Python."""
    compiler = tmp_path / "failing-cc"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    assert "actormq.kernels.small stays uncompiled" in build(project, CC=str(compiler))
    assert built(project) == set()


@needs_compiler
def test_one_refused_kernel_leaves_the_others_compiled(project: Path) -> None:
    """A file that Cython does not take stays Python, alone."""
    (project / "actormq" / "kernels" / "broken.py").write_text("import cython\nx: cython.int = y.z(\n")
    assert "broken.py is refused" in build(project)
    assert built(project) == {"small"}


@needs_compiler
def test_stale_extension_never_hides_its_source(project: Path) -> None:
    """After a change that cannot be compiled the old machine code is gone."""
    build(project)
    assert built(project) == {"small"}
    source = project / "actormq" / "kernels" / "small.py"
    source.write_text(KERNEL + "x = (\n")
    later = source.stat().st_mtime + 10
    os.utime(source, (later, later))
    assert "refused" in build(project)
    assert built(project) == set()


@needs_compiler
def test_the_checker_is_compiled_where_the_tests_are(project: Path) -> None:
    """Its loop lies beside its source, and is nothing that a wheel has."""
    faults = project / "tests" / "faults"
    faults.mkdir(parents=True)
    for suffix in (".py", ".pxd"):
        shutil.copy((ROOT / "tests" / "faults" / "judging").with_suffix(suffix), faults)
    assert build(project) == ""
    assert list(faults.glob("judging*.so"))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "lib"]
    subprocess.run(command, cwd=project, env=os.environ | {"ACTORMQ_PURE": ""}, check=True)
    assert [path.name.partition(".")[0] for path in (project / "lib").rglob("*.so")] == ["small"]
