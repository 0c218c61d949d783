// norm_cuda.cu - RMSNorm, add and cast on the GPU. Contract: norm.h.
//
// A block works on whole rows, 16 elements per thread; the forward's kernel is in norm_cuda.h. Bytes: each matrix moves
// once; the backward writes and reads the weight's gradient once more for every 16 rows, in FP32.
#include "norm_cuda.h"

#define NORM_ROWS 16         // rows of a block in the backward: they share a partial sum of the weight's gradient
#define NORM_BWD_THREADS 256 // of a block, at most: two blocks have room for their registers

extern "C" Err norm_rms_fwd_cuda(OpCx *cx, Mat y, float *rstd, Mat x, const float *w, float eps) {
    (void)cx;
    int64_t T = x.rows, D = x.cols;
    CUDA_MAT(x, T, D);
    CUDA_MAT(y, T, D);
    if (T == 0 || D == 0) return OK;
    int threads = norm_threads(D);
    MatQ none = {};
    LAUNCH(norm_fwd_kernel<false>, norm_blocks(T, threads), dim3((unsigned)threads), 0, STREAM, y, none, nullptr, rstd,
           x, w, eps);
    CHECK_LAUNCH("norm_rms_fwd");
    return OK;
}

// dx of 16 rows, and part [blocks, D]: their sum of dy * xhat, row after row. A thread owns its columns: of `sums` in
// shared memory nobody else touches its quarters of 4, which lie side by side with those of its neighbours.
static __global__ void __launch_bounds__(NORM_BWD_THREADS, 2)
    norm_bwd_kernel(Mat dx, float *part, Mat dy, Mat x, const float *w, const float *rstd, Mat dres) {
    DYN_SMEM(float4, sums);
    SMEM(float, room, [NORM_BWD_THREADS / 32]);
    const int64_t D = x.cols, step = (int64_t)blockDim.x * NORM_PER_LANE, mine = (int64_t)threadIdx.x * NORM_PER_LANE;
    const int64_t rounds = (D + step - 1) / step, first = (int64_t)blockIdx.x * NORM_ROWS;
    const int64_t end = first + NORM_ROWS < x.rows ? first + NORM_ROWS : x.rows;
    const Mat weight = {(void *)w, DT_F32, 1, D, D};
    for (int64_t i = threadIdx.x; i < rounds * 4 * blockDim.x; i += blockDim.x) sums[i] = float4{0, 0, 0, 0};
    for (int64_t r = first; r < end; r++) {
        float d[NORM_PER_LANE], v[NORM_PER_LANE], by[NORM_PER_LANE], s = rstd[r], sum = 0.0f;
        for (int64_t k = 0; k < rounds; k++) {
            int64_t c = k * step + mine;
            int left = (int)(D - c < NORM_PER_LANE ? D - c : NORM_PER_LANE);
            rows16(d, dy, r, c, left);
            rows16(v, x, r, c, left);
            rows16(by, weight, 0, c, left);
            UNROLL
            for (int i = 0; i < NORM_PER_LANE; i++) sum += d[i] * (v[i] * s) * by[i];
        }
        float mean = block_sum(sum, room) / (float)D;
        for (int64_t k = rounds - 1; k >= 0; k--) {
            int64_t c = k * step + mine;
            int left = (int)(D - c < NORM_PER_LANE ? D - c : NORM_PER_LANE);
            if (k != rounds - 1) {
                rows16(d, dy, r, c, left);
                rows16(v, x, r, c, left);
                rows16(by, weight, 0, c, left);
            }
            float4 *at = sums + k * 4 * blockDim.x + threadIdx.x;
            UNROLL
            for (int j = 0; j < 4; j++) {
                float4 of = at[j * blockDim.x];
                of.x += d[4 * j] * (v[4 * j] * s);
                of.y += d[4 * j + 1] * (v[4 * j + 1] * s);
                of.z += d[4 * j + 2] * (v[4 * j + 2] * s);
                of.w += d[4 * j + 3] * (v[4 * j + 3] * s);
                at[j * blockDim.x] = of;
            }
            float res[NORM_PER_LANE];
            UNROLL
            for (int i = 0; i < NORM_PER_LANE; i++) res[i] = 0.0f;
            if (dres.p) rows16(res, dres, r, c, left);
            UNROLL
            for (int i = 0; i < NORM_PER_LANE; i++) res[i] = norm_grad(res[i], d[i], v[i], by[i], s, mean);
            put16(dx, r, c, left, res);
        }
    }
    for (int64_t k = 0; k < rounds; k++)
        for (int j = 0; j < 4; j++) {
            int64_t c = k * step + mine + 4 * j;
            float4 of = sums[(k * 4 + j) * blockDim.x + threadIdx.x];
            float each[4] = {of.x, of.y, of.z, of.w};
            UNROLL
            for (int i = 0; i < 4; i++)
                if (c + i < D) part[blockIdx.x * D + c + i] = each[i];
        }
}
// dw += the parts, 32 columns per block: each of 8 warps adds an eighth of them in order, then the eighths in order.
static __global__ void __launch_bounds__(ROW_THREADS)
    norm_weight_kernel(float *dw, const float *part, int64_t nparts, int64_t D) {
    enum { WARPS = ROW_THREADS / 32 };
    SMEM(float, eighth, [WARPS][32]);
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int64_t c = (int64_t)blockIdx.x * 32 + lane, per = (nparts + WARPS - 1) / WARPS;
    int64_t end = (warp + 1) * per < nparts ? (warp + 1) * per : nparts;
    float sum = 0.0f;
    if (c < D) {
        UNROLL_4
        for (int64_t b = warp * per; b < end; b++) sum += part[b * D + c];
    }
    eighth[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || c >= D) return;
    for (int i = 1; i < WARPS; i++) sum += eighth[i][lane];
    dw[c] += sum;
}

