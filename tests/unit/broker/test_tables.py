"""The published tables: what is applied is what is read, in any order of redundant snapshots."""

from hypothesis import given
from hypothesis import strategies as st

from actormq.broker.tables import (
    BrokerEntry,
    ConsumerGroupOffline,
    ConsumerGroupOnline,
    Entry,
    GroupEntry,
    GroupGone,
    OwnTables,
    SubscriptionEntry,
    SubscriptionGone,
    Tables,
    TopicEntry,
    TopicGone,
    decode_entry,
    encode_entry,
)

names = st.sampled_from(["a", "b", "%RETRY%a"])
entries: st.SearchStrategy[Entry] = st.one_of(
    st.builds(
        TopicEntry,
        name=names,
        perm=st.integers(0, 7),
        read_queues=st.integers(0, 4),
        write_queues=st.integers(0, 4),
        sys_flag=st.integers(0, 3),
        order=st.booleans(),
        filter_type=st.just("SINGLE_TAG"),
        attributes=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
        rows=st.lists(st.integers(0, 99), max_size=4),
        row_incarnations=st.lists(st.integers(1, 99), max_size=4),
    ),
    st.builds(TopicGone, names),
    st.builds(GroupEntry, names, st.booleans(), orderly_locked=st.booleans()),
    st.builds(GroupGone, names),
    st.builds(
        SubscriptionEntry,
        group=names,
        topic=names,
        model=st.just("CLUSTERING"),
        expression_type=st.just("TAG"),
        expression=st.text(max_size=3),
        tag_codes=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        sub_version=st.integers(0, 2**62),
    ),
    st.builds(SubscriptionGone, names, names),
    st.builds(ConsumerGroupOnline, names),
    st.builds(ConsumerGroupOffline, names),
    st.builds(BrokerEntry, st.integers(0, 7), st.integers(1, 2**31)),
)


@given(entries)
def test_an_entry_survives_its_bytes(entry: Entry) -> None:
    """Bytes and back is the same entry."""
    assert decode_entry(encode_entry(entry)) == entry


@given(st.lists(entries))
def test_a_snapshot_says_what_all_entries_said(changes: list[Entry]) -> None:
    """A reader that takes a snapshot knows exactly what a reader of every change knows."""
    followed, caught_up = Tables(), Tables()
    for entry in changes:
        followed.apply(encode_entry(entry))
    for entry in list(followed.entries()) * 2:
        caught_up.apply(encode_entry(entry))
    assert list(map(encode_entry, followed.entries())) == list(map(encode_entry, caught_up.entries()))


def test_a_group_that_goes_offline_has_no_subscriptions() -> None:
    """Offline takes the subscriptions with it; the group's configuration stays."""
    tables = Tables()
    tables.put(GroupEntry("g"))
    tables.put(ConsumerGroupOnline("g"))
    tables.put(SubscriptionEntry("g", "t", "CLUSTERING", "TAG", "*", [], 1))
    assert tables.subscription("g", "t") is not None
    tables.put(ConsumerGroupOffline("g"))
    assert tables.subscription("g", "t") is None
    assert tables.consumer_group("g") is None
    assert tables.group("g") is not None


@given(st.lists(entries))
def test_the_publishers_tables_know_what_is_news_and_their_size(changes: list[Entry]) -> None:
    """Publishing only the news says the same; the size is that of a snapshot with its lengths."""
    own, everything = OwnTables(), Tables()
    for entry in changes:
        before = list(own.entries())
        assert own.change(entry) is (before != list(own.entries()))
        everything.put(entry)
        assert sorted(map(encode_entry, own.entries())) == sorted(map(encode_entry, everything.entries()))
        assert own.size_bytes == sum(4 + len(encode_entry(each)) for each in own.entries())
