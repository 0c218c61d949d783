// quant_avx512.h - the arithmetic of the quant_avx512*.c: BF16 bits, 32 to a register, and their
// codes. Included by files with AVX-512 flags only.
#pragma once
#include <immintrin.h>

#include "quant_core.h"
#include "quant_lanes.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    AHEAD = 4096,  // bytes that rows are fetched ahead
    E4M3_DROP = 4, // bits of BF16 that a code has not
    E4M3_EDGE = 7, // exponent byte of a scale less the edge below
};

// The members of QuantTiles that are in quant_avx512_decode.c and quant_avx512_e5m6.c.
void quant_avx512_take_codes(uint16_t *dst, int64_t dst_ld, const uint8_t *q, int64_t ld,
                             const float *s, bool is_pow2, int64_t m, int64_t w, uint16_t *most);
void quant_avx512_decode(uint16_t *dst, const uint8_t *q, const uint8_t *s, int64_t scol,
                         int64_t tiles);
bool quant_avx512_retile(uint8_t *y, int64_t y_ld, bool is_far, uint8_t *s, const uint8_t *q, int64_t ld,
                         const uint8_t *e, int64_t m, QuantCount *count);
bool quant_avx512_e5m6(uint8_t *dst, uint8_t *scale, const void *x, bool is_f32, QuantCount *count);
bool quant_avx512_from_e5m6(uint16_t *dst, const uint8_t *src, uint8_t b);

INLINE __m512i words(int x) {
    return _mm512_set1_epi16((short)x);
}
// Bits of c where mask has ones, of a elsewhere.
INLINE __m512i mix(__m512i mask, __m512i c, __m512i a) {
    return _mm512_ternarylogic_epi32(mask, c, a, 0xCA);
}
INLINE __m512i magnitude(__m512i v) {
    return _mm512_and_si512(v, words(0x7FFF));
}
// Lanes of the first n of 64, of 32 and of 16.
INLINE __mmask64 first64(int64_t n) {
    return n >= 64 ? ~0ull : n <= 0 ? 0 : (1ull << n) - 1;
}
INLINE __mmask32 first32(int64_t n) {
    return n >= 32 ? 0xFFFFFFFFu : n <= 0 ? 0 : (1u << n) - 1;
}
INLINE __mmask16 first16(int64_t n) {
    return (__mmask16)first32(n < 16 ? n : 16);
}

INLINE int largest_word(__m512i m) {
    __m256i h = _mm256_max_epu16(_mm512_castsi512_si256(m), _mm512_extracti64x4_epi64(m, 1));
    __m128i q = _mm_max_epu16(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    __m128i least = _mm_minpos_epu16(_mm_xor_si128(q, _mm_set1_epi8(-1)));
    return 0xFFFF ^ (_mm_cvtsi128_si32(least) & 0xFFFF);
}

// n > 0 of 32 values from p as BF16. *nan: not 0 if there was a NaN in F32.
INLINE __m512i take32(const void *p, const bool is_f32, int64_t n, __mmask16 *nan) {
    if (!is_f32) {
        if (n >= 32) return _mm512_loadu_si512(p);
        return _mm512_maskz_loadu_epi16(first32(n), p);
    }
    __m512i a, b;
    const float *x = p;
    if (n >= 32) {
        a = _mm512_loadu_si512(x);
        b = _mm512_loadu_si512(x + 16);
    } else {
        a = _mm512_maskz_loadu_epi32(first16(n), x);
        b = _mm512_maskz_loadu_epi32(first16(n - 16), x + 16);
    }
    *nan |= _mm512_cmp_ps_mask(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), _CMP_UNORD_Q);
    const __m512i odd =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    __m512i upper = _mm512_permutex2var_epi16(a, odd, b);
    __m512i lower = _mm512_permutex2var_epi16(a, _mm512_sub_epi16(odd, words(1)), b);
    // Up if more than half is lost, or half and the last bit is odd.
    __m512i limit = _mm512_sub_epi16(words(0x8000), _mm512_and_si512(upper, words(1)));
    return _mm512_mask_add_epi16(upper, _mm512_cmpgt_epu16_mask(lower, limit), upper, words(1));
}

