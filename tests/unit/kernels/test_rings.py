"""Rings and cells: compiled = uncompiled = a plain queue, whatever is done in whatever order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kernel_twins import twins

from actormq.kernels import rings as installed

CELLS_MAX = (1 << 64) - 1


PURE = twins("rings")[0]
VARIANTS = [pytest.param(PURE, id="python")]
if installed.FENCED:
    VARIANTS.append(pytest.param(installed, id="compiled"))
each_variant = pytest.mark.parametrize("rings", VARIANTS)


def new_ring(rings: ModuleType, capacity: int, lap_start: int = 0) -> memoryview:
    """Return an empty ring whose stream has already come to `lap_start`."""
    view = memoryview(bytearray(rings.DATA + capacity))
    rings.ring_init(view)
    cells = view.cast("Q")
    cells[rings.HEAD] = cells[rings.TAIL] = lap_start
    return view


def outcome(function: Callable[..., object], *arguments: object) -> object:
    """Return what the call returns, or the type of what it raises."""
    try:
        return function(*arguments)
    except Exception as trouble:
        return type(trouble)


@each_variant
def test_pushed_parts_come_out_joined_in_order(rings: ModuleType) -> None:
    """One entry per push: the parts joined, in the order of the pushes."""
    view = new_ring(rings, 256)
    producer, consumer = rings.RingProducer(view), rings.RingConsumer(view)
    assert producer.try_push(b"ab", memoryview(b"cde"), bytearray(b"f"))
    assert producer.try_push()
    assert producer.try_push(b"xyz")
    assert [bytes(payload) for payload in consumer.take()] == [b"abcdef", b"", b"xyz"]
    assert consumer.empty()


@each_variant
def test_full_ring_refuses_until_released(rings: ModuleType) -> None:
    """Taking alone frees nothing: the payloads are still being read."""
    view = new_ring(rings, 64)
    producer, consumer = rings.RingProducer(view), rings.RingConsumer(view)
    assert producer.try_push(bytes(24))
    assert producer.try_push(bytes(24))
    assert producer.free_bytes == 0
    assert not producer.try_push(b"x")
    assert len(consumer.take()) == 2
    assert not producer.try_push(b"x")
    consumer.release()
    assert producer.try_push(b"x")


@each_variant
def test_entry_never_wraps(rings: ModuleType) -> None:
    """Where the lap's rest is too short it is passed over, and the payload is one piece."""
    view = new_ring(rings, 128)
    producer, consumer = rings.RingProducer(view), rings.RingConsumer(view)
    assert producer.try_push(bytes(80))
    consumer.take()
    consumer.release()
    assert producer.try_push(b"y" * 72)
    (payload,) = consumer.take()
    assert bytes(payload) == b"y" * 72
    assert consumer.position == 128 + 80


@each_variant
@pytest.mark.parametrize("lap_start", range(0, 128, 8))
def test_longest_payload_fits_from_every_place(rings: ModuleType, lap_start: int) -> None:
    """After at most one refusal, which gives the lap's rest to the consumer to pass over."""
    view = new_ring(rings, 128, lap_start)
    producer, consumer = rings.RingProducer(view), rings.RingConsumer(view)
    longest = b"z" * producer.payload_max
    if not producer.try_push(longest):
        assert not consumer.empty()
        assert consumer.take() == []
        assert consumer.empty()
        assert producer.try_push(longest)
    assert [bytes(payload) for payload in consumer.take()] == [longest]
    with pytest.raises(ValueError, match="never fit"):
        producer.try_push(longest, b"z")


@each_variant
def test_lap_rest_is_not_given_back_past_unreleased_payloads(rings: ModuleType) -> None:
    """A take that finds only a lap's rest must not release what an earlier take still holds."""
    view = new_ring(rings, 128)
    producer, consumer = rings.RingProducer(view), rings.RingConsumer(view)
    assert producer.try_push(b"a" * 40)
    assert producer.try_push(b"b" * 40)
    consumer.take(1)
    consumer.release()
    held = consumer.take()
    assert not producer.try_push(b"c" * 64)
    assert consumer.take() == []
    assert not producer.try_push(b"c" * 64)
    assert [bytes(payload) for payload in held] == [b"b" * 40]
    consumer.release()
    assert producer.try_push(b"c" * 64)


