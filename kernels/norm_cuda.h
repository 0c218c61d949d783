// norm_cuda.h - one row of RMSNorm by one block, the same whether its output is quantised or not. Private to
// kernels/*_cuda*.cu.
#pragma once
#include "quant_cuda.h"

#include "norm_core.h"

#define NORM_PER_LANE 16
#define NORM_THREADS_MOST 512

// norm_threads: threads of a block that works on rows of D elements, 16 each at a time, in whole warps.
static inline int norm_threads(int64_t D) {
    int64_t n = ceil_div(D, 32 * NORM_PER_LANE) * 32;
    return (int)(n < NORM_THREADS_MOST ? n : NORM_THREADS_MOST);
}
// norm_blocks: blocks that loop over T rows.
static inline dim3 norm_blocks(int64_t T, int threads) {
    return blocks_at_once(T, 2048 / threads < 16 ? 2048 / threads : 16);
}

// The row is walked up for the sum and down for the result, so that what was read last need not be read again, and the
// rest comes from the cache.
template <bool WITH_CODES>
static __global__ void __launch_bounds__(NORM_THREADS_MOST)
    norm_fwd_kernel(Mat y, MatQ q, QuantCount *n, float *rstd, Mat x, const float *w, float eps) {
    SMEM(float, room, [NORM_THREADS_MOST / 32]);
    SMEM(QuantTally, tally);
    if (WITH_CODES) tally_clear(&tally);
    QuantPart part = {0, 0};
    const int64_t D = x.cols, step = (int64_t)blockDim.x * NORM_PER_LANE, mine = (int64_t)threadIdx.x * NORM_PER_LANE;
    const int64_t rounds = (D + step - 1) / step;
    for (int64_t r = blockIdx.x; r < x.rows; r += gridDim.x) {
        float v[NORM_PER_LANE], sum = 0.0f;
        for (int64_t k = 0; k < rounds; k++) {
            int64_t c = k * step + mine;
            rows16(v, x, r, c, (int)(D - c < NORM_PER_LANE ? D - c : NORM_PER_LANE));
            UNROLL
            for (int i = 0; i < NORM_PER_LANE; i++) sum += v[i] * v[i];
        }
        float s = norm_rstd(block_sum(sum, room), (float)D, eps);
        if (rstd && threadIdx.x == 0) rstd[r] = s;
        for (int64_t k = rounds - 1; k >= 0; k--) {
            int64_t c = k * step + mine, c0 = c / TILE * TILE;
            int left = (int)(D - c < NORM_PER_LANE ? D - c : NORM_PER_LANE);
            float by[NORM_PER_LANE];
            Mat weight = {(void *)w, DT_F32, 1, D, D};
            if (k != rounds - 1) rows16(v, x, r, c, left);
            rows16(by, weight, 0, c, left);
            UNROLL
            for (int i = 0; i < NORM_PER_LANE; i++) by[i] = norm_value(v[i], s, by[i]);
            if (y.p) put16(y, r, c, left, by);
            if constexpr (WITH_CODES) {
                UNROLL
                for (int i = 0; i < NORM_PER_LANE; i++) by[i] = i < left ? quant_round(by[i]) : 0.0f;
                quant16(q, r, c, left, by, c0 < D, &tally, &part, (int)(D - c0 < TILE ? D - c0 : TILE));
            }
        }
    }
    if (WITH_CODES) tally_add(n, &tally, part);
}
