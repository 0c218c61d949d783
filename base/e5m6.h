// e5m6.h - exact scalar codec of E5M6, the 12-bit format of the cached attention output. Host and device.
//
// 1 sign, 5 exponent (bias 15), 6 mantissa bits; built like E4M3FN: no infinity, NaN = 0x7FF / 0xFFF, largest
// finite 2^16 * (1 + 62/64) = 129024, subnormals down to 2^-20. Conversion rounds to nearest even and saturates.
// 7 significant bits, so that code * power of two is exact in BF16. DeepSeek-V3 report 3.3.3.
//
// Memory: two codes in 3 bytes, the first in the low bits: bytes a7..a0, b3..b0 a11..a8, b11..b4. A row of a
// matrix [M,K] in tiles of 128 is ceil(K/2) such triples (an odd last one has b = 0), then one scale byte per
// tile (e8m0, see fp8.h), then zeros up to a multiple of 4 bytes: e5m6_row_bytes in all.
#pragma once
#include "fp8.h"

#define E5M6_MAX 129024.0f
#define E5M6_NAN 0x7FF
#define E5M6_TILE 128

// f32_from_e5m6: exact value of a code (its low 12 bits).
static HD inline float f32_from_e5m6(uint16_t c) {
    uint32_t sign = (uint32_t)(c & 0x800u) << 20;
    uint32_t mag = c & 0x7FFu;
    // Shift exponent and mantissa into place and rebias by 2^112: exact, subnormals included.
    float v = f32_from_bits(mag << 17) * 5192296858534827628530496329220096.0f; // 2^112
    uint32_t u = mag == E5M6_NAN ? 0x7FC00000u : f32_bits(v);
    return f32_from_bits(u | sign);
}
// e5m6_from_f32: round to nearest even, saturate at +-129024 (infinity too), NaN -> NaN code.
static HD inline uint16_t e5m6_from_f32(float x) {
    uint32_t sign = (f32_bits(x) >> 20) & 0x800u;
    int32_t m = (int32_t)(f32_bits(x) & 0x7FFFFFFFu);
    // Below 2^-14 the unit is 2^-20: adding 1.5 * 2^23 rounds; 64 = the smallest normal, code 0x040.
    float a = f32_from_bits((uint32_t)(m < 0x38800000 ? m : 0)) * 1048576.0f + 12582912.0f;
    int32_t low = (int32_t)(f32_bits(a) & 0x7Fu);
    int32_t normal = ((m + 0xFFFF + ((m >> 17) & 1)) >> 17) - ((127 - 15) << 6);
    int32_t c = m < 0x38800000 ? low : normal;
    c = m >= 0x47FC0000 ? 0x7FE : c; // 129024
    c = m > 0x7F800000 ? E5M6_NAN : c;
    return (uint16_t)(sign | (uint32_t)c);
}

// tile_scale_e5m6: exponent byte b of a tile's scale 2^(b-127): amax = m*2^e with 1 <= m < 2, s = 2^(e-16) if
// m <= 1.96875 (amax/s fits), else 2^(e-15), never below 2^-126; 127 (s = 1) for an all-zero tile.
static HD inline uint8_t tile_scale_e5m6(float amax) {
    if (!(amax > 0.0f)) return 127;
    uint32_t u = f32_bits(amax);
    int b = (int)(u >> 23) - 16 + ((u & 0x7FFFFFu) > 0x7C0000u);
    return (uint8_t)(b < 1 ? 1 : b);
}

// e5m6_row_bytes: bytes of one row of K values.
static inline int64_t e5m6_row_bytes(int64_t K) {
    return ((K + 1) / 2 * 3 + (K + E5M6_TILE - 1) / E5M6_TILE + 3) / 4 * 4;
}
