"""Runs in turn, what is made of them, and which goals they reach."""

from __future__ import annotations

import pytest

from loadtest.compare import Figures, Goal, Measure, Row, Run, alternate, summarize
from loadtest.machine import DISTURBED_PERCENT, CpuUse

SIDES = ("actormq", "rocketmq")


def use(others_percent: float = 0.0, stolen_percent: float = 0.0) -> CpuUse:
    return CpuUse(1.0, 0.5, 0.5, others_percent, stolen_percent)


def run(side: str, rate: float, *, disturbed: bool = False) -> Run:
    others = 50.0 if disturbed else 0.0
    return Run.of(side, 0, {"rate": rate}, use(others))


class Script:
    """Measurements that were decided beforehand, and the order in which they were asked for."""

    def __init__(self, **figures: list[tuple[float, float]]) -> None:
        self.order: list[str] = []
        self._figures = figures

    def measures(self) -> dict[str, Measure]:
        return {side: lambda side=side: self._next(side) for side in self._figures}

    def _next(self, side: str) -> tuple[Figures, CpuUse]:
        self.order.append(side)
        rate, others = self._figures[side].pop(0)
        return {"rate": rate}, use(others)


def test_sides_take_turns() -> None:
    """A B A B: a machine that gets slower must not make one side slower than the other."""
    script = Script(actormq=[(1, 0), (2, 0)], rocketmq=[(3, 0), (4, 0)])
    runs = alternate(script.measures(), 2)
    assert script.order == ["actormq", "rocketmq", "actormq", "rocketmq"]
    assert [(item.side, item.round, item.figures["rate"]) for item in runs] == [
        ("actormq", 0, 1), ("rocketmq", 0, 3), ("actormq", 1, 2), ("rocketmq", 1, 4),
    ]  # fmt: skip


def test_disturbed_run_is_repeated_and_kept() -> None:
    """Nobody can choose figures by declaring the others disturbed: they all stay in the file."""
    script = Script(actormq=[(1, 90), (2, 0)], rocketmq=[(3, 0)])
    runs = alternate(script.measures(), 1)
    assert [(item.figures["rate"], item.disturbed) for item in runs] == [(1, True), (2, False), (3, False)]


def test_repeating_ends() -> None:
    """On a machine that is never quiet it ends all the same."""
    script = Script(actormq=[(rate, 90) for rate in range(9)])
    assert len(alternate(script.measures(), 1, repeats_max=2)) == 3


@pytest.mark.parametrize(
    ("others", "stolen", "disturbed"),
    [(DISTURBED_PERCENT, 0, False), (DISTURBED_PERCENT + 1, 0, True), (DISTURBED_PERCENT, 1, True)],
)
def test_disturbed_by_neighbours_or_hypervisor(others: float, stolen: float, disturbed: bool) -> None:
    """CPU that was stolen is as bad as CPU that somebody here used."""
    assert use(others, stolen).is_disturbed is disturbed


def test_medians_of_the_quiet_runs() -> None:
    """A disturbed run counts only where there is no other."""
    runs = [run("actormq", rate) for rate in (10, 30, 20)] + [run("actormq", 1, disturbed=True)]
    runs += [run("rocketmq", rate, disturbed=True) for rate in (8, 10, 12)]
    found = summarize(runs, "rate", SIDES)
    assert found is not None
    assert (found.ours, found.theirs, found.ratio) == (20, 10, 2.0)
    assert found.spread == 1.0  # ours: 10 to 30 around 20
    assert not found.quiet


def test_one_side_has_no_ratio() -> None:
    """Where the other cannot be had, our own figure is shown alone."""
    found = summarize([run("actormq", 5)], "rate", SIDES[:1])
    assert found is not None
    assert (found.ours, found.theirs, found.ratio, found.quiet) == (5, None, None, True)
    assert summarize([run("actormq", 5)], "unknown", SIDES) is None


@pytest.mark.parametrize(
    ("goal", "value", "reached"),
    [
        (Goal(figure="rate", unit="", at_least=1.4), 1.4, True),
        (Goal(figure="rate", unit="", at_least=1.4), 1.39, False),
        (Goal(figure="p50_us", unit="", of="ours", at_most=70), 70, True),
        (Goal(figure="p50_us", unit="", of="ours", at_most=70), 71, False),
        (Goal(figure="rate", unit="", at_least=1.4), None, None),
        (Goal(figure="rate", unit=""), 5.0, None),
    ],
)
def test_goals(goal: Goal, value: float | None, reached: bool | None) -> None:
    """A bound belongs to what reaches it; without a bound or a value nothing is said."""
    assert goal.reached(value) is reached


def test_lines_compare_ratio_or_our_own_figure() -> None:
    """The ratio is held against the goal, or our own figure where the goal says so; failed sends are told."""
    goals = (
        Goal(figure="rate", unit="msg/s", at_least=2),
        Goal(figure="rate", unit="msg/s", of="ours", at_least=2),
    )
    row = Row(name="case", size=128, goals=goals, sides={side: {} for side in SIDES})
    row.runs = [run("actormq", 3), run("rocketmq", 2)]
    row.runs[0].figures["send_failed"] = 4.0
    by_ratio, by_ours = row.lines()
    assert (by_ratio["ratio"], by_ratio["reached"], by_ratio["to reach"]) == (1.5, False, "≥ 2 ×")
    assert (by_ours["ours"], by_ours["reached"], by_ours["to reach"]) == (3, True, "≥ 2")
    assert by_ratio["failed"] == 4
