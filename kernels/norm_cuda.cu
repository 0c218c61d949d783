// norm_cuda.cu - RMSNorm, add and cast on the GPU, one block per row. Contract: norm.h.
//
// The weight's gradient is summed as on the CPU: 128-row blocks, each in the order of its rows, then the blocks.
#include "rows_cuda.h"

#include "norm_core.h"

static __global__ void norm_fwd_kernel(Mat y, float *rstd, Mat x, const float *w, float eps) {
    SMEM(float, room, [ROW_THREADS / 32]);
    int64_t r = blockIdx.x, D = x.cols;
    float sum = 0.0f;
    for (int64_t c = threadIdx.x; c < D; c += ROW_THREADS) {
        float v = row_value(x, r, c);
        sum += v * v;
    }
    float s = norm_rstd(block_sum(sum, room), (float)D, eps);
    if (rstd && threadIdx.x == 0) rstd[r] = s;
    for (int64_t c = threadIdx.x; c < D; c += ROW_THREADS) row_store(y, r, c, norm_value(row_value(x, r, c), s, w[c]));
}

extern "C" Err norm_rms_fwd_cuda(OpCx *cx, Mat y, float *rstd, Mat x, const float *w, float eps) {
    (void)cx;
    int64_t T = x.rows, D = x.cols;
    CUDA_MAT(x, T, D);
    CUDA_MAT(y, T, D);
    if (T == 0 || D == 0) return OK;
    LAUNCH(norm_fwd_kernel, dim3((unsigned)T), dim3(ROW_THREADS), 0, STREAM, y, rstd, x, w, eps);
    CHECK_LAUNCH("norm_rms_fwd");
    return OK;
}

static __global__ void norm_bwd_kernel(Mat dx, Mat dy, Mat x, const float *w, const float *rstd, Mat dres) {
    SMEM(float, room, [ROW_THREADS / 32]);
    int64_t r = blockIdx.x, D = x.cols;
    float s = rstd[r], sum = 0.0f;
    for (int64_t c = threadIdx.x; c < D; c += ROW_THREADS)
        sum += row_value(dy, r, c) * (row_value(x, r, c) * s) * w[c];
    float mean = block_sum(sum, room) / (float)D;
    for (int64_t c = threadIdx.x; c < D; c += ROW_THREADS) {
        float res = dres.p ? row_value(dres, r, c) : 0.0f;
        row_store(dx, r, c, norm_grad(res, row_value(dy, r, c), row_value(x, r, c), w[c], s, mean));
    }
}

// part [blocks, D]: sum of dy * xhat over the rows of a 128-row block, one thread per column.
static __global__ void norm_part_kernel(float *part, Mat dy, Mat x, const float *rstd) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, b = blockIdx.y;
    if (c >= x.cols) return;
    int64_t end = (b + 1) * ROW_BLOCK < x.rows ? (b + 1) * ROW_BLOCK : x.rows;
    float sum = 0.0f;
    for (int64_t r = b * ROW_BLOCK; r < end; r++) sum += row_value(dy, r, c) * (row_value(x, r, c) * rstd[r]);
    part[b * x.cols + c] = sum;
}
static __global__ void norm_weight_kernel(float *dw, const float *part, int64_t nblocks, int64_t D) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= D) return;
    float sum = 0.0f;
    for (int64_t b = 0; b < nblocks; b++) sum += part[b * D + c];
    dw[c] += sum;
}

extern "C" Err norm_rms_bwd_cuda(OpCx *cx, Mat dx, float *dw, Mat dy, Mat x, const float *w, const float *rstd,
                                 Mat dres) {
    int64_t T = x.rows, D = x.cols, nblocks = ceil_div(T, ROW_BLOCK);
    CUDA_MAT(x, T, D);
    CUDA_MAT(dx, T, D);
    CUDA_MAT(dy, T, D);
    if (dres.p) CUDA_MAT(dres, T, D);
    if (T == 0 || D == 0) return OK;
    CHECK(nblocks <= 65535, E_INTERNAL, "norm_rms_bwd: %lld rows", (long long)T);
    size_t mark = arena_mark(cx->scratch);
    float *part = NULL;
    ARENA_NEW(cx->scratch, part, nblocks * D);
    // The weight's gradient first: dx may be the memory of dy.
    dim3 columns = blocks_for(D, ROW_THREADS);
    LAUNCH(norm_part_kernel, dim3(columns.x, (unsigned)nblocks), dim3(ROW_THREADS), 0, STREAM, part, dy, x, rstd);
    LAUNCH(norm_weight_kernel, columns, dim3(ROW_THREADS), 0, STREAM, dw, part, nblocks, D);
    LAUNCH(norm_bwd_kernel, dim3((unsigned)T), dim3(ROW_THREADS), 0, STREAM, dx, dy, x, w, rstd, dres);
    CHECK_LAUNCH("norm_rms_bwd");
    arena_release(cx->scratch, mark);
    return OK;
}

static __global__ void add_kernel(Mat y, Mat a, Mat b) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= y.rows * y.cols) return;
    int64_t r = i / y.cols, c = i % y.cols;
    row_store(y, r, c, row_value(a, r, c) + row_value(b, r, c));
}

extern "C" Err add_cuda(OpCx *cx, Mat y, Mat a, Mat b) {
    (void)cx;
    CUDA_MAT(y, y.rows, y.cols);
    CUDA_MAT(a, y.rows, y.cols);
    CUDA_MAT(b, y.rows, y.cols);
    if (y.rows * y.cols == 0) return OK;
    LAUNCH(add_kernel, blocks_for(y.rows * y.cols, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, y, a, b);
    CHECK_LAUNCH("add");
    return OK;
}

static __global__ void cast_kernel(Mat y, Mat x) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= y.rows * y.cols) return;
    int64_t r = i / y.cols, c = i % y.cols;
    // Same type: bits are copied, so that even NaN payloads stay.
    if (x.t == DT_BF16 && y.t == DT_BF16)
        ((uint16_t *)y.p)[r * y.ld + c] = ((const uint16_t *)x.p)[r * x.ld + c];
    else if (x.t == DT_F32 && y.t == DT_F32)
        ((uint32_t *)y.p)[r * y.ld + c] = ((const uint32_t *)x.p)[r * x.ld + c];
    else
        row_store(y, r, c, row_value(x, r, c));
}

extern "C" Err cast_cuda(OpCx *cx, Mat y, Mat x) {
    (void)cx;
    CUDA_MAT(y, y.rows, y.cols);
    CUDA_MAT(x, y.rows, y.cols);
    if (y.rows * y.cols == 0) return OK;
    LAUNCH(cast_kernel, blocks_for(y.rows * y.cols, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, y, x);
    CHECK_LAUNCH("cast");
    return OK;
}
