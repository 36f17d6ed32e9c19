# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, annotation_typing=False
"""A client's send that waits: its frame from what was laid out before, and what the answer's frame says.

Binary headers (RocketMQSerializable.java), whole frames: u32 length, u8 type 1, u24 header length; i16 code,
u8 language, i16 version, i32 opaque, i32 flag, i32 remark's length, remark, i32 fields' length; per field u16
length, key, i32 length, value; then the body.  Functions over memory that is handed in; plain Python that
runs as it stands, `singles.pxd` gives the C types.
"""

from __future__ import annotations

from typing import Final

try:
    import cython
except ImportError:  # needed to compile only
    from actormq.kernels import shadow as cython

if not cython.compiled:
    from actormq.kernels.records import bytes_pointer, copy_bytes, load_i16, load_i32, store_i16, store_i32

    HEAD_BYTES: Final = 29
    DIGITS_MAX: Final = 18

    def new_bytes(size: int) -> memoryview:
        """Return room for a result."""
        return memoryview(bytearray(size))

    def start_of(room: memoryview) -> memoryview:
        """Return where to write it."""
        return room

    def finished(room: memoryview) -> bytes:
        """Return the result."""
        return bytes(room)


def write_send(
    kind: bytes, opaque: int, flag: int, fixed: bytes, born_ms: int, properties: bytes, body: bytes
) -> bytes:
    """Return the frame of a send.

    Args:
        kind: code, language and version, as they stand in the header.
        fixed: the fields that are the same for every message, as they stand in the header.
        properties: empty = the field is left out, as a binary header says nothing by an empty value.
    """
    assert len(kind) == 5
    assert born_ms >= 0
    digits = 1
    rest = born_ms // 10
    while rest:
        digits += 1
        rest = rest // 10
    fields = len(fixed) + 7 + digits
    if len(properties):
        fields += 7 + len(properties)
    room = new_bytes(HEAD_BYTES + fields + len(body))
    out = start_of(room)
    store_i32(out, 0, HEAD_BYTES - 4 + fields + len(body))
    store_i32(out, 4, 0x0100_0000 | (HEAD_BYTES - 8 + fields))
    copy_bytes(out, 8, bytes_pointer(kind), 5)
    store_i32(out, 13, opaque)
    store_i32(out, 17, flag)
    store_i32(out, 21, 0)
    store_i32(out, 25, fields)
    at = HEAD_BYTES
    copy_bytes(out, at, bytes_pointer(fixed), len(fixed))
    at += len(fixed)
    store_i16(out, at, 1)
    out[at + 2] = 103  # g
    store_i32(out, at + 3, digits)
    at += 7 + digits
    rest = born_ms
    for place in range(1, digits + 1):
        out[at - place] = 48 + rest % 10
        rest = rest // 10
    if len(properties):
        store_i16(out, at, 1)
        out[at + 2] = 105  # i
        store_i32(out, at + 3, len(properties))
        copy_bytes(out, at + 7, bytes_pointer(properties), len(properties))
        at += 7 + len(properties)
    if len(body):
        copy_bytes(out, at, bytes_pointer(body), len(body))
    return finished(room)


def is_answer(data: bytes, opaque: int) -> bool:
    """Whether `data` is one whole frame, with a binary header, that answers the request `opaque`."""
    if len(data) < HEAD_BYTES:
        return False
    start = bytes_pointer(data)
    return (
        load_i32(start, 0) == len(data) - 4
        and start[4] == 1
        and load_i32(start, 13) == opaque
        and start[20] & 1 == 1
    )


def read_stored(data: bytes) -> tuple[int, int, int, str, str, str] | None:
    """Read the answer to a send that was stored.

    Returns:
        Code, queue id, queue offset, message id, transaction id and region (empty when not said); None for
        an answer that is not as common as that: with a remark or a JSON header, or without a number.
    """
    size = len(data)
    if size < HEAD_BYTES:
        return None
    start = bytes_pointer(data)
    header = load_i32(start, 4) & 0xFFFFFF
    fields = load_i32(start, 25)
    if start[4] != 1 or load_i32(start, 21) != 0 or fields != header - 21 or fields > size - HEAD_BYTES:
        return None
    queue_id = queue_offset = -1
    message_id = transaction_id = region = ""
    at = HEAD_BYTES
    end = HEAD_BYTES + fields
    while at < end:
        if at + 2 > end:
            return None
        key_size = load_i16(start, at) & 0xFFFF
        key_at = at + 2
        at = key_at + key_size + 4
        if at > end:
            return None
        value_size = load_i32(start, at - 4)
        if value_size < 0 or value_size > end - at:
            return None
        if key_size == 5 and is_key(start, key_at, b"msgId"):
            message_id = data[at : at + value_size].decode("utf-8", "replace")
        elif key_size == 7 and is_key(start, key_at, b"queueId"):
            queue_id = decimal(start, at, value_size)
        elif key_size == 11 and is_key(start, key_at, b"queueOffset"):
            queue_offset = decimal(start, at, value_size)
        elif key_size == 13 and is_key(start, key_at, b"transactionId"):
            transaction_id = data[at : at + value_size].decode("utf-8", "replace")
        elif key_size == 10 and is_key(start, key_at, b"MSG_REGION"):
            region = data[at : at + value_size].decode("utf-8", "replace")
        at += value_size
    if queue_id < 0 or queue_offset < 0:
        return None
    return load_i16(start, 8), queue_id, queue_offset, message_id, transaction_id, region


def is_key(data: memoryview, at: int, name: bytes) -> bool:
    """Whether a field's key is `name`; its length has been compared."""
    for place in range(len(name)):  # noqa: SIM110 (compiled, a generator would be an object)
        if data[at + place] != name[place]:
            return False
    return True


def decimal(data: memoryview, at: int, size: int) -> int:
    """Return a number written in plain digits, -1 for another text."""
    if size < 1 or size > DIGITS_MAX:
        return -1
    value = 0
    for place in range(at, at + size):
        if data[place] < 48 or data[place] > 57:
            return -1
        value = value * 10 + (data[place] - 48)
    return value
