// gemm_avx512bf16.c - output tiles with AVX-512 BF16 (vdpbf16ps): pairs of products, 12 x 32.
//
// Every E4M3 or E5M2 value is a BF16 value, so FP8 products are exact here; sums are FP32. The
// instruction reads BF16 subnormals as zero and flushes FP32 subnormals: below 2^-126, and of no
// weight in a sum that matters. Compiled with its own flags and called only where the processor has
// them; without the flags (another architecture) only names that are never called are left.
#include "gemm_engine.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

#include "gemm_lanes512.h"

#define KU 2
#define GEMM_TILE gemm_tile_avx512bf16
#define GEMM_PEAK gemm_peak_avx512bf16

static inline vf vdot(vf a, vf b, vf c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
static inline vf vunits_f32(const void *p) {
    return vload(p); // never reached: F32 operands go to the FP32 kernels
}
static inline vf vunits_bf16(const void *p) {
    return vload(p);
}
// 32 codes to 32 BF16, exact, NaN included; the values below 2^-6 come from a table.
static inline vf vunits_e4m3(const void *p) {
    static const uint16_t low[8] = {0, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60};
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)low));
    __m512i x = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
    __m512i mag = _mm512_and_si512(x, _mm512_set1_epi16(0x7F));
    __m512i v = _mm512_add_epi16(_mm512_slli_epi16(mag, 4), _mm512_set1_epi16(120 << 7));
    __mmask32 is_low = _mm512_cmplt_epu16_mask(mag, _mm512_set1_epi16(8));
    __mmask32 is_nan = _mm512_cmpeq_epi16_mask(mag, _mm512_set1_epi16(0x7F));
    v = _mm512_mask_permutexvar_epi16(v, is_low, mag, table);
    v = _mm512_mask_mov_epi16(v, is_nan, _mm512_set1_epi16(0x7FC0));
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(v, x, _mm512_set1_epi16((short)0x8000), 0xF8));
}
static inline vf vunits_e5m2(const void *p) {
    static const uint16_t low[8] = {0, 0x3780, 0x3800, 0x3840}; // k * 2^-16
    const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)low));
    __m512i x = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
    __m512i mag = _mm512_and_si512(x, _mm512_set1_epi16(0x7F));
    __m512i v = _mm512_add_epi16(_mm512_slli_epi16(mag, 5), _mm512_set1_epi16(112 << 7));
    __mmask32 is_low = _mm512_cmplt_epu16_mask(mag, _mm512_set1_epi16(4));
    __mmask32 is_end = _mm512_cmpgt_epu16_mask(mag, _mm512_set1_epi16(0x7B));
    v = _mm512_mask_permutexvar_epi16(v, is_low, mag, table);
    v = _mm512_mask_mov_epi16(v, is_end,
                              _mm512_or_si512(v, _mm512_set1_epi16(255 << 7))); // infinity and NaN
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(v, x, _mm512_set1_epi16((short)0x8000), 0xF8));
}
// The low halves of decoded BF16 and FP8 values are zero.
static inline vf vjoin(vf even, vf odd) {
    __m512i lo = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    return _mm512_castsi512_ps(_mm512_or_si512(lo, _mm512_castps_si512(odd)));
}

#include "gemm_tile.h"
#else
void gemm_tile_avx512bf16(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                          GemmWork *w) {
    (void)p, (void)m0, (void)mn, (void)n0, (void)nn, (void)w;
}
double gemm_peak_avx512bf16(int64_t n, float *sink) {
    (void)n, (void)sink;
    return 0;
}
#endif
