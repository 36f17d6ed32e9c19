# Atomics over 64-bit cells: declarations only, so that a compiled kernel may use them without any module at run time.
#
#   if cython.compiled:
#       from cython.cimports.actormq.kernels.atomics import amq_load_acquire

cdef extern from "atomics.h" nogil:
    unsigned long long amq_load_acquire(const unsigned long long *cell)
    void amq_store_release(unsigned long long *cell, unsigned long long value)
    unsigned long long amq_fetch_add(unsigned long long *cell, unsigned long long value)
    void amq_full_fence()
    void amq_pause()
    void amq_prefetch(const void *at)
