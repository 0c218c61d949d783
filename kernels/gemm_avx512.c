// gemm_avx512.c - output tiles with AVX-512 (F, BW, DQ, VL): FP32 multiply-adds, 12 x 32.
// Compiled with its own flags and called only where the processor has them; without the flags
// (another architecture) only names that are never called are left.
#include "gemm_engine.h"

#ifdef __AVX512BW__
#include <immintrin.h>

#include "gemm_lanes512.h"

#define MR_SCALED 7
#define IS_HELD 1
#define GEMM_TILE gemm_tile_avx512
#define GEMM_PEAK gemm_peak_avx512

static inline vf vdot(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}

#include "gemm_pack_f32.h"
#include "gemm_tile.h"
#else
void gemm_tile_avx512(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                      GemmWork *w) {
    (void)p, (void)m0, (void)mn, (void)n0, (void)nn, (void)w;
}
double gemm_peak_avx512(int64_t n, float *sink) {
    (void)n, (void)sink;
    return 0;
}
#endif
