"""The judge of every fault test: reads what was sent, acknowledged and received, and says what went wrong.

Each process of a test appends its own history file (`History`), one JSON array per line, in the order in
which things happened to it; `[time, kind, …]`, time from the machine's monotonic clock in nanoseconds:

    [t, "send", id, key, seq, digest]         an attempt; a retry is another line with the same id
    [t, "send", id, key, seq, digest, true]   the same of a message that goes through the scheduler: delivered
                                              at least once, perhaps at several places
    [t, "ack", id, queue, offset]             SEND_OK; queue null: its place is not known yet (delayed)
    [t, "fail", id]                           refused or unknown: it may be stored or not
    [t, "session", group]                     this consumer begins anew (start, rebalance): may read again
    [t, "session", group, queue]              the same for one queue that it has taken over
    [t, "recv", group, queue, offset, id, digest]
    [t, "commit", group, queue, offset]       a committed offset that was seen
    [t, "end", queue, offset]                 the queue's end after a restart of the broker
    [t, "expect", group]                      this group has been given time to receive everything
    [t, "note", what, …]                      not judged: for whoever reads the history otherwise

A queue is any string ("topic:3"), an id any string or number; lines are as orjson writes them: no blanks.
One pass over all files merged by time, O(n): `judging.py`; ``python -m faults.long_history`` measures it.
As a program: ``python -m faults.checker FILE…`` (in ``tests``) prints the verdict; exit code 1: not clean.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from faults.judging import Judge

EXAMPLES_MAX = 5
PIECE_BYTES = 1 << 20
Id = str | int


class History:
    """One process's history file.  Each line is one write: a process that is killed leaves whole lines.

    Any thread may write: lines are in the order of their times.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()

    def close(self) -> None:
        os.close(self._fd)

    def add(self, kind: str, *fields: Any, at_ns: int | None = None) -> None:
        """Write a line.  With `at_ns` it is the caller who keeps the lines in the order of their times."""
        with self._lock:
            at_ns = time.monotonic_ns() if at_ns is None else at_ns
            os.write(self._fd, orjson.dumps([at_ns, kind, *fields]) + b"\n")

    def send(
        self, message: Id, digest: str = "", key: str | None = None, seq: int = 0, *, delayed: bool = False
    ) -> None:
        """Note an attempt, before it is made; `seq` counts the messages of one key."""
        self.add("send", message, key, seq, digest, *([True] if delayed else []))

    def ack(self, message: Id, queue: str | None, offset: int) -> None:
        self.add("ack", message, queue, offset)

    def fail(self, message: Id) -> None:
        self.add("fail", message)

    def session(self, group: str, queue: str | None = None) -> None:
        self.add("session", group, *([] if queue is None else [queue]))

    def receive(self, group: str, queue: str, offset: int, message: Id, digest: str = "") -> None:
        self.add("recv", group, queue, offset, message, digest)

    def commit(self, group: str, queue: str, offset: int) -> None:
        self.add("commit", group, queue, offset)

    def end(self, queue: str, offset: int, at_ns: int | None = None) -> None:
        """Note a queue's end.

        Args:
            at_ns: before it was asked for, where others send meanwhile.
        """
        self.add("end", queue, offset, at_ns=at_ns)

    def expect(self, group: str) -> None:
        self.add("expect", group)

    def note(self, what: str, *fields: Any) -> None:
        self.add("note", what, *fields)


def pieces(path: Path) -> Iterator[bytes]:
    """Return what a file has, many whole lines at once; a last line that a kill cut short does not count."""
    with open(path, "rb") as file:
        rest = b""
        while piece := file.read(PIECE_BYTES):
            rest += piece
            end = rest.rfind(b"\n") + 1
            if end:
                yield rest[:end]
                rest = rest[end:]


@dataclass
class Verdict:
    """What the checker found; `violations` counts, `examples` names the first few of each kind."""

    violations: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    sent: int = 0
    acknowledged: int = 0
    received: int = 0
    redelivered: int = 0
    excused: int = 0
    """Acknowledged, lost with the unflushed tail, in a mode that allows it."""
    unavailable_ms: float = 0.0
    """The longest time during which something was being sent and nothing acknowledged."""

    @property
    def clean(self) -> bool:
        return not self.violations

    def add(self, kind: str, sentence: str) -> None:
        self.violations[kind] += 1
        if len(self.examples[kind]) < EXAMPLES_MAX:
            self.examples[kind].append(sentence)

    def __str__(self) -> str:
        lines = [
            f"{self.sent} sent, {self.acknowledged} acknowledged, {self.received} received, "
            f"{self.redelivered} of them again; longest pause {self.unavailable_ms:.0f} ms"
        ]
        for kind, count in self.violations.items():
            lines.append(f"{kind}: {count}")
            lines += [f"    {example}" for example in self.examples[kind]]
        return "\n".join([*lines, "clean" if self.clean else "NOT CLEAN"])


def judge(
    histories: Iterable[Iterable[bytes]],
    *,
    unavailable_ms_max: float | None = None,
    tail_may_be_lost: bool = False,
    seen_may_be_lost: bool = False,
    again_allowed: bool = True,
) -> Verdict:
    """Judge histories, each in its own order, together in the order of time.

    Args:
        histories: of each the pieces of its file; a piece ends with a line.
        unavailable_ms_max: a longer pause is a violation; None allows any.
        tail_may_be_lost: async flush and loss of power: what was acknowledged behind a queue's end after a
            restart is excused (but not when somebody had received it).
        seen_may_be_lost: also what somebody had received: consumers are ahead of the disk.
        again_allowed: a group may receive a message again, from where a session began (at least once).
    """
    verdict = Verdict()
    Judge(
        verdict,
        unavailable_ms_max=unavailable_ms_max,
        tail_may_be_lost=tail_may_be_lost or seen_may_be_lost,
        seen_may_be_lost=seen_may_be_lost,
        again_allowed=again_allowed,
    ).run(histories)
    return verdict


def check(paths: Iterable[Path], **options: Any) -> Verdict:
    """Judge history files; options as for `judge`."""
    return judge((pieces(path) for path in paths), **options)


def main() -> int:
    verdict = check([Path(argument) for argument in sys.argv[1:]])
    print(verdict)
    print(json.dumps({"clean": verdict.clean, "violations": verdict.violations}))
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