// --- codes for a power-of-two scale ---
//
// Both formats: the quotient's BF16 bits less (edge << 7), rounded to even at bit `drop` (4 for
// E4M3, 1 for E5M6), are the code. edge: biased exponent of values whose quotient lies just below
// the smallest normal code.

// The code, if not 0 and not below the smallest normal, from bit `drop` on.
// less: (edge << 7) - (half a unit - 1).
INLINE __m512i pow2_rounded(__m512i v, __m512i less, const int drop) {
    __m512i even = _mm512_and_si512(_mm512_srli_epi16(v, drop), words(1));
    return _mm512_subs_epu16(_mm512_add_epi16(magnitude(v), even), less);
}
INLINE __m512i pow2_less(__m512i edge, const int drop) {
    return _mm512_sub_epi16(_mm512_slli_epi16(edge, 7), words((1 << (drop - 1)) - 1));
}

// E4M3 codes as pow2_rounded makes them, with the sign beside.
INLINE __m512i signed_rounded(__m512i v, __m512i less) {
    return mix(words(0x800), _mm512_srli_epi16(v, E4M3_DROP), pow2_rounded(v, less, E4M3_DROP));
}

// *least = min(*least, magnitude - 1): zeros count as large. Then whether any value needs
// pow2_codes.
INLINE void watch_small(__m512i *least, __m512i v) {
    *least = _mm512_min_epu16(*least, _mm512_sub_epi16(magnitude(v), words(1)));
}
INLINE bool has_small(__m512i least, __m512i edge) {
    __m512i end = _mm512_add_epi16(_mm512_slli_epi16(edge, 7), words(0x7F));
    return _mm512_cmplt_epu16_mask(least, end) != 0;
}

// Codes of any values, without sign; underflow is counted. A value that is subnormal in BF16 must
// have code 0: edge >= 8 - drop.
INLINE __m512i pow2_codes(__m512i v, __m512i edge, const int drop, int64_t *underflow) {
    __m512i one = words(1), mag = magnitude(v), e = _mm512_srli_epi16(mag, 7);
    __m512i normal = _mm512_srli_epi16(pow2_rounded(v, pow2_less(edge, drop), drop), drop);
    // Up to the edge each exponent less costs another bit.
    __mmask32 is_low = _mm512_cmple_epu16_mask(e, edge);
    __m512i x = mix(words(0x7F), v, words(0x80));
    __m512i shift = _mm512_add_epi16(_mm512_sub_epi16(edge, e), words(drop + 1));
    __m512i half = _mm512_sllv_epi16(one, _mm512_sub_epi16(shift, one));
    __m512i even = _mm512_and_si512(_mm512_srlv_epi16(x, shift), one);
    __m512i sum = _mm512_add_epi16(_mm512_add_epi16(x, even), _mm512_sub_epi16(half, one));
    __m512i code = _mm512_mask_srlv_epi16(normal, is_low, sum, shift);
    __mmask32 is_zero = _mm512_testn_epi16_mask(code, code);
    *underflow += __builtin_popcount(_mm512_mask_test_epi16_mask(is_zero, mag, mag));
    return code;
}

// The codes of 64 values v0, v1 from their words, signs added.
INLINE __m512i packed(__m512i c0, __m512i c1, __m512i v0, __m512i v1) {
    const __m512i order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
    __m512i signs = _mm512_packs_epi16(v0, v1);
    __m512i codes = mix(_mm512_set1_epi8(0x7F), _mm512_packus_epi16(c0, c1), signs);
    return _mm512_permutexvar_epi64(order, codes);
}
// Stores n of 64 codes.
INLINE void store64(uint8_t *q, __m512i codes, int64_t n) {
    if (n >= 64)
        _mm512_storeu_si512(q, codes);
    else
        _mm512_mask_storeu_epi8(q, first64(n), codes);
}
// Whether one of 64 codes is 0 or a subnormal.
INLINE bool has_low(__m512i codes) {
    return _mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x78)) != 0;
}

