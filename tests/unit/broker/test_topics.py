"""Topics and rows: what may be created, with how many queues, and that no two queues share a row."""

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actormq.broker.deleting import NotYet
from actormq.broker.tables import TopicEntry, TopicGone
from actormq.broker.topics import (
    Rows,
    TopicConfig,
    Topics,
    TopicSettings,
    TopicTexts,
    config_of,
    parse_attributes,
    recover,
    system_topics,
    topic_to_json,
)
from actormq.errors import RequestError, ResponseCode
from actormq.wire import json

SETTINGS = TopicSettings(cluster="DefaultCluster", broker="broker-a", rows_max=300)


def topics(**settings: object) -> Topics:
    made = Topics(TopicSettings(**{"cluster": "c", "broker": "b", "rows_max": 300, **settings}))  # type: ignore[arg-type]
    made.create_missing_system_topics()
    return made


class RowsMachine(RuleBasedStateMachine):
    """Rows are taken and given back in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = Rows(12)
        self.used: set[int] = set()

    @rule(count=st.integers(1, 5))
    def take(self, count: int) -> None:
        taken = self.rows.take(count)
        free = "".join("x" if row in self.used else "." for row in range(12))
        assert (taken is None) == ("." * count not in free)
        if taken is not None:
            assert list(taken) == list(range(taken[0], taken[0] + count))
            assert not self.used.intersection(taken)
            self.used.update(taken)

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        if self.used:
            row = data.draw(st.sampled_from(sorted(self.used)))
            self.used.remove(row)
            self.rows.give_back(row)

    @rule()
    def restart(self) -> None:
        self.rows = Rows(12, self.used)

    @invariant()
    def counts_agree(self) -> None:
        assert self.rows.free == 12 - len(self.used)


TestRows = RowsMachine.TestCase


class TopicsMachine(RuleBasedStateMachine):
    """Creating, widening, deleting topics and restarting never gives one row to two queues."""

    def __init__(self) -> None:
        super().__init__()
        self.topics = Topics(TopicSettings(cluster="c", broker="b", rows_max=40))
        self.open: dict[int, int] = {}
        self.seen: set[tuple[int, int]] = set()
        self.unsettled = 0

    @rule(name=st.sampled_from("pqr"), read=st.integers(0, 9), write=st.integers(0, 9))
    def put(self, name: str, read: int, write: int) -> None:
        before = self.topics.get(name)
        try:
            change = self.topics.put(TopicConfig(name=name, read_queues=read, write_queues=write))
        except NotYet:
            assert self.unsettled
            assert self.topics.get(name) is before
            return
        except RequestError:
            assert not self.unsettled
            assert self.topics.get(name) is before
            return
        for row in change.opened:
            assert row.row not in self.open
            assert (row.row, row.incarnation) not in self.seen
            self.open[row.row] = row.incarnation
            self.seen.add((row.row, row.incarnation))
        assert isinstance(change.entry, TopicEntry)
        assert len(change.entry.rows) >= max(read, write)
        assert before is None or change.entry.rows[: len(before.rows)] == before.rows

    @rule(name=st.sampled_from("pqr"))
    def delete(self, name: str) -> None:
        change = self.topics.delete(name)
        if change is not None:
            assert change.entry == TopicGone(name)
            for row in change.closed:
                del self.open[row]
                self.unsettled += 1

    @rule()
    def settle(self) -> None:
        self.topics.settle()
        self.unsettled = 0

    @rule()
    def restart(self) -> None:
        table = list(self.topics.table.values())
        self.topics = Topics(self.topics.settings, table, self.topics.row_incarnation_next)
        self.unsettled = 0

    @invariant()
    def rows_belong_to_one_queue(self) -> None:
        pairs = [
            pair for e in self.topics.table.values() for pair in zip(e.rows, e.row_incarnations, strict=True)
        ]
        assert dict(pairs) == self.open
        assert len(pairs) == len(self.open)
        assert self.topics.rows_free == 40 - len(pairs) - self.unsettled


TestTopics = TopicsMachine.TestCase


def test_every_broker_has_the_system_topics() -> None:
    """The table of wire.md 2.6, with BenchmarkTest where rows are plenty and TBW102 where creation is on."""
    many = system_topics(TopicSettings(cluster="c", broker="b"))
    assert (many["TBW102"].read_queues, many["TBW102"].perm) == (8, 7)
    assert many["BenchmarkTest"].write_queues == 1024
    assert (many["c"].read_queues, many["c"].perm, many["b"].read_queues) == (16, 7, 1)
    assert many["SCHEDULE_TOPIC_XXXX"].write_queues == 18
    few = system_topics(TopicSettings(cluster="c", broker="b", auto_create=False, rows_max=300))
    assert "TBW102" not in few
    assert "BenchmarkTest" not in few


@pytest.mark.parametrize(("wish", "queues"), [(4, 4), (16, 8), (0, 0), (-1, 0)])
def test_a_sent_topic_gets_at_most_the_templates_queues(wish: int, queues: int) -> None:
    """min(the producer's default, TBW102's write queues), without the INHERIT bit."""
    made = topics()
    change = made.auto_create("orders", "TBW102", wish, sys_flag=1)
    assert change is not None
    entry = made.get("orders")
    assert entry is not None
    assert (entry.read_queues, entry.write_queues, entry.perm, entry.sys_flag) == (queues, queues, 6, 1)
    assert len(change.opened) == queues
    assert made.auto_create("orders", "TBW102", wish) is None


@pytest.mark.parametrize(
    ("template", "auto", "code"),
    [("TBW102", False, 17), ("SELF_TEST_TOPIC", True, 17), ("nothing", True, 17)],
)
def test_no_template_no_topic(template: str, auto: bool, code: int) -> None:
    """Without an inheritable template the send is answered 17."""
    with pytest.raises(RequestError) as error:
        topics(auto_create=auto).auto_create("orders", template, 4)
    assert error.value.response_code == code


def test_another_inheritable_topic_is_a_template_even_with_auto_creation_off() -> None:
    """Auto-creation off concerns TBW102 only: the cluster's topic still serves."""
    assert topics(auto_create=False).auto_create("orders", "c", 4) is not None


