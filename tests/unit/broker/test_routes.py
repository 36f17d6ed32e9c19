"""The route table: RocketMQ's rules for brokers that come, change and leave (RouteInfoManager.java)."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.broker.routes import BrokerIdentity, QueueData, Registered, Registration, RouteTable
from actormq.config import NameServerConfig
from actormq.wire.registration import DataVersion, RegistrationBody, TopicConfig


def identity(name: str = "a", broker_id: int = 0, cluster: str = "C", address: str = "") -> BrokerIdentity:
    return BrokerIdentity(
        cluster=cluster, name=name, address=address or f"{name}-{broker_id}:1", broker_id=broker_id
    )


def registration(
    who: BrokerIdentity | None = None,
    topics: Iterable[str] = ("T", "U"),
    counter: int = 1,
    state_version: int = 0,
    permission: int = 6,
    **rest: object,
) -> Registration:
    body = RegistrationBody(
        version=DataVersion(state_version, 7, counter),
        topics=tuple(TopicConfig(name=topic, permission=permission) for topic in topics),
    )
    fields: dict[str, object] = {"acting_master": False, **rest}
    return Registration(broker=who or identity(), ha_address="ha:2", body=body, **fields)  # type: ignore[arg-type]


@pytest.fixture
def table() -> RouteTable:
    return RouteTable(NameServerConfig())


def permission(table: RouteTable, topic: str, broker: str = "a") -> int:
    return table.topics[topic][broker].permission


def test_a_registered_topic_has_a_route(table: RouteTable) -> None:
    """Queues and addresses of every broker that serves the topic, and of no other."""
    table.register(registration(identity("a"), zmq_address="a:9"), 1, 0)
    table.register(registration(identity("b"), topics=("U", "V")), 2, 0)
    route = table.route("U")
    assert route is not None
    assert [queues.broker for queues in route.queues] == ["a", "b"]
    assert [group.addresses for group in route.groups] == [{0: "a-0:1"}, {0: "b-0:1"}]
    assert route.groups[0].zmq_addresses == {0: "a:9"}
    assert table.route("V").queues[0].read_queues == 16  # type: ignore[union-attr]
    assert table.route("W") is None


def test_a_first_registration_with_one_topic_is_refused(table: RouteTable) -> None:
    """The increment of a broker that expired is not taken for all its topics."""
    assert table.register(registration(topics=("T",)), 1, 0) is None
    assert (table.groups, table.clusters) == ({}, {})
    assert table.register(registration(topics=()), 1, 0) == Registered()
    assert table.register(registration(topics=("T",), counter=2), 1, 0) == Registered()
    assert table.topics_of("a") == {"T"}


def test_topics_change_only_with_the_data_version(table: RouteTable) -> None:
    """An equal version is only a sign of life; topics that a registration leaves out are kept."""
    table.register(registration(permission=6), 1, 0)
    table.register(registration(permission=4), 1, 0)
    assert permission(table, "T") == 6
    table.register(registration(topics=("T", "X"), permission=4, counter=2), 1, 0)
    assert permission(table, "T") == 4
    assert table.topics_of("a") == {"T", "U", "X"}


def test_a_topic_that_was_deleted_here_comes_back_with_the_same_version(table: RouteTable) -> None:
    """A broker that still serves a topic brings it back, though its version did not change."""
    table.register(registration(), 1, 0)
    table.delete_topic("T")
    table.register(registration(), 1, 0)
    assert table.topics_of("a") == {"T", "U"}


def test_topics_missing_from_a_registration_go_when_configured() -> None:
    """deleteTopicWithBrokerRegistration makes the registration the whole truth."""
    table = RouteTable(NameServerConfig(delete_topic_with_broker_registration=True))
    table.register(registration(), 1, 0)
    table.register(registration(topics=("U", "X"), counter=2), 1, 0)
    assert table.topics_of("a") == {"U", "X"}


def test_one_address_has_one_id(table: RouteTable) -> None:
    """A slave that became master is not listed twice."""
    table.register(registration(identity("a", 1, address="x:1")), 1, 0)
    table.register(registration(identity("a", 0, address="x:1")), 1, 0)
    assert table.groups["a"].addresses == {0: "x:1"}


def test_an_older_state_does_not_take_a_newer_ones_place(table: RouteTable) -> None:
    """A former master that comes back with a lower state version is turned away, without an error."""
    table.register(registration(identity(address="new:1"), state_version=5), 1, 0)
    assert table.register(registration(identity(address="old:1"), state_version=4), 2, 0) == Registered()
    assert table.groups["a"].addresses == {0: "new:1"}
    assert ("C", "old:1") not in table.live
    table.register(registration(identity(address="newer:1"), state_version=5), 3, 0)
    assert table.groups["a"].addresses == {0: "newer:1"}


def test_a_slave_learns_its_master(table: RouteTable) -> None:
    """The answer to a slave names the master's address and replication address; a master learns nothing."""
    assert table.register(registration(identity("a", 1)), 1, 0) == Registered()
    assert table.register(registration(identity("a", 0)), 2, 0) == Registered()
    assert table.register(registration(identity("a", 1)), 1, 0) == Registered(
        master_address="a-0:1", ha_address="ha:2"
    )


