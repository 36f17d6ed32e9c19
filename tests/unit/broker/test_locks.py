"""Queue locks: one owner at a time, for 60 s beyond the last renewal."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actormq.broker.locks import LockRow, Locks, QueueKey

EXPIRY = 60_000
queues = st.builds(QueueKey, st.sampled_from("pq"), st.integers(0, 2))
groups = st.sampled_from(["g", "h"])
clients = st.sampled_from(["one", "two", "three"])


class LocksMachine(RuleBasedStateMachine):
    """Clients lock, unlock, fall silent; the coordinator dies and reads its rows again."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1
        self.locks = Locks(expiry_ms=EXPIRY)
        self.owned: dict[tuple[str, QueueKey], tuple[str, int]] = {}
        self.rows: dict[tuple[str, QueueKey, str], int] = {}

    def keep(self, rows: list[LockRow]) -> None:
        for row in rows:
            self.rows[row.group, row.queue, row.client_id] = row.renewed_ms

    def living_owner(self, group: str, queue: QueueKey) -> str | None:
        owner, renewed = self.owned.get((group, queue), ("", -EXPIRY))
        return owner if owner and self.now - renewed <= EXPIRY else None

    @rule(group=groups, client=clients, wanted=st.lists(queues, max_size=4), restrict=st.booleans())
    def lock(self, group: str, client: str, wanted: list[QueueKey], restrict: bool) -> None:
        answer = self.locks.lock(group, client, wanted, self.now, present_owner_only=restrict)
        for queue in wanted:
            owner = self.living_owner(group, queue)
            allowed = owner == client or (owner is None and not restrict)
            assert (queue in answer.granted) is allowed
        for queue in answer.granted:
            self.owned[group, queue] = (client, self.now)
        self.keep(answer.rows)

    @rule(group=groups, client=clients, given=st.lists(queues, max_size=4))
    def unlock(self, group: str, client: str, given: list[QueueKey]) -> None:
        for queue in given:
            if self.owned.get((group, queue), ("", 0))[0] == client:
                del self.owned[group, queue]
        self.keep(self.locks.unlock(group, client, given))

    @rule(ms=st.integers(1, 70_000))
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule()
    def expire(self) -> None:
        self.keep(self.locks.expire(self.now))

    @rule()
    def restart(self) -> None:
        self.locks = Locks(expiry_ms=EXPIRY)
        for (group, queue, client), renewed in self.rows.items():
            self.locks.restore(LockRow(group, queue, client, renewed))

    @invariant()
    def owners_agree(self) -> None:
        for group in ("g", "h"):
            held = False
            for queue in (QueueKey(t, n) for t in "pq" for n in range(3)):
                owner = self.living_owner(group, queue)
                assert self.locks.owner(group, queue, self.now) == owner
                held |= owner is not None
            assert self.locks.ordered(group, self.now) is held


TestLocks = LocksMachine.TestCase


def test_there_is_a_limit() -> None:
    """Beyond it nothing new is granted; what is held can be renewed and released."""
    locks = Locks(locks_max=2)
    wanted = [QueueKey("p", n) for n in range(3)]
    assert locks.lock("g", "one", wanted, 1).granted == wanted[:2]
    assert locks.lock("g", "one", wanted, 2).granted == wanted[:2]
    locks.unlock("g", "one", wanted[:1])
    assert locks.lock("g", "one", wanted[2:], 3).granted == wanted[2:]
    assert len(list(locks.rows())) == 2
    assert locks.groups() == ["g"]


def test_a_native_clients_lock_ends_with_its_lease_and_heartbeats_keep_it() -> None:
    """Nobody else gets the queue while the owner is heard; once it is silent for its lease, somebody does."""
    locks = Locks()
    queue = QueueKey("t", 0)
    assert locks.lock("g", "native", [queue], 0, lease_ms=5_000).granted == [queue]
    for now_ms in range(1_000, 60_000, 1_000):
        locks.keep("native", ["g"], now_ms, 5_000)
        assert locks.lock("g", "other", [queue], now_ms + 999, lease_ms=5_000).granted == []
    assert locks.lock("g", "other", [queue], 59_000 + 5_000, lease_ms=5_000).granted == []
    assert locks.lock("g", "other", [queue], 59_000 + 5_001, lease_ms=5_000).granted == [queue]
    locks.keep("native", ["g"], 64_002, 5_000)
    assert locks.owner("g", queue, 64_003) == "other"
