"""`actormq store` on the store of a real broker: while it works, when it was killed, when it has stopped."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from actormq_process import Dev, dev_in
from gateway_process import Peer, until
from gateway_rig import send_request

from actormq.cli.main import main


def store(*words: object, code: int = 0) -> str:
    """Run `actormq store …`, in this process; return what it said."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(["store", *map(str, words)])
    assert status == code, (status, out.getvalue(), err.getvalue())
    return out.getvalue() or err.getvalue()


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


def test_beside_a_broker(tmp_path: Path) -> None:
    """Messages are dumped, nothing is changed, who holds the store is named; damage is told."""
    root = tmp_path / "data"
    with dev_in(root) as dev:
        send(dev, "orders", 5)
        _dump(root)
        for words in (["rebuild", root, "--write"], ["truncate", root, "--at", 0, "--write"]):
            said = store(*words, code=1)
            assert said == f"actormq: another broker (process {dev.process.pid}) works on {root}\n"
        assert "nothing was changed" in store("rebuild", root)
        assert json.loads(store("truncate", root, "--at", 0, "--json"))["records"] == 5
        assert dev.stop() == 0
    assert look(root)[1]["clean"]
    _damage(root)


def _dump(root: Path) -> None:
    lines = [json.loads(line) for line in store("dump", root, "--topic", "orders").splitlines()]
    assert [line["queue_offset"] for line in lines] == list(range(5))
    assert lines[3]["body"] == "00003" * 20
    for body, text in (("base64", "MDAw"), ("none", None)):
        shown = store("dump", root, "--from", lines[2]["log_offset"], "--count", 1, "--body", body)
        assert (json.loads(shown).get("body") or "")[:4] == (text or "")
    assert "--body must be one of" in store("dump", root, "--body", "xml", code=2)


def _damage(root: Path) -> None:
    log = min((root / "commitlog").iterdir())
    with log.open("r+b") as file:
        file.seek(100)
        file.write(b"?")
    shown = store("verify", root, code=1)
    assert f"log.record: {log} at log offset 0 (orders, queue " in shown
    assert "damaged: 1 log.record, 1 index.stray, 1 queue.stray" in shown
    assert "no good record at log offset 0 (BAD_CRC)" in store("dump", root, "--topic", "none", code=1)


def test_no_store(tmp_path: Path) -> None:
    """One sentence, exit code 2; 1 would mean damage."""
    said = store("verify", tmp_path, code=2)
    assert said == f"actormq: {tmp_path} is no store: it has neither commitlog nor consumequeue\n"


def test_rebuilt_and_truncated_stores_start(tmp_path: Path) -> None:
    """With every message up to the cut, each in its place in its queue, and go on behind it."""
    root = tmp_path / "data"
    with dev_in(root) as dev:
        send(dev, "orders", 30)
        assert dev.stop() == 0
    for queue in (root / "consumequeue/orders").rglob("0*0"):
        queue.write_bytes(bytes(queue.stat().st_size))
    assert json.loads(store("verify", root, "--json", code=1))["damage"] == {"queue.hole": 30}
    assert "30 messages in 1 queues" in store("rebuild", root, "--write")
    assert look(root)[1]["whole"]
    lines = [json.loads(line) for line in store("dump", root).splitlines()]
    assert "is inside what reaches from" in store(
        "truncate", root, "--at", lines[20]["log_offset"] + 1, code=2
    )
    shown = store("truncate", root, "--at", lines[20]["log_offset"], "--write")
    assert "10 records" in shown
    with dev_in(root) as dev:
        peer = Peer(dev)
        assert peer.ask(send_request("orders")).fields["queueOffset"] == "20"
        peer.close()
        assert dev.stop() == 0
    verdict = look(root)[1]
    assert (verdict["whole"], verdict["topics"]) == (True, {"orders": {"0": 21}})


class Sender:
    """Sends one message after the other from a thread, and notes what was acknowledged."""

    def __init__(self, dev: Dev) -> None:
        self.acknowledged: list[int] = []
        self._over = threading.Event()
        self._peer = Peer(dev)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._over.is_set():
            answer = self._peer.ask(send_request("orders", body=b"%08d" % number * 4_000))
            assert answer.code == 0
            self.acknowledged.append(int(answer.fields["queueOffset"]))
            number += 1

    def stop(self) -> None:
        self._over.set()
        self._thread.join(60)
        self._peer.close()


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_backup_under_load(tmp_path: Path, rounds: int) -> None:
    """While messages come and retention removes files: what was acknowledged before comes back."""
    root = tmp_path / "data"
    busy = {
        "ACTORMQ_STORE_LOG_FILE_BYTES": str(8 << 20),
        "ACTORMQ_STORE_RETENTION_HOURS": "0",
        "ACTORMQ_STORE_DELETE_WHEN": ";".join(map(str, range(24))),
        "ACTORMQ_STORE_CLEAN_INTERVAL_MS": "20",
    }
    with dev_in(root, env=busy) as dev:
        sender = Sender(dev)
        first = root / "commitlog" / f"{0:020d}"
        until("retention to have worked", lambda: bool(sender.acknowledged) and not first.exists())
        before = []
        for number in range(rounds):
            acknowledged = len(sender.acknowledged)
            made = json.loads(store("backup", root, tmp_path / f"backup-{number}", "--json"))
            before.append((acknowledged, made))
            assert json.loads(store("verify", root, "--json"))["log"]["records"] > 0
            store("inspect", root)
        sender.stop()
        assert dev.stop() == 0
    assert sender.acknowledged == list(range(len(sender.acknowledged)))
    for number, (acknowledged, made) in enumerate(before):
        back = tmp_path / f"back-{number}"
        store("restore", tmp_path / f"backup-{number}", back)
        lines = [json.loads(line) for line in store("dump", back, "--topic", "orders").splitlines()]
        offsets = [line["queue_offset"] for line in lines]
        assert offsets == list(range(offsets[0], offsets[-1] + 1))
        assert offsets[-1] + 1 >= acknowledged
        assert all(line["body"] == f"{line['queue_offset']:08d}" * 4_000 for line in lines)
        facts, verdict = look(back)
        assert (verdict["whole"], verdict["log"]["end"]) == (True, made["log_end"])
    with dev_in(back, env={"ACTORMQ_STORE_LOG_FILE_BYTES": str(8 << 20)}) as dev:
        peer = Peer(dev)
        assert peer.ask(send_request("orders")).fields["queueOffset"] == str(offsets[-1] + 1)
        peer.close()
        assert dev.stop() == 0
    assert look(back)[1]["whole"]
    assert facts["layout"]["log_file_bytes"] == 8 << 20
