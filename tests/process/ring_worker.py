"""One side of the stress tests of shared memory, in a process of its own.

Started by the tests beside it: ``ring_worker.py ROLE '{"port": fd, …}'``.  Memory comes as
descriptors.  Nothing here has a timer when the kernels are compiled: a lost wake-up hangs, and the
test's deadline finds it.
"""

from __future__ import annotations

import json
import os
import random
import select
import struct
import sys
import zlib
from collections.abc import Callable

from actormq.kernels.rings import litmus
from actormq.shm.doorbell import ALWAYS_RINGS, Doorbell
from actormq.shm.positions import Position, Positions, RoleCell
from actormq.shm.ring import Port, RingConsumer, RingProducer
from actormq.shm.segment import Segment
from actormq.shm.tables import TablesPublisher, TablesReader

RECORD = struct.Struct("<QI")
PRODUCER, CONSUMER = 16, 1
VERIFIED, RELEASED = RoleCell.COUNTER_0, RoleCell.COUNTER_1
NOISE = random.Random(0).randbytes(1 << 17)


class Sleeper:
    """A role's way to sleep until there is something."""

    def __init__(self, bell: Doorbell) -> None:
        self._bell = bell
        self._poll = select.poll()
        self._poll.register(bell.fd, select.POLLIN)

    def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` holds; it is not asked again then."""
        while not condition():
            self._bell.prepare_sleep()
            if condition():
                self._bell.woke()
                return
            self._poll.poll(1 if ALWAYS_RINGS else None)
            self._bell.woke()


def record_size(number: int, size_max: int) -> int:
    """Return a size that both sides know: mostly small, now and then almost the whole ring."""
    mixed = number * 0x9E3779B97F4A7C15 >> 20
    return mixed % size_max if mixed % 1009 == 0 else mixed % 200


def produce(port: Port, mine: Sleeper, bell: Doorbell, records: int, size_max: int) -> None:
    """Push numbered records with checksums, as fast as the ring takes them."""
    ring = RingProducer(port.requests)
    noise = memoryview(NOISE)
    for number in range(1, records + 1):
        size = record_size(number, size_max - RECORD.size)
        start = number & 0xFFFF
        filler = noise[start : start + size]
        header = RECORD.pack(number, zlib.crc32(filler, number & 0xFFFFFFFF))

        def pushed(header: bytes = header, filler: memoryview = filler) -> bool:
            done = ring.try_push(header, filler)
            if not done:
                bell.ring()
            return done

        if not ring.try_push(header, filler):
            bell.ring()
            mine.until(pushed)
        if number % 64 == 0:
            bell.ring()
    bell.ring()


class Consumer:
    """Checks that every record comes, in order and unchanged; may be killed at any time."""

    def __init__(self, port: Port, positions: Positions, bell: Doorbell, size_max: int) -> None:
        self.ring = RingConsumer(port.requests)
        self.positions = positions
        self.bell = bell
        self.size_max = size_max
        self.released = positions.role(CONSUMER, RELEASED)
        self.verified_before = positions.role(CONSUMER, VERIFIED)
        self.last = 0

    def take_some(self) -> bool:
        """Take, check, release, in steps that a kill may fall between."""
        before = self.ring.position
        payloads = self.ring.take(1 << 16)
        if not payloads:
            if self.ring.position != before:
                self.bell.ring()
            return False
        for payload in payloads:
            self.check(payload)
        self.positions.set_role(CONSUMER, VERIFIED, self.last)
        self.ring.release()
        self.positions.set_role(CONSUMER, RELEASED, self.last)
        self.bell.ring()
        return True

    def check(self, payload: memoryview) -> None:
        number, checksum = RECORD.unpack_from(payload)
        if self.last == 0:
            # The one before us died somewhere between its two cells.
            assert self.released < number <= self.verified_before + 1, (
                number,
                self.released,
                self.verified_before,
            )
        else:
            assert number == self.last + 1, (number, self.last)
        assert len(payload) == RECORD.size + record_size(number, self.size_max - RECORD.size), number
        assert zlib.crc32(payload[RECORD.size :], number & 0xFFFFFFFF) == checksum, number
        self.last = number


def consume(consumer: Consumer, mine: Sleeper, records: int, ask_to_be_killed: int, every: int) -> None:
    """Consume until the last record; write a byte to `ask_to_be_killed` every so many records."""
    asked = consumer.verified_before // every
    # The one before us may have died between releasing and ringing.
    consumer.bell.ring()
    while consumer.last < records:
        if not consumer.take_some():
            mine.until(lambda: not consumer.ring.empty())
        if consumer.last // every > asked:
            asked = consumer.last // every
            os.write(ask_to_be_killed, b"k")


def hand_off(positions: Positions, mine: Sleeper, bell: Doorbell, first: bool, rounds: int) -> None:
    """Hand a number to and fro, each time after a random while, sleeping between."""
    publish, watch = (Position.APPENDED, Position.FLUSHED) if first else (Position.FLUSHED, Position.APPENDED)
    wait = random.Random(first).random
    for number in range(1, rounds + 1):
        if not first:
            mine.until(lambda number=number: positions.get(watch) >= number)  # type: ignore[misc]
        for _ in range(int(wait() * 40)):
            pass
        positions.set(publish, number)
        bell.ring()
        if first:
            mine.until(lambda number=number: positions.get(watch) >= number)  # type: ignore[misc]


def publish_tables(memory: memoryview, positions: Positions) -> None:
    """Publish entries that name their epoch, and flip as if no reader were anywhere, until told to stop."""
    publisher = TablesPublisher(memory, positions)
    number = 0
    while not positions.role(CONSUMER, RoleCell.COUNTER_0):
        number += 1
        entry = number.to_bytes(8, "little") * 500
        assert publisher.compact([entry] * (number % 7 + 1), lambda: True)
        for _ in range(number % 5):
            publisher.publish(entry, entry)


def read_tables(memory: memoryview, positions: Positions, resets: int) -> None:
    """Read so many snapshots; every entry must be whole and of the epoch that it came with."""
    reader = TablesReader(memory, positions, CONSUMER)
    number = 0
    while resets:
        reset, entries = reader.poll()
        if reset and entries:
            assert int.from_bytes(entries[0][:8], "little") > number
            number = int.from_bytes(entries[0][:8], "little")
            resets -= 1
        assert all(entry == number.to_bytes(8, "little") * 500 for entry in entries), number
    positions.set_role(CONSUMER, RoleCell.COUNTER_0, 1)


def main() -> None:
    role = sys.argv[1]
    given = json.loads(sys.argv[2])
    positions_segment = Segment.attach(given["positions"])
    positions = Positions(positions_segment.view)
    if role.startswith("litmus"):
        mine, theirs = (0, 32) if role == "litmus-first" else (32, 0)
        cells = Segment.attach(given["cells"]).view.cast("Q")
        seed = 1 if mine else 2
        print(litmus(cells, mine, theirs, given["rounds"], seed, given["fenced"]))
        return
    if role.endswith("tables"):
        memory = Segment.attach(given["cells"]).view
        if role == "publish-tables":
            publish_tables(memory, positions)
        else:
            read_tables(memory, positions, given["resets"])
        return
    bells = {slot: Doorbell(given[f"bell-{slot}"], positions, slot) for slot in (PRODUCER, CONSUMER)}
    if role == "produce":
        port = Port(Segment.attach(given["port"]))
        produce(port, Sleeper(bells[PRODUCER]), bells[CONSUMER], given["records"], given["size_max"])
    elif role == "consume":
        port = Port(Segment.attach(given["port"]))
        consumer = Consumer(port, positions, bells[PRODUCER], given["size_max"])
        consume(consumer, Sleeper(bells[CONSUMER]), given["records"], given["kill"], given["kill_every"])
    else:
        first = role == "hand-off-first"
        own, other = (PRODUCER, CONSUMER) if first else (CONSUMER, PRODUCER)
        hand_off(positions, Sleeper(bells[own]), bells[other], first, given["rounds"])


if __name__ == "__main__":
    main()
