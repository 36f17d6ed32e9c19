"""Is the store whole?  Every record, and log against queues, index, checkpoint and offsets, both ways.

Nothing is changed, and a broker may work beside: what it has not promised to be there yet (`Trust`) is
counted as waiting, not as damage.  Comparisons run over whole stretches; single entries are looked at where
two stretches differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from actormq.errors import StoreForeign
from actormq.kernels import records
from actormq.kernels.queues import ENTRY_BYTES
from actormq.kernels.records import ScanEnd
from actormq.store import tables
from actormq.store.batch_queue import BatchQueues
from actormq.store.disk import Disk
from actormq.store.queue_bounds import queues_on_disk
from actormq.store.queue_ext import QueueExtensions
from actormq.store.tools.batch_queue_check import BatchQueueCheck
from actormq.store.tools.entry_files import EntryFiles
from actormq.store.tools.index_check import IndexCheck
from actormq.store.tools.layout import Layout
from actormq.store.tools.queue_check import QueueCheck
from actormq.store.tools.report import Finding, Report
from actormq.store.tools.trust import Trust, read_trust
from actormq.store.tools.walking import (
    BadPlace,
    Dispatching,
    Log,
    Piece,
    Progress,
    Queue,
    again,
    batch_topics,
    no_progress,
)

_REASONS: Final = {
    ScanEnd.EMPTY: "zeros where a record must be",
    ScanEnd.BAD_SIZE: "its size is impossible",
    ScanEnd.BAD_MAGIC: "no record begins there",
    ScanEnd.BAD_LENGTH: "its parts do not add up to its size",
    ScanEnd.BAD_PLACE: "it belongs to another place in the log",
    ScanEnd.BAD_CRC: "its content does not fit its CRC",
}


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What `verify` saw."""

    trust: Trust
    report: Report
    log_min: int
    log_end: int = 0
    log_files: int = 0
    records: int = 0
    last_store_timestamp: int = 0
    queues: dict[Queue, int] = field(default_factory=dict)
    """Records of each queue in the log."""
    index_entries: int = 0
    waiting: Counter[str] = field(default_factory=Counter)
    """What the broker, or the next start, still has to do: by kind, how much of it."""

    @property
    def whole(self) -> bool:
        return not self.report.counts


def verify(
    disk: Disk,
    layout: Layout,
    *,
    delay_ms: list[int],
    progress: Progress = no_progress,
    findings_max: int = 100,
) -> Verdict:
    """Look at everything.

    Args:
        delay_ms: of delay levels 1, 2, …
        findings_max: so many are described; all are counted.

    Raises:
        StoreForeign: the checkpoint or the index is none.
        OSError: the disk cannot be read.
    """
    return _Verification(disk, layout, delay_ms, progress, findings_max).run()


