// quant_avx512_turn.h - what the quant_avx512*.c with tiles along the tokens share: counters of their scales, and the
// transposition. Included by files with AVX-512 flags only.
#pragma once
#include "quant_avx512.h"

enum {
    GROUP = 16,     // rows that are turned together
    FAR_AWAY = 1024 // rows of codes further apart are fetched ahead: the matrix is no small one
};

// The scales of 32 channels.
typedef struct Scales32 {
    __m512i b;        // exponent bytes
    __m512 even, odd; // or floats
    __mmask32 above;  // channels whose largest quotient lies above 448
    __m512i most;
} Scales32;

// Adds the scales of a tile per channel in `channels` to the counters.
INLINE void count_scales(const Scales32 *k, __mmask32 channels, QuantCount *count) {
    uint16_t b[32];
    __mmask32 left = _mm512_mask_test_epi16_mask(channels, k->most, k->most);
    _mm512_storeu_si512(b, k->b);
    while (left) { // neighbours tend to have few different scales
        int one = b[__builtin_ctz(left)];
        __mmask32 same = _mm512_mask_cmpeq_epi16_mask(left, k->b, words(one));
        count->scales[quant_scale_bin(f32_from_bits((uint32_t)one << 23))] +=
            __builtin_popcount(same);
        left &= ~same;
    }
    int32_t amax = largest_word(k->most) << 16;
    count->amax_bits = amax > count->amax_bits ? amax : count->amax_bits;
    count->tiles += __builtin_popcount(channels);
}

// 8 x 8 words in each quarter of 8 registers: out[j] has, in quarter l, the 16 codes of channel 8l
// + j.
INLINE void turn_quarters(__m512i *out, const __m512i *p) {
    __m512i a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm512_unpacklo_epi16(p[i], p[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi16(p[i], p[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi32(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi32(a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        out[2 * i] = _mm512_unpacklo_epi64(b[i], b[i + 4]);
        out[2 * i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 4]);
    }
}

// Rows of 64 tokens of 4 channels each, from four groups; m of them stored. Quarter l of t[..][j] is channel
// apart * l + j; those from w on are not stored.
INLINE void store_turned(const bool is_far, uint8_t *q, int64_t ld, __m512i t[][8], int64_t m,
                         int64_t w, const int apart) {
    __mmask64 k = first64(m);
    for (int j = 0; j < 8; j++) {
        __m512i a = _mm512_shuffle_i32x4(t[0][j], t[1][j], 0x44);
        __m512i b = _mm512_shuffle_i32x4(t[0][j], t[1][j], 0xEE);
        __m512i c = _mm512_shuffle_i32x4(t[2][j], t[3][j], 0x44);
        __m512i d = _mm512_shuffle_i32x4(t[2][j], t[3][j], 0xEE);
        __m512i row[4] = {_mm512_shuffle_i32x4(a, c, 0x88), _mm512_shuffle_i32x4(a, c, 0xDD),
                          _mm512_shuffle_i32x4(b, d, 0x88), _mm512_shuffle_i32x4(b, d, 0xDD)};
#pragma GCC unroll 4
        for (int l = 0; l < 4; l++) {
            if (apart * l + j >= w) continue;
            if (m >= 64 && is_far)
                _mm512_stream_si512((__m512i *)(q + (apart * l + j) * ld), row[l]);
            else if (m >= 64)
                _mm512_storeu_si512(q + (apart * l + j) * ld, row[l]);
            else
                _mm512_mask_storeu_epi8(q + (apart * l + j) * ld, k, row[l]);
        }
    }
}
