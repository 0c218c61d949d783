// adam_cpu.c - AdamW and sums of squares on the CPU. Contract: adam.h.
#include "adam.h"

#include <math.h>

#include "row_lanes.h"
#include "rows.h"

Err adam_step_cpu(OpCx *cx, Mat master, Mat m, Mat v, Mat grad, Mat copy, AdamStep s) {
    int64_t R = master.rows, C = master.cols;
    ROW_MAT(master, R, C);
    ROW_MAT(m, R, C);
    ROW_MAT(v, R, C);
    ROW_MAT(grad, R, C);
    if (copy.p) ROW_MAT(copy, R, C);
    CHECK(master.t == DT_F32 && grad.t == DT_F32, E_INTERNAL,
          "adam: weights %s, gradients %s, not f32", dtype_name(master.t), dtype_name(grad.t));
    const RowLanes *lanes = row_lanes();
    int threads = row_threads(cx, R * C * 4);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < R; r++) lanes->adam(master, m, v, grad, copy, s, r);
    return OK;
}

static int64_t count_nonfinite(Mat x, int64_t r0, int64_t r1) {
    float buf[ROW_CHUNK];
    int64_t bad = 0;
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t c = 0; c < x.cols; c += ROW_CHUNK) {
            int64_t n = min_i64(x.cols - c, ROW_CHUNK);
            const float *v = row_get(x, r, c, n, buf);
            for (int64_t i = 0; i < n; i++) bad += (f32_bits(v[i]) & 0x7F800000u) == 0x7F800000u;
        }
    }
    return bad;
}

Err sumsq_blocks_cpu(OpCx *cx, double *out, int64_t *nonfinite, Mat x) {
    ROW_MAT(x, x.rows, x.cols);
    int64_t nblocks = ceil_div(x.rows, ROW_BLOCK), tasks = ceil_div(nblocks, ROW_SUMSQ);
    const RowLanes *lanes = row_lanes();
    int threads = row_threads(cx, x.rows * x.cols);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t k = 0; k < tasks; k++) lanes->sumsq(out, x, k * ROW_SUMSQ);
    // Squares of finite floats cannot overflow a double, so only a bad sum has bad values.
    for (int64_t b = 0; b < nblocks; b++)
        if (!isfinite(out[b]))
            *nonfinite += count_nonfinite(x, b * ROW_BLOCK, min_i64(x.rows, (b + 1) * ROW_BLOCK));
    return OK;
}
