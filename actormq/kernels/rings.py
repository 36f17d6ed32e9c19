# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True, annotation_typing=False
"""Cells and rings: how two processes hand bytes over through shared memory without a lock.

A *cell* is a 64-bit word on a cache line of its own, written by one process and read by any.
A *ring* carries entries from one producer to one consumer.  Its memory:

=========  ==============================================================================
bytes      meaning
=========  ==============================================================================
0..63      head: bytes ever consumed (cell 0, the consumer's)
64..127    tail: bytes ever produced (cell 8, the producer's)
128..191   capacity of the data in bytes, a multiple of 64 (cell 16)
192..      data: the byte at position p of the stream is at ``192 + p % capacity``
=========  ==============================================================================

An entry: u64 (little-endian) payload length, payload, padding to a multiple of 8.  An entry never
wraps: where the rest of the lap is too short, its first word is `LAP_END` and the entry begins at
the lap's start.  The tail moves last (release), so who sees it (acquire) sees whole entries; the
head moves after the consumer is done with the bytes.  A process may die between any two steps:
what it had not published did not happen, what the consumer had not released is seen again.

Uncompiled there is no fence: release and acquire are what x86-64 does by itself, and the
handshake of going to sleep is replaced by always ringing (`FENCED` is False).
"""

from __future__ import annotations

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if cython.compiled:
    from cython.cimports.actormq.kernels.atomics import (
        amq_fetch_add,
        amq_full_fence,
        amq_load_acquire,
        amq_pause,
        amq_store_release,
    )
    from cython.cimports.cpython.buffer import Py_buffer, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
    from cython.cimports.libc.string import memcpy

FENCED: bool = bool(cython.compiled)
"""True when `full_fence` is one: only then may a doorbell stay silent because nobody sleeps."""

HEAD = _HEAD = 0
TAIL = _TAIL = 8
CAPACITY = _CAPACITY = 16
DATA = _DATA = 192
LINE = _LINE = 8
"""Words in a cache line."""
WORD = _WORD = 8
LAP_END = _LAP_END = 0xFFFFFFFF
# The names with an underscore are C constants when compiled: fast here, invisible outside.


def load_acquire(cells: memoryview, index: int) -> int:
    """Return cell `index` of `cells` (cast to "Q"); what its writer wrote before is visible, too."""
    if cython.compiled:
        return amq_load_acquire(cython.address(cells[_checked(cells, index)]))  # type: ignore[no-any-return]
    else:
        return cells[_checked(cells, index)]


def store_release(cells: memoryview, index: int, value: int) -> None:
    """Set cell `index`; whoever sees the value sees everything written before it."""
    if cython.compiled:
        amq_store_release(cython.address(cells[_checked(cells, index)]), value)
    else:
        cells[_checked(cells, index)] = value


def fetch_add(cells: memoryview, index: int, value: int) -> int:
    """Add to cell `index`, modulo 2**64, and return what it was.  Uncompiled: one writer only."""
    if cython.compiled:
        return amq_fetch_add(cython.address(cells[_checked(cells, index)]), value)  # type: ignore[no-any-return]
    else:
        before = cells[_checked(cells, index)]
        cells[index] = (before + value) & 0xFFFF_FFFF_FFFF_FFFF
        return before


def full_fence() -> None:
    """Let no later load pass an earlier store.  Does nothing uncompiled."""
    if cython.compiled:
        amq_full_fence()


def store_then_load(cells: memoryview, store_index: int, value: int, load_index: int, fenced: bool) -> int:
    """Set one cell, then read another: both sides of the sleep handshake.

    Of two processes that do this with the indexes swapped, at least one sees the other's value.
    `fenced=False` exists for the litmus test, which shows that then both can miss it.
    """
    store_release(cells, store_index, value)
    if fenced:
        full_fence()
    return load_acquire(cells, load_index)


def waiters(cells: memoryview, first: int, stride: int, count: int, reached: int) -> list[int]:
    """Return which of `count` cells, `stride` apart from `first`, are neither 0 nor above `reached`.

    Fenced before: called after publishing `reached`, it misses no wish that was set before its
    owner looked at the published cell for the last time.
    """
    full_fence()
    _checked(cells, first)
    _checked(cells, first + stride * (count - 1))
    found = []
    for number in range(count):
        wish = load_acquire(cells, first + stride * number)
        if wish != 0 and wish <= reached:
            found.append(number)
    return found


