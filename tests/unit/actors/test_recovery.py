"""Recovery: what the others start from is what the disk has, and no more than that."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults.disks import FailingDisk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_rig import FILE_BYTES, ROWS, Died, Memory, StoreWriter, killing

from actormq.actors import recovery
from actormq.actors.dispatcher import Dispatcher
from actormq.actors.forkserver import BROKER_MODULES
from actormq.actors.recovery import prepare
from actormq.broker.tables import Tables
from actormq.config import FlushMode
from actormq.errors import ActorMQError, StoreForeign
from actormq.message import SCHEDULE_TOPIC
from actormq.shm.positions import Position, slot_of
from actormq.shm.tables import TablesReader
from actormq.store import checkpoint
from actormq.store.consume_queue import queue_folder
from actormq.store.disk import RealDisk
from actormq.store.queue_bounds import queues_on_disk
from actormq.store.recovery import RecoveredStore
from actormq.store.tools.rebuilding import remove_tree

LOG = logging.getLogger("test")


def start(memory: Memory, disk: Any = None) -> RecoveredStore:
    return prepare(
        memory.broker_config(),
        disk or memory.disk,
        memory.positions,
        memory.extents,
        memory.tables_view,
        LOG,
        1_700_000_000_000,
    )


def tables_of(memory: Memory) -> Tables:
    tables = Tables()
    for entry in TablesReader(memory.tables_view, memory.positions, slot_of("gateway-0")).poll()[1]:
        tables.apply(entry)
    return tables


def used_store(root: Path) -> tuple[Memory, list[int]]:
    """Return a store with messages that was killed, and their log offsets."""
    memory = Memory(root)
    start(memory)
    memory.positions.set(Position.TABLES, 0)
    memory.publisher.version = memory.positions.get(Position.TABLES)
    memory.add_topic("topic", 2)
    store = StoreWriter(memory)
    first = memory.add_topic("other")[0]
    rows = [row for row in range(ROWS) if memory.extents.read(row).incarnation]
    offsets = []
    for number in range(10):
        row = rows[-3 + number % 2]
        offsets.append(store.put(row=row, queue_id=number % 2).log_offset)
    del first
    tables = TablesReader(memory.tables_view, memory.positions, slot_of("dispatcher"))
    dispatcher = Dispatcher(memory.config, memory.disk, memory.positions, memory.extents, tables, [])
    while dispatcher.run(0, 0) is not None:
        pass
    return memory, offsets


def test_empty_folder_becomes_a_store(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "new")
    store = start(memory)
    assert store.log_end == 0
    assert memory.log_files().bases() == [0]
    assert (tmp_path / "new/abort").exists()
    schedule = tables_of(memory).topic(SCHEDULE_TOPIC)
    assert schedule is not None
    assert len(schedule.rows) == 18
    for row, incarnation in zip(schedule.rows, schedule.row_incarnations, strict=True):
        assert memory.extents.read(row) == (incarnation, 0, 0)
        assert memory.extents.files(row) == (0, memory.config.queue_file_entries)


def test_positions_rows_and_tables_after_a_kill(tmp_path: Path) -> None:
    """Everything appended is there again: log, queues, rows, and positions that all say the same."""
    before, _ = used_store(tmp_path)
    end = before.positions.get(Position.APPENDED)
    memory = Memory(tmp_path)
    store = start(memory)
    assert not store.clean
    for position in (Position.APPENDED, Position.FLUSHED, Position.DISPATCHED):
        assert memory.positions.get(position) == end
    assert memory.positions.get(Position.STORE_TIMESTAMP) == 1_700_000_000_000
    topic = tables_of(memory).topic("topic")
    assert topic is not None
    assert [memory.extents.read(row)[1:] for row in topic.rows] == [(0, 5), (0, 5)]


def test_stored_topics_keep_their_settings(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    (tmp_path / "config").mkdir()
    stored = {"topicName": "kept", "readQueueNums": 3, "writeQueueNums": 2, "perm": 4, "order": True}
    (tmp_path / "config/topics.json").write_text(json.dumps({"topicConfigTable": {"kept": stored}}))
    start(memory)
    entry = tables_of(memory).topic("kept")
    assert entry is not None
    assert (entry.read_queues, entry.write_queues, entry.perm, entry.order) == (3, 2, 4, True)
    assert len(entry.rows) == 3


def test_progress_beyond_the_end_is_set_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A group that was ahead of what survived would skip the messages that take those places."""
    used_store(tmp_path)
    (tmp_path / "config").mkdir(exist_ok=True)
    path = tmp_path / "config/consumerOffset.json"
    path.write_text('{"offsetTable":{"topic@group":{0:4,1:99}}}')
    (tmp_path / "config/delayOffset.json").write_text('{"offsetTable":{3:7}}')
    with caplog.at_level(logging.WARNING):
        start(Memory(tmp_path))
    assert json.loads(path.read_text())["offsetTable"] == {"topic@group": {"0": 4, "1": 5}}
    delays = json.loads((tmp_path / "config/delayOffset.json").read_text())
    assert delays["offsetTable"] == {"3": 0}
    assert "group had come to 99 in queue 1 of topic, which ends at 5: set back" in caplog.messages