class _Verification:
    def __init__(
        self, disk: Disk, layout: Layout, delay_ms: list[int], progress: Progress, findings_max: int
    ) -> None:
        self.disk = disk
        self.layout = layout
        self.progress = progress
        self.report = Report(findings_max)
        # Before anything of the store: what grows meanwhile is then ahead of them, never behind.
        stored = {name: self._table(name) for name in tables.FILES}
        self.offsets = stored[tables.CONSUMER_OFFSETS]
        self.log = Log(disk, layout)
        self.trust, self.index = again(self._trust_and_index)
        deleted = tables.deleted_topics(stored[tables.DELETED_TOPICS])
        self.dispatching = Dispatching(delay_ms, deleted)
        self.verdict = Verdict(
            trust=self.trust, report=self.report, log_min=self.log.min, log_files=len(self.log.bases)
        )
        topics = stored[tables.TOPICS]
        self.batch_topics = batch_topics(disk, layout, topics)
        found = [queue for queue in queues_on_disk(disk, layout.queues) if queue[0] not in self.batch_topics]
        files = EntryFiles(disk, layout.queues, layout.queue_file_entries * ENTRY_BYTES, ENTRY_BYTES)
        self.queues = QueueCheck(
            files, self.trust, self.report, topics, found, deleted, QueueExtensions.of(disk, layout.root)
        )
        self.batches = BatchQueueCheck(
            BatchQueues(disk, layout.root),
            layout.batch_queue_file_entries,
            self.trust,
            self.report,
            topics,
            deleted,
        )

    def _trust_and_index(self) -> tuple[Trust, IndexCheck]:
        self.log.refresh()
        trust = read_trust(self.disk, self.layout, self.log)
        return trust, IndexCheck(self.disk, self.layout, trust, self.report, self.log.min)

    def _table(self, name: str) -> tables.Table | None:
        path = self.layout.root / tables.FOLDER / name
        try:
            return tables.load(self.disk, path)
        except StoreForeign as error:
            self.report.add(Finding(kind="config.unreadable", file=str(path), what=error.remark))
            return None

    def run(self) -> Verdict:
        for path, what in self.log.complaints:
            self.report.add(Finding(kind="log.file", file=str(path), what=what))
        try:
            self._walk()
            for each in (self.queues, self.batches):
                each.finish(self._lowest(), self.verdict.log_end)
            self.index.finish(self.verdict.log_end)
        finally:
            self.queues.close()
            self.batches.close()
        self._check_ends()
        self._check_offsets()
        verdict = self.verdict
        verdict.queues = self.queues.counts() | self.batches.counts()
        verdict.index_entries = self.index.entries
        verdict.waiting["queue entries"] = self.queues.waiting + self.batches.waiting
        verdict.waiting["index keys"] = self.index.waiting
        return verdict

    def _lowest(self) -> int:
        """Return where the log begins now: retention may have worked meanwhile."""
        self.log.refresh()
        return self.log.min

    def _walk(self) -> None:
        begin = self.log.min
        for found in self.log.walk(begin, self.log.top):
            self.progress(self.log.reached - begin, self.log.top - begin)
            if isinstance(found, Piece):
                self._compare(found)
                continue
            if self.trust.is_end(found):
                self.verdict.waiting["torn tails"] += found.reason != ScanEnd.EMPTY
                break
            self._damaged(found)
        self.verdict.log_end = self.log.reached
        self.progress(self.log.top - begin, self.log.top - begin)

    def _compare(self, piece: Piece) -> None:
        self.verdict.records += piece.records
        self.verdict.last_store_timestamp = piece.last_store_timestamp
        start = piece.start - piece.base
        for made in self.dispatching.pieces(piece):
            for row, first, entries in made.runs:
                queue = self.dispatching.queues[row]
                if queue is not None and first >= 0:
                    self._compare_run(piece, queue, *self.dispatching.living(queue, first, entries))
            keys_of_old = partial(self.dispatching.keys_without_tags, piece, start, made.end)
            self.index.compare(made.keys, piece.base + made.end, keys_of_old)
            start = made.end

    def _compare_run(self, piece: Piece, queue: Queue, first: int, entries: bytearray) -> None:
        if queue[0] in self.batch_topics:
            self.batches.compare_records(queue, first, entries, piece.view, piece.base)
        else:
            self.queues.compare(queue, first, entries)

    def _damaged(self, bad: BadPlace) -> None:
        header = _header_at(self.log, bad.start)
        until = "nothing follows" if bad.end is None else f"the log goes on at {bad.end}"
        self.report.add(
            Finding(
                kind="log.record",
                file=str(self.layout.log / bad.file),
                what=f"{_REASONS.get(bad.reason, bad.reason.name)}; {until}",
                log_offset=bad.start,
                topic=header.topic.decode("utf-8", "replace") if header else None,
                queue_id=header.queue_id if header else None,
                queue_offset=header.queue_offset if header else None,
            )
        )

    def _check_ends(self) -> None:
        known, end = self.trust.checkpoint, self.verdict.log_end
        path = self.layout.root / "checkpoint"
        for name in ("log_flushed", "queues_flushed", "index_flushed"):
            if known.ours and getattr(known, name) > end:
                what = f"it says that {name} is {getattr(known, name)}, but the log ends at {end}"
                self.report.add(Finding(kind="checkpoint", file=str(path), what=what))
        mark = self.trust.mark
        if mark is not None and mark.log_end != end:
            what = f"it says that the log ends at {mark.log_end}, but it ends at {end}"
            self.report.add(Finding(kind="end-mark", file=str(self.layout.root / "actormq.clean"), what=what))

    def _check_offsets(self) -> None:
        path = self.layout.root / tables.FOLDER / tables.CONSUMER_OFFSETS
        ends = self.queues.ends() | self.batches.ends()
        for group, topic, queue_id, offset in _offsets(self.offsets):
            end = ends.get((topic, queue_id))
            if offset < 0 or (end is not None and self.trust.clean and offset > end):
                what = f"group {group} has committed {offset}, but the queue ends at {end}"
                self.report.add(
                    Finding(kind="offset", file=str(path), what=what, topic=topic, queue_id=queue_id)
                )


def _header_at(log: Log, log_offset: int) -> records.Header | None:
    """Return what a damaged record says of itself, where that can be read at all."""
    base = log_offset - log_offset % log.layout.log_file_bytes
    try:
        return records.decode(log.reader.file(base), log_offset - base)
    except ValueError:
        return None


def _offsets(table: Mapping[str, Any] | None) -> list[tuple[str, str, int, int]]:
    """Return (group, topic, queue id, offset) of everything committed that can be read."""
    found = []
    for key, offsets in ((table or {}).get("offsetTable") or {}).items():
        topic, _, group = key.partition("@")
        for queue, offset in offsets.items() if isinstance(offsets, dict) else ():
            if isinstance(offset, int) and queue.isdigit():
                found.append((group, topic, int(queue), offset))
    return found
