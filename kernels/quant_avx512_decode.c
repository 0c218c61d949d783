// quant_avx512_decode.c - E4M3 codes back to BF16, and to tiles along the tokens, with AVX-512
// (quant_lanes.h: QuantTiles).
//
// A normal code is four bits short of its value's BF16 bits and differs by a constant in the
// exponent: four instructions for 32 codes. Only where one of 64 is a zero, a subnormal or NaN are
// all 64 decoded the longer way.
#include "quant_lanes.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "quant_avx512_turn.h"

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

// --- from rows to tiles along the tokens ---
//
// Between powers of two a normal code moves by eight times the difference of exponents: 64 codes are worked on as
// bytes, without values. A code's level, where the row's exponent is `most` less d: code - 8 d. The largest level of a
// channel, if normal, is that of its largest value, and makes its scale. Codes that are not normal, before or after,
// take the way of values; a channel without a normal level, NaN and exponents near the ends of the range are not for
// these loops.

enum { CODE_NAN = 0x7F, LEAST_NORMAL = 8, MOST_STEPS = 31, LEAST_MOST = E4M3_POW2_LEAST + 14 };

typedef struct Retile {
    uint8_t code[TILE][64] __attribute__((aligned(64)));
    uint32_t down[TILE]; // 8 d in each byte
    __m512i up;          // what a level is less than the new code
    Scales32 k[2];       // channels 0 to 31, 32 to 63
    const uint8_t *e;    // exponent bytes of the rows
} Retile;

// 8 d of the rows; false if an exponent is not for these loops.
static bool steps_of(Retile *k, const uint8_t *e, int64_t m, int *most) {
    uint8_t high = 0, low = 255;
    for (int64_t r = 0; r < m; r++) {
        high = e[r] > high ? e[r] : high;
        low = e[r] < low ? e[r] : low;
    }
    if (low < E4M3_EXACT_LOW || high > E4M3_EXACT_HIGH || high < LEAST_MOST) return false;
    for (int64_t r = 0; r < TILE; r++) {
        uint32_t d = r < m ? (uint32_t)(high - e[r]) : 0;
        k->down[r] = (d < MOST_STEPS ? d : MOST_STEPS) * 8 * 0x01010101u;
    }
    *most = high;
    return true;
}

INLINE __m512i code_magnitude(__m512i v) {
    return _mm512_and_si512(v, _mm512_set1_epi8(0x7F));
}

// Takes the codes, and makes the scales of their channels; false if there is one that is not for these loops.
INLINE bool levels_of(Retile *k, const uint8_t *q, int64_t ld, int64_t m, int most) {
    __m512i level = _mm512_setzero_si512(), largest = level;
    for (int64_t r = 0; r < m; r++, q += ld) {
        __builtin_prefetch(q + 64, 0, 2);
        __m512i v = _mm512_loadu_si512(q), mag = code_magnitude(v);
        _mm512_store_si512(k->code[r], v);
        largest = _mm512_max_epu8(largest, mag);
        level = _mm512_max_epu8(level, _mm512_subs_epu8(mag, _mm512_set1_epi32((int)k->down[r])));
    }
    if (_mm512_cmpeq_epu8_mask(largest, _mm512_set1_epi8(CODE_NAN)) ||
        _mm512_cmplt_epu8_mask(level, _mm512_set1_epi8(LEAST_NORMAL)))
        return false;
    for (int64_t r = m; r < TILE; r++) memset(k->code[r], LEAST_NORMAL, 64); // anything normal
    // The scale's exponent is `most` less 15 and more the level's, one more above 1.75 (tile_scale_e8m0).
    __m512i t = _mm512_srli_epi16(_mm512_add_epi8(level, _mm512_set1_epi8(1)), 3);
    t = _mm512_and_si512(t, _mm512_set1_epi8(0x1F));
    k->up = _mm512_sub_epi8(_mm512_set1_epi8(15 * 8), _mm512_slli_epi16(t, 3));
    for (int i = 0; i < 2; i++) {
        __m512i l = _mm512_cvtepu8_epi16(i ? _mm512_extracti64x4_epi64(level, 1) : _mm512_castsi512_si256(level));
        __m512i n = _mm512_cvtepu8_epi16(i ? _mm512_extracti64x4_epi64(t, 1) : _mm512_castsi512_si256(t));
        k->k[i].b = _mm512_add_epi16(n, words(most - 15));
        k->k[i].most = _mm512_add_epi16(_mm512_slli_epi16(l, 4), words((most - 7) << 7));
    }
    return true;
}

