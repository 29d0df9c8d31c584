/* One table of kernels per instruction set, and the choice between them at import.
 *
 * AVX2 is chosen at run time because it pays for halves (F16C) and for data in the cache; in
 * DRAM the baseline reaches the same limit. Nothing here needs -march: the builder's CPU is not
 * the function's.
 */
#ifndef SMLT_LANES_H
#define SMLT_LANES_H

#include "kernels.h"

typedef float unaligned_float __attribute__((aligned(1), may_alias));

typedef struct {
    const char *name;
    void (*sum)(float *, const float *, const uint8_t *const *, const float *, int, size_t,
                const float *, int, int);
    void (*widen)(float *, const uint8_t *, size_t, int);
    void (*sum_double)(double *, const unaligned_float *const *, const double *, int, size_t);
    void (*round_double)(float *, const double *, double, size_t);
    double (*squared_norm)(const float *, size_t);
    void (*to_bf16)(uint16_t *, const float *, size_t);
    void (*to_fp16)(uint16_t *, const float *, size_t);
    void (*keep_loss)(float *, const float *, const float *, size_t);
    void (*sgd)(float *, float *, const float *, size_t, const sgd_rule *);
    void (*adamw)(float *, float *, float *, const float *, size_t, const adamw_rule *);
} lane_kernels;

static inline uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* Round to nearest even; NaNs stay NaNs and become quiet. */
static inline uint16_t bf16_from_float(float x) {
    const uint32_t bits = float_bits(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

static inline uint16_t fp16_from_float(float x) {
    const uint32_t bits = float_bits(x), sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    float absolute;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above */
    if (magnitude < 0x38800000u) {
        /* One unit in the last place of 0.5f is the smallest fp16: the add rounds for us. */
        memcpy(&absolute, &magnitude, 4);
        return (uint16_t)(sign | (float_bits(absolute + 0.5f) - 0x3f000000u));
    }
    magnitude += 0xc8000fffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | (magnitude >> 13));
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SMLT_X86 1
#include <cpuid.h>
#include <immintrin.h>
#define ISA(name) name##_avx2
#define ISA_NAME "avx2"
#define ISA_HAS_F16C 1
#define TARGET __attribute__((target("avx2,f16c")))
#define LANES 8
#include "lane_kernels.h"
#undef ISA
#undef ISA_NAME
#undef ISA_HAS_F16C
#undef TARGET
#undef LANES
#endif

#define ISA(name) name##_baseline
#define ISA_NAME "baseline"
#define TARGET
#define LANES 4
#include "lane_kernels.h"
#undef ISA
#undef ISA_NAME
#undef TARGET
#undef LANES

static const lane_kernels *lanes = &kernels_baseline;

/* What the kernels are compiled for, and whether the system saves its registers. Asked by hand:
 * `__builtin_cpu_supports` says no to everything when zig has compiled it. */
static int cpu_has_avx2(void) {
#ifdef SMLT_X86
    unsigned a, b, c, d, saved, high;
    const unsigned features = bit_POPCNT | bit_OSXSAVE | bit_AVX | bit_F16C;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & features) != features) return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if ((saved & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    return (b & bit_AVX2) && (b & bit_BMI) && (b & bit_BMI2);
#else
    return 0;
#endif
}

/* Returns 0 where this machine lacks the instruction set. */
static int choose_lanes(const char *name) {
#ifdef SMLT_X86
    if (!strcmp(name, "avx2") && cpu_has_avx2()) {
        lanes = &kernels_avx2;
        return 1;
    }
#endif
    if (strcmp(name, "baseline")) return 0;
    lanes = &kernels_baseline;
    return 1;
}

#endif
