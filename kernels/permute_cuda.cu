// permute_cuda.cu - moving and summing rows on the GPU. Contract: permute.h.
#include "rows_cuda.h"

#include "permute_core.h"

// One block per row; whole words where rows and addresses allow it.
template <class W> static __global__ void gather_kernel(W *dst, const W *src, const int32_t *idx, int64_t words) {
    int64_t i = blockIdx.x, from = idx[i];
    for (int64_t k = threadIdx.x; k < words; k += ROW_THREADS)
        dst[i * words + k] = from < 0 ? W() : src[from * words + k];
}

extern "C" Err rows_gather_cuda(OpCx *cx, void *dst, const void *src, const int32_t *idx, int64_t n,
                                int64_t row_bytes) {
    (void)cx;
    if (n == 0 || row_bytes == 0) return OK;
    dim3 grid((unsigned)n), block(ROW_THREADS);
    uintptr_t all = (uintptr_t)dst | (uintptr_t)src | (uintptr_t)row_bytes;
    if (all % 4 == 0)
        LAUNCH(gather_kernel<uint32_t>, grid, block, 0, STREAM, (uint32_t *)dst, (const uint32_t *)src, idx,
               row_bytes / 4);
    else
        LAUNCH(gather_kernel<uint8_t>, grid, block, 0, STREAM, (uint8_t *)dst, (const uint8_t *)src, idx, row_bytes);
    CHECK_LAUNCH("rows_gather");
    return OK;
}

// One thread per element, in the order of permute_core.h: the bits of the CPU.
static __global__ void rows_sum_kernel(Mat y, Mat x, const int32_t *first, const int32_t *idx, Mat add1, Mat add2) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= y.rows * y.cols) return;
    row_store(y, i / y.cols, i % y.cols, permute_sum(x, first, idx, add1, add2, i / y.cols, i % y.cols));
}

extern "C" Err rows_sum_cuda(OpCx *cx, Mat y, Mat x, const int32_t *first, const int32_t *idx, Mat add1, Mat add2) {
    (void)cx;
    int64_t M = y.rows, D = y.cols;
    CUDA_MAT(y, M, D);
    CUDA_MAT(x, x.rows, D);
    if (add1.p) CUDA_MAT(add1, M, D);
    if (add2.p) CUDA_MAT(add2, M, D);
    if (M * D == 0) return OK;
    LAUNCH(rows_sum_kernel, blocks_for(M * D, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, y, x, first, idx, add1,
           add2);
    CHECK_LAUNCH("rows_sum");
    return OK;
}

static __global__ void spread_kernel(uint32_t *rows, const float *x, const int32_t *row, const int32_t *slot, int64_t K,
                                     int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) rows[row[i] * K + slot[i]] = __float_as_uint(x[i]);
}

extern "C" Err slots_spread_cuda(OpCx *cx, uint32_t *rows, const float *x, const int32_t *row, const int32_t *slot,
                                 int64_t nrows, int64_t K, int64_t n) {
    (void)cx;
    if (nrows * K > 0) TRY_CUDA(cudaMemsetAsync(rows, 0, (size_t)(nrows * K) * sizeof *rows, STREAM));
    if (n == 0) return OK;
    LAUNCH(spread_kernel, blocks_for(n, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, rows, x, row, slot, K, n);
    CHECK_LAUNCH("slots_spread");
    return OK;
}

static __global__ void join_kernel(float *y, const uint32_t *rows, const int32_t *first, const int32_t *idx, int64_t T,
                                   int64_t K) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < T * K) y[i] = __uint_as_float(slots_bits(rows, first, idx, K, i / K, i % K));
}

extern "C" Err slots_join_cuda(OpCx *cx, float *y, const uint32_t *rows, const int32_t *first, const int32_t *idx,
                               int64_t T, int64_t K) {
    (void)cx;
    if (T * K == 0) return OK;
    LAUNCH(join_kernel, blocks_for(T * K, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, y, rows, first, idx, T, K);
    CHECK_LAUNCH("slots_join");
    return OK;
}

static __global__ void parts_sum_kernel(float *y, const float *own, int64_t own_at, const float *parts, int64_t stride,
                                        int64_t nparts, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = parts_value(own, own_at, parts, stride, nparts, i);
}

extern "C" Err parts_sum_cuda(OpCx *cx, float *y, const float *own, int64_t own_at, const float *parts, int64_t stride,
                              int64_t nparts, int64_t n) {
    (void)cx;
    if (n == 0) return OK;
    LAUNCH(parts_sum_kernel, blocks_for(n, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, y, own, own_at, parts, stride,
           nparts, n);
    CHECK_LAUNCH("parts_sum");
    return OK;
}
