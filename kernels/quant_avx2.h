// quant_avx2.h - the arithmetic of quant_avx2.c and quant_avx2_e5m6.c: BF16 bits, 16 to a register.
// Included by files with AVX2 flags only.
#pragma once
#include <immintrin.h>

#include "quant_core.h"
#include "quant_lanes.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    WORDS = 16,          // BF16 values of a register
    REGS = TILE / WORDS, // registers of a tile
};

// The members of QuantTiles that are in quant_avx2_e5m6.c.
bool quant_avx2_e5m6(uint8_t *dst, uint8_t *scale, const void *x, bool is_f32, QuantCount *count);
bool quant_avx2_from_e5m6(uint16_t *dst, const uint8_t *src, uint8_t b);

INLINE __m256i words(int x) {
    return _mm256_set1_epi16((short)x);
}
INLINE __m256i load(const void *p) {
    return _mm256_loadu_si256(p);
}
INLINE void store(void *p, __m256i v) {
    _mm256_storeu_si256(p, v);
}
INLINE __m256i magnitude(__m256i v) {
    return _mm256_and_si256(v, words(0x7FFF));
}
INLINE bool is_none(__m256i v) {
    return _mm256_testz_si256(v, v);
}
// No word of v lies below `end`.
INLINE bool none_below(__m256i v, __m256i end) {
    return is_none(_mm256_xor_si256(_mm256_max_epu16(v, end), v));
}
// Words of |v|, less `less`, rounded to even at bit `drop`: codes of the values that are normal.
INLINE __m256i normal_codes(__m256i v, __m256i less, const int drop) {
    __m256i odd = _mm256_and_si256(_mm256_srli_epi16(v, drop), words(1));
    return _mm256_srli_epi16(_mm256_subs_epu16(_mm256_add_epi16(magnitude(v), odd), less), drop);
}
// |v| - 1: zeros, whose codes are right, count as large where small values are looked for.
INLINE __m256i above_zero(__m256i v) {
    return _mm256_sub_epi16(magnitude(v), words(1));
}

// BF16 bits of 8 values in the lower halves of the lanes; NaN comes out as anything.
INLINE __m256i rounded(__m256 x) {
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    u = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    return _mm256_srli_epi32(u, 16);
}

// 16 values as words 0-3, 8-11, 4-7, 12-15. *nan: any bit set if there was a NaN.
INLINE __m256i round16(const float *x, __m256 *nan) {
    __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
    *nan = _mm256_or_ps(*nan, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
    return _mm256_packus_epi32(rounded(a), rounded(b));
}
INLINE __m256i in_order(__m256i v) {
    return _mm256_permute4x64_epi64(v, 0xD8);
}

INLINE int largest_word(__m256i m) {
    __m128i h = _mm_max_epu16(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    __m128i least = _mm_minpos_epu16(_mm_xor_si128(h, _mm_set1_epi8(-1)));
    return 0xFFFF ^ (_mm_cvtsi128_si32(least) & 0xFFFF);
}

// A tile's values in its registers, F32 ones in the order of round16; returns the largest
// magnitude, BF16_INF or more if one is not finite.
INLINE int take_tile(__m256i v[REGS], const void *x, const bool is_f32) {
    __m256i top = _mm256_setzero_si256();
    __m256 nan = _mm256_setzero_ps();
#pragma GCC unroll 8
    for (int i = 0; i < REGS; i++) {
        v[i] = is_f32 ? round16((const float *)x + i * WORDS, &nan)
                      : load((const uint16_t *)x + i * WORDS);
        top = _mm256_max_epu16(top, magnitude(v[i]));
    }
    // Magnitudes are made again: kept for the codes they would go through memory.
#pragma GCC unroll 8
    for (int i = 0; i < REGS; i++) __asm__("" : "+x"(v[i]));
    return _mm256_movemask_ps(nan) ? BF16_INF : largest_word(top);
}
