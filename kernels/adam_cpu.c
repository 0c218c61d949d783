// adam_cpu.c - AdamW and sums of squares on the CPU. Contract: adam.h.
#include "adam.h"

#include "adam_core.h"
#include "rows.h"

ROW_CLONES static void adam_row(Mat master, Mat m, Mat v, Mat grad, AdamStep s, int64_t r) {
    float mbuf[ROW_CHUNK], vbuf[ROW_CHUNK], wbuf[ROW_CHUNK];
    for (int64_t c = 0; c < master.cols; c += ROW_CHUNK) {
        int64_t n = min_i64(master.cols - c, ROW_CHUNK);
        const float *g = (const float *)grad.p + r * grad.ld + c;
        row_copy(mbuf, m, r, c, n);
        row_copy(vbuf, v, r, c, n);
        row_copy(wbuf, master, r, c, n);
        for (int64_t i = 0; i < n; i++) wbuf[i] = adam_weight(wbuf[i], mbuf + i, vbuf + i, g[i], s);
        row_put(m, r, c, n, mbuf);
        row_put(v, r, c, n, vbuf);
        row_put(master, r, c, n, wbuf);
    }
}

Err adam_step_cpu(OpCx *cx, Mat master, Mat m, Mat v, Mat grad, AdamStep s) {
    int64_t R = master.rows, C = master.cols;
    ROW_MAT(master, R, C);
    ROW_MAT(m, R, C);
    ROW_MAT(v, R, C);
    ROW_MAT(grad, R, C);
    CHECK(master.t == DT_F32 && grad.t == DT_F32, E_INTERNAL,
          "adam: weights %s, gradients %s, not f32", dtype_name(master.t), dtype_name(grad.t));
    int threads = row_threads(cx, R * C * 4);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < R; r++) adam_row(master, m, v, grad, s, r);
    return OK;
}

// Four blocks of 128 rows side by side: each sum stays strictly left to right, but four chains of
// additions hide each other's latency. Block b starts at row 128 b; missing rows count nothing.
#define SUMSQ_BLOCKS 4
static void sumsq_four(double *out, Mat x, int64_t b0) {
    float buf[SUMSQ_BLOCKS][ROW_CHUNK];
    double s[SUMSQ_BLOCKS] = {0};
    for (int64_t i = 0; i < ROW_BLOCK; i++) {
        for (int64_t c = 0; c < x.cols; c += ROW_CHUNK) {
            int64_t n = min_i64(x.cols - c, ROW_CHUNK);
            const float *p[SUMSQ_BLOCKS];
            bool all = true;
            for (int k = 0; k < SUMSQ_BLOCKS; k++) {
                int64_t r = (b0 + k) * ROW_BLOCK + i;
                p[k] = r < x.rows ? row_get(x, r, c, n, buf[k]) : NULL;
                all = all && p[k];
            }
            if (all) {
                const float *p0 = p[0], *p1 = p[1], *p2 = p[2], *p3 = p[3];
                for (int64_t j = 0; j < n; j++) {
                    s[0] += (double)p0[j] * (double)p0[j];
                    s[1] += (double)p1[j] * (double)p1[j];
                    s[2] += (double)p2[j] * (double)p2[j];
                    s[3] += (double)p3[j] * (double)p3[j];
                }
                continue;
            }
            for (int k = 0; k < SUMSQ_BLOCKS; k++)
                for (int64_t j = 0; p[k] && j < n; j++) s[k] += (double)p[k][j] * (double)p[k][j];
        }
    }
    int64_t nblocks = ceil_div(x.rows, ROW_BLOCK);
    for (int64_t k = 0; k < SUMSQ_BLOCKS && b0 + k < nblocks; k++) out[b0 + k] = s[k];
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
    int64_t nblocks = ceil_div(x.rows, ROW_BLOCK), tasks = ceil_div(nblocks, SUMSQ_BLOCKS);
    int threads = row_threads(cx, x.rows * x.cols);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t k = 0; k < tasks; k++) sumsq_four(out, x, k * SUMSQ_BLOCKS);
    // Squares of finite floats cannot overflow a double, so only a bad sum has bad values.
    for (int64_t b = 0; b < nblocks; b++)
        if (!isfinite(out[b]))
            *nonfinite += count_nonfinite(x, b * ROW_BLOCK, min_i64(x.rows, (b + 1) * ROW_BLOCK));
    return OK;
}
