// exp_core.h - exponential and sigmoid in FP32: the same bits on every host and backend.
//
// A library's expf differs between hosts and does not vectorise; this one is plain arithmetic
// without branches, so that loops over it vectorise. Error below 1.1 ulp where the result is normal
// (tested against double), results below 2^-150 are 0, above the largest float infinity; NaN stays
// NaN. Range reduction and polynomial after Moshier's Cephes (expf).
#pragma once
#include <math.h>

#include "fp8.h"

static HD inline float exp_f32(float x) {
    // Outside these limits the result is 0 or infinity; comparisons are false for NaN, which
    // passes.
    float c = x < -104.0f ? -104.0f : x;
    c = c > 89.0f ? 89.0f : c;
    // k = round(x / ln 2) by adding 1.5 * 2^23, whose low bits then hold k.
    float t = c * 1.44269504088896341f + 12582912.0f;
    float n = t - 12582912.0f;
    // r = x - k ln 2 in two parts: the first product is exact (9 by 9 bits).
    float r = c - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    float y = p * (r * r) + r + 1.0f;
    // Two factors, so that results beyond the normal range are rounded once.
    uint32_t k = f32_bits(t) - 0x4B400000u;
    uint32_t half = (uint32_t)((int32_t)k >> 1);
    return y * f32_from_bits((half + 127u) << 23) * f32_from_bits((k - half + 127u) << 23);
}

// sigmoid_f32: 1 / (1 + e^-x), with full relative accuracy on both sides.
static HD inline float sigmoid_f32(float x) {
    float e = exp_f32(-fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}
