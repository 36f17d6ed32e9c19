"""What the histories of a loaded broker tell while it runs, and what each fault cost its clients.

A `Story` reads history files as they grow.  Times are those of the histories: monotonic nanoseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from faults.checker import Verdict

DELAYED = "delayed"
"""What the names of delayed messages begin with: they have no key."""


class Move(NamedTuple):
    """A queue changed hands."""

    at_ns: int
    what: str
    group: str
    queue: str
    who: Path


class Look(NamedTuple):
    """How the machine is, apart from the broker: one small synced write."""

    began_ns: int
    ended_ns: int
    late_ns: int
    """How much later than wanted it began."""


@dataclass(slots=True)
class Fault:
    """One thing done to the broker: a kill, or a SIGSTOP and the SIGCONT after it."""

    kind: str
    role: str
    at_ns: int
    back_ns: int = 0
    """When its successor served, or when it was told to go on."""


class Story:
    """Follows history files; call `read` to take in what is new."""

    def __init__(self) -> None:
        self._read_to: dict[Path, int] = {}
        self.acks: dict[str, list[int]] = defaultdict(list)
        """Of each key: when its messages were acknowledged."""
        self.received_at: dict[tuple[str, str], list[int]] = defaultdict(list)
        """Of each group and key: when messages came."""
        self.acknowledged: set[str] = set()
        self.received: dict[str, dict[str, int]] = defaultdict(dict)
        """Of each group: its messages, and when each came last."""
        self.repeated_at: list[int] = []
        """When messages came that their group had had."""
        self.held: dict[tuple[str, str], set[Path]] = defaultdict(set)
        """Of each group and queue: the histories of those who hold it."""
        self.moves: list[Move] = []
        self.connected: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self.warned: list[tuple[int, str]] = []
        """When the client library warned, and of what."""

    def follow(self, path: Path) -> None:
        """Read this file, too, from now on."""
        self._read_to[path] = 0

    def read(self) -> None:
        for path, start in self._read_to.items():
            if not path.exists():
                continue
            with path.open("rb") as stream:
                stream.seek(start)
                data = stream.read()
            end = data.rfind(b"\n") + 1
            self._read_to[path] = start + end
            for line in data[:end].splitlines():
                at_ns, kind, *fields = orjson.loads(line)
                self._take(path, at_ns, kind, fields)

    def _take(self, path: Path, at_ns: int, kind: str, fields: list[Any]) -> None:
        if kind == "ack":
            message, queue, _ = fields
            self.acknowledged.add(message)
            if queue is not None:
                self.acks[key_of(message)].append(at_ns)
        elif kind == "recv":
            group, message = fields[0], fields[3]
            before_ns = self.received[group].get(message)
            if before_ns is not None:  # one history is read after the other: the later one is the repetition
                self.repeated_at.append(max(at_ns, before_ns))
            self.received[group][message] = max(at_ns, before_ns or 0)
            if not message.startswith(DELAYED):
                self.received_at[group, key_of(message)].append(at_ns)
        elif kind == "note":
            self._take_note(path, at_ns, fields[0], fields[1:])

    def _take_note(self, path: Path, at_ns: int, what: str, fields: list[Any]) -> None:
        if what in ("taken", "left"):
            group, queue = fields
            holders = self.held[group, queue]
            (holders.add if what == "taken" else holders.discard)(path)
            self.moves.append(Move(at_ns, what, group, queue, path))
        elif what == "connected":
            self.connected.append(at_ns)
        elif what == "failed":
            self.failed.append((at_ns, fields[1]))
        elif what == "log":
            self.warned.append((at_ns, fields[0]))

    def missing(self, groups: Iterable[str]) -> int:
        """Return how many acknowledged messages some group has not received yet."""
        return sum(len(self.acknowledged - self.received[group].keys()) for group in groups)

    def flows_since(self, at_ns: int, messages: int, keys: int, groups: int) -> bool:
        """Whether each producer thread has had so many acknowledgements since then, and groups get them."""
        acked = sum(_after(times, at_ns) >= messages for times in self.acks.values())
        received = sum(_after(times, at_ns) > 0 for times in self.received_at.values())
        return acked == keys and received == keys * groups

    def shares(self, group: str) -> list[int]:
        """Return how many queues each of a group's consumers holds; none while one has two holders."""
        held = [holders for (name, _), holders in self.held.items() if name == group]
        if any(len(holders) > 1 for holders in held):
            return []
        return sorted(Counter(path for holders in held for path in holders).values())


def key_of(message: str) -> str:
    """Return the key that a message's name begins with."""
    return message.rpartition("-")[0]


def _after(times: list[int], at_ns: int) -> int:
    return len(times) - bisect_right(times, at_ns)


def pause_ms(times: list[int], from_ns: int, to_ns: int) -> float:
    """Return the longest wait that touches the span: from its later beginning until the next event.

    A fault's own wait begins with it: what was on its way is answered before the pause, and does not end it.
    """
    inside = times[max(0, bisect_right(times, from_ns) - 1) :]
    waits = [after - max(before, from_ns) for before, after in pairwise(inside) if before < to_ns]
    return max(waits, default=0) / 1e6


