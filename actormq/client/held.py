"""A queue that this consumer holds, and the messages of it that are on their way to a listener."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from actormq.client.procedures import Signal
from actormq.client.received import ReceivedMessage
from actormq.client.results import ConsumeResult, MessageQueue
from actormq.client.window import Window
from actormq.kernels.received import Batch, Handful
from actormq.message import QueueOffset

if TYPE_CHECKING:
    from actormq.client.tasks import Task

Listener = Callable[[ReceivedMessage], ConsumeResult | None]
AsyncListener = Callable[[ReceivedMessage], Awaitable[ConsumeResult | None]]
QueueWatcher = Callable[[Sequence[MessageQueue], Sequence[MessageQueue]], None]
"""Told of the queues that were taken over, before their first message, and of those that were let go, before
somebody else may have them (concurrent listeners may still have messages of these).  Called in the client's
own thread (AsyncConsumer: in the event loop): it must be quick."""
AnyListener = Any
"""Either of them, or a stream: whoever takes the delivery knows which."""

Finished = tuple[ReceivedMessage, int | None]
"""A message that a listener had, and the delay level for its retry; None = it is done with."""


class HeldQueue:
    """One queue: its window, where to pull next, and whether it is still ours.

    Changed in the loop's thread; listeners' threads only read the flags.
    """

    __slots__ = (
        "backlog",
        "broker_id",
        "failures",
        "idle",
        "is_in_listener",
        "is_released",
        "locked_until_ms",
        "next_offset",
        "persisted",
        "pulled_at_ms",
        "queue",
        "room",
        "task",
        "window",
    )

    def __init__(self, queue: MessageQueue, start: QueueOffset, *, persisted: QueueOffset | None) -> None:
        """
        Args:
            start: where pulling begins.
            persisted: what the broker (or the file) has as our offset; None = nothing yet.
        """
        self.queue = queue
        self.window = Window(start)
        self.next_offset = start
        self.persisted = persisted
        self.broker_id = 0
        self.failures = 0
        """Pulls in a row that ended with an error."""
        self.pulled_at_ms = 0
        self.room = Signal()
        """Set when a pull may go on: the window has room, or the consumer was resumed."""
        self.is_released = False
        """Somebody else may have it: what listeners still say of it is ignored."""
        self.locked_until_ms: int | None = None
        """Orderly: until when the broker's lock is ours for sure; None = no lock is needed."""
        self.backlog: deque[ReceivedMessage] = deque()
        """Orderly: pulled, and not yet handed to a listener."""
        self.is_in_listener = False
        """Orderly: a delivery is under way."""
        self.idle = Signal()
        """Orderly: set when a delivery has ended."""
        self.task: Task[None] | None = None

    @property
    def is_stopped(self) -> bool:
        """No further message goes to a listener."""
        return self.window.gate.is_closed

    def stop(self) -> None:
        """Give listeners nothing more."""
        self.window.gate.is_closed = True

    def restart(self, start: QueueOffset) -> None:
        """Forget what is in hand and go on from `start`; what listeners say of the old window is ignored."""
        was_stopped = self.is_stopped
        self.stop()
        self.window = Window(start)
        self.window.gate.is_closed = was_stopped
        self.backlog.clear()
        self.next_offset = start

    def may_run(self, now_ms: int) -> bool:
        """Return whether a message may be given to a listener now."""
        return not self.is_stopped and self.is_locked(now_ms)

    def is_locked(self, now_ms: int) -> bool:
        """Return whether the queue is surely ours; without locks it always is."""
        return self.locked_until_ms is None or now_ms < self.locked_until_ms


class Delivery:
    """Messages of one queue for one listener, taken one by one by one or more workers."""

    __slots__ = ("_handful", "_unreported", "held", "in_order", "listener", "take_any", "window")

    def __init__(
        self,
        held: HeldQueue,
        messages: Batch | list[ReceivedMessage],
        listener: AnyListener,
        *,
        in_order: bool,
    ) -> None:
        """
        Args:
            messages: at least one, all of the queue's window.
        """
        self.held = held
        self.window = held.window
        self.listener = listener
        self.in_order = in_order
        self._handful = Handful(messages)
        self._unreported = 0
        self.take_any = self._handful.take
        """As `take`, for consumers without locks: no clock is needed."""

    @property
    def count(self) -> int:
        """How many messages it is made of."""
        return self._handful.count

    def take(self, now_ms: int) -> ReceivedMessage | None:
        """Return the next message; None when all were taken or the queue is no longer ours.  Any thread."""
        if not self.held.is_locked(now_ms):
            return None
        return self._handful.take()

    def work(self) -> tuple[ReceivedMessage | None, Any] | None:
        """Run the listener on message after message, not in order; see `Handful.work`.  Any thread."""
        return self._handful.work(self.listener, ConsumeResult.RETRY)

    @property
    def is_awaited(self) -> bool:
        """Return whether somebody waits for what becomes of these messages."""
        return self._handful.gate.report_after > 0

    def must_report(self) -> bool:
        """Note that one message more is done; return whether who waits for room has to hear of it.

        When all were taken, always: nobody knows who is the last to be done.
        """
        self._unreported += 1
        report_after = self._handful.gate.report_after
        if not report_after or (self._unreported < report_after and self._handful.has_more()):
            return False
        self._unreported = 0
        return True

    @property
    def can_be_shared(self) -> bool:
        """Return whether several workers may take from it."""
        return not self.in_order and self.count > 1 and self.has_more

    @property
    def has_more(self) -> bool:
        """Return whether there is probably a message left."""
        return self._handful.has_more()
