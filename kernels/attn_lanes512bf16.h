// attn_lanes512bf16.h - what attn_tile.h wants beside attn_lanes512.h where units are pairs of BF16 values.
#pragma once
#include "attn_lanes512.h"

// The low halves of BF16 values as floats are zero.
static inline vf vjoin(vf even, vf odd) {
    __m512i lo = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    return _mm512_castsi512_ps(_mm512_or_si512(lo, _mm512_castps_si512(odd)));
}
static inline vf vrow(vf a, vf b) {
    return (vf)_mm512_cvtne2ps_pbh(b, a);
}
// Permutations of 16-bit halves: (n, n + step), (n + 1, n + 1 + step), ...
#define HALVES4(n, step) (n), (n) + (step), (n) + 1, (n) + 1 + (step)
#define HALVES16(n, step)                                                                          \
    HALVES4(n, step), HALVES4((n) + 2, step), HALVES4((n) + 4, step), HALVES4((n) + 6, step)
#define HALVES(n, step)                                                                            \
    { HALVES16(n, step), HALVES16((n) + 8, step) }
static inline vf vzip_low(vf even, vf odd) {
    static const uint16_t at[32] = HALVES(0, 32);
    return _mm512_castsi512_ps(_mm512_permutex2var_epi16(
        _mm512_castps_si512(even), _mm512_loadu_si512(at), _mm512_castps_si512(odd)));
}
static inline vf vzip_high(vf even, vf odd) {
    static const uint16_t at[32] = HALVES(16, 32);
    return _mm512_castsi512_ps(_mm512_permutex2var_epi16(
        _mm512_castps_si512(even), _mm512_loadu_si512(at), _mm512_castps_si512(odd)));
}
static inline vf vpairs(vf a, vf b) {
    static const uint16_t at[32] = HALVES(0, 16);
    return _mm512_castsi512_ps(
        _mm512_permutexvar_epi16(_mm512_loadu_si512(at), (__m512i)_mm512_cvtne2ps_pbh(b, a)));
}
