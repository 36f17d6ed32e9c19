"""The log's end near the end of a file: whatever room is left there, nothing is lost, doubled or misread.

A record that would leave fewer than 8 bytes for the blank record belongs to the next file.  Crashes before
the blank, behind it, inside and behind the next file's first record; then one more message, and a crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from faults.disks import MemoryDisk
from faults.small_store import (
    BASE_MS,
    DELAYS,
    ROOT,
    Message,
    SmallStore,
    check_index,
    check_queues,
    read_log,
    small_config,
)

from actormq.kernels import records
from actormq.store import checkpoint
from actormq.store.recovery import recover

BLANK_BYTES = 8
SHORT = len(Message(0, "t", 0).key)
OVERHEAD = records.record_size(8, 8, 1, len(b"KEYS\1K00000000\2"), 0)
NEXT_BYTES = OVERHEAD + SHORT
LEFT = range(BLANK_BYTES, NEXT_BYTES + 2 * BLANK_BYTES + 1)
EDGES = [left for left in LEFT if left - BLANK_BYTES < 5 or abs(left - NEXT_BYTES - BLANK_BYTES) < 4]
CRASHES = ("before the blank", "behind the blank", "inside the next record", "behind the next record")


def filled(left: int) -> SmallStore:
    """Return a store whose file has `left` bytes left behind its last record."""
    store = SmallStore(MemoryDisk(), small_config(), 290_000)
    store.append([Message(number, "t", number % 2) for number in range(3)])
    store.checkpoint()
    store.body_bytes = store.config.log_file_bytes - store.end - OVERHEAD - left
    store.append([Message(3, "t", 1)])
    assert store.end == store.config.log_file_bytes - left
    store.body_bytes = SHORT
    return store


def crash(store: SmallStore, left: int, where: str) -> int:
    """Go on as far as the crash; return how many messages are then in the log."""
    fits = left >= NEXT_BYTES + BLANK_BYTES
    if where == "behind the blank" and not fits:
        blank = bytearray(BLANK_BYTES)
        records.encode_blank(blank, 0, left)
        store._write(store.end, blank)
    elif where in ("inside the next record", "behind the next record"):
        store.append([Message(4, "t", 0)])
        assert (store.end < store.config.log_file_bytes) == fits
        if where == "behind the next record":
            return 5
        store.log.zero(store.end - NEXT_BYTES // 2, store.end)
    return 4


def numbers(store: SmallStore, *, ours: bool) -> list[int]:
    """Recover, by our checkpoint or by RocketMQ's rule alone; return what is in the log, checked."""
    if not ours:
        known = checkpoint.read(store.disk, ROOT / checkpoint.NAME)
        theirs = checkpoint.encode(replace(known, log_timestamp=BASE_MS, queues_timestamp=BASE_MS))[:40]
        store.disk.names[ROOT / checkpoint.NAME].data[:] = theirs.ljust(4096, b"\0")
    found = recover(store.disk, store.config, wall_ms=BASE_MS, pid=1, delay_ms=DELAYS)
    log = read_log(store.disk, found, store.config)
    check_queues(store.disk, found, store.config, log)
    check_index(store.disk, store.config, log)
    return [int(header.properties[6:14]) for header in log]


def check(lefts: Sequence[int], where: str, ours: bool) -> None:
    for left in lefts:
        store = filled(left)
        kept = crash(store, left, where)
        assert numbers(store, ours=ours) == list(range(kept)), left
        second = SmallStore(store.disk, store.config, SHORT)
        second.append([Message(9, "t", 1)])
        assert numbers(second, ours=ours) == [*range(kept), 9], left


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("where", CRASHES)
def test_the_edges_of_a_file(where: str, ours: bool) -> None:
    """The fewest bytes that can be left, and those around what the next record just fits into."""
    check(EDGES, where, ours)


@pytest.mark.soak
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("where", CRASHES)
def test_whatever_is_left(where: str, ours: bool) -> None:
    """All of them."""
    check(LEFT, where, ours)
