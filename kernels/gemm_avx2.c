// gemm_avx2.c - output tiles with AVX2 and FMA: FP32 multiply-adds, 6 x 16.
// Compiled with its own flags and called only where the processor has them; without the flags
// (another architecture) only names that are never called are left.
#include "gemm_engine.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "gemm_lanes256.h"

#define MR_SCALED 6
#define IS_HELD 0
#define GEMM_TILE gemm_tile_avx2
#define GEMM_PEAK gemm_peak_avx2

static inline vf vlanes_f32(const void *p) {
    return _mm256_loadu_ps(p);
}
static inline vf vlanes_bf16(const void *p) {
    __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
// Exact, NaN included; the values below 2^-6 come from a table (subnormals are slow on some
// processors).
static inline vf vlanes_e4m3(const void *p) {
    const __m256 low =
        _mm256_setr_ps(0.0f, 0x1p-9f, 0x2p-9f, 0x3p-9f, 0x4p-9f, 0x5p-9f, 0x6p-9f, 0x7p-9f);
    __m256i x = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    __m256i mag = _mm256_and_si256(x, _mm256_set1_epi32(0x7F));
    __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(mag, 20), _mm256_set1_epi32(120 << 23));
    __m256 is_low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(8), mag));
    __m256 is_nan = _mm256_castsi256_ps(_mm256_cmpeq_epi32(mag, _mm256_set1_epi32(0x7F)));
    __m256 v =
        _mm256_blendv_ps(_mm256_castsi256_ps(bits), _mm256_permutevar8x32_ps(low, mag), is_low);
    v = _mm256_blendv_ps(v, _mm256_set1_ps(__builtin_nanf("")), is_nan);
    __m256i sign = _mm256_and_si256(x, _mm256_set1_epi32((int)0x80000000u));
    return _mm256_or_ps(v, _mm256_castsi256_ps(sign));
}
// Exact, infinity and NaN included, as above; exponent 31 becomes 255.
static inline vf vlanes_e5m2(const void *p) {
    const __m256 low = _mm256_setr_ps(0.0f, 0x1p-16f, 0x2p-16f, 0x3p-16f, 0, 0, 0, 0);
    __m256i x = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    __m256i mag = _mm256_and_si256(x, _mm256_set1_epi32(0x7F));
    __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(mag, 21), _mm256_set1_epi32(112 << 23));
    __m256 is_low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(4), mag));
    __m256i is_end = _mm256_cmpgt_epi32(mag, _mm256_set1_epi32(0x7B));
    bits = _mm256_or_si256(bits, _mm256_and_si256(is_end, _mm256_set1_epi32(255 << 23)));
    __m256 v =
        _mm256_blendv_ps(_mm256_castsi256_ps(bits), _mm256_permutevar8x32_ps(low, mag), is_low);
    __m256i sign = _mm256_and_si256(x, _mm256_set1_epi32((int)0x80000000u));
    return _mm256_or_ps(v, _mm256_castsi256_ps(sign));
}

#include "gemm_pack_f32.h"
#include "gemm_tile.h"
#else
void gemm_tile_avx2(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                    GemmWork *w) {
    (void)p, (void)m0, (void)mn, (void)n0, (void)nn, (void)w;
}
double gemm_peak_avx2(int64_t n, float *sink) {
    (void)n, (void)sink;
    return 0;
}
#endif
