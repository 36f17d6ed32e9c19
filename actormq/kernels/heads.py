# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False
"""Headers: of requests as the official clients write them, each field's place without decoding; of answers.

Plain Python that runs as it stands; compiled, `heads.pxd` gives the C types.  What is found here is narrow on
purpose: JSON with "code" first and ASCII texts, or the binary form without a remark.  A header that is
anything else is `SLOW`: its request goes the long way, through `actormq.wire.frame`.
"""

from __future__ import annotations

from typing import Final

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if not cython.compiled:
    from actormq.kernels.records import bytes_pointer, copy_bytes, load_i16, load_i32, pointer

    FIELDS_MAX: Final = 32
    HEADER_MAX: Final = 65_536
    TAKEN: Final = 0
    OTHER: Final = 1
    SLOW: Final = 2


class Headers:
    """Finds the fields of the requests that a subclass names by `_wants` and `_field_number`; writes answers.

    Attributes:
        _fields: for each field number the place of its value, its size (-1: missing), and whether it has
            JSON escapes in it.
        _language_at, _language_size: the place of the language's name in a JSON header.
        _language: its number in a binary header, -1 in a JSON header.
        _out, _at: room for an answer's header, and how much of it is written.
    """

    def __init__(self, fields: int) -> None:
        self._out = memoryview(bytearray(4096))
        self._at = 0
        self._fields_count = fields
        self._fields = memoryview(bytearray(fields * 3 * 8)).cast("q")
        self._code = self._kind = self._opaque = self._flag = self._value = self._escaped = 0
        self._language = self._language_at = self._language_size = -1

    def _wants(self, code: int) -> bool:
        """Whether requests of this code are looked at."""
        raise NotImplementedError

    def _field_number(self, data: memoryview, at: int, size: int) -> int:
        """Return the number of a field by its name, -1 when it does not matter."""
        raise NotImplementedError

    def _parse(self, data: memoryview, at: int, header: int) -> int:
        """Find the fields of a header: TAKEN; OTHER for codes that are not wanted, SLOW when uncommon."""
        for number in range(self._fields_count):
            self._fields[number * 3 + 1] = -1
        self._opaque = 0
        self._flag = 0
        self._language = self._language_at = self._language_size = -1
        self._kind = data[at]
        if self._kind == 0:
            return self._parse_json(data, at + 4, at + 4 + header)
        if self._kind == 1:
            return self._parse_binary(data, at + 4, at + 4 + header)
        return SLOW

    def _parse_json(self, data: memoryview, at: int, end: int) -> int:
        if end - at < 12 or not same(data, at, 8, b'{"code":'):
            return SLOW
        at = self._number(data, at + 8, end)
        if at < 0 or at >= end or (data[at] != 44 and data[at] != 125):
            return SLOW
        self._code = self._value
        if not self._wants(self._code):
            return OTHER
        seen = 0
        while at < end:
            if data[at] == 125:  # }
                return TAKEN if at + 1 == end else SLOW
            if data[at] != 44:  # ,
                return SLOW
            key_at = at + 2
            at = self._quoted(data, at + 1, end)
            if at < 0 or self._escaped or at >= end or data[at] != 58:  # :
                return SLOW
            size = at - 1 - key_at
            at += 1
            if size == 9 and same(data, key_at, 9, b"extFields"):
                bit = 1
                at = self._json_fields(data, at, end)
            elif size == 4 and same(data, key_at, 4, b"flag"):
                bit = 2
                at = self._number(data, at, end)
                self._flag = self._value
            elif size == 6 and same(data, key_at, 6, b"opaque"):
                bit = 4
                at = self._number(data, at, end)
                self._opaque = self._value
            elif size == 7 and same(data, key_at, 7, b"version"):
                bit = 8
                at = self._number(data, at, end)
            elif size == 8 and same(data, key_at, 8, b"language"):
                bit = 16
                self._language_at = at + 1
                at = self._quoted(data, at, end)
                self._language_size = at - self._language_at - 1
                if self._escaped:
                    return SLOW
            elif size == 23 and same(data, key_at, 23, b"serializeTypeCurrentRPC"):
                bit = 32
                at = self._quoted(data, at, end)
            else:
                return SLOW
            if at < 0 or seen & bit:
                return SLOW
            seen |= bit
        return SLOW

    def _json_fields(self, data: memoryview, at: int, end: int) -> int:
        """Find the fields in the object at `at`; return where it ends, -1 when it is uncommon."""
        if at + 1 >= end or data[at] != 123:  # {
            return -1
        count = 0
        while at < end:
            key_at = at + 2
            at = self._quoted(data, at + 1, end)
            if at < 0 or self._escaped or at >= end or data[at] != 58:
                return -1
            key_size = at - 1 - key_at
            value_at = at + 2
            at = self._quoted(data, at + 1, end)
            count += 1
            if at < 0 or at >= end or count > FIELDS_MAX:
                return -1
            if not self._found(data, key_at, key_size, value_at, at - 1 - value_at):
                return -1
            if data[at] == 125:
                return at + 1
            if data[at] != 44:
                return -1
        return -1

    def _quoted(self, data: memoryview, at: int, end: int) -> int:
        """Pass over a JSON string of ASCII characters; return where it ends, -1 when it is another."""
        self._escaped = 0
        if at >= end or data[at] != 34:  # "
            return -1
        at += 1
        while at < end:
            byte = data[at]
            if byte == 34:
                return at + 1
            if byte < 32 or byte >= 128:
                return -1
            if byte == 92:  # a backslash
                self._escaped = 1
                # Only \u00XX below 0x80: what Java clients write for the two bytes that properties end in.
                if at + 6 > end or not same(data, at, 4, b"\\u00"):
                    return -1
                if data[at + 4] < 48 or data[at + 4] > 55 or hex_value(data[at + 5]) < 0:
                    return -1
                at += 6
            else:
                at += 1
        return -1

    def _number(self, data: memoryview, at: int, end: int) -> int:
        """Read a 32-bit integer of a JSON header into `_value`; return where it ends, -1 when it is none."""
        negative = at < end and data[at] == 45
        if negative:
            at += 1
        start = at
        value = 0
        while at < end and at - start < 11 and 48 <= data[at] <= 57:
            value = value * 10 + (data[at] - 48)
            at += 1
        size = at - start
        if size == 0 or size > 10 or value > 0x7FFF_FFFF or (data[start] == 48 and (size > 1 or negative)):
            return -1
        self._value = -value if negative else value
        return at

    def _parse_binary(self, data: memoryview, at: int, end: int) -> int:
        if end - at < 21:
            return SLOW
        self._code = load_i16(data, at)
        if not self._wants(self._code):
            return OTHER
        self._language = data[at + 2]
        self._opaque = load_i32(data, at + 5)
        self._flag = load_i32(data, at + 9)
        if load_i32(data, at + 13) != 0 or load_i32(data, at + 17) != end - at - 21:
            return SLOW
        at += 21
        count = 0
        self._escaped = 0
        while at < end:
            count += 1
            if count > FIELDS_MAX or at + 2 > end:
                return SLOW
            key_at = at + 2
            key_size = load_i16(data, at) & 0xFFFF
            at = key_at + key_size
            if at + 4 > end:
                return SLOW
            size = load_i32(data, at)
            at += 4
            if size < 0 or size > end - at:
                return SLOW
            # An empty value is no value in this form.
            if size > 0 and not self._found(data, key_at, key_size, at, size):
                return SLOW
            at += size
        return TAKEN

    def _found(self, data: memoryview, key_at: int, key_size: int, at: int, size: int) -> bool:
        """Note a field that matters; False when it came twice."""
        number = self._field_number(data, key_at, key_size)
        if number < 0:
            return True
        if self._fields[number * 3 + 1] >= 0:
            return False
        self._fields[number * 3] = at
        self._fields[number * 3 + 1] = size
        self._fields[number * 3 + 2] = self._escaped
        return True

    def _digits(self, data: memoryview, number: int, digits_max: int, value_max: int) -> int:
        """Return the value of a field that is a plain decimal, -1 when it is missing or another thing."""
        at = self._fields[number * 3]
        size = self._fields[number * 3 + 1]
        if size < 1 or size > digits_max or self._fields[number * 3 + 2]:
            return -1
        value = 0
        for place in range(at, at + size):
            if data[place] < 48 or data[place] > 57:
                return -1
            value = value * 10 + (data[place] - 48)
        return value if value <= value_max else -1

    def _truth(self, data: memoryview, number: int) -> int:
        """Return 1 or 0 for a field that says "true" or "false" (or is missing), -1 for another text."""
        at = self._fields[number * 3]
        size = self._fields[number * 3 + 1]
        if size < 0 or (size == 5 and same(data, at, 5, b"false")):
            return 0
        return 1 if size == 4 and same(data, at, 4, b"true") else -1

    # -- answers

    def _put(self, piece: bytes) -> None:
        copy_bytes(pointer(self._out), self._at, bytes_pointer(piece), len(piece))
        self._at += len(piece)

    def _put_number(self, value: int) -> None:
        out = pointer(self._out)
        if value < 0:
            out[self._at] = 45
            self._at += 1
            value = -value
        digits = 1
        rest = value // 10
        while rest:
            digits += 1
            rest = rest // 10
        for place in range(digits):
            out[self._at + digits - 1 - place] = 48 + value % 10
            value = value // 10
        self._at += digits


def same(data: memoryview, at: int, size: int, text: bytes) -> bool:
    """Whether `size` bytes at `at` are those of `text`."""
    for place in range(size):  # noqa: SIM110 (compiled, a generator would be an object)
        if data[at + place] != text[place]:
            return False
    return True


def hex_value(byte: int) -> int:
    """Return the value of a hexadecimal digit, -1 when it is none."""
    if 48 <= byte <= 57:
        return byte - 48
    if 65 <= byte <= 70:
        return byte - 55
    if 97 <= byte <= 102:
        return byte - 87
    return -1
