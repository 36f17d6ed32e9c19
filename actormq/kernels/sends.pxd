# C types of sends.py; the .py file keeps Python's, for people and mypy.
import cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from libc.string cimport memcpy

from actormq.kernels.atomics cimport amq_load_acquire, amq_store_release
from actormq.kernels.batches cimport load_u32, load_u64, store_u32, store_u64
from actormq.kernels.heads cimport HEADER_MAX, SLOW, TAKEN, Headers, hex_value, same
from actormq.kernels.records cimport (
    advance, bytes_pointer, copy_bytes, load_i32, pointer, pointer_const, store_i16, store_i32, text_at)

ctypedef unsigned long long u64
ctypedef const unsigned char *source
ctypedef unsigned char *target

cdef enum:
    HEAD = 0
    TAIL = 8
    CAPACITY = 16
    DATA = 192
    LAP_END = 0xFFFFFFFF
    REQUEST_BYTES = 72
    COMPLETION_BYTES = 48
    SLOT_BYTES = 144
    KEY_AT = 80
    KEY_BYTES_MAX = 64
    FIELDS = 14
    PROPERTIES_MAX = 32
    STORED_MAX = 32767
    TOPIC_MAX = 127
    TICKET_MASK = 0xFFFFFFFFFF
    REFUSED_BITS = 0x8C
    CLIENT_BITS = ~0x7C
    PLAIN = 0
    WAIT = 1
    UNIQUE = 2
    RULED = 3

# These replace the functions of the same names that the .py imports or defines when uncompiled.
cdef inline u64 cell(u64[::1] cells, Py_ssize_t index) noexcept:
    return amq_load_acquire(&cells[index])

cdef inline void set_cell(u64[::1] cells, Py_ssize_t index, u64 value) noexcept:
    amq_store_release(&cells[index], value)

cdef inline int append(bytearray out, unsigned char[::1] data, Py_ssize_t size) except -1:
    cdef Py_ssize_t at = PyByteArray_GET_SIZE(out)
    PyByteArray_Resize(out, at + size)
    memcpy(PyByteArray_AS_STRING(out) + at, &data[0], size)
    return 0


cdef class SendTopic:
    cdef readonly long long queues
    cdef readonly bytes rows
    cdef readonly long long bits


