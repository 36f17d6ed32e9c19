# C types of pulls.py; the .py file keeps Python's, for people and mypy.
import cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from libc.string cimport memcpy

from actormq.kernels.atomics cimport amq_full_fence, amq_load_acquire
from actormq.kernels.heads cimport HEADER_MAX, SLOW, TAKEN, Headers, same
from actormq.kernels.queues cimport choose, numbers
from actormq.kernels.records cimport (
    advance, bytes_pointer, is_message, load_i32, load_i64, pointer, pointer_const, store_i16,
    store_i32, text_at)

ctypedef unsigned long long u64
ctypedef const unsigned char *source
ctypedef unsigned char *target_bytes

cdef enum:
    PARK_BYTES = 24
    PLACE_BITS = 20
    COPIED_MAX = 16384
    KEY_BYTES_MAX = 1024
    ROW_CELLS = 8
    MIN = 1
    MAX = 2
    ENTRY_BYTES = 20
    COMMITS = 1
    SUSPENDS = 2
    SUBSCRIBES = 4
    PYTHON = 3
    NS_PER_MS = 1000000
    GROUP = 0
    TOPIC = 1
    QUEUE_ID = 2
    QUEUE_OFFSET = 3
    MESSAGES = 4
    SYS_FLAG = 5
    COMMIT_OFFSET = 6
    SUSPEND_MS = 7
    SUBSCRIPTION = 8
    SUB_VERSION = 9
    EXPRESSION = 10
    BYTES = 11
    FIELDS = 12
    FOUND = 0
    NONE_MATCHED = 1
    AT_END = 2
    EMPTY = 3
    ELSEWHERE = 4

# These replace the functions of the same names that the .py defines when uncompiled.
cdef inline long long cell(u64[::1] cells, Py_ssize_t index) noexcept:
    return <long long>amq_load_acquire(&cells[index])

cdef inline void fence() noexcept:
    amq_full_fence()

cdef inline int append(bytearray out, source data, Py_ssize_t at, Py_ssize_t size) except -1:
    cdef Py_ssize_t end = PyByteArray_GET_SIZE(out)
    PyByteArray_Resize(out, end + size)
    memcpy(PyByteArray_AS_STRING(out) + end, data + at, size)
    return 0

cdef inline int append_park(
        bytearray out, u64 number, long long row, long long incarnation, long long wanted) except -1:
    cdef Py_ssize_t end = PyByteArray_GET_SIZE(out)
    cdef char *place
    PyByteArray_Resize(out, end + PARK_BYTES)
    place = PyByteArray_AS_STRING(out) + end
    (<u64 *>place)[0] = number
    (<unsigned int *>(place + 8))[0] = <unsigned int>row
    (<unsigned int *>(place + 12))[0] = <unsigned int>incarnation
    (<long long *>(place + 16))[0] = wanted
    return 0

cdef inline u64 load_number(source data, Py_ssize_t at) noexcept:
    return (<const u64 *>(data + at))[0]


cdef bint is_end(int outcome) noexcept


cdef class PullQueue:
    cdef long long row, row_incarnation
    cdef tuple key
    cdef bytes topic
    cdef long long first, end
    cdef const unsigned char[::1] entries


cdef class PullTarget:
    cdef long long version, group_flags, topic_flags, sub_version
    cdef frozenset tag_codes
    cdef dict queues


cdef class Waiting:
    cdef Py_ssize_t place, heap_at
    cdef u64 number
    cdef bint used, untold
    cdef object owner, other
    cdef set home
    cdef PullTarget target
    cdef PullQueue queue
    cdef bytes frame
    cdef long long row, row_incarnation, offset, deadline_ns, opaque, messages_max, bytes_max, entries
    cdef int kind


