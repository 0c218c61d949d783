// rope_cuda.cu - rotary embedding on the GPU, one thread per pair. Contract: rope.h.
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

extern "C" Err rope_cuda(OpCx *cx, Mat x, RopeShape shape, const float *table, bool inverse) {
    (void)cx;
    int64_t last = shape.col + (shape.heads - 1) * shape.head_stride + shape.rope_dim;
    CUDA_MAT(x, x.rows, x.cols);
    CHECK(shape.rope_dim % 2 == 0 && shape.seq_len > 0 && (shape.heads == 0 || last <= x.cols), E_INTERNAL,
          "rope: %lld heads of %lld values (stride %lld, column %lld) in %lld columns", (long long)shape.heads,
          (long long)shape.rope_dim, (long long)shape.head_stride, (long long)shape.col, (long long)x.cols);
    int64_t n = x.rows * shape.heads * shape.rope_dim / 2;
    if (n == 0) return OK;
    LAUNCH(rope_kernel, blocks_for(n, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, x, shape, table,
           inverse ? -1.0f : 1.0f);
    CHECK_LAUNCH("rope");
    return OK;
}
