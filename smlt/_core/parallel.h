/* Split a range of units over threads that live for one call: nothing survives a fork. */
#ifndef SMLT_PARALLEL_H
#define SMLT_PARALLEL_H

#include <pthread.h>

#include "kernels.h"

#define THREAD_BYTES ((size_t)1 << 20) /* of input: less is not worth a thread */

typedef void (*range_task)(void *context, int thread, size_t begin, size_t end);

typedef struct {
    range_task task;
    void *context;
    int thread;
    size_t begin, end;
} range_share;

static void *run_share(void *argument) {
    const range_share *share = argument;
    share->task(share->context, share->thread, share->begin, share->end);
    return NULL;
}

/* Returns when all units are done. Where a thread cannot be had, the caller does its share. */
static void run_parallel(range_task task, void *context, int threads, size_t units) {
    pthread_t handle[MAX_THREADS];
    range_share share[MAX_THREADS];
    int started[MAX_THREADS] = {0};
    if (threads == 1) {
        task(context, 0, 0, units);
        return;
    }
    for (int t = 0; t < threads; t++)
        share[t] = (range_share){task, context, t, units * (size_t)t / (size_t)threads,
                                 units * (size_t)(t + 1) / (size_t)threads};
    for (int t = 1; t < threads; t++)
        started[t] = pthread_create(&handle[t], NULL, run_share, &share[t]) == 0;
    for (int t = 0; t < threads; t++)
        if (!started[t]) run_share(&share[t]);
    for (int t = 1; t < threads; t++)
        if (started[t]) pthread_join(handle[t], NULL);
}

/* As many threads as asked for, but none for less than a megabyte: starting one costs more. */
static int worthwhile_threads(int asked, size_t bytes) {
    const size_t useful = bytes / THREAD_BYTES;
    int threads = asked < MAX_THREADS ? asked : MAX_THREADS;
    if (useful < (size_t)threads) threads = (int)useful;
    return threads < 1 ? 1 : threads;
}

#endif
