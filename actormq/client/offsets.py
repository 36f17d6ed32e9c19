"""Where a group's offsets are kept: at the broker (clustering) or in a local file (broadcasting)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from actormq.client import requests
from actormq.client.procedures import Ask, Together
from actormq.client.results import MessageQueue
from actormq.client.session import Session
from actormq.errors import PeerError, ResponseCode
from actormq.message import QueueOffset
from actormq.wire import json

log = logging.getLogger("actormq.client")


class Offsets(Protocol):
    """Procedures."""

    async def load(self, queue: MessageQueue) -> QueueOffset | None:
        """Return the group's offset; None = it has none yet.

        Raises:
            ClientError, PeerError.
        """
        ...

    async def save(self, offsets: Mapping[MessageQueue, QueueOffset]) -> set[MessageQueue]:
        """Keep offsets; return the queues for which that is now certain."""
        ...


class BrokerOffsets:
    """At the master of each queue's broker."""

    def __init__(self, session: Session, group: str, timeout_ms: int) -> None:
        self._session = session
        self._group = group
        self._timeout_ms = timeout_ms

    async def load(self, queue: MessageQueue) -> QueueOffset | None:
        address = await self._session.directory.master_of(queue.broker_name)
        answer = await Ask(address, requests.query_offset(self._group, queue), self._timeout_ms)
        if answer.code == ResponseCode.QUERY_NOT_FOUND:
            return None
        return requests.parse_offset(answer, address)

    async def save(self, offsets: Mapping[MessageQueue, QueueOffset]) -> set[MessageQueue]:
        results = await Together([self._save(queue, offset) for queue, offset in offsets.items()])
        saved = set()
        for queue, result in zip(offsets, results, strict=True):
            if isinstance(result, BaseException):
                log.warning("offset %d of %s was not saved: %s", offsets[queue], queue, result)
            else:
                saved.add(queue)
        return saved

    async def _save(self, queue: MessageQueue, queue_offset: QueueOffset) -> None:
        address = await self._session.directory.master_of(queue.broker_name)
        answer = await Ask(address, requests.commit(self._group, queue, queue_offset), self._timeout_ms)
        requests.require_success(answer, address)


class FileOffsets:
    """In one small JSON file, replaced whole."""

    def __init__(self, folder: Path, client_id: str, group: str) -> None:
        self._path = folder.expanduser() / client_id / f"{group}.json"
        self._known: dict[MessageQueue, QueueOffset] | None = None

    def _offsets(self) -> dict[MessageQueue, QueueOffset]:
        if self._known is None:
            try:
                value = json.loads(self._path.read_bytes())
                self._known = {
                    requests.queue_of_json(item): QueueOffset(int(item["offset"]))
                    for item in value["offsets"]
                }
            except FileNotFoundError:
                self._known = {}
            except (KeyError, TypeError, ValueError) as error:
                raise PeerError(
                    f"{self._path} is no offset file; remove it to begin anew ({error!r})"
                ) from error
        return self._known

    async def load(self, queue: MessageQueue) -> QueueOffset | None:
        return self._offsets().get(queue)

    async def save(self, offsets: Mapping[MessageQueue, QueueOffset]) -> set[MessageQueue]:
        if not offsets:
            return set()
        known = self._offsets()
        known.update(offsets)
        data = json.dumps(
            {"offsets": [{**requests.queue_json(one), "offset": offset} for one, offset in known.items()]}
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(data)
        # Not synced: after a loss of power some messages come twice, which broadcasting allows.
        os.replace(temporary, self._path)
        return set(offsets)
