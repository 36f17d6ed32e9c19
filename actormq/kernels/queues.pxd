# cython: boundscheck=False, wraparound=False
# C types of queues.py.
cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize, PyByteArray_GET_SIZE, PyByteArray_Resize
from libc.string cimport memchr

from actormq.kernels.atomics cimport amq_prefetch
from actormq.kernels.records cimport (
    advance, bytes_pointer, copy_bytes,
    check_record, equal_bytes, is_message, load_i16, load_i32, load_i64, pointer, pointer_const, store_i16, store_i32,
    store_i64)

cdef enum:
    _TAGS = 0
    _KEYS = 2
    _UNIQUE = 4
    _DELAY = 6
    # How far before its turn a key's slot is asked for: 16 keys.
    _AHEAD_BYTES = 320

# These replace the functions of the same names that the .py defines when uncompiled.
cdef inline Py_ssize_t find_byte(const unsigned char *data, Py_ssize_t at, Py_ssize_t end, int value) noexcept:
    cdef const void *found
    if at >= end:
        return end
    found = memchr(data + at, value, end - at)
    return end if found == NULL else <const unsigned char *>found - data

cdef inline unsigned int wrap(unsigned int value) noexcept:
    return value

cdef inline int signed(unsigned int value) noexcept:
    return <int>value

cdef inline int index_hash(unsigned int value) noexcept:
    # The smallest number has no absolute value: RocketMQ takes 0.
    if <int>value >= 0:
        return <int>value
    return 0 if value == 0x80000000u else <int>(0u - value)

cdef inline bytearray new_bytes(Py_ssize_t size):
    return PyByteArray_FromStringAndSize(NULL, size)

cdef inline unsigned char *bytes_to(bytearray data) noexcept:
    return <unsigned char *>PyByteArray_AS_STRING(data)

cdef inline long long *numbers(long long[::1] view) noexcept:
    return &view[0]

cdef inline Py_ssize_t append_key(
        bytearray keys, Py_ssize_t used, int key_hash, long long log_offset, long long store_timestamp) except -1:
    if used + 20 > PyByteArray_GET_SIZE(keys):
        PyByteArray_Resize(keys, used * 2 + 4000)
    cdef unsigned char *out = <unsigned char *>PyByteArray_AS_STRING(keys) + used
    store_i32(out, 0, key_hash)
    store_i64(out, 4, log_offset)
    store_i64(out, 12, store_timestamp)
    return used + 20

cdef inline Py_ssize_t append_entry(
        bytearray entries, Py_ssize_t used, long long log_offset, int size, long long code) except -1:
    if used + 20 > PyByteArray_GET_SIZE(entries):
        PyByteArray_Resize(entries, used * 2 + 200)
    cdef unsigned char *out = <unsigned char *>PyByteArray_AS_STRING(entries) + used
    store_i64(out, 0, log_offset)
    store_i32(out, 8, size)
    store_i64(out, 12, code)
    return used + 20

cdef inline int trim(bytearray data, Py_ssize_t used) except -1:
    PyByteArray_Resize(data, used)
    return 0

cdef inline void prefetch(unsigned char *data, Py_ssize_t at) noexcept:
    amq_prefetch(data + at)

@cython.locals(value=cython.uint, end=cython.Py_ssize_t, position=cython.Py_ssize_t, units=bytes, high=cython.uint,
               low=cython.uint)
cdef unsigned int hash_text(const unsigned char *data, Py_ssize_t at, Py_ssize_t size, unsigned int seed) except? 7
@cython.locals(item_end=cython.Py_ssize_t, value_at=cython.Py_ssize_t, which=cython.int, name=cython.int,
               others_at=cython.Py_ssize_t)
cdef Py_ssize_t find_properties(const unsigned char *data, Py_ssize_t at, Py_ssize_t end, long long *places) noexcept
@cython.locals(at=cython.Py_ssize_t, end=cython.Py_ssize_t, word_end=cython.Py_ssize_t, value=cython.uint)
cdef Py_ssize_t add_keys(
    bytearray keys, Py_ssize_t used, const unsigned char *data, unsigned int topic_hash, long long *places,
    long long log_offset, long long store_timestamp, bint with_tags) except -1
@cython.locals(entries=bytearray)
cdef bytearray open_run(list runs, dict open_runs, long long row, long long queue_offset)
@cython.locals(size_of_view=cython.Py_ssize_t, at=cython.Py_ssize_t, reason=cython.int, records=cython.longlong,
               last_timestamp=cython.longlong, known_at=cython.Py_ssize_t, known_size=cython.Py_ssize_t,
               topic_hash=cython.longlong, row=cython.longlong, row_queue_id=cython.int, others_at=cython.Py_ssize_t,
               others_size=cython.Py_ssize_t, properties_at=cython.Py_ssize_t, properties_end=cython.Py_ssize_t,
               seen_to=cython.Py_ssize_t, entries=bytearray,
               entries_used=cython.Py_ssize_t, keys_used=cython.Py_ssize_t, run_row=cython.longlong,
               run_end=cython.longlong, size=cython.int, sys_flag=cython.int, store_at=cython.Py_ssize_t,
               store_timestamp=cython.longlong, body_at=cython.Py_ssize_t, topic_at=cython.Py_ssize_t,
               topic_size=cython.Py_ssize_t, transaction=cython.int, queue_id=cython.int, code=cython.longlong,
               queue_offset=cython.longlong)
