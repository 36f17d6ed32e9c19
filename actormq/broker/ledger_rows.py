"""What the coordinator keeps in its ledger: one row per committed offset, one per lock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from actormq.broker.ledger import Row
from actormq.broker.locks import LockRow, Locks, QueueKey
from actormq.broker.offsets import OffsetKey, Offsets

_OFFSET: Final = "o"
_LOCK: Final = "l"


def offset_row(key: OffsetKey, offset: int) -> Row:
    """Return the row of one committed offset."""
    return Row(msgspec.msgpack.encode((_OFFSET, *key)), offset, 0)


def lock_row(lock: LockRow) -> Row:
    """Return the row of one lock."""
    key = (_LOCK, lock.group, *lock.queue, lock.client_id)
    return Row(msgspec.msgpack.encode(key), 0, lock.renewed_ms)


def ledger_rows(offsets: Offsets, locks: Locks) -> Iterator[Row]:
    """Yield all that a ledger must know."""
    for key, offset in offsets.rows():
        yield offset_row(key, offset)
    for lock in locks.rows():
        yield lock_row(lock)


def restore_row(row: Row, offsets: Offsets, locks: Locks) -> None:
    """Take over one row."""
    kind, *parts = msgspec.msgpack.decode(row.key)
    if kind == _OFFSET:
        offsets.restore(OffsetKey(*parts), row.value)
    else:
        group, topic, queue_id, client_id = parts
        locks.restore(LockRow(group, QueueKey(topic, queue_id), client_id, row.stamp))