def later_checkpoint(root: Path) -> None:
    data = bytearray(checkpoint.encode(checkpoint.Checkpoint(log_flushed=5)))
    data[263:264] = b"2"
    crc = zlib.crc32(data[:40] + data[256:304])
    data[304:308] = crc.to_bytes(4, "big")
    (root / "checkpoint").write_bytes(data)


def rocksdb(folder: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / folder).mkdir(parents=True)
        (root / folder / "CURRENT").write_text("MANIFEST-000004\n")

    return make


def linked(name: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / name).parent.mkdir(parents=True)
        (root / name).symlink_to(root.parent, target_is_directory=True)

    return make


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: (root / "dledger-n0").mkdir(), "dledger-n0: a store of DLedger mode"),
        (lambda root: (root / "epochFileCheckpoint").write_text("1"), "a store of controller mode"),
        (rocksdb("consumequeue_rocksdb"), "consumequeue_rocksdb: the queues are in RocksDB"),
        (rocksdb("config/topics"), "config/topics: a table in RocksDB"),
        (linked("consumequeue/t"), "consumequeue/t is a link"),
        (linked("consumequeue/t/0"), "consumequeue/t/0 is a link"),
        (later_checkpoint, r"checkpoint: it is of version b'2'; this program knows b'1'"),
    ],
)
def test_stores_of_another_kind_are_refused(tmp_path: Path, make: Any, sentence: str) -> None:
    """By what was found and where; nothing is touched."""
    root = tmp_path / "store"
    root.mkdir()
    make(root)
    before = sorted(root.rglob("*"))
    with pytest.raises(StoreForeign, match=sentence):
        start(Memory(root))
    assert sorted(root.rglob("*")) == before


def test_a_checkpoint_with_a_flipped_version_is_only_damaged(tmp_path: Path) -> None:
    """Its CRC tells a later version from a bad byte."""
    data = bytearray(checkpoint.encode(checkpoint.Checkpoint(log_flushed=5)))
    data[263:264] = b"2"
    assert not checkpoint.decode(bytes(data)).ours


