"""What a call is given, held until it returns."""

cimport cython
from libc.stdint cimport uint8_t


@cython.final
cdef class Memory:
    cdef Py_buffer view
    cdef bint held
    cdef char form
    cdef str name


cdef Memory writable_floats(target, str name, Py_ssize_t count)
cdef Memory writable_halves(target, str name)
cdef int refuse_overlap(Memory a, Memory b) except -1


@cython.final
cdef class Weights:
    cdef double* wide
    cdef float* narrow
    cdef bint positive


@cython.final
cdef class Shards:
    cdef Py_buffer* views
    cdef const uint8_t** pointers
    cdef Weights weights
    cdef Py_ssize_t count, held
    cdef int dtype

    cdef int check(self, Py_ssize_t i, Py_ssize_t items) except -1
    cdef int refuse_overlap(self, Memory output, bint may_be_same) except -1


cdef int thread_count(threads) except -1
cdef double number(str name, value) except? 0.0
cdef int dtype_code(dtype) except -1
cdef int order_code(order) except -1
