// gemm_lanes256.h - 8 floats of AVX2 as gemm_tile.h and attn_tile.h want them: loads, arithmetic,
// transposition. Included only where <immintrin.h> offers AVX2 and FMA.
#pragma once
typedef __m256 vf;
#define VW 8
#define MR 6
#define NV 2

static inline vf vload(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline void vstore(float *p, vf x) {
    _mm256_storeu_ps(p, x);
}
static inline vf vset1(float x) {
    return _mm256_set1_ps(x);
}
static inline vf vmul(vf a, vf b) {
    return _mm256_mul_ps(a, b);
}
static inline vf vadd(vf a, vf b) {
    return _mm256_add_ps(a, b);
}
static inline vf vfma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline vf vdot(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline __attribute__((always_inline)) void vtranspose(vf r[VW]) {
    vf t[VW];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        vf a = r[i], b = r[i + 4];
        r[i] = _mm256_permute2f128_ps(a, b, 0x20);
        r[i + 4] = _mm256_permute2f128_ps(a, b, 0x31);
    }
}