def _checked(cells: memoryview, index: int) -> int:
    if index < 0 or index >= len(cells):
        raise IndexError(f"no cell {index}")
    return index


class Cells:
    """Cells over one buffer, held open: several times faster than the functions above."""

    def __init__(self, view: memoryview) -> None:
        """`view`: writable bytes, a multiple of 8 long, aligned to 8."""
        self._cells = view.cast("Q")

    def load(self, index: int) -> int:
        """As `load_acquire`."""
        return load_acquire(self._cells, index)

    def store(self, index: int, value: int) -> None:
        """As `store_release`."""
        store_release(self._cells, index, value)

    def add(self, index: int, value: int) -> int:
        """As `fetch_add`."""
        return fetch_add(self._cells, index, value)

    def store_then_fence(self, index: int, value: int) -> None:
        """Set cell `index`; no load after this passes it."""
        store_release(self._cells, index, value)
        full_fence()

    def fence_then_load(self, index: int) -> int:
        """Return cell `index`, read after every store before this is visible."""
        full_fence()
        return load_acquire(self._cells, index)

    def waiters(self, first: int, stride: int, count: int, reached: int) -> list[int]:
        """As the function of that name."""
        return waiters(self._cells, first, stride, count, reached)


class CellPage:
    """A page of cells, each on a cache line of its own: first everybody's, then as many for each slot."""

    def __init__(self, view: memoryview, common: int, slots: int, slot_cells: int) -> None:
        """`view`: at least ``64 * (common + slots * slot_cells)`` writable bytes, aligned to 8."""
        self._common = common
        self._slots = slots
        self._slot_cells = slot_cells
        self._cells = view[: _LINE * _WORD * (common + slots * slot_cells)].cast("Q")

    def get(self, cell: int) -> int:
        """Return one of everybody's cells; all that it stands for is visible."""
        return load_acquire(self._cells, cell * _LINE)

    def set(self, cell: int, value: int) -> None:
        """Publish one of everybody's cells, after what it stands for."""
        store_release(self._cells, cell * _LINE, value)

    def role(self, slot: int, cell: int) -> int:
        """Return a cell of the role in `slot`."""
        return load_acquire(self._cells, self.index(slot, cell))

    def set_role(self, slot: int, cell: int, value: int) -> None:
        """Publish a cell of the role in `slot`."""
        store_release(self._cells, self.index(slot, cell), value)

    def role_after_fence(self, slot: int, cell: int) -> int:
        """As `role`, after everything that was published before is visible.

        Who announces and then looks, and who publishes and then reads this: one of the two sees the other.
        """
        full_fence()
        return load_acquire(self._cells, self.index(slot, cell))

    def set_role_then_fence(self, slot: int, cell: int, value: int) -> None:
        """As `set_role`; no load after this passes it."""
        store_release(self._cells, self.index(slot, cell), value)
        full_fence()

    def add_role(self, slot: int, cell: int, value: int = 1) -> None:
        """Add to a cell of the role in `slot`, modulo 2**64."""
        fetch_add(self._cells, self.index(slot, cell), value)

    def waiters(self, cell: int, reached: int) -> list[int]:
        """Return the slots whose `cell` is neither 0 nor above `reached`.

        Call it after publishing: it fences first, so it misses nobody who looked before.
        """
        return waiters(self._cells, self.index(0, cell), self._slot_cells * _LINE, self._slots, reached)

    def index(self, slot: int, cell: int) -> int:
        """Return where in the page, in words, a cell of a slot is."""
        return (self._common + slot * self._slot_cells + cell) * _LINE


def ring_init(view: memoryview) -> None:
    """Make `view`, all of it zero, a ring: ``DATA + capacity`` bytes, the capacity a multiple of 64."""
    capacity = len(view) - _DATA
    if capacity < 64 or capacity % 64:
        raise ValueError(f"a ring cannot hold {capacity} bytes")
    store_release(view.cast("Q"), _CAPACITY, capacity)


