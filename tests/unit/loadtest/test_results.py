"""The table and the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.compare import Goal, Row, Run
from loadtest.results import document, number, table, write


def row(**skipped: str) -> Row:
    goals = (Goal(figure="rate", unit="msg/s", at_least=1.4), Goal(figure="p50_us", unit="µs p50"))
    found = Row(name="official Producer", size=128, goals=goals, skipped=skipped)
    for side, rate in (("actormq", 90_000.0), ("rocketmq", 45_000.0)):
        if side in skipped:
            continue
        found.sides[side] = {"version": f"{side} 1"}
        figures = {"rate": rate, "p50_us": 12.5}
        found.runs.append(
            Run(side=side, round=0, figures=figures, others_percent=3, stolen_percent=0, disturbed=False)
        )
    return found


def test_table_says_both_figures_and_whether_it_is_enough() -> None:
    line = table([row()]).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "official Producer", "128", "msg/s", "90,000", "45,000", "2.00", "0%", "≥ 1.4 ×", "reached", "3 %",
    ]  # fmt: skip


def test_missing_side_is_skipped_with_a_word() -> None:
    """What was not measured is neither reached nor missed."""
    line = table([row(rocketmq="java is not installed")]).splitlines()[2]
    assert "| skipped |" in line
    assert "reached" not in line
    assert "MISSED" not in line


def test_file_keeps_every_run_and_the_summary_none(tmp_path: Path) -> None:
    context = {"machine": {"cpu": "x"}}
    write(tmp_path / "all.json", document(context, [row()], runs=True))
    whole = json.loads((tmp_path / "all.json").read_text())
    assert whole["machine"] == {"cpu": "x"}
    assert [run["side"] for run in whole["rows"][0]["runs"]] == ["actormq", "rocketmq"]
    assert whole["results"][0]["sides"]["rocketmq"] == {"version": "rocketmq 1"}
    assert "rows" not in document(context, [row()], runs=False)


@pytest.mark.parametrize(("value", "text"), [(None, ""), (1234.5, "1,234"), (12.345, "12.3"), (0.51, "0.51")])
def test_digits_that_mean_something(value: float | None, text: str) -> None:
    assert number(value) == text