cdef class SendPath(Headers):
    cdef unsigned char[::1] _ring, _table, _plain, _kept
    cdef u64[::1] _cells
    cdef long long[::1] _syncing, _keys
    cdef u64 _capacity, _base, _tail, _head
    cdef long long _slots, _syncing_first, _syncing_count, _body_max
    cdef list _owners, _json, _binary
    cdef bytes _id_prefix, _added, _json_bare, _binary_bare
    cdef object _read_log
    cdef int _version
    cdef bint _sync, _wait_flush, _batch, _no_ids
    cdef long long _key_size, _room
    cdef Py_ssize_t _slot
    cdef public u64 sequence
    cdef public long long messages
    cdef readonly long long taken, taken_bytes, unanswered

    @cython.locals(data=source, at=Py_ssize_t, length="long long", outcome=int, bad="long long", places=list)
    cpdef tuple take(
        self, const unsigned char[::1] view, Py_ssize_t end, long long frame_bytes_max, object owner, bytes born_host,
        dict topics, long long room)
    @cython.locals(data=source, size="long long")
    cpdef bint take_parts(
        self, const unsigned char[::1] head, const unsigned char[::1] body, object owner, bytes born_host, dict topics,
        long long room) except -1
    cdef int _begin(self, long long room) except -1
    cdef int _publish(self) except -1
    @cython.locals(header="long long", outcome=int)
    cdef int _frame(
        self, source data, Py_ssize_t at, long long size, object owner, bytes born_host, dict topics) except -1
    cdef bint _wants(self, long long code) except -1
    @cython.locals(number=int)
    cdef int _field_number(self, source data, Py_ssize_t at, Py_ssize_t size) except -2
    @cython.locals(topic_at=Py_ssize_t, topic_size=Py_ssize_t, topic=SendTopic, queue_id="long long", sys_flag="long long",
                   born="long long", flag="long long", times="long long", said=int, slot=Py_ssize_t, table=target,
                   properties_size="long long", host_size=Py_ssize_t, size=Py_ssize_t, ring=target, at=Py_ssize_t,
                   ticket=u64, rows=source, stored_flag="long long")
    cdef int _admit(
        self, source data, source body, long long body_size, object owner, bytes born_host, dict topics) except -1
    cdef int _keep(self, target table, Py_ssize_t slot, u64 ticket, long long queue_id, object owner) except -1
    @cython.locals(needed=u64, at=u64, rest=u64, skipped=u64)
    cdef bint _place(self, u64 size) except -1
    @cython.locals(size="long long", unique="long long", kept="long long")
    cdef long long _properties(self, source data) except -2
    @cython.locals(out=target, end=Py_ssize_t, length=Py_ssize_t)
    cdef long long _unescape(self, source data, Py_ssize_t at, Py_ssize_t size) except -2
    @cython.locals(out=target, size=Py_ssize_t, count=int, stop=Py_ssize_t, middle=Py_ssize_t, rule=int)
    cdef long long _filter(self, source data, Py_ssize_t at, Py_ssize_t end) except -2
    @cython.locals(number=int)
    cdef bint _is_known(self, source data, Py_ssize_t at, Py_ssize_t size, int count) except -1
    @cython.locals(place=Py_ssize_t, byte=int)
    cdef bint _unique(self, source data, Py_ssize_t at, Py_ssize_t size) except -1

    @cython.locals(done=source, table=target, at=Py_ssize_t, ticket=u64, slot=Py_ssize_t, place="long long", others=list)
    cpdef list complete(self, const unsigned char[::1] entry, dict replies, u64 deadline_ns)
    @cython.locals(table=target, slot=Py_ssize_t)
    cpdef object failed(self, u64 ticket)
    @cython.locals(some=cython.bint)
    cpdef bint acknowledge(self, u64 flushed, dict replies) except -1
    cpdef int expire(self, u64 now_ns, int code, dict replies) except -1
    cdef u64 _waiting(self, Py_ssize_t at) except? 0
    @cython.locals(slot=Py_ssize_t)
    cdef Py_ssize_t _pop(self) except -1
    cdef object _free(self, Py_ssize_t slot)
    @cython.locals(table=target, batch=cython.bint, bare=cython.bint, count="long long", room="long long", out=target, given=bytearray,
                   piece=bytes)
    cdef object _answer(self, Py_ssize_t slot, int code, dict replies)
    @cython.locals(pieces=list)
    cdef int _answer_json(self, source table, Py_ssize_t slot, int code, bint batch, bint bare) except -1
    @cython.locals(pieces=list, out=target, number=int, start=Py_ssize_t)
    cdef int _answer_binary(self, source table, Py_ssize_t slot, int code, bint batch, bint bare) except -1
    @cython.locals(size=Py_ssize_t)
    cdef int _put_key(self, source table, Py_ssize_t slot) except -1
    @cython.locals(log_offset="long long", size="long long", view="const unsigned char[::1]", records=source, out=target,
                   count="long long", at="long long", length="long long")
    cdef object _put_ids(self, source table, Py_ssize_t slot, bint batch)
    @cython.locals(out=target, place=int, digit=int)
    cdef int _put_id(self, long long log_offset) except -1


cdef long long as_signed(long long value) noexcept
@cython.locals(place=Py_ssize_t)
cdef bint equal(source data, Py_ssize_t at, Py_ssize_t other, Py_ssize_t size) noexcept
@cython.locals(number=int, name=bytes)
cdef int long_name(source data, Py_ssize_t at, Py_ssize_t size) except -2
@cython.locals(first=int, ruled=cython.bint)
cdef int property_rule(source data, Py_ssize_t at, Py_ssize_t size) noexcept
