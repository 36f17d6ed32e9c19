# C types of singles.py; the .py file keeps Python's, for people and mypy.
import cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from actormq.kernels.records cimport bytes_pointer, copy_bytes, load_i16, load_i32, store_i16, store_i32

ctypedef const unsigned char *source
ctypedef unsigned char *target

cdef enum:
    HEAD_BYTES = 29
    DIGITS_MAX = 18

# These replace the functions of the same names that the .py imports or defines when uncompiled.
cdef inline bytes new_bytes(Py_ssize_t size):
    return PyBytes_FromStringAndSize(NULL, size)

cdef inline target start_of(bytes room) noexcept:
    return <target>PyBytes_AS_STRING(room)

cdef inline bytes finished(bytes room):
    return room

@cython.locals(
    digits=Py_ssize_t, rest="long long", fields=Py_ssize_t, room=bytes, out=target, at=Py_ssize_t, place=Py_ssize_t)
cpdef bytes write_send(
    bytes kind, long long opaque, int flag, bytes fixed, long long born_ms, bytes properties, bytes body)
@cython.locals(start=source)
cpdef bint is_answer(bytes data, long long opaque) except -1
@cython.locals(
    size=Py_ssize_t, start=source, header=Py_ssize_t, fields=Py_ssize_t, queue_id="long long",
    queue_offset="long long", message_id=str, transaction_id=str, region=str, at=Py_ssize_t, end=Py_ssize_t,
    key_size=Py_ssize_t, key_at=Py_ssize_t, value_size=Py_ssize_t)
cpdef tuple read_stored(bytes data)
@cython.locals(place=Py_ssize_t)
cdef bint is_key(source data, Py_ssize_t at, bytes name) noexcept
@cython.locals(value="long long", place=Py_ssize_t)
cdef long long decimal(source data, Py_ssize_t at, Py_ssize_t size) noexcept
