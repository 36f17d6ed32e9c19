"""One stored message with its names and types, for the paths where a message is looked at one by one.

The hot paths never make one: they copy ranges (`actormq.kernels`).
"""

from __future__ import annotations

from dataclasses import dataclass

from actormq.errors import StoreError
from actormq.kernels import records
from actormq.message import LogOffset, QueueOffset, decode_properties
from actormq.store.identifiers import offset_message_id, unpack_host


class BadRecord(StoreError):
    """There is no whole, consistent record at that place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A message as the commit log keeps it."""

    topic: str
    queue_id: int
    queue_offset: QueueOffset
    log_offset: LogOffset
    size: int
    flag: int
    sys_flag: int
    born_timestamp: int
    born_host: tuple[str, int]
    store_timestamp: int
    store_host: tuple[str, int]
    reconsume_times: int
    prepared_offset: LogOffset
    body: memoryview
    body_crc: int
    properties: dict[str, str]
    message_id: str
    """The offset message id."""


def decode(view: memoryview, at: int = 0, *, check_crc: bool = False) -> Record:
    """Return the record at ``view[at:]``; its body is a slice of `view`.

    Raises:
        BadRecord: there is none, or with `check_crc` its body is damaged.
    """
    try:
        header = records.decode(view, at, check_crc)
    except ValueError as error:
        raise BadRecord(str(error)) from None
    return Record(
        topic=header.topic.decode("utf-8", "replace"),
        queue_id=header.queue_id,
        queue_offset=QueueOffset(header.queue_offset),
        log_offset=LogOffset(header.physical_offset),
        size=header.total_size,
        flag=header.flag,
        sys_flag=header.sys_flag,
        born_timestamp=header.born_timestamp,
        born_host=unpack_host(header.born_host),
        store_timestamp=header.store_timestamp,
        store_host=unpack_host(header.store_host),
        reconsume_times=header.reconsume_times,
        prepared_offset=LogOffset(header.prepared_offset),
        body=view[header.body_at : header.body_at + header.body_size],
        body_crc=header.body_crc,
        properties=decode_properties(header.properties),
        message_id=offset_message_id(header.store_host, header.physical_offset),
    )
