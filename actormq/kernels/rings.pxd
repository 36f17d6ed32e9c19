# C types for rings.py; the .py file keeps Python's, for people and mypy.
#
# Other kernels: `from actormq.kernels.rings import ring_region` once per ring and batch, then walk the
# region yourselves (the layout is in rings.py).  Importing C functions from here would tie your kernel to
# this one being compiled; atomics.pxd ties you to nothing.

import cython

ctypedef unsigned long long u64

cdef Py_ssize_t _HEAD, _TAIL, _CAPACITY, _DATA, _WORD, _LINE
cdef u64 _LAP_END

cpdef u64 load_acquire(u64[::1] cells, Py_ssize_t index) except? 0
cpdef void store_release(u64[::1] cells, Py_ssize_t index, u64 value) except *
cpdef u64 fetch_add(u64[::1] cells, Py_ssize_t index, u64 value) except? 0
cpdef void full_fence() except *
cpdef u64 store_then_load(
    u64[::1] cells, Py_ssize_t store_index, u64 value, Py_ssize_t load_index, bint fenced) except? 0
@cython.locals(number=Py_ssize_t, wish=u64)
cpdef list waiters(u64[::1] cells, Py_ssize_t first, Py_ssize_t stride, Py_ssize_t count, u64 reached)
cdef Py_ssize_t _checked(u64[::1] cells, Py_ssize_t index) except -1


cdef class Cells:
    cdef u64[::1] _cells
    cpdef u64 load(self, Py_ssize_t index) except? 0
    cpdef void store(self, Py_ssize_t index, u64 value) except *
    cpdef u64 add(self, Py_ssize_t index, u64 value) except? 0
    cpdef void store_then_fence(self, Py_ssize_t index, u64 value) except *
    cpdef u64 fence_then_load(self, Py_ssize_t index) except? 0
    cpdef list waiters(self, Py_ssize_t first, Py_ssize_t stride, Py_ssize_t count, u64 reached)


cdef class CellPage:
    cdef u64[::1] _cells
    cdef Py_ssize_t _common, _slots, _slot_cells
    cpdef u64 get(self, Py_ssize_t cell) except? 0
    cpdef void set(self, Py_ssize_t cell, u64 value) except *
    cpdef u64 role(self, Py_ssize_t slot, Py_ssize_t cell) except? 0
    cpdef void set_role(self, Py_ssize_t slot, Py_ssize_t cell, u64 value) except *
    cpdef u64 role_after_fence(self, Py_ssize_t slot, Py_ssize_t cell) except? 0
    cpdef void set_role_then_fence(self, Py_ssize_t slot, Py_ssize_t cell, u64 value) except *
    cpdef void add_role(self, Py_ssize_t slot, Py_ssize_t cell, u64 value=*) except *
    cpdef list waiters(self, Py_ssize_t cell, u64 reached)
    cpdef Py_ssize_t index(self, Py_ssize_t slot, Py_ssize_t cell) except? 0


cdef class RingProducer:
    cdef u64[::1] _cells
    cdef object _view
    cdef u64 _capacity, _tail, _head
    @cython.locals(size=Py_ssize_t, needed=u64, at="long long")
    cdef bint _push(self, tuple parts) except -1
    @cython.locals(at=u64, rest=u64, skipped=u64, free=u64)
    cdef long long _place(self, u64 needed) except? -1
    @cython.locals(size=Py_ssize_t)
    cdef int _copy(self, Py_ssize_t start, tuple parts) except -1


cdef class RingConsumer:
    cdef u64[::1] _cells
    cdef object _view
    cdef u64 _capacity, _position
    @cython.locals(tail=u64, position=u64, at=u64, size=u64, needed=u64, start=Py_ssize_t, taken=list)
    cpdef list take(self, long long limit_bytes=*)
    cdef int _pass_over(self, u64 position, list taken) except -1
    cpdef void release(self) except *


@cython.locals(number=u64, lost=u64, seen=u64, other=u64)
cpdef u64 litmus(u64[::1] cells, Py_ssize_t mine, Py_ssize_t theirs, u64 rounds, u64 seed, bint fenced) except? 0
@cython.locals(value=u64)
cdef u64 _await(u64[::1] cells, Py_ssize_t index, u64 reached) except? 0
cdef int _spin(u64 turns) except -1
cdef int _let_others_run() except -1
