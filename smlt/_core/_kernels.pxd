"""The C of the core, compiled once: what `kernels.h` declares, and the table that does it."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "kernels.h" nogil:
    enum: CHUNK
    enum: GROUP
    enum: MAX_THREADS
    enum: FP32
    enum: FP16
    enum: BF16
    enum: FOLD
    enum: TREE
    enum: DOUBLE
    enum: STORE
    enum: CAST
    enum: SGD
    enum: ADAMW
    enum: RAW
    enum: ZERO
    enum: LZ4
    enum: BITMAP
    enum: FINE
    enum: BAD_CHECKSUM
    enum: BAD_CHUNK
    enum: NO_MEMORY

    ctypedef struct stream_weights:
        const float* narrow
        const double* wide

    ctypedef struct sgd_rule:
        float lr, momentum, weight_decay, take
        int nesterov

    ctypedef struct adamw_rule:
        float shrink, rest1, beta2, rest2, step_size, root_correction, eps

    ctypedef struct reduction:
        const uint8_t** in_ "in"
        size_t streams, count
        int dtype, order, finish
        stream_weights weights
        const double* scale
        float* out
        uint16_t* wire
        int wire_dtype
        float* residual
        float* param
        float* first
        float* second
        sgd_rule sgd
        adamw_rule adamw

    ctypedef struct group_step:
        float* dst
        const float* left
        double* wide
        const uint8_t** in_ "in"
        stream_weights weights
        int k, dtype, tree
        size_t count
        const double* scale

    size_t chunk_count(size_t bytes)
    size_t chunk_bytes(size_t bytes, size_t chunk)
    int entry_mode(uint32_t entry)
    size_t entry_size(uint32_t entry)
    uint32_t read32(const uint8_t* p)

    ctypedef struct chunk_encoder:
        const uint8_t* src
        size_t bytes
        int word
        uint32_t* entries
        uint64_t* sums
        uint8_t* dst
        size_t used
        int copy_raw

    ctypedef struct frame_part:
        const uint8_t* payload
        const uint8_t* entries
        const uint8_t* sums
        const uint64_t* offsets
        size_t first, bytes
        int word

    ctypedef struct decode_job:
        const frame_part* part
        uint8_t* dst
        float* wide
        int add, wire_dtype
        const float* scale

    ctypedef struct frame_reduction:
        const frame_part* parts
        size_t streams, count
        int dtype, order, skip_zeros
        stream_weights weights
        const double* scale
        float* out

    ctypedef struct frame_fault:
        int kind
        size_t frame, chunk

    ctypedef struct kernel_table:
        int (*reduce)(const reduction* job, int threads, double* norm) noexcept nogil
        int (*add_group)(const group_step* step, int threads) noexcept nogil
        void (*round_double)(float* dst, const double* wide, double scale, size_t n) noexcept nogil
        void (*cast)(
            uint16_t* wire, float* residual, const float* x, size_t n, int dtype
        ) noexcept nogil
        uint64_t (*xxh3)(const uint8_t* p, size_t n) noexcept nogil
        size_t (*probe_chunks)(chunk_encoder* e) noexcept nogil
        size_t (*encode_chunks)(chunk_encoder* e, size_t c) noexcept nogil
        void (*store_smallest)(
            chunk_encoder* e, size_t c, const uint8_t* compressed, size_t size
        ) noexcept nogil
        frame_fault (*verify)(const frame_part* part) noexcept nogil
        frame_fault (*decode)(const decode_job* job, int threads) noexcept nogil
        frame_fault (*reduce_frames)(const frame_reduction* job, int threads) noexcept nogil


cdef const kernel_table* kernels
