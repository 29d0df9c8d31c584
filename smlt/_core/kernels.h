/* What the Cython modules and the C agree on: the jobs, and the table of what does them.
 *
 * The C itself is compiled once, into `_kernels`; the other modules reach it through the table.
 */
#ifndef SMLT_KERNELS_H
#define SMLT_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define CHUNK 65536
#define GROUP 8        /* streams read at once: what one core's prefetchers follow */
#define MAX_THREADS 64

enum { FP32, FP16, BF16 };
enum { FOLD, TREE, DOUBLE };
enum { STORE, CAST, SGD, ADAMW };
enum { RAW, ZERO, LZ4, BITMAP };

/* ---- shards ---- */

typedef struct {
    const float *narrow; /* one per stream, or NULL */
    const double *wide;  /* the same, for DOUBLE */
} stream_weights;

typedef struct {
    float lr, momentum, weight_decay;
    float take; /* 1 - dampening; 1 in the first step, as torch has it */
    int nesterov;
} sgd_rule;

typedef struct {
    float shrink;              /* 1 - lr * weight_decay */
    float rest1, beta2, rest2; /* rest = 1 - beta */
    float step_size, root_correction, eps;
} adamw_rule;

/* n streams into one, and what follows. */
typedef struct {
    const uint8_t **in;
    size_t streams, count;  /* count: elements of each stream */
    int dtype, order, finish;
    stream_weights weights;
    const double *scale;
    float *out;             /* STORE */
    uint16_t *wire;         /* CAST, to wire_dtype, with an optional residual */
    int wire_dtype;
    float *residual;
    float *param, *first, *second; /* SGD: first is the velocity; ADAMW: both moments */
    sgd_rule sgd;
    adamw_rule adamw;
} reduction;

/* One group of a stream: dst = scale * (left + sum of k streams), or wide += that sum. */
typedef struct {
    float *dst;
    const float *left;
    double *wide;
    const uint8_t **in;
    stream_weights weights;
    int k, dtype, tree;
    size_t count;
    const double *scale;
} group_step;

/* ---- frames ---- */

static inline size_t chunk_count(size_t bytes) { return bytes / CHUNK + (bytes % CHUNK != 0); }

static inline size_t chunk_bytes(size_t bytes, size_t chunk) {
    const size_t rest = bytes - chunk * CHUNK;
    return rest < CHUNK ? rest : CHUNK;
}

/* An entry of a frame's chunk table: the mode, and the stored size. */
static inline uint32_t entry_of(int mode, size_t size) { return (uint32_t)mode << 28 | (uint32_t)size; }
static inline int entry_mode(uint32_t entry) { return (int)(entry >> 28); }
static inline size_t entry_size(uint32_t entry) { return entry & 0x0fffffffu; }

static inline uint32_t read32(const uint8_t *p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

typedef struct {
    const uint8_t *src;  /* one tensor */
    size_t bytes;
    int word;            /* 4 or 2, or 0: neither zeros nor repeats are looked for */
    uint32_t *entries;   /* per chunk; filled with candidate modes by probe_chunks */
    uint64_t *sums;      /* per chunk, or NULL */
    uint8_t *dst;        /* receives encoded chunks, and raw ones too if copy_raw */
    size_t used;
    int copy_raw;
} chunk_encoder;

/* One tensor of an opened frame. */
typedef struct {
    const uint8_t *payload;
    const uint8_t *entries;  /* little-endian u32 per chunk, or NULL: all raw */
    const uint8_t *sums;     /* little-endian u64 per chunk, or NULL: not looked at */
    const uint64_t *offsets; /* of each chunk in the payload, and the end */
    size_t first, bytes;     /* the tensor's first chunk, and its size */
    int word;
} frame_part;

typedef struct {
    const frame_part *part;
    uint8_t *dst;     /* exact bits, or */
    float *wide;      /* widened from wire_dtype (and added, if add) */
    int add, wire_dtype;
    const float *scale;
} decode_job;

typedef struct {
    const frame_part *parts;
    size_t streams, count;
    int dtype, order;
    int skip_zeros;          /* allowed where scale > 0 and weights >= 0 keep +0.0 a +0.0 */
    stream_weights weights;
    const double *scale;
    float *out;
} frame_reduction;

enum { FINE, BAD_CHECKSUM, BAD_CHUNK, NO_MEMORY };

/* How a job on frames ended. Of several faults, the one of the lowest chunk is told. */
typedef struct {
    int kind;
    size_t frame, chunk;
} frame_fault;

/* ---- the table ---- */

/* All of these may run without the GIL. Threads are as many as asked for, fewer where less than a
 * megabyte would fall to each. An int is 0 where memory for scratch could not be had. */
typedef struct {
    int (*reduce)(const reduction *job, int threads, double *squared_norm);
    int (*add_group)(const group_step *step, int threads);
    void (*round_double)(float *dst, const double *wide, double scale, size_t n);
    /* wire = round(x + residual), residual = what that lost; or wire = round(x). */
    void (*cast)(uint16_t *wire, float *residual, const float *x, size_t n, int wire_dtype);
    uint64_t (*xxh3)(const uint8_t *p, size_t n);
    /* Choose candidate modes; returns the room that they need if all are encoded. */
    size_t (*probe_chunks)(chunk_encoder *e);
    /* Encode from chunk c on; stops at the first that asks for LZ4 and returns its number. */
    size_t (*encode_chunks)(chunk_encoder *e, size_t c);
    /* What it stopped at: LZ4's result, a bitmap or raw, whichever is smallest. */
    void (*store_smallest)(chunk_encoder *e, size_t c, const uint8_t *compressed, size_t size);
    frame_fault (*verify)(const frame_part *part);
    frame_fault (*decode)(const decode_job *job, int threads);
    frame_fault (*reduce_frames)(const frame_reduction *job, int threads);
} kernel_table;

#endif
