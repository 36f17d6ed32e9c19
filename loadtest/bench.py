"""`make bench`: measure this broker, beside the real RocketMQ and Kafka where they can be had.

    python -m loadtest.bench                     everything, about half an hour
    python -m loadtest.bench --only native       without Java's benchmark; official, native-produce, …
    python -m loadtest.bench --quick             does it still work?  Seconds, no Java, no figures

The sides run in turn (A B A B …), each case with servers that are new.  Whatever was sent is counted and read
back afterwards; a message lost, changed or doubled ends everything.  Prints a table, writes
loadtest/results/DATE.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from loadtest import kafka, rocketmq, servers, storage
from loadtest.cases import (
    FULL,
    QUICK,
    SIZES,
    Amounts,
    Case,
    large_cases,
    native_cases,
    official_cases,
    store_cases,
)
from loadtest.compare import REPEATS_MAX, Figures, Measure, Row, alternate
from loadtest.machine import CpuUse, machine, project, wait_quiet
from loadtest.official import Stalled
from loadtest.results import FOLDER, document, heading, number, table, write
from loadtest.servers import Server, Start, Unavailable

REQUIRE: Final[dict[str, Callable[[], None]]] = {"rocketmq": rocketmq.require, "kafka": kafka.require}
"""What must be fetched, by program."""
_numbers = count()


def missing(kinds: set[str]) -> dict[str, str]:
    """Fetch what is wanted; return what cannot be had, and why."""
    reasons = {}
    for program in sorted(set(map(program_of, kinds)) & REQUIRE.keys()):
        print(f"looking for {program} …", file=sys.stderr, flush=True)
        try:
            REQUIRE[program]()
        except Unavailable as reason:
            reasons |= {kind: str(reason) for kind in kinds if program_of(kind) == program}
    return reasons


def program_of(kind: str) -> str:
    """Return what a kind of server is made with: "rocketmq-sync" is RocketMQ, told to sync."""
    return kind.partition("-")[0]


def starts(flush: str, *, small: bool) -> dict[str, Start]:
    """Return how each kind of server is started."""
    return {
        "actormq": partial(servers.actormq, flush, small=small),
        "actormq-sync": partial(servers.actormq, "sync", small=small),
        "rocketmq": partial(rocketmq.running, flush),
        "rocketmq-sync": partial(rocketmq.running, "sync"),
        "kafka": partial(kafka.running, flush),
        "folder": partial(servers.in_folder, small=small),
        "store": partial(storage.running, "store"),
        "write": partial(storage.running, "write"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often, and how patiently.

    Attributes:
        repeats: of a disturbed run, at most.
        warm: one run of each side does not count, for what compiles itself while it runs (the official
            programs' runs warm up by themselves).
        patience_s: how long a run waits for a quiet machine, at most.
    """

    rounds: int
    repeats: int
    warm: bool
    patience_s: float


QUICK_PACE: Final = Pace(rounds=1, repeats=0, warm=False, patience_s=0.0)


def measure(case: Case, start: dict[str, Start], skipped: dict[str, str], pace: Pace) -> Row:
    """Start the sides of a case, run them in turn, end them."""
    row = Row(name=case.name, size=case.size, goals=case.goals)
    row.skipped = {side: why for side, why in skipped.items() if side in case.sides}
    with ExitStack() as stack:
        running = {side: stack.enter_context(start[side]()) for side in case.sides if side not in row.skipped}
        for side, server in running.items():
            client = {"client": case.settings[side]} if side in case.settings else {}
            row.sides[side] = server.about | client
        measures: dict[str, Measure] = {
            side: partial(_run, case, server, pace.patience_s) for side, server in running.items()
        }
        if pace.warm and case.group in ("native", "store"):
            alternate(measures, 1, 0)
        row.runs = alternate(measures, pace.rounds, pace.repeats)
    return row


