"""Progress: a successor finds it at once; the disk never knows more than the log can prove."""

from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actormq.actors.progress import LEDGER_BYTES, LedgerFile, SafeSave
from actormq.broker.ledger import Row


def rows(values: dict[bytes, int]) -> Callable[[], list[Row]]:
    return lambda: [Row(key, value, 0) for key, value in values.items()]


def test_a_successor_finds_what_was_put(tmp_path: Path) -> None:
    """Without a word from the dead: the file is all there is."""
    values: dict[bytes, int] = {}
    ledger = LedgerFile(tmp_path / "ledger", rows(values))
    assert ledger.found() == []
    ledger.put(Row(b"a", 1, 2))
    ledger.put(Row(b"a", 3, 4))
    assert LedgerFile(tmp_path / "ledger", rows(values)).found() == [Row(b"a", 3, 4)]


def test_it_grows_by_being_replaced_and_forgets_the_dead_keys(tmp_path: Path) -> None:
    """More keys than fit: what lives is carried over, the key that did not fit is in, too."""
    values: dict[bytes, int] = {}
    ledger = LedgerFile(tmp_path / "ledger", rows(values))
    for number in range(3 * LEDGER_BYTES // 80):
        key = b"key %d" % number
        ledger.put(Row(key, number, 0))
        values[key] = number
        if number % 2:
            del values[key]
    found = {row.key: row.value for row in LedgerFile(tmp_path / "ledger", rows(values)).found()}
    assert values.items() <= found.items()
    assert len(found) < 3 * LEDGER_BYTES // 80
    assert [path.name for path in tmp_path.iterdir()] == ["ledger"]


def test_a_foreign_file_is_replaced(tmp_path: Path) -> None:
    """A file of another format in the run folder is no reason not to start."""
    (tmp_path / "ledger").write_bytes(b"something else" * 100)
    assert LedgerFile(tmp_path / "ledger", rows({})).found() == []


class SafeSaveMachine(RuleBasedStateMachine):
    """Progress follows an append; appends become durable later; the file is written now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.save = SafeSave(100, 0)
        self.appended = self.flushed = 0
        self.progress = self.cause = 0
        self.causes = {0: 0}
        self.on_disk = self.taken = 0

    @rule(size=st.integers(1, 50))
    def append_then_progress(self, size: int) -> None:
        self.appended += size
        self.progress += 1
        self.causes[self.progress] = self.appended

    @rule(part=st.integers(0, 100))
    def flush(self, part: int) -> None:
        self.flushed += (self.appended - self.flushed) * part // 100

    @rule(ms=st.integers(1, 150))
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule()
    def hurry(self) -> None:
        self.save.hurry()

    def take(self) -> dict[str, int] | None:
        if self.progress == self.taken:
            return None
        self.taken = self.progress
        return {"at": self.progress}

    @rule()
    def look(self) -> None:
        table = self.save.look(self.now, self.appended, self.flushed, self.take)
        if table is not None:
            self.on_disk = table["at"]

    @invariant()
    def the_disk_never_knows_more_than_the_log(self) -> None:
        assert self.causes[self.on_disk] <= self.flushed

    @invariant()
    def what_is_missing_is_waited_for(self) -> None:
        if self.save.pending:
            assert self.save.wanted_flushed <= self.appended
            assert self.save.wake_ms() is None
        else:
            assert self.save.wake_ms() is not None


TestSafeSave = SafeSaveMachine.TestCase
