"""The answers that are given thousands of times a second, from templates; the rest by `wire.frame`."""

from __future__ import annotations

import re
import struct
from typing import Final

from actormq.broker.pulling import PullPlan, answer_fields
from actormq.wire.command import BROKER_VERSION, FLAG_RESPONSE, RemotingCommand, Serialize
from actormq.wire.frame import encode_head
from actormq.wire.json import dumps

_HEAD: Final = struct.Struct(">II")
_TAIL: Final = (
    b'"flag":%d,"language":"JAVA","opaque":%%d,%%s"serializeTypeCurrentRPC":"JSON","version":%d}'
    % (FLAG_RESPONSE, BROKER_VERSION)
)


def _head(header: bytes, body_bytes: int = 0) -> bytes:
    return _HEAD.pack(4 + len(header) + body_bytes, len(header)) + header


class Replies:
    """Encoders for one broker.

    Attributes:
        send_fields: what every answer to a send carries, errors too.
        stored_pieces, stored_fields, pulled_pieces, pulled_fields: for kernels that write the same answers.
    """

    def __init__(self, region: str, trace_on: bool) -> None:
        self.send_fields: Final = {"MSG_REGION": region, "TRACE_ON": "true" if trace_on else "false"}
        common = dumps(self.send_fields)[1:-1].replace(b"%", b"%%")
        self._stored = (
            b'{"code":%d,"extFields":{'
            + common
            + b',"msgId":"%s","queueId":"%d","queueOffset":"%d","transactionId":%s},'
            + _TAIL
        )
        self._stored_bare = self._stored.replace(b'"msgId":"%s",', b"")
        self.stored_pieces: Final = _pieces(self._stored)
        self.stored_bare: Final = _pieces(self._stored_bare)[1]
        self.stored_fields: Final = self._binary_fields()
        self.stored_fields_bare: Final = self.stored_fields[0].removesuffix(_key("msgId")) + _key("queueId")
        self._pulled = (
            b'{"code":%d,"extFields":{"groupSysFlag":"%d","maxOffset":"%d","minOffset":"%d",'
            b'"nextBeginOffset":"%d","suggestWhichBrokerId":"0","topicSysFlag":"%d"},' + _TAIL
        )
        *pieces, before_remark, end = _split(self._pulled)
        self.pulled_pieces: Final = (*pieces, before_remark + b'"remark":"', b'",' + end)
        self.pulled_fields: Final = (
            _key("groupSysFlag"),
            _key("maxOffset"),
            _key("minOffset"),
            _key("nextBeginOffset"),
            _key("suggestWhichBrokerId") + struct.pack(">i", 1) + b"0" + _key("topicSysFlag"),
        )

    def _binary_fields(self) -> tuple[bytes, ...]:
        """Return what comes before each value that differs in a binary answer to a send."""
        common = b"".join(
            _key(name) + struct.pack(">i", len(value)) + value.encode()
            for name, value in self.send_fields.items()
        )
        return common + _key("msgId"), _key("queueId"), _key("queueOffset"), _key("transactionId")

    def stored(
        self,
        serialize: Serialize,
        opaque: int,
        code: int,
        message_id: str | None,
        queue_id: int,
        queue_offset: int,
        unique_key: str,
    ) -> bytes:
        """Return the frame that answers a send whose message is in the log (without an id: None)."""
        if serialize is Serialize.JSON:
            key = (
                b'"%s"' % unique_key.encode()
                if unique_key.isalnum() and unique_key.isascii()
                else dumps(unique_key)
            )
            if message_id is None:
                return _head(self._stored_bare % (code, queue_id, queue_offset, key, opaque, b""))
            return _head(self._stored % (code, message_id.encode(), queue_id, queue_offset, key, opaque, b""))
        fields = {
            **self.send_fields,
            **({} if message_id is None else {"msgId": message_id}),
            "queueId": str(queue_id),
            "queueOffset": str(queue_offset),
            "transactionId": unique_key,
        }
        return encode_head(_response(serialize, opaque, code, None, fields))

    def pulled(
        self,
        request: RemotingCommand,
        code: int,
        remark: str,
        plan: PullPlan,
        offsets: tuple[int, int, int],
        body_bytes: int = 0,
    ) -> bytes:
        """Return the head of the frame that answers a pull.

        Args:
            remark: a `PullStatus` name.
            offsets: next, min and max of the queue.
        """
        next_offset, queue_min, queue_max = offsets
        if request.serialize is Serialize.JSON:
            header = self._pulled % (
                code,
                plan.group.sys_flag,
                queue_max,
                queue_min,
                next_offset,
                plan.topic.sys_flag,
                request.opaque,
                b'"remark":"%s",' % remark.encode(),
            )
            return _head(header, body_bytes)
        fields = answer_fields(plan, next_offset, queue_min, queue_max)
        return encode_head(_response(request.serialize, request.opaque, code, remark, fields), body_bytes)


def _pieces(template: bytes) -> tuple[bytes, ...]:
    """Return what lies around the values in the template of `Replies.stored`, for a kernel to fill."""
    *pieces, before_key, before_opaque, before_remark, end = _split(template)
    return (*pieces, before_key + b'"', b'"' + before_opaque, before_remark + end)


def _split(template: bytes) -> list[bytes]:
    return [piece.replace(b"%%", b"%") for piece in re.split(rb"(?<!%)%[ds]", template)]


def _key(name: str) -> bytes:
    return struct.pack(">H", len(name)) + name.encode()


def _response(
    serialize: Serialize, opaque: int, code: int, remark: str | None, fields: dict[str, str]
) -> RemotingCommand:
    return RemotingCommand(
        code=code, flag=FLAG_RESPONSE, opaque=opaque, remark=remark, fields=fields, serialize=serialize
    )
