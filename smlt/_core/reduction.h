/* A whole reduction: n streams into one, block by block, and what follows each block.
 *
 * A block is summed in groups of eight streams while its partial sums stay in the first-level
 * cache, then finished (stored, cast, or fed to an optimizer) at once. Orders:
 *   FOLD    ((x0 + x1) + x2) + ...                      the bits of a NumPy loop
 *   TREE    the left-complete binary tree over streams  error O(log n), independent of arrival
 *   DOUBLE  the fold in float64, rounded once
 */
#ifndef SMLT_REDUCTION_H
#define SMLT_REDUCTION_H

#include <stdlib.h>

#include "lanes.h"
#include "parallel.h"

/* Elements; 128 KB of fp32, a share of the second-level cache. Less would switch streams more
 * often than the prefetchers like (0.8 of the speed from DRAM at 16 KB), more would not fit. */
#ifndef BLOCK
#define BLOCK 32768
#endif
#define LEVELS 32 /* of the tree above the groups */

/* The partial sums of one block under way. */
typedef struct {
    int order, dtype;
    size_t n;              /* elements in this block */
    size_t groups;         /* added so far */
    int depth;             /* TREE: subtrees on the stack, largest first */
    float *slot[LEVELS];   /* TREE: their sums; FOLD: slot[0] */
    int empty[LEVELS];     /* TREE: a subtree without a stream has no sum */
    double *wide;          /* DOUBLE: the sum */
    float *narrow;         /* DOUBLE: eight widened streams of halves */
    size_t stride;
} block_sum;

static size_t tree_levels(size_t streams) {
    size_t levels = 1;
    for (size_t groups = (streams + GROUP - 1) / GROUP; groups > 1; groups = (groups + 1) / 2) levels++;
    return levels;
}

static size_t sum_room(int order, size_t streams, size_t block) {
    if (order == DOUBLE) return block * 8 + GROUP * block * 4;
    return 4 * block * (order == TREE ? tree_levels(streams) : 1);
}

static block_sum block_sum_in(void *room, int order, int dtype, size_t streams, size_t block) {
    block_sum sum = {.order = order, .dtype = dtype, .stride = block};
    if (order == DOUBLE) {
        sum.wide = room;
        sum.narrow = (float *)(sum.wide + block);
        return sum;
    }
    const size_t slots = order == TREE ? tree_levels(streams) : 1;
    for (size_t l = 0; l < slots && l < LEVELS; l++) sum.slot[l] = (float *)room + l * block;
    return sum;
}

static void begin_block(block_sum *sum, size_t n) {
    sum->n = n;
    sum->groups = 0;
    sum->depth = 0;
    sum->empty[0] = 1;
}

static void add_double(block_sum *sum, const uint8_t *const *in, const double *weights, int k) {
    const unaligned_float *wide[GROUP];
    if (sum->groups == 0) /* -0.0 + x is x, for every x */
        for (size_t j = 0; j < sum->n; j++) sum->wide[j] = -0.0;
    for (int i = 0; i < k; i++) {
        float *room = sum->narrow + (size_t)i * sum->stride;
        if (sum->dtype != FP32) lanes->widen(room, in[i], sum->n, sum->dtype);
        wide[i] = sum->dtype == FP32 ? (const unaligned_float *)in[i] : room;
    }
    lanes->sum_double(sum->wide, wide, weights, k, sum->n);
}

static void add_fold(block_sum *sum, float *dst, const uint8_t *const *in, const float *weights,
                     int k, const float *scale) {
    const float *left = sum->empty[0] ? NULL : sum->slot[0];
    if (k) {
        lanes->sum(dst ? dst : sum->slot[0], left, in, weights, k, sum->n, dst ? scale : NULL, 0,
                   sum->dtype);
        sum->empty[0] = 0;
    } else if (dst && left) {
        const uint8_t *only = (const uint8_t *)left;
        lanes->sum(dst, NULL, &only, NULL, 1, sum->n, scale, 0, FP32);
    } else if (dst) {
        memset(dst, 0, sum->n * 4);
    }
}

/* Pop the smaller of the two topmost subtrees into the larger, or both into dst. */
static void merge_top(block_sum *sum, float *dst, const float *scale) {
    const int left = sum->depth - 2, right = sum->depth - 1;
    if (sum->empty[left]) {
        float *spare = sum->slot[left];
        sum->slot[left] = sum->slot[right];
        sum->slot[right] = spare;
        sum->empty[left] = sum->empty[right];
    } else if (!sum->empty[right]) {
        const uint8_t *in = (const uint8_t *)sum->slot[right];
        lanes->sum(dst ? dst : sum->slot[left], sum->slot[left], &in, NULL, 1, sum->n,
                   dst ? scale : NULL, 1, FP32);
        sum->depth--;
        return;
    }
    sum->depth--;
    if (!dst) return;
    const uint8_t *only = (const uint8_t *)sum->slot[left];
    if (sum->empty[left]) memset(dst, 0, sum->n * 4);
    else lanes->sum(dst, NULL, &only, NULL, 1, sum->n, scale, 1, FP32);
}

