# cython: language_level=3, boundscheck=False, wraparound=False, annotation_typing=False
"""The checker's loop: takes the lines of all histories in the order of their times, and finds what is wrong.

Plain Python that runs as it stands; compiled, `judging.pxd` gives the C types: ten million messages have
thirty million lines.  A word is what JSON says between two commas, as bytes: words are compared, and decoded
only in the sentences of a verdict.  `checker.py` says what the lines mean.
"""

from __future__ import annotations

import gc
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if TYPE_CHECKING:
    from faults.checker import Verdict

NOTHING = b"null"
SEND, ACK, RECV = b'"send"', b'"ack"', b'"recv"'
GROUPS_MAX = 63
"""Each has a bit of a message."""

if not cython.compiled:
    _WORD = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[^][{}",\n]+')
    _NUMBER = re.compile(rb"-?[0-9]{1,18}")

    def word(reader: Reader) -> bytes:
        """Return the next word of a line, and go past it."""
        found = _WORD.match(reader.piece, reader.at)
        if found is None or reader.piece[found.end() : found.end() + 1] not in (b",", b"]"):
            raise malformed(reader)
        reader.at = found.end() + 1
        return found[0]

    def two_words(reader: Reader) -> bytes:
        """Return the next two as they stand there, and go past them."""
        return word(reader) + b"," + word(reader)

    def number(reader: Reader) -> int:
        """Return the next word, a whole number, and go past it."""
        found = word(reader)
        if not _NUMBER.fullmatch(found):
            raise malformed(reader)
        return int(found)

    def is_over(reader: Reader) -> bool:
        """Whether the word before was the line's last."""
        return reader.piece[reader.at - 1] == ord("]")

    def next_line(reader: Reader) -> int:
        """Return where the next line of this piece begins, or the piece ends."""
        return reader.piece.index(b"\n", reader.at) + 1

    def new_numbers() -> list[int]:
        """Return a list of whole numbers; compiled, they take eight bytes each."""
        return []

    def append_number(numbers: list[int], number: int) -> None:
        """Add one."""
        numbers.append(number)

    def number_at(numbers: list[int], place: int) -> int:
        """Return one of them; the last is at -1."""
        return numbers[place]

    def count_below(numbers: list[int], number: int) -> int:
        """Return how many are less; they ascend."""
        return bisect_left(numbers, number)


def malformed(reader: Reader) -> ValueError:
    """Return the error that names the line."""
    begin = reader.piece.rfind(b"\n", 0, reader.at) + 1
    line = reader.piece[begin:].partition(b"\n")[0]
    return ValueError(f"no line of a history: {line[:200]!r}")


def text(one: bytes) -> Any:
    """Return what a word says."""
    return json.loads(one)


class Message:
    """What is known of one message."""

    __slots__ = (
        "acknowledged", "attempts", "delayed", "digest", "excused", "id", "key", "place", "place_at",
        "received_by", "seen", "seen_at", "sent_at", "seq",
    )  # fmt: skip

    def __init__(self, name: bytes) -> None:
        self.id = name
        self.attempts = 1
        self.sent_at = 0
        self.key: bytes | None = None
        self.seq = 0
        self.digest = 0
        self.delayed = False
        self.place = self.place_at = -1
        """The number of the queue in which it was acknowledged, and its offset there; -1: not yet."""
        self.seen = self.seen_at = -1
        """Where it was received."""
        self.received_by = 0
        """One bit of each group."""
        self.acknowledged = False
        self.excused = False


class Queue:
    """One queue."""

    def __init__(self, name: bytes, number: int) -> None:
        self.name = name
        self.number = number
        self.messages: dict[int, Message] = {}
        """Which message is at an offset."""
        self.messages_end = 0
        """One past the highest of these offsets."""
        self.ack_times = new_numbers()
        self.highest = new_numbers()
        """The highest offset acknowledged until each of these times."""
        self.received_end = 0
        """One past the highest offset that any group has received."""


class Group:
    """One group."""

    def __init__(self, name: bytes, number: int) -> None:
        self.name = name
        self.bit = 1 << number
        self.newest: dict[bytes, int] = {}
        """Of each key, the highest number received."""


class Stream:
    """What one process receives of one queue for one group, since its session began."""

    def __init__(self, group: Group, queue: Queue) -> None:
        self.group = group
        self.queue = queue
        self.last = -1


class Reader:
    """What one process wrote, up to the line that comes next.

    Args:
        pieces: of the file; each ends with a line.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces: Iterator[bytes] = iter(pieces)
        self.piece = b""
        self.at = 0
        self.time = 0
        self.streams: dict[bytes, Stream] = {}
        """By group and queue, as they stand in a line."""

    def advance(self) -> bool:
        """Go to the next line and read its time; False: there is none."""
        if self.at:
            self.at = next_line(self)
        while self.at >= len(self.piece):
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self.piece = piece
            self.at = 0
        if self.piece[self.at] != ord("["):
            raise malformed(self)
        self.at += 1
        self.time = number(self)
        return True


class Judge:
    """Takes what happened and keeps what the verdict needs; arguments as of `checker.judge`."""

    def __init__(
        self,
        verdict: Verdict,
        *,
        unavailable_ms_max: float | None,
        tail_may_be_lost: bool,
        seen_may_be_lost: bool,
        again_allowed: bool,
    ) -> None:
        self._verdict = verdict
        self._unavailable_ms_max = unavailable_ms_max
        self._tail_may_be_lost = tail_may_be_lost
        self._seen_may_be_lost = seen_may_be_lost
        self._again_allowed = again_allowed
        self._readers: list[Reader] = []
        self._messages: dict[bytes, Message] = {}
        self._queues: dict[bytes, Queue] = {}
        self._queue_list: list[Queue] = []
        self._groups: dict[bytes, Group] = {}
        self._keys: dict[bytes, bytes] = {}
        self._committed: dict[tuple[bytes, bytes], int] = {}
        self._expected: dict[bytes, None] = {}
        self._waiting_since = -1
        self._pause_ns = 0
        self._sent = self._acknowledged = self._received = self._redelivered = 0

    def run(self, histories: Iterable[Iterable[bytes]]) -> None:
        """Judge histories, each in its own order, together in the order of time.

        Args:
            histories: of each the pieces of its file; a piece ends with a line.
        """
        # Millions of live objects and no cycles: the collector would only walk them again and again.
        gc.disable()
        try:
            self._readers = [Reader(pieces) for pieces in histories]
            self._take_all()
            self._finish()
        finally:
            gc.enable()

    def _take_all(self) -> None:
        going_on = []
        for each in self._readers:
            if each.advance():
                going_on.append(each)
        while going_on:
            first = going_on[0]
            for other in going_on:
                if other.time < first.time:
                    first = other
            self._take(first)
            if not first.advance():
                going_on.remove(first)

    def _take(self, reader: Reader) -> None:
        kind = word(reader)
        if kind == RECV:
            self._recv(reader)
        elif kind == SEND:
            self._send(reader)
        elif kind == ACK:
            self._ack(reader)
        else:
            self._take_rare(reader, kind)

    def _take_rare(self, reader: Reader, kind: bytes) -> None:
        if kind == b'"commit"':
            self._commit(reader)
        elif kind == b'"fail"':
            self._fail(reader)
        elif kind == b'"session"':
            self._session(reader)
        elif kind == b'"end"':
            self._end(reader)
        elif kind == b'"expect"':
            self._expected[word(reader)] = None
        elif kind != b'"note"':
            raise malformed(reader)

    def _queue(self, name: bytes) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = Queue(name, len(self._queue_list))
            self._queue_list.append(queue)
        return queue

    def _group(self, name: bytes) -> Group:
        group = self._groups.get(name)
        if group is None:
            assert len(self._groups) < GROUPS_MAX, "more groups than a message has bits"
            group = self._groups[name] = Group(name, len(self._groups))
        return group

    def _send(self, reader: Reader) -> None:
        name = word(reader)
        known = self._messages.get(name)
        if known is None:
            known = self._messages[name] = Message(name)
            known.sent_at = reader.time
            key = word(reader)
            if key != NOTHING:
                known.key = self._keys.setdefault(key, key)
            known.seq = number(reader)
            known.digest = hash(word(reader))
            known.delayed = not is_over(reader) and word(reader) == b"true"
            self._sent += 1
        else:
            known.attempts += 1
        if self._waiting_since < 0:
            self._waiting_since = reader.time

    def _ack(self, reader: Reader) -> None:
        at = reader.time
        self._end_pause(at)
        message, name, offset = word(reader), word(reader), number(reader)
        known = self._messages.get(message)
        if known is None:
            self._verdict.add("phantom", f"{text(message)} was acknowledged, but never sent")
            return
        if known.acknowledged and known.attempts == 1:
            self._verdict.add(
                "duplicate",
                f"{text(message)} was acknowledged twice: {self._place(known.place, known.place_at)}, "
                f"{(text(name), offset)}",
            )
            return
        if not known.acknowledged:
            known.acknowledged = True
            self._acknowledged += 1
        if name == NOTHING:
            return
        queue = self._queue(name)
        known.place = queue.number
        known.place_at = offset
        self._settle(known, queue, offset)
        self._note_end(known, queue, offset, at)

    def _note_end(self, known: Message, queue: Queue, offset: int, at: int) -> None:
        """An offset was acknowledged: greater than all that had been before this message was sent."""
        highest = offset
        if queue.ack_times:
            before = count_below(queue.ack_times, known.sent_at) - 1
            if known.attempts == 1 and before >= 0 and number_at(queue.highest, before) >= offset:
                self._verdict.add(
                    "queue order",
                    f"{text(known.id)} got offset {offset} of {text(queue.name)}, though "
                    f"{number_at(queue.highest, before)} had been acknowledged before it was sent",
                )
            highest = max(offset, number_at(queue.highest, -1))
        append_number(queue.ack_times, at)
        append_number(queue.highest, highest)

    def _end_pause(self, at: int) -> None:
        if self._waiting_since >= 0:
            pause_ns = at - self._waiting_since
            if pause_ns > self._pause_ns:
                self._pause_ns = pause_ns
            if self._unavailable_ms_max is not None and pause_ns / 1e6 > self._unavailable_ms_max:
                self._verdict.add(
                    "unavailable", f"nothing was acknowledged for {pause_ns / 1e6:.0f} ms until {at}"
                )
        # What is still under way counts from now on: its own waiting is part of the next pause.
        self._waiting_since = -1

    def _settle(self, known: Message, queue: Queue, offset: int) -> None:
        """Note that a message is at `offset`; nothing else may be there, and it nowhere else."""
        there = queue.messages.setdefault(offset, known)
        if there is not known:
            self._verdict.add(
                "reused",
                f"offset {offset} of {text(queue.name)} has {text(there.id)} and {text(known.id)}",
            )
        if offset >= queue.messages_end:
            queue.messages_end = offset + 1
        if known.attempts > 1 or known.delayed:
            return
        if known.place >= 0 and (known.place != queue.number or known.place_at != offset):
            self._doubled(known, self._place(known.place, known.place_at), queue, offset)
        if known.seen >= 0 and (known.seen != queue.number or known.seen_at != offset):
            self._doubled(known, self._place(known.seen, known.seen_at), queue, offset)

    def _doubled(self, known: Message, one: object, queue: Queue, offset: int) -> None:
        self._verdict.add("duplicate", f"{text(known.id)} is at {one} and at {(text(queue.name), offset)}")

    def _place(self, queue: int, offset: int) -> tuple[str, int] | None:
        """Return a place for a sentence."""
        if queue < 0:
            return None
        found = self._queue_list[queue]
        return text(found.name), offset

    def _fail(self, reader: Reader) -> None:
        message = word(reader)
        if message not in self._messages:
            self._verdict.add("phantom", f"{text(message)} failed, but was never sent")

    def _session(self, reader: Reader) -> None:
        group = word(reader)
        queue = NOTHING if is_over(reader) else word(reader)
        for names, stream in list(reader.streams.items()):
            if stream.group.name == group and queue in (NOTHING, stream.queue.name):
                del reader.streams[names]

    def _recv(self, reader: Reader) -> None:
        names_at = reader.at
        names = two_words(reader)
        stream = reader.streams.get(names)
        if stream is None:
            reader.at = names_at
            stream = reader.streams[names] = Stream(self._group(word(reader)), self._queue(word(reader)))
        offset, message, digest = number(reader), word(reader), hash(word(reader))
        self._received += 1
        group = stream.group
        queue = stream.queue
        if offset > stream.last:
            stream.last = offset
        elif self._seen_may_be_lost:
            stream.last = offset  # set back from a lost tail; the order of keys is looked at below
        else:
            self._verdict.add(
                "queue inversion",
                f"{text(group.name)} received offset {offset} of {text(queue.name)} after {stream.last}",
            )
        if offset >= queue.received_end:
            queue.received_end = offset + 1
        known = self._messages.get(message)
        if known is None:
            self._verdict.add(
                "phantom",
                f"{text(group.name)} received {text(message)} at {offset} of {text(queue.name)}: never sent",
            )
            return
        if digest != known.digest:
            self._verdict.add(
                "digest", f"{text(message)} at {offset} of {text(queue.name)} is not what was sent"
            )
        self._settle(known, queue, offset)
        known.seen = queue.number
        known.seen_at = offset
        if not known.received_by & group.bit:
            known.received_by |= group.bit
            if known.key is not None:
                self._look_at_key(known, group)
            return
        self._redelivered += 1
        if not self._again_allowed:
            self._verdict.add(
                "again",
                f"{text(group.name)} received {text(message)} at {offset} of {text(queue.name)} again",
            )

    def _look_at_key(self, known: Message, group: Group) -> None:
        before = group.newest.get(known.key, -1)
        if known.seq < before:
            self._verdict.add(
                "key inversion",
                f"{text(group.name)} received number {known.seq} of key {text(known.key)} after {before}",
            )
        else:
            group.newest[known.key] = known.seq

    def _commit(self, reader: Reader) -> None:
        group, queue, offset = word(reader), word(reader), number(reader)
        before = self._committed.get((group, queue), 0)
        if offset < before:
            self._verdict.add(
                "offset back",
                f"the offset of {text(group)} in {text(queue)} went back from {before} to {offset}",
            )
        self._committed[group, queue] = offset

    def _end(self, reader: Reader) -> None:
        """The broker is back, and this queue ends here: nobody may have received more."""
        queue, offset = self._queue(word(reader)), number(reader)
        if queue.received_end > offset:
            if not self._seen_may_be_lost:
                self._verdict.add(
                    "beyond durable",
                    f"offset {queue.received_end - 1} of {text(queue.name)} was received, "
                    f"but it ends at {offset}",
                )
            queue.received_end = offset
            self._set_back(queue, offset)
        for gone in self._offsets_from(queue, offset):
            known = queue.messages.pop(gone)
            unseen = known.seen < 0 or self._seen_may_be_lost
            if self._tail_may_be_lost and unseen and known.acknowledged:
                known.excused = True
            if known.place == queue.number and known.place_at == gone:
                known.place = -1
        if queue.ack_times and number_at(queue.highest, -1) >= offset:
            queue.ack_times = new_numbers()
            queue.highest = new_numbers()

    def _set_back(self, queue: Queue, offset: int) -> None:
        """Let readers of a queue go on from an earlier offset."""
        for each in self._readers:
            for stream in each.streams.values():
                if stream.queue is queue:
                    stream.last = min(stream.last, offset - 1)

    def _offsets_from(self, queue: Queue, offset: int) -> list[int]:
        """Return which offsets from this one on have messages: few of millions, after most restarts."""
        end, queue.messages_end = queue.messages_end, min(queue.messages_end, offset)
        if end - offset < len(queue.messages):
            return [place for place in range(offset, end) if place in queue.messages]
        return [place for place in queue.messages if place >= offset]

    def _finish(self) -> None:
        """Say the counts; what has not been received by now is lost."""
        verdict = self._verdict
        verdict.sent, verdict.acknowledged = self._sent, self._acknowledged
        verdict.received, verdict.redelivered = self._received, self._redelivered
        verdict.unavailable_ms = self._pause_ns / 1e6
        for name in self._expected:
            self._find_lost(self._group(name))

    def _find_lost(self, group: Group) -> None:
        for known in self._messages.values():
            if not known.acknowledged or known.received_by & group.bit:
                continue
            if known.excused:
                self._verdict.excused += 1
            else:
                self._verdict.add(
                    "lost",
                    f"{text(group.name)} never received {text(known.id)}, acknowledged: "
                    f"{self._place(known.place, known.place_at)}",
                )
