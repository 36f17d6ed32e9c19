"""`actormq store` on the store of a real broker: while it works, when it was killed, when it has stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from actormq_process import Dev, dev_in
from gateway_process import Peer
from gateway_rig import send_request


def store(*words: object, code: int = 0) -> str:
    """Run `actormq store …`; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "actormq.cli.main", "store", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout if code in (0, 1) and done.stdout else done.stderr


def look(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what inspect and verify say of a store that is whole."""
    return json.loads(store("inspect", root, "--json")), json.loads(store("verify", root, "--json"))


def send(dev: Dev, topic: str, count: int) -> None:
    peer = Peer(dev)
    for number in range(count):
        assert peer.ask(send_request(topic, body=b"%05d" % number * 20)).code == 0
    peer.close()


def test_look_at_a_store_in_every_state(tmp_path: Path) -> None:
    """At work, killed, started again, stopped: whole, with everything that was acknowledged."""
    root = tmp_path / "data"
    with dev_in(root) as dev:
        send(dev, "orders", 50)
        facts, verdict = look(root)
        assert facts["running"] == [dev.process.pid]
        assert (verdict["clean"], verdict["log"]["records"]) == (False, 50)
        os.kill(dev.process.pid, signal.SIGKILL)
        dev.process.wait()
    facts, verdict = look(root)
    assert (facts["running"], facts["abort"]) == ([], str(dev.process.pid))
    assert (verdict["clean"], verdict["log"]["records"]) == (False, 50)
    with dev_in(root) as dev:
        send(dev, "orders", 10)
        assert dev.stop() == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    facts, verdict = look(root)
    assert (verdict["clean"], verdict["whole"], verdict["waiting"]) == (True, True, {})
    assert verdict["log"]["records"] == sum(verdict["topics"]["orders"].values()) == 60
    assert sum(queue["max"] for queue in facts["queues"] if queue["topic"] == "orders") == 60
    assert facts["mark"]["log_end"] == facts["log"]["end"] == verdict["log"]["end"]
    assert facts["layout"]["index_slots"] == 10_000
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


def test_exit_codes(tmp_path: Path) -> None:
    """2: no store, in one sentence; 1: a damaged one, named in words and in JSON."""
    said = store("verify", tmp_path, code=2)
    assert said == f"actormq: {tmp_path} is no store: it has neither commitlog nor consumequeue\n"
    root = tmp_path / "data"
    with dev_in(root) as dev:
        send(dev, "orders", 3)
        assert dev.stop() == 0
    log = min((root / "commitlog").iterdir())
    with log.open("r+b") as file:
        file.seek(100)
        file.write(b"?")
    shown = store("verify", root, code=1)
    assert f"log.record: {log} at log offset 0 (orders, queue " in shown
    assert "damaged: 1 log.record, 1 index.stray, 1 queue.stray" in shown
    assert json.loads(store("verify", root, "--json", code=1))["damage"]["log.record"] == 1
    assert "orders" in store("inspect", root)
