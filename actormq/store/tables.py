"""``config/*.json``: the tables that RocketMQ keeps as JSON, read tolerantly and replaced atomically.

Read: integer keys without quotes, and whatever else fastjson writes; where the file is missing, empty or no
JSON, its ``.bak`` sibling.  Write: the new text is durable under a temporary name before the old one becomes
the ``.bak``, so that at every moment one of the two is whole.

Our files end with a checksum, as a member that RocketMQ does not know: a digit of an offset that is another
one is JSON as good as before.  RocketMQ drops it when it writes.

Source: RocketMQ ConfigManager.java, MixAll.string2File.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from actormq.errors import FrameError, StoreFailed, StoreForeign
from actormq.store.disk import NOT_THE_DISK, Disk
from actormq.wire import json

FOLDER: Final = "config"
TOPICS: Final = "topics.json"
GROUPS: Final = "subscriptionGroup.json"
CONSUMER_OFFSETS: Final = "consumerOffset.json"
DELAY_OFFSETS: Final = "delayOffset.json"
DELETED_TOPICS: Final = "deletedTopics.json"
"""Ours; RocketMQ does not look at it."""
LOST_TAILS: Final = "lostTails.json"
"""Ours, too."""
LOST_TAIL_COUNTS_MS: Final = 60_000
"""So long after a start that may have lost the log's tail there are readers who believe in it (ADR 43)."""
FILES: Final = (TOPICS, GROUPS, CONSUMER_OFFSETS, DELAY_OFFSETS, DELETED_TOPICS, LOST_TAILS)
_OBJECTS: Final = {
    TOPICS: ("topicConfigTable",),
    GROUPS: ("subscriptionGroupTable", "forbiddenTable"),
    CONSUMER_OFFSETS: ("offsetTable",),
    DELAY_OFFSETS: ("offsetTable",),
    DELETED_TOPICS: ("deletedTopics",),
    LOST_TAILS: ("lostTails",),
}
"""Members that are objects where they are there at all; `dataVersion` is one in every file."""
TABLE_BYTES_MAX: Final = 256 * 1024 * 1024
"""A larger file is refused: it is nothing that RocketMQ or we wrote."""

PENDING: Final = -1
"""In place of a log offset: the deletion had begun, where the topic's last message ends was not known yet."""

CHECKSUM: Final = "actormqChecksum"
"""The last member of our files: CRC-32 of the others, as `save` writes them."""
DAMAGED_SUFFIX: Final = ".damaged"
_OPTIONS: Final = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS

Table = dict[str, Any]


class Members(dict[str, orjson.Fragment]):
    """An object of a table by its members' texts (`member_text`), where to write all anew takes too long."""


def member_text(value: Mapping[str, Any]) -> orjson.Fragment:
    """Return the text of a `Members`' member, as it stands in a file that `save` writes.

    Args:
        value: its keys are strings.
    """
    return orjson.Fragment(orjson.dumps(value, option=_OPTIONS).replace(b"\n", b"\n    "))


@dataclass(frozen=True, slots=True)
class Found:
    """What a table's two files hold."""

    table: Table | None
    trouble: str = ""
    """What is wrong with the file for which the ``.bak`` has stepped in."""


def load(disk: Disk, path: Path) -> Table | None:
    """Return the table at `path`, or at its ``.bak``; None when there is neither.

    Raises:
        StoreForeign: a file is there, but neither it nor the ``.bak`` has the shape of that table; both stay.
    """
    return look(disk, path).table


def look(disk: Disk, path: Path) -> Found:
    """As `load`; says, too, why it is not the table at `path`."""
    troubles = []
    for candidate in (path, _bak(path)):
        if not disk.exists(candidate):
            continue
        try:
            table = parse(_read(disk, candidate))
            _check_sum(table or {})
            _check_shape(table or {}, _OBJECTS.get(path.name, ()))
        except FrameError as error:
            troubles.append(f"{candidate}: {error.remark}")
            continue
        if table is not None:
            return Found(table, "; ".join(troubles))
        troubles.append(f"{candidate}: empty")
    if any(not trouble.endswith(": empty") for trouble in troubles):
        raise StoreForeign("; ".join(troubles))
    return Found(None)


