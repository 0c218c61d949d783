// swiglu_cuda.cu - the gated unit on the GPU. Contract: swiglu.h. Each matrix moves once.
#include "swiglu_cuda.h"

static __global__ void __launch_bounds__(QUANT_THREADS) swiglu_fwd_kernel(Mat h, Mat g, Mat u, const float *gate) {
    uint32_t per_row = (uint32_t)((h.cols + PER_LANE - 1) / PER_LANE), all = (uint32_t)h.rows * per_row;
    for (uint32_t i = blockIdx.x * QUANT_THREADS + threadIdx.x; i < all; i += gridDim.x * QUANT_THREADS) {
        int64_t r = i / per_row, c = i % per_row * PER_LANE;
        int n = (int)(h.cols - c < PER_LANE ? h.cols - c : PER_LANE);
        float a[PER_LANE], b[PER_LANE];
        rows16(a, g, r, c, n);
        rows16(b, u, r, c, n);
        gated16(a, a, b, gate ? gate[r] : 1.0f);
        put16(h, r, c, n, a);
    }
}

extern "C" Err swiglu_fwd_cuda(OpCx *cx, Mat h, Mat g, Mat u, const float *gate) {
    (void)cx;
    int64_t M = h.rows, F = h.cols, pieces = M * ceil_div(F, PER_LANE);
    CUDA_MAT(h, M, F);
    CUDA_MAT(g, M, F);
    CUDA_MAT(u, M, F);
    CHECK(pieces < INT32_MAX - 65536, E_INTERNAL, "swiglu_fwd: [%lld, %lld] elements", (long long)M, (long long)F);
    if (M * F == 0) return OK;
    LAUNCH(swiglu_fwd_kernel, blocks_at_once(ceil_div(pieces, QUANT_THREADS), QUANT_PER_SM), dim3(QUANT_THREADS), 0,
           STREAM, h, g, u, gate);
    CHECK_LAUNCH("swiglu_fwd");
    return OK;
}

// One block per row, 8 threads per 128 elements. An element is read whole before it is written: dg and du may be the
// memory of g and u.
static __global__ void __launch_bounds__(QUANT_THREADS)
    swiglu_bwd_kernel(Mat dg, Mat du, float *dgate, Mat dh, Mat g, Mat u, const float *gate) {
    SMEM(float, tiles, [OCTETS]);
    int64_t r = blockIdx.x, F = dh.cols;
    float weight = gate ? gate[r] : 1.0f, sum = 0.0f;
    for (int64_t first = 0; first < F; first += OCTETS * TILE) {
        int64_t c = first + (int64_t)threadIdx.x * PER_LANE;
        int n = (int)(F - c < PER_LANE ? F - c : PER_LANE);
        float a[PER_LANE], b[PER_LANE], d[PER_LANE];
        rows16(a, g, r, c, n);
        rows16(b, u, r, c, n);
        rows16(d, dh, r, c, n);
        float tile = octet_sum(gated16_grad(a, b, d, weight));
        put16(dg, r, c, n, a);
        put16(du, r, c, n, b);
        if (!dgate) continue;
        if (threadIdx.x % OCTET == 0) tiles[threadIdx.x / OCTET] = tile;
        __syncthreads();
        for (int i = 0; threadIdx.x == 0 && i < OCTETS && first + i * TILE < F; i++) sum += tiles[i];
        __syncthreads();
    }
    if (dgate && threadIdx.x == 0) dgate[r] = sum;
}

extern "C" Err swiglu_bwd_cuda(OpCx *cx, Mat dg, Mat du, float *dgate, Mat dh, Mat g, Mat u, const float *gate) {
    (void)cx;
    int64_t M = dh.rows, F = dh.cols;
    CUDA_MAT(dh, M, F);
    CUDA_MAT(g, M, F);
    CUDA_MAT(u, M, F);
    CUDA_MAT(dg, M, F);
    CUDA_MAT(du, M, F);
    if (M == 0) return OK;
    LAUNCH(swiglu_bwd_kernel, dim3((unsigned)M), dim3(QUANT_THREADS), 0, STREAM, dg, du, dgate, dh, g, u, gate);
    CHECK_LAUNCH("swiglu_bwd");
    return OK;
}
