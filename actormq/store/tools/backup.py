"""A copy of a store while its broker works, and a store again from it.

Copied are the log, up to a point at which a record ends, and then the tables: what they say of progress may
be ahead of that point, never the other way round, and the first start sets it back.  Queues and index are
made anew from the log when the copy becomes a store.  What no record tells any more, where queues end that
are empty by now, is in the manifest, which is written last: a copy without one is half a copy.

Full log files are never written to again, so they are cloned or get a second name where the file system can
do that; the newest first: retention removes the oldest meanwhile, and what is left has no gap.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from actormq.errors import StoreForeign
from actormq.store import batch_queue, commit_log, consume_queue, index, marks, tables
from actormq.store import checkpoint as checkpoints
from actormq.store.batch_queue import BatchQueues
from actormq.store.checkpoint import Checkpoint
from actormq.store.commit_log import file_name
from actormq.store.disk import Disk
from actormq.store.tools.inspecting import log_end, queue_bounds
from actormq.store.tools.layout import Layout
from actormq.store.tools.rebuilding import Rebuilt, rebuild
from actormq.store.tools.walking import Log, Progress, again, no_progress

MANIFEST: Final = "actormq-backup.json"
_VERSION: Final = 1
_RESTORING_SUFFIX: Final = ".restoring"
_COPY_BYTES: Final = 8 * 1024 * 1024
_PATH: Final = re.compile(
    rf"{commit_log.FOLDER}/\d{{20}}|{tables.FOLDER}/[^/\0]+|{batch_queue.FOLDER}/[^/\0]+/\d{{1,9}}/\d{{20}}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedFile:
    """One file of a backup."""

    path: str
    """Below the backup's folder."""
    bytes: int
    crc: int
    modified_ns: int
    """Of the file that it was copied from: a full log file with the same time is the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup holds, and how the store was made."""

    version: int
    log_min: int
    log_end: int
    log_file_bytes: int
    queue_file_entries: int
    batch_queue_file_entries: int
    index_slots: int
    index_entries: int
    with_index: bool
    by_rocketmq: bool
    """RocketMQ worked on the store last (`rebuilding.rebuild`)."""
    queues: list[tuple[str, int, int]]
    """(topic, queue id, one past the last entry)."""
    left_out: list[str]
    """Names in the store's folder that are not in the backup."""
    files: list[CopiedFile]

    def layout(self, root: Path) -> Layout:
        return Layout(
            root=root,
            log_file_bytes=self.log_file_bytes,
            queue_file_entries=self.queue_file_entries,
            batch_queue_file_entries=self.batch_queue_file_entries,
            index_slots=self.index_slots,
            index_entries=self.index_entries,
        )


def backup(
    disk: Disk,
    layout: Layout,
    target: Path,
    *,
    since: Path | None = None,
    share: bool = True,
    progress: Progress = no_progress,
) -> Manifest:
    """Copy the store into `target`, a new or empty folder; a broker may work on it meanwhile.

    Args:
        since: an earlier backup: full log files that it has are not read again.
        share: clone full log files, or give them a second name, rather than copy them.

    Raises:
        StoreForeign: `target` is not empty, `since` is no backup, or the store cannot be read.
    """
    return _Backup(disk, layout, target, since, share, progress).run()


