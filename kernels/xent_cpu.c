// xent_cpu.c - cross-entropy and its gradient on the CPU. Contract: xent.h.
#include "xent.h"

#include <omp.h>

#include "row_lanes.h"
#include "rows.h"
#include "xent_core.h"

// is_first: whether the target is the first of the largest logits.
static bool is_first(const float *l, int64_t target, float max) {
    if (l[target] != max) return false;
    for (int64_t v = 0; v < target; v++)
        if (l[v] == max) return false;
    return true;
}

Err xent_fwd_bwd_cpu(OpCx *cx, float *loss, int32_t *correct, Mat dlogits, Mat logits,
                     const int32_t *target, float scale) {
    int64_t T = logits.rows, V = logits.cols;
    ROW_MAT(logits, T, V);
    CHECK(logits.t == DT_F32, E_INTERNAL, "xent: logits are %s, not f32", dtype_name(logits.t));
    if (dlogits.p) {
        ROW_MAT(dlogits, T, V);
        CHECK(dlogits.p != logits.p || (dlogits.t == DT_F32 && dlogits.ld == logits.ld), E_INTERNAL,
              "xent: dlogits shares the memory of logits in another layout");
    }
    for (int64_t t = 0; t < T; t++)
        CHECK(target[t] < V, E_INTERNAL, "xent: target %d of row %lld is outside %lld logits",
              (int)target[t], (long long)t, (long long)V);
    if (T == 0) return OK;
    const RowLanes *lanes = row_lanes();
    int threads = row_threads(cx, T * V * 4);
    // exp(l - max) of the row a thread is at, for its gradient.
    size_t mark = arena_mark(cx->scratch);
    int64_t room = ceil_div(V, ROW_LANES) * ROW_LANES;
    float *terms = NULL;
    if (dlogits.p) ARENA_NEW(cx->scratch, terms, threads * room);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < T; t++) {
        if (target[t] < 0) {
            loss[t] = 0.0f;
            if (correct) correct[t] = 0;
            if (dlogits.p) memset(mat_at(dlogits, t, 0), 0, (size_t)V * dtype_bytes(dlogits.t));
            continue;
        }
        const float *l = mat_at(logits, t, 0);
        float max, *e = terms ? terms + omp_get_thread_num() * room : NULL;
        double sum = lanes->xent_sum(e, l, V, &max);
        loss[t] = xent_loss(max, sum, l[target[t]]);
        if (correct) correct[t] = is_first(l, target[t], max);
        if (dlogits.p)
            lanes->xent_grad(dlogits, e, (float)((double)scale / sum), scale, target[t], t);
    }
    arena_release(cx->scratch, mark);
    return OK;
}
