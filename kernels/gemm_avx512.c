// gemm_avx512.c - output tiles with AVX-512 (F, BW, DQ, VL): FP32 multiply-adds, 12 x 32.
// Compiled with its own flags and called only where the processor has them; without the flags
// (another architecture) only names that are never called are left.
#include "gemm_engine.h"

#ifdef __AVX512BW__
#include <immintrin.h>

#include "gemm_lanes512.h"

#define KU 1
#define GEMM_TILE gemm_tile_avx512
#define GEMM_PEAK gemm_peak_avx512

static inline vf vdot(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vf vunits_f32(const void *p) {
    return vlanes_f32(p);
}
static inline vf vunits_bf16(const void *p) {
    return vlanes_bf16(p);
}
static inline vf vunits_e4m3(const void *p) {
    return vlanes_e4m3(p);
}
static inline vf vunits_e5m2(const void *p) {
    return vlanes_e5m2(p);
}
static inline vf vjoin(vf even, vf odd) {
    (void)odd;
    return even;
}

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