// The new codes of row r; *least: the smallest magnitude, old or new.
INLINE __m512i moved(const Retile *k, int64_t r, __m512i *least) {
    __m512i v = _mm512_load_si512(k->code[r]), mag = code_magnitude(v);
    __m512i to = _mm512_subs_epu8(_mm512_add_epi8(mag, k->up), _mm512_set1_epi32((int)k->down[r]));
    *least = _mm512_min_epu8(*least, _mm512_min_epu8(mag, to));
    return mix(_mm512_set1_epi8(0x7F), to, v);
}
INLINE bool is_low(__m512i least) {
    return _mm512_cmplt_epu8_mask(least, _mm512_set1_epi8(LEAST_NORMAL)) != 0;
}

// The same by way of values, for any codes.
static __attribute__((noinline)) __m512i moved_low(const Retile *k, int64_t r, int64_t *underflow) {
    __m512i v[2], edge = words(E4M3_EDGE);
    decode64(v, _mm512_load_si512(k->code[r]), true, f32_from_e8m0(k->e[r]), k->e[r]);
    __m512i c0 = pow2_codes(v[0], _mm512_sub_epi16(k->k[0].b, edge), E4M3_DROP, underflow);
    __m512i c1 = pow2_codes(v[1], _mm512_sub_epi16(k->k[1].b, edge), E4M3_DROP, underflow);
    return packed(c0, c1, v[0], v[1]);
}

// Codes again the rows of a group that have a code below the normal range.
static __attribute__((noinline)) void low_group(__m512i *c, const Retile *k, int64_t r0, int64_t *underflow) {
    for (int i = 0; i < GROUP; i++) {
        __m512i least = _mm512_set1_epi8(-1);
        moved(k, r0 + i, &least);
        if (is_low(least)) c[i] = moved_low(k, r0 + i, underflow);
    }
}

// 16 rows of 64 channels, moved and turned: low[j] and high[j] have, in quarter l, channels 16 l + j and 16 l + j + 8.
INLINE void retile_group(const Retile *k, int64_t r0, __m512i *low, __m512i *high, int64_t *underflow) {
    __m512i c[GROUP], a[GROUP / 2], b[GROUP / 2], least = _mm512_set1_epi8(-1);
#pragma GCC unroll 16
    for (int i = 0; i < GROUP; i++) c[i] = moved(k, r0 + i, &least);
    if (__builtin_expect(is_low(least), 0)) {
        __m512i again[GROUP];
        memcpy(again, c, sizeof again);
        low_group(again, k, r0, underflow);
        memcpy(c, again, sizeof c);
    }
#pragma GCC unroll 8
    for (int i = 0; i < GROUP / 2; i++) {
        a[i] = _mm512_unpacklo_epi8(c[2 * i], c[2 * i + 1]);
        b[i] = _mm512_unpackhi_epi8(c[2 * i], c[2 * i + 1]);
    }
    turn_quarters(low, a);
    turn_quarters(high, b);
}

INLINE void retile_all(const bool is_far, uint8_t *y, int64_t y_ld, const Retile *k, int64_t m, int64_t *underflow) {
    for (int64_t i = 0; i < m; i += 4 * GROUP) {
        __m512i low[4][8], high[4][8];
        for (int g = 0; g < 4; g++) retile_group(k, i + g * GROUP, low[g], high[g], underflow);
        store_turned(is_far, y + i, y_ld, low, m - i, 64, 16);
        store_turned(is_far, y + 8 * y_ld + i, y_ld, high, m - i, 64, 16);
    }
}

bool quant_avx512_retile(uint8_t *y, int64_t y_ld, bool is_far, uint8_t *s, const uint8_t *q, int64_t ld,
                         const uint8_t *e, int64_t m, QuantCount *count) {
    Retile k;
    int most;
    k.e = e;
    if (!steps_of(&k, e, m, &most) || !levels_of(&k, q, ld, m, most)) return false;
    for (int64_t c = 0; c < 64 && y_ld > FAR_AWAY && !is_far; c++) { // what the next 64 channels write
        __builtin_prefetch(y + (64 + c) * y_ld, 1, 2);
        __builtin_prefetch(y + (64 + c) * y_ld + 64, 1, 2);
    }
    for (int i = 0; i < 2; i++) {
        _mm256_storeu_si256((__m256i *)(s + 32 * i), _mm512_cvtepi16_epi8(k.k[i].b));
        count_scales(&k.k[i], ~0u, count);
    }
    count->values += m * 64;
    if (is_far) retile_all(true, y, y_ld, &k, m, &count->underflow);
    else retile_all(false, y, y_ld, &k, m, &count->underflow);
    return true;
}
#endif
