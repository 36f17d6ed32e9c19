"""Committed offsets: the last word counts, and where a group begins that has none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.broker.offsets import OffsetKey, Offsets, QueueStart, first_offset, parse_table
from actormq.errors import RequestError

keys = st.builds(OffsetKey, st.sampled_from(["p", "q"]), st.sampled_from(["g", "%h"]), st.integers(0, 3))


@given(st.lists(st.tuples(keys, st.integers(0, 100))))
def test_the_last_commit_counts_and_survives_the_files_shape(commits: list[tuple[OffsetKey, int]]) -> None:
    """Also one that goes back; and table → parse_table → restore changes nothing."""
    offsets = Offsets()
    for key, offset in commits:
        assert offsets.commit(key, offset, 1)
    again = Offsets()
    for key, offset in parse_table(offsets.table().items()):
        again.restore(key, offset)
    for key, offset in dict(commits).items():
        assert offsets.get(key) == again.get(key) == offset
    assert offsets.changed is bool(commits)
    assert sorted(again.rows()) == sorted(offsets.rows())


@pytest.mark.parametrize(
    ("start", "zero", "answer"),
    [
        (QueueStart(0, 0, False), True, 0),
        (QueueStart(0, 5, True), True, 0),
        (QueueStart(0, 5, False), True, None),
        (QueueStart(3, 5, True), True, None),
        (QueueStart(0, 0, True), False, None),
    ],
)
def test_where_a_new_group_begins(start: QueueStart, zero: bool, answer: int | None) -> None:
    """Zero in a young queue unless the client forbids it; else 22 and the client decides."""
    if answer is not None:
        assert first_offset(start, zero) == answer
        return
    with pytest.raises(RequestError) as error:
        first_offset(start, zero)
    assert error.value.response_code == 22


def test_versions_grow_once_per_500_commits_and_there_is_a_limit() -> None:
    """Repeating a commit is no change; a new queue beyond the limit is refused, known ones go on."""
    offsets = Offsets(offsets_max=1)
    key = OffsetKey("p", "g", 0)
    for n in range(1000):
        offsets.commit(key, n, n)
        offsets.commit(key, n, n)
    assert offsets.version.counter == 2
    assert not offsets.commit(OffsetKey("p", "g", 1), 1, 1)
    assert offsets.commit(key, 7, 1)
    assert (offsets.groups_of("p"), offsets.topics_of("g"), offsets.topics_of("h")) == (["g"], ["p"], [])


def test_senseless_rows_of_a_file_are_left_out() -> None:
    """Keys without a group or topic, negative offsets."""
    assert list(parse_table({"p": {0: 1}, "@g": {0: 1}, "p@": {0: 1}}.items())) == []
    offsets = Offsets()
    offsets.restore(OffsetKey("p", "g", 0), -1)
    assert offsets.get(OffsetKey("p", "g", 0)) is None
