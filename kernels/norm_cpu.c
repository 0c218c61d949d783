// norm_cpu.c - RMSNorm, add and cast on the CPU. Contract: norm.h.
#include "norm.h"

#include "norm_core.h"
#include "rows.h"

ROW_CLONES static void norm_fwd_row(Mat y, float *rstd, Mat x, const float *w, float eps,
                                    int64_t r) {
    float buf[ROW_CHUNK], out[ROW_CHUNK];
    int64_t D = x.cols;
    V16 acc = {0};
    for (int64_t c = 0; c < D; c += ROW_CHUNK) {
        int64_t n = min_i64(D - c, ROW_CHUNK);
        const float *v = row_get(x, r, c, n, buf);
        v16_dot(&acc, v, v, n);
    }
    float s = norm_rstd(v16_sum(&acc), (float)D, eps);
    if (rstd) rstd[r] = s;
    for (int64_t c = 0; c < D; c += ROW_CHUNK) {
        int64_t n = min_i64(D - c, ROW_CHUNK);
        const float *v = row_get(x, r, c, n, buf);
        for (int64_t i = 0; i < n; i++) out[i] = norm_value(v[i], s, w[c + i]);
        row_put(y, r, c, n, out);
    }
}

Err norm_rms_fwd_cpu(OpCx *cx, Mat y, float *rstd, Mat x, const float *w, float eps) {
    int64_t T = x.rows, D = x.cols;
    ROW_MAT(x, T, D);
    ROW_MAT(y, T, D);
    if (D == 0) return OK;
    int threads = row_threads(cx, T * D);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < T; r++) norm_fwd_row(y, rstd, x, w, eps, r);
    return OK;
}

// Everything of one row of the backward; part [D] collects dy*xhat of its block.
ROW_CLONES static void norm_bwd_row(Mat dx, float *part, Mat dy, Mat x, const float *w, float rstd,
                                    Mat dres, int64_t r) {
    float gbuf[ROW_CHUNK], xbuf[ROW_CHUNK], rbuf[ROW_CHUNK], out[ROW_CHUNK];
    int64_t D = x.cols;
    V16 acc = {0};
    for (int64_t c = 0; c < D; c += ROW_CHUNK) {
        int64_t n = min_i64(D - c, ROW_CHUNK);
        const float *g = row_get(dy, r, c, n, gbuf), *v = row_get(x, r, c, n, xbuf);
        for (int64_t i = 0; i < n; i++) {
            float gx = g[i] * (v[i] * rstd);
            part[c + i] += gx;
            out[i] = gx * w[c + i];
        }
        v16_add(&acc, out, n);
    }
    float mean = v16_sum(&acc) / (float)D;
    for (int64_t c = 0; c < D; c += ROW_CHUNK) {
        int64_t n = min_i64(D - c, ROW_CHUNK);
        const float *g = row_get(dy, r, c, n, gbuf), *v = row_get(x, r, c, n, xbuf);
        const float *wc = w + c;
        if (dres.p) {
            const float *res = row_get(dres, r, c, n, rbuf);
            for (int64_t i = 0; i < n; i++)
                out[i] = norm_grad(res[i], g[i], v[i], wc[i], rstd, mean);
        } else {
            for (int64_t i = 0; i < n; i++) out[i] = norm_grad(0.0f, g[i], v[i], wc[i], rstd, mean);
        }
        row_put(dx, r, c, n, out);
    }
}

Err norm_rms_bwd_cpu(OpCx *cx, Mat dx, float *dw, Mat dy, Mat x, const float *w, const float *rstd,
                     Mat dres) {
    int64_t T = x.rows, D = x.cols, nblocks = ceil_div(T, ROW_BLOCK);
    ROW_MAT(x, T, D);
    ROW_MAT(dx, T, D);
    ROW_MAT(dy, T, D);
    if (dres.p) ROW_MAT(dres, T, D);
    if (T == 0 || D == 0) return OK;
    size_t mark = arena_mark(cx->scratch);
    float *part = NULL;
    ARENA_NEW(cx->scratch, part, nblocks * D);
    int threads = row_threads(cx, T * D);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < nblocks; b++) {
        memset(part + b * D, 0, (size_t)D * sizeof *part);
        int64_t end = min_i64(T, (b + 1) * ROW_BLOCK);
        for (int64_t r = b * ROW_BLOCK; r < end; r++)
            norm_bwd_row(dx, part + b * D, dy, x, w, rstd[r], dres, r);
    }
    threads = row_threads(cx, nblocks * D);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c = 0; c < D; c++) {
        float s = 0.0f;
        for (int64_t b = 0; b < nblocks; b++) s += part[b * D + c];
        dw[c] += s;
    }
    arena_release(cx->scratch, mark);
    return OK;
}

ROW_CLONES static void add_row(Mat y, Mat a, Mat b, int64_t r) {
    float abuf[ROW_CHUNK], bbuf[ROW_CHUNK], out[ROW_CHUNK];
    for (int64_t c = 0; c < y.cols; c += ROW_CHUNK) {
        int64_t n = min_i64(y.cols - c, ROW_CHUNK);
        const float *p = row_get(a, r, c, n, abuf), *q = row_get(b, r, c, n, bbuf);
        for (int64_t i = 0; i < n; i++) out[i] = p[i] + q[i];
        row_put(y, r, c, n, out);
    }
}

Err add_cpu(OpCx *cx, Mat y, Mat a, Mat b) {
    ROW_MAT(y, y.rows, y.cols);
    ROW_MAT(a, y.rows, y.cols);
    ROW_MAT(b, y.rows, y.cols);
    int threads = row_threads(cx, y.rows * y.cols);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < y.rows; r++) add_row(y, a, b, r);
    return OK;
}

ROW_CLONES static void cast_row(Mat y, Mat x, int64_t r) {
    float buf[ROW_CHUNK];
    for (int64_t c = 0; c < y.cols; c += ROW_CHUNK) {
        int64_t n = min_i64(y.cols - c, ROW_CHUNK);
        row_put(y, r, c, n, row_get(x, r, c, n, buf));
    }
}

Err cast_cpu(OpCx *cx, Mat y, Mat x) {
    ROW_MAT(y, y.rows, y.cols);
    ROW_MAT(x, y.rows, y.cols);
    int threads = row_threads(cx, y.rows * y.cols);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < y.rows; r++) {
        // Same type: bits are copied, so that even NaN payloads stay.
        if (x.t == y.t)
            memmove(mat_at(y, r, 0), mat_at(x, r, 0), (size_t)y.cols * dtype_bytes(y.t));
        else
            cast_row(y, x, r);
    }
    return OK;
}
