"""Recovery by its three ways, what it refuses, and damage that is no torn tail."""

from __future__ import annotations

import errno
import struct
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults.disks import FailingDisk, MemoryDisk, RecordingDisk
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
from store_rig import Memory, StoreWriter

from actormq.config import FlushMode
from actormq.errors import StoreForeign
from actormq.kernels import records
from actormq.store import checkpoint, marks, tables
from actormq.store.checkpoint import Checkpoint
from actormq.store.commit_log import LogReader, file_name
from actormq.store.consume_queue import QueueFiles
from actormq.store.log_scan import next_record
from actormq.store.queue_bounds import find_bounds
from actormq.store.recovery import RecoveredStore, recover

FILE = 1 << 20
LOG = ROOT / "commitlog"


def fill(disk: Any, count: int = 20, body_bytes: int = 200_000, **options: Any) -> SmallStore:
    """A store with `count` messages over some files, all durable and dispatched."""
    store = SmallStore(disk, small_config(**options), body_bytes)
    store.append([Message(number, "t", number % 2) for number in range(count)])
    store.checkpoint()
    store.dispatch()
    store.checkpoint()
    return store


def again(disk: Any, config: Any = None, **options: Any) -> RecoveredStore:
    return recover(disk, config or small_config(), wall_ms=BASE_MS, pid=1, delay_ms=DELAYS, **options)


def numbers(disk: Any, found: RecoveredStore, config: Any = None) -> list[int]:
    """Return the messages in the log; checks queues and index."""
    config = config or small_config()
    log = read_log(disk, found, config)
    check_queues(disk, found, config, log)
    check_index(disk, config, log)
    return [int(header.properties[6:14]) for header in log]


def log_bytes(disk: MemoryDisk, number: int) -> bytearray:
    return disk.names[LOG / file_name(number * FILE)].data


def as_rocketmq_left_it(disk: MemoryDisk, **times: int) -> None:
    """Take away what only we write."""
    if disk.exists(ROOT / marks.CLEAN):
        disk.unlink(ROOT / marks.CLEAN)
    known = checkpoint.read(disk, ROOT / checkpoint.NAME)
    theirs = checkpoint.encode(replace(known, **times))[:40]
    disk.names[ROOT / checkpoint.NAME].data[:] = theirs.ljust(4096, b"\0")


def test_an_empty_folder_is_a_new_store() -> None:
    disk = MemoryDisk()
    found = again(disk)
    assert (found.log_min, found.log_end, found.queues, found.topics) == (0, 0, {}, [])
    assert found.clean
    assert marks.has_abort(disk, ROOT)


