/* Chunks of frames, many at a time: encode a tensor's chunks, verify, decode, decode and reduce.
 *
 * Everything the GIL is released for. A failure is reported as the lowest (chunk, frame) that is
 * bad, whichever thread met it.
 */
#ifndef SMLT_FRAMES_H
#define SMLT_FRAMES_H

#include "chunks.h"
#include "reduction.h"

/* ---- encoding ---- */

/* An encoded chunk must save an eighth, or raw is the better bargain for both ends. */
static size_t worthwhile_size(size_t bytes) { return bytes - bytes / 8; }

static size_t probe_chunks(chunk_encoder *e) {
    size_t room = 0;
    for (size_t c = 0; c < chunk_count(e->bytes); c++) {
        const size_t bytes = chunk_bytes(e->bytes, c);
        const int mode = e->word ? probe(e->src + c * CHUNK, bytes, e->word) : RAW;
        e->entries[c] = entry_of(mode, bytes);
        if (mode != RAW) room += worthwhile_size(bytes) + SLACK;
    }
    return room;
}

static void store_chunk(chunk_encoder *e, size_t c, int mode, const uint8_t *stored, size_t size) {
    e->entries[c] = entry_of(mode, size);
    if (e->sums) e->sums[c] = xxh3(stored, size);
    if (mode == RAW && !e->copy_raw) return;
    if (stored != e->dst + e->used) copy_chunk(e->dst + e->used, stored, size, e->bytes);
    e->used += size;
}

/* Encode as a bitmap, or raw where that is not smaller. */
static void encode_words(chunk_encoder *e, size_t c) {
    const uint8_t *chunk = e->src + c * CHUNK;
    const size_t bytes = chunk_bytes(e->bytes, c), limit = worthwhile_size(bytes);
    const size_t size = bitmap_encode(e->dst + e->used, chunk, bytes, e->word, limit);
    if (size == limit) store_chunk(e, c, RAW, chunk, bytes);
    else store_chunk(e, c, size ? BITMAP : ZERO, e->dst + e->used, size);
}

static size_t encode_chunks(chunk_encoder *e, size_t c) {
    for (; c < chunk_count(e->bytes); c++) {
        const int mode = entry_mode(e->entries[c]);
        if (mode == LZ4) return c;
        if (mode == BITMAP && chunk_bytes(e->bytes, c) % (size_t)e->word == 0) encode_words(e, c);
        else store_chunk(e, c, RAW, e->src + c * CHUNK, chunk_bytes(e->bytes, c));
    }
    return c;
}

static void store_smallest(chunk_encoder *e, size_t c, const uint8_t *compressed, size_t size) {
    const uint8_t *chunk = e->src + c * CHUNK;
    const size_t bytes = chunk_bytes(e->bytes, c), limit = worthwhile_size(bytes);
    if (size >= limit) size = limit;
    if (bytes % (size_t)e->word == 0) {
        const size_t as_bitmap = bitmap_encode(e->dst + e->used, chunk, bytes, e->word, size);
        if (as_bitmap < size) {
            store_chunk(e, c, as_bitmap ? BITMAP : ZERO, e->dst + e->used, as_bitmap);
            return;
        }
    }
    if (size < limit) store_chunk(e, c, LZ4, compressed, size);
    else store_chunk(e, c, RAW, chunk, bytes);
}

/* ---- decoding ---- */

static int chunk_mode(const frame_part *part, size_t c) {
    return part->entries ? entry_mode(read32(part->entries + 4 * (part->first + c))) : RAW;
}

static const uint8_t *chunk_at(const frame_part *part, size_t c, size_t *size) {
    const uint64_t *offset = part->offsets + part->first + c;
    *size = offset[1] - offset[0];
    return part->payload + offset[0];
}

static int sum_is_right(const frame_part *part, size_t c) {
    size_t size;
    const uint8_t *stored = chunk_at(part, c, &size);
    return !part->sums || read64(part->sums + 8 * (part->first + c)) == xxh3(stored, size);
}

static int part_decode(const frame_part *part, size_t c, uint8_t *dst) {
    size_t size;
    const uint8_t *stored = chunk_at(part, c, &size);
    return decode_chunk(dst, chunk_bytes(part->bytes, c), stored, size, chunk_mode(part, c), part->word);
}

