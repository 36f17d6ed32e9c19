"""Handing the writer messages whose bodies it copies inside the log."""

from __future__ import annotations

from actormq.broker.outbox import Append
from actormq.shm.append_port import KIND_COPY, AppendPort


def push(port: AppendPort, append: Append) -> bool:
    """Put one into the port's ring; False when it is full.  Call `port.flush` after a batch."""
    return port.try_append(
        append.ticket,
        row=append.row,
        row_incarnation=append.row_incarnation,
        queue_id=append.queue_id,
        topic=append.topic,
        properties=append.properties,
        body=b"",
        flag=append.flag,
        sys_flag=append.sys_flag,
        reconsume_times=append.reconsume_times,
        born_timestamp=append.born_timestamp,
        born_host=append.born_host,
        kind=KIND_COPY,
        body_ref=append.body_ref,
        body_bytes=append.body_bytes,
    )
