// adam_cuda.cu - AdamW and sums of squares on the GPU. Contract: adam.h.
#include "rows_cuda.h"

#include "adam_core.h"

// 22 bytes a weight with BF16 moments and copy: master read and written, moments too, gradient read, copy written.
static __global__ void __launch_bounds__(ROW_THREADS)
    adam_kernel(Mat master, Mat m, Mat v, Mat grad, Mat copy, AdamStep s) {
    each16(master.rows, master.cols, [=](int64_t r, int64_t c, int n) {
        float w[16], m1[16], v1[16], g[16];
        rows16(w, master, r, c, n);
        rows16(g, grad, r, c, n);
        rows16(m1, m, r, c, n);
        rows16(v1, v, r, c, n);
        UNROLL
        for (int i = 0; i < 16; i++) w[i] = adam_weight(w[i], &m1[i], &v1[i], g[i], s);
        put16(m, r, c, n, m1);
        put16(v, r, c, n, v1);
        put16(master, r, c, n, w);
        if (copy.p) put16(copy, r, c, n, w);
    });
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
    dim3 blocks;
    TRY(each16_blocks("adam_step", R, C, &blocks));
    LAUNCH(adam_kernel, blocks, dim3(ROW_THREADS), 0, STREAM, master, m, v, grad, copy, s);
    CHECK_LAUNCH("adam_step");
    return OK;
}

// A block adds the squares of 128 rows x 1024 columns: 64 threads side by side, 4 rows at a time.
// part [rows / 128, slabs].
#define SLAB 1024
static __global__ void __launch_bounds__(ROW_THREADS) sumsq_kernel(double *part, int64_t *nonfinite, Mat x) {
    SMEM(double, room, [ROW_THREADS / 32]);
    SMEM(int, count, [ROW_THREADS / 32]);
    enum { SIDE = SLAB / 16 };
    int64_t r0 = (int64_t)blockIdx.x * ROW_BLOCK, end = x.rows - r0 < ROW_BLOCK ? x.rows : r0 + ROW_BLOCK;
    int64_t c = (int64_t)blockIdx.y * SLAB + threadIdx.x % SIDE * 16;
    double sum = 0.0;
    int bad = 0;
    for (int64_t r = r0 + threadIdx.x / SIDE; r < end; r += ROW_THREADS / SIDE) {
        float v[16];
        rows16(v, x, r, c, (int)(x.cols - c < 16 ? x.cols - c : 16));
        UNROLL
        for (int i = 0; i < 16; i++) {
            sum += (double)v[i] * (double)v[i];
            bad += (f32_bits(v[i]) & 0x7F800000u) == 0x7F800000u;
        }
    }
    sum = block_sum(sum, room);
    bad = block_sum(bad, count);
    if (threadIdx.x != 0) return;
    part[(int64_t)blockIdx.x * gridDim.y + blockIdx.y] = sum;
    count_add(nonfinite, bad);
}
// out[b]: the slabs of 128 rows in order.
static __global__ void __launch_bounds__(ROW_THREADS)
    sumsq_join_kernel(double *out, const double *part, int64_t nblocks, int64_t nslabs) {
    int64_t b = (int64_t)blockIdx.x * ROW_THREADS + threadIdx.x;
    if (b >= nblocks) return;
    double sum = 0.0;
    for (int64_t i = 0; i < nslabs; i++) sum += part[b * nslabs + i];
    out[b] = sum;
}

extern "C" Err sumsq_blocks_cuda(OpCx *cx, double *out, int64_t *nonfinite, Mat x) {
    CUDA_MAT(x, x.rows, x.cols);
    if (x.rows == 0) return OK;
    int64_t nblocks = ceil_div(x.rows, ROW_BLOCK), nslabs = max_i64(1, ceil_div(x.cols, SLAB));
    CHECK(nslabs <= 65535, E_INTERNAL, "sumsq_blocks: %lld columns", (long long)x.cols);
    size_t mark = arena_mark(cx->scratch);
    double *part = NULL;
    ARENA_NEW(cx->scratch, part, nblocks * nslabs);
    LAUNCH(sumsq_kernel, dim3((unsigned)nblocks, (unsigned)nslabs), dim3(ROW_THREADS), 0, STREAM, part, nonfinite, x);
    LAUNCH(sumsq_join_kernel, blocks_for(nblocks, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, out, part, nblocks,
           nslabs);
    CHECK_LAUNCH("sumsq_blocks");
    arena_release(cx->scratch, mark);
    return OK;
}