def stall_ms(looks: list[Look], from_ns: int, to_ns: int) -> tuple[float, float]:
    """Return how long the disk and the processor let the test itself wait at most in a span."""
    inside = [look for look in looks if look.began_ns < to_ns and look.ended_ns > from_ns]
    disk = max((look.ended_ns - look.began_ns for look in inside), default=0) / 1e6
    return disk, max((look.late_ns for look in inside), default=0) / 1e6


def next_ms(times: list[int], from_ns: int) -> float:
    """Return how long after a moment the next event came."""
    place = bisect_right(times, from_ns)
    return (times[place] - from_ns) / 1e6 if place < len(times) else float("inf")


@dataclass(slots=True)
class Cost:
    """What one fault cost: milliseconds from it until all was well."""

    role: str
    kind: str
    back_ms: float
    """Until the successor served (stop: until SIGCONT)."""
    next_ack_ms: float
    """Until each producer thread had had an acknowledgement."""
    ack_pause_ms: float
    """The longest wait of a producer thread for its next acknowledgement."""
    delivery_pause_ms: float
    """The longest time in which a group received nothing of one key."""
    reconnects: int
    moves: int
    """Queues that changed hands."""
    failed: int
    """Sends that were refused or whose outcome stayed unknown."""
    disk_ms: float
    """The longest small synced write of the test itself meanwhile: what the machine, not the broker, did."""
    late_ms: float
    """The longest that the test itself waited for a processor."""


def cost_of(story: Story, fault: Fault, until_ns: int, looks: list[Look]) -> Cost:
    """Measure one fault; what happens until the next one belongs to it."""
    begin = fault.at_ns
    acks, deliveries = story.acks.values(), story.received_at.values()
    disk_ms, late_ms = stall_ms(looks, begin, until_ns)
    return Cost(
        role=fault.role,
        kind=fault.kind,
        back_ms=(fault.back_ns - begin) / 1e6,
        next_ack_ms=max((next_ms(times, begin) for times in acks), default=0.0),
        ack_pause_ms=max((pause_ms(times, begin, until_ns) for times in acks), default=0.0),
        delivery_pause_ms=max((pause_ms(times, begin, until_ns) for times in deliveries), default=0.0),
        reconnects=sum(begin <= at < until_ns for at in story.connected),
        moves=sum(begin <= move.at_ns < until_ns and move.what == "taken" for move in story.moves),
        failed=sum(begin <= at < until_ns for at, _ in story.failed),
        disk_ms=disk_ms,
        late_ms=late_ms,
    )


@dataclass(slots=True)
class Result:
    """One run, for the table."""

    name: str
    verdict: Verdict
    costs: list[Cost]
    load_average: float
    logged: Counter[str] = field(default_factory=Counter)

    def worst(self, what: str) -> float:
        return max((float(getattr(cost, what)) for cost in self.costs), default=0.0)

    def median(self, what: str) -> float:
        values = sorted(float(getattr(cost, what)) for cost in self.costs)
        return values[len(values) // 2] if values else 0.0

    def as_json(self) -> str:
        return orjson.dumps(
            {
                "name": self.name,
                "clean": self.verdict.clean,
                "violations": dict(self.verdict.violations),
                "sent": self.verdict.sent,
                "acknowledged": self.verdict.acknowledged,
                "redelivered": self.verdict.redelivered,
                "load_average": self.load_average,
                "faults": [
                    {name: round(value) if isinstance(value, float) else value for name, value in each}
                    for each in (asdict(cost).items() for cost in self.costs)
                ],
            }
        ).decode()


COLUMNS = (
    "run", "faults", "verdict", "acknowledged", "again", "pause max", "pause median", "delivery max",
    "back max", "reconnects", "moves", "failed", "disk max", "late max", "load",
)  # fmt: skip


def table(results: Iterable[Result]) -> str:
    """Return the summary: one line per run; times in ms."""
    rows = [COLUMNS] + [_row(result) for result in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _row(result: Result) -> tuple[str, ...]:
    verdict, costs = result.verdict, result.costs
    return (
        result.name,
        str(len(costs)),
        "clean" if verdict.clean else ", ".join(f"{kind} {n}" for kind, n in verdict.violations.items()),
        str(verdict.acknowledged),
        str(verdict.redelivered),
        f"{result.worst('ack_pause_ms'):.0f}",
        f"{result.median('ack_pause_ms'):.0f}",
        f"{result.worst('delivery_pause_ms'):.0f}",
        f"{result.worst('back_ms'):.0f}",
        str(sum(cost.reconnects for cost in costs)),
        str(sum(cost.moves for cost in costs)),
        str(sum(cost.failed for cost in costs)),
        f"{result.worst('disk_ms'):.0f}",
        f"{result.worst('late_ms'):.0f}",
        f"{result.load_average:.1f}",
    )