def set_aside(disk: Disk, path: Path) -> Path:
    """Rename a damaged file, durably: otherwise it would become the ``.bak`` of the next one."""
    aside = path.with_name(path.name + DAMAGED_SUFFIX)
    disk.rename(path, aside)
    disk.fsync_dir(path.parent)
    return aside


def _bak(path: Path) -> Path:
    return path.with_name(path.name + ".bak")


def _check_sum(table: Table) -> None:
    """Take the checksum out of a table; raise FrameError when it is not that table's."""
    found = table.pop(CHECKSUM, None)
    if found is not None and found != _sum_of(table):
        raise FrameError(
            f"its checksum is not that of its content: damaged, or edited (then remove its {CHECKSUM})"
        )


def _sum_of(table: Table) -> str:
    return f"{zlib.crc32(orjson.dumps(table, option=_OPTIONS)):08x}"


def parse(text: bytes) -> Table | None:
    """Return the object in `text`; None for an empty file.

    Raises:
        FrameError: it is no JSON, nests too deeply, or is no object.
    """
    if not text.strip(b"\0 \t\r\n"):
        return None
    try:
        table = json.loads(text)
    except (RecursionError, UnicodeError) as error:
        raise FrameError(f"unreadable: {error}") from None
    if not isinstance(table, dict):
        raise FrameError("expected an object")
    return table


def _check_shape(table: Table, objects: tuple[str, ...]) -> None:
    """Raise FrameError when a member that should be an object is something else."""
    for name in (*objects, "dataVersion"):
        if not isinstance(table.get(name) or {}, dict):
            raise FrameError(f"{name} is no object")
    for name, number in (table.get("dataVersion") or {}).items():
        if type(number) is not int:
            raise FrameError(f"{name} of its dataVersion is no integer")


def _read(disk: Disk, path: Path) -> bytes:
    size = disk.size(path)
    if size > TABLE_BYTES_MAX:
        raise FrameError(f"{size} bytes are more than a table has")
    fd = disk.open(path, write=False)
    try:
        return disk.pread(fd, size, 0)
    finally:
        disk.close(fd)


def save(disk: Disk, path: Path, table: Table) -> None:
    """Replace the table at `path` durably; the old one becomes its ``.bak``.

    Raises:
        OSError: no room, or something that a person removes (`NOT_THE_DISK`).  The old table, or its
            ``.bak``, still stands; to call this again is safe: it begins with a file of its own.
        StoreFailed: the disk failed, or the folder could not be synced: then nobody knows which file the
            name leads to after a loss of power, and the next sync may succeed without having written it.
    """
    try:
        _put_in_place(disk, path, table)
    except OSError as error:
        if error.errno in NOT_THE_DISK:
            raise
        raise StoreFailed(f"cannot write {path}: {error}") from error
    try:
        disk.fsync_dir(path.parent)
    except OSError as error:
        raise StoreFailed(f"cannot sync {path.parent}: {error}") from error


def _put_in_place(disk: Disk, path: Path, table: Table) -> None:
    disk.mkdir(path.parent)
    making = path.with_name(path.name + ".tmp")
    if disk.exists(making):
        disk.unlink(making)
    fd = disk.open(making, exclusive=True)
    try:
        disk.pwritev(fd, [_text(table)], 0)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)
    if disk.exists(path):
        disk.rename(path, _bak(path))
    disk.rename(making, path)


def _text(table: Table) -> bytes:
    """Return the content of a file: the table with its checksum."""
    plain = {name: _plain(value) for name, value in table.items() if name != CHECKSUM}
    return orjson.dumps({**plain, CHECKSUM: _sum_of(plain)}, option=_OPTIONS)


def _plain(value: Any) -> Any:
    # Keys that are no strings are sorted as numbers here, and as strings when they are read again.
    if isinstance(value, Members):
        return value
    return orjson.loads(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))


def topic_names(table: Table | None) -> list[str]:
    """Return the topics that a ``topics.json`` names."""
    topics = (table or {}).get("topicConfigTable")
    return list(topics) if isinstance(topics, dict) else []


