// fp8.h - exact scalar codecs: BF16, E4M3, E5M2, and the scale of a tile. Host and device.
//
// E4M3 is OCP FP8 E4M3FN: 1 sign, 4 exponent (bias 7), 3 mantissa bits; largest finite 448, no infinity,
// NaN = 0x7F / 0xFF, subnormals down to 2^-9. E5M2 is OCP FP8 E5M2, the upper half of an IEEE half: 5
// exponent (bias 15), 2 mantissa bits; largest finite 57344, infinity 0x7C / 0xFC, NaN above, subnormals
// down to 2^-16. All conversions round to nearest even; both formats saturate, so no infinity is made.
// DeepSeek-V3 report 3.3.2; doc/architecture.md, section 8.
#pragma once
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define HD __host__ __device__
#else
#define HD
#endif

#define E4M3_MAX 448.0f
#define E4M3_NAN 0x7F
#define E5M2_MAX 57344.0f
#define E5M2_NAN 0x7F
#define SCALE_MIN 1.1754943508222875e-38f // 2^-126, the smallest scale

static HD inline uint32_t f32_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
static HD inline float f32_from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}
static HD inline float f32_from_bf16(uint16_t h) {
    return f32_from_bits((uint32_t)h << 16);
}
// bf16_from_f32: round to nearest even; NaN stays NaN (quiet).
static HD inline uint16_t bf16_from_f32(float x) {
    uint32_t u = f32_bits(x);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}
// bf16_round: x rounded to BF16, as float.
static HD inline float bf16_round(float x) {
    return f32_from_bf16(bf16_from_f32(x));
}

// f32_from_e4m3: exact value of a code.
static HD inline float f32_from_e4m3(uint8_t c) {
    uint32_t sign = (uint32_t)(c & 0x80u) << 24;
    uint32_t mag = c & 0x7Fu;
    if (mag == 0x7Fu) return f32_from_bits(sign | 0x7FC00000u);
    // Shift exponent and mantissa into place and rebias by 2^120: exact, subnormals included.
    float v = f32_from_bits(mag << 20) * 1329227995784915872903807060280344576.0f; // 2^120
    return f32_from_bits(f32_bits(v) | sign);
}
// e4m3_from_f32: round to nearest even, saturate at +-448, NaN -> NaN code. Infinity saturates too: the
// quantiser handles non-finite inputs before it comes here.
static HD inline uint8_t e4m3_from_f32(float x) {
    uint32_t u = f32_bits(x);
    uint8_t sign = (uint8_t)((u >> 24) & 0x80u);
    u &= 0x7FFFFFFFu;
    if (u > 0x7F800000u) return (uint8_t)(sign | E4M3_NAN);
    if (u >= 0x43E00000u) return (uint8_t)(sign | 0x7Eu); // >= 448: saturate
    if (u < 0x3C800000u) {                                // below 2^-6: subnormal, unit 2^-9
        float a = f32_from_bits(u) * 512.0f + 12582912.0f; // + 1.5 * 2^23: rounds to nearest even
        return (uint8_t)(sign | (f32_bits(a) & 0xFu));     // 8 = the smallest normal, code 0x08
    }
    u += 0x7FFFFu + ((u >> 20) & 1u); // round to 3 mantissa bits, ties to even
    u = (u >> 20) - ((127 - 7) << 3);
    return (uint8_t)(sign | (u > 0x7Eu ? 0x7Eu : u));
}

// f32_from_e5m2: exact value of a code, infinity and NaN included.
static HD inline float f32_from_e5m2(uint8_t c) {
    uint32_t sign = (uint32_t)(c & 0x80u) << 24;
    uint32_t mag = c & 0x7Fu;
    if (mag >= 0x7Cu) return f32_from_bits(sign | (mag == 0x7Cu ? 0x7F800000u : 0x7FC00000u));
    float v = f32_from_bits(mag << 21) * 5192296858534827628530496329220096.0f; // 2^112, as above
    return f32_from_bits(f32_bits(v) | sign);
}
// e5m2_from_f32: round to nearest even, saturate at +-57344, NaN -> NaN code 0x7F / 0xFF. Infinity
// saturates too, as in e4m3_from_f32.
static HD inline uint8_t e5m2_from_f32(float x) {
    uint32_t u = f32_bits(x);
    uint8_t sign = (uint8_t)((u >> 24) & 0x80u);
    u &= 0x7FFFFFFFu;
    if (u > 0x7F800000u) return (uint8_t)(sign | E5M2_NAN);
    if (u >= 0x47600000u) return (uint8_t)(sign | 0x7Bu);   // >= 57344: saturate
    if (u < 0x38800000u) {                                  // below 2^-14: subnormal, unit 2^-16
        float a = f32_from_bits(u) * 65536.0f + 12582912.0f; // + 1.5 * 2^23: rounds to nearest even
        return (uint8_t)(sign | (f32_bits(a) & 0x7u));       // 4 = the smallest normal, code 0x04
    }
    u += 0xFFFFFu + ((u >> 21) & 1u); // round to 2 mantissa bits, ties to even
    u = (u >> 21) - ((127 - 15) << 2);
    return (uint8_t)(sign | (u > 0x7Bu ? 0x7Bu : u));
}

// tile_scale_f32: s = max(amax/448, 2^-126); 1 for an all-zero tile.
static HD inline float tile_scale_f32(float amax) {
    if (!(amax > 0.0f)) return 1.0f;
    float s = amax / E4M3_MAX;
    return s < SCALE_MIN ? SCALE_MIN : s;
}
// tile_scale_e5m2_f32: the same for codes up to 57344.
static HD inline float tile_scale_e5m2_f32(float amax) {
    if (!(amax > 0.0f)) return 1.0f;
    float s = amax / E5M2_MAX;
    return s < SCALE_MIN ? SCALE_MIN : s;
}
// tile_scale_bits: the smallest power of two s = 2^(b-127) with amax / s <= 1.75 * 2^top, as the byte b:
// amax = m*2^e with 1 <= m < 2, s = 2^(e-top) if m <= 1.75 else 2^(e-top+1), never below 2^-126. By
// bits, no logarithm. 127 for an all-zero tile.
static HD inline uint8_t tile_scale_bits(float amax, int top) {
    if (!(amax > 0.0f)) return 127;
    uint32_t u = f32_bits(amax);
    int e = (int)(u >> 23) - 127; // a subnormal amax gives -127: the floor below holds
    int b = e - top + 127 + ((u & 0x7FFFFFu) > 0x600000u);
    return (uint8_t)(b < 1 ? 1 : b);
}
// tile_scale_e8m0: the power-of-two form as an exponent byte; 448 = 1.75 * 2^8.
static HD inline uint8_t tile_scale_e8m0(float amax) {
    return tile_scale_bits(amax, 8);
}
// tile_scale_e5m2_e8m0: the same for codes up to 57344 = 1.75 * 2^15.
static HD inline uint8_t tile_scale_e5m2_e8m0(float amax) {
    return tile_scale_bits(amax, 15);
}
// f32_from_e8m0: 2^(b-127), 1 <= b <= 254.
static HD inline float f32_from_e8m0(uint8_t b) {
    return f32_from_bits((uint32_t)b << 23);
}