/* A binary counter over groups: subtrees merge when both are complete, or at the end. A group's
 * first merge happens in registers. dst is given with the last group only. */
static void add_tree(block_sum *sum, float *dst, const uint8_t *const *in, const float *weights,
                     int k, const float *scale) {
    int merges = dst ? sum->depth : __builtin_ctzll(~(unsigned long long)sum->groups);
    const int top = sum->depth - 1;
    if (merges && k && !sum->empty[top]) {
        float *into = dst && merges == 1 ? dst : sum->slot[top];
        lanes->sum(into, sum->slot[top], in, weights, k, sum->n, into == dst ? scale : NULL, 1,
                   sum->dtype);
        if (into == dst) return;
        merges--;
    } else if (!merges && dst && k) {
        lanes->sum(dst, NULL, in, weights, k, sum->n, scale, 1, sum->dtype);
        return;
    } else {
        sum->empty[sum->depth] = k == 0;
        if (k) lanes->sum(sum->slot[sum->depth], NULL, in, weights, k, sum->n, NULL, 1, sum->dtype);
        sum->depth++;
        if (!merges && dst) memset(dst, 0, sum->n * 4);
    }
    while (merges--) merge_top(sum, merges ? NULL : dst, scale);
}

/* Add up to eight streams; with the last group, dst receives scale * sum. k may be 0: a group
 * of streams known to be zero. Inputs may be dst itself: dst is written after they are read. */
static void add_group(block_sum *sum, float *dst, const uint8_t *const *in, stream_weights weights,
                      int k, const double *scale) {
    const float narrow_scale = scale ? (float)*scale : 1.0f;
    const float *factor = scale ? &narrow_scale : NULL;
    if (sum->order == DOUBLE) {
        add_double(sum, in, weights.wide, k);
        if (dst) lanes->round_double(dst, sum->wide, scale ? *scale : 1.0, sum->n);
    } else if (sum->order == FOLD) {
        add_fold(sum, dst, in, weights.narrow, k, factor);
    } else {
        add_tree(sum, dst, in, weights.narrow, k, factor);
    }
    sum->groups++;
}

/* ---- the batch form ---- */

/* A reduction under way: in blocks of `block` elements, with `room` bytes of scratch a thread. */
typedef struct {
    const reduction *job;
    size_t block, room;
    uint8_t *rooms;
    double *norms; /* per block, or NULL */
} reduction_run;

static size_t block_elements(size_t count) {
    return count < BLOCK ? (count + 63) / 64 * 64 : BLOCK;
}

/* One group whose sum goes straight to the output needs no scratch at all. */
static size_t reduction_room(const reduction *job, size_t block) {
    const int direct = job->streams <= GROUP && job->order != DOUBLE;
    const size_t sums = direct ? 0 : sum_room(job->order, job->streams, block);
    return sums + (job->finish == STORE ? 0 : 4 * block);
}

static void cast_to(uint16_t *dst, const float *x, size_t n, int dtype) {
    (dtype == FP16 ? lanes->to_fp16 : lanes->to_bf16)(dst, x, n);
}

static void cast_tensor(uint16_t *wire, float *residual, const float *x, size_t count, int dtype) {
    enum { PIECE = 2048 };
    float exact[PIECE], sent[PIECE];
    if (!residual) {
        cast_to(wire, x, count, dtype);
        return;
    }
    for (size_t at = 0; at < count; at += PIECE) {
        const size_t rest = count - at, n = rest < PIECE ? rest : PIECE;
        const uint8_t *in = (const uint8_t *)(x + at);
        lanes->sum(exact, residual + at, &in, NULL, 1, n, NULL, 0, FP32);
        cast_to(wire + at, exact, n, dtype);
        lanes->widen(sent, (const uint8_t *)(wire + at), n, dtype);
        lanes->keep_loss(residual + at, sent, exact, n);
    }
}

static void finish_block(const reduction *job, const float *mean, size_t at, size_t n) {
    if (job->finish == CAST)
        cast_tensor(job->wire + at, job->residual ? job->residual + at : NULL, mean, n, job->wire_dtype);
    else if (job->finish == SGD)
        lanes->sgd(job->param + at, job->first ? job->first + at : NULL, mean, n, &job->sgd);
    else
        lanes->adamw(job->param + at, job->first + at, job->second + at, mean, n, &job->adamw);
}

