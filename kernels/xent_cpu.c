// xent_cpu.c - cross-entropy and its gradient on the CPU. Contract: xent.h.
#include "xent.h"

#include "rows.h"
#include "xent_core.h"

// sum of exp(l - max): FP32 in 16 lanes inside a chunk, chunks in double, so that a vocabulary of
// 1e5 values loses nothing.
ROW_CLONES static double xent_sum(const float *l, int64_t V, float *max) {
    float e[ROW_CHUNK];
    float m = row_max(l, V, -INFINITY);
    double sum = 0.0;
    for (int64_t c = 0; c < V; c += ROW_CHUNK) {
        int64_t n = min_i64(V - c, ROW_CHUNK);
        for (int64_t i = 0; i < n; i++) e[i] = exp_f32(l[c + i] - m);
        V16 acc = {0};
        v16_add(&acc, e, n);
        sum += (double)v16_sum(&acc);
    }
    *max = m;
    return sum;
}

ROW_CLONES static void xent_grad_row(Mat dlogits, const float *l, float max, float inv, float scale,
                                     int64_t target, int64_t r) {
    float out[ROW_CHUNK];
    int64_t V = dlogits.cols;
    for (int64_t c = 0; c < V; c += ROW_CHUNK) {
        int64_t n = min_i64(V - c, ROW_CHUNK);
        for (int64_t i = 0; i < n; i++) out[i] = xent_grad(l[c + i], max, inv);
        if (target >= c && target < c + n) out[target - c] -= scale;
        row_put(dlogits, r, c, n, out);
    }
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
    int threads = row_threads(cx, T * V * 4);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < T; t++) {
        if (target[t] < 0) {
            loss[t] = 0.0f;
            if (correct) correct[t] = 0;
            if (dlogits.p) memset(mat_at(dlogits, t, 0), 0, (size_t)V * dtype_bytes(dlogits.t));
            continue;
        }
        const float *l = mat_at(logits, t, 0);
        float max;
        double sum = xent_sum(l, V, &max);
        loss[t] = xent_loss(max, sum, l[target[t]]);
        if (correct) {
            int64_t best = 0;
            while (best < target[t] && l[best] != max) best++;
            correct[t] = l[best] == max && best == target[t];
        }
        if (dlogits.p)
            xent_grad_row(dlogits, l, max, (float)((double)scale / sum), scale, target[t], t);
    }
    return OK;
}
