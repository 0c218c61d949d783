// quant_core.h - the arithmetic of the quantiser on one value, written without branches so that
// loops over it become vector code. The same bits as the plain functions of fp8.h (tested). Host
// and device.
#pragma once
#include "fp8.h"
#include "quant.h"

#define F32_INF_BITS 0x7F800000

// quant_round: x rounded to BF16, as float; NaN stays a NaN of the same sign.
static HD inline float quant_round(float x) {
    uint32_t u = f32_bits(x);
    uint32_t r = (u + 0x7FFFu + ((u >> 16) & 1u)) & 0xFFFF0000u;
    uint32_t quiet = (u | 0x400000u) & 0xFFFF0000u;
    return f32_from_bits((int32_t)(u & 0x7FFFFFFFu) > F32_INF_BITS ? quiet : r);
}

// quant_magnitude: the bits of |x| if x is finite, else 0. Larger magnitudes have larger bits.
static HD inline int32_t quant_magnitude(float x) {
    int32_t m = (int32_t)(f32_bits(x) & 0x7FFFFFFFu);
    return m < F32_INF_BITS ? m : 0;
}

// quant_code: E4M3 code of q = x / s. An x that is not finite becomes the NaN code; a q too large,
// infinity included (a static scale), saturates.
static HD inline uint32_t quant_code(float q, float x) {
    uint32_t u = f32_bits(q), mag = u & 0x7FFFFFFFu;
    int32_t m = (int32_t)mag;
    int32_t is_bad = (int32_t)(f32_bits(x) & 0x7FFFFFFFu) >= F32_INF_BITS;
    int32_t normal = ((int32_t)(mag + 0x7FFFFu + ((mag >> 20) & 1u)) >> 20) - ((127 - 7) << 3);
    normal = normal > 0x7E ? 0x7E : normal;
    // Below 2^-6 the unit is 2^-9, which is the unit of floats in [2^14, 2^15): adding rounds to
    // it.
    int32_t low = (int32_t)(f32_bits(f32_from_bits((uint32_t)m) + 24576.0f) & 0xFu);
    int32_t code = m < 0x3C800000 ? low : normal;
    code = is_bad ? E4M3_NAN : code;
    return (uint32_t)code | ((u >> 24) & 0x80u);
}

// quant_code_e5m2: the same for E5M2.
static HD inline uint32_t quant_code_e5m2(float q, float x) {
    uint32_t u = f32_bits(q), mag = u & 0x7FFFFFFFu;
    int32_t m = (int32_t)mag;
    int32_t is_bad = (int32_t)(f32_bits(x) & 0x7FFFFFFFu) >= F32_INF_BITS;
    int32_t normal = ((int32_t)(mag + 0xFFFFFu + ((mag >> 21) & 1u)) >> 21) - ((127 - 15) << 2);
    normal = normal > 0x7B ? 0x7B : normal;
    // Below 2^-14 the unit is 2^-16, which is the unit of floats in [2^7, 2^8).
    int32_t low = (int32_t)(f32_bits(f32_from_bits((uint32_t)m) + 192.0f) & 0x7u);
    int32_t code = m < 0x38800000 ? low : normal;
    code = is_bad ? E5M2_NAN : code;
    return (uint32_t)code | ((u >> 24) & 0x80u);
}

// quant_value: exact value of a code (f32_from_e4m3 without arithmetic on subnormals).
static HD inline float quant_value(uint8_t c) {
    int32_t mag = c & 0x7F;
    float low = (float)mag * 0.001953125f; // 2^-9
    uint32_t bits = mag < 8 ? f32_bits(low) : (uint32_t)(mag << 20) + (120u << 23);
    bits = mag == 0x7F ? 0x7FC00000u : bits;
    return f32_from_bits(bits | (uint32_t)(c & 0x80) << 24);
}

// quant_value_e5m2: the same for E5M2, infinity included.
static HD inline float quant_value_e5m2(uint8_t c) {
    int32_t mag = c & 0x7F;
    float low = (float)mag * 0x1p-16f;
    uint32_t bits = mag < 4 ? f32_bits(low) : (uint32_t)(mag << 21) + (112u << 23);
    bits = mag == 0x7C ? 0x7F800000u : mag > 0x7C ? 0x7FC00000u : bits;
    return f32_from_bits(bits | (uint32_t)(c & 0x80) << 24);
}

// quant_scale_bin: the bin of a scale in QuantCount.scales.
static HD inline int quant_scale_bin(float s) {
    int bin = (int)(f32_bits(s) >> 23) - 127 - SCALE_BIN_LOW; // scales are normal and positive
    return bin < 0 ? 0 : bin >= SCALE_BINS ? SCALE_BINS - 1 : bin;
}

// quant_tile_counted: one tile with this scale and amax (quant_magnitude of its largest value) is
// done.
static inline void quant_tile_counted(QuantCount *count, int32_t amax, bool is_bad, float s) {
    count->tiles++;
    count->nonfinite_tiles += is_bad;
    count->scales[quant_scale_bin(s)] += amax != 0;
    count->amax_bits = amax > count->amax_bits ? amax : count->amax_bits;
}