static void reduce_block(const reduction *job, block_sum *sum, float *dst, size_t at) {
    const size_t item = job->dtype == FP32 ? 4 : 2;
    const uint8_t *in[GROUP];
    for (size_t g = 0; g < job->streams; g += GROUP) {
        const int last = job->streams - g <= GROUP;
        const int k = last ? (int)(job->streams - g) : GROUP;
        for (int i = 0; i < k; i++) in[i] = job->in[g + (size_t)i] + at * item;
        const stream_weights weights = {job->weights.narrow ? job->weights.narrow + g : NULL,
                                        job->weights.wide ? job->weights.wide + g : NULL};
        add_group(sum, last ? dst : NULL, in, weights, k, job->scale);
    }
}

static void reduce_blocks(void *context, int thread, size_t begin, size_t end) {
    const reduction_run *run = context;
    const reduction *job = run->job;
    uint8_t *room = run->room ? run->rooms + run->room * (size_t)thread : NULL;
    float *mean = job->finish == STORE ? NULL : (float *)(room + run->room) - run->block;
    block_sum sum = block_sum_in(room, job->order, job->dtype, job->streams, run->block);
    for (size_t b = begin; b < end; b++) {
        const size_t at = b * run->block, rest = job->count - at;
        const size_t n = rest < run->block ? rest : run->block;
        float *dst = job->finish == STORE ? job->out + at : mean;
        begin_block(&sum, n);
        reduce_block(job, &sum, dst, at);
        if (run->norms) run->norms[b] = lanes->squared_norm(dst, n);
        if (job->finish != STORE) finish_block(job, mean, at, n);
    }
}

static int reduce_streams(const reduction *job, int threads, double *squared_norm) {
    const size_t item = job->dtype == FP32 ? 4 : 2, block = block_elements(job->count);
    const size_t blocks = job->count ? (job->count + block - 1) / block : 0;
    reduction_run run = {.job = job, .block = block, .room = reduction_room(job, block)};
    threads = worthwhile_threads(threads, job->streams * job->count * item);
    const size_t scratch = run.room * (size_t)threads, norms = squared_norm ? 8 * blocks : 0;
    if (scratch + norms && !(run.rooms = malloc(scratch + norms))) return 0;
    if (norms) run.norms = (double *)(run.rooms + scratch);
    run_parallel(reduce_blocks, &run, threads, blocks);
    if (squared_norm) *squared_norm = 0.0;
    for (size_t b = 0; norms && b < blocks; b++) *squared_norm += run.norms[b];
    free(run.rooms);
    return 1;
}

/* ---- one group of a stream ---- */

typedef struct {
    const group_step *step;
    size_t room;
    uint8_t *rooms;
} group_run;

static void add_group_blocks(void *context, int thread, size_t begin, size_t end) {
    const group_run *run = context;
    const group_step *step = run->step;
    const size_t item = step->dtype == FP32 ? 4 : 2;
    const float scale = step->scale ? (float)*step->scale : 1.0f;
    block_sum sum = block_sum_in(run->rooms + run->room * (size_t)thread, DOUBLE, step->dtype,
                                 GROUP, BLOCK);
    for (size_t b = begin; b < end; b++) {
        const size_t at = b * BLOCK, rest = step->count - at, n = rest < BLOCK ? rest : BLOCK;
        const uint8_t *in[GROUP];
        for (int i = 0; i < step->k; i++) in[i] = step->in[i] + at * item;
        if (step->dst) {
            lanes->sum(step->dst + at, step->left ? step->left + at : NULL, in, step->weights.narrow,
                       step->k, n, step->scale ? &scale : NULL, step->tree, step->dtype);
        } else {
            sum.wide = step->wide + at;
            sum.n = n;
            sum.groups = 1; /* wide already holds a sum */
            add_double(&sum, in, step->weights.wide, step->k);
        }
    }
}

static int add_streams(const group_step *step, int threads) {
    group_run run = {.step = step, .room = sum_room(DOUBLE, GROUP, BLOCK)};
    threads = worthwhile_threads(threads, (size_t)step->k * step->count * 4);
    if (!(run.rooms = malloc(run.room * (size_t)threads))) return 0;
    run_parallel(add_group_blocks, &run, threads, (step->count + BLOCK - 1) / BLOCK);
    free(run.rooms);
    return 1;
}

static void round_wide(float *dst, const double *wide, double scale, size_t n) {
    lanes->round_double(dst, wide, scale, n);
}

#endif
