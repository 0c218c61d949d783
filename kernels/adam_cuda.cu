// adam_cuda.cu - AdamW and sums of squares on the GPU. Contract: adam.h.
#include "rows_cuda.h"

#include "adam_core.h"

static __global__ void adam_kernel(Mat master, Mat m, Mat v, Mat grad, Mat copy, AdamStep s) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= master.rows * master.cols) return;
    int64_t r = i / master.cols, c = i % master.cols;
    float m1 = row_value(m, r, c), v1 = row_value(v, r, c);
    float w = adam_weight(row_value(master, r, c), &m1, &v1, row_value(grad, r, c), s);
    row_store(m, r, c, m1);
    row_store(v, r, c, v1);
    row_store(master, r, c, w);
    if (copy.p) row_store(copy, r, c, w);
}

extern "C" Err adam_step_cuda(OpCx *cx, Mat master, Mat m, Mat v, Mat grad, Mat copy, AdamStep s) {
    (void)cx;
    int64_t R = master.rows, C = master.cols;
    CUDA_MAT(master, R, C);
    CUDA_MAT(m, R, C);
    CUDA_MAT(v, R, C);
    CUDA_MAT(grad, R, C);
    if (copy.p) CUDA_MAT(copy, R, C);
    CHECK(master.t == DT_F32 && grad.t == DT_F32, E_INTERNAL, "adam: weights %s, gradients %s, not f32",
          dtype_name(master.t), dtype_name(grad.t));
    if (R * C == 0) return OK;
    LAUNCH(adam_kernel, blocks_for(R * C, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, master, m, v, grad, copy, s);
    CHECK_LAUNCH("adam_step");
    return OK;
}

// One block of threads per 128 rows; a thread adds every 256th element of them, in ascending order.
static __global__ void sumsq_kernel(double *out, int64_t *nonfinite, Mat x) {
    SMEM(double, room, [ROW_THREADS / 32]);
    SMEM(int, count, [ROW_THREADS / 32]);
    int64_t r0 = (int64_t)blockIdx.x * ROW_BLOCK, rows = x.rows - r0 < ROW_BLOCK ? x.rows - r0 : ROW_BLOCK;
    double sum = 0.0;
    int bad = 0;
    for (int64_t i = threadIdx.x; i < rows * x.cols; i += ROW_THREADS) {
        float v = row_value(x, r0 + i / x.cols, i % x.cols);
        sum += (double)v * (double)v;
        bad += (f32_bits(v) & 0x7F800000u) == 0x7F800000u;
    }
    sum = block_sum(sum, room);
    bad = block_sum(bad, count);
    if (threadIdx.x != 0) return;
    out[blockIdx.x] = sum;
    count_add(nonfinite, bad);
}

extern "C" Err sumsq_blocks_cuda(OpCx *cx, double *out, int64_t *nonfinite, Mat x) {
    (void)cx;
    CUDA_MAT(x, x.rows, x.cols);
    if (x.rows == 0) return OK;
    LAUNCH(sumsq_kernel, blocks_for(x.rows, ROW_BLOCK), dim3(ROW_THREADS), 0, STREAM, out, nonfinite, x);
    CHECK_LAUNCH("sumsq_blocks");
    return OK;
}
