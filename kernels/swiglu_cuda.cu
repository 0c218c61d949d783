// swiglu_cuda.cu - the gated unit on the GPU. Contract: swiglu.h.
#include "rows_cuda.h"

#include "swiglu_core.h"

static __global__ void swiglu_fwd_kernel(Mat h, Mat g, Mat u, const float *gate) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= h.rows * h.cols) return;
    int64_t r = i / h.cols, c = i % h.cols;
    row_store(h, r, c, swiglu_value(row_value(g, r, c), row_value(u, r, c)) * (gate ? gate[r] : 1.0f));
}

extern "C" Err swiglu_fwd_cuda(OpCx *cx, Mat h, Mat g, Mat u, const float *gate) {
    (void)cx;
    int64_t M = h.rows, F = h.cols;
    CUDA_MAT(h, M, F);
    CUDA_MAT(g, M, F);
    CUDA_MAT(u, M, F);
    if (M * F == 0) return OK;
    LAUNCH(swiglu_fwd_kernel, blocks_for(M * F, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, h, g, u, gate);
    CHECK_LAUNCH("swiglu_fwd");
    return OK;
}

// One block per row. An element is read whole before it is written: dg and du may be the memory of g and u.
static __global__ void swiglu_bwd_kernel(Mat dg, Mat du, float *dgate, Mat dh, Mat g, Mat u, const float *gate) {
    SMEM(float, room, [ROW_THREADS / 32]);
    int64_t r = blockIdx.x;
    float weight = gate ? gate[r] : 1.0f, sum = 0.0f;
    for (int64_t c = threadIdx.x; c < dh.cols; c += ROW_THREADS) {
        float d = row_value(dh, r, c), up = row_value(u, r, c), gg, gu;
        float silu = swiglu_grad(&gg, &gu, d * weight, row_value(g, r, c), up);
        sum += d * (silu * up);
        row_store(dg, r, c, gg);
        row_store(du, r, c, gu);
    }
    if (!dgate) return;
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) dgate[r] = sum;
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
    LAUNCH(swiglu_bwd_kernel, dim3((unsigned)M), dim3(ROW_THREADS), 0, STREAM, dg, du, dgate, dh, g, u, gate);
    CHECK_LAUNCH("swiglu_bwd");
    return OK;
}
