"""Frames: length, header type, header, body; JSON or ROCKETMQ binary headers, both ways.

    u32 length (of what follows) | u8 header type | u24 header length | header | body

Source: RocketMQ RemotingCommand.java, RocketMQSerializable.java, NettyDecoder.java.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final

from actormq.errors import FrameError
from actormq.wire import json
from actormq.wire.command import FLAG_RESPONSE, Language, RemotingCommand, Serialize

FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
"""Length prefix included, as RocketMQ's ``com.rocketmq.remoting.frameMaxLength``."""
HEADER_BYTES_MAX: Final = 1024 * 1024
"""A send's properties (32,767 bytes) take at most six times that in JSON; the rest is room for remarks."""
FIELDS_MAX: Final = 1024
_VALUES_MAX: Final = 32_768
"""In a JSON header that is no standard JSON: more escapes than properties of 32,767 bytes can need."""

_LENGTH: Final = struct.Struct(">I")
_HEAD: Final = struct.Struct(">II")
assert _HEAD.size == 8
_BINARY_FIXED: Final = struct.Struct(">hBhii")
assert _BINARY_FIXED.size == 13
_U16: Final = struct.Struct(">H")
_I32: Final = struct.Struct(">i")

_INT16_ALIASES: Final = {
    code & 0xFFFF: code for code in (*range(200050, 200057), 200151, *range(300000, 300004))
}
"""Request codes over 32,767 lose their upper bits in a binary header; these numbers mean nothing else."""

_ALL_STRINGS: Final = {str}
_INTEGER: Final = re.compile("-?[0-9]{1,10}")
_LANGUAGES: Final = {language.name: language for language in Language}


# --- commands to bytes -------------------------------------------------------------------------------


def encode(command: RemotingCommand) -> bytes:
    """Return the whole frame, length prefix included."""
    header = encode_header(command)
    return b"".join(
        (
            _HEAD.pack(4 + len(header) + len(command.body), command.serialize << 24 | len(header)),
            header,
            command.body,
        )
    )


def encode_head(command: RemotingCommand, body_bytes: int | None = None) -> bytes:
    """Return the frame without its body, for a body that is sent from where it lies.

    Args:
        body_bytes: length of the body that follows; `command.body`'s when not given.
    """
    header = encode_header(command)
    length = len(command.body) if body_bytes is None else body_bytes
    return _HEAD.pack(4 + len(header) + length, command.serialize << 24 | len(header)) + header


def encode_header(command: RemotingCommand) -> bytes:
    """Return the header alone, in the command's own serialization."""
    return _binary_header(command) if command.serialize is Serialize.BINARY else _json_header(command)


def _json_header(command: RemotingCommand) -> bytes:
    header: dict[str, Any] = {
        "code": command.code,
        "flag": command.flag,
        "language": command.language.name,
        "opaque": command.opaque,
        "serializeTypeCurrentRPC": "JSON",
        "version": command.version,
    }
    if command.fields:
        header["extFields"] = command.fields
    if command.remark is not None:
        header["remark"] = command.remark
    return json.dumps(header)


def _binary_header(command: RemotingCommand) -> bytes:
    remark = (command.remark or "").encode("utf-8", "replace")
    pairs: list[bytes] = []
    for key, value in command.fields.items():
        key_bytes, value_bytes = key.encode("utf-8", "replace"), value.encode("utf-8", "replace")
        pairs += (_U16.pack(len(key_bytes)), key_bytes, _I32.pack(len(value_bytes)), value_bytes)
    extension = b"".join(pairs)
    fixed = _BINARY_FIXED.pack(
        (command.code + 0x8000 & 0xFFFF) - 0x8000,
        command.language,
        command.version,
        command.opaque,
        command.flag,
    )
    return b"".join((fixed, _I32.pack(len(remark)), remark, _I32.pack(len(extension)), extension))


# --- bytes to commands -------------------------------------------------------------------------------


def decode(frame: bytes | bytearray | memoryview) -> RemotingCommand:
    """Return the command in `frame`, which begins behind the length prefix.

    The body is a slice of `frame`: of a memoryview no copy, valid as long as its memory.

    Raises:
        FrameError: the bytes are no frame; the connection cannot be trusted any more.
    """
    if len(frame) < 4:
        raise FrameError(f"a frame of {len(frame)} bytes has no header")
    (mark,) = _LENGTH.unpack_from(frame)
    end = 4 + (mark & 0xFF_FFFF)
    if end > len(frame) or end - 4 > HEADER_BYTES_MAX:
        raise FrameError(f"header of {end - 4} bytes in a frame of {len(frame)}")
    body = frame[end:]
    return decode_parts(frame[:end], bytes(body) if isinstance(body, bytearray) else body)


def split(frame: bytes) -> tuple[bytes, bytes]:
    """Return type byte, header length and header of `frame`, which begins behind the length prefix; its body.

    Raises:
        FrameError: as `decode`.
    """
    if len(frame) < 4:
        raise FrameError(f"a frame of {len(frame)} bytes has no header")
    end = 4 + (_LENGTH.unpack_from(frame)[0] & 0xFF_FFFF)
    if end > len(frame) or end - 4 > HEADER_BYTES_MAX:
        raise FrameError(f"header of {end - 4} bytes in a frame of {len(frame)}")
    return frame[:end], frame[end:]