def ring_capacity(view: memoryview) -> int:
    """Return the capacity in bytes that the ring itself states; raises ValueError when it is no ring."""
    capacity = load_acquire(view.cast("Q"), _CAPACITY)
    if capacity < 64 or capacity % 64 or capacity != len(view) - _DATA:
        raise ValueError(f"a ring of {capacity} bytes in {len(view)} bytes of memory")
    return capacity


def ring_region(view: memoryview, position: int) -> tuple[int, int]:
    """Return where in `view` the entries at stream `position` are: (start, end), equal when none.

    The region ends at the tail or at the end of the lap, so a drained ring takes two calls at most.
    Walk it entry by entry: at a `LAP_END` word skip to `end`.  Whoever has walked all of it stands
    at ``position + end - start``.  The bytes stay until the head has been moved past them.
    """
    cells = view.cast("Q")
    capacity = load_acquire(cells, _CAPACITY)
    pending = load_acquire(cells, _TAIL) - position
    assert 0 <= pending <= capacity, "the ring's tail is not within one capacity of its reader"
    at = position % capacity
    start = _DATA + at
    return start, start + min(pending, capacity - at)


class RingProducer:
    """The only one who adds to a ring."""

    def __init__(self, view: memoryview) -> None:
        """`view`: the whole ring's memory; what it holds already stays in it."""
        self._capacity = ring_capacity(view)
        self._view = view
        self._cells = view.cast("Q")
        self._tail = load_acquire(self._cells, _TAIL)
        self._head = load_acquire(self._cells, _HEAD)

    @property
    def free_bytes(self) -> int:
        """Bytes that are free now, headers and padding included."""
        self._head = load_acquire(self._cells, _HEAD)
        self._tail = load_acquire(self._cells, _TAIL)
        return self._capacity - (self._tail - self._head)

    @property
    def payload_max(self) -> int:
        """The longest payload that ever fits, in an empty ring."""
        return self._capacity - _WORD

    def try_push(self, *parts: bytes | bytearray | memoryview) -> bool:
        """Publish one entry of all `parts` (bytes or byte views) joined; False when it does not fit now.

        Ring the consumer's doorbell after False, too: where an entry needs more than half of the
        ring, the refusal has given the rest of the lap to the consumer to pass over.
        Raises ValueError when it can never fit.
        """
        return self._push(parts)

    def _push(self, parts: tuple[bytes | bytearray | memoryview, ...]) -> bool:
        size = 0
        for part in parts:
            size += len(part)
        needed = _WORD + (size + 7) // 8 * 8
        if needed > self._capacity:
            raise ValueError(f"{size} bytes never fit into a ring of {self._capacity}")
        # From the ring, not from memory of ours: a kernel of this role may have added entries meanwhile.
        self._tail = load_acquire(self._cells, _TAIL)
        at = self._place(needed)
        if at < 0:
            return False
        self._cells[(_DATA + at) >> 3] = size
        self._copy(_DATA + at + _WORD, parts)
        self._tail += needed
        # The tail moves last: a consumer that saw it early would read another lap's bytes.
        store_release(self._cells, _TAIL, self._tail)
        return True

    def _place(self, needed: int) -> int:
        """Return where in the data the entry may be written, -1 when nowhere yet."""
        at = self._tail % self._capacity
        rest = self._capacity - at
        skipped = 0 if needed <= rest else rest
        if self._tail + skipped + needed - self._head > self._capacity:
            self._head = load_acquire(self._cells, _HEAD)
        free = self._capacity - (self._tail - self._head)
        if skipped == 0:
            return at if needed <= free else -1
        if skipped > free:
            return -1
        self._cells[(_DATA + at) >> 3] = _LAP_END
        self._tail += skipped
        if skipped + needed > free:
            store_release(self._cells, _TAIL, self._tail)
            return -1
        return 0

    def _copy(self, start: int, parts: tuple[bytes | bytearray | memoryview, ...]) -> None:
        for part in parts:
            size = len(part)
            if cython.compiled:
                buffer = cython.declare(Py_buffer)
                PyObject_GetBuffer(part, cython.address(buffer), PyBUF_SIMPLE)
                memcpy(cython.cast(cython.p_char, cython.address(self._cells[0])) + start, buffer.buf, size)
                PyBuffer_Release(cython.address(buffer))
            else:
                self._view[start : start + size] = part
            start += size


