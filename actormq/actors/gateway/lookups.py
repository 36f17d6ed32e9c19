"""lookups: questions about queues and single messages that the store's files answer: 12 and 29 to 33.

What is in memory is answered in place; a question for which a disk must be asked begins anew in a thread.
One for a key always does: the chains of an index can be long.

Unknown queues give 0 (or -1 for a time), never an error, as RocketMQ's do.
Source: RocketMQ AdminBrokerProcessor.java, QueryMessageProcessor.java; wire reference 6.6, 6.14.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from actormq.actors.gateway.clients import Client
from actormq.actors.gateway.pulls import Marks
from actormq.actors.gateway.relay import OVERLOAD
from actormq.actors.gateway.threads import ReadThreads, Then, pread_cached
from actormq.broker.tables import Tables
from actormq.config import StoreConfig
from actormq.errors import RequestError, ResponseCode, StoreError
from actormq.shm.extents import Extent, Extents
from actormq.store.batch_queue import is_batch_topic
from actormq.store.consume_queue import Boundary
from actormq.store.disk import Disk
from actormq.store.finding import NO_TIME, Finder, Wanted
from actormq.wire.command import RemotingCommand
from actormq.wire.headers import RequestCode, check, int_field

WAITING_MAX: Final = 1024
"""Questions for the threads, of all clients together; beyond it they are told to ask again."""
MESSAGES_MAX: Final = 64
UNIQUE_MAX: Final = 32
"""RocketMQ's maxMsgsNumBatch, and its defaultQueryMaxNum, which holds for unique keys."""
BYTES_MAX: Final = 8 * 1024 * 1024
"""Of the messages of one answer: RocketMQ's clients take no frame above 16 MiB."""
_TAG: Final = "T"
"""The `indexType` of RocketMQ since 5.4; keys and unique keys are found without.

The `lastKey` beside it pages through RocketMQ's index in RocksDB.  Its index files do not know it: a question
with one is answered like one without.
"""
_IS_UNIQUE: Final = "_UNIQUE_KEY_QUERY"
_EMPTY: Final = Extent(0, 0, 0)

Question = Callable[[Finder], RemotingCommand]
"""Answers a request; runs in any thread, so it knows of the tables only what it was made with."""


