"""An opened frame: its header checked, its chunks found, nothing decoded yet."""

from libc.stdint cimport uint8_t, uint64_t

from smlt._core._buffers cimport Memory
from smlt._core._kernels cimport frame_fault, frame_part


cdef class Frame:
    cdef Memory memory
    cdef readonly object header
    cdef bytes entries, sums
    cdef const uint8_t* payload
    cdef size_t payload_bytes
    cdef uint64_t* offsets

    cdef int locate_chunks(self, size_t chunks) except -1
    cdef size_t locate_tensor(self, size_t first, size_t nbytes) except? 0
    cdef frame_part part(self, tensor, size_t first, bint verify)
    cdef int verify(self, tensor, size_t first) except -1
    cdef int decode(self, tensor, size_t first, Memory out, bint verify, int threads) except -1
    cdef int decode_add(
        self, tensor, Memory out, const float* scale, bint verify, int threads
    ) except -1


cdef int check_float(tensor, Py_ssize_t count) except -1
cdef int raise_fault(frame_fault fault, size_t first, str where) except -1
