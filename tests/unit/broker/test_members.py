"""Members: who is in a group, what the group wants, and who is told when that changes."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actormq.broker.members import (
    Client,
    ConnectionKey,
    Members,
    MembersChange,
    heartbeat_from_json,
)
from actormq.broker.tables import ConsumerGroupOffline, ConsumerGroupOnline, SubscriptionGone, Tables


def client(
    connection: int = 1, client_id: str = "c1", *, gateway: str = "gateway-0", life: int = 1
) -> Client:
    key = ConnectionKey(gateway, life, connection)
    return Client(
        key, client_id, "127.0.0.1:9", "JAVA", 479, expires_ms=120_000, lease_ms=120_000, seen_wall_ms=0
    )


def beat(group: str = "g", topics: dict[str, int] | None = None, *, model: str = "CLUSTERING") -> object:
    wanted = {"t": 1} if topics is None else topics
    return {
        "clientID": "c1",
        "producerDataSet": [{"groupName": "p"}],
        "consumerDataSet": [
            {
                "groupName": group,
                "consumeType": "CONSUME_PASSIVELY",
                "messageModel": model,
                "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
                "unitMode": False,
                "subscriptionDataSet": [
                    {
                        "topic": topic,
                        "subString": "a || b",
                        "subVersion": version,
                        "tagsSet": ["a", "b"],
                        "codeSet": [97, 98],
                        "expressionType": "TAG",
                        "classFilterMode": False,
                        "filterClassSource": None,
                    }
                    for topic, version in wanted.items()
                ],
            }
        ],
    }


def heard(members: Members, who: Client, body: object) -> MembersChange:
    return members.heartbeat(who, heartbeat_from_json(body))


def test_a_first_heartbeat_brings_the_group_online() -> None:
    """Group and subscription are published, the members are told; a repeated heartbeat is no news."""
    members = Members()
    change = heard(members, client(), beat())
    assert change.entries[0] == ConsumerGroupOnline("g", "CLUSTERING")
    tables = Tables()
    for entry in change.entries:
        tables.put(entry)
    subscription = tables.subscription("g", "t")
    assert subscription is not None
    assert (subscription.tag_codes, subscription.expression) == ([97, 98], "a || b")
    assert change.changed_groups == ["g"]
    assert list(members.notices("g")) == [client().key]
    again = heard(members, client(), beat())
    assert (again.entries, again.changed_groups) == ([], [])
    assert list(members.producers["p"]) == [client().key]


def test_a_newer_subscription_replaces_an_older_one_silently() -> None:
    """Only topics that come or go are a change; an older version never replaces a newer."""
    members = Members()
    heard(members, client(), beat(topics={"t": 5}))
    assert heard(members, client(), beat(topics={"t": 4})).entries == []
    newer = heard(members, client(), beat(topics={"t": 6}))
    assert (len(newer.entries), newer.changed_groups) == (1, [])
    other = heard(members, client(), beat(topics={"u": 7}))
    assert SubscriptionGone("g", "t") in other.entries
    assert other.changed_groups == ["g"]


def test_broadcasting_groups_are_not_told() -> None:
    """Everybody has every queue: nothing to share out."""
    members = Members()
    heard(members, client(), beat(model="BROADCASTING"))
    assert list(members.notices("g")) == []
    assert list(members.notices("unknown")) == []


def test_a_close_removes_only_its_own_connection() -> None:
    """A client that came back before its old connection was seen to close stays a member."""
    members = Members()
    heard(members, client(1), beat())
    heard(members, client(2), beat())
    assert members.groups["g"].client_ids() == ["c1"]
    change = members.close(client(1).key)
    assert change.changed_groups == ["g"]
    assert members.groups["g"].client_ids() == ["c1"]
    assert members.find("g", "c1") is members.clients[client(2).key]
    last = members.close(client(2).key)
    assert last.entries == [ConsumerGroupOffline("g")]
    assert members.close(client(2).key).entries == []
    assert (members.clients, members.groups, members.producers) == ({}, {}, {})


def test_another_client_on_the_same_connection_replaces_the_first() -> None:
    """RocketMQ logs it; the former id is no member any more."""
    members = Members()
    heard(members, client(1, "c1"), beat())
    change = heard(members, client(1, "c2"), beat())
    assert members.groups["g"].client_ids() == ["c2"]
    assert "g" in change.changed_groups


def test_a_dead_gateway_closes_all_its_connections_at_once() -> None:
    """Its next life's connections and the other gateways' stay."""
    members = Members()
    for who in (client(1), client(2, "c2"), client(1, "c3", life=2), client(1, "c4", gateway="gateway-1")):
        heard(members, who, beat())
    change = members.close_gateway("gateway-0", 2)
    assert members.groups["g"].client_ids() == ["c3", "c4"]
    assert change.changed_groups == ["g"]
    members.close_gateway("gateway-0", 0)
    assert members.groups["g"].client_ids() == ["c4"]


def test_unregistering_leaves_the_named_groups_only() -> None:
    """By client id, on its own connection."""
    members = Members()
    heard(members, client(), beat())
    heard(members, client(), beat("h"))
    assert members.unregister(client().key, "someone else", "p", "g").entries == []
    change = members.unregister(client().key, "c1", None, "g")
    assert change.entries == [ConsumerGroupOffline("g")]
    assert list(members.groups) == ["h"]
    members.unregister(client().key, "c1", "p", None)
    assert members.producers == {}


def test_silence_ends_a_membership_at_its_time() -> None:
    """Not before, and a heartbeat begins the time anew."""
    members = Members()
    first = client()
    first.expires_ms = first.lease_ms = 5_000
    heard(members, first, beat())
    assert members.look_at_ms() == 5_000
    assert members.expire(4_999).entries == []
    renewed = client()
    renewed.expires_ms = 9_000
    heard(members, renewed, beat())
    assert members.expire(5_000).entries == []
    assert members.look_at_ms() == 9_000
    assert members.expire(9_000).entries == [ConsumerGroupOffline("g")]
    assert members.look_at_ms() is None


def test_a_coordinator_that_was_stopped_does_not_take_its_clients_for_dead() -> None:
    """Woken much too late, it gives everyone a new lease: their heartbeats wait in the mailbox."""
    members = Members()
    first = client()
    first.expires_ms = first.lease_ms = 5_000
    heard(members, first, beat())
    assert members.expire(15_000).entries == []
    assert members.look_at_ms() == 20_000
    assert members.expire(20_000).entries == [ConsumerGroupOffline("g")]


def test_enums_are_read_by_name_or_number_and_nulls_are_absent() -> None:
    """As fastjson reads them; the unknown gets RocketMQ's default."""
    members = Members()
    body = {
        "clientID": "c",
        "producerDataSet": None,
        "consumerDataSet": [
            {"groupName": "a", "messageModel": 0, "consumeType": 2, "consumeFromWhere": "?", "x": 1},
            {"groupName": "b", "messageModel": None, "consumeType": 9, "consumeFromWhere": 4},
        ],
    }
    heard(members, client(), body)
    a, b = members.groups["a"], members.groups["b"]
    assert (a.model, a.consume_type, a.consume_from_where) == (
        "BROADCASTING",
        "CONSUME_POP",
        "CONSUME_FROM_LAST_OFFSET",
    )
    assert (b.model, b.consume_type) == ("CLUSTERING", "CONSUME_PASSIVELY")
    assert b.consume_from_where == "CONSUME_FROM_FIRST_OFFSET"