cdef class PullPath(Headers):
    cdef u64[::1] _rows
    cdef long long _waiting_max, _messages_max, _bytes_max, _native_messages_max, _native_bytes_max, _examined_min
    cdef long long _bytes_wanted_min, _suspend_ms_max, _warm_bytes, _file_entries, _log_file_bytes, _maps_max
    cdef list _json, _binary, _codes, _remarks, _mapped, _places, _free, _heap, _fresh
    cdef int _version
    cdef object _map_queue, _map_log, _log_parts
    cdef const unsigned char[::1] _log
    cdef unsigned char[::1] _key
    cdef long long[::1] _chosen, _entries
    cdef long long _log_base, _now_ns, _log_min, _log_end, _min, _max, _next
    cdef Py_ssize_t _telling
    cdef u64 _waits
    cdef public long long version, pulls, messages, body_bytes
    cdef readonly long long waiting
    cdef readonly dict commits
    cdef readonly list large

    cpdef int begin(self, long long now_ns, long long log_min, long long log_end) except -1
    @cython.locals(target=PullTarget)
    cpdef object learn(
        self, dict targets, bytes key, long long group_flags, long long topic_flags, long long sub_version,
        frozenset tag_codes, tuple commit_key, long long row, long long row_incarnation)
    @cython.locals(data=source, left=list, place=tuple, start=Py_ssize_t, size=Py_ssize_t)
    cpdef list take(
        self, const unsigned char[::1] view, list places, object owner, set home, dict targets, dict replies)
    cpdef bint take_header(
        self, const unsigned char[::1] head, object owner, set home, dict targets, dict replies) except -1
    @cython.locals(header="long long", flags="long long", queue_id="long long", offset="long long",
                   messages="long long", commit="long long", suspend_ms="long long", sub_version="long long",
                   bytes_max="long long", key=bytes, target=PullTarget, queue=PullQueue, native=cython.bint,
                   most="long long", size_max="long long", entries="long long", outcome=int, may_wait=cython.bint,
                   waiting=Waiting)
    cdef int _frame(
        self, source data, Py_ssize_t at, Py_ssize_t size, object owner, set home, dict targets,
        dict replies) except -1
    cdef bint _wants(self, long long code) except -1
    cdef int _field_number(self, source data, Py_ssize_t at, Py_ssize_t size) except -2
    @cython.locals(out=target_bytes)
    cdef bytes _target(self, source data, long long flags)
    @cython.locals(at=Py_ssize_t, size=Py_ssize_t, out=target_bytes, place=Py_ssize_t, byte=int)
    cdef bint _put_text(self, source data, int number) except -1
    cdef bint _is_native(self, source data) except -1
    @cython.locals(row=Py_ssize_t, incarnation="long long", data=source, count="long long")
    cdef int _look(
        self, PullTarget target, PullQueue queue, long long offset, long long messages, long long bytes_max,
        long long entries) except -1
    @cython.locals(number=Py_ssize_t, entry=source, log_offset="long long", size="long long", name=source,
                   queue_id=int, name_size=Py_ssize_t, at="long long")
    cdef bint _are_whole(self, PullQueue queue, source data, long long offset) except -1
    @cython.locals(oldest=PullQueue)
    cdef bint _map(self, PullQueue queue, long long offset) except -1
    @cython.locals(queue=PullQueue)
    cpdef object forget_maps(self)
    @cython.locals(at="long long")
    cdef bint _is_mapped(self, long long log_offset, long long size) except -1
    @cython.locals(size="long long", out=target_bytes, head=bytes, given=bytearray, number=Py_ssize_t,
                   start="long long", held=cython.bint)
    cdef object _answer(
        self, int outcome, object owner, PullTarget target, long long opaque, int kind, dict replies)
    @cython.locals(ranges=list, number=Py_ssize_t)
    cdef list _ranges(self)
    @cython.locals(pieces=list)
    cdef int _head_json(self, int outcome, PullTarget target, long long opaque) except -1
    @cython.locals(out=target_bytes, remark=bytes, fields_at=Py_ssize_t)
    cdef int _head_binary(self, int outcome, PullTarget target, long long opaque) except -1
    @cython.locals(start=Py_ssize_t)
    cdef int _put_field(self, int number, long long value) except -1

    @cython.locals(waiting=Waiting)
    cpdef object wait(
        self, object other, object owner, set home, long long row, long long row_incarnation, long long offset,
        long long deadline_ns)
    @cython.locals(waiting=Waiting)
    cdef Waiting _place(self)
    cdef int _wait(self, Waiting waiting, long long offset) except -1
    cdef int _leave(self, Waiting waiting) except -1
    cdef int _give_back(self, Waiting waiting) except -1
    @cython.locals(place=Py_ssize_t, waiting=Waiting)
    cdef Waiting _of(self, u64 number)
    @cython.locals(waiting=Waiting, ended=tuple)
    cpdef tuple end(self, u64 number)
    @cython.locals(waiting=Waiting)
    cpdef list waits(self)
    @cython.locals(data=source, others=list, at=Py_ssize_t, waiting=Waiting)
    cpdef list wake(self, const unsigned char[::1] entry, dict replies)
    @cython.locals(due=list, others=list, waiting=Waiting)
    cpdef list expire(self, long long now_ns, dict replies)
    @cython.locals(target=PullTarget, queue=PullQueue, outcome=int, at_end=cython.bint)
    cdef object _again(self, Waiting waiting, dict replies, list others)
    @cython.locals(parks=bytearray, kept=Py_ssize_t, waiting=Waiting)
    cpdef bytearray untold(self, Py_ssize_t waits_max)
    @cython.locals(telling=list, others=list, waiting=Waiting)
    cpdef list told(self, dict replies)
    @cython.locals(waiting=Waiting)
    cpdef object tell_all(self)
    @cython.locals(row=Py_ssize_t)
    cdef bint _is_due(self, Waiting waiting) except -1
    @cython.locals(first=Waiting)
    cdef Waiting _first(self)
    @cython.locals(heap=list, waiting=Waiting, parent=Waiting)
    cdef int _rise(self, Py_ssize_t at) except -1
    @cython.locals(heap=list, count=Py_ssize_t, waiting=Waiting, below=Py_ssize_t, child=Waiting, other=Waiting)
    cdef int _sink(self, Py_ssize_t at) except -1
    @cython.locals(waiting=Waiting, last=Waiting)
    cdef int _remove(self, Py_ssize_t at) except -1