@each_variant
def test_consumer_after_death_sees_the_unreleased_again(rings: ModuleType) -> None:
    """What was taken but not released was not done."""
    view = new_ring(rings, 256)
    producer, consumer = rings.RingProducer(view), rings.RingConsumer(view)
    for number in range(4):
        assert producer.try_push(bytes([number]))
    consumer.take(1)
    consumer.release()
    consumer.take()
    successor = rings.RingConsumer(view)
    assert [bytes(payload) for payload in successor.take()] == [b"\1", b"\2", b"\3"]


@each_variant
def test_position_can_be_moved_for_the_intent_protocol(rings: ModuleType) -> None:
    """`set_position` releases everything before it; a position outside the ring is a broken invariant."""
    view = new_ring(rings, 256)
    producer, consumer = rings.RingProducer(view), rings.RingConsumer(view)
    producer.try_push(b"first")
    producer.try_push(b"second")
    consumer.set_position(16)
    assert consumer.pending_bytes == 16
    assert [bytes(payload) for payload in rings.RingConsumer(view).take()] == [b"second"]
    with pytest.raises(AssertionError):
        consumer.set_position(40)


@each_variant
def test_region_ends_at_tail_or_lap(rings: ModuleType) -> None:
    """Another kernel that walks regions comes by every byte of the stream, in two regions at most."""
    view = new_ring(rings, 128, 112)
    rings.RingProducer(view).try_push(b"v" * 8)
    rings.RingProducer(view).try_push(b"w" * 24)
    start, end = rings.ring_region(view, 112)
    assert (start, end) == (rings.DATA + 112, rings.DATA + 128)
    assert bytes(view[start + rings.WORD : end]) == b"v" * 8
    start, end = rings.ring_region(view, 128)
    assert (start, end) == (rings.DATA, rings.DATA + 32)
    assert bytes(view[start + rings.WORD : end]) == b"w" * 24
    assert rings.ring_region(view, 160) == (rings.DATA + 32, rings.DATA + 32)


@each_variant
def test_foreign_memory_is_no_ring(rings: ModuleType) -> None:
    """A ring's own capacity must agree with the memory that it is in."""
    with pytest.raises(ValueError, match="ring"):
        rings.ring_init(memoryview(bytearray(rings.DATA + 32)))
    with pytest.raises(ValueError, match="ring"):
        rings.RingProducer(memoryview(bytearray(rings.DATA + 64)))
    view = new_ring(rings, 128)
    with pytest.raises(ValueError, match="ring"):
        rings.RingConsumer(view[:-64])


