# cython: boundscheck=False, wraparound=False
# C types of records.py; other kernels cimport from here.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.string cimport memchr, memcmp, memcpy

cdef extern from "Python.h":
    int PyBUF_READ

cdef extern from "crc32.h":
    bint amq_has_crc32() nogil
    unsigned int amq_crc32(const unsigned char *data, size_t size) nogil

# The same numbers as in the .py, where Python code finds them: here the C compiler sees constants.
cdef enum:
    _V1 = -626843481
    _V2 = -626843477
    _BLANK = -875286124
    _TOPIC_V1_MAX = 127
    _BORN_HOST_V6 = 0x10
    _STORE_HOST_V6 = 0x20
    RECORD_CRC_BYTES = 20
    _RECORD_CRC_KEY = 0x5F5F435243333223
    _HASH_SIGN = 0x23
    _CRC_DEMAND = 2

# `pointer` to `bytes_view` replace the functions of the same names that the .py defines when uncompiled.
cdef inline unsigned char *pointer(unsigned char[::1] view) noexcept:
    return &view[0]

cdef inline const unsigned char *pointer_const(const unsigned char[::1] view) noexcept:
    return &view[0]

cdef inline const unsigned char *advance(const unsigned char *data, Py_ssize_t at) noexcept:
    return data + at

cdef inline void copy_bytes(unsigned char *out, Py_ssize_t at, const unsigned char *source, Py_ssize_t size) noexcept:
    memcpy(out + at, source, size)

cdef inline const unsigned char *bytes_pointer(bytes data) noexcept:
    return <const unsigned char *>PyBytes_AS_STRING(data)

cdef inline bytes text_at(const unsigned char *data, Py_ssize_t at, Py_ssize_t size):
    return PyBytes_FromStringAndSize(<const char *>data + at, size)

cdef inline Py_ssize_t find_byte(
        const unsigned char *data, Py_ssize_t at, Py_ssize_t end, int value) noexcept:
    cdef const unsigned char *found = <const unsigned char *>memchr(data + at, value, end - at)
    return -1 if found == NULL else found - data

cdef inline bint equal_bytes(
        const unsigned char *data, Py_ssize_t at, const unsigned char *other, Py_ssize_t other_at,
        Py_ssize_t size) noexcept:
    return memcmp(data + at, other + other_at, size) == 0

cdef inline object bytes_view(const unsigned char *data, Py_ssize_t size):
    return PyMemoryView_FromMemory(<char *>data, size, PyBUF_READ)

# Written out byte by byte the compiler makes one load or store and a byte swap of each; here, so that other
# kernels have them inside their loops, too.
cdef inline short load_i16(const unsigned char *data, Py_ssize_t at) noexcept:
    return <short>((data[at] << 8) | data[at + 1])

cdef inline int load_i32(const unsigned char *data, Py_ssize_t at) noexcept:
    return <int>(
        (<unsigned int>data[at] << 24) | (<unsigned int>data[at + 1] << 16) | (<unsigned int>data[at + 2] << 8)
        | data[at + 3])

cdef inline long long load_i64(const unsigned char *data, Py_ssize_t at) noexcept:
    return (<long long>load_i32(data, at) << 32) | <unsigned int>load_i32(data, at + 4)

cdef inline void store_i16(unsigned char *out, Py_ssize_t at, int value) noexcept:
    out[at] = (value >> 8) & 0xFF
    out[at + 1] = value & 0xFF

cdef inline void store_i32(unsigned char *out, Py_ssize_t at, long long value) noexcept:
    cdef unsigned int bits = <unsigned int>value
    out[at] = bits >> 24
    out[at + 1] = (bits >> 16) & 0xFF
    out[at + 2] = (bits >> 8) & 0xFF
    out[at + 3] = bits & 0xFF

cdef inline void store_i64(unsigned char *out, Py_ssize_t at, long long value) noexcept:
    store_i32(out, at, value >> 32)
    store_i32(out, at + 4, value)

