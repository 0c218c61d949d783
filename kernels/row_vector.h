// row_vector.h - sixteen floats of a row in registers: what row_lanes.c is written in.
//
// One text for every instruction set: sums, products and quotients are GCC's vector operations, and
// what those express badly (BF16, selections, powers of two) has a form in intrinsics beside the
// plain one. All forms have the bits of the scalar functions in fp8.h and exp_core.h
// (tests/test_lanes.c).
#pragma once
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "exp_core.h"
#include "fp8.h"
#include "rows.h"

#define V16_SIDE 4 // most vectors side by side

typedef uint32_t V16u __attribute__((vector_size(64)));

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

// v16_total: v16_sum of rows.h, without a way through memory.
ROW_INLINE float v16_total(V16 v) {
#if defined(__AVX2__)
    __m256 half[2];
    memcpy(half, &v, sizeof half);
    __m256 s = _mm256_add_ps(half[0], half[1]);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
#else
    return v16_sum(&v);
#endif
}

ROW_INLINE V16 v16_all(float x) {
    return x - (V16){0};
}

ROW_INLINE V16 v16_from_bf16(const uint16_t *p) {
    V16 v;
#if defined(__AVX512F__)
    __m512i h = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    v = (V16)_mm512_slli_epi32(h, 16);
#elif defined(__AVX2__)
    for (int i = 0; i < 2; i++) {
        __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p + i));
        h = _mm256_slli_epi32(h, 16);
        memcpy((char *)&v + 32 * i, &h, 32);
    }
#else
    uint32_t u[ROW_LANES];
    for (int k = 0; k < ROW_LANES; k++) u[k] = (uint32_t)p[k] << 16;
    memcpy(&v, u, sizeof v);
#endif
    return v;
}

ROW_INLINE void v16_to_bf16(uint16_t *p, V16 v) {
#if defined(__AVX512F__)
    __m512i u = (__m512i)v, high = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    r = _mm512_srli_epi32(r, 16);
    r = _mm512_mask_or_epi32(r, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(r));
#elif defined(__AVX2__)
    __m256i half[2];
    for (int i = 0; i < 2; i++) {
        __m256 x;
        memcpy(&x, (const char *)&v + 32 * i, 32);
        __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
        __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7FFF)), odd);
        __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        half[i] = _mm256_blendv_epi8(_mm256_srli_epi32(r, 16), quiet, nan);
    }
    __m256i packed = _mm256_packus_epi32(half[0], half[1]); // by halves of 128 bits
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(packed, 0xD8));
#else
    uint32_t u[ROW_LANES];
    memcpy(u, &v, sizeof u);
    for (int k = 0; k < ROW_LANES; k++) {
        uint32_t r = (u[k] + 0x7FFFu + ((u[k] >> 16) & 1u)) >> 16, quiet = (u[k] >> 16) | 0x40u;
        p[k] = (uint16_t)((int32_t)(u[k] & 0x7FFFFFFFu) > 0x7F800000 ? quiet : r);
    }
#endif
}

// v16_get: elements [c, c+n) of a row, n <= 16; the lanes behind them are 0.
ROW_INLINE V16 v16_get(Row a, int64_t c, int64_t n) {
    V16 v = {0};
    if (a.is_f32) {
        const float *p = (const float *)a.p + c;
        if (n == ROW_LANES)
            memcpy(&v, p, sizeof v);
        else
#if defined(__AVX512F__)
            v = (V16)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
            memcpy(&v, p, (size_t)n * 4);
#endif
        return v;
    }
    const uint16_t *p = (const uint16_t *)a.p + c;
    if (n == ROW_LANES) return v16_from_bf16(p);
#if defined(__AVX512F__)
    __m256i h = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
    return (V16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
#else
    uint16_t some[ROW_LANES] = {0};
    memcpy(some, p, (size_t)n * 2);
    return v16_from_bf16(some);
#endif
}
// v16_put: the first n lanes, rounded to the row's type, to its elements [c, c+n).
ROW_INLINE void v16_put(Row a, int64_t c, int64_t n, V16 v) {
    if (a.is_f32) {
        float *p = (float *)a.p + c;
        if (n == ROW_LANES)
            memcpy(p, &v, sizeof v);
        else
#if defined(__AVX512F__)
            _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
            memcpy(p, &v, (size_t)n * 4);
#endif
        return;
    }
    uint16_t *p = (uint16_t *)a.p + c;
    if (n == ROW_LANES) {
        v16_to_bf16(p, v);
        return;
    }
    uint16_t some[ROW_LANES];
    v16_to_bf16(some, v);
    memcpy(p, some, (size_t)n * 2);
}

// v16_larger: a > b ? a : b in every lane, so b where a is NaN.
ROW_INLINE V16 v16_larger(V16 a, V16 b) {
#if defined(__AVX512F__)
    return (V16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    V16i is = a > b; // all bits of a lane, or none
    return (V16)((is & (V16i)a) | (~is & (V16i)b));
#endif
}
// v16_if_negative: x < 0 ? a : b in every lane.
ROW_INLINE V16 v16_if_negative(V16 x, V16 a, V16 b) {
#if defined(__AVX512F__)
    __mmask16 is = _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return (V16)_mm512_mask_blend_ps(is, (__m512)b, (__m512)a);
#else
    V16i is = x < (V16){0};
    return (V16)((is & (V16i)a) | (~is & (V16i)b));
#endif
}

ROW_INLINE V16 v16_sqrt(V16 x) {
#if defined(__AVX512F__)
    return (V16)_mm512_sqrt_ps((__m512)x);
#else
    float v[ROW_LANES];
    memcpy(v, &x, sizeof v);
    for (int k = 0; k < ROW_LANES; k++) v[k] = sqrtf(v[k]);
    memcpy(&x, v, sizeof x);
    return x;
#endif
}

// v16_exp_neg: exp_f32 of K vectors x, in place, x <= 0 or NaN. The same steps; only the power of
// two is put together in another way, which is as exact: a result below the normal range is rounded
// once. Every step is written for all vectors before the next one: a processor that looks some
// hundred instructions ahead sees only a few such chains of forty.
#define EACH_V(k) for (int k = 0; k < K; k++)
ROW_INLINE void v16_exp_neg(V16 *x, const int K) {
    const float magic = 12582912.0f;
    V16 t[V16_SIDE], n[V16_SIDE], r[V16_SIDE], p[V16_SIDE];
    EACH_V(k) x[k] = v16_larger(v16_all(-104.0f), x[k]);
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
    EACH_V(k) x[k] = (V16)_mm512_scalef_ps((__m512)x[k], (__m512)n[k]);
#else
    // 2^(k+64), k in the low bits of t; the first product is exact.
    EACH_V(k) p[k] = (V16)(((V16u)t[k] + (127u + 64u - 0x4B400000u)) << 23);
    EACH_V(k) x[k] = x[k] * p[k] * 5.42101086242752217e-20f; // 2^-64
#endif
}
