"""What cannot be started says so in one sentence, with exit code 1 or 2, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from actormq_process import Dev, leavings, running_dev
from gateway_process import Peer, until
from gateway_rig import send_request
from process.odd_clients import broker
from server_process import running

FREE_PORTS = ["--port", "0", "--zmq-port", "0", "--namesrv-port", "0", "--namesrv-zmq-port", "0"]
LOG_FILE_BYTES = 64 * 1024 * 1024
"""Of `dev`."""
ZEROS = "0" * 20
SECONDS = 60
NOTICES = (" INFO ", "actormq dev: ", "the kernels are not compiled")
"""What is said at any start."""


def refused(*words: str, store: Path | None = None, cwd: Path | None = None) -> tuple[int, str]:
    """Run a command that must end by itself; return its exit code and the one sentence that it said.

    Args:
        store: the folder whose broker's memory and sockets are looked for afterwards.
    """
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [sys.executable, "-m", "actormq.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=cwd,
        env={**os.environ, "STARTED_BY": mark},
    )
    assert "Traceback" not in done.stderr
    assert "ready in" not in done.stdout
    said = [line for line in done.stderr.splitlines() if not any(notice in line for notice in NOTICES)]
    assert len(said) == 1, done.stderr
    until("the processes to be gone", lambda: not started_by(mark))
    if store is not None:
        assert leavings(store) == []
    return done.returncode, said[0]


def started_by(mark: str) -> list[str]:
    """Return the names of living processes with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("STARTED_BY") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder but the lock, folders as empty."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if path.name != "lock"
    }


