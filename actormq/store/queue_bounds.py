"""Which entries does a queue have?  Found in its files, believed only as far as the log bears them out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final

from actormq.errors import StoreForeign
from actormq.kernels import queues, records
from actormq.kernels.queues import BLANK_ENTRY_SIZE, ENTRY, ENTRY_BYTES
from actormq.store.commit_log import LogReader, LogRemoved, file_name
from actormq.store.consume_queue import QueueFiles, first_at_or_after, queue_folder
from actormq.store.disk import Disk, Entry, OnlyFile

_QUEUE_ID: Final = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)
"""As a folder is called by us and by RocketMQ."""
_BLOCK_ENTRIES: Final = 204
_BLOCK_BYTES: Final = _BLOCK_ENTRIES * ENTRY_BYTES
"""What is read at once: little more than one entry costs."""
_FIRST_FILE: Final = file_name(0)
"""Of a queue of which nothing was removed yet; of another one only the folder is read ahead."""
_GROWTH: Final = 8
_NOBODY_KNOWS: Final = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a queue's files show."""

    first_file_entry: int
    min: int
    """The first entry whose message is in the log; `max` without one."""
    max: int
    """One past the last entry of a record that ends at or before the bound that was asked for."""
    log_end: int
    """Where the record of that last entry ends; 0 without one, or when that record is not in the log."""
    sound: bool
    """The log has the record of the last entry at its place, and no file is missing in between."""
    data_end: int
    """There is certainly nothing from this entry on; not before `max`."""
    replay_from: int
    """The queue is certain for records that end at or before this log offset, at most the bound."""


def topics_on_disk(disk: Disk, root: Path) -> list[str]:
    """Return the names of the folders below ``<store>/consumequeue`` that can be topics.

    Raises:
        StoreForeign: one is a link: it would lead out of the store.
    """
    return _no_links(root, [each for each in disk.scan(root) if _is_text(each.name) and each.is_folder])


def _no_links(folder: Path, entries: list[Entry]) -> list[str]:
    """Return the names of what is no link; raise StoreForeign if one is."""
    for each in entries:
        if each.is_link:
            raise StoreForeign(f"{folder / each.name} is a link: queues lie in folders of the store itself")
    return [each.name for each in entries]


