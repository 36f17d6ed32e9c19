"""holder: parks pulls that came too early.

From: gateways (Park), dispatcher (Arrived).  To: the gateway that parked (Wake), all through rings.
Owns nothing: gateways keep their parked requests and park them again when it is replaced.

A gateway that has parked compares by itself once more, and rings nobody.  The holder is rung by who tells of
growth (the dispatcher, while anything waits anywhere); it takes the parks then.  Between the two halves of
either side lies a full fence: of a growth and a park that cross each other, the gateway sees the
growth, or the dispatcher that somebody waits and the holder the park (ADR 37).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from actormq import faults
from actormq.actors.runtime import ProcessActor, RoleContext
from actormq.kernels.parks import ParkTable
from actormq.kernels.rings import FENCED, full_fence
from actormq.shm.doorbell import Doorbell
from actormq.shm.positions import Positions, RoleCell, slot_of
from actormq.shm.ring import Port, RingConsumer, RingProducer

ARRIVED: Final = struct.Struct("<I")
"""A row whose queue has grown; an entry of the ring names one or more."""
WAKE_BYTES: Final = 8
"""A park's number; an entry of the ring names one or more."""

ARRIVED_OVERFLOW: Final = RoleCell.COUNTER_7
"""The dispatcher counts here the times that it could not name a row: then all rows are looked at."""
WAITING: Final = RoleCell.COUNTER_7
"""A gateway's cell: how many pulls wait in it.  With none anywhere, nobody need hear what has grown."""
_WAKES_AN_ENTRY_MAX: Final = 512
_RETRY_NS: Final = 1_000_000


class ParkPort:
    """A gateway's end of its port to the holder."""

    def __init__(self, port: Port, holder: Doorbell, positions: Positions, slot: int) -> None:
        """`slot`: the gateway's."""
        self._positions = positions
        self._slot = slot
        self._said = -1
        self._requests = RingProducer(port.requests)
        self._completions = RingConsumer(port.completions)
        self._holder = holder
        self._rings = False
        # Half a ring at most: a longer entry might wait until the ring is quite empty.
        self.entry_bytes_max = self._requests.payload_max // 2

    def say_waiting(self, count: int) -> None:
        """Publish how many pulls wait; before the fence behind which new ones are compared."""
        if count != self._said:
            self._said = count
            self._positions.set_role(self._slot, WAITING, count)

    def try_park(self, parks: bytearray) -> bool:
        """Hand some over (`actormq.kernels.parks.PARK`); False when the ring is full.

        Compare each with its row afterwards, behind a fence: the holder looks when it hears of growth.
        """
        pushed = self._requests.try_push(parks)
        # Where nobody fences, the holder must look at once.
        self._rings |= not pushed or not FENCED
        return pushed

    def flush(self) -> None:
        """Wake the holder if it sleeps and must make room."""
        if self._rings:
            self._rings = False
            self._holder.ring()

    @property
    def has_woken(self) -> bool:
        """Whether `woken` has something."""
        return not self._completions.empty()

    def woken(self) -> list[memoryview]:
        """Return the numbers that were woken (u64, some in each view), valid until `release`."""
        return self._completions.take()

    def release(self) -> None:
        """Give back what `woken` returned."""
        self._completions.release()


@dataclass(slots=True)
class _Gateway:
    """The holder's end of one gateway's port."""

    incarnation: int
    requests: RingConsumer
    completions: RingProducer
    table: ParkTable


class HolderActor(ProcessActor):
    """Moves parks and wakes between rings and tables."""

    def __init__(self, context: RoleContext) -> None:
        super().__init__(context)
        self._gateways: dict[str, _Gateway] = {}
        self._arrived: RingConsumer | None = None
        self._look_at_all = False
        self._overflows = 0

    @property
    def parked(self) -> int:
        """How many parks there are; those of places that a gateway does not use now count as well."""
        return sum(len(gateway.table) for gateway in self._gateways.values())

    def on_port_opened(self, kind: str, client: str, incarnation: int, port: Port) -> None:
        if kind == "park":
            self._gateways[client] = _Gateway(
                incarnation,
                RingConsumer(port.requests),
                RingProducer(port.completions),
                ParkTable(self.context.segments["extents"].view),
            )
        else:
            self._arrived = RingConsumer(port.requests)
            self._look_at_all = True

    def on_port_closed(self, kind: str, client: str, incarnation: int) -> None:
        if kind == "park" and client in self._gateways and self._gateways[client].incarnation == incarnation:
            del self._gateways[client]

    def on_batch(self) -> bool:
        busy = self._take_arrivals()
        faults.point("holder.arrivals-looked")
        full_fence()
        for client, gateway in self._gateways.items():
            entries = gateway.requests.take()
            if entries:
                faults.point("holder.parks-taken")
                gateway.table.park(entries)
                gateway.requests.release()
                faults.point("holder.parked")
                busy = True
            if gateway.table.woken:
                self._send_wakes(client, gateway)
        return busy

    def _take_arrivals(self) -> bool:
        overflows = self.positions.role(slot_of("dispatcher"), ARRIVED_OVERFLOW)
        if overflows != self._overflows or self._look_at_all:
            self._overflows = overflows
            self._look_at_all = False
            for gateway in self._gateways.values():
                gateway.table.look_at_all()
        entries = self._arrived.take() if self._arrived is not None else []
        if not entries:
            return False
        faults.point("holder.arrivals-taken")
        for gateway in self._gateways.values():
            gateway.table.arrived(entries)
        assert self._arrived is not None
        self._arrived.release()
        return True

    def _send_wakes(self, client: str, gateway: _Gateway) -> None:
        """Name what is woken; what finds no room is tried again in a millisecond."""
        woken = gateway.table.woken
        rung = False
        # Half a ring at most: a longer entry might wait until the ring is quite empty.
        count = min(_WAKES_AN_ENTRY_MAX, max(1, gateway.completions.payload_max // 2 // WAKE_BYTES))
        while woken and gateway.completions.try_push(woken[: count * WAKE_BYTES]):
            del woken[: count * WAKE_BYTES]
            rung = True
        if rung:
            faults.point("holder.wakes-pushed")
            self.context.doorbells[client].ring()
            faults.point("holder.wakes-rung")

    def wake_at_ns(self) -> int | None:
        if any(gateway.table.woken for gateway in self._gateways.values()):
            return self.context.clock.monotonic_ns() + _RETRY_NS
        return None
