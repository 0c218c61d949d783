// row_vector.h - a vector of floats of a row in registers: what row_lanes.c is written in.
//
// V is as wide as the instruction set: 16 floats (AVX-512), 8 (AVX2) or 4. Sums, products and
// quotients are GCC's vector operations, and what those express badly (BF16, selections, powers of
// two) has a form in intrinsics beside the plain one. All forms have the bits of the scalar
// functions in fp8.h and exp_core.h (tests/test_lanes.c).
#pragma once
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "exp_core.h"
#include "fp8.h"
#include "rows.h"

#if defined(__AVX512F__)
#define V_BYTES 64
#elif defined(__AVX2__)
#define V_BYTES 32
#else
#define V_BYTES 16
#endif
#define V_LANES (V_BYTES / 4)
#define SUBNORMAL 0x20 // a class of vfpclassps
#define V_SIDE 8                      // most vectors side by side
#define V_PARTS (ROW_LANES / V_LANES) // vectors that hold the 16 lanes of a sum

typedef float V __attribute__((vector_size(V_BYTES)));
typedef int32_t Vi __attribute__((vector_size(V_BYTES)));
typedef uint32_t Vu __attribute__((vector_size(V_BYTES)));
typedef uint16_t Vh __attribute__((vector_size(V_BYTES / 2)));

// EACH_V(k): for all of K vectors side by side. Where chains are long every step is written for all
// vectors before the next one: a processor sees only some hundred instructions ahead, a few chains.
#define EACH_V(k) for (int k = 0; k < K; k++)

// A row: its type and its first element.
typedef struct Row {
    char *p;
    bool is_f32;
} Row;

ROW_INLINE Row row_of(Mat m, int64_t r) {
    Row a = {m.p, m.t == DT_F32};
    if (m.p) a.p += (size_t)(r * m.ld) * (a.is_f32 ? 4 : 2);
    return a;
}

ROW_INLINE V v_all(float x) {
    return x - (V){0};
}

ROW_INLINE V v_from_bf16(const uint16_t *p) {
#if defined(__AVX512F__)
    __m512i h = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (V)_mm512_slli_epi32(h, 16);
#elif defined(__AVX2__)
    __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (V)_mm256_slli_epi32(h, 16);
#else
    Vh h;
    memcpy(&h, p, sizeof h);
    return (V)(__builtin_convertvector(h, Vu) << 16);
#endif
}

ROW_INLINE void v_to_bf16(uint16_t *p, V v) {
#if defined(__AVX512BF16__)
    // One instruction, but it takes subnormals for zeros.
    if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, SUBNORMAL) == 0, 1)) {
        _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
        return;
    }
#endif
#if defined(__AVX512F__)
    __m512i u = (__m512i)v, high = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    // The upper words: one shuffle, where a shift and a conversion are three.
    const __m512i upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                                           25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    r = _mm512_permutexvar_epi16(upper, r);
    _mm256_storeu_si256((__m256i *)p, _mm512_castsi512_si256(r));
#else
    Vu u = (Vu)v, high = u >> 16, r = (u + 0x7FFFu + (high & 1u)) >> 16;
    Vu nan = (Vu)(v != v);
    r = (nan & (high | 0x40u)) | (~nan & r);
#if defined(__AVX2__)
    __m256i packed = _mm256_packus_epi32((__m256i)r, (__m256i)r); // by halves of 128 bits
    packed = _mm256_permute4x64_epi64(packed, 0xD8);
    _mm_storeu_si128((__m128i *)p, _mm256_castsi256_si128(packed));
#else
    Vh h = __builtin_convertvector(r, Vh);
    memcpy(p, &h, sizeof h);
#endif
#endif
}

// v_get: elements [c, c+n) of a row, n <= V_LANES; the lanes behind them are 0.
ROW_INLINE V v_get(Row a, int64_t c, int64_t n) {
    V v = {0};
    if (a.is_f32) {
        const float *p = (const float *)a.p + c;
        if (n == V_LANES)
            memcpy(&v, p, sizeof v);
        else
            for (int64_t k = 0; k < n; k++) v[k] = p[k];
        return v;
    }
    const uint16_t *p = (const uint16_t *)a.p + c;
    if (n == V_LANES) return v_from_bf16(p);
    for (int64_t k = 0; k < n; k++) v[k] = f32_from_bf16(p[k]);
    return v;
}
// v_put: the first n lanes, rounded to the row's type, to its elements [c, c+n).
ROW_INLINE void v_put(Row a, int64_t c, int64_t n, V v) {
    if (a.is_f32) {
        float *p = (float *)a.p + c;
        if (n == V_LANES)
            memcpy(p, &v, sizeof v);
        else
            for (int64_t k = 0; k < n; k++) p[k] = v[k];
        return;
    }
    uint16_t *p = (uint16_t *)a.p + c;
    if (n == V_LANES)
        v_to_bf16(p, v);
    else
        for (int64_t k = 0; k < n; k++) p[k] = bf16_from_f32(v[k]);
}

