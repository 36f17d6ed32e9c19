"""The benchmark runs: tiny, without Java, and its figures are looked at by nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CASES = ["produce", "send", "end to end", "consume"]
ALONE = "64 connections and one"
"""A row without another side."""


def test_quick(tmp_path: Path) -> None:
    """Every native row is measured, its messages counted and read back, and the results written down."""
    out, summary = tmp_path / "results.json", tmp_path / "summary.json"
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.bench", "--quick", "--out", str(out), "--summary", str(summary)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    *rows, alone, store, topics, start, drain = found["rows"]
    assert alone["name"].startswith(ALONE)
    assert alone["runs"][0]["figures"]["rate_64"] > 0
    assert store["name"].startswith("the store alone")
    assert [run["side"] for run in store["runs"]] == ["store", "write"]
    assert store["runs"][0]["figures"]["count"] * 1024 > 7 << 20
    for row, figure in ((topics, "killed_start_s"), (start, "killed_start_s"), (drain, "send_ratio")):
        assert row["runs"][0]["figures"][figure] > 0
    for row, words in zip(rows, CASES, strict=True):
        assert row["name"].startswith(f"Python client: {words}")
    for row in rows:
        assert [run["side"] for run in row["runs"]] == ["actormq"]
        assert row["runs"][0]["figures"]["count"] > 0
        assert row["skipped"] == {"kafka": "quick"}
    assert {"machine", "actormq", "flush", "date"} <= found.keys()
    assert json.loads(summary.read_text())["results"] == found["results"]
    assert "| Python client: consume a backlog" in done.stdout
    assert "skipped: kafka: quick" in done.stdout


def test_unknown_case() -> None:
    """One sentence, and nothing is started."""
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.bench", "--quick", "--only", "nonsense"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "nothing is called nonsense\n"
