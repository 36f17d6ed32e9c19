"""recovery: brings the store into order before anyone else starts, fills the shared memory, and ends.

From: nobody.  To: nobody; everyone reads what it leaves: the extents' rows, the first published tables,
the positions.
Owns: the whole store, for as long as it runs (the others start when it has ended well).
Dies with it: the start.  The next one begins where this one began: whatever it changed, it may change again.

A store that is foreign or was copied in part is refused with one sentence (exit status 78), a disk that
fails stops the broker (74); a torn tail, missing queues or a missing index are repaired.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import ClassVar

from actormq import faults
from actormq.actors.runtime import ProcessActor
from actormq.broker import topics
from actormq.broker.delay import DelayLevels
from actormq.broker.deleting import Deletions
from actormq.broker.tables import encode_entry
from actormq.config import BrokerConfig, FlushMode
from actormq.errors import RequestError, StoreError, StoreFailed, StoreForeign
from actormq.message import SCHEDULE_TOPIC
from actormq.shm.extents import Extents
from actormq.shm.positions import Position, Positions, RoleCell, slot_of
from actormq.shm.tables import TablesPublisher
from actormq.store import commit_log, tables
from actormq.store.commit_log import LogFiles
from actormq.store.consume_queue import FOLDER as QUEUES_FOLDER
from actormq.store.consume_queue import BadName, QueueFiles, queue_folder
from actormq.store.disk import NO_SPACE, NOT_THE_DISK, Disk, RealDisk
from actormq.store.foreign import check_kind
from actormq.store.queue_bounds import first_entry_behind
from actormq.store.recovery import RecoveredStore, check_shape, recover


def prepare(
    config: BrokerConfig,
    disk: Disk,
    positions: Positions,
    extents: Extents,
    tables_view: memoryview,
    log: logging.Logger,
    wall_ms: int,
) -> RecoveredStore:
    """Recover the store and publish what the other roles start from.

    Raises:
        StoreForeign, RequestError: it cannot be served; one sentence says why.
        OSError: the disk failed.
    """
    faults.point("recovery.begun")
    stored_topics, damaged = _look_at(config.store.root, disk)
    for note in check_kind(disk, config.store.root):
        log.warning(note)
    deleted = tables.deleted_topics(_load(config, disk, tables.DELETED_TOPICS))
    delay_ms = list(DelayLevels(config.coordinator.delay_levels).delays_ms)
    # RocketMQ's file names the broker; recovery itself is gone in a moment.
    pid = positions.role(slot_of("supervisor"), RoleCell.PID) or os.getpid()
    store = recover(disk, config.store, wall_ms=wall_ms, pid=pid, delay_ms=delay_ms, deleted=deleted)
    faults.point("recovery.recovered")
    for path, trouble in damaged.items():
        aside = tables.set_aside(disk, path)
        log.warning(f"{trouble}; its .bak is used instead, and it is kept as {aside.name}")
    _report(store, log)
    half_deleted = {name for name, end in deleted.items() if end == tables.PENDING}
    if half_deleted:
        stored_topics = [topic for topic in stored_topics if topic.name not in half_deleted]
        _end_deletions(config, disk, half_deleted, stored_topics)
    if store.deleted != deleted:
        # Before anything is appended: with the old numbers it would be taken for the dead topic's.
        path = config.store.root / tables.FOLDER / tables.DELETED_TOPICS
        tables.save(disk, path, tables.deleted_topics_table(store.deleted))
        faults.point("recovery.deletions-saved")
    if not store.clean:
        clamp_progress(config, disk, store, log)
        faults.point("recovery.progress-clamped")
    doubted_from = _note_lost_tail(config, disk, store, log, wall_ms)
    publisher = TablesPublisher(tables_view, positions)
    _open_queues(config, disk, stored_topics, store, doubted_from, extents, publisher)
    faults.point("recovery.queues-opened")
    _make_first_file(config, disk, store, log)
    faults.point("recovery.file-made")
    _publish(store, positions)
    faults.point("recovery.published")
    return store


def _load(config: BrokerConfig, disk: Disk, name: str) -> tables.Table | None:
    return tables.load(disk, config.store.root / tables.FOLDER / name)


def _end_deletions(
    config: BrokerConfig, disk: Disk, names: set[str], topics_left: list[topics.TopicConfig]
) -> None:
    """Take topics whose deletion had begun out of the tables; done again if we die in between."""
    offsets = _load(config, disk, tables.CONSUMER_OFFSETS)
    folder = config.store.root / tables.FOLDER
    if offsets is not None and tables.forget_consumers_of(offsets, names):
        tables.save(disk, folder / tables.CONSUMER_OFFSETS, offsets)
    stored = _load(config, disk, tables.TOPICS)
    if stored is not None:
        kept = {topic.name: topics.topic_to_json(topic) for topic in topics_left}
        tables.save(disk, folder / tables.TOPICS, {**stored, "topicConfigTable": kept})


def _report(store: RecoveredStore, log: logging.Logger) -> None:
    for note in store.notes:
        log.warning(note)
    log.info(
        "store recovered",
        extra={
            "after": "clean stop" if store.clean else "crash",
            "log_min": store.log_min,
            "log_end": store.log_end,
            "queues": len(store.queues),
            "scanned_bytes": store.scanned_bytes,
        },
    )


def clamp_progress(config: BrokerConfig, disk: Disk, store: RecoveredStore, log: logging.Logger) -> None:
    """Set stored offsets that point beyond their queue's end back to it, and say so.

    Left as they are, the group would skip the messages that take those places next.
    """
    ends = {queue: extent.max for queue, extent in store.queues.items()}
    folder = config.store.root / tables.FOLDER
    consumers = tables.load(disk, folder / tables.CONSUMER_OFFSETS)
    delays = tables.load(disk, folder / tables.DELAY_OFFSETS)
    clamped = [
        (folder / tables.CONSUMER_OFFSETS, consumers, tables.clamp_consumer_offsets(consumers or {}, ends)),
        (
            folder / tables.DELAY_OFFSETS,
            delays,
            tables.clamp_delay_offsets(delays or {}, SCHEDULE_TOPIC, ends),
        ),
    ]
    for path, table, changes in clamped:
        if table is not None and changes:
            tables.save(disk, path, table)
        for each in changes:
            log.warning(
                f"{each.whose} had come to {each.stored} in queue {each.queue_id} of {each.topic}, "
                f"which ends at {each.end}: set back"
            )


def _note_lost_tail(
    config: BrokerConfig, disk: Disk, store: RecoveredStore, log: logging.Logger, wall_ms: int
) -> int | None:
    """Return the log offset behind which readers of an earlier broker may have seen other messages (ADR 43).

    None: there is none; in sync mode nobody was ahead of the disk.  What an earlier start found still counts
    when the broker ended again before all readers can have been met.
    """
    if config.store.flush is FlushMode.SYNC:
        return None
    path = config.store.root / tables.FOLDER / tables.LOST_TAILS
    noted = tables.lost_tails(tables.load(disk, path))
    counts = {
        at_ms: end
        for at_ms, end in noted.items()
        if store.last_store_timestamp - at_ms < tables.LOST_TAIL_COUNTS_MS
    }
    if not store.clean and store.log_end not in counts.values():
        counts[wall_ms] = store.log_end
    if counts != noted:
        try:
            tables.save(disk, path, tables.lost_tails_table(counts))
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            # No reason not to serve what is there; it counts only if this broker ends within a minute, too.
            log.warning(f"no room for {path}: the next start does not know of this one")
    return min(counts.values(), default=None)


def _open_queues(
    config: BrokerConfig,
    disk: Disk,
    stored_topics: list[topics.TopicConfig],
    store: RecoveredStore,
    doubted_from: int | None,
    extents: Extents,
    publisher: TablesPublisher,
) -> None:
    """Give every queue its row, and publish every topic; rows first: a reader goes from topic to row."""
    found = topics.recover(
        topics.TopicSettings(
            cluster=config.cluster,
            broker=config.name,
            auto_create=config.coordinator.auto_create_topics,
            default_queues=config.coordinator.default_topic_queues,
            rows_max=config.memory.queue_rows_max,
        ),
        stored_topics,
        {queue: (extent.min, extent.max) for queue, extent in store.queues.items()},
        Deletions(store.deleted),
    )
    files = QueueFiles(disk, config.store.root / QUEUES_FOLDER, config.store.queue_file_entries)

    def lost_from(row: topics.QueueRow) -> int | None:
        """Return the entry from which on readers of an earlier broker may have seen others; None: nowhere."""
        low, high = row.min_offset, row.max_offset
        if doubted_from is None or doubted_from >= store.log_end or low >= high:
            return None if doubted_from is None else high
        return first_entry_behind(files, row.topic, row.queue_id, low, high, doubted_from)

    for row in found.rows:
        extent = store.queues.get((row.topic, row.queue_id))
        first_file_entry = extent.first_file_entry if extent is not None else 0
        entries = config.store.queue_file_entries
        extents.open_row(
            row.row,
            row.incarnation,
            row.min_offset,
            row.max_offset,
            first_file_entry,
            entries,
            row.log_start,
            lost_from(row),
        )
    publisher.publish(*map(encode_entry, found.topics.table.values()))


def _look_at(root: Path, disk: Disk) -> tuple[list[topics.TopicConfig], dict[Path, str]]:
    """Refuse what no broker left, before anything changes.

    Returns:
        The topics that topics.json has; what is wrong with files whose .bak is used instead.
    """
    check_shape(disk, root)
    damaged = {}
    for name in tables.FILES:
        path = root / tables.FOLDER / name
        trouble = tables.look(disk, path).trouble
        if trouble:
            damaged[path] = trouble
    path = root / tables.FOLDER / tables.TOPICS
    stored = (tables.load(disk, path) or {}).get("topicConfigTable") or {}
    return [_stored_topic(path, name, value) for name, value in stored.items()], damaged


def _stored_topic(path: Path, name: str, value: object) -> topics.TopicConfig:
    """Return one topic of topics.json; its name is going to be a folder's."""
    try:
        topic = topics.topic_from_json(value)
    except RequestError as error:
        raise StoreForeign(f"{path}: topic {name!r}: {error.remark}") from None
    try:
        queue_folder(path.parent, topic.name, 0)
    except (BadName, UnicodeError):
        raise StoreForeign(f"{path}: {topic.name[:64]!r} cannot be the name of a topic") from None
    return topic


