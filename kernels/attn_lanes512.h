// attn_lanes512.h - what attn_tile.h wants of AVX-512 beside the lanes of gemm_lanes512.h.
#pragma once
#include "gemm_lanes512.h"

static inline vf vsub(vf a, vf b) {
    return _mm512_sub_ps(a, b);
}
static inline vf vmax(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
static inline vf vdiv(vf a, vf b) {
    return _mm512_div_ps(a, b);
}
static inline vf vpick(vf x, vf other, vf lo, vf j, vf hi) {
    __mmask16 is_in = _mm512_cmp_ps_mask(lo, j, _CMP_LE_OQ);
    return _mm512_mask_mov_ps(other, _mm512_mask_cmp_ps_mask(is_in, j, hi, _CMP_LE_OQ), x);
}
// 2^x, x <= 0, to 2 units in the last place, exact for 0; 0 where it is below 2^-149; NaN stays. An x
// above 0 is the rounding of huge scores, whose probability is at most 1 all the same. The
// polynomial is the best of degree 5 for the relative error that begins with 1.
static inline vf vexp2(vf x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    x = _mm512_min_ps(_mm512_setzero_ps(), x);
    vf n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf f = _mm512_sub_ps(x, n), y = vset1(1.326472680e-3f);
    y = vfma(y, f, vset1(9.671514378e-3f));
    y = vfma(y, f, vset1(5.550733761e-2f));
    y = vfma(y, f, vset1(2.402224206e-1f));
    y = vfma(y, f, vset1(6.931469776e-1f));
    y = vfma(y, f, vset1(1.0f));
    return _mm512_scalef_ps(y, n);
}
