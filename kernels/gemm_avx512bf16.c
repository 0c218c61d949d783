// gemm_avx512bf16.c - output tiles with AVX-512 BF16 (vdpbf16ps): pairs of products, 12 x 32.
//
// Every E4M3 or E5M2 value is a BF16 value, so FP8 products are exact here; sums are FP32. The
// instruction reads BF16 subnormals as zero and flushes FP32 subnormals: below 2^-126, and of no
// weight in a sum that matters. Compiled with its own flags and called only where the processor has
// them; without the flags (another architecture) only names that are never called are left.
#include "gemm_engine.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#include <immintrin.h>

#include "gemm_lanes512.h"
#include "gemm_pack_pairs.h"

#define MR_SCALED 7
#define IS_HELD 1
#define GEMM_TILE gemm_tile_avx512bf16
#define GEMM_PEAK gemm_peak_avx512bf16

static inline vf vdot(vf a, vf b, vf c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
// n <= 32 sums, rounded; subnormals become zero as in the products.
static inline void store_bf16(uint16_t *to, const float *from, int64_t n) {
    __m512bh x = _mm512_cvtne2ps_pbh(vload(from + 16), vload(from));
    _mm512_mask_storeu_epi16(to, ~0u >> (32 - n), (__m512i)x);
}
#define STORE_BF16 store_bf16

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
