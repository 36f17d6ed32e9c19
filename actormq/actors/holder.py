"""holder: parks pulls that came too early.

From: gateways (Park), dispatcher (Arrived).  To: the gateway that parked (Wake), all through rings.
Owns nothing: gateways keep their parked requests and park them again when it is replaced.
"""

from __future__ import annotations

import heapq
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from actormq import faults
from actormq.actors.runtime import ProcessActor, RoleContext
from actormq.shm.doorbell import Doorbell
from actormq.shm.extents import Extent, Extents
from actormq.shm.positions import RoleCell, slot_of
from actormq.shm.ring import Port, RingConsumer, RingProducer

PARK: Final = struct.Struct("<QIIqq")
"""park id, row, row incarnation, wanted (wake when the queue's max is above it), deadline (monotonic ns)."""
assert PARK.size == 32
ARRIVED: Final = struct.Struct("<I")
"""A row whose queue has grown; an entry of the ring names one or more."""
WAKE: Final = struct.Struct("<Q")
"""A park id; an entry of the ring names one or more."""

ARRIVED_OVERFLOW: Final = RoleCell.COUNTER_7
"""The dispatcher counts here the times that it could not name a row: then all rows are looked at."""
PARKED: Final = RoleCell.COUNTER_6
"""The holder's cell: how many pulls it holds.  With none, the dispatcher need not tell what has grown."""
_WAKES_AN_ENTRY_MAX: Final = 512
_RETRY_NS: Final = 1_000_000


class Park(NamedTuple):
    """A pull that waits for its queue to grow."""

    park_id: int
    row: int
    row_incarnation: int
    wanted: int
    deadline_ns: int


class ParkPort:
    """A gateway's end of its port to the holder."""

    def __init__(self, port: Port, holder: Doorbell) -> None:
        self._requests = RingProducer(port.requests)
        self._completions = RingConsumer(port.completions)
        self._holder = holder
        self._pushed = False

    def try_park(self, park: Park) -> bool:
        """Hand one over; False when the ring is full.  Call `flush` once after a batch."""
        self._pushed = True
        return self._requests.try_push(PARK.pack(*park))

    def flush(self) -> None:
        """Wake the holder if it sleeps and something was pushed since the last call."""
        if self._pushed:
            self._pushed = False
            self._holder.ring()

    @property
    def has_woken(self) -> bool:
        """Whether `woken` has something."""
        return not self._completions.empty()

    def woken(self) -> list[int]:
        """Take the ids that were woken."""
        entries = self._completions.take()
        if not entries:
            return []
        ids = [park_id for entry in entries for (park_id,) in WAKE.iter_unpack(entry)]
        self._completions.release()
        return ids


Key = tuple[str, int]
"""Who parked, and its park id."""


class Holder:
    """The parked pulls, by row and by deadline.

    A park is inserted first and compared then: what grows in between names its row afterwards.
    """

    def __init__(self, read: Callable[[int], Extent]) -> None:
        """`read`: the extent of a row, now."""
        self._read = read
        self._parked: dict[Key, Park] = {}
        self._rows: dict[int, set[Key]] = {}
        self._deadlines: list[tuple[int, Key]] = []

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, client: str, parks: Iterable[Park]) -> list[Key]:
        """Take parks over and return those that must be woken at once.

        A park whose id is known already replaces it: its gateway repeats itself.
        """
        rows = set()
        for park in parks:
            key = (client, park.park_id)
            self._forget(key)
            self._parked[key] = park
            self._rows.setdefault(park.row, set()).add(key)
            heapq.heappush(self._deadlines, (park.deadline_ns, key))
            rows.add(park.row)
        return self.arrived(rows)

    def arrived(self, rows: Iterable[int]) -> list[Key]:
        """Look at rows that have grown and return what is to be woken; it is not parked any more."""
        woken = []
        for row in rows:
            keys = self._rows.get(row)
            if keys:
                extent = self._read(row)
                woken += [key for key in keys if _is_due(self._parked[key], extent)]
        for key in woken:
            self._forget(key)
        return woken

    def look_at_all(self) -> list[Key]:
        """As `arrived`, for every row: nobody knows which have grown."""
        return self.arrived(list(self._rows))

    def on_tick(self, now_ns: int) -> None:
        """Forget what is over: its gateway has answered it by itself."""
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            deadline_ns, key = heapq.heappop(self._deadlines)
            park = self._parked.get(key)
            if park is not None and park.deadline_ns == deadline_ns:
                self._forget(key)

    def wake_at_ns(self) -> int | None:
        """When `on_tick` next has work."""
        while self._deadlines and self._deadlines[0][1] not in self._parked:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def drop(self, client: str) -> None:
        """Forget everything of a gateway that is gone."""
        for key in [key for key in self._parked if key[0] == client]:
            self._forget(key)

    def _forget(self, key: Key) -> None:
        park = self._parked.pop(key, None)
        if park is not None:
            keys = self._rows[park.row]
            keys.discard(key)
            if not keys:
                del self._rows[park.row]


