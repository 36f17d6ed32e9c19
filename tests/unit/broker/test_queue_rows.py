"""Rows of queues, as the published tables say."""

from __future__ import annotations

from actormq.broker.queue_rows import QueueRow, QueueRows
from actormq.broker.tables import GroupEntry, TopicEntry, TopicGone, encode_entry


def topic(name: str, rows: list[int], incarnation: int = 1) -> bytes:
    entry = TopicEntry(
        name, 6, len(rows), len(rows), 0, False, "SINGLE_TAG", {}, rows, [incarnation] * len(rows)
    )
    return encode_entry(entry)


def test_both_ways() -> None:
    rows = QueueRows(lambda row: 0)
    assert rows.apply(True, [topic("é", [7, 3]), encode_entry(GroupEntry("group"))]) == []
    assert rows.rows == {("é".encode(), 0): 7, ("é".encode(), 1): 3}
    assert rows.queue(3) == QueueRow("é", 1, 3, 1)


def test_changed_topic_keeps_its_queues() -> None:
    rows = QueueRows(lambda row: 0)
    rows.apply(True, [topic("t", [1])])
    assert rows.apply(False, [topic("t", [1, 2])]) == []
    assert {queue.row for queue in rows} == {1, 2}


def test_deleted_topic_is_named_and_forgotten() -> None:
    rows = QueueRows(lambda row: 0)
    rows.apply(True, [topic("t", [1, 2]), topic("other", [3])])
    gone = rows.apply(False, [encode_entry(TopicGone("t"))])
    assert [queue.row for queue in gone] == [1, 2]
    assert rows.rows == {(b"other", 0): 3}
    assert rows.apply(False, [encode_entry(TopicGone("t"))]) == []


def test_row_given_to_another_topic_stays_the_others() -> None:
    """The coordinator may publish the row's next owner before the entry that removes the last one."""
    rows = QueueRows(lambda row: 0)
    rows.apply(True, [topic("old", [1])])
    rows.apply(False, [topic("new", [1], incarnation=2), encode_entry(TopicGone("old"))])
    assert list(rows) == [QueueRow("new", 0, 1, 2)]
    assert rows.rows == {(b"new", 0): 1}


def test_topic_made_again_is_another_queue() -> None:
    rows = QueueRows(lambda row: 0)
    rows.apply(True, [topic("t", [1])])
    gone = rows.apply(False, [encode_entry(TopicGone("t")), topic("t", [1], incarnation=2)])
    assert gone == [QueueRow("t", 0, 1, 1)]


def test_snapshot_replaces_everything() -> None:
    rows = QueueRows(lambda row: 0)
    rows.apply(True, [topic("t", [1]), topic("u", [2])])
    assert rows.apply(True, [topic("u", [2])]) == [QueueRow("t", 0, 1, 1)]
    assert rows.rows == {(b"u", 0): 2}


def test_topic_made_again_waits_for_its_own_part_of_the_log() -> None:
    """Until the log has been followed to where it begins, records of its name are the dead topic's."""
    rows = QueueRows({1: 0, 2: 500, 3: 500, 4: 700}.__getitem__)
    rows.reach(100)
    rows.apply(True, [topic("old", [1]), topic("t", [2, 3], 9), topic("u", [4])])
    assert rows.rows == {(b"old", 0): 1}
    assert {queue.row for queue in rows} == {1, 2, 3, 4}
    assert rows.next_start() == 500
    rows.reach(499)
    assert rows.next_start() == 500
    rows.reach(500)
    assert rows.rows == {(b"old", 0): 1, (b"t", 0): 2, (b"t", 1): 3}
    assert rows.next_start() == 700
    assert [queue.row for queue in rows.apply(False, [encode_entry(TopicGone("u"))])] == [4]
    assert rows.next_start() is None
    rows.apply(False, [topic("u", [2])])
    assert rows.rows[b"u", 0] == 2


def test_who_does_not_go_from_records_to_rows_keeps_no_table_of_them() -> None:
    rows = QueueRows()
    rows.apply(True, [topic("t", [5, 2])])
    assert rows.rows == {}
    assert list(rows) == [QueueRow("t", 1, 2, 1), QueueRow("t", 0, 5, 1)]
    assert rows.queue(3) is None
    assert rows.queue(6) is None
    assert rows.end == 6
