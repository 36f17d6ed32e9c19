"""lookups: questions about queues and single messages that the mapped files answer: 29 to 33.

Unknown queues give 0 (or -1 for a time), never an error, as RocketMQ's do.
Source: RocketMQ AdminBrokerProcessor.java, QueryMessageProcessor.java; wire reference 6.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from actormq.actors.gateway.clients import Client
from actormq.actors.gateway.pulls import Marks
from actormq.broker.tables import Tables
from actormq.errors import RequestError, ResponseCode, StoreError
from actormq.shm.extents import Extent, Extents
from actormq.store import record
from actormq.store.commit_log import LogReader
from actormq.store.consume_queue import Boundary, QueueReader, offset_by_time
from actormq.wire.command import RemotingCommand
from actormq.wire.headers import RequestCode, check, int_field

NO_TIME: Final = -1
_SIZE_BYTES: Final = 4
_EMPTY: Final = Extent(0, 0, 0)


class Lookups:
    """Answers in place; reads like `Pulls`, for one entry or one message."""

    def __init__(
        self, *, tables: Tables, extents: Extents, queues: QueueReader, log: LogReader, marks: Marks
    ) -> None:
        self._tables = tables
        self._extents = extents
        self._queues = queues
        self._log = log
        self._marks = marks
        self.handlers: dict[int, Callable[[RemotingCommand], RemotingCommand]] = {
            RequestCode.SEARCH_OFFSET_BY_TIMESTAMP: self._offset_by_time,
            RequestCode.GET_MAX_OFFSET: self._max_offset,
            RequestCode.GET_MIN_OFFSET: self._min_offset,
            RequestCode.GET_EARLIEST_MSG_STORETIME: self._earliest_time,
            RequestCode.VIEW_MESSAGE_BY_ID: self._message,
        }

    def serve(self, client: Client, command: RemotingCommand) -> None:
        """Answer one request of `handlers`.

        Raises:
            RequestError: a field is missing or wrong; no such message.
        """
        check(command.code, command.fields)
        self._marks.reading(self._marks.log_range()[0])
        answer = self.handlers[command.code](command)
        if not command.is_oneway:
            client.answer(answer)

    def _queue(self, command: RemotingCommand) -> tuple[str, int, int | None, Extent]:
        """Return topic, queue id, row and extent of the queue that a request names."""
        topic, queue_id = command.fields["topic"], int_field(command.fields, "queueId")
        entry = self._tables.topic(topic)
        if entry is None or not 0 <= queue_id < len(entry.rows):
            return topic, queue_id, None, _EMPTY
        row = entry.rows[queue_id]
        extent = self._extents.read(row)
        if extent.incarnation != entry.row_incarnations[queue_id]:
            return topic, queue_id, None, _EMPTY
        return topic, queue_id, row, extent

    def _max_offset(self, command: RemotingCommand) -> RemotingCommand:
        extent = self._queue(command)[3]
        return RemotingCommand.response_to(command, 0, fields={"offset": str(extent.max)})

    def _min_offset(self, command: RemotingCommand) -> RemotingCommand:
        extent = self._queue(command)[3]
        return RemotingCommand.response_to(command, 0, fields={"offset": str(extent.min)})

    def _offset_by_time(self, command: RemotingCommand) -> RemotingCommand:
        topic, queue_id, row, extent = self._queue(command)
        timestamp = int_field(command.fields, "timestamp")
        upper = command.fields.get("boundaryType", "").upper() == "UPPER"
        found = extent.min
        if row is not None:
            found = offset_by_time(
                extent.min,
                extent.max,
                timestamp,
                Boundary.UPPER if upper else Boundary.LOWER,
                lambda offset: self._time_at(topic, queue_id, offset, extent),
            )
        return RemotingCommand.response_to(command, 0, fields={"offset": str(found)})

    def _earliest_time(self, command: RemotingCommand) -> RemotingCommand:
        topic, queue_id, row, extent = self._queue(command)
        time = NO_TIME
        if row is not None and extent.min < extent.max:
            time = self._time_at(topic, queue_id, extent.min, extent)
        return RemotingCommand.response_to(command, 0, fields={"timestamp": str(time)})

    def _time_at(self, topic: str, queue_id: int, queue_offset: int, extent: Extent) -> int:
        """Return a message's store timestamp; NO_TIME when it has been removed meanwhile."""
        try:
            log_offset, size, _ = self._queues.entry(topic, queue_id, queue_offset, extent.incarnation)
            return record.decode(self._log.view(log_offset, size)).store_timestamp
        except StoreError:
            return NO_TIME

    def _message(self, command: RemotingCommand) -> RemotingCommand:
        log_offset = int_field(command.fields, "offset")
        view = self._record(log_offset)
        if view is None:
            raise RequestError(ResponseCode.SYSTEM_ERROR, f"can not find message by the offset, {log_offset}")
        return RemotingCommand.response_to(command, 0, body=view)

    def _record(self, log_offset: int) -> memoryview | None:
        """Return the whole, readable record at a place in the log; the asker may have made the place up."""
        log_min, log_end = self._marks.log_range()
        if not log_min <= log_offset <= log_end - _SIZE_BYTES:
            return None
        try:
            size = int.from_bytes(self._log.view(log_offset, _SIZE_BYTES), "big")
            if not 0 < size <= log_end - log_offset:
                return None
            view = self._log.view(log_offset, size)
            found = record.decode(view, check_crc=True)
        except StoreError:
            return None
        return view if found.log_offset == log_offset and found.size == size else None
