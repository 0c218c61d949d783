// attn_avx2.c - attention with AVX2 and FMA: FP32 multiply-adds, 6 x 16.
// Compiled with its own flags and called only where the processor has them; without the flags
// (another architecture) only a table that is never used is left.
#include "attn_engine.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "gemm_avx2_kernel.h"

#define KU 1
#define ATTN_ISA attn_avx2
#define ATTN_NAME "avx2"
#define DOT_UNITS(m, s, nu, a, lda, b) multiply_far(m, s, nu, a, lda, b)

static inline vf vsub(vf a, vf b) {
    return _mm256_sub_ps(a, b);
}
static inline vf vmax(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
static inline vf vdiv(vf a, vf b) {
    return _mm256_div_ps(a, b);
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

#include "attn_tile.h"
#else
const AttnIsa attn_avx2 = {"avx2", NULL, NULL, NULL};
#endif