static frame_fault verify_part(const frame_part *part) {
    for (size_t c = 0; c < chunk_count(part->bytes); c++)
        if (!sum_is_right(part, c)) return (frame_fault){BAD_CHECKSUM, 0, c};
    return (frame_fault){FINE, 0, 0};
}

typedef struct {
    const decode_job *job;
    uint8_t *rooms; /* CHUNK bytes a thread */
    frame_fault faults[MAX_THREADS];
} decode_run;

static int decode_one(const decode_job *job, size_t c, uint8_t *room) {
    const size_t bytes = chunk_bytes(job->part->bytes, c), item = job->wire_dtype == FP32 ? 4 : 2;
    size_t size;
    const uint8_t *in = chunk_at(job->part, c, &size);
    if (!job->wide && chunk_mode(job->part, c) == RAW) {
        copy_chunk(job->dst + c * CHUNK, in, size, job->part->bytes);
        return 1;
    }
    if (!job->wide) return part_decode(job->part, c, job->dst + c * CHUNK);
    if (chunk_mode(job->part, c) != RAW) {
        if (!part_decode(job->part, c, room)) return 0;
        in = room;
    }
    float *dst = job->wide + c * (CHUNK / item);
    lanes->sum(dst, job->add ? dst : NULL, &in, job->scale, 1, bytes / item, NULL, 0, job->wire_dtype);
    return 1;
}

static void decode_chunks(void *context, int thread, size_t begin, size_t end) {
    decode_run *run = context;
    uint8_t *room = run->rooms + (size_t)thread * CHUNK;
    for (size_t c = begin; c < end; c++) {
        const int right = sum_is_right(run->job->part, c);
        if (right && decode_one(run->job, c, room)) continue;
        run->faults[thread] = (frame_fault){right ? BAD_CHUNK : BAD_CHECKSUM, 0, c};
        return;
    }
}

static frame_fault first_fault(const frame_fault *faults, int threads) {
    for (int t = 0; t < threads; t++)
        if (faults[t].kind != FINE) return faults[t];
    return (frame_fault){FINE, 0, 0};
}

static frame_fault decode_part(const decode_job *job, int threads) {
    decode_run run = {.job = job};
    threads = worthwhile_threads(threads, job->part->bytes);
    if (!(run.rooms = malloc((size_t)CHUNK * (size_t)threads))) return (frame_fault){NO_MEMORY, 0, 0};
    run_parallel(decode_chunks, &run, threads, chunk_count(job->part->bytes));
    free(run.rooms);
    return first_fault(run.faults, threads);
}

/* ---- decode and reduce: chunk by chunk across all frames ---- */

typedef struct {
    const frame_reduction *job;
    uint8_t *rooms;
    size_t room;
    frame_fault faults[MAX_THREADS];
} frame_reduction_run;

static const uint8_t zero_chunk[CHUNK];

static size_t frame_reduction_room(const frame_reduction *job) {
    const size_t elements = CHUNK / (job->dtype == FP32 ? 4 : 2);
    return sum_room(job->order, job->streams, elements) + (size_t)GROUP * CHUNK;
}

typedef struct {
    const uint8_t *in[GROUP];
    float narrow[GROUP];
    double wide[GROUP];
    int k, has_zero; /* has_zero: in this group or an earlier one of the chunk */
} stream_group;

/* All but the first chunk of zeros may be dropped: one +0.0 among the terms makes a sum of -0.0
 * positive, and more change nothing. A tree of more than two leaves has a shape, so there all
 * zeros stand in. */
static void drop_zeros(const frame_reduction *job, stream_group *group, const uint8_t *const *in,
                       size_t first, int k) {
    int present = 0;
    for (int i = 0; i < k; i++) present += in[i] != NULL;
    const int drop = job->skip_zeros && (job->order != TREE || present <= 2);
    group->k = 0;
    for (int i = 0; i < k; i++) {
        if (!in[i] && drop && group->has_zero) continue;
        if (!in[i]) group->has_zero = 1;
        group->in[group->k] = in[i] ? in[i] : zero_chunk;
        group->narrow[group->k] = job->weights.narrow ? job->weights.narrow[first + (size_t)i] : 0;
        group->wide[group->k] = job->weights.wide ? job->weights.wide[first + (size_t)i] : 0;
        group->k++;
    }
}

