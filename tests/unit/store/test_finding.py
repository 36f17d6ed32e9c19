"""Messages found by place, by key and by time, in files that others write, cut and remove."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from dataclasses import replace

import pytest
from faults.disks import MemoryDisk
from faults.small_store import FOREVER_MS, Message, SmallStore, read_log
from hypothesis import given
from hypothesis import strategies as st

from actormq.kernels import records
from actormq.store import index
from actormq.store.consume_queue import Boundary
from actormq.store.finding import NO_TIME, Finder, Wanted

COUNT = 90


@pytest.fixture(scope="module")
def store() -> SmallStore:
    """Two log files, three queues; some records are shorter than a first read, some longer."""
    made = SmallStore(MemoryDisk())
    for number in range(COUNT):
        made.body_bytes = 500 if number % 7 else 90_000
        made.append([Message(number, "t", number % 3)])
    made.sync()
    made.dispatch()
    return made


@pytest.fixture(scope="module")
def log(store: SmallStore) -> list[records.Header]:
    found = read_log(store.disk, replace(store.found, log_end=store.end), store.config)
    assert len(found) == COUNT
    return found


def finder(store: SmallStore, log_min: int = 0, log_end: int | None = None) -> Finder:
    return Finder(store.disk, store.config, log_min, store.end if log_end is None else log_end)


def wanted(key: str, **changes: object) -> Wanted:
    fields: dict[str, object] = {
        "topic": "t", "key": key, "begin_ms": 0, "end_ms": FOREVER_MS, "messages_max": 64,
        "bytes_max": 1 << 30, "unique_only": False, "log_starts": {},
    }  # fmt: skip
    return Wanted(**(fields | changes))  # type: ignore[arg-type]


def test_every_message_is_found_by_its_place(store: SmallStore, log: list[records.Header]) -> None:
    """Whole, and nothing where none begins, before the log's beginning or behind its readable end."""
    middle, end = log[COUNT // 2].physical_offset, log[-1].physical_offset
    with finder(store, middle, end) as find:
        for header in log:
            for nearby in (-1, 0, 1, 60):
                found = find.message(header.physical_offset + nearby)
                readable = nearby == 0 and middle <= header.physical_offset < end
                assert (found is not None) == readable
                if found is not None:
                    place = header.physical_offset % store.config.log_file_bytes
                    base = header.physical_offset - place
                    view = store.reader.file(base)[place : place + header.total_size]
                    assert found[0] == bytes(view)
        assert find.message(-5) is find.message(1 << 62) is None


def test_every_message_is_found_by_its_key(store: SmallStore, log: list[records.Header]) -> None:
    """In its own topic, inside its time, alive."""
    with finder(store) as find:
        for number, header in enumerate(log):
            key, time, at = f"K{number:08d}", header.store_timestamp, header.physical_offset
            ((data,), reached) = find.by_key(wanted(key, begin_ms=time, end_ms=time))
            assert records.decode(data, 0).physical_offset == at
            assert reached == (log[-1].store_timestamp, log[-1].physical_offset)
            queue = {header.queue_id: at}
            assert find.by_key(wanted(key, log_starts=queue))[0] == [data]
            for changes in (
                {"topic": "u"},
                {"begin_ms": time + 1},
                {"end_ms": time - 1},
                {"messages_max": 0},
                {"unique_only": True},
                {"log_starts": {header.queue_id: at + 1}},
            ):
                assert find.by_key(wanted(key, **changes))[0] == [], changes


@given(
    st.integers(0, COUNT // 3), st.integers(0, COUNT // 3), st.integers(-20, 20), st.sampled_from(Boundary)
)
def test_the_offset_at_a_time(
    store: SmallStore, log: list[records.Header], one: int, other: int, near: int, boundary: Boundary
) -> None:
    """The first at or after, or the last at or before, as RocketMQ says, inside what the queue has."""
    low, high = sorted((one, other))
    times = [header.store_timestamp for header in log if header.queue_id == 1]
    time = times[min(one, len(times) - 1)] + near
    with finder(store) as find:
        found = find.offset_at("t", 1, low, high, time, boundary)
    if boundary is Boundary.LOWER:
        assert found == low + bisect_left(times[low:high], time)
    else:
        assert found == max(low, low + bisect_right(times[low:high], time) - 1)


def test_what_is_gone_is_not_found(store: SmallStore, log: list[records.Header]) -> None:
    """Log files, queue files, index files that the cleaner removed a moment ago: no error."""
    with finder(store) as find:
        assert find.store_time("t", 1, 5) == [one for one in log if one.queue_id == 1][5].store_timestamp
        assert find.store_time("t", 1, 10_000) == find.store_time("nobody", 0, 0) == NO_TIME
    disk = MemoryDisk()
    empty = Finder(disk, store.config, 0, store.end)
    assert empty.message(0) is None
    assert empty.by_key(wanted("K00000001")) == ([], (0, 0))


def test_damage_is_not_served(store: SmallStore, log: list[records.Header]) -> None:
    """A body with another checksum, a size that reaches over the file's end."""
    header = log[3]
    data = store.disk.names[store.log.path(0)].data
    for at, size in ((header.physical_offset, 4), (header.body_at, 1)):
        before = bytes(data[at : at + size])
        data[at : at + size] = b"\x7f" * size
        with finder(store) as find:
            assert find.message(header.physical_offset) is None
            assert find.by_key(wanted("K00000003"))[0] == []
        data[at : at + size] = before
    with finder(store) as find:
        assert find.message(header.physical_offset) is not None


def test_a_file_that_grows_meanwhile(store: SmallStore) -> None:
    """A slot that is newer than the header that was read: the older entries are found all the same."""
    config = store.config
    name = store.disk.listdir(config.root / index.FOLDER)[-1]
    data = store.disk.names[config.root / index.FOLDER / name].data
    key = f"K{COUNT - 1:08d}"
    number = struct.unpack_from(">i", data, 36)[0]
    struct.pack_into(">i", data, 36, number - 5)
    with finder(store) as find:
        assert len(find.by_key(wanted(key))[0]) == 1
    struct.pack_into(">i", data, 36, number)