class _Backup:
    def __init__(
        self, disk: Disk, layout: Layout, target: Path, since: Path | None, share: bool, progress: Progress
    ) -> None:
        self.disk = disk
        self.layout = layout
        self.target = target
        self.share = share
        self.progress = progress
        self.since = since
        self.before = {} if since is None else {one.path: one for one in read_manifest(disk, since).files}
        self.done = 0
        self.total = 0

    def run(self) -> Manifest:
        _need_empty(self.disk, self.target)
        log = Log(self.disk, self.layout)
        for path, what in log.complaints:
            raise StoreForeign(f"{path} {what}")
        self.disk.mkdir(self.target / commit_log.FOLDER)
        self.disk.mkdir(self.target / tables.FOLDER)
        known = checkpoints.read(self.disk, self.layout.root / checkpoints.NAME)
        end = again(lambda: self._log_end(log, known))
        files = list(self._copy_log(log, end))
        log.refresh()
        ends = again(lambda: queue_bounds(self.disk, self.layout, log, end))
        files += again(self._copy_tables)
        files += again(self._copy_batch_queues)
        manifest = Manifest(
            version=_VERSION,
            log_min=min((int(Path(one.path).name) for one in files if _is_log(one)), default=end),
            log_end=end,
            log_file_bytes=self.layout.log_file_bytes,
            queue_file_entries=self.layout.queue_file_entries,
            batch_queue_file_entries=self.layout.batch_queue_file_entries,
            index_slots=self.layout.index_slots,
            index_entries=self.layout.index_entries,
            with_index=bool(self.disk.listdir(self.layout.index)),
            by_rocketmq=not known.ours,
            queues=[(*queue, found.max) for queue, found, _ in ends if found.max > 0],
            left_out=[name for name in self.disk.listdir(self.layout.root) if name not in _LOOKED_AFTER],
            files=files,
        )
        for folder in (commit_log.FOLDER, tables.FOLDER, "."):
            self.disk.fsync_dir(self.target / folder)
        _write(self.disk, self.target / MANIFEST, orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2))
        self.disk.fsync_dir(self.target)
        return manifest

    def _log_end(self, log: Log, known: Checkpoint) -> int:
        """Return where the last record ends that is in the log by now."""
        reached = known.log_flushed if known.ours and known.log_flushed <= log.top else 0
        if not reached:
            bounds = queue_bounds(self.disk, self.layout, log)
            reached = max((found.log_end for _, found, _ in bounds if found.sound), default=0)
        return log_end(log, max(reached, log.min))[0]

    def _copy_log(self, log: Log, end: int) -> Iterator[CopiedFile]:
        bases = [base for base in log.bases if base < end]
        self.total = len(bases) * self.layout.log_file_bytes
        for base in reversed(bases):
            name = f"{commit_log.FOLDER}/{file_name(base)}"
            try:
                yield self._copy_log_file(name, min(end - base, self.layout.log_file_bytes))
            except FileNotFoundError:
                if base == bases[-1]:
                    raise
                return  # retention has taken it, and all before it

    def _copy_log_file(self, name: str, size: int) -> CopiedFile:
        source, target = self.layout.root / name, self.target / name
        modified_ns = self.disk.modified_ns(source)
        before = self.before.get(name)
        full = size == self.layout.log_file_bytes
        if full and before is not None and before.modified_ns == modified_ns:
            assert self.since is not None
            if self.share and self.disk.share(self.since / name, target):
                self._advance(self.layout.log_file_bytes)
                return before
        if full and self.share and self.disk.share(source, target):
            crc = _crc_of(self.disk, target, self._advance)
            _sync(self.disk, target)
        else:
            crc = _copy(self.disk, source, target, size, self.layout.log_file_bytes, self._advance)
        return CopiedFile(path=name, bytes=self.layout.log_file_bytes, crc=crc, modified_ns=modified_ns)

    def _advance(self, size: int) -> None:
        self.done += size
        self.progress(self.done, self.total)

    def _copy_tables(self) -> list[CopiedFile]:
        copied = []
        folder = self.layout.root / tables.FOLDER
        for name in self.disk.listdir(folder):
            if name.endswith(".tmp") or self.disk.is_folder(folder / name):
                continue
            data = _read(self.disk, folder / name)
            copied.append(self._write_small(f"{tables.FOLDER}/{name}", data))
        return copied

    def _copy_batch_queues(self) -> list[CopiedFile]:
        """Copy what no record tells: which topics have them, and where those end that are empty by now."""
        copied = []
        for topic, queue_id in BatchQueues(self.disk, self.layout.root).names():
            folder = Path(batch_queue.FOLDER) / topic / str(queue_id)
            self.disk.mkdir(self.target / folder)
            for name in self.disk.listdir(self.layout.root / folder):
                data = _read(self.disk, self.layout.root / folder / name)
                copied.append(self._write_small(str(folder / name), data))
            self.disk.fsync_dir(self.target / folder)
        return copied

    def _write_small(self, path: str, data: bytes) -> CopiedFile:
        if self.disk.exists(self.target / path):
            self.disk.unlink(self.target / path)
        _write(self.disk, self.target / path, data)
        return CopiedFile(path=path, bytes=len(data), crc=zlib.crc32(data), modified_ns=0)


_LOOKED_AFTER: Final = {
    commit_log.FOLDER,
    tables.FOLDER,
    batch_queue.FOLDER,
    consume_queue.FOLDER,
    index.FOLDER,
    checkpoints.NAME,
    marks.ABORT,
    marks.CLEAN,
    marks.LOCK,
}
"""Copied, made anew, or of no use in a copy."""


def _is_log(one: CopiedFile) -> bool:
    return one.path.startswith(commit_log.FOLDER)


def read_manifest(disk: Disk, folder: Path) -> Manifest:
    """Return what a backup says of itself.

    Raises:
        StoreForeign: it is none, or half of one, or made by a later version.
    """
    path = folder / MANIFEST
    if not disk.exists(path):
        raise StoreForeign(f"{folder} is no backup, or half of one: it has no {MANIFEST}")
    try:
        value: dict[str, Any] = orjson.loads(_read(disk, path))
        if value["version"] != _VERSION:
            raise StoreForeign(f"{path} is of version {value['version']!r}; this program knows {_VERSION}")
        files = [CopiedFile(**one) for one in value.pop("files")]
        queues = [(str(topic), int(queue_id), int(end)) for topic, queue_id, end in value.pop("queues")]
        manifest = Manifest(**value, files=files, queues=queues)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreForeign(f"{path} cannot be read: {error}") from None
    for one in manifest.files:
        if not _PATH.fullmatch(one.path) or {".", ".."} & set(one.path.split("/")):
            raise StoreForeign(f"{path}: {one.path!r} is no file of a backup")
    return manifest


