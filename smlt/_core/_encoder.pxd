"""One frame being made."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from smlt._core._buffers cimport Memory
from smlt._core._kernels cimport chunk_encoder


cdef tuple wire_tensor(name, array, wire_dtype, residual)


@cython.final
cdef class Encoding:
    cdef list tensors, sources
    cdef size_t chunks, room
    cdef uint32_t[::1] entries
    cdef uint64_t[::1] sums
    cdef object header, scratch

    cdef chunk_encoder encoder(self, size_t i, size_t first) except *
    cdef size_t probe_tensor(self, size_t i, size_t first, bint compress) except? 0
    cdef bytes pack_fields(self)
    cdef bytes prefixed(self)
    cdef size_t encode_tensor(self, chunk_encoder* e, size_t i) except? 0
    cdef list pieces(self)
    cdef int append_pieces(self, list pieces, chunk_encoder* e, source, size_t used) except -1
    cdef size_t write(self, Memory out) except 0