def test_what_is_left_alone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Messages in a timer wheel, compacted topics; empty ones, as RocketMQ makes them, are no news."""
    (tmp_path / "timerlog").mkdir()
    (tmp_path / "timerwheel").write_bytes(bytes(100))
    (tmp_path / "compaction").mkdir()
    with caplog.at_level(logging.WARNING):
        start(Memory(tmp_path))
        assert caplog.messages == []
        (tmp_path / "consumequeue/rmq_sys_wheel_timer/0").mkdir(parents=True)
        (tmp_path / "compaction/compactionLog/t").mkdir(parents=True)
        start(Memory(tmp_path))
    assert [message.partition(" left alone: ")[2] for message in caplog.messages] == [
        "messages that wait there for their time are not delivered",
        "topics that RocketMQ compacted are served as they were sent",
    ]
    assert (tmp_path / "timerwheel").exists()


NAMES = st.text(
    st.sampled_from("ab./\\\0%~ \n\u00fc\U0001f600") | st.characters(), max_size=8
) | st.sampled_from(["..", ".", "", "/etc", "a/../..", "x" * 255, "x" * 256, "\u00fc" * 128, "-", "CON"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES)
def test_names_in_topics_json_stay_inside(tmp_path: Path, name: str) -> None:
    """Each is refused, or can be a folder of the store and no other place."""
    path = tmp_path / "config/topics.json"
    path.parent.mkdir(exist_ok=True)
    table = {"topicConfigTable": {name: {"topicName": name, "readQueueNums": 1, "writeQueueNums": 1}}}
    path.write_text(json.dumps(table))
    try:
        ((topic, *_), _) = recovery._look_at(tmp_path, RealDisk())
    except StoreForeign:
        return
    folder = queue_folder(tmp_path / "consumequeue", topic.name, 0)
    assert os.path.normpath(folder) == str(folder)
    assert folder.parent.parent == tmp_path / "consumequeue"
    folder.mkdir(parents=True, exist_ok=True)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    topic=st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=40),
    queue=st.text(st.sampled_from("0123456789+-_ \u0663.x"), min_size=1, max_size=20),
)
def test_names_of_folders_are_queues_or_nothing(tmp_path: Path, topic: str, queue: str) -> None:
    """A queue is found exactly where it will be looked for."""
    root = tmp_path / "consumequeue"
    with contextlib.suppress(OSError, UnicodeError):
        (root / topic / queue).mkdir(parents=True, exist_ok=True)
    for found in queues_on_disk(RealDisk(), root):
        assert queue_folder(root, *found).is_dir()
    for name in os.listdir(root) if root.exists() else []:
        remove_tree(RealDisk(), root / name)


def test_too_many_queues_is_one_sentence(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    (tmp_path / "config").mkdir()
    stored = {"topicName": "wide", "readQueueNums": ROWS, "writeQueueNums": ROWS}
    (tmp_path / "config/topics.json").write_text(json.dumps({"topicConfigTable": {"wide": stored}}))
    with pytest.raises(ActorMQError, match=r"raise memory\.queue_rows_max"):
        start(memory)


def test_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "commitlog").mkdir()
    (tmp_path / "commitlog/holiday.jpg").write_bytes(b"x")
    with pytest.raises(StoreForeign, match=r"holiday\.jpg"):
        start(Memory(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["commitlog"]


@pytest.mark.parametrize(
    ("name", "is_folder", "sentence"),
    [
        ("commitlog", False, "/commitlog is a file, but a store has a folder there"),
        ("config", False, "/config is a file, but a store has a folder there"),
        ("checkpoint", True, "/checkpoint is a folder, but a store has a file there"),
        ("config/topics.json", True, "/config/topics.json is a folder"),
    ],
)
def test_files_are_files_and_folders_are_folders(
    tmp_path: Path, name: str, is_folder: bool, sentence: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if is_folder:
        path.mkdir()
    else:
        path.write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreForeign) as caught:
        start(Memory(tmp_path))
    assert sentence in caught.value.remark
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("topics.json", '{"topicConfigTable":{"a":', "bad JSON at character 25"),
        ("topics.json", '{"topicConfigTable":[1]}', "topicConfigTable is no object"),
        ("topics.json", '{"topicConfigTable":{"a":{"topicName":5}}}', "topic 'a': this is no topic"),
        ("topics.json", '{"topicConfigTable":{"a":{"topicName":"../a"}}}', "'../a' cannot be the name"),
        ("subscriptionGroup.json", '{"subscriptionGroupTable":"g"}', "subscriptionGroupTable is no object"),
        ("consumerOffset.json", '{"offsetTable":[]', "bad JSON"),
        ("consumerOffset.json", '{"offsetTable":[1]}', "offsetTable is no object"),
        ("delayOffset.json", '{"dataVersion":5}', "dataVersion is no object"),
        ("delayOffset.json", '{"dataVersion":{"counter":"x"}}', "counter of its dataVersion is no integer"),
    ],
)
def test_tables_of_another_shape_are_refused_and_left_alone(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    """Half a table taken for the whole would be written back as the whole."""
    path = tmp_path / "config" / name
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(StoreForeign) as caught:
        start(Memory(tmp_path))
    assert str(path) in caught.value.remark
    assert sentence in caught.value.remark
    assert [one.name for one in tmp_path.rglob("*")] == ["config", name]


def test_the_former_table_stands_in_for_one_of_another_shape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the bad one is kept: it must not become the .bak of the next one."""
    path = tmp_path / "config/topics.json"
    path.parent.mkdir()
    path.write_text('{"topicConfigTable":[1]}')
    path.with_name("topics.json.bak").write_text(
        '{"topicConfigTable":{"a":{"topicName":"a","readQueueNums":1,"writeQueueNums":1}}}'
    )
    memory = Memory(tmp_path)
    start(memory)
    assert tables_of(memory).topic("a") is not None
    assert f"{path}: topicConfigTable is no object; its .bak is used instead" in caplog.text
    assert path.with_name("topics.json.damaged").read_text() == '{"topicConfigTable":[1]}'
    assert not path.exists()


