"""Delayed delivery: never early, each entry at least once, the saved offset never past an undelivered one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actormq.broker.delay import DelayLevels, DueEntry, Schedule, level_of, park, restore
from actormq.errors import ConfigError

LEVELS = DelayLevels("1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h")


def test_the_default_table() -> None:
    """18 levels, clamped above, one second for a level that does not exist."""
    assert LEVELS.highest == 18
    assert (LEVELS.delay_ms(1), LEVELS.delay_ms(18), LEVELS.delay_ms(40)) == (1_000, 7_200_000, 7_200_000)
    assert LEVELS.delay_ms(0) == 1_000
    assert LEVELS.due_ms(3, 1_000_000) == 1_010_000


@pytest.mark.parametrize("text", ["", "1x", "s", "1s,5s", "-1s"])
def test_a_table_that_cannot_be_read(text: str) -> None:
    """A wrong table stops the start with a sentence."""
    with pytest.raises(ConfigError, match="messageDelayLevel"):
        DelayLevels(text)


def test_parking_and_restoring_bring_a_message_back_to_its_place() -> None:
    """It waits in its level's queue, and comes back without delay, to its own queue."""
    parked = park("orders", 3, {"DELAY": "25", "TAGS": "a"}, LEVELS)
    assert (parked.topic, parked.queue_id) == ("SCHEDULE_TOPIC_XXXX", 17)
    assert parked.properties["DELAY"] == "18"
    back = restore(parked.properties)
    assert back is not None
    assert (back.topic, back.queue_id) == ("orders", 3)
    assert "DELAY" not in back.properties
    assert (back.properties["TAGS"], back.properties["WAIT"]) == ("a", "false")


@pytest.mark.parametrize("properties", [{}, {"DELAY": "0"}, {"DELAY": "-3"}, {"DELAY": "x"}])
def test_a_message_without_a_level_stays(properties: dict[str, str]) -> None:
    """No, zero, negative or unreadable level: not delayed."""
    assert level_of(properties) == 0
    assert park("orders", 3, properties, LEVELS) == ("orders", 3, properties)


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"REAL_TOPIC": "t"},
        {"REAL_TOPIC": "t", "REAL_QID": "-1"},
        {"REAL_TOPIC": "RMQ_SYS_TRANS_HALF_TOPIC", "REAL_QID": "0"},
    ],
)
def test_what_has_no_place_is_not_delivered(properties: dict[str, str]) -> None:
    """No place, a senseless one, or the half topic: dropped."""
    assert restore(properties) is None


class ScheduleMachine(RuleBasedStateMachine):
    """One level's queue grows, entries become due, deliveries succeed, fail or are lost with the process."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000
        self.queue: list[DueEntry] = []
        self.delivered: dict[int, int] = {}
        self.under_way: set[int] = set()
        self.saved: dict[int, int] = {}
        self.schedule = Schedule(LEVELS, {}, under_way_max=5)

    @rule(gap=st.integers(0, 900))
    def arrive(self, gap: int) -> None:
        self.now += gap
        self.queue.append(DueEntry(len(self.queue), len(self.queue) * 100, 100, self.now + 1_000))
        self.schedule.grown(1)

    @rule()
    def look(self) -> None:
        """What the actor does when it wakes."""
        wake = self.schedule.wake_ms()
        if wake is not None and wake > self.now:
            self.now = wake
        due = [self.queue[offset] for offset in self.schedule.retries(1, self.now)]
        if 1 in self.schedule.due_levels(self.now):
            at = self.schedule.position(1)
            due += self.schedule.offer(1, self.queue[at : at + self.schedule.room(1)], self.now)
        for entry in due:
            assert entry.due_ms <= self.now, "delivered early"
            assert entry.queue_offset not in self.under_way, "handed out twice in one life"
            self.under_way.add(entry.queue_offset)
        assert len(self.under_way) <= 5

    @rule(data=st.data(), fails=st.booleans())
    def answer(self, data: st.DataObject, fails: bool) -> None:
        if not self.under_way:
            return
        offset = data.draw(st.sampled_from(sorted(self.under_way)))
        self.under_way.discard(offset)
        if fails:
            self.schedule.fail(1, offset, self.now + 100)
        else:
            self.delivered[offset] = self.delivered.get(offset, 0) + 1
            self.schedule.finish(1, offset, self.now)

    @rule()
    def save(self) -> None:
        self.saved = self.schedule.saved()

    @rule()
    def die(self) -> None:
        self.under_way.clear()
        self.schedule = Schedule(LEVELS, self.saved, under_way_max=5)

    @invariant()
    def nothing_undelivered_is_behind_the_offset(self) -> None:
        assert all(offset in self.delivered for offset in range(self.schedule.saved()[1]))

    @invariant()
    def something_will_wake_us_for_every_undelivered_entry(self) -> None:
        known = self.schedule.position(1)
        if len(self.queue) > known and self.schedule.room(1):
            wake = self.schedule.wake_ms()
            assert wake is not None
            assert wake <= max(self.now, self.queue[known].due_ms)


TestSchedule = ScheduleMachine.TestCase
TestSchedule.settings = settings(max_examples=60, stateful_step_count=40)


@given(st.integers(0, 10_000_000))
def test_a_due_time_beyond_the_levels_delay_is_now(ahead: int) -> None:
    """A table that was shortened, or a clock set back, does not hold messages for ever."""
    schedule = Schedule(LEVELS, {})
    due = schedule.offer(1, [DueEntry(0, 0, 100, 5_000 + ahead)], 5_000)
    assert bool(due) is (ahead == 0 or ahead > 1_000)
    assert due or schedule.wake_ms() == 0  # the other levels have not been looked at yet


def test_a_position_outside_its_queue_is_brought_in() -> None:
    """Below the queue's start, or beyond its end (after a cut): moved, reported, saved."""
    schedule = Schedule(LEVELS, {1: 5, 2: 5})
    assert schedule.clamp(1, 7, 9) == 5
    assert schedule.clamp(2, 0, 3) == 5
    assert schedule.clamp(2, 0, 3) is None
    assert (schedule.saved()[1], schedule.saved()[2]) == (7, 3)
    assert schedule.changed


def test_versions_grow_once_per_200_deliveries() -> None:
    """As RocketMQ's delayOffset.json."""
    schedule = Schedule(LEVELS, {}, under_way_max=1000)
    schedule.offer(1, [DueEntry(n, 0, 100, 0) for n in range(400)], 1)
    for n in range(400):
        schedule.finish(1, n, 77)
    assert (schedule.version.counter, schedule.version.timestamp) == (2, 77)
