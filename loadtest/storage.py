"""The store alone beside plain `write()`: how much of what files can take comes through our append path.

One process.  The requests lie in a writer's request ring, the same lap again and again, so that sending
costs nothing; everything behind it is what the broker does in async mode: the kernel encodes records, with
checksums and queue offsets, the batch is announced, written, published and answered; full files are rolled.
The other side writes as many bytes, from as much memory, in the same pieces, into files of the same size.

The files are allocated before the clock runs, on both sides: the cleaner does that ahead of the writer.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final

from actormq.actors.writer import BATCH_BYTES, Writer
from actormq.config import StoreConfig
from actormq.kernels import records
from actormq.kernels.rings import CAPACITY, DATA, HEAD, LAP_END, TAIL, Cells
from actormq.shm.append_port import REQUEST
from actormq.shm.extents import Extents
from actormq.shm.intent import IntentPage
from actormq.shm.positions import Position, Positions
from actormq.shm.ring import Port, RingProducer
from actormq.store.commit_log import FOLDER, LogFiles, LogReader
from actormq.store.disk import RealDisk
from loadtest.compare import Figures
from loadtest.machine import CpuMeter, CpuUse
from loadtest.processes import folder
from loadtest.servers import Server

_HOST: Final = bytes([127, 0, 0, 1, 0, 0, 42, 159])
_TOPIC: Final = b"bench"
_PROPERTIES: Final = b"UNIQ_KEY\x017F00000100002A9F0000000000000001\x02"
_REQUEST_RING_BYTES: Final = 5 << 20
_COMPLETION_RING_BYTES: Final = 4 << 20
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be written.

    Attributes:
        size: bytes of a body.
        total_bytes: of log, at least.
        file_bytes: the size of a log file; several are filled.
    """

    size: int
    total_bytes: int
    file_bytes: int


@contextmanager
def running(kind: str) -> Iterator[Server]:
    """Stand in for a server: nothing runs, and a run makes what it needs."""
    about = {"durability": "async", "version": "the store alone" if kind == "store" else "write()"}
    yield Server(kind=kind, namesrv="", broker="", url="", pids=(), about=about)


def measure(server: Server, work: Work) -> tuple[Figures, CpuUse]:
    """Run one side."""
    with folder("store") as home:
        return _store(home, work) if server.kind == "store" else _plain(home, work)


class _Store:
    """A writer, and a client that has always sent already."""

    def __init__(self, root: Path, work: Work) -> None:
        self.config = StoreConfig(root=root, log_file_bytes=work.file_bytes)
        self.positions = Positions(memoryview(bytearray(Positions.payload_bytes())))
        extents = memoryview(bytearray(Extents.payload_bytes(64)))
        Extents(extents).open_row(0, 1, 0, 0)
        intent = memoryview(bytearray(IntentPage.payload_bytes()))
        self.writer = Writer(self.config, RealDisk(), self.positions, extents, intent, _HOST)
        self.port = Port.create("amq-bench", "append", _REQUEST_RING_BYTES, _COMPLETION_RING_BYTES)
        self.port.segment.unlink()
        self._fill(bytes(work.size))
        self.writer.open_port(16, 1, self.port)
        self.writer.recover()
        self._requests, self._completions = Cells(self.port.requests), Cells(self.port.completions)

    def _fill(self, body: bytes) -> None:
        """Put one lap of requests into the ring."""
        header = REQUEST.pack(
            1, 0, 1, 0, 1, 1, 0, 0, 0, len(body), 1, 0, 0, len(_TOPIC), len(_PROPERTIES), len(_HOST), 0, 0
        )
        ring = RingProducer(self.port.requests)
        while ring.try_push(header, _HOST, _TOPIC, _PROPERTIES, body):
            pass
        cells = Cells(self.port.requests)
        used, capacity = cells.load(TAIL), cells.load(CAPACITY)
        if used < capacity:
            self.port.requests.cast("Q")[(DATA + used) >> 3] = LAP_END
            cells.store(TAIL, capacity)
        self._lap_bytes = capacity

    def append(self, total_bytes: int) -> int:
        """Have so much stored; return where the log ends."""
        clock = time.monotonic_ns
        while self.writer.appended < total_bytes:
            if not self.writer.run(int(time.time() * 1_000), clock()):
                # All answered: the same lap is sent again.
                self._requests.store(TAIL, self._requests.load(HEAD) + self._lap_bytes)
            self._completions.store(HEAD, self._completions.load(TAIL))
        return self.writer.appended

    def close(self) -> None:
        self.writer.files.close()
        self.port.segment.close()


def _store(home: Path, work: Work) -> tuple[Figures, CpuUse]:
    files = _make(home, work)
    store = _Store(home, work)
    gc.collect()
    gc.freeze()  # as every role does: there is nothing to be found among what was imported
    try:
        end, seconds, cpu = _timed(lambda: store.append(work.total_bytes))
        count = _read_back(home, work, end)
    finally:
        gc.unfreeze()
        store.close()
        files.close()
    assert store.positions.get(Position.APPENDED) == end
    return {"mib_per_s": end / seconds / _MIB, "rate": count / seconds, "count": float(count)}, cpu


def _read_back(home: Path, work: Work, end: int) -> int:
    """Return how many records lie in the log up to `end`, checksums checked.

    Raises:
        RuntimeError: something else lies there.
    """
    reader = LogReader(RealDisk(), home / FOLDER, work.file_bytes, maps_max=1)
    count = start = 0
    while start < end:
        base = start - start % work.file_bytes
        found = records.scan(reader.file(base), start - base, base, stop=end - base, check_crc=True)
        count += found.records
        start = base + found.end
        if found.reason == records.ScanEnd.BLANK:
            start = base + work.file_bytes
        elif start < end:
            raise RuntimeError(f"no record at log offset {start}: {records.ScanEnd(found.reason).name}")
    return count


def _batch_bytes(work: Work) -> int:
    """Return what the writer writes at once while there is always more: whole records."""
    record = records.record_size(len(_HOST), len(_HOST), len(_TOPIC), len(_PROPERTIES), work.size)
    return BATCH_BYTES // record * record


def _plain(home: Path, work: Work) -> tuple[Figures, CpuUse]:
    files = _make(home, work)
    source = memoryview(os.urandom(_REQUEST_RING_BYTES))
    size = _batch_bytes(work)
    pieces = cycle(source[at : at + size] for at in range(0, len(source) - size, size))
    descriptors = [os.open(files.path(base), os.O_WRONLY) for base in files.bases()]

    def write_all() -> int:
        left = work.total_bytes
        for descriptor in descriptors:
            room = min(left, work.file_bytes)
            left -= room
            while room > 0:
                room -= os.write(descriptor, next(pieces)[:room])
        return work.total_bytes - left

    end, seconds, cpu = _timed(write_all)
    for descriptor in descriptors:
        os.close(descriptor)
    files.close()
    return {"mib_per_s": end / seconds / _MIB}, cpu


def _make(home: Path, work: Work) -> LogFiles:
    files = LogFiles(RealDisk(), home / FOLDER, work.file_bytes)
    for base in range(0, work.total_bytes + 2 * work.file_bytes, work.file_bytes):
        files.create(base)
    return files


def _timed(run: Callable[[], int]) -> tuple[int, float, CpuUse]:
    meter, began = CpuMeter([], []), time.perf_counter()
    result = run()
    seconds = time.perf_counter() - began
    return result, seconds, meter.stop()
