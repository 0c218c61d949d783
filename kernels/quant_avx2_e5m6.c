// quant_avx2_e5m6.c - tiles of the 12-bit cache with AVX2 (quant_lanes.h: QuantTiles); format:
// e5m6.h. As quant_avx512_e5m6.c; tiles with codes below the smallest normal one take a loop.
#include "e5m6.h"
#include "quant_core.h"
#include "quant_lanes.h"

#if defined(__AVX2__) && !defined(__AVX512BW__)
#include "quant_avx2.h"

enum {
    PACKED = 24 // bytes of 16 codes
};

// 16 codes in words to 24 bytes.
INLINE void store_packed(uint8_t *dst, __m256i code) {
    const __m256i bytes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m256i order = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7);
    __m256i pairs = _mm256_madd_epi16(code, _mm256_set1_epi32(4096 << 16 | 1));
    __m256i p = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(pairs, bytes), order);
    _mm_storeu_si128((__m128i *)(void *)dst, _mm256_castsi256_si128(p));
    _mm_storel_epi64((__m128i *)(void *)(dst + 16), _mm256_extracti128_si256(p, 1));
}

// The other way; bits 12 to 15 are anything.
INLINE __m256i load_packed(const uint8_t *src) {
    const __m256i bytes =
        _mm256_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1, //
                         4, 5, 6, -1, 7, 8, 9, -1, 10, 11, 12, -1, 13, 14, 15, -1);
    __m256i p = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)src));
    p = _mm256_inserti128_si256(p, _mm_loadu_si128((const __m128i *)(const void *)(src + 8)), 1);
    p = _mm256_shuffle_epi8(p, bytes);
    return _mm256_blend_epi16(p, _mm256_slli_epi32(p, 4), 0xAA);
}

// Codes of a tile where one is 0 or a subnormal.
static void any_codes(__m256i v[REGS], float inverse, int64_t *underflow) {
    for (int i = 0; i < REGS; i++) {
        uint16_t code[WORDS];
        store(code, v[i]);
        for (int j = 0; j < WORDS; j++) {
            bool is_zero = (code[j] & 0x7FFF) == 0;
            code[j] = e5m6_from_f32(f32_from_bf16(code[j]) * inverse);
            *underflow += (code[j] & 0x7FF) == 0 && !is_zero;
        }
        v[i] = load(code);
    }
}

INLINE bool encode(const bool is_f32, uint8_t *dst, uint8_t *scale, const void *x,
                   QuantCount *count) {
    __m256i v[REGS];
    int amax = take_tile(v, x, is_f32);
    if (amax >= BF16_INF) return false;
    uint8_t b = tile_scale_e5m6(f32_from_bf16((uint16_t)amax));
    if (b < E5M6_POW2_LEAST) return false;
    __m256i less = words((b - 15) * 128), end = words((b - 15) * 128 + 0x7F), least = words(-1);
#pragma GCC unroll 8
    for (int i = 0; i < REGS; i++) {
        if (is_f32) v[i] = in_order(v[i]);
        least = _mm256_min_epu16(least, above_zero(v[i]));
    }
    if (!none_below(least, end)) {
        any_codes(v, f32_from_e8m0((uint8_t)(254 - b)), &count->underflow);
#pragma GCC unroll 8
        for (int i = 0; i < REGS; i++) store_packed(dst + i * PACKED, v[i]);
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < REGS; i++) {
            __m256i sign = _mm256_and_si256(_mm256_srli_epi16(v[i], 4), words(0x800));
            store_packed(dst + i * PACKED, _mm256_or_si256(normal_codes(v[i], less, 1), sign));
        }
    }
    *scale = b;
    count->values += E5M6_TILE;
    quant_tile_counted(count, amax << 16, false, f32_from_e8m0(b));
    return true;
}

bool quant_avx2_e5m6(uint8_t *dst, uint8_t *scale, const void *x, bool is_f32, QuantCount *count) {
    return is_f32 ? encode(true, dst, scale, x, count) : encode(false, dst, scale, x, count);
}

bool quant_avx2_from_e5m6(uint16_t *dst, const uint8_t *src, uint8_t b) {
    if (b < E5M6_EXACT_LOW || b > E5M6_EXACT_HIGH) return false;
    const __m256i none = _mm256_setzero_si256();
    __m256i v[REGS], strange = none, offset = words((112 + b - 127) * 128);
#pragma GCC unroll 8
    for (int i = 0; i < REGS; i++) {
        __m256i code = load_packed(src + i * PACKED), mag = _mm256_and_si256(code, words(0x7FF));
        __m256i is_zero = _mm256_cmpeq_epi16(mag, none);
        // Subnormals, which are below 64 but not 0, and NaN.
        __m256i is_low = _mm256_andnot_si256(is_zero, _mm256_cmpgt_epi16(words(64), mag));
        __m256i is_nan = _mm256_cmpeq_epi16(mag, words(E5M6_NAN));
        strange = _mm256_or_si256(strange, _mm256_or_si256(is_low, is_nan));
        __m256i sign = _mm256_and_si256(_mm256_slli_epi16(code, 4), words(0x8000));
        v[i] = _mm256_add_epi16(_mm256_slli_epi16(mag, 1), offset);
        v[i] = _mm256_or_si256(_mm256_andnot_si256(is_zero, v[i]), sign);
    }
    if (!is_none(strange)) return false;
#pragma GCC unroll 8
    for (int i = 0; i < REGS; i++) store(dst + i * WORDS, v[i]);
    return true;
}
#endif
