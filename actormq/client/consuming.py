"""A consumer without a face: subscriptions, the procedures that keep it going, and what brokers ask of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from actormq.client import answers
from actormq.client.assigning import Assignment
from actormq.client.handing import Handing
from actormq.client.held import AnyListener, Delivery, QueueWatcher
from actormq.client.offsets import BrokerOffsets, FileOffsets, Offsets
from actormq.client.procedures import Pause, Signal, Together, Wait
from actormq.client.pulling import Puller
from actormq.client.received import ReceivedMessage
from actormq.client.results import MessageModel, MessageQueue
from actormq.client.session import Session, answer_to
from actormq.client.settings import ConsumerSettings, check_group
from actormq.client.subscription import ALL, Subscription, parse_subscription
from actormq.client.tasks import Task
from actormq.errors import ConfigError, PeerError, ResponseCode
from actormq.message import RETRY_PREFIX, QueueOffset
from actormq.wire.codes import RequestCode
from actormq.wire.command import RemotingCommand

log = logging.getLogger("actormq.client")
_STUCK_CHECK_MS: Final = 60_000
Reply = Callable[[RemotingCommand], None]


class ConsumerCore:
    """One member of one group.  Loop thread, except where it says otherwise."""

    def __init__(
        self,
        session: Session,
        group: str,
        settings: ConsumerSettings,
        hand_over: Callable[[Delivery], None],
        on_queues: QueueWatcher | None = None,
    ) -> None:
        """
        Args:
            hand_over: takes a delivery to the workers; must not block.
            on_queues: told which queues come and go.
        Raises:
            ConfigError: the group's name is illegal.
        """
        check_group(group)
        self.group = group
        self.settings = settings
        self.session = session
        self._subscriptions: dict[str, Subscription] = {}
        self._listeners: dict[str, AnyListener] = {}
        offsets: Offsets
        if settings.model is MessageModel.BROADCASTING:
            offsets = FileOffsets(settings.offsets_folder, session.client_id, group)
        else:
            offsets = BrokerOffsets(session, group, session.settings.request_timeout_ms)
        self.handing = Handing(session, group, settings, self._listener_of, hand_over)
        self._puller = Puller(session, group, settings, self.handing, offsets, self._subscriptions.get)
        self.assignment = Assignment(
            session, group, settings, offsets, self._puller.pull_forever, session.beat_now, on_queues
        )
        self._needs_locks = settings.orderly and settings.model is MessageModel.CLUSTERING
        self._rebalance_now = Signal()
        self._connected: set[str] = set()
        """Brokers with a new connection that has not been looked after."""
        self._tasks: list[Task[None]] = []
        self._served: dict[int, Callable[[RemotingCommand, Reply], None]] = {
            RequestCode.RESET_CONSUMER_CLIENT_OFFSET: self._reset_offsets,
            RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT: self._tell_offsets,
            RequestCode.GET_CONSUMER_RUNNING_INFO: self._tell_all,
            RequestCode.CONSUME_MESSAGE_DIRECTLY: self._consume_directly,
        }
        self.started_wall_ms = session.clock.wall_ms()

    # -- subscriptions

    def subscribe(self, topic: str, expression: str, listener: AnyListener) -> None:
        """Consume a topic from now on; a second call for the same topic replaces the first.

        Raises:
            ConfigError: the expression says nothing.
        """
        self._subscriptions[topic] = parse_subscription(topic, expression, self.session.clock.wall_ms())
        self._listeners[topic] = listener
        self._subscriptions_changed()

    def unsubscribe(self, topic: str) -> None:
        """Stop consuming a topic; its queues go to the others."""
        self._subscriptions.pop(topic, None)
        self._listeners.pop(topic, None)
        self._subscriptions_changed()

    def _subscriptions_changed(self) -> None:
        if self._tasks:
            self.session.look_at_routes()
            self.session.beat_now()
            self._rebalance_now.set()

    def _listener_of(self, topic: str) -> AnyListener:
        """Return the topic's listener; a message that comes back after unsubscribing goes to any."""
        return self._listeners.get(topic) or next(iter(self._listeners.values()), _nobody)

    # -- life

    def start(self) -> None:
        """Become a member and begin to consume.

        Raises:
            ConfigError: this client has a consumer of the group already.
        """
        self.session.add_member(self)
        if self.settings.model is MessageModel.CLUSTERING:
            retry_topic = RETRY_PREFIX + self.group
            self._subscriptions[retry_topic] = parse_subscription(
                retry_topic, ALL, self.session.clock.wall_ms()
            )
        procedures = [self._begin(), self._keep_offsets(), self._keep_unstuck()]
        if self._needs_locks:
            procedures.append(self._keep_locks())
        self._tasks = [self.session.spawn(procedure) for procedure in procedures]

    async def _begin(self) -> None:
        """Learn the routes, introduce ourselves to all brokers, then split queues for ever."""
        await Together([self.session.refresh_route(topic) for topic in self.topics()])
        self.session.look_at_routes()
        await self.session.beat_and_wait()
        while True:
            connected, self._connected = self._connected, set()
            is_settled = await self.assignment.rebalance(self.topics())
            if connected and is_settled:
                is_settled = await self._look_after(connected)
            elif connected:
                self._connected |= connected
            await Wait(
                self._rebalance_now,
                self.settings.rebalance_interval_ms if is_settled else self.settings.rebalance_soon_ms,
            )

    async def _look_after(self, connected: set[str]) -> bool:
        """See what brokers with a new connection still know: one that was started anew has forgotten the
        locks, and the offsets that it had not saved.  False = queues were lost: look again soon."""
        has_all = not self._needs_locks or await self.assignment.renew_locks()
        self.assignment.save_again(connected)
        return has_all

    async def _keep_offsets(self) -> None:
        while True:
            await Pause(self.settings.commit_interval_ms)
            await self.assignment.save(list(self.assignment.held.values()))

    async def _keep_unstuck(self) -> None:
        while not self.settings.orderly:
            await Pause(min(_STUCK_CHECK_MS, self.settings.listener_timeout_ms))
            for held in list(self.assignment.held.values()):
                self.handing.give_back_stuck(held)

    async def _keep_locks(self) -> None:
        while True:
            await Pause(self.settings.lock_renew_ms)
            if not await self.assignment.renew_locks():
                self._rebalance_now.set()

    def halt(self) -> None:
        """Give listeners nothing more; the first half of stopping."""
        for task in self._tasks:
            task.cancel()
        self.assignment.stop()

    async def leave(self) -> None:
        """Save offsets, give locks back and say good-bye; the second half, when listeners are through."""
        self.handing.take_reports()
        await self.handing.all_returned()
        await self.assignment.leave_all()
        await self.session.remove_member(self)

    def pause(self) -> None:
        """Pull nothing more until `resume`; what is in hand goes on to the listeners."""
        self._puller.is_paused = True

    def resume(self) -> None:
        self._puller.is_paused = False
        for held in self.assignment.held.values():
            held.room.set()

    def queues(self) -> list[MessageQueue]:
        """Return the queues that are ours."""
        return list(self.assignment.held)

    # -- what the session asks

    def topics(self) -> list[str]:
        return list(self._subscriptions)

    def subscriptions(self) -> list[Subscription]:
        return list(self._subscriptions.values())

    def heartbeat_data(self) -> dict[str, Any]:
        return {
            "groupName": self.group,
            "consumeType": "CONSUME_PASSIVELY",
            "messageModel": self.settings.model.value,
            "consumeFromWhere": self.settings.start_from.value,
            "subscriptionDataSet": [one.heartbeat_data() for one in self._subscriptions.values()],
            "unitMode": False,
        }

    def on_route_changed(self, topic: str) -> None:
        if topic in self._subscriptions:
            self._rebalance_now.set()

    def on_members_changed(self) -> None:
        self._rebalance_now.set()

    def on_connected(self, broker_name: str) -> None:
        self._connected.add(broker_name)
        self._rebalance_now.set()

    def on_lease_renewed(self, broker_name: str, until_ms: int) -> None:
        if not self.assignment.keep_locks(broker_name, until_ms):
            self._rebalance_now.set()

    # -- what brokers ask

    def on_request(self, command: RemotingCommand, reply: Reply) -> bool:
        serve = self._served.get(command.code)
        if serve is None:
            return False
        try:
            serve(command, reply)
        except PeerError as error:
            log.warning("a broker's request %d makes no sense: %s", command.code, error)
            if not command.is_oneway:
                reply(answer_to(command, ResponseCode.SYSTEM_ERROR, str(error)))
        return True

    def _reset_offsets(self, command: RemotingCommand, reply: Reply) -> None:
        offsets = answers.parse_reset(command)
        self.session.spawn(self.reset(offsets))
        if not command.is_oneway:
            reply(answer_to(command, ResponseCode.SUCCESS))

    async def reset(self, offsets: Mapping[MessageQueue, QueueOffset]) -> None:
        """Go on from other offsets in those of the queues that are ours."""
        for queue, offset in offsets.items():
            held = self.assignment.held.get(queue)
            if held is not None:
                # The pull under way asks for the old place: end it, then begin anew.
                if held.task is not None:
                    held.task.cancel()
                await self._puller.reposition(held, offset)
                if self.assignment.held.get(queue) is held and not held.is_stopped:
                    held.task = self.session.spawn(self._puller.pull_forever(held))

    def _tell_offsets(self, command: RemotingCommand, reply: Reply) -> None:
        topic = command.fields.get("topic", "")
        held = [one for one in self.assignment.held.values() if one.queue.topic == topic]
        reply(answer_to(command, ResponseCode.SUCCESS, body=answers.offsets_body(held)))

    def _tell_all(self, command: RemotingCommand, reply: Reply) -> None:
        reply(answer_to(command, ResponseCode.SUCCESS, body=answers.running_info_body(self)))

    def _consume_directly(self, command: RemotingCommand, reply: Reply) -> None:
        message = answers.message_in(command)
        listener = self._listener_of(message.topic)
        began_ms = self.session.now_ms()

        def finished(level: int | None) -> None:
            body = answers.direct_result_body(level is None, self.session.now_ms() - began_ms)
            reply(answer_to(command, ResponseCode.SUCCESS, body=body))

        self.handing.deliver_directly(message, listener, finished)


def _nobody(message: ReceivedMessage) -> None:
    raise ConfigError(f"no listener for {message.topic}")
