/* The four ways to store a chunk of at most 64 KB: raw, zero, LZ4, bitmap.
 *
 * bitmap: which words are not zero, in two levels, then those words.
 *     summary   1 bit for each byte of the map      ceil(map / 8) bytes
 *     map       1 bit for each word, zero bytes left out
 *     words     the non-zero ones, in order
 * Words are compared as bits, so -0.0 and NaN payloads survive. Every decoder is given exact
 * input and output sizes and stays inside them whatever the bytes say.
 */
#ifndef SMLT_CHUNKS_H
#define SMLT_CHUNKS_H

#include "lanes.h"
#include "xxh3.h"

#define MAP_BYTES (CHUNK / 2 / 8) /* of two-byte words, the most there can be */

/* ---- copying ---- */

/* Tensors of this size leave the cache before anyone reads them again. */
#define STREAMED_BYTES ((size_t)8 << 20)

/* Copy past the cache: a plain store would first read the line that it overwrites. Source and
 * chunk are in the cache already, from the checksum. */
static void copy_streamed(uint8_t *dst, const uint8_t *src, size_t n) {
#ifdef SMLT_X86
    const size_t head = -(uintptr_t)dst % 16;
    if (n > 1024) {
        memcpy(dst, src, head);
        for (dst += head, src += head, n -= head; n >= 64; dst += 64, src += 64, n -= 64)
            for (int i = 0; i < 64; i += 16)
                _mm_stream_si128((__m128i *)(dst + i), _mm_loadu_si128((const __m128i *)(src + i)));
        _mm_sfence();
    }
#endif
    memcpy(dst, src, n);
}

static void copy_chunk(uint8_t *dst, const uint8_t *src, size_t n, size_t tensor_bytes) {
    if (tensor_bytes >= STREAMED_BYTES) copy_streamed(dst, src, n);
    else memcpy(dst, src, n);
}

/* ---- the probe ---- */

enum { PROBED_LINES = 16, SEEN = 256 };

static inline uint32_t word_at(const uint8_t *p, size_t i, int word) {
    uint16_t half;
    if (word == 4) return read32(p + 4 * i);
    memcpy(&half, p + 2 * i, 2);
    return half;
}

/* Look at 16 cache lines: many zeros ask for BITMAP, many repeated words for LZ4, else RAW. The
 * first four lines decide for dense data, which is most data and must cost next to nothing. */
static int probe(const uint8_t *chunk, size_t bytes, int word) {
    const size_t lines = bytes / 64;
    uint32_t seen[SEEN] = {0};
    int words = 0, zeros = 0, repeats = 0;
    if (lines < 4) return RAW;
    const int samples = lines < PROBED_LINES ? (int)lines : PROBED_LINES;
    for (int s = 0; s < samples; s++) {
        /* Lines 0, 8, 4, 12, ... in bit-reversed order, so that the first four are spread. */
        const int spread = samples == PROBED_LINES
                               ? (s & 1) << 3 | (s & 2) << 1 | (s & 4) >> 1 | (s & 8) >> 3 : s;
        const uint8_t *line = chunk + (size_t)spread * (lines / (size_t)samples) * 64;
        for (size_t i = 0; i < 64 / (size_t)word; i++, words++) {
            const uint32_t value = word_at(line, i, word);
            uint32_t *slot = &seen[(value * PRIME32_1) >> 24];
            if (value == 0) zeros++;
            else if (*slot == value) repeats++;
            *slot = value;
        }
        if (s == 3 && samples == PROBED_LINES && zeros * 10 < words && repeats * 4 < words) return RAW;
    }
    if (repeats * 2 > words - zeros) return LZ4;
    return zeros * 10 >= words * 3 ? BITMAP : RAW;
}

/* ---- bitmap ---- */

/* Written once; the variants below differ in what the compiler may use: without the popcnt
 * instruction counting takes longer than all the rest. */
#define ANY_CPU static inline __attribute__((always_inline))

#ifdef SMLT_X86
#define HASWELL __attribute__((target("avx2,bmi,bmi2,popcnt")))

