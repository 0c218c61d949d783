// norm_cpu.c - RMSNorm, add and cast on the CPU. Contract: norm.h.
#include "norm.h"

#include "row_lanes.h"
#include "rows.h"
#include "team.h"

typedef struct NormFwd {
    Mat y, x;
    float *rstd;
    const float *w;
    float eps;
} NormFwd;

static void fwd_part(const void *job, TeamPart part) {
    const NormFwd *j = job;
    const RowLanes *lanes = row_lanes();
    for (int64_t r = team_first(part, j->x.rows); r < team_end(part, j->x.rows); r++)
        lanes->norm_fwd(j->y, j->rstd, j->x, j->w, j->eps, r);
}

Err norm_rms_fwd_cpu(OpCx *cx, Mat y, float *rstd, Mat x, const float *w, float eps) {
    int64_t T = x.rows, D = x.cols;
    ROW_MAT(x, T, D);
    ROW_MAT(y, T, D);
    if (D == 0) return OK;
    NormFwd j = {y, x, rstd, w, eps};
    team_run(row_threads(cx, T * D), fwd_part, &j);
    return OK;
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
    const RowLanes *lanes = row_lanes();
    int threads = row_threads(cx, T * D);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t b = 0; b < nblocks; b++) {
        memset(part + b * D, 0, (size_t)D * sizeof *part);
        int64_t end = min_i64(T, (b + 1) * ROW_BLOCK);
        for (int64_t r = b * ROW_BLOCK; r < end; r++)
            lanes->norm_bwd(dx, part + b * D, dy, x, w, rstd[r], dres, r);
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

Err add_cpu(OpCx *cx, Mat y, Mat a, Mat b) {
    ROW_MAT(y, y.rows, y.cols);
    ROW_MAT(a, y.rows, y.cols);
    ROW_MAT(b, y.rows, y.cols);
    const RowLanes *lanes = row_lanes();
    int threads = row_threads(cx, y.rows * y.cols);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < y.rows; r++) lanes->add(y, a, b, r);
    return OK;
}

Err cast_cpu(OpCx *cx, Mat y, Mat x) {
    ROW_MAT(y, y.rows, y.cols);
    ROW_MAT(x, y.rows, y.cols);
    const RowLanes *lanes = row_lanes();
    int threads = row_threads(cx, y.rows * y.cols);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < y.rows; r++) {
        // Same type: bits are copied, so that even NaN payloads stay.
        if (x.t == y.t)
            memmove(mat_at(y, r, 0), mat_at(x, r, 0), (size_t)y.cols * dtype_bytes(y.t));
        else
            lanes->cast(y, r, x, r);
    }
    return OK;
}
