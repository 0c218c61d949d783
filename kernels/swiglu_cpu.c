// swiglu_cpu.c - the gated unit on the CPU. Contract: swiglu.h.
#include "swiglu.h"

#include "row_lanes.h"
#include "rows.h"

Err swiglu_fwd_cpu(OpCx *cx, Mat h, Mat g, Mat u, const float *gate) {
    int64_t M = h.rows, F = h.cols;
    ROW_MAT(h, M, F);
    ROW_MAT(g, M, F);
    ROW_MAT(u, M, F);
    const RowLanes *lanes = row_lanes();
    int threads = row_threads(cx, M * F * 8);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < M; r++) lanes->swiglu_fwd(h, g, u, gate ? gate[r] : 1.0f, r);
    return OK;
}

Err swiglu_bwd_cpu(OpCx *cx, Mat dg, Mat du, float *dgate, Mat dh, Mat g, Mat u,
                   const float *gate) {
    int64_t M = dh.rows, F = dh.cols;
    ROW_MAT(dh, M, F);
    ROW_MAT(g, M, F);
    ROW_MAT(u, M, F);
    ROW_MAT(dg, M, F);
    ROW_MAT(du, M, F);
    const RowLanes *lanes = row_lanes();
    int threads = row_threads(cx, M * F * 8);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < M; r++) {
        float d = lanes->swiglu_bwd(dg, du, dh, g, u, gate ? gate[r] : 1.0f, r);
        if (dgate) dgate[r] = d;
    }
    return OK;
}