/* Find or decode chunk c of up to eight frames. */
static int open_group(const frame_reduction *job, stream_group *group, size_t first, int k, size_t c,
                      uint8_t *room, frame_fault *fault) {
    const uint8_t *in[GROUP];
    for (int i = 0; i < k; i++) {
        const frame_part *part = job->parts + first + (size_t)i;
        const int mode = chunk_mode(part, c);
        uint8_t *scratch = room + (size_t)i * CHUNK;
        size_t size;
        in[i] = chunk_at(part, c, &size);
        if (mode == ZERO) in[i] = NULL;
        else if (mode != RAW) {
            if (!part_decode(part, c, scratch)) {
                const int kind = sum_is_right(part, c) ? BAD_CHUNK : BAD_CHECKSUM;
                *fault = (frame_fault){kind, first + (size_t)i, c};
                return 0;
            }
            in[i] = scratch;
        }
    }
    drop_zeros(job, group, in, first, k);
    return 1;
}

/* After the sum, not before: eight streams are read faster from memory than one after the other,
 * and the checksums then find them in the cache. Nothing is lost, `out` is undefined on failure. */
static int verify_group(const frame_reduction *job, size_t first, int k, size_t c, frame_fault *fault) {
    for (int i = 0; i < k; i++)
        if (!sum_is_right(job->parts + first + (size_t)i, c)) {
            *fault = (frame_fault){BAD_CHECKSUM, first + (size_t)i, c};
            return 0;
        }
    return 1;
}

static int reduce_frames_chunk(const frame_reduction *job, block_sum *sum, uint8_t *room, size_t c,
                               frame_fault *fault) {
    const size_t bytes = chunk_bytes(job->parts[0].bytes, c), item = job->dtype == FP32 ? 4 : 2;
    float *dst = job->out + c * (CHUNK / item);
    stream_group group = {.has_zero = 0};
    begin_block(sum, bytes / item);
    for (size_t g = 0; g < job->streams; g += GROUP) {
        const int last = job->streams - g <= GROUP, k = last ? (int)(job->streams - g) : GROUP;
        if (!open_group(job, &group, g, k, c, room, fault)) return 0;
        const stream_weights weights = {job->weights.narrow ? group.narrow : NULL,
                                        job->weights.wide ? group.wide : NULL};
        add_group(sum, last ? dst : NULL, group.in, weights, group.k, job->scale);
        if (!verify_group(job, g, k, c, fault)) return 0;
    }
    return 1;
}

static void reduce_frames_chunks(void *context, int thread, size_t begin, size_t end) {
    frame_reduction_run *run = context;
    const frame_reduction *job = run->job;
    uint8_t *room = run->rooms + run->room * (size_t)thread;
    uint8_t *scratch = room + run->room - (size_t)GROUP * CHUNK;
    block_sum sum = block_sum_in(room, job->order, job->dtype, job->streams,
                                 CHUNK / (job->dtype == FP32 ? 4 : 2));
    for (size_t c = begin; c < end; c++)
        if (!reduce_frames_chunk(job, &sum, scratch, c, &run->faults[thread])) return;
}

/* Nothing to decode and nothing to verify: the frames are shards. */
static int are_shards(const frame_reduction *job) {
    for (size_t i = 0; i < job->streams; i++)
        if (job->parts[i].entries || job->parts[i].sums) return 0;
    return 1;
}

static int reduce_as_shards(const frame_reduction *job, int threads) {
    const uint8_t **in = malloc(job->streams * sizeof *in);
    const reduction shards = {.in = in, .streams = job->streams, .count = job->count,
                              .dtype = job->dtype, .order = job->order, .finish = STORE,
                              .weights = job->weights, .scale = job->scale, .out = job->out};
    if (!in) return 0;
    for (size_t i = 0; i < job->streams; i++) in[i] = job->parts[i].payload;
    const int done = reduce_streams(&shards, threads, NULL);
    free(in);
    return done;
}

static frame_fault reduce_frames(const frame_reduction *job, int threads) {
    frame_reduction_run run = {.job = job, .room = frame_reduction_room(job)};
    if (are_shards(job)) return (frame_fault){reduce_as_shards(job, threads) ? FINE : NO_MEMORY, 0, 0};
    threads = worthwhile_threads(threads, job->streams * job->parts[0].bytes);
    if (!(run.rooms = malloc(run.room * (size_t)threads))) return (frame_fault){NO_MEMORY, 0, 0};
    run_parallel(reduce_frames_chunks, &run, threads, chunk_count(job->parts[0].bytes));
    free(run.rooms);
    return first_fault(run.faults, threads);
}

#endif
