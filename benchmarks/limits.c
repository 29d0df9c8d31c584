/* The machine's limits that the kernels are held to: reading, and nothing else. */
#include <stddef.h>

typedef float lane __attribute__((vector_size(32), aligned(4), may_alias));
#ifdef __x86_64__
#define TARGET __attribute__((target("avx2")))
#else
#define TARGET
#endif

enum { BLOCK = 32768, STREAMS = 8 };

/* Read `arrays` arrays, eight at a time, in blocks, as a reduction must; nothing is written. */
TARGET float read_streams(const float *const *in, size_t arrays, size_t count) {
    lane a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t block = 0; block < count; block += BLOCK)
        for (size_t first = 0; first < arrays; first += STREAMS) {
            const size_t last = first + STREAMS < arrays ? first + STREAMS : arrays;
            const size_t end = block + BLOCK < count ? block + BLOCK : count;
            for (size_t j = block; j + 32 <= end; j += 32)
                for (size_t i = first; i < last; i++) {
                    const float *p = in[i] + j;
                    a += *(const lane *)p;
                    b += *(const lane *)(p + 8);
                    c += *(const lane *)(p + 16);
                    d += *(const lane *)(p + 24);
                }
        }
    a += b + c + d;
    return a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}
