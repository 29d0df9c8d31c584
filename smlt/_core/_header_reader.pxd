from libc.stdint cimport uint8_t

cdef tuple read_fields(const uint8_t* start, size_t length)
