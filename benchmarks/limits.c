/* The machine's limits that the kernels are held to: reading, and copying, and nothing else. */
#include <stddef.h>
#include <stdint.h>

typedef float lane __attribute__((vector_size(32), aligned(4), may_alias));
#ifdef __x86_64__
#define TARGET __attribute__((target("avx2")))
#else
#define TARGET
#endif

/* Read `streams` arrays, `group` at a time, as a reduction must; nothing is written. */
TARGET float read_streams(const float *const *in, size_t streams, size_t group, size_t count) {
    lane sum[8] = {{0}};
    for (size_t block = 0; block < count; block += 4096)
        for (size_t g = 0; g < streams; g += group) {
            const size_t last = g + group < streams ? g + group : streams;
            const size_t end = block + 4096 < count ? block + 4096 : count;
            for (size_t j = block; j + 32 <= end; j += 32)
                for (size_t i = g; i < last; i++) {
                    const float *p = in[i] + j;
                    sum[0] += *(const lane *)p;
                    sum[1] += *(const lane *)(p + 8);
                    sum[2] += *(const lane *)(p + 16);
                    sum[3] += *(const lane *)(p + 24);
                }
        }
    sum[0] += sum[1] + sum[2] + sum[3];
    return sum[0][0] + sum[0][1] + sum[0][2] + sum[0][3] + sum[0][4] + sum[0][5] + sum[0][6] + sum[0][7];
}
