// attn_avx2.c - attention with AVX2 and FMA: FP32 multiply-adds, 6 x 16.
// Compiled with its own flags and called only where the processor has them; without the flags
// (another architecture) only a table that is never used is left.
#include "attn_engine.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

typedef __m256 vf;
#define VW 8
#define MR 6
#define NV 2
#define KU 1
#define ATTN_ISA attn_avx2
#define ATTN_NAME "avx2"

static inline vf vload(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline void vstore(float *p, vf x) {
    _mm256_storeu_ps(p, x);
}
static inline vf vset1(float x) {
    return _mm256_set1_ps(x);
}
static inline vf vmul(vf a, vf b) {
    return _mm256_mul_ps(a, b);
}
static inline vf vadd(vf a, vf b) {
    return _mm256_add_ps(a, b);
}
static inline vf vsub(vf a, vf b) {
    return _mm256_sub_ps(a, b);
}
static inline vf vmax(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
static inline vf vdiv(vf a, vf b) {
    return _mm256_div_ps(a, b);
}
static inline vf vfma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf vdot(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf vpick(vf x, vf other, vf lo, vf j, vf hi) {
    vf is_in = _mm256_and_ps(_mm256_cmp_ps(lo, j, _CMP_LE_OQ), _mm256_cmp_ps(j, hi, _CMP_LE_OQ));
    return _mm256_blendv_ps(other, x, is_in);
}
// As in attn_lanes512.h. The exponent is put in by two factors, so that the limits need no care.
static inline vf vexp2(vf x) {
    x = _mm256_max_ps(_mm256_set1_ps(-200.0f), x);
    x = _mm256_min_ps(_mm256_setzero_ps(), x);
    vf n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf f = _mm256_sub_ps(x, n), y = vset1(1.326472680e-3f);
    y = vfma(y, f, vset1(9.671514378e-3f));
    y = vfma(y, f, vset1(5.550733761e-2f));
    y = vfma(y, f, vset1(2.402224206e-1f));
    y = vfma(y, f, vset1(6.931469776e-1f));
    y = vfma(y, f, vset1(1.0f));
    __m256i k = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(k, 1);
    __m256i rest = _mm256_sub_epi32(k, half), bias = _mm256_set1_epi32(127);
    y = vmul(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return vmul(y, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
static inline __attribute__((always_inline)) void vtranspose(vf r[VW]) {
    vf t[VW];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        vf a = r[i], b = r[i + 4];
        r[i] = _mm256_permute2f128_ps(a, b, 0x20);
        r[i + 4] = _mm256_permute2f128_ps(a, b, 0x31);
    }
}

#include "attn_tile.h"
#else
const AttnIsa attn_avx2 = {"avx2", NULL, NULL, NULL};
#endif
