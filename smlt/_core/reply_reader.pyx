"""Received bytes into replies; large values are received where they shall lie.

Compiled, because reading replies was a large part of a small step's time (decision 0063). It does
no input itself.
"""

from cpython.buffer cimport PyBUF_WRITE
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.string cimport memchr, memcpy, memmove

from smlt._core import replies as words
from smlt._core.replies import ErrorReply

cdef enum:
    DEPTH = 8

cdef Py_ssize_t SCRATCH = words.SCRATCH_BYTES
cdef Py_ssize_t SMALL = words.SMALL_BYTES
cdef Py_ssize_t MOST_ELEMENTS = words.MAX_ELEMENTS
cdef Py_ssize_t MOST_DIGITS = words.MAX_DIGITS
cdef long long LONGEST = words.MAX_LENGTH
assert words.MAX_DEPTH == DEPTH


cdef class ReplyReader:
    """Turns received bytes into replies.

    ``get_buffer`` says where the next bytes go, ``buffer_updated`` that they have come. After an
    error the reader is of no more use, nor is the connection.
    """

    cdef readonly list replies
    """The whole replies since ``expect``."""
    cdef readonly Py_ssize_t missing
    """How many are still to come."""

    cdef bytearray text
    cdef object scratch
    cdef char* raw
    cdef Py_ssize_t start, end, allowed
    cdef list arrays
    cdef Py_ssize_t counts[DEPTH]
    cdef object into
    cdef object bulk
    """A view of the large value that is being received, and the value that it is of."""
    cdef object value
    cdef Py_ssize_t bulk_bytes, filled

    def __cinit__(self):
        self.text = bytearray(SCRATCH)
        self.scratch = memoryview(self.text)  # holds the bytearray to its size
        self.raw = PyByteArray_AS_STRING(self.text)
        self.arrays = []
        self.start = self.end = 0
        self.bulk = None
        self.expect(0, max_bytes=0)

    def expect(self, Py_ssize_t count, *, Py_ssize_t max_bytes, into=None):
        """Read so many replies of ``max_bytes`` in all.

        Args:
            into: writable contiguous bytes, for the next large value if it fits. The reply is then
                a read-only view of them; otherwise bulk strings are bytes.
        """
        self.replies = []
        self.missing = count
        self.into = into
        self.allowed = max_bytes + SCRATCH

    @property
    def fills_value(self):
        """Whether all of the buffer will come: it is what a large value lacks."""
        return self.bulk is not None and self.filled < self.bulk_bytes

    def get_buffer(self):
        """Return where to receive into; never empty."""
        if self.bulk is not None and self.filled < self.bulk_bytes:
            return self.bulk[self.filled:]
        return self.scratch[self.end:] if self.end else self.scratch

    def buffer_updated(self, Py_ssize_t nbytes):
        """Go on with ``nbytes`` bytes that were received into the buffer.

        Raises:
            RespError: they are no RESP2, exceed what is accepted, or were not asked for.
        """
        if self.bulk is not None and self.filled < self.bulk_bytes:
            self.filled += nbytes
            return
        self.end += nbytes
        self.parse()
        if self.start == self.end:
            self.start = self.end = 0
        elif self.end == SCRATCH and self.start:
            memmove(self.raw, self.raw + self.start, self.end - self.start)
            self.end -= self.start
            self.start = 0

    cdef int parse(self) except -1:
        """Take all elements that are whole off the scratch buffer."""
        cdef char* line
        cdef char kind
        cdef Py_ssize_t size, stop
        cdef long long length
        while self.bulk is None or self.finish_bulk():
            line = self.raw + self.start
            size = _line(line, self.end - self.start)
            if size < 0:
                if self.end - self.start == SCRATCH:
                    raise words.endless_line()
                return 0
            if size == 0:
                raise words.no_resp(b"")
            kind = line[0]
            if kind == c"$":
                length = _length(line + 1, size - 1)
                if length == -1:
                    self.take(size + 2)
                    self.emit(None)
                elif length > SMALL or length < 0:
                    self.take(size + 2)
                    self.begin_bulk(length)
                else:
                    if length > self.allowed:
                        raise words.too_large(length)
                    stop = size + 2 + length
                    if self.start + stop + 2 > self.end:
                        return 0
                    if line[stop] != c"\r" or line[stop + 1] != c"\n":
                        raise words.unended()
                    value = PyBytes_FromStringAndSize(line + size + 2, length)
                    self.take(stop + 2)
                    self.emit(value)
            elif kind == c"*":
                self.take(size + 2)
                self.begin_array(_length(line + 1, size - 1))
            else:
                value = _simple(line, size)
                self.take(size + 2)
                self.emit(value)
        return 0

    cdef int begin_bulk(self, long long length) except -1:
        """Go on with a large value, as much of it as has come."""
        self.allow(length)
        if self.into is not None and length <= self.into.nbytes:
            self.bulk = self.into.cast("B")[:length]
            self.value = self.bulk.toreadonly()
            self.into = None
        else:
            # Nobody has seen these bytes yet, so they may still change.
            self.value = PyBytes_FromStringAndSize(NULL, length)
            self.bulk = PyMemoryView_FromMemory(PyBytes_AS_STRING(self.value), length, PyBUF_WRITE)
        self.bulk_bytes = length
        self.filled = min(length, self.end - self.start)
        cdef unsigned char[::1] target = self.bulk
        memcpy(&target[0], self.raw + self.start, self.filled)
        self.start += self.filled
        return 0

    cdef bint finish_bulk(self) except -1:
        if self.filled < self.bulk_bytes or self.end - self.start < 2:
            return False
        if self.raw[self.start] != c"\r" or self.raw[self.start + 1] != c"\n":
            raise words.unended()
        self.start += 2
        value, self.value, self.bulk = self.value, None, None
        self.emit(value)
        return True

    cdef int begin_array(self, long long count) except -1:
        if count > MOST_ELEMENTS or len(self.arrays) == DEPTH:
            raise words.too_many()
        if count <= 0:
            self.emit(None if count < 0 else [])
        else:
            self.counts[len(self.arrays)] = count
            self.arrays.append([])
        return 0

    cdef int emit(self, value) except -1:
        """Put a value into the innermost array, which may end it, and others; or it is a reply."""
        cdef list items
        cdef Py_ssize_t depth = len(self.arrays)
        while depth:
            items = <list>self.arrays[depth - 1]
            items.append(value)
            if len(items) < self.counts[depth - 1]:
                return 0
            value = self.arrays.pop()
            depth -= 1
        if not self.missing:
            raise words.unasked()
        self.missing -= 1
        self.replies.append(value)
        return 0

    cdef int take(self, Py_ssize_t nbytes) except -1:
        """Go on behind so many bytes of the scratch buffer."""
        self.start += nbytes
        return self.allow(nbytes)

    cdef int allow(self, long long nbytes) except -1:
        if nbytes < 0 or nbytes > self.allowed:
            raise words.too_large(nbytes)
        self.allowed -= nbytes
        return 0


