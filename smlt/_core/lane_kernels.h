/* The arithmetic of shard_reduce, written once over a vector of LANES floats.
 *
 * Included once per instruction set, with ISA(name), TARGET and LANES defined. Vectors are the
 * compiler's own (vector_size), so the same text gives SSE2, NEON and AVX2; the two places that
 * need an instruction by name (halves) are marked. Every load and store may be unaligned: shards
 * are slices of a receive buffer. No kernel may contract a multiply-add or reorder a sum: all
 * instruction sets give the same bits.
 */

#define STEP (4 * LANES) /* elements per round: four registers hide the latency of one add */

typedef float ISA(vf) __attribute__((vector_size(4 * LANES)));
typedef float ISA(vfu) __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef uint32_t ISA(vu) __attribute__((vector_size(4 * LANES)));
typedef uint16_t ISA(vh) __attribute__((vector_size(2 * LANES)));
typedef uint16_t ISA(vhu) __attribute__((vector_size(2 * LANES), aligned(1), may_alias));
typedef double ISA(vd) __attribute__((vector_size(4 * LANES)));
typedef float ISA(vfh) __attribute__((vector_size(2 * LANES), aligned(1), may_alias));

#define VF ISA(vf)
#define VU ISA(vu)
#define INLINE TARGET static inline __attribute__((always_inline))

INLINE VU ISA(select)(VU mask, VU yes, VU no) { return (mask & yes) | (~mask & no); }

/* ---- loads: fp32, fp16 and bf16 streams, widened to fp32 ---- */

INLINE VF ISA(load_fp16)(const uint8_t *p) {
#ifdef ISA_HAS_F16C
    return (VF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    const VU h = __builtin_convertvector(*(const ISA(vhu) *)p, VU);
    const VU magnitude = (h & 0x7fffu) << 13;
    const VU normal = magnitude + (112u << 23);
    const VU special = (magnitude + (224u << 23)) |
                       ((VU)(magnitude > (0x7c00u << 13)) & 0x00400000u); /* NaNs become quiet */
    /* A subnormal is a normal float minus the value of its assumed leading one: exact, and
     * right even where a library has told the CPU to treat denormals as zero. */
    const VF tiny = (VF)(magnitude + (113u << 23)) - 0x1p-14f;
    VU bits = ISA(select)((VU)(magnitude >= (0x7c00u << 13)), special, normal);
    bits = ISA(select)((VU)(magnitude < (0x0400u << 13)), (VU)tiny, bits);
    return (VF)(bits | ((h & 0x8000u) << 16));
#endif
}

INLINE VF ISA(load)(const uint8_t *stream, size_t element, const int dtype) {
    if (dtype == FP32) return *(const ISA(vfu) *)(stream + 4 * element);
    if (dtype == FP16) return ISA(load_fp16)(stream + 2 * element);
#ifdef ISA_HAS_F16C /* gcc 12 makes four instructions of the line below, where one does */
    return (VF)_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(stream + 2 * element))), 16);
#endif
    return (VF)(__builtin_convertvector(*(const ISA(vhu) *)(stream + 2 * element), VU) << 16);
}

INLINE void ISA(store)(float *p, VF value) { *(ISA(vfu) *)p = value; }
INLINE VF ISA(fetch)(const float *p) { return *(const ISA(vfu) *)p; }

/* ---- n-way sums: dst = (left +) sum of k <= 8 streams (* scale) ---- */

#define TERM(i) (weighted ? weights[i] * ISA(load)(in[i], j, dtype) : ISA(load)(in[i], j, dtype))
#define PAIR(i) (TERM(i) + TERM(i + 1))
#define QUAD(i) (PAIR(i) + PAIR(i + 2))

