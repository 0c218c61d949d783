// quant_avx512_decode.c - E4M3 codes back to BF16 with AVX-512 (quant_lanes.h: QuantTiles).
//
// A normal code is four bits short of its value's BF16 bits and differs by a constant in the
// exponent: four instructions for 32 codes. Only where one of 64 is a zero, a subnormal or NaN are
// all 64 decoded the longer way.
#include "quant_lanes.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "quant_avx512.h"

INLINE __m512i rounded(__m512i x) { // floats, not NaN; the upper half of each is the result
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(x, _mm512_add_epi32(even, _mm512_set1_epi32(0x7FFF)));
}

// BF16 bits of E4M3 codes 0 to 7, the subnormals.
static const uint16_t low_values[32] = {0, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60};

// 32 codes times 2^(b - 127); low: low_values times the same. A NaN code gives a NaN of its sign.
INLINE __m512i decode32(__m256i q, int b, __m512i low) {
    __m512i code = _mm512_cvtepu8_epi16(q), mag = _mm512_and_si512(code, words(0x7F));
    __m512i v = _mm512_add_epi16(_mm512_slli_epi16(mag, 4), words((120 + b - 127) * 128));
    v = _mm512_mask_permutexvar_epi16(v, _mm512_cmplt_epu16_mask(mag, words(8)), mag, low);
    v = _mm512_mask_mov_epi16(v, _mm512_cmpeq_epi16_mask(mag, words(0x7F)), words(0x7FC0));
    return mix(words(0x7FFF), v, _mm512_slli_epi16(code, 8));
}

// Values times s in FP32, rounded to BF16. Such NaNs as decode32 makes stay.
INLINE __m512i scaled32(__m512i v, __m512 s) {
    __m512 even = _mm512_mul_ps(_mm512_castsi512_ps(even_floats(v)), s);
    __m512 odd = _mm512_mul_ps(_mm512_castsi512_ps(odd_floats(v)), s);
    __m512i e = _mm512_srli_epi32(rounded(_mm512_castps_si512(even)), 16);
    return mix(_mm512_set1_epi32(0xFFFF), e, rounded(_mm512_castps_si512(odd)));
}

// Whether any of 64 codes is a zero, a subnormal or NaN.
INLINE bool has_special(__m512i q) {
    __m512i mag = _mm512_and_si512(q, _mm512_set1_epi8(0x7F));
    return _mm512_cmpge_epu8_mask(_mm512_sub_epi8(mag, _mm512_set1_epi8(8)),
                                  _mm512_set1_epi8(0x7F - 8)) != 0;
}

// 32 normal codes; offset: that of the exponents.
INLINE __m512i normal32(__m256i q, __m512i offset) {
    __m512i code = _mm512_slli_epi16(_mm512_cvtepi8_epi16(q), 4);
    return _mm512_add_epi16(_mm512_and_si512(code, words((short)0x87F0)), offset);
}

// 64 codes times s, exponent byte b.
INLINE void decode64(__m512i *v, __m512i q, bool is_pow2, float s, int b) {
    const __m512i low = _mm512_loadu_si512(low_values);
    const __mmask32 nonzero = ~1u;
    __m256i q0 = _mm512_castsi512_si256(q), q1 = _mm512_extracti64x4_epi64(q, 1);
    bool is_exact = is_pow2 && b >= E4M3_EXACT_LOW && b <= E4M3_EXACT_HIGH;
    if (__builtin_expect(is_exact && !has_special(q), 1)) {
        __m512i offset = words((120 + b - 127) * 128);
        v[0] = normal32(q0, offset);
        v[1] = normal32(q1, offset);
    } else if (is_exact) {
        __m512i scaled = _mm512_mask_add_epi16(low, nonzero, low, words((b - 127) * 128));
        v[0] = decode32(q0, b, scaled);
        v[1] = decode32(q1, b, scaled);
    } else {
        v[0] = scaled32(decode32(q0, 127, low), _mm512_set1_ps(s));
        v[1] = scaled32(decode32(q1, 127, low), _mm512_set1_ps(s));
    }
}

void quant_avx512_take_codes(uint16_t *dst, int64_t dst_ld, const uint8_t *q, int64_t ld,
                             const float *s, bool is_pow2, int64_t m, int64_t w, uint16_t *most) {
    __mmask64 in = first64(w);
    __m512i m0 = _mm512_loadu_si512(most), m1 = _mm512_loadu_si512(most + 32);
    for (int64_t r = 0; r < m; r++, q += ld) {
        __m512i v[2];
        __builtin_prefetch(q + w, 0, 2);
        __m512i codes = w >= 64 ? _mm512_loadu_si512(q) : _mm512_maskz_loadu_epi8(in, q);
        decode64(v, codes, is_pow2, s[r], (int)(f32_bits(s[r]) >> 23));
        m0 = _mm512_max_epu16(m0, magnitude(v[0]));
        m1 = _mm512_max_epu16(m1, magnitude(v[1]));
        _mm512_storeu_si512(dst + r * dst_ld, v[0]);
        _mm512_storeu_si512(dst + r * dst_ld + 32, v[1]);
    }
    _mm512_storeu_si512(most, m0);
    _mm512_storeu_si512(most + 32, m1);
}

void quant_avx512_decode(uint16_t *dst, const uint8_t *q, const uint8_t *s, int64_t scol,
                         int64_t tiles) {
    for (int64_t t = 0; t < tiles; t++, s += scol, q += TILE, dst += TILE) {
#pragma GCC unroll 2
        for (int i = 0; i < TILE; i += 64) {
            __m512i v[2];
            __builtin_prefetch(q + i + AHEAD / 2);
            decode64(v, _mm512_loadu_si512(q + i), true, f32_from_e8m0(*s), *s);
            _mm512_storeu_si512(dst + i, v[0]);
            _mm512_storeu_si512(dst + i + 32, v[1]);
        }
    }
}
#endif
