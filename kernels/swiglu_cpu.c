// swiglu_cpu.c - the gated unit on the CPU. Contract: swiglu.h.
#include "swiglu.h"

#include "row_lanes.h"
#include "rows.h"
#include "team.h"

typedef struct SwigluJob {
    Mat h, g, u, dh, dg, du;
    float *dgate;
    const float *gate;
} SwigluJob;

static void fwd_part(const void *job, TeamPart part) {
    const SwigluJob *j = job;
    const RowLanes *lanes = row_lanes();
    for (int64_t r = team_first(part, j->g.rows); r < team_end(part, j->g.rows); r++)
        lanes->swiglu_fwd(j->h, j->g, j->u, j->gate ? j->gate[r] : 1.0f, r);
}

Err swiglu_fwd_cpu(OpCx *cx, Mat h, Mat g, Mat u, const float *gate) {
    int64_t M = h.rows, F = h.cols;
    ROW_MAT(h, M, F);
    ROW_MAT(g, M, F);
    ROW_MAT(u, M, F);
    SwigluJob j = {.h = h, .g = g, .u = u, .gate = gate};
    team_run(row_threads(cx, M * F * 8), fwd_part, &j);
    return OK;
}

static void bwd_part(const void *job, TeamPart part) {
    const SwigluJob *j = job;
    row_swiglu_bwd(j->dg, j->du, mat_none(), j->dgate, j->dh, j->g, j->u, j->gate, team_first(part, j->g.rows),
                   team_end(part, j->g.rows));
}

Err swiglu_bwd_cpu(OpCx *cx, Mat dg, Mat du, float *dgate, Mat dh, Mat g, Mat u,
                   const float *gate) {
    int64_t M = dh.rows, F = dh.cols;
    ROW_MAT(dh, M, F);
    ROW_MAT(g, M, F);
    ROW_MAT(u, M, F);
    ROW_MAT(dg, M, F);
    ROW_MAT(du, M, F);
    SwigluJob j = {.g = g, .u = u, .dh = dh, .dg = dg, .du = du, .dgate = dgate, .gate = gate};
    team_run(row_threads(cx, M * F * 8), bwd_part, &j);
    return OK;
}
