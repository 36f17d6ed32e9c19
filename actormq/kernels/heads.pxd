# C types of heads.py; the .py file keeps Python's, for people and mypy.
import cython

from actormq.kernels.records cimport bytes_pointer, copy_bytes, load_i16, load_i32, pointer

ctypedef const unsigned char *source
ctypedef unsigned char *target

cdef enum:
    FIELDS_MAX = 32
    HEADER_MAX = 65536
    TAKEN = 0
    OTHER = 1
    SLOW = 2


cdef class Headers:
    cdef long long[::1] _fields
    cdef int _fields_count
    cdef long long _code, _kind, _opaque, _flag, _value, _escaped, _language
    cdef Py_ssize_t _language_at, _language_size, _at
    cdef unsigned char[::1] _out

    cdef bint _wants(self, long long code) except -1
    cdef int _field_number(self, source data, Py_ssize_t at, Py_ssize_t size) except -2
    @cython.locals(number=int)
    cdef int _parse(self, source data, Py_ssize_t at, long long header) except -1
    @cython.locals(seen=int, bit=int, key_at=Py_ssize_t, size=Py_ssize_t)
    cdef int _parse_json(self, source data, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(count=int, key_at=Py_ssize_t, key_size=Py_ssize_t, value_at=Py_ssize_t)
    cdef Py_ssize_t _json_fields(self, source data, Py_ssize_t at, Py_ssize_t end) except -2
    @cython.locals(byte=int)
    cdef Py_ssize_t _quoted(self, source data, Py_ssize_t at, Py_ssize_t end) except -2
    @cython.locals(negative=cython.bint, start=Py_ssize_t, value="long long", size=Py_ssize_t)
    cdef Py_ssize_t _number(self, source data, Py_ssize_t at, Py_ssize_t end) except -2
    @cython.locals(count=int, key_at=Py_ssize_t, key_size=Py_ssize_t, size="long long")
    cdef int _parse_binary(self, source data, Py_ssize_t at, Py_ssize_t end) except -1
    @cython.locals(number=int)
    cdef bint _found(
        self, source data, Py_ssize_t key_at, Py_ssize_t key_size, Py_ssize_t at, Py_ssize_t size) except -1
    @cython.locals(at=Py_ssize_t, size=Py_ssize_t, value="long long", place=Py_ssize_t)
    cdef long long _digits(self, source data, int number, int digits_max, long long value_max) except -2
    @cython.locals(at=Py_ssize_t, size=Py_ssize_t)
    cdef int _truth(self, source data, int number) except -2
    cdef int _put(self, bytes piece) except -1
    @cython.locals(out=target, digits=int, rest="long long", place=int)
    cdef int _put_number(self, long long value) except -1


@cython.locals(place=Py_ssize_t)
cdef bint same(source data, Py_ssize_t at, Py_ssize_t size, source text) noexcept
cdef int hex_value(int byte) noexcept
