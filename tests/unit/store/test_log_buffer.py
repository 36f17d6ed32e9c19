"""The store pool's ring: what was appended is what is committed, wherever it lies."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actormq.store.commit_log import LogFiles
from actormq.store.disk import RealDisk
from actormq.store.log_buffer import LogBuffer

FILE_BYTES = 1 << 16
CAPACITY = 5_000
"""No divisor of the file's size: pieces lie anywhere."""


@pytest.fixture
def files(tmp_path: Path) -> LogFiles:
    made = LogFiles(RealDisk(), tmp_path, FILE_BYTES)
    for number in range(3):
        made.create(number * FILE_BYTES)
    return made


def content(files: LogFiles) -> bytes:
    return b"".join(files.path(base).read_bytes() for base in files.bases())


def test_files_get_what_was_appended_over_laps_and_file_ends(files: LogFiles) -> None:
    chance = random.Random(1)
    memory = memoryview(bytearray(chance.randbytes(CAPACITY)))
    buffer, expected, written = LogBuffer(memory, 0), bytearray(), 0
    while len(expected) < 2 * FILE_BYTES + 100:
        room = CAPACITY - (len(expected) - written)
        parts = [chance.randbytes(chance.randrange(room // 2 + 1)) for _ in range(2)]
        assert buffer.append(len(expected), parts) == len(expected) + sum(map(len, parts))
        expected += b"".join(parts)
        step = chance.randrange(len(expected) - written + 1)
        buffer.commit(files, written, written + step)
        written += step
    buffer.commit(files, written, len(expected))
    assert content(files)[: len(expected)] == expected


def test_gaps_read_as_zeros(files: LogFiles) -> None:
    """Behind a blank record nothing of an earlier lap may end up in the file."""
    buffer = LogBuffer(memoryview(bytearray(b"\xff" * CAPACITY)), 100)
    buffer.append(100, [b"blank"])
    buffer.append(1_000, [b"next"])
    buffer.commit(files, 100, 1_004)
    assert content(files)[100:1_004] == b"blank".ljust(900, b"\0") + b"next"


def test_a_successor_finds_what_the_dead_one_left(files: LogFiles) -> None:
    memory = memoryview(bytearray(CAPACITY))
    LogBuffer(memory, 0).append(0, [b"first"])
    later = LogBuffer(memory, 5)
    later.append(5, [b"second"])
    later.commit(files, 0, 11)
    later.commit(files, 3, 11)
    assert content(files)[:11] == b"firstsecond"
