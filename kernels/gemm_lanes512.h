// gemm_lanes512.h - 16 floats of AVX-512 as gemm_tile.h wants them: loads, decoding, transposition.
// Shared by the FP32 and the BF16 kernels; included only where <immintrin.h> offers AVX-512.
#pragma once
#include "gemm_engine.h"

typedef __m512 vf;
#define VW 16
#define MR 12
#define NV 2

static inline vf vload(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void vstore(float *p, vf x) {
    _mm512_storeu_ps(p, x);
}
static inline vf vset1(float x) {
    return _mm512_set1_ps(x);
}
static inline vf vmul(vf a, vf b) {
    return _mm512_mul_ps(a, b);
}
static inline vf vadd(vf a, vf b) {
    return _mm512_add_ps(a, b);
}
static inline vf vfma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vlanes_f32(const void *p) {
    return _mm512_loadu_ps(p);
}
static inline vf vlanes_bf16(const void *p) {
    __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
// Exact, NaN included. Exponents are rebiased as integers; the values below 2^-6 come from a table:
// as floating-point subnormals they would be slow on some processors.
static inline vf vlanes_e4m3(const void *p) {
    const __m512 low =
        _mm512_setr_ps(0.0f, 0x1p-9f, 0x2p-9f, 0x3p-9f, 0x4p-9f, 0x5p-9f, 0x6p-9f, 0x7p-9f, 0x8p-9f,
                       0x9p-9f, 0xAp-9f, 0xBp-9f, 0xCp-9f, 0xDp-9f, 0xEp-9f, 0xFp-9f);
    __m128i codes = _mm_loadu_si128((const __m128i *)p);
    __m512i x = _mm512_cvtepi8_epi32(codes);
    __m512i mag = _mm512_and_si512(x, _mm512_set1_epi32(0x7F));
    __m512i bits = _mm512_add_epi32(_mm512_slli_epi32(mag, 20), _mm512_set1_epi32(120 << 23));
    __mmask16 is_low = _mm512_cmplt_epu32_mask(mag, _mm512_set1_epi32(16));
    __mmask16 is_nan = _mm512_cmpeq_epi32_mask(mag, _mm512_set1_epi32(0x7F));
    __m512 v = _mm512_mask_permutexvar_ps(_mm512_castsi512_ps(bits), is_low, mag, low);
    v = _mm512_mask_mov_ps(v, is_nan, _mm512_set1_ps(__builtin_nanf("")));
    // v | (x & sign bit)
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(v), x, _mm512_set1_epi32((int)0x80000000u), 0xF8));
}

// E5M2 the same way; exponent 31 (infinity, NaN) becomes 255.
static inline vf vlanes_e5m2(const void *p) {
    const __m512 low = _mm512_castps128_ps512(_mm_setr_ps(0.0f, 0x1p-16f, 0x2p-16f, 0x3p-16f));
    __m512i x = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
    __m512i mag = _mm512_and_si512(x, _mm512_set1_epi32(0x7F));
    __m512i bits = _mm512_add_epi32(_mm512_slli_epi32(mag, 21), _mm512_set1_epi32(112 << 23));
    __mmask16 is_low = _mm512_cmplt_epu32_mask(mag, _mm512_set1_epi32(4));
    __mmask16 is_end = _mm512_cmpgt_epu32_mask(mag, _mm512_set1_epi32(0x7B));
    bits = _mm512_mask_or_epi32(bits, is_end, bits, _mm512_set1_epi32(255 << 23));
    __m512 v = _mm512_mask_permutexvar_ps(_mm512_castsi512_ps(bits), is_low, mag, low);
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(v), x, _mm512_set1_epi32((int)0x80000000u), 0xF8));
}

// Swap bit s of the register's index with bit s of the lane's index, for every pair of registers.
#define SWAP_LANES(s, ...)                                                                         \
    {                                                                                              \
        const __m512i lo = _mm512_setr_epi32(__VA_ARGS__);                                         \
        const __m512i hi = _mm512_add_epi32(lo, _mm512_set1_epi32(s));                             \
        _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) {                                    \
            if (i & (s)) continue;                                                                 \
            __m512 a = r[i], b = r[i + (s)];                                                       \
            r[i] = _mm512_permutex2var_ps(a, lo, b);                                               \
            r[i + (s)] = _mm512_permutex2var_ps(a, hi, b);                                         \
        }                                                                                          \
    }
static inline __attribute__((always_inline)) void vtranspose(vf r[VW]) {
    SWAP_LANES(1, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
    SWAP_LANES(2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
    SWAP_LANES(4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
    SWAP_LANES(8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
}