class Lookups:
    """Answers questions; reads by descriptor, so that nothing is unlinked or unmapped under it."""

    def __init__(
        self,
        *,
        tables: Tables,
        extents: Extents,
        disk: Disk,
        store: StoreConfig,
        marks: Marks,
        threads: ReadThreads,
    ) -> None:
        self._tables = tables
        self._extents = extents
        self._disk = disk
        self._store = store
        self._marks = marks
        self._threads = threads
        self._waiting = 0
        self.handlers: dict[int, Callable[[RemotingCommand], Question]] = {
            RequestCode.QUERY_MESSAGE: self._messages,
            RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: self._offset_by_time,
            RequestCode.GET_MAX_OFFSET: self._max_offset,
            RequestCode.GET_MIN_OFFSET: self._min_offset,
            RequestCode.GET_EARLIEST_MSG_STORETIME: self._earliest_time,
            RequestCode.VIEW_MESSAGE_BY_ID: self._message,
        }

    def serve(self, client: Client, command: RemotingCommand) -> None:
        """Answer one request of `handlers`, now or later.

        Raises:
            RequestError: a field is missing or wrong; no such message; too many questions.
        """
        check(command.code, command.fields)
        question = self.handlers[command.code](command)
        if command.code != RequestCode.QUERY_MESSAGE:
            try:
                self._tell(client, command, self._ask(question, at_once=True))
                return
            except OSError:
                pass  # not in memory, or trouble, which a thread may have at leisure
        if self._waiting >= WAITING_MAX:
            raise RequestError(ResponseCode.SYSTEM_BUSY, OVERLOAD)
        self._waiting += 1
        self._threads.run(lambda: self._ask_later(client, command, question))

    def _ask(self, question: Question, *, at_once: bool) -> RemotingCommand:
        log_min, log_end = self._marks.log_range()
        read = pread_cached if at_once else None
        with Finder(self._disk, self._store, log_min, log_end, read) as finder:
            return question(finder)

    def _ask_later(self, client: Client, command: RemotingCommand, question: Question) -> Then:
        """Ask, waiting for the disk where needed; return what gives the answer (in the gateway's thread)."""
        try:
            answer = self._ask(question, at_once=False)
        except RequestError as error:
            answer = RemotingCommand.response_to(command, error.response_code, error.remark)
        except (OSError, StoreError) as error:
            answer = RemotingCommand.response_to(command, ResponseCode.SYSTEM_ERROR, f"cannot read: {error}")
        return partial(self._answered, client, command, answer)

    def _answered(self, client: Client, command: RemotingCommand, answer: RemotingCommand) -> None:
        self._waiting -= 1
        self._tell(client, command, answer)

    def _tell(self, client: Client, command: RemotingCommand, answer: RemotingCommand) -> None:
        if not command.is_oneway and not client.closed:
            client.answer(answer)

    def _queue(self, command: RemotingCommand) -> tuple[str, int, Extent]:
        """Return topic, queue id and extent of the queue that a request names; empty for an unknown one."""
        topic, queue_id = command.fields["topic"], int_field(command.fields, "queueId")
        entry = self._tables.topic(topic)
        if entry is None or not 0 <= queue_id < len(entry.rows):
            return topic, queue_id, _EMPTY
        extent = self._extents.read(entry.rows[queue_id])
        if extent.incarnation != entry.row_incarnations[queue_id]:
            return topic, queue_id, _EMPTY
        return topic, queue_id, extent

    def _is_batch(self, topic: str) -> bool:
        entry = self._tables.topic(topic)
        return entry is not None and is_batch_topic(entry.attributes)

    def _max_offset(self, command: RemotingCommand) -> Question:
        answer = RemotingCommand.response_to(command, 0, fields={"offset": str(self._queue(command)[2].max)})
        return lambda finder: answer

    def _min_offset(self, command: RemotingCommand) -> Question:
        answer = RemotingCommand.response_to(command, 0, fields={"offset": str(self._queue(command)[2].min)})
        return lambda finder: answer

    def _offset_by_time(self, command: RemotingCommand) -> Question:
        topic, queue_id, extent = self._queue(command)
        timestamp = int_field(command.fields, "timestamp")
        upper = command.fields.get("boundaryType", "").upper() == "UPPER"
        boundary = Boundary.UPPER if upper else Boundary.LOWER
        is_batch = self._is_batch(topic)

        def answer(finder: Finder) -> RemotingCommand:
            found = finder.offset_at(
                topic, queue_id, extent.min, extent.max, timestamp, boundary, is_batch=is_batch
            )
            return RemotingCommand.response_to(command, 0, fields={"offset": str(found)})

        return answer

    def _earliest_time(self, command: RemotingCommand) -> Question:
        topic, queue_id, extent = self._queue(command)
        is_batch = self._is_batch(topic)

        def answer(finder: Finder) -> RemotingCommand:
            is_empty = extent.min >= extent.max
            time = NO_TIME if is_empty else finder.store_time(topic, queue_id, extent.min, is_batch=is_batch)
            return RemotingCommand.response_to(command, 0, fields={"timestamp": str(time)})

        return answer

    def _message(self, command: RemotingCommand) -> Question:
        log_offset = int_field(command.fields, "offset")

        def answer(finder: Finder) -> RemotingCommand:
            found = finder.message(log_offset)
            if found is None:
                remark = f"can not find message by the offset, {log_offset}"
                raise RequestError(ResponseCode.SYSTEM_ERROR, remark)
            return RemotingCommand.response_to(command, 0, body=found[0])

        return answer

    def _messages(self, command: RemotingCommand) -> Question:
        fields = command.fields
        is_unique = fields.get(_IS_UNIQUE, "").lower() == "true"
        entry = self._tables.topic(fields["topic"])
        wanted = Wanted(
            topic=fields["topic"],
            key=fields["key"],
            begin_ms=int_field(fields, "beginTimestamp"),
            end_ms=int_field(fields, "endTimestamp"),
            messages_max=UNIQUE_MAX if is_unique else min(int_field(fields, "maxNum"), MESSAGES_MAX),
            bytes_max=BYTES_MAX,
            unique_only=is_unique,
            is_tag=fields.get("indexType") == _TAG and not is_unique,
            log_starts=dict(enumerate(map(self._extents.log_start, entry.rows))) if entry else {},
        )

        def answer(finder: Finder) -> RemotingCommand:
            found, (time, log_offset) = finder.by_key(wanted) if entry else ([], (0, 0))
            reached = {"indexLastUpdateTimestamp": str(time), "indexLastUpdatePhyoffset": str(log_offset)}
            if found:
                return RemotingCommand.response_to(command, 0, fields=reached, body=b"".join(found))
            remark = "can not find message, maybe time range not correct"
            return RemotingCommand.response_to(command, ResponseCode.QUERY_NOT_FOUND, remark, reached)

        return answer