def _is_text(name: str) -> bool:
    """Say whether the file system's bytes are UTF-8: no topic is called otherwise."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def queues_on_disk(disk: Disk, root: Path) -> list[tuple[str, int]]:
    """Return (topic, queue id) of every queue's folder below ``<store>/consumequeue``.

    Raises:
        StoreForeign: as `topics_on_disk`.
    """
    found = []
    topics = topics_on_disk(disk, root)
    with reading_ahead(disk, root, [(topic, 0) for topic in topics]):
        for topic in topics:
            folder = root / topic
            names = _no_links(folder, [each for each in disk.scan(folder) if _QUEUE_ID.fullmatch(each.name)])
            found += [(topic, int(name)) for name in names]
    return found


def reading_ahead(disk: Disk, root: Path, queues: Iterable[tuple[str, int]]) -> AbstractContextManager[None]:
    """Have the disk read what is looked at first of queues below `root`, soon and in this order."""
    names = [f"{topic}/{queue_id}/{_FIRST_FILE}" for topic, queue_id in queues]
    return disk.ahead(root, names, _BLOCK_BYTES)


_PROOFS: Final = 16
"""So many entries are looked at for one that the log bears out."""


def find_bounds(
    files: QueueFiles, reader: LogReader, topic: str, queue_id: int, log_min: int, bound: int
) -> Bounds:
    """Return which entries of a queue point at records in the log that end at or before `bound`.

    The entry behind them, if there is one, must be of a record behind `bound`.  Where it, or the last of
    them, is not what the log says, it may be damaged: all of the queue behind the last one that is borne out
    must be made again, or a message would lose its place in the queue, and another one get it.

    Args:
        log_min: where the log begins.
    """
    only = files.only_file(topic, queue_id, _BLOCK_BYTES)
    bases = files.bases(topic, queue_id) if only is None else [only[0]]
    if not bases:
        return Bounds(first_file_entry=0, min=0, max=0, log_end=0, sound=True, data_end=0, replay_from=bound)
    # Only the newest files without a gap count.
    run = list(takewhile(lambda base: base in bases, range(bases[-1], -1, -files.file_bytes)))
    first = run[-1] // ENTRY_BYTES
    end = (run[0] + files.file_bytes) // ENTRY_BYTES
    log_end, sound, replay_from = 0, len(run) == len(bases), bound
    with closing(_Entries(files, topic, queue_id, only)) as entries:
        high = entries.end_before(first, end, bound)
        data_end = entries.data_end(high, end) if len(run) == len(bases) else _NOBODY_KNOWS
        low = first_at_or_after(
            first, high, 1, lambda entry: 1 if entries.points_to_log(entry, log_min) else 0
        )

        def end_of(number: int) -> int:
            """Return where the record of an entry ends; 0 when the log does not bear it out."""
            log_offset, size, _ = entries.entry(number)
            borne_out = _is_borne_out(reader, topic, queue_id, number, log_offset, size)
            return log_offset + size if borne_out else 0

        last_fits = True
        if low < high:
            log_offset, size, _ = entries.entry(high - 1)
            log_end = log_offset + size
            last_fits = end_of(high - 1) > 0
            sound = sound and last_fits
        behind = entries.entry(high)[:2] if high < end else (0, 0)
        if not last_fits or (behind != (0, 0) and end_of(high) == 0):
            certain = (end_of(number) for number in range(high - 1, max(low, high - _PROOFS) - 1, -1))
            replay_from = next((each for each in certain if each), log_min)
    return Bounds(
        first_file_entry=first,
        min=low,
        max=high,
        log_end=log_end,
        sound=sound,
        data_end=data_end,
        replay_from=replay_from,
    )


def first_entry_behind(
    files: QueueFiles, topic: str, queue_id: int, low: int, high: int, log_offset: int
) -> int:
    """Return the first entry in [low, high) whose record ends behind `log_offset`; `high` without one."""
    with closing(_Entries(files, topic, queue_id)) as entries:
        return first_at_or_after(low, high, 1, lambda entry: 0 if entries.is_before(entry, log_offset) else 1)


class _Entries:
    """The entries of one queue, by number, one file at a time.

    Read by descriptor: the files are sparse, and to read a hole through a map takes a page of the file
    system on tmpfs: on a full one SIGBUS.
    """

    def __init__(
        self, files: QueueFiles, topic: str, queue_id: int, only: tuple[int, OnlyFile] | None = None
    ) -> None:
        """`only`: what is known of a queue of one file: mostly nothing else needs to be read."""
        self._files = files
        self._folder = queue_folder(files.root, topic, queue_id)
        self._only = only
        self._base = -1
        self._fd = -1
        self._block = only[1].start if only else b""
        self._block_at = only[0] if only else 0
        """Where in the queue the block begins, in bytes."""
        self._zeros_at = queues.used_bytes(self._block)
        """Where in the block the zeros at its end begin."""

    def entry(self, number: int) -> tuple[int, int, int]:
        at = number * ENTRY_BYTES - self._block_at
        if not 0 <= at < len(self._block):
            self._read_block(number * ENTRY_BYTES)
            at = number * ENTRY_BYTES - self._block_at
        log_offset, size, code = ENTRY.unpack_from(self._block, at)
        return log_offset, size, code

    def _read_block(self, at: int) -> None:
        in_file = at % self._files.file_bytes
        self._open(at - in_file)
        in_block = in_file % _BLOCK_BYTES
        self._block = self._files.disk.pread(self._fd, _BLOCK_BYTES, in_file - in_block)
        self._block_at = at - in_block
        self._zeros_at = queues.used_bytes(self._block)

    def _block_ends(self, number: int) -> tuple[int, int]:
        """Return where the block of an entry ends, and before that where the zeros at its end begin."""
        self.entry(number)
        first = self._block_at // ENTRY_BYTES
        return first + len(self._block) // ENTRY_BYTES, first - (-self._zeros_at // ENTRY_BYTES)

    def _open(self, base: int) -> None:
        if base != self._base:
            self.close()
            self._fd = self._files.disk.open(self._folder / file_name(base), write=False)
            self._base = base

    def close(self) -> None:
        if self._fd >= 0:
            self._files.disk.close(self._fd)
            self._fd = -1

    def end_before(self, first: int, end: int, bound: int) -> int:
        """Return one past the last of the entries from `first` on that are before `bound`.

        Most queues are short: the first block says it, then come steps that grow.
        """
        step = _BLOCK_ENTRIES
        while first + step < end and self.is_before(first + step - 1, bound):
            first += step
            step *= _GROWTH
        if step == _BLOCK_ENTRIES:
            block_end, zeros = self._block_ends(first)
            step = zeros - first if zeros < block_end else step
        return first_at_or_after(
            first, min(first + step, end), 1, lambda entry: 0 if self.is_before(entry, bound) else 1
        )

    def data_end(self, number: int, end: int) -> int:
        """Return an entry, `number` or later, from which on there is certainly nothing up to `end`."""
        if number == end:
            return end
        block_end, zeros = self._block_ends(number)
        return _NOBODY_KNOWS if self._has_data_from(block_end, end) else max(number, zeros)

    def _has_data_from(self, number: int, end: int) -> bool:
        """Say whether anything may lie in the files between two entries."""
        if self._only and number * ENTRY_BYTES == self._only[0] + len(self._only[1].start):
            return self._only[1].more
        while number < end:
            at = number * ENTRY_BYTES % self._files.file_bytes
            self._open(number * ENTRY_BYTES - at)
            if self._files.disk.has_data(self._fd, at):
                return True
            number += (self._files.file_bytes - at) // ENTRY_BYTES
        return False

    def is_before(self, number: int, bound: int) -> bool:
        """Say whether the entry is a filler, or points at a record that ends at or before `bound`."""
        log_offset, size, _ = self.entry(number)
        if size == BLANK_ENTRY_SIZE and log_offset == 0:
            return True
        # Size 0 and an offset: one of those that lead over a gap.
        return log_offset >= 0 and size >= 0 and (log_offset, size) != (0, 0) and log_offset + size <= bound

    def points_to_log(self, number: int, log_min: int) -> bool:
        log_offset, size, _ = self.entry(number)
        return size != BLANK_ENTRY_SIZE and log_offset >= log_min


def _is_borne_out(
    reader: LogReader, topic: str, queue_id: int, queue_offset: int, log_offset: int, size: int
) -> bool:
    """Say whether the log has, at the place that an entry names, the message that the entry is of."""
    try:
        header = records.decode(reader.view(log_offset, size), 0)
    except (LogRemoved, ValueError):
        return False
    return (
        header.total_size == size
        and header.physical_offset == log_offset
        and header.queue_offset == queue_offset
        and header.queue_id == queue_id
        and header.topic == topic.encode("utf-8", "surrogatepass")
    )


def check_no_queues_without_log(files: QueueFiles) -> None:
    """Refuse a store that has queue entries but no log.

    Raises:
        StoreForeign: it was copied in part, or the log lies elsewhere.
    """
    for topic, queue_id in queues_on_disk(files.disk, files.root):
        if files.bases(topic, queue_id):
            folder = queue_folder(files.root, topic, queue_id)
            raise StoreForeign(f"{folder} has queue entries, but there is no commit log: copied in part?")
