"""Frames into their sum."""

from smlt._core._buffers cimport Memory


cdef list open_all(frames, Py_ssize_t count, bint verify)
cdef int reduce_opened(
    list opened, Memory out, weights, scale, order, bint verify, int threads
) except -1