/* Set the map's bits of as many whole vectors as there are; returns the words done. */
HASWELL static size_t map_words_avx2(uint8_t *map, const uint8_t *chunk, size_t words, int word) {
    const __m256i zero = _mm256_setzero_si256();
    size_t i = 0;
    if (word == 4)
        for (; i + 16 <= words; i += 16) {
            read_ahead(chunk + 4 * i);
            for (size_t half = i; half < i + 16; half += 8) {
                const __m256i v = _mm256_loadu_si256((const __m256i *)(chunk + 4 * half));
                map[half / 8] = (uint8_t)~_mm256_movemask_ps((__m256)_mm256_cmpeq_epi32(v, zero));
            }
        }
    else
        for (; i + 16 <= words; i += 16) {
            const __m256i same = _mm256_cmpeq_epi16(_mm256_loadu_si256((const __m256i *)(chunk + 2 * i)), zero);
            const __m128i packed = _mm_packs_epi16(_mm256_castsi256_si128(same), _mm256_extracti128_si256(same, 1));
            const uint16_t bits = (uint16_t)~_mm_movemask_epi8(packed);
            memcpy(map + i / 8, &bits, 2);
        }
    return i;
}
#endif

/* Set a map bit for each word from i on that is not zero. */
static void map_words(uint8_t *map, const uint8_t *chunk, size_t i, size_t words, int word) {
    for (; i < words; i++) map[i / 8] |= (uint8_t)((word_at(chunk, i, word) != 0) << (i % 8));
}

#define SLACK 64 /* bytes that the encoder may write past a chunk's end */

ANY_CPU void copy_word(uint8_t *dst, const uint8_t *base, int i, int word) {
    if (word == 4) memcpy(dst, base + 4 * i, 4);
    else memcpy(dst, base + 2 * i, 2);
}

/* Copy the words whose bits are set in one 64-bit piece of the map; returns the end of dst. The
 * first four are copied whether or not they are there: sparse data would mispredict each piece. */
ANY_CPU uint8_t *gather(uint8_t *dst, const uint8_t *base, uint64_t bits, int word) {
    uint8_t *end = dst + (size_t)__builtin_popcountll(bits) * (size_t)word;
    if (bits == ~0ull) {
        memcpy(dst, base, 64 * (size_t)word);
        return end;
    }
    for (int i = 0; i < 4; i++, dst += word, bits &= bits - 1)
        copy_word(dst, base, __builtin_ctzll(bits | 1ull << 63), word);
    for (; bits; bits &= bits - 1, dst += word) copy_word(dst, base, __builtin_ctzll(bits), word);
    return end;
}

/* The last piece may be shorter than 64 words: nothing past its end may be read. */
ANY_CPU uint8_t *gather_last(uint8_t *dst, const uint8_t *base, uint64_t bits, int word) {
    for (; bits; bits &= bits - 1, dst += word) copy_word(dst, base, __builtin_ctzll(bits), word);
    return dst;
}

/* One bit for each byte of a piece of the map that is not zero. */
ANY_CPU unsigned kept_bytes(uint64_t piece) {
    const uint64_t low = 0x7f7f7f7f7f7f7f7full;
    const uint64_t top = (((piece & low) + low) | piece) & ~low;
    return (unsigned)(((top >> 7) * 0x0102040810204080ull) >> 56);
}

/* Write the summary's byte and the kept bytes of one piece; four without asking, as above. */
ANY_CPU uint8_t *put_map(uint8_t *at, uint8_t *summary, uint64_t piece) {
    unsigned kept = kept_bytes(piece);
    uint8_t *end = at + __builtin_popcount(kept);
    *summary = (uint8_t)kept;
    for (int i = 0; i < 4; i++, kept &= kept - 1)
        *at++ = (uint8_t)(piece >> 8 * __builtin_ctz(kept | 0x80));
    for (; kept; kept &= kept - 1) *at++ = (uint8_t)(piece >> 8 * __builtin_ctz(kept));
    return end;
}