// Codes of n * 64 values by a power of two with this edge (pow2_codes).
INLINE void pow2_packed(__m512i *codes, const __m512i *v, const int n, int edge,
                        int64_t *underflow) {
    __m512i less = pow2_less(words(edge), E4M3_DROP), least = words(-1);
    bool is_low = false;
#pragma GCC unroll 2
    for (int i = 0; i < n; i++) {
        __m512i c0 = _mm512_srli_epi16(pow2_rounded(v[2 * i], less, E4M3_DROP), E4M3_DROP);
        __m512i c1 = _mm512_srli_epi16(pow2_rounded(v[2 * i + 1], less, E4M3_DROP), E4M3_DROP);
        codes[i] = packed(c0, c1, v[2 * i], v[2 * i + 1]);
        is_low |= has_low(codes[i]);
    }
    if (__builtin_expect(!is_low, 1)) return;
    for (int i = 0; i < 2 * n; i++) watch_small(&least, v[i]);
    if (!has_small(least, words(edge))) return; // only zeros
    for (int i = 0; i < n; i++)
        codes[i] = packed(pow2_codes(v[2 * i], words(edge), E4M3_DROP, underflow),
                          pow2_codes(v[2 * i + 1], words(edge), E4M3_DROP, underflow), v[2 * i],
                          v[2 * i + 1]);
}

// --- codes for FP32 scales: 32 values give 32 words, of which the low 7 bits are the code without sign ---

// Magnitude code of the quotient of floats, at most the largest code before rounding's last bit.
INLINE __m512i divided(__m512i x, __m512 s) {
    __m512 q = _mm512_div_ps(_mm512_castsi512_ps(x), s);
    __m512i mag = _mm512_and_si512(_mm512_castps_si512(q), _mm512_set1_epi32(0x7FFFFFFF));
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(mag, 20), _mm512_set1_epi32(1));
    // Round to bit 20 and take the exponent of code 0 away.
    const int less = (int)0x7FFFF - ((127 - 7) << 23);
    __m512i code = _mm512_srli_epi32(
        _mm512_add_epi32(_mm512_add_epi32(mag, even), _mm512_set1_epi32(less)), 20);
    // Below 2^-6 as in quant_core.h: adding rounds to the unit.
    __mmask16 is_low = _mm512_cmplt_epi32_mask(mag, _mm512_set1_epi32(0x3C800000));
    __m512 sum = _mm512_add_ps(_mm512_castsi512_ps(mag), _mm512_set1_ps(24576.0f));
    return _mm512_mask_and_epi32(code, is_low, _mm512_castps_si512(sum), _mm512_set1_epi32(0xF));
}

INLINE __m512i even_floats(__m512i v) {
    return _mm512_slli_epi32(v, 16);
}
INLINE __m512i odd_floats(__m512i v) {
    return _mm512_and_si512(v, _mm512_set1_epi32((int)0xFFFF0000u));
}

// Codes of values divided by the scales of their even and odd elements.
INLINE __m512i f32_codes(__m512i v, __m512 s_even, __m512 s_odd, int64_t *underflow) {
    __m512i even = divided(even_floats(v), s_even), odd = divided(odd_floats(v), s_odd);
    __m512i code = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
    __mmask32 is_zero = _mm512_testn_epi16_mask(code, code);
    *underflow += __builtin_popcount(_mm512_mask_test_epi16_mask(is_zero, v, words(0x7FFF)));
    return code;
}

// --- codes below the normal range where normal ones are already there ---

enum { E4M3_SUM_MOST = 240 }; // exponent bytes of scales whose low_sum is finite

// The float whose unit is 2^-9 times the scale of this exponent byte.
INLINE __m512 low_sum(__m512i b) {
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(b, 23)), _mm512_set1_ps(24576.0f));
}
// Magnitudes whose quotients lie below 2^-6: adding rounds them to the unit (quant_core.h). The
// scales are those of even and odd elements.
INLINE __m512i low_codes(__m512i mag, __m512 even, __m512 odd) {
    __m512 e = _mm512_add_ps(_mm512_castsi512_ps(even_floats(mag)), even);
    __m512 o = _mm512_add_ps(_mm512_castsi512_ps(odd_floats(mag)), odd);
    __m512i high = _mm512_slli_epi32(_mm512_castps_si512(o), 16);
    return _mm512_and_si512(mix(_mm512_set1_epi32(0xFFFF), _mm512_castps_si512(e), high),
                            words(0xF));
}
// Those magnitudes.
INLINE __mmask32 below_normal(__m512i mag, __m512i edge) {
    return _mm512_cmple_epu16_mask(mag, _mm512_add_epi16(_mm512_slli_epi16(edge, 7), words(0x7F)));
}
