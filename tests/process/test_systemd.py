"""The units and the settings beside them: systemd accepts them, and servers start with them as they are."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from actormq_process import dev_in
from server_process import running

import actormq

DEPLOY = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = sorted(path.name for path in DEPLOY.glob("*.service"))
TARGETS = ("sysinit", "basic", "shutdown", "network-online", "multi-user")
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
EXPOSURE_MAX = 20
"""In tenths, of 10: systemd's own "OK" begins below 4.0.  Ours have 1.4."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with our units and what they name, and nothing else."""
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for name in UNITS:
        shutil.copy(DEPLOY / name, units)
    for target in TARGETS:
        (units / f"{target}.target").write_text("[Unit]\nDescription=stands for the real one\n")
    program = tmp_path / "opt/actormq/bin/actormq"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return tmp_path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words], capture_output=True, text=True, timeout=60, check=False
    )


@needs_systemd
@pytest.mark.parametrize("name", ["actormq-namesrv.service", "actormq-broker@broker-a.service"])
def test_systemd_accepts_the_units(root: Path, name: str) -> None:
    """`systemd-analyze verify` has nothing to say: a key that it does not know would be a warning."""
    done = analyze("verify", f"--root={root}", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_the_units_are_hardened(name: str) -> None:
    """By systemd's own count."""
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", str(DEPLOY / name))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_the_supervisor_orders_the_end(name: str) -> None:
    """Only it gets SIGTERM, it says when it serves, and it has time for all of its stages."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / name)
    service = unit["Service"]
    assert (service["Type"], service["KillMode"]) == ("notify", "mixed")
    assert int(service["WatchdogSec"].removesuffix("s")) > 20, "a role that stood still for 20 s comes back"
    assert "2" in service["RestartPreventExitStatus"].split()


def allowed_calls(words: str) -> set[str]:
    """Return the system calls of a unit's sets: ``@group``, or ``@group`` minus others behind ``~``."""
    calls: set[str] = set()
    for word in words.split():
        shown = analyze("syscall-filter", word).stdout.splitlines()[1:]
        for line in (line.strip() for line in shown if line.strip() and not line.strip().startswith("#")):
            calls |= allowed_calls(line) if line.startswith("@") else {line}
    return calls


def written_elsewhere(lines: list[str], data: Path) -> set[str]:
    """Return the files that were opened for writing and would be read-only; bytecode need not be kept."""
    places = (
        str(data),
        os.environ["XDG_RUNTIME_DIR"],
        os.environ["TMPDIR"],
        "/tmp/",
        "/run/",
        "/dev/",
        "/proc/",
    )
    opened = (re.match(r'openat\(\w+, "(/[^"]*)", [^)]*(?:O_WRONLY|O_RDWR|O_CREAT)', line) for line in lines)
    names = {found[1] for found in opened if found}
    return {name for name in names if not name.startswith(places) and "/__pycache__/" not in name}


@needs_systemd
@pytest.mark.skipif(not shutil.which("strace"), reason="no strace here")
def test_nothing_is_done_that_the_units_forbid(tmp_path: Path) -> None:
    """A life under strace: calls, sockets and places that are allowed, no memory to write and run."""
    unit = (DEPLOY / "actormq-broker@.service").read_text()
    allow, deny = re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE)
    allowed = allowed_calls(allow) - allowed_calls(deny.removeprefix("~"))
    families = set(re.findall(r"^RestrictAddressFamilies=(.*)$", unit, re.MULTILINE)[0].split())
    trace = tmp_path / "trace"
    with dev_in(tmp_path / "data", before=("strace", "-D", "-f", "-qq", "-o", str(trace))) as dev:
        for url in (f"zmq://{dev.namesrv_zmq}", f"rocketmq://{dev.namesrv}"):
            with actormq.connect_sync(url) as mq:
                mq.send("t", b"x")
                first = actormq.ConsumerSettings(start_from=actormq.StartFrom.FIRST)
                assert next(iter(mq.consume("t", "g", settings=first))).body == b"x"
        assert dev.stop() == 0
    lines = [line.partition(" ")[2].strip() for line in trace.read_text(errors="replace").splitlines()]
    calls = {found[1] for line in lines if (found := re.match(r"(?:<\.\.\. )?(\w+)(?:\(| resumed)", line))}
    assert len(calls) > 40
    assert calls <= allowed, f"forbidden: {calls - allowed}"
    sockets = {found[1] for line in lines if (found := re.match(r"socket(?:pair)?\((AF_\w+)", line))}
    assert sockets, "no socket was seen"
    assert sockets <= families
    assert not written_elsewhere(lines, tmp_path)
    maps = [line for line in lines if re.match(r"mmap|mprotect|pkey_mprotect", line)]
    assert not [line for line in maps if "PROT_WRITE" in line and "PROT_EXEC" in line]
    assert not [line for line in maps if line.startswith(("mprotect", "pkey")) and "PROT_EXEC" in line]


def test_the_brokers_settings_start_one(tmp_path: Path) -> None:
    """`broker-a.toml` as it is; only the folder, the sizes and the ports are a test's."""
    flags = ["--data-dir", str(tmp_path / "data"), "--port", "0", "--zmq-port", "0"]
    sizes = {"ACTORMQ_STORE_LOG_FILE_BYTES": str(8 << 20), "ACTORMQ_STORE_INDEX_SLOTS": "1000"}
    with running(tmp_path, "broker", "-c", str(DEPLOY / "broker-a.toml"), *flags, **sizes) as broker:
        assert broker.words["broker"].startswith("127.0.0.1:")
        assert broker.words["zmq"].startswith("127.0.0.1:")
    assert broker.process.returncode == 0
    assert "actormq: " not in broker.log.read_text().replace("actormq: the kernels are not compiled", "")


def test_the_name_servers_settings_start_one(tmp_path: Path) -> None:
    """`namesrv.toml` as it is; only the folder and the ports are a test's."""
    flags = ["--port", "0", "--zmq-port", "0"]
    kept = {"ACTORMQ_NAMESRV_KV_PATH": str(tmp_path / "kvConfig.json")}
    with running(tmp_path, "namesrv", "-c", str(DEPLOY / "namesrv.toml"), *flags, **kept) as namesrv:
        assert namesrv.words["namesrv"].startswith("127.0.0.1:")
    assert namesrv.process.returncode == 0
    assert "actormq: " not in namesrv.log.read_text().replace("actormq: the kernels are not compiled", "")
