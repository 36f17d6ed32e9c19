# C types of parks.py; the .py file keeps Python's, for people and mypy.
import cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize

from actormq.kernels.pulls cimport cell, load_number
from actormq.kernels.records cimport pointer_const

ctypedef unsigned long long u64
ctypedef const unsigned char *source

cdef enum:
    _PARK_BYTES = 24
    PLACE_BITS = 20
    ROW_CELLS = 8
    MAX = 2

# These replace the functions of the same names that the .py defines when uncompiled.
cdef inline long long load_row(source data, Py_ssize_t at) noexcept:
    return (<const unsigned int *>(data + at))[0]

cdef inline int append_number(bytearray out, u64 number) except -1:
    cdef Py_ssize_t end = PyByteArray_GET_SIZE(out)
    PyByteArray_Resize(out, end + 8)
    (<u64 *>(PyByteArray_AS_STRING(out) + end))[0] = number
    return 0


cdef class Parked:
    cdef u64 number
    cdef bint used
    cdef long long row, row_incarnation, wanted
    cdef Parked before, behind


cdef class ParkTable:
    cdef u64[::1] _cells
    cdef list _places
    cdef dict _rows
    cdef Py_ssize_t _count
    cdef readonly bytearray woken

    cpdef object park(self, list entries)
    @cython.locals(data=source, at=Py_ssize_t, number=u64, place=Py_ssize_t, parked=Parked)
    cdef int _park(self, const unsigned char[::1] entry) except -1
    cpdef object arrived(self, list entries)
    @cython.locals(data=source, at=Py_ssize_t)
    cdef int _arrived(self, const unsigned char[::1] entry) except -1
    cpdef object look_at_all(self)
    @cython.locals(parked=Parked, following=Parked)
    cdef int _look(self, long long row) except -1
    @cython.locals(at=Py_ssize_t)
    cdef bint _is_due(self, Parked parked) except -1
    @cython.locals(first=Parked)
    cdef int _link(self, Parked parked) except -1
    @cython.locals(before=Parked, behind=Parked)
    cdef int _unlink(self, Parked parked) except -1