/* The left-complete binary tree over k leaves. */
INLINE VF ISA(tree_at)(const uint8_t *const *in, const float *weights, size_t j, const int k,
                       const int dtype, const int weighted) {
    switch (k) {
    case 1: return TERM(0);
    case 2: return PAIR(0);
    case 3: return PAIR(0) + TERM(2);
    case 4: return QUAD(0);
    case 5: return QUAD(0) + TERM(4);
    case 6: return QUAD(0) + PAIR(4);
    case 7: return QUAD(0) + (PAIR(4) + TERM(6));
    default: return QUAD(0) + QUAD(4);
    }
}

INLINE void ISA(tree_run)(float *dst, const float *left, const uint8_t *const *in,
                          const float *weights, size_t n, const float *scale, const int k,
                          const int dtype, const int weighted) {
    for (size_t j = 0; j < n; j += 2 * LANES) {
        VF a = ISA(tree_at)(in, weights, j, k, dtype, weighted);
        VF b = ISA(tree_at)(in, weights, j + LANES, k, dtype, weighted);
        if (left) a = ISA(fetch)(left + j) + a, b = ISA(fetch)(left + j + LANES) + b;
        if (scale) a *= *scale, b *= *scale;
        ISA(store)(dst + j, a);
        ISA(store)(dst + j + LANES, b);
    }
}

INLINE void ISA(fold_run)(float *dst, const float *left, const uint8_t *const *in,
                          const float *weights, size_t n, const float *scale, const int k,
                          const int dtype, const int weighted) {
    for (size_t j0 = 0; j0 < n; j0 += STEP) {
        size_t j = j0;
        VF a, b, c, d;
        int i = 0;
        if (left) {
            a = ISA(fetch)(left + j);
            b = ISA(fetch)(left + j + LANES);
            c = ISA(fetch)(left + j + 2 * LANES);
            d = ISA(fetch)(left + j + 3 * LANES);
        } else {
            a = TERM(0), j += LANES;
            b = TERM(0), j += LANES;
            c = TERM(0), j += LANES;
            d = TERM(0);
            i = 1;
        }
        for (; i < k; i++) {
            j = j0;
            a += TERM(i), j += LANES;
            b += TERM(i), j += LANES;
            c += TERM(i), j += LANES;
            d += TERM(i);
        }
        if (scale) a *= *scale, b *= *scale, c *= *scale, d *= *scale;
        ISA(store)(dst + j0, a);
        ISA(store)(dst + j0 + LANES, b);
        ISA(store)(dst + j0 + 2 * LANES, c);
        ISA(store)(dst + j0 + 3 * LANES, d);
    }
}

#define TREE_CASE(K) \
    case K: ISA(tree_run)(dst, left, in, weights, n, scale, K, dtype, weighted); break;

INLINE void ISA(sum_run)(float *dst, const float *left, const uint8_t *const *in,
                         const float *weights, int k, size_t n, const float *scale,
                         const int tree, const int dtype, const int weighted) {
    if (!tree) {
        ISA(fold_run)(dst, left, in, weights, n, scale, k, dtype, weighted);
        return;
    }
    switch (k) {
        TREE_CASE(1) TREE_CASE(2) TREE_CASE(3) TREE_CASE(4)
        TREE_CASE(5) TREE_CASE(6) TREE_CASE(7) TREE_CASE(8)
    }
}

#define SUM_VARIANT(NAME, DTYPE, WEIGHTED)                                                        \
    TARGET static void ISA(NAME)(float *dst, const float *left, const uint8_t *const *in,         \
                                 const float *weights, int k, size_t n, const float *scale,       \
                                 int tree) {                                                      \
        if (tree) ISA(sum_run)(dst, left, in, weights, k, n, scale, 1, DTYPE, WEIGHTED);          \
        else ISA(sum_run)(dst, left, in, weights, k, n, scale, 0, DTYPE, WEIGHTED);               \
    }
SUM_VARIANT(sum_fp32, FP32, 0)
SUM_VARIANT(sum_fp16, FP16, 0)
SUM_VARIANT(sum_bf16, BF16, 0)
SUM_VARIANT(weighted_fp32, FP32, 1)
SUM_VARIANT(weighted_fp16, FP16, 1)
SUM_VARIANT(weighted_bf16, BF16, 1)