def _run(case: Case, server: Server, patience_s: float) -> tuple[Figures, CpuUse]:
    os.sync()  # else what the run before left to write back would be measured here
    wait_quiet(server.pids, patience_s)
    try:
        figures, cpu = case.measure(server, next(_numbers))
    except Stalled as stalled:
        print(f"{case.name}, {server.kind}: {stalled}; once more", file=sys.stderr, flush=True)
        figures, cpu = case.measure(server, next(_numbers))
    shown = ", ".join(
        f"{number(figures[goal.figure])} {goal.unit}" for goal in case.goals if goal.figure in figures
    )
    others = f"others {cpu.others_percent + cpu.stolen_percent:.0f} %"
    print(f"{case.name}, {case.size} B, {server.kind}: {shown}; {others}", file=sys.stderr, flush=True)
    return figures, cpu


def chosen(options: argparse.Namespace) -> list[Case]:
    """Return the cases that the options ask for."""
    amounts = QUICK if options.quick else amounts_of(options)
    sizes = options.sizes[:1] if options.quick else options.sizes
    official = [] if options.quick else official_cases(amounts, sizes)
    cases = [*official, *native_cases(amounts, sizes), *store_cases(amounts), *large_cases(amounts)]
    if options.only:
        cases = [case for case in cases if any(case.key.startswith(word) for word in options.only)]
    return cases


def amounts_of(options: argparse.Namespace) -> Amounts:
    return Amounts(
        seconds=options.seconds,
        warm_s=options.warm,
        produce_s=options.produce_seconds,
        sync_count=options.sync_count,
        backlog=options.backlog,
        paced_s=options.paced_seconds,
    )


def pace_of(options: argparse.Namespace) -> Pace:
    return Pace(rounds=options.rounds, repeats=options.repeats, warm=True, patience_s=options.patience)


def run(options: argparse.Namespace) -> int:
    """Measure, print, write down; return the exit code."""
    cases = chosen(options)
    if not cases:
        print(f"nothing is called {', '.join(options.only)}", file=sys.stderr)
        return 2
    kinds = {side for case in cases for side in case.sides}
    skipped = {kind: "not asked for" for kind in kinds if program_of(kind) in options.without}
    if options.quick:
        skipped |= {kind: "quick" for kind in kinds if program_of(kind) in REQUIRE}
    else:
        skipped |= missing(kinds - skipped.keys())
    context = _context(options)
    start = starts(options.flush, small=options.quick)
    pace = QUICK_PACE if options.quick else pace_of(options)
    rows = []
    for case in cases:
        rows.append(measure(case, start, skipped, pace))
        # After every case: half an hour's work is not to be lost to its last minute.
        write(options.out, document(context, rows, runs=True))
    if options.summary:
        write(options.summary, document(context, rows, runs=False))
    parts = [heading(context), table(rows), *(f"skipped: {side}: {why}" for side, why in skipped.items())]
    print(*parts, f"written to {options.out}", sep="\n\n")
    return 0


def _context(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "machine": machine(),
        "actormq": project(),
        "flush": options.flush,
        "rounds": 1 if options.quick else options.rounds,
        "quick": options.quick,
        "load_average_before": os.getloadavg()[0],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "loadtest.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny amounts, no Java, one round")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="cases whose key begins so")
    parser.add_argument(
        "--without", nargs="+", default=[], choices=REQUIRE, metavar="SIDE", help="do not run this server"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), metavar="BYTES")
    parser.add_argument("--flush", choices=["async", "sync"], default="async")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=REPEATS_MAX, help="of a disturbed run, at most")
    parser.add_argument(
        "--patience", type=float, default=30.0, metavar="S", help="wait so long for a quiet machine"
    )
    parser.add_argument("--seconds", type=float, default=FULL.seconds, help="of the official programs")
    parser.add_argument("--warm", type=float, default=FULL.warm_s, help="seconds before they are measured")
    parser.add_argument("--produce-seconds", type=float, default=FULL.produce_s)
    parser.add_argument("--sync-count", type=int, default=FULL.sync_count)
    parser.add_argument("--backlog", type=int, default=FULL.backlog)
    parser.add_argument("--paced-seconds", type=float, default=FULL.paced_s)
    name = time.strftime("%Y-%m-%d-%H%M%S")
    parser.add_argument("--out", type=Path, default=FOLDER / f"{name}.json", metavar="FILE")
    parser.add_argument(
        "--summary", type=Path, metavar="FILE", help="also write the results without the runs"
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run as a command; SIGTERM ends it in order, so that no server stays."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return run(_parser().parse_args(words))


if __name__ == "__main__":
    sys.exit(main())
