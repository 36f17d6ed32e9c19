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

A queue is any string ("topic:3"), an id any string or number.  One pass over all files merged by time: O(n).
As a program: ``python tests/faults/checker.py FILE…`` prints the verdict, exit code 1 when it is not clean.
"""

from __future__ import annotations

import gc
import heapq
import json
import os
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson

EXAMPLES_MAX = 5
Event = list[Any]
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


def read(path: Path) -> Iterator[Event]:
    """Return the events of one file; a last line that a kill cut short does not count."""
    with open(path, "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield orjson.loads(line)


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


def _numbered(number: int, history: Iterable[Event]) -> Iterator[tuple[int, int, Event]]:
    for event in history:
        yield event[0], number, event


@dataclass(slots=True)
class _Message:
    attempts: int
    sent_at: int
    key: str | None
    seq: int
    digest: str
    delayed: bool = False
    place: tuple[str, int] | None = None
    """Where it was acknowledged."""
    seen: tuple[str, int] | None = None
    """Where it was received."""
    acknowledged: bool = False
    excused: bool = False


class Checker:
    """Takes events in the order of their times and keeps what the verdict needs.

    Args:
        unavailable_ms_max: a longer pause is a violation; None allows any.
        tail_may_be_lost: async flush and loss of power: what was acknowledged behind a queue's end after a
            restart is excused (but not when somebody had received it).
        again_allowed: a group may receive a message again, from where a session began (at least once).
    """

    def __init__(
        self,
        *,
        unavailable_ms_max: float | None = None,
        tail_may_be_lost: bool = False,
        again_allowed: bool = True,
    ) -> None:
        self.verdict = Verdict()
        self._unavailable_ms_max = unavailable_ms_max
        self._tail_may_be_lost = tail_may_be_lost
        self._again_allowed = again_allowed
        self._messages: dict[Id, _Message] = {}
        self._ids: dict[str, dict[int, Id]] = defaultdict(dict)
        """Which message is at an offset of a queue."""
        self._acknowledged: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        """Of each queue: times of acknowledgements, and the highest offset acknowledged until then."""
        self._received: dict[str, set[Id]] = defaultdict(set)
        self._received_end: dict[str, int] = defaultdict(int)
        """Of each queue: one past the highest offset that any group has received."""
        self._cursor: dict[tuple[int, str, str], int] = {}
        self._key_seq: dict[tuple[str, str], int] = {}
        self._committed: dict[tuple[str, str], int] = {}
        self._expected: dict[str, None] = {}
        self._waiting_since: int | None = None
        self._handlers: dict[str, Callable[..., None]] = {
            "send": self._send,
            "ack": self._ack,
            "fail": self._fail,
            "session": self._session,
            "recv": self._recv,
            "commit": self._commit,
            "end": self._end,
            "expect": self._expect,
            "note": self._note,
        }

    def run(self, histories: Iterable[Iterable[Event]]) -> Verdict:
        """Judge histories, each in its own order, together in the order of time."""
        numbered = [_numbered(number, each) for number, each in enumerate(histories)]
        handlers = self._handlers
        # Millions of live objects and no cycles: the collector would only walk them again and again.
        gc.disable()
        try:
            for at, who, event in heapq.merge(*numbered, key=itemgetter(0)):
                handlers[event[1]](at, who, *event[2:])
        finally:
            gc.enable()
        return self.finish()

    def _send(
        self, at: int, who: int, message: Id, key: str | None, seq: int, digest: str, delayed: bool = False
    ) -> None:
        known = self._messages.get(message)
        if known is None:
            self._messages[message] = _Message(1, at, key, seq, digest, delayed)
            self.verdict.sent += 1
        else:
            known.attempts += 1
        if self._waiting_since is None:
            self._waiting_since = at

    def _ack(self, at: int, who: int, message: Id, queue: str | None, offset: int) -> None:
        self._end_pause(at)
        known = self._messages.get(message)
        if known is None:
            self.verdict.add("phantom", f"{message} was acknowledged, but never sent")
            return
        if known.acknowledged and known.attempts == 1:
            self.verdict.add(
                "duplicate", f"{message} was acknowledged twice: {known.place}, {(queue, offset)}"
            )
            return
        self.verdict.acknowledged += not known.acknowledged
        known.acknowledged = True
        if queue is None:
            return
        known.place = (queue, offset)
        self._settle(message, known, queue, offset)
        times, highest = self._acknowledged[queue]
        before = bisect_left(times, known.sent_at) - 1
        if known.attempts == 1 and before >= 0 and highest[before] >= offset:
            self.verdict.add(
                "queue order",
                f"{message} got offset {offset} of {queue}, though {highest[before]} had been acknowledged "
                "before it was sent",
            )
        times.append(at)
        highest.append(max(offset, highest[-1]) if highest else offset)

    def _end_pause(self, at: int) -> None:
        if self._waiting_since is not None:
            pause_ms = (at - self._waiting_since) / 1e6
            self.verdict.unavailable_ms = max(self.verdict.unavailable_ms, pause_ms)
            if self._unavailable_ms_max is not None and pause_ms > self._unavailable_ms_max:
                self.verdict.add("unavailable", f"nothing was acknowledged for {pause_ms:.0f} ms until {at}")
        # What is still under way counts from now on: its own waiting is part of the next pause.
        self._waiting_since = None

    def _settle(self, message: Id, known: _Message, queue: str, offset: int) -> None:
        """Note that `message` is at `offset`; nothing else may be there, and it nowhere else."""
        there = self._ids[queue].setdefault(offset, message)
        if there != message:
            self.verdict.add("reused", f"offset {offset} of {queue} has {there} and {message}")
        if known.attempts > 1 or known.delayed:
            return
        for other in (known.place, known.seen):
            if other is not None and other != (queue, offset):
                self.verdict.add("duplicate", f"{message} is at {other} and at {(queue, offset)}")

    def _fail(self, at: int, who: int, message: Id) -> None:
        if message not in self._messages:
            self.verdict.add("phantom", f"{message} failed, but was never sent")

    def _session(self, at: int, who: int, group: str, queue: str | None = None) -> None:
        for cursor in [cursor for cursor in self._cursor if cursor[:2] == (who, group)]:
            if queue in (None, cursor[2]):
                del self._cursor[cursor]

    def _recv(self, at: int, who: int, group: str, queue: str, offset: int, message: Id, digest: str) -> None:
        self.verdict.received += 1
        cursor = (who, group, queue)
        last = self._cursor.get(cursor, -1)
        if offset <= last:
            self.verdict.add("queue inversion", f"{group} received offset {offset} of {queue} after {last}")
        self._cursor[cursor] = max(offset, last)
        self._received_end[queue] = max(self._received_end[queue], offset + 1)
        known = self._messages.get(message)
        if known is None:
            self.verdict.add("phantom", f"{group} received {message} at {offset} of {queue}: never sent")
            return
        if digest != known.digest:
            self.verdict.add("digest", f"{message} at {offset} of {queue} is not what was sent")
        self._settle(message, known, queue, offset)
        known.seen = (queue, offset)
        received = self._received[group]
        if message in received:
            self.verdict.redelivered += 1
            if not self._again_allowed:
                self.verdict.add("again", f"{group} received {message} at {offset} of {queue} again")
            return
        received.add(message)
        if known.key is not None:
            key = (group, known.key)
            newest = self._key_seq.get(key, -1)
            if known.seq < newest:
                self.verdict.add(
                    "key inversion", f"{group} received number {known.seq} of key {known.key} after {newest}"
                )
            self._key_seq[key] = max(known.seq, newest)

    def _commit(self, at: int, who: int, group: str, queue: str, offset: int) -> None:
        before = self._committed.get((group, queue), 0)
        if offset < before:
            self.verdict.add(
                "offset back", f"the offset of {group} in {queue} went back from {before} to {offset}"
            )
        self._committed[group, queue] = offset

    def _end(self, at: int, who: int, queue: str, offset: int) -> None:
        """The broker is back, and this queue ends here: nobody may have received more."""
        received_end = self._received_end[queue]
        if received_end > offset:
            self.verdict.add(
                "beyond durable",
                f"offset {received_end - 1} of {queue} was received, but it ends at {offset}",
            )
            self._received_end[queue] = offset
        ids = self._ids[queue]
        for gone in [place for place in ids if place >= offset]:
            known = self._messages[ids.pop(gone)]
            if self._tail_may_be_lost and known.seen is None and known.acknowledged:
                known.excused = True
            if known.place == (queue, gone):
                known.place = None
        times, highest = self._acknowledged[queue]
        if highest and highest[-1] >= offset:
            times.clear()
            highest.clear()

    def _expect(self, at: int, who: int, group: str) -> None:
        self._expected[group] = None

    def _note(self, at: int, who: int, what: str, *fields: Any) -> None:
        """Whoever measures reads it; it says nothing about right and wrong."""

    def finish(self) -> Verdict:
        """Return the verdict: now what has not been received is lost."""
        for group in self._expected:
            received = self._received[group]
            for message, known in self._messages.items():
                if not known.acknowledged or message in received:
                    continue
                if known.excused:
                    self.verdict.excused += 1
                else:
                    self.verdict.add("lost", f"{group} never received {message}, acknowledged: {known.place}")
        return self.verdict


def check(paths: Iterable[Path], **options: Any) -> Verdict:
    """Judge history files; options as for `Checker`."""
    return Checker(**options).run(read(path) for path in paths)


def main() -> int:
    verdict = check([Path(argument) for argument in sys.argv[1:]])
    print(verdict)
    print(json.dumps({"clean": verdict.clean, "violations": verdict.violations}))
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
