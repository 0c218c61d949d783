// rope_cuda.cu - rotary embedding on the GPU, 16 rotated values per thread where they lie side by side, else one pair.
// Only what is rotated is read and written. Contract: rope.h.
#include "rows_cuda.h"

#include "rope_core.h"

static __global__ void rope_kernel(Mat x, RopeShape s, const float *table, float sign) {
    int64_t pairs = s.rope_dim / 2, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= x.rows * s.heads * pairs) return;
    int64_t p = i % pairs, h = i / pairs % s.heads, r = i / (pairs * s.heads);
    const float *angle = table + (r % s.seq_len * pairs + p) * 2;
    int64_t c = s.col + h * s.head_stride + 2 * p;
    float a = row_value(x, r, c), b = row_value(x, r, c + 1);
    row_store(x, r, c, rope_value(a, b, angle[0], -sign * angle[1]));
    row_store(x, r, c + 1, rope_value(b, a, angle[0], sign * angle[1]));
}

// rope_dim is a multiple of 16.
static __global__ void __launch_bounds__(ROW_THREADS)
    rope16_kernel(Mat x, RopeShape s, const float *table, float sign) {
    uint32_t per_head = (uint32_t)(s.rope_dim / 16), per_row = (uint32_t)s.heads * per_head;
    uint32_t all = (uint32_t)x.rows * per_row;
    for (uint32_t i = blockIdx.x * ROW_THREADS + threadIdx.x; i < all; i += gridDim.x * ROW_THREADS) {
        uint32_t r = i / per_row, rest = i % per_row, h = rest / per_head, p = rest % per_head * 8;
        int64_t c = s.col + h * s.head_stride + 2 * p;
        Mat angles = {(void *)table, DT_F32, s.seq_len, s.rope_dim, s.rope_dim};
        float v[16], by[16];
        rows16(v, x, r, c, 16);
        rows16(by, angles, r % s.seq_len, 2 * p, 16);
        UNROLL
        for (int k = 0; k < 16; k += 2) {
            float a = v[k], b = v[k + 1];
            v[k] = rope_value(a, b, by[k], -sign * by[k + 1]);
            v[k + 1] = rope_value(b, a, by[k], sign * by[k + 1]);
        }
        put16(x, r, c, 16, v);
    }
}

extern "C" Err rope_cuda(OpCx *cx, Mat x, RopeShape shape, const float *table, bool inverse) {
    (void)cx;
    int64_t last = shape.col + (shape.heads - 1) * shape.head_stride + shape.rope_dim;
    CUDA_MAT(x, x.rows, x.cols);
    CHECK(shape.rope_dim % 2 == 0 && shape.seq_len > 0 && (shape.heads == 0 || last <= x.cols), E_INTERNAL,
          "rope: %lld heads of %lld values (stride %lld, column %lld) in %lld columns", (long long)shape.heads,
          (long long)shape.rope_dim, (long long)shape.head_stride, (long long)shape.col, (long long)x.cols);
    int64_t n = x.rows * shape.heads * shape.rope_dim / 2;
    if (n == 0) return OK;
    if (shape.rope_dim % 16 == 0 && n < INT32_MAX) {
        LAUNCH(rope16_kernel, blocks_at_once(ceil_div(n / 8, ROW_THREADS), 2048 / ROW_THREADS), dim3(ROW_THREADS), 0,
               STREAM, x, shape, table, inverse ? -1.0f : 1.0f);
        CHECK_LAUNCH("rope");
        return OK;
    }
    LAUNCH(rope_kernel, blocks_for(n, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, x, shape, table,
           inverse ? -1.0f : 1.0f);
    CHECK_LAUNCH("rope");
    return OK;
}
