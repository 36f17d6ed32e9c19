# C types of judging.py; the .py file keeps Python's, for people.
import cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr

ctypedef long long i64

cdef class Reader:
    cdef object _pieces
    cdef bytes piece
    cdef Py_ssize_t at
    cdef i64 time
    cdef dict streams
    cdef bint advance(self) except -1


cdef object malformed(Reader reader)

# These replace the functions of the same names that the .py defines when uncompiled.
cdef inline Py_ssize_t word_end(Reader reader) except -1:
    # A piece ends with a newline and, as bytes do, a zero: no word goes beyond either.
    cdef const char *at = PyBytes_AS_STRING(reader.piece) + reader.at
    cdef const char *begin = at
    if at[0] == c'"':
        at += 1
        while at[0] != c'"':
            if at[0] == c'\\':
                at += 1
            if at[0] == c'\n' or at[0] == 0:
                raise malformed(reader)
            at += 1
        at += 1
    else:
        while at[0] not in b'[]{}",\n\0':
            at += 1
    if at == begin or at[0] != c',' and at[0] != c']':
        raise malformed(reader)
    return reader.at + (at - begin)

cdef inline bytes word(Reader reader):
    cdef Py_ssize_t begin = reader.at, end = word_end(reader)
    reader.at = end + 1
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(reader.piece) + begin, end - begin)

cdef inline bytes two_words(Reader reader):
    cdef Py_ssize_t begin = reader.at
    reader.at = word_end(reader) + 1
    cdef Py_ssize_t end = word_end(reader)
    reader.at = end + 1
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(reader.piece) + begin, end - begin)

cdef inline i64 number(Reader reader) except? -1:
    cdef const char *piece = PyBytes_AS_STRING(reader.piece)
    cdef bint negative = piece[reader.at] == c'-'
    cdef Py_ssize_t begin = reader.at + negative, at = begin
    cdef i64 value = 0
    while c'0' <= piece[at] <= c'9' and at - begin < 18:
        value = 10 * value + (piece[at] - c'0')
        at += 1
    if at == begin or piece[at] != c',' and piece[at] != c']':
        raise malformed(reader)
    reader.at = at + 1
    return -value if negative else value

cdef inline bint is_over(Reader reader) noexcept:
    return PyBytes_AS_STRING(reader.piece)[reader.at - 1] == c']'

cdef inline Py_ssize_t next_line(Reader reader) except -1:
    cdef const char *begin = PyBytes_AS_STRING(reader.piece)
    if begin[reader.at] == c'\n':
        return reader.at + 1
    cdef const void *found = memchr(begin + reader.at, c'\n', PyBytes_GET_SIZE(reader.piece) - reader.at)
    if found == NULL:
        raise malformed(reader)
    return <const char *>found - begin + 1

cdef inline bytearray new_numbers():
    return bytearray()

cdef inline int append_number(bytearray numbers, i64 number) except -1:
    cdef Py_ssize_t end = PyByteArray_GET_SIZE(numbers)
    PyByteArray_Resize(numbers, end + 8)
    (<i64 *>(PyByteArray_AS_STRING(numbers) + end))[0] = number
    return 0

cdef inline i64 number_at(bytearray numbers, Py_ssize_t place) noexcept:
    if place < 0:
        place += PyByteArray_GET_SIZE(numbers) // 8
    return (<i64 *>PyByteArray_AS_STRING(numbers))[place]

cdef inline Py_ssize_t count_below(bytearray numbers, i64 number) noexcept:
    cdef const i64 *all = <const i64 *>PyByteArray_AS_STRING(numbers)
    cdef Py_ssize_t low = 0, high = PyByteArray_GET_SIZE(numbers) // 8, middle
    if high and all[high - 1] < number:
        return high  # most often: who sends has read the answer to his last message
    while low < high:
        middle = (low + high) // 2
        if all[middle] < number:
            low = middle + 1
        else:
            high = middle
    return low



@cython.final
@cython.no_gc
cdef class Message:
    cdef bytes id, key
    cdef i64 sent_at, seq, place_at, seen_at
    cdef Py_hash_t digest
    cdef int attempts, place, seen
    cdef bint delayed, acknowledged, excused
    cdef unsigned long long received_by

@cython.final
cdef class Queue:
    cdef bytes name
    cdef int number
    cdef dict messages
    cdef i64 messages_end, received_end
    cdef bytearray ack_times, highest

@cython.final
cdef class Group:
    cdef bytes name
    cdef unsigned long long bit
    cdef dict newest

@cython.final
cdef class Stream:
    cdef Group group
    cdef Queue queue
    cdef i64 last

@cython.final
cdef class Judge:
    cdef object _verdict, _unavailable_ms_max
    cdef bint _tail_may_be_lost, _seen_may_be_lost, _again_allowed
    cdef list _readers, _queue_list
    cdef dict _messages, _queues, _groups, _keys, _committed, _expected
    cdef i64 _waiting_since, _pause_ns, _sent, _acknowledged, _received, _redelivered

    @cython.locals(each=Reader, first=Reader, other=Reader, going_on=list)
    cdef void _take_all(self) except *
    @cython.locals(kind=bytes)
    cdef void _take(self, Reader reader) except *
    cdef void _take_rare(self, Reader reader, bytes kind) except *
    @cython.locals(queue=Queue)
    cdef Queue _queue(self, bytes name)
    @cython.locals(group=Group)
    cdef Group _group(self, bytes name)
    @cython.locals(name=bytes, key=bytes, known=Message)
    cdef void _send(self, Reader reader) except *
    @cython.locals(at=i64, message=bytes, name=bytes, offset=i64, known=Message, queue=Queue)
    cdef void _ack(self, Reader reader) except *
    @cython.locals(highest=i64, before=Py_ssize_t)
    cdef void _note_end(self, Message known, Queue queue, i64 offset, i64 at) except *
    @cython.locals(pause_ns=i64)
    cdef void _end_pause(self, i64 at) except *
    @cython.locals(there=Message)
    cdef void _settle(self, Message known, Queue queue, i64 offset) except *
    @cython.locals(names_at=Py_ssize_t, names=bytes, offset=i64, message=bytes, digest=Py_hash_t, stream=Stream, group=Group, queue=Queue, known=Message)
    cdef void _recv(self, Reader reader) except *
    cdef void _doubled(self, Message known, object one, Queue queue, i64 offset) except *
    @cython.locals(found=Queue)
    cdef object _place(self, int queue, i64 offset)
    cdef void _fail(self, Reader reader) except *
    @cython.locals(stream=Stream)
    cdef void _session(self, Reader reader) except *
    @cython.locals(before=i64)
    cdef void _look_at_key(self, Message known, Group group) except *
    cdef void _commit(self, Reader reader) except *
    @cython.locals(queue=Queue, offset=i64, known=Message)
    cdef void _end(self, Reader reader) except *
    @cython.locals(each=Reader, stream=Stream)
    cdef void _set_back(self, Queue queue, i64 offset) except *
    @cython.locals(end=i64)
    cdef list _offsets_from(self, Queue queue, i64 offset)
    cdef void _finish(self) except *
    @cython.locals(known=Message)
    cdef void _find_lost(self, Group group) except *
