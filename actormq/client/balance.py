"""Who consumes which queues: every client of a group computes the same answer from the same sorted lists.

Source: RocketMQ client/consumer/rebalance/*; client.md §5.3.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import md5
from typing import Protocol

from actormq.client.results import MessageQueue, queue_order, text_order


class Strategy(Protocol):
    """A rule that splits the queues of one topic among the clients of one group."""

    @property
    def name(self) -> str:
        """The rule's name, as RocketMQ calls it; all clients of a group must use the same."""
        ...

    def allocate(
        self, own_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]
    ) -> list[MessageQueue]:
        """Return the queues of `own_id`, one of `client_ids`; both lists are sorted and not empty."""
        ...


def allocate(
    strategy: Strategy, own_id: str, queues: Iterable[MessageQueue], client_ids: Iterable[str]
) -> list[MessageQueue]:
    """Return this client's queues; none when the broker does not (yet) know this client."""
    sorted_ids = sorted(set(client_ids), key=text_order)
    sorted_queues = sorted(set(queues), key=queue_order)
    if own_id not in sorted_ids or not sorted_queues:
        return []
    return strategy.allocate(own_id, sorted_queues, sorted_ids)


@dataclass(frozen=True, slots=True)
class Average:
    """Contiguous runs of queues, as even as possible; the first clients get one more."""

    name: str = "AVG"

    def allocate(
        self, own_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]
    ) -> list[MessageQueue]:
        index = client_ids.index(own_id)
        share, rest = divmod(len(queues), len(client_ids))
        start = index * share + min(index, rest)
        return list(queues[start : start + share + (index < rest)])


@dataclass(frozen=True, slots=True)
class AverageByCircle:
    """Every c-th queue, as cards are dealt."""

    name: str = "AVG_BY_CIRCLE"

    def allocate(
        self, own_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]
    ) -> list[MessageQueue]:
        return list(queues[client_ids.index(own_id) :: len(client_ids)])


@dataclass(frozen=True, slots=True)
class Fixed:
    """The queues that the user names, whoever else is there."""

    queues: tuple[MessageQueue, ...]
    name: str = "CONFIG"

    def allocate(
        self, own_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]
    ) -> list[MessageQueue]:
        return [queue for queue in queues if queue in self.queues]


@dataclass(frozen=True, slots=True)
class MachineRoom:
    """Only brokers named ``room@name`` in the given rooms; contiguous runs, then the rest one by one."""

    rooms: frozenset[str]
    name: str = "MACHINE_ROOM"

    def allocate(
        self, own_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]
    ) -> list[MessageQueue]:
        ours = [queue for queue in queues if self._is_ours(queue.broker_name)]
        index, clients = client_ids.index(own_id), len(client_ids)
        share, rest = divmod(len(ours), clients)
        mine = ours[share * index : share * (index + 1)]
        return mine + ([ours[index + share * clients]] if rest > index else [])

    def _is_ours(self, broker_name: str) -> bool:
        room, at, name = broker_name.partition("@")
        return bool(at and name) and "@" not in name and room in self.rooms


@dataclass(frozen=True, slots=True)
class MachineRoomNearby:
    """Each room's queues to the clients in it; queues of a room without clients to all clients.

    Attributes:
        room_of_broker, room_of_client: name to room.
    """

    inner: Strategy
    room_of_broker: Callable[[str], str]
    room_of_client: Callable[[str], str]

    @property
    def name(self) -> str:
        return f"MACHINE_ROOM_NEARBY-{self.inner.name}"

    def allocate(
        self, own_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]
    ) -> list[MessageQueue]:
        own_room = self.room_of_client(own_id)
        rooms_of_clients = {client: self.room_of_client(client) for client in client_ids}
        by_room: dict[str, list[MessageQueue]] = {}
        for queue in queues:
            by_room.setdefault(self.room_of_broker(queue.broker_name), []).append(queue)
        mine: list[MessageQueue] = []
        for room, in_room in by_room.items():
            if room == own_room:
                mine += self.inner.allocate(
                    own_id, in_room, [client for client in client_ids if rooms_of_clients[client] == room]
                )
            elif room not in rooms_of_clients.values():
                mine += self.inner.allocate(own_id, in_room, client_ids)
        return mine


@dataclass(frozen=True, slots=True)
class ConsistentHash:
    """A ring of clients, each at several places; a queue belongs to the next one on the ring.

    When a client comes or goes, few queues move.
    """

    places: int = 10
    name: str = "CONSISTENT_HASH"

    def allocate(
        self, own_id: str, queues: Sequence[MessageQueue], client_ids: Sequence[str]
    ) -> list[MessageQueue]:
        ring = sorted(
            {_place(f"{client}-{k}"): client for client in client_ids for k in range(self.places)}.items()
        )
        hashes = [place for place, _ in ring]
        return [
            queue
            for queue in queues
            if ring[bisect_left(hashes, _place(_queue_text(queue))) % len(ring)][1] == own_id
        ]


def _queue_text(queue: MessageQueue) -> str:
    return f"MessageQueue [topic={queue.topic}, brokerName={queue.broker_name}, queueId={queue.queue_id}]"


def _place(text: str) -> int:
    """Return where `text` is on the ring: the first four bytes of its MD5."""
    return int.from_bytes(md5(text.encode(), usedforsecurity=False).digest()[:4], "big")
