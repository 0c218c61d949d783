// embed_cuda.cu - the embedding table on the GPU. Contract: embed.h.
//
// Tokens are checked on the device, without waiting: an unknown one is reported as a fault of the device (device.h),
// and nothing is written.
#include "rows_cuda.h"

#include "embed_core.h"

// The first token outside the table, if any, by one block.
static __global__ void embed_check_kernel(const int32_t *token, int64_t T, int64_t V, DeviceFault *fault) {
    SMEM(int64_t, room, [ROW_THREADS / 32]);
    int64_t first = T; // block_max looks for the largest: of T - t
    for (int64_t t = (int64_t)threadIdx.x; t < T; t += ROW_THREADS)
        if (!embed_is_known(token[t], V)) {
            first = t;
            break;
        }
    first = T - block_max(T - first, room);
    if (threadIdx.x == 0 && first < T) fault_report(fault, FAULT_TOKEN, token[first], first, V);
}

static __global__ void embed_fwd_kernel(Mat x, Mat table, const int32_t *token, const DeviceFault *fault) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= x.rows * x.cols || fault->code != FAULT_NONE) return;
    int64_t t = i / x.cols, c = i % x.cols;
    int32_t id = token[t];
    row_store(x, t, c, id < 0 ? 0.0f : row_value(table, id, c));
}

static Err check_tokens(const char *op, const int32_t *token, int64_t T, int64_t V, DeviceFault *fault) {
    LAUNCH(embed_check_kernel, dim3(1), dim3(ROW_THREADS), 0, STREAM, token, T, V, fault);
    CHECK_LAUNCH(op);
    return OK;
}

extern "C" Err embed_fwd_cuda(OpCx *cx, Mat x, Mat table, const int32_t *token) {
    (void)cx;
    CUDA_MAT(x, x.rows, x.cols);
    CUDA_MAT(table, table.rows, x.cols);
    if (x.rows * x.cols == 0) return OK;
    DeviceFault *fault = device_cuda_fault();
    TRY(check_tokens("embed_fwd", token, x.rows, table.rows, fault));
    LAUNCH(embed_fwd_kernel, blocks_for(x.rows * x.cols, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, x, table, token,
           fault);
    CHECK_LAUNCH("embed_fwd");
    return OK;
}

// One thread per column, all tokens in order: every element of the table sees one order of sums.
static __global__ void embed_bwd_kernel(Mat dtable, Mat dx, const int32_t *token, const DeviceFault *fault) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= dx.cols || fault->code != FAULT_NONE) return;
    for (int64_t t = 0; t < dx.rows; t++) {
        int32_t id = token[t];
        if (id < 0) continue;
        ((float *)dtable.p)[id * dtable.ld + c] += row_value(dx, t, c);
    }
}

extern "C" Err embed_bwd_cuda(OpCx *cx, Mat dtable, Mat dx, const int32_t *token) {
    (void)cx;
    CUDA_MAT(dx, dx.rows, dx.cols);
    CUDA_MAT(dtable, dtable.rows, dx.cols);
    CHECK(dtable.t == DT_F32, E_INTERNAL, "embed_bwd: gradients of the table are %s, not f32", dtype_name(dtable.t));
    if (dx.rows * dx.cols == 0) return OK;
    DeviceFault *fault = device_cuda_fault();
    TRY(check_tokens("embed_bwd", token, dx.rows, dtable.rows, fault));
    LAUNCH(embed_bwd_kernel, blocks_for(dx.cols, 32), dim3(32), 0, STREAM, dtable, dx, token, fault);
    CHECK_LAUNCH("embed_bwd");
    return OK;
}
