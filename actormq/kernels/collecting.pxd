# C types of collecting.py; the .py file keeps Python's, for people and mypy.
import cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize

from actormq.kernels.records cimport bytes_pointer, copy_bytes, store_i16, store_i32

ctypedef const unsigned char *source
ctypedef unsigned char *target

cdef enum:
    ITEM_BYTES = 22
    KEY_PREFIX_BYTES = 37
    UNIQUE_BYTES = 42

cdef class Batch
cdef class SendFuture

# These replace the functions of the same names that the .py imports or defines when uncompiled.
cdef inline bytearray new_buffer(Py_ssize_t size):
    return PyByteArray_FromStringAndSize(NULL, size)

cdef inline target writing(bytearray buffer) noexcept:
    return <target>PyByteArray_AS_STRING(buffer)

cdef inline unsigned char digit(int value) noexcept:
    return <unsigned char>(48 + value if value < 10 else 55 + value)


cdef class Batch:
    cdef bytearray _buffer
    cdef bytes _key_prefix
    cdef Py_ssize_t _size
    cdef int _first_key
    cdef readonly Py_ssize_t used_bytes, count
    cdef readonly bint is_done
    cdef readonly object error


@cython.no_gc
cdef class SendFuture:
    cdef Batch _batch
    cdef Py_ssize_t _index


cdef inline SendFuture new_future(Batch batch, Py_ssize_t index):
    cdef SendFuture future = SendFuture.__new__(SendFuture)
    future._batch = batch
    future._index = index
    return future


cdef class Lane:
    cdef public Batch open


cdef class Spread:
    cdef readonly tuple queues
    cdef readonly list lanes


cdef class Window:
    cdef readonly object lock
    cdef Py_ssize_t _messages_max, _bytes_max, _batch_messages, _batch_bytes, _body_bytes_max
    cdef dict _lanes, _spreads, _named
    cdef object _topic
    cdef Lane _lane
    cdef readonly Py_ssize_t messages, held_bytes

    cdef bint _has_room(self, Py_ssize_t size) noexcept
    @cython.locals(batch=Batch, body_size=Py_ssize_t, properties_size=Py_ssize_t, size=Py_ssize_t, future=SendFuture,
                   buffer=bytearray, out=target, at=Py_ssize_t, key=int)
    cdef SendFuture _add(self, Lane lane, int flag, bytes body, bytes properties)
    @cython.locals(lane=Lane, batch=Batch, size=Py_ssize_t, data=bytes)
    cdef SendFuture _put(self, object topic, object body, bytes properties, int flag, object key, object queue)
    @cython.locals(known=Lane, spread=Spread)
    cdef Lane _find(self, object topic, object key, object queue)


@cython.locals(value="unsigned long long", unit="unsigned long long", letter=Py_UCS4)
cpdef Py_ssize_t place_of_key(str key, Py_ssize_t count) except -1


cdef class Collecting:
    cdef Window _quick
    cdef tuple _tagged
