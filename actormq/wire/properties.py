"""Java properties text: ``broker.conf`` files, and the bodies of the configuration codes 25, 26, 318 and 319.

Source: the line rules of java.util.Properties: ``#`` and ``!`` comments, ``=``, ``:`` or a blank
between key and value, ``\\`` escapes, lines continued by a ``\\`` at their end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_PLAIN = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_BLANKS = " \t\f"


def parse_properties(text: str) -> dict[str, str]:
    """Return the keys and values of `text`; the last of two equal keys wins."""
    properties = {}
    for line in _logical_lines(text):
        key, value = _split(line)
        properties[_unescape(key)] = _unescape(value)
    return properties


def format_properties(properties: Mapping[str, str]) -> str:
    """Return `properties` as RocketMQ answers them: one ``key=value`` line each, not escaped."""
    return "".join(f"{key}={value}\n" for key, value in properties.items())


def _logical_lines(text: str) -> Iterator[str]:
    """Yield lines without comments and leading blanks, continued lines joined."""
    joined = ""
    for raw in re.split(r"\r\n|\n|\r", text):
        line = raw.lstrip(_BLANKS)
        if not joined and (not line or line[0] in "#!"):
            continue
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2:
            joined += line[:-1]
            continue
        yield joined + line
        joined = ""
    if joined:
        yield joined


def _split(line: str) -> tuple[str, str]:
    """Cut at the first separator that is not escaped: blanks, and at most one ``=`` or ``:``."""
    position = 0
    while position < len(line) and line[position] not in "=:" + _BLANKS:
        position += 2 if line[position] == "\\" else 1
    rest = line[position:].lstrip(_BLANKS)
    if rest[:1] in ("=", ":"):
        rest = rest[1:].lstrip(_BLANKS)
    return line[:position], rest


def _unescape(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else _PLAIN.get(code, code)

    return _ESCAPE.sub(plain, text)