/* Whole rounds of STEP elements. */
static void ISA(sum_rounds)(float *dst, const float *left, const uint8_t *const *in,
                            const float *weights, int k, size_t n, const float *scale, int tree,
                            int dtype) {
    if (dtype == FP32) (weights ? ISA(weighted_fp32) : ISA(sum_fp32))
        (dst, left, in, weights, k, n, scale, tree);
    else if (dtype == FP16) (weights ? ISA(weighted_fp16) : ISA(sum_fp16))
        (dst, left, in, weights, k, n, scale, tree);
    else (weights ? ISA(weighted_bf16) : ISA(sum_bf16))(dst, left, in, weights, k, n, scale, tree);
}

/* The last n % STEP elements go through the same code on zero-padded copies: one arithmetic. */
static void ISA(sum)(float *dst, const float *left, const uint8_t *const *in, const float *weights,
                     int k, size_t n, const float *scale, int tree, int dtype) {
    const size_t whole = n - n % STEP, rest = n - whole, item = dtype == FP32 ? 4 : 2;
    if (whole) ISA(sum_rounds)(dst, left, in, weights, k, whole, scale, tree, dtype);
    if (!rest) return;
    uint8_t pad[GROUP][4 * STEP];
    const uint8_t *tail[GROUP];
    float pad_left[STEP] = {0}, pad_dst[STEP];
    memset(pad, 0, sizeof pad);
    for (int i = 0; i < k; i++) {
        memcpy(pad[i], in[i] + whole * item, rest * item);
        tail[i] = pad[i];
    }
    if (left) memcpy(pad_left, left + whole, rest * 4);
    ISA(sum_rounds)(pad_dst, left ? pad_left : NULL, tail, weights, k, STEP, scale, tree, dtype);
    memcpy(dst + whole, pad_dst, rest * 4);
}

/* ---- the same in double: acc = (acc +) sum of k streams, left to right ---- */

TARGET static void ISA(widen)(float *dst, const uint8_t *in, size_t n, int dtype) {
    const size_t whole = n - n % LANES;
    uint8_t pad[2 * LANES] = {0};
    float wide[LANES];
    if (dtype == FP16)
        for (size_t j = 0; j < whole; j += LANES) ISA(store)(dst + j, ISA(load)(in, j, FP16));
    else
        for (size_t j = 0; j < whole; j += LANES) ISA(store)(dst + j, ISA(load)(in, j, BF16));
    if (whole == n) return;
    memcpy(pad, in + 2 * whole, 2 * (n - whole));
    ISA(store)(wide, dtype == FP16 ? ISA(load)(pad, 0, FP16) : ISA(load)(pad, 0, BF16));
    memcpy(dst + whole, wide, 4 * (n - whole));
}

#define X(i) (double)in[i][j]
TARGET static void ISA(sum_double)(double *acc, const unaligned_float *const *in,
                                   const double *weights, int k, size_t n) {
    if (weights) {
        for (int i = 0; i < k; i++) {
            const double w = weights[i];
            for (size_t j = 0; j < n; j++) acc[j] += w * X(i);
        }
    } else if (k == GROUP) {
        for (size_t j = 0; j < n; j++)
            acc[j] = acc[j] + X(0) + X(1) + X(2) + X(3) + X(4) + X(5) + X(6) + X(7);
    } else {
        for (int i = 0; i < k; i++)
            for (size_t j = 0; j < n; j++) acc[j] += X(i);
    }
}
#undef X

TARGET static void ISA(round_double)(float *dst, const double *acc, double scale, size_t n) {
    for (size_t j = 0; j < n; j++) dst[j] = (float)(acc[j] * scale);
}

/* ---- what follows a reduced block while it is still in the cache ---- */

/* Sum of squares in sixteen double lanes, added in a fixed order: the same bits on every
 * instruction set. Not finite exactly when an element is not: float squares fit a double. */