cdef long long checksum(const unsigned char *data, Py_ssize_t size) except -1
@cython.locals(end=cython.Py_ssize_t, mark=cython.Py_ssize_t, key=cython.Py_ssize_t)
cdef Py_ssize_t record_crc_key(const unsigned char *properties, Py_ssize_t at, Py_ssize_t size) noexcept
cpdef bytes without_record_crc(object properties)
@cython.locals(crc=cython.longlong, digit=cython.int)
cdef int append_record_crc(unsigned char *out, Py_ssize_t start, Py_ssize_t end) except -1
@cython.locals(crc=cython.longlong, digit=cython.int)
cdef long long _record_crc_at(const unsigned char *data, Py_ssize_t at) noexcept
@cython.locals(own_at=cython.Py_ssize_t, unlike=cython.ulonglong)
cdef bint _is_intact(
    const unsigned char *data, Py_ssize_t at, Py_ssize_t size, int properties_size, Py_ssize_t body_at, int body_size,
    int check_crc) except -1
@cython.locals(topic_length_size=cython.Py_ssize_t)
cpdef Py_ssize_t record_size(
    Py_ssize_t born_host_size, Py_ssize_t store_host_size, Py_ssize_t topic_size, Py_ssize_t properties_size,
    Py_ssize_t body_size) noexcept
@cython.locals(total=cython.Py_ssize_t, magic=cython.int, crc=cython.longlong)
cdef Py_ssize_t encode_parts(
    unsigned char *out, Py_ssize_t at, int queue_id, int flag, long long queue_offset, long long physical_offset,
    int sys_flag, long long born_timestamp, long long store_timestamp, int reconsume_times, long long prepared_offset,
    const unsigned char *born_host, Py_ssize_t born_host_size,
    const unsigned char *store_host, Py_ssize_t store_host_size,
    const unsigned char *topic, Py_ssize_t topic_size,
    const unsigned char *properties, Py_ssize_t properties_size,
    const unsigned char *body, Py_ssize_t body_size) except -1
@cython.locals(left=cython.longlong, size=cython.int, magic=cython.int, sys_flag=cython.int, body_at=cython.Py_ssize_t,
               record_end=cython.Py_ssize_t, body_size=cython.Py_ssize_t, topic_at=cython.Py_ssize_t,
               topic_size=cython.int, properties_size=cython.int)
cdef int check_record(
    const unsigned char *data, Py_ssize_t at, Py_ssize_t end, long long physical_offset, int check_crc) except? -100
@cython.locals(sys_flag=cython.int, body_at=cython.Py_ssize_t, topic_at=cython.Py_ssize_t, found_size=cython.int)
cdef bint is_message(
    const unsigned char *data, Py_ssize_t at, Py_ssize_t size, long long physical_offset, int queue_id,
    long long queue_offset, const unsigned char *topic, Py_ssize_t topic_size) except -1
cdef long long store_timestamp_at(const unsigned char *data, Py_ssize_t at) noexcept
@cython.locals(size_of_view=cython.Py_ssize_t, at=cython.Py_ssize_t, last_start=cython.Py_ssize_t, size=cython.int,
               last_timestamp=cython.longlong, records=cython.longlong, reason=cython.int)
cpdef object scan(object view, Py_ssize_t start, long long base_log_offset, int check_crc=*, Py_ssize_t stop=*)
@cython.locals(end=cython.Py_ssize_t, size=cython.int, sys_flag=cython.int, born_size=cython.Py_ssize_t,
               store_size=cython.Py_ssize_t, store_at=cython.Py_ssize_t, body_at=cython.Py_ssize_t,
               body_size=cython.Py_ssize_t, topic_at=cython.Py_ssize_t, topic_size=cython.Py_ssize_t)
cpdef object decode(object view, Py_ssize_t at, int check_crc=*)
