// quant_avx2_e5m6.c - whole tiles of E5M6 codes with AVX2, as quant_avx512_e5m6.c.
#include <string.h>

#include "e5m6.h"
#include "quant_core.h"
#include "quant_lanes.h"

#if defined(__AVX2__) && !defined(__AVX512BW__)
#include "quant_avx2.h"

enum { E5M6_LEAST = 22 }; // exponent byte of a scale from which on BF16's subnormals have code 0

// 12-bit codes of a tile; false if one is 0 or a subnormal.
static bool e5m6_codes(uint16_t *code, const uint16_t *v, int b) {
    int edge = (b - 15) * 128;
    __m256i less = words(edge), least = words(-1);
    for (int i = 0; i < E5M6_TILE; i += WORDS) {
        __m256i x = load(v + i), m = magnitude(x);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi16(x, 1), words(1));
        least = _mm256_min_epu16(least, m);
        m = _mm256_srli_epi16(_mm256_subs_epu16(_mm256_add_epi16(m, odd), less), 1);
        __m256i sign = _mm256_and_si256(_mm256_srli_epi16(x, 4), words(0x800));
        store(code + i, _mm256_or_si256(m, sign));
    }
    __m256i end = words(edge + 0x80);
    return !is_any(_mm256_xor_si256(_mm256_max_epu16(least, end), least));
}

// The values of a tile as BF16 bits, at `room` if they are none yet; the largest magnitude, or
// BF16_INF if one is not finite.
static int e5m6_values(const uint16_t **v, uint16_t room[E5M6_TILE], const void *x, bool is_f32) {
    __m256i top = _mm256_setzero_si256();
    __m256 nan = _mm256_setzero_ps();
    for (int i = 0; i < E5M6_TILE; i += WORDS) {
        __m256i y =
            is_f32 ? in_order(round16((const float *)x + i, &nan)) : load((const uint16_t *)x + i);
        if (is_f32) store(room + i, y);
        top = _mm256_max_epu16(top, magnitude(y));
    }
    *v = is_f32 ? room : x;
    return _mm256_movemask_ps(nan) ? BF16_INF : largest_word(top);
}

// Four codes at a time in 8 bytes, of which 6 count.
bool quant_avx2_e5m6(uint8_t *dst, uint8_t *scale, const void *x, bool is_f32, QuantCount *count) {
    uint16_t room[E5M6_TILE], code[E5M6_TILE];
    const uint16_t *v;
    int amax = e5m6_values(&v, room, x, is_f32);
    if (amax >= BF16_INF) return false;
    uint8_t b = tile_scale_e5m6(f32_from_bf16((uint16_t)amax));
    if (b < E5M6_LEAST) return false;
    if (!e5m6_codes(code, v, b)) {
        float inverse = f32_from_e8m0((uint8_t)(254 - b));
        for (int i = 0; i < E5M6_TILE; i++) {
            code[i] = e5m6_from_f32(f32_from_bf16(v[i]) * inverse);
            count->underflow += (code[i] & 0x7FF) == 0 && (v[i] & 0x7FFF) != 0;
        }
    }
    for (int i = 0; i < E5M6_TILE; i += 4) {
        uint64_t p = code[i] | (uint64_t)code[i + 1] << 12 | (uint64_t)code[i + 2] << 24 |
                     (uint64_t)code[i + 3] << 36;
        memcpy(dst + i / 2 * 3, &p, i + 4 < E5M6_TILE ? 8 : 6);
    }
    *scale = b;
    count->values += E5M6_TILE;
    quant_tile_counted(count, amax << 16, false, f32_from_e8m0(b));
    return true;
}
#endif
