# C types of ahead.py.

cdef extern from "ahead.h" nogil:
    long amq_read_ahead(int folder, const char *paths, size_t paths_bytes, long long file_bytes)

# It replaces the function of the same name that the .py defines when uncompiled.
cdef inline long read_all(int folder, bytes paths, long long file_bytes):
    cdef const char *first = paths
    cdef size_t paths_bytes = len(paths)
    cdef long there
    with nogil:
        there = amq_read_ahead(folder, first, paths_bytes, file_bytes)
    return there