def _make_first_file(config: BrokerConfig, disk: Disk, store: RecoveredStore, log: logging.Logger) -> None:
    """Make the file in which the next record goes, if it is not there: the first send need not wait."""
    files = LogFiles(disk, config.store.root / commit_log.FOLDER, config.store.log_file_bytes)
    try:
        files.create(files.base_of(store.log_end))
    except OSError as error:
        if error.errno not in NOT_THE_DISK:
            raise
        # No reason not to serve what is there; the cleaner tries again.
        log.error(f"cannot make a log file, sends will be refused: {error}")


def _publish(store: RecoveredStore, positions: Positions) -> None:
    positions.set(Position.CLEANED, store.log_min)
    positions.set(Position.STORE_TIMESTAMP, store.last_store_timestamp)
    for position in (Position.APPENDED, Position.WRITTEN, Position.FLUSHED, Position.DISPATCHED):
        positions.set(position, store.log_end)


class RecoveryActor(ProcessActor):
    """One shot: all of it happens in `on_start`."""

    writes_store: ClassVar[bool] = True

    def on_start(self) -> None:
        try:
            prepare(
                self.config,
                RealDisk(),
                self.positions,
                Extents(self.context.segments["extents"].view),
                self.context.segments["tables"].view,
                self.log,
                self.context.clock.wall_ms(),
            )
        except OSError as error:
            if error.errno in NOT_THE_DISK:
                root = self.config.store.root
                raise StoreError(f"the store in {root} cannot be used: {_sentence(error)}") from error
            raise StoreFailed(f"the store cannot be recovered: {error}") from error


def _sentence(error: OSError) -> str:
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror)
