# C types of batches.py; the .py file keeps Python's, for people and mypy.
#
# Requests lie at multiples of 8 in their ring and the machines are little-endian, so the loads of
# requests and completions are plain ones; only records and batch items are big-endian and unaligned.
import cython
from actormq.kernels.atomics cimport amq_load_acquire
from actormq.kernels.records cimport (
    RECORD_CRC_BYTES, advance, append_record_crc, bytes_pointer, bytes_view, copy_bytes, encode_parts, load_i16, load_i32,
    pointer, pointer_const, record_crc_key, record_size, store_i16, store_i32, without_record_crc)

ctypedef unsigned long long u64
ctypedef const unsigned char *source
ctypedef unsigned char *target

cdef enum:
    HEAD = 0
    TAIL = 8
    CAPACITY = 16
    DATA = 192
    LAP_END = 0xFFFFFFFF
    BLANK_BYTES = 8
    REQUEST_BYTES = 72
    COMPLETION_BYTES = 48
    ITEM_BYTES_MIN = 22
    SINGLE = 1
    BATCH = 2
    COPY = 3
    PUT_OK = 0
    MESSAGE_ILLEGAL = 1
    PROPERTIES_SIZE_EXCEEDED = 2
    TOPIC_GONE = 5
    PROPERTIES_MAX = 32767
    TRANSACTION_COMMIT = 0x8
    ROW_CELLS = 8
    ROW_MAX_CELL = 2
    ROW_LOG_START_CELL = 5
    GO_ON = 0
    BUFFER_FULL = 2
    FILE_FULL = 3
    COMPLETIONS_FULL = 4
    ITEMS_WITH_CRC = -99

# These replace the functions of the same names that the .py defines when uncompiled.
cdef inline u64 ring_cell(object view, Py_ssize_t index) except? 0:
    return amq_load_acquire(<const u64 *>pointer_const(view) + index)

cdef inline u64 row_max(u64[::1] rows, long long row) noexcept:
    return amq_load_acquire(&rows[row * ROW_CELLS + ROW_MAX_CELL])

cdef inline unsigned short load_u16(source data, Py_ssize_t at) noexcept:
    return (<const unsigned short *>(data + at))[0]

cdef inline unsigned int load_u32(source data, Py_ssize_t at) noexcept:
    return (<const unsigned int *>(data + at))[0]

cdef inline u64 load_u64(source data, Py_ssize_t at) noexcept:
    return (<const u64 *>(data + at))[0]

cdef inline void store_u32(target out, Py_ssize_t at, unsigned int value) noexcept:
    (<unsigned int *>(out + at))[0] = value

cdef inline void store_u64(target out, Py_ssize_t at, u64 value) noexcept:
    (<u64 *>(out + at))[0] = value


cdef class BatchEncoder:
    cdef u64[::1] _rows, _next
    cdef const unsigned char[::1] _store_host
    cdef unsigned char[::1] _buffer
    cdef object _bytes, _read_log, _cleaned, _cleaned_items
    cdef dict _scanned
    cdef long long _row_count, _body_max, _record_max, _batch_bytes
    cdef Py_ssize_t _store_host_bytes, _crc_bytes, _size, _count
    # The batch.
    cdef long long _log_start, _file_end, _appended, _store_timestamp
    cdef int _refusal
    # The request in hand.
    cdef u64 _ticket
    cdef int _queue_id, _flag, _sys_flag, _reconsume_times, _status, _stored
    cdef long long _born_timestamp, _prepared_offset, _log_offset, _log_end, _queue_offset
    cdef Py_ssize_t _host_size, _topic_size, _properties_size

    @cython.locals(ring=source, answers=target, capacity=u64, end=u64, answers_capacity=u64, answers_head=u64,
                   entry=Py_ssize_t, answered=Py_ssize_t, stop=int, size_before=Py_ssize_t, at=Py_ssize_t,
                   size=u64, needed=u64, place=u64, rest=u64, room=u64, outcome=int)
    cpdef tuple take(self, object requests, u64 head, object completions, u64 tail, long long share_bytes,
                     bint discard=*)
    cdef int _complete(self, target answers, Py_ssize_t at) except -1
    @cython.locals(row=cython.longlong, incarnation=u64, kind=int, body_size=cython.longlong, body_ref=cython.longlong,
                   topic_size=Py_ssize_t, properties_size=Py_ssize_t, host_size=Py_ssize_t, host_at=Py_ssize_t,
                   topic_at=Py_ssize_t, properties_at=Py_ssize_t, body_at=Py_ssize_t, carried=cython.longlong,
                   total=cython.longlong, outcome=int, start=Py_ssize_t, host=source, topic=source,
                   properties=source, items=source, body=source, transaction=int)
    cdef int _encode(self, source ring, Py_ssize_t at, Py_ssize_t size) except -1
    cdef object _copy_source(self, long long body_ref, long long body_size)
    cdef int _make_room(self, long long total) except -1
    cdef int _open_row(self, long long row, u64 incarnation, bytes topic) except -1
    cdef int _put(self, long long queue_offset, int flag, long long prepared_offset, source host, source topic,
                  source properties, Py_ssize_t properties_size, source body, Py_ssize_t body_size) except -1
    cdef long long _single_total(self, source properties, Py_ssize_t properties_size, long long body_size) except? -9
    @cython.locals(at=Py_ssize_t, total=cython.longlong, item_size=cython.longlong, body_size=cython.longlong,
                   properties_size=cython.longlong, open_end=int)
    cdef long long _batch_total(self, source items, Py_ssize_t end, source extra) except? -9
    @cython.locals(at=Py_ssize_t, body_size=Py_ssize_t, properties_size=Py_ssize_t, start=Py_ssize_t)
    cdef int _put_batch(self, source items, Py_ssize_t end, source host, source topic, source extra) except -1
    cdef int _seal(self, Py_ssize_t start, Py_ssize_t properties_size) except -1
    @cython.locals(out=target, separator=int, longer=Py_ssize_t)
    cdef Py_ssize_t _grow(self, Py_ssize_t start, Py_ssize_t properties_size, Py_ssize_t added) except -1


cdef int _open_end(source properties, Py_ssize_t at, Py_ssize_t size) noexcept
