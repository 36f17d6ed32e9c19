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
As a program: ``python -m faults.checker FILE…`` (in ``tests``) prints the verdict; exit code 1: not clean.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson

EXAMPLES_MAX = 5
PIECE_BYTES = 1 << 20
EVENTS_AT_ONCE = 10_000
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
    with open(path, "rb") as file:
        rest = b""
        while piece := file.read(PIECE_BYTES):
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                # One call for many lines: half of the time that each of them takes alone.
                yield from orjson.loads(b"[" + lines.replace(b"\n", b",") + b"]")


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


def merge(histories: Iterable[Iterable[Event]]) -> Iterator[list[Event]]:
    """Return the events of all histories in the order of time, many at once; each ends with whose it is.

    What has been read of every history is put together up to the time that the slowest has come to: sorting
    what is sorted in a few runs costs a comparison an event.
    """
    sources = [iter(history) for history in histories]
    waiting: list[list[Event]] = [[] for _ in sources]
    open_ones = set(range(len(sources)))
    while open_ones:
        for who in list(open_ones):
            if not waiting[who]:
                waiting[who] = list(islice(sources[who], EVENTS_AT_ONCE))
                for event in waiting[who]:
                    event.append(who)
                if not waiting[who]:
                    open_ones.discard(who)
        if not open_ones:
            return
        horizon = min(waiting[who][-1][0] for who in open_ones)
        ready: list[Event] = []
        for who in sorted(open_ones):
            events = waiting[who]
            count = bisect_right(events, horizon, key=_time_of)
            ready += events[:count]
            waiting[who] = events[count:]
        ready.sort(key=_time_of)
        yield ready


_time_of = itemgetter(0)


class _Message:
    """What is known of one message."""

    __slots__ = (
        "acknowledged", "attempts", "delayed", "digest", "excused", "id", "key", "place", "place_at",
        "received_by", "seen", "seen_at", "sent_at", "seq",
    )  # fmt: skip

    def __init__(
        self, message: Id, sent_at: int, key: str | None, seq: int, digest: str, delayed: bool
    ) -> None:
        self.id = message
        self.attempts = 1
        self.sent_at = sent_at
        self.key = key
        self.seq = seq
        self.digest = digest
        self.delayed = delayed
        self.place: _Queue | None = None
        """The queue in which it was acknowledged, at offset `place_at`."""
        self.seen: _Queue | None = None
        """Where it was received, at `seen_at`."""
        self.received_by = 0
        """One bit of each group."""
        self.acknowledged = False
        self.excused = False


class _Queue:
    """One queue."""

    __slots__ = ("ack_times", "highest", "messages", "name", "received_end")

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages: dict[int, _Message] = {}
        """Which message is at an offset."""
        self.ack_times: list[int] = []
        self.highest: list[int] = []
        """The highest offset acknowledged until each of these times."""
        self.received_end = 0
        """One past the highest offset that any group has received."""


class _Group:
    """One group."""

    __slots__ = ("bit", "newest")

    def __init__(self, number: int) -> None:
        self.bit = 1 << number
        self.newest: dict[str, int] = {}
        """Of each key, the highest number received."""


class _Stream:
    """What one process receives of one queue for one group, since its session began."""

    __slots__ = ("group", "last", "queue")

    def __init__(self, group: _Group, queue: _Queue) -> None:
        self.group = group
        self.queue = queue
        self.last = -1