def restore(
    disk: Disk,
    source: Path,
    target: Path,
    *,
    delay_ms: list[int],
    wall_ms: int,
    pid: int,
    progress: Progress = no_progress,
) -> Rebuilt:
    """Make a store in `target`, a new or empty folder, of the backup in `source`.

    It is made beside `target` and gets its name when it is whole.

    Raises:
        StoreForeign: `source` is no whole backup, or `target` is not empty; there is no store.
    """
    manifest = read_manifest(disk, source)
    _need_empty(disk, target)
    making = target.with_name(target.name + _RESTORING_SUFFIX)
    if disk.exists(making):
        raise StoreForeign(f"{making} is what an earlier restore left: remove it first")
    _check_sizes(disk, source, manifest)
    for folder in (commit_log.FOLDER, tables.FOLDER):
        disk.mkdir(making / folder)
    done, total = 0, 2 * sum(one.bytes for one in manifest.files)

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    for one in manifest.files:
        disk.mkdir((making / one.path).parent)
        crc = _copy(disk, source / one.path, making / one.path, one.bytes, one.bytes, advance)
        if crc != one.crc:
            raise StoreForeign(f"{source / one.path} is damaged: it is not what was backed up (see {making})")
    for folder in (commit_log.FOLDER, tables.FOLDER):
        disk.fsync_dir(making / folder)
    result = rebuild(
        disk,
        manifest.layout(making),
        delay_ms=delay_ms,
        wall_ms=wall_ms,
        pid=pid,
        with_index=manifest.with_index,
        by_rocketmq=manifest.by_rocketmq,
        ends={(topic, queue_id): end for topic, queue_id, end in manifest.queues},
        progress=lambda at, size: progress(done + at * (total - done) // max(size, 1), total),
    )
    if result.log_end != manifest.log_end and not result.passed_over:
        raise StoreForeign(
            f"{source} ends at log offset {result.log_end}, not {manifest.log_end} (see {making})"
        )
    disk.rename(making, target)
    disk.fsync_dir(target.parent)
    return result


def _check_sizes(disk: Disk, source: Path, manifest: Manifest) -> None:
    """Look, before anything is copied, whether all is there."""
    for one in manifest.files:
        path = source / one.path
        if not disk.exists(path) or disk.is_folder(path):
            raise StoreForeign(f"{path} is missing: this is half a backup")
        if disk.size(path) != one.bytes:
            raise StoreForeign(f"{path} has {disk.size(path)} bytes, not {one.bytes}: this is half a backup")


def _need_empty(disk: Disk, folder: Path) -> None:
    if disk.exists(folder) and (not disk.is_folder(folder) or disk.listdir(folder)):
        raise StoreForeign(f"{folder} is not empty: it must be a new folder")


def _read(disk: Disk, path: Path) -> bytes:
    fd = disk.open(path, write=False)
    try:
        return disk.pread(fd, disk.size(path), 0)
    finally:
        disk.close(fd)


def _write(disk: Disk, path: Path, data: bytes) -> None:
    fd = disk.open(path, exclusive=True)
    try:
        disk.pwritev(fd, [data], 0)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)


def _sync(disk: Disk, path: Path) -> None:
    fd = disk.open(path)
    try:
        disk.fdatasync(fd)
    finally:
        disk.close(fd)


def _crc_of(disk: Disk, path: Path, advance: Callable[[int], None]) -> int:
    fd = disk.open(path, write=False)
    try:
        crc = at = 0
        while part := disk.pread(fd, _COPY_BYTES, at):
            crc = zlib.crc32(part, crc)
            at += len(part)
            advance(len(part))
        return crc
    finally:
        disk.close(fd)


def _copy(
    disk: Disk, source: Path, target: Path, size: int, length: int, advance: Callable[[int], None]
) -> int:
    """Copy the first `size` bytes into a new file of `length`, then zeros; return the CRC of all of it."""
    read = disk.open(source, write=False)
    try:
        write = disk.open(target, exclusive=True)
        try:
            if length:
                disk.allocate(write, 0, length)
            crc = 0
            for at in range(0, length, _COPY_BYTES):
                part = disk.pread(read, min(_COPY_BYTES, size - at), at) if at < size else b""
                disk.pwritev(write, [part], at)
                crc = zlib.crc32(part.ljust(min(_COPY_BYTES, length - at), b"\0"), crc)
                advance(min(_COPY_BYTES, length - at))
            disk.fdatasync(write)
            return crc
        finally:
            disk.close(write)
    finally:
        disk.close(read)
