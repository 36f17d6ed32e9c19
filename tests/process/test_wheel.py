"""What is given to others: no fault points, no tests, nothing of this machine; no compiler is needed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILERS = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|clang|clang\+\+|c89|c99|cpp)(-[\d.]+)?")


# -- the modules as they are built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as setup.py puts it into a wheel, without the kernels' extensions."""
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--force", "--build-lib", str(folder)],
        cwd=ROOT, env=os.environ | {"ACTORMQ_PURE": "1"}, check=True,
    )  # fmt: skip
    return folder / "actormq"


def modules(package: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(package.rglob("*.py")):
        yield str(path.relative_to(package)), path.read_text("utf-8")


def test_fault_points_are_left_out(built: Path) -> None:
    """Each is a `pass` on its line, so tracebacks name the sources' lines; the rest is untouched."""
    sources = dict(modules(ROOT / "actormq"))
    points = 0
    for name, text in modules(built):
        ast.parse(text)
        lines, before = text.splitlines(), sources.pop(name).splitlines()
        assert len(lines) == len(before)
        for line, was in zip(lines, before, strict=True):
            if "faults.point(" in was:
                points += 1
                assert line == was[: len(was) - len(was.lstrip())] + "pass"
            elif name != "faults.py":
                assert line == was
    assert not sources
    assert points >= 50


def test_a_build_without_fault_points_says_so(built: Path, tmp_path: Path) -> None:
    """Who asks such a broker to die at a point is told that it will not."""
    program = (
        "import actormq; from actormq.cli import serving; serving.check_faults({'ACTORMQ_FAULT': 'a.b'})"
    )
    for package, said in ((built, 1), (ROOT / "actormq", 0)):
        environment = os.environ | {"PYTHONPATH": str(package.parent), "ACTORMQ_PURE": "1"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", program],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("ACTORMQ_FAULT has no effect") == said


@pytest.mark.parametrize(
    "line",
    ["if faults.point('a.b'): pass", "faults.point(name())", "x = faults.point", "faults.point(\n'a')"],
)
def test_a_point_that_would_stay_fails_the_build(line: str) -> None:
    """It must be a statement of its own, on one line."""
    program = f"import setup; setup.without_fault_points('m', {line!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode != 0
    assert "m uses faults.point otherwise" in done.stderr


# -- the wheel itself


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what `make wheel` builds."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        ["make", "-s", "wheel", f"DIST={folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def path_without_compilers(tmp_path: Path) -> str:
    """A folder of links to every program of ours but compilers, to be the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for entry in (Path(name) for name in os.environ["PATH"].split(os.pathsep)):
        for program in entry.iterdir() if entry.is_dir() else ():
            link = folder / program.name
            if not COMPILERS.fullmatch(program.name) and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_what_is_in_the_wheel(dist: Path) -> None:
    """Modules, kernels as source and compiled, py.typed, the licence; a tag that installs elsewhere."""
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        native = {name: archive.read(name) for name in names if name.endswith(".so")}
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "actormq").rglob("*.py")}
    kernels = {path.stem for path in (ROOT / "actormq/kernels").glob("*.py")} - {"__init__"}
    info = {name for name in names if ".dist-info/" in name}
    assert names - info - set(native) == sources | {"actormq/py.typed"}
    assert {Path(name).name.partition(".")[0] for name in native} == kernels
    assert any(name.endswith("licenses/LICENSE") for name in info)
    assert "cython" not in metadata.lower().partition("provides-extra")[0]
    for name, code in native.items():
        for folder in (str(ROOT), sys.prefix, sys.base_prefix, str(Path.home()), "/tmp/"):
            assert folder.encode() not in code, f"{folder} in {name}"
    if sys.platform == "linux":
        assert "-manylinux" in wheel.name


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_what_is_in_the_sdist(dist: Path) -> None:
    """All that git has, so that the Makefile's commands work there, and nothing that was built."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if "." in Path(name).name}
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    left_out = {".ci/run", ".gitignore", "loadtest/results/.gitignore", "loadtest/results/.gitkeep"}
    assert set(done.stdout.split()) - left_out <= names | {"LICENSE", "Makefile"}
    assert not [name for name in names if name.endswith((".so", ".c", ".pyc"))]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_demo_from_the_wheel_without_a_compiler(dist: Path, path_without_compilers: str) -> None:
    """`make demo WHEEL=…` where there is neither gcc nor Cython: it passes, at compiled speed."""
    (wheel,) = dist.glob("*.whl")
    done = subprocess.run(
        ["make", "demo", f"WHEEL={wheel}", f"PYTHON={sys.executable}", f"FILES={ROOT / 'docs'}"],
        cwd=ROOT, env={**os.environ, "PATH": path_without_compilers, "PYTHONPATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels=compiled" in done.stdout
    assert "demo passed" in done.stdout


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_wheel_uncompiled(dist: Path, tmp_path: Path) -> None:
    """The same wheel with ACTORMQ_PURE=1, and no Cython: the sources beside the extensions run."""
    (wheel,) = dist.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True)
    program = "from actormq.kernels import COMPILED, rings; import actormq; print(COMPILED, rings.FENCED)"
    for pure, said in (("1", "False False"), ("", "True True")):
        done = subprocess.run(
            [python, "-P", "-c", program], env=os.environ | {"ACTORMQ_PURE": pure, "PYTHONPATH": ""},
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == said