cdef Py_ssize_t _line(const char* text, Py_ssize_t size) noexcept:
    """Return the length of the line that the text begins with, or -1 if its end has not come."""
    cdef const char* at = text
    cdef const char* end = text + size
    while at < end:
        at = <const char*>memchr(at, c"\r", end - at)
        if at == NULL or at + 1 == end:
            return -1
        if at[1] == c"\n":
            return at - text
        at += 1
    return -1


cdef Py_ssize_t _digits(const char* text, Py_ssize_t size) except -1:
    """Return where the digits of a number begin.

    int() alone would also take spaces, underscores and a number of any length.
    """
    cdef Py_ssize_t i, first = 1 if size and (text[0] == c"-" or text[0] == c"+") else 0
    cdef bint fine = first < size and size - first <= MOST_DIGITS
    for i in range(first, size):
        fine = fine and c"0" <= text[i] <= c"9"
    if not fine:
        raise words.no_number(PyBytes_FromStringAndSize(text, min(size, 24)))
    return first


cdef long long _length(const char* text, Py_ssize_t size) except? -2:
    """Return a length of at most MAX_LENGTH; -2 stands for all that are below -1."""
    cdef Py_ssize_t i, first = _digits(text, size)
    cdef long long value = 0
    for i in range(first, size):
        value = min(10 * value + (text[i] - c"0"), LONGEST)
    if text[0] != c"-" or not value:
        return value
    return -1 if value == 1 else -2


cdef object _simple(const char* line, Py_ssize_t size):
    """Return what a line of a kind of its own says."""
    if line[0] == c":":
        _digits(line + 1, size - 1)
        return int(PyBytes_FromStringAndSize(line + 1, size - 1))
    if line[0] == c"+":
        return PyBytes_FromStringAndSize(line + 1, size - 1)
    if line[0] == c"-":
        text = PyBytes_FromStringAndSize(line + 1, size - 1)
        return ErrorReply(text.decode("utf-8", "replace"))
    raise words.no_resp(PyBytes_FromStringAndSize(line, min(size, 16)))
