"""A consumer of a `store_life.Broker`: real pulls over its memory, the kernel's and the long way's."""

from __future__ import annotations

from typing import Any

from faults.store_life import GROUP, LOG, QUEUES, ROOT, TOPIC, Broker

from actormq.actors.gateway.clients import TCP, Client
from actormq.actors.gateway.damage import Damage
from actormq.actors.gateway.lost_tails import LostTails
from actormq.actors.gateway.pulls import Pulls
from actormq.actors.gateway.replies import Replies
from actormq.actors.gateway.role import StoreMarks
from actormq.broker.pulling import TransferLimits
from actormq.broker.tables import ConsumerGroupOnline, GroupEntry, SubscriptionEntry, Tables
from actormq.kernels import records
from actormq.kernels.frames import cut_frames
from actormq.shm.positions import slot_of
from actormq.store import commit_log, consume_queue
from actormq.store.batch_queue import BatchQueues
from actormq.store.commit_log import LogReader
from actormq.store.consume_queue import QueueReader
from actormq.store.queue_ext import QueueExtensions
from actormq.wire import frame
from actormq.wire.command import RemotingCommand

CODES = {0: "FOUND", 19: "PULL_NOT_FOUND", 20: "PULL_RETRY_IMMEDIATELY"}


class Link:
    """Where answers go."""

    host = ("127.0.0.1", 1)
    peer = "127.0.0.1:1"
    closed = False
    queued_bytes = 0

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, *parts: Any) -> None:
        self.sent.append(b"".join(parts))


class Nobody:
    """The holder and the coordinator: nobody waits, nobody commits."""

    entry_bytes_max = 4096
    has_woken = False

    def say_waiting(self, count: int) -> None: ...

    def try_park(self, parks: bytearray) -> bool:
        return True

    def flush(self) -> None: ...

    def woken(self) -> list[memoryview]:
        return []

    def release(self) -> None: ...

    def need_group(self, *arguments: Any) -> None:
        raise AssertionError("the group is known")

    def commit(self, *arguments: Any) -> None: ...

    def commit_all(self, *arguments: Any) -> None: ...


class Consumer:
    """Pulls every queue from its beginning."""

    def __init__(self, broker: Broker) -> None:
        memory = broker.memory
        tables = Tables()
        for entry in broker.reader("gateway-1").poll()[1]:
            tables.apply(entry)
        tables.put(GroupEntry(GROUP))
        tables.put(ConsumerGroupOnline(GROUP))
        tables.put(SubscriptionEntry(GROUP, TOPIC, "CLUSTERING", "TAG", "*", [], 1))
        self.broker = broker
        self.rows = {queue_id: broker.rows.rows[TOPIC.encode(), queue_id] for queue_id in range(QUEUES)}
        log = LogReader(broker.disk, ROOT / commit_log.FOLDER, memory.config.log_file_bytes)
        queues = QueueReader(broker.disk, ROOT / consume_queue.FOLDER, memory.config.queue_file_entries)
        marks = StoreMarks(memory.positions, slot_of("gateway-0"))
        self.damage = Damage(queues, log, marks, broker.dispatcher.mend, LOG)
        self.pulls = Pulls(
            holder=Nobody(),
            relay=Nobody(),
            tables=tables,
            extents=memory.extents,
            queues=queues,
            extensions=QueueExtensions(broker.disk, ROOT),
            batch_queues=BatchQueues(broker.disk, ROOT),
            log=log,
            marks=marks,
            replies=Replies("R", False),
            limits=TransferLimits(),
            memory_bytes=1 << 40,
            address="127.0.0.1:1",
            now_ns=lambda: 1,
            damage=self.damage,
            lost_tails=LostTails(memory.extents, tables, 0, lambda: 1),
        )
        self.link = Link()
        self.client = Client(1, TCP, self.link)

    def pull(self, queue_id: int, queue_offset: int) -> RemotingCommand:
        fields = {
            "consumerGroup": GROUP, "topic": TOPIC, "queueId": str(queue_id),
            "queueOffset": str(queue_offset), "maxMsgNums": "32", "sysFlag": "0", "commitOffset": "0",
            "suspendTimeoutMillis": "0", "subVersion": "1", "expressionType": "TAG",
        }  # fmt: skip
        stream = memoryview(bytearray(frame.encode(RemotingCommand(code=11, opaque=1, fields=fields))))
        spots, _, _ = cut_frames(stream, len(stream), 1 << 20)
        for start, end in self.pulls.take(self.client, stream, spots, 1):
            self.pulls.submit(self.client, frame.decode(stream[start:end]), 1)
        self.pulls.finish_batch(1)
        (answer,) = self.link.sent
        self.link.sent.clear()
        return frame.decode(answer[4:])

    def everything(self) -> dict[tuple[int, int], bytes]:
        """Return (queue id, queue offset) → the whole record, of all that a consumer gets."""
        found = {}
        for queue_id, row in self.rows.items():
            extent = self.broker.memory.extents.read(row)
            at = extent.min
            while at < extent.max:
                answer = self.pull(queue_id, at)
                assert answer.code in CODES, answer.remark
                for header, data in split(answer.body):
                    assert (queue_id, header.queue_offset) not in found, "received twice"
                    found[queue_id, header.queue_offset] = data
                following = int(answer.fields["nextBeginOffset"])
                assert following > at, "the consumer does not get on"
                at = following
        return found


def split(body: Any) -> list[tuple[records.Header, bytes]]:
    """Return the records in an answer; each must be whole."""
    found, at = [], 0
    while at < len(body):
        header = records.decode(body, at, check_crc=1)
        found.append((header, bytes(body[at : at + header.total_size])))
        at += header.total_size
    return found
