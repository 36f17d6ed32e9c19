"""Which queues are ours: splitting them with the rest of the group, taking them over and letting them go.

Source: RocketMQ RebalanceImpl.java, RebalancePushImpl.java; client.md §5, §7.1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from actormq.client import requests
from actormq.client.balance import allocate
from actormq.client.held import HeldQueue, QueueWatcher
from actormq.client.offsets import Offsets
from actormq.client.procedures import Ask, Pause, Procedure, Together, Wait
from actormq.client.results import MessageModel, MessageQueue, StartFrom
from actormq.client.session import Session
from actormq.client.settings import ConsumerSettings
from actormq.errors import ClientError, PeerError, ResponseCode
from actormq.message import RETRY_PREFIX, QueueOffset

log = logging.getLogger("actormq.client")


class Assignment:
    """The queues of one consumer.  Loop thread."""

    def __init__(
        self,
        session: Session,
        group: str,
        settings: ConsumerSettings,
        offsets: Offsets,
        pull: Callable[[HeldQueue], Procedure[None]],
        on_changed: Callable[[], None],
        on_queues: QueueWatcher | None = None,
    ) -> None:
        """
        Args:
            pull: the procedure that pulls a queue for ever.
            on_changed: called when queues came or went.
            on_queues: the user's, who wants to know which.
        """
        self._session = session
        self._group = group
        self._settings = settings
        self._offsets = offsets
        self._pull = pull
        self._on_changed = on_changed
        self._on_queues = on_queues
        self.held: dict[MessageQueue, HeldQueue] = {}
        self._leaving: dict[MessageQueue, HeldQueue] = {}
        self._unlocking: dict[MessageQueue, object] = {}
        """Queues whose locks we do not want, and the broker may not know it; and the last who tells it."""
        self._is_over = False

    @property
    def _needs_locks(self) -> bool:
        return self._settings.orderly and self._settings.model is MessageModel.CLUSTERING

    # -- rebalance

    async def rebalance(self, topics: Iterable[str]) -> bool:
        """Take and leave queues as the group's members and the routes demand; False = look again soon."""
        wanted = list(topics)
        is_settled = True
        for topic in wanted:
            try:
                is_settled &= await self._rebalance_topic(topic)
            except (ClientError, PeerError) as error:
                log.warning("rebalance of %s: %s", topic, error)
                is_settled = False
        for held in [held for queue, held in self.held.items() if queue.topic not in wanted]:
            self._leave(held)
        return is_settled

    async def _rebalance_topic(self, topic: str) -> bool:
        queues = self._session.directory.table.subscribe_queues(topic)
        if not queues:
            return True  # the route decides; its arrival brings us back here
        if self._settings.model is MessageModel.BROADCASTING:
            mine = list(queues)
        else:
            members = await self._members(topic)
            if members is None:
                return False
            mine = allocate(self._settings.strategy, self._session.client_id, queues, members)
        left = [held for queue, held in self.held.items() if queue.topic == topic and queue not in mine]
        for held in left:
            self._leave(held)
        new = [queue for queue in mine if queue not in self.held]
        taken = await self._take_over([queue for queue in new if queue not in self._leaving])
        if left or taken:
            log.info("queues of %s: %d ours, %d taken over, %d left", topic, len(mine), taken, len(left))
            self._on_changed()
        return taken == len(new)

    async def _members(self, topic: str) -> list[str] | None:
        """Return the client ids of the group; None = the broker cannot say (keep what we have)."""
        for is_again in (False, True):
            choice = self._session.random.randrange(1 << 16)
            _, address = await self._session.directory.any_broker_of(topic, choice)
            answer = await Ask(
                address, requests.consumer_list(self._group), self._session.settings.request_timeout_ms
            )
            members = requests.parse_consumer_list(answer) if answer.code == ResponseCode.SUCCESS else None
            if members is not None and (is_again or self._session.client_id in members):
                return members
            # It does not know us (any more): introduce ourselves, then believe what it says.
            await self._session.beat_and_wait()
        return None

    # -- taking over

    async def _take_over(self, queues: list[MessageQueue]) -> int:
        """Begin to pull queues; return of how many."""
        asked_ms = self._session.now_ms()
        if self._needs_locks:
            queues = await self.lock(queues)
        starts: list[Any] = await Together([self._start_of(queue) for queue in queues])
        failed = []
        taken = []
        for queue, start in zip(queues, starts, strict=True):
            if isinstance(start, BaseException):
                log.warning("%s cannot be consumed yet: %s", queue, start)
                failed.append(queue)
                continue
            begin, persisted = start
            held = HeldQueue(queue, begin, persisted=persisted)
            if self._needs_locks:
                held.locked_until_ms = asked_ms + self._valid_ms(queue)
            self.held[queue] = held
            taken.append(held)
        self._tell([held.queue for held in taken], [])
        for held in taken:
            held.task = self._session.spawn(self._pull(held))
        if failed and self._needs_locks:
            self._session.spawn(self.unlock(failed))  # by the next time they may be somebody else's
        return len(taken)

    def _tell(self, taken: Sequence[MessageQueue], left: Sequence[MessageQueue]) -> None:
        """Tell the user what came and went."""
        if self._on_queues is None or not (taken or left):
            return
        try:
            self._on_queues(taken, left)
        except Exception:  # the user's code must not end ours
            log.exception("on_queues failed")

    async def _start_of(self, queue: MessageQueue) -> tuple[QueueOffset, QueueOffset | None]:
        """Return where to begin, and what is stored as the group's offset."""
        stored = await self._offsets.load(queue)
        if stored is not None:
            return stored, stored
        is_retry = queue.topic.startswith(RETRY_PREFIX)
        start_from = self._settings.start_from
        if start_from is StartFrom.FIRST or (is_retry and start_from is StartFrom.LAST):
            return QueueOffset(0), None
        if start_from is StartFrom.LAST or is_retry:
            command = requests.max_offset(queue)
        else:
            assert self._settings.start_timestamp_ms is not None
            command = requests.search_offset(queue, self._settings.start_timestamp_ms)
        address = await self._session.directory.master_of(queue.broker_name)
        answer = await Ask(address, command, self._session.settings.request_timeout_ms)
        return requests.parse_offset(answer, address), None

    # -- letting go

    def _leave(self, held: HeldQueue, *, is_lost: bool = False) -> None:
        """Stop consuming a queue.

        Args:
            is_lost: somebody else may have it already: our offset may be older than theirs, and is not saved.
        """
        del self.held[held.queue]
        held.stop()
        if held.task is not None:
            held.task.cancel()
        self._leaving[held.queue] = held
        self._session.spawn(self._let_go(held, is_lost))

    async def _let_go(self, held: HeldQueue, is_lost: bool) -> None:
        """Wait for the listener where order matters, save the offset, give the lock back."""
        while self._needs_locks and held.is_in_listener:
            await Wait(held.idle)
        held.is_released = True
        if not is_lost:
            await self.save([held])
        self._tell([], [held.queue])
        if self._needs_locks and not is_lost:
            await self.unlock([held.queue])
        self._leaving.pop(held.queue, None)

    def stop(self) -> None:
        """Give listeners nothing more, and pull nothing more; what they still say counts."""
        for held in self.held.values():
            held.stop()
            if held.task is not None:
                held.task.cancel()

    async def leave_all(self) -> None:
        """Save all offsets and give all locks back.  After `stop`, when listeners are through."""
        self._is_over = True
        await self.save(list(self.held.values()))
        self._tell([], list(self.held))
        if self._needs_locks:
            await self.unlock(list(self.held))
        for held in self.held.values():
            held.is_released = True

    # -- offsets

    async def save(self, queues: Iterable[HeldQueue]) -> None:
        """Save the offsets that the broker (or the file) does not have yet, of queues surely ours."""
        now_ms = self._session.now_ms()
        due = {
            held.queue: (held, held.window.commit_offset)
            for held in queues
            if held.window.commit_offset != held.persisted and held.is_locked(now_ms)
        }
        saved = await self._offsets.save({queue: offset for queue, (_, offset) in due.items()})
        for queue in saved:
            held, offset = due[queue]
            held.persisted = offset

    def save_again(self, broker_names: set[str]) -> None:
        """Believe nothing of what these brokers have of us: they may have been started anew."""
        for held in self.held.values():
            if held.queue.broker_name in broker_names:
                held.persisted = None

    # -- locks

    async def lock(self, queues: Iterable[MessageQueue]) -> list[MessageQueue]:
        """Ask the brokers for the locks of queues; return those that are ours now."""
        wanted = list(queues)
        for queue in wanted:
            self._unlocking.pop(queue, None)
        granted, refused = await self._ask_for_locks(wanted)
        if unknown := [queue for queue in wanted if queue not in granted | refused]:
            self._session.spawn(self.unlock(unknown))  # the broker may have granted them all the same
        return [queue for queue in wanted if queue in granted]

    async def _ask_for_locks(
        self, queues: Iterable[MessageQueue]
    ) -> tuple[set[MessageQueue], set[MessageQueue]]:
        """Return the queues that are ours now, and those that are somebody else's; others are unknown."""
        by_broker = _by_broker(queues)
        results = await Together([self._lock_at(name, some) for name, some in by_broker.items()])
        granted: set[MessageQueue] = set()
        refused: set[MessageQueue] = set()
        for (name, some), result in zip(by_broker.items(), results, strict=True):
            if isinstance(result, BaseException):
                log.warning("no locks from %s: %s", name, result)
            else:
                granted |= result
                refused.update(queue for queue in some if queue not in result)
        return granted, refused

    async def _lock_at(self, broker_name: str, queues: list[MessageQueue]) -> set[MessageQueue]:
        address = await self._session.directory.master_of(broker_name)
        command = requests.lock(self._group, self._session.client_id, queues)
        answer = await Ask(address, command, self._session.settings.request_timeout_ms)
        return requests.parse_locked(requests.require_success(answer, address))

    async def unlock(self, queues: Iterable[MessageQueue]) -> None:
        """Give locks back, unless they are asked for again meanwhile."""
        by_broker = _by_broker(queues)
        await Together([self._unlock_at(name, some) for name, some in by_broker.items()])

    async def _unlock_at(self, broker_name: str, queues: list[MessageQueue]) -> None:
        """Until the broker has heard it: our heartbeats keep alive all that a native one takes for ours."""
        timeout_ms = self._session.settings.request_timeout_ms
        is_told = False
        ours = object()
        self._unlocking |= dict.fromkeys(queues, ours)
        while unwanted := [queue for queue in queues if self._unlocking.get(queue) is ours]:
            try:
                address = await self._session.directory.master_of(broker_name)
                command = requests.unlock(self._group, self._session.client_id, unwanted)
                requests.require_success(await Ask(address, command, timeout_ms), address)
                return
            except (ClientError, PeerError) as error:
                if not is_told:
                    log.warning("locks at %s are not given back yet: %s", broker_name, error)
                is_told = True
                if self._is_over:
                    return
                await Pause(self._settings.rebalance_soon_ms)

    def _valid_ms(self, queue: MessageQueue) -> int:
        return self._session.lock_valid_ms(queue.broker_name, self._settings.lock_valid_ms)

    def keep_locks(self, broker_name: str, until_ms: int) -> bool:
        """Believe in a native broker's locks until `until_ms`: it has answered a heartbeat.

        A lock that ran out before (this process was stopped, say) may be somebody else's by now: its queue is
        left, to be taken over afresh; then the answer is False.
        """
        now_ms = self._session.now_ms()
        lost = []
        for held in self.held.values():
            if held.queue.broker_name != broker_name or held.locked_until_ms is None:
                continue
            if held.is_locked(now_ms):
                held.locked_until_ms = max(held.locked_until_ms, until_ms)
            else:
                lost.append(held)
        self._leave_lost(lost)
        return not lost

    def _leave_lost(self, lost: Sequence[HeldQueue]) -> None:
        for held in lost:
            log.warning("the lock of %s is no longer ours", held.queue)
            self._leave(held, is_lost=True)

    async def renew_locks(self) -> bool:
        """Renew all locks; a queue whose lock is gone is left; return whether all are still ours.

        A broker that was started anew may have given it to somebody else.  A lock that ran out before it was
        renewed may have been somebody else's in between: the queue is taken over afresh, with the offset that
        is stored by then.
        """
        asked_ms = self._session.now_ms()
        before = [held for held in self.held.values() if held.locked_until_ms is not None]
        granted, refused = await self._ask_for_locks([held.queue for held in before])
        lost = []
        for held in before:
            valid_until_ms = held.locked_until_ms or 0
            if held.queue in granted and valid_until_ms > asked_ms:
                held.locked_until_ms = asked_ms + self._valid_ms(held.queue)
            elif self.held.get(held.queue) is held and (
                held.queue in refused or valid_until_ms <= self._session.now_ms()
            ):
                lost.append(held)
        self._leave_lost(lost)
        return not lost


def _by_broker(queues: Iterable[MessageQueue]) -> dict[str, list[MessageQueue]]:
    by_broker: dict[str, list[MessageQueue]] = {}
    for queue in queues:
        by_broker.setdefault(queue.broker_name, []).append(queue)
    return by_broker