def topics_with(table: Table | None, fits: Callable[[Mapping[str, Any]], bool]) -> set[str]:
    """Return the topics of a ``topics.json`` whose attributes fit."""
    topics = _objects((table or {}).get("topicConfigTable"))
    return {name for name, topic in topics.items() if fits(_objects(topic).get("attributes") or {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamped:
    """One stored progress that pointed beyond its queue's end and was set back to it."""

    whose: str
    """The group, or the delay level."""
    topic: str
    queue_id: int
    stored: int
    end: int


def deleted_topics(table: Table | None) -> dict[str, int]:
    """Return what ``deletedTopics.json`` says: name → log offset before which its records are dead."""
    found = (table or {}).get("deletedTopics") or {}
    return {name: end for name, end in found.items() if type(end) is int and end >= PENDING}


def deleted_topics_table(log_ends: Mapping[str, int]) -> Table:
    """Return the content of ``deletedTopics.json``."""
    return {"deletedTopics": dict(log_ends)}


def lost_tails(table: Table | None) -> dict[int, int]:
    """Return what ``lostTails.json`` says: when a broker started after a crash (ms) → where the log ended."""
    found = (table or {}).get("lostTails") or {}
    return {int(at): end for at, end in found.items() if at.isdecimal() and type(end) is int and end >= 0}


def lost_tails_table(log_ends: Mapping[int, int]) -> Table:
    """Return the content of ``lostTails.json``."""
    return {"lostTails": {str(at_ms): end for at_ms, end in log_ends.items()}}


def forget_consumers_of(table: Table, topics: Collection[str]) -> bool:
    """Take the offsets of `topics` out of ``consumerOffset.json``'s table; True when there were any."""
    offsets = _objects_or_numbers(table.get("offsetTable"))
    gone = [name for name in offsets if name.partition("@")[0] in topics]
    for name in gone:
        del offsets[name]
    return bool(gone)


def clamp_consumer_offsets(table: Table, queue_ends: dict[tuple[str, int], int]) -> list[Clamped]:
    """Set every offset of a ``consumerOffset.json`` that is beyond its queue's end to that end.

    A queue that is not there ends at 0.  Kept as it was, the group would never see the messages that
    take these places again.

    Args:
        table: changed in place.
        queue_ends: one past the last entry, by (topic, queue id).
    """
    clamped = []
    for key, offsets in _objects(table.get("offsetTable")).items():
        topic, _, group = key.partition("@")
        for queue, stored in list(_objects_or_numbers(offsets).items()):
            with contextlib.suppress(ValueError):
                end = queue_ends.get((topic, int(queue)), 0)
                if isinstance(stored, int) and stored > end:
                    offsets[queue] = end
                    clamped.append(
                        Clamped(whose=group, topic=topic, queue_id=int(queue), stored=stored, end=end)
                    )
    return clamped


def clamp_delay_offsets(
    table: Table, schedule_topic: str, queue_ends: dict[tuple[str, int], int]
) -> list[Clamped]:
    """Set every offset of a ``delayOffset.json`` beyond its level's queue to that queue's end, in place.

    Level n is queue n - 1 of the schedule topic.
    """
    clamped = []
    offsets = _objects_or_numbers(table.get("offsetTable"))
    for level, stored in list(offsets.items()):
        with contextlib.suppress(ValueError):
            queue_id = int(level) - 1
            end = queue_ends.get((schedule_topic, queue_id), 0)
            if isinstance(stored, int) and stored > end:
                offsets[level] = end
                clamped.append(
                    Clamped(
                        whose=f"level {level}",
                        topic=schedule_topic,
                        queue_id=queue_id,
                        stored=stored,
                        end=end,
                    )
                )
    return clamped


def _objects(value: Any) -> dict[str, Any]:
    """Return the members of an object that are objects themselves; none of anything else."""
    return (
        {key: item for key, item in value.items() if isinstance(item, dict)}
        if isinstance(value, dict)
        else {}
    )


def _objects_or_numbers(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
