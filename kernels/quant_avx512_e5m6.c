// quant_avx512_e5m6.c - tiles of the 12-bit cache with AVX-512 (quant_lanes.h: QuantTiles); format:
// e5m6.h. As E4M3 in quant_avx512.c, but one bit of BF16 is lost and codes are packed in pairs.
#include "e5m6.h"
#include "quant_lanes.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "quant_avx512.h"

enum {
    DROP = 1,         // bits of BF16 that a code has not
    EDGE = 15,        // exponent byte of a scale less the edge of quant_avx512.h
    PACKED = 48       // bytes of 32 codes
};

// 32 codes in the low 12 bits of words to 48 bytes.
INLINE void store_packed(uint8_t *dst, __m512i code) {
    const __m512i bytes = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15);
    __m512i pairs = mix(_mm512_set1_epi32(0xFFF), code, _mm512_srli_epi32(code, 4));
    __m512i p = _mm512_permutexvar_epi32(order, _mm512_shuffle_epi8(pairs, bytes));
    _mm256_storeu_si256((__m256i *)dst, _mm512_castsi512_si256(p));
    _mm_storeu_si128((__m128i *)(dst + 32), _mm512_extracti32x4_epi32(p, 2));
}

// The other way; bits 12 to 15 are anything.
INLINE __m512i load_packed(const uint8_t *src) {
    const __m512i bytes =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1));
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11);
    __m512i p = _mm512_inserti32x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)src)),
                                   _mm_loadu_si128((const __m128i *)(src + 32)), 2);
    p = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(order, p), bytes);
    return mix(_mm512_set1_epi32(0xFFF), p, _mm512_slli_epi32(p, 4));
}

INLINE bool encode(const bool is_f32, uint8_t *dst, uint8_t *scale, const char *x,
                   QuantCount *count) {
    __m512i v[4], code[4], most = _mm512_setzero_si512();
    __mmask16 nan = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < (is_f32 ? 2 : 1); j++)
            __builtin_prefetch(x + AHEAD + i * (is_f32 ? 128 : 64) + j * 64);
        v[i] = take32(x + i * (is_f32 ? 128 : 64), is_f32, 32, &nan);
        most = _mm512_max_epu16(most, magnitude(v[i]));
    }
    int amax = largest_word(most);
    if (nan || amax >= BF16_INF) return false;
    uint8_t b = tile_scale_e5m6(f32_from_bf16((uint16_t)amax));
    if (b < E5M6_POW2_LEAST) return false;
    __m512i edge = words(b - EDGE), less = pow2_less(edge, DROP), least = words(-1);
    __mmask32 is_low = 0;
    int64_t underflow = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        code[i] = _mm512_srli_epi16(pow2_rounded(v[i], less, DROP), DROP);
        is_low |= _mm512_testn_epi16_mask(code[i], words(0x7C0)); // 0 or a subnormal
    }
    if (__builtin_expect(is_low != 0, 0)) {
        for (int i = 0; i < 4; i++) watch_small(&least, v[i]);
        for (int i = 0; i < 4 && has_small(least, edge); i++)
            code[i] = pow2_codes(v[i], edge, DROP, &underflow);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        store_packed(dst + i * PACKED, mix(words(0x7FF), code[i], _mm512_srli_epi16(v[i], 4)));
    *scale = b;
    count->values += E5M6_TILE;
    count->underflow += underflow;
    quant_tile_counted(count, amax << 16, false, f32_from_e8m0(b));
    return true;
}

bool quant_avx512_e5m6(uint8_t *dst, uint8_t *scale, const void *x, bool is_f32,
                       QuantCount *count) {
    return is_f32 ? encode(true, dst, scale, x, count) : encode(false, dst, scale, x, count);
}

// BF16 bits of the codes below the smallest normal: i * 2^-20.
static const uint16_t low_values[64] = {
    0,      0x3580, 0x3600, 0x3640, 0x3680, 0x36A0, 0x36C0, 0x36E0, 0x3700, 0x3710, 0x3720,
    0x3730, 0x3740, 0x3750, 0x3760, 0x3770, 0x3780, 0x3788, 0x3790, 0x3798, 0x37A0, 0x37A8,
    0x37B0, 0x37B8, 0x37C0, 0x37C8, 0x37D0, 0x37D8, 0x37E0, 0x37E8, 0x37F0, 0x37F8, 0x3800,
    0x3804, 0x3808, 0x380C, 0x3810, 0x3814, 0x3818, 0x381C, 0x3820, 0x3824, 0x3828, 0x382C,
    0x3830, 0x3834, 0x3838, 0x383C, 0x3840, 0x3844, 0x3848, 0x384C, 0x3850, 0x3854, 0x3858,
    0x385C, 0x3860, 0x3864, 0x3868, 0x386C, 0x3870, 0x3874, 0x3878, 0x387C,
};

bool quant_avx512_from_e5m6(uint16_t *dst, const uint8_t *src, uint8_t b) {
    if (b < E5M6_EXACT_LOW || b > E5M6_EXACT_HIGH) return false;
    const __mmask32 nonzero = ~1u;
    __m512i by = words((b - 127) * 128), offset = words((112 + b - 127) * 128);
    __m512i low0 = _mm512_loadu_si512(low_values), low1 = _mm512_loadu_si512(low_values + 32);
    low0 = _mm512_mask_add_epi16(low0, nonzero, low0, by);
    low1 = _mm512_add_epi16(low1, by);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i code = load_packed(src + i * PACKED), mag = _mm512_and_si512(code, words(0x7FF));
        __m512i v = _mm512_add_epi16(_mm512_slli_epi16(mag, DROP), offset);
        v = _mm512_mask_mov_epi16(v, _mm512_cmplt_epu16_mask(mag, words(64)),
                                  _mm512_permutex2var_epi16(low0, mag, low1));
        v = _mm512_mask_mov_epi16(v, _mm512_cmpeq_epi16_mask(mag, words(E5M6_NAN)), words(0x7FC0));
        _mm512_storeu_si512(dst + 32 * i, mix(words(0x7FFF), v, _mm512_slli_epi16(code, 4)));
    }
    return true;
}
#endif
