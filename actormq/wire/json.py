"""RocketMQ's JSON: standard JSON, and what fastjson writes besides.

`loads` takes both: unquoted integer and name keys, objects as keys, single quotes, superfluous commas.
`dumps` writes standard compact JSON; `dumps_fastjson` the shapes that Java itself writes
(``{0:"ip:port"}``, ``{{"topic":"t"}:1}``): 5.5.0's reader takes a map of queues in no other.
No blanks anywhere: the Go client splits a route's text at commas and colons.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from actormq.errors import FrameError

__all__ = ["Json", "ObjectKey", "dumps", "dumps_fastjson", "key_object", "loads"]

DEPTH_MAX: Final = 64
"""Levels of nesting that are read; RocketMQ's own bodies have six."""

Json = Any
"""None, bool, int, float, str, list and dict; what came from a peer is checked where it is used."""

_BLANKS: Final = re.compile("[ \t\r\n\f\b]*")
_COMMAS: Final = re.compile("[ \t\r\n\f\b,]*")
_PLAIN: Final = {quote: re.compile(rf"[^{quote}\\]*") for quote in ('"', "'")}
"""What a string in these quotes has up to its end or the next escape."""
_NAME: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.\-]*")
_NUMBER: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_NUMBER_LENGTH_MAX: Final = 300
_WORDS: Final[dict[str, Any]] = {"true": True, "false": False, "null": None, "NaN": None, "undefined": None}
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}
_OPTIONS: Final = orjson.OPT_NON_STR_KEYS


class ObjectKey(str):
    """A map key that is an object (fastjson's ``Map<MessageQueue, X>``): its compact JSON text.

    Equal to the standard form, where that text is the key string; `key_object` reads either.
    """

    __slots__ = ()

    @classmethod
    def of(cls, value: dict[str, Any]) -> ObjectKey:
        return cls(orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode())


def key_object(key: str) -> dict[str, Any]:
    """Return the object that `key` stands for, as in ``offsetTable``.

    Raises:
        FrameError: the key is no object's text.
    """
    value = loads(key)
    if not isinstance(value, dict):
        raise FrameError(f"expected an object as key, not {key[:80]!r}")
    return value


