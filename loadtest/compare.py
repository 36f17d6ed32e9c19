"""Runs of two servers, one after the other in turn, and what follows from them: medians, ratio, spread.

A run during which others used the machine is kept, marked, and done again; medians are those of the quiet
runs, or of all when none was quiet.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from loadtest.machine import CpuUse

Figures = dict[str, float]
FAILURES: Final = ("send_failed", "response_failed")
"""Figures that count what the server did not acknowledge; shown with whatever else they spoil."""
REPEATS_MAX: Final = 2
"""How often a disturbed run is done again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One figure of a case, and what it is to reach.

    Attributes:
        figure: its name among the run's figures.
        of: "ratio" (ours ÷ theirs), or "ours" alone.
        at_least, at_most: the bound; neither = shown, and nothing to reach.
    """

    figure: str
    unit: str
    of: str = "ratio"
    at_least: float | None = None
    at_most: float | None = None

    def reached(self, value: float | None) -> bool | None:
        """Return whether `value` is good enough; None when there is no bound, or nothing to compare."""
        if value is None or (self.at_least is None and self.at_most is None):
            return None
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )

    @property
    def words(self) -> str:
        bound = f"≥ {self.at_least:g}" if self.at_least is not None else ""
        bound = f"≤ {self.at_most:g}" if self.at_most is not None else bound
        return f"{bound} ×" if bound and self.of == "ratio" else bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measurement of one server."""

    side: str
    round: int
    figures: Figures
    others_percent: float
    stolen_percent: float
    disturbed: bool

    @classmethod
    def of(cls, side: str, round_: int, figures: Figures, cpu: CpuUse) -> Run:
        return cls(
            side=side,
            round=round_,
            figures=figures,
            others_percent=round(cpu.others_percent, 1),
            stolen_percent=round(cpu.stolen_percent, 1),
            disturbed=cpu.is_disturbed,
        )


Measure = Callable[[], tuple[Figures, CpuUse]]


def alternate(measures: dict[str, Measure], rounds: int, repeats_max: int = REPEATS_MAX) -> list[Run]:
    """Run A B A B …; a disturbed run is repeated at once, and stays in the list.

    Raises:
        Whatever a measurement raises: lost or changed messages make every figure worthless.
    """
    runs = []
    for round_ in range(rounds):
        for side, measure in measures.items():
            for _ in range(1 + repeats_max):
                runs.append(Run.of(side, round_, *measure()))
                if not runs[-1].disturbed:
                    break
    return runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the runs say about one figure.

    Attributes:
        ours, theirs: medians.
        spread: (highest − lowest) ÷ median of our runs and of theirs; the larger one.
        quiet: whether every median is that of undisturbed runs.
    """

    ours: float
    theirs: float | None
    ratio: float | None
    spread: float
    quiet: bool


def summarize(runs: Sequence[Run], figure: str, sides: Sequence[str]) -> Summary | None:
    """Return medians, ratio and spread of a figure; None when no run of ours has it."""
    found = [_of_side(runs, figure, side) for side in sides]
    if not found or not found[0][0]:
        return None
    medians = [statistics.median(values) if values else None for values, _ in found]
    ours, theirs = medians[0], medians[1] if len(medians) > 1 else None
    assert ours is not None
    return Summary(
        ours=ours,
        theirs=theirs,
        ratio=ours / theirs if theirs else None,
        spread=max(_spread(values) for values, _ in found),
        quiet=all(quiet for _, quiet in found),
    )


def _of_side(runs: Sequence[Run], figure: str, side: str) -> tuple[list[float], bool]:
    with_figure = [run for run in runs if run.side == side and figure in run.figures]
    quiet = [run for run in with_figure if not run.disturbed]
    return [run.figures[figure] for run in quiet or with_figure], bool(quiet)


def _spread(values: Sequence[float]) -> float:
    middle = statistics.median(values) if values else 0
    return (max(values) - min(values)) / middle if middle else 0.0


@dataclass(kw_only=True)
class Row:
    """One case as measured: what the results file keeps."""

    name: str
    size: int
    goals: tuple[Goal, ...]
    sides: dict[str, dict[str, str]] = field(default_factory=dict)
    """Side to what is to be known about it: versions, durability, settings."""
    runs: list[Run] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Side to why it was not measured."""

    def lines(self) -> list[dict[str, Any]]:
        """Return one line of the table per goal."""
        lines = []
        for goal in self.goals:
            found = summarize(self.runs, goal.figure, list(self.sides))
            if found is not None:
                value = found.ratio if goal.of == "ratio" else found.ours
                lines.append(self._line(goal, found, goal.reached(value)))
        return lines

    def _line(self, goal: Goal, found: Summary, reached: bool | None) -> dict[str, Any]:
        counted = [run for run in self.runs if goal.figure in run.figures]
        return {
            "case": self.name,
            "bytes": self.size,
            "figure": goal.figure,
            "unit": goal.unit,
            "ours": found.ours,
            "theirs": found.theirs,
            "ratio": found.ratio,
            "spread": found.spread,
            "to reach": goal.words,
            "reached": reached,
            "others_percent": max(run.others_percent + run.stolen_percent for run in counted),
            "quiet": found.quiet,
            "failed": sum(run.figures.get(name, 0) for run in counted for name in FAILURES),
            "skipped": self.skipped,
        }