def test_full_disk_does_not_keep_from_serving_what_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(tmp_path)
    start(memory, FailingDisk(RealDisk(), 1, 28, kinds=["allocate"]))
    assert memory.log_files().bases() == []
    assert "sends will be refused" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "recovery.recovered",
        "recovery.progress-clamped",
        "recovery.queues-opened",
        "recovery.file-made",
        "recovery.published",
    ],
)
def test_death_halfway_is_begun_again(tmp_path: Path, name: str) -> None:
    before, _ = used_store(tmp_path)
    end = before.positions.get(Position.APPENDED)
    with killing(name), pytest.raises(Died):
        start(Memory(tmp_path))
    memory = Memory(tmp_path)
    store = start(memory)
    assert not store.clean
    assert memory.positions.get(Position.APPENDED) == end
    topic = tables_of(memory).topic("topic")
    assert topic is not None
    assert [memory.extents.read(row)[1:] for row in topic.rows] == [(0, 5), (0, 5)]


@pytest.mark.parametrize("name", [None, "recovery.recovered", "recovery.deletions-saved"])
def test_a_deletion_that_had_begun_is_ended(tmp_path: Path, name: str | None) -> None:
    """Topic, offsets and queues go; what comes next under the name begins behind what the log has."""
    before, _ = used_store(tmp_path)
    end = before.positions.get(Position.APPENDED)
    config = tmp_path / "config"
    config.mkdir(exist_ok=True)
    stored = {"topicName": "topic", "readQueueNums": 2, "writeQueueNums": 2}
    (config / "topics.json").write_text(json.dumps({"topicConfigTable": {"topic": stored}}))
    offsets = {"offsetTable": {"topic@g": {"0": 3}, "other@g": {"0": 0}}}
    (config / "consumerOffset.json").write_text(json.dumps(offsets))
    (config / "deletedTopics.json").write_text('{"deletedTopics": {"topic": -1, "long gone": 0}}')
    if name is not None:
        with killing(name), pytest.raises(Died):
            start(Memory(tmp_path))
    memory = Memory(tmp_path)
    store = start(memory)
    assert store.deleted == {"topic": end}
    assert tables_of(memory).topic("topic") is None
    assert not (tmp_path / "consumequeue" / "topic").exists()
    assert json.loads((config / "deletedTopics.json").read_text())["deletedTopics"] == {"topic": end}
    assert list(json.loads((config / "consumerOffset.json").read_text())["offsetTable"]) == ["other@g"]
    assert json.loads((config / "topics.json").read_text())["topicConfigTable"] == {}


def test_rows_say_where_their_topic_begins(tmp_path: Path) -> None:
    """The topic was made again: its rows know which records are not its own."""
    before, _ = used_store(tmp_path)
    end = before.positions.get(Position.APPENDED)
    config = tmp_path / "config"
    config.mkdir(exist_ok=True)
    stored = {"topicName": "topic", "readQueueNums": 2, "writeQueueNums": 2}
    (config / "topics.json").write_text(json.dumps({"topicConfigTable": {"topic": stored}}))
    (config / "deletedTopics.json").write_text(json.dumps({"deletedTopics": {"topic": end}}))
    memory = Memory(tmp_path)
    start(memory)
    topic = tables_of(memory).topic("topic")
    assert topic is not None
    assert [memory.extents.read(row)[1:] for row in topic.rows] == [(0, 0), (0, 0)]
    assert [memory.extents.log_start(row) for row in topic.rows] == [end, end]


def test_file_at_the_end_of_the_log_is_there(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    start(memory)
    assert memory.log_files().exists(0)
    assert not memory.log_files().exists(FILE_BYTES)


@pytest.mark.parametrize("flush", list(FlushMode))
def test_where_a_queue_ended_is_kept_where_its_tail_may_be_lost(tmp_path: Path, flush: FlushMode) -> None:
    """After a crash in async mode: consumers may have been further."""
    used_store(tmp_path)
    memory = Memory(tmp_path)
    memory.config = replace(memory.config, flush=flush)
    store = start(memory)
    assert not store.clean
    entry = tables_of(memory).topic("topic")
    assert entry is not None
    found = [memory.extents.lost_from(row) for row in entry.rows]
    ends = [memory.extents.read(row).max for row in entry.rows]
    assert found == (ends if flush is FlushMode.ASYNC else [None] * len(ends))


def test_it_waits_for_no_other_roles_import() -> None:
    """It is forked when its own module is there, while the forkserver goes on with the others'."""
    program = "import sys, actormq.actors.entry, actormq.actors.recovery; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert BROKER_MODULES[0] == "actormq.actors.recovery"
    assert not set(BROKER_MODULES[1:]) & set(done.stdout.split())
