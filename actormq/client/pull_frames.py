"""Pulls as whole frames, written from templates; what answers say, read without making commands of them.

A consumer makes one per message when little is sent, and all of it lies between a message and its listener.
JSON headers: the broker answers in the form of the request, and has a template for this one.
Source: RocketMQ PullMessageRequestHeader.java, PullMessageResponseHeader.java; wire.md §6.2.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from actormq.client import requests
from actormq.client.procedures import JsonFrame
from actormq.client.requests import PULL_STATUS, PullAnswer
from actormq.client.results import MessageQueue
from actormq.message import QueueOffset
from actormq.wire import frame, json
from actormq.wire.command import RemotingCommand

_HEAD: Final = struct.Struct(">II")
_MARK: Final = struct.Struct(">I")
_QUEUES_REMEMBERED_MAX: Final = 10_000
_OFFSET: Final = 900_000_001
_COMMIT: Final = 900_000_002
_OPAQUE: Final = 900_000_003
"""Numbers that stand for those of a single pull while a template is made."""


class PullFrames:
    """Writes the pulls of one consumer.  Loop thread."""

    def __init__(self, group: str, *, messages_max: int, bytes_max: int, suspend_ms: int) -> None:
        self._group = group
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._suspend_ms = suspend_ms
        self._templates: dict[tuple[MessageQueue, int, bool], bytes] = {}

    def encode(
        self,
        queue: MessageQueue,
        queue_offset: QueueOffset,
        sub_version: int,
        commit_offset: QueueOffset | None,
        opaque: int,
    ) -> bytes:
        """Return the frame of a pull that may wait for messages; the arguments as for `requests.pull`."""
        key = queue, sub_version, commit_offset is not None
        template = self._templates.get(key) or self._remember(key)
        header = template % (commit_offset or 0, queue_offset, opaque)
        return _HEAD.pack(4 + len(header), len(header)) + header

    def _remember(self, key: tuple[MessageQueue, int, bool]) -> bytes:
        if len(self._templates) >= _QUEUES_REMEMBERED_MAX:
            self._templates = {}
        template = self._templates[key] = self._template(*key)
        return template

    def _template(self, queue: MessageQueue, sub_version: int, commits: bool) -> bytes:
        command = requests.pull(
            self._group,
            queue,
            QueueOffset(_OFFSET),
            messages_max=self._messages_max,
            bytes_max=self._bytes_max,
            suspend_ms=self._suspend_ms,
            sub_version=sub_version,
            commit_offset=QueueOffset(_COMMIT) if commits else None,
        )
        command.opaque = _OPAQUE
        command.fields = {"commitOffset": str(_COMMIT), "queueOffset": str(_OFFSET), **_others(command)}
        header = json.dumps(
            {
                "code": command.code,
                "extFields": command.fields,
                "flag": command.flag,
                "opaque": command.opaque,
                "language": command.language.name,
                "serializeTypeCurrentRPC": "JSON",
                "version": command.version,
            }
        ).replace(b"%", b"%%")
        for number in (_COMMIT, _OFFSET, _OPAQUE):
            before, _, after = header.partition(b"%d" % number)
            header = before + b"%d" + after
        return header


def _others(command: RemotingCommand) -> dict[str, str]:
    return {key: value for key, value in command.fields.items() if key not in ("commitOffset", "queueOffset")}


def parse_pull(answer: JsonFrame | RemotingCommand, address: str) -> PullAnswer:
    """Return what a pull brought.

    Raises:
        RequestRefused: an error, not an outcome.
        PeerError: it is no answer to a pull.
    """
    if isinstance(answer, RemotingCommand):
        return requests.parse_pull(answer, address)
    header, body = answer
    try:
        fields = header["extFields"]
        return PullAnswer(
            PULL_STATUS[header["code"]],
            QueueOffset(int(fields["nextBeginOffset"])),
            QueueOffset(int(fields["minOffset"])),
            QueueOffset(int(fields["maxOffset"])),
            int(fields["suggestWhichBrokerId"]),
            body,
        )
    except (ValueError, KeyError, TypeError):
        # Refused, or odd: what to say of it is written once.
        return requests.parse_pull(frame.decode_parts(_head(header), body), address)


def _head(header: dict[str, Any]) -> bytes:
    data = json.dumps(header)
    return _MARK.pack(len(data)) + data