extern "C" Err norm_rms_bwd_cuda(OpCx *cx, Mat dx, float *dw, Mat dy, Mat x, const float *w, const float *rstd,
                                 Mat dres) {
    int64_t T = x.rows, D = x.cols, nparts = ceil_div(T, NORM_ROWS);
    CUDA_MAT(x, T, D);
    CUDA_MAT(dx, T, D);
    CUDA_MAT(dy, T, D);
    if (dres.p) CUDA_MAT(dres, T, D);
    if (T == 0 || D == 0) return OK;
    int threads = norm_threads(D) < NORM_BWD_THREADS ? norm_threads(D) : NORM_BWD_THREADS;
    size_t shared = (size_t)(ceil_div(D, (int64_t)threads * NORM_PER_LANE) * threads) * NORM_PER_LANE * sizeof(float);
    size_t most = shared_most() - 1024; // the rest is the kernel's own
    CHECK(shared <= most, E_INTERNAL, "norm_rms_bwd: rows of %lld elements; this device takes up to %lld", (long long)D,
          (long long)(most / sizeof(float)));
    TRY_CUDA(cudaFuncSetAttribute((const void *)norm_bwd_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)shared));
    size_t mark = arena_mark(cx->scratch);
    float *part = NULL;
    ARENA_NEW(cx->scratch, part, nparts * D);
    LAUNCH(norm_bwd_kernel, dim3((unsigned)nparts), dim3((unsigned)threads), shared, STREAM, dx, part, dy, x, w, rstd,
           dres);
    LAUNCH(norm_weight_kernel, blocks_for(D, 32), dim3(ROW_THREADS), 0, STREAM, dw, part, nparts, D);
    CHECK_LAUNCH("norm_rms_bwd");
    arena_release(cx->scratch, mark);
    return OK;
}

static __global__ void __launch_bounds__(ROW_THREADS) add_kernel(Mat y, Mat a, Mat b) {
    each16(y.rows, y.cols, [=](int64_t r, int64_t c, int n) {
        float v[16], w[16];
        rows16(v, a, r, c, n);
        rows16(w, b, r, c, n);
        UNROLL
        for (int i = 0; i < 16; i++) v[i] += w[i];
        put16(y, r, c, n, v);
    });
}

extern "C" Err add_cuda(OpCx *cx, Mat y, Mat a, Mat b) {
    (void)cx;
    dim3 blocks;
    CUDA_MAT(y, y.rows, y.cols);
    CUDA_MAT(a, y.rows, y.cols);
    CUDA_MAT(b, y.rows, y.cols);
    if (y.rows * y.cols == 0) return OK;
    TRY(each16_blocks("add", y.rows, y.cols, &blocks));
    LAUNCH(add_kernel, blocks, dim3(ROW_THREADS), 0, STREAM, y, a, b);
    CHECK_LAUNCH("add");
    return OK;
}

static __global__ void __launch_bounds__(ROW_THREADS) cast_kernel(Mat y, Mat x) {
    each16(y.rows, y.cols, [=](int64_t r, int64_t c, int n) {
        if (x.t == y.t) { // bits are copied, so that even NaN payloads stay
            size_t each = x.t == DT_F32 ? 4 : 2;
            const char *from = (const char *)x.p + (r * x.ld + c) * each;
            char *to = (char *)y.p + (r * y.ld + c) * each;
            if (n == 16 && ((uintptr_t)from | (uintptr_t)to) % 16 == 0)
                for (size_t i = 0; i < each; i++) ((uint4 *)to)[i] = ((const uint4 *)from)[i];
            else
                for (size_t i = 0; i < (size_t)n * each / 2; i++) ((uint16_t *)to)[i] = ((const uint16_t *)from)[i];
            return;
        }
        float v[16];
        rows16(v, x, r, c, n);
        put16(y, r, c, n, v);
    });
}

extern "C" Err cast_cuda(OpCx *cx, Mat y, Mat x) {
    (void)cx;
    dim3 blocks;
    CUDA_MAT(y, y.rows, y.cols);
    CUDA_MAT(x, y.rows, y.cols);
    if (y.rows * y.cols == 0) return OK;
    TRY(each16_blocks("cast", y.rows, y.cols, &blocks));
    LAUNCH(cast_kernel, blocks, dim3(ROW_THREADS), 0, STREAM, y, x);
    CHECK_LAUNCH("cast");
    return OK;
}