def test_a_retry_topic_is_created_even_without_template() -> None:
    """One queue, readable and writable."""
    made = topics(auto_create=False)
    assert made.auto_create("%RETRY%g", "TBW102", 4) is not None
    entry = made.get("%RETRY%g")
    assert entry is not None
    assert (entry.read_queues, entry.perm) == (1, 6)


@pytest.mark.parametrize(
    "name", ["TBW102", "SCHEDULE_TOPIC_XXXX", "rmq_sys_x", "c", "b", "", "a b", "x" * 128]
)
def test_administrators_may_not_touch_these_names(name: str) -> None:
    """System topics and illegal names: 29."""
    with pytest.raises(RequestError) as error:
        topics().update(TopicConfig(name=name))
    assert error.value.response_code == ResponseCode.INVALID_PARAMETER


@pytest.mark.parametrize(
    "config",
    [
        TopicConfig(name="t", read_queues=-1),
        TopicConfig(name="t", perm=64),
        TopicConfig(name="t", filter_type="SOME"),
    ],
)
def test_senseless_shapes_are_refused(config: TopicConfig) -> None:
    """Negative queues, unknown permissions and filter types: 29."""
    with pytest.raises(RequestError) as error:
        topics().update(config)
    assert error.value.response_code == ResponseCode.INVALID_PARAMETER


def test_an_update_that_changes_nothing_is_no_change() -> None:
    """Repeating a command neither bumps a version nor registers again."""
    made = topics()
    config = TopicConfig(name="t", read_queues=2, write_queues=2)
    assert made.update(config, "+message.type=FIFO") is not None
    assert made.update(config, "+message.type=FIFO") is None
    change = made.update(config, "-message.type")
    assert change is not None
    assert change.opened == ()
    assert isinstance(change.entry, TopicEntry)
    assert config_of(change.entry) == config


def test_fewer_queues_keep_their_rows() -> None:
    """A narrowed topic keeps the rows of its old queues, and gets the same back when it is widened."""
    made = topics()
    wide = made.update(TopicConfig(name="t", read_queues=4, write_queues=4))
    made.update(TopicConfig(name="t", read_queues=1, write_queues=1))
    again = made.update(TopicConfig(name="t", read_queues=4, write_queues=4))
    assert wide is not None
    assert again is not None
    assert again.entry == wide.entry
    assert again.opened == ()


@pytest.mark.parametrize(
    "text", ["queue.type=x", "+queue.type=x", "+unknown=1", "+reserve.time=x", "+message.type=MIXED"]
)
def test_bad_attributes(text: str) -> None:
    """A missing sign, an unknown key or value: 1, nothing changed."""
    with pytest.raises(RequestError) as error:
        parse_attributes(text, {})
    assert error.value.response_code == ResponseCode.SYSTEM_ERROR


def test_too_many_queues_are_refused_whole() -> None:
    """Beyond the rows there is an error with the numbers, and nothing half made."""
    made = topics()
    free = made.rows_free
    with pytest.raises(RequestError, match=r"memory\.queue_rows_max"):
        made.update(TopicConfig(name="t", read_queues=free + 1, write_queues=1))
    assert made.rows_free == free
    assert made.get("t") is None


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["known", "lost"]), st.integers(0, 9)),
        st.tuples(st.integers(0, 50), st.integers(50, 99)),
    )
)
def test_recovery_gives_a_row_to_every_queue_that_was_found(
    queues: dict[tuple[str, int], tuple[int, int]],
) -> None:
    """Topics of the file, of the folders and of the system are all there, with the bounds that were found."""
    found = recover(SETTINGS, [TopicConfig(name="known", read_queues=2, write_queues=3)], queues)
    rows = {(row.topic, row.queue_id): row for row in found.rows}
    assert len({row.row for row in found.rows}) == len(found.rows)
    for queue, bounds in queues.items():
        entry = found.topics.get(queue[0])
        assert entry is not None
        assert entry.rows[queue[1]] == rows[queue].row
        assert entry.row_incarnations[queue[1]] == rows[queue].incarnation
        assert (rows[queue].min_offset, rows[queue].max_offset) == bounds
    known = found.topics.get("known")
    assert known is not None
    assert (known.read_queues, known.write_queues) == (2, 3)
    assert found.topics.get("SCHEDULE_TOPIC_XXXX") is not None


def test_the_texts_of_topics_follow_the_table() -> None:
    """What was named is made anew, what is gone is left out; nobody's change is missed."""
    entries = {
        name: TopicEntry(name, 6, 1, 1, 0, False, "SINGLE_TAG", {}, [0], [1]) for name in ("a", "b", "c")
    }
    texts = TopicTexts()

    def read() -> dict[str, object]:
        found: dict[str, object] = json.loads(orjson.dumps(texts.of(entries)))
        return found

    assert read() == {name: topic_to_json(entry) for name, entry in entries.items()}
    entries["b"] = msgspec.structs.replace(entries["b"], perm=4)
    entries["d"] = msgspec.structs.replace(entries["a"], name="d")
    del entries["a"]
    texts.changed(["b", "d", "a"])
    assert read() == {name: topic_to_json(entry) for name, entry in entries.items()}
    del entries["c"]
    with pytest.raises(AssertionError, match="nobody named"):
        read()
