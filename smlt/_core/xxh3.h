/* XXH3, 64 bits, seed 0: the checksum of headers and chunks.
 *
 * Written from the XXH3 algorithm description (Collet, xxHash repository, doc/xxhash_spec.md) and
 * held to the `xxhash` package by the tests. It finds accidents, not forgeries.
 */
#ifndef SMLT_XXH3_H
#define SMLT_XXH3_H

#include "lanes.h"

#define PRIME32_1 0x9E3779B1u
#define PRIME32_2 0x85EBCA77u
#define PRIME32_3 0xC2B2AE3Du
#define PRIME64_1 0x9E3779B185EBCA87ull
#define PRIME64_2 0xC2B2AE3D27D4EB4Full
#define PRIME64_3 0x165667B19E3779F9ull
#define PRIME64_4 0x85EBCA77C2B2AE63ull
#define PRIME64_5 0x27D4EB2F165667C5ull

enum {
    STRIPE = 64,
    SECRET_BYTES = 192,
    STRIPES_PER_ROUND = (SECRET_BYTES - STRIPE) / 8,
    ROUND = STRIPE * STRIPES_PER_ROUND,
};

static const uint8_t xxh3_secret[SECRET_BYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint64_t read64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, 8);
    return value;
}

static inline uint64_t fold_product(uint64_t a, uint64_t b) {
    const unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t avalanche(uint64_t h) {
    h = (h ^ (h >> 37)) * 0x165667919E3779F9ull;
    return h ^ (h >> 32);
}

static inline uint64_t avalanche64(uint64_t h) {
    h = (h ^ (h >> 33)) * PRIME64_2;
    h = (h ^ (h >> 29)) * PRIME64_3;
    return h ^ (h >> 32);
}

static inline uint64_t mix16(const uint8_t *p, const uint8_t *secret) {
    return fold_product(read64(p) ^ read64(secret), read64(p + 8) ^ read64(secret + 8));
}

static uint64_t xxh3_to_16(const uint8_t *p, size_t n) {
    const uint8_t *secret = xxh3_secret;
    if (n > 8) {
        const uint64_t low = read64(p) ^ read64(secret + 24) ^ read64(secret + 32);
        const uint64_t high = read64(p + n - 8) ^ read64(secret + 40) ^ read64(secret + 48);
        return avalanche(n + __builtin_bswap64(low) + high + fold_product(low, high));
    }
    if (n >= 4) {
        uint64_t h = ((uint64_t)read32(p) << 32) + read32(p + n - 4);
        h ^= read64(secret + 8) ^ read64(secret + 16);
        h ^= (h << 49 | h >> 15) ^ (h << 24 | h >> 40);
        h *= 0x9FB21C651E98DF25ull;
        h = (h ^ ((h >> 35) + n)) * 0x9FB21C651E98DF25ull;
        return h ^ (h >> 28);
    }
    if (n) {
        const uint32_t word = (uint32_t)p[0] << 16 | (uint32_t)p[n >> 1] << 24 | p[n - 1] | (uint32_t)n << 8;
        return avalanche64(word ^ (uint64_t)(read32(secret) ^ read32(secret + 4)));
    }
    return avalanche64(read64(secret + 56) ^ read64(secret + 64));
}

static uint64_t xxh3_to_240(const uint8_t *p, size_t n) {
    const uint8_t *secret = xxh3_secret;
    uint64_t h = n * PRIME64_1;
    if (n <= 128) {
        for (size_t i = (n - 1) / 32 + 1; i-- > 0;)
            h += mix16(p + 16 * i, secret + 32 * i) + mix16(p + n - 16 * (i + 1), secret + 32 * i + 16);
        return avalanche(h);
    }
    for (size_t i = 0; i < 8; i++) h += mix16(p + 16 * i, secret + 16 * i);
    h = avalanche(h);
    for (size_t i = 8; i < n / 16; i++) h += mix16(p + 16 * i, secret + 16 * (i - 8) + 3);
    return avalanche(h + mix16(p + n - 16, secret + 136 - 17));
}

static void accumulate(uint64_t *acc, const uint8_t *p, const uint8_t *secret, size_t stripes) {
    for (size_t s = 0; s < stripes; s++, p += STRIPE, secret += 8)
        for (int i = 0; i < 8; i++) {
            const uint64_t value = read64(p + 8 * i), keyed = value ^ read64(secret + 8 * i);
            acc[i ^ 1] += value;
            acc[i] += (keyed & 0xffffffffu) * (keyed >> 32);
        }
}

/* Whole rounds of sixteen stripes, each followed by a scramble of the accumulators. */
static void whole_rounds(uint64_t *acc, const uint8_t *p, size_t rounds) {
    for (size_t r = 0; r < rounds; r++, p += ROUND) {
        accumulate(acc, p, xxh3_secret, STRIPES_PER_ROUND);
        for (int i = 0; i < 8; i++) {
            const uint64_t key = read64(xxh3_secret + SECRET_BYTES - STRIPE + 8 * i);
            acc[i] = (acc[i] ^ (acc[i] >> 47) ^ key) * PRIME32_1;
        }
    }
}

#ifdef SMLT_X86
#define AVX2 __attribute__((target("avx2")))

AVX2 static inline __m256i load256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

AVX2 static inline __m256i accumulated(__m256i acc, const uint8_t *p, const uint8_t *secret) {
    const __m256i value = load256(p), keyed = _mm256_xor_si256(value, load256(secret));
    const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
    acc = _mm256_add_epi64(acc, _mm256_shuffle_epi32(value, 0x4e));
    return _mm256_add_epi64(acc, product);
}

AVX2 static inline __m256i scrambled(__m256i acc, const uint8_t *secret) {
    const __m256i prime = _mm256_set1_epi64x(PRIME32_1);
    acc = _mm256_xor_si256(acc, _mm256_srli_epi64(acc, 47));
    acc = _mm256_xor_si256(acc, load256(secret));
    const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(acc, 32), prime);
    return _mm256_add_epi64(_mm256_mul_epu32(acc, prime), _mm256_slli_epi64(high, 32));
}