def sized(path: Path, size: int) -> None:
    """Make a sparse file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def later_mark(content: str) -> str:
    return f"{zlib.crc32(content.encode()):08x}\n{content}"


Spoil = Callable[[Path], None]
FOREIGN: dict[str, tuple[Spoil, str]] = {
    "a file where the log should be": (
        lambda root: text(root / "commitlog", "x"),
        "commitlog is a file, but a store has a folder there",
    ),
    "a file where the queues should be": (
        lambda root: text(root / "consumequeue", "x"),
        "consumequeue is a file, but",
    ),
    "a file where the tables should be": (lambda root: text(root / "config", "x"), "config is a file, but"),
    "a folder where the checkpoint should be": (
        lambda root: (root / "checkpoint").mkdir(),
        "checkpoint is a folder, but a store has a file there",
    ),
    "a folder where the lock should be": (
        lambda root: (root / "lock").mkdir(),
        "cannot use the store folder",
    ),
    "a short log file": (
        lambda root: sized(root / "commitlog" / ZEROS, 100),
        f"{ZEROS} has 100 bytes, not {LOG_FILE_BYTES}: another file size, or half copied",
    ),
    "a log of larger files": (
        lambda root: sized(root / "commitlog" / ZEROS, 2 * LOG_FILE_BYTES),
        f"has {2 * LOG_FILE_BYTES} bytes, not {LOG_FILE_BYTES}",
    ),
    "a log with a gap": (
        lambda root: [sized(root / f"commitlog/{n * LOG_FILE_BYTES:020d}", LOG_FILE_BYTES) for n in (0, 2)],
        f"has no file {LOG_FILE_BYTES:020d} before {2 * LOG_FILE_BYTES:020d}",
    ),
    "somebody's notes": (
        lambda root: text(root / "commitlog/notes.txt", "x"),
        "notes.txt is no file of a store",
    ),
    "a short queue file": (
        lambda root: [
            sized(root / "commitlog" / ZEROS, LOG_FILE_BYTES),
            sized(root / "consumequeue/t/0" / ZEROS, 20),
        ],
        "has 20 bytes, not 6000000",
    ),
    "queues without a log": (
        lambda root: sized(root / "consumequeue/t/0" / ZEROS, 6_000_000),
        "has queue entries, but there is no commit log: copied in part?",
    ),
    "an index of another size": (
        lambda root: sized(root / "index/20240101010101001", 100),
        "20240101010101001 has 100 bytes, not 840040",
    ),
    "a long checkpoint": (lambda root: sized(root / "checkpoint", 10_000), "this is no checkpoint"),
    **{
        f"half of {name}": (
            lambda root, name=name: text(root / "config" / name, '{"dataVersion":{"counter":1'),
            f"{name}: bad JSON",
        )
        for name in ("topics.json", "subscriptionGroup.json", "consumerOffset.json", "delayOffset.json")
    },
    "a topic's folder that leads out of the store": (
        lambda root: [
            (root / "consumequeue").mkdir(),
            (root / "consumequeue/t").symlink_to(root.parent, target_is_directory=True),
        ],
        "consumequeue/t is a link: queues lie in folders of the store itself",
    ),
    "a store of DLedger mode": (
        lambda root: (root / "dledger-n0").mkdir(), "dledger-n0: a store of DLedger mode",
    ),
    "a later version of our own": (
        lambda root: [
            text(root / "checkpoint", ""), text(root / "actormq.clean", later_mark('{"version":2}')),
        ],
        "actormq.clean is of version 2; this program knows 1",
    ),
    "a topic that leads out of the store": (
        lambda root: text(root / "config/topics.json", '{"topicConfigTable":{"x":{"topicName":"../x"}}}'),
        "'../x' cannot be the name of a topic",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "sentence"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_folder_that_is_no_store(tmp_path: Path, spoil: Spoil, sentence: str) -> None:
    """Refused by name, and left exactly as it was."""
    root = tmp_path / "store"
    root.mkdir()
    spoil(root)
    before = contents(root)
    code, said = refused("dev", *FREE_PORTS, "--data-dir", str(root), store=root)
    assert code in (1, 2)
    assert sentence in said
    assert contents(root) == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the way, a place where nobody may make anything, and no name at all."""
    text(tmp_path / "file", "x")
    nowhere = Path("/proc/nowhere")  # not even by root
    for data_dir in (tmp_path / "file", tmp_path / "file/below", nowhere):
        code, said = refused("dev", *FREE_PORTS, "--data-dir", str(data_dir))
        assert code == 1
        assert said.startswith(f"actormq: cannot use the store folder {data_dir}: ")
    code, said = refused("dev", *FREE_PORTS, "--data-dir", "", cwd=tmp_path)
    assert (code, said) == (2, "actormq: --data-dir must be a path, not ''")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("b.toml", "[store\n", "b.toml is no TOML: "),
        ("b.toml", "[store]\nroot = 5\n", "store.root in {file} must be a path, not 5"),
        ("b.toml", "[store]\nroot = 's'\n[memory]\nqueue_rows_max = 99999999999\n", "must be between 64 and"),
        ("b.toml", "[store]\nroot = 's'\n[gateway]\nhost = '192.0.2.1'\n", "cannot listen on 192.0.2.1"),
        ("b.toml", "[store]\nroot = 's'\n[broker]\nadvertised_host = 'no such host'\n", "cannot be resolved"),
        ("b.toml", "[store]\nroot = 's'\n[coordinator]\ndelay_levels = 'soon'\n", "'soon' is no delay"),
        ("b.conf", "listenPort=many\n", "listenPort in {file} must be an integer, not 'many'"),
        ("b.conf", "flushDiskType=NEVER\n", "flushDiskType in {file} cannot be 'NEVER'"),
        ("b.conf", "mapedFileSizeCommitLog=1\n", "mapedFileSizeCommitLog in {file}: log_file_bytes must be"),
        ("b.conf", "brokerRole=SLAVE\n", "brokerRole=SLAVE in {file} cannot be kept"),
    ],
)
def test_bad_settings(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    """File, key and what would be right."""
    file = tmp_path / name
    file.write_text(content)
    port = [] if "listenPort" in content else ["--port", "0"]
    code, said = refused("broker", "-c", str(file), *port, cwd=tmp_path)
    assert code == 2
    assert sentence.format(file=file) in said


def test_settings_that_nobody_knows_are_named_once(tmp_path: Path) -> None:
    """In one line; the broker starts."""
    file = tmp_path / "b.toml"
    file.write_text(f"stray = 1\n[store]\nroot = '{tmp_path}/s'\nflsh = 'sync'\n[zoo]\nape = 1\n")
    small = {"ACTORMQ_STORE_LOG_FILE_BYTES": str(8 << 20), "ACTORMQ_NOBODYS": "1"}
    with running(tmp_path, "broker", "-c", str(file), "--port", "0", **small) as server:
        lines = server.log.read_text().splitlines()
    said = [line for line in lines if line.startswith("actormq: ") and NOTICES[2] not in line]
    assert said == [
        f"actormq: {file}: these keys are kept but not used: store.flsh, stray, zoo.ape",
        "actormq: the environment: these variables are no settings: ACTORMQ_NOBODYS",
    ]


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """By anybody, on any front; the folder is as it was, and free for the next."""
    root = tmp_path / "store"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("--port", "--zmq-port", "--namesrv-port", "--namesrv-zmq-port"):
            words = [*FREE_PORTS, option, str(port), "--data-dir", str(root)]
            code, said = refused("dev", *words, store=root)
            assert code == 2
            assert said.startswith(f"actormq: cannot listen on 127.0.0.1:{port} (")
    assert contents(root) == {}
    shutil.rmtree(root)


def test_beside_a_broker_that_runs(tmp_path: Path) -> None:
    """Neither a second one on its folder nor one on its ports; the first serves on."""
    with running_dev() as first:
        code, said = refused("dev", *FREE_PORTS, "--data-dir", str(first.data_dir))
        assert code == 1
        assert said == (f"actormq: another broker (process {first.process.pid}) works on {first.data_dir}")
        words = ["--port", port_of(first), *FREE_PORTS[2:]]
        code, said = refused("dev", *words, "--data-dir", str(tmp_path), store=tmp_path)
        assert code == 2
        assert f"cannot listen on {first.broker} (gateway.tcp): Address already in use" in said
        peer = Peer(first)
        assert peer.ask(send_request("still-here")).code == 0
        peer.close()


def port_of(dev: Dev) -> str:
    return dev.broker.rpartition(":")[2]


def test_what_was_refused_can_be_started_once_it_is_put_right(tmp_path: Path) -> None:
    """A broken table, mended, has not cost a message: neither refusal nor mending touched the store."""
    root = tmp_path / "store"
    with broker(root) as dev:
        peer = Peer(dev)
        assert peer.ask(send_request("kept")).code == 0
        peer.close()
        assert dev.stop() == 0
    table = root / "config/topics.json"
    whole = table.read_text()
    (root / "config/topics.json.bak").unlink(missing_ok=True)
    table.write_text(whole[: len(whole) // 2])
    code, said = refused("dev", *FREE_PORTS, "--data-dir", str(root), store=root)
    assert (code, "topics.json: bad JSON" in said) == (2, True)
    table.write_text(whole)
    with broker(root) as dev:
        until("the line in the log", lambda: "after=clean stop" in "".join(dev.errors))
        peer = Peer(dev)
        assert peer.ask(send_request("kept")).fields["queueOffset"] == "1"
        peer.close()
        assert dev.stop() == 0
