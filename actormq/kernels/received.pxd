# C types of received.py; the .py file keeps Python's, for people and mypy.
cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.unicode cimport PyUnicode_DecodeUTF8

from actormq.kernels.queues cimport find_byte, find_properties, numbers
from actormq.kernels.records cimport load_i16, load_i32, load_i64, pointer_const, text_at

ctypedef const unsigned char *source

cdef enum:
    WAITING = 0
    TAKEN = 1
    DONE = 2

# These replace the functions of the same names that the .py defines when uncompiled.
cdef inline object decoded(source data, Py_ssize_t at, Py_ssize_t size):
    return PyUnicode_DecodeUTF8(<const char *>data + at, size, "replace")

cdef inline unsigned char *bytes_of(bytearray marks) noexcept:
    return <unsigned char *>PyByteArray_AS_STRING(marks)

cdef inline Py_ssize_t count_marks(
        const unsigned char *marks, Py_ssize_t at, Py_ssize_t end, unsigned char mark) noexcept:
    cdef Py_ssize_t found = 0
    while at < end:
        found += marks[at] == mark
        at += 1
    return found

cdef inline (Py_ssize_t, Py_ssize_t) value_place(
        source data, Py_ssize_t at, Py_ssize_t end, int which) noexcept:
    cdef long long places[8]
    find_properties(data, at, end, places)
    return places[which], places[which + 1]

cdef inline Py_ssize_t step(Handful handful) noexcept:
    # Nothing between these lines can give the interpreter's lock away.
    cdef Py_ssize_t index = handful.taken
    if index < handful.count:
        handful.taken = index + 1
    return index

cdef class Gate:
    cdef public bint is_closed
    cdef public Py_ssize_t report_after

@cython.final
cdef class Batch:
    cdef readonly Py_ssize_t count, size
    cdef readonly long long next_offset
    cdef readonly object queue, rules
    cdef readonly Gate gate
    cdef object kept, _view
    cdef const unsigned char *_raw
    cdef const long long *_starts
    cdef unsigned char *_marks
    cdef Py_ssize_t _first
    cpdef Py_ssize_t left(self)
    @cython.locals(at=cython.Py_ssize_t)
    cpdef Py_ssize_t first(self)

@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class ReceivedMessage:
    cdef Batch _batch
    cdef object _body, _properties
    cdef Py_ssize_t _start, _index
    cdef long long _attempts
    cdef bytes _store_host(self)
    cdef object _property(self, int which, str name)

@cython.final
cdef class Handful:
    cdef readonly Batch batch
    cdef readonly Py_ssize_t count, taken
    cdef readonly list picks
    cdef readonly Gate gate
    cdef object cursor
    @cython.locals(message=ReceivedMessage, index=cython.Py_ssize_t)
    cpdef ReceivedMessage take(self)
    @cython.locals(gate=Gate, done=cython.Py_ssize_t, message=ReceivedMessage)
    cpdef object work(self, object listener, object again)

@cython.locals(
    raw=source, takes_all=cython.bint, wrapped=cython.bint, starts=cython.p_longlong, end=cython.Py_ssize_t, records=cython.Py_ssize_t, at=cython.Py_ssize_t, size=cython.int,
    magic=cython.int, kept=cython.Py_ssize_t, offset=cython.longlong, batch=Batch, marks=bytearray)
cpdef Batch cut(object data, object queue, object rules, Gate gate, long long first_offset=*, object tags=*)
@cython.locals(message=ReceivedMessage)
cdef ReceivedMessage make(Batch batch, Py_ssize_t index)
cdef Py_ssize_t field_end(source raw, Py_ssize_t start, Py_ssize_t at, Py_ssize_t size, object rules) except -1
cdef Py_ssize_t born_host_bytes(source raw, Py_ssize_t start) noexcept
cdef Py_ssize_t hosts_bytes(source raw, Py_ssize_t start) noexcept
@cython.locals(at=cython.Py_ssize_t, body_bytes=cython.int)
cdef Py_ssize_t body_place(source raw, Py_ssize_t start, object rules) except -1
@cython.locals(size=cython.int, at=cython.Py_ssize_t, begin=cython.Py_ssize_t, topic_end=cython.Py_ssize_t)
cdef (Py_ssize_t, Py_ssize_t) topic_place(source raw, Py_ssize_t start, object rules) except *
@cython.locals(size=cython.int, at=cython.Py_ssize_t, properties_bytes=cython.int)
cdef (Py_ssize_t, Py_ssize_t) properties_place(source raw, Py_ssize_t start, object rules) except *
@cython.locals(
    begin=cython.Py_ssize_t, end=cython.Py_ssize_t, at=cython.Py_ssize_t, size=cython.Py_ssize_t)
cdef object property_of(source raw, Py_ssize_t start, int which, object rules)
@cython.locals(
    at=cython.Py_ssize_t, end=cython.Py_ssize_t, item_end=cython.Py_ssize_t, value_at=cython.Py_ssize_t, found=dict)
cdef dict all_properties(source raw, Py_ssize_t start, object rules)
cdef object tag_of(source raw, Py_ssize_t start, object rules)
cpdef bint finish(ReceivedMessage message)
cpdef bint is_done(ReceivedMessage message)
cpdef Gate gate_of(ReceivedMessage message)