/* Chunks lie one behind the other, and one stream alone waits for memory at every page: the
 * processor's own prefetchers stop there. Asking a page ahead reads half as fast again. */
static inline void read_ahead(const uint8_t *p) {
    __builtin_prefetch((const void *)((uintptr_t)p + 4096));
}

AVX2 static void whole_rounds_avx2(uint64_t *acc, const uint8_t *p, size_t rounds) {
    __m256i low = load256(acc), high = load256(acc + 4);
    for (size_t r = 0; r < rounds; r++) {
        for (int s = 0; s < STRIPES_PER_ROUND; s++, p += STRIPE) {
            read_ahead(p);
            low = accumulated(low, p, xxh3_secret + 8 * s);
            high = accumulated(high, p + 32, xxh3_secret + 8 * s + 32);
        }
        low = scrambled(low, xxh3_secret + SECRET_BYTES - STRIPE);
        high = scrambled(high, xxh3_secret + SECRET_BYTES - STRIPE + 32);
    }
    _mm256_storeu_si256((__m256i *)acc, low);
    _mm256_storeu_si256((__m256i *)(acc + 4), high);
}
#endif

static uint64_t xxh3_long(const uint8_t *p, size_t n) {
    const size_t rounds = (n - 1) / ROUND, rest = n - 1 - rounds * ROUND;
    uint64_t acc[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3,
                       PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
#ifdef SMLT_X86
    if (lanes != &kernels_baseline) whole_rounds_avx2(acc, p, rounds);
    else
#endif
        whole_rounds(acc, p, rounds);
    accumulate(acc, p + rounds * ROUND, xxh3_secret, rest / STRIPE);
    accumulate(acc, p + n - STRIPE, xxh3_secret + SECRET_BYTES - STRIPE - 7, 1);
    uint64_t h = n * PRIME64_1;
    for (int i = 0; i < 4; i++)
        h += fold_product(acc[2 * i] ^ read64(xxh3_secret + 11 + 16 * i),
                          acc[2 * i + 1] ^ read64(xxh3_secret + 19 + 16 * i));
    return avalanche(h);
}

static uint64_t xxh3(const uint8_t *p, size_t n) {
    if (n > 240) return xxh3_long(p, n);
    return n > 16 ? xxh3_to_240(p, n) : xxh3_to_16(p, n);
}

#endif