cpdef object dispatch(
    object view, Py_ssize_t start, Py_ssize_t limit, long long base_log_offset, dict rows, list delay_ms,
    bint index=*, bytes schedule_topic=*, bint with_tags=*)
@cython.locals(size_of_view=cython.Py_ssize_t, source=cython.p_uchar, out=cython.p_uchar, units=bytearray,
               number=cython.Py_ssize_t, entry=cython.Py_ssize_t, unit=cython.Py_ssize_t, at=cython.longlong)
cpdef bytearray make_units(
    object view, long long base_log_offset, bytearray entries, Py_ssize_t first, Py_ssize_t count,
    long long address)
@cython.locals(end=cython.Py_ssize_t, at=cython.Py_ssize_t, size=cython.int)
cpdef Py_ssize_t find_units_end(object view) except -1
@cython.locals(end=cython.Py_ssize_t, entries_at=cython.Py_ssize_t, slot_count=cython.int, number=cython.int,
               ahead=cython.Py_ssize_t, key_hash=cython.int, log_offset=cython.longlong, timestamp=cython.longlong,
               begin=cython.longlong, end_offset=cython.longlong)
cpdef Py_ssize_t put_index(object view, Py_ssize_t slots, long long entries_max, object keys, Py_ssize_t at=*) except -1
@cython.locals(entry=cython.Py_ssize_t)
cdef bint index_has(
    unsigned char *out, Py_ssize_t entries_at, int number, int key_hash, long long log_offset) noexcept
@cython.locals(slot_at=cython.Py_ssize_t, entry_at=cython.Py_ssize_t, newest=cython.int, previous=cython.int,
               seconds=cython.longlong)
cdef void put_key(
    unsigned char *out, int slots, Py_ssize_t entries_at, int number, int key_hash, long long log_offset,
    long long timestamp, long long begin) noexcept
@cython.locals(only=cython.longlong, only_one=cython.bint, ranges=cython.Py_ssize_t, range_end=cython.longlong,
               messages=cython.longlong, total=cython.longlong, at=cython.Py_ssize_t, log_offset=cython.longlong,
               size=cython.int, code=cython.longlong, hash_code=cython.bint)
cdef int choose(
    const unsigned char *data, Py_ssize_t end, long long messages_max, long long bytes_max, object tag_codes,
    long long log_min, long long *chosen, long long *places) except -1
@cython.locals(end=cython.Py_ssize_t, room=cython.Py_ssize_t, number=cython.Py_ssize_t)
cpdef object select(
    object entries, long long first_queue_offset, long long messages_max, long long bytes_max, object tag_codes=*,
    long long log_min=*)
@cython.locals(count=cython.Py_ssize_t, number=cython.Py_ssize_t, place=cython.longlong, log_offset=cython.longlong,
               size=cython.int, part=cython.Py_ssize_t, left=cython.Py_ssize_t, at=cython.Py_ssize_t)
cpdef Py_ssize_t count_whole(
    object entries, list places, long long first_queue_offset, tuple parts, bytes topic, int queue_id) except -1
@cython.locals(size_of_view=cython.Py_ssize_t, at=cython.Py_ssize_t, size=cython.int)
cpdef object find_message(
    object view, Py_ssize_t start, Py_ssize_t limit, long long base_log_offset, bytes topic, int queue_id,
    long long queue_offset)
@cython.locals(out=cython.p_uchar, entries_at=cython.Py_ssize_t, emptied=bytearray, count=cython.longlong, used=cython.int,
               slot=cython.Py_ssize_t, number=cython.longlong, newest=cython.Py_ssize_t)
cpdef object cut_index(object view, Py_ssize_t slots, long long entries_max, long long next_number)
@cython.locals(out=cython.p_uchar, entries_at=cython.Py_ssize_t, used=cython.int, number=cython.longlong,
               slot=cython.Py_ssize_t)
cpdef object relink_index(object view, Py_ssize_t slots, bytearray emptied, long long first, long long end)
@cython.locals(end=cython.Py_ssize_t, copied=bytearray, out=cython.p_uchar, at=cython.Py_ssize_t,
               log_offset=cython.longlong, count=cython.Py_ssize_t, start=cython.longlong)
cpdef bytearray gather(object view, long long base_log_offset, list ranges, Py_ssize_t size)
@cython.locals(data="const unsigned char *", end=cython.Py_ssize_t)
cpdef Py_ssize_t used_bytes(bytes block)