def test_only_the_master_speaks_for_topics(table: RouteTable) -> None:
    """A slave's topics are not taken, except a 5.x group's lowest slave while there is no master."""
    table.register(registration(identity("old", 1), topics=("S", "T"), acting_master=None), 1, 0)
    assert table.topics_of("old") == set()
    table.register(registration(identity("a", 2), topics=("S", "T")), 2, 0)
    assert table.topics_of("a") == {"S", "T"}
    table.register(registration(identity("a", 0), topics=("U", "V")), 3, 0)
    table.register(registration(identity("a", 2), topics=("W", "X"), counter=2), 2, 0)
    assert table.topics_of("a") == {"S", "T", "U", "V"}


def test_an_acting_master_serves_reads_only() -> None:
    """Without its master a group is shown with its lowest slave as master, for reading."""
    table = RouteTable(NameServerConfig(support_acting_master=True))
    table.register(registration(identity("a", 0), acting_master=True), 1, 0)
    table.register(registration(identity("a", 1), acting_master=True, zmq_address="s:9"), 2, 0)
    table.unregister([identity("a", 0)])
    route = table.route("T")
    assert route is not None
    assert route.groups[0].addresses == {0: "a-1:1"}
    assert route.groups[0].zmq_addresses == {0: "s:9"}
    assert route.queues[0].permission == 4
    assert table.groups["a"].addresses == {1: "a-1:1"}


def test_leaving_takes_what_only_that_broker_served(table: RouteTable) -> None:
    """The last address of a group takes the group, its topics and an empty cluster along."""
    table.register(registration(identity("a", 0)), 1, 0)
    table.register(registration(identity("a", 1)), 2, 0)
    table.register(registration(identity("b"), topics=("U", "V")), 3, 0)
    table.unregister([identity("a", 0)])
    assert table.route("T") is not None
    table.unregister([identity("a", 1)])
    assert table.route("T") is None
    assert sorted(table.topics) == ["U", "V"]
    assert table.clusters == {"C": {"b"}}
    table.unregister([identity("b")])
    assert (table.topics, table.groups, table.clusters, table.live) == ({}, {}, {}, {})


def test_a_closed_connection_removes_its_brokers_at_once(table: RouteTable) -> None:
    """Nobody waits two minutes for a broker whose connection is gone; others stay."""
    table.register(registration(identity("a")), "one", 0)
    table.register(registration(identity("b")), "two", 0)
    table.disconnected("one")
    assert table.topics_of("a") == set()
    assert set(table.groups) == {"b"}
    table.disconnected("nobody")
    assert set(table.groups) == {"b"}


def test_a_broker_that_connected_again_survives_its_old_connection(table: RouteTable) -> None:
    """The close of a connection counts only while the broker's last registration came over it."""
    table.register(registration(), "old", 0)
    table.register(registration(), "new", 5)
    table.disconnected("old")
    assert table.route("T") is not None


