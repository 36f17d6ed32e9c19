"""Splitting queues: every queue has exactly one owner, and the owners are those that Java would choose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actormq.client.balance import (
    Average,
    AverageByCircle,
    ConsistentHash,
    Fixed,
    MachineRoom,
    MachineRoomNearby,
    Strategy,
    allocate,
)
from actormq.client.results import MessageQueue, queue_order

CLIENTS = st.sets(st.text("abc@#123", min_size=1, max_size=8), min_size=1, max_size=9)
QUEUES = st.sets(
    st.builds(MessageQueue, st.just("t"), st.sampled_from(["a", "b", "broker-c"]), st.integers(0, 15)),
    min_size=1,
)


def java_average(index: int, queues: list[MessageQueue], clients: int) -> list[MessageQueue]:
    """AllocateMessageQueueAveragely, step by step as client.md §5.3 has it."""
    n, rest = len(queues), len(queues) % clients
    size = 1 if n <= clients else n // clients + (1 if rest > 0 and index < rest else 0)
    start = index * size if rest > 0 and index < rest else index * size + rest
    return [queues[(start + i) % n] for i in range(max(0, min(size, n - start)))]


@pytest.mark.parametrize("strategy", [Average(), AverageByCircle(), ConsistentHash()])
@given(data=st.data())
def test_every_queue_has_exactly_one_owner(strategy: Strategy, data: st.DataObject) -> None:
    queues, clients = data.draw(QUEUES), data.draw(CLIENTS)
    owned = [queue for client in clients for queue in allocate(strategy, client, queues, clients)]
    assert sorted(owned) == sorted(queues)


@given(QUEUES, CLIENTS)
def test_average_is_javas(queues: set[MessageQueue], clients: set[str]) -> None:
    ordered, ids = sorted(queues, key=queue_order), sorted(clients, key=lambda text: text.encode("utf-16-be"))
    for index, client in enumerate(ids):
        assert allocate(Average(), client, queues, clients) == java_average(index, ordered, len(ids))


@given(QUEUES, CLIENTS)
def test_average_is_fair(queues: set[MessageQueue], clients: set[str]) -> None:
    shares = [len(allocate(Average(), client, queues, clients)) for client in clients]
    assert max(shares) - min(shares) <= 1


def test_the_order_of_the_inputs_does_not_matter() -> None:
    queues = [MessageQueue("t", "a", queue) for queue in range(7)]
    assert allocate(Average(), "b", reversed(queues), ["b", "a"]) == queues[4:]


def test_by_circle_deals_cards() -> None:
    queues = [MessageQueue("t", "a", queue) for queue in range(5)]
    assert allocate(AverageByCircle(), "b", queues, ["a", "b"]) == [queues[1], queues[3]]


def test_who_is_not_listed_gets_nothing() -> None:
    assert allocate(Average(), "c", [MessageQueue("t", "a", 0)], ["a", "b"]) == []
    assert allocate(Average(), "a", [], ["a"]) == []


def test_fixed_queues() -> None:
    queues = [MessageQueue("t", "a", queue) for queue in range(3)]
    assert allocate(Fixed((queues[2], queues[0])), "x", queues, ["x", "y"]) == [queues[0], queues[2]]


def test_machine_room_takes_only_its_rooms() -> None:
    """Contiguous shares, then the rest one by one (client.md §5.3)."""
    ours = [MessageQueue("t", "r1@a", queue) for queue in range(5)]
    others = [MessageQueue("t", "r2@a", 0), MessageQueue("t", "plain", 0)]
    room = MachineRoom(frozenset({"r1"}))
    assert allocate(room, "x", ours + others, ["x", "y"]) == [ours[0], ours[1], ours[4]]
    assert allocate(room, "y", ours + others, ["x", "y"]) == [ours[2], ours[3]]


def test_nearby_rooms_serve_themselves_and_share_the_orphans() -> None:
    near = [MessageQueue("t", "r1@a", queue) for queue in range(2)]
    orphans = [MessageQueue("t", "r9@a", queue) for queue in range(2)]
    strategy = MachineRoomNearby(
        Average(), lambda broker: broker.partition("@")[0], lambda client: client.partition("@")[0]
    )
    clients = ["r1@x", "r2@y"]
    assert strategy.name == "MACHINE_ROOM_NEARBY-AVG"
    assert allocate(strategy, "r1@x", near + orphans, clients) == [*near, orphans[0]]
    assert allocate(strategy, "r2@y", near + orphans, clients) == [orphans[1]]


@given(QUEUES, CLIENTS)
def test_consistent_hash_moves_only_the_queues_of_who_left(
    queues: set[MessageQueue], clients: set[str]
) -> None:
    gone = min(clients)
    rest = clients - {gone}
    for client in rest:
        before = set(allocate(ConsistentHash(), client, queues, clients))
        assert before <= set(allocate(ConsistentHash(), client, queues, rest))
