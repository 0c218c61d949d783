// gemm_cuda_codes.h - codes as the bulk copies of Hopper want them: rows at multiples of 16 bytes, and weights
// turned.
#pragma once
#include "cuda_launch.h"
#include "ptx.h"

namespace sm90 {

// copy_rows: dst[r * dst_ld + c] = src[r * src_ld + c], c < cols; the rest of a row of dst becomes 0. One warp per
// row; cols, src_ld and src of any alignment, dst and dst_ld multiples of 16.
static __global__ void __launch_bounds__(256)
    copy_rows(uint8_t *dst, int64_t dst_ld, const uint8_t *src, int64_t src_ld, int64_t rows, int64_t cols) {
    const int64_t warps = (int64_t)gridDim.x * 8;
    const int lane = (int)threadIdx.x % 32;
    for (int64_t r = (int64_t)blockIdx.x * 8 + threadIdx.x / 32; r < rows; r += warps) {
        const uint8_t *from = src + r * src_ld;
        uint32_t *to = (uint32_t *)(dst + r * dst_ld);
        const int shift = (int)((uintptr_t)from % 4);
        const uint32_t *words = (const uint32_t *)(from - shift);
        for (int64_t w = lane; w < dst_ld / 4; w += 32) {
            uint32_t v = 0;
            if (w * 4 + 8 <= cols) {
                // Two aligned words hold the four bytes; the second lies inside of the row's next four bytes.
                v = words[w] >> (8 * shift);
                if (shift) v |= words[w + 1] << (32 - 8 * shift);
            } else {
                for (int i = 0; i < 4; i++)
                    if (w * 4 + i < cols) v |= (uint32_t)from[w * 4 + i] << (8 * i);
            }
            to[w] = v;
        }
    }
}

// turn: wt[e][k * ldt + n] = w[e][n * ld + k] for nmat matrices [N, K]; columns n >= N of wt become 0. Blocks of
// 64 x 64 through shared memory, grid (K/64, N/64, nmat) rounded up, 256 threads.
static __global__ void __launch_bounds__(256)
    turn(uint8_t *wt, int64_t ldt, const uint8_t *w, int64_t ld, int64_t step, int N, int K) {
    SMEM(uint8_t, block, [64][68]);
    const int k0 = (int)blockIdx.x * 64, n0 = (int)blockIdx.y * 64, t = (int)threadIdx.x;
    const uint8_t *from = w + (int64_t)blockIdx.z * step;
    uint8_t *to = wt + (int64_t)blockIdx.z * K * ldt;
    const int c = t % 16 * 4;
    for (int r = t / 16; r < 64; r += 16)
        for (int i = 0; i < 4; i++)
            block[r][c + i] = n0 + r < N && k0 + c + i < K ? from[(int64_t)(n0 + r) * ld + k0 + c + i] : (uint8_t)0;
    block_sync();
    for (int r = t / 16; r < 64; r += 16) {
        if (k0 + r >= K || n0 + c >= ldt) continue;
        uint32_t v = 0;
        for (int i = 0; i < 4; i++) v |= (uint32_t)block[c + i][r] << (8 * i);
        *(uint32_t *)(to + (int64_t)(k0 + r) * ldt + n0 + c) = v;
    }
}

} // namespace sm90