def decode_parts(head: bytes | bytearray | memoryview, body: bytes | memoryview) -> RemotingCommand:
    """Return the command of a type byte, header length and header (a ZeroMQ message's first part) and a body.

    Raises:
        FrameError: as `decode`.
    """
    if len(head) < 4:
        raise FrameError(f"a header part of {len(head)} bytes")
    (mark,) = _LENGTH.unpack_from(head)
    if len(head) - 4 != mark & 0xFF_FFFF or len(head) - 4 > HEADER_BYTES_MAX:
        raise FrameError(f"header says {mark & 0xFF_FFFF} bytes, has {len(head) - 4}")
    header = bytes(head[4:])
    if mark >> 24 == Serialize.JSON:
        return _decode_json(header, body)
    if mark >> 24 == Serialize.BINARY:
        return _decode_binary(header, body)
    raise FrameError(f"unknown header type {mark >> 24}")


def _decode_json(header: bytes, body: bytes | memoryview) -> RemotingCommand:
    value = json.loads(header, _VALUES_MAX)
    if not isinstance(value, dict):
        raise FrameError("a JSON header that is no object")
    get = value.get
    remark = get("remark")
    return RemotingCommand(
        code=_int(get("code", 0), "code"),
        flag=_int(get("flag", 0), "flag"),
        opaque=_int(get("opaque", 0), "opaque"),
        version=_int(get("version", 0), "version"),
        language=_language(get("language")),
        remark=None if remark is None else _text(remark),
        fields=_string_fields(value.get("extFields")),
        body=body,
        serialize=Serialize.JSON,
    )


def _int(value: Any, name: str) -> int:
    if type(value) is int and -0x8000_0000 <= value <= 0x7FFF_FFFF:
        return value
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return _int(int(value), name)
    raise FrameError(f"header field {name} is no 32-bit integer")


def _language(value: Any) -> Language:
    if isinstance(value, str):
        return _LANGUAGES.get(value, Language.OTHER)
    if type(value) is int and 0 <= value <= max(Language):
        return Language(value)
    return Language.OTHER


def _text(value: Any) -> str:
    """Return `value` as Java's fastjson coerces it to a string."""
    return value if isinstance(value, str) else json.dumps(value).decode()


def _string_fields(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > FIELDS_MAX:
        raise FrameError("extFields is no object, or has too many members")
    if set(map(type, value.values())) == _ALL_STRINGS and type(value) is dict:
        return value
    return {
        key: item if type(item) is str else _text(item) for key, item in value.items() if item is not None
    }


def _decode_binary(header: bytes, body: bytes | memoryview) -> RemotingCommand:
    if len(header) < 21:
        raise FrameError(f"a binary header of {len(header)} bytes")
    code, language, version, opaque, flag = _BINARY_FIXED.unpack_from(header)
    remark, at = _binary_text(header, 13, len(header))
    if at + 4 > len(header):
        raise FrameError("a binary header cut off before its fields")
    (extension,) = _I32.unpack_from(header, at)
    if not 0 <= extension <= len(header) - at - 4:
        raise FrameError(f"binary header fields of {extension} bytes in {len(header)}")
    if not flag & FLAG_RESPONSE:
        code = _INT16_ALIASES.get(code & 0xFFFF, code)
    return RemotingCommand(
        code=code,
        flag=flag,
        opaque=opaque,
        version=version,
        language=_language(language),
        remark=remark or None,
        fields=_binary_fields(header, at + 4, at + 4 + extension),
        body=body,
        serialize=Serialize.BINARY,
    )


def _binary_fields(header: bytes, at: int, end: int) -> dict[str, str]:
    fields: dict[str, str] = {}
    count = 0
    while at < end:
        count += 1
        if count > FIELDS_MAX:
            raise FrameError(f"more than {FIELDS_MAX} header fields")
        if at + 2 > end:
            raise FrameError("a binary field cut off in its key")
        (key_bytes,) = _U16.unpack_from(header, at)
        at += 2
        if at + key_bytes > end:
            raise FrameError(f"a binary field key of {key_bytes} bytes")
        key = header[at : at + key_bytes].decode("utf-8", "replace")
        value, at = _binary_text(header, at + key_bytes, end)
        if key and value:
            fields[key] = value
    return fields


def _binary_text(header: bytes, at: int, end: int) -> tuple[str, int]:
    """Return the text with a 32-bit length at `at`, and where the next field begins."""
    if at + 4 > end:
        raise FrameError("a binary header cut off in a length")
    (length,) = _I32.unpack_from(header, at)
    if not 0 <= length <= end - at - 4:
        raise FrameError(f"a binary header text of {length} bytes")
    return header[at + 4 : at + 4 + length].decode("utf-8", "replace"), at + 4 + length


# --- a stream of bytes to frames ---------------------------------------------------------------------


class FrameCutter:
    """Cuts a stream into frames, however it was chunked.

    Frames come without their length prefix.  Good frames before a bad length are still returned;
    the error comes with the next `feed`, or at once when there were none.
    """

    def __init__(self, max_bytes: int = FRAME_BYTES_MAX) -> None:
        self._max_bytes = max_bytes
        self._pending = bytearray()
        self.broken: FrameError | None = None

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has not wholly come yet."""
        return len(self._pending)

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Return the frames that `data` completes.

        Raises:
            FrameError: a length that no frame can have; the stream is lost from there on.
        """
        if self.broken is None:
            source: bytes | bytearray | memoryview = data
            if self._pending:
                self._pending += data
                source = self._pending
            frames, at = self._cut(source)
            if source is self._pending:
                del self._pending[:at]
            else:
                self._pending += source[at:]
            if frames or self.broken is None:
                return frames
        raise self.broken

    def _cut(self, source: bytes | bytearray | memoryview) -> tuple[list[bytes], int]:
        frames = []
        at = 0
        while at + 4 <= len(source):
            (length,) = _LENGTH.unpack_from(source, at)
            if not 4 <= length <= self._max_bytes - 4:
                self.broken = FrameError(f"a frame of {length} bytes")
                break
            if at + 4 + length > len(source):
                break
            frames.append(bytes(source[at + 4 : at + 4 + length]))
            at += 4 + length
        return frames, at