TARGET static double ISA(squared_norm)(const float *x, size_t n) {
    enum { HALF = LANES / 2, PARTS = 16 / HALF };
    ISA(vd) lane[PARTS] = {{0}};
    double last[16] = {0}, sum = 0;
    const size_t whole = n - n % 16;
    for (size_t j = 0; j < whole; j += 16)
        for (int p = 0; p < PARTS; p++) {
            const ISA(vd) v = __builtin_convertvector(*(const ISA(vfh) *)(x + j + p * HALF), ISA(vd));
            lane[p] += v * v;
        }
    memcpy(last, lane, sizeof last);
    for (size_t j = whole; j < n; j++) last[j - whole] += (double)x[j] * x[j];
    for (int l = 0; l < 16; l++) sum += last[l];
    return sum;
}

TARGET static void ISA(to_bf16)(uint16_t *dst, const float *x, size_t n) {
    for (size_t j = 0; j < n; j++) dst[j] = bf16_from_float(x[j]);
}

TARGET static void ISA(to_fp16)(uint16_t *dst, const float *x, size_t n) {
    size_t j = 0;
#ifdef ISA_HAS_F16C
    for (; j + LANES <= n; j += LANES)
        _mm_storeu_si128((__m128i *)(dst + j),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + j), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; j < n; j++) dst[j] = fp16_from_float(x[j]);
}

/* What the wire loses stays in the residual; where nothing finite is left it restarts at zero. */
TARGET static void ISA(keep_loss)(float *residual, const float *sent, const float *exact, size_t n) {
    for (size_t j = 0; j < n; j++) {
        const float loss = exact[j] - sent[j];
        residual[j] = __builtin_fabsf(loss) < __builtin_inff() ? loss : 0.0f;
    }
}

TARGET static void ISA(sgd)(float *restrict param, float *restrict velocity,
                            const float *restrict grad, size_t n, const sgd_rule *rule) {
    const float lr = rule->lr, momentum = rule->momentum, decay = rule->weight_decay;
    const float take = rule->take;
    if (!velocity) {
        for (size_t j = 0; j < n; j++) param[j] -= lr * (grad[j] + decay * param[j]);
        return;
    }
    for (size_t j = 0; j < n; j++) {
        const float g = grad[j] + decay * param[j];
        const float v = momentum * velocity[j] + take * g;
        velocity[j] = v;
        param[j] -= lr * (rule->nesterov ? g + momentum * v : v);
    }
}

TARGET static void ISA(adamw)(float *restrict param, float *restrict mean, float *restrict square,
                              const float *restrict grad, size_t n, const adamw_rule *rule) {
    const float shrink = rule->shrink, rest1 = rule->rest1;
    const float beta2 = rule->beta2, rest2 = rule->rest2;
    const float step_size = rule->step_size, root = rule->root_correction, eps = rule->eps;
    for (size_t j = 0; j < n; j++) {
        const float g = grad[j];
        const float m = mean[j] + rest1 * (g - mean[j]);
        const float v = beta2 * square[j] + rest2 * (g * g);
        mean[j] = m;
        square[j] = v;
        param[j] = param[j] * shrink - step_size * (m / (__builtin_sqrtf(v) / root + eps));
    }
}

static const lane_kernels ISA(kernels) = {
    .name = ISA_NAME,
    .sum = ISA(sum),
    .widen = ISA(widen),
    .sum_double = ISA(sum_double),
    .round_double = ISA(round_double),
    .squared_norm = ISA(squared_norm),
    .to_bf16 = ISA(to_bf16),
    .to_fp16 = ISA(to_fp16),
    .keep_loss = ISA(keep_loss),
    .sgd = ISA(sgd),
    .adamw = ISA(adamw),
};

#undef STEP
#undef VF
#undef VU
#undef INLINE
#undef TERM
#undef PAIR
#undef QUAD
#undef TREE_CASE
#undef SUM_VARIANT