class RingConsumer:
    """The only one who takes from a ring."""

    def __init__(self, view: memoryview) -> None:
        """`view`: the whole ring's memory; begins with what nobody has released yet."""
        self._capacity = ring_capacity(view)
        self._view = view
        self._cells = view.cast("Q")
        self._position = load_acquire(self._cells, _HEAD)

    @property
    def position(self) -> int:
        """Bytes ever taken: where the next entry will be read."""
        return self._position

    def set_position(self, position: int) -> None:
        """Go to `position` and release everything before it."""
        assert 0 <= load_acquire(self._cells, _TAIL) - position <= self._capacity, (
            "a position outside the ring"
        )
        self._position = position
        store_release(self._cells, _HEAD, position)

    @property
    def pending_bytes(self) -> int:
        """Bytes published and not yet taken."""
        return load_acquire(self._cells, _TAIL) - self._position

    def empty(self) -> bool:
        """Whether there is nothing left to take."""
        return load_acquire(self._cells, _TAIL) == self._position

    def take(self, limit_bytes: int = 1 << 20) -> list[memoryview]:
        """Return the next payloads, not copied: one at least when there is any, then up to `limit_bytes`.

        They are valid until `release`.  What was taken and never released is taken again by the
        consumer that comes after a death.

        None while `position` has moved: a lap's unused rest was given back at once.  Ring the
        producer then as after `release`: its long entry waits for just that.
        """
        tail = load_acquire(self._cells, _TAIL)
        position = self._position
        assert 0 <= tail - position <= self._capacity, (
            "the ring's tail is not within one capacity of its reader"
        )
        taken: list[memoryview] = []
        while position != tail and limit_bytes > 0:
            at = position % self._capacity
            size = self._cells[(_DATA + at) >> 3]
            if size == _LAP_END:
                position += self._capacity - at
                continue
            needed = _WORD + (size + 7) // 8 * 8
            assert needed <= tail - position, "an entry beyond the ring's tail"
            assert needed <= self._capacity - at, "an entry beyond the lap's end"
            start = _DATA + at + _WORD
            taken.append(self._view[start : start + size])
            position += needed
            limit_bytes -= size + _WORD
        self._pass_over(position, taken)
        return taken

    def _pass_over(self, position: int, taken: list[memoryview]) -> None:
        """Move on; a lap's unused rest with no payload behind it is given back at once."""
        if not taken and position != self._position and load_acquire(self._cells, _HEAD) == self._position:
            store_release(self._cells, _HEAD, position)
        self._position = position

    def release(self) -> None:
        """Give back the memory of everything taken."""
        store_release(self._cells, _HEAD, self._position)


def litmus(cells: memoryview, mine: int, theirs: int, rounds: int, seed: int, fenced: bool) -> int:
    """Play `rounds` of the sleep handshake against another process; return how often both sides missed.

    A round: meet, wait a random while, `store_then_load`, compare.  Each side owns three cells (at
    `mine`, `mine` + 8, `mine` + 16), all zero before.  Both sides return the same number.
    """
    lost = 0
    for number in range(1, rounds + 1):
        store_release(cells, mine + 8, number)
        _await(cells, theirs + 8, number)
        seed = (seed * 6364136223846793005 + 1442695040888963407) & 0xFFFF_FFFF_FFFF_FFFF
        _spin((seed >> 33) & 63)
        seen = store_then_load(cells, mine, number, theirs, fenced) >= number
        store_release(cells, mine + 16, number * 2 + seen)
        other = _await(cells, theirs + 16, number * 2)
        if not seen and other == number * 2:
            lost += 1
    return lost


def _await(cells: memoryview, index: int, reached: int) -> int:
    turns = 0
    value = load_acquire(cells, index)
    while value < reached:
        turns += 1
        if cython.compiled:
            amq_pause()
        if turns % 1000 == 0:
            _let_others_run()
        value = load_acquire(cells, index)
    return value


def _spin(turns: int) -> None:
    for _ in range(turns):
        if cython.compiled:
            amq_pause()


def _let_others_run() -> None:
    import os

    os.sched_yield()