def _is_due(park: Park, extent: Extent) -> bool:
    # Another incarnation: the topic is gone, which the gateway has to tell its client.
    return extent.incarnation != park.row_incarnation or extent.max > park.wanted


@dataclass(slots=True)
class _Gateway:
    """The holder's end of one gateway's port."""

    incarnation: int
    requests: RingConsumer
    completions: RingProducer
    wakes: deque[int] = field(default_factory=deque)


class HolderActor(ProcessActor):
    """Moves parks and wakes between rings and `Holder`."""

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self._gateways: dict[str, _Gateway] = {}
        self._arrived: RingConsumer | None = None
        self._look_at_all = False
        self._overflows = 0
        self.state = Holder(Extents(context.segments["extents"].view).read)

    def on_port_opened(self, kind: str, client: str, incarnation: int, port: Port) -> None:
        if kind == "park":
            self._forget_gateway(client)
            gateway = _Gateway(incarnation, RingConsumer(port.requests), RingProducer(port.completions))
            self._gateways[client] = gateway
        else:
            self._arrived = RingConsumer(port.requests)
            self._look_at_all = True

    def on_port_closed(self, kind: str, client: str, incarnation: int) -> None:
        if kind == "park" and client in self._gateways and self._gateways[client].incarnation == incarnation:
            self._forget_gateway(client)

    def _forget_gateway(self, client: str) -> None:
        self._gateways.pop(client, None)
        self.state.drop(client)

    def on_batch(self) -> bool:
        busy = self._take_arrivals()
        for client, gateway in self._gateways.items():
            busy |= self._take_parks(client, gateway)
        for client, gateway in self._gateways.items():
            if gateway.wakes:
                self._send_wakes(client, gateway)
        if busy:
            self.positions.set_role(self.context.slot, PARKED, len(self.state))
        return busy

    def _take_parks(self, client: str, gateway: _Gateway) -> bool:
        entries = gateway.requests.take()
        if not entries:
            return False
        parks = [Park._make(PARK.unpack(entry)) for entry in entries]
        gateway.requests.release()
        faults.point("holder.parks-taken")
        # Before the queues are looked at: what grows later is told, what grew before is seen.
        self.positions.announce_role(self.context.slot, PARKED, len(self.state) + len(parks))
        faults.point("holder.announced")
        self._wake(self.state.park(client, parks))
        faults.point("holder.parked")
        return True

    def _take_arrivals(self) -> bool:
        overflows = self.positions.role(slot_of("dispatcher"), ARRIVED_OVERFLOW)
        if overflows != self._overflows or self._look_at_all:
            self._overflows = overflows
            self._look_at_all = False
            self._wake(self.state.look_at_all())
        entries = self._arrived.take() if self._arrived is not None else []
        if not entries:
            return False
        rows = {row for entry in entries for (row,) in ARRIVED.iter_unpack(entry)}
        assert self._arrived is not None
        self._arrived.release()
        faults.point("holder.arrivals-taken")
        self._wake(self.state.arrived(rows))
        return True

    def _wake(self, keys: list[Key]) -> None:
        for client, park_id in keys:
            self._gateways[client].wakes.append(park_id)

    def _send_wakes(self, client: str, gateway: _Gateway) -> None:
        """Name what is woken; what finds no room is tried again in a millisecond."""
        rung = False
        # Half a ring at most: a longer entry might wait until the ring is quite empty.
        count = min(_WAKES_AN_ENTRY_MAX, max(1, gateway.completions.payload_max // 2 // WAKE.size))
        while gateway.wakes:
            ids = list(islice(gateway.wakes, count))
            if not gateway.completions.try_push(b"".join(map(WAKE.pack, ids))):
                break
            rung = True
            for _ in ids:
                gateway.wakes.popleft()
        if rung:
            faults.point("holder.wakes-pushed")
            self.context.doorbells[client].ring()
            faults.point("holder.wakes-rung")

    def wake_at_ns(self) -> int | None:
        if any(gateway.wakes for gateway in self._gateways.values()):
            return self.context.clock.monotonic_ns() + _RETRY_NS
        return self.state.wake_at_ns()

    def on_tick(self, now_ns: int) -> None:
        self.state.on_tick(now_ns)
