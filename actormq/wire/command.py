"""RemotingCommand: the one vocabulary of every front: code, flag, opaque, remark, fields, body.

Source: RocketMQ RemotingCommand.java, LanguageCode.java, SerializeType.java.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count
from typing import Final

FLAG_RESPONSE: Final = 1
FLAG_ONEWAY: Final = 2

BROKER_VERSION: Final = 479
"""What we report: RocketMQ 5.3.3.  Clients read it from heartbeat answers; 0 would break SQL consumers."""


class Serialize(IntEnum):
    """How the header is written; byte 4 of a frame."""

    JSON = 0
    BINARY = 1


class Language(IntEnum):
    """Who wrote the command.  Source: LanguageCode.java."""

    JAVA = 0
    CPP = 1
    DOTNET = 2
    PYTHON = 3
    DELPHI = 4
    ERLANG = 5
    RUBY = 6
    OTHER = 7
    HTTP = 8
    GO = 9
    PHP = 10
    OMS = 11
    RUST = 12
    NODE_JS = 13


_opaques = count(1)


def next_opaque() -> int:
    """Return a correlation id: 31 bits, different from the last two billion of this process."""
    return next(_opaques) & 0x7FFF_FFFF


@dataclass(slots=True, kw_only=True)
class RemotingCommand:
    """A request or a response.

    Attributes:
        code: request code, or response code when `is_response`.
        opaque: correlation id (any int32); the response repeats the request's.
        fields: RocketMQ's ``extFields``, every value a string.
        body: never None; empty is "no body".
    """

    code: int
    flag: int = 0
    opaque: int = 0
    remark: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    language: Language = Language.JAVA
    version: int = BROKER_VERSION
    serialize: Serialize = Serialize.JSON

    @classmethod
    def request(
        cls,
        code: int,
        fields: dict[str, str] | None = None,
        body: bytes | memoryview = b"",
        oneway: bool = False,
    ) -> RemotingCommand:
        """Return a new request with an opaque of its own."""
        return cls(
            code=code,
            flag=FLAG_ONEWAY if oneway else 0,
            opaque=next_opaque(),
            fields={} if fields is None else fields,
            body=body,
        )

    @classmethod
    def response_to(
        cls,
        request: RemotingCommand,
        code: int,
        remark: str | None = None,
        fields: dict[str, str] | None = None,
        body: bytes | memoryview = b"",
    ) -> RemotingCommand:
        """Return the answer to `request`: its opaque, its header type, the response flag."""
        return cls(
            code=code,
            flag=FLAG_RESPONSE,
            opaque=request.opaque,
            remark=remark,
            fields={} if fields is None else fields,
            body=body,
            serialize=request.serialize,
        )

    @property
    def is_response(self) -> bool:
        return bool(self.flag & FLAG_RESPONSE)

    @property
    def is_oneway(self) -> bool:
        return bool(self.flag & FLAG_ONEWAY)