ANY_CPU size_t put_bitmap(uint8_t *dst, const uint8_t *chunk, const uint64_t *pieces, size_t count,
                          int word, size_t limit) {
    uint16_t filled[MAP_BYTES / 8]; /* the pieces with any bit: sparse data has few */
    size_t n = 0, set = 0, kept = 8 * count;
    for (size_t p = 0; p < count; p++) {
        filled[n] = (uint16_t)p;
        n += pieces[p] != 0;
        set += (size_t)__builtin_popcountll(pieces[p]);
    }
    if (set == 0) return 0;
    if (count + kept + set * (size_t)word >= limit) { /* only then is the exact size in doubt */
        kept = 0;
        for (size_t p = 0; p < count; p++) kept += (size_t)__builtin_popcount(kept_bytes(pieces[p]));
        if (count + kept + set * (size_t)word >= limit) return limit;
    }
    uint8_t *at = dst + count;
    memset(dst, 0, count);
    for (size_t k = 0; k < n; k++) at = put_map(at, dst + filled[k], pieces[filled[k]]);
    const size_t whole = n - (filled[n - 1] == count - 1);
    for (size_t k = 0; k < whole; k++)
        at = gather(at, chunk + filled[k] * 64 * (size_t)word, pieces[filled[k]], word);
    at = gather_last(at, chunk + (count - 1) * 64 * (size_t)word, pieces[count - 1], word);
    return (size_t)(at - dst);
}

/* Rebuild the map; returns the bytes read, or 0 if they are no map of `words` words. */
ANY_CPU size_t read_map(uint8_t *map, const uint8_t *src, size_t size, size_t words) {
    const size_t map_bytes = (words + 7) / 8, summary = (map_bytes + 7) / 8;
    size_t at = summary;
    if (size < summary) return 0;
    for (size_t s = 0; s < summary; s++) {
        for (unsigned bits = src[s]; bits; bits &= bits - 1) {
            const size_t b = 8 * s + (size_t)__builtin_ctz(bits);
            if (b >= map_bytes || at >= size) return 0;
            map[b] = src[at++];
        }
    }
    return words % 8 && map[map_bytes - 1] >> (words % 8) ? 0 : at;
}

ANY_CPU const uint8_t *scatter(uint8_t *dst, const uint8_t *src, uint64_t bits, size_t words, int word) {
    if (bits == ~0ull) {
        memcpy(dst, src, 64 * (size_t)word);
        return src + 64 * (size_t)word;
    }
    memset(dst, 0, words * (size_t)word);
    if (word == 4)
        for (; bits; bits &= bits - 1, src += 4) memcpy(dst + 4 * __builtin_ctzll(bits), src, 4);
    else
        for (; bits; bits &= bits - 1, src += 2) memcpy(dst + 2 * __builtin_ctzll(bits), src, 2);
    return src;
}

ANY_CPU int get_bitmap(uint8_t *dst, size_t bytes, const uint8_t *src, size_t size, int word) {
    uint64_t pieces[MAP_BYTES / 8] = {0};
    const size_t words = bytes / (size_t)word, count = (words + 63) / 64;
    const size_t read = read_map((uint8_t *)pieces, src, size, words);
    size_t set = 0;
    if (!read || bytes % (size_t)word) return 0;
    for (size_t p = 0; p < count; p++) set += (size_t)__builtin_popcountll(pieces[p]);
    if (size - read != set * (size_t)word) return 0;
    src += read;
    for (size_t p = 0; p < count; p++) {
        const size_t rest = words - p * 64;
        src = scatter(dst + p * 64 * (size_t)word, src, pieces[p], rest < 64 ? rest : 64, word);
    }
    return 1;
}

#ifdef SMLT_X86
HASWELL static size_t put_bitmap_avx2(uint8_t *dst, const uint8_t *chunk, const uint64_t *pieces,
                                      size_t count, int word, size_t limit) {
    return put_bitmap(dst, chunk, pieces, count, word, limit);
}

HASWELL static int get_bitmap_avx2(uint8_t *dst, size_t bytes, const uint8_t *src, size_t size, int word) {
    return get_bitmap(dst, bytes, src, size, word);
}
#endif

