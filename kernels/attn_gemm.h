// attn_gemm.h - a small dense FP32 product for blocks that lie in cache, private to attention on
// the CPU.
//
// c [M,N] (+)= a [M,K] b [K,N]: b and c row-major with N a multiple of 16 (padded buffers), a with
// any two strides, so that a transposed left side costs nothing. Each element is one sum over k =
// 0, 1, ... in that order, product and sum rounded apart: the same bits on every instruction set
// and blocking.
#pragma once
#include "rows.h"

#define AG_ROWS 6 // rows of a register tile: 6 sums of 16 fit the registers of AVX-512 and of AVX2

// One register tile of m <= AG_ROWS rows and 16 columns; m is a constant at each call.
ROW_INLINE void ag_tile(float *c, int64_t ldc, const float *a, int64_t ars, int64_t acs,
                        const float *b, int64_t ldb, const int m, int64_t K, bool acc) {
    V16 s[AG_ROWS], v;
    for (int i = 0; i < m; i++) {
        s[i] = (V16){0};
        if (acc) v16_load(&s[i], c + i * ldc);
    }
    for (int64_t k = 0; k < K; k++) {
        v16_load(&v, b + k * ldb);
        const float *ak = a + k * acs;
#pragma GCC unroll 6
        for (int i = 0; i < m; i++) s[i] += v * ak[i * ars];
    }
    for (int i = 0; i < m; i++) v16_store(c + i * ldc, &s[i]);
}

ROW_INLINE void ag_product(float *c, int64_t ldc, const float *a, int64_t ars, int64_t acs,
                           const float *b, int64_t ldb, int64_t M, int64_t N, int64_t K, bool acc) {
    for (int64_t n = 0; n < N; n += ROW_LANES) {
        int64_t m = 0;
        for (; m + AG_ROWS <= M; m += AG_ROWS)
            ag_tile(c + m * ldc + n, ldc, a + m * ars, ars, acs, b + n, ldb, AG_ROWS, K, acc);
        float *cm = c + m * ldc + n;
        const float *am = a + m * ars;
        switch (M - m) {
        case 5: ag_tile(cm, ldc, am, ars, acs, b + n, ldb, 5, K, acc); break;
        case 4: ag_tile(cm, ldc, am, ars, acs, b + n, ldb, 4, K, acc); break;
        case 3: ag_tile(cm, ldc, am, ars, acs, b + n, ldb, 3, K, acc); break;
        case 2: ag_tile(cm, ldc, am, ars, acs, b + n, ldb, 2, K, acc); break;
        case 1: ag_tile(cm, ldc, am, ars, acs, b + n, ldb, 1, K, acc); break;
        default: break;
        }
    }
}
