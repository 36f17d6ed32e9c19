"""A name server and brokers in memory, and a loop whose time the test moves.

`FakeCluster` answers commands as RocketMQ does.  `SimNetwork` carries them in virtual time; `serving` (in
`fake_server`) puts the same cluster behind real sockets.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from actormq.client.procedures import Address
from actormq.client.tasks import Answer, FrameAnswer
from actormq.clock import ManualClock
from actormq.errors import ConnectFailed, ConnectionLost, ResponseCode
from actormq.kernels import records
from actormq.message import (
    RETRY_PREFIX,
    PropertyKey,
    SysFlag,
    decode_properties,
    encode_properties,
)
from actormq.wire import batch, frame, json
from actormq.wire.codes import RequestCode
from actormq.wire.command import RemotingCommand
from actormq.wire.headers import decode_pull, decode_send_v2

NAME_SERVER = "127.0.0.1:9876"
HOST = bytes([127, 0, 0, 1]) + (10911).to_bytes(4, "big")


def encode_record(
    topic: str,
    body: bytes,
    properties: dict[str, str] | None = None,
    *,
    queue_id: int = 0,
    queue_offset: int = 0,
    log_offset: int = 0,
    sys_flag: int = 0,
    flag: int = 0,
    reconsume_times: int = 0,
    born_ms: int = 1_000,
    store_ms: int = 2_000,
    born_host: bytes = HOST,
) -> bytes:
    """Return a stored message as a broker would send it."""
    topic_bytes, properties_bytes = topic.encode(), encode_properties(properties or {})
    size = records.record_size(len(born_host), len(HOST), len(topic_bytes), len(properties_bytes), len(body))
    out = bytearray(size)
    records.encode(
        out,
        0,
        queue_id=queue_id,
        flag=flag,
        queue_offset=queue_offset,
        physical_offset=log_offset,
        sys_flag=sys_flag,
        born_timestamp=born_ms,
        born_host=born_host,
        store_timestamp=store_ms,
        store_host=HOST,
        reconsume_times=reconsume_times,
        prepared_offset=0,
        body=body,
        topic=topic_bytes,
        properties=properties_bytes,
    )
    return bytes(out)


# --- time --------------------------------------------------------------------------------------------


class SimTimer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class SimLoop:
    """A client's loop in virtual time."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._calls: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[int, int, SimTimer]] = []
        self._sequence = count()

    def is_here(self) -> bool:
        return True

    def call_soon(self, call: Callable[[], None]) -> None:
        self._calls.append(call)

    def call_later(self, delay_ms: float, call: Callable[[], None]) -> SimTimer:
        timer = SimTimer(call)
        due_ns = self.clock.monotonic_ns() + int(delay_ms * 1_000_000)
        heapq.heappush(self._timers, (due_ns, next(self._sequence), timer))
        return timer

    def watch(self, fd: int, on_readable: Any, on_writable: Any = None) -> None:
        raise AssertionError("no sockets here")

    def unwatch(self, fd: int) -> None:
        raise AssertionError("no sockets here")

    def settle(self) -> None:
        """Run what can run now."""
        for _ in range(100_000):
            if not self._calls:
                return
            self._calls.popleft()()
        raise AssertionError("the loop never comes to rest: something spins")

    def run_for(self, ms: int) -> None:
        """Let `ms` pass, stopping at every timer on the way."""
        end_ns = self.clock.monotonic_ns() + ms * 1_000_000
        self.settle()
        while self._timers and self._timers[0][0] <= end_ns:
            due_ns, _, timer = heapq.heappop(self._timers)
            missing_ms = max(0, -(-(due_ns - self.clock.monotonic_ns()) // 1_000_000))
            self.clock.advance_ms(missing_ms)
            if timer.call is not None:
                timer.call()
            self.settle()
        self.clock.advance_ms(max(0, (end_ns - self.clock.monotonic_ns()) // 1_000_000))

    def run_until(self, condition: Callable[[], bool], within_ms: int = 60_000) -> int:
        """Let time pass until `condition`; return how many milliseconds that took."""
        began_ms = self.now_ms()
        self.settle()
        while not condition():
            assert self.now_ms() - began_ms < within_ms, f"did not happen within {within_ms} ms"
            self.run_for(1)
        return self.now_ms() - began_ms

    def now_ms(self) -> int:
        return self.clock.monotonic_ns() // 1_000_000


# --- the cluster -------------------------------------------------------------------------------------


@dataclass
class Parked:
    """A pull that waits for a message."""

    address: str
    command: RemotingCommand
    deadline_ms: int
    answer: Callable[[RemotingCommand], None]


@dataclass
class FakeBroker:
    """One broker's store and memberships."""

    name: str
    address: str
    zmq_address: str | None = None
    topics: dict[str, list[list[bytes]]] = field(default_factory=dict)
    offsets: dict[tuple[str, str, int], int] = field(default_factory=dict)
    members: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    locks: dict[tuple[str, str, int], str] = field(default_factory=dict)
    log: list[bytes] = field(default_factory=list)
    min_offsets: dict[tuple[str, int], int] = field(default_factory=dict)


class FakeCluster:
    """See the module.

    Attributes:
        refuse: request code to answers that are given instead, first to last.
        down: addresses at which nobody listens.
        silent: request codes that get no answer.
        asked: every command that came, with its address.
    """

    def __init__(self, brokers: int = 1, queues: int = 4, *, auto_create: bool = True) -> None:
        self.queues = queues
        self.auto_create = auto_create
        self.brokers = {
            f"127.0.0.1:{10911 + 100 * index}": FakeBroker(
                f"broker-{'abcdefgh'[index]}", f"127.0.0.1:{10911 + 100 * index}"
            )
            for index in range(brokers)
        }
        self.routes: set[str] = set()
        self.refuse: dict[int, list[int]] = defaultdict(list)
        self.down: set[str] = set()
        self.silent: set[int] = set()
        self.parked: list[Parked] = []
        self.asked: list[tuple[str, RemotingCommand]] = []
        self.now_ms: Callable[[], int] = lambda: 0
        self.knows_endpoints = False
        self.name_server = NAME_SERVER

    # -- for tests

    def create(self, topic: str, queues: int | None = None) -> None:
        self.routes.add(topic)
        for broker in self.brokers.values():
            broker.topics.setdefault(topic, [[] for _ in range(queues or self.queues)])

    def put(
        self, topic: str, body: bytes, properties: dict[str, str] | None = None, queue_id: int = 0
    ) -> None:
        """Store a message at the first broker, as if a producer had sent it."""
        broker = next(iter(self.brokers.values()))
        self.create(topic)
        self._store(broker, topic, queue_id, body, properties or {})

    def bodies(self, topic: str) -> list[bytes]:
        """Return the records of a topic, all queues."""
        return [
            record
            for broker in self.brokers.values()
            for queue in broker.topics.get(topic, [])
            for record in queue
        ]

    def count(self, code: int) -> int:
        return sum(command.code == code for _, command in self.asked)

    def broker(self) -> FakeBroker:
        return next(iter(self.brokers.values()))

    def drop_member(self, client_id: str) -> None:
        """Forget a client, as when its connection closes."""
        for broker in self.brokers.values():
            for group, members in broker.members.items():
                if members.pop(client_id, None) is not None:
                    self._notify(broker, group)

    # -- serving

    def handle(
        self,
        address: str,
        command: RemotingCommand,
        answer: Callable[[RemotingCommand], None],
        push: Callable[[RemotingCommand], None],
    ) -> None:
        """Serve a command; `push` reaches the client with requests of ours."""
        self.asked.append((address, command))
        if command.code in self.silent:
            return
        if self.refuse[command.code]:
            code = self.refuse[command.code].pop(0)
            answer(RemotingCommand.response_to(command, code, "as the test wants it"))
            return
        if address == self.name_server:
            answer(self._route(command))
            return
        broker = self.brokers[address]
        if command.code == RequestCode.PULL_MESSAGE:
            self._pull(broker, command, answer)
            return
        method = {
            RequestCode.SEND_MESSAGE_V2: self._send,
            RequestCode.SEND_BATCH_MESSAGE: self._send,
            RequestCode.UNREGISTER_CLIENT: self._unregister,
            RequestCode.GET_CONSUMER_LIST_BY_GROUP: self._list,
            RequestCode.QUERY_CONSUMER_OFFSET: self._query_offset,
            RequestCode.UPDATE_CONSUMER_OFFSET: self._update_offset,
            RequestCode.GET_MAX_OFFSET: self._max_offset,
            RequestCode.GET_MIN_OFFSET: self._min_offset,
            RequestCode.CONSUMER_SEND_MSG_BACK: self._send_back,
            RequestCode.LOCK_BATCH_MQ: self._lock,
            RequestCode.UNLOCK_BATCH_MQ: self._unlock,
            RequestCode.GET_ENDPOINTS: self._endpoints,
        }
        if command.code == RequestCode.HEART_BEAT:
            reply = self._heartbeat(broker, command, push)
        elif command.code in method:
            reply = method[RequestCode(command.code)](broker, command)
        else:
            reply = RemotingCommand.response_to(command, ResponseCode.REQUEST_CODE_NOT_SUPPORTED)
        if not command.is_oneway:
            answer(reply)

    def tick(self) -> None:
        """Answer parked pulls whose time is up."""
        for parked in [one for one in self.parked if one.deadline_ms <= self.now_ms()]:
            self.parked.remove(parked)
            self._pull(self.brokers[parked.address], parked.command, parked.answer, may_wait=False)

    def _route(self, command: RemotingCommand) -> RemotingCommand:
        topic = command.fields["topic"]
        known = topic in self.routes or (topic == "TBW102" and self.auto_create)
        if not known:
            return RemotingCommand.response_to(command, ResponseCode.TOPIC_NOT_EXIST, "No topic route info")
        queue_datas = [
            {
                "brokerName": broker.name,
                "readQueueNums": len(broker.topics.get(topic, [])) or self.queues,
                "writeQueueNums": len(broker.topics.get(topic, [])) or self.queues,
                "perm": 6,
                "topicSysFlag": 0,
            }
            for broker in self.brokers.values()
        ]
        broker_datas = [
            {
                "brokerName": broker.name,
                "cluster": "c",
                "brokerAddrs": {"0": broker.address},
                **({"zmqAddrs": {"0": broker.zmq_address}} if broker.zmq_address else {}),
            }
            for broker in self.brokers.values()
        ]
        body = json.dumps({"queueDatas": queue_datas, "brokerDatas": broker_datas})
        return RemotingCommand.response_to(command, 0, body=body)

    def _endpoints(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        if not self.knows_endpoints:
            return RemotingCommand.response_to(command, ResponseCode.REQUEST_CODE_NOT_SUPPORTED)
        fields = {"zmq": broker.zmq_address} if broker.zmq_address else {}
        return RemotingCommand.response_to(command, 0, fields=fields)

    def _send(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        header = decode_send_v2(command.fields)
        if header.topic not in broker.topics:
            broker.topics[header.topic] = [[] for _ in range(header.default_topic_queues)]
            self.routes.add(header.topic)
        queue = broker.topics[header.topic][header.queue_id]
        first = len(queue)
        if header.batch:
            items = [
                (item.flag, bytes(item.body), decode_properties(item.properties))
                for item in batch.iterate(command.body)
            ]
        else:
            properties = decode_properties(header.properties.encode())
            items = [(header.flag, bytes(command.body), properties)]
        ids = [
            self._store(
                broker,
                header.topic,
                header.queue_id,
                body,
                properties,
                sys_flag=header.sys_flag,
                flag=flag,
                reconsume_times=header.reconsume_times,
            )
            for flag, body, properties in items
        ]
        fields = {
            "msgId": ",".join(f"{HOST.hex()}{offset:016X}".upper() for offset in ids),
            "queueId": str(header.queue_id),
            "queueOffset": str(first),
            "MSG_REGION": "DefaultRegion",
        }
        return RemotingCommand.response_to(command, 0, fields=fields)

    def _store(
        self,
        broker: FakeBroker,
        topic: str,
        queue_id: int,
        body: bytes,
        properties: dict[str, str],
        *,
        sys_flag: int = 0,
        flag: int = 0,
        reconsume_times: int = 0,
    ) -> int:
        queue = broker.topics[topic][queue_id]
        record = encode_record(
            topic,
            body,
            properties,
            queue_id=queue_id,
            queue_offset=len(queue),
            log_offset=len(broker.log),
            sys_flag=sys_flag,
            flag=flag,
            reconsume_times=reconsume_times,
        )
        queue.append(record)
        broker.log.append(record)
        for parked in list(self.parked):
            header = decode_pull(parked.command.fields)
            if (parked.address, header.topic, header.queue_id) == (broker.address, topic, queue_id):
                self.parked.remove(parked)
                self._pull(broker, parked.command, parked.answer, may_wait=False)
        return len(broker.log) - 1

    def _pull(
        self,
        broker: FakeBroker,
        command: RemotingCommand,
        answer: Callable[[RemotingCommand], None],
        may_wait: bool = True,
    ) -> None:
        header = decode_pull(command.fields)
        if header.sys_flag & 1:
            broker.offsets[header.group, header.topic, header.queue_id] = header.commit_offset
        queue = broker.topics.get(header.topic, [[]] * 64)[header.queue_id]
        start = header.queue_offset
        low = broker.min_offsets.get((header.topic, header.queue_id), 0)
        if start < low or start > len(queue):
            code, found, after = ResponseCode.PULL_OFFSET_MOVED, [], low if start < low else len(queue)
        else:
            found = queue[start : start + header.messages_max]
            code, after = ResponseCode.SUCCESS if found else ResponseCode.PULL_NOT_FOUND, start + len(found)
        if not found and code == ResponseCode.PULL_NOT_FOUND and may_wait and header.sys_flag & 2:
            deadline_ms = self.now_ms() + header.suspend_ms
            self.parked.append(Parked(broker.address, command, deadline_ms, answer))
            return
        fields = {
            "nextBeginOffset": str(after),
            "minOffset": str(low),
            "maxOffset": str(len(queue)),
            "suggestWhichBrokerId": "0",
        }
        answer(RemotingCommand.response_to(command, code, fields=fields, body=b"".join(found)))

    def _heartbeat(
        self, broker: FakeBroker, command: RemotingCommand, push: Callable[[RemotingCommand], None]
    ) -> RemotingCommand:
        data = json.loads(command.body)
        for one in data["consumerDataSet"]:
            group = one["groupName"]
            if one["messageModel"] == "CLUSTERING":
                retry = RETRY_PREFIX + group
                broker.topics.setdefault(retry, [[]])
                self.routes.add(retry)
            is_new = data["clientID"] not in broker.members[group]
            broker.members[group][data["clientID"]] = push
            if is_new:
                self._notify(broker, group)
        return RemotingCommand.response_to(command, 0)

    def _notify(self, broker: FakeBroker, group: str) -> None:
        for push in list(broker.members[group].values()):
            push(
                RemotingCommand.request(
                    RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, {"consumerGroup": group}, oneway=True
                )
            )

    def _unregister(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        group = command.fields.get("consumerGroup")
        if group and broker.members[group].pop(command.fields["clientID"], None) is not None:
            self._notify(broker, group)
        return RemotingCommand.response_to(command, 0)

    def _list(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        members = list(broker.members[command.fields["consumerGroup"]])
        if not members:
            return RemotingCommand.response_to(command, 1, "no consumer for this group")
        return RemotingCommand.response_to(command, 0, body=json.dumps({"consumerIdList": members}))

    def _key(self, command: RemotingCommand) -> tuple[str, str, int]:
        fields = command.fields
        return fields["consumerGroup"], fields["topic"], int(fields["queueId"])

    def _query_offset(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        offset = broker.offsets.get(self._key(command))
        if offset is None:
            return RemotingCommand.response_to(command, ResponseCode.QUERY_NOT_FOUND, "Not found")
        return RemotingCommand.response_to(command, 0, fields={"offset": str(offset)})

    def _update_offset(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        broker.offsets[self._key(command)] = int(command.fields["commitOffset"])
        return RemotingCommand.response_to(command, 0)

    def _max_offset(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        queues = broker.topics.get(command.fields["topic"], [[]] * 64)
        offset = len(queues[int(command.fields["queueId"])])
        return RemotingCommand.response_to(command, 0, fields={"offset": str(offset)})

    def _min_offset(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        return RemotingCommand.response_to(command, 0, fields={"offset": "0"})

    def _send_back(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        record = broker.log[int(command.fields["offset"])]
        from actormq.client.received import decode_messages
        from actormq.client.results import MessageQueue

        message = decode_messages(record, MessageQueue("", "", 0))[0]
        properties = {
            **message.properties,
            PropertyKey.RETRY_TOPIC: message.topic,
            PropertyKey.ORIGIN_MESSAGE_ID: message.offset_message_id,
        }
        self._store(
            broker,
            RETRY_PREFIX + command.fields["group"],
            0,
            message.stored_body,
            properties,
            sys_flag=message.sys_flag & ~SysFlag.BORN_HOST_V6,
            reconsume_times=message.reconsume_times + 1,
        )
        return RemotingCommand.response_to(command, 0)

    def _lock(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        body = json.loads(command.body)
        granted = []
        for item in body["mqSet"]:
            key = (body["consumerGroup"], item["topic"], item["queueId"])
            if broker.locks.setdefault(key, body["clientId"]) == body["clientId"]:
                granted.append(item)
        return RemotingCommand.response_to(command, 0, body=json.dumps({"lockOKMQSet": granted}))

    def _unlock(self, broker: FakeBroker, command: RemotingCommand) -> RemotingCommand:
        body = json.loads(command.body)
        for item in body["mqSet"]:
            key = (body["consumerGroup"], item["topic"], item["queueId"])
            if broker.locks.get(key) == body["clientId"]:
                del broker.locks[key]
        return RemotingCommand.response_to(command, 0)


# --- carrying commands in virtual time ---------------------------------------------------------------


class SimNetwork:
    """Carries one client's commands to a cluster, a millisecond each way."""

    LATENCY_MS = 1

    def __init__(self, loop: SimLoop, cluster: FakeCluster, listener: Any) -> None:
        self._loop = loop
        self._cluster = cluster
        self._listener = listener
        self._waiting: dict[int, tuple[str, Callable[[Answer], None]]] = {}
        self._open: set[Address] = set()
        self.is_closed = False
        cluster.now_ms = loop.now_ms

    def ask(self, address: Address, command: RemotingCommand, on_answer: Callable[[Answer], None]) -> None:
        where = address.partition("://")[2]
        if where in self._cluster.down:
            failure = ConnectFailed(f"nobody listens at {address}")
            self._loop.call_later(self.LATENCY_MS, lambda: on_answer(failure))
            return
        self._open.add(address)
        self._waiting[command.opaque] = (where, on_answer)
        self._carry(where, command)

    def is_open(self, address: Address) -> bool:
        return address in self._open

    def post(
        self,
        address: Address,
        opaque: int,
        head: bytes,
        body: memoryview,
        on_answer: Callable[[Answer], None],
    ) -> bool:
        """Carry what is encoded already over a connection that stands."""
        where = address.partition("://")[2]
        if address not in self._open or where in self._cluster.down:
            return False
        command = frame.decode(head[4:] + body)
        assert command.opaque == opaque
        self._waiting[opaque] = (where, on_answer)
        self._carry(where, command)
        return True

    def drop(self, address: Address, opaque: int) -> None:
        self._waiting.pop(opaque, None)

    def tell(self, address: Address, command: RemotingCommand) -> None:
        self._carry(address.partition("://")[2], command)

    def _carry(self, where: str, command: RemotingCommand) -> None:
        self._loop.call_later(
            self.LATENCY_MS,
            lambda: (
                self._cluster.handle(where, command, self._answer, self._push)
                if where not in self._cluster.down
                else None
            ),
        )

    def _answer(self, answer: RemotingCommand) -> None:
        def arrive() -> None:
            waiting = self._waiting.pop(answer.opaque, None)
            if waiting is not None:
                waiting[1](answer)

        self._loop.call_later(self.LATENCY_MS, arrive)

    def _push(self, command: RemotingCommand) -> None:
        if not self.is_closed:
            self._loop.call_later(self.LATENCY_MS, lambda: self._listener.on_request(command, lambda _: None))

    def ask_frame(
        self, address: Address, opaque: int, data: bytes, on_answer: Callable[[FrameAnswer], None]
    ) -> None:
        command = frame.decode(data[4:])
        assert command.opaque == opaque
        self.ask(address, command, on_answer)

    def give_up(self, address: Address, opaque: int) -> None:
        self._waiting.pop(opaque, None)

    def lose(self, where: str) -> None:
        """Break the connection to an address: everything that waits there fails."""
        self._open = {address for address in self._open if address.partition("://")[2] != where}
        for opaque, (at, on_answer) in list(self._waiting.items()):
            if at == where:
                del self._waiting[opaque]
                on_answer(ConnectionLost(f"lost {where}"))

    def open_addresses(self) -> list[Address]:
        return list(self._open)

    def close(self) -> None:
        self.is_closed = True