/* Returns the stored size, 0 for a chunk of zeros, or `limit` where the form would not be smaller
 * than that. dst has room for `limit` bytes and SLACK more. */
static size_t bitmap_encode(uint8_t *dst, const uint8_t *chunk, size_t bytes, int word, size_t limit) {
    uint64_t pieces[MAP_BYTES / 8];
    const size_t words = bytes / (size_t)word, count = (words + 63) / 64;
    size_t mapped = 0;
    memset(pieces, 0, 8 * count);
#ifdef SMLT_X86
    if (lanes != &kernels_baseline) mapped = map_words_avx2((uint8_t *)pieces, chunk, words, word);
#endif
    map_words((uint8_t *)pieces, chunk, mapped, words, word);
#ifdef SMLT_X86
    if (lanes != &kernels_baseline) return put_bitmap_avx2(dst, chunk, pieces, count, word, limit);
#endif
    return put_bitmap(dst, chunk, pieces, count, word, limit);
}

/* Returns 1 when `size` bytes were exactly a bitmap chunk of `bytes` bytes, else 0. */
static int bitmap_decode(uint8_t *dst, size_t bytes, const uint8_t *src, size_t size, int word) {
#ifdef SMLT_X86
    if (lanes != &kernels_baseline) return get_bitmap_avx2(dst, bytes, src, size, word);
#endif
    return get_bitmap(dst, bytes, src, size, word);
}

/* ---- LZ4 blocks (LZ4 block format description, Collet): decoding only ---- */

static size_t lz4_length(const uint8_t **src, const uint8_t *end, size_t length) {
    uint8_t more = 255;
    if (length < 15) return length;
    while (more == 255 && *src < end) length += more = *(*src)++;
    return more == 255 ? SIZE_MAX : length; /* the input ended inside a length */
}

static void lz4_copy_match(uint8_t *dst, size_t offset, size_t length) {
    const uint8_t *from = dst - offset;
    if (offset >= length) {
        memcpy(dst, from, length);
    } else if (offset == 1) {
        memset(dst, *from, length);
    } else {
        /* The match overlaps itself: what has been copied doubles the period. */
        for (size_t period = offset; length; period *= 2) {
            const size_t n = period < length ? period : length;
            memcpy(dst, from, n);
            dst += n;
            length -= n;
        }
    }
}

/* Returns 1 when `size` bytes decode to exactly `bytes`, else 0. */
static int lz4_decode(uint8_t *dst, size_t bytes, const uint8_t *src, size_t size) {
    const uint8_t *end = src + size;
    uint8_t *at = dst, *stop = dst + bytes;
    while (src < end) {
        const unsigned token = *src++;
        const size_t literals = lz4_length(&src, end, token >> 4);
        if (literals > (size_t)(end - src) || literals > (size_t)(stop - at)) return 0;
        memcpy(at, src, literals);
        at += literals;
        src += literals;
        if (src == end) return at == stop; /* a block ends with literals */
        if (end - src < 2) return 0;
        const size_t offset = src[0] | (size_t)src[1] << 8;
        src += 2;
        const size_t length = lz4_length(&src, end, token & 15);
        if (length == SIZE_MAX || length + 4 > (size_t)(stop - at)) return 0;
        if (offset == 0 || offset > (size_t)(at - dst)) return 0;
        lz4_copy_match(at, offset, length + 4);
        at += length + 4;
    }
    return 0;
}

/* ---- one chunk, whatever its mode ---- */

static int decode_chunk(uint8_t *dst, size_t bytes, const uint8_t *src, size_t size, int mode, int word) {
    switch (mode) {
    case RAW:
        if (size == bytes) memcpy(dst, src, bytes);
        return size == bytes;
    case ZERO:
        memset(dst, 0, bytes);
        return size == 0;
    case LZ4: return lz4_decode(dst, bytes, src, size);
    case BITMAP: return bitmap_decode(dst, bytes, src, size, word);
    }
    return 0;
}

#endif