// v_larger: a > b ? a : b in every lane, so b where a is NaN.
ROW_INLINE V v_larger(V a, V b) {
#if defined(__AVX512F__)
    return (V)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (V)_mm256_max_ps((__m256)a, (__m256)b);
#else
    Vi is = a > b; // all bits of a lane, or none
    return (V)((is & (Vi)a) | (~is & (Vi)b));
#endif
}
// v_if_negative: x < 0 ? a : b in every lane.
ROW_INLINE V v_if_negative(V x, V a, V b) {
#if defined(__AVX512F__)
    __mmask16 is = _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return (V)_mm512_mask_blend_ps(is, (__m512)b, (__m512)a);
#else
    Vi is = x < (V){0};
    return (V)((is & (Vi)a) | (~is & (Vi)b));
#endif
}

ROW_INLINE V v_sqrt(V x) {
#if defined(__AVX512F__)
    return (V)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
    return (V)_mm256_sqrt_ps((__m256)x);
#else
    for (int k = 0; k < V_LANES; k++) x[k] = sqrtf(x[k]);
    return x;
#endif
}

// v_quotient: e / (1 + e) for 0 <= e <= 1, from near = 1 / (1 + e) and far = e * near. Without a second division: the
// rest of far, which is exact, times the rounded reciprocal rounds correctly (Markstein; compared with the division for
// every such e).
ROW_INLINE V v_quotient(V e, V near, V far) {
#if defined(__AVX512F__)
    __m512 rest = _mm512_fnmadd_ps((__m512)far, (__m512)(1.0f + e), (__m512)e);
    return (V)_mm512_fmadd_ps(rest, (__m512)near, (__m512)far);
#elif defined(__FMA__)
    __m256 rest = _mm256_fnmadd_ps((__m256)far, (__m256)(1.0f + e), (__m256)e);
    return (V)_mm256_fmadd_ps(rest, (__m256)near, (__m256)far);
#else
    (void)near, (void)far;
    return e / (1.0f + e);
#endif
}

// VSum: a sum in 16 lanes: element i goes to lane i % 16, as in rows.h.
typedef struct VSum {
    V part[V_PARTS];
} VSum;

// vsum_add: the vector whose first element is number c, a multiple of V_LANES.
ROW_INLINE void vsum_add(VSum *s, int64_t c, V x) {
    for (int i = 0; i < V_PARTS; i++)
        if (c / V_LANES % V_PARTS == i) s->part[i] += x;
}
// vsum_total: the lanes by halves, in the order of v16_sum.
ROW_INLINE float vsum_total(const VSum *s) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)s->part[0]),
                                _mm512_extractf32x8_ps((__m512)s->part[0], 1));
#else
    __m256 half = (__m256)(s->part[0] + s->part[1]);
#endif
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
#else
    V16 lanes;
    memcpy(&lanes, s->part, sizeof lanes);
    return v16_sum(&lanes);
#endif
}

// v_exp_neg: exp_f32 of K vectors x <= 0 or NaN, in place. The same steps; only the power of two is
// put together in another way, which is as exact: a result below the normal range is rounded once.
ROW_INLINE void v_exp_neg(V *x, const int K) {
    const float magic = 12582912.0f;
    V t[V_SIDE], n[V_SIDE], r[V_SIDE], p[V_SIDE];
    EACH_V(k) x[k] = v_larger(v_all(-104.0f), x[k]);
    EACH_V(k) t[k] = x[k] * 1.44269504088896341f + magic;
    EACH_V(k) n[k] = t[k] - magic;
    EACH_V(k) r[k] = x[k] - n[k] * 0.693359375f;
    EACH_V(k) r[k] = r[k] - n[k] * -2.12194440e-4f;
    EACH_V(k) p[k] = r[k] * 1.9875691500e-4f + 1.3981999507e-3f;
    EACH_V(k) p[k] = p[k] * r[k] + 8.3334519073e-3f;
    EACH_V(k) p[k] = p[k] * r[k] + 4.1665795894e-2f;
    EACH_V(k) p[k] = p[k] * r[k] + 1.6666665459e-1f;
    EACH_V(k) p[k] = p[k] * r[k] + 5.0000001201e-1f;
    EACH_V(k) x[k] = p[k] * (r[k] * r[k]) + r[k] + 1.0f;
#if defined(__AVX512F__)
    EACH_V(k) x[k] = (V)_mm512_scalef_ps((__m512)x[k], (__m512)n[k]);
#else
    // 2^(k+64), k in the low bits of t; the first product is exact.
    EACH_V(k) p[k] = (V)(((Vu)t[k] + (127u + 64u - 0x4B400000u)) << 23);
    EACH_V(k) x[k] = x[k] * p[k] * 5.42101086242752217e-20f; // 2^-64
#endif
}