class MembersMachine(RuleBasedStateMachine):
    """Whatever comes and goes, published tables and memory agree, and nobody is left over."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Members()
        self.tables = Tables()

    def take(self, change: MembersChange) -> None:
        for entry in change.entries:
            self.tables.put(entry)

    @rule(
        connection=st.integers(1, 3),
        life=st.integers(1, 2),
        name=st.sampled_from(["c1", "c2"]),
        group=st.sampled_from("gh"),
        topics=st.dictionaries(st.sampled_from("tu"), st.integers(0, 3), max_size=2),
    )
    def hear(self, connection: int, life: int, name: str, group: str, topics: dict[str, int]) -> None:
        self.take(heard(self.members, client(connection, name, life=life), beat(group, topics)))

    @rule(connection=st.integers(1, 3), life=st.integers(1, 2))
    def close(self, connection: int, life: int) -> None:
        self.take(self.members.close(client(connection, life=life).key))

    @rule(connection=st.integers(1, 3), group=st.sampled_from("gh"))
    def unregister(self, connection: int, group: str) -> None:
        self.take(self.members.unregister(client(connection).key, "c1", "p", group))

    @rule(life=st.integers(0, 2))
    def gateway_dies(self, life: int) -> None:
        self.take(self.members.close_gateway("gateway-0", life))
        assert all(key.incarnation == life for key in self.members.clients)

    @invariant()
    def tables_agree(self) -> None:
        assert set(self.tables.consumer_groups) == set(self.members.groups)
        for name, group in self.members.groups.items():
            assert group.members
            published = {t: s.sub_version for t, s in self.tables.subscriptions.get(name, {}).items()}
            assert published == {t: s.sub_version for t, s in group.subscriptions.items()}
            assert all(self.members.clients[key] is member for key, member in group.members.items())
        assert set(self.tables.subscriptions) <= set(self.members.groups)
        assert all(self.members.producers.values())


TestMembers = MembersMachine.TestCase
