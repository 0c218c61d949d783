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
static inline vf vfma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vpick(vf x, vf other, vf lo, vf j, vf hi) {
    __mmask16 is_in = _mm512_cmp_ps_mask(lo, j, _CMP_LE_OQ);
    return _mm512_mask_mov_ps(other, _mm512_mask_cmp_ps_mask(is_in, j, hi, _CMP_LE_OQ), x);
}
// 2^x to 2 units in the last place, 0 below 2^-126 or so, NaN stays; polynomial after Cephes
// (exp2f).
static inline vf vexp2(vf x) {
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    vf n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf f = _mm512_sub_ps(x, n), y = vset1(1.535336188319500e-4f);
    y = vfma(y, f, vset1(1.339887440266574e-3f));
    y = vfma(y, f, vset1(9.618437357674640e-3f));
    y = vfma(y, f, vset1(5.550332471162809e-2f));
    y = vfma(y, f, vset1(2.402264791363012e-1f));
    y = vfma(y, f, vset1(6.931472028550421e-1f));
    y = vfma(y, f, vset1(1.0f));
    return _mm512_scalef_ps(y, n);
}
