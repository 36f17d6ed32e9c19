"""Segments: private, checked by whoever attaches, swept when their broker is dead."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import posix_ipc
import pytest

from actormq.shm import segment
from actormq.shm.segment import HEADER_BYTES, Segment, SegmentError, sweep


@pytest.fixture
def prefix() -> Iterator[str]:
    name = f"amqt{secrets.token_hex(4)}"
    yield name
    sweep(name)


def memory_fd(content: bytes) -> int:
    """Return a descriptor of shared memory that holds `content`."""
    memory = posix_ipc.SharedMemory(None, posix_ipc.O_CREX, size=max(1, len(content)), mode=0o600)
    memory.unlink()
    os.ftruncate(memory.fd, len(content))
    os.pwrite(memory.fd, content, 0)
    return memory.fd


def test_payload_is_shared_and_starts_as_zeros(prefix: str) -> None:
    """What one side stores the other side sees; the payload is aligned to a cache line."""
    created = Segment.create(prefix, "positions", 4096)
    assert bytes(created.view) == bytes(4096)
    attached = Segment.attach(os.dup(created.fd))
    created.view[:5] = b"hello"
    attached.view[-3:] = b"end"
    assert bytes(attached.view[:5]) == b"hello"
    assert bytes(created.view[-3:]) == b"end"
    assert attached.purpose == "positions"
    attached.close()
    created.close()


def test_segment_is_private(prefix: str) -> None:
    """Mode 0600 whatever the umask, and not inherited by other programs."""
    before = os.umask(0)
    try:
        created = Segment.create(prefix, "tables", 64)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.fstat(created.fd).st_mode) == 0o600
    assert not os.get_inheritable(created.fd)
    created.close()


def test_memory_is_reserved_at_creation(prefix: str) -> None:
    """A store into the segment can never find that there is no memory left (SIGBUS)."""
    created = Segment.create(prefix, "ring", 1 << 20)
    assert os.fstat(created.fd).st_blocks * 512 >= 1 << 20
    created.close()


def test_names_are_random_and_unlinked_once(prefix: str) -> None:
    """Two segments of one purpose do not meet; unlinking twice is no error."""
    first, second = (Segment.create(prefix, "append", 64) for _ in range(2))
    assert first.name != second.name
    assert len(first.name) <= 31
    name = first.name
    first.unlink()
    first.unlink()
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.SharedMemory(name)
    first.view[:1] = b"x"
    assert sweep(prefix) == [second.name]
    assert sweep(prefix) == []
    second.unlink()
    first.close()
    second.close()


def test_sweep_leaves_other_brokers_alone(prefix: str) -> None:
    """Only names of exactly this prefix go."""
    ours = Segment.create(prefix, "a", 64)
    theirs = Segment.create(prefix + "b", "a", 64)
    assert sweep(prefix) == [ours.name]
    assert sweep(prefix + "b") == [theirs.name]
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda header: b"NotOurs\0" + header[8:], "not ActorMQ's"),
        (lambda header: header[:8] + b"\x63\0\0\0" + header[12:], "layout 99"),
        (lambda header: header[:16] + (1 << 40).to_bytes(8, "little") + header[24:], "claims"),
        (lambda header: header[:20], "shorter"),
        (lambda header: b"", "shorter"),
    ],
)
def test_foreign_or_short_memory_is_refused(
    prefix: str, change: Callable[[bytes], bytes], sentence: str
) -> None:
    """Magic, version and length are checked before anything is believed."""
    created = Segment.create(prefix, "ring", 64)
    content = os.pread(created.fd, HEADER_BYTES + 64, 0)
    created.close()
    header = change(content[:HEADER_BYTES])
    fd = memory_fd(header + content[HEADER_BYTES:] if len(header) == HEADER_BYTES else header)
    with pytest.raises(SegmentError, match=sentence):
        Segment.attach(fd)
    os.close(fd)


def test_close_lets_views_in_use_live(prefix: str) -> None:
    """A slice that somebody still sends from stays readable after close."""
    created = Segment.create(prefix, "ring", 64)
    created.view[:4] = b"data"
    held = created.view[:4]
    created.close()
    created.close()
    assert bytes(held) == b"data"


def test_small_shared_memory_falls_back_to_anonymous(
    prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A container's 64 MB of /dev/shm: one log line, the same segment without a name, no leftovers."""
    reserve = os.posix_fallocate
    calls = []

    def full_once(fd: int, offset: int, size: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full_once)
    with caplog.at_level(logging.WARNING):
        created = Segment.create(prefix, "tables", 4096)
    assert created.name == ""
    assert len(caplog.records) == 1
    attached = Segment.attach(os.dup(created.fd))
    created.view[:1] = b"x"
    assert bytes(attached.view[:1]) == b"x"
    created.unlink()
    assert sweep(prefix) == []
    attached.close()
    created.close()


def test_no_memory_anywhere_is_one_sentence(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither named nor anonymous: SegmentError, no descriptor and no name left."""

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SegmentError, match="enlarge /dev/shm"):
        Segment.create(prefix, "tables", 4096)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert sweep(prefix) == []


def test_nothing_to_sweep_without_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where names cannot be listed (macOS) sweeping does nothing."""
    monkeypatch.setattr(segment, "_FOLDER", tmp_path / "absent")
    assert sweep("amq") == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what is locked")
def test_locked_memory_is_not_swapped(prefix: str) -> None:
    """Where it is allowed; otherwise that is said."""

    def locked_kb() -> int:
        return int(Path("/proc/self/status").read_text().partition("VmLck:")[2].split()[0])

    before = locked_kb()
    made = Segment.create(prefix, "pool", 256 * 1024)
    assert locked_kb() - before >= 256 if made.lock() else locked_kb() == before
    made.close()
    made.unlink()
    assert locked_kb() == before