def loads(data: bytes | bytearray | memoryview | str, values_max: int | None = None) -> Json:
    """Return the value in `data`, as fastjson would read it.

    Args:
        values_max: of text that is no standard JSON, at most so many values and escapes are read: each
            takes microseconds of Python, a hundred times what it takes in standard JSON.
    Raises:
        FrameError: it is no JSON even so, nests deeper than `DEPTH_MAX`, or has too many values.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        text = data if isinstance(data, str) else bytes(data).decode("utf-8", "replace")
        return _Parser(text, len(text) if values_max is None else values_max).document()
    if _may_be_deep(data):
        _check_depth(value)
    return value


def _may_be_deep(data: bytes | bytearray | memoryview | str) -> bool:
    """Whether there are enough brackets for too many levels; headers never have them."""
    if isinstance(data, str):
        return data.count("{") + data.count("[") > DEPTH_MAX
    whole = data if isinstance(data, bytes | bytearray) else bytes(data)
    return whole.count(b"{") + whole.count(b"[") > DEPTH_MAX


def _check_depth(value: Json) -> None:
    """Raise `FrameError` when `value` nests deeper than we read; one pass, level by level."""
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        inner = []
        for item in level:
            if type(item) is dict:
                inner += [child for child in item.values() if type(child) is dict or type(child) is list]
            elif type(item) is list:
                inner += [child for child in item if type(child) is dict or type(child) is list]
        if not inner:
            return
        level = inner
    raise FrameError(f"JSON nests deeper than {DEPTH_MAX} levels")


def dumps(value: Json) -> bytes:
    """Return `value` as compact standard JSON; integer keys are quoted, object keys are their text."""
    try:
        return orjson.dumps(value, option=_OPTIONS)
    except TypeError:
        # orjson refuses lone surrogates; Java writes "?" for them.
        return orjson.dumps(_without_surrogates(value), option=_OPTIONS)


def _without_surrogates(value: Json) -> Json:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value


def dumps_fastjson(value: Json) -> bytes:
    """Return `value` as fastjson writes it: integer keys bare, `ObjectKey` keys as objects."""
    parts: list[str] = []
    _write_fastjson(value, parts)
    return "".join(parts).encode()


def _write_fastjson(value: Json, parts: list[str]) -> None:
    if isinstance(value, dict):
        separator = "{"
        for key, item in value.items():
            bare = isinstance(key, int | ObjectKey)
            parts += (separator, str(key) if bare else dumps(key).decode(), ":")
            _write_fastjson(item, parts)
            separator = ","
        parts.append("}" if value else "{}")
    elif isinstance(value, list | tuple):
        separator = "["
        for item in value:
            parts.append(separator)
            _write_fastjson(item, parts)
            separator = ","
        parts.append("]" if value else "[]")
    else:
        parts.append(dumps(value).decode())


class _Parser:
    """One tolerant pass over a text that standard JSON refused."""

    def __init__(self, text: str, values_max: int) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.values_left = values_max

    def document(self) -> Json:
        value = self.value()
        if self.peek():
            raise self.error("text after the end")
        return value

    def error(self, what: str) -> FrameError:
        return FrameError(f"bad JSON at character {self.at}: {what}")

    def peek(self) -> str:
        """Skip blanks; return the next character, "" at the end."""
        return self.skip(_BLANKS)

    def skip(self, what: re.Pattern[str]) -> str:
        """Skip all that is `what`; return the next character, "" at the end."""
        match = what.match(self.text, self.at)
        assert match is not None, "the empty text matches"
        self.at = match.end()
        return self.text[self.at : self.at + 1]

    def count(self) -> None:
        self.values_left -= 1
        if self.values_left < 0:
            raise self.error("too many values and escapes")

    def value(self) -> Json:
        self.count()
        first = self.peek()
        if first == "{":
            return self.nested(self.members)
        if first == "[":
            return self.nested(self.items)
        if first in ('"', "'"):
            return self.string()
        return self.word()

    def nested(self, read: Any) -> Json:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            raise self.error(f"nests deeper than {DEPTH_MAX} levels")
        self.at += 1
        value = read()
        self.depth -= 1
        return value

    def members(self) -> dict[str, Json]:
        result: dict[str, Json] = {}
        while True:
            first = self.skip(_COMMAS)
            if first == "}":
                self.at += 1
                return result
            key = self.key(first)
            if self.peek() != ":":
                raise self.error("expected a colon")
            self.at += 1
            result[key] = self.value()
            if self.peek() not in (",", "}"):
                raise self.error("expected a comma or the end of the object")

    def key(self, first: str) -> str:
        if first == "{":
            return ObjectKey.of(self.nested(self.members))
        if first in ('"', "'"):
            return self.string()
        for pattern in (_NUMBER, _NAME):
            match = pattern.match(self.text, self.at)
            if match:
                self.at = match.end()
                return match.group()
        raise self.error("expected a key")

    def items(self) -> list[Json]:
        result: list[Json] = []
        while True:
            if self.skip(_COMMAS) == "]":
                self.at += 1
                return result
            result.append(self.value())
            if self.peek() not in (",", "]"):
                raise self.error("expected a comma or the end of the array")

    def word(self) -> Json:
        match = _NUMBER.match(self.text, self.at)
        if match:
            self.at = match.end()
            return self.number(match.group())
        match = _NAME.match(self.text, self.at)
        if match and match.group() in _WORDS:
            self.at = match.end()
            return _WORDS[match.group()]
        raise self.error("expected a value")

    def number(self, digits: str) -> int | float:
        if len(digits) > _NUMBER_LENGTH_MAX:
            raise self.error("a number too long")
        try:
            value = int(digits)
        except ValueError:
            return float(digits)
        return value if -(1 << 63) <= value < 1 << 64 else float(value)

    def string(self) -> str:
        """Read a string in either quote; unpaired surrogates become U+FFFD, as no UTF-8 can carry them."""
        quote = self.text[self.at]
        pieces = []
        at = self.at + 1
        while True:
            plain = _PLAIN[quote].match(self.text, at)
            assert plain is not None, "the empty text matches"
            end = plain.end()
            pieces.append(self.text[at:end])
            if end >= len(self.text):
                raise self.error("a string without end")
            if self.text[end] == quote:
                self.at = end + 1
                return "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            piece, at = self.escape(end + 1)
            pieces.append(piece)

    def escape(self, at: int) -> tuple[str, int]:
        """Return what the escape whose letter is at `at` means, and where the text goes on."""
        self.count()
        letter = self.text[at : at + 1]
        if letter in ("u", "x"):
            digits = self.text[at + 1 : at + (5 if letter == "u" else 3)]
            if len(digits) == (4 if letter == "u" else 2) and all(
                c in "0123456789abcdefABCDEF" for c in digits
            ):
                return chr(int(digits, 16)), at + 1 + len(digits)
            raise self.error("a bad escape")
        if not letter:
            raise self.error("a string without end")
        return _ESCAPES.get(letter, letter), at + 1
