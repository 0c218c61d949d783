// swiglu_cpu.c - the gated unit on the CPU. Contract: swiglu.h.
#include "swiglu.h"

#include "rows.h"
#include "swiglu_core.h"

ROW_CLONES static void swiglu_fwd_row(Mat h, Mat g, Mat u, float gate, int64_t r) {
    float gbuf[ROW_CHUNK], ubuf[ROW_CHUNK], out[ROW_CHUNK];
    for (int64_t c = 0; c < h.cols; c += ROW_CHUNK) {
        int64_t n = min_i64(h.cols - c, ROW_CHUNK);
        const float *p = row_get(g, r, c, n, gbuf), *q = row_get(u, r, c, n, ubuf);
        for (int64_t i = 0; i < n; i++) out[i] = swiglu_value(p[i], q[i]) * gate;
        row_put(h, r, c, n, out);
    }
}

Err swiglu_fwd_cpu(OpCx *cx, Mat h, Mat g, Mat u, const float *gate) {
    int64_t M = h.rows, F = h.cols;
    ROW_MAT(h, M, F);
    ROW_MAT(g, M, F);
    ROW_MAT(u, M, F);
    int threads = row_threads(cx, M * F * 8);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < M; r++) swiglu_fwd_row(h, g, u, gate ? gate[r] : 1.0f, r);
    return OK;
}

// Returns sum_f dh * silu(g) * u. dg and du may be the memory of g and u: a chunk is read whole
// first.
ROW_CLONES static float swiglu_bwd_row(Mat dg, Mat du, Mat dh, Mat g, Mat u, float gate,
                                       int64_t r) {
    float hbuf[ROW_CHUNK], gbuf[ROW_CHUNK], ubuf[ROW_CHUNK];
    float og[ROW_CHUNK], ou[ROW_CHUNK], od[ROW_CHUNK];
    V16 acc = {0};
    for (int64_t c = 0; c < dh.cols; c += ROW_CHUNK) {
        int64_t n = min_i64(dh.cols - c, ROW_CHUNK);
        const float *d = row_get(dh, r, c, n, hbuf);
        const float *p = row_get(g, r, c, n, gbuf), *q = row_get(u, r, c, n, ubuf);
        for (int64_t i = 0; i < n; i++) {
            float silu = swiglu_grad(og + i, ou + i, d[i] * gate, p[i], q[i]);
            od[i] = d[i] * (silu * q[i]);
        }
        v16_add(&acc, od, n);
        row_put(dg, r, c, n, og);
        row_put(du, r, c, n, ou);
    }
    return v16_sum(&acc);
}

Err swiglu_bwd_cpu(OpCx *cx, Mat dg, Mat du, float *dgate, Mat dh, Mat g, Mat u,
                   const float *gate) {
    int64_t M = dh.rows, F = dh.cols;
    ROW_MAT(dh, M, F);
    ROW_MAT(g, M, F);
    ROW_MAT(u, M, F);
    ROW_MAT(dg, M, F);
    ROW_MAT(du, M, F);
    int threads = row_threads(cx, M * F * 8);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < M; r++) {
        float d = swiglu_bwd_row(dg, du, dh, g, u, gate ? gate[r] : 1.0f, r);
        if (dgate) dgate[r] = d;
    }
    return OK;
}