@each_variant
def test_entry_beyond_the_tail_is_a_broken_invariant(rings: ModuleType) -> None:
    """A length that reaches past what was published is never believed."""
    view = new_ring(rings, 128)
    rings.RingProducer(view).try_push(b"abc")
    view.cast("Q")[rings.DATA // 8] = 40
    with pytest.raises(AssertionError, match="beyond"):
        rings.RingConsumer(view).take()


@each_variant
def test_waiters_are_those_whose_wish_is_reached(rings: ModuleType) -> None:
    """0 is no wish; a wish equal to what is reached is reached."""
    cells = memoryview(bytearray(40 * 8)).cast("Q")
    for number, wish in enumerate((0, 5, 7, 6, CELLS_MAX)):
        cells[3 + 8 * number] = wish
    assert rings.waiters(cells, 3, 8, 5, 6) == [1, 3]
    assert rings.waiters(cells, 3, 8, 5, CELLS_MAX) == [1, 2, 3, 4]


@given(
    values=st.lists(st.integers(0, CELLS_MAX), min_size=1, max_size=8),
    index=st.integers(-2, 9),
    value=st.integers(0, CELLS_MAX),
)
def test_cells_agree(values: list[int], index: int, value: int) -> None:
    """Every function over cells does and refuses the same, compiled and uncompiled."""
    calls: list[tuple[str, tuple[object, ...]]] = [
        ("load_acquire", (index,)),
        ("store_release", (index, value)),
        ("fetch_add", (index, value)),
        ("store_then_load", (index, value, 0, True)),
        ("waiters", (index, 1, 2, value)),
    ]
    for name, arguments in calls:
        seen = []
        for rings in (PURE, installed):
            memory = memoryview(bytearray(8 * len(values)))
            cells = memory.cast("Q")
            for number, cell in enumerate(values):
                cells[number] = cell
            seen.append((outcome(getattr(rings, name), cells, *arguments), bytes(memory)))
        assert seen[0] == seen[1], name


class RingMachine(RuleBasedStateMachine):
    """A pure and an installed ring beside a deque: same answers, same bytes of shared memory."""

    def __init__(self) -> None:
        super().__init__()
        self.views = [new_ring(rings, 192) for rings in (PURE, installed)]
        self.model: deque[bytes] = deque()
        self.taken = 0
        self.new_producer()
        self.new_consumer()

    @rule()
    def new_producer(self) -> None:
        self.producers = [
            rings.RingProducer(view) for rings, view in zip((PURE, installed), self.views, strict=True)
        ]

    @rule()
    def new_consumer(self) -> None:
        self.consumers = [
            rings.RingConsumer(view) for rings, view in zip((PURE, installed), self.views, strict=True)
        ]
        self.taken = 0

    @rule(parts=st.lists(st.binary(max_size=90), max_size=3))
    def push(self, parts: list[bytes]) -> None:
        first, second = (outcome(producer.try_push, *parts) for producer in self.producers)
        assert first == second
        if first is True:
            self.model.append(b"".join(parts))
        elif not self.model and len(self.consumers[0].take()) == 0 == len(self.consumers[1].take()):
            # Nothing but a lap's rest was in the way.
            assert first is ValueError or outcome(self.producers[0].try_push, *parts) is True
            assert outcome(self.producers[1].try_push, *parts) == (first is not ValueError or ValueError)
            if first is False:
                self.model.append(b"".join(parts))

    @rule(limit=st.integers(1, 300))
    def take(self, limit: int) -> None:
        first, second = ([bytes(payload) for payload in consumer.take(limit)] for consumer in self.consumers)
        assert first == second
        expected = list(self.model)[self.taken : self.taken + len(first)]
        assert first == expected
        assert first or self.taken == len(self.model)
        self.taken += len(first)

    @rule()
    def release(self) -> None:
        for consumer in self.consumers:
            consumer.release()
        while self.taken:
            self.model.popleft()
            self.taken -= 1

    @precondition(lambda self: self.taken)
    @rule()
    def go_to_position(self) -> None:
        for consumer in self.consumers:
            consumer.set_position(consumer.position)
        while self.taken:
            self.model.popleft()
            self.taken -= 1

    @invariant()
    def agree(self) -> None:
        first, second = self.views
        assert first == second
        pure, compiled = self.consumers
        assert pure.position == compiled.position
        assert pure.pending_bytes == compiled.pending_bytes
        assert pure.empty() == compiled.empty()
        assert self.producers[0].free_bytes == self.producers[1].free_bytes
        region = PURE.ring_region(first, pure.position)
        assert region == installed.ring_region(second, pure.position)


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@pytest.mark.skipif(not installed.FENCED, reason="kernels are not compiled")
def test_variants_are_what_they_are_called() -> None:
    """The installed kernel is machine code, the pure one is not: the tests above compare two things."""
    assert installed.__file__.endswith((".so", ".dylib"))
    assert PURE.FENCED is False
