# cython: boundscheck=False, wraparound=False
# C types of checks.py.
cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING

from actormq.kernels.records cimport load_i32, load_i64, pointer_const

# It replaces the function of the same name that the .py defines when uncompiled.
cdef inline unsigned char *bytes_of(bytearray data) noexcept:
    return <unsigned char *>PyByteArray_AS_STRING(data)

@cython.locals(data="const unsigned char *", at=cython.Py_ssize_t)
cpdef Py_ssize_t units_before(object units, Py_ssize_t start, Py_ssize_t end, long long log_offset)
@cython.locals(
    ours="const unsigned char *", theirs="const unsigned char *", entries_end=cython.Py_ssize_t,
    keys_end=cython.Py_ssize_t, entry=cython.Py_ssize_t, key=cython.Py_ssize_t, entry_stop=cython.Py_ssize_t,
    key_stop=cython.Py_ssize_t, at=cython.Py_ssize_t, strays=cython.Py_ssize_t, missing=cython.Py_ssize_t,
    first_stray=cython.Py_ssize_t, first_missing=cython.Py_ssize_t, log_offset=cython.longlong)
cpdef match_keys(object entries, object keys)
@cython.locals(
    ours="const unsigned char *", theirs="const unsigned char *", entries_end=cython.Py_ssize_t,
    keys_end=cython.Py_ssize_t, entry=cython.Py_ssize_t, key=cython.Py_ssize_t, wrong=cython.Py_ssize_t,
    first=cython.Py_ssize_t, log_offset=cython.longlong, seconds=cython.longlong)
cpdef wrong_times(object entries, object keys, long long begin_ms)
cdef bint has_hash(const unsigned char *data, Py_ssize_t at, Py_ssize_t end, int wanted) noexcept
@cython.locals(at=cython.Py_ssize_t)
cdef bint has_hash_before(const unsigned char *data, Py_ssize_t end, long long log_offset, int wanted) noexcept
@cython.locals(
    data="const unsigned char *", reached="unsigned char *", entries_at=cython.Py_ssize_t,
    slot_count=cython.Py_ssize_t, number=cython.Py_ssize_t, previous=cython.Py_ssize_t, at=cython.Py_ssize_t,
    slot=cython.Py_ssize_t, bad_slots=cython.Py_ssize_t, first_bad_slot=cython.Py_ssize_t,
    bad_links=cython.Py_ssize_t, first_bad_link=cython.Py_ssize_t, unreached=cython.Py_ssize_t,
    first_unreached=cython.Py_ssize_t, last_number=cython.Py_ssize_t)
cpdef check_links(object view, Py_ssize_t slots, Py_ssize_t next_number, bint growing)
cdef Py_ssize_t slot_of(const unsigned char *data, Py_ssize_t at, Py_ssize_t slots) noexcept
