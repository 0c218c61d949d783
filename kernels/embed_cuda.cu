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

static __global__ void __launch_bounds__(ROW_THREADS)
    embed_fwd_kernel(Mat x, Mat table, const int32_t *token, const DeviceFault *fault) {
    if (fault->code != FAULT_NONE) return;
    each16(x.rows, x.cols, [=](int64_t t, int64_t c, int n) {
        float v[16];
        int32_t id = token[t];
        rows16(v, table, id < 0 ? 0 : id, c, id < 0 ? 0 : n);
        put16(x, t, c, n, v);
    });
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
    dim3 blocks;
    TRY(each16_blocks("embed_fwd", x.rows, x.cols, &blocks));
    TRY(check_tokens("embed_fwd", token, x.rows, table.rows, fault));
    LAUNCH(embed_fwd_kernel, blocks, dim3(ROW_THREADS), 0, STREAM, x, table, token, fault);
    CHECK_LAUNCH("embed_fwd");
    return OK;
}

// next[t]: the next position with the token of t, T if there is none; -1 if t is not the first of its token or has no
// row. One warp per position.
static __global__ void __launch_bounds__(ROW_THREADS)
    embed_chain_kernel(int32_t *next, const int32_t *token, int64_t T) {
    int64_t t = (int64_t)blockIdx.x * (ROW_THREADS / 32) + threadIdx.x / 32;
    if (t >= T) return;
    int lane = (int)(threadIdx.x % 32), is_later = 0;
    int32_t id = token[t];
    for (int64_t i = lane; i - lane < t && !is_later; i += 32) is_later = __any_sync(WARP_ALL, i < t && token[i] == id);
    int64_t found = T;
    for (int64_t i = t + 1 + lane; i - lane < T; i += 32) {
        uint32_t same = __ballot_sync(WARP_ALL, i < T && token[i] == id);
        if (!same) continue;
        found = i - lane + __ffs((int)same) - 1;
        break;
    }
    // The chain itself must know what follows later ones: the sign says who begins one.
    if (lane == 0) next[t] = id < 0 ? -1 : is_later ? (int32_t)(-2 - found) : (int32_t)found;
}
// The rows of one token, in their order, on top of the table's: every element sees one order of sums. One block per
// first position and 2048 columns.
#define CHAIN_THREADS 128
static __global__ void __launch_bounds__(CHAIN_THREADS)
    embed_bwd_kernel(Mat dtable, Mat dx, const int32_t *token, const int32_t *next, const DeviceFault *fault) {
    int64_t t = blockIdx.x, c = ((int64_t)blockIdx.y * CHAIN_THREADS + threadIdx.x) * 16;
    if (fault->code != FAULT_NONE || next[t] < 0 || c >= dx.cols) return;
    int n = (int)(dx.cols - c < 16 ? dx.cols - c : 16);
    int32_t id = token[t];
    float sum[16], v[16];
    rows16(sum, dtable, id, c, n);
    while (t < dx.rows) {
        int32_t after = next[t];
        rows16(v, dx, t, c, n);
        UNROLL
        for (int i = 0; i < 16; i++) sum[i] += v[i];
        t = after < -1 ? -2 - after : after;
    }
    put16(dtable, id, c, n, sum);
}

extern "C" Err embed_bwd_cuda(OpCx *cx, Mat dtable, Mat dx, const int32_t *token) {
    int64_t T = dx.rows, slabs = ceil_div(dx.cols, CHAIN_THREADS * 16);
    CUDA_MAT(dx, dx.rows, dx.cols);
    CUDA_MAT(dtable, dtable.rows, dx.cols);
    CHECK(dtable.t == DT_F32, E_INTERNAL, "embed_bwd: gradients of the table are %s, not f32", dtype_name(dtable.t));
    if (dx.rows * dx.cols == 0) return OK;
    DeviceFault *fault = device_cuda_fault();
    CHECK(T < INT32_MAX - 2 && slabs <= 65535, E_INTERNAL, "embed_bwd: [%lld, %lld] gradients", (long long)T,
          (long long)dx.cols);
    size_t mark = arena_mark(cx->scratch);
    int32_t *next = NULL;
    ARENA_NEW(cx->scratch, next, T);
    TRY(check_tokens("embed_bwd", token, T, dtable.rows, fault));
    LAUNCH(embed_chain_kernel, blocks_for(T, ROW_THREADS / 32), dim3(ROW_THREADS), 0, STREAM, next, token, T);
    LAUNCH(embed_bwd_kernel, dim3((unsigned)T, (unsigned)slabs), dim3(CHAIN_THREADS), 0, STREAM, dtable, dx, token,
           next, fault);
    CHECK_LAUNCH("embed_bwd");
    arena_release(cx->scratch, mark);
    return OK;
}
