"""An opened frame: its header checked, its chunks found, nothing decoded yet."""

from libc.stdint cimport uint8_t, uint64_t


cdef struct Reader:
    const uint8_t* at
    const uint8_t* end


cdef class Frame:
    cdef Py_buffer view
    cdef bint held
    cdef readonly object header
    cdef readonly bint checked
    cdef bytes entries, sums
    cdef const uint8_t* payload
    cdef size_t payload_bytes
    cdef uint64_t* offsets

    cdef int read_fields(self, Reader* r) except -1
    cdef int locate_chunks(self, size_t chunks) except -1
    cdef size_t locate_tensor(self, size_t first, size_t nbytes) except? 0