class Checker:
    """Takes events in the order of their times and keeps what the verdict needs.

    Args:
        unavailable_ms_max: a longer pause is a violation; None allows any.
        tail_may_be_lost: async flush and loss of power: what was acknowledged behind a queue's end after a
            restart is excused (but not when somebody had received it).
        seen_may_be_lost: also what somebody had received: consumers are ahead of the disk.
        again_allowed: a group may receive a message again, from where a session began (at least once).
    """

    def __init__(
        self,
        *,
        unavailable_ms_max: float | None = None,
        tail_may_be_lost: bool = False,
        seen_may_be_lost: bool = False,
        again_allowed: bool = True,
    ) -> None:
        self.verdict = Verdict()
        self._unavailable_ms_max = unavailable_ms_max
        self._tail_may_be_lost = tail_may_be_lost or seen_may_be_lost
        self._seen_may_be_lost = seen_may_be_lost
        self._again_allowed = again_allowed
        self._messages: dict[Id, _Message] = {}
        self._queues: dict[str, _Queue] = {}
        self._groups: dict[str, _Group] = {}
        self._streams: dict[tuple[int, str, str], _Stream] = {}
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
        """Judge histories, each in its own order, together in the order of time; their events are used up."""
        handlers = self._handlers
        # Millions of live objects and no cycles: the collector would only walk them again and again.
        gc.disable()
        try:
            for events in merge(histories):
                for event in events:
                    handlers[event[1]](event)
        finally:
            gc.enable()
        return self.finish()

    def _queue(self, name: str) -> _Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue(name)
        return queue

    def _group(self, name: str) -> _Group:
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(len(self._groups))
        return group

    def _send(self, event: Event) -> None:
        at, _, message, key, seq, digest = event[:6]
        known = self._messages.get(message)
        if known is None:
            self._messages[message] = _Message(message, at, key, seq, digest, len(event) > 7 and event[6])
            self.verdict.sent += 1
        else:
            known.attempts += 1
        if self._waiting_since is None:
            self._waiting_since = at

    def _ack(self, event: Event) -> None:
        at, _, message, name, offset, _ = event
        self._end_pause(at)
        known = self._messages.get(message)
        if known is None:
            self.verdict.add("phantom", f"{message} was acknowledged, but never sent")
            return
        if known.acknowledged and known.attempts == 1:
            place = (known.place.name, known.place_at) if known.place is not None else None
            self.verdict.add("duplicate", f"{message} was acknowledged twice: {place}, {(name, offset)}")
            return
        self.verdict.acknowledged += not known.acknowledged
        known.acknowledged = True
        if name is None:
            return
        queue = self._queue(name)
        known.place = queue
        known.place_at = offset
        self._settle(known, queue, offset)
        times, highest = queue.ack_times, queue.highest
        if not times:
            times.append(at)
            highest.append(offset)
            return
        before = len(times) - 1
        if times[before] >= known.sent_at:
            before = bisect_left(times, known.sent_at) - 1
        if known.attempts == 1 and before >= 0 and highest[before] >= offset:
            self.verdict.add(
                "queue order",
                f"{message} got offset {offset} of {name}, though {highest[before]} had been acknowledged "
                "before it was sent",
            )
        times.append(at)
        last = highest[-1]
        highest.append(offset if offset > last else last)

    def _end_pause(self, at: int) -> None:
        if self._waiting_since is not None:
            pause_ms = (at - self._waiting_since) / 1e6
            self.verdict.unavailable_ms = max(self.verdict.unavailable_ms, pause_ms)
            if self._unavailable_ms_max is not None and pause_ms > self._unavailable_ms_max:
                self.verdict.add("unavailable", f"nothing was acknowledged for {pause_ms:.0f} ms until {at}")
        # What is still under way counts from now on: its own waiting is part of the next pause.
        self._waiting_since = None

    def _settle(self, known: _Message, queue: _Queue, offset: int) -> None:
        """Note that a message is at `offset`; nothing else may be there, and it nowhere else."""
        there = queue.messages.setdefault(offset, known)
        if there is not known:
            self.verdict.add("reused", f"offset {offset} of {queue.name} has {there.id} and {known.id}")
        if known.attempts > 1 or known.delayed:
            return
        if known.place is not None and (known.place is not queue or known.place_at != offset):
            self._doubled(known, (known.place.name, known.place_at), (queue.name, offset))
        if known.seen is not None and (known.seen is not queue or known.seen_at != offset):
            self._doubled(known, (known.seen.name, known.seen_at), (queue.name, offset))

    def _doubled(self, known: _Message, one: tuple[str, int], other: tuple[str, int]) -> None:
        self.verdict.add("duplicate", f"{known.id} is at {one} and at {other}")

    def _fail(self, event: Event) -> None:
        message = event[2]
        if message not in self._messages:
            self.verdict.add("phantom", f"{message} failed, but was never sent")

    def _session(self, event: Event) -> None:
        _, _, group, *queues, who = event
        queue = queues[0] if queues else None
        for stream in [stream for stream in self._streams if stream[:2] == (who, group)]:
            if queue in (None, stream[2]):
                del self._streams[stream]

    def _recv(self, event: Event) -> None:
        _, _, group, name, offset, message, digest, who = event
        verdict = self.verdict
        verdict.received += 1
        stream = self._streams.get((who, group, name))
        if stream is None:
            stream = self._streams[who, group, name] = _Stream(self._group(group), self._queue(name))
        queue = stream.queue
        if offset > stream.last:
            stream.last = offset
        else:
            verdict.add("queue inversion", f"{group} received offset {offset} of {name} after {stream.last}")
        if offset >= queue.received_end:
            queue.received_end = offset + 1
        known = self._messages.get(message)
        if known is None:
            verdict.add("phantom", f"{group} received {message} at {offset} of {name}: never sent")
            return
        if digest != known.digest:
            verdict.add("digest", f"{message} at {offset} of {name} is not what was sent")
        self._settle(known, queue, offset)
        known.seen = queue
        known.seen_at = offset
        bit = stream.group.bit
        if known.received_by & bit:
            verdict.redelivered += 1
            if not self._again_allowed:
                verdict.add("again", f"{group} received {message} at {offset} of {name} again")
            return
        known.received_by |= bit
        key = known.key
        if key is not None:
            newest = stream.group.newest
            before = newest.get(key, -1)
            if known.seq < before:
                verdict.add(
                    "key inversion", f"{group} received number {known.seq} of key {key} after {before}"
                )
            else:
                newest[key] = known.seq

    def _commit(self, event: Event) -> None:
        _, _, group, queue, offset, _ = event
        before = self._committed.get((group, queue), 0)
        if offset < before:
            self.verdict.add(
                "offset back", f"the offset of {group} in {queue} went back from {before} to {offset}"
            )
        self._committed[group, queue] = offset

    def _end(self, event: Event) -> None:
        """The broker is back, and this queue ends here: nobody may have received more."""
        _, _, name, offset, _ = event
        queue = self._queue(name)
        if queue.received_end > offset:
            if not self._seen_may_be_lost:
                self.verdict.add(
                    "beyond durable",
                    f"offset {queue.received_end - 1} of {name} was received, but it ends at {offset}",
                )
            queue.received_end = offset
            for stream in self._streams.values():
                if stream.queue is queue:
                    stream.last = min(stream.last, offset - 1)
        for gone in [place for place in queue.messages if place >= offset]:
            known = queue.messages.pop(gone)
            unseen = known.seen is None or self._seen_may_be_lost
            if self._tail_may_be_lost and unseen and known.acknowledged:
                known.excused = True
            if known.place is queue and known.place_at == gone:
                known.place = None
        if queue.highest and queue.highest[-1] >= offset:
            queue.ack_times.clear()
            queue.highest.clear()

    def _expect(self, event: Event) -> None:
        self._expected[event[2]] = None

    def _note(self, event: Event) -> None:
        """Whoever measures reads it; it says nothing about right and wrong."""

    def finish(self) -> Verdict:
        """Return the verdict: now what has not been received is lost."""
        for group in self._expected:
            bit = self._group(group).bit
            for known in self._messages.values():
                if not known.acknowledged or known.received_by & bit:
                    continue
                if known.excused:
                    self.verdict.excused += 1
                else:
                    place = (known.place.name, known.place_at) if known.place is not None else None
                    self.verdict.add("lost", f"{group} never received {known.id}, acknowledged: {place}")
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