def test_after_a_clean_stop_nothing_is_looked_through() -> None:
    disk = MemoryDisk()
    fill(disk).stop()
    recording = RecordingDisk(disk)
    found = again(recording)
    assert found.clean
    assert found.scanned_bytes == 0
    assert numbers(disk, found) == list(range(20))
    assert marks.has_abort(disk, ROOT)
    assert marks.read_clean(disk, ROOT) is None
    assert ("fdatasync", (LOG / file_name(found.log_end // FILE * FILE),)) in recording.calls
    assert ("fsync_dir", (LOG,)) in recording.calls


@pytest.mark.parametrize("change", ["tail", "next file", "damaged mark"])
def test_a_mark_that_does_not_fit_is_not_believed(change: str) -> None:
    """Somebody has written behind our end, or the mark itself is damaged."""
    disk = MemoryDisk()
    store = fill(disk)
    store.stop()
    end = store.end
    last = end // FILE
    if change == "tail":
        records.encode(
            log_bytes(disk, last),
            end % FILE,
            queue_id=0,
            queue_offset=10,
            physical_offset=end,
            store_timestamp=BASE_MS * 2,
            store_host=bytes(8),
            topic=b"t",
            body=b"more",
            properties=b"KEYS\1K00000020\2",
        )
    elif change == "next file":
        disk.extend(disk.open(LOG / file_name((last + 1) * FILE), create=True), FILE)
        disk.names[LOG / file_name((last + 1) * FILE)].data[:3] = b"abc"
    else:
        disk.names[ROOT / marks.CLEAN].data[20] ^= 1
    found = again(disk)
    assert found.scanned_bytes > 0
    expected = list(range(21 if change == "tail" else 20))
    log = read_log(disk, found, small_config())
    assert [int(header.properties[6:14]) for header in log] == expected
    check_queues(disk, found, small_config(), log)


def test_a_log_without_its_first_file_is_refused() -> None:
    """The mark says where the log began; who removed the file on purpose removes the mark, too."""
    disk = MemoryDisk()
    fill(disk).stop()
    disk.unlink(LOG / file_name(0))
    with pytest.raises(StoreForeign, match=f"{file_name(0)} is missing: the log began there"):
        again(disk)
    assert not marks.has_abort(disk, ROOT)
    disk.unlink(ROOT / marks.CLEAN)
    found = again(disk)
    log = read_log(disk, found, small_config())
    assert [int(header.properties[6:14]) for header in log] == list(range(5, 20))
    check_queues(disk, found, small_config(), log)


def test_what_was_appended_but_not_dispatched_is_dispatched() -> None:
    disk = MemoryDisk()
    store = fill(disk)
    store.append([Message(number, "u", 5) for number in range(20, 30)])
    found = again(disk)
    assert not found.clean
    assert numbers(disk, found) == list(range(30))
    assert found.queues["u", 5].max == 10
    assert found.topics == ["t", "u"]


def test_what_is_looked_at_is_read_ahead() -> None:
    """After a crash: of each topic one queue while its folder is listed, then every queue, its first file."""
    disk = MemoryDisk()
    fill(disk).append([Message(number, "u", 5) for number in range(20, 30)])
    again(disk)  # dispatches them
    asked: list[list[str]] = []

    class Asked(RecordingDisk):
        def ahead(self, folder: Path, names: list[str], size: int) -> AbstractContextManager[None]:
            assert size > 0
            if folder.name == "consumequeue":
                asked.append([name.removesuffix(f"/{file_name(0)}") for name in names])
            return nullcontext()

    again(Asked(disk))
    assert asked == [["t/0", "u/0"], ["t/0", "t/1", "u/5"]]


def test_a_torn_tail_is_cut() -> None:
    """Half a record, then half a file of garbage: gone, zeroed, later files unlinked."""
    disk = MemoryDisk()
    store = fill(disk, 18)
    end = store.end
    store.append([Message(number, "t", 0) for number in range(18, 26)])
    log_bytes(disk, end // FILE)[end % FILE + 500] ^= 1
    found = again(disk)
    assert found.log_end == end
    assert numbers(disk, found) == list(range(18))
    assert store.log.bases()[-1] == end // FILE * FILE
    assert not any(log_bytes(disk, end // FILE)[end % FILE :])


def test_damage_before_what_was_durable_is_passed_over_and_named() -> None:
    """Cutting there would throw away what was acknowledged: the rest is served."""
    disk = MemoryDisk()
    store = fill(disk)
    known = replace(store.known, log_flushed=store.end, queues_flushed=0, index_flushed=0)
    checkpoint.write(disk, ROOT / checkpoint.NAME, known)
    log_bytes(disk, 1)[300] ^= 1
    config = small_config()
    found = again(disk)
    assert found.log_end == store.end
    (note,) = [note for note in found.notes if "damaged" in note]
    assert file_name(FILE) in note
    assert "BAD_CRC" in note
    reader = QueueFiles(disk, ROOT / "consumequeue", config.queue_file_entries)
    assert {queue: extent.max for queue, extent in found.queues.items()} == {("t", 0): 10, ("t", 1): 10}
    assert reader.bases("t", 0) == [0]


def test_damage_outside_the_body_is_seen_where_records_have_crcs(tmp_path: Path) -> None:
    """A letter of a topic: the body's CRC knows nothing of it."""
    memory = Memory(tmp_path)
    memory.config = replace(memory.config, flush=FlushMode.SYNC)
    memory.log_files().create(0)
    memory.add_topic("topic")
    writer = StoreWriter(memory)
    done = [writer.put(body=b"body", properties=b"A\x01b\x02") for _ in range(3)]
    file = tmp_path / "commitlog" / file_name(0)
    log = bytearray(file.read_bytes())
    assert records.decode(log, done[1].log_offset).properties.startswith(b"A\x01b\x02__CRC32#\x01")
    log[log.index(b"topic", done[1].log_offset)] ^= 1
    file.write_bytes(log)
    found = recover(memory.disk, memory.config, wall_ms=BASE_MS, pid=1, delay_ms=DELAYS)
    assert found.log_end == done[1].log_offset


def test_a_crc_may_be_demanded() -> None:
    """As RocketMQ's forceVerifyPropCRC: then records without one are damaged."""
    disk = MemoryDisk()
    store = fill(disk, 3)
    known = replace(store.known, queues_flushed=0, index_flushed=0)
    checkpoint.write(disk, ROOT / checkpoint.NAME, known)
    found = again(disk, small_config(demand_record_crc=True))
    assert "BAD_CRC" in found.notes[0]
    assert {extent.max for extent in found.queues.values()} == {0}


@pytest.mark.parametrize("zeros", [0, 150_000])
def test_a_damaged_last_record_keeps_its_place(zeros: int) -> None:
    """Its body may well be zeros: that is no store that was copied in part."""
    disk = MemoryDisk()
    store = fill(disk, 5)
    known = replace(store.known, queues_flushed=0, index_flushed=0)
    checkpoint.write(disk, ROOT / checkpoint.NAME, known)
    last = store.reader.file(0)
    start = records.scan(last, 0, 0).last_start
    log_bytes(disk, 0)[start + 300] ^= 1
    log_bytes(disk, 0)[start + 1000 : start + 1000 + zeros] = bytes(zeros)
    found = again(disk)
    assert found.log_end == store.end
    assert any("damaged" in note for note in found.notes)


def test_next_record_finds_only_records_of_their_place() -> None:
    """A record inside another's body, or moved, is none."""
    disk = MemoryDisk()
    store = fill(disk, 3, 1000)
    inner = bytes(store.reader.view(0, 1200))
    size = records.decode(store.reader.file(0), 0).total_size
    log_bytes(disk, 0)[size + 100 : size + 100 + 900] = inner[:900]
    assert next_record(store.reader, [0], 1) == 2 * size
    assert next_record(store.reader, [0], 2 * size) == 2 * size
    assert next_record(store.reader, [0], 2 * size + 1) is None


# RocketMQ was here.


def test_a_clean_stop_of_rocketmq() -> None:
    """No mark of ours: looked through from the last file that the queues have reached; all is kept."""
    disk = MemoryDisk()
    store = fill(disk)
    store.stop()
    as_rocketmq_left_it(disk)
    found = again(disk)
    assert found.clean
    assert numbers(disk, found) == list(range(20))
    assert 0 < found.scanned_bytes <= FILE


def test_rocketmq_left_records_that_its_queues_lack() -> None:
    disk = MemoryDisk()
    store = fill(disk)
    store.append([Message(number, "t", 0) for number in range(20, 28)])
    store.sync()
    as_rocketmq_left_it(disk)
    disk.unlink(ROOT / marks.ABORT)
    found = again(disk)
    assert numbers(disk, found) == list(range(28))


def test_rocketmq_was_killed() -> None:
    """From the last file that begins before the checkpoint's times, everything is dispatched again."""
    disk = MemoryDisk()
    store = fill(disk, 40)
    stamp = records.decode(store.reader.file(2 * FILE), 0).store_timestamp
    as_rocketmq_left_it(
        disk, log_timestamp=stamp + 3000, queues_timestamp=stamp + 3001, index_timestamp=1 << 60
    )
    for queue in (0, 1):
        store.queue_files.cut("t", queue, 15)
    found = again(disk)
    assert not found.clean
    assert numbers(disk, found) == list(range(40))
    assert found.scanned_bytes < store.end - FILE


def test_rocketmq_was_killed_and_the_tail_is_torn() -> None:
    disk = MemoryDisk()
    store = fill(disk, 40)
    as_rocketmq_left_it(disk, log_timestamp=BASE_MS, queues_timestamp=BASE_MS)
    start = records.scan(store.reader.file(FILE), 0, FILE).last_start
    log_bytes(disk, 1)[start + 400] ^= 1
    found = again(disk)
    assert found.log_end == FILE + start
    kept = numbers(disk, found)
    assert kept == list(range(len(kept)))


def test_entries_that_the_log_does_not_bear_out_make_all_queues_new() -> None:
    """RocketMQ leaves stale entries behind a cut; one that names another message is not believed."""
    disk = MemoryDisk()
    store = fill(disk)
    store.stop()
    as_rocketmq_left_it(disk)
    entry = bytes(disk.names[ROOT / "consumequeue" / "t" / "0" / file_name(0)].data[:20])
    disk.names[ROOT / "consumequeue" / "t" / "0" / file_name(0)].data[200:220] = entry
    found = again(disk)
    assert numbers(disk, found) == list(range(20))
    assert any("made anew" in note for note in found.notes)


# Queues and index.


def test_missing_queue_files_are_made_anew() -> None:
    disk = MemoryDisk()
    store = fill(disk)
    store.queue_files.remove_queue("t", 0)
    tables.save(disk, ROOT / "config" / tables.TOPICS, {"topicConfigTable": {"t": {}}})
    store.append([Message(20, "t", 0)])
    found = again(disk)
    assert numbers(disk, found) == list(range(21))


def test_rebuild_makes_queues_and_index_from_the_log() -> None:
    disk = MemoryDisk()
    store = fill(disk)
    store.stop()
    for path in [path for path in disk.names if "consumequeue" in path.parts or "index" in path.parts]:
        if "index" in path.parts:
            disk.names[path].data[40:] = bytes(len(disk.names[path].data) - 40)
        else:
            disk.unlink(path)
    found = again(disk, rebuild=True)
    assert numbers(disk, found) == list(range(20))


def test_queue_offsets_are_never_used_again() -> None:
    """All messages of a queue have expired: the next one still gets the next offset."""
    disk = MemoryDisk()
    store = fill(disk, 20)
    store.append([Message(number, "other", 0) for number in range(20, 40)])
    store.checkpoint()
    store.dispatch()
    store.checkpoint()
    first = records.scan(store.reader.file(0), 0, 0)
    assert first.reason == records.ScanEnd.BLANK
    for number in range(4):
        store.log.remove(number * FILE)
    found = again(disk)
    assert found.log_min == 4 * FILE
    extent = found.queues["t", 0]
    assert (extent.min, extent.max) == (10, 10)
    store = SmallStore(disk, small_config(), 200_000)
    store.append([Message(99, "t", 0)])
    found = again(disk)
    assert (found.queues["t", 0].min, found.queues["t", 0].max) == (10, 11)


def trimmed_and_lost(clean: bool, lost: int) -> MemoryDisk:
    """Return a store without its first log file, and without the folders of some queues, or of them all."""
    disk = MemoryDisk()
    store = fill(disk, 20)
    store.log.remove(0)
    if clean:
        SmallStore(disk).stop()
    files = QueueFiles(disk, ROOT / "consumequeue", small_config().queue_file_entries)
    for queue_id in range(lost):
        files.remove_queue("t", queue_id)
    if lost == 2:
        disk.remove_folder(files.root / "t")
        disk.remove_folder(files.root)
    return disk


def check_offsets_go_on(disk: MemoryDisk, found: RecoveredStore) -> None:
    log = read_log(disk, found, small_config())
    first = {header.queue_id: header.queue_offset for header in reversed(log)}
    assert all(offset > 0 for offset in first.values())
    assert {number: (extent.min, extent.max) for (_, number), extent in found.queues.items()} == {
        number: (offset, 10) for number, offset in first.items()
    }
    check_queues(disk, found, small_config(), log)
    check_index(disk, small_config(), log)


# After a crash only the loss of all is noticed.
LOSSES = pytest.mark.parametrize(("clean", "lost"), [(True, 1), (True, 2), (False, 2)])


@LOSSES
def test_offsets_go_on_where_the_queues_were_lost_and_the_log_was_trimmed(clean: bool, lost: int) -> None:
    """The records that are left say which offsets they have; those before them stay used up."""
    disk = trimmed_and_lost(clean, lost)
    found = again(disk)
    assert any("queues are missing" in note for note in found.notes)
    check_offsets_go_on(disk, found)
    store = SmallStore(disk, small_config(), 200_000)
    store.append([Message(99, "t", 0)])
    assert again(disk).queues["t", 0].max == 11


@LOSSES
def test_lost_queues_are_noticed_whenever_recovery_dies(clean: bool, lost: int) -> None:
    """After each of its calls that change something."""
    for number in range(1, 1000):
        disk = trimmed_and_lost(clean, lost)
        failing = FailingDisk(disk, number, errno.EIO)
        try:
            again(failing)
        except OSError:
            check_offsets_go_on(disk, again(disk))
        else:
            assert number > 10
            return


def test_a_topic_that_was_deleted_and_made_again_begins_at_zero() -> None:
    disk = MemoryDisk()
    store = fill(disk)
    store.append([Message(20, "t", 0)])
    store.next_offset["t", 0] = 0
    store.append([Message(21, "t", 0)])
    found = again(disk)
    assert (found.queues["t", 0].min, found.queues["t", 0].max) == (0, 1)


def test_a_deleted_topic_does_not_make_all_queues_new() -> None:
    """The last messages of a topic that is no more do not send recovery through the whole log."""
    disk = MemoryDisk()
    store = fill(disk, 40)
    store.append([Message(40, "t", 0)])
    store.queue_files.remove_queue("t", 0)
    store.queue_files.remove_queue("t", 1)
    disk.remove_folder(ROOT / "consumequeue" / "t")
    found = again(disk)
    assert found.scanned_bytes < FILE
    assert (found.queues["t", 0].min, found.queues["t", 0].max) == (20, 21)


def delete(store: SmallStore, topic: str, queues: int = 2) -> int:
    """Delete a topic as coordinator and dispatcher do; return where its messages end."""
    for queue_id in range(queues):
        store.queue_files.remove_queue(topic, queue_id)
        store.next_offset.pop((topic, queue_id), None)
    store.disk.remove_folder(ROOT / "consumequeue" / topic)
    return store.end


@pytest.mark.parametrize("rebuild", [False, True])
def test_the_dead_do_not_return(rebuild: bool) -> None:
    """Messages of a deleted topic are in the log, some not yet dispatched: no queue is made of them."""
    disk = MemoryDisk()
    store = fill(disk)
    store.append([Message(number, "t", 0) for number in range(20, 25)] + [Message(25, "u", 0)])
    dead = delete(store, "t")
    store.append([Message(26, "u", 0)])
    found = again(disk, deleted={"t": dead}, rebuild=rebuild)
    assert list(found.queues) == [("u", 0)]
    assert (found.queues["u", 0].min, found.queues["u", 0].max) == (0, 2)
    assert found.deleted == {"t": dead}


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_only_the_new_topics_messages_are_in_its_queues(rebuild: bool, count: int) -> None:
    """Made again under its name, before a crash, with or without messages."""
    disk = MemoryDisk()
    store = fill(disk)
    store.append([Message(number, "t", 0) for number in range(20, 25)])
    dead = delete(store, "t")
    store.append([Message(30 + number, "t", 0) for number in range(count)])
    found = again(disk, deleted={"t": dead}, rebuild=rebuild)
    expected = {("t", 0): (0, count)} if count else {}
    assert {queue: (extent.min, extent.max) for queue, extent in found.queues.items()} == expected
    files = QueueFiles(disk, ROOT / "consumequeue", 100)
    bounds = find_bounds(files, LogReader(disk, LOG, FILE), "t", 0, 0, 1 << 60)
    assert (bounds.max, bounds.sound) == (count, True)


@pytest.mark.parametrize("clean", [False, True])
def test_queue_files_of_the_dead_go(clean: bool) -> None:
    """The dispatcher had not come to it; after a clean stop nothing else is looked at."""
    disk = MemoryDisk()
    store = fill(disk)
    dead = store.end
    if clean:
        del store.next_offset["t", 0], store.next_offset["t", 1]
        store.stop()
    else:
        store.append([Message(20, "u", 0)])
    found = again(disk, deleted={"t": dead})
    assert ("t", 0) not in found.queues or clean
    assert not disk.listdir(ROOT / "consumequeue" / "t")


def test_a_deletion_that_had_only_begun_is_ended() -> None:
    """Nobody may have used the name since: all that the log has of it is dead."""
    disk = MemoryDisk()
    store = fill(disk)
    store.append([Message(20, "t", 0), Message(21, "u", 0)])
    found = again(disk, deleted={"t": tables.PENDING})
    assert list(found.queues) == [("u", 0)]
    assert found.deleted == {"t": found.log_end}


def test_what_comes_after_a_lost_tail_is_not_dead() -> None:
    """The log was cut before the place that was noted: the new topic's messages come there."""
    disk = MemoryDisk()
    store = fill(disk)
    end = store.end
    found = again(disk, deleted={"t": end + 5_000})
    assert found.deleted == {"t": end}
    store = SmallStore(disk, small_config(), 200_000)
    store.append([Message(20, "t", 0)])
    found = again(disk, deleted=found.deleted)
    assert (found.queues["t", 0].min, found.queues["t", 0].max) == (0, 1)


def test_a_deletion_is_forgotten_with_its_messages() -> None:
    disk = MemoryDisk()
    store = fill(disk, 40)
    for number in range(4):
        store.log.remove(number * FILE)
    assert again(disk, deleted={"x": 4 * FILE, "y": 4 * FILE + 1}).deleted == {"y": 4 * FILE + 1}


def test_names_that_would_leave_the_store_are_in_no_queue() -> None:
    disk = MemoryDisk()
    store = fill(disk)
    store.append(
        [Message(20, "../../etc", 0), Message(21, "t", -3), Message(22, "t", 0), Message(23, "x", 0)]
    )
    log_bytes(disk, 4)[log_bytes(disk, 4).rfind(b"\x01x\0") + 1] = 0xFF
    disk.mkdir(ROOT / "consumequeue" / "bad-\udcff" / "0")
    found = again(disk)
    assert {queue[0] for queue in found.queues} == {"t"}
    assert found.queues["t", 0].max == 11
    assert sum("in no queue" in note for note in found.notes) == 3
    assert all(ROOT in [path, *path.parents] for path in [*disk.names, *disk.folders] if len(path.parts) > 1)


def test_prepared_and_rolled_back_messages_have_no_entry() -> None:
    disk = MemoryDisk()
    store = SmallStore(disk, small_config(index_enabled=False), 100)
    store.append([Message(0, "t", 0), Message(1, "t", 0)])
    struct.pack_into(">i", log_bytes(disk, 0), 36, 0x4)
    struct.pack_into(">q", log_bytes(disk, 0), records.decode(store.reader.file(0), 0).total_size + 20, 0)
    found = again(disk, small_config(index_enabled=False))
    assert found.queues["t", 0].max == 1
    assert not disk.exists(ROOT / "index")


def test_delivery_times_are_restored() -> None:
    disk = MemoryDisk()
    store = SmallStore(disk, small_config(), 100)
    message = Message(0, "SCHEDULE_TOPIC_XXXX", 1)
    store.append([message])
    view = log_bytes(disk, 0)
    header = records.decode(view, 0)
    fields = {name: getattr(header, name) for name in ("queue_id", "queue_offset", "physical_offset")}
    records.encode(
        view,
        0,
        **fields,
        store_timestamp=BASE_MS,
        store_host=header.store_host,
        topic=header.topic,
        body=b"",
        properties=b"DELAY\x012\x02",
    )
    found = again(disk)
    files = QueueFiles(disk, ROOT / "consumequeue", 100)
    data = disk.names[files.root / "SCHEDULE_TOPIC_XXXX" / "1" / file_name(0)].data
    assert struct.unpack_from(">q", data, 12) == (BASE_MS + DELAYS[1],)
    assert found.queues["SCHEDULE_TOPIC_XXXX", 1].max == 1


# What is refused, and left as it was.


def contents(disk: MemoryDisk) -> dict[Path, bytes]:
    return {path: bytes(inode.data) for path, inode in disk.names.items()}


def half_copied(disk: MemoryDisk) -> None:
    store = fill(disk)
    checkpoint.write(disk, ROOT / checkpoint.NAME, replace(store.known, queues_flushed=0))
    log_bytes(disk, 1)[600_000:] = bytes(FILE - 600_000)
    for number in (2, 3):
        log_bytes(disk, number)[:] = bytes(FILE)


def last_file_missing(disk: MemoryDisk) -> None:
    store = fill(disk)
    store.log.remove(3 * FILE)


def middle_file_missing(disk: MemoryDisk) -> None:
    fill(disk).log.remove(FILE)


def another_file_size(disk: MemoryDisk) -> None:
    fill(disk)
    disk.names[LOG / file_name(0)].data.append(0)


def foreign_file(disk: MemoryDisk) -> None:
    fill(disk)
    disk.open(LOG / "README", create=True)


def queues_without_log(disk: MemoryDisk) -> None:
    fill(disk)
    for path in [path for path in disk.names if path.parent == LOG]:
        disk.unlink(path)


def another_queue_size(disk: MemoryDisk) -> None:
    fill(disk)
    disk.names[ROOT / "consumequeue" / "t" / "0" / file_name(0)].data.append(0)


def another_index_size(disk: MemoryDisk) -> None:
    store = fill(disk)
    store.index.close()
    disk.names[ROOT / "index" / store.index.name].data.append(0)


def long_checkpoint(disk: MemoryDisk) -> None:
    fill(disk)
    disk.extend(disk.open(ROOT / checkpoint.NAME), 10_000)


def hostile_topics(disk: MemoryDisk) -> None:
    fill(disk)
    disk.mkdir(ROOT / "config")
    fd = disk.open(ROOT / "config" / tables.TOPICS, create=True)
    disk.pwritev(fd, [b'{"topicConfigTable":' * 5000], 0)


REFUSED = [
    (half_copied, r"00000000000001048576.*copied in part"),
    (last_file_missing, r"copied in part"),
    (middle_file_missing, r"has no file 00000000000001048576"),
    (another_file_size, r"1048577 bytes"),
    (foreign_file, r"README"),
    (queues_without_log, r"no commit log"),
    (another_queue_size, r"2001 bytes"),
    (another_index_size, r"bytes, not"),
    (long_checkpoint, r"10000 bytes"),
    (hostile_topics, r"topics\.json"),
]


@pytest.mark.parametrize(("damage", "sentence"), REFUSED, ids=[each.__name__ for each, _ in REFUSED])
def test_what_is_foreign_is_refused_and_not_touched(damage: Any, sentence: str) -> None:
    """One sentence with the file; nothing is repaired by deleting it."""
    disk = MemoryDisk()
    damage(disk)
    before = contents(disk)
    with pytest.raises(StoreForeign, match=sentence):
        again(disk)
    assert contents(disk) == before


def test_leftovers_of_files_being_made_go() -> None:
    disk = MemoryDisk()
    fill(disk)
    disk.open(ROOT / "making-commitlog", create=True)
    disk.open(LOG / (file_name(9 * FILE) + ".making"), create=True)
    again(disk)
    assert not [path for path in disk.names if "making" in path.name]


def test_the_checkpoint_says_what_recovery_made_durable() -> None:
    disk = MemoryDisk()
    store = fill(disk)
    store.append([Message(20, "t", 0)])
    found = again(disk)
    known = checkpoint.read(disk, ROOT / checkpoint.NAME)
    assert known == found.checkpoint
    assert known.log_flushed == known.queues_flushed == known.index_flushed == found.log_end
    assert (known.log_timestamp, known.queues_timestamp) == (store.now_ms, store.now_ms)
    assert known.index_next == 22
    assert isinstance(known, Checkpoint)