def test_silent_brokers_expire(table: RouteTable) -> None:
    """After 120 s, or the time that the broker asked for; any sign of life starts it anew."""
    table.register(registration(identity("a")), "one", 0)
    table.register(registration(identity("b"), expiry_ms=1_000), "two", 0)
    assert table.expire(1_000) == []
    table.seen("C", "b-0:1", 900)
    assert table.expire(1_900) == []
    assert table.expire(1_901) == ["two"]
    assert set(table.groups) == {"a"}
    assert table.expire(120_000) == []
    assert table.expire(120_001) == ["one"]
    assert table.topics == {}


def test_a_sign_of_life_of_a_stranger_registers_nothing(table: RouteTable) -> None:
    """A heartbeat refreshes, it does not create."""
    table.seen("C", "x:1", 5)
    assert table.live == {}


def test_write_permission_is_wiped_and_added(table: RouteTable) -> None:
    """205 and 327 touch every topic of one broker, and say how many."""
    table.register(registration(identity("a")), 1, 0)
    table.register(registration(identity("b")), 1, 0)
    assert table.wipe_write_permission("a") == 2
    assert (permission(table, "T"), permission(table, "T", "b")) == (4, 6)
    assert table.add_write_permission("a") == 2
    assert permission(table, "T") == 6
    assert table.wipe_write_permission("nobody") == 0


def test_a_topic_is_deleted_from_a_cluster_or_from_all(table: RouteTable) -> None:
    """216 with a cluster leaves the other clusters' brokers."""
    table.register(registration(identity("a", cluster="C")), 1, 0)
    table.register(registration(identity("b", cluster="D")), 2, 0)
    table.delete_topic("T", "C")
    assert set(table.topics["T"]) == {"b"}
    table.delete_topic("T")
    assert table.topics_of_cluster("D") == ["U"]
    table.delete_topic("T", "nowhere")


def test_a_single_topic_is_registered_for_known_brokers_only(table: RouteTable) -> None:
    """217 takes the queues of brokers that are registered."""
    queues = QueueData(broker="a", read_queues=1, write_queues=1, permission=6, sys_flag=3)
    table.register_topic("X", [queues])
    assert table.topics == {}
    table.register(registration(), 1, 0)
    table.register_topic("X", [queues])
    assert table.route("X") is not None
    assert table.topics_with_flag(2) == ["X"]
    assert table.topics_with_flag(2, without=1) == []


def test_what_a_route_shows_is_not_the_table(table: RouteTable) -> None:
    """Changing an answer's groups changes no other answer."""
    table.register(registration(), 1, 0)
    table.route("T").groups[0].addresses.clear()  # type: ignore[union-attr]
    assert table.route("T").groups[0].addresses == {0: "a-0:1"}  # type: ignore[union-attr]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["register", "unregister", "disconnect", "expire", "delete"]),
        st.sampled_from("abc"),
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(STEPS)
def test_the_tables_agree_after_any_steps(steps: list[tuple[str, str, int, int]]) -> None:
    """Every group has an address and a cluster; every topic a known group; every address is alive."""
    table = RouteTable(NameServerConfig(broker_expiry_ms=2))
    for now_ms, (step, name, broker_id, number) in enumerate(steps):
        who = identity(name, broker_id, cluster="CD"[number % 2], address=f"{name}{broker_id}{number % 2}")
        if step == "register":
            table.register(registration(who, topics=["T", "U", "V"][:number], counter=now_ms), number, now_ms)
        elif step == "unregister":
            table.unregister([who])
        elif step == "disconnect":
            table.disconnected(number)
        elif step == "expire":
            table.expire(now_ms)
        else:
            table.delete_topic("T")
        served = {broker for by_broker in table.topics.values() for broker in by_broker}
        assert all(table.topics.values())
        assert served <= set(table.groups)
        addresses = {address for group in table.groups.values() for address in group.addresses.values()}
        assert all(group.addresses for group in table.groups.values())
        assert addresses <= {live.broker.address for live in table.live.values()}
        assert set().union(*table.clusters.values()) == set(table.groups)
    table.expire(1_000)
    assert (table.topics, table.live) == ({}, {})
